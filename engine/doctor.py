"""What an endpoint can do, found out by asking it: for `putengine doctor`. Findings in, advice out; nothing is printed here.

One small object is written beside the place that was named, under a key of its own, and deleted again, also after Ctrl-C. All
requests are made by a `Client` as any program makes them, so what works here works there; times and fields are read off its
events. With `read_only` only HEAD is sent, and what takes a PUT to find out stays open.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import secrets
import shlex
import ssl
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote, unquote

from engine import checksums, events, limits, s3
from engine.client import Client
from engine.display import Paint, format_seconds
from engine.errors import AccessDenied, EngineError, NotFound, PreconditionFailed, RedirectRefused, ResponseError
from engine.proxy import choose_proxy
from engine.results import Hop, ObjectInfo, PutResult
from engine.retry import CLOCK_SKEW_MIN_S, Retry
from engine.tls import Tls
from engine.wire import Origin, is_address, parse_url, printable, redact_url_text

Verdict = Literal["good", "note", "bad", "open"]

WAIT_S: Final = 8.0  # for a go-ahead: XRootD holds its answer about a new name for up to 5 s
PROBE_BYTES: Final = limits.EXPECT_THRESHOLD_BYTES  # the smallest that is asked for by default
_SMALL: Final = b"putengine doctor was here\n" * 8
_CLOCK_NOTE_S: Final = 60.0
_CLOCK_SAME_S: Final = 2.0  # a Date has whole seconds
_CERTIFICATE_SOON_DAYS: Final = 30
_CLEAN_UP_S: Final = 10.0
_ONCE: Final = Retry(max_attempts=1)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
      check: a short stable name ("continue").
      verdict: "good"; "note", to be known; "bad", costs something or fails; "open", not found out.
      text: for people. facts: the same for programs; seconds end in "_s".
    """

    check: str
    verdict: Verdict
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)


class Advice(NamedTuple):
    """An option of the command line that fits this endpoint; `value` is "" for a switch."""

    option: str
    value: str
    why: str


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it.

    Attributes:
      url: what was asked about, redacted. destination: where to put objects, "KEY" standing for their names.
      probe: the object that was written, "" when none was; `deleted` says whether it is gone.
      error: what ended the examination early.
    """

    url: str
    destination: str
    probe: str
    deleted: bool
    findings: tuple[Finding, ...]
    advice: tuple[Advice, ...]
    error: EngineError | None


@dataclass
class _Seen:
    """One request, as the client's events told of it. Times by the monotonic clock, `answered_wall` by the other one."""

    address: str = ""
    reused: bool = False
    connect_s: float = 0.0
    method: str = ""
    url: str = ""
    asked: bool = False
    head_at: float = 0.0
    continue_at: float | None = None
    other_interims: list[int] = field(default_factory=list)
    body_at: float | None = None
    status: int = 0
    answered_at: float = 0.0
    answered_wall: float = 0.0
    version: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    body_bytes_sent: int = 0

    @property
    def origin(self) -> Origin:
        return parse_url(self.url).origin


class _Observer:
    """Turns events into `_Seen`s, in order; hands them on to whoever traces."""

    def __init__(self, also: Callable[[events.Event], object] | None) -> None:
        self.seen: list[_Seen] = []
        self.redirects: list[events.Redirect] = []
        self.resolve_s: float | None = None
        self.also = also

    def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Resolved) and self.resolve_s is None:
            self.resolve_s = event.seconds
        elif isinstance(event, events.Connected):
            self.seen.append(_Seen(event.address, event.reused, event.seconds))
        elif isinstance(event, events.Redirect):
            self.redirects.append(event)
        elif self.seen:
            _note(self.seen[-1], event)
        if self.also is not None:
            self.also(event)


