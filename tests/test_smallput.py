"""Small puts: by the short way and by the long one the same thing happens, whatever the peer does.

Every case is played twice against a scripted peer, with `begin` as it is and with one that declines; results, errors, what the
peer saw and what became of the connection have to be equal.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import pickle
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from hashlib import sha256
from typing import Any

import pytest

import engine
from engine import _smallput, checksums, limits, signing
from engine.wire import parse_url
from tests.conftest import Server
from tests.peers import CONTINUE, OK, descriptors, raw_server, read_request, reset

Run = Callable[[Any], Any]
Make = Callable[..., engine.Client]
Peer = Callable[[socket.socket], object]

BODY = bytes(range(256)) * 16
CHECKSUM = checksums.whole("crc64nvme")(BODY)
CONFIG = engine.Config(response_timeout_s=0.2, retry=engine.Retry(max_attempts=3, base_s=0.01, cap_s=0.02))


class Watched:
    """In the place of a client's SmallPuts: counts what begins, and may decline all of it."""

    def __init__(self, client: engine.Client, *, declines: bool = False) -> None:
        self.inner, self.declines = client._small_puts, declines
        self.begun: list[_smallput.SmallPut] = []
        self.answered: Callable[[object], object] = lambda _waiter: None
        client._small_puts = self  # type: ignore[assignment]

    def begin(self, *arguments: Any) -> _smallput.SmallPut | None:
        put = None if self.declines else self.inner.begin(*arguments)
        if put is not None:
            self.begun.append(put)
            put.waiter.add_done_callback(self.answered)  # runs ahead of the wake-up of the task
        return put


def facts_of(outcome: object) -> Any:
    """What can be compared of a result or an error: all but times and port numbers."""
    if isinstance(outcome, engine.PutResult):
        plain = dataclasses.asdict(outcome)
        assert plain.pop("timings")["total"] > 0
        hops = plain["hops"]
    else:
        assert isinstance(outcome, BaseException), outcome
        plain = {"type": type(outcome), "text": str(outcome), **vars(outcome)}
        hops = plain["hops"] = tuple(dataclasses.asdict(hop) for hop in plain.get("hops", ()))
    for hop in hops:
        assert hop.pop("seconds") > 0
    return re.sub(r":\d{4,5}\b", ":PORT", repr(plain))


def client_connections(client: engine.Client) -> list[Any]:
    return list(client._shared._pool._open)  # type: ignore[union-attr]


requests: list[tuple[bytes, bytes]] = []  # what the peers of this case have read


def take(connection: socket.socket) -> bool:
    head, body = read_request(connection)
    if head:
        requests.append((head, body))
    return bool(head)


def sockets() -> list[int]:
    return sorted(number for number, name in descriptors().items() if name.startswith("socket:"))


# --- what a peer does with the second request on a connection -----------------------------------------------------------


def answers(*pieces: bytes, pause_s: float = 0.02, closes: bool = False) -> Peer:
    def answer(connection: socket.socket) -> None:
        take(connection)
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(pause_s)
            connection.sendall(piece)
        if closes:
            connection.shutdown(socket.SHUT_RDWR)

    return answer


def resets(connection: socket.socket) -> None:
    take(connection)
    reset(connection)
    connection.close()


def resets_behind(text: bytes) -> Peer:
    def answer(connection: socket.socket) -> None:
        take(connection)
        connection.sendall(text)
        time.sleep(0.02)
        reset(connection)
        connection.close()

    return answer


def reads_slowly(connection: socket.socket) -> None:
    time.sleep(0.1)
    take(connection)
    connection.sendall(OK)


def text(status: str, *fields: str, body: bytes = b"") -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}"])
    return head.encode() + b"\r\n\r\n" + body


def error(status: str, code: str) -> bytes:
    return text(status, "x-amz-request-id: R1", body=f"<Error><Code>{code}</Code></Error>".encode())


