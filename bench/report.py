"""The results as one page: report.html, which needs no other file, no network and no script.

    python -m bench.report results.json [-o report.html]

The page is well-formed XML besides, so that tests can read it. Plots come from `figures` and `curves`, numbers from `summary`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from engine.display import format_bytes

from . import curves, figures, style, svg
from .figures import Figure
from .markup import Markup, join, tag
from .results import Results, load
from .summary import (
    ENGINE,
    GIB,
    SIGNS,
    TRANSPORTS,
    WORST_FIRST,
    Group,
    Line,
    caveats,
    duration,
    groups,
    share,
    short,
    with_share,
)

NAV: Final = {
    "outcomes": "What came of it",
    "waste": "What went to the wrong host",
    "speed": "How fast, at what cost",
    "latency": "Where the time goes",
    "scaling": "How it scales",
    "run": "How it was measured",
}


def page(results: Results) -> str:
    """The whole document."""
    found = groups(results)
    sections = {
        "outcomes": _outcomes(found),
        "waste": _waste(found),
        "speed": _speed(found),
        "latency": _latency(found),
        "scaling": _scaling(results),
        "run": _run(results),
    }
    shown = {name: content for name, content in sections.items() if content}
    links = [tag("a", NAV[name], href=f"#{name}") for name in shown]
    body = tag(
        "body",
        tag("header", *_header(results, found), tag("nav", *links, aria_label="Sections")),
        tag("main", *(tag("section", tag("h2", NAV[name]), *parts, id=name) for name, parts in shown.items())),
        tag(
            "footer",
            tag("p", "Made by ", tag("code", "python -m bench.report"), " from ", tag("code", "results.json"), "."),
        ),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"putengine bench {results.meta.when}"),
        tag("style", Markup(style.page())),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


# --- header -----------------------------------------------------------------------------------------------------------


def _header(results: Results, found: Sequence[Group]) -> Iterator[Markup]:
    meta = results.meta
    yield tag("h1", "putengine beside its peers")
    yield tag(
        "p",
        "Uploads of the same objects by each client, in turns, to servers in C that discard what they get: what is compared "
        "is the client. Ratios carry over to other machines, absolute figures don't.",
        class_="lede",
    )
    facts = {
        "run": meta.when,
        "commit": (meta.commit[:12] or "no checkout") + (" with changes" if meta.dirty else ""),
        "CPU": f"{meta.cpu}, {meta.cores} cores",
        "memory": f"{meta.memory_bytes / GIB:.0f} GiB",
        "Linux": meta.kernel,
        "Python": meta.python,
        "TCP": f"{meta.congestion_control}, {'own network namespace' if meta.network_namespace else 'host loopback'}",
    }
    yield tag("ul", *(tag("li", f"{name} ", tag("b", value)) for name, value in facts.items()), class_="facts")
    yield from _doubts(results)
    tiles = list(_tiles(found))
    if tiles:
        yield tag("div", *tiles, class_="tiles")


PHASES_MIN: Final = 2  # of a request that a client tells apart; fewer say nothing
NOTES_SHOWN: Final = 3  # more are folded away


def _doubts(results: Results) -> Iterator[Markup]:
    """What limits the figures, and what the harness noted."""
    told = [tag("li", text) for text in caveats(results)]
    notes = [tag("li", text) for text in results.meta.notes]
    if len(notes) > NOTES_SHOWN:
        notes = [tag("li", tag("details", tag("summary", f"{len(notes)} notes of the run"), tag("ul", *notes)))]
    if told or notes:
        yield tag("ul", *told, *notes, class_="caveats", aria_label="What limits these figures")


def _tiles(found: Sequence[Group]) -> Iterator[Markup]:
    """The handful of figures that say it all, each of the engine as it comes (defaults)."""
    for group in [g for g in found if g.workload.kind == "throughput"][:1]:
        own = next((line for line in group.lines if line.own and line.rate), None)
        peers = [line for line in group.lines if not line.own and line.cpu]
        if own and own.ratio:
            limit = group.limit.client if group.limit else ""
            yield _tile(share(own.ratio), f"of the rate of {limit}, a bare C loop: {group.title}, {own.label}")
        if own and own.cpu and peers:
            costs = [line.cpu.median for line in peers if line.cpu]
            yield _tile(
                short(own.cpu.median),
                f"CPU seconds a GiB for {own.label}; {short(min(costs))} to {short(max(costs))} for its {len(peers)} peers",
            )
    yield from _fault_tiles([group for group in found if group.workload.kind == "fault"])


def _fault_tiles(faults: Sequence[Group]) -> Iterator[Markup]:
    good: dict[str, int] = {}
    wasted: dict[str, float] = {}
    for group in faults:
        for line in group.lines:
            good[line.client] = good.get(line.client, 0) + line.good
            wasted[line.client] = wasted.get(line.client, 0.0) + (line.wasted.median if line.wasted else 0.0)
    own, own_wasted = good.pop(ENGINE, None), wasted.pop(ENGINE, 0.0)
    if own is not None:
        peers = f"; peers {min(good.values())} to {max(good.values())}" if good else ""
        yield _tile(f"{own} of {len(faults)}", f"faults end as a user needs with {ENGINE}{peers}")
        peers = (
            f"; peers {format_bytes(min(wasted.values()))} to {format_bytes(max(wasted.values()))}" if wasted else ""
        )
        yield _tile(
            format_bytes(own_wasted), f"body bytes of {ENGINE} at hosts that refused them, all faults together{peers}"
        )
    if faults:
        losers = sorted({line.client for g in faults for line in g.lines if line.outcome in ("silently-wrong", "hung")})
        yield _tile(
            str(len(losers)), f"clients silently wrong or hung: {', '.join(losers) or 'none'}", bad=bool(losers)
        )


def _tile(figure: str, text: str, bad: bool = False) -> Markup:
    return tag("div", tag("b", figure), tag("span", text), class_="tile bad" if bad else "tile")


# --- outcomes ---------------------------------------------------------------------------------------------------------


def _outcomes(found: Sequence[Group]) -> list[Markup]:
    if not found:
        return []
    faults: dict[str, list[Group]] = {}
    for group in found:
        if group.workload.kind == "fault":
            faults.setdefault(group.name, []).append(group)
    columns = [[group for group in found if group.workload.kind != "fault"], *faults.values()]
    titles = ["ordinary uploads", *(groups[0].workload.title for groups in faults.values())]
    shown = [(title, column) for title, column in zip(titles, columns, strict=True) if column]
    heads = [tag("th", "client", scope="col"), *(tag("th", title, scope="col") for title, _ in shown)]
    rows = []
    for name in dict.fromkeys(line.client for group in found for line in group.lines):
        cells = [_cell(name, column) for _, column in shown]
        rows.append(tag("tr", tag("th", name, scope="row"), *cells, class_="own" if name == ENGINE else None))
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows), class_="matrix")
    return [
        tag(
            "p",
            "Green: what a user should get, an object stored with the right digest, or a clear error where the server's no is "
            "final. Everything else is shown by its name. Below it, the most body bytes that a refusing host got.",
        ),
        tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="Outcomes by client and workload"),
        *_wrongs(found),
    ]


def _cell(client: str, column: Sequence[Group]) -> Markup:
    """The worst that came of a client's runs in these groups, and where, if not everywhere."""
    pairs = [(group, line) for group in column for line in group.lines if line.client == client]
    if not pairs:
        return tag("td", "·", class_="o-none", title="not run")
    bad = [(group, line) for group, line in pairs if not line.good]
    _, line = min(bad or pairs, key=lambda pair: WORST_FIRST.index(pair[1].outcome))
    wasted = max(each.wasted.high for _, each in pairs if each.wasted)
    sign = SIGNS["stored"] if line.good else SIGNS["error" if line.outcome == "stored" else line.outcome]
    return tag(
        "td",
        tag("b", f"{sign} {line.verdict}"),
        tag("small", _where(bad, column)) if bad and len(bad) < len(pairs) else None,
        tag("i", format_bytes(wasted)) if wasted else None,
        class_="o-good" if line.good else f"o-{line.outcome}",
        title=line.detail or None,
    )


