"""What must hold, judged from what the taps saw: never from what the engine says of itself, nor with its code.

Each rule is written here once more, the slow way, out of README.md, SECURITY.md and docs/.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import engine
from tests.simulation.network import SENDER_BEGINS_S, Link, Request

KIB, MIB = 1 << 10, 1 << 20
EPSILON_S = 1e-6
# Where a redirect may lead without asking: only outwards. (docs/redirects.md)
SCOPES = ["loopback", "link-local", "private", "public"]
# Somebody else's bucket: nothing secret may go there, but it is S3, and keeps S3's promise that no redirect follows a 100.
S3_NAMES_OF_OTHERS = {"evil.s3.us-west-2.amazonaws.com"}
S3_NAMES = {
    f"{bucket}s3{dual}{region}.amazonaws.com"
    for bucket in ("", "bkt.")
    for dual in ("", ".dualstack")
    for region in ("", ".us-east-1", ".us-west-2", ".eu-west-1", ".eu-central-1")
}


class Violation(AssertionError):
    """A promise was broken."""


@dataclass
class Secret:
    """`kind`: "signature" goes where signed requests may go; "field" there too, and not without TLS where there was some;
    "query" belongs to the first URL's origin alone."""

    kind: str
    value: str


@dataclass(eq=False)
class Call:
    """One call of the engine, and what the taps saw of it."""

    number: int
    method: str
    url: str  # of the first request
    config: engine.Config
    aws: bool
    endpoint_host: str  # "" for plain URLs
    secrets: list[Secret]
    size: int = 0  # of the body
    size_known: bool = True
    replayable: bool = True
    offset: int = 0  # of the source in the pattern
    requests: list[Request] = field(default_factory=list)
    begins_anew: bool = False  # it is being tried again: what comes is no redirect

    @property
    def origin(self) -> tuple[str, str, int]:
        return origin_of(self.url)


def origin_of(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme]


def scope_of(address: str) -> int:
    ip: Any = ipaddress.ip_address(address)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_loopback:
        return 0
    if ip.is_link_local:
        return 1
    return 2 if ip.is_private else 3


def is_listed(call: Call, host: str) -> bool:
    for entry in call.config.redirects.hosts:
        if entry.startswith("*."):
            if host.endswith(entry[1:]):
                return True
        elif "/" in entry:
            try:
                ip: Any = ipaddress.ip_address(host)
            except ValueError:
                continue
            if (getattr(ip, "ipv4_mapped", None) or ip) in ipaddress.ip_network(entry):
                return True
        elif host == entry:
            return True
    return False


def is_trusted(call: Call, origin: tuple[str, str, int]) -> bool:
    """Whether a signed request may go there."""
    _scheme, host, port = origin
    own = call.endpoint_host or call.origin[1]
    if is_listed(call, host):
        return True
    if call.aws:
        return host in S3_NAMES and port in (80, 443)
    if host == own or (call.endpoint_host and host.endswith(f".{own}") and not own[-1].isdigit()):
        return True
    loopback = ("127.0.0.1", "::1", "localhost")
    return own in loopback and host in loopback


