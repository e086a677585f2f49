"""The doctor against the sandbox's many behaviours: what it finds, what it advises, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

import engine
from engine import cli, doctor, limits, sandbox
from engine.display import Paint
from tests.conftest import Server
from tests.peers import OK, raw_server, read_request

Make = Callable[..., engine.Client]
ROOT = Path(__file__).resolve().parent.parent


def examine(client: engine.Client, url: str, **options: Any) -> doctor.Report:
    async def main() -> doctor.Report:
        async with client:
            return await doctor.examine(client, url, **{"wait_s": 3.0, **options})

    return uvloop.run(main())


def finding(report: doctor.Report, check: str) -> doctor.Finding:
    [found] = [each for each in report.findings if each.check == check]
    return found


def verdicts(report: doctor.Report) -> dict[str, str]:
    return {each.check: each.verdict for each in report.findings}


def advised(report: doctor.Report) -> dict[str, str]:
    return {advice.option: advice.value for advice in report.advice}


def test_of_a_good_store_it_finds_everything_good_and_advises_nothing(server: Server, client_of: Make) -> None:
    report = examine(client_of(), "s3://store.doctor/a/b/")
    assert report.error is None
    assert report.advice == ()
    found = verdicts(report)
    assert found.pop("chunked") == "note"  # S3 refuses it too
    assert found.pop("region") == "open"
    assert set(found.values()) == {"good"}
    assert finding(report, "continue").facts["seconds"] < 3
    assert finding(report, "checksums").facts["checked"] == ["crc64nvme", "crc32c", "crc32", "sha256"]
    assert finding(report, "conditions").facts == {"status": 412, "body_bytes_sent": 0}
    assert doctor.command(report, []) == "putengine put FILE s3://store.doctor/a/b/KEY"


def test_it_writes_only_the_object_it_names_and_deletes_it(server: Server, client_of: Make) -> None:
    report = examine(client_of(), "s3://store.alone/a/b/precious.bin")
    assert report.probe.startswith("s3://store.alone/a/b/putengine-doctor-")
    assert report.deleted
    key = report.probe.removeprefix("s3://store.alone/")
    touched = {record.target.partition("?")[0] for record in server.records() if record.method not in ("HEAD", "GET")}
    assert touched == {f"/store.alone/{key}"}
    with pytest.raises(KeyError):
        server.object("store.alone", key)


def test_read_only_sends_nothing_but_head(server: Server, client_of: Make) -> None:
    report = examine(client_of(), "s3://store.careful/a/", read_only=True)
    assert (report.probe, report.error) == ("", None)
    assert {record.method for record in server.records()} == {"HEAD"}
    assert finding(report, "continue").verdict == "open"


def test_a_presigned_url_is_never_written_to(server: Server) -> None:
    url = f"{server.store_url}/bucket/precious.bin?X-Amz-Signature=abc&X-Amz-Credential=def"
    report = examine(engine.Client(), url)
    assert {record.method for record in server.records()} == {"HEAD"}
    assert "presigned" in finding(report, "continue").text
    assert "abc" not in repr(report)


def test_a_100_that_takes_longer_than_the_default_wait_is_measured_and_waited_for(
    client_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CONTINUE_TIMEOUT_S", 0.2)
    report = examine(client_of(), "s3://store-slow-300ms/")
    found = finding(report, "continue")
    assert found.verdict == "note"
    assert 0.25 < found.facts["seconds"] < 3
    assert int(advised(report)["--continue-timeout"]) >= 2
    assert finding(report, "conditions").facts["body_bytes_sent"] == 0


def test_without_any_100_it_says_not_to_ask(client_of: Make) -> None:
    report = examine(client_of(), "s3://store-silent/", wait_s=0.3)
    assert finding(report, "continue").verdict == "bad"
    assert advised(report) == {"--expect": "never"}
    assert report.deleted


def test_a_100_that_comes_with_the_body_only_is_told_from_none(client_of: Make) -> None:
    report = examine(client_of(), "s3://store-late/", wait_s=0.3)
    assert finding(report, "continue").facts["late"] is True
    assert advised(report) == {"--expect": "never"}


def test_a_417_is_found_and_saved(client_of: Make) -> None:
    report = examine(client_of(), "s3://answer-417/")
    assert finding(report, "continue").facts["status"] == 417
    assert advised(report) == {"--expect": "never"}


def test_http_1_0_is_told(client_of: Make) -> None:
    report = examine(client_of(), "s3://store-http10/")
    assert verdicts(report)["http"] == "note"
    assert "HTTP/1.0" in finding(report, "continue").text
    assert finding(report, "keep-alive").facts["reused"] is False


def test_a_redirect_is_shown_with_its_place_status_and_cost(server: Server, client_of: Make) -> None:
    report = examine(client_of(), "s3://redirect-307.doctor/x")
    found = finding(report, "redirects")
    assert (found.verdict, found.facts["statuses"], found.facts["wasted_bytes"]) == ("good", [307], 0)
    assert server.store_url in found.text
    assert report.advice == ()
    assert report.deleted


def test_of_a_permanent_redirect_it_advises_the_place_it_leads_to(server: Server, client_of: Make) -> None:
    report = examine(client_of(), "s3://redirect-301.doctor/x")
    assert advised(report) == {"--endpoint-url": server.store_url}
    command = doctor.command(report, ["--endpoint-url", server.redirector_url, "--region", server.region])
    assert server.redirector_url not in command
    assert f"--endpoint-url {server.store_url}" in command


def test_a_redirect_behind_the_body_is_bad(client_of: Make) -> None:
    report = examine(client_of(), "s3://redirect-307-read-silent/x", wait_s=0.3)
    found = finding(report, "redirects")
    assert (found.verdict, found.facts["wasted_bytes"]) == ("bad", doctor.PROBE_BYTES)
    assert "--endpoint-url" in advised(report)


def test_a_redirect_that_is_not_followed_ends_it_with_the_option_that_would(client_of: Make) -> None:
    report = examine(client_of(), "s3://redirect-307-elsewhere/x")
    assert isinstance(report.error, engine.RedirectRefused)
    assert finding(report, "redirects").facts["reason"] == "host-not-allowed"
    assert advised(report) == {"--redirect-host": "redirect.example.test"}
    assert report.probe == ""


@pytest.mark.parametrize("status", [301, 400])
def test_the_region_is_as_the_server_says(client_of: Make, status: int) -> None:
    report = examine(client_of(), f"s3://region-{status}.doctor/x")
    assert report.error is None
    assert finding(report, "region").facts["region"] == "sandbox-2"
    assert advised(report) == {"--region": "sandbox-2"}
    assert report.deleted


def test_a_wrong_clock_is_measured(server: Server) -> None:
    with sandbox.start(clock_offset_s=1200) as skewed:
        client = engine.Client(endpoint_url=skewed.store_url, region=skewed.region, credentials=skewed.credentials)
        report = examine(client, "s3://bucket/")
    assert report.error is None
    found = finding(report, "clock")
    assert found.verdict == "bad"
    assert -1203 < found.facts["ahead_s"] < -1197
    assert "20 min" in found.text
    assert "behind" in found.text


def test_when_no_checksum_comes_back_one_is_sent_along(client_of: Make) -> None:
    report = examine(client_of(), "s3://store-nochecksum/")
    found = finding(report, "checksums")
    assert (found.verdict, found.facts["auto_verified"]) == ("note", False)
    assert advised(report) == {"--checksum": "crc64nvme"}


def test_a_plain_server_that_ignores_conditions_and_closes_is_described(client_of: Make) -> None:
    """Answers every PUT with 201 and nothing more, on connections that it closes."""

    def answer(connection: socket.socket) -> None:
        head, _body = read_request(connection)
        missing = head.startswith(b"HEAD") and b"-absent" in head
        if b"chunked" in head.lower():
            while not connection.recv(65536).endswith(b"0\r\n\r\n"):
                pass
        connection.sendall(b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % (
            b"404 Not Found" if missing else b"201 Created",
        ))  # fmt: skip

    with raw_server(*[answer] * 6) as url:
        report = examine(engine.Client(), f"{url}/dav/name.bin")
    assert report.error is None
    assert report.deleted
    assert report.destination == f"{url}/dav/KEY"
    assert finding(report, "conditions").facts["honoured"] is False
    assert finding(report, "keep-alive").facts["reused"] is False
    assert finding(report, "chunked").facts["accepted"] is True
    assert "multipart" not in verdicts(report)


def test_a_probe_that_cannot_be_deleted_is_named(client_of: Make) -> None:
    def answer(connection: socket.socket) -> None:
        while head := read_request(connection)[0]:
            if head.startswith(b"DELETE"):
                connection.sendall(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
                return
            connection.sendall(OK.replace(b"200 OK", b"411 Length Required") if b"chunked" in head.lower() else OK)

    with raw_server(answer, answer, answer) as url:
        report = examine(engine.Client(), f"{url}/dav/")
    assert not report.deleted
    found = finding(report, "probe")
    assert found.verdict == "bad"
    assert report.probe in found.text


def test_of_tls_it_tells_version_cipher_and_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    with sandbox.start(tls=str(tmp_path / "server.pem")) as secured:
        client = engine.Client(
            endpoint_url=secured.store_url, region=secured.region, credentials=secured.credentials,
            config=engine.Config(tls=str(tmp_path / "ca.pem")),
        )  # fmt: skip
        report = examine(client, "s3://bucket/")
    found = finding(report, "tls")
    assert (found.verdict, found.facts["version"]) == ("good", "TLSv1.3")
    assert found.facts["certificate_days"] > 1000
    assert "trustme" in found.text


def test_what_cannot_be_reached_is_the_error_of_the_report() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    report = examine(engine.Client(), f"http://127.0.0.1:{port}/")
    assert isinstance(report.error, engine.ConnectFailed)
    assert (report.findings, report.probe) == ((), "")


def test_a_refused_put_is_an_error_and_leaves_nothing_to_delete(server: Server, client_of: Make) -> None:
    report = examine(client_of(), "s3://answer-403/x")
    assert isinstance(report.error, engine.AccessDenied)
    assert report.probe == ""
    assert "DELETE" not in {record.method for record in server.records()}


def test_cancelled_it_deletes_what_it_wrote(server: Server, client_of: Make) -> None:
    async def main() -> None:
        async with client_of() as client:
            told: list[str] = []
            task = asyncio.ensure_future(doctor.examine(client, "s3://store.cancelled/", tell=told.append))
            while not any("condition" in text for text in told):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    methods = [record.method for record in server.records()]
    assert methods.count("PUT") >= 1
    assert methods[-1] == "DELETE"


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(server: Server) -> dict[str, str]:
    return {
        **os.environ,
        **server.sandbox.environment,
        "AWS_ENDPOINT_URL_S3": server.redirector_url,
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def putengine(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Callable[..., Any]:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main(list(words))
        sys.stdout.flush()
        return (code, *capfd.readouterr())

    return run


def test_the_command_prints_aligned_checks_and_a_command_line_to_copy(putengine: Callable[..., Any]) -> None:
    code, out, err = putengine("doctor", "s3://store-silent/a/", "--wait", "0.3", "--region", "sandbox-1")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("  ok    connection  http://127.0.0.1:")
    assert "use: putengine put FILE s3://store-silent/a/KEY --region sandbox-1 --expect never" in lines
    assert len({line.index("  ", 8) for line in lines if line[2:4] in ("ok", "no", "ba")}) >= 1
    assert any("written and deleted again: s3://store-silent/a/putengine-doctor-" in line for line in lines)


@pytest.mark.parametrize(
    ("bucket", "code", "name"),
    [
        ("store", 0, None),
        ("answer-403", 1, "AccessDenied"),
        ("redirect-307-elsewhere", 6, "RedirectRefused"),
        ("garbage", 4, "ProtocolError"),
    ],
)
def test_json_and_exit_codes(putengine: Callable[..., Any], bucket: str, code: int, name: str | None) -> None:
    exited, out, _err = putengine("doctor", f"s3://{bucket}/", "--json")
    found = json.loads(out)
    assert exited == code
    assert (found["error"] or {}).get("error") == name
    assert found["command"].startswith(f"putengine put FILE s3://{bucket}/KEY")
    assert all(set(each) == {"check", "verdict", "text", "facts"} for each in found["findings"])


def test_no_secret_is_printed(putengine: Callable[..., Any], server: Server) -> None:
    for words in ((), ("--json",), ("--trace",)):
        _code, out, err = putengine("doctor", "s3://redirect-307/", "--header", "X-Api-Key: swordfish", *words)
        assert server.credentials.secret_key not in out + err
        assert "swordfish" not in out + err


def test_ctrl_c_deletes_the_probe(environment: dict[str, str], server: Server) -> None:
    words = [sys.executable, "-m", "engine", "doctor", "s3://store-slow-700ms/", "--trace"]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        for line in process.stderr:  # the first put is through, the second is being asked about
            if b"> If-None-Match" in line:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    deadline = time.monotonic() + 5
    while server.records()[-1].method != "DELETE":
        assert time.monotonic() < deadline
    key = server.records()[-1].target.rpartition("/")[2]
    with pytest.raises(KeyError):
        server.object("store-slow-700ms", key)


def test_lines_are_wrapped_under_their_text() -> None:
    report = doctor.Report(
        "s3://b/", "s3://b/KEY", "", False, (doctor.Finding("check", "good", "word " * 30),), (), None
    )
    told = doctor.lines(report, "use this", Paint(False), columns=60)
    assert all(len(line) <= 60 for line in told)
    assert all(line.startswith(" " * 15) for line in told[1:3])


def test_unsigned_requests_are_examined_too(server: Server) -> None:
    with sandbox.start(anonymous=True) as open_to_all:
        client = engine.Client(
            endpoint_url=open_to_all.store_url, region=open_to_all.region, credentials=engine.ANONYMOUS
        )
        report = examine(client, "s3://bucket/")
    assert report.error is None
    assert report.deleted
    assert finding(report, "checksums").verdict == "good"
