"""One seed: a client with random settings, its calls, their peers, and the judgement at the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import socket
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, ClassVar

import engine
import engine.connection
import engine.pool
import engine.request
import engine.tls
from engine import events, exchange
from tests.simulation.loop import START_S, Stuck, VirtualLoop
from tests.simulation.network import CALL, PATTERN, Network, Sender, slices
from tests.simulation.peers import Peers
from tests.simulation.referee import Call, Referee, Secret, Violation

TURNS_MAX = 60_000
TOKEN = "T0kenT0kenT0ken"
FIELDS = [
    ("authorization", "Bearer S3cretS3cret01"),
    ("cookie", "session=S3cretS3cret02"),
    ("x-api-key", "S3cretS3cret03"),
    ("x-amz-s3session-token", "S3cretS3cret04"),
]
CUSTOMER_KEY = b"customer-key-of-thirty-two-bytes"
CUSTOMER_KEY_TEXT = "Y3VzdG9tZXIta2V5LW9mLXRoaXJ0eS10d28tYnl0ZXM="
ADDRESSES = {
    "inner.sim": ["10.0.0.5"],
    "meta.sim": ["169.254.169.254"],
    "mixed.sim": ["10.0.0.6", "93.184.9.9", "fd00::1", "2606:4700::1"],
    "localhost": ["127.0.0.1", "::1"],
    "listed.sim": ["10.3.3.7"],
    "x.below.sim": ["93.184.3.7"],
    "nowhere.invalid": [],
}


def addresses_of(host: str, rng: random.Random) -> list[str]:
    """DNS of the simulated world."""
    if host == "rebinds.sim":
        return [rng.choice(["93.184.8.8", "10.0.0.9", "127.0.0.1"])]
    if host in ADDRESSES:
        return ADDRESSES[host]
    public = f"93.184.{zlib.crc32(host.encode()) % 200}.{zlib.crc32(host.encode()) // 200 % 200 + 10}"
    # S3's own names are trusted whatever they resolve to, as are listed ones.
    return ["52.1.1.7"] if host.endswith(".amazonaws.com") else [public]


class Machine:
    """What stands in for the kernel, for as long as the scenario of `network` runs. Also counts: `steps` are inputs of the
    exchange machine, `turns` passes of the event loop, in each of which at least one thing happens to somebody."""

    network: ClassVar[Any] = None
    rng: ClassVar[random.Random]
    steps: ClassVar[int] = 0
    turns: ClassVar[int] = 0
    rows: ClassVar[set[Any]] = set()


class _Os:
    """`os` of engine.connection."""

    dup = staticmethod(lambda number: Machine.network.duplicate(number))

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


class _Sockets:
    """`socket` of engine.connection and engine.pool."""

    socket = staticmethod(lambda *given, **named: Machine.network.new_socket(*given, **named))

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)


class _Datetime(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=Machine.network.loop.time())


class _Random:
    random = staticmethod(lambda: Machine.rng.random())


class _NumberedConnection(engine.connection.Connection):
    """Sets of connections are walked in the same order in every run."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        Machine.network.connections += 1
        self._number = Machine.network.connections

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


async def _shake_hands(_tls: Any, origin: Any, _sock: Any) -> None:
    await asyncio.sleep(Machine.rng.choice([0.0, 0.01, 0.1]))
    if Machine.rng.random() < 0.02:
        raise engine.ConnectFailed(f"{origin}: no handshake", stage="tls", retryable=Machine.rng.random() < 0.5)


def _send_inline(name: str, *given: Any, **named: Any) -> Any:
    return getattr(Machine.network, name)(*given, **named)


def _counted(receive: Callable[..., Any]) -> Callable[..., Any]:
    def count(self: exchange.Exchange, happened: exchange.Input, now: float, **facts: Any) -> Any:
        Machine.steps += 1
        Machine.rows.add((self.state, happened))
        return receive(self, happened, now, **facts)

    return count


