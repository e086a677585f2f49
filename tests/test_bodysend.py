# ruff: noqa: ASYNC230, ASYNC240, ASYNC251 (small local files; one sleep that must hold the loop)
"""The native sender over real TCP sockets, on uvloop and on asyncio's own loop."""

from __future__ import annotations

import array
import ast
import asyncio
import contextlib
import errno
import gc
import inspect
import json
import mmap
import os
import pickle
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

import engine._bodysend as bodysend
from engine._bodysend import BodySender, Job, Outcome, Stop, find_mapped_file, send_file_inline, send_memory_inline

MIB = 1 << 20
BODY = random.Random(1).randbytes(3 * MIB)  # more than the buffers of both sockets hold
BUFFER_BYTES = 128 * 1024
STALL_MS = 20_000  # long enough never to end a test that works

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    loop = uvloop.new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()
    yield loop.run_until_complete
    loop.close()


class Peer:
    """The other end of one TCP connection; reads only when told to, in a thread of its own."""

    def __init__(self, buffer_bytes: int = BUFFER_BYTES) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            self.ours = socket.create_connection(listener.getsockname())
            self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
            self.theirs, _ = listener.accept()
        self.ours.setblocking(False)
        self.received = bytearray()
        self._thread: threading.Thread | None = None

    @property
    def fd(self) -> int:
        return self.ours.fileno()

    def read(self, size: int | None = None, answer: bytes = b"") -> None:
        """Start reading until `size` bytes are there, or until the end; then answer."""
        self._thread = threading.Thread(target=self._read, args=(size, answer))
        self._thread.start()

    def _read(self, size: int | None, answer: bytes) -> None:
        while size is None or len(self.received) < size:
            data = self.theirs.recv(MIB if size is None else min(MIB, size - len(self.received)))
            if not data:
                break
            self.received += data
        if answer:
            self.theirs.send(answer)

    def join(self) -> bytes:
        assert self._thread is not None
        self._thread.join(30)
        assert not self._thread.is_alive()
        return bytes(self.received)

    def finish(self) -> bytes:
        """End our half and return everything that arrived."""
        self.ours.shutdown(socket.SHUT_WR)
        if self._thread is None:
            self.read()
        return self.join()

    def reset(self) -> None:
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.theirs.close()

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def roomy_peer() -> Iterator[Peer]:
    """One whose sockets take a body of 600 KB at once."""
    peer = Peer(buffer_bytes=MIB)
    yield peer
    peer.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "body").write_bytes(BODY)
    fd = os.open(tmp_path / "body", os.O_RDONLY)
    yield fd
    os.close(fd)


@contextlib.contextmanager
def sending() -> Iterator[BodySender]:
    sender = BodySender(asyncio.get_running_loop())
    try:
        yield sender
    finally:
        sender.close()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come about within 10 s")


async def until_blocked(job: Job) -> None:
    """Until the sockets' buffers are full: nothing more has left for 100 ms."""
    last = -1
    while job.sent != last:
        last = job.sent
        await asyncio.sleep(0.1)
    assert job.outcome is None


def worker_threads() -> list[str]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            if (task / "comm").read_text().startswith("bodysend"):
                found.append(task.name)
    return found


# ---- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "count"), [(0, len(BODY)), (1, 1), (4095, 2 * MIB + 7), (len(BODY) - 5, 5), (3, 0)])
def test_a_file_is_sent_from_any_offset_in_any_length(run: Run, peer: Peer, file: int, offset: int, count: int) -> None:
    async def main() -> None:
        with sending() as sender:
            peer.read()
            outcome = await sender.start_file(peer.fd, file, offset, count, STALL_MS)
            assert outcome == Outcome(Stop.DONE, count, 0, "sendfile")
            assert pickle.loads(pickle.dumps(outcome)) == outcome

    run(main())
    assert peer.finish() == BODY[offset : offset + count]
    assert os.lseek(file, 0, os.SEEK_CUR) == 0


def test_a_sparse_file_on_tmpfs_is_sent(run: Run, peer: Peer) -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(8 * MIB)
        file.seek(5 * MIB)
        file.write(b"island")
        file.flush()

        async def main() -> None:
            with sending() as sender:
                peer.read()
                outcome = await sender.start_file(peer.fd, file.fileno(), MIB, 7 * MIB, STALL_MS)
                assert outcome == Outcome(Stop.DONE, 7 * MIB, 0, "sendfile")

        run(main())
    assert peer.finish() == bytes(4 * MIB) + b"island" + bytes(3 * MIB - 6)


def mapped() -> mmap.mmap:
    view = mmap.mmap(-1, len(BODY))
    view.write(BODY)
    return view


