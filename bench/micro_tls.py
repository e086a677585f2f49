"""Encrypted bodies against what cipher and kernel charge, and beside other clients: one sink, in turns, medians and ratios.

    python bench/micro_tls.py [--rounds 7] [--quick] [--json FILE] [--only CASE] [--seconds 100]

The limit is a C program: pread, AES-128-GCM by EVP in records of 16 KiB, one send for each 256 KiB, with the OpenSSL of this
machine; the interpreter's may be another (both are in the JSON), and clients that bring one of their own say so in the notes.
Network namespace, CPUs and the caution about shared machines are those of `micro_bodysend.py`. Needs a C compiler, OpenSSL's
headers, trustme, and half a GiB of page cache; a client that is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import micro_bodysend
import trustme
from micro_bodysend import FOREIGN_MAX, GIB, HERE, enter_namespace, machine

Row = dict[str, Any]
PEERS = ("uvloop", "aiohttp", "pycurl", "awscrt", "obstore")
RECONNECTS = 300


class Bench(micro_bodysend.Bench):
    def __init__(self, directory: Path, size: int) -> None:
        self.directory, self.size = directory, size
        for name in ("tls_sink", "tls_limit"):
            source = HERE / "peers" / f"{name}.c"
            command = ["cc", "-O2", "-pthread", str(source), "-o", str(directory / name), "-lssl", "-lcrypto"]
            subprocess.run(command, check=True)
        authority = trustme.CA()
        self.bundle = directory / "ca.pem"
        authority.cert_pem.write_to_path(str(self.bundle))
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(directory / "server.pem"))
        block = os.urandom(min(size, 16 << 20))
        with open(directory / "body", "wb") as file:
            for _number in range(size // len(block)):
                file.write(block)
        command = [str(directory / "tls_sink"), str(directory / "server.pem"), "1"]
        self.sink = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.sink.stdout
        self.port = self.sink.stdout.readline().decode().strip()

    def close(self) -> None:
        assert self.sink.stdin
        self.sink.stdin.close()
        self.sink.wait()

    def run(self, who: str, *, pinned: bool = True, count: int = 0) -> dict[str, float]:
        body, cpu = str(self.directory / "body"), ["0"] if pinned else []
        if who == "C":
            command = [str(self.directory / "tls_limit"), self.port, body, str(self.size), *cpu]
        else:
            case = [sys.executable, str(HERE / "peers" / "tls_case.py")]
            command = [*case, who, self.port, body, str(count or self.size), str(self.bundle), *cpu]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent), "ENGINE_TLS": "ssl" if who == "engine-ssl" else ""}
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
        result: dict[str, float] = json.loads(done.stdout)
        return result

    def taken(self, who: tuple[str, ...], rounds: int, limit_s: float, **options: Any) -> list[dict[str, Any]]:
        """Everybody once a round, in an order that turns, until there are `rounds` that nobody else disturbed, or the time is
        up: then the `rounds` that were disturbed least."""
        began, taken = time.monotonic(), []
        while not taken or time.monotonic() - began < limit_s:
            (machine_s, own_s), start = self.cpu_seconds(), time.monotonic()
            turn = len(taken) % len(who)
            row: dict[str, Any] = {name: self.run(name, **options) for name in who[turn:] + who[:turn]}
            machine_after_s, own_after_s = self.cpu_seconds()
            foreign_s = (machine_after_s - machine_s) - (own_after_s - own_s)
            row["foreign"] = round(foreign_s / ((time.monotonic() - start) * (os.cpu_count() or 1)), 3)
            taken.append(row)
            if sum(row["foreign"] <= FOREIGN_MAX for row in taken) == rounds:
                break
        return sorted(taken, key=lambda row: float(row["foreign"]))[:rounds]


def ratio(rounds: list[dict[str, Any]], of: str, to: str, what: str) -> float:
    return statistics.median(one[of][what] / one[to][what] for one in rounds)


def described(bench: Bench, taken: list[dict[str, Any]], name: str) -> str:
    gib_s = bench.size / GIB / statistics.median(one[name]["seconds"] for one in taken)
    cpu = statistics.median(one[name]["cpu"] for one in taken) * GIB / bench.size
    return f"{gib_s:.2f} GiB/s, {cpu:.2f} CPU-s/GiB"


def limit(bench: Bench, rounds: int, limit_s: float) -> list[Row]:
    taken = bench.taken(("engine", "C"), rounds, limit_s)
    speed, cost = ratio(taken, "C", "engine", "seconds"), ratio(taken, "engine", "C", "cpu")
    return [
        {
            "case": "body against C",
            "result": f"{described(bench, taken, 'engine')}; C {described(bench, taken, 'C')}: {speed:.2f}, {cost:.2f}",
            "asked": ">= 0.85, <= 1.20",
            "reached": speed >= 0.85 and cost <= 1.20,
            "rounds": taken,
        }
    ]


def peers(bench: Bench, rounds: int, limit_s: float) -> list[Row]:
    there = tuple(name for name in PEERS if importlib.util.find_spec(name) is not None)
    taken = bench.taken(("engine", "engine-ssl", *there), rounds, limit_s)
    rows: list[Row] = [{"case": "beside others", "result": described(bench, taken, "engine"), "rounds": taken}]
    for name in ("engine-ssl", *there):
        faster, cheaper = ratio(taken, name, "engine", "seconds"), ratio(taken, name, "engine", "cpu")
        text = f"{described(bench, taken, name)}; engine: {faster:.2f} times the speed, 1/{cheaper:.2f} of the CPU time"
        rows.append({"case": f"beside {name}", "result": text, "asked": "both > 1"})
        rows[-1]["reached"] = faster > 1 and cheaper > 1
    return rows


def loop_kept(bench: Bench, rounds: int, limit_s: float) -> list[Row]:
    taken = bench.taken(("engine", "busy", "ticker"), rounds, limit_s, pinned=False)
    kept = ratio(taken, "engine", "busy", "seconds")
    p99 = statistics.median(one["ticker"]["p99_ms"] for one in taken)
    return [
        {
            "case": "body beside a busy Python thread",
            "result": f"{kept:.2f} of the throughput without it",
            "asked": ">= 0.5",
            "reached": kept >= 0.5,
            "rounds": taken,
        },
        {
            "case": "1 ms ticker beside a body",
            "result": f"p99 {p99:.2f} ms late, worst {max(one['ticker']['max_ms'] for one in taken):.1f} ms",
            "asked": "p99 <= 4 ms",
            "reached": p99 <= 4,
        },
    ]


def connections(bench: Bench, rounds: int, limit_s: float) -> list[Row]:
    who = ("reconnect", "uvloop-reconnect")
    taken = bench.taken(who, rounds, limit_s, count=RECONNECTS)
    faster = ratio(taken, "uvloop-reconnect", "reconnect", "seconds")
    each = {name: statistics.median(RECONNECTS / one[name]["seconds"] for one in taken) for name in who}
    return [
        {
            "case": "connections with a request each",
            "result": f"{each['reconnect']:.0f}/s, ssl over uvloop {each['uvloop-reconnect']:.0f}/s: {faster:.2f}",
            "asked": ">= 1",
            "reached": faster >= 1,
            "rounds": taken,
        }
    ]


CASES = {"limit": limit, "peers": peers, "loop": loop_kept, "connections": connections}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=100, help="of each case at most")
    parser.add_argument("--json", type=Path, help="write every measurement there")
    parser.add_argument("--quick", action="store_true", help="16 MiB, one round: does it run at all")
    parser.add_argument("--only", default="", help="substring of the case to run: limit, peers, loop, connections")
    parser.add_argument("--mib", type=int, default=2048, help="of the body")
    arguments = parser.parse_args()
    about = machine(enter_namespace())
    c_openssl = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=False).stdout.strip()
    about |= {"openssl": ssl.OPENSSL_VERSION, "openssl_of_c": c_openssl}
    print(about)
    directory = Path(tempfile.mkdtemp(prefix="micro-tls-"))
    rows: list[Row] = []
    try:
        bench = Bench(directory, (16 if arguments.quick else arguments.mib) << 20)
        for name, case in CASES.items():
            if arguments.only in name:
                for row in case(bench, 1 if arguments.quick else arguments.rounds, arguments.seconds):
                    rows.append(row)
                    mark = {True: "ok  ", False: "MISS", None: "    "}[row.get("reached")]
                    foreign = max((float(one["foreign"]) for one in row.get("rounds", ())), default=0)
                    note = f" (others took up to {foreign:.0%} of the machine)" if foreign > FOREIGN_MAX else ""
                    print(f"{mark} {row['case']}: {row['result']}{note}", flush=True)
        bench.close()
    finally:
        shutil.rmtree(directory)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": about, "cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
