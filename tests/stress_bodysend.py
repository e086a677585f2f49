# ruff: noqa: ASYNC230 (a pipe is opened, a small file written)
"""Random interleavings of the native sender, seeded.

Invariant: whatever happens to a body (cancel, stall, reset, early answer, half-close, truncation, close of the sender, fork),
its outcome is delivered once, is one of those the event allows, and the peer received exactly the first `sent` bytes of that
body and of no other; in the end no descriptor and no thread is left.

Every 8 bytes of the content are its own position, so bytes of another body, or of another place in it, never pass. Descriptors
are closed the moment the outcome is there and reused at once by the next bodies: a sender that wrote a moment longer would put
its bytes onto another connection.

    python -m tests.stress_bodysend [--count 10000] [--seed 1] [--loop uvloop|asyncio]
    python -m tests.stress_bodysend --seed 1 --only 4711        # the plan of one body, again
"""

from __future__ import annotations

import argparse
import array
import asyncio
import contextlib
import errno
import mmap
import os
import random
import socket
import struct
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvloop

from engine._bodysend import BodySender, Job, Outcome, Stop, send_file_inline

CONTENT_BYTES: Final = 32 << 20
SOCKET_BUFFER_BYTES: Final = 32 << 10  # small, so that most bodies are still leaving when their event comes
CONCURRENCY: Final = 100  # above the 64 threads
SOURCES: Final = ("file", "tmpfs", "memory", "pipe", "socket", "read+send")
STREAMS: Final = ("pipe", "socket")
EVENTS: Final = {  # event: how often, and the stops it allows beside DONE (the body may be faster)
    "none": (30, ()),
    "cancel": (15, (Stop.CANCELLED,)),
    "cancel-at-once": (5, (Stop.CANCELLED,)),
    "stall": (10, (Stop.STALLED,)),
    "reset": (10, (Stop.READABLE, Stop.SOCKET_ERROR)),
    "answer": (10, (Stop.READABLE,)),
    "answer-and-reset": (10, (Stop.READABLE, Stop.SOCKET_ERROR)),
    "interim": (10, ()),
    "half-close": (10, ()),
    "truncate": (10, (Stop.SOURCE_ENDED,)),
    "close-sender": (1, (Stop.CANCELLED,)),
    "fork": (1, ()),
}
ANSWER: Final = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
INTERIM: Final = b"HTTP/1.1 102 Processing\r\n\r\n"


@dataclass
class World:
    """What all bodies share."""

    loop: asyncio.AbstractEventLoop
    content: mmap.mmap
    files: dict[str, int]
    address: int  # of the content in our memory
    sender: BodySender
    jobs: set[Job] = field(default_factory=set)
    stops: dict[str, int] = field(default_factory=dict)


@dataclass
class Plan:
    """What one body goes through; made of the seed and the index alone."""

    index: int
    source: str
    event: str
    offset: int
    size: int
    at: int  # received bytes after which the event comes
    pause_s: float
    inline: bool  # the first part leaves on the loop

    @classmethod
    def make(cls, seed: int, index: int) -> Plan:
        rng = random.Random(f"{seed}/{index}")
        event = rng.choices(list(EVENTS), [often for often, _ in EVENTS.values()])[0]
        size = int(2 ** rng.uniform(0, 18)) if rng.random() < 0.3 else rng.randrange(1 << 18, 1 << 20)
        source = rng.choice(SOURCES) if event != "truncate" else "own file"
        return cls(
            index=index,
            source=source,
            event=event,
            offset=rng.randrange(CONTENT_BYTES - size),
            size=size,
            at=0 if rng.random() < 0.2 else rng.randrange(size),
            pause_s=rng.choice((0, 0, 0.0002, 0.002, 0.02)),
            inline=source == "file" and rng.random() < 0.2,
        )


