"""The redirecting endpoint: plays the scenario that the bucket's name tells (`_scenarios.py`)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from engine.sandbox._errors import S3Error, SignatureRefused, document, xml
from engine.sandbox._exchange import Exchange, interim_head
from engine.sandbox._options import OTHER_REGION
from engine.sandbox._scenarios import Scenario, parse_scenario
from engine.sandbox._store import Store

_FOREVER_S: Final = 600.0
_UNSOLICITED_S: Final = 0.05
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
        self._prepare(exchange, scenario)
        seen = (request.method, request.bucket, request.key)
        stores = self._stores(exchange, scenario) or ("once" in scenario.flags and seen in self._seen)
        if "once" in scenario.flags:
            self._seen.add(seen)
        await self._before(exchange, scenario, stores)
        if stores:
            await self._store.handle(exchange, OTHER_REGION if scenario.verb == "region" else None)
        else:
            await self._say(exchange, scenario)
        if "unsolicited" in scenario.flags:
            await asyncio.sleep(_UNSOLICITED_S)
            await exchange.wire.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")

    def _prepare(self, exchange: Exchange, scenario: Scenario) -> None:
        flags, quirks = scenario.flags, exchange.quirks
        quirks.silent, quirks.late, quirks.twice, quirks.odd = (w in flags for w in ("silent", "late", "twice", "odd"))
        quirks.chunked, quirks.trickle, quirks.cut = (w in flags for w in ("chunked", "trickle", "cut"))
        quirks.tamper, quirks.hide_checksums = "corrupt" in flags, "nochecksum" in flags
        quirks.http10 = quirks.http10 or "http10" in flags
        quirks.gap_s = scenario.values.get("gap")
        quirks.pad = scenario.size("pad") or 0
        if "retry" in scenario.values:
            quirks.fields.append(("Retry-After", str(scenario.size("retry"))))
        if "reset" in flags or "close" in flags:
            exchange.then = "reset" if "reset" in flags else "close"
        elif scenario.status == 417 and exchange.then == "keep":
            exchange.then = "close"  # curl repeats the request on this connection, where it would be taken for body
        elif scenario.verb == "region" and exchange.record.signed_region != OTHER_REGION and exchange.then == "keep":
            exchange.then = "close"  # as S3 does, and boto3 relies on: it has not sent the body, and goes on

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
        for _ in range(scenario.size("flood") or 0):
            await exchange.interim(102)
        await exchange.idle(scenario.values.get("slow", 0.0))
        if (stall := scenario.size("stall")) is not None:
            await exchange.go_ahead()
            await exchange.discard(stall)
            await exchange.idle(_FOREVER_S)
        if stores:
            return
        if (after := scenario.size("after")) is not None:
            await exchange.go_ahead()
            await exchange.discard(after)
        elif "read" in scenario.flags:
            await exchange.go_ahead()
            await exchange.discard()

    async def _say(self, exchange: Exchange, scenario: Scenario) -> None:
        prefix = b""
        if "continue" in scenario.flags or "gap" in scenario.values:
            prefix = interim_head(100)
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
            await exchange.discard(timeout_s=_FOREVER_S)
            await exchange.idle(_FOREVER_S)
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
        if hop < (scenario.size("hops") or 1):
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
            "plain": f"http://{authority}{target}",
            "userinfo": f"http://somebody@{authority}{target}",
            "ftp": f"ftp://{authority}{target}",
            "subresource": _with_query(self._store_url + target, "acl"),
        }
        port = scenario.size("port")
        store_url = self._store_url if port is None else f"{self._store_url.rpartition(':')[0]}:{port}"
        found = [url for flag, url in special.items() if flag in flags] or [store_url + target]
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
