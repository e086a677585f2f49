"""Awkward servers: raw sockets in a thread, each connection answered by a function of the test's own."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

LINGER_ZERO = struct.pack("ii", 1, 0)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@contextmanager
def raw_server(
    *answers: Callable[[Any], object],
    backlog: int = 16,
    context: ssl.SSLContext | None = None,
    at: tuple[str, int] = ("127.0.0.1", 0),
) -> Iterator[str]:
    """Yields "http://127.0.0.1:PORT", or https with a `context`: what the functions are given is then an SSLSocket.

    The n-th connection is handed to the n-th function, in a thread of its own; it is closed when the function returns. What a
    function raises fails the test, but for a client that has gone."""
    listener = socket.create_server(at, backlog=backlog)
    failed: list[BaseException] = []

    def answer(connection: socket.socket, function: Callable[[Any], object]) -> None:
        with connection:
            try:
                connection.settimeout(20)
                with suppress(ConnectionResetError, BrokenPipeError):
                    if context is None:
                        function(connection)
                        return
                    connection.setsockopt(
                        socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
                    )  # an answer waits for no ticket's ACK
                    # A failed handshake is the client's to report.
                    with suppress(ssl.SSLError), context.wrap_socket(connection, server_side=True) as secured:
                        function(secured)
            except BaseException as error:
                failed.append(error)

    def serve() -> None:
        for function in answers:
            with suppress(OSError):
                connection, _peer = listener.accept()
                thread = threading.Thread(target=answer, args=(connection, function))
                thread.start()
                threads.append(thread)

    threads = [threading.Thread(target=serve)]
    threads[0].start()
    try:
        yield f"{'https' if context else 'http'}://{at[0]}:{listener.getsockname()[1]}"
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(20)
        listener.close()
        assert not any(thread.is_alive() for thread in threads), "a test server hangs"
        if failed:
            raise failed[0]


def read_head(connection: socket.socket) -> bytes:
    """A request head; b"" when the client closed before it sent anything. Reads no byte behind it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        if not piece:
            assert not head, "the client closed in the middle of a head"
            return b""
        head += piece
    return head


def read_request(connection: socket.socket, *, goes_ahead: bool = True) -> tuple[bytes, bytes]:
    """A head and its body by Content-Length, asking for it with a 100 where the client waits for one."""
    head = read_head(connection)
    fields = head.lower()
    if goes_ahead and b"expect: 100-continue" in fields:
        connection.sendall(CONTINUE)
    left = int(fields.split(b"content-length: ")[1].split(b"\r\n")[0]) if b"content-length: " in fields else 0
    body = bytearray()
    while len(body) < left:
        piece = connection.recv(min(1 << 20, left - len(body)))
        if not piece:
            break
        body += piece
    return head, bytes(body)


def reset(connection: socket.socket) -> None:
    """The close that follows sends RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)


def descriptors() -> dict[int, str]:
    """What this process has open, by number."""
    gc.collect()
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


Verdict = bytes | str | None


def meddler(upstream: str, judge: Callable[[str, str], Verdict]) -> Callable[[Any], None]:
    """For `raw_server`: a connection whose requests go to `upstream` as they are, unless `judge(method, target)` says
    otherwise: bytes are the answer instead, given when the request's body was read; "lost" lets the request through and then
    closes instead of answering; "refuse" closes at once."""
    host, _colon, port = upstream.partition("//")[2].rpartition(":")

    def serve(client: socket.socket) -> None:
        with socket.create_connection((host, int(port))) as server:
            while head := read_head(client):
                method, target, _version = head.split(b"\r\n", 1)[0].decode().split(" ")
                verdict = judge(method, target)
                if verdict == "refuse":
                    return
                if isinstance(verdict, bytes):
                    _relay_body(client, None, head)
                    client.sendall(verdict)
                    continue
                server.sendall(head)
                if b"expect: 100-continue" in head.lower():
                    answer = read_head(server)
                    if not answer.startswith(b"HTTP/1.1 100"):
                        client.sendall(answer + _answer_body(server, answer))
                        return
                _relay_body(client, server, head)
                answer = read_head(server)
                answer += _answer_body(server, answer) if method != "HEAD" else b""
                if verdict == "lost":
                    return
                client.sendall(answer)

    return serve


def _relay_body(client: socket.socket, server: socket.socket | None, head: bytes) -> None:
    lowered = head.lower()
    if b"expect: 100-continue" in lowered:
        client.sendall(CONTINUE)
    left = int(lowered.split(b"content-length: ")[1].split(b"\r\n")[0]) if b"content-length: " in lowered else 0
    while left:
        piece = client.recv(min(1 << 16, left))
        if not piece:
            raise BrokenPipeError
        left -= len(piece)
        if server is not None:
            server.sendall(piece)


def _answer_body(server: socket.socket, head: bytes) -> bytes:
    left = (
        int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]) if b"content-length: " in head.lower() else 0
    )
    body = b""
    while len(body) < left:
        piece = server.recv(left - len(body))
        assert piece
        body += piece
    return body
