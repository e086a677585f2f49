"""What it costs to parse a response head, beside other parsers.

    python bench/micro_parse.py [--rounds N] [--quick] [--json FILE]    the ladder, and whether each bar holds
    pytest bench/micro_parse.py --benchmark-only              the same contenders one by one, by pytest-benchmark

All contenders take turns in each round, in one process (the C ones in their own), and are timed in CPU time: the machine may be
shared. Figures are medians over the rounds, a bar is judged by the median of the ratios within a round. Other parsers are
used the way that is best for them: one parser for all responses where it allows that, and only the callbacks that are needed.

Environment: PICOHTTPPARSER, a folder with picohttpparser.c and .h. A contender that is not installed is left out and said so.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import contextlib
import functools
import http.client
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine import _fastparse  # noqa: E402
from engine._fastparse import Event, ResponseParser  # noqa: E402

Run = Callable[[int], None]  # parses every message of a sample so many times


def filler(fields: int, size: int) -> bytes:
    return b"".join(b"x-amz-meta-%03d: %s\r\n" % (i, b"v" * size) for i in range(fields))


class Sample(NamedTuple):
    stream: list[bytes]  # one request's messages, one a feed
    loops: int


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
XML = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>TemporaryRedirect</Code><Message>Please re-send this request to the'
    b" specified temporary endpoint. Continue to use the original request endpoint for future requests.</Message><Endpoint>"
    b"bucket.s3-us-west-2.amazonaws.com</Endpoint><Bucket>bucket</Bucket></Error>"
)
ID_2 = b"x-amz-id-2: eftixk72aD6Ap51TnqcoF8eFidJG9Z/2mkiDFu8yU9AS1ed4OpIszj7UDNEHGran+eqihLvPfM=\r\n"
COMMON = b"x-amz-request-id: 318BC8BC148832E5\r\nDate: Mon, 28 Oct 2024 22:32:00 GMT\r\nServer: AmazonS3\r\n"
PUT = (
    b"HTTP/1.1 200 OK\r\n" + ID_2 + COMMON + b"x-amz-version-id: 43jfkodU8493jnFJD9fjj3HHNVfdsQUI\r\n"
    b'x-amz-server-side-encryption: AES256\r\nETag: "1b2cf535f27731c974343645a3985328"\r\n'
    b"x-amz-checksum-crc64nvme: jC+ERDbtVCM=\r\nx-amz-checksum-type: FULL_OBJECT\r\nContent-Length: 0\r\n\r\n"
)
REDIRECT = (
    b"HTTP/1.1 307 Temporary Redirect\r\nx-amz-bucket-region: us-west-2\r\n"
    + ID_2
    + COMMON
    + b"Location: https://bucket.s3-us-west-2.amazonaws.com/key\r\nContent-Type: application/xml\r\n"
    + b"Content-Length: %d\r\n\r\n%s" % (len(XML), XML)
)
LENGTH_0 = b"Content-Length: 0\r\n\r\n"
SAMPLES = {
    # The last message ends the exchange: an interim answer alone never does.
    "100 Continue": Sample([CONTINUE] * 15 + [b"HTTP/1.1 204 No Content\r\n\r\n"], 400),
    "PUT 200": Sample([PUT], 4000),
    "307": Sample([REDIRECT], 4000),
    "4 KiB": Sample([b"HTTP/1.1 200 OK\r\n" + filler(19, 191) + LENGTH_0], 2000),
    "100 fields": Sample([b"HTTP/1.1 200 OK\r\n" + filler(99, 12) + LENGTH_0], 1000),
}


# --- contenders ----------------------------------------------------------------------------------------------------------


def ours(sample: Sample) -> Run:
    parser = ResponseParser()
    expect, feed, stream = parser.expect, parser.feed, sample.stream

    def run(loops: int) -> None:
        for _ in range(loops):
            expect("PUT")
            for data in stream:
                feed(data)

    run(1)
    assert parser.response is not None
    assert not parser.armed
    return run


def ours_dict(sample: Sample) -> Run:
    parser = ResponseParser()
    expect, feed, stream = parser.expect, parser.feed, sample.stream

    def run(loops: int) -> None:
        for _ in range(loops):
            expect("PUT")
            for data in stream:
                feed(data)
                response = parser.response
                if response is not None:
                    response.headers()

    return run


def ours_halves(sample: Sample) -> Run:
    """Each message in two reads."""
    return ours(Sample([part for m in sample.stream for part in (m[: len(m) // 2], m[len(m) // 2 :])], sample.loops))


def from_cython(sample: Sample) -> Run:
    feed_loop = compiled_feed_loop()
    parser = ResponseParser()
    feed_loop.run(parser, sample.stream, 1)
    assert parser.response is not None
    assert not parser.armed
    return lambda loops: feed_loop.run(parser, sample.stream, loops)


class OneCallback:
    """Learns what a caller cannot do without: the status, and whether the connection persists."""

    parser: Any

    def on_message_complete(self) -> None:
        self.status = self.parser.get_status_code()
        self.keep_alive = self.parser.should_keep_alive()


class HeaderList(OneCallback):
    def on_message_begin(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))


class HeaderDict(OneCallback):
    def on_message_begin(self) -> None:
        self.fields: dict[str, str] = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        self.fields[key] = f"{self.fields[key]}, {text}" if key in self.fields else text


def httptools_with(protocol: type) -> Callable[[Sample], Run]:
    def contender(sample: Sample) -> Run:
        import httptools

        receiver = protocol()
        receiver.parser = httptools.HttpResponseParser(receiver)
        feed, stream = receiver.parser.feed_data, sample.stream

        def run(loops: int) -> None:
            for _ in range(loops):
                for data in stream:
                    feed(data)

        return run

    return contender


def httptools_new(sample: Sample) -> Run:
    """A parser for each message, as a client with a protocol object for each response has it."""
    import httptools

    def run(loops: int) -> None:
        for _ in range(loops):
            for data in sample.stream:
                receiver = OneCallback()
                receiver.parser = httptools.HttpResponseParser(receiver)
                receiver.parser.feed_data(data)

    return run


@functools.cache
def idle_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    atexit.register(loop.close)
    return loop


def aiohttp_parser(sample: Sample) -> Run:
    from aiohttp._http_parser import HttpResponseParser
    from aiohttp.base_protocol import BaseProtocol

    loop = idle_loop()
    parser = HttpResponseParser(BaseProtocol(loop), loop, 2**16)

    def run(loops: int) -> None:
        for _ in range(loops):
            for data in sample.stream:
                parser.feed_data(data)

    return run


class Pipe:
    """What http.client takes for a socket."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.data)


