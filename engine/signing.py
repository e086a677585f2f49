"""AWS Signature Version 4 for S3, in header form: pure, time and payload hash come in as arguments.

Owns the canonical request and the `Credentials` value. Knows nothing of where credentials come from (credentials.py) or where
a request goes (s3.py, redirect.py). The caller puts the fields that `sign` returns into the head unchanged, and sends the very
`Url` and fields it gave to `sign`; another host, path, query or signed field needs another signature.

Source: "Signature Calculations for the Authorization Header" in the S3 API reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from hashlib import sha256
from hmac import digest as hmac_digest
from typing import Any, Final
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes

from engine.errors import CredentialsError, UsageError
from engine.wire import Field, Url

UNSIGNED_PAYLOAD: Final = "UNSIGNED-PAYLOAD"
STREAMING_UNSIGNED_PAYLOAD_TRAILER: Final = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"

# Fields that are not signed. Hops may rewrite the connection's own (RFC 9110 section 7.6.1) and the tracing ones; an Expect is
# left out when a 417 makes us ask again; Google's front end rewrites Accept-Encoding; framing is not part of the intent.
UNSIGNED_FIELDS: Final = frozenset(
    {
        "accept-encoding",
        "baggage",
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "x-amzn-trace-id",
    }
)
_OWN_FIELDS: Final = frozenset({"authorization", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token"})
_SIGNING_KEYS_MAX: Final = (
    16  # (date, region, service) per credentials: a client talks to few regions, and midnight adds one
)

# What canonical percent-encoding lets stand: unreserved characters and upper-case escapes of the others (RFC 3986 section 2.3).
_ESCAPED = r"%(?:[0189A-F][0-9A-F]|2[0-9A-CF]|3[A-F]|40|5[B-E]|60|7[B-DF])"
_CANONICAL_PATH = re.compile(rf"[A-Za-z0-9\-._~/]*(?:(?!%2F){_ESCAPED}[A-Za-z0-9\-._~/]*)*\Z")
_CANONICAL_QUERY = re.compile(rf"[A-Za-z0-9\-._~=&]*(?:{_ESCAPED}[A-Za-z0-9\-._~=&]*)*\Z")
_REGION = re.compile(r"[A-Za-z0-9._\-]{1,63}\Z")
_BAD_ACCESS_KEY = re.compile(r"[^\x21-\x7e]|,")
_BAD_SECRET_KEY = re.compile(r"[\x00-\x1f\x7f]|\A\s|\s\Z")
_BAD_TOKEN = re.compile(r"[^\x21-\x7e]")


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What a request is signed with. Picklable, for workers; `repr` and `str` show four characters of the access key.

    Attributes:
      access_key: sent in the clear with every request.
      secret_key: never sent.
      token: session token of temporary credentials, None without ("" counts as None).
      expires_at: seconds since the epoch after which the server will refuse them, None when they don't expire.

    Raises CredentialsError for an empty key and for characters that no key has, e.g. the newline of the file it was read from.
    """

    access_key: str
    secret_key: str
    token: str | None = None
    expires_at: float | None = None
    # Signing keys, by (date, region, service). Here and not in a module-wide cache: what is derived from a secret lives as
    # long as the secret does, and looking one up hashes no secret.
    _signing_keys: dict[tuple[str, str, str], bytes] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        for name, value, bad in (
            ("access_key", self.access_key, _BAD_ACCESS_KEY),
            ("secret_key", self.secret_key, _BAD_SECRET_KEY),
            ("token", self.token or "-", _BAD_TOKEN),
        ):
            if not isinstance(value, str):
                raise CredentialsError(f"credentials: {name} is {type(value).__name__}, not str")
            if not value:
                raise CredentialsError(f"credentials: {name} is empty")
            if bad.search(value):
                raise CredentialsError(
                    f"credentials: {name} has a character which no {name} has; "
                    "was a space, newline or comma copied along with it?"
                )
        if not self.token:
            object.__setattr__(self, "token", None)

    def __repr__(self) -> str:
        expires = "" if self.expires_at is None else f", expires_at={self.expires_at:.0f}"
        token = "" if self.token is None else ", token=…"
        # A short key, as test servers have, is not shown at all.
        shown = self.access_key[:4] if len(self.access_key) >= 16 else ""
        return f"Credentials({shown}…, secret_key=…{token}{expires})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Credentials, (self.access_key, self.secret_key, self.token, self.expires_at))


