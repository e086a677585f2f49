"""What is measured: the workloads, in full, quick and tiny sizes.

Names are those of aws-crt-s3-benchmarks, action-size-count, where one fits: `upload` is whatever a client has for objects of
any size, `put` one PUT an object (theirs has no such action). Theirs end by count; ours without a count go on for some time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from .harness import GIB, KIB, MIB
from .results import Outcome, Workload

Scale = Literal["full", "quick", "tiny"]
TRANSPORTS = ("plain", "tls")
REGION_OF_BUCKET = "eu-central-1"  # where fault-301 wants to be signed for


@dataclass(frozen=True)
class Plan:
    """A workload, and how the harness runs it."""

    name: str
    shown: Workload
    action: str  # put, upload
    in_memory: bool = False  # bodies are memory, not files
    seconds: float = 0  # a round goes on so long; 0: `objects` of them
    scenarios: tuple[str, ...] = ("store",)  # ports of the sink; the client is sent to the last one
    fresh: bool = False  # a new process for each round: what a client learned would change the next
    weight: float = 1  # share of the time that a run may take
    transports: tuple[str, ...] = TRANSPORTS
    tuned: bool = True  # others than the engine too


def size_name(size: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit}{name}"
    return f"{size}B"


BIG_LIMITS = ["c-sendfile", "c-send", "c-splice", "c-aes-gcm"]
SMALL_LIMITS = ["c-put"]


def big(action: str, size: int, count: int, weight: float) -> Plan:
    name = f"{action}-{size_name(size)}-{count}x"
    words = f"{count} × {size_name(size)}" if count > 1 else size_name(size)
    title = f"{words}, {'one PUT each' if count > 1 else 'one PUT' if action == 'put' else 'in parts'}"
    shown = Workload("throughput", title, size, count, count, "stored", BIG_LIMITS)
    return Plan(name, shown, action, weight=weight)


def small(size: int, concurrency: int, seconds: float) -> Plan:
    name = f"put-{size_name(size)}" + (f"-{concurrency}c" if concurrency > 1 else "")
    title = f"{size_name(size)} objects, {concurrency} at a time"
    shown = Workload("requests", title, size, 0, concurrency, "stored", SMALL_LIMITS)
    return Plan(name, shown, "put", in_memory=True, seconds=seconds, weight=2)


FAULTS: tuple[tuple[str, str, tuple[str, ...], Outcome], ...] = (
    ("fault-307-before", "307 before the body", ("store", "redirect:0"), "stored"),
    ("fault-307-mid", "307 after 8 MiB of the body", ("store", "redirect-mid:0"), "stored"),
    ("fault-301-no-location", "301 without Location: another region", (f"region:{REGION_OF_BUCKET}",), "stored"),
    ("fault-403", "403 before the body", ("denied",), "error"),
    ("fault-412", "412 before the body", ("exists",), "error"),
    ("fault-503-once", "503 before the body, then fine", ("busy",), "stored"),
    ("fault-100-slow", "100 after 2 s", ("slow",), "stored"),
    ("fault-100-never", "no 100 at all", ("silent",), "stored"),
)


def fault(name: str, title: str, scenarios: tuple[str, ...], best: Outcome, size: int) -> Plan:
    shown = Workload("fault", title, size, 1, 1, best, [])
    return Plan(name, shown, "put", scenarios=scenarios, fresh=True, weight=0.5)


def plans(scale: Scale) -> list[Plan]:
    """What a run of this scale has, the headline first."""
    return [quick(plan) for plan in every(scale) if plan.name in QUICK] if scale == "quick" else every(scale)


def every(scale: Scale) -> list[Plan]:
    """All workloads, in the sizes of this scale."""
    one, many, count, seconds, faulty = {
        "full": (4 * GIB, 256 * MIB, 16, 0.25, 64 * MIB),
        "quick": (256 * MIB, 32 * MIB, 8, 0.2, 16 * MIB),
        "tiny": (2 * MIB, MIB, 2, 0.02, 9 * MIB),
    }[scale]
    return [
        big("put", one, 1, 6),
        big("put", many, count, 4),
        big("upload", one, 1, 4),
        small(4 * KIB, 1, seconds),
        small(4 * KIB, 8, seconds),
        small(64 * KIB, 8, seconds),
        small(MIB, 8, seconds),
        *(fault(*each, faulty) for each in FAULTS),
    ]


# What fits a minute, with every client: the headline, parts, requests, and the faults that are not about waiting.
QUICK = (
    *("put-256MiB-1x", "upload-256MiB-1x", "put-4KiB-8c"),
    *("fault-307-before", "fault-307-mid", "fault-301-no-location", "fault-403", "fault-503-once"),
)


def quick(plan: Plan) -> Plan:
    """Other clients as they come; TLS for the headline only."""
    return replace(plan, tuned=False, transports=TRANSPORTS if plan.name == QUICK[0] else ("plain",))
