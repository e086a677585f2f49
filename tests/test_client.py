"""What users call: options, sinks, hashes, trailers, loops, threads and forks, and that nothing shown holds a secret."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import engine
from engine import checksums, limits
from tests.conftest import Server
from tests.peers import OK, raw_server, read_head, read_request

Make = Callable[..., engine.Client]
Run = Callable[[Any], Any]
MIB = limits.MIB
ONCE = engine.Retry(max_attempts=1)


# --- hashes, and cancelling while they run -----------------------------------------------------------------------------------


@pytest.fixture
def slow_hash(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """checksum_file takes 0.2 s longer to notice that it is not wanted; the list tells when it runs."""
    running: list[str] = []
    original = checksums.checksum_file

    def slowly(algorithm: str, fd: int, offset: int, size: int, cancelled: Callable[[], bool]) -> str:
        running.append(algorithm)
        identity = os.fstat(fd).st_ino
        try:
            while not cancelled():
                time.sleep(0.01)
            time.sleep(0.2)
            assert os.fstat(fd).st_ino == identity, "the descriptor was closed under the thread that reads it"
            return original(algorithm, fd, offset, size, cancelled)
        finally:
            running.remove(algorithm)

    monkeypatch.setattr(checksums, "checksum_file", slowly)
    return running


@pytest.mark.parametrize(
    ("options", "bucket"),
    [({"checksum": "sha256"}, "store"), ({}, "store-slow-100ms"), ({}, "store-stall-1m")],
    ids=["hashed-first", "hashed-beside", "stalled"],
)
@pytest.mark.parametrize("total_s", [None, 30.0])
def test_a_second_cancel_does_not_cut_the_clean_up_short(
    client_of: Make,
    run: Run,
    slow_hash: list[str],
    big_file: Path,
    options: dict[str, Any],
    bucket: str,
    total_s: float | None,
) -> None:
    """The file is closed when neither a hash nor the sender reads it any more, and not before."""

    async def main() -> None:
        async with client_of() as client:
            transfer = client.start_put(big_file, f"s3://{bucket}/key", total_timeout_s=total_s, **options)
            while not slow_hash:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            for _number in range(3):
                transfer.cancel()
                await asyncio.sleep(0.01)
            with pytest.raises(asyncio.CancelledError):
                await transfer
            assert not slow_hash
            assert len(asyncio.all_tasks()) == 1

    run(main())


def test_the_total_timeout_holds_for_hashing_too(
    client_of: Make, run: Run, slow_hash: list[str], big_file: Path
) -> None:
    async def main() -> None:
        async with client_of() as client:
            for options, stage in (({"checksum": "sha256"}, "checksum"), ({}, "checksum")):
                with pytest.raises(engine.TotalTimedOut, match=r"not done within 0.4 s") as caught:
                    await client.put(big_file, "s3://store/key", total_timeout_s=0.4, **options)
                assert caught.value.stage == stage
                assert len(caught.value.hops) == (0 if options else 1)
            assert not slow_hash

    run(main())


def test_a_mismatch_carries_the_facts_and_is_the_last_that_is_told(client_of: Make, run: Run, big_file: Path) -> None:
    told: list[Any] = []

    async def main() -> None:
        async with client_of() as client:
            await client.put(big_file, "s3://store-corrupt/key", on_event=told.append)

    with pytest.raises(engine.ChecksumMismatch) as caught:
        run(main())
    error = caught.value
    assert (error.attempts, len(error.hops), error.body_bytes_sent) == (1, 1, big_file.stat().st_size)
    assert (error.algorithm, error.stage) == ("crc64nvme", "checksum")
    assert error.sent != error.stored
    assert [(event.error, event.status) for event in told if isinstance(event, engine.events.Done)] == [
        ("ChecksumMismatch", 200)
    ]


@pytest.mark.parametrize("source", [b"x" * 100, b"x" * (2 * MIB), None], ids=["small", "large", "iterator"])
def test_without_awscrt_a_put_goes_without_a_checksum(
    client_of: Make, run: Run, monkeypatch: pytest.MonkeyPatch, source: bytes | None
) -> None:
    """Decided before the body: an error behind gigabytes would come too late."""
    for name in list(sys.modules):
        if name == "awscrt" or name.startswith("awscrt."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "awscrt", None)  # importing it raises ImportError

    async def main() -> engine.PutResult:
        async with client_of() as client:
            options = {} if source is not None else {"size": 6}
            return await client.put(source or [b"abc", b"def"], "s3://store/without", **options)

    result = run(main())
    assert (result.status, result.checksum, result.checksum_verified) == (200, None, False)


def test_the_library_of_checksums_is_not_imported_on_the_loop(client_of: Make, run: Run, server: Server) -> None:
    """It takes 40 ms. In a process of its own, where it is not there yet."""
    script = textwrap.dedent(
        """
        import asyncio, sys, threading, engine
        url, region, access, secret = sys.argv[1:]
        seen = []

        class Spy:
            def find_spec(self, name, path=None, target=None):
                if name == "awscrt.checksums":
                    seen.append(threading.current_thread() is threading.main_thread())

        sys.meta_path.insert(0, Spy())
        engine.put(b"abc", "s3://store/key", endpoint_url=url, region=region, credentials=engine.Credentials(access, secret))
        assert seen == [False], seen
        """
    )
    given = [server.store_url, server.region, server.credentials.access_key, server.credentials.secret_key]
    subprocess.run([sys.executable, "-c", script, *given], check=True, timeout=30)


# --- progress and events -----------------------------------------------------------------------------------------------------


def test_progress_ends_at_the_total_on_the_last_hop(client_of: Make, run: Run, big_file: Path) -> None:
    async def main() -> engine.Progress:
        async with client_of() as client:
            transfer = client.start_put(big_file, "s3://redirect-307/progress-end")
            await transfer
            return transfer.progress

    size = big_file.stat().st_size
    assert run(main()) == engine.Progress(size, size, "done", 1, 2)


def test_progress_tells_when_it_is_the_server_that_is_waited_for(run: Run) -> None:
    def slow(connection: socket.socket) -> None:
        read_request(connection)
        time.sleep(0.3)
        connection.sendall(OK)

    async def main(url: str) -> list[str]:
        async with engine.Client() as client:
            transfer = client.start_put(bytes(MIB), f"{url}/key")
            phases: list[str] = []
            while not transfer.done():
                phase = transfer.progress.phase
                if phases[-1:] != [phase]:
                    phases.append(phase)
                await asyncio.sleep(0.01)
            return phases

    with raw_server(slow) as url:
        assert run(main(url))[-1] == "awaiting answer"


@pytest.mark.parametrize("size", [1, 100, 70_000])
def test_a_small_body_that_leaves_with_its_head_is_told_like_any_other(client_of: Make, run: Run, size: int) -> None:
    told: list[Any] = []

    async def main() -> None:
        async with client_of() as client:
            await client.put(bytes(size), "s3://store/small", expect="never", on_event=told.append)

    run(main())
    names = [type(event).__name__ for event in told]
    assert names == ["Resolved", "Connected", "HeadSent", "BodyStarted", "Response", "Done"]
    assert told[3].why == "off"


def test_what_comes_from_an_iterator_is_shown_as_vectored(client_of: Make, run: Run) -> None:
    async def main() -> engine.PutResult:
        async with client_of() as client:
            return await client.put([b"abc", b"def"], "s3://store/iterator", size=6)

    result = run(main())
    assert (result.send_path, result.size, result.body_bytes_sent) == ("vectored", 6, 6)


def test_a_get_in_which_nothing_comes_any_more_is_a_stall(run: Run) -> None:
    def stall(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        connection.recv(1)

    async def main(url: str) -> None:
        async with engine.Client() as client:
            await client.get(f"{url}/key", bytearray().extend, stall_timeout_s=0.2, retry=ONCE)

    with raw_server(stall) as url, pytest.raises(engine.StallTimedOut, match=r"sent no byte for 0\.2 s") as caught:
        run(main(url))
    assert caught.value.stage == "answer"


# --- what is asked before anything is sent ----------------------------------------------------------------------------


def test_without_credentials_nobody_is_connected_to(run: Run) -> None:
    async def main() -> None:
        async with engine.Client(endpoint_url="http://127.0.0.1:9") as client:
            await client.put(b"abc", "s3://bucket/key")

    with pytest.raises(engine.CredentialsError, match="AWS_ACCESS_KEY_ID") as caught:
        run(main())
    assert caught.value.hops == ()


@pytest.mark.parametrize(("method", "length"), [("POST", "0"), ("PUT", "0"), ("GET", None), ("DELETE", None)])
def test_a_request_without_a_body_says_so_where_one_is_expected(
    client_of: Make, run: Run, server: Server, method: str, length: str | None
) -> None:
    """RFC 9110 section 8.6."""

    async def main() -> None:
        async with client_of() as client:
            await client.request(method, f"{server.store_url}/store/none", sign="s3")

    run(main())
    assert server.records()[-1].get("content-length") == length


def test_a_conditional_write_by_header_is_one(client_of: Make, run: Run) -> None:
    async def main() -> None:
        async with client_of() as client:
            await client.put(b"abc", "s3://answer-409/key", headers={"If-None-Match": "*"})

    with pytest.raises(engine.PreconditionFailed):
        run(main())