def quote_key(key: str) -> str:
    """Percent-encode an object's key for the path of a URL: UTF-8, "/" and RFC 3986's unreserved characters stay.

    Raises UsageError for a key that is not Unicode text (lone surrogates, as in undecodable file names).
    """
    try:
        return quote(key, safe="/")
    except UnicodeEncodeError:
        raise UsageError(f"key {key!a}: not valid Unicode; an S3 key is UTF-8 text") from None


def canonical_path(path: str) -> str:
    """A path as the signature wants it: decoded and encoded again, as S3, Ceph, MinIO and AIStore do with what they receive.

    What `quote_key` made stays as it is; dot segments and empty ones stay, S3 does not normalise. A request to be signed had
    better be sent with this path too: then servers that take the path as received (Garage) agree as well.
    """
    if _CANONICAL_PATH.match(path):
        return path
    return quote_from_bytes(unquote_to_bytes(path), safe="/")


def canonical_query(query: str | None) -> str:
    """A query as the signature wants it: names and values encoded strictly, sorted by both, every name with "=".

    "+" is a space, as S3, Ceph and every Go server read it. Empty parameters ("a&&b") are dropped.
    """
    if not query:
        return ""
    strict = _CANONICAL_QUERY.match(query) is not None
    pairs = []
    for parameter in query.split("&"):
        if not parameter:
            continue
        name, _equals, value = parameter.partition("=")
        if not strict or "=" in value:
            name, value = _encode_strictly(name), _encode_strictly(value)
        pairs.append((name, value))
    pairs.sort()
    return "&".join([f"{name}={value}" for name, value in pairs])


def _encode_strictly(text: str) -> str:
    return quote_from_bytes(unquote_to_bytes(text.replace("+", " ")), safe="")


def sign(
    credentials: Credentials,
    method: str,
    url: Url,
    fields: Iterable[Field],
    *,
    region: str,
    now: datetime,
    payload_hash: str = UNSIGNED_PAYLOAD,
    service: str = "s3",
) -> list[Field]:
    """The fields to add to a request so that it is signed: x-amz-date, x-amz-content-sha256, x-amz-security-token (with a
    token) and authorization. Host and `fields` are signed, but for UNSIGNED_FIELDS.

    Args:
      method: as on the wire, case included.
      fields: those that will be sent. A Host among them must be `url.authority`.
      region: the signing region, e.g. "eu-central-1".
      now: aware; the server refuses one more than 15 minutes off its own clock.
      payload_hash: UNSIGNED_PAYLOAD, STREAMING_UNSIGNED_PAYLOAD_TRAILER, or the body's SHA-256 in lower-case hex.

    Raises UsageError: a naive `now`, a malformed region, a field that signing adds itself, a Host of another origin.
    """
    amz_date = format_date(now)
    headers = _signed_headers(credentials, url.authority, fields, amz_date, payload_hash)
    names = sorted(headers)
    canonical = _canonical_request(method, url.path, url.query, names, headers, payload_hash)
    scope = f"{amz_date[:8]}/{region}/{service}/aws4_request"
    signature = _signature(credentials, canonical, amz_date, region, service, scope)
    return _added(credentials, amz_date, payload_hash, scope, names, signature)


def _signed_headers(
    credentials: Credentials, authority: str, fields: Iterable[Field], amz_date: str, payload_hash: str
) -> dict[str, str]:
    headers = {"host": authority, "x-amz-content-sha256": payload_hash, "x-amz-date": amz_date}
    if credentials.token is not None:
        headers["x-amz-security-token"] = credentials.token
    for name, value in fields:
        lowered = name.lower()
        if lowered in UNSIGNED_FIELDS:
            continue
        value = " ".join(value.split())
        if lowered not in headers and lowered not in _OWN_FIELDS:
            headers[lowered] = value
        elif lowered in _OWN_FIELDS:
            raise UsageError(f"header {name}: set by the signature; leave it out")
        elif lowered == "host":
            if value != authority:
                raise UsageError(f"header Host: {value!r} is not the URL's {authority!r}")
        else:
            headers[lowered] += f",{value}"
    return headers


def _added(
    credentials: Credentials, amz_date: str, payload_hash: str, scope: str, names: Sequence[str], signature: str
) -> list[Field]:
    added = [("x-amz-date", amz_date), ("x-amz-content-sha256", payload_hash)]
    if credentials.token is not None:
        added.append(("x-amz-security-token", credentials.token))
    added.append(
        (
            "authorization",
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={';'.join(names)}, "
            f"Signature={signature}",
        )
    )
    return added


