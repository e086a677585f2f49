"""`putengine bench`, or `python -m bench` in a checkout: engine beside every peer that is installed, and the C loops.

Prints a table, writes results.json (results.py says what is in it) and report.html. Everything happens on loopback, in a
network namespace of its own where the kernel allows that; the bodies are files in a temporary folder, removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.display import Paint

from . import harness, measure, report, results, scaling, table
from .harness import Missing
from .peers import clients
from .results import Meta, Results, Transport, Tuning
from .workloads import TRANSPORTS, Plan, Scale, plans

ROUNDS = {"full": 7, "quick": 3, "tiny": 1}
FAULT_ROUNDS = 3
BUDGET_MINUTES = {"full": 20.0, "quick": 1.3, "tiny": 0.1}
TIMEOUT_S = {"full": 60.0, "quick": 20.0, "tiny": 20.0}
FAULT_TIMEOUT_S = {"full": 20.0, "quick": 5.0, "tiny": 5.0}


def parser(prog: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=prog, description="Measure engine beside its peers, on loopback.")
    made.add_argument("--quick", action="store_true", help="256 MiB and 3 rounds: about a minute")
    made.add_argument("--tiny", action="store_true", help="does it run at all: says nothing about speed")
    made.add_argument("--rounds", type=int, help="of each client at each workload (default: 7, quick: 3)")
    made.add_argument("--clients", default="", help="only these: names, or beginnings of names, with commas")
    made.add_argument("--only", default="", help="only these workloads: parts of names, with commas")
    made.add_argument("--transport", choices=TRANSPORTS, help="only this one")
    made.add_argument("--tuning", choices=("defaults", "tuned"), help="only this one")
    made.add_argument(
        "--budget-minutes", type=float, help="slow clients get fewer rounds, to end in time (default: 20)"
    )
    made.add_argument(
        "--timeout", type=float, metavar="S", help='of a round: longer is "hung" (default: 60; faults 20)'
    )
    made.add_argument("--json", type=Path, default=Path("results.json"), metavar="FILE", help="default: results.json")
    made.add_argument("--html", type=Path, metavar="FILE", help="default: report.html beside the JSON")
    made.add_argument("--scaling", action="store_true", help="also by size, connections and distance: 4 minutes more")
    made.add_argument("--directory", metavar="DIR", help="for the bodies; default: the system's for temporary files")
    made.add_argument("--no-namespace", action="store_true", help="use the host's loopback")
    made.add_argument("--list", action="store_true", help="workloads and clients, and what is missing")
    return made


def chosen_plans(args: argparse.Namespace, scale: Scale) -> list[Plan]:
    words = [word for word in args.only.split(",") if word]
    return [plan for plan in plans(scale) if not words or any(word in plan.name for word in words)]


def chosen_clients(args: argparse.Namespace) -> list[str]:
    words = [word for word in args.clients.split(",") if word]
    return [name for name in clients.CLIENTS if not words or any(name.startswith(word) for word in words)]


def tuned_counts(plan: Plan, name: str) -> bool:
    if plan.shown.kind == "fault" or plan.action not in clients.CLIENTS[name].tuned_for:
        return False
    return plan.tuned or name == "engine"


def contenders(plan: Plan, names: list[str], tuning: str | None) -> list[tuple[str, Tuning]]:
    """Faults: as a client comes, since what it does then is no matter of tuning."""
    found: list[tuple[str, Tuning]] = []
    for name in names:
        known = clients.CLIENTS[name]
        if plan.action not in known.actions:
            continue
        for each in known.tunings:
            if each == "tuned" and not tuned_counts(plan, name):
                continue
            if tuning in (None, each):
                found.append((name, "tuned" if each == "tuned" else "defaults"))
    return found


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.scale: Scale = "tiny" if args.tiny else "quick" if args.quick else "full"
        self.began = time.monotonic()
        self.budget_s = 60 * (args.budget_minutes or BUDGET_MINUTES[self.scale])
        self.notes: list[str] = []
        wanted = chosen_clients(args)
        self.missing = {name: how for name in wanted if (how := clients.missing(name))}
        self.names = [name for name in wanted if name not in self.missing]
        self.plans = chosen_plans(args, self.scale)

    def note(self, what: str) -> None:
        self.notes.append(what)
        print(f"note: {what}", file=sys.stderr, flush=True)

    def certificate(self, folder: Path) -> harness.Certificate | None:
        try:
            harness.compiled("sink", tls=True)
            return harness.Certificate(folder)
        except Missing as error:
            self.note(f"no TLS: {error}")
            return None

    def options(
        self, plan: Plan, transport: Transport, folder: Path, certificate: harness.Certificate | None
    ) -> measure.Options:
        is_fault = plan.shown.kind == "fault"
        rounds = self.args.rounds or ROUNDS[self.scale]
        fault_rounds = FAULT_ROUNDS if self.scale == "full" and transport == "plain" else 1
        timeout_s = self.args.timeout or TIMEOUT_S[self.scale]
        return measure.Options(
            rounds=min(rounds, fault_rounds) if is_fault else rounds,
            timeout_s=min(timeout_s, FAULT_TIMEOUT_S[self.scale]) if is_fault else timeout_s,
            cpu=harness.last_cpu(),
            bundle=certificate.bundle if certificate else "",
            pem=certificate.pem if certificate else "",
            directory=folder,
        )

    def run(self) -> Results:
        isolated = not self.args.no_namespace and harness.enter_namespace()
        if not isolated:
            self.note("no network namespace of its own: this is the host's loopback, with its congestion control")
        facts = harness.machine()
        found = Results(results.SCHEMA, self.meta(facts, isolated), {plan.name: plan.shown for plan in self.plans})
        harness.end_on_signals()
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(harness.body_files(self.args.directory))
            harness.compiled("sink")
            harness.room(folder, sum({plan.shown.object_bytes for plan in self.plans}))
            certificate = self.certificate(folder)
            there: tuple[Transport, ...] = ("plain", "tls") if certificate else ("plain",)
            transports = [one for one in there if self.args.transport in (None, one)]
            processes = stack.enter_context(measure.ClientProcesses())
            found.meta.openssl_of_c = harness.openssl_of_c() if "tls" in transports else ""
            steps = [(plan, one) for one in transports for plan in self.plans if one in plan.transports]
            left = sum(plan.weight for plan, _transport in steps)
            for plan, transport in steps:
                time_s = max(1.0, self.budget_s - (time.monotonic() - self.began)) * plan.weight / left
                left -= plan.weight
                options = self.options(plan, transport, folder, certificate)
                self.step(found, plan, transport, options, processes, time_s)
        if self.args.scaling:
            found.workloads |= scaling.WORKLOADS
            found.scaling = scaling.run(**scaling.SCALES[self.scale], say=lambda told: print(told, file=sys.stderr))
        found.meta.spent_s = time.monotonic() - self.began
        return found

    def step(
        self,
        found: Results,
        plan: Plan,
        transport: Transport,
        options: measure.Options,
        processes: measure.ClientProcesses,
        budget_s: float,
    ) -> None:
        print(f"{plan.name}, {transport} (at most {budget_s:.0f} s)", file=sys.stderr, flush=True)
        who = contenders(plan, self.names, self.args.tuning)
        limits, runs = measure.staged(plan, transport, who, options, processes, budget_s, self.note)
        found.limits += limits
        found.runs += runs

    def meta(self, facts: dict[str, Any], isolated: bool) -> Meta:
        return Meta(
            **facts,
            network_namespace=isolated,
            openssl_of_c="",
            versions={name: clients.version(name) for name in self.names},
            missing=self.missing,
            command="putengine bench " + " ".join(self.args.words),
            budget_s=self.budget_s,
            spent_s=0.0,
            notes=self.notes,
        )


def show_list(bench: Bench) -> None:
    for plan in bench.plans:
        print(f"{plan.name:24} {plan.shown.title}")
    for name in bench.names:
        print(f"{name:24} {clients.version(name)}")
    for name, how in bench.missing.items():
        print(f"{name:24} missing: {how}")


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench") -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser(prog).parse_args(words)
    args.words = words
    bench = Bench(args)
    if args.list:
        show_list(bench)
        return 0
    try:
        found = bench.run()
    except Missing as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    results.save(found, args.json)
    page = args.html or args.json.parent / "report.html"
    report.write(found, page)
    for line in table.lines(found, Paint.on(sys.stdout)):
        print(line)
    print(f"{args.json} and {page} are written", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
