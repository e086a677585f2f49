"""Redirects: every shape, every crossing, and what no chain of answers may bring about."""

from __future__ import annotations

import dataclasses
import ipaddress
import pickle
import random
from collections.abc import Sequence
from typing import Any

import botocore.session
import pytest
from botocore.utils import S3RegionRedirectorv2
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import RedirectRefused, TooManyRedirects, UsageError
from engine.redirect import (
    Answer,
    Discover,
    Follow,
    Intent,
    RedirectPolicy,
    Refuse,
    Scope,
    Visit,
    address_allowed,
    decide,
    private_address,
    scope,
)
from engine.s3 import Endpoint, ErrorDocument, address, parse_error
from engine.wire import Field, Url, parse_url

POLICY = RedirectPolicy()


def s3_intent(
    endpoint: Endpoint,
    method: str = "PUT",
    *,
    bucket: str = "bkt",
    key: str = "dir/a b",
    signed: bool = True,
    fields: tuple[Field, ...] = (),
    query: Sequence[Field] = (),
) -> Intent:
    url = address(endpoint, bucket, key, query=query)
    region = endpoint.region if signed else ""
    return Intent(method, url, signed, region, bucket, key, endpoint, fields=fields)


def plain_intent(url: str, method: str = "PUT", fields: tuple[Field, ...] = (), *, signed: bool = False) -> Intent:
    return Intent(method, parse_url(url), signed, "us-east-1" if signed else "", fields=fields)


def first(intent: Intent, *, asked: bool = True) -> list[Visit]:
    return [Visit(intent.url, intent.region, asked)]


def answered(intent: Intent, answer: Answer, policy: RedirectPolicy = POLICY) -> Any:
    return decide(intent, first(intent), answer, policy)


def refused(decision: Any) -> str:
    assert isinstance(decision, Refuse), decision
    assert decision.message.isprintable()
    assert decision.message.endswith(".")
    return decision.reason


def followed(decision: Any) -> str:
    assert isinstance(decision, Follow), decision
    return str(decision.url)


AWS = Endpoint.for_aws("us-east-1")
STORE = Endpoint.from_url("https://store.example:9000", "eu-west-1")
PLAIN_STORE = Endpoint.from_url("http://store.example", "eu-west-1")
LOOPBACK = Endpoint.from_url("http://127.0.0.1:9000", "us-east-1")

# --- shapes -------------------------------------------------------------------------------------------------------

THERE = "http://127.0.0.1:9001/bkt/dir/a%20b"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "GET", "POST"])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_method_and_body_are_kept(method: str, status: int) -> None:
    decision = answered(s3_intent(LOOPBACK, method), Answer(status, (THERE,)))
    assert decision == Follow(
        parse_url(THERE), "us-east-1", "location", "", check_address=True, sign=True, lasting=status in (301, 308)
    )


@pytest.mark.parametrize(
    ("method", "follows"), [("GET", True), ("HEAD", True), ("PUT", False), ("DELETE", False), ("POST", False)]
)
@pytest.mark.parametrize("signed", [True, False])
def test_303_is_followed_for_reading_only(method: str, follows: bool, signed: bool) -> None:
    decision = answered(s3_intent(LOOPBACK, method, signed=signed), Answer(303, (THERE,)))
    if follows:
        assert followed(decision) == THERE
    else:
        assert refused(decision) == f"see-other-on-{method.lower()}"


@pytest.mark.parametrize(("status", "follows"), [(301, False), (302, False), (307, True), (308, True)])
def test_an_unsigned_post_is_sent_again_only_where_the_status_says_so(status: int, follows: bool) -> None:
    decision = answered(plain_intent("http://127.0.0.1/x", "POST"), Answer(status, (THERE,)))
    assert (followed(decision) == THERE) if follows else (refused(decision) == "method-would-change")


@pytest.mark.parametrize("status", [300, 305, 306, 309, 310, 399])
def test_other_3xx_are_refused_with_and_without_location(status: int) -> None:
    for locations in ((), (THERE,)):
        assert refused(answered(s3_intent(LOOPBACK), Answer(status, locations))) == "unsupported-status"


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 304, 400, 401, 403, 404, 409, 412, 417, 429, 500, 503])
def test_what_is_no_redirect_is_left_alone_even_with_a_location(status: int) -> None:
    for intent in (s3_intent(LOOPBACK), s3_intent(AWS), plain_intent("http://store.example/x")):
        assert answered(intent, Answer(status, (THERE,))) is None


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://127.0.0.1:9001/bkt/dir/a%20b?rk=1&utm=a%2Fb", "http://127.0.0.1:9001/bkt/dir/a%20b?rk=1&utm=a%2Fb"),
        ("http://127.0.0.1:9001/bkt/dir/a%20b?", "http://127.0.0.1:9001/bkt/dir/a%20b"),
        ("  http://127.0.0.1:9001/x\t", "http://127.0.0.1:9001/x"),
        ("//127.0.0.1:9001/x", "http://127.0.0.1:9001/x"),
        ("/other/path?rk=2", "http://127.0.0.1:9000/other/path?rk=2"),
        ("b", "http://127.0.0.1:9000/bkt/dir/b"),
        ("?rk=2", "http://127.0.0.1:9000/bkt/dir/a%20b?rk=2"),
        ("http://127.0.0.1:9001/x#frag", "http://127.0.0.1:9001/x"),
        ("HTTP://LOCALHOST:9001/x", "http://localhost:9001/x"),
        ("http://127.0.0.1:9001/Ã¼", "http://127.0.0.1:9001/%C3%BC"),  # UTF-8, as latin-1 shows it
    ],
)
def test_a_location_may_be_relative_and_carry_a_query(location: str, expected: str) -> None:
    assert followed(answered(s3_intent(LOOPBACK), Answer(307, (location,)))) == expected


@pytest.mark.parametrize(
    "key", ["a b", "100%", "a%20b", "a%2Fb", "a?b", "a#b", "a?b?", "ü", "日本/x y", "a+b", "[x]", "a%", "?", "\x7f"]
)
@pytest.mark.parametrize("query", ["", "?", "?pid=p&utm=1"])
@pytest.mark.parametrize("there", ["http://127.0.0.1:9001", "//127.0.0.1:9001", "", "HTTPS://127.0.0.1:9001"])
def test_a_path_mirrored_decoded_is_still_the_same_object(key: str, query: str, there: str) -> None:
    """A store under another name is worse than an error: "a%20b" must not become "a b", nor "a?b" become "a"."""
    intent = s3_intent(LOOPBACK, key=key)
    if not there and query in ("", "?"):
        return  # the request's own URL: a loop
    decoded = f"/bkt/{key}".encode().decode("latin-1")
    for path in (decoded, intent.url.path):
        decision = answered(intent, Answer(307, (f"{there}{path}{query}",)))
        assert isinstance(decision, Follow)
        assert decision.url.path == intent.url.path
        assert decision.url.query == (query.removeprefix("?") or None)


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/bkt/a bc", "/bkt/a%20bc"),
        ("/bkt/a b/c", "/bkt/a%20b/c"),
        ("/x/bkt/a b", "/x/bkt/a%20b"),
        ("bkt/a b", "/bkt/bkt/a%20b"),
    ],
)
def test_a_path_that_is_no_mirror_stays_what_it_is(location: str, path: str) -> None:
    decision = answered(s3_intent(LOOPBACK, key="a b"), Answer(307, (location,)))
    assert isinstance(decision, Follow)
    assert decision.url.path == path


def test_a_query_alone_is_no_mirror() -> None:
    for query in ("rk=1?", "rk=/", "rk=/bkt/a b?"):
        decision = answered(s3_intent(LOOPBACK, key="a b"), Answer(307, (f"?{query}",)))
        assert followed(decision) == f"http://127.0.0.1:9000/bkt/a%20b?{query.replace(' ', '%20')}"


@pytest.mark.parametrize(
    ("region", "signed_for"), [("eu-west-3", "eu-west-3"), ("evil.com", "us-east-1"), ("", "us-east-1")]
)
def test_a_location_needs_no_region_and_believes_no_odd_one(region: str, signed_for: str) -> None:
    for answer in (Answer(307, (THERE,), region), Answer(307, (THERE,), error=ErrorDocument(region=region))):
        decision = answered(s3_intent(LOOPBACK), answer)
        assert isinstance(decision, Follow)
        assert decision.region == signed_for


