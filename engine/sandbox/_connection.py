"""One accepted connection, and one request on it as its handler sees it.

Raw non-blocking sockets instead of transports: the sandbox must decide what is read when, count what the kernel holds unread,
write two answers in one segment or some microseconds apart, and reset. Nothing is read that the handler did not ask for, so
`Wire.unread_bytes` at any moment says what a client has sent too early.

Unread body bytes are drained and counted behind a final answer until the announced length is there or the client closes:
what follows an unsent body is still body here, as on nginx, Apache and uvicorn.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import fcntl
import secrets
import socket
import struct
import termios
import time
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Final

from engine.sandbox._errors import Fields, S3Error, error_document
from engine.sandbox._options import HEAD_MAX_BYTES, XML_MAX_BYTES
from engine.sandbox._records import Record
from engine.sandbox._request import ChunkDecoder, Request, parse_head

_SCRATCH_BYTES: Final = 256 * 1024
_SEND_TIMEOUT_S: Final = 60.0
BODY_IDLE_S: Final = 60.0  # S3 gives up on a silent sender after about 20 s


class Wire:
    """A connected non-blocking socket on a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock
        # The two writes of a `gap` scenario must be two segments.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def receive_into(self, view: memoryview, timeout_s: float) -> int:
        """At least one byte; 0 at the end of the stream. Raises OSError, TimeoutError."""
        while True:
            with contextlib.suppress(BlockingIOError):
                return self._sock.recv_into(view)
            await self._wait(self._loop.add_reader, self._loop.remove_reader, timeout_s)

    async def send(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            with contextlib.suppress(BlockingIOError):
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

    def unread_bytes(self) -> int:
        """What the kernel received and nobody has read."""
        answer = fcntl.ioctl(self._sock, termios.FIONREAD, b"\0\0\0\0")
        return int(struct.unpack("i", answer)[0])

    def end_sending(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        # Linger 0 turns close into RST and drops what is unsent: what was sent just now sits in the peer's queue already.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def close(self) -> None:
        self._sock.close()


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _succeed(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Exchange:
    """A request whose head was read. The handler reads the body (or not) and answers exactly once.

    Attributes a handler may set: `silent` (no 100 is ever sent), `http10` (answers say HTTP/1.0 and the connection closes),
    `extra_fields` (added to the final head), `then` ("keep", "close" or "reset": what becomes of the connection), `tamper` (one
    byte of the body is stored wrong), `hide_checksums` (the answer names none).
    """

    def __init__(self, request: Request, record: Record, wire: Wire, early: bytearray) -> None:
        self.request = request
        self.record = record
        self.wire = wire
        self.silent = False
        self.http10 = request.version == "1.0"
        self.tamper = False
        self.hide_checksums = False
        self.extra_fields: list[tuple[str, str]] = []
        self.then = "close" if request.wants_close else "keep"
        self.request_id = record.request_id = secrets.token_hex(8).upper()
        self.host_id = secrets.token_urlsafe(42)
        self._early = early  # read behind the head; what is behind the body stays for the next request
        self._left = request.length
        self._decoder = ChunkDecoder() if request.chunked else None
        self._pieces: list[memoryview] = []  # decoded, not yet taken
        self._scratch: memoryview | None = None
        if early and request.has_body:
            self._count(len(early) if request.chunked else min(len(early), request.length))

    # --- the body ---------------------------------------------------------------------------------------------------

    @property
    def body_done(self) -> bool:
        if self._decoder is not None:
            return self._decoder.done and not self._pieces
        return self._left == 0

    def delivered_bytes(self) -> int:
        """Body bytes which the kernel has received for this request, read or not."""
        return self.record.body_bytes + (0 if self.body_done else self.wire.unread_bytes())

    async def receive_into(self, view: memoryview, timeout_s: float = BODY_IDLE_S) -> int:
        """Body bytes, transfer coding removed; 0 when the body is complete.

        Raises S3Error(400 IncompleteBody) when the client closes or falls silent, OSError when the connection breaks.
        """
        if self._decoder is not None:
            return await self._receive_decoded(view, self._decoder, timeout_s)
        if not self._left:
            return 0
        view = view[: self._left]
        if self._early:
            count = min(len(view), len(self._early))
            view[:count] = self._early[:count]
            del self._early[:count]
        else:
            count = await self._receive(view, timeout_s)
        self._left -= count
        return count

    async def _receive_decoded(self, view: memoryview, decoder: ChunkDecoder, timeout_s: float) -> int:
        while not self._pieces and not decoder.done:
            if self._early:
                raw = memoryview(bytes(self._early))
                self._early.clear()
            else:
                scratch = memoryview(bytearray(_SCRATCH_BYTES))
                raw = scratch[: await self._receive(scratch, timeout_s)]
            pieces, used = decoder.feed(raw)
            self._pieces = [piece for piece in pieces if piece]
            if used < len(raw):
                self._early += raw[used:]
                self.record.body_bytes -= len(raw) - used
        if not self._pieces:
            return 0
        count = min(len(view), len(self._pieces[0]))
        view[:count] = self._pieces[0][:count]
        self._pieces[0] = self._pieces[0][count:]
        if not self._pieces[0]:
            del self._pieces[0]
        return count

    async def _receive(self, view: memoryview, timeout_s: float) -> int:
        try:
            count = await self.wire.receive_into(view, timeout_s)
        except TimeoutError:
            self.then = "close"
            raise S3Error(
                400, "RequestTimeout", "Your socket connection to the server was idle for too long."
            ) from None
        if not count:
            raise PeerClosed
        self._count(count)
        return count

    def _count(self, count: int) -> None:
        now = time.monotonic()
        self.record.body_bytes += count
        self.record.last_body_at = now
        if self.record.first_body_at is None:
            self.record.first_body_at = now

    async def read_body(self, max_bytes: int = XML_MAX_BYTES) -> bytes:
        """The whole of a small body, e.g. an XML document; asks for it when the client waits."""
        if self.request.length > max_bytes:
            raise S3Error(400, "MaxMessageLengthExceeded", "Your request was too large.")
        await self.go_ahead()
        body = bytearray()
        scratch = memoryview(bytearray(64 * 1024))
        while count := await self.receive_into(scratch):
            body += scratch[:count]
            if len(body) > max_bytes:
                raise S3Error(400, "MaxMessageLengthExceeded", "Your request was too large.")
        return bytes(body)

    async def discard(self, count: int | None = None, timeout_s: float = BODY_IDLE_S) -> int:
        """Reads and forgets `count` body bytes, or all of them. Returns how many there were."""
        if self._scratch is None:
            self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        done = 0
        while count is None or done < count:
            most = _SCRATCH_BYTES if count is None else min(_SCRATCH_BYTES, count - done)
            got = await self.receive_into(self._scratch[:most], timeout_s)
            if not got:
                break
            done += got
            await asyncio.sleep(0)
        return done

    # --- answers ----------------------------------------------------------------------------------------------------

    async def go_ahead(self) -> None:
        """100, when the client waits for one and has not been told."""
        if self.request.expects_continue and not self.silent and not self.http10 and self.record.continue_at is None:
            await self.interim(100)

    async def interim(self, status: int, fields: Fields = ()) -> None:
        await self._send_interim(self.interim_head(status, fields), status)

    async def _send_interim(self, head: bytes, status: int) -> None:
        self.note_interim(status)
        await self.wire.send(head)

    def note_interim(self, status: int) -> None:
        now = time.monotonic()
        self.record.interims = [*(self.record.interims or ()), (status, now)]
        if status == 100 and self.record.continue_at is None:
            self.record.body_bytes_at_continue = self.delivered_bytes()
            self.record.continue_at = now

    @staticmethod
    def interim_head(status: int, fields: Fields = ()) -> bytes:
        return _head("1.1", status, fields)

    async def answer(self, status: int, fields: Fields = (), body: bytes = b"", *, prefix: bytes = b"") -> None:
        """The final answer; `prefix` leaves in the same write, before it."""
        head = self._final_head(status, [*fields, *self.extra_fields], len(body))
        self.note_answer(status)
        await self.wire.send(prefix + head + (b"" if self.request.method == "HEAD" else body))

    async def answer_head(self, status: int, fields: Fields, length: int) -> None:
        """The head of an answer whose body the handler sends by itself."""
        self.note_answer(status)
        await self.wire.send(self._final_head(status, [*fields, *self.extra_fields], length))

    def note_answer(self, status: int) -> None:
        self.record.body_bytes_at_answer = self.delivered_bytes()
        self.record.answered_at = time.monotonic()
        self.record.status = status

    def _final_head(self, status: int, fields: list[tuple[str, str]], length: int) -> bytes:
        version = "1.0" if self.http10 else "1.1"
        if self.http10:
            self.then = "close"
        own = [
            ("Date", email.utils.formatdate(usegmt=True)),
            ("Server", "putengine-sandbox"),
            ("x-amz-request-id", self.request_id),
            ("x-amz-id-2", self.host_id),
        ]
        if status not in (204, 304):  # RFC 9110 section 8.6
            own.append(("Content-Length", str(length)))
        if self.then != "keep":
            own.append(("Connection", "close"))
        return _head(version, status, [*own, *fields])

    async def refuse(self, error: S3Error, *, prefix: bytes = b"") -> None:
        self.record.code = error.code
        body = error_document(error, self.request.path, self.request_id, self.host_id)
        fields = [("Content-Type", "application/xml"), *error.fields]
        if error.status in (204, 304):
            fields, body = list(error.fields), b""
        await self.answer(error.status, fields, body, prefix=prefix)


class PeerClosed(ConnectionError):
    """The client ended its side in the middle of a request."""


def _head(version: str, status: int, fields: Fields) -> bytes:
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = "Unassigned"
    lines = [f"HTTP/{version} {status} {reason}", *(f"{name}: {value}" for name, value in fields)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


Handler = Callable[[Exchange], Coroutine[Any, Any, None]]


class Connection:
    """Reads heads off a wire, hands each request to the handler, and ends or keeps the connection as it asked.

    `new_record(head, request)` is called once a request, before the handler.
    """

    def __init__(
        self,
        wire: Wire,
        handler: Handler,
        new_record: Callable[[bytes, Request | None], Record],
        idle_s: float,
        linger_s: float,
    ) -> None:
        self._wire = wire
        self._handler = handler
        self._new_record = new_record
        self._idle_s = idle_s
        self._linger_s = linger_s
        self._early = bytearray()

    async def serve(self) -> None:
        try:
            while (head := await self._read_head()) is not None:
                if not await self._serve_one(head):
                    break
        finally:
            self._wire.close()

    async def _read_head(self) -> bytes | None:
        """None when the connection ended or stayed idle between requests."""
        scratch = memoryview(bytearray(HEAD_MAX_BYTES))
        while (end := self._early.find(b"\r\n\r\n")) < 0:
            if len(self._early) > HEAD_MAX_BYTES:
                return bytes(self._early) + b"\r\n\r\n"  # parse_head refuses it below
            try:
                count = await self._wire.receive_into(scratch, self._idle_s)
            except (OSError, TimeoutError):
                return None
            if not count:
                return None
            self._early += scratch[:count]
        head = bytes(self._early[: end + 4])
        del self._early[: end + 4]
        return head

    async def _serve_one(self, head: bytes) -> bool:
        """Whether another request may follow."""
        try:
            if len(head) > HEAD_MAX_BYTES:
                raise S3Error(400, "RequestHeaderSectionTooLarge", "Your request header section exceeds the maximum.")
            request = parse_head(head)
        except S3Error as error:
            await self._refuse_unparsed(head, error)
            return False
        record = self._new_record(head, request)
        exchange = Exchange(request, record, self._wire, self._early)
        try:
            await self._handle(exchange)
            return await self._end(exchange)
        except PeerClosed:
            record.ended = record.ended or "peer-closed"
        except TimeoutError:
            record.ended = "timeout"
        except OSError:
            record.ended = "peer-reset"
        finally:
            record.complete = True
        return False

    async def _handle(self, exchange: Exchange) -> None:
        try:
            await self._handler(exchange)
        except S3Error as error:
            if exchange.record.status is not None:
                raise RuntimeError(f"refused after an answer was sent: {error}") from error
            if not exchange.body_done:
                exchange.then = "close"  # as S3 does
            await exchange.refuse(error)

    async def _refuse_unparsed(self, head: bytes, error: S3Error) -> None:
        record = self._new_record(head, None)
        request = Request("", "", "1.0", [], "/", [], "", "", 0, False)
        exchange = Exchange(request, record, self._wire, bytearray())
        try:
            await exchange.refuse(error)
            await self._end(exchange)
        except OSError:
            record.ended = "peer-reset"
        finally:
            record.complete = True

    async def _end(self, exchange: Exchange) -> bool:
        record = exchange.record
        if exchange.then == "reset":
            record.body_bytes = exchange.delivered_bytes()
            self._wire.reset()
            record.ended = "reset"
            return False
        if exchange.then == "close":
            self._wire.end_sending()
            record.ended = "closed"
        try:
            await exchange.discard(timeout_s=self._linger_s)
            if exchange.then == "keep":
                record.ended = "kept"
                return True
            await self._await_close(exchange)
        except S3Error:  # a client which neither sends the rest of its body nor closes, or a broken chunk
            record.ended = record.ended or "timeout"
        return False

    async def _await_close(self, exchange: Exchange) -> None:
        """Reads on until the client has closed too: closing with unread bytes would reset, and could destroy the answer."""
        scratch = memoryview(bytearray(_SCRATCH_BYTES))
        with contextlib.suppress(TimeoutError):
            while await self._wire.receive_into(scratch, self._linger_s):
                pass
