"""The plots of the scaling runs: cost by size, connections and path, what asking costs, and where it pays.

Fits are of medians, by `fit`. The break-even is computed, from a formula that stands below its plot, for links that are named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from engine import limits
from engine.display import format_bytes
from engine.limits import EXPECT_THRESHOLD_BYTES

from . import svg
from .figures import BYTE_TICKS, SECOND_TICKS, Figure, round_bytes
from .fit import Fit, fit
from .results import Results, Scaling
from .summary import GIB, Spread, cpu_s, duration, of_stored, share, short, spread, with_share

Titled = tuple[str, Figure]
CURVE_STEPS: Final = 48
KIB: Final = 1 << 10

# Paths for which the break-even is drawn: name, round trip in seconds, bytes a second of one connection.
LINKS: Final = (
    ("one rack: 0.2 ms, 10 Gbit/s", 0.0002, 1.25e9),
    ("one region: 1 ms, 1 Gbit/s", 0.001, 1.25e8),
    ("a continent: 20 ms, 1 Gbit/s", 0.02, 1.25e8),
    ("the world: 100 ms, 100 Mbit/s", 0.1, 1.25e7),
)
ASKS: Final = {"always": "asking", "never": "not asking", "auto": "as it comes"}


def figures(results: Results) -> list[Titled]:
    """Every plot for which there are points, with its title."""
    points = results.scaling
    drawn = (draw(points) for draw in (_by_size, _by_connections, _by_rtt, _by_refusal))
    made = [figure for figure in drawn if figure]
    return [*made, _break_even(results.scaling)] if made else []


# --- choosing points --------------------------------------------------------------------------------------------------


def pick(
    points: Sequence[Scaling], axis: str, workload: str, *, expect: str = "", client: str = "", size: int = 0
) -> list[Scaling]:
    """The points of one curve in order of x, of those that stored or, for "scaling-refused", were refused."""
    return sorted(
        (
            one
            for one in points
            if one.axis == axis
            and one.workload == workload
            and expect in ("", one.expect)
            and client in ("", one.client)
            and size in (0, one.object_bytes)
        ),
        key=lambda one: one.x,
    )


def seconds_each(one: Scaling) -> Spread | None:
    """Of one object, over rounds that stored."""
    return of_stored(one, lambda each: each.seconds / each.requests)


def cpu_each(one: Scaling) -> Spread | None:
    return of_stored(one, lambda each: cpu_s(each) / each.requests)


def line_through(points: Sequence[Scaling], value: Callable[[Scaling], Spread | None]) -> Fit | None:
    """Fitted to the medians; None with fewer than three points."""
    known = [(one.x, found.median) for one in points if (found := value(one)) and found.median > 0]
    return fit(*zip(*known, strict=True)) if len({x for x, _ in known}) > 2 else None


def _series(name: str, kind: str, points: Sequence[Scaling], value: Callable[[Scaling], Spread | None]) -> svg.Series:
    marks = []
    for one in points:
        found = value(one)
        if found:
            hint = f"{name}: {short(found.median)} at {one.x:g}, {found.count} rounds"
            marks.append(svg.Point(one.x, found.median, found.low, found.high, hint))
    return svg.Series(name, kind, tuple(marks))


def _told(series: Sequence[svg.Series], text: Callable[[float], str], x: Callable[[float], str]) -> str:
    return "; ".join(f"{one.name}: " + ", ".join(f"{text(p.y)} at {x(p.x)}" for p in one.points) for one in series)


def _between(low: float, high: float) -> list[float]:
    """Logarithmic steps."""
    return [low * (high / low) ** (i / CURVE_STEPS) for i in range(CURVE_STEPS + 1)]


NUMBERS: Final = (
    "axis",
    "workload",
    "client",
    "expect",
    "object",
    "connections",
    "round trip",
    "seconds each",
    "GiB/s",
)
NUMBERS_MORE: Final = ("CPU-s each", "wrong host", "rounds")


def numbers(results: Results) -> list[tuple[str, ...]]:
    """Every point as text, under NUMBERS and NUMBERS_MORE."""
    made = []
    for one in results.scaling:
        each, cpu, wasted = seconds_each(one), cpu_each(one), _wasted(one)
        rate = of_stored(one, lambda r: r.bytes / GIB / r.seconds)
        cells = [
            one.axis,
            results.workloads[one.workload].title,
            one.client,
            one.expect,
            format_bytes(one.object_bytes),
        ]
        cells += [str(one.connections), duration(one.rtt_s) if one.rtt_s else "0", with_share(each, duration)]
        cells += [short(rate.median) if rate else "–", duration(cpu.median) if cpu else "–"]
        made.append((*cells, format_bytes(wasted.median) if wasted else "–", str(len(one.rounds))))
    return made


# --- by size ----------------------------------------------------------------------------------------------------------

_SIZE_CURVES: Final = (
    ("scaling-size", "never", "s1", "not asking, no hash"),
    ("scaling-size", "always", "s2", "asking, no hash"),
    ("scaling-size-crc64", "auto", "s3", "as it comes: asking, CRC64"),
)


def _by_size(points: Sequence[Scaling]) -> Titled | None:
    series, rows = [], []
    for workload, expect, kind, name in _SIZE_CURVES:
        found = pick(points, "size", workload, expect=expect)
        one = _series(name, kind, found, seconds_each)
        time, cpu = line_through(found, seconds_each), line_through(found, cpu_each)
        if not time:
            continue
        curve = tuple((x, time.at(x)) for x in _between(found[0].x, found[-1].x))
        series.append(svg.Series(name, kind, one.points, curve))
        cells = [duration(time.fixed), f"{short(time.slope * GIB)} s/GiB", share(time.error)]
        cells += [duration(cpu.fixed), f"{short(cpu.slope * GIB)} s/GiB"] if cpu else ["–", "–"]
        rows.append((name, *cells))
    if not series:
        return None
    every = [point for one in series for point in one.points]
    x = svg.logarithmic([p.x for p in every], BYTE_TICKS, 5)
    y = svg.logarithmic([v for p in every for v in (p.low, p.high)], SECOND_TICKS, 5)
    told = _told(series, duration, format_bytes)
    return "By object size", Figure(
        svg.lines("Time of one PUT by object size", told, series, x, y),
        "seconds of one PUT, both axes logarithmic",
        "Medians on a kept connection, and the line fitted to them: a fixed cost and one for each byte.",
        "disks or memory bandwidth: the file is sparse, one page of zeros over and over. From 1 MiB on, asking includes the "
        "silence that is listened for behind a 100.",
        tuple((one.kind, one.name) for one in series),
        (("fitted", "fixed", "per byte", "off by", "CPU fixed", "CPU per byte"), *rows),
    )


# --- by connections ---------------------------------------------------------------------------------------------------


def _by_connections(points: Sequence[Scaling]) -> Titled | None:
    found = {
        (one.client, one.expect): pick(points, "connections", one.workload, expect=one.expect, client=one.client)
        for one in points
        if one.axis == "connections"
    }
    if not found:
        return None
    kinds = iter(("s1", "s2", "s3", "s4", "s5", "s6") * len(found))
    series = []
    for (client, expect), curve in found.items():
        kind = "s7" if client.startswith("c-") else next(kinds)
        name = f"{client}, {ASKS[expect]}" if client == "engine" else client
        one = _series(name, kind, curve, lambda p: of_stored(p, lambda each: each.bytes / GIB / each.seconds))
        series.append(svg.Series(name, kind, one.points, tuple((p.x, p.y) for p in one.points)))
    most = max(point.high for one in series for point in one.points)
    counts = sorted({point.x for one in series for point in one.points})
    x = svg.logarithmic(counts, [(2.0**i, f"{2**i}") for i in range(12)], 9)
    size = round_bytes(next(one.object_bytes for one in points if one.axis == "connections"))
    told = _told(series, short, lambda count: f"{count:g}")
    return "By connections", Figure(
        svg.lines("Throughput by connections", told, series, x, svg.linear(most, 4)),
        "GiB/s, more is better",
        f"All connections of one client together, objects of {size}, and the C loop on as many threads.",
        "more than this machine's cores give, where the curves bend: sink and client share them. The file is sparse, one page "
        "of zeros.",
        tuple((one.kind, one.name) for one in series),
    )


# --- by round-trip time -----------------------------------------------------------------------------------------------


def _by_rtt(points: Sequence[Scaling]) -> Titled | None:
    sizes = sorted({one.object_bytes for one in pick(points, "rtt", "scaling-rtt")})
    if not sizes:
        return None
    size = min(sizes, key=lambda each: abs(math.log(each / EXPECT_THRESHOLD_BYTES)))
    added = relayed(points)
    series, legend = [], []
    for expect, kind in (("never", "s1"), ("always", "s2")):
        found = [
            replace(p, x=added.get(p.x, p.x)) for p in pick(points, "rtt", "scaling-rtt", expect=expect, size=size)
        ]
        line = line_through(found, seconds_each)
        if not line:
            continue
        one = _series(ASKS[expect], kind, found, seconds_each)
        curve = tuple((x, line.at(x)) for x in (found[0].x, found[-1].x))
        series.append(svg.Series(one.name, kind, one.points, curve))
        legend.append((kind, f"{one.name}: {line.slope:.2f} round trips + {duration(line.fixed)}"))
    if not series:
        return None
    most = max(point.high for one in series for point in one.points)
    far = max(point.x for one in series for point in one.points)
    x = svg.linear(far * 1000, 4)
    y = svg.linear(most * 1000, 4)
    return f"By round-trip time, {round_bytes(size)}", Figure(
        svg.lines(
            "Time of one PUT by round-trip time",
            _told(series, duration, lambda v: duration(v)),
            series,
            _milli(x),
            _milli(y),
        ),
        "milliseconds of one PUT on a kept connection",
        f"Medians and fitted lines: the slope is how many round trips a PUT takes. {_relay(points)}",
        "slow start: a relay's two halves each have the round trip of a loopback, so only what programs wait for is delayed.",
        tuple(legend),
    )


def _milli(scale: svg.Scale) -> svg.Scale:
    """A scale of milliseconds, for values in seconds."""
    return svg.Scale(0.0, scale.high / 1000, tuple((value / 1000, f"{text} ms") for value, text in scale.ticks))


def relayed(points: Sequence[Scaling]) -> dict[float, float]:
    """The round trip that was asked of the relay → the one it had, by its own measurement."""
    made = {}
    for one in pick(points, "rtt", "scaling-relay", client="relay"):
        middle = spread(each.latency_s.p50 for each in one.rounds if each.latency_s)
        if middle and one.rtt_s:
            made[one.rtt_s] = middle.median
    return made


def _relay(points: Sequence[Scaling]) -> str:
    """What the relay really added, by its own measurement."""
    told = []
    for one in pick(points, "rtt", "scaling-relay", client="relay"):
        known = [each.latency_s for each in one.rounds if each.latency_s]
        middle, slow = spread(each.p50 for each in known), spread(each.p90 for each in known)
        if middle and slow and one.rtt_s:
            told.append(f"{duration(middle.median)} (p90 {duration(slow.median)}) for {duration(one.rtt_s)}")
    passing = [one for one in pick(points, "rtt", "scaling-relay", client="c-sendfile") if one.rtt_s]
    rates = [rate.median for one in passing if (rate := of_stored(one, lambda r: r.bytes / GIB / r.seconds))]
    speed = f"; it passes {short(min(rates))} GiB/s" if rates else ""
    return f"The relay's own round trip, measured with single bytes: {', '.join(told)}{speed}." if told else ""


# --- refused ----------------------------------------------------------------------------------------------------------


def _by_refusal(points: Sequence[Scaling]) -> Titled | None:
    refused = pick(points, "rtt", "scaling-refused", expect="never")
    if not refused:
        return None
    series = []
    for i, rtt_s in enumerate(sorted({one.rtt_s for one in refused}, reverse=True)):
        found = sorted((replace(p, x=p.object_bytes) for p in refused if p.rtt_s == rtt_s), key=lambda one: one.x)
        one = _series(
            f"round trip of {duration(rtt_s)}" if rtt_s else "loopback", f"s{(2, 5, 3, 1)[i % 4]}", found, _wasted
        )
        series.append(svg.Series(one.name, one.kind, one.points, tuple((p.x, p.y) for p in one.points)))
    asked = [_wasted(one) for one in pick(points, "rtt", "scaling-refused", expect="always")]
    most_asked = max((one.high for one in asked if one), default=0.0)
    every = [point for one in series for point in one.points]
    x = svg.logarithmic([p.x for p in every], BYTE_TICKS, 5)
    y = svg.logarithmic([v for p in every for v in (p.low, p.high)], BYTE_TICKS, 5)
    return "What not asking wastes", Figure(
        svg.lines("Body bytes a refusing server got", _told(series, format_bytes, format_bytes), series, x, y),
        "body bytes that a server got which answers the head with 403, by object size; both axes logarithmic",
        "engine listens while it sends and stops at the answer: the waste is what fits into a round trip. With asking it was "
        f"{format_bytes(most_asked)} at every size and distance.",
        "a narrow link, which holds less, or a server that reads a whole body before it answers, which gets all of it.",
        tuple((one.kind, one.name) for one in reversed(series)),
    )


def _wasted(one: Scaling) -> Spread | None:
    return spread(each.wrong_host_body_bytes for each in one.rounds)


# --- where asking pays ------------------------------------------------------------------------------------------------


def quiet_s(size: float) -> float:
    """What asking costs besides the round trip: the silence that engine listens for behind a 100 (docs/expect.md)."""
    if size < limits.QUIET_THRESHOLD_BYTES:
        return 0.0
    return min(limits.QUIET_MAX_S, max(limits.QUIET_S, size / GIB * limits.QUIET_PER_GIB_S))


def break_even(size: float, rtt_s: float, bytes_per_s: float) -> float:
    """The share of refusals from which on asking saves time on average.

    Asking costs c = RTT + quiet each time the body is wanted: (1 - p) · c. It saves the body's time each time it is not, on a
    server that answers behind the body: p · size / rate. Equal at p = c / (c + size / rate).
    """
    cost_s = rtt_s + quiet_s(size)
    return cost_s / (cost_s + size / bytes_per_s)


def pays_from(p: float, rtt_s: float, bytes_per_s: float) -> float:
    """The object size from which on asking saves time when a share `p` is refused, to 1 %.

    Looked for from above: where the silence begins, the cost of asking goes up in a step.
    """
    size = 2.0**60
    while size > 1 and break_even(size / 1.01, rtt_s, bytes_per_s) <= p:
        size /= 1.01
    return size


_SHARES: Final = (0.5, 0.1, 0.01)


def _break_even(points: Sequence[Scaling]) -> Titled:
    low, high = 4.0 * KIB, 4.0 * GIB
    threshold = round_bytes(EXPECT_THRESHOLD_BYTES)
    series, rows = [], []
    for (name, rtt_s, rate), kind in zip(LINKS, ("s1", "s3", "s5", "s2"), strict=True):
        curve = tuple((size, break_even(size, rtt_s, rate)) for size in _between(low, high))
        series.append(svg.Series(name, kind, (), curve))
        sizes = [format_bytes(pays_from(p, rtt_s, rate)) for p in _SHARES]
        rows.append((name, f"{break_even(EXPECT_THRESHOLD_BYTES, rtt_s, rate):.0%}", *sizes))
    x = svg.logarithmic([low, high], BYTE_TICKS, 6)
    y = svg.logarithmic([1e-5, 1.0], [(10.0**i, f"{10.0 ** (i + 2):g}%") for i in range(-5, 1)], 6)
    plot = svg.lines(
        "Share of refusals from which on asking saves time",
        "; ".join(f"{row[0]}: {row[1]} at {threshold}" for row in rows),
        series,
        x,
        y,
        marks=[(EXPECT_THRESHOLD_BYTES, f"auto asks from {threshold}")],
    )
    return "Where asking pays back", Figure(
        plot,
        "share of PUTs refused or redirected from which on asking saves time, by object size; both axes logarithmic",
        "Computed: what asking costs for every body that is wanted, c = RTT + the silence listened for behind a 100, against "
        f"the time of every body that is not: p = c / (c + size / rate). {_measured_cost(points)}",
        "what time does not count: bytes paid for, data shown to a host that should not have it, a source that can be read "
        "once only. Those are why auto asks earlier than time alone would.",
        tuple((one.kind, one.name) for one in series),
        (("path", f"pays at {threshold} from", *(f"of {p:.0%} refused, from" for p in _SHARES)), *rows),
    )


def _measured_cost(points: Sequence[Scaling]) -> str:
    """What asking cost over the relay, in its round trips."""
    told = []
    for asked_s, rtt_s in relayed(points).items():
        cost = asking_cost_s(points, EXPECT_THRESHOLD_BYTES, asked_s)
        if cost is not None:
            told.append(f"{cost / rtt_s:.2f} of {duration(rtt_s)}")
    return f"Measured over the relay, asking cost this many round trips: {', '.join(told)}." if told else ""


def asking_cost_s(points: Sequence[Scaling], size: int, rtt_s: float) -> float | None:
    """Measured: how much longer a stored PUT takes when it asks; None without both points."""
    medians = []
    for expect in ("always", "never"):
        found = [one for one in pick(points, "rtt", "scaling-rtt", expect=expect, size=size) if one.rtt_s == rtt_s]
        each = seconds_each(found[0]) if found else None
        if each is None:
            return None
        medians.append(each.median)
    return medians[0] - medians[1]
