"""Connections by origin: making them, waiting in line, and closing while others use them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

import engine
from engine.connection import Connection
from engine.errors import ConnectFailed, UsageError
from engine.pool import Pool
from engine.wire import Origin, parse_url
from tests.peers import OK, raw_server, read_request

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
