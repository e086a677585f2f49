"""HAProxy: resets the sender after an early answer, and is silent for 3 s when its backend is dead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

import engine

from .cases import ONCE, assert_sent_once, assert_withheld, every_method_follows
from .conftest import Sample
from .relay import Relay
from .servers import Haproxy, Nginx, digest

pytestmark = pytest.mark.live


def test_a_put_passes_through_and_its_go_ahead_is_the_backends(haproxy: Haproxy, nginx: Nginx, sample: Sample) -> None:
    result = engine.put(sample.path, f"{haproxy.live}/proxied")
    assert (result.expect, result.body_bytes_sent, result.redirects) == ("continue", sample.size, 0)
    assert digest(nginx.stored("proxied")) == sample.sha256


def test_the_redirecting_server_receives_no_body_byte_and_the_storing_one_the_file(
    haproxy: Haproxy, nginx: Nginx, sample: Sample, relay: Callable[[str], Relay]
) -> None:
    redirector = relay(haproxy.redirector)
    result = engine.put(sample.path, f"{redirector.url}/307/proxied-once")
    assert_sent_once(result, sample)
    assert_withheld(redirector.settled())
    assert digest(nginx.stored("proxied-once")) == sample.sha256


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_put_head_get_and_delete_follow(
    haproxy: Haproxy, nginx: Nginx, sample: Sample, tmp_path: Path, status: int
) -> None:
    name = f"proxied-follow-{status}"
    url = f"{haproxy.redirector}/{status}/{name}"
    uvloop.run(every_method_follows(url, nginx.stored(name), sample, tmp_path / "got"))


def test_a_307_in_mid_body_is_followed_although_the_server_resets(
    haproxy: Haproxy, nginx: Nginx, big_sample: Sample
) -> None:
    result = engine.put(big_sample.path, f"{haproxy.redirector}/307/proxied-reset", expect="never", retry=ONCE)
    first, last = result.hops
    assert (first.status, first.outcome) == (307, "redirected")
    assert first.body_bytes_sent < big_sample.size
    assert last.body_bytes_sent == big_sample.size
    assert digest(nginx.stored("proxied-reset")) == big_sample.sha256


@pytest.mark.parametrize("round_", range(10))
def test_a_403_in_mid_body_reaches_the_caller_although_the_server_resets(
    haproxy: Haproxy, big_sample: Sample, round_: int
) -> None:
    with pytest.raises(engine.AccessDenied) as refused:
        engine.put(big_sample.path, f"{haproxy.redirector}/403/reset-{round_}", expect="never", retry=ONCE)
    assert refused.value.body_bytes_sent < big_sample.size


def test_a_503_after_silence_from_a_host_known_to_answer_costs_no_body_byte(
    haproxy: Haproxy, big_sample: Sample, relay: Callable[[str], Relay]
) -> None:
    dead = relay(haproxy.dead)

    async def work() -> None:
        async with engine.Client() as client:
            for expect in ("strict", "auto"):  # the first answer makes the host known
                with pytest.raises(engine.ResponseError) as refused:
                    await client.put(big_sample.path, f"{dead.url}/dead-{expect}", expect=expect, retry=ONCE)
                assert refused.value.body_bytes_sent == 0

    uvloop.run(work())
    connections = dead.settled()
    assert len(connections) == 2
    assert [each.body_received for each in connections] == [0, 0]
