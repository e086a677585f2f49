"""What people see of a benchmark run: the terminal's table, the page, the README's chart, against the JSON they are made of."""

from __future__ import annotations

import dataclasses
import io
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import chart, report, results, style, svg, table
from bench.markup import Markup, join, tag
from bench.results import Results, Round, Run
from bench.summary import caveats, duration, groups, share, short, spread, with_share
from engine.display import Paint
from tests import synthetic_results

ROOT = Path(__file__).resolve().parent.parent
GIB = 1 << 30
WORDS = {"stored": "stored", "error": "error", "silently-wrong": "silently wrong", "hung": "hung"}


@pytest.fixture(scope="module")
def run() -> Results:
    return synthetic_results.results_of(rounds=7)


@pytest.fixture(scope="module")
def page(run: Results) -> str:
    return report.page(run)


@pytest.fixture(scope="module")
def tree(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


@pytest.fixture(scope="module")
def shown(run: Results) -> list[str]:
    return table.lines(run, Paint(False))


def text_of(element: ElementTree.Element) -> str:
    return "".join(element.itertext())


def label_of(one: Run) -> str:
    return one.client + (" tuned" if one.tuning == "tuned" else "")


def changed(run: Results, **meta: Any) -> Results:
    return dataclasses.replace(run, meta=dataclasses.replace(run.meta, **meta))


# --- numbers ----------------------------------------------------------------------------------------------------------


def expected_rate(run: Results, one: Run) -> float:
    """The median rate by the file alone: what `summary` must come to, computed another way."""
    kind = run.workloads[one.workload].kind
    stored = [each for each in one.rounds if each.outcome == "stored"]
    return statistics.median(
        each.requests / each.seconds if kind == "requests" else each.bytes / each.seconds / GIB for each in stored
    )


def test_rates_costs_and_ratios_are_those_of_the_file(run: Results) -> None:
    lines = {(g.name, g.transport, line.label): (g, line) for g in groups(run) for line in g.lines}
    assert len(lines) == len(run.runs)
    for one in run.runs:
        group, line = lines[one.workload, one.transport, label_of(one)]
        stored = [each for each in one.rounds if each.outcome == "stored"]
        assert (line.rate is None) == (not stored)
        if line.rate is None:
            continue
        assert line.rate.median == pytest.approx(expected_rate(run, one))
        assert line.rate.low <= line.rate.median <= line.rate.high
        if group.workload.kind != "requests":
            costs = [(each.cpu_user_s + each.cpu_system_s) * GIB / each.bytes for each in stored]
            assert line.cpu is not None
            assert line.cpu.median == pytest.approx(statistics.median(costs))
        if group.limit is not None:
            assert group.limit.rate is not None
            assert line.ratio == pytest.approx(line.rate.median / group.limit.rate.median)


def test_a_round_that_did_not_store_has_no_speed(run: Results) -> None:
    one = next(each for each in run.runs if each.workload == "upload-4GiB")
    broken = dataclasses.replace(one.rounds[0], outcome="error", seconds=1e-6, detail="quick to fail")
    mixed = dataclasses.replace(one, rounds=[broken, *one.rounds[1:]])
    line = groups(dataclasses.replace(run, runs=[mixed]))[0].lines[0]
    assert line.rate is not None
    assert line.rate.count == len(one.rounds) - 1
    assert line.rate.high < 100
    assert line.verdict == "error 1/7"
    assert line.detail == "quick to fail"
    assert not line.good


@pytest.mark.parametrize(
    ("outcomes", "verdict", "good"),
    [
        (["stored"] * 3, "stored", True),
        (["stored", "error", "stored"], "error 1/3", False),
        (["hung", "error", "error"], "hung 1/3", False),
        (["silently-wrong", "hung", "error"], "silently wrong 1/3", False),
    ],
)
def test_the_worst_outcome_is_the_one_that_is_told(
    run: Results, outcomes: list[results.Outcome], verdict: str, good: bool
) -> None:
    one = next(each for each in run.runs if each.workload == "redirect-307")
    rounds = [dataclasses.replace(one.rounds[0], outcome=each) for each in outcomes]
    line = groups(dataclasses.replace(run, runs=[dataclasses.replace(one, rounds=rounds)]))[0].lines[0]
    assert (line.verdict, line.good) == (verdict, good)


def test_an_error_is_right_where_the_servers_no_is_final_and_success_is_not(run: Results) -> None:
    one = next(each for each in run.runs if each.workload == "refused-403")
    assert groups(dataclasses.replace(run, runs=[one]))[0].lines[0].verdict == "refused"
    wrong = [dataclasses.replace(each, outcome="stored") for each in one.rounds]
    line = groups(dataclasses.replace(run, runs=[dataclasses.replace(one, rounds=wrong)]))[0].lines[0]
    assert not line.good


def test_spreads_are_quartiles_and_extremes_of_few() -> None:
    assert spread([]) is None
    few, many = spread([3.0, 1.0, 2.0]), spread([float(i) for i in range(9)])
    assert few is not None
    assert many is not None
    assert (few.low, few.median, few.high) == (1, 2, 3)
    assert (many.low, many.median, many.high) == (2, 4, 6)
    assert with_share(many) == "4.00 ±50%"
    assert with_share(None) == "–"


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (short, 0, "0"),
        (short, 0.07119, "0.071"),
        (short, 0.9996, "1.00"),
        (short, 8.414, "8.41"),
        (short, 41.24, "41.2"),
        (short, 12345.6, "12 346"),
        (share, 0.943, "94%"),
        (share, 0.031, "3.1%"),
        (duration, 0.000088, "88.0 µs"),
        (duration, 0.00123, "1.23 ms"),
        (duration, 0.9999, "1.00 s"),
        (duration, 20.0, "20.0 s"),
    ],
)
def test_numbers_have_three_digits(function: Callable[[float], str], value: float, text: str) -> None:
    assert function(value) == text


