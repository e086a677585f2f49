"""What users call: options, sinks, hashes, trailers, loops, threads and forks, and that nothing shown holds a secret."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import engine
from engine import checksums, limits
from tests.conftest import Server
from tests.peers import OK, raw_server, read_head, read_request

Make = Callable[..., engine.Client]
Run = Callable[[Any], Any]
MIB = limits.MIB
ONCE = engine.Retry(max_attempts=1)


# --- hashes, and cancelling while they run ---------------------------------------------------------------------------


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
                with pytest.raises(engine.TotalTimedOut, match=r"not done within 1.5 s") as caught:
                    await client.put(big_file, "s3://store/key", total_timeout_s=1.5, **options)
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


# --- progress and events ---------------------------------------------------------------------------------------------


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

    with raw_server(stall) as url, pytest.raises(engine.StallTimedOut, match=r"sent no byte for 0.2 s") as caught:
        run(main(url))
    assert caught.value.stage == "answer"


# --- what is asked before anything is sent ---------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda client: client.request("CONNECT", "http://127.0.0.1:9/"), "makes a tunnel"),
        (lambda client: client.request("GE T", "http://127.0.0.1:9/"), "letters only"),
        (lambda client: client.request("GET\r\nX: y", "http://127.0.0.1:9/"), "letters only"),
        (lambda client: client.request(None, "http://127.0.0.1:9/"), "letters only"),
        (lambda client: client.put([b"abc"], "http://127.0.0.1:9/k", size=0), "size=0, but the iterator gives more"),
        (lambda client: client.put(b"abc", "http://127.0.0.1:9/k", headers={"X-A": "1", "x-a": "2"}), "given twice"),
        (lambda client: client.put(b"abc", "http://127.0.0.1:9/k", headers={"Expect": "nothing"}), "Expect"),
        (lambda client: client.put(b"abc", "http://127.0.0.1:9/k", headers={"X": "a\r\nY: b"}), "control character"),
        (lambda client: client.put(b"abc", "http://127.0.0.1:9/k", headers={"X\n": "a"}), "header name"),
        (lambda client: client.put(b"abc", "http://127.0.0.1:9/k", metadata={"a": "b\0"}), "metadata"),
        (lambda client: client.put(b"abc", "http://127.0.0.1:9/k\r\nX"), "control characters"),
        (lambda client: client.put(b"abc", "s3://bu cket/key"), "bucket"),
        (lambda client: client.put(b"abc", "ftp://127.0.0.1/key"), "ftp"),
        (lambda client: client.put(b"abc", b"s3://bucket/key"), "bytes is no"),
        (lambda client: client.put(b"abc", "s3://bucket/key", checksum="md5"), "md5"),
        (lambda client: client.put(b"abc", "s3://bucket/key", sign="v2"), "sign="),
        (lambda client: client.put(b"abc", "s3://bucket/key", expect="maybe"), "expect="),
        (lambda client: client.put(b"abc", "s3://bucket/key", headers={"Authorization": "x"}), "made by the signature"),
        (lambda client: client.put(b"abc", "s3://bucket/key", on_event=asyncio.sleep), "never be awaited"),
        (
            lambda client: client.put(b"abc", "s3://b-1/key", content_type="a/b", headers={"Content-Type": "c"}),
            "leave one",
        ),
        (lambda client: client.get("s3://bucket/key", io.StringIO()), "binary mode"),
        (lambda client: client.get("s3://bucket/key", asyncio.sleep), "coroutine function"),
        (lambda client: client.get("s3://bucket/key", 7), "sink: int"),
    ],
)
def test_bad_arguments_are_errors_of_usage_before_anybody_is_connected_to(run: Run, call: Any, words: str) -> None:
    async def main() -> None:
        async with engine.Client(credentials=engine.Credentials("access", "secret"), region="eu-west-1") as client:
            await call(client)

    with pytest.raises(engine.UsageError, match=words):
        run(main())


def test_an_unknown_option_is_a_type_error_that_names_the_known_ones(run: Run) -> None:
    async def main() -> None:
        async with engine.Client() as client:
            await client.put(b"abc", "http://127.0.0.1:9/k", contenttype="x")  # type: ignore[call-arg]

    with pytest.raises(TypeError, match=r"contenttype; known: .*content_type"):
        run(main())


def test_start_put_needs_a_running_loop() -> None:
    with pytest.raises(engine.UsageError, match="running event loop"):
        engine.Client().start_put(b"abc", "http://127.0.0.1:9/k")


def test_an_iterator_of_size_0_that_gives_nothing_is_an_empty_object(client_of: Make, run: Run) -> None:
    async def main() -> engine.PutResult:
        async with client_of() as client:
            return await client.put([b"", b""], "s3://store/nothing", size=0)

    result = run(main())
    assert (result.status, result.size, result.send_path) == (200, 0, "none")


@pytest.mark.parametrize(
    "source",
    [
        numpy.zeros(0),
        numpy.zeros((0, 3)),
        numpy.arange(5, dtype=">i4"),
        numpy.zeros(3, dtype=[("a", "<i4"), ("b", "S3")]),
        numpy.float64(1.5),
    ],
    ids=["empty", "empty-2d", "big-endian", "structured", "scalar"],
)
def test_arrays_of_any_type_are_sent_as_the_bytes_they_are(
    client_of: Make, run: Run, server: Server, source: Any
) -> None:
    async def main() -> None:
        async with client_of() as client:
            await client.put(source, "s3://store/array")

    run(main())
    assert server.object("store", "array").content() == source.tobytes()


# --- sinks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_file_that_is_fetched_has_the_mode_that_open_gives_and_keeps_one_it_had(
    client_of: Make, run: Run, tmp_path: Path, mask: int
) -> None:
    new, old, link = tmp_path / "new", tmp_path / "old", tmp_path / "link"
    old.touch()
    old.chmod(0o640)
    link.symlink_to(old)
    long = tmp_path / ("ü" * 127)

    async def main() -> None:
        async with client_of() as client:
            await client.put(b"abc", "s3://store/mode")
            for path in (new, link, long):
                assert await client.get("s3://store/mode", path) == 3

    before = os.umask(mask)
    try:
        run(main())
    finally:
        os.umask(before)
    assert new.stat().st_mode & 0o777 == 0o666 & ~mask
    assert old.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert {path.read_bytes() for path in (new, old, long)} == {b"abc"}
    assert len(list(tmp_path.iterdir())) == 4


def test_the_umask_of_the_process_is_not_touched(client_of: Make, run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    """It is the process's: for a moment every file that another thread makes would be open to all."""
    monkeypatch.setattr(os, "umask", None)

    async def main() -> None:
        async with client_of() as client:
            await client.put(b"abc", "s3://store/umask")
            await client.get("s3://store/umask", tmp_path / "got")

    run(main())


