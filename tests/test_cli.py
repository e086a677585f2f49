"""The command line against the sandbox: what it prints, what it exits with, and that no secret is among it."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import errno
import inspect
import json
import os
import pty
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import engine
from engine import arguments, cli, errors, sandbox
from tests.conftest import Server
from tests.peers import raw_server, read_head

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out.count("\n") == 1, "one object on one line"
        return json.loads(self.out)


Putengine = Callable[..., Ran]


@pytest.fixture
def environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of somebody who works with the sandbox's redirecting endpoint."""
    values = {
        "AWS_ENDPOINT_URL_S3": server.redirector_url,
        "AWS_REGION": server.region,
        "AWS_ACCESS_KEY_ID": server.credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": server.credentials.secret_key,
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def putengine(environment: dict[str, str], capfd: pytest.CaptureFixture[str]) -> Putengine:
    """Runs a command line in this process."""

    def run(*words: object) -> Ran:
        capfd.readouterr()
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as left:
            code = left.code  # type: ignore[assignment]
        sys.stdout.flush()
        return Ran(code, *capfd.readouterr())

    return run


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.bin"
    path.write_bytes(os.urandom(100_000))
    return path


def start(environment: dict[str, str], *words: object, **options: Any) -> subprocess.Popen[bytes]:
    """The program as a process of its own."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", "engine", *map(str, words)], env=environment, **(pipes | options))


def wait(process: subprocess.Popen[bytes]) -> Ran:
    out, err = process.communicate(timeout=30)
    return Ran(process.returncode, out.decode(), err.decode())


def wait_until(condition: Callable[[], object], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def assert_one_line(ran: Ran) -> None:
    """An expected error: one clear line, no traceback, no secret."""
    assert re.fullmatch(r"putengine: [^\n]+\n", ran.err), ran.err
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in ran.err


# --- put --------------------------------------------------------------------------------------------------------------


def test_put_tells_what_was_stored_and_what_each_hop_cost(server: Server, putengine: Putengine, small: Path) -> None:
    ran = putengine("put", small, "s3://redirect-307.cli/a b")
    assert (ran.code, ran.err) == (0, "")
    assert server.object("redirect-307.cli", "a b").size == 100_000
    told = ran.out.splitlines()
    assert told[0] == "stored s3://redirect-307.cli/a b"
    assert re.fullmatch(r"  97\.7 KiB in .+ \(.+/s\), by sendfile", told[1])
    assert told[2].endswith("which is also what the server computed")
    assert re.search(r"1 +127\.0\.0\.1:\d+ +307 +0 +0 .+ redirected$", told[-2])
    assert re.search(r"2 +127\.0\.0\.1:\d+ +200 +100,000 +100,000 .+ stored$", told[-1])


def test_put_with_json_prints_every_field_of_the_result(putengine: Putengine, small: Path) -> None:
    ran = putengine("put", small, "s3://redirect-307.json/k", "--json")
    assert (ran.code, ran.err) == (0, "")
    found = ran.json
    assert list(found) == [field.name for field in dataclasses.fields(engine.PutResult)]
    assert [(hop["status"], hop["body_bytes_sent"]) for hop in found["hops"]] == [(307, 0), (200, 100_000)]
    assert found["checksum"]["algorithm"] == "crc64nvme"
    assert (found["size"], found["checksum_verified"], found["expect"]) == (100_000, True, "continue")


def test_quiet_prints_nothing(putengine: Putengine, small: Path) -> None:
    assert putengine("put", small, "s3://store.quiet/k", "-q") == (0, "", "")


def test_options_reach_the_server(server: Server, putengine: Putengine, small: Path, tmp_path: Path) -> None:
    key = os.urandom(32)
    (tmp_path / "key").write_bytes(key)
    options = "--content-type text/x --storage-class STANDARD_IA --acl private --checksum sha256 --request-payer"
    options += " --metadata a=b=c --metadata D=e --tagging t=1 --if-none-match * --expect never --offset 1k --size 2K"
    ran = putengine(
        "put", small, "s3://store.options/k", *options.split(), "--header", "Cache-Control: no-cache",
        "--sse-customer-key-file", tmp_path / "key",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    (record,) = server.records()
    sent = {name.lower(): value for name, value in record.headers}
    expected = {
        "content-type": "text/x",
        "x-amz-storage-class": "STANDARD_IA",
        "x-amz-acl": "private",
        "x-amz-request-payer": "requester",
        "x-amz-meta-a": "b=c",
        "x-amz-meta-d": "e",
        "x-amz-tagging": "t=1",
        "if-none-match": "*",
        "cache-control": "no-cache",
        "content-length": "2048",
        "x-amz-server-side-encryption-customer-key": base64.b64encode(key).decode(),
    }
    assert sent | expected == sent
    assert "expect" not in sent
    assert "x-amz-checksum-sha256" in sent
    assert Path(server.object("store.options", "k").path).read_bytes() == small.read_bytes()[1024:3072]


def test_standard_input_of_known_size_goes_from_pipe_to_socket(
    server: Server, environment: dict[str, str], small: Path
) -> None:
    process = start(environment, "put", "-", "s3://store.pipe/k", "--size", 100_000, "--json", stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(small.read_bytes())
    ran = wait(process)
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["send_path"] == "splice"
    assert Path(server.object("store.pipe", "k").path).read_bytes() == small.read_bytes()


def test_standard_input_from_a_file_is_sent_as_a_file(environment: dict[str, str], small: Path) -> None:
    with small.open("rb") as file:
        ran = wait(start(environment, "put", "-", "s3://redirect-307.stdin/k", "--json", stdin=file))
    assert ran.code == 0, ran.err
    assert (ran.json["send_path"], ran.json["size"], ran.json["redirects"]) == ("sendfile", 100_000, 1)


def test_standard_input_of_unknown_size_is_refused_by_s3_with_the_remedy(
    environment: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    process = start(environment, "put", "-", "s3://store.chunked/k", stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(b"x")
    ran = wait(process)
    assert ran.code == 1
    assert "411 MissingContentLength" in ran.err
    assert "give --size" in ran.err


# --- get, head, delete --------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(server: Server, putengine: Putengine, small: Path) -> Path:
    """s3://store.got/k holds this file."""
    assert putengine("put", small, "s3://store.got/k", "--metadata", "colour=green", "-q").code == 0
    return small


def test_get_writes_a_file(putengine: Putengine, stored: Path, tmp_path: Path) -> None:
    ran = putengine("get", "s3://store.got/k", tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    assert re.fullmatch(rf"fetched 97\.7 KiB in .+ \(.+/s\) to {tmp_path}/out\n", ran.out)
    assert (tmp_path / "out").read_bytes() == stored.read_bytes()
    assert putengine("get", "s3://store.got/k", tmp_path / "out", "--json").json["size"] == 100_000


@pytest.mark.parametrize("words", [["-"], [], ["--json"]])
def test_get_writes_to_standard_output_and_talks_on_standard_error(
    environment: dict[str, str], stored: Path, words: list[str]
) -> None:
    process = start(environment, "get", "s3://store.got/k", *words)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, stored.read_bytes())
    if "--json" in words:
        assert json.loads(err)["file"] == "standard output"
    else:
        assert err.startswith(b"fetched 97.7 KiB")


def test_a_get_that_fails_writes_nothing(putengine: Putengine, environment: dict[str, str], tmp_path: Path) -> None:
    ran = putengine("get", "s3://store.got/there-is-no-such", tmp_path / "out")
    assert (ran.code, ran.out) == (1, "")
    assert_one_line(ran)
    assert list(tmp_path.iterdir()) == []
    ran = wait(start(environment, "get", "s3://store.got/there-is-no-such", "--json"))
    assert (ran.code, ran.out) == (1, ""), "standard output is for the object"
    complaint, found = ran.err.splitlines()
    assert json.loads(found)["code"] == "NoSuchKey"
    assert complaint.startswith("putengine: GET s3://store.got/there-is-no-such: 404 NoSuchKey")


def test_a_get_never_replaces_a_device_or_a_link(putengine: Putengine, stored: Path, tmp_path: Path) -> None:
    target, link, fifo = tmp_path / "target", tmp_path / "link", tmp_path / "fifo"
    target.touch(mode=0o640)
    link.symlink_to("target")
    assert putengine("get", "s3://store.got/k", link, "-q").code == 0
    assert (link.is_symlink(), target.read_bytes()) == (True, stored.read_bytes())
    assert stat.S_IMODE(target.stat().st_mode) == 0o640, "a file that was there gives its mode"
    os.mkfifo(fifo)
    reader = subprocess.Popen(["cat", str(fifo)], stdout=subprocess.PIPE)
    assert putengine("get", "s3://store.got/k", fifo, "-q").code == 0
    assert reader.communicate(timeout=10)[0] == stored.read_bytes()
    assert fifo.is_fifo()


def test_a_reader_that_leaves_ends_a_get_in_silence(
    server: Server, environment: dict[str, str], big_file: Path
) -> None:
    assert wait(start(environment, "put", big_file, "s3://store.left/k", "-q")).code == 0
    process = start(environment, "get", "s3://store.left/k", "-q")
    assert process.stdout
    assert len(process.stdout.read(10)) == 10
    process.stdout.close()
    assert process.stderr
    assert (process.stderr.read(), process.wait(20)) == (b"", 141)
    process.stderr.close()


def test_head_prints_what_the_server_says(putengine: Putengine, stored: Path) -> None:
    told = dict(re.split(" {2,}", line) for line in putengine("head", "s3://store.got/k").out.splitlines())
    assert told["size"] == "100000 (97.7 KiB)"
    assert told["metadata colour"] == "green"
    found = putengine("head", "s3://store.got/k", "--json").json
    assert list(found) == [field.name for field in dataclasses.fields(engine.ObjectInfo)]
    assert found["metadata"] == {"colour": "green"}


def test_delete_prints_one_line(putengine: Putengine, stored: Path) -> None:
    assert putengine("delete", "s3://store.got/k") == (0, "deleted s3://store.got/k\n", "")
    assert putengine("head", "s3://store.got/k").code == 1
    assert putengine("delete", "s3://store.got/k", "--json").json == {"deleted": "s3://store.got/k"}


# --- bad input: exit code and words -------------------------------------------------------------------------------------

LONG = "k" * 1025


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("put {tmp}/none s3://store/k", 2, "{tmp}/none: there is no such file"),
        ("put {tmp} s3://store/k", 2, "{tmp}: this is a directory"),
        ("put {small}/x s3://store/k", 2, "{small}/x: a part of this path is a file"),
        ("put {small} s3://store/k --offset -1", 2, "--offset -1: a number of bytes"),
        ("put {small} s3://store/k --offset 100001", 2, "behind the end"),
        ("put {small} s3://store/k --size 100001", 2, "100001 bytes from offset 0 are asked for, 100000 are there"),
        ("put {small} s3://store/k --size 1.0001", 2, "no whole number of bytes"),
        ("put {small} s3://store/k --size 3x", 2, "'3x' is no size"),
        ("put {small} s3://store", 2, "the key is missing"),
        ("put {small} s3:///k", 2, "bucket"),
        ("put {small} s3://buck_et!/k", 2, "bucket"),
        (f"put {{small}} s3://store/{LONG}", 2, "1024"),
        ("put {small} ftp://host/k", 2, "begin it with s3://"),
        ("put {small} {tmp}/k", 2, "begin it with s3://"),
        ("put {small} http://user:qpassword@127.0.0.1/k", 2, "user-info"),
        ("put {small} https://127.0.0.1:1/k", 4, "nothing listens there"),
        ("put {small} s3://store/k --header X-A:1\r\nX-B:2", 2, "header X-A: the value has a control character"),
        ("put {small} s3://store/k --header X-A:1\0", 2, "header X-A: the value has a control character"),
        ("put {small} s3://store/k --header X\rA:1", 2, "header name"),
        ("put {small} s3://store/k --header Host:evil", 2, "header Host: made from the body, the URL and the options"),
        ("put {small} s3://store/k --header qsecret", 2, "'Name: value'"),
        ("put {small} s3://store/k --header A:1 --header a:2", 2, "'a' is given twice"),
        ("put {small} s3://store/k --metadata a=1\n2", 2, "metadata 'a'"),
        ("put {small} s3://store/k --metadata a=1\r", 2, "metadata 'a'"),
        ("put {small} s3://store/k --metadata a=\0", 2, "metadata 'a'"),
        ("put {small} s3://store/k --metadata a", 2, "no NAME=VALUE"),
        ("put {small} s3://store/k --checksum md5", 2, "--checksum"),
        ("put {small} s3://store/k --if-match x --if-none-match *", 2, "--if-match and --if-none-match exclude"),
        ("put {small} s3://store/k --sse-customer-key-file {small}", 2, "--sse-customer-key-file: 32 raw bytes"),
        ("put {small} s3://store/k --sse-customer-key-file {tmp}/none", 2, "{tmp}/none: there is no such file"),
        ("put {small} s3://store/k --connect-timeout 0", 2, "--connect-timeout 0"),
        ("put {small} s3://store/k --connect-timeout soon", 2, "no number of seconds"),
        ("put {small} s3://store/k --max-redirects -1", 2, "--max-redirects is a number from 0 to 50"),
        ("put {small} s3://store/k --max-attempts 0", 2, "--max-attempts is a whole number"),
        ("put {small} s3://store/k --redirect-host http://x/", 2, "--redirect-host 'http://x/'"),
        ("put {small} s3://store/k --endpoint-url s3.example", 2, "not an http:// or https:// URL"),
        ("put {small} s3://store/k --no-sign-request --profile x", 2, "exclude each other"),
        ("put {small} s3://store/k --endpoint-urk x", 2, "did you mean --endpoint-url?"),
        ("put {small} s3://store/k and more", 2, "'and' is one argument too many"),
        ("put {small}", 2, "required: URL"),
        ("uplaod {small} s3://store/k", 2, "unknown command 'uplaod'"),
        ("upload {small} s3://store/k --concurrency 0", 2, "--concurrency"),
        ("upload {small} s3://store/k --part-size 0", 2, "--part-size"),
        ("", 2, "a command is missing"),
        ("get s3://store/k {tmp}", 2, "{tmp}: this is a directory"),
        ("get s3://store/k {tmp}/none/k", 2, "{tmp}/none/k: there is no such file or directory"),
        ("demo {tmp}/none", 2, "{tmp}/none: there is no such file"),
        ("demo {small} --size 3", 2, "--size is of the file that is made"),
        ("demo --size 900T --folder {tmp}", 2, "the demo needs 1.76 PiB"),
        ("demo --size 0", 2, "an empty file"),
        ("config --max-redirects -1", 2, "--max-redirects"),
        ("put {small} s3://store/k --endpoint-url http://127.0.0.1:1 --max-attempts 1", 4, "nothing listens there"),
        ("put {small} s3://k/k --endpoint-url http://name.invalid --max-attempts 1", 4, "name.invalid: the name cannot"),
        ("put {small} s3://hang/k --expect always --response-timeout .3 --continue-timeout auto --total-timeout 1.2", 4, ""),
        ("put {small} s3://drop/k --max-attempts 1", 4, "closed by the peer"),
        ("put {small} s3://garbage/k --max-attempts 1", 4, "is not HTTP/1.1"),
        ("head s3://garbage/k --max-attempts 1", 4, "is not HTTP/1.1"),
        ("put {small} s3://answer-403/k", 1, "403 AccessDenied"),
        ("put {small} s3://answer-503/k --max-attempts 1", 1, "503 SlowDown"),
        ("put {small} s3://answer-412/k --if-none-match *", 1, "412 PreconditionFailed"),
        ("put {small} s3://store/k --no-sign-request", 1, "403 AccessDenied"),
        ("put {small} s3://store-corrupt/k", 5, "the object there is not the source"),
        ("put {small} s3://redirect-307-elsewhere/k", 6, "add 'redirect.example.test' to --redirect-host"),
        ("put {small} s3://redirect-307-hops-9/k", 6, "5 were followed already: see --max-redirects"),
        ("put {small} s3://redirect-307/k --max-redirects 0", 6, "none is followed"),
        ("put {small} s3://redirect-307-https/k", 4, "no TLS connection"),
        ("put {small} s3://redirect-307-loop/k", 6, ""),
    ],
)  # fmt: skip
def test_bad_input_and_bad_luck_have_an_exit_code_and_one_clear_line(
    putengine: Putengine, small: Path, tmp_path: Path, words: str, code: int, told: str
) -> None:
    places = {"tmp": tmp_path, "small": small}
    argv = [word.format(**places) for word in words.split(" ")] if words else []
    ran = putengine(*argv)
    assert ran.code == code, ran
    assert_one_line(ran)
    assert told.format(**places) in ran.err
    assert ran.out == ""
    assert "qpassword" not in ran.err
    assert "qsecret" not in ran.err


