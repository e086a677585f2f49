"""One client's encrypted PUT of one file, measured: what micro_tls.py runs in a process of its own.

    tls_case.py CLIENT PORT FILE BYTES BUNDLE [CPU]

Prints a line of JSON: seconds from the call to the answer (connection and handshake included) and CPU seconds of this process,
both of a second call, behind a small one.
"engine" is as installed, "engine-ssl" its fallback (ENGINE_TLS=ssl), "busy" has a pure-Python thread beside it, "ticker" a 1 ms
timer on its loop, "reconnect" and "uvloop-reconnect" make a connection for each of BYTES requests.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

PIECE = 256 * 1024
SMALL = 2 << 20  # sent first: what a client imports and reads once is not what is compared


async def engine_put(url: str, path: str, size: int, bundle: str) -> dict[str, float]:
    import engine

    result = await engine.put_async(path, url, size=size, checksum=None, config=engine.Config(tls=bundle))
    assert result.status == 200
    assert result.send_path == ("tls-ssl" if os.environ.get("ENGINE_TLS") == "ssl" else "tls"), result.send_path
    return {}


async def ticker(url: str, path: str, size: int, bundle: str) -> dict[str, float]:
    late: list[float] = []

    async def tick() -> None:
        while True:
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            late.append((time.perf_counter() - due) * 1000)

    ticking = asyncio.ensure_future(tick())
    await engine_put(url, path, size, bundle)
    ticking.cancel()
    late.sort()
    return {"p99_ms": late[int(len(late) * 0.99)], "max_ms": late[-1]}


async def busy(url: str, path: str, size: int, bundle: str) -> dict[str, float]:
    stop = threading.Event()

    def spin() -> None:
        number = 0
        while not stop.is_set():
            number += 1

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        return await engine_put(url, path, size, bundle)
    finally:
        stop.set()
        thread.join()


async def aiohttp_put(url: str, path: str, size: int, bundle: str) -> dict[str, float]:
    import aiohttp

    context = ssl.create_default_context(cafile=bundle)
    with open(path, "rb") as file:
        async with aiohttp.ClientSession() as session, session.put(url, data=file, ssl=context) as response:
            assert response.status == 200
    return {}


async def uvloop_put(url: str, path: str, size: int, bundle: str) -> dict[str, float]:
    """uvloop's own TLS, driven as well as it can be: one reused buffer's worth at a time, with drain."""
    host, _, port = url.split("/")[2].partition(":")
    context = ssl.create_default_context(cafile=bundle)
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    writer.write(f"PUT /key HTTP/1.1\r\nHost: {host}\r\nContent-Length: {size}\r\n\r\n".encode())
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(PIECE):
            writer.write(piece)
            await writer.drain()
    assert b" 200 " in await reader.readline()
    writer.close()
    return {}


async def awscrt_put(url: str, path: str, size: int, bundle: str) -> dict[str, float]:
    from awscrt import http, io

    host, _, port = url.split("/")[2].partition(":")
    options = io.TlsContextOptions()
    options.override_default_trust_store_from_path(None, bundle)
    tls = io.ClientTlsContext(options).new_connection_options()
    tls.set_server_name(host)
    connecting = http.HttpClientConnection.new(host, int(port), tls_connection_options=tls)
    connection = await asyncio.wrap_future(connecting)
    statuses: list[int] = []
    with open(path, "rb") as file:
        fields = http.HttpHeaders([("Host", host), ("Content-Length", str(size))])
        request = http.HttpRequest("PUT", "/key", fields, file)
        stream = connection.request(request, lambda http_stream, status_code, headers: statuses.append(status_code))
        stream.activate()
        await asyncio.wrap_future(stream.completion_future)
    assert statuses == [200]
    return {}


async def pycurl_put(url: str, path: str, size: int, bundle: str) -> dict[str, float]:
    import pycurl

    with open(path, "rb") as file:
        curl = pycurl.Curl()
        curl.setopt(pycurl.URL, url)
        curl.setopt(pycurl.UPLOAD, 1)
        curl.setopt(pycurl.READDATA, file)
        curl.setopt(pycurl.INFILESIZE_LARGE, size)
        curl.setopt(pycurl.CAINFO, bundle)
        curl.setopt(pycurl.UPLOAD_BUFFERSIZE, 2 << 20)  # its largest
        curl.perform()
        assert curl.getinfo(pycurl.RESPONSE_CODE) == 200
    return {}


async def obstore_put(url: str, path: str, size: int, bundle: str) -> dict[str, float]:
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        "bucket",
        endpoint=url.removesuffix("/key"),
        region="x",
        access_key_id="x",
        secret_access_key="x",
        client_options={"allow_invalid_certificates": True},  # it takes no bundle by path; verifying costs once
    )
    with open(path, "rb") as file:
        await obstore.put_async(store, "key", file, use_multipart=False)
    return {}


async def reconnect(url: str, path: str, size: int, bundle: str) -> dict[str, float]:
    import engine

    def look(event: object) -> None:
        assert not getattr(event, "reused", False), "a connection was used again"

    # Too old at once: the server would keep it open.
    async with engine.Client(config=engine.Config(tls=bundle, max_idle_s=1e-9)) as client:
        for _number in range(size):
            assert (await client.request("GET", url, on_event=look)).status == 200
    return {}


async def uvloop_reconnect(url: str, path: str, size: int, bundle: str) -> dict[str, float]:
    host, _, port = url.split("/")[2].partition(":")
    context = ssl.create_default_context(cafile=bundle)
    for _number in range(size):
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        writer.write(b"GET /key HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        writer.close()
    return {}


CASES: dict[str, Callable[[str, str, int, str], Awaitable[dict[str, float]]]] = {
    "engine": engine_put,
    "engine-ssl": engine_put,
    "busy": busy,
    "ticker": ticker,
    "aiohttp": aiohttp_put,
    "uvloop": uvloop_put,
    "awscrt": awscrt_put,
    "pycurl": pycurl_put,
    "obstore": obstore_put,
    "reconnect": reconnect,
    "uvloop-reconnect": uvloop_reconnect,
}
MODULES = {"aiohttp": "aiohttp", "awscrt": "awscrt.http", "pycurl": "pycurl", "obstore": "obstore.store"}


def spent_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    client, port, path, size, bundle, *cpu = sys.argv[1:]
    if cpu:
        os.sched_setaffinity(0, {int(cpu[0])})
    __import__(MODULES.get(client, "engine"))

    async def measure() -> dict[str, Any]:
        url = f"https://127.0.0.1:{port}/key"
        with tempfile.NamedTemporaryFile() as small:
            small.write(bytes(SMALL))
            small.flush()
            await CASES[client](url, small.name, 1 if "reconnect" in client else SMALL, bundle)
        cpu_s, began = spent_s(), time.perf_counter()
        extra = await CASES[client](url, path, int(size), bundle)
        return {"seconds": time.perf_counter() - began, "cpu": spent_s() - cpu_s, **extra}

    print(json.dumps(uvloop.run(measure())))


if __name__ == "__main__":
    main()
