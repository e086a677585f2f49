"""Connections by origin: made, handed out one exchange at a time, reused, and closed when idle, unwanted or spoilt.

Owns name resolution and the TCP handshake too (RFC 8305: addresses of both families raced, 250 ms apart), and has `tls` do its
handshake on https origins. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import NamedTuple

from engine import limits
from engine._fastparse import ParseError, ResponseParser
from engine.connection import Channel, Connection
from engine.errors import ConnectFailed, ConnectTimedOut, UsageError
from engine.exchange import Fate
from engine.proxy import Proxy
from engine.tls import Tls
from engine.tls_connection import secured
from engine.wire import Origin, printable, request_head

AddressCheck = Callable[[str], bool]  # whether a resolved numeric address may be connected to
_SockAddr = tuple[int, tuple[str, int] | tuple[str, int, int, int]]


_CLOSED = "the client is closed"


class AddressRefused(Exception):
    """No address of a host passed the caller's check; `address` is the first of them."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address


class Acquired(NamedTuple):
    """A connection and what it took to have it. Seconds; 0 when it was reused."""

    connection: Connection
    reused: bool
    addresses: tuple[str, ...]
    resolve_s: float
    connect_s: float
    tls_s: float


class Pool:
    """At most `max_connections` at once, idle ones included; who comes when all are in use waits in line.

    All calls on the loop the pool was made on. After a fork the child must make a new one: see `forget`.
    """

    def __init__(self, *, max_connections: int, max_idle_s: float, tls: Tls | None = None) -> None:
        self._max_connections = max_connections
        self._max_idle_s = max_idle_s
        self._tls = tls or Tls(None)  # of the pool's one client: all connections to an origin are verified the same way
        self._channel = Channel(asyncio.get_running_loop())
        self._idle: dict[Origin, list[tuple[float, Connection]]] = {}
        self._open: set[Connection] = set()
        self._leaving: set[Connection] = set()  # closed by us, and not yet by the loop
        self._opening = 0
        self._connecting: set[asyncio.Task[Acquired]] = set()
        self._adopting: set[asyncio.Task[Connection]] = set()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    # --- handing out -----------------------------------------------------------------------------------------------

    async def acquire(
        self,
        origin: Origin,
        *,
        connect_timeout_s: float,
        check: AddressCheck | None = None,
        fresh: bool = False,
        tunnel: Proxy | None = None,
    ) -> Acquired:
        """A connection to `origin`, reused when an idle one is there (unless `fresh`). `tunnel`: the proxy it leads through.

        Raises ConnectFailed, ConnectTimedOut, AddressRefused, and UsageError when the pool is closed.
        """
        our_turn = False
        while True:
            if self._closed:
                raise UsageError(_CLOSED)
            if our_turn or not self._waiters:
                if not fresh and (connection := self._take_idle(origin, check)) is not None:
                    self._next_in_line()  # there may be more than what woke us
                    return Acquired(connection, True, (connection.address,), 0.0, 0.0, 0.0)
                if len(self._open) + self._opening < self._max_connections or self._evict_idle():
                    return await self._open_one(origin, connect_timeout_s, check, tunnel)
            await self._wait_in_line(first=our_turn)
            our_turn = True

    def release(self, connection: Connection, fate: Fate) -> None:
        """Give back what `acquire` gave, with the fate that the exchange decided."""
        if self._closed:
            connection.close(reset=fate is Fate.RESET)
        elif connection.finish(fate):
            self._idle.setdefault(connection.origin, []).append((monotonic(), connection))
            self._schedule_sweep()
        self._next_in_line()

    def _take_idle(self, origin: Origin, check: AddressCheck | None) -> Connection | None:
        """The most recently used one: the older ones get a chance to grow old and be closed."""
        idle = self._idle.get(origin)
        while idle:
            since, connection = idle.pop()
            if not connection.usable:
                continue
            if monotonic() - since > self._max_idle_s or (check is not None and not check(connection.address)):
                connection.close()
                continue
            return connection
        return None

    def _evict_idle(self) -> bool:
        """Close the idle connection that was used longest ago, to make room for another origin."""
        oldest = (
            min((pile[0][0], origin) for origin, pile in self._idle.items() if pile)
            if any(self._idle.values())
            else None
        )
        if oldest is None:
            return False
        _since, connection = self._idle[oldest[1]].pop(0)
        connection.close()
        return True

    async def _wait_in_line(self, *, first: bool) -> None:
        """Until something has become free. Who was woken for nothing keeps the `first` place."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._waiters.appendleft if first else self._waiters.append)(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._next_in_line()  # it was our turn: pass it on
            raise
        finally:
            self._waiters.remove(turn)  # only now: nobody overtakes who was woken and has not run yet

    def _next_in_line(self) -> None:
        room = len(self._open) + self._opening < self._max_connections or any(self._idle.values())
        if not (room or self._closed):
            return  # who is woken for nothing has to queue again, and several who do change places
        for turn in self._waiters:
            if not turn.done():
                turn.set_result(None)
                return

    # --- closing ---------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Close everything; running exchanges end with ConnectionLost. Returns when the loop has let go of the descriptors."""
        if self._closed:
            return
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connecting in self._connecting:
            connecting.cancel()
        everything = list(self._open)
        for connection in everything:
            connection.abort(_CLOSED)
        for turn in self._waiters:
            if not turn.done():
                turn.set_result(None)
        try:
            goodbyes = [asyncio.ensure_future(connection.wait_closed()) for connection in [*everything, *self._leaving]]
            if pending := {*goodbyes, *self._connecting, *self._adopting}:
                await asyncio.wait(pending, timeout=limits.CLOSE_GRACE_S)
        finally:
            for goodbye in goodbyes:
                goodbye.cancel()
            self._channel.close()

    def _discard(self, connection: Connection) -> None:
        (self._leaving.discard if connection.is_lost else self._leaving.add)(connection)
        if connection in self._open:
            self._open.discard(connection)
            pile = self._idle.get(connection.origin)
            if pile is not None:
                pile[:] = [entry for entry in pile if entry[1] is not connection]
            self._next_in_line()

    def _schedule_sweep(self) -> None:
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._max_idle_s, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        now, left = monotonic(), False
        for origin in list(self._idle):
            for since, connection in list(self._idle[origin]):
                if now - since >= self._max_idle_s:
                    connection.close()
            left = left or bool(self._idle[origin])
            if not self._idle[origin]:
                del self._idle[origin]
        if left:
            self._schedule_sweep()

    # --- making ----------------------------------------------------------------------------------------------------

    async def _open_one(
        self, origin: Origin, timeout_s: float, check: AddressCheck | None, tunnel: Proxy | None
    ) -> Acquired:
        self._opening += 1
        self._next_in_line()  # there may be more room than what woke us
        connecting = asyncio.ensure_future(self._connect(origin, check, tunnel))
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)
        try:
            # Not wait_for: before Python 3.12 it loses the result when a cancellation crosses with it.
            await asyncio.wait([connecting], timeout=timeout_s)
            if self._closed:
                connecting.cancel()
                connecting.add_done_callback(self._close_late)
                raise UsageError(_CLOSED)
            if connecting.done():
                return connecting.result()
            connecting.cancel()
            connecting.add_done_callback(self._close_late)
        except asyncio.CancelledError:
            connecting.cancel()
            connecting.add_done_callback(self._close_late)
            raise
        finally:
            self._opening -= 1
            self._next_in_line()
        raise ConnectTimedOut(f"{origin}: no connection within {timeout_s:g} s", limit_s=timeout_s, stage="connect")

    def _close_late(self, connecting: asyncio.Task[Acquired]) -> None:
        """A connection that came about after nobody waited for it any more."""
        if not connecting.cancelled() and connecting.exception() is None:
            connecting.result().connection.close()

    async def _connect(self, origin: Origin, check: AddressCheck | None, tunnel: Proxy | None) -> Acquired:
        began = monotonic()
        dialled = origin if tunnel is None else tunnel.origin
        addresses = await resolve(dialled)
        resolved = monotonic()
        if check is not None:
            allowed = [address for address in addresses if check(address[1][0])]
            if not allowed:
                raise AddressRefused(addresses[0][1][0])
            addresses = allowed
        connected = await _race(dialled, addresses)
        done = monotonic()
        try:
            address = str(connected.getpeername()[0])
        except OSError:  # reset already
            address = addresses[0][1][0]
        make: Callable[[], Connection] = partial(Connection, origin, self._channel)
        if origin.scheme == "https":
            try:
                if tunnel is not None:
                    await _dig(origin, tunnel, connected)
                session = await self._tls.connect(origin, connected)
            except BaseException:
                connected.close()
                raise
            make = partial(secured, origin, self._channel, session, self._tls)
        tls_s = monotonic() - done
        # The socket is the transport's from here on: a cancellation waits until there is a connection that can be closed.
        adopting = asyncio.ensure_future(_adopt(origin, make, connected))
        self._adopting.add(adopting)
        adopting.add_done_callback(self._adopting.discard)
        try:
            connection = await asyncio.shield(adopting)
        except asyncio.CancelledError:
            adopting.add_done_callback(_close_adopted)
            raise
        connection.address = address
        connection.connect_s = done - resolved
        if connection.usable:
            connection.on_unusable = self._discard
            self._open.add(connection)
        names = tuple(address[1][0] for address in addresses)
        return Acquired(connection, False, names, resolved - began, done - resolved, tls_s)


