"""Objects and unfinished multipart uploads in a folder.

    <folder>/<bucket>/<escaped key>          the content
    <folder>/<bucket>/<escaped key>%.json    the rest, see StoredObject ("%." cannot come out of escaping)
    <folder>/.incoming/                      what is being received; renamed when it is whole
    <folder>/.uploads/<upload id>/           upload.json, part-00001, part-00001.json …

The folder is the only state, so another process may look into it at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from engine.sandbox._digests import Digests
from engine.sandbox._options import MIB

_NAME_MAX = 180  # of the 255 bytes a file name may have, with room for the sidecar's ending


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What is known of a stored object.

    `sha256` is hex, over the content; `checksums` maps S3's algorithm names to base64 (crc64nvme is always there when it can be
    computed); `fields` are the head fields a GET gives back (Content-Type …), `metadata` the x-amz-meta- ones without prefix.
    """

    bucket: str
    key: str
    size: int
    etag: str  # with its quotes
    sha256: str | None
    checksums: dict[str, str]
    checksum_type: str = "FULL_OBJECT"
    metadata: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    modified: float = 0.0  # seconds since the epoch
    path: str = ""  # of the content; not in the sidecar

    @property
    def crc64nvme(self) -> str | None:
        return self.checksums.get("crc64nvme")

    def with_sha256(self, digest: str) -> StoredObject:
        return replace(self, sha256=digest)

    def content(self) -> bytes:
        return Path(self.path).read_bytes()


@dataclass(frozen=True, slots=True)
class StoredPart:
    number: int
    size: int
    etag: str
    checksums: dict[str, str]
    modified: float


@dataclass(frozen=True, slots=True)
class Upload:
    upload_id: str
    bucket: str
    key: str
    metadata: dict[str, str]
    fields: dict[str, str]
    checksum_algorithm: str | None = None
    checksum_type: str | None = None


class ObjectFolder:
    def __init__(self, root: str) -> None:
        self.root = Path(root)
        self._incoming = self.root / ".incoming"
        self._uploads = self.root / ".uploads"
        self._incoming.mkdir(parents=True, exist_ok=True)
        self._uploads.mkdir(exist_ok=True)

    # --- objects ----------------------------------------------------------------------------------------------------

    def content_path(self, bucket: str, key: str) -> Path:
        return self.root / bucket / _escape(key)

    def new_file(self) -> IO[bytes]:
        """A file to receive into; its owner commits or removes it."""
        return open(self._incoming / secrets.token_hex(8), "wb+", buffering=0)

    def commit(self, incoming: str, stored: StoredObject) -> StoredObject:
        path = self.content_path(stored.bucket, stored.key)
        path.parent.mkdir(exist_ok=True)
        stored = replace(stored, path=str(path), modified=time.time())
        # The content first: whoever reads the sidecar finds what it describes.
        with _freed_elsewhere(path):
            os.replace(incoming, path)
        self._write_json(_sidecar(path), {**asdict(stored), "path": ""})
        return stored

    def find(self, bucket: str, key: str) -> StoredObject | None:
        path = self.content_path(bucket, key)
        values = _read_json(_sidecar(path))
        return StoredObject(**{**values, "path": str(path)}) if values else None

    def remove(self, bucket: str, key: str) -> None:
        path = self.content_path(bucket, key)
        _sidecar(path).unlink(missing_ok=True)
        with _freed_elsewhere(path):
            path.unlink(missing_ok=True)

    def _write_json(self, path: Path, values: object) -> None:
        temporary = self._incoming / secrets.token_hex(8)
        temporary.write_text(json.dumps(values, indent=1))
        os.replace(temporary, path)

    # --- multipart uploads ------------------------------------------------------------------------------------------

    def create_upload(self, upload: Upload) -> Upload:
        upload = replace(upload, upload_id=secrets.token_urlsafe(24))
        folder = self._uploads / upload.upload_id
        folder.mkdir()
        self._write_json(folder / "upload.json", asdict(upload))
        return upload

    def find_upload(self, upload_id: str, bucket: str, key: str) -> Upload | None:
        values = _read_json(self._uploads / quote(upload_id, safe="") / "upload.json")
        upload = Upload(**values) if values else None
        return upload if upload and (upload.bucket, upload.key) == (bucket, key) else None

    def commit_part(self, upload: Upload, incoming: str, part: StoredPart) -> StoredPart:
        part = replace(part, modified=time.time())
        path = self._part_path(upload, part.number)
        os.replace(incoming, path)
        self._write_json(path.with_suffix(".json"), asdict(part))
        return part

    def parts(self, upload: Upload) -> list[StoredPart]:
        """In the order of their numbers."""
        sidecars = sorted((self._uploads / upload.upload_id).glob("part-*.json"))
        return [StoredPart(**json.loads(path.read_text())) for path in sidecars]

    def assemble(self, upload: Upload, numbers: list[int], digests: Digests) -> str:
        """The parts one after the other in a new file, digested; returns its path. Runs in a worker thread."""
        buffer = memoryview(bytearray(MIB))
        with self.new_file() as whole:
            for number in numbers:
                with open(self._part_path(upload, number), "rb", buffering=0) as part:
                    while count := part.readinto(buffer):
                        digests.update(buffer[:count])
                        whole.write(buffer[:count])
            return str(whole.name)

    def remove_upload(self, upload: Upload) -> None:
        shutil.rmtree(self._uploads / upload.upload_id, ignore_errors=True)

    def uploads(self) -> list[Upload]:
        found = [_read_json(path) for path in sorted(self._uploads.glob("*/upload.json"))]
        return [Upload(**values) for values in found if values]

    def _part_path(self, upload: Upload, number: int) -> Path:
        return self._uploads / upload.upload_id / f"part-{number:05}"


@contextlib.contextmanager
def _freed_elsewhere(path: Path) -> Iterator[None]:
    """Losing the last name of a 1 GiB file takes 0.5 s, for its pages: kept open, it is freed by a thread."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield
        return
    try:
        yield
    finally:
        threading.Thread(target=os.close, args=(fd,), name="sandbox-free").start()


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + "%.json")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return dict(values)


def _escape(key: str) -> str:
    name = quote(key, safe="")
    if name.startswith("."):  # "." and ".." are keys, but no file names
        name = "%2E" + name[1:]
    if len(name) > _NAME_MAX:
        name = name[:100] + "%~" + hashlib.sha256(key.encode()).hexdigest()
    return name
