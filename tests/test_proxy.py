"""Proxies: which one is asked, what it is told, and what it must not tell."""

from __future__ import annotations

import contextlib
import pickle
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest
import trustme

import engine
from engine import proxy
from engine.proxy import choose_proxy, parse_proxy
from engine.wire import parse_url
from tests.peers import OK, raw_server, read_head, read_request

Run = Callable[[Any], Any]
ONCE = engine.Retry(max_attempts=1)
SOMEWHERE = "http://proxy.test:3128"


def chosen(url: str, environ: dict[str, str], option: str | None = proxy.ENVIRONMENT) -> str | None:
    found = choose_proxy(option, parse_url(url).origin, environ)
    return None if found is None else str(found.origin)


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        ("http://a.test/k", {}, None),
        ("http://a.test/k", {"http_proxy": SOMEWHERE}, SOMEWHERE),
        ("http://a.test/k", {"http_proxy": "proxy.test:3128"}, SOMEWHERE),
        ("http://a.test/k", {"HTTP_PROXY": SOMEWHERE}, None),
        ("http://a.test/k", {"http_proxy": ""}, None),
        ("http://a.test/k", {"https_proxy": SOMEWHERE}, None),
        ("https://a.test/k", {"http_proxy": SOMEWHERE}, None),
        ("https://a.test/k", {"https_proxy": SOMEWHERE}, SOMEWHERE),
        ("https://a.test/k", {"HTTPS_PROXY": SOMEWHERE}, SOMEWHERE),
        ("http://localhost:9000/k", {"http_proxy": SOMEWHERE}, None),
        ("http://127.1.2.3/k", {"http_proxy": SOMEWHERE}, None),
        ("http://[::1]/k", {"http_proxy": SOMEWHERE}, None),
        ("http://10.1.2.3/k", {"http_proxy": SOMEWHERE}, SOMEWHERE),
    ],
)
def test_the_environment_names_the_proxy_and_loopback_needs_none(
    url: str, environ: dict[str, str], expected: str | None
) -> None:
    assert chosen(url, environ) == expected