def _note(seen: _Seen, event: events.Event) -> None:
    if isinstance(event, events.HeadSent):
        seen.method, seen.url, seen.asked, seen.head_at = event.method, event.url, event.expect, event.at
    elif isinstance(event, events.Continue) and event.status == 100:
        seen.continue_at = event.at if seen.continue_at is None else seen.continue_at
    elif isinstance(event, events.Continue):
        seen.other_interims.append(event.status)
    elif isinstance(event, events.BodyStarted):
        seen.body_at = event.at
    elif isinstance(event, events.Response):
        seen.status, seen.answered_at, seen.answered_wall = event.status, event.at, time.time()
        seen.body_bytes_sent = event.body_bytes_sent
        first, *lines = event.head.rstrip("\r\n").split("\r\n")
        seen.version = first.partition(" ")[0]
        for line in lines:
            name, _colon, value = line.partition(":")
            seen.fields.setdefault(name.lower(), value.strip())


async def examine(
    client: Client,
    url: str,
    *,
    read_only: bool = False,
    wait_s: float = WAIT_S,
    options: Mapping[str, Any] | None = None,
    on_event: Callable[[events.Event], object] | None = None,
    tell: Callable[[str], object] = lambda _text: None,
) -> Report:
    """Find out what the endpoint of `url` can do. Errors of the network and of the server end up in the report.

    Args:
      url: "s3://bucket", "s3://bucket/prefix/" or an http(s) folder; of a longer name, the place beside it is meant.
      wait_s: how long to wait for a go-ahead before the body goes anyway.
      options: of every call (`engine.client.CallOptions`).
      tell: called with what is being asked, for people who wait.

    Raises UsageError for a URL that is none, and CancelledError (when the probe is deleted).
    """
    examination = _Examination(client, url, read_only, wait_s, dict(options or {}), on_event, tell)
    return await examination.run()


# --- where ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Where:
    """`probe`: the destination to write to; `destination`: the same with KEY for a name; `presigned`: for one object only."""

    probe: str
    absent: str
    destination: str
    is_s3: bool
    bucket: str
    presigned: bool


def _place(url: str) -> _Where:
    name = f"putengine-doctor-{secrets.token_hex(4)}"
    parsed = s3.parse_destination(url, allow_bucket=True)
    if isinstance(parsed, s3.S3Destination):
        folder = parsed.key.rpartition("/")[0] + "/" if "/" in parsed.key else ""
        at = f"s3://{parsed.bucket}/{folder}"
        return _Where(at + name, f"{at}{name}-absent", at + "KEY", True, parsed.bucket, False)
    folder = parsed.path.rpartition("/")[0]
    probe, absent, shown = (
        dataclasses.replace(parsed, path=f"{folder}/{last}") for last in (name, f"{name}-absent", "KEY")
    )
    names = {unquote(part.partition("=")[0]).lower() for part in (parsed.query or "").split("&")}
    presigned = bool(names & {"x-amz-signature", "signature", "sig"})
    return _Where(str(probe), str(absent), shown.redacted(), False, "", presigned)


# --- the examination ----------------------------------------------------------------------------------------------------


