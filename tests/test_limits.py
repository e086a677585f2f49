"""Limits: each is used, has a reason, and fits the others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine import limits
from engine._fastparse import ParseError, ResponseParser

ENGINE = Path(limits.__file__).parent
UNITS = {"KIB", "MIB"}
LIMITS = {name: value for name, value in vars(limits).items() if name.isupper() and name not in UNITS}
SOURCE = (ENGINE / "limits.py").read_text()


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_is_used(name: str) -> None:
    used = [
        path.name
        for path in [*ENGINE.glob("*.py"), *ENGINE.glob("*.pyx")]
        if path.name != "limits.py" and re.search(rf"\b{name}\b", path.read_text())
    ]
    assert used or re.search(rf"= .*\b{name}\b", SOURCE), f"nothing uses limits.{name}: take it out"


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_has_its_reason(name: str) -> None:
    line = next(line for line in SOURCE.splitlines() if line.startswith(f"{name}: Final"))
    reason = line.partition("#")[2].strip()
    alias = re.fullmatch(rf"{name}: Final = [A-Z_]+", line)
    assert reason or alias, f"write behind limits.{name} why it is so, or what others have"


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_names_its_unit_or_counts(name: str) -> None:
    unit = name.endswith(("_BYTES", "_S", "_CHARS", "_S_PER_BYTE"))
    counts = name.endswith(("_MAX", "_DEPTH", "_HOPS", "_ATTEMPTS", "_TRIPS"))
    assert unit or counts, f"limits.{name}: units come last"
    assert LIMITS[name] > 0


def test_the_parser_takes_the_limits_as_its_own() -> None:
    ResponseParser(max_head=limits.HEAD_MAX_BYTES, max_fields=limits.FIELDS_MAX, body_max=limits.ERROR_BODY_MAX_BYTES)
    with pytest.raises(ValueError, match="max_head"):
        ResponseParser(max_head=limits.HEAD_MAX_BYTES + 1)
    parser = ResponseParser()
    parser.expect("PUT")
    parser.feed(b"HTTP/1.1 102 Processing\r\n\r\n" * limits.INTERIM_MAX)
    with pytest.raises(ParseError) as caught:
        parser.feed(b"HTTP/1.1 102 Processing\r\n\r\n")
    assert caught.value.kind == "too-many-1xx"


def test_limits_fit_each_other() -> None:
    assert limits.HELD_BACK_BYTES + limits.TLS_RECORD_BYTES < limits.INLINE_BODY_MAX_BYTES
    assert limits.TLS_BATCH_BYTES % limits.TLS_RECORD_BYTES == 0
    assert limits.COALESCE_MAX_BYTES <= limits.EXPECT_THRESHOLD_BYTES, (
        "what is asked for never shares a segment with its head"
    )
    assert limits.EXPECT_THRESHOLD_BYTES <= limits.QUIET_THRESHOLD_BYTES
    assert limits.QUIET_S < limits.CONTINUE_TIMEOUT_S < limits.RESPONSE_TIMEOUT_S
    assert limits.RETRY_BASE_S < limits.RETRY_CAP_S <= limits.RETRY_AFTER_MAX_S
    assert limits.MAX_IDLE_S < 5, "S3 drops idle connections after about 5 s"
    assert limits.HEAD_MAX_BYTES <= limits.RECEIVE_BUFFER_BYTES
