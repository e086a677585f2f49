"""Real servers in a temporary folder on loopback, started and stopped by these tests.

Owns: which programs are run, with what configuration, when they are ready, and that nothing of them is left. Knows nothing
of the engine: every class here can be used by hand (``with Nginx() as server: ...``).

Each server is a context manager. Entering raises :class:`ProgramMissing` when a package is not installed (its text names the
package) and :class:`StartFailed`, with the ends of all logs, when it does not come up in time. Leaving ends every process by
its pid and removes the folder. Nothing is shared between two instances, so test runs may go on side by side.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import inspect
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

import botocore.config
import botocore.exceptions
import botocore.session
import trustme

from .relay import Relay

if TYPE_CHECKING:
    from typing_extensions import Self

READY_TIMEOUT_S = (
    60.0  # Ceph's daemons take 10 s on two idle cores; a machine that compiles meanwhile takes thrice that
)
STOP_TIMEOUT_S = 5.0
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # Debian keeps most daemons in /usr/sbin, off an ordinary user's PATH


class ProgramMissing(Exception):
    """A program that this server consists of is not installed; the text names it and its Debian package."""


class StartFailed(Exception):
    """A server did not get ready, or died; the text ends with the tails of its logs."""


class Keys(NamedTuple):
    """An access key pair that the server accepts."""

    access_key: str
    secret_key: str


LOGGED_FIELDS = (
    *("host", "authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-meta-colour"),
    *("expect", "content-length", "content-type"),
)


class Logged(NamedTuple):
    """One request as a server logs it; ``fields`` has those LOGGED_FIELDS that came.

    ``size`` and ``client_port`` are nginx's: bytes of the head and, where nginx read the body to use it, of the body. A body
    that nginx throws away, as a redirector does, is not in it.
    """

    method: str
    path: str
    status: int
    fields: Mapping[str, str]
    size: int = 0
    client_port: int = 0


def log_format(method: str, path: str, status: str, field: Callable[[str], str], more: str = "") -> str:
    """One line of JSON in a server's own log format; `field` names a request's field in it. `read_log` reads it."""
    fields = ",".join(f'"{name}":"{field(name)}"' for name in LOGGED_FIELDS)
    return f'{{"method":"{method}","path":"{path}","status":"{status}"{more},"fields":{{{fields}}}}}'


def read_log(path: Path) -> list[Logged]:
    """The requests in a log made by `log_format`, oldest first. Other lines, and one still being written, are left out."""
    found = []
    for line in path.read_text(errors="replace").splitlines():
        if not line.startswith('{"method"') or not line.endswith("}}"):
            continue
        entry = json.loads(line)
        entry["status"] = int(entry["status"])
        entry["fields"] = {name: value for name, value in entry["fields"].items() if value not in ("", "-")}
        found.append(Logged(**entry))
    return found


class Ports:
    """TCP ports of 127.0.0.1 that stay ours until :meth:`close`.

    A socket that is bound with SO_REUSEADDR and never listens keeps the kernel from handing its port to anybody who asks for
    "any" (bind to 0, or connect), while a server that sets SO_REUSEADDR, as all of these do, may still bind and listen.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self) -> int:
        """Return a port that nobody else has. A connection to it is refused until a server listens there."""
        holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        self._held.append(holder)
        port: int = holder.getsockname()[1]
        return port

    def close(self) -> None:
        """Give the ports back."""
        for holder in self._held:
            holder.close()
        self._held.clear()


