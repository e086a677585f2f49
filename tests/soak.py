"""Everything at once, for long, at full speed, through one Client: what a night of ingest does to it.

Invariant: nothing is lost (each object that a call says is stored is compared with the bytes it was made of, and then removed),
every error is one that may come there, and after the warm-up nothing grows: memory by less than 2 MiB, descriptors, threads and
tasks not at all. That is measured at pauses, in which every connection has been idle until it was closed; the lines in between
show the process as it is while it works.

    python -m tests.soak [--minutes 30] [--loop uvloop|asyncio] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import ctypes
import gc
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import trustme
import uvloop

import engine
from engine import sandbox as sandboxes
from engine.sandbox._objects import ObjectFolder
from tests.breaking_proxy import Control

MIB: Final = 1 << 20
GROWTH_MAX_MIB: Final = 2.0
CALLERS: Final = 24
CONTENT_BYTES: Final = 32 * MIB
BROKEN_ONE_IN: Final = 1  # connections through the proxy: each breaks sooner or later
IDLE_S: Final = 1.0
LINE_S: Final = 10.0
FAILURES_MAX: Final = 5
SIZES: Final = ((1, 4096), (4096, 64 << 10), (64 << 10, MIB), (MIB, 4 * MIB), (4 * MIB, 24 * MIB))
OFTEN: Final = (30, 30, 25, 10, 3)
KINDS: Final = {  # what a caller does next: how often, and whether on a network that breaks
    "put": (30, False),
    "redirect": (10, False),
    "refuse": (6, False),
    "refuse in the body": (3, False),
    "busy": (4, False),
    "get": (6, False),
    "delete": (4, False),
    "cancel": (4, False),
    "broken put": (20, True),
    "broken redirect": (8, True),
    "broken get": (4, True),
}
BUCKETS: Final = {"refuse": "answer-403", "refuse in the body": "answer-403-after-64k", "busy": "answer-503-once"}


@dataclass
class Place:
    """A sandbox, plain or TLS, and its proxy. Each has keys of its own, and a client has only one's: the other takes requests
    that nobody signed, too."""

    sandbox: sandboxes.Sandbox
    proxy: Control
    objects: ObjectFolder
    scheme: str

    @property
    def options(self) -> dict[str, Any]:
        return {"sign": "s3"} if self.scheme == "http" else {}

    def url(self, bucket: str, key: str, *, broken: bool) -> str:
        port = self.proxy.ports[0][0] if broken else urlsplit(self.sandbox.redirector_url).port
        return f"{self.scheme}://127.0.0.1:{port}/{bucket}/{key}"


@dataclass
class Tally:
    """What is counted, for the lines and the verdict."""

    done: collections.Counter[str] = field(default_factory=collections.Counter)
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    checked: int = 0
    bytes: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sizes:
    """Of this process, at a moment."""

    memory_mib: float
    descriptors: int
    threads: int
    tasks: int

    @classmethod
    def now(cls) -> Sizes:
        status = Path("/proc/self/status").read_text()
        values = dict(line.split(":", 1) for line in status.splitlines())
        memory = int(values["RssAnon"].split()[0]) / 1024
        return cls(memory, len(os.listdir("/proc/self/fd")), int(values["Threads"]), len(asyncio.all_tasks()))

    def __str__(self) -> str:
        return (
            f"memory {self.memory_mib:6.1f} MiB, descriptors {self.descriptors:3d}, "
            f"threads {self.threads:2d}, tasks {self.tasks:3d}"
        )


class Soak:
    def __init__(self, seed: int, client: engine.Client, places: list[Place], content: Path) -> None:
        self.tally = Tally()
        self._seed = seed
        self._client = client
        self._places = places
        self._path = content
        self._bytes = memoryview(content.read_bytes())
        self._buffer = bytearray(MIB)
        self._running = True

    async def run(self, seconds: float) -> None:
        """All callers, until the time is over and each has come to an end."""
        self._running = True
        asyncio.get_running_loop().call_later(seconds, self._stop)
        await asyncio.gather(*(self._caller(number) for number in range(CALLERS)))

    async def heat(self) -> None:
        """The most that can be under way at once, so that what is kept for later is there before growth is measured."""
        largest = SIZES[-1][1] - 1
        for place in [place for place in self._places for _round in range(4)]:
            urls = [place.url("store", f"heat-{number}", broken=False) for number in range(CALLERS)]
            dice = random.Random(self._seed)
            await asyncio.gather(*(self._put(url, 0, largest, dice, dict(place.options)) for url in urls))
            for number in range(CALLERS):
                self._remove(place, "store", f"heat-{number}")

    def _stop(self) -> None:
        self._running = False

    async def _caller(self, number: int) -> None:
        dice = random.Random(f"{self._seed}/{number}/{sum(self.tally.done.values())}")
        while self._running and len(self.tally.failures) < FAILURES_MAX:
            kind = dice.choices(list(KINDS), [often for often, _broken in KINDS.values()])[0]
            place = dice.choice(self._places)
            try:
                await self._one(kind, place, dice, f"{number}-{sum(self.tally.done.values())}")
            except Exception as error:
                self.tally.failures.append(f"{kind} over {place.scheme}: {error!r} {getattr(error, 'hops', '')}")
            self.tally.done[kind] += 1

    async def _one(self, kind: str, place: Place, dice: random.Random, key: str) -> None:
        size = dice.randrange(*SIZES[dice.choices(range(len(SIZES)), OFTEN)[0]])
        start = dice.randrange(CONTENT_BYTES - size)
        broken = KINDS[kind][1]
        port = place.proxy.ports[0][1] if broken else urlsplit(place.sandbox.store_url).port
        bucket = f"redirect-307-port-{port}" if "redirect" in kind else BUCKETS.get(kind, "store")
        options: dict[str, Any] = dict(place.options)
        if broken:
            options |= {"stall_timeout_s": 1.0, "response_timeout_s": 1.0, "connect_timeout_s": 1.0}
        url = place.url(bucket, key, broken=broken)
        put = lambda where, **more: self._put(where, start, size, dice, more)  # noqa: E731
        try:
            if kind in ("get", "broken get", "delete"):
                await put(place.url(bucket, key, broken=False), **place.options)
                await self._use(kind, url, start, size, options)
            elif kind == "cancel":
                await self._cancel(put(url, **options), dice.uniform(0, 0.02))
                await put(url, **options)  # and then in earnest, on what the cancelled one left behind
            else:
                await put(url, **options)
        except engine.EngineError as error:
            if not self._may_be(kind, error):
                raise
            self.tally.errors[f"{kind}: {type(error).__name__}"] += 1
        else:
            if kind.startswith("refuse"):
                raise AssertionError("it was not refused")
            self._compare(place, bucket, key, start, size, there=kind != "delete")
        finally:
            self._remove(place, bucket, key)

    @staticmethod
    def _remove(place: Place, bucket: str, key: str) -> None:
        path = place.objects.content_path(bucket, key)
        path.unlink(missing_ok=True)
        path.with_name(path.name + "%.json").unlink(missing_ok=True)

    async def _put(self, url: str, start: int, size: int, dice: random.Random, options: dict[str, Any]) -> None:
        way = dice.choice(("path", "memory", "iterator"))
        if way == "path":
            result = await self._client.put(self._path, url, offset=start, size=size, **options)
        elif way == "memory":
            result = await self._client.put(self._bytes[start : start + size], url, **options)
        else:
            step = 1 + size // dice.randrange(1, 9)
            result = await self._client.put(self._items(start, size, step), url, size=size, **options)
        last = result.hops[-1]
        if (last.body_bytes_sent, result.size, last.outcome) != (size, size, "stored") or not result.checksum_verified:
            raise AssertionError(f"{result} of {size} bytes")
        self.tally.bytes += result.body_bytes_sent

    async def _items(self, start: int, size: int, step: int) -> AsyncIterator[memoryview]:
        for at in range(start, start + size, step):
            yield self._bytes[at : min(at + step, start + size)]

    async def _use(self, kind: str, url: str, start: int, size: int, options: dict[str, Any]) -> None:
        if kind == "delete":
            await self._client.delete(url, **options)
            return
        # Not a path: a get that fails in the middle starts again, and a function cannot be rewound.
        got = 0

        def take(piece: memoryview) -> None:
            nonlocal got
            if piece != self._bytes[start + got : start + got + len(piece)]:
                raise AssertionError("other bytes were fetched than stored")
            got += len(piece)

        if await self._client.get(url, take, **options) != size or got != size:
            raise AssertionError(f"{got} of {size} bytes were fetched")

    async def _cancel(self, putting: Awaitable[None], after_s: float) -> None:
        task = asyncio.ensure_future(putting)
        await asyncio.wait([task], timeout=after_s)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    @staticmethod
    def _may_be(kind: str, error: engine.EngineError) -> bool:
        if kind.startswith("refuse"):
            return isinstance(error, engine.AccessDenied)
        if isinstance(error, engine.SourceNotReplayable):
            return kind in ("busy", "redirect", "broken put", "broken redirect")
        return KINDS[kind][1] and isinstance(error, (engine.TransportError, engine.TimedOut))

    def _compare(self, place: Place, bucket: str, key: str, start: int, size: int, *, there: bool) -> None:
        stored = place.objects.find(bucket, key)
        if (stored is not None) != there:
            raise AssertionError("a success, and the object is not there" if there else "it was not deleted")
        self.tally.checked += 1
        if stored is None:
            return
        if stored.size != size:
            raise AssertionError(f"{stored.size} bytes are stored of {size}")
        with open(stored.path, "rb", buffering=0) as file:
            at = 0
            while count := file.readinto(self._buffer):
                if memoryview(self._buffer)[:count] != self._bytes[start + at : start + at + count]:
                    raise AssertionError("other bytes are stored than were sent")
                at += count
        if at != size:
            raise AssertionError(f"{at} bytes are stored of {size}")


async def pause() -> Sizes:
    """What is left when nothing runs: idle connections are closed by then, and the sender's threads have ended."""
    await asyncio.sleep(4 * IDLE_S)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps of what was freed is no growth, and depends on how threads met
    return Sizes.now()


