"""Sources: what a caller hands over as a body, how long it is, whether it can be sent again, and how its bytes leave.

A body spends what a connection offers (`Wire`) and owns its descriptor or buffer until `close()`. It counts the bytes taken
from the source to be sent (`bytes_read`), which is half of the proof that a refused hop cost nothing.
"""

from __future__ import annotations

import asyncio
import copy
import errno
import io
import os
import pickle
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple, Protocol

from engine import limits
from engine._bodysend import find_mapped_file
from engine.errors import SourceChanged, UsageError

Source = Any  # path, binary file object, buffer, iterable or async iterable of buffers


class Wire(Protocol):
    """What a connection offers to a body. The send calls return how many bytes the kernel took: fewer than asked for when the
    exchange wants no more of the body (`wants_body` is then False), or when the source ended early."""

    @property
    def wants_body(self) -> bool: ...
    @property
    def body_sent(self) -> int: ...  # bytes of this body that the kernel took in this exchange, framing not counted
    async def send_file(self, fd: int, offset: int, count: int) -> int: ...
    async def send_pipe(self, fd: int, count: int) -> int: ...
    async def send_memory(self, view: memoryview, *, payload: bool = True, more: bool = False) -> int: ...
    async def listen_until(self, future: asyncio.Future[Any]) -> bool: ...


class Body:
    """Base. `size` is None when not known (sent chunked); `replayable` bodies can be sent again from their start."""

    size: int | None = None
    replayable = False
    bytes_read = 0
    tap: Callable[[memoryview], object] | None = None  # sees each item of an iterator on its way

    @property
    def content_length(self) -> int | None:
        """Bytes that leave, framing included; None when that is not known."""
        return self.size

    async def send(self, wire: Wire, start: int = 0) -> None:
        """Send from byte `start` to the end, or until the exchange wants no more.

        Raises SourceChanged, UsageError (a wrong `size`), or whatever reading the source raises.
        """
        raise NotImplementedError

    def small_view(self) -> memoryview | None:
        """The whole body when it is in memory and small enough to share a segment with the head."""
        return None

    def check_unchanged(self) -> None:
        """Raises SourceChanged when the source is not what it was when it was opened."""

    async def prepare(self) -> None:
        """Look at what can be known before anything is sent. Raises UsageError."""

    async def settle(self) -> None:
        """Stop what still reads the source, and wait for it, however often the caller is cancelled. Before `close`."""

    def part(self, start: int, size: int) -> Body:
        """A range of a replayable body as a body of its own, good until this one is closed. Not for iterators."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what the body holds. Idempotent."""


