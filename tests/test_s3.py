"""Destinations, addresses (against botocore's own rule set), error documents, fields."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import botocore
import pytest
from botocore.endpoint_provider import EndpointProvider
from botocore.exceptions import EndpointProviderError
from hypothesis import given
from hypothesis import strategies as st

from engine import limits
from engine.errors import AccessDenied, NotFound, PreconditionFailed, ResponseError, SlowDown, UsageError
from engine.s3 import (
    NO_DOCUMENT,
    Endpoint,
    ErrorDocument,
    RegionCache,
    S3Destination,
    XmlError,
    address,
    check_bucket,
    customer_key_fields,
    error_for,
    is_region,
    is_s3_host,
    is_transient,
    object_fields,
    object_path,
    parse_destination,
    parse_error,
    partition_suffix,
    signing_service,
    split_s3_host,
    xml_leaves,
)
from engine.wire import Url, parse_url

# --- destinations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bucket", "key"),
    [
        ("s3://bucket/key", "bucket", "key"),
        ("S3://bucket/key", "bucket", "key"),
        ("s3://bucket/a/b/c", "bucket", "a/b/c"),
        ("s3://bucket//key", "bucket", "/key"),
        ("s3://bucket/a//b/", "bucket", "a//b/"),
        ("s3://bucket/../other", "bucket", "../other"),
        ("s3://bucket/a?b#c", "bucket", "a?b#c"),
        ("s3://bucket/a%20b", "bucket", "a%20b"),
        ("s3://bucket/a b+c", "bucket", "a b+c"),
        ("s3://bucket/@:\\|", "bucket", "@:\\|"),
        ("s3://bucket/\t\n\x01", "bucket", "\t\n\x01"),
        ("s3://bucket/ünï/日本/🙂", "bucket", "ünï/日本/🙂"),
        ("s3://b.u-c_k.et/k", "b.u-c_k.et", "k"),
        ("s3://Bucket/k", "Bucket", "k"),
        ("s3://tenant:bucket/k", "tenant:bucket", "k"),
        ("s3://bucket/" + "k" * 1024, "bucket", "k" * 1024),
        ("s3://bucket/" + "é" * 512, "bucket", "é" * 512),
    ],
)
def test_the_key_is_everything_after_the_bucket_literally(text: str, bucket: str, key: str) -> None:
    destination = parse_destination(text)
    assert destination == S3Destination(bucket, key)
    assert str(destination).lower() == text.lower()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bucket/key",
        "s3:bucket/key",
        "s3:/bucket/key",
        "s3:///key",
        "s3://",
        "s3://bucket",
        "s3://bucket/",
        "gs://b/k",
        "s3a://b/k",
        "file:///k",
        "/k",
        "s3://-b/k",
        "s3://.b/k",
        "s3://../k",
        "s3://b b/k",
        "s3://b?x/k",
        "s3://b#/k",
        "s3://b@c/k",
        "s3://b%2f/k",
        "s3://bü/k",
        "s3://b\n/k",
        "s3://a::b/k",
        "s3://" + "b" * 256 + "/k",
        "s3://b/" + "k" * 1025,
        "s3://b/" + "é" * 513,
        "s3://b/\ud800",
        "s3://b/a\x00b",
        "s3://arn:aws:s3:::b/k",
    ],
)
def test_what_is_no_destination_gets_a_usage_error_in_printable_words(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_destination(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    if text.startswith("s3://arn"):
        assert "alias" in str(caught.value)


def test_a_bucket_alone_is_a_destination_where_that_is_meant() -> None:
    assert parse_destination("s3://bucket", allow_bucket=True) == S3Destination("bucket", "")
    assert parse_destination("s3://bucket/", allow_bucket=True) == S3Destination("bucket", "")


def test_http_destinations_are_urls() -> None:
    assert parse_destination("https://Host/a?b") == Url("https", "host", 443, "/a", "b")
    with pytest.raises(UsageError):
        parse_destination("https:host")
    with pytest.raises(UsageError):
        parse_destination(b"s3://b/k")  # type: ignore[arg-type]


@given(st.text(min_size=1, max_size=50))
def test_any_key_comes_back_from_its_address(key: str) -> None:
    try:
        destination = parse_destination(f"s3://bucket/{key}")
    except UsageError:
        assert "\0" in key or any("\ud800" <= c <= "\udfff" for c in key)
        return
    assert isinstance(destination, S3Destination)
    for endpoint in (Endpoint.for_aws("eu-west-1"), Endpoint.from_url("http://127.0.0.1:9000/base/")):
        url = address(endpoint, destination.bucket, destination.key)
        assert parse_url(str(url)) == url
        prefix = "/" if endpoint.aws else "/base/bucket/"
        assert unquote(url.path.removeprefix(prefix), errors="strict") == key


@pytest.mark.parametrize("bucket", ["abc", "a1-b.c", "1bucket", "a" * 63, "x--s3alias"])
def test_aws_bucket_names_are_taken(bucket: str) -> None:
    check_bucket(bucket, aws=True)


@pytest.mark.parametrize("bucket", ["ab", "a" * 64, "Abc", "a_b", "abc-", "a..b", "1.2.3.4", "tenant:bucket", "abc."])
def test_names_that_aws_has_no_buckets_for_are_refused_before_anything_is_sent(bucket: str) -> None:
    with pytest.raises(UsageError):
        check_bucket(bucket, aws=True)
    check_bucket(bucket)


def test_legacy_buckets_of_us_east_1_are_reached_path_style() -> None:
    endpoint = Endpoint.for_aws("us-east-1")
    assert (
        str(address(endpoint, "My_Bucket", "k", addressing="path")) == "https://s3.us-east-1.amazonaws.com/My_Bucket/k"
    )
    with pytest.raises(UsageError):
        address(endpoint, "My_Bucket", "k")
    with pytest.raises(UsageError):
        address(endpoint, "tenant:bucket", "k", addressing="path")


# --- addresses: botocore's rule set is the oracle -----------------------------------------------------------------

REGIONS = [
    "us-east-1",
    "us-west-2",
    "eu-central-1",
    "ap-southeast-7",
    "mx-central-1",
    "il-central-1",
    "cn-north-1",
    "cn-northwest-1",
    "us-gov-west-1",
    "us-gov-east-1",
    "us-iso-east-1",
    "us-iso-west-1",
    "us-isob-east-1",
    "eu-isoe-west-1",
    "us-isof-south-1",
    "eusc-de-east-1",
]
BUCKETS = ["bkt", "b.k.t", "bkt--usw2-az1--x-s3"]


@pytest.fixture(scope="module")
def provider() -> EndpointProvider:
    data = Path(botocore.__file__).parent / "data"
    rules = json.loads(gzip.decompress((data / "s3/2006-03-01/endpoint-rule-set-1.json.gz").read_bytes()))
    return EndpointProvider(rules, json.loads((data / "partitions.json").read_text()))


# botocore's rules give acceleration names to partitions and directory buckets that have none.
CASES = [
    (region, bucket, dualstack, fips, accelerate)
    for region in REGIONS
    for bucket in BUCKETS
    for dualstack in (False, True)
    for fips in (False, True)
    for accelerate in (False, True)
    if not accelerate or (region.startswith(("us-east", "us-west", "eu-c", "ap")) and not bucket.endswith("--x-s3"))
]


@pytest.mark.parametrize(("region", "bucket", "dualstack", "fips", "accelerate"), CASES)
def test_aws_addresses_are_botocores(
    provider: EndpointProvider, region: str, bucket: str, dualstack: bool, fips: bool, accelerate: bool
) -> None:
    oracle: str | None
    try:
        oracle = provider.resolve_endpoint(
            Region=region, Bucket=bucket, UseDualStack=dualstack, UseFIPS=fips, Accelerate=accelerate
        ).url
    except EndpointProviderError:
        oracle = None
    try:
        endpoint = Endpoint.for_aws(region, dualstack=dualstack, fips=fips, accelerate=accelerate)
        url = address(endpoint, bucket, "key")
    except UsageError:
        assert oracle is None
        return
    assert str(url) == f"{oracle}/key"
    parts = split_s3_host(url.host)
    assert parts is not None
    assert is_s3_host(url.host, bucket)
    assert not is_s3_host(url.host, "other") or parts.bucket == ""
    assert (parts.dualstack, parts.fips, parts.accelerate) == (dualstack, fips, accelerate)
    assert accelerate or parts.region == region
    assert signing_service(url) == ("s3express" if bucket.endswith("--x-s3") else "s3")


def test_every_region_botocore_knows_is_in_the_partition_it_says(provider: EndpointProvider) -> None:
    data = json.loads((Path(botocore.__file__).parent / "data/partitions.json").read_text())
    for partition in data["partitions"]:
        for region in partition["regions"]:
            if not region.endswith("-global"):
                assert partition_suffix(region) == partition["outputs"]["dnsSuffix"]
                assert split_s3_host(f"b.s3.{region}.{partition['outputs']['dnsSuffix']}") is not None


def test_aws_global_is_signed_for_us_east_1() -> None:
    assert Endpoint.for_aws("aws-global").region == "us-east-1"


@pytest.mark.parametrize("region", ["", "mars", "us-east", "us-east-1.evil.com", "us-east-1/", "US-EAST-1", "a" * 70])
def test_a_region_that_aws_cannot_have_is_refused(region: str) -> None:
    with pytest.raises(UsageError):
        Endpoint.for_aws(region)


@pytest.mark.parametrize(
    ("endpoint_url", "bucket", "addressing", "expected"),
    [
        ("http://127.0.0.1:9000", "bkt", "auto", "http://127.0.0.1:9000/bkt/a%20b"),
        ("http://[::1]:9000/", "bkt", "auto", "http://[::1]:9000/bkt/a%20b"),
        ("https://store.example/base//", "bkt", "auto", "https://store.example/base/bkt/a%20b"),
        ("https://store.example", "bkt", "virtual", "https://bkt.store.example/a%20b"),
        ("https://store.example:81/p", "b.k.t", "virtual", "https://b.k.t.store.example:81/p/a%20b"),
        ("https://store.example", "tenant:bkt", "path", "https://store.example/tenant%3Abkt/a%20b"),
        ("https://s3.eu-west-1.amazonaws.com", "bkt", "auto", "https://bkt.s3.eu-west-1.amazonaws.com/a%20b"),
        ("https://s3.eu-west-1.amazonaws.com", "bkt", "path", "https://s3.eu-west-1.amazonaws.com/bkt/a%20b"),
        ("http://s3.amazonaws.com", "b.k.t", "virtual", "http://b.k.t.s3.amazonaws.com/a%20b"),
    ],
)
def test_a_named_endpoint_is_addressed_as_asked(endpoint_url: str, bucket: str, addressing: Any, expected: str) -> None:
    assert str(address(Endpoint.from_url(endpoint_url), bucket, "a b", addressing=addressing)) == expected


@pytest.mark.parametrize(
    ("endpoint_url", "bucket"),
    [
        ("http://127.0.0.1:9000", "bkt"),
        ("http://[::1]:9000", "bkt"),
        ("http://store.example", "Bkt"),
        ("http://store.example", "tenant:bkt"),
        ("https://s3.amazonaws.com", "b.k.t"),
    ],
)
def test_virtual_hosts_that_cannot_be_are_refused(endpoint_url: str, bucket: str) -> None:
    with pytest.raises(UsageError):
        address(Endpoint.from_url(endpoint_url), bucket, "k", addressing="virtual")


@pytest.mark.parametrize(
    "endpoint_url",
    [
        "https://bkt.s3.eu-west-1.amazonaws.com",
        "https://s3express-usw2-az1.us-west-2.amazonaws.com",
        "https://store.example/?a=b",
        "s3://store",
        "store.example",
    ],
)
def test_what_is_no_endpoint_is_refused(endpoint_url: str) -> None:
    with pytest.raises(UsageError):
        Endpoint.from_url(endpoint_url)
    with pytest.raises(UsageError):
        Endpoint.from_url("http://good", region="../evil")


def test_the_region_of_an_endpoint_is_its_names_then_the_configured_then_us_east_1() -> None:
    assert Endpoint.from_url("https://s3.eu-west-1.amazonaws.com", "us-west-2").region == "eu-west-1"
    assert Endpoint.from_url("https://s3.amazonaws.com", "us-west-2").region == "us-west-2"
    assert Endpoint.from_url("http://store", "garage").region == "garage"
    assert Endpoint.from_url("http://store").region == "us-east-1"
    assert Endpoint.from_url("https://s3.amazonaws.com").region == "us-east-1"


def test_another_region_is_another_host_on_aws_and_the_same_elsewhere() -> None:
    aws = Endpoint.for_aws("us-east-1", dualstack=True)
    assert aws.for_region("eu-west-1").host == "s3.dualstack.eu-west-1.amazonaws.com"
    assert aws.for_region("us-gov-west-1").host == "s3.dualstack.us-gov-west-1.amazonaws.com"
    other = Endpoint.from_url("http://store:81/p", "a")
    assert other.for_region("b") == Endpoint.from_url("http://store:81/p", "b")
    accelerated = Endpoint.for_aws("us-east-1", accelerate=True)
    assert accelerated.for_region("eu-west-1").host == accelerated.host
    for region in ("cn-north-1", "eusc-de-east-1", "mars", "x.evil.com", ""):
        with pytest.raises(UsageError):
            aws.for_region(region)


def test_a_learned_region_is_addressed_and_the_endpoints_own_leaves_the_host_alone() -> None:
    named = Endpoint.from_url("https://s3.amazonaws.com", "us-west-2")
    assert (
        address(named, "bkt", "k").host == address(named, "bkt", "k", region="us-west-2").host == "bkt.s3.amazonaws.com"
    )
    assert address(named, "bkt", "k", region="eu-west-1").host == "bkt.s3.eu-west-1.amazonaws.com"
    store = Endpoint.from_url("http://store")
    assert address(store, "bkt", "k", region="eu-west-1") == address(store, "bkt", "k")


def test_a_name_like_a_directory_buckets_means_nothing_elsewhere() -> None:
    url = address(Endpoint.from_url("http://store"), "bkt--usw2-az1--x-s3", "k")
    assert str(url) == "http://store/bkt--usw2-az1--x-s3/k"
    assert signing_service(url) == "s3"


def test_a_query_is_encoded_and_a_sub_resource_stays_bare() -> None:
    endpoint = Endpoint.from_url("http://store")
    url = address(endpoint, "b", "k", query=[("uploads", ""), ("uploadId", "a/b+c=&d")])
    assert url.query == "uploads&uploadId=a%2Fb%2Bc%3D%26d"
    assert str(address(endpoint, "b")) == "http://store/b"
    assert str(address(Endpoint.for_aws("us-east-1"), "bkt")) == "https://bkt.s3.us-east-1.amazonaws.com/"
    assert object_path("/p", "", "") == "/p/"


# --- S3's own names -----------------------------------------------------------------------------------------------

S3_HOSTS = [
    "s3.amazonaws.com",
    "bkt.s3.amazonaws.com",
    "s3-us-west-2.amazonaws.com",
    "bkt.s3-us-west-2.amazonaws.com",
    "bkt.s3.us-west-2.amazonaws.com",
    "bkt.s3.dualstack.us-west-2.amazonaws.com",
    "bkt.s3-fips.us-west-2.amazonaws.com",
    "bkt.s3-fips.dualstack.us-west-2.amazonaws.com",
    "s3-fips-us-gov-west-1.amazonaws.com",
    "bkt.s3-accelerate.amazonaws.com",
    "bkt.s3-accelerate.dualstack.amazonaws.com",
    "s3-external-1.amazonaws.com",
    "bkt.s3.cn-north-1.amazonaws.com.cn",
    "bkt.s3.us-iso-east-1.c2s.ic.gov",
    "bkt.s3.us-isob-east-1.sc2s.sgov.gov",
    "bkt.s3.eu-isoe-west-1.cloud.adc-e.uk",
    "bkt.s3.us-isof-south-1.csp.hci.ic.gov",
    "bkt.s3.eusc-de-east-1.amazonaws.eu",
]
# Anybody can have most of these; the rest is nothing an object is PUT to.
OTHER_HOSTS = [
    "amazonaws.com",
    "evil.amazonaws.com",
    "ec2-1-2-3-4.compute-1.amazonaws.com",
    "evil-123.us-east-1.elb.amazonaws.com",
    "s3.us-east-1.elb.amazonaws.com",
    "bkt.s3.us-east-1.elb.amazonaws.com",
    "s3.elb.us-east-1.amazonaws.com",
    "evil.rds.us-east-1.amazonaws.com",
    "s3.rds.amazonaws.com",
    "sqs.us-east-1.amazonaws.com",
    "bkt.s3-website.eu-central-1.amazonaws.com",
    "bkt.s3-website-us-east-1.amazonaws.com",
    "bkt.s3-control.us-east-1.amazonaws.com",
    "bkt-1.s3-accesspoint.us-east-1.amazonaws.com",
    "bkt-1.s3-object-lambda.us-east-1.amazonaws.com",
    "bkt.vpce-1a2b.s3.us-east-1.vpce.amazonaws.com",
    "s3.evil.amazonaws.com",
    "s3-evil.amazonaws.com",
    "s3evil.amazonaws.com",
    "s3.us-east-1.amazonaws.com.evil.com",
    "s3.amazonaws.com.cn.evil.com",
    "s3.us-east-1.evilamazonaws.com",
    "s3.us-east-1.amazonaws.com.cn",
    "s3.cn-north-1.amazonaws.com",
    "s3.cn-north-1.evil.com",
    "bkt.s3express-usw2-az1.amazonaws.com",
    "s3-fips.amazonaws.com",
    "s3-us-west-2.us-east-1.amazonaws.com",
    "s3-accelerate.us-east-1.amazonaws.com",
    "s3.us-east-1.dualstack.amazonaws.com",
    "evil.s3.us-east-1.amazonaws.com",
    "bkt.evil.s3.us-east-1.amazonaws.com",
    "evil.bkt.s3.us-east-1.amazonaws.com",
    "bkts3.us-east-1.amazonaws.com",
    "bkt.s3.us-east-1.amazonaws.com:80",
    "localhost",
    "127.0.0.1",
    "::1",
    "",
]


@pytest.mark.parametrize("host", S3_HOSTS)
def test_s3s_own_names_are_known(host: str) -> None:
    assert is_s3_host(host, "bkt")
    parts = split_s3_host(host)
    assert parts is not None
    assert parts.bucket in ("", "bkt")


@pytest.mark.parametrize("host", OTHER_HOSTS)
def test_names_that_anyone_can_have_are_not_s3s(host: str) -> None:
    assert not is_s3_host(host, "bkt")


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("bkt.s3-us-west-2.amazonaws.com", "us-west-2"),
        ("bkt.s3.us-west-2.amazonaws.com", "us-west-2"),
        ("s3-fips-us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("s3-external-1.amazonaws.com", "us-east-1"),
        ("s3.amazonaws.com", ""),
        ("bkt.s3-accelerate.amazonaws.com", ""),
    ],
)
def test_the_region_is_read_off_a_name(host: str, region: str) -> None:
    parts = split_s3_host(host)
    assert parts is not None
    assert parts.region == region


@pytest.mark.parametrize("bucket", ["s3", "s3.us-east-1", "a.s3.us-west-2", "s3-fips", "dualstack"])
def test_a_bucket_named_like_a_service_is_still_the_bucket(bucket: str) -> None:
    parts = split_s3_host(f"{bucket}.s3.us-east-1.amazonaws.com")
    assert parts is not None
    assert (parts.bucket, parts.region) == (bucket, "us-east-1")


@given(st.from_regex(r"[a-z0-9.\-]{0,40}", fullmatch=True))
def test_no_prefix_makes_a_foreign_name_s3s(prefix: str) -> None:
    for host in (f"{prefix}.evil.com", f"{prefix}amazonaws.com.evil.com", f"{prefix}.s3.us-east-1.elb.amazonaws.com"):
        assert not is_s3_host(host, "bkt")
    host = f"{prefix}.s3.us-east-1.amazonaws.com"
    assert is_s3_host(host, "bkt") is (prefix == "bkt")


@pytest.mark.parametrize(
    ("region", "good"), [("us-east-1", True), ("garage", True), ("", False), ("a.b", False), ("A", False)]
)
def test_a_region_is_a_plain_label(region: str, good: bool) -> None:
    assert is_region(region) is good
    assert not is_region(region + "\n")


def test_the_region_cache_is_bounded_and_forgets() -> None:
    cache = RegionCache(2)
    for bucket, region in (("a", "r1"), ("b", "r2")):
        cache.learn(bucket, region)
    assert cache.get("a") == "r1"
    cache.learn("c", "r3")
    assert [cache.get(b) for b in "abc"] == ["r1", "", "r3"]
    cache.learn("a", "r9")
    assert cache.get("a") == "r9"
    cache.forget("a")
    cache.forget("never")
    cache.learn("x", "no region!")
    cache.learn("", "r1")
    assert [cache.get(b) for b in ("a", "x", "")] == ["", "", ""]
    assert len(cache) == 1


# --- documents ----------------------------------------------------------------------------------------------------

DOCUMENT = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>PermanentRedirect</Code><Message>Use the endpoint.</Message><Endpoint>b.s3-us-west-2.amazonaws.com</Endpoint>
<Bucket>b</Bucket><Region>us-west-2</Region><RequestId>R1</RequestId><HostId>H1</HostId><Token-0>SECRET</Token-0></Error>"""


