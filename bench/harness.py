"""What every benchmark of bodies needs: a network namespace, native programs, a sink, warm files, a look at who else is busy.

Knows nothing of workloads and clients: `measure` does. Needs Linux and, for everything native, a C compiler.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FOREIGN_MAX = 0.05  # of the machine's CPU time: from there on a round is disturbed
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # linux/sockios.h, linux/if.h


class Missing(Exception):
    """Something that only this part of the harness needs is not there; the message names the remedy."""


# --- where it runs ----------------------------------------------------------------------------------------------------


def enter_namespace() -> bool:
    """Move this process into a network namespace of its own, with reno; false where the kernel does not let us.

    Call before threads exist. Without root a user namespace is made too, in which this user is root.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWNET | (0 if user == 0 else CLONE_NEWUSER)):
        return False
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    with contextlib.suppress(OSError):
        CONGESTION.write_text("reno")
    return True


def machine() -> dict[str, Any]:
    """The fields of results.Meta that tell where this ran."""
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    commit = git("rev-parse", "--short", "HEAD")
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit,
        "dirty": bool(commit and git("status", "--porcelain")),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpu": cpus[0].partition(":")[2].strip() if cpus else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "congestion_control": CONGESTION.read_text().strip(),
        "openssl": ssl.OPENSSL_VERSION,
        "libc": " ".join(platform.libc_ver()),
        "load_before": os.getloadavg()[0],
    }


def git(*words: str) -> str:
    """What git says of the checkout that this file is in; "" elsewhere."""
    if not (HERE.parent / ".git").exists():
        return ""
    done = subprocess.run(["git", *words], cwd=HERE.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def last_cpu() -> int | None:
    """The sink's; None where there is only one."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[-1] if len(cpus) > 1 else None


class Meter:
    """The share of the machine's CPU time that others took between two looks at it."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.machine_s = self._machine_s()

    @staticmethod
    def _machine_s() -> float:
        fields = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # without idle and iowait

    def foreign(self, own_s: float) -> float:
        spent_s = self._machine_s() - self.machine_s - own_s
        return round(max(0.0, spent_s / ((time.monotonic() - self.began) * (os.cpu_count() or 1))), 3)


def end_on_signals() -> None:
    """So that files and processes are cleaned up when the harness is told to stop."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))


# --- native programs --------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "putengine" / "bench"


def compiled(name: str, *, tls: bool = False) -> str:
    """The path of bench/peers/NAME.c as a program, compiled at first use. Raises Missing."""
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler.split()[0]) is None:
        raise Missing(f"there is no C compiler ({compiler}): apt install gcc libc6-dev, or set CC")
    source = PEERS / f"{name}.c"
    flags = ["-O2", "-pthread", *(["-DWITH_TLS"] if tls else [])]
    libraries = ["-lssl", "-lcrypto"] if tls else []
    key = hashlib.sha256(repr((source.read_bytes(), compiler, flags, platform.machine())).encode()).hexdigest()[:16]
    target = cache_folder() / f"{name}-{key}"
    if target.exists():
        return str(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / name
        command = [*compiler.split(), *flags, str(source), "-o", str(made), *libraries]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            remedy = "OpenSSL's headers are needed: apt install libssl-dev" if tls else "see above"
            raise Missing(f"{' '.join(command)} failed: {done.stderr.strip()[-400:]}\n{remedy}")
        made.rename(target)  # atomic: two runs at once are fine
    return str(target)


def openssl_of_c() -> str:
    done = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


class Certificate:
    """A CA made for this run, and the sink's certificate for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        try:
            import trustme
        except ImportError:
            raise Missing("TLS needs certificates: pip install trustme") from None
        authority = trustme.CA()
        self.bundle = str(folder / "ca.pem")
        self.pem = str(folder / "server.pem")
        authority.cert_pem.write_to_path(self.bundle)
        authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(self.pem)


class Sink:
    """bench/peers/sink.c as a process; `ports` in the order of `scenarios`."""

    def __init__(self, *scenarios: str, pem: str = "", digest: bool = False, cpu: int | None = None) -> None:
        command = [compiled("sink", tls=bool(pem)), "digest" if digest else "discard"]
        command += ["-" if cpu is None else str(cpu), pem or "-", *scenarios]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.scenarios = scenarios
        self.tls = bool(pem)
        self.ports: list[int] = self._read()["ports"]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def _say(self, word: str) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self._read()

    def url(self, number: int) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.ports[number]}"

    def reset(self) -> None:
        self._say("reset")

    def report(self) -> dict[str, Any]:
        """Counts since the reset: `cpu_s`, `ports` (a dict each), `objects` (of a digest sink)."""
        return self._say("report")

    def settled(self, quiet_s: float = 0.1, patience_s: float = 2.0) -> dict[str, Any]:
        """A report when nothing comes in any more: what was on its way to a server that refused it counts too.

        That is when the client has left everybody who refused it, or has sent nothing for `quiet_s`.
        """
        began = changed = time.monotonic()
        now = self.report()
        while any(port["lingering"] for port in now["ports"]):
            time.sleep(0.005)
            before, now = now, self.report()
            if [port["wire"] for port in now["ports"]] != [port["wire"] for port in before["ports"]]:
                changed = time.monotonic()
            if time.monotonic() - changed > quiet_s or time.monotonic() - began > patience_s:
                break
        return now

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


# --- files ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def body_files(parent: str | None = None) -> Iterator[Path]:
    """A folder for bodies, removed at the end."""
    folder = tempfile.mkdtemp(prefix="putengine-bench-", dir=parent)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def body_file(folder: Path, size: int) -> str:
    """A file of `size` random bytes, in the page cache and on the disk: real pages, no holes, nothing left to write back."""
    path = folder / f"body-{size}"
    if path.exists():
        return str(path)
    block = os.urandom(min(max(size, 1), 16 * MIB))
    with open(path, "wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])
        file.flush()
        os.fsync(file.fileno())
    return str(path)


def room(folder: Path, size: int) -> None:
    """Raises Missing when `size` bytes fit neither the disk nor, with some to spare, memory."""
    free = shutil.disk_usage(folder).free
    if free < size + GIB // 4:
        raise Missing(f"{folder}: {size / GIB:.1f} GiB are needed, {free / GIB:.1f} are free; choose --directory")
    status = Path("/proc/meminfo").read_text()
    available = int(status.split("MemAvailable:")[1].split()[0]) * KIB
    if available < size * 1.5:
        raise Missing(
            f"{size / GIB:.1f} GiB do not fit the page cache ({available / GIB:.1f} GiB of memory are available)"
        )
