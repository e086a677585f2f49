"""Every server in every case of AWS's page "Request redirection and the REST API", and refusing in mid-body: docs/servers.md.

The page's four cases: (1) the redirected request has all its fields right; (2) PUT and DELETE are redirected, not only GET;
(3) a large PUT is redirected, and its body leaves once; (4) the 100 takes a long time, or never comes.

Each test asserts what the engine promises, and enters what the server's side saw. The last test compares the whole with the
committed page, or writes it with ``ENGINE_LIVE=write``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest
import uvloop

import engine
from engine import events

from . import matrix
from .cases import pieces
from .conftest import Sample, leave_out, make_sample, serve
from .matrix import NOT_HERE, about
from .servers import SYSTEM_PATH, Apache, Haproxy, Logged, Nginx, Xrootd
from .stands import (
    CephStand,
    Count,
    Received,
    Stand,
    apache_stand,
    counting,
    haproxy_stand,
    lighttpd_stand,
    nginx_stand,
    port_of,
    xrootd_stand,
)

pytestmark = pytest.mark.live

ROWS = (
    *("nginx", "nginx, https", "Apache", "Apache, https", "HAProxy", "HAProxy, https", "HAProxy, backend dead"),
    *("lighttpd", "XRootD, lookup 1", "XRootD, lookup 1, https", "XRootD, lookup 4", "XRootD, lookup 4, https"),
    *("Ceph, zonegroup a to b", "Ceph, zonegroup b to a"),
)
DEAD = "HAProxy, backend dead"
CASES = (
    matrix.Case(
        "fields",
        "1. Every field of the redirected request",
        "A signed PUT with metadata and a content type, redirected. `Host`, `Authorization`, `x-amz-date`, "
        "`x-amz-meta-colour`, `Content-Type`, `Content-Length` and `Expect`, as the storing host saw them, are right; the "
        "signature is, when botocore computes the same from these fields.",
        ("answers", "right at the storing host", "by its", "signature"),
    ),
    matrix.Case(
        "methods",
        "2. PUT and DELETE, not only GET",
        "A PUT, a HEAD, a GET and a DELETE of the same redirecting URL; the object is compared, and gone at the end.",
        ("followed by all four", "303"),
    ),
    matrix.Case(
        "large",
        "3. A large PUT: its body leaves once",
        "A file of 64 MiB. Body bytes as the server's side counted them. The last column is what asking first saves: the same "
        'PUT with `expect="never"`.',
        ("hops", "sent by", "refusing host got", "storing host got", "refusing host when not asked"),
    ),
    matrix.Case(
        "late",
        "4. The 100 takes a long time, or never comes",
        '64 MiB to a host whose answer is late: with `expect="strict"`, and by default to a host never met before, which is '
        "given 1 s. Then a host that never says 100.",
        ("late because", "refusing host, strict", "refusing host, default", "storing host", "never a 100"),
    ),
    matrix.Case(
        "refusal",
        "Refusal in mid-body",
        "64 MiB to a host that says no while the body is on its way.",
        ("how", "the caller gets", "body left", "the host got"),
    ),
)
TABLE = matrix.Matrix(CASES, ROWS)
STOPPED_S = 1.7  # longer than an unknown host is given (1 s), and long enough to fill the kernel's buffers


# --- servers which only this table needs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_nginx() -> Iterator[Nginx]:
    yield from serve(Nginx(tls=True))


@pytest.fixture(scope="module")
def tls_apache() -> Iterator[Apache]:
    yield from serve(Apache(tls=True))


@pytest.fixture(scope="module")
def tls_haproxy(nginx: Nginx) -> Iterator[Haproxy]:
    yield from serve(Haproxy(nginx.store.removeprefix("http://"), tls=True))


@pytest.fixture(scope="module")
def tls_xrootd() -> Iterator[Xrootd]:
    yield from serve(Xrootd(lookup_s=1, tls=True))


@pytest.fixture(scope="module")
def slow_tls_xrootd() -> Iterator[Xrootd]:
    yield from serve(Xrootd(lookup_s=4, tls=True))


@pytest.fixture(scope="module")
def full_tls_xrootd() -> Iterator[Xrootd]:
    yield from serve(Xrootd(lookup_s=1, full_at=4 << 20, tls=True))


Fixtures = Callable[[str], Any]
STANDS: dict[str, Callable[[Fixtures], Stand]] = {
    "nginx": lambda get: nginx_stand(get("nginx")),
    "nginx, https": lambda get: nginx_stand(get("tls_nginx")),
    "Apache": lambda get: apache_stand(get("apache")),
    "Apache, https": lambda get: apache_stand(get("tls_apache")),
    "HAProxy": lambda get: haproxy_stand(get("haproxy"), get("nginx")),
    "HAProxy, https": lambda get: haproxy_stand(get("tls_haproxy"), get("nginx")),
    "lighttpd": lambda get: lighttpd_stand(get("lighttpd")),
    "XRootD, lookup 1": lambda get: xrootd_stand(get("xrootd"), get("full_xrootd")),
    "XRootD, lookup 1, https": lambda get: xrootd_stand(get("tls_xrootd"), get("full_tls_xrootd")),
    "XRootD, lookup 4": lambda get: xrootd_stand(get("slow_xrootd"), get("full_xrootd")),
    "XRootD, lookup 4, https": lambda get: xrootd_stand(get("slow_tls_xrootd"), get("full_tls_xrootd")),
    "Ceph, zonegroup a to b": lambda get: CephStand(get("ceph"), "a", "b"),
    "Ceph, zonegroup b to a": lambda get: CephStand(get("ceph"), "b", "a"),
}


@pytest.fixture(params=STANDS)
def row(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def stand(row: str, request: pytest.FixtureRequest) -> Iterator[Stand]:
    made = STANDS[row](request.getfixturevalue)
    if isinstance(made.server, Nginx) and not made.server.real_time:
        leave_out("nginx cannot be given real-time priority: that takes root")
    with contextlib.ExitStack() as stack:
        if isinstance(made, CephStand):
            stack.enter_context(made.relay)
        yield made


@pytest.fixture(scope="module")
def small_sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A file just large enough to be asked about."""
    return make_sample(tmp_path_factory.mktemp("small") / "small.bin", (128 << 10) + 1)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return uvloop.run(work)


