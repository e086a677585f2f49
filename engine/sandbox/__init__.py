"""Loopback S3 endpoints to try things on, without any account: what the demo and the tests run on.

    with engine.sandbox.start() as sandbox:
        engine.put("big.bin", "s3://redirect-307/big.bin", endpoint_url=sandbox.redirector_url,
                   region=sandbox.region, credentials=sandbox.credentials)
        print(sandbox.object("redirect-307", "big.bin").sha256, sandbox.records)

Two real HTTP/1.1 servers on one uvloop: the storing endpoint (`_store.py`) checks signatures and stores to a folder with
digests, the redirecting endpoint (`_scenarios.py` has the table) does what the name of the bucket says. Nothing here is
shared with the client: its own request parser, its own signature check. For tests, every request leaves a Record of what the
kernel delivered.
"""

from __future__ import annotations

import hashlib
import ipaddress
import shutil
import tempfile
import time
from collections.abc import Callable
from types import TracebackType

from engine import signing
from engine.errors import UsageError
from engine.sandbox._objects import ObjectFolder, StoredObject
from engine.sandbox._options import MIB, OTHER_REGION, REGION, Options, new_credentials
from engine.sandbox._process import ServerProcess
from engine.sandbox._records import Record, Recorder
from engine.sandbox._scenarios import scenario_table
from engine.sandbox._thread import ServerThread

__all__ = [
    "OTHER_REGION",
    "REGION",
    "Record",
    "Sandbox",
    "StoredObject",
    "run_forever",
    "scenario_table",
    "start",
]