# --- the terminal -----------------------------------------------------------------------------------------------------


def test_the_table_fits_a_hundred_columns_and_has_no_codes_in_a_pipe(shown: list[str]) -> None:
    assert max(map(len, shown)) <= table.COLUMNS
    assert "\x1b" not in "\n".join(shown)


def test_colours_change_nothing_but_colours(run: Results, shown: list[str]) -> None:
    painted = table.lines(run, Paint(True))
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in painted] == shown
    wrong = sum(one.rounds[0].outcome == "silently-wrong" for one in run.runs)
    assert sum("\x1b[31msilently wrong" in line for line in painted) == wrong > 0
    assert any("\x1b[31mhung" in line for line in painted)


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Paint.on(Terminal()).enabled
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Paint.on(Terminal()).enabled


def is_named(row: str, label: str) -> bool:
    """Whether the row's first cell is this client, perhaps cut."""
    cell = re.split(r"  +", row)[0].removesuffix(" ~")
    return cell == label or (cell.endswith("…") and label.startswith(cell[:-1]))


def test_the_table_has_every_run_with_the_files_numbers(run: Results, shown: list[str]) -> None:
    titles = {f"{work.title} · {'TLS' if transport == 'tls' else transport}": (name, transport)
              for name, work in run.workloads.items() for transport in ("plain", "tls")}  # fmt: skip
    rows: dict[tuple[str, str], list[str]] = {}
    below: list[str] = []
    for line in shown:
        found = next((where for title, where in titles.items() if line.startswith(title + "  (")), None)
        below = rows.setdefault(found, []) if found else below
        below.append(line)
    for one in run.runs:
        row = next(line for line in rows[one.workload, one.transport] if is_named(line, label_of(one)))
        outcome = one.rounds[0].outcome
        right = outcome == run.workloads[one.workload].best == "error"
        assert ("refused" if right else WORDS[outcome]) in row
        if outcome == "stored" and run.workloads[one.workload].kind != "fault":
            assert f" {short(expected_rate(run, one))} ±" in row
        if run.workloads[one.workload].kind == "fault":
            wasted = statistics.median(each.wrong_host_body_bytes for each in one.rounds)
            assert table.format_bytes(wasted) in row


def test_the_table_names_what_is_missing_and_how_to_install_it(run: Results, shown: list[str]) -> None:
    for name, remedy in run.meta.missing.items():
        assert any(re.fullmatch(rf"  {name} +{re.escape(remedy)}", line) for line in shown)


@pytest.mark.parametrize(
    ("meta", "told"),
    [
        ({"network_namespace": False}, "host's loopback"),
        ({"congestion_control": "bbr"}, "bbr, not reno"),
        ({"load_before": 1.7}, "load 1.70"),
        ({"dirty": True}, "not committed"),
        ({"notes": ["rounds were cut"]}, "rounds were cut"),
    ],
)
def test_what_makes_figures_doubtful_is_said_everywhere(run: Results, meta: dict[str, Any], told: str) -> None:
    doubtful = changed(run, **meta)
    assert any(told in text for text in [*caveats(doubtful), *doubtful.meta.notes])
    assert told in " ".join("\n".join(table.lines(doubtful, Paint(False))).split())
    assert told in report.page(doubtful).replace("&#x27;", "'")