async def _adopt(origin: Origin, make: Callable[[], Connection], connected: socket.socket) -> Connection:
    """Make a transport of a connected socket. Raises ConnectFailed."""
    try:
        _transport, connection = await asyncio.get_running_loop().create_connection(make, sock=connected)
    except OSError as error:
        connected.close()
        raise _connect_failed(origin, error) from None
    if connection.is_lost:
        # A peer that resets at once. uvloop closed the descriptor before it had taken the socket object over, which
        # would close the same number again, then somebody else's (as MagicStack/uvloop#645 and #738).
        connected.detach()
    if connection.flaw is not None:
        raise _connect_failed(origin, connection.flaw)
    return connection


async def resolve(origin: Origin) -> list[_SockAddr]:
    """Numeric addresses of `origin.host`, families alternating (RFC 8305 section 4). Raises ConnectFailed."""
    with contextlib.suppress(ValueError):
        literal = ipaddress.ip_address(origin.host)
        if literal.version == 6:
            return [(socket.AF_INET6, (origin.host, origin.port, 0, 0))]
        return [(socket.AF_INET, (origin.host, origin.port))]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        again = error.errno == socket.EAI_AGAIN
        raise ConnectFailed(
            f"{origin.host}: the name cannot be resolved ({error.strerror}); check the spelling of the endpoint or the bucket",
            errno=error.errno,
            stage="resolve",
            retryable=again,
        ) from None
    by_family: dict[int, list[_SockAddr]] = {}
    for family, _type, _protocol, _name, address in found:
        if family in (socket.AF_INET, socket.AF_INET6):
            by_family.setdefault(family, []).append((int(family), address))  # type: ignore[arg-type]
    ordered: list[_SockAddr] = []
    piles = list(by_family.values())
    while any(piles):
        ordered += [pile.pop(0) for pile in piles if pile]
    if not ordered:
        raise ConnectFailed(f"{origin.host}: the name has no address", stage="resolve", retryable=False)
    return ordered


