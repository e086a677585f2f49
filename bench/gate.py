"""Is this tree slower than its base?

    make bench-gate [BASE=main] [ARGS="--rounds 31"]
    python -m bench.gate [--base REF] [--rounds N] [--quick]

The base is checked out beside this tree (a git worktree in a temporary folder), built if its native sources differ, and
measured in turns with this one: base, base again, and change. The two bases tell how far apart equals are on this machine,
now; a change fails when its median ratio to the base is worse than 1 by more than that (and than LEAST: smaller things are not
looked for). What fails is measured once more, and fails only if it does so again.

Judged are CPU seconds, which a busy machine disturbs least, and seconds; both for as much work. Lower is better.
Exit codes: 0 no slower, 1 slower, 2 it could not be measured, or the noise in CPU seconds was more than MOST.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from . import harness, measure
from .harness import Missing
from .results import Round, Transport
from .workloads import Plan, every

NATIVE = ("engine/*.pyx", "engine/*.pxd", "engine/*.h", "setup.py")
WANTED = ("put-256MiB-1x", "put-4KiB", "put-64KiB-8c", "put-1MiB-8c")
BASE, AGAIN, CHANGE = "base", "base again", "change"
LEAST = {"CPU": 0.03, "time": 0.05}
MOST = {"CPU": 0.10, "time": 0.25}  # noise in which no figure says anything
SIGMAS = 3.0
ROUNDS = 25


class Verdict(NamedTuple):
    workload: str
    what: str  # CPU, time
    ratio: float  # of the change to the base, median
    allowed: float

    @property
    def slower(self) -> bool:
        return self.ratio > self.allowed

    @property
    def unsure(self) -> bool:
        return not self.slower and self.allowed > 1 + MOST[self.what]

    def __str__(self) -> str:
        mark = "SLOWER" if self.slower else "noisy" if self.unsure else "ok"
        return f"{mark:7}{self.workload:30}{self.what:5}{self.ratio:8.3f}  up to {self.allowed:.3f} is noise"


@contextlib.contextmanager
def checked_out(reference: str) -> Iterator[Path]:
    """The tree of `reference` with its extensions built. Raises Missing."""
    root = harness.HERE.parent
    if not harness.git("rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}"):
        raise Missing(f"there is no commit {reference!r} here: give another --base")
    with tempfile.TemporaryDirectory(prefix="bench-gate-") as folder:
        tree = Path(folder) / "base"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), reference], cwd=root, check=True)
        try:
            build(root, tree)
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=root, check=True)


def build(root: Path, tree: Path) -> None:
    """The extensions of `tree`: copied where their sources are those of `root`, else compiled."""
    built = sorted((root / "engine").glob("*.so"))
    if built and sources(root) == sources(tree):
        for extension in built:
            shutil.copy2(extension, tree / "engine")
        return
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"the base does not build: {done.stderr[-500:]}\n(pip install 'cython>=3.1' 'setuptools>=77'?)")


def sources(tree: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for pattern in NATIVE for path in tree.glob(pattern)}


def cpu_each(one: Round) -> float:
    return (one.cpu_user_s + one.cpu_system_s) / one.bytes


def time_each(one: Round) -> float:
    return one.seconds / one.bytes


def judge(workload: str, rounds: dict[str, list[Round]]) -> list[Verdict]:
    """Noise: SIGMAS standard errors of the median, of the logarithms of what equals differ by."""
    found = []
    for what, value in (("CPU", cpu_each), ("time", time_each)):
        base, again, change = ([value(one) for one in rounds[name]] for name in (BASE, AGAIN, CHANGE))
        between = [math.log(b / a) for a, b in zip(base, again, strict=True)]
        # The better half of both bases' knowledge: their mean in each round is the reference.
        against = [math.log(c / math.sqrt(a * b)) for a, b, c in zip(base, again, change, strict=True)]
        spread = 1.4826 * statistics.median(abs(one) for one in between)
        noise = SIGMAS * 1.2533 * spread / math.sqrt(len(between))
        bias = abs(statistics.median(between))
        allowed = math.exp(max(math.log1p(LEAST[what]), noise, bias))
        found.append(Verdict(workload, what, math.exp(statistics.median(against)), allowed))
    return found


def compared(
    plan: Plan, transport: Transport, options: measure.Options, processes: measure.ClientProcesses, tree: Path
) -> list[Verdict]:
    stage = measure.Stage(plan, transport, options, processes)
    contenders = [
        stage.contender("engine", "tuned", engine="" if label == CHANGE else str(tree), label=label)
        for label in (BASE, AGAIN, CHANGE)
    ]
    try:
        measure.take_turns(contenders, options, 1e9, lambda what: print(what, file=sys.stderr))
    finally:
        stage.close()
    rounds = {one.name: one.rounds for one in contenders}
    for name, each in rounds.items():
        wrong = [one for one in each if one.outcome != "stored"]
        if wrong or len(each) < options.rounds:
            raise Missing(
                f"{plan.name}, {name}: {wrong[0].outcome if wrong else 'not run'} {wrong[0].detail if wrong else ''}"
            )
    return judge(f"{plan.name}, {transport}", rounds)


def run(reference: str, rounds: int, quick: bool) -> list[Verdict]:
    found: list[Verdict] = []
    with contextlib.ExitStack() as stack:
        tree = stack.enter_context(checked_out(reference))
        folder = stack.enter_context(harness.body_files())
        certificate = harness.Certificate(folder)
        processes = stack.enter_context(measure.ClientProcesses())
        options = measure.Options(rounds, 60.0, harness.last_cpu(), certificate.bundle, certificate.pem, folder)
        wanted = [plan for plan in every("tiny" if quick else "quick") if quick or plan.name in WANTED]
        wanted = [plan for plan in wanted if plan.shown.kind != "fault" and plan.action == "put"][
            : 1 if quick else None
        ]
        for transport in ("plain", "tls"):
            for plan in wanted:
                verdicts = compared(plan, transport, options, processes, tree)
                if any(one.slower for one in verdicts):
                    print(f"{plan.name}, {transport}: once more", file=sys.stderr)
                    again = compared(plan, transport, options, processes, tree)
                    verdicts = [
                        min(pair, key=lambda one: one.ratio / one.allowed) for pair in zip(verdicts, again, strict=True)
                    ]
                found += verdicts
                print(*verdicts, sep="\n", flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gate", description=__doc__.split("\n")[0])
    parser.add_argument("--base", default="main", metavar="REF", help="what to compare with (default: main)")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="does it run at all: says nothing about speed")
    asked = parser.parse_args(argv)
    if not harness.enter_namespace():
        print("no network namespace of its own: this is the host's loopback", file=sys.stderr)
    harness.end_on_signals()
    try:
        found = run(asked.base, 2 if asked.quick else asked.rounds, asked.quick)
    except Missing as error:
        print(f"bench-gate: {error}", file=sys.stderr)
        return 2
    slower = [one for one in found if one.slower]
    print(f"{len(slower)} of {len(found)} figures are worse than {asked.base}'s beyond the noise")
    unsure = [one for one in found if one.unsure and one.what == "CPU"]
    if unsure:
        print(f"{len(unsure)} were too noisy to tell: once more when nobody else uses the machine, or with more rounds")
    return 1 if slower else 2 if unsure else 0


if __name__ == "__main__":
    sys.exit(main())