@pytest.mark.parametrize(
    ("exceptions", "url", "excepted"),
    [
        ("*", "http://a.test/", True),
        ("a.test", "http://a.test/", True),
        ("a.test", "http://b.a.test/", True),
        (".a.test", "http://b.a.test/", True),
        ("*.a.test", "http://b.a.test/", True),
        ("A.Test", "http://a.test/", True),
        ("a.test", "http://ba.test/", False),
        ("x, a.test", "http://a.test/", True),
        ("a.test:80", "http://a.test/", True),
        ("a.test:81", "http://a.test/", False),
        ("10.0.0.0/8", "http://10.2.3.4/", True),
        ("10.0.0.0/8", "http://11.2.3.4/", False),
        ("10.2.3.4", "http://10.2.3.4/", True),
        ("[fd00::1]:80", "http://[fd00::1]/", True),
        ("fd00::/8", "http://[fd00::1]/", True),
        ("10.0.0.0/8", "http://a10.test/", False),
        ("", "http://a.test/", False),
        (",", "http://a.test/", False),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_what_no_proxy_lists_is_met_directly(name: str, exceptions: str, url: str, excepted: bool) -> None:
    assert (chosen(url, {"http_proxy": SOMEWHERE, name: exceptions}) is None) is excepted


def test_a_proxy_that_is_given_is_used_whatever_the_environment_says() -> None:
    environ = {"http_proxy": "http://other.test:1", "no_proxy": "*"}
    assert chosen("http://a.test/", environ, SOMEWHERE) == SOMEWHERE
    assert chosen("http://127.0.0.1/", environ, SOMEWHERE) == SOMEWHERE
    assert chosen("http://a.test/", environ, None) is None


@pytest.mark.parametrize(
    "text",
    [
        "https://me:s3cret@p.test",
        "socks5://me:s3cret@p.test",
        "http://me:s3cret@p .test",
        "http://me:s3cret@",
        "http://me:s3cret@p:0",
    ],
)
def test_a_bad_proxy_is_an_error_of_usage_without_its_password(text: str) -> None:
    with pytest.raises(engine.UsageError, match="proxy") as caught:
        engine.Config(proxy=text)
    assert "s3cret" not in str(caught.value)


def test_a_password_is_in_no_repr() -> None:
    found = parse_proxy("http://me:p%40ss/w@rd@proxy.test:3128/")
    assert found.fields == (("proxy-authorization", "Basic bWU6cEBzcy93QHJk"),)
    assert "bWU6" not in repr(found)
    config = engine.Config(proxy="http://me:s3cret@proxy.test:3128")
    assert "s3cret" not in repr(config)
    assert pickle.loads(pickle.dumps(config)) == config


# --- over a wire ----------------------------------------------------------------------------------------------------------


def test_a_plain_request_goes_to_the_proxy_in_absolute_form(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is the proxy's to resolve; the connection serves every origin."""
    heads: list[bytes] = []
    told: list[Any] = []

    def forward(connection: socket.socket) -> None:
        for _request in range(2):
            head, body = read_request(connection)
            assert body == bytes(100_000)
            heads.append(head)
            connection.sendall(OK)
        connection.recv(1)

    async def main() -> engine.PutResult:
        async with engine.Client() as client:
            await client.put(bytes(100_000), "http://one.test/key?a=b", on_event=told.append)
            return await client.put(bytes(100_000), "http://two.test:8080/key")

    with raw_server(forward) as url:
        monkeypatch.setenv("http_proxy", url.replace("http://", "http://me:s3cret@"))
        result = run(main())
    assert heads[0].startswith(b"PUT http://one.test/key?a=b HTTP/1.1\r\nHost: one.test\r\n")
    assert heads[1].startswith(b"PUT http://two.test:8080/key HTTP/1.1\r\nHost: two.test:8080\r\n")
    assert all(b"\r\nProxy-Authorization: Basic bWU6czNjcmV0\r\n" in head for head in heads)
    assert result.url == "http://two.test:8080/key"
    assert "bWU6" not in repr((told, result))
    assert "s3cret" not in repr((told, result))


def test_a_signed_request_is_signed_for_the_endpoint_and_redirected_through_the_proxy(run: Run) -> None:
    heads: list[bytes] = []

    def forward(connection: socket.socket) -> None:
        heads.append(read_head(connection))
        connection.sendall(b"HTTP/1.1 307 There\r\nLocation: http://b.s3.test/bucket/key\r\nContent-Length: 0\r\n\r\n")
        connection.recv(1)

    def store(connection: socket.socket) -> None:
        heads.append(read_request(connection)[0])
        connection.sendall(OK)

    async def main(url: str) -> engine.PutResult:
        credentials = engine.Credentials("access", "secret")
        config = engine.Config(proxy=url)
        async with engine.Client(endpoint_url="http://s3.test", credentials=credentials, config=config) as client:
            return await client.put(bytes(100_000), "s3://bucket/key")

    with raw_server(forward, store) as url:
        result = run(main(url))
    assert [hop.status for hop in result.hops] == [307, 200]
    assert [head.split(b" ")[1] for head in heads] == [b"http://s3.test/bucket/key", b"http://b.s3.test/bucket/key"]
    assert all(b"proxy-authorization" not in head.lower() for head in heads)


def test_a_redirect_to_a_private_address_is_refused_also_where_the_proxy_resolves(run: Run) -> None:
    def forward(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 307 There\r\nLocation: http://169.254.169.254/key\r\nContent-Length: 0\r\n\r\n")
        connection.recv(1)

    with raw_server(forward) as url, pytest.raises(engine.RedirectRefused) as caught:
        run(engine.put_async(bytes(100_000), "http://one.test/key", config=engine.Config(proxy=url)))
    assert caught.value.reason == "private-address"


def test_a_proxy_that_wants_credentials_says_so(run: Run) -> None:
    def refuse(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        connection.recv(1)

    for target in ("http://one.test/key", "https://one.test/key"):
        with raw_server(refuse) as url, pytest.raises(engine.EngineError, match="407") as caught:
            run(engine.put_async(bytes(100_000), target, config=engine.Config(proxy=url)))
        assert caught.value.attempts == 1
        assert caught.value.body_bytes_sent == 0


@pytest.mark.parametrize("answer", [b"SSH-2.0\r\n", b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", b""])
def test_a_proxy_that_makes_no_tunnel_is_a_failed_connection(run: Run, answer: bytes) -> None:
    def refuse(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(answer)

    with raw_server(refuse) as url, pytest.raises(engine.ConnectFailed, match="the proxy"):
        run(engine.put_async(b"abc", "https://one.test/key", config=engine.Config(proxy=url), retry=ONCE))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def test_https_goes_through_a_tunnel_and_is_verified_for_its_own_host(run: Run, authority: trustme.CA) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("store.test").configure_cert(server_side)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    heads: list[bytes] = []

    def store(plain: socket.socket) -> None:
        with server_side.wrap_socket(plain, server_side=True) as connection:
            head, body = read_request(connection)
            heads.append(head)
            assert len(body) == 3_000_000
            connection.sendall(OK)
            with contextlib.suppress(OSError):
                connection.recv(1)

    with raw_server(store) as there:
        port = int(there.rpartition(":")[2])

        def tunnel(connection: socket.socket) -> None:
            heads.append(read_head(connection))
            with socket.create_connection(("127.0.0.1", port)) as onward:
                connection.sendall(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
                relay(connection, onward)

        with raw_server(tunnel) as url:
            config = engine.Config(proxy=url.replace("http://", "http://me:s3cret@"), tls=context)
            result = run(engine.put_async(bytes(3_000_000), "https://store.test/key", config=config))
    assert result.status == 200
    assert (
        heads[0]
        == b"CONNECT store.test:443 HTTP/1.1\r\nHost: store.test:443\r\nProxy-Authorization: Basic bWU6czNjcmV0\r\n\r\n"
    )
    assert heads[1].startswith(b"PUT /key HTTP/1.1\r\nHost: store.test\r\n")
    assert b"Proxy-Authorization" not in heads[1]


def relay(one: socket.socket, other: socket.socket) -> None:
    one.settimeout(None)
    ends = {one: other, other: one}
    while True:
        for readable in select.select(list(ends), [], [], 20)[0]:
            data = readable.recv(1 << 16)
            if not data:
                return
            ends[readable].sendall(data)
