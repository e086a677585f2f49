"""`Config`: every setting of a client, checked once, with its reason in `limits.py`."""

from __future__ import annotations

import dataclasses
import ssl
from dataclasses import dataclass, field
from typing import Any, Literal

from engine import limits
from engine.errors import UsageError
from engine.proxy import ENVIRONMENT, parse_proxy
from engine.redirect import RedirectPolicy
from engine.retry import Retry

ExpectOption = Literal["auto", "always", "never", "strict"]
PayloadSigning = Literal["unsigned", "sha256"]
AddressingOption = Literal["auto", "path", "virtual"]

_CHOICES = {
    "expect": ("auto", "always", "never", "strict"),
    "payload_signing": ("unsigned", "sha256"),
    "addressing": ("auto", "path", "virtual"),
}


@dataclass(frozen=True)
class Config:
    """How a client behaves. Frozen: `dataclasses.replace` makes a variant. Seconds throughout.

    Attributes:
      expect: "auto" asks before bodies of 64 KiB or more and before any that cannot be replayed; "always"; "never"; "strict":
        without a go-ahead no body, ever.
      continue_timeout_s: "auto": an unknown origin is waited for 1 s (or 4 connect round trips), then the body goes; one
        known to answer up to `response_timeout_s`, then ResponseTimedOut. A number fixes the wait, after which the body goes.
      connect_timeout_s: name resolution and TCP handshake.
      stall_timeout_s: the kernel accepted no body byte for so long.
      response_timeout_s: from the request's last byte to the answer's head.
      total_timeout_s: of a whole call; None for no limit, since it kills large transfers that are doing well.
      redirects, retry: see `RedirectPolicy` and `Retry`.
      max_connections: of a client, in all. max_idle_s: after which an unused one is closed.
      tls: an `ssl.SSLContext`, the path of a CA bundle, or None for the system's trust store.
      payload_signing: "unsigned" (UNSIGNED-PAYLOAD) or "sha256" (the body is read once more, before the request).
      addressing: "auto" is virtual-host on AWS for DNS-valid buckets without dots, path-style otherwise.
      use_dualstack_endpoint, use_fips_endpoint: AWS's endpoints that speak IPv6 too, or with FIPS 140 cryptography; None for
        what AWS_USE_DUALSTACK_ENDPOINT and AWS_USE_FIPS_ENDPOINT say. use_accelerate_endpoint: S3 Transfer Acceleration.
      proxy: "environment" (http_proxy, HTTPS_PROXY, https_proxy, NO_PROXY), None for none, or a URL, which may have user-info.

    Raises UsageError for a value out of its range.
    """

    expect: ExpectOption = "auto"
    continue_timeout_s: float | Literal["auto"] = "auto"
    connect_timeout_s: float = limits.CONNECT_TIMEOUT_S
    stall_timeout_s: float = limits.STALL_TIMEOUT_S
    response_timeout_s: float = limits.RESPONSE_TIMEOUT_S
    total_timeout_s: float | None = None
    redirects: RedirectPolicy = field(default_factory=RedirectPolicy)
    retry: Retry = field(default_factory=Retry)
    max_connections: int = limits.CONNECTIONS_MAX
    max_idle_s: float = limits.MAX_IDLE_S
    tls: ssl.SSLContext | str | None = None
    payload_signing: PayloadSigning = "unsigned"
    addressing: AddressingOption = "auto"
    use_dualstack_endpoint: bool | None = None
    use_fips_endpoint: bool | None = None
    use_accelerate_endpoint: bool = False
    proxy: str | None = field(default=ENVIRONMENT, repr=False)  # may hold a password

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{name}={getattr(self, name)!r}: one of {', '.join(map(repr, choices))} is needed")
        if self.continue_timeout_s != "auto":
            _check_seconds("continue_timeout_s", self.continue_timeout_s, zero=True)
        for name in ("connect_timeout_s", "stall_timeout_s", "response_timeout_s", "max_idle_s"):
            _check_seconds(name, getattr(self, name))
        if self.total_timeout_s is not None:
            _check_seconds("total_timeout_s", self.total_timeout_s)
        if not isinstance(self.max_connections, int) or not 1 <= self.max_connections <= 65_535:
            raise UsageError(f"max_connections={self.max_connections!r}: a whole number from 1 to 65535 is needed")
        for name in ("use_dualstack_endpoint", "use_fips_endpoint", "use_accelerate_endpoint"):
            if getattr(self, name) not in (True, False, None):
                raise UsageError(f"{name}={getattr(self, name)!r}: True or False is needed")
        if self.proxy is not None and self.proxy != ENVIRONMENT:
            if not isinstance(self.proxy, str):
                raise UsageError(f"proxy: {type(self.proxy).__name__} is no URL")
            parse_proxy(self.proxy)
        if not isinstance(self.redirects, RedirectPolicy):
            raise UsageError("redirects: an engine.RedirectPolicy is needed")
        if not isinstance(self.retry, Retry):
            raise UsageError("retry: an engine.Retry is needed")

    def override(self, **changes: Any) -> Config:
        """A variant with those of `changes` that are not None."""
        given = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(self, **given) if given else self


def _check_seconds(name: str, value: object, *, zero: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (0 <= value < 1e9) or (value == 0 and not zero):  # type: ignore[operator]
        raise UsageError(f"{name}={value!r}: a number of seconds{'' if zero else ' above 0'} is needed")
