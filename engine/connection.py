"""One uvloop transport that drives one exchange at a time.

Who owns the descriptor: the transport, always. It reads, it notices the end, it closes. For everything that leaves, this class
uses a dup() of the descriptor made when the connection came about: uvloop refuses `add_writer` on a live transport's own, and
`transport.write` would copy through Python. The transport never has anything queued but the rest of a request head that did
not fit the socket's buffer at once. While a body leaves, the transport's reading is paused and the native sender watches for an
answer; when it stops, what was received is read here, on the loop. The dup is closed only when no sender uses it: a descriptor
closed under a sender may get its number reused, and a body would leave on somebody else's connection.

Not known here: S3, signatures, redirects, retries, where bodies come from.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from engine import limits
from engine._bodysend import BodySender, Job, Outcome, Stop, send_file_inline, send_memory_inline
from engine._fastparse import Event, ParseError, Response, ResponseParser
from engine._smallput import Receiver, SmallPut
from engine.errors import ConnectionLost, EngineError, ProtocolError, ResponseTimedOut, StallTimedOut
from engine.exchange import Action, Exchange, Fate, Input, Plan, State
from engine.results import SendPath
from engine.wire import Origin

if TYPE_CHECKING:
    from engine.body import Body

_REUSE = Fate.REUSE  # looking up a member costs a tenth of a µs
_LINGER_ZERO = struct.pack("ii", 1, 0)

OnBody = Callable[[int, memoryview], object]  # the final status, and a piece of the body that is valid during the call
OnInterim = Callable[[Response], object]


class Channel:
    """What connections on one loop share: the native sender and the receive buffer (parsed before the next read)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.sender = BodySender(loop)
        self.buffer = memoryview(bytearray(limits.RECEIVE_BUFFER_BYTES))

    def close(self) -> None:
        self.sender.close()


class Reply:
    """A final answer. `body` holds at most `limits.ERROR_BODY_MAX_BYTES`; a streamed body went to `on_body`."""

    __slots__ = ("body", "response")

    def __init__(self, response: Response, body: bytes) -> None:
        self.response = response
        self.body = body