class LiveServer:
    """What all servers have in common: a folder, ports, processes, and their end."""

    programs: ClassVar[Mapping[str, str]] = {}
    """Program (found on SYSTEM_PATH) or file (absolute path) → the Debian package that brings it."""

    def __init__(self, *, tls: bool = False) -> None:
        """`tls`: its URLs are https, with a certificate for 127.0.0.1 that ``ca_file`` vouches for."""
        self.tls = tls
        self.scheme = "https" if tls else "http"
        self.ports = Ports()
        self.folder = Path()
        self.on_stop = contextlib.ExitStack()
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._check_programs()
        self.folder = Path(tempfile.mkdtemp(prefix="live-"))
        # Daemons that give up root must reach their files; what lies here is random bytes and test keys.
        self.folder.chmod(0o755)
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Write the configuration, spawn the processes, return when they answer."""
        raise NotImplementedError

    def stop(self) -> None:
        """End every process, last started first, and remove the folder. May be called twice."""
        for process in reversed(self._processes):
            end_process(process)
        self._processes.clear()
        self.on_stop.close()
        self.ports.close()
        if self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=False)
            self.folder = Path()

    def _check_programs(self) -> None:
        for program, package in self.programs.items():
            if not Path(program).exists() and shutil.which(program, path=SYSTEM_PATH) is None:
                raise ProgramMissing(f"{program} is not installed (Debian package {package})")

    def make_folder(self, name: str, *, owner: str | None = None) -> Path:
        """Make a folder below the server's own, given to `owner` when we are root."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        if owner is not None and os.geteuid() == 0:
            shutil.chown(folder, owner, owner)
        return folder

    def write(self, name: str, text: str) -> Path:
        """Write a configuration file into the server's folder."""
        path = self.folder / name
        path.write_text(inspect.cleandoc(text) + "\n")
        return path

    def spawn(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        user: str | None = None,
        environment: Mapping[str, str] | None = None,
        file_limit: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process in the foreground; its output goes to ``<name>.log``.

        `user`: whom to become when we are root. `file_limit`: no file may grow beyond this many bytes, and a write which
        tries gets EFBIG: to the server that is a disk which fills up in the middle of a body, without needing root.
        """
        # The kernel ends the server when the test run is killed: otherwise only __exit__ would.
        command: list[str | Path] = ["setpriv", "--pdeathsig", "TERM"]
        if user is not None and os.geteuid() == 0:
            command += ["--reuid", user, "--regid", user, "--clear-groups"]
        command += ["--"]
        if file_limit is not None:
            # Without ignoring the signal the server would die of it.
            command += ["env", "--ignore-signal=XFSZ", "prlimit", f"--fsize={file_limit}"]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={"PATH": SYSTEM_PATH, "LANG": "C", "HOME": str(self.folder), **(environment or {})},
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    @property
    def ca_file(self) -> Path | None:
        """Whom a client of this server has to trust, once it is started; None without TLS."""
        return self.folder / "tls/ca.pem" if self.tls else None

    def make_certificate(self, *, owner: str | None = None) -> tuple[Path, Path, Path]:
        """Write a certificate with its chain, its key, and both in one file; return the paths of the three."""
        folder = self.make_folder("tls", owner=owner)
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(folder / "ca.pem")
        chain, key, both = folder / "chain.pem", folder / "key.pem", folder / "both.pem"
        for pem in issued.cert_chain_pems:
            pem.write_to_path(chain, append=True)
        issued.private_key_pem.write_to_path(key)
        issued.private_key_and_cert_chain_pem.write_to_path(both)
        for path in (key, both):
            path.chmod(0o600)  # XRootD takes no key that others can read
            if owner is not None and os.geteuid() == 0:
                shutil.chown(path, owner, owner)
        return chain, key, both

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """As long as this lasts no process of the server runs: the kernel takes connections and bytes, nobody reads them."""
        groups = [process.pid for process in self._processes]
        try:
            for group in groups:
                os.killpg(group, signal.SIGSTOP)
            # A signal is sent in no time, and heard by every thread only somewhat later.
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while not all(is_stopped(group) for group in groups):
                assert time.monotonic() < deadline, f"{type(self).__name__} does not stop"
            yield
        finally:
            for group in groups:
                os.killpg(group, signal.SIGCONT)

    def run(self, *argv: str | Path, timeout_s: float = READY_TIMEOUT_S) -> str:
        """Run a command to its end and return its standard output. Raises StartFailed when it fails."""
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                cwd=self.folder,
                env={"PATH": SYSTEM_PATH, "LANG": "C"},
            )
        except subprocess.TimeoutExpired as error:
            raise StartFailed(f"{argv}: not done after {timeout_s} s\n{self.logs()}") from error
        if done.returncode:
            raise StartFailed(f"{argv}: exit code {done.returncode}\n{done.stdout}{done.stderr}\n{self.logs()}")
        return done.stdout

    def wait_until(self, ready: Callable[[], bool], what: str, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Poll `ready` until it is true. Raises StartFailed when a process has died or the time is over."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            for process in self._processes:
                if process.poll() is not None:
                    raise StartFailed(f"{process.args!r} ended with {process.returncode}\n{self.logs()}")
            if time.monotonic() > deadline:
                raise StartFailed(f"{type(self).__name__}: {what}: not after {timeout_s} s\n{self.logs()}")
            time.sleep(0.02)

    def wait_for_port(self, port: int) -> None:
        """Return when something listens on the port."""
        self.wait_until(lambda: accepts(port), f"something listens on port {port}")

    def logs(self) -> str:
        """Return the last 30 lines of every log in the folder, for error messages."""
        tails = []
        for log in sorted(self.folder.rglob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-30:]
            tails.append(f"--- {log.relative_to(self.folder)}\n" + "\n".join(lines))
        return "\n".join(tails)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end; make it, and what it started in its own session, after STOP_TIMEOUT_S."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def is_stopped(group: int) -> bool:
    """Say whether no thread of a process group runs."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # The name, in parentheses, may contain anything; behind it come state, parent and group.
            if int(stat.read_text().rpartition(")")[2].split()[2]) != group:
                continue
            for task in stat.parent.glob("task/[0-9]*/stat"):
                if task.read_text().rpartition(")")[2].split()[0] not in "TtZX":
                    return False
    return True


def accepts(port: int) -> bool:
    """Say whether something listens on this port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def listens(path: Path) -> bool:
    """Say whether a process listens on this Unix socket, without connecting to it."""
    # The fourth column holds the flags; the only one there is says that the socket accepts connections.
    rows = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return any(row[-1] == str(path) and row[3] == "00010000" for row in rows)


def status_of(method: str, url: str, timeout_s: float = 0.5, ca_file: Path | None = None) -> int | None:
    """Make one request without a body; return its status, or None when no answer came in time."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    if ca_file is None:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
    else:
        trust = ssl.create_default_context(cafile=ca_file)
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout_s, context=trust)
    try:
        connection.request(method, f"{parts.path or '/'}?{parts.query}".rstrip("?"))
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        hasher = hashlib.sha256()
        while piece := file.read(1 << 20):
            hasher.update(piece)
    return hasher.hexdigest()


