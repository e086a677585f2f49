"""Plots as SVG: bars with whiskers, stacks, lines. Knows of values and labels, nothing of benchmarks or pages.

Everything horizontal is a percentage of the plot, everything vertical and every letter is in pixels: a plot that is made
narrower keeps the size of its text, so one drawing serves a phone and a desk. Labels stand left of x = 0, outside of the plot:
whoever places it leaves `Plot.left` pixels free there (`inline` by padding, `standalone` by nesting). Colours come from
classes; the style sheet is the page's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias

from .markup import Markup, join, percent, tag

ROW: Final = 23  # pixels from one bar to the next
STACK_ROW: Final = 36  # …where the label stands above it
BAR: Final = 13  # height of one
ZERO_ROOM: Final = 20.0  # percent of a logarithmic scale that are zero's
TICKS_MAX: Final = 3  # of a row of bars on a logarithmic scale, whose numbers are long
AXIS: Final = 20  # for the numbers below a plot
TEXT_DROP: Final = 4.2  # from the middle of a line of text down to its base line
LETTER: Final = 6.7  # width of an average letter at 12.5 px; what labels are given room by

Down: TypeAlias = Callable[[float], float]  # a value to pixels from the top


# --- scales -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Where a value stands between 0 and 100. On a logarithmic scale with a `zero_room` zero stands
    at 0 and the lowest value there."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False
    zero_room: float = 0.0

    def at(self, value: float) -> float:
        if not self.log:
            return 100 * (value - self.low) / (self.high - self.low)
        if value <= 0:
            return 0.0
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return max(0.0, self.zero_room + (100 - self.zero_room) * share)


def linear(high: float, count: int = 3) -> Scale:
    """From 0 to `high` with round ticks, thousands as "5k"."""
    high = high if high > 0 else 1.0
    step = _round_step(high / count)
    values = [i * step for i in range(int(high / step + 1e-9) + 1)]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return Scale(0.0, high, tuple((v, f"{v / 1000:g}k" if step >= 1000 and v else f"{v:.{digits}f}") for v in values))


def logarithmic(values: Iterable[float], ticks: Sequence[tuple[float, str]], count: int = TICKS_MAX) -> Scale:
    """From the last tick that is not above the positive values to the first that is not below them. With a zero among them
    there is a place for it at the left, apart from the rest."""
    every = list(values)
    positive = [value for value in every if value > 0] or [ticks[0][0], ticks[-1][0]]
    low = max((t for t, _ in ticks if t <= min(positive)), default=min(positive))
    high = min((t for t, _ in ticks if t >= max(positive)), default=max(positive))
    high = high if high > low else low * 10
    shown = [tick for tick in ticks if low <= tick[0] <= high]
    shown = shown[:: math.ceil(len(shown) / count)]
    zero = any(value <= 0 for value in every)
    return Scale(low, high, ((0.0, "0"), *shown) if zero else tuple(shown), True, ZERO_ROOM if zero else 0.0)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough * (1 - 1e-9))


# --- what is drawn ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One row. `kind` is its class: "own" for what the plot is about, "peer" for the others. Without a value there is only
    the text, in the colour of `tone`."""

    label: str
    value: float | None
    text: str
    kind: str = "peer"
    low: float | None = None
    high: float | None = None
    tone: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Stack:
    """One row of pieces, `(class, value, hint)` from left to right."""

    label: str
    pieces: tuple[tuple[str, float, str], ...]
    text: str
    kind: str = "peer"


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    low: float
    high: float
    hint: str


@dataclass(frozen=True)
class Series:
    """One curve. `points` were measured; `curve` is drawn through whatever was computed; `kind` is the class of both."""

    name: str
    kind: str
    points: tuple[Point, ...] = ()
    curve: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Plot:
    """A drawing, with what those who don't see it are told. `left`, `right`: pixels needed beside it."""

    title: str
    description: str
    body: Markup
    height: float
    left: float
    right: float = 10


# --- rows -------------------------------------------------------------------------------------------------------------


def bars(
    title: str, description: str, rows: Sequence[Bar], scale: Scale, limit: tuple[float, str] | None = None
) -> Plot:
    """Horizontal bars with their texts in a column at the right, whiskers where there is a spread, and a line across at
    `limit` (value, label)."""
    top = 16.0 if limit else 2.0
    drawn = [_bar(row, top + ROW * i + ROW / 2, scale) for i, row in enumerate(rows)]
    bottom = top + ROW * len(rows)
    line = [] if limit is None else _limit(scale.at(limit[0]), limit[1], bottom)
    right = _room([row.text for row in rows if row.value is not None])
    return Plot(title, description, join(*_grid(scale, top, bottom), *line, *drawn), bottom + AXIS, _left(rows), right)