def test_an_error_document_is_read() -> None:
    assert parse_error(DOCUMENT) == ErrorDocument(
        code="PermanentRedirect",
        message="Use the endpoint.",
        region="us-west-2",
        endpoint="b.s3-us-west-2.amazonaws.com",
        request_id="R1",
        host_id="H1",
        bucket="b",
    )
    assert "SECRET" not in repr(parse_error(DOCUMENT))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'<Error xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Code>A</Code></Error>', "A"),
        (b'<s:Error xmlns:s="http://s3"><s:Code>A</s:Code></s:Error>', "A"),
        (b"\n\n  <?xml version='1.0'?><Error><Code> A </Code></Error>\n", "A"),
        (b"\xef\xbb\xbf<Error><Code>A</Code></Error>", "A"),
        (b"<?xml version='1.0' encoding='no-such'?><Error><Code>A</Code></Error>", "A"),
        (b"<?xml version='1.0' encoding='UTF-16'?><Error><Code>A</Code></Error>", "A"),
        (b"<Error><Code>A</Code><Code>B</Code></Error>", "A"),
        (b"<Error><Code></Code><Code>B</Code></Error>", "B"),
        (b"<Error><Code><![CDATA[A]]></Code></Error>", "A"),
        (b"<Error><Code>&#65;</Code></Error>", "A"),
        (b"<Error><!-- x --><Code>A</Code></Error>", "A"),
        (b"<Other><Code>A</Code></Other>", ""),
        (b"<Error><Inner><Code>A</Code></Inner></Error>", ""),
        (b"<Error><Code>A<b/></Code></Error>", ""),
        (b"<Error><Code>A</Code>", ""),
        (b"<Error><Code>\xff</Code></Error>", ""),
        (b"<Error><Code>&nope;</Code></Error>", ""),
        (b"<html><body>502 Bad Gateway</body></html>", ""),
        (b"<html><br>502", ""),
        (b'{"error": "no"}', ""),
        (b"", ""),
        (b"   ", ""),
        (b"\x00\x01", ""),
        ("<Error><Code>A</Code></Error>".encode("utf-16"), "A"),
        (b"<!DOCTYPE Error><Error><Code>A</Code></Error>", ""),
        (b'<!DOCTYPE Error SYSTEM "http://evil/x.dtd"><Error><Code>A</Code></Error>', ""),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><Error><Code>&b;</Code></Error>', ""),
    ],
)
def test_the_code_is_found_or_there_is_none(body: bytes, code: str) -> None:
    assert parse_error(body).code == code
    assert bool(parse_error(body)) is bool(code)


