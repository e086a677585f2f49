"""Connections by origin: making them, waiting in line, and closing while others use them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import time
import tracemalloc  # noqa: F401  (pytest imports it to report what was not closed, which needs a descriptor)
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

import engine
from engine.body import open_body
from engine.connection import Connection
from engine.errors import ConnectFailed, ConnectTimedOut, UsageError
from engine.exchange import Exchange, Fate, Plan
from engine.pool import AddressRefused, Pool, _race
from engine.wire import Origin, parse_url
from tests.peers import OK, descriptors, raw_server, read_head, read_request, reset

Run = Callable[[Any], Any]
ONCE = engine.Retry(max_attempts=1)


def origin_of(url: str) -> Origin:
    return parse_url(url).origin


def hold(connection: socket.socket) -> None:
    connection.recv(1)


async def acquire(pool: Pool, url: str, **options: Any) -> Connection:
    return (await pool.acquire(origin_of(url), **{"connect_timeout_s": 5.0, **options})).connection


def new_pool(**options: Any) -> Pool:
    return Pool(**{"max_connections": 4, "max_idle_s": 4.0, **options})


# --- closed ---------------------------------------------------------------------------------------------------------------


def test_a_connection_that_comes_about_while_the_pool_closes_is_closed(run: Run, monkeypatch: Any) -> None:
    """Its sender is gone: a body given to it would end in an error that is nobody's."""

    async def main(url: str) -> None:
        pool = new_pool()
        acquiring = asyncio.ensure_future(acquire(pool, url))
        for _step in range(3):
            await asyncio.sleep(0)
        await pool.close()
        with pytest.raises((ConnectFailed, UsageError), match="closed"):
            await acquiring

    with raw_server(hold) as url:
        run(main(url))
        with suppress(OSError):  # the server's accept wants a connection, should none have come about
            socket.create_connection(("127.0.0.1", origin_of(url).port)).close()


def test_a_closed_client_makes_no_new_connections(run: Run) -> None:
    async def main(url: str) -> None:
        client = engine.Client()
        assert (await client.put(b"abc", f"{url}/key")).status == 200
        await client.close()
        with pytest.raises(UsageError, match="the client is closed"):
            await client.put(b"abc", f"{url}/key")
        await client.close()

    def once(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK)
        assert connection.recv(1) == b""

    with raw_server(once) as url:
        run(main(url))


