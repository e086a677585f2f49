"""Sources: what is taken, what is refused and in which words, and what a body does when its source misbehaves."""

from __future__ import annotations

import array
import asyncio
import gzip
import io
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import engine
from engine import limits
from engine.body import FileBody, IteratorBody, MemoryBody, PipeBody, open_body
from engine.errors import SourceChanged, UsageError
from tests.conftest import Server

Make = Callable[..., engine.Client]
Run = Callable[[Any], Any]


class Kernel:
    """A wire that takes everything, or stops wanting the body after `limit` bytes."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.payload, self.everything, self._limit = b"", b"", limit

    @property
    def wants_body(self) -> bool:
        return len(self.payload) < self._limit

    @property
    def body_sent(self) -> int:
        return len(self.payload)

    async def send_file(self, fd: int, offset: int, count: int) -> int:
        return self._take(os.pread(fd, count, offset))

    async def send_pipe(self, fd: int, count: int) -> int:
        data = b""
        while len(data) < count and (piece := os.read(fd, count - len(data))):
            data += piece
        return self._take(data)

    async def send_memory(self, view: memoryview, *, payload: bool = True, more: bool = False) -> int:
        self.everything += view
        return self._take(bytes(view)) if payload else view.nbytes

    async def listen_until(self, future: asyncio.Future[Any]) -> bool:
        await asyncio.wait([future])
        return self.wants_body

    def _take(self, data: bytes) -> int:
        data = data[: self._limit - len(self.payload)]
        self.payload += data
        return len(data)


def sent(source: Any, **options: Any) -> bytes:
    body, wire = open_body(source, **options), Kernel()
    try:
        asyncio.run(body.send(wire))
        assert body.bytes_read == len(wire.payload)
        return wire.payload
    finally:
        body.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(bytes(range(256)) * 10)
    return path


DATA = bytes(range(256)) * 10


# --- what is taken ----------------------------------------------------------------------------------------------------


def test_a_path_is_sent_from_offset_for_size(path: Path) -> None:
    assert sent(path) == sent(str(path)) == DATA
    assert sent(path, offset=100) == DATA[100:]
    assert sent(path, offset=100, size=7) == DATA[100:107]
    assert sent(path, size=0) == b""
    assert sent(path, offset=len(DATA)) == b""


def test_a_file_object_is_sent_from_where_it_is_and_left_there(path: Path) -> None:
    for buffering in (0, -1):
        with open(path, "rb", buffering=buffering) as file:
            file.seek(5)
            assert sent(file) == DATA[5:]
            assert file.tell() == 5
            assert sent(file, offset=0) == DATA


def test_what_was_written_and_not_flushed_is_sent_too(tmp_path: Path) -> None:
    with open(tmp_path / "x", "w+b") as file:
        file.write(b"abc")
        assert sent(file, offset=0) == b"abc"


def test_a_file_object_closed_while_it_is_sent_takes_nothing_with_it(path: Path) -> None:
    file = open(path, "rb")  # noqa: SIM115
    body, wire = open_body(file), Kernel()
    file.close()
    asyncio.run(body.send(wire))
    body.close()
    assert wire.payload == DATA


@pytest.mark.parametrize(
    "make",
    [
        bytes,
        bytearray,
        memoryview,
        lambda data: array.array("B", data),
        lambda data: array.array("H", data),
        lambda data: numpy.frombuffer(data, dtype="<u4"),
        lambda data: numpy.frombuffer(data, dtype="u1").reshape(16, -1),
        io.BytesIO,
    ],
)
def test_any_contiguous_buffer_is_sent_and_not_copied(make: Callable[[bytes], Any]) -> None:
    source = make(DATA)
    assert sent(source) == DATA
    assert sent(source, offset=16, size=32) == DATA[16:48]
    body = open_body(source)
    assert isinstance(body, MemoryBody)
    assert body.replayable
    body.close()


def test_an_mmap_is_sent(path: Path) -> None:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sent(mapped) == DATA


@pytest.mark.parametrize(("flags", "path"), [(mmap.MAP_SHARED, "sendfile"), (mmap.MAP_PRIVATE, "send")])
def test_a_large_shared_mapping_leaves_by_sendfile_and_a_private_one_from_memory(
    server: Server, client_of: Make, run: Run, big_file: Path, flags: int, path: str
) -> None:
    async def main(mapped: mmap.mmap) -> engine.PutResult:
        async with client_of() as client:
            return await client.put(mapped, f"s3://store/mapped-{flags}", offset=5)

    with open(big_file, "rb") as file, mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ) as mapped:
        result = run(main(mapped))
    assert (result.send_path, result.checksum_verified) == (path, True)
    assert server.object("store", f"mapped-{flags}").content() == big_file.read_bytes()[5:]


def test_a_mapped_file_that_shrinks_is_no_crash(client_of: Make, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    path.write_bytes(bytes(4 * limits.MIB))

    async def main(mapped: mmap.mmap) -> None:
        async with client_of() as client:
            transfer = client.start_put(mapped, "s3://store-slow-300ms/mapped")
            while transfer.progress.phase != "asking":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            os.truncate(path, limits.MIB)
            await transfer

    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped, pytest.raises(SourceChanged):
        run(main(mapped))


def test_a_bytesio_is_sent_from_where_it_is() -> None:
    source = io.BytesIO(DATA)
    source.seek(10)
    assert sent(source) == DATA[10:]


@pytest.mark.parametrize("more", [1, 5_000, 16_383, 16_384, 70_000])
def test_a_large_file_is_cut_only_where_a_tls_record_ends(tmp_path: Path, more: int) -> None:
    """A short record before the end made XRootD over TLS wait for bytes that it had."""
    offset, size = 777, (3 << 20) + more
    path = tmp_path / "large"
    path.write_bytes(os.urandom(offset + size))
    starts: list[int] = []

    class Watched(Kernel):
        async def send_file(self, fd: int, offset: int, count: int) -> int:
            starts.append(self.body_sent)
            return await super().send_file(fd, offset, count)

    body, wire = open_body(path, offset=offset), Watched()
    try:
        asyncio.run(body.send(wire))
    finally:
        body.close()
    assert wire.payload == path.read_bytes()[offset:]
    assert len(starts) == 2
    assert [start % limits.TLS_RECORD_BYTES for start in starts] == [0, 0]
    assert size - starts[1] >= limits.HELD_BACK_BYTES


def test_the_exporter_is_held_until_the_body_is_closed() -> None:
    source = bytearray(b"abc")
    body = open_body(source)
    with pytest.raises(BufferError):
        source.append(1)
    body.close()
    source.append(1)


def test_a_gzip_file_gives_what_it_holds_and_not_what_its_descriptor_has(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "x.gz", "wb") as file:
        file.write(DATA)
    with gzip.open(tmp_path / "x.gz", "rb") as file:
        body = open_body(file)
        assert isinstance(body, IteratorBody)
        assert not body.replayable
        wire = Kernel()
        body.size = len(DATA)
        asyncio.run(body.send(wire))
        assert wire.payload == DATA


@pytest.mark.parametrize("make", [tempfile.TemporaryFile, tempfile.NamedTemporaryFile, tempfile.SpooledTemporaryFile])
def test_temporary_files_are_files(make: Callable[[], Any]) -> None:
    with make() as file:
        file.write(DATA)
        file.seek(0)
        body = open_body(file)
        assert isinstance(body, FileBody)
        body.close()
        assert sent(file) == DATA


def test_iterables_and_async_iterables_are_taken_item_by_item() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"abc"
        yield b""
        yield b"de"

    assert sent([b"abc", bytearray(b"d"), memoryview(b"e")], size=5) == b"abcde"
    assert sent((b"%d" % number for number in range(10)), size=10) == b"0123456789"
    assert sent(pieces(), size=5) == b"abcde"


def test_without_a_size_an_iterator_is_chunked() -> None:
    body, wire = open_body([b"abc", b"", b"d" * 300]), Kernel()
    asyncio.run(body.send(wire))
    assert body.size is None
    assert wire.everything == b"3\r\nabc\r\n12c\r\n" + b"d" * 300 + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("size", [None, len(DATA)])
def test_a_pipe_is_sent(size: int | None) -> None:
    reading, writing = os.pipe()
    os.write(writing, DATA)
    os.close(writing)
    with os.fdopen(reading, "rb", 0) as file:
        body, wire = open_body(file, size=size), Kernel()
        assert isinstance(body, PipeBody)
        asyncio.run(body.send(wire))
        body.close()
    assert wire.payload == DATA


def test_a_buffered_pipe_loses_nothing_that_was_read_ahead() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"first line\n" + DATA)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        assert file.readline() == b"first line\n"
        assert sent(file, size=len(DATA)) == DATA


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        (b"abc", {"size": 4}, "4 bytes from offset 0 are asked for, the buffer has 3"),
        (b"abc", {"offset": 4}, "offset 4 is behind the end"),
        (b"abc", {"offset": -1}, "offset=-1: a number of bytes, 0 or more"),
        (b"abc", {"size": -1}, "size=-1"),
        (b"abc", {"size": 1.5}, "size=1.5"),
        (b"abc", {"size": True}, "size=True"),
        ([b"abc"], {"offset": 1}, "offset needs a file or a buffer"),
        (7, {}, "int is no source"),
        (None, {}, "NoneType is no source"),
        (numpy.zeros((4, 4))[:, ::2], {}, "not contiguous"),
        (io.StringIO("abc"), {}, "gives text"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_its_own_words(source: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_body(source, **options)


def test_files_that_cannot_be_sent_are_refused_in_their_own_words(tmp_path: Path, path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing-there"):
        open_body(tmp_path / "nothing-there")
    with pytest.raises(IsADirectoryError, match="is a directory"):
        open_body(tmp_path)
    with pytest.raises(UsageError, match="offset 9999 is behind the end"):
        open_body(path, offset=9999)
    with pytest.raises(UsageError, match="9999 bytes from offset 0 are asked for, 2560 are there"):
        open_body(path, size=9999)
    with pytest.raises(UsageError, match="NUL"):
        open_body("a\0b")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="named pipe"):
        open_body(tmp_path / "fifo")
    with pytest.raises(UsageError, match="device"):
        open_body("/dev/zero")
    file = open(path, "rb")  # noqa: SIM115
    file.close()
    with pytest.raises(UsageError, match="closed"):
        open_body(file)
    with open(path) as text, pytest.raises(UsageError, match="binary mode"):
        open_body(text)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_file_that_may_not_be_read_is_an_error_of_its_own(open_folder: Path) -> None:
    """Tried under another user id where the tests run as root, who reads everything."""
    path = open_folder / "secret"
    path.write_bytes(b"x")
    path.chmod(0)
    script = textwrap.dedent(
        f"""
        import os
        import engine
        from engine.body import open_body
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            open_body({str(path)!r})
        except PermissionError as error:
            assert error.filename == {str(path)!r}
            print("refused")
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr


