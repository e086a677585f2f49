"""The promises, each a test named after its sentence, against the sandbox (tests/live has the same against real servers).

The sentences are those of AWS's page "Request Redirection and the REST API" and of README.md. What a server received is read
off the server's own records, never off the client's result alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import engine
from engine import events, limits
from tests.conftest import Server
from tests.peers import LINGER_ZERO, raw_server, read_head

MIB = limits.MIB
Make = Callable[..., engine.Client]
Run = Callable[[Any], Any]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- AWS case 1: every header on the redirected request ----------------------------------------------------------------


def test_case_1_the_redirected_request_carries_every_header_correctly(
    server: Server, client_of: Make, run: Run, big_file: Path
) -> None:
    async def main() -> engine.PutResult:
        async with client_of() as client:
            return await client.put(
                big_file,
                "s3://redirect-307.case1/dir/a key+ü.bin",
                content_type="application/x-test",
                metadata={"colour": "green", "Shape": "round"},
                checksum="sha256",
                storage_class="STANDARD",
                headers={"cache-control": "max-age=60"},
            )

    result = run(main())
    refused, stored = server.records()
    assert (refused.status, refused.body_bytes) == (307, 0)
    assert (stored.endpoint, stored.status, stored.signature) == ("store", 200, "ok")
    assert stored.get("host") == server.store_url.partition("//")[2]
    assert refused.get("host") == server.redirector_url.partition("//")[2]
    assert stored.get("authorization") != refused.get("authorization")
    assert f"/{server.region}/s3/aws4_request" in (stored.get("authorization") or "")
    assert stored.get("x-amz-date")
    assert stored.get("content-length") == str(big_file.stat().st_size)
    assert stored.get("expect") == "100-continue"
    for name in ("content-type", "x-amz-meta-colour", "x-amz-meta-shape", "x-amz-checksum-sha256", "cache-control"):
        assert stored.get(name) == refused.get(name) is not None, name
    assert stored.get("x-amz-meta-colour") == "green"
    assert all(len(stored.get_all(name)) == 1 for name, _value in stored.headers)
    assert result.checksum_verified
    found = server.object("redirect-307.case1", "dir/a key+ü.bin")
    assert (found.sha256, found.metadata) == (sha256(big_file), {"colour": "green", "shape": "round"})


def test_case_1_the_date_is_fresh_on_each_hop(server: Server, client_of: Make, run: Run, big_file: Path) -> None:
    """A hop that is held longer than a second must not hand its date on."""

    async def main() -> None:
        async with client_of() as client:
            await client.put(big_file, "s3://redirect-307-slow-1200ms/key", continue_timeout_s=5)

    run(main())
    first, second = server.records()
    assert first.get("x-amz-date") != second.get("x-amz-date")


# --- AWS case 2: every method ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [307, 308, 301, 302])
def test_case_2_put_head_get_and_delete_follow(
    server: Server, client_of: Make, run: Run, tmp_path: Path, status: int
) -> None:
    """Each by a client of its own: one that was told by a 301 goes to the right place at once."""
    where = f"s3://redirect-{status}.methods/key"

    async def main() -> None:
        async with client_of() as client:
            put = await client.put(b"x" * 100_000, where)
            assert (put.status, put.redirects) == (200, 1)
        async with client_of() as client:
            info = await client.head(where)
            assert (info.size, [hop.status for hop in info.hops]) == (100_000, [status, 200])
        async with client_of() as client:
            assert await client.get(where, tmp_path / "got") == 100_000
        async with client_of() as client:
            await client.delete(where)
        async with client_of() as client:
            with pytest.raises(engine.NotFound):
                await client.head(where)

    run(main())
    assert (tmp_path / "got").read_bytes() == b"x" * 100_000
    records = server.records()
    assert [record.method for record in records[::2]] == ["PUT", "HEAD", "GET", "DELETE", "HEAD"]
    assert all(record.signature == "ok" for record in records[1::2])


@pytest.mark.parametrize("status", [307, 308, 301, 302])
def test_case_2_signed_posts_follow(server: Server, client_of: Make, run: Run, status: int) -> None:
    """CreateMultipartUpload must work where every request is redirected (Ceph's other zonegroup)."""

    async def main() -> engine.Response:
        async with client_of() as client:
            url = f"{server.redirector_url}/redirect-{status}.post/key?uploads"
            return await client.request("POST", url, sign="s3")

    answer = run(main())
    assert answer.status == 200
    assert b"<UploadId>" in answer.body
    assert [record.method for record in server.records()] == ["POST", "POST"]


@pytest.mark.parametrize("method", ["put", "delete"])
def test_case_2_303_on_a_put_or_delete_is_refused(client_of: Make, run: Run, method: str) -> None:
    async def main() -> None:
        async with client_of() as client:
            if method == "put":
                await client.put(b"x" * 100_000, "s3://redirect-303/key")
            else:
                await client.delete("s3://redirect-303/key")

    with pytest.raises(engine.RedirectRefused) as caught:
        run(main())
    assert caught.value.reason == f"see-other-on-{method}"
    assert caught.value.body_bytes_sent == 0


# --- AWS case 3: a large PUT -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_case_3_a_put_of_3_gib_through_a_redirect_sends_the_body_once(tmp_path: Path) -> None:
    """In a process of its own, so that the growth of memory is the client's alone. The file is sparse, with marks in it."""
    path = tmp_path / "3gib.bin"
    with open(path, "wb") as file:
        for gib in range(3):
            file.seek(gib << 30)
            file.write(os.urandom(MIB))
        file.truncate((3 << 30) + 7)
    with engine.sandbox.start(process=True, digest=False) as running:
        script = textwrap.dedent(
            """
            import resource, sys, engine
            path, url, region, access, secret = sys.argv[1:]
            options = dict(endpoint_url=url, region=region, credentials=engine.Credentials(access, secret))
            engine.put(b"warm" * 50_000, "s3://store/warm", **options)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            result = engine.put(path, "s3://redirect-307/big", **options)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert grown < 16 * 1024, f"{grown} KiB"
            first, last = result.hops
            assert (first.status, first.body_bytes_sent, first.body_bytes_read) == (307, 0, 0), first
            assert last.body_bytes_sent == result.size == result.body_bytes_sent == (3 << 30) + 7, last
            assert (result.send_path, result.checksum_verified) == ("sendfile", True), result
            """
        )
        given = [str(path), running.redirector_url, running.region]
        given += [running.credentials.access_key, running.credentials.secret_key]
        subprocess.run([sys.executable, "-c", script, *given], check=True, timeout=120)
        _warm, refused, stored = running.settle()
        assert (refused.status, refused.body_bytes) == (307, 0)
        assert stored.body_bytes == path.stat().st_size
        with open(running.object("redirect-307", "big").path, "rb") as got, open(path, "rb") as sent:
            while piece := sent.read(16 * MIB):
                assert got.read(16 * MIB) == piece
            assert not got.read(1)


# --- AWS case 4: the 100 takes long ------------------------------------------------------------------------------------


def test_case_4_no_body_byte_leaves_before_a_100_that_takes_5_s_from_a_host_known_to_ask(
    server: Server, client_of: Make, big_file: Path
) -> None:
    async def main() -> engine.PutResult:
        async with client_of() as client:
            first = await client.put(b"x" * 100_000, "s3://store/known")  # it answers: now it is known to
            assert first.expect == "continue"
            return await client.put(big_file, "s3://store-slow-5s/key")

    result = asyncio.run(main())
    assert result.expect == "continue"
    assert 4.9 < result.hops[0].continue_wait_s < 10
    slow = server.records()[-1]
    assert slow.body_bytes_at_continue == 0
    assert slow.first_body_at is not None
    assert slow.continue_at is not None
    assert slow.first_body_at >= slow.continue_at


def test_case_4_from_an_unknown_host_the_wait_ends_a_307_in_mid_body_stops_it_and_the_file_is_sent_from_its_start(
    server: Server, client_of: Make, run: Run, big_file: Path
) -> None:
    async def main() -> engine.PutResult:
        async with client_of() as client:
            return await client.put(big_file, "s3://redirect-307-silent-after-1m/key", continue_timeout_s=0.3)

    result = run(main())
    first, second = result.hops
    assert result.attempts == 1
    assert (first.status, first.outcome) == (307, "redirected")
    assert 0.3 <= first.continue_wait_s < 2
    assert MIB <= first.body_bytes_sent < big_file.stat().st_size
    assert second.body_bytes_sent == big_file.stat().st_size
    assert server.object("redirect-307-silent-after-1m", "key").sha256 == sha256(big_file)
    stopped, _stored = server.records()
    assert stopped.body_bytes <= first.body_bytes_sent


# --- asking --------------------------------------------------------------------------------------------------------------


def test_without_any_100_the_body_goes_after_the_wait(
    server: Server, client_of: Make, run: Run, big_file: Path
) -> None:
    async def main() -> engine.PutResult:
        async with client_of() as client:
            return await client.put(big_file, "s3://store-silent/key", continue_timeout_s=0.2)

    result = run(main())
    assert (result.status, result.expect, result.checksum_verified) == (200, "timeout", True)
    (record,) = server.records()
    assert record.first_body_at is not None
    assert result.hops[0].continue_wait_s >= 0.2
    # The server may have been late to look at the head, so its own clock allows for less.
    assert record.first_body_at - record.received_at >= 0.05


def test_under_strict_the_body_never_goes_without_a_100(
    server: Server, client_of: Make, run: Run, big_file: Path
) -> None:
    async def main() -> None:
        async with client_of(config=engine.Config(retry=engine.Retry(max_attempts=1))) as client:
            await client.put(big_file, "s3://store-silent/key", expect="strict", response_timeout_s=0.4)

    with pytest.raises(engine.ResponseTimedOut) as caught:
        run(main())
    assert (caught.value.stage, caught.value.body_bytes_sent) == ("continue", 0)
    assert [record.body_bytes for record in server.records()] == [0]


def test_a_417_is_followed_by_the_same_request_without_expect_and_remembered(
    server: Server, client_of: Make, run: Run, big_file: Path
) -> None:
    async def main() -> tuple[engine.PutResult, engine.PutResult]:
        async with client_of() as client:
            first = await client.put(big_file, "s3://answer-417/key")
            return first, await client.put(big_file, "s3://store/after-417")

    first, second = run(main())
    assert [hop.status for hop in first.hops] == [417, 200]
    assert first.hops[0].body_bytes_sent == 0
    assert (first.attempts, first.expect, second.expect) == (1, "off", "off")
    assert [record.get("expect") for record in server.records()] == ["100-continue", None, None]


def test_a_417_under_strict_is_an_error(client_of: Make, run: Run, big_file: Path) -> None:
    async def main() -> None:
        async with client_of() as client:
            await client.put(big_file, "s3://answer-417/key", expect="strict")

    with pytest.raises(engine.ResponseError) as caught:
        run(main())
    assert (caught.value.status, caught.value.body_bytes_sent) == (417, 0)


@pytest.mark.parametrize("interim", ["hints", "processing"])
def test_103_and_102_are_no_go_ahead(server: Server, client_of: Make, run: Run, big_file: Path, interim: str) -> None:
    async def main() -> engine.PutResult:
        async with client_of() as client:
            return await client.put(big_file, f"s3://store-{interim}-slow-700ms/key", continue_timeout_s=10)

    result = run(main())
    (record,) = server.records()
    assert record.interims is not None
    assert [status for status, _at in record.interims] == [{"hints": 103, "processing": 102}[interim], 100]
    assert record.body_bytes_at_continue == 0
    assert result.hops[0].continue_wait_s > 0.6


def test_100_and_307_in_one_read_let_no_body_byte_go(server: Server, client_of: Make, run: Run, big_file: Path) -> None:
    async def main() -> engine.PutResult:
        async with client_of() as client:
            return await client.put(big_file, "s3://redirect-307-continue/key")

    result = run(main())
    assert result.hops[0].body_bytes_sent == 0
    assert server.records()[0].body_bytes == 0


def test_100_and_307_microseconds_apart_let_no_body_byte_go(
    server: Server, client_of: Make, run: Run, big_file: Path
) -> None:
    async def main() -> None:
        async with client_of() as client:
            for number in range(50):
                result = await client.put(big_file, f"s3://redirect-307-gap-5us/{number}", checksum=None)
                assert result.hops[0].body_bytes_sent == 0

    run(main())
    assert sum(record.body_bytes for record in server.records() if record.status == 307) == 0


# --- refused on the head alone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"if_none_match": "*"}, {"if_match": "another"}], ids=["if-none-match", "if-match"]
)
@pytest.mark.parametrize("size", [100_000, 8 * MIB])
def test_a_condition_that_does_not_hold_costs_no_body_byte(
    server: Server, client_of: Make, run: Run, options: dict[str, Any], size: int
) -> None:
    async def main() -> None:
        async with client_of() as client:
            await client.put(b"first", "s3://store/conditional")
            with pytest.raises(engine.PreconditionFailed) as caught:
                await client.put(bytes(size), "s3://store/conditional", **options)
            [hop] = caught.value.hops
            assert (hop.status, hop.body_bytes_sent, hop.body_bytes_read) == (412, 0, 0)

    run(main())
    refused = server.records()[-1]
    assert (refused.status, refused.body_bytes, refused.continue_at) == (412, 0, None)
    assert server.object("store", "conditional").size == 5