class _Examination:
    """State of one run. Steps ask, `_find_…` methods look at what was seen and add findings."""

    def __init__(
        self,
        client: Client,
        url: str,
        read_only: bool,
        wait_s: float,
        options: dict[str, Any],
        on_event: Callable[[events.Event], object] | None,
        tell: Callable[[str], object],
    ) -> None:
        self._client = client
        self._url = url
        self._where = _place(url)
        self._read_only = read_only or self._where.presigned
        self._wait_s = wait_s
        self._observer = _Observer(on_event)
        self._options = {"retry": _ONCE, **options, "on_event": self._observer.on_event}
        self._tell = tell
        self._signs = self._where.is_s3 or options.get("sign") == "s3"
        self._findings: list[Finding] = []
        self._advice: list[Advice] = []
        self._wrote = self._deleted = False
        self._head_hops: tuple[Hop, ...] = ()
        self._expect: Literal["always", "never"] = "always"  # of the puts after the first
        self._patience_s = wait_s  # of the one among them that always asks

    async def run(self) -> Report:
        error: EngineError | None = None
        try:
            await self._all()
        except EngineError as caught:
            error = caught
        finally:
            if self._wrote:
                await self._clean_up()
        return Report(
            url=self._url if self._where.is_s3 else redact_url_text(self._url),
            destination=self._where.destination,
            probe=self._probe_shown if self._wrote else "",
            deleted=self._deleted,
            findings=tuple(self._findings),
            advice=tuple(dict.fromkeys(self._advice)),
            error=error,
        )

    @property
    def _probe_shown(self) -> str:
        return self._where.probe if self._where.is_s3 else redact_url_text(self._where.probe)

    def _find(self, check: str, verdict: Verdict, text: str, **facts: Any) -> None:
        self._findings.append(Finding(check, verdict, text, facts))

    def _advise(self, option: str, value: str, why: str) -> None:
        self._advice.append(Advice(option, value, why))

    async def _all(self) -> None:
        self._tell("asking for an object that is not there")
        try:
            # Of another name: XRootD takes seconds for one that it has not heard of, and a put should show that.
            await self._client.head(self._where.absent, **self._options)
        except RedirectRefused as refused:
            self._find_basics()
            self._find_refused_redirect(refused)
            raise
        except ResponseError as error:
            denied = error if not isinstance(error, NotFound) else None
            self._head_hops = error.hops
        else:
            denied = None
        self._find_basics()
        await self._find_tls()
        if denied is not None and not (isinstance(denied, AccessDenied) and self._signs):
            self._find("access", "note", f"a HEAD of what is not there is answered by {_in_short(denied)}")
        if self._read_only:
            why = "the URL is presigned, for its own object" if self._where.presigned else "--read-only"
            self._find("continue", "open", f"not asked: it takes a PUT ({why})")
            self._find_region()
            return
        result = await self._put_first()
        for step in (
            self._look_at_conditions,
            self._look_at_checksums,
            self._look_at_reading,
            self._look_at_chunked,
            self._look_at_multipart,
            self._look_at_addressing,
        ):
            await step(result)
        self._find_keep_alive()

    # --- connection, HTTP, clock, TLS ---------------------------------------------------------------------------------

    def _answered(self) -> list[_Seen]:
        return [seen for seen in self._observer.seen if seen.status]

    def _find_basics(self) -> None:
        first = self._observer.seen[0]
        origin = first.origin
        proxy = choose_proxy(self._client.config.proxy, origin, os.environ)
        via = f" through the proxy {proxy.origin}" if proxy is not None else ""
        looked_up = ""
        if self._observer.resolve_s is not None and origin.host != first.address:
            looked_up = f", looked up in {format_seconds(self._observer.resolve_s)}"
        self._find(
            "connection",
            "good",
            f"{origin} at {first.address}{via}: connected in {format_seconds(first.connect_s)}{looked_up}",
            origin=str(origin),
            address=first.address,
            connect_s=first.connect_s,
            resolve_s=self._observer.resolve_s,
            proxy=str(proxy.origin) if proxy is not None else None,
        )
        answered = self._answered()
        if not answered:
            return
        last = answered[-1]
        server = printable(last.fields.get("server", ""), 80)
        http10 = last.version == "HTTP/1.0"
        named = f", {server}" if server else ", which does not name itself"
        text = f"{last.version}{named}" + ("; HTTP/1.0 knows no 100-continue" if http10 else "")
        self._find("http", "note" if http10 else "good", text, version=last.version, server=server)
        self._find_clock(last)

    def _find_clock(self, seen: _Seen) -> None:
        date = seen.fields.get("date", "")
        try:
            there = parsedate_to_datetime(date)
        except (ValueError, TypeError, IndexError, OverflowError):
            text = "the server tells no Date" + (
                ": a wrong clock here cannot be corrected by it" if self._signs else ""
            )
            self._find("clock", "note" if self._signs else "open", text)
            return
        there = there if there.tzinfo is not None else there.replace(tzinfo=timezone.utc)
        ahead_s = seen.answered_wall - (there.timestamp() + 0.5)  # it was cut to the second
        size = abs(ahead_s)
        if size < _CLOCK_SAME_S:
            self._find("clock", "good", "the same as the server's, to the second", ahead_s=round(ahead_s, 1))
            return
        text = f"this machine is {format_seconds(size)} {'ahead of' if ahead_s > 0 else 'behind'} the server"
        if size >= CLOCK_SKEW_MIN_S and self._signs:
            text += ": signatures are refused from 15 minutes on; each client then wastes a request to learn it. Set the clock"
        bad = size >= CLOCK_SKEW_MIN_S and self._signs
        verdict: Verdict = "bad" if bad else "note" if size >= _CLOCK_NOTE_S else "good"
        self._find("clock", verdict, text, ahead_s=round(ahead_s, 1))

    async def _find_tls(self) -> None:
        origins = dict.fromkeys(seen.origin for seen in self._answered() if seen.origin.scheme == "https")
        for origin in origins:
            if choose_proxy(self._client.config.proxy, origin, os.environ) is not None:
                self._find("tls", "open", f"{origin}: not looked at through a proxy")
                continue
            try:
                facts = await asyncio.wait_for(
                    _tls_facts(origin, self._client.config.tls), self._client.config.connect_timeout_s
                )
            except (OSError, TimeoutError, asyncio.TimeoutError) as error:
                self._find("tls", "open", f"{origin}: a second connection failed ({type(error).__name__})")
                continue
            self._find_certificate(origin, facts)

    def _find_certificate(self, origin: Origin, facts: dict[str, Any]) -> None:
        text = f"{facts['version']}, {facts['cipher']}"
        days = facts["certificate_days"]
        verdict: Verdict = "bad"
        if days is None:
            text += "; the certificate was not verified"
        else:
            text += f"; certificate by {facts['issuer'] or 'nobody named'}, good for {days} more days"
            verdict = "note" if days < _CERTIFICATE_SOON_DAYS else "good"
        self._find("tls", verdict, text, origin=str(origin), **facts)

    def _find_keep_alive(self) -> None:
        """Whether a connection was used again that had not been closed by us."""
        answered = self._answered()
        closes = [seen for seen in answered if "close" in seen.fields.get("connection", "").lower()]
        if any(seen.reused for seen in answered):
            hint = printable(answered[-1].fields.get("keep-alive", ""), 60)
            self._find("keep-alive", "good", f"connections are used again{f' ({hint})' if hint else ''}", reused=True)
        else:
            said = " (Connection: close)" if closes else ""
            self._find("keep-alive", "note", f"every request needs a connection of its own{said}", reused=False)

    # --- the first put ------------------------------------------------------------------------------------------------

    async def _put_first(self) -> PutResult:
        self._tell(f"putting {self._probe_shown}, asking first")
        start = len(self._observer.seen)
        self._wrote = True
        body = os.urandom(PROBE_BYTES)
        options = {**self._options, "expect": "always", "continue_timeout_s": self._wait_s}
        if options.get("response_timeout_s") is None:
            options["response_timeout_s"] = max(self._client.config.response_timeout_s, self._wait_s)
        try:
            result = await self._client.put(
                body, self._where.probe, content_type="application/octet-stream", metadata=self._metadata, **options
            )
        except EngineError as error:
            self._wrote = bool(error.body_bytes_sent)
            if isinstance(error, ResponseError):
                self._find_continue(self._observer.seen[start:])
            if isinstance(error, RedirectRefused):
                self._find_refused_redirect(error)
            elif isinstance(error, ResponseError):
                self._find("put", "bad", f"refused: {_in_short(error)}", status=error.status, code=error.code)
            raise
        seen = self._observer.seen[start:]
        self._find_continue(seen)
        self._find_redirects(result.hops)
        self._find_region()
        return result

    @property
    def _metadata(self) -> dict[str, str] | None:
        return {"putengine": "doctor"} if self._signs else None

    def _find_continue(self, seen: Sequence[_Seen]) -> None:
        """Of the host that had the last word, which takes the bodies."""
        asked = [one for one in seen if one.method == "PUT" and one.asked]
        if not asked:
            self._expect = "never"
            self._find("continue", "note", "not asked: the server speaks HTTP/1.0", asked=False)
            return
        last = asked[-1]
        connects = [one.connect_s for one in self._observer.seen if one.connect_s and one.origin == last.origin]
        connect_s = connects[0] if connects else 0.0
        wait_s = max(limits.CONTINUE_TIMEOUT_S, limits.CONTINUE_TIMEOUT_ROUND_TRIPS * connect_s)
        if any(one.status == 417 for one in asked):
            self._expect = "never"
            self._find("continue", "note", "refused (417): the server does not want to be asked", status=417)
            self._advise("--expect", "never", "every first request is refused with 417 otherwise")
        elif last.continue_at is not None and (last.body_at is None or last.continue_at <= last.body_at):
            self._find_go_ahead(last, last.continue_at - last.head_at, wait_s, connect_s)
        elif last.body_at is None and last.status:
            took_s = last.answered_at - last.head_at
            text = f"answered with {last.status} after {format_seconds(took_s)}, before any body byte and without a 100"
            self._find("continue", "good", text, status=last.status, seconds=took_s)
            self._slow(took_s, wait_s)
        elif last.continue_at is not None:
            self._expect = "never"
            text = f"a 100 comes only when body bytes have come (waited {format_seconds(self._wait_s)} for it)"
            self._find("continue", "bad", text, late=True, waited_s=self._wait_s)
            self._patience_s = limits.CONTINUE_TIMEOUT_S
            self._advise(
                "--expect", "never", "asking only costs time: the server says 100 when the body is there already"
            )
        else:
            self._expect = "never"
            text = f"no 100 and no answer within {format_seconds(self._wait_s)}; the body went then"
            self._find("continue", "bad", text, waited_s=self._wait_s)
            self._patience_s = limits.CONTINUE_TIMEOUT_S
            self._advise("--expect", "never", f"asking costs {format_seconds(wait_s)} a call, and is not answered")

    def _find_go_ahead(self, seen: _Seen, took_s: float, wait_s: float, connect_s: float) -> None:
        text = f"a 100 came {format_seconds(took_s)} after the head"
        if connect_s:
            text += f" (connecting took {format_seconds(connect_s)})"
        if seen.other_interims:
            text += f"; before it {', '.join(map(str, seen.other_interims))}"
        verdict: Verdict = "note" if took_s > wait_s else "good"
        self._find("continue", verdict, text, seconds=took_s, connect_s=connect_s)
        self._slow(took_s, wait_s)

    def _slow(self, took_s: float, wait_s: float) -> None:
        if took_s <= wait_s * 0.8:
            return
        why = f"the answer takes {format_seconds(took_s)}; unknown servers are waited for {format_seconds(wait_s)}"
        self._advise("--continue-timeout", str(math.ceil(2 * took_s + 1)), why)
        if not self._observer.redirects:
            self._expect = "never"  # a dozen puts follow

    # --- redirects and regions ----------------------------------------------------------------------------------------

    def _find_redirects(self, hops: Sequence[Hop]) -> None:
        followed = [hop for hop in hops if hop.outcome in ("redirected", "region")]
        # A 301 to the HEAD is remembered: the put went to the right place at once.
        followed = followed or [hop for hop in self._head_hops if hop.outcome == "redirected"]
        if not followed:
            self._find("redirects", "good", "none", count=0)
            return
        wasted = sum(hop.body_bytes_sent for hop in followed)
        events_ = self._observer.redirects[-len(followed) :]
        way = ", then ".join(f"{event.status} to {parse_url(event.url).origin}" for event in events_)
        when = f", after {wasted} body bytes had left" if wasted else ", before any body byte"
        waited_s = max(hop.continue_wait_s for hop in followed)
        facts = {
            "count": len(followed),
            "wasted_bytes": wasted,
            "locations": [event.url for event in events_],
            "statuses": [event.status for event in events_],
            "seconds": waited_s,
        }
        self._find(
            "redirects", "bad" if wasted else "good", f"{way}{when} (answered in {format_seconds(waited_s)})", **facts
        )
        wait_s = limits.CONTINUE_TIMEOUT_S
        if wasted:
            self._expect, self._patience_s = "never", wait_s
        if not wasted and waited_s > wait_s * 0.8:
            self._slow(waited_s, wait_s)
        there = parse_url(events_[-1].url)
        elsewhere = events_[-1].kind == "location" and there.path.startswith(f"/{self._where.bucket}/")
        if self._where.is_s3 and elsewhere and s3.split_s3_host(there.host) is None:
            if wasted:
                self._advise("--endpoint-url", str(there.origin), "the redirect comes when the body has been sent")
            elif events_[-1].status in (301, 308):
                self._advise(
                    "--endpoint-url", str(there.origin), "where the bucket is for good; saves a refused request"
                )

    def _find_refused_redirect(self, refused: RedirectRefused) -> None:
        self._find(
            "redirects",
            "bad",
            f"{refused.status} to {refused.location or 'nowhere'} is not followed ({refused.reason})",
            status=refused.status,
            location=refused.location,
            reason=refused.reason,
        )
        if refused.reason == "downgrade":
            self._advise("--allow-downgrade", "", "the redirect leads from https to http: only if the network is yours")
        elif refused.reason in ("host-not-allowed", "secret-would-leak", "private-address"):
            host = parse_url(refused.location).host
            self._advise("--redirect-host", host, f"if {host} is yours: requests are sent there only when it is listed")

    def _find_region(self) -> None:
        if not self._signs:
            return
        regions = [region for seen in self._answered() if (region := seen.fields.get("x-amz-bucket-region"))]
        told = printable(regions[-1], 63) if regions else ""
        led = next((event.region for event in reversed(self._observer.redirects) if event.kind != "location"), "")
        region = told or led
        if not region:
            self._find("region", "open", "the server does not tell one: any that it accepts will do", region=None)
            return
        self._find("region", "note" if led else "good", f"{region}, says the server", region=region)
        if led:
            self._advise("--region", led, "saves a refused request")

    # --- what the store does with a put -------------------------------------------------------------------------------

    async def _again(self, body: object, **options: Any) -> PutResult:
        return await self._client.put(body, self._where.probe, **{**self._options, "expect": self._expect, **options})

    async def _look_at_conditions(self, _result: PutResult) -> None:
        self._tell("putting over what is there, with a condition")
        start = len(self._observer.seen)
        try:
            await self._again(_SMALL, if_none_match="*", expect="always", continue_timeout_s=self._patience_s)
        except PreconditionFailed as error:
            seen = self._observer.seen[start:]
            heard_100 = any(one.continue_at is not None for one in seen)
            when = "before the body" if not error.body_bytes_sent else "after the body had been sent"
            if heard_100 and not error.body_bytes_sent:
                when = "before the body, but behind a 100: over a network some of it will leave"
            verdict: Verdict = "note" if error.body_bytes_sent or heard_100 else "good"
            text = f"if-none-match: * is honoured, refused with {error.status} {when}"
            self._find("conditions", verdict, text, status=error.status, body_bytes_sent=error.body_bytes_sent)
        except ResponseError as error:
            self._find("conditions", "bad", f"if-none-match: * is not known here: {_in_short(error)}", honoured=False)
        except EngineError as error:
            self._find("conditions", "open", f"could not be tried: {_in_short(error)}")
        else:
            text = "if-none-match: * is ignored: what is there is overwritten, do not rely on --if-none-match"
            self._find("conditions", "bad", text, honoured=False)

    async def _look_at_checksums(self, result: PutResult) -> None:
        computed = result.checksum
        facts: dict[str, Any] = {"auto_verified": result.checksum_verified}
        if not self._signs:
            good = result.checksum_verified
            text = (
                "the answer names one, which was compared" if good else "none is returned: nothing says what was stored"
            )
            self._find("checksums", "good" if good else "note", text, **facts)
            return
        checked: list[str] = []
        ignored: list[str] = []
        refused: list[str] = []
        self._tell("putting with checksums that are wrong")
        judging = (self._judge_checksum(name, checked, ignored, refused) for name in checksums.ALGORITHMS)
        await asyncio.gather(*judging)
        for found in (checked, ignored, refused):
            found.sort(key=checksums.ALGORITHMS.index)
        facts |= {"checked": checked, "ignored": ignored, "refused": refused}
        told = ((checked, "checked when sent along"), (ignored, "ignored when sent along"), (refused, "refused"))
        words = [f"{', '.join(names)} {how}" for names, how in told if names]
        if result.checksum_verified and computed is not None:
            words.insert(0, f"{computed.algorithm} comes back: --checksum auto (the default) verifies every put")
        else:
            words.insert(0, "none comes back that --checksum auto could compare")
            if checked:
                best = next(name for name in ("crc64nvme", "crc32c", "crc32", "sha256") if name in checked)
                self._advise("--checksum", best, "the server then checks what it stores; by default nobody does")
        verdict: Verdict = "good" if result.checksum_verified else "note" if checked else "bad"
        self._find("checksums", verdict, "; ".join(words), **facts)

    async def _judge_checksum(self, algorithm: str, checked: list[str], ignored: list[str], refused: list[str]) -> None:
        """Sends a sum that is right, then one that is not: who takes both looks at neither."""
        try:
            await self._again(
                _SMALL, checksum=algorithm, on_event=self._observer.also
            )  # four at a time: their events would mix
        except EngineError:
            refused.append(algorithm)
            return
        wrong = checksums.new(algorithm)
        wrong.update(b"something else")
        name = checksums.header_name(algorithm)
        headers = {**(self._options.get("headers") or {}), name: wrong.digest_base64()}
        try:
            await self._again(_SMALL, checksum=None, headers=headers, on_event=self._observer.also)
        except ResponseError:
            checked.append(algorithm)
        except EngineError:
            refused.append(algorithm)
        else:
            ignored.append(algorithm)

    async def _look_at_reading(self, _result: PutResult) -> None:
        self._tell("reading back what was written")
        try:
            info: ObjectInfo = await self._client.head(self._where.probe, **self._options)
        except EngineError as error:
            self._find("reading", "note", f"what was written cannot be looked at: {_in_short(error)}")
            return
        words = [f"{info.size} bytes" if info.size >= 0 else "no size is told"]
        words += ["etag" if info.etag else "no etag"]
        words += [f"version {printable(info.version_id, 40)}"] if info.version_id else []
        if info.version_id:
            words.append("(versioned: a delete leaves the old versions behind)")
        self._find("reading", "good", f"HEAD tells {', '.join(words)}", size=info.size, versioned=bool(info.version_id))

    async def _look_at_chunked(self, _result: PutResult) -> None:
        self._tell("putting without telling the length")
        try:
            await self._again(_pieces(), checksum=None)
        except ResponseError as error:
            text = f"a body of unknown length is refused ({error.status}): give --size when putting a pipe"
            self._find("chunked", "note", text, accepted=False, status=error.status)
        except EngineError as error:
            self._find("chunked", "open", f"could not be tried: {_in_short(error)}")
        else:
            self._find("chunked", "good", "a body of unknown length is accepted: pipes need no --size", accepted=True)

    async def _look_at_multipart(self, result: PutResult) -> None:
        if not self._signs:
            return
        self._tell("beginning a multipart upload, and aborting it")
        url = result.hops[-1].url
        options = {**self._options, "sign": "s3"}
        try:
            answer = await self._client.request("POST", f"{url}?uploads", **options)
            leaves = dict(s3.xml_leaves(answer.body)) if answer.status == 200 else {}
        except (EngineError, s3.XmlError) as error:
            self._find("multipart", "open", f"could not be tried: {printable(str(error), 200)}")
            return
        upload = leaves.get("InitiateMultipartUploadResult/UploadId", "")
        if not upload:
            code = s3.parse_error(answer.body).code
            self._find(
                "multipart", "note", f"is not spoken ({answer.status}{f' {code}' if code else ''})", spoken=False
            )
            return
        gone = await self._client.request("DELETE", f"{url}?uploadId={quote(upload, safe='')}", **options)
        aborted = gone.status in (200, 204)
        text = (
            "is spoken"
            if aborted
            else f"is spoken, but upload {printable(upload, 80)} could not be aborted ({gone.status})"
        )
        self._find("multipart", "good" if aborted else "bad", text, spoken=True, aborted=aborted)

    async def _look_at_addressing(self, result: PutResult) -> None:
        if not self._where.is_s3:
            return
        bucket, url = self._where.bucket, parse_url(result.hops[-1].url)
        if url.host.startswith(f"{bucket}."):
            self._find("addressing", "good", "virtual-host", style="virtual")
            return
        if is_address(url.host) or s3.split_s3_host(url.host) is not None:
            self._find("addressing", "good", "path-style", style="path")
            return
        self._tell("asking for the bucket's name in the host's")
        path = url.path.removeprefix(f"/{bucket}")
        there = dataclasses.replace(url, host=f"{bucket}.{url.host}", path=path or "/")
        try:
            options = {**self._options, "sign": "s3", "connect_timeout_s": 2.0}
            answer = await self._client.request("HEAD", str(there), **options)
            works = answer.status == 200 and bool(answer.headers.get("etag"))
        except EngineError:
            works = False
        text = "path-style; virtual-host works too" if works else "path-style; virtual-host does not work here"
        self._find("addressing", "good", text, style="path", virtual=works)

    # --- leaving ------------------------------------------------------------------------------------------------------

    async def _clean_up(self) -> None:
        self._tell(f"deleting {self._probe_shown}")
        try:
            await self._client.delete(self._where.probe, **{**self._options, "total_timeout_s": _CLEAN_UP_S})
            self._deleted = True
        except NotFound:
            self._deleted = True
        except EngineError as error:
            text = f"{self._probe_shown} could not be deleted ({_in_short(error)}): delete it by hand if it is there"
            self._find("probe", "bad", text, deleted=False)


