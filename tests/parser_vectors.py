"""The vectors in tests/vectors/*.md, and both parsers' answers in the form in which the vectors write them.

A vector is a `###` heading, a `Rows:` or `Case:` line (rows of the table in docs/parser.md, or what else it stands for), prose,
and two blocks:

    ```input            lines of escaped bytes (\\r \\n \\t \\\\ \\xNN), joined without the line ends of this file;
                        `70000 * text` repeats; `<close>` as the last line ends the connection
    ```expect METHOD    what a parser says of it, line by line (`describe_…` below)
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reference_parser import BODY_MAX, Outcome, parse_exchange

from engine import _fastparse
from engine._fastparse import Event, ParseError, ResponseParser

FOLDER = Path(__file__).parent / "vectors"
_VECTOR = re.compile(
    r"^### (?P<title>[^\n]+)\n+(?P<label>Rows|Case): (?P<names>[^\n]+)\n(?P<prose>(?:(?!```).)*?)"
    r"```input\n(?P<input>.*?)```\n\n```expect (?P<method>\S+)\n(?P<expect>.*?)```\n",
    re.MULTILINE | re.DOTALL,
)
_REPEAT = re.compile(r"(\d+) \* (.*)", re.DOTALL)


def is_here(instruction_set: str) -> bool:
    try:
        return bool(_fastparse._use_instruction_set(instruction_set))
    except ValueError:
        return False
    finally:
        _fastparse._use_instruction_set("")


INSTRUCTION_SETS = list(filter(is_here, ("baseline", "ssse3", "avx2", "avx512", "neon")))


@dataclass(frozen=True)
class Vector:
    title: str
    rows: tuple[str, ...]
    data: bytes
    eof: bool
    method: str
    expected: tuple[str, ...]

    def __str__(self) -> str:
        return re.sub(r"\W+", "_", self.title)


def load_corpus() -> list[bytes]:
    """What the fuzzers found worth keeping: one input a line, escaped as in the vectors."""
    lines = (FOLDER.parent / "fuzz" / "corpus.txt").read_text(encoding="ascii").splitlines()
    return [line.encode("ascii").decode("unicode_escape").encode("latin-1") for line in lines]


def escape(data: bytes) -> str:
    """One line of the corpus."""
    text = data.decode("latin-1").replace("\\", "\\x5c")
    escaped = text.encode("unicode_escape").decode("ascii").replace("\\\\", "\\")
    return re.sub(r" $", r"\\x20", escaped)


def unescape(line: str) -> bytes:
    found = _REPEAT.fullmatch(line)
    if found:
        return int(found.group(1)) * unescape(found.group(2))
    return line.encode("ascii").decode("unicode_escape").encode("latin-1")


def load_vectors() -> Iterator[Vector]:
    for path in sorted(FOLDER.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        found = list(_VECTOR.finditer(text))
        assert len(found) == text.count("\n### "), f"{path.name}: a vector is not written as the loader reads it"
        for match in found:
            lines = match["input"].splitlines()
            eof = lines[-1] == "<close>"
            yield Vector(
                title=match["title"],
                rows=tuple(match["names"].split(", ")) if match["label"] == "Rows" else (),
                data=b"".join(map(unescape, lines[:-1] if eof else lines)),
                eof=eof,
                method=match["method"],
                expected=tuple(match["expect"].splitlines()),
            )


@dataclass
class Answer:
    """What a parser says of one exchange. Heads are (minor version, status, reason, fields)."""

    interims: list[tuple[int, int, str, list[tuple[bytes, bytes]]]]
    response: tuple[int, int, str, list[tuple[bytes, bytes]]] | None
    body: bytes
    body_size: int
    content_length: int | None
    content_length_repeated: bool
    keep_alive: bool
    needs_eof: bool
    done: bool
    unused: int
    fault: tuple[str, int] | None

    def lines(self) -> tuple[str, ...]:
        return tuple(self._lines())

    def _lines(self) -> Iterator[str]:
        for head in self.interims:
            yield from _head_lines("interim", head)
        if self.response:
            yield from _head_lines("response", self.response)
            if self.content_length is not None:
                yield f"content-length {self.content_length}" + (" repeated" * self.content_length_repeated)
        if self.body_size:
            yield f"body {self.body_size} {_escaped(self.body)}"
        if self.needs_eof:
            yield "needs eof"
        if self.fault:
            yield f"fault {self.fault[0]} at {self.fault[1]}"
        elif self.done:
            yield "done, " + ("keep alive" if self.keep_alive else "close")
            if self.unused:
                yield f"unused {self.unused}"
        else:
            yield "incomplete"


def _head_lines(word: str, head: tuple[int, int, str, list[tuple[bytes, bytes]]]) -> Iterator[str]:
    minor, status, reason, fields = head
    yield f"{word} 1.{minor} {status} {_escaped(reason.encode('latin-1'))}".rstrip()
    for name, value in fields[:12]:
        yield f"  {_escaped(name)}: {_escaped(value)}".rstrip()
    if len(fields) > 12:
        yield f"  and {len(fields) - 12} more"


def _escaped(text: bytes) -> str:
    shown = repr(text)[2:-1]
    return shown if len(shown) <= 100 else f"{shown[:97]}..."


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def joined(fields: list[tuple[bytes, bytes]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for raw_name, raw_value in fields:
        name, value = raw_name.decode().lower(), raw_value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def ask_fast(pieces: Sequence[bytes | memoryview], method: str, eof: bool, **limits: int) -> Answer:
    """Feed the pieces until the response is complete or faulty; the rest counts as unused."""
    parser = ResponseParser(**limits)
    parser.expect(method)
    interims = []
    events = Event.NONE
    fault = None
    unused = 0
    try:
        for piece in pieces:
            if not parser.armed:
                unused += len(piece)
                continue
            try:
                events |= parser.feed(piece)
            finally:
                interims += parser.interims
            unused += parser.unused
        if eof:
            events |= parser.feed_eof()
    except ParseError as error:
        fault = (error.kind, error.offset)
    response = parser.response
    if response:
        assert response.headers() == joined(response.raw_headers())
    done = not parser.armed and fault is None
    if fault is None:
        assert events == (
            Event.INTERIM * bool(interims)
            | Event.HEAD * (response is not None)
            | Event.BODY * bool(parser.body_size)
            | Event.DONE * done
        )
    return Answer(
        interims=[(r.version[1], r.status, r.reason, r.raw_headers()) for r in interims],
        response=response and (response.version[1], response.status, response.reason, response.raw_headers()),
        body=parser.body,
        body_size=parser.body_size,
        content_length=parser.content_length,
        content_length_repeated=parser.content_length_repeated,
        keep_alive=parser.keep_alive,
        needs_eof=parser.needs_eof,
        done=done,
        unused=0 if fault else unused,
        fault=fault,
    )


def ask_reference(data: bytes, method: str, eof: bool, *, body_max: int = BODY_MAX, **limits: int) -> Answer:
    out: Outcome = parse_exchange(data, method, eof, **limits)
    f = out.framing
    return Answer(
        interims=[(h.minor, h.status, h.reason.decode("latin-1"), h.fields) for h in out.interims],
        response=out.response
        and (out.response.minor, out.response.status, out.response.reason.decode("latin-1"), out.response.fields),
        body=bytes(out.body[:body_max]),
        body_size=len(out.body),
        content_length=f.length,
        content_length_repeated=f.length_repeated,
        keep_alive=f.keep_alive,
        needs_eof=f.body == "eof",
        done=out.done,
        unused=out.unused,
        fault=out.fault,
    )