def _where(bad: Sequence[tuple[Group, Line]], column: Sequence[Group]) -> str:
    """One fault is run over two transports; ordinary uploads are many workloads."""
    names = list(dict.fromkeys(group.transport for group, _ in bad))
    if len({group.name for group in column}) == 1:
        return f"over {' and '.join(TRANSPORTS[name] for name in names)}"
    return f"at {'; '.join(dict.fromkeys(group.workload.title for group, _ in bad))}"


def _wrongs(found: Sequence[Group]) -> Iterator[Markup]:
    """The failures that nobody is told of, in full sentences."""
    worst = [(g, line) for g in found for line in g.lines if line.outcome in ("silently-wrong", "hung")]
    if worst:
        yield tag("h3", "Silently wrong, or hung")
        yield tag(
            "ul",
            *(
                tag(
                    "li",
                    tag("b", f"{line.label}, {group.title}: {line.verdict}. "),
                    line.detail,
                    class_=f"o-{line.outcome}",
                )
                for group, line in worst
            ),
            class_="wrongs",
        )


# --- plots ------------------------------------------------------------------------------------------------------------


def _waste(found: Sequence[Group]) -> list[Markup]:
    faults = [group for group in found if group.workload.kind == "fault"]
    if not faults:
        return []
    wasted = [g for g in faults if any(line.wasted and line.wasted.median for line in g.lines)]
    plain = [group for group in wasted if group.transport == "plain"] or wasted
    shown = {group.name for group in plain}
    clean = dict.fromkeys(group.workload.title for group in faults if group.name not in shown)
    told = f"Nobody wasted a byte in: {', '.join(clean)}. " if clean else ""
    cards = [
        _figure(group.title, figures.waste(group), join(*(_numbers(g) for g in faults if g.name == group.name)))
        for group in plain
    ]
    return [
        tag(
            "p",
            "A byte sent to a server that says no is time, money, and data where it does not belong. ",
            f"{told}Figures over TLS are below each plot.",
        ),
        tag("div", *cards, class_="grid"),
        *(_numbers(group) for group in faults if group.name not in shown),
    ]


