"""`putengine demo`: a real file is refused by one server, accepted by another, and sent once; with the proof.

Two S3 endpoints run on loopback in a process of their own (`engine.sandbox`): one answers every PUT with a redirect, one checks
signatures and stores. What is shown is measured, on both sides: the client's account stands beside what the servers' kernel
delivered, and SHA-256 of the file beside that of the stored object. Then the same without asking first.

Needs no root and no network, and removes what it made, also after Ctrl-C.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

import engine
from engine import events, sandbox
from engine.display import (
    TICK_S,
    Paint,
    Rate,
    StatusLine,
    TransferProgress,
    amount,
    authority,
    format_bytes,
    format_seconds,
    is_terminal,
    table,
)
from engine.errors import UsageError
from engine.interrupt import run
from engine.limits import MIB
from engine.results import Hop, PutResult

SIZE_DEFAULT: Final = 2048 * MIB
_SPARE_BYTES: Final = 256 * MIB  # left on the disk, for others
_CHUNK_BYTES: Final = MIB
_GBIT: Final = 1e9 / 8  # bytes a second
_KEY: Final = "demo.bin"
_ASKED: Final = "redirect-307"  # the sandbox's scenarios: a 307 at once …
_NOT_ASKED: Final = "redirect-307-read"  # … and one that comes when the whole body was read

Expect = Literal["always", "never"]


def demo(file: str | None = None, *, size: int | None = None, folder: str | None = None) -> int:
    """Run it. Returns the exit code: 0 when everything it claims was seen to be true, 5 when the stored object is not the file,
    1 when another claim does not hold.

    Args:
      file: to be sent; without it one of `size` random bytes (2 GiB) is made.
      folder: for what is made; by default the first of $TMPDIR, /var/tmp, /tmp, the cache folder and "." with room for it.

    Raises UsageError, OSError, and whatever a put raises.
    """
    stage = _Stage()
    began = time.monotonic()
    try:
        with _workspace(file, size, folder) as place:
            good = _play(stage, place)
    finally:
        stage.line.clear()
    stage.say("")
    stage.say(f"Done in {format_seconds(time.monotonic() - began)}; what was made is removed again.")
    return good


# --- the place it happens ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    folder: str
    file: str
    size: int  # of a file still to be made; 0 when it is the user's own


@contextmanager
def _workspace(file: str | None, size: int | None, folder: str | None) -> Generator[_Place, None, None]:
    """A folder with room for everything, removed at the end. Raises UsageError when there is none."""
    if file is not None and size is not None:
        raise UsageError("--size is of the file that is made; it cannot be combined with FILE")
    if file is not None:
        if os.path.exists(file) and not os.path.isfile(file) and not os.path.isdir(file):
            raise UsageError(f"{file!r} is a pipe or a device; the demo reads its file more than once")
        with open(file, "rb") as opened:  # an error now, and with its own words
            needed = os.fstat(opened.fileno()).st_size
    else:
        made = SIZE_DEFAULT if size is None else size
        needed = 2 * made  # the file, and what is stored
    if needed <= 0:
        raise UsageError("an empty file shows nothing; give a larger one")
    base = _base_with_room(needed + _SPARE_BYTES, folder)
    with tempfile.TemporaryDirectory(prefix="putengine-demo-", dir=base) as work:
        yield _Place(work, file or os.path.join(work, _KEY), 0 if file is not None else needed // 2)


def _base_with_room(needed: int, folder: str | None) -> str:
    candidates = (
        [folder] if folder else [os.environ.get("TMPDIR"), "/var/tmp", "/tmp", os.path.expanduser("~/.cache"), "."]
    )
    looked = []
    for candidate in filter(None, candidates):
        try:
            there = os.statvfs(candidate)
        except OSError:
            if folder:
                raise
            continue
        free = there.f_bavail * there.f_frsize
        if free >= needed and os.access(candidate, os.W_OK | os.X_OK):
            return candidate
        looked.append(f"{candidate} has {format_bytes(free)}")
    raise UsageError(
        f"the demo needs {format_bytes(needed)} on a disk; {', '.join(looked)}. Give --folder, or a smaller --size"
    )


class _Stage:
    """Where the story is told: standard output for the story, standard error for the progress line."""

    def __init__(self) -> None:
        self.paint = Paint.on(sys.stdout)
        self.line = StatusLine(sys.stderr, "line" if is_terminal(sys.stderr) else "plain")

    def say(self, text: str) -> None:
        self.line.clear()
        print(text, flush=True)

    def title(self, text: str) -> None:
        self.say("")
        self.say(self.paint.bold(text))
        self.say("")


# --- the story -----------------------------------------------------------------------------------------------------------


def _play(stage: _Stage, place: _Place) -> int:
    stage.say(stage.paint.bold("putengine demo: one file, refused by one server, sent once to another"))
    stage.say("")
    stage.say("Two S3 endpoints run on this machine, in a process of their own. The redirector")
    stage.say("answers every PUT with a 307; the store checks signatures, and keeps objects.")
    size = _make_file(stage, place) if place.size else os.path.getsize(place.file)
    with sandbox.start(os.path.join(place.folder, "store"), process=True) as servers:
        stage.title("1. Asking first, as putengine does")
        asked = _act(stage, servers, place.file, _ASKED, "always")
        code = _prove(stage, servers, place.file, size, asked)
        # Gives back the room, for the second time the file is stored.
        run(_delete(servers))
        stage.title("2. What a client that does not ask pays (--expect never)")
        stage.say("  The same file, to a redirector that reads the whole body before it answers,")
        stage.say("  as h2o and Apache do.")
        stage.say("")
        not_asked = _act(stage, servers, place.file, _NOT_ASKED, "never")
    _compare(stage, asked, not_asked)
    return code


def _make_file(stage: _Stage, place: _Place) -> int:
    rate, began, next_look = Rate(), time.monotonic(), 0.0
    with open(place.file, "xb", buffering=0) as file:
        done = 0
        while done < place.size:
            if (now := time.monotonic()) >= next_look:
                next_look = now + TICK_S
                rate.add(now, done)
                stage.line.show(f"making random bytes  {amount(done, place.size, rate.bytes_per_s)}")
            done += file.write(os.urandom(min(_CHUNK_BYTES, place.size - done)))
    took_s = time.monotonic() - began
    stage.say("")
    stage.say(f"The file: {format_bytes(done)} of random bytes, made in {format_seconds(took_s)}.")
    return done


@dataclass(frozen=True)
class _Acted:
    """What came of an act. `received` are the body bytes that each request brought to a server, in order."""

    result: PutResult
    received: tuple[int, ...]


def _act(stage: _Stage, servers: sandbox.Sandbox, file: str, bucket: str, expect: Expect) -> _Acted:
    """One put with its timeline and its table."""
    names = {authority(servers.redirector_url): "redirector", authority(servers.store_url): "store"}
    before = len(servers.records)
    result = run(_put(servers, file, bucket, expect, stage, _Timeline(stage, names)))
    records = servers.settle()[before:]
    acted = _Acted(result, tuple(record.body_bytes for record in records))
    stage.say("")
    for line in accounts(result.hops, acted.received, names):
        stage.say(f"  {line}")
    return acted


async def _put(
    servers: sandbox.Sandbox, file: str, bucket: str, expect: Expect, stage: _Stage, timeline: _Timeline
) -> PutResult:
    progress = TransferProgress(stage.line)

    def on_event(event: events.Event) -> None:
        progress.on_event(event)
        timeline.on_event(event)

    async with _client(servers, expect) as client:
        transfer = client.start_put(file, f"s3://{bucket}/{_KEY}", on_event=on_event)

        async def keep_showing() -> None:
            while True:
                progress.tick(transfer.progress)
                await asyncio.sleep(TICK_S)

        showing = asyncio.ensure_future(keep_showing())
        try:
            return await transfer
        finally:
            showing.cancel()
            stage.line.clear()


async def _delete(servers: sandbox.Sandbox) -> None:
    async with _client(servers, "never") as client:
        await client.delete(f"s3://{_ASKED}/{_KEY}")


def _client(servers: sandbox.Sandbox, expect: Expect) -> engine.Client:
    return engine.Client(
        endpoint_url=servers.redirector_url,
        region=servers.region,
        credentials=engine.Credentials(servers.credentials.access_key, servers.credentials.secret_key),
        config=engine.Config(expect=expect),
    )


class _Timeline:
    """Tells the events as a conversation: when, what, with whom, and the details."""

    def __init__(self, stage: _Stage, names: dict[str, str]) -> None:
        self._stage = stage
        self._names = names
        self._began: float | None = None
        self._whom = ""

    def on_event(self, event: events.Event) -> None:
        if self._began is None:
            self._began = event.at
        told = self._told(event)
        if told is not None:
            what, colour, whom, details = told
            at = f"{event.at - self._began:7.3f} s"
            self._stage.say(f"  {at}  {colour(f'{what:9}')}  {whom:10}  {details}")

    def _told(self, event: events.Event) -> tuple[str, Callable[[str], str], str, str] | None:
        paint = self._stage.paint
        if isinstance(event, events.HeadSent):
            self._whom = self._names.get(authority(event.url), authority(event.url))
            question = "may I send the body? (100-continue)" if event.expect else "without asking"
            return ("asked" if event.expect else "announced", paint.cyan, self._whom, f"PUT, {question}")
        if isinstance(event, events.Continue):
            return "allowed", paint.green, self._whom, f"{_status_line(event.head)}"
        if isinstance(event, events.BodyStarted):
            return "sending", paint.cyan, self._whom, f"{format_bytes(event.size or 0)}"
        if isinstance(event, events.Redirect):
            target = authority(event.url)
            whom = self._names.get(target, target)
            return "re-signed", paint.yellow, "(here)", f"a new request to the {whom}, {target}"
        if isinstance(event, events.Response):
            if event.status >= 300:
                left = f"{event.body_bytes_sent:,} body bytes had left"
                return "refused", paint.red, self._whom, f"{event.status}, {left}"
            return "stored", paint.green, self._whom, f"{event.status}, {event.body_bytes_sent:,} by {event.send_path}"
        return None


def _status_line(head: str) -> str:
    return head.partition("\r\n")[0].partition(" ")[2]


def accounts(hops: Sequence[Hop], received: Sequence[int], names: dict[str, str]) -> list[str]:
    """The table: what each hop cost by the client's account, and what its server received; exact to the byte."""
    rows: list[tuple[str, ...]] = [("hop", "server", "status", "body sent", "file read", "received", "seconds")]
    for number, hop in enumerate(hops, 1):
        got = f"{received[number - 1]:,}" if number <= len(received) else "?"
        where = authority(hop.url)
        rows.append(
            (
                str(number),
                names.get(where, where),
                str(hop.status),
                f"{hop.body_bytes_sent:,}",
                f"{hop.body_bytes_read:,}",
                got,
                f"{hop.seconds:.3f}",
            )
        )
    sums = (sum(hop.body_bytes_sent for hop in hops), sum(hop.body_bytes_read for hop in hops), sum(received))
    seconds = sum(hop.seconds for hop in hops)
    rows.append(("", "together", "", *(f"{count:,}" for count in sums), f"{seconds:.3f}"))
    return table(rows, "><>>>>>")


