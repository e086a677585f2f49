"""What rounds come to: medians, spreads, ratios, outcomes. The table, the page and the chart show these numbers and make none.

A rate or a cost is of rounds that came to `stored` only: how fast something was not done is nobody's figure. What a client
wasted is of all its rounds.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from .results import Limit, Outcome, Results, Round, Run, Scaling, Workload

GIB: Final = 1 << 30
MIB: Final = 1 << 20
SPOILT: Final = 0.05  # share of the machine that others used during a round, from which on its figures are doubtful
ENGINE: Final = "engine"

# From what a user must know first to what is as it should be.
WORST_FIRST: Final[tuple[Outcome, ...]] = ("silently-wrong", "hung", "error", "stored")
WORDS: Final[dict[Outcome, str]] = {
    "stored": "stored",
    "error": "error",
    "silently-wrong": "silently wrong",
    "hung": "hung",
}
SIGNS: Final[dict[Outcome, str]] = {"stored": "✓", "error": "✗", "silently-wrong": "‼", "hung": "∞"}
TRANSPORTS: Final = {"plain": "plain", "tls": "TLS"}


@dataclass(frozen=True)
class Spread:
    """A median, and the quartiles round it (with fewer than 4 rounds: the extremes)."""

    median: float
    low: float
    high: float
    count: int

    @property
    def share(self) -> float:
        """Half of the distance between low and high, as a share of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0


def spread(values: Iterable[float]) -> Spread | None:
    every = sorted(values)
    if not every:
        return None
    if len(every) < 4:
        return Spread(statistics.median(every), every[0], every[-1], len(every))
    low, median, high = statistics.quantiles(every, n=4, method="inclusive")
    return Spread(median, low, high, len(every))


@dataclass(frozen=True)
class Line:
    """One client at one workload, or a bare C loop beside it (`client` is its name then, `tuning` empty)."""

    workload: str
    transport: str
    client: str
    tuning: str
    how: str
    hashes: tuple[str, ...]
    rate: Spread | None  # GiB/s, or requests/s where the workload's kind is "requests"
    ratio: float | None  # of the rate to the best limit's
    seconds: Spread | None  # of a round, whatever it came to
    cpu: Spread | None  # CPU-s/GiB, or CPU microseconds a request
    peak_mib: Spread | None
    wasted: Spread | None  # body bytes at a host that had refused, a round
    wire: Spread | None  # bytes received by servers for each byte of the objects; None where nothing was to be stored
    latency: tuple[float, float, float] | None  # p50, p90, p99 in seconds, medians over rounds
    timings: dict[str, float] | None  # seconds by phase, medians over rounds
    outcome: Outcome  # the worst of all rounds
    outcomes: dict[str, int]
    good: bool  # every round came to what a client should come to
    detail: str
    spoilt: int  # rounds during which others used SPOILT of the machine, or more

    @property
    def label(self) -> str:
        return self.client if self.tuning in ("", "defaults") else f"{self.client} {self.tuning}"

    @property
    def own(self) -> bool:
        return self.client.partition("-")[0] == ENGINE

    @property
    def verdict(self) -> str:
        """The outcome in words, and in how many rounds where it was not always the same."""
        told, total = WORDS[self.outcome], sum(self.outcomes.values())
        seen = self.outcomes.get(self.outcome, 0)
        told = "refused" if self.good and self.outcome == "error" else told  # and the user was told, as it should be
        return told if seen == total else f"{told} {seen}/{total}"


@dataclass(frozen=True)
class Group:
    """Everything about one workload over one transport: limits first, then clients as the file has them."""

    name: str
    transport: str
    workload: Workload
    limits: tuple[Line, ...]
    lines: tuple[Line, ...]

    @property
    def title(self) -> str:
        return f"{self.workload.title} · {TRANSPORTS.get(self.transport, self.transport)}"

    @property
    def unit(self) -> str:
        return "requests/s" if self.workload.kind == "requests" else "GiB/s"

    @property
    def cpu_unit(self) -> str:
        return "CPU µs/request" if self.workload.kind == "requests" else "CPU-s/GiB"

    @property
    def limit(self) -> Line | None:
        """The best of the limits: what every rate is compared with."""
        rated = [(line.rate.median, line) for line in self.limits if line.rate]
        return max(rated, key=lambda pair: pair[0])[1] if rated else None

    @property
    def ranked(self) -> list[Line]:
        """Lines by rate, the fastest first; those without one at the end."""
        return sorted(self.lines, key=lambda line: -line.rate.median if line.rate else 0.0)


def groups(results: Results) -> list[Group]:
    """One for each workload and transport that was run, in the order of the file's workloads."""
    made = []
    for name, workload in results.workloads.items():
        for transport in TRANSPORTS:
            limits = [_line(one, workload, None) for one in results.limits if _is(one, name, transport)]
            best = max((line.rate.median for line in limits if line.rate), default=None)
            lines = [_line(one, workload, best) for one in results.runs if _is(one, name, transport)]
            if lines:
                made.append(Group(name, transport, workload, tuple(limits), tuple(lines)))
    return made


def _is(one: Run | Limit, workload: str, transport: str) -> bool:
    return one.workload == workload and one.transport == transport