@pytest.mark.parametrize(
    "make",
    [bytes, bytearray, memoryview, lambda body: array.array("q", body), lambda body: mapped()],
    ids=["bytes", "bytearray", "memoryview", "array", "mmap"],
)
def test_memory_of_any_exporter_is_sent(run: Run, peer: Peer, make: Callable[[bytes], Any]) -> None:
    async def main() -> None:
        with sending() as sender:
            peer.read()
            outcome = await sender.start_memory(peer.fd, make(BODY), STALL_MS)
            assert outcome == Outcome(Stop.DONE, len(BODY), 0, "send")

    run(main())
    assert peer.finish() == BODY


def test_the_exporter_is_held_until_the_outcome_and_no_longer(run: Run, peer: Peer) -> None:
    body = bytearray(BODY)

    async def main() -> None:
        with sending() as sender:
            job = sender.start_memory(peer.fd, body, STALL_MS)
            await until_blocked(job)
            with pytest.raises(BufferError):
                body.append(0)
            peer.read()
            await job
            body.append(0)

    run(main())
    assert peer.finish() == BODY


def test_a_non_contiguous_buffer_is_refused(run: Run, peer: Peer) -> None:
    async def main() -> None:
        with sending() as sender, pytest.raises(BufferError):
            sender.start_memory(peer.fd, memoryview(BODY)[::2], STALL_MS)

    run(main())


def test_a_shared_mapping_of_a_file_is_traced_to_the_file(run: Run, peer: Peer, tmp_path: Path) -> None:
    path = tmp_path / "a name\nwith everything in it"
    path.write_bytes(BODY)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), MIB, offset=MIB) as view:
        view[5:8] = b"new"
        found = find_mapped_file(memoryview(view)[3:])
        assert found is None  # a newline is escaped in the list of mappings, and such a path is not guessed
    path = path.rename(tmp_path / "with some spaces (deleted)")
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), MIB, offset=MIB) as view:
        found = find_mapped_file(memoryview(view)[3:])
        assert found is not None
        fd, offset = found

        async def main() -> None:
            with sending() as sender:
                peer.read()
                outcome = await sender.start_file(peer.fd, fd, offset, MIB - 3, STALL_MS)
                assert outcome == Outcome(Stop.DONE, MIB - 3, 0, "sendfile")

        run(main())
        os.close(fd)
    assert peer.finish() == BODY[MIB + 3 : MIB + 5] + b"new" + BODY[MIB + 8 : 2 * MIB]


