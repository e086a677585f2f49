"""Again or not, when, and how a shared budget ends an outage."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import limits
from engine.errors import UsageError
from engine.retry import (
    BUDGET,
    Again,
    Budget,
    Failure,
    Fault,
    GiveUp,
    Retry,
    clock_skew,
    decide,
    is_clock_refusal,
    retry_after,
)

RETRY = Retry()
NOW = datetime(2026, 7, 28, 12, 0, 0, tzinfo=timezone.utc)


def again(failure: Failure, attempt: int = 1, **options: Any) -> Again | GiveUp:
    given_options: dict[str, Any] = {"replayable": True, "body_bytes_left": 0, "random": 0.5} | options
    return decide(RETRY, attempt, failure, **given_options)


@pytest.mark.parametrize("fault", [f for f in Fault if f is not Fault.ANSWER])
def test_every_fault_of_the_network_is_tried_again(fault: Fault) -> None:
    decision = again(Failure(fault), body_bytes_left=1000)
    assert isinstance(decision, Again)
    assert decision.fresh_connection
    assert decision.ambiguous is (fault in (Fault.STALE, Fault.LOST, Fault.STALLED, Fault.UNANSWERED))
    assert decision.counts is (fault is not Fault.STALE)


@pytest.mark.parametrize(
    ("status", "code", "tried", "ambiguous"),
    [
        (400, "", False, False),
        (400, "RequestTimeout", True, False),
        (400, "BadDigest", True, False),
        (400, "ThrottlingException", True, False),
        (400, "EntityTooLarge", False, False),
        (401, "", False, False),
        (403, "AccessDenied", False, False),
        (403, "RequestTimeTooSkewed", False, False),
        (404, "NoSuchKey", False, False),
        (408, "", True, True),
        (409, "ConditionalRequestConflict", True, False),
        (409, "OperationAborted", True, False),
        (409, "BucketAlreadyExists", False, False),
        (411, "", False, False),
        (412, "PreconditionFailed", False, False),
        (413, "", False, False),
        (416, "", False, False),
        (417, "", False, False),
        (429, "", True, False),
        (500, "InternalError", True, True),
        (501, "", False, False),
        (502, "", True, True),
        (503, "", True, True),
        (503, "SlowDown", True, True),
        (504, "", True, True),
        (505, "", False, False),
        (507, "", False, False),
        (509, "", True, False),
    ],
)
def test_answers_that_say_not_now_are_tried_again(status: int, code: str, tried: bool, ambiguous: bool) -> None:
    decision = again(Failure(Fault.ANSWER, status, code))
    if tried:
        assert isinstance(decision, Again)
        assert decision.ambiguous is ambiguous
        assert decision.fresh_connection is (status != 409)
    else:
        assert decision == GiveUp("not-retryable")


def test_botocores_retry_table_is_ours() -> None:
    from botocore.retries.standard import ThrottledRetryableChecker, TransientRetryableChecker

    from engine.s3 import is_throttled, is_transient

    for status in TransientRetryableChecker._TRANSIENT_STATUS_CODES:
        assert is_transient(status, "")
    for code in TransientRetryableChecker._TRANSIENT_ERROR_CODES:
        assert is_transient(400, code)
    # Codes of other services that S3 does not send.
    foreign = {
        "ProvisionedThroughputExceededException",
        "TransactionInProgressException",
        "LimitExceededException",
        "EC2ThrottledException",
    }
    for code in set(ThrottledRetryableChecker._THROTTLED_ERROR_CODES) - foreign:
        assert is_throttled(400, code)


@pytest.mark.parametrize("fault", list(Fault))
def test_nothing_is_tried_again_after_bytes_of_a_source_that_cannot_be_replayed(fault: Fault) -> None:
    failure = Failure(fault, 503 if fault is Fault.ANSWER else 0)
    assert again(failure, replayable=False, body_bytes_left=1) == GiveUp("not-replayable")
    assert isinstance(again(failure, replayable=False, body_bytes_left=0), Again)
    assert isinstance(again(failure, replayable=True, body_bytes_left=1), Again)


def test_the_first_reason_is_the_one_the_user_can_act_on() -> None:
    lost = Failure(Fault.ANSWER, 503)
    assert again(lost, attempt=3, replayable=False, body_bytes_left=1) == GiveUp("too-many-attempts")
    assert again(Failure(Fault.ANSWER, 404), replayable=False, body_bytes_left=1) == GiveUp("not-retryable")


@pytest.mark.parametrize("fault", list(Fault))
def test_what_must_not_be_done_twice_is_not_repeated_into_the_unknown(fault: Fault) -> None:
    decision = again(Failure(fault, 503 if fault is Fault.ANSWER else 0, idempotent=False))
    if fault in (Fault.STALE, Fault.LOST, Fault.STALLED, Fault.UNANSWERED):
        assert decision == GiveUp("not-idempotent")
    else:
        assert isinstance(decision, Again)


def test_attempts_end() -> None:
    assert isinstance(again(Failure(Fault.LOST), attempt=2), Again)
    assert again(Failure(Fault.LOST), attempt=3) == GiveUp("too-many-attempts")
    never = Retry(max_attempts=1)
    options: dict[str, Any] = {"replayable": True, "body_bytes_left": 0, "random": 0.0}
    assert decide(never, 1, Failure(Fault.LOST), **options) == GiveUp("too-many-attempts")
    # A connection that was dead before it was used is no attempt.
    assert decide(never, 1, Failure(Fault.STALE), **options) == Again(
        0.0, fresh_connection=True, counts=False, ambiguous=True
    )


@given(st.integers(1, 10_000), st.floats(0, 0.999999), st.floats(0, 100), st.floats(0, 100))
def test_the_wait_has_full_jitter_below_its_cap(attempt: int, random: float, base_s: float, cap_s: float) -> None:
    retry = Retry(max_attempts=20_000, base_s=base_s, cap_s=cap_s)
    decision = decide(retry, attempt, Failure(Fault.LOST), replayable=True, body_bytes_left=0, random=random)
    assert isinstance(decision, Again)
    assert 0 <= decision.after_s <= min(cap_s, base_s * 2.0 ** min(attempt - 1, 200))


def test_waits_grow_until_the_cap() -> None:
    retry = Retry(max_attempts=100, base_s=0.1, cap_s=20)
    waits = []
    for attempt in range(1, 20):
        decision = decide(retry, attempt, Failure(Fault.LOST), replayable=True, body_bytes_left=0, random=0.5)
        assert isinstance(decision, Again)
        waits.append(decision.after_s)
    assert waits[:4] == pytest.approx([0.05, 0.1, 0.2, 0.4])
    assert waits[-1] == 10.0


def test_retry_after_is_the_least_wait_and_too_much_is_an_error() -> None:
    for asked_s in (0.0, 2.0, limits.RETRY_AFTER_MAX_S):
        decision = again(Failure(Fault.ANSWER, 503, retry_after_s=asked_s))
        assert isinstance(decision, Again)
        assert asked_s <= decision.after_s <= asked_s + 0.1
    for asked_s in (limits.RETRY_AFTER_MAX_S + 1, math.inf):
        assert again(Failure(Fault.ANSWER, 503, retry_after_s=asked_s)) == GiveUp("retry-after-too-long")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("Tue, 28 Jul 2026 12:00:30 GMT", 30.0),
        ("Tuesday, 28-Jul-26 12:00:30 GMT", 30.0),
        ("Tue Jul 28 12:00:30 2026", 30.0),
        ("Tue, 28 Jul 2026 11:00:00 GMT", 0.0),
        ("9" * 400, math.inf),
        ("Tue, 28 Jul 2026 14:00:30 +0200", 30.0),
        ("Tue, 28 Jul 2026 12:00:30 -0000", 30.0),
        ("-1", None),
        ("1.5", None),
        ("", None),
        ("soon", None),
        ("１", None),
        ("Tue, 99 Jul 2026 12:00:30 GMT", None),
        ("Tue, 28 Jul 99999999999 12:00:30 GMT", None),
        ("x" * 100_000, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, expected: float | None) -> None:
    assert retry_after(value, NOW) == expected


@given(st.text(max_size=80))
def test_no_text_makes_the_dates_raise(value: str) -> None:
    seconds = retry_after(value, NOW)
    assert seconds is None or seconds >= 0
    assert clock_skew(value, NOW) is None or value


@pytest.mark.parametrize(
    ("minutes", "found"), [(0, False), (1, False), (-3, False), (5, True), (-16, True), (600, True)]
)
def test_a_clock_is_called_wrong_only_when_it_is(minutes: int, found: bool) -> None:
    date = (NOW + timedelta(minutes=minutes)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert clock_skew(date, NOW) == (minutes * 60 if found else None)
    assert clock_skew("", NOW) is None


def test_refusals_that_may_be_about_the_clock() -> None:
    assert is_clock_refusal(403, "RequestTimeTooSkewed")
    assert is_clock_refusal(403, "")
    assert not is_clock_refusal(403, "AccessDenied")
    assert not is_clock_refusal(400, "RequestTimeTooSkewed")


def test_a_budget_ends_an_outage_and_comes_back_with_success() -> None:
    budget = Budget(20)
    assert [budget.spend(Fault.ANSWER) for _ in range(5)] == [True] * 4 + [False]
    for _ in range(9):
        budget.refund()
    assert not budget.spend(Fault.UNANSWERED)  # a timeout costs twice as much: it has kept a connection busy
    assert budget.spend(Fault.LOST)
    assert budget.tokens == 4
    for _ in range(1000):
        budget.refund()
    assert budget.tokens == 20
    assert Budget().tokens == BUDGET


@pytest.mark.parametrize(
    "options",
    [
        {"max_attempts": 0},
        {"max_attempts": -1},
        {"max_attempts": 1.5},
        {"max_attempts": True},
        {"base_s": -1},
        {"base_s": True},
        {"base_s": math.inf},
        {"base_s": math.nan},
        {"cap_s": "1"},
        {"cap_s": None},
    ],
)
def test_a_retry_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Retry(**options)


@given(
    st.lists(st.sampled_from([f for f in Fault if f is not Fault.STALE]), min_size=40, max_size=40),
    st.integers(1, 10),
    st.booleans(),
)
def test_every_call_ends(faults: list[Fault], max_attempts: int, stale_first: bool) -> None:
    """A caller that keeps its counts as the decisions say, against a peer that fails for ever."""
    retry, attempt, tries = Retry(max_attempts), 1, 0
    script = ([Fault.STALE] if stale_first else []) + faults
    for fault in script:
        tries += 1
        failure = Failure(fault, 503 if fault is Fault.ANSWER else 0)
        decision = decide(retry, attempt, failure, replayable=True, body_bytes_left=9, random=0.0)
        if isinstance(decision, GiveUp):
            break
        attempt += decision.counts
    assert isinstance(decision, GiveUp)
    assert tries <= max_attempts + 1
