"""Where the body of a GET goes: a path, a device, an open file or a function, each with the same four verbs."""

from __future__ import annotations

import contextlib
import errno
import inspect
import io
import os
import secrets
import stat
from collections.abc import Callable
from functools import partial
from typing import Any, Union

from engine import limits
from engine.errors import UsageError

Sink = Union[str, "os.PathLike[str]", Callable[[memoryview], object], Any]


class OpenSink:
    """Where the body of a GET goes. `rewind` says whether it can start again after some bytes came."""

    count = 0  # bytes taken; may be looked at any time

    def write(self, view: memoryview) -> None:
        raise NotImplementedError

    def rewind(self) -> bool:
        return self.count == 0

    def commit(self) -> None:
        """The body is complete."""

    def discard(self) -> None:
        """Called last, in any case."""


class _CallSink(OpenSink):
    def __init__(self, call: Callable[[memoryview], object]) -> None:
        self._call = call

    def write(self, view: memoryview) -> None:
        self._call(view)
        self.count += view.nbytes


class _PathSink(OpenSink):
    """Written beside its place and renamed when complete: a half-fetched object never has the name of a whole one. A file that
    was there is replaced and gives its mode; a symbolic link stays, and what it leads to is replaced. Raises OSError."""

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path)
        folder, name = os.path.split(self._path)
        start = os.fsdecode(os.fsencode(name)[:100])
        self._temporary = os.path.join(folder, f".{start}.{secrets.token_hex(8)}.part")
        try:
            # Not mkstemp, which makes 0600: the mode is what open() would have given, and the umask is left alone.
            self._fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            error.filename = path  # nobody knows the temporary name
            raise
        with contextlib.suppress(FileNotFoundError):
            os.fchmod(self._fd, stat.S_IMODE(os.stat(self._path).st_mode))

    def write(self, view: memoryview) -> None:
        self.count += view.nbytes
        while view:
            view = view[os.write(self._fd, view) :]

    def rewind(self) -> bool:
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.count = 0
        return True

    def commit(self) -> None:
        os.replace(self._temporary, self._path)
        self._temporary = ""

    def discard(self) -> None:
        os.close(self._fd)
        if self._temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)


class _DeviceSink(OpenSink):
    """A pipe or a device: written as it comes, never replaced. Raises OSError."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def write(self, view: memoryview) -> None:
        self.count += view.nbytes
        while view:
            view = view[os.write(self._fd, view) :]

    def discard(self) -> None:
        os.close(self._fd)


class Collector(OpenSink):
    """In memory, bounded."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, view: memoryview) -> None:
        if len(self.data) + view.nbytes > limits.RESPONSE_BODY_MAX_BYTES:
            raise UsageError(
                f"the answer is longer than {limits.RESPONSE_BODY_MAX_BYTES} bytes; use get() with a sink",
                stage="answer",
            )
        self.data += view

    def rewind(self) -> bool:
        self.data.clear()
        return True


def open_sink(sink: Sink) -> OpenSink:
    """Whoever opens one hands it to `Client.get`, which commits or discards it. Raises OSError, UsageError."""
    if isinstance(sink, OpenSink):
        return sink
    if isinstance(sink, (str, os.PathLike)):
        path = os.fsdecode(sink)
        regular = not os.path.exists(path) or os.path.isfile(path)
        return _PathSink(path) if regular else _DeviceSink(path)
    write = getattr(sink, "write", None)
    if isinstance(sink, io.TextIOBase):
        raise UsageError("sink: the file takes text; open it in binary mode ('wb')")
    if inspect.iscoroutinefunction(write or sink):
        raise UsageError("sink: a coroutine function cannot be called with each piece; put the pieces into a queue")
    if callable(write):
        return _CallSink(partial(_write_all, write))
    if callable(sink):
        return _CallSink(sink)
    raise UsageError(f"sink: {type(sink).__name__} is neither a path, a binary file nor a function taking a memoryview")


def _write_all(write: Callable[[memoryview], Any], view: memoryview) -> None:
    # A raw (unbuffered) file may take less than it is given, and says None when it would block.
    raw = isinstance(getattr(write, "__self__", None), io.RawIOBase)
    while view:
        taken = write(view)
        if taken is None and raw:
            raise BlockingIOError(errno.EAGAIN, "the sink is non-blocking and full; use a blocking file")
        if taken is None or taken >= view.nbytes:
            return
        view = view[taken:]
