"""Random faults of the network between the engine and the sandbox, seeded.

Invariant: whatever is cut, reset, stalled, delayed or trickled wherever, a call ends, and in one of two ways. Either it
succeeds: the object is stored (fetched, deleted), byte for byte the one that was sent, and the result says how often its body
left. Or it fails with an error that `fault_cases` allows for this very fault, with its facts. In both cases the source is what
it was, and no connection, descriptor, task or thread is left. What the proxy received is held against what the engine says it
sent.

Every object is another stretch of random bytes, so that bytes of another one, or from another place, never pass.

    python -m tests.stress_faults [--count 5000] [--seed 1] [--over plain|tls|tls-ssl] [--loop uvloop|asyncio]
    python -m tests.stress_faults --seed 1 --only 4711 …       # one case again, with what happened to it
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import contextvars
import gc
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import trustme
import uvloop

import engine
from engine import sandbox as sandboxes
from engine.sandbox import StoredObject
from engine.sandbox._objects import ObjectFolder
from tests.breaking_proxy import Control, Told
from tests.fault_cases import CONTENT_BYTES, PATIENT_S, SHORT_S, Case

LANES: Final = 24
HANGS_S: Final = 60.0  # a case that takes so long has hung: the longest waits are far shorter
FAILURES_MAX: Final = 5
STAGES: Final = ("resolve", "connect", "tls", "head", "continue", "body", "answer", "redirect", "checksum")
CURRENT: contextvars.ContextVar[Running | None] = contextvars.ContextVar("CURRENT", default=None)


class Violation(AssertionError):
    """A promise that was not kept."""


def check(holds: object, what: str) -> None:
    if not holds:
        raise Violation(what)


@dataclass
class World:
    """What all cases share."""

    arguments: argparse.Namespace
    sandbox: sandboxes.Sandbox
    proxy: Control
    folder: Path
    content: bytes
    content_path: Path
    tls: str | None
    objects: ObjectFolder
    endings: collections.Counter[str] = field(default_factory=collections.Counter)
    struck: collections.Counter[str] = field(default_factory=collections.Counter)
    missed: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)  # what the loop and the collector complained of


@dataclass
class Running:
    """One case under way."""

    case: Case
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    result: Any = None
    error: BaseException | None = None
    told: list[Told] = field(default_factory=list)
    seconds: float = 0.0  # that the call took

    @property
    def struck(self) -> bool:
        return any(told.struck for told in self.told)


class SourceOf:
    """The source of a put, and whether it is what it was afterwards."""

    def __init__(self, world: World, case: Case) -> None:
        self._case = case
        self._world = world
        self._bytes = world.content[case.start : case.start + case.size]
        self.path = world.folder / f"source-{case.index}"
        self.given: Any = None
        self.options: dict[str, Any] = {}
        self._array = bytearray()
        self._pipe: list[int] = []
        self._file: Any = None

    def open(self) -> None:
        case = self._case
        if case.source in ("path", "file"):
            os.link(self._world.content_path, self.path)
            self.given, self.options = str(self.path), {"size": case.size}
            if case.source == "path":
                self.options["offset"] = case.start
            else:
                self.given = self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115
                self._file.seek(case.start)
        elif case.source == "bytes":
            self.given = self._bytes
        elif case.source == "bytearray":
            self.given = self._array = bytearray(self._bytes)
        elif case.source == "pipe":
            self._fill_pipe()
        else:
            self.given = self._items() if case.source == "iterator" else self._async_items()
            self.options = {"size": case.size}

    def _fill_pipe(self) -> None:
        import fcntl

        reading, writing = self._pipe = list(os.pipe())
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
        os.set_blocking(writing, False)
        check(os.write(writing, self._bytes) == len(self._bytes), "the test's own pipe is too small")
        self._file = self.given = os.fdopen(reading, "rb", buffering=0)
        self.options = {"size": self._case.size}

    def _items(self) -> Iterator[bytes]:
        step = 1 + self._case.size // (1 + self._case.index % 7)
        yield from (self._bytes[at : at + step] for at in range(0, self._case.size, step))

    async def _async_items(self) -> AsyncIterator[bytes]:
        for item in self._items():
            await asyncio.sleep(0)
            if self._case.source == "stuck":
                yield item[: len(item) // 2]
                await asyncio.Event().wait()
            yield item

    def check_untouched(self) -> None:
        """Raises Violation."""
        case = self._case
        if case.source == "file":
            check(not self._file.closed and self._file.tell() == case.start, "the file's offset was moved")
        elif case.source == "bytearray":
            self._array.append(0)  # BufferError: somebody holds it
            self._array.pop()
            check(self._array == self._bytes, "the bytes were changed")
        elif case.source == "pipe":
            check(os.get_blocking(self._file.fileno()), "the pipe was made non-blocking")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._pipe:
            os.close(self._pipe[1])
        self.path.unlink(missing_ok=True)


# --- a case --------------------------------------------------------------------------------------------------------------


def client_of(world: World, case: Case, lane: int) -> engine.Client:
    short = SHORT_S if case.strike.kind == "stall" else None
    config = engine.Config(
        connect_timeout_s=short or PATIENT_S,
        stall_timeout_s=short or PATIENT_S,
        response_timeout_s=short or PATIENT_S,
        expect=case.expect,  # type: ignore[arg-type]
        continue_timeout_s=case.continue_timeout_s,  # type: ignore[arg-type]
        retry=engine.Retry(max_attempts=case.attempts, base_s=0.004, cap_s=0.02),
        tls=world.tls,
    )
    scheme = "https" if world.tls else "http"
    return engine.Client(
        endpoint_url=f"{scheme}://127.0.0.1:{world.proxy.ports[lane][0]}",
        region=world.sandbox.region,
        credentials=world.sandbox.credentials,
        config=config,
    )


def seed_object(world: World, case: Case, bucket: str) -> None:
    """What a get, head or delete is about, put into the folder without any network."""
    with world.objects.new_file() as file:
        file.write(world.content[case.start : case.start + case.size])
        stored = StoredObject(bucket, f"case/{case.index}", case.size, '"0"', None, {})
        world.objects.commit(str(file.name), stored)


async def call(world: World, running: Running, client: engine.Client, bucket: str, source: SourceOf) -> Any:
    case = running.case
    destination = f"s3://{bucket}/case/{case.index}"
    options: dict[str, Any] = {"total_timeout_s": case.leaves_s} if case.leaves == "total" else {}
    if case.method == "put":
        return await client.put(source.given, destination, checksum=case.checksum, **source.options, **options)  # type: ignore[arg-type]
    if case.method == "get":
        return await client.get(destination, world.folder / f"got-{case.index}", **options)
    return await getattr(client, case.method)(destination, **options)


async def perform(world: World, running: Running, lane: int, bucket: str, source: SourceOf) -> None:
    case, proxy = running.case, world.proxy
    async with client_of(world, case, lane) as client:
        if case.warm:
            await proxy.arm(lane, None)
            await client.put(world.content[: 1 << 16], f"s3://store.warm/{lane}", retry=engine.Retry(3))
            await proxy.arm(lane, case.strike, keep=True)
        else:
            await proxy.arm(lane, case.strike)
        began = time.monotonic()
        calling = asyncio.ensure_future(call(world, running, client, bucket, source))
        if case.leaves == "cancel":
            asyncio.get_running_loop().call_later(case.leaves_s, calling.cancel)
        await asyncio.wait([calling], timeout=HANGS_S)
        if not calling.done():
            calling.cancel()
            await asyncio.wait([calling])
            raise Violation(f"the call hung: {calling}")
        running.seconds = time.monotonic() - began
        running.error = asyncio.CancelledError() if calling.cancelled() else calling.exception()
        running.result = None if running.error is not None else calling.result()
        if case.warm:  # a put on what is left in the pool must work
            await proxy.disarm(lane)
            await client.put(b"after", f"s3://store.warm/{lane}", retry=engine.Retry(3), expect="never")


async def run_case(world: World, case: Case, lane: int) -> Running:
    running = Running(case)
    CURRENT.set(running)
    bucket = case.bucket.format(port=world.proxy.ports[lane][1])
    source = SourceOf(world, case)
    try:
        if case.method == "put":
            source.open()
        else:
            seed_object(world, case, bucket)
        await perform(world, running, lane, bucket, source)
        running.told = await world.proxy.report(lane)
        check_ending(running)
        check_object(world, running, bucket)
        check_account(world, running)
        if case.method == "put":
            source.check_untouched()
        await check_nothing_left(world, running)
        return running
    finally:
        CURRENT.set(None)
        source.close()
        (world.folder / f"got-{case.index}").unlink(missing_ok=True)
        path = world.objects.content_path(bucket, f"case/{case.index}")
        path.unlink(missing_ok=True)
        path.with_name(path.name + "%.json").unlink(missing_ok=True)


# --- what must hold ------------------------------------------------------------------------------------------------------


def check_ending(running: Running) -> None:
    case, error = running.case, running.error
    check(case.may_end_with(error, struck=running.struck), f"this may not be how it ends: {error!r}")
    if error is None or isinstance(error, asyncio.CancelledError):
        return
    check(isinstance(error, engine.EngineError), f"no EngineError: {error!r}")
    assert isinstance(error, engine.EngineError)
    check(error.stage in STAGES or isinstance(error, engine.TotalTimedOut), f"stage {error.stage!r}")
    too_early = isinstance(error, engine.TotalTimedOut) and not error.hops  # while the source was hashed
    check(error.hops or too_early, "no hops")
    check((0 if too_early else 1) <= error.attempts <= case.attempts, f"{error.attempts} attempts of {case.attempts}")
    if isinstance(error, engine.TimedOut):
        check(running.seconds >= error.limit_s * 0.99 - 0.002, f"{error!r} after {running.seconds} s")
    check(isinstance(error.retryable, bool), f"retryable {error.retryable!r}")
    check(str(pickle.loads(pickle.dumps(error))) == str(error), "the error cannot be pickled")
    check(error.hops == () or error.hops[-1].outcome not in ("stored", ""), f"the last hop is {error.hops[-1:]}")


def check_object(world: World, running: Running, bucket: str) -> None:
    """What is there is whole and right, and it is there when the call says so."""
    case = running.case
    expected = memoryview(world.content)[case.start : case.start + case.size]
    stored = world.objects.find(bucket, f"case/{case.index}")
    if stored is not None and case.method != "delete":
        check(stored.content() == expected, "what is stored is not what was sent")
        check(case.scenario != "refuse" or case.method != "put", "stored although refused")
    if case.method == "get":
        got = world.folder / f"got-{case.index}"
        leftovers = [path.name for path in world.folder.glob(f"*got-{case.index}*") if path != got]
        check(not leftovers, f"left beside the sink: {leftovers}")
        check(got.exists() == (running.error is None), "the sink is there after an error, or not after a success")
        if running.error is None:
            check(running.result == case.size and got.read_bytes() == expected, "what was fetched is not the object")
        return
    if running.error is not None:
        return
    if case.method == "delete":
        check(stored is None, "the deleted object is there")
    elif case.method == "head":
        check(running.result.size == case.size, f"head says {running.result.size} bytes")
    else:
        check(stored is not None, "a success, and no object")
        check_result(case, running.result)


def check_result(case: Case, result: engine.PutResult) -> None:
    check(result.status == 200 and result.size == case.size, f"{result.status}, {result.size} bytes")
    last = result.hops[-1]
    check((last.outcome, last.status, last.body_bytes_sent) == ("stored", 200, case.size), f"the last hop is {last}")
    check(last.body_bytes_read == case.size or case.source == "pipe", f"{last.body_bytes_read} bytes were read")
    if case.checksum is not None and case.source != "pipe":  # what is spliced is never seen
        check(result.checksum_verified, "the checksum was not compared")
    check(1 <= result.attempts <= case.attempts, f"{result.attempts} attempts")
    followed = case.attempts if case.scenario.startswith("redirect") else 0
    check(min(1, followed) <= result.redirects <= followed, f"{result.redirects} redirects")


def check_account(world: World, running: Running) -> None:
    """What the engine says it sent, against what came out at the other end."""
    case, told, error = running.case, running.told, running.error
    check(all(each.ended != "open" for each in told), f"a connection was left behind: {told}")
    requests = [request for each in told for request in each.requests]
    if case.waits_for_leave and not case.warm:
        check(not any(request.unasked for request in requests), "a body byte came ahead of the 100")
    if case.method != "put" or isinstance(error, asyncio.CancelledError):
        return
    says = running.result if error is None else error
    sent = sum(hop.body_bytes_sent for hop in says.hops)
    check(says.body_bytes_sent == sent, f"{says.body_bytes_sent} in all, {sent} on the hops")
    if case.warm:
        requests = [request for request in requests if "/store.warm/" not in request.line]
    if world.tls is None:
        framing = sum(max(0, request.length - case.size) for request in requests)
        came = sum(request.body for request in requests)
        check(len(requests) <= len(says.hops), f"{len(requests)} requests came, of {len(says.hops)} hops")
        check(came - framing <= sent, f"{came} body bytes came, {sent} were said to have left")
        read_to_the_end = case.strike.kind != "stall" and all(each.ended == "closed" for each in told)
        if read_to_the_end and not framing:
            check(came == sent, f"{came} body bytes came, {sent} were said to have left")
    elif case.strike.kind != "stall" and all(each.ended == "closed" for each in told):
        check(sum(each.received for each in told) >= sent, "more is said to have left than came, even encrypted")


async def check_nothing_left(world: World, running: Running) -> None:
    name = f"-{running.case.index}"
    held = [link for link in links_of_descriptors() if link.endswith((f"source{name}", f"got{name}"))]
    own_file = running.case.method == "put" and running.case.source == "file"
    check(len(held) == own_file, f"descriptors are left: {held}")
    own = asyncio.current_task()
    deadline = time.monotonic() + 1
    while left := [task for task in running.tasks if not task.done() and task is not own]:
        check(time.monotonic() < deadline, f"tasks are left: {left}")
        await asyncio.sleep(0.005)


def links_of_descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


# --- many cases ----------------------------------------------------------------------------------------------------------


def make_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    """Every task of a case is known to it."""
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    running = CURRENT.get()
    if running is not None:
        running.tasks.add(task)
    return task


def again(arguments: argparse.Namespace, index: int) -> str:
    return (
        f"{'ENGINE_TLS=ssl ' if arguments.over == 'tls-ssl' else ''}python -m tests.stress_faults --seed {arguments.seed} "
        f"--only {index} --over {arguments.over} --loop {arguments.loop}"
    )


def describe(world: World, running: Running | None, case: Case, error: BaseException) -> str:
    lines = [f"seed {world.arguments.seed}: {case}", "".join(traceback.format_exception(error)).rstrip()]
    if running is not None:
        lines += [f"result: {running.result}", f"error: {running.error!r} {getattr(running.error, 'hops', '')}"]
        lines += [str(told) for told in running.told]
    return "\n".join([*lines, f"again: {again(world.arguments, case.index)}", ""])


async def lane_of_cases(world: World, lane: int, indexes: Iterator[int]) -> None:
    for index in indexes:
        if len(world.failures) >= FAILURES_MAX:
            return
        case = Case.make(world.arguments.seed, index, tls=world.tls is not None)
        running = Running(case)
        try:
            running = await asyncio.ensure_future(run_case(world, case, lane))
        except BaseException as error:
            await world.proxy.report(lane, 0.5)
            world.failures.append(describe(world, None, case, error))
            continue
        ending = "ok" if running.error is None else type(running.error).__name__
        world.endings[f"{case.strike.kind if running.struck else 'nothing'}: {ending}"] += 1
        (world.struck if running.struck else world.missed)[case.phase] += 1
        if world.arguments.only is not None:
            print(f"{case}\n{running.result}\n{running.error!r}", *running.told, sep="\n")


def worker_threads() -> int:
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            names.append((task / "comm").read_text())
    return sum(name.startswith("bodysend") for name in names)


async def run_cases(world: World, indexes: range) -> None:
    """All of them, and then a look at what is left of them together."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(make_task)  # type: ignore[arg-type]
    loop.set_exception_handler(lambda _loop, context: world.loose.append(str(context)))
    sys.unraisablehook = lambda unraisable: world.loose.append(f"{unraisable.exc_value!r} in {unraisable.object!r}")
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.01) for _ in range(4)))
    await warm_up(world)
    before, tasks_before = len(links_of_descriptors()), len(asyncio.all_tasks())
    queue = iter(indexes)
    await asyncio.gather(*(lane_of_cases(world, lane, queue) for lane in range(len(world.proxy.ports))))
    gc.collect()
    deadline = time.monotonic() + 10
    while worker_threads() or len(asyncio.all_tasks()) > tasks_before:
        if time.monotonic() > deadline:
            world.failures.append(f"{worker_threads()} threads, tasks {asyncio.all_tasks()} are left")
            break
        await asyncio.sleep(0.05)
    if world.loose:
        world.failures.append("\n".join(["the loop and the collector complained:", *world.loose[:10]]))
    if len(links_of_descriptors()) > before and not world.failures:
        world.failures.append(f"{len(links_of_descriptors()) - before} descriptors are left: {links_of_descriptors()}")


