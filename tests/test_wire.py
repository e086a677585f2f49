"""URLs as strangers write them, request heads as they leave, and what never shows."""

from __future__ import annotations

import ipaddress
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import UsageError
from engine.wire import (
    REDACTED,
    SECRET_FIELDS,
    Url,
    caller_fields,
    check_field,
    check_host,
    is_address,
    parse_url,
    printable,
    redact_head,
    redact_url_text,
    request_head,
    resolve_reference,
)

BASE = parse_url("http://store.example:8080/bucket/dir/key?uploads")

# --- URLs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://example.com", "http://example.com/"),
        ("HTTP://EXAMPLE.COM:80/A", "http://example.com/A"),
        ("https://example.com:443/", "https://example.com/"),
        ("https://example.com:80/", "https://example.com:80/"),
        ("http://example.com:/a", "http://example.com/a"),
        ("http://example.com:00080/", "http://example.com/"),
        ("http://example.com./a", "http://example.com/a"),
        ("http://example.com?", "http://example.com/"),
        ("http://example.com/a?", "http://example.com/a"),
        ("http://example.com/a??", "http://example.com/a??"),
        ("http://example.com#frag", "http://example.com/"),
        ("http://example.com/a#?b", "http://example.com/a"),
        ("http://example.com?a=b#c", "http://example.com/?a=b"),
        ("http://example.com/a b", "http://example.com/a%20b"),
        ("http://example.com/ä", "http://example.com/%C3%A4"),
        ("http://example.com/a%2Fb%zz", "http://example.com/a%2Fb%zz"),
        ("http://example.com/a/../b//c", "http://example.com/a/../b//c"),
        ("http://example.com/a\\b", "http://example.com/a%5Cb"),
        ("http://example.com/@me", "http://example.com/@me"),
        ("http://127.0.0.1/", "http://127.0.0.1/"),
        ("http://127.0.0.1./", "http://127.0.0.1/"),
        ("http://[::1]:9000/", "http://[::1]:9000/"),
        ("http://[::0001]/", "http://[::1]/"),
        ("http://[2001:DB8::1]/", "http://[2001:db8::1]/"),
        ("http://my_bucket.s3.local/", "http://my_bucket.s3.local/"),
        ("http://xn--mnchen-3ya.de/", "http://xn--mnchen-3ya.de/"),
        ("http://" + "a" * 63 + ".de/", "http://" + "a" * 63 + ".de/"),
    ],
)
def test_a_url_is_read_as_it_will_be_sent(text: str, shown: str) -> None:
    assert str(parse_url(text)) == shown
    assert parse_url(shown) == parse_url(text)


# Each is read as another host, scheme or port by at least one parser in use (WHATWG, RFC 3986, inet_aton, curl, urllib).
TORTURE = [
    "",
    "example.com",
    "//example.com",
    "ftp://example.com/",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "gopher://127.0.0.1:6379/_SET",
    "http:example.com",
    "https:evil",
    "http:/example.com",
    "http:/\\evil",
    "http:\\\\evil.com",
    "http:///evil.com",
    "http://",
    "http:///",
    "http://:80/",
    "http://?a",
    "http://#",
    " http://example.com/",
    "http ://example.com/",
    "http://exam ple.com/",
    "http://example.com /",
    "http://user@example.com/",
    "http://user:pass@example.com/",
    "http://@example.com/",
    "http://good.com@evil.com/",
    "http://good.com:80@evil.com/",
    "http://good.com\\@evil.com/",
    "http://good.com\\.evil.com/",
    "http://good.com%00.evil.com/",
    "http://good.com%2eevil.com/",
    "http://good.com;evil.com/",
    "http://good.com,evil.com/",
    "http://good.com&evil.com/",
    "http://good.com:80:90/",
    "http://good.com:0/",
    "http://good.com:65536/",
    "http://good.com:99999999999/",
    "http://good.com:-1/",
    "http://good.com:+80/",
    "http://good.com:8 0/",
    "http://good.com:0x50/",
    "http://good.com:８０/",
    "http://good.com:80a/",
    "http://0x7f.1/",
    "http://0x7f.0.0.1/",
    "http://0x7f000001/",
    "http://0X7F000001/",
    "http://0x/",
    "http://127.1/",
    "http://127.0.1/",
    "http://2130706433/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://127.0.0.01/",
    "http://127.0.0.256/",
    "http://127.0.0.1.1/",
    "http://1.2.3.4.5/",
    "http://127.0.0.0x1/",
    "http://１２７.0.0.1/",
    "http://127。0。0。1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://exämple.com/",
    "http://ｅvil.com/",
    "http://evil.com\u3002good.com/",
    "http://\u212aube.com/",
    "http://good.com\u200b/",
    "http://good.com\u2028/",
    "http://good..com/",
    "http://.good.com/",
    "http://good.com../",
    "http://./",
    "http://../",
    "http://-good.com/",
    "http://good-.com/",
    "http://*.good.com/",
    "http://good.com|evil/",
    "http://good.com^/",
    "http://[::1/",
    "http://::1/",
    "http://[::1]evil.com/",
    "http://[::1]@evil.com/",
    "http://[::1]:/\x00",
    "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://[::ffff:127.0.0.1.]/",
    "http://[127.0.0.1]/",
    "http://[v1.fe80::a]/",
    "http://[]/",
    "http://[good.com]/",
    "http://good.com/\r\nSet-Cookie: a=b",
    "http://good.com/\nX: y",
    "http://good.com/\t",
    "http://good.com\t/",
    "ht\ttp://good.com/",
    "http://go\nod.com/",
    "http://good.com/\x00",
    "http://good.com/\x7f",
    "http://good.com/\ud800",
    "http://good.com/?q=\udfff",
    "http://" + "a" * 64 + ".com/",
    "http://" + "a." * 127 + "com/",
]


