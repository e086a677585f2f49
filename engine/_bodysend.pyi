import asyncio
import enum
from collections.abc import Callable, Generator
from typing import Any, Final, NamedTuple, final

from typing_extensions import Buffer

MAX_THREADS: Final[int]
STEP_BYTES: Final[int]

class Stop(enum.IntEnum):
    DONE = 0
    READABLE = 1
    STALLED = 2
    CANCELLED = 3
    SOURCE_ENDED = 4
    SOCKET_ERROR = 5
    SOURCE_ERROR = 6
    WOULD_BLOCK = 7

class Outcome(NamedTuple):
    stop: Stop
    sent: int
    errno: int
    path: str

def send_file_inline(
    sock_fd: int, file_fd: int, offset: int, count: int, *, probe: bool = True, records: object = None
) -> Outcome: ...
def send_memory_inline(
    sock_fd: int, buffer: Buffer, *, probe: bool = True, more: bool = False, records: object = None
) -> Outcome: ...
def find_mapped_file(buffer: Buffer) -> tuple[int, int] | None: ...

@final
class Job:
    @property
    def outcome(self) -> Outcome | None: ...
    @property
    def sent(self) -> int: ...
    def cancel(self) -> None: ...
    def add_done_callback(self, callback: Callable[[Job], object]) -> None: ...
    def __await__(self) -> Generator[Any, None, Outcome]: ...

@final
class BodySender:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None: ...
    def start_file(
        self,
        sock_fd: int,
        file_fd: int,
        offset: int,
        count: int,
        stall_ms: int,
        *,
        ignore_readable: bool = False,
        records: object = None,
    ) -> Job: ...
    def start_memory(
        self, sock_fd: int, buffer: Buffer, stall_ms: int, *, ignore_readable: bool = False, records: object = None
    ) -> Job: ...
    def start_pipe(
        self, sock_fd: int, pipe_fd: int, count: int, stall_ms: int, *, ignore_readable: bool = False
    ) -> Job: ...
    def close(self) -> None: ...
