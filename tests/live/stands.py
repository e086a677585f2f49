"""How each server plays its part in the table of docs/servers.md: where it redirects, stores, refuses and keeps silent.

Owns: the parts, and counting what the two hosts of a redirect received. Plain HTTP and TLS alike are counted by the kernel on
the server's own sockets (:mod:`tcpdiag`); Ceph, whose gateways talk to each other by the same ports, by a relay before each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import engine
from engine import events

from . import tcpdiag
from .matrix import about
from .relay import Relay
from .servers import Apache, Ceph, Haproxy, Keys, Lighttpd, LiveServer, Logged, Nginx, Xrootd, digest

HANDSHAKE_MAX = 6000
"""Bytes that a TLS client sends before any body: its hello, its end of the handshake, the request's head, an alert."""
SIGNER = Keys("LIVETESTACCESSKEY000", "live/test+secret/key/of/forty/characters")


@dataclass(frozen=True)
class Received:
    """What one host received of one request.

    ``body``: bytes behind the request's head; over TLS, where the head is not to be seen, all bytes of the connection.
    """

    body: int
    encrypted: bool = False

    def part_of(self, size: int) -> str:
        """ "0", "all" or "part" of a body of `size` bytes."""
        if self.encrypted:
            # A record of 16 KiB has 22 bytes around it in TLS 1.3.
            return "0" if self.body <= HANDSHAKE_MAX else "all" if self.body >= size else "part"
        assert self.body <= size + 1, f"{self.body} bytes of a body of {size}"
        # The kernel counts an orderly end of the stream as one byte.
        return "0" if self.body <= 1 else "all" if self.body >= size else "part"

    def text(self, size: int) -> str:
        """For the table: the part, with the number when it differs from run to run or is not the body alone."""
        part = self.part_of(size)
        if part == "0":
            return f"0 {about(f'{self.body:,} B with handshake and head')}" if self.encrypted else "0"
        if part == "all":
            return f"all {about(f'{self.body - size:,} B more with TLS')}" if self.encrypted else f"all: {size:,} B"
        return f"part {about(self.body)}"

    def race_text(self, size: int) -> str:
        """As `text`, where it is left to chance whether the first piece of the body still arrived."""
        return self.text(size) if self.part_of(size) == "all" else f"not all {about(self.body)}"


@dataclass
class Count:
    """What was received at the two ends while `Stand.counting` lasted, by URL; filled in when it is over."""

    heads: dict[int, list[int]] = field(default_factory=dict)
    """Sizes of the request heads by port: unsigned ones, whose text an event shows whole."""
    refusing: list[Received] = field(default_factory=list)
    storing: list[Received] = field(default_factory=list)

    def watch(self, event: events.Event) -> None:
        """To be given as `on_event`."""
        if isinstance(event, events.HeadSent):
            port = urlsplit(event.url).port
            assert port is not None
            self.heads.setdefault(port, []).append(len(event.head))


@dataclass(frozen=True)
class Refusal:
    """How the server refuses in mid-body: where, and what the caller then gets."""

    how: str
    url: str
    error: type[engine.EngineError]
    status: int
    options: Mapping[str, Any] = field(default_factory=dict)
    chunked: bool = False
    server: LiveServer | None = None
    """The one that refuses, where it is another instance with another certificate."""


@dataclass
class Stand:
    """A server, as a row of the table.

    Attributes:
      refusing, storing: base URLs; `refusing` + `/307/name` leads to `storing` + `/name`.
      by_status: whether `refusing` wants the status in front of the name.
      late: how the answer is made late, in a few words; "" for a server that is stopped by the test.
      silent: a base URL that never says 100, or the few words why there is none. `silence` says how.
    """

    server: LiveServer
    refusing: str
    storing: str
    stored: Callable[[str], Path]
    requests: Callable[[], list[Logged]]
    refusal: Refusal
    by_status: bool = True
    statuses: tuple[int, ...] = (301, 302, 307, 308)
    late: str = ""
    silent: str = ""
    silence: str = ""
    where_fields: str = "access log"
    hidden_fields: tuple[str, ...] = ()
    make_known: Callable[[str], None] | None = None
    credentials: Keys = SIGNER
    sign: Mapping[str, Any] = field(default_factory=lambda: {"sign": "s3"})

    def url(self, name: str, status: int = 307) -> str:
        """Where to put `name` so that it is redirected."""
        return f"{self.refusing}/{status}/{name}" if self.by_status else f"{self.refusing}/{name}"

    def know(self, name: str) -> None:
        """Make the server answer at once about a new name, where it would not."""
        if self.make_known is not None:
            self.make_known(name)

    def client(self, server: LiveServer | None = None, **config: Any) -> engine.Client:
        """A client that knows nothing yet of this server, or of `server`, but whom to trust."""
        ca_file = (server or self.server).ca_file
        settings = engine.Config(tls=str(ca_file) if ca_file else None, retry=engine.Retry(max_attempts=1), **config)
        return engine.Client(region="za", credentials=engine.Credentials(*self.credentials), config=settings)

    def digest(self, name: str) -> str | None:
        """The SHA-256 of what is stored under `name`; None without such an object."""
        path = self.stored(name)
        return digest(path) if path.exists() else None

    @contextlib.contextmanager
    def counting(self, refusing: int, storing: int, *, at: str = "") -> Iterator[Count]:
        """Count what arrives on so many connections to each of the two hosts. `at`: another URL than `refusing`'s."""
        ports = [port_of(at or self.refusing), port_of(self.storing)]
        with counting(dict(zip(ports, (refusing, storing), strict=True)), encrypted=self.server.tls) as (
            count,
            received,
        ):
            yield count
        count.refusing, count.storing = (received[port] for port in ports)


