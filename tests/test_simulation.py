"""Exchange, retry, redirect, pool and connection together, against simulated peers in virtual time (see tests/simulation).

SIMULATION_SEEDS: how many are tried (1,500; the same ones each time, so that a change is judged and not luck).
SIMULATION_FIRST: the first of them (0). `python -m tests.simulation` searches further.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest

import engine.connection
import engine.exchange
import engine.pool
import engine.redirect
import engine.request
import engine.retry
from engine.exchange import TRANSITIONS, Action, Exchange, Fate, Input, Plan, Row, State, Timer
from engine.wire import Url
from tests.simulation.scenario import Machine, machine, run

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "1500"))
FIRST = int(os.environ.get("SIMULATION_FIRST", "0"))


def rates(spent_s: float) -> str:
    """Both in millions a minute."""
    turns, steps = (count / spent_s * 60 / 1e6 for count in (Machine.turns, Machine.steps))
    return f"{turns:.2f} million turns of the world and {steps:.2f} million steps of the machine a minute"


def test_no_seed_breaks_a_promise(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """And so that this says something: nearly all rows of the machine's table are taken, and calls end in every way."""
    outcomes, seed = Counter[str](), FIRST
    Machine.steps, Machine.turns, Machine.rows = 0, 0, set()
    cpu = time.process_time()
    caplog.set_level("ERROR")
    with machine():
        while seed - FIRST < SEEDS:
            outcomes += run(seed).outcomes
            seed += 1
    cpu = time.process_time() - cpu
    with capsys.disabled():
        print(f"\n{seed - FIRST} scenarios, {outcomes.total()} calls; {rates(cpu)}")
    if seed - FIRST >= 1000:
        untaken = TRANSITIONS.keys() - Machine.rows
        assert len(untaken) <= 12, untaken
        assert {
            "ok",
            "cancelled",
            "RedirectRefused",
            "TooManyRedirects",
            "SourceNotReplayable",
            "ProtocolError",
        } <= set(outcomes)
        assert {"ConnectionLost", "ConnectFailed", "ConnectTimedOut", "StallTimedOut", "ResponseTimedOut"} <= set(
            outcomes
        )


@pytest.mark.parametrize("seed", [5, 17, 2026])
def test_a_seed_is_replayed_step_by_step(seed: int) -> None:
    logs: list[list[str]] = []
    with machine():
        for _time in range(2):
            logs.append([])
            run(seed, log=logs[-1])
    assert logs[0] == logs[1]
    assert logs[0]


def test_a_seed_is_replayed_in_another_process() -> None:
    log: list[str] = []
    with machine():
        run(2026, log=log)
    replayed = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", "2026"],
        cwd=os.path.dirname(os.path.dirname(__file__)),
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert [line for line in replayed.stderr.splitlines() if "  " in line] == log


# --- broken on purpose ---------------------------------------------------------------------------------------------------


def row(state: State, happened: Input, broken: Row) -> tuple[Any, Any, Any]:
    return TRANSITIONS, (state, happened), broken


def plan_without_waiting(**facts: Any) -> Plan:
    return _plan_body(**facts)._replace(continue_wait_s=0.001, send_after_wait=True)


def plan_without_asking(**facts: Any) -> Plan:
    return _plan_body(**facts)._replace(asks=False)


def plan_without_silence(**facts: Any) -> Plan:
    return _plan_body(**facts)._replace(quiet_s=0.0)


_plan_body = engine.request.plan_body
_decide = engine.retry.decide
_resolve = engine.redirect.resolve_reference


def retry_whatever_was_read(*given: Any, **facts: Any) -> Any:
    return _decide(*given, **{**facts, "body_bytes_left": 0})


def retry_for_ever(retry: Any, attempt: int, failure: Any, **facts: Any) -> Any:
    return _decide(retry, 1, failure, **facts)


def with_its_query(base: Url, reference: str) -> Url:
    return dataclasses.replace(_resolve(base, reference), query=base.query)


