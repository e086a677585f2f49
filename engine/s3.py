"""What is S3 about a request: destinations, addresses, header fields, error documents, and the names S3 itself answers to.

Pure: no network, clock or environment. Knows nothing of redirects' policy (redirect.py) or signatures (signing.py).
Sources: "Virtual hosting of buckets", "Bucket naming rules", "Creating object key names", "Error responses" and "Request
redirection and the REST API" of the S3 user guide; endpoint names are compared with botocore's rule set by the tests.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import md5
from typing import Final, Literal, NamedTuple
from urllib.parse import quote, urlencode
from xml.parsers import expat

from engine import limits
from engine.errors import AccessDenied, NotFound, PreconditionFailed, ResponseError, SlowDown, UsageError
from engine.signing import quote_key
from engine.wire import DEFAULT_PORTS, Field, Url, check_field, is_address, parse_url, printable, without_secrets

Addressing = Literal["auto", "path", "virtual"]

# The DNS suffix of every AWS partition and the regions in it.
_PARTITIONS: Final = (
    ("amazonaws.com", r"(?:(?!cn)[a-z]{2}|us-gov)-[a-z]+-[0-9]{1,2}"),
    ("amazonaws.com.cn", r"cn-[a-z]+-[0-9]{1,2}"),
    ("amazonaws.eu", r"eusc-[a-z]+-[a-z]+-[0-9]{1,2}"),
    ("c2s.ic.gov", r"us-iso-[a-z]+-[0-9]{1,2}"),
    ("sc2s.sgov.gov", r"us-isob-[a-z]+-[0-9]{1,2}"),
    ("cloud.adc-e.uk", r"eu-isoe-[a-z]+-[0-9]{1,2}"),
    ("csp.hci.ic.gov", r"us-isof-[a-z]+-[0-9]{1,2}"),
)
_REGION = re.compile(r"[a-z0-9-]{1,63}\Z")
_AWS_REGION = r"[a-z]{2,4}(?:-[a-z]+)+-[0-9]{1,2}"
_ZONE = r"[a-z0-9]+(?:-[a-z0-9]+)*-az[0-9]+"
# Without the suffix. "s3-website…", "s3-accesspoint", "s3-control" are not here: nothing is PUT there, or it is not the bucket.
_S3_HOST = re.compile(
    rf"(?:(?P<bucket>.+)\.)?"
    rf"(?P<service>s3|s3-fips|s3-accelerate|s3-external-[12]|s3(?:-fips)?-(?P<dashed>{_AWS_REGION})"
    rf"|s3express(?:-fips)?-(?P<zone>{_ZONE}))"
    rf"(?P<dualstack>\.dualstack)?(?:\.(?P<region>{_AWS_REGION}))?\Z"
)
_DIRECTORY_BUCKET = re.compile(rf".+--(?P<zone>{_ZONE})--x-s3\Z")

# AWS, "General purpose bucket naming rules".
_AWS_BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]\Z")
# us-east-1 before March 2018; still there, path-style only.
_LEGACY_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,254}\Z")
# S3-compatibles: MinIO and Garage take AWS's names, Ceph those of old with "tenant:" before them, AIStore capitals.
_ANY_BUCKET = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._\-]|:(?!:)){0,254}\Z")
_IPV4_SHAPE = re.compile(r"[0-9]+(?:\.[0-9]+){3}\Z")

REGIONS_MAX: Final = 4096  # buckets whose region one client remembers; about 1 MB


# --- destinations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class S3Destination:
    """An object: `key` is literal text, not percent-encoded; "" names the bucket itself."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def parse_destination(text: str, *, allow_bucket: bool = False) -> S3Destination | Url:
    """ "s3://bucket/key" or an http(s) URL.

    The key is everything after "bucket/", literal: no percent-decoding, "?" and "#" are bytes of the key.
    Bucket names: letters, digits, ".", "-", "_" and one ":" here or there (Ceph's "tenant:bucket"), 1–255 of them, beginning
    with a letter or digit; AWS's own rules are applied by `address`, which knows where the name goes. Every character is
    good in a key, control characters too (S3 stores them), but NUL: servers written in C cut the name there.

    Raises UsageError.
    """
    if not isinstance(text, str):
        raise UsageError(f"destination: {type(text).__name__} instead of str ('s3://bucket/key' or an http(s) URL)")
    scheme, colon, rest = text.partition(":")
    if not colon or scheme.lower() not in ("s3", *DEFAULT_PORTS):
        raise UsageError(f"destination {_excerpt(text)}: begin it with s3://, https:// or http://")
    if scheme.lower() != "s3":
        return parse_url(text)
    if not rest.startswith("//"):
        raise UsageError(f"destination {_excerpt(text)}: '//' is missing after 's3:'")
    bucket, _slash, key = rest[2:].partition("/")
    check_bucket(bucket)
    if not key and not allow_bucket:
        raise UsageError(f"destination {_excerpt(text)}: the key is missing; write s3://{bucket}/name-of-the-object")
    check_key(key)
    return S3Destination(bucket, key)