def hops_of(result: engine.PutResult) -> str:
    return " → ".join(str(hop.status) for hop in result.hops)


# --- 1. fields ------------------------------------------------------------------------------------------------------


def recomputed(request: Logged, url: str, credentials: Any) -> str:
    """The Authorization field as botocore makes it from the fields that a server saw."""
    authorization = request.fields["authorization"]
    [scope] = re.findall(r"Credential=[^/]+/\d+/([^/]+)/s3/aws4_request", authorization)
    [names] = re.findall(r"SignedHeaders=([^,]+)", authorization)
    auth = botocore.auth.S3SigV4Auth(botocore.credentials.Credentials(*credentials), "s3", scope)
    signed = {name: request.fields[name] for name in names.split(";")}
    made = botocore.awsrequest.AWSRequest(request.method, url, headers=signed)
    made.context["timestamp"] = request.fields["x-amz-date"]
    canonical = auth.canonical_request(made)
    signature = auth.signature(auth.string_to_sign(made, canonical), made)
    return f"AWS4-HMAC-SHA256 Credential={auth.scope(made)}, SignedHeaders={names}, Signature={signature}"


async def until_logged(stand: Stand, name: str, count: int) -> list[Logged]:
    """The requests for `name` in the server's log, once there are `count`."""
    for _ in range(500):
        found = [each for each in stand.requests() if each.method == "PUT" and each.path.endswith(f"/{name}")]
        if len(found) >= count:
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"{len(found)} of {count} requests are in the log\n{stand.server.logs()}")


