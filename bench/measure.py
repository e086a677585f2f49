"""The rounds: clients and C loops take turns at one workload, each client in its own process, and what came of it is judged.

A round is judged by the sink's counts, not by what the client says: see `outcome`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import harness
from .harness import MIB, Meter, Missing, Sink
from .peers import clients
from .results import Latency, Limit, Outcome, Round, Run, Transport, Tuning
from .workloads import Plan

START_S = 60  # imports and the first connection
COMMAND_OBJECTS = 500  # of programs, in workloads that go by the clock
# What this machine's user has set for the clients: proxies, bundles, profiles, endpoints.
FOREIGN_SETTINGS = re.compile(r"(?i)^AWS_|_proxy$|^(SSL_CERT|CURL_CA|REQUESTS_CA|RCLONE_|MINIO_|S5CMD_)")


@dataclass
class Options:
    rounds: int
    timeout_s: float
    cpu: int | None = None  # of the sink
    bundle: str = ""  # of TLS: what clients trust
    pem: str = ""  # and what the sink shows
    directory: Path = field(default_factory=Path)


class Hung(Exception):
    pass


class ClientProcess:
    """bench/peers/worker.py, started and spoken to: one build at a time."""

    def __init__(self, client: str, bundle: str, engine: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not FOREIGN_SETTINGS.search(name)}
        environment |= {"PYTHONPATH": engine or str(engine_folder()), "AWS_EC2_METADATA_DISABLED": "true"}
        environment["SSL_CERT_FILE"] = bundle or "/dev/null"  # where those look that take no other
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, str(harness.PEERS / "worker.py"), client],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            start_new_session=True,
        )
        self.buffer = b""
        self.built: dict[str, Any] = {}
        self.take_missing(self.read(START_S))

    def take_missing(self, said: dict[str, Any]) -> dict[str, Any]:
        if "missing" in said:
            raise Missing(str(said["missing"]))
        return said

    def build(self, spec: clients.Spec) -> None:
        """A fresh one, for this spec. Raises Missing for what the client cannot do."""
        self.drop()
        self.say({"spec": asdict(spec)})
        self.built = self.take_missing(self.read(START_S))

    def drop(self) -> None:
        if self.built:
            self.say({"end": True})
        self.built = {}

    def say(self, what: dict[str, Any]) -> None:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(what).encode() + b"\n")
            self.process.stdin.flush()

    def read(self, patience_s: float) -> dict[str, Any]:
        """The next line. Raises Hung, or RuntimeError when the process is gone."""
        assert self.process.stdout
        fd, until = self.process.stdout.fileno(), time.monotonic() + patience_s
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([fd], [], [], max(0.0, min(0.2, until - time.monotonic())))
            if not ready:
                if time.monotonic() > until:
                    raise Hung
                if self.built and not self.forks():
                    raise RuntimeError(f"the client's process died: {self.last_words()}")
                continue
            piece = os.read(fd, 1 << 16)
            if not piece:
                raise RuntimeError(f"the client's process ended: {self.last_words()}")
            self.buffer += piece
        line, _, self.buffer = self.buffer.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def forks(self) -> bool:
        pid = self.process.pid
        return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text().strip())

    def last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return lines[-1][:300] if lines else "without a word"

    def end(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # a session of its own: its children too
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()


class ClientProcesses:
    """One for each client and tuning, for a whole run: imports are paid once."""

    def __init__(self) -> None:
        self.there: dict[tuple[str, ...], ClientProcess] = {}

    def get(self, client: str, tuning: str, bundle: str, engine: str = "", label: str = "") -> ClientProcess:
        key = (client, tuning, engine, label)
        if key not in self.there:
            self.there[key] = ClientProcess(client, bundle, engine)
        return self.there[key]

    def end(self, process: ClientProcess) -> None:
        process.end()
        self.there = {key: one for key, one in self.there.items() if one is not process}

    def close(self) -> None:
        for process in self.there.values():
            process.end()
        self.there.clear()

    def __enter__(self) -> ClientProcesses:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def engine_folder() -> Path:
    import engine

    return Path(engine.__file__).resolve().parents[1]


@dataclass
class Contender:
    """Who takes part in one workload, and what it has done so far."""

    name: str
    tuning: Tuning
    take: Callable[[], Round]
    rounds: list[Round] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    how: str = ""
    process: Any = None  # that its build is in
    spent_s: float = 0.0
    is_limit: bool = False
    is_engine: bool = False
    out: str = ""  # why it takes no further part


class Stage:
    """One workload over one transport: its sink, its files, its contenders."""

    def __init__(self, plan: Plan, transport: Transport, options: Options, processes: ClientProcesses) -> None:
        self.plan, self.transport, self.options, self.processes = plan, transport, options, processes
        pem, self.bundle = (options.pem, options.bundle) if transport == "tls" else ("", "")
        is_fault = plan.shown.kind == "fault"
        self.sink = Sink(*plan.scenarios, "raw", pem=pem, digest=is_fault, cpu=options.cpu)
        self.endpoint = self.sink.url(len(plan.scenarios) - 1)
        self.file = harness.body_file(options.directory, plan.shown.object_bytes)
        self.crc32 = crc32_of(self.file) if is_fault else 0
        self.numbers = itertools.count()

    def close(self) -> None:
        self.sink.close()

    # --- clients

    def contender(self, name: str, tuning: Tuning, *, engine: str = "", label: str = "") -> Contender:
        """engine: the folder that `import engine` finds it in, "" where this interpreter does; label: tells twins apart."""
        spec = clients.Spec(name, tuning, self.endpoint, self.bundle, self.plan.shown.concurrency)
        one = Contender(label or name, tuning, lambda: self.client_round(one, spec, engine, label))
        one.is_engine = name == "engine"
        return one

    def client_round(self, one: Contender, spec: clients.Spec, engine: str, label: str) -> Round:
        plan = self.plan
        process = self.processes.get(spec.client, spec.tuning, self.options.bundle, engine, label)
        prefix = f"{spec.client}-{spec.tuning}-{next(self.numbers)}"
        jobs = self.jobs(prefix, clients.CLIENTS[spec.client].is_command)
        meter, own_s = Meter(), sum(os.times()[:2])
        try:
            if plan.fresh or process is not one.process:
                process.build(spec)
                one.process, one.hashes, one.how = process, process.built["hashes"], process.built["how"]
            process.say({"jobs": jobs, "warm": not plan.fresh})
            process.read(self.options.timeout_s)
            self.sink.reset()
            meter, own_s = Meter(), sum(os.times()[:2])
            process.say({"go": True})
            told = process.read(self.options.timeout_s)
        except Hung:
            self.processes.end(process)
            return self.judged(None, time.monotonic() - meter.began, jobs)
        except RuntimeError as error:
            self.processes.end(process)
            told = dict.fromkeys(("seconds", "cpu_user_s", "cpu_system_s", "peak_rss_bytes", "requests"), 0)
            return self.judged(told | {"error": str(error)}, time.monotonic() - meter.began, jobs)
        own_s = sum(os.times()[:2]) - own_s
        found = self.judged(told, told["seconds"], jobs)
        one.hashes = sorted({*one.hashes, *self.sink.report()["hashes"]})
        found.foreign_share = meter.foreign(found.cpu_user_s + found.cpu_system_s + found.sink_cpu_s + own_s)
        return found

    def drop(self, one: Contender) -> None:
        """Its build is not needed any more."""
        if one.process in self.processes.there.values():
            one.process.drop()

    def jobs(self, prefix: str, is_command: bool) -> dict[str, Any]:
        plan, shown = self.plan, self.plan.shown
        by_clock = plan.seconds > 0 and not is_command
        objects = shown.objects or min(COMMAND_OBJECTS, max(8, 256 * MIB // shown.object_bytes))
        return {
            "action": plan.action,
            "paths": [] if plan.in_memory and not is_command else [self.file],
            "size": shown.object_bytes,
            "objects": objects,
            "seconds": plan.seconds if by_clock else 0.0,
            "concurrency": shown.concurrency,
            "prefix": prefix,
        }

    def judged(self, told: dict[str, Any] | None, seconds: float, jobs: dict[str, Any]) -> Round:
        report = self.sink.settled() if self.plan.fresh or told is None else self.sink.report()
        ports = report["ports"]
        told_requests = told["requests"] if told else 0
        expected = told_requests if told and not told["error"] else 0
        what, wrong = outcome(report, told, expected, self.plan, jobs, self.crc32)
        stored = expected if what == "stored" else 0
        return Round(
            seconds=seconds,
            cpu_user_s=told["cpu_user_s"] if told else 0.0,
            cpu_system_s=told["cpu_system_s"] if told else 0.0,
            peak_rss_bytes=int(told["peak_rss_bytes"]) if told else 0,
            bytes=stored * self.plan.shown.object_bytes,
            requests=stored,
            outcome=what,
            detail=wrong,
            wrong_host_body_bytes=sum(port["refused_bytes"] for port in ports),
            wire_bytes=sum(port["wire"] for port in ports),
            latency_s=Latency(**told["latency_s"]) if told and told.get("latency_s") else None,
            timings=told.get("timings") if told else None,
            concurrency=self.plan.shown.concurrency,
            sink_cpu_s=report["cpu_s"],
            foreign_share=0.0,
        )

    # --- limits

    def limits(self) -> list[Contender]:
        """The C loops that fit this transport."""
        wanted = []
        for name in self.plan.shown.limits:
            if self.transport == "plain" and name in ("c-sendfile", "c-send", "c-splice", "c-put"):
                wanted.append((name, {"c-put": "send"}.get(name, name[2:])))
            if self.transport == "tls" and name in ("c-aes-gcm", "c-put"):
                wanted.append((name, {"c-put": "tls"}.get(name, name[2:])))
        found = []
        for name, kind in wanted:
            one = Contender(name, "defaults", lambda kind=kind: self.limit_round(kind), is_limit=True)  # type: ignore[misc]
            found.append(one)
        return found

    def limit_round(self, kind: str) -> Round:
        shown = self.plan.shown
        program = harness.compiled("limits", tls=self.transport == "tls")
        count = 1 if kind == "splice" else shown.concurrency
        bare = kind == "aes-gcm"
        port = self.sink.ports[-1] if bare else self.sink.ports[0]
        each = shown.object_bytes * (shown.concurrency if kind == "splice" else 1)
        target = "-" if bare else f"/{clients.BUCKET}/limit"
        file = self.file if kind in ("sendfile", "aes-gcm") else "-"
        command = [program, kind, str(port), file, str(each), str(count), target, str(self.plan.seconds)]
        self.sink.reset()
        meter = Meter()
        with pipe_filled(program, each, kind) as source:
            done = subprocess.run(command, stdin=source, capture_output=True, text=True, timeout=self.options.timeout_s)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        told = json.loads(done.stdout)
        report = self.sink.report()
        return Round(
            seconds=told["seconds"],
            cpu_user_s=told["user"],
            cpu_system_s=told["system"],
            peak_rss_bytes=told["rss_kib"] * 1024,
            bytes=told["bodies"] * each,
            requests=told["bodies"],
            outcome="stored",
            detail="",
            wrong_host_body_bytes=0,
            wire_bytes=sum(one["wire"] for one in report["ports"]),
            latency_s=None,
            timings=None,
            concurrency=count,
            sink_cpu_s=report["cpu_s"],
            foreign_share=meter.foreign(told["user"] + told["system"] + report["cpu_s"]) if kind != "splice" else 0.0,
        )


@contextlib.contextmanager
def pipe_filled(program: str, size: int, kind: str) -> Iterator[Any]:
    if kind != "splice":
        yield subprocess.DEVNULL
        return
    filler = subprocess.Popen([program, "fill", "-", "-", str(size), "1", "-", "0"], stdout=subprocess.PIPE)
    try:
        yield filler.stdout
    finally:
        filler.communicate()


def crc32_of(path: str) -> int:
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(MIB):
            crc = zlib.crc32(piece, crc)
    return crc


def outcome(
    report: dict[str, Any], told: dict[str, Any] | None, expected: int, plan: Plan, jobs: dict[str, Any], crc32: int
) -> tuple[Outcome, str]:
    """What a round came to, and what was wrong with it.

    stored: the client said so, and the sink has every byte, and where it keeps digests the right one. silently-wrong: the
    client said so, and it is not so.
    """
    if told is None:
        return "hung", "no answer within the time"
    if told["error"]:
        return "error", told["error"]
    size, ports = plan.shown.object_bytes, report["ports"]
    have = sum(port["stored_bytes"] for port in ports)
    whole = sum(port["stored"] + port["completed"] for port in ports)
    if have < expected * size or whole < expected:
        return "silently-wrong", f"{whole} of {expected} objects, {have} of {expected * size} bytes were stored"
    if plan.shown.kind == "fault":
        keys = {f"/{clients.BUCKET}/{jobs['prefix']}-{number}" for number in range(expected)}
        right = {one["path"] for one in report["objects"] if one["size"] == size and one["crc32"] == crc32}
        if not keys <= right:
            return "silently-wrong", "another content than the file's was stored"
    return "stored", ""


# --- turns ------------------------------------------------------------------------------------------------------------


def take_turns(contenders: list[Contender], options: Options, budget_s: float, note: Callable[[str], None]) -> None:
    """Rounds of all, in an order that turns: one of each, and then as many as `rounds_that_fit` finds time for."""
    began = time.monotonic()
    wanted = [1] * len(contenders)
    for number in range(options.rounds):
        if number == 1:
            wanted = rounds_that_fit(contenders, options.rounds, budget_s - (time.monotonic() - began))
        turn = number % max(1, len(contenders))
        for one, rounds in [*zip(contenders, wanted, strict=True)][turn:] + [*zip(contenders, wanted, strict=True)][
            :turn
        ]:
            if not one.out and number < rounds:
                take_one(one, note)
    cut = [len(one.rounds) for one in contenders if one.rounds and len(one.rounds) < options.rounds and not one.out]
    if cut:
        of_all = f"{len(cut)} of {len(contenders)} contenders"
        note(f"{of_all} have {min(cut)} to {max(cut)} rounds instead of {options.rounds}, for want of time")


def take_one(one: Contender, note: Callable[[str], None]) -> None:
    started = time.monotonic()
    try:
        one.rounds.append(one.take())
    except Missing as error:
        one.out = str(error)
        note(f"{one.name}: {error}")
    else:
        if one.rounds[-1].outcome == "hung":
            one.out = "hung"
    one.spent_s += time.monotonic() - started


def rounds_that_fit(contenders: list[Contender], rounds: int, left_s: float) -> list[int]:
    """How many each has in all, when all have one: engine and limits have all; the others share what time is left alike, so
    that the fast have all of theirs before the slow have a second one."""
    more = {id(one): one.spent_s * (rounds - 1) for one in contenders}
    for one in contenders:
        if one.is_limit or one.is_engine:
            left_s -= more.pop(id(one))
    share_s = 0.0
    for number, seconds in enumerate(sorted(more.values())):
        share_s = max(0.0, left_s) / (len(more) - number)
        if seconds > share_s:
            break
        left_s -= seconds
        share_s = seconds
    return [
        rounds if id(one) not in more or more[id(one)] <= share_s else 1 + int(share_s / one.spent_s)
        for one in contenders
    ]


def staged(
    plan: Plan,
    transport: Transport,
    who: list[tuple[str, Tuning]],
    options: Options,
    processes: ClientProcesses,
    budget_s: float,
    note: Callable[[str], None],
) -> tuple[list[Limit], list[Run]]:
    """Everything of one workload over one transport."""
    stage = Stage(plan, transport, options, processes)
    contenders = [*stage.limits(), *(stage.contender(name, tuning) for name, tuning in who)]
    try:
        take_turns(contenders, options, budget_s, lambda what: note(f"{plan.name}, {transport}: {what}"))
    finally:
        for one in contenders:
            stage.drop(one)
        stage.close()
    measured = [one for one in contenders if one.rounds]
    return (
        [Limit(plan.name, transport, one.name, one.rounds) for one in measured if one.is_limit],
        [
            Run(plan.name, transport, one.name, one.tuning, one.how, one.hashes, one.rounds)
            for one in measured
            if not one.is_limit
        ],
    )
