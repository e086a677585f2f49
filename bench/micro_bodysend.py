"""The native sender against what the kernel charges: bare C loops to the same sink, in turns, medians and ratios.

    python bench/micro_bodysend.py [--rounds 7] [--quick] [--json FILE] [--only CASE] [--nice N]

Runs in a network namespace of its own with reno (needs root, or user namespaces; else it says that it did not): with the
loopback's BBR one flow is paced to a tenth and the ranking inverts. Needs a C compiler, two cores, and 4 GiB of page cache. The
sink keeps CPU 1, the senders of the throughput cases CPU 0; ticker and busy thread run unpinned, as programs do.

The machine may be shared: a round during which other processes took more than 5 % of it is made again (at most 4 times as many
rounds as asked for), and the JSON says for every measurement how much they took. Root can keep them away with --nice -20.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import harness, micro  # noqa: E402
from bench.harness import GIB  # noqa: E402
from bench.micro import Row, judged  # noqa: E402


class Bench:
    def __init__(self, directory: Path, rounds: int, gib: int) -> None:
        self.rounds = rounds
        self.gib = gib
        self.limits = harness.compiled("limits")
        self.file = harness.body_file(directory, 4 * gib)
        self.sink = harness.Sink("raw", cpu=1)
        self.port = str(self.sink.ports[0])

    def run(self, who: str, kind: str, size: int, connections: int, *cpu: str) -> dict[str, float]:
        case = [kind, self.port, self.file, str(size), str(connections)]
        if who == "c":
            command = [self.limits, *case, "-", "0", *cpu]
        else:
            command = [sys.executable, str(harness.PEERS / "body_case.py"), *case, *cpu]
        filler = None
        if kind == "splice":
            fill = [self.limits, "fill", "-", "-", str(size), "1", "-", "0"]
            filler = subprocess.Popen(fill, stdout=subprocess.PIPE)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        source = filler.stdout if filler else None
        done = subprocess.run(command, stdin=source, stdout=subprocess.PIPE, check=True, env=environment)
        if filler:
            filler.communicate()
        result: dict[str, float] = json.loads(done.stdout)
        if who == "c":
            result["cpu"] = result["user"] + result["system"]
        return result

    def measured(self, take: Callable[[int], Row]) -> list[Row]:
        self.sink.reset()
        return micro.undisturbed(take, self.rounds, lambda: float(self.sink.report()["cpu_s"]))

    def against_c(self, name: str, kind: str, size: int, connections: int, asked: tuple[float, float | None]) -> Row:
        def pair(index: int) -> Row:
            order = ("ours", "c") if index % 2 else ("c", "ours")
            return {who: self.run(who, kind, size, connections, "0") for who in order}

        rounds = self.measured(pair)
        total_gib = size * connections / GIB
        speed, cost = micro.ratio(rounds, "c", "ours", "seconds"), micro.ratio(rounds, "ours", "c", "cpu")
        c_speed, c_cost, our_speed, our_cost = (
            value
            for who in ("c", "ours")
            for value in (
                total_gib / statistics.median(pair[who]["seconds"] for pair in rounds),
                statistics.median(pair[who]["cpu"] for pair in rounds) / total_gib,
            )
        )
        reached = speed >= asked[0] and (asked[1] is None or cost <= asked[1])
        text = (
            f"{our_speed:.2f} GiB/s, C {c_speed:.2f}: {speed:.3f}; CPU-s/GiB {our_cost:.3f}, C {c_cost:.3f}: {cost:.3f}"
        )
        wanted = f">= {asked[0]}" + (f", <= {asked[1]}" if asked[1] else "")
        return judged(name, text, wanted, reached, rounds)

    def ticker(self, connections: int, bar_ms: float) -> Row:
        size = min(4 * self.gib, 16 * self.gib // connections)
        rounds = self.measured(lambda index: dict(self.run("ours", "ticker", size, connections)))
        p99 = statistics.median(row["p99_ms"] for row in rounds)
        worst = max(row["max_ms"] for row in rounds)
        text = f"p99 {p99:.3f} ms, worst {worst:.2f} ms"
        return judged(f"1 ms ticker beside {connections} bodies", text, f"<= {bar_ms} ms", p99 <= bar_ms, rounds)

    def busy(self) -> Row:
        rounds = self.measured(
            lambda index: {kind: self.run("ours", kind, 4 * self.gib, 1) for kind in ("sendfile", "busy")}
        )
        kept = micro.ratio(rounds, "sendfile", "busy", "seconds")
        text = f"{kept:.3f} of the throughput without it, on {os.cpu_count()} cores for 3 busy threads"
        return judged("file beside a busy Python thread", text, ">= 0.6", kept >= 0.6, rounds)

    def memory(self) -> Row:
        rounds: list[Row] = [dict(self.run("ours", "memory", 4 * self.gib, 1))]
        growth = rounds[0]["growth_bytes"]
        text = f"{growth / 2**20:.2f} MiB"
        return judged("peak memory growth for the file", text, "<= 8 MiB", growth <= 8 << 20, rounds)

    def refused(self, times: int) -> Row:
        row: Row = dict(self.run("ours", "refused", times, 1))
        text = (
            f"{row['lost']} answers lost; bytes after the answer: median {row['after_median_bytes'] / 1024:.0f} KiB, "
            f"p99 {row['after_p99_bytes'] / 1024:.0f} KiB"
        )
        reached = row["lost"] == 0 and row["after_median_bytes"] <= 512 << 10
        return judged(f"403 and reset in mid-body, {times} times", text, "0; <= 512 KiB", reached, [row])


def be_nice(increment: int) -> None:
    """For this process and its children; where sessions are scheduled as groups, for our session too."""
    with contextlib.suppress(PermissionError):  # we lead a group of processes already, most likely our own session
        os.setsid()
    os.nice(increment)
    group = Path("/proc/self/autogroup")
    if group.exists():
        group.write_text(str(increment))


def main() -> None:
    parser = micro.arguments(__doc__)
    parser.add_argument("--only", default="", help="substring of the case names to run")
    parser.add_argument("--nice", type=int, default=0, help="of all processes measured, the sink too")
    arguments = parser.parse_args()
    gib, rounds, times = (GIB // 256, 1, 20) if arguments.quick else (GIB, arguments.rounds, 1000)
    if arguments.nice:
        be_nice(arguments.nice)
    about = micro.machine()
    print(about)
    rows: list[Row] = []
    with harness.body_files() as directory:
        bench = Bench(directory, rounds, gib)
        cases = {
            "file, 1 connection": lambda name: bench.against_c(name, "sendfile", 4 * gib, 1, (0.95, 1.10)),
            "file, 16 connections": lambda name: bench.against_c(name, "sendfile", gib // 4, 16, (0.90, 1.15)),
            "memory": lambda name: bench.against_c(name, "send", gib, 1, (0.95, None)),
            "pipe": lambda name: bench.against_c(name, "splice", 2 * gib, 1, (0.90, None)),
            "ticker, 1 body": lambda name: bench.ticker(1, 0.5),
            "ticker, 16 bodies": lambda name: bench.ticker(16, 4.0),
            "busy thread": lambda name: bench.busy(),
            "memory growth": lambda name: bench.memory(),
            "refused": lambda name: bench.refused(times),
        }
        for name, case in cases.items():
            if arguments.only in name:
                rows.append(case(name))
                micro.show(rows[-1])
        bench.sink.close()
    micro.write(arguments.json, about, rows)


if __name__ == "__main__":
    main()
