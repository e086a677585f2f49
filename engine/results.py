"""What a call gives back: frozen values, picklable, free of secrets (URLs in them are redacted)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

ExpectOutcome = Literal["continue", "final", "timeout", "off"]
SendPath = Literal["none", "sendfile", "send", "splice", "vectored", "read+send", "tls", "tls-ssl", "ktls"]


@dataclass(frozen=True, slots=True)
class Hop:
    """One request and what came of it.

    Attributes:
      url: where it went, secrets redacted.
      status: final HTTP status, 0 when there was none.
      region: signing region, "" when the request was not signed.
      body_bytes_sent: body bytes handed to the kernel on this hop.
      body_bytes_read: bytes taken from the source to be sent on this hop (hashing passes don't count).
      continue_wait_s: seconds between the last head byte leaving and the go-ahead, final answer or end of the wait.
      outcome: "stored" (2xx after the whole body), "answered" (2xx, no body was to be sent), "redirected",
        "region" (301/400 that named another region), "retried", "refused" (final status, shown in `status`),
        "early-success" (2xx before the whole body: an error), "lost", "timed-out", "cancelled", "source-changed", "failed" (no
        connection came about, or the source could not be read).
      seconds: wall time of the hop, waiting for a connection included.
    """

    url: str
    status: int = 0
    region: str = ""
    body_bytes_sent: int = 0
    body_bytes_read: int = 0
    continue_wait_s: float = 0.0
    outcome: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of the last hop by phase, and `total` for the whole call. A reused connection shows 0 for dns, connect, tls."""

    dns: float = 0.0
    connect: float = 0.0
    tls: float = 0.0
    sign: float = 0.0
    continue_wait: float = 0.0
    body: float = 0.0
    response: float = 0.0
    total: float = 0.0


class Checksum(NamedTuple):
    """`algorithm` as in "crc64nvme"; `value` base64 text as in the x-amz-checksum-* fields."""

    algorithm: str
    value: str


@dataclass(frozen=True, slots=True)
class PutResult:
    """What a put did, with the proof: `body_bytes_sent` over all hops and attempts, and each `Hop`.

    Attributes:
      status: HTTP status of the last hop (200, 201, 204).
      etag, version_id, request_id, host_id: the server's; "" when it sent none. `etag` keeps its quotes.
      size: bytes of the object.
      checksum: computed over the very bytes sent; None when off.
      checksum_verified: whether the server returned one to compare, and it was equal.
      region: signing region of the last hop, "" when not signed.
      url: of the last hop, signature and token query values redacted.
      body_bytes_sent: `== size` unless a redirect or retry came after body bytes had left.
      expect: what happened on the last hop: "continue" (100 came), "final" (answered without a 100),
        "timeout" (the wait ended), "off" (not asked).
      send_path: how the body left; "none" for an empty one.

    Of an upload in parts: `body_bytes_sent` is over all parts; `attempts` is 1 and one more for each request that had to be
    made again; `hops` are those of creating and completing it, of the first part and of every part that needed more than one
    hop, at most 256; `expect`, `send_path` and the timings of a connection are the first part's, `timings.body` is the time
    from the first part to the last, `timings.response` that of completing.
    """

    status: int
    etag: str
    version_id: str
    size: int
    checksum: Checksum | None
    checksum_verified: bool
    request_id: str
    host_id: str
    region: str
    url: str
    body_bytes_sent: int
    hops: tuple[Hop, ...]
    attempts: int
    redirects: int
    expect: ExpectOutcome
    send_path: SendPath
    timings: Timings


@dataclass(frozen=True, slots=True)
class UploadId:
    """A multipart upload that was begun, for `upload_part` and its like: here, in another process, on another machine.

    Attributes:
      destination: as given to `create_upload`.
      upload_id: the store's name for it.
      checksum: "auto", an algorithm, or None; of every part, and of the object.
      region: where the bucket was found to be, "" when that is not known, or not asked.
    """

    destination: str
    upload_id: str
    checksum: str | None = "auto"
    region: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A part that is stored. `number` starts at 1, `size` is in bytes, `etag` keeps its quotes; `checksum` is of the bytes sent
    or, from `list_parts`, what the store says, None when it does not. `body_bytes_sent`, over all attempts, is 0 from
    `list_parts`."""

    number: int
    size: int
    etag: str
    checksum: Checksum | None = None
    body_bytes_sent: int = 0


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What HEAD says of an object. `size` is -1 when the server does not say; `metadata` keys are lower-case, without the
    `x-amz-meta-` prefix; `last_modified` is the field's text; `checksums` maps algorithm to base64 text."""

    size: int
    etag: str = ""
    content_type: str = ""
    last_modified: str = ""
    version_id: str = ""
    storage_class: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    region: str = ""
    url: str = ""
    hops: tuple[Hop, ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """A plain HTTP answer, of `Client.request`. `headers` has lower-case names, repeated fields joined by ", "; `body` is
    what came, not decoded; both may hold secrets, and are in no repr. `url` is the last hop's, redacted."""

    status: int
    reason: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    url: str
    hops: tuple[Hop, ...] = ()


class Progress(NamedTuple):
    """A snapshot of a running put. `sent` counts body bytes of the present attempt; `total` is None when unknown;
    `phase` is one of "hashing", "resolving", "connecting", "asking", "sending", "awaiting answer", "backing off", "done".

    Of an upload in parts, `sent` counts what is stored and what is under way, `attempt` and `hop` stay 1, and `phase` is
    "creating", "sending", "completing", "done"; when it did not work "aborting", then "aborted", "kept" (for `resume`) or
    "left behind" (the parts could not be removed)."""

    sent: int
    total: int | None
    phase: str
    attempt: int
    hop: int
