"""What secret may cross where: a table, and a test for each of its cells. And what is shown to people, of which none is one.

The crossings are those of the advisories of others, cited by id below: curl and rclone listed what may not cross and forgot
some; the engine lists what may.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import pickle
import socket
import traceback
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

import engine
from engine.wire import without_pieces
from tests.peers import CONTINUE, OK, raw_server, read_head, read_request
from tests.simulation.network import PATTERN, Request
from tests.simulation.scripted import talk

Run = Callable[[Any], Any]
ONCE = engine.Retry(max_attempts=1)
CUSTOMER_KEY = b"customer-key-of-thirty-two-bytes"
BODY = PATTERN[:1000]


class Secret(NamedTuple):
    """`options` of the put; `query` of a plain URL; `token` of the credentials of a signed one; `value` as on the wire."""

    value: str
    headers: dict[str, str] | None = None
    query: str = ""
    signed: bool = False
    token: str | None = None
    customer_key: bytes | None = None


SECRETS = {
    "authorization": Secret(
        "S3cretS3cret01", {"Authorization": "Bearer S3cretS3cret01"}
    ),  # CVE-2018-1000007, CVE-2022-27774
    "cookie": Secret("S3cretS3cret02", {"Cookie": "session=S3cretS3cret02"}),  # CVE-2022-27776, CVE-2023-46218's class
    "unknown field": Secret("S3cretS3cret03", {"X-Anything": "S3cretS3cret03"}),  # GHSA-486v-q2wf-fp2r
    "signature": Secret("AWS4-HMAC-SHA256", signed=True),
    "session token": Secret("S3cretS3cret04", signed=True, token="S3cretS3cret04"),  # GHSA-cf44-9pgv-m4xc
    "s3session token": Secret("S3cretS3cret05", {"x-amz-s3session-token": "S3cretS3cret05"}, signed=True),
    "customer key": Secret(
        base64.b64encode(CUSTOMER_KEY).decode(), signed=True, customer_key=CUSTOMER_KEY
    ),  # GHSA-8mxv-9xhp-86h4
    "plain customer key": Secret(base64.b64encode(CUSTOMER_KEY).decode(), customer_key=CUSTOMER_KEY),
    "presigned": Secret("5ec7e75ec7e7", query="?X-Amz-Credential=AKIA5ec7e75ec7e7&X-Amz-Signature=5ec7e75ec7e7"),
    "presigned token": Secret("T0kenT0ken06", query="?X-Amz-Security-Token=T0kenT0ken06"),
    "delegation": Secret("D3legati0n07", query="?op=CREATE&delegation=D3legati0n07"),
}

# first URL, Location, RedirectPolicy. "after the body": the redirect comes when the body has left.
TLS, PLAIN = "https://store.sim", "http://store.sim"
DOWN = {"allow_downgrade": True}
CROSSINGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "same origin": (TLS, "/elsewhere", {}),
    "other port": (TLS, "https://store.sim:8443/k", {}),
    "scheme up": (PLAIN, "https://store.sim/k", {}),
    "scheme down": (TLS, "http://store.sim/k", {}),
    "scheme down, allowed": (TLS, "http://store.sim/k", DOWN),
    "subdomain": (TLS, "https://node.store.sim/k", {}),
    "parent domain": (TLS, "https://sim/k", {}),
    "sibling": (TLS, "https://other.sim/k", {}),
    "same beginning": (TLS, "https://store.sim.evil.sim/k", {}),
    "same end": (TLS, "https://notstore.sim/k", {}),
    "other host": (TLS, "https://evil.sim/k", {}),
    "other host, no TLS": (PLAIN, "http://evil.sim/k", {}),
    "public address": (TLS, "https://93.184.5.5/k", {}),
    "private address": (TLS, "https://10.0.0.5/k", {}),
    "loopback": (TLS, "https://127.0.0.1/k", {}),
    "loopback to loopback": ("http://127.0.0.1:9000", "http://127.0.0.1:9001/k", {}),
    "listed host": (TLS, "https://listed.sim/k", {"hosts": ("listed.sim",)}),
    "listed host, no TLS": (TLS, "http://listed.sim/k", {"hosts": ("listed.sim",), **DOWN}),
    "upper case and root dot": (TLS, "https://STORE.SIM.:443/k", {}),
    "user-info": (TLS, "https://store.sim@evil.sim/k", {}),
}

# carried: the redirect is followed, and the secret goes along. without: it is followed, and the secret is not in it.
# refused: nobody is connected to. (A presigned query belongs to its URL: a Location brings its own or none.)
TABLE = """
                         | caller's field | signature | signed with a field | query