def check_bucket(bucket: str, *, aws: bool = False, addressing: Addressing = "auto") -> None:
    """Raises UsageError for a name that cannot be a bucket's. `aws`: by AWS's rules for general purpose buckets; names of
    us-east-1 before 2018 (capitals, "_", up to 255 characters) then need `addressing="path"`."""
    if not bucket:
        raise UsageError("the bucket's name is empty; write s3://bucket/key")
    if bucket.startswith("arn:"):
        raise UsageError(f"bucket {_excerpt(bucket)}: give the access point's alias ('…-s3alias') instead of its ARN")
    if not _ANY_BUCKET.match(bucket):
        raise UsageError(
            f"bucket {_excerpt(bucket)}: a name is 1 to 255 letters, digits, '.', '-' and '_', the first a letter or digit"
        )
    if not aws or (addressing == "path" and _LEGACY_BUCKET.match(bucket)):
        return
    if not _AWS_BUCKET.match(bucket) or ".." in bucket or _IPV4_SHAPE.match(bucket):
        raise UsageError(
            f"bucket {_excerpt(bucket)}: on AWS a name has 3 to 63 lower-case letters, digits, '.' and '-', begins and ends "
            "with a letter or digit, and is no IP address; a bucket of before 2018 with another name needs addressing='path'"
        )


def check_key(key: str) -> None:
    """Raises UsageError: longer than 1024 bytes in UTF-8, lone surrogates, NUL."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise UsageError(
            f"key {_excerpt(key)}: not valid Unicode (a file name that is not UTF-8?); give the key another name"
        ) from None
    if size > limits.KEY_MAX_BYTES:
        raise UsageError(
            f"key {_excerpt(key)}: {size} bytes in UTF-8; S3 stores at most {limits.KEY_MAX_BYTES}, shorten it"
        )
    if "\0" in key:
        raise UsageError(f"key {_excerpt(key)}: a NUL character; some servers cut the name there, so it is not sent")


def _excerpt(text: str) -> str:
    return f"'{printable(text, 120)}'"


# --- endpoints and addresses ----------------------------------------------------------------------------------------


class S3Host(NamedTuple):
    """The parts of one of S3's own host names. `bucket` is "" for path-style; `region` is "" for the global names."""

    bucket: str
    region: str
    suffix: str
    express: bool
    dualstack: bool
    fips: bool
    accelerate: bool


def split_s3_host(host: str) -> S3Host | None:
    """The parts of `host` when it is S3's own, else None.

    Exactly [bucket.](s3|s3-<region>|s3-fips|s3-accelerate|s3-external-N|s3express-<zone>)[.dualstack][.<region>].<suffix>:
    other names under amazonaws.com (EC2, ELB, RDS …) are chosen by anyone.
    """
    for suffix, regions in _PARTITIONS:
        found = _S3_HOST.match(host.removesuffix("." + suffix)) if host.endswith("." + suffix) else None
        if found is None:
            continue
        service, region = found["service"], found["region"] or found["dashed"] or ""
        if region and not re.fullmatch(regions, region):
            return None
        if found["region"] and (found["dashed"] or service.startswith(("s3-accelerate", "s3-external"))):
            return None
        if not region and (found["zone"] or service == "s3-fips"):
            return None
        return S3Host(
            bucket=found["bucket"] or "",
            region="us-east-1" if service.startswith("s3-external") else region,
            suffix=suffix,
            express=found["zone"] is not None,
            dualstack=found["dualstack"] is not None,
            fips="-fips" in service,
            accelerate=service == "s3-accelerate",
        )
    return None


