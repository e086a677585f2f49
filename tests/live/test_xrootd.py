"""XRootD, whose manager redirects every request and holds its answer about a new name: the slow 307 made real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

import engine

from .cases import ONCE, assert_sent_once, assert_withheld, every_method_follows, pieces
from .conftest import Sample
from .relay import Relay
from .servers import Xrootd, digest

pytestmark = pytest.mark.live


def test_put_head_get_and_delete_follow_the_manager(xrootd: Xrootd, sample: Sample, tmp_path: Path) -> None:
    # A name's first PUT is held for 1 s, which an unknown origin's wait may lose against.
    xrootd.make_known("methods")
    url = f"{xrootd.manager}/methods"
    uvloop.run(every_method_follows(url, xrootd.stored("methods"), sample, tmp_path / "got"))


def test_the_manager_receives_no_body_byte_and_the_data_server_the_file(
    xrootd: Xrootd, sample: Sample, relay: Callable[[str], Relay]
) -> None:
    xrootd.make_known("once")
    manager = relay(xrootd.manager)
    result = engine.put(sample.path, f"{manager.url}/once")
    assert_sent_once(result, sample)
    assert result.url == f"{xrootd.store}/once"
    assert_withheld(manager.settled())
    assert digest(xrootd.stored("once")) == sample.sha256


def test_a_data_server_that_closes_while_it_says_keep_alive_does_not_disturb_the_next_put(
    xrootd: Xrootd, sample: Sample
) -> None:
    async def work() -> None:
        async with engine.Client() as client:
            for name in ("first", "second", "third"):
                result = await client.put(sample.path, f"{xrootd.store}/{name}")
                assert result.body_bytes_sent == sample.size
                assert digest(xrootd.stored(name)) == sample.sha256

    uvloop.run(work())


def test_a_slow_307_from_a_host_known_to_answer_is_waited_for_and_no_body_byte_leaves(
    slow_xrootd: Xrootd, big_sample: Sample, relay: Callable[[str], Relay]
) -> None:
    slow_xrootd.make_known("known")
    manager = relay(slow_xrootd.manager)

    async def work() -> engine.PutResult:
        async with engine.Client() as client:
            await client.put(big_sample.path, f"{manager.url}/known")
            return await client.put(big_sample.path, f"{manager.url}/slow-known-host")

    result = uvloop.run(work())
    assert_sent_once(result, big_sample)
    assert result.hops[0].continue_wait_s > 3
    asked = [each for each in manager.settled() if "slow-known-host" in each.request_line]
    assert_withheld(asked)
    assert digest(slow_xrootd.stored("slow-known-host")) == big_sample.sha256


def test_a_source_that_cannot_be_sent_again_says_so_when_a_slow_307_comes_in_mid_body(
    slow_xrootd: Xrootd, big_sample: Sample
) -> None:
    with pytest.raises(engine.SourceNotReplayable) as refused:
        engine.put(pieces(big_sample), f"{slow_xrootd.manager}/slow-iterator", size=big_sample.size)
    assert refused.value.body_bytes_sent > 0
    assert not slow_xrootd.stored("slow-iterator").exists()


def test_a_source_that_cannot_be_sent_again_follows_a_307_that_came_before_the_body(
    xrootd: Xrootd, sample: Sample
) -> None:
    xrootd.make_known("iterator")
    result = engine.put(pieces(sample), f"{xrootd.manager}/iterator", size=sample.size)
    assert [hop.body_bytes_sent for hop in result.hops] == [0, sample.size]
    assert digest(xrootd.stored("iterator")) == sample.sha256


def test_strict_gives_up_on_a_host_that_is_too_slow(slow_xrootd: Xrootd, sample: Sample) -> None:
    with pytest.raises(engine.ResponseTimedOut) as late:
        engine.put(
            sample.path, f"{slow_xrootd.manager}/slow-strict-late", expect="strict", response_timeout_s=1, retry=ONCE
        )
    assert late.value.body_bytes_sent == 0


def test_a_data_server_that_dies_of_a_full_disk_in_mid_body_is_a_lost_connection(
    full_xrootd: Xrootd, big_sample: Sample
) -> None:
    with pytest.raises(engine.ConnectionLost) as lost:
        engine.put(big_sample.path, f"{full_xrootd.store}/too-big", retry=ONCE)
    assert 0 < lost.value.body_bytes_sent < big_sample.size