@pytest.mark.parametrize("text", TORTURE)
def test_what_two_parsers_read_differently_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_url(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("text", [None, 7, b"http://example.com/"])
def test_a_url_is_text(text: object) -> None:
    with pytest.raises(UsageError):
        parse_url(text)  # type: ignore[arg-type]


@given(st.text(max_size=60))
def test_any_text_is_a_url_or_a_usage_error(text: str) -> None:
    for candidate in (text, f"http://{text}", f"http://good.com/{text}", f"http://good.com{text}"):
        try:
            url = parse_url(candidate)
        except UsageError:
            continue
        sendable(url)
        assert parse_url(str(url)) == url


@given(st.text(alphabet=string.printable + "\\@[]%ä\x00\u3002", max_size=40))
def test_any_location_leads_to_a_sendable_url_or_a_usage_error(text: str) -> None:
    try:
        url = resolve_reference(BASE, text)
    except UsageError:
        return
    sendable(url)
    assert resolve_reference(BASE, str(url)) == url
    if not text.partition("#")[0].lstrip().lower().startswith(("http:", "https:", "//")):
        assert url.origin == BASE.origin


def sendable(url: Url) -> None:
    """What every Url has to be, whatever it came from."""
    head = request_head("PUT", url.target, [("host", url.authority)])
    assert head.count(b"\r\n") == 3
    assert head.split(b" ")[0::2][0] == b"PUT"
    assert head.split(b"\r\n")[0].count(b" ") == 2
    assert url.path.startswith("/")
    assert "#" not in url.target
    assert "@" not in url.authority
    assert 1 <= url.port <= 65535
    if is_address(url.host):
        ipaddress.ip_address(url.host)
    else:
        assert check_host(url.host) == url.host
        with pytest.raises(ValueError):
            ipaddress.ip_address(url.host)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("http://other/x", "http://other/x"),
        ("//other/x", "http://other/x"),
        ("//other:81", "http://other:81/"),
        ("/x", "http://store.example:8080/x"),
        ("/x?rk=1&b=a%2Fb", "http://store.example:8080/x?rk=1&b=a%2Fb"),
        ("/x?", "http://store.example:8080/x"),
        ("/a/../x", "http://store.example:8080/a/../x"),
        ("/\\evil.com/x", "http://store.example:8080/%5Cevil.com/x"),
        ("\\\\evil.com", "http://store.example:8080/bucket/dir/%5C%5Cevil.com"),
        ("x", "http://store.example:8080/bucket/dir/x"),
        ("../x", "http://store.example:8080/bucket/x"),
        ("../../../../x", "http://store.example:8080/x"),
        ("./x/.", "http://store.example:8080/bucket/dir/x/"),
        ("..", "http://store.example:8080/bucket/"),
        (".", "http://store.example:8080/bucket/dir/"),
        ("?a=b", "http://store.example:8080/bucket/dir/key?a=b"),
        ("?", "http://store.example:8080/bucket/dir/key"),
        ("", "http://store.example:8080/bucket/dir/key?uploads"),
        ("#x", "http://store.example:8080/bucket/dir/key?uploads"),
        ("/x#http://evil.com", "http://store.example:8080/x"),
    ],
)
def test_a_reference_is_resolved_against_the_answered_url(reference: str, expected: str) -> None:
    assert str(resolve_reference(BASE, reference)) == expected


