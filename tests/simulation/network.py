"""What the engine takes for a kernel: names, sockets, transports, the native sender. And what passes, written down by taps.

A `Link` is one TCP connection. What the engine hands over goes through the link's tap, which reads it as HTTP on its own and
reports heads and body bytes to the referee; what a peer sends carries marks, which come to the referee when the engine has
read so far.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
import random
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from engine._bodysend import Outcome, Stop
from tests.simulation.loop import VirtualLoop

PATTERN_BYTES = 1 << 22
PATTERN = random.Random(100).randbytes(
    PATTERN_BYTES
)  # every source is a range of it, so that an offset shows in the bytes
SENDER_BEGINS_S = 0.002  # at most, after it was told to
PIECE_BYTES = 1 << 18  # of a file between two looks of the sender

Names = Callable[[str, random.Random], list[str]]  # the addresses of a host, none for a name that does not exist
CALL: contextvars.ContextVar[Any] = contextvars.ContextVar("call", default=None)


class Request:
    """One request as the tap read it."""

    def __init__(self, link: Link, call: Any, at: float) -> None:
        self.link = link
        self.call = call
        self.begun_at = at
        self.text = ""
        self.method = ""
        self.target = ""
        self.fields: dict[str, str] = {}
        self.head_sent_at: float | None = None
        self.size: int | None = 0
        self.asks = False
        self.received = 0  # body bytes, framing not counted
        self.body_at: float | None = None
        self.complete = False
        self.continue_at: float | None = None  # the engine read a 100, a final head, the answer's end
        self.final_at: float | None = None
        self.status = 0
        self.done_at: float | None = None
        self.keeps_alive = True

    def read_head(self, text: str, at: float) -> None:
        lines = text.split("\r\n")
        self.text = text
        self.method, self.target, _version = lines[0].split(" ")
        for line in lines[1:-2]:
            name, _colon, value = line.partition(": ")
            assert name.lower() not in self.fields, f"{name} twice"
            self.fields[name.lower()] = value
        self.head_sent_at = at
        self.asks = self.fields.get("expect") == "100-continue"
        self.size = None if "transfer-encoding" in self.fields else int(self.fields.get("content-length", "0"))
        self.complete = self.size == 0


class Tap:
    """Reads what the engine sends on one link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._head = bytearray()
        self._line = bytearray()
        self._chunk_left = -1  # -1: a size line comes; -2: the CRLF behind a chunk; -3: the last CRLF
        self.request: Request | None = None
        self.all: list[Request] = []

    def take(self, view: memoryview) -> None:
        while view:
            request = self.begun()
            if request.head_sent_at is None:
                view = self._take_head(request, view)
            elif request.size is not None:
                count = min(len(view), request.size - request.received)
                self._body(request, view[:count])
                request.complete = request.received == request.size
                view = view[count:]
            else:
                view = self._take_chunked(request, view)
        self._link.changed()

    def begun(self) -> Request:
        """The request under way. It begins when its head is handed over, whether the socket takes any of it or not."""
        request = self.request
        if request is None or (request.head_sent_at is not None and request.complete):
            call = self._link.writer or CALL.get()
            request = self.request = Request(self._link, call, self._link.network.loop.time())
            self.all.append(request)
            self._link.network.referee.request_begun(request)
        return request

    def take_file(self, offset: int, count: int) -> None:
        request = self.request
        assert request is not None
        assert request.size is not None
        assert request.received + count <= request.size, "more than the promised length"
        self._link.network.referee.body(request, offset, count)
        request.received += count
        request.complete = request.received == request.size
        self._link.changed()

    def _take_head(self, request: Request, view: memoryview) -> memoryview:
        before = len(self._head)
        self._head += view
        end = self._head.find(b"\r\n\r\n", max(0, before - 3))
        if end < 0:
            return view[:0]
        request.read_head(self._head[: end + 4].decode("ascii"), self._link.network.loop.time())
        self._head.clear()
        self._link.network.referee.head_sent(request)
        return view[end + 4 - before :]

    def _take_chunked(self, request: Request, view: memoryview) -> memoryview:
        if self._chunk_left > 0:
            count = min(len(view), self._chunk_left)
            self._body(request, view[:count])
            self._chunk_left -= count
            if not self._chunk_left:
                self._chunk_left = -2
            return view[count:]
        line_end = bytes(view[:20]).find(b"\n") + 1 or len(view)
        self._line += view[:line_end]
        if self._line.endswith(b"\r\n"):
            line = bytes(self._line[:-2])
            self._line.clear()
            if self._chunk_left == -1:
                self._chunk_left = int(line, 16) or -3
            else:
                assert line == b"", "no end of a chunk"
                request.complete = self._chunk_left == -3
                self._chunk_left = -1
        return view[line_end:]

    def _body(self, request: Request, view: memoryview) -> None:
        start = request.call.offset + request.received
        assert view[:8] == PATTERN[start : start + min(8, len(view))], "not the bytes that belong here"
        assert view[-8:] == PATTERN[max(start, start + len(view) - 8) : start + len(view)], (
            "not the bytes that belong here"
        )
        self._link.network.referee.body(request, start, len(view))
        request.received += len(view)