def test_every_field_of_the_redirected_request_is_right(row: str, stand: Stand, sample: Sample) -> None:
    name = f"fields-{row.replace(' ', '').replace(',', '-')}"
    stand.know(name)
    url = stand.url(name)

    async def work() -> tuple[engine.PutResult, list[Logged]]:
        async with stand.client() as client:
            options = {"metadata": {"colour": "blue"}, "content_type": "application/x-sample", **stand.sign}
            return await client.put(sample.path, url, **options), await until_logged(stand, name, 2)

    result, (first, second) = run(work())
    assert [hop.body_bytes_sent for hop in result.hops] == [0, sample.size]
    assert stand.digest(name) == sample.sha256
    answered = datetime.strptime(second.fields["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    right = {
        "Host": second.fields["host"] == urlsplit(result.url).netloc != first.fields["host"],
        "Authorization": second.fields["authorization"] != first.fields["authorization"],
        "x-amz-date": abs((datetime.now(timezone.utc) - answered).total_seconds()) < 60,
        "x-amz-meta-colour": second.fields["x-amz-meta-colour"] == "blue",
        "Content-Type": second.fields["content-type"] == "application/x-sample",
        "Content-Length": second.fields["content-length"] == str(sample.size),
        "Expect": second.fields.get("expect") == "100-continue",
    }
    for hidden in stand.hidden_fields:
        assert hidden.lower() not in second.fields
        del right[hidden]
    assert all(right.values()), (right, second)
    assert second.fields["authorization"] == recomputed(second, result.url, stand.credentials)
    accepted = "accepted, and " if isinstance(stand, CephStand) else ""
    TABLE.enter(
        *("fields", row, str(result.hops[0].status)),
        " ".join(["all", *(f"(it does not log `{hidden}`)" for hidden in stand.hidden_fields)]),
        stand.where_fields,
        f"{accepted}equal to botocore's",
    )


# --- 2. methods -----------------------------------------------------------------------------------------------------


def test_put_head_get_and_delete_are_followed(row: str, stand: Stand, small_sample: Sample, tmp_path: Path) -> None:
    async def every_method(client: engine.Client, url: str, name: str) -> None:
        result = await client.put(small_sample.path, url)
        assert [hop.body_bytes_sent for hop in result.hops] == [0, small_sample.size]
        assert stand.digest(name) == small_sample.sha256
        assert (await client.head(url)).size == small_sample.size
        fetched = bytearray()
        assert await client.get(url, fetched.extend) == small_sample.size
        assert bytes(fetched) == small_sample.path.read_bytes()
        await client.delete(url)
        assert stand.digest(name) is None
        with pytest.raises(engine.NotFound):
            await client.head(url)

    async def see_other(client: engine.Client) -> None:
        url = stand.url("methods-303", 303)
        for call in (client.put(small_sample.path, url), client.delete(url)):
            with pytest.raises(engine.RedirectRefused) as refused:
                await call
            assert refused.value.reason.startswith("see-other-on-")
            assert refused.value.body_bytes_sent == 0
        await client.put(small_sample.path, f"{stand.storing}/methods-303")
        assert (await client.head(url)).size == small_sample.size

    async def work() -> None:
        async with stand.client() as client:
            for status in stand.statuses:
                name = f"methods-{status}-{row[:4].strip()}"
                stand.know(name)
                await every_method(client, stand.url(name, status), name)
            if stand.by_status:
                await see_other(client)

    run(work())
    refused = "HEAD and GET follow, PUT and DELETE are refused" if stand.by_status else f"{NOT_HERE} it sends none"
    TABLE.enter("methods", row, matrix.joined(stand.statuses), refused)


# --- 3. large -------------------------------------------------------------------------------------------------------


async def put_counted(
    stand: Stand, sample: Sample, name: str, **options: Any
) -> tuple[engine.PutResult, Received, Received]:
    """One redirected PUT by a new client, and what the two hosts received."""
    stand.know(name)
    with stand.counting(1, 1) as count:
        async with stand.client() as client:
            result = await client.put(sample.path, stand.url(name), on_event=count.watch, **options)
    [refusing], [storing] = count.refusing, count.storing
    return result, refusing, storing


def test_the_body_of_a_large_redirected_put_leaves_once(row: str, stand: Stand, big_sample: Sample) -> None:
    size = big_sample.size
    name = f"large-{row.replace(' ', '').replace(',', '-')}"
    result, refusing, storing = run(put_counted(stand, big_sample, name))
    assert [(hop.body_bytes_sent, hop.body_bytes_read) for hop in result.hops] == [(0, 0), (size, size)]
    assert (refusing.part_of(size), storing.part_of(size)) == ("0", "all")
    assert stand.digest(name) == big_sample.sha256
    plain, wasted, again = run(put_counted(stand, big_sample, f"{name}-n", expect="never"))
    assert plain.hops[0].body_bytes_sent >= wasted.body - 1 or wasted.encrypted
    assert again.part_of(size) == "all"
    assert stand.digest(f"{name}-n") == big_sample.sha256
    TABLE.enter(
        *("large", row, hops_of(result), f"`{result.send_path}`"),
        *(refusing.text(size), storing.text(size), wasted.race_text(size)),
    )


# --- 4. late --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stopped_when_connected(stand: Stand, count: Count, for_s: float) -> Iterator[Callable[[events.Event], None]]:
    """Give an `on_event` which stops the server as soon as it is connected to: what is then sent finds it silent."""
    running = contextlib.ExitStack()
    connected: list[events.Event] = []

    def watch(event: events.Event) -> None:
        count.watch(event)
        if isinstance(event, events.Connected) and not connected:
            connected.append(event)
            running.enter_context(stand.server.stopped())
            asyncio.get_running_loop().call_later(for_s, running.close)

    with running:
        yield watch


async def put_late(
    stand: Stand, sample: Sample, name: str, **options: Any
) -> tuple[engine.PutResult, Received, Received]:
    """As `put_counted`, by a server which is stopped as soon as it is connected to, unless it is late by itself."""
    with contextlib.ExitStack() as stack:
        count = stack.enter_context(stand.counting(1, 1))
        watch = count.watch if stand.late else stack.enter_context(stopped_when_connected(stand, count, STOPPED_S))
        async with stand.client() as client:
            result = await client.put(sample.path, stand.url(name), on_event=watch, **options)
    [refusing], [storing] = count.refusing, count.storing
    return result, refusing, storing


def never_answered(row: str, stand: Stand, sample: Sample) -> str:
    """What becomes of a PUT to a host that never says 100."""
    if isinstance(stand, CephStand):
        return ceph_never_answers(stand, sample)
    if not stand.silent.startswith("http"):
        return f"{NOT_HERE} {stand.silent}"
    name = f"never-{row[:3]}-{stand.server.scheme}"

    async def work() -> engine.PutResult:
        async with stand.client() as client:
            return await client.put(sample.path, f"{stand.silent}/{name}")

    result = run(work())
    assert (result.expect, result.body_bytes_sent) == ("timeout", sample.size)
    assert stand.digest(name) == sample.sha256
    return f"after 1 s sent and stored: {stand.silence}"


def ceph_never_answers(stand: CephStand, sample: Sample) -> str:
    """A gateway that is told not to say 100, and a bucket of its own."""
    ceph, other = stand.ceph, stand.other
    options = {
        "endpoint_url": getattr(ceph, other),
        "region": ceph.region_a,
        "credentials": engine.Credentials(*ceph.keys),
    }
    ceph.configure_gateway(other, "rgw_print_continue", "false")
    try:
        result = engine.put(sample.path, f"s3://{stand.bucket}/never-{other}", **options)
    finally:
        ceph.configure_gateway(other, "rgw_print_continue", "true")
    assert (result.expect, result.body_bytes_sent) == ("timeout", sample.size)
    assert stand.digest(f"never-{other}") == sample.sha256
    return f"after 1 s sent and stored: {stand.silence}"


def test_an_answer_that_is_late_costs_nothing_when_strict_and_part_of_a_body_by_default(
    row: str, stand: Stand, big_sample: Sample, sample: Sample
) -> None:
    size = big_sample.size
    name = f"late-{row.replace(' ', '').replace(',', '-')}"
    strict, nothing, all_of_it = run(put_late(stand, big_sample, f"{name}-s", expect="strict"))
    assert [hop.body_bytes_sent for hop in strict.hops] == [0, size]
    assert strict.hops[0].continue_wait_s > 1
    assert (nothing.part_of(size), all_of_it.part_of(size)) == ("0", "all")
    assert stand.digest(f"{name}-s") == big_sample.sha256
    asked, part, again = run(put_late(stand, big_sample, f"{name}-d"))
    assert 0 < asked.hops[0].body_bytes_sent < size
    assert asked.hops[1].body_bytes_sent == size
    assert (part.part_of(size), again.part_of(size)) == ("part", "all")
    assert stand.digest(f"{name}-d") == big_sample.sha256
    TABLE.enter(
        *("late", row, stand.late or "stopped after its handshake"),
        *(nothing.text(size), part.text(size), again.text(size), never_answered(row, stand, sample)),
    )


# --- refusal in mid-body --------------------------------------------------------------------------------------------


async def put_refused(stand: Stand, sample: Sample) -> tuple[engine.EngineError, Received]:
    refusal = stand.refusal
    source = pieces(sample) if refusal.chunked else sample.path
    if isinstance(stand, CephStand):
        stand.credentials = stand.credentials._replace(secret_key="wrong")
        with stand.counting(1, 0) as count:
            error = await fails(stand, source, count)
        return error, count.refusing[0]
    port = port_of(refusal.url)
    with counting({port: 1}, encrypted=stand.server.tls) as (count, received):
        error = await fails(stand, source, count)
    return error, received[port][0]


async def fails(stand: Stand, source: Any, count: Count) -> engine.EngineError:
    refusal = stand.refusal
    with contextlib.ExitStack() as stack:
        # One that refuses on the head alone would now and then be faster than the first byte of the body.
        at_once = "expect" in refusal.options
        watch = stack.enter_context(stopped_when_connected(stand, count, 0.3)) if at_once else count.watch
        async with stand.client(refusal.server) as client:
            with pytest.raises(refusal.error) as refused:
                await client.put(source, refusal.url, on_event=watch, **refusal.options)
    assert isinstance(refused.value, engine.EngineError)
    return refused.value


def test_a_refusal_in_mid_body_stops_the_body_and_reaches_the_caller(
    row: str, stand: Stand, big_sample: Sample
) -> None:
    size = big_sample.size
    error, received = run(put_refused(stand, big_sample))
    [hop] = error.hops
    assert (hop.status or 0) == stand.refusal.status
    assert 0 < hop.body_bytes_sent < size
    assert received.part_of(size) != "all"
    TABLE.enter(
        *("refusal", row, stand.refusal.how, f"`{type(error).__name__}`"),
        *(f"part {about(hop.body_bytes_sent)}", received.race_text(size)),
    )


# --- a proxy whose backend is dead ----------------------------------------------------------------------------------


def test_a_503_after_three_seconds_of_silence(haproxy: Haproxy, big_sample: Sample) -> None:
    size, port = big_sample.size, port_of(haproxy.dead)

    async def put(**options: Any) -> tuple[engine.ResponseError, Received]:
        with counting({port: 1}, encrypted=False) as (count, received):
            async with engine.Client(config=engine.Config(retry=engine.Retry(max_attempts=1))) as client:
                with pytest.raises(engine.ResponseError) as refused:
                    await client.put(big_sample.path, f"{haproxy.dead}/dead", on_event=count.watch, **options)
        assert refused.value.status == 503
        return refused.value, received[port][0]

    strict, nothing = run(put(expect="strict"))
    assert strict.body_bytes_sent == 0
    assert nothing.part_of(size) == "0"
    asked, part = run(put())
    assert 0 < asked.body_bytes_sent < size
    assert part.part_of(size) == "part"
    for case in ("fields", "methods", "large"):
        TABLE.enter(case, DEAD, f"{NOT_HERE} nothing behind it stores")
    TABLE.enter(
        *("late", DEAD, "three tries to connect, then 503", nothing.text(size), part.text(size)),
        *(NOT_HERE, "503 without a 100"),
    )
    TABLE.enter(
        *("refusal", DEAD, "503 after 3 s of silence", f"`{type(asked).__name__}`"),
        *(f"part {about(asked.body_bytes_sent)}", part.race_text(size)),
    )


# --- the page -------------------------------------------------------------------------------------------------------

VERSIONS: dict[str, tuple[list[str], str]] = {
    "nginx": (["nginx", "-v"], r"nginx/([\d.]+)"),
    "Apache": (["apache2", "-v"], r"Apache/([\d.]+)"),
    "HAProxy": (["haproxy", "-v"], r"version ([\d.]+)"),
    "lighttpd": (["lighttpd", "-v"], r"lighttpd/([\d.]+)"),
    "XRootD": (["xrootd", "-v"], r"v([\d.]+)"),
    "Ceph": (["radosgw", "--version"], r"version ([\d.]+)"),
}


def versions() -> dict[str, str]:
    """What each program says of its version."""
    found = {}
    for name, (argv, pattern) in VERSIONS.items():
        said = subprocess.run(argv, capture_output=True, text=True, env={"PATH": SYSTEM_PATH})
        match = re.search(pattern, said.stdout + said.stderr)
        assert match, f"{argv}: {said}"
        found[name] = match[1]
    return found


def test_the_page_says_what_this_run_has_measured() -> None:
    if TABLE.missing:
        leave_out(f"not all cells were measured: {TABLE.missing}")
    TABLE.versions = versions()
    kernel = ".".join(platform.release().split(".")[:2])
    measured = TABLE.render(f"Linux {kernel}, {datetime.now(timezone.utc):%Y-%m-%d}")
    page = matrix.PAGE.read_text()
    if os.environ.get("ENGINE_LIVE") == "write":
        matrix.PAGE.write_text(matrix.put_into(page, measured))
        return
    changed = matrix.differences(matrix.measured_part(page), measured)
    assert not changed, f"docs/servers.md says otherwise than this run:\n{changed}\n{matrix.REMEDY}"
