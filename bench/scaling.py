"""How the cost of a PUT grows: with the object, with connections, with the path; and what it costs to ask first.

    python -m bench.scaling [-o scaling.json] [--budget 240]

`run` is what the harness calls. Three axes, engine asking ("always") and not asking ("never") each, points in turns:

    size         1 MiB … 16 GiB on one kept connection, from a sparse file: the kernel's zero page, no disk and no page cache
    connections  1 … 256 at once, objects of 8 MiB, beside the C loop of sendfile
    rtt          0 … 100 ms added by a relay of our own (peers/relay.c), objects of 4 KiB … 16 MiB, kept connections;
                 stored, and refused (403): what has left until the refusal was heard

Every point is measured in a process of its own (`scaling_client`) that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal

import engine

from . import harness, report, results
from .harness import GIB, KIB, MIB, Meter, Sink
from .results import Axis, Latency, Outcome, Results, Round, Scaling, Workload

SIZES: Final = (MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB, GIB, 4 * GIB, 16 * GIB)
CONNECTIONS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RTTS_S: Final = (0.0, 0.001, 0.02, 0.1)
RTT_SIZES: Final = (4 * KIB, 64 * KIB, MIB, 16 * MIB)
CONNECTION_OBJECT: Final = 8 * MIB
CONNECTION_OBJECTS: Final = 256  # in one round, whatever the connections
ROUNDS: Final = 7
BUDGET_S: Final = 240.0
WARM_BYTES: Final = MIB  # of the PUTs that open connections before the first round, unmeasured
RELAYED_BYTES: Final = 256 * MIB  # of the body that shows how much the relay lets through
ECHOES: Final = 20  # bytes sent there and back in one round, of which the slowest is taken for the 99th percentile
SINKS: Final = ("store", "denied")  # scenarios of peers/sink.c
SCALES: Final[dict[str, dict[str, Any]]] = {  # arguments of `run`
    "full": {},
    "quick": {"rounds": 2, "budget_s": 40.0, "largest": 256 * MIB},
    "tiny": {"rounds": 1, "budget_s": 0.0, "largest": 4 * MIB},
}
TICKS_TELL_S: Final = 0.2  # shorter rounds cannot be told from others' by the kernel's ticks of 10 ms
SETTLE_S: Final = 10.0  # for refused connections to end: half a round trip, and what the sink lingers
SMALL_REPEATED: Final = 8  # PUTs in one round where one takes about a millisecond

WORKLOADS: Final = {
    "scaling-size": Workload("throughput", "one PUT, no hash", 0, 1, 1, "stored", []),
    "scaling-size-crc64": Workload("throughput", "one PUT, CRC64", 0, 1, 1, "stored", []),
    "scaling-connections": Workload(
        "throughput", "PUTs of 8 MiB, no hash", CONNECTION_OBJECT, CONNECTION_OBJECTS, 0, "stored", ["c-sendfile"]
    ),
    "scaling-rtt": Workload("throughput", "one PUT over a longer path", 0, 1, 1, "stored", []),
    "scaling-refused": Workload("fault", "403 over a longer path", 0, 1, 1, "error", []),
    "scaling-relay": Workload("requests", "one byte there and back, by the relay", 1, 0, 1, "stored", []),
}

Expect = Literal["always", "never", "auto"]


@dataclass
class Point:
    """What is measured over and over, and what came of it so far."""

    axis: Axis
    x: float
    workload: str
    client: str
    expect: Expect
    object_bytes: int
    connections: int = 1
    rtt_s: float = 0.0
    objects: int = 1
    checksum: str = ""
    rounds: list[Round] = field(default_factory=list)

    def scaling(self) -> Scaling:
        return Scaling(
            self.axis,
            self.x,
            self.workload,
            self.client,
            self.expect,
            self.object_bytes,
            self.connections,
            self.rtt_s,
            self.rounds,
        )


def run(
    *,
    budget_s: float = BUDGET_S,
    rounds: int = ROUNDS,
    largest: int = SIZES[-1],
    say: Callable[[str], None] = lambda text: None,
) -> list[Scaling]:
    """Measure all three axes. `WORKLOADS` describes what the entries' workloads are.

    Args:
      budget_s: no round of a point begins after so many seconds, but each has at least one.
      rounds: of each point; objects of 4 GiB and more have half as many.
      largest: no object is larger; a quick run has 256 MiB.
      say: told what is being done.

    Raises harness.Missing without a C compiler, RuntimeError when a client or a relay dies.
    """
    with _World.started(largest) as world:
        points = list(_points(largest))
        deadline = time.monotonic() + budget_s
        for turn in range(rounds):
            for point in points:
                late = time.monotonic() > deadline or (point.object_bytes >= 4 * GIB and turn % 2)
                if not late or not point.rounds:
                    point.rounds.append(world.measure(point))
            say(f"scaling: round {turn + 1} of {rounds}")
        return [point.scaling() for point in points]


def _points(largest: int) -> Iterator[Point]:
    both: tuple[Expect, ...] = ("always", "never")
    for size in SIZES:
        if size <= largest:
            repeated = SMALL_REPEATED if size <= 16 * MIB else 1
            for expect in both:
                yield Point("size", size, "scaling-size", "engine", expect, size, objects=repeated)
            yield Point("size", size, "scaling-size-crc64", "engine", "auto", size, objects=repeated, checksum="auto")
    for count in CONNECTIONS:
        for client, expect in (("engine", "always"), ("engine", "never"), ("c-sendfile", "never")):
            yield Point(
                "connections",
                count,
                "scaling-connections",
                client,
                expect,
                CONNECTION_OBJECT,
                count,
                0.0,
                CONNECTION_OBJECTS,
            )
    for rtt_s in RTTS_S:
        for size in RTT_SIZES:
            repeated = SMALL_REPEATED if rtt_s <= 0.001 else 1
            for expect in both:
                yield Point("rtt", rtt_s, "scaling-rtt", "engine", expect, size, rtt_s=rtt_s, objects=repeated)
                yield Point("rtt", rtt_s, "scaling-refused", "engine", expect, size, rtt_s=rtt_s)
        yield Point("rtt", rtt_s, "scaling-relay", "relay", "never", 1, rtt_s=rtt_s)
        yield Point("rtt", rtt_s, "scaling-relay", "c-sendfile", "never", min(RELAYED_BYTES, largest), rtt_s=rtt_s)


# --- the processes ----------------------------------------------------------------------------------------------------


class _Child:
    """A process that is told lines and answers with lines."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin: IO[str] = self._process.stdin
        self._stdout: IO[str] = self._process.stdout
        self._name = Path(command[0]).name

    def tell(self, line: str) -> None:
        self._stdin.write(line + "\n")
        self._stdin.flush()

    def hear(self) -> str:
        line = self._stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with {self._process.wait()} instead of answering")
        return line

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self._stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.close()


