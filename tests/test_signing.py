"""SigV4 against botocore's signer and against the worked examples of the S3 API reference."""

from __future__ import annotations

import dataclasses
import pickle
from datetime import datetime, timedelta, timezone
from typing import Any
from unittest import mock
from urllib.parse import parse_qsl, quote

import pytest
from botocore.auth import SIGNED_HEADERS_BLACKLIST, S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials
from botocore.utils import percent_encode
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from engine import signing
from engine.errors import CredentialsError, UsageError
from engine.sandbox._errors import SignatureRefused
from engine.sandbox._request import parse_head
from engine.sandbox._sigv4 import verify
from engine.signing import UNSIGNED_PAYLOAD, Credentials, quote_key, sign
from engine.wire import Url, parse_url, request_head

# Published by AWS for its worked examples; opens nothing.
DOC_CREDENTIALS = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
DOC_TIME = datetime(2013, 5, 24, tzinfo=timezone.utc)
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
NOW = datetime(2026, 11, 22, 21, 43, 6, 123456, tzinfo=timezone.utc)


def authorization(added: list[tuple[str, str]]) -> dict[str, str]:
    """The parts of an Authorization value, by name."""
    scheme, _space, rest = dict(added)["authorization"].partition(" ")
    assert scheme == "AWS4-HMAC-SHA256"
    return dict(part.split("=", 1) for part in rest.split(", "))


# "Signature Calculations for the Authorization Header: Transferring Payload in a Single Chunk", S3 API reference.
@pytest.mark.parametrize(
    ("method", "target", "fields", "payload_hash", "signed", "signature"),
    [
        pytest.param(
            "GET",
            "/test.txt",
            [("Range", "bytes=0-9")],
            EMPTY_SHA256,
            "host;range;x-amz-content-sha256;x-amz-date",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            id="get-object",
        ),
        pytest.param(
            "PUT",
            "/test%24file.text",
            [("Date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")],
            "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
            "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            id="put-object",
        ),
        pytest.param(
            "GET",
            "/?lifecycle",
            [],
            EMPTY_SHA256,
            "host;x-amz-content-sha256;x-amz-date",
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            id="get-bucket-lifecycle",
        ),
        pytest.param(
            "GET",
            "/?max-keys=2&prefix=J",
            [],
            EMPTY_SHA256,
            "host;x-amz-content-sha256;x-amz-date",
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            id="list-objects",
        ),
    ],
)
def test_the_examples_of_the_s3_reference_have_their_published_signatures(
    method: str, target: str, fields: list[tuple[str, str]], payload_hash: str, signed: str, signature: str
) -> None:
    url = parse_url(f"https://examplebucket.s3.amazonaws.com{target}")
    added = sign(DOC_CREDENTIALS, method, url, fields, region="us-east-1", now=DOC_TIME, payload_hash=payload_hash)
    parts = authorization(added)
    assert parts["Credential"] == "AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request"
    assert parts["SignedHeaders"] == signed
    assert parts["Signature"] == signature
    assert dict(added)["x-amz-date"] == "20130524T000000Z"
    assert dict(added)["x-amz-content-sha256"] == payload_hash


# --- botocore as the oracle -------------------------------------------------------------------------------------------


def botocore_signed(
    credentials: Credentials,
    method: str,
    url: str,
    fields: list[tuple[str, str]],
    region: str,
    now: datetime,
    payload_hash: str,
    params: list[tuple[str, str]] | None = None,
) -> dict[str, str]:
    """The fields of a request signed by botocore, names in lower case."""
    request = AWSRequest(method=method, url=url, params=params)
    for name, value in fields:
        request.headers[name] = value  # appends, as email.message does
    if payload_hash == signing.STREAMING_UNSIGNED_PAYLOAD_TRAILER:
        request.context["checksum"] = {"request_algorithm": {"in": "trailer", "name": "x-amz-checksum-crc32"}}
    theirs = BotocoreCredentials(credentials.access_key, credentials.secret_key, credentials.token)
    auth = S3SigV4Auth(theirs, "s3", region)
    utc = now.astimezone(timezone.utc).replace(tzinfo=None)
    with (
        mock.patch("botocore.auth.get_current_datetime", return_value=utc),
        mock.patch.object(auth, "payload", return_value=payload_hash),
    ):
        auth.add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


