"""What is hashed of a body, and when: before the head, beside the sending, behind the body in a trailer, and the comparison
with the server's answer. The algorithms are `checksums`'; nothing here knows of requests or connections.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any

from engine import checksums, limits, signing
from engine._fastparse import Response as Answer
from engine.body import Body, FileBody, IteratorBody, MemoryBody, PipeBody, Trailer, until_done
from engine.errors import ChecksumMismatch, UsageError
from engine.results import Checksum
from engine.wire import Field


@dataclasses.dataclass
class Hashes:
    """What a head says of its body. `trailing` is the checksum that follows it, in the making while it leaves."""

    payload_hash: str = signing.UNSIGNED_PAYLOAD
    fields: list[Field] = dataclasses.field(default_factory=list)
    checksum: Checksum | None = None
    trailing: checksums.Running | None = None

    def seen(self) -> Checksum | None:
        """Of what has left."""
        running = self.trailing
        return self.checksum if running is None else Checksum(running.algorithm, running.digest_base64())


async def hash_first(
    body: Body,
    algorithm: str | None,
    fields: list[Field],
    *,
    signed: bool,
    signs_payload: bool,
    bounded: Callable[[Coroutine[Any, Any, str]], Coroutine[Any, Any, str]],
) -> Hashes:
    """What has to be known before the head: a named checksum or how it will follow, and the payload's SHA-256 when it is
    signed. `fields`: those of the request, to which the hashes are added. `bounded`: ends a hashing that takes too long."""
    named = algorithm if algorithm not in (None, "auto") else None
    if named and isinstance(body, IteratorBody) and not signs_payload:
        return await _hash_behind(body, named, fields, signed=signed)
    if signs_payload and not body.replayable:
        raise UsageError(
            "payload_signing='sha256' is sent ahead of the body, which needs a source that can be read twice (a path, a "
            "buffer, a seekable file); for this one use 'unsigned'"
        )
    hashes = Hashes(fields=fields)

    if named:
        hashes.checksum = Checksum(named, await bounded(_hash_body(body, named)))
        hashes.fields = [*fields, (checksums.header_name(named), hashes.checksum.value)]
    if signs_payload:
        value = (
            hashes.checksum.value
            if hashes.checksum is not None and named == "sha256"
            else await bounded(_hash_body(body, "sha256"))
        )
        hashes.payload_hash = checksums.from_text("sha256", value).hex()
    return hashes


async def _hash_behind(body: IteratorBody, algorithm: str, fields: list[Field], *, signed: bool) -> Hashes:
    """A checksum of what can be read only once follows it, in a trailer."""
    if not signed or body.size is None:
        wanted = f"checksum={algorithm!r} of a source that cannot be read twice follows it in a trailer, which "
        if body.size is None:
            raise UsageError(f"{wanted}needs to know its length: give size=")
        raise UsageError(f"{wanted}only a signed S3 request can have; use checksum='auto'")
    await asyncio.to_thread(checksums.is_available, algorithm)  # imports the library, which takes 40 ms
    running = checksums.new(algorithm)
    if body.size == 0:
        checksum = Checksum(algorithm, running.digest_base64())
        return Hashes(fields=[*fields, (checksums.header_name(algorithm), checksum.value)], checksum=checksum)
    framing = checksums.aws_chunked(algorithm, body.size, chunk_size=checksums.AWS_CHUNK_COMPATIBLE_BYTES)
    body.tap = running.update
    body.trailer = Trailer(framing, running.digest_base64)
    encoding = next((value for name, value in fields if name == "content-encoding"), "")
    own = [field for field in fields if field[0] != "content-encoding"]
    return Hashes(framing.payload_hash, own + framing.fields(encoding), trailing=running)


async def _hash_body(body: Body, algorithm: str) -> str:
    """Base64 checksum of a replayable body, computed off the loop."""
    stopped = threading.Event()
    hashing = asyncio.get_running_loop().run_in_executor(None, _hash_now, body, algorithm, stopped.is_set)
    try:
        return await asyncio.shield(hashing)
    finally:
        stopped.set()
        await until_done(hashing)


def _hash_now(body: Body, algorithm: str, stopped: Callable[[], bool]) -> str:
    if isinstance(body, FileBody):
        return checksums.checksum_file(algorithm, body.fd, body.offset, body.size, stopped)
    assert isinstance(body, MemoryBody)
    running = checksums.new(algorithm)
    for start in range(0, body.size, limits.HASH_PIECE_BYTES):
        if stopped():
            raise CancelledError
        running.update(body.view[start : start + limits.HASH_PIECE_BYTES])
    return running.digest_base64()


class Digest:
    """CRC64NVME of the bytes sent, computed beside the sending: in a thread for files and memory, item by item for iterators.

    A pipe's bytes go from kernel to kernel and are never seen: no checksum.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self._stopped = threading.Event()
        self._hashing: asyncio.Future[str] | None = None
        self._running: Any = None
        if isinstance(body, PipeBody) and body.size is not None:
            return
        if not body.replayable:
            self._running = checksums.new(checksums.AUTO)
            body.tap = self._running.update

    def start(self) -> None:
        """The first body byte is about to leave."""
        body = self._body
        if body.replayable and (body.size or 0) > limits.INLINE_BODY_MAX_BYTES:
            self._hashing = asyncio.get_running_loop().run_in_executor(
                None, _hash_now, body, checksums.AUTO, self._stopped.is_set
            )

    async def result(self) -> Checksum | None:
        if self._hashing is not None:
            return Checksum(checksums.AUTO, await asyncio.shield(self._hashing))
        if self._running is not None:
            return Checksum(checksums.AUTO, self._running.digest_base64())
        if self._body.replayable:
            return Checksum(checksums.AUTO, _hash_now(self._body, checksums.AUTO, self._stopped.is_set))
        return None

    async def stop(self) -> None:
        """Until the thread has let go of the source."""
        self._stopped.set()
        if self._hashing is not None:
            await until_done(self._hashing)


def verify(checksum: Checksum | None, response: Answer, what: str) -> bool:
    """Whether the server returned a checksum to compare, and it was equal. Raises ChecksumMismatch."""
    if checksum is None:
        return False
    stored = response.get(checksums.header_name(checksum.algorithm))
    composite = (response.get("x-amz-checksum-type") or "").upper() == "COMPOSITE"
    if not stored or composite:
        return False
    if stored != checksum.value:
        raise ChecksumMismatch(
            f"{what}: the server stored bytes with {checksum.algorithm} {stored}, sent were bytes with "
            f"{checksum.value}; the object there is not the source",
            algorithm=checksum.algorithm,
            sent=checksum.value,
            stored=stored,
        )
    return True
