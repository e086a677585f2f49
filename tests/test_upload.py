"""Uploads in parts: what is stored, what is asked, what is left behind (nothing), and how an interrupted one goes on."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import logging
import mmap
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import pytest

import engine
from engine import checksums, limits, sandbox
from tests.peers import descriptors, meddler, raw_server

Run = Callable[[Any], Any]
ROOT = Path(__file__).resolve().parent.parent
KIB, MIB = limits.KIB, limits.MIB
PART = 256 * KIB
DATA = random.Random(1).randbytes(5 * PART + 12_345)  # 6 parts
NOW = engine.Retry(max_attempts=3, base_s=0.001)
# For what has nothing to do with the loop, and takes long.
ON_ONE_LOOP = pytest.mark.parametrize("run", ["uvloop"], indirect=True)


class Store:
    """A sandbox that takes small parts, as one test sees it."""

    def __init__(self, running: sandbox.Sandbox) -> None:
        self.sandbox = running
        self._before = len(running.records)
        self.object = running.object

    def records(self) -> list[sandbox.Record]:
        return self.sandbox.settle()[self._before :]

    def calls(self, endpoint: str = "") -> list[str]:
        """Method and what about, in order of arrival: "PUT 3" is part 3."""
        return [call_of(record) for record in self.records() if record.endpoint.startswith(endpoint)]

    def part_bytes(self) -> int:
        return sum(record.body_bytes for record in self.records() if "partNumber" in record.target)

    def client(self, **options: Any) -> engine.Client:
        given = {
            "endpoint_url": self.sandbox.redirector_url,
            "region": self.sandbox.region,
            "credentials": self.sandbox.credentials,
        }
        config = options.pop("config", engine.Config(retry=NOW))
        return engine.Client(**{**given, **options}, config=config)

    def boto(self) -> Any:
        return boto_client(self.sandbox.store_url, self.sandbox.credentials, self.sandbox.region)


def boto_client(url: str, credentials: engine.Credentials, region: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name=region,
        aws_access_key_id=credentials.access_key,
        aws_secret_access_key=credentials.secret_key,
        config=botocore.config.Config(
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            response_checksum_validation="when_required",  # moto's checksums of multipart objects are not S3's
        ),
    )


def call_of(record: sandbox.Record) -> str:
    return name_of(record.method, record.target)


def name_of(method: str, target: str) -> str:
    query = target.partition("?")[2]
    if "partNumber=" in query:
        return f"{method} {query.partition('partNumber=')[2].partition('&')[0]}"
    about = "uploads" if query.startswith("uploads") else "upload" if "uploadId" in query else "object"
    return f"{method} {about}"


@pytest.fixture(scope="module")
def running() -> Iterator[sandbox.Sandbox]:
    with sandbox.start(min_part_size=1) as started:
        yield started


@pytest.fixture
def store(running: sandbox.Sandbox) -> Iterator[Store]:
    yield Store(running)
    assert running.uploads() == [], "an upload was left behind"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "source.bin"
    path.write_bytes(DATA)
    return path


async def assert_nothing_runs() -> None:
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_a_file_goes_in_parts_and_boto3_reads_it(store: Store, run: Run, file: Path) -> None:
    async def main() -> engine.PutResult:
        async with store.client() as client:
            result = await client.upload(file, "s3://store/a b/ü?#%", part_size=PART, metadata={"origin": "here"})
            await assert_nothing_runs()
            return result

    result = run(main())
    read = store.boto().get_object(Bucket="store", Key="a b/ü?#%", ChecksumMode="ENABLED")
    assert read["Body"].read() == DATA
    assert read["Metadata"] == {"origin": "here"}
    assert read["ETag"] == result.etag
    assert result.etag.endswith('-6"')
    assert (read["ChecksumCRC64NVME"], read["ChecksumType"]) == (result.checksum.value, "FULL_OBJECT")
    assert result.checksum_verified
    assert (result.size, result.body_bytes_sent, result.attempts, result.redirects) == (len(DATA), len(DATA), 1, 0)
    assert (result.send_path, result.expect, result.status) == ("sendfile", "continue", 200)
    assert [call.partition(" ")[2] for call in store.calls()][:2] == ["uploads", "1"]
    assert sorted(store.calls())[:2] == ["GET object", "POST upload"]


def sources(tmp_path: Path) -> dict[str, Callable[[], Any]]:
    path = tmp_path / "any.bin"
    path.write_bytes(DATA)

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(DATA), 100_000):
            yield DATA[start : start + 100_000]

    async def async_pieces() -> AsyncIterator[memoryview]:
        for start in range(0, len(DATA), 777_777):
            yield memoryview(DATA)[start : start + 777_777]

    def pipe() -> Any:
        reading, writing = os.pipe()

        def feed() -> None:
            with open(writing, "wb") as end:
                end.write(DATA)

        threading.Thread(target=feed).start()
        return open(reading, "rb", buffering=0)

    def mapped() -> Any:
        with open(path, "rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)

    def zipped() -> Any:
        compressed = tmp_path / "any.gz"
        compressed.write_bytes(gzip.compress(DATA, 1))
        return gzip.open(compressed)

    return {
        "path": lambda: path,
        "file": lambda: path.open("rb"),
        "bytes": lambda: DATA,
        "bytearray": lambda: bytearray(DATA),
        "mmap": mapped,
        "bytesio": lambda: io.BytesIO(DATA),
        "iterator": pieces,
        "async": async_pieces,
        "one-item": lambda: [DATA],
        "pipe": pipe,
        "gzip": zipped,
    }


KINDS = ["path", "file", "bytes", "bytearray", "mmap", "bytesio", "iterator", "async", "one-item", "pipe", "gzip"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sized", [False, True], ids=["unsized", "sized"])
def test_every_kind_of_source_goes_in_parts(store: Store, run: Run, tmp_path: Path, kind: str, sized: bool) -> None:
    async def main() -> engine.PutResult:
        source = sources(tmp_path)[kind]()
        options = {"size": len(DATA)} if sized else {}
        async with store.client() as client:
            try:
                return await client.upload(source, f"s3://store/{kind}", part_size=PART, concurrency=3, **options)
            finally:
                if hasattr(source, "close") and not hasattr(source, "send"):
                    source.close()

    result = run(main())
    assert store.object("store", kind).sha256 == hashlib.sha256(DATA).hexdigest()
    assert result.etag.endswith('-6"')
    assert (result.size, result.body_bytes_sent, result.checksum_verified) == (len(DATA), len(DATA), True)


@ON_ONE_LOOP
@pytest.mark.parametrize("kind", KINDS)
def test_offset_and_size_choose_what_goes(store: Store, run: Run, tmp_path: Path, kind: str) -> None:
    if kind in ("iterator", "async", "one-item", "pipe", "gzip"):
        pytest.skip("read from where it is")

    async def main() -> None:
        async with store.client() as client:
            source = sources(tmp_path)[kind]()
            await client.upload(source, "s3://store/range", part_size=PART, offset=1000, size=3 * PART)
            if hasattr(source, "close"):
                source.close()

    run(main())
    assert store.object("store", "range").content() == DATA[1000 : 1000 + 3 * PART]


def test_a_pipe_with_a_size_is_not_read_behind_it(store: Store, run: Run) -> None:
    reading, writing = os.pipe()

    def feed() -> None:
        with open(writing, "wb") as end:
            end.write(DATA + b"for the next reader")

    async def main() -> None:
        async with store.client() as client:
            await client.upload(source, "s3://store/pipe", part_size=PART, size=len(DATA))

    thread = threading.Thread(target=feed)
    thread.start()
    with open(reading, "rb", buffering=0) as source:
        run(main())
        assert source.read() == b"for the next reader"
    thread.join()
    assert store.object("store", "pipe").content() == DATA


@pytest.mark.parametrize("given", [len(DATA) - 1, len(DATA) + 1], ids=["more", "fewer"])
@pytest.mark.parametrize("items", [1, 700], ids=["one", "many"])
def test_a_stream_of_another_size_than_told_stores_nothing(store: Store, run: Run, given: int, items: int) -> None:
    step = -(-len(DATA) // items)

    async def main() -> None:
        async with store.client() as client:
            pieces = [DATA[start : start + step] for start in range(0, len(DATA), step)]
            with pytest.raises(engine.UsageError, match="size="):
                await client.upload(pieces, "s3://store/wrong-size", part_size=PART, size=given)

    run(main())
    with pytest.raises(KeyError):
        store.object("store", "wrong-size")


@pytest.mark.parametrize("source", [b"", [], [b"", b""], io.BytesIO], ids=["bytes", "none", "empties", "file"])
def test_an_empty_source_is_one_put(store: Store, run: Run, source: Any) -> None:
    async def main() -> engine.PutResult:
        async with store.client() as client:
            return await client.upload(source() if callable(source) else source, "s3://store/empty", part_size=PART)

    assert run(main()).size == 0
    assert store.object("store", "empty").size == 0
    assert store.calls() == ["PUT object"]


@pytest.mark.parametrize("kind", ["path", "bytes", "iterator", "pipe"])
def test_below_the_threshold_it_is_one_put(
    store: Store, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(limits, "UPLOAD_THRESHOLD_BYTES", len(DATA))
    monkeypatch.setattr(limits, "PART_BYTES", len(DATA) + 1)

    async def main() -> engine.PutResult:
        source = sources(tmp_path)[kind]()
        async with store.client() as client:
            result = await client.upload(source, "s3://store/small")
        if kind == "pipe":
            source.close()
        return result

    result = run(main())
    assert store.calls() == ["PUT object"]
    assert store.object("store", "small").content() == DATA
    assert result.checksum_verified


def test_above_the_threshold_parts_are_chosen_unasked(
    store: Store, run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UPLOAD_THRESHOLD_BYTES", len(DATA) - 1)
    monkeypatch.setattr(limits, "PART_BYTES", 1 * MIB)

    async def main() -> engine.PutResult:
        async with store.client() as client:
            return await client.upload(file, "s3://store/chosen")

    assert run(main()).etag.endswith('-2"')


def test_a_plain_url_gets_one_put(store: Store, run: Run, file: Path) -> None:
    seen: list[str] = []

    def judge(method: str, target: str) -> bytes:
        seen.append(f"{method} {target}")
        return b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"

    async def main(url: str) -> None:
        async with engine.Client() as client:
            result = await client.upload(file, f"{url}/dav/x", part_size=PART)
            assert (result.status, result.size) == (201, len(DATA))
            with pytest.raises(engine.UsageError, match="resume"):
                await client.upload(file, f"{url}/dav/x", resume="x")

    with raw_server(meddler(store.sandbox.store_url, judge)) as url:
        run(main(url))
    assert seen == ["PUT /dav/x"]


def test_a_plain_url_that_is_signed_goes_in_parts(store: Store, run: Run, file: Path) -> None:
    async def main() -> None:
        async with store.client() as client:
            url = f"{store.sandbox.store_url}/store/signed"
            await client.upload(file, url, part_size=PART, sign="s3")
            with pytest.raises(engine.UsageError, match="without a query"):
                await client.upload(file, f"{url}?x=1", part_size=PART, sign="s3")

    run(main())
    assert store.object("store", "signed").content() == DATA


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": True}, "concurrency"),
        ({"part_size": 0}, "part_size"),
        ({"checksum": "md5"}, "md5"),
        ({"headers": {"Content-MD5": "x"}, "part_size": PART}, "content-md5"),
        ({"if_match": "a", "if_none_match": "*"}, "exclude"),
    ],
    ids=str,
)
def test_a_bad_argument_is_told_before_anything_is_sent(
    store: Store, run: Run, file: Path, options: dict[str, Any], named: str
) -> None:
    async def main() -> None:
        async with store.client() as client:
            with pytest.raises(engine.UsageError, match=named):
                await client.upload(file, "s3://store/bad", **options)

    run(main())
    assert store.calls() == []


# --- checksums --------------------------------------------------------------------------------------------------------


@ON_ONE_LOOP
@pytest.mark.parametrize("algorithm", ["crc64nvme", "crc32", "crc32c", "sha256"])
@pytest.mark.parametrize("kind", ["path", "iterator"])
def test_a_named_checksum_is_checked_of_every_part_and_the_whole(
    store: Store, run: Run, tmp_path: Path, algorithm: Any, kind: str
) -> None:
    async def main() -> engine.PutResult:
        async with store.client() as client:
            source = sources(tmp_path)[kind]()
            return await client.upload(source, "s3://store/named", part_size=PART, checksum=algorithm)

    result = run(main())
    assert (result.checksum.algorithm, result.checksum_verified) == (algorithm, True)
    stored = store.object("store", "named")
    assert stored.checksums == {algorithm: result.checksum.value}
    assert stored.checksum_type == ("COMPOSITE" if algorithm == "sha256" else "FULL_OBJECT")
    if algorithm != "sha256":
        whole = checksums.new(algorithm)
        whole.update(DATA)
        assert result.checksum.value == whole.digest_base64()
    for record in store.records():
        if "partNumber" in record.target:
            assert record.get(f"x-amz-checksum-{algorithm}")


def test_without_a_checksum_nothing_is_computed(store: Store, run: Run, file: Path) -> None:
    async def main() -> engine.PutResult:
        async with store.client() as client:
            return await client.upload(file, "s3://store/none", part_size=PART, checksum=None)

    result = run(main())
    assert (result.checksum, result.checksum_verified) == (None, False)


def test_wrong_bytes_at_the_store_abort_the_upload(store: Store, run: Run, file: Path) -> None:
    async def main() -> None:
        async with store.client() as client:
            with pytest.raises(engine.ChecksumMismatch) as caught:
                await client.upload(file, "s3://store-corrupt/key", part_size=PART)
            assert caught.value.body_bytes_sent >= PART
            await assert_nothing_runs()

    run(main())
    assert "DELETE upload" in store.calls()
    with pytest.raises(KeyError):
        store.object("store-corrupt", "key")


def test_a_whole_that_is_not_its_parts_is_a_mismatch(store: Store, run: Run, file: Path) -> None:
    wrong = b"<CompleteMultipartUploadResult><ETag>x</ETag><ChecksumCRC64NVME>AAAAAAAAAAA=</ChecksumCRC64NVME>"
    wrong += b"<ChecksumType>FULL_OBJECT</ChecksumType></CompleteMultipartUploadResult>"

    async def main(url: str) -> engine.UploadId:
        async with store.client(endpoint_url=url) as client:
            with pytest.raises(engine.ChecksumMismatch, match="the store made an object"):
                await client.upload(file, "s3://store/whole", part_size=PART)

    judge = lambda method, target: answer(wrong) if name_of(method, target) == "POST upload" else None  # noqa: E731
    with raw_server(*[meddler(store.sandbox.store_url, judge)] * 20) as url:
        run(main(url))
    assert "DELETE upload" not in store.calls(), "the store calls it an object: there is nothing to abort"
    clear(store)


def answer(body: bytes, status: str = "200 OK", fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status.encode(), fields, len(body), body)


def error_answer(status: str, code: str) -> bytes:
    return answer(f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode(), status)


def clear(store: Store) -> None:
    """Abort what a test left on purpose."""
    for bucket, key, upload_id in store.sandbox.uploads():
        store.boto().abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)


# --- one asks for all ---------------------------------------------------------------------------------------------------


def test_one_part_asks_and_the_others_go_directly(store: Store, run: Run, file: Path) -> None:
    async def main() -> engine.PutResult:
        async with store.client() as client:
            return await client.upload(file, "s3://redirect-307.one/key", part_size=PART, concurrency=6)

    result = run(main())
    assert store.calls("redirector") == ["POST uploads", "PUT 1", "POST upload"]
    asked = [call_of(record) for record in store.records() if record.get("expect")]
    assert asked == ["PUT 1", "PUT 1"], "at the redirector, and where it pointed"
    assert all(r.body_bytes == 0 for r in store.records() if r.endpoint == "redirector" and r.method == "PUT")
    assert store.part_bytes() == len(DATA) == result.body_bytes_sent
    assert result.redirects == 3
    assert {hop.outcome for hop in result.hops} == {"redirected", "stored", "answered"}


def test_without_asking_one_part_is_stored_before_the_others_follow(store: Store, run: Run, file: Path) -> None:
    async def main() -> engine.PutResult:
        async with store.client() as client:
            return await client.upload(
                file, "s3://redirect-307.never/key", part_size=PART, concurrency=6, expect="never"
            )

    assert run(main()).redirects == 3
    assert store.calls("redirector") == ["POST uploads", "PUT 1", "POST upload"]


def test_a_region_is_learned_once(store: Store, run: Run, file: Path) -> None:
    async def main() -> engine.PutResult:
        async with store.client() as client:
            return await client.upload(file, "s3://region-400.up/key", part_size=PART, concurrency=6)

    result = run(main())
    assert result.region == "sandbox-2"
    assert [call_of(r) for r in store.records() if r.signed_region != "sandbox-2"] == ["POST uploads"]


@pytest.mark.parametrize(("expect", "asking"), [("always", 6), ("strict", 6), ("never", 0), ("auto", 1)])
def test_who_wants_every_part_to_ask_gets_it(store: Store, run: Run, file: Path, expect: Any, asking: int) -> None:
    async def main() -> None:
        async with store.client() as client:
            await client.upload(file, "s3://store/asking", part_size=PART, expect=expect)

    run(main())
    assert sum(bool(r.get("expect")) for r in store.records() if "partNumber" in r.target) == asking


@pytest.mark.parametrize("trouble", ["503 Slow Down", "307 Temporary Redirect", "refuse"])
def test_trouble_on_the_way_makes_the_next_part_ask_again(store: Store, run: Run, file: Path, trouble: str) -> None:
    asked: list[str] = []
    met = 0

    def judge(method: str, target: str) -> bytes | str | None:
        nonlocal met
        if name_of(method, target) != "PUT 3" or met:
            return None
        met += 1
        if trouble == "refuse":
            return "refuse"
        place = f"Location: {store.sandbox.store_url}{target}\r\n".encode() if trouble.startswith("3") else b""
        return answer(b"<Error><Code>SlowDown</Code></Error>", trouble, place)

    async def main(url: str) -> engine.PutResult:
        def on_event(event: engine.events.Event) -> None:
            if isinstance(event, engine.events.HeadSent) and event.expect:
                asked.append(name_of(event.method, event.url))

        async with store.client(endpoint_url=url) as client:
            return await client.upload(file, "s3://store/trouble", part_size=PART, concurrency=1, on_event=on_event)

    with raw_server(*[meddler(store.sandbox.store_url, judge)] * 20) as url:
        result = run(main(url))
    assert store.object("store", "trouble").content() == DATA
    # Part 3 itself asks when it is tried again or redirected; part 4 asks for those behind it.
    assert asked[0] == "PUT 1"
    assert asked[-1] == "PUT 4"
    assert "PUT 2" not in asked
    assert "PUT 5" not in asked
    # A connection that was used before and is closed says nothing: that attempt does not count.
    expected = {"503 Slow Down": (2, 0), "307 Temporary Redirect": (1, 1), "refuse": (1, 0)}
    assert (result.attempts, result.redirects) == expected[trouble]


def test_a_part_that_fails_ends_the_others_and_aborts(store: Store, run: Run, file: Path) -> None:
    def judge(method: str, target: str) -> bytes | None:
        return error_answer("403 Forbidden", "AccessDenied") if name_of(method, target) == "PUT 2" else None

    async def main(url: str) -> None:
        async with store.client(endpoint_url=url) as client:
            with pytest.raises(engine.AccessDenied) as caught:
                await client.upload(file, "s3://store/fails", part_size=PART, concurrency=2)
            error = caught.value
            assert any(hop.status == 403 for hop in error.hops)
            assert error.body_bytes_sent >= 2 * PART
            pickle.loads(pickle.dumps(error))
            await assert_nothing_runs()

    with raw_server(*[meddler(store.sandbox.store_url, judge)] * 20) as url:
        run(main(url))
    # In which order a server notes a part that was broken off and the abort on another connection is its own affair.
    calls = store.calls()
    assert "DELETE upload" in calls
    assert "POST upload" not in calls
    assert not store.sandbox.uploads()


def test_parts_are_tried_again_as_often_as_the_policy_says(store: Store, run: Run, file: Path) -> None:
    seen: list[str] = []

    def judge(method: str, target: str) -> bytes | None:
        seen.append(name_of(method, target))
        return error_answer("500 Internal Server Error", "InternalError") if seen[-1] == "PUT 2" else None

    async def main(url: str) -> None:
        async with store.client(endpoint_url=url) as client:
            with pytest.raises(engine.ResponseError) as caught:
                await client.upload(file, "s3://store/fails", part_size=PART, concurrency=1)
            assert (caught.value.status, caught.value.attempts) == (500, 3)

    with raw_server(*[meddler(store.sandbox.store_url, judge)] * 20) as url:
        run(main(url))
    assert seen.count("PUT 2") == 3


# --- completing ---------------------------------------------------------------------------------------------------------


def completing(store: Store, run: Run, file: Path, *verdicts: Any, **options: Any) -> tuple[Any, list[str]]:
    """An upload whose completions are met with `verdicts`, one after the other. Returns result or error, and the calls."""
    seen: list[str] = []
    left = list(verdicts)

    def judge(method: str, target: str) -> Any:
        seen.append(name_of(method, target))
        return left.pop(0) if seen[-1] == "POST upload" and left else None

    async def main(url: str) -> Any:
        async with store.client(endpoint_url=url) as client:
            try:
                return await client.upload(file, "s3://store/complete", part_size=PART, **options)
            except engine.EngineError as error:
                return error

    with raw_server(*[meddler(store.sandbox.store_url, judge)] * 40) as url:
        return run(main(url)), seen


SPACES = b" \n" * 50
IN_200 = answer(SPACES + b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>m</Message></Error>")


def test_an_error_in_a_200_is_tried_again(store: Store, run: Run, file: Path) -> None:
    result, seen = completing(store, run, file, IN_200, IN_200)
    assert isinstance(result, engine.PutResult)
    assert (result.attempts, seen.count("POST upload")) == (3, 3)
    assert store.object("store", "complete").content() == DATA


def test_an_error_in_a_200_that_stays_aborts(store: Store, run: Run, file: Path) -> None:
    error, seen = completing(store, run, file, IN_200, IN_200, IN_200)
    assert isinstance(error, engine.ResponseError)
    assert (error.status, error.code) == (500, "InternalError")
    assert "DELETE upload" in seen


def test_an_answer_behind_white_space_is_read(store: Store, run: Run, file: Path) -> None:
    said = b"<CompleteMultipartUploadResult><ETag>&quot;e&quot;</ETag></CompleteMultipartUploadResult>"
    result, _seen = completing(store, run, file, answer(SPACES * 100 + said))
    assert result.etag == '"e"'
    clear(store)


def test_a_completion_whose_answer_was_lost_is_found_done(store: Store, run: Run, file: Path) -> None:
    result, seen = completing(store, run, file, "lost")
    assert isinstance(result, engine.PutResult), result
    assert seen[-3:] == ["POST upload", "POST upload", "HEAD object"]
    assert result.etag == store.object("store", "complete").etag
    assert (result.checksum_verified, result.size) == (True, len(DATA))


def test_an_upload_that_is_gone_without_an_object_of_ours_fails(store: Store, run: Run, file: Path) -> None:
    gone = error_answer("404 Not Found", "NoSuchUpload")
    lost = answer(b"<Error><Code>InternalError</Code></Error>")
    store.boto().put_object(Bucket="store", Key="complete", Body=b"somebody else's")
    error, seen = completing(store, run, file, lost, gone)
    assert isinstance(error, engine.NotFound)
    assert error.code == "NoSuchUpload"
    assert "HEAD object" in seen


def test_an_empty_answer_is_looked_behind(store: Store, run: Run, file: Path) -> None:
    error, seen = completing(store, run, file, answer(b"   "))
    assert isinstance(error, engine.ProtocolError | engine.EngineError)
    assert "HEAD object" in seen


def test_a_condition_is_judged_by_the_completion_and_aborts(store: Store, run: Run, file: Path) -> None:
    store.boto().put_object(Bucket="store", Key="complete", Body=b"there already")
    error, seen = completing(store, run, file, if_none_match="*")
    assert isinstance(error, engine.PreconditionFailed)
    assert seen[-3:] == ["POST upload", "DELETE upload", "GET upload"]
    conditional = [call_of(r) for r in store.records() if r.get("if-none-match")]
    assert conditional == ["POST upload"]
    assert store.object("store", "complete").content() == b"there already"


def test_a_condition_that_holds_stores(store: Store, run: Run, file: Path) -> None:
    etag = store.boto().put_object(Bucket="store", Key="complete", Body=b"there already")["ETag"]
    result, _seen = completing(store, run, file, if_match=etag)
    assert isinstance(result, engine.PutResult)
    assert store.object("store", "complete").content() == DATA


# --- what is left behind ------------------------------------------------------------------------------------------------


def test_an_abort_that_does_not_work_is_told(
    store: Store, run: Run, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def judge(method: str, target: str) -> bytes | None:
        name = name_of(method, target)
        if name == "DELETE upload":
            return error_answer("403 Forbidden", "AccessDenied")
        return error_answer("400 Bad Request", "InvalidPart") if name == "POST upload" else None

    async def main(url: str) -> None:
        async with store.client(endpoint_url=url) as client:
            with pytest.raises(engine.UploadFailed) as caught:
                await client.upload(file, "s3://store/abort", part_size=PART)
            error = caught.value
            assert error.upload_id == store.sandbox.uploads()[0][2]
            assert error.aborted is False
            assert isinstance(error.cause, engine.ResponseError)
            assert error.__cause__ is error.cause
            assert "could not be removed" in str(error)
            assert error.body_bytes_sent == len(DATA)
            assert pickle.loads(pickle.dumps(error)).cause.code == "InvalidPart"

    with raw_server(*[meddler(store.sandbox.store_url, judge)] * 20) as url:
        run(main(url))
    assert "could not be removed" in caplog.text
    clear(store)


def test_parts_that_come_behind_the_abort_are_removed_too(store: Store, run: Run, file: Path) -> None:
    """S3: "if any part uploads are in progress, those part uploads might or might not succeed"; the list tells."""
    listed = answer(
        b"<ListPartsResult><UploadId>u</UploadId><Part><PartNumber>1</PartNumber><Size>1</Size></Part></ListPartsResult>"
    )
    seen: list[str] = []

    def judge(method: str, target: str) -> bytes | None:
        seen.append(name_of(method, target))
        if seen[-1] == "PUT 2":
            return error_answer("400 Bad Request", "InvalidRequest")
        return listed if seen[-1] == "GET upload" and seen.count("GET upload") == 1 else None

    async def main(url: str) -> None:
        async with store.client(endpoint_url=url) as client:
            with pytest.raises(engine.ResponseError):
                await client.upload(file, "s3://store/again", part_size=PART, concurrency=1)

    with raw_server(*[meddler(store.sandbox.store_url, judge)] * 20) as url:
        run(main(url))
    assert seen[-3:] == ["DELETE upload", "GET upload", "DELETE upload"]


@pytest.mark.parametrize("seed", range(6))
def test_a_cancelled_upload_leaves_nothing(store: Store, run: Run, file: Path, tmp_path: Path, seed: int) -> None:
    """At random moments, several times over, of files and of streams."""
    dice = random.Random(seed)
    before: dict[int, str] = {}

    async def main() -> int:
        stored = 0
        async with store.client() as client:
            before.update(descriptors())
            for n in range(8):
                source = file if n % 2 else sources(tmp_path)["iterator"]()
                transfer = client.start_upload(source, f"s3://store/cancel-{n}", part_size=PART, concurrency=3)
                await asyncio.sleep(dice.random() * 0.08)
                for _again in range(dice.randrange(1, 4)):
                    transfer.cancel()
                    await asyncio.sleep(dice.choice((0, 0.001)))
                try:
                    await transfer
                    stored += 1
                except asyncio.CancelledError:
                    # "hashing": before anything began; "done": the store was completing it
                    assert transfer.progress.phase in ("aborted", "creating", "done", "hashing"), transfer.progress
                await assert_nothing_runs()
            assert store.sandbox.uploads() == []
        return stored

    run(main())
    leaked = {fd: name for fd, name in descriptors().items() if name.endswith(file.name)}
    assert leaked == {}


def test_the_total_timeout_is_that_of_the_whole_and_aborts(store: Store, run: Run, file: Path) -> None:
    async def main() -> None:
        async with store.client() as client:
            with pytest.raises(engine.TotalTimedOut, match=r"upload s3://store-slow-200ms/key: not done within 0.5 s"):
                await client.upload(
                    file, "s3://store-slow-200ms/key", part_size=PART, concurrency=1, total_timeout_s=0.5
                )
            await assert_nothing_runs()

    run(main())
    assert "DELETE upload" in store.calls()


@pytest.mark.parametrize("change", ["shrink", "rewrite", "replace"])
def test_a_source_that_changes_is_never_completed(store: Store, run: Run, file: Path, change: str) -> None:
    other = file.with_name("other")
    other.write_bytes(DATA)
    changes = {
        "shrink": lambda: os.truncate(file, 3 * PART),
        "rewrite": lambda: file.write_bytes(DATA),
        "replace": lambda: other.rename(file),
    }

    async def main() -> None:
        async with store.client() as client:
            transfer = client.start_upload(file, "s3://store-slow-20ms/changed", part_size=PART, concurrency=1)
            while transfer.progress.sent < 2 * PART:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            changes[change]()
            with pytest.raises(engine.SourceChanged):
                await transfer

    run(main())
    with pytest.raises(KeyError):
        store.object("store-slow-20ms", "changed")


def test_a_stream_that_fails_aborts_with_its_own_error(store: Store, run: Run) -> None:
    class Broken(Exception):
        pass

    def source() -> Iterator[bytes]:
        yield DATA[: 2 * PART + 1]
        raise Broken

    async def main() -> None:
        async with store.client() as client:
            with pytest.raises(Broken):
                await client.upload(source(), "s3://store/broken", part_size=PART)
            await assert_nothing_runs()

    run(main())


def test_a_failing_part_does_not_wait_for_a_stream_that_stands_still(store: Store, run: Run) -> None:
    def judge(method: str, target: str) -> bytes | None:
        return error_answer("403 Forbidden", "AccessDenied") if name_of(method, target) == "PUT 1" else None

    async def source() -> AsyncIterator[bytes]:
        yield DATA[: 2 * PART]
        await asyncio.sleep(3600)

    async def main(url: str) -> None:
        async with store.client(endpoint_url=url) as client:
            with pytest.raises(engine.AccessDenied):
                await client.upload(source(), "s3://store/still", part_size=PART)

    with raw_server(*[meddler(store.sandbox.store_url, judge)] * 20) as url:
        run(main(url))


# --- accounting, progress, memory ---------------------------------------------------------------------------------------


def test_progress_and_accounting_add_up(store: Store, run: Run, file: Path) -> None:
    seen: list[engine.Progress] = []

    async def main() -> engine.PutResult:
        async with store.client() as client:
            transfer = client.start_upload(file, "s3://store-slow-20ms/progress", part_size=PART, concurrency=2)
            while not transfer.done():
                seen.append(transfer.progress)
                await asyncio.sleep(0.002)
            result = await transfer
            assert transfer.progress == (len(DATA), len(DATA), "done", 1, 1)
            return result

    result = run(main())
    assert [phase for phase, _ in itertools.groupby(each.phase for each in seen[1:])] == [
        "creating",
        "sending",
        "completing",
    ]
    assert max(each.sent for each in seen) <= len(DATA)
    assert {each.total for each in seen[1:]} == {len(DATA)}
    assert 0 < result.timings.body < result.timings.total
    assert result.timings.response > 0.02
    pickle.loads(pickle.dumps(result))


def test_the_hops_of_ten_thousand_parts_are_bounded(store: Store, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UPLOAD_HOPS_MAX", 5)

    async def main() -> engine.PutResult:
        async with store.client() as client:
            return await client.upload(DATA, "s3://redirect-307.hops/key", part_size=PART, expect="always")

    result = run(main())
    assert len(result.hops) == 5
    assert result.hops[-1].url.split("?")[1].startswith("uploadId"), "the completion is told in any case"
    assert result.redirects == 3
    assert result.body_bytes_sent == len(DATA)


@ON_ONE_LOOP
def test_the_memory_of_a_stream_is_what_the_formula_says(run: Run) -> None:
    part, count, concurrency = 1 * MIB, 40, 3

    async def source() -> AsyncIterator[bytes]:
        for _n in range(count * 4):
            yield bytes(part // 4)

    async def main(other: sandbox.Sandbox) -> int:
        options = {"endpoint_url": other.store_url, "region": other.region, "credentials": other.credentials}
        async with engine.Client(**options) as client:
            await client.upload([b"x" * part] * 5, "s3://store/warm", part_size=part, concurrency=concurrency)
            tracemalloc.start()
            try:
                result = await client.upload(source(), "s3://store/memory", part_size=part, concurrency=concurrency)
                assert result.size == count * part
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    with sandbox.start(process=True, min_part_size=1) as other:
        peak = run(main(other))
    formula = (concurrency + 1) * part + part // 4
    assert formula <= peak < formula + part


def test_without_a_concurrency_a_stream_holds_what_the_limit_says(run: Run, store: Store, monkeypatch: Any) -> None:
    monkeypatch.setattr(limits, "GATHER_BYTES", 3 * PART)
    most = 0

    async def main() -> None:
        nonlocal most
        async with store.client() as client:
            from engine.upload import Gathered

            original = Gathered._take

            def take(self: Gathered, size: int) -> bytearray:
                nonlocal most
                taken = original(self, size)
                most = max(most, self._held)
                return taken

            monkeypatch.setattr(Gathered, "_take", take)
            await client.upload([DATA] * 4, "s3://store/held", part_size=PART)
            assert most == 3 * PART
            most = 0
            await client.upload([DATA] * 4, "s3://store/held", part_size=4 * PART)
            assert most == 8 * PART

    run(main())


def test_concurrency_is_how_many_parts_are_under_way(store: Store, run: Run, file: Path) -> None:
    under_way: list[int] = []

    async def main() -> None:
        async with store.client() as client:
            transfer = client.start_upload(file, "s3://store-slow-20ms/many", part_size=64 * KIB, concurrency=5)
            while not transfer.done():
                upload = transfer._state.run
                if upload is not None:
                    under_way.append(len(upload._runs))
                await asyncio.sleep(0.001)
            await transfer

    run(main())
    assert max(under_way) == 5


# --- pieces -------------------------------------------------------------------------------------------------------------


def test_the_pieces_make_an_object(store: Store, run: Run, file: Path) -> None:
    async def main() -> None:
        async with store.client() as client:
            upload = await client.create_upload("s3://store/pieces", content_type="text/x", storage_class="GLACIER")
            assert await client.list_parts(upload) == []
            parts = [
                await client.upload_part(upload, 2, DATA, offset=PART, size=len(DATA) - PART),
                await client.upload_part(upload, 1, file, size=PART),
            ]
            third = await client.upload_part(upload, 3, iter([b"ab", b"c"]), size=3)
            listed = await client.list_parts(upload)
            assert [(p.number, p.size, p.etag, p.checksum) for p in listed] == [
                (p.number, p.size, p.etag, p.checksum) for p in [parts[1], parts[0], third]
            ]
            result = await client.complete_upload(upload, parts, if_none_match="*")
            assert (result.size, result.body_bytes_sent) == (len(DATA), len(DATA))
            assert result.checksum_verified
            await client.abort_upload(upload)  # gone is no error

    run(main())
    stored = store.object("store", "pieces")
    assert stored.content() == DATA
    assert stored.fields["Content-Type"] == "text/x"
    assert stored.fields["x-amz-storage-class"] == "GLACIER"
    store.boto().delete_object(Bucket="store", Key="pieces")


def _send_every_fourth(arguments: tuple[Any, ...]) -> list[engine.Part]:
    url, region, credentials, upload, path, first = arguments

    async def main() -> list[engine.Part]:
        async with engine.Client(endpoint_url=url, region=region, credentials=credentials) as client:
            return [
                await client.upload_part(
                    upload, n, path, offset=(n - 1) * PART, size=min(PART, len(DATA) - (n - 1) * PART)
                )
                for n in range(first, 7, 4)
            ]

    return asyncio.run(main())


@ON_ONE_LOOP
def test_four_processes_upload_the_parts_of_one_object(store: Store, run: Run, file: Path) -> None:
    async def create() -> engine.UploadId:
        async with store.client() as client:
            return await client.create_upload("s3://store/processes", checksum="crc32c")

    async def complete(parts: list[engine.Part]) -> engine.PutResult:
        async with store.client() as client:
            return await client.complete_upload(upload, parts)

    upload = run(create())
    assert pickle.loads(pickle.dumps(upload)) == upload
    own = (store.sandbox.redirector_url, store.sandbox.region, store.sandbox.credentials, upload, str(file))
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        sent = pool.map(_send_every_fourth, [(*own, first) for first in (1, 2, 3, 4)])
    parts = [part for each in sent for part in each]
    result = run(complete(parts))
    assert store.object("store", "processes").content() == DATA
    assert (result.checksum.algorithm, result.checksum_verified) == ("crc32c", True)


def test_a_long_list_of_parts_comes_in_pages(store: Store) -> None:
    async def main() -> None:
        async with store.client() as client:
            upload = await client.create_upload("s3://store/pages")
            dice = asyncio.Semaphore(16)

            async def one(n: int) -> None:
                async with dice:
                    await client.upload_part(upload, n, b"%05d" % n)

            await asyncio.gather(*(one(n) for n in range(1, 1006)))
            listed = await client.list_parts(upload)
            assert [part.number for part in listed] == list(range(1, 1006))
            await client.complete_upload(upload, listed)

    import uvloop

    uvloop.run(main())
    assert store.object("store", "pages").size == 5 * 1005
    assert store.calls().count("GET upload") == 2


def test_pieces_refuse_what_they_cannot_use(store: Store, run: Run) -> None:
    async def main() -> None:
        async with store.client() as client:
            upload = await client.create_upload("s3://store/refuse")
            for number in (0, 10_001, True, "1"):
                with pytest.raises(engine.UsageError, match="number"):
                    await client.upload_part(upload, number, b"x")  # type: ignore[arg-type]
            with pytest.raises(engine.UsageError, match="size="):
                await client.upload_part(upload, 1, iter([b"x"]))
            with pytest.raises(engine.UsageError, match="UploadId"):
                await client.upload_part("upload", 1, b"x")  # type: ignore[arg-type]
            with pytest.raises(engine.UsageError, match="at least one part"):
                await client.complete_upload(upload, [])
            with pytest.raises(engine.UsageError, match="if_match belongs"):
                await client.create_upload("s3://store/x", if_match="x")
            with pytest.raises(engine.UsageError, match="parts are S3's"):
                await client.create_upload("http://127.0.0.1:1/x")
            with pytest.raises(TypeError, match="unknown option"):
                await client.upload_part(upload, 1, b"x", metadata={})  # type: ignore[call-arg]
            await client.abort_upload(upload)
            with pytest.raises(engine.NotFound):
                await client.list_parts(upload)
            with pytest.raises(engine.NotFound):
                await client.upload_part(upload, 1, b"x")

    run(main())


def test_options_go_on_the_calls_they_belong_to(store: Store, run: Run, file: Path) -> None:
    key = bytes(range(32))

    async def main() -> None:
        async with store.client() as client:
            await client.upload(
                file,
                "s3://store/options",
                part_size=PART,
                sse_customer_key=key,
                request_payer=True,
                metadata={"a": "b"},
                tagging={"t": "1"},
                acl="private",
                storage_class="STANDARD_IA",
                headers={"X-Api": "k", "Cache-Control": "no-store"},
            )

    run(main())
    for record in store.records():
        creating = call_of(record) == "POST uploads"
        for name in ("x-amz-meta-a", "x-amz-tagging", "x-amz-acl", "x-amz-storage-class", "cache-control"):
            assert (record.get(name) is not None) == creating, (call_of(record), name)
        for name in ("x-amz-server-side-encryption-customer-key", "x-amz-request-payer", "x-api"):
            assert record.get(name) is not None, (call_of(record), name)


# --- going on -----------------------------------------------------------------------------------------------------------

KILLED = """
    import asyncio, os, signal, sys
    import engine

    async def main(url, region, key, secret, source, path, seen):
        def on_event(event):
            # Completing would be too late to be killed.
            if isinstance(event, engine.events.HeadSent) and "partNumber=5" in event.url:
                os.kill(os.getpid(), signal.SIGKILL)

        credentials = engine.Credentials(key, secret)
        async with engine.Client(endpoint_url=url, region=region, credentials=credentials) as client:
            await client.upload(source, "s3://store/resumed", part_size=%d, concurrency=1, resume=path, on_event=on_event)

    asyncio.run(main(*sys.argv[1:]))
