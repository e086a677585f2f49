"""A results.json that nobody measured: every kind of workload, every outcome, limits, scaling. For tests of what draws it."""

from __future__ import annotations

import random
from typing import get_args

from bench import results
from bench.results import Latency, Limit, Meta, Outcome, Results, Round, Run, Scaling, Workload

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
NOTE = "SYNTHETIC: these figures were made up for tests, nothing was measured."

# client, tuning, hashes: GiB/s, CPU-s/GiB, resident MiB, CPU µs a small request
CLIENTS: dict[tuple[str, str, tuple[str, ...]], tuple[float, float, float, float]] = {
    ("engine", "defaults", ("crc64nvme",)): (6.4, 0.21, 46, 88),
    ("engine", "tuned", ()): (7.7, 0.11, 44, 80),
    ("boto3-put_object", "defaults", ("crc32",)): (0.72, 1.6, 96, 1900),
    ("boto3-upload_file", "defaults", ("crc32",)): (0.95, 1.9, 171, 2300),
    ("boto3-upload_file", "tuned", ()): (1.3, 1.4, 240, 2100),
    ("boto3-crt", "defaults", ("crc32",)): (2.1, 0.9, 2410, 820),
    ("aiobotocore", "defaults", ("sha256", "md5")): (0.31, 3.3, 118, 2700),
    ("obstore", "defaults", ()): (1.7, 0.72, 4290, 210),
    ("opendal", "defaults", ()): (1.6, 0.81, 4301, 230),
    ("minio", "defaults", ("md5", "sha256")): (0.22, 4.1, 88, 1700),
    ("aiohttp", "defaults", ()): (1.4, 0.75, 61, 320),
    ("curl", "defaults", ()): (2.9, 0.36, 14, 4100),
    ("s5cmd", "defaults", ("md5",)): (1.1, 1.2, 64, 9800),
}

WORKLOADS: dict[str, Workload] = {
    "upload-4GiB": Workload("throughput", "one PUT of 4 GiB", 4 * GIB, 1, 1, "stored", ["c-sendfile", "c-send"]),
    "upload-256MiB-16x": Workload("throughput", "16 PUTs of 256 MiB", 256 * MIB, 16, 16, "stored", ["c-sendfile"]),
    "upload-4KiB": Workload("requests", "4 KiB objects, keep-alive", 4 * KIB, 0, 1, "stored", ["c-put"]),
    "upload-64KiB": Workload("requests", "64 KiB objects, keep-alive", 64 * KIB, 0, 1, "stored", ["c-put"]),
    "redirect-307": Workload("fault", "307 before the body", 64 * MIB, 1, 1, "stored", []),
    "redirect-307-mid": Workload("fault", "307 in mid-body", 64 * MIB, 1, 1, "stored", []),
    "redirect-301-bare": Workload("fault", "301 without Location", 64 * MIB, 1, 1, "stored", []),
    "refused-403": Workload("fault", "403", 64 * MIB, 1, 1, "error", []),
    "refused-412": Workload("fault", "412", 64 * MIB, 1, 1, "error", []),
    "busy-503": Workload("fault", "503, then fine", 64 * MIB, 1, 1, "stored", []),
    "slow-100": Workload("fault", "100 after 2 s", 64 * MIB, 1, 1, "stored", []),
    "no-100": Workload("fault", "no 100 at all", 64 * MIB, 1, 1, "stored", []),
}
LIMITS = {"c-sendfile": (8.1, 0.08), "c-send": (5.9, 0.14), "c-put": (0.12, 9.0)}
HANGS = {"aiobotocore": ("no-100",)}
WRONG = {"boto3-put_object": ("redirect-307",), "curl": ("redirect-301-bare",)}
FAILS = ("obstore", "opendal", "minio", "s5cmd")


def results_of(rounds: int = 7, seed: int = 1) -> Results:
    """The whole thing, the same for the same arguments."""
    chance = random.Random(seed)
    made = Results(results.SCHEMA, _meta(), WORKLOADS)
    for name, work in WORKLOADS.items():
        for transport in ("plain", "tls"):
            slow = 0.27 if transport == "tls" else 1.0
            if work.kind == "fault" and transport == "tls":
                continue
            for limit in work.limits:
                speed, cpu = LIMITS[limit]
                made.limits.append(
                    Limit(name, transport, limit, _good(chance, work, rounds, speed * slow, cpu / slow, 2, 20.0))
                )
            for (client, tuning, hashes), (speed, cpu, mib, micro) in CLIENTS.items():
                if work.kind == "fault":
                    job = [_fault(chance, work, name, client, speed, cpu, mib) for _ in range(rounds)]
                else:
                    job = _good(chance, work, rounds, speed * slow, cpu / slow, mib, micro)
                how = "128 KiB buffers, 8 threads" if tuning == "tuned" else ""
                made.runs.append(Run(name, transport, client, tuning, how, list(hashes), job))
    made.workloads = {**WORKLOADS, **_SCALING_WORKLOADS}
    made.scaling = list(_scaling(chance, rounds))
    made.runs[7].rounds[-1].foreign_share = 0.19
    return made


def _meta() -> Meta:
    return Meta(
        when="2026-11-23T01:02:03Z",
        commit="0123456789abcdef0123456789abcdef01234567",
        dirty=False,
        python="3.11.2",
        kernel="6.1.0",
        cpu="Synthetic CPU @ 2.60GHz",
        cores=2,
        memory_bytes=24 * GIB,
        congestion_control="reno",
        network_namespace=True,
        openssl="OpenSSL 3.0.15",
        openssl_of_c="OpenSSL 3.0.15",
        libc="glibc 2.36",
        load_before=0.12,
        versions={client: "1.2.3" for client, _, _ in CLIENTS},
        missing={"rclone": "apt-get install rclone", "httpx": "pip install httpx"},
        command="python -m bench --json results.json",
        budget_s=900.0,
        spent_s=612.5,
        notes=[NOTE],
    )