REAL_TIME = ("chrt", "--fifo", "1")
REDIRECT_STATUSES = (301, 302, 303, 307, 308)
REFUSAL_STATUSES = (403, 412, 503)


class Nginx(LiveServer):
    """nginx as redirector and as store.

    ``redirector`` + ``/307/name`` answers 307 (likewise 301, 302, 303, 308) to ``store`` + ``/name``; ``/403/name`` (412,
    503) refuses, after a 100; ``/413/name`` refuses what is over 1 MiB without one, and in mid-body when chunked.
    ``full`` is a store whose files cannot grow beyond 4 MiB: it answers 500 in mid-body.

    ``real_time``: nginx runs at real-time priority, so that its 307 follows its 100 within microseconds (at most 0.13 ms in
    1,800 measured). At an ordinary priority, or without root, a busy machine stops it in between for up to 9 ms.
    """

    programs: ClassVar = {"nginx": "nginx-light"}
    full_at: ClassVar[int] = 4 << 20

    def __init__(self, *, tls: bool = False, wants_real_time: bool = True) -> None:
        super().__init__(tls=tls)
        self.wants_real_time = wants_real_time

    def start(self) -> None:
        self.real_time = (
            self.wants_real_time and subprocess.run([*REAL_TIME, "true"], capture_output=True).returncode == 0
        )
        redirector, store, full = (self.ports.take() for _ in range(3))
        self.redirector, self.store, self.full = (
            f"{self.scheme}://127.0.0.1:{port}" for port in (redirector, store, full)
        )
        self.data = self.make_folder("data")
        self.make_folder("full")
        if self.tls:
            self.certificate = self.make_certificate()
        locations = [
            f"location ~ ^/{s}(?<rest>/.*)$ {{ return {s} {self.store}$rest$is_args$args; }}" for s in REDIRECT_STATUSES
        ]
        locations += [f"location /{s}/ {{ return {s}; }}" for s in REFUSAL_STATUSES]
        locations += ["location /413/ { client_max_body_size 1m; proxy_pass http://127.0.0.1:9; }"]
        redirecting = f"server {{ {self._listen(redirector)} {' '.join(locations)} }}"
        self._spawn_nginx("nginx", f"{redirecting} {self._store(store, 'data')}")
        self._spawn_nginx("nginx-full", self._store(full, "full"), file_limit=self.full_at)
        for port in (redirector, store, full):
            self.wait_for_port(port)

    def _listen(self, port: int) -> str:
        if not self.tls:
            return f"listen 127.0.0.1:{port};"
        chain, key, _both = self.certificate
        return f"listen 127.0.0.1:{port} ssl; ssl_certificate {chain}; ssl_certificate_key {key};"

    def _store(self, port: int, folder: str) -> str:
        return f"""server {{
            {self._listen(port)} root {self.folder}/{folder};
            dav_methods PUT DELETE; create_full_put_path on; client_body_in_file_only on;
        }}"""

    def _spawn_nginx(self, name: str, blocks: str, *, file_limit: int | None = None) -> None:
        own = self.make_folder(name)
        temporary = " ".join(
            f"{kind}_temp_path {own}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        line = log_format(
            *("$request_method", "$request_uri", "$status"),
            lambda name: f"$http_{name.replace('-', '_')}",
            ',"size":$request_length,"client_port":$remote_port',
        )
        configuration = self.write(
            f"{name}.conf",
            f"""daemon off; worker_processes 1; pid {own}/pid; error_log stderr; {"user root;" if os.geteuid() == 0 else ""}
            events {{ worker_connections 256; }}
            http {{
                log_format live escape=json '{line}';
                access_log {own}/requests.jsonl live; client_max_body_size 0; {temporary}
                # One reset after a redirect is an idle connection to nginx, and counted by the kernel only when it has ended.
                keepalive_timeout 1s;
                {blocks}
            }}""",
        )
        priority = REAL_TIME if self.real_time else ()
        self.spawn(name, [*priority, "nginx", "-e", "stderr", "-p", own, "-c", configuration], file_limit=file_limit)

    def stored(self, name: str) -> Path:
        """Return where the store keeps an object."""
        return self.data / name

    def requests(self) -> list[Logged]:
        """Return what the redirector and the store have logged so far, oldest first."""
        return read_log(self.folder / "nginx/requests.jsonl")


