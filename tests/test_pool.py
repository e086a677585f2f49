"""Connections by origin: making them, waiting in line, and closing while others use them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

import engine
from engine.body import open_body
from engine.connection import Connection
from engine.errors import ConnectFailed, UsageError
from engine.exchange import Exchange, Fate, Plan
from engine.pool import Pool
from engine.wire import Origin, parse_url
from tests.peers import OK, raw_server, read_head, read_request

Run = Callable[[Any], Any]


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
        while not exchange.finished:
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
        while not connection.in_flight:
            await asyncio.sleep(0.001)
        time.sleep(0.3)  # noqa: ASYNC251  (the loop stands still: the stall waits to be delivered)
        closing = asyncio.ensure_future(pool.close())
        with pytest.raises(engine.ConnectionLost, match="closed"):
            await performing
        pool.release(connection, exchange.fate)
        await closing

    with raw_server(stall) as url:
        run(main(url))