def _round(work: Workload, seconds: float, cpu: float, mib: float, count: int, outcome: Outcome) -> Round:
    return Round(
        seconds=seconds,
        cpu_user_s=cpu * 0.3,
        cpu_system_s=cpu * 0.7,
        peak_rss_bytes=int(mib * MIB),
        bytes=work.object_bytes * count,
        requests=count,
        outcome=outcome,
        detail="",
        wrong_host_body_bytes=0,
        wire_bytes=int(work.object_bytes * count * 1.0004) + 600 * count,
        latency_s=None,
        timings=None,
        concurrency=work.concurrency,
        sink_cpu_s=seconds * 0.4,
        foreign_share=0.01,
    )


def _good(
    chance: random.Random, work: Workload, rounds: int, speed: float, cpu: float, mib: float, micro: float
) -> list[Round]:
    made = []
    for _ in range(rounds):
        noise = chance.lognormvariate(0, 0.05)
        if work.kind == "requests":
            each_s = micro * 1e-6 * 1.6 * noise + work.object_bytes / (speed * GIB)
            one = _round(work, 1.0, 0.8, mib, max(1, int(1 / each_s)), "stored")
            one.latency_s = Latency(each_s * 0.95, each_s * 1.3, each_s * 2.9)
        else:
            gib = work.object_bytes * work.objects / GIB
            one = _round(work, gib / speed * noise, gib * cpu * noise, mib, work.objects, "stored")
        made.append(one)
        one.timings = _phases(one) if mib in (44, 46) else None
    return made


def _phases(one: Round) -> dict[str, float]:
    total = one.seconds / max(1, one.requests)
    return {
        "connect": 0.0001,
        "tls": 0.0,
        "sign": 0.00006,
        "continue_wait": 0.0003,
        "body": total,
        "response": 0.0002,
        "total": total + 0.00066,
    }


def _fault(
    chance: random.Random, work: Workload, name: str, client: str, speed: float, cpu: float, mib: float
) -> Round:
    gib = work.object_bytes / GIB
    outcome: Outcome = work.best
    detail = "AccessDenied: the server said no" if outcome == "error" else ""
    if name in HANGS.get(client, ()):
        outcome, detail = "hung", "no answer and no end within 20 s"
    elif name in WRONG.get(client, ()):
        outcome, detail = "silently-wrong", "reported success, the store has nothing under this key"
    elif client in FAILS and name.startswith("redirect"):
        outcome, detail = "error", "PermanentRedirect: the bucket must be addressed using the specified endpoint, <b>&"
    seconds = 20.0 if outcome == "hung" else gib / speed * chance.lognormvariate(0, 0.05) + 0.01
    one = _round(work, seconds, gib * cpu, mib, int(outcome == "stored"), outcome)
    one.detail = detail
    if client != "engine" and name.startswith("re"):
        one.wrong_host_body_bytes = {"minio": 64 * MIB, "obstore": 2 * MIB, "opendal": 9 * MIB, "s5cmd": 700 * KIB}.get(
            client, 0
        )
    elif client == "engine" and name == "redirect-307-mid":
        one.wrong_host_body_bytes = 393_216
    one.wire_bytes += one.wrong_host_body_bytes
    if client == "engine":
        one.timings = _phases(one)
    return one


# --- scaling ----------------------------------------------------------------------------------------------------------

_SCALING_WORKLOADS = {
    "scaling-size": Workload("throughput", "one PUT, by size", 0, 1, 1, "stored", []),
    "scaling-connections": Workload("throughput", "64 MiB PUTs, by connections", 64 * MIB, 0, 0, "stored", []),
    "scaling-rtt": Workload("requests", "PUTs, by round-trip time", 0, 0, 1, "stored", []),
}


def _scaling(chance: random.Random, rounds: int) -> list[Scaling]:
    made = []
    for size in (MIB, 16 * MIB, 256 * MIB, GIB, 4 * GIB, 16 * GIB):
        for expect in ("always", "never"):
            job = [
                _timed(chance, size, 1, 4e-4 + 2e-4 * (expect == "always") + size / GIB / 7.7) for _ in range(rounds)
            ]
            made.append(Scaling("size", size, "scaling-size", "engine", expect, size, 1, 0.0, job))
    for count in (1, 2, 4, 8, 16, 64, 256):
        for client, top in (("engine", 17.0), ("c-sendfile", 19.0), ("boto3-put_object", 1.1)):
            gib_s = top * count / (count + 1.3)
            job = [_timed(chance, 64 * MIB, count, count / 16 / gib_s) for _ in range(rounds)]
            made.append(Scaling("connections", count, "scaling-connections", client, "auto", 64 * MIB, count, 0.0, job))
    for rtt_s in (0.0, 0.001, 0.02, 0.1):
        for size in (4 * KIB, 64 * KIB, MIB):
            for expect in ("always", "never"):
                trips = 2 if expect == "always" else 1
                job = [_timed(chance, size, 1, 3e-4 + trips * rtt_s + size / GIB) for _ in range(rounds)]
                made.append(Scaling("rtt", rtt_s, "scaling-rtt", "engine", expect, size, 1, rtt_s, job))
    return made


def _timed(chance: random.Random, size: int, count: int, seconds: float) -> Round:
    work = Workload("throughput", "", size, count, count, "stored", [])
    return _round(work, seconds * chance.lognormvariate(0, 0.03), seconds * 0.8, 46, count, "stored")


assert set(get_args(Outcome)) == {"stored", "error", "silently-wrong", "hung"}
