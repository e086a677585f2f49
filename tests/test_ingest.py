"""examples/ingest.py as its users run it: a process of its own, three ways, with refusals, retries, redirects and Ctrl-C."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine import sandbox

ROOT = Path(__file__).resolve().parent.parent
WAYS = ["asyncio", "threads", "forks"]
MIB = 1 << 20


@pytest.fixture(scope="module")
def stores() -> Iterator[sandbox.Sandbox]:
    with sandbox.start(process=True, digest=False) as running:
        yield running


@pytest.fixture
def environment(stores: sandbox.Sandbox) -> dict[str, str]:
    return {
        **os.environ,
        **stores.environment,
        "AWS_ENDPOINT_URL_S3": stores.redirector_url,
        "PYTHONPATH": str(ROOT),
    }


def make(count: int, folder: Path, to: str, largest: int) -> list[tuple[str, str]]:
    script = ROOT / "examples" / "make_files.py"
    words = [sys.executable, str(script), str(count), str(folder), to, "--largest", str(largest)]
    made = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return [(path, url) for path, url in (line.split("\t") for line in made.splitlines())]


def write(path: Path, entries: list[tuple[str, str]]) -> Path:
    path.write_text("".join(f"{source}\t{to}\n" for source, to in entries))
    return path


def read(path: Path) -> list[tuple[str, str]]:
    return [tuple(line.split("\t")) for line in path.read_text().splitlines()]  # type: ignore[misc]


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    """Starts the example in the manifest's folder; what runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(manifest: Path, way: str, *words: str, environment: dict[str, str] = environment) -> subprocess.Popen[str]:
        script = [sys.executable, str(ROOT / "examples" / "ingest.py"), str(manifest), "--as", way]
        script += ["--left", str(manifest.with_name("left.txt")), *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(script, env=environment, cwd=manifest.parent, **pipes))  # type: ignore[call-overload]
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def assert_stored(stores: sandbox.Sandbox, entries: list[tuple[str, str]]) -> None:
    for path, to in entries:
        bucket, _, key = to.removeprefix("s3://").partition("/")
        assert stores.object(bucket, key).sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest(), to


@pytest.mark.parametrize("way", WAYS)
def test_mixed_files_are_stored_and_what_is_not_is_left_with_its_reason(
    stores: sandbox.Sandbox, start: Start, tmp_path: Path, way: str
) -> None:
    entries = make(200, tmp_path / "files", f"s3://redirect-307.{way}/p", 2 * MIB)
    stored = [
        *entries[:150],
        *((path, to.replace("redirect-307", "store")) for path, to in entries[150:190]),
        *((path, to.replace("redirect-307", "answer-503-once")) for path, to in entries[190:]),
    ]
    lost = [(str(tmp_path / "gone"), f"s3://store.{way}/gone"), (entries[0][0], f"s3://answer-403.{way}/refused")]
    process = start(write(tmp_path / "manifest.txt", lost + stored), way, "--every", "0.2")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1, err
    assert_stored(stores, stored)
    assert sorted(read(tmp_path / "left.txt")) == sorted(lost)
    assert re.search(r"^stored +200 objects, [0-9.]+ MiB in .+ objects/s, .+ MiB/s\)$", out, re.MULTILINE)
    assert re.search(r"^retries +10;", out, re.MULTILINE)
    assert f"307 to {stores.store_url.partition('//')[2]}: 150" in out
    assert "1 × 403 AccessDenied: PUT s3://answer-403" in out
    assert "1 × FileNotFoundError: " in out
    assert way == "forks" or re.search(r"\d+ of 202 +\d+ objects/s", err)


@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_leaves_a_list_from_which_the_next_run_goes_on(
    stores: sandbox.Sandbox, start: Start, tmp_path: Path, way: str
) -> None:
    entries = make(300, tmp_path / "files", f"s3://store.interrupted-{way}/p", 64 * 1024)
    stuck = [(path, to.replace("store.", "hang-once.")) for path, to in entries[292:]]
    manifest = write(tmp_path / "manifest.txt", entries[:200] + stuck + entries[200:292])
    before = len(stores.records)
    process = start(manifest, way, "--workers", "8")
    # The workers have met the objects that hang: 8 puts wait for an answer that does not come.
    while sum(record.target.startswith("/hang") for record in stores.records[before:]) < 8:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    left = read(tmp_path / "left.txt")
    assert 8 <= len(left) < 300
    assert f"left       {len(left)} objects" in out
    assert_stored(stores, sorted(set(entries[:200] + stuck + entries[200:292]) - set(left)))
    again = start(write(tmp_path / "again.txt", left), way)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, out + err
    assert_stored(stores, left)


def test_without_credentials_it_stops_at_once(start: Start, environment: dict[str, str], tmp_path: Path) -> None:
    entries = make(50, tmp_path / "files", "s3://store/p", 64 * 1024)
    bare = {name: value for name, value in environment.items() if not name.startswith("AWS_ACCESS")}
    bare["AWS_EC2_METADATA_DISABLED"] = "true"
    for way in WAYS:
        process = start(write(tmp_path / "manifest.txt", entries), way, "--workers", "4", environment=bare)
        out, _err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "CredentialsError" in out
        assert sorted(read(tmp_path / "left.txt")) == sorted(entries)


def test_a_killed_worker_leaves_its_share(stores: sandbox.Sandbox, start: Start, tmp_path: Path) -> None:
    entries = make(40, tmp_path / "files", "s3://hang.killed/p", 1024)
    process = start(write(tmp_path / "manifest.txt", entries), "forks", "--workers", "4")
    before = len(stores.records)
    while not (children := _children(process.pid)) or len(stores.records) - before < 4:
        assert process.poll() is None
        time.sleep(0.05)
    for child in children:
        os.kill(child, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert sorted(read(tmp_path / "left.txt")) == sorted(entries)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_two_thousand_files(stores: sandbox.Sandbox, start: Start, tmp_path: Path) -> None:
    entries = make(2000, tmp_path / "files", "s3://redirect-307.thousands/p", 4 * MIB)
    process = start(write(tmp_path / "manifest.txt", entries), "asyncio")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert "stored     2000 objects" in out
    assert_stored(stores, entries[::50])


def test_an_unfinished_line_of_a_manifest_is_an_error(start: Start, tmp_path: Path) -> None:
    (tmp_path / "manifest.txt").write_text("only-a-path\n")
    process = start(tmp_path / "manifest.txt", "asyncio")
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "manifest.txt:1: a path, a tab and a destination are needed" in err
