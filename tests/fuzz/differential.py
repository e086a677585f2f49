"""Fuzzes the response parser against the plain-Python one.

Invariant: for any bytes, any method, any split, any limits and every instruction set, both give the same answer: interim
answers, response, fields, body, what is left over, and the kind and offset of the fault.

    python tests/fuzz/differential.py [--seconds 60] [--seed N]

Exits with 1 and prints the smallest input it could find for which it does not hold, as a line for corpus.txt.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent.parent)]

from parser_vectors import INSTRUCTION_SETS, ask_fast, ask_reference, escape, load_corpus, load_vectors, split  # noqa: E402

from engine import _fastparse  # noqa: E402

HEADS = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.0 204\r\n",
    b"",
]
WORDS = [
    *(b"\r\n", b"\r\n\r\n", b"\n", b"\r", b" ", b"\t", b":", b",", b";", b"=", b'"', b"\\", b"\x00", b"\x7f", b"\xff"),
    *(b"HTTP/1.1 ", b"HTTP/1.0 304 \r\n", b"101", b"199", b"99", b"600", b"0", b"5", b"05", b"9223372036854775807"),
    *(b"Content-Length: ", b"content-length: 5\r\n", b"Transfer-Encoding: ", b"chunked", b"7fffffffffffffff"),
    *(b"Connection: ", b"close", b"keep-alive", b"x" * 63, b"x" * 64, b"a: b\r\n" * 5),
    *(b"5\r\nhello\r\n", b"0\r\n\r\n", b"0\r\nA: b\r\n\r\n", b';a="b;c"'),
]


class Case(NamedTuple):
    data: bytes
    method: str
    eof: bool
    limits: dict[str, int]
    splits: list[list[int]]

    def difference(self) -> str | None:
        expected = ask_reference(self.data, self.method, self.eof, **self.limits)
        for name in INSTRUCTION_SETS:
            _fastparse._use_instruction_set(name)
            for cuts in self.splits:
                cuts = [c for c in cuts if c <= len(self.data)]
                answer = ask_fast(split(self.data, cuts), self.method, self.eof, **self.limits)
                if answer != expected:
                    return (
                        f"{name}, split at {cuts}, {self.method}, eof {self.eof}, {self.limits}\n{expected}\n{answer}"
                    )
        return None


def mutate(rng: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    at = rng.randint(0, len(data))
    gone = rng.choice((0, 0, 0, 1, 2, rng.randint(0, 20)))
    kind = rng.randrange(6)
    if kind == 0:
        piece = rng.choice(WORDS)
    elif kind == 1:
        other = rng.choice(seeds)
        start = rng.randint(0, len(other))
        piece = other[start : start + rng.randint(0, 200)]
    elif kind == 2:
        start = rng.randint(0, len(data))
        piece = data[start : start + rng.randint(0, 200)]
    elif kind == 3:
        piece = bytes([rng.choice((rng.randrange(256), 0, 9, 10, 13, 32, 34, 44, 58, 59, 127, 128))])
        gone = 1
    elif kind == 4:
        piece = b""
    else:
        piece = rng.choice((b"x", b" ", b"\t", b"y: z\r\n")) * rng.randint(0, 80)
    return data[:at] + piece + data[at + gone :]


def make_case(rng: random.Random, seeds: list[bytes]) -> Case:
    data = rng.choice(HEADS) + rng.choice(seeds) if rng.random() < 0.4 else rng.choice(seeds)
    for _ in range(rng.randint(1, 6)):
        data = mutate(rng, data, seeds)
    limits = {}
    if rng.random() < 0.2:
        limits = {"max_head": rng.randint(1, 200), "max_fields": rng.randint(0, 6), "body_max": rng.randint(0, 20)}
    splits = [[], rng.choices(range(len(data) + 1), k=rng.randint(1, 6))]
    if len(data) < 400:
        splits.append(list(range(1, len(data))))
    return Case(data, rng.choice(("PUT", "PUT", "GET", "HEAD", "CONNECT")), rng.random() < 0.4, limits, splits)


def smallest(case: Case) -> Case:
    """Take pieces away as long as the difference stays."""
    size = max(1, len(case.data) // 2)
    while size:
        for at in range(0, len(case.data), size):
            data = case.data[:at] + case.data[at + size :]
            shorter = case._replace(data=data, splits=[*case.splits, list(range(1, len(data)))])
            if shorter.difference():
                case = shorter
                break
        else:
            size //= 2
    return case


def fuzz(seconds: float, seed: int) -> int:
    """Returns how many cases were tried. Raises AssertionError on the first difference."""
    rng = random.Random(seed)
    seeds = [v.data for v in load_vectors() if len(v.data) < 3000] + load_corpus()
    until = time.monotonic() + seconds
    tried = 0
    try:
        while time.monotonic() < until:
            case = make_case(rng, seeds)
            if case.difference():
                case = smallest(case)
                raise AssertionError(f"seed {seed}, case {tried}:\n{escape(case.data)}\n{case.difference()}")
            tried += 1
    finally:
        _fastparse._use_instruction_set("")
    return tried


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--seed", type=int, default=int(time.time()))
    chosen = options.parse_args()
    try:
        tried = fuzz(chosen.seconds, chosen.seed)
    except AssertionError as error:
        print(error)
        return 1
    print(f"{tried} cases on {', '.join(INSTRUCTION_SETS)}, seed {chosen.seed}: no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
