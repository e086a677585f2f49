"""What the endpoints saw, one Record a request. Written by the loop's thread, read by any."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(slots=True)
class Record:
    """One request as an endpoint saw it. Times are CLOCK_MONOTONIC (`time.monotonic`), the same in every process of a machine.

    Body bytes are what the kernel delivered behind the head and which belong to this request, framing of a chunked body
    included. They are counted until the record is `complete`, also behind the final answer.
    """

    number: int  # from 1, in order of arrival over both endpoints
    endpoint: str  # "redirector" or "store"
    connection: int  # from 1; the same number again means that the connection was used again
    head: bytes = field(repr=False)  # the request head as it came, the empty line included
    method: str
    target: str
    version: str
    headers: list[tuple[str, str]] = field(repr=False)  # in order, as written
    received_at: float  # the head was complete
    scenario: str = ""
    signature: str = ""  # "ok", "anonymous", S3's error code, or "" when it was not looked at
    signed_region: str = ""  # of the credential scope
    request_id: str = ""
    interims: list[tuple[int, float]] = field(default_factory=list)  # 1xx that were sent: status and time
    continue_at: float | None = None  # the 100 was sent
    answered_at: float | None = None  # the final head was sent
    status: int | None = None
    code: str = ""  # S3's error code of the answer
    body_bytes: int = 0
    body_bytes_at_continue: int | None = None  # delivered when the 100 was sent, unread ones included
    body_bytes_at_answer: int | None = None
    first_body_at: float | None = None
    last_body_at: float | None = None
    ended: str = ""  # "kept", "closed", "reset" by us, "peer-closed", "peer-reset", "timeout"
    complete: bool = False

    def get(self, name: str) -> str | None:
        """The value of a field, duplicates joined by ", "; None when it is not there."""
        values = self.get_all(name)
        return ", ".join(values) if values else None

    def get_all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "head": self.head.decode("latin-1")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Record:
        return cls(
            **{
                **values,
                "head": values["head"].encode("latin-1"),
                "headers": [(name, value) for name, value in values["headers"]],
                "interims": [(status, at) for status, at in values["interims"]],
            }
        )


class Recorder:
    """The list of Records, with copies for readers."""

    def __init__(self, keep: bool = True) -> None:
        self._keep = keep
        self._records: list[Record] = []
        self._count = 0
        self._lock = threading.Lock()

    def add(self, record: Record) -> None:
        with self._lock:
            self._count += 1
            if self._keep:
                self._records.append(record)

    def next_number(self) -> int:
        return self._count + 1

    def snapshot(self) -> list[Record]:
        with self._lock:
            return [replace(r, headers=list(r.headers), interims=list(r.interims)) for r in self._records]

    def settled(self) -> bool:
        with self._lock:
            return all(r.complete for r in self._records)
