"""URLs as they are sent, and request heads as bytes.

Owns what may stand in a request line, a field name and a field value. Knows nothing of S3, sockets or time. Strict on purpose:
a URL from a `Location` field is input from a stranger, and what two parsers read differently is where requests get smuggled
(WHATWG URL and RFC 3986 disagree on most of what is refused here).
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple
from urllib.parse import quote, unquote

from engine.errors import UsageError

DEFAULT_PORTS = {"http": 80, "https": 443}

Field = tuple[str, str]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")  # RFC 9110 section 5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e]*\Z")  # RFC 9110 section 5.5, without obs-text
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_LABEL = r"[a-z0-9_](?:[a-z0-9_\-]{0,61}[a-z0-9_])?"  # RFC 1035 section 2.3.1, and the "_" that is in use
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\Z")
_FRAMING = {"host": "host", "content-length": "length", "transfer-encoding": "length"}
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
# Left alone when a path or query is made safe to send: RFC 3986's unreserved, reserved and "%".
_TARGET_SAFE = "!#$%&'()*+,/:;=?@[]-._~"
# Names of query parameters and fields whose values are capabilities: presigned S3 (V2, V4), CloudFront, GCS, Azure SAS, WebHDFS
# (delegation), XRootD (authz, xrdhttptk), dCache (uuid), macaroons. Too many is harmless, one too few is a leak.
_SECRET_QUERY = re.compile(
    r"sig|token|tk\b|cred|secret|passw|pwd|delegation|auth(?!or\b)|bearer|jwt|sess|cookie"
    r"|access[-_]?key|access[-_]?id|api[-_]?key|\bkey\b|key-pair|macaroon|uuid|\bpolicy\b",
    re.IGNORECASE,
)
REDACTED = "REDACTED"
_SECRET_MIN_CHARS = 8  # cut out of a text, shorter ones would tear holes into words
_PIECE_CHARS = 8  # of a secret, in the middle of an excerpt
_PIECE_ENDS = range(4, _PIECE_CHARS)  # and at its ends, where the rest of the secret was cut off
_SIGV4 = "AWS4-HMAC-SHA256 "
_SIGV4_NAMES = frozenset({"Credential", "SignedHeaders", "Signature"})


class Origin(NamedTuple):
    """What a connection leads to (RFC 9110 section 4.3.1). `host` is lower-case, an IPv6 address without brackets."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{format_authority(self)}"


def format_authority(origin: Origin) -> str:
    """The Host field's value: the port only when it is not the scheme's default."""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    return host if DEFAULT_PORTS.get(origin.scheme) == origin.port else f"{host}:{origin.port}"


@dataclass(frozen=True, slots=True)
class Url:
    """An absolute http(s) URL, as it will be sent: `path` starts with "/" and is percent-encoded already; `query` is None
    when there is none. No user-info, no fragment. `str()` shows everything: use `redacted()` for people."""

    scheme: str
    host: str
    port: int
    path: str = "/"
    query: str | None = None

    @property
    def origin(self) -> Origin:
        return Origin(self.scheme, self.host, self.port)

    @property
    def authority(self) -> str:
        return format_authority(self.origin)

    @property
    def target(self) -> str:
        """origin-form, RFC 9112 section 3.2.1"""
        return self.path if self.query is None else f"{self.path}?{self.query}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"

    def redacted(self) -> str:
        """For logs, errors and results: values of query parameters that look like a signature or a token are hidden."""
        if self.query is None:
            return str(self)
        return str(replace(self, query=_redact_query(self.query)))

    __repr__ = redacted


def _redact_query(query: str) -> str:
    # ";" separates too for some servers: "a=1;token=…" must not pass as the value of "a".
    return "".join(_redact_parameter(part) for part in re.split("([&;])", query))


def _redact_parameter(parameter: str) -> str:
    name, equals, _value = parameter.partition("=")
    return f"{name}={REDACTED}" if equals and _SECRET_QUERY.search(unquote(name)) else parameter


