"""The table of docs/servers.md: what each server was seen to do in each case, and whether the committed table still says so.

Owns: rows as the tests fill them in, how they look, where they stand in the page. Knows nothing of servers.

A cell is text. What differs from run to run stands in it as ``(≈ …)``, made by `about`: it is shown, and left out of account
when two tables are compared.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "servers.md"
BEGIN = "<!-- measured: written by tests/live/test_matrix.py, not by hand -->"
END = "<!-- end of what is measured -->"
REMEDY = (
    "remedy: if the engine has done wrong, mend it; if a server has changed its ways, or the engine for the better, write the "
    "page anew with ENGINE_LIVE=write python -m pytest -n 0 tests/live/test_matrix.py, and commit it with the reason"
)
VARIES = re.compile(r" ?\(≈[^)]*\)")
VERSIONS = "Measured with "
NOT_HERE = "–"


def about(amount: int | float | str) -> str:
    """What one run has measured and the next need not: bytes (int), seconds (float), or words."""
    if isinstance(amount, int):
        return f"(≈ {size_text(amount)})"
    return f"(≈ {amount:.1f} s)" if isinstance(amount, float) else f"(≈ {amount})"


def size_text(size: int) -> str:
    """A number of bytes for people: below 10 kB exact, else in MB."""
    return f"{size:,} B" if size < 10_000 else f"{size / 1e6:.2f} MB"


@dataclass(frozen=True)
class Case:
    """One of the cases: `key` for the code, `title` and `text` for readers, `columns` beside the server's name."""

    key: str
    title: str
    text: str
    columns: tuple[str, ...]


@dataclass
class Matrix:
    """The cells that this run has measured."""

    cases: Sequence[Case]
    rows: Sequence[str]
    cells: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    """By case and row: one text for each of the case's columns."""
    versions: dict[str, str] = field(default_factory=dict)

    def enter(self, case: str, row: str, *texts: str) -> None:
        """Keep what was seen. A row that cannot do a case has one text, which says why in a few words."""
        [columns] = [each.columns for each in self.cases if each.key == case]
        assert row in self.rows, row
        assert len(texts) in (1, len(columns)), texts
        assert not any(set("|\n") & set(text) for text in texts), texts
        self.cells[case, row] = texts

    @property
    def missing(self) -> list[tuple[str, str]]:
        """The cells which this run has not measured."""
        every = [(case.key, row) for case in self.cases for row in self.rows]
        return [cell for cell in every if cell not in self.cells]

    def render(self, about_the_run: str) -> str:
        """The tables as Markdown."""
        versions = ", ".join(f"{name} {version}" for name, version in sorted(self.versions.items(), key=str))
        parts = [f"{VERSIONS}{versions}; {about_the_run}."]
        parts += [f"### {case.title}\n\n{case.text}\n\n{self._table(case)}" for case in self.cases]
        return "\n\n".join(parts)

    def _table(self, case: Case) -> str:
        lines = [("server", *case.columns), ("---",) * (len(case.columns) + 1)]
        for row in self.rows:
            texts = self.cells[case.key, row]
            lines.append((row, *texts, *[""] * (len(case.columns) - len(texts))))
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured_part(page: str) -> str:
    """What stands between the marks of a page. Raises ValueError when it has not both."""
    _before, begin, rest = page.partition(BEGIN)
    part, end, _after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has not both of {BEGIN!r} and {END!r}")
    return part.strip("\n")


def put_into(page: str, measured: str) -> str:
    """The page with what was measured between its marks."""
    old = measured_part(page)
    return page.replace(f"{BEGIN}\n\n{old}\n\n{END}" if old else f"{BEGIN}\n{END}", f"{BEGIN}\n\n{measured}\n\n{END}")


def verdicts(measured: str) -> list[str]:
    """The lines of a table, without what may differ from run to run."""
    return [VARIES.sub("", line) for line in measured.splitlines() if not line.startswith(VERSIONS)]


def differences(committed: str, measured: str) -> str:
    """How the verdicts of two tables differ, as a diff; "" when they don't."""
    return "\n".join(
        difflib.unified_diff(verdicts(committed), verdicts(measured), "committed", "this run", "", "", 0, "")
    )


def joined(words: Iterable[object]) -> str:
    """ "a, b and c"."""
    *most, last = [str(word) for word in words]
    return f"{', '.join(most)} and {last}" if most else last
