# ruff: noqa: ASYNC110, ASYNC220, ASYNC240 (the state of a connection is polled; the proxy is started once)
"""A TCP proxy that breaks connections on order, in a process of its own: what stands between the engine and the sandbox.

Owns the sockets on both sides, where exactly in which direction a fault strikes, and the account of what passed. Never makes
up, changes, repeats or reorders a byte: it forwards, holds back, or ends. Over TLS it sees records, so offsets there count in
the encrypted stream; on plain TCP it finds the heads, so a fault can be placed against the head, the body or the answer.

A *lane* is a pair of listening ports, one for each endpoint of the sandbox. One case at a time uses a lane: it is armed with a
`Strike`, the case runs, and the report tells of every connection what its client sent and how it ended. A report waits until
the client has closed all of them: a connection that is left behind shows here.

    python -m tests.breaking_proxy FD     JSON lines over the socket FD: see `Control`
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import random
import re
import socket
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop

PIECE_BYTES: Final = 64 << 10
LOOK_S: Final = 0.005  # how often a stalled connection looks whether its client is still there
CONNECT_S: Final = 10.0
LINGER_ZERO: Final = struct.pack("ii", 1, 0)
ESTABLISHED, CLOSED = 1, 7  # TCP_INFO's tcpi_state (linux/tcp_states.h)

KINDS: Final = ("cut", "reset", "stall", "delay", "trickle")
# Where an offset counts from. Of what the client sends: the request's start, the end of its head, of its body. Of what it
# receives: the start of the answer's first head (a 1xx, if there is one), the start and the end of the final head.
ANCHORS: Final = {"server": ("start", "head", "body"), "client": ("start", "final", "content")}


@dataclass(frozen=True)
class Strike:
    """One fault.

    Attributes:
      kind: of KINDS. "cut" ends both streams (FIN), "reset" both connections (RST), "stall" forwards nothing more in its
        direction (or in both), "delay" does so for `seconds`, "trickle" forwards the next `count` bytes one by one.
      toward: "server" or "client", the direction whose bytes are counted.
      anchor, offset: where, see ANCHORS; over TLS only "start".
      eager: strikes when the byte before has been forwarded, else when the byte there has come.
      connection: which of the case's connections, from 0; with `again`, it and each one after it.
    """

    kind: str
    toward: str = "server"
    anchor: str = "start"
    offset: int = 0
    eager: bool = True
    both: bool = False
    seconds: float = 0.0
    count: int = 0
    connection: int = 0
    again: bool = False


@dataclass
class Request:
    """What the client sent as one request of a plain connection."""

    line: str
    length: int  # of the body as its head announces it, -1 for a chunked one
    asks: bool
    body: int = 0  # bytes of it that came
    unasked: bool = False  # some of it came before a go-ahead had been forwarded


@dataclass
class Told:
    """A connection as the report tells of it. `ended`: "closed" or "reset" by the client, "struck" (reset by the fault),
    "refused" (the server was not there), "open" (left behind)."""

    number: int
    endpoint: int
    port: int  # the client's
    received: int = 0  # from the client
    forwarded: int = 0  # to the client
    struck: bool = False
    ended: str = "open"
    requests: list[Request] = field(default_factory=list)


class RequestReader:
    """Follows the requests of a plain connection: marks where heads and bodies end."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._head = bytearray()
        self._left = 0
        self.marks: dict[str, int] = {"start": 0}
        self.position = 0
        self.may_send = False  # a go-ahead was forwarded for the present request

    def restart(self) -> None:
        """The next request is the one that counts."""
        self.marks = {"start": self.position}
        self._head.clear()
        self._left = 0

    def feed(self, data: memoryview) -> None:
        while data:
            if self._left:
                request = self._told.requests[-1]
                taken = len(data) if self._left < 0 else min(len(data), self._left)
                request.unasked = request.unasked or (request.asks and not self.may_send)
                request.body += taken
                self._left -= taken if self._left > 0 else 0
                self.position += taken
                data = data[taken:]
                continue
            before = len(self._head)
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                self.position += len(data)
                return
            taken = end + 4 - before
            self.position += taken
            data = data[taken:]
            self._begin(bytes(self._head[: end + 4]))
            self._head.clear()

    def _begin(self, head: bytes) -> None:
        fields = head.lower()
        found = re.search(rb"\r\ncontent-length: (\d+)\r\n", fields)
        chunked = b"\r\ntransfer-encoding: chunked\r\n" in fields
        length = -1 if chunked else int(found[1]) if found else 0
        asks = b"\r\nexpect: 100-continue\r\n" in fields
        self._told.requests.append(Request(head.split(b"\r\n", 1)[0].decode("latin-1"), length, asks))
        self._left, self.may_send = length, False
        if "head" not in self.marks:
            self.marks["head"] = self.position
            if length >= 0:
                self.marks["body"] = self.position + length


