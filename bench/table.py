"""The results as text for a terminal: a table for each workload and transport, at most 100 columns wide.

python -m bench.table results.json
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Final

from engine.display import Paint, fit, format_bytes, table

from .results import Results, load
from .summary import Group, Line, caveats, duration, groups, share, short, with_share

COLUMNS: Final = 100
CLIENT: Final = 24  # a name longer than this is cut
_HASHES: Final = {"crc64nvme": "crc64"}  # shorter, where the name would cost a column

Column = tuple[str, str, Callable[[Line], str]]  # heading, "<" or ">", text of a line


def lines(results: Results, paint: Paint) -> list[str]:
    """All tables, between what was run on and what was missing."""
    told = [*_header(results, paint), ""]
    for kind, found in groupby(groups(results), key=lambda group: group.workload.kind):
        for group in found:
            told += [*_group(group, kind, paint), ""]
    if results.scaling:
        told += ["scaling: see report.html", ""]
    return [*told, *_footer(results, paint)]


def _header(results: Results, paint: Paint) -> Iterator[str]:
    meta = results.meta
    commit = (meta.commit[:12] or "no checkout") + (" with changes" if meta.dirty else "")
    yield paint.bold(f"putengine bench  {meta.when}  {commit}")
    where = "own network namespace" if meta.network_namespace else "the host's loopback"
    yield fit(f"{meta.cpu}, {meta.cores} cores, Linux {meta.kernel}, Python {meta.python}", COLUMNS)
    yield fit(f"{where}, {meta.congestion_control}, {meta.openssl}, {meta.spent_s:.0f} s", COLUMNS)
    for caveat in caveats(results):
        yield from (paint.yellow(line) for line in wrapped(caveat, "! ", "  "))
    if meta.notes:
        yield paint.yellow(f"! {len(meta.notes)} note{'s' * (len(meta.notes) > 1)} at the end")


def _footer(results: Results, paint: Paint) -> Iterator[str]:
    if results.meta.missing:
        yield paint.bold("not measured")
        width = max(len(name) for name in results.meta.missing)
        for name, remedy in sorted(results.meta.missing.items()):
            yield from wrapped(remedy, f"  {name:{width}}  ", " " * (width + 4))
        yield ""
    if results.meta.notes:
        yield paint.bold("notes")
        for note in results.meta.notes:
            yield from wrapped(note, "  ", "    ")
        yield ""
    yield from wrapped(
        "Medians over rounds that stored, ± half the distance between the quartiles. Limit: share of the best bare C loop's "
        "rate. MiB: peak memory of the client's processes, interpreter included. Wrong host: body bytes that reached a "
        "server which had refused them. Wire: all bytes that servers received, for each byte of the objects. Hashes: over "
        "the body, by the client."
    )


# --- one table --------------------------------------------------------------------------------------------------------


def _group(group: Group, kind: str, paint: Paint) -> Iterator[str]:
    columns = _COLUMNS_OF[kind]
    shown = [*group.limits, *group.ranked] if kind != "fault" else list(group.lines)
    rows = [[heading for heading, _, _ in columns], *([text(line) for _, _, text in columns] for line in shown)]
    made = _narrowed(rows, "".join(align for _, align, _ in columns))
    yield paint.bold(group.title) + paint.dim(_told(group))
    yield paint.dim(fit(made[0], COLUMNS))
    for line, text in zip(shown, made[1:], strict=True):
        yield _painted(line, line in group.limits, fit(text, COLUMNS), paint)
        if line.detail and not line.good:
            yield paint.dim(fit(f"    {line.detail}", COLUMNS))


def _narrowed(rows: list[list[str]], align: str) -> list[str]:
    """The table; where it is too wide, the first column gives way."""
    made = table(rows, align)
    over = max(map(len, made)) - COLUMNS
    if over <= 0:
        return made
    room = max(len(row[0]) for row in rows) - over
    return table([[fit(row[0], room), *row[1:]] for row in rows], align)


def _told(group: Group) -> str:
    work = group.workload
    size = format_bytes(work.object_bytes)
    words = [f"{work.objects} × {size}" if work.objects > 1 else size]
    words += [f"{work.concurrency} at once"] if work.concurrency > 1 else []
    if work.kind == "fault":
        words.append("the server's no is final" if work.best == "error" else "a client should come to: stored")
    return f"  ({', '.join(words)})"


def _painted(line: Line, is_limit: bool, text: str, paint: Paint) -> str:
    if is_limit:
        return paint.dim(text)
    if not line.good:
        text = text.replace(line.verdict, _OUTCOME_PAINT[line.outcome](paint, line.verdict))
    return paint.bold(text) if line.own else text


_OUTCOME_PAINT: Final[dict[str, Callable[[Paint, str], str]]] = {
    "silently-wrong": Paint.red,
    "hung": Paint.red,
    "error": Paint.yellow,
    "stored": Paint.yellow,  # where the server's no should have reached the user
}


# --- columns ----------------------------------------------------------------------------------------------------------


def _client(line: Line) -> str:
    return fit(line.label, CLIENT - 2) + (" ~" if line.spoilt else "")


def _ratio(line: Line) -> str:
    return share(line.ratio) if line.ratio is not None else "–"


def _cpu(line: Line) -> str:
    return short(line.cpu.median) if line.cpu else "–"


def _mib(line: Line) -> str:
    return f"{line.peak_mib.median:.0f}" if line.peak_mib else "–"


def _wasted(line: Line) -> str:
    return format_bytes(line.wasted.median) if line.wasted else "–"


def _wire(line: Line) -> str:
    return f"{line.wire.median:.3f}" if line.wire else "–"


def _hashes(line: Line) -> str:
    return "+".join(_HASHES.get(name, name) for name in line.hashes) or "–"


def _seconds(line: Line) -> str:
    return duration(line.seconds.median) if line.seconds else "–"


def _latency(index: int) -> Callable[[Line], str]:
    return lambda line: duration(line.latency[index]) if line.latency else "–"


def _verdict(line: Line) -> str:
    return line.verdict if line.tuning else "limit"


_COLUMNS_OF: Final[dict[str, tuple[Column, ...]]] = {
    "throughput": (
        ("client", "<", _client),
        ("GiB/s", ">", lambda line: with_share(line.rate)),
        ("limit", ">", _ratio),
        ("CPU-s/GiB", ">", _cpu),
        ("MiB", ">", _mib),
        ("wrong host", ">", _wasted),
        ("wire", ">", _wire),
        ("outcome", "<", _verdict),
        ("hashes", "<", _hashes),
    ),
    "requests": (
        ("client", "<", _client),
        ("requests/s", ">", lambda line: with_share(line.rate)),
        ("limit", ">", _ratio),
        ("CPU µs", ">", _cpu),
        ("p50", ">", _latency(0)),
        ("p99", ">", _latency(2)),
        ("MiB", ">", _mib),
        ("wire", ">", _wire),
        ("outcome", "<", _verdict),
        ("hashes", "<", _hashes),
    ),
    "fault": (
        ("client", "<", _client),
        ("outcome", "<", _verdict),
        ("wrong host", ">", _wasted),
        ("wire", ">", _wire),
        ("seconds", ">", _seconds),
        ("CPU-s/GiB", ">", _cpu),
        ("MiB", ">", _mib),
        ("hashes", "<", _hashes),
    ),
}


# --- text -------------------------------------------------------------------------------------------------------------


def wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    """Lines of at most COLUMNS, the first indented by `first`, others by `rest`; a word that is longer stays whole."""
    return textwrap.wrap(
        text, COLUMNS, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.table", description="Show a results.json on the terminal.")
    parser.add_argument("results", help="results.json of a run")
    for line in lines(load(parser.parse_args(argv).results), Paint.on(sys.stdout)):
        print(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
