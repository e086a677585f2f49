"""The checker of leaks finds each kind of leak that is made on purpose, and nothing where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUITE = """
import asyncio, logging, subprocess, sys, pytest, engine
from engine import sandbox

KEY = sandbox.new_credentials(False).secret_key
HALVES = KEY[:9], KEY[9:]

def test_leak_by_print(): print(KEY)
def test_leak_on_stderr(): print("x", KEY, file=sys.stderr)
def test_leak_by_log(): logging.getLogger("engine").warning("with %s", KEY)
def test_leak_by_failure(): assert KEY == "something else"
def test_leak_read_with_capsys(capsys):
    print(KEY)
    capsys.readouterr()
def test_leak_by_a_process(): subprocess.run([sys.executable, "-c", f"print('{KEY}')"], capture_output=True)
def test_leak_by_a_process_on_stderr():
    subprocess.run([sys.executable, "-c", f"raise SystemExit('{KEY}')"], stderr=subprocess.PIPE)
def test_leak_by_an_error_that_is_caught():
    with pytest.raises(engine.EngineError):
        asyncio.run(engine.put_async(b"x", f"http://127.0.0.1:1/{KEY}", checksum=None))
@pytest.fixture
def leaking():
    yield
    print(KEY)
def test_leak_in_a_teardown(leaking): pass

def test_clean_half_a_key(): print(HALVES[0], "and", HALVES[1])
def test_clean_error():
    with pytest.raises(engine.EngineError):
        asyncio.run(engine.put_async(b"x", "http://127.0.0.1:1/k", checksum=None))
@pytest.mark.prints_keys
def test_clean_because_it_is_marked(): print(KEY)
"""


def test_each_kind_of_leak_is_found_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = prints_keys: on purpose\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.leaks", "-p", "no:cacheprovider", "-q", "-rA", "--tb=no"]
    ran = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = [line.split("::")[1] for line in ran.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    failed = {line.split(" ")[0] for line in lines}
    expected = {name.partition("(")[0] for name in SUITE.split("def ") if name.startswith("test_leak")}
    assert failed == expected, ran.stdout
    assert len(expected) == 9
    assert "4 passed" in ran.stdout, ran.stdout


@pytest.mark.prints_keys
def test_the_checker_watches_this_very_suite(capsys: pytest.CaptureFixture[str]) -> None:
    from engine import sandbox
    from tests import leaks

    print(sandbox.new_credentials(False).secret_key)
    capsys.readouterr()
    assert leaks._found == ["what was captured of stdout"]
