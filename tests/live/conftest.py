"""Fixtures: each real server once for these tests, and skipped, saying what is missing, where its program is not installed.

``ENGINE_LIVE=require`` (as .ci/run sets it) makes a missing program an error, so that a run cannot pass by skipping.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from . import tcpdiag
from .relay import Relay
from .servers import Apache, Ceph, Haproxy, Lighttpd, LiveServer, Nginx, ProgramMissing, Xrootd

Server = TypeVar("Server", bound=LiveServer)


class Sample(NamedTuple):
    """A file to send."""

    path: Path
    size: int
    sha256: str


def serve(server: Server) -> Iterator[Server]:
    """Run the server for as long as a fixture lives."""
    try:
        server.__enter__()
    except ProgramMissing as missing:
        leave_out(str(missing))
    try:
        yield server
    finally:
        server.stop()


def leave_out(why: str) -> None:
    """Skip, or fail where skipping is not allowed."""
    if os.environ.get("ENGINE_LIVE") in ("require", "write"):
        pytest.fail(f"ENGINE_LIVE={os.environ['ENGINE_LIVE']}: {why}")
    pytest.skip(why)


@pytest.fixture(scope="package")
def nginx() -> Iterator[Nginx]:
    yield from serve(Nginx())


@pytest.fixture(scope="package")
def ordinary_nginx() -> Iterator[Nginx]:
    """nginx at the priority of any other process."""
    yield from serve(Nginx(wants_real_time=False))


@pytest.fixture
def prompt_nginx(nginx: Nginx) -> Nginx:
    """nginx whose two answers, a 100 and a refusal or redirect, come microseconds apart however busy the machine is."""
    if not nginx.real_time:
        leave_out("nginx cannot be given real-time priority: that takes root")
    return nginx


@pytest.fixture(scope="package")
def apache() -> Iterator[Apache]:
    yield from serve(Apache())


@pytest.fixture(scope="package")
def lighttpd() -> Iterator[Lighttpd]:
    yield from serve(Lighttpd())


@pytest.fixture(scope="package")
def haproxy(nginx: Nginx) -> Iterator[Haproxy]:
    yield from serve(Haproxy(nginx.store.removeprefix("http://")))


@pytest.fixture(scope="package")
def xrootd() -> Iterator[Xrootd]:
    """An XRootD pair whose manager holds its answer about a new name for 1 s."""
    yield from serve(Xrootd(lookup_s=1))


@pytest.fixture(scope="package")
def slow_xrootd() -> Iterator[Xrootd]:
    """An XRootD pair whose manager holds its answer about a new name for 4 s."""
    yield from serve(Xrootd(lookup_s=4))


@pytest.fixture(scope="package")
def full_xrootd() -> Iterator[Xrootd]:
    """An XRootD pair whose data server cannot write beyond 4 MiB of a file."""
    yield from serve(Xrootd(lookup_s=1, full_at=4 << 20))


@pytest.fixture(scope="package")
def ceph() -> Iterator[Ceph]:
    yield from serve(Ceph())


@pytest.fixture
def kernel_counts() -> Iterator[tcpdiag.DestroyedSockets]:
    """What the kernel counted on sockets that have ended since the test began."""
    with tcpdiag.DestroyedSockets() as counts:
        yield counts


@pytest.fixture
def relay() -> Iterator[Callable[[str], Relay]]:
    """A counting relay in front of the URL one gives: ``relay(server.redirector).url``."""
    opened: list[Relay] = []

    def open_relay(upstream: str) -> Relay:
        opened.append(Relay(upstream).__enter__())
        return opened[-1]

    yield open_relay
    for each in opened:
        each.__exit__()


def make_sample(path: Path, size: int) -> Sample:
    """Write a file of random bytes."""
    hasher = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, 1 << 20):
            piece = os.urandom(min(1 << 20, size - start))
            hasher.update(piece)
            file.write(piece)
    return Sample(path, size, hasher.hexdigest())


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A file of 24 MiB and 1 byte."""
    return make_sample(tmp_path_factory.mktemp("sample") / "sample.bin", (24 << 20) + 1)


@pytest.fixture(scope="session")
def big_sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A file of 64 MiB: more than the kernel's buffers take when nobody reads."""
    return make_sample(tmp_path_factory.mktemp("sample") / "big.bin", 64 << 20)
