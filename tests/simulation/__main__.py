"""`python -m tests.simulation --seed N` replays one scenario; `--seconds S [--first N]` runs as many as there is time for."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from engine.exchange import TRANSITIONS
from tests.simulation.scenario import Machine, machine, run


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    options.add_argument("--seed", type=int, help="replay this one, with a log of what happened")
    options.add_argument("--seconds", type=float, default=10.0)
    options.add_argument("--first", type=int, default=0)
    given = options.parse_args()
    with machine():
        if given.seed is not None:
            log: list[str] = []
            try:
                print(run(given.seed, log=log).outcomes)
            finally:
                print("\n".join(log), file=sys.stderr)
            return 0
        began, seed, outcomes = time.perf_counter(), given.first, Counter[str]()
        while time.perf_counter() - began < given.seconds:
            outcomes += run(seed).outcomes
            seed += 1
        spent = time.perf_counter() - began
    turns, steps = (count / spent * 60 / 1e6 for count in (Machine.turns, Machine.steps))
    print(
        f"{seed - given.first} scenarios, {outcomes.total()} calls in {spent:.1f} s: {turns:.2f} million turns of the world and"
    )
    print(
        f"{steps:.2f} million steps of the machine a minute; {len(Machine.rows)} of the {len(TRANSITIONS)} rows of its table"
    )
    print(dict(outcomes.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