@pytest.mark.parametrize(
    "reference",
    [
        "///evil.com/",
        "////evil.com/",
        "//evil.com\\@good",
        "//user@evil.com/",
        "http:evil.com",
        "https:/evil.com",
        "x:y",
        "/x\r\ny",
        "/\x01",
        "x\x7f",
        "//0x7f.1/",
        "//127.1/",
        "//[::1]:port/",
        "/\udc80",
    ],
)
def test_a_reference_that_parsers_disagree_on_is_refused(reference: str) -> None:
    with pytest.raises(UsageError):
        resolve_reference(BASE, reference)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("::ffff:1.2.3.4", True),
        ("a.b", False),
        ("1a", False),
        ("1.2.3.4.com", False),
    ],
)
def test_addresses_and_names_are_told_apart(host: str, address: bool) -> None:
    assert is_address(host) is address


# --- what never shows ---------------------------------------------------------------------------------------------

SECRET = "SeCrEtVaLuE"


SECRET_PARAMETERS = (
    "X-Amz-Signature x-amz-signature X-Amz-Credential X-Amz-Security-Token Signature AWSAccessKeyId sig token access_token "
    "delegation user.delegation authz Authorization auth oauth_token api_key api-key apikey key Key-Pair-Id Policy password "
    "pwd passwd secret client_secret macaroon dcache-http-uuid xrdhttptk jwt bearer session sessionid X-Goog-Signature "
    "X-Goog-Credential GoogleAccessId %53ignature X-Amz-%53ecurity-%54oken credentials"
)


@pytest.mark.parametrize("name", SECRET_PARAMETERS.split())
def test_values_of_secret_query_parameters_are_redacted(name: str) -> None:
    url = parse_url(f"https://example.com/key?partNumber=7&{name}={SECRET}&a=1;{name}={SECRET}")
    for shown in (url.redacted(), repr(url), f"{url!r}"):
        assert SECRET not in shown
        assert "partNumber=7" in shown
        assert REDACTED in shown
    head = f"PUT {url.target} HTTP/1.1\r\nhost: example.com\r\nlocation: {url}\r\nreferer: {url}\r\n\r\n"
    assert SECRET not in redact_head(head.encode())
    assert redact_head(head.encode()).startswith("PUT /key?partNumber=7&")
    assert redact_head(head.encode()).splitlines()[0].endswith(" HTTP/1.1")


@pytest.mark.parametrize(
    "text",
    [
        f"http://user:{SECRET}@host/",
        f"http://{SECRET}@host/",
        f"http:user:{SECRET}@host/",
        f"http:/user:{SECRET}@host/",
        f"http:\\\\user:{SECRET}@host/",
        f"http://user:p?{SECRET}@host/",
        f"http://a@b:{SECRET}@host/",
        f"//user:{SECRET}@host/",
        f"user:{SECRET}@host",
        f"http://host:bad/?anything={SECRET}",
        f"http://host:bad/?a=1&b={SECRET};c={SECRET}",
        f"http://host:bad/?{'x' * 32}{SECRET}",
        f"http://host:bad/#access_token={SECRET}",
        f"http://host:bad/\r\n?a={SECRET}",
    ],
)
def test_a_url_that_does_not_parse_shows_no_secret(text: str) -> None:
    assert SECRET not in redact_url_text(text)
    with pytest.raises(UsageError) as caught:
        parse_url(text)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "name", [*sorted(SECRET_FIELDS), "X-Api-Key", "x-auth-token", "X-Vault-Token", "AUTHORIZATION"]
)
def test_secret_fields_are_redacted_in_heads(name: str) -> None:
    shown = redact_head(f"PUT / HTTP/1.1\r\nhost: a\r\n{name}: {SECRET}\r\n\r\n".encode())
    assert SECRET not in shown
    assert name in shown
    assert "host: a" in shown


