"""One intent carried out: what is sent again and what never is, the account of every byte, time limits, clocks, credentials."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import engine
from engine import checksums, limits
from tests.peers import CONTINUE, OK, raw_server, read_head

Make = Callable[..., engine.Client]
Run = Callable[[Any], Any]
MIB = limits.MIB
ONCE = engine.Retry(max_attempts=1)
QUICK = engine.Retry(max_attempts=3, base_s=0.01, cap_s=0.02)


def redirect_to(url: str) -> bytes:
    return f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n".encode()


def chunked_body(connection: socket.socket) -> bytes:
    """A chunked request body, decoded."""
    file = connection.makefile("rb")
    body = b""
    while size := int(file.readline(), 16):
        body += file.read(size)
        assert file.readline() == b"\r\n"
    assert file.readline() == b"\r\n"
    return body


# --- what cannot be sent again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 6])
def test_an_item_that_was_in_the_making_when_a_redirect_came_goes_to_the_next_host(run: Run, size: int | None) -> None:
    """Nothing had been taken yet. Cancelling the step would end the generator, and the object stored would be empty."""
    bodies: list[bytes] = []

    def store(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(CONTINUE)
        bodies.append(chunked_body(connection) if size is None else connection.makefile("rb").read(6))
        connection.sendall(OK)

    async def slow() -> AsyncIterator[bytes]:
        await asyncio.sleep(0.2)
        yield b"abc"
        yield b"def"

    with raw_server(store) as there:

        def refuse(connection: socket.socket) -> None:
            read_head(connection)
            connection.sendall(CONTINUE)
            time.sleep(0.1)
            connection.sendall(redirect_to(f"{there}/key"))
            connection.recv(1)

        with raw_server(refuse) as here:
            result = run(engine.put_async(slow(), f"{here}/key", size=size))
    assert bodies == [b"abcdef"]
    assert [(hop.body_bytes_sent, hop.body_bytes_read) for hop in result.hops] == [(0, 0), (6, 6)]
    assert result.checksum == engine.Checksum("crc64nvme", crc64(b"abcdef"))


def test_an_item_that_had_come_and_not_left_when_a_redirect_came_goes_to_the_next_host(run: Run) -> None:
    """The answer and the item arrive in one turn of the loop: the item is given back, and the first host shows 0 and 0."""
    bodies: list[bytes] = []

    def store(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(CONTINUE)
        bodies.append(chunked_body(connection))
        connection.sendall(OK)

    with raw_server(store) as there:

        def refuse(connection: socket.socket) -> None:
            read_head(connection)
            connection.sendall(CONTINUE)
            time.sleep(0.1)
            connection.sendall(redirect_to(f"{there}/key"))
            connection.recv(1)

        async def blocking() -> AsyncIterator[bytes]:
            time.sleep(0.3)  # noqa: ASYNC251  (the loop stands still, so that both are there when it goes on)
            yield b"abc"
            yield b"def"

        with raw_server(refuse) as here:
            result = run(engine.put_async(blocking(), f"{here}/key"))
    assert bodies == [b"abcdef"]
    assert [(hop.body_bytes_sent, hop.body_bytes_read) for hop in result.hops] == [(0, 0), (6, 6)]
    assert result.checksum == engine.Checksum("crc64nvme", crc64(b"abcdef"))


def crc64(data: bytes) -> str:
    running = checksums.new("crc64nvme")
    running.update(data)
    return running.digest_base64()