async def until_done(future: asyncio.Future[Any]) -> None:
    """Wait until `future` is done, however often this task is cancelled meanwhile; the cancellation goes on afterwards.

    For clean-ups: what the future uses (a descriptor, a buffer) is closed next. Its exception counts as looked at: whatever
    made the clean-up necessary is what the caller hears of.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:  # noqa: PERF203
            cancelled = error
    if not future.cancelled():
        future.exception()
    if cancelled is not None:
        raise cancelled


class FileBody(Body):
    """A range of a regular file, by descriptor: leaves by sendfile, the descriptor's own offset stays untouched."""

    replayable = True

    def __init__(self, fd: int, offset: int, size: int, *, owned: bool, path: str | None) -> None:
        self.fd = fd
        self.offset = offset
        self.size: int = size
        self._owned = owned
        self._path = path
        self._seen = _identity(os.fstat(fd))

    async def send(self, wire: Wire, start: int = 0) -> None:
        position, end = self.offset + start, self.offset + self.size
        while position < end and wire.wants_body:
            count = end - position
            if count > limits.INLINE_BODY_MAX_BYTES:
                # Cut where a TLS record ends. XRootD reads into 1 MiB and forgets what is left of a record which that cuts in
                # two; were the records before the last one not whole, it would wait for ever for the last bytes of some files.
                records = (self.size - limits.HELD_BACK_BYTES) // limits.TLS_RECORD_BYTES
                count = self.offset + records * limits.TLS_RECORD_BYTES - position
            else:
                # The last bytes are held back until now: a file that changed meanwhile never becomes a stored object.
                self.check_unchanged()
            before = wire.body_sent
            try:
                sent = await wire.send_file(self.fd, position, count)
            finally:  # what had left counts when it was cancelled, too
                self.bytes_read += wire.body_sent - before
            position += sent
            if sent < count and wire.wants_body:
                self.check_unchanged()
                raise SourceChanged(f"{self._name}: ended at byte {position} of {end} while it was being sent")

    def check_unchanged(self) -> None:
        now = os.fstat(self.fd)
        if _identity(now) != self._seen:
            raise SourceChanged(
                f"{self._name}: changed while it was being sent (size {self._seen[2]} → {now.st_size} bytes); "
                "put it again once nobody writes to it"
            )
        if self._path is None:
            return
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return  # removed: what the descriptor holds is still the file that was named
        if (there.st_dev, there.st_ino) != self._seen[:2]:
            raise SourceChanged(f"{self._name}: was replaced by another file while it was being sent; put it again")

    def part(self, start: int, size: int) -> FileBody:
        """Of the file as it was when it was opened: a change between two parts is noticed, too."""
        piece = copy.copy(self)
        piece.offset, piece.size, piece.bytes_read, piece._owned = self.offset + start, size, 0, False
        return piece

    @property
    def path(self) -> str | None:
        """As it was named, None for a file object."""
        return self._path

    @property
    def _name(self) -> str:
        return "the file" if self._path is None else repr(self._path)

    def close(self) -> None:
        if self._owned:
            self._owned = False
            os.close(self.fd)


class MappedBody(FileBody):
    """Memory that is a file's shared mapping: leaves by sendfile from the file behind it, where other memory would be copied.

    What is written through the mapping meanwhile is as little an error as in any other buffer; only a file that has become too
    short is. The exporter is held until `close()`.
    """

    def __init__(self, view: memoryview, fd: int, offset: int) -> None:
        super().__init__(fd, offset, view.nbytes, owned=True, path=None)
        self._view = view

    def part(self, start: int, size: int) -> FileBody:
        piece = super().part(start, size)
        piece._view = self._view[start : start + size]  # type: ignore[attr-defined]
        return piece

    def check_unchanged(self) -> None:
        there = os.fstat(self.fd).st_size
        if there < self.offset + self.size:
            raise SourceChanged(f"the mapped file: shrank to {there} bytes while it was being sent")

    def close(self) -> None:
        super().close()
        self._view.release()


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class MemoryBody(Body):
    """Any contiguous buffer, never copied; the exporter is held until `close()`."""

    replayable = True

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.size: int = view.nbytes

    async def send(self, wire: Wire, start: int = 0) -> None:
        try:
            # Released here: whoever keeps the error of a cancelled call keeps its frames, and with them what they refer to.
            with self.view[start:] as view:
                await wire.send_memory(view)
        finally:
            self.bytes_read += wire.body_sent - start

    def small_view(self) -> memoryview | None:
        return self.view if self.size <= limits.COALESCE_MAX_BYTES else None

    def part(self, start: int, size: int) -> MemoryBody:
        return MemoryBody(self.view[start : start + size])

    def close(self) -> None:
        self.view.release()


class Framing(Protocol):
    """What stands around the bytes of a body so that its checksum can follow it; see `checksums.AwsChunked`."""

    @property
    def content_length(self) -> int: ...
    def frames(self) -> Iterator[tuple[bytes, int]]: ...
    def suffix(self, value: str) -> bytes: ...


class Trailer(NamedTuple):
    framing: Framing
    value: Callable[[], str]  # called when the last byte was read


