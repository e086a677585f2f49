"""What tests share: the sandbox, files of random bytes, and a way to run a coroutine on either event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

import engine
from engine import sandbox as sandboxes
from tests.leaks import pytest_runtest_makereport  # noqa: F401  (a hook)

T = TypeVar("T")

for name in list(os.environ):
    if name.startswith("AWS_") or name.lower().endswith("_proxy"):
        del os.environ[name]  # the developer's own account and proxy are not to be met
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"


@pytest.fixture(scope="session")
def shared_sandbox() -> Iterator[sandboxes.Sandbox]:
    with sandboxes.start() as running:
        yield running


class Server:
    """The session's sandbox, as one test sees it: only the records made since the test began."""

    def __init__(self, running: sandboxes.Sandbox) -> None:
        self.sandbox = running
        self._before = len(running.records)
        self.redirector_url = running.redirector_url
        self.store_url = running.store_url
        self.region = running.region
        self.credentials = running.credentials
        self.object = running.object

    def records(self) -> list[sandboxes.Record]:
        return self.sandbox.settle()[self._before :]

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of a Client that talks to the redirecting endpoint."""
        return {"endpoint_url": self.redirector_url, "region": self.region, "credentials": self.credentials}


@pytest.fixture
def server(shared_sandbox: sandboxes.Sandbox) -> Server:
    return Server(shared_sandbox)


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, T]], T]:
    """Runs a coroutine to its end on a new event loop, of uvloop and of asyncio."""

    def on_loop(main: Coroutine[Any, Any, T]) -> T:
        if request.param == "uvloop":
            return uvloop.run(main)
        return asyncio.run(main)

    return on_loop


@pytest.fixture
def client_of(server: Server) -> Callable[..., engine.Client]:
    def make(**options: Any) -> engine.Client:
        return engine.Client(**{**server.options, **options})

    return make


@pytest.fixture(scope="session")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 MiB + 1 byte of random bytes: sent by the native thread, and no multiple of anything."""
    path = tmp_path_factory.mktemp("files") / "big.bin"
    path.write_bytes(os.urandom((8 << 20) + 1))
    return path