def test_a_gateway_may_lead_to_s3_itself_where_the_policy_lists_it() -> None:
    policy = RedirectPolicy(hosts=("*.amazonaws.com",), allow_downgrade=True)
    decision = answered(s3_intent(LOOPBACK), Answer(307, (WEST,)), policy)
    assert isinstance(decision, Follow)
    assert decision.region == "us-west-2"


def test_two_different_locations_are_refused_and_two_equal_ones_are_one() -> None:
    intent = s3_intent(LOOPBACK)
    assert refused(answered(intent, Answer(307, (THERE, "http://127.0.0.1:9002/")))) == "two-locations"
    assert followed(answered(intent, Answer(307, (THERE, THERE + " ")))) == THERE


# Where parsers disagree, where a name hides an address, where a scheme is another one.
TORTURE = [
    "ftp://store.example/x",
    "file:///etc/passwd",
    "javascript:x",
    "http:store.example",
    "https:evil.com",
    "http:/\\evil.com",
    "///evil.com/x",
    "//evil.com:0/",
    "http://store.example@evil.com/",
    "http://user:pw@store.example/",
    "http://store.example\\@evil.com/",
    "http://store.example%2eevil.com/",
    "http://store.example%2F10.0.0.1/",  # curl CVE-2022-27780
    "http://0x7f.1/",
    "http://0x7f000001/",
    "http://127.1/",
    "http://2130706433/",
    "http://017700000001/",
    "http://127.0.0.1.1/",
    "http://[::1/",
    "http://[fe80::1%25lo]/",
    "http://exämple.com/",
    "http://ｅvil.com/",
    "http://store.example\u3002evil.com/",
    "http://store.example:80:80/",
    "http://store.example:99999/",
    "http://store.example/\x00",
    "/x\x7f",
    "http://store.ex\tample/",
]


@pytest.mark.parametrize("location", TORTURE)
@pytest.mark.parametrize("signed", [True, False])
def test_a_location_that_parsers_read_differently_is_refused(location: str, signed: bool) -> None:
    decision = answered(s3_intent(PLAIN_STORE, signed=signed), Answer(307, (location,)))
    assert refused(decision) == "bad-location"
    assert "pw" not in decision.message + decision.location
    assert decision.location.isprintable()


@pytest.mark.parametrize(
    "location",
    [
        "//evil.com/x",
        "http://evil.com/x",
        "http://evil.com:80/x",
        "http://store.example.evil.com/x",
        "http://evilstore.example/x",
        "http://example/x",
        "http://[::ffff:127.0.0.1]/x",
        "http://[::ffff:7f00:1]/x",
        "http://[::1]/x",
        "http://127.0.0.1./x",
        "http://169.254.169.254/latest/api/token",
        "http://[fd00:ec2::254]/x",
        "http://localhost/x",
        "http://bkt.s3.us-east-1.amazonaws.com/dir/a%20b",
    ],
)
def test_a_signed_request_stays_with_its_endpoint(location: str) -> None:
    decision = answered(s3_intent(PLAIN_STORE), Answer(307, (location,)))
    assert refused(decision) == "host-not-allowed"
    assert "RedirectPolicy(hosts=…)" in decision.message


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://STORE.EXAMPLE./x", "http://store.example/x"),
        ("http://store.example:80/x", "http://store.example/x"),
        ("http://store.example:9001/x", "http://store.example:9001/x"),
        ("http://node7.store.example:9001/x", "http://node7.store.example:9001/x"),
        ("https://store.example/x", "https://store.example/x"),
        ("/\\evil.com", "http://store.example/%5Cevil.com"),
        ("\\\\evil.com", "http://store.example/bkt/dir/%5C%5Cevil.com"),
    ],
)
def test_the_endpoints_host_and_names_below_it_may_see_signatures(location: str, expected: str) -> None:
    assert followed(answered(s3_intent(PLAIN_STORE), Answer(307, (location,)))) == expected


@pytest.mark.parametrize(
    "location", ["http://10.1.1.2/x", "http://1.10.1.1.1/x", "http://a.10.1.1.1/x", "http://[::1]/x"]
)
def test_an_address_has_no_names_below_it(location: str) -> None:
    intent = s3_intent(Endpoint.from_url("http://10.1.1.1:9000"))
    assert refused(answered(intent, Answer(307, (location,)))) in ("host-not-allowed", "bad-location")
    assert followed(answered(intent, Answer(307, ("http://10.1.1.1:81/x",)))) == "http://10.1.1.1:81/x"


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "http://127.8.8.8:1"]
)
@pytest.mark.parametrize(
    "there", ["127.0.0.1:2", "localhost:2", "[::1]:2", "127.1.2.3", "a.localhost", "[::ffff:127.0.0.1]"]
)
def test_on_loopback_every_loopback_address_is_the_endpoint(endpoint: str, there: str) -> None:
    decision = answered(s3_intent(Endpoint.from_url(endpoint)), Answer(307, (f"http://{there}/x",)))
    assert isinstance(decision, Follow)
    assert decision.sign


@pytest.mark.parametrize(
    "there", ["10.0.0.1", "0.0.0.0", "[::]", "store.example", "localhost.evil.com", "[::ffff:10.0.0.1]"]
)
def test_on_loopback_nothing_else_is_the_endpoint(there: str) -> None:
    assert refused(answered(s3_intent(LOOPBACK), Answer(307, (f"http://{there}/x",)))) == "host-not-allowed"


@pytest.mark.parametrize(
    ("hosts", "there", "follows"),
    [
        (("10.0.0.0/8",), "10.200.3.4:51081", True),
        (("10.0.0.0/8",), "11.0.0.1", False),
        (("10.0.0.0/8",), "[::ffff:10.1.2.3]", True),
        (("10.0.0.0/8",), "[2002:0a01:0203::1]", False),
        (("10.0.0.7",), "10.0.0.7", True),
        (("fd00::/8",), "[fd12::1]", True),
        (("fd00::/8",), "10.0.0.1", False),
        (("::/0",), "10.0.0.1", False),
        (("Node1.Example.",), "node1.example", True),
        (("node1.example",), "a.node1.example", False),
        (("*.example",), "node1.example", True),
        (("*.example",), "a.b.example", True),
        (("*.node.example",), "node.example", False),
        (("*.example",), "evilexample", False),
        (("*.example",), "example.evil.com", False),
        (("10.0.0.0/8", "*.x", "y"), "y", True),
    ],
)
def test_what_the_policy_lists_may_see_signatures(hosts: tuple[str, ...], there: str, follows: bool) -> None:
    policy = RedirectPolicy(hosts=hosts)
    decision = answered(s3_intent(LOOPBACK), Answer(307, (f"http://{there}/x",)), policy)
    if follows:
        assert isinstance(decision, Follow)
        assert decision.check_address is there.startswith(("1", "["))
    else:
        assert refused(decision) == "host-not-allowed"


def test_a_refusal_says_what_to_add() -> None:
    cases = {
        "http://10.3.4.5/x": "'10.0.0.0/8'",
        "http://172.20.1.1/x": "'172.16.0.0/12'",
        "http://8.8.8.8/x": "'8.8.8.8/32'",
        "http://[fd00::1]/x": "'fc00::/7'",
        "http://[2001:db8::1]/x": "'2001:db8::1/128'",
        "http://node.other/x?token=SECRET": "'node.other'",
    }
    for location, word in cases.items():
        decision = answered(s3_intent(PLAIN_STORE), Answer(307, (location,)))
        assert refused(decision) == "host-not-allowed"
        assert f"add {word} to RedirectPolicy(hosts=…)" in decision.message
        assert "SECRET" not in decision.message + decision.location
        follows = RedirectPolicy(hosts=(word.strip("'"),))
        assert isinstance(answered(s3_intent(PLAIN_STORE), Answer(307, (location,)), follows), Follow)


# --- AWS ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("bkt.s3-us-west-2.amazonaws.com", "us-west-2"),
        ("bkt.s3.us-west-2.amazonaws.com", "us-west-2"),
        ("bkt.s3.dualstack.eu-west-1.amazonaws.com", "eu-west-1"),
        ("bkt.s3-fips.us-east-2.amazonaws.com", "us-east-2"),
        ("bkt.s3.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("bkt.s3-accelerate.amazonaws.com", "us-east-1"),
        ("bkt.s3.amazonaws.com", "us-east-1"),
    ],
)
def test_a_307_of_s3_is_signed_for_the_region_of_its_host_and_not_remembered(host: str, region: str) -> None:
    decision = answered(s3_intent(AWS), Answer(307, (f"https://{host}/dir/a%20b",)))
    assert decision == Follow(
        parse_url(f"https://{host}/dir/a%20b"), region, "location", "", check_address=False, sign=True
    )