CRC = "x-amz-checksum-crc64nvme"
STORED = text("200 OK", 'ETag: "abc"', "x-amz-version-id: v1", "x-amz-request-id: r", "x-amz-id-2: h", "X-Amz-Id-2: i")
PEERS: dict[str, Peer] = {
    "plain 200": answers(STORED),
    "201": answers(text("201 Created", "Location: /elsewhere")),
    "204": answers(text("204 No Content")),
    "200 with a body": answers(text("200 OK", body=b"thanks")),
    "200 with a chunked body": answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n"),
    "200 with a body in pieces": answers(text("200 OK", body=b"thanks")[:-3], b"nks"),
    "200 byte by byte": answers(*[bytes([byte]) for byte in STORED], pause_s=0),
    "200 until close": answers(b"HTTP/1.1 200 OK\r\n\r\nthanks", closes=True),
    "200, a slow body, a reset": resets_behind(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nthanks"),
    "HTTP/1.0": answers(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "HTTP/1.0 kept alive": answers(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n"),
    "200 and close": answers(text("200 OK", "Connection: close")),
    "200 and the end": answers(OK, closes=True),
    "200 and more": answers(OK + OK),
    "200 and more later": answers(OK, OK),
    "200 and a reset": resets_behind(OK),
    "100 and 200 at once": answers(CONTINUE + OK),
    "100, then 200": answers(CONTINUE, OK),
    "103, then 200": answers(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", OK),
    "100, then the end": answers(CONTINUE, closes=True),
    "307": answers(text("307 Temporary Redirect", "Location: /other")),
    "303": answers(text("303 See Other", "Location: /other")),
    "400": answers(error("400 Bad Request", "InvalidRequest")),
    "403": answers(error("403 Forbidden", "AccessDenied")),
    "403 in pieces": answers(error("403 Forbidden", "AccessDenied")[:-9], b"</Error>\n"),
    "403 that ends early": answers(error("403 Forbidden", "AccessDenied")[:-9], closes=True),
    "412": answers(error("412 Precondition Failed", "PreconditionFailed")),
    "417": answers(text("417 Expectation Failed")),
    "500": answers(error("500 Internal Server Error", "InternalError")),
    "503 and close": answers(text("503 Slow Down", "Connection: close", "Retry-After: 0")),
    "no HTTP": answers(b"220 smtp.example ESMTP\r\n"),
    "bare LF": answers(b"HTTP/1.1 200 OK\nContent-Length: 0\n\n"),
    "two lengths": answers(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n"),
    "half a head": answers(STORED[:30], closes=True),
    "half a head and silence": answers(STORED[:30], b"", pause_s=0.3),
    "half a body and silence": answers(text("200 OK", body=b"thanks")[:-3], b"", pause_s=0.3),
    "the end": answers(closes=True),
    "a reset": resets,
    "silence": answers(b"", b"", pause_s=0.3),
    "slow reading": reads_slowly,
    "the right checksum": answers(text("200 OK", f"{CRC}: {CHECKSUM}", "x-amz-checksum-type: FULL_OBJECT")),
    "a wrong checksum": answers(text("200 OK", f"{CRC}: AAAAAAAAAAA=")),
    "a composite checksum": answers(text("200 OK", f"{CRC}: AAAAAAAAAAA=-3", "x-amz-checksum-type: COMPOSITE")),
    "an empty checksum": answers(text("200 OK", f"{CRC}: ")),
}


async def played(
    url: str, *, short: bool, meanwhile: Callable[[engine.Client, Any], object] | None = None
) -> list[Any]:
    """A put that makes the connection, the one that matters, and one more. Returns what can be compared of each."""
    told = []
    async with engine.Client(config=CONFIG) as client:
        await client.put(BODY, f"{url}/first")
        watched = Watched(client, declines=not short)
        for number, key in enumerate(("second", "third")):
            task = asyncio.ensure_future(client.put(BODY, f"{url}/{key}"))
            await asyncio.sleep(0)
            if meanwhile is not None and not number:
                meanwhile(client, task)
            outcome = (await asyncio.gather(task, return_exceptions=True))[0]
            assert not short or number or len(watched.begun) == 1, "the short way was not taken"
            told.append(facts_of(outcome))
            # What the peer does behind its answer has come by then, or is met by the next put, both times.
            await asyncio.sleep(0.05)
        told.append(len(client_connections(client)))
        gc.collect()
    return told


@pytest.fixture
def ways(run: Run) -> Callable[..., list[Any]]:
    """Plays a peer by both ways, and returns what happened after looking whether it was the same."""

    def play(peer: Peer, **options: Any) -> list[Any]:
        both = []
        for short in (True, False):
            requests.clear()

            def first(connection: socket.socket) -> None:
                take(connection)
                connection.sendall(OK)
                peer(connection)
                later(connection)

            def later(connection: socket.socket) -> None:
                with suppress(OSError, AssertionError):
                    while take(connection):
                        connection.sendall(STORED)

            before = sockets()
            with raw_server(first, *[later] * 4) as url:
                told = run(played(url, short=short, **options))
            heads = [re.sub(rb"127\.0\.0\.1:\d+", b"HOST", head) for head, _body in requests]
            assert all(body == BODY for _head, body in requests)
            assert sockets() == before
            both.append([*told, sorted(heads)])
        assert both[0] == both[1]
        return both[0]

    return play


@pytest.mark.parametrize("run", ["uvloop"], indirect=True)
@pytest.mark.parametrize("name", PEERS)
def test_what_a_peer_does_has_the_same_effect_by_both_ways(ways: Callable[..., list[Any]], name: str) -> None:
    ways(PEERS[name])


@pytest.mark.parametrize("run", ["asyncio"], indirect=True)
@pytest.mark.parametrize("name", ["plain 200", "100, then 200", "403", "a reset", "silence"])
def test_and_so_it_is_on_the_other_event_loop(ways: Callable[..., list[Any]], name: str) -> None:
    ways(PEERS[name])


# --- what happens on our side meanwhile -----------------------------------------------------------------------------------


def _later(seconds: float, do: Callable[[engine.Client, Any], object]) -> Callable[[engine.Client, Any], object]:
    return lambda client, task: asyncio.get_running_loop().call_later(seconds, do, client, task)


def _cancels(client: engine.Client, task: Any) -> None:
    task.cancel()


def _cancels_twice(client: engine.Client, task: Any) -> None:
    task.cancel()
    task.cancel()


def _closes(client: engine.Client, task: Any) -> None:
    closing = asyncio.ensure_future(client.close())
    task.add_done_callback(lambda _task: closing)


def _rings(client: engine.Client, task: Any) -> None:
    """The timer of the request before comes early for this one."""
    for connection in client_connections(client):
        connection._ring()


MEANWHILE = {
    "cancelled at once": _cancels,
    "cancelled in the wait": _later(0.03, _cancels),
    "cancelled twice": _later(0.03, _cancels_twice),
    "a timer of before": _later(0.03, _rings),
}


@pytest.mark.parametrize("run", ["uvloop"], indirect=True)
@pytest.mark.parametrize("name", MEANWHILE)
def test_what_we_do_meanwhile_has_the_same_effect_by_both_ways(ways: Callable[..., list[Any]], name: str) -> None:
    told = ways(answers(b"", OK, pause_s=0.1), meanwhile=MEANWHILE[name])
    assert ("CancelledError" in told[0]) == ("cancelled" in name)


def test_a_cancellation_that_crosses_with_the_answer_leaves_a_usable_connection(run: Run) -> None:
    async def main(url: str) -> None:
        async with engine.Client() as client:
            await client.put(BODY, f"{url}/first")
            watched = Watched(client)
            task = asyncio.ensure_future(client.put(BODY, f"{url}/second"))
            watched.answered = lambda _waiter: task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert watched.begun[0].status == 200
            (connection,) = client_connections(client)
            assert connection.usable
            watched.answered = lambda _waiter: None
            assert (await client.put(BODY, f"{url}/third")).etag == '"abc"'

    def serve(connection: socket.socket) -> None:
        while take(connection):
            connection.sendall(STORED)

    with raw_server(serve) as url:
        run(main(url))


def test_a_connection_that_nobody_goes_on_with_is_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(url: str) -> None:
        async with engine.Client(config=engine.Config(max_connections=1)) as client:
            for _twice in range(2):  # the second one makes the route
                await client.put(BODY, f"{url}/first")
            watched = Watched(client)

            def wrong(*_arguments: object) -> None:
                raise engine.UsageError("the environment has changed")

            with monkeypatch.context() as patch:
                patch.setattr(client, "_place", wrong)
                with pytest.raises(engine.UsageError, match="has changed"):
                    await client.put(BODY, f"{url}/second")
            assert len(watched.begun) == 1
            assert not client_connections(client)
            assert (await client.put(BODY, f"{url}/third")).status == 200

    def serve(connection: socket.socket) -> None:
        while take(connection):
            connection.sendall(CONTINUE + OK)

    with raw_server(serve, serve) as url:
        run(main(url))


def test_a_client_that_is_closed_ends_its_small_puts(run: Run) -> None:
    async def main(url: str) -> None:
        client = engine.Client()
        await client.put(BODY, f"{url}/first")
        watched = Watched(client)
        task = asyncio.ensure_future(client.put(BODY, f"{url}/second"))
        await asyncio.sleep(0.02)
        assert len(watched.begun) == 1
        await client.close()
        with pytest.raises(engine.ConnectionLost, match="closed"):
            await task

    def silent(connection: socket.socket) -> None:
        take(connection)
        connection.sendall(OK)
        while connection.recv(1 << 16):
            pass

    with raw_server(silent) as url:
        run(main(url))


def _narrow(connection: Any) -> None:
    connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


def _broken(connection: Any) -> None:
    connection._socket.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("way", ["short", "long"])
@pytest.mark.parametrize("hampers", [_narrow, _broken])
def test_a_request_that_the_kernel_does_not_take_whole_arrives_all_the_same(
    run: Run, way: str, hampers: Callable[[Any], None]
) -> None:
    body = random.Random(1).randbytes(60_000)

    async def main(url: str) -> engine.PutResult:
        async with engine.Client() as client:
            await client.put(BODY, f"{url}/first")
            watched = Watched(client, declines=way == "long")
            hampers(client_connections(client)[0])
            result = await client.put(body, f"{url}/second")
            assert len(watched.begun) == (way == "short")
            return result

    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        while (request := read_request(connection))[0]:
            seen.append(request[1])
            connection.sendall(OK)

    with raw_server(serve, serve) as url:
        result = run(main(url))
    assert seen == [BODY, body]
    assert (result.status, result.body_bytes_sent, result.send_path) == (200, len(body), "send")
    assert [hop.outcome for hop in result.hops] == (["stored"] if hampers is _narrow else ["retried", "stored"])


# --- what is asked of the peer ----------------------------------------------------------------------------------------------


def heads_of(run: Run, put: Callable[[engine.Client, str, bool], Any]) -> list[tuple[int, list[bytes]]]:
    """For each way: how many puts began by the short one, and the heads that the peer saw."""
    found = []
    for short in (True, False):
        heads: list[bytes] = []

        def serve(connection: socket.socket, heads: list[bytes] = heads) -> None:
            while (request := read_request(connection))[0]:
                heads.append(request[0])
                connection.sendall(OK)

        async def main(url: str, short: bool = short) -> int:
            async with engine.Client(
                endpoint_url=url, region="eu-west-1", credentials=engine.ANONYMOUS, config=engine.Config()
            ) as client:
                await client.put(BODY, f"{url}/first")
                watched = Watched(client, declines=not short)
                await put(client, url, short)
                return len(watched.begun)

        with raw_server(serve) as url:
            count = run(main(url))
        found.append((count, [re.sub(rb"127\.0\.0\.1:\d+", b"HOST", head) for head in heads]))
    assert found[0][1] == found[1][1]
    assert found[1][0] == 0
    return found


KEYS = [
    "a",
    "a/b//c",
    "..",
    "./x",
    "~",
    "a-b_c.d",
    "a b",
    "ü",
    "a%41",
    "a%2Fb",
    "a+b",
    "a&b=c",
    "(a)!*'$,;:@[]",
    "a?b=c",
    "a#b",
    "a\\b",
]


@pytest.mark.parametrize("run", ["uvloop"], indirect=True)
def test_every_key_becomes_the_same_target_by_both_ways(run: Run) -> None:
    async def put(client: engine.Client, url: str, _short: bool) -> None:
        for key in KEYS:
            await client.put(BODY, f"{url}/{key}")
            await client.put(BODY, f"s3://bucket/{key}")
            await client.put(BODY, f"s3://other.bucket/{key}")

    count, _heads = heads_of(run, put)[0]
    assert count == 11 + 6 + 6  # those that need no encoding


@pytest.mark.parametrize("run", ["uvloop"], indirect=True)
def test_options_are_the_same_fields_by_both_ways(run: Run) -> None:
    options: list[Any] = [
        {"content_type": "text/plain"},
        {"content_type": "text/html", "storage_class": "STANDARD_IA"},
        {"if_none_match": "*"},
        {"checksum": None},
        {"checksum": "crc32"},
        {"metadata": {"a": "b"}},
        {"headers": {"x-own": "1"}},
        {"size": 10},
        {"content_type": None},
    ]

    async def put(client: engine.Client, url: str, _short: bool) -> None:
        for _twice in range(2):
            for chosen in options:
                await client.put(BODY, f"{url}/key", **chosen)
                await client.put(bytearray(BODY), "s3://bucket/key", **chosen)

    count, _heads = heads_of(run, put)[0]
    assert count == 4 * 5


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536])
@pytest.mark.parametrize("expect", ["auto", "never", "always", "strict"])
def test_a_body_that_is_to_be_asked_for_goes_the_long_way(run: Run, size: int, expect: Any) -> None:
    async def main(url: str) -> int:
        async with engine.Client(config=engine.Config(expect=expect)) as client:
            await client.put(BODY, f"{url}/first")
            watched = Watched(client)
            result = await client.put(bytes(size), f"{url}/second")
            asked = expect in ("always", "strict") or (expect == "auto" and size >= limits.EXPECT_THRESHOLD_BYTES)
            assert result.expect == ("continue" if asked and size else "off")
            return len(watched.begun) - (0 if asked or not size else 1)

    def serve(connection: socket.socket) -> None:
        while read_request(connection)[0]:
            connection.sendall(OK)

    with raw_server(serve) as url:
        assert run(main(url)) == 0


def test_what_the_environment_says_counts_at_every_put(
    run: Run, client_of: Make, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with engine.Client(credentials=server.credentials) as client:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.store_url)
            monkeypatch.setenv("AWS_REGION", server.region)
            watched = Watched(client)
            for _twice in range(2):
                result = await client.put(BODY, "s3://bucket/key")
            assert result.region == server.region
            assert len(watched.begun) == 1
            monkeypatch.setenv("AWS_REGION", "mars-north-1")
            other = await client.put(BODY, "s3://bucket/key")
            assert [hop.region for hop in other.hops] == ["mars-north-1", server.region]
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
            with pytest.raises(engine.ConnectFailed):
                await client.put(BODY, "s3://bucket/key", retry=engine.Retry(max_attempts=1))

    run(main())


def test_a_proxy_that_appears_is_used(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(url: str) -> None:
        async with engine.Client() as client:
            small = client._small_puts
            await client.put(BODY, f"{url}/first")
            put = small.begin(BODY, f"{url}/second", {})
            assert put is not None
            await put.waiter
            assert put.result() is not None
            monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
            monkeypatch.setattr("engine.proxy._is_loopback", lambda _host: False)
            assert small.begin(BODY, f"{url}/third", {}) is None

    def serve(connection: socket.socket) -> None:
        while read_request(connection)[0]:
            connection.sendall(OK)

    with raw_server(serve) as url:
        run(main(url))


# --- signatures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "session-token"])
@pytest.mark.parametrize("fields", [[], [("content-type", "text/plain"), ("x-amz-storage-class", "STANDARD")]])
def test_the_lines_of_a_signer_are_what_sign_adds(token: str | None, fields: list[tuple[str, str]]) -> None:
    credentials = signing.Credentials("AKIAIOSFODNN7EXAMPLE", "secret/key+of=some/length", token)
    signer = signing.Signer(credentials, "PUT", parse_url("http://h:81/x"), fields, region="us-east-1")
    for second in (0, 1, 1, 86_400, 1_764_000_000, 1_764_000_000.9):
        for path in ("/", "/bucket/key", "/b/%C3%BC~"):
            now = datetime.fromtimestamp(int(second), timezone.utc)
            url = parse_url(f"http://h:81{path}")
            added = signing.sign(credentials, "PUT", url, fields, region="us-east-1", now=now)
            lines = signer.text(path, second).decode().removesuffix("\r\n\r\n").split("\r\n")
            assert [(name.lower(), value) for name, _colon, value in (line.partition(": ") for line in lines)] == added


def test_signed_small_puts_are_accepted_by_a_server_that_checks(run: Run, client_of: Make, server: Server) -> None:
    async def main() -> list[engine.PutResult]:
        async with client_of(endpoint_url=server.store_url) as client:
            await client.put(BODY, "s3://bucket/key-0")
            watched = Watched(client)
            results = [await client.put(BODY + bytes([n]), f"s3://bucket/key-{n}") for n in range(1, 20)]
            assert len(watched.begun) == 19
            return results

    for number, result in enumerate(run(main()), 1):
        assert result.status == 200
        assert server.object("bucket", f"key-{number}").sha256 == sha256(BODY + bytes([number])).hexdigest()


def test_a_region_that_was_learned_sends_small_puts_there(run: Run, client_of: Make, server: Server) -> None:
    async def main() -> None:
        async with client_of(endpoint_url=server.store_url, region="mars-north-1") as client:
            for number in range(3):
                result = await client.put(BODY, "s3://bucket/learned")
                assert [hop.outcome for hop in result.hops] == (["stored"] if number else ["region", "stored"])
                assert result.region == server.region

    run(main())


# --- values and memory --------------------------------------------------------------------------------------------------------


def test_a_result_is_an_ordinary_one(run: Run) -> None:
    async def main(url: str) -> tuple[engine.PutResult, engine.PutResult]:
        async with engine.Client() as client:
            long = await client.put(BODY, f"{url}/key")
            watched = Watched(client)
            short = await client.put(BODY, f"{url}/key")
            assert watched.begun
            return long, short

    def serve(connection: socket.socket) -> None:
        while take(connection):
            connection.sendall(STORED)

    with raw_server(serve) as url:
        long, short = run(main(url))
    assert pickle.loads(pickle.dumps(short)) == short
    assert dataclasses.replace(short) == short
    assert hash(short.hops[0]) == hash(dataclasses.replace(short.hops[0]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        short.status = 500  # type: ignore[misc]
    assert {name: type(value) for name, value in _fields(long)} == {name: type(value) for name, value in _fields(short)}
    assert dataclasses.replace(long, hops=(), timings=short.timings) == dataclasses.replace(short, hops=())


def _fields(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        yield f"{prefix}{field.name}", inner
        for part in inner if isinstance(inner, tuple) else (inner,):
            if dataclasses.is_dataclass(part):
                yield from _fields(part, f"{prefix}{field.name}.")


def test_a_bytearray_is_held_while_it_leaves_and_no_longer(run: Run) -> None:
    body = bytearray(BODY)

    async def main(url: str) -> None:
        async with engine.Client() as client:
            await client.put(BODY, f"{url}/first")
            put = client._small_puts.begin(body, f"{url}/second", {})
            assert put is not None
            with pytest.raises(BufferError):
                body.append(0)
            await put.waiter
            assert put.result() is not None
            body.append(0)

    def serve(connection: socket.socket) -> None:
        while take(connection):
            connection.sendall(STORED)

    with raw_server(serve) as url:
        run(main(url))


def test_nothing_of_a_small_put_stays(run: Run) -> None:
    async def main(url: str) -> None:
        async with engine.Client() as client:
            await client.put(BODY, f"{url}/first")
            for number in range(300):
                await client.put(BODY, f"{url}/{number}")
            gc.collect()
            before = len(gc.get_objects())
            for number in range(300):
                await client.put(BODY, f"{url}/{number}")
            gc.collect()
            assert len(gc.get_objects()) - before < 50

    def serve(connection: socket.socket) -> None:
        while read_request(connection)[0]:
            connection.sendall(STORED)

    with raw_server(serve) as url:
        run(main(url))


# --- many at once -------------------------------------------------------------------------------------------------------------


def test_puts_by_both_ways_share_few_connections_and_none_gets_anothers_answer(run: Run) -> None:
    """Peers that echo each body's tag as its ETag, and now and then dawdle, answer in pieces, say 503, close or reset; tasks
    that are cancelled now and then. Seeded."""
    dice = random.Random(20)
    config = engine.Config(max_connections=4, retry=engine.Retry(max_attempts=8, base_s=0.001, cap_s=0.002))

    def serve(connection: socket.socket) -> None:
        while (request := read_request(connection))[0]:
            tag = request[1][:8].decode()
            answer = text("200 OK", f"ETag: {tag}")
            match dice.randrange(12):
                case 0:
                    time.sleep(0.002)
                case 1:
                    connection.sendall(answer[:20])
                    time.sleep(0.001)
                    answer = answer[20:]
                case 2:
                    answer = text("503 Slow Down", "Retry-After: 0")
                case 3:
                    connection.sendall(answer)
                    return
                case 4:
                    reset(connection)
                    return
                case 5:
                    connection.sendall(CONTINUE)
            connection.sendall(answer)

    async def one(client: engine.Client, url: str, number: int) -> bool:
        tag = f"{number:08}"
        task = asyncio.ensure_future(client.put(tag.encode() * 100, f"{url}/{tag}"))
        if number % 7 == 0:
            asyncio.get_running_loop().call_later(dice.random() * 0.01, task.cancel)
        try:
            return bool((await task).etag == tag)
        except asyncio.CancelledError:
            return number % 7 == 0
        except engine.EngineError:
            return True

    async def main(url: str) -> int:
        async with engine.Client(config=config) as client:
            watched = Watched(client)
            numbers = iter(range(600))

            async def work() -> None:
                for number in numbers:
                    assert await one(client, url, number)

            await asyncio.gather(*(work() for _worker in range(4)))
            assert len(client_connections(client)) <= 4
            assert all(connection.usable for connection in client_connections(client))
            return len(watched.begun)

    before = sockets()
    with raw_server(*[serve] * 2000, backlog=100) as url:
        begun = run(main(url))
    assert begun > 200
    assert sockets() == before