def test_a_get_that_fails_leaves_the_old_file_and_nothing_else(run: Run, tmp_path: Path) -> None:
    def cut(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")

    path = tmp_path / "file"
    path.write_bytes(b"old")

    async def main(url: str) -> None:
        async with engine.Client() as client:
            await client.get(f"{url}/key", path, retry=engine.Retry(max_attempts=2, base_s=0))

    with raw_server(cut, cut) as url, pytest.raises(engine.ConnectionLost):
        run(main(url))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_get_is_tried_again_from_its_start_where_the_sink_can_go_back(run: Run, tmp_path: Path) -> None:
    def cut(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")

    def whole(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789")

    async def main(url: str, sink: Any) -> int:
        async with engine.Client() as client:
            return await client.get(f"{url}/key", sink, retry=engine.Retry(max_attempts=2, base_s=0))

    with raw_server(cut, whole) as url:
        assert run(main(url, tmp_path / "file")) == 10
    assert (tmp_path / "file").read_bytes() == b"0123456789"
    pieces: list[bytes] = []
    with raw_server(cut) as url, pytest.raises(engine.ConnectionLost):
        run(main(url, lambda view: pieces.append(bytes(view))))
    assert pieces == [b"abc"]


def test_a_sink_that_takes_part_of_a_piece_gets_the_rest(client_of: Make, run: Run) -> None:
    class Slow(io.RawIOBase):
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, view: Any) -> int:
            self.data += view[:3]
            return len(view[:3])

    class Full(Slow):
        def write(self, view: Any) -> None:  # type: ignore[override]
            return None

    sink = Slow()

    async def main() -> None:
        async with client_of() as client:
            await client.put(b"0123456789", "s3://store/part")
            assert await client.get("s3://store/part", sink) == 10
            with pytest.raises(BlockingIOError):
                await client.get("s3://store/part", Full())

    run(main())
    assert sink.data == b"0123456789"


# --- trailers --------------------------------------------------------------------------------------------------------

NAMED = ["crc64nvme", "crc32c", "crc32", "sha256"]


@pytest.mark.parametrize("algorithm", NAMED)
@pytest.mark.parametrize("bucket", ["store", "redirect-307.trailer"])
def test_a_named_checksum_of_an_iterator_follows_its_body_in_a_trailer(
    client_of: Make, run: Run, server: Server, algorithm: str, bucket: str
) -> None:
    """The server checks it: what is stored has it, and a redirect costs no byte."""
    pieces = [bytes([number]) * 70_001 for number in range(5)]

    async def main() -> engine.PutResult:
        async with client_of() as client:
            return await client.put(
                iter(pieces),
                f"s3://{bucket}/{algorithm}",
                size=5 * 70_001,
                checksum=algorithm,
                headers={"Content-Encoding": "br"},
            )

    result = run(main())
    stored = server.object(bucket, algorithm)
    assert stored.content() == b"".join(pieces)
    running = checksums.new(algorithm)
    running.update(b"".join(pieces))
    assert result.checksum == engine.Checksum(algorithm, running.digest_base64())
    assert result.checksum_verified
    assert (result.size, result.body_bytes_sent, result.send_path) == (5 * 70_001, 5 * 70_001, "vectored")
    assert result.hops[-1].body_bytes_read == 5 * 70_001
    record = server.records()[-1]
    assert record.get("x-amz-trailer") == f"x-amz-checksum-{algorithm}"
    assert record.get("x-amz-decoded-content-length") == str(5 * 70_001)
    assert record.get("content-encoding") == "br,aws-chunked"
    assert record.get("x-amz-content-sha256") == "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


def test_a_pipe_has_its_trailer_too_and_items_cross_the_frames(
    client_of: Make, run: Run, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "AWS_CHUNK_COMPATIBLE_BYTES", 8192)
    data = os.urandom(100_000)
    reading, writing = os.pipe()
    feeding = threading.Thread(target=lambda: (os.write(writing, data), os.close(writing)))
    feeding.start()

    async def main() -> engine.PutResult:
        async with client_of() as client:
            with os.fdopen(reading, "rb", 0) as pipe:
                return await client.put(pipe, "s3://store/pipe", size=len(data), checksum="crc32c")

    result = run(main())
    feeding.join()
    assert server.object("store", "pipe").content() == data
    assert (result.checksum_verified, result.body_bytes_sent) == (True, len(data))


@pytest.mark.parametrize("checksum", ["auto", "crc32c"])
def test_a_pipe_with_a_size_is_left_open_blocking_and_with_what_is_behind(
    client_of: Make, run: Run, server: Server, checksum: Any
) -> None:
    data = os.urandom(50_000)
    reading, writing = os.pipe()
    os.write(writing, data + b"behind")

    async def main() -> engine.PutResult:
        async with client_of() as client:
            with os.fdopen(os.dup(reading), "rb", 0) as pipe:
                putting = client.put(pipe, "s3://store/part-of-pipe", size=len(data), checksum=checksum)
                return await asyncio.wait_for(putting, 20)

    try:
        assert run(main()).body_bytes_sent == len(data)
        assert server.object("store", "part-of-pipe").content() == data
        assert os.get_blocking(reading)
        assert os.read(reading, 100) == b"behind"
    finally:
        os.close(reading)
        os.close(writing)


def test_an_empty_iterator_has_its_checksum_too(client_of: Make, run: Run) -> None:
    async def main() -> engine.PutResult:
        async with client_of() as client:
            return await client.put([], "s3://store/empty", size=0, checksum="crc32")

    result = run(main())
    assert (result.checksum, result.checksum_verified) == (engine.Checksum("crc32", "AAAAAA=="), True)


@pytest.mark.parametrize(("items", "words"), [([b"abc"], "ended after 3"), ([b"abc", b"defg"], "gives more")])
def test_a_wrong_size_under_a_trailer_stores_nothing(
    client_of: Make, run: Run, server: Server, items: list[bytes], words: str
) -> None:
    async def main() -> None:
        async with client_of() as client:
            await client.put(items, "s3://store/wrong", size=6, checksum="crc32")

    with pytest.raises(engine.UsageError, match=words):
        run(main())
    with pytest.raises(KeyError):
        server.object("store", "wrong")


@pytest.mark.parametrize(
    ("destination", "options", "words"),
    [
        ("s3://store/key", {}, "give size="),
        ("http://127.0.0.1:9/key", {"size": 3}, "signed S3 request"),
    ],
)
def test_where_no_trailer_can_be_sent_a_named_checksum_of_an_iterator_is_an_error_of_usage(
    client_of: Make, run: Run, destination: str, options: dict[str, Any], words: str
) -> None:
    async def main() -> None:
        async with client_of() as client:
            await client.put([b"abc"], destination, checksum="crc32", **options)

    with pytest.raises(engine.UsageError, match=words):
        run(main())


def test_a_trailer_is_not_sent_without_credentials_that_sign_it(run: Run) -> None:
    async def main() -> None:
        async with engine.Client(endpoint_url="http://127.0.0.1:9", credentials=engine.ANONYMOUS) as client:
            await client.put([b"abc"], "s3://bucket/key", size=3, checksum="crc32")

    with pytest.raises(engine.UsageError, match="signed S3 request"):
        run(main())


def test_a_payload_that_is_to_be_signed_must_be_readable_twice(client_of: Make, run: Run) -> None:
    async def main() -> None:
        async with client_of(config=engine.Config(payload_signing="sha256")) as client:
            await client.put([b"abc"], "s3://store/key", size=3)

    with pytest.raises(engine.UsageError, match="read twice"):
        run(main())


def test_a_redirect_to_a_presigned_url_does_not_take_a_trailer_along(run: Run) -> None:
    """Nobody would tell that server of the framing: it would be stored as part of the object."""

    def presigned(connection: socket.socket) -> None:
        read_head(connection)
        query = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=c&X-Amz-Signature=5ec7e7&X-Amz-Date=d"
        connection.sendall(f"HTTP/1.1 307 There\r\nLocation: /key?{query}\r\nContent-Length: 0\r\n\r\n".encode())
        connection.recv(1)

    async def main(url: str) -> None:
        async with engine.Client(credentials=engine.Credentials("access", "secret"), region="r-1") as client:
            await client.put([b"abc"], f"{url}/key", sign="s3", size=3, checksum="crc32")

    with raw_server(presigned) as url, pytest.raises(engine.RedirectRefused) as caught:
        run(main(url))
    assert (caught.value.reason, caught.value.body_bytes_sent) == ("trailer-unsigned", 0)
    assert "5ec7e7" not in str(caught.value)


@pytest.mark.parametrize("how", ["put", "request"])
def test_a_signed_payload_is_hashed_whatever_call_sends_it(
    client_of: Make, run: Run, server: Server, big_file: Path, how: str
) -> None:
    async def main() -> int:
        async with client_of(config=engine.Config(payload_signing="sha256")) as client:
            if how == "put":
                return (await client.put(big_file, "s3://store/signed-payload")).status
            url = f"{server.store_url}/store/signed-payload"
            return (await client.request("PUT", url, sign="s3", body=big_file)).status

    assert run(main()) == 200
    record = server.records()[-1]
    assert record.get("x-amz-content-sha256") == server.object("store", "signed-payload").sha256
    assert record.signature == "ok"


@pytest.mark.parametrize("status", [204, 304, 404, 500])
def test_any_final_status_of_a_plain_request_is_a_result(run: Run, status: int) -> None:
    def answer(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(f"HTTP/1.1 {status} So\r\nETag: e\r\n".encode())
        connection.sendall(b"\r\n" if status in (204, 304) else b"Content-Length: 3\r\n\r\nabc")
        connection.recv(1)

    async def main(url: str) -> engine.Response:
        async with engine.Client() as client:
            return await client.request("get", f"{url}/key", headers={"If-None-Match": '"e"'})

    with raw_server(answer) as url:
        response = run(main(url))
    assert (response.status, response.headers["etag"], response.reason) == (status, "e", "So")
    assert response.body == (b"" if status in (204, 304) else b"abc")


def test_an_answer_that_is_too_long_to_be_held_is_an_error_of_usage(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RESPONSE_BODY_MAX_BYTES", 1000)

    def endless(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(bytes(65536))

    async def main(url: str) -> None:
        async with engine.Client() as client:
            await client.request("GET", f"{url}/key")

    with raw_server(endless) as url, pytest.raises(engine.UsageError, match="longer than 1000 bytes"):
        run(main(url))


# --- loops, threads, forks -------------------------------------------------------------------------------------------


def test_a_client_on_a_second_loop_says_so(client_of: Make, run: Run) -> None:
    client = client_of()
    closed: list[str] = []

    async def one() -> None:
        await client.put(b"abc", "s3://store/loops")

    async def two() -> None:
        with pytest.raises(engine.UsageError, match="belongs to the event loop"):
            await client.put(b"abc", "s3://store/loops")
        with pytest.raises(engine.UsageError, match="closed on the event loop"):
            await client.close()
        closed.append("not")

    async def both() -> None:
        await one()
        thread = threading.Thread(target=lambda: asyncio.run(two()))
        thread.start()
        while thread.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await one()  # the client goes on
        await client.close()

    run(both())
    assert closed == ["not"]


def test_put_works_from_many_threads_at_once(server: Server) -> None:
    results: list[engine.PutResult] = []

    def work(number: int) -> None:
        data = bytes([number]) * 200_000
        results.extend(
            engine.put(data, f"s3://redirect-307.threads/{number}-{turn}", **server.options) for turn in range(3)
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.checksum_verified for result in results] == [True] * 24
    assert all(server.object("redirect-307.threads", f"{n}-2").content() == bytes([n]) * 200_000 for n in range(8))


def test_put_inside_a_running_loop_names_the_other_call(server: Server, run: Run) -> None:
    async def main() -> None:
        engine.put(b"abc", "s3://store/key", **server.options)

    with pytest.raises(engine.UsageError, match="put_async"):
        run(main())


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_forked_child_has_connections_of_its_own_and_the_parent_goes_on(loop: str, tmp_path: Path) -> None:
    """The child uses, closes or drops the client that it inherited: the parent's connection notices none of it."""
    per_connection: list[list[bytes]] = []

    def record(connection: socket.socket) -> None:
        mine: list[bytes] = []
        per_connection.append(mine)
        while (request := read_request(connection))[0]:
            mine.append(request[1][:6])
            connection.sendall(OK)

    script = textwrap.dedent(
        """
        import asyncio, gc, os, sys
        import engine, uvloop
        url, run = sys.argv[1], {"uvloop": uvloop.run, "asyncio": asyncio.run}[sys.argv[2]]

        async def put(client, data):
            assert (await client.put(data, url + "/key")).status == 200

        async def child_uses(client):
            await put(client, b"child1" * 300_000)
            await put(client, b"child2")
            await client.close()

        async def parent():
            client = engine.Client(config=engine.Config(max_idle_s=60))
            await put(client, b"parent")
            for what in ("uses", "closes", "drops"):
                pid = os.fork()
                if pid == 0:
                    code = 1
                    try:
                        asyncio.set_event_loop(None)
                        if what == "uses":
                            run(child_uses(client))
                        elif what == "closes":
                            run(client.close())
                        del client
                        gc.collect()
                        code = 0
                    finally:
                        os._exit(code)
                assert os.waitpid(pid, 0)[1] == 0, what
                await put(client, b"parent" * 300_000)
            await client.close()

        run(parent())
        """
    )
    with raw_server(record, record) as url:
        subprocess.run([sys.executable, "-c", script, url, loop], check=True, timeout=60)
    assert sorted(per_connection) == [[b"child1", b"child2"], [b"parent"] * 4]


# --- what is remembered ----------------------------------------------------------------------------------------------


def test_the_second_put_to_a_bucket_goes_to_its_region_at_once(client_of: Make, run: Run, server: Server) -> None:
    async def main() -> list[list[int]]:
        async with client_of() as client:
            results = [await client.put(b"x" * 100_000, f"s3://region-301.remembered/{number}") for number in range(3)]
            return [[hop.status for hop in result.hops] for result in results]

    statuses = run(main())
    assert statuses[0][-1] == 200
    assert len(statuses[0]) > 1
    assert statuses[1:] == [[200], [200]]


def test_a_region_that_is_contradicted_is_forgotten(client_of: Make, run: Run, server: Server) -> None:
    async def main() -> tuple[list[int], str]:
        async with client_of() as client:
            client._shared.regions.learn("region-400.wrong", "eu-central-1")
            result = await client.put(b"x" * 100_000, "s3://region-400.wrong/key")
            return [hop.status for hop in result.hops], client._shared.regions.get("region-400.wrong")

    statuses, region = run(main())
    assert (statuses, region) == ([400, 200], "sandbox-2")


def test_the_environment_is_read_when_a_call_is_made(run: Run, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> engine.PutResult:
        async with engine.Client() as client:  # nothing is set yet
            for name, value in server.sandbox.environment.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.store_url)
            return await client.put(b"abc", "s3://store/environment")

    assert run(main()).url.startswith(server.store_url)


# --- credentials and clocks ------------------------------------------------------------------------------------------


def test_expired_credentials_are_asked_for_again_once(run: Run) -> None:
    asked: list[int] = []

    async def credentials() -> engine.Credentials:
        asked.append(len(asked))
        return engine.Credentials(f"access{len(asked)}", "secret", token="token")

    heads: list[bytes] = []

    def expired(connection: socket.socket) -> None:
        heads.append(read_head(connection))
        body = b"<Error><Code>ExpiredToken</Code></Error>"
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        connection.recv(1)

    def store(connection: socket.socket) -> None:
        heads.append(read_request(connection)[0])
        connection.sendall(OK)

    async def main(url: str) -> engine.PutResult:
        async with engine.Client(endpoint_url=url, credentials=credentials, region="r-1") as client:
            return await client.put(bytes(100_000), "s3://bucket/key")

    with raw_server(expired, store) as url:
        result = run(main(url))
    assert [hop.status for hop in result.hops] == [400, 200]
    assert result.body_bytes_sent == 100_000
    assert [b"Credential=access1/" in heads[0], b"Credential=access2/" in heads[1]] == [True, True]
    asked.clear()
    with raw_server(expired, expired) as url, pytest.raises(engine.ResponseError) as caught:
        run(main(url))
    assert (caught.value.code, len(asked)) == ("ExpiredToken", 2)


@pytest.mark.parametrize("offset_s", [3600, -86400])
def test_a_clock_that_is_off_is_corrected_once_for_the_client(run: Run, offset_s: int) -> None:
    with engine.sandbox.start(clock_offset_s=offset_s) as running:

        async def main() -> list[list[int]]:
            options = {"endpoint_url": running.store_url, "region": running.region, "credentials": running.credentials}
            async with engine.Client(**options) as client:
                first = await client.put(b"x" * 100_000, "s3://bucket/key")
                info = await client.head("s3://bucket/key")
            async with engine.Client(**options) as client:  # a HEAD has no code to tell
                other = await client.head("s3://bucket/key")
            return [[hop.status for hop in hops] for hops in (first.hops, info.hops, other.hops)]

        assert run(main()) == [[403, 200], [200], [403, 200]]


def test_a_412_after_an_attempt_whose_answer_was_lost_may_be_our_own(run: Run) -> None:
    def lose(connection: socket.socket) -> None:
        read_request(connection)

    def withhold(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")

    def conflict(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n")

    quick = engine.Retry(base_s=0.01)
    for first, maybe_own in ((lose, True), (withhold, False)):
        with raw_server(first, conflict) as url, pytest.raises(engine.PreconditionFailed) as caught:
            run(engine.put_async(bytes(100_000), f"{url}/key", if_none_match="*", retry=quick))
        assert ("may have stored the object itself" in str(caught.value)) is maybe_own


@pytest.mark.parametrize(("seconds", "attempts"), [(1, 2), (600, 1)])
def test_retry_after_is_honoured_up_to_a_minute(run: Run, seconds: int, attempts: int) -> None:
    def busy(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(f"HTTP/1.1 503 Slow\r\nRetry-After: {seconds}\r\nContent-Length: 0\r\n\r\n".encode())

    began = time.monotonic()
    with raw_server(*[busy] * attempts) as url, pytest.raises(engine.ResponseError) as caught:
        run(engine.put_async(b"abc", f"{url}/key", retry=engine.Retry(max_attempts=2, base_s=0)))
    assert (caught.value.attempts, caught.value.retry_after_s) == (attempts, seconds)
    assert time.monotonic() - began >= attempts - 1


# --- nothing shown holds a secret ------------------------------------------------------------------------------------


def test_no_secret_is_in_anything_that_is_shown(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """A server that echoes all it was sent, a presigned query, a customer key, a token and a proxy's password."""
    secrets = [
        "S3cretKey0001",
        "T0kenT0ken0001",
        "Pr0xyPassw0rd",
        "5ec7e75ec7e7",
        "c3VwZXJzZWNyZXRjdXN0b21lcmtleTMyYnl0ZXNsb25n",
    ]
    customer_key = b"supersecretcustomerkey32byteslon"
    told: list[Any] = []

    def echo(connection: socket.socket) -> None:
        head = read_head(connection)
        if not head:
            return
        knows = b" S3cretKey0001" if b"/bucket/" in head else b""
        body = b"<Error><Code>Odd</Code><Message>" + head.replace(b"<", b"") + knows + b"</Message></Error>"
        echoed = head.split(b"\r\n")[0].split(b" ")[1]
        connection.sendall(
            b"HTTP/1.1 403 Forbidden\r\nX-Request: " + echoed + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        connection.recv(1)

    async def main(url: str, proxy: str) -> list[str]:
        shown: list[str] = []
        credentials = engine.Credentials("ACCESSKEY", secrets[0], token=secrets[1])
        config = engine.Config(proxy=proxy)
        client = engine.Client(endpoint_url=url, credentials=credentials, region="r-1", config=config)
        async with client:
            calls = [
                client.put(bytes(100_000), "s3://bucket/key", on_event=told.append, sse_customer_key=customer_key),
                client.put(bytes(100_000), f"{url}/key?X-Amz-Signature={secrets[3]}", on_event=told.append),
                client.put(
                    b"abc", f"{url}/key", headers={"Authorization": f"Bearer {secrets[1]}"}, on_event=told.append
                ),
                client.head(f"{url}/key?token={secrets[1]}"),
                client.put([b"abc"], f"{url}/key?sig={secrets[3]}", size=3, total_timeout_s=0.0001),
            ]
            for call in calls:
                try:
                    shown.append(repr(await call))
                except engine.EngineError as error:  # noqa: PERF203
                    shown += [
                        "".join(traceback.format_exception(error)),
                        repr(error),
                        repr(vars(error)),
                        repr(error.hops),
                    ]
            response = await client.request("GET", f"{url}/key?token={secrets[1]}", headers={"Cookie": secrets[1]})
            shown.append(repr(response))
            transfer = client.start_put(b"abc", f"{url}/key?token={secrets[1]}")
            shown += [repr(transfer), repr(client), repr(config), repr(credentials), repr(transfer.progress)]
            with contextlib.suppress(engine.EngineError):
                await transfer
        return shown

    caplog.set_level(0)
    with raw_server(*[echo] * 10) as url:
        shown = run(main(url, url.replace("http://", f"http://me:{secrets[2]}@")))
    encoded = [base64.b64encode(f"me:{secrets[2]}".encode()).decode(), base64.b64encode(customer_key).decode()]
    for text in (*shown, repr(told), caplog.text):
        for secret in (*secrets, *encoded):
            assert secret not in text, text
    assert "REDACTED" in repr(told)


@pytest.mark.parametrize("leaves", ["cancelled", "out of time"])
@pytest.mark.parametrize("size", [700, MIB, 4 * MIB])
def test_who_keeps_the_error_does_not_keep_the_buffer(client_of: Make, run: Run, size: int, leaves: str) -> None:
    """An error has a traceback, which has the frames of the call, which refer to what was sent."""
    data = bytearray(size)

    async def main() -> BaseException:
        async with client_of() as client:
            total_s = 0.2 if leaves == "out of time" else None
            transfer = client.start_put(data, "s3://hang-stall-1k/buffer", expect="never", total_timeout_s=total_s)
            if leaves == "cancelled":
                await asyncio.sleep(0.2)
                transfer.cancel()
            try:
                await transfer
            except (asyncio.CancelledError, engine.TotalTimedOut) as error:
                return error
            raise AssertionError("it came to an end")

    error = run(main())
    data.append(0)  # BufferError while somebody holds it
    assert error.__traceback__ is not None


@pytest.mark.parametrize("size", [None, 2000])
def test_the_buffer_of_an_item_is_its_owners_again_when_the_next_is_asked_for(
    client_of: Make, run: Run, server: Server, size: int | None
) -> None:
    def items() -> Iterator[bytearray]:
        buffer = bytearray()
        for letter in b"ab":
            buffer.clear()  # BufferError while somebody holds it
            buffer += bytes([letter]) * 1000
            yield buffer

    async def main() -> None:
        async with client_of() as client:
            if size is not None:
                await client.put(items(), "s3://store/refilled", size=size)
                return
            with pytest.raises(engine.ResponseError) as caught:  # S3 takes no body of unknown length
                await client.put(items(), "s3://store/refilled")
            assert caught.value.status == 411

    run(main())
    if size is not None:
        assert server.object("store", "refilled").content() == b"a" * 1000 + b"b" * 1000