def test_s3_may_answer_path_style_for_the_same_object() -> None:
    location = "https://s3.us-west-2.amazonaws.com/bkt/dir/a%20b"
    assert followed(answered(s3_intent(AWS), Answer(307, (location,)))) == location


@pytest.mark.parametrize(
    "host",
    [
        "evil.s3.us-east-1.amazonaws.com",
        "evil.bkt.s3.us-east-1.amazonaws.com",
        "evil-1.us-east-1.elb.amazonaws.com",
        "ec2-1-2-3-4.compute-1.amazonaws.com",
        "bkt.s3-website-us-east-1.amazonaws.com",
        "bkt.s3.us-east-1.amazonaws.com.evil.com",
        "bkt.s3.us-east-1.amazonaws.com:8443",
        "bkt.s3.cn-north-1.amazonaws.com.cn",
        "bkt.s3.eusc-de-east-1.amazonaws.eu",
        "x.s3.us-east-1.amazonaws.com",
        "127.0.0.1",
        "store.example",
    ],
)
def test_on_aws_only_s3_and_only_this_bucket(host: str) -> None:
    assert refused(answered(s3_intent(AWS), Answer(307, (f"https://{host}/dir/a%20b",)))) == "host-not-allowed"


@pytest.mark.parametrize(
    "location",
    [
        "https://s3.us-east-1.amazonaws.com/evil/dir/a%20b",
        "https://s3.us-east-1.amazonaws.com/bkt",
        "https://bkt.s3.us-west-2.amazonaws.com/dir/other",
        "https://bkt.s3.us-west-2.amazonaws.com/dir/../dir/a%20b",
        "https://bkt.s3.us-west-2.amazonaws.com/bkt/dir/a%20b",
        "/other",
    ],
)
def test_on_aws_a_redirect_does_not_choose_another_object(location: str) -> None:
    assert refused(answered(s3_intent(AWS), Answer(307, (location,)))) == "other-object"


def test_a_port_of_the_endpoints_own_is_good_for_s3() -> None:
    intent = s3_intent(Endpoint.from_url("http://s3.us-east-1.amazonaws.com:8080"))
    there = "http://bkt.s3.us-east-1.amazonaws.com:8080/dir/a%20b?rk=1"
    assert followed(answered(intent, Answer(307, (there,)))) == there
    assert refused(answered(intent, Answer(307, (there.replace("8080", "8081"),)))) == "host-not-allowed"


def test_a_fips_endpoint_stays_fips() -> None:
    intent = s3_intent(Endpoint.for_aws("us-east-1", fips=True))
    there = "https://bkt.s3-fips.us-west-2.amazonaws.com/dir/a%20b"
    assert followed(answered(intent, Answer(307, (there,)))) == there
    assert refused(answered(intent, Answer(307, (there.replace("-fips", ""),)))) == "host-not-allowed"
    assert followed(answered(intent, Answer(301, bucket_region="us-west-2"))) == there


# --- regions ------------------------------------------------------------------------------------------------------

WEST = "https://bkt.s3.us-west-2.amazonaws.com/dir/a%20b"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(301, bucket_region="us-west-2"), "region"),
        (Answer(301, bucket_region="us-west-2", error=ErrorDocument(endpoint="evil.com", region="mars")), "region"),
        (Answer(301, error=ErrorDocument(region="us-west-2")), "region"),
        (Answer(308, error=ErrorDocument(region="us-west-2")), "region"),
        (Answer(301, error=ErrorDocument(endpoint="bkt.s3.us-west-2.amazonaws.com")), "endpoint"),
        (Answer(301, error=ErrorDocument(endpoint="bkt.s3.us-west-2.amazonaws.com", region="eu-west-1")), "endpoint"),
        (Answer(301, bucket_region="us-west-2", discovered=True), "region"),
        (Answer(400, bucket_region="us-west-2"), "region"),
        (Answer(403, bucket_region="us-west-2"), "region"),
        (Answer(400, error=ErrorDocument(code="AuthorizationHeaderMalformed", region="us-west-2")), "region"),
        (Answer(400, error=ErrorDocument(code="IllegalLocationConstraintException", region="us-west-2")), "region"),
        (Answer(400, ("https://evil.com/",), bucket_region="us-west-2"), "region"),
    ],
)
def test_an_answer_that_names_the_region_leads_there_and_is_remembered(answer: Answer, kind: str) -> None:
    decision = answered(s3_intent(AWS), answer)
    assert decision == Follow(parse_url(WEST), "us-west-2", kind, "us-west-2", check_address=False, sign=True)


def test_a_307_without_location_leads_to_the_region_and_is_not_remembered() -> None:
    decision = answered(s3_intent(AWS), Answer(307, bucket_region="us-west-2"))
    assert followed(decision) == WEST
    assert decision.learned_region == ""


def test_an_endpoint_without_the_bucket_is_path_style() -> None:
    decision = answered(s3_intent(AWS), Answer(301, error=ErrorDocument(endpoint="s3-us-west-2.amazonaws.com")))
    assert followed(decision) == "https://s3-us-west-2.amazonaws.com/bkt/dir/a%20b"
    assert decision.region == "us-west-2"


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("evil.com", "host-not-allowed"),
        ("bkt.s3.us-west-2.amazonaws.com.evil.com", "host-not-allowed"),
        ("evil.s3.us-west-2.amazonaws.com", "host-not-allowed"),
        ("bkt.s3.us-west-2.amazonaws.com/evil/", "bad-location"),
        ("bkt.s3.us-west-2.amazonaws.com?acl", "bad-location"),
        ("user@bkt.s3.us-west-2.amazonaws.com", "bad-location"),
        ("0x7f.1", "bad-location"),
        ("http://bkt.s3.us-west-2.amazonaws.com", "downgrade"),
        ("ftp://bkt.s3.us-west-2.amazonaws.com", "bad-location"),
        ("b\r\nkt", "bad-location"),
    ],
)
def test_an_endpoint_passes_the_same_policy_as_a_location(endpoint: str, reason: str) -> None:
    assert refused(answered(s3_intent(AWS), Answer(301, error=ErrorDocument(endpoint=endpoint)))) == reason


@pytest.mark.parametrize(
    "region",
    ["evil.com", "x.evil.com/", "mars", "us-west-2.evil", "US-WEST-2", "us-west-2\n", "cn-north-1", "a" * 64, "é", "#"],
)
def test_a_region_that_cannot_be_builds_no_host(region: str) -> None:
    for answer in (
        Answer(301, bucket_region=region),
        Answer(301, error=ErrorDocument(region=region)),
        Answer(400, bucket_region=region),
        Answer(400, error=ErrorDocument(code="AuthorizationHeaderMalformed", region=region)),
    ):
        assert refused(answered(s3_intent(AWS), answer)) == "bad-region"


@pytest.mark.parametrize("region", ["evil.com", "a/b", "A", "\n", "a" * 64, "é", "a b"])
def test_elsewhere_too_a_region_is_a_plain_label(region: str) -> None:
    for intent in (s3_intent(STORE), plain_intent("https://store.example/k", signed=True)):
        for answer in (
            Answer(400, bucket_region=region),
            Answer(400, error=ErrorDocument(code="AuthorizationHeaderMalformed", region=region)),
        ):
            assert refused(answered(intent, answer)) == "bad-region"


def test_a_region_is_corrected_where_the_last_hop_was() -> None:
    intent = s3_intent(STORE)
    node = parse_url("https://node.store.example/bkt/dir/a%20b?rk=1")
    visits = [*first(intent), Visit(node, "eu-west-1", True)]
    assert decide(intent, visits, Answer(400, bucket_region="garage"), POLICY) == Follow(
        node, "garage", "region", "garage", check_address=True, sign=True
    )


def test_names_below_the_endpoint_are_counted_from_it_not_from_the_bucket() -> None:
    url = address(STORE, "bkt", "k", addressing="virtual")
    intent = Intent("PUT", url, True, "eu-west-1", "bkt", "k", STORE, addressing="virtual")
    for there in ("https://node.store.example/k", "https://store.example/bkt/k", "https://bkt.store.example:81/k"):
        assert followed(answered(intent, Answer(307, (there,)))) == there
    assert refused(answered(intent, Answer(307, ("https://example/k",)))) == "host-not-allowed"