def _environment() -> dict[str, str]:
    """Ours, in which the client's module is found as this one was, and in which nothing speaks of a proxy."""
    path = os.pathsep.join([str(harness.HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "NO_PROXY": "*"}


class _World:
    """Sink, relays and client, and the sparse file."""

    def __init__(self, sink: Sink, client: _Child, file: Path) -> None:
        self._sink, self._client, self._file = sink, client, file
        self._ports: dict[tuple[str, float], int] = {}
        self._relays: list[_Child] = []

    @classmethod
    @contextmanager
    def started(cls, largest: int) -> Iterator[_World]:
        with ExitStack() as stack:

            def child(*command: str) -> _Child:
                made = _Child(command)
                stack.callback(made.close)
                return made

            # tmpfs sends the zero page for a hole; a disk's file system fills the page cache with it.
            memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
            file = stack.enter_context(harness.body_files(memory)) / "sparse"
            with file.open("wb") as opened:
                opened.truncate(max(largest, CONNECTION_OBJECT, *RTT_SIZES))
            cpus = sorted(os.sched_getaffinity(0))
            sink = Sink(*SINKS, cpu=cpus[-1] if len(cpus) > 1 else None)
            stack.enter_context(sink.process)
            stack.callback(sink.close)
            world = cls(sink, child(sys.executable, "-m", f"{__package__}.scaling_client"), file)
            direct = dict(zip(SINKS, sink.ports, strict=True)) | {"echo": stack.enter_context(_echo())}
            delayed = [rtt_s for rtt_s in RTTS_S if rtt_s]
            for name, port in direct.items():
                relay = child(harness.compiled("relay"), str(port), *(f"{rtt_s * 5e5:.0f}" for rtt_s in delayed))
                world._relays.append(relay)
                world._ports[name, 0.0] = port
                world._ports.update({(name, rtt_s): int(relay.hear()) for rtt_s in delayed})
            yield world

    def measure(self, point: Point) -> Round:
        """One round of a point."""
        if not point.rounds and point.client == "engine":
            self._ask(point, object_bytes=min(point.object_bytes, WARM_BYTES), objects=point.connections)
            self._settled(point.workload == "scaling-refused")
        self._sink.reset()
        helped = sum(relay.cpu_s() for relay in self._relays)
        meter = Meter()
        made = _MEASURES.get(point.client, _World._measure_engine)(self, point)
        own_s = made.cpu_user_s + made.cpu_system_s + made.sink_cpu_s
        own_s += sum(relay.cpu_s() for relay in self._relays) - helped
        if time.monotonic() - meter.began > TICKS_TELL_S:
            made.foreign_share = meter.foreign(own_s)
        return made

    def _measure_engine(self, point: Point) -> Round:
        heard = self._ask(point, object_bytes=point.object_bytes, objects=point.objects)
        seen = self._settled(point.workload == "scaling-refused")
        outcome: Outcome = "error" if heard["error"] else "stored"
        if not heard["error"] and seen["store"]["stored_bytes"] != point.objects * point.object_bytes:
            outcome, heard["error"] = "silently-wrong", f"the sink has {seen['store']['stored_bytes']} bytes"
        made = _round(point, heard["seconds"], heard["user"], heard["system"], heard["rss"], outcome)
        made.detail, made.timings, made.sink_cpu_s = heard["error"], heard["timings"], seen["cpu_s"]
        made.wrong_host_body_bytes = seen["denied"]["refused_bytes"]
        made.wire_bytes = seen["store"]["wire"] + seen["denied"]["wire"]
        return made

    def _ask(self, point: Point, *, object_bytes: int, objects: int) -> dict[str, Any]:
        """Let the client work. The first time for a point, this opens its connections."""
        port = self._ports["denied" if point.workload == "scaling-refused" else "store", point.rtt_s]
        job = {
            "endpoint": f"http://127.0.0.1:{port}",
            "file": str(self._file),
            "object_bytes": object_bytes,
            "objects": objects,
            **{name: getattr(point, name) for name in ("expect", "connections", "checksum")},
        }
        self._client.tell(json.dumps(job))
        heard: dict[str, Any] = json.loads(self._client.hear())
        return heard

    def _settled(self, refused: bool) -> dict[str, Any]:
        """What the sink counted, by port; of refused bodies once their connections have ended, so that nothing is under way."""
        until = time.monotonic() + SETTLE_S
        while True:
            heard = self._sink.report()
            seen = dict(zip(SINKS, heard["ports"], strict=True)) | {"cpu_s": heard["cpu_s"]}
            if not refused or not seen["denied"]["open"]:
                return seen
            if time.monotonic() > until:
                raise RuntimeError("a refused connection stays open")
            time.sleep(0.002)

    def _measure_limit(self, point: Point) -> Round:
        """The C loop of sendfile: for as long as a round of engine's takes, or one body over the relay."""
        relayed = point.workload == "scaling-relay"
        port = self._ports["store", point.rtt_s]
        words = [
            harness.compiled("limits"),
            "sendfile",
            port,
            self._file,
            point.object_bytes,
            point.connections,
            "/bucket/l",
        ]
        done = subprocess.run(
            [*map(str, words), "0" if relayed else "0.4"], capture_output=True, text=True, check=True, timeout=120
        )
        heard = json.loads(done.stdout)
        made = _round(point, heard["seconds"], heard["user"], heard["system"], heard["rss_kib"] * KIB, "stored")
        seen = self._settled(False)
        made.requests, made.bytes = heard["bodies"], heard["bodies"] * point.object_bytes
        made.wire_bytes, made.sink_cpu_s = seen["store"]["wire"], seen["cpu_s"]
        return made

    def _measure_relay(self, point: Point) -> Round:
        """How long a byte takes there and back: what the relay adds, when it is told to add `rtt_s`."""
        taken = []
        with socket.create_connection(("127.0.0.1", self._ports["echo", point.rtt_s])) as one:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(ECHOES):
                began = time.perf_counter()
                one.sendall(b"?")
                one.recv(1)
                taken.append(time.perf_counter() - began)
        made = _round(point, sum(taken), 0.0, 0.0, 0, "stored")
        made.requests = made.bytes = ECHOES
        ordered = sorted(taken)
        made.latency_s = Latency(statistics.median(ordered), ordered[int(ECHOES * 0.9)], ordered[-1])
        return made


_MEASURES: Final = {"c-sendfile": _World._measure_limit, "relay": _World._measure_relay}


def _round(point: Point, seconds: float, user: float, system: float, rss: int, outcome: Outcome) -> Round:
    stored = point.objects if outcome == "stored" else 0
    return Round(
        seconds=seconds,
        cpu_user_s=user,
        cpu_system_s=system,
        peak_rss_bytes=rss,
        bytes=stored * point.object_bytes,
        requests=stored,
        outcome=outcome,
        detail="",
        wrong_host_body_bytes=0,
        wire_bytes=0,
        latency_s=None,
        timings=None,
        concurrency=point.connections,
        sink_cpu_s=0.0,
        foreign_share=0.0,
    )


@contextmanager
def _echo() -> Iterator[int]:
    """A port whose connections get every byte back, one connection after another."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                one, _ = listener.accept()
                with one:
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    while piece := one.recv(4096):
                        one.sendall(piece)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)  # close alone does not wake accept
    thread.join(10)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.scaling", description="Measure how the cost of a PUT grows.")
    parser.add_argument("-o", "--output", type=Path, default=Path("scaling.json"), help="default: %(default)s")
    parser.add_argument("--into", type=Path, help="a results.json whose scaling is to be replaced, instead of --output")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two rounds, no object above 256 MiB")
    options = parser.parse_args(argv)
    isolated = harness.enter_namespace()
    found = results.load(options.into) if options.into else _nothing_yet(isolated)
    harness.end_on_signals()
    began = time.monotonic()
    words = {"budget_s": options.budget, **SCALES["quick" if options.quick else "full"]}
    found.scaling = run(**words, say=lambda told: print(told, file=sys.stderr))
    found.meta.spent_s += time.monotonic() - began
    found.workloads |= WORKLOADS
    path = options.into or options.output
    results.save(found, path)
    report.write(found, path.with_suffix(".html"))
    print(f"{path} and {path.with_suffix('.html')} are written", file=sys.stderr)
    return 0


def _nothing_yet(isolated: bool) -> Results:
    meta = results.Meta(
        **harness.machine(),
        network_namespace=isolated,
        openssl_of_c="",
        versions={"engine": engine.__version__},
        missing={},
        command="python -m bench.scaling",
        budget_s=BUDGET_S,
        spent_s=0.0,
        notes=[],
    )
    return Results(results.SCHEMA, meta, {})


if __name__ == "__main__":
    raise SystemExit(main())