class Connection(Receiver, asyncio.BufferedProtocol):
    """Made by the pool; `perform` is called for one exchange after the other, never for two at once.

    Attributes: origin, address (numeric, of the peer), connect_s (seconds the TCP handshake took: one round trip),
      used (exchanges begun), heard (whether any byte of the last exchange's answer came), flaw (why it could not be made),
      send_path (of the last body), body_s (seconds the last body took to leave).
    """

    _inline_max = limits.INLINE_BODY_MAX_BYTES  # bodies up to here are sent on the loop

    def __init__(self, origin: Origin, channel: Channel) -> None:
        self.origin = origin
        self.address = ""
        self.connect_s = 0.0
        self.used = 0
        self.heard = False
        self.send_path: SendPath = "none"
        self.body_s = 0.0
        self.flaw: OSError | None = None
        self.on_unusable: Callable[[Connection], None] | None = None
        self._channel = channel
        self._loop = channel.loop
        self._parser = ResponseParser(
            max_head=limits.HEAD_MAX_BYTES, max_fields=limits.FIELDS_MAX, body_max=limits.ERROR_BODY_MAX_BYTES
        )
        self._small: SmallPut | None = None  # in flight, as long as it has not been taken over
        self._receive_into(channel.buffer, channel.loop.create_future)
        self._transport: Any = None
        self._socket: socket.socket | None = None
        self._error: EngineError | None = None
        self._memory_path: SendPath = "send"
        self._changed: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0
        self._job: Job | None = None
        # `_spoilt`: something came after the end of an exchange: not to be used again
        self._callback_error: Exception | None = None
        self._head_tail = False  # the transport holds the rest of a head
        self._records: object = None  # of a TLS session: what the sender's bytes leave as
        self._hushed = False
        self._lost = asyncio.Event()
        self._on_interim: OnInterim | None = None
        self._on_body: OnBody | None = None

    # --- what the event loop calls ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        descriptor = transport.get_extra_info("socket").fileno()
        try:
            self._socket = socket.socket(fileno=os.dup(descriptor))
        except OSError as error:  # no descriptor is left; raised here it would only reach the loop
            self.flaw = error
            self._transport.abort()
            return
        self._socket.setblocking(False)
        self._take_small_puts()
        self._transport.set_write_buffer_limits(high=0)  # resume_writing then means: the last byte was taken

    def eof_received(self) -> bool:
        self._take_over()
        self._feed_eof(None)
        return True  # we close it ourselves, when nothing uses the descriptor any more

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        if self._head_tail:
            self._head_tail = False
            if self._exchange is not None and not self._exchange.finished:
                self._report(Input.HEAD_SENT)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set()
        self._gone = True
        self._take_over()
        self._feed_eof(exc)
        self._unusable()

    # --- one exchange ----------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Body bytes that the running sender has handed to the kernel and not reported yet."""
        return self._job.sent if self._job is not None else 0

    @property
    def answer_size(self) -> int | None:
        """Of the body of the answer that is being read, as its head tells it."""
        return self._parser.content_length

    @property
    def is_lost(self) -> bool:
        """Whether the loop has closed the descriptor."""
        return self._lost.is_set()

    @property
    def exchange(self) -> Exchange | None:
        """The one that runs."""
        return self._exchange

    async def perform(
        self,
        exchange: Exchange,
        method: str,
        head: bytes,
        body: Body | None,
        *,
        on_body: OnBody | None = None,
        on_interim: OnInterim | None = None,
        on_head_sent: Callable[[], object] | None = None,
        on_body_start: Callable[[], object] | None = None,
        begun: SmallPut | None = None,
    ) -> Reply:
        """Send a request and read its answer. `exchange` must be new, and tells afterwards what happened, errors included.
        `begun`: a small put that was taken over, whose exchange this is.

        Afterwards call `finish`. Raises ConnectionLost, ProtocolError, ResponseTimedOut, StallTimedOut, whatever the body
        raises, and CancelledError; in each of these cases the sender has let go of the descriptor when it is raised.
        """
        if begun is None:
            assert self._exchange is None, "one exchange at a time"
            self._exchange, self._error = exchange, None
            self.used += 1
            self.heard = False
            self.send_path, self.body_s = "none", 0.0
            self._parser.expect(method, self._hand_on if on_body is not None else None)
        assert self._exchange is exchange
        self._on_interim, self._on_body = on_interim, on_body
        try:
            if begun is not None:
                self._go_on(begun, body)
            elif self._closed or self._lost.is_set():
                self._feed_eof(None)
            else:
                self._send_head(head, body)
            told, with_head = False, exchange.body_sent > 0
            while not exchange.finished:
                if on_head_sent is not None and not told and exchange.state >= State.AWAITING_CONTINUE:
                    told = True
                    on_head_sent()
                if with_head and on_body_start is not None:
                    on_body_start()
                    on_body_start = None
                if exchange.state is State.BODY_LEAVING:
                    assert body is not None
                    await self._send_body(body, on_body_start)
                else:
                    await self._wait()
        except BaseException:
            if not exchange.finished:
                self._report(Input.CANCELLED)
            raise
        finally:
            self._on_interim = self._on_body = None
            self._exchange = None
        if self._callback_error is not None:
            raise self._callback_error
        if exchange.state is State.FAILED:
            raise self._failure(exchange)
        response = self._parser.response
        assert response is not None
        return Reply(response, bytes(self._parser.body))

    def finish(self, fate: Fate) -> bool:
        """Do with the connection what the exchange decided. True when it can be used again."""
        reusable = fate is _REUSE and self._parser.keep_alive and not self._parser.unused and self.usable
        if not reusable:
            self.close(reset=fate is Fate.RESET)
        return reusable

    def close(self, *, reset: bool = False) -> None:
        """Close. With `reset` the queue of unsent bytes is dropped at once (linger 0). Idempotent."""
        if self._closed:
            return
        self._closed = True
        assert self._job is None, "closed under a sender"
        if self._timer is not None:
            self._timer.cancel()
        if reset and self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        if self._transport is not None:
            if reset or self._head_tail:
                self._transport.abort()
            else:
                self._transport.close()
        if self._socket is not None:
            self._send_through(-1)
            self._socket.close()
        self._unusable()

    def abort(self, why: str) -> None:
        """End a running exchange with ConnectionLost(why), or close an idle connection."""
        self._take_over()
        exchange = self._exchange
        if exchange is None:
            self.close()
        elif not exchange.finished:
            self._error = ConnectionLost(why, stage=stage_of(exchange), retryable=False)
            self._report(Input.PEER_CLOSED)

    async def wait_closed(self) -> None:
        """Until the loop has let go of the descriptor."""
        await self._lost.wait()

    def _unusable(self) -> None:
        if self.on_unusable is not None:
            self.on_unusable(self)

    def _failure(self, exchange: Exchange) -> EngineError:
        if self._error is not None:
            return self._error
        plan = exchange.plan
        if exchange.failure is Input.STALL_TIMED_OUT:
            what, stage = ("sent", "answer") if exchange.status else ("accepted", "body")
            return StallTimedOut(
                f"{self.origin}: {what} no byte for {plan.stall_timeout_s:g} s",
                limit_s=plan.stall_timeout_s,
                stage=stage,
            )
        if exchange.failure is Input.RESPONSE_TIMED_OUT:
            if exchange.expect == "timeout":
                return ResponseTimedOut(
                    f"{self.origin}: neither go-ahead nor refusal within {plan.continue_wait_s:g} s; no body byte was sent",
                    limit_s=plan.continue_wait_s,
                    stage="continue",
                )
            return ResponseTimedOut(
                f"{self.origin}: no complete answer within {plan.response_timeout_s:g} s",
                limit_s=plan.response_timeout_s,
                stage="answer",
            )
        return ConnectionLost(f"{self.origin}: the connection ended before the answer was complete", stage="answer")

    # --- the machine -----------------------------------------------------------------------------------------------

    def _report(self, happened: Input, *, status: int = 0, count: int = 0, now: float | None = None) -> None:
        exchange = self._exchange
        assert exchange is not None
        self._obey(exchange.receive(happened, monotonic() if now is None else now, status=status, count=count))

    def _obey(self, actions: tuple[Action, ...]) -> None:
        if Action.STOP_BODY in actions and self._job is not None:
            self._job.cancel()
        self._arm()
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def _wait(self) -> None:
        """Until an input has been reported."""
        self._changed = self._loop.create_future()
        try:
            await self._changed
        finally:
            self._changed = None

    def _arm(self) -> None:
        """One timer, which rings at the deadline or before it: most deadlines are never reached, and a ring that comes early
        costs less than a timer made and cancelled for each of them."""
        exchange = self._exchange
        assert exchange is not None
        if exchange.deadline is None or (self._timer is not None and self._rings_at <= exchange.deadline):
            return
        self._arm_at(exchange.deadline)

    def _arm_at(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = deadline
        self._timer = self._loop.call_later(max(0.001, deadline - monotonic()), self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._take_over()
        if self._exchange is not None:
            self._obey(self._exchange.time_passed(monotonic()))

    # --- receiving -------------------------------------------------------------------------------------------------

    def _receive(self, data: memoryview) -> None:
        """What came off the socket."""
        self._feed(data)

    def _feed(self, data: memoryview) -> None:
        exchange = self._exchange
        if exchange is None:
            self.close()  # bytes that nobody asked for: the framing of this connection is not to be trusted any more
            return
        if exchange.finished:
            self._spoilt = True
            return
        self.heard = True
        try:
            events = self._parser.feed(data)
        except Exception as error:
            self._misfed(error)
        else:
            self._parsed(events)

    def _misfed(self, error: Exception) -> None:
        if isinstance(error, ParseError):
            self._malformed(error)
        else:  # of the caller's `on_body`: the loop must not see it, the caller must
            self._callback_error = error
            self._report(Input.PEER_CLOSED)

    def _parsed(self, events: Event) -> None:
        exchange = self._exchange
        assert exchange is not None
        if events & Event.INTERIM:
            for interim in self._parser.interims:
                if self._on_interim is not None:
                    self._on_interim(interim)
                self._report(Input.CONTINUE if interim.status == 100 else Input.INTERIM)
        if events & Event.HEAD:
            response = self._parser.response
            assert response is not None
            self._report(Input.FINAL_HEAD, status=response.status)
        if events & Event.DONE:
            self._report(Input.FINAL_DONE)
        elif events & Event.BODY:
            self._report(Input.ANSWER_PROGRESS)
            if self._parser.body_size > limits.ANSWER_DRAIN_MAX_BYTES and not exchange.finished:
                if exchange.state in (State.BODY_WITHHELD, State.BODY_ABANDONED):
                    self._report(Input.PEER_CLOSED)
                elif (
                    self._on_body is None or exchange.status >= 300
                ):  # nobody streams it: its document is kept, bounded
                    self._error = ProtocolError(
                        f"{self.origin}: the answer is longer than {limits.ANSWER_DRAIN_MAX_BYTES} bytes, and nobody reads it",
                        kind="answer-too-long",
                    )
                    self._report(Input.PEER_CLOSED)

    def _hand_on(self, piece: memoryview) -> None:
        # The parser calls in the middle of a feed, when the exchange has not heard of the head yet.
        response = self._parser.response
        assert response is not None
        assert self._on_body is not None
        self._on_body(response.status, piece)

    def _feed_eof(self, error: Exception | None) -> None:
        exchange = self._exchange
        if exchange is None:
            self.close()
            return
        if exchange.finished:
            self._spoilt = True
            return
        if error is None and self._parser.needs_eof:
            try:
                self._parsed(self._parser.feed_eof())
            except ParseError as malformed:
                self._malformed(malformed)
            if exchange.finished:
                return
        self._lose(error)

    def _malformed(self, error: ParseError) -> None:
        self._error = ProtocolError(
            f"{self.origin}: the answer is not HTTP/1.1 as accepted ({error.kind} at byte {error.offset}: {error.excerpt})",
            kind=error.kind,
            offset=error.offset,
            excerpt=error.excerpt,
        )
        exchange = self._exchange
        assert exchange is not None
        if not exchange.finished:
            self._report(Input.PEER_CLOSED)

    def _lose(self, error: BaseException | None) -> None:
        """The connection ended, and no complete answer is here."""
        exchange = self._exchange
        assert exchange is not None
        if exchange.finished:
            return
        number = getattr(error, "errno", None)
        how = (
            f"was lost ({errno.errorcode.get(number, number)}: {os.strerror(number)})"
            if number
            else str(error or "was closed by the peer")
        )
        when = {
            State.BODY_LEAVING: f"after {exchange.body_sent} body bytes had left",
            State.AWAITING_CONTINUE: "instead of a go-ahead or an answer",
            State.READING_ANSWER: "in the middle of its answer",
        }.get(exchange.state, "before an answer came")
        if self._error is None:
            self._error = ConnectionLost(
                f"{self.origin}: the connection {how} {when}", errno=number, stage=stage_of(exchange)
            )
        self._report(Input.PEER_CLOSED)

    def _receive_now(self) -> None:
        """Read and parse what the kernel holds, with the transport's reading paused. Linux keeps it across a reset."""
        exchange = self._exchange
        assert exchange is not None
        assert self._socket is not None
        while not exchange.finished:
            try:
                count = self._socket.recv_into(self._channel.buffer)
            except BlockingIOError:
                return
            except InterruptedError:
                continue
            except OSError as error:
                self._feed_eof(error)
                return
            if count == 0:
                self._feed_eof(None)
                return
            self._receive(self._channel.buffer[:count])

    def _hush(self) -> None:
        """Stop the transport's reading and parse what is there: after this, only the sender looks at the socket."""
        if not self._hushed and not self._lost.is_set():
            self._hushed = True
            self._transport.pause_reading()
        self._receive_now()

    def _listen(self) -> None:
        if self._hushed:
            self._hushed = False
            if not self._lost.is_set() and not self._closed:
                self._transport.resume_reading()

    # --- sending ---------------------------------------------------------------------------------------------------

    def _send_head(self, head: bytes, body: Body | None) -> None:
        exchange = self._exchange
        assert exchange is not None
        assert self._socket is not None
        self._arm()
        view = self._coalesced(body) if body is not None and exchange.state is State.HEAD_THEN_BODY else None
        follows = view is None and exchange.state is State.HEAD_THEN_BODY
        head = self._sealed(head)
        try:
            if view is not None:
                sent = self._socket.sendmsg([head, view], (), socket.MSG_NOSIGNAL)
            else:
                # MSG_MORE: a body that nobody is asked about shares the head's last segment.
                sent = self._socket.send(head, socket.MSG_NOSIGNAL | (socket.MSG_MORE if follows else 0))
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._receive_now()
            self._lose(error)
            return
        self._head_left(head, sent, None if view is None else view.nbytes)
        if body is not None:
            body.bytes_read += exchange.body_sent

    def _head_left(self, head: bytes, sent: int, behind: int | None, now: float | None = None) -> None:
        """The kernel took `sent` bytes of a head, and of a body of `behind` bytes that was offered together with it."""
        if sent < len(head):
            self._head_tail = True
            self._transport.write(head[sent:])
            if self._head_tail and self._transport.get_write_buffer_size() == 0:
                self.resume_writing()
            return
        self._report(Input.HEAD_SENT, now=now)
        if behind is not None and sent > len(head):
            self.send_path = "send"
            self._report(Input.BODY_PROGRESS, count=sent - len(head), now=now)
            if sent - len(head) == behind:
                self._report(Input.BODY_SENT, now=now)

    def _coalesced(self, body: Body) -> memoryview | None:
        """What of a body leaves together with the head."""
        return body.small_view()

    def _sealed(self, head: bytes) -> bytes:
        """A head as it goes onto the wire."""
        return head

    # Small puts: see `_smallput`.

    def _take_small_puts(self) -> None:
        self._send_through(self._descriptor)

    def _take_over(self) -> None:
        """Make the exchange that a small put has done without, and tell it what has happened so far."""
        small, self._small = self._small, None
        if small is None:
            return
        self._exchange, self._error = small.exchange(), None
        self.heard, self.send_path = bool(small.status), "none"
        self._arm()
        if small.error:
            self._receive_now()
            self._lose(OSError(small.error, os.strerror(small.error)))
        else:
            self._head_left(small.head, small.sent, small.size, small.sent_at)
        if small.status:
            self._report(Input.FINAL_HEAD, status=small.status, now=small.answered_at)
            self._report(Input.FINAL_DONE, now=small.answered_at)
        small.taken_over()

    def _go_on(self, begun: SmallPut, body: Body | None) -> None:
        assert body is not None
        assert self._exchange is not None
        body.bytes_read += self._exchange.body_sent
        begun.let_go()
        if begun.interrupted is not None:
            raise begun.interrupted

    async def _send_body(self, body: Body, on_body_start: Callable[[], object] | None) -> None:
        exchange = self._exchange
        assert exchange is not None
        began = monotonic()
        self._memory_path = "send" if body.replayable else "vectored"
        self._hush()
        try:
            if self.wants_body:
                if on_body_start is not None:
                    on_body_start()
                try:
                    await body.send(self, exchange.body_sent)
                except Exception:
                    if self.wants_body:
                        self._report(Input.SOURCE_FAILED)
                    raise
                if self.wants_body:
                    self._report(Input.BODY_SENT)
        finally:
            self.body_s += monotonic() - began
            self._listen()

    # What bodies use: engine.body.Wire.

    @property
    def wants_body(self) -> bool:
        return self._exchange is not None and self._exchange.state is State.BODY_LEAVING

    @property
    def body_sent(self) -> int:
        assert self._exchange is not None
        return self._exchange.body_sent

    async def send_file(self, fd: int, offset: int, count: int) -> int:
        if count <= self._inline_max:
            outcome = send_file_inline(self._descriptor, fd, offset, count, records=self._records)
            if self._settle(outcome, "sendfile"):
                return outcome.sent
            sent = outcome.sent
        else:
            sent = 0
        while sent < count and self.wants_body:
            outcome = await self._run(
                self._channel.sender.start_file(
                    self._descriptor, fd, offset + sent, count - sent, self._stall_ms, records=self._records
                )
            )
            sent += outcome.sent
            if self._settle(outcome, "sendfile"):
                break
        return sent

    async def send_pipe(self, fd: int, count: int) -> int:
        sent = 0
        while sent < count and self.wants_body:
            outcome = await self._run(
                self._channel.sender.start_pipe(self._descriptor, fd, count - sent, self._stall_ms)
            )
            sent += outcome.sent
            if self._settle(outcome, "splice"):
                break
        return sent

    async def send_memory(self, view: memoryview, *, payload: bool = True, more: bool = False) -> int:
        sent, count = 0, view.nbytes
        path: SendPath = self._memory_path
        if count <= self._inline_max and self.wants_body:
            outcome = send_memory_inline(self._descriptor, view, more=more, records=self._records)
            sent = outcome.sent
            if self._settle(outcome, path, payload=payload):
                return sent
        while sent < count and self.wants_body:
            outcome = await self._run(
                self._channel.sender.start_memory(self._descriptor, view[sent:], self._stall_ms, records=self._records)
            )
            sent += outcome.sent
            if self._settle(outcome, path, payload=payload):
                break
        return sent

    async def listen_until(self, future: asyncio.Future[Any]) -> bool:
        """Wait for `future` with an ear to the peer. False when an answer came that makes the rest of the body unwanted."""
        if future.done() and self.wants_body:
            return True
        self._listen()
        future.add_done_callback(self._wake_for)
        try:
            while not future.done() and self.wants_body:
                await self._wait()
        finally:
            future.remove_done_callback(self._wake_for)
        if self.wants_body:
            self._hush()
        return self.wants_body

    def _wake_for(self, _future: asyncio.Future[Any]) -> None:
        self._wake()

    @property
    def _descriptor(self) -> int:
        assert self._socket is not None
        return self._socket.fileno()

    @property
    def _stall_ms(self) -> int:
        assert self._exchange is not None
        return max(1, int(self._exchange.plan.stall_timeout_s * 1000))

    async def _run(self, job: Job) -> Outcome:
        """Wait for a job of the sender; when cancelled, until the sender has let go of the descriptor."""
        exchange = self._exchange
        assert exchange is not None
        ended: asyncio.Future[None] = self._loop.create_future()

        def end(_job: Job) -> None:
            if not ended.done():
                ended.set_result(None)

        job.add_done_callback(end)
        self._job = job
        cancelled: asyncio.CancelledError | None = None
        try:
            while not ended.done():
                try:
                    await asyncio.shield(ended)
                except asyncio.CancelledError as error:  # noqa: PERF203
                    cancelled = error
                    job.cancel()
        finally:
            self._job = None
        outcome = job.outcome
        assert outcome is not None
        if cancelled is not None:
            outcome = self._payload_of(outcome)
            if self.wants_body and outcome.sent:
                self._report(Input.BODY_PROGRESS, count=outcome.sent)
            raise cancelled
        return outcome

    def _payload_of(self, outcome: Outcome) -> Outcome:
        """The outcome with `sent` in bytes of the body."""
        return outcome

    def _settle(self, outcome: Outcome, path: SendPath, *, payload: bool = True) -> bool:
        """Report what the sender did. True when this call of the sender ends here, False when it is to be started again."""
        exchange = self._exchange
        assert exchange is not None
        self.send_path = outcome.path if outcome.path in ("read+send", "tls") else path  # type: ignore[assignment]
        if outcome.sent and payload:
            self._report(Input.BODY_PROGRESS, count=outcome.sent)
        stop = outcome.stop
        if stop is Stop.DONE or stop is Stop.SOURCE_ENDED:
            return True
        if stop is Stop.SOURCE_ERROR:
            raise OSError(outcome.errno, f"reading the source: {os.strerror(outcome.errno)}")
        if stop is Stop.STALLED and self.wants_body:
            self._report(Input.STALL_TIMED_OUT)
        elif stop is Stop.READABLE:
            self._receive_now()
        elif stop is Stop.SOCKET_ERROR:
            # The answer may lie in the receive queue, behind the reset that ended the sending.
            self._receive_now()
            if self.wants_body:
                self._lose(OSError(outcome.errno, os.strerror(outcome.errno)))
        return not self.wants_body


def stage_of(exchange: Exchange) -> str:
    if exchange.state is State.AWAITING_CONTINUE:
        return "continue"
    if exchange.state in (State.HEAD_THEN_ASK, State.HEAD_THEN_BODY, State.HEAD_ONLY):
        return "head"
    return "body" if exchange.state is State.BODY_LEAVING else "answer"


__all__ = ["Channel", "Connection", "Plan", "Reply"]