ASKED_FOR = {
    "metadata": ({"metadata": {"a": "b"}}, "x-amz-meta-a"),
    "tagging": ({"tagging": {"a": "b"}}, "x-amz-tagging"),
    "storage-class": ({"storage_class": "NO_SUCH"}, "x-amz-storage-class"),
    "acl": ({"acl": "public-read"}, "x-amz-acl"),
    "sse-s3": ({"sse": "AES256"}, "x-amz-server-side-encryption"),
    "sse-kms": ({"sse_kms_key_id": "gone"}, "x-amz-server-side-encryption-aws-kms-key-id"),
    "sse-c": ({"sse_customer_key": bytes(32)}, "x-amz-server-side-encryption-customer-key"),
    "requester-pays": ({"request_payer": True}, "x-amz-request-payer"),
    "checksum": ({"checksum": "sha256"}, "x-amz-checksum-sha256"),
}


@pytest.mark.parametrize("name", ASKED_FOR)
@pytest.mark.parametrize("status", [400, 403, 501])
def test_what_a_store_refuses_to_do_with_an_object_it_refuses_before_the_body(
    server: Server, client_of: Make, run: Run, big_file: Path, name: str, status: int
) -> None:
    """All that can be asked for is in the head, so that the server can say no to it there."""
    options, field = ASKED_FOR[name]

    async def main() -> None:
        async with client_of() as client:
            with pytest.raises(engine.ResponseError) as caught:
                await client.put(big_file, f"s3://answer-{status}.{name}/key", **options)  # type: ignore[arg-type]
            assert (caught.value.status, caught.value.body_bytes_sent) == (status, 0)

    run(main())
    [refused] = server.records()
    assert refused.get(field)
    assert refused.body_bytes == 0


