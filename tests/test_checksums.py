"""Checksums against published check values, awscrt and botocore's framing."""

from __future__ import annotations

import array
import asyncio
import ctypes
import io
import mmap
import os
import sys
import threading
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from awscrt import checksums as awscrt
from botocore.httpchecksum import _CHECKSUM_CLS, AwsChunkedWrapper
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import checksums
from engine.checksums import ALGORITHMS, aws_chunked, checksum_file, combine, composite, header_name, new
from engine.errors import SourceChanged, UsageError
from engine.signing import STREAMING_UNSIGNED_PAYLOAD_TRAILER

CRCS = ("crc64nvme", "crc32c", "crc32")
# "check" of the Catalogue of parametrised CRC algorithms (CRC-64/NVME, CRC-32/ISCSI, CRC-32/ISO-HDLC) for "123456789".
CHECK = {"crc64nvme": 0xAE8B14860A799888, "crc32c": 0xE3069283, "crc32": 0xCBF43926}


def never() -> bool:
    return False


def of(algorithm: str, *pieces: Any) -> str:
    running = new(algorithm)
    for piece in pieces:
        running.update(piece)
    return running.digest_base64()


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("algorithm", CRCS)
def test_a_crc_has_its_published_check_value(algorithm: str) -> None:
    running = new(algorithm)
    running.update(b"1234")
    running.update(b"56789")
    assert int.from_bytes(running.digest(), "big") == CHECK[algorithm]
    assert running.size == 9
    assert running.algorithm == algorithm
    assert b64decode(running.digest_base64()) == running.digest()


def test_sha256_is_the_standard_librarys() -> None:
    assert of("sha256", b"12345", b"6789") == b64encode(sha256(b"123456789").digest()).decode()


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=6))
def test_a_checksum_is_botocores_however_the_bytes_are_cut(pieces: list[bytes]) -> None:
    for algorithm in ALGORITHMS:
        theirs = _CHECKSUM_CLS[algorithm]()
        theirs.update(b"".join(pieces))
        assert of(algorithm, *pieces) == theirs.b64digest()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_any_contiguous_buffer_is_taken_and_none_other(algorithm: str) -> None:
    data = bytes(range(240))
    expected = of(algorithm, data)
    grid = memoryview(data).cast("B").cast("q", [5, 6])
    foreign = (ctypes.c_uint16.__ctype_be__ * 120).from_buffer_copy(data)  # has a format that memoryview.cast refuses
    mapped = mmap.mmap(-1, 240)
    mapped.write(data)
    for buffer in (
        bytearray(data),
        memoryview(data),
        grid,
        foreign,
        array.array("I", data),
        mapped,
        memoryview(b"xx" + data)[2:],
    ):
        running = new(algorithm)
        running.update(buffer)
        assert running.digest_base64() == expected
        assert running.size == 240
    running = new(algorithm)
    for empty in (b"", bytearray(), (ctypes.c_int * 0 * 3)(), memoryview(b"")):
        running.update(empty)
    assert running.digest_base64() == of(algorithm)
    mapped.close()
    with pytest.raises((ValueError, BufferError)):
        new(algorithm).update(memoryview(data)[::2])


@pytest.mark.parametrize("call", [new, header_name, lambda name: aws_chunked(name, 1)])
@pytest.mark.parametrize("name", ["md5", "CRC32", "", "auto"])
def test_an_unknown_algorithm_is_a_usage_error_that_lists_the_known(call: Any, name: str) -> None:
    with pytest.raises(UsageError, match="not one of crc64nvme, crc32c, crc32, sha256"):
        call(name)
    assert not checksums.is_available(name)


def test_the_fields_are_named_as_s3_names_them() -> None:
    assert [header_name(algorithm) for algorithm in ALGORITHMS] == [
        "x-amz-checksum-crc64nvme",
        "x-amz-checksum-crc32c",
        "x-amz-checksum-crc32",
        "x-amz-checksum-sha256",
    ]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_value_is_read_back_and_a_wrong_one_refused(algorithm: str) -> None:
    running = new(algorithm)
    running.update(b"data")
    assert checksums.from_text(algorithm, running.digest_base64()) == running.digest()
    for wrong in ("", "AAA", "!!!!", checksums.to_text(running.digest() + b"\0"), running.digest_base64() + "-2", "é"):
        with pytest.raises(UsageError, match="not the base64 text"):
            checksums.from_text(algorithm, wrong)