def test_many_notes_are_folded_and_all_there(run: Results) -> None:
    notes = [f"note number {i}" for i in range(12)]
    noted = changed(run, notes=notes)
    tree = ElementTree.fromstring(report.page(noted).removeprefix("<!DOCTYPE html>\n"))
    box = next(each for each in tree.iter("ul") if each.attrib.get("class") == "caveats")
    assert [text_of(each) for each in box.find("li/details/ul") or ()] == notes
    shown = table.lines(noted, Paint(False))
    assert "! 12 notes at the end" in shown
    assert all(f"  {note}" in shown for note in notes)


def test_a_clean_run_has_no_caveats_and_disturbed_rounds_are_marked(run: Results) -> None:
    clean = changed(run, notes=[])
    calm = dataclasses.replace(
        clean,
        runs=[
            dataclasses.replace(one, rounds=[dataclasses.replace(r, foreign_share=0.0) for r in one.rounds])
            for one in run.runs
        ],
    )
    assert caveats(calm) == []
    assert any("1 of" in text for text in caveats(clean))
    marked = [line.label for group in groups(clean) for line in group.lines if line.spoilt]
    assert marked == ["obstore"]
    assert any(line.startswith("obstore ~") for line in table.lines(clean, Paint(False)))


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(page: str, tree: ElementTree.Element) -> None:
    assert page.startswith("<!DOCTYPE html>\n<html")
    for element in tree.iter():
        assert element.tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "image", "use")
        for name, value in element.attrib.items():
            assert not re.match("src|on", name), f"{element.tag} {name}"
            assert name != "href" or value.startswith("#")
    css = "".join(text_of(each) for each in tree.iter("style"))
    assert "url(" not in css
    assert "@import" not in css
    assert not re.search(r"(https?:)?//\w", css)


def test_links_of_the_page_lead_to_its_sections(tree: ElementTree.Element) -> None:
    targets = {each.attrib["href"].removeprefix("#") for each in tree.iter("a")}
    assert targets == {each.attrib["id"] for each in tree.iter("section")}
    assert targets == set(report.NAV)


def test_the_page_is_for_phones_and_for_both_themes(page: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1"/>' in page
    assert "prefers-color-scheme:dark" in page
    assert set(style.COLOURS["light"]) == set(style.COLOURS["dark"])
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", page))
    assert used <= set(style.COLOURS["light"])


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "ground"),
    [
        ("ink", "card"), ("ink", "paper"), ("soft", "card"), ("soft", "paper"), ("own", "card"), ("own", "own-soft"),
        ("error", "card"), ("wrong", "card"), ("hung", "card"), ("stored", "stored-soft"), ("error", "error-soft"),
        ("error", "stored-soft"), ("card", "wrong"), ("card", "hung"), ("ink", "error-soft"), ("ink", "own-soft"),
    ],
)  # fmt: skip
def test_text_can_be_read_on_its_ground(theme: style.Theme, ink: str, ground: str) -> None:
    colours = style.COLOURS[theme]
    lighter, darker = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_every_plot_is_told_in_words_too(tree: ElementTree.Element) -> None:
    figures = list(tree.iter("figure"))
    assert len(figures) > 20
    for figure in figures:
        plot = figure.find("svg")
        assert plot is not None
        assert plot.attrib["role"] == "img"
        title, told = plot.find("title"), plot.find("desc")
        assert title is not None
        assert told is not None
        assert len(text_of(title)) > 3
        assert len(text_of(told)) > 20
        says = next(each for each in figure.iter("p") if each.attrib.get("class") == "says")
        assert re.match(r"Shows .+\. Not .+\.", text_of(says), re.DOTALL)


def test_every_client_and_every_outcome_is_in_the_matrix(run: Results, tree: ElementTree.Element) -> None:
    matrix = next(each for each in tree.iter("table") if each.attrib.get("class") == "matrix")
    heads = [text_of(each) for each in matrix.iter("th") if each.attrib["scope"] == "col"]
    rows = {text_of(row[0]): [text_of(cell) for cell in row[1:]] for row in matrix.iter("tr") if row[0].tag == "th"}
    faults = {name: work for name, work in run.workloads.items() if work.kind == "fault"}
    assert heads[2:] == [work.title for work in faults.values()]
    for one in run.runs:
        if one.workload not in faults:
            assert "✓ stored" in rows[one.client][0]
            continue
        cell = rows[one.client][heads.index(faults[one.workload].title) - 1]
        outcome = one.rounds[0].outcome
        assert ("refused" if faults[one.workload].best == outcome == "error" else WORDS[outcome]) in cell
        wasted = max(each.wrong_host_body_bytes for each in one.rounds)
        assert not wasted or table.format_bytes(wasted) in cell


