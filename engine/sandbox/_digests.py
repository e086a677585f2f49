"""Digests and checksums of a body, and the way of its bytes from the loop to the worker that computes them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from awscrt.checksums import crc32c, crc64nvme

from engine.sandbox._options import BUFFER_BYTES, BUFFERS_PER_BODY, INLINE_MAX_BYTES

CHECKSUM_PREFIX: Final = "x-amz-checksum-"
CHECKSUM_SIZES: Final = {"crc32": 4, "crc32c": 4, "crc64nvme": 8, "sha1": 20, "sha256": 32}  # bytes


class Digest(Protocol):
    def update(self, data: memoryview, /) -> None: ...
    def digest(self) -> bytes: ...


class _Running:
    """A CRC as a hash object. `function(data, previous) -> int`"""

    def __init__(self, function: Callable[[memoryview, int], int], size: int) -> None:
        self._function = function
        self._size = size
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


def new_digest(algorithm: str) -> Digest:
    if algorithm in ("md5", "sha1", "sha256"):
        return hashlib.new(algorithm, usedforsecurity=False)
    if algorithm == "crc32":
        return _Running(zlib.crc32, 4)
    return _Running({"crc32c": crc32c, "crc64nvme": crc64nvme}[algorithm], CHECKSUM_SIZES[algorithm])


class Digests:
    """Several digests of the same bytes, fed once."""

    def __init__(self, algorithms: Collection[str]) -> None:
        self._digests = {algorithm: new_digest(algorithm) for algorithm in sorted(algorithms)}

    def update(self, data: memoryview) -> None:
        for digest in self._digests.values():
            digest.update(data)

    def hex(self, algorithm: str) -> str | None:
        return self._digests[algorithm].digest().hex() if algorithm in self._digests else None

    def base64(self, algorithm: str) -> str | None:
        digest = self._digests.get(algorithm)
        return base64.b64encode(digest.digest()).decode() if digest else None


class BufferPool:
    """Receive buffers, kept: the first touch of memory costs more than hashing it."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        return self._free.pop() if self._free else memoryview(bytearray(BUFFER_BYTES))

    def give(self, buffer: memoryview) -> None:
        if len(self._free) < 4 * BUFFERS_PER_BODY:
            self._free.append(buffer)


async def pump(
    receive_into: Callable[[memoryview], Awaitable[int]],
    consume: Callable[[memoryview], None],
    length: int,
    pool: BufferPool,
) -> None:
    """Receives until 0 and feeds `consume`, in order: on the loop when `length` is small, else in one worker thread (hashing
    and writing release the GIL) with at most BUFFERS_PER_BODY buffers under way.

    What `receive_into` and `consume` raise comes through, after the worker has become idle.
    """
    if length <= INLINE_MAX_BYTES:
        await _pump_inline(receive_into, consume, pool)
        return
    loop = asyncio.get_running_loop()
    worker = ThreadPoolExecutor(1, thread_name_prefix="sandbox-body")
    under_way: deque[tuple[asyncio.Future[None], memoryview]] = deque()
    try:
        while True:
            if len(under_way) >= BUFFERS_PER_BODY:
                oldest, buffer = under_way.popleft()
                await oldest
            else:
                buffer = pool.take()
            filled = 0
            while filled < BUFFER_BYTES and (count := await receive_into(buffer[filled:])):
                filled += count
            if filled:
                under_way.append((loop.run_in_executor(worker, consume, buffer[:filled]), buffer))
            if filled < BUFFER_BYTES:
                break
            await asyncio.sleep(0)  # the socket may always have something: let the others in
        while under_way:
            oldest, buffer = under_way.popleft()
            await oldest
            pool.give(buffer)
    finally:
        await asyncio.gather(*(future for future, _buffer in under_way), return_exceptions=True)
        worker.shutdown(wait=False)


async def _pump_inline(
    receive_into: Callable[[memoryview], Awaitable[int]], consume: Callable[[memoryview], None], pool: BufferPool
) -> None:
    buffer = pool.take()
    while count := await receive_into(buffer):
        consume(buffer[:count])
    pool.give(buffer)
