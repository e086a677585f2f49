"""The file in which an unfinished upload is remembered, so that the next call goes on where the last one ended.

Owns its format and how it is written: whole or not at all (a file beside it, renamed), readable by its owner only. It holds no
secret. Knows nothing of requests; who goes on checks what the store says against the source's own bytes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from engine.errors import UsageError
from engine.results import Checksum, Part

_FORMAT: Final = "putengine-upload-1"


@dataclass
class Unfinished:
    """An upload that was begun.

    Attributes:
      destination, store: where it goes: as the user wrote it, and the origin of the endpoint.
      upload_id, region, checksum: as in `UploadId`. part_size: bytes of every part but the last.
      options: a digest of what was told when it was created (metadata and the like), which cannot be told again.
      source: the absolute path ("" for what has none), the first byte and the number of bytes.
      modified_ns: of the source's file, 0 for none; a hint for people, since the bytes themselves are compared.
      parts: those known to be stored, by number.
    """

    destination: str
    store: str
    upload_id: str
    region: str
    checksum: str | None
    part_size: int
    options: str
    source: tuple[str, int, int]
    modified_ns: int = 0
    parts: dict[int, Part] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        values = asdict(self)
        values["parts"] = [
            [part.number, part.size, part.etag, *(part.checksum or ())] for _number, part in sorted(self.parts.items())
        ]
        return {"format": _FORMAT, **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Unfinished:
        rest = {name: value for name, value in values.items() if name not in ("format", "parts", "source")}
        parts = {}
        for number, size, etag, *checksum in values["parts"]:
            parts[int(number)] = Part(int(number), int(size), str(etag), Checksum(*checksum) if checksum else None)
        path, start, size = values["source"]
        found = cls(**rest, source=(str(path), int(start), int(size)), parts=parts)
        if not (found.upload_id and isinstance(found.upload_id, str) and int(found.part_size) > 0):
            raise ValueError("no upload")
        return found


class ResumeFile:
    """`path` belongs to one upload at a time; who shares it between two gets two halves of neither."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fsdecode(path))

    def check_writable(self) -> None:
        """Raises OSError when `save` could not work, before there is anything to remember."""
        folder = os.path.dirname(self.path)
        if not os.path.isdir(folder):
            raise FileNotFoundError(errno.ENOENT, "there is no such folder", folder)
        if os.path.isdir(self.path):
            raise IsADirectoryError(errno.EISDIR, "is a folder; name a file in it", self.path)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "cannot be written into", folder)

    def load(self) -> Unfinished | None:
        """None when there is no such file. Raises UsageError for one that is something else, and OSError."""
        try:
            with open(self.path, "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return None
        try:
            values = json.loads(content)
            if values["format"] != _FORMAT:
                raise ValueError("another format")
            return Unfinished.from_json(values)
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"resume={self.path!r}: this file was not written by an upload; name another one, or delete it"
            ) from None

    def save(self, unfinished: Unfinished) -> None:
        """Raises OSError."""
        beside = f"{self.path}.{os.getpid()}.tmp"
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "w", encoding="utf-8") as file:
                json.dump(unfinished.as_json(), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)
            raise

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
