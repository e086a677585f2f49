"""One client in processes of its own: what the harness starts, warms up, tells to go, and measures.

    worker.py CLIENT

Imports the client, and then serves, as a process forked off for each, whatever it is told to build: a build knows nothing of
those before it, and the imports are paid once. Talks JSON lines over stdin and stdout, one at a time (what clients print goes
to standard error):
    ← {"ready": true}                      imported; or {"missing": why}
    → {"spec": …}                          fields of clients.Spec: fork, and build
    ← {"built": true, "hashes", "how"}     or {"missing": why}, and the next spec
    → {"jobs": …, "warm": bool}            fields of Jobs
    ← {"warm": true}                       connections are open; the harness resets the sink
    → {"go": true}
    ← {"seconds", "cpu_user_s", "cpu_system_s", "peak_rss_bytes", "requests", "error", "latency_s", "timings"}
    …and so on with "jobs", until {"end": true}: the fork ends, and the next spec can come.
What it must not know: sinks, namespaces, other clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clients  # beside this file: the worker is run by its path

LATENCIES_KEPT = 100_000
WARM_BYTES = 16


@dataclass
class Jobs:
    """One round's work. `seconds` > 0: object after object until then; else `objects`."""

    action: str  # put, or upload (by whatever the client has for objects of any size)
    paths: list[str]  # files, taken in turns; none: `size` bytes of memory
    size: int
    objects: int
    seconds: float
    concurrency: int
    prefix: str  # of the keys


@dataclass
class Tally:
    """What came of one round; shared by its threads or tasks."""

    jobs: Jobs
    numbers: Iterator[int] = field(default_factory=itertools.count)
    latencies_s: list[float] = field(default_factory=list)
    requests: int = 0
    error: str = ""
    began: float = 0.0

    def next_key(self) -> str | None:
        number = next(self.numbers)
        if self.error or (self.jobs.seconds and time.perf_counter() - self.began >= self.jobs.seconds):
            return None
        if not self.jobs.seconds and number >= self.jobs.objects:
            return None
        return f"{self.jobs.prefix}-{number}"

    def done(self, began: float) -> None:
        self.requests += 1
        if len(self.latencies_s) < LATENCIES_KEPT:
            self.latencies_s.append(time.perf_counter() - began)

    def failed(self, error: BaseException) -> None:
        self.error = self.error or f"{type(error).__name__}: {error}"[:500]


def source(jobs: Jobs, key: str, memory: bytes) -> clients.Source:
    return jobs.paths[int(key.rpartition("-")[2]) % len(jobs.paths)] if jobs.paths else memory


def run_sync(client: clients.SyncClient, jobs: Jobs) -> Tally:
    tally = Tally(jobs)
    memory = os.urandom(jobs.size) if not jobs.paths else b""
    action = client.upload if jobs.action == "upload" else client.put

    def work() -> None:
        while (key := tally.next_key()) is not None:
            began = time.perf_counter()
            try:
                action(source(jobs, key, memory), key)
            except BaseException as error:  # clients raise whatever they like; all of it is a result here
                tally.failed(error)
                return
            tally.done(began)

    tally.began = time.perf_counter()
    if jobs.concurrency == 1:
        work()
        return tally
    threads = [threading.Thread(target=work) for _ in range(jobs.concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


async def run_async(client: clients.AsyncClient, jobs: Jobs) -> Tally:
    tally = Tally(jobs)
    memory = os.urandom(jobs.size) if not jobs.paths else b""
    action = client.upload if jobs.action == "upload" else client.put

    async def work() -> None:
        while (key := tally.next_key()) is not None:
            began = time.perf_counter()
            try:
                await action(source(jobs, key, memory), key)
            except BaseException as error:  # as above
                tally.failed(error)
                return
            tally.done(began)

    tally.began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(jobs.concurrency)))
    return tally