async def _pieces() -> AsyncIterator[bytes]:
    yield _SMALL


async def _tls_facts(origin: Origin, option: Any) -> dict[str, Any]:
    """Of a connection of our own: version, cipher, who issued the certificate, days until it expires."""
    context = await Tls(option).context()
    _reader, writer = await asyncio.open_connection(origin.host, origin.port, ssl=context, server_hostname=origin.host)
    try:
        session = writer.get_extra_info("ssl_object")
        certificate = session.getpeercert() or {}
        days = None
        if "notAfter" in certificate:
            days = int((ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) // 86_400)
        issuer = {name: value for part in certificate.get("issuer", ()) for name, value in part}
        return {
            "version": session.version(),
            "cipher": (session.cipher() or ("?",))[0],
            "issuer": printable(issuer.get("organizationName") or issuer.get("commonName") or "", 80),
            "certificate_days": days,
        }
    finally:
        writer.transport.abort()


def _in_short(error: EngineError) -> str:
    """Status and code, or the name of the error."""
    if isinstance(error, ResponseError):
        return f"{error.status} {error.code}".rstrip()
    return f"{type(error).__name__}: {error.message}"


# --- for people ---------------------------------------------------------------------------------------------------------


def command(report: Report, given: Sequence[str]) -> str:
    """A command line to be copied: `given` are the options that name the server; an advised one takes the place of its like."""
    advised = {advice.option: advice.value for advice in report.advice}
    words, rest = ["putengine", "put", "FILE", report.destination], list(given)
    while rest:
        option = rest.pop(0)
        values = [rest.pop(0)] if rest and not rest[0].startswith("--") else []
        if option not in advised or option == "--redirect-host":
            words += [option, *values]
    for option, value in advised.items():
        words += [option, value] if value else [option]
    return shlex.join(words)


def lines(report: Report, command: str, paint: Paint, columns: int = 100) -> list[str]:
    """The report: checks in aligned lines, then what to use."""
    marks = {
        "good": paint.green("ok  "),
        "note": paint.yellow("note"),
        "bad": paint.red("bad "),
        "open": paint.dim("?   "),
    }
    width = max((len(finding.check) for finding in report.findings), default=0)
    told: list[str] = []
    for finding in report.findings:
        first, *more = _wrapped(finding.text, columns - width - 10)
        told.append(f"  {marks[finding.verdict]}  {finding.check:<{width}}  {first}")
        told += [f"{'':{width + 10}}{line}" for line in more]
    if report.probe and report.deleted:
        told.append(f"  {paint.dim(f'written and deleted again: {report.probe}')}")
    if report.error is None or report.advice:
        told += ["", f"use: {paint.bold(command)}"]
        wide = max((len(f"{advice.option} {advice.value}") for advice in report.advice), default=0)
        told += [f"  {f'{advice.option} {advice.value}':<{wide}}  {advice.why}" for advice in report.advice]
    return told


def _wrapped(text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, max(40, columns), break_long_words=False, break_on_hyphens=False) or [""]
