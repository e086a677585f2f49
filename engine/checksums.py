"""Checksums as S3 wants them: computed beside the sending, combined from parts, framed as a trailer.

Owns the algorithms, their base64 text and the aws-chunked framing. Knows nothing of requests: the caller decides which field
or trailer carries a value and what it is compared with.

CRC64NVME and CRC32C come from awscrt, imported when first needed: that takes 40 ms, so on a loop call `is_available` in a
thread before. CRC32 and SHA-256 are the standard library's. Source: "Checking object integrity" in the S3 user guide.
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
import threading
import time
import zlib
from base64 import b64decode, b64encode
from binascii import b2a_base64
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from engine.errors import SourceChanged, UsageError
from engine.limits import KIB, MIB
from engine.signing import STREAMING_UNSIGNED_PAYLOAD_TRAILER
from engine.wire import Field

if TYPE_CHECKING:
    from typing_extensions import Buffer

AUTO: Final = "crc64nvme"  # what checksum="auto" computes: S3's own default, and the cheapest

_SIZES: Final = {"crc64nvme": 8, "crc32c": 4, "crc32": 4, "sha256": 32}  # bytes of a digest
ALGORITHMS: Final = tuple(_SIZES)
# Generator polynomials, bits reflected, as the CRCs run. All three start from ones and are inverted at the end.
_POLYNOMIALS: Final = {"crc64nvme": 0x9A6C9329AC4BC9B5, "crc32c": 0x82F63B78, "crc32": 0xEDB88320}

READ_BYTES: Final = 512 * KIB  # per pread: fits the L2 cache; 0.12 CPU-s/GiB, 0.155 at 16 KiB and at 4 MiB
READ_MAX_BYTES: Final = 4 * MIB  # grown to when the interpreter is busy
_BUSY_S: Final = 0.002  # for one piece, which takes 0.06 ms; the interpreter's switch interval is 5 ms

# MinIO refuses an aws-chunk above 16 MiB ("chunk too big", minio#21303), where S3 takes any size; S3 refuses one below 8 KiB
# that is not the last.
AWS_CHUNK_COMPATIBLE_BYTES: Final = 16 * MIB


class Running(Protocol):
    """A checksum in the making, from `new`.

    Attributes: algorithm; size: bytes seen.
    """

    algorithm: str
    size: int

    def update(self, buffer: Buffer) -> None:
        """Adds the bytes of any C-contiguous buffer, without holding the interpreter when they are more than 5 KiB."""

    def digest(self) -> bytes:
        """Big-endian for the CRCs."""

    def digest_base64(self) -> str:
        """The text of the x-amz-checksum-* fields."""


class _Crc:
    __slots__ = ("_function", "_value", "algorithm", "size")

    def __init__(self, algorithm: str, function: Callable[[Buffer, int], int]) -> None:
        self.algorithm = algorithm
        self.size = 0
        self._function = function
        self._value = 0

    def update(self, buffer: Buffer) -> None:
        self._value = self._function(buffer, self._value)
        self.size += memoryview(buffer).nbytes

    def digest(self) -> bytes:
        return self._value.to_bytes(_SIZES[self.algorithm], "big")

    def digest_base64(self) -> str:
        return to_text(self.digest())


class _Sha256:
    __slots__ = ("_hash", "algorithm", "size")

    def __init__(self) -> None:
        self.algorithm = "sha256"
        self.size = 0
        self._hash = hashlib.sha256()

    def update(self, buffer: Buffer) -> None:
        view = memoryview(buffer)  # hashlib itself takes no ctypes array of several dimensions
        self._hash.update(view)
        self.size += view.nbytes

    def digest(self) -> bytes:
        return self._hash.digest()

    def digest_base64(self) -> str:
        return to_text(self.digest())


def new(algorithm: str) -> Running:
    """A checksum of no bytes yet.

    Raises UsageError: no such algorithm, or its library is not installed.
    """
    if algorithm == "sha256":
        return _Sha256()
    return _Crc(algorithm, _crc_function(algorithm))


def whole(algorithm: str) -> Callable[[Buffer], str]:
    """The function that gives the base64 text of one buffer's CRC: `new` for what is small and all there. Raises as `new`."""
    function, size = _crc_function(algorithm), _SIZES[algorithm]

    def text(buffer: Buffer) -> str:
        return b2a_base64(function(buffer, 0).to_bytes(size, "big"), newline=False).decode("ascii")

    return text