def redact_url_text(text: str) -> str:
    """The same for a URL that did not parse, e.g. a bad `Location`: what could be user-info, every query value and the
    fragment are hidden; what cannot be shown is escaped; at most 500 characters."""
    head, question, query = text.partition("#")[0].partition("?")
    if "@" in query:  # "http://user:pass?word@host": where the authority ends is what the parsers disagree on
        head, question, query = f"{head}?{query}", "", ""
    before, at, after = head.rpartition("@")
    if at:
        scheme = _SCHEME.match(before)
        head = f"{scheme.group(0) if scheme else ''}//{REDACTED}@{after}"
    hidden = [f"{p.partition('=')[0]}={REDACTED}" if "=" in p else p[:32] for p in re.split("[&;]", query)]
    return printable(f"{head}{question}{'&'.join(hidden)}", 500)


def printable(text: str, limit: int) -> str:
    """Text of a stranger for an error or a log: control characters, line ends and direction marks are escaped, so that it can
    neither forge a line nor drive a terminal; at most `limit` characters of it are shown."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


@functools.lru_cache(maxsize=256)
def parse_url(text: str) -> Url:
    """Parse an absolute http(s) URL.

    Characters that may not stand in a path or query (space, non-ASCII …) are percent-encoded as UTF-8; what is encoded
    already stays as it is, dot segments too: an S3 key may hold them.

    Raises UsageError: no http(s) scheme, no host, user-info, control characters, lone surrogates, a host that is neither a DNS
    name nor a plain IP address ("0x7f.1", "127.1"), a port outside 1–65535.
    """
    if not isinstance(text, str):
        raise UsageError(f"URL: {type(text).__name__} instead of str")
    found = _SCHEME.match(text)
    scheme = found.group(1).lower() if found else ""
    if scheme not in DEFAULT_PORTS:
        raise UsageError(f"{_shown(text)}: not an http:// or https:// URL")
    rest = text[len(scheme) + 1 :]
    if not rest.startswith("//"):
        raise UsageError(f"{_shown(text)}: '//' is missing after '{scheme}:'")
    authority, target = _split_authority(rest[2:])
    if _CONTROL.search(text.replace(" ", "")) or " " in authority or "\\" in authority:
        raise UsageError(f"{_shown(text)}: control characters, spaces or backslashes where a URL may not have them")
    if "@" in authority:
        raise UsageError(f"{_shown(text)}: user-info ('user@') in a URL is not accepted; pass credentials as arguments")
    host, port = _parse_authority(authority, scheme, text)
    path, query = _split_target(target)
    return Url(scheme, host, port, path, query)


def _split_authority(rest: str) -> tuple[str, str]:
    end = min((i for i in (rest.find(c) for c in "/?#") if i >= 0), default=len(rest))
    return rest[:end], rest[end:]


def _split_target(target: str) -> tuple[str, str | None]:
    try:
        target = quote(target.partition("#")[0], safe=_TARGET_SAFE)
    except UnicodeEncodeError:
        raise UsageError(f"{_shown(target)}: not valid Unicode") from None
    path, _question, query = target.partition("?")
    # A bare "?" (Ceph's Location ends in one) means the same resource and signs the same: dropped.
    return path or "/", query or None


def _parse_authority(authority: str, scheme: str, text: str) -> tuple[str, int]:
    if authority.startswith("["):
        literal, bracket, after = authority[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise UsageError(f"{_shown(text)}: malformed IPv6 address")
        host, port_text = literal, after[1:]
        try:
            host = str(ipaddress.IPv6Address(literal))
        except ValueError:
            raise UsageError(f"{_shown(text)}: malformed IPv6 address") from None
        if "%" in host:
            raise UsageError(f"{_shown(text)}: an IPv6 zone is not accepted")
    else:
        host, _colon, port_text = authority.partition(":")
        host = check_host(host, text)
    if not port_text:
        return host, DEFAULT_PORTS[scheme]
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and 1 <= int(port_text) <= 65535):
        raise UsageError(f"{_shown(text)}: the port is not a number from 1 to 65535")
    return host, int(port_text)


def check_host(host: str, shown: str | None = None) -> str:
    """A DNS name or dotted IPv4 address, lower-case, without the root's trailing dot. Raises UsageError."""
    name = host.lower().removesuffix(".")
    if not host.isascii():
        where = _shown(host if shown is None else shown)
        raise UsageError(f"{where}: write an international host name in its ASCII form (xn--…)")
    if len(name) > 253 or not _HOST.match(name):
        raise UsageError(f"{_shown(host if shown is None else shown)}: no valid host name")
    last = name.rpartition(".")[2]
    if last.isdigit() or re.match(r"0x[0-9a-f]*\Z", last):
        # What inet_aton takes and ipaddress does not ("127.1", "0x7f.0.0.1", "017700000001") hides an address from a policy.
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            where = _shown(host if shown is None else shown)
            raise UsageError(f"{where}: an IPv4 address is written as four decimal numbers") from None
    return name