def stacks(title: str, description: str, rows: Sequence[Stack], scale: Scale) -> Plot:
    """Bars of pieces, each below its label: labels may be long, and the pieces have the whole width."""
    drawn: list[Markup] = []
    for i, row in enumerate(rows):
        middle = STACK_ROW * i + STACK_ROW - BAR / 2
        reached = 0.0
        drawn.append(tag("text", row.label, x=0, y=middle - BAR + 1, class_=f"label {row.kind}"))
        for kind, value, hint in row.pieces:
            start, reached = reached, reached + value
            width = percent(scale.at(reached) - scale.at(start))
            drawn.append(_rect(percent(scale.at(start)), middle, width, f"piece {kind}", hint))
        drawn.append(_after(100, row.text, middle, "value"))
    bottom = STACK_ROW * len(rows) + 4
    ticks = [
        tag("text", text, x=percent(scale.at(value)), y=bottom + 12, text_anchor="middle", class_="tick")
        for value, text in scale.ticks
    ]
    return Plot(title, description, join(*drawn, *ticks), bottom + AXIS, 8, _room([row.text for row in rows]))


def dots(
    title: str, description: str, rows: Sequence[tuple[str, str, Sequence[tuple[float, str]]]], scale: Scale
) -> Plot:
    """A row of values each, joined by a line: `(label, kind, [(value, hint)])`. The first is drawn full, the others open."""
    drawn: list[Markup] = []
    for i, (label, kind, values) in enumerate(rows):
        middle = 2 + ROW * i + ROW / 2
        places = [percent(scale.at(value)) for value, _ in values]
        drawn.append(_label(label, kind, middle))
        drawn.append(tag("line", x1=places[0], x2=places[-1], y1=middle, y2=middle, class_=f"span {kind}"))
        for j, (place, (_, hint)) in enumerate(zip(places, values, strict=True)):
            shape = f"dot {kind}" if j == 0 else f"dot open {kind}"
            drawn.append(tag("circle", tag("title", hint), cx=place, cy=middle, r=4.2, class_=shape))
    bottom = 2 + ROW * len(rows)
    return Plot(
        title, description, join(*_grid(scale, 2, bottom), *drawn), bottom + AXIS, _room([row[0] for row in rows])
    )


def _left(rows: Sequence[Bar]) -> float:
    return _room([row.label for row in rows])


def _room(texts: Sequence[str]) -> float:
    return max((len(text) for text in texts), default=0) * LETTER + 10


def _bar(row: Bar, middle: float, scale: Scale) -> Markup:
    kind = f"{row.kind} {row.tone}".rstrip()
    parts = [tag("title", row.hint), _label(row.label, row.kind, middle)]
    if row.value is None:
        return tag("g", *parts, _after(0, row.text, middle, f"value loud {row.tone}"))
    parts.append(_rect("0", middle, percent(scale.at(row.value)), f"bar {kind}"))
    if row.low is not None and row.high is not None and row.high > row.low:
        parts.append(_whisker(scale.at(row.low), scale.at(row.high), middle))
    parts.append(_after(100, row.text, middle, f"value {kind}"))
    return tag("g", *parts)


def _rect(x: str, middle: float, width: str, kind: str, hint: str | None = None) -> Markup:
    told = tag("title", hint) if hint else None
    return tag("rect", told, x=x, y=middle - BAR / 2, width=width, height=BAR, class_=kind)


def _whisker(low: float, high: float, middle: float) -> Markup:
    a, b = percent(low), percent(high)
    return tag(
        "g",
        tag("line", x1=a, x2=b, y1=middle, y2=middle),
        *(tag("line", x1=x, x2=x, y1=middle - 3.5, y2=middle + 3.5) for x in (a, b)),
        class_="whisker",
    )


def _label(text: str, kind: str, middle: float) -> Markup:
    return tag("text", text, x=-8, y=middle + TEXT_DROP, text_anchor="end", class_=f"label {kind}")


def _after(x: float, text: str, middle: float, kind: str) -> Markup:
    return tag("text", text, x=percent(x), dx=6, y=middle + TEXT_DROP, class_=kind)


