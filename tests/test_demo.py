"""The demo tells the truth, fits a terminal, cleans up, and would notice if what it claims were false."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine import cli, demo
from engine.errors import UsageError
from engine.results import Hop

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
SIZE = 3 * MIB + 1


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is made is made in an empty folder."""
    (tmp_path / "room").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "room"))
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def room(tmp_path: Path, environment: dict[str, str]) -> Path:
    return tmp_path / "room"


def test_it_shows_a_file_refused_and_sent_once_and_proves_it(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.bin"
    data = os.urandom(SIZE)
    file.write_bytes(data)
    assert cli.main(["demo", str(file)]) == 0
    told, errors = capsys.readouterr()
    assert errors == ""
    assert max(map(len, told.splitlines())) <= 80
    asking, not_asking = told.split("2. What a client that does not ask pays")
    timeline = re.findall(r"^ +\d\.\d{3} s  (\S+) +(\S+)  (.+)$", asking, re.MULTILINE)
    assert [words[:2] for words in timeline] == [
        ("asked", "redirector"),
        ("refused", "redirector"),
        ("re-signed", "(here)"),
        ("asked", "store"),
        ("allowed", "store"),
        ("sending", "store"),
        ("stored", "store"),
    ]
    assert timeline[1][2] == "307, 0 body bytes had left"
    count = f"{SIZE:,}"
    assert re.search(r"^ +1  redirector +307 +0 +0 +0 +\d+\.\d{3}$", asking, re.MULTILINE)
    assert re.search(rf"^ +2  store +200 +{count} +{count} +{count} +\d+\.\d{{3}}$", asking, re.MULTILINE)
    assert re.findall(r"  (?:file|object) +([0-9a-f]{64})", asking) == [hashlib.sha256(data).hexdigest()] * 2
    assert asking.count("true ") == 3
    assert "FALSE" not in told
    for hop, server in ((1, "redirector"), (2, "store")):
        assert re.search(rf"^ +{hop}  {server} +\d+ +{count} +{count} +{count} ", not_asking, re.MULTILINE)
    assert "307, 3,145,729 body bytes had left" in not_asking
    assert re.search(r"not asking +6\.00 MiB +3\.00 MiB", not_asking)
    assert list(room.iterdir()) == []
    assert file.read_bytes() == data, "a file of the user's own is only read"


def test_it_makes_a_file_where_none_is_given_and_removes_it(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--size", "2M"]) == 0
    assert "The file: 2.00 MiB of random bytes, made in " in capsys.readouterr().out
    assert list(room.iterdir()) == []


@pytest.mark.parametrize(
    ("scenario", "code", "claim"),
    [
        ("redirect-307-read", 1, "The refusing server received no byte of it."),
        ("store-corrupt-nochecksum", 5, "The object is the file, byte for byte."),
    ],
)
def test_a_claim_that_does_not_hold_is_called_false(
    room: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scenario: str,
    code: int,
    claim: str,
) -> None:
    monkeypatch.setattr(demo, "_ASKED", scenario)
    assert cli.main(["demo", "--size", "2M"]) == code
    assert f"FALSE  {claim}\n" in capsys.readouterr().out
    assert list(room.iterdir()) == []


def test_the_table_adds_up() -> None:
    hops = [
        Hop("http://a.test:1/b/k", 307, seconds=0.5),
        Hop("http://b.test:2/b/k", 200, body_bytes_sent=4096, body_bytes_read=4096, seconds=1.25),
    ]
    assert demo.accounts(hops, [0], {"a.test:1": "redirector"}) == [
        "hop  server      status  body sent  file read  received  seconds",
        "  1  redirector     307          0          0         0    0.500",
        "  2  b.test:2       200      4,096      4,096         ?    1.250",
        "     together                4,096      4,096         0    1.750",
    ]


@pytest.mark.parametrize("no_color", ["", "1"])
def test_on_a_terminal_of_80_columns_no_line_wraps(environment: dict[str, str], room: Path, no_color: str) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", "demo", "--size", "30M"],
        env=environment | {"NO_COLOR": no_color, "TERM": "xterm"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    seen = b""
    with contextlib.suppress(OSError):  # EIO: the last writer has closed
        while piece := os.read(master, 65536):
            seen += piece
    os.close(master)
    text = seen.decode()
    assert process.wait(20) == 0, text
    assert ("\x1b[31m" in text) is (no_color == "")
    assert "\r" in text.replace("\r\n", "")
    plain = re.sub(r"\x1b\[[0-9]*[mK]", "", text)
    assert max(len(drawn) for line in plain.split("\n") for drawn in line.split("\r")) <= 80
    assert "making random bytes" in plain
    assert list(room.iterdir()) == []


@pytest.mark.parametrize("moment", ["keeps objects", "re-signed", "sending", "does not ask", "announced"])
def test_ctrl_c_ends_it_cleanly_at_any_moment(environment: dict[str, str], room: Path, moment: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", "demo", "--size", "48M"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # as on a terminal: the signal goes to the whole group
    )
    assert process.stdout
    assert process.stderr
    while moment.encode() not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _out, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, b"putengine: interrupted\n")
    assert list(room.iterdir()) == []


def test_the_folder_is_the_first_with_room(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert demo._base_with_room(MIB, None) == str(room)
    assert demo._base_with_room(MIB, str(tmp_path)) == str(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    assert demo._base_with_room(MIB, None) == "/var/tmp"
    with pytest.raises(FileNotFoundError):
        demo._base_with_room(MIB, str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"needs 16\.0 EiB on a disk; /var/tmp has .+ Give --folder"):
        demo._base_with_room(16 << 60, None)


def test_a_pipe_cannot_be_shown(room: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="is a pipe or a device"):
        demo.demo(str(tmp_path / "fifo"))
