"""One contender of micro_smallput.py, in a process of its own: COUNT PUTs of SIZE bytes, in turn, on one connection.

    put_case.py WHO PORT COUNT SIZE CPU

Prints {"cpu": seconds of user and system time, "seconds": …} as JSON. Every object has a key of its own, as objects have, and
the status and ETag of each answer are looked at, but for "pycurl-bare", which does as little as libcurl can.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

ETAG = '"9b2cf535f27731c974343645a3985328"'


class Meter:
    """Counts from the end of the warm-up: connections made, modules imported, caches filled."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.result: dict[str, float] = {}

    def __enter__(self) -> None:
        self.began = time.process_time(), time.perf_counter()

    def __exit__(self, *_exc: object) -> None:
        cpu, began = self.began
        self.result = {"cpu": time.process_time() - cpu, "seconds": time.perf_counter() - began}

    def __iter__(self) -> Iterator[str]:
        for number in range(self.count // 10):
            yield f"warm/{number:08}"
        with self:
            for number in range(self.count):
                yield f"data/part-{number:08}.bin"


async def engine_puts(who: str, port: str, meter: Meter, body: bytes) -> None:
    import engine

    options = {"checksum": None} if "bare" in who else {}
    signed = "signed" in who
    credentials = engine.Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    endpoint = f"http://127.0.0.1:{port}"
    prefix = "s3://bucket" if signed else f"{endpoint}/bucket"
    async with engine.Client(endpoint_url=endpoint, region="us-east-1", credentials=credentials) as client:
        for key in meter:
            result = await client.put(body, f"{prefix}/{key}", **options)  # type: ignore[arg-type]
            assert result.etag == ETAG


class Items:
    """One body of COUNT items of SIZE bytes, the first of which starts the clock."""

    def __init__(self, meter: Meter, item: bytes) -> None:
        self.meter, self.item = meter, item
        self.size = meter.count * len(item)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _number in range(self.meter.count):
            yield self.item


async def engine_iterator(who: str, port: str, meter: Meter, body: bytes) -> None:
    import engine

    options = {"checksum": None} if "bare" in who else {}
    items = Items(meter, body)
    async with engine.Client() as client:
        await client.put(body, f"http://127.0.0.1:{port}/warm")
        with meter:
            result = await client.put(items, f"http://127.0.0.1:{port}/body", size=items.size, **options)  # type: ignore[arg-type]
        assert result.etag == ETAG


async def aiohttp_iterator(_who: str, port: str, meter: Meter, body: bytes) -> None:
    import aiohttp

    items = Items(meter, body)
    fields = {"Content-Length": str(items.size)}
    async with aiohttp.ClientSession() as session:
        async with session.put(f"http://127.0.0.1:{port}/warm", data=body) as response:
            await response.read()
        with meter:
            async with session.put(f"http://127.0.0.1:{port}/body", data=items, headers=fields) as response:
                await response.read()
        assert response.headers["etag"] == ETAG


async def aiohttp_puts(_who: str, port: str, meter: Meter, body: bytes) -> None:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        for key in meter:
            async with session.put(f"http://127.0.0.1:{port}/bucket/{key}", data=body) as response:
                await response.read()
                assert response.status == 200
                assert response.headers["etag"] == ETAG


def pycurl_puts(who: str, port: str, meter: Meter, body: bytes) -> None:
    import pycurl

    curl = pycurl.Curl()
    curl.setopt(pycurl.CUSTOMREQUEST, "PUT")
    curl.setopt(pycurl.HTTPHEADER, ["Content-Type:", "Expect:"])
    fields: dict[bytes, bytes] = {}

    def header(line: bytes) -> None:
        name, _colon, value = line.partition(b":")
        fields[name.lower()] = value.strip()

    if who == "pycurl":
        curl.setopt(pycurl.HEADERFUNCTION, header)
    for key in meter:
        curl.setopt(pycurl.URL, f"http://127.0.0.1:{port}/bucket/{key}")
        curl.setopt(pycurl.POSTFIELDS, body)
        curl.perform()
        if who == "pycurl":
            assert curl.getinfo(pycurl.RESPONSE_CODE) == 200
            assert fields[b"etag"].decode() == ETAG
    curl.close()


def obstore_bucket(port: str) -> Any:
    from obstore.store import S3Store

    return S3Store(
        "bucket",
        endpoint=f"http://127.0.0.1:{port}",
        region="us-east-1",
        skip_signature=True,
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )


async def obstore_puts(_who: str, port: str, meter: Meter, body: bytes) -> None:
    import obstore

    store = obstore_bucket(port)
    for key in meter:
        result = await obstore.put_async(store, key, body, use_multipart=False)
        assert result["e_tag"] == ETAG


def obstore_sync_puts(_who: str, port: str, meter: Meter, body: bytes) -> None:
    import obstore

    store = obstore_bucket(port)
    for key in meter:
        assert obstore.put(store, key, body, use_multipart=False)["e_tag"] == ETAG


def awscrt_puts(_who: str, port: str, meter: Meter, body: bytes) -> None:
    from io import BytesIO

    from awscrt import http, io

    group = io.EventLoopGroup(1)
    bootstrap = io.ClientBootstrap(group, io.DefaultHostResolver(group))
    connection = http.HttpClientConnection.new("127.0.0.1", int(port), bootstrap, io.SocketOptions()).result()
    answer: list[tuple[int, dict[str, str]]] = []

    def answered(http_stream: object, status_code: int, headers: list[tuple[str, str]], **_more: object) -> None:
        answer.append((status_code, {name.lower(): value for name, value in headers}))

    for key in meter:
        fields = http.HttpHeaders([("host", "127.0.0.1"), ("content-length", str(len(body)))])
        request = http.HttpRequest("PUT", f"/bucket/{key}", fields, BytesIO(body))
        stream = connection.request(request, answered)
        stream.activate()
        assert stream.completion_future.result() == 200
        assert answer.pop()[1]["etag"] == ETAG


@contextmanager
def on_cpu(cpu: str) -> Iterator[None]:
    if cpu != "-":
        os.sched_setaffinity(0, {int(cpu)})
    yield


def main() -> None:
    who, port, count, size, cpu = sys.argv[1:]
    meter, body = Meter(int(count)), os.urandom(int(size))
    waits: dict[str, Callable[[str, str, Meter, bytes], Awaitable[None]]] = {
        "engine": engine_puts,
        "aiohttp": aiohttp_puts,
        "obstore": obstore_puts,
        "engine-iterator": engine_iterator,
        "aiohttp-iterator": aiohttp_iterator,
    }
    blocks: dict[str, Callable[[str, str, Meter, bytes], None]] = {
        "pycurl": pycurl_puts,
        "obstore-sync": obstore_sync_puts,
        "awscrt": awscrt_puts,
    }
    with on_cpu(cpu):
        if who in blocks or who.startswith("pycurl"):
            blocks[who.removesuffix("-bare")](who, port, meter, body)
        else:
            import uvloop

            uvloop.run(waits[who.removesuffix("-bare").removesuffix("-signed")](who, port, meter, body))
    print(json.dumps(meter.result))


if __name__ == "__main__":
    main()
