"""Seeded faults between the engine and the sandbox: `stress_faults.py`, a share of the cases on each loop, plain and over TLS.

FAULT_CASES says how many there are in all, FAULT_SEED where they come from. A failure prints the command that runs its case
again.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = int(os.environ.get("FAULT_CASES", "300"))
SEED = os.environ.get("FAULT_SEED", "1")
SHARES = {  # percent
    ("plain", "uvloop"): 35,
    ("plain", "asyncio"): 20,
    ("tls", "uvloop"): 20,
    ("tls", "asyncio"): 10,
    ("tls-ssl", "uvloop"): 5,
    ("tls-ssl", "asyncio"): 10,
}


@pytest.mark.parametrize(("over", "loop"), SHARES)
def test_a_broken_connection_loses_nothing_and_leaves_nothing_behind(over: str, loop: str) -> None:
    count = CASES * SHARES[over, loop] // 100
    before = sum(share for way, share in SHARES.items() if list(SHARES).index(way) < list(SHARES).index((over, loop)))
    first = CASES * before // 100  # no case twice
    command = [
        sys.executable,
        "-m",
        "tests.stress_faults",
        "--seed",
        SEED,
        "--first",
        str(first),
        "--count",
        str(count),
    ]
    done = subprocess.run(
        [*command, "--over", over, "--loop", loop],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    (phases,) = re.findall(r"^  struck: (.*)$", done.stdout, re.MULTILINE)
    struck = sum(map(int, re.findall(r"(\d+)(?:,|$)", phases)))
    assert struck > count / 3, f"most faults never came about: {done.stdout}"