# --- refused in mid-body -------------------------------------------------------------------------------------------------


def test_a_403_and_a_reset_in_mid_body_lose_no_answer(run: Run) -> None:
    """The server answers, resets with the body unread, many times: Linux keeps the answer across the reset."""

    def refuse(connection: socket.socket) -> None:
        read_head(connection)
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        time.sleep(0.002)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)

    for _number in range(20):
        with raw_server(refuse) as url, pytest.raises(engine.AccessDenied) as caught:
            run(engine.put_async(bytes(32 * MIB), f"{url}/key", expect="never", checksum=None))
        assert caught.value.body_bytes_sent < 32 * MIB


def test_a_2xx_before_the_whole_body_is_an_error(client_of: Make, run: Run) -> None:
    async def main() -> None:
        async with client_of() as client:
            await client.put(bytes(64 * MIB), "s3://answer-200-after-64k/key", checksum=None)

    with pytest.raises(engine.ProtocolError) as caught:
        run(main())
    assert caught.value.kind == "early-success"
    assert caught.value.hops[-1].outcome == "early-success"


# --- where a redirect does not lead --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bucket", "reason"),
    [
        ("redirect-307-elsewhere", "host-not-allowed"),
        ("redirect-307-linklocal", "host-not-allowed"),
        ("redirect-307-userinfo", "bad-location"),
        ("redirect-307-ftp", "bad-location"),
        ("redirect-307-loop", "loop"),
        ("redirect-307-two", "two-locations"),
        ("redirect-307-subresource", "sub-resource"),
        ("redirect-307-hops-6", "too-many-hops"),
    ],
)
def test_a_redirect_that_the_policy_does_not_allow_is_refused_and_nothing_leaks(
    server: Server, client_of: Make, run: Run, big_file: Path, bucket: str, reason: str
) -> None:
    async def main() -> None:
        async with client_of() as client:
            await client.put(big_file, f"s3://{bucket}/key")

    with pytest.raises(engine.RedirectRefused) as caught:
        run(main())
    error = caught.value
    assert (error.reason, error.body_bytes_sent) == (reason, 0)
    assert isinstance(error, engine.TooManyRedirects) == (reason == "too-many-hops")
    assert server.credentials.secret_key not in str(error)
    assert all(record.body_bytes == 0 for record in server.records())
    assert all(hop.body_bytes_read == 0 for hop in error.hops)


