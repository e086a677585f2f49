"""The process whose time and memory the scaling curves show: a client of engine that does as it is told, line by line.

Reads jobs as lines of JSON from stdin, writes one line of JSON for each to stdout. Connections are kept from job to job, one
client for each (endpoint, expect, connections): what is measured is a PUT on a connection that exists.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import uvloop

import engine

Clients = dict[tuple[str, str, int], engine.Client]


async def serve() -> None:
    clients: Clients = {}
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(await _run(clients, job)), flush=True)
    for client in clients.values():
        await client.__aexit__(None, None, None)


async def _client(clients: Clients, job: dict[str, Any]) -> engine.Client:
    key = (job["endpoint"], job["expect"], job["connections"])
    if key not in clients:
        config = engine.Config(
            expect=job["expect"], max_connections=job["connections"], max_idle_s=600, retry=engine.Retry(max_attempts=1)
        )
        made = engine.Client(
            endpoint_url=job["endpoint"],
            region="us-east-1",
            credentials=engine.Credentials("AKIAIOSFODNN7EXAMPLE", "secret"),
            config=config,
        )
        clients[key] = await made.__aenter__()
    return clients[key]


async def _run(clients: Clients, job: dict[str, Any]) -> dict[str, Any]:
    """`objects` PUTs, `connections` at a time, or one PUT that is refused. Seconds, CPU and the last put's phases."""
    client = await _client(clients, job)
    before, began = _cpu(), time.perf_counter()
    try:
        timings, error = await _work(client, job), ""
    except engine.EngineError as failed:
        timings, error = [], f"{type(failed).__name__}: {failed}"
    seconds, after = time.perf_counter() - began, _cpu()
    return {
        "seconds": seconds,
        "user": after[0] - before[0],
        "system": after[1] - before[1],
        "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "timings": next((one for one in timings if one), None),
        "error": error,
    }


async def _work(client: engine.Client, job: dict[str, Any]) -> list[dict[str, float]]:
    turns = iter(range(job["objects"]))
    return await asyncio.gather(*(_worker(client, job, turns) for _ in range(job["connections"])))


async def _worker(client: engine.Client, job: dict[str, Any], turns: Iterator[int]) -> dict[str, float]:
    last: dict[str, float] = {}
    for turn in turns:
        result = await client.put(
            job["file"], f"s3://bucket/{turn}", size=job["object_bytes"], checksum=job["checksum"] or None
        )
        timings = result.timings
        last = {name: getattr(timings, name) for name in timings.__slots__}
    return last


def _cpu() -> tuple[float, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime, usage.ru_stime


if __name__ == "__main__":
    uvloop.run(serve())
