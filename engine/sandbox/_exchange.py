"""One request as its handler sees it: the body to be read or not, the answers to be given, and what a server may do wrong."""

from __future__ import annotations

import asyncio
import email.utils
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from engine.sandbox._errors import Fields, S3Error, error_document
from engine.sandbox._options import XML_MAX_BYTES
from engine.sandbox._records import Record
from engine.sandbox._request import ChunkDecoder, Request
from engine.sandbox._wire import Disconnected, Wire

BODY_IDLE_S: Final = 60.0  # S3 gives up on a silent sender after about 20 s
_SCRATCH_BYTES: Final = 256 * 1024
_LOOK_S: Final = 0.01  # how often a waiting handler looks whether its client is still there
_ODD_CONTINUE: Final = (
    b"HTTP/1.1 100 CONTINUE\r\nConnection: Close\r\nX-Odd: yes\r\n\r\n"  # as Ceph and XRootD write it
)


@dataclass(slots=True)
class Quirks:
    """How the answers to one request deviate from a plain good server's."""

    silent: bool = False  # no 100
    late: bool = False  # the 100 only when body bytes have come
    twice: bool = False  # two 100s
    odd: bool = False  # the 100 has another reason, and fields
    http10: bool = False  # says HTTP/1.0: no 100, closes
    chunked: bool = False  # the answer's body
    trickle: bool = False  # the answer comes byte by byte
    cut: bool = False  # the connection closes in the middle of the answer
    gap_s: float | None = None  # between a 100 and the answer that were to leave together
    pad: int = 0  # bytes appended to the answer's body
    tamper: bool = False  # one byte is stored wrong
    hide_checksums: bool = False  # the answer names none
    fields: list[tuple[str, str]] = field(default_factory=list)  # more of them in the final head


class Exchange:
    """A request whose head was read. The handler reads the body (or not) and answers exactly once.

    Attributes a handler may set: `quirks`, `then` ("keep", "close" or "reset": what becomes of the connection), and
      `clock_offset_s` (how wrong the Date is).
    """

    def __init__(self, request: Request, record: Record, wire: Wire, early: bytearray) -> None:
        self.request = request
        self.record = record
        self.wire = wire
        self.quirks = Quirks(http10=request.version == "1.0")
        self.then = "close" if request.wants_close else "keep"
        self.clock_offset_s = 0.0
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

        Raises Disconnected, and S3Error(400 RequestTimeout) when the client falls silent.
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
            raise Disconnected("peer-closed")
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

    async def idle(self, seconds: float) -> None:
        """Waits, reading nothing. Raises Disconnected as soon as the client leaves."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.wire.peer_left():
                self.record.body_bytes = self.delivered_bytes()
                raise Disconnected("peer-closed")
            await asyncio.sleep(min(left, _LOOK_S))

    # --- answers ----------------------------------------------------------------------------------------------------

    async def go_ahead(self) -> None:
        """100, when the client waits for one and has not been told."""
        quirks = self.quirks
        if not self.request.expects_continue or quirks.silent or quirks.http10 or self.record.continue_at is not None:
            return
        if quirks.late:
            await self.wire.wait_readable(BODY_IDLE_S)
        self.note_interim(100)
        head = _ODD_CONTINUE if quirks.odd else interim_head(100)
        await self.wire.send(head * (2 if quirks.twice else 1))

    async def interim(self, status: int, fields: Fields = ()) -> None:
        self.note_interim(status)
        await self.wire.send(interim_head(status, fields))

    def note_interim(self, status: int) -> None:
        now = time.monotonic()
        self.record.interims.append((status, now))
        if status == 100 and self.record.continue_at is None:
            self.record.body_bytes_at_continue = self.delivered_bytes()
            self.record.continue_at = now

    async def answer(self, status: int, fields: Fields = (), body: bytes = b"", *, prefix: bytes = b"") -> None:
        """The final answer; `prefix` leaves before it, in the same write or, with `quirks.gap_s`, so much earlier."""
        quirks = self.quirks
        body += b" " * quirks.pad
        content = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n" if quirks.chunked and body else body
        if quirks.cut:
            self.then = "close" if self.then == "keep" else self.then
            content = content[: len(content) // 2]
        head = self._final_head(status, fields, len(body), chunked=quirks.chunked and bool(body))
        if quirks.cut and not content:
            head = head[: len(head) // 2]
        self._note_answer(status)
        whole = head + (b"" if self.request.method == "HEAD" else content)
        if prefix and quirks.gap_s is not None:
            await self.wire.send_apart(prefix, whole, quirks.gap_s)
            self.record.answered_at = time.monotonic()
            return
        whole = prefix + whole
        for piece in _bytewise(whole) if quirks.trickle else (whole,):
            await self.wire.send(piece)
            await asyncio.sleep(0)

    async def answer_head(self, status: int, fields: Fields, length: int) -> None:
        """The head of an answer whose body the handler sends by itself."""
        self._note_answer(status)
        await self.wire.send(self._final_head(status, fields, length))

    def _note_answer(self, status: int) -> None:
        self.record.body_bytes_at_answer = self.delivered_bytes()
        self.record.answered_at = time.monotonic()
        self.record.status = status

    def _final_head(self, status: int, fields: Fields, length: int, *, chunked: bool = False) -> bytes:
        version = "1.0" if self.quirks.http10 else "1.1"
        if self.quirks.http10 and self.then == "keep":
            self.then = "close"
        own = [
            ("Date", email.utils.formatdate(time.time() + self.clock_offset_s, usegmt=True)),
            ("Server", "putengine-sandbox"),
            ("x-amz-request-id", self.request_id),
            ("x-amz-id-2", self.host_id),
        ]
        if chunked:
            own.append(("Transfer-Encoding", "chunked"))
        elif status not in (204, 304):  # RFC 9110 section 8.6
            own.append(("Content-Length", str(length)))
        if self.then != "keep":
            own.append(("Connection", "close"))
        return _head(version, status, [*own, *fields, *self.quirks.fields])

    async def refuse(self, error: S3Error, *, prefix: bytes = b"") -> None:
        self.record.code = error.code
        if error.status in (204, 304):
            await self.answer(error.status, error.fields, prefix=prefix)
            return
        body = error_document(error, self.request.path, self.request_id, self.host_id)
        await self.answer(error.status, [("Content-Type", "application/xml"), *error.fields], body, prefix=prefix)


def interim_head(status: int, fields: Fields = ()) -> bytes:
    return _head("1.1", status, fields)


def _head(version: str, status: int, fields: Fields) -> bytes:
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = "Unassigned"
    lines = [f"HTTP/{version} {status} {reason}", *(f"{name}: {value}" for name, value in fields)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _bytewise(data: bytes) -> Iterator[bytes]:
    return (data[i : i + 1] for i in range(len(data)))
