"""A TCP relay that forwards bytes unchanged and counts them, so that "how much reached the server" is measured beside it.

Owns: the connections through it, what passed in each direction, and when. Knows nothing of the engine; of HTTP only where a
request's head ends, to tell body bytes from head bytes. Needs no root. It passes on data, end of stream and reset.

A relay is also a fresh origin: a client that has never spoken to its port knows nothing about it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

HEAD_KEPT = 64 << 10  # bytes of each direction kept to look at; heads here are below 4 KiB
PIECE = 64 << 10


class Passed(NamedTuple):
    """A piece on its way to the client: when (monotonic seconds), and what the client had sent by then (bytes)."""

    at_s: float
    client_sent: int
    data: bytes


@dataclass
class RelayedConnection:
    """What one connection carried. Complete when ``ended`` is set."""

    client_sent: int = 0
    """Bytes that arrived from the client, whether or not the server still took them."""
    server_sent: int = 0
    opening: bytearray = field(default_factory=bytearray)
    """The first HEAD_KEPT bytes of the client."""
    answers: list[Passed] = field(default_factory=list)
    """What the server sent, piece by piece, up to HEAD_KEPT bytes."""
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def head(self) -> bytes:
        """The first request's head, with its empty line."""
        head, end, _ = bytes(self.opening).partition(b"\r\n\r\n")
        return head + end

    @property
    def fields(self) -> dict[str, str]:
        """The first request's fields, names in lower case."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}

    @property
    def request_line(self) -> str:
        """The first request's first line."""
        return self.head.decode("latin-1").split("\r\n", 1)[0]

    @property
    def body_received(self) -> int:
        """Bytes from the client behind the first request's head. Meant for connections which carry one request."""
        return self.client_sent - len(self.head)

    def body_before(self, mark: bytes) -> int:
        """Body bytes the client had sent when the server's answer first contained `mark` (such as ``b" 100 "``)."""
        seen = b""
        for passed in self.answers:
            seen += passed.data
            if mark in seen:
                return passed.client_sent - len(self.head)
        raise AssertionError(f"{mark!r} is not in what the server said: {seen[:500]!r}")


class Relay:
    """Listens on a port of 127.0.0.1 that the kernel chooses, and forwards every connection to `upstream` (a URL)."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname is not None
        assert parts.port is not None
        self._upstream = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}{parts.path}"
        self.connections: list[RelayedConnection] = []
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closing = False

    def __enter__(self) -> Relay:
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing = True
        # Closing a listener does not wake the thread that accepts on it; shutting it down does.
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def settled(self, timeout_s: float = 10) -> list[RelayedConnection]:
        """Return the connections so far, each ended or idle for a while, so that their counts are final."""
        deadline = time.monotonic() + timeout_s
        connections = list(self.connections)
        while True:
            before = [(each.client_sent, each.server_sent) for each in connections]
            if all(each.ended.wait(0.1) for each in connections):
                return connections
            if before == [(each.client_sent, each.server_sent) for each in connections]:
                return connections
            assert time.monotonic() < deadline, f"still flowing after {timeout_s} s"

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._carry, client)

    def _carry(self, client: socket.socket) -> None:
        record = RelayedConnection()
        self.connections.append(record)
        try:
            server = socket.create_connection(self._upstream, 10)
        except OSError:
            reset(client)
            record.ended.set()
            return
        server.settimeout(None)
        pair = (client, server)
        for each in pair:
            # Delays of the relay's own making would hide the server's timing.
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.update(pair)
        if self._closing:
            for each in pair:
                each.shutdown(socket.SHUT_RDWR)
        back = threading.Thread(target=self._pump, args=(server, client, record, False), daemon=True)
        back.start()
        self._pump(client, server, record, True)
        back.join()
        self._open.difference_update(pair)
        for each in pair:
            each.close()
        record.ended.set()

    def _pump(self, source: socket.socket, sink: socket.socket, record: RelayedConnection, from_client: bool) -> None:
        try:
            while data := source.recv(PIECE):
                note(record, data, from_client)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            # One side has reset: the other hears a reset too, and the pump of the other direction ends.
            for each in (source, sink):
                arm_reset(each)
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RD)


def note(record: RelayedConnection, data: bytes, from_client: bool) -> None:
    """Enter a piece in the record."""
    if from_client:
        record.client_sent += len(data)
        record.opening += data[: HEAD_KEPT - len(record.opening)]
        return
    if record.server_sent < HEAD_KEPT:
        record.answers.append(Passed(time.monotonic(), record.client_sent, data))
    record.server_sent += len(data)


def arm_reset(each: socket.socket) -> None:
    """Make the socket's close a reset instead of an orderly end."""
    with contextlib.suppress(OSError):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def reset(each: socket.socket) -> None:
    """Close the socket with a reset."""
    arm_reset(each)
    each.close()
