"""The redirecting endpoint: what it does with a request is written in the name of the bucket.

A scenario is a verb and modifiers, joined by "-"; what stands behind a "." is free, so that `redirect-307.a` and
`redirect-307.b` are two buckets with one behaviour. Unless said otherwise the answer comes at once, without reading the body,
and the connection stays open.

    redirect-301 -302 -303 -307 -308   Location is the same path on the storing endpoint
    answer-<status>                    S3's error document for 4xx and 5xx, else empty (417: if Expect is there; closes)
    region-301 region-400              the bucket lives in region sandbox-2: refused until signed for that; then stored
    store                              what the storing endpoint would do
    drop                               the connection is closed without an answer
    hang                               no answer ever comes
    garbage                            what comes is not HTTP

    when     once          the first request of a method for a key only; after that stored
    before   hints processing   a 103 / a 102 first
             slow-<time>   this long before the 100 or the answer: slow-5s, slow-300ms
             silent        no 100, ever
             continue      a 100 and the answer in one write
             gap-<time>    a 100, and the answer this much later: gap-20us
    body     read          the whole body is read before the answer (100 first, unless silent)
             after-<size>  so much of the body is read before the answer: after-64k, after-1m
             stall-<size>  so much of the body is read, then nothing for 10 minutes
    answer   bare          (redirect) no Location; x-amz-bucket-region and <Endpoint> instead
             mute          (redirect, region) no Location, no region, no document: only HEAD of the bucket tells
             relative query ceph   Location is a path on the same host with ?rk=1, then stored; has ?rk=1; ends in a bare "?"
             loop          Location is the request's own URL
             hops-<n>      n redirects, the last one to the storing endpoint
             elsewhere linklocal   Location is on redirect.example.test; on 169.254.169.254
             https userinfo ftp    Location has that scheme, a user@, that scheme
             subresource   Location adds ?acl
             two           two Location fields which differ
             retry-<n>     Retry-After: n
             http10        the answer is HTTP/1.0
    stored   corrupt       one byte is changed before it is stored
             nochecksum    the answer names no checksum
    end      close reset   the connection is closed behind the answer, orderly or by RST
             unsolicited   a 408 nobody asked for follows 50 ms behind the answer

Examples: redirect-307, redirect-307-after-64k, redirect-307-read (as h2o and Apache do), redirect-307-gap-5us (as nginx does),
redirect-301-bare (as S3 does), answer-503-once, answer-403-after-1m-reset, store-slow-5s, store-silent, store-hints-slow-1s,
answer-200-after-64k, drop-continue, drop-once.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from dataclasses import dataclass
from typing import Final

from engine.sandbox._connection import Exchange
from engine.sandbox._errors import S3Error, SignatureRefused, document, xml
from engine.sandbox._options import OTHER_REGION
from engine.sandbox._store import Store

_STALL_S: Final = 600.0
_UNSOLICITED_S: Final = 0.05
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_VERBS: Final = ("redirect", "answer", "region", "store", "drop", "hang", "garbage")
_FLAGS: Final = frozenset(
    [
        *(
            "once",
            "hints",
            "processing",
            "silent",
            "continue",
            "read",
            "bare",
            "mute",
            "relative",
            "query",
            "ceph",
            "loop",
        ),
        *(
            "elsewhere",
            "linklocal",
            "https",
            "userinfo",
            "ftp",
            "subresource",
            "two",
            "http10",
            "corrupt",
            "nochecksum",
        ),
        *("close", "reset", "unsolicited"),
    ]
)
_TIMES: Final = ("slow", "gap")
_SIZES: Final = ("after", "stall")
_NUMBERS: Final = ("hops", "retry")
_TIME = re.compile(r"([0-9]{1,6})(us|ms|s|)\Z")
_SIZE = re.compile(r"([0-9]{1,12})([kmg]?)\Z")
_CODES: Final = {
    400: "InvalidRequest",
    403: "AccessDenied",
    404: "NoSuchKey",
    409: "OperationAborted",
    411: "MissingContentLength",
    412: "PreconditionFailed",
    413: "EntityTooLarge",
    429: "TooManyRequests",
    500: "InternalError",
    503: "SlowDown",
    507: "InsufficientStorage",
}


@dataclass(frozen=True, slots=True)
class Scenario:
    verb: str
    status: int = 0
    flags: frozenset[str] = frozenset()
    slow_s: float = 0.0
    gap_s: float | None = None
    after: int | None = None  # bytes
    stall: int | None = None  # bytes
    hops: int = 1
    retry: int | None = None  # seconds


def parse_scenario(bucket: str) -> Scenario | None:
    """None when the name is no scenario."""
    words = bucket.partition(".")[0].split("-")
    verb = words.pop(0)
    if verb not in _VERBS:
        return None
    status = 0
    if verb in ("redirect", "answer", "region"):
        if not words or not re.match(r"[2-5][0-9]{2}\Z", words[0]):
            return None
        status = int(words.pop(0))
    if (verb == "redirect" and status not in _REDIRECTS) or (verb == "region" and status not in (301, 400)):
        return None
    flags: set[str] = set()
    values: dict[str, float] = {}
    while words:
        word = words.pop(0)
        if word in _FLAGS and word not in flags:
            flags.add(word)
            continue
        value = _value(word, words.pop(0)) if words and word not in values else None
        if value is None:
            return None
        values[word] = value
    return Scenario(
        verb,
        status,
        frozenset(flags),
        slow_s=values.get("slow", 0.0),
        gap_s=values.get("gap"),
        after=int(values["after"]) if "after" in values else None,
        stall=int(values["stall"]) if "stall" in values else None,
        hops=int(values.get("hops", 1)),
        retry=int(values["retry"]) if "retry" in values else None,
    )


def _value(word: str, text: str) -> float | None:
    if word in _TIMES and (found := _TIME.match(text)):
        return int(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}[found[2]]
    if word in _SIZES and (found := _SIZE.match(text)):
        return int(found[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[found[2]]
    if word in _NUMBERS and re.match(r"[0-9]{1,4}\Z", text):
        return int(text)
    return None


class Redirector:
    """Plays scenarios; `own_url` and `store_url` are where the two endpoints listen, without a slash at the end."""

    def __init__(self, store: Store, own_url: str, store_url: str) -> None:
        self._store = store
        self._own_url = own_url
        self._store_url = store_url
        self._seen: set[tuple[str, str, str]] = set()

    async def handle(self, exchange: Exchange) -> None:
        request = exchange.request
        scenario = parse_scenario(request.bucket)
        if scenario is None:
            message = "No scenario of the sandbox has this name; `putengine sandbox` prints the table."
            raise S3Error(404, "NoSuchBucket", message, elements=[("BucketName", request.bucket)])
        exchange.record.scenario = request.bucket.partition(".")[0]
        self._look_at_signature(exchange, scenario)
        exchange.silent = "silent" in scenario.flags
        exchange.http10 = exchange.http10 or "http10" in scenario.flags
        if "reset" in scenario.flags or "close" in scenario.flags:
            exchange.then = "reset" if "reset" in scenario.flags else "close"
        elif scenario.status == 417 and exchange.then == "keep":
            exchange.then = "close"  # curl repeats the request on this connection, where it would be taken for body
        if scenario.retry is not None:
            exchange.extra_fields.append(("Retry-After", str(scenario.retry)))
        exchange.tamper = "corrupt" in scenario.flags
        exchange.hide_checksums = "nochecksum" in scenario.flags
        seen = (request.method, request.bucket, request.key)
        stores = self._stores(exchange, scenario) or ("once" in scenario.flags and seen in self._seen)
        self._seen.add(seen)
        await self._before(exchange, scenario, stores)
        if stores:
            await self._store.handle(exchange, OTHER_REGION if scenario.verb == "region" else None)
        else:
            await self._say(exchange, scenario)
        if "unsolicited" in scenario.flags:
            await asyncio.sleep(_UNSOLICITED_S)
            await exchange.wire.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")

    def _look_at_signature(self, exchange: Exchange, scenario: Scenario) -> None:
        """For the record only: a scenario answers whoever asks."""
        region = OTHER_REGION if scenario.verb == "region" else self._store.options.region
        with contextlib.suppress(SignatureRefused):
            self._store.authenticate(exchange, region)

    def _stores(self, exchange: Exchange, scenario: Scenario) -> bool:
        request = exchange.request
        if scenario.verb == "region":
            # HEAD of the bucket answers with the region whatever it was signed for: that is its use.
            return exchange.record.signed_region == OTHER_REGION or (not request.key and request.method == "HEAD")
        if scenario.verb == "redirect" and "mute" in scenario.flags:
            return not request.key and request.method == "HEAD"
        if scenario.verb == "answer" and scenario.status == 417:
            return not request.expects_continue
        followed_relative = "relative" in scenario.flags and request.parameter("rk") is not None
        return scenario.verb == "store" or followed_relative

    async def _before(self, exchange: Exchange, scenario: Scenario, stores: bool) -> None:
        """All that happens ahead of the answer."""
        if "hints" in scenario.flags:
            await exchange.interim(103, [("Link", "</style.css>; rel=preload")])
        if "processing" in scenario.flags:
            await exchange.interim(102)
        if scenario.slow_s:
            await asyncio.sleep(scenario.slow_s)
        if scenario.stall is not None:
            await exchange.go_ahead()
            await exchange.discard(scenario.stall)
            await asyncio.sleep(_STALL_S)
        if stores:
            return
        if scenario.after is not None:
            await exchange.go_ahead()
            await exchange.discard(scenario.after)
        elif "read" in scenario.flags:
            await exchange.go_ahead()
            await exchange.discard()
        elif scenario.gap_s is not None:
            await exchange.interim(100)
            await _pause(scenario.gap_s)

    async def _say(self, exchange: Exchange, scenario: Scenario) -> None:
        prefix = b""
        if "continue" in scenario.flags:
            prefix = exchange.interim_head(100)
            exchange.note_interim(100)
        if scenario.verb in ("drop", "hang", "garbage"):
            await exchange.wire.send(prefix)
            await self._break(exchange, scenario)
        elif scenario.verb == "redirect":
            await self._redirect(exchange, scenario, prefix)
        elif scenario.verb == "region":
            await self._tell_region(exchange, scenario, prefix)
        elif scenario.status >= 400:
            code = _CODES.get(scenario.status, "SandboxSaysNo")
            message = f"This is what the scenario {exchange.record.scenario} says."
            await exchange.refuse(S3Error(scenario.status, code, message), prefix=prefix)
        else:
            await exchange.answer(scenario.status, [("ETag", '"00000000000000000000000000000000"')], prefix=prefix)

    async def _break(self, exchange: Exchange, scenario: Scenario) -> None:
        if scenario.verb == "hang":
            await asyncio.sleep(_STALL_S)
        if scenario.verb == "garbage":
            await exchange.wire.send(b"SSH-2.0-sandbox\r\n\r\n" * 4)
        if exchange.then == "keep":
            exchange.then = "close"

    async def _redirect(self, exchange: Exchange, scenario: Scenario, prefix: bytes) -> None:
        authority = self._store_url.partition("//")[2]
        permanent = scenario.status in (301, 308)
        exchange.record.code = "PermanentRedirect" if permanent else "TemporaryRedirect"
        if "mute" in scenario.flags:
            await exchange.answer(scenario.status, prefix=prefix)
            return
        if "bare" in scenario.flags:
            fields = [("x-amz-bucket-region", self._store.options.region)]
        else:
            fields = [("Location", url) for url in self._locations(exchange, scenario)]
        message = (
            "Please send all future requests to this endpoint." if permanent else "Please re-send this request there."
        )
        elements = [
            ("Code", exchange.record.code),
            ("Message", message),
            ("Endpoint", authority),
            ("Bucket", exchange.request.bucket),
        ]
        body = document("Error", (), namespace=False, raw=xml(elements))
        await exchange.answer(scenario.status, [("Content-Type", "application/xml"), *fields], body, prefix=prefix)

    def _locations(self, exchange: Exchange, scenario: Scenario) -> list[str]:
        request, flags = exchange.request, scenario.flags
        target = request.target
        hop = int(request.parameter("hop") or 1)
        if hop < scenario.hops:
            path = target.partition("?")[0]
            return [f"{self._own_url}{path}?hop={hop + 1}"]
        authority = self._store_url.partition("//")[2]
        special = {
            "relative": _with_query(target, "rk=1"),
            "query": _with_query(self._store_url + target, "rk=1"),
            "ceph": self._store_url + target + ("" if "?" in target else "?"),
            "loop": self._own_url + target,
            "elsewhere": f"http://redirect.example.test{target}",
            "linklocal": f"http://169.254.169.254{target}",
            "https": f"https://{authority}{target}",
            "userinfo": f"http://somebody@{authority}{target}",
            "ftp": f"ftp://{authority}{target}",
            "subresource": _with_query(self._store_url + target, "acl"),
        }
        found = [url for flag, url in special.items() if flag in flags] or [self._store_url + target]
        return [*found, f"http://redirect.example.test{target}"] if "two" in flags else found

    async def _tell_region(self, exchange: Exchange, scenario: Scenario, prefix: bytes) -> None:
        if "mute" in scenario.flags:
            await exchange.answer(scenario.status, prefix=prefix)
            return
        signed = exchange.record.signed_region
        fields = [("x-amz-bucket-region", OTHER_REGION)]
        if scenario.status == 400:
            message = (
                f"The authorization header is malformed; the region '{signed}' is wrong; expecting '{OTHER_REGION}'"
            )
            elements = [("Region", OTHER_REGION)]
            refusal = S3Error(400, "AuthorizationHeaderMalformed", message, elements=elements, fields=fields)
        else:
            message = "The bucket you are attempting to access must be addressed using the specified endpoint."
            elements = [("Endpoint", self._own_url.partition("//")[2]), ("Bucket", exchange.request.bucket)]
            refusal = S3Error(301, "PermanentRedirect", message, elements=elements, fields=fields)
        await exchange.refuse(refusal, prefix=prefix)


def _with_query(url: str, parameter: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{parameter}"


async def _pause(seconds: float) -> None:
    """Exact below a millisecond, where the loop's timers are not."""
    if seconds >= 0.001:
        await asyncio.sleep(seconds)
        return
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