same origin              | carried        | carried   | carried             | without
other port               | carried        | carried   | carried             | without
scheme up                | carried        | carried   | carried             | without
scheme down              | refused        | refused   | refused             | refused
scheme down, allowed     | refused        | carried   | refused             | without
subdomain                | refused        | carried   | carried             | without
parent domain            | refused        | refused   | refused             | without
sibling                  | refused        | refused   | refused             | without
same beginning           | refused        | refused   | refused             | without
same end                 | refused        | refused   | refused             | without
other host               | refused        | refused   | refused             | without
other host, no TLS       | refused        | refused   | refused             | without
public address           | refused        | refused   | refused             | without
private address          | refused        | refused   | refused             | refused
loopback                 | refused        | refused   | refused             | refused
loopback to loopback     | carried        | carried   | carried             | without
listed host              | carried        | carried   | carried             | without
listed host, no TLS      | carried        | carried   | carried             | without
upper case and root dot  | carried        | carried   | carried             | without
user-info                | refused        | refused   | refused             | refused
"""
KINDS = {
    "authorization": "caller's field",
    "cookie": "caller's field",
    "unknown field": "caller's field",
    "plain customer key": "caller's field",
    "signature": "signature",
    "session token": "signature",
    "s3session token": "signed with a field",
    "customer key": "signed with a field",
    "presigned": "query",
    "presigned token": "query",
    "delegation": "query",
}


def expected() -> Iterator[tuple[str, str, str]]:
    lines = [[cell.strip() for cell in line.split("|")] for line in TABLE.strip("\n").splitlines()]
    for crossing, *cells in lines[1:]:
        by_kind = dict(zip(lines[0][1:], cells, strict=True))
        yield from ((secret, crossing, by_kind[kind]) for secret, kind in KINDS.items())


def redirect_to(location: str) -> bytes:
    return f"HTTP/1.1 307 There\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")


def client_of(secret: Secret, base: str, policy: dict[str, Any], **options: Any) -> engine.Client:
    credentials: Any = (
        engine.Credentials("ACCESSKEY", "S3cretKey0000", secret.token) if secret.signed else engine.ANONYMOUS
    )
    config = engine.Config(redirects=engine.RedirectPolicy(**policy), **{"proxy": None, "expect": "never", **options})
    return engine.Client(
        endpoint_url=base if secret.signed else None, region="us-east-1", credentials=credentials, config=config
    )


async def put(client: engine.Client, secret: Secret, base: str, **options: Any) -> engine.PutResult:
    where = "s3://bkt/k" if secret.signed else f"{base}/bkt/k{secret.query}"
    given = {"headers": secret.headers, "sse_customer_key": secret.customer_key, "checksum": None, **options}
    return await client.put(BODY, where, **{name: value for name, value in given.items() if value is not None})


def test_every_secret_has_its_row_and_every_crossing_its_line() -> None:
    cells = list(expected())
    assert {(secret, crossing) for secret, crossing, _verdict in cells} == {(s, c) for s in SECRETS for c in CROSSINGS}
    assert {verdict for _secret, _crossing, verdict in cells} == {"carried", "without", "refused"}


@pytest.mark.parametrize("asks", [False, True], ids=["after the body", "before the body"])
@pytest.mark.parametrize(("secret", "crossing", "verdict"), list(expected()))
def test_a_secret_crosses_only_where_the_table_says(secret: str, crossing: str, verdict: str, asks: bool) -> None:
    base, location, policy = CROSSINGS[crossing]
    it = SECRETS[secret]

    def answer(request: Request) -> bytes:
        requests.append(request)
        if len(requests) == 1:
            return redirect_to(location)
        return (CONTINUE if request.asks else b"") + OK

    requests: list[Request] = []
    refused: list[str] = []
    kinds: list[str] = []

    async def main() -> None:
        async with client_of(it, base, policy, expect="always" if asks else "never") as client:
            try:
                await put(client, it, base)
            except engine.RedirectRefused as error:
                refused.append(f"{error} {error!r} {error.location} {error.hops}")
            except engine.ProtocolError as error:  # this server says 200 without the body having come
                kinds.append(error.kind)

    seen = talk(main, answer)
    first, *rest = seen.requests
    assert it.value in first.text
    if verdict == "refused":
        assert it.value not in "".join(refused)
        assert len(refused) == 1
        assert not rest
        assert len(seen.dialled_addresses) == 1, "nobody was to be connected to"
    else:
        assert not refused
        assert kinds in ([], ["early-success"])
        assert len(rest) == 1
        assert (it.value in rest[0].text) is (verdict == "carried")


# --- more than one step ------------------------------------------------------------------------------------------------


def targets(requests: list[Request]) -> list[str]:
    return [f"{request.link.origin.scheme}://{request.fields['host']}{request.target}" for request in requests]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_does_not_follow_from_a_listed_host_to_another(name: str) -> None:
    """And back at its origin it is there again, but for a query, which the Location would have to bring."""
    it, steps = SECRETS[name], ["https://listed.sim/k", f"{TLS}/back", "https://evil.sim/k"]
    requests: list[Request] = []

    def answer(request: Request) -> bytes:
        requests.append(request)
        return redirect_to(steps[len(requests) - 1])

    async def main() -> None:
        async with client_of(it, TLS, {"hosts": ("listed.sim",)}) as client:
            with pytest.raises(engine.RedirectRefused, match=r"evil\.sim"):
                await put(client, it, TLS)

    talk(main, answer)
    assert [request.fields["host"] for request in requests] == ["store.sim", "listed.sim", "store.sim"]
    assert [it.value in request.text for request in requests] == [True, not it.query, not it.query]


@pytest.mark.parametrize("name", SECRETS)
def test_a_retry_begins_at_the_origin_and_is_judged_like_the_first_attempt(name: str) -> None:
    it = SECRETS[name]
    busy = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
    answers = [redirect_to(f"{TLS}:8443/k"), busy, redirect_to("https://evil.sim/k"), OK]
    requests: list[Request] = []

    def answer(request: Request) -> bytes:
        requests.append(request)
        return answers[len(requests) - 1]

    async def main() -> None:
        async with client_of(it, TLS, {}, retry=engine.Retry(max_attempts=2, base_s=0)) as client:
            with contextlib.suppress(engine.RedirectRefused):
                await put(client, it, TLS)

    talk(main, answer)
    assert [it.value in request.text for request in requests[:3]] == [True, not it.query, True]
    assert requests[2].fields["host"] == "store.sim"
    assert not any(it.value in request.text for request in requests[3:])


def test_a_proxys_password_is_for_the_proxy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect to where no proxy is used is a request without it."""
    monkeypatch.setenv("http_proxy", "http://me:Pr0xyPassw0rd@listed.sim:3128")
    monkeypatch.setenv("no_proxy", "other.sim")
    secret, word = base64.b64encode(b"me:Pr0xyPassw0rd").decode(), "Proxy-Authorization"
    answers = [redirect_to("http://evil.sim/k"), redirect_to("http://other.sim/k"), OK]
    requests: list[Request] = []

    def answer(request: Request) -> bytes:
        requests.append(request)
        return answers[len(requests) - 1]

    async def main() -> None:
        async with client_of(Secret(""), PLAIN, {}, proxy="environment") as client:
            await put(client, Secret(""), PLAIN)

    talk(main, answer)
    assert [request.link.origin.host for request in requests] == ["listed.sim", "listed.sim", "other.sim"]
    assert [(secret in request.text, word in request.text) for request in requests] == [(True, True)] * 2 + [
        (False, False)
    ]