async def lines(soak: Soak, began: float, places: list[Place]) -> None:
    tally, before, then = soak.tally, 0, time.monotonic()
    while True:
        await asyncio.sleep(LINE_S)
        now = time.monotonic()
        faults = sum([(await place.proxy.totals(0)).get("faults", 0) for place in places])
        calls = sum(tally.done.values())
        print(
            f"{now - began:6.0f} s  {calls:8d} calls, {tally.bytes / (1 << 30):7.2f} GiB, "
            f"{(tally.bytes - before) / MIB / (now - then):5.0f} MiB/s, {faults:6d} faults, "
            f"{sum(tally.errors.values()):7d} errors, {tally.checked:8d} objects compared; {Sizes.now()}",
            flush=True,
        )
        before, then = tally.bytes, now


def verdict(tally: Tally, faults: int, before: Sizes, after: Sizes) -> bool:
    growth = after.memory_mib - before.memory_mib
    flat = growth < GROWTH_MAX_MIB and (after.descriptors, after.tasks) <= (before.descriptors, before.tasks)
    flat = flat and after.threads <= before.threads
    print("calls:  " + ", ".join(f"{kind} {count}" for kind, count in sorted(tally.done.items())))
    print("errors: " + ", ".join(f"{kind} {count}" for kind, count in sorted(tally.errors.items())))
    print(f"after the warm-up: {before}\nat the end:        {after}  ({growth:+.2f} MiB)")
    for failure in tally.failures:
        print(f"FAILED: {failure}")
    enough = faults > 20 and len(tally.done) == len(KINDS)
    if not enough:
        print(f"FAILED: only {faults} faults, {len(tally.done)} of {len(KINDS)} kinds of calls")
    if not flat:
        print(f"FAILED: something grows (memory may by {GROWTH_MAX_MIB:g} MiB, the others not at all)")
    good = flat and enough and not tally.failures
    print(f"{tally.checked} objects compared, {len(tally.failures)} lost or wrong: {'ok' if good else 'FAILED'}")
    return good