def test_the_matrix_says_over_which_transport_it_went_wrong(run: Results) -> None:
    one = next(each for each in run.runs if each.client == "curl" and each.workload == "redirect-307")
    rounds = [dataclasses.replace(each, outcome="hung") for each in one.rounds]
    both = dataclasses.replace(run, runs=[one, dataclasses.replace(one, transport="tls", rounds=rounds)])
    tree = ElementTree.fromstring(report.page(both).removeprefix("<!DOCTYPE html>\n"))
    matrix = next(each for each in tree.iter("table") if each.attrib.get("class") == "matrix")
    assert [text_of(cell) for cell in matrix.iter("td")] == ["∞ hungover TLS"]


def test_what_nobody_was_told_of_is_told_in_full(run: Results, tree: ElementTree.Element) -> None:
    listed = next(each for each in tree.iter("ul") if each.attrib.get("class") == "wrongs")
    items = [text_of(each) for each in listed]
    for one in run.runs:
        if one.rounds[0].outcome in ("silently-wrong", "hung"):
            assert any(item.startswith(f"{label_of(one)}, ") and one.rounds[0].detail in item for item in items)
    assert len(items) == sum(one.rounds[0].outcome in ("silently-wrong", "hung") for one in run.runs)


def test_the_pages_tables_have_the_files_numbers(run: Results, tree: ElementTree.Element) -> None:
    tables = {}
    for region in tree.iter("div"):
        told = region.attrib.get("aria-label", "")
        if told.startswith("Numbers: "):
            rows = [[text_of(cell) for cell in row] for row in region.iter("tr")]
            tables[told.removeprefix("Numbers: ")] = {row[0].removesuffix(" ~"): row[1:] for row in rows[1:]}
    for one in run.runs:
        work = run.workloads[one.workload]
        row = tables[f"{work.title} · {'TLS' if one.transport == 'tls' else 'plain'}"][label_of(one)]
        stored = [each for each in one.rounds if each.outcome == "stored"]
        assert row[0].partition(" ±")[0] == (short(expected_rate(run, one)) if stored else "–")
        assert row[4] == table.format_bytes(statistics.median(each.wrong_host_body_bytes for each in one.rounds))
        if stored:
            assert row[5] == f"{statistics.median(each.wire_bytes / each.bytes for each in stored):.4f}"
        assert row[7] == str(len(one.rounds))
        assert row[9] == (", ".join(one.hashes) or "–")


def test_bars_are_as_long_as_their_values(run: Results, tree: ElementTree.Element) -> None:
    one = next(g for g in groups(run) if g.name == "upload-4GiB" and g.transport == "plain")
    plot = next(each for each in tree.iter("svg") if text_of(each[0]) == f"Throughput: {one.title}")
    widths = [float(each.attrib["width"].rstrip("%")) for each in plot.iter("rect")]
    rates = [line.rate.median for line in one.ranked if line.rate]
    assert len(widths) == len(rates)
    for width, rate in zip(widths, rates, strict=True):
        assert width / widths[0] == pytest.approx(rate / rates[0], rel=1e-3)


def test_what_a_server_said_cannot_become_markup(run: Results) -> None:
    evil = '"><script>alert(1)</script>&amp;'
    one = next(each for each in run.runs if each.rounds[0].outcome == "hung")
    rounds = [dataclasses.replace(each, detail=evil) for each in one.rounds]
    hostile = dataclasses.replace(run, runs=[dataclasses.replace(one, client=evil, rounds=rounds)])
    tree = ElementTree.fromstring(report.page(hostile).removeprefix("<!DOCTYPE html>\n"))
    assert not list(tree.iter("script"))
    assert evil in "".join(text_of(each) for each in tree.iter("li"))


