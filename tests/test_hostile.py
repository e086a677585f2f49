"""Servers that mean ill, on real sockets: what they cost is bounded, and they lead nobody where nobody may go.

What only the parser sees is in test_fastparse.py, the pure decisions are in test_redirect.py; here is the whole client.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

import engine
from tests import hostile
from tests.hostile import CASES, MEMORY_MAX_BYTES, TIMEOUT_S, Cost, measured, meet
from tests.peers import CONTINUE, OK, raw_server, read_head, read_request
from tests.simulation.network import PATTERN, Request
from tests.simulation.scripted import talk

Run = Callable[[Any], Any]
ONCE = engine.Retry(max_attempts=1)


# --- what they cost ----------------------------------------------------------------------------------------------------


def check(name: str, cost: Cost) -> None:
    case = CASES[name]
    assert cost.ended == case.ends
    assert cost.bytes_taken <= case.most_bytes
    assert cost.body_bytes_sent <= (engine.RedirectPolicy().max_hops + 1) * case.size


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_server_costs_a_bounded_number_of_bytes_and_ends_as_it_should(name: str) -> None:
    cost = meet(CASES[name])
    check(name, cost)
    if CASES[name].ends == "ResponseTimedOut":
        assert cost.seconds >= TIMEOUT_S


@pytest.mark.parametrize(
    "name",
    [
        "endless error document",
        "endless field",
        "endless chunks of one byte",
        "XML entity bomb",
        "endless answer to a PUT",
    ],
)
def test_a_hostile_server_costs_bounded_memory(name: str) -> None:
    cost = measured(name)
    check(name, cost)
    assert cost.memory_bytes <= MEMORY_MAX_BYTES


def test_what_is_held_in_memory_on_request_is_bounded_too() -> None:
    cost = measured("endless answer to a request held in memory")
    assert cost.memory_bytes <= 2 * engine.limits.RESPONSE_BODY_MAX_BYTES


def test_the_table_of_limits_has_every_case_and_numbers_within_the_bounds() -> None:
    text = hostile.PAGE.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| a server")]
    cells = {row.split(" | ")[0].removeprefix("| "): row.strip("| ").split(" | ") for row in rows}
    assert list(cells) == list(CASES), "remedy: python -m tests.hostile --write"
    for name, (_name, ended, bound, taken, seconds, memory) in cells.items():
        case = CASES[name]
        assert ended.replace("`", "") == case.ends
        assert bound == case.bound
        assert _bytes(taken) <= case.most_bytes
        assert _bytes(memory) <= (
            MEMORY_MAX_BYTES if case.most_bytes < 1 << 26 else 2 * engine.limits.RESPONSE_BODY_MAX_BYTES
        )
        assert float(seconds) <= 2 * TIMEOUT_S


def _bytes(shown: str) -> int:
    number, unit = shown.replace(",", "").split(" ")
    return int(number) * {"KiB": 1024, "B": 1}[unit]


# --- who speaks out of turn --------------------------------------------------------------------------------------------


def test_an_answer_that_was_there_before_the_request_is_no_success(run: Run) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(OK)
        read_head(connection)
        while connection.recv(1 << 16):
            pass

    with raw_server(serve, serve) as url, pytest.raises(engine.EngineError) as caught:
        run(engine.put_async(bytes(1 << 20), f"{url}/k", checksum=None, retry=ONCE))
    assert caught.value.body_bytes_sent == 0


def test_an_answer_before_the_whole_head_left_is_no_success() -> None:
    """Found by the simulation: a request without a body, whose head the kernel had not taken whole, was answered with 200."""
    from engine.exchange import Exchange, Fate, Input, Plan

    for late in (False, True):
        exchange = Exchange(Plan(), 0.0)
        exchange.receive(Input.FINAL_HEAD, 0.1, status=200)
        if late:
            exchange.receive(Input.HEAD_SENT, 0.2)
        exchange.receive(Input.FINAL_DONE, 0.3)
        assert exchange.status == 200
        assert not exchange.succeeded
        assert exchange.fate is Fate.CLOSE


def test_answers_to_nobody_on_an_idle_connection_are_answers_to_nobody(run: Run) -> None:
    """A second answer behind the first, at once or later, is never taken for the answer to the next request."""
    heads: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        heads.append(read_request(connection)[0])
        connection.sendall(OK if len(heads) > 1 else OK + OK.replace(b"200 OK", b"201 Forged"))
        time.sleep(0.05)
        if len(heads) > 1:
            connection.sendall(OK.replace(b"200 OK", b"201 Forged"))
        connection.recv(1)

    async def main(url: str) -> list[int]:
        async with engine.Client() as client:
            statuses = []
            for number in range(3):
                statuses.append((await client.put(b"abc", f"{url}/{number}", checksum=None)).status)
                if number:
                    await asyncio.sleep(0.15)
            return statuses

    with raw_server(*[serve] * 3) as url:
        assert run(main(url)) == [200, 200, 200]
    assert [head.split(b" ")[1] for head in heads] == [b"/0", b"/1", b"/2"]


# --- where they lead ---------------------------------------------------------------------------------------------------

# Location, with a port where {port} is; and what becomes of it. Nobody is connected to but where it says "followed".
LOCATIONS = {
    "a NUL": ("http://127.0.0.1:{port}/\0x", "ProtocolError"),
    "a tab": ("http://127.0.0.1:{port}/\tx", "bad-location"),
    "a bare CR": ("http://127.0.0.1:{port}/\rx", "ProtocolError"),
    "an escape sequence": ("http://127.0.0.1:{port}/\x1b[2J", "ProtocolError"),
    "a DEL": ("http://127.0.0.1:{port}/\x7f", "ProtocolError"),
    "an encoded CRLF": ("http://127.0.0.1:{port}/x%0d%0aX-Injected:%20y", "followed"),
    "user-info": ("http://me:pw@127.0.0.1:{port}/k", "bad-location"),
    "user-info that looks like a host": ("http://127.0.0.1:{port}@evil.test/k", "bad-location"),
    "a backslash": ("http://127.0.0.1:{port}\\@evil.test/k", "bad-location"),
    "an international name": ("http://b\xfccher.test/k", "bad-location"),
    "a full-width dot": ("http://127\uff0e0\uff0e0\uff0e1/k".encode().decode("latin-1"), "bad-location"),
    "hexadecimal": ("http://0x7f.1:{port}/k", "bad-location"),
    "hexadecimal whole": ("http://0x7f000001:{port}/k", "bad-location"),
    "octal": ("http://0177.0.0.1:{port}/k", "bad-location"),
    "one number": ("http://2130706433:{port}/k", "bad-location"),
    "two numbers": ("http://127.1:{port}/k", "bad-location"),
    "a leading zero": ("http://127.0.0.01:{port}/k", "bad-location"),
    "five numbers": ("http://127.0.0.0.1:{port}/k", "bad-location"),
    "an IPv6 address of an IPv4 one": ("http://[::ffff:127.0.0.1]:{port}/k", "followed"),
    "the same in hexadecimal": ("http://[::ffff:7f00:1]:{port}/k", "followed"),
    "an IPv6 zone": ("http://[fe80::1%25eth0]/k", "bad-location"),
    "a public one in IPv6's clothes": ("http://[::ffff:93.184.5.5]/k", "host-not-allowed"),
    "the unspecified address": ("http://0.0.0.0:{port}/k", "host-not-allowed"),
    "IPv6's unspecified address": ("http://[::]:{port}/k", "host-not-allowed"),
    "link-local metadata": ("http://169.254.169.254/latest", "host-not-allowed"),
    "a trailing dot": ("http://127.0.0.1.:{port}/k", "followed"),
    "upper case and a trailing dot": ("HTTP://LOCALHOST.:{port}/k", "followed"),
    "another loopback address": ("http://127.0.0.2:{port}/k", "no connection"),
    "an empty port": ("http://127.0.0.1:/k", "no connection"),
    "port 0": ("http://127.0.0.1:0/k", "bad-location"),
    "port 65536": ("http://127.0.0.1:65536/k", "bad-location"),
    "a signed port": ("http://127.0.0.1:+80/k", "bad-location"),
    "another scheme": ("ftp://127.0.0.1:{port}/k", "bad-location"),
    "a file": ("file:///etc/passwd", "bad-location"),
    "no authority": ("http:///k", "bad-location"),
    "one slash": ("http:/127.0.0.1:{port}/k", "bad-location"),
    "a word": ("k2", "followed"),
    "64 KB": ("/" + "x" * 60_000, "followed"),
}


@pytest.mark.parametrize("name", LOCATIONS)
def test_a_signed_request_on_loopback_is_led_only_to_loopback(name: str, run: Run) -> None:
    location, verdict = LOCATIONS[name]
    stored: list[bytes] = []

    def store(connection: socket.socket) -> None:
        stored.append(read_request(connection)[0])
        connection.sendall(OK)

    def refuse(connection: socket.socket) -> None:
        read_head(connection)
        text = location.format(port=port[0])
        connection.sendall(b"HTTP/1.1 307 On\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % text.encode("latin-1"))
        connection.recv(1)

    async def main(url: str) -> str:
        credentials = engine.Credentials("access", "secret")
        config = engine.Config(proxy=None, retry=ONCE)
        async with engine.Client(endpoint_url=url, region="r-1", credentials=credentials, config=config) as client:
            try:
                await client.put(bytes(100_000), "s3://bkt/k", checksum=None)
            except engine.RedirectRefused as error:
                return error.reason if f"{error}{error.location}".isprintable() else "shown unescaped"
            except engine.ConnectFailed:
                return "no connection"
            except engine.ProtocolError:
                return "ProtocolError"
        return "followed"

    port: list[str] = []
    with raw_server(refuse, store) as here, raw_server(store) as there:
        port.append((here if "://" not in location else there).rpartition(":")[2])
        assert run(main(here)) == verdict
    assert len(stored) == (verdict == "followed")
    if stored:
        head = stored[0].decode("ascii").lower()
        host = re.search(r"^host: (.+)\r$", head, re.MULTILINE)
        assert host is not None
        assert host[1].rpartition(":")[0] in ("127.0.0.1", "localhost", "127.0.0.2", "[::ffff:7f00:1]"), (
            "as it is signed"
        )
        assert "x-injected:" not in head.replace("x%0d%0ax-injected:%20y", "")


@pytest.mark.parametrize("name", LOCATIONS)
def test_an_unsigned_body_is_led_to_no_nearer_address(name: str) -> None:
    """The same from a public address: whatever the text says, loopback and the link are not dialled."""
    location = LOCATIONS[name][0].format(port=9000)
    requests: list[Request] = []

    def answer(request: Request) -> bytes:
        requests.append(request)
        if len(requests) > 1:
            return CONTINUE + OK
        return b"HTTP/1.1 307 On\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % location.encode("latin-1")

    async def main() -> None:
        async with engine.Client(config=engine.Config(proxy=None, retry=ONCE)) as client:
            with contextlib.suppress(engine.RedirectRefused, engine.ProtocolError, engine.ConnectFailed):
                await client.put(PATTERN[:100_000], "http://store.sim/k", checksum=None)

    seen = talk(main, answer)
    assert all(address.startswith(("93.184.", "::ffff:5db8:")) for address in seen.dialled_addresses)


# --- what callers hand over --------------------------------------------------------------------------------------------

INJECTIONS = [
    "a\r\nX-Injected: y",
    "a\nX-Injected: y",
    "a\rX-Injected: y",
    "a\0b",
    "a\r\n\r\nPUT /other HTTP/1.1\r\n\r\n",
    "a\x85b\u2028",
]
PLACES: dict[str, Callable[[Any, str, str], Any]] = {
    "header value": lambda c, u, x: c.put(b"x", u, headers={"X-A": x}),
    "header name": lambda c, u, x: c.put(b"x", u, headers={x: "v"}),
    "content_type": lambda c, u, x: c.put(b"x", u, content_type=x),
    "metadata value": lambda c, u, x: c.put(b"x", u, metadata={"a": x}),
    "metadata name": lambda c, u, x: c.put(b"x", u, metadata={x: "v"}),
    "storage_class": lambda c, u, x: c.put(b"x", u, storage_class=x),
    "acl": lambda c, u, x: c.put(b"x", u, acl=x),
    "sse": lambda c, u, x: c.put(b"x", u, sse=x),
    "sse_kms_key_id": lambda c, u, x: c.put(b"x", u, sse_kms_key_id=x),
    "request_payer": lambda c, u, x: c.put(b"x", u, request_payer=x),
    "tagging text": lambda c, u, x: c.put(b"x", u, tagging=x),
    "tag value": lambda c, u, x: c.put(b"x", u, tagging={"a": x}),
    "tag name": lambda c, u, x: c.put(b"x", u, tagging={x: "v"}),
    "if_match": lambda c, u, x: c.put(b"x", u, if_match=x),
    "if_none_match": lambda c, u, x: c.put(b"x", u, if_none_match=x),
    "checksum": lambda c, u, x: c.put(b"x", u, checksum=x),
    "expect": lambda c, u, x: c.put(b"x", u, expect=x),
    "sign": lambda c, u, x: c.put(b"x", u, sign=x),
    "key": lambda c, u, x: c.put(b"x", f"s3://bkt/{x}"),
    "bucket": lambda c, u, x: c.put(b"x", f"s3://{x}/key"),
    "path": lambda c, u, x: c.put(b"x", f"{u}/{x}"),
    "query": lambda c, u, x: c.put(b"x", f"{u}?{x}"),
    "fragment": lambda c, u, x: c.put(b"x", f"{u}#{x}"),
    "authority": lambda c, u, x: c.put(b"x", f"{u.partition('/k')[0]}{x}/k"),
    "method": lambda c, u, x: c.request(x, u),
    "header of head": lambda c, u, x: c.head(u, headers={"X-A": x}),
    "header of get": lambda c, u, x: c.get(u, lambda view: None, headers={"X-A": x}),
    "header of delete": lambda c, u, x: c.delete(u, headers={"X-A": x}),
    "header of request": lambda c, u, x: c.request("POST", u, headers={"X-A": x}),
    "key of head": lambda c, u, x: c.head(f"s3://bkt/{x}"),
    "key of delete": lambda c, u, x: c.delete(f"s3://bkt/{x}"),
    "key of get": lambda c, u, x: c.get(f"s3://bkt/{x}", lambda view: None),
}
CLIENTS: dict[str, Callable[[str, str], Any]] = {
    "endpoint_url": lambda u, x: {"endpoint_url": u + x},
    "endpoint path": lambda u, x: {"endpoint_url": f"{u}/{x}"},
    "region": lambda u, x: {"region": x},
    "access_key": lambda u, x: {"credentials": engine.Credentials(x, "secret")},
    "secret_key": lambda u, x: {"credentials": engine.Credentials("access", x)},
    "token": lambda u, x: {"credentials": engine.Credentials("access", "secret", x)},
    "proxy": lambda u, x: {"config": engine.Config(proxy=u + x)},
    "proxy user": lambda u, x: {"config": engine.Config(proxy=u.replace("://", f"://{x}:pw@"))},
    "redirect hosts": lambda u, x: {"config": engine.Config(redirects=engine.RedirectPolicy(hosts=(x,)))},
    "profile": lambda u, x: {"credentials": None, "profile": x},
}


async def attempt(url: str, place: str, text: str) -> str:
    """What came of handing `text` over at `place`: "refused" (an error of ours before anything was sent) or "sent"."""
    options: dict[str, Any] = {
        "endpoint_url": url,
        "region": "r-1",
        "credentials": engine.Credentials("access", "secret"),
        "config": engine.Config(proxy=None, retry=ONCE),
    }
    try:
        if place in CLIENTS:
            options.update(CLIENTS[place](url, text))
        async with engine.Client(**options) as client:
            if place in CLIENTS:
                await client.put(b"x", "s3://bkt/key", checksum=None)
            else:
                await PLACES[place](client, f"{url}/k", text)
    except engine.UsageError as error:
        # What is refused must not drive a terminal either.
        return "refused" if str(error).isprintable() else "shown unescaped"
    return "sent"


@pytest.mark.parametrize("text", INJECTIONS, ids=ascii)
@pytest.mark.parametrize("place", [*PLACES, *CLIENTS])
def test_no_string_of_a_caller_adds_a_line_to_a_request(place: str, text: str, run: Run) -> None:
    """It is refused, or it arrives encoded within the one line where it belongs."""
    heads: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        head = read_head(connection)
        if head:
            heads.append(head)
            connection.sendall(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            connection.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                assert b"PUT /other" not in connection.recv(1000)

    with raw_server(serve) as url:
        came = run(attempt(url, place, text))
    assert came in ("refused", "sent")
    assert len(heads) == (came == "sent")
    for head in heads:
        lines = head.split(b"\r\n")[:-2]
        assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f-\xff]", b"".join(lines))
        assert b"x-injected" not in b"".join(
            line.lower() for line in lines[1:] if line.lower().startswith(b"x-injected")
        )
        assert len({line.partition(b":")[0].lower() for line in lines[1:]}) == len(lines) - 1
        assert re.fullmatch(rb"[A-Z]+ (http:/)?/[!-~]* HTTP/1\.1", lines[0])


def test_the_places_are_all_there_are() -> None:
    from engine.client import CallOptions, PutOptions

    text = re.compile(r"\bstr\b|Mapping|Literal")
    named = {
        name
        for options in (CallOptions, PutOptions)
        for name, kind in options.__annotations__.items()
        if text.search(str(kind))
    }
    covered = " ".join(PLACES) + " headers tagging metadata continue_timeout_s"
    assert not {name for name in named if name not in covered}
