"""The fuzzers' corpus on both parsers, and the fuzzers themselves for a moment: CI runs them for minutes."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import differential
import pytest
from parser_vectors import ask_reference, escape, load_corpus

from engine import _fastparse

FOLDER = Path(__file__).parent
CORPUS = load_corpus()


@pytest.fixture(autouse=True)
def _best_instruction_set_again() -> object:
    yield
    _fastparse._use_instruction_set("")


@pytest.mark.parametrize("method", ["PUT", "HEAD"])
def test_both_parsers_answer_the_corpus_alike(method: str) -> None:
    rng = random.Random(0)
    for data in CORPUS:
        splits = [[], [rng.randint(0, len(data))], list(range(1, len(data)))]
        assert differential.Case(data, method, True, {}, splits).difference() is None, escape(data)


def test_the_corpus_reaches_most_faults() -> None:
    kinds = {fault[0] for data in CORPUS if (fault := ask_reference(data, "PUT", eof=True).fault)}
    assert len(kinds) > 20


def test_corpus_lines_are_escaped_both_ways_alike() -> None:
    for data in [*CORPUS, b"a\\r b ", bytes(range(256))]:
        assert escape(data).encode("ascii").decode("unicode_escape").encode("latin-1") == data


def test_a_moment_of_differential_fuzzing() -> None:
    assert differential.fuzz(seconds=1, seed=random.randrange(1 << 30)) > 10


def test_the_differential_fuzzer_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference that trims no HTAB must be found out."""
    monkeypatch.setattr("reference_parser.OWS", (32,))
    with pytest.raises(AssertionError, match="seed 1"):
        differential.fuzz(seconds=20, seed=1)


def test_a_moment_of_fuzzing_the_scanners(tmp_path: Path) -> None:
    program = tmp_path / "scan_fuzz"
    try:
        subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", program, FOLDER / "scan_fuzz.c"], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    done = subprocess.run([program, "1", "7", FOLDER / "corpus.txt"], capture_output=True, text=True)
    assert "all held" in done.stdout, done.stderr
