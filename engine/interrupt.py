"""Ends a program's work on Ctrl-C or SIGTERM by cancelling it, so that whatever holds something gives it back."""

from __future__ import annotations

import os
import signal
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, TypeVar

T = TypeVar("T")

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
PATIENCE_S: Final = 2.0  # giving back takes milliseconds, unless a disk or a thread hangs


class Interrupted(BaseException):
    """A signal asked to stop. Not an Exception, as KeyboardInterrupt is none: nobody should catch it by accident.

    Attributes: signum; `told`, what became of the work, for people; "" when there is nothing to say.
    """

    def __init__(self, signum: int, told: str = "") -> None:
        super().__init__(signum, told)
        self.signum = signum
        self.told = told

    @property
    def exit_code(self) -> int:
        """As a shell shows a program that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum


@contextmanager
def signals_raise() -> Generator[None, None, None]:
    """SIGINT and SIGTERM raise Interrupted where they hit. Only from the main thread."""

    def stop(signum: int, _frame: FrameType | None) -> None:
        for other in SIGNALS:
            signal.signal(other, signal.SIG_IGN)  # the clean-up that follows is short, and should be whole
        raise Interrupted(signum)

    before = [signal.signal(signum, stop) for signum in SIGNALS]
    try:
        yield
    finally:
        _restore(before)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on a new uvloop. The first signal cancels it, and once it has given back what it held, Interrupted is raised;
    one that comes `PATIENCE_S` later ends the process at once. Only from the main thread."""
    import asyncio

    import uvloop

    caught: list[tuple[int, float]] = []

    async def guarded() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(signum: int) -> None:
            if not caught:
                caught.append((signum, loop.time()))
                task.cancel()
            elif loop.time() - caught[0][1] > PATIENCE_S:
                os._exit(128 + signum)

        for signum in SIGNALS:
            loop.add_signal_handler(signum, stop, signum)
        return await main

    before = [signal.getsignal(signum) for signum in SIGNALS]
    try:
        return uvloop.run(guarded())
    except asyncio.CancelledError:
        if not caught:
            raise
        raise Interrupted(caught[0][0]) from None
    finally:
        _restore(before)  # the loop leaves the defaults behind


def _restore(handlers: list[Any]) -> None:
    for signum, handler in zip(SIGNALS, handlers, strict=True):
        signal.signal(signum, handler)
