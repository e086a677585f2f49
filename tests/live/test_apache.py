"""Apache httpd: answers at once when asked, and only after the whole body when not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

import engine

from .cases import ONCE, assert_sent_once, assert_withheld, every_method_follows, pieces
from .conftest import Sample
from .relay import Relay
from .servers import Apache, digest

pytestmark = pytest.mark.live


def test_the_redirecting_server_receives_no_body_byte_and_the_storing_one_the_file(
    apache: Apache, sample: Sample, relay: Callable[[str], Relay]
) -> None:
    redirector = relay(apache.redirector)
    result = engine.put(sample.path, f"{redirector.url}/307/once")
    assert_sent_once(result, sample)
    assert result.status == 201
    assert_withheld(redirector.settled())
    assert digest(apache.stored("once")) == sample.sha256


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_put_head_get_and_delete_follow(apache: Apache, sample: Sample, tmp_path: Path, status: int) -> None:
    name = f"follow-{status}"
    url = f"{apache.redirector}/{status}/{name}"
    uvloop.run(every_method_follows(url, apache.stored(name), sample, tmp_path / "got"))


def test_a_redirect_that_comes_after_the_whole_body_is_followed_and_two_bodies_are_accounted_for(
    apache: Apache, sample: Sample, relay: Callable[[str], Relay]
) -> None:
    redirector = relay(apache.redirector)
    result = engine.put(sample.path, f"{redirector.url}/307/not-asked", expect="never")
    assert [hop.body_bytes_sent for hop in result.hops] == [sample.size, sample.size]
    assert result.body_bytes_sent == 2 * sample.size
    assert result.expect == "off"
    [connection] = redirector.settled()
    assert "expect" not in connection.fields
    assert connection.body_received == sample.size
    assert digest(apache.stored("not-asked")) == sample.sha256


def test_a_redirect_after_the_whole_body_of_an_iterator_says_that_it_cannot_be_sent_again(
    apache: Apache, sample: Sample
) -> None:
    with pytest.raises(engine.SourceNotReplayable):
        engine.put(pieces(sample), f"{apache.redirector}/307/iterator", size=sample.size, expect="never")
    assert not apache.stored("iterator").exists()


@pytest.mark.parametrize("status", [401, 403, 413])
def test_a_refused_put_sends_no_body_byte(
    apache: Apache, sample: Sample, relay: Callable[[str], Relay], status: int
) -> None:
    redirector = relay(apache.redirector)
    with pytest.raises(engine.ResponseError) as refused:
        engine.put(sample.path, f"{redirector.url}/{status}/refused", retry=ONCE)
    assert refused.value.status == status
    assert refused.value.body_bytes_sent == 0
    assert_withheld(redirector.settled())


def test_a_413_in_the_middle_of_a_chunked_body_stops_it(apache: Apache, big_sample: Sample) -> None:
    with pytest.raises(engine.ResponseError) as refused:
        engine.put(pieces(big_sample), f"{apache.redirector}/413/chunked", retry=ONCE)
    assert refused.value.status == 413
    assert 1 << 20 <= refused.value.body_bytes_sent < big_sample.size


def test_a_500_that_comes_after_the_body_reaches_the_caller(apache: Apache, sample: Sample) -> None:
    with pytest.raises(engine.ResponseError) as refused:
        engine.put(sample.path, f"{apache.full}/too-big", retry=ONCE)
    assert refused.value.status == 500
    assert refused.value.body_bytes_sent == sample.size