@pytest.mark.parametrize("words", ["put {small} s3://answer-403/k", "put {tmp}/none s3://store/k", "put", "bogus"])
def test_with_json_an_error_is_an_object_too(putengine: Putengine, small: Path, tmp_path: Path, words: str) -> None:
    ran = putengine(*words.format(tmp=tmp_path, small=small).split(), "--json")
    found = ran.json
    assert found["exit_code"] == ran.code
    assert found["error"] in ("AccessDenied", "FileNotFoundError", "UsageError")
    assert f"putengine: {found['message']}\n" == ran.err
    if found["error"] == "AccessDenied":
        assert (found["status"], found["code"], found["retryable"]) == (403, "AccessDenied", False)
        assert (found["hops"][0]["status"], found["body_bytes_sent"]) == (403, 0)


def test_a_mismatch_found_at_the_end_still_says_what_was_sent(putengine: Putengine, small: Path) -> None:
    found = putengine("put", small, "s3://store-corrupt.facts/k", "--json").json
    assert (found["error"], found["body_bytes_sent"], found["attempts"]) == ("ChecksumMismatch", 100_000, 1)
    assert [hop["outcome"] for hop in found["hops"]] == ["stored"]
    assert found["sent"] != found["stored"]


def test_without_credentials_it_says_where_was_looked(
    putengine: Putengine, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    ran = putengine("put", small, "s3://store/k")
    assert ran.code == 3
    assert re.fullmatch(
        r"putengine: No credentials found. Looked at: AWS_ACCESS_KEY_ID .+ --no-sign-request\.\n", ran.err
    )
    assert "engine." not in ran.err, "Python's words"


def test_an_unreadable_file_is_an_error_of_its_own(environment: dict[str, str]) -> None:
    """Root reads everything, so the program gives up being root once it has loaded what it needs."""
    program = textwrap.dedent("""\
        import os, sys
        import engine.cli, engine.client, engine.display, uvloop
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        sys.exit(engine.cli.main(sys.argv[1:]))
    """)
    folder = Path(tempfile.mkdtemp())  # pytest's own folders cannot even be entered by others
    try:
        folder.chmod(0o755)
        file = folder / "secret.bin"
        file.write_bytes(b"x")
        file.chmod(0)
        words = [sys.executable, "-c", program, "put", str(file), "s3://store/k"]
        ran = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=30, check=False)
    finally:
        shutil.rmtree(folder)
    assert (ran.returncode, ran.stderr) == (2, f"putengine: {file}: permission denied\n")