class _FramedWire:
    """A wire that puts the text of a frame ahead of every so many bytes; items cross frames as they like."""

    def __init__(self, wire: Wire, frames: Iterator[tuple[bytes, int]]) -> None:
        self._wire = wire
        self._frames = frames
        self._left = 0  # bytes that the present frame still takes

    @property
    def wants_body(self) -> bool:
        return self._wire.wants_body

    @property
    def body_sent(self) -> int:
        return self._wire.body_sent

    async def send_file(self, fd: int, offset: int, count: int) -> int:
        raise NotImplementedError

    async def send_pipe(self, fd: int, count: int) -> int:
        raise NotImplementedError

    async def send_memory(self, view: memoryview, *, payload: bool = True, more: bool = False) -> int:
        sent = 0
        while sent < view.nbytes and self._wire.wants_body:
            if not self._left:
                text, self._left = next(self._frames)
                await self._wire.send_memory(memoryview(text), payload=False, more=True)
            taken = await self._wire.send_memory(view[sent : sent + self._left])
            sent += taken
            self._left -= taken
        return sent

    async def listen_until(self, future: asyncio.Future[Any]) -> bool:
        return await self._wire.listen_until(future)


class _Nobody:
    """A wire for reading a source without sending it."""

    wants_body = True
    body_sent = 0

    async def send_file(self, fd: int, offset: int, count: int) -> int:
        raise NotImplementedError

    async def send_pipe(self, fd: int, count: int) -> int:
        raise NotImplementedError

    async def send_memory(self, view: memoryview, *, payload: bool = True, more: bool = False) -> int:
        raise NotImplementedError

    async def listen_until(self, future: asyncio.Future[Any]) -> bool:
        await asyncio.wait([future])
        return True


_NOBODY = _Nobody()


