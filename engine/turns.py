"""Who waits in line for what: so that ten thousand puts started at once hold some hundred files open, not ten thousand."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """At most `limit` at once; who comes when all are taken waits, first come, first served. All calls on one loop."""

    __slots__ = ("_free", "_waiting")

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: deque[asyncio.Future[None]] = deque()

    def try_take(self) -> bool:
        """A turn, when nobody has to be waited for. Who gets one calls `give_back` once."""
        if self._free and not self._waiting:
            self._free -= 1
            return True
        return False

    async def take(self, timeout_s: float | None = None) -> None:
        """A turn, at last. Raises TimeoutError; then, and when cancelled, there is none to give back."""
        if self.try_take():
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        timer = loop.call_later(max(0.0, timeout_s), _expire, turn) if timeout_s is not None else None
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give_back()  # it came together with the cancellation
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def give_back(self) -> None:
        """To whoever waits longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def _expire(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_exception(TimeoutError())
