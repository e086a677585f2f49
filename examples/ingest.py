"""Ingest a manifest of files, in three ways that programs embed the engine: a model to copy from.

    python examples/ingest.py MANIFEST --as asyncio|threads|forks --left left.txt

A manifest has a line for each object: a path, a tab, and where it goes ("s3://bucket/key"). What is not stored in the end, be
it for an error or for Ctrl-C, is written to --left in the same form: the manifest of the next run. Settings come from the
environment, as of any S3 tool (AWS_ENDPOINT_URL_S3, AWS_REGION, …). Exit code: 0 all stored, 1 not all, 130 interrupted.

Back-pressure is the same everywhere: a fixed number of workers, each with one object at a time, take from one iterator. Nothing
is queued, so memory does not depend on the length of the manifest, and the engine opens a file when its turn comes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple
from urllib.parse import urlsplit

import uvloop

import engine


class Entry(NamedTuple):
    path: str
    destination: str


@dataclass
class Tally:
    """What an operator wants to know. One writer each; sums of several processes are made with `add`."""

    stored: int = 0
    stored_bytes: int = 0
    sent_bytes: int = 0  # more than is stored: bodies that had to be sent again
    retries: int = 0
    redirects: Counter[str] = field(default_factory=Counter)  # "307 to host:port" → how often
    failures: Counter[str] = field(default_factory=Counter)  # reason → how often
    examples: dict[str, str] = field(default_factory=dict)  # reason → one message
    left: list[Entry] = field(default_factory=list)

    def count(self, hops: tuple[engine.Hop, ...], attempts: int, sent_bytes: int) -> None:
        self.retries += max(0, attempts - 1)
        self.sent_bytes += sent_bytes
        for hop, following in pairwise(hops):
            if hop.outcome in ("redirected", "region"):
                self.redirects[f"{hop.status} to {urlsplit(following.url).netloc}"] += 1

    def succeed(self, result: engine.PutResult) -> None:
        self.count(result.hops, result.attempts, result.body_bytes_sent)
        self.stored += 1
        self.stored_bytes += result.size

    def fail(self, entry: Entry, error: Exception) -> None:
        """An EngineError says what it cost; an OSError is of the file."""
        reason = type(error).__name__
        if isinstance(error, engine.EngineError):
            self.count(error.hops, error.attempts, error.body_bytes_sent)
        if isinstance(error, engine.ResponseError):
            reason = f"{error.status} {error.code or reason}"
        self.failures[reason] += 1
        self.examples.setdefault(reason, str(error))
        self.left.append(entry)

    def add(self, other: Tally) -> None:
        for name in ("stored", "stored_bytes", "sent_bytes", "retries"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.redirects += other.redirects
        self.failures += other.failures
        self.examples = other.examples | self.examples
        self.left += other.left


# --- in an event loop that is there already ------------------------------------------------------------------------------


async def ingest(entries: Iterator[Entry], tally: Tally, workers: int) -> None:
    """Put all `entries`. Cancelled, it adds what it had begun to `tally.left`; what it had not is in `entries` still."""
    async with engine.Client(config=engine.Config(max_connections=workers)) as client:

        async def work() -> None:
            for entry in entries:
                try:
                    result = await client.put(entry.path, entry.destination)
                except (engine.EngineError, OSError) as error:  # noqa: PERF203
                    tally.fail(entry, error)
                    if isinstance(error, engine.CredentialsError):
                        raise  # the others would fail in the same way
                except BaseException:
                    tally.left.append(entry)
                    raise
                else:
                    tally.succeed(result)

        tasks = [asyncio.ensure_future(work()) for _ in range(workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def run_on_loop(entries: Iterator[Entry], tally: Tally, workers: int) -> None:
    """Ctrl-C cancels: asyncio's runner turns it into a CancelledError here, and into KeyboardInterrupt for its caller."""
    uvloop.run(ingest(entries, tally, workers))


# --- from threads that know nothing of asyncio ---------------------------------------------------------------------------