class Xrootd(LiveServer):
    """An XRootD manager, which redirects every request to its data server by a 307, and that data server.

    `lookup_s`: for so long the manager holds its answer about a name it has not seen. `full_at`: no file of the data server
    grows beyond this many bytes. ``manager`` and ``store`` are URLs; objects live below ``/data``.
    """

    programs: ClassVar = {"xrootd": "xrootd-server", "cmsd": "xrootd-server"}

    def __init__(self, lookup_s: int = 1, full_at: int | None = None, *, tls: bool = False) -> None:
        super().__init__(tls=tls)
        self.lookup_s = lookup_s
        self.full_at = full_at

    def start(self) -> None:
        manager, store, cms = (self.ports.take() for _ in range(3))
        self.manager, self.store = (f"{self.scheme}://127.0.0.1:{port}/data" for port in (manager, store))
        if self.tls:
            self.certificate = self.make_certificate(owner="xrootd")
        self.data = self.make_folder("files/data", owner="xrootd")
        if os.geteuid() == 0:
            shutil.chown(self.data.parent, "xrootd", "xrootd")
        configuration = self._configure("manager", manager, cms, "")
        # One after the other: a daemon that does not find the one it logs in to tries again after 10 s.
        self._spawn_daemon("cmsd", configuration, "-p", str(cms))
        self.wait_for_port(cms)
        self._spawn_daemon("xrootd", configuration)
        self.wait_for_port(manager)
        configuration = self._configure("server", store, cms, "cms.space linger 0 recalc 5 min 1g 2g")
        self._spawn_daemon("cmsd", configuration)
        login = self.folder / "server/.olb/olbd.admin"
        self.wait_until(lambda: listens(login), "the data server's cmsd takes logins")
        self._spawn_daemon("xrootd", configuration, file_limit=self.full_at)
        self.wait_for_port(store)
        # Until the data server has logged in, and `startup` is over, the manager sits on a request for 10 s: ask again sooner.
        self.make_known("ready")

    def _spawn_daemon(self, program: str, configuration: Path, *arguments: str, file_limit: int | None = None) -> None:
        role = configuration.stem
        # all.pidpath does not move the .env file, which goes to /tmp, under a name that all instances share; -s does.
        pid_file = self.folder / role / f"{program}.pid"
        self.spawn(
            f"{role}-{program}",
            [program, "-c", configuration, "-s", pid_file, *arguments],
            user="xrootd",
            file_limit=file_limit,
        )

    def _configure(self, role: str, port: int, cms_port: int, more: str) -> Path:
        own = self.make_folder(role, owner="xrootd")
        tls = ""
        if self.tls:
            chain, key, _both = self.certificate
            tls = f"xrd.tls {chain} {key}\nxrd.tlsca certfile {self.ca_file}\nhttp.desthttps yes"
        return self.write(
            f"{role}.cf",
            f"""all.role {role}
            all.manager 127.0.0.1:{cms_port}
            all.export /data
            all.adminpath {own}
            all.pidpath {own}
            oss.localroot {self.folder}/files
            cms.delay startup 2 lookup {self.lookup_s} servers 1 full 1 discard 2 suspend 1 drop 10
            {more}
            if exec xrootd
                xrd.port {port}
                xrd.protocol XrdHttp:{port} libXrdHttp.so
                http.selfhttps2http no
                http.trace debug
                {tls}
            fi
            """,
        )

    def make_known(self, name: str) -> None:
        """Store an empty object and have the manager look it up: from then on it answers about the name at once."""
        self.stored(name).write_bytes(b"")
        if os.geteuid() == 0:
            shutil.chown(self.stored(name), "xrootd", "xrootd")
        url = f"{self.manager}/{name}"
        self.wait_until(
            lambda: status_of("GET", url, ca_file=self.ca_file) in (302, 307), f"the manager redirects to {name}"
        )

    def stored(self, name: str) -> Path:
        """Return where the data server keeps an object."""
        return self.data / name

    def requests(self) -> list[Logged]:
        """Return what manager and data server were asked so far, each oldest first; their traces tell no status."""
        return [each for role in ("manager", "server") for each in read_trace(self.folder / f"{role}-xrootd.log")]


TRACED_LINE = re.compile(r"http_Protocol:  (?:rc:\d+ got hdr line|Parsing first line): (?P<line>.+)$", re.MULTILINE)


