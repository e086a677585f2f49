"""Small PUTs on one keep-alive connection, and bodies from an async iterator: CPU time and throughput beside other clients.

    python bench/micro_smallput.py [--rounds 7] [--quick] [--json FILE]

One request after the other, each for a key of its own, to a server in C that answers as S3 does. What counts is the CPU time,
user and system, of the client's process. Client and server share one CPU: across two, waking the other one up costs several
times what all else does on a virtual machine, and what is measured is the hypervisor. "C" does the bare system calls.

"bare" leaves out what others do not do: no checksum for the engine; no look at status and ETag for pycurl. "signed" is the
whole of SigV4. The iterator's server has a CPU of its own. Network namespace and caution as in `micro_bodysend.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import micro_bodysend
from micro_bodysend import FOREIGN_MAX, HERE, enter_namespace, machine

Row = dict[str, Any]
OURS = ("engine", "engine-bare", "engine-signed", "engine-signed-bare")
PEERS = {
    "aiohttp": ("aiohttp",),
    "pycurl": ("pycurl", "pycurl-bare"),
    "obstore": ("obstore", "obstore-sync"),
    "awscrt": ("awscrt",),
}
SIZE = 4096
ITEM = 1 << 20


class Bench(micro_bodysend.Bench):
    def __init__(self, directory: Path, rounds: int, cpu: str) -> None:
        self.directory, self.rounds = directory, rounds
        for name in ("put_sink", "put_limit"):
            source = HERE / "peers" / f"{name}.c"
            subprocess.run(["cc", "-O2", "-pthread", str(source), "-o", str(directory / name)], check=True)
        self.sink = subprocess.Popen([str(directory / "put_sink"), cpu], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.sink.stdout
        self.port = self.sink.stdout.readline().decode().strip()

    def case(self, who: str, count: int, size: int) -> dict[str, float]:
        if who == "C":
            command = [str(self.directory / "put_limit"), self.port, str(count), str(size), "0"]
        else:
            command = [sys.executable, str(HERE / "peers" / "put_case.py"), who, self.port, str(count), str(size), "0"]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
        result: dict[str, float] = json.loads(done.stdout)
        return result

    def in_turns(self, who: tuple[str, ...], count: int, size: int) -> list[Row]:
        def take(index: int) -> Row:
            turn = index % len(who)
            return {name: self.case(name, count, size) for name in who[turn:] + who[:turn]}

        return self.measured(take)


def ratio(rounds: list[Row], of: str, to: str, what: str) -> float:
    return statistics.median(one[of][what] / one[to][what] for one in rounds)


def small_puts(directory: Path, rounds: int, count: int, peers: tuple[str, ...]) -> list[Row]:
    bench = Bench(directory, rounds, "0")
    try:
        taken = bench.in_turns(("C", *OURS, *peers), count, SIZE)
    finally:
        bench.close()
    each = {
        name: {what: statistics.median(one[name][what] for one in taken) / count * 1e6 for what in ("cpu", "seconds")}
        for name in ("C", *OURS, *peers)
    }
    rows: list[Row] = [
        {
            "case": f"{SIZE} B: {name}",
            "result": f"{one['cpu']:.1f} µs of CPU a put, {1e6 / one['seconds']:,.0f} puts a second",
            "us": one,
        }
        for name, one in each.items()
    ]
    others = [name for name in peers if name != "aiohttp" and not name.endswith("-bare")]
    asked: list[tuple[str, str, float]] = [("engine", "aiohttp", 4.0)] if "aiohttp" in peers else []
    if others:
        asked.append(("engine", min(others, key=lambda name: each[name]["cpu"]), 1.2))
    for ours, peer, least in asked:
        found = ratio(taken, peer, ours, "cpu")
        rows.append(
            {
                "case": f"{ours} against {peer}",
                "result": f"{found:.2f} times as many puts per CPU-second",
                "asked": f">= {least}",
                "reached": found >= least,
            }
        )
    per_second = 1e6 / each["engine-signed"]["seconds"]
    rows.append(
        {
            "case": "signed",
            "result": f"{per_second:,.0f} puts a second",
            "asked": ">= 3000",
            "reached": per_second >= 3000,
        }
    )
    rows[0]["rounds"] = taken
    return rows


def iterator(directory: Path, rounds: int, mib: int) -> list[Row]:
    bench = Bench(directory, rounds, "1")
    try:
        taken = bench.in_turns(("engine-iterator", "engine-iterator-bare", "aiohttp-iterator"), mib, ITEM)
    finally:
        bench.close()
    rows = []
    for ours in ("engine-iterator", "engine-iterator-bare"):
        speeds = [
            statistics.median(mib / 1024 / one[who]["seconds"] for one in taken) for who in (ours, "aiohttp-iterator")
        ]
        faster, cheaper = (ratio(taken, "aiohttp-iterator", ours, what) for what in ("seconds", "cpu"))
        rows.append(
            {
                "case": f"1 MiB items: {ours} against aiohttp",
                "result": f"{speeds[0]:.2f} GiB/s, {speeds[1]:.2f} GiB/s: {faster:.2f}; per CPU-second {cheaper:.2f}",
                "asked": ">= 3",
                "reached": faster >= 3,
                "rounds": taken,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write every measurement there")
    parser.add_argument("--quick", action="store_true", help="one short round: does it run at all")
    arguments = parser.parse_args()
    about = machine(enter_namespace())
    there = [name for name in PEERS if importlib.util.find_spec(name)]
    about["versions"] = {name: version(name) for name in ("uvloop", *there)}
    rounds, count, mib = (1, 200, 16) if arguments.quick else (arguments.rounds, 5_000, 1024)
    peers = tuple(who for name in there for who in PEERS[name])
    directory = Path(tempfile.mkdtemp())
    rows: list[Row] = []
    try:
        cases: list[Callable[[], list[Row]]] = [lambda: small_puts(directory, rounds, count, peers)]
        if "aiohttp" in there:
            cases.append(lambda: iterator(directory, rounds, mib))
        for case in cases:
            for row in case():
                rows.append(row)
                mark = {True: "ok  ", False: "MISS", None: "    "}[row.get("reached")]
                print(f"{mark} {row['case']}: {row['result']}", flush=True)
    finally:
        shutil.rmtree(directory)
    foreign = max(float(one.get("foreign", 0)) for row in rows for one in row.get("rounds", ()))
    if foreign > FOREIGN_MAX:
        print(f"others took up to {foreign:.0%} of the machine", file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": about, "cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