class IteratorBody(Body):
    """An iterable or async iterable of buffers, one item in flight. With a size the items must add up to it.

    An answer may come while an item is in the making, or when it is there and not a byte of it has left. Neither the item nor
    the step that makes it is given up then (cancelling a step ends the caller's generator): the next hop goes on with it.
    """

    def __init__(self, items: AsyncIterator[Any], size: int | None) -> None:
        self.size = size
        self.trailer: Trailer | None = None  # set before `send`; needs a size
        self._items = items
        self._step: asyncio.Future[Any] | None = None
        self._held: memoryview | None = None

    async def send(self, wire: Wire, start: int = 0) -> None:
        if self.size is None:
            await self._send_chunked(wire)
        elif self.trailer is None:
            await self._send_sized(wire, self.size)
        else:
            await self._send_sized(_FramedWire(wire, self.trailer.framing.frames()), self.size)
            if wire.wants_body:
                await wire.send_memory(memoryview(self.trailer.framing.suffix(self.trailer.value())), payload=False)

    @property
    def content_length(self) -> int | None:
        return self.size if self.trailer is None else self.trailer.framing.content_length

    async def _send_sized(self, wire: Wire, size: int) -> None:
        item = await self._next_item(wire)
        while item is not None and wire.wants_body:
            # The last bytes wait until the iterator is known to have ended: an object of a wrong size is never stored.
            last = self.bytes_read >= size
            if self.bytes_read > size or (last and await self._next_item(wire) is not None):
                raise UsageError(f"size={size}, but the iterator gives more; nothing was stored", stage="body")
            if await self._send_item(wire, item):
                return
            item = None if last else await self._next_item(wire)
        if wire.wants_body and self.bytes_read < size:
            raise UsageError(
                f"size={size}, but the iterator ended after {self.bytes_read} bytes; nothing was stored", stage="body"
            )

    async def _send_chunked(self, wire: Wire) -> None:
        """RFC 9112 section 7.1; the framing shares segments with the items and does not count as body."""
        while wire.wants_body and (item := await self._next_item(wire)) is not None:
            await wire.send_memory(memoryview(b"%x\r\n" % item.nbytes), payload=False, more=True)
            if await self._send_item(wire, item, more=True):
                return
            await wire.send_memory(memoryview(b"\r\n"), payload=False)
        if wire.wants_body:
            await wire.send_memory(memoryview(b"0\r\n\r\n"), payload=False)

    async def _next_item(self, wire: Wire) -> memoryview | None:
        """The next item that is not empty; None at the end, or when an answer came that makes the rest unwanted."""
        if self._held is not None:
            view, self._held = self._held, None
            self.bytes_read += view.nbytes
            return view
        while True:
            if self._step is None:
                self._step = asyncio.ensure_future(_take_one(self._items))
            if not await wire.listen_until(self._step):
                return None
            step, self._step = self._step, None
            item = step.result()
            if item is None:
                return None
            view = as_view(item, "an item of the iterator")
            if view.nbytes:
                self.bytes_read += view.nbytes
                if self.tap is not None:
                    self.tap(view)
                return view

    async def _send_item(self, wire: Wire, item: memoryview, *, more: bool = False) -> bool:
        """True when there is nothing more to do on this hop. The item's buffer is let go before the next one is asked for: its
        owner may want to fill it anew, or to resize it."""
        try:
            await wire.send_memory(item, more=more)
            return self._gave_back(item, wire)
        finally:
            if self._held is not item:
                item.release()

    def _gave_back(self, item: memoryview, wire: Wire) -> bool:
        """Keep for the next hop what came too late for this one. True when there is nothing more to do on this one."""
        if wire.wants_body or wire.body_sent or self.bytes_read != item.nbytes:
            return not wire.wants_body
        self._held = item
        self.bytes_read = 0
        return True

    async def read_into(self, view: memoryview) -> int:
        """Fill `view` from the source, instead of sending it. Returns how many bytes there were: fewer only at the end.

        Whoever cancels this calls `settle`. Raises UsageError when `size` was told and the source has fewer or more.
        """
        filled = 0
        while filled < view.nbytes:
            item = await self._next_item(_NOBODY)
            if item is None:
                break
            count = min(item.nbytes, view.nbytes - filled)
            view[filled : filled + count] = item[:count]
            filled += count
            if count < item.nbytes:
                self._held = item[count:]
                self.bytes_read -= item.nbytes - count
        if self.size is not None:
            await self._check_size(filled < view.nbytes or self.bytes_read >= self.size)
        return filled

    async def _check_size(self, ended: bool) -> None:
        size = self.size or 0
        if ended and self.bytes_read < size:
            raise UsageError(f"size={size}, but the source ended after {self.bytes_read} bytes", stage="body")
        if ended and (self.bytes_read > size or await self._next_item(_NOBODY) is not None):
            raise UsageError(f"size={size}, but the source gives more", stage="body")

    async def prepare(self) -> None:
        # A body of 0 bytes is never asked for anything, so that a wrong size would store an empty object.
        while self.size == 0:
            self._step = asyncio.ensure_future(_take_one(self._items))
            await asyncio.wait([self._step])
            step, self._step = self._step, None
            item = step.result()
            if item is None:
                return
            if as_view(item, "an item of the iterator").nbytes:
                raise UsageError("size=0, but the iterator gives more; nothing was sent")

    async def settle(self) -> None:
        step, self._step = self._step, None
        if step is None:
            return
        step.cancel()
        await until_done(step)

    def close(self) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None