@pytest.mark.parametrize(
    ("answer", "learned"),
    [
        (Answer(301, (WEST,)), "us-west-2"),
        (Answer(308, (WEST,)), "us-west-2"),
        (Answer(302, (WEST,)), ""),
        (Answer(307, (WEST,), bucket_region="us-west-2"), ""),
        (Answer(301, (WEST,), bucket_region="eu-west-1"), "us-west-2"),  # its host says it better
    ],
)
def test_what_s3_says_for_good_is_remembered(answer: Answer, learned: str) -> None:
    decision = answered(s3_intent(AWS), answer)
    assert isinstance(decision, Follow)
    assert (decision.region, decision.learned_region) == ("us-west-2", learned)


@pytest.mark.parametrize(
    ("answer", "learned"),
    [
        (Answer(301, (THERE,)), ""),
        (Answer(301, (THERE,), bucket_region="garage"), "garage"),
        (Answer(301, (THERE,), error=ErrorDocument(region="garage")), "garage"),
        (Answer(301, (THERE,), bucket_region="no region"), ""),
        (Answer(307, (THERE,), bucket_region="garage"), ""),
    ],
)
def test_elsewhere_a_region_is_remembered_only_when_it_was_named(answer: Answer, learned: str) -> None:
    decision = answered(s3_intent(LOOPBACK), answer)
    assert isinstance(decision, Follow)
    assert decision.learned_region == learned


def test_elsewhere_another_region_is_another_signature_at_the_same_url() -> None:
    intent = s3_intent(STORE)
    for answer in (
        Answer(400, error=ErrorDocument(code="AuthorizationHeaderMalformed", region="garage")),
        Answer(400, bucket_region="garage"),
        Answer(301, bucket_region="garage"),
        Answer(301, error=ErrorDocument(region="garage")),
    ):
        decision = answered(intent, answer)
        assert decision == Follow(intent.url, "garage", "region", "garage", check_address=True, sign=True)


def test_ceph_names_the_other_zonegroup_in_its_document() -> None:
    policy = RedirectPolicy(hosts=("zg2.example",))
    for word in ("zg2.example:8002", "http://zg2.example:8002"):
        answer = Answer(301, error=ErrorDocument(code="PermanentRedirect", endpoint=word))
        decision = answered(s3_intent(PLAIN_STORE), answer, policy)
        assert followed(decision) == "http://zg2.example:8002/bkt/dir/a%20b"
        assert refused(answered(s3_intent(PLAIN_STORE), answer)) == "host-not-allowed"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(400),
        Answer(400, error=ErrorDocument(code="EntityTooLarge")),
        Answer(400, error=ErrorDocument(code="EntityTooLarge", region="us-west-2")),
        Answer(400, bucket_region="us-east-1"),
        Answer(403, bucket_region="us-east-1"),
        Answer(403, error=ErrorDocument(code="AccessDenied", region="us-west-2")),
        Answer(400, error=ErrorDocument(code="AuthorizationHeaderMalformed", region="us-east-1")),
        Answer(400, error=ErrorDocument(code="AuthorizationHeaderMalformed"), discovered=True),
        Answer(404, bucket_region="us-west-2"),
        Answer(500, bucket_region="us-west-2"),
    ],
)
def test_a_refusal_that_has_nothing_to_do_with_regions_stands(answer: Answer) -> None:
    assert answered(s3_intent(AWS), answer) is None


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("PUT", Answer(403, bucket_region="garage")),
        ("HEAD", Answer(400)),
        ("PUT", Answer(403, error=ErrorDocument(code="AccessDenied", region="garage"))),
    ],
)
def test_elsewhere_less_is_believed(method: str, answer: Answer) -> None:
    assert answered(s3_intent(STORE, method), answer) is None
    coded = Answer(403, error=ErrorDocument(code="AuthorizationHeaderMalformed", region="garage"))
    assert answered(s3_intent(STORE, method), coded).region == "garage"
    silent = Answer(400, error=ErrorDocument(code="AuthorizationHeaderMalformed"))
    assert isinstance(answered(s3_intent(STORE, method), silent), Discover)
    assert answered(plain_intent("https://store.example/k", signed=True), silent) is None


def test_an_unsigned_400_is_not_about_regions() -> None:
    assert answered(s3_intent(AWS, signed=False), Answer(400, bucket_region="us-west-2")) is None


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("PUT", Answer(301)),
        ("HEAD", Answer(301)),
        ("HEAD", Answer(400)),
        ("PUT", Answer(400, error=ErrorDocument(code="AuthorizationHeaderMalformed"))),
        ("PUT", Answer(400, error=ErrorDocument(code="IllegalLocationConstraintException"))),
    ],
)
def test_when_nobody_says_where_the_bucket_is_it_is_asked_once(method: str, answer: Answer) -> None:
    intent = s3_intent(AWS, method)
    decision = answered(intent, answer)
    # S3 tells the region to anybody: no signature is shown.
    assert decision == Discover(parse_url("https://bkt.s3.us-east-1.amazonaws.com/"), "", sign=False)
    told = dataclasses.replace(answer, bucket_region="us-west-2", discovered=True)
    assert followed(answered(intent, told)) == WEST
    silent = answered(intent, dataclasses.replace(answer, discovered=True))
    assert silent is None if answer.status == 400 else refused(silent) == "no-location"


def test_a_region_that_is_the_one_asked_already_is_a_loop_unless_an_endpoint_leads_out() -> None:
    for endpoint in (AWS, STORE):
        intent = s3_intent(endpoint)
        here = Answer(301, bucket_region=endpoint.region)
        assert refused(answered(intent, here)) == "loop"
        assert refused(answered(intent, dataclasses.replace(here, discovered=True))) == "loop"
        assert isinstance(answered(intent, Answer(301, error=ErrorDocument(region=endpoint.region))), Discover)
    out = dataclasses.replace(here, error=ErrorDocument(endpoint="node.store.example"))
    assert followed(answered(intent, out)) == "https://node.store.example/bkt/dir/a%20b"


def test_a_bucket_elsewhere_is_asked_with_a_signature() -> None:
    assert answered(s3_intent(STORE), Answer(301)) == Discover(
        parse_url("https://store.example:9000/bkt"), "eu-west-1", sign=True
    )
    assert answered(s3_intent(STORE, signed=False), Answer(301)) == Discover(
        parse_url("https://store.example:9000/bkt"), "", sign=False
    )


def test_a_plain_url_that_is_redirected_nowhere_says_so() -> None:
    intent = plain_intent("https://bkt.s3.us-east-1.amazonaws.com/k?X-Amz-Signature=SECRET")
    decision = answered(intent, Answer(301, bucket_region="us-west-2"))
    assert refused(decision) == "no-location"
    assert "us-west-2" in decision.message
    assert "SECRET" not in repr(decision)
    assert refused(answered(intent, Answer(307, ("  ",)))) == "no-location"


def test_anonymous_requests_are_led_to_the_region_too() -> None:
    decision = answered(s3_intent(AWS, signed=False), Answer(301, bucket_region="us-west-2"))
    assert decision == Follow(parse_url(WEST), "", "region", "us-west-2", check_address=False, sign=False)


def test_a_signed_plain_url_is_signed_anew_for_the_region() -> None:
    intent = plain_intent("https://store.example/k", signed=True)
    error = ErrorDocument(code="AuthorizationHeaderMalformed", region="eu-west-1")
    assert answered(intent, Answer(400, error=error)) == Follow(
        intent.url, "eu-west-1", "region", "", check_address=True, sign=True
    )


def test_the_documents_of_s3_are_understood_whole() -> None:
    body = (
        b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AuthorizationHeaderMalformed</Code><Message>The authorization '
        b"header is malformed; the region 'us-east-1' is wrong; expecting 'us-west-2'</Message><Region>us-west-2</Region>"
        b"<RequestId>R</RequestId><HostId>H</HostId></Error>"
    )
    assert followed(answered(s3_intent(AWS), Answer(400, error=parse_error(body)))) == WEST


# --- sub-resources ------------------------------------------------------------------------------------------------


OTHER_OPERATIONS = (
    "acl policy tagging uploads uploadId=x versionId=1 delete %61cl ACL a=b&acl= acl&rk=1 x-amz-acl=public-read "
    "X-Amz-Copy-Source=%2Fb%2Fk cors lifecycle partNumber=1&uploadId=x renameObject"
)