def run_command(client: clients.Command, jobs: Jobs) -> Tally:
    """One process for all the objects of a round: its start is in the time, as it is for those who use it."""
    tally = Tally(jobs)
    count = max(jobs.objects, 1)
    files = [(jobs.paths[number % len(jobs.paths)], f"{jobs.prefix}-{number}") for number in range(count)]
    tally.began = time.perf_counter()
    try:
        client.run(files, jobs)
    except BaseException as error:  # as above
        tally.failed(error)
        return tally
    tally.requests = count
    if count == 1:
        tally.latencies_s.append(time.perf_counter() - tally.began)
    return tally


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def peak_reset() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def cpu_s(is_command: bool) -> tuple[float, float]:
    """User and system time of this process and its children; of the children alone where those are the client."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    if is_command:
        return children.ru_utime, children.ru_stime
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + children.ru_utime, own.ru_stime + children.ru_stime


class Lines:
    """JSON lines in and out. Not a byte is read beyond a line: the next may be for the process that this one was forked off."""

    def __init__(self) -> None:
        self.out = os.dup(1)
        os.dup2(2, 1)

    def say(self, what: dict[str, Any]) -> None:
        os.write(self.out, json.dumps(what).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        """{} when there is no more."""
        line = b""
        while not line.endswith(b"\n"):
            piece = os.read(0, 1)
            if not piece:
                return {}
            line += piece
        heard: dict[str, Any] = json.loads(line)
        return heard


class Worker:
    """Serves one build's rounds."""

    def __init__(self, lines: Lines, client: clients.Driver) -> None:
        self.lines = lines
        self.client: Any = client
        self.loop = client.new_loop() if isinstance(client, clients.AsyncClient) else None
        if self.loop is not None:
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(self.client.open())

    def work(self, jobs: Jobs) -> Tally:
        if self.loop is not None:
            return self.loop.run_until_complete(run_async(self.client, jobs))
        return (
            run_command(self.client, jobs) if isinstance(self.client, clients.Command) else run_sync(self.client, jobs)
        )

    def measured(self, jobs: Jobs) -> dict[str, Any]:
        is_command = isinstance(self.client, clients.Command)
        self.client.timings = None
        peak_reset()
        user_s, system_s = cpu_s(is_command)
        began = time.perf_counter()
        tally = self.work(jobs)
        seconds = time.perf_counter() - began
        user_after_s, system_after_s = cpu_s(is_command)
        ordered = sorted(tally.latencies_s)
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
        return {
            "seconds": seconds,
            "cpu_user_s": user_after_s - user_s,
            "cpu_system_s": system_after_s - system_s,
            "peak_rss_bytes": self.client.peak_bytes if is_command else peak_bytes(),
            "requests": tally.requests,
            "error": tally.error,
            "latency_s": {name: percentile(ordered, share) for name, share in shares.items()} if ordered else None,
            "timings": self.client.timings,
        }

    def serve(self) -> None:
        self.lines.say({"built": True, "hashes": self.client.hashes(), "how": self.client.how()})
        while told := self.lines.hear():
            if "end" in told:
                return
            jobs = Jobs(**told["jobs"])
            if told["warm"] and not isinstance(self.client, clients.Command):
                count = jobs.concurrency
                self.work(Jobs("put", [], WARM_BYTES, count, 0.0, count, "warm"))
            self.lines.say({"warm": True})
            if not self.lines.hear():
                return
            self.lines.say(self.measured(jobs))


def build_and_serve(lines: Lines, spec: clients.Spec) -> None:
    try:
        worker = Worker(lines, clients.make(spec))
    except Exception as error:  # whatever a client says to this configuration
        lines.say({"missing": f"{type(error).__name__}: {error}"[:500]})
        return
    worker.serve()


def main() -> None:
    lines = Lines()
    try:
        clients.imported(sys.argv[1])
    except (ImportError, OSError) as error:
        lines.say({"missing": f"{type(error).__name__}: {error}"})
        return
    lines.say({"ready": True})
    while told := lines.hear():
        child = os.fork()
        if not child:
            try:
                build_and_serve(lines, clients.Spec(**told["spec"]))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)  # no clean-up: native threads of some clients outlive their last reference and crash
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
