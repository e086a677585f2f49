"""Servers of the simulation: most do as they should, with odd answers in between; some do anything."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from tests.simulation.network import Link, Request

Mark = tuple[int, str, int, bool]
REGIONS = ["us-east-1", "us-west-2", "eu-west-1", "eu-central-1", "evil.com/", "nowhere-9"]
HOSTS = [
    "store.sim",
    "node.store.sim",
    "a.b.store.sim",
    "other.sim",
    "store.sim.evil.sim",
    "evil.sim",
    "listed.sim",
    "x.below.sim",
    "inner.sim",
    "mixed.sim",
    "rebinds.sim",
    "meta.sim",
    "nowhere.invalid",
    "10.1.2.7",
    "192.168.3.4",
    "169.254.169.254",
    "127.0.0.1",
    "127.0.0.1:9000",
    "localhost",
    "[::1]",
    "[::ffff:10.1.2.7]",
    "93.184.5.5",
    "bkt.s3.us-west-2.amazonaws.com",
    "s3.eu-west-1.amazonaws.com",
    "bkt.s3.dualstack.eu-west-1.amazonaws.com",
    "bkt.s3.eu-central-1.amazonaws.com:8443",
    "evil.s3.us-west-2.amazonaws.com",
    "evil.us-east-1.elb.amazonaws.com",
    "0x7f.1",
    "127.1",
    "2130706433",
    "STORE.SIM.",
    "store.sim:443",
    "user:pw@evil.sim",
    "store.sim@evil.sim",
    "store.sim%2eevil.sim",
    "st\xf6re.sim",
]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + bytes(100)
UNASKED = b"HTTP/1.1 200 Nobody\r\nContent-Length: 0\r\n\r\n"


def interim(status: int) -> tuple[bytes, list[Mark]]:
    data = b"HTTP/1.1 %d Interim\r\n%s\r\n" % (status, b"Link: </x>\r\n" if status == 103 else b"")
    return data, [(len(data), "continue" if status == 100 else "interim", status, True)]


def final(
    rng: random.Random, request: Request, status: int, fields: list[str], body: bytes
) -> tuple[bytes, list[Mark], bool]:
    """An answer, its marks, and whether the connection ends with it."""
    version = "1.0" if rng.random() < 0.03 else "1.1"
    keeps_alive = version == "1.1" and rng.random() < 0.85
    framing = rng.choices(["length", "chunked", "close"], [8, 2, 1])[0] if version == "1.1" else "close"
    empty = request.method == "HEAD" or status in (204, 304)
    if framing == "close":
        keeps_alive = False
    lines = [f"HTTP/{version} {status} Words", *fields]
    if not keeps_alive and version == "1.1":
        lines.append("Connection: close")
    if framing == "length" and status != 204:
        lines.append(f"Content-Length: {len(body)}")
    elif framing == "chunked" and not empty:
        lines.append("Transfer-Encoding: chunked")
        body = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    data = head if empty else head + body
    at_end = framing == "close" and not empty
    marks: list[Mark] = [(len(head), "final", status, keeps_alive)]
    marks.append((len(data), "done-at-end" if at_end else "done", status, keeps_alive))
    return data, marks, not keeps_alive or rng.random() < 0.03


class Peers:
    """What a scenario's servers do. `referee` is told of answers that change what may be asked."""

    def __init__(self, rng: random.Random, referee: Any, wildness: float) -> None:
        self._rng = rng
        self._referee = referee
        self._wildness = wildness
        # Now and then all servers of the world say the same for ever: what does not count its steps will not end.
        self._mood = rng.choices([0, 503, 307], [20, 1, 1])[0]

    async def serve(self, link: Link) -> None:
        rng = self._rng
        await asyncio.sleep(rng.choice([0.0, 0.0, 0.001, 0.2]))
        if rng.random() < 0.02 * self._wildness:
            link.send(UNASKED, (len(UNASKED), "final", 200, True), (len(UNASKED), "done", 200, True))
        if rng.random() < 0.02 * self._wildness:
            rng.choice([link.reset, link.close])()
            return
        if rng.random() < 0.1 * self._wildness:
            await self._speak_before_reading(link)
        if rng.random() < 1 - 0.03 * self._wildness:
            link.read_on()
        while (request := await link.next_request()) is not None:
            ways: list[Callable[[Link, Request], Coroutine[Any, Any, bool]]] = [
                self._store,
                self._refuse,
                self._go_on_and_refuse,
                self._refuse_in_mid_body,
                self._do_nothing,
                self._die,
                self._do_anything,
            ]
            wild = self._wildness
            way = rng.choices(ways, [12, 6, 3, 3, 0.5 * wild, 1.5 * wild, 2 * wild])[0]
            if not await way(link, request):
                break
            if rng.random() < 0.03 * self._wildness:
                await self._pause()
                link.send(UNASKED, (len(UNASKED), "final", 200, True), (len(UNASKED), "done", 200, True))

    async def _speak_before_reading(self, link: Link) -> None:
        link.window = 100  # less than any head
        for _time in range(self._rng.randint(1, 3)):
            await asyncio.sleep(self._rng.choice([0.0, 0.001, 0.1]))
            if self._rng.random() < 0.6:
                data, marks = interim(self._rng.choice([100, 103]))
                link.send(data, *marks)
            else:
                link.send(UNASKED, (len(UNASKED), "final", 200, True), (len(UNASKED), "done", 200, True))

    async def _pause(self) -> None:
        delay = self._rng.choices([0.0, 0.0003, 0.01, 0.9, 1.1, 3.0, 50.0, 70.0], [30, 10, 10, 5, 5, 3, 1, 1])[0]
        if delay:
            await asyncio.sleep(delay)

    # --- ways to answer; each says whether the connection goes on ----------------------------------------------------

    async def _store(self, link: Link, request: Request) -> bool:
        rng = self._rng
        await self._pause()
        while rng.random() < 0.08:
            self._send_interim(link, request, rng.choice([102, 103, 100]))
        if request.asks and rng.random() < 0.8:
            self._send_interim(link, request, 100)
        if not await link.until(lambda: request.complete):
            return False
        await self._pause()
        return self._send_final(link, request, rng.choice([200, 200, 201, 204]))

    async def _refuse(self, link: Link, request: Request) -> bool:
        await self._pause()
        return self._send_final(link, request)

    async def _go_on_and_refuse(self, link: Link, request: Request) -> bool:
        self._send_interim(link, request, 100)
        gap = self._rng.choice([0.0, 0.000005, 0.0009, 0.0011, 0.03, 2.0])
        if gap:
            await asyncio.sleep(gap)
        return self._send_final(link, request)

    async def _refuse_in_mid_body(self, link: Link, request: Request) -> bool:
        if self._rng.random() < 0.7:
            self._send_interim(link, request, 100)
        enough = self._rng.choice([1, 100, 70_000, 400_000, 1 << 20])
        if not await link.until(lambda: request.received >= enough or request.complete):
            return False
        goes_on = self._send_final(link, request)
        if self._rng.random() < 0.3:
            link.reset()
            return False
        return goes_on

    async def _do_nothing(self, link: Link, request: Request) -> bool:
        await link.until(lambda: False)
        return False

    async def _die(self, link: Link, request: Request) -> bool:
        await self._pause()
        if self._rng.random() < 0.5:
            self._send_interim(link, request, 100)
            enough = self._rng.choice([0, 1, 300_000])
            await link.until(lambda: request.received >= enough or request.complete)
        if self._rng.random() < 0.4:  # in the middle of an answer, or with something that is none
            cut = OK[: self._rng.randrange(1, len(OK) - (100 if request.method == "HEAD" else 0))]
            link.send(self._rng.choice([cut, cut, b"garbage\r\n\r\n", b"\0" * 300]))
        self._rng.choice([link.close, link.reset])()
        return False

    async def _do_anything(self, link: Link, request: Request) -> bool:
        rng = self._rng
        for _step in range(rng.randint(1, 8)):
            what = rng.choice(["interim", "pause", "final", "stop", "read", "close"])
            if what == "interim":
                self._send_interim(link, request, rng.choice([100, 102, 103, 199]))
            elif what == "pause":
                await self._pause()
            elif what == "final":
                if not self._send_final(link, request):
                    return False
                if rng.random() < 0.8:
                    return True
            elif what == "stop":
                link.reading = False
            elif what == "read":
                link.read_on()
            elif rng.random() < 0.3:
                link.close()
                return False
        return self._send_final(link, request)

    # --- what they say -----------------------------------------------------------------------------------------------

    def _send_interim(self, link: Link, request: Request, status: int) -> None:
        data, marks = interim(status)
        link.send(data, *marks)

    def _send_final(self, link: Link, request: Request, status: int | None = None) -> bool:
        data, marks, ends = self._answer(request, status)
        if marks[0][2] == 417 or data.startswith(b"HTTP/1.0"):
            self._referee.asked_no_more.add(tuple(link.origin))
        link.send(data, *marks)
        if ends:
            link.close()
        return not ends

    def _answer(self, request: Request, status: int | None) -> tuple[bytes, list[Mark], bool]:
        rng = self._rng
        if self._mood and (status is None or self._mood == 503):
            status = self._mood
        if status is None:
            statuses = [307, 308, 301, 302, 303, 400, 403, 404, 412, 417, 429, 500, 503, 200, 304, 300]
            status = rng.choices(statuses, [30, 5, 10, 4, 1, 6, 5, 2, 2, 5, 2, 4, 8, 5, 1, 1])[0]
        fields: list[str] = []
        body = rng.choice([b"", b"words", bytes(3000)])
        if status in (301, 302, 303, 307, 308):
            fields += self._location(request)
            if not fields or rng.random() < 0.2:
                fields += rng.choice([[], [f"x-amz-bucket-region: {rng.choice(REGIONS)}"]])
                body = self._document(rng.choice(["PermanentRedirect", "TemporaryRedirect"]))
        elif status == 400:
            body = self._document(rng.choice(["AuthorizationHeaderMalformed", "ExpiredToken", "Odd"]))
        elif status == 403:
            body = self._document(rng.choice(["RequestTimeTooSkewed", "AccessDenied", "InvalidRegion"]))
            fields.append(f"Date: Thu, 01 Jan {rng.choice([2020, 2032])} 00:00:00 GMT")
        elif status in (429, 503):
            fields += rng.choice([[], ["Retry-After: 1"], [] if self._mood else ["Retry-After: 100"]])
        elif status >= 400:
            body = self._document("Odd")
        return final(rng, request, status, fields, body)

    def _location(self, request: Request) -> list[str]:
        rng = self._rng
        chance = rng.random()
        if chance < 0.1:
            return []
        if chance < 0.15:
            return ["Location: http://evil.sim/a", "Location: http://evil.sim/b"]
        path = request.target.partition("?")[0]
        if rng.random() < 0.2:
            path = f"/maze/{rng.randrange(1 << 30)}"
        query = rng.choices(["", "?", "?rk=1", "?acl", "?X-Amz-Signature=theirs", "#part"], [20, 1, 2, 1, 1, 1])[0]
        if chance < 0.3:
            return [f"Location: {path}{query or '?again=' + str(rng.randrange(1000))}"]
        scheme = rng.choices(["http://", "https://", "//", "ftp://"], [10, 10, 2, 0.3])[0]
        host = rng.choice(HOSTS[:3] if rng.random() < 0.5 else HOSTS)
        return [f"Location: {scheme}{host}{path}{query}"]

    def _document(self, code: str) -> bytes:
        rng = self._rng
        region = rng.choice(["", f"<Region>{rng.choice(REGIONS)}</Region>"])
        endpoint = rng.choice(["", "", f"<Endpoint>{rng.choice(HOSTS[:12] + HOSTS[22:28])}</Endpoint>"])
        text = f"<Error><Code>{code}</Code><Message>no</Message>{region}{endpoint}</Error>"
        return text.encode("latin-1")