def test_an_iterator_that_gives_too_little_or_too_much_never_sends_the_last_byte() -> None:
    for items, words in (
        ([b"abc"], "ended after 3"),
        ([b"abc", b"de", b"f"], "gives more"),
        ([b"abcdef"], "gives more"),
    ):
        body, wire = open_body(items, size=5), Kernel()
        with pytest.raises(UsageError, match=words):
            asyncio.run(body.send(wire))
        assert len(wire.payload) < 5


def test_items_that_are_no_buffers_are_refused() -> None:
    with pytest.raises(UsageError, match="an item of the iterator is str, not bytes or another buffer; encode it"):
        sent(["abc"], size=3)


def test_what_an_iterator_raises_reaches_the_caller() -> None:
    def broken() -> Iterator[bytes]:
        yield b"abc"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sent(broken(), size=6)


def test_a_pipe_that_ends_early_is_told() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"abc")
    os.close(writing)
    with os.fdopen(reading, "rb", 0) as file, pytest.raises(UsageError, match="ended after 3 bytes"):
        sent(file, size=5)


# --- files that change ---------------------------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(4 * limits.MIB))
    return path


def change_shrink(path: Path) -> None:
    os.truncate(path, limits.MIB)


def change_grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def change_overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"other")


def change_replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(bytes(4 * limits.MIB))
    os.replace(other, path)


@pytest.mark.parametrize("change", [change_shrink, change_grow, change_overwrite, change_replace])
def test_a_file_that_changes_while_it_is_sent_is_never_stored(
    server: Server, client_of: Make, run: Run, large: Path, change: Callable[[Path], None]
) -> None:
    """It changes while the server takes its time to say 100; the last bytes are held back until the file was looked at."""

    async def main() -> None:
        async with client_of() as client:
            transfer = client.start_put(large, f"s3://store-slow-300ms/{change.__name__}")
            while transfer.progress.phase != "asking":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            change(large)
            await transfer

    with pytest.raises(SourceChanged) as caught:
        run(main())
    assert str(large) in str(caught.value)
    assert caught.value.hops[-1].outcome == "source-changed"
    assert caught.value.body_bytes_sent < 4 * limits.MIB
    with pytest.raises(KeyError):
        server.object("store-slow-300ms", change.__name__)