def http_client(sample: Sample) -> Run:
    if sample.stream[0] is CONTINUE:
        raise LookupError("http.client skips it")
    http.client._MAXHEADERS = 256  # type: ignore[attr-defined]  # its 100 count the empty line

    def run(loops: int) -> None:
        for _ in range(loops):
            for data in sample.stream:
                response = http.client.HTTPResponse(Pipe(data), method="PUT")  # type: ignore[arg-type]
                response.begin()
                response.read()

    return run


def h11_connection(sample: Sample) -> Run:
    import h11

    def run(loops: int) -> None:
        for _ in range(loops):
            connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 17)
            connection.send(h11.Request(method="PUT", target="/", headers=[("Host", "h"), ("Expect", "100-continue")]))
            for data in sample.stream:
                connection.receive_data(data)
                while (event := connection.next_event()) is not h11.NEED_DATA:
                    if isinstance(event, h11.EndOfMessage):
                        break

    return run


class CompiledOnce:
    """What is compiled for this benchmark, in a folder that goes away with the process."""

    folder = tempfile.TemporaryDirectory(prefix="micro-parse-")
    feed_loop: Any = None
    scan_loop: Path | None = None


def compiled_feed_loop() -> Any:
    if CompiledOnce.feed_loop is None:
        from Cython.Build import cythonize
        from setuptools import Distribution, Extension

        folder = Path(CompiledOnce.folder.name)
        extension = Extension(
            "feed_loop",
            [str(ROOT / "bench/peers/feed_loop.pyx")],
            include_dirs=[str(ROOT / "engine")],
            extra_compile_args=["-O3"],
        )
        modules = cythonize([extension], include_path=[str(ROOT)], build_dir=str(folder), quiet=True, language_level=3)
        build = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
        build.build_lib = build.build_temp = str(folder)
        build.ensure_finalized()
        with contextlib.redirect_stdout(sys.stderr):
            build.run()
        spec = importlib.util.spec_from_file_location("feed_loop", next(folder.glob("feed_loop*.so")))
        assert spec is not None
        assert spec.loader is not None
        CompiledOnce.feed_loop = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(CompiledOnce.feed_loop)
    return CompiledOnce.feed_loop


def compiled_scan_loop() -> Path:
    if CompiledOnce.scan_loop is None:
        target = Path(CompiledOnce.folder.name) / "scan_loop"
        command = ["cc", "-O3", "-fno-tree-vectorize", "-w", "-o", str(target), str(ROOT / "bench/peers/scan_loop.c")]
        pico = os.environ.get("PICOHTTPPARSER")
        if pico:
            # With what its own documentation recommends for x86-64.
            command += ["-DWITH_PICO", f"-I{pico}", f"{pico}/picohttpparser.c"]
            command += ["-msse4.2"] if platform.machine() == "x86_64" else []
        subprocess.run(command, check=True)
        CompiledOnce.scan_loop = target
    return CompiledOnce.scan_loop