def _crc_function(algorithm: str) -> Callable[[Buffer, int], int]:
    if algorithm == "crc32":
        return zlib.crc32
    _size(algorithm)
    try:
        from awscrt import checksums
    except ImportError as error:
        raise UsageError(f"checksum {algorithm!r} needs awscrt, which cannot be imported: {error}") from error
    function: Callable[[Buffer, int], int] = getattr(checksums, algorithm)
    return function


def _size(algorithm: str) -> int:
    try:
        return _SIZES[algorithm]
    except KeyError:
        raise UsageError(f"checksum {algorithm!r}: not one of {', '.join(ALGORITHMS)}") from None


def is_available(algorithm: str) -> bool:
    """Whether `new` will work; imports the library. Without awscrt, "auto" goes without a checksum instead of failing."""
    try:
        new(algorithm)
    except UsageError:
        return False
    return True


def header_name(algorithm: str) -> str:
    """The field, or trailer, that carries the value. Raises UsageError for an unknown algorithm."""
    _size(algorithm)
    return f"x-amz-checksum-{algorithm}"


def to_text(digest: bytes) -> str:
    return b64encode(digest).decode("ascii")


def from_text(algorithm: str, text: str) -> bytes:
    """The digest in a value that a user or a server gave. Raises UsageError when it is none of this algorithm."""
    size = _size(algorithm)
    try:
        digest = b64decode(text, validate=True)
    except ValueError:
        digest = b""
    if len(digest) != size:
        raise UsageError(f"checksum {text[:80]!r}: not the base64 text of the {size} bytes of a {algorithm}")
    return digest


# --- files ------------------------------------------------------------------------------------------------------------

_hashing: list[None] = []  # one for each file that is being hashed, in all threads
_buffers = threading.local()  # .small: READ_BYTES; the first touch of memory costs more than all the reading into it


def checksum_file(algorithm: str, fd: int, offset: int, size: int, cancelled: Callable[[], bool]) -> str:
    """The checksum of `size` bytes from `offset`, as base64 text. Blocks: run it in a worker thread.

    Reads by pread, so the descriptor's own offset stays; never by mmap, where a file that shrinks is a SIGBUS.

    Args:
      cancelled: asked before every piece (at most READ_MAX_BYTES).

    Raises:
      concurrent.futures.CancelledError: `cancelled()` was true. Awaited from a loop, this is asyncio's.
      SourceChanged: the file ended early. OSError: it could not be read. UsageError: as `new`.
    """
    running = new(algorithm)
    _hashing.append(None)  # atomic, as is pop()
    try:
        _read_into(running, fd, offset, size, cancelled)
    finally:
        _hashing.pop()
    return running.digest_base64()


def _read_into(running: Running, fd: int, offset: int, size: int, cancelled: Callable[[], bool]) -> None:
    view = getattr(_buffers, "small", None)
    if view is None:
        view = _buffers.small = memoryview(bytearray(READ_BYTES))
    position, end = offset, offset + size
    started = time.monotonic()
    while position < end:
        if cancelled():
            raise CancelledError
        count = os.preadv(fd, [view[: end - position]], position)
        if count == 0:
            raise SourceChanged(
                f"the file ended after {position - offset} of {size} bytes while its checksum was computed"
            )
        running.update(view[:count])
        position += count
        now = time.monotonic()
        if now - started > _BUSY_S and len(view) < READ_MAX_BYTES // max(1, len(_hashing)):
            # Python code holds the interpreter: each piece waits for it twice, up to 5 ms. Larger pieces wait less often.
            # Mapped: freeing megabytes once makes glibc keep such pieces in its heaps, where threads then scatter them.
            view = memoryview(mmap.mmap(-1, 2 * len(view)))
            now = time.monotonic()
        started = now


# --- parts ------------------------------------------------------------------------------------------------------------


def combine(algorithm: str, first: str, second: str, second_size: int) -> str:
    """The CRC of two pieces one behind the other, from the CRC of each (base64 texts, like the result).

    A CRC is linear: the first one is multiplied by x^(8·second_size) modulo the polynomial, and the second one added. Costs
    some 10 µs, and 0.3 ms for a `second_size` not seen before.

    Raises UsageError: an algorithm that cannot be combined (sha256), or a value that is none.
    """
    if algorithm not in _POLYNOMIALS:
        raise UsageError(f"checksum {algorithm!r}: only {', '.join(_POLYNOMIALS)} can be combined from parts")
    assert second_size >= 0
    shifted = _multiply(
        algorithm, int.from_bytes(from_text(algorithm, first), "big"), _power_of_x(algorithm, 8 * second_size)
    )
    return to_text((shifted ^ int.from_bytes(from_text(algorithm, second), "big")).to_bytes(_SIZES[algorithm], "big"))


