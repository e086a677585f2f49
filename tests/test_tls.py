"""Everything that holds on plain TCP holds over TLS, and nobody is trusted who should not be.

The promises are the very tests of test_promises.py and test_connection.py, run on fixtures that speak https: TLS 1.3 on uvloop,
TLS 1.2 on asyncio.
"""

from __future__ import annotations

import _ssl
import asyncio
import contextlib
import ctypes
import datetime
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
import uvloop

import engine
from engine import _tls, limits, sandbox, tls
from tests import peers
from tests.conftest import Server
from tests.peers import CONTINUE, OK, raw_server, read_head, read_request, reset
from tests.test_connection import (
    test_a_cancelled_put_leaves_nothing_behind,
    test_a_sink_that_raises_ends_the_get_with_its_own_error,
    test_closing_the_client_ends_what_runs,
)
from tests.test_promises import (
    test_100_and_307_in_one_read_let_no_body_byte_go,
    test_100_and_307_microseconds_apart_let_no_body_byte_go,
    test_103_and_102_are_no_go_ahead,
    test_a_2xx_before_the_whole_body_is_an_error,
    test_a_417_is_followed_by_the_same_request_without_expect_and_remembered,
    test_a_redirect_after_bytes_of_an_iterator_left_is_an_error,
    test_an_iterator_is_asked_for_and_survives_a_redirect_untouched,
    test_case_1_the_redirected_request_carries_every_header_correctly,
    test_case_2_put_head_get_and_delete_follow,
    test_case_2_signed_posts_follow,
    test_case_4_from_an_unknown_host_the_wait_ends_a_307_in_mid_body_stops_it_and_the_file_is_sent_from_its_start,
    test_events_tell_the_story_without_secrets,
    test_five_hops_are_followed,
    test_progress_is_polled_and_ends_at_the_total,
    test_under_strict_the_body_never_goes_without_a_100,
    test_without_any_100_the_body_goes_after_the_wait,
)

Make = Callable[..., engine.Client]
Run = Callable[[Any], Any]
MIB = limits.MIB
ONCE = engine.Retry(max_attempts=1)
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

# Imported to be collected here, with this file's fixtures.
PROMISES = (
    test_100_and_307_in_one_read_let_no_body_byte_go,
    test_100_and_307_microseconds_apart_let_no_body_byte_go,
    test_103_and_102_are_no_go_ahead,
    test_a_2xx_before_the_whole_body_is_an_error,
    test_a_417_is_followed_by_the_same_request_without_expect_and_remembered,
    test_a_cancelled_put_leaves_nothing_behind,
    test_a_redirect_after_bytes_of_an_iterator_left_is_an_error,
    test_a_sink_that_raises_ends_the_get_with_its_own_error,
    test_an_iterator_is_asked_for_and_survives_a_redirect_untouched,
    test_case_1_the_redirected_request_carries_every_header_correctly,
    test_case_2_put_head_get_and_delete_follow,
    test_case_2_signed_posts_follow,
    test_case_4_from_an_unknown_host_the_wait_ends_a_307_in_mid_body_stops_it_and_the_file_is_sent_from_its_start,
    test_closing_the_client_ends_what_runs,
    test_events_tell_the_story_without_secrets,
    test_five_hops_are_followed,
    test_progress_is_polled_and_ends_at_the_total,
    test_under_strict_the_body_never_goes_without_a_100,
    test_without_any_100_the_body_goes_after_the_wait,
)