def read_trace(path: Path) -> list[Logged]:
    """The requests in an XRootD daemon's trace of the header lines that it read."""
    found: list[Logged] = []
    for match in TRACED_LINE.finditer(path.read_text(errors="replace")):
        line = match["line"].strip()
        if line.endswith(" HTTP/1.1"):
            if "Parsing" in match[0]:
                method, target, _version = line.split(" ")
                found.append(Logged(method, target, 0, {}))
        elif found:
            name, _, value = line.partition(": ")
            if name.lower() in LOGGED_FIELDS:
                found[-1] = found[-1]._replace(fields={**found[-1].fields, name.lower(): value})
    return found


class Apache(LiveServer):
    """Apache httpd as redirector and, with mod_dav, as store.

    ``redirector`` + ``/307/name`` redirects as Nginx does here. ``/401/name`` wants a password, ``/413/name`` refuses more
    than 1 MiB (in mid-body when chunked), ``/403/name`` refuses. ``full`` is a store whose files end at 4 MiB.
    """

    programs: ClassVar = {"apache2": "apache2"}
    full_at: ClassVar[int] = 4 << 20

    def start(self) -> None:
        redirector, store, full = (self.ports.take() for _ in range(3))
        self.redirector, self.store, self.full = (
            f"{self.scheme}://127.0.0.1:{port}" for port in (redirector, store, full)
        )
        self.data = self.make_folder("data", owner="www-data")
        if self.tls:
            self.certificate = self.make_certificate()
        self.make_folder("full", owner="www-data")
        self.make_folder("limited/413", owner="www-data")
        redirects = "\n".join(f'RedirectMatch {s} "^/{s}(/.*)$" "{self.store}$1"' for s in REDIRECT_STATUSES)
        self._spawn_apache(
            "apache",
            (redirector, store),
            f"""
            <VirtualHost 127.0.0.1:{redirector}>
                DocumentRoot "{self.folder}/limited"
                {redirects}
                <Location "/401">
                    AuthType Basic
                    AuthName live
                    AuthBasicProvider anon
                    Anonymous nobody
                    Require valid-user
                </Location>
                <Location "/403">
                    Require all denied
                </Location>
                <Location "/413">
                    Dav On
                    LimitRequestBody 1048576
                </Location>
            </VirtualHost>
            {self._store(store, "data")}""",
        )
        self._spawn_apache("apache-full", (full,), self._store(full, "full"), file_limit=self.full_at)
        for port in (redirector, store, full):
            self.wait_for_port(port)

    def _store(self, port: int, folder: str) -> str:
        return f"""
            <VirtualHost 127.0.0.1:{port}>
                DocumentRoot "{self.folder}/{folder}"
                <Directory "{self.folder}/{folder}">
                    Dav On
                    LimitRequestBody 0
                </Directory>
            </VirtualHost>"""

    def _spawn_apache(self, name: str, ports: Sequence[int], blocks: str, *, file_limit: int | None = None) -> None:
        own = self.make_folder(name, owner="www-data")
        modules = (
            "mpm_event",
            "authz_core",
            "authz_user",
            "auth_basic",
            "authn_core",
            "authn_anon",
            "alias",
            "dav",
            "dav_fs",
        )
        tls = ""
        if self.tls:
            chain, key, _both = self.certificate
            modules += ("socache_shmcb", "ssl")
            tls = f'SSLEngine on\nSSLCertificateFile "{chain}"\nSSLCertificateKeyFile "{key}"'
        loads = "\n".join(f"LoadModule {m}_module /usr/lib/apache2/modules/mod_{m}.so" for m in modules)
        listens = "\n".join(f"Listen 127.0.0.1:{port}" for port in ports)
        line = log_format("%m", "%U", "%>s", lambda name: f"%{{{name}}}i").replace('"', '\\"')
        configuration = self.write(
            f"{name}.conf",
            f"""ServerRoot "{own}"
            ServerName 127.0.0.1
            PidFile "{own}/pid"
            DefaultRuntimeDir "{own}"
            ErrorLog /dev/stderr
            {loads}
            {"User www-data" if os.geteuid() == 0 else ""}
            {"Group www-data" if os.geteuid() == 0 else ""}
            StartServers 1
            DavLockDB "{own}/locks"
            LogFormat "{line}" live
            CustomLog "{own}/requests.jsonl" live
            {tls}
            {listens}
            {blocks}
            """,
        )
        self.spawn(name, ["apache2", "-f", configuration, "-DFOREGROUND"], file_limit=file_limit)

    def stored(self, name: str) -> Path:
        """Return where the store keeps an object."""
        return self.data / name

    def requests(self) -> list[Logged]:
        """Return what the redirector and the store have logged so far, oldest first."""
        return read_log(self.folder / "apache/requests.jsonl")


