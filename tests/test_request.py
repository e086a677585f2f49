"""One intent carried out: what is sent again and what never is, the account of every byte, time limits, clocks, credentials."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import engine
from engine import checksums, limits, redirect, s3, wire
from engine.retry import Budget
from tests.conftest import Server
from tests.peers import CONTINUE, OK, raw_server, read_head, read_request

Make = Callable[..., engine.Client]
Run = Callable[[Any], Any]
MIB = limits.MIB
ONCE = engine.Retry(max_attempts=1)
IMPATIENT = engine.Config(response_timeout_s=5)
QUICK = engine.Retry(max_attempts=3, base_s=0.01, cap_s=0.02)


def redirect_to(url: str) -> bytes:
    return f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n".encode()


def chunked_body(connection: socket.socket) -> bytes:
    """A chunked request body, decoded."""
    file = connection.makefile("rb")
    body = b""
    while size := int(file.readline(), 16):
        body += file.read(size)
        assert file.readline() == b"\r\n"
    assert file.readline() == b"\r\n"
    return body


# --- what is known of a bucket ---------------------------------------------------------------------------------------------


def statuses(result: engine.PutResult) -> list[int]:
    return [hop.status for hop in result.hops]


@pytest.mark.parametrize(("status", "second"), [(301, [200]), (308, [200]), (307, [307, 200]), (302, [302, 200])])
@pytest.mark.parametrize("anonymous", [False, True])
def test_where_a_301_leads_is_remembered_for_the_bucket_and_where_a_307_leads_is_not(
    server: Server, client_of: Make, run: Run, status: int, second: list[int], anonymous: bool
) -> None:
    async def main(**options: Any) -> None:
        async with client_of(**options) as client:
            bucket = f"redirect-{status}.memory"
            first = await client.put(b"x" * 100_000, f"s3://{bucket}/one?#")
            assert statuses(first) == [status, 200]
            assert statuses(await client.put(b"x" * 100_000, f"s3://{bucket}/two")) == second
            assert [hop.status for hop in (await client.head(f"s3://{bucket}/one?#")).hops] == second
            assert statuses(await client.put(b"x" * 100_000, f"s3://{bucket}.other/one")) == [status, 200]

    if not anonymous:
        run(main())
        return
    with engine.sandbox.start(anonymous=True) as running:
        run(main(endpoint_url=running.redirector_url, region=running.region, credentials=engine.ANONYMOUS))


def test_a_301_that_changes_more_than_the_host_is_not_remembered(server: Server, client_of: Make, run: Run) -> None:
    async def main() -> None:
        async with client_of() as client:
            for _number in range(2):
                assert statuses(await client.put(b"x" * 100_000, "s3://redirect-301-query/k")) == [301, 200]
                assert statuses(await client.put(b"x" * 100_000, "s3://redirect-301-hops-2/k")) == [301, 301, 200]

    run(main())


NO_BUCKET = b"<Error><Code>NoSuchBucket</Code></Error>"
CONTRADICTIONS = {
    "redirect": None,
    "no-such-bucket": b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s" % (len(NO_BUCKET), NO_BUCKET),
    "gone": b"",
}


@pytest.mark.parametrize("contradiction", CONTRADICTIONS)
def test_a_place_is_forgotten_when_contradicted(server: Server, run: Run, contradiction: str) -> None:
    """The bucket moves: from the endpoint to another host by 301, and then from there back to a third."""

    def moved(url: str) -> Callable[[socket.socket], None]:
        def answer(connection: socket.socket) -> None:
            head = read_head(connection)
            path = head.split(b" ")[1].decode()
            connection.sendall(redirect_to(f"{url}{path}").replace(b"307 Temporary Redirect", b"301 Moved Permanently"))

        return answer

    def then(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK)
        if contradiction == "gone":
            return
        read_head(connection)
        connection.sendall(CONTRADICTIONS[contradiction] or redirect_to(f"{server.store_url}/store/k"))

    async def main(here: str) -> None:
        async with engine.Client(**{**server.options, "endpoint_url": here}) as client:
            put = lambda: client.put(b"x" * 100_000, "s3://store/k", retry=QUICK)  # noqa: E731
            assert statuses(await put()) == [301, 200]
            if contradiction == "redirect":
                assert statuses(await put()) == [307, 200]
            elif contradiction == "no-such-bucket":
                with pytest.raises(engine.NotFound):
                    await put()
            else:
                stop.close()
                result = await put()
                assert [hop.status for hop in result.hops][-2:] == [301, 200]
                assert result.attempts >= 2
                return
            assert statuses(await put()) == [301, 200]  # asked at the endpoint again

    stop = contextlib.ExitStack()
    with stop:
        there = stop.enter_context(raw_server(then))
        with raw_server(moved(there), moved(server.store_url)) as here:
            run(main(here))


def test_a_remembered_place_is_judged_for_every_request_anew() -> None:
    """What may not cross to another origin does not, though an earlier request without it was led there."""
    endpoint = s3.Endpoint.from_url("http://store.example", "r")
    intent = redirect.Intent("PUT", s3.address(endpoint, "b", "k"), False, "", "b", "k", endpoint)
    there = wire.parse_url("http://elsewhere.example/").origin
    policy = redirect.RedirectPolicy()
    assert redirect.recall(intent, there, "", policy) is not None
    secret = dataclasses.replace(intent, fields=(("x-api-key", "swordfish"),))
    assert redirect.recall(secret, there, "", policy) is None
    signed = dataclasses.replace(intent, signed=True, region="r")
    assert redirect.recall(signed, there, "r", policy) is None
    listed = redirect.RedirectPolicy(hosts=("elsewhere.example",))
    followed = redirect.recall(signed, there, "r", listed)
    assert followed is not None
    assert (str(followed.url), followed.region, followed.sign) == ("http://elsewhere.example/b/k", "r", True)


# --- tried again ------------------------------------------------------------------------------------------------------------


def answers(*lines: bytes) -> Callable[[socket.socket], None]:
    """One connection on which each request gets the next answer."""

    def answer(connection: socket.socket) -> None:
        for line in lines:
            read_request(connection)
            connection.sendall(line)

    return answer


TIMED_OUT = b"<Error><Code>RequestTimeout</Code><Message>Your socket connection was idle</Message></Error>"
REQUEST_TIMEOUT = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (
    len(TIMED_OUT),
    TIMED_OUT,
)


def test_a_400_request_timeout_is_tried_again_and_another_400_is_not(run: Run) -> None:
    with raw_server(answers(REQUEST_TIMEOUT), answers(OK)) as url:
        result = run(engine.put_async(b"abc", f"{url}/key", retry=QUICK))
    assert (result.attempts, result.body_bytes_sent, statuses(result)) == (2, 6, [400, 200])
    other = REQUEST_TIMEOUT.replace(b"RequestTimeout", b"InvalidRequest")
    with raw_server(answers(other)) as url, pytest.raises(engine.ResponseError) as caught:
        run(engine.put_async(b"abc", f"{url}/key", retry=QUICK))
    assert caught.value.attempts == 1


def test_another_attempt_takes_a_fresh_connection_though_the_old_one_could_be_used(run: Run) -> None:
    busy = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n"
    with raw_server(answers(busy), answers(OK)) as url:
        result = run(engine.put_async(b"abc", f"{url}/key", retry=QUICK))
    assert statuses(result) == [503, 200]


def test_another_attempt_goes_to_another_address_of_the_name(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n"
    with raw_server(answers(busy)) as url, raw_server(answers(OK), at=("127.0.0.2", wire.parse_url(url).port)):

        async def resolve(origin: wire.Origin) -> list[Any]:
            return [(socket.AF_INET, (address, origin.port)) for address in ("127.0.0.1", "127.0.0.2")]

        monkeypatch.setattr("engine.pool.resolve", resolve)
        result = run(engine.put_async(b"abc", url.replace("127.0.0.1", "store.test") + "/key", retry=QUICK))
    assert statuses(result) == [503, 200]


def test_an_outage_is_not_met_with_three_times_the_load(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget of the client: after its tokens are spent, failures are errors at the first attempt."""
    monkeypatch.setattr("engine.request.retry.Budget", lambda: Budget(20))
    busy = b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

    async def main(url: str) -> list[int]:
        attempts = []
        async with engine.Client() as client:
            for number in range(5):
                with pytest.raises(engine.ResponseError) as caught:
                    await client.put(b"abc", f"{url}/{number}", retry=QUICK)
                attempts.append(caught.value.attempts)
        return attempts

    with raw_server(*[answers(busy)] * 9) as url:
        assert run(main(url)) == [3, 3, 1, 1, 1]


