"""Checksum libraries side by side, and `checksum_file`.

    python bench/micro_checksums.py [--quick] [--rounds 7] [--json FILE]

Why awscrt: the only CRC64NVME on PyPI that lets the interpreter go. Put beside it whatever of the others is installed
(`pip install anycrc google-crc32c crc32c isal zlib-ng`).

Measured: GiB/s over memory in the cache, one thread, pieces of 64 KiB; how long another thread that only wants to count was
held up by one call over 256 MiB; bytes on disk; import time in a fresh interpreter. Medians of interleaved rounds. Not
measured: the network, or a file that is not in the page cache.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import harness, micro
from engine import checksums
from engine.limits import KIB, MIB

PIECE = 64 * KIB
# (algorithm, distribution, module, how to get a function of one buffer from the module)
CANDIDATES: list[tuple[str, str, str, Callable[[Any], Callable[[Any], object]]]] = [
    ("crc64nvme", "awscrt", "awscrt.checksums", lambda m: m.crc64nvme),
    ("crc64nvme", "anycrc", "anycrc", lambda m: m.Model("CRC64-NVME").calc),
    ("crc32c", "awscrt", "awscrt.checksums", lambda m: m.crc32c),
    ("crc32c", "google-crc32c", "google_crc32c", lambda m: lambda piece: m.extend(0, bytes(piece))),  # takes bytes only
    ("crc32c", "crc32c", "crc32c", lambda m: m.crc32c),
    ("crc32c", "anycrc", "anycrc", lambda m: m.Model("CRC32C").calc),
    ("crc32", "", "zlib", lambda m: m.crc32),
    ("crc32", "awscrt", "awscrt.checksums", lambda m: m.crc32),
    ("crc32", "isal", "isal.isal_zlib", lambda m: m.crc32),
    ("crc32", "zlib-ng", "zlib_ng.zlib_ng", lambda m: m.crc32),
    ("sha256", "", "hashlib", lambda m: lambda piece: m.sha256(piece)),
]


def throughput(function: Callable[[Any], object], piece: memoryview, total: int) -> float:
    """GiB/s."""
    started = time.perf_counter()
    for _ in range(total // len(piece)):
        function(piece)
    return total / (time.perf_counter() - started) / 2**30


def held_up_ms(function: Callable[[Any], object], buffer: bytes) -> float:
    """The longest gap in this thread while another computes."""
    done = threading.Event()

    def compute() -> None:
        function(buffer)
        done.set()

    thread = threading.Thread(target=compute)
    longest, last = 0.0, time.perf_counter()
    thread.start()
    while not done.is_set():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    thread.join()
    return longest * 1e3


def import_ms(module: str) -> float:
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    times = [float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(3)]
    return min(times) * 1e3


def size_kib(distribution: str) -> int:
    if not distribution:
        return 0
    files = importlib.metadata.files(distribution) or []
    return sum(path.stat().st_size for file in files if (path := file.locate()).is_file()) // KIB  # type: ignore[attr-defined]


def compare_libraries(rounds: int, size: int) -> list[dict[str, Any]]:
    rows, functions = [], []
    for algorithm, distribution, module, get in CANDIDATES:
        row: dict[str, Any] = {"algorithm": algorithm, "library": distribution or f"{module} (stdlib)"}
        rows.append(row)
        try:
            functions.append((row, get(importlib.import_module(module))))
        except ImportError:
            row["missing"] = True
            continue
        row["version"] = importlib.metadata.version(distribution) if distribution else platform.python_version()
        row["import_ms"] = round(import_ms(module), 1)
        row["disk_kib"] = size_kib(distribution)
    piece = memoryview(os.urandom(PIECE))
    rates: dict[int, list[float]] = {}
    for _ in range(rounds):
        for row, function in functions:
            rates.setdefault(id(row), []).append(throughput(function, piece, size // 8))
    large = bytes(size)
    for row, function in functions:
        row["gib_per_s"] = round(statistics.median(rates[id(row)]), 2)
        row["held_up_ms"] = round(held_up_ms(function, large), 1)
    return rows


def compare_reads(rounds: int, size: int) -> list[dict[str, Any]]:
    """`checksum_file` over a cached file, by the size of its reads."""
    sizes = [16 * KIB, 64 * KIB, 256 * KIB, 512 * KIB, MIB, 2 * MIB, 4 * MIB]
    results: dict[int, list[tuple[float, float]]] = {read: [] for read in sizes}
    with tempfile.TemporaryFile() as file:
        piece = os.urandom(MIB)
        for _ in range(size // MIB):
            file.write(piece)
        file.flush()
        for _ in range(rounds):
            for read in sizes:
                checksums.READ_BYTES = read  # type: ignore[misc]
                checksums._buffers.__dict__.clear()
                checksums.checksum_file("crc64nvme", file.fileno(), 0, 4 * MIB, lambda: False)  # touches the buffer
                wall, cpu = time.perf_counter(), time.thread_time()
                checksums.checksum_file("crc64nvme", file.fileno(), 0, size, lambda: False)
                results[read].append((time.perf_counter() - wall, time.thread_time() - cpu))
    gib = size / 2**30
    return [
        {
            "read_kib": read // KIB,
            "gib_per_s": round(gib / statistics.median(wall for wall, _cpu in times), 2),
            "cpu_s_per_gib": round(statistics.median(cpu for _wall, cpu in times) / gib, 3),
        }
        for read, times in results.items()
    ]


def main() -> None:
    asked = micro.arguments(__doc__).parse_args()
    rounds, size = (1, 8 * MIB) if asked.quick else (asked.rounds, 256 * MIB)
    libraries, reads = compare_libraries(rounds, size), compare_reads(rounds, size)
    if asked.json:
        found = {"machine": harness.machine(), "libraries": libraries, "checksum_file": reads}
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(
        f"{'algorithm':10} {'library':18} {'version':10} {'GiB/s':>7} {'held up ms':>11} {'import ms':>10} {'disk KiB':>9}"
    )
    for row in libraries:
        if "missing" in row:
            print(f"{row['algorithm']:10} {row['library']:18} not installed")
            continue
        print(
            f"{row['algorithm']:10} {row['library']:18} {row['version']:10} {row['gib_per_s']:7.2f} {row['held_up_ms']:11.1f}"
            f" {row['import_ms']:10.1f} {row['disk_kib']:9}"
        )
    print(f"\n{'checksum_file, read KiB':>23} {'GiB/s':>7} {'CPU-s/GiB':>10}")
    for row in reads:
        print(f"{row['read_kib']:23} {row['gib_per_s']:7.2f} {row['cpu_s_per_gib']:10.3f}")


if __name__ == "__main__":
    main()
