"""The plots of a run: which numbers go into which drawing, and the sentence under it. Numbers come from `summary`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from engine.display import format_bytes

from . import svg
from .results import Outcome
from .summary import MIB, SIGNS, WORDS, Group, Line, Spread, duration, share, short, with_share

# Phases in the order in which they pass, each with the class of its colour. Others (a client's own) take the last.
PHASES: Final = {
    "dns": "s7",
    "connect": "s5",
    "tls": "s4",
    "sign": "s2",
    "continue_wait": "s6",
    "body": "s1",
    "response": "s3",
}
TONES: Final = {"silently-wrong": "wrong", "hung": "hung", "error": "error", "stored": "error"}


def round_bytes(count: float) -> str:
    """A round number of bytes, without decimals."""
    return format_bytes(count).replace(".00", "").replace(".0 ", " ")


BYTE_TICKS: Final = tuple((float(1 << shift), round_bytes(1 << shift)) for shift in range(0, 50, 4))
MIB_TICKS: Final = tuple((4.0**i, round_bytes(4**i * MIB)) for i in range(10))
SECOND_TICKS: Final = tuple(
    (10.0**power, f"{10 ** (power % 3)} {unit}")
    for unit, powers in (("µs", (-6, -5, -4)), ("ms", (-3, -2, -1)), ("s", (0, 1, 2)))
    for power in powers
)


@dataclass(frozen=True)
class Figure:
    """A plot with its words: unit and direction beside the title, what it shows and what it doesn't below, a legend of
    (class, text) above."""

    plot: svg.Plot
    unit: str
    shows: str
    shows_not: str
    legend: tuple[tuple[str, str], ...] = ()
    table: tuple[tuple[str, ...], ...] = ()  # below it, the first row being headings


# --- one workload -----------------------------------------------------------------------------------------------------


def rate(group: Group) -> Figure:
    """How fast, fastest first, with a line at what the best bare C loop did."""
    rows = [_rate_bar(line, group.unit) for line in group.ranked]
    limit = group.limit
    top = max([row.high or 0 for row in rows] + ([limit.rate.high] if limit and limit.rate else [0]))
    line = (limit.rate.median, f"{limit.client} {short(limit.rate.median)}") if limit and limit.rate else None
    title = "Requests a second" if group.workload.kind == "requests" else "Throughput"
    plot = svg.bars(f"{title}: {group.title}", _told(rows), rows, svg.linear(top), line)
    what = "a bare C loop's rate is the dashed line" if line else "no C loop ran beside it"
    return Figure(
        plot,
        f"{group.unit}, more is better",
        f"Median of the rounds that stored, whiskers at the quartiles; {what}.",
        "a network: sender and sink share one machine.",
    )


def cost(group: Group) -> Figure:
    """CPU for each GiB or request, in the order of `rate`."""
    rows = [_bar(line, line.cpu, short, group.cpu_unit) for line in group.ranked]
    limit = group.limit
    top = max([row.high or 0 for row in rows] + [0])
    line = (limit.cpu.median, f"{limit.client} {short(limit.cpu.median)}") if limit and limit.cpu else None
    plot = svg.bars(f"CPU: {group.title}", _told(rows), rows, svg.linear(top), line)
    return Figure(
        plot,
        f"{group.cpu_unit}, less is better",
        "User and system time of the client's whole process tree.",
        "what the sink and softirqs charged to nobody took.",
    )


def memory(group: Group) -> Figure:
    """Peak resident memory, in the order of `rate`, on a logarithmic scale: it spans three decades."""
    rows = [_bar(line, line.peak_mib, lambda mib: format_bytes(mib * MIB), "MiB") for line in group.ranked]
    values = [row.value for row in rows if row.value] or [1.0]
    scale = svg.logarithmic(values, MIB_TICKS)
    plot = svg.bars(f"Peak memory: {group.title}", _told(rows), rows, scale)
    return Figure(
        plot,
        "MiB, less is better, logarithmic",
        "Highest resident memory of the client's processes, interpreter and libraries included.",
        "the page cache that holds the file.",
    )


def waste(group: Group) -> Figure:
    """Body bytes that reached a server which had refused them, least first."""
    ordered = sorted(group.lines, key=lambda line: line.wasted.median if line.wasted else 0.0)
    rows = [_waste_bar(line) for line in ordered]
    scale = svg.logarithmic([0.0, *(row.value or 0.0 for row in rows)], BYTE_TICKS)
    seen = {line.outcome for line in group.lines if not line.good}
    plot = svg.bars(f"Wasted: {group.title}", _told(rows), rows, scale)
    return Figure(
        plot,
        f"of {round_bytes(group.workload.object_bytes)}; less is better, logarithmic",
        "What the refusing server had received of the body, and what each client then came to.",
        "bytes that left and were dropped on the way.",
        tuple((f"sign {tone}", f"{SIGNS[outcome]} {WORDS[outcome]}") for outcome, tone in _TELLING if outcome in seen),
    )


def percentiles(group: Group) -> Figure | None:
    """p50, p90 and p99 of single requests, where they were measured."""
    known = sorted((line.latency, line) for line in group.lines if line.latency) if _has_latency(group) else []
    if not known:
        return None
    rows = []
    for latency, line in known:
        values = [(value, f"{line.label}: {name} {duration(value)}") for name, value in zip(_PS, latency, strict=True)]
        rows.append((line.label, _kind(line), values))
    scale = svg.logarithmic([value for _, _, values in rows for value, _ in values], SECOND_TICKS)
    told = "; ".join(f"{label}: " + ", ".join(duration(value) for value, _ in values) for label, _, values in rows)
    return Figure(
        svg.dots(f"Latency: {group.title}", told, rows, scale),
        "p50 (full), p90, p99 (open); less is better, logarithmic",
        f"From the call to its return, {group.workload.concurrency} at a time.",
        "what waiting in line adds when requests come at a rate of their own.",
    )


def phases(name: str, found: Sequence[tuple[Group, Line]]) -> Figure:
    """Where the time of one request of one client went, for each workload, as shares of the whole."""
    rows, used = [], dict.fromkeys(PHASES, 0.0)
    for group, line in found:
        assert line.timings
        parts = {phase: value for phase, value in line.timings.items() if phase != "total" and value > 0}
        whole = sum(parts.values()) or 1.0
        ordered = sorted(parts, key=lambda phase: [*PHASES, *parts].index(phase))
        pieces = tuple((PHASES.get(p, "s7"), parts[p] / whole, f"{p}: {duration(parts[p])}") for p in ordered)
        rows.append(svg.Stack(group.title, pieces, duration(whole)))
        used.update({phase: used.get(phase, 0.0) + value for phase, value in parts.items()})
    scale = svg.Scale(0.0, 1.0, tuple((i / 2, f"{50 * i}%") for i in range(3)))
    told = "; ".join(f"{row.label}: " + ", ".join(hint for _, _, hint in row.pieces) for row in rows)
    return Figure(
        svg.stacks(f"Phases: {name}", told, rows, scale),
        "share of the time of one request; its length is at the right",
        "Medians of each phase as the client reports them, set to 100% for each workload.",
        "earlier hops and attempts, or absolute times: rows differ by orders of magnitude.",
        tuple((PHASES.get(phase, "s7"), phase.replace("_", " ")) for phase, value in used.items() if value > 0),
    )


# --- rows -------------------------------------------------------------------------------------------------------------

_TELLING: Final[tuple[tuple[Outcome, str], ...]] = (("error", "error"), ("silently-wrong", "wrong"), ("hung", "hung"))
_PS: Final = ("p50", "p90", "p99")


def _has_latency(group: Group) -> bool:
    return group.workload.kind == "requests" and any(line.latency for line in group.lines)


def _kind(line: Line) -> str:
    return "own" if line.own else "peer"


def _rate_bar(line: Line, unit: str) -> svg.Bar:
    if line.rate is None:
        return _bar(line, None, short, unit)
    text = with_share(line.rate) + (" ~" if line.spoilt else "")
    hint = f"{hint_of(line)}: {with_share(line.rate)} {unit}, {line.rate.count} rounds"
    hint += f", {share(line.ratio)} of the limit" if line.ratio else ""
    return svg.Bar(line.label, line.rate.median, text, _kind(line), line.rate.low, line.rate.high, hint=hint)


def _bar(line: Line, value: Spread | None, text: Callable[[float], str], unit: str) -> svg.Bar:
    if value is None or line.rate is None:
        told = f"{_sign(line)} {line.verdict}"
        return svg.Bar(line.label, None, told, _kind(line), tone=TONES[line.outcome], hint=f"{told}: {line.detail}")
    hint = f"{hint_of(line)}: {text(value.median)} {unit}, quartiles {text(value.low)} to {text(value.high)}"
    return svg.Bar(line.label, value.median, text(value.median), _kind(line), value.low, value.high, hint=hint)


def _waste_bar(line: Line) -> svg.Bar:
    value = line.wasted.median if line.wasted else 0.0
    told = format_bytes(value) if line.good else f"{format_bytes(value)} {_sign(line)}"
    tone = "" if line.good else TONES[line.outcome]
    hint = f"{hint_of(line)}: {format_bytes(value)} at the wrong host; {line.verdict}"
    hint += f": {line.detail}" if line.detail else ""
    return svg.Bar(line.label, value, told, _kind(line), tone=tone, hint=hint)


def _sign(line: Line) -> str:
    """Of a line that is not good: a success where the server's no should have reached the user is an error too."""
    return SIGNS["error" if line.outcome == "stored" else line.outcome]


def hint_of(line: Line) -> str:
    """The client with what it hashed."""
    return f"{line.label} ({', '.join(line.hashes) or 'no hash'})"


def _told(rows: Sequence[svg.Bar]) -> str:
    return "; ".join(f"{row.label}: {row.text}" for row in rows)