def composite(algorithm: str, parts: Sequence[str]) -> str:
    """S3's COMPOSITE checksum of a multipart object: that of the parts' digests, "-" and how many there are."""
    running = new(algorithm)
    for part in parts:
        running.update(from_text(algorithm, part))
    return f"{running.digest_base64()}-{len(parts)}"


def _multiply(algorithm: str, a: int, b: int) -> int:
    """a·b modulo the polynomial. Reflected: the highest bit is x^0."""
    polynomial, bit = _POLYNOMIALS[algorithm], 1 << (8 * _SIZES[algorithm] - 1)
    product = 0
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = b >> 1 ^ polynomial if b & 1 else b >> 1
    return product


@functools.lru_cache(maxsize=64)  # the parts of an upload are all of one size, but for the last
def _power_of_x(algorithm: str, exponent: int) -> int:
    result = 1 << (8 * _SIZES[algorithm] - 1)
    square = result >> 1  # x^1, then x^2, x^4 …
    while exponent:
        if exponent & 1:
            result = _multiply(algorithm, result, square)
        square = _multiply(algorithm, square, square)
        exponent >>= 1
    return result


# --- trailers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AwsChunked:
    """How a body of known length is wrapped so that its checksum may follow it: "Content-Encoding: aws-chunked" with unsigned
    chunks and a trailer. What is around the bytes is a function of their number, so a file still leaves by sendfile.

    Send, for every pair of `frames()`, its text and then that many bytes of the body, and `suffix(value)` at the end.

    Attributes:
      algorithm; size: of the body, in bytes.
      chunk_size: of every chunk but the last, in bytes.
      content_length: of all that is sent.
    """

    algorithm: str
    size: int
    chunk_size: int
    content_length: int

    # What x-amz-content-sha256 says of such a body; an argument of `sign`.
    payload_hash: ClassVar[str] = STREAMING_UNSIGNED_PAYLOAD_TRAILER

    def fields(self, content_encoding: str = "") -> list[Field]:
        """The fields to send (and sign), but for Content-Length. `content_encoding` is the object's own, which S3 keeps."""
        return [
            ("content-encoding", f"{content_encoding},aws-chunked" if content_encoding else "aws-chunked"),
            ("x-amz-decoded-content-length", str(self.size)),
            ("x-amz-trailer", header_name(self.algorithm)),
        ]

    def frames(self) -> Iterator[tuple[bytes, int]]:
        """(text to send, number of body bytes to send behind it), for every chunk; none for an empty body."""
        for start in range(0, self.size, self.chunk_size):
            count = min(self.chunk_size, self.size - start)
            yield b"%s%x\r\n" % (b"\r\n" if start else b"", count), count

    def suffix(self, value: str) -> bytes:
        """What follows the last body byte: the closing chunk, and the trailer with the checksum in base64."""
        assert len(from_text(self.algorithm, value)) == _SIZES[self.algorithm]
        end = f"0\r\n{header_name(self.algorithm)}:{value}\r\n\r\n"
        return (f"\r\n{end}" if self.size else end).encode("ascii")


def aws_chunked(algorithm: str, size: int, *, chunk_size: int | None = None) -> AwsChunked:
    """The framing of a body of `size` bytes: one chunk around all of it, or chunks of `chunk_size` for servers that take no
    larger ones (AWS_CHUNK_COMPATIBLE_BYTES).

    Source: "Trailing checksums", "Signature Calculations for the Authorization Header: Transferring a Payload in Multiple
    Chunks" in the S3 API reference. Raises UsageError for an unknown algorithm.
    """
    assert size >= 0
    assert chunk_size is None or chunk_size >= 8 * KIB  # S3's minimum for all but the last
    digest_size = _size(algorithm)
    framing = AwsChunked(algorithm, size, chunk_size or max(size, 1), 0)
    full, rest = divmod(size, framing.chunk_size)
    around = full * len(f"{framing.chunk_size:x}\r\n\r\n") + (len(f"{rest:x}\r\n\r\n") if rest else 0)
    end = len(f"0\r\n{header_name(algorithm)}:\r\n\r\n") + 4 * -(-digest_size // 3)
    return AwsChunked(algorithm, size, framing.chunk_size, size + around + end)
