"""nginx, which says 100 to everybody and refuses or redirects microseconds later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvloop

import engine
from engine import events

from .cases import ONCE, assert_sent_once, every_method_follows, pieces
from .conftest import Sample
from .relay import Relay
from .servers import Logged, Nginx, digest
from .tcpdiag import DestroyedSockets

pytestmark = pytest.mark.live


def logged(nginx: Nginx, path: str, count: int = 1) -> list[Logged]:
    """Return the log's lines about `path` once there are `count`: nginx writes one when it is done with a request."""
    deadline = time.monotonic() + 10
    while True:
        found = [line for line in nginx.requests() if line.path == path]
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, nginx.logs()
        time.sleep(0.01)


def body_bytes_received(nginx: Nginx, url: str, path: str, counts: DestroyedSockets, count: int) -> list[int]:
    """Return what the kernel received for `url`'s server behind the heads of its `count` requests for `path`."""
    heads = {line.client_port: line.size for line in logged(nginx, path, count)}
    port = urlsplit(url).port
    assert port is not None
    return [size - heads[peer] for peer, size in counts.wait(port, heads).items()]


def test_a_put_through_a_redirect_sends_the_refusing_server_no_body_byte_and_the_storing_one_the_file(
    prompt_nginx: Nginx, sample: Sample, kernel_counts: DestroyedSockets
) -> None:
    result = engine.put(sample.path, f"{prompt_nginx.redirector}/307/once")
    assert_sent_once(result, sample)
    assert result.status == 201
    assert [urlsplit(hop.url).netloc for hop in result.hops] == [
        urlsplit(url).netloc for url in (prompt_nginx.redirector, prompt_nginx.store)
    ]
    # An orderly end takes one sequence number, a reset none.
    assert body_bytes_received(prompt_nginx, prompt_nginx.redirector, "/307/once", kernel_counts, 1) in ([0], [1])
    [stored] = logged(prompt_nginx, "/once")
    [taken] = kernel_counts.wait(urlsplit(prompt_nginx.store).port or 0, [stored.client_port]).values()
    # nginx counts head and body of what it stores.
    assert taken - stored.size in (0, 1)
    assert sample.size < stored.size < sample.size + 2000
    assert digest(prompt_nginx.stored("once")) == sample.sha256


@pytest.mark.parametrize("at_once", [1, 16])
def test_a_100_and_a_307_microseconds_apart_let_no_body_byte_leave_in_50_puts(
    prompt_nginx: Nginx, sample: Sample, kernel_counts: DestroyedSockets, at_once: int
) -> None:
    size = 2 << 20
    path = f"/307/fifty-{at_once}"

    async def put_all() -> list[engine.PutResult]:
        turns = asyncio.Semaphore(at_once)
        async with engine.Client() as client:

            async def put(number: int) -> engine.PutResult:
                async with turns:
                    return await client.put(sample.path, prompt_nginx.redirector + path, size=size)

            return await asyncio.gather(*map(put, range(50)))

    for result in uvloop.run(put_all()):
        assert [hop.body_bytes_sent for hop in result.hops] == [0, size]
        assert [hop.body_bytes_read for hop in result.hops] == [0, size]
    received = body_bytes_received(prompt_nginx, prompt_nginx.redirector, path, kernel_counts, 50)
    assert set(received) <= {0, 1}  # 1: the end of the stream


def test_a_body_byte_leaves_after_a_100_only_when_a_millisecond_has_brought_no_307(
    ordinary_nginx: Nginx, sample: Sample
) -> None:
    # Here the client mostly reads a bare 100 first. The scheduler may hold the 307 back for longer than the silence waited for.
    async def waits_of_bodies_that_left() -> list[float]:
        waits = []
        async with engine.Client() as client:
            for _ in range(50):
                at: dict[type, float] = {}
                result = await client.put(
                    sample.path,
                    f"{ordinary_nginx.redirector}/307/ordinary",
                    size=2 << 20,
                    on_event=lambda event, at=at: at.setdefault(type(event), event.at),
                )
                if result.hops[0].body_bytes_sent:
                    waits.append(at[events.BodyStarted] - at[events.Continue])
        return waits

    assert [wait for wait in uvloop.run(waits_of_bodies_that_left()) if wait < 0.001] == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_put_head_get_and_delete_follow(prompt_nginx: Nginx, sample: Sample, tmp_path: Path, status: int) -> None:
    name = f"follow-{status}"
    url = f"{prompt_nginx.redirector}/{status}/{name}"
    uvloop.run(every_method_follows(url, prompt_nginx.stored(name), sample, tmp_path / "got"))


def test_a_303_on_a_put_or_delete_is_refused_and_on_a_head_or_get_followed(
    nginx: Nginx, sample: Sample, tmp_path: Path
) -> None:
    url = f"{nginx.redirector}/303/name-303"

    async def work() -> None:
        async with engine.Client() as client:
            await client.put(sample.path, f"{nginx.store}/name-303")
            with pytest.raises(engine.RedirectRefused) as refused:
                await client.put(sample.path, url)
            assert (refused.value.status, refused.value.body_bytes_sent) == (303, 0)
            with pytest.raises(engine.RedirectRefused):
                await client.delete(url)
            assert digest(nginx.stored("name-303")) == sample.sha256
            assert (await client.head(url)).size == sample.size
            assert await client.get(url, tmp_path / "got") == sample.size

    uvloop.run(work())


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (403, engine.AccessDenied),
        (412, engine.PreconditionFailed),
        (413, engine.ResponseError),
        (503, engine.ResponseError),
    ],
)
def test_a_refused_put_sends_no_body_byte(
    prompt_nginx: Nginx, sample: Sample, kernel_counts: DestroyedSockets, status: int, error: type[engine.ResponseError]
) -> None:
    path = f"/{status}/refused"
    with pytest.raises(error) as refused:
        engine.put(sample.path, prompt_nginx.redirector + path, retry=ONCE)
    assert refused.value.status == status
    assert refused.value.body_bytes_sent == 0
    assert body_bytes_received(prompt_nginx, prompt_nginx.redirector, path, kernel_counts, 1) in ([0], [1])


def test_a_500_in_mid_body_stops_the_body_and_reaches_the_caller(
    nginx: Nginx, big_sample: Sample, relay: Callable[[str], Relay]
) -> None:
    counted = relay(nginx.full)
    with pytest.raises(engine.ResponseError) as refused:
        engine.put(big_sample.path, f"{counted.url}/too-big", retry=ONCE)
    assert refused.value.status == 500
    [hop] = refused.value.hops
    assert nginx.full_at <= hop.body_bytes_sent < big_sample.size
    [connection] = counted.settled()
    assert connection.body_received <= hop.body_bytes_sent


def test_a_413_in_the_middle_of_a_chunked_body_stops_it(nginx: Nginx, big_sample: Sample) -> None:
    with pytest.raises(engine.ResponseError) as refused:
        engine.put(pieces(big_sample), f"{nginx.redirector}/413/chunked", retry=ONCE)
    assert refused.value.status == 413
    assert 1 << 20 <= refused.value.body_bytes_sent < big_sample.size


def test_a_created_object_with_a_location_is_no_redirect_and_overwriting_it_is_fine(
    nginx: Nginx, sample: Sample
) -> None:
    url = f"{nginx.store}/created"
    created = engine.put(sample.path, url)
    assert (created.status, created.redirects, created.url) == (201, 0, url)
    overwritten = engine.put(sample.path, url)
    assert (overwritten.status, overwritten.redirects) == (204, 0)
    assert digest(nginx.stored("created")) == sample.sha256