def test_entity_bombs_and_mazes_are_refused_without_work() -> None:
    laughs = b"".join(b'<!ENTITY l%d "%s">' % (i, b"&l%d;" % (i - 1) * 10) for i in range(1, 30))
    assert (
        parse_error(b"<!DOCTYPE a [<!ENTITY l0 'lol'>" + laughs + b"]><Error><Code>&l29;</Code></Error>") == NO_DOCUMENT
    )
    deep = b"<Error>" + b"<a>" * 20_000
    assert parse_error(deep) == NO_DOCUMENT
    assert parse_error(b"<Error><Code>A</Code>" + b" " * limits.XML_MAX_BYTES + b"</Error>") == NO_DOCUMENT
    with pytest.raises(XmlError):
        xml_leaves(b"<a/>" * 2)
    assert xml_leaves(b"<a>" * limits.XML_MAX_DEPTH + b"</a>" * limits.XML_MAX_DEPTH)
    too_deep = limits.XML_MAX_DEPTH + 1
    with pytest.raises(XmlError):
        xml_leaves(b"<a>" * too_deep + b"</a>" * too_deep)


def test_a_small_document_takes_little_memory() -> None:
    """Each of these made a reader of paths keep gigabytes, or spend minutes, on 256 KiB."""
    room = limits.XML_MAX_BYTES
    nested = b"".join(b"<" + bytes([97 + i]) * 10_000 + b">" for i in range(12))
    bodies = [
        nested + b"<x/>" * ((room - len(nested)) // 4),
        b"<Error>" + b"<x/>" * (room // 4 - 10) + b"</Error>",
        b"<Error>" + b"x<y/>" * (room // 5 - 10) + b"</Error>",
        b"<Error " + b" ".join(b'a%d=""' % i for i in range(room // 12)) + b"/>",
        b"<Error><Code>" + b"&#65;" * (room // 5 - 20) + b"</Code></Error>",
        b"<" + b"a" * (room - 3) + b"/>",
    ]
    for body in bodies:
        assert len(body) <= room
        tracemalloc.start()
        try:
            document = parse_error(body)
            _now, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 16 * limits.MIB
        assert len(repr(document)) < 4096


def test_a_strangers_text_is_bounded_and_escaped() -> None:
    body = f"<Error><Code>{'C' * 5000}</Code><Message>a\u202eb\n{'m' * 5000}</Message><Region>r\tr</Region></Error>"
    document = parse_error(body.encode())
    assert len(document.code) <= 128
    assert len(document.message) <= limits.SERVER_MESSAGE_MAX_CHARS + 20
    assert document.message.isprintable()
    assert not is_region(document.region)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_error_reader_raise(body: bytes) -> None:
    for candidate in (body, b"<Error><Code>" + body, b"<Error><Message>" + body + b"</Message></Error>"):
        document = parse_error(candidate)
        assert isinstance(document, ErrorDocument)
        assert document.message.isprintable()


def test_leaves_come_in_order_with_their_paths() -> None:
    body = (
        b'<ListPartsResult xmlns="x"><UploadId>u</UploadId><Part><PartNumber>1</PartNumber><ETag>&quot;a&quot;</ETag></Part>'
        b"<Part><PartNumber>2</PartNumber><ETag/></Part><IsTruncated>false</IsTruncated></ListPartsResult>"
    )
    assert xml_leaves(body) == [
        ("ListPartsResult/UploadId", "u"),
        ("ListPartsResult/Part/PartNumber", "1"),
        ("ListPartsResult/Part/ETag", '"a"'),
        ("ListPartsResult/Part/PartNumber", "2"),
        ("ListPartsResult/Part/ETag", ""),
        ("ListPartsResult/IsTruncated", "false"),
    ]


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "conditional", "kind", "retryable"),
    [
        (400, "", False, ResponseError, False),
        (400, "EntityTooLarge", False, ResponseError, False),
        (400, "RequestTimeout", False, ResponseError, True),
        (400, "BadDigest", False, ResponseError, True),
        (400, "ThrottlingException", False, SlowDown, True),
        (401, "", False, AccessDenied, False),
        (403, "AccessDenied", False, AccessDenied, False),
        (403, "RequestTimeTooSkewed", False, AccessDenied, False),
        (404, "NoSuchBucket", False, NotFound, False),
        (410, "", False, NotFound, False),
        (304, "", False, ResponseError, False),
        (301, "PermanentRedirect", False, ResponseError, False),
        (408, "", False, ResponseError, True),
        (409, "BucketNotEmpty", False, ResponseError, False),
        (409, "OperationAborted", False, ResponseError, True),
        (409, "ConditionalRequestConflict", False, PreconditionFailed, True),
        (409, "Whatever", True, PreconditionFailed, False),
        (412, "", False, PreconditionFailed, False),
        (411, "MissingContentLength", False, ResponseError, False),
        (417, "", False, ResponseError, False),
        (429, "", False, SlowDown, True),
        (500, "InternalError", False, ResponseError, True),
        (501, "NotImplemented", False, ResponseError, False),
        (502, "", False, ResponseError, True),
        (503, "", False, ResponseError, True),
        (503, "SlowDown", False, SlowDown, True),
        (503, "SlowDownWrite", False, SlowDown, True),
        (504, "", False, ResponseError, True),
        (505, "", False, ResponseError, False),
        (507, "", False, ResponseError, False),
        (509, "", False, ResponseError, True),
    ],
)
def test_an_answer_becomes_the_error_it_is(
    status: int, code: str, conditional: bool, kind: type[ResponseError], retryable: bool
) -> None:
    document = ErrorDocument(code=code, message="No.", request_id="R", host_id="H")
    error = error_for("PUT s3://b/k", status, document, conditional=conditional, retry_after_s=2.0)
    assert type(error) is kind
    assert error.retryable is retryable is is_transient(status, code)
    assert (error.status, error.code, error.server_message) == (status, code, "No.")
    assert (error.request_id, error.host_id, error.retry_after_s) == ("R", "H", 2.0)
    assert str(error).startswith(f"PUT s3://b/k: {status}")
    assert str(error).isprintable()
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.status) == (kind, str(error), status)


def test_an_error_says_what_to_do() -> None:
    assert "by one PUT" in str(error_for("PUT x", 400, ErrorDocument(code="EntityTooLarge")))
    assert "clock" in str(error_for("PUT x", 403, ErrorDocument(code="RequestTimeTooSkewed")))
    assert str(error_for("HEAD x", 404, NO_DOCUMENT)) == "HEAD x: 404. Check the bucket, the key and the endpoint."
    assert str(error_for("PUT x", 418, NO_DOCUMENT)) == "PUT x: 418."
    own = error_for("PUT x", 412, NO_DOCUMENT, maybe_own=True)
    assert "may have stored the object itself" in str(own)
    assert "nothing was stored" not in str(own)


def test_a_secret_that_the_server_echoes_is_cut_out() -> None:
    document = ErrorDocument(message="You sent tok/en+1= and tok%2Fen%2B1%3D, ab")
    error = error_for("PUT x", 403, document, secrets=["tok/en+1=", "ab", ""])
    assert "tok" not in str(error) + error.server_message + repr(error)
    assert "ab" in error.server_message


def test_head_answers_bring_their_ids_in_fields() -> None:
    error = error_for("HEAD x", 404, NO_DOCUMENT, request_id="R\n", host_id="H")
    assert (error.request_id, error.host_id) == ("R\\n", "H")


# --- fields -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, []),
        ({"content_type": "text/plain; charset=utf-8"}, [("content-type", "text/plain; charset=utf-8")]),
        ({"metadata": {"Colour": "red blue", "n": ""}}, [("x-amz-meta-colour", "red blue"), ("x-amz-meta-n", "")]),
        ({"storage_class": "STANDARD_IA"}, [("x-amz-storage-class", "STANDARD_IA")]),
        ({"acl": "bucket-owner-full-control"}, [("x-amz-acl", "bucket-owner-full-control")]),
        ({"sse": "AES256"}, [("x-amz-server-side-encryption", "AES256")]),
        (
            {"sse_kms_key_id": "arn:aws:kms:eu-west-1:1:key/2"},
            [
                ("x-amz-server-side-encryption", "aws:kms"),
                ("x-amz-server-side-encryption-aws-kms-key-id", "arn:aws:kms:eu-west-1:1:key/2"),
            ],
        ),
        (
            {"sse": "aws:kms:dsse", "sse_kms_key_id": "alias/x"},
            [
                ("x-amz-server-side-encryption", "aws:kms:dsse"),
                ("x-amz-server-side-encryption-aws-kms-key-id", "alias/x"),
            ],
        ),
        ({"request_payer": True}, [("x-amz-request-payer", "requester")]),
        ({"request_payer": "requester"}, [("x-amz-request-payer", "requester")]),
        ({"request_payer": False}, []),
        ({"tagging": {"a b": "c&d=é", "e": ""}}, [("x-amz-tagging", "a%20b=c%26d%3D%C3%A9&e=")]),
        ({"tagging": "a=b&c=d"}, [("x-amz-tagging", "a=b&c=d")]),
        ({"if_none_match": "*"}, [("if-none-match", "*")]),
        ({"if_none_match": '"abc"'}, [("if-none-match", '"abc"')]),
        ({"if_match": "abc-2"}, [("if-match", "abc-2")]),
        ({"if_match": '"abc-2"'}, [("if-match", '"abc-2"')]),
        ({"if_match": 'W/"abc"'}, [("if-match", 'W/"abc"')]),
    ],
)
def test_options_become_fields(options: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert object_fields(**options) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"content_type": "a\r\nb: c"},
        {"content_type": "é"},
        {"content_type": 7},
        {"metadata": {"a b": "c"}},
        {"metadata": {"a:": "c"}},
        {"metadata": {"": "c"}},
        {"metadata": {"a\r\nb": "c"}},
        {"metadata": {"a": "é"}},
        {"metadata": {"a": "b\nc"}},
        {"metadata": {"a": "b\tc"}},
        {"metadata": {"a": " b"}},
        {"metadata": {"a": "b "}},
        {"metadata": {"a": 1}},
        {"metadata": {1: "a"}},
        {"metadata": {"a": "1", "A": "2"}},
        {"metadata": {"a": "b" * 2048}},
        {"storage_class": "A B"},
        {"storage_class": "A\r\nB"},
        {"storage_class": ""},
        {"storage_class": 3},
        {"acl": "x,y"},
        {"sse": "AES256", "sse_kms_key_id": "k"},
        {"sse": "é"},
        {"sse_kms_key_id": "a b"},
        {"sse_kms_key_id": ""},
        {"sse_kms_key_id": "a\r\nb"},
        {"sse": "AES256", "sse_customer_key": b"k" * 32},
        {"request_payer": "me"},
        {"tagging": "a=b\r\n"},
        {"tagging": {"a": 1}},
        {"tagging": {"": "a"}},
        {"tagging": {"a" * 129: "b"}},
        {"tagging": {"a": "b" * 257}},
        {"tagging": {"a": "\ud800"}},
        {"tagging": {str(i): "" for i in range(11)}},
        {"if_none_match": ""},
        {"if_none_match": "a b"},
        {"if_none_match": True},
        {"if_match": "*"},
        {"if_match": '"a'},
        {"if_match": '"a", "b"'},
        {"if_match": "a\r\n"},
        {"if_match": "a", "if_none_match": "*"},
    ],
)
def test_options_that_would_not_be_what_they_say_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        object_fields(**options)
    assert str(caught.value).isprintable()