@pytest.mark.parametrize("query", OTHER_OPERATIONS.split())
def test_a_signed_redirect_may_not_make_another_operation_of_it(query: str) -> None:
    for endpoint, base in ((LOOPBACK, THERE), (AWS, WEST)):
        assert refused(answered(s3_intent(endpoint, "DELETE"), Answer(307, (f"{base}?{query}",)))) == "sub-resource"


@pytest.mark.parametrize(
    "query", ["", "?partNumber=1", "?uploadId=u", "?partNumber=2&uploadId=u", "?partNumber=1&uploadId=v"]
)
def test_nor_take_the_operation_away(query: str) -> None:
    """A part sent without its upload would overwrite the object."""
    intent = s3_intent(LOOPBACK, query=[("partNumber", "1"), ("uploadId", "u")])
    assert refused(answered(intent, Answer(307, (THERE + query,)))) == "sub-resource"
    for kept in ("?partNumber=1&uploadId=u", "?uploadId=u&rk=9&partNumber=%31"):
        assert followed(answered(intent, Answer(307, (THERE + kept,)))) == THERE + kept


def test_a_region_redirect_keeps_the_operation() -> None:
    intent = s3_intent(AWS, "POST", query=[("uploads", "")])
    assert followed(answered(intent, Answer(301, bucket_region="us-west-2"))) == WEST + "?uploads"
    error = ErrorDocument(endpoint="bkt.s3.us-west-2.amazonaws.com")
    assert followed(answered(intent, Answer(301, error=error))) == WEST + "?uploads"


def test_parameters_of_the_stores_own_are_followed_and_signed() -> None:
    location = THERE + "?pid=p1&utm=123&rk=a%2Fb"
    decision = answered(s3_intent(LOOPBACK), Answer(307, (location,)))
    assert followed(decision) == location
    assert decision.sign


def test_unsigned_requests_carry_no_orders_so_their_query_is_free() -> None:
    intent = plain_intent("http://store.example/webhdfs/v1/f?op=CREATE")
    location = "http://node.example:9864/webhdfs/v1/f?op=CREATE&delegation=t&acl&versionId=2"
    assert followed(answered(intent, Answer(307, (location,)))) == location


@pytest.mark.parametrize("query", ["X-Amz-Signature=1&X-Amz-Credential=2", "AWSAccessKeyId=1&Signature=2&Expires=3"])
def test_a_location_with_a_signature_of_its_own_gets_none_of_ours(query: str) -> None:
    intent = s3_intent(LOOPBACK)
    decision = answered(intent, Answer(307, (f"{THERE}?{query}",)))
    assert isinstance(decision, Follow)
    assert not decision.sign
    assert decision.region == ""
    # …and it is trusted no more than one without.
    assert refused(answered(intent, Answer(307, (f"http://evil.com/?{query}",)))) == "host-not-allowed"
    # The hop after it is signed again, for the region before it.
    visits = [*first(intent), Visit(decision.url, "", True)]
    back = decide(intent, visits, Answer(307, ("http://127.0.0.1:9002/",)), POLICY)
    assert isinstance(back, Follow)
    assert (back.sign, back.region) == (True, "us-east-1")


# --- unsigned requests --------------------------------------------------------------------------------------------


def test_unsigned_requests_follow_anywhere_but_their_addresses_are_checked() -> None:
    for location in ("https://other.example/x", "https://10.0.0.1/x", "https://[::1]/x"):
        decision = answered(plain_intent("https://store.example/x"), Answer(307, (location,)))
        assert decision == Follow(parse_url(location), "", "location", "", check_address=True, sign=False)


def test_listed_hosts_bind_unsigned_requests_as_well() -> None:
    policy = RedirectPolicy(hosts=("*.cern.ch",))
    intent = plain_intent("https://eos.cern.ch/x")
    assert isinstance(answered(intent, Answer(307, ("https://node.cern.ch/x",)), policy), Follow)
    assert isinstance(answered(intent, Answer(307, ("https://eos.cern.ch:1095/x",)), policy), Follow)
    assert refused(answered(intent, Answer(307, ("https://node.example/x",)), policy)) == "host-not-allowed"


def test_a_presigned_query_is_never_copied_to_another_origin() -> None:
    intent = plain_intent("https://store.example/k?X-Amz-Signature=SECRET&X-Amz-Credential=AKID")
    for location in ("https://other.example/k", "//other.example/k", "https://store.example:81/k"):
        assert "SECRET" not in followed(answered(intent, Answer(307, (location,))))


# --- what secret, which crossing ----------------------------------------------------------------------------------

SECRETS: list[tuple[str, str]] = [
    ("Authorization", "curl CVE-2018-1000007, rclone GHSA-8mxv-9xhp-86h4 (IBM bearer)"),
    ("Cookie", "curl CVE-2022-27776"),
    ("Proxy-Authorization", "the same for proxies"),
    ("X-Amz-Security-Token", "rclone GHSA-cf44-9pgv-m4xc"),
    ("x-amz-s3session-token", "the same for directory buckets"),
    ("x-amz-server-side-encryption-customer-key", "rclone GHSA-8mxv-9xhp-86h4"),
    ("x-amz-copy-source-server-side-encryption-customer-key", "rclone GHSA-8mxv-9xhp-86h4"),
    ("X-Api-Key", "rclone GHSA-486v-q2wf-fp2r: names that no list knows"),
    ("TransferHeaderAuthorization", "WLCG third-party copies"),
    ("X-Anything", "unknown, so a secret"),
]
CROSSINGS = [
    ("https://store.example/k", "https://evil.com/k", "another host"),
    ("https://store.example/k", "https://node.store.example/k", "a name below, of a plain URL"),
    ("https://store.example/k", "https://example/k", "a name above"),
    ("https://store.example/k", "https://store.example.evil.com/k", "a name that begins the same"),
    ("http://store.example/k", "https://evil.com/k", "another host, with TLS"),
    ("http://127.0.0.1/k", "http://10.0.0.1/k", "another address"),
]


@pytest.mark.parametrize(("here", "there", "_crossing"), CROSSINGS)
@pytest.mark.parametrize(("name", "_advisory"), SECRETS)
def test_a_field_that_may_be_secret_does_not_cross(
    name: str, _advisory: str, here: str, there: str, _crossing: str
) -> None:
    intent = plain_intent(here, fields=((name, "SECRET"), ("content-type", "a/b")))
    decision = answered(intent, Answer(307, (there,)))
    assert refused(decision) == "secret-would-leak"
    assert name in decision.message
    assert "SECRET" not in repr(decision) + repr(intent)
    host = parse_url(there).host
    assert isinstance(answered(intent, Answer(307, (there,)), RedirectPolicy(hosts=(host,))), Follow)


@pytest.mark.parametrize(("name", "_advisory"), SECRETS)
def test_without_tls_a_secret_goes_only_where_the_policy_says(name: str, _advisory: str) -> None:
    """rclone GHSA-gx4c-2hqx-cw2r, GHSA-h4mf-4v27-hggj; curl CVE-2022-27774: the host is the same, the wire is not."""
    intent = plain_intent("https://store.example/k", fields=((name, "SECRET"),))
    answer = Answer(307, ("http://store.example/k",))
    assert refused(answered(intent, answer)) == "downgrade"
    assert refused(answered(intent, answer, RedirectPolicy(allow_downgrade=True))) == "secret-would-leak"
    listed = RedirectPolicy(allow_downgrade=True, hosts=("store.example",))
    assert isinstance(answered(intent, answer, listed), Follow)


@pytest.mark.parametrize(("name", "_advisory"), SECRETS)
def test_a_secret_goes_where_a_signed_request_may_go(name: str, _advisory: str) -> None:
    fields = ((name, "SECRET"),)
    for intent, there in (
        (plain_intent("https://store.example/k", fields=fields), "https://store.example:8443/k"),
        (plain_intent("http://127.0.0.1:1/k", fields=fields), "http://127.0.0.1:2/k"),
        (s3_intent(STORE, fields=fields), "https://node.store.example/k"),
        (s3_intent(AWS, fields=fields), WEST),
        (s3_intent(AWS, fields=fields, signed=False), WEST),
    ):
        assert isinstance(answered(intent, Answer(307, (there,))), Follow)


def test_a_secret_does_not_come_back_by_a_second_hop() -> None:
    """What may cross once (to a listed host) must not cross again from there."""
    fields = (("authorization", "SECRET"),)
    intent = plain_intent("https://store.example/k", fields=fields)
    policy = RedirectPolicy(hosts=("trusted.example",))
    visits = [*first(intent), Visit(parse_url("https://trusted.example/k"))]
    for there in ("https://evil.com/k", "//evil.com/", "https://below.trusted.example/"):
        assert isinstance(decide(intent, visits, Answer(307, (there,)), policy), Refuse)