def test_a_location_with_user_info_is_redacted_in_heads() -> None:
    shown = redact_head(f"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://u:{SECRET}@h/?a=b\r\n\r\n".encode())
    assert SECRET not in shown
    assert shown.startswith("HTTP/1.1 307 Temporary Redirect\r\n")


def test_a_traced_head_cannot_drive_a_terminal() -> None:
    shown = redact_head(b"HTTP/1.1 200 \x1b[31mOK\x9b\r\nx: \x1b]0;title\x07\r\n\r\n")
    assert all(line.isprintable() for line in shown.split("\r\n"))


@given(st.text(max_size=80), st.integers(1, 60))
def test_a_strangers_words_are_printable_and_short(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit * len("\\U0010ffff")
    if len(text) <= limit and text.isprintable():
        assert shown == text


# --- heads --------------------------------------------------------------------------------------------------------


def test_a_head_is_its_lines_and_an_empty_one() -> None:
    head = request_head("PUT", "/a?b", [("host", "h"), ("Content-Length", "3"), ("x-empty", ""), ("x-pad", " v\t")])
    assert head == b"PUT /a?b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nX-Empty: \r\nX-Pad: v\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "target", "fields"),
    [
        ("PU T", "/", []),
        ("PUT\r\n", "/", []),
        ("", "/", []),
        ("PUT", "", []),
        ("PUT", "/ HTTP/1.1\r\nX: y", []),
        ("PUT", "/a b", []),
        ("PUT", "/ä", []),
        ("PUT", "/", [("x", "a\r\nb")]),
        ("PUT", "/", [("x", "a\nb")]),
        ("PUT", "/", [("x", "a\0b")]),
        ("PUT", "/", [("x\r\ny", "b")]),
        ("PUT", "/", [("x y", "b")]),
        ("PUT", "/", [("x:", "b")]),
        ("PUT", "/", [("", "b")]),
        ("PUT", "/", [("x", "ä")]),
        ("PUT", "/", [("Host", "other")]),
        ("PUT", "/", [("content-length", "1"), ("Content-Length", "1")]),
        ("PUT", "/", [("content-length", "1"), ("transfer-encoding", "chunked")]),
    ],
)
def test_a_head_that_would_be_two_requests_is_refused(method: str, target: str, fields: list[tuple[str, str]]) -> None:
    with pytest.raises(UsageError):
        request_head(method, target, [("host", "h"), *fields])


def test_a_head_without_host_is_refused() -> None:
    with pytest.raises(UsageError):
        request_head("PUT", "/", [("content-length", "1")])


def test_a_bad_value_is_not_shown_because_it_may_be_a_secret() -> None:
    with pytest.raises(UsageError) as caught:
        check_field("authorization", f"Bearer {SECRET}\n")
    assert SECRET not in str(caught.value)
    assert "authorization" in str(caught.value)


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=20)), max_size=4))
def test_no_field_can_add_a_line(fields: list[tuple[str, str]]) -> None:
    try:
        head = request_head("PUT", "/", [("host", "h"), *fields])
    except UsageError:
        return
    assert head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r") == len(fields) + 3
    assert head.endswith(b"\r\n\r\n")
    assert head.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "connection",
        "EXPECT",
        "te",
        "Trailer",
        "upgrade",
        "keep-alive",
        "proxy-connection",
        "http2-settings",
    ],
)
@pytest.mark.parametrize("signed", [True, False])
def test_framing_fields_of_a_caller_are_refused(name: str, signed: bool) -> None:
    with pytest.raises(UsageError):
        caller_fields({name: "x"}, signed=signed)


@pytest.mark.parametrize("name", ["Authorization", "x-amz-date", "X-Amz-Content-SHA256", "x-amz-security-token"])
def test_fields_of_the_signature_are_a_callers_only_when_nothing_is_signed(name: str) -> None:
    assert caller_fields({name: "x"}, signed=False) == [(name, "x")]
    with pytest.raises(UsageError):
        caller_fields({name: "x"}, signed=True)


def test_a_caller_gives_a_field_once() -> None:
    assert caller_fields([("A", "1"), ("b", "2")], signed=True) == [("A", "1"), ("b", "2")]
    assert caller_fields(None, signed=True) == []
    with pytest.raises(UsageError):
        caller_fields([("a", "1"), ("A", "2")], signed=True)
