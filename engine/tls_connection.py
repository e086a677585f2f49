"""A connection whose bytes pass through a TLS session: the same exchange, the same sender, and records between them.

Only decrypted bytes are an answer. TLS 1.3 tickets and KeyUpdates make the socket readable and mean nothing: a body which they
interrupt goes on where it was. A body leaves in batches: read and encrypted off the loop, then one send, during which the
sender watches the peer as it does on plain TCP. The session is used by one at a time: by the loop, or by the one batch that is
being encrypted while the transport's reading is paused.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from engine import limits, tls
from engine._bodysend import Outcome, send_memory_inline
from engine.connection import Channel, Connection, stage_of
from engine.errors import ConnectionLost
from engine.exchange import Fate
from engine.wire import Origin

if TYPE_CHECKING:
    from engine.body import Body

_TRUNCATED = ConnectionResetError("was cut by the peer without a TLS close_notify, so that what came may not be all")


class TlsConnection(Connection):
    """See Connection. `session` has done its handshake on the socket that the transport was given."""

    _inline_max = limits.TLS_BATCH_BYTES

    def __init__(self, origin: Origin, channel: Channel, session: tls.Session, shared: tls.Tls) -> None:
        super().__init__(origin, channel)
        self._session = session
        self._records = session.records
        self._tls = shared
        self._remembered = False
        self._mute = (
            False  # a body was abandoned: what is encrypted of it must not leave, and nothing can leave behind it
        )
        self._heard = False  # decrypted bytes came: the peer takes us as we are
        self._refusal: ssl.SSLError | None = (
            None  # it does not; TLS 1.3 may say so before the first request, or after it
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._decrypt()  # tickets that came with the end of the handshake

    def finish(self, fate: Fate) -> bool:
        if not self._remembered and self._heard:
            self._remembered = True
            self._tls.remember(self.origin, self._session)
        return super().finish(fate)

    def close(self, *, reset: bool = False) -> None:
        if not self._closed:
            # Also when it is not sent: a session without a goodbye counts as cut off, and cannot be resumed (TLS 1.2).
            self._session.say_goodbye()
            if not (reset or self._lost.is_set()):
                self._flush()
        super().close(reset=reset)

    # --- receiving -------------------------------------------------------------------------------------------------

    def _receive(self, data: memoryview) -> None:
        self._session.feed(data)  # copied, so that the buffer can take what comes out
        self._decrypt()

    def _decrypt(self) -> None:
        buffer = self._channel.buffer
        try:
            while not self._closed and (count := self._session.read_into(buffer)):
                self._heard = True
                self._feed(buffer[:count])
        except ssl.SSLError as error:
            self._broken(error)
        if self._closed:
            return
        if self._session.closed_by_peer:
            self._feed_eof(None)
        self._flush()

    def _feed_eof(self, error: Exception | None) -> None:
        if error is None and not self._session.closed_by_peer:
            error = _TRUNCATED
        if self._refusal is not None and self._error is None:
            self._error = tls.handshake_failed(self.origin, self._refusal)
        super()._feed_eof(error)

    def _broken(self, error: ssl.SSLError) -> None:
        """An alert came, or what came cannot be decrypted."""
        if not self._heard and tls.is_refusal(error):
            self._refusal = error
        exchange = self._exchange
        if exchange is None:
            self.close(reset=True)
        elif exchange.finished:
            self._spoilt = True
        else:
            if self._refusal is None:
                why = f"{self.origin}: the connection {tls.in_words(error)}"
                self._error = ConnectionLost(why, stage=stage_of(exchange))
            self._feed_eof(error)

    # --- sending ---------------------------------------------------------------------------------------------------

    def _take_small_puts(self) -> None:
        pass  # their bytes would leave as they are

    def _coalesced(self, body: Body) -> memoryview | None:
        return None  # MSG_MORE joins the two

    def _sealed(self, head: bytes) -> bytes:
        with suppress(ssl.SSLError):  # broken already: the answer, or the loss, is about to be read
            self._session.encrypt(head)
        return self._session.take()

    def _flush(self) -> None:
        """Send what TLS has to say by itself: alerts, answers to KeyUpdates, goodbyes. While a body leaves, its next batch
        takes them along."""
        if self._hushed or self._mute or not (said := self._session.take()):
            return
        if self._head_tail:
            self._transport.write(said)
            return
        assert self._socket is not None
        sent = 0
        with suppress(OSError):
            sent = self._socket.send(said, socket.MSG_NOSIGNAL)
        self._session.put_back(said[sent:])

    def _listen(self) -> None:
        super()._listen()
        if self._exchange is not None and not (self._exchange.body_complete or self.wants_body):
            self._mute = True
        if not self._closed:
            self._flush()

    async def send_pipe(self, fd: int, count: int) -> int:
        sent = 0
        while sent < count and self.wants_body:
            readable: asyncio.Future[None] = self._loop.create_future()
            self._loop.add_reader(fd, _resolve, readable)
            try:
                if not await self.listen_until(readable):
                    break
            finally:
                self._loop.remove_reader(fd)
            piece = memoryview(os.read(fd, min(limits.TLS_BATCH_BYTES, count - sent)))
            if not piece:
                break
            sent += await self.send_memory(piece)
        return sent


class BatchingTlsConnection(TlsConnection):
    """Where native threads cannot encrypt: a batch is encrypted by the ssl module in a thread of Python's, then sent."""

    def __init__(self, origin: Origin, channel: Channel, session: tls.Session, shared: tls.Tls) -> None:
        super().__init__(origin, channel, session, shared)
        self._batch = (0, 0)  # the batch that is leaving: its bytes of payload, and encrypted
        self._batch_left = 0  # encrypted bytes of it that were not taken when its present job began

    @property
    def in_flight(self) -> int:
        if self._job is None:
            return 0
        return self._share(self._job.sent)

    async def send_file(self, fd: int, offset: int, count: int) -> int:
        return await self._send_batches(count, lambda done, most: self._seal_file(fd, offset + done, most))

    async def send_memory(self, view: memoryview, *, payload: bool = True, more: bool = False) -> int:
        if more and not payload:
            self._session.encrypt(view)  # chunk framing: leaves with the item behind it
            return view.nbytes
        return await self._send_batches(
            view.nbytes, lambda done, most: self._seal_memory(view[done : done + most]), payload=payload
        )

    def _seal_file(self, fd: int, offset: int, count: int) -> int:
        """Read and encrypt; runs in a thread. Returns how many bytes there were."""
        data = memoryview(os.pread(fd, count, offset))
        self._session.encrypt(data)
        return len(data)

    def _seal_memory(self, view: memoryview) -> int:
        self._session.encrypt(view)
        return view.nbytes

    async def _send_batches(self, count: int, seal: Callable[[int, int], int], *, payload: bool = True) -> int:
        """Returns how many of `count` bytes the kernel took. `seal(done, most)` encrypts at most `most` behind the first
        `done` and says how many; 0 is the source's end."""
        done = 0
        while done < count and self.wants_body:
            most = min(limits.TLS_BATCH_BYTES, count - done)
            try:
                sealed = await self._off_loop(partial(seal, done, most))
            except ssl.SSLError as error:
                self._broken(error)
                break
            except OSError as error:
                raise OSError(error.errno, f"reading the source: {os.strerror(error.errno or 0)}") from None
            if not sealed or not self.wants_body:
                break
            taken = await self._send_batch(sealed if payload else 0)
            done += taken if payload else sealed
        return done

    async def _send_batch(self, payload: int) -> int:
        """Send what was encrypted. Returns how many of the `payload` bytes in it the kernel took."""
        view, taken = memoryview(self._session.take()), 0
        self._batch = payload, len(view)
        self._batch_left = len(view)
        outcome = send_memory_inline(self._descriptor, view)
        while True:
            outcome = self._payload_of(outcome)
            taken += outcome.sent
            if self._settle(outcome, self._session.send_path, payload=payload > 0):
                break
            rest = view[len(view) - self._batch_left :]
            outcome = await self._run(self._channel.sender.start_memory(self._descriptor, rest, self._stall_ms))
        self._session.put_back(bytes(view[len(view) - self._batch_left :]))
        return taken

    def _share(self, sent: int) -> int:
        """Of the batch's payload, what `sent` more encrypted bytes carry. Whole batches are exact, parts are in proportion."""
        payload, sealed = self._batch
        before = sealed - self._batch_left
        return payload * (before + sent) // sealed - payload * before // sealed if sealed else 0

    def _payload_of(self, outcome: Outcome) -> Outcome:
        share = self._share(outcome.sent)
        self._batch_left -= outcome.sent
        return outcome._replace(sent=share)

    async def _off_loop(self, work: Callable[[], int]) -> int:
        """Run in a thread; when cancelled, until the thread has let go of session and source."""
        running = self._loop.run_in_executor(None, work)
        cancelled: asyncio.CancelledError | None = None
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError as error:  # noqa: PERF203
                cancelled = error
        if cancelled is not None:
            running.exception()
            raise cancelled
        return running.result()


def secured(origin: Origin, channel: Channel, session: tls.Session, shared: tls.Tls) -> TlsConnection:
    kind = TlsConnection if session.records is not None else BatchingTlsConnection
    return kind(origin, channel, session, shared)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