HARMLESS = [
    "Content-Type",
    "cache-control",
    "x-amz-meta-anything",
    "x-amz-checksum-crc32c",
    "if-none-match",
    "x-amz-acl",
]


@pytest.mark.parametrize(
    "name", [*HARMLESS, "content-length", "expect", "x-amz-storage-class", "Overwrite", "user-agent"]
)
def test_what_describes_the_object_crosses(name: str) -> None:
    intent = plain_intent("https://store.example/k", fields=((name, "v"),))
    assert isinstance(answered(intent, Answer(307, ("https://other.example/k",))), Follow)


# --- downgrade, loops, limits -------------------------------------------------------------------------------------


def test_https_never_becomes_http_unless_allowed() -> None:
    for intent in (s3_intent(STORE), s3_intent(STORE, signed=False), plain_intent("https://store.example/k")):
        answer = Answer(307, ("http://store.example:9000/bkt/k",))
        assert refused(answered(intent, answer)) == "downgrade"
        assert isinstance(answered(intent, answer, RedirectPolicy(allow_downgrade=True)), Follow)
    assert isinstance(answered(s3_intent(PLAIN_STORE), Answer(307, ("https://store.example/bkt/k",))), Follow)


def test_an_upgrade_is_not_taken_back() -> None:
    intent = s3_intent(PLAIN_STORE)
    visits = [*first(intent), Visit(parse_url("https://store.example/x"), "eu-west-1", True)]
    assert refused(decide(intent, visits, Answer(307, ("http://store.example/y",)), POLICY)) == "downgrade"


def test_the_same_request_twice_is_a_loop() -> None:
    intent = s3_intent(LOOPBACK)
    assert refused(answered(intent, Answer(307, (str(intent.url),)))) == "loop"
    there = Visit(parse_url(THERE), "us-east-1", True)
    assert refused(decide(intent, [*first(intent), there], Answer(307, (str(intent.url),)), POLICY)) == "loop"


def test_the_same_url_in_another_region_or_without_expect_is_no_loop() -> None:
    intent = s3_intent(LOOPBACK)
    again = decide(intent, first(intent), Answer(301, (str(intent.url),), bucket_region="eu-west-1"), POLICY)
    assert isinstance(again, Follow)
    visits = [*first(intent), Visit(parse_url(THERE), "us-east-1", False)]
    assert isinstance(decide(intent, visits, Answer(307, (str(intent.url),)), POLICY), Follow)


def test_a_bounce_between_two_regions_ends() -> None:
    for endpoint in (AWS, STORE):
        intent = s3_intent(endpoint)
        visits = first(intent)
        for _ in range(10):
            region = "eu-west-2" if visits[-1].region != "eu-west-2" else endpoint.region
            answer = Answer(400, error=ErrorDocument(code="AuthorizationHeaderMalformed", region=region))
            decision = decide(intent, visits, answer, POLICY)
            if not isinstance(decision, Follow):
                break
            visits.append(Visit(decision.url, decision.region, True))
        assert refused(decision) == "loop"
        assert len(visits) == 2


def test_hops_are_counted_and_retries_of_a_hop_are_not() -> None:
    intent = s3_intent(LOOPBACK)
    visits = first(intent)
    visits.append(dataclasses.replace(visits[0], asked=False))  # 417, again without Expect
    for hop in range(5):
        decision = decide(intent, visits, Answer(307, (f"http://127.0.0.1:{9100 + hop}/",)), POLICY)
        assert isinstance(decision, Follow)
        visits.append(Visit(decision.url, decision.region, False))
    decision = decide(intent, visits, Answer(307, ("http://127.0.0.1:9999/?token=SECRET",)), POLICY)
    assert refused(decision) == "too-many-hops"
    error = decision.error(307, "TemporaryRedirect")
    assert isinstance(error, TooManyRedirects)
    assert (error.status, error.reason, error.code) == (307, "too-many-hops", "TemporaryRedirect")
    assert "SECRET" not in error.location + str(error)


def test_a_refusal_is_short_however_long_the_location() -> None:
    long = "x" * 60_000
    for location in (
        f"http://evil.com/{long}",
        f"http://evil.com/?{long}",
        f"http://{long}/",
        f"/?acl={long}",
        long * 2,
    ):
        decision = answered(s3_intent(LOOPBACK), Answer(307, (location,)), RedirectPolicy(max_hops=0))
        assert refused(decision) in ("host-not-allowed", "bad-location", "sub-resource", "too-many-hops")
        assert len(repr(decision)) < 3000


def test_a_policy_of_no_hops_follows_nothing() -> None:
    policy = RedirectPolicy(max_hops=0)
    intent = s3_intent(AWS)
    for answer in (
        Answer(307, (WEST,)),
        Answer(301, bucket_region="us-west-2"),
        Answer(301),
        Answer(400, bucket_region="us-west-2"),
    ):
        assert refused(answered(intent, answer, policy)) == "too-many-hops"
    assert answered(intent, Answer(404), policy) is None


def test_a_refusal_becomes_its_error() -> None:
    error = Refuse("downgrade", "No.", "http://x/").error(307)
    assert type(error) is RedirectRefused
    assert (error.status, error.reason, error.location, str(error)) == (307, "downgrade", "http://x/", "No.")


# --- the policy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"max_hops": -1},
        {"max_hops": 51},
        {"max_hops": 1.5},
        {"max_hops": True},
        {"hosts": "example.com"},
        {"hosts": "localhost"},
        {"hosts": (7,)},
        {"hosts": ("",)},
        {"hosts": ("*",)},
        {"hosts": ("*.",)},
        {"hosts": ("a.*.b",)},
        {"hosts": ("http://example.com",)},
        {"hosts": ("example.com:80",)},
        {"hosts": ("example.com/x",)},
        {"hosts": ("10.0.0.1/8",)},
        {"hosts": ("10.0.0.0/33",)},
        {"hosts": ("10.1",)},
        {"hosts": ("0x7f.1",)},
        {"hosts": ("exämple.com",)},
        {"hosts": ("user@example.com",)},
        {"hosts": ("127.0.0.1:9000",)},
    ],
)
def test_a_policy_that_would_not_be_what_it_says_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        RedirectPolicy(**options)
    assert str(caught.value).isprintable()


def test_a_policy_is_a_value() -> None:
    policy = RedirectPolicy(hosts=["10.0.0.0/8", "*.example", "a.b", "[::1]"])
    assert policy.hosts == ("10.0.0.0/8", "*.example", "a.b", "[::1]")
    assert policy == RedirectPolicy(hosts=("10.0.0.0/8", "*.example", "a.b", "[::1]"))
    assert hash(policy) == hash(dataclasses.replace(policy))
    again = pickle.loads(pickle.dumps(policy))
    assert again == policy
    assert again.names_host("x.example")
    assert repr(policy) == (
        "RedirectPolicy(max_hops=5, hosts=('10.0.0.0/8', '*.example', 'a.b', '[::1]'), allow_downgrade=False)"
    )


def test_bits_beside_a_prefix_are_named() -> None:
    with pytest.raises(UsageError, match=r"write '10\.0\.0\.0/8'"):
        RedirectPolicy(hosts=("10.1.2.3/8",))


# --- addresses ----------------------------------------------------------------------------------------------------

SCOPE_TEXTS = {
    Scope.NOWHERE: "0.0.0.0 0.1.2.3 :: 224.0.0.1 239.255.255.250 255.255.255.255 240.0.0.1 ff02::1 ::ffff:0.0.0.0 "
    "::ffff:224.0.0.1 64:ff9b::255.255.255.255 localhost 1.2.3 0x7f.1",
    # The last is the Teredo address of 127.0.0.1.
    Scope.LOOPBACK: "127.0.0.1 127.255.255.254 ::1 ::ffff:127.0.0.1 ::ffff:7f00:1 ::127.0.0.1 2002:7f00:1:: "
    "2002:7f00:0001:ffff::1 64:ff9b::7f00:1 64:ff9b:1::127.0.0.1 ::ffff:0:127.0.0.1 2001:0:1:2:3:4:80ff:fffe",
    Scope.LINK: "169.254.169.254 169.254.0.1 fe80::1 fe80::1%eth0 febf::1 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe "
    "2002:a9fe:a9fe::1",
    Scope.PRIVATE: "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.127.255.255 100.100.100.200 192.0.0.192 "
    "198.18.0.1 fc00::1 fd00:ec2::254 fec0::1 ::ffff:10.0.0.1 64:ff9b::10.0.0.1 64:ff9b:1::8.8.8.8 2002:c0a8:101::1",
    Scope.PUBLIC: "8.8.8.8 172.15.0.1 172.32.0.1 100.63.0.1 100.128.0.1 169.253.1.1 128.0.0.1 2600::1 ::ffff:8.8.8.8 "
    "64:ff9b::8.8.8.8 2002:808:808::1",
}
SCOPES = {its: text.split() for its, text in SCOPE_TEXTS.items()}