class Signer:
    """`sign` for requests that differ in path and time only: what they have in common is put together once a second.

    Arguments as `sign`'s; the path of `url` is not looked at, and it has no query. Raises UsageError as `sign` does.
    """

    def __init__(
        self,
        credentials: Credentials,
        method: str,
        url: Url,
        fields: Sequence[Field],
        *,
        region: str,
        service: str = "s3",
    ) -> None:
        assert url.query is None
        self.credentials = credentials
        self._method, self._url, self._fields = method, url, fields
        self._region, self._service = region, service
        self._second = -1  # what follows is good for it

    def text(self, path: str, now: float) -> bytes:
        """The fields that `sign` adds, as the last lines of a head, with the empty line behind them.

        `path`: canonical, see `canonical_path`. `now`: seconds since the epoch.
        """
        if int(now) != self._second:
            self._prepare(int(now))
        digest = sha256(f"{self._before}{path}{self._after}".encode()).hexdigest()
        # RFC 2104 section 4: a key is hashed once. OpenSSL's HMAC takes longer to begin than this takes in all.
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(f"{self._to_sign}{digest}".encode())
        outer.update(inner.digest())
        return f"{self._lines}{outer.hexdigest()}\r\n\r\n".encode()

    def _prepare(self, second: int) -> None:
        amz_date = format_date(datetime.fromtimestamp(second, timezone.utc))
        headers = _signed_headers(self.credentials, self._url.authority, self._fields, amz_date, UNSIGNED_PAYLOAD)
        names, scope = sorted(headers), f"{amz_date[:8]}/{self._region}/{self._service}/aws4_request"
        self._before = f"{self._method}\n"
        canonical = _canonical_request(self._method, "/", None, names, headers, UNSIGNED_PAYLOAD)
        self._after = canonical[len(self._before) + 1 :]
        self._to_sign = f"AWS4-HMAC-SHA256\n{amz_date}\n{scope}\n"
        key = _signing_key(self.credentials, amz_date[:8], self._region, self._service).ljust(64, b"\0")
        self._inner, self._outer = (sha256(bytes(byte ^ pad for byte in key)) for pad in (0x36, 0x5C))
        added = _added(self.credentials, amz_date, UNSIGNED_PAYLOAD, scope, names, "")
        self._lines = "".join([f"{name.title()}: {value}\r\n" for name, value in added]).removesuffix("\r\n")
        self._second = second


def format_date(now: datetime) -> str:
    """The text of x-amz-date, as in "20130524T000000Z". Raises UsageError when `now` is naive."""
    if now.tzinfo is not timezone.utc:
        if now.tzinfo is None:
            raise UsageError("now: a datetime without a time zone; use datetime.now(timezone.utc)")
        now = now.astimezone(timezone.utc)
    # Not strftime, which takes 2.4 times as long.
    return "%04d%02d%02dT%02d%02d%02dZ" % (now.year, now.month, now.day, now.hour, now.minute, now.second)  # noqa: UP031


def _canonical_request(
    method: str, path: str, query: str | None, names: Sequence[str], headers: dict[str, str], payload_hash: str
) -> str:
    lines = "".join([f"{name}:{headers.get(name, '')}\n" for name in names])
    signed = ";".join(names)
    return f"{method}\n{canonical_path(path)}\n{canonical_query(query)}\n{lines}\n{signed}\n{payload_hash}"


def _signature(credentials: Credentials, canonical: str, amz_date: str, region: str, service: str, scope: str) -> str:
    key = _signing_key(credentials, amz_date[:8], region, service)
    text = f"AWS4-HMAC-SHA256\n{amz_date}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
    return hmac_digest(key, text.encode(), "sha256").hex()


def _signing_key(credentials: Credentials, date: str, region: str, service: str) -> bytes:
    found = credentials._signing_keys.get((date, region, service))
    return _derive_signing_key(credentials, date, region, service) if found is None else found


def _derive_signing_key(credentials: Credentials, date: str, region: str, service: str) -> bytes:
    if not _REGION.match(region):
        raise UsageError(f"region {region!r}: letters, digits, '.', '_' and '-' only, at most 63")
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac_digest(key, part.encode(), "sha256")
    keys = credentials._signing_keys
    if len(keys) >= _SIGNING_KEYS_MAX:
        keys.clear()
    keys[date, region, service] = key
    return key
