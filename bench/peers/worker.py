"""One client in a process of its own: what the harness starts, warms up, tells to go, and measures.

    worker.py SPEC     a JSON object: the fields of clients.Spec

Talks JSON lines over stdin and stdout (the clients' own standard output goes to standard error):
    ← {"ready": true, "hashes": […]}       imported and built; or {"missing": why}
    → {"jobs": …, "warm": bool}            fields of Jobs
    ← {"warm": true}                       connections are open; the harness resets the sink
    → {}
    ← {"seconds", "cpu_user_s", "cpu_system_s", "peak_rss_bytes", "requests", "error", "latencies_s", "timings"}
and so on, until stdin ends. What it must not know: sinks, namespaces, other clients.
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


def peak_bytes(is_command: bool) -> int:
    if is_command:
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def cpu_s() -> tuple[float, float]:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + children.ru_utime, own.ru_stime + children.ru_stime


class Worker:
    """Serves one client's rounds; `runner` is an asyncio.Runner's run, or a plain call."""

    def __init__(self, spec: clients.Spec, out: Any) -> None:
        self.spec = spec
        self.out = out
        self.client: Any = clients.make(spec)

    def say(self, what: dict[str, Any]) -> None:
        self.out.write(json.dumps(what) + "\n")
        self.out.flush()

    async def in_loop(self, jobs: Jobs) -> Tally:
        return await run_async(self.client, jobs)

    def work(self, loop: asyncio.AbstractEventLoop | None, jobs: Jobs) -> Tally:
        if loop is not None:
            return loop.run_until_complete(self.in_loop(jobs))
        return (
            run_command(self.client, jobs) if isinstance(self.client, clients.Command) else run_sync(self.client, jobs)
        )

    def measured(self, loop: asyncio.AbstractEventLoop | None, jobs: Jobs) -> dict[str, Any]:
        is_command = isinstance(self.client, clients.Command)
        peak_reset()
        user_s, system_s = cpu_s()
        began = time.perf_counter()
        tally = self.work(loop, jobs)
        seconds = time.perf_counter() - began
        user_after_s, system_after_s = cpu_s()
        ordered = sorted(tally.latencies_s)
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
        return {
            "seconds": seconds,
            "cpu_user_s": user_after_s - user_s,
            "cpu_system_s": system_after_s - system_s,
            "peak_rss_bytes": peak_bytes(is_command),
            "requests": tally.requests,
            "error": tally.error,
            "latency_s": {name: percentile(ordered, share) for name, share in shares.items()} if ordered else None,
            "timings": self.client.timings,
        }

    def serve(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.say({"ready": True, "hashes": self.client.hashes(), "how": self.client.how()})
        for line in sys.stdin:
            told = json.loads(line)
            jobs = Jobs(**told["jobs"])
            if told["warm"] and not isinstance(self.client, clients.Command):
                count = jobs.concurrency
                self.work(loop, Jobs("put", [], WARM_BYTES, count, 0.0, count, "warm"))
            self.say({"warm": True})
            if not sys.stdin.readline():
                return
            self.client.timings = None
            self.say(self.measured(loop, jobs))


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    spec = clients.Spec(**json.loads(sys.argv[1]))
    try:
        worker = Worker(spec, out)
    except (ImportError, LookupError) as error:
        out.write(json.dumps({"missing": f"{type(error).__name__}: {error}"}) + "\n")
        return
    if not isinstance(worker.client, clients.AsyncClient):
        worker.serve(None)
        return
    loop = worker.client.new_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(worker.client.open())
    worker.serve(loop)
    loop.run_until_complete(worker.client.close())


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # native threads of some clients outlive their last reference and crash at exit