class Connection:
    """A TCP connection inside this process; `peer` is read on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
            self.ours = socket.create_connection(listener.getsockname())
            self.peer, _ = listener.accept()
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        self.ours.setblocking(False)
        self.peer.setblocking(False)
        self.ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = bytearray()

    async def receive(self, until: int | None = None) -> None:
        """Read until so many bytes are there, or to the end; a reset is an end."""
        while until is None or len(self.received) < until:
            try:
                data = await self.loop.sock_recv(self.peer, 1 << 20 if until is None else until - len(self.received))
            except ConnectionError:
                return
            if not data:
                return
            self.received += data

    def reset(self) -> None:
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()

    def close(self) -> None:
        self.ours.close()
        self.peer.close()


class Body:
    """One body, its source, and the peer that does to it what the plan says."""

    def __init__(self, world: World, plan: Plan) -> None:
        self.world = world
        self.plan = plan
        self.connection = Connection(world.loop)
        self.expected = memoryview(world.content)[plan.offset : plan.offset + plan.size]
        self.stall_ms = 60 if plan.event == "stall" else 60_000
        self.ignore_readable = plan.event == "reset" and plan.index % 2 == 0  # then the send itself must fail
        self.truncated_at = plan.size
        self.feeder: asyncio.Task[None] | None = None
        self.fds: list[int] = []
        if plan.source == "own file":
            with tempfile.NamedTemporaryFile(dir=world.loop.stress_directory, delete=False) as file:  # type: ignore[attr-defined]
                file.write(self.expected)
            self.path = Path(file.name)
            self.fds = [os.open(self.path, os.O_RDONLY)]
        elif plan.source in STREAMS:
            ends = socket.socketpair() if plan.source == "socket" else None
            read_fd, write_fd = os.pipe() if ends is None else (ends[0].detach(), ends[1].detach())
            os.set_blocking(write_fd, False)
            self.fds = [read_fd]
            self.feeder = world.loop.create_task(self.feed(write_fd))

    async def feed(self, write_fd: int) -> None:
        rest = self.expected
        with contextlib.suppress(BrokenPipeError), open(write_fd, "wb", buffering=0) as pipe:
            while rest:
                rest = rest[pipe.write(rest) or 0 :]
                await asyncio.sleep(0.001 if rest else 0)

    def start(self, sock_fd: int, sent: int) -> Job:
        sender, plan, ignore = self.world.sender, self.plan, self.ignore_readable
        offset, count = plan.offset + sent, plan.size - sent
        if plan.source == "memory":
            return sender.start_memory(sock_fd, self.expected[sent:], self.stall_ms, ignore_readable=ignore)
        if plan.source in STREAMS:
            count = -1 if plan.index % 2 else count
            return sender.start_pipe(sock_fd, self.fds[0], count, self.stall_ms, ignore_readable=ignore)
        if plan.source == "own file":
            return sender.start_file(sock_fd, self.fds[0], sent, count, self.stall_ms, ignore_readable=ignore)
        if plan.source == "read+send":
            offset += self.world.address
        return sender.start_file(
            sock_fd, self.world.files[plan.source], offset, count, self.stall_ms, ignore_readable=ignore
        )

    async def act(self, job: Job) -> None:
        """The event, once its moment has come."""
        plan, connection = self.plan, self.connection
        await connection.receive(plan.at)
        if plan.pause_s:
            await asyncio.sleep(plan.pause_s)
        match plan.event:
            case "cancel":
                job.cancel()
            case "reset":
                connection.reset()
            case "answer" | "answer-and-reset":
                await self.world.loop.sock_sendall(connection.peer, ANSWER)
                if plan.event == "answer-and-reset":
                    connection.reset()
            case "interim":
                await self.world.loop.sock_sendall(connection.peer, INTERIM)
            case "half-close":
                connection.peer.shutdown(socket.SHUT_WR)
            case "truncate":
                self.truncated_at = plan.at
                os.truncate(self.path, plan.at)
            case "fork":
                await fork(self.world)
            case "close-sender":
                self.world.sender.close()
                self.world.sender = BodySender(self.world.loop)
        if plan.event not in ("stall", "reset", "answer-and-reset"):
            await connection.receive()

    async def send(self) -> tuple[Outcome, int]:
        """Until the body is out or the event ended it; the last outcome, and the bytes of all calls."""
        plan, ours, sent = self.plan, self.connection.ours, 0
        if plan.inline:
            first = send_file_inline(ours.fileno(), self.world.files["file"], plan.offset, min(plan.size, 400_000))
            sent = first.sent
            if first.stop is not Stop.DONE and first.stop is not Stop.WOULD_BLOCK:
                return first, sent
        acting: asyncio.Task[None] | None = None
        try:
            while True:
                sock_fd = os.dup(ours.fileno())
                job = self.start(sock_fd, sent)
                self.world.jobs.add(job)
                if plan.event == "cancel-at-once":
                    job.cancel()
                acting = acting or self.world.loop.create_task(self.act(job))
                outcome = await job
                self.world.jobs.discard(job)
                assert job.sent == outcome.sent
                os.close(sock_fd)
                sent += outcome.sent
                if not self.may_go_on(outcome):
                    return outcome, sent
        finally:
            ours.setblocking(False)
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_WR)
            if acting:
                await acting

    def may_go_on(self, outcome: Outcome) -> bool:
        if outcome.stop is Stop.CANCELLED and self.plan.event not in ("cancel", "cancel-at-once", "close-sender"):
            return True  # another body's "close-sender"
        if outcome.stop is not Stop.READABLE or self.plan.event not in ("interim", "half-close"):
            return False
        if self.connection.ours.recv(1000) == b"":
            self.ignore_readable = True
        return True

    def close(self) -> None:
        self.connection.close()
        for fd in self.fds:
            os.close(fd)
        if self.plan.source == "own file":
            self.path.unlink()

    def check(self, outcome: Outcome, sent: int) -> None:
        plan, received = self.plan, self.connection.received
        allowed = (Stop.DONE, *EVENTS[plan.event][1])
        assert outcome.stop in allowed, f"{outcome} where {allowed} may be"
        assert sent <= plan.size
        whole = sent == plan.size  # a stream of unknown length has then still to end
        assert whole or outcome.stop is not Stop.DONE
        assert outcome.stop is Stop.DONE or not whole or plan.source in STREAMS
        assert (outcome.errno in (errno.EPIPE, errno.ECONNRESET)) == (outcome.stop is Stop.SOCKET_ERROR)
        if plan.event in ("reset", "answer-and-reset"):
            assert len(received) <= sent
        else:
            assert len(received) == sent, f"{len(received)} arrived of {sent}"
        sound = min(self.truncated_at, len(received))
        assert received[:sound] == self.expected[:sound], "bytes that are not this body's"
        for position in range(sound, len(received)):  # sendfile takes no snapshot: a truncated page turns to zeros
            assert received[position] in (0, self.expected[position])


async def run_body(world: World, plan: Plan) -> None:
    body = Body(world, plan)
    try:
        outcome, sent = await asyncio.wait_for(body.send(), 30)
        if body.feeder:
            os.close(body.fds.pop())
            await body.feeder
        if plan.event == "stall" and outcome.stop is Stop.STALLED:
            await body.connection.receive()
        elif plan.event == "stall":
            await body.connection.receive(plan.size)
        body.check(outcome, sent)
        world.stops[outcome.stop.name] = world.stops.get(outcome.stop.name, 0) + 1
    finally:
        body.close()


async def fork(world: World) -> None:
    """A child uses the inherited sender, which must do nothing to our bodies, and a fresh one, which must work."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for job in world.jobs:
                job.cancel()
            world.sender.close()
            asyncio.events._set_running_loop(None)
            child = asyncio.SelectorEventLoop()
            child.stress_directory = world.loop.stress_directory  # type: ignore[attr-defined]
            child.run_until_complete(in_child(world, child))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "the forked child failed"


