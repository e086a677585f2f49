"""How cost grows: the fit, the break-even, the relay that makes paths longer, and a small run of it all."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import random
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import curves, harness, report, results, scaling
from bench.fit import fit
from engine import exchange
from engine.limits import EXPECT_THRESHOLD_BYTES
from tests import synthetic_results

ROOT = Path(__file__).resolve().parent.parent
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def build(name: str) -> str:
    try:
        return harness.compiled(name)
    except harness.Missing as missing:
        pytest.skip(str(missing))


# --- fitting ----------------------------------------------------------------------------------------------------------


def test_a_line_is_found_through_points_of_four_decades() -> None:
    x = [MIB * 4.0**i for i in range(8)]
    found = fit(x, [3e-4 + 1.2e-10 * each for each in x])
    assert found.fixed == pytest.approx(3e-4)
    assert found.slope == pytest.approx(1.2e-10)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert found.at(0) == found.fixed


def test_an_outlier_does_not_move_the_line() -> None:
    chance = random.Random(7)
    x = [MIB * 2.0**i for i in range(12)]
    y = [(3e-4 + 1.2e-10 * each) * chance.lognormvariate(0, 0.02) for each in x]
    y[4] *= 5
    found = fit(x, y)
    assert found.fixed == pytest.approx(3e-4, rel=0.1)
    assert found.slope == pytest.approx(1.2e-10, rel=0.1)
    assert found.error < 0.05


def test_nothing_costs_less_than_nothing() -> None:
    found = fit([1.0, 2.0, 3.0], [0.5, 1.6, 2.9])
    assert found.fixed == 0
    assert found.slope == pytest.approx(0.8, rel=0.25)


@pytest.mark.parametrize(("x", "y"), [([1.0], [1.0]), ([2.0, 2.0], [1.0, 1.1]), ([1.0, 2.0], [0.0, 1.0])])
def test_a_line_needs_two_places_and_positive_costs(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="a line needs"):
        fit(x, y)


# --- asking -----------------------------------------------------------------------------------------------------------


def test_at_the_break_even_asking_costs_what_it_saves() -> None:
    for _name, rtt_s, rate in curves.LINKS:
        for size in (KIB, EXPECT_THRESHOLD_BYTES, MIB, GIB, 8 * GIB):
            p = curves.break_even(size, rtt_s, rate)
            assert 0 < p < 1
            assert (1 - p) * (rtt_s + curves.quiet_s(size)) == pytest.approx(p * size / rate)
        for p in (0.5, 0.1, 0.01):
            size = curves.pays_from(p, rtt_s, rate)
            assert curves.break_even(size / 1.02, rtt_s, rate) > p
            assert all(curves.break_even(size * 2.0**i, rtt_s, rate) <= p for i in range(20))


def test_the_documents_break_even_is_the_computed_one() -> None:
    text = (ROOT / "docs" / "expect.md").read_text()
    units = {"MiB": MIB, "GiB": GIB}
    for name, rtt_s, rate in curves.LINKS:
        row = re.search(rf"^\| {re.escape(name)} \| (\d+) % \| ([\d.]+) (\w+) \|$", text, re.MULTILINE)
        assert row is not None, f"docs/expect.md has no row for {name}"
        assert int(row[1]) / 100 == pytest.approx(curves.break_even(EXPECT_THRESHOLD_BYTES, rtt_s, rate), abs=0.006)
        assert float(row[2]) * units[row[3]] == pytest.approx(curves.pays_from(0.01, rtt_s, rate), rel=0.03)


@pytest.mark.parametrize("size", [1, 64 * KIB, MIB - 1, MIB, 30 * MIB, 300 * MIB, GIB, 16 * GIB])
def test_the_silence_that_is_counted_is_the_engines(size: int) -> None:
    plan = exchange.plan_body(
        body_size=size,
        replayable=True,
        expect="always",
        continue_timeout_s="auto",
        facts=exchange.OriginFacts(),
        is_s3=False,
        round_trip_s=0.001,
        response_timeout_s=60,
        stall_timeout_s=60,
    )
    assert curves.quiet_s(size) == plan.quiet_s


def test_the_cost_of_asking_is_the_difference_of_two_medians() -> None:
    points = synthetic_results.results_of(rounds=7).scaling
    assert curves.asking_cost_s(points, 64 * KIB, 0.1) == pytest.approx(0.1, rel=0.1)
    assert curves.asking_cost_s(points, 5, 0.1) is None


def test_fitted_round_trips_are_those_that_were_made_up() -> None:
    points = synthetic_results.results_of(rounds=7).scaling
    for expect, trips in (("never", 1), ("always", 2)):
        line = curves.line_through(
            curves.pick(points, "rtt", "scaling-rtt", expect=expect, size=64 * KIB), curves.seconds_each
        )
        assert line is not None
        assert line.slope == pytest.approx(trips, rel=0.05)


# --- the relay --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def relay(target: int, *delays_us: int) -> Iterator[list[int]]:
    words = [build("relay"), str(target), *map(str, delays_us)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield [int(process.stdout.readline()) for _ in delays_us]
        assert process.poll() is None, "the relay has ended"
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


@contextlib.contextmanager
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield listener


def receive_all(one: socket.socket) -> bytes:
    pieces = []
    while piece := one.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def test_bytes_arrive_whole_and_late_and_so_does_the_end() -> None:
    body = random.Random(3).randbytes(3 * MIB)
    with server() as listener, relay(listener.getsockname()[1], 0, 30_000) as ports:
        for port, delay_s in zip(ports, (0.0, 0.03), strict=True):
            with socket.create_connection(("127.0.0.1", port), 10) as client, listener.accept()[0] as peer:
                peer.settimeout(10)
                sender = threading.Thread(target=lambda one=client: (one.sendall(body), one.shutdown(socket.SHUT_WR)))
                began = time.monotonic()
                sender.start()
                assert peer.recv(1, socket.MSG_PEEK)
                assert time.monotonic() - began >= delay_s
                assert receive_all(peer) == body
                sender.join()
                peer.sendall(b"answer")
                peer.shutdown(socket.SHUT_WR)
                assert receive_all(client) == b"answer"
                assert time.monotonic() - began >= 2 * delay_s


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_is_passed_on_behind_what_was_sent_before_it(who: str) -> None:
    with server() as listener, relay(listener.getsockname()[1], 5000) as ports:
        client = socket.create_connection(("127.0.0.1", ports[0]), 10)
        peer = listener.accept()[0]
        one, other = (client, peer) if who == "client" else (peer, client)
        other.settimeout(10)
        with other:
            one.sendall(b"last words")
            assert other.recv(100) == b"last words"
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
            with pytest.raises(ConnectionResetError):
                receive_all(other)


def test_a_relay_whose_target_is_gone_closes_and_goes_on() -> None:
    with server() as listener:
        port = listener.getsockname()[1]
    with relay(port, 0) as ports:
        for _ in range(2):
            client = socket.create_connection(("127.0.0.1", ports[0]), 10)
            with client, contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""


# --- all of it --------------------------------------------------------------------------------------------------------


def test_a_small_run_measures_every_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sink", "limits", "relay"):
        build(name)
    monkeypatch.setattr(scaling, "CONNECTIONS", (1, 4))
    monkeypatch.setattr(scaling, "CONNECTION_OBJECT", MIB)
    monkeypatch.setattr(scaling, "CONNECTION_OBJECTS", 4)
    monkeypatch.setattr(scaling, "RTTS_S", (0.0, 0.002, 0.004))
    monkeypatch.setattr(scaling, "RTT_SIZES", (4 * KIB, MIB))
    monkeypatch.setattr(scaling, "ECHOES", 3)
    before = set(os.listdir("/proc/self/fd"))
    found = scaling.run(rounds=1, budget_s=0, largest=4 * MIB)
    assert set(os.listdir("/proc/self/fd")) == before
    assert {one.axis for one in found} == {"size", "connections", "rtt"}
    for one in found:
        (each,) = one.rounds
        refused = one.workload == "scaling-refused"
        assert each.outcome == ("error" if refused else "stored"), each.detail
        assert each.bytes == each.requests * one.object_bytes
        assert (
            each.seconds >= one.rtt_s * (1 if refused or one.expect == "never" else 2) * 0.99
            or one.client == "c-sendfile"
        )
        wasted = each.wrong_host_body_bytes
        assert wasted <= one.object_bytes if refused and one.expect == "never" else wasted == 0
        assert math.isfinite(each.foreign_share)
    run = synthetic_results.results_of(rounds=1)
    run.workloads = {**run.workloads, **scaling.WORKLOADS}
    run.scaling = found
    results.validate(dataclasses.asdict(run))
    assert "By round-trip time" in report.page(run)
