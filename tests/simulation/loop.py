"""An event loop in virtual time: when nothing is ready, the clock jumps to the next timer. Same inputs, same order of events.

Has what the engine uses and no more; names, sockets and transports are the network's (see `network.Network`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

START_S = 1_000.0


class Stuck(AssertionError):
    """Somebody waits for what will never come, or the steps allowed are used up."""


class NumberedTask(asyncio.Task[Any]):
    """Sets of tasks are walked in the same order in every run, which an address as hash would not give."""

    _numbers = itertools.count()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._number = next(NumberedTask._numbers)
        super().__init__(*arguments, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.BaseEventLoop):
    """`turns_max`: passes of the loop before it calls itself stuck."""

    def __init__(self, turns_max: int) -> None:
        super().__init__()
        self._now = START_S
        self._clock_resolution = 1e-7
        self._selector = self
        self._turns_left = turns_max
        self.turns = 0
        self.network: Any = None
        self.set_task_factory(_make_task)

    def time(self) -> float:
        return self._now

    # What BaseEventLoop asks of a selector.

    def select(self, timeout: float | None) -> tuple[()]:
        self.turns += 1
        if timeout is None:
            raise Stuck("nothing is left to happen, and the call has not ended")
        if self.turns > self._turns_left:
            raise Stuck(f"not done after {self.turns} turns of the loop")
        self._now += timeout
        return ()

    def _process_events(self, event_list: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    # What the engine asks of a loop.

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> list[Any]:
        found: list[Any] = await self.network.resolve(host, port)
        return found

    async def sock_connect(self, sock: Any, address: Any) -> None:
        await self.network.connect(sock, address)

    async def create_connection(self, protocol_factory: Any, *positional: Any, sock: Any = None, **options: Any) -> Any:
        await asyncio.sleep(0)
        return self.network.adopt(protocol_factory(), sock)


def _make_task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> NumberedTask:
    return NumberedTask(coro, loop=loop, **options)