unicode_text = st.text(st.characters(codec="utf-8"), max_size=24)
awkward_text = st.lists(
    st.one_of(
        st.sampled_from(
            ["+", "//", "/../", "/./", "..", "%", "%25", "%2F", "~", " ", "=", "&", "?", "#", "é", "𝄞", ""]
        ),
        unicode_text,
    ),
    max_size=6,
).map("".join)
tokens = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12)
field_values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=24) | st.sampled_from(
    ["  two  spaces ", "\ttab\t\tin", "", " ", 'a "quoted  text"', "a,b ,c"]
)
NEVER_COMPARED = {
    "accept-encoding",  # botocore signs it, we don't
    "authorization",
    "content-length",  # the same
    "date",  # botocore then leaves out x-amz-date
    "host",
    "x-amz-content-sha256",
    "x-amz-date",
    "x-amz-security-token",
}
field_names = st.one_of(
    st.sampled_from(["Content-Type", "x-amz-meta-Name", "X-AMZ-acl", "content-type", "Expect", "User-Agent", "TE"]),
    tokens.map(lambda name: f"x-amz-meta-{name}"),
    tokens,
).filter(lambda name: name.lower() not in NEVER_COMPARED)
hosts = st.sampled_from(
    [
        "http://bucket.s3.eu-central-1.amazonaws.com",
        "https://s3.amazonaws.com:443",
        "http://s3.amazonaws.com:443",
        "http://127.0.0.1:9000",
        "https://127.0.0.1:80",
        "http://[::1]",
        "http://[2001:db8::7]:8000",
        "https://store.example:8443",
    ]
)
credentials_values = st.builds(
    Credentials,
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=","), min_size=1, max_size=24),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=44)
    | st.just("slashes/and+plus=and spaces within"),
    st.none() | st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=80),
)
regions = st.sampled_from(["us-east-1", "eu-central-1", "cn-north-1", "default", "RegionOne", "us-gov-west-1"])
times = st.datetimes(datetime(2001, 1, 1), datetime(2199, 12, 31), timezones=st.just(timezone.utc))
payload_hashes = st.sampled_from(
    [UNSIGNED_PAYLOAD, EMPTY_SHA256, signing.STREAMING_UNSIGNED_PAYLOAD_TRAILER]
) | st.binary(min_size=32, max_size=32).map(bytes.hex)


@settings(deadline=None)
@given(
    credentials=credentials_values,
    method=st.sampled_from(["PUT", "GET", "HEAD", "DELETE", "POST"]),
    base=hosts,
    key=awkward_text,
    query=st.lists(st.tuples(awkward_text, st.none() | awkward_text), max_size=4),
    fields=st.lists(st.tuples(field_names, field_values), max_size=6),
    region=regions,
    now=times,
    payload_hash=payload_hashes,
)
@example(
    DOC_CREDENTIALS,
    "PUT",
    "http://[::1]:81",
    "/a//..//b%2F+~ é",
    [("uploads", None)],
    [],
    "us-east-1",
    NOW,
    EMPTY_SHA256,
)
@example(
    DOC_CREDENTIALS, "PUT", "http://h", "k", [("b", "2"), ("b", "1"), ("a-", ""), ("a", "x")],
    [("X-Amz-Meta-A", " 1  2 "), ("x-amz-meta-a", "3")], "us-east-1", NOW, UNSIGNED_PAYLOAD,
)  # fmt: skip
def test_every_request_is_signed_as_botocore_signs_it(
    credentials: Credentials,
    method: str,
    base: str,
    key: str,
    query: list[tuple[str, str | None]],
    fields: list[tuple[str, str]],
    region: str,
    now: datetime,
    payload_hash: str,
) -> None:
    text = "&".join(
        quote(name, safe="") if value is None else f"{quote(name, safe='')}={quote(value, safe='')}"
        for name, value in query
    )
    # botocore keeps an empty parameter ("&&"), which the servers drop and nobody sends.
    assume(all(name or value is not None for name, value in query))
    url = parse_url(f"{base}/bucket/{quote_key(key)}" + (f"?{text}" if text else ""))
    theirs = botocore_signed(credentials, method, str(url), fields, region, now, payload_hash)

    added = sign(credentials, method, url, fields, region=region, now=now, payload_hash=payload_hash)

    for name, value in added:
        assert value == theirs[name], name
    assert len(added) == (4 if credentials.token else 3)