class Authority:
    """A certificate authority of the tests, and what it issued."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self._count = 0
        self.bundle = str(folder / "ca.pem")
        self._ca.cert_pem.write_to_path(self.bundle)

    def issue(self, *names: str, **options: Any) -> str:
        """Path of a PEM file with a chain and its key."""
        self._count += 1
        path = str(self._folder / f"{self._count}.pem")
        self._ca.issue_cert(*names, **options).private_key_and_cert_chain_pem.write_to_path(path)
        return path

    def server(self, *names: str, version: str | None = None, **options: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.issue(*names or ("127.0.0.1",), **options))
        if version is not None:
            context.minimum_version = context.maximum_version = VERSIONS[version]
        return context

    def client(self, version: str | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.bundle)
        if version is not None:
            context.minimum_version = context.maximum_version = VERSIONS[version]
        return context


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def shared_sandbox(authority: Authority) -> Iterator[sandbox.Sandbox]:
    with sandbox.start(tls=authority.issue("127.0.0.1", "localhost")) as running:
        yield running


class Way(NamedTuple):
    loop: str
    version: str
    path: str  # "tls": the native sender; "tls-ssl": the ssl module alone


@pytest.fixture(params=["uvloop 1.3 tls", "asyncio 1.2 tls-ssl"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    chosen = Way(*request.param.split())
    if chosen.path == "tls" and not _tls.reachable():
        pytest.skip("the interpreter's OpenSSL cannot be reached")
    monkeypatch.setattr(tls, "NATIVE", chosen.path == "tls")
    return chosen


# For what depends on the records themselves.
all_ways = pytest.mark.parametrize(
    "way", ["uvloop 1.3 tls", "asyncio 1.2 tls", "uvloop 1.2 tls-ssl", "asyncio 1.3 tls-ssl"], indirect=True
)


@pytest.fixture
def run(way: Way) -> Run:
    return uvloop.run if way.loop == "uvloop" else asyncio.run


@pytest.fixture
def config(authority: Authority, way: Way) -> engine.Config:
    return engine.Config(tls=authority.client(way.version), retry=ONCE)


@pytest.fixture
def client_of(server: Server, authority: Authority, way: Way) -> Make:
    tls = authority.client(way.version)

    def make(config: engine.Config = engine.Config(), **options: Any) -> engine.Client:  # noqa: B008
        return engine.Client(**{**server.options, "config": config.override(tls=tls), **options})

    return make


async def put(url: str, source: Any, config: engine.Config, **options: Any) -> engine.PutResult:
    async with engine.Client(config=config) as client:
        return await client.put(source, url, **options)


def refusal(url: str, tls: Any, match: str) -> engine.ConnectFailed:
    """Why a put does not come about."""
    with pytest.raises(engine.ConnectFailed, match=match) as caught:
        asyncio.run(put(f"{url}/key", b"abc", engine.Config(tls=tls)))
    return caught.value


def secure(url: str) -> str:
    return url.replace("http:", "https:")


def answer_ok(connection: Any) -> None:
    read_request(connection)
    connection.sendall(OK)


# --- who is trusted -------------------------------------------------------------------------------------------------


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def resolve_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are looked up as ever; what comes of it is this machine."""
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **named: real("127.0.0.1", *rest, **named))


@pytest.mark.parametrize(
    ("names", "host"),
    [
        (["127.0.0.1"], "127.0.0.1"),
        (["store.example"], "store.example"),
        (["*.store.example"], "bucket.store.example"),
        (["*.s3.example", "other.example"], "bucket.s3.example"),
        (["localhost"], "LOCALHOST"),
    ],
)
def test_the_right_name_is_trusted(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, version: str, names: list[str], host: str
) -> None:
    resolve_to_loopback(monkeypatch)
    seen: list[str | None] = []
    context = authority.server(*names, version=version)
    context.sni_callback = lambda _socket, name, _context: seen.append(name)
    with raw_server(answer_ok, context=context) as url:
        url = url.replace("127.0.0.1", host)
        result = asyncio.run(put(f"{url}/key", b"abc", engine.Config(tls=authority.bundle)))
    assert (result.status, result.send_path) == (200, "tls" if tls.NATIVE else "tls-ssl")
    assert result.timings.tls > 0
    # RFC 6066 section 3: an address is no server name.
    assert seen == [None if host == "127.0.0.1" else host.lower()]


def test_an_ipv6_address_is_trusted_when_the_certificate_names_it(authority: Authority) -> None:
    async def main(there: sandbox.Sandbox) -> engine.PutResult:
        async with engine.Client(
            endpoint_url=there.redirector_url,
            region=there.region,
            credentials=there.credentials,
            config=engine.Config(tls=authority.bundle),
        ) as client:
            return await client.put(b"x" * 100_000, "s3://redirect-307/key")

    with sandbox.start(tls=authority.issue("::1"), host="::1") as there:
        assert asyncio.run(main(there)).redirects == 1


