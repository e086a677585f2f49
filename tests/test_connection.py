"""One connection, one exchange after the other: what awkward peers send, and what a cancelled call leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import engine
from engine import limits
from tests.conftest import Server
from tests.peers import CONTINUE, OK, descriptors, raw_server, read_head, read_request, reset

Run = Callable[[Any], Any]
Make = Callable[..., engine.Client]
ONCE = engine.Retry(max_attempts=1)
MIB = limits.MIB


# --- what peers send ----------------------------------------------------------------------------------------------------


def test_an_answer_that_comes_byte_by_byte_is_read(run: Run) -> None:
    def trickle(connection: socket.socket) -> None:
        read_request(connection)
        for byte in b'HTTP/1.1 201 Created\r\nETag: "abc"\r\nContent-Length: 3\r\n\r\nyes':
            connection.sendall(bytes([byte]))
            time.sleep(0.001)

    with raw_server(trickle) as url:
        result = run(engine.put_async(b"abc", f"{url}/key"))
    assert (result.status, result.etag) == (201, '"abc"')


def test_a_hundred_and_the_body_cross_and_the_answer_may_be_until_close(run: Run) -> None:
    def answer(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(CONTINUE + CONTINUE)
        body = b""
        while len(body) < 200_000:
            body += connection.recv(65536)
        connection.sendall(b"HTTP/1.1 100\r\n\r\nHTTP/1.1 200 OK\r\n\r\nuntil the close")

    with raw_server(answer) as url:
        result = run(engine.put_async(bytes(200_000), f"{url}/key"))
    assert (result.status, result.expect) == (200, "continue")


def test_a_head_that_does_not_fit_the_socket_leaves_in_the_end(run: Run) -> None:
    """The server does not read for a while, and the head is larger than what the kernel buffers."""
    seen: list[bytes] = []

    def slow(connection: socket.socket) -> None:
        time.sleep(0.3)
        head = bytearray()
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1 << 20)
        seen.append(bytes(head))
        connection.sendall(OK)

    headers = {f"x-filler-{number}": "v" * 8000 for number in range(700)}
    with raw_server(slow) as url:
        response = run(_request("GET", f"{url}/key", headers=headers))
    assert response.status == 200
    assert len(seen[0]) > 700 * 8000


async def _request(method: str, url: str, **options: Any) -> engine.Response:
    async with engine.Client() as client:
        return await client.request(method, url, **options)


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "version"),
        (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", "bare-lf"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "conflicting-content-length"),
    ],
)
def test_what_is_no_http_is_a_protocol_error(run: Run, sent: bytes, kind: str) -> None:
    def answer(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(sent)
        connection.recv(1)

    with raw_server(answer) as url, pytest.raises(engine.ProtocolError) as caught:
        run(engine.put_async(b"abc", f"{url}/key", retry=ONCE))
    assert caught.value.kind == kind
    assert not caught.value.retryable


def test_a_connection_is_used_again_and_one_that_says_close_is_not(run: Run) -> None:
    def twice_then_close(connection: socket.socket) -> None:
        assert read_request(connection)[1] == b"1"
        connection.sendall(OK)
        assert read_request(connection)[1] == b"2"
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        assert connection.recv(1) == b"", "a request on a connection that was to be closed"

    def once(connection: socket.socket) -> None:
        assert read_request(connection)[1] == b"3"
        connection.sendall(OK)
        connection.recv(1)

    async def main(url: str) -> None:
        async with engine.Client() as client:
            for data in (b"1", b"2", b"3"):
                await client.put(data, f"{url}/key")

    with raw_server(twice_then_close, once) as url:
        run(main(url))


def test_bytes_that_nobody_asked_for_close_an_idle_connection(run: Run) -> None:
    def talkative(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK)
        time.sleep(0.05)
        connection.sendall(OK)  # an answer to nobody: the next request must not take it for its own
        assert connection.recv(1) == b""

    def other(connection: socket.socket) -> None:
        assert read_request(connection)[1] == b"2"
        connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

    async def main(url: str) -> int:
        async with engine.Client() as client:
            await client.put(b"1", f"{url}/key")
            await asyncio.sleep(0.2)
            return (await client.put(b"2", f"{url}/key")).status

    with raw_server(talkative, other) as url:
        assert run(main(url)) == 201


def test_bytes_behind_an_answer_in_the_same_segment_close_the_connection(run: Run) -> None:
    def doubled(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK + OK)
        assert connection.recv(1) == b""

    def other(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

    async def main(url: str) -> int:
        async with engine.Client() as client:
            await client.put(b"1", f"{url}/key")
            return (await client.put(b"2", f"{url}/key")).status

    with raw_server(doubled, other) as url:
        assert run(main(url)) == 201


def test_closing_the_client_ends_idle_connections_in_order(run: Run) -> None:
    """By FIN, which lets a TLS goodbye arrive, and is no "reset by peer" in a server's log."""
    ended: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK)
        time.sleep(0.1)  # the client has closed by then
        ended.append(connection.recv(1))  # ConnectionResetError after an RST

    for _number in range(5):
        with raw_server(answer) as url:
            run(engine.put_async(b"abc", f"{url}/key"))
    assert ended == [b""] * 5


