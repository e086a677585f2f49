"""What people see, by tables: numbers, progress lines, the trace; and what reaches a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from engine import display, events
from engine.results import Progress

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (10234, "9.99 KiB"),
        (10240, "10.0 KiB"),
        (102_390, "100 KiB"),
        (1023 * KIB, "1023 KiB"),
        (MIB - 1, "1.00 MiB"),
        (2 * GIB, "2.00 GiB"),
        (5 << 40, "5.00 TiB"),
        (9 << 60, "9.00 EiB"),
        (5000 << 60, "5000 EiB"),
    ],
)
def test_bytes_have_three_digits_and_a_unit(count: int, text: str) -> None:
    assert display.format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 ms"),
        (0.0004, "0.4 ms"),
        (0.00996, "10 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (9.996, "10.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (7384, "2 h 03 min"),
    ],
)
def test_seconds_are_told_as_people_do(seconds: float, text: str) -> None:
    assert display.format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0:00"), (0.4, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")]
)
def test_what_is_left_is_told_as_clocks_do(seconds: float, text: str) -> None:
    assert display.format_left(seconds) == text


@pytest.mark.parametrize(
    ("done", "total", "rate", "text"),
    [
        (0, 2 * GIB, 0.0, "  0 %  0 B of 2.00 GiB  0 B/s"),
        (GIB, 2 * GIB, 512.0 * MIB, " 50 %  1.00 GiB of 2.00 GiB  512 MiB/s  0:02 left"),
        (2 * GIB - 1, 2 * GIB, 512.0 * MIB, " 99 %  2.00 GiB of 2.00 GiB  512 MiB/s  0:00 left"),
        (2 * GIB, 2 * GIB, 512.0 * MIB, "100 %  2.00 GiB of 2.00 GiB  512 MiB/s"),
        (0, 0, 0.0, "100 %  0 B of 0 B  0 B/s"),
        (MIB, None, float(KIB), "1.00 MiB  1.00 KiB/s"),
        (MIB, 2 * MIB, None, " 50 %  1.00 MiB of 2.00 MiB"),
    ],
)
def test_an_amount_says_how_far_and_how_long_still(done: int, total: int | None, rate: float | None, text: str) -> None:
    assert display.amount(done, total, rate) == text


@pytest.mark.parametrize(
    ("progress", "waited_s", "text"),
    [
        (Progress(0, 9, "hashing", 1, 1), 1.0, "reading the source to hash it … 1.0 s"),
        (Progress(0, 9, "connecting", 1, 1), 0.1, "connecting to s3.test … 0.1 s"),
        (Progress(0, 9, "asking", 1, 1), 1.24, "asking s3.test … 1.2 s"),
        (Progress(0, 9, "asking", 1, 2), 1.0, "asking s3.test … 1.0 s  (hop 2)"),
        (Progress(0, 9, "asking", 3, 2), 1.0, "asking s3.test … 1.0 s  (attempt 3, hop 2)"),
        (Progress(KIB, 2 * KIB, "sending", 1, 1), 0.1, " 50 %  1.00 KiB of 2.00 KiB  100 B/s  0:10 left  to s3.test"),
        (
            Progress(KIB, 2 * KIB, "sending", 2, 1),
            3.2,
            " 50 %  1.00 KiB of 2.00 KiB  no byte moved for 3 s  to s3.test  (attempt 2)",
        ),
        (Progress(KIB, KIB, "awaiting answer", 1, 1), 2.0, "1.00 KiB sent, awaiting the answer of s3.test … 2.0 s"),
        (Progress(0, 0, "awaiting answer", 1, 1), 2.0, "awaiting the answer of s3.test … 2.0 s"),
        (Progress(0, 9, "backing off", 2, 1), 0.5, "pausing before trying again … 0.5 s  (attempt 2)"),
        (Progress(9, 9, "done", 1, 1), 0.5, "hashing what was sent … 0.5 s"),
    ],
)
def test_the_progress_line_says_what_is_waited_for(progress: Progress, waited_s: float, text: str) -> None:
    assert display.progress_text(progress, peer="s3.test", waited_s=waited_s, bytes_per_s=100.0) == text


def test_a_rate_is_of_the_last_seconds_and_starts_anew_when_the_counter_goes_back() -> None:
    rate = display.Rate(window_s=3)
    assert rate.bytes_per_s == 0
    for second in range(10):
        rate.add(second, 100 * second)
    assert rate.bytes_per_s == 100
    for second in range(10, 14):
        rate.add(second, 900)
    assert rate.bytes_per_s == 0
    rate.add(14, 0)
    rate.add(15, 50)
    assert rate.bytes_per_s == 50


def test_a_table_lines_up_and_ends_no_line_in_spaces() -> None:
    assert display.table([("a", "10", ""), ("bcd", "9", "x")], "<><") == ["a    10", "bcd   9  x"]


# --- the status line --------------------------------------------------------------------------------------------------


@contextmanager
def terminal(columns: int) -> Iterator[tuple[TextIO, int]]:
    """A stream to a pseudo-terminal, and the descriptor that sees what reaches it."""
    master, slave = pty.openpty()
    try:
        termios.tcsetwinsize(slave, (25, columns)) if hasattr(termios, "tcsetwinsize") else _set_columns(slave, columns)
        with os.fdopen(os.dup(slave), "w") as stream:
            yield stream, master
    finally:
        os.close(master)
        os.close(slave)


def _set_columns(fd: int, columns: int) -> None:
    import fcntl
    import struct

    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))


def test_the_status_line_never_wraps_and_leaves_nothing_behind() -> None:
    with terminal(40) as (stream, master):
        line = display.StatusLine(stream, "line")
        line.show("x" * 100)
        line.say("a line of its own")
        line.show("y" * 10)
        line.clear()
        line.clear()
        seen = ""
        while select.select([master], [], [], 0.3)[0]:  # a terminal gives what it has, in pieces
            seen += os.read(master, 65536).decode()
    drawn = re.findall(r"\r([^\r\n]*)\x1b\[K", seen)
    assert [len(text) for text in drawn] == [37, 0, 37, 10, 0]
    assert drawn[0].endswith("…")
    assert "\r\x1b[Ka line of its own\r\n\rxxx" in seen


def test_elsewhere_a_plain_line_comes_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    stream = io.StringIO()
    line = display.StatusLine(stream, "plain")
    for tick in range(250):
        now = 1000 + tick / 10
        line.show(f" {tick} %")
    line.clear()
    assert stream.getvalue() == "100 %\n200 %\n"


def test_a_progress_line_nobody_reads_any_more_stops_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        line = display.StatusLine(stream, "line")
        line.show("x")
        line.show("y")
        assert line.mode == "off"
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # what is in its buffer has to go somewhere


@pytest.mark.parametrize(
    ("no_color", "term", "marked"), [("", "xterm", True), ("1", "xterm", False), ("", "dumb", False)]
)
def test_colour_is_for_terminals_that_want_it(
    monkeypatch: pytest.MonkeyPatch, no_color: str, term: str, marked: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", term)
    with terminal(80) as (stream, _master):
        assert (display.Paint.on(stream).red("no") == "\x1b[31mno\x1b[0m") is marked
        assert display.Paint.on(stream).red("no").replace("\x1b[31m", "").replace("\x1b[0m", "") == "no"
    assert display.Paint.on(io.StringIO()).bold("x") == "x"


# --- the trace --------------------------------------------------------------------------------------------------------


def test_the_trace_shows_heads_as_they_go_and_come() -> None:
    head = "PUT /b/k HTTP/1.1\r\nhost: s3.test\r\nauthorization: REDACTED\r\n\r\n"
    assert display.trace_lines(events.HeadSent(10.5, 1, 1, "PUT", "http://s3.test/b/k", head, True), 10.0) == [
        "  0.5000 > PUT /b/k HTTP/1.1",
        "         > host: s3.test",
        "         > authorization: REDACTED",
    ]
    assert display.trace_lines(events.Continue(10.6, 100, "HTTP/1.1 100 Continue\r\n\r\n"), 10.0) == [
        "  0.6000 < HTTP/1.1 100 Continue"
    ]


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (events.Resolved(0.0, "s3.test", ("10.0.0.1", "10.0.0.2"), 0.01), "s3.test is 10.0.0.1, 10.0.0.2 (10 ms)"),
        (
            events.Connected(0.0, "http://s3.test", "10.0.0.1", False, 0.02),
            "connected to http://s3.test at 10.0.0.1 in 20 ms",
        ),
        (events.Connected(0.0, "http://s3.test", "10.0.0.1", True, 0), "connected to http://s3.test at 10.0.0.1 again"),
        (events.BodyStarted(0.0, 7, "continue", 0.5), "sending 7 body bytes: the server allows it, after 500 ms"),
        (events.BodyStarted(0.0, 7, "timeout", 1.0), "sending 7 body bytes: no answer came in time, after 1.00 s"),
        (events.BodyStarted(0.0, None, "off", 0.0), "sending a body of unknown size: without having asked"),
        (
            events.Redirect(0.0, 307, "http://b.test/k", "eu-1", "location"),
            "following the 307 (location) to http://b.test/k, signed for eu-1",
        ),
        (
            events.Redirect(0.0, 307, "http://b.test/k", "", "location"),
            "following the 307 (location) to http://b.test/k, unsigned",
        ),
        (events.Retry(0.0, 2, 0.25, "503 SlowDown"), "attempt 2 in 250 ms: 503 SlowDown"),
        (events.Done(0.0, 200, "", 7, 2.0), "done: 200, 7 body bytes in 2.00 s"),
        (events.Done(0.0, 0, "ConnectFailed", 0, 2.0), "done: ConnectFailed, 0 body bytes in 2.00 s"),
    ],
)
def test_the_trace_tells_what_happens_between(event: events.Event, text: str) -> None:
    assert display.trace_lines(event, 0.0) == [f"  0.0000 * {text}"]


def test_a_get_shows_how_much_of_how_much_has_come() -> None:
    stream = io.StringIO()
    progress = display.TransferProgress(display.StatusLine(stream, "line"))
    progress.on_event(events.Receiving(0.0, 4096))
    progress.tick_get(1024)
    assert "25 %  1.00 KiB of 4.00 KiB" in stream.getvalue()