def _line(one: Run | Limit, workload: Workload, limit: float | None) -> Line:
    stored = [each for each in one.rounds if each.outcome == "stored" and each.requests and each.seconds > 0]
    rate = spread(_rate(each, workload) for each in stored)
    outcomes: Counter[str] = Counter(each.outcome for each in one.rounds)
    worst: Outcome = next((each for each in WORST_FIRST if outcomes[each]), "error")
    return Line(
        workload=one.workload,
        transport=one.transport,
        client=one.client if isinstance(one, Run) else one.limit,
        tuning=one.tuning if isinstance(one, Run) else "",
        how=one.how if isinstance(one, Run) else "",
        hashes=tuple(one.hashes) if isinstance(one, Run) else (),
        rate=rate,
        ratio=rate.median / limit if rate and limit else None,
        seconds=spread(each.seconds for each in one.rounds),
        cpu=spread(_cpu(each, workload) for each in stored),
        peak_mib=spread(each.peak_rss_bytes / MIB for each in one.rounds),
        wasted=spread(each.wrong_host_body_bytes for each in one.rounds),
        wire=spread(each.wire_bytes / each.bytes for each in stored if each.bytes),
        latency=_latency(stored),
        timings=_timings(stored),
        outcome=worst,
        outcomes=dict(outcomes),
        good=all(each.outcome == workload.best for each in one.rounds),
        detail=next((each.detail for each in one.rounds if each.outcome == worst), ""),
        spoilt=sum(each.foreign_share >= SPOILT for each in one.rounds),
    )


def cpu_s(one: Round) -> float:
    return one.cpu_user_s + one.cpu_system_s


def _rate(one: Round, workload: Workload) -> float:
    return one.requests / one.seconds if workload.kind == "requests" else one.bytes / GIB / one.seconds


def _cpu(one: Round, workload: Workload) -> float:
    if workload.kind == "requests":
        return cpu_s(one) * 1e6 / one.requests
    return cpu_s(one) / (one.bytes / GIB) if one.bytes else 0.0


def _latency(rounds: Sequence[Round]) -> tuple[float, float, float] | None:
    known = [one.latency_s for one in rounds if one.latency_s]
    if not known:
        return None
    median = statistics.median
    return median(each.p50 for each in known), median(each.p90 for each in known), median(each.p99 for each in known)


def _timings(rounds: Sequence[Round]) -> dict[str, float] | None:
    known = [one.timings for one in rounds if one.timings]
    names = list(dict.fromkeys(name for each in known for name in each))
    return {name: statistics.median(each.get(name, 0.0) for each in known) for name in names} or None


# --- curves -----------------------------------------------------------------------------------------------------------


def of_stored(point: Scaling, value: Callable[[Round], float]) -> Spread | None:
    """What `value` makes of the point's rounds that stored."""
    return spread(value(one) for one in point.rounds if one.outcome == "stored")


# --- honesty ----------------------------------------------------------------------------------------------------------


def caveats(results: Results) -> list[str]:
    """What makes this run's figures say less than they seem to, besides `Meta.notes`; empty when nothing does."""
    meta, told = results.meta, []
    if not meta.network_namespace:
        told.append("Ran on the host's loopback, not in a network namespace of its own.")
    if meta.congestion_control != "reno":
        told.append(
            f"Congestion control was {meta.congestion_control}, not reno: on a loopback it paces, and ranks clients by that."
        )
    if meta.load_before > 0.5:
        told.append(f"The machine was busy before the run: load {meta.load_before:.2f} on {meta.cores} cores.")
    measured: list[Limit | Run | Scaling] = [*results.limits, *results.runs, *results.scaling]
    every = [each for one in measured for each in one.rounds]
    spoilt = [each for each in every if each.foreign_share >= SPOILT]
    if spoilt:
        worst = max(each.foreign_share for each in spoilt)
        told.append(
            f"Others used {SPOILT:.0%} or more of the machine during {len(spoilt)} of {len(every)} rounds "
            f"(at worst {worst:.0%}); lines with such rounds are marked with ~."
        )
    fewest = min((len(one.rounds) for one in results.runs), default=0)
    if 0 < fewest < 7:
        told.append(
            f"Some figures are of {fewest} round{'s' if fewest > 1 else ''}; 7 or more make a median worth comparing."
        )
    if meta.dirty:
        told.append("The checkout had changes that were not committed.")
    return told


# --- numbers as text --------------------------------------------------------------------------------------------------


def short(value: float) -> str:
    """Three significant digits, thousands apart: 0.0712, 8.41, 41.2, 941, 12 345."""
    if value == 0:
        return "0"
    if abs(value) >= 99.95:
        return f"{value:,.0f}".replace(",", " ")
    digits = 1 if abs(value) >= 9.995 else 2 if abs(value) >= 0.9995 else 3
    return f"{value:.{digits}f}"


def with_share(value: Spread | None, text: Callable[[float], str] = short) -> str:
    """The median and half its spread: "8.41 ±2%"; "–" for nothing."""
    if value is None:
        return "–"
    return text(value.median) if value.count < 2 else f"{text(value.median)} ±{value.share:.0%}"


def share(value: float) -> str:
    """A ratio as people read it: "94%", "3.1%"."""
    return f"{value:.0%}" if value >= 0.0995 else f"{value:.1%}"


def duration(seconds: float) -> str:
    """Three significant digits and a unit: "88.0 µs", "1.23 ms", "20.0 s"."""
    if seconds < 0.0009995:
        return f"{short(seconds * 1e6)} µs"
    if seconds < 0.9995:
        return f"{short(seconds * 1e3)} ms"
    return f"{short(seconds)} s"