def is_s3_host(host: str, bucket: str) -> bool:
    """Whether `host` is S3's own, path-style or with this bucket before it."""
    parts = split_s3_host(host)
    return parts is not None and parts.bucket in ("", bucket)


def is_region(text: str) -> bool:
    """Whether `text` may be a signing region, on AWS or elsewhere. Anything else must not get near a host name."""
    return _REGION.match(text) is not None


def partition_suffix(region: str) -> str | None:
    """The DNS suffix of the AWS partition that has `region`; None when AWS has no such name."""
    return next((suffix for suffix, regions in _PARTITIONS if re.fullmatch(regions, region)), None)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service is. For AWS one region's (or the global) S3, for others whatever the user named.

    Attributes:
      region: to sign for, as long as nothing better is known.
      base_path: "" or "/prefix", put before every path.
      aws: S3 itself, so that another region has another host name.
    """

    scheme: str
    host: str
    port: int
    region: str
    base_path: str = ""
    aws: bool = False
    dualstack: bool = False
    fips: bool = False
    accelerate: bool = False

    @classmethod
    def for_aws(cls, region: str, *, dualstack: bool = False, fips: bool = False, accelerate: bool = False) -> Endpoint:
        """S3 in `region`, as botocore's endpoint rules have it. Raises UsageError: no such name, flags at odds."""
        if region == "aws-global":
            region = "us-east-1"
        if partition_suffix(region) is None:
            raise UsageError(
                f"region {_excerpt(region)}: AWS has no region of that form ('eu-west-1'); for another store give endpoint_url"
            )
        if accelerate and fips:
            raise UsageError("S3 Transfer Acceleration has no FIPS endpoint: choose one of accelerate and fips")
        if fips and region.startswith("cn-"):
            raise UsageError(f"region {region}: the China regions have no FIPS endpoints")
        host = _aws_host(region, dualstack=dualstack, fips=fips, accelerate=accelerate)
        return cls("https", host, 443, region, aws=True, dualstack=dualstack, fips=fips, accelerate=accelerate)

    @classmethod
    def from_url(cls, url: str, region: str = "") -> Endpoint:
        """The endpoint a user named. `region`: the configured one; a regional AWS name has its own, which then holds.

        Raises UsageError: not a URL, a query, a host with a bucket in it.
        """
        parsed = parse_url(url)
        if parsed.query is not None:
            raise UsageError(f"endpoint_url {parsed.redacted()}: an endpoint has no query")
        if region and not is_region(region):
            raise UsageError(f"region {_excerpt(region)}: letters a–z, digits and '-' only")
        parts = split_s3_host(parsed.host)
        if parts is not None and (parts.bucket or parts.express):
            raise UsageError(
                f"endpoint_url {parsed}: leave it out, or name the region's endpoint (https://s3.<region>.{parts.suffix}); "
                "the bucket comes from the destination"
            )
        if parts is None:
            return cls(parsed.scheme, parsed.host, parsed.port, region or "us-east-1", parsed.path.rstrip("/"))
        return cls(
            parsed.scheme,
            parsed.host,
            parsed.port,
            parts.region or region or "us-east-1",
            parsed.path.rstrip("/"),
            aws=True,
            dualstack=parts.dualstack,
            fips=parts.fips,
            accelerate=parts.accelerate,
        )

    def for_region(self, region: str) -> Endpoint:
        """The same service in `region`: another host on AWS, the same one elsewhere (only the signature changes).

        Raises UsageError on AWS for a name that is no region, or one of another partition, where the credentials are not known.
        """
        if region == self.region or not self.aws:
            return replace(self, region=region)
        suffix = partition_suffix(region)
        if suffix is None or suffix != self.suffix:
            raise UsageError(f"region {_excerpt(region)}: none of the AWS partition of {self.host}")
        host = _aws_host(region, dualstack=self.dualstack, fips=self.fips, accelerate=self.accelerate)
        return replace(self, region=region, host=host)

    @property
    def suffix(self) -> str:
        """The DNS suffix of the AWS partition, "" elsewhere."""
        parts = split_s3_host(self.host) if self.aws else None
        return parts.suffix if parts else ""


