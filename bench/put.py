"""The canonical upload: one file, one PUT, plain http, the engine alone. Two numbers.

    python bench/put.py [--quick] [--json FILE] [--rounds 7]

Throughput, and CPU seconds (user and system) of the client for each GiB; each with its ratio to the C loop of sendfile of the
same run. Medians of interleaved rounds to the native sink; checksum=None, since a hash is not what the engine charges.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import harness, measure, micro
from bench.harness import GIB
from bench.results import Round
from bench.workloads import plans


def numbers(rounds: list[Round]) -> tuple[float, float]:
    """GiB/s and CPU seconds per GiB."""
    speed = statistics.median(one.bytes / GIB / one.seconds for one in rounds)
    return speed, statistics.median((one.cpu_user_s + one.cpu_system_s) * GIB / one.bytes for one in rounds)


def main() -> int:
    asked = micro.arguments(__doc__).parse_args()
    about = micro.machine()
    plan = plans("quick" if asked.quick else "full")[0]
    with harness.body_files() as folder, measure.ClientProcesses() as processes:
        options = measure.Options(2 if asked.quick else asked.rounds, 60.0, cpu=harness.last_cpu(), directory=folder)
        limits, runs = measure.staged(plan, "plain", [("engine", "tuned")], options, processes, 120.0, print)
    [limit] = [one for one in limits if one.limit == "c-sendfile"]
    if any(one.outcome != "stored" for one in runs[0].rounds):
        print(runs[0].rounds[-1].detail, file=sys.stderr)
        return 1
    (speed, cost), (c_speed, c_cost) = numbers(runs[0].rounds), numbers(limit.rounds)
    print(f"{plan.shown.title}: {speed:.2f} GiB/s ({speed / c_speed:.2f} of C's sendfile)")
    print(f"{cost:.3f} CPU-s/GiB ({cost / c_cost:.2f} of C's)")
    if asked.json:
        found = {"machine": about, "engine": asdict(runs[0]), "limit": asdict(limit)}
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
