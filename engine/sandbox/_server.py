"""The two listeners on one loop, and the life of their connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable

from engine.sandbox._connection import Connection, Handler
from engine.sandbox._errors import S3Error
from engine.sandbox._exchange import Exchange
from engine.sandbox._options import Options
from engine.sandbox._records import Record, Recorder
from engine.sandbox._redirector import Redirector
from engine.sandbox._request import Request
from engine.sandbox._store import Store
from engine.sandbox._tls import TlsWire, server_context
from engine.sandbox._wire import Disconnected, Wire

_log = logging.getLogger("engine.sandbox")


class Server:
    """Listens from construction on (`redirector_url`, `store_url`); `serve` answers until cancelled."""

    def __init__(self, options: Options, recorder: Recorder) -> None:
        self._options = options
        self._recorder = recorder
        addresses = {
            "redirector": (options.host, options.redirector_port),
            "store": (options.store_host, options.store_port),
        }
        self._sockets: dict[str, socket.socket] = {}
        try:
            self._context = server_context(options.tls) if options.tls else None
            for endpoint, (host, port) in addresses.items():
                self._sockets[endpoint] = _listen(host, port)
        except OSError:
            self.close()
            raise
        self.redirector_url = _url(self._sockets["redirector"], options)
        self.store_url = _url(self._sockets["store"], options)
        self.store = Store(options)
        redirector = Redirector(self.store, self.redirector_url, self.store_url)
        self._handlers: dict[str, Handler] = {"redirector": redirector.handle, "store": self.store.handle}
        self._connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        acceptors = [asyncio.create_task(self._accept(endpoint)) for endpoint in self._sockets]
        try:
            await asyncio.gather(*acceptors)
        finally:
            tasks = [*acceptors, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.close()

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()

    async def _accept(self, endpoint: str) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _address = await loop.sock_accept(self._sockets[endpoint])
            sock.setblocking(False)
            self._connections += 1
            connection = Connection(
                Wire(loop, sock) if self._context is None else TlsWire(loop, sock, self._context),
                self._guarded(self._handlers[endpoint]),
                self._recording(endpoint, self._connections),
                self._options.idle_s,
                self._options.linger_s,
            )
            task = asyncio.create_task(connection.serve())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _guarded(self, handler: Handler) -> Handler:
        async def handle(exchange: Exchange) -> None:
            try:
                await handler(exchange)
            except (S3Error, Disconnected, TimeoutError):
                raise
            except Exception:
                _log.exception("sandbox: %s %s failed", exchange.request.method, exchange.request.target)
                if exchange.record.status is not None:
                    exchange.then = "reset"
                    return
                raise S3Error(500, "InternalError", "We encountered an internal error. Please try again.") from None

        return handle

    def _recording(self, endpoint: str, connection: int) -> Callable[[bytes, Request | None], Record]:
        def record(head: bytes, request: Request | None) -> Record:
            made = Record(
                number=self._recorder.next_number(),
                endpoint=endpoint,
                connection=connection,
                head=head,
                method=request.method if request else "",
                target=request.target if request else "",
                version=request.version if request else "",
                headers=request.fields if request else [],
                received_at=time.monotonic(),
            )
            self._recorder.add(made)
            return made

        return record


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as on_error:
        on_error.callback(sock.close)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(512)
        sock.setblocking(False)
        on_error.pop_all()
    return sock


def _url(sock: socket.socket, options: Options) -> str:
    host, port = sock.getsockname()[:2]
    scheme = "https" if options.tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
