"""A connected socket, under closer control than a transport gives.

The sandbox decides what is read and when, counts what the kernel holds unread, writes two answers in one segment or some
microseconds apart, and resets. Nothing is read that was not asked for, so `unread_bytes` at any moment says what a client has
sent too early.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterator
from typing import Final

_SEND_TIMEOUT_S: Final = 60.0
_TIMER_S: Final = 0.001  # below, the loop's timers are too coarse
_libc = ctypes.PyDLL(None, use_errno=True)
_TCP_ESTABLISHED: Final = 1  # include/net/tcp_states.h; the first byte of struct tcp_info


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Real-time priority for this thread, where that is permitted: on a busy machine the client which the first segment wakes
    would else often take the processor from its sender, for milliseconds."""
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameter)


class Disconnected(Exception):
    """The client is gone: "peer-closed" or "peer-reset"."""


class Wire:
    """A connected non-blocking socket on a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock
        # The two writes of a `gap` scenario must be two segments.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def open(self, timeout_s: float) -> None:
        """What comes before the first byte. Raises Disconnected, TimeoutError."""

    async def receive_into(self, view: memoryview, timeout_s: float) -> int:
        """At least one byte; 0 at the end of the stream. Raises Disconnected, TimeoutError."""
        while True:
            with contextlib.suppress(BlockingIOError), _as_disconnected():
                return self._sock.recv_into(view)
            await self.wait_readable(timeout_s)

    async def send(self, data: bytes | memoryview) -> None:
        """Raises Disconnected, TimeoutError."""
        await self._send_raw(self._sealed(data))

    def _sealed(self, data: bytes | memoryview) -> bytes | memoryview:
        """`data` as it goes onto the wire."""
        return data

    async def _send_raw(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            with contextlib.suppress(BlockingIOError), _as_disconnected():
                view = view[self._sock.send(view) :]
                continue
            await self._wait(self._loop.add_writer, self._loop.remove_writer, _SEND_TIMEOUT_S)

    async def _wait(self, add: Callable[..., None], remove: Callable[[socket.socket], bool], timeout_s: float) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, _fail, ready, TimeoutError("the peer is silent"))
        add(self._sock, _succeed, ready)
        try:
            await ready
        finally:
            remove(self._sock)
            timer.cancel()

    async def send_apart(self, first: bytes, second: bytes, gap_s: float) -> None:
        """Two segments, `gap_s` apart. Raises Disconnected, TimeoutError."""
        if gap_s >= _TIMER_S:
            await self.send(first)
            await asyncio.sleep(gap_s)
            await self.send(second)
            return
        one, two = bytes(self._sealed(first)), bytes(self._sealed(second))
        with _undisturbed():
            self._send_holding(one)
            until = time.perf_counter() + gap_s
            while time.perf_counter() < until:
                pass
            sent = self._send_holding(two)
        await self._send_raw(two[sent:])

    def _send_holding(self, data: bytes) -> int:
        """send(2) without letting go of the interpreter: the client may be a thread of this process, and once it has the
        interpreter it keeps it for milliseconds. Returns 0 when the socket's buffer is full."""
        count = _libc.send(self._sock.fileno(), data, len(data), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        error = ctypes.get_errno()
        if count < 0 and error != errno.EAGAIN:
            raise Disconnected("peer-reset") from OSError(error, os.strerror(error))
        return max(int(count), 0)

    async def wait_readable(self, timeout_s: float) -> None:
        """Until there is something to receive, the end of the stream included. Raises TimeoutError."""
        await self._wait(self._loop.add_reader, self._loop.remove_reader, timeout_s)

    def unread_bytes(self) -> int:
        """What the kernel received and nobody has read."""
        answer = fcntl.ioctl(self._sock, termios.FIONREAD, b"\0\0\0\0")
        return int(struct.unpack("i", answer)[0])

    def peer_left(self) -> bool:
        """The client has closed, ended its sending side, or reset; what it sent before may be unread still."""
        state = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return state[0] != _TCP_ESTABLISHED

    def end_sending(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        # Linger 0 turns close into RST and drops what is unsent: what was sent just now sits in the peer's queue already.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def close(self) -> None:
        self._sock.close()


@contextlib.contextmanager
def _as_disconnected() -> Iterator[None]:
    """Errors of the socket apart from those of the disk, which are OSErrors too."""
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        raise Disconnected("peer-reset") from error


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _succeed(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
