"""What people see: numbers, tables, the progress line, the trace. Formatting is pure; only `StatusLine` writes.

Nothing here decides anything, or knows a secret: progress, events and results come without any.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, Literal, TextIO

from engine import events
from engine.results import Progress

ProgressMode = Literal["line", "plain", "off"]

TICK_S: Final = 0.1  # how often the progress line is drawn
PLAIN_EVERY_S: Final = 10.0  # a line each, where there is no terminal
STALL_SHOWN_S: Final = 2.0  # without a byte, before a rate is no longer worth showing
RATE_WINDOW_S: Final = 3.0  # what "now" means for a rate: shorter jumps, longer lags

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


# --- numbers ----------------------------------------------------------------------------------------------------------


def format_bytes(count: float) -> str:
    """Three digits and a binary unit: "0 B", "1.50 KiB", "2.00 GiB"."""
    if count < 1024:
        return f"{count:.0f} B"
    value = float(count)
    for unit in _UNITS:
        value /= 1024
        if value < 9.995:
            return f"{value:.2f} {unit}"
        if value < 99.95:
            return f"{value:.1f} {unit}"
        if value < 1023.5 or unit == _UNITS[-1]:
            break
    return f"{value:.0f} {unit}"


def format_rate(bytes_per_s: float) -> str:
    return f"{format_bytes(bytes_per_s)}/s"


def format_seconds(seconds: float) -> str:
    """How long something took: "0.4 ms", "12 ms", "1.23 s", "1 min 05 s", "2 h 03 min"."""
    if seconds < 0.00995:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def format_left(seconds: float) -> str:
    """What is left to wait, as a clock shows it: "0:07", "12:30", "1:02:03"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def fit(text: str, columns: int) -> str:
    """At most `columns` characters, cut with an ellipsis."""
    return text if len(text) <= columns else text[: max(0, columns - 1)] + "…"


def table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Lines of columns two spaces apart; `align` has "<" or ">" for each column."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(align))]
    return [
        "  ".join(f"{cell:{how}{width}}" for cell, how, width in zip(row, align, widths, strict=True)).rstrip()
        for row in rows
    ]


# --- colour -----------------------------------------------------------------------------------------------------------


