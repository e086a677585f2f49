"""Servers that want to exhaust, confuse or mislead a client, by name; and what they cost it: bytes taken, seconds, memory.

`python -m tests.hostile --write` measures each in a process of its own and writes the table of docs/limits.md.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

import engine
from tests.peers import raw_server, read_head, read_request

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "limits.md"
BEGIN, END = "<!-- python -m tests.hostile --write made this -->", "<!-- end -->"
TIMEOUT_S = 1.0  # of the answer, in these measurements; 60 s by default
MEMORY_MAX_BYTES = 4 << 20  # of a case, but for what the caller wants held in memory (64 MiB)
HEAD = b"HTTP/1.1 403 No\r\n"


class Count:
    """What a server got rid of, over all connections."""

    def __init__(self) -> None:
        self.sent = 0
        self.connections = 0

    def flood(self, connection: socket.socket, block: bytes, every_s: float = 0.0) -> None:
        """Send for ever; ends when the client closes."""
        while True:
            self.sent += connection.send(block)
            if every_s:
                time.sleep(every_s)


Serve = Callable[[socket.socket, Count], object]


@dataclass(frozen=True)
class Case:
    """`ends`: the error's class and its kind, code or reason; `bound`: what ends it, in words; `size` of the body."""

    ends: str
    bound: str
    serve: Serve
    size: int = 1000
    method: str = "PUT"
    most_bytes: int = (
        24 << 20
    )  # taken from the server, most of it by the kernels' buffers (6 MiB each, by tcp_rmem and tcp_wmem)


def after(first: bytes, block: bytes, every_s: float = 0.0, *, reads_body: bool = True) -> Serve:
    def serve(connection: socket.socket, count: Count) -> None:
        if reads_body:
            read_request(connection, goes_ahead=False)
        else:
            read_head(connection)
        connection.sendall(first)
        count.flood(connection, block, every_s)

    return serve


def once(answer: bytes) -> Serve:
    def serve(connection: socket.socket, count: Count) -> None:
        while read_request(connection, goes_ahead=False)[0]:
            count.sent += connection.send(answer)

    return serve


def maze(connection: socket.socket, count: Count) -> None:
    while read_request(connection, goes_ahead=False)[0]:
        count.connections += 1
        location = f"Location: /{count.connections}/{'x' * 1000}\r\n".encode()
        count.sent += connection.send(b"HTTP/1.1 307 On\r\n" + location + b"Content-Length: 0\r\n\r\n")


def skew(connection: socket.socket, count: Count) -> None:
    while read_request(connection, goes_ahead=False)[0]:
        count.connections += 1
        date = f"Date: Thu, 01 Jan {2030 + count.connections} 00:00:00 GMT\r\n".encode()
        body = b"<Error><Code>RequestTimeTooSkewed</Code></Error>"
        count.sent += connection.send(b"HTTP/1.1 403 No\r\n%sContent-Length: %d\r\n\r\n%s" % (date, len(body), body))


def refuse_to_be_asked(connection: socket.socket, count: Count) -> None:
    while read_head(connection):
        count.sent += connection.send(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")


def document(body: bytes) -> bytes:
    return b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body) + body


LOOP = once(b"HTTP/1.1 307 On\r\nLocation: /k\r\nContent-Length: 0\r\n\r\n")
LAUGHS = b"".join(
    b'<!ENTITY l%d "%s">' % (number, b"&l%d;" % (number - 1) * 10 if number else b"lol") for number in range(12)
)
BOMB = b'<?xml version="1.0"?><!DOCTYPE l [' + LAUGHS + b"]><Error><Code>&l11;</Code></Error>"
BLOCK = 1 << 16
MESSAGE_S = f"`response_timeout_s` (measured with {TIMEOUT_S:g} s)"