"""


def killed(store: Store, file: Path, path: Path) -> None:
    """A process that uploads `file` and is killed while its fifth part leaves."""
    keys = store.sandbox.credentials
    words = [store.sandbox.redirector_url, store.sandbox.region, keys.access_key, keys.secret_key, file, path, ""]
    code = textwrap.dedent(KILLED % PART)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    while "PUT 5" not in store.calls():  # the server may be behind; `calls` waits until what it saw has ended
        time.sleep(0.01)
    assert path.exists()
    assert len(store.sandbox.uploads()) == 1


async def go_on(store: Store, source: Any, path: Path, **options: Any) -> engine.PutResult:
    async with store.client() as client:
        given = {"part_size": PART, "resume": path, **options}
        return await client.upload(source, "s3://store/resumed", **given)


@ON_ONE_LOOP
def test_after_a_kill_only_what_is_missing_travels(store: Store, run: Run, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "unfinished.json"
    killed(store, file, path)
    held = path.read_text()
    assert store.sandbox.credentials.secret_key not in held
    assert path.stat().st_mode & 0o777 == 0o600
    before = Store(store.sandbox)
    result = run(go_on(store, file, path))
    assert sorted(call for call in before.calls() if call.startswith("PUT")) == ["PUT 5", "PUT 6"]
    assert before.part_bytes() == len(DATA) - 4 * PART == result.body_bytes_sent
    assert (result.size, result.checksum_verified) == (len(DATA), True)
    assert store.object("store", "resumed").content() == DATA
    assert not path.exists()
    assert list(tmp_path.iterdir()) == [file]


@ON_ONE_LOOP
def test_parts_that_were_not_written_down_are_known_by_their_bytes(
    store: Store, run: Run, file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "unfinished.json"
    killed(store, file, path)
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "parts": []}))
    before = Store(store.sandbox)
    run(go_on(store, file, path))
    assert sorted(call for call in before.calls() if call.startswith("PUT")) == ["PUT 5", "PUT 6"]


@ON_ONE_LOOP
def test_a_store_that_lists_no_checksums_is_believed_by_its_md5s(
    store: Store, run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "unfinished.json"
    killed(store, file, path)
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "parts": []}))
    from engine import multipart

    original = multipart.parse_parts

    def without(body: bytes, what: str) -> multipart.Page:
        page = original(body, what)
        return page._replace(parts=[engine.Part(p.number, p.size, p.etag) for p in page.parts])

    monkeypatch.setattr(multipart, "parse_parts", without)
    before = Store(store.sandbox)
    result = run(go_on(store, file, path))
    assert sorted(call for call in before.calls() if call.startswith("PUT")) == ["PUT 5", "PUT 6"]
    assert result.checksum_verified


@ON_ONE_LOOP
def test_parts_of_other_bytes_are_sent_again(store: Store, run: Run, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "unfinished.json"
    killed(store, file, path)
    changed = bytearray(DATA)
    changed[PART + 5] ^= 1  # in part 2
    file.write_bytes(changed)
    before = Store(store.sandbox)
    run(go_on(store, file, path))
    assert sorted(call for call in before.calls() if call.startswith("PUT")) == ["PUT 2", "PUT 5", "PUT 6"]
    assert store.object("store", "resumed").content() == changed


@ON_ONE_LOOP
@pytest.mark.parametrize(
    ("differs", "options"),
    [
        ("source", {}),
        ("part_size", {"part_size": PART + 1}),
        ("options", {"metadata": {"other": "1"}}),
        ("checksum", {"checksum": "crc32"}),
    ],
)
def test_the_file_of_another_upload_is_refused(
    store: Store, run: Run, file: Path, tmp_path: Path, differs: str, options: dict[str, Any]
) -> None:
    path = tmp_path / "unfinished.json"
    killed(store, file, path)
    source = file
    if differs == "source":
        source = tmp_path / "longer.bin"
        source.write_bytes(DATA + b"x")
    before = Store(store.sandbox)
    with pytest.raises(engine.UsageError, match=f"of another upload: .*{differs}"):
        run(go_on(store, source, path, **options))
    assert before.calls() == []
    assert path.exists()
    clear(store)


def test_a_file_that_no_upload_wrote_is_left_alone(store: Store, run: Run, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "precious.json"
    for content in (b"{}", b"\xff\xfe", b"[]", b'{"format": "putengine-upload-1"}', b""):
        path.write_bytes(content)
        with pytest.raises(engine.UsageError, match="not written by an upload"):
            run(go_on(store, file, path))
        assert path.read_bytes() == content
    for wrong, kind in ((tmp_path / "none" / "x", FileNotFoundError), (tmp_path, IsADirectoryError)):
        with pytest.raises(kind):
            run(go_on(store, file, wrong))
    assert store.calls() == []


@ON_ONE_LOOP
def test_an_upload_that_is_gone_begins_anew(store: Store, run: Run, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "unfinished.json"
    killed(store, file, path)
    clear(store)
    result = run(go_on(store, file, path))
    assert result.body_bytes_sent == len(DATA)
    assert not path.exists()


def test_an_interruption_keeps_the_parts_and_says_how_to_go_on(
    store: Store, run: Run, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "engine")
    path = tmp_path / "unfinished.json"

    async def main() -> None:
        async with store.client() as client:
            transfer = client.start_upload(
                file, "s3://store-slow-20ms/kept", part_size=PART, concurrency=1, resume=path
            )
            while transfer.progress.sent < 3 * PART:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            transfer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await transfer
            assert transfer.progress.phase == "kept"
            await assert_nothing_runs()
            result = await client.upload(file, "s3://store-slow-20ms/kept", part_size=PART, resume=path)
            assert result.body_bytes_sent <= len(DATA) - 2 * PART

    run(main())
    assert f"the same call with resume='{path}' goes on" in caplog.text
    assert not path.exists()


def test_a_fault_with_resume_keeps_and_tells(store: Store, run: Run, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "unfinished.json"

    def judge(method: str, target: str) -> str | None:
        return "refuse" if name_of(method, target) == "PUT 3" else None

    async def main(url: str) -> None:
        async with store.client(endpoint_url=url) as client:
            with pytest.raises(engine.UploadFailed, match=r"2 parts .* are stored and kept: .* goes on") as caught:
                await client.upload(file, "s3://store/fault", part_size=PART, concurrency=1, resume=path)
            assert isinstance(caught.value.cause, engine.ConnectionLost)
            assert (caught.value.aborted, caught.value.retryable) == (False, True)
            assert caught.value.attempts == 3

    with raw_server(*[meddler(store.sandbox.store_url, judge)] * 20) as url:
        run(main(url))
    assert path.exists()
    clear(store)


def test_what_going_on_would_not_mend_aborts_with_resume_too(
    store: Store, run: Run, file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "unfinished.json"
    store.boto().put_object(Bucket="store", Key="resumed", Body=b"there already")
    with pytest.raises(engine.PreconditionFailed):
        run(go_on(store, file, path, if_none_match="*"))
    assert not path.exists()


def test_memory_goes_on_by_its_bytes(store: Store, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "unfinished.json"

    async def main() -> None:
        async with store.client() as client:
            transfer = client.start_upload(DATA, "s3://store-slow-20ms/mem", part_size=PART, concurrency=1, resume=path)
            while transfer.progress.sent < 3 * PART:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            transfer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await transfer
            result = await client.upload(DATA, "s3://store-slow-20ms/mem", part_size=PART, resume=path)
            assert result.body_bytes_sent <= len(DATA) - 2 * PART
            with pytest.raises(engine.UsageError, match="read again"):
                await client.upload(iter([DATA]), "s3://store/mem", part_size=PART, resume=path)

    run(main())


# --- another implementation ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moto() -> Iterator[tuple[str, Any]]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        client = boto_client(url, engine.Credentials("testing", "testing-secret"), "us-east-1")
        client.create_bucket(Bucket="bucket")
        yield url, client
    finally:
        server.stop()


@ON_ONE_LOOP
@pytest.mark.parametrize("checksum", ["auto", "crc32", "crc32c", "crc64nvme", "sha256", None])
def test_moto_stores_the_same_object(moto: tuple[str, Any], run: Run, tmp_path: Path, checksum: Any) -> None:
    url, boto = moto
    data = random.Random(2).randbytes(11 * MIB)
    path = tmp_path / "moto.bin"
    path.write_bytes(data)
    options = {
        "endpoint_url": url,
        "region": "us-east-1",
        "credentials": engine.Credentials("testing", "testing-secret"),
    }

    async def main() -> engine.PutResult:
        async with engine.Client(**options) as client:
            return await client.upload(
                path,
                "s3://bucket/a/b",
                part_size=5 * MIB,
                checksum=checksum,
                metadata={"who": "me"},
                tagging={"a": "b"},
                content_type="x/y",
                storage_class="STANDARD_IA",
            )

    result = run(main())
    read = boto.get_object(Bucket="bucket", Key="a/b")
    if checksum in ("crc32", "crc64nvme", "sha256"):  # its CRC32C is a CRC32
        head = boto.head_object(Bucket="bucket", Key="a/b", ChecksumMode="ENABLED")
        shown = head[f"Checksum{checksum.upper()}"]  # it shows a composite one without the number of parts
        assert shown == (result.checksum.value.partition("-")[0] if checksum == "sha256" else result.checksum.value)
    assert read["Body"].read() == data
    assert (read["ETag"], read["Metadata"], read["ContentType"]) == (result.etag, {"who": "me"}, "x/y")
    assert read["StorageClass"] == "STANDARD_IA"
    assert boto.get_object_tagging(Bucket="bucket", Key="a/b")["TagSet"] == [{"Key": "a", "Value": "b"}]
    parts = [data[start : start + 5 * MIB] for start in range(0, len(data), 5 * MIB)]
    md5s = b"".join(hashlib.md5(part, usedforsecurity=False).digest() for part in parts)
    assert result.etag == f'"{hashlib.md5(md5s, usedforsecurity=False).hexdigest()}-3"'


@ON_ONE_LOOP
def test_moto_has_no_upload_left_after_an_abort(moto: tuple[str, Any], run: Run, tmp_path: Path) -> None:
    url, boto = moto
    options = {
        "endpoint_url": url,
        "region": "us-east-1",
        "credentials": engine.Credentials("testing", "testing-secret"),
    }

    async def main() -> None:
        async with engine.Client(**options) as client:
            upload = await client.create_upload("s3://bucket/aborted")
            part = await client.upload_part(upload, 1, b"x" * 100)
            assert [(p.number, p.size, p.etag) for p in await client.list_parts(upload)] == [(1, 100, part.etag)]
            with pytest.raises(engine.ResponseError, match="EntityTooSmall"):
                await client.upload(b"x" * 300, "s3://bucket/small", part_size=100)
            await client.abort_upload(upload)
            await client.abort_upload(upload)

    run(main())
    assert "Uploads" not in boto.list_multipart_uploads(Bucket="bucket")
