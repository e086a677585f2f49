"""lighttpd: answers before the body, asked or not; closes its half of the connection and goes on reading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

import engine

from .cases import ONCE, assert_sent_once, assert_withheld, every_method_follows
from .conftest import Sample
from .relay import Relay
from .servers import Lighttpd, digest

pytestmark = pytest.mark.live


def test_the_redirecting_server_receives_no_body_byte_and_the_storing_one_the_file(
    lighttpd: Lighttpd, sample: Sample, relay: Callable[[str], Relay]
) -> None:
    redirector = relay(lighttpd.redirector)
    result = engine.put(sample.path, f"{redirector.url}/307/once")
    assert_sent_once(result, sample)
    assert_withheld(redirector.settled())
    assert digest(lighttpd.stored("once")) == sample.sha256


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_put_head_get_and_delete_follow(lighttpd: Lighttpd, sample: Sample, tmp_path: Path, status: int) -> None:
    name = f"follow-{status}"
    url = f"{lighttpd.redirector}/{status}/{name}"
    uvloop.run(every_method_follows(url, lighttpd.stored(name), sample, tmp_path / "got"))


def test_a_307_in_mid_body_from_a_server_that_reads_on_stops_the_body(lighttpd: Lighttpd, big_sample: Sample) -> None:
    result = engine.put(big_sample.path, f"{lighttpd.redirector}/307/not-asked", expect="never")
    first, last = result.hops
    assert first.body_bytes_sent < big_sample.size
    assert last.body_bytes_sent == big_sample.size
    assert result.body_bytes_sent == first.body_bytes_sent + big_sample.size
    assert digest(lighttpd.stored("not-asked")) == big_sample.sha256


def test_a_refused_put_sends_no_body_byte(lighttpd: Lighttpd, sample: Sample, relay: Callable[[str], Relay]) -> None:
    redirector = relay(lighttpd.redirector)
    with pytest.raises(engine.AccessDenied) as refused:
        engine.put(sample.path, f"{redirector.url}/403/refused")
    assert refused.value.body_bytes_sent == 0
    assert_withheld(redirector.settled())


def test_a_500_in_mid_body_stops_the_body_and_reaches_the_caller(lighttpd: Lighttpd, big_sample: Sample) -> None:
    with pytest.raises(engine.ResponseError) as refused:
        engine.put(big_sample.path, f"{lighttpd.full}/too-big", retry=ONCE)
    assert refused.value.status == 500
    assert lighttpd.full_at <= refused.value.body_bytes_sent < big_sample.size