def _aws_host(region: str, *, dualstack: bool, fips: bool, accelerate: bool) -> str:
    dual = ".dualstack" if dualstack else ""
    suffix = partition_suffix(region)
    if accelerate:
        return f"s3-accelerate{dual}.{suffix}"
    return f"s3{'-fips' if fips else ''}{dual}.{region}.{suffix}"


def address(
    endpoint: Endpoint,
    bucket: str,
    key: str = "",
    *,
    region: str = "",
    addressing: Addressing = "auto",
    query: Sequence[Field] = (),
) -> Url:
    """The URL of an object, or of the bucket when `key` is "".

    `region`: the bucket's, when it is known; "" means the endpoint's. `addressing`: "auto" is virtual-host on AWS for
    buckets without dots, path-style otherwise. A directory bucket ("…--usw2-az1--x-s3") goes to its zone's host.
    `query`: names and values, not encoded; a value of "" gives a bare name ("?uploads").

    Raises UsageError: a bucket's name that cannot be there, virtual-host on an IP address.
    """
    if region:
        endpoint = endpoint.for_region(region)
    check_bucket(bucket, aws=endpoint.aws, addressing=addressing)
    host = _virtual_host(endpoint, bucket, addressing)
    path = object_path(endpoint.base_path, "" if host else bucket, key)
    encoded = "&".join(f"{quote(n, safe='')}={quote(v, safe='')}" if v else quote(n, safe="") for n, v in query)
    return Url(endpoint.scheme, host or endpoint.host, endpoint.port, path, encoded or None)


def object_path(base_path: str, bucket: str, key: str) -> str:
    """The path of a URL, percent-encoded. `bucket`: "" when the host has it. `key`: "" for the bucket itself."""
    if not bucket:
        return f"{base_path}/{quote_key(key)}"
    return f"{base_path}/{quote(bucket, safe='')}" + (f"/{quote_key(key)}" if key else "")


def _virtual_host(endpoint: Endpoint, bucket: str, addressing: Addressing) -> str:
    """The host with the bucket in it, "" for path-style."""
    directory = _DIRECTORY_BUCKET.match(bucket) if endpoint.aws else None
    if directory:
        fips, dual = "-fips" if endpoint.fips else "", ".dualstack" if endpoint.dualstack else ""
        return f"{bucket}.s3express{fips}-{directory['zone']}{dual}.{endpoint.region}.{endpoint.suffix}"
    if addressing == "path" or (addressing == "auto" and (not endpoint.aws or "." in bucket)):
        if endpoint.accelerate:
            raise UsageError(
                f"bucket '{bucket}': S3 Transfer Acceleration takes no dots in names and no addressing='path'"
            )
        return ""
    if endpoint.aws and "." in bucket and endpoint.scheme == "https":
        raise UsageError(f"bucket '{bucket}': S3's certificate covers no names with dots; use addressing='path'")
    if is_address(endpoint.host) or not _AWS_BUCKET.match(bucket):
        raise UsageError(
            f"addressing='virtual': '{bucket}' cannot stand before '{endpoint.host}'; use addressing='path'"
        )
    return f"{bucket}.{endpoint.host}"


def signing_service(url: Url) -> str:
    """The service name in the credential scope: directory buckets have their own (session authorisation disabled)."""
    parts = split_s3_host(url.host)
    return "s3express" if parts is not None and parts.express else "s3"


class RegionCache:
    """Buckets' regions as answers told them, for the life of a client. Bounded: the least recently used one goes.

    The caller stores a fact once the hop which used it got an answer that is not another redirect, and forgets it when it
    was contradicted (a redirect from there, or 404 NoSuchBucket: deleted and made again elsewhere). Where a 307 led is never
    stored: AWS says that it is good for that request only.
    """

    __slots__ = ("_capacity", "_regions")

    def __init__(self, capacity: int = REGIONS_MAX) -> None:
        self._capacity = capacity
        self._regions: OrderedDict[str, str] = OrderedDict()

    def get(self, bucket: str) -> str:
        """The region, "" when not known."""
        region = self._regions.get(bucket, "")
        if region:
            self._regions.move_to_end(bucket)
        return region

    def learn(self, bucket: str, region: str) -> None:
        if not bucket or not is_region(region):
            return
        self._regions[bucket] = region
        self._regions.move_to_end(bucket)
        if len(self._regions) > self._capacity:
            self._regions.popitem(last=False)

    def forget(self, bucket: str) -> None:
        self._regions.pop(bucket, None)

    def __len__(self) -> int:
        return len(self._regions)


