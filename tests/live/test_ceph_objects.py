"""What S3 promises about one object, on Ceph: names byte for byte, fields, conditions, encryption; botocore reads it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_plus, urlencode

import pytest
import uvloop

import engine

from .conftest import Sample
from .relay import Relay
from .servers import Ceph

pytestmark = pytest.mark.live

KEYS = {
    "spaces": ["a b", " first", "last ", "  "],
    "plus": ["+", "a+b", "a +b"],
    "slashes": ["/first", "//", "a//b", "last/", "last//", "///a"],
    "dots": [".", "..", "../up", "a/../b", "./a", "a/./b", "a/..", "..."],
    "percent": ["%", "%41", "%2F", "%2f", "%252F", "100%", "%zz", "a%00b", "%c3%bc", "%FF"],
    "marks": ["~", "*", "'", "!", "(1)", "&=;:@$,", '[]{}|\\^`"<>', "-_.~", "a\\..\\b"],
    "query": ["?", "a?b=c", "?uploads", "a?acl", "?X-Amz-Signature=x"],
    "fragment": ["#", "a#b", "a#b?c"],
    "control": ["\t", "\n", "\r\n", "\x01", "\x0b", "\x1f", "\x7f", "\x85", "a\nX-Amz-Acl: public-read\n"],
    "unicode": ["ü", "日本語", "😀", "e\u0301", "é", "\u2028", "\ufeff", "\u202ertl", "\uffff", "ａ／b"],
    "names of operations": ["acl", "tagging", "uploads", "_under", "__twice", "index.html"],
    "length": ["x" * 1024, "ü" * 512, "/" * 300],
}
EVERY_KEY = [key for keys in KEYS.values() for key in keys]
BODY = os.urandom(200_001)
COLD = hashlib.sha256(b"a key of 32 bytes").digest()


@pytest.fixture(scope="module")
def reader(ceph: Ceph) -> Any:
    """botocore, at the zonegroup where these tests write."""
    return ceph.client(ceph.a, ceph.region_a)


@pytest.fixture(scope="module")
def options(ceph: Ceph) -> dict[str, Any]:
    return {"endpoint_url": ceph.a, "region": ceph.region_a, "credentials": engine.Credentials(*ceph.keys)}


@pytest.fixture(params=["names-of-keys", "bucket.with.dots"])
def bucket(request: pytest.FixtureRequest, ceph: Ceph, reader: Any) -> str:
    name: str = request.param
    reader.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": ceph.region_a})
    return name


def listed(reader: Any, bucket: str) -> set[str]:
    """All keys; url-encoded on the way, so that no XML gets at them. When told to ask for that, botocore leaves it to us."""
    pages = reader.get_paginator("list_objects_v2").paginate(Bucket=bucket, EncodingType="url")
    return {unquote_plus(each["Key"]) for page in pages for each in page.get("Contents", [])}


def content_of(key: str) -> bytes:
    return b"what is stored as " + key.encode()


def test_any_key_is_stored_read_listed_and_deleted_byte_for_byte(
    bucket: str, options: dict[str, Any], reader: Any
) -> None:
    async def put_all(client: engine.Client) -> None:
        for key in EVERY_KEY:
            await client.put(content_of(key), f"s3://{bucket}/{key}", metadata={"hex": key.encode().hex()[:1000]})

    async def read_all(client: engine.Client) -> None:
        for key in EVERY_KEY:
            fetched = bytearray()
            await client.get(f"s3://{bucket}/{key}", fetched.extend)
            assert bytes(fetched) == content_of(key), key
            info = await client.head(f"s3://{bucket}/{key}")
            assert (info.size, info.metadata["hex"]) == (len(fetched), key.encode().hex()[:1000]), key

    async def delete_all(client: engine.Client) -> None:
        for key in EVERY_KEY:
            await client.delete(f"s3://{bucket}/{key}")
            with pytest.raises(engine.NotFound):
                await client.head(f"s3://{bucket}/{key}")

    async def with_client(work: Callable[[engine.Client], Any]) -> None:
        async with engine.Client(**options) as client:
            await work(client)

    uvloop.run(with_client(put_all))
    assert listed(reader, bucket) == set(EVERY_KEY)
    for key in EVERY_KEY:
        assert reader.get_object(Bucket=bucket, Key=key)["Body"].read() == content_of(key), key
    uvloop.run(with_client(read_all))
    uvloop.run(with_client(delete_all))
    assert listed(reader, bucket) == set()


def test_a_bucket_with_dots_in_the_other_zonegroup_is_followed(ceph: Ceph, options: dict[str, Any]) -> None:
    other = ceph.client(ceph.b, ceph.region_b)
    other.create_bucket(Bucket="dots.in.b", CreateBucketConfiguration={"LocationConstraint": ceph.region_b})
    ceph.wait_until(lambda: ceph.redirects(ceph.a, "dots.in.b", ceph.region_a), "zonegroup a hears of the bucket")
    key = "a/../b//ü +%2F?#"
    result = engine.put(BODY, f"s3://dots.in.b/{key}", **options)
    assert [hop.body_bytes_sent for hop in result.hops] == [0, len(BODY)]
    assert other.get_object(Bucket="dots.in.b", Key=key)["Body"].read() == BODY


# --- what goes with an object -----------------------------------------------------------------------------------------


@pytest.fixture
def put(ceph: Ceph, options: dict[str, Any]) -> Callable[..., engine.PutResult]:
    def put(key: str, source: Any = BODY, **more: Any) -> engine.PutResult:
        return engine.put(source, f"s3://{ceph.bucket_a}/{key}", **options, **more)

    return put


Put = Callable[..., engine.PutResult]


def test_metadata_content_type_and_further_fields_are_stored(ceph: Ceph, reader: Any, put: Put) -> None:
    metadata = {"colour": "blue", "with-spaces": "a  b", "empty": "", "signs": "=&%+;,'\"/\\"}
    put("meta", metadata=metadata, content_type="text/x; charset=utf-8", headers={"Cache-Control": "max-age=60"})
    head = reader.head_object(Bucket=ceph.bucket_a, Key="meta")
    assert head["ContentType"] == "text/x; charset=utf-8"
    assert head["CacheControl"] == "max-age=60"
    del metadata["empty"]  # Ceph does not keep it
    assert {name: value for name, value in head["Metadata"].items() if value} == metadata


def test_tags_are_stored(ceph: Ceph, reader: Any, put: Put) -> None:
    tags = {"project": "a b+c", "ü": "=&/", "empty": ""}
    put("tags", tagging=tags)
    stored = reader.get_object_tagging(Bucket=ceph.bucket_a, Key="tags")["TagSet"]
    assert {each["Key"]: each["Value"] for each in stored} == tags
    put("tags", tagging=urlencode({"as": "text"}))
    assert reader.get_object_tagging(Bucket=ceph.bucket_a, Key="tags")["TagSet"] == [{"Key": "as", "Value": "text"}]


def test_an_acl_is_stored(ceph: Ceph, reader: Any, put: Put) -> None:
    put("acl", acl="public-read")
    grants = reader.get_object_acl(Bucket=ceph.bucket_a, Key="acl")["Grants"]
    assert {(each["Grantee"].get("URI", "").rpartition("/")[2], each["Permission"]) for each in grants} == {
        ("AllUsers", "READ"),
        ("", "FULL_CONTROL"),
    }


def test_a_storage_class_is_stored_and_one_that_does_not_exist_refused_before_the_body(
    ceph: Ceph, reader: Any, put: Put
) -> None:
    put("class", storage_class="STANDARD")
    assert reader.head_object(Bucket=ceph.bucket_a, Key="class")["StorageClass"] == "STANDARD"
    with pytest.raises(engine.ResponseError) as refused:
        put("class", storage_class="NO_SUCH_CLASS")
    assert (refused.value.status, refused.value.body_bytes_sent) == (400, 0)


def test_a_customers_key_encrypts_and_is_needed_to_read(
    ceph: Ceph, reader: Any, options: dict[str, Any], put: Put
) -> None:
    put("secret", sse_customer_key=COLD)
    given = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": COLD}
    assert reader.get_object(Bucket=ceph.bucket_a, Key="secret", **given)["Body"].read() == BODY

    async def read() -> None:
        async with engine.Client(**options) as client:
            url, fetched = f"s3://{ceph.bucket_a}/secret", bytearray()
            assert (await client.head(url, sse_customer_key=COLD)).size == len(BODY)
            await client.get(url, fetched.extend, sse_customer_key=COLD)
            assert bytes(fetched) == BODY
            for key in (None, bytes(32)):
                with pytest.raises(engine.ResponseError):
                    await client.get(url, bytearray().extend, sse_customer_key=key)

    uvloop.run(read())


def test_a_customers_key_goes_along_to_the_other_zonegroup(ceph: Ceph, options: dict[str, Any]) -> None:
    result = engine.put(BODY, f"s3://{ceph.bucket_b}/secret", **options, sse_customer_key=COLD)
    assert [hop.body_bytes_sent for hop in result.hops] == [0, len(BODY)]
    given = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": COLD}
    stored = ceph.client(ceph.b, ceph.region_b).get_object(Bucket=ceph.bucket_b, Key="secret", **given)
    assert stored["Body"].read() == BODY


def test_a_condition_that_does_not_hold_stores_nothing(
    ceph: Ceph, reader: Any, options: dict[str, Any], relay: Callable[[str], Relay]
) -> None:
    """Ceph 16 looks at conditions when it has the body: asking first saves nothing there, and the accounting says so."""
    counted = relay(ceph.a)
    options = options | {"endpoint_url": counted.url}
    destination = f"s3://{ceph.bucket_a}/conditional"
    stored = engine.put(BODY, destination, **options, if_none_match="*")
    for condition in ({"if_none_match": "*"}, {"if_match": "0" * 32}):
        with pytest.raises(engine.PreconditionFailed) as refused:
            engine.put(b"x" * len(BODY), destination, **options, **condition)
        assert refused.value.body_bytes_sent == len(BODY)
        assert counted.settled()[-1].body_received == len(BODY)
        assert reader.get_object(Bucket=ceph.bucket_a, Key="conditional")["Body"].read() == BODY
    # It compares with the bare ETag: in quotes, as RFC 9110 has it and as it says them itself, none is ever equal.
    assert stored.etag.startswith('"')
    with pytest.raises(engine.PreconditionFailed):
        engine.put(b"new", destination, **options, if_match=stored.etag)
    engine.put(b"new", destination, **options, if_match=stored.etag.strip('"'))
    assert reader.get_object(Bucket=ceph.bucket_a, Key="conditional")["Body"].read() == b"new"


@pytest.mark.parametrize("algorithm", ["auto", "crc64nvme", "crc32c", "crc32", "sha256", None])
def test_checksums_are_computed_and_ceph_returns_none_to_compare(
    ceph: Ceph, reader: Any, put: Put, algorithm: Any
) -> None:
    result = put(f"checksum-{algorithm}", checksum=algorithm)
    assert result.checksum_verified is False
    assert (result.checksum.algorithm if result.checksum else None) == (
        "crc64nvme" if algorithm == "auto" else algorithm
    )
    stored = reader.get_object(Bucket=ceph.bucket_a, Key=f"checksum-{algorithm}")
    assert stored["Body"].read() == BODY
    assert not [name for name in stored["ResponseMetadata"]["HTTPHeaders"] if name.startswith("x-amz-checksum")]


def test_a_checksum_in_a_trailer_is_more_than_ceph_16_knows(ceph: Ceph, options: dict[str, Any]) -> None:
    pieces = iter([BODY])
    with pytest.raises(engine.ResponseError) as refused:
        engine.put(pieces, f"s3://{ceph.bucket_a}/trailer", **options, size=len(BODY), checksum="crc32c")
    assert (refused.value.status, refused.value.code) == (400, "XAmzContentSHA256Mismatch")


def test_a_hash_of_the_body_in_the_signature_is_checked(
    ceph: Ceph, reader: Any, options: dict[str, Any], sample: Sample
) -> None:
    config = engine.Config(payload_signing="sha256")
    engine.put(sample.path, f"s3://{ceph.bucket_a}/hashed", **options, config=config)
    assert ceph.stored_digest(ceph.bucket_a, "hashed") == sample.sha256


def test_a_content_md5_that_is_wrong_stores_nothing(ceph: Ceph, reader: Any, put: Put) -> None:
    with pytest.raises(engine.ResponseError) as refused:
        put("md5", headers={"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}, retry=engine.Retry(max_attempts=1))
    assert refused.value.code == "BadDigest"
    assert reader.list_objects_v2(Bucket=ceph.bucket_a, Prefix="md5")["KeyCount"] == 0
