"""Small PUTs on one keep-alive connection, and bodies from an async iterator: CPU time and throughput beside other clients.

    python bench/micro_smallput.py [--rounds 7] [--quick] [--json FILE]

One request after the other, each for a key of its own, to a server in C that answers as S3 does. What counts is the CPU time,
user and system, of the client's process. Client and server share one CPU: across two, waking the other one up costs several
times what all else does on a virtual machine, and what is measured is the hypervisor. "C" does the bare system calls.

"bare" leaves out what others do not do: no checksum for the engine; no look at status and ETag for pycurl. "signed" is the
whole of SigV4. The iterator's server has a CPU of its own. Network namespace and caution as in `micro_bodysend.py`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import harness, micro  # noqa: E402
from bench.micro import Row, judged  # noqa: E402

OURS = ("engine", "engine-bare", "engine-signed", "engine-signed-bare")
PEERS = {
    "aiohttp": ("aiohttp",),
    "pycurl": ("pycurl", "pycurl-bare"),
    "obstore": ("obstore", "obstore-sync"),
    "awscrt": ("awscrt",),
}
SIZE = 4096
ITEM = 1 << 20


class Bench:
    """A server on one CPU, and the clients in turns."""

    def __init__(self, rounds: int, cpu: str) -> None:
        self.rounds, self.limit = rounds, harness.compiled("put_limit")
        self.sink = subprocess.Popen([harness.compiled("put_sink"), cpu], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.sink.stdout
        self.port = self.sink.stdout.readline().decode().strip()

    def close(self) -> None:
        self.sink.communicate()  # it ends with its stdin

    def case(self, who: str, count: int, size: int) -> dict[str, float]:
        program = [self.limit] if who == "C" else [sys.executable, str(harness.PEERS / "put_case.py"), who]
        command = [*program, self.port, str(count), str(size), "0"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
        result: dict[str, float] = json.loads(done.stdout)
        return result

    def sink_cpu_s(self) -> float:
        fields = Path(f"/proc/{self.sink.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def in_turns(self, who: tuple[str, ...], count: int, size: int) -> list[Row]:
        def take(index: int) -> Row:
            turn = index % len(who)
            return {name: self.case(name, count, size) for name in who[turn:] + who[:turn]}

        return micro.undisturbed(take, self.rounds, self.sink_cpu_s)


def small_puts(rounds: int, count: int, peers: tuple[str, ...]) -> list[Row]:
    bench = Bench(rounds, "0")
    try:
        taken = bench.in_turns(("C", *OURS, *peers), count, SIZE)
    finally:
        bench.close()
    each = {
        name: {what: statistics.median(one[name][what] for one in taken) / count * 1e6 for what in ("cpu", "seconds")}
        for name in ("C", *OURS, *peers)
    }
    rows = [
        judged(
            f"{SIZE} B: {name}",
            f"{one['cpu']:.1f} µs of CPU a put, {1e6 / one['seconds']:,.0f} puts a second",
            "",
            None,
            taken if name == "C" else [],
        )
        for name, one in each.items()
    ]
    others = [name for name in peers if name != "aiohttp" and not name.endswith("-bare")]
    asked: list[tuple[str, str, float]] = [("engine", "aiohttp", 4.0)] if "aiohttp" in peers else []
    if others:
        asked.append(("engine", min(others, key=lambda name: each[name]["cpu"]), 1.2))
    for ours, peer, least in asked:
        found = micro.ratio(taken, peer, ours, "cpu")
        what = f"{found:.2f} times as many puts per CPU-second"
        rows.append(judged(f"{ours} against {peer}", what, f">= {least}", found >= least, []))
    per_second = 1e6 / each["engine-signed"]["seconds"]
    rows.append(judged("signed", f"{per_second:,.0f} puts a second", ">= 3000", per_second >= 3000, []))
    return rows


def iterator(rounds: int, mib: int) -> list[Row]:
    bench = Bench(rounds, "1")
    try:
        taken = bench.in_turns(("engine-iterator", "engine-iterator-bare", "aiohttp-iterator"), mib, ITEM)
    finally:
        bench.close()
    rows = []
    for ours in ("engine-iterator", "engine-iterator-bare"):
        speeds = [
            statistics.median(mib / 1024 / one[who]["seconds"] for one in taken) for who in (ours, "aiohttp-iterator")
        ]
        faster, cheaper = (micro.ratio(taken, "aiohttp-iterator", ours, what) for what in ("seconds", "cpu"))
        what = f"{speeds[0]:.2f} GiB/s, {speeds[1]:.2f} GiB/s: {faster:.2f}; per CPU-second {cheaper:.2f}"
        rows.append(judged(f"1 MiB items: {ours} against aiohttp", what, ">= 3", faster >= 3, taken))
    return rows


def main() -> None:
    arguments = micro.arguments(__doc__).parse_args()
    about = micro.machine()
    there = [name for name in PEERS if importlib.util.find_spec(name)]
    about["versions"] = {name: version(name) for name in ("uvloop", *there)}
    rounds, count, mib = (1, 200, 16) if arguments.quick else (arguments.rounds, 5_000, 1024)
    rows = small_puts(rounds, count, tuple(who for name in there for who in PEERS[name]))
    if "aiohttp" in there:
        rows += iterator(rounds, mib)
    for row in rows:
        micro.show(row)
    micro.write(arguments.json, about, rows)


if __name__ == "__main__":
    main()
