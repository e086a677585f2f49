"""What one small PUT is made of: its head, the exchange machine, and the whole call against the native sink.

    python bench/micro_put.py [--quick] [--json FILE] [--benchmark-compare] [other pytest-benchmark options]

"head" beside http.client's and h11's way to write the same request; "exchange" is one machine taken through a stored body and
through a refused one; "put" is Client.put of 4 KiB of memory, one after another on a kept connection (signed, checksum off),
beside a bare socket that sends the same head and waits for the answer. No network, and no other load on the loop.
"""

from __future__ import annotations

import http.client
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h11
import pytest
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import engine
from bench import harness
from engine.exchange import Exchange, Input, Plan
from engine.wire import request_head

SIZE = 4096
FIELDS = [
    ("host", "127.0.0.1:9000"),
    ("content-type", "application/octet-stream"),
    ("content-length", str(SIZE)),
    ("x-amz-meta-origin", "sensor 17"),
    ("x-amz-date", "20261122T123001Z"),
    ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
    (
        "authorization",
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20261122/us-west-2/s3/aws4_request, " + "a" * 130,
    ),
]
TARGET = "/bucket/ingest/2026/11/22/part-00017.parquet"


@pytest.mark.benchmark(group="head")
def test_engine_head(benchmark: Any) -> None:
    assert benchmark(request_head, "PUT", TARGET, FIELDS).endswith(b"\r\n\r\n")


@pytest.mark.benchmark(group="head")
def test_h11_head(benchmark: Any) -> None:
    def write() -> bytes | None:
        return h11.Connection(h11.CLIENT).send(h11.Request(method="PUT", target=TARGET, headers=FIELDS))

    assert benchmark(write)


@pytest.mark.benchmark(group="head")
def test_http_client_head(benchmark: Any) -> None:
    class Unsent(http.client.HTTPConnection):
        def send(self, data: Any) -> None:
            pass

    def write() -> None:
        connection = Unsent("127.0.0.1", 9000)
        connection.putrequest("PUT", TARGET, skip_host=True, skip_accept_encoding=True)
        for name, value in FIELDS:
            connection.putheader(name, value)
        connection.endheaders()

    benchmark(write)


STORED = [(Input.HEAD_SENT, {}), (Input.CONTINUE, {}), (Input.BODY_PROGRESS, {"count": SIZE}), (Input.BODY_SENT, {})]
STORED += [(Input.FINAL_HEAD, {"status": 200}), (Input.FINAL_DONE, {})]
REFUSED = [(Input.HEAD_SENT, {}), (Input.FINAL_HEAD, {"status": 307}), (Input.FINAL_DONE, {})]


@pytest.mark.parametrize("inputs", [STORED, REFUSED], ids=["stored", "refused"])
@pytest.mark.benchmark(group="exchange")
def test_exchange(benchmark: Any, inputs: list[tuple[Input, dict[str, int]]]) -> None:
    plan = Plan(SIZE, asks=True, continue_wait_s=1.0)

    def take() -> bool:
        exchange = Exchange(plan, 0.0)
        for happened, facts in inputs:
            exchange.receive(happened, 1.0, **facts)
        return exchange.finished

    assert benchmark(take)


@pytest.fixture(scope="module")
def sink() -> Iterator[harness.Sink]:
    try:
        found = harness.Sink("store", cpu=harness.last_cpu())
    except harness.Missing as error:
        pytest.skip(str(error))
    yield found
    found.close()


@pytest.mark.benchmark(group="put")
def test_engine_put(benchmark: Any, sink: harness.Sink) -> None:
    loop = uvloop.new_event_loop()
    client = engine.Client(
        endpoint_url=sink.url(0), region="us-west-2", credentials=engine.Credentials("AKIAIOSFODNN7EXAMPLE", "x" * 40)
    )
    body = bytes(SIZE)

    def put() -> int:
        return loop.run_until_complete(client.put(body, "s3://bucket/key", checksum=None)).status

    try:
        assert benchmark(put) == 200
    finally:
        loop.run_until_complete(client.__aexit__(None, None, None))
        loop.close()


@pytest.mark.benchmark(group="put")
def test_bare_socket_put(benchmark: Any, sink: harness.Sink) -> None:
    request = request_head("PUT", TARGET, FIELDS) + bytes(SIZE)
    with socket.create_connection(("127.0.0.1", sink.ports[0])) as connection:

        def put() -> bytes:
            connection.sendall(request)
            return connection.recv(4096)

        assert benchmark(put).startswith(b"HTTP/1.1 200 ")


if __name__ == "__main__":
    from bench import micro

    sys.exit(micro.pytest_benchmark(__file__))