class Lighttpd(LiveServer):
    """lighttpd as redirector and, with mod_webdav, as store; URLs as with :class:`Apache`, without 401 and 413."""

    programs: ClassVar = {"lighttpd": "lighttpd", "/usr/lib/lighttpd/mod_webdav.so": "lighttpd-mod-webdav"}
    full_at: ClassVar[int] = 4 << 20

    def start(self) -> None:
        redirector, store, full = (self.ports.take() for _ in range(3))
        self.redirector, self.store, self.full = (f"http://127.0.0.1:{port}" for port in (redirector, store, full))
        self.data = self.make_folder("data")
        redirects = "\n".join(
            f'''$HTTP["url"] =~ "^/{s}/" {{
                url.redirect = ("^/{s}(/.*)$" => "{self.store}$1")
                url.redirect-code = {s}
            }}'''
            for s in REDIRECT_STATUSES
        )
        self.front = self._spawn_lighttpd(
            "lighttpd",
            store,
            "data",
            f"""$SERVER["socket"] == "127.0.0.1:{redirector}" {{
                webdav.activate = "disable"
                {redirects}
                $HTTP["url"] =~ "^/403/" {{ url.access-deny = ("") }}
            }}""",
        )
        self.make_folder("full")
        self._spawn_lighttpd("lighttpd-full", full, "full", "", file_limit=self.full_at)
        for port in (redirector, store, full):
            self.wait_for_port(port)

    def _spawn_lighttpd(
        self, name: str, port: int, folder: str, blocks: str, *, file_limit: int | None = None
    ) -> subprocess.Popen[bytes]:
        uploads = self.make_folder(name)
        line = log_format("%m", "%U", "%s", lambda name: f"%{{{name}}}i").replace('"', '\\"')
        configuration = self.write(
            f"{name}.conf",
            f'''server.modules = ("mod_access", "mod_redirect", "mod_webdav", "mod_accesslog")
            accesslog.filename = "{self.folder}/{name}.jsonl"
            accesslog.format = "{line}"
            server.bind = "127.0.0.1"
            server.port = {port}
            server.document-root = "{self.folder}/{folder}"
            server.upload-dirs = ("{uploads}")
            webdav.activate = "enable"
            {blocks}
            ''',
        )
        return self.spawn(name, ["lighttpd", "-D", "-f", configuration], file_limit=file_limit)

    def stored(self, name: str) -> Path:
        """Return where the store keeps an object."""
        return self.data / name

    def requests(self) -> list[Logged]:
        """Return what the redirector and the store have logged so far, oldest first."""
        # Without being told to open its log anew it would write down what it knows every 4 s.
        self.front.send_signal(signal.SIGHUP)
        return read_log(self.folder / "lighttpd.jsonl")


class Haproxy(LiveServer):
    """HAProxy in front of a store.

    ``live`` passes to `backend` (host:port of a running store), ``dead`` to a port where nothing listens: 503 after three
    tries a second apart. ``redirector`` redirects as Nginx does here, to ``live``. ``silent`` passes to the backend and keeps
    the question from it, so that no 100 ever comes.
    """

    programs: ClassVar = {"haproxy": "haproxy"}

    def __init__(self, backend: str, *, tls: bool = False) -> None:
        super().__init__(tls=tls)
        self.backend = backend

    def start(self) -> None:
        redirector, live, dead, silent, nowhere = (self.ports.take() for _ in range(5))
        self.redirector, self.live, self.dead, self.silent = (
            f"{self.scheme}://127.0.0.1:{port}" for port in (redirector, live, dead, silent)
        )
        redirects = "\n    ".join(
            f"http-request redirect location {self.live}%[path,regsub(^/{s},)] code {s} if {{ path_beg /{s}/ }}"
            for s in REDIRECT_STATUSES
        )
        tls = f" ssl crt {self.make_certificate()[2]}" if self.tls else ""
        log_fields = "\n    ".join(
            f"http-request set-var(txn.{name.replace('-', '_')}) req.fhdr({name})" for name in LOGGED_FIELDS
        )
        log_fields += "\n    http-request set-var(txn.path) path"
        line = log_format(
            *("%HM", "%[var(txn.path)]", "%ST"),
            lambda name: f"%[var(txn.{name.replace('-', '_')}),json(utf8s)]",
        )
        configuration = self.write(
            "haproxy.cfg",
            f"""global
    log stdout len 4096 format raw local0
defaults
    mode http
    log global
    log-format '{line}'
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend redirector
    bind 127.0.0.1:{redirector}{tls}
    {log_fields}
    {redirects}
    http-request deny deny_status 403 if {{ path_beg /403/ }}
frontend live
    bind 127.0.0.1:{live}{tls}
    {log_fields}
    default_backend store
frontend dead
    bind 127.0.0.1:{dead}{tls}
    default_backend nowhere
frontend silent
    bind 127.0.0.1:{silent}{tls}
    http-request del-header Expect
    default_backend store
backend store
    server store {self.backend}
backend nowhere
    server nowhere 127.0.0.1:{nowhere}
""",
        )
        self.spawn("haproxy", ["haproxy", "-db", "-f", configuration])
        for port in (redirector, live, dead, silent):
            self.wait_for_port(port)

    def requests(self) -> list[Logged]:
        """Return what the redirector and ``live`` have logged so far, oldest first."""
        return read_log(self.folder / "haproxy.log")