def _grid(scale: Scale, top: float, bottom: float) -> list[Markup]:
    drawn = []
    for value, text in scale.ticks:
        x = percent(scale.at(value))
        drawn.append(tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        drawn.append(tag("text", text, x=x, y=bottom + 14, text_anchor="middle", class_="tick"))
    return drawn


def _limit(x: float, text: str, bottom: float) -> list[Markup]:
    anchor = "end" if x > 55 else "start"
    return [
        tag("line", x1=percent(x), x2=percent(x), y1=13, y2=bottom, class_="limit"),
        tag("text", text, x=percent(x), y=10, dx=2 if anchor == "end" else -2, text_anchor=anchor, class_="limit"),
    ]


# --- curves -----------------------------------------------------------------------------------------------------------


def lines(
    title: str,
    description: str,
    series: Sequence[Series],
    x: Scale,
    y: Scale,
    *,
    height: float = 230,
    marks: Sequence[tuple[float, str]] = (),
) -> Plot:
    """Curves over `x`, points with whiskers, and upright lines at `marks` (x, label)."""
    bottom = 16 + height

    def down(value: float) -> float:
        return bottom - height * y.at(value) / 100

    drawn: list[Markup] = []
    for value, text in y.ticks:
        drawn.append(tag("line", x1=0, x2="100%", y1=down(value), y2=down(value), class_="grid"))
        drawn.append(tag("text", text, x=-7, y=down(value) + TEXT_DROP, text_anchor="end", class_="tick"))
    for value, text in x.ticks:
        at = percent(x.at(value))
        drawn.append(tag("line", x1=at, x2=at, y1=bottom, y2=bottom + 4, class_="grid"))
        drawn.append(tag("text", text, x=at, y=bottom + 17, text_anchor="middle", class_="tick"))
    for value, text in marks:
        drawn += _limit(x.at(value), text, bottom)
    for one in series:
        ends = [(x.at(a), down(b)) for a, b in one.curve]
        drawn += [
            tag("line", x1=percent(a), y1=b, x2=percent(c), y2=d, class_=f"curve {one.kind}")
            for (a, b), (c, d) in pairwise(ends)
        ]
    for one in series:
        drawn += [_point(point, x.at(point.x), down, one.kind) for point in one.points]
    left = max((len(text) for _, text in y.ticks), default=0) * LETTER + 10
    return Plot(title, description, join(*drawn), bottom + AXIS + 4, left, 16)


def _point(point: Point, x: float, down: Down, kind: str) -> Markup:
    at = percent(x)
    spread = tag("line", x1=at, x2=at, y1=down(point.low), y2=down(point.high), class_=f"spread {kind}")
    mark = tag("circle", tag("title", point.hint), cx=at, cy=down(point.y), r=3.6, class_=f"dot {kind}")
    return join(spread, mark)


# --- placing ----------------------------------------------------------------------------------------------------------


def inline(plot: Plot, left: float | None = None) -> Markup:
    """The plot as an element of a page, as wide as there is room. `left` aligns several plots below one another."""
    room = plot.left if left is None else left
    return tag(
        "svg",
        tag("title", plot.title),
        tag("desc", plot.description),
        plot.body,
        role="img",
        class_="plot",
        height=plot.height,
        style=f"padding:0 {plot.right:g}px 0 {room:g}px;height:{plot.height:g}px",
    )


def standalone(plots: Sequence[tuple[str, Plot]], width: float, style: str, *, title: str, note: str) -> Markup:
    """A file of its own: plots below one another, each under its heading, a note at the end. Only what it needs is in it."""
    left = max(plot.left for _, plot in plots) + 8
    right = max(plot.right for _, plot in plots)
    y, drawn = 44.0, [tag("text", title, x=16, y=28, class_="title")]
    for heading, plot in plots:
        drawn.append(tag("text", heading, x=16, y=y + 14, class_="heading"))
        inner = tag(
            "svg", plot.body, x=left, y=y + 24, width=width - left - right, height=plot.height, overflow="visible"
        )
        drawn.append(inner)
        y += 24 + plot.height + 14
    drawn.append(tag("text", note, x=16, y=y + 8, class_="note"))
    height = y + 22
    return tag(
        "svg",
        tag("title", title),
        tag("desc", " ".join(plot.description for _, plot in plots)),
        tag("style", Markup(style)),
        tag("rect", width=width, height=height, rx=6, class_="paper"),
        *drawn,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
    )
