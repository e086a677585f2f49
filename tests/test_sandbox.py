"""The sandbox against raw sockets, curl, and botocore as a client that knows S3."""

from __future__ import annotations

import ast
import base64
import contextlib
import hashlib
import http.client
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import botocore.auth
import botocore.awsrequest
import botocore.config
import botocore.credentials
import botocore.exceptions
import botocore.session
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import sandbox as sandbox_package
from engine.errors import UsageError
from engine.sandbox import OTHER_REGION, Record, Sandbox, scenario_table, start
from engine.sandbox._digests import new_digest
from engine.sandbox._errors import S3Error, SignatureRefused
from engine.sandbox._request import ChunkDecoder, parse_head
from engine.sandbox._scenarios import MODIFIERS, VERBS, parse_scenario
from engine.sandbox._sigv4 import verify
from engine.signing import Credentials

KIB, MIB = 1024, 1024 * 1024
UNSIGNED = "UNSIGNED-PAYLOAD"
TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
ROOT = Path(sandbox_package.__file__).parents[2]


@pytest.fixture(scope="module")
def running() -> Iterator[Sandbox]:
    with start() as running:
        yield running


@pytest.fixture(scope="module")
def open_one() -> Iterator[Sandbox]:
    """Accepts unsigned requests."""
    with start(anonymous=True, min_part_size=1, linger_s=0.5) as running:
        yield running


# --- clients ----------------------------------------------------------------------------------------------------------


class Answer:
    def __init__(self, head: bytes, body: bytes = b"") -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.version, status, self.reason = lines[0].split(" ", 2)
        self.status = int(status)
        self.fields = [(n.lower(), v.strip()) for n, _, v in (line.partition(":") for line in lines[1:] if line)]
        self.body = body

    def __getitem__(self, name: str) -> str:
        (value,) = (v for n, v in self.fields if n == name)
        return value

    def __contains__(self, name: str) -> bool:
        return any(n == name for n, _v in self.fields)

    @property
    def xml(self) -> dict[str, str]:
        return {child.tag.rpartition("}")[2]: child.text or "" for child in ElementTree.fromstring(self.body)}

    @property
    def code(self) -> str:
        return self.xml["Code"]


class Peer:
    """A raw client connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self.host = parts.netloc
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=10)
        self._data = b""

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def head(self, method: str, target: str, fields: dict[str, str]) -> None:
        fields = {"Host": self.host, **fields}
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def put_head(self, target: str, length: int, **fields: str) -> None:
        self.head("PUT", target, {"Content-Length": str(length), "Expect": "100-continue", **fields})

    def receive(self) -> bytes:
        data = self.socket.recv(65536)
        self._data += data
        return data

    def answer(self, *, body: bool = True) -> Answer:
        while b"\r\n\r\n" not in self._data:
            if not self.receive():
                raise EOFError(self._data)
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        answer = Answer(head)
        if body and "content-length" in answer and answer.status >= 200:
            length = int(answer["content-length"])
            while len(self._data) < length:
                if not self.receive():
                    raise EOFError(self._data)
            answer.body, self._data = self._data[:length], self._data[length:]
        return answer

    def at_end(self) -> bool:
        return not self._data and not self.receive()

    def silent_for(self, seconds: float) -> bool:
        self.socket.settimeout(seconds)
        try:
            return self.receive() == b"never"
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(10)


class Auth(botocore.auth.S3SigV4Auth):  # type: ignore[misc]
    """botocore's signer, told which payload hash to sign."""

    payload_hash = UNSIGNED

    def payload(self, request: object) -> str:
        return self.payload_hash


def sign(
    running: Sandbox,
    method: str,
    url: str,
    headers: dict[str, str] | None = None,
    payload_hash: str = UNSIGNED,
    region: str | None = None,
    credentials: Credentials | None = None,
) -> dict[str, str]:
    """The head fields with botocore's signature."""
    keys = credentials or running.credentials
    request = botocore.awsrequest.AWSRequest(method, url, headers=headers or {})
    auth = Auth(
        botocore.credentials.Credentials(keys.access_key, keys.secret_key, keys.token), "s3", region or running.region
    )
    auth.payload_hash = payload_hash
    auth.add_auth(request)
    return dict(request.headers.items())


def call(
    running: Sandbox,
    method: str,
    url: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    tamper: dict[str, str | None] | None = None,
    **signing: Any,
) -> Answer:
    """One signed request on a connection of its own; `tamper` changes fields behind the signer's back."""
    fields = sign(running, method, url, headers, **signing)
    fields.update({name: value for name, value in (tamper or {}).items() if value is not None})
    fields = {n: v for n, v in fields.items() if n not in (tamper or {}) or (tamper or {})[n] is not None}
    if body or method in ("PUT", "POST"):
        fields.setdefault("Content-Length", str(len(body)))
    target = url[len(running.store_url) :] if url.startswith(running.store_url) else url[len(running.redirector_url) :]
    with Peer(url) as peer:
        peer.head(method, target, fields)
        with contextlib.suppress(ConnectionError):
            peer.socket.sendall(body)
        return peer.answer(body=method != "HEAD")


def s3_client(running: Sandbox, url: str | None = None, **options: Any) -> Any:
    return botocore.session.get_session().create_client(
        "s3",
        endpoint_url=url or running.store_url,
        region_name=options.pop("region", running.region),
        aws_access_key_id=running.credentials.access_key,
        aws_secret_access_key=running.credentials.secret_key,
        aws_session_token=running.credentials.token,
        config=botocore.config.Config(
            retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, read_timeout=10, **options
        ),
    )


def seen(running: Sandbox, bucket: str) -> list[Record]:
    """Records of a bucket, once complete."""
    return [r for r in running.settle() if r.target.partition("?")[0].split("/")[1:2] == [bucket]]


def only(records: list[Record]) -> Record:
    (record,) = records
    return record


# --- signatures -------------------------------------------------------------------------------------------------------

KEYS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz-0123456789", min_size=1, max_size=12)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)


def raw_head(method: str, url: str, fields: dict[str, str]) -> bytes:
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}", *(f"{n}: {v}" for n, v in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["PUT", "GET", "HEAD", "DELETE", "POST"]),
    key=KEYS,
    query=st.dictionaries(NAMES, VALUES, max_size=3),
    metadata=st.dictionaries(NAMES, VALUES, max_size=3),
    payload_hash=st.sampled_from([UNSIGNED, TRAILER, hashlib.sha256(b"").hexdigest()]),
    token=st.booleans(),
)
def test_what_botocore_signs_is_accepted(
    running: Sandbox,
    method: str,
    key: str,
    query: dict[str, str],
    metadata: dict[str, str],
    payload_hash: str,
    token: bool,
) -> None:
    keys = Credentials("AKTEST", "secret/+key", "to/ken==" if token else None)
    url = f"http://127.0.0.1:9000/bucket/{quote(key, safe='/~')}"
    url += "?" + "&".join(f"{n}={quote(v, safe='')}" for n, v in query.items()) if query else ""
    headers = {f"x-amz-meta-{n}": v for n, v in metadata.items()}
    fields = sign(running, method, url, headers, payload_hash, "us-west-9", keys)
    request = parse_head(raw_head(method, url, fields))
    assert verify(request, keys, "us-west-9", datetime.now(timezone.utc)) == payload_hash
    assert request.key == key


TAMPERINGS: dict[str, tuple[dict[str, str | None], str]] = {
    "metadata": ({"x-amz-meta-colour": "blue"}, "SignatureDoesNotMatch"),
    "metadata removed": ({"x-amz-meta-colour": None}, "SignatureDoesNotMatch"),
    "metadata added": ({"x-amz-meta-more": "1"}, "AccessDenied"),
    "storage class added": ({"x-amz-storage-class": "GLACIER"}, "AccessDenied"),
    "content type": ({"Content-Type": "text/html"}, "SignatureDoesNotMatch"),
    "host": ({"Host": "example.com"}, "SignatureDoesNotMatch"),
    "payload hash": ({"X-Amz-Content-SHA256": TRAILER}, "SignatureDoesNotMatch"),
    "payload hash removed": ({"X-Amz-Content-SHA256": None}, "InvalidRequest"),
    "payload hash nonsense": ({"X-Amz-Content-SHA256": "abc"}, "InvalidArgument"),
    "signature removed": ({"Authorization": None}, "AccessDenied"),
    "other scheme": ({"Authorization": "AWS somebody:c2ln"}, "InvalidRequest"),
    "half a signature": ({"Authorization": "AWS4-HMAC-SHA256 Credential=a/b"}, "AuthorizationHeaderMalformed"),
    "date": ({"X-Amz-Date": "20000101T000000Z"}, "AuthorizationHeaderMalformed"),
    "date removed": ({"X-Amz-Date": None}, "AccessDenied"),
    "token": ({"X-Amz-Security-Token": "more"}, "InvalidToken"),
}


