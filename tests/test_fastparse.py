"""The response parser against the plain-Python one on all vectors, and what only the real one has."""

from __future__ import annotations

import ast
import ctypes
import gc
import json
import mmap
import os
import pickle
import random
import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import reference_parser
from parser_vectors import INSTRUCTION_SETS, Vector, ask_fast, ask_reference, load_vectors, split

from engine import _fastparse
from engine._fastparse import Event, ParseError, Response, ResponseParser

ROOT = Path(__file__).parent.parent
VECTORS = list(load_vectors())
SMALL = 600  # bytes up to which a vector is also tried at every length, against the (quadratic) reference
OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = OK + b"Content-Length: 0\r\n\r\n"


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    yield _fastparse._use_instruction_set(request.param)
    _fastparse._use_instruction_set("")


class GuardedPage:
    """Memory between two pages that kill the process when they are touched."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        self.room = -(-size // page) * page
        self.map = mmap.mmap(-1, self.room + 2 * page)
        self.view = memoryview(self.map)[page : page + self.room]
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (address, address + page + self.room):
            assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0

    def at_end(self, data: bytes) -> memoryview:
        self.view[self.room - len(data) :] = data
        return self.view[self.room - len(data) :]

    def at_start(self, data: bytes) -> memoryview:
        self.view[: len(data)] = data
        return self.view[: len(data)]


GUARDED = GuardedPage(max(len(v.data) for v in VECTORS))


# --- vectors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_the_reference_parser_answers_as_the_vector_says(vector: Vector) -> None:
    assert ask_reference(vector.data, vector.method, vector.eof).lines() == vector.expected


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_the_parser_answers_as_the_vector_says_however_it_is_fed(vector: Vector, instruction_set: str) -> None:
    data, size = vector.data, len(vector.data)
    rng = random.Random(vector.title)
    ways: dict[str, list[bytes | memoryview]] = {
        "whole": [data],
        "byte by byte": split(data, range(1, size)),
        "at the end of a page": [GUARDED.at_end(data)],
        "as a bytearray": [memoryview(bytearray(data))],
    }
    for i in range(6):
        ways[f"random split {i}"] = split(data, rng.choices(range(size + 1), k=rng.randint(1, 5)))
    for way, pieces in ways.items():
        assert ask_fast(pieces, vector.method, vector.eof).lines() == vector.expected, way
    # Apart, because both lie in the same memory.
    assert ask_fast([GUARDED.at_start(data)], vector.method, vector.eof).lines() == vector.expected


@pytest.mark.parametrize("vector", [v for v in VECTORS if not v.eof and v.expected[-1] != "incomplete"], ids=str)
def test_bytes_behind_the_answer_change_nothing_but_their_count(vector: Vector, instruction_set: str) -> None:
    trailing = b"\x00HTTP/1.1 500 \r\n\r\n"
    plain = ask_fast([vector.data], vector.method, eof=False)
    more = ask_fast([vector.data + trailing], vector.method, eof=False)
    assert more.unused == (0 if plain.fault else plain.unused + len(trailing))
    more.unused = plain.unused
    assert more == plain


@pytest.mark.parametrize("vector", [v for v in VECTORS if len(v.data) <= SMALL], ids=str)
def test_each_prefix_is_judged_as_the_reference_judges_it(vector: Vector, instruction_set: str) -> None:
    """Faults are found at the byte that makes them, not later; nothing is known too early."""
    for end in range(len(vector.data) + 1):
        prefix = vector.data[:end]
        expected = ask_reference(prefix, vector.method, eof=False)
        assert ask_fast([prefix], vector.method, eof=False) == expected
        assert ask_fast([GUARDED.at_end(prefix)], vector.method, eof=True) == ask_reference(
            prefix, vector.method, eof=True
        )


def test_titles_of_vectors_are_different() -> None:
    titles = [v.title for v in VECTORS]
    assert sorted(set(titles)) == sorted(titles)


def test_each_row_of_the_table_has_a_vector_and_each_vector_a_row() -> None:
    table = (ROOT / "docs" / "parser.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|", table, re.MULTILINE)
    assert len(rows) == len(set(rows)) > 40
    assert {row for v in VECTORS for row in v.rows} == set(rows)


def test_each_fault_has_a_vector_and_stands_in_the_table() -> None:
    header = (ROOT / "engine" / "_scan.h").read_text(encoding="utf-8")
    kinds = set(re.findall(r'F\([A-Z0-9_]+, "([a-z0-9-]+)"\)', header))
    seen = {line.split()[1] for v in VECTORS for line in v.expected if line.startswith("fault ")}
    # These two need more than bytes: a feed when nothing is awaited, and a callback that fails. They have tests below.
    assert kinds - seen == {"unsolicited-data", "interrupted"}
    table = (ROOT / "docs" / "parser.md").read_text(encoding="utf-8")
    assert {kind for kind in kinds if f"`{kind}`" not in table} == set()


def test_the_limits_of_both_parsers_are_the_same() -> None:
    for limit in ("max_head", "max_fields", "body_max"):
        value = {"max_head": "HEAD_MAX", "max_fields": "FIELDS_MAX", "body_max": "BODY_MAX"}[limit]
        size: int = getattr(reference_parser, value)
        ResponseParser(**{limit: size})
        with pytest.raises(ValueError, match="limits"):
            ResponseParser(**{limit: size + 1})
        with pytest.raises(ValueError, match="limits"):
            ResponseParser(**{limit: -1})


# --- arming ------------------------------------------------------------------------------------------------------------


def armed(method: str = "PUT", **limits: int) -> ResponseParser:
    parser = ResponseParser(**limits)
    parser.expect(method)
    return parser


def test_bytes_that_nobody_asked_for_are_unsolicited() -> None:
    parser = ResponseParser()
    with pytest.raises(ParseError) as caught:
        parser.feed(b"HTTP")
    assert (caught.value.kind, caught.value.offset, caught.value.excerpt) == ("unsolicited-data", 0, "HTTP")


def test_bytes_after_a_complete_response_are_unsolicited() -> None:
    parser = armed()
    assert parser.feed(EMPTY) == Event.HEAD | Event.DONE
    assert not parser.armed
    with pytest.raises(ParseError, match="unsolicited-data"):
        parser.feed(b"x")
    with pytest.raises(ParseError, match="unsolicited-data"):
        parser.expect("PUT")


def test_nothing_more_is_expected_where_bytes_were_left_over() -> None:
    parser = armed()
    assert parser.feed(EMPTY + b"HTTP/1.1 200 OK\r\n") == Event.HEAD | Event.DONE
    assert parser.unused == 17
    assert parser.keep_alive  # judges the framing only
    with pytest.raises(ParseError, match="unsolicited-data"):
        parser.expect("PUT")


def test_an_empty_feed_is_no_data_and_no_end() -> None:
    parser = ResponseParser()
    assert parser.feed(b"") == Event.NONE
    parser.expect("PUT")
    assert parser.feed(b"") == Event.NONE
    assert parser.armed


def test_one_response_is_expected_at_a_time() -> None:
    parser = armed()
    with pytest.raises(RuntimeError, match="not complete"):
        parser.expect("PUT")
    parser.feed(EMPTY)
    parser.expect("PUT")
    assert parser.armed
    assert parser.response is None


def test_one_parser_reads_one_response_after_the_other() -> None:
    parser = ResponseParser()
    for i in range(50):
        parser.expect("GET")
        body = b"x" * i
        assert parser.feed(OK + b"Content-Length: %d\r\nN: %d\r\n\r\n" % (i, i)) & Event.HEAD
        if i:
            assert parser.feed(body) == Event.BODY | Event.DONE
        assert parser.body == body
        assert parser.response is not None
        assert parser.response.get("n") == str(i)
        assert parser.keep_alive


def test_interims_are_those_of_the_last_feed() -> None:
    parser = armed()
    assert parser.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP") == Event.INTERIM
    assert [r.status for r in parser.interims] == [100, 103]
    assert parser.interims[1].headers() == {"link": "x"}
    assert parser.feed(b"/1.1 102 \r\n\r\n") == Event.INTERIM
    assert [r.status for r in parser.interims] == [102]
    assert parser.feed(EMPTY) == Event.HEAD | Event.DONE
    assert parser.interims == []


def test_end_of_connection_without_a_request_is_nothing() -> None:
    parser = ResponseParser()
    assert parser.feed_eof() == Event.NONE
    parser = armed()
    parser.feed(EMPTY)
    assert parser.feed_eof() == Event.NONE


def test_a_tunnel_takes_what_comes_and_counts_it() -> None:
    parser = armed("CONNECT")
    assert parser.feed(OK + b"\r\nabc") == Event.HEAD | Event.DONE
    assert (parser.unused, parser.armed, parser.keep_alive) == (3, False, False)
    assert parser.feed(b"defg") == Event.NONE
    assert parser.unused == 4
    assert parser.feed_eof() == Event.NONE
    with pytest.raises(RuntimeError):
        parser.expect("PUT")


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE", "head", "Head", "HEADS", "connect", ""])
def test_only_head_and_connect_are_special(method: str) -> None:
    parser = armed(method)
    assert parser.feed(OK + b"Content-Length: 1\r\n\r\n") == Event.HEAD
    assert parser.feed(b"x") == Event.BODY | Event.DONE


# --- faults ------------------------------------------------------------------------------------------------------------


def test_a_fault_is_raised_again_for_ever() -> None:
    parser = armed()
    for _ in range(2):
        with pytest.raises(ParseError) as caught:
            parser.feed(b"HTTP/1.1 200 OK\n\r\n")
        assert (caught.value.kind, caught.value.offset) == ("bare-lf", 15)
    with pytest.raises(ParseError, match="bare-lf"):
        parser.feed_eof()
    with pytest.raises(ParseError, match="bare-lf"):
        parser.expect("PUT")
    assert not parser.armed
    assert not parser.keep_alive


def test_what_came_ahead_of_a_fault_is_kept() -> None:
    parser = armed()
    with pytest.raises(ParseError, match="bad-chunk-terminator"):
        parser.feed(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX")
    assert parser.response is not None
    assert parser.response.status == 200
    assert parser.body == b"hello"
    assert not parser.keep_alive


def test_offsets_count_from_the_request_over_all_feeds() -> None:
    parser = armed()
    parser.feed(EMPTY)
    parser.expect("PUT")
    parser.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    with pytest.raises(ParseError) as caught:
        parser.feed(b"Bad Name: x\r\n\r\n")
    assert (caught.value.kind, caught.value.offset) == ("bad-name", 25 + 17 + 3)


def test_the_excerpt_is_short_and_escaped() -> None:
    parser = armed()
    with pytest.raises(ParseError) as caught:
        parser.feed(OK + b"X: " + b"\xff" * 100 + b"\x00" + b"\xfe" * 100)
    error = caught.value
    assert error.excerpt == "\\xff" * 24 + "\\x00" + "\\xfe" * 23
    assert str(error) == f"control-char at byte 120 of the answer near '{error.excerpt}'"


def test_a_parse_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ParseError("bare-lf", 7, "a\\nb")))
    assert (error.kind, error.offset, error.excerpt) == ("bare-lf", 7, "a\\nb")


@pytest.mark.parametrize("data", [None, "HTTP", 5, memoryview(b"abcdef")[::2]])
def test_what_is_no_contiguous_buffer_is_refused_and_harms_nothing(data: object) -> None:
    parser = armed()
    with pytest.raises((TypeError, BufferError)):
        parser.feed(data)  # type: ignore[arg-type]
    assert parser.feed(EMPTY) & Event.DONE


# --- the response ------------------------------------------------------------------------------------------------------


def response_of(head: bytes) -> Response:
    parser = armed("HEAD")
    assert parser.feed(head) == Event.HEAD | Event.DONE
    assert parser.response is not None
    return parser.response


def test_fields_are_found_in_any_case_and_joined() -> None:
    response = response_of(b'HTTP/1.1 200 \xd6k\r\nETag: "a"\r\nVia: 1\r\nvia: \r\nVIA: 3\r\nX: 0\r\nx: 0\r\n\r\n')
    assert (response.status, response.version, response.reason) == (200, (1, 1), "Ök")
    assert response.get("etag") == response.get("ETAG") == '"a"'
    assert response.get("via") == "1, , 3"
    assert response.get_all("Via") == ["1", "", "3"]
    assert response.get_all("none") == []
    assert response.get("none") is None
    assert response.get("Ünknown") is None
    assert response.headers() == {"etag": '"a"', "via": "1, , 3", "x": "0, 0"}
    assert response.raw_headers()[2:4] == [(b"via", b""), (b"VIA", b"3")]
    assert repr(response) == "<Response 200 'Ök', 6 fields>"


def test_headers_are_a_new_dict_each_time() -> None:
    response = response_of(OK + b"A: 1\r\n\r\n")
    response.headers()["a"] = "2"
    assert response.headers() == {"a": "1"}


@pytest.mark.parametrize(("fields", "size"), [(23, 10), (24, 1), (25, 1), (256, 1), (1, 470), (1, 65_500)])
def test_responses_of_any_size_keep_their_fields(fields: int, size: int) -> None:
    expected = [(b"N%d" % i, b"v" * size) for i in range(fields)]
    response = response_of(OK + b"".join(b"%s:%s\r\n" % f for f in expected) + b"\r\n")
    assert response.raw_headers() == expected
    assert response.headers() == {n.decode().lower(): v.decode() for n, v in expected}


def test_more_names_than_the_memo_holds_are_still_right() -> None:
    for start in range(0, 2000, 200):
        names = [f"Name-{'x' * (i % 60)}-{i}" for i in range(start, start + 200)]
        response = response_of(OK + b"".join(b"%s: 1\r\n" % n.encode() for n in names) + b"\r\n")
        assert list(response.headers()) == [n.lower() for n in names]


def test_a_response_outlives_its_parser_and_the_bytes() -> None:
    data = bytearray(OK + b"A: 1\r\n\r\n")
    response = response_of(bytes(data))
    data[:] = b"x" * len(data)
    gc.collect()
    assert response.headers() == {"a": "1"}


def test_nobody_makes_a_response_by_hand() -> None:
    with pytest.raises(TypeError):
        Response()
    with pytest.raises(TypeError):
        pickle.dumps(response_of(OK + b"\r\n"))
    empty = Response.__new__(Response)  # harmless, for what it is
    assert (empty.status, empty.reason, empty.headers(), empty.get("a")) == (0, "", {}, None)


# --- bodies ------------------------------------------------------------------------------------------------------------


def test_a_body_is_collected_up_to_its_limit_and_counted_beyond() -> None:
    parser = armed("GET", body_max=10)
    parser.feed(OK + b"Content-Length: 25\r\n\r\n" + b"0123456")
    parser.feed(b"789abcdef")
    assert parser.feed(b"ghijklmno") == Event.BODY | Event.DONE
    assert (parser.body, parser.body_size, parser.body_dropped, parser.content_length) == (b"0123456789", 25, 15, 25)


def test_a_callback_gets_each_piece_and_nothing_is_collected() -> None:
    pieces: list[bytes] = []
    parser = ResponseParser()
    parser.expect("GET", lambda view: pieces.append(bytes(view)))
    parser.feed(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel")
    assert parser.feed(b"lo\r\n3;x\r\nabc\r\n0\r\n\r\n") == Event.BODY | Event.DONE
    assert pieces == [b"hel", b"lo", b"abc"]
    assert (parser.body, parser.body_size, parser.body_dropped) == (b"", 8, 0)


def test_the_callback_belongs_to_one_response() -> None:
    pieces: list[bytes] = []
    parser = ResponseParser()
    parser.expect("GET", lambda view: pieces.append(bytes(view)))
    parser.feed(OK + b"Content-Length: 1\r\n\r\na")
    parser.expect("GET")
    parser.feed(OK + b"Content-Length: 1\r\n\r\nb")
    assert (pieces, parser.body) == ([b"a"], b"b")


def test_a_view_of_the_body_cannot_be_kept() -> None:
    kept: list[memoryview] = []
    parser = ResponseParser()
    parser.expect("GET", lambda view: kept.append(view[1:]))
    with pytest.raises(BufferError, match="valid during the call only"):
        parser.feed(bytearray(OK + b"Content-Length: 5\r\n\r\nhello"))
    gc.collect()
    assert bytes(kept[0]) == b"ello"  # refused, but not dangling: the exporter is held
    with pytest.raises(ParseError, match="interrupted"):
        parser.feed(b"")


def test_an_error_in_the_callback_reaches_the_feeder_and_ends_the_parser() -> None:
    def fail(view: memoryview) -> None:
        raise KeyError("disk full")

    parser = ResponseParser()
    parser.expect("GET", fail)
    with pytest.raises(KeyError):
        parser.feed(OK + b"Content-Length: 5\r\n\r\nhello")
    with pytest.raises(ParseError) as caught:
        parser.feed(b"x")
    assert (caught.value.kind, caught.value.offset) == ("interrupted", 0)
    assert not parser.keep_alive


def test_the_callback_may_look_but_not_call() -> None:
    seen: list[bool] = []

    def misuse(view: memoryview) -> None:
        seen.append(parser.keep_alive)
        for call in (lambda: parser.feed(b"more"), parser.feed_eof, lambda: parser.expect("GET")):
            with pytest.raises(RuntimeError, match="may not call"):
                call()

    parser = ResponseParser()
    parser.expect("GET", misuse)
    assert parser.feed(OK + b"Content-Length: 5\r\n\r\nhello") & Event.DONE
    assert seen == [True]


# --- limits ------------------------------------------------------------------------------------------------------------


def test_limits_are_settable_downwards() -> None:
    head = OK + b"A: b\r\n\r\n"
    assert armed("HEAD", max_head=len(head), max_fields=1).feed(head) & Event.DONE
    with pytest.raises(ParseError, match="head-too-large"):
        armed("HEAD", max_head=len(head) - 1).feed(head)
    with pytest.raises(ParseError, match="too-many-headers"):
        armed("HEAD", max_fields=0).feed(head)


@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_a_small_limit_of_the_head_holds_for_any_split(pieces: int, instruction_set: str) -> None:
    data = OK + b"X: " + b"x" * 20_000
    parser = armed(max_head=10_000)
    feeds = (parser.feed(data[start : start + pieces]) for start in range(0, len(data), pieces))
    with pytest.raises(ParseError) as caught:
        list(feeds)
    assert (caught.value.kind, caught.value.offset) == ("head-too-large", 10_000)


def test_a_fault_in_what_was_not_scanned_again_yet_is_named_at_the_end() -> None:
    """Above 4 KiB an unfinished head is scanned when it has doubled: the end of the connection may come first."""
    parser = armed()
    parser.feed(OK + b"X: " + b"x" * 5000)
    assert parser.feed(b"\x00") == Event.NONE
    with pytest.raises(ParseError) as caught:
        parser.feed_eof()
    assert (caught.value.kind, caught.value.offset) == ("control-char", 5020)


def test_scanning_is_linear_in_the_bytes_fed(instruction_set: str) -> None:
    """No clock: 60 KiB byte by byte would be 1.8 G byte steps if each feed scanned all. It must end within the suite."""
    head = OK + b"".join(b"X-%04d: %s\r\n" % (i, b"v" * 230) for i in range(250)) + b"\r\n"
    assert 58_000 < len(head) < 65_534
    parser = armed("HEAD")
    started = time.process_time()
    for i in range(len(head) - 1):
        assert parser.feed(head[i : i + 1]) == Event.NONE
    assert parser.feed(head[-1:]) == Event.HEAD | Event.DONE
    assert time.process_time() - started < 5  # the bar, 30 ms, is bench/micro_parse.py's


@pytest.mark.parametrize(
    "head", [b"Content-Length: 9223372036854775807\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n7fffffffffffffff\r\n"]
)
def test_nothing_is_allocated_by_a_declared_length(head: bytes) -> None:
    tracemalloc.start()
    try:
        parser = armed("GET")
        parser.feed(OK + head + b"x")
        assert tracemalloc.get_traced_memory()[1] < 100_000
        assert parser.body == b"x"
    finally:
        tracemalloc.stop()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_100_000_answers_leave_nothing_behind() -> None:
    put = OK + b"".join(b"x-amz-%d: %s\r\n" % (i, b"v" * 30) for i in range(9)) + b"Content-Length: 0\r\n\r\n"
    error = b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n" + b"5\r\nhello\r\n" * 50 + b"0\r\nA: b\r\n\r\n"
    large = OK + b"X: " + b"x" * 9000 + b"\r\nContent-Length: 0\r\n\r\n"
    parser = ResponseParser()

    def rounds(count: int) -> None:
        for _ in range(count):
            for data in (put, error, b"HTTP/1.1 100 Continue\r\n\r\n" + put):
                parser.expect("PUT")
                parser.feed(data)
                assert parser.response is not None
                parser.response.headers()
            parser.expect("PUT")
            parser.feed(large[:5000])
            parser.feed(large[5000:])

    rounds(1000)
    gc.collect()
    blocks, resident = sys.getallocatedblocks(), resident_bytes()
    rounds(25_000)
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 50
    assert resident_bytes() - resident < 4 << 20  # what malloc() holds is no Python block


def test_parsers_that_fail_leave_nothing_behind() -> None:
    def fail() -> None:
        parser = ResponseParser()
        parser.expect("GET", lambda view: None)
        parser.feed(OK + b"X: " + b"x" * 9000)
        with pytest.raises(ParseError):
            parser.feed(b"\x00\r\n\r\n")

    for _ in range(100):
        fail()
    gc.collect()
    blocks, resident = sys.getallocatedblocks(), resident_bytes()
    for _ in range(3000):
        fail()
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 50
    assert resident_bytes() - resident < 4 << 20


# --- the build ---------------------------------------------------------------------------------------------------------


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_the_best_instruction_set_is_the_default() -> None:
    assert _fastparse._use_instruction_set("") == INSTRUCTION_SETS[-1]


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_engine_cpu_forces_an_instruction_set(name: str) -> None:
    done = run_python("import engine._fastparse as f; print(f.INSTRUCTION_SET)", ENGINE_CPU=name)
    assert done.stdout.strip() == name


@pytest.mark.parametrize("name", ["avx1024", "neon" if "neon" not in INSTRUCTION_SETS else "avx2"])
def test_an_instruction_set_that_is_not_here_is_an_import_error(name: str) -> None:
    done = run_python("import engine._fastparse", ENGINE_CPU=name)
    assert f"ImportError: ENGINE_CPU: instruction set '{name}'" in done.stderr


def test_a_second_interpreter_is_refused_not_crashed() -> None:
    """docs/parser.md says: not supported. The module must say so itself."""
    code = (
        "import _xxsubinterpreters as s, engine._fastparse\n"
        "i = s.create()\n"
        "try:\n    s.run_string(i, 'import sys; sys.path.insert(0, \".\"); import engine._fastparse')\n"
        "except s.RunFailedError as e:\n    print(e)\n"
    )
    if sys.version_info >= (3, 13):
        code = (
            "import _interpreters as s, engine._fastparse\n"
            "i = s.create()\n"
            "print(s.exec(i, 'import sys; sys.path.insert(0, \".\"); import engine._fastparse'))\n"
        )
    done = run_python(code)
    assert done.returncode == 0
    assert "ImportError" in done.stdout


def test_the_benchmark_runs_and_judges_every_bar(tmp_path: Path) -> None:
    """Tiny: what it measures here means nothing, so whether the bars hold is not asked."""
    result = tmp_path / "result.json"
    command = [sys.executable, "bench/micro_parse.py", "--rounds", "1", "--scale", "0.002", "--answers", "10"]
    done = subprocess.run([*command, "--json", result], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    said = json.loads(result.read_text(encoding="utf-8"))
    assert {"commit", "kernel", "cpu", "python", "httptools"} <= set(said["environment"])
    present = {"httptools", "aiohttp", "h11"} & {name for name in ("httptools", "aiohttp", "h11") if find_spec(name)}
    assert len(said["bars"]) >= 4 + len(present)
    assert len(re.findall(r"^(?:holds|FAILS) ", done.stdout, re.MULTILINE)) == len(said["bars"])


def test_the_stub_names_everything_public_and_nothing_else() -> None:
    stub = ast.parse((ROOT / "engine" / "_fastparse.pyi").read_text(encoding="utf-8"))
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    names = set(classes)
    for node in stub.body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    public = {n for n, v in vars(_fastparse).items() if getattr(v, "__module__", None) == "engine._fastparse"}
    assert names == {n for n in public if not n.startswith("__")} - {"_BodyPiece"} | {"INSTRUCTION_SET"}
    for name in ("Response", "ResponseParser"):
        stubbed = {n.name for n in classes[name].body if isinstance(n, ast.FunctionDef)}
        real = {n for n in vars(getattr(_fastparse, name)) if not n.startswith("_")}
        assert stubbed - {"__init__"} == real, name
