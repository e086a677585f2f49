"""Ceph's object gateway with two zonegroups: real 301s between servers that check signatures."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvloop

import engine

from .cases import assert_sent_once, assert_withheld
from .conftest import Sample
from .relay import Relay, RelayedConnection
from .servers import Ceph, digest

pytestmark = pytest.mark.live
BOTH_WAYS = pytest.mark.parametrize(("at", "other"), [("a", "b"), ("b", "a")])


def options(ceph: Ceph, endpoint: str) -> dict[str, Any]:
    """What a user gives for this endpoint."""
    return {"endpoint_url": endpoint, "region": ceph.region_a, "credentials": engine.Credentials(*ceph.keys)}


def seen(relay: Relay, method: str, path: str) -> RelayedConnection:
    """Return the one connection through the relay that carried this request; the gateways' own pass there too."""
    [found] = [each for each in relay.connections if each.request_line.startswith(f"{method} {path} ")]
    return found


@BOTH_WAYS
def test_the_redirected_request_is_right_in_every_field_and_its_signature_accepted(
    ceph: Ceph, sample: Sample, relay: Callable[[str], Relay], at: str, other: str
) -> None:
    refusing = relay(getattr(ceph, at))
    bucket, key = getattr(ceph, f"bucket_{other}"), f"fields-{at}"
    result = engine.put(
        sample.path,
        f"s3://{bucket}/{key}",
        **options(ceph, refusing.url),
        content_type="application/x-sample",
        metadata={"colour": "blue"},
        checksum="crc32c",
    )
    assert_sent_once(result, sample)
    assert [hop.status for hop in result.hops] == [301, 200]
    assert_withheld(refusing.settled())
    first = refusing.connections[0].fields
    storing = getattr(ceph, f"relay_{other}")
    connection = seen(storing, "PUT", f"/{bucket}/{key}")
    second = connection.fields
    assert connection.body_received == sample.size
    assert second["host"] == urlsplit(storing.url).netloc != first["host"]
    assert second["authorization"].startswith(f"AWS4-HMAC-SHA256 Credential={ceph.keys.access_key}/")
    assert second["authorization"] != first["authorization"]
    [signed] = re.findall(r"SignedHeaders=([^,]+)", second["authorization"])
    assert {"host", "x-amz-date", "x-amz-content-sha256", "x-amz-meta-colour"} <= set(signed.split(";"))
    date = datetime.strptime(second["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    assert abs((datetime.now(timezone.utc) - date).total_seconds()) < 60
    assert second["content-length"] == str(sample.size)
    assert second["expect"] == "100-continue"
    same = ("content-type", "x-amz-meta-colour", "x-amz-checksum-crc32c", "content-length", "user-agent")
    assert {name: second[name] for name in same} == {name: first[name] for name in same}
    assert second.keys() == first.keys()
    stored = ceph.client(getattr(ceph, other), ceph.region_a).head_object(Bucket=bucket, Key=key)
    assert (stored["ContentType"], stored["Metadata"]) == ("application/x-sample", {"colour": "blue"})
    assert ceph.stored_digest(bucket, key) == sample.sha256


@BOTH_WAYS
def test_head_get_and_delete_follow_with_a_new_signature(
    ceph: Ceph, sample: Sample, tmp_path: Path, at: str, other: str
) -> None:
    destination = f"s3://{getattr(ceph, f'bucket_{other}')}/methods-{at}"

    async def work() -> None:
        async with engine.Client(**options(ceph, getattr(ceph, at))) as client:
            assert_sent_once(await client.put(sample.path, destination), sample)
            info = await client.head(destination)
            assert info.size == sample.size
            assert await client.get(destination, tmp_path / "got") == sample.size
            await client.delete(destination)
            with pytest.raises(engine.NotFound):
                await client.head(destination)

    uvloop.run(work())
    assert digest(tmp_path / "got") == sample.sha256


def test_names_that_need_encoding_are_signed_and_followed(ceph: Ceph, sample: Sample) -> None:
    key = "a b/ü+~(1)?x=%41#&=.bin"
    result = engine.put(sample.path, f"s3://{ceph.bucket_b}/{key}", **options(ceph, ceph.a))
    assert_sent_once(result, sample)
    assert ceph.stored_digest(ceph.bucket_b, key) == sample.sha256


@BOTH_WAYS
def test_a_signed_post_follows(ceph: Ceph, at: str, other: str) -> None:
    bucket, key = getattr(ceph, f"bucket_{other}"), f"multipart-{at}"

    async def work() -> Any:
        async with engine.Client(**options(ceph, getattr(ceph, at))) as client:
            return await client.request("POST", f"{getattr(ceph, at)}/{bucket}/{key}?uploads", sign="s3")

    response = uvloop.run(work())
    assert response.status == 200
    begun = ceph.client(getattr(ceph, other), ceph.region_a).list_multipart_uploads(Bucket=bucket)["Uploads"]
    [upload] = [each for each in begun if each["Key"] == key]
    assert upload["UploadId"].encode() in bytes(response.body)


def test_a_301_in_mid_body_stops_the_body_which_goes_from_its_start_to_the_new_host(ceph: Ceph, sample: Sample) -> None:
    result = engine.put(sample.path, f"s3://{ceph.bucket_b}/not-asked", **options(ceph, ceph.a), expect="never")
    first, last = result.hops
    assert (first.status, first.outcome) == (301, "redirected")
    assert last.body_bytes_sent == sample.size
    assert result.expect == "off"
    assert result.body_bytes_sent == first.body_bytes_sent + sample.size
    assert ceph.stored_digest(ceph.bucket_b, "not-asked") == sample.sha256


def test_a_signature_that_is_wrong_is_refused_before_the_body(
    ceph: Ceph, sample: Sample, relay: Callable[[str], Relay]
) -> None:
    refusing = relay(ceph.a)
    wrong = options(ceph, refusing.url) | {"credentials": engine.Credentials(ceph.keys.access_key, "wrong")}
    with pytest.raises(engine.AccessDenied) as refused:
        engine.put(sample.path, f"s3://{ceph.bucket_a}/wrong", **wrong)
    assert (refused.value.status, refused.value.code) == (403, "SignatureDoesNotMatch")
    assert refused.value.body_bytes_sent == 0
    assert_withheld(refusing.settled())


def test_a_bucket_that_does_not_exist_is_refused_before_the_body(
    ceph: Ceph, sample: Sample, relay: Callable[[str], Relay]
) -> None:
    refusing = relay(ceph.a)
    with pytest.raises(engine.NotFound) as refused:
        engine.put(sample.path, "s3://no-such-bucket/key", **options(ceph, refusing.url))
    assert refused.value.code == "NoSuchBucket"
    assert_withheld(refusing.settled())


def test_an_object_that_is_too_large_is_refused_before_the_body(
    ceph: Ceph, tmp_path: Path, relay: Callable[[str], Relay]
) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(ceph.max_put + 1)
    refusing = relay(ceph.a)
    with pytest.raises(engine.ResponseError) as refused:
        engine.put(large, f"s3://{ceph.bucket_a}/large", **options(ceph, refusing.url))
    assert refused.value.code == "EntityTooLarge"
    assert_withheld(refusing.settled())


def test_a_presigned_url_follows_and_its_signature_for_the_old_host_is_refused_before_the_body(
    ceph: Ceph, sample: Sample
) -> None:
    presigned = ceph.client(ceph.a, ceph.region_a).generate_presigned_url(
        "put_object", {"Bucket": ceph.bucket_b, "Key": "presigned"}
    )
    with pytest.raises(engine.AccessDenied) as refused:
        engine.put(sample.path, presigned)
    assert [hop.status for hop in refused.value.hops] == [301, 403]
    assert refused.value.body_bytes_sent == 0
    assert "Signature=" not in str(refused.value).replace("Signature=REDACTED", "")


def test_what_the_gateway_says_of_the_stored_object_is_in_the_result(ceph: Ceph, sample: Sample) -> None:
    result = engine.put(sample.path, f"s3://{ceph.bucket_a}/result", **options(ceph, ceph.a))
    stored = ceph.client(ceph.a, ceph.region_a).head_object(Bucket=ceph.bucket_a, Key="result")
    assert (result.status, result.size, result.etag) == (200, sample.size, stored["ETag"])
    assert result.request_id.startswith("tx")
    assert (result.expect, result.redirects) == ("continue", 0)