def is_address(host: str) -> bool:
    """Whether a checked host (`Url.host`) is an IP address and not a name."""
    return ":" in host or host.rpartition(".")[2].isdigit()


def resolve_reference(base: Url, reference: str) -> Url:
    """RFC 3986 section 5.2 for a Location field: absolute, `//host/…`, `/path`, `?query` or `relative/path`.

    Dot segments are removed only where a relative path is merged. Raises UsageError as `parse_url`.
    """
    reference = reference.partition("#")[0]
    if _SCHEME.match(reference):
        return parse_url(reference)
    if reference.startswith("//"):
        return parse_url(f"{base.scheme}:{reference}")
    if _CONTROL.search(reference.replace(" ", "")):
        raise UsageError(f"{_shown(reference)}: control characters in a URL")
    path, query = _split_target(reference)
    if reference.startswith("/"):
        return replace(base, path=path, query=query)
    if not reference or reference.startswith("?"):
        return replace(base, query=query if reference else base.query)
    merged = base.path.rpartition("/")[0] + "/" + path
    return replace(base, path=_remove_dot_segments(merged), query=query)


def _remove_dot_segments(path: str) -> str:
    """RFC 3986 section 5.2.4, for a path that starts with a slash."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            if kept:
                kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _shown(text: str) -> str:
    return repr(redact_url_text(text))


def check_field(name: str, value: str) -> None:
    """Raises UsageError for a field that would not be what it says on the wire (CR, LF, NUL, non-ASCII …)."""
    if not isinstance(name, str) or not _TOKEN.match(name):
        raise UsageError(
            f"header name '{printable(str(name), 80)}': only letters, digits and !#$%&'*+-.^_`|~ are allowed"
        )
    if not isinstance(value, str):
        raise UsageError(f"header {name}: the value is {type(value).__name__}, not str")
    if not _VALUE.match(value):
        # The value may be a secret: only its name is shown.
        what = "a control character" if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value) else "a non-ASCII character"
        raise UsageError(f"header {name}: the value has {what}; percent-encode or base64-encode it")


# Fields that frame the message or belong to the connection: made by us, from what the body and the URL are. Taken from a caller
# they would let one request end where the next one begins.
_OURS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_SIGNATURES = frozenset({"authorization", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token"})


def caller_fields(headers: Mapping[str, str] | Iterable[Field] | None, *, signed: bool) -> list[Field]:
    """The `headers=` of a call, checked. `signed`: the fields of the signature are ours as well.

    Raises UsageError: bad names or values, fields that are made here, a field given twice.
    """
    found: dict[str, Field] = {}
    pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
    for name, value in pairs:
        check_field(name, value)
        lowered = name.lower()
        if lowered in _OURS:
            raise UsageError(f"header {name}: made from the body, the URL and the options; it cannot be given")
        if signed and lowered in _SIGNATURES:
            raise UsageError(f"header {name}: made by the signature; sign=None sends yours")
        if lowered in found:
            raise UsageError(f"header {name}: given twice; join the values with a comma")
        found[lowered] = (name, value)
    return list(found.values())


@functools.lru_cache(maxsize=512)
def _canonical_case(name: str) -> str:
    # Names are case-insensitive (RFC 9110 section 5.1), but XRootD 5.5 knows "Expect" and not "expect".
    return name.title()


def request_head(method: str, target: str, fields: Iterable[Field]) -> bytes:
    """The request line and fields (RFC 9112 sections 3 and 5), in the order given, with the empty line.

    Checks again what the callers have checked: this is the last place where a CR or LF could leave, or a second length.
    """
    if not _TOKEN.match(method):
        raise UsageError(f"method {printable(method, 40)!r} is not a token")
    if not target or _CONTROL.search(target) or not target.isascii():
        raise UsageError("request target that is empty or has control or non-ASCII characters")
    lines = [f"{method} {target} HTTP/1.1"]
    framing = set()
    for name, value in fields:
        check_field(name, value)
        lines.append(f"{_canonical_case(name)}: {value.strip()}")
        kind = _FRAMING.get(name.lower())
        if kind:
            if kind in framing:
                raise UsageError(f"{name}: a request has one Host and one length (RFC 9112 sections 3.2 and 6.3)")
            framing.add(kind)
    if "host" not in framing:
        raise UsageError("a request without Host (RFC 9112 section 3.2)")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


SECRET_FIELDS = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "x-amz-security-token",
        "x-amz-s3session-token",
        "x-amz-server-side-encryption-customer-key",
        "x-amz-copy-source-server-side-encryption-customer-key",
    }
)


def redact_head(head: bytes) -> str:
    """A request or response head for `--trace` and logs: secret field values and query values are hidden."""
    lines = [printable(line, len(line)) for line in head.decode("latin-1").split("\r\n")]
    before, space, last = lines[0].rpartition(" ")  # "PUT /path?query HTTP/1.1"
    path, question, query = before.partition("?")
    lines[0] = path + question + _redact_query(query) + space + last
    for i, line in enumerate(lines[1:], 1):
        name, colon, value = line.partition(":")
        if not colon:
            continue
        lowered = name.strip().lower()
        if lowered in SECRET_FIELDS or _SECRET_QUERY.search(lowered):
            lines[i] = f"{name}: {REDACTED}"
        elif lowered in ("location", "content-location", "referer"):
            lines[i] = f"{name}:{_redact_location(value)}"
    return "\r\n".join(lines)


def secret_values(url: Url, fields: Iterable[Field]) -> list[str]:
    """What `redact_head` hides of a request, for cutting it out of what the server says."""
    found = [parameter.partition("=")[2] for parameter in re.split("[&;]", url.query or "") if _is_secret(parameter)]
    for name, value in fields:
        if name.lower() in SECRET_FIELDS or _SECRET_QUERY.search(name):
            found += secret_words(value)
    return [secret for secret in found if len(secret) >= _SECRET_MIN_CHARS]


def secret_words(value: str) -> list[str]:
    """A field's value, and the later words of it alone: of "Basic …" and "session=…" a server may echo just those."""
    words = re.split("[ ,=]+", value)[1:]
    if value.startswith(_SIGV4):
        # Not its scaffold, nor the names of signed fields: they are in many an honest answer.
        return [
            word for word in words if word not in _SIGV4_NAMES and ";" not in word and len(word) >= _SECRET_MIN_CHARS
        ]
    return [word for word in (value, *words) if len(word) >= _SECRET_MIN_CHARS]


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """The text with each secret, as it is or percent-encoded, cut out."""
    for secret in secrets:
        for form in (secret, quote(secret, safe="")):
            if len(form) >= 4:  # shorter ones would only tear holes into words
                text = text.replace(form, REDACTED)
    return text


def without_pieces(excerpt: str, secrets: Iterable[str]) -> str:
    """The same for an excerpt, whose ends may cut through a secret: nothing is left of one that holds a piece of a secret."""
    for secret in secrets:
        for form in {secret, quote(secret, safe=""), printable(secret, len(secret))}:
            pieces = (form[i : i + _PIECE_CHARS] for i in range(max(1, len(form) - _PIECE_CHARS + 1)))
            at_an_end = excerpt.startswith(tuple(form[-n:] for n in _PIECE_ENDS)) or excerpt.endswith(
                tuple(form[:n] for n in _PIECE_ENDS)
            )
            if at_an_end or any(piece in excerpt for piece in pieces):
                return REDACTED
    return excerpt


def _is_secret(parameter: str) -> bool:
    return _redact_parameter(parameter) != parameter


def _redact_location(value: str) -> str:
    url, question, query = value.partition("#")[0].partition("?")
    if "@" in url or "@" in query:
        return " " + redact_url_text(value.strip())
    return url + question + _redact_query(query)