class Referee:
    """`steps` counts inputs of the machine; `seen` what happened at all, for the test that something did."""

    def __init__(self) -> None:
        self.now: Any = None
        self.calls: list[Call] = []
        self.log: list[str] | None = None
        self.known_since: dict[Any, float] = {}  # origins that have answered an Expect
        self.asked_no_more: set[Any] = set()  # origins that said 417, or speak HTTP/1.0

    def fail(self, words: str, request: Request | None = None) -> None:
        where = f" ({request.method} {request.target} to {request.link.origin})" if request is not None else ""
        raise Violation(words + where)

    def note(self, words: str) -> None:
        if self.log is not None:
            self.log.append(f"{self.now() - 1000:12.6f}  {words}")

    # --- connections -----------------------------------------------------------------------------------------------

    def dialled(self, call: Call | None, address: str) -> None:
        self.note(f"call {call.number if call else '-'} dials {address}")
        if call is not None:
            self._check_address(call, address)

    def _check_address(self, call: Call, address: str, origin: tuple[str, str, int] | None = None) -> None:
        """Nobody is led nearer to this machine than who leads."""
        answered = [request for request in call.requests if request.status]
        if call.begins_anew:
            return
        if not answered or answered[-1] is not call.requests[-1] or answered[-1].status not in range(300, 400):
            return
        here, there = scope_of(answered[-1].link.address), scope_of(address)
        by_name = is_listed(call, origin[1]) or (call.aws and origin[1] in S3_NAMES) if origin is not None else True
        allowed = there >= here or is_listed(call, address) or (origin is not None and by_name)
        if origin is None:
            # Only the address is known yet: names that the policy lists may be anywhere, and resolve to .7 here.
            allowed = allowed or address.endswith(".7")
        if not allowed:
            self.fail(f"led from a {SCOPES[here]} address to {address}")

    # --- requests --------------------------------------------------------------------------------------------------

    def request_begun(self, request: Request) -> None:
        call, link = request.call, request.link
        if call is None:
            self.fail("a request that belongs to no call")
        before = link.tap.all[-2] if len(link.tap.all) > 1 else None
        if before is not None:
            if not before.complete or before.done_at is None or not before.keeps_alive:
                self.fail("a connection is used again after an exchange that was not complete", before)
            if getattr(link, "spoilt", False):
                self.fail("a connection is used again after bytes that nobody asked for", before)
        for other in call.requests:
            if other.done_at is None and not other.link.client_closed:
                self.fail("a second request while the first is neither answered nor given up", other)
        call.requests.append(request)
        self._check_address(call, link.address, tuple(link.origin))
        call.begins_anew = False
        policy, retry = call.config.redirects, call.config.retry
        most = retry.max_attempts * (2 * (policy.max_hops + 1) + 3) + 6
        if len(call.requests) > most:
            self.fail(f"more than {most} requests")

    def head_sent(self, request: Request) -> None:
        call, origin = request.call, tuple(request.link.origin)
        self.note(f"call {call.number} {request.method} {request.target} to {origin[0]}://{origin[1]}:{origin[2]}")
        host = f"[{origin[1]}]" if ":" in origin[1] else origin[1]
        if origin[2] != {"http": 80, "https": 443}[origin[0]]:
            host += f":{origin[2]}"
        if request.fields["host"] != host:
            self.fail(f"Host is {request.fields['host']}", request)
        self._check_secrets(request, origin)
        before = call.requests[-2] if len(call.requests) > 1 else None
        down = before is not None and before.link.origin[0] == "https" and origin[0] == "http"
        if down and origin != call.origin and not call.config.redirects.allow_downgrade:
            self.fail("from https to http", request)
        if request.method != call.method and request.method != "HEAD":
            self.fail("another method", request)
        if request.method == call.method and (request.size != (call.size if call.size_known else None)):
            self.fail(f"a body of {request.size} bytes is announced", request)

    def _check_secrets(self, request: Request, origin: tuple[str, str, int]) -> None:
        call = request.call
        if origin == call.origin:
            return
        secrets = [secret for secret in call.secrets if secret.value in request.text]
        if "authorization: AWS4" in request.text or "Authorization: AWS4" in request.text:
            secrets.append(Secret("signature", "the signature"))
        bare = call.origin[0] == "https" and origin[0] == "http"
        for secret in secrets:
            allowed = secret.kind != "query" and is_trusted(call, origin)
            if secret.kind == "field" and bare and not is_listed(call, origin[1]):
                allowed = False
            if not allowed:
                self.fail(f"{secret.kind} {secret.value!r} leaks", request)

    # --- bodies ----------------------------------------------------------------------------------------------------

    def body(self, request: Request, start: int, count: int) -> None:
        """Called before `received` counts them."""
        call = request.call
        if start != call.offset + request.received:
            self.fail(f"byte {start} after {request.received} of a source that begins at {call.offset}", request)
        if request.body_at is None:
            request.body_at = self.now()
            self.note(f"call {call.number} body begins")
            self._check_leave(request)
        if request.final_at is not None and self.now() > request.final_at:
            self.fail("body bytes after the final answer was read", request)
        for other in call.requests:
            if other is not request and other.received and other.done_at is None and not other.link.client_closed:
                self.fail("two bodies of one source are in flight", request)

    def _check_leave(self, request: Request) -> None:
        call, config, now = request.call, request.call.config, self.now()
        if request.final_at is not None:
            self.fail("a body for a host that has answered already", request)
        if not request.asks:
            wanted = config.expect in ("always", "strict") or (
                config.expect == "auto" and (not call.size_known or call.size >= 64 * KIB or not call.replayable)
            )
            if wanted and (config.expect == "strict" or tuple(request.link.origin) not in self.asked_no_more):
                self.fail("a body that nobody was asked about", request)
            return
        link = request.link
        # The native sender begins some time after the loop has parsed all there was.
        since = link.arrived_at + (SENDER_BEGINS_S if link.job is not None else 0.0)
        # The framing of a chunked body began to leave before its first byte, and may have been held up by a full socket.
        if link.inbox and request.size is not None and now > since + EPSILON_S:
            self.fail("a body byte leaves while received bytes lie unparsed", request)
        if self._wait_has_ended(request, now):
            return
        s3 = link.origin.host in S3_NAMES or link.origin.host in S3_NAMES_OF_OTHERS
        if request.continue_at is None:
            self.fail("a body without a 100, before the wait has ended", request)
        # A 100 that was there before the head had left is leave too: no server says so that has a redirect to follow.
        elif (
            not s3
            and (not call.size_known or call.size >= MIB)
            and request.head_sent_at is not None
            and request.head_sent_at <= request.continue_at
            and now < request.continue_at + 0.001 - EPSILON_S
        ):
            self.fail("no silence was kept behind the 100", request)

    def _wait_has_ended(self, request: Request, now: float) -> bool:
        """Whether a body may go without a 100."""
        config, origin = request.call.config, tuple(request.link.origin)
        assert request.head_sent_at is not None
        waited = now - request.head_sent_at + EPSILON_S
        if config.expect == "strict":
            return False
        if config.continue_timeout_s != "auto":
            return bool(waited >= config.continue_timeout_s)
        if origin[1] in S3_NAMES or self.known_since.get(origin, 1e9) < request.begun_at:
            return False  # known to answer
        return waited >= 1.0

    # --- answers ---------------------------------------------------------------------------------------------------

    def heard(self, link: Link, kind: str, status: int, keeps_alive: bool) -> None:
        """The engine has read so far."""
        request = link.tap.request
        self.note(f"{link.origin[1] if link.origin else link.address} is heard: {kind} {status or ''}")
        if kind == "done" and request is not None and request.method == "HEAD":
            return  # a server that spoke before it read may mean a body, which the answer to a HEAD never has
        if request is None or request.done_at is not None:
            link.spoilt = True  # type: ignore[attr-defined]
            return
        if kind == "continue":
            request.continue_at = request.continue_at or self.now()
        elif kind == "final":
            request.final_at, request.status, request.keeps_alive = self.now(), status, keeps_alive
        if kind == "done" or (kind == "final" and request.method == "HEAD"):
            request.done_at = self.now()
            self._learn(request)

    def _learn(self, request: Request) -> None:
        assert request.final_at is not None
        if not request.asks or request.head_sent_at is None:
            return
        leave_at = request.final_at if request.continue_at is None else request.continue_at
        if leave_at < (request.body_at or 1e9) and not self._wait_has_ended(request, leave_at):
            self.known_since.setdefault(tuple(request.link.origin), self.now())

    # --- ends ------------------------------------------------------------------------------------------------------

    def succeeded(self, call: Call, status: int, sent: int, hops: tuple[engine.results.Hop, ...]) -> None:
        if not 200 <= status < 300:
            self.fail(f"{status} was called a success")
        last = call.requests[-1]
        if not last.complete or last.status != status or last.done_at is None or last.final_at is None:
            self.fail("a success without a 2xx for the whole request", last)
        if last.body_at is not None and last.final_at < last.body_at:
            self.fail("a success that was announced before the body", last)
        if last.method == call.method and last.received != call.size:
            self.fail(f"a success with {last.received} of {call.size} bytes", last)
        if hops and hops[-1].body_bytes_sent != last.received:
            self.fail("the last hop's account is wrong", last)
        self.accounted(call, sent, hops)

    def accounted(self, call: Call, sent: int, hops: tuple[engine.results.Hop, ...]) -> None:
        """What the engine says it sent is what the taps saw."""
        seen = sum(request.received for request in call.requests)
        if sent != seen or sum(hop.body_bytes_sent for hop in hops) != seen:
            self.fail(f"{sent} bytes are said to have left, {seen} have")
        for hop in hops:
            if hop.body_bytes_read < hop.body_bytes_sent:
                self.fail(f"more sent than read: {hop}")
            if call.replayable and hop.body_bytes_read != hop.body_bytes_sent:
                self.fail(f"read and not sent: {hop}")

    def shown(self, call: Call, text: str) -> None:
        for secret in call.secrets:
            if secret.value in text:
                self.fail(f"{secret.value!r} is shown: {text}")