def test_metadata_may_fill_what_s3_stores() -> None:
    assert object_fields(metadata={"abc": "v" * (limits.METADATA_MAX_BYTES - 3)})
    with pytest.raises(UsageError):
        object_fields(metadata={"abc": "v" * (limits.METADATA_MAX_BYTES - 2)})


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_customer_key_travels_with_its_md5(kind: Any) -> None:
    raw = bytes(range(32))
    assert object_fields(sse_customer_key=kind(raw)) == [
        ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
        ("x-amz-server-side-encryption-customer-key", base64.b64encode(raw).decode()),
        ("x-amz-server-side-encryption-customer-key-md5", base64.b64encode(hashlib.md5(raw).digest()).decode()),
    ]


@pytest.mark.parametrize(
    "key", [b"SECRETKEY", b"SECRETKEY" * 4, "SECRETKEY" + "x" * 23, base64.b64encode(b"SECRETKEY" * 3), 7]
)
def test_a_bad_customer_key_is_never_shown(key: Any) -> None:
    with pytest.raises(UsageError) as caught:
        customer_key_fields(key)
    assert "SECRETKEY" not in str(caught.value)
    assert base64.b64encode(b"SECRETKEY").decode() not in str(caught.value)


@given(st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=40), max_size=10))
def test_tags_come_back_as_they_were(tags: dict[str, str]) -> None:
    try:
        [(_name, value)] = object_fields(tagging=tags)
    except UsageError:
        assert any("\ud800" <= c <= "\udfff" for k, v in tags.items() for c in k + v)
        return
    assert dict(parse_qsl(value, keep_blank_values=True)) == tags