@settings(deadline=None)
@given(
    path=st.text("aZ09-._~/+%2f7Ee!$&'()*,:;=@", max_size=20),
    query=st.text("aZ09-._~/+%2f7Ee!$&'()*,:;=@?", max_size=20),
)
@example("/a+b", "rk=a/b:c&x=%7e+%2f")
@example("/%7e%2f", "a=b=c")
def test_a_url_that_is_not_strictly_encoded_is_signed_as_the_server_will_decode_it(path: str, query: str) -> None:
    url = Url("http", "h", 80, "/" + path, query or None)
    # The oracle gets decoded parameters and encodes them itself.
    params = parse_qsl(query, keep_blank_values=True, encoding="latin-1")
    assume(all(ord(c) < 128 for pair in params for c in "".join(pair)))
    decoded = parse_qsl(query, keep_blank_values=True, encoding="latin-1")
    again = signing.canonical_path(url.path)
    theirs = botocore_signed(DOC_CREDENTIALS, "PUT", f"http://h{again}", [], "r", NOW, EMPTY_SHA256, params=decoded)
    assert (
        dict(sign(DOC_CREDENTIALS, "PUT", url, [], region="r", now=NOW, payload_hash=EMPTY_SHA256))["authorization"]
        == theirs["authorization"]
    )


@settings(deadline=None)
@given(awkward_text)
def test_a_key_is_quoted_as_botocore_quotes_it(key: str) -> None:
    assert quote_key(key) == percent_encode(key, safe="-._~/")
    assert signing.canonical_path(quote_key(key)) == quote_key(key)


@settings(deadline=None)
@given(st.text(st.characters(codec="ascii"), max_size=40) | st.text("%0123456789ABCDEFabcdef~-/", max_size=12))
def test_making_a_path_canonical_twice_changes_nothing(path: str) -> None:
    once = signing.canonical_path(path)
    assert signing.canonical_path(once) == once
    if signing._CANONICAL_PATH.match(path):
        # The shortcut and the long way agree.
        assert signing.quote_from_bytes(signing.unquote_to_bytes(path), safe="/") == path


def test_every_escape_is_made_canonical_with_and_without_the_shortcut() -> None:
    for number in range(256):
        for escape in (f"%{number:02X}", f"%{number:02x}"):
            strictly = quote(bytes([number]), safe="/")
            assert signing.canonical_path(f"/a{escape}b") == f"/a{strictly}b"
            strictly = quote(bytes([number]), safe="")
            assert signing.canonical_query(f"a{escape}=b{escape}") == f"a{strictly}=b{strictly}"


@settings(deadline=None)
@given(st.text("%0123456789ABCDEFabcdef~-/&=+", max_size=24))
def test_making_a_query_canonical_twice_changes_nothing(query: str) -> None:
    once = signing.canonical_query(query)
    assert signing.canonical_query(once) == once


def test_what_botocore_leaves_unsigned_is_left_unsigned() -> None:
    assert set(SIGNED_HEADERS_BLACKLIST) <= signing.UNSIGNED_FIELDS
    fields = [(name, "x") for name in signing.UNSIGNED_FIELDS]
    added = sign(DOC_CREDENTIALS, "PUT", parse_url("http://h/k"), fields, region="r", now=NOW)
    assert authorization(added)["SignedHeaders"] == "host;x-amz-content-sha256;x-amz-date"


@settings(deadline=None)
@given(credentials_values, awkward_text, st.lists(st.tuples(field_names, field_values), max_size=4), payload_hashes)
def test_a_server_of_other_code_computes_the_signature_that_the_client_sent(
    credentials: Credentials, key: str, fields: list[tuple[str, str]], payload_hash: str
) -> None:
    # What is no access key anywhere: it would tear the Credential into other parts.
    credentials = Credentials(credentials.access_key.replace("/", "-"), credentials.secret_key, credentials.token)
    url = parse_url(f"http://127.0.0.1:9000/bucket/{quote_key(key)}?partNumber=2&uploadId=a%2Fb")
    added = sign(credentials, "PUT", url, fields, region="eu-west-1", now=NOW, payload_hash=payload_hash)
    head = request_head("PUT", url.target, [("Host", url.authority), *fields, *added]).decode()
    verify(parse_head(head.encode()), credentials, "eu-west-1", NOW, anonymous=False)
    other = parse_head(head.replace("partNumber=2", "partNumber=3").encode())
    with pytest.raises(SignatureRefused, match="signature we calculated does not match"):
        verify(other, credentials, "eu-west-1", NOW, anonymous=False)


def test_another_time_zone_gives_the_same_signature() -> None:
    url = parse_url("http://h/k")
    local = NOW.astimezone(timezone(timedelta(hours=-11, minutes=-30)))
    assert local.day != NOW.day or local.hour != NOW.hour
    ours = sign(DOC_CREDENTIALS, "PUT", url, [], region="r", now=NOW)
    assert sign(DOC_CREDENTIALS, "PUT", url, [], region="r", now=local) == ours


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(UsageError, match="time zone"):
        sign(DOC_CREDENTIALS, "PUT", parse_url("http://h/k"), [], region="r", now=datetime(2026, 1, 1))