class AnswerReader:
    """Follows the answers of a plain connection, up to the end of the first final head."""

    def __init__(self) -> None:
        self._head = bytearray()
        self.marks: dict[str, int] = {"start": 0}
        self.position = 0
        self.continued_at: int | None = None  # where a 100 ends

    def restart(self) -> None:
        self.marks = {"start": self.position}
        self.continued_at = None
        self._head.clear()

    def feed(self, data: memoryview) -> None:
        if "content" in self.marks:
            self.position += len(data)
            return
        began = self.position - len(self._head)
        self._head += data
        self.position += len(data)
        while len(self._head) >= 10 and "content" not in self.marks:
            interim = self._head[9:10] == b"1"
            if not interim:
                self.marks["final"] = began
            end = self._head.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            if not interim:
                self.marks["content"] = began + end
            elif self._head[9:12] == b"100":
                self.continued_at = began + end
            began += end
            del self._head[:end]


class Struck(Exception):
    """The fault is a reset."""


class Side:
    """One direction: what has been forwarded, and where the fault is."""

    def __init__(self, name: str, source: socket.socket, sink: socket.socket, reader: Any) -> None:
        self.name = name
        self.source = source
        self.sink = sink
        self.reader = reader  # None over TLS
        self.seen = 0
        self.forwarded = 0
        self.origin = 0  # `seen` when the lane was armed
        self.trickle = 0

    def place(self, strike: Strike) -> int | None:
        """Where in the stream the fault is; None when that is not known yet."""
        marks = {"start": self.origin} if self.reader is None else self.reader.marks
        return None if strike.anchor not in marks else max(self.origin, marks[strike.anchor] + strike.offset)

    def restart(self) -> None:
        self.origin = self.seen
        if self.reader is not None:
            self.reader.restart()


class Relayed:
    """A connection and its two pumps."""

    def __init__(self, lane: Lane, client: socket.socket, told: Told, strike: Strike | None) -> None:
        self.lane = lane
        self.client = client
        self.told = told
        self.strike = strike
        self.server: socket.socket | None = None
        self.up: Side | None = None
        self.down: Side | None = None
        self._dropping = False
        self._stalled = False

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self.server = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        pumps: list[asyncio.Task[None]] = []
        try:
            await asyncio.wait_for(loop.sock_connect(self.server, self.lane.upstreams[self.told.endpoint]), CONNECT_S)
            for each in (self.client, self.server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain = self.lane.plain
            self.up = Side("server", self.client, self.server, RequestReader(self.told) if plain else None)
            self.down = Side("client", self.server, self.client, AnswerReader() if plain else None)
            pumps = [asyncio.create_task(self._pump(side)) for side in (self.up, self.down)]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
            for pump in pumps:
                if pump.done():
                    pump.result()
        except (Struck, OSError, asyncio.TimeoutError) as error:
            if self.told.ended == "open":
                self.told.ended = "struck" if isinstance(error, Struck) else "refused" if self.up is None else "reset"
            for each in (self.client, self.server):
                with contextlib.suppress(OSError):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self.client.close()
            self.server.close()

    async def _pump(self, side: Side) -> None:
        loop, buffer = asyncio.get_running_loop(), memoryview(bytearray(PIECE_BYTES))
        await self._maybe_strike(side, None)
        while True:
            count = await loop.sock_recv_into(side.source, buffer)
            if not count:
                break
            data = buffer[:count]
            side.seen += count
            if side.name == "server":
                self.told.received += count
            if side.reader is not None:
                side.reader.feed(data)
            while data and not self._dropping:
                await self._wait_while_stalled()
                data = await self._forward_some(side, data)
        if side.name == "server":
            self.told.ended = "closed"
        if not self._dropping:
            with contextlib.suppress(OSError):
                side.sink.shutdown(socket.SHUT_WR)

    async def _forward_some(self, side: Side, data: memoryview) -> memoryview:
        """Forward up to where the fault is, and let it happen. Returns what is left."""
        left = None if self.strike is None else self._distance(side)
        if left == 0:
            await self._maybe_strike(side, data)
            return data
        count = len(data) if left is None else min(left, len(data))
        if side.trickle:
            count = 1
            side.trickle -= 1
            await asyncio.sleep(0)
        await self._send(side, data[:count])
        await self._maybe_strike(side, None)
        return data[count:]

    async def _send(self, side: Side, data: memoryview) -> None:
        side.forwarded += len(data)
        if side.name == "client":
            self.told.forwarded += len(data)
            reader = side.reader
            if reader is not None and reader.continued_at is not None and side.forwarded >= reader.continued_at:
                assert self.up is not None
                self.up.reader.may_send = True
        await asyncio.get_running_loop().sock_sendall(side.sink, data)

    def _distance(self, side: Side) -> int | None:
        """Bytes to forward before the fault; None when it is not in this direction, or behind."""
        strike = self.strike
        if strike is None or strike.toward != side.name:
            return None
        place = side.place(strike)
        return None if place is None else max(0, place - side.forwarded)

    async def _maybe_strike(self, side: Side, data: memoryview | None) -> None:
        """`data`: what has come behind the bytes that were forwarded; None when nothing has."""
        strike = self.strike
        if strike is None or self._distance(side) != 0 or (data is None and not strike.eager):
            return
        self.strike = None
        self.told.struck = True
        if strike.kind == "reset":
            raise Struck
        if strike.kind == "cut":
            self._dropping = True
            for each in (self.client, self.server):
                assert each is not None
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_WR)
        elif strike.kind == "stall":
            self._stalled = strike.both
            await self._until_client_left()
        elif strike.kind == "delay":
            await asyncio.sleep(strike.seconds)
        else:
            side.trickle = strike.count

    async def _wait_while_stalled(self) -> None:
        if self._stalled:
            await self._until_client_left()

    async def _until_client_left(self) -> None:
        """Nothing is read from the client meanwhile, so its end is seen in the state of the connection."""
        while (state := self.client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]) == ESTABLISHED:
            await asyncio.sleep(LOOK_S)
        self.told.ended = "reset" if state == CLOSED else "closed"
        raise Struck


