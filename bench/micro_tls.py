"""Encrypted bodies against what cipher and kernel charge, and beside other clients: one sink, in turns, medians and ratios.

    python bench/micro_tls.py [--rounds 7] [--quick] [--json FILE] [--only CASE] [--seconds 100]

The limit is a C program: pread, AES-128-GCM by EVP in records of 16 KiB, one send for each 256 KiB, with the OpenSSL of this
machine; the interpreter's may be another (both are in the JSON), and clients that bring one of their own say so in the notes.
Network namespace, CPUs and the caution about shared machines are those of `micro_bodysend.py`. Needs a C compiler, OpenSSL's
headers, trustme, and half a GiB of page cache; a client that is not installed is left out.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import harness, micro  # noqa: E402
from bench.harness import GIB  # noqa: E402
from bench.micro import Row, judged, ratio  # noqa: E402

PEERS = ("uvloop", "aiohttp", "pycurl", "awscrt", "obstore")
RECONNECTS = 300


class Bench:
    def __init__(self, directory: Path, size: int) -> None:
        self.size = size
        self.limits = harness.compiled("limits", tls=True)
        certificate = harness.Certificate(directory)
        self.bundle = certificate.bundle
        self.file = harness.body_file(directory, size)
        self.sink = harness.Sink("store", "raw", pem=certificate.pem, cpu=1)

    def run(self, who: str, *, pinned: bool = True, count: int = 0) -> dict[str, float]:
        cpu = ["0"] if pinned else []
        http, raw = map(str, self.sink.ports)
        if who == "C":
            command = [self.limits, "aes-gcm", raw, self.file, str(self.size), "1", "-", "0", *cpu]
        else:
            case = [sys.executable, str(harness.PEERS / "tls_case.py")]
            command = [*case, who, http, self.file, str(count or self.size), self.bundle, *cpu]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "ENGINE_TLS": "ssl" if who == "engine-ssl" else ""}
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
        result: dict[str, float] = json.loads(done.stdout)
        if who == "C":
            result["cpu"] = result["user"] + result["system"]
        return result

    def taken(self, who: tuple[str, ...], rounds: int, limit_s: float, **options: Any) -> list[Row]:
        """Everybody once a round, in an order that turns."""

        def take(number: int) -> Row:
            turn = number % len(who)
            return {name: self.run(name, **options) for name in who[turn:] + who[:turn]}

        self.sink.reset()
        return micro.undisturbed(take, rounds, lambda: float(self.sink.report()["cpu_s"]), limit_s)


def described(bench: Bench, taken: list[Row], name: str) -> str:
    gib_s = bench.size / GIB / statistics.median(one[name]["seconds"] for one in taken)
    cpu = statistics.median(one[name]["cpu"] for one in taken) * GIB / bench.size
    return f"{gib_s:.2f} GiB/s, {cpu:.2f} CPU-s/GiB"


def limit(bench: Bench, rounds: int, limit_s: float) -> list[Row]:
    taken = bench.taken(("engine", "C"), rounds, limit_s)
    speed, cost = ratio(taken, "C", "engine", "seconds"), ratio(taken, "engine", "C", "cpu")
    text = f"{described(bench, taken, 'engine')}; C {described(bench, taken, 'C')}: {speed:.2f}, {cost:.2f}"
    return [judged("body against C", text, ">= 0.85, <= 1.20", speed >= 0.85 and cost <= 1.20, taken)]


def peers(bench: Bench, rounds: int, limit_s: float) -> list[Row]:
    there = tuple(name for name in PEERS if importlib.util.find_spec(name) is not None)
    taken = bench.taken(("engine", "engine-ssl", *there), rounds, limit_s)
    rows = [judged("beside others", described(bench, taken, "engine"), "", None, taken)]
    for name in ("engine-ssl", *there):
        faster, cheaper = ratio(taken, name, "engine", "seconds"), ratio(taken, name, "engine", "cpu")
        text = f"{described(bench, taken, name)}; engine: {faster:.2f} times the speed, 1/{cheaper:.2f} of the CPU time"
        rows.append(judged(f"beside {name}", text, "both > 1", faster > 1 and cheaper > 1, []))
    return rows


def loop_kept(bench: Bench, rounds: int, limit_s: float) -> list[Row]:
    taken = bench.taken(("engine", "busy", "ticker"), rounds, limit_s, pinned=False)
    kept = ratio(taken, "engine", "busy", "seconds")
    p99 = statistics.median(one["ticker"]["p99_ms"] for one in taken)
    late = f"p99 {p99:.2f} ms late, worst {max(one['ticker']['max_ms'] for one in taken):.1f} ms"
    beside = f"{kept:.2f} of the throughput without it"
    return [
        judged("body beside a busy Python thread", beside, ">= 0.5", kept >= 0.5, taken),
        judged("1 ms ticker beside a body", late, "p99 <= 4 ms", p99 <= 4, []),
    ]


def connections(bench: Bench, rounds: int, limit_s: float) -> list[Row]:
    who = ("reconnect", "uvloop-reconnect")
    taken = bench.taken(who, rounds, limit_s, count=RECONNECTS)
    faster = ratio(taken, "uvloop-reconnect", "reconnect", "seconds")
    each = {name: statistics.median(RECONNECTS / one[name]["seconds"] for one in taken) for name in who}
    text = f"{each['reconnect']:.0f}/s, ssl over uvloop {each['uvloop-reconnect']:.0f}/s: {faster:.2f}"
    return [judged("connections with a request each", text, ">= 1", faster >= 1, taken)]


CASES = {"limit": limit, "peers": peers, "loop": loop_kept, "connections": connections}


def main() -> None:
    parser = micro.arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=100, help="of each case at most")
    parser.add_argument("--only", default="", help="substring of the case to run: limit, peers, loop, connections")
    parser.add_argument("--mib", type=int, default=2048, help="of the body")
    arguments = parser.parse_args()
    about = micro.machine() | {"openssl_of_c": harness.openssl_of_c()}
    print(about)
    rows: list[Row] = []
    with harness.body_files() as directory:
        bench = Bench(directory, (16 if arguments.quick else arguments.mib) << 20)
        for name, case in CASES.items():
            if arguments.only in name:
                for row in case(bench, 1 if arguments.quick else arguments.rounds, arguments.seconds):
                    rows.append(row)
                    micro.show(row)
        bench.sink.close()
    micro.write(arguments.json, about, rows)


if __name__ == "__main__":
    main()
