"""The same world with a script instead of a seed: any host name, scheme, port and address, and servers that do as told."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from tests.simulation.loop import VirtualLoop
from tests.simulation.network import CALL, Link, Network, Request
from tests.simulation.scenario import Machine, addresses_of, machine

Answer = Callable[[Request], bytes]  # given a request whose body is complete, or which asks


class Recorder:
    """A referee that judges nothing."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.dialled_addresses: list[str] = []

    def request_begun(self, request: Request) -> None:
        self.requests.append(request)

    def head_sent(self, request: Request) -> None:
        pass

    def body(self, request: Request, start: int, count: int) -> None:
        pass

    def heard(self, *_what: object) -> None:
        pass

    def dialled(self, _call: object, address: str) -> None:
        self.dialled_addresses.append(address)


def talk(main: Callable[[], Awaitable[Any]], answer: Answer) -> Recorder:
    """Run `main`, which uses the engine, in a world where all servers give `answer`. Bodies are ranges of PATTERN from 0."""
    loop, recorder, rng = VirtualLoop(100_000), Recorder(), random.Random(1)

    async def serve(link: Link) -> None:
        link.read_on()
        while (request := await link.next_request()) is not None:
            if not request.asks and not await link.until(lambda request=request: request.complete):  # type: ignore[misc]
                return
            link.send(answer(request))

    async def run() -> None:
        CALL.set(SimpleNamespace(offset=0, number=0))
        try:
            await main()
        finally:
            for peer in network.peers:
                peer.cancel()

    network = Network(loop, rng, recorder, addresses_of, source_faults=0.0)
    network.serve, network.connect_faults = serve, False
    with machine():
        Machine.network, Machine.rng = network, rng
        try:
            loop.run_until_complete(run())
        finally:
            loop.close()
    return recorder
