"""May this answer be followed, where to, and as what? One pure function, `decide`; DESIGN's "Redirects" in code.

The next request is rebuilt from the intent; nothing is taken from the wire head of the last one. What an answer says is a
stranger's word: it chooses among places which the caller already trusts, it never adds one.

Two things have to be trusted before anything follows: the *host*, for requests that carry a signature or a secret, and the
*address* behind a name, for all others: the body is data too, and a PUT to 169.254.169.254 is a request to somebody.

What went wrong elsewhere, and is a test here: curl CVE-2018-1000007, CVE-2022-27774, CVE-2022-27776 (Authorization and cookies
to another host, scheme or port); rclone GHSA-cf44-9pgv-m4xc, GHSA-gx4c-2hqx-cw2r, GHSA-8mxv-9xhp-86h4, GHSA-h4mf-4v27-hggj,
GHSA-486v-q2wf-fp2r (session token, bearer, SSE-C keys and caller-made fields, also to the same host without TLS). All of them
listed what may not cross; here is listed what may.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from typing import Final, Literal
from urllib.parse import unquote, unquote_to_bytes

from engine import limits
from engine.errors import RedirectRefused, TooManyRedirects, UsageError
from engine.s3 import NO_DOCUMENT, Addressing, Endpoint, ErrorDocument, address, is_region, object_path, split_s3_host
from engine.wire import Field, Origin, Url, check_host, parse_url, printable, redact_url_text, resolve_reference

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class RedirectPolicy:
    """Where redirects may lead.

    Attributes:
      max_hops: redirects followed in one attempt; 0 follows none.
      hosts: what is trusted with signed requests beside the endpoint itself: names ("node1.example.com"), names below a name
        ("*.example.com"), addresses and CIDR blocks ("10.0.0.0/8"). When given, unsigned requests go nowhere else either.
      allow_downgrade: whether https may become http. A signature then travels in the clear, and so does a session token (good
        for nothing without the secret key); the caller's own secret fields still go only to what `hosts` lists.

    Raises UsageError for anything else.
    """

    max_hops: int = limits.REDIRECT_MAX_HOPS
    hosts: Sequence[str] = ()
    allow_downgrade: bool = False
    _names: frozenset[str] = field(default=frozenset(), init=False, repr=False, compare=False)
    _suffixes: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)
    _networks: tuple[_Network, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.max_hops, int) or isinstance(self.max_hops, bool) or not 0 <= self.max_hops <= 50:
            raise UsageError("RedirectPolicy: max_hops is a number from 0 to 50")
        if isinstance(self.hosts, str):
            raise UsageError(f"RedirectPolicy: hosts is a tuple, write hosts=({self.hosts!r},)")
        names, suffixes, networks = set(), [], []
        for host in self.hosts:
            if not isinstance(host, str):
                raise UsageError("RedirectPolicy: hosts are str: names, '*.suffix' or CIDR blocks")
            network = _parse_network(host)
            if network is not None:
                networks.append(network)
            elif host.startswith("*."):
                suffixes.append("." + _policy_name(host[2:], host))
            else:
                names.add(_policy_name(host, host))
        object.__setattr__(self, "hosts", tuple(self.hosts))
        object.__setattr__(self, "_names", frozenset(names))
        object.__setattr__(self, "_suffixes", tuple(suffixes))
        object.__setattr__(self, "_networks", tuple(networks))

    def names_host(self, host: str) -> bool:
        """Whether `hosts` lists this name. Addresses are not among the names: `check_host` has seen to that."""
        return host in self._names or host.endswith(self._suffixes)

    def contains_address(self, ip: _Address) -> bool:
        """Whether a CIDR block of `hosts` has this address."""
        return any(ip in network for network in self._networks)


def _parse_network(host: str) -> _Network | None:
    try:
        return ipaddress.ip_network(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        pass
    try:
        network = ipaddress.ip_network(host, strict=False)
    except ValueError:
        return None
    raise UsageError(f"RedirectPolicy: '{host}' has bits beside its prefix; write '{network}'")


def _policy_name(name: str, shown: str) -> str:
    try:
        return check_host(name)
    except UsageError:
        raise UsageError(
            f"RedirectPolicy: '{printable(shown, 120)}' in hosts: give a name, '*.suffix' or a CIDR block, "
            "without scheme, port or path"
        ) from None


@dataclass(frozen=True, slots=True)
class Intent:
    """What the caller wants done, from which every hop is built.

    Attributes:
      method: of every hop; a redirect never changes it.
      url: of the first hop. Its query holds the S3 sub-resources of the intent.
      signed: whether requests get a signature made here (s3:// or sign="s3", and not ANONYMOUS).
      region: the first hop's signing region, "" when unsigned.
      bucket, key: what `url` addresses; "" when it is no S3 request.
      endpoint: the service the bucket is at; None for plain URLs.
      addressing: as given to `s3.address`.
      fields: the caller's, sent on every hop. May hold secrets, so it is in no repr.
    """

    method: str
    url: Url
    signed: bool
    region: str = ""
    bucket: str = ""
    key: str = ""
    endpoint: Endpoint | None = None
    addressing: Addressing = "auto"
    fields: tuple[Field, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Visit:
    """A hop already made: `region` it was signed for ("" unsigned), `asked` whether it had Expect."""

    url: Url
    region: str = ""
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The facts of a final answer that matter here.

    Attributes:
      locations: every Location field's value, in order.
      bucket_region: x-amz-bucket-region, "" when absent.
      error: the body's error document; empty for HEAD.
      discovered: `bucket_region` came from the HEAD that a `Discover` asked for.
    """

    status: int
    locations: tuple[str, ...] = ()
    bucket_region: str = ""
    error: ErrorDocument = NO_DOCUMENT
    discovered: bool = False


Kind = Literal["location", "region", "endpoint"]


@dataclass(frozen=True, slots=True)
class Follow:
    """Make the next hop.

    Attributes:
      url, region: of the next hop; region "" when it is not signed.
      kind: what told: a Location, a region, or the error document's Endpoint.
      learned_region: a fact about the bucket to be kept (`s3.RegionCache`) once this hop is answered by something else than
        another redirect; "" when there is none.
      check_address: connect only to addresses for which `address_allowed` holds.
      sign: whether to sign; False for unsigned intents, and when the Location brings a signature of its own in its query.
      lasting: the answer said for good that the bucket is at this URL's origin (a 301 or 308 of a store that is not AWS, where
        a region says that): to be kept as `learned_region`, and given to `recall`.
    """

    url: Url
    region: str
    kind: Kind
    learned_region: str
    check_address: bool
    sign: bool
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class Discover:
    """Nobody says where the bucket is: HEAD `url` (signed for `region` if `sign`), take x-amz-bucket-region from whatever
    comes back, and call `decide` again with `replace(answer, bucket_region=…, discovered=True)`. Not a visit."""

    url: Url
    region: str
    sign: bool


@dataclass(frozen=True, slots=True)
class Refuse:
    """Do not follow. `reason` is a short stable name, `message` says what to do, `location` is redacted."""

    reason: str
    message: str
    location: str = ""

    def error(self, status: int, code: str = "") -> RedirectRefused:
        """What the caller raises."""
        kind = TooManyRedirects if self.reason == "too-many-hops" else RedirectRefused
        return kind(self.message, status=status, reason=self.reason, location=self.location, code=code)


Decision = Follow | Discover | Refuse | None

_FOLLOWED: Final = frozenset({301, 302, 303, 307, 308})
_REGION_CODES: Final = frozenset(
    {
        "AuthorizationHeaderMalformed",  # S3, MinIO, Garage: signed for another region
        "IllegalLocationConstraintException",  # S3: between an opt-in region and the others
        "InvalidRegion",  # MinIO
        "PermanentRedirect",  # S3 sends it as 301; gateways before it as 400
    }
)


def decide(intent: Intent, visits: Sequence[Visit], answer: Answer, policy: RedirectPolicy) -> Decision:
    """What to do about `answer`, which the last of `visits` got (there is at least one).

    None: not a redirect; the status speaks for itself. The function keeps no state, so it ends a chain only together with
    its caller, who adds a Visit for every Follow: no (URL, region, Expect) comes twice, and there are at most `max_hops`.
    """
    status = answer.status
    if status in _FOLLOWED:
        decision = _decide_redirect(intent, visits, answer, policy)
    elif status in (400, 403) and intent.signed:
        decision = _decide_wrong_region(intent, visits, answer, policy)
    elif 300 <= status <= 399 and status != 304:
        # 305 would make the peer choose our proxy, 300 wants a choice, 306 means nothing (RFC 9110 section 15.4).
        return Refuse("unsupported-status", f"{status} is no redirect that can be followed for a {intent.method}.")
    else:
        return None
    # What was only tried again (without Expect, with another date) stands there twice and is one hop.
    hops = len({(visit.url, visit.region) for visit in visits})
    if decision is None or isinstance(decision, Refuse) or hops <= policy.max_hops:
        return decision
    followed = "none is followed" if policy.max_hops == 0 else f"{policy.max_hops} were followed already"
    where = _shown(decision.url)
    return Refuse(
        "too-many-hops",
        f"{status} redirects to {decision.url.origin}, but {followed}: see RedirectPolicy(max_hops=…).",
        where,
    )


def recall(intent: Intent, origin: Origin, region: str, policy: RedirectPolicy) -> Follow | None:
    """The first hop of an intent whose bucket is known to be at `origin`, judged as the redirect that told it was: another
    request may hold secrets which that one had not. None: ask the endpoint, as if nothing were known."""
    url = replace(intent.url, scheme=origin.scheme, host=origin.host, port=origin.port)
    first = Visit(intent.url, intent.region)
    decision = _judge(intent, [first], Answer(301), policy, url, region, "location")
    return decision if isinstance(decision, Follow) else None


def _decide_redirect(intent: Intent, visits: Sequence[Visit], answer: Answer, policy: RedirectPolicy) -> Decision:
    method, status = intent.method, answer.status
    if status == 303 and method not in ("GET", "HEAD"):
        return Refuse(
            f"see-other-on-{method.lower()}",
            f"303 points to another resource, to be read with GET (RFC 9110 section 15.4.4); whether the {method} was carried "
            "out is not known.",
            _shown_location(answer),
        )
    if status in (301, 302) and method == "POST" and not intent.signed:
        return Refuse(
            "method-would-change",
            f"{status} to a POST is taken as a GET by some clients and as a POST by others; only 307 and 308 are followed.",
            _shown_location(answer),
        )
    locations = list(dict.fromkeys(text for value in answer.locations if (text := value.strip(" \t"))))
    if len(locations) > 1:
        return Refuse(
            "two-locations", f"{status} with {len(locations)} different Location fields.", _shown_location(answer)
        )
    if not locations:
        return _decide_without_location(intent, visits, answer, policy)
    # Bytes beyond ASCII reach us as latin-1; they go back as the very bytes they were.
    text = "".join(
        c if c.isascii() else f"%{ord(c) & 0xFF:02X}" for c in _encode_mirrored(locations[0], visits[-1].url)
    )
    try:
        url = resolve_reference(visits[-1].url, text)
    except UsageError as error:
        return Refuse(
            "bad-location", f"{status} with a Location that is not followed: {error}.", _shown_location(answer)
        )
    return _judge(intent, visits, answer, policy, url, _location_region(intent, visits, answer, url), "location")


def _encode_mirrored(location: str, asked: Url) -> str:
    """Servers that put the path they received into a Location, but decoded (nginx's "return 307 http://…$uri", AIStore's
    `URL.Path` for years), turn the key "100%25?" into another one, and the object would be stored under that name."""
    decoded = unquote_to_bytes(asked.path).decode("latin-1")
    authority = location.find("//") + 2 if "://" in location[:8] or location.startswith("//") else 0
    start = location.find("/", authority)
    rest = location[start:].removeprefix(decoded)
    is_mirror = start >= 0 and (rest == "" or rest.startswith("?"))
    return location[:start] + asked.path + rest if is_mirror else location


def _location_region(intent: Intent, visits: Sequence[Visit], answer: Answer, url: Url) -> str:
    """The region to sign a Location for: that of an S3 host, else the answer's, else the one before."""
    parts = split_s3_host(url.host)
    told = (parts.region if parts else "", answer.bucket_region, answer.error.region)
    return next((region for region in told if is_region(region)), _current_region(intent, visits))


def _current_region(intent: Intent, visits: Sequence[Visit]) -> str:
    """The region the answered request was for; a hop that went unsigned has none, so the one before it counts."""
    return next((visit.region for visit in reversed(visits) if visit.region), intent.region)


# --- redirects that name no URL --------------------------------------------------------------------------------------


def _decide_without_location(
    intent: Intent, visits: Sequence[Visit], answer: Answer, policy: RedirectPolicy
) -> Decision:
    endpoint, status = intent.endpoint, answer.status
    if endpoint is None or not intent.bucket:
        told = answer.bucket_region or answer.error.region
        where = f" The bucket is in region {printable(told, 63)}: make the URL for that one." if told else ""
        return Refuse("no-location", f"{status} without a Location.{where}")
    looped: Refuse | None = None
    for kind, word in (
        ("region", answer.bucket_region),
        ("endpoint", answer.error.endpoint),
        ("region", answer.error.region),
    ):
        if not word:
            continue
        decision = (
            _follow_region(intent, visits, answer, policy, word)
            if kind == "region"
            else _follow_endpoint(intent, visits, answer, policy, word)
        )
        if not (isinstance(decision, Refuse) and decision.reason == "loop"):
            return decision
        looped = looped or decision
    if not answer.discovered and not answer.bucket_region:
        return _discover(intent, visits, endpoint)
    return looped or Refuse(
        "no-location",
        f"{status} without a Location, and nothing says where the bucket is: give region= or endpoint_url=.",
    )


def _decide_wrong_region(intent: Intent, visits: Sequence[Visit], answer: Answer, policy: RedirectPolicy) -> Decision:
    """400 and 403 to a signed request: is another region what is wrong?

    S3 names the bucket's region in x-amz-bucket-region, MinIO and Garage in the document. A HEAD's 400 has no body, so on AWS
    the bucket is asked (botocore does the same).
    """
    aws = intent.endpoint is not None and intent.endpoint.aws
    region_code = answer.error.code in _REGION_CODES
    told = answer.bucket_region or (answer.error.region if region_code else "")
    if told == _current_region(intent, visits):
        return None
    if told and (region_code or aws or answer.status == 400):
        return _follow_region(intent, visits, answer, policy, told)
    silent_head = aws and intent.method == "HEAD" and answer.status == 400
    if answer.discovered or intent.endpoint is None or not intent.bucket or not (region_code or silent_head):
        return None
    return _discover(intent, visits, intent.endpoint)


def _discover(intent: Intent, visits: Sequence[Visit], endpoint: Endpoint) -> Discover:
    url = address(endpoint, intent.bucket, addressing=intent.addressing)
    # S3 tells the region to everybody, with a 403: no reason to show a signature. Others may want one.
    sign = intent.signed and not endpoint.aws
    return Discover(url, _current_region(intent, visits) if sign else "", sign)


def _follow_region(
    intent: Intent, visits: Sequence[Visit], answer: Answer, policy: RedirectPolicy, region: str
) -> Decision:
    endpoint = intent.endpoint
    url = visits[-1].url
    try:
        if not is_region(region):
            raise UsageError(f"region '{printable(region, 63)}': letters a–z, digits and '-' only")
        if endpoint is not None and endpoint.aws and intent.bucket:
            built = address(endpoint, intent.bucket, intent.key, region=region, addressing=intent.addressing)
            url = replace(built, query=intent.url.query)
    except UsageError as error:
        return Refuse("bad-region", f"{answer.status} names a region that cannot be: {error}.")
    return _judge(intent, visits, answer, policy, url, region, "region")


def _follow_endpoint(
    intent: Intent, visits: Sequence[Visit], answer: Answer, policy: RedirectPolicy, text: str
) -> Decision:
    """<Endpoint> is a host, with the bucket before it or not, and perhaps with a port; Ceph and AIStore put a URL there."""
    base = intent.endpoint
    assert base is not None
    try:
        host = parse_url(text if "://" in text else f"{base.scheme}://{text}")
        if host.path != "/" or host.query is not None:
            raise UsageError("a path or query where only a host may be")
    except UsageError as error:
        return Refuse(
            "bad-location", f"{answer.status} with an Endpoint that is not followed: {error}.", redact_url_text(text)
        )
    bucket = "" if host.host.startswith(f"{intent.bucket}.") else intent.bucket
    path = object_path(base.base_path, bucket, intent.key)
    url = Url(host.scheme, host.host, host.port, path, intent.url.query)
    return _judge(intent, visits, answer, policy, url, _location_region(intent, visits, answer, url), "endpoint")


# --- trust ----------------------------------------------------------------------------------------------------------


class _Trust(Enum):
    """Why a host may see a signed request."""

    NONE = "it may not"
    LISTED = "RedirectPolicy.hosts names it"
    LISTED_ADDRESS = "a block of RedirectPolicy.hosts has it"
    S3 = "one of S3's own names, for this bucket"
    OWN = "the endpoint's own host, any port"
    BELOW = "a name below the endpoint's"
    LOOPBACK = "loopback, as the endpoint is"


def _judge(
    intent: Intent,
    visits: Sequence[Visit],
    answer: Answer,
    policy: RedirectPolicy,
    url: Url,
    region: str,
    kind: Kind,
) -> Follow | Refuse:
    """Everything that every next hop has to pass, wherever it came from."""
    last = visits[-1]
    trust = _trust(intent, url, policy)
    presigned = _is_presigned(url.query)
    sign = intent.signed and not presigned
    visited = Visit(url, region if sign else "", last.asked)
    for refusal in (
        _judge_downgrade(answer, policy, url, last),
        _judge_host(intent, answer, policy, url, trust),
        _judge_resource(intent, answer, url, trust, presigned),
        _judge_fields(intent, answer, url, trust),
    ):
        if refusal is not None:
            return refusal
    if visited in visits:
        return Refuse(
            "loop",
            f"{answer.status} redirects in a circle: {url.origin} was asked for the same already"
            + (f" in region {region}." if sign else "."),
            _shown(url),
        )
    told = region if kind == "region" or trust is _Trust.S3 else answer.bucket_region or answer.error.region
    permanent = answer.status not in (302, 303, 307)  # AWS: where a 307 leads is good for this request only
    return Follow(
        url=url,
        region=visited.region,
        kind=kind,
        learned_region=told if permanent and intent.bucket and is_region(told) else "",
        check_address=trust not in (_Trust.LISTED, _Trust.S3),
        sign=sign,
        lasting=answer.status in (301, 308) and kind == "location" and _only_moves(intent, visits, url),
    )


def _only_moves(intent: Intent, visits: Sequence[Visit], url: Url) -> bool:
    """Whether the endpoint's own answer leads to the same path and query on another origin of a store that is not AWS."""
    endpoint, asked = intent.endpoint, visits[-1].url
    if endpoint is None or endpoint.aws or not intent.bucket or url.origin == asked.origin:
        return False
    same_place = url.path == asked.path and (url.query or None) == asked.query
    return same_place and all(visit.url == asked for visit in visits)


def _trust(intent: Intent, url: Url, policy: RedirectPolicy) -> _Trust:
    """RedirectPolicy's rule for signed requests, and for whatever else carries a secret."""
    endpoint, host = intent.endpoint, url.host
    own = endpoint.host if endpoint is not None else intent.url.host
    if policy.names_host(host):
        return _Trust.LISTED
    literal = _literal(host)
    if literal is not None and policy.contains_address(literal):
        return _Trust.LISTED_ADDRESS
    if endpoint is not None and endpoint.aws:
        # Not "names below the endpoint's": those are everybody's buckets.
        parts = split_s3_host(host)
        same_kind = parts is not None and parts.suffix == endpoint.suffix and (parts.fips or not endpoint.fips)
        known_port = url.port in (80, 443, intent.url.port)
        if parts is not None and same_kind and known_port and parts.bucket in ("", intent.bucket):
            return _Trust.S3
        return _Trust.NONE
    if host == own:
        return _Trust.OWN
    if endpoint is not None and host.endswith(f".{own}"):  # an address has nothing below it: no name ends in a number
        return _Trust.BELOW
    if _is_loopback(own) and _is_loopback(host):
        return _Trust.LOOPBACK
    return _Trust.NONE


def _judge_downgrade(answer: Answer, policy: RedirectPolicy, url: Url, last: Visit) -> Refuse | None:
    if url.scheme == "https" or last.url.scheme == "http" or policy.allow_downgrade:
        return None
    return Refuse(
        "downgrade",
        f"{answer.status} redirects from https to {url.origin}, where everybody on the way could read and change the request. "
        "If that is meant: RedirectPolicy(allow_downgrade=True).",
        _shown(url),
    )


def _judge_host(intent: Intent, answer: Answer, policy: RedirectPolicy, url: Url, trust: _Trust) -> Refuse | None:
    if trust is not _Trust.NONE or not (intent.signed or policy.hosts):
        return None
    what = "the signed request" if intent.signed else f"the {intent.method}"
    why = "which RedirectPolicy(hosts=…) does not list" if policy.hosts else "which is not part of the endpoint"
    return Refuse(
        "host-not-allowed",
        f"{answer.status} redirects {what} to {url.origin}, {why}; nothing was sent there. "
        f"If it can be trusted: add {_suggestion(url.host)!r} to RedirectPolicy(hosts=…).",
        _shown(url),
    )


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Query parameters that make another operation of a request: S3's sub-resources, and those of Ceph and MinIO. As a list this is
# weaker than a list of what is harmless, but stores add parameters of their own to a Location (AIStore "pid" and "utm").
_SUB_RESOURCES: Final = _words(
    "accelerate acl analytics append attributes cors delete encryption intelligent-tiering inventory legal-hold lifecycle "
    "list-type location logging metadatatable metrics notification object-lock object-lock-configuration ownershipcontrols "
    "partnumber policy policystatus position publicaccessblock quota renameobject replication requestpayment restore retention "
    "select select-type session start tagging torrent uploadid uploads versionid versioning versions website"
)


def _judge_resource(intent: Intent, answer: Answer, url: Url, trust: _Trust, presigned: bool) -> Refuse | None:
    """A signature made here is an order; a redirect may say where it is to be carried out, not what it is."""
    if not intent.signed:
        return None
    if not presigned and _sub_resources(url.query) != _sub_resources(intent.url.query):
        return Refuse(
            "sub-resource",
            f"{answer.status} redirects to another operation of {url.origin}: the S3 parameters of the query are not those of "
            "the request. It is not signed.",
            _shown(url),
        )
    if trust is _Trust.S3 and not _is_same_object(intent, url):
        return Refuse(
            "other-object",
            f"{answer.status} redirects to another bucket or key of {url.origin}. S3 does not do that; it is not signed.",
            _shown(url),
        )
    return None


def _sub_resources(query: str | None) -> list[tuple[str, str]]:
    found = []
    for parameter in (query or "").split("&"):
        name, _equals, value = parameter.partition("=")
        name = unquote(name).lower()
        # S3 takes x-amz-… of the query for fields ("x-amz-acl=public-read").
        if name in _SUB_RESOURCES or name.startswith("x-amz-"):
            found.append((name, unquote(value)))
    return sorted(found)


def _is_presigned(query: str | None) -> bool:
    names = {unquote(parameter.partition("=")[0]).lower() for parameter in (query or "").split("&")}
    return "x-amz-signature" in names or {"signature", "awsaccesskeyid"} <= names


def _is_same_object(intent: Intent, url: Url) -> bool:
    parts = split_s3_host(url.host)
    bucket = "" if parts is not None and parts.bucket else intent.bucket
    wanted = unquote_to_bytes(object_path("", bucket, intent.key))
    return unquote_to_bytes(url.path).removesuffix(b"/") == wanted.removesuffix(b"/")


# What may cross to another origin without being asked for: fields that describe the body or the object, and say nothing about
# who is asking. Everything else might be a secret: "X-Api-Key" is one, and no list of secrets knows every name.
_HARMLESS: Final = _words(
    "accept accept-encoding accept-language cache-control connection content-disposition content-encoding content-language "
    "content-length content-md5 content-range content-type date expect transfer-encoding x-amz-decoded-content-length "
    " depth digest content-digest repr-digest want-digest expires if-match if-modified-since "
    "if-none-match if-range if-unmodified-since overwrite range user-agent x-amz-acl x-amz-bypass-governance-retention "
    "x-amz-content-sha256 x-amz-copy-source-range x-amz-date x-amz-expected-bucket-owner x-amz-object-ownership "
    "x-amz-request-payer x-amz-sdk-checksum-algorithm x-amz-server-side-encryption x-amz-server-side-encryption-aws-kms-key-id "
    "x-amz-server-side-encryption-bucket-key-enabled x-amz-storage-class x-amz-tagging x-amz-tagging-directive "
    "x-amz-trailer x-amz-website-redirect-location x-amz-write-offset-bytes x-goog-hash x-ms-blob-type"
)
_HARMLESS_PREFIXES: Final = ("x-amz-checksum-", "x-amz-grant-", "x-amz-meta-", "x-amz-object-lock-")


def _judge_fields(intent: Intent, answer: Answer, url: Url, trust: _Trust) -> Refuse | None:
    bare = intent.url.scheme == "https" and url.scheme == "http"
    if trust is not _Trust.NONE and not (bare and trust not in (_Trust.LISTED, _Trust.LISTED_ADDRESS)):
        return None
    held = [name for name, _value in intent.fields if not is_harmless(name)]
    if not held:
        return None
    names = ", ".join(sorted({printable(name, 64) for name in held}))
    return Refuse(
        "secret-would-leak",
        f"{answer.status} redirects to {url.origin}, another origin, and the request has fields that may be secret ({names}); "
        f"nothing was sent there. If it may see them: add {_suggestion(url.host)!r} to RedirectPolicy(hosts=…).",
        _shown(url),
    )


def is_harmless(name: str) -> bool:
    """Whether a field describes the body or the object, and so is no secret."""
    lowered = name.lower()
    return lowered in _HARMLESS or lowered.startswith(_HARMLESS_PREFIXES)


def _suggestion(host: str) -> str:
    """What to write into `hosts` for it: private addresses come in clusters, so their whole block; else just this one."""
    literal = _literal(host)
    if literal is None:
        return host
    block = next((network for network in _PRIVATE if literal in network), None)
    return str(block if block is not None else ipaddress.ip_network(literal))


def _shown(url: Url) -> str:
    return printable(url.redacted(), 500)


def _shown_location(answer: Answer) -> str:
    return ", ".join(redact_url_text(text) for text in answer.locations[:4])


# --- addresses ------------------------------------------------------------------------------------------------------


class Scope(IntEnum):
    """Who can be at an address; the narrower, the more a stranger must not lead us there."""

    NOWHERE = 0  # no unicast address at all
    LOOPBACK = 1
    LINK = 2
    PRIVATE = 3
    PUBLIC = 4


_NOWHERE: Final = tuple(
    ipaddress.ip_network(n)
    for n in ("0.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "::/128", "ff00::/8")  # Linux takes 0.0.0.0 for loopback
)
_LOOPBACK: Final = tuple(ipaddress.ip_network(n) for n in ("127.0.0.0/8", "::1/128"))
_LINK: Final = tuple(ipaddress.ip_network(n) for n in ("169.254.0.0/16", "fe80::/10"))
_PRIVATE: Final = tuple(
    ipaddress.ip_network(n)
    for n in (
        "10.0.0.0/8",  # RFC 1918
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",  # RFC 6598, carrier-grade NAT; Alibaba's metadata service is at 100.100.100.200
        "192.0.0.0/24",  # RFC 6890; Oracle's metadata service is at 192.0.0.192
        "198.18.0.0/15",  # RFC 2544
        "fc00::/7",  # RFC 4193; AWS's IMDS is at fd00:ec2::254
        "fec0::/10",  # RFC 3879
        "64:ff9b:1::/48",  # RFC 8215, NAT64 inside a network
    )
)
_TEREDO: Final = ipaddress.IPv6Network("2001::/32")  # RFC 4380: the client's address, inverted
# Where an IPv6 address holds an IPv4 one: (prefix, bits to the right of it).
_EMBEDDED: Final = (
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # RFC 6052, NAT64
    (ipaddress.IPv6Network("64:ff9b:1::/96"), 0),  # RFC 8215
    (ipaddress.IPv6Network("::ffff:0:0:0/96"), 0),  # RFC 2765
    (ipaddress.IPv6Network("::/96"), 0),  # RFC 4291 section 2.5.5.1, deprecated
    (ipaddress.IPv6Network("2002::/16"), 80),  # RFC 3056, 6to4
)


def scope(ip: str) -> Scope:
    """The scope of an address in text, as getaddrinfo gives it (with a zone or without). Text that is none: NOWHERE."""
    address_ = _literal(ip.partition("%")[0])
    return Scope.NOWHERE if address_ is None else _scope(address_)


def _scope(ip: _Address) -> Scope:
    found = Scope.PUBLIC
    for networks, its in (
        (_NOWHERE, Scope.NOWHERE),
        (_LOOPBACK, Scope.LOOPBACK),
        (_LINK, Scope.LINK),
        (_PRIVATE, Scope.PRIVATE),
    ):
        if any(ip in network for network in networks):
            found = its
            break
    embedded = _embedded(ip) if isinstance(ip, ipaddress.IPv6Address) and found is not Scope.LOOPBACK else None
    return found if embedded is None else min(found, _scope(embedded))


def _embedded(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if ip in _TEREDO:
        return ipaddress.IPv4Address(~int(ip) & 0xFFFFFFFF)
    for prefix, shift in _EMBEDDED:
        if ip in prefix:
            return ipaddress.IPv4Address((int(ip) >> shift) & 0xFFFFFFFF)
    return None


def _literal(host: str) -> _Address | None:
    """The address that a host is, an IPv4 one in IPv6's clothes (RFC 4291 section 2.5.5.2) undressed; None for names."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


def _is_loopback(host: str) -> bool:
    literal = _literal(host)
    if literal is not None:
        return _scope(literal) is Scope.LOOPBACK
    return host == "localhost" or host.endswith(".localhost")  # RFC 6761 section 6.3


def address_allowed(policy: RedirectPolicy, ip: str, came_from: str) -> bool:
    """Whether a redirect may be followed to this resolved address; the connection must then go to this very one.

    `came_from`: the address of the peer which sent the redirect; "" or no address counts as a public one. A redirect never
    leads to a narrower scope than it came from (public → private → link-local → loopback), unless `policy.hosts` lists the
    address. Multicast, broadcast and the unspecified address are nobody's.
    """
    literal = _literal(ip.partition("%")[0])
    if literal is None:
        return False
    if policy.contains_address(literal):
        return True
    here, there = scope(came_from), _scope(literal)
    return there is not Scope.NOWHERE and there >= (here if here is not Scope.NOWHERE else Scope.PUBLIC)


def private_address(status: int, url: Url, ip: str) -> Refuse:
    """The refusal when no address of a host was allowed."""
    shown = printable(ip, 64)
    return Refuse(
        "private-address",
        f"{status} redirects to {url.origin}, which is at {shown}, nearer to this machine than the server that redirects. "
        f"Nothing was sent there. If that is meant: add {_suggestion(ip.partition('%')[0])!r} to RedirectPolicy(hosts=…).",
        _shown(url),
    )