# --- the library is optional at run time -------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["crc64nvme", "crc32c"])
def test_without_awscrt_the_error_names_it(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checksums.is_available(algorithm)
    monkeypatch.setitem(sys.modules, "awscrt", None)
    monkeypatch.delitem(sys.modules, "awscrt.checksums")
    assert not checksums.is_available(algorithm)
    with pytest.raises(UsageError, match="needs awscrt"):
        new(algorithm)
    assert checksums.is_available("crc32")
    assert checksums.is_available("sha256")
    value = checksums.to_text(bytes(checksums._SIZES[algorithm]))
    assert combine(algorithm, value, value, 0) == value


def test_nothing_is_imported_before_it_is_needed() -> None:
    assert fresh("import engine.checksums as c, sys; c.new('crc32'); print('awscrt' in sys.modules)") == "False"
    assert fresh("import engine.checksums as c, sys; c.new(c.AUTO); print('awscrt' in sys.modules)") == "True"


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def big(tmp_path: Path) -> Iterator[tuple[int, bytes]]:
    """A descriptor at offset 7, and what the file holds: two and a bit pieces."""
    data = os.urandom(2 * checksums.READ_BYTES + 12345)
    path = tmp_path / "big"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    os.lseek(fd, 7, os.SEEK_SET)
    yield fd, data
    os.close(fd)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_range_of_a_file_has_the_checksum_of_its_bytes(algorithm: str, big: tuple[int, bytes]) -> None:
    fd, data = big
    piece = checksums.READ_BYTES
    for offset, size in (
        (0, len(data)),
        (0, 0),
        (len(data), 0),
        (3, 1),
        (1, piece),
        (piece - 1, piece + 2),
        (5, len(data) - 5),
    ):
        assert checksum_file(algorithm, fd, offset, size, never) == of(algorithm, data[offset : offset + size])
    assert os.lseek(fd, 0, os.SEEK_CUR) == 7


def test_a_file_that_ends_early_is_a_changed_source(big: tuple[int, bytes]) -> None:
    fd, data = big
    with pytest.raises(SourceChanged, match=f"after {len(data) - 10} of {len(data)} bytes"):
        checksum_file("crc32", fd, 10, len(data), never)


def test_a_file_that_shrinks_meanwhile_is_a_changed_source(big: tuple[int, bytes], tmp_path: Path) -> None:
    fd, data = big
    asked = []

    def shrink() -> bool:
        asked.append(1)
        if len(asked) == 2:
            os.truncate(tmp_path / "big", checksums.READ_BYTES + 100)
        return False

    with pytest.raises(SourceChanged, match=f"after {checksums.READ_BYTES + 100} of"):
        checksum_file("crc64nvme", fd, 0, len(data), shrink)


def test_an_unreadable_descriptor_is_an_os_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            checksum_file("crc32", fd, 0, 10, never)
    finally:
        os.close(fd)


def test_a_cancelled_computation_ends_with_the_next_piece(big: tuple[int, bytes]) -> None:
    fd, data = big
    cancelled = threading.Event()
    pieces = []

    def ask() -> bool:
        pieces.append(1)
        if len(pieces) == 2:
            cancelled.set()
        return cancelled.is_set()

    async def main() -> None:
        await asyncio.get_running_loop().run_in_executor(None, checksum_file, "crc32", fd, 0, len(data), ask)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert len(pieces) == 2


def test_a_busy_interpreter_gets_larger_pieces_and_the_same_checksum(
    big: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, data = big
    monkeypatch.setattr(checksums, "READ_BYTES", 4096)
    monkeypatch.setattr(checksums, "READ_MAX_BYTES", 32768)
    monkeypatch.setattr(checksums, "_buffers", threading.local())
    clock = iter(range(10**6))
    monkeypatch.setattr(checksums.time, "monotonic", lambda: next(clock))
    sizes = []
    preadv = os.preadv

    def watched(fd: int, buffers: list[memoryview], offset: int) -> int:
        sizes.append(len(buffers[0]))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(checksums.os, "preadv", watched)
    assert checksum_file("crc64nvme", fd, 0, len(data), never) == of("crc64nvme", data)
    assert sizes[:5] == [4096, 8192, 16384, 32768, 32768]
    assert max(sizes) == 32768
    assert len(checksums._buffers.small) == 4096


def test_threads_do_not_share_a_buffer(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    contents = [os.urandom(3 * checksums.READ_BYTES) for _ in range(4)]
    paths = [tmp_path / str(i) for i in range(4)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)

    def compute(path: Path) -> str:
        fd = os.open(path, os.O_RDONLY)
        try:
            return checksum_file("crc64nvme", fd, 0, path.stat().st_size, never)
        finally:
            os.close(fd)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(compute, paths * 8)) == [of("crc64nvme", content) for content in contents] * 8


# --- parts ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(max_size=400), st.binary(max_size=400))
def test_the_crcs_of_two_pieces_combine_to_that_of_the_whole(first: bytes, second: bytes) -> None:
    for algorithm in CRCS:
        combined = combine(algorithm, of(algorithm, first), of(algorithm, second), len(second))
        assert combined == of(algorithm, first + second)


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(1, 50 * 2**40))
def test_combining_agrees_with_awscrt_for_objects_of_up_to_50_terabytes(first: int, second: int, size: int) -> None:
    for algorithm in CRCS:
        width = checksums._SIZES[algorithm]
        a, b = (value & (1 << 8 * width) - 1 for value in (first, second))
        theirs = getattr(awscrt, f"combine_{algorithm}")(a, b, size)
        ours = combine(algorithm, *(checksums.to_text(v.to_bytes(width, "big")) for v in (a, b)), size)
        assert checksums.from_text(algorithm, ours) == theirs.to_bytes(width, "big")


def test_many_parts_combine_from_the_left() -> None:
    data = os.urandom(100_000)
    parts = [data[start : start + 8192] for start in range(0, len(data), 8192)]
    whole = of("crc32", b"")
    for part in parts:
        whole = combine("crc32", whole, of("crc32", part), len(part))
    assert b64decode(whole) == zlib.crc32(data).to_bytes(4, "big")


def test_what_cannot_be_combined_is_a_usage_error() -> None:
    value = of("sha256", b"")
    with pytest.raises(UsageError, match="only crc64nvme, crc32c, crc32 can be combined"):
        combine("sha256", value, value, 0)
    with pytest.raises(UsageError, match="not the base64 text"):
        combine("crc32", value, value, 0)


def test_a_composite_checksum_is_that_of_the_digests() -> None:
    parts = [b"one", b"two", b"three"]
    expected = b64encode(sha256(b"".join(sha256(part).digest() for part in parts)).digest()).decode()
    assert composite("sha256", [of("sha256", part) for part in parts]) == f"{expected}-3"


# --- trailers ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.integers(0, 40_000) | st.sampled_from([0, 1, 8192, 16384, 32768]),
    st.sampled_from(ALGORITHMS),
    st.sampled_from([None, 8192, 8193, 16384]),
)
def test_the_framing_is_botocores_to_the_byte(size: int, algorithm: str, chunk_size: int | None) -> None:
    data = bytes(range(251)) * 160
    data = data[:size]
    framing = aws_chunked(algorithm, len(data), chunk_size=chunk_size)
    sent, position = b"", 0
    for text, count in framing.frames():
        sent += text + data[position : position + count]
        position += count
    sent += framing.suffix(of(algorithm, data))

    theirs = AwsChunkedWrapper(
        io.BytesIO(data),
        checksum_cls=_CHECKSUM_CLS[algorithm],
        checksum_name=header_name(algorithm),
        chunk_size=chunk_size or max(len(data), 1),
    )
    assert sent == theirs.read()
    assert framing.content_length == len(sent)