@pytest.mark.parametrize("change", ["shrinks", "is replaced"])
def test_a_file_that_changes_meanwhile_is_an_error(
    server: Server, putengine: Putengine, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "changing.bin"
    path.write_bytes(bytes(4 * MIB))

    def meddle() -> None:
        wait_until(lambda: len(server.sandbox.records) > before)
        if change == "shrinks":
            os.truncate(path, MIB)
        else:
            (tmp_path / "other").write_bytes(bytes(4 * MIB))
            (tmp_path / "other").rename(path)

    before = len(server.sandbox.records)
    thread = threading.Thread(target=meddle)
    thread.start()
    ran = putengine("put", path, "s3://store-slow-300ms.changing/k", "--expect", "always")
    thread.join()
    assert ran.code == 2
    assert_one_line(ran)
    assert ("changed while" if change == "shrinks" else "was replaced") in ran.err


def test_a_pipe_that_ends_early_stores_nothing(server: Server, environment: dict[str, str], small: Path) -> None:
    process = start(environment, "put", "-", "s3://store.early/k", "--size", 100_001, stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(small.read_bytes())
    ran = wait(process)
    told = "putengine: --size 100001, but the pipe ended after 100000 bytes; nothing was stored\n"
    assert (ran.code, ran.err) == (2, told)
    with pytest.raises(KeyError):
        server.object("store.early", "k")


@pytest.mark.parametrize(
    "kind", [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.EngineError)]
)
def test_every_error_has_an_exit_code(kind: type[errors.EngineError]) -> None:
    expected = {
        "CredentialsError": 3,
        "ChecksumMismatch": 5,
        "RedirectRefused": 6,
        "TooManyRedirects": 6,
        **dict.fromkeys(["UsageError", "SourceChanged", "SourceNotReplayable", "UploadFailed", "EngineError"], 2),
        **dict.fromkeys(["ResponseError", "AccessDenied", "NotFound", "PreconditionFailed", "SlowDown"], 1),
        **dict.fromkeys(["TransportError", "ConnectFailed", "ConnectionLost", "ProtocolError", "TimedOut"], 4),
        **dict.fromkeys(["ConnectTimedOut", "StallTimedOut", "ResponseTimedOut", "TotalTimedOut"], 4),
    }
    assert cli.exit_code(kind.__new__(kind)) == expected[kind.__name__]


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        ("offset=-1: a number", "--offset -1: a number"),
        ("give size=", "give --size"),
        ("use expect='never'", "use --expect 'never'"),
        ("check region=", "check --region"),
        ("check region=.", "check --region."),
        ("connect_timeout_s=0: seconds", "--connect-timeout 0: seconds"),
        ("if_match and if_none_match exclude", "--if-match and --if-none-match exclude"),
        ("add 'x' to RedirectPolicy(hosts=…).", "add 'x' to --redirect-host."),
        ("sse_kms_key_id needs sse='aws:kms'", "--sse-kms-key-id needs --sse 'aws:kms'"),
        ("http://h/?region=eu&size=3: 404", "http://h/?region=eu&size=3: 404"),
        ("PUT s3://b/size=3/region=eu: 404", "PUT s3://b/size=3/region=eu: 404"),
    ],
)
def test_messages_name_options_as_they_are_written_here(words: str, ours: str) -> None:
    assert arguments.in_our_words(words) == ours


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_the_trace_shows_heads_and_no_secret(
    putengine: Putengine, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = os.urandom(32)
    (tmp_path / "key").write_bytes(key)
    with sandbox.start(session_token=True) as servers:
        credentials = servers.credentials
        assert credentials.token
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", credentials.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credentials.secret_key)
        monkeypatch.setenv("AWS_SESSION_TOKEN", credentials.token)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", servers.redirector_url)
        signed = putengine(
            "put", small, "s3://redirect-307-query.trace/k", "--sse-customer-key-file", tmp_path / "key", "--trace",
            "--header", "Cookie: Qcookie",
        )  # fmt: skip
        plain = putengine(
            "put", small, f"{servers.store_url}/trace/k?X-Amz-Signature=Qpresigned&x=1", "--trace", "--json",
            "--header", "Authorization: Bearer Qbearer",
        )  # fmt: skip
    secrets = [credentials.secret_key, credentials.token[:24], base64.b64encode(key).decode()]
    secrets += ["Qcookie", "Qbearer", "Qpresigned", "Signature=Q"]
    for ran in (signed, plain):
        assert "> authorization: redacted" in ran.err.lower()
        assert not [secret for secret in secrets if secret in ran.out + ran.err]
    assert signed.code == 0, signed.err
    lines = [line for line in signed.err.splitlines() if line[:1] == " "]
    times = [float(line[:8]) for line in lines if line[:8].strip()]
    assert times == sorted(times)
    assert 0 <= times[0] < 1
    shown = [line[9:].lower() for line in lines]
    for expected in ("> put /redirect-307-query.trace/k http/1.1", "> cookie: redacted", "< http/1.1 100 continue"):
        assert expected in shown
    assert "> x-amz-security-token: redacted" in shown
    assert shown.index("< http/1.1 307 temporary redirect") < shown.index("< http/1.1 200 ok")
    assert "X-Amz-Signature=REDACTED" in plain.err


def test_config_explains_every_field_every_option_and_every_variable(
    putengine: Putengine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the engine reads is found in its text, what the command line takes in its parser: a new one cannot be left out."""
    told = putengine("config", "--explain").out
    for field in dataclasses.fields(engine.Config):
        assert re.search(rf"^(proxy for|{field.name})\b", told, re.MULTILINE), field.name
    sources = [path.read_text() for path in (ROOT / "engine").glob("*.py") if path.stem not in ("explain", "arguments")]
    read = set(re.findall(r'environ(?:\.get\(|\[)"(\w+)"', "".join(sources))) | {
        "AWS_PROFILE",
        "http_proxy",
        "HTTPS_PROXY",
    }
    read |= set(re.findall(r'"(AWS_USE_\w+)"', "".join(sources)))
    assert {"AWS_REGION", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE", "AWS_USE_FIPS_ENDPOINT"} <= read
    elsewhere = {
        "TERM",
        "NO_COLOR",
        "TMPDIR",
        "SSL_CERT_DIR",
        "SSLKEYLOGFILE",
        "AWS_EC2_METADATA_DISABLED",
        "ENGINE_TLS",
    }
    parts = {"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CREDENTIAL_EXPIRATION", "AWS_ACCESS_KEY_ID"}
    for name in sorted(read - elsewhere - parts):
        for other in read - parts:
            monkeypatch.delenv(other, raising=False)
        value = "http://127.0.0.1:9" if "URL" in name or "proxy" in name.lower() else "true"
        monkeypatch.setenv(name, value)
        shown = putengine("config", "--explain").out
        assert re.search(rf"\b{name}\b +{re.escape(value)}", shown), f"{name} is read but not explained\n{shown}"


def test_config_explains_every_setting_and_shows_no_secret(
    putengine: Putengine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://me:Qpassword@proxy.test:3128")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/ca.pem")
    words = (
        "config --explain --expect strict --redirect-host 10.0.0.0/8 --max-attempts 7 --region eu-1 --total-timeout 9"
    )
    ran = putengine(*words.split())
    assert (ran.code, ran.err) == (0, "")
    found = {name: (source, value) for name, source, value in (re.split(" {2,}", x) for x in ran.out.splitlines())}
    assert found["endpoint_url"] == ("AWS_ENDPOINT_URL_S3", server.redirector_url)
    assert found["region"] == ("--region", "eu-1")
    assert found["expect"] == ("--expect", "strict")
    assert found["redirects.hosts"] == ("--redirect-host", "10.0.0.0/8")
    assert found["retry.max_attempts"] == ("--max-attempts", "7")
    assert found["total_timeout_s"] == ("--total-timeout", "9")
    assert found["stall_timeout_s"] == ("default", "60")
    assert found["tls"] == ("AWS_CA_BUNDLE", "/ca.pem")
    assert found["credentials"][0] == "environment"
    for field in dataclasses.fields(engine.Config):
        assert any(name == field.name or name.startswith((f"{field.name}.", f"{field.name} ")) for name in found)
    as_json = putengine(*words.split(), "--json")
    settings = {setting["name"]: setting for setting in as_json.json["settings"]}
    assert settings["region"] == {"name": "region", "source": "--region", "value": "eu-1"}
    for secret in ("Qpassword", os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_ACCESS_KEY_ID"]):
        assert secret not in ran.out + as_json.out


def test_config_without_credentials_says_where_was_looked(
    putengine: Putengine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    lines = [line for line in putengine("config", "--explain").out.splitlines() if line.startswith("credentials")]
    assert [re.split(" {2,}", line)[1] for line in lines] == ["environment", "botocore"]
    assert all("none: " in line for line in lines)
    anonymous = putengine("config", "--explain", "--no-sign-request").out
    assert re.search(r"credentials +--no-sign-request +none: requests are not signed", anonymous)


# --- progress, interruption -------------------------------------------------------------------------------------------


def drain(master: int) -> str:
    seen = b""
    with contextlib.suppress(OSError):  # EIO: the last writer has closed
        while piece := os.read(master, 65536):
            seen += piece
    return seen.decode()


@pytest.mark.parametrize("no_color", ["", "1"])
def test_on_a_terminal_a_line_tells_what_is_waited_for_and_then_goes_away(
    environment: dict[str, str], big_file: Path, no_color: str
) -> None:
    master, slave = pty.openpty()
    environment |= {"NO_COLOR": no_color, "TERM": "xterm"}
    words = ["put", big_file, "s3://redirect-307-slow-700ms.tty/k"]
    process = start(environment, *words, stdout=slave, stderr=slave)
    os.close(slave)
    seen = drain(master)
    os.close(master)
    assert process.wait(20) == 0, seen
    drawn = re.findall(r"\r([^\r\n]*)\x1b\[K", seen)
    assert any(re.fullmatch(r"asking 127\.0\.0\.1:\d+ … 0\.\d s", text) for text in drawn), drawn
    assert drawn[-1] == ""
    assert max(map(len, drawn)) < 80
    told = seen[seen.rindex("\x1b[K") + 3 :]
    assert ("\x1b[1m" in told) is (no_color == "")
    assert "stored" in told


def test_off_a_terminal_there_is_no_progress_for_the_first_10_seconds(
    putengine: Putengine, environment: dict[str, str], small: Path
) -> None:
    assert putengine("put", small, "s3://store.plain/k").err == ""
    assert putengine("put", small, "s3://store.plain/k", "--progress", "plain").err == ""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_put_ends_cleanly_and_says_what_became_of_it(
    server: Server, environment: dict[str, str], big_file: Path, signum: int, code: int
) -> None:
    before = len(server.sandbox.records)
    process = start(environment, "put", big_file, "s3://store-stall-1m.interrupted/k", "--json")
    wait_until(lambda: any(record.body_bytes > MIB // 2 for record in server.sandbox.records[before:]))
    time.sleep(0.05)
    process.send_signal(signum)
    ran = wait(process)
    assert ran.code == code
    assert re.fullmatch(r"putengine: interrupted: after .+ of 8\.00 MiB; nothing was stored\n", ran.err)
    assert (ran.json["error"], ran.json["exit_code"]) == ("Interrupted", code)


def test_an_interrupted_question_sent_no_byte(server: Server, environment: dict[str, str], big_file: Path) -> None:
    before = len(server.sandbox.records)
    process = start(environment, "put", big_file, "s3://hang.interrupted/k", "--expect", "strict")
    wait_until(lambda: len(server.sandbox.records) > before)
    process.send_signal(signal.SIGINT)
    ran = wait(process)
    told = "putengine: interrupted: no body byte was sent, nothing was stored\n"
    assert (ran.code, ran.err, ran.out) == (130, told, "")


def test_an_interrupted_get_leaves_no_file(environment: dict[str, str], tmp_path: Path) -> None:
    def half(connection: Any) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(500_000))
        connection.recv(1)

    with raw_server(half) as url:
        process = start(environment, "get", f"{url}/k", tmp_path / "out")
        wait_until(lambda: [path for path in tmp_path.iterdir() if path.stat().st_size == 500_000])
        process.send_signal(signal.SIGINT)
        assert wait(process) == (130, "", "putengine: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_closed_streams_are_no_bug(environment: dict[str, str], small: Path) -> None:
    program = f"{sys.executable} -m engine"
    for command, code in (
        (f"{program} put {small} s3://store.closed/k >&- 2>&- <&-", 0),
        (f"{program} put - s3://store.closed/k <&-", 2),
        (f"{program} config >&-", 0),
    ):
        ran = subprocess.run(command, shell=True, env=environment, capture_output=True, timeout=30, check=False)
        assert ran.returncode == code, ran
        assert b"Traceback" not in ran.stderr


def test_a_full_disk_is_named(environment: dict[str, str], stored: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start(environment, "get", "s3://store.got/k", stdout=full)
        _out, err = process.communicate(timeout=30)
    assert (process.returncode, err.decode()) == (2, f"putengine: standard output: {os.strerror(errno.ENOSPC)}\n")


def test_what_nobody_expected_is_called_a_bug(putengine: Putengine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_args: object) -> int:
        raise ZeroDivisionError("sooner or later")

    monkeypatch.setitem(cli._COMMANDS, "head", broken)
    ran = putengine("head", "s3://b/k")
    assert ran.code == 70
    assert ran.err.startswith("putengine: this is a bug of putengine")
    assert ran.err.endswith("ZeroDivisionError: sooner or later\n")


# --- sandbox, help ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_sandbox_runs_until_it_is_interrupted_and_removes_its_folder(
    environment: dict[str, str], small: Path, signum: int
) -> None:
    process = start(environment, "sandbox", stderr=subprocess.STDOUT)
    assert process.stdout
    said: list[str] = []
    while not said or "Ctrl-C ends it" not in said[-1]:
        said.append(process.stdout.readline().decode())
    text = "".join(said)
    assert sandbox.scenario_table() in text
    exported = dict(re.findall(r"^export (\w+)='(.*)'$", text, re.MULTILINE))
    redirector = re.search(r"redirecting endpoint +(\S+)", text)
    folder = re.search(r"stored in (\S+)", text)
    assert redirector
    assert folder
    put = ["put", small, "s3://redirect-307/k", "--endpoint-url", redirector[1], "-q"]
    assert wait(start({**environment, **exported}, *put)).code == 0
    assert Path(folder[1]).is_dir()
    process.send_signal(signum)
    rest = process.stdout.read().decode()
    assert process.wait(20) == 0
    process.stdout.close()
    assert "redirector PUT /redirect-307/k → 307 TemporaryRedirect, 0 body bytes" in rest or "307" in text
    assert "Traceback" not in rest
    assert not Path(folder[1]).exists()


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in arguments.COMMANDS)])
def test_the_help_fits_a_terminal(putengine: Putengine, monkeypatch: pytest.MonkeyPatch, words: Sequence[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = putengine(*words)
    assert (ran.code, ran.err) == (0, "")
    assert max(map(len, ran.out.splitlines())) <= 82
    for exit_code in (0, 1, 2, 3, 4, 5, 6, 130):
        assert len(words) == 2 or re.search(rf"^ .*\b{exit_code}  ", ran.out, re.MULTILINE)


def test_help_and_mistakes_do_not_wait_for_the_engine(environment: dict[str, str]) -> None:
    program = "import sys, engine.cli as c\ntry: c.main(sys.argv[1:])\nexcept SystemExit: pass\nprint(*sys.modules)"
    for words in (["put", "--help"], ["put", "--bogus"]):
        out = subprocess.check_output(
            [sys.executable, "-c", program, *words], env=environment, stderr=subprocess.DEVNULL
        )
        loaded = set(out.decode().splitlines()[-1].split())
        assert "engine.arguments" in loaded
        assert not loaded & {"asyncio", "uvloop", "ssl", "engine.client"}


def test_python_m_engine_is_the_same_program(environment: dict[str, str]) -> None:
    ran = wait(start(environment, "--version"))
    assert ran == (0, f"putengine {engine.__version__}\n", "")


def test_every_public_name_is_there() -> None:
    assert set(engine.__all__) == {name for names in engine._HOMES.values() for name in names}
    for name in engine.__all__:
        assert getattr(engine, name).__class__ is not None
    assert set(engine.__all__) <= set(dir(engine))
    assert engine.events.Done.__module__ == "engine.events"
    with pytest.raises(AttributeError, match="nothing_like_that"):
        engine.nothing_like_that  # noqa: B018


# --- upload -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def parts_store(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[sandbox.Sandbox]:
    """Takes small parts, by the environment."""
    with sandbox.start(min_part_size=1) as running:
        for name, value in {**running.environment, "AWS_ENDPOINT_URL_S3": running.redirector_url}.items():
            monkeypatch.setenv(name, value)
            environment[name] = value
        yield running
        assert running.uploads() == []


def test_upload_goes_in_parts_and_sums_up(parts_store: sandbox.Sandbox, putengine: Putengine, small: Path) -> None:
    ran = putengine(
        "upload", small, "s3://store/parts", "--part-size", "32k", "--concurrency", "2", "--metadata", "a=b"
    )
    assert (ran.code, ran.err) == (0, "")
    assert "97.7 KiB" in ran.out
    assert "which is also what the server computed" in ran.out
    stored = parts_store.object("store", "parts")
    assert (stored.size, stored.metadata, stored.etag[-3:]) == (100_000, {"a": "b"}, '-4"')
    ran = putengine("upload", small, "s3://redirect-307/parts", "--part-size", "64k", "--json")
    assert (ran.json["redirects"], ran.json["body_bytes_sent"]) == (3, 100_000)


def test_upload_takes_standard_input_of_any_length(
    parts_store: sandbox.Sandbox, environment: dict[str, str], small: Path
) -> None:
    words = ("upload", "-", "s3://store/stdin", "--part-size", "32KiB")
    process = start(environment, *words, stdin=subprocess.PIPE)
    out, err = process.communicate(small.read_bytes() * 3, timeout=30)
    assert (process.returncode, err) == (0, b""), err
    assert parts_store.object("store", "stdin").content() == small.read_bytes() * 3
    assert b"stored" in out


@pytest.mark.parametrize("resume", [False, True])
def test_an_interrupted_upload_says_what_became_of_it(
    parts_store: sandbox.Sandbox, environment: dict[str, str], small: Path, tmp_path: Path, resume: bool
) -> None:
    path = tmp_path / "unfinished"
    words = ["upload", small, "s3://store-slow-200ms/key", "--part-size", "8k", "--concurrency", "1"]
    words += ["--resume", path] if resume else []
    process = start(environment, *words)
    wait_until(lambda: sum("partNumber" in record.target for record in parts_store.records) >= 3)
    process.send_signal(signal.SIGINT)
    ran = wait(process)
    assert ran.code == 130
    if not resume:
        assert re.search(r"interrupted: after .* of 97.7 KiB; the upload was aborted, no part is left behind", ran.err)
        return
    assert f"is kept, the same command with --resume {path} goes on" in ran.err
    assert len(parts_store.uploads()) == 1
    again = wait(start(environment, *words, "--json"))
    assert again.code == 0, again.err
    assert again.json["body_bytes_sent"] < 100_000
    assert not path.exists()


def test_the_exit_code_of_an_upload_that_failed_is_its_causes(
    parts_store: sandbox.Sandbox, putengine: Putengine, small: Path, tmp_path: Path
) -> None:
    words = ("--part-size", "32k", "--max-attempts", "1")
    assert putengine("upload", small, "s3://store-corrupt/key", *words).code == 5
    assert putengine("upload", small, "s3://answer-403/key", *words).code == 1
    assert putengine("upload", small, "s3://store/key", *words, "--checksum", "sha256").code == 0
    ran = putengine("upload", small, "s3://store/key", "--if-none-match", "*", *words)
    assert (ran.code, "412" in ran.err) == (1, True)
    other = tmp_path / "not-ours"
    other.write_text("{}")
    ran = putengine("upload", small, "s3://store/key", *words, "--resume", other)
    assert (ran.code, f"--resume '{other}'" in ran.err) == (2, True)
    cause = errors.ConnectionLost("x")
    assert cli.exit_code(errors.UploadFailed("x", upload_id="u", aborted=False, cause=cause)) == 4
    assert cli.exit_code(errors.UploadFailed("x", upload_id="u", aborted=False)) == 2
