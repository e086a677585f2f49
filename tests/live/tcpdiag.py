"""What the kernel says a server's sockets received, read when they are destroyed: exact, and without touching the traffic.

Owns: one netlink socket that listens to the kernel's multicast of destroyed TCP sockets (Linux ≥ 4.9, any user). For tests
where anything between client and server would change the microseconds that matter; elsewhere :mod:`relay` does.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

# linux/sock_diag.h, linux/inet_diag.h
NETLINK_SOCK_DIAG = 4
SKNLGRP_INET_TCP_DESTROY = 1
SKNLGRP_INET6_TCP_DESTROY = 3  # also for IPv4 connections to a listener which takes both
INET_DIAG_INFO = 2
NLMSG_HEADER = struct.Struct("=IHHII")
DIAG_HEADER = struct.Struct("=BBBB")  # family, state, timer, retransmits; then the socket's identity
PORTS = struct.Struct("!HH")
DIAG_SIZE = 72
ATTRIBUTE = struct.Struct("=HH")
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; Python does not name it
TCPI_BYTES_RECEIVED = 128  # offset in struct tcp_info (linux/tcp.h)


class Destroyed(NamedTuple):
    """A TCP socket that is gone. ``bytes_received`` has everything the kernel took, read or not; a FIN counts as one."""

    local_port: int
    peer_port: int
    bytes_received: int


class DestroyedSockets:
    """Collects destroyed TCP sockets of this network namespace while it is open."""

    def __init__(self) -> None:
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
        self._netlink.bind((0, 1 << (SKNLGRP_INET_TCP_DESTROY - 1) | 1 << (SKNLGRP_INET6_TCP_DESTROY - 1)))
        # Everybody's sockets pass here. What root is allowed holds some thousand, what others are some hundred; when it is
        # too little the next read fails (ENOBUFS), so nothing is lost in silence.
        with contextlib.suppress(PermissionError):
            self._netlink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
        self._netlink.setblocking(False)
        self._seen: list[Destroyed] = []

    def __enter__(self) -> DestroyedSockets:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._netlink.close()

    def wait(self, local_port: int, peer_ports: Collection[int], timeout_s: float = 10) -> dict[int, int]:
        """Return ``bytes_received`` by peer port for these connections once all have ended. AssertionError when they don't."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._collect()
            ended = {each.peer_port: each.bytes_received for each in self._seen if each.local_port == local_port}
            if ended.keys() >= set(peer_ports):
                return {port: ended[port] for port in peer_ports}
            assert time.monotonic() < deadline, f"still there: {set(peer_ports) - ended.keys()}"
            time.sleep(0.01)

    def all_of(self, local_port: int, count: int, timeout_s: float = 10) -> list[int]:
        """Return ``bytes_received`` of every connection to this port since the beginning, once none is left.

        AssertionError when one stays, or when there were not `count` of them.
        """
        wait_for_none(local_port, timeout_s)
        deadline = time.monotonic() + timeout_s
        while True:
            # The kernel tells by a worker of its own, some time after the socket has left its tables.
            self._collect()
            ended = [each.bytes_received for each in self._seen if each.local_port == local_port]
            if len(ended) >= count or time.monotonic() > deadline:
                assert len(ended) == count, f"{len(ended)} connections instead of {count}: {ended}"
                return ended
            time.sleep(0.01)

    def _collect(self) -> None:
        while True:
            try:
                datagram = self._netlink.recv(1 << 16)
            except BlockingIOError:
                return
            self._seen += parse(datagram)


# include/net/tcp_states.h: all but SYN_SENT (ours), TIME_WAIT, CLOSE and LISTEN.
OPEN_STATES = {"01", "03", "04", "05", "08", "09", "0B", "0C"}


def wait_for_none(local_port: int, timeout_s: float = 10) -> None:
    """Return when this network namespace has no connection to the port (one in TIME_WAIT is over). AssertionError if not."""
    deadline = time.monotonic() + timeout_s
    while True:
        tables = [path.read_text() for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if path.exists()]
        rows = (line.split() for table in tables for line in table.splitlines()[1:])
        left = [row for row in rows if row[1].endswith(f":{local_port:04X}") and row[3] in OPEN_STATES]
        if not left:
            return
        assert time.monotonic() < deadline, f"connections to port {local_port} are still there: {left}"
        time.sleep(0.01)


def parse(datagram: bytes) -> list[Destroyed]:
    """Read the messages of a netlink datagram; those without a tcp_info are left out."""
    found = []
    start = 0
    while start + NLMSG_HEADER.size <= len(datagram):
        size, *_ = NLMSG_HEADER.unpack_from(datagram, start)
        body = datagram[start + NLMSG_HEADER.size : start + size]
        local_port, peer_port = PORTS.unpack_from(body, DIAG_HEADER.size)
        info = attribute(body[DIAG_SIZE:], INET_DIAG_INFO)
        if info is not None and len(info) >= TCPI_BYTES_RECEIVED + 8:
            found.append(Destroyed(local_port, peer_port, struct.unpack_from("=Q", info, TCPI_BYTES_RECEIVED)[0]))
        start += align(size)
    return found


def attribute(attributes: bytes, wanted: int) -> bytes | None:
    """Return the value of a netlink attribute."""
    start = 0
    while start + ATTRIBUTE.size <= len(attributes):
        size, kind = ATTRIBUTE.unpack_from(attributes, start)
        if kind == wanted:
            return attributes[start + ATTRIBUTE.size : start + size]
        start += align(size)
    return None


def align(size: int) -> int:
    """Round up to netlink's four bytes."""
    return (size + 3) & ~3