@pytest.mark.parametrize("what", TAMPERINGS)
def test_a_tampered_request_is_refused_before_the_body(running: Sandbox, what: str) -> None:
    tamper, code = TAMPERINGS[what]
    url = f"{running.store_url}/tampered/key"
    headers = {"x-amz-meta-colour": "red", "Content-Type": "text/plain"}
    assert call(running, "PUT", url, headers=headers).status == 200
    fields = {"Content-Length": "1000", "Expect": "100-continue", **sign(running, "PUT", url, headers)}
    for name, value in tamper.items():
        fields.pop(name, None)
        if value is not None:
            fields[name] = value
    with Peer(url) as peer:
        peer.head("PUT", "/tampered/key", fields)
        answer = peer.answer()
    assert answer.code == code
    assert answer.status in (400, 403)
    assert answer["connection"] == "close"
    record = seen(running, "tampered")[-1]
    assert (record.signature, record.code, record.body_bytes) == (code, code, 0)
    assert record.continue_at is None


@pytest.mark.parametrize("position", [0, 17, 63])
def test_one_digit_of_the_signature_changed_is_refused(running: Sandbox, position: int) -> None:
    url = f"{running.store_url}/digits/key"
    fields = sign(running, "PUT", url)
    authorization, signature = fields["Authorization"].rsplit("=", 1)
    changed = signature[:position] + ("0" if signature[position] != "0" else "1") + signature[position + 1 :]
    answer = call(running, "PUT", url, tamper={"Authorization": f"{authorization}={changed}"})
    assert answer.code == "SignatureDoesNotMatch"


@pytest.mark.parametrize("target", ["/swapped/other", "/swapped/key?versionId=1", "/swapped//key", "/swapped/key/"])
def test_a_signature_for_another_target_is_refused(running: Sandbox, target: str) -> None:
    fields = {"Content-Length": "0", **sign(running, "PUT", f"{running.store_url}/swapped/key")}
    with Peer(running.store_url) as peer:
        peer.head("PUT", target, fields)
        assert peer.answer().code == "SignatureDoesNotMatch"


def test_a_signature_for_another_method_is_refused(running: Sandbox) -> None:
    fields = sign(running, "GET", f"{running.store_url}/swapped/key")
    with Peer(running.store_url) as peer:
        peer.head("DELETE", "/swapped/key", fields)
        assert peer.answer().code == "SignatureDoesNotMatch"


def test_a_refused_signature_is_explained_as_s3_does_without_the_secret(running: Sandbox) -> None:
    wrong = Credentials(running.credentials.access_key, "wrong")
    url = f"{running.store_url}/explained/k%C3%A4y"
    answer = call(running, "PUT", url, credentials=wrong)
    assert answer.status == 403
    found = answer.xml
    assert found["Code"] == "SignatureDoesNotMatch"
    assert found["AWSAccessKeyId"] == running.credentials.access_key
    assert found["CanonicalRequest"].startswith("PUT\n/explained/k%C3%A4y\n\n")
    assert found["StringToSign"].startswith("AWS4-HMAC-SHA256\n")
    assert found["RequestId"] == answer["x-amz-request-id"]
    assert found["HostId"] == answer["x-amz-id-2"]
    assert running.credentials.secret_key.encode() not in answer.body


def test_a_body_that_does_not_have_its_signed_hash_is_refused_and_not_stored(running: Sandbox) -> None:
    url = f"{running.store_url}/hashed/key"
    good = hashlib.sha256(b"right").hexdigest()
    assert call(running, "PUT", url, b"right", payload_hash=good).status == 200
    answer = call(running, "PUT", url, b"wrong", payload_hash=good)
    assert (answer.status, answer.code) == (400, "XAmzContentSHA256Mismatch")
    assert answer.xml["S3ComputedContentSHA256"] == hashlib.sha256(b"wrong").hexdigest()
    assert running.object("hashed", "key").content() == b"right"
    assert not list(Path(running.folder, ".incoming").iterdir())


def test_an_unknown_access_key_has_its_own_error(running: Sandbox) -> None:
    stranger = Credentials("AKIASTRANGER", "x")
    answer = call(running, "PUT", f"{running.store_url}/keys/k", credentials=stranger)
    assert (answer.status, answer.code) == (403, "InvalidAccessKeyId")
    assert answer.xml["AWSAccessKeyId"] == "AKIASTRANGER"


def test_a_signature_for_another_region_is_told_the_region(running: Sandbox) -> None:
    answer = call(running, "PUT", f"{running.store_url}/regions/k", region="us-east-1")
    assert (answer.status, answer.code) == (400, "AuthorizationHeaderMalformed")
    assert answer.xml["Region"] == running.region == answer["x-amz-bucket-region"]
    head = call(running, "HEAD", f"{running.store_url}/regions", region="us-east-1")
    assert (head.status, head["x-amz-bucket-region"]) == (400, running.region)
    assert call(running, "HEAD", f"{running.store_url}/regions")["x-amz-bucket-region"] == running.region


def test_a_wrong_clock_is_told_both_times() -> None:
    with start(clock_offset_s=3600) as late:
        answer = call(late, "PUT", f"{late.store_url}/clock/k")
    assert (answer.status, answer.code) == (403, "RequestTimeTooSkewed")
    assert answer.xml["MaxAllowedSkewMilliseconds"] == "900000"
    assert {"RequestTime", "ServerTime"} <= answer.xml.keys()


def test_a_session_token_is_required_where_there_is_one() -> None:
    with start(session_token=True) as running:
        url = f"{running.store_url}/tokens/k"
        keys = running.credentials
        assert keys.token
        assert call(running, "PUT", url).status == 200
        for token in (None, keys.token + "x"):
            answer = call(running, "PUT", url, credentials=Credentials(keys.access_key, keys.secret_key, token))
            assert (answer.status, answer.code) == (400, "InvalidToken")
        assert running.environment["AWS_SESSION_TOKEN"] == keys.token


def presign(running: Sandbox, expires_s: int = 60, method: str = "put_object") -> str:
    url = s3_client(running, signature_version="s3v4").generate_presigned_url(
        method, Params={"Bucket": "presigned", "Key": "a key"}, ExpiresIn=expires_s
    )
    return str(url)


def presigned_call(url: str, body: bytes = b"") -> Answer:
    parts = urlsplit(url)
    with Peer(url) as peer:
        peer.head("PUT", f"{parts.path}?{parts.query}", {"Content-Length": str(len(body))})
        peer.socket.sendall(body)
        return peer.answer()


def test_a_presigned_url_is_accepted(running: Sandbox) -> None:
    assert presigned_call(presign(running), b"presigned").status == 200
    assert running.object("presigned", "a key").content() == b"presigned"


def test_a_presigned_url_with_a_token_is_accepted() -> None:
    with start(session_token=True) as running:
        url = presign(running)
        assert presigned_call(url).status == 200
        assert presigned_call(re.sub("X-Amz-Security-Token=[^&]*", "", url)).code == "InvalidToken"


@pytest.mark.parametrize(
    ("pattern", "replacement", "code"),
    [
        ("X-Amz-Expires=60", "X-Amz-Expires=600", "SignatureDoesNotMatch"),
        ("a%20key", "a%20kex", "SignatureDoesNotMatch"),
        ("X-Amz-Expires=60", "X-Amz-Expires=soon", "AuthorizationQueryParametersError"),
        ("X-Amz-Signature=.", "X-Amz-Signature=g", "SignatureDoesNotMatch"),
        ("sandbox-1", "sandbox-3", "AuthorizationHeaderMalformed"),
    ],
)
def test_a_tampered_presigned_url_is_refused(running: Sandbox, pattern: str, replacement: str, code: str) -> None:
    url, count = re.subn(pattern, replacement, presign(running))
    assert count
    assert presigned_call(url).code == code


def test_an_expired_presigned_url_is_refused() -> None:
    with start(clock_offset_s=61) as late:
        answer = presigned_call(presign(late))
    assert (answer.status, answer.code) == (403, "AccessDenied")
    assert answer.xml["Message"] == "Request has expired"


def test_unsigned_requests_are_refused_unless_allowed_and_wrong_signatures_always(
    running: Sandbox, open_one: Sandbox
) -> None:
    for one, status in ((running, 403), (open_one, 200)):
        with Peer(one.store_url) as peer:
            peer.head("PUT", "/unsigned/k", {"Content-Length": "0"})
            assert peer.answer().status == status
    assert seen(open_one, "unsigned")[-1].signature == "anonymous"
    wrong = Credentials(open_one.credentials.access_key, "wrong")
    assert call(open_one, "PUT", f"{open_one.store_url}/unsigned/k", credentials=wrong).status == 403