def test_a_hundred_puts_at_once_refresh_the_credentials_once(server: Server, client_of: Make, run: Run) -> None:
    asked: list[float] = []
    later_s = 0.0

    def clock() -> float:
        return time.time() + later_s

    def fetch() -> engine.Credentials:
        asked.append(clock())
        time.sleep(0.05)
        return dataclasses.replace(server.credentials, expires_at=clock() + 3600)

    async def main() -> None:
        nonlocal later_s
        async with client_of(credentials=fetch) as client:
            client._provider._clock = clock
            for round_number in (1, 2, 3):
                await asyncio.gather(*(client.put(b"x", f"s3://store/refresh/{n}") for n in range(100)))
                assert len(asked) == round_number
                later_s += 4000  # what was fetched has expired

    run(main())


# --- what cannot be sent again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 6])
def test_an_item_that_was_in_the_making_when_a_redirect_came_goes_to_the_next_host(run: Run, size: int | None) -> None:
    """Nothing had been taken yet. Cancelling the step would end the generator, and the object stored would be empty."""
    bodies: list[bytes] = []

    def store(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(CONTINUE)
        bodies.append(chunked_body(connection) if size is None else connection.makefile("rb").read(6))
        connection.sendall(OK)

    async def slow() -> AsyncIterator[bytes]:
        await asyncio.sleep(0.2)
        yield b"abc"
        yield b"def"

    with raw_server(store) as there:

        def refuse(connection: socket.socket) -> None:
            read_head(connection)
            connection.sendall(CONTINUE)
            time.sleep(0.1)
            connection.sendall(redirect_to(f"{there}/key"))
            connection.recv(1)

        with raw_server(refuse) as here:
            result = run(engine.put_async(slow(), f"{here}/key", size=size))
    assert bodies == [b"abcdef"]
    assert [(hop.body_bytes_sent, hop.body_bytes_read) for hop in result.hops] == [(0, 0), (6, 6)]
    assert result.checksum == engine.Checksum("crc64nvme", crc64(b"abcdef"))


def test_an_item_that_had_come_and_not_left_when_a_redirect_came_goes_to_the_next_host(run: Run) -> None:
    """The answer and the item arrive in one turn of the loop: the item is given back, and the first host shows 0 and 0."""
    bodies: list[bytes] = []

    def store(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(CONTINUE)
        bodies.append(chunked_body(connection))
        connection.sendall(OK)

    with raw_server(store) as there:

        def refuse(connection: socket.socket) -> None:
            read_head(connection)
            connection.sendall(CONTINUE)
            time.sleep(0.1)
            connection.sendall(redirect_to(f"{there}/key"))
            connection.recv(1)

        async def blocking() -> AsyncIterator[bytes]:
            time.sleep(0.3)  # noqa: ASYNC251  (the loop stands still, so that both are there when it goes on)
            yield b"abc"
            yield b"def"

        with raw_server(refuse) as here:
            result = run(engine.put_async(blocking(), f"{here}/key"))
    assert bodies == [b"abcdef"]
    assert [(hop.body_bytes_sent, hop.body_bytes_read) for hop in result.hops] == [(0, 0), (6, 6)]
    assert result.checksum == engine.Checksum("crc64nvme", crc64(b"abcdef"))


def crc64(data: bytes) -> str:
    running = checksums.new("crc64nvme")
    running.update(data)
    return running.digest_base64()


EXPECTATION_FAILED = b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"


def s3_error(status: int, code: str, *fields: str) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    head = "".join(f"{field}\r\n" for field in fields)
    return f"HTTP/1.1 {status} No\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    "answer",
    [
        EXPECTATION_FAILED,
        s3_error(403, "RequestTimeTooSkewed", "Date: Thu, 01 Jan 2032 00:00:00 GMT"),
        s3_error(400, "ExpiredToken"),
        s3_error(503, "SlowDown"),
        redirect_to("/elsewhere"),
    ],
    ids=["417", "clock", "credentials", "503", "307"],
)
def test_what_was_taken_from_an_iterator_is_never_followed_by_the_rest_as_if_it_were_all(
    run: Run, answer: bytes
) -> None:
    """Whatever makes the engine send the request again: an object made of the rest would be stored with a 200."""

    def late(connection: socket.socket) -> None:
        read_head(connection)
        connection.recv(5)
        connection.sendall(answer)
        connection.recv(1 << 20)

    def pieces() -> Any:
        yield b"abc"
        yield bytes(200_000)
        time.sleep(0.2)
        yield b"def"

    async def main(url: str) -> None:
        async with engine.Client(
            region="r-1", config=IMPATIENT, credentials=lambda: engine.Credentials("access", "secret")
        ) as client:
            with pytest.raises(engine.SourceNotReplayable) as caught:
                await client.put(pieces(), f"{url}/key", sign="s3", continue_timeout_s=0.05, retry=QUICK)
            assert caught.value.body_bytes_sent > 0
            assert len(caught.value.hops) == 1

    with raw_server(late) as url:
        run(main(url))


# --- what is sent again -----------------------------------------------------------------------------------------------------


def lose(connection: socket.socket) -> None:
    read_request(connection)


def answer_ok(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(OK)


@pytest.mark.parametrize(("method", "again"), [("GET", True), ("PUT", True), ("DELETE", True), ("POST", False)])
def test_a_request_that_may_have_been_carried_out_is_made_again_only_when_twice_is_as_good_as_once(
    run: Run, method: str, again: bool
) -> None:
    """RFC 9110 section 9.2.2."""

    async def main(url: str) -> engine.Response:
        async with engine.Client(config=IMPATIENT) as client:
            return await client.request(method, url, body=b"abc", retry=QUICK)

    if again:
        with raw_server(lose, answer_ok) as url:
            assert run(main(url)).status == 200
    else:
        with raw_server(lose) as url, pytest.raises(engine.ConnectionLost):
            run(main(url))


# --- whatever a peer does ---------------------------------------------------------------------------------------------------

FINALS = [
    OK,
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 500 Oh\r\nContent-Length: 20000\r\n\r\n" + bytes(20000),
    b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\n\r\nuntil the end",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 307 Elsewhere\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\n",
    b"garbage\r\n\r\n",
]
INTERIMS = [
    CONTINUE,
    CONTINUE,
    b"HTTP/1.1 102 Processing\r\n\r\n",
    b"HTTP/1.1 103 Hints\r\n\r\n",
    b"HTTP/1.1 101 Up\r\n\r\n",
]


class RandomPeer:
    """Does what a seed says, in the client's own loop: any order of reading, answering, waiting, closing and resetting."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.tasks: set[asyncio.Task[Any]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        rng = self._rng
        # RuntimeError: uvloop's, when the transport is gone.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, RuntimeError):
            if rng.random() < 0.3:
                await self._store(reader, writer)
            for _step in range(rng.randint(1, 12)):
                what = rng.choices(
                    ["head", "read", "interim", "final", "part", "wait", "reset", "half"], [5, 5, 5, 4, 1, 3, 0.5, 0.5]
                )[0]
                if what == "head":
                    with contextlib.suppress(asyncio.TimeoutError, asyncio.LimitOverrunError):
                        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 0.01)
                elif what == "read":
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(reader.read(rng.choice([1, 1000, 1 << 17, 1 << 22])), 0.01)
                elif what == "wait":
                    await asyncio.sleep(rng.choice([0, 0, 0.001, 0.003, 0.01]))
                elif what == "reset":
                    writer.transport.abort()
                    break
                elif what == "half":
                    writer.write_eof()
                    await asyncio.sleep(0.01)
                    break
                else:
                    answer = rng.choice(INTERIMS if what == "interim" else FINALS)
                    writer.write(answer[: rng.randint(1, len(answer))] if what == "part" else answer)
                    if rng.random() < 0.3:
                        writer.write(rng.choice(FINALS + INTERIMS))
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()
            await writer.wait_closed()

    async def _store(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """As a server should, but for what comes before and after it."""
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CONTINUE)
        with contextlib.suppress(asyncio.TimeoutError):
            while await asyncio.wait_for(reader.read(1 << 20), 0.01):
                pass
        writer.write(OK)


def of_the_peer(task: asyncio.Task[Any]) -> bool:
    name = getattr(task.get_coro(), "__qualname__", "")
    return "RandomPeer" in name or "_accept_connection" in name


def random_source(rng: random.Random, path: Path) -> tuple[Any, int | None]:
    async def pieces(count: int) -> AsyncIterator[bytes]:
        for _number in range(count):
            await asyncio.sleep(rng.choice([0, 0, 0.001]))
            yield bytes(50_000)

    kind = rng.choice(["empty", "small", "middle", "memory", "file", "iterator", "chunked"])
    count = rng.randint(1, 20)
    return {
        "empty": (b"", None),
        "small": (bytes(10), None),
        "middle": (bytes(100_000), None),
        "memory": (bytes(3 * MIB), None),
        "file": (path, None),
        "iterator": (pieces(count), count * 50_000),
        "chunked": (pieces(count), None),
    }[kind]


async def random_put(seed: int, path: Path, complaints: list[Any]) -> str:
    rng, peer = random.Random(seed), RandomPeer(seed)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: complaints.append((seed, context)))
    server = await asyncio.start_server(peer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/key"
    source, size = random_source(rng, path)
    config = engine.Config(
        expect=rng.choice(["auto", "always", "never", "strict"]),
        continue_timeout_s=rng.choice(["auto", 0.002]),
        response_timeout_s=0.05,
        stall_timeout_s=0.05,
        retry=rng.choice([ONCE, engine.Retry(max_attempts=3, base_s=0.001)]),
        total_timeout_s=rng.choice([None, None, 0.02]),
    )
    client = engine.Client(config=config)
    transfer = client.start_put(source, url, size=size)
    end = rng.choice(["wait", "wait", "wait", "cancel", "close"])
    if end != "wait":
        await asyncio.sleep(rng.choice([0, 0.001, 0.004, 0.01]))
        if end == "cancel":
            transfer.cancel()
        else:
            await client.close()
    try:
        result = await asyncio.wait_for(transfer, 5)
        assert 200 <= result.status < 300
        assert result.hops[-1].body_bytes_sent == result.size
        return "stored"
    except engine.EngineError as error:
        assert error.body_bytes_sent == sum(hop.body_bytes_sent for hop in error.hops)  # noqa: PT017
        return type(error).__name__
    except asyncio.CancelledError:
        assert end == "cancel"
        return "cancelled"
    finally:
        await client.close()
        await asyncio.sleep(0.001)  # a connection that is being accepted would be left to the garbage collector
        server.close()
        await asyncio.gather(*peer.tasks, return_exceptions=True)


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_whatever_a_peer_does_the_end_is_a_result_or_an_error_of_ours(run: Run, tmp_path: Path, first: int) -> None:
    """No input that the machine does not have, nothing for the loop's exception handler, no task left: for 100 seeds."""
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * MIB))
    complaints: list[Any] = []

    async def main() -> set[str]:
        outcomes = set()
        for seed in range(first, first + 100):
            try:
                outcomes.add(await random_put(seed, path, complaints))
            except Exception as error:
                raise AssertionError(f"seed {seed}") from error
            left = [task for task in asyncio.all_tasks() - {asyncio.current_task()} if not of_the_peer(task)]
            assert not left, (seed, left)
        return outcomes

    outcomes = run(main())
    assert not complaints, complaints[0]
    assert {"stored", "cancelled", "ProtocolError"} <= outcomes


@pytest.mark.parametrize("began", [False, True])
def test_a_used_connection_that_dies_is_stale_only_without_a_byte_of_an_answer(run: Run, began: bool) -> None:
    """A server that has begun to answer was there for the request: without retries, that was it."""

    def answer_one_and_die(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK)
        read_request(connection)
        if began:
            connection.sendall(OK[:12])

    def answer(connection: socket.socket) -> None:
        if read_head(connection):
            connection.recv(100)
            connection.sendall(OK)

    async def main(url: str) -> engine.PutResult:
        async with engine.Client(config=engine.Config(retry=ONCE)) as client:
            await client.put(b"first", f"{url}/key", checksum=None)
            return await client.put(b"second", f"{url}/key", checksum=None)

    with raw_server(answer_one_and_die, answer) as url:
        if began:
            with pytest.raises(engine.ConnectionLost):
                run(main(url))
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))):
                pass
        else:
            assert [hop.outcome for hop in run(main(url)).hops] == ["retried", "stored"]
