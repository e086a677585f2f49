"""What every redirecting server has to show, written once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import engine

from .conftest import Sample
from .relay import RelayedConnection
from .servers import digest

ONCE = engine.Retry(max_attempts=1)
"""For answers that would be tried again: these tests look at one attempt."""


def assert_sent_once(result: engine.PutResult, sample: Sample) -> None:
    """The first hop took nothing, the last one all, and the result says so."""
    first, last = result.hops
    assert (first.body_bytes_sent, first.body_bytes_read, first.outcome) == (0, 0, "redirected")
    assert (last.body_bytes_sent, last.body_bytes_read, last.outcome) == (sample.size, sample.size, "stored")
    assert result.body_bytes_sent == sample.size
    assert (result.redirects, result.attempts) == (1, 1)
    assert result.send_path == "sendfile"


def assert_withheld(connections: list[RelayedConnection]) -> None:
    """The one connection to the refusing server carried a head that asks, and nothing else."""
    [connection] = connections
    assert connection.fields["expect"] == "100-continue"
    assert connection.body_received == 0


async def every_method_follows(redirecting: str, stored: Path, sample: Sample, sink: Path) -> None:
    """PUT, HEAD, GET and DELETE of the URL `redirecting` all end where `stored` is, unsigned."""
    async with engine.Client() as client:
        result = await client.put(sample.path, redirecting)
        assert_sent_once(result, sample)
        assert digest(stored) == sample.sha256
        info = await client.head(redirecting)
        assert info.size == sample.size
        assert len(info.hops) == 2
        assert await client.get(redirecting, sink) == sample.size
        assert digest(sink) == sample.sha256
        await client.delete(redirecting)
        assert not stored.exists()  # noqa: ASYNC240 - a test blocks nobody
        with pytest.raises(engine.NotFound):
            await client.head(redirecting)


def pieces(sample: Sample, size: int = 1 << 18) -> Iterator[bytes]:
    """The file as an iterator: a source that cannot be sent twice."""
    with sample.path.open("rb") as file:
        while piece := file.read(size):
            yield piece