def test_an_https_location_at_a_port_without_tls_is_followed_no_further(
    server: Server, client_of: Make, run: Run, big_file: Path
) -> None:
    async def main() -> None:
        async with client_of() as client:
            await client.put(big_file, "s3://redirect-307-https/key")

    with pytest.raises(engine.ConnectFailed, match="plain http") as caught:
        run(main())
    error = caught.value
    assert (error.stage, error.attempts, error.retryable, error.body_bytes_sent) == ("tls", 1, False, 0)
    assert [(hop.status, hop.outcome) for hop in error.hops] == [(307, "redirected"), (0, "failed")]
    assert all(record.body_bytes == 0 for record in server.records())


def test_five_hops_are_followed(server: Server, client_of: Make, run: Run, big_file: Path) -> None:
    async def main() -> engine.PutResult:
        async with client_of() as client:
            return await client.put(big_file, "s3://redirect-307-hops-5/key")

    result = run(main())
    assert (result.redirects, len(result.hops)) == (5, 6)
    assert [hop.body_bytes_sent for hop in result.hops] == [0, 0, 0, 0, 0, big_file.stat().st_size]


# --- what a source that cannot be replayed can do -------------------------------------------------------------------------


def test_an_iterator_is_asked_for_and_survives_a_redirect_untouched(server: Server, client_of: Make, run: Run) -> None:
    async def pieces() -> Any:
        for _number in range(10):
            yield b"y" * 1000

    async def main() -> engine.PutResult:
        async with client_of() as client:
            return await client.put(pieces(), "s3://redirect-307.iterator/key", size=10_000)

    result = run(main())
    assert (result.hops[0].body_bytes_read, result.hops[1].body_bytes_read) == (0, 10_000)
    assert result.send_path in ("vectored", "tls", "tls-ssl")
    assert result.checksum_verified
    assert server.object("redirect-307.iterator", "key").content() == b"y" * 10_000