class PipeBody(IteratorBody):
    """A pipe, socket or terminal: by splice when the size is known, read piece by piece and chunked when it is not."""

    def __init__(self, fd: int, size: int | None) -> None:
        super().__init__(self._pieces(), size)
        self._fd = os.dup(fd)  # a duplicate: epoll takes each descriptor once, and the caller may use its own
        self._blocked = os.get_blocking(fd)

    async def send(self, wire: Wire, start: int = 0) -> None:
        if self.size is None or self.trailer is not None:
            await super().send(wire, start)
            return
        try:
            sent = await wire.send_pipe(self._fd, self.size)
        finally:
            self.bytes_read += wire.body_sent
        if sent < self.size and wire.wants_body:
            raise UsageError(
                f"size={self.size}, but the pipe ended after {sent} bytes; nothing was stored", stage="body"
            )

    async def prepare(self) -> None:
        pass  # what is behind the size stays in the pipe for whoever reads it next

    async def read_into(self, view: memoryview) -> int:
        filled = 0
        limit = view.nbytes if self.size is None else min(view.nbytes, self.size - self.bytes_read)
        while filled < limit:
            await self._readable()
            count = os.readv(self._fd, [view[filled:limit]])
            if not count:
                break
            filled += count
            self.bytes_read += count
        if filled < limit and self.size is not None:
            raise UsageError(f"size={self.size}, but the pipe ended after {self.bytes_read} bytes", stage="body")
        return filled

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        loop.add_reader(self._fd, _resolve, readable)
        try:
            await readable
        finally:
            loop.remove_reader(self._fd)

    async def _pieces(self) -> AsyncIterator[bytes]:
        left = self.size  # the end of the pipe is not waited for: who writes to it may go on with something else
        while left is None or left > 0:
            await self._readable()
            most = limits.FILE_OBJECT_CHUNK_BYTES
            piece = os.read(self._fd, most if left is None else min(most, left))
            if not piece:
                return
            if left is not None:
                left -= len(piece)
            yield piece

    def close(self) -> None:
        super().close()
        if self._fd >= 0:
            # uvloop's add_reader made it non-blocking, for everybody who has the pipe (or the terminal) open.
            os.set_blocking(self._fd, self._blocked)
            os.close(self._fd)
            self._fd = -1


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _take_one(items: AsyncIterator[Any]) -> Any:
    # StopAsyncIteration cannot leave a task.
    async for item in items:
        return item
    return None