class Lane:
    """Two listening ports and the connections of the case that has them.

    With a `chance`, one of that many connections suffers what the dice say, for ever, and only totals are kept.
    """

    def __init__(self, upstreams: list[tuple[str, int]], *, plain: bool, chance: int = 0) -> None:
        self.upstreams = upstreams
        self.plain = plain
        self.strike: Strike | None = None
        self.totals: collections.Counter[str] = collections.Counter()
        self._chance = chance
        self._dice = random.Random(chance)
        self.connections: list[tuple[Relayed, asyncio.Task[None]]] = []
        self.listeners = [socket.create_server(("127.0.0.1", 0), backlog=64) for _ in upstreams]
        for listener in self.listeners:
            listener.setblocking(False)

    @property
    def ports(self) -> list[int]:
        return [listener.getsockname()[1] for listener in self.listeners]

    async def accept(self, endpoint: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, peer = await loop.sock_accept(self.listeners[endpoint])
            client.setblocking(False)
            number = len(self.connections)
            told = Told(number, endpoint, peer[1])
            relayed = Relayed(self, client, told, self._strike_for(number))
            self.connections.append((relayed, asyncio.create_task(relayed.run())))
            if self._chance:
                self._count_those_that_ended()

    def _count_those_that_ended(self) -> None:
        for relayed, task in self.connections:
            if task.done():
                told = relayed.told
                self.totals.update({"connections": 1, "bytes": told.received, "faults": told.struck})
        self.connections = [each for each in self.connections if not each[1].done()]

    def _strike_for(self, number: int) -> Strike | None:
        if self._chance:
            dice = self._dice
            if dice.randrange(self._chance):
                return None
            kind, toward = dice.choices(KINDS, (4, 4, 1, 2, 2))[0], dice.choice(("server", "client"))
            # A connection carries several requests, most of what is sent is body: so small and large places alike.
            place = int(2 ** dice.uniform(0, 23 if toward == "server" else 13))
            return Strike(kind, toward, "start", place, dice.random() < 0.5, dice.random() < 0.5, 0.05, 200)
        strike = self.strike
        if strike is None:
            return None
        return strike if number == strike.connection or (strike.again and number > strike.connection) else None

    def arm(self, strike: Strike | None, *, keep: bool) -> None:
        """`keep`: the connections that are there are the first of the case, and count from here."""
        self.strike = strike
        if not keep:
            assert all(task.done() for _relayed, task in self.connections), "the lane is in use"
            self.connections.clear()
            return
        self.connections = [each for each in self.connections if not each[1].done()]
        for number, (relayed, _task) in enumerate(self.connections):
            told = relayed.told
            told.number, told.received, told.forwarded, told.requests[:] = number, 0, 0, []
            relayed.strike = self._strike_for(number)
            for side in (relayed.up, relayed.down):
                assert side is not None
                side.restart()

    def disarm(self) -> None:
        """From here on nothing happens that has not begun."""
        self.strike = None
        for relayed, _task in self.connections:
            relayed.strike = None

    async def report(self, timeout_s: float) -> list[dict[str, Any]]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not all(r.told.ended != "open" for r, _task in self.connections):
            await asyncio.sleep(LOOK_S)
        tasks = [task for _relayed, task in self.connections]
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return [asdict(relayed.told) for relayed, _task in self.connections]


async def serve(fd: int) -> None:
    """The child: answers what `Control` asks."""
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd), limit=1 << 20)
    options = json.loads(await reader.readline())
    upstreams = [(host, port) for host, port in options["upstreams"]]
    lanes = [Lane(upstreams, plain=options["plain"], chance=options["chance"]) for _ in range(options["lanes"])]
    background = {asyncio.create_task(lane.accept(endpoint)) for lane in lanes for endpoint in range(len(upstreams))}

    def say(answer: object) -> None:
        writer.write(json.dumps(answer).encode() + b"\n")

    async def tell(number: int, lane: Lane, timeout_s: float) -> None:
        say([number, await lane.report(timeout_s)])

    say([lane.ports for lane in lanes])
    while line := await reader.readline():
        number, lane, verb, argument = json.loads(line)
        if verb == "report":
            task = asyncio.create_task(tell(number, lanes[lane], argument))
            background.add(task)
            task.add_done_callback(background.discard)
            continue
        if verb == "totals":
            say([number, lanes[lane].totals])
            continue
        if verb == "disarm":
            lanes[lane].disarm()
        else:
            lanes[lane].arm(None if argument is None else Strike(**argument), keep=verb == "rearm")
        say([number, None])