def test_a_path_that_is_not_encoded_as_s3_wants_it_does_not_match(running: Sandbox) -> None:
    # botocore signs a path as it is given; S3 decodes and encodes again, so "(" sent raw was not what got signed.
    url = f"{running.store_url}/raw/a(b)"
    assert call(running, "PUT", url).code == "SignatureDoesNotMatch"
    assert call(running, "PUT", f"{running.store_url}/raw/a%28b%29").status == 200


def test_a_skewed_clock_within_the_limit_is_accepted(running: Sandbox) -> None:
    keys = running.credentials
    url = "http://127.0.0.1:9000/b/k"
    request = parse_head(raw_head("PUT", url, sign(running, "PUT", url)))
    now = datetime.now(timezone.utc)
    for seconds, accepted in ((-890, True), (890, True), (-910, False), (910, False)):
        with contextlib.nullcontext() if accepted else pytest.raises(SignatureRefused, match="RequestTimeTooSkewed"):
            verify(request, keys, running.region, now + timedelta(seconds=seconds))


# --- the storing endpoint ---------------------------------------------------------------------------------------------


def test_botocore_stores_reads_and_deletes(running: Sandbox) -> None:
    client = s3_client(running)
    body = os.urandom(100_000)
    key = "a folder/ü+~(1).bin"
    put = client.put_object(
        Bucket="plain",
        Key=key,
        Body=body,
        Metadata={"colour": "red"},
        ContentType="text/plain",
        CacheControl="no-store",
        IfNoneMatch="*",
    )
    assert put["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    assert put["ChecksumType"] == "FULL_OBJECT"
    stored = running.object("plain", key)
    assert (stored.size, stored.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert stored.crc64nvme == put["ChecksumCRC64NVME"]
    assert Path(stored.path).read_bytes() == body
    assert Path(stored.path).parent == Path(running.folder, "plain")
    head = client.head_object(Bucket="plain", Key=key, ChecksumMode="ENABLED")
    assert (head["ContentLength"], head["ContentType"], head["CacheControl"]) == (100_000, "text/plain", "no-store")
    assert head["Metadata"] == {"colour": "red"}
    assert head["ETag"] == put["ETag"]
    assert client.get_object(Bucket="plain", Key=key)["Body"].read() == body
    client.delete_object(Bucket="plain", Key=key)
    with pytest.raises(KeyError):
        running.object("plain", key)
    with pytest.raises(botocore.exceptions.ClientError, match="404"):
        client.head_object(Bucket="plain", Key=key)
    assert client.head_bucket(Bucket="plain")["BucketRegion"] == running.region


@pytest.mark.parametrize(
    ("text", "slice_", "shown"),
    [
        ("bytes=2-4", slice(2, 5), "bytes 2-4/10"),
        ("bytes=7-", slice(7, 10), "bytes 7-9/10"),
        ("bytes=-3", slice(7, 10), "bytes 7-9/10"),
        ("bytes=8-99", slice(8, 10), "bytes 8-9/10"),
        ("bytes=-99", slice(0, 10), "bytes 0-9/10"),
    ],
)
def test_a_range_is_answered_with_that_part(running: Sandbox, text: str, slice_: slice, shown: str) -> None:
    url = f"{running.store_url}/ranges/k"
    call(running, "PUT", url, b"0123456789")
    answer = call(running, "GET", url, headers={"Range": text})
    assert (answer.status, answer.body, answer["content-range"]) == (206, b"0123456789"[slice_], shown)


def test_a_range_behind_the_end_is_refused_and_a_strange_one_ignored(running: Sandbox) -> None:
    url = f"{running.store_url}/ranges/k"
    call(running, "PUT", url, b"0123456789")
    answer = call(running, "GET", url, headers={"Range": "bytes=10-"})
    assert (answer.status, answer.code, answer["content-range"]) == (416, "InvalidRange", "bytes */10")
    for strange in ("bytes=4-2", "items=1-2", "bytes=-"):
        assert call(running, "GET", url, headers={"Range": strange}).body == b"0123456789"


def test_conditional_writes_are_refused_before_the_body(running: Sandbox) -> None:
    url = f"{running.store_url}/conditions/k"
    etag = call(running, "PUT", url, b"one", headers={"If-None-Match": "*"})["etag"]
    with Peer(url) as peer:
        fields = sign(running, "PUT", url, {"If-None-Match": "*"})
        peer.head("PUT", "/conditions/k", {"Content-Length": "3", "Expect": "100-continue", **fields})
        answer = peer.answer()
    assert (answer.status, answer.code, answer.xml["Condition"]) == (412, "PreconditionFailed", "If-None-Match")
    assert call(running, "PUT", url, b"two", headers={"If-Match": '"0"'}).status == 412
    assert call(running, "PUT", url, b"two", headers={"If-Match": etag}).status == 200
    assert call(running, "PUT", url + "2", headers={"If-Match": etag}).code == "NoSuchKey"
    assert running.object("conditions", "k").content() == b"two"


def test_of_two_conditional_writes_at_once_one_wins(running: Sandbox) -> None:
    url = f"{running.store_url}/race/k"
    fields = {"Content-Length": "1", **sign(running, "PUT", url, {"If-None-Match": "*"})}
    with Peer(url) as one, Peer(url) as two:
        for peer in (one, two):
            peer.head("PUT", "/race/k", {"Expect": "100-continue", **fields})
            assert peer.answer().status == 100
        one.socket.sendall(b"1")
        assert one.answer().status == 200
        two.socket.sendall(b"2")
        assert two.answer().status == 412
    assert running.object("race", "k").content() == b"1"


def test_conditional_reads(running: Sandbox) -> None:
    url = f"{running.store_url}/reads/k"
    etag = call(running, "PUT", url, b"x")["etag"]
    fresh = call(running, "GET", url, headers={"If-None-Match": etag})
    assert (fresh.status, fresh.body, fresh["etag"]) == (304, b"", etag)
    assert call(running, "GET", url, headers={"If-Match": '"0"'}).status == 412
    assert call(running, "GET", url, headers={"If-Match": etag}).body == b"x"


@pytest.mark.parametrize("algorithm", ["crc32", "crc32c", "crc64nvme", "sha1", "sha256"])
def test_a_given_checksum_is_checked(running: Sandbox, algorithm: str) -> None:
    url = f"{running.store_url}/sums/{algorithm}"
    digest = new_digest(algorithm)
    digest.update(memoryview(b"content"))
    value = base64.b64encode(digest.digest()).decode()
    name = f"x-amz-checksum-{algorithm}"
    answer = call(running, "PUT", url, b"content", headers={name: value})
    assert (answer.status, answer[name]) == (200, value)
    refused = call(running, "PUT", url, b"Content", headers={name: value})
    assert (refused.status, refused.code) == (400, "BadDigest")
    assert running.object("sums", algorithm).content() == b"content"
    assert call(running, "PUT", url, b"content", headers={name: "short"}).code == "InvalidRequest"


def test_checksums_have_their_published_check_values() -> None:
    # "123456789": the CRC catalogue's check values for CRC-32/ISO-HDLC, CRC-32/ISCSI and CRC-64/NVME.
    for algorithm, expected in (("crc32", "cbf43926"), ("crc32c", "e3069283"), ("crc64nvme", "ae8b14860a799888")):
        digest = new_digest(algorithm)
        digest.update(memoryview(b"12345"))
        digest.update(memoryview(b"6789"))
        assert digest.digest().hex() == expected


def test_a_content_md5_is_checked(running: Sandbox) -> None:
    url = f"{running.store_url}/sums/md5"
    md5 = base64.b64encode(hashlib.md5(b"content").digest()).decode()
    assert call(running, "PUT", url, b"content", headers={"Content-MD5": md5}).status == 200
    assert call(running, "PUT", url, b"Content", headers={"Content-MD5": md5}).code == "BadDigest"


def aws_chunked(body: bytes, chunk: int, trailer: str) -> bytes:
    pieces = [body[i : i + chunk] for i in range(0, len(body), chunk)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return framed + b"0\r\n" + trailer.encode() + b"\r\n"


def trailer_call(running: Sandbox, key: str, content: bytes, framed: bytes) -> Answer:
    headers = {
        "Content-Encoding": "gzip,aws-chunked",
        "x-amz-decoded-content-length": str(len(content)),
        "x-amz-trailer": "x-amz-checksum-crc32",
    }
    return call(running, "PUT", f"{running.store_url}/trailers/{key}", framed, headers, payload_hash=TRAILER)


@pytest.mark.parametrize("size", [0, 1000, 700_000])
def test_an_aws_chunked_body_is_decoded_and_its_trailer_checked(running: Sandbox, size: int) -> None:
    content = os.urandom(size)
    crc = base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()
    good = aws_chunked(content, 65536, f"x-amz-checksum-crc32:{crc}\r\n")
    answer = trailer_call(running, f"good-{size}", content, good)
    assert (answer.status, answer["x-amz-checksum-crc32"]) == (200, crc)
    stored = running.object("trailers", f"good-{size}")
    assert stored.content() == content
    assert stored.fields["Content-Encoding"] == "gzip"
    wrong = base64.b64encode(b"\1\2\3\4").decode()
    bad = aws_chunked(content, 65536, f"x-amz-checksum-crc32:{wrong}\r\n")
    assert trailer_call(running, "bad", content, bad).code == "BadDigest"


def test_a_broken_aws_chunked_body_is_refused(running: Sandbox) -> None:
    good = aws_chunked(b"0123456789", 4, "x-amz-checksum-crc32:poTHxg==\r\n")
    assert trailer_call(running, "broken", b"0123456789", good).status == 200
    for framed, code in (
        (good[:-2], "IncompleteBody"),
        (good + b"more", "IncompleteBody"),
        (aws_chunked(b"01234567", 4, "x-amz-checksum-crc32:poTHxg==\r\n"), "IncompleteBody"),
        (good.replace(b"4\r\n", b"x\r\n", 1), "BadRequest"),
        (aws_chunked(b"0123456789", 4, ""), "InvalidRequest"),
    ):
        answer = trailer_call(running, "broken", b"0123456789", framed)
        assert (answer.status, answer.code) == (400, code)
    assert running.object("trailers", "broken").size == 10


def test_a_chunked_body_without_a_length_is_refused_with_411(running: Sandbox) -> None:
    url = f"{running.store_url}/lengthless/k"
    with Peer(url) as peer:
        peer.head("PUT", "/lengthless/k", {"Transfer-Encoding": "chunked", **sign(running, "PUT", url)})
        answer = peer.answer()
    assert (answer.status, answer.code) == (411, "MissingContentLength")


def test_a_chunked_aws_chunked_body_is_accepted(running: Sandbox) -> None:
    url = f"{running.store_url}/double/k"
    headers = {"x-amz-decoded-content-length": "10", "x-amz-trailer": "x-amz-checksum-crc32"}
    inner = aws_chunked(b"0123456789", 4, "x-amz-checksum-crc32:poTHxg==\r\n")
    outer = aws_chunked(inner, 7, "")
    with Peer(url) as peer:
        fields = sign(running, "PUT", url, headers, payload_hash=TRAILER)
        peer.head("PUT", "/double/k", {"Transfer-Encoding": "chunked", **fields})
        peer.socket.sendall(outer)
        assert peer.answer().status == 200
        peer.head("GET", "/double/k", sign(running, "GET", url))
        assert peer.answer().body == b"0123456789"
    assert seen(running, "double")[0].body_bytes == len(outer)


@pytest.mark.parametrize(
    ("target", "fields", "status", "code"),
    [
        ("/Bad_Bucket/k", {}, 400, "InvalidBucketName"),
        ("/bucket/" + "k" * 1025, {}, 400, "KeyTooLongError"),
        ("/bucket/k", {"Content-Length": str(5 * 1024 * MIB + 1)}, 400, "EntityTooLarge"),
        ("/bucket/k", {"x-amz-meta-a": "m" * 2048}, 400, "MetadataTooLarge"),
        ("/bucket/k", {"x-amz-copy-source": "/a/b"}, 501, "NotImplemented"),
        ("/bucket/k?acl", {}, 501, "NotImplemented"),
        ("/bucket/k", {"x-amz-checksum-crc32": "AAAAAA==", "x-amz-checksum-sha1": "x"}, 400, "InvalidRequest"),
        ("/bucket/k", {"If-None-Match": '"etag"'}, 501, "NotImplemented"),
        ("/bucket/k?uploadId=nothing&partNumber=1", {}, 404, "NoSuchUpload"),
        ("/bucket/%ff", {}, 400, "InvalidURI"),
    ],
)
def test_what_the_head_shows_to_be_wrong_is_refused_before_the_body(
    open_one: Sandbox, target: str, fields: dict[str, str], status: int, code: str
) -> None:
    with Peer(open_one.store_url) as peer:
        peer.head("PUT", target, {"Content-Length": "5", "Expect": "100-continue", **fields})
        answer = peer.answer()
        assert (answer.status, answer.code) == (status, code)
        assert answer["connection"] == "close"
        assert peer.at_end()


def test_a_body_cut_short_leaves_nothing(open_one: Sandbox) -> None:
    with Peer(open_one.store_url) as peer:
        peer.put_head("/short/k", 1000)
        assert peer.answer().status == 100
        peer.socket.sendall(b"x" * 999)
    record = only(seen(open_one, "short"))
    assert (record.status, record.ended, record.body_bytes) == (None, "peer-closed", 999)
    with pytest.raises(KeyError):
        open_one.object("short", "k")
    assert not list(Path(open_one.folder, ".incoming").iterdir())


@pytest.mark.parametrize("key", [".", "..", "a/b/../c", "x%.json", "x", "/", "ü" * 500, "a b+c%20d", "nul\0?#"])
def test_any_key_is_a_key(running: Sandbox, key: str) -> None:
    url = f"{running.store_url}/oddkeys/{quote(key, safe='/~')}"
    body = key.encode()
    assert call(running, "PUT", url, body).status == 200
    assert running.object("oddkeys", key).content() == body
    assert call(running, "GET", url).body == body
    assert {p.name for p in Path(running.folder).iterdir() if not p.name.startswith(".")} >= {"oddkeys"}
    assert not [p for p in Path(running.folder, "oddkeys").iterdir() if p.is_dir()]


def test_an_overwritten_object_is_replaced_as_a_whole(running: Sandbox) -> None:
    client = s3_client(running)
    client.put_object(Bucket="over", Key="k", Body=b"a longer first body", Metadata={"old": "1"})
    client.put_object(Bucket="over", Key="k", Body=b"second")
    stored = running.object("over", "k")
    assert (stored.content(), stored.metadata) == (b"second", {})


def test_a_virtual_host_names_the_bucket(running: Sandbox) -> None:
    port = urlsplit(running.store_url).port
    url = f"http://vhost.bucket.localhost:{port}/some/key"
    fields = {"Content-Length": "2", "Host": f"vhost.bucket.localhost:{port}", **sign(running, "PUT", url)}
    with Peer(running.store_url) as peer:
        peer.head("PUT", "/some/key", fields)
        peer.socket.sendall(b"hi")
        assert peer.answer().status == 200
    assert running.object("vhost.bucket", "some/key").content() == b"hi"


def test_a_large_body_is_digested_while_it_arrives(open_one: Sandbox) -> None:
    block = os.urandom(MIB)
    digest = hashlib.sha256()
    with Peer(open_one.store_url) as peer:
        peer.put_head("/large/k", 40 * MIB + 17)
        assert peer.answer().status == 100
        for piece in [block] * 40 + [block[:17]]:
            digest.update(piece)
            peer.socket.sendall(piece)
        answer = peer.answer()
    stored = open_one.object("large", "k")
    assert (stored.size, stored.sha256) == (40 * MIB + 17, digest.hexdigest())
    assert answer["etag"] == f'"{digest.hexdigest()[:32]}-1"'
    assert hashlib.sha256(stored.content()).hexdigest() == digest.hexdigest()


def test_without_digest_the_content_is_digested_when_asked() -> None:
    with start(anonymous=True, digest=False) as running:
        body = os.urandom(MIB)
        with Peer(running.store_url) as peer:
            peer.head("PUT", "/lazy/k", {"Content-Length": str(MIB)})
            peer.socket.sendall(body)
            assert peer.answer().status == 200
        assert running.object("lazy", "k").sha256 == hashlib.sha256(body).hexdigest()


def test_parts_uploaded_at_once_become_one_object(running: Sandbox) -> None:
    client = s3_client(running)
    body = os.urandom(17 * MIB)
    pieces = {n + 1: body[n * 5 * MIB : (n + 1) * 5 * MIB] for n in range(4)}
    place = {"Bucket": "parts", "Key": "k"}
    upload = client.create_multipart_upload(**place, Metadata={"a": "b"})["UploadId"]

    def put(number: int) -> dict[str, Any]:
        answer = client.upload_part(**place, UploadId=upload, PartNumber=number, Body=pieces[number])
        return {"PartNumber": number, "ETag": answer["ETag"]}

    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(put, pieces))
    client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
    stored = running.object("parts", "k")
    assert stored.sha256 == hashlib.sha256(body).hexdigest()
    tags = b"".join(hashlib.md5(piece).digest() for piece in pieces.values())
    assert stored.etag == f'"{hashlib.md5(tags).hexdigest()}-4"'
    assert stored.metadata == {"a": "b"}
    assert not list(Path(running.folder, ".uploads").iterdir())
    assert client.get_object(**place)["Body"].read() == body


def test_parts_are_listed_completed_and_aborted_as_s3_does(open_one: Sandbox) -> None:
    client = s3_client(open_one)
    place = {"Bucket": "multi", "Key": "k"}
    upload = client.create_multipart_upload(**place)["UploadId"]
    tags = {
        n: client.upload_part(**place, UploadId=upload, PartNumber=n, Body=bytes([n]) * n)["ETag"] for n in (3, 1, 2)
    }
    listed = client.list_parts(**place, UploadId=upload, MaxParts=2)
    assert [(p["PartNumber"], p["Size"], p["ETag"]) for p in listed["Parts"]] == [(1, 1, tags[1]), (2, 2, tags[2])]
    assert listed["IsTruncated"]
    rest = client.list_parts(**place, UploadId=upload, PartNumberMarker=listed["NextPartNumberMarker"])
    assert [p["PartNumber"] for p in rest["Parts"]] == [3]

    def complete(parts: list[tuple[int, str]]) -> dict[str, Any]:
        listing = {"Parts": [{"PartNumber": n, "ETag": tag} for n, tag in parts]}
        result: dict[str, Any] = client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload=listing)
        return result

    for parts, code in (
        ([(2, tags[2]), (1, tags[1])], "InvalidPartOrder"),
        ([(1, tags[2])], "InvalidPart"),
        ([(4, tags[1])], "InvalidPart"),
    ):
        with pytest.raises(botocore.exceptions.ClientError, match=code):
            complete(parts)
    assert complete([(1, tags[1]), (3, tags[3])])["ChecksumCRC64NVME"]
    assert open_one.object("multi", "k").content() == b"\1\3\3\3"
    with pytest.raises(botocore.exceptions.ClientError, match="NoSuchUpload"):
        complete([(1, tags[1])])
    other = client.create_multipart_upload(**place)["UploadId"]
    client.abort_multipart_upload(**place, UploadId=other)
    with pytest.raises(botocore.exceptions.ClientError, match="NoSuchUpload"):
        client.list_parts(**place, UploadId=other)


def test_a_part_below_the_minimum_is_refused_at_the_end(running: Sandbox) -> None:
    client = s3_client(running)
    place = {"Bucket": "smallparts", "Key": "k"}
    upload = client.create_multipart_upload(**place)["UploadId"]
    parts = [
        {"PartNumber": n, "ETag": client.upload_part(**place, UploadId=upload, PartNumber=n, Body=b"x")["ETag"]}
        for n in (1, 2)
    ]
    with pytest.raises(botocore.exceptions.ClientError, match="EntityTooSmall"):
        client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
    client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts[:1]})