def port_of(url: str) -> int:
    """The port in a URL that has one."""
    port = urlsplit(url).port
    assert port is not None
    return port


@contextlib.contextmanager
def counting(connections: Mapping[int, int], *, encrypted: bool) -> Iterator[tuple[Count, dict[int, list[Received]]]]:
    """Count, by the kernel, what arrives on so many connections to each port."""
    for port in connections:
        tcpdiag.wait_for_none(port)
    count, received = Count(), {}
    with tcpdiag.DestroyedSockets() as destroyed:
        yield count, received
        for port, number in connections.items():
            sizes = sorted(destroyed.all_of(port, number))
            if encrypted:
                received[port] = [Received(size, encrypted=True) for size in sizes]
                continue
            heads = count.heads.get(port, [])
            assert len(heads) == number, (heads, sizes)
            # Heads for one host differ by the names in them; the tests take names of one length.
            assert len(set(heads)) <= 1, heads
            received[port] = [Received(size - heads[0]) for size in sizes]


# --- the parts ------------------------------------------------------------------------------------------------------


def nginx_stand(server: Nginx) -> Stand:
    full = Refusal("its disk is full at 4 MiB: 500", f"{server.full}/too-big", engine.ResponseError, 500)
    return Stand(
        *(server, server.redirector, server.store, server.stored, server.requests, full),
        silent="it says 100 to everybody, at once",
    )


def apache_stand(server: Apache) -> Stand:
    limit = Refusal(
        "`LimitRequestBody` of 1 MiB, chunked body: 413",
        *(f"{server.redirector}/413/chunked", engine.ResponseError, 413),
        chunked=True,
    )
    return Stand(
        *(server, server.redirector, server.store, server.stored, server.requests, limit),
        silent="it says 100 as soon as it wants the body",
    )


def haproxy_stand(server: Haproxy, backend: Nginx) -> Stand:
    denied = Refusal(
        *("`http-request deny`, not asked: 403", f"{server.redirector}/403/denied", engine.AccessDenied, 403),
        options={"expect": "never"},
    )
    return Stand(
        *(server, server.redirector, server.live, backend.stored, server.requests, denied),
        silent=server.silent,
        silence="`http-request del-header Expect`",
    )


def lighttpd_stand(server: Lighttpd) -> Stand:
    full = Refusal("its disk is full at 4 MiB: 500", f"{server.full}/too-big", engine.ResponseError, 500)
    return Stand(
        *(server, server.redirector, server.store, server.stored, server.requests, full),
        silent="it says 100 as soon as it wants the body",
        hidden_fields=("Expect",),
    )


def xrootd_stand(server: Xrootd, full: Xrootd) -> Stand:
    disk = Refusal(
        "its data server dies of a full disk", f"{full.store}/too-big", engine.ConnectionLost, 0, server=full
    )
    return Stand(
        *(server, server.manager, server.store, server.stored, server.requests, disk),
        by_status=False,
        statuses=(307,),
        late="" if server.lookup_s < 2 else f"`cms.delay lookup {server.lookup_s}`",
        silent="its data server says 100 at once, its manager 307",
        where_fields="trace",
        make_known=server.make_known,
    )


class CephStand(Stand):
    """One gateway that redirects to the other. Signed, `s3://`, counted by relays."""

    def __init__(self, ceph: Ceph, at: str, other: str) -> None:
        self.ceph, self.other = ceph, other
        self.gateway: str = getattr(ceph, at)
        self.bucket: str = getattr(ceph, f"bucket_{other}")
        self.relay_storing: Relay = getattr(ceph, f"relay_{other}")
        wrong = Refusal(
            *("a wrong signature, not asked: 403", f"s3://{self.bucket}/wrong", engine.AccessDenied, 403),
            options={"expect": "never"},
        )
        super().__init__(
            *(ceph, self.gateway, self.relay_storing.url, Path, self.logged, wrong),
            by_status=False,
            statuses=(301,),
            where_fields="relay",
            silence="`rgw_print_continue = false`",
            credentials=ceph.keys,
            sign={},
        )
        self.relay = Relay(self.gateway)

    def url(self, name: str, status: int = 301) -> str:
        return f"s3://{self.bucket}/{name}"

    def client(self, server: LiveServer | None = None, **config: Any) -> engine.Client:
        settings = engine.Config(retry=engine.Retry(max_attempts=1), **config)
        return engine.Client(
            endpoint_url=self.relay.url,
            region=self.ceph.region_a,
            credentials=engine.Credentials(*self.credentials),
            config=settings,
        )

    def digest(self, name: str) -> str | None:
        found = self.ceph.client(getattr(self.ceph, self.other), "za").list_objects_v2(Bucket=self.bucket, Prefix=name)
        return self.ceph.stored_digest(self.bucket, name) if found["KeyCount"] else None

    def logged(self) -> list[Logged]:
        """What passed the relays: heads as they came."""
        found = []
        for connection in [*self.relay.connections, *self.relay_storing.connections]:
            method, _, rest = connection.request_line.partition(" ")
            found.append(Logged(method, rest.rpartition(" ")[0], 0, connection.fields))
        return found

    @contextlib.contextmanager
    def counting(self, refusing: int, storing: int, *, at: str = "") -> Iterator[Count]:
        count = Count()
        before = len(self.relay.connections), len(self.relay_storing.connections)
        yield count
        ours = self.relay.settled()[before[0] :]
        theirs = [
            each
            for each in self.relay_storing.settled()[before[1] :]
            if each.request_line.startswith(f"PUT /{self.bucket}/")
        ]
        assert (len(ours), len(theirs)) == (refusing, storing)
        count.refusing = sorted((Received(each.body_received) for each in ours), key=lambda each: each.body)
        count.storing = sorted((Received(each.body_received) for each in theirs), key=lambda each: each.body)