# --- the proof -----------------------------------------------------------------------------------------------------------


def _prove(stage: _Stage, servers: sandbox.Sandbox, file: str, size: int, acted: _Acted) -> int:
    """Compare what is claimed with what the servers have. Returns the exit code."""
    hashed = _file_sha256(stage, file, size)
    stored = servers.object(_ASKED, _KEY).sha256
    paint = stage.paint
    stage.say("")
    stage.say("  'received' is the servers' own count of what came in. SHA-256, by hashlib here")
    stage.say("  over the file, and by the store over what it received:")
    stage.say("")
    stage.say(f"  file    {hashed}")
    stage.say(f"  object  {stored}")
    stage.say("")
    claims = (
        ("The object is the file, byte for byte.", hashed == stored),
        ("The refusing server received no byte of it.", acted.received[:1] == (0,)),
        ("The body left this machine exactly once.", sum(acted.received) == acted.result.body_bytes_sent == size),
    )
    for claim, holds in claims:
        stage.say(f"  {paint.green('true ') if holds else paint.red('FALSE')}  {claim}")
    if hashed != stored:
        return 5
    return 0 if all(holds for _, holds in claims) else 1


def _file_sha256(stage: _Stage, file: str, size: int) -> str:
    digest, rate, next_look = hashlib.sha256(), Rate(), 0.0
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with open(file, "rb", buffering=0) as opened:
        done = 0
        while count := opened.readinto(buffer):
            digest.update(buffer[:count])
            done += count
            if (now := time.monotonic()) >= next_look:
                next_look = now + TICK_S
                rate.add(now, done)
                stage.line.show(f"hashing the file  {amount(done, size, rate.bytes_per_s)}")
    return digest.hexdigest()


def _compare(stage: _Stage, asked: _Acted, not_asked: _Acted) -> None:
    stage.say("")
    rows = [("", "left this machine", "for nothing", "which takes, at 1 Gbit/s")]
    for name, acted in (("asking first", asked), ("not asking", not_asked)):
        sent = acted.result.body_bytes_sent
        wasted = sent - acted.result.size
        rows.append((name, format_bytes(sent), format_bytes(wasted), format_seconds(wasted / _GBIT) if wasted else "-"))
    for line in table(rows, "<>>>"):
        stage.say(f"  {line}")