def test_many_bodies_at_once_are_each_stored_right(open_one: Sandbox) -> None:
    bodies = {f"k{n}": os.urandom(MIB + n) for n in range(16)}

    def put(key: str) -> int:
        connection = http.client.HTTPConnection(urlsplit(open_one.store_url).netloc, timeout=20)
        with contextlib.closing(connection):
            connection.request("PUT", f"/many/{key}", bodies[key])
            return connection.getresponse().status

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(put, bodies)) == {200}
    for key, body in bodies.items():
        assert open_one.object("many", key).sha256 == hashlib.sha256(body).hexdigest()


def test_a_connection_is_used_again_and_pipelined_requests_are_answered_in_order(open_one: Sandbox) -> None:
    with Peer(open_one.store_url) as peer:
        host = peer.host.encode()
        first = b"PUT /pipe/a HTTP/1.1\r\nHost: %s\r\nContent-Length: 3\r\n\r\nabc" % host
        second = b"GET /pipe/a HTTP/1.1\r\nHost: %s\r\n\r\n" % host
        chunked = b"POST /pipe/a?uploads HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % host
        peer.socket.sendall(first + second + chunked + second)
        assert peer.answer().status == 200
        assert peer.answer().body == b"abc"
        assert peer.answer().xml["UploadId"]
        assert peer.answer().body == b"abc"
    records = seen(open_one, "pipe")
    assert [r.body_bytes for r in records] == [3, 0, 5, 0]
    assert len({r.connection for r in records}) == 1
    assert {r.ended for r in records} == {"kept"}