def _speed(found: Sequence[Group]) -> list[Markup]:
    made: list[Markup] = []
    for group in found:
        if group.workload.kind == "fault":
            continue
        size = format_bytes(group.workload.object_bytes)
        at_once = f", {group.workload.concurrency} at once" if group.workload.concurrency > 1 else ""
        made.append(tag("h3", group.title, " ", tag("small", f"objects of {size}{at_once}")))
        rate = "Requests a second" if group.workload.kind == "requests" else "Throughput"
        cards = [(rate, figures.rate(group)), ("CPU", figures.cost(group))]
        latency = figures.percentiles(group)
        cards.append(("Latency", latency) if latency else ("Peak memory", figures.memory(group)))
        made.append(tag("div", *(_figure(title, figure) for title, figure in cards), class_="grid"))
        made.append(_numbers(group))
    if not made:
        return []
    intro = (
        "engine is blue; whiskers are quartiles; a ~ marks rounds during which others used the machine. Clients that stored "
        "nothing have no bar, however fast they failed. The numbers below each row say which hashes a client computed: compare "
        "like with like."
    )
    return [tag("p", intro), *made]


def _latency(found: Sequence[Group]) -> list[Markup]:
    by_client: dict[str, list[tuple[Group, Line]]] = {}
    for group in found:
        for line in group.lines:
            if (
                line.timings
                and sum(value > 0 for phase, value in line.timings.items() if phase != "total") >= PHASES_MIN
            ):
                by_client.setdefault(line.label, []).append((group, line))
    cards = [_figure(name, figures.phases(name, pairs)) for name, pairs in by_client.items()]
    return [tag("div", *cards, class_="grid wide")] if cards else []


def _scaling(results: Results) -> list[Markup]:
    found = curves.figures(results)
    if not found:
        return []
    heads = (*curves.NUMBERS, *curves.NUMBERS_MORE)
    return [
        tag("div", *(_figure(title, figure) for title, figure in found), class_="grid wide"),
        tag(
            "details",
            tag("summary", "All numbers: scaling"),
            _table([heads, *curves.numbers(results)], "Numbers: scaling"),
        ),
    ]


def _table(rows: Sequence[Sequence[str]], told: str) -> Markup:
    """Headings first; the first cell of a row is its name."""
    head = tag("tr", *(tag("th", cell, scope="col", class_=None if i else "text") for i, cell in enumerate(rows[0])))
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows[1:]]
    table = tag("table", tag("thead", head), tag("tbody", *body))
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=told)