CASES = {
    "endless 1xx": Case("ProtocolError too-many-1xx", "16 of a request", after(b"", b"HTTP/1.1 102 P\r\n\r\n" * 100)),
    "endless 100, while the body is asked for": Case(
        "ProtocolError too-many-1xx",
        "16 of a request",
        after(b"", b"HTTP/1.1 103 P\r\n\r\n" * 100, reads_body=False),
        size=1 << 20,
    ),
    "endless head of many fields": Case(
        "ProtocolError too-many-headers", "256 fields", after(HEAD, b"X-Field: value\r\n" * 100)
    ),
    "endless field": Case("ProtocolError head-too-large", "64 KiB", after(HEAD + b"X-Field: ", b"x" * BLOCK)),
    "endless status line": Case("ProtocolError head-too-large", "64 KiB", after(b"HTTP/1.1 403 ", b"x" * BLOCK)),
    "endless error document": Case(
        "ProtocolError answer-too-long", "1 MiB", after(HEAD + b"\r\n<Error><Message>", b"x" * BLOCK)
    ),
    "endless error document instead of a go-ahead": Case(
        "AccessDenied",
        "1 MiB, then the answer counts without its end",
        after(HEAD + b"\r\n<Error><Message>", b"x" * BLOCK, reads_body=False),
        size=1 << 20,
    ),
    "endless answer to a PUT": Case(
        "ProtocolError answer-too-long", "1 MiB", after(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * BLOCK)
    ),
    "endless answer to a request held in memory": Case(
        "UsageError",
        "64 MiB",
        after(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * BLOCK),
        method="GET",
        most_bytes=90 << 20,
    ),
    "endless error to a GET": Case(
        "ProtocolError answer-too-long", "1 MiB", after(HEAD + b"\r\n", b"x" * BLOCK), method="GET"
    ),
    "slow-loris head": Case("ResponseTimedOut", MESSAGE_S, after(HEAD, b"X", 0.05)),
    "slow-loris answer": Case("ResponseTimedOut", MESSAGE_S, after(HEAD + b"Content-Length: 99\r\n\r\n", b"x", 0.05)),
    "slow-loris chunks": Case(
        "ResponseTimedOut", MESSAGE_S, after(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.05)
    ),
    "Content-Length of 10 EB": Case(
        "ProtocolError answer-too-long",
        "1 MiB",
        after(HEAD + b"Content-Length: 9223372036854775807\r\n\r\n", b"x" * BLOCK),
    ),
    "Content-Length of 30 digits": Case(
        "ProtocolError bad-content-length",
        "63 bits",
        once(HEAD + b"Content-Length: 999999999999999999999999999999\r\n\r\n"),
    ),
    "chunk of 2^64 bytes": Case(
        "ProtocolError bad-chunk-size",
        "63 bits",
        once(HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n"),
    ),
    "endless chunk extension": Case(
        "ProtocolError bad-chunk-extension",
        "a line's length",
        after(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * BLOCK),
    ),
    "endless chunks of one byte": Case(
        "ProtocolError answer-too-long",
        "1 MiB",
        after(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10_000),
    ),
    "endless trailer": Case(
        "ProtocolError too-many-headers",
        "256 fields",
        after(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Field: value\r\n" * 100),
    ),
    "XML entity bomb": Case("ResponseError", "document types are refused", once(document(BOMB))),
    "XML of 30,000 levels": Case("ResponseError", "16 levels", once(document(b"<a>" * 30_000))),
    "redirect maze": Case("TooManyRedirects too-many-hops", "`max_hops` (5)", maze),
    "redirect loop": Case("RedirectRefused loop", "once", LOOP),
    "a clock that is always off": Case("AccessDenied RequestTimeTooSkewed", "corrected once", skew),
    "503 for ever": Case(
        "SlowDown SlowDown",
        "`max_attempts` (3)",
        once(b"HTTP/1.1 503 No\r\nContent-Length: 36\r\n\r\n<Error><Code>SlowDown</Code></Error>"),
    ),
    "Retry-After of a year": Case(
        "ResponseError", "60 s", once(b"HTTP/1.1 503 No\r\nRetry-After: 31536000\r\nContent-Length: 0\r\n\r\n")
    ),
    "417 for ever": Case("ResponseError", "asked once", refuse_to_be_asked, size=1 << 20),
}


@dataclass
class Cost:
    """What a case took: seconds, bytes that the server got rid of, and how far the peak of memory was above its beginning."""

    ended: str
    seconds: float
    bytes_taken: int
    memory_bytes: int
    body_bytes_sent: int


def meet(case: Case) -> Cost:
    """Be a client of the case's server."""
    count, size = Count(), case.size
    serve: Any = lambda connection: case.serve(connection, count)  # noqa: E731
    config = engine.Config(
        proxy=None, response_timeout_s=TIMEOUT_S, retry=engine.Retry(base_s=0.001), continue_timeout_s=TIMEOUT_S
    )

    async def call(url: str) -> int:
        credentials = engine.Credentials("access", "secret")
        async with engine.Client(endpoint_url=url, region="r-1", credentials=credentials, config=config) as client:
            try:
                if case.method == "GET":
                    await client.request("GET", f"{url}/k", retry=engine.Retry(max_attempts=1))
                else:
                    once_only = {"retry": engine.Retry(max_attempts=1)} if case.ends == "ResponseTimedOut" else {}
                    await client.put(bytes(size), f"{url}/k", sign="s3", checksum=None, **once_only)  # type: ignore[arg-type]
            except engine.EngineError as error:
                facts = [getattr(error, name, "") for name in ("kind", "reason", "code")]
                ended.append(" ".join([type(error).__name__, *filter(None, facts)]))
                return error.body_bytes_sent
        ended.append("nothing")
        return 0

    ended: list[str] = []
    with raw_server(*[serve] * 8) as url:
        before = _memory("VmRSS", reset=True)
        began = time.monotonic()
        sent = uvloop.run(call(url))
        seconds = time.monotonic() - began
        grown = _memory("VmHWM") - before
    return Cost(ended[0], seconds, count.sent, max(0, grown), sent)


def _memory(name: str, *, reset: bool = False) -> int:
    """Bytes, of /proc/self/status. `reset`: the peak begins anew (proc(5), clear_refs, Linux 4.0)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def _warm_up() -> None:
    meet(Case("", "", once(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")))


def measured(name: str) -> Cost:
    """In a process of its own, warmed up by an honest refusal."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.hostile", "--case", name], cwd=ROOT, check=True, capture_output=True, timeout=60
    )
    return Cost(**json.loads(ran.stdout))


def table(costs: dict[str, Cost]) -> str:
    lines = [
        "| a server sends | the call ends with | because of | bytes taken | seconds | memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, cost in costs.items():
        error, _space, fact = cost.ended.partition(" ")
        ended = f"`{error}`" + (f" `{fact}`" if fact else "")
        taken = f"{cost.bytes_taken / 1024:,.0f} KiB" if cost.bytes_taken >= 1024 else f"{cost.bytes_taken} B"
        memory = f"{cost.memory_bytes / 1024:,.0f} KiB"
        lines.append(f"| {name} | {ended} | {CASES[name].bound} | {taken} | {cost.seconds:.2f} | {memory} |")
    return "\n".join(lines)


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    options.add_argument("--case", choices=sorted(CASES))
    options.add_argument("--write", action="store_true", help="the table of docs/limits.md")
    given = options.parse_args()
    if given.case is not None:
        _warm_up()
        print(json.dumps(vars(meet(CASES[given.case]))))
        return 0
    made = table({name: measured(name) for name in CASES})
    if given.write:
        text = PAGE.read_text()
        begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
        PAGE.write_text(f"{text[:begin]}\n\n{made}\n\n{text[end:]}")
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