@pytest.mark.parametrize(("ip", "expected"), [(ip, s) for s, ips in SCOPES.items() for ip in ips])
def test_an_address_has_the_narrowest_scope_it_can_be_read_as(ip: str, expected: Scope) -> None:
    assert scope(ip) is expected


@pytest.mark.parametrize("came_from", list(Scope))
@pytest.mark.parametrize("there", list(Scope))
def test_a_redirect_never_leads_to_a_narrower_scope(came_from: Scope, there: Scope) -> None:
    for source in [""] if came_from is Scope.NOWHERE else SCOPES[came_from]:
        for ip in SCOPES[there]:
            origin = Scope.PUBLIC if came_from is Scope.NOWHERE else came_from
            assert address_allowed(POLICY, ip, source) is (there is not Scope.NOWHERE and there >= origin)


@pytest.mark.parametrize("came_from", ["", "localhost", "0.0.0.0", "unix:/run/x", "nonsense"])
def test_who_is_not_known_is_public(came_from: str) -> None:
    assert address_allowed(POLICY, "8.8.8.8", came_from)
    for ip in ("0.0.0.0", "127.0.0.1", "10.0.0.1", "fe80::1"):
        assert not address_allowed(POLICY, ip, came_from)


def test_listed_addresses_are_allowed_from_anywhere() -> None:
    policy = RedirectPolicy(hosts=("10.0.0.0/8", "::1", "0.0.0.0/32"))
    for ip in ("10.1.2.3", "::ffff:10.1.2.3", "::1", "0.0.0.0"):
        assert address_allowed(policy, ip, "8.8.8.8")
    for ip in ("127.0.0.1", "169.254.169.254", "11.0.0.1%eth0x", "nonsense", "2002:a01:203::1"):
        assert address_allowed(policy, ip, "8.8.8.8") is (ip.startswith("11."))


def test_the_refusal_of_an_address_says_what_to_add() -> None:
    decision = private_address(307, parse_url("http://rebound.example/x?token=SECRET"), "169.254.169.254")
    assert refused(decision) == "private-address"
    assert "169.254.169.254/32" in decision.message
    assert "SECRET" not in repr(decision)