@contextlib.contextmanager
def machine() -> Iterator[None]:
    """Put the simulated kernel under the engine. Everything above `socket`, `os` and the clock is the real thing."""
    real = time.monotonic
    virtual = lambda: Machine.network.loop.time()  # noqa: E731
    inline = {name: partial(_send_inline, name) for name in ("send_file_inline", "send_memory_inline")}
    secured = lambda origin, channel, _session, _tls: _NumberedConnection(origin, channel)  # noqa: E731
    changes: list[tuple[Any, str, Any]] = [
        (engine.connection, "os", _Os()),
        (engine.connection, "socket", _Sockets()),
        (engine.connection, "BodySender", Sender),
        (engine.connection, "send_file_inline", inline["send_file_inline"]),
        (engine.connection, "send_memory_inline", inline["send_memory_inline"]),
        (engine.pool, "socket", _Sockets()),
        (engine.pool, "Connection", _NumberedConnection),
        (engine.pool, "secured", secured),
        (engine.tls.Tls, "connect", _shake_hands),
        (engine.request, "datetime", _Datetime),
        (engine.request, "random", _Random),
        (exchange.Exchange, "receive", _counted(exchange.Exchange.receive)),
    ]
    for name in ("request", "connection", "pool", "client"):
        module = getattr(engine, name)
        assert module.monotonic is real, f"engine.{name} has another clock: tell the simulation of it"
        changes.append((module, "monotonic", virtual))
    before = [(holder, name, vars(holder)[name]) for holder, name, _new in changes]
    for holder, name, new in changes:
        setattr(holder, name, new)
    try:
        yield
    finally:
        for holder, name, old in before:
            setattr(holder, name, old)


_FILE = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the process)
_FILE.write(PATTERN)
_FILE.flush()