async def place_of(folder: Path, pem: Path | None, stack: contextlib.AsyncExitStack) -> Place:
    stored = folder / ("tls" if pem else "plain")
    stored.mkdir()
    started = sandboxes.start(
        str(stored),
        process=True,
        digest=False,
        linger_s=0.2,
        keep_records=False,
        anonymous=pem is not None,
        tls=str(pem or ""),
    )
    sandbox = stack.enter_context(started)
    urls = [urlsplit(url) for url in (sandbox.redirector_url, sandbox.store_url)]
    upstreams = [(str(url.hostname), int(url.port or 0)) for url in urls]
    proxy = await Control.start(upstreams, 1, plain=pem is None, chance=BROKEN_ONE_IN)
    stack.push_async_callback(proxy.close)
    return Place(sandbox, proxy, ObjectFolder(str(stored)), "https" if pem else "http")


async def main_of(arguments: argparse.Namespace, folder: Path) -> bool:
    pem, bundle = folder / "server.pem", folder / "ca.pem"
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(bundle))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    (folder / "content").write_bytes(random.Random(arguments.seed).randbytes(CONTENT_BYTES))
    async with contextlib.AsyncExitStack() as stack:
        places = [await place_of(folder, each, stack) for each in (None, pem)]
        client = await stack.enter_async_context(client_for(places, bundle))
        began = time.monotonic()
        soak = Soak(arguments.seed, client, places, folder / "content")
        printing = asyncio.ensure_future(lines(soak, began, places))
        stack.callback(printing.cancel)
        seconds = arguments.minutes * 60
        await soak.heat()
        await soak.run(seconds / 4)
        before = await pause()
        await soak.run(max(LINE_S, seconds * 3 / 4 - 8 * IDLE_S))
        after = await pause()
        faults = sum([(await place.proxy.totals(0)).get("faults", 0) for place in places])
        return verdict(soak.tally, faults, before, after)


def client_for(places: list[Place], bundle: Path) -> engine.Client:
    signed = places[0].sandbox
    config = engine.Config(
        tls=str(bundle), max_idle_s=IDLE_S, continue_timeout_s=5, retry=engine.Retry(base_s=0.01, cap_s=0.1)
    )
    return engine.Client(region=signed.region, credentials=signed.credentials, config=config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    arguments = parser.parse_args()
    run: Callable[[Any], bool] = uvloop.run if arguments.loop == "uvloop" else asyncio.run
    with tempfile.TemporaryDirectory() as folder:
        good = run(main_of(arguments, Path(folder)))
    sys.exit(not good)


if __name__ == "__main__":
    main()