@pytest.mark.parametrize("where", ["destination", "endpoint_url", "proxy", "location"])
def test_user_info_of_a_url_is_refused_and_never_shown(where: str, run: Run) -> None:
    url = "https://me:S3cretPassw0rd@store.sim/k"

    async def main() -> None:
        if where == "destination":
            await engine.put_async(BODY, url)
        elif where == "endpoint_url":
            engine.Client(endpoint_url=url)
        elif where == "proxy":
            engine.Config(proxy=url)
        else:
            with raw_server(
                lambda connection: (read_request(connection), connection.sendall(redirect_to(url)))
            ) as here:
                await engine.put_async(BODY, f"{here}/k", checksum=None)

    with pytest.raises(engine.EngineError) as caught:
        run(main())
    assert isinstance(caught.value, engine.RedirectRefused if where == "location" else engine.UsageError)
    assert "Passw0rd" not in everything_of(caught.value)


# --- what is shown -----------------------------------------------------------------------------------------------------


def everything_of(error: BaseException) -> str:
    """Whatever a program, a log or another process gets to see of an error, and of those that led to it."""
    seen: list[str] = ["".join(traceback.format_exception(error)), pickle.dumps(error).decode("latin-1")]
    at: BaseException | None = error
    while at is not None:
        seen += [str(at), repr(at), repr(vars(at)), repr(at.args)]
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return "\n".join(seen)


