# ruff: noqa: ASYNC240 (/proc files)
"""The native sender alone, without HTTP: one measurement per run, printed as one line of JSON.

    body_case.py sendfile|send|splice PORT FILE BYTES CONNECTIONS [CPU]
        as bench/peers/limits.c, whose arguments and meaning of seconds and cpu these are (splice reads the pipe at stdin)
    body_case.py ticker PORT FILE BYTES CONNECTIONS    lateness of a 1 ms ticker on the loop meanwhile, in ms
    body_case.py busy PORT FILE BYTES CONNECTIONS      sendfile beside a thread of pure Python
    body_case.py memory PORT FILE BYTES CONNECTIONS    peak growth of the process's resident memory, in bytes
    body_case.py refused - FILE TIMES 1                the peer answers 403 in mid-body and resets

PORT is that of bench/peers/sink.c. bench/micro_bodysend.py runs these and the C loops in turns.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import mmap
import os
import random
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from engine._bodysend import BodySender, Job, Stop
from engine.limits import NOTSENT_LOWAT_BYTES

TCP_NOTSENT_LOWAT = 25
STALL_MS = 60_000
ANSWER = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def connect(port: int) -> socket.socket:
    """A socket as the engine sets it up."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)
    return sock


class Case:
    """One run: connections to the sink, one body on each."""

    def __init__(self, kind: str, port: str, path: str, size: str, connections: str) -> None:
        self.kind = kind
        self.size = int(size)
        self.file = os.open(path, os.O_RDONLY)
        self.sockets = [connect(int(port)) for _ in range(int(connections))]
        self.memory = mmap.mmap(-1, self.size if kind == "send" else 1)
        if kind == "send":
            for start in range(0, self.size, 1 << 20):
                self.memory[start : start + (1 << 20)] = b"x" * min(1 << 20, self.size - start)

    def start(self, sender: BodySender, sock: socket.socket) -> Job:
        if self.kind == "send":
            return sender.start_memory(sock.fileno(), self.memory, STALL_MS)
        if self.kind == "splice":
            return sender.start_pipe(sock.fileno(), 0, self.size, STALL_MS)
        return sender.start_file(sock.fileno(), self.file, 0, self.size, STALL_MS)

    async def run(self) -> dict[str, float]:
        loop = asyncio.get_running_loop()
        sender = BodySender(loop)
        start, cpu = time.perf_counter(), time.process_time()
        for job in [self.start(sender, sock) for sock in self.sockets]:
            outcome = await job
            if outcome.stop is not Stop.DONE:
                raise RuntimeError(f"{outcome}")
        for sock in self.sockets:
            sock.shutdown(socket.SHUT_WR)
        for sock in self.sockets:
            await loop.sock_recv(sock, 1)
        result = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        sender.close()
        return result


class Ticker:
    """A timerfd that fires each millisecond: uvloop's own timers are only that precise themselves."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.loop = loop
        self.lateness_ms: list[float] = []
        self.fd = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        now = time.monotonic_ns() + 1_000_000
        interval = struct.pack("qqqq", 0, 1_000_000, now // 10**9, now % 10**9)
        if self.fd < 0 or libc.timerfd_settime(self.fd, 1, interval, None):  # 1: TFD_TIMER_ABSTIME
            raise OSError(ctypes.get_errno(), "timerfd")
        self.due_ns = now
        loop.add_reader(self.fd, self.tick)

    def tick(self) -> None:
        ticks = int.from_bytes(os.read(self.fd, 8), sys.byteorder)
        late = (time.monotonic_ns() - self.due_ns) / 1e6
        self.lateness_ms += [late - missed for missed in range(ticks)]
        self.due_ns += ticks * 1_000_000

    def stop(self) -> None:
        self.loop.remove_reader(self.fd)
        os.close(self.fd)


async def ticker(*arguments: str) -> dict[str, float]:
    case = Case("sendfile", *arguments)
    tick = Ticker(asyncio.get_running_loop())
    result = await case.run()
    tick.stop()
    late = sorted(tick.lateness_ms)
    return result | {"p50_ms": late[len(late) // 2], "p99_ms": late[len(late) * 99 // 100], "max_ms": late[-1]}


async def busy(*arguments: str) -> dict[str, float]:
    case = Case("sendfile", *arguments)
    over = False
    turns = 0

    def spin() -> None:
        nonlocal turns
        while not over:
            turns += 1

    thread = threading.Thread(target=spin)
    thread.start()
    result = await case.run()
    over = True
    thread.join()
    return result | {"turns": turns}


def status_kb(name: str) -> int:
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])


async def memory(*arguments: str) -> dict[str, float]:
    case = Case("sendfile", *arguments)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status_kb("VmRSS")
    result = await case.run()
    return result | {"growth_bytes": (status_kb("VmHWM") - before) * 1024}


class RefusingPeer:
    """Takes part of a body, answers 403 and closes with the rest unread, which resets the connection."""

    def __init__(self, refuse_after: int) -> None:
        self.refuse_after = refuse_after
        self.job: Job | None = None
        self.sent_before_answer = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.serve)

    def serve(self) -> None:
        peer, _ = self.listener.accept()
        taken = 0
        buffer = bytearray(1 << 20)
        while taken < self.refuse_after:
            taken += peer.recv_into(buffer, 0, socket.MSG_TRUNC)
        assert self.job
        self.sent_before_answer = self.job.sent
        peer.send(ANSWER)
        peer.close()


async def refuse_once(sender: BodySender, file: int, rng: random.Random) -> tuple[bool, int]:
    """Whether the answer came through, and how many bytes left after it was sent (an upper bound: counted just before)."""
    size = os.fstat(file).st_size
    peer = RefusingPeer(rng.randrange(min(size // 4, 32 << 20)))
    sock = connect(peer.listener.getsockname()[1])
    peer.job = sender.start_file(sock.fileno(), file, 0, size, STALL_MS)
    peer.thread.start()
    outcome = await peer.job
    received = b""
    try:
        while data := sock.recv(4096):
            received += data
    except (BlockingIOError, ConnectionError):
        pass
    peer.thread.join()
    sock.close()
    peer.listener.close()
    if outcome.stop not in (Stop.READABLE, Stop.SOCKET_ERROR):
        raise RuntimeError(f"{outcome}")
    return received == ANSWER, outcome.sent - peer.sent_before_answer


async def refused(port: str, path: str, times: str, connections: str) -> dict[str, float]:
    sender = BodySender(asyncio.get_running_loop())
    file = os.open(path, os.O_RDONLY)
    rng = random.Random(1)
    results = [await refuse_once(sender, file, rng) for _ in range(int(times))]
    sender.close()
    after = sorted(count for _, count in results)
    return {
        "times": len(results),
        "lost": sum(not whole for whole, _ in results),
        "after_median_bytes": statistics.median(after),
        "after_p99_bytes": after[len(after) * 99 // 100],
        "after_max_bytes": after[-1],
    }


CASES: dict[str, Callable[..., Awaitable[dict[str, float]]]] = {
    "ticker": ticker,
    "busy": busy,
    "memory": memory,
    "refused": refused,
}


def main() -> None:
    kind, *arguments = sys.argv[1:]
    if len(arguments) > 4:
        os.sched_setaffinity(0, {int(arguments.pop())})

    async def measure() -> dict[str, Any]:
        if kind in CASES:
            return dict(await CASES[kind](*arguments))
        return dict(await Case(kind, *arguments).run())

    print(json.dumps(uvloop.run(measure())))


if __name__ == "__main__":
    main()
