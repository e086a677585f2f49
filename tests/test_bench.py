"""bench/: the sink tells the truth, every workload runs, verdicts are those of the counts. Tiny: no figure is looked at."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as program
from bench import gate, harness, measure, results, workloads
from bench.peers import clients

ROOT = Path(__file__).resolve().parent.parent
BODY = bytes(range(256)) * 41
ROUND = results.Round(1.0, 0.5, 0.5, 1 << 20, 1 << 30, 1, "stored", "", 0, 1 << 30, None, None, 1, 0.1, 0.0)

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="sinks and limits are C programs")


# --- results ----------------------------------------------------------------------------------------------------------


def some_results() -> results.Results:
    meta = results.Meta(
        when="2026-11-22T12:00:00Z", commit="", dirty=False, python="3.11", kernel="6", cpu="x", cores=2,
        memory_bytes=1, congestion_control="reno", network_namespace=True, openssl="3", openssl_of_c="3", libc="glibc",
        load_before=0.1, versions={}, missing={"minio": "pip install minio"}, command="", budget_s=1, spent_s=1, notes=[],
    )  # fmt: skip
    shown = workloads.plans("tiny")[0].shown
    run = results.Run("w", "plain", "engine", "defaults", "", ["crc64nvme"], [replace(ROUND)])
    return results.Results(results.SCHEMA, meta, {"w": shown}, [results.Limit("w", "plain", "c-send", [ROUND])], [run])


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results.save(some_results(), tmp_path / "r.json")
    assert results.load(tmp_path / "r.json") == some_results()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda value: value.update(schema=0), "schema 1"),
        (lambda value: value["runs"][0].update(workload="x"), "workload 'x' is not described"),
        (lambda value: value["runs"][0].update(colour="red"), r"runs\[0\]: missing \[\], unknown \['colour'\]"),
        (lambda value: value["runs"][0]["rounds"][0].pop("bytes"), r"runs\[0\].rounds\[0\]: missing \['bytes'\]"),
        (lambda value: value["runs"][0]["rounds"][0].update(outcome="fine"), "rounds.0..outcome: 'fine' is none of"),
        (lambda value: value["runs"][0]["rounds"][0].update(seconds=math.nan), "seconds: nan is not finite"),
        (lambda value: value["meta"].update(cores=True), "meta.cores: True is no int"),
        (lambda value: value["limits"][0].update(rounds={}), r"limits\[0\].rounds: no list"),
    ],
)
def test_what_is_wrong_in_results_is_named(spoil: Any, said: str) -> None:
    value = asdict(some_results())
    spoil(value)
    with pytest.raises(ValueError, match=said):
        results.validate(value)


# --- the sink ---------------------------------------------------------------------------------------------------------


class Caller:
    """A socket that speaks to a sink, plain or encrypted."""

    def __init__(self, sink: harness.Sink, number: int, bundle: str = "") -> None:
        self.socket: socket.socket = socket.create_connection(("127.0.0.1", sink.ports[number]), timeout=20)
        if bundle:
            context = ssl.create_default_context(cafile=bundle)
            self.socket = context.wrap_socket(self.socket, server_hostname="127.0.0.1")

    def ask(self, head: str, body: bytes = b"", *, pieces: int = 1) -> str:
        self.socket.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        step = max(1, len(body) // pieces)
        for start in range(0, len(body), step):
            self.socket.sendall(body[start : start + step])
        return self.heard(head.startswith("HEAD"))

    def heard(self, bodyless: bool = False) -> str:
        """One answer, with its body."""
        text = b""
        while b"\r\n\r\n" not in text:
            piece = self.socket.recv(1 << 16)
            if not piece:
                return text.decode()
            text += piece
        head, _, body = text.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        while length and not bodyless and b" 100 " not in head and len(body) < int(length[1]):
            body += self.socket.recv(1 << 16)
        return (head + b"\n\n" + body).decode()

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> harness.Certificate:
    return harness.Certificate(tmp_path_factory.mktemp("certificate"))


SCENARIOS = (
    "store",
    "redirect:0",
    "redirect-mid:0",
    "region:eu-central-1",
    "denied",
    "exists",
    "busy",
    "silent",
    "raw",
)


@pytest.fixture(params=["plain", "tls", "tls-digest", "digest"])
def sink(request: pytest.FixtureRequest, certificate: harness.Certificate) -> Iterator[tuple[harness.Sink, str]]:
    tls = request.param.startswith("tls")
    pem, bundle = (certificate.pem, certificate.bundle) if tls else ("", "")
    try:
        found = harness.Sink(*SCENARIOS, pem=pem, digest=request.param.endswith("digest"))
    except harness.Missing as error:
        pytest.skip(str(error))
    yield found, bundle
    found.close()


Sinks = tuple[harness.Sink, str]


def counts(sink: harness.Sink, number: int) -> dict[str, int]:
    """When every connection is closed, so that all has been read."""
    until = time.monotonic() + 10
    while sink.report()["ports"][number]["open"] and time.monotonic() < until:
        time.sleep(0.002)
    found: dict[str, int] = sink.report()["ports"][number]
    return found


@pytest.mark.parametrize("pieces", [1, 100])
def test_a_kept_connection_stores_one_object_after_another(sink: Sinks, pieces: int) -> None:
    there, bundle = sink
    with Caller(there, 0, bundle) as caller:
        for number in range(5):
            said = caller.ask(
                f"PUT /bucket/k{number} HTTP/1.1\nHost: h\nContent-Length: {len(BODY)}", BODY, pieces=pieces
            )
            assert said.startswith("HTTP/1.1 200 ")
        assert f"Content-Length: {len(BODY)}" in caller.ask("HEAD /bucket/k3 HTTP/1.1\nHost: h")
        assert caller.ask("HEAD /bucket/other HTTP/1.1\nHost: h").startswith("HTTP/1.1 404 ")
        assert caller.ask("GET /bucket/?location HTTP/1.1\nHost: h").endswith("</LocationConstraint>")
    found = counts(there, 0)
    assert (found["stored"], found["stored_bytes"], found["refused"]) == (5, 5 * len(BODY), 0)
    assert found["wire"] > found["stored_bytes"]


def test_large_bodies_are_counted_to_the_byte(sink: Sinks) -> None:
    there, bundle = sink
    body = BODY * 200 + b"x"
    with Caller(there, 0, bundle) as caller:
        for _number in range(2):
            said = caller.ask(f"PUT /bucket/k HTTP/1.1\nHost: h\nContent-Length: {len(body)}", body, pieces=7)
            assert said.startswith("HTTP/1.1 200 ")
    assert counts(there, 0)["stored_bytes"] == 2 * len(body)
    for one in there.report()["objects"]:
        assert (one["path"], one["size"], one["crc32"]) == ("/bucket/k", len(body), zlib.crc32(body))


def chunked(data: bytes, size: int, end: bytes = b"") -> bytes:
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + end + b"\r\n"


@pytest.mark.parametrize("size", [1 << 20, 1000, 7])
def test_framing_inside_framing_is_taken_off(sink: Sinks, size: int) -> None:
    there, bundle = sink
    aws = chunked(BODY, size, b"x-amz-checksum-crc32:AAAAAA==\r\n")
    told = "PUT /bucket/k HTTP/1.1\nHost: h\nContent-Encoding: aws-chunked\nx-amz-trailer: x-amz-checksum-crc32\n"
    with Caller(there, 0, bundle) as caller:
        assert " 200 " in caller.ask(told + f"Content-Length: {len(aws)}", aws, pieces=9)
        assert " 200 " in caller.ask(told + "Transfer-Encoding: chunked", chunked(aws, size * 3 + 1), pieces=9)
        assert " 200 " in caller.ask(f"PUT /bucket/k HTTP/1.1\nHost: h\nContent-Length: {len(BODY)}", BODY)
    report = there.settled()
    assert report["ports"][0]["stored_bytes"] == 3 * len(BODY)
    assert report["hashes"] == ["crc32"]
    assert {one["crc32"] for one in report["objects"]} <= {zlib.crc32(BODY)}


def test_who_asks_is_answered_before_the_body(sink: Sinks) -> None:
    there, bundle = sink
    asking = f"PUT /bucket/k HTTP/1.1\nHost: h\nExpect: 100-continue\nContent-Length: {len(BODY)}"
    for number, status in enumerate(("100", "307", "100", "301", "403", "412", "503")):
        with Caller(there, number, bundle) as caller:
            said = caller.ask(asking)
            assert said.startswith(f"HTTP/1.1 {status} "), SCENARIOS[number]
            if status == "307":
                assert f"Location: {there.url(0)}/bucket/k" in said
            assert ("Connection: close" in said) == (status != "100")
        assert counts(there, number)["refused_bytes"] == 0
    with Caller(there, 6, bundle) as caller:
        assert caller.ask(asking).startswith("HTTP/1.1 100 ")  # busy only once


def test_what_comes_after_a_refusal_is_counted(sink: Sinks) -> None:
    there, bundle = sink
    with Caller(there, 1, bundle) as caller:
        said = caller.ask(f"PUT /bucket/k HTTP/1.1\nHost: h\nContent-Length: {len(BODY)}", BODY)
        assert said.startswith("HTTP/1.1 307 ")
    assert counts(there, 1)["refused_bytes"] == len(BODY)


def test_a_redirect_in_mid_body_comes_after_eight_mib(sink: Sinks) -> None:
    there, bundle = sink
    body = bytes(9 << 20)
    with Caller(there, 2, bundle) as caller:
        said = caller.ask(f"PUT /bucket/k HTTP/1.1\nHost: h\nContent-Length: {len(body)}", body)
        assert said.startswith("HTTP/1.1 307 ")
        until = time.monotonic() + 10  # closing now would reset, and drop what the kernel has not sent yet
        while there.report()["ports"][2]["refused_bytes"] < len(body) and time.monotonic() < until:
            time.sleep(0.002)
    assert counts(there, 2)["refused_bytes"] == len(body)


def test_the_region_that_was_signed_for_decides(sink: Sinks) -> None:
    there, bundle = sink
    signed = "Authorization: AWS4-HMAC-SHA256 Credential=K/20261122/eu-central-1/s3/aws4_request, Signature=x"
    with Caller(there, 3, bundle) as caller:
        said = caller.ask("HEAD /bucket HTTP/1.1\nHost: h")
        assert said.startswith("HTTP/1.1 301 ")
        assert "x-amz-bucket-region: eu-central-1" in said
        assert caller.ask(f"PUT /bucket/k HTTP/1.1\nHost: h\n{signed}\nContent-Length: 3", b"abc").startswith(
            "HTTP/1.1 200"
        )


def test_a_reset_forgets_and_an_unfinished_body_is_not_stored(sink: Sinks) -> None:
    there, bundle = sink
    with Caller(there, 0, bundle) as caller:
        caller.socket.sendall(b"PUT /bucket/k HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n" + bytes(40))
        time.sleep(0.05)
    found = counts(there, 0)
    assert (found["stored"], found["stored_bytes"]) == (0, 0)
    there.reset()
    assert counts(there, 0)["wire"] == 0


def test_uploads_in_parts_are_counted_when_they_are_completed(sink: Sinks) -> None:
    there, bundle = sink
    with Caller(there, 0, bundle) as caller:
        begun = caller.ask("POST /bucket/k?uploads HTTP/1.1\nHost: h\nContent-Length: 0")
        upload = re.search("<UploadId>(.+)</UploadId>", begun)
        assert upload
        for number in (1, 2):
            words = (
                f"PUT /bucket/k?partNumber={number}&uploadId={upload[1]} HTTP/1.1\nHost: h\nContent-Length: {len(BODY)}"
            )
            assert "ETag" in caller.ask(words, BODY)
        assert there.report()["ports"][0]["completed"] == 0
        done = caller.ask(f"POST /bucket/k?uploadId={upload[1]} HTTP/1.1\nHost: h\nContent-Length: 5", b"<xml>")
        assert "CompleteMultipartUploadResult" in done
    found = counts(there, 0)
    assert (found["completed"], found["stored"], found["stored_bytes"]) == (1, 0, 2 * len(BODY))


# --- verdicts ---------------------------------------------------------------------------------------------------------

FAULT = next(plan for plan in workloads.plans("tiny") if plan.name == "fault-307-before")
SIZE = FAULT.shown.object_bytes
STORED = {"stored_bytes": SIZE, "stored": 1, "completed": 0}
OBJECT = {"path": "/bucket/key-0", "size": SIZE, "crc32": 7}


@pytest.mark.parametrize(
    ("port", "there", "error", "expected"),
    [
        (STORED, OBJECT, "", "stored"),
        (STORED, OBJECT, "RuntimeError: no", "error"),
        (STORED | {"stored_bytes": SIZE - 1}, OBJECT, "", "silently-wrong"),
        (STORED | {"stored": 0}, OBJECT, "", "silently-wrong"),
        (STORED, OBJECT | {"crc32": 8}, "", "silently-wrong"),
        (STORED, OBJECT | {"path": "/bucket/other-0"}, "", "silently-wrong"),
    ],
)
def test_a_round_is_judged_by_what_is_there(port: Any, there: Any, error: str, expected: str) -> None:
    told = {"error": error, "requests": 1}
    report = {"ports": [port], "objects": [there]}
    assert measure.outcome(report, told, 1, FAULT, {"prefix": "key"}, 7)[0] == expected
    assert measure.outcome(report, None, 0, FAULT, {"prefix": "key"}, 7)[0] == "hung"


def rounds_of(factors: list[float]) -> list[results.Round]:
    return [replace(ROUND, seconds=factor, cpu_user_s=factor / 2, cpu_system_s=factor / 2) for factor in factors]


CALM = [1.0, 1.01, 0.99, 1.0, 1.005, 0.995, 1.0]


@pytest.mark.parametrize(
    ("change", "slower"), [(1.0, False), (1.01, False), (0.8, False), (1.1, True), (1.5, True)], ids=str
)
def test_the_gate_fails_on_what_is_slower_beyond_the_noise(change: float, slower: bool) -> None:
    rounds = {
        gate.BASE: rounds_of(CALM),
        gate.AGAIN: rounds_of(CALM[::-1]),
        gate.CHANGE: rounds_of([change * one for one in CALM]),
    }
    for verdict in gate.judge("w", rounds):
        assert verdict.ratio == pytest.approx(change, rel=0.02)
        assert verdict.slower == slower
        assert not verdict.unsure


def test_the_gate_says_when_it_cannot_tell() -> None:
    wild = [1.0, 2.0, 0.5, 3.0, 1.0, 0.3, 1.7]
    rounds = {gate.BASE: rounds_of(wild), gate.AGAIN: rounds_of(wild[::-1]), gate.CHANGE: rounds_of(wild)}
    assert all(verdict.unsure and not verdict.slower for verdict in gate.judge("w", rounds))


def test_slow_clients_get_fewer_rounds_and_it_is_said() -> None:
    def take(name: str, seconds: float) -> measure.Contender:
        def one() -> results.Round:
            time.sleep(seconds)
            return replace(ROUND)

        return measure.Contender(name, "defaults", one)

    fast, slow = take("fast", 0), take("slow", 0.1)
    notes: list[str] = []
    measure.take_turns([fast, slow], measure.Options(rounds=7, timeout_s=1), 0.4, notes.append)
    assert len(fast.rounds) == 7
    assert 1 <= len(slow.rounds) <= 4
    assert "1 of 2 contenders have" in notes[0]


@pytest.mark.parametrize(
    ("left_s", "expected"),
    [(1000.0, [7, 7, 7, 7]), (0.0, [7, 1, 1, 1]), (-5.0, [7, 1, 1, 1]), (52.0, [7, 7, 6, 3]), (70.0, [7, 7, 7, 4])],
)
def test_time_is_shared_alike_but_for_engine(left_s: float, expected: list[int]) -> None:
    each = [measure.Contender("x", "defaults", lambda: ROUND, spent_s=s) for s in (1.0, 1.0, 4.0, 10.0)]
    each[0].is_engine = True
    found = measure.rounds_that_fit(each, 7, left_s)
    assert found == expected
    more_s = sum((rounds - 1) * one.spent_s for rounds, one in zip(found[1:], each[1:], strict=True))
    assert more_s <= max(0.0, left_s - 6)


# --- everything -------------------------------------------------------------------------------------------------------


def run_bench(tmp_path: Path, *words: str) -> results.Results:
    command = [sys.executable, "-m", "engine", "bench", "--tiny", "--json", str(tmp_path / "r.json"), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return results.load(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("transport", "only"), [("plain", ""), ("tls", "put-2MiB,put-4KiB,fault-307,fault-301")], ids=["plain", "tls"]
)
def test_every_workload_runs_and_engine_comes_to_the_best_end(tmp_path: Path, transport: str, only: str) -> None:
    found = run_bench(tmp_path, "--clients", "engine", "--tuning", "defaults", "--transport", transport, "--only", only)
    assert only or set(found.workloads) == {plan.name for plan in workloads.plans("tiny")}
    import engine

    for run in found.runs:
        [one] = run.rounds
        if run.workload.startswith("upload") and not hasattr(engine.Client, "upload"):
            continue
        shown = found.workloads[run.workload]
        assert one.outcome == shown.best, (run.workload, run.transport, one.detail)
        assert one.wrong_host_body_bytes == 0 or run.workload == "fault-307-mid"
        assert one.bytes >= shown.object_bytes * (one.outcome == "stored")
        assert run.hashes == ["crc64nvme"]
    if transport == "tls" and any("no TLS" in note for note in found.meta.notes):
        pytest.skip(str(found.meta.notes))
    assert {run.transport for run in found.runs} == {transport}
    assert {one.limit for one in found.limits} == (
        {"c-sendfile", "c-send", "c-splice", "c-put"} if transport == "plain" else {"c-aes-gcm", "c-put"}
    )


def test_every_client_that_is_installed_stores_one_object(tmp_path: Path) -> None:
    found = run_bench(tmp_path, "--only", "put-2MiB,upload-2MiB", "--transport", "plain", "--tuning", "defaults")
    there = {name for name in clients.CLIENTS if not clients.missing(name)}
    assert set(found.meta.versions) == there
    assert set(found.meta.missing) == set(clients.CLIENTS) - there
    assert {run.client for run in found.runs} == there
    wrong = [(run.client, run.rounds[0].detail) for run in found.runs if run.rounds[0].outcome != "stored"]
    assert not [one for one in wrong if one[0] != "engine"], wrong  # engine: until it has an upload


def test_what_is_missing_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(clients, "program", lambda name: None)
    assert clients.missing("rclone") == "apt install rclone"
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(harness.Missing, match="there is no C compiler"):
        harness.compiled("sink")
    monkeypatch.setenv("CC", "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(harness.Missing, match="apt install libssl-dev"):
        harness.compiled("sink", tls=True)


def test_the_filters_choose_clients_and_workloads() -> None:
    args = program.parser("bench").parse_args(["--clients", "boto3,curl", "--only", "fault-403,upload"])
    assert [name for name in clients.CLIENTS if name.startswith("boto3")] + ["curl"] == program.chosen_clients(args)
    chosen = program.chosen_plans(args, "full")
    assert [plan.name for plan in chosen] == ["upload-4GiB-1x", "fault-403"]
    assert program.contenders(chosen[1], ["engine", "boto3-upload_file"], None) == [("engine", "defaults")]


@pytest.mark.parametrize("script", ["micro_signing.py", "micro_put.py", "micro_checksums.py", "micro_smallput.py"])
def test_micro_benchmarks_take_the_same_arguments(script: str, tmp_path: Path) -> None:
    command = [sys.executable, f"bench/{script}", "--quick", "--json", str(tmp_path / "r.json")]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # pytest-xdist's
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "r.json").read_text())


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the gate compares commits")
def test_the_gate_measures_a_commit_beside_this_tree() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.gate", "--base", "HEAD", "--quick"],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert re.search(r"^\d+ of \d+ figures are worse than HEAD's", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert "bench-gate-" not in subprocess.check_output(["git", "worktree", "list"], cwd=ROOT, text=True)
