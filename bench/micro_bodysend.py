"""The native sender against what the kernel charges: bare C loops to the same sink, in turns, medians and ratios.

    python bench/micro_bodysend.py [--rounds 7] [--quick] [--json FILE] [--only CASE] [--nice N]

Runs in a network namespace of its own with reno (needs root, or user namespaces; else it says that it did not): with the
loopback's BBR one flow is paced to a tenth and the ranking inverts. Needs a C compiler, two cores, and 4 GiB of page cache. The
sink keeps CPU 1, the senders of the throughput cases CPU 0; ticker and busy thread run unpinned, as programs do.

The machine may be shared: a round during which other processes took more than 5 % of it is made again (at most 4 times as many
rounds as asked for), and the JSON says for every measurement how much they took. Root can keep them away with --nice -20.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
GIB = 1 << 30
FOREIGN_MAX = 0.05  # of the machine's CPU time
TRIES = 4  # rounds made for each that is asked for
INSIDE = "MICRO_BODYSEND_NAMESPACE"  # set in the process that runs inside the namespace

Row = dict[str, Any]


def enter_namespace() -> str:
    """Start again inside a fresh network namespace; returns the congestion control that is in force."""
    setting = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    if INSIDE not in os.environ:
        prefix = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            os.environ[INSIDE] = "1"
            os.execvp("unshare", [*prefix, sys.executable, *sys.argv])
        print("no network namespace to be had: this runs on the host's loopback", file=sys.stderr)
        return setting.read_text().strip()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    setting.write_text("reno")
    return setting.read_text().strip()


class Bench:
    def __init__(self, directory: Path, rounds: int, gib: int) -> None:
        self.directory = directory
        self.rounds = rounds
        self.gib = gib
        for name in ("sink", "limits"):
            source = HERE / "peers" / f"{name}.c"
            subprocess.run(["cc", "-O2", "-pthread", str(source), "-o", str(directory / name)], check=True)
        self.file = directory / "body"
        with open(self.file, "wb") as file:
            block = os.urandom(min(gib, 16 << 20))
            for _ in range(4 * gib // len(block)):
                file.write(block)
        os.sync()
        self.sink = subprocess.Popen([str(directory / "sink"), "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.sink.stdout
        self.port = self.sink.stdout.readline().decode().strip()

    def close(self) -> None:
        assert self.sink.stdin
        self.sink.stdin.close()
        self.sink.wait()

    def run(self, who: str, kind: str, size: int, connections: int, *cpu: str) -> dict[str, float]:
        program = (
            [str(self.directory / "limits")] if who == "c" else [sys.executable, str(HERE / "peers" / "body_case.py")]
        )
        command = [*program, kind, self.port, str(self.file), str(size), str(connections), *cpu]
        filler = None
        if kind == "splice":
            fill = [str(self.directory / "limits"), "fill", "-", "-", str(size), "1", "0"]
            filler = subprocess.Popen(fill, stdout=subprocess.PIPE)
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        source = filler.stdout if filler else None
        done = subprocess.run(command, stdin=source, stdout=subprocess.PIPE, check=True, env=environment)
        if filler:
            filler.communicate()
        result: dict[str, float] = json.loads(done.stdout)
        return result

    def cpu_seconds(self) -> tuple[float, float]:
        """CPU time that the whole machine spent since boot, and that our processes spent."""
        tick = os.sysconf("SC_CLK_TCK")
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        sink = Path(f"/proc/{self.sink.pid}/stat").read_text().rsplit(")", 1)[1].split()
        own = (int(sink[11]) + int(sink[12])) / tick + sum(os.times()[:4])
        return (sum(fields) - fields[3] - fields[4]) / tick, own  # without idle and iowait

    def measured(self, take: Callable[[int], Row]) -> list[Row]:
        """Rounds of `take`, those in which others used the machine made again."""
        good: list[Row] = []
        disturbed: list[Row] = []
        while len(good) < self.rounds and len(good) + len(disturbed) < TRIES * self.rounds:
            (machine, own), start = self.cpu_seconds(), time.monotonic()
            row = take(len(good) + len(disturbed))
            machine_after, own_after = self.cpu_seconds()
            foreign = (machine_after - machine) - (own_after - own)
            row["foreign"] = round(foreign / ((time.monotonic() - start) * (os.cpu_count() or 1)), 3)
            (good if row["foreign"] <= FOREIGN_MAX else disturbed).append(row)
        disturbed.sort(key=lambda row: float(row["foreign"]))
        return good + disturbed[: self.rounds - len(good)]

    def against_c(self, name: str, kind: str, size: int, connections: int, asked: tuple[float, float | None]) -> Row:
        def pair(index: int) -> Row:
            order = ("ours", "c") if index % 2 else ("c", "ours")
            return {who: self.run(who, kind, size, connections, "0") for who in order}

        rounds = self.measured(pair)
        total_gib = size * connections / GIB
        speed = statistics.median(pair["c"]["seconds"] / pair["ours"]["seconds"] for pair in rounds)
        cost = statistics.median(pair["ours"]["cpu"] / pair["c"]["cpu"] for pair in rounds)
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
        return {"case": name, "result": text, "asked": wanted, "reached": reached, "rounds": rounds}

    def ticker(self, connections: int, bar_ms: float) -> Row:
        size = min(4 * self.gib, 16 * self.gib // connections)
        rounds = self.measured(lambda index: dict(self.run("ours", "ticker", size, connections)))
        p99 = statistics.median(row["p99_ms"] for row in rounds)
        worst = max(row["max_ms"] for row in rounds)
        return {
            "case": f"1 ms ticker beside {connections} bodies",
            "result": f"p99 {p99:.3f} ms, worst {worst:.2f} ms",
            "asked": f"<= {bar_ms} ms",
            "reached": p99 <= bar_ms,
            "rounds": rounds,
        }

    def busy(self) -> Row:
        rounds = self.measured(
            lambda index: {kind: self.run("ours", kind, 4 * self.gib, 1) for kind in ("sendfile", "busy")}
        )
        kept = statistics.median(pair["sendfile"]["seconds"] / pair["busy"]["seconds"] for pair in rounds)
        return {
            "case": "file beside a busy Python thread",
            "result": f"{kept:.3f} of the throughput without it, on {os.cpu_count()} cores for 3 busy threads",
            "asked": ">= 0.6",
            "reached": kept >= 0.6,
            "rounds": rounds,
        }

    def memory(self) -> Row:
        rounds = [self.run("ours", "memory", 4 * self.gib, 1)]
        growth = rounds[0]["growth_bytes"]
        return {
            "case": "peak memory growth for the file",
            "result": f"{growth / 2**20:.2f} MiB",
            "asked": "<= 8 MiB",
            "reached": growth <= 8 << 20,
            "rounds": rounds,
        }

    def refused(self, times: int) -> Row:
        row = self.run("ours", "refused", times, 1)
        return {
            "case": f"403 and reset in mid-body, {times} times",
            "result": f"{row['lost']} answers lost; bytes after the answer: median {row['after_median_bytes'] / 1024:.0f} KiB, "
            f"p99 {row['after_p99_bytes'] / 1024:.0f} KiB",
            "asked": "0; <= 512 KiB",
            "reached": row["lost"] == 0 and row["after_median_bytes"] <= 512 << 10,
            "rounds": [row],
        }


def machine(congestion_control: str) -> dict[str, Any]:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip(),
        "kernel": platform.release(),
        "cpu": model[0].split(":")[1].strip() if model else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "congestion_control": congestion_control,
        "namespace": INSIDE in os.environ,
        "load_before": os.getloadavg()[0],
        "nice": os.nice(0),
    }


def be_nice(increment: int) -> None:
    """For this process and its children; where sessions are scheduled as groups, for our session too."""
    with contextlib.suppress(PermissionError):  # we lead a group of processes already, most likely our own session
        os.setsid()
    os.nice(increment)
    group = Path("/proc/self/autogroup")
    if group.exists():
        group.write_text(str(increment))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write every measurement there")
    parser.add_argument("--quick", action="store_true", help="a 256th of the bytes, one round: does it run at all")
    parser.add_argument("--only", default="", help="substring of the case names to run")
    parser.add_argument("--nice", type=int, default=0, help="of all processes measured, the sink too")
    arguments = parser.parse_args()
    congestion_control = enter_namespace()
    gib, rounds, times = (GIB // 256, 1, 20) if arguments.quick else (GIB, arguments.rounds, 1000)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the 4 GiB file is removed then too
    if arguments.nice:
        be_nice(arguments.nice)
    directory = Path(tempfile.mkdtemp(prefix="micro-bodysend-"))
    about = machine(congestion_control)
    print(about)
    rows: list[Row] = []
    try:
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
                rows.append(row := case(name))
                foreign = max(float(one.get("foreign", 0)) for one in row["rounds"])
                note = f" (others took up to {foreign:.0%} of the machine)" if foreign > FOREIGN_MAX else ""
                print(f"{'ok  ' if row['reached'] else 'MISS'} {row['case']}: {row['result']}{note}", flush=True)
        bench.close()
    finally:
        shutil.rmtree(directory)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": about, "cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