@contextlib.contextmanager
def loop_in_a_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """One loop for the whole program: where there is one client, there is one pool of connections."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="engine")
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def run_in_threads(entries: Iterator[Entry], tally: Tally, workers: int) -> None:
    lock, running, stopped = threading.Lock(), set[Future[engine.PutResult]](), threading.Event()
    client = engine.Client(config=engine.Config(max_connections=workers))

    def work() -> None:
        while True:
            with lock:
                entry = None if stopped.is_set() else next(entries, None)
                if entry is None:
                    return
                # The loop's thread does the work; this one waits.
                future = asyncio.run_coroutine_threadsafe(client.put(entry.path, entry.destination), loop)
                running.add(future)
            try:
                result = future.result()
            except CancelledError:
                with lock:
                    tally.left.append(entry)
            except (engine.EngineError, OSError) as error:
                with lock:
                    tally.fail(entry, error)
                if isinstance(error, engine.CredentialsError):
                    stopped.set()
            else:
                with lock:
                    tally.succeed(result)
            finally:
                with lock:
                    running.discard(future)

    with loop_in_a_thread() as loop:
        threads = [threading.Thread(target=work) for _ in range(workers)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            with lock:
                stopped.set()
                for future in running:
                    future.cancel()
            for thread in threads:
                thread.join()
            asyncio.run_coroutine_threadsafe(client.close(), loop).result()


# --- in forked workers ---------------------------------------------------------------------------------------------------

PROCESSES = max(2, os.cpu_count() or 1)


def run_in_forks(entries: Iterator[Entry], tally: Tally, workers: int) -> None:
    """Each child has a loop, a client and a share of the manifest, and sends home what became of it."""
    context = multiprocessing.get_context("fork")
    shares = list(entries)  # a fork copies it for nothing; large manifests are better cut into files beforehand
    children: dict[Connection, tuple[BaseProcess, list[Entry]]] = {}
    for number in range(PROCESSES):
        here, there = context.Pipe(duplex=False)
        share = shares[number::PROCESSES]
        child: BaseProcess = context.Process(target=_work_in_child, args=(share, there, max(1, workers // PROCESSES)))
        child.start()
        there.close()
        children[here] = (child, share)
    with _interrupts_passed_on([child for child, _share in children.values()]) as interrupted:
        while children:
            for pipe in wait(list(children)):
                assert isinstance(pipe, Connection)
                child, share = children.pop(pipe)
                try:
                    tally.add(pipe.recv())
                except EOFError:  # it was killed: a put that is made twice does no harm
                    tally.left += share
                child.join()
    if interrupted:
        raise KeyboardInterrupt


def _work_in_child(share: list[Entry], there: Connection, workers: int) -> None:
    tally = Tally()
    entries = iter(share)
    with contextlib.suppress(KeyboardInterrupt, engine.CredentialsError):
        run_on_loop(entries, tally, workers)
    tally.left += entries
    there.send(tally)


@contextlib.contextmanager
def _interrupts_passed_on(children: Iterable[BaseProcess]) -> Iterator[list[int]]:
    """A terminal's Ctrl-C reaches the children by itself, a `kill` of the parent does not."""
    seen: list[int] = []

    def pass_on(signum: int, _frame: object) -> None:
        if not seen:
            for child in children:
                if child.is_alive():
                    os.kill(child.pid or 0, signal.SIGINT)
        seen.append(signum)

    before = signal.signal(signal.SIGINT, pass_on)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


# --- what the operator sees ----------------------------------------------------------------------------------------------


def watch(tally: Tally, total: int, began: float, every_s: float, done: threading.Event) -> None:
    """A line now and then, from a thread of its own."""
    before, bytes_before = 0, 0
    while not done.wait(every_s):
        failed = sum(tally.failures.values())
        print(
            f"{time.monotonic() - began:6.0f} s  {tally.stored + failed} of {total}  "
            f"{(tally.stored - before) / every_s:.0f} objects/s  "
            f"{(tally.stored_bytes - bytes_before) / every_s / 2**20:.1f} MiB/s  "
            f"{tally.retries} retries  {failed} failed",
            file=sys.stderr,
        )
        before, bytes_before = tally.stored, tally.stored_bytes


def report(tally: Tally, took_s: float, left_path: str) -> None:
    again = tally.sent_bytes - tally.stored_bytes
    print(
        f"stored     {tally.stored} objects, {tally.stored_bytes / 2**20:.1f} MiB in {took_s:.1f} s "
        f"({tally.stored / took_s:.0f} objects/s, {tally.stored_bytes / took_s / 2**20:.1f} MiB/s)"
    )
    print(f"retries    {tally.retries}; {again} bytes were sent beyond those that are stored")
    for what, count in tally.redirects.most_common():
        print(f"redirects  {what}: {count}")
    for reason, count in tally.failures.most_common():
        print(f"failed     {count} × {reason}: {tally.examples[reason]}")
    if tally.left:
        print(f"left       {len(tally.left)} objects; go on with: {sys.argv[0]} {left_path}")


def read_manifest(path: str) -> list[Entry]:
    entries = []
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            source, tab, destination = line.rstrip("\n").partition("\t")
            if not (source and tab and destination):
                raise SystemExit(f"{path}:{number}: a path, a tab and a destination are needed")
            entries.append(Entry(source, destination))
    return entries


def write_manifest(path: str, entries: list[Entry]) -> None:
    with open(path + ".part", "w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(f"{entry.path}\t{entry.destination}\n" for entry in entries)
    os.replace(path + ".part", path)


WAYS: dict[str, Callable[[Iterator[Entry], Tally, int], None]] = {
    "asyncio": run_on_loop,
    "threads": run_in_threads,
    "forks": run_in_forks,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Put all files of a manifest.")
    parser.add_argument("manifest")
    parser.add_argument("--as", dest="way", choices=WAYS, default="asyncio")
    parser.add_argument("--workers", type=int, default=32, help="objects at once (default: 32)")
    parser.add_argument("--left", default="left.txt", help="where the list of what is left goes (default: left.txt)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two lines of progress")
    args = parser.parse_args()
    manifest, tally, began, done = read_manifest(args.manifest), Tally(), time.monotonic(), threading.Event()
    entries = iter(manifest)
    watcher = threading.Thread(target=watch, args=(tally, len(manifest), began, args.every, done), daemon=True)
    if args.way != "forks":  # there the numbers come home at the end, and threads and forks do not go together
        watcher.start()
    code = 0
    try:
        WAYS[args.way](entries, tally, args.workers)
    except engine.CredentialsError:
        pass  # is in the report
    except KeyboardInterrupt:
        code = 130
    finally:
        done.set()
        tally.left += entries
        write_manifest(args.left, tally.left)
    report(tally, time.monotonic() - began, args.left)
    return code or (1 if tally.left else 0)


if __name__ == "__main__":
    sys.exit(main())