# --- documents ------------------------------------------------------------------------------------------------------


# A small document can ask for much memory: long names nested, and many small elements below them.
XML_PATH_MAX_CHARS: Final = 200  # S3's longest are below 60
XML_LEAVES_MAX: Final = 20_000  # ListParts tells at most 1000 parts, each with below 10 facts


class XmlError(ValueError):
    """A document that is not well-formed, has a DOCTYPE, or is larger or deeper than `limits` allow."""


def xml_leaves(body: bytes, *, max_bytes: int = limits.XML_MAX_BYTES) -> list[tuple[str, str]]:
    """Every element without children, as (path, text) in document order: ("Error/Code", "NoSuchBucket").

    Namespaces and attributes are dropped; UTF-8 is taken whatever the declaration says, UTF-16 only with a byte order mark. A
    DOCTYPE is refused, so there are no entities to expand. Raises XmlError.
    """
    if len(body) > max_bytes:
        raise XmlError(f"{len(body)} bytes of XML, at most {max_bytes} are read")
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    leaves: list[tuple[str, str]] = []
    open_paths: list[str] = []
    text: list[str] = []
    childless = False

    def started(name: str, _attributes: object) -> None:
        nonlocal childless
        local = name.rpartition(":")[2]
        path = f"{open_paths[-1]}/{local}" if open_paths else local
        if len(open_paths) >= limits.XML_MAX_DEPTH or len(path) > XML_PATH_MAX_CHARS:
            raise XmlError("nested too deeply")
        open_paths.append(path)
        text.clear()
        childless = True

    def ended(_name: str) -> None:
        nonlocal childless
        path = open_paths.pop()
        if childless:
            if len(leaves) >= XML_LEAVES_MAX:
                raise XmlError("too many elements")
            leaves.append((path, "".join(text).strip()))
        childless = False

    def refused(*_details: object) -> None:
        raise XmlError("a DOCTYPE")

    parser.StartElementHandler = started
    parser.EndElementHandler = ended
    parser.CharacterDataHandler = text.append
    parser.StartDoctypeDeclHandler = refused
    parser.EntityDeclHandler = refused
    try:
        # S3 sends white space to keep a connection alive while it completes an upload, before the document.
        parser.Parse(body.lstrip(), True)
    except expat.ExpatError as error:
        raise XmlError(str(error)) from None
    return leaves


@dataclass(frozen=True, slots=True)
class ErrorDocument:
    """What an S3 error says; every part is "" when it is missing. Bounded and printable; the peer's word, not to be trusted."""

    code: str = ""
    message: str = ""
    region: str = ""
    endpoint: str = ""
    request_id: str = ""
    host_id: str = ""
    bucket: str = ""

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) for f in fields(self))


NO_DOCUMENT: Final = ErrorDocument()

# Everything else an error document may hold stays out of ours: S3 echoes the session token in <Token-0> of ExpiredToken, and
# the string to sign in SignatureDoesNotMatch.
_ERROR_ELEMENTS: Final = {
    "Error/Code": ("code", 128),
    "Error/Message": ("message", limits.SERVER_MESSAGE_MAX_CHARS),
    "Error/Region": ("region", 64),
    "Error/Endpoint": ("endpoint", 300),
    "Error/RequestId": ("request_id", 128),
    "Error/HostId": ("host_id", 256),
    "Error/Bucket": ("bucket", 255),
    "Error/BucketName": ("bucket", 255),
}