@pytest.mark.parametrize("strip", ["runs", "limits", "scaling", "timings", "everything"])
def test_a_file_with_less_in_it_is_drawn_too(run: Results, strip: str) -> None:
    less = dataclasses.replace(run)
    if strip == "timings":
        less.runs = [
            dataclasses.replace(one, rounds=[dataclasses.replace(r, timings=None, latency_s=None) for r in one.rounds])
            for one in run.runs
        ]
    elif strip == "everything":
        less.runs, less.limits, less.scaling = [], [], []
    else:
        setattr(less, strip, [])
    ElementTree.fromstring(report.page(less).removeprefix("<!DOCTYPE html>\n"))
    assert table.lines(less, Paint(False))


def test_the_commands_write_what_they_say(run: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.save(run, tmp_path / "results.json")
    assert report.main([str(tmp_path / "results.json"), "-o", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report.page(run)
    assert table.main([str(tmp_path / "results.json")]) == 0
    assert capsys.readouterr().out.splitlines() == table.lines(run, Paint(False))
    assert chart.main([str(tmp_path / "results.json"), "-d", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("*.svg")} == {"bench-light.svg", "bench-dark.svg"}


# --- the chart --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_chart_stands_alone(run: Results, theme: style.Theme) -> None:
    drawn = chart.draw(run, theme)
    tree = ElementTree.fromstring(drawn)
    assert tree.tag == "{http://www.w3.org/2000/svg}svg"
    assert re.findall(r"https?://[^\"]+", drawn) == ["http://www.w3.org/2000/svg"]  # the name space
    assert "var(" not in drawn
    assert "<script" not in drawn
    told = text_of(tree)
    best = max(
        expected_rate(run, one)
        for one in run.runs
        if (one.workload, one.transport, one.client) == ("upload-4GiB", "plain", "engine")
    )
    assert short(best) in told
    assert "c-sendfile" in told
    assert run.meta.cpu in told


def test_the_chart_says_so_when_it_was_measured_elsewhere(run: Results) -> None:
    assert "host loopback, bbr" in chart.draw(changed(run, network_namespace=False, congestion_control="bbr"), "light")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_readmes_chart_is_drawn_from_the_kept_run(theme: style.Theme) -> None:
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"python -m bench\.chart (\S+)`", readme)
    assert command is not None
    assert f"docs/bench-{theme}.svg" in readme
    kept = (ROOT / "docs" / f"bench-{theme}.svg").read_text(encoding="utf-8")
    drawn = chart.draw(results.load(ROOT / command[1]), theme)
    assert kept == drawn, f"remedy: {command[0].rstrip('`')}"


def test_a_chart_without_measurements_is_refused(run: Results) -> None:
    with pytest.raises(ValueError, match="throughput workload"):
        chart.draw(dataclasses.replace(run, runs=[]), "light")


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_only_markup_goes_into_markup_as_it_is() -> None:
    assert (
        tag("p", "<b> & c", Markup("<i>x</i>"), None, class_='a"b')
        == '<p class="a&quot;b">&lt;b&gt; &amp; c<i>x</i></p>'
    )
    assert tag("rect", x=1.0, stroke_width=0.25, y=None) == '<rect x="1" stroke-width="0.25"></rect>'
    assert tag("br") == "<br/>"
    assert join("a<", Markup("<b>")) == "a&lt;<b>"


@pytest.mark.parametrize(
    ("high", "ticks"),
    [(8.1, ["0", "5"]), (1.0, ["0.0", "0.5", "1.0"]), (12_000, ["0", "5k", "10k"]), (0.0, ["0.0", "0.5", "1.0"])],
)
def test_linear_scales_have_round_ticks(high: float, ticks: list[str]) -> None:
    scale = svg.linear(high)
    assert [text for _, text in scale.ticks] == ticks
    assert scale.at(0) == 0
    assert scale.at(scale.high) == 100


def test_a_logarithmic_scale_has_a_place_for_zero() -> None:
    ticks = [(10.0**i, f"1e{i}") for i in range(8)]
    scale = svg.logarithmic([0.0, 20.0, 5000.0], ticks)
    assert scale.at(0) == 0
    assert scale.at(10) == pytest.approx(svg.ZERO_ROOM)
    assert scale.at(10_000) == pytest.approx(100)
    assert scale.ticks[0] == (0.0, "0")
    assert svg.logarithmic([20.0, 5000.0], ticks).at(10) == pytest.approx(0)


def test_rounds_have_every_field_the_synthetic_ones_fill(run: Results) -> None:
    assert {f.name for f in dataclasses.fields(Round)} == set(vars(run.runs[0].rounds[0]))
    assert results.validate(dataclasses.asdict(run)) == run
