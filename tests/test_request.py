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
from tests.peers import CONTINUE, OK, raw_server, read_head, read_request

Make = Callable[..., engine.Client]
Run = Callable[[Any], Any]
MIB = limits.MIB
ONCE = engine.Retry(max_attempts=1)
IMPATIENT = engine.Config(response_timeout_s=5)
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


EXPECTATION_FAILED = b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"


def s3_error(status: int, code: str, *fields: str) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    head = "".join(f"{field}\r\n" for field in fields)
    return f"HTTP/1.1 {status} No\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    "answer",
    [
        EXPECTATION_FAILED,
        s3_error(403, "RequestTimeTooSkewed", "Date: Thu, 01 Jan 2032 00:00:00 GMT"),
        s3_error(400, "ExpiredToken"),
        s3_error(503, "SlowDown"),
        redirect_to("/elsewhere"),
    ],
    ids=["417", "clock", "credentials", "503", "307"],
)
def test_what_was_taken_from_an_iterator_is_never_followed_by_the_rest_as_if_it_were_all(
    run: Run, answer: bytes
) -> None:
    """Whatever makes the engine send the request again: an object made of the rest would be stored with a 200."""

    def late(connection: socket.socket) -> None:
        read_head(connection)
        connection.recv(5)
        connection.sendall(answer)
        connection.recv(1 << 20)

    def pieces() -> Any:
        yield b"abc"
        yield bytes(200_000)
        time.sleep(0.2)
        yield b"def"

    async def main(url: str) -> None:
        async with engine.Client(
            region="r-1", config=IMPATIENT, credentials=lambda: engine.Credentials("access", "secret")
        ) as client:
            with pytest.raises(engine.SourceNotReplayable) as caught:
                await client.put(pieces(), f"{url}/key", sign="s3", continue_timeout_s=0.05, retry=QUICK)
            assert caught.value.body_bytes_sent > 0
            assert len(caught.value.hops) == 1

    with raw_server(late) as url:
        run(main(url))


# --- what is sent again -----------------------------------------------------------------------------------------------------


def lose(connection: socket.socket) -> None:
    read_request(connection)


def answer_ok(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(OK)


@pytest.mark.parametrize(("method", "again"), [("GET", True), ("PUT", True), ("DELETE", True), ("POST", False)])
def test_a_request_that_may_have_been_carried_out_is_made_again_only_when_twice_is_as_good_as_once(
    run: Run, method: str, again: bool
) -> None:
    """RFC 9110 section 9.2.2."""

    async def main(url: str) -> engine.Response:
        async with engine.Client(config=IMPATIENT) as client:
            return await client.request(method, url, body=b"abc", retry=QUICK)

    if again:
        with raw_server(lose, answer_ok) as url:
            assert run(main(url)).status == 200
    else:
        with raw_server(lose) as url, pytest.raises(engine.ConnectionLost):
            run(main(url))