class Link:
    """One connection. The engine's side is `transport` and `duplicate`; the peer's side are the methods without a leading
    word: `send`, `close`, `reset`, `next_request`, `until`."""

    def __init__(self, network: Network, address: str, port: int) -> None:
        self.network = network
        self.address = address
        self.port = port
        self.origin: Any = None
        self.tap = Tap(self)
        self.latency = network.rng.choice([0.0, 0.0001, 0.01, 0.15])
        self.window = network.rng.choice([100, 5_000, 1 << 16, 1 << 19, 1 << 22])
        self.unread = 0
        self.reading = False
        self.inbox = bytearray()
        self.arrived_at = 0.0  # the oldest byte of it
        self.ended = False  # FIN behind the inbox
        self.broken = 0  # errno behind the inbox
        self.quiet_after = 0.0  # what was sent last arrives then: nothing overtakes it
        self.sent_down = 0
        self.delivered = 0
        self.marks: deque[tuple[int, str, int, bool]] = deque()
        self.transport: Transport | None = None
        self.job: Job | None = None
        self.lingers = False  # SO_LINGER 0
        self.writer: Any = (
            None  # whose head the transport is sending the rest of, in nobody's context or another call's
        )
        self.duplicate_closed = False
        self.transport_closed = False
        self.finished = False  # by the peer
        self._waiter: asyncio.Future[None] | None = None  # the peer's, and for what
        self._awaited: Callable[[], bool] = bool
        self._taken = 0

    # --- the engine's side -----------------------------------------------------------------------------------------

    @property
    def readable(self) -> bool:
        return bool(self.inbox) or self.ended or bool(self.broken)

    @property
    def client_closed(self) -> bool:
        return self.duplicate_closed

    @property
    def space(self) -> int:
        return max(0, self.window - self.unread)

    def hand_over(self, view: memoryview) -> int:
        """What a send() takes. Raises OSError."""
        self.check_sendable()
        count = min(self.space, len(view))
        if count:
            self._count(count)
            self.tap.take(view[:count])
        return count

    def hand_over_file(self, offset: int, count: int) -> int:
        self.check_sendable()
        count = min(self.space, count, PIECE_BYTES)
        if count:
            self._count(count)
            self.tap.take_file(offset, count)
        return count

    def check_sendable(self) -> None:
        if self.broken:
            raise OSError(self.broken, os.strerror(self.broken))
        if self.ended and self.finished:  # a closed peer answers with RST
            self.network.loop.call_later(self.latency, self._break, errno.EPIPE)

    def _count(self, count: int) -> None:
        if not self.reading:
            self.unread += count

    def receive(self, buffer: memoryview) -> int:
        """What a recv_into() gives. Raises OSError."""
        if self.inbox:
            count = min(len(self.inbox), len(buffer), self.network.rng.choice([1, 7, 1 << 16, 1 << 20]))
            buffer[:count] = self.inbox[:count]
            del self.inbox[:count]
            self.deliver(count)
            return count
        if self.broken:
            raise OSError(self.broken, os.strerror(self.broken))
        if self.ended:
            self.deliver_end()
            return 0
        raise BlockingIOError

    def deliver(self, count: int) -> None:
        self.delivered += count
        while self.marks and self.marks[0][0] <= self.delivered and self.marks[0][1] != "done-at-end":
            _end, kind, status, keeps_alive = self.marks.popleft()
            self.network.referee.heard(self, kind, status, keeps_alive)

    def deliver_end(self) -> None:
        if self.marks and self.marks[0][1] == "done-at-end" and self.marks[0][0] <= self.delivered:
            self.marks.popleft()
            self.network.referee.heard(self, "done", 0, False)

    # --- the peer's side -------------------------------------------------------------------------------------------

    def send(self, data: bytes, *marks: tuple[int, str, int, bool]) -> None:
        """Send; `marks` are (bytes from the start of `data`, kind, status, keeps alive)."""
        if self.finished:
            return
        for end, kind, status, keeps_alive in marks:
            self.marks.append((self.sent_down + end, kind, status, keeps_alive))
        self.sent_down += len(data)
        loop = self.network.loop
        at = self._next_arrival()
        if self.network.rng.random() < 0.2 and len(data) > 1:
            cut = self.network.rng.randrange(1, len(data))
            loop.call_at(at, self._arrive, data[:cut])
            at += self.network.rng.choice([0.0, 0.0005, 0.3])
            data = data[cut:]
        self.quiet_after = at
        loop.call_at(at, self._arrive, data)

    def close(self) -> None:
        if not self.finished:
            self.finished = True
            self.network.loop.call_at(self._next_arrival(), self._end)

    def reset(self) -> None:
        if not self.finished:
            self.finished = True
            self.network.loop.call_at(self._next_arrival(), self._break, errno.ECONNRESET)

    def _next_arrival(self) -> float:
        # Timers of one instant ring in any order: a nanosecond keeps what was sent in order.
        return max(self.network.loop.time() + self.latency, self.quiet_after + 1e-9)

    def read_on(self) -> None:
        """From here on all that comes is read at once."""
        self.reading, self.unread, self.window = True, 0, max(self.window, 1 << 16)
        self._poke()

    async def next_request(self) -> Request | None:
        """The next request whose head is complete; None when the engine closed."""
        number = self._taken
        if not await self.until(lambda: len(self.tap.all) > number and self.tap.all[number].head_sent_at is not None):
            return None
        self._taken += 1
        return self.tap.all[number]

    async def until(self, holds: Callable[[], bool]) -> bool:
        """Wait until something holds. False when the engine closed before, or will never hear us again."""
        while not holds():
            if self.client_closed or self.finished:
                return False
            self._waiter, self._awaited = self.network.loop.create_future(), holds
            await self._waiter
        return True

    def changed(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done() and (self.client_closed or self.finished or self._awaited()):
            waiter.set_result(None)

    def _arrive(self, data: bytes) -> None:
        if not (self.broken or self.transport_closed):
            if not self.inbox:
                self.arrived_at = self.network.loop.time()
            self.inbox += data
            self._poke()

    def _end(self) -> None:
        self.ended = True
        self._poke()

    def _break(self, number: int) -> None:
        if not self.broken:
            self.broken = number
            self._poke()

    def _poke(self) -> None:
        if self.transport is not None:
            self.transport.poke()
        if self.job is not None:
            self.job.poke()


class Socket:
    """Of a link, or of one to be. The engine has one from the handshake, which the transport keeps, and a duplicate."""

    def __init__(self, network: Network, number: int, link: Link | None = None, *, duplicate: bool = False) -> None:
        self._network = network
        self._number = number
        self._duplicate = duplicate
        self.link: Any = link
        self.closed = False

    def fileno(self) -> int:
        return -1 if self.closed else self._number

    def getpeername(self) -> tuple[str, int]:
        return self.link.address, self.link.port

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if option == socket.SO_LINGER:
            self.link.lingers = True

    def send(self, data: Any, flags: int = 0) -> int:
        return self._taken(self.link.hand_over(memoryview(data)))

    def sendmsg(self, buffers: list[Any], _ancillary: Any = (), flags: int = 0) -> int:
        first = self.link.hand_over(memoryview(buffers[0]))
        if first < len(buffers[0]):
            return self._taken(first)
        return first + sum(self.link.hand_over(memoryview(buffer).cast("B")) for buffer in buffers[1:])

    def _taken(self, count: int) -> int:
        if not count:
            raise BlockingIOError
        return count

    def recv_into(self, buffer: Any) -> int:
        received: int = self.link.receive(memoryview(buffer))
        return received

    def detach(self) -> int:
        self.closed = True
        return self._number

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._network.sockets.pop(self._number, None)
        if self._duplicate:
            assert self.link.job is None, "a descriptor was closed under a sender"
            self.link.duplicate_closed = True
            self.link.changed()
        elif self.link is not None and self.link.transport is None:  # dialled, and not wanted any more
            self.link.duplicate_closed = True
            self.link.changed()


class Transport:
    """As uvloop's TCP transport, as far as the engine goes."""

    def __init__(self, link: Link, sock: Socket, protocol: Any) -> None:
        self._link = link
        self._sock = sock
        self._protocol = protocol
        self._reading = True
        self._queue = bytearray()
        self._scheduled = False
        self._end_told = False
        self._closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._sock if name == "socket" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self.poke()

    def get_write_buffer_size(self) -> int:
        return len(self._queue)

    def write(self, data: Any) -> None:
        assert not self._closing
        self._link.writer = CALL.get()
        self._link.tap.begun()
        empty = not self._queue
        self._queue += data
        self._flush()
        if empty and self._queue:
            self._protocol.pause_writing()

    def abort(self) -> None:
        self._queue.clear()
        self.close()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._link.network.loop.call_soon(self._lose, None)

    def poke(self) -> None:
        if not self._scheduled and not self._closing:
            self._scheduled = True
            self._link.network.loop.call_soon(self._ready)

    def _ready(self) -> None:
        self._scheduled = False
        if self._closing:
            return
        if self._queue:
            self._flush()
            if not self._queue:
                self._protocol.resume_writing()
        link = self._link
        if not self._reading or self._closing:
            return
        if link.inbox:
            buffer = self._protocol.get_buffer(-1)
            self._protocol.buffer_updated(link.receive(buffer))
            self.poke()
        elif link.broken:
            self._closing = True
            self._lose(OSError(link.broken, os.strerror(link.broken)))
        elif link.ended and not self._end_told:
            self._end_told = True
            link.deliver_end()
            assert self._protocol.eof_received() is True

    def _flush(self) -> None:
        if self._queue and self._link.space and not self._link.broken:
            taken = self._link.hand_over(memoryview(bytes(self._queue)))
            del self._queue[:taken]
        if not self._queue:
            self._link.writer = None

    def _lose(self, error: Exception | None) -> None:
        self._link.transport_closed = True
        self._link.changed()
        self._protocol.connection_lost(error)


class Job:
    """A body on its way, as the native sender has it: pieces, and a look for an answer between them."""

    def __init__(
        self, link: Link, take: Callable[[int, int], int], count: int, stall_s: float, source_faults: float = 0.0
    ) -> None:
        self._source_faults = source_faults
        self.outcome: Outcome | None = None
        self.sent = 0
        self._link = link
        self._take = take
        self._count = count
        self._stall_s = stall_s
        self._cancelled = False
        self._done: list[Callable[[Job], object]] = []
        self._stalled: asyncio.TimerHandle | None = None
        self._next: asyncio.TimerHandle | None = None
        assert link.job is None, "two senders on one descriptor"
        link.job = self
        self._later()

    def add_done_callback(self, callback: Callable[[Job], object]) -> None:
        self._done.append(callback)

    def cancel(self) -> None:
        self._cancelled = True
        self.poke()

    def poke(self) -> None:
        if self._next is None and self.outcome is None:
            self._later()

    def _later(self) -> None:
        delay = self._link.network.rng.choices(
            [0.0, 0.00005, SENDER_BEGINS_S, 0.4], [10, 10, 10, 1 if self.sent else 0]
        )[0]
        self._next = self._link.network.loop.call_later(delay, self._step)

    def _step(self) -> None:
        self._next = None
        network = self._link.network
        if self._cancelled and network.rng.random() < 0.7:
            self._end(Stop.CANCELLED)
            return
        if self._source_faults and network.rng.random() < self._source_faults:
            self._end(*network.rng.choice([(Stop.SOURCE_ENDED, 0), (Stop.SOURCE_ERROR, errno.EIO)]))
            return
        try:
            taken = self._take(self.sent, self._count - self.sent)
        except OSError as error:
            self._end(Stop.SOCKET_ERROR, error.errno or 0)
            return
        self.sent += taken
        if self.sent == self._count:
            self._end(Stop.DONE)
        elif self._cancelled:
            self._end(Stop.CANCELLED)
        elif self._link.readable:
            self._end(Stop.READABLE)
        elif taken:
            self._no_stall()
            self._later()
        elif self._stalled is None:
            self._stalled = network.loop.call_later(self._stall_s, self._end, Stop.STALLED)

    def _no_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _end(self, stop: Stop, number: int = 0) -> None:
        self._no_stall()
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self.outcome = Outcome(stop, self.sent, number, "")
        self._link.job = None
        for callback in self._done:
            callback(self)


class Sender:
    """engine._bodysend.BodySender."""

    def __init__(self, loop: Any) -> None:
        self._network: Network = loop.network

    def start_file(self, sock_fd: int, file_fd: int, offset: int, count: int, stall_ms: int, **_options: Any) -> Job:
        link = self._network.link_of(sock_fd)
        take = lambda sent, left: link.hand_over_file(offset + sent, left)  # noqa: E731
        return Job(link, take, count, stall_ms / 1000, self._network.source_faults)

    def start_memory(self, sock_fd: int, buffer: Any, stall_ms: int, **_options: Any) -> Job:
        link, view = self._network.link_of(sock_fd), memoryview(buffer)
        take = lambda sent, left: link.hand_over(view[sent : sent + min(left, PIECE_BYTES)])  # noqa: E731
        return Job(link, take, len(view), stall_ms / 1000)

    def close(self) -> None:
        pass


class Network:
    """A seed's names, links and clock. `serve` is run for every link that comes about."""

    def __init__(
        self, loop: VirtualLoop, rng: random.Random, referee: Any, names: Names, *, source_faults: float
    ) -> None:
        self.loop = loop
        self.rng = rng
        self.referee = referee
        self.names = names
        self.source_faults = source_faults
        self.connect_faults = True
        self.connections = 0  # made by the engine, for numbers that are the same in every run
        self.serve: Callable[[Link], Awaitable[None]] = _serve_nobody
        self.sockets: dict[int, Socket] = {}
        self.links: list[Link] = []
        self.peers: list[asyncio.Task[None]] = []
        self._numbers = iter(range(1 << 20, 1 << 30))
        loop.network = self

    def new_socket(self, _family: int = 0, _kind: int = 0, *, fileno: int | None = None) -> Socket:
        """socket.socket"""
        if fileno is not None:
            return self.sockets[fileno]
        made = Socket(self, next(self._numbers))
        self.sockets[made.fileno()] = made
        return made

    def duplicate(self, number: int) -> int:
        """os.dup"""
        made = Socket(self, next(self._numbers), self.sockets[number].link, duplicate=True)
        self.sockets[made.fileno()] = made
        return made.fileno()

    def link_of(self, number: int) -> Link:
        link: Link = self.sockets[number].link
        return link

    async def resolve(self, host: str, port: int) -> list[Any]:
        await asyncio.sleep(self.rng.choice([0.0, 0.0, 0.01]))
        addresses = self.names(host, self.rng)
        if not addresses:
            raise socket.gaierror(self.rng.choice([socket.EAI_NONAME, socket.EAI_AGAIN]), "no such name")
        families = [(socket.AF_INET6 if ":" in address else socket.AF_INET, address) for address in addresses]
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address in families]

    async def connect(self, sock: Socket, address: Any) -> None:
        self.referee.dialled(CALL.get(), address[0])
        await asyncio.sleep(self.rng.choice([0.0, 0.0001, 0.01, 0.4]))
        chance = self.rng.random() if self.connect_faults else 1.0
        if chance < 0.02:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        if chance < 0.03:
            raise OSError(errno.EHOSTUNREACH, "no route")
        if chance < 0.04:
            await asyncio.sleep(1e6)
        sock.link = link = Link(self, address[0], address[1])
        self.links.append(link)
        self.peers.append(asyncio.ensure_future(self._serve(link)))

    async def _serve(self, link: Link) -> None:
        CALL.set(None)
        await self.serve(link)

    def adopt(self, protocol: Any, sock: Socket) -> tuple[Transport, Any]:
        link = sock.link
        link.origin = protocol.origin
        link.transport = Transport(link, sock, protocol)
        protocol.connection_made(link.transport)
        if link.readable:
            link.transport.poke()
        return link.transport, protocol

    # engine._bodysend's functions

    def send_file_inline(self, sock_fd: int, _file: int, offset: int, count: int, **_options: Any) -> Outcome:
        link = self.link_of(sock_fd)
        return self._send_inline(link, count, lambda sent, left: link.hand_over_file(offset + sent, left))

    def send_memory_inline(self, sock_fd: int, buffer: Any, **_options: Any) -> Outcome:
        link, view = self.link_of(sock_fd), memoryview(buffer).cast("B")
        return self._send_inline(link, len(view), lambda sent, left: link.hand_over(view[sent : sent + left]))

    def _send_inline(self, link: Link, count: int, take: Callable[[int, int], int]) -> Outcome:
        sent = 0
        while sent < count:
            try:
                taken = take(sent, count - sent)
            except OSError as error:
                return Outcome(Stop.SOCKET_ERROR, sent, error.errno or 0, "")
            sent += taken
            if sent < count and link.readable:
                return Outcome(Stop.READABLE, sent, 0, "")
            if not taken:
                return Outcome(Stop.WOULD_BLOCK, sent, 0, "")
        return Outcome(Stop.DONE, sent, 0, "")


async def _serve_nobody(_link: Link) -> None:
    pass


def slices(offset: int, size: int, piece: int) -> Iterator[bytes]:
    """The pattern's range as an iterator of buffers."""
    for start in range(offset, offset + size, piece):
        yield PATTERN[start : min(start + piece, offset + size)]