@pytest.mark.parametrize(
    ("names", "host"),
    [
        (["other.example"], "store.example"),
        (["*.store.example"], "a.b.store.example"),
        (["*.store.example"], "store.example"),
        (["127.0.0.2"], "127.0.0.1"),
        (["localhost"], "127.0.0.1"),
        (["127.0.0.1"], "localhost"),
    ],
)
def test_a_wrong_name_is_refused_before_any_request(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, version: str, names: list[str], host: str
) -> None:
    resolve_to_loopback(monkeypatch)
    heads: list[bytes] = []
    with raw_server(lambda c: heads.append(read_head(c)), context=authority.server(*names, version=version)) as url:
        url = url.replace("127.0.0.1", host)
        error = refusal(url, authority.bundle, r"is for another (host|address)")
    assert not any(heads)
    assert (error.retryable, error.attempts, error.stage) == (False, 1, "tls")


def test_an_expired_certificate_is_refused(authority: Authority, version: str) -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    context = authority.server("127.0.0.1", version=version, not_before=past - datetime.timedelta(1), not_after=past)
    with raw_server(read_head, context=context) as url, pytest.raises(engine.ConnectFailed, match="has expired"):
        asyncio.run(put(f"{url}/key", b"abc", engine.Config(tls=authority.bundle)))


def test_a_certificate_of_the_future_is_refused(authority: Authority) -> None:
    ahead = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(365)
    context = authority.server("127.0.0.1", not_before=ahead, not_after=ahead + datetime.timedelta(1))
    with raw_server(read_head, context=context) as url, pytest.raises(engine.ConnectFailed, match="not valid yet"):
        asyncio.run(put(f"{url}/key", b"abc", engine.Config(tls=authority.bundle)))


def test_an_unknown_authority_is_refused(authority: Authority, tmp_path: Path, version: str) -> None:
    stranger = Authority(tmp_path)
    with raw_server(read_head, context=stranger.server(version=version)) as url:
        error = refusal(url, authority.bundle, r"not trusted")
    assert not error.retryable


def test_the_system_s_store_does_not_know_the_test_authority(authority: Authority) -> None:
    with raw_server(read_head, context=authority.server()) as url:
        refusal(url, None, "not trusted")