def forms_of(value: str) -> set[str]:
    return {value, urllib.parse.quote(value, safe=""), base64.b64encode(value.encode()).decode().rstrip("=")}


def echo_status(head: str, value: str) -> bytes:
    return f"HTTP/1.1 403 {value}\r\nContent-Length: 0\r\n\r\n".encode()


def echo_document(head: str, value: str) -> bytes:
    words = "".join(
        f"<{tag}>{value}</{tag}>" for tag in ("Code", "Message", "RequestId", "HostId", "Region", "Endpoint")
    )
    return f"HTTP/1.1 400 No\r\nContent-Length: {len(words) + 15}\r\n\r\n<Error>{words}</Error>".encode()


def echo_fields(head: str, value: str) -> bytes:
    names = ("x-amz-request-id", "x-amz-id-2", "x-amz-bucket-region", "x-echo", "etag", "date", "retry-after")
    return f"HTTP/1.1 403 No\r\n{''.join(f'{n}: {value}{chr(13)}{chr(10)}' for n in names)}Content-Length: 0\r\n\r\n".encode()


def echo_location(head: str, value: str) -> bytes:
    return redirect_to(f"http://93.184.216.34/{value}/x?a={value}#{value}")


def echo_bad_location(head: str, value: str) -> bytes:
    return redirect_to(f"http://{value}@[{value}/?{value}")


def echo_garbage(head: str, value: str) -> bytes:
    return f"{value}\r\n\r\n".encode()