async def _dig(origin: Origin, proxy: Proxy, connected: socket.socket) -> None:
    """Have a proxy make a tunnel to `origin` of a connection to it (RFC 9110 section 9.3.6). Raises ConnectFailed."""
    loop, parser = asyncio.get_running_loop(), ResponseParser()
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    authority = f"{host}:{origin.port}"
    parser.expect("CONNECT")
    try:
        await loop.sock_sendall(connected, request_head("CONNECT", authority, [("host", authority), *proxy.fields]))
        while parser.response is None:
            data = await loop.sock_recv(connected, 1)  # what is behind the head is for the TLS session
            if data:
                parser.feed(data)
            else:
                parser.feed_eof()
    except ParseError as error:
        raise ConnectFailed(
            f"{origin}: the proxy {proxy.origin} gives no HTTP answer to CONNECT ({error.kind})",
            stage="connect",
            retryable=error.kind == "unexpected-eof",
        ) from None
    except OSError as error:
        raise _connect_failed(proxy.origin, error) from None
    status = parser.response.status
    if not 200 <= status < 300:
        hint = "; give it as http://user:password@host:port" if status == 407 else ""
        raise ConnectFailed(
            f"{origin}: the proxy {proxy.origin} makes no tunnel ({status} {printable(parser.response.reason, 60)}{hint})",
            stage="connect",
            retryable=status in (502, 503, 504),
        )


async def _race(origin: Origin, addresses: list[_SockAddr]) -> socket.socket:
    """The first connected socket; the next address is tried when one fails, or after HAPPY_EYEBALLS_DELAY_S."""
    if len(addresses) == 1:
        try:
            return await _dial(addresses[0])
        except OSError as error:
            raise _connect_failed(origin, error) from None
    running: set[asyncio.Task[socket.socket]] = set()
    waiting, last_error = list(addresses), OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
    try:
        while waiting or running:
            if waiting:
                running.add(asyncio.ensure_future(_dial(waiting.pop(0))))
            delay = limits.HAPPY_EYEBALLS_DELAY_S if waiting else None
            done, running = await asyncio.wait(running, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            winners = [task.result() for task in done if task.exception() is None]
            for loser in winners[1:]:
                loser.close()
            if winners:
                return winners[0]
            for task in done:
                failed = task.exception()
                if not isinstance(failed, OSError):
                    raise failed or AssertionError
                last_error = failed
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_close_late_winner)
    raise _connect_failed(origin, last_error)


def _close_adopted(adopting: asyncio.Task[Connection]) -> None:
    if not adopting.cancelled() and adopting.exception() is None:
        adopting.result().close(reset=True)


def _close_late_winner(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _connect_failed(origin: Origin, error: OSError) -> ConnectFailed:
    name = errno.errorcode.get(error.errno or 0, "")
    hint = {
        errno.ECONNREFUSED: "nothing listens there; check the port of the endpoint",
        errno.ENETUNREACH: "there is no route; check the network or a proxy",
        errno.EHOSTUNREACH: "there is no route; check the network or a proxy",
    }.get(error.errno or 0, error.strerror or str(error))
    return ConnectFailed(f"{origin}: no connection ({name}: {hint})", errno=error.errno, stage="connect")


async def _dial(address: _SockAddr) -> socket.socket:
    family, target = address
    dialled = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Bounds what is queued unsent, and so what an early refusal wastes; never SO_SNDBUF, which ends autotuning.
        dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, limits.NOTSENT_LOWAT_BYTES)
        await asyncio.get_running_loop().sock_connect(dialled, target)
    except BaseException:
        dialled.close()
        raise
    return dialled
