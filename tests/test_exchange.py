"""The exchange machine: every state with every input, the rules of the waiting, and random runs against the invariants."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import limits
from engine.exchange import (
    TRANSITIONS,
    Action,
    Exchange,
    Fate,
    IllegalInput,
    Input,
    OriginFacts,
    Plan,
    State,
    plan_body,
)

S, I, A = State, Input, Action  # noqa: E741
SIZE = 1000

ASKING = Plan(body_size=SIZE, asks=True, continue_wait_s=1.0, response_timeout_s=60.0)
TELLING = Plan(body_size=SIZE)
BARE = Plan(body_size=0)
STRICT = ASKING._replace(send_after_wait=False)


def run(plan: Plan, *inputs: tuple[Input, dict[str, int]] | Input) -> Exchange:
    """Drive a fresh exchange through `inputs`, one second apart."""
    exchange = Exchange(plan, 0.0)
    for second, step in enumerate(inputs, 1):
        happened, facts = step if isinstance(step, tuple) else (step, {})
        exchange.receive(happened, float(second), **facts)
    return exchange


def final(status: int) -> tuple[Input, dict[str, int]]:
    return I.FINAL_HEAD, {"status": status}


def progress(count: int) -> tuple[Input, dict[str, int]]:
    return I.BODY_PROGRESS, {"count": count}


# One way to each state, by inputs alone.
WAYS: dict[State, tuple[Plan, tuple[tuple[Input, dict[str, int]] | Input, ...]]] = {
    S.HEAD_THEN_ASK: (ASKING, ()),
    S.HEAD_THEN_BODY: (TELLING, ()),
    S.HEAD_ONLY: (BARE, ()),
    S.AWAITING_CONTINUE: (ASKING, (I.HEAD_SENT,)),
    S.CONTINUE_HEARD: (ASKING._replace(quiet_s=0.001), (I.HEAD_SENT, I.CONTINUE)),
    S.BODY_LEAVING: (TELLING, (I.HEAD_SENT,)),
    S.AWAITING_ANSWER: (TELLING, (I.HEAD_SENT, progress(SIZE), I.BODY_SENT)),
    S.READING_ANSWER: (TELLING, (I.HEAD_SENT, progress(SIZE), I.BODY_SENT, final(200))),
    S.BODY_WITHHELD: (ASKING, (I.HEAD_SENT, final(307))),
    S.BODY_ABANDONED: (TELLING, (I.HEAD_SENT, progress(10), final(403))),
    S.DONE: (BARE, (I.HEAD_SENT, final(200), I.FINAL_DONE)),
    S.FAILED: (TELLING, (I.PEER_CLOSED,)),
}


def test_there_is_a_way_to_every_state() -> None:
    assert set(WAYS) == set(State)
    for state, (plan, way) in WAYS.items():
        assert run(plan, *way).state is state


@pytest.mark.parametrize(("state", "happened"), list(itertools.product(State, Input)), ids=lambda v: v.name)
def test_every_state_with_every_input(state: State, happened: Input) -> None:
    plan, way = WAYS[state]
    exchange = run(plan, *way)
    facts = {I.FINAL_HEAD: {"status": 403}, I.BODY_PROGRESS: {"count": 1}}.get(happened, {})
    if happened is I.BODY_SENT and state is S.BODY_LEAVING:
        exchange.receive(I.BODY_PROGRESS, 50.0, count=SIZE)
    row = TRANSITIONS.get((state, happened))
    if row is None:
        with pytest.raises(IllegalInput, match=f"{happened.name} in {state.name}"):
            exchange.receive(happened, 99.0, **facts)
        assert exchange.state is state
        return
    actions = exchange.receive(happened, 99.0, **facts)
    if row.state is not S.CONTINUE_HEARD or plan.quiet_s:
        assert (exchange.state, exchange.fate, actions) == (row.state, row.fate, row.actions)
    if exchange.finished:
        assert exchange.fate is not Fate.IN_USE
        assert exchange.deadline is None
        assert (A.FAIL in actions) == (exchange.state is S.FAILED and state is not S.FAILED)


def test_the_table_is_what_it_is_meant_to_be() -> None:
    """The fate of the connection, and what may be reused, read off the table."""
    for (state, happened), row in TRANSITIONS.items():
        if row.fate is Fate.REUSE:
            assert (state, happened) == (S.READING_ANSWER, I.FINAL_DONE)
        if row.state in (S.DONE, S.FAILED):
            assert row.fate is not Fate.IN_USE
        if A.SEND_BODY in row.actions:
            assert happened in (I.HEAD_SENT, I.CONTINUE_TIMED_OUT, I.QUIET_PASSED)
        if happened is I.CANCELLED:
            assert (row.state, row.fate) == (S.FAILED, Fate.RESET)
    for state in State:
        if state not in (S.DONE, S.FAILED):
            assert (state, I.CANCELLED) in TRANSITIONS
            assert (state, I.PEER_CLOSED) in TRANSITIONS


def test_final_answer_before_the_body_withholds_it_and_closes() -> None:
    exchange = run(ASKING, I.HEAD_SENT, final(307), I.FINAL_DONE)
    assert (exchange.state, exchange.fate) == (S.DONE, Fate.CLOSE)
    assert (exchange.body_sent, exchange.expect, exchange.continue_wait_s) == (0, "final", 1.0)
    assert not exchange.succeeded


def test_final_answer_in_mid_body_stops_it_and_resets() -> None:
    exchange = run(TELLING, I.HEAD_SENT, progress(400))
    assert exchange.next_range() == (400, 600)
    assert A.STOP_BODY in exchange.receive(I.FINAL_HEAD, 9.0, status=403)
    exchange.receive(I.BODY_PROGRESS, 9.1, count=50)
    exchange.receive(I.FINAL_DONE, 9.2)
    assert (exchange.state, exchange.fate, exchange.body_sent) == (S.DONE, Fate.RESET, 450)


@pytest.mark.parametrize("happened", [I.INTERIM])
def test_102_and_103_are_no_go_ahead_and_do_not_prolong_the_wait(happened: Input) -> None:
    exchange = run(ASKING, I.HEAD_SENT)
    deadline = exchange.deadline
    assert exchange.receive(happened, 1.5) == ()
    assert (exchange.state, exchange.deadline) == (S.AWAITING_CONTINUE, deadline)


def test_the_wait_starts_when_the_head_has_left() -> None:
    exchange = Exchange(ASKING, 0.0)
    assert exchange.deadline == limits.STALL_TIMEOUT_S
    exchange.receive(I.HEAD_SENT, 5.0)
    assert exchange.deadline == 6.0
    assert exchange.time_passed(5.999) == ()
    assert exchange.time_passed(6.0) == (A.SEND_BODY,)
    assert (exchange.expect, exchange.continue_wait_s) == ("timeout", 1.0)


def test_100_with_silence_demanded_holds_the_body_until_it_passed() -> None:
    exchange = run(ASKING._replace(quiet_s=0.001), I.HEAD_SENT)
    assert exchange.receive(I.CONTINUE, 1.5) == ()
    assert exchange.state is S.CONTINUE_HEARD
    assert exchange.time_passed(1.5005) == ()
    assert exchange.time_passed(1.501) == (A.SEND_BODY,)
    assert exchange.expect == "continue"


def test_100_and_307_microseconds_apart_sends_nothing() -> None:
    exchange = run(ASKING._replace(quiet_s=0.001), I.HEAD_SENT, I.CONTINUE, final(307), I.FINAL_DONE)
    assert (exchange.state, exchange.fate, exchange.body_sent) == (S.DONE, Fate.CLOSE, 0)


def test_100_without_silence_demanded_lets_the_body_go_at_once() -> None:
    exchange = run(ASKING, I.HEAD_SENT)
    assert exchange.receive(I.CONTINUE, 1.5) == (A.SEND_BODY,)
    assert exchange.state is S.BODY_LEAVING


def test_strict_never_sends_without_leave() -> None:
    exchange = run(STRICT, I.HEAD_SENT)
    assert exchange.time_passed(2.0) == (A.FAIL,)
    assert (exchange.failure, exchange.fate, exchange.body_sent) == (I.RESPONSE_TIMED_OUT, Fate.RESET, 0)
    assert exchange.expect == "timeout"


def test_2xx_before_the_whole_body_is_no_success() -> None:
    assert not run(TELLING, I.HEAD_SENT, progress(999), final(200), I.FINAL_DONE).succeeded
    assert not run(ASKING, I.HEAD_SENT, final(201), I.FINAL_DONE).succeeded
    assert run(TELLING, I.HEAD_SENT, progress(1000), I.BODY_SENT, final(200), I.FINAL_DONE).succeeded
    assert not run(TELLING, I.HEAD_SENT, progress(1000), I.BODY_SENT, final(307), I.FINAL_DONE).succeeded


def test_a_refusal_whose_body_is_cut_off_is_still_the_answer() -> None:
    for cut in (I.PEER_CLOSED, I.RESPONSE_TIMED_OUT):
        exchange = run(TELLING, I.HEAD_SENT, progress(5), final(403), cut)
        assert (exchange.state, exchange.status, exchange.answer_cut) == (S.DONE, 403, True)


def test_a_success_that_is_cut_off_is_none() -> None:
    exchange = run(TELLING, I.HEAD_SENT, progress(1000), I.BODY_SENT, final(200), I.PEER_CLOSED)
    assert (exchange.state, exchange.failure) == (S.FAILED, I.PEER_CLOSED)


def test_only_an_answer_that_is_wanted_renews_its_time() -> None:
    download = run(BARE._replace(streams_answer=True, stall_timeout_s=7.0), I.HEAD_SENT, final(200))
    download.receive(I.ANSWER_PROGRESS, 50.0)
    assert download.deadline == 57.0
    trickled = run(BARE._replace(response_timeout_s=10.0), I.HEAD_SENT, final(500))
    trickled.receive(I.ANSWER_PROGRESS, 11.0)
    assert trickled.deadline == 12.0


def test_a_body_sent_that_does_not_add_up_is_our_bug() -> None:
    exchange = run(TELLING, I.HEAD_SENT, progress(SIZE - 1))
    with pytest.raises(AssertionError):
        exchange.receive(I.BODY_SENT, 9.0)


@given(seed=st.integers(0, 2**32))
def test_random_peers_keep_the_invariants(seed: int) -> None:
    """A body byte leaves only after a 100, the end of the wait, or when nothing was asked; success implies 2xx and every byte;
    a connection is reused only when both messages are complete; every run ends."""
    rng = random.Random(seed)
    size = rng.choice([0, 1, 7, None])
    plan = Plan(
        body_size=size,
        asks=size != 0 and rng.random() < 0.7,
        continue_wait_s=rng.choice([0.0, 1.0]),
        send_after_wait=rng.random() < 0.7,
        quiet_s=rng.choice([0.0, 0.001]),
        response_timeout_s=5.0,
        stall_timeout_s=3.0,
        streams_answer=rng.random() < 0.3,
    )
    exchange, now, seen = Exchange(plan, 0.0), 0.0, []
    for _step in range(200):
        if exchange.finished:
            break
        now += rng.random()
        choices = [happened for happened in Input if (exchange.state, happened) in TRANSITIONS]
        happened = rng.choice(choices)
        if happened in (I.CONTINUE_TIMED_OUT, I.QUIET_PASSED, I.RESPONSE_TIMED_OUT, I.STALL_TIMED_OUT):
            exchange.time_passed(now)  # time decides which of them it is
            continue
        left = 3 if size is None else size - exchange.body_sent
        if happened is I.BODY_PROGRESS and left == 0:
            continue
        if happened is I.BODY_SENT and size is not None and left:
            exchange.receive(I.BODY_PROGRESS, now, count=left)
        seen.append(happened)
        exchange.receive(happened, now, status=rng.choice([200, 307, 403, 503]), count=rng.randint(1, max(1, left)))
        if exchange.body_sent and plan.asks:
            assert I.CONTINUE in seen or exchange.expect == "timeout"
        if plan.asks and not plan.send_after_wait and exchange.body_sent:
            assert I.CONTINUE in seen
    now += 1000.0
    while not exchange.finished:  # silence ends every run, but for a body whose sender keeps the time
        if exchange.deadline is None:
            assert exchange.state is S.BODY_LEAVING
            exchange.receive(I.STALL_TIMED_OUT, now)
        exchange.time_passed(now)
        now += 1000.0
    if exchange.succeeded:
        assert 200 <= exchange.status < 300
        assert size is None or exchange.body_sent == size
    if exchange.fate is Fate.REUSE:
        assert I.FINAL_DONE in seen
        assert exchange.body_complete


# --- plan_body -------------------------------------------------------------------------------------------------------


def plan(**changes: object) -> Plan:
    settings: dict[str, object] = {
        "body_size": 10 * limits.MIB,
        "replayable": True,
        "expect": "auto",
        "continue_timeout_s": "auto",
        "facts": OriginFacts(),
        "is_s3": False,
        "round_trip_s": 0.01,
        "response_timeout_s": 60.0,
        "stall_timeout_s": 60.0,
    }
    return plan_body(**{**settings, **changes})  # type: ignore[arg-type]


def facts(**shown: bool) -> OriginFacts:
    found = OriginFacts()
    for name, value in shown.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize(
    ("changes", "asks"),
    [
        ({}, True),
        ({"body_size": 65_535}, False),
        ({"body_size": 65_536}, True),
        ({"body_size": 1, "replayable": False}, True),
        ({"body_size": None, "replayable": False}, True),
        ({"body_size": 0, "expect": "always"}, False),
        ({"body_size": 0, "expect": "strict"}, False),
        ({"body_size": 1, "expect": "always"}, True),
        ({"expect": "never"}, False),
        ({"facts": facts(refuses_expect=True)}, False),
        ({"facts": facts(refuses_expect=True), "expect": "strict"}, True),
        ({"facts": facts(speaks_http10=True)}, False),
    ],
)
def test_when_to_ask(changes: dict[str, object], asks: bool) -> None:
    assert plan(**changes).asks is asks


@pytest.mark.parametrize(
    ("changes", "wait_s", "send_after_wait"),
    [
        ({}, 1.0, True),
        ({"round_trip_s": 0.5}, 2.0, True),
        ({"is_s3": True}, 60.0, False),
        ({"facts": facts(answers_expect=True)}, 60.0, False),
        ({"continue_timeout_s": 3}, 3.0, True),
        ({"continue_timeout_s": 3, "is_s3": True}, 3.0, True),
        ({"expect": "strict"}, 60.0, False),
        ({"expect": "strict", "continue_timeout_s": 2.5}, 2.5, False),
        ({"continue_timeout_s": 0}, 0.0, True),
    ],
)
def test_how_long_to_wait(changes: dict[str, object], wait_s: float, send_after_wait: bool) -> None:
    made = plan(**changes)
    assert (made.continue_wait_s, made.send_after_wait) == (wait_s, send_after_wait)


@pytest.mark.parametrize(
    ("changes", "quiet_s"),
    [
        ({}, 0.001),
        ({"body_size": None}, 0.001),
        ({"body_size": limits.MIB - 1}, 0.0),
        ({"body_size": 512 * limits.MIB}, 0.01),
        ({"body_size": 1 << 40}, 0.02),
        ({"is_s3": True}, 0.0),
    ],
)
def test_silence_is_demanded_for_large_bodies_except_of_s3(changes: dict[str, object], quiet_s: float) -> None:
    assert plan(**changes).quiet_s == quiet_s