@given(st.ip_addresses(v=4))
def test_every_private_address_of_the_standard_library_is_narrower_than_public(ip: ipaddress.IPv4Address) -> None:
    mine = scope(str(ip))
    documentation = any(ip in ipaddress.ip_network(n) for n in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"))
    if (ip.is_private or ip.is_reserved or ip.is_multicast or ip.is_link_local or ip.is_loopback) and not documentation:
        assert mine is not Scope.PUBLIC
    for form in (f"::ffff:{ip}", f"64:ff9b::{ip}", f"::ffff:0:{ip}"):
        assert scope(form) is mine


@given(st.text(max_size=30))
def test_no_text_is_an_allowed_address_by_accident(text: str) -> None:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        assert scope(text) is Scope.NOWHERE
        assert not address_allowed(POLICY, text, "127.0.0.1")


# --- properties ---------------------------------------------------------------------------------------------------

HOSTS = [
    "store.example",
    "node.store.example",
    "evil.com",
    "store.example.evil.com",
    "127.0.0.1",
    "[::1]",
    "localhost",
    "10.0.0.1",
    "[::ffff:10.0.0.1]",
    "169.254.169.254",
    "listed.example",
    "a.below.example",
    "bkt.s3.us-west-2.amazonaws.com",
    "s3.us-west-2.amazonaws.com",
    "s3-eu-west-1.amazonaws.com",
    "bkt.s3.dualstack.eu-west-1.amazonaws.com",
    "evil.s3.us-west-2.amazonaws.com",
    "x.us-east-1.elb.amazonaws.com",
    "bkt.s3.cn-north-1.amazonaws.com.cn",
    "0x7f.1",
    "user@evil.com",
    "",
]
schemes = st.sampled_from(["http", "https", "HTTP", "ftp", ""])
ports = st.sampled_from(["", ":80", ":443", ":9000", ":0", ":x"])
paths = st.sampled_from(["", "/", "/bkt/dir/a%20b", "/dir/a%20b", "/bkt/other", "/..", "\\x", "/\x00"])
queries = st.sampled_from(["", "?", "?rk=1", "?acl", "?uploadId=u", "?X-Amz-Signature=s", "?a=b#c"])
urls = st.builds(lambda s, h, p, a, q: f"{s}://{h}{p}{a}{q}", schemes, st.sampled_from(HOSTS), ports, paths, queries)
locations = st.lists(st.one_of(urls, paths, st.text(max_size=20)), max_size=2).map(tuple)
regions = st.sampled_from(
    ["", "us-east-1", "us-west-2", "eu-west-1", "cn-north-1", "evil.com", "garage", "x" * 64, "\n"]
)
documents = st.builds(
    ErrorDocument,
    code=st.sampled_from(
        ["", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"]
    ),
    region=regions,
    endpoint=st.one_of(st.sampled_from([*HOSTS, "http://evil.com:81", "listed.example:82"]), st.text(max_size=12)),
)
answers = st.builds(
    Answer,
    status=st.sampled_from([200, 201, 300, 301, 302, 303, 304, 305, 307, 308, 400, 403, 404, 503]),
    locations=locations,
    bucket_region=regions,
    error=documents,
)
policies = st.builds(
    RedirectPolicy,
    max_hops=st.integers(0, 6),
    hosts=st.sampled_from([(), ("listed.example", "*.below.example"), ("10.0.0.0/8",)]),
    allow_downgrade=st.booleans(),
)
fieldsets = st.sampled_from(
    [(), (("content-type", "a/b"),), (("x-api-key", "SECRET"),), (("Authorization", "SECRET"),)]
)
endpoints = st.sampled_from(
    [
        AWS,
        STORE,
        PLAIN_STORE,
        LOOPBACK,
        Endpoint.for_aws("eu-west-1", fips=True),
        Endpoint.from_url("https://10.9.9.9/base"),
    ]
)
intents = st.one_of(
    st.builds(
        s3_intent,
        endpoints,
        st.sampled_from(["PUT", "GET", "HEAD", "DELETE", "POST"]),
        signed=st.booleans(),
        fields=fieldsets,
        query=st.sampled_from([(), (("uploads", ""),)]),
    ),
    st.builds(
        plain_intent,
        st.sampled_from(
            ["http://store.example/k?token=SECRET", "https://127.0.0.1:1/k", "https://bkt.s3.amazonaws.com/k"]
        ),
        st.sampled_from(["PUT", "POST", "GET"]),
        fieldsets,
        signed=st.booleans(),
    ),
)


def literal(host: str) -> Any:
    try:
        ip: Any = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


def is_listed(host: str, policy: RedirectPolicy) -> bool:
    ip = literal(host)
    if ip is not None:
        return "10.0.0.0/8" in policy.hosts and ip in ipaddress.ip_network("10.0.0.0/8")
    return host in policy.hosts or any(h.startswith("*.") and host.endswith(h[1:]) for h in policy.hosts)


def may_see_a_signature(intent: Intent, url: Url, policy: RedirectPolicy) -> bool:
    """The policy's rule written once more, the slow way, as an oracle."""
    host, ip = url.host, literal(url.host)
    if is_listed(host, policy):
        return True
    own = intent.endpoint.host if intent.endpoint else intent.url.host
    if intent.endpoint and intent.endpoint.aws:
        service = ("s3-fips",) if intent.endpoint.fips else ("s3", "s3-fips")
        allowed = {
            f"{bucket}{s}{dual}{region}.amazonaws.com"
            for bucket in ("", "bkt.")
            for s in service
            for dual in ("", ".dualstack")
            for region in ("", ".us-east-1", ".us-west-2", ".eu-west-1", "-us-west-2", "-eu-west-1")
        }
        return host in allowed and url.port in (80, 443)
    if host == own or (intent.endpoint is not None and ip is None and host.endswith("." + own) and own[-1].isalpha()):
        return True
    loopback = ip.is_loopback if ip else host == "localhost"
    return bool(loopback) and own in ("127.0.0.1", "::1", "localhost")


def check_hop(intent: Intent, visits: list[Visit], follow: Follow, policy: RedirectPolicy) -> None:
    before, url = visits[-1].url, follow.url
    trusted = may_see_a_signature(intent, url, policy)
    if intent.signed or policy.hosts:
        assert trusted, (intent, follow)
    assert not follow.sign or intent.signed
    assert (follow.region == "") is (not follow.sign)
    assert url.scheme in ("http", "https")
    assert policy.allow_downgrade or (before.scheme, url.scheme) != ("https", "http")
    if any(value == "SECRET" for _name, value in intent.fields) and url.origin != intent.url.origin:
        assert trusted
        assert (intent.url.scheme, url.scheme) != ("https", "http") or is_listed(url.host, policy)
    if url.origin != intent.url.origin:
        assert "SECRET" not in str(url)
    assert Visit(url, follow.region, visits[-1].asked) not in visits
    assert "@" not in url.authority
    if follow.sign:
        assert ("acl" in (url.query or "")) is False
        assert ("uploads" in (url.query or "")) is ("uploads" in (intent.url.query or ""))


@settings(max_examples=400, deadline=None)
@given(intents, policies, st.lists(answers, min_size=1, max_size=12), st.booleans())
def test_no_chain_of_answers_leads_a_signature_or_a_secret_astray_and_every_chain_ends(
    intent: Intent, policy: RedirectPolicy, script: list[Answer], asked: bool
) -> None:
    visits = first(intent, asked=asked)
    for answer in script:
        decision = decide(intent, visits, answer, policy)
        assert "SECRET" not in repr(decision)
        if isinstance(decision, Discover):
            assert not decision.sign or may_see_a_signature(intent, decision.url, policy)
            decision = decide(intent, visits, dataclasses.replace(answer, discovered=True), policy)
            assert not isinstance(decision, Discover)
        if isinstance(decision, Refuse):
            assert decision.message.isprintable()
            assert decision.reason
            return
        if decision is None:
            return
        assert isinstance(decision, Follow)
        check_hop(intent, visits, decision, policy)
        visits.append(Visit(decision.url, decision.region, asked))
        assert len(visits) <= policy.max_hops + 1


@settings(max_examples=300, deadline=None)
@given(
    intents,
    st.text(max_size=40),
    st.text(max_size=40),
    st.text(max_size=40),
    st.sampled_from([301, 302, 303, 307, 308, 400, 403]),
)
def test_no_text_makes_the_decision_raise(
    intent: Intent, location: str, region: str, endpoint: str, status: int
) -> None:
    error = ErrorDocument(code="AuthorizationHeaderMalformed", region=region, endpoint=endpoint)
    for answer in (
        Answer(status, (location,), region, error),
        Answer(status, (), "", error),
        Answer(status, (f"http://store.example/{location}",), region),
        Answer(status, (f"http://{location}/",)),
    ):
        decision = decide(intent, first(intent), answer, POLICY)
        if isinstance(decision, Refuse):
            assert decision.message.isprintable()
            assert decision.location.isprintable()


def test_a_maze_of_random_servers_ends_within_the_hops() -> None:
    """A server that answers whatever keeps the client going: fresh URLs, regions, endpoints. 2,000 seeded chains."""
    rng = random.Random(307)
    for _ in range(2000):
        intent = s3_intent(rng.choice([AWS, STORE, LOOPBACK]))
        policy = RedirectPolicy(max_hops=rng.randrange(7))
        visits = first(intent)
        for _hop in range(50):
            fresh = f"{intent.url.scheme}://{intent.url.authority}{intent.url.path}?n={rng.random()}"
            region = rng.choice(["us-east-2", "us-west-1", "eu-west-3", "ap-east-1", "sa-east-1", "ca-central-1"])
            answer = rng.choice(
                [
                    Answer(307, (fresh,)),
                    Answer(301, bucket_region=region),
                    Answer(400, error=ErrorDocument(code="AuthorizationHeaderMalformed", region=region)),
                    Answer(301, error=ErrorDocument(endpoint=f"bkt.s3.{region}.amazonaws.com")),
                ]
            )
            decision = decide(intent, visits, answer, policy)
            if not isinstance(decision, Follow):
                break
            visits.append(Visit(decision.url, decision.region, True))
        assert not isinstance(decision, Follow)
        assert len(visits) <= policy.max_hops + 1


# --- botocore as the oracle of region redirects -------------------------------------------------------------------


class _HttpAnswer:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


def botocore_goes_to(client: Any, redirector: Any, method: str, answer: Answer) -> str | None:
    """Where botocore's own redirector sends the request, None: nowhere."""
    operation = client.meta.service_model.operation_model({"PUT": "PutObject", "HEAD": "HeadObject"}[method])
    params = {"Bucket": "bkt", "Key": "dir/a b"}
    request = {
        "url": "https://bkt.s3.us-east-1.amazonaws.com/dir/a%20b",
        "context": {
            "s3_redirect": {"redirected": False, "bucket": "bkt", "params": params},
            "client_region": "us-east-1",
        },
    }
    # Without a body botocore makes the code of the status.
    code = answer.error.code or str(answer.status)
    error = {"Code": code} | ({"Region": answer.error.region} if answer.error.region else {})
    headers = {"x-amz-bucket-region": answer.bucket_region} if answer.bucket_region else {}
    parsed = {"Error": error, "ResponseMetadata": {"HTTPHeaders": headers}}
    done = redirector.redirect_from_error(request, (_HttpAnswer(answer.status), parsed), operation)
    return request["url"] if done == 0 else None  # type: ignore[return-value]


REGION_ANSWERS = [
    (method, Answer(status, (), header, ErrorDocument(code=code, region=region)))
    for method in ("PUT", "HEAD")
    for status, codes in (
        (301, ["PermanentRedirect"]),
        (307, ["TemporaryRedirect"]),
        (400, ["AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "EntityTooLarge"]),
        (403, ["AccessDenied"]),
        (404, ["NoSuchKey"]),
        (503, ["SlowDown"]),
    )
    for code in (codes if method == "PUT" else [""])
    for header in ("", "us-west-2")
    for region in (("", "us-west-2") if method == "PUT" else ("",))
]


@pytest.fixture(scope="module")
def client() -> Any:
    session = botocore.session.Session()
    session.set_credentials("AKIDEXAMPLE", "secret")
    return session.create_client("s3", region_name="us-west-1")


@pytest.fixture
def redirector(client: Any) -> Any:
    cache: dict[str, str] = {}
    redirector = S3RegionRedirectorv2(None, client, cache)
    event = "before-endpoint-resolution.s3"
    client.meta.events.register(event, redirector.redirect_from_cache)
    yield redirector
    client.meta.events.unregister(event, redirector.redirect_from_cache)


@pytest.mark.parametrize(("method", "answer"), REGION_ANSWERS)
def test_region_redirects_are_botocores(
    client: Any, redirector: Any, method: str, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def head_bucket(Bucket: str) -> dict[str, Any]:
        asked.append(Bucket)
        return {"ResponseMetadata": {"HTTPHeaders": {"x-amz-bucket-region": "us-west-2"}}}

    monkeypatch.setattr(client, "head_bucket", head_bucket, raising=False)
    theirs = botocore_goes_to(client, redirector, method, answer)
    decision = answered(s3_intent(AWS, method), answer)
    if isinstance(decision, Discover):
        # botocore gives up when S3 says that the region is wrong and not which one is right; we ask then, too.
        assert asked == ["bkt"] or (theirs is None and answer.error.code == "AuthorizationHeaderMalformed")
        decision = answered(
            s3_intent(AWS, method), dataclasses.replace(answer, bucket_region="us-west-2", discovered=True)
        )
    if theirs is None:
        # We also believe the header of a 400 or 403: S3 sends it when the region was wrong, whatever else it complains about.
        assert decision is None or (answer.status in (400, 403) and decision.region == "us-west-2")
        assert decision is None or answer.bucket_region or answer.error.code == "AuthorizationHeaderMalformed"
    else:
        assert followed(decision) == theirs
        assert decision.region == "us-west-2"