class Control:
    """The parent's side. `ports[lane]` are the ports in front of each upstream. Belongs to the loop it was started on."""

    def __init__(self, child: subprocess.Popen[bytes], stream: socket.socket) -> None:
        self._child = child
        self._stream = stream
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._asked = 0
        self.ports: list[list[int]] = []

    @classmethod
    async def start(cls, upstreams: list[tuple[str, int]], lanes: int, *, plain: bool, chance: int = 0) -> Control:
        """`chance`: one connection of so many is broken at random; 0 breaks what `arm` says."""
        ours, theirs = socket.socketpair()
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.breaking_proxy", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).resolve().parent.parent,
        )
        theirs.close()
        control = cls(child, ours)
        control._reader, control._writer = await asyncio.open_connection(sock=ours, limit=1 << 24)
        control._say({"upstreams": upstreams, "lanes": lanes, "plain": plain, "chance": chance})
        control.ports = json.loads(await control._reader.readline())
        control._listening = asyncio.create_task(control._listen())
        return control

    async def arm(self, lane: int, strike: Strike | None, *, keep: bool = False) -> None:
        """What the lane's connections are to suffer from here on. `keep`: also those that are open already."""
        await self._ask(lane, "rearm" if keep else "arm", None if strike is None else asdict(strike))

    async def disarm(self, lane: int) -> None:
        """No more faults for the case that runs."""
        await self._ask(lane, "disarm", None)

    async def totals(self, lane: int) -> dict[str, int]:
        """With a `chance`: "connections" that ended, "bytes" received of clients, "faults"."""
        return dict(await self._ask(lane, "totals", None))

    async def report(self, lane: int, timeout_s: float = 10.0) -> list[Told]:
        """What became of the lane's connections, once the client has closed them all, or after the timeout."""
        answer = await self._ask(lane, "report", timeout_s)
        return [Told(**{**told, "requests": [Request(**each) for each in told["requests"]]}) for told in answer]

    async def close(self) -> None:
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        await asyncio.to_thread(self._child.wait)

    def _say(self, question: object) -> None:
        self._writer.write(json.dumps(question).encode() + b"\n")

    async def _ask(self, lane: int, verb: str, argument: object) -> Any:
        self._asked += 1
        answer = self._waiting[self._asked] = asyncio.get_running_loop().create_future()
        self._say([self._asked, lane, verb, argument])
        return await answer

    async def _listen(self) -> None:
        while line := await self._reader.readline():
            number, answer = json.loads(line)
            self._waiting.pop(number).set_result(answer)
        for waiting in self._waiting.values():
            waiting.set_exception(RuntimeError("the proxy's process ended; what it said is on stderr"))


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