def test_memory_that_is_not_surely_a_files_is_not_taken_for_one(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(BODY)
    before = len(os.listdir("/proc/self/fd"))
    with open(path, "r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as private:
            private[0] = 1
            assert find_mapped_file(private) is None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as shared:
            assert find_mapped_file(memoryview(shared)[:0]) is None
            path.unlink()
            assert find_mapped_file(shared) is None
            path.write_bytes(BODY)  # another file of that name
            assert find_mapped_file(shared) is None
    assert find_mapped_file(mapped()) is None
    assert find_mapped_file(BODY) is None
    assert len(os.listdir("/proc/self/fd")) == before


def feed_pipe(write_fd: int, pieces: list[bytes], pause_s: float = 0) -> threading.Thread:
    def feed() -> None:
        with open(write_fd, "wb", buffering=0) as pipe:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[pipe.write(view) :]
                time.sleep(pause_s)

    thread = threading.Thread(target=feed)
    thread.start()
    return thread


@pytest.mark.parametrize("count", [len(BODY), -1])
@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_socket_is_read_and_sent_by_count_or_to_its_end(run: Run, peer: Peer, count: int, family: int) -> None:
    source = Peer() if family == socket.AF_INET else None
    reader, writer = (source.ours, source.theirs) if source else socket.socketpair()
    thread = feed_pipe(writer.detach(), [BODY])

    async def main() -> None:
        with sending() as sender:
            peer.read()
            outcome = await sender.start_pipe(peer.fd, reader.fileno(), count, STALL_MS)
            assert outcome == Outcome(Stop.DONE, len(BODY), 0, "read+send")

    run(main())
    thread.join()
    reader.close()
    assert peer.finish() == BODY


def test_what_the_peer_did_not_take_is_left_in_the_source_socket(run: Run, peer: Peer) -> None:
    reader, writer = socket.socketpair()
    thread = feed_pipe(writer.detach(), [BODY])

    async def main() -> None:
        with sending() as sender:
            job = sender.start_pipe(peer.fd, reader.fileno(), len(BODY), STALL_MS)
            await until_blocked(job)
            peer.theirs.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            first = await job
            assert first.stop is Stop.READABLE
            peer.ours.recv(100)
            peer.read()
            rest = len(BODY) - first.sent
            assert (await sender.start_pipe(peer.fd, reader.fileno(), -1, STALL_MS))[:2] == (Stop.DONE, rest)

    run(main())
    thread.join()
    reader.close()
    assert peer.finish() == BODY


@pytest.mark.parametrize("count", [len(BODY), -1])
def test_a_pipe_is_spliced_by_count_or_to_its_end(run: Run, peer: Peer, count: int) -> None:
    read_fd, write_fd = os.pipe()
    thread = feed_pipe(write_fd, [BODY])

    async def main() -> None:
        with sending() as sender:
            peer.read()
            outcome = await sender.start_pipe(peer.fd, read_fd, count, STALL_MS)
            assert outcome == Outcome(Stop.DONE, len(BODY), 0, "splice")

    run(main())
    thread.join()
    os.close(read_fd)
    assert peer.finish() == BODY


def test_a_slow_pipe_is_not_a_stalled_peer(run: Run, peer: Peer) -> None:
    read_fd, write_fd = os.pipe()
    thread = feed_pipe(write_fd, [b"one", b"two", b"three"], pause_s=0.15)

    async def main() -> None:
        with sending() as sender:
            peer.read()
            assert await sender.start_pipe(peer.fd, read_fd, -1, 50) == Outcome(Stop.DONE, 11, 0, "splice")

    run(main())
    thread.join()
    os.close(read_fd)
    assert peer.finish() == b"onetwothree"


def test_nothing_is_held_back_while_a_pipe_is_empty(run: Run, peer: Peer) -> None:
    read_fd, write_fd = os.pipe()

    async def main() -> None:
        with sending() as sender:
            job = sender.start_pipe(peer.fd, read_fd, -1, STALL_MS)
            os.write(write_fd, b"first")
            await until(lambda: job.sent == 5)
            await until(lambda: peer.ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) == 0)
            assert peer.theirs.recv(100) == b"first"
            job.cancel()
            await job
        os.close(read_fd)
        os.close(write_fd)

    run(main())


def test_a_pipe_that_ends_early_is_reported(run: Run, peer: Peer) -> None:
    read_fd, write_fd = os.pipe()
    thread = feed_pipe(write_fd, [b"short"])

    async def main() -> None:
        with sending() as sender:
            outcome = await sender.start_pipe(peer.fd, read_fd, 6, STALL_MS)
            assert outcome == Outcome(Stop.SOURCE_ENDED, 5, 0, "splice")

    run(main())
    thread.join()
    os.close(read_fd)


def test_a_peer_that_speaks_or_resets_is_noticed_while_the_pipe_is_empty(run: Run) -> None:
    async def main() -> None:
        for ignore, stop in ((False, Stop.READABLE), (True, Stop.SOCKET_ERROR)):
            peer = Peer()
            read_fd, write_fd = os.pipe()
            with sending() as sender:
                job = sender.start_pipe(peer.fd, read_fd, -1, STALL_MS, ignore_readable=ignore)
                await asyncio.sleep(0.05)
                peer.reset()
                assert (await job).stop is stop
            os.close(read_fd)
            os.close(write_fd)
            peer.close()

    run(main())


def test_a_file_that_knows_no_sendfile_is_read_and_sent(run: Run, peer: Peer) -> None:
    # Our own memory through /proc: a regular file to fstat and pread, EOVERFLOW to sendfile.
    memory = array.array("B", BODY)
    address, size = memory.buffer_info()
    fd = os.open("/proc/self/mem", os.O_RDONLY)

    async def main() -> None:
        with sending() as sender:
            peer.read()
            outcome = await sender.start_file(peer.fd, fd, address, size, STALL_MS)
            assert outcome == Outcome(Stop.DONE, size, 0, "read+send")
            assert send_file_inline(peer.fd, fd, address, 1000) == Outcome(Stop.DONE, 1000, 0, "read+send")

    run(main())
    os.close(fd)
    assert peer.finish() == BODY + BODY[:1000]


def test_a_file_whose_sendfile_is_invalid_is_read_and_sent(roomy_peer: Peer) -> None:
    environment = {f"v{index}": "x" * 60_000 for index in range(10)}
    expected = b"".join(f"{name}={value}\0".encode() for name, value in environment.items())
    child = subprocess.Popen(["/bin/sleep", "60"], env=environment)
    with child, open(f"/proc/{child.pid}/environ", "rb") as file:
        roomy_peer.read()
        while os.pread(file.fileno(), 3, 0) != b"v0=":  # until the child has become sleep
            time.sleep(0.001)
        with pytest.raises(OSError, match="Invalid argument"):
            os.sendfile(roomy_peer.fd, file.fileno(), 0, 1)
        outcome = send_file_inline(roomy_peer.fd, file.fileno(), 5, len(expected) - 5)
        child.kill()
    assert outcome == Outcome(Stop.DONE, len(expected) - 5, 0, "read+send")
    assert roomy_peer.finish() == expected[5:]


# ---- reasons to stop ---------------------------------------------------------------------------------------------------


def test_bytes_from_the_peer_before_the_first_byte_send_nothing(run: Run, peer: Peer, file: int) -> None:
    async def main() -> None:
        with sending() as sender:
            peer.theirs.send(b"HTTP/1.1 307 Temporary Redirect\r\n")
            await until(lambda: bool(peer.ours.recv(1, socket.MSG_PEEK)))
            assert await sender.start_file(peer.fd, file, 0, len(BODY), STALL_MS) == (Stop.READABLE, 0, 0, "sendfile")
            assert await sender.start_memory(peer.fd, BODY, STALL_MS) == (Stop.READABLE, 0, 0, "send")

    run(main())
    assert peer.finish() == b""


def test_an_early_answer_stops_the_body_and_it_can_go_on_from_there(run: Run, peer: Peer, file: int) -> None:
    async def main() -> None:
        with sending() as sender:
            job = sender.start_file(peer.fd, file, 0, len(BODY), STALL_MS)
            await until_blocked(job)
            peer.theirs.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            first = await job
            assert first.stop is Stop.READABLE
            assert 0 < first.sent < len(BODY)
            peer.ours.recv(100)
            peer.read()
            rest = len(BODY) - first.sent
            assert await sender.start_file(peer.fd, file, first.sent, rest, STALL_MS) == (
                Stop.DONE,
                rest,
                0,
                "sendfile",
            )

    run(main())
    assert peer.finish() == BODY


def test_an_answer_after_the_last_byte_is_not_early(run: Run, file: int) -> None:
    async def main() -> None:
        with sending() as sender:
            for count in (1, 1000, bodysend.STEP_BYTES, bodysend.STEP_BYTES + 1):
                for _ in range(50):
                    peer = Peer()
                    peer.read(count, answer=b"HTTP/1.1 200 OK")
                    outcome = await sender.start_file(peer.fd, file, 0, count, STALL_MS)
                    assert outcome == Outcome(Stop.DONE, count, 0, "sendfile")
                    peer.join()
                    peer.close()

    run(main())


def test_a_half_closed_peer_is_reported_and_then_ignored_without_spinning(run: Run, peer: Peer, file: int) -> None:
    async def main() -> None:
        with sending() as sender:
            job = sender.start_file(peer.fd, file, 0, len(BODY), STALL_MS)
            await until_blocked(job)
            peer.theirs.shutdown(socket.SHUT_WR)
            sent = (await job).sent
            assert job.outcome is not None
            assert job.outcome.stop is Stop.READABLE
            job = sender.start_file(peer.fd, file, sent, len(BODY) - sent, STALL_MS, ignore_readable=True)
            await until_blocked(job)
            before = time.process_time()
            await asyncio.sleep(0.3)
            assert time.process_time() - before < 0.15
            peer.read()
            assert (await job).stop is Stop.DONE

    run(main())
    assert peer.finish() == BODY


@pytest.mark.parametrize("kind", ["file", "memory", "pipe", "read+send"])
def test_a_peer_that_takes_nothing_is_a_stall(run: Run, peer: Peer, file: int, kind: str) -> None:
    async def main() -> None:
        read_fd, write_fd = os.pipe()
        thread = None
        memory = array.array("B", BODY)
        with sending() as sender, open("/proc/self/mem", "rb") as mem:
            if kind == "file":
                job = sender.start_file(peer.fd, file, 0, len(BODY), 150)
            elif kind == "memory":
                job = sender.start_memory(peer.fd, BODY, 150)
            elif kind == "read+send":
                job = sender.start_file(peer.fd, mem.fileno(), memory.buffer_info()[0], len(BODY), 150)
            else:
                thread = feed_pipe(os.dup(write_fd), [BODY])
                job = sender.start_pipe(peer.fd, read_fd, len(BODY), 150)
            outcome = await job
            assert outcome.stop is Stop.STALLED
            assert 0 < outcome.sent < len(BODY)
            assert outcome.sent == job.sent
            received = await asyncio.to_thread(peer.finish)
            assert received == BODY[: outcome.sent]
            os.close(write_fd)
            while thread and os.read(read_fd, MIB):
                pass
            if thread:
                thread.join()
        os.close(read_fd)

    run(main())


def test_a_file_that_shrank_is_reported(run: Run, peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"x" * 300_000)

    async def main() -> None:
        with sending() as sender, open(tmp_path / "short", "rb") as file:
            peer.read()
            outcome = await sender.start_file(peer.fd, file.fileno(), 0, MIB, STALL_MS)
            assert outcome == Outcome(Stop.SOURCE_ENDED, 300_000, 0, "sendfile")

    run(main())
    assert peer.finish() == b"x" * 300_000


def test_a_source_that_cannot_be_read_is_told_from_a_broken_socket(run: Run, peer: Peer, tmp_path: Path) -> None:
    async def main() -> None:
        with sending() as sender:
            write_only = os.open(tmp_path / "new", os.O_WRONLY | os.O_CREAT)
            directory = os.open(tmp_path, os.O_RDONLY)
            read_fd, write_fd = os.pipe()
            for fd, number in ((write_only, errno.EBADF), (directory, errno.EISDIR), (read_fd, errno.ESPIPE)):
                outcome = await sender.start_file(peer.fd, fd, 0, MIB, STALL_MS)
                assert outcome[:3] == (Stop.SOURCE_ERROR, 0, number)
                assert send_file_inline(peer.fd, fd, 0, 100)[:3] == (Stop.SOURCE_ERROR, 0, number)
            assert (await sender.start_pipe(peer.fd, directory, -1, STALL_MS))[:2] == (Stop.SOURCE_ERROR, 0)
            for fd in (write_only, directory, read_fd, write_fd):
                os.close(fd)

    run(main())


def test_an_mmap_of_a_truncated_file_is_a_source_error_not_a_crash(run: Run, peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(bytes(MIB))

    async def main() -> None:
        with sending() as sender, open(tmp_path / "body", "r+b") as file:
            view = mmap.mmap(file.fileno(), MIB)
            file.truncate(0)
            outcome = await sender.start_memory(peer.fd, view, STALL_MS)
            assert outcome == Outcome(Stop.SOURCE_ERROR, 0, errno.EFAULT, "send")
            view.close()

    run(main())


def test_a_reset_is_readable_so_that_a_queued_answer_is_found(run: Run, peer: Peer, file: int) -> None:
    async def main() -> None:
        with sending() as sender:
            job = sender.start_file(peer.fd, file, 0, len(BODY), STALL_MS)
            await until_blocked(job)
            peer.theirs.send(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            peer.reset()
            outcome = await job
            assert outcome.stop in (Stop.READABLE, Stop.SOCKET_ERROR)
            assert peer.ours.recv(100) == b"HTTP/1.1 403 Forbidden\r\n\r\n"

    run(main())


def test_a_broken_socket_gives_its_errno_and_kills_nobody(run: Run, peer: Peer, file: int) -> None:
    async def main() -> None:
        with sending() as sender:
            peer.reset()
            await asyncio.sleep(0.05)
            broken = {errno.EPIPE, errno.ECONNRESET}
            of_file = await sender.start_file(peer.fd, file, 0, MIB, STALL_MS, ignore_readable=True)
            of_memory = await sender.start_memory(peer.fd, BODY, STALL_MS, ignore_readable=True)
            assert [of_file.stop, of_memory.stop] == [Stop.SOCKET_ERROR] * 2
            assert {of_file.errno, of_memory.errno} <= broken
            assert send_file_inline(peer.fd, file, 0, 100, probe=False).errno == errno.EPIPE
            assert send_memory_inline(peer.fd, b"x", probe=False).errno == errno.EPIPE

    run(main())


# ---- on the loop -------------------------------------------------------------------------------------------------------


def test_small_bodies_leave_inline(roomy_peer: Peer, file: int) -> None:
    assert send_memory_inline(roomy_peer.fd, b"head", more=True) == Outcome(Stop.DONE, 4, 0, "send")
    assert send_file_inline(roomy_peer.fd, file, 1, 600_000) == Outcome(Stop.DONE, 600_000, 0, "sendfile")
    assert send_file_inline(roomy_peer.fd, file, 1, 0) == Outcome(Stop.DONE, 0, 0, "sendfile")
    assert send_memory_inline(roomy_peer.fd, b"") == Outcome(Stop.DONE, 0, 0, "send")
    assert roomy_peer.finish() == b"head" + BODY[1:600_001]


def test_inline_never_waits_for_the_peer(peer: Peer, file: int) -> None:
    first = send_file_inline(peer.fd, file, 0, len(BODY))
    assert first.stop is Stop.WOULD_BLOCK
    assert 0 < first.sent < len(BODY)
    second = send_memory_inline(peer.fd, BODY[first.sent :])
    assert second.stop is Stop.WOULD_BLOCK
    assert peer.finish() == BODY[: first.sent + second.sent]


def test_inline_probes_only_when_asked(peer: Peer, file: int) -> None:
    peer.theirs.send(b"early")
    while not peer.ours.recv(1, socket.MSG_PEEK):
        pass
    assert send_file_inline(peer.fd, file, 0, 100) == Outcome(Stop.READABLE, 0, 0, "sendfile")
    assert send_memory_inline(peer.fd, b"12345") == Outcome(Stop.READABLE, 0, 0, "send")
    assert send_file_inline(peer.fd, file, 0, 100, probe=False).sent == 100
    assert send_memory_inline(peer.fd, b"12345", probe=False).sent == 5


def test_inline_leaves_a_file_that_is_not_in_the_page_cache_to_a_worker(peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "cold").write_bytes(b"c" * MIB)
    with open(tmp_path / "cold", "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except BlockingIOError:
            pass
        except OSError:
            pytest.skip("this filesystem does not tell what is cached")
        else:
            pytest.skip("this filesystem keeps the file in memory")
        outcome = send_file_inline(peer.fd, file.fileno(), 0, 1000)
        if outcome.stop is Stop.DONE:
            pytest.skip("the look at the cache made the kernel read the file already")
        assert outcome == Outcome(Stop.WOULD_BLOCK, 0, 0, "sendfile")
        assert os.pread(file.fileno(), MIB, 0) == b"c" * MIB
        assert send_file_inline(peer.fd, file.fileno(), 0, 1000) == Outcome(Stop.DONE, 1000, 0, "sendfile")


def run_script(script: str, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
    prelude = """
        import asyncio, os, signal, socket, sys, tempfile, threading
        from engine._bodysend import BodySender, Stop, send_file_inline, send_memory_inline
        listener = socket.create_server(("127.0.0.1", 0))
        ours = socket.create_connection(listener.getsockname()); ours.setblocking(False)
        theirs, _ = listener.accept()
        file = tempfile.TemporaryFile(); file.truncate(1 << 30)
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def test_a_program_with_sigpipe_at_its_default_survives_a_broken_socket() -> None:
    done = run_script("""
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        theirs.close(); listener.close()
        for _ in range(5):
            send_file_inline(ours.fileno(), file.fileno(), 0, 1000, probe=False)
            outcome = send_memory_inline(ours.fileno(), b"x", probe=False)
        assert outcome.stop is Stop.SOCKET_ERROR, outcome
        async def main():
            sender = BodySender(asyncio.get_running_loop())
            print((await sender.start_file(ours.fileno(), file.fileno(), 0, 1000, 0, ignore_readable=True)).stop.name)
            sender.close()
        asyncio.run(main())
        assert signal.SIGPIPE not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "SOCKET_ERROR\n", "")


# ---- jobs ----------------------------------------------------------------------------------------------------------------


def test_cancel_ends_a_blocked_body_and_later_cancels_do_nothing(run: Run, peer: Peer, file: int) -> None:
    async def main() -> None:
        with sending() as sender:
            job = sender.start_file(peer.fd, file, 0, len(BODY), 0)
            await until_blocked(job)
            job.cancel()
            job.cancel()
            assert job.outcome is None  # never from inside cancel()
            outcome = await job
            assert outcome.stop is Stop.CANCELLED
            assert outcome.sent == job.sent
            job.cancel()
            assert job.outcome == outcome
            peer.read()
            assert (await sender.start_file(peer.fd, file, outcome.sent, MIB, STALL_MS)).stop is Stop.DONE

    run(main())
    assert len(peer.finish()) > MIB


def test_callbacks_run_on_the_loop_and_a_failing_one_harms_no_other(run: Run, peer: Peer, file: int) -> None:
    async def main() -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        seen: list[tuple[Job, int]] = []
        with sending() as sender:
            job = sender.start_file(peer.fd, file, 0, 10, STALL_MS)
            job.add_done_callback(lambda job: 1 // 0)
            job.add_done_callback(lambda job: seen.append((job, threading.get_ident())))
            await job
            assert [type(problem["exception"]) for problem in problems] == [ZeroDivisionError]
            job.add_done_callback(lambda job: seen.append((job, threading.get_ident())))
            assert len(seen) == 1
            await until(lambda: len(seen) == 2)
        assert seen == [(job, threading.get_ident())] * 2

    run(main())


def test_a_job_that_python_dropped_still_runs_to_its_end(run: Run, peer: Peer) -> None:
    async def main() -> None:
        with sending() as sender:
            done: list[Job] = []
            sender.start_memory(peer.fd, bytearray(BODY), STALL_MS).add_done_callback(done.append)
            gc.collect()
            peer.read()
            await until(lambda: bool(done))
            assert done[0].outcome == Outcome(Stop.DONE, len(BODY), 0, "send")

    run(main())
    assert peer.finish() == BODY


def test_close_cancels_everything_and_the_callbacks_have_run_when_it_returns(run: Run, file: int) -> None:
    async def main() -> None:
        peers = [Peer() for _ in range(8)]
        sender = BodySender(asyncio.get_running_loop())
        ended: list[Job] = []
        jobs = [sender.start_file(peer.fd, file, 0, len(BODY), 0) for peer in peers]
        for job in jobs:
            job.add_done_callback(ended.append)
            job.add_done_callback(lambda job: sender.close())  # from inside: nothing is left to do
        sender.close()
        assert [job.outcome and job.outcome.stop for job in ended] == [Stop.CANCELLED] * 8
        with pytest.raises(RuntimeError):
            sender.start_file(peers[0].fd, file, 0, 1, 0)
        for peer in peers:
            peer.close()

    run(main())


def test_close_from_a_callback_delivers_what_finished_in_the_same_round(run: Run, file: int) -> None:
    async def main() -> None:
        peers = [Peer() for _ in range(8)]
        sender = BodySender(asyncio.get_running_loop())
        jobs = [sender.start_file(peer.fd, file, 0, 1000, 0) for peer in peers]
        time.sleep(0.2)  # the loop must not run: all eight finish before one delivery
        for job in jobs:
            job.add_done_callback(lambda job: sender.close())
        await jobs[0]
        assert [job.outcome for job in jobs] == [Outcome(Stop.DONE, 1000, 0, "sendfile")] * 8
        for peer in peers:
            peer.close()

    run(main())


def test_bad_arguments_are_refused(run: Run, peer: Peer, file: int) -> None:
    async def main() -> None:
        with sending() as sender:
            for offset, count, stall_ms in ((-1, 1, 0), (0, -1, 0), (0, 1, -1)):
                with pytest.raises(ValueError):
                    sender.start_file(peer.fd, file, offset, count, stall_ms)
            with pytest.raises(ValueError):
                sender.start_pipe(peer.fd, file, -2, 0)
            with pytest.raises(ValueError):
                send_file_inline(peer.fd, file, -1, 1)
            with pytest.raises(TypeError):
                Job()
            with pytest.raises(RuntimeError):
                sender.__init__(asyncio.get_running_loop())
            outcome = await sender.start_memory(9999, b"x", 0)
            assert outcome[:3] == (Stop.SOCKET_ERROR, 0, errno.EBADF)

    run(main())


def test_it_sends_below_a_paused_uvloop_transport(file: int) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        received = bytearray()
        whole: asyncio.Future[None] = loop.create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(MIB):
                received.extend(data)
            whole.set_result(None)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
        with sending() as sender:
            transport.write(b"head")
            transport.pause_reading()
            fd = os.dup(transport.get_extra_info("socket").fileno())
            assert (await sender.start_file(fd, file, 0, len(BODY), STALL_MS)).stop is Stop.DONE
            os.close(fd)
            transport.resume_reading()
            transport.write(b"tail")
            transport.write_eof()
            await whole
        transport.close()
        server.close()
        await server.wait_closed()
        assert received == b"head" + BODY + b"tail"

    uvloop.run(main())


# ---- threads ---------------------------------------------------------------------------------------------------------------


def test_above_the_cap_no_body_starves_and_no_thread_is_added(run: Run, file: int) -> None:
    async def main() -> None:
        peers = [Peer() for _ in range(bodysend.MAX_THREADS + 40)]
        with sending() as sender:
            jobs = [sender.start_file(peer.fd, file, 0, len(BODY), STALL_MS) for peer in peers]
            await until(lambda: all(job.sent for job in jobs))
            assert len(worker_threads()) == bodysend.MAX_THREADS
            for index, peer in enumerate(peers):
                peer.theirs.send(b"stop") if index % 2 else jobs[index].cancel()
            stops = [(await job).stop for job in jobs]
            assert stops == [Stop.CANCELLED, Stop.READABLE] * (len(peers) // 2)
            for job, peer in zip(jobs, peers, strict=True):
                assert job.outcome is not None
                assert peer.finish() == BODY[: job.outcome.sent]
                peer.close()

    run(main())


def test_bodies_that_share_a_thread_arrive_whole(run: Run, file: int) -> None:
    async def main() -> None:
        blocked = [Peer() for _ in range(bodysend.MAX_THREADS)]
        peers = [Peer() for _ in range(6)]
        with sending() as sender:
            idle = [sender.start_file(peer.fd, file, 0, len(BODY), 0) for peer in blocked]
            jobs = [sender.start_file(peer.fd, file, 0, len(BODY), STALL_MS) for peer in peers]
            stalled = sender.start_file(blocked[0].fd, file, 0, len(BODY), 100)
            for peer in peers:
                peer.read(len(BODY))
            assert [(await job).stop for job in jobs] == [Stop.DONE] * 6
            assert (await stalled).stop is Stop.STALLED
            assert [job.outcome for job in idle] == [None] * len(idle)
            assert all([await asyncio.to_thread(peer.join) == BODY for peer in peers])
        for peer in blocked + peers:
            peer.close()

    run(main())


def test_workers_block_every_signal_and_bear_a_name(run: Run, peer: Peer, file: int) -> None:
    async def main() -> None:
        with sending() as sender:
            job = sender.start_file(peer.fd, file, 0, len(BODY), 0)
            await until_blocked(job)
            threads = worker_threads()
            assert threads
            for thread in threads:
                status = Path(f"/proc/self/task/{thread}/status").read_text()
                blocked = int(status.split("SigBlk:")[1].split()[0], 16)
                catchable = [
                    number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)
                ]
                assert all(blocked >> (number - 1) & 1 for number in catchable)

    run(main())


# ---- fork, exit ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork with threads is the point
def test_a_forked_child_starts_afresh_and_leaves_the_parents_bodies_alone(run: Run, peer: Peer, file: int) -> None:
    def child(sender: BodySender, job: Job, view: bytearray) -> None:
        assert worker_threads() == []
        job.cancel()
        with pytest.raises(RuntimeError):
            sender.start_file(peer.fd, file, 0, 1, 0)
        sender.close()
        view.append(0)  # released

        async def main() -> None:
            other = Peer()
            other.read()
            with sending() as fresh:
                assert (await fresh.start_file(other.fd, file, 0, len(BODY), STALL_MS)).stop is Stop.DONE
            assert other.finish() == BODY
            other.close()

        loop = asyncio.SelectorEventLoop()
        asyncio.events._set_running_loop(None)
        loop.run_until_complete(main())

    async def main() -> None:
        view = bytearray(BODY)
        with sending() as sender:
            job = sender.start_memory(peer.fd, view, STALL_MS)
            await until_blocked(job)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    child(sender, job, view)
                    code = 0
                finally:
                    os._exit(code)
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            peer.read()
            assert (await job).stop is Stop.DONE

    run(main())
    assert peer.finish() == BODY


@pytest.mark.parametrize("close_loop", [True, False])
def test_the_interpreter_exits_while_bodies_run(close_loop: bool) -> None:
    done = run_script(f"""
        loop = asyncio.new_event_loop()
        sender = BodySender(loop)
        threading.Thread(target=lambda: [theirs.recv(1 << 16) for _ in range(1 << 30)], daemon=True).start()
        job = sender.start_file(ours.fileno(), file.fileno(), 0, 1 << 30, 0)
        other = sender.start_memory(ours.fileno(), bytearray(1 << 26), 0)
        while not (job.sent and other.sent): pass
        if {close_loop}: loop.close()
        else: asyncio.set_event_loop(loop)
        print("end")
    """)
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


def test_a_closed_loop_with_running_bodies_harms_nobody(file: int) -> None:
    peer = Peer()
    loop = asyncio.new_event_loop()
    sender = BodySender(loop)
    body = bytearray(BODY)
    job = sender.start_memory(peer.fd, body, 0)
    loop.close()
    peer.read(len(body))
    assert peer.join() == BODY
    sender.close()
    assert job.outcome == Outcome(Stop.DONE, len(BODY), 0, "send")
    body.append(0)
    peer.close()


# ---- the stub --------------------------------------------------------------------------------------------------------------


def stub_names() -> dict[str, ast.arguments | None]:
    """Every public name of the stub: functions and methods with their arguments, the rest with None."""
    tree = ast.parse(Path(bodysend.__file__).with_name("_bodysend.pyi").read_text())
    names: dict[str, ast.arguments | None] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            names[node.name] = node.args
        elif isinstance(node, ast.AnnAssign):
            names[ast.unparse(node.target)] = None
        elif isinstance(node, ast.ClassDef):
            names[node.name] = None
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    is_property = any(ast.unparse(item) == "property" for item in member.decorator_list)
                    names[f"{node.name}.{member.name}"] = None if is_property else member.args
                elif isinstance(member, ast.Assign | ast.AnnAssign):
                    target = member.targets[0] if isinstance(member, ast.Assign) else member.target
                    names[f"{node.name}.{ast.unparse(target)}"] = None
    return names


def test_the_stub_names_everything_there_is_and_nothing_else() -> None:
    stub = stub_names()
    public = {
        name
        for name, value in vars(bodysend).items()
        if not name.startswith("_") and getattr(value, "__module__", bodysend.__name__) == bodysend.__name__
        if not inspect.ismodule(value)
    }
    for cls in (Job, BodySender):
        public |= {f"{cls.__name__}.{name}" for name in vars(cls) if not name.startswith("_")}
    public |= {f"Stop.{stop.name}" for stop in Stop} | {f"Outcome.{name}" for name in Outcome._fields}
    public |= {"Job.__await__", "BodySender.__init__"}
    assert set(stub) == public


def test_the_stubs_parameters_are_the_real_ones() -> None:
    for name, arguments in stub_names().items():
        if arguments is None or name.endswith("__"):
            continue
        value: Any = bodysend
        for part in name.split("."):
            value = getattr(value, part)
        parameters = inspect.signature(value).parameters.values()
        positional = [item.name for item in parameters if item.kind is item.POSITIONAL_OR_KEYWORD]
        keyword = [item.name for item in parameters if item.kind is item.KEYWORD_ONLY]
        assert positional == [item.arg for item in arguments.args], name
        assert keyword == [item.arg for item in arguments.kwonlyargs], name


# ---- everything at once ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not shutil.which("cc") or (os.cpu_count() or 1) < 2, reason="the benchmark needs a compiler and two cores"
)
def test_the_benchmark_runs_and_judges_every_bar(tmp_path: Path) -> None:
    command = [sys.executable, "bench/micro_bodysend.py", "--quick", "--json", str(tmp_path / "said.json")]
    done = subprocess.run(
        command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "said.json").read_text())
    assert len(said["cases"]) == 9
    assert {type(case["reached"]) for case in said["cases"]} == {bool}


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_random_interleavings_mix_up_no_bytes_and_leave_nothing_behind(loop: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.stress_bodysend",
            "--count",
            os.environ.get("STRESS_BODIES", "400"),
            "--loop",
            loop,
        ],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