class Ceph(LiveServer):
    """Ceph's object gateway twice, over one monitor and one OSD: zonegroup ``a`` (the master) and zonegroup ``b``.

    Each checks signatures, and answers 301 to a signed request for a bucket that the other one holds. ``a`` and ``b`` are
    their URLs. Their 301s lead to ``relay_a`` and ``relay_b`` in front of them, where a redirected request can be looked at
    (among the gateways' own: they sync by the same way). ``keys`` work at both, ``bucket_a`` lives in ``a`` and ``bucket_b``
    in ``b``. A body over ``max_put`` bytes is refused at once. Any region may be signed for.
    """

    programs: ClassVar = {
        "ceph-mon": "ceph-mon",
        "ceph-osd": "ceph-osd",
        "radosgw": "radosgw",
        "radosgw-admin": "radosgw",
        "ceph": "ceph-common",
        "monmaptool": "ceph-common",
    }
    region_a: ClassVar[str] = "za"
    region_b: ClassVar[str] = "zb"
    bucket_a: ClassVar[str] = "bucket-in-a"
    bucket_b: ClassVar[str] = "bucket-in-b"
    max_put: ClassVar[int] = 64 << 20
    keys: ClassVar = Keys("LIVETESTACCESSKEY000", "live/test+secret/key/of/forty/characters")

    def start(self) -> None:
        monitor, a, b = (self.ports.take() for _ in range(3))
        self.a, self.b = f"http://127.0.0.1:{a}", f"http://127.0.0.1:{b}"
        self.relay_a = self.on_stop.enter_context(Relay(self.a))
        self.relay_b = self.on_stop.enter_context(Relay(self.b))
        self.configuration = self.write("ceph.conf", self._configuration(monitor))
        self._start_storage(monitor)
        self._make_zonegroups()
        self._spawn_gateway("a", self.region_a, a)
        self.wait_until(lambda: self._make_bucket(self.a, self.bucket_a, self.region_a), "zonegroup a makes a bucket")
        # Started after that, b has user and bucket from its first full sync; what comes later takes it up to 20 s.
        self._spawn_gateway("b", self.region_b, b)
        self.wait_until(lambda: self._make_bucket(self.b, self.bucket_b, self.region_b), "zonegroup b makes a bucket")
        self.wait_until(lambda: self.redirects(self.b, self.bucket_a, self.region_b), "zonegroup b redirects to a")
        self.wait_until(lambda: self.redirects(self.a, self.bucket_b, self.region_a), "zonegroup a redirects to b")

    def configure_gateway(self, name: str, option: str, value: str) -> None:
        """Change an option of the running gateway ``a`` or ``b``."""
        socket_path = self.folder / f"client.rgw-{name}.asok"
        self.run("ceph", "-c", self.configuration, "--admin-daemon", socket_path, "config", "set", option, value)

    def _spawn_gateway(self, name: str, zone: str, port: int) -> None:
        self.spawn(
            f"rgw-{name}",
            [
                *("radosgw", "-f", "-c", self.configuration, "-n", f"client.rgw-{name}"),
                *("--rgw-zonegroup", zone, "--rgw-zone", zone),
                *("--rgw-frontends", f"beast endpoint=127.0.0.1:{port}"),
            ],
        )

    def client(self, url: str, region: str) -> Any:
        """Return botocore's S3 client for one of the gateways, path-style, without retries."""
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=url,
            region_name=region,
            aws_access_key_id=self.keys.access_key,
            aws_secret_access_key=self.keys.secret_key,
            config=botocore.config.Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0}),
        )

    def _make_bucket(self, url: str, bucket: str, zone: str) -> bool:
        try:
            self.client(url, zone).create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": zone})
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            return False
        return True

    def redirects(self, url: str, bucket: str, zone: str) -> bool:
        """Say whether the gateway at `url` knows that this bucket is the other one's."""
        signed = self.client(url, zone).generate_presigned_url("head_object", {"Bucket": bucket, "Key": "ready"})
        return status_of("HEAD", signed) == 301

    def stored_digest(self, bucket: str, key: str) -> str:
        """Read an object back from the zonegroup that holds it; return its SHA-256 in hexadecimal."""
        url, zone = (self.a, self.region_a) if bucket == self.bucket_a else (self.b, self.region_b)
        body = self.client(url, zone).get_object(Bucket=bucket, Key=key)["Body"]
        hasher = hashlib.sha256()
        with contextlib.closing(body):
            for piece in body.iter_chunks(1 << 20):
                hasher.update(piece)
        return hasher.hexdigest()

    def _configuration(self, monitor_port: int) -> str:
        self.fsid = str(uuid.uuid4())
        return f"""[global]
            fsid = {self.fsid}
            mon host = [v2:127.0.0.1:{monitor_port}]
            public addr = 127.0.0.1
            cluster addr = 127.0.0.1
            ms bind ipv4 = true
            auth cluster required = none
            auth service required = none
            auth client required = none
            # Without this radosgw asks for cephx, which nobody answers, for 120 s.
            ms mon client mode = crc
            run dir = {self.folder}
            admin socket = {self.folder}/$name.asok
            log file = {self.folder}/$name.log
            mon cluster log file = {self.folder}/cluster.log
            log flush on exit = false
            crash dir = {self.folder}
            keyring = {self.folder}/keyring
            osd pool default size = 1
            osd pool default min size = 1
            osd pool default pg num = 4
            osd pool default pgp num = 4
            osd pool default pg autoscale mode = off
            mon allow pool size one = true
            mon max pg per osd = 2000
            osd crush chooseleaf type = 0
            paxos propose interval = 0.1
            [mon]
            mon data = {self.folder}/mon
            mon data avail warn = 1
            mon data avail crit = 0
            [osd]
            osd data = {self.folder}/osd
            osd objectstore = bluestore
            bluestore block size = 12884901888
            osd memory target = 1073741824
            [client]
            rgw data = {self.folder}/$name
            rgw gc obj min wait = 2
            rgw gc processor period = 3
            rgw dns name =
            rgw max put size = {self.max_put}
            rgw enable usage log = false
            # Customers' keys over plain HTTP: loopback, and keys that protect nothing.
            rgw crypt require ssl = false
            """

    def _start_storage(self, monitor_port: int) -> None:
        conf: tuple[str, str] = ("-c", str(self.configuration))
        self.make_folder("mon")
        self.make_folder("osd")
        self.write("keyring", "")
        monmap = self.folder / "monmap"
        self.run("monmaptool", "--create", "--fsid", self.fsid, "--addv", "a", f"[v2:127.0.0.1:{monitor_port}]", monmap)
        self.run("ceph-mon", *conf, "--mkfs", "-i", "a", "--monmap", monmap)
        self.spawn("mon", ["ceph-mon", "-f", *conf, "-i", "a"])
        # An OSD that asks before the monitor has enabled its release's features fails with "wrong fsid".
        self.wait_until(lambda: "pacific" in self._ceph("mon", "feature", "ls"), "the monitor enables its features")
        osd_id = str(uuid.uuid4())
        number = self._ceph("osd", "new", osd_id).strip()
        self.run("ceph-osd", *conf, "--mkfs", "-i", number, "--osd-uuid", osd_id)
        self.spawn("osd", ["ceph-osd", "-f", *conf, "-i", number])
        self.wait_until(
            lambda: json.loads(self._ceph("osd", "stat", "-f", "json"))["num_up_osds"] == 1, "the OSD is up"
        )

    def _ceph(self, *arguments: str) -> str:
        return self.run("ceph", "-c", self.configuration, "--connect-timeout", "30", *arguments)

    def _make_zonegroups(self) -> None:
        def admin(*arguments: str) -> str:
            return self.run("radosgw-admin", "-c", self.configuration, *arguments)

        admin("realm", "create", "--rgw-realm=live", "--default")
        sync = Keys("SYNCACCESSKEY0000000", "sync-secret-key")
        for zone, endpoint, role in (
            (self.region_a, self.relay_a.url, ("--master", "--default")),
            (self.region_b, self.relay_b.url, ()),
        ):
            admin(
                "zonegroup", "create", f"--rgw-zonegroup={zone}", f"--endpoints={endpoint}", "--rgw-realm=live", *role
            )
            admin(
                *("zone", "create", f"--rgw-zonegroup={zone}", f"--rgw-zone={zone}", f"--endpoints={endpoint}", *role),
                *(f"--access-key={sync.access_key}", f"--secret={sync.secret_key}"),
            )
        master = (f"--rgw-zonegroup={self.region_a}", f"--rgw-zone={self.region_a}")
        for user, keys, more in (("sync", sync, ("--system",)), ("tester", self.keys, ())):
            admin(
                *("user", "create", f"--uid={user}", f"--display-name={user}", *more, *master),
                *(f"--access-key={keys.access_key}", f"--secret-key={keys.secret_key}"),
            )
        admin("period", "update", "--commit", *master)
