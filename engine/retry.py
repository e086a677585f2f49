"""Again? When? Pure decisions; the caller sleeps, counts and connects.

What is tried again is what can be expected to go better: faults of the network, answers that say "not now". Never after body
bytes have left a source that cannot be read again. Every wait has full jitter ("Exponential backoff and jitter", AWS
Architecture Blog): clients that failed together do not come back together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Final

from engine import limits
from engine.errors import UsageError
from engine.s3 import is_transient

CLOCK_SKEW_MIN_S: Final = 240.0  # S3 takes 15 min, MinIO and Ceph too; below that the clock is not what was wrong
_EXPONENT_MAX: Final = 30  # 2**30 × any base is above any cap
# botocore's standard mode: 500 tokens, an attempt costs 5, after a timeout 10, a success gives 1 back.
BUDGET: Final = 500
BUDGET_COST: Final = 5
BUDGET_TIMEOUT_COST: Final = 10
BUDGET_REFUND: Final = 1


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how slowly. `max_attempts` counts the first one: 1 never tries again. Before attempt n + 1 it waits
    random(0 … min(cap_s, base_s × 2ⁿ⁻¹)) seconds. Raises UsageError."""

    max_attempts: int = limits.RETRY_MAX_ATTEMPTS
    base_s: float = limits.RETRY_BASE_S
    cap_s: float = limits.RETRY_CAP_S

    def __post_init__(self) -> None:
        if not isinstance(self.max_attempts, int) or isinstance(self.max_attempts, bool) or self.max_attempts < 1:
            raise UsageError("Retry: max_attempts is a whole number of at least 1 (the first attempt counts)")
        for name, value in (("base_s", self.base_s), ("cap_s", self.cap_s)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise UsageError(f"Retry: {name} is a number of seconds, 0 or more")


class Fault(Enum):
    """What ended an attempt. What is not here (a bad certificate, an answer that is not HTTP, an error of the source) is never
    tried again."""

    NO_CONNECTION = "no connection came about: refused, unreachable, name not found, closed during the TLS handshake"
    CONNECT_TIMED_OUT = "connect_timeout_s passed"
    STALE = "a reused connection died before any byte of the answer"
    LOST = "the connection died otherwise"
    STALLED = "stall_timeout_s passed"
    UNANSWERED = "response_timeout_s passed"
    ANSWER = "a final status"


@dataclass(frozen=True, slots=True)
class Failure:
    """Attributes:
    status, code: of an ANSWER; 0 and "" otherwise.
    retry_after_s: as `retry_after` read it, None when the server did not say.
    idempotent: whether doing it twice is as good as once (RFC 9110 section 9.2.2): PUT, DELETE, GET, HEAD are; of S3's POSTs
      CompleteMultipartUpload is, and CreateMultipartUpload may be called so, for all that a lost one leaves behind is an
      empty upload.
    """

    fault: Fault
    status: int = 0
    code: str = ""
    retry_after_s: float | None = None
    idempotent: bool = True


@dataclass(frozen=True, slots=True)
class Again:
    """Try again.

    Attributes:
      after_s: seconds to wait before.
      fresh_connection: take no pooled connection; the name is resolved anew and, where there are several, another address
        comes first. S3's guide asks for it: the next server may be well.
      counts: whether this uses up one of `max_attempts`.
      ambiguous: the server may have carried the request out although we never saw the answer. If a later attempt of a
        conditional write then gets 412, it may have met its own object: `s3.error_for(maybe_own=True)`.
    """

    after_s: float
    fresh_connection: bool
    counts: bool
    ambiguous: bool


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Raise the error. `reason`: "not-retryable", "too-many-attempts", "not-replayable" (all else spoke for another attempt),
    "not-idempotent", "retry-after-too-long"."""

    reason: str


_AMBIGUOUS: Final = frozenset({Fault.STALE, Fault.LOST, Fault.STALLED, Fault.UNANSWERED})
# Statuses by which a gateway says that it does not know what became of the request.
_AMBIGUOUS_STATUSES: Final = frozenset({408, 500, 502, 503, 504})


def decide(
    retry: Retry,
    attempt: int,
    failure: Failure,
    *,
    replayable: bool,
    body_bytes_left: int,
    random: float,
) -> Again | GiveUp:
    """What to do after `failure`, which ended attempt number `attempt` (from 1).

    `replayable`: the source can be read again. `body_bytes_left`: body bytes of this attempt that left the source, sent or not.
    `random`: uniform in [0, 1).

    A STALE connection is tried again at once and not counted: servers close idle connections whenever they like (S3 after about
    5 s), so the fault says nothing about the server, and every browser and Go's client do the same. It cannot go on for ever,
    because the new connection is fresh, and a fresh one that dies is LOST. `max_attempts=1` does not forbid it.
    """
    fault = failure.fault
    ambiguous = fault in _AMBIGUOUS or failure.status in _AMBIGUOUS_STATUSES
    if fault is Fault.ANSWER and not is_transient(failure.status, failure.code):
        return GiveUp("not-retryable")
    if fault is not Fault.STALE and attempt >= retry.max_attempts:
        return GiveUp("too-many-attempts")
    if body_bytes_left and not replayable:
        return GiveUp("not-replayable")
    if fault in _AMBIGUOUS and not failure.idempotent:
        return GiveUp("not-idempotent")
    if fault is Fault.STALE:
        return Again(0.0, fresh_connection=True, counts=False, ambiguous=True)
    asked_s = failure.retry_after_s or 0.0
    if asked_s > limits.RETRY_AFTER_MAX_S:
        return GiveUp("retry-after-too-long")
    jitter_s = random * min(retry.cap_s, retry.base_s * 2 ** min(attempt - 1, _EXPONENT_MAX))
    # 409: the store is well, and the same server knows best when the conflict is over.
    fresh = failure.status != 409
    return Again(asked_s + jitter_s, fresh_connection=fresh, counts=True, ambiguous=ambiguous)


class Budget:
    """Tokens shared by all calls of a client, so that an outage is not met with `max_attempts` times the load.

    Ask `spend` before acting on an `Again` that counts; call `refund` after each call that succeeded.
    """

    __slots__ = ("_capacity", "_tokens")

    def __init__(self, capacity: int = BUDGET) -> None:
        self._capacity = capacity
        self._tokens = capacity

    @property
    def tokens(self) -> int:
        return self._tokens

    @property
    def is_full(self) -> bool:
        """Whether a refund would change nothing."""
        return self._tokens == self._capacity

    def spend(self, fault: Fault) -> bool:
        """Whether there was enough for one more attempt, which is paid for now."""
        timed_out = fault in (Fault.CONNECT_TIMED_OUT, Fault.STALLED, Fault.UNANSWERED)
        cost = BUDGET_TIMEOUT_COST if timed_out else BUDGET_COST
        if cost > self._tokens:
            return False
        self._tokens -= cost
        return True

    def refund(self) -> None:
        self._tokens = min(self._capacity, self._tokens + BUDGET_REFUND)


def retry_after(value: str, now: datetime) -> float | None:
    """Seconds of a Retry-After field (RFC 9110 section 10.2.3: seconds, or a date), 0 for a date gone by, None when it is
    neither. `now`: aware, UTC."""
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text)  # infinity above 308 digits
    date = _parse_date(text)
    return None if date is None else max(0.0, (date - now).total_seconds())


def is_clock_refusal(status: int, code: str) -> bool:
    """Whether the answer may mean that our clock is wrong; a HEAD's 403 has no code. `clock_skew` then tells whether it is."""
    return status == 403 and code in ("", "RequestTimeTooSkewed", "RequestExpired")


def clock_skew(date: str, now: datetime) -> float | None:
    """Seconds to add to our clock to have the server's, from its Date field; None when it has none, or the difference is too
    small to have been the reason (S3 takes ±15 minutes). `now`: aware, UTC, at the time of the answer."""
    there = _parse_date(date.strip())
    if there is None:
        return None
    skew_s = (there - now).total_seconds()
    return skew_s if abs(skew_s) >= CLOCK_SKEW_MIN_S else None


def _parse_date(text: str) -> datetime | None:
    if len(text) > 64:
        return None
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date.replace(tzinfo=timezone.utc) if date.tzinfo is None else date
