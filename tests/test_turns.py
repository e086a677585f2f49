"""The waiting line: order, cancellation, time limits; and that thousands of puts started at once open few files."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import engine
from engine import limits
from engine.turns import Turns
from tests.conftest import Server
from tests.peers import descriptors

Make = Callable[..., engine.Client]
Run = Callable[[Any], Any]


def test_turns_come_in_order_and_no_more_than_the_limit_at_once(run: Run) -> None:
    async def main() -> None:
        turns, order, at_once = Turns(2), [], 0

        async def one(number: int) -> None:
            nonlocal at_once
            await turns.take()
            at_once += 1
            assert at_once <= 2
            order.append(number)
            await asyncio.sleep(0)
            at_once -= 1
            turns.give_back()

        await asyncio.gather(*map(one, range(50)))
        assert order == list(range(50))
        assert turns.try_take()
        assert turns.try_take()
        assert not turns.try_take()

    run(main())


@pytest.mark.parametrize("given_first", [True, False])
def test_a_turn_that_comes_with_a_cancellation_goes_to_the_next(run: Run, given_first: bool) -> None:
    async def main() -> None:
        turns = Turns(1)
        assert turns.try_take()
        first, second = (asyncio.ensure_future(turns.take()) for _ in range(2))
        await asyncio.sleep(0)
        if given_first:
            turns.give_back()
        first.cancel()
        if not given_first:
            turns.give_back()
        await asyncio.wait_for(second, 5)
        assert first.cancelled() or isinstance(first.exception(), asyncio.CancelledError)
        assert not turns.try_take()

    run(main())


def test_a_turn_that_does_not_come_in_time_is_not_kept(run: Run) -> None:
    async def main() -> None:
        turns = Turns(1)
        assert turns.try_take()
        with pytest.raises(TimeoutError):
            await turns.take(0.01)
        turns.give_back()
        assert turns.try_take()

    run(main())


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(descriptors()) + 120, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_descriptors")
@pytest.mark.parametrize("checksum", ["auto", "sha256"])
def test_hundreds_of_puts_started_at_once_open_few_files(
    client_of: Make, run: Run, tmp_path: Path, checksum: Any
) -> None:
    """The limit of descriptors is far below the number of puts; each connection needs two, the sandbox's end one more."""
    path = tmp_path / "small"
    path.write_bytes(b"x" * 1024)

    async def main() -> None:
        async with client_of(config=engine.Config(max_connections=8)) as client:
            transfers = [
                client.start_put(path, f"s3://store/many/{number}", checksum=checksum) for number in range(250)
            ]
            await asyncio.sleep(0)
            assert transfers[-1].progress.phase == "connecting"
            results = await asyncio.gather(*transfers)
            assert {result.status for result in results} == {200}

    run(main())


def test_gets_wait_for_their_turn_too(client_of: Make, run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with client_of(config=engine.Config(max_connections=2)) as client:
            await client.put(b"x" * 1000, "s3://store/got")
            gets = [asyncio.ensure_future(client.get("s3://store/got", tmp_path / str(n))) for n in range(50)]
            await asyncio.sleep(0)
            assert len(os.listdir(tmp_path)) <= 2 * limits.SOURCES_PER_CONNECTION_MAX
            assert set(await asyncio.gather(*gets)) == {1000}

    run(main())


def test_the_total_timeout_counts_the_time_in_line(client_of: Make, run: Run, server: Server) -> None:
    async def main() -> None:
        async with client_of(config=engine.Config(max_connections=1)) as client:
            stuck = [
                client.start_put(b"x", f"s3://hang/{number}") for number in range(limits.SOURCES_PER_CONNECTION_MAX)
            ]
            await asyncio.sleep(0)
            with pytest.raises(engine.TotalTimedOut, match=r"s3://store/late: not done within 0.2 s"):
                await client.put(b"x", "s3://store/late", total_timeout_s=0.2)
            for transfer in stuck:
                transfer.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)
            assert (await client.put(b"x", "s3://store/later")).status == 200

    run(main())
    assert [record.target for record in server.records() if "late" in record.target] == ["/store/later"]


def test_closing_the_client_ends_those_in_line(client_of: Make, run: Run) -> None:
    async def main() -> None:
        client = client_of(config=engine.Config(max_connections=1))
        puts = [client.start_put(b"x", f"s3://hang/{number}") for number in range(10)]
        await asyncio.sleep(0.1)
        await client.close()
        ended = await asyncio.wait_for(asyncio.gather(*puts, return_exceptions=True), 10)
        assert all(isinstance(error, engine.EngineError) for error in ended)

    run(main())