def test_a_redirect_after_bytes_of_an_iterator_left_is_an_error(client_of: Make, run: Run) -> None:
    async def pieces() -> Any:
        for _number in range(64):
            yield bytes(MIB)

    async def main() -> None:
        async with client_of() as client:
            await client.put(pieces(), "s3://redirect-307-after-1m/key", size=64 * MIB)

    with pytest.raises(engine.SourceNotReplayable) as caught:
        run(main())
    assert caught.value.body_bytes_sent > 0


# --- events and progress ----------------------------------------------------------------------------------------------------


def test_events_tell_the_story_without_secrets(server: Server, client_of: Make, run: Run, big_file: Path) -> None:
    told: list[events.Event] = []

    async def main() -> None:
        async with client_of() as client:
            await client.put(big_file, "s3://redirect-307/story", on_event=told.append)

    run(main())
    assert [type(event).__name__ for event in told] == [
        *("Resolved", "Connected", "HeadSent", "Response", "Redirect"),
        *("Resolved", "Connected", "HeadSent", "Continue", "BodyStarted", "Response", "Done"),
    ]
    everything = repr(told)
    assert "REDACTED" in everything
    assert server.credentials.secret_key not in everything
    assert "Signature=" not in everything


def test_progress_is_polled_and_ends_at_the_total(client_of: Make, run: Run) -> None:
    data = bytes(64 * MIB)

    async def main() -> None:
        async with client_of() as client:
            transfer = client.start_put(data, "s3://redirect-307/progress", checksum=None)
            seen = [transfer.progress]
            while not transfer.done():
                seen.append(transfer.progress)
                await asyncio.sleep(0.001)
            await transfer
            assert {"sending"} <= {progress.phase for progress in seen}
            sending = [progress.sent for progress in seen if progress.phase == "sending"]
            assert sending == sorted(sending)
            assert any(0 < sent < len(data) for sent in sending)
            assert {progress.hop for progress in seen} == {1, 2}
            assert transfer.progress.phase == "done"

    run(main())