def parse_error(body: bytes) -> ErrorDocument:
    """The error in an answer's body. Never raises: what is not one gives an empty document."""
    try:
        leaves = xml_leaves(body)
    except XmlError:
        return ErrorDocument()
    found: dict[str, str] = {}
    for path, text in leaves:
        if text and path in _ERROR_ELEMENTS:
            name, limit = _ERROR_ELEMENTS[path]
            found.setdefault(name, printable(text, limit))
    return ErrorDocument(**found)


# --- errors from answers --------------------------------------------------------------------------------------------

# botocore's tables (retries/standard.py, data/_retry.json "s3") and S3's "List of error codes".
THROTTLING_CODES: Final = frozenset(
    {
        "SlowDown",
        "SlowDownRead",  # MinIO
        "SlowDownWrite",  # MinIO
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "TooManyRequests",
        "TooManyRequestsException",
        "PriorRequestNotComplete",
    }
)
TRANSIENT_CODES: Final = frozenset(
    {
        "RequestTimeout",  # 400: the server saw no body bytes for a while
        "RequestTimeoutException",
        "InternalError",
        "ServiceUnavailable",
        "OperationAborted",  # 409: "a conflicting conditional operation is in progress; try again"
        "ConditionalRequestConflict",  # 409: S3 asks to send the write again; the condition is judged again
        "BadDigest",  # 400: bytes changed on the way; botocore sends again, and so do we, the sums are of the same source
    }
)
TRANSIENT_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504, 509})

_HINTS: Final = {
    "AccessDenied": "the credentials lack the permission, or a policy of the bucket forbids it",
    "InvalidAccessKeyId": "this store does not know the access key",
    "SignatureDoesNotMatch": "the secret key is wrong, or something between here and the store changed the request",
    "ExpiredToken": "the session token has expired; get new credentials",
    "InvalidToken": "the session token does not belong to this access key or store",
    "TokenRefreshRequired": "get new credentials",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "NoSuchBucket": "check the bucket's name and the endpoint",
    "EntityTooLarge": "the store takes no object of this size by one PUT: use upload",
    "MissingContentLength": "the store wants the length first: give size=, or use upload",
    "AuthorizationHeaderMalformed": "check region=",
    "IllegalLocationConstraintException": "check region=",
    "KMS.DisabledException": "the KMS key is disabled",
    "InvalidStorageClass": "this store has no such storage class",
    "NotImplemented": "this store lacks a feature that was asked for; leave out the option it names",
    "EntityTooSmall": "every part but the last needs a minimum size (on S3 5 MiB): give a larger part_size=",
    "NoSuchUpload": "the upload was completed or aborted, here or by a lifecycle rule, or it is at another endpoint",
    "QuotaExceeded": "the quota of the bucket or user is used up",
}
_STATUS_HINTS: Final = {
    401: "the server wants credentials, or other ones",
    403: "the credentials lack the permission, or are wrong for this endpoint and region",
    404: "check the bucket, the key and the endpoint",
    405: "the server takes no such request here; is this the right endpoint?",
    407: "the proxy wants credentials",
    411: "the server wants the length first: give size=, or use upload",
    412: "the condition (if_match or if_none_match) did not hold, nothing was stored",
    413: "the server takes no body of this size in one request: use upload",
    417: "the server refuses to be asked first: use expect='never'",
    507: "the store is full",
}


def is_throttled(status: int, code: str) -> bool:
    """Whether the server asks for fewer requests."""
    return status == 429 or code in THROTTLING_CODES


def is_transient(status: int, code: str) -> bool:
    """Whether the same request may succeed when sent again."""
    return status in TRANSIENT_STATUSES or code in TRANSIENT_CODES or is_throttled(status, code)


