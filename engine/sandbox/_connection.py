"""The life of one accepted connection: heads in, each request to a handler, then kept or ended as the exchange says.

Body bytes that nobody read are drained and counted behind a final answer, until the announced length is there or the client
closes: what follows an unsent body is still body here, as on nginx, Apache and uvicorn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Final

from engine.sandbox._errors import S3Error
from engine.sandbox._exchange import Exchange
from engine.sandbox._options import HEAD_MAX_BYTES
from engine.sandbox._records import Record
from engine.sandbox._request import Request, parse_head
from engine.sandbox._wire import Disconnected, Wire

_SCRATCH_BYTES: Final = 256 * 1024
_TLS_HANDSHAKE: Final = (
    b"\x16"  # the first byte of a client that speaks TLS to a plain port: told off at once, as nginx does
)

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
        self._opened = False

    async def serve(self) -> None:
        try:
            with contextlib.suppress(Disconnected, TimeoutError):
                await self._wire.open(self._idle_s)
                self._opened = True
            while self._opened and (head := await self._read_head()) is not None:
                if not await self._serve_one(head):
                    break
        finally:
            self._wire.close()

    async def _read_head(self) -> bytes | None:
        """None when the connection ended or stayed idle between requests."""
        scratch = memoryview(bytearray(HEAD_MAX_BYTES))
        while (end := self._early.find(b"\r\n\r\n")) < 0:
            if len(self._early) > HEAD_MAX_BYTES or self._early[:1] == _TLS_HANDSHAKE:
                return bytes(self._early) + b"\r\n\r\n"  # parse_head refuses it below
            try:
                count = await self._wire.receive_into(scratch, self._idle_s)
            except (Disconnected, TimeoutError):
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
        except Disconnected as gone:
            record.ended = record.ended or str(gone)
        except TimeoutError:
            record.ended = "timeout"
        finally:
            record.complete = True
        return False

    async def _handle(self, exchange: Exchange) -> None:
        try:
            await self._handler(exchange)
        except S3Error as error:
            if exchange.record.status is not None:
                raise RuntimeError(f"refused after an answer was sent: {error}") from error
            if not exchange.body_done and exchange.then == "keep":
                exchange.then = "close"  # as S3 does
            await exchange.refuse(error)

    async def _refuse_unparsed(self, head: bytes, error: S3Error) -> None:
        record = self._new_record(head, None)
        request = Request("", "", "1.0", [], "/", [], "", "", 0, False)
        exchange = Exchange(request, record, self._wire, bytearray())
        try:
            await exchange.refuse(error)
            await self._end(exchange)
        except (Disconnected, TimeoutError):
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
        with contextlib.suppress(Disconnected, TimeoutError):
            while await self._wire.receive_into(scratch, self._linger_s):
                pass
