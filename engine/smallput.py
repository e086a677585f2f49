"""Routes for small puts: what the requests to all keys below one URL have in common, made by the code that makes all requests.

A route is an ordinary job for a key that stands for all others, taken apart where that key is. What is done with it
is in `_smallput`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from engine import checksums, hashing, limits, s3, signing
from engine._smallput import Route, SmallPut, SmallPuts
from engine.connection import Connection
from engine.exchange import Exchange, Fate
from engine.proxy import choose_proxy
from engine.request import Job, Shared, head_fields, plan_for
from engine.signing import Credentials
from engine.wire import request_head

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.client import Client
    from engine.config import Config

PROBE: Final = "x"  # the key that stands for all others
# Which options such puts may have: texts that say the same of every key.
_OPTIONS: Final = frozenset({"checksum", "content_type", "if_none_match", "storage_class"})


def small_puts(client: Client, shared: Shared, plan: Callable[[str, Any], Route | None]) -> SmallPuts:
    """Of one client. `plan(prefix, options)` makes a route for it."""
    return SmallPuts(client, shared, plan, _OPTIONS, Fate.REUSE)


def route(
    prefix: str,
    options: Mapping[str, Any],
    shared: Shared,
    client_config: Config,
    job: Job,
    variables: Sequence[str],
    *,
    checks: bool,
) -> Route:
    """The route of which `job` is a put of PROBE. `variables`: of the environment, those it depends on. `checks`: whether
    checksum="auto" is computed."""
    config, intent, url = job.config, job.intent, job.intent.url
    found = Route(prefix, options, client_config, variables)
    base = url.path.removesuffix(PROBE)
    if (
        url.scheme != "http"
        or url.query is not None
        or base == url.path
        or signing.canonical_path(base) != base
        or config.expect not in ("auto", "never")
        or config.payload_signing != "unsigned"
        or config.total_timeout_s is not None
        or choose_proxy(config.proxy, url.origin, os.environ) is not None
    ):
        return found

    def exchange_of(put: SmallPut) -> Exchange:
        plan = plan_for(
            config,
            shared.facts(url.origin),
            url.origin,
            size=put.size,
            replayable=True,
            proxy=None,
            round_trip_s=cast("Connection", put.connection).connect_s,
            streams_answer=False,
        )
        return Exchange(plan, put.sent_at)

    def make_signer(credentials: Credentials) -> signing.Signer:
        return signing.Signer(
            credentials, "PUT", url, intent.fields, region=intent.region, service=s3.signing_service(url)
        )

    head = request_head("PUT", url.target, [*head_fields(url, [("content-length", "0")], asks=False), *intent.fields])
    key_at = len(f"PUT {base}")
    length_at = head.index(b"\r\nContent-Length: 0\r\n") + len(b"\r\nContent-Length: ")
    found.head_before, found.head_after = head[:key_at], head[key_at + len(PROBE) : length_at]
    found.head_end = head[length_at + 1 : -2]
    found.origin = url.origin
    found.exchange_of = exchange_of
    found.path_before = base
    found.shown_before = url.redacted().removesuffix(PROBE)
    found.is_key = bool(intent.bucket)
    found.key_max = limits.KEY_MAX_BYTES
    found.size_max = limits.COALESCE_MAX_BYTES if config.expect == "never" else limits.EXPECT_THRESHOLD_BYTES - 1
    found.response_timeout_s = config.response_timeout_s
    found.algorithm = checksums.AUTO if checks else ""
    found.checksum_field = checksums.header_name(checksums.AUTO)
    found.compute = checksums.whole(checksums.AUTO) if checks else None
    found.verify = hashing.verify
    found.provider = job.provider
    found.make_signer = make_signer
    found.region = intent.region
    found.bucket = intent.bucket
    found.usable = True
    return found