def error_for(
    what: str,
    status: int,
    document: ErrorDocument,
    *,
    conditional: bool = False,
    maybe_own: bool = False,
    request_id: str = "",
    host_id: str = "",
    retry_after_s: float | None = None,
    secrets: Iterable[str] = (),
) -> ResponseError:
    """The error for a final answer that is not what was asked for. The caller raises it.

    `what`: the request in words, secrets redacted ("PUT s3://bucket/key"). `conditional`: the request had if_match or
    if_none_match. `maybe_own`: an earlier attempt of the same call may have been carried out although its answer was lost
    (retry.Again.ambiguous), so that a 412 may have met our own object. `request_id`, `host_id`: from the fields
    (x-amz-request-id, x-amz-id-2), which HEAD answers have too. `secrets`: values that are cut out should the server echo them.
    """
    code = document.code
    said = printable(without_secrets(document.message, secrets), limits.SERVER_MESSAGE_MAX_CHARS)
    kind = _error_class(status, code, conditional)
    hint = _HINTS.get(code) or _STATUS_HINTS.get(status, "")
    if kind is PreconditionFailed and maybe_own:
        hint = (
            "but an earlier attempt of this call lost its answer and may have stored the object itself: "
            "compare its size and checksum (head) before calling this a conflict"
        )
    words = f"{what}: {status}" + (f" {code}" if code else "") + (f": {said.rstrip('.')}" if said else "")
    return kind(
        f"{words}. {hint[0].upper()}{hint[1:]}." if hint else f"{words}.",
        status=status,
        code=code,
        server_message=said,
        request_id=document.request_id or printable(request_id, 128),
        host_id=document.host_id or printable(host_id, 256),
        retry_after_s=retry_after_s,
        retryable=is_transient(status, code),
    )


def _error_class(status: int, code: str, conditional: bool) -> type[ResponseError]:
    if is_throttled(status, code):
        return SlowDown
    if status in (401, 403):
        return AccessDenied
    if status in (404, 410):
        return NotFound
    if status == 412 or (status == 409 and (conditional or code == "ConditionalRequestConflict")):
        return PreconditionFailed
    return ResponseError


# --- fields of an object's request ----------------------------------------------------------------------------------

_META_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_\-]*\Z")
_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]*"\Z')  # RFC 9110 section 8.8.3, ASCII only
_TAGS_MAX: Final = 10  # "Categorizing your storage using tags": 10 tags, keys of 128 and values of 256 characters


def object_fields(
    *,
    content_type: str | None = None,
    metadata: Mapping[str, str] | None = None,
    storage_class: str | None = None,
    acl: str | None = None,
    sse: str | None = None,
    sse_kms_key_id: str | None = None,
    sse_customer_key: bytes | None = None,
    request_payer: bool | str | None = None,
    tagging: Mapping[str, str] | str | None = None,
    if_none_match: str | None = None,
    if_match: str | None = None,
) -> list[Field]:
    """The header fields of API options; every value that the store judges goes there as given.

    `sse_customer_key`: 32 raw bytes. `tagging`: a mapping, or text that is URL-encoded already. `if_none_match`: "*" or an
    entity tag; tags may come without their quotes.

    Raises UsageError, which never shows the customer key.
    """
    given: list[Field] = []
    if content_type is not None:
        given.append(("content-type", content_type))
    given += _condition_fields(if_match, if_none_match)
    given += _metadata_fields(metadata)
    for name, option, value in (
        ("x-amz-storage-class", "storage_class", storage_class),
        ("x-amz-acl", "acl", acl),
    ):
        if value is not None:
            given.append((name, _word(option, value)))
    given += _encryption_fields(sse, sse_kms_key_id, sse_customer_key)
    if request_payer:
        if request_payer not in (True, "requester"):
            raise UsageError("request_payer: True or 'requester'")
        given.append(("x-amz-request-payer", "requester"))
    if tagging is not None:
        given.append(("x-amz-tagging", _tagging(tagging)))
    for name, value in given:
        check_field(name, value)
    return given


def _word(option: str, value: str) -> str:
    if not isinstance(value, str) or not _WORD.match(value):
        raise UsageError(f"{option}={_excerpt(str(value))}: one word of letters, digits, ':', '-' and '_'")
    return value


def _condition_fields(if_match: str | None, if_none_match: str | None) -> list[Field]:
    if if_match is not None and if_none_match is not None:
        raise UsageError("if_match and if_none_match exclude each other")
    if if_match is not None:
        return [("if-match", _etag("if_match", if_match))]
    if if_none_match is not None:
        return [("if-none-match", "*" if if_none_match == "*" else _etag("if_none_match", if_none_match))]
    return []