def _figure(title: str, figure: Figure, extra: Markup | None = None) -> Markup:
    legend = [
        tag("li", text, class_=kind)
        if kind.startswith("sign")
        else tag("li", tag("span", class_=f"swatch {kind}"), text)
        for kind, text in figure.legend
    ]
    return tag(
        "figure",
        tag("figcaption", tag("h4", title), tag("small", figure.unit)),
        tag("ul", *legend, class_="legend") if legend else None,
        svg.inline(figure.plot),
        _table(figure.table, f"Numbers: {title}") if figure.table else None,
        tag(
            "p",
            tag("b", "Shows "),
            _lower(figure.shows.strip()),
            " ",
            tag("b", "Not "),
            figure.shows_not,
            class_="says",
        ),
        extra,
    )


def _lower(text: str) -> str:
    return text if text[:2].isupper() or text[:1] == "p" else text[:1].lower() + text[1:]


# --- numbers ----------------------------------------------------------------------------------------------------------


def _numbers(group: Group) -> Markup:
    """Every figure of a group as a table: for those who don't see the plots, and for copying."""
    heads = ["client", group.unit, "of limit", group.cpu_unit, "peak MiB", "wrong host", "wire", "seconds", "rounds"]
    texts = ["outcome", "hashes", "how"]
    rows = []
    for line in [*group.limits, *group.ranked]:
        cells = [*_figures_of(line)]
        told = [line.verdict if line.tuning else "limit", ", ".join(line.hashes) or "–", line.how]
        kind = "own" if line.own else None if line.tuning else "limit"
        mark = " ~" if line.spoilt else ""
        rows.append(
            tag(
                "tr",
                tag("th", line.label + mark, scope="row"),
                *(tag("td", cell) for cell in cells),
                *(tag("td", cell, class_="text") for cell in told),
                class_=kind,
            )
        )
    head = tag(
        "tr",
        *(
            tag("th", name, scope="col", class_="text" if name in ("client", *texts) else None)
            for name in heads + texts
        ),
    )
    table = tag("table", tag("thead", head), tag("tbody", *rows))
    region = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=f"Numbers: {group.title}")
    return tag("details", tag("summary", f"All numbers: {group.title}"), region)


def _figures_of(line: Line) -> list[str]:
    return [
        with_share(line.rate),
        share(line.ratio) if line.ratio else "–",
        with_share(line.cpu),
        short(line.peak_mib.median) if line.peak_mib else "–",
        format_bytes(line.wasted.median) if line.wasted else "–",
        f"{line.wire.median:.4f}" if line.wire else "–",
        duration(line.seconds.median) if line.seconds else "–",
        str(sum(line.outcomes.values())),
    ]


def _run(results: Results) -> list[Markup]:
    meta = results.meta
    versions = [
        tag("tr", tag("th", name, scope="row"), tag("td", text, class_="text")) for name, text in meta.versions.items()
    ]
    missing = [
        tag("tr", tag("th", name, scope="row"), tag("td", text, class_="text")) for name, text in meta.missing.items()
    ]
    made = [
        tag("p", "Command: ", tag("code", meta.command)),
        tag(
            "p",
            f"{meta.spent_s:.0f} s; {meta.openssl} in Python, {meta.openssl_of_c or 'none'} in the servers; {meta.libc}.",
        ),
        tag(
            "p",
            "Rates and costs are of rounds that stored their objects. What each number is, and is not: bench/README.md.",
        ),
        tag("h3", "Versions"),
        tag("div", tag("table", tag("tbody", *versions)), class_="scroll"),
    ]
    if missing:
        made += [tag("h3", "Not measured"), tag("div", tag("table", tag("tbody", *missing)), class_="scroll")]
    return made


def write(results: Results, path: Path) -> None:
    path.write_text(page(results), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.report", description="Make report.html of a results.json.")
    parser.add_argument("results", help="results.json of a run")
    parser.add_argument("-o", "--output", default="report.html", help="where the page goes (default: %(default)s)")
    options = parser.parse_args(argv)
    write(load(options.results), Path(options.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