class Scenario:
    """What a seed says. `outcomes` counts how the calls ended."""

    def __init__(self, seed: int, *, log: list[str] | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.referee = Referee()
        self.referee.log = log
        self.loop = VirtualLoop(TURNS_MAX)
        self.complaints: list[Any] = []
        self.told: list[str] = []

    def run(self) -> None:
        """Raises Violation, Stuck, or whatever escaped the engine."""
        loop, rng = self.loop, self.rng
        loop.set_exception_handler(lambda _loop, context: self.complaints.append(context))
        network = Network(loop, rng, self.referee, addresses_of, source_faults=rng.choice([0.0, 0.0, 0.01]))
        network.serve = Peers(rng, self.referee, rng.choice([0.0, 0.3, 1.0, 2.0])).serve
        self.referee.now = loop.time
        Machine.network, Machine.rng = network, rng
        try:
            loop.run_until_complete(self._main(network))
        finally:
            Machine.turns += loop.turns
            loop.close()
        if self.complaints:
            raise Violation(f"the loop's exception handler was called: {self.complaints[0]}")

    async def _main(self, network: Network) -> None:
        rng = self.rng
        self._choose_place()
        self.config = self._choose_config()
        client = engine.Client(
            endpoint_url=self.endpoint_url,
            region="us-east-1",
            credentials=engine.Credentials("ACCESSKEY", "S3cretS3cret00", rng.choice([None, TOKEN])),
            config=self.config,
        )
        try:
            calls = [self._choose_call(number) for number in range(rng.choice([1, 1, 2, 3, 5]))]
            if rng.random() < 0.4:
                tasks = [asyncio.ensure_future(self._carry_out(client, call)) for call in calls]
                await asyncio.gather(*tasks)
            else:
                for call in calls:
                    await self._carry_out(client, call)
                    await asyncio.sleep(rng.choice([0, 0, 0.001, 3, 5]))
        finally:
            await client.close()
        await asyncio.sleep(100)
        self._look_for_leftovers(network)
        for peer in network.peers:
            peer.cancel()
        for error in await asyncio.gather(*network.peers, return_exceptions=True):
            if isinstance(error, Exception):
                raise error

    def _look_for_leftovers(self, network: Network) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task(), *network.peers}
        if left:
            raise Violation(f"tasks are left: {left}")
        for link in network.links:
            if not link.client_closed or (link.transport is not None and not link.transport_closed):
                raise Violation(f"a connection to {link.address} is left open")
            if link.job is not None:
                raise Violation("a sender is left running")
        if network.sockets.keys() - {link.transport._sock.fileno() for link in network.links if link.transport}:
            raise Violation("a socket is left open")

    # --- choices -----------------------------------------------------------------------------------------------------

    def _choose_place(self) -> None:
        self.endpoint_url: str | None = self.rng.choice(
            [None, "https://store.sim", "http://store.sim:9000", "http://127.0.0.1:9000", "http://10.1.2.7"]
        )

    def _choose_config(self) -> engine.Config:
        rng = self.rng
        return engine.Config(
            expect=rng.choice(["auto", "auto", "always", "never", "strict"]),
            continue_timeout_s=rng.choice(["auto", "auto", 0, 0.3, 2]),
            response_timeout_s=rng.choice([2.0, 60.0]),
            stall_timeout_s=rng.choice([1.0, 60.0]),
            total_timeout_s=rng.choice([None, None, None, 1.0, 20.0]),
            redirects=engine.RedirectPolicy(
                max_hops=rng.choice([0, 1, 5, 5, 9]),
                hosts=rng.choice([(), (), ("listed.sim", "*.below.sim", "10.0.0.0/8")]),
                allow_downgrade=rng.random() < 0.2,
            ),
            retry=engine.Retry(max_attempts=rng.choice([1, 3, 5]), base_s=rng.choice([0.0, 0.1])),
            max_connections=rng.choice([1, 2, 64]),
            proxy=None,
        )

    def _choose_call(self, number: int) -> Call:
        rng = self.rng
        plain = rng.random() < 0.3
        secrets, query = [Secret("signature", TOKEN)], ""
        if plain:
            base = rng.choice(["http://store.sim", "https://store.sim", "https://evil.sim", "http://127.0.0.1:9000"])
            query = rng.choice(["", "?X-Amz-Signature=5ec7e75ec7e7", "?delegation=5ec7e75ec7e7"])
            url, host, aws = f"{base}/bkt/key{number}{query}", "", False
            secrets = [Secret("query", "5ec7e75ec7e7")] if query else []
        elif self.endpoint_url is None:
            url, host, aws = (
                f"https://bkt.s3.us-east-1.amazonaws.com/key{number}",
                "bkt.s3.us-east-1.amazonaws.com",
                True,
            )
        else:
            host = self.endpoint_url.partition("://")[2].partition(":")[0]
            url, aws = f"{self.endpoint_url}/bkt/key{number}", False
        call = Call(
            number=number,
            method=rng.choice(["PUT"] * 8 + ["GET", "HEAD", "DELETE", "POST" if plain else "PUT"]),
            url=url,
            config=self.config,
            aws=aws,
            endpoint_host=host,
            secrets=secrets,
        )
        self.referee.calls.append(call)
        return call

    def _choose_source(self, call: Call) -> tuple[Any, dict[str, Any]]:
        """A source and the options that go with it."""
        rng = self.rng
        call.size = rng.choice([0, 1, 1000, 60_000, 70_000, 700_000, (1 << 20) + 1, 3_000_000])
        call.offset = rng.randrange(1 << 20)
        kind = rng.choice(["memory", "file", "iterator", "async", "chunked"])
        if kind == "file":
            return _FILE, {"offset": call.offset, "size": call.size}
        if kind == "memory":
            return memoryview(PATTERN)[call.offset : call.offset + call.size], {}
        call.replayable = False
        call.size_known = kind != "chunked"
        pieces = slices(call.offset, call.size, max(rng.choice([1000, 50_000, 1 << 20]), call.size // 20))
        source = pieces if kind != "async" else self._slowly(pieces)
        return source, {"size": call.size if call.size_known else None}

    async def _slowly(self, pieces: Iterator[bytes]) -> Any:
        for piece in pieces:
            await asyncio.sleep(self.rng.choice([0, 0, 0.001, 0.5]))
            yield piece

    def _choose_options(self, call: Call) -> dict[str, Any]:
        rng = self.rng
        options: dict[str, Any] = {"on_event": lambda event: self._hear(call, event)}
        if rng.random() < 0.25:
            name, value = rng.choice(FIELDS)
            if call.endpoint_host and name == "authorization":
                name = "x-secret"
            options["headers"] = {name: value}
            call.secrets.append(Secret("field", value.rpartition("=")[2].rpartition(" ")[2]))
        if rng.random() < 0.1:
            options["sse_customer_key"] = CUSTOMER_KEY
            call.secrets.append(Secret("field", CUSTOMER_KEY_TEXT))
        return options

    # --- one call ----------------------------------------------------------------------------------------------------

    async def _carry_out(self, client: engine.Client, call: Call) -> None:
        CALL.set(call)
        rng = self.rng
        options = self._choose_options(call)
        destination = call.url if not call.endpoint_host else f"s3://bkt/key{call.number}"
        task = asyncio.ensure_future(self._start(client, call, destination, options))
        if rng.random() < 0.1:
            await asyncio.wait([task], timeout=rng.choice([0, 0.0001, 0.01, 0.2, 0.5, 1.2, 2, 5]))
            if rng.random() < 0.9:
                task.cancel()
            else:
                await client.close()
        try:
            result = await task
        except asyncio.CancelledError:
            self._end(call, "cancelled", "")
        except engine.EngineError as error:
            self._end(call, type(error).__name__, f"{error!r} {error} {vars(error)}")
            if not isinstance(error, engine.UsageError) or error.hops:
                self.referee.accounted(call, error.body_bytes_sent, error.hops)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._end(call, "OSError", str(error))
        else:
            self._end(call, "ok", repr(result))
            if isinstance(result, engine.PutResult):
                self.referee.succeeded(call, result.status, result.body_bytes_sent, result.hops)
            elif call.method != "POST":
                self.referee.succeeded(call, call.requests[-1].status, 0, ())

    async def _start(self, client: engine.Client, call: Call, destination: str, options: dict[str, Any]) -> Any:
        if call.method == "PUT":
            source, sized = self._choose_source(call)
            return await client.put(source, destination, checksum=None, **sized, **options)
        if call.method == "GET":
            return await client.get(destination, lambda view: None, **options)
        if call.method == "POST":
            return await client.request("POST", destination, **options)
        return await getattr(client, call.method.lower())(destination, **options)

    def _hear(self, call: Call, event: events.Event) -> None:
        self.told.append(repr(event))
        if isinstance(event, events.Retry):
            call.begins_anew = True

    def _end(self, call: Call, how: str, shown: str) -> None:
        self.outcomes[how] += 1
        self.referee.note(f"call {call.number} {call.method} ended: {how} {shown[:1600]}")
        self.referee.shown(call, shown)
        for text in self.told:
            self.referee.shown(call, text)
        self.told.clear()


def run(seed: int, *, log: list[str] | None = None) -> Scenario:
    """Run one seed under `machine()`. Raises AssertionError that names the seed and how to replay it."""
    scenario = Scenario(seed, log=log)
    try:
        scenario.run()
    except Exception as error:
        raise AssertionError(
            f"seed {seed}: {type(error).__name__}: {error}\nreplay: python -m tests.simulation --seed {seed}"
        ) from error
    return scenario


__all__ = ["START_S", "Machine", "Stuck", "machine", "run"]