def _etag(option: str, value: str) -> str:
    if isinstance(value, str):
        quoted = value if value.startswith(('"', 'W/"')) else f'"{value}"'
        if len(quoted) > 2 and _ETAG.match(quoted) and value != "*":
            # As it was given: S3 takes both forms, Ceph 16 holds a PUT's condition for true only without the quotes.
            return value
    star = "'*' or " if option == "if_none_match" else ""
    raise UsageError(f"{option}: {star}an entity tag, as in the result's etag")


def _metadata_fields(metadata: Mapping[str, str] | None) -> list[Field]:
    found: dict[str, str] = {}
    for name, value in (metadata or {}).items():
        shown = _excerpt(str(name))
        if not isinstance(name, str) or not _META_NAME.match(name):
            raise UsageError(f"metadata {shown}: a name has letters, digits and !#$%&'*+-.^_`|~ only")
        if not isinstance(value, str):
            raise UsageError(f"metadata {shown}: the value is {type(value).__name__}, not str")
        if not value.isascii() or not (value.isprintable() or not value):
            raise UsageError(f"metadata {shown}: a value has printable ASCII only; encode it (percent, base64)")
        if value != value.strip():
            raise UsageError(f"metadata {shown}: spaces around a value are lost on the way; encode it")
        field_name = f"x-amz-meta-{name.lower()}"
        if field_name in found:
            raise UsageError(f"metadata {shown}: given twice; S3 does not tell capitals from small letters")
        found[field_name] = value
    size = sum(len(name) - len("x-amz-meta-") + len(value) for name, value in found.items())
    if size > limits.METADATA_MAX_BYTES:
        raise UsageError(f"metadata: {size} bytes of names and values; S3 stores at most {limits.METADATA_MAX_BYTES}")
    return list(found.items())


def _encryption_fields(sse: str | None, kms_key_id: str | None, customer_key: bytes | None) -> list[Field]:
    if customer_key is not None:
        if sse is not None or kms_key_id is not None:
            raise UsageError("sse_customer_key excludes sse and sse_kms_key_id")
        return customer_key_fields(customer_key)
    if kms_key_id is not None and sse is None:
        sse = "aws:kms"
    if sse is None:
        return []
    given = [("x-amz-server-side-encryption", _word("sse", sse))]
    if kms_key_id is not None:
        if not sse.startswith("aws:kms"):
            raise UsageError(f"sse_kms_key_id needs sse='aws:kms', not '{sse}'")
        if not kms_key_id or not kms_key_id.isascii() or not kms_key_id.isprintable() or " " in kms_key_id:
            raise UsageError("sse_kms_key_id: a key's id, ARN or alias")
        given.append(("x-amz-server-side-encryption-aws-kms-key-id", kms_key_id))
    return given


def customer_key_fields(key: bytes) -> list[Field]:
    """SSE-C: the key and its MD5, base64 ("Using server-side encryption with customer-provided keys"). Parts, HEAD and GET
    need them as well. Raises UsageError."""
    if not isinstance(key, (bytes, bytearray, memoryview)):
        raise UsageError(f"sse_customer_key: 32 raw bytes, not {type(key).__name__}")
    raw = bytes(key)
    if len(raw) != 32:
        raise UsageError(f"sse_customer_key: 32 raw bytes (AES-256), not {len(raw)}; not base64")
    prefix = "x-amz-server-side-encryption-customer-"
    return [
        (f"{prefix}algorithm", "AES256"),
        (f"{prefix}key", b64encode(raw).decode()),
        (f"{prefix}key-md5", b64encode(md5(raw, usedforsecurity=False).digest()).decode()),
    ]


def _tagging(tagging: Mapping[str, str] | str) -> str:
    if isinstance(tagging, str):
        return tagging
    if len(tagging) > _TAGS_MAX:
        raise UsageError(f"tagging: {len(tagging)} tags; S3 keeps at most {_TAGS_MAX} on an object")
    for name, value in tagging.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise UsageError("tagging: names and values are str")
        if not 1 <= len(name) <= 128 or len(value) > 256:
            raise UsageError(f"tagging {_excerpt(name)}: a name has 1 to 128 characters, a value at most 256")
    try:
        return urlencode(tagging, quote_via=quote, safe="")
    except UnicodeEncodeError:
        raise UsageError("tagging: not valid Unicode") from None