def test_a_self_signed_certificate_is_refused_unless_it_is_named(authority: Authority, tmp_path: Path) -> None:
    """trustme's own root is a self-signed certificate for nobody; as a server's it is refused for being self-signed first."""
    ca = trustme.CA()
    root, pem = str(tmp_path / "root.pem"), tmp_path / "both.pem"
    ca.cert_pem.write_to_path(root)
    pem.write_bytes(ca.private_key_pem.bytes() + ca.cert_pem.bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with raw_server(read_head, context=context) as url:
        refusal(url, authority.bundle, r"self-signed")


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_the_environment_names_the_bundle(authority: Authority, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, authority.bundle)
    with raw_server(answer_ok, context=authority.server()) as url:
        assert asyncio.run(put(f"{url}/key", b"abc", engine.Config())).status == 200


def test_a_folder_of_hashed_names_is_a_bundle_too(authority: Authority, tmp_path: Path) -> None:
    with raw_server(read_head, answer_ok, context=authority.server()) as url:
        refusal(url, str(tmp_path), "not trusted")
        hashed = subprocess.run(
            ["openssl", "x509", "-noout", "-hash", "-in", authority.bundle], check=True, capture_output=True, text=True
        )
        shutil.copy(authority.bundle, tmp_path / f"{hashed.stdout.strip()}.0")
        assert asyncio.run(put(f"{url}/key", b"abc", engine.Config(tls=str(tmp_path)))).status == 200


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_bundle_that_cannot_be_read_is_the_caller_s_mistake(tmp_path: Path, content: str | None) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    with raw_server() as url, pytest.raises(engine.UsageError, match=r"bundle\.pem"):
        asyncio.run(put(f"{secure(url)}/key", b"abc", engine.Config(tls=str(bundle))))


def test_a_context_for_servers_is_the_caller_s_mistake(authority: Authority) -> None:
    with raw_server() as url, pytest.raises(engine.UsageError, match="context"):
        asyncio.run(put(f"{secure(url)}/key", b"abc", engine.Config(tls=authority.server())))


def test_who_asks_not_to_verify_is_obeyed(authority: Authority) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with raw_server(answer_ok, context=authority.server("nobody.example")) as url:
        assert asyncio.run(put(f"{url}/key", b"abc", engine.Config(tls=context))).status == 200


def test_a_client_certificate_is_shown(authority: Authority, version: str) -> None:
    seen: list[Any] = []

    def answer(connection: ssl.SSLSocket) -> None:
        seen.append(connection.getpeercert())
        answer_ok(connection)

    server = authority.server(version=version)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(authority.bundle)
    client = authority.client()
    client.load_cert_chain(authority.issue("client.example"))
    with raw_server(answer, context=server) as url:
        assert asyncio.run(put(f"{url}/key", b"abc", engine.Config(tls=client))).status == 200
    assert seen[0]["subjectAltName"] == (("DNS", "client.example"),)


@pytest.mark.parametrize("stranger", [False, True])
def test_a_missing_or_unknown_client_certificate_is_an_error_in_words(
    authority: Authority, tmp_path: Path, version: str, stranger: bool
) -> None:
    """TLS 1.3 tells only when the client has sent its request: the alert comes instead of an answer."""
    server = authority.server(version=version)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(authority.bundle)
    client = authority.client()
    if stranger:
        client.load_cert_chain(Authority(tmp_path).issue("client.example"))
    with raw_server(read_head, context=server) as url:
        error = refusal(url, client, r"client's certificate|refused|in common")
    assert not error.retryable
    assert error.body_bytes_sent <= 3


# --- the handshake --------------------------------------------------------------------------------------------------


def test_no_common_version_is_an_error_in_words(authority: Authority) -> None:
    with raw_server(read_head, context=authority.server(version="1.2")) as url:
        error = refusal(url, authority.client("1.3"), r"no protocol version or cipher in common")
    assert (error.retryable, error.attempts) == (False, 1)


def test_a_port_that_speaks_plain_http_is_an_error_in_words(authority: Authority) -> None:
    def complain(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    with raw_server(complain) as url, pytest.raises(engine.ConnectFailed, match="plain http"):
        asyncio.run(put(f"{secure(url)}/key", b"abc", engine.Config(tls=authority.bundle)))


@pytest.mark.parametrize("rude", [False, True])
def test_a_close_in_the_handshake_is_tried_again(authority: Authority, rude: bool) -> None:
    def leave(connection: ssl.SSLSocket) -> None:
        connection.recv(4096)
        if rude:
            reset(connection)

    config = engine.Config(tls=authority.bundle, retry=engine.Retry(max_attempts=2, base_s=0.01))
    with raw_server(leave, leave) as url, pytest.raises(engine.ConnectFailed, match="closed during") as caught:
        asyncio.run(put(f"{secure(url)}/key", b"abc", config))
    assert caught.value.attempts == 2


def test_a_silent_handshake_is_a_connect_timeout(authority: Authority) -> None:
    def silent(connection: socket.socket) -> None:
        while connection.recv(4096):
            pass

    before = peers.descriptors()
    config = engine.Config(tls=authority.bundle, connect_timeout_s=0.2, retry=ONCE)
    with raw_server(silent) as url, pytest.raises(engine.ConnectTimedOut) as caught:
        asyncio.run(put(f"{secure(url)}/key", b"abc", config))
    assert caught.value.limit_s == 0.2
    assert not {what for fd, what in peers.descriptors().items() if fd not in before and "socket" in what}


def test_cancelled_handshakes_leave_nothing_behind(authority: Authority, run: Run, config: engine.Config) -> None:
    async def main(url: str) -> None:
        for number in range(40):
            async with engine.Client(config=config) as client:
                transfer = client.start_put(b"abc", f"{url}/key")
                await asyncio.sleep(number * 0.0002)
                transfer.cancel()
                await asyncio.wait([transfer._task])
        assert len(asyncio.all_tasks()) == 1

    def answer(connection: ssl.SSLSocket) -> None:
        if read_request(connection)[0]:
            connection.sendall(OK)

    with raw_server(*[answer] * 41, context=authority.server()) as url:
        run(put(f"{url}/key", b"abc", config))
        before = peers.descriptors()
        run(main(url))
        left = {what for fd, what in peers.descriptors().items() if fd not in before and "socket" in what}
        assert len(left) <= 4, left  # of the server's threads


def test_what_alpn_agrees_on_must_be_http_1(authority: Authority) -> None:
    server, client = authority.server(), authority.client()
    server.set_alpn_protocols(["h2"])
    client.set_alpn_protocols(["h2", "http/1.1"])
    with raw_server(read_head, context=server) as url:
        error = refusal(url, client, r"'h2'")
    assert not error.retryable


def test_our_own_context_offers_http_1_1(authority: Authority) -> None:
    seen: list[str | None] = []

    def answer(connection: ssl.SSLSocket) -> None:
        seen.append(connection.selected_alpn_protocol())
        answer_ok(connection)

    server = authority.server()
    server.set_alpn_protocols(["h2", "http/1.1"])
    with raw_server(answer, context=server) as url:
        asyncio.run(put(f"{url}/key", b"abc", engine.Config(tls=authority.bundle)))
    assert seen == ["http/1.1"]


@pytest.mark.parametrize("native", [True, False])
def test_a_second_connection_takes_up_the_session_of_the_first(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, version: str, native: bool
) -> None:
    monkeypatch.setattr(tls, "NATIVE", native and _tls.reachable())
    resumed: list[bool | None] = []

    def answer(connection: ssl.SSLSocket) -> None:
        resumed.append(connection.session_reused)
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")

    async def main(url: str) -> None:
        async with engine.Client(config=engine.Config(tls=authority.bundle)) as client:
            for _number in range(4):
                await client.put(b"abc", f"{url}/key")

    with raw_server(*[answer] * 4, context=authority.server(version=version)) as url:
        asyncio.run(main(url))
    assert resumed == [False, True, True, True]


def test_a_session_is_not_taken_up_for_another_host(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's certificate does not hold for the second name: resuming would skip the look at it."""
    resolve_to_loopback(monkeypatch)

    async def main(url: str) -> None:
        async with engine.Client(config=engine.Config(tls=authority.bundle)) as client:
            await client.put(b"abc", f"{url.replace('127.0.0.1', 'one.example')}/key")
            with pytest.raises(engine.ConnectFailed, match="another host"):
                await client.put(b"abc", f"{url.replace('127.0.0.1', 'two.example')}/key")

    with raw_server(answer_ok, answer_ok, context=authority.server("one.example")) as url:
        asyncio.run(main(url))


# --- what is no answer ------------------------------------------------------------------------------------------------


@all_ways
def test_tickets_are_not_mistaken_for_an_answer(
    authority: Authority, run: Run, config: engine.Config, way: Way
) -> None:
    """TLS 1.3 tickets make the socket readable while the client waits for its 100, and while the body leaves."""
    context = authority.server()
    context.num_tickets = 8

    def slow(connection: ssl.SSLSocket) -> None:
        read_head(connection)
        time.sleep(0.3)
        connection.sendall(CONTINUE)
        left = 8 * MIB
        while left:
            left -= len(connection.recv(65536))
        connection.sendall(OK)

    with raw_server(slow, context=context) as url:
        result = run(put(f"{url}/key", bytes(8 * MIB), config, continue_timeout_s=5))
    assert (result.expect, result.body_bytes_sent, result.send_path) == ("continue", 8 * MIB, way.path)
    assert result.hops[0].continue_wait_s >= 0.2  # the server reads the head a little before we know that it left


def test_an_answer_byte_by_byte_in_records_of_its_own_is_read(
    authority: Authority, run: Run, config: engine.Config
) -> None:
    def trickle(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        for byte in b'HTTP/1.1 201 Created\r\nETag: "abc"\r\nContent-Length: 3\r\n\r\nyes':
            connection.sendall(bytes([byte]))

    with raw_server(trickle, context=authority.server()) as url:
        assert run(put(f"{url}/key", b"abc", config)).etag == '"abc"'


def test_bytes_that_nobody_asked_for_close_the_connection(
    authority: Authority, run: Run, config: engine.Config
) -> None:
    """A 408 that comes with the handshake is no answer to the request that follows."""

    def talkative(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        connection.recv(1)

    retry = engine.Retry(max_attempts=2, base_s=0.01)
    for _number in range(5):
        with raw_server(talkative, answer_ok, context=authority.server()) as url:
            # It may come when the request has left already; a 408 is retried too.
            assert run(put(f"{url}/key", b"abc", config, retry=retry)).status == 200


@all_ways
def test_the_body_is_what_was_given_in_every_shape(
    authority: Authority, run: Run, config: engine.Config, way: Way, tmp_path: Path
) -> None:
    data = os.urandom(3 * MIB + 17)
    path = tmp_path / "file"
    path.write_bytes(data)
    got: list[bytes] = []

    async def pieces() -> Any:
        for start in range(0, len(data), 100_003):
            await asyncio.sleep(0)
            yield data[start : start + 100_003]

    def pipe() -> Any:
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.close(reading)
            with open(writing, "wb") as file:
                file.write(data)
            os._exit(0)
        os.close(writing)
        return open(reading, "rb", buffering=0)

    def keep(connection: ssl.SSLSocket) -> None:
        got.append(read_request(connection)[1])
        connection.sendall(OK)

    sources: list[tuple[Any, int]] = [
        (path, 0),
        (data, 0),
        (bytearray(data[:1000]), 0),
        (data[:70_000], 0),
        (pieces(), len(data)),
        (pipe(), len(data)),
    ]
    for source, size in sources:
        with raw_server(keep, context=authority.server()) as url:
            result = run(put(f"{url}/key", source, config, **({"size": size} if size else {})))
        wanted = len(source) if isinstance(source, (bytes, bytearray)) else len(data)
        assert got.pop() == data[:wanted]
        assert (result.body_bytes_sent, result.send_path) == (wanted, way.path)
        assert sum(hop.body_bytes_read for hop in result.hops) == wanted
        if hasattr(source, "fileno"):
            source.close()
    os.waitpid(-1, 0)


@all_ways
def test_a_body_of_unknown_length_is_chunked(authority: Authority, run: Run, config: engine.Config) -> None:
    async def pieces() -> Any:
        for _number in range(50):
            yield b"z" * 10_000

    received = bytearray()

    def chunked(connection: ssl.SSLSocket) -> None:
        read_head(connection)
        connection.sendall(CONTINUE)
        while not received.endswith(b"0\r\n\r\n"):
            received.extend(connection.recv(65536))
        connection.sendall(OK)

    with raw_server(chunked, context=authority.server()) as url:
        assert run(put(f"{url}/key", pieces(), config)).body_bytes_sent == 500_000
    assert received == (b"2710\r\n" + b"z" * 10_000 + b"\r\n") * 50 + b"0\r\n\r\n"


@all_ways
def test_a_file_that_shrinks_is_noticed(authority: Authority, run: Run, config: engine.Config, tmp_path: Path) -> None:
    path = tmp_path / "shrinks"
    path.write_bytes(bytes(64 * MIB))

    def shrink(connection: ssl.SSLSocket) -> None:
        read_head(connection)
        connection.recv(65536)
        os.truncate(path, 32 * MIB)
        while connection.recv(1 << 20):
            pass

    with raw_server(shrink, context=authority.server()) as url, pytest.raises(engine.SourceChanged):
        run(put(f"{url}/key", path, config, expect="never"))


@all_ways
def test_a_server_that_reads_nothing_is_a_stall(authority: Authority, run: Run, config: engine.Config) -> None:
    def sleep(connection: ssl.SSLSocket) -> None:
        time.sleep(1.2)

    with raw_server(sleep, context=authority.server()) as url, pytest.raises(engine.StallTimedOut) as caught:
        run(put(f"{url}/key", bytes(64 * MIB), config, expect="never", stall_timeout_s=0.3))
    assert 0 < caught.value.body_bytes_sent < 64 * MIB


@pytest.mark.parametrize("way", ["uvloop 1.3 tls", "asyncio 1.3 tls-ssl"], indirect=True)
def test_key_updates_in_mid_body_are_answered_and_the_body_goes_on(
    authority: Authority, run: Run, config: engine.Config, way: Way, tmp_path: Path
) -> None:
    """RFC 8446 section 4.6.3: each asks for new keys in both directions; our answer has to leave between two records."""
    data = os.urandom(24 * MIB)
    path = tmp_path / "body"
    path.write_bytes(data)
    library = ctypes.CDLL(_ssl.__file__)
    got = bytearray()

    def renew(connection: ssl.SSLSocket) -> None:
        # The server's own session, found as engine/_tls.pyx finds the client's.
        session = ctypes.c_void_p.from_address(id(connection._sslobj) + object.__basicsize__ + 8)  # type: ignore[attr-defined]
        read_head(connection)
        connection.sendall(CONTINUE)
        asked = 0
        while len(got) < len(data):
            got.extend(connection.recv(1 << 20))
            if len(got) > asked * 3 * MIB:
                asked += 1
                assert library.SSL_key_update(session, 1) == 1  # SSL_KEY_UPDATE_REQUESTED
                assert library.SSL_do_handshake(session) == 1
        connection.sendall(OK)

    for source in (path, data):
        got.clear()
        with raw_server(renew, context=authority.server(version="1.3")) as url:
            result = run(put(f"{url}/key", source, config))
        assert bytes(got) == data
        assert (result.body_bytes_sent, result.send_path) == (len(data), way.path)


# --- the native half ---------------------------------------------------------------------------------------------------


def test_the_environment_forces_the_fallback() -> None:
    for value, native in (("ssl", False), ("", _tls.reachable())):
        found = subprocess.run(
            [sys.executable, "-c", "from engine import tls; print(tls.NATIVE)"],
            env={**os.environ, "ENGINE_TLS": value},
            check=True,
            capture_output=True,
            text=True,
        )
        assert found.stdout.strip() == str(native)


def test_what_is_no_session_of_the_ssl_module_is_not_touched(authority: Authority) -> None:
    class Pretender:
        _sslobj = object()
        context = authority.client()

    class Mixed:
        """A true session with another context: where the fields are not what they should be, nothing is called."""

        _sslobj = authority.client().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="a")._sslobj  # type: ignore[attr-defined]
        context = authority.client()

    for stranger in (Pretender(), Mixed()):
        with pytest.raises(TypeError, match="ssl module"):
            _tls.Records(stranger)  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    sock = authority.client().wrap_socket(ours, do_handshake_on_connect=False, server_hostname="a")
    with sock, theirs, pytest.raises(TypeError, match="ssl module"):
        _tls.Records(sock)  # type: ignore[arg-type]


def test_records_go_back_to_the_front_of_what_is_sent(authority: Authority) -> None:
    """What the kernel did not take of a batch leaves before anything that is encrypted later."""
    client, server = authority.client(), authority.server("a.example")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname="a.example")
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _number in range(3):
        for side in (ours, theirs):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    records = _tls.Records(ours)
    assert to_server.read() == b""
    ours.write(b"one")
    first = records.take()
    assert first
    records.put_back(first[5:])
    ours.write(b"two")
    to_server.write(first[:5] + records.take())
    assert theirs.read(100) == b"one"
    assert theirs.read(100) == b"two"
    assert records.take() == b""
    capsule = records.capsule
    del records
    ours.write(b"three")  # the capsule keeps the batch
    del capsule
    with pytest.raises(ssl.SSLError):
        ours.write(b"four")  # nowhere to go, and nothing harmed


# --- how it ends --------------------------------------------------------------------------------------------------------


@all_ways
@pytest.mark.parametrize("rounds", [50])
def test_a_403_and_a_reset_in_mid_body_lose_no_answer(
    authority: Authority, run: Run, config: engine.Config, tmp_path: Path, rounds: int
) -> None:
    path = tmp_path / "body"
    path.write_bytes(bytes(16 * MIB))

    def refuse(connection: ssl.SSLSocket) -> None:
        read_head(connection)
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        time.sleep(0.001)
        reset(connection)

    async def main(url: str) -> int:
        refused = 0
        async with engine.Client(config=config) as client:
            for number in range(rounds):
                source = path if number % 2 else bytes(16 * MIB)
                with pytest.raises(engine.AccessDenied) as caught:
                    await client.put(source, f"{url}/key", expect="never", checksum=None)
                assert caught.value.body_bytes_sent < 16 * MIB
                refused += 1
        return refused

    with raw_server(*[refuse] * rounds, context=authority.server()) as url:
        assert run(main(url)) == rounds


@all_ways
@pytest.mark.parametrize("politely", [True, False])
def test_an_answer_until_the_close_needs_a_close_notify(
    authority: Authority, run: Run, config: engine.Config, politely: bool
) -> None:
    def answer(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nuntil the close")
        if politely:
            connection.unwrap()

    async def main(url: str) -> int:
        async with engine.Client(config=config) as client:
            return await client.get(f"{url}/key", lambda _view: None)

    with raw_server(answer, context=authority.server()) as url:
        if politely:
            assert run(main(url)) == len("until the close")
        else:
            with pytest.raises(engine.ConnectionLost, match="close_notify"):
                run(main(url))


def test_we_say_goodbye(authority: Authority, run: Run, config: engine.Config) -> None:
    said: list[bytes] = []

    def answer(connection: ssl.SSLSocket) -> None:
        answer_ok(connection)
        connection.settimeout(5)
        said.append(connection.recv(1))  # b"" is a close_notify: without one it raises SSLEOFError

    context = authority.server()
    with raw_server(answer, context=context) as url:
        assert run(put(f"{url}/key", b"abc", config)).status == 200
    assert said == [b""]


@all_ways
def test_garbage_in_the_place_of_records_is_a_lost_connection(
    authority: Authority, run: Run, config: engine.Config
) -> None:
    def garbage(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        with socket.socket(fileno=os.dup(connection.fileno())) as below:
            below.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        time.sleep(0.1)

    with (
        raw_server(garbage, context=authority.server()) as url,
        pytest.raises(engine.ConnectionLost, match="ended by TLS"),
    ):
        run(put(f"{url}/key", b"abc", config))


# --- redirects ------------------------------------------------------------------------------------------------------------


def test_a_redirect_to_a_host_whose_certificate_is_wrong_sends_nothing(
    authority: Authority, run: Run, config: engine.Config, big_file: Path
) -> None:
    heads: list[bytes] = []

    def elsewhere(connection: Any) -> None:
        heads.append(read_head(connection))

    with raw_server(elsewhere, context=authority.server("other.example")) as wrong:

        def redirect(connection: ssl.SSLSocket) -> None:
            read_head(connection)
            connection.sendall(
                f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {wrong}/there\r\nContent-Length: 0\r\n\r\n".encode()
            )

        with (
            raw_server(redirect, context=authority.server()) as url,
            pytest.raises(engine.ConnectFailed, match="another address") as caught,
        ):
            run(put(f"{url}/key", big_file, config))
    assert caught.value.body_bytes_sent == 0
    assert not any(heads)


def test_https_to_http_is_refused_unless_allowed(client_of: Make, run: Run, server: Server, big_file: Path) -> None:
    async def main(**options: Any) -> engine.PutResult:
        async with client_of(**options) as client:
            return await client.put(big_file, "s3://redirect-307-plain/key")

    with pytest.raises(engine.RedirectRefused) as caught:
        run(main())
    assert (caught.value.reason, caught.value.body_bytes_sent) == ("downgrade", 0)


def test_https_to_http_is_followed_when_allowed(
    authority: Authority, run: Run, config: engine.Config, big_file: Path
) -> None:
    with raw_server(answer_ok) as plain:

        def redirect(connection: ssl.SSLSocket) -> None:
            read_head(connection)
            connection.sendall(f"HTTP/1.1 307 \r\nLocation: {plain}/there\r\nContent-Length: 0\r\n\r\n".encode())

        with raw_server(redirect, context=authority.server()) as url:
            policy = engine.RedirectPolicy(allow_downgrade=True)
            relaxed = engine.Config(tls=config.tls, redirects=policy)
            result = run(put(f"{url}/key", big_file, relaxed))
    assert (result.status, result.send_path) == (200, "sendfile")


def test_http_to_https_is_followed(
    authority: Authority, run: Run, config: engine.Config, way: Way, big_file: Path
) -> None:
    with raw_server(answer_ok, context=authority.server()) as secured:

        def redirect(connection: socket.socket) -> None:
            read_head(connection)
            connection.sendall(f"HTTP/1.1 307 \r\nLocation: {secured}/there\r\nContent-Length: 0\r\n\r\n".encode())

        with raw_server(redirect) as url:
            result = run(put(f"{url}/key", big_file, config))
    assert (result.status, result.send_path) == (200, way.path)
    assert [hop.body_bytes_sent for hop in result.hops] == [0, big_file.stat().st_size]