async def _iterate(items: Iterator[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


async def _read_pieces(file: Any) -> AsyncIterator[bytes]:
    """A file object without a descriptor of its own (gzip, zipfile, a wrapper): read() off the loop."""
    loop = asyncio.get_running_loop()
    read = getattr(file, "read1", file.read)  # read1: what is there, without waiting for more
    while True:
        piece = await loop.run_in_executor(None, read, limits.FILE_OBJECT_CHUNK_BYTES)
        if isinstance(piece, str):
            raise UsageError("the file object gives text; open it in binary mode ('rb')")
        if not piece:
            return
        yield piece


def as_view(source: Any, what: str) -> memoryview:
    """Bytes of a contiguous buffer. Raises UsageError."""
    try:
        view = memoryview(source)
    except TypeError:
        hint = "; encode it first" if isinstance(source, str) else ""
        raise UsageError(f"{what} is {type(source).__name__}, not bytes or another buffer{hint}") from None
    if not view.c_contiguous:
        raise UsageError(f"{what} is a buffer that is not contiguous; copy it first (numpy.ascontiguousarray)")
    if view.ndim == 1 and view.format == "B":
        return view
    # Not cast(), which knows neither structured items nor other byte orders, nor an empty array of floats.
    return pickle.PickleBuffer(source).raw()


def open_body(source: Source, *, offset: int | None = None, size: int | None = None) -> Body:
    """Make a Body of what the caller gave.

    `offset` (bytes) counts from the start of a path, buffer or descriptor (default: a file object's current position, else 0);
    `size` is how many bytes to send from there (default: to the end).

    Raises UsageError for what cannot be a source or does not have that many bytes, and OSError as `open` does.
    """
    for name, value in (("offset", offset), ("size", size)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise UsageError(f"{name}={value!r}: a number of bytes, 0 or more, is needed")
    if isinstance(source, (str, os.PathLike)):
        return _open_path(os.fspath(source), offset or 0, size)
    if isinstance(source, io.BytesIO):
        start = source.tell() if offset is None else offset
        return _open_buffer(source.getbuffer(), start, size)
    try:
        memoryview(source)
    except TypeError:
        pass
    else:
        return _open_buffer(source, offset or 0, size)  # an mmap, too, which has a read() like a file
    if hasattr(source, "read"):
        return _open_file_object(source, offset, size)
    if offset:
        raise UsageError("offset needs a file or a buffer; an iterator starts where it is")
    if hasattr(source, "__aiter__"):
        return IteratorBody(source.__aiter__(), size)
    if hasattr(source, "__iter__"):
        return IteratorBody(_iterate(iter(source)), size)
    raise UsageError(
        f"{type(source).__name__} is no source; give a path, a binary file object, a buffer, or an iterable of buffers"
    )


def _open_path(path: str | bytes, offset: int, size: int | None) -> Body:
    text = os.fsdecode(path)
    if "\0" in text:
        raise UsageError(f"{text!r}: a path cannot hold a NUL")
    mode = os.stat(path).st_mode
    if stat.S_ISFIFO(mode):
        raise UsageError(f"{text!r} is a named pipe; open it and pass the file object")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return FileBody(fd, offset, _file_size(fd, text, offset, size), owned=True, path=text)
    except BaseException:
        os.close(fd)
        raise


def _file_size(fd: int, name: str, offset: int, size: int | None) -> int:
    """How many bytes to send. Raises IsADirectoryError and UsageError."""
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory, not a file", name)
    if stat.S_ISBLK(status.st_mode):
        there = os.lseek(fd, 0, os.SEEK_END)
    elif stat.S_ISREG(status.st_mode):
        there = status.st_size
    else:
        raise UsageError(f"{name!r} is a device without a size; open it and pass an iterable of buffers with size=")
    if offset > there:
        raise UsageError(f"{name!r}: offset {offset} is behind the end ({there} bytes)")
    if size is not None and size > there - offset:
        raise UsageError(f"{name!r}: {size} bytes from offset {offset} are asked for, {there - offset} are there")
    return there - offset if size is None else size


def _open_buffer(source: Any, offset: int, size: int | None) -> Body:
    view = as_view(source, "the source")
    if offset > view.nbytes:
        raise UsageError(f"offset {offset} is behind the end of the buffer ({view.nbytes} bytes)")
    if size is not None and size > view.nbytes - offset:
        raise UsageError(f"{size} bytes from offset {offset} are asked for, the buffer has {view.nbytes - offset}")
    view = view[offset : view.nbytes if size is None else offset + size]
    # Looking it up costs what copying some 100 KiB does.
    if view.nbytes > limits.INLINE_BODY_MAX_BYTES and (found := find_mapped_file(view)) is not None:
        return MappedBody(view, *found)
    return MemoryBody(view)


def _open_file_object(file: Any, offset: int | None, size: int | None) -> Body:
    if getattr(file, "closed", False):
        raise UsageError("the file object is closed")
    if isinstance(file, io.TextIOBase) or isinstance(getattr(file, "buffer", None), io.BufferedIOBase):
        raise UsageError("the file object gives text; open it in binary mode ('rb')")
    fd = _own_descriptor(file)
    if fd is None:
        if offset is not None:
            raise UsageError("offset needs a file with a descriptor; this file object is read from where it is")
        return IteratorBody(_read_pieces(file), size)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode) or stat.S_ISDIR(mode):
        file.flush()  # not asking writable(), which SpooledTemporaryFile has only since Python 3.11
        start = file.tell() if offset is None else offset
        name = file.name if isinstance(getattr(file, "name", None), str) else "the file object"
        # A duplicate: closing the file object meanwhile must not give its number to somebody else's file.
        fd = os.dup(fd)
        try:
            return FileBody(fd, start, _file_size(fd, name, start, size), owned=True, path=None)
        except BaseException:
            os.close(fd)
            raise
    if offset:
        raise UsageError("offset needs a file that can seek; this one is a pipe or a device")
    return PipeBody(fd, size)


def _own_descriptor(file: Any) -> int | None:
    """The descriptor whose bytes are the object's bytes. A gzip file has a `fileno()` too: of the compressed bytes."""
    if isinstance(file, tempfile.SpooledTemporaryFile):
        file.rollover()
    inner = getattr(file, "file", None) or getattr(file, "_file", None) if _is_tempfile(file) else file
    raw = getattr(inner, "raw", inner)
    if not isinstance(raw, io.FileIO):
        return None
    fd = raw.fileno()
    if inner is not raw and not stat.S_ISREG(os.fstat(fd).st_mode):
        return (
            None  # some of the pipe's bytes may be in the object's buffer, and there is no way to ask without blocking
        )
    return fd


def _is_tempfile(file: Any) -> bool:
    return isinstance(file, (tempfile._TemporaryFileWrapper, tempfile.SpooledTemporaryFile))
