"""The sandbox's loop in a thread of the calling process."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import uvloop

from engine.sandbox._options import Options
from engine.sandbox._records import Record, Recorder
from engine.sandbox._server import Server


class ServerThread:
    """Runs from construction until `close`. Raises OSError when an address cannot be bound."""

    def __init__(self, options: Options, recorder: Recorder) -> None:
        self._recorder = recorder
        self._server = Server(options, recorder)
        self.redirector_url = self._server.redirector_url
        self.store_url = self._server.store_url
        self._loop = uvloop.new_event_loop()
        self._main: asyncio.Task[None] | None = None
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="engine-sandbox", daemon=True)
        self._thread.start()
        started.wait()

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._main = self._loop.create_task(self._server.serve())
        self._loop.call_soon(started.set)
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._main)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def records(self) -> list[Record]:
        return self._recorder.snapshot()

    def settled(self) -> bool:
        return self._recorder.settled()

    def close(self) -> None:
        if self._thread.is_alive() and self._main:
            with contextlib.suppress(RuntimeError):  # the loop may have ended between the two lines
                self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join()
