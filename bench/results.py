"""What a run of the harness leaves behind: results.json, as dataclasses. Everything that draws or judges starts from here.

`load` and `save` are the only ways in and out; both validate. Fields carry their unit in the name; all sizes are bytes. A round
is one timed job of one client; medians, spreads and ratios are for the reader to compute, the file has only what was measured.

The names of workloads are listed, with all that is needed to read their rounds, in `Results.workloads`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

SCHEMA = 1

Transport = Literal["plain", "tls"]
Tuning = Literal["defaults", "tuned"]
Outcome = Literal["stored", "error", "silently-wrong", "hung"]
Kind = Literal["throughput", "requests", "fault"]
Axis = Literal["size", "connections", "rtt"]

T = TypeVar("T")


@dataclass
class Latency:
    """Seconds from the call to its return, over the requests of one round."""

    p50: float
    p90: float
    p99: float


@dataclass
class Round:
    """One timed job. Start-up, imports and the first connection are over when it begins (not so for command-line clients)."""

    seconds: float
    cpu_user_s: float  # of the client's process tree during the job; the sink's is not in it
    cpu_system_s: float
    peak_rss_bytes: int  # highest resident memory of the client's process(es) during the job, interpreter included
    bytes: int  # of the objects that the client said it had stored and the sink agrees; what a rate is made of
    requests: int  # objects stored, as bytes counts them
    outcome: Outcome  # stored: the sink saw every byte (and, in fault workloads, the right digest), the client said so
    detail: str  # the client's error, what was wrong, or ""
    wrong_host_body_bytes: int  # body bytes that reached a server which refused the request they belonged to
    wire_bytes: int  # everything that the servers received: heads, framing, TLS, bodies sent again
    latency_s: Latency | None
    timings: dict[str, float] | None  # phase → seconds of one request (engine: PutResult.timings; curl: its -w times)
    concurrency: int  # requests in flight at once
    sink_cpu_s: float  # what the server spent meanwhile: near `seconds`, it was the server that was measured
    foreign_share: float  # of the machine's CPU time that others used meanwhile; 0.05 and more spoils a figure


@dataclass
class Workload:
    """How to read the rounds of one workload."""

    kind: Kind  # throughput: GiB/s; requests: requests/s and latency; fault: outcome, body bytes wasted, seconds
    title: str  # in a few words, for tables and plots
    object_bytes: int
    objects: int  # in one round; 0 when a round ends by the clock
    concurrency: int
    best: Outcome  # what a client should come to; "error" where the server's no is final
    limits: list[str]  # names of the C loops measured beside it


@dataclass
class Limit:
    """A bare C loop over the same bytes to the same sink, interleaved with the clients' rounds."""

    workload: str
    transport: Transport
    limit: str  # c-sendfile, c-send, c-splice, c-aes-gcm (pread, AES-128-GCM, send), c-put (keep-alive requests)
    rounds: list[Round]


@dataclass
class Run:
    """All rounds of one client at one workload."""

    workload: str
    transport: Transport
    client: str  # engine, boto3-put_object, … (Meta.versions and Meta.missing say which there were)
    tuning: Tuning
    how: str  # what "tuned" means here, or what else a reader must know; one line
    hashes: list[str]  # that the client computed over the body, as its requests told: crc64nvme, crc32, sha256, md5
    rounds: list[Round]


@dataclass
class Scaling:
    """One point of one curve."""

    axis: Axis
    x: float  # bytes, connections, or seconds of round-trip time
    workload: str
    client: str
    expect: str  # "always", "never", "auto": what the client was told about Expect: 100-continue
    object_bytes: int
    connections: int
    rtt_s: float  # added by the harness's relay; 0: loopback
    rounds: list[Round]


@dataclass
class Meta:
    when: str  # ISO 8601, UTC
    commit: str  # "" outside a checkout
    dirty: bool
    python: str
    kernel: str
    cpu: str
    cores: int
    memory_bytes: int
    congestion_control: str
    network_namespace: bool  # own one; otherwise the host's loopback with whatever it runs
    openssl: str  # the interpreter's
    openssl_of_c: str  # the one that sink and limits were linked with; "" without TLS
    libc: str
    load_before: float  # 1 minute's, before the run
    versions: dict[str, str]  # client → version
    missing: dict[str, str]  # client → how to install it, or why it cannot run
    command: str
    budget_s: float
    spent_s: float
    notes: list[str]  # what a reader must know of this run: no namespace, no compiler, rounds cut by the budget …


@dataclass
class Results:
    schema: int
    meta: Meta
    workloads: dict[str, Workload]
    limits: list[Limit] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    scaling: list[Scaling] = field(default_factory=list)


def load(path: Path | str) -> Results:
    """Read and validate; ValueError names the place that is wrong."""
    return validate(json.loads(Path(path).read_text(encoding="utf-8")))


def save(results: Results, path: Path | str) -> None:
    """Validate and write."""
    value = dataclasses.asdict(results)
    validate(value)
    Path(path).write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def validate(value: Any) -> Results:
    """The dataclasses of a parsed results.json; ValueError names the place that is wrong."""
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise ValueError(f"results: this reads schema {SCHEMA}")
    results: Results = _build(Results, value, "results")
    for one in [*results.limits, *results.runs, *results.scaling]:
        if one.workload not in results.workloads:
            raise ValueError(f"results: workload {one.workload!r} is not described in workloads")
    return results


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value` as a `kind`: dataclasses, lists, dicts with str keys, Literals, unions and plain types."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if origin is Literal:
        _must(value in arguments, f"{where}: {value!r} is none of {arguments}")
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _build(next(a for a in arguments if a is not type(None)), value, where)
    if origin is list:
        _must(isinstance(value, list), f"{where}: no list")
        return [_build(arguments[0], one, f"{where}[{index}]") for index, one in enumerate(value)]
    if origin is dict:
        _must(isinstance(value, dict), f"{where}: no object")
        return {name: _build(arguments[1], one, f"{where}.{name}") for name, one in value.items()}
    if kind is float:
        _must(isinstance(value, (int, float)) and not isinstance(value, bool), f"{where}: {value!r} is no number")
        _must(math.isfinite(value), f"{where}: {value!r} is not finite")
        return float(value)
    _must(type(value) is kind, f"{where}: {value!r} is no {kind.__name__}")
    return value


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    _must(isinstance(value, dict), f"{where}: no object")
    hints = typing.get_type_hints(kind)
    missing, unknown = sorted(set(hints) - set(value)), sorted(set(value) - set(hints))
    _must(not missing and not unknown, f"{where}: missing {missing}, unknown {unknown}")
    return kind(**{name: _build(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})


def _must(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
