"""What the servers do, seen by a raw socket: the facts which the other live tests, and the design, rest on.

When one of these fails a server has changed its ways, and the tests that rely on it may have stopped testing anything.
"""

from __future__ import annotations

import socket
import time
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from .servers import Apache, Ceph, Haproxy, Lighttpd, Nginx, Xrootd, status_of

pytestmark = pytest.mark.live
BODY_SIZE = 10 << 20


class Answer(NamedTuple):
    """All status codes in their order, the last head's fields (names in lower case), seconds until it came."""

    statuses: tuple[int, ...]
    fields: dict[str, str]
    waited_s: float


def ask(url: str, *fields: str, method: str = "PUT", timeout_s: float = 8) -> Answer:
    """Send a head that announces BODY_SIZE bytes, then nothing; return what comes until a final answer or `timeout_s`."""
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}".rstrip("?")
    head = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {BODY_SIZE}", *fields]
    received = b""
    with socket.create_connection((parts.hostname, parts.port), timeout_s) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        start = time.monotonic()
        answer = Answer((), {}, 0.0)
        while not answer.statuses or answer.statuses[-1] < 200:
            try:
                piece = connection.recv(1 << 16)
            except TimeoutError:
                break
            assert piece, received
            received += piece
            answer = read_heads(received, time.monotonic() - start)
    return answer


def read_heads(received: bytes, waited_s: float) -> Answer:
    """Parse the heads at the front of `received`, up to the first final one."""
    statuses: list[int] = []
    fields: dict[str, str] = {}
    while received.startswith(b"HTTP/1.1 ") and b"\r\n\r\n" in received:
        head, _, received = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        statuses.append(int(first.split()[1]))
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(tuple(statuses), fields, waited_s)


EXPECT = "Expect: 100-continue"


def test_nginx_says_100_and_at_once_307(nginx: Nginx) -> None:
    answer = ask(f"{nginx.redirector}/307/name", EXPECT)
    assert answer.statuses == (100, 307)
    assert answer.fields["location"] == f"{nginx.store}/name"


def test_nginx_refuses_a_large_body_without_a_100(nginx: Nginx) -> None:
    assert ask(f"{nginx.redirector}/413/name", EXPECT).statuses == (413,)


def test_nginx_as_a_store_says_100_and_waits(nginx: Nginx) -> None:
    assert ask(f"{nginx.store}/name", EXPECT, timeout_s=0.5).statuses == (100,)


@pytest.mark.parametrize(("path", "status"), [("307", 307), ("401", 401), ("413", 413)])
def test_apache_that_was_asked_answers_before_the_body(apache: Apache, path: str, status: int) -> None:
    answer = ask(f"{apache.redirector}/{path}/name", EXPECT)
    assert answer.statuses == (status,)
    assert answer.fields["connection"] == "close"


def test_apache_that_was_not_asked_is_silent_until_it_has_the_body(apache: Apache) -> None:
    assert ask(f"{apache.redirector}/307/name", timeout_s=0.5).statuses == ()


def test_lighttpd_answers_before_the_body_asked_or_not(lighttpd: Lighttpd) -> None:
    for fields in ((EXPECT,), ()):
        assert ask(f"{lighttpd.redirector}/307/name", *fields).statuses == (307,)
    assert ask(f"{lighttpd.store}/name", EXPECT, timeout_s=0.5).statuses == (100,)


def test_haproxy_redirects_at_once_and_passes_on_its_backends_100(haproxy: Haproxy) -> None:
    assert ask(f"{haproxy.redirector}/307/name", EXPECT).statuses == (307,)
    assert ask(f"{haproxy.live}/name", EXPECT, timeout_s=0.5).statuses == (100,)


def test_haproxy_is_silent_about_a_dead_backend_for_3_s(haproxy: Haproxy) -> None:
    answer = ask(f"{haproxy.dead}/name", EXPECT)
    assert answer.statuses == (503,)
    assert answer.waited_s > 2


def test_xrootd_holds_its_307_for_a_new_name_only(slow_xrootd: Xrootd) -> None:
    answer = ask(f"{slow_xrootd.manager}/quirk-new", EXPECT)
    assert answer.statuses == (307,)
    assert answer.waited_s > 3
    assert answer.fields["location"].startswith(slow_xrootd.store)
    slow_xrootd.make_known("quirk-known")
    answer = ask(f"{slow_xrootd.manager}/quirk-known", EXPECT)
    assert answer.statuses == (307,)
    assert answer.waited_s < 2


def test_an_xrootd_data_server_says_100_with_a_field(xrootd: Xrootd) -> None:
    answer = ask(f"{xrootd.store}/quirk", EXPECT, timeout_s=0.5)
    assert answer.statuses == (100,)
    assert answer.fields["connection"].lower() == "close"


@pytest.mark.parametrize(("at", "other"), [("a", "b"), ("b", "a")])
def test_ceph_redirects_with_301_between_zonegroups_and_copies_the_query(ceph: Ceph, at: str, other: str) -> None:
    url, region = getattr(ceph, at), getattr(ceph, f"region_{at}")
    bucket = getattr(ceph, f"bucket_{other}")
    client = ceph.client(url, region)
    answer = ask(client.generate_presigned_url("put_object", {"Bucket": bucket, "Key": "name"}), EXPECT)
    assert answer.statuses == (301,)
    assert answer.fields["location"].startswith(f"{getattr(ceph, f'relay_{other}').url}/{bucket}/name?")
    assert "Signature=" in answer.fields["location"]


def test_ceph_checks_signatures(ceph: Ceph) -> None:
    signed = ceph.client(ceph.a, ceph.region_a).generate_presigned_url("head_bucket", {"Bucket": ceph.bucket_a})
    assert status_of("HEAD", signed) == 200
    assert status_of("HEAD", signed[:-1] + ("A" if signed[-1] != "A" else "B")) == 403
