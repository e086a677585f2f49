"""Uploads in parts to the zonegroup that redirects: the order for them follows the 301, the parts go where it led."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

import engine
from engine import events

from .conftest import Sample
from .relay import Relay
from .servers import Ceph

pytestmark = pytest.mark.live
PART = 5 << 20  # the least that Ceph takes of a part which is not the last


def options(ceph: Ceph, endpoint: str) -> dict[str, Any]:
    return {"endpoint_url": endpoint, "region": ceph.region_a, "credentials": engine.Credentials(*ceph.keys)}


def begun(ceph: Ceph, key: str) -> list[str]:
    """The uploads of `key` that the gateway of zonegroup b remembers."""
    listing = ceph.client(ceph.b, ceph.region_b).list_multipart_uploads(Bucket=ceph.bucket_b, Prefix=key)
    return [each["UploadId"] for each in listing.get("Uploads", [])]


def parts_of(ceph: Ceph, key: str, upload_id: str) -> set[int]:
    listing = ceph.client(ceph.b, ceph.region_b).list_parts(Bucket=ceph.bucket_b, Key=key, UploadId=upload_id)
    return {each["PartNumber"] for each in listing.get("Parts", [])}


def test_an_upload_follows_once_and_its_parts_go_where_the_bucket_is(
    ceph: Ceph, big_sample: Sample, relay: Callable[[str], Relay]
) -> None:
    refusing, heads = relay(ceph.a), []

    def watch(event: events.Event) -> None:
        if isinstance(event, events.HeadSent):
            heads.append(event)

    async def upload() -> engine.PutResult:
        async with engine.Client(**options(ceph, refusing.url)) as client:
            destination = f"s3://{ceph.bucket_b}/parts"
            return await client.upload(big_sample.path, destination, part_size=PART, on_event=watch)

    result = uvloop.run(upload())
    assert (result.size, result.body_bytes_sent) == (big_sample.size, big_sample.size)
    assert result.etag.endswith('-13"')
    # What zonegroup a received is heads: of the order for the upload, and of what was asked before the answer was known.
    received = sum(each.client_sent for each in refusing.settled())
    assert 0 < received < 5_000
    parts = [head for head in heads if head.method == "PUT" and "partNumber=" in head.url]
    at_b = [head for head in parts if head.url.startswith(ceph.relay_b.url)]
    assert len(at_b) == 13
    assert len(parts) - len(at_b) <= 1
    assert sum(head.expect for head in at_b) <= 1
    assert ceph.stored_digest(ceph.bucket_b, "parts") == big_sample.sha256
    assert begun(ceph, "parts") == []


def test_an_upload_that_is_cancelled_leaves_nothing(ceph: Ceph, big_sample: Sample) -> None:
    async def upload() -> None:
        async with engine.Client(**options(ceph, ceph.a)) as client:
            enough = asyncio.Event()

            def watch(event: events.Event) -> None:
                if isinstance(event, events.Response) and event.body_bytes_sent:
                    enough.set()

            destination = f"s3://{ceph.bucket_b}/cancelled"
            work = asyncio.ensure_future(
                client.upload(big_sample.path, destination, part_size=PART, concurrency=2, on_event=watch)
            )
            await enough.wait()
            assert len(begun(ceph, "cancelled")) == 1
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work

    uvloop.run(upload())
    assert begun(ceph, "cancelled") == []
    listing = ceph.client(ceph.b, ceph.region_b).list_objects_v2(Bucket=ceph.bucket_b, Prefix="cancelled")
    assert listing["KeyCount"] == 0


def test_an_upload_goes_on_with_what_is_missing(ceph: Ceph, big_sample: Sample, tmp_path: Path) -> None:
    state = tmp_path / "state"
    destination = f"s3://{ceph.bucket_b}/resumed"

    async def upload(stop_after: int) -> engine.PutResult | None:
        stored = 0
        async with engine.Client(**options(ceph, ceph.a)) as client:

            def watch(event: events.Event) -> None:
                nonlocal stored
                stored += isinstance(event, events.Response) and event.status == 200 and event.body_bytes_sent == PART
                if stored == stop_after:
                    work.cancel()

            work = asyncio.ensure_future(
                client.upload(big_sample.path, destination, part_size=PART, concurrency=2, resume=state, on_event=watch)
            )
            try:
                return await work
            except asyncio.CancelledError:
                return None

    assert uvloop.run(upload(4)) is None
    [upload_id] = begun(ceph, "resumed")
    there = parts_of(ceph, "resumed", upload_id)
    assert len(there) >= 4
    result = uvloop.run(upload(-1))
    assert result is not None
    assert result.size == big_sample.size
    assert result.body_bytes_sent == big_sample.size - len(there) * PART
    assert ceph.stored_digest(ceph.bucket_b, "resumed") == big_sample.sha256
    assert begun(ceph, "resumed") == []
    assert not state.exists()


def test_the_pieces_can_be_called_one_by_one(ceph: Ceph, sample: Sample) -> None:
    async def work() -> None:
        async with engine.Client(**options(ceph, ceph.a)) as client:
            upload = await client.create_upload(f"s3://{ceph.bucket_b}/pieces", metadata={"colour": "blue"})
            parts = [
                await client.upload_part(
                    upload, number + 1, sample.path, offset=start, size=min(PART, sample.size - start)
                )
                for number, start in enumerate(range(0, sample.size, PART))
            ]
            assert [part.number for part in await client.list_parts(upload)] == [part.number for part in parts]
            result = await client.complete_upload(upload, parts)
            assert result.size == sample.size
            gone = await client.create_upload(f"s3://{ceph.bucket_b}/aborted")
            await client.upload_part(gone, 1, sample.path)
            await client.abort_upload(gone)

    uvloop.run(work())
    assert ceph.stored_digest(ceph.bucket_b, "pieces") == sample.sha256
    stored = ceph.client(ceph.b, ceph.region_b).head_object(Bucket=ceph.bucket_b, Key="pieces")
    assert stored["Metadata"] == {"colour": "blue"}
    assert begun(ceph, "pieces") == begun(ceph, "aborted") == []
