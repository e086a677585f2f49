"""One request and its answer, as a machine without I/O: the heart of the engine.

Theory of operation
-------------------
A client that is about to send gigabytes asks first (`Expect: 100-continue`, RFC 9110 section 10.1.1) and then lives in states
that most clients do not have: it waits for leave to send (`AWAITING_CONTINUE`), it has leave but listens a moment longer as a
redirect may be right behind it (`CONTINUE_HEARD`), it was refused before it sent anything (`BODY_WITHHELD`), or it was refused
while it was sending (`BODY_ABANDONED`). Everything follows from one table, `TRANSITIONS`: (state, input) → (state, actions,
fate). A pair that is not in the table is a bug of the caller and raises `IllegalInput`.

Time is an input. The machine never looks at a clock: the caller passes `now` (seconds, any monotonic origin), arms one timer
for `deadline`, and calls `time_passed(now)` when it rings. Bytes never come here either: framing sees lengths, so that a file
can go from the page cache to the socket untouched. `next_range()` says which part of the body is to leave.

What the caller does with an action:
  SEND_BODY   parse everything that was received so far; if `state` is still BODY_LEAVING, send `next_range()`, reporting bytes
              as BODY_PROGRESS and the end as BODY_SENT
  STOP_BODY   stop the sender; report what had left as BODY_PROGRESS
  DELIVER     the answer is complete (or as complete as it will get: see `answer_cut`); look at `fate`
  FAIL        there is no answer; `failure` says which input ended the exchange

The fate of the connection is a column of the table, decided once:
  REUSE   request and answer are both complete
  CLOSE   the announced body never came. What the server takes the next bytes for differs between real servers (Ceph's beast:
          the next request; Ceph's civetweb and uvicorn: still the body), so there must be no next bytes
  RESET   bytes of an unwanted body are queued in the kernel; closing with linger 0 drops them instead of sending them
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from engine import limits
from engine.results import ExpectOutcome


class State(IntEnum):
    """Where the exchange is. Both halves in one, since few of the pairs can happen."""

    HEAD_THEN_ASK = 1  # our head is leaving; the body will wait for leave
    HEAD_THEN_BODY = 2  # our head is leaving; the body follows at once
    HEAD_ONLY = 3  # our head is leaving; there is no body
    AWAITING_CONTINUE = 4
    CONTINUE_HEARD = 5  # leave was given; listening for a final answer behind it
    BODY_LEAVING = 6
    AWAITING_ANSWER = 7  # the whole request has left
    READING_ANSWER = 8  # final head seen, after the whole request had left
    BODY_WITHHELD = 9  # final head seen before any body byte left
    BODY_ABANDONED = 10  # final head seen while the body was leaving
    DONE = 11
    FAILED = 12


class Input(IntEnum):
    """What happened. Past tense; the caller reports, the machine decides."""

    HEAD_SENT = 1  # the kernel took the last byte of our head
    CONTINUE = 2  # a 100, any reason, any fields
    INTERIM = 3  # another 1xx: no go-ahead, ends nothing
    FINAL_HEAD = 4
    FINAL_DONE = 5  # the answer's last body byte
    ANSWER_PROGRESS = 6  # some body bytes of the answer
    CONTINUE_TIMED_OUT = 7  # the wait ended, and the policy is to send
    QUIET_PASSED = 8  # nothing came behind the 100
    BODY_PROGRESS = 9  # the kernel took some body bytes
    BODY_SENT = 10  # … and the last one
    PEER_CLOSED = 11  # end of stream, reset, or what they sent is no HTTP
    RESPONSE_TIMED_OUT = 12
    STALL_TIMED_OUT = 13
    SOURCE_FAILED = 14  # the body cannot be read to its end
    CANCELLED = 15


class Action(IntEnum):
    SEND_BODY = 1
    STOP_BODY = 2
    DELIVER = 3
    FAIL = 4


class Fate(IntEnum):
    """What becomes of the connection."""

    IN_USE = 0
    REUSE = 1
    CLOSE = 2
    RESET = 3


class Timer(IntEnum):
    """Which wait a row starts. KEEP leaves the running one alone."""

    KEEP = 0
    NONE = 1
    CONTINUE = 2
    QUIET = 3
    RESPONSE = 4
    ANSWER_BODY = 5


class Row(NamedTuple):
    state: State
    actions: tuple[Action, ...] = ()
    timer: Timer = Timer.KEEP
    fate: Fate = Fate.IN_USE


class IllegalInput(AssertionError):
    """An input that cannot happen in this state: the caller has a bug."""


def _failed(fate: Fate, *actions: Action) -> Row:
    return Row(State.FAILED, (*actions, Action.FAIL), Timer.NONE, fate)


_CUT = Row(State.DONE, (Action.DELIVER,), Timer.NONE, Fate.CLOSE)
_CUT_RESET = Row(State.DONE, (Action.DELIVER,), Timer.NONE, Fate.RESET)
_S, _I = State, Input

TRANSITIONS: Final[dict[tuple[State, Input], Row]] = {
    # Our head is leaving. An answer may come already (408, 431, a proxy's 503).
    (_S.HEAD_THEN_ASK, _I.HEAD_SENT): Row(_S.AWAITING_CONTINUE, timer=Timer.CONTINUE),
    (_S.HEAD_THEN_ASK, _I.CONTINUE): Row(_S.HEAD_THEN_BODY),
    (_S.HEAD_THEN_ASK, _I.INTERIM): Row(_S.HEAD_THEN_ASK),
    (_S.HEAD_THEN_ASK, _I.FINAL_HEAD): Row(_S.BODY_WITHHELD, timer=Timer.RESPONSE),
    (_S.HEAD_THEN_ASK, _I.PEER_CLOSED): _failed(Fate.CLOSE),
    (_S.HEAD_THEN_ASK, _I.STALL_TIMED_OUT): _failed(Fate.RESET),
    (_S.HEAD_THEN_ASK, _I.CANCELLED): _failed(Fate.RESET),
    (_S.HEAD_THEN_BODY, _I.HEAD_SENT): Row(_S.BODY_LEAVING, (Action.SEND_BODY,), Timer.NONE),
    (_S.HEAD_THEN_BODY, _I.CONTINUE): Row(_S.HEAD_THEN_BODY),
    (_S.HEAD_THEN_BODY, _I.INTERIM): Row(_S.HEAD_THEN_BODY),
    (_S.HEAD_THEN_BODY, _I.FINAL_HEAD): Row(_S.BODY_WITHHELD, timer=Timer.RESPONSE),
    (_S.HEAD_THEN_BODY, _I.PEER_CLOSED): _failed(Fate.CLOSE),
    (_S.HEAD_THEN_BODY, _I.STALL_TIMED_OUT): _failed(Fate.RESET),
    (_S.HEAD_THEN_BODY, _I.CANCELLED): _failed(Fate.RESET),
    (_S.HEAD_ONLY, _I.HEAD_SENT): Row(_S.AWAITING_ANSWER, timer=Timer.RESPONSE),
    (_S.HEAD_ONLY, _I.CONTINUE): Row(_S.HEAD_ONLY),
    (_S.HEAD_ONLY, _I.INTERIM): Row(_S.HEAD_ONLY),
    (_S.HEAD_ONLY, _I.FINAL_HEAD): Row(_S.BODY_WITHHELD, timer=Timer.RESPONSE),
    (_S.HEAD_ONLY, _I.PEER_CLOSED): _failed(Fate.CLOSE),
    (_S.HEAD_ONLY, _I.STALL_TIMED_OUT): _failed(Fate.RESET),
    (_S.HEAD_ONLY, _I.CANCELLED): _failed(Fate.RESET),
    # We asked. Only a 100, a final answer or the end of the wait ends the waiting (RFC 9110 section 10.1.1).
    (_S.AWAITING_CONTINUE, _I.CONTINUE): Row(_S.CONTINUE_HEARD, timer=Timer.QUIET),
    (_S.AWAITING_CONTINUE, _I.INTERIM): Row(_S.AWAITING_CONTINUE),
    (_S.AWAITING_CONTINUE, _I.FINAL_HEAD): Row(_S.BODY_WITHHELD, timer=Timer.RESPONSE),
    (_S.AWAITING_CONTINUE, _I.CONTINUE_TIMED_OUT): Row(_S.BODY_LEAVING, (Action.SEND_BODY,), Timer.NONE),
    (_S.AWAITING_CONTINUE, _I.RESPONSE_TIMED_OUT): _failed(Fate.RESET),
    (_S.AWAITING_CONTINUE, _I.PEER_CLOSED): _failed(Fate.CLOSE),
    (_S.AWAITING_CONTINUE, _I.CANCELLED): _failed(Fate.RESET),
    (_S.CONTINUE_HEARD, _I.CONTINUE): Row(_S.CONTINUE_HEARD),
    (_S.CONTINUE_HEARD, _I.INTERIM): Row(_S.CONTINUE_HEARD),
    (_S.CONTINUE_HEARD, _I.FINAL_HEAD): Row(_S.BODY_WITHHELD, timer=Timer.RESPONSE),
    (_S.CONTINUE_HEARD, _I.QUIET_PASSED): Row(_S.BODY_LEAVING, (Action.SEND_BODY,), Timer.NONE),
    (_S.CONTINUE_HEARD, _I.PEER_CLOSED): _failed(Fate.CLOSE),
    (_S.CONTINUE_HEARD, _I.CANCELLED): _failed(Fate.RESET),
    # The body leaves; the sender keeps the time. A 100 that comes now answers a question nobody asks any more.
    (_S.BODY_LEAVING, _I.CONTINUE): Row(_S.BODY_LEAVING),
    (_S.BODY_LEAVING, _I.INTERIM): Row(_S.BODY_LEAVING),
    (_S.BODY_LEAVING, _I.BODY_PROGRESS): Row(_S.BODY_LEAVING),
    (_S.BODY_LEAVING, _I.BODY_SENT): Row(_S.AWAITING_ANSWER, timer=Timer.RESPONSE),
    (_S.BODY_LEAVING, _I.FINAL_HEAD): Row(_S.BODY_ABANDONED, (Action.STOP_BODY,), Timer.RESPONSE),
    (_S.BODY_LEAVING, _I.PEER_CLOSED): _failed(Fate.RESET, Action.STOP_BODY),
    (_S.BODY_LEAVING, _I.STALL_TIMED_OUT): _failed(Fate.RESET, Action.STOP_BODY),
    (_S.BODY_LEAVING, _I.SOURCE_FAILED): _failed(Fate.RESET, Action.STOP_BODY),
    (_S.BODY_LEAVING, _I.CANCELLED): _failed(Fate.RESET, Action.STOP_BODY),
    # The request is complete.
    (_S.AWAITING_ANSWER, _I.CONTINUE): Row(_S.AWAITING_ANSWER),
    (_S.AWAITING_ANSWER, _I.INTERIM): Row(_S.AWAITING_ANSWER),
    (_S.AWAITING_ANSWER, _I.FINAL_HEAD): Row(_S.READING_ANSWER, timer=Timer.RESPONSE),
    (_S.AWAITING_ANSWER, _I.PEER_CLOSED): _failed(Fate.CLOSE),
    (_S.AWAITING_ANSWER, _I.RESPONSE_TIMED_OUT): _failed(Fate.RESET),
    (_S.AWAITING_ANSWER, _I.CANCELLED): _failed(Fate.RESET),
    (_S.READING_ANSWER, _I.ANSWER_PROGRESS): Row(_S.READING_ANSWER, timer=Timer.ANSWER_BODY),
    (_S.READING_ANSWER, _I.FINAL_DONE): Row(_S.DONE, (Action.DELIVER,), Timer.NONE, Fate.REUSE),
    (_S.READING_ANSWER, _I.PEER_CLOSED): _failed(Fate.CLOSE),
    (_S.READING_ANSWER, _I.RESPONSE_TIMED_OUT): _failed(Fate.RESET),
    (_S.READING_ANSWER, _I.STALL_TIMED_OUT): _failed(Fate.RESET),
    (_S.READING_ANSWER, _I.CANCELLED): _failed(Fate.RESET),
    # Refused before a body byte left. The status is known: with the rest of the answer cut off or slow, it still is the answer.
    (_S.BODY_WITHHELD, _I.HEAD_SENT): Row(_S.BODY_WITHHELD),
    (_S.BODY_WITHHELD, _I.STALL_TIMED_OUT): _CUT_RESET,
    (_S.BODY_WITHHELD, _I.ANSWER_PROGRESS): Row(_S.BODY_WITHHELD),
    (_S.BODY_WITHHELD, _I.FINAL_DONE): _CUT,
    (_S.BODY_WITHHELD, _I.PEER_CLOSED): _CUT,
    (_S.BODY_WITHHELD, _I.RESPONSE_TIMED_OUT): _CUT_RESET,
    (_S.BODY_WITHHELD, _I.CANCELLED): _failed(Fate.RESET),
    # Refused while the body was leaving: the sender is stopping and may still report what the kernel had taken.
    (_S.BODY_ABANDONED, _I.BODY_PROGRESS): Row(_S.BODY_ABANDONED),
    (_S.BODY_ABANDONED, _I.ANSWER_PROGRESS): Row(_S.BODY_ABANDONED),
    (_S.BODY_ABANDONED, _I.FINAL_DONE): _CUT_RESET,
    (_S.BODY_ABANDONED, _I.PEER_CLOSED): _CUT_RESET,
    (_S.BODY_ABANDONED, _I.RESPONSE_TIMED_OUT): _CUT_RESET,
    (_S.BODY_ABANDONED, _I.CANCELLED): _failed(Fate.RESET),
    # The sender was told to stop, and reports what the kernel had taken by then.
    (_S.FAILED, _I.BODY_PROGRESS): Row(_S.FAILED, fate=Fate.RESET),
}

_TERMINAL = (State.DONE, State.FAILED)
_BEFORE_BODY = frozenset(
    {State.HEAD_THEN_ASK, State.HEAD_THEN_BODY, State.HEAD_ONLY, State.AWAITING_CONTINUE, State.CONTINUE_HEARD}
)


class Plan(NamedTuple):
    """How one exchange is to go about its body. Seconds throughout.

    Attributes:
      body_size: bytes of the body as it is framed; None when not known (chunked).
      asks: whether the head carries `Expect: 100-continue`.
      continue_wait_s: how long to wait for the go-ahead.
      send_after_wait: what follows when the wait ends: the body (True), or RESPONSE_TIMED_OUT (False).
      quiet_s: silence demanded after a 100; 0 for none.
      response_timeout_s: from the last byte of the request to the final head, and from there to the answer's end.
      streams_answer: the answer's body is wanted and may be long: the timeout then counts from its last byte.
    """

    body_size: int | None = 0
    asks: bool = False
    continue_wait_s: float = 0.0
    send_after_wait: bool = True
    quiet_s: float = 0.0
    response_timeout_s: float = limits.RESPONSE_TIMEOUT_S
    stall_timeout_s: float = limits.STALL_TIMEOUT_S
    streams_answer: bool = False


class Exchange:
    """One request/response. Feed it with `receive` and `time_passed`; do what the actions say.

    Attributes:
      state, fate: see the table. `failure` is the input that ended a FAILED exchange.
      status: of the final head, 0 before.
      deadline: when to call `time_passed`, None for never.
      body_sent: body bytes that the kernel took. body_complete: the last one, and so the whole request, left before an answer.
      continue_wait_s: seconds from HEAD_SENT to the end of the wait, 0.0 when nothing was asked.
      expect: "off", "continue", "final" or "timeout", see `PutResult.expect`.
      answer_cut: the answer's body did not come whole; its head did.
    """

    __slots__ = (
        "_deadline_input",
        "_wait_began",
        "answer_cut",
        "body_complete",
        "body_sent",
        "continue_wait_s",
        "deadline",
        "expect",
        "failure",
        "fate",
        "heard_continue",
        "plan",
        "state",
        "status",
    )

    def __init__(self, plan: Plan, now: float) -> None:
        self.plan = plan
        self.state = (
            State.HEAD_ONLY if plan.body_size == 0 else State.HEAD_THEN_ASK if plan.asks else State.HEAD_THEN_BODY
        )
        self.fate = Fate.IN_USE
        self.failure: Input | None = None
        self.status = 0
        self.body_sent = 0
        self.body_complete = False
        self.heard_continue = False
        self.answer_cut = False
        self.expect: ExpectOutcome = "off"
        self.continue_wait_s = 0.0
        self._wait_began: float | None = None
        self.deadline: float | None = now + plan.stall_timeout_s
        self._deadline_input = Input.STALL_TIMED_OUT

    @property
    def finished(self) -> bool:
        return self.state in _TERMINAL

    @property
    def succeeded(self) -> bool:
        """2xx, and the whole request had left before it came. A 2xx that comes earlier cannot mean that it was carried out."""
        return self.state is State.DONE and 200 <= self.status < 300 and self.body_complete and not self.answer_cut

    def next_range(self) -> tuple[int, int | None]:
        """Offset into the body of the next byte to leave, and how many remain (None: until the source ends)."""
        size = self.plan.body_size
        return self.body_sent, None if size is None else size - self.body_sent

    def receive(self, happened: Input, now: float, *, status: int = 0, count: int = 0) -> tuple[Action, ...]:
        """Report an input. `status` goes with FINAL_HEAD, `count` (bytes) with BODY_PROGRESS.

        Raises IllegalInput for a pair that the table does not have.
        """
        row = TRANSITIONS.get((self.state, happened))
        if row is None:
            raise IllegalInput(f"{happened.name} in {self.state.name}")
        self._record(happened, now, status, count)
        self.state, self.fate = row.state, row.fate
        if self.state is State.FAILED and self.failure is None:
            self.failure = happened
        if row.timer is not Timer.KEEP:
            self._start(row.timer, now)
        if self.state is State.CONTINUE_HEARD and self.plan.quiet_s <= 0:
            return row.actions + self.receive(Input.QUIET_PASSED, now)
        return row.actions

    def time_passed(self, now: float) -> tuple[Action, ...]:
        """Call when `deadline` has come; earlier calls do nothing."""
        if self.deadline is None or now < self.deadline:
            return ()
        self.deadline = None
        return self.receive(self._deadline_input, now)

    def _record(self, happened: Input, now: float, status: int, count: int) -> None:
        if happened is Input.CONTINUE and self.state in _BEFORE_BODY:
            self.heard_continue = True
            self._end_wait("continue", now)
        elif happened is Input.FINAL_HEAD:
            assert status >= 200
            self.status = status
            if self.state is State.AWAITING_CONTINUE:
                self._end_wait("final", now)
        elif happened is Input.CONTINUE_TIMED_OUT:
            self._end_wait("timeout", now)
        elif happened is Input.HEAD_SENT:
            self._wait_began = now
            self.body_complete = self.state is State.HEAD_ONLY
        elif happened is Input.BODY_PROGRESS:
            self.body_sent += count
            assert self.plan.body_size is None or self.body_sent <= self.plan.body_size
        elif happened is Input.BODY_SENT:
            assert self.plan.body_size is None or self.body_sent == self.plan.body_size
            self.body_complete = True
        elif self.state in (State.BODY_WITHHELD, State.BODY_ABANDONED) and happened in (
            Input.PEER_CLOSED,
            Input.RESPONSE_TIMED_OUT,
            Input.STALL_TIMED_OUT,
        ):
            self.answer_cut = True
        elif self.state is State.AWAITING_CONTINUE and happened is Input.RESPONSE_TIMED_OUT:
            self._end_wait("timeout", now)

    def _end_wait(self, expect: ExpectOutcome, now: float) -> None:
        if self.plan.asks and self.expect == "off":
            self.expect = expect
            self.continue_wait_s = 0.0 if self._wait_began is None else now - self._wait_began

    def _start(self, timer: Timer, now: float) -> None:
        plan = self.plan
        self._deadline_input = Input.RESPONSE_TIMED_OUT
        if timer is Timer.CONTINUE:
            self.deadline = now + plan.continue_wait_s
            if plan.send_after_wait:
                self._deadline_input = Input.CONTINUE_TIMED_OUT
        elif timer is Timer.QUIET:
            self.deadline = now + plan.quiet_s
            self._deadline_input = Input.QUIET_PASSED
        elif timer is Timer.RESPONSE:
            self.deadline = now + plan.response_timeout_s
        elif timer is Timer.ANSWER_BODY:
            # A trickled error must not hold the caller for ever: only an answer that is wanted renews its time.
            if plan.streams_answer and self.status < 300:
                self.deadline = now + plan.stall_timeout_s
                self._deadline_input = Input.STALL_TIMED_OUT
        else:
            self.deadline = None


class OriginFacts:
    """What an origin has shown about `Expect`. Kept by the client for its life.

    Attributes:
      answers_expect: it answered one with a 100 or a final status before the body came.
      refuses_expect: it answered 417 once; it is not asked again.
      speaks_http10: its last answer was HTTP/1.0, whose hops swallow the 100.
    """

    __slots__ = ("answers_expect", "refuses_expect", "speaks_http10")

    def __init__(self) -> None:
        self.answers_expect = False
        self.refuses_expect = False
        self.speaks_http10 = False


def plan_body(
    *,
    body_size: int | None,
    replayable: bool,
    expect: str,
    continue_timeout_s: float | str,
    facts: OriginFacts,
    is_s3: bool,
    round_trip_s: float,
    response_timeout_s: float,
    stall_timeout_s: float,
    streams_answer: bool = False,
) -> Plan:
    """Decide whether to ask, how long to wait, and what follows the wait (docs/expect.md).

    `expect` and `continue_timeout_s` are Config's; `is_s3` is True for AWS's own endpoints, which promise to answer, and no
    redirect after a 100 (AWS, "Request Redirection and the REST API"); `round_trip_s` is the connect time.
    """
    strict = expect == "strict"
    asks = body_size != 0 and (
        strict
        or (
            not facts.refuses_expect
            and not facts.speaks_http10
            and (
                expect == "always"
                or (
                    expect == "auto"
                    and (body_size is None or body_size >= limits.EXPECT_THRESHOLD_BYTES or not replayable)
                )
            )
        )
    )
    send_after_wait = not strict
    if isinstance(continue_timeout_s, (int, float)):
        wait_s = float(continue_timeout_s)
    elif strict or is_s3 or facts.answers_expect:
        # Known to answer: an answer that takes long is still an answer. No body without it.
        wait_s, send_after_wait = response_timeout_s, False
    else:
        wait_s = max(limits.CONTINUE_TIMEOUT_S, limits.CONTINUE_TIMEOUT_ROUND_TRIPS * round_trip_s)
    return Plan(
        body_size=body_size,
        asks=asks,
        continue_wait_s=wait_s,
        send_after_wait=send_after_wait,
        quiet_s=0.0 if is_s3 else _quiet_s(body_size),
        response_timeout_s=response_timeout_s,
        stall_timeout_s=stall_timeout_s,
        streams_answer=streams_answer,
    )


def _quiet_s(body_size: int | None) -> float:
    """How long to listen after a 100 for the redirect that may be right behind it (nginx sends both, microseconds apart)."""
    if body_size is None:
        return limits.QUIET_S
    if body_size < limits.QUIET_THRESHOLD_BYTES:
        return 0.0
    return min(limits.QUIET_MAX_S, max(limits.QUIET_S, body_size * limits.QUIET_PER_GIB_S / (1 << 30)))