async def run_without_waiting_for_the_sender(self: Any, job: Any) -> Any:
    ended = self._loop.create_future()
    job.add_done_callback(lambda _job: ended.done() or ended.set_result(None))
    await ended
    return job.outcome


GO = Row(State.BODY_LEAVING, (Action.SEND_BODY,), Timer.NONE)
S, C = State, engine.connection.Connection
Change = tuple[Any, Any, Any]
MUTATIONS: dict[str, list[Change]] = {
    "103 is a go-ahead": [row(S.AWAITING_CONTINUE, Input.INTERIM, GO)],
    "the wait is cut short": [(engine.request, "plan_body", plan_without_waiting)],
    "nobody is asked": [(engine.request, "plan_body", plan_without_asking)],
    "no silence is kept": [(engine.request, "plan_body", plan_without_silence)],
    "the body goes on after an answer": [row(S.BODY_LEAVING, Input.FINAL_HEAD, Row(S.BODY_LEAVING))],
    "a refused body is sent": [
        row(S.CONTINUE_HEARD, Input.FINAL_HEAD, GO),
        row(S.AWAITING_CONTINUE, Input.FINAL_HEAD, GO),
    ],
    "a 3xx is a success": [
        (
            Exchange,
            "succeeded",
            property(lambda self: self.state is S.DONE and 200 <= self.status < 400 and self.body_complete),
        )
    ],
    "an early 2xx is a success": [
        (Exchange, "succeeded", property(lambda self: self.state is S.DONE and 200 <= self.status < 300))
    ],
    "a withheld body leaves the connection in use": [
        row(S.BODY_WITHHELD, Input.FINAL_DONE, Row(S.DONE, (Action.DELIVER,), Timer.NONE, Fate.REUSE))
    ],
    "what came unasked is forgotten": [(C, "finish", lambda self, fate: fate is Fate.REUSE)],
    "signed requests go anywhere": [(engine.redirect, "_judge_host", lambda *given: None)],
    "secret fields go anywhere": [(engine.redirect, "_judge_fields", lambda *given: None)],
    "https becomes http": [(engine.redirect, "_judge_downgrade", lambda *given: None)],
    "addresses are not judged": [(engine.redirect, "address_allowed", lambda *given: True)],
    "the query goes along": [(engine.redirect, "resolve_reference", with_its_query)],
    "what was read of an iterator is forgotten": [
        (engine.retry, "decide", retry_whatever_was_read),
        (engine.request.Run, "_check_replayable", lambda self, why: None),
    ],
    "attempts are not counted": [(engine.retry, "decide", retry_for_ever)],
    "hops are not counted": [
        (engine.redirect.RedirectPolicy, "max_hops", property(lambda self: 10**9, lambda *_: None))
    ],
    "an abandoned connection stays open": [(C, "close", lambda self, reset=False: None)],
    "what is sent is counted twice": [
        (C, "_payload_of", lambda self, outcome: outcome._replace(sent=outcome.sent * 2)),
        (
            engine.request.Run,
            "_bytes_sent",
            property(lambda self: 2 * sum(hop.body_bytes_sent for hop in self._hops)),
        ),
    ],
    "a cancelled put does not wait for its sender": [(C, "_run", run_without_waiting_for_the_sender)],
}
SEEDS_MAX = 3000


def run_many(count: int) -> None:
    for seed in range(count):
        run(seed)


def broken(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    holder, name, new = change
    if isinstance(holder, dict):
        monkeypatch.setitem(holder, name, new)
    else:
        monkeypatch.setattr(holder, name, new)


@pytest.mark.parametrize("promise", MUTATIONS)
def test_a_promise_broken_on_purpose_is_found(
    promise: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("ERROR")
    for change in MUTATIONS[promise]:
        broken(change, monkeypatch)
    with machine(), pytest.raises(AssertionError, match=r"replay: python -m tests\.simulation --seed"):
        run_many(SEEDS_MAX)