async def in_child(world: World, loop: asyncio.AbstractEventLoop) -> None:
    fresh = World(loop, world.content, world.files, world.address, BodySender(loop))
    for index, source in enumerate(("file", "memory", "pipe")):
        await run_body(fresh, Plan(index, source, "none", 1000 * index, 500_000, 0, 0, inline=False))
    fresh.sender.close()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def worker_threads() -> int:
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            names.append((task / "comm").read_text())
    return sum(name.startswith("bodysend") for name in names)


def make_content(directory: str) -> tuple[mmap.mmap, dict[str, int]]:
    words = array.array("Q", range(CONTENT_BYTES // 8))
    content = mmap.mmap(-1, CONTENT_BYTES)
    content.write(words)
    files = {"read+send": os.open("/proc/self/mem", os.O_RDONLY)}
    for name, place in (("file", directory), ("tmpfs", "/dev/shm")):
        with tempfile.NamedTemporaryFile(dir=place) as file:
            file.write(content)
            file.flush()
            files[name] = os.open(file.name, os.O_RDONLY)
    return content, files


async def stress(seed: int, indexes: range, directory: str) -> dict[str, int]:
    loop = asyncio.get_running_loop()
    loop.stress_directory = directory  # type: ignore[attr-defined]
    content, files = make_content(directory)
    address = array_address(content)
    await asyncio.to_thread(int)  # the executor's thread, and its descriptors, are there from the start
    world = World(loop, content, files, address, BodySender(loop))
    before = open_fds()
    queue = iter(indexes)

    async def lane() -> None:
        for index in queue:
            plan = Plan.make(seed, index)
            try:
                await run_body(world, plan)
            except BaseException:  # end at once: what the others would print hides it
                traceback.print_exc()
                print(f"seed {seed}: {plan}", file=sys.stderr, flush=True)
                os._exit(1)

    async with contextlib.AsyncExitStack() as stack:
        stack.callback(lambda: world.sender.close())
        await asyncio.gather(*(lane() for _ in range(CONCURRENCY)))
    deadline = time.monotonic() + 10
    while worker_threads():
        assert time.monotonic() < deadline, f"{worker_threads()} threads are left"
        await asyncio.sleep(0.1)
    assert open_fds() == before - 1, f"{open_fds() - before + 1} descriptors leaked"  # - 1: the sender's own
    for fd in files.values():
        os.close(fd)
    return world.stops


def array_address(content: mmap.mmap) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--only", type=int, default=None)
    arguments = parser.parse_args()
    indexes = range(arguments.count) if arguments.only is None else range(arguments.only, arguments.only + 1)
    loop = uvloop.new_event_loop() if arguments.loop == "uvloop" else asyncio.new_event_loop()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        stops = loop.run_until_complete(stress(arguments.seed, indexes, directory))
    loop.close()
    print(f"{len(indexes)} bodies in {time.monotonic() - start:.1f} s, seed {arguments.seed}: {stops}")


if __name__ == "__main__":
    main()
