"""What the micro_*.py share: one set of arguments, rounds that others did not disturb, bars that are judged, pytest-benchmark.

Every one of them takes --quick (does it run at all), --rounds and --json FILE, so that `make bench-micro ARGS=…` means the
same to all; those of pytest-benchmark take its options too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import harness

Row = dict[str, Any]
KEPT = harness.HERE / "results" / "benchmarks"  # pytest-benchmark's own storage: what --benchmark-compare looks at
TRIES = 4  # rounds made for each that is asked for


def arguments(doc: str | None, rounds: int = 7) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there")
    made.add_argument("--quick", action="store_true", help="one round of next to nothing: does it run at all")
    return made


def machine() -> dict[str, Any]:
    """Moves into a namespace of its own, and tells where this runs."""
    isolated = harness.enter_namespace()
    if not isolated:
        print("no network namespace to be had: this runs on the host's loopback", file=sys.stderr)
    harness.end_on_signals()
    return harness.machine() | {"network_namespace": isolated, "nice": os.nice(0)}


def undisturbed(take: Callable[[int], Row], rounds: int, own_s: Callable[[], float], limit_s: float = 1e9) -> list[Row]:
    """Rounds of `take(number)`, each with the share of the machine that others used meanwhile as "foreign".

    Goes on until `rounds` of them were disturbed by less than FOREIGN_MAX, at most TRIES times as often and `limit_s` long;
    then the least disturbed do. own_s: CPU seconds of processes that are ours, beside this one and its children.
    """
    taken: list[Row] = []
    began = time.monotonic()
    while not taken or (len(taken) < TRIES * rounds and time.monotonic() - began < limit_s):
        meter, own_before = harness.Meter(), own_s() + sum(os.times()[:4])
        row = take(len(taken))
        row["foreign"] = meter.foreign(own_s() + sum(os.times()[:4]) - own_before)
        taken.append(row)
        if sum(one["foreign"] <= harness.FOREIGN_MAX for one in taken) == rounds:
            break
    return sorted(taken, key=lambda row: float(row["foreign"]))[:rounds]


def ratio(rounds: list[Row], of: str, to: str, what: str) -> float:
    """Median of the ratios within the rounds."""
    return statistics.median(one[of][what] / one[to][what] for one in rounds)


def judged(case: str, result: str, asked: str, reached: bool | None, rounds: list[Row]) -> Row:
    return {"case": case, "result": result, "asked": asked, "reached": reached, "rounds": rounds}


def show(row: Row) -> None:
    mark = {True: "ok  ", False: "MISS", None: "    "}[row["reached"]]
    foreign = max((float(one.get("foreign", 0)) for one in row["rounds"]), default=0.0)
    note = f" (others took up to {foreign:.0%} of the machine)" if foreign > harness.FOREIGN_MAX else ""
    print(f"{mark} {row['case']}: {row['result']}{note}", flush=True)


def write(path: Path | None, about: dict[str, Any], rows: list[Row]) -> None:
    if path:
        path.write_text(json.dumps({"machine": about, "cases": rows}, indent=1) + "\n", encoding="utf-8")


class NoHostName:
    """A pytest plugin: results that are kept say which CPU and Python, not whose machine."""

    def pytest_benchmark_update_machine_info(self, config: Any, machine_info: dict[str, Any]) -> None:
        machine_info.pop("node", None)


def pytest_benchmark(file: str) -> int:
    """Run the benchmarks of `file`; --quick, --rounds and --json are put into pytest-benchmark's words, all else is handed on.

    --benchmark-compare compares with the last result that --benchmark-save or --benchmark-autosave kept in results/benchmarks.
    """
    import pytest

    asked, others = arguments(None).parse_known_args()
    words = [file, "-q", "-o", "addopts=", "-p", "no:cacheprovider", "--benchmark-only"]
    words += ["--benchmark-columns=min,median,iqr,ops", f"--benchmark-storage=file://{KEPT}"]
    words += [f"--benchmark-min-rounds={1 if asked.quick else asked.rounds}"]
    if asked.quick:
        words += ["--benchmark-max-time=0.001", "--benchmark-min-time=0.000001", "--benchmark-warmup=off"]
    if asked.json:
        words.append(f"--benchmark-json={asked.json}")
    return int(pytest.main([*words, *others], plugins=[NoHostName()]))
