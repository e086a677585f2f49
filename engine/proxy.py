"""Which proxy a request goes through, if any. Pure: the environment comes in as an argument.

`http_proxy` counts in lower case only, as with curl: HTTP_PROXY is also what a CGI program has of a client's "Proxy:" field.
"""

from __future__ import annotations

import ipaddress
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from engine.errors import UsageError
from engine.wire import Field, Origin, is_address, parse_url

ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where it listens, and the fields it is to be sent (Proxy-Authorization; in no repr)."""

    origin: Origin
    fields: tuple[Field, ...] = field(default=(), repr=False)

    @property
    def host(self) -> str:
        return self.origin.host


def parse_proxy(text: str) -> Proxy:
    """A proxy's URL, "http://user:password@host:port"; the scheme may be left out. Raises UsageError, without the user-info."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    user_info, _at, host = rest.rpartition("@")
    if scheme.lower() != "http":
        raise UsageError("proxy: only http:// proxies are spoken to (https:// requests go through them by CONNECT)")
    try:
        origin = parse_url(f"http://{host}").origin
    except UsageError as error:
        raise UsageError(f"proxy: {error.message}") from None
    if not user_info:
        return Proxy(origin)
    user, _colon, password = user_info.partition(":")
    token = b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode("ascii")  # RFC 7617
    return Proxy(origin, (("proxy-authorization", f"Basic {token}"),))


def choose_proxy(option: str | None, target: Origin, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy for requests to `target`, None for a direct connection.

    `option` is `Config.proxy`: a URL, None, or "environment". The environment's proxy is never asked for what is on loopback
    (it would be the proxy's own), nor for what NO_PROXY lists. Raises UsageError.
    """
    if option is None:
        return None
    if option != ENVIRONMENT:
        return parse_proxy(option)
    names = ("http_proxy",) if target.scheme == "http" else ("https_proxy", "HTTPS_PROXY")
    text = next((environ[name] for name in names if environ.get(name)), "")
    if not text or _is_loopback(target.host) or _is_excepted(target, environ):
        return None
    return parse_proxy(text)


def _is_loopback(host: str) -> bool:
    if is_address(host):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")  # RFC 6761 section 6.3


def _is_excepted(target: Origin, environ: Mapping[str, str]) -> bool:
    """NO_PROXY: names (and what is below them), addresses, CIDR blocks, each with a port or without; "*" is everything."""
    for entry in re.split(r"[,\s]+", environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
        name, port = entry.lower(), ""
        if found := re.match(r"(\[.+\]|[^:]+):([0-9]+)\Z", name):
            name, port = found[1], found[2]
        if port and int(port) != target.port:
            continue
        name = name.strip("[]").removeprefix("*.").strip(".")
        if entry == "*" or (name and (target.host == name or target.host.endswith(f".{name}"))):
            return True
        if is_address(target.host) and _contains(name, target.host):
            return True
    return False


def _contains(block: str, address: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(block, strict=False)
    except ValueError:
        return False