def test_one_chunk_goes_around_a_body_of_any_size_by_default() -> None:
    size = 5 * 2**40
    framing = aws_chunked("crc64nvme", size)
    assert list(framing.frames()) == [(b"50000000000\r\n", size)]
    suffix = framing.suffix(of("crc64nvme", b""))
    assert suffix == b"\r\n0\r\nx-amz-checksum-crc64nvme:AAAAAAAAAAA=\r\n\r\n"
    assert framing.content_length == len(b"50000000000\r\n") + size + len(suffix)


def test_the_length_of_many_chunks_is_computed_not_counted() -> None:
    framing = aws_chunked("sha256", 10**15 + 1, chunk_size=checksums.AWS_CHUNK_COMPATIBLE_BYTES)
    chunks, rest = divmod(10**15 + 1, 2**24)
    end = b"0\r\nx-amz-checksum-sha256:" + 44 * b"=" + b"\r\n\r\n"
    assert framing.content_length == 10**15 + 1 + chunks * len(b"1000000\r\n\r\n") + len(b"%x\r\n\r\n" % rest) + len(
        end
    )


def test_the_fields_of_a_trailer_are_botocores() -> None:
    from botocore.httpchecksum import _apply_request_trailer_checksum

    for own in ("", "gzip"):
        request: dict[str, Any] = {
            "context": {"checksum": {"request_algorithm": {"algorithm": "crc32", "name": "x-amz-checksum-crc32"}}},
            "headers": {"Content-Encoding": own} if own else {},
            "body": b"12345",
        }
        _apply_request_trailer_checksum(request)
        theirs = {name.lower(): value for name, value in request["headers"].items()}
        del theirs["transfer-encoding"]  # ours has a Content-Length
        assert dict(aws_chunked("crc32", 5).fields(own)) == theirs
    assert aws_chunked("crc32", 5).payload_hash == STREAMING_UNSIGNED_PAYLOAD_TRAILER


def test_a_trailer_that_is_no_checksum_is_refused() -> None:
    with pytest.raises(UsageError):
        aws_chunked("crc32", 5).suffix("x\r\ninjected: y")
