"""Looks through all that the suite puts out for the keys of its sandboxes: a test that shows one fails.

Looked at are captured output and logs of every test, passed or not, what tests read with capsys and capfd, what processes that
they start write, the text of every failure, and every error and result of the engine, whatever the test makes of it.
`putengine sandbox` prints its keys on purpose: a test that has it do so is marked `prints_keys`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

import engine.request
from engine import sandbox, signing

_keys: set[str] = set()
_found: list[str] = []
_pattern: re.Pattern[str] | None = None


def keep_secret(credentials: signing.Credentials) -> signing.Credentials:
    """From now on, the secret key and the token of these are looked for."""
    global _pattern
    _keys.update(filter(None, (credentials.secret_key, credentials.token)))
    _pattern = re.compile("|".join(map(re.escape, _keys)))
    return credentials


def look(text: str | bytes | None, where: str) -> None:
    """Note a leak; the report of the running test fails for it."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    if text and _pattern is not None and _pattern.search(text):
        _found.append(where)  # not the text: this report is output, too


def _watch() -> None:
    make = sandbox.new_credentials
    read, communicate, run = pytest.CaptureFixture.readouterr, subprocess.Popen.communicate, engine.request.Run.run

    def readouterr(self: Any) -> Any:
        result = read(self)
        look(result.out, "what was captured of stdout")
        look(result.err, "what was captured of stderr")
        return result

    def communicate_watched(self: Any, *given: Any, **named: Any) -> Any:
        result = communicate(self, *given, **named)
        for text, stream in zip(result, ("stdout", "stderr"), strict=True):
            look(text, f"the {stream} of a process")
        return result

    async def run_watched(self: engine.request.Run) -> engine.request.Outcome:
        try:
            outcome = await run(self)
        except Exception as error:
            look(f"{error!r} {error} {vars(error)}", f"an engine.{type(error).__name__}")
            raise
        look(repr((outcome.hops, outcome.url)), "a result")
        return outcome

    sandbox.new_credentials = lambda *given: keep_secret(make(*given))
    pytest.CaptureFixture.readouterr = readouterr  # type: ignore[method-assign]
    subprocess.Popen.communicate = communicate_watched  # type: ignore[method-assign]
    engine.request.Run.run = run_watched  # type: ignore[method-assign]


_watch()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    report = yield
    for name, text in report.sections:
        look(text, f"'{name}'")
    look(report.longreprtext, "the text of the failure")
    leaks = sorted(set(_found))
    _found.clear()
    if leaks and item.get_closest_marker("prints_keys") is None:
        words = f"a key of the sandbox is in {', '.join(leaks)}"
        if report.outcome == "failed":
            report.sections.append(("leaks", words))
        else:
            report.outcome, report.longrepr = "failed", words
    return report