def bare_scan(scanner: str) -> Callable[[Sample], Callable[[int], float]]:
    """Unlike the others it returns its own time, in ns a message: it runs in a process of its own."""

    def contender(sample: Sample) -> Callable[[int], float]:
        if scanner == "pico" and not os.environ.get("PICOHTTPPARSER"):
            raise LookupError("PICOHTTPPARSER is not set")
        if scanner in ("baseline", "ssse3", "avx2", "avx512", "neon"):
            try:
                _fastparse._use_instruction_set(scanner)
            except ValueError:
                raise LookupError("not in this processor") from None
            finally:
                _fastparse._use_instruction_set("")
        loop = compiled_scan_loop()
        path = Path(CompiledOnce.folder.name) / f"{abs(hash(sample.stream[0]))}.bin"
        path.write_bytes(sample.stream[0])

        def run(loops: int) -> float:
            command = [str(loop), scanner, str(path), str(loops * 25)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            return float(done.stdout)

        return run

    return contender


SCANS = {
    "bare scan, picohttpparser": bare_scan("pico"),
    "bare scan, plain": bare_scan("baseline"),
    "bare scan, SSSE3": bare_scan("ssse3"),
    "bare scan, AVX2": bare_scan("avx2"),
    "bare scan, AVX-512": bare_scan("avx512"),
    "bare scan, NEON": bare_scan("neon"),
}
PARSERS: dict[str, tuple[Callable[[Sample], Run], float]] = {  # …and the share of the sample's loops it is given
    "expect + feed from Cython": (from_cython, 2),
    "expect + feed": (ours, 2),
    "expect + feed, in two reads": (ours_halves, 1),
    "expect + feed + dict": (ours_dict, 1),
    "httptools, one callback": (httptools_with(OneCallback), 1),
    "httptools, one callback, new parser": (httptools_new, 1),
    "httptools, header list": (httptools_with(HeaderList), 0.5),
    "httptools, dict": (httptools_with(HeaderDict), 0.5),
    "aiohttp's C parser": (aiohttp_parser, 0.25),
    "http.client": (http_client, 0.03),
    "h11": (h11_connection, 0.03),
}


# --- measuring -----------------------------------------------------------------------------------------------------------

Times = dict[str, dict[str, list[float]]]  # contender → sample → ns a message, one for each round


def measure(rounds: int, scale: float) -> tuple[Times, list[str]]:
    prepared: list[tuple[str, str, Any, int, int]] = []
    left_out: dict[str, str] = {}
    for sample_name, sample in SAMPLES.items():
        for name, (contender, share) in PARSERS.items():
            try:
                run = contender(sample)
                run(1)
            except (ImportError, LookupError) as error:
                left_out[f"{name} ({sample_name})"] = str(error)
                continue
            prepared.append((name, sample_name, run, max(1, int(sample.loops * share * scale)), len(sample.stream)))
        for name, scan in SCANS.items():
            try:
                run = scan(sample)
                run(1)
            except (LookupError, OSError) as error:
                left_out[name] = str(error)
                continue
            prepared.append((name, sample_name, run, max(1, int(sample.loops * scale)), 0))
    times: Times = {}
    for _ in range(rounds):
        for name, sample_name, run, loops, messages in prepared:
            start = time.process_time_ns()
            own = run(loops)
            elapsed = time.process_time_ns() - start
            ns = elapsed / loops / messages if messages else own
            times.setdefault(name, {}).setdefault(sample_name, []).append(ns)
    return times, [f"{name}: {why}" for name, why in left_out.items()]


def byte_by_byte_ms() -> float:
    """60 KiB of head, one byte a feed."""
    head = b"HTTP/1.1 200 OK\r\n" + filler(240, 236) + LENGTH_0
    assert 60_000 < len(head) < 65_000
    pieces = [head[i : i + 1] for i in range(len(head))]
    parser = ResponseParser()
    parser.expect("PUT")
    start = time.process_time()
    for piece in pieces:
        events = parser.feed(piece)
    elapsed = time.process_time() - start
    assert events & Event.DONE
    return elapsed * 1000


def blocks_grown(answers: int) -> int:
    run = ours(SAMPLES["307"])
    run(100)
    before = sys.getallocatedblocks()
    run(answers)
    return sys.getallocatedblocks() - before


# --- judging -------------------------------------------------------------------------------------------------------------


class Bar(NamedTuple):
    what: str
    asked: str
    reached: str
    holds: bool


def ratios(times: Times, slow: str, fast: str) -> dict[str, float]:
    """slow ÷ fast for each sample: median over the rounds of the ratio within a round"""
    both = set(times.get(slow, ())) & set(times.get(fast, ()))
    return {
        s: statistics.median(a / b for a, b in zip(times[slow][s], times[fast][s], strict=True))
        for s in SAMPLES
        if s in both
    }


ALL = tuple(SAMPLES)
WITH_FIELDS = ALL[1:]
NAMES = {ALL: "every sample", WITH_FIELDS: "every sample with fields"}


def ratio_bar(times: Times, sign: str, asked: float, slow: str, fast: str, samples: tuple[str, ...]) -> Bar | None:
    found = {s: r for s, r in ratios(times, slow, fast).items() if s in samples}
    if not found:
        return None
    low, high = min(found.values()), max(found.values())
    holds = low >= asked if sign == "≥" else high <= asked
    where = NAMES.get(samples) or ", ".join(samples)
    return Bar(f"{slow} ÷ {fast}, {where}", f"{sign} {asked:g}", f"{low:.2f} to {high:.2f}", holds)


def at_least(times: Times, asked: float, slow: str, samples: tuple[str, ...] = WITH_FIELDS) -> Bar | None:
    return ratio_bar(times, "≥", asked, slow, "expect + feed", samples)


def at_most(times: Times, asked: float, slow: str, fast: str, samples: tuple[str, ...] = ALL) -> Bar | None:
    return ratio_bar(times, "≤", asked, slow, fast, samples)


def judge(times: Times, rounds: int, answers: int) -> list[Bar]:
    slow_feed = statistics.median(byte_by_byte_ms() for _ in range(rounds))
    grown = blocks_grown(answers)
    bars = [
        at_least(times, 2.2, "httptools, one callback", ALL),
        at_least(times, 2.2, "httptools, one callback, new parser", ALL),
        at_least(times, 5, "httptools, header list"),
        at_least(times, 12, "aiohttp's C parser"),
        at_least(times, 80, "http.client"),
        at_least(times, 80, "h11"),
        at_most(times, 0.30, "expect + feed + dict", "httptools, dict", WITH_FIELDS),
        at_most(times, 0.40, "expect + feed", "httptools, one callback", ("100 Continue",)),
        at_most(times, 2.2, "expect + feed, in two reads", "expect + feed"),
        Bar("60 KiB of head byte by byte", "≤ 30 ms", f"{slow_feed:.1f} ms", slow_feed <= 30),
        Bar(f"memory blocks grown over {answers:,} answers", "< 50", str(grown), grown < 50),
        at_most(times, 1.0, "bare scan, AVX2", "bare scan, SSSE3", WITH_FIELDS),
    ]
    return [bar for bar in bars if bar]


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def environment() -> dict[str, str]:
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True).stdout.split("\n")[0]
    return {
        "commit": commit.stdout.strip(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": cpu,
        "instruction_set": _fastparse.INSTRUCTION_SET,
        "python": platform.python_version(),
        "compiler": compiler,
        **{package: version_of(package) for package in ("httptools", "aiohttp", "h11", "cython")},
    }


def print_ladder(times: Times) -> None:
    print(f"{'ns a message':38}" + "".join(f"{name:>14}" for name in SAMPLES))
    for name in [*SCANS, *PARSERS]:
        if name in times:
            cells = [statistics.median(times[name][s]) if s in times[name] else None for s in SAMPLES]
            print(f"{name:38}" + "".join(f"{'' if c is None else format(c, '.0f'):>14}" for c in cells))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--scale", type=float, default=1.0, help="of the loops in a round")
    options.add_argument("--answers", type=int, default=100_000, help="for the memory bar")
    options.add_argument("--json", type=Path, help="write the raw times there")
    options.add_argument("--quick", action="store_true", help="one round of next to nothing: does it run at all")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.rounds, chosen.scale, chosen.answers = 1, 0.002, 10
    times, left_out = measure(chosen.rounds, chosen.scale)
    bars = judge(times, min(chosen.rounds, 5), chosen.answers)
    print_ladder(times)
    print()
    for bar in bars:
        print(f"{'holds' if bar.holds else 'FAILS':6}{bar.what:72}{bar.asked:>10}{bar.reached:>18}")
    for note in left_out:
        print(f"left out: {note}")
    if chosen.json:
        result = {
            "environment": environment(),
            "bars": [bar._asdict() for bar in bars],
            "ns": times,
            "left_out": left_out,
        }
        chosen.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if chosen.quick or all(bar.holds for bar in bars) else 1


with contextlib.suppress(ImportError):
    import pytest

    @pytest.mark.parametrize("sample", SAMPLES)
    @pytest.mark.parametrize("contender", PARSERS)
    def test_parsing(benchmark: Any, contender: str, sample: str) -> None:
        try:
            run = PARSERS[contender][0](SAMPLES[sample])
        except (ImportError, LookupError) as error:
            pytest.skip(str(error))
        benchmark.extra_info["messages"] = len(SAMPLES[sample].stream)
        benchmark.pedantic(run, args=(20,), rounds=20, warmup_rounds=1)


if __name__ == "__main__":
    sys.exit(main())