def test_after_a_withheld_body_the_connection_is_closed(run: Run) -> None:
    def refuse(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        assert connection.recv(1) == b"", "bytes on a connection whose announced body never came"

    with raw_server(refuse) as url, pytest.raises(engine.AccessDenied) as caught:
        run(engine.put_async(bytes(100_000), f"{url}/key"))
    assert caught.value.body_bytes_sent == 0


def test_an_endless_error_body_is_cut_and_the_error_still_known(run: Run) -> None:
    def endless(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 999999999999\r\n\r\n")
        while True:
            connection.sendall(bytes(65536))

    with raw_server(endless) as url, pytest.raises(engine.AccessDenied):
        run(engine.put_async(bytes(100_000), f"{url}/key"))


# --- time ----------------------------------------------------------------------------------------------------------------


def test_a_server_that_reads_nothing_is_a_stall(run: Run) -> None:
    def sleep(connection: socket.socket) -> None:
        time.sleep(1.5)

    with raw_server(sleep) as url, pytest.raises(engine.StallTimedOut) as caught:
        run(engine.put_async(bytes(64 * MIB), f"{url}/key", expect="never", stall_timeout_s=0.3, retry=ONCE))
    assert 0 < caught.value.body_bytes_sent < 64 * MIB
    assert caught.value.limit_s == 0.3


def test_a_server_that_never_answers_is_a_response_timeout(run: Run) -> None:
    def silent(connection: socket.socket) -> None:
        read_request(connection)
        connection.recv(1)

    with raw_server(silent) as url, pytest.raises(engine.ResponseTimedOut) as caught:
        run(engine.put_async(b"abc", f"{url}/key", response_timeout_s=0.2, retry=ONCE))
    assert caught.value.hops[-1].outcome == "timed-out"


def test_the_total_timeout_ends_any_phase(run: Run) -> None:
    def stuck(connection: socket.socket) -> None:
        read_head(connection)
        time.sleep(0.6)

    for expect in ("never", "always"):
        with raw_server(stuck) as url, pytest.raises(engine.TotalTimedOut) as caught:
            run(engine.put_async(bytes(64 * MIB), f"{url}/key", expect=expect, total_timeout_s=0.3))
        assert caught.value.limit_s == 0.3
        assert len(caught.value.hops) == 1


# --- cancelled -------------------------------------------------------------------------------------------------------------


def test_a_cancelled_put_leaves_nothing_behind(client_of: Make, run: Run, big_file: Path) -> None:
    """At random moments of every phase; afterwards there is no descriptor, task or thread that was not there before."""
    rng = random.Random(4)
    data = bytes(32 * MIB)
    sources: list[Callable[[], Any]] = [lambda: big_file, lambda: data, lambda: _pieces(32)]
    buckets = ["store", "redirect-307", "store-slow-50ms", "store-stall-1m", "answer-403-after-1m", "hang"]

    async def main() -> int:
        cancelled = 0
        async with client_of() as client:
            for number in range(60):
                size = {"size": 32 * MIB} if number % 3 == 2 else {}
                transfer = client.start_put(
                    sources[number % 3](), f"s3://{rng.choice(buckets)}.cancel/{number}", **size
                )
                await asyncio.sleep(rng.choice([0, 0.001, 0.005, 0.02, 0.06]))
                cancelled += transfer.cancel()
                with contextlib.suppress(asyncio.CancelledError, engine.EngineError):
                    await transfer
        assert len(asyncio.all_tasks()) == 1
        return cancelled

    run(main())  # what is made once (threads, buffers) is made now
    before, threads = descriptors(), threading.active_count()
    assert run(main()) > 20
    time.sleep(0.1)
    after = descriptors()
    left = {number: what for number, what in after.items() if number not in before}
    assert not {what for what in left.values() if "socket" in what or "big.bin" in what}, left
    assert len(after) <= len(before) + 2, left
    assert threading.active_count() <= threads


async def _pieces(count: int) -> Any:
    for _number in range(count):
        await asyncio.sleep(0)
        yield bytes(MIB)


def test_closing_the_client_ends_what_runs(client_of: Make, run: Run, big_file: Path) -> None:
    async def main() -> None:
        client = client_of()
        transfers = [client.start_put(big_file, f"s3://{bucket}/close") for bucket in ("hang", "store-stall-1m")]
        await asyncio.sleep(0.1)
        await client.close()
        for transfer in transfers:
            with pytest.raises((engine.ConnectionLost, engine.UsageError)):
                await transfer

    run(main())


def test_a_sink_that_raises_ends_the_get_with_its_own_error(client_of: Make, run: Run, server: Server) -> None:
    def full(_view: memoryview) -> None:
        raise OSError(28, "No space left on device")

    async def main() -> None:
        async with client_of() as client:
            await client.put(bytes(MIB), "s3://store/sink")
            with pytest.raises(OSError, match="No space left"):
                await client.get("s3://store/sink", full)
            assert (await client.head("s3://store/sink")).size == MIB

    run(main())


def test_an_answer_lies_behind_a_reset(run: Run) -> None:
    """The server answers the head of a small body with a reset right behind it."""

    def refuse(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")
        reset(connection)

    for _number in range(30):
        with raw_server(refuse) as url, pytest.raises(engine.ResponseError) as caught:
            run(engine.put_async(bytes(300_000), f"{url}/key", expect="never", retry=ONCE))
        assert caught.value.status == 503