def echo_cut_garbage(head: str, value: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nX-Echo: {'x' * 60}{value}".encode() + b"\0" + b"\r\n\r\n"


def echo_bad_length(head: str, value: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {value}\r\n\r\n".encode()


def echo_bad_chunk(head: str, value: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{value}\r\n".encode()


def echo_interim(head: str, value: str) -> bytes:
    return f"HTTP/1.1 103 {value}\r\nX-Echo: {value}\r\n\r\nHTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n".encode()


def echo_whole_head(head: str, value: str) -> bytes:
    return (
        b"HTTP/1.1 403 No\r\n"
        + head.partition("\r\n")[2].replace("Content-Length", "X-Length").encode()[:-2]
        + (b"Content-Length: 0\r\n\r\n")
    )


ECHOES = [value for name, value in list(globals().items()) if name.startswith("echo_")]
SHOWN = {
    **SECRETS,
    "signature": SECRETS["signature"]._replace(value=""),  # its hex digits, looked up in what was sent
    "secret key": Secret("S3cretKey0000", signed=True),
}


@pytest.mark.parametrize("echo", ECHOES, ids=lambda echo: echo.__name__)
@pytest.mark.parametrize("name", SHOWN)
def test_what_a_server_echoes_is_in_nothing_that_is_shown(
    name: str, echo: Callable[[str, str], bytes], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors with all that led to them, hops, results, events, logs, and what a worker would pickle."""
    it, values, told = SHOWN[name], [], []

    def serve(connection: socket.socket) -> None:
        head, _body = read_request(connection, goes_ahead=False)
        text = head.decode()
        value = it.value or text.partition("Signature=")[2].partition("\r\n")[0]
        values.append(value)
        connection.sendall(echo(text, value))

    async def main(url: str) -> str:
        policy = {"hosts": ("127.0.0.1",)} if it.headers else {}
        async with client_of(it, url, policy, retry=ONCE) as client:
            try:
                return repr(await put(client, it, url, on_event=told.append))
            except engine.EngineError as error:
                return everything_of(error)

    caplog.set_level(0)
    with raw_server(serve) as url:
        shown = run(main(url))
    assert len(values[0]) >= 10
    for text in (shown, repr(told), pickle.dumps(told).decode("latin-1"), caplog.text):
        for form in forms_of(values[0]):
            assert form not in text, f"{form} is shown: {text}"


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_an_excerpt_that_cuts_through_a_secret_shows_no_piece_of_it(run: Run, cut: int) -> None:
    """The excerpt ends 24 bytes before the fault: the server chooses where."""
    token = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Echo: " + token.encode() + b"/" * cut + b"\0\r\n\r\n")

    with raw_server(serve) as url, pytest.raises(engine.ProtocolError) as caught:
        run(engine.put_async(BODY, f"{url}/k", headers={"Authorization": f"Bearer {token}"}, checksum=None))
    shown = everything_of(caught.value)
    assert not any(token[i : i + 5] in shown for i in range(len(token) - 4)), caught.value.excerpt
    assert caught.value.kind in str(caught.value)


def test_an_excerpt_without_a_secret_stays_what_it_is() -> None:
    secrets = ["S3cretS3cret01", "a" * 64]
    for excerpt in ("HTTP/1.1 200 OK\\r\\nContent-Length: 5, 6", "", "garbage", "a" * 3):
        assert without_pieces(excerpt, secrets) == excerpt
    assert without_pieces("xx S3cretS3 yy", secrets) == "REDACTED"
    assert without_pieces("ret01 yy", secrets) == "REDACTED"
    assert without_pieces("yy S3cre", secrets) == "REDACTED"


def test_the_codes_of_s3_about_signatures_are_not_taken_for_secrets(run: Run) -> None:
    body = b"<Error><Code>SignatureDoesNotMatch</Code><Message>Signature, Credential</Message></Error>"

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 403 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async def main(url: str) -> None:
        async with client_of(SECRETS["signature"], url, {}) as client:
            await put(client, SECRETS["signature"], url)

    with raw_server(serve) as url, pytest.raises(engine.AccessDenied) as caught:
        run(main(url))
    assert (caught.value.code, caught.value.server_message) == ("SignatureDoesNotMatch", "Signature, Credential")


@pytest.mark.parametrize("tunnel", [False, True])
def test_a_proxy_that_echoes_its_password_shows_it_to_nobody(run: Run, tunnel: bool) -> None:
    encoded = base64.b64encode(b"me:Pr0xyPassw0rd").decode()

    def serve(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(f"HTTP/1.1 407 {encoded}\r\nX-Echo: {encoded}\r\nContent-Length: 0\r\n\r\n".encode())

    told: list[Any] = []
    where = f"http{'s' if tunnel else ''}://store.test/k"
    with raw_server(serve) as url:
        config = engine.Config(proxy=url.replace("http://", "http://me:Pr0xyPassw0rd@"), retry=ONCE)
        with pytest.raises(engine.EngineError, match="407") as caught:
            run(engine.put_async(BODY, where, config=config, checksum=None, on_event=told.append))
    shown = everything_of(caught.value) + repr(told)
    assert encoded not in shown
    assert "Pr0xyPassw0rd" not in shown


def test_core_objects_and_their_copies_show_no_secret() -> None:
    """What crosses to other processes by need (credentials, a config with a proxy) shows nothing when it is printed."""
    credentials = engine.Credentials("AKIAIOSFODNN7EXAMPLE", "S3cretKey0000", "T0kenT0ken0001")
    config = engine.Config(proxy="http://me:Pr0xyPassw0rd@proxy.test:3128")
    client = engine.Client(endpoint_url=TLS, credentials=credentials, config=config)
    things = [credentials, config, client, vars(client), client._shared, vars(client._shared), client._provider]
    things += [pickle.loads(pickle.dumps(credentials)), pickle.loads(pickle.dumps(config))]
    for thing in things:
        for secret in ("S3cretKey0000", "T0kenT0ken0001", "Pr0xyPassw0rd", "IOSFODNN7EXAMPLE"):
            assert secret not in f"{thing!r} {thing}"


def test_asyncio_is_told_nothing_either(run: Run) -> None:
    """What a handler of `on_event` raises goes to the loop's exception handler, with the event nowhere in it."""
    contexts: list[dict[str, Any]] = []

    def fail(event: object) -> None:
        raise ValueError("handler")

    async def main(url: str) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: contexts.append(context))
        await engine.put_async(BODY, f"{url}/k?token=T0kenT0ken0001", checksum=None, on_event=fail)

    with raw_server(lambda connection: (read_request(connection), connection.sendall(OK))) as url:
        run(main(url))
    assert contexts
    assert "T0kenT0ken0001" not in repr(contexts)
