"""The README's chart, as SVG files in light and dark: one PUT, what it costs, and what a refusal wastes, by client.

    python -m bench.chart bench/results/NAME.json        writes docs/bench-light.svg and docs/bench-dark.svg

Each client stands with its better tuning: the chart shows what clients can do, the report all of what they did.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from engine.display import format_bytes

from . import style, svg
from .figures import BYTE_TICKS
from .results import Results, load
from .summary import ENGINE, SIGNS, WORDS, Group, Line, groups, short

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"
WIDTH: Final = 720.0
CLIENTS_MAX: Final = 9  # rows of each plot: engine, and the fastest of the others


def draw(results: Results, theme: style.Theme) -> str:
    """One chart as a file. Raises ValueError when no throughput workload over plain HTTP was measured."""
    found = groups(results)
    bulk = next((g for g in found if g.workload.kind == "throughput" and g.transport == "plain"), None)
    if bulk is None:
        raise ValueError("the chart needs a throughput workload over plain HTTP")
    plots = [*_bulk(bulk), *_wasted(found)]
    meta = results.meta
    note = f"{meta.cpu}, {meta.cores} cores, Linux {meta.kernel}, {meta.when[:10]}, {meta.commit[:8]}"
    note += "; each client with its faster tuning"
    note += (
        ""
        if meta.network_namespace and meta.congestion_control == "reno"
        else f"; host loopback, {meta.congestion_control}"
    )
    title = f"putengine beside its peers: {bulk.workload.title}"
    return svg.standalone(plots, WIDTH, style.chart(theme), title=title, note=note) + "\n"


def _bulk(group: Group) -> Iterator[tuple[str, svg.Plot]]:
    shown = _best(group)
    limit = group.limit
    ceiling = limit.rate.median if limit and limit.rate else 0.0
    rates = [_bar(line, line.rate.median, short(line.rate.median)) for line in shown if line.rate]
    top = max([ceiling, *(bar.value or 0.0 for bar in rates)])
    mark = (ceiling, f"{limit.client}, a bare C loop: {short(ceiling)}") if limit and ceiling else None
    told = "; ".join(f"{bar.label}: {bar.text} {group.unit}" for bar in rates)
    yield f"{group.unit}, more is better", svg.bars("Throughput", told, rates, svg.linear(top), mark)
    costs = [_bar(line, line.cpu.median, short(line.cpu.median)) for line in shown if line.cpu]
    told = "; ".join(f"{bar.label}: {bar.text} {group.cpu_unit}" for bar in costs)
    scale = svg.linear(max(bar.value or 0.0 for bar in costs))
    yield f"{group.cpu_unit}, less is better", svg.bars("CPU", told, costs, scale)


def _wasted(found: Sequence[Group]) -> Iterator[tuple[str, svg.Plot]]:
    """The first fault in which anything was wasted."""
    for group in found:
        lines = sorted(_best(group), key=lambda line: (not line.own, line.wasted.median if line.wasted else 0.0))
        if group.workload.kind != "fault" or not any(line.wasted and line.wasted.median for line in lines):
            continue
        bars = []
        for line in lines:
            value = line.wasted.median if line.wasted else 0.0
            text = format_bytes(value) + ("" if line.good else f" {SIGNS[line.outcome]} {WORDS[line.outcome]}")
            bars.append(_bar(line, value, text))
        scale = svg.logarithmic([0.0, *(bar.value or 0.0 for bar in bars)], BYTE_TICKS, 5)
        told = "; ".join(f"{bar.label}: {bar.text}" for bar in bars)
        size = format_bytes(group.workload.object_bytes).replace(".0 ", " ")
        heading = f"{group.workload.title}: bytes of {size} that the refusing host got, logarithmic"
        yield heading, svg.bars(group.workload.title, told, bars, scale)
        return


def _best(group: Group) -> list[Line]:
    """Of each client the faster tuning, engine and the fastest others; in faults every one, as it comes."""
    best: dict[str, Line] = {}
    for line in group.ranked:
        best.setdefault(line.client, line)
    rated = [line for line in best.values() if line.rate or group.workload.kind == "fault"]
    if group.workload.kind == "fault":
        return rated
    own = [line for line in rated if line.own]
    return sorted(own + [line for line in rated if not line.own][: CLIENTS_MAX - len(own)], key=rated.index)


def _bar(line: Line, value: float, text: str) -> svg.Bar:
    tone = {"silently-wrong": "wrong", "hung": "hung", "error": "error"}.get(line.outcome, "") if not line.good else ""
    return svg.Bar(line.client, value, text, "own" if line.client == ENGINE else "peer", tone=tone)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.chart", description="Draw the README's chart.")
    parser.add_argument("results", help="results.json of a run")
    parser.add_argument("-d", "--directory", type=Path, default=DOCS, help="where the files go (default: docs)")
    options = parser.parse_args(argv)
    found = load(options.results)
    for theme in style.COLOURS:
        (options.directory / f"bench-{theme}.svg").write_text(draw(found, theme), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