@pytest.mark.parametrize("name", ["Authorization", "X-Amz-Date", "x-amz-content-sha256", "X-Amz-Security-Token"])
def test_a_field_that_signing_sets_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="set by the signature") as caught:
        sign(DOC_CREDENTIALS, "PUT", parse_url("http://h/k"), [(name, "its-value")], region="r", now=NOW)
    assert "its-value" not in str(caught.value)


def test_a_host_field_must_be_the_urls() -> None:
    url = parse_url("http://h:81/k")
    without = sign(DOC_CREDENTIALS, "PUT", url, [], region="r", now=NOW)
    assert sign(DOC_CREDENTIALS, "PUT", url, [("Host", "h:81")], region="r", now=NOW) == without
    with pytest.raises(UsageError, match="not the URL's"):
        sign(DOC_CREDENTIALS, "PUT", url, [("Host", "h")], region="r", now=NOW)


@pytest.mark.parametrize("region", ["", "a/b", "a b", "a\r\nx: y", "é", "a" * 64])
def test_a_malformed_region_is_refused(region: str) -> None:
    with pytest.raises(UsageError, match="region"):
        sign(DOC_CREDENTIALS, "PUT", parse_url("http://h/k"), [], region=region, now=NOW)


def test_a_key_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        quote_key("name-\udcff")


# --- Credentials ------------------------------------------------------------------------------------------------------


def test_credentials_show_nothing_secret() -> None:
    credentials = Credentials("AKIAIOSFODNN7EXAMPLE", "the-secret-key", "the-token", 1_800_000_000)
    sign(credentials, "PUT", parse_url("http://h/k"), [], region="r", now=NOW)
    for text in (repr(credentials), str(credentials), f"{credentials}", f"{[credentials]}"):
        assert "AKIA…" in text
        assert "1800000000" in text
        for secret in ("AKIAI", "the-secret-key", "the-token"):
            assert secret not in text
    assert "minioadmin"[:4] not in repr(Credentials("minioadmin", "minioadmin"))


def test_credentials_travel_by_pickle_without_their_derived_keys() -> None:
    credentials = Credentials("AKIAIOSFODNN7EXAMPLE", "secret", "token", 1_800_000_000.5)
    sign(credentials, "PUT", parse_url("http://h/k"), [], region="r", now=NOW)
    (derived,) = credentials._signing_keys.values()
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(credentials, protocol)
        assert derived not in data
        again = pickle.loads(data)
        assert again == credentials
        assert hash(again) == hash(credentials)
        assert again.expires_at == 1_800_000_000.5


def test_credentials_are_frozen_and_have_no_dict() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DOC_CREDENTIALS.secret_key = "other"  # type: ignore[misc]
    assert not hasattr(DOC_CREDENTIALS, "__dict__")
    assert dataclasses.replace(DOC_CREDENTIALS, token="t").token == "t"
    assert Credentials("a", "b", "") == Credentials("a", "b")


@pytest.mark.parametrize(
    "arguments",
    [
        ("", "Qsecret"),
        ("Qaccess", ""),
        ("Qaccess\n", "Qsecret"),
        ("Qaccess", "Qsecret\n"),
        ("Qaccess", " Qsecret"),
        ("Qaccess,", "Qsecret"),
        ("Qaccess", "Qsecret\x00"),
        ("Qaccess", "Qsecret", "Qtoken\r\n"),
        ("Qaccessé", "Qsecret"),
        (None, "Qsecret"),
        ("Qaccess", b"Qsecret"),
        ("Qaccess", "Qsecret", 7),
    ],
)
def test_malformed_credentials_are_refused_without_showing_them(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(CredentialsError, match="credentials: ") as caught:
        Credentials(*arguments)
    assert "Q" not in str(caught.value)


def test_signing_keys_are_kept_per_day_region_and_secret_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = Credentials("a", "s")
    url = parse_url("http://h/k")
    first = sign(credentials, "PUT", url, [], region="r0", now=NOW)
    for day in range(3):
        for number in range(10):
            sign(credentials, "PUT", url, [], region=f"r{number}", now=NOW + timedelta(days=day))
            assert 1 <= len(credentials._signing_keys) <= signing._SIGNING_KEYS_MAX
    assert sign(credentials, "PUT", url, [], region="r0", now=NOW) == first
    monkeypatch.setattr(signing, "_derive_signing_key", lambda *_: pytest.fail("derived again"))
    assert sign(credentials, "PUT", url, [], region="r0", now=NOW) == first
    monkeypatch.undo()
    assert sign(Credentials("a", "t"), "PUT", url, [], region="r0", now=NOW) != first