async def warm_up(world: World) -> None:
    """What is made once, and stays: the executor's threads, libraries."""
    case = replace(Case.make(0, -1, tls=world.tls is not None), source="path", size=1 << 20, start=0)
    async with client_of(world, case, 0) as client:
        await world.proxy.arm(0, None)
        await client.put(world.content_path, "s3://store.warm/first", size=1 << 21)
    await world.proxy.report(0)


async def main_of(arguments: argparse.Namespace, folder: Path) -> World:
    plain = arguments.over == "plain"
    pem, bundle = folder / "server.pem", folder / "ca.pem"
    if not plain:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(bundle))
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    content = random.Random(arguments.seed).randbytes(CONTENT_BYTES)
    (folder / "content").write_bytes(content)
    (folder / "stored").mkdir()
    options = {"process": True, "digest": False, "linger_s": 0.2, "tls": "" if plain else str(pem)}
    with sandboxes.start(str(folder / "stored"), **options) as sandbox:  # type: ignore[arg-type]
        urls = [urlsplit(url) for url in (sandbox.redirector_url, sandbox.store_url)]
        upstreams = [(str(url.hostname), int(url.port or 0)) for url in urls]
        indexes = range(arguments.first, arguments.first + arguments.count)
        if arguments.only is not None:
            indexes = range(arguments.only, arguments.only + 1)
        lanes = min(LANES, len(indexes))
        proxy = await Control.start(upstreams, lanes, plain=plain)
        world = World(
            arguments,
            sandbox,
            proxy,
            folder,
            content,
            folder / "content",
            None if plain else str(bundle),
            ObjectFolder(str(folder / "stored")),
        )
        before = os.stat(folder / "content")
        await run_cases(world, indexes)
        after = os.stat(folder / "content")
        if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size) or (
            (folder / "content").read_bytes() != content
        ):
            world.failures.append("the source file was changed")
        await proxy.close()
        return world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--over", choices=("plain", "tls", "tls-ssl"), default="plain")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--only", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.over == "tls-ssl" and os.environ.get("ENGINE_TLS") != "ssl":  # read when engine.tls is imported
        environment = {**os.environ, "ENGINE_TLS": "ssl"}
        sys.exit(
            subprocess.run([sys.executable, "-m", "tests.stress_faults", *sys.argv[1:]], env=environment).returncode
        )
    began = time.monotonic()
    run = uvloop.run if arguments.loop == "uvloop" else asyncio.run
    with tempfile.TemporaryDirectory() as folder:
        world = run(main_of(arguments, Path(folder)))
    for failure in world.failures:
        print(failure, file=sys.stderr)
    cases = sum(world.endings.values())
    print(
        f"{cases} cases in {time.monotonic() - began:.1f} s over {arguments.over} on {arguments.loop}, seed {arguments.seed}"
    )
    for name, counted in (("endings", world.endings), ("struck", world.struck), ("missed", world.missed)):
        print(f"  {name}: " + ", ".join(f"{what} {count}" for what, count in sorted(counted.items())))
    sys.exit(bool(world.failures))


if __name__ == "__main__":
    main()