def is_terminal(stream: TextIO) -> bool:
    """Whether the stream is a terminal that can go back to the start of its line."""
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def encodes(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


class Paint:
    """Marks text for a terminal, or leaves it alone: in a pipe, and when NO_COLOR is set (no-color.org)."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    @classmethod
    def on(cls, stream: TextIO) -> Paint:
        return cls(is_terminal(stream) and not os.environ.get("NO_COLOR"))

    def _mark(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.enabled else text

    def bold(self, text: str) -> str:
        return self._mark("1", text)

    def dim(self, text: str) -> str:
        return self._mark("2", text)

    def red(self, text: str) -> str:
        return self._mark("31", text)

    def green(self, text: str) -> str:
        return self._mark("32", text)

    def yellow(self, text: str) -> str:
        return self._mark("33", text)

    def cyan(self, text: str) -> str:
        return self._mark("36", text)


# --- progress ---------------------------------------------------------------------------------------------------------


class Rate:
    """Bytes per second over the last seconds, from samples of a counter. A counter that goes back starts anew."""

    def __init__(self, window_s: float = RATE_WINDOW_S) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, count: int) -> None:
        samples = self._samples
        if samples and count < samples[-1][1]:
            samples.clear()
        samples.append((now, count))
        while len(samples) > 2 and samples[1][0] <= now - self._window_s:
            samples.popleft()

    @property
    def bytes_per_s(self) -> float:
        if len(self._samples) < 2:
            return 0.0
        (began, first), (ended, last) = self._samples[0], self._samples[-1]
        return (last - first) / (ended - began) if ended > began else 0.0


def amount(done: int, total: int | None, bytes_per_s: float | None) -> str:
    """What is done, how fast, and how long the rest takes: " 61 %  1.22 GiB of 2.00 GiB  412 MiB/s  0:02 left"."""
    if total is None:
        words = [format_bytes(done)]
    else:
        percent = 100 * done // total if total else 100  # rounded down: 100 % means all
        words = [f"{percent:3} %", f"{format_bytes(done)} of {format_bytes(total)}"]
    if bytes_per_s is not None:
        words.append(format_rate(bytes_per_s))
        if total is not None and bytes_per_s > 0 and done < total:
            words.append(f"{format_left((total - done) / bytes_per_s)} left")
    return "  ".join(words)


_WAITS: Final = {
    "hashing": "reading the source to hash it",
    "resolving": "looking up",
    "connecting": "connecting to",
    "asking": "asking",
    "awaiting answer": "awaiting the answer of",
    "backing off": "pausing before trying again",
    "done": "hashing what was sent",
    "creating": "beginning the upload",
    "completing": "waiting for the store to put the parts together",
    "aborting": "removing the parts that were sent",
}
_WITH_PEER: Final = ("connecting", "asking", "awaiting answer")


def progress_text(
    progress: Progress, *, peer: str, waited_s: float, bytes_per_s: float, direction: Literal["to", "from"] = "to"
) -> str:
    """One line about a running transfer: how far it is while bytes move, else what it waits for.

    Args:
      peer: host and port it talks to, "" when not known yet.
      waited_s: seconds since phase, hop or attempt changed, or since the last byte moved.
      bytes_per_s: of the body.
    """
    notes = [f"attempt {progress.attempt}"] if progress.attempt > 1 else []
    notes += [f"hop {progress.hop}"] if progress.hop > 1 else []
    note = f"  ({', '.join(notes)})" if notes else ""
    if progress.phase == "sending":
        stalls = waited_s >= STALL_SHOWN_S
        words = [amount(progress.sent, progress.total, None if stalls else bytes_per_s)]
        words += [f"no byte moved for {waited_s:.0f} s"] if stalls else []
        words += [f"{direction} {peer}"] if peer else []
        return "  ".join(words) + note
    whom = f" {peer}" if peer and progress.phase in _WITH_PEER else ""
    sent = f"{format_bytes(progress.sent)} sent, " if progress.sent and progress.phase == "awaiting answer" else ""
    return f"{sent}{_WAITS.get(progress.phase, progress.phase)}{whom} … {waited_s:.1f} s{note}"


class StatusLine:
    """The line that is drawn over and over at the bottom of a terminal, or one plain line now and then elsewhere.

    "line" never wraps and leaves nothing behind after `clear`; "plain" writes a line every `PLAIN_EVERY_S` seconds.
    """

    def __init__(self, stream: TextIO, mode: ProgressMode) -> None:
        self._stream = stream
        self.mode: ProgressMode = mode
        self._shown = ""
        self._next_plain = time.monotonic() + PLAIN_EVERY_S

    def show(self, text: str) -> None:
        if self.mode == "line":
            self._draw(text)
        elif self.mode == "plain" and text and time.monotonic() >= self._next_plain:
            self._next_plain = time.monotonic() + PLAIN_EVERY_S
            self._write(text.strip() + "\n")

    def clear(self) -> None:
        if self._shown:
            self._draw("")

    def say(self, text: str) -> None:
        """A whole line above the status line."""
        shown = self._shown
        self.clear()
        self._write(text + "\n")
        if shown:
            self._draw(shown)

    def _draw(self, text: str) -> None:
        # Columns are left free: writing into the last one makes some terminals wrap, and Ctrl-C is echoed as "^C".
        cut = fit(text, _columns(self._stream) - 3)
        if cut == self._shown:
            return
        self._shown = cut
        self._write(f"\r{cut}\x1b[K")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads it any more: the transfer goes on
            self.mode = "off"


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


class TransferProgress:
    """Turns what a transfer says of itself into status lines. Keeps only when something last changed."""

    def __init__(self, line: StatusLine) -> None:
        self._line = line
        self._peer = ""
        self._size: int | None = None  # of what is fetched
        self._rate = Rate()
        self._last: Progress | None = None
        self._since = time.monotonic()

    def on_event(self, event: events.Event) -> None:
        if isinstance(event, (events.HeadSent, events.Redirect)):
            self._peer = authority(event.url)
        elif isinstance(event, events.Connected):
            self._peer = authority(event.origin)
        elif isinstance(event, events.Receiving):
            self._size = event.size

    def tick(self, progress: Progress, direction: Literal["to", "from"] = "to") -> None:
        now = time.monotonic()
        if progress != self._last:
            self._last, self._since = progress, now
        self._rate.add(now, progress.sent)
        waited_s, rate = now - self._since, self._rate.bytes_per_s
        self._line.show(
            progress_text(progress, peer=self._peer, waited_s=waited_s, bytes_per_s=rate, direction=direction)
        )

    def tick_get(self, received: int) -> None:
        """The same for a get."""
        phase = "sending" if received else "awaiting answer" if self._peer else "connecting"
        self.tick(Progress(received, self._size, phase, 1, 1), "from")


def authority(url: str) -> str:
    """Host and port of a URL, as it is written there."""
    return url.partition("//")[2].partition("/")[0].partition("?")[0]


# --- trace ------------------------------------------------------------------------------------------------------------


def trace_lines(event: events.Event, began: float) -> list[str]:
    """An event for `--trace`: seconds since `began`, then ">" what goes, "<" what comes, "*" what happens."""
    at = f"{event.at - began:8.4f}"
    if isinstance(event, events.HeadSent):
        return _head(at, ">", event.head)
    if isinstance(event, (events.Continue, events.Response)):
        return _head(at, "<", event.head)
    return [f"{at} * {_told(event)}"]


def _head(at: str, sign: str, head: str) -> list[str]:
    first, *fields = head.rstrip("\r\n").split("\r\n")
    return [f"{at} {sign} {first}", *(f"{'':8} {sign} {field}" for field in fields)]


_WHY: Final = {
    "continue": "the server allows it",
    "timeout": "no answer came in time",
    "off": "without having asked",
}


def _told(event: events.Event) -> str:
    if isinstance(event, events.Resolved):
        return f"{event.host} is {', '.join(event.addresses)} ({format_seconds(event.seconds)})"
    if isinstance(event, events.Connected):
        how = "again" if event.reused else f"in {format_seconds(event.seconds)}"
        return f"connected to {event.origin} at {event.address} {how}"
    if isinstance(event, events.BodyStarted):
        size = "a body of unknown size" if event.size is None else f"{event.size} body bytes"
        waited = "" if event.why == "off" else f", after {format_seconds(event.waited_s)}"
        return f"sending {size}: {_WHY.get(event.why, event.why)}{waited}"
    if isinstance(event, events.Receiving):
        return "receiving " + ("an object of unknown size" if event.size is None else f"{event.size} bytes")
    if isinstance(event, events.Redirect):
        signed = f", signed for {event.region}" if event.region else ", unsigned"
        return f"following the {event.status} ({event.kind}) to {event.url}{signed}"
    if isinstance(event, events.Retry):
        return f"attempt {event.attempt} in {format_seconds(event.after_s)}: {event.reason}"
    assert isinstance(event, events.Done)
    return f"done: {event.error or event.status}, {event.body_bytes_sent} body bytes in {format_seconds(event.seconds)}"
