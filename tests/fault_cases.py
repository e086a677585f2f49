"""What can happen to one call while its connections are broken, drawn from a seed, and what may come of it. Does no I/O.

`Case.make(seed, index, …)` is a function of its arguments alone, so that a failing case can be run again. What a case may end
with follows from what the servers say (`natural`) and from what the fault can do to that (`may_end_with`): the more harmless
the fault, the less is allowed.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Final

import engine
from tests.breaking_proxy import Strike

KIB: Final = 1024
CONTENT_BYTES: Final = 8 << 20
PATIENT_S: Final = 30.0  # timeouts where none is to end: longer than a busy machine takes
SHORT_S: Final = 0.7  # timeouts where one is to end
CONTINUE_BYTES: Final = len(b"HTTP/1.1 100 Continue\r\n\r\n")

REPLAYABLE: Final = ("path", "file", "bytes", "bytearray")
SOURCES: Final = (*REPLAYABLE, "iterator", "async", "pipe")  # and "stuck", an async one that never comes to its end
PIPE_MAX: Final = 900 * KIB  # filled before the call: below the size that a pipe may have

# The bucket's name, which says what the redirecting endpoint does; {port} is the proxy's in front of the storing one.
PUTS: Final = {
    "store": (6, "store.case"),
    "redirect": (4, "redirect-307-port-{port}.case"),
    "redirect after the body": (1, "redirect-307-read-port-{port}.case"),
    "refuse": (2, "answer-403.case"),
    "refuse in the body": (1, "answer-403-after-64k.case"),
    "busy": (3, "answer-503-once.case"),
}
OTHERS: Final = {"store": (2, "store.case"), "redirect": (1, PUTS["redirect"][1]), "busy": (1, PUTS["busy"][1])}
SIZES: Final = {
    1: 1,
    700: 2,
    64 * KIB - 1: 2,
    64 * KIB: 2,
    64 * KIB + 1: 2,
    200_000: 4,
    1 << 20: 1,
    (1 << 20) + 1: 2,
    2_500_000: 1,
}
KINDS: Final = {"cut": 5, "reset": 5, "stall": 4, "delay": 3, "trickle": 3}
HARMLESS: Final = ("delay", "trickle")

PHASES: Final = {  # on plain TCP: how often
    "head": 3,
    "head and 100": 2,
    "instead of the 100": 2,
    "100": 2,
    "behind the 100": 2,
    "body at 0": 2,
    "body at 1": 2,
    "body at 64 KiB": 2,
    "body at half": 3,
    "last byte": 2,
    "body and answer": 2,
    "instead of the answer": 2,
    "answer's head": 3,
    "answer's body": 3,
    "anywhere": 5,
}
TLS_PHASES: Final = {"handshake": 3, "anywhere": 7}


def _pick(rng: random.Random, weights: dict[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


@dataclass(frozen=True)
class Case:
    """One call and its fault.

    Attributes:
      method: "put", "get", "head", "delete". scenario: what the servers do; `bucket` is what they are told by.
      start: where in the content the object's bytes are; `size` how many.
      attempts: `Retry.max_attempts`. warm: an undisturbed put comes first, and its connection is there for the call.
      phase: where the strike is, in words. leaves_s: when the caller gives up, by `leaves`: "cancel" or "total", "" for never.
    """

    index: int
    method: str
    scenario: str
    bucket: str
    source: str
    start: int
    size: int
    expect: str
    continue_timeout_s: float | str
    checksum: str | None
    attempts: int
    warm: bool
    phase: str
    strike: Strike
    leaves: str = ""
    leaves_s: float = 0.0

    @classmethod
    def make(cls, seed: int, index: int, *, tls: bool) -> Case:
        rng = random.Random(f"{seed}/{index}")
        method = rng.choices(("put", "get", "head", "delete"), (16, 3, 1, 1))[0]
        scenarios = PUTS if method == "put" else OTHERS
        scenario = _pick(rng, {name: weight for name, (weight, _bucket) in scenarios.items()})
        source = rng.choice(SOURCES)
        size = rng.choices(list(SIZES), list(SIZES.values()))[0]
        if source == "pipe":
            size = min(size, PIPE_MAX)
        kind = _pick(rng, KINDS)
        phase = _pick(rng, TLS_PHASES if tls else _phases(method, size))
        leaves = rng.choices(("", "cancel", "total"), (16, 1, 1))[0]
        if method == "put" and source == "async" and leaves:
            source = "stuck"
        expect = rng.choices(("auto", "always", "never", "strict"), (5, 3, 4, 2))[0]
        waits: list[float | str] = ["auto", SHORT_S if kind == "stall" else PATIENT_S]
        if expect != "strict":  # which does not send when a short wait ends
            waits.append(0.1)
        return cls(
            index=index,
            method=method,
            scenario=scenario,
            bucket=scenarios[scenario][1],
            source=source,
            start=rng.randrange(CONTENT_BYTES - size),
            size=size,
            expect=expect,
            continue_timeout_s=rng.choice(waits),
            checksum=rng.choices(("auto", "sha256", None), (8, 1, 1))[0],
            attempts=rng.choice((1, 3)),
            warm=rng.random() < 0.2,
            phase=phase,
            strike=_strike(rng, kind, phase, size, scenario, tls=tls),
            leaves=leaves,
            leaves_s=rng.uniform(0.001, 0.3),
        )

    @property
    def replayable(self) -> bool:
        return self.method != "put" or self.source in REPLAYABLE

    @property
    def timeout_s(self) -> float:
        return SHORT_S if self.strike.kind == "stall" else PATIENT_S

    @property
    def waits_for_leave(self) -> bool:
        """Whether no body byte may come ahead of a 100, however long the 100 takes."""
        return self.expect == "strict" or self.continue_timeout_s == PATIENT_S

    def natural(self, error: BaseException | None) -> bool:
        """Whether this is what comes of the call on a network that breaks nothing."""
        if self.scenario.startswith("refuse"):
            return isinstance(error, engine.AccessDenied)
        if self.scenario == "busy" and self.attempts == 1:
            return isinstance(error, engine.ResponseError) and error.status == 503
        if error is None:
            return True
        # Bytes may have left before the 307 or the 503 came.
        return not self.replayable and self.scenario != "store" and isinstance(error, engine.SourceNotReplayable)

    @property
    def _answer_began(self) -> bool:
        """Whether the fault leaves some of the answer through in any case."""
        return self.strike.anchor in ("final", "content") and self.strike.offset > 0

    def may_end_with(self, error: BaseException | None, *, struck: bool) -> bool:
        """Whether the call may have ended so. `struck`: the fault came about."""
        if self.source == "stuck" and error is None:
            return False
        if self.natural(error):
            return True
        if self.leaves:
            expected = asyncio.CancelledError if self.leaves == "cancel" else engine.TotalTimedOut
            if isinstance(error, expected):
                return True
        if (
            self.strike.kind == "stall"
            and isinstance(error, engine.TimedOut)
            and not isinstance(error, engine.TotalTimedOut)
        ):
            return True  # a wait so short may end on a busy machine, too
        if not struck or self.strike.kind in HARMLESS:
            return False
        if self.warm and self.strike.connection == 0 and not self._answer_began and error is None:
            return True  # a used connection that dies without a word is no attempt: "busy" was so asked twice
        if isinstance(error, engine.SourceNotReplayable):
            return not self.replayable and (self.attempts > 1 or self.warm)
        # Waits end where they need not, and so the attempts do that would mend a stall.
        mended = self.attempts > 1 and self.replayable and not self.strike.again and self.strike.kind != "stall"
        return isinstance(error, engine.TransportError) and not mended


def _phases(method: str, size: int) -> dict[str, int]:
    """Those that can come about."""
    bare = ("head", "instead of the answer", "answer's head", "answer's body", "anywhere")
    return {
        phase: weight
        for phase, weight in PHASES.items()
        if (method == "put" or phase in bare) and (size > 64 * KIB or phase != "body at 64 KiB")
    }


def _strike(rng: random.Random, kind: str, phase: str, size: int, scenario: str, *, tls: bool) -> Strike:
    toward, anchor, offset, eager = _tls_place(rng, phase, size) if tls else _place(rng, phase, size)
    return Strike(
        kind,
        toward,
        anchor,
        offset,
        eager,
        both=rng.random() < 0.5,
        seconds=rng.choice((0.001, 0.02, 0.15)),
        count=rng.randrange(1, 400),
        connection=rng.choices((0, 1, 2), (9, 0, 1) if scenario in ("store", "refuse") else (5, 4, 1))[0],
        again=rng.random() < 0.3,
    )


def _tls_place(rng: random.Random, phase: str, size: int) -> tuple[str, str, int, bool]:
    toward, eager = rng.choice(("server", "client")), rng.random() < 0.5
    shaking = 1200 if toward == "client" else 600
    if phase == "handshake":
        return toward, "start", rng.randrange(shaking), eager
    # What an answer takes, or the head of a request, and as often the body (22 bytes more for each 16 KiB).
    return toward, "start", rng.randrange(shaking, shaking + 900 + rng.choice((0, size))), eager


def _place(rng: random.Random, phase: str, size: int) -> tuple[str, str, int, bool]:
    eager = rng.random() < 0.5
    places = {
        "head": ("server", "start", rng.randrange(500), eager),
        "head and 100": ("server", "head", 0, True),
        "instead of the 100": ("client", "start", 0, False),
        "100": ("client", "start", rng.randrange(1, CONTINUE_BYTES), eager),
        "behind the 100": ("client", "start", CONTINUE_BYTES, True),
        "body at 0": ("server", "head", 0, False),
        "body at 1": ("server", "head", 1, eager),
        "body at 64 KiB": ("server", "head", 64 * KIB, eager),
        "body at half": ("server", "head", size // 2, eager),
        "last byte": ("server", "body", -1, eager),
        "body and answer": ("server", "body", 0, True),
        "instead of the answer": ("client", "final", 0, False),
        "answer's head": ("client", "final", rng.randrange(1, 300), eager),
        "answer's body": ("client", "content", rng.randrange(rng.choice((300, max(1, size)))), eager),
        "anywhere": (
            rng.choice(("server", "client")),
            "start",
            rng.randrange(rng.choice((1000, 1000 + size))),
            eager,
        ),
    }
    return places[phase]  # type: ignore[return-value]