@pytest.mark.parametrize(
    "head",
    [
        b"PUT /b/k HTTP/1.1\r\n\r\n",
        b"PUT /b/k HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"PUT /b/k HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"PUT /b/k HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"PUT /b/k HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
        b"PUT /b/k HTTP/1.1\r\nHost : a\r\n\r\n",
        b"PUT /b/k HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"PUT /b/k HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n",
        b"PUT /b k HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PUT b/k HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PUT /b/k HTTP/2.0\r\nHost: a\r\n\r\n",
        b"PUT /b/k HTTP/1.1\nHost: a\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_a_head_that_is_not_http_is_refused_and_recorded(open_one: Sandbox, head: bytes) -> None:
    with pytest.raises(S3Error):
        parse_head(head)
    with Peer(open_one.store_url) as peer:
        peer.socket.sendall(head)
        assert peer.answer().status == 400
        assert peer.at_end()
    assert open_one.settle()[-1].head == head


def test_a_head_that_is_too_long_is_refused(open_one: Sandbox) -> None:
    with Peer(open_one.store_url) as peer:
        peer.head("PUT", "/toolong/k", {f"X-{n}": "v" * 1000 for n in range(70)})
        assert peer.answer().code == "RequestHeaderSectionTooLarge"
        assert peer.at_end()


@given(
    content=st.binary(max_size=300),
    chunk=st.integers(1, 50),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    tail=st.binary(max_size=5),
)
@settings(deadline=None)
def test_chunks_are_decoded_however_they_are_cut(content: bytes, chunk: int, cuts: list[int], tail: bytes) -> None:
    framed = aws_chunked(content, chunk, "x-sum: abc\r\n") + tail
    decoder = ChunkDecoder()
    found, at, n = b"", 0, 0
    while not decoder.done:
        pieces, used = decoder.feed(memoryview(framed)[at : at + cuts[n % len(cuts)]])
        found += b"".join(pieces)
        at += used
        n += 1
    assert (found, decoder.trailers, framed[at:]) == (content, {"x-sum": "abc"}, tail)


@pytest.mark.parametrize("framed", [b"g\r\n", b"-1\r\n", b"1\r\nab\r\n", b"1\n", b"0" * 9000])
def test_malformed_chunks_are_refused(framed: bytes) -> None:
    with pytest.raises(S3Error):
        ChunkDecoder().feed(memoryview(framed))


# --- the redirecting endpoint -----------------------------------------------------------------------------------------


def test_every_word_of_the_table_makes_a_scenario() -> None:
    examples = {"<time>": "10ms", "<size>": "1k", "<n>": "2", "<3xx>": "307", "<status>": "400", "": ""}
    for text in VERBS:
        verb, _dash, kind = text.partition("-")
        name = f"{verb}-{examples[kind]}" if kind else verb
        assert parse_scenario(name), name
        for word in (word for group in MODIFIERS.values() for word in group):
            modifier, _dash, kind = word.partition("-")
            longer = f"{name}-{modifier}" + (f"-{examples[kind]}" if kind else "")
            found = parse_scenario(longer + ".anything.else")
            assert found, longer
            assert modifier in found.flags | found.values.keys()
            assert parse_scenario(f"{longer}-{modifier}") is None
        assert text in scenario_table()


@pytest.mark.parametrize(
    "name",
    [
        *("", "photos", "store-slow", "store-nothing", "answer", "answer-100", "answer-600", "region-307", "redirect"),
        *("redirect-304", "redirect-307-", "redirect-307-after", "redirect-307-after-1x", "redirect-307-slow-1h"),
        "redirect-307-once-once",
    ],
)
def test_a_bucket_that_is_no_scenario_does_not_exist(open_one: Sandbox, name: str) -> None:
    assert parse_scenario(name) is None
    if name:
        with Peer(open_one.redirector_url) as peer:
            peer.head("GET", f"/{name}/k", {})
            assert peer.answer().code == "NoSuchBucket"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD", "DELETE", "POST"])
def test_any_method_is_redirected_to_the_same_target(open_one: Sandbox, status: int, method: str) -> None:
    target = f"/redirect-{status}/a%20key?uploads=&x=1"
    with Peer(open_one.redirector_url) as peer:
        peer.head(method, target, {"Content-Length": "0"})
        answer = peer.answer(body=method != "HEAD")
    assert answer.status == status
    assert answer["location"] == open_one.store_url + target
    if method != "HEAD":
        assert answer.xml["Endpoint"] == urlsplit(open_one.store_url).netloc


def test_a_refused_body_is_not_read_and_counted_when_it_comes_all_the_same(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/redirect-307.polite/k", 100_000)
        assert peer.answer().status == 307
    polite = only(seen(open_one, "redirect-307.polite"))
    assert (polite.body_bytes, polite.ended, polite.scenario) == (0, "peer-closed", "redirect-307")
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/redirect-307.rude/k", 100_000)
        peer.answer()
        peer.socket.sendall(b"x" * 70_000)
    rude = only(seen(open_one, "redirect-307.rude"))
    assert (rude.body_bytes, rude.body_bytes_at_answer, rude.ended) == (70_000, 0, "peer-closed")
    assert rude.answered_at
    assert rude.first_body_at
    assert rude.first_body_at >= rude.answered_at


def test_a_withheld_body_leaves_the_connection_out_of_step(open_one: Sandbox) -> None:
    """A client which uses the connection again has its next request taken for body: that shows in the record."""
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/redirect-307.again/k", 10_000)
        assert peer.answer().status == 307
        peer.head("GET", "/redirect-307.again/k", {})
        assert peer.at_end()  # closed after linger_s
    record = only(seen(open_one, "redirect-307.again"))
    assert record.body_bytes > 0
    assert record.ended == "timeout"


def test_a_fully_sent_body_behind_the_answer_keeps_the_connection(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/answer-403.whole/k", 1000)
        assert peer.answer().status == 403
        peer.socket.sendall(b"x" * 1000)
        peer.head("GET", "/answer-404.whole/k", {})
        assert peer.answer().status == 404
    assert [r.ended for r in seen(open_one, "answer-403.whole")] == ["kept"]


def test_bytes_sent_too_early_are_counted_at_the_go_ahead(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/store-slow-200ms/k", 5000)
        peer.socket.sendall(b"x" * 3000)
        assert peer.answer().status == 100
        peer.socket.sendall(b"x" * 2000)
        assert peer.answer().status == 200
    record = only(seen(open_one, "store-slow-200ms"))
    assert (record.body_bytes_at_continue, record.body_bytes) == (3000, 5000)
    assert record.continue_at
    assert 0.2 <= record.continue_at - record.received_at < 2
    assert open_one.object("store-slow-200ms", "k").size == 5000


def test_bytes_in_the_segment_of_the_head_are_counted_too(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        head = f"PUT /redirect-307.glued/k HTTP/1.1\r\nHost: {peer.host}\r\nContent-Length: 4\r\n\r\n"
        peer.socket.sendall(head.encode() + b"body")
        assert peer.answer().status == 307
    record = only(seen(open_one, "redirect-307.glued"))
    assert (record.body_bytes, record.body_bytes_at_answer, record.ended) == (4, 4, "kept")
    assert record.head.endswith(b"\r\n\r\n")


def test_no_100_is_sent_to_those_who_do_not_ask(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.head("PUT", "/store.plain/k", {"Content-Length": "2"})
        peer.socket.sendall(b"hi")
        assert peer.answer().status == 200
    with Peer(open_one.redirector_url) as peer:
        peer.socket.sendall(b"PUT /store.plain/k HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi")
        assert peer.answer().status == 200
        assert peer.at_end()
    assert [r.interims for r in seen(open_one, "store.plain")] == [[], []]


def test_a_silent_store_never_says_100(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/store-silent/k", 2)
        assert peer.silent_for(0.2)
        peer.socket.sendall(b"hi")
        assert peer.answer().status == 200
    assert only(seen(open_one, "store-silent")).continue_at is None


@pytest.mark.parametrize(
    ("scenario", "statuses"),
    [
        ("store-hints", [103, 100]),
        ("store-processing", [102, 100]),
        ("store-hints-processing", [103, 102, 100]),
        ("store-flood-20", [102] * 20 + [100]),
        ("store-twice", [100, 100]),
        ("store-odd", [100]),
    ],
)
def test_interim_answers_come_ahead(open_one: Sandbox, scenario: str, statuses: list[int]) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head(f"/{scenario}/k", 2)
        answers = [peer.answer() for _ in statuses]
        assert [a.status for a in answers] == statuses
        if scenario == "store-odd":
            assert (answers[0].reason, answers[0]["connection"]) == ("CONTINUE", "Close")
        peer.socket.sendall(b"hi")
        assert peer.answer().status == 200


def test_a_late_100_comes_behind_the_first_body_byte(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/store-late/k", 2)
        assert peer.silent_for(0.1)
        peer.socket.sendall(b"h")
        assert peer.answer().status == 100
        peer.socket.sendall(b"i")
        assert peer.answer().status == 200
    assert only(seen(open_one, "store-late")).body_bytes_at_continue == 1


def test_100_and_the_answer_leave_in_one_write(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/redirect-307-continue/k", 1000)
        data = peer.receive()
    assert data.startswith(CONTINUE + b"HTTP/1.1 307 ")
    record = only(seen(open_one, "redirect-307-continue"))
    assert [s for s, _at in record.interims] == [100]
    assert record.body_bytes == 0


def test_100_and_the_answer_leave_apart_by_the_gap(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/redirect-307-gap-50ms/k", 1000)
        assert peer.receive() == CONTINUE
        peer.answer()
        assert peer.answer().status == 307
    for gap in ("5us", "100us"):
        with Peer(open_one.redirector_url) as peer:
            peer.put_head(f"/redirect-307-gap-{gap}/k", 1000)
            assert [peer.answer().status for _ in range(2)] == [100, 307]
    for name, least in (
        ("redirect-307-gap-50ms", 0.05),
        ("redirect-307-gap-100us", 0.0001),
        ("redirect-307-gap-5us", 0),
    ):
        record = only(seen(open_one, name))
        assert record.answered_at
        assert record.continue_at
        assert record.answered_at - record.continue_at >= least


def test_an_answer_in_mid_body_comes_after_exactly_so_many_bytes(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/redirect-307-after-64k/k", MIB)
        assert peer.answer().status == 100
        peer.socket.sendall(b"x" * (64 * KIB - 1))
        assert peer.silent_for(0.1)
        peer.socket.sendall(b"x")
        assert peer.answer().status == 307
        peer.socket.sendall(b"x" * 500)
    record = only(seen(open_one, "redirect-307-after-64k"))
    assert (record.body_bytes_at_answer, record.body_bytes) == (64 * KIB, 64 * KIB + 500)


def test_read_takes_the_whole_body_and_then_redirects(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/redirect-307-read/k", 300_000)
        assert peer.answer().status == 100
        peer.socket.sendall(b"x" * 300_000)
        assert peer.answer().status == 307
    record = only(seen(open_one, "redirect-307-read"))
    assert (record.body_bytes_at_answer, record.ended) == (300_000, "kept")


@pytest.mark.parametrize("status", [400, 403, 404, 412, 500, 503, 418])
def test_a_refusal_has_s3s_document(open_one: Sandbox, status: int) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head(f"/answer-{status}/k", 1000)
        answer = peer.answer()
    assert answer.status == status
    assert answer.code
    assert only(seen(open_one, f"answer-{status}")).code == answer.code


def test_503_comes_once_for_every_key_and_then_it_stores(open_one: Sandbox) -> None:
    def put(key: str) -> Answer:
        with Peer(open_one.redirector_url) as peer:
            peer.head("PUT", f"/answer-503-once-retry-7/{key}", {"Content-Length": "2"})
            peer.socket.sendall(b"hi")
            return peer.answer()

    first = put("a")
    assert (first.status, first.code, first["retry-after"]) == (503, "SlowDown", "7")
    assert [put("b").status, put("a").status, put("b").status] == [503, 200, 200]


def test_a_reset_follows_the_answer(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/answer-403-after-1k-reset/k", MIB)
        assert peer.answer().status == 100
        peer.socket.sendall(b"x" * 2048)
        assert peer.answer().status == 403
        with pytest.raises(ConnectionResetError):
            peer.receive()
    record = only(seen(open_one, "answer-403-after-1k-reset"))
    assert (record.ended, record.body_bytes) == ("reset", 2048)


def test_an_orderly_close_follows_the_answer(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/answer-403-close/k", MIB)
        assert peer.answer()["connection"] == "close"
        assert peer.at_end()
        peer.socket.sendall(b"x" * 100)  # still counted, and no reset destroys the answer
    record = only(seen(open_one, "answer-403-close"))
    assert (record.ended, record.body_bytes) == ("closed", 100)


def test_417_is_said_to_those_who_ask_only(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/answer-417/k", 2)
        assert peer.answer().status == 417
        assert peer.at_end()
    with Peer(open_one.redirector_url) as peer:
        peer.head("PUT", "/answer-417/k", {"Content-Length": "2"})
        peer.socket.sendall(b"hi")
        assert peer.answer().status == 200


def test_drop_hang_and_garbage_give_no_answer(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/drop/k", 2)
        assert peer.at_end()
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/drop-reset/k", 2)
        with pytest.raises(ConnectionResetError):
            peer.receive()
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/drop-continue/k", 2)
        assert peer.answer().status == 100
        assert peer.at_end()
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/garbage/k", 2)
        assert peer.receive().startswith(b"SSH-2.0")
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/hang/k", 200)
        assert peer.silent_for(0.2)
        peer.socket.sendall(b"early")
    record = only(seen(open_one, "hang"))
    assert (record.status, record.ended, record.body_bytes) == (None, "peer-closed", 5)


def test_drop_in_mid_body_closes_after_so_many_bytes(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/drop-after-1k/k", 5000)
        assert peer.answer().status == 100
        peer.socket.sendall(b"x" * 1024)
        assert peer.at_end()
    assert only(seen(open_one, "drop-after-1k")).body_bytes == 1024


def test_a_stalling_server_stops_reading(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/store-stall-1k/k", 1 << 32)
        assert peer.answer().status == 100
        peer.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            peer.socket.sendall(bytes(256 * MIB))
        # Else the kernel goes on trying to send what it holds, for minutes.
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    record = only(seen(open_one, "store-stall-1k"))
    assert record.ended in ("peer-closed", "peer-reset")
    assert 1024 < record.body_bytes < 256 * MIB


LOCATIONS = {
    "loop": "{own}/{bucket}/k",
    "query": "{store}/{bucket}/k?rk=1",
    "relative": "/{bucket}/k?rk=1",
    "ceph": "{store}/{bucket}/k?",
    "hops-2": "{own}/{bucket}/k?hop=2",
    "elsewhere": "http://redirect.example.test/{bucket}/k",
    "linklocal": "http://169.254.169.254/{bucket}/k",
    "https": "https://{netloc}/{bucket}/k",
    "plain": "http://{netloc}/{bucket}/k",
    "userinfo": "http://somebody@{netloc}/{bucket}/k",
    "ftp": "ftp://{netloc}/{bucket}/k",
    "subresource": "{store}/{bucket}/k?acl",
    "port-54321": "http://127.0.0.1:54321/{bucket}/k",
}


@pytest.mark.parametrize("kind", LOCATIONS)
def test_the_location_is_what_the_scenario_says(open_one: Sandbox, kind: str) -> None:
    bucket = f"redirect-307-{kind}"
    with Peer(open_one.redirector_url) as peer:
        peer.put_head(f"/{bucket}/k", 1000)
        answer = peer.answer()
    expected = LOCATIONS[kind].format(
        own=open_one.redirector_url,
        store=open_one.store_url,
        netloc=urlsplit(open_one.store_url).netloc,
        bucket=bucket,
    )
    assert (answer.status, answer["location"]) == (307, expected)


def test_the_last_of_many_hops_leads_to_the_store(open_one: Sandbox) -> None:
    url, seen_urls = f"{open_one.redirector_url}/redirect-307-hops-3/k", []
    while url.startswith(open_one.redirector_url):
        with Peer(url) as peer:
            peer.put_head(url[len(open_one.redirector_url) :], 10)
            url = peer.answer()["location"]
            seen_urls.append(url)
    assert len(seen_urls) == 3
    assert url.startswith(f"{open_one.store_url}/redirect-307-hops-3/k")


def test_a_relative_location_leads_to_a_place_that_stores(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/redirect-307-relative.b/k?rk=1", 2)
        assert peer.answer().status == 100
        peer.socket.sendall(b"hi")
        assert peer.answer().status == 200
    assert open_one.object("redirect-307-relative.b", "k").content() == b"hi"


def test_two_locations_differ(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/redirect-307-two/k", 1000)
        answer = peer.answer()
    assert len({value for name, value in answer.fields if name == "location"}) == 2


def test_a_bare_redirect_names_endpoint_and_region_instead(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/redirect-301-bare/k", 1000)
        answer = peer.answer()
    assert (answer.status, answer.code) == (301, "PermanentRedirect")
    assert "location" not in answer
    assert answer["x-amz-bucket-region"] == open_one.region
    assert answer.xml["Endpoint"] == urlsplit(open_one.store_url).netloc


def test_a_mute_redirect_says_nothing_but_head_of_the_bucket_does(open_one: Sandbox) -> None:
    for name, region in (("redirect-301-mute", open_one.region), ("region-301-mute", OTHER_REGION)):
        with Peer(open_one.redirector_url) as peer:
            peer.put_head(f"/{name}/k", 1000)
            answer = peer.answer()
        assert (answer.status, answer.body) == (301, b"")
        assert not {"location", "x-amz-bucket-region"} & {name for name, _value in answer.fields}
        with Peer(open_one.redirector_url) as peer:
            peer.head("HEAD", f"/{name}", {})
            assert peer.answer(body=False)["x-amz-bucket-region"] == region


@pytest.mark.parametrize("status", [301, 400])
def test_a_bucket_of_another_region_stores_what_is_signed_for_it(running: Sandbox, status: int) -> None:
    url = f"{running.redirector_url}/region-{status}/k"
    refused = call(running, "PUT", url, b"hi")
    assert refused.status == status
    assert refused["x-amz-bucket-region"] == OTHER_REGION
    if status == 400:
        assert (refused.code, refused.xml["Region"]) == ("AuthorizationHeaderMalformed", OTHER_REGION)
    assert call(running, "PUT", url, b"hi", region=OTHER_REGION).status == 200
    assert running.object(f"region-{status}", "k").content() == b"hi"
    wrong = Credentials(running.credentials.access_key, "wrong")
    assert call(running, "PUT", url, region=OTHER_REGION, credentials=wrong).code == "SignatureDoesNotMatch"


def test_botocore_finds_the_other_region(running: Sandbox) -> None:
    client = s3_client(running, running.redirector_url)
    client.put_object(Bucket="region-400.botocore", Key="k", Body=b"hi")
    assert running.object("region-400.botocore", "k").content() == b"hi"
    assert [r.status for r in seen(running, "region-400.botocore")][-1] == 200


def test_the_redirector_records_signatures_but_answers_anybody(running: Sandbox) -> None:
    url = f"{running.redirector_url}/redirect-307.signed/k"
    wrong = Credentials(running.credentials.access_key, "wrong")
    for keys in (running.credentials, wrong):
        assert call(running, "PUT", url, credentials=keys).status == 307
    with Peer(url) as peer:
        peer.head("PUT", "/redirect-307.signed/k", {"Content-Length": "0"})
        assert peer.answer().status == 307
    verdicts = [r.signature for r in seen(running, "redirect-307.signed")]
    assert verdicts == ["ok", "SignatureDoesNotMatch", "AccessDenied"]


def test_stored_scenarios_check_signatures(running: Sandbox) -> None:
    with Peer(running.redirector_url) as peer:
        peer.put_head("/store.guarded/k", 2)
        assert peer.answer().code == "AccessDenied"


def test_a_corrupting_store_returns_another_checksum(running: Sandbox) -> None:
    body = os.urandom(MIB)
    good = call(running, "PUT", f"{running.redirector_url}/store/k", body)
    bad = call(running, "PUT", f"{running.redirector_url}/store-corrupt/k", body)
    assert (good.status, bad.status) == (200, 200)
    assert good["x-amz-checksum-crc64nvme"] != bad["x-amz-checksum-crc64nvme"]
    mute = call(running, "PUT", f"{running.redirector_url}/store-nochecksum/k", body)
    assert not [name for name, _value in mute.fields if "checksum" in name]


def test_odd_shapes_of_an_answer(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/answer-403-http10/k", 10)
        answer = peer.answer()
        assert (answer.version, answer.status, answer["connection"]) == ("HTTP/1.0", 403, "close")
        assert peer.at_end()
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/answer-403-pad-100k/k", 10)
        assert len(peer.answer().body) > 100 * KIB
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/answer-403-trickle/k", 10)
        assert peer.answer().code == "AccessDenied"
    for cut in ("/answer-403-cut/k", "/answer-200-cut/k"):
        with Peer(open_one.redirector_url) as peer:
            peer.put_head(cut, 10)
            with pytest.raises(EOFError):
                peer.answer()
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/answer-403-chunked-close/k", 10)
        response = http.client.HTTPResponse(peer.socket)
        response.begin()
        assert response.chunked
        assert b"<Code>AccessDenied</Code>" in response.read()


def test_a_get_can_be_cut(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.head("PUT", "/store/cut", {"Content-Length": "1000"})
        peer.socket.sendall(b"x" * 1000)
        assert peer.answer().status == 200
    shutil.copytree(Path(open_one.folder, "store"), Path(open_one.folder, "store-cut"))
    with Peer(open_one.redirector_url) as peer:
        peer.head("GET", "/store-cut/cut", {})
        with pytest.raises(EOFError):
            peer.answer()


def test_unsolicited_bytes_follow_an_answer(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.head("PUT", "/store-unsolicited/k", {"Content-Length": "0"})
        assert peer.answer().status == 200
        assert peer.answer().status == 408


def test_200_before_the_body_is_complete_stores_nothing(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/answer-200-after-1k/k", 5000)
        assert peer.answer().status == 100
        peer.socket.sendall(b"x" * 1024)
        assert peer.answer().status == 200
    with pytest.raises(KeyError):
        open_one.object("answer-200-after-1k", "k")


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_is_redirected_and_sends_its_body_once(open_one: Sandbox, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(3 * MIB))
    url = f"{open_one.redirector_url}/redirect-307.curl/k"
    command = ["curl", "-sSL", "--max-time", "10", "-H", "Expect: 100-continue", "-T", str(file), url]
    subprocess.run(command, check=True, capture_output=True)
    refused, stored = seen(open_one, "redirect-307.curl")
    assert (refused.endpoint, refused.status, refused.body_bytes) == ("redirector", 307, 0)
    assert (stored.endpoint, stored.status, stored.body_bytes) == ("store", 200, 3 * MIB)
    assert open_one.object("redirect-307.curl", "k").content() == file.read_bytes()


# --- records, threads, processes --------------------------------------------------------------------------------------


def test_a_record_shows_the_request_as_it_came(running: Sandbox) -> None:
    url = f"{running.store_url}/recorded/k"
    before = time.monotonic()
    answer = call(running, "PUT", url, b"body", headers={"X-Amz-Meta-A": "1"}, tamper={"X-Twice": "a,b"})
    record = only(seen(running, "recorded"))
    assert (record.endpoint, record.method, record.target, record.version) == ("store", "PUT", "/recorded/k", "1.1")
    assert record.head.startswith(b"PUT /recorded/k HTTP/1.1\r\nHost: ")
    assert record.get("host") == urlsplit(running.store_url).netloc
    assert record.get_all("x-twice") == ["a,b"]
    assert record.get("missing") is None
    assert record.request_id == answer["x-amz-request-id"]
    assert (record.status, record.body_bytes, record.signature, record.signed_region) == (200, 4, "ok", running.region)
    assert record.answered_at
    assert before < record.received_at < record.answered_at < time.monotonic()
    record.headers.clear()
    assert only(seen(running, "recorded")).headers


def test_settle_waits_for_a_request_under_way(open_one: Sandbox) -> None:
    with Peer(open_one.redirector_url) as peer:
        peer.put_head("/store-slow-300ms.settle/k", 0)
        deadline = time.monotonic() + 5
        while not any(r.scenario for r in open_one.records if "settle" in r.target):
            assert time.monotonic() < deadline
        with pytest.raises(TimeoutError):
            open_one.settle(0.01)
        assert only(seen(open_one, "store-slow-300ms.settle")).status == 200


def test_an_idle_connection_is_closed() -> None:
    with start(idle_s=0.1) as running, Peer(running.store_url) as peer:
        assert peer.at_end()


def test_the_temporary_folder_is_removed_and_a_given_one_kept(tmp_path: Path) -> None:
    with start() as running:
        folder = Path(running.folder)
        assert folder.is_dir()
    assert not folder.exists()
    running.close()
    with start(str(tmp_path)) as running:
        call(running, "PUT", f"{running.store_url}/kept/k", b"kept")
    with start(str(tmp_path)) as running:
        assert running.object("kept", "k").content() == b"kept"


def sandbox_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if "sandbox" in thread.name}


def test_close_ends_the_thread_and_every_connection() -> None:
    threads = sandbox_threads()
    running = start(anonymous=True)
    with Peer(running.store_url) as idle, Peer(running.redirector_url) as busy:
        busy.put_head("/store-slow-60s/k", 10)
        idle.head("GET", "/bkt/k", {})
        assert idle.answer().status == 404
        running.close()
        for peer in (idle, busy):
            with contextlib.suppress(ConnectionResetError):
                assert peer.at_end()
    assert sandbox_threads() == threads
    with pytest.raises(OSError, match="refused"):
        Peer(running.store_url)


def test_a_port_in_use_is_an_error_and_leaves_nothing() -> None:
    threads = sandbox_threads()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for process in (False, True):
            with pytest.raises(OSError, match="in use"):
                start(store_port=taken.getsockname()[1], process=process)
    assert sandbox_threads() == threads


def test_it_listens_on_loopback_only() -> None:
    for host in ("0.0.0.0", "192.0.2.1", "::"):
        with pytest.raises(UsageError, match="loopback"):
            start(host=host)
    with start(host="127.0.0.1", store_host="127.0.0.2", anonymous=True) as running:
        assert "//127.0.0.2:" in running.store_url
        with Peer(running.redirector_url) as peer:
            peer.head("PUT", "/redirect-307/k", {"Content-Length": "0"})
            assert peer.answer()["location"].startswith(running.store_url)


def test_it_runs_in_a_process_of_its_own() -> None:
    with start(process=True, session_token=True) as running:
        client = s3_client(running, running.store_url)
        client.put_object(Bucket="apart", Key="k", Body=b"hi" * MIB)
        assert running.object("apart", "k").content() == b"hi" * MIB
        record = only(seen(running, "apart"))
        assert (record.status, record.body_bytes, record.signature) == (200, 2 * MIB, "ok")
        assert record.interims[0][0] == 100
        assert isinstance(record.head, bytes)
        assert record.answered_at
        assert record.answered_at < time.monotonic()
        folder = Path(running.folder)
    assert not folder.exists()
    with pytest.raises(OSError, match="refused"):
        Peer(running.store_url)


def test_the_process_ends_with_its_parent() -> None:
    code = "import os; from engine.sandbox import start; s = start(process=True); print(s.store_url, s.folder); os._exit(0)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    url, folder = done.stdout.split()
    deadline = time.monotonic() + 10
    while True:
        try:
            Peer(url).socket.close()
        except ConnectionRefusedError:
            if not Path(folder).exists():
                break
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_run_forever_says_how_to_use_it_and_ends_at_ctrl_c(tmp_path: Path) -> None:
    # Tests in the background of a shell ignore SIGINT, and so would their children.
    code = """import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from engine.sandbox import run_forever
run_forever(sys.argv[1], anonymous=True)"""
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    said = ""
    while "Ctrl-C" not in said:
        line = child.stdout.readline()
        assert line, said
        said += line
    for expected in ("export AWS_ACCESS_KEY_ID=", "export AWS_ENDPOINT_URL_S3=", "redirect-<3xx>", str(tmp_path)):
        assert expected in said
    url = re.search(r"redirecting endpoint +(\S+)", said)
    assert url
    with Peer(url[1]) as peer:
        peer.put_head("/redirect-307/k", 10)
        peer.answer()
    line = child.stdout.readline()
    assert line.startswith("redirector PUT /redirect-307/k → 307 TemporaryRedirect, 0 body bytes")
    child.send_signal(signal.SIGINT)
    _out, errors = child.communicate(timeout=10)
    assert (child.returncode, errors) == (0, "")


def test_an_error_inside_the_sandbox_is_a_500(open_one: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    Path(open_one.folder, "broken-folder").write_text("not a folder")
    with Peer(open_one.store_url) as peer:
        peer.head("PUT", "/broken-folder/k", {"Content-Length": "0"})
        assert peer.answer().code == "InternalError"


def test_nothing_of_the_client_is_used_but_values() -> None:
    """What checks the client must not be the client."""
    allowed = {"engine", "engine.errors", "engine.signing"}
    for path in sorted((ROOT / "engine" / "sandbox").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name.split(".")[0] == "engine" and not name.startswith("engine.sandbox"):
                    assert name in allowed, f"{path.name} imports {name}"
            if isinstance(node, ast.ImportFrom) and node.module == "engine.signing":
                assert [alias.name for alias in node.names] == ["Credentials"], path.name


def test_python_s_own_client_reads_what_is_stored(open_one: Sandbox) -> None:
    request = urllib.request.Request(f"{open_one.store_url}/urllib/k", b"hi", method="PUT")
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.status == 200
    with urllib.request.urlopen(f"{open_one.store_url}/urllib/k", timeout=10) as response:
        assert response.read() == b"hi"