def test_closing_while_a_put_waits_to_try_again_ends_it(run: Run) -> None:
    def busy(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 503 Slow Down\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        assert connection.recv(1) == b""

    async def main(url: str) -> None:
        client = engine.Client()
        transfer = client.start_put(b"abc", f"{url}/key")
        while transfer.progress.phase != "backing off":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await client.close()
        with pytest.raises(UsageError, match="the client is closed"):
            await transfer

    with raw_server(busy) as url:
        run(main(url))


def test_when_close_returns_every_descriptor_is_closed(run: Run) -> None:
    """Also those of connections that were given up a moment before."""

    def refuse(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        connection.recv(1)

    async def main(url: str) -> set[str]:
        client = engine.Client()
        with pytest.raises(engine.AccessDenied):
            await client.put(bytes(100_000), f"{url}/key")
        port = origin_of(url).port
        await client.close()
        return set(sockets_to(port))

    with raw_server(refuse) as url:
        assert run(main(url)) == set()


def sockets_to(port: int) -> list[str]:
    """This process's sockets that are connected to a local port."""
    found = []
    for number in descriptors():
        with suppress(OSError), socket.socket(fileno=os.dup(number)) as duplicate:
            if duplicate.family == socket.AF_INET and duplicate.getpeername()[1] == port:
                found.append(str(number))
    return found


# --- what the loop may call, in an order that is rare on a wire ----------------------------------------------------------


async def exchanged(
    url: str, then: Callable[[Connection], object], *, head: bytes = b"", size: int = 0
) -> tuple[bool, Exchange]:
    """An exchange on a connection of its own; `then` is called in the turn of the loop in which it ended, before the task that
    waits for it goes on. Returns whether the connection was kept for reuse, and the exchange."""
    pool = new_pool()
    try:
        connection = await acquire(pool, url)
        exchange = Exchange(Plan(body_size=size, stall_timeout_s=5, response_timeout_s=5), time.monotonic())
        body = open_body(bytes(size)) if size else None
        head = head or b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
        performing = asyncio.ensure_future(connection.perform(exchange, "PUT", head, body))
        while not exchange.finished:  # noqa: ASYNC110
            await asyncio.sleep(0)
        then(connection)
        with suppress(engine.EngineError):
            await performing
        pool.release(connection, exchange.fate)
        return connection.usable, exchange
    finally:
        await pool.close()


@pytest.mark.parametrize("late", [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""], ids=["bytes", "eof"])
def test_what_comes_right_behind_an_answer_spoils_the_connection(run: Run, late: bytes) -> None:
    """Bytes would be taken for the answer to the next request; behind an end of stream no answer will ever come."""

    def answer(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(OK)
        connection.recv(1)

    def spoil(connection: Connection) -> None:
        if late:
            connection.get_buffer(-1)[: len(late)] = late
            connection.buffer_updated(len(late))
        else:
            connection.eof_received()

    with raw_server(answer) as url:
        usable, exchange = run(exchanged(url, spoil))
    assert exchange.fate is Fate.REUSE
    assert not usable


def test_a_head_that_leaves_after_its_answer_came_is_no_error(run: Run) -> None:
    """The kernel takes the rest of a large head in the very turn in which the refusal of it was read."""

    def refuse(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 431 Too Large\r\nContent-Length: 0\r\n\r\n")
        while connection.recv(1 << 20):
            pass

    head = b"GET / HTTP/1.1\r\nHost: x\r\nX-Filler: " + bytes(16 << 20) + b"\r\n\r\n"

    def drained(connection: Connection) -> None:
        connection.resume_writing()
        connection._transport.abort()  # what the test has not let leave is not to leave later

    with raw_server(refuse) as url:
        usable, exchange = run(exchanged(url, drained, head=head))
    assert (exchange.status, usable) == (431, False)


def test_a_sender_that_stalls_while_the_client_is_closed_is_no_error(run: Run) -> None:
    """Both happen before the loop hears of either."""

    def stall(connection: socket.socket) -> None:
        read_head(connection)
        time.sleep(0.5)

    async def main(url: str) -> None:
        pool = new_pool()
        connection = await acquire(pool, url)
        exchange = Exchange(Plan(body_size=64 << 20, stall_timeout_s=0.1), time.monotonic())
        head = b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (64 << 20)
        performing = asyncio.ensure_future(connection.perform(exchange, "PUT", head, open_body(bytes(64 << 20))))
        while not connection.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        time.sleep(0.3)  # noqa: ASYNC251  (the loop stands still: the stall waits to be delivered)
        closing = asyncio.ensure_future(pool.close())
        with pytest.raises(engine.ConnectionLost, match="closed"):
            await performing
        pool.release(connection, exchange.fate)
        await closing

    with raw_server(stall) as url:
        run(main(url))


# --- making -----------------------------------------------------------------------------------------------------------------


def test_a_refused_port_says_so(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConnectFailed, match="nothing listens there") as caught:
        run(engine.put_async(b"abc", f"http://127.0.0.1:{port}/key", retry=engine.Retry(max_attempts=1)))
    error = caught.value
    assert (error.errno, error.stage, error.retryable, error.attempts) == (errno.ECONNREFUSED, "connect", True, 1)
    assert [hop.outcome for hop in error.hops] == ["failed"]


def test_a_name_that_does_not_exist_says_so_and_is_not_tried_again(run: Run) -> None:
    with pytest.raises(ConnectFailed, match="the name cannot be resolved") as caught:
        run(engine.put_async(b"abc", "http://no-such-host.invalid/key"))
    assert (caught.value.stage, caught.value.attempts) == ("resolve", 1)


@pytest.fixture
def full_backlog() -> Iterator[str]:
    """A port that takes no connection: its backlog is full, so the kernel drops what comes."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        for _number in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        time.sleep(0.05)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_connection_that_does_not_come_about_times_out(run: Run, full_backlog: str) -> None:
    before = descriptors()
    with pytest.raises(ConnectTimedOut, match=r"no connection within 0.2 s") as caught:
        run(
            engine.put_async(
                b"abc", f"{full_backlog}/key", connect_timeout_s=0.2, retry=engine.Retry(max_attempts=2, base_s=0)
            )
        )
    assert (caught.value.attempts, caught.value.stage, caught.value.limit_s) == (2, "connect", 0.2)
    assert descriptors().keys() <= before.keys()


def test_a_cancelled_connect_leaves_no_descriptor(run: Run, full_backlog: str) -> None:
    async def main() -> None:
        pool = new_pool(max_connections=1)
        before = descriptors()
        for _number in range(3):
            acquiring = asyncio.ensure_future(acquire(pool, full_backlog))
            await asyncio.sleep(0.01)
            acquiring.cancel()
            with pytest.raises(asyncio.CancelledError):
                await acquiring
            await asyncio.sleep(0.01)
        assert descriptors().keys() <= before.keys()
        await pool.close()

    run(main())


@pytest.mark.parametrize("closed", ["::1", "127.0.0.1"])
def test_the_other_family_is_tried_when_one_is_closed(run: Run, closed: str) -> None:
    """RFC 8305: localhost has both, and the server listens on one."""
    (there,) = {"::1", "127.0.0.1"} - {closed}
    with socket.create_server((there, 0), family=socket.AF_INET6 if ":" in there else socket.AF_INET) as listener:
        port = listener.getsockname()[1]

        async def main() -> str:
            both = [(socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, ("127.0.0.1", port))]
            with await _race(Origin("http", "localhost", port), both) as connected:
                return str(connected.getpeername()[0])

        assert run(main()) == there


def test_of_several_addresses_a_silent_one_does_not_hold_up_the_others(run: Run, full_backlog: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent, there = ("127.0.0.1", origin_of(full_backlog).port), listener.getsockname()

        async def main() -> tuple[Any, set[int]]:
            before = descriptors().keys()
            connected = await _race(Origin("http", "two.test", 80), [(socket.AF_INET, silent), (socket.AF_INET, there)])
            with connected:
                await asyncio.sleep(0)
                return connected.getpeername(), descriptors().keys() - before - {connected.fileno()}

        peer, left = run(main())
    assert (peer, left) == (there, set())


def test_a_peer_that_resets_at_once_is_a_lost_connection(run: Run) -> None:
    for _number in range(20):
        with raw_server(reset) as url, pytest.raises(engine.TransportError):
            run(engine.put_async(b"abc", f"{url}/key", retry=engine.Retry(max_attempts=1)))


def test_without_a_free_descriptor_a_put_fails_and_the_client_goes_on(run: Run) -> None:
    """EMFILE at each step of making a connection."""
    complaints: list[Any] = []

    async def main(url: str) -> list[str]:
        outcomes = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        async with engine.Client(config=engine.Config(response_timeout_s=0.1, retry=ONCE)) as client:
            with pytest.raises(engine.ResponseTimedOut):
                await client.put(b"warm", f"{url}/key")
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            for spare in range(4):
                await asyncio.sleep(0.02)
                with open("/dev/null") as lowest:  # noqa: ASYNC230
                    limit = lowest.fileno() + spare
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                try:
                    await client.put(b"abc", f"{url}/key")
                except engine.EngineError as error:
                    outcomes.append(f"{type(error).__name__} {getattr(error, 'errno', '')}")
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return outcomes

    with socket.create_server(("127.0.0.1", 0)) as listener:
        outcomes = run(main(f"http://127.0.0.1:{listener.getsockname()[1]}"))
    failed = [f"ConnectFailed {errno.EMFILE}"]
    # uvloop needs one descriptor more than asyncio.
    assert outcomes in (failed * 3 + ["ResponseTimedOut None"], failed * 2 + ["ResponseTimedOut None"] * 2)
    assert not complaints


# --- in line ----------------------------------------------------------------------------------------------------------------


def keep_answering(connection: socket.socket) -> None:
    while read_request(connection)[0]:
        time.sleep(0.01)
        connection.sendall(OK)


def test_who_comes_when_all_connections_are_in_use_waits_in_line(run: Run) -> None:
    async def main(url: str) -> list[int]:
        served: list[int] = []
        pool = new_pool(max_connections=2)

        async def one(number: int) -> None:
            connection = await acquire(pool, url)
            served.append(number)
            exchange = Exchange(Plan(response_timeout_s=5), time.monotonic())
            await connection.perform(exchange, "GET", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", None)
            pool.release(connection, exchange.fate)

        await asyncio.gather(*(one(number) for number in range(20)))
        await pool.close()
        return served

    with raw_server(keep_answering, keep_answering) as url:
        served = run(main(url))
    # The first two connect at the same time, either may be first.
    assert sorted(served[:2]) == [0, 1]
    assert served[2:] == list(range(2, 20))


def test_who_is_cancelled_in_line_passes_the_turn_on(run: Run) -> None:
    async def main(url: str) -> None:
        pool = new_pool(max_connections=1)
        held = await acquire(pool, url)
        for _round in range(3):
            first, second, third = (asyncio.ensure_future(acquire(pool, url)) for _number in range(3))
            await asyncio.sleep(0.01)
            second.cancel()
            pool.release(held, Fate.CLOSE)  # wakes the first …
            first.cancel()  # … which is cancelled in the same turn of the loop
            held = await asyncio.wait_for(third, 2)
            for cancelled in (first, second):
                with pytest.raises(asyncio.CancelledError):
                    await cancelled
        pool.release(held, Fate.CLOSE)
        await pool.close()

    with raw_server(*[hold] * 4) as url:
        run(main(url))


def test_the_limit_holds_across_origins_and_an_idle_connection_makes_room(run: Run) -> None:
    open_now: list[int] = [0, 0]  # now, at most

    def count(connection: socket.socket) -> None:
        open_now[0] += 1
        open_now[1] = max(open_now)
        try:
            while read_request(connection)[0]:
                connection.sendall(OK)
        finally:
            open_now[0] -= 1

    async def main(urls: list[str]) -> None:
        async with engine.Client(config=engine.Config(max_connections=2)) as client:
            for _round in range(3):
                for url in urls:
                    await client.put(b"abc", f"{url}/key")
                    await asyncio.sleep(0.02)

    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(raw_server(*[count] * 3)) for _number in range(6)]
        run(main(urls))
    assert open_now[0] == 0
    assert open_now[1] <= 3  # a server may see a connection come before it sees the one go that made room


def test_an_idle_connection_is_closed_after_its_time(run: Run) -> None:
    gone: list[float] = []

    def answer_then_wait(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK)
        began = time.monotonic()
        assert connection.recv(1) == b""
        gone.append(time.monotonic() - began)

    async def main(url: str) -> None:
        async with engine.Client(config=engine.Config(max_idle_s=0.2)) as client:
            await client.put(b"abc", f"{url}/key")
            await asyncio.sleep(0.8)
            assert gone, "still open"

    with raw_server(answer_then_wait) as url:
        run(main(url))
    assert 0.15 < gone[0] < 0.7


def test_an_address_that_may_not_be_met_is_neither_dialled_nor_reused(run: Run) -> None:
    async def main(url: str) -> None:
        pool = new_pool()
        pool.release(await acquire(pool, url), Fate.CLOSE)
        with pytest.raises(AddressRefused) as caught:
            await acquire(pool, url, check=lambda _address: False)
        assert caught.value.address == "127.0.0.1"
        await pool.close()

    with raw_server(hold) as url:
        run(main(url))