class Sandbox:
    """Two endpoints that run. A context manager; `close` ends them, and removes the folder if `start` made it.

    Attributes:
      redirector_url, store_url: "http://127.0.0.1:PORT", for `endpoint_url`; https:// with `tls`.
      credentials: the only ones that are accepted, as the client takes them.
      region: the only one that is accepted, but by the `region` scenarios.
      folder: where the objects are, see `_objects.py`.
    """

    def __init__(self, options: Options, server: ServerThread | ServerProcess) -> None:
        self._server = server
        self._owns_folder = options.owns_folder
        self._objects = ObjectFolder(options.folder)
        self._open = True
        self.redirector_url = server.redirector_url
        self.store_url = server.store_url
        given = options.credentials
        self.credentials = signing.Credentials(given.access_key, given.secret_key, given.token)
        self.region = options.region
        self.folder = options.folder

    @property
    def records(self) -> list[Record]:
        """Copies of what both endpoints saw, in order of arrival."""
        return self._server.records()

    def settle(self, timeout_s: float = 10.0) -> list[Record]:
        """The records, once every one is complete: body bytes are counted behind an answer too, until the client closes, or
        is silent for `linger_s`. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while not self._server.settled():
            if time.monotonic() > deadline:
                raise TimeoutError("a request of the sandbox is still under way")
            time.sleep(0.002)
        return self.records

    def object(self, bucket: str, key: str) -> StoredObject:
        """What is stored. Raises KeyError. `sha256` is computed here where the sandbox was told not to."""
        stored = self._objects.find(bucket, key)
        if stored is None:
            raise KeyError(f"{bucket}/{key} is not stored")
        return stored if stored.sha256 else stored.with_sha256(_file_sha256(stored.path))

    def uploads(self) -> list[tuple[str, str, str]]:
        """Multipart uploads that were neither completed nor aborted: (bucket, key, upload id)."""
        return [(upload.bucket, upload.key, upload.upload_id) for upload in self._objects.uploads()]

    @property
    def environment(self) -> dict[str, str]:
        """What makes other S3 tools talk to the storing endpoint."""
        token = {"AWS_SESSION_TOKEN": self.credentials.token} if self.credentials.token else {}
        return {
            "AWS_ENDPOINT_URL_S3": self.store_url,
            "AWS_REGION": self.region,
            "AWS_ACCESS_KEY_ID": self.credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": self.credentials.secret_key,
            **token,
        }

    def close(self) -> None:
        if self._open:
            self._open = False
            self._server.close()
            if self._owns_folder:
                shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def start(
    folder: str | None = None,
    *,
    process: bool = False,
    region: str = REGION,
    session_token: bool = False,
    anonymous: bool = False,
    digest: bool = True,
    host: str = "127.0.0.1",
    store_host: str | None = None,
    redirector_port: int = 0,
    store_port: int = 0,
    clock_offset_s: float = 0.0,
    idle_s: float = 30.0,
    linger_s: float = 2.0,
    min_part_size: int = 5 * MIB,
    tls: str = "",
    keep_records: bool = True,
) -> Sandbox:
    """Start both endpoints and return when they listen. Raises OSError when they cannot, UsageError for a host
    that is no loopback address.

    folder: where objects are stored; by default a temporary one, removed by `close`.
    process: run in a process of its own, so that memory, CPU time and GIL of the caller are its own. Costs 0.2 s.
    session_token: the credentials have a token, and requests without it are refused.
    anonymous: unsigned requests are accepted; a wrong signature never is.
    digest: SHA-256 of every body while it arrives (0.8 CPU-s/GiB, beside the loop); else when `Sandbox.object` is asked.
    host, store_host: addresses of the two (`store_host` defaults to `host`), e.g. "127.0.0.2" or "::1".
    redirector_port, store_port: 0 lets the kernel choose.
    clock_offset_s: how wrong the server's clock is, for RequestTimeTooSkewed.
    idle_s: a connection which is idle so long between requests is closed (S3: about 5 s).
    linger_s: how long to wait for (and count) more body bytes behind a final answer.
    min_part_size: of a multipart upload's parts but the last; S3's is 5 MiB.
    tls: the path of a PEM file with a certificate chain and its key: both endpoints speak https only.
    keep_records: False for millions of requests; `records` then stays empty.
    """
    for address in (host, store_host or host):
        if not ipaddress.ip_address(address).is_loopback:
            raise UsageError(f"sandbox: {address} is no loopback address; it is not made to be reached by others")
    path = folder or tempfile.mkdtemp(prefix="putengine-sandbox-")
    options = Options(
        folder=path,
        credentials=new_credentials(session_token),
        region=region,
        host=host,
        store_host=store_host or host,
        redirector_port=redirector_port,
        store_port=store_port,
        anonymous=anonymous,
        digest=digest,
        clock_offset_s=clock_offset_s,
        idle_s=idle_s,
        linger_s=linger_s,
        min_part_bytes=min_part_size,
        tls=tls,
        keep_records=keep_records,
        owns_folder=folder is None,
    )
    try:
        server = ServerProcess(options) if process else ServerThread(options, Recorder(options.keep_records))
        return Sandbox(options, server)
    except BaseException:
        if folder is None:
            shutil.rmtree(path, ignore_errors=True)
        raise


def _print(text: str) -> None:
    print(text, flush=True)


def run_forever(
    folder: str | None = None,
    *,
    redirector_port: int = 0,
    store_port: int = 0,
    session_token: bool = False,
    anonymous: bool = False,
    say: Callable[[str], object] = _print,
) -> None:
    """For `putengine sandbox`: says where the endpoints are and how to talk to them, a line for each request that was
    answered, and runs until interrupted (KeyboardInterrupt is how it ends; it does not come through)."""
    with start(
        folder,
        redirector_port=redirector_port,
        store_port=store_port,
        session_token=session_token,
        anonymous=anonymous,
    ) as sandbox:
        say(f"redirecting endpoint  {sandbox.redirector_url}\nstoring endpoint      {sandbox.store_url}")
        say(f"objects are stored in {sandbox.folder}{'' if folder else ' (removed at the end)'}\n")
        say("\n".join(f"export {name}='{value}'" for name, value in sandbox.environment.items()))
        say("\nThe redirecting endpoint does what the bucket's name says:\n\n" + scenario_table())
        say(f"\n  putengine put FILE s3://redirect-307/key --endpoint-url {sandbox.redirector_url}\n\nCtrl-C ends it.")
        shown = 0
        try:
            while True:
                time.sleep(0.2)
                for record in sandbox.records[shown:]:
                    if not record.complete:
                        break
                    say(_line(record))
                    shown += 1
        except KeyboardInterrupt:
            say("")


def _line(record: Record) -> str:
    went = "100, " if record.continue_at is not None else ""
    answer = f"{went}{record.status or record.ended}{' ' + record.code if record.code else ''}"
    target = record.target.partition("?")[0]
    return f"{record.endpoint:<10} {record.method} {target} → {answer}, {record.body_bytes} body bytes"


def _file_sha256(path: str) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(MIB))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
