"""Multipart uploads without their I/O: how large parts are, how many travel at once, which field goes on which call, the XML.

Pure but for the checksums' arithmetic. Sources: "Uploading and copying objects using multipart upload" and "Checking object
integrity" in the S3 user guide; CreateMultipartUpload and its five siblings in the API reference. The tests hold the table of
fields to botocore's model of the service.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import md5
from itertools import pairwise
from typing import Final, NamedTuple
from urllib.parse import quote
from xml.sax.saxutils import escape

from engine import checksums, limits, s3
from engine.errors import ProtocolError, ResponseError, UsageError
from engine.results import Checksum, Part
from engine.wire import Field, printable

STREAM_DOUBLES_AFTER: Final = (
    1_000  # parts of a stream whose end is not known, the next ones are twice as large: 7.8 TiB
)

# --- how large parts are ----------------------------------------------------------------------------------------------


def part_size_for(size: int | None, part_size: int | None = None) -> int:
    """Bytes of every part but the last. `size`: of the whole, None when not known. `part_size`: what the caller wants.

    Raises UsageError: more parts than S3 takes, parts larger than it takes.
    """
    if part_size is not None:
        whole = isinstance(part_size, int) and not isinstance(part_size, bool)
        if not whole or not 1 <= part_size <= limits.PART_MAX_BYTES:
            raise UsageError(f"part_size={part_size!r}: 1 to {limits.PART_MAX_BYTES} bytes (5 GiB)")
        if size is not None and -(-size // part_size) > limits.PARTS_MAX:
            needed = part_size_for(size)
            raise UsageError(
                f"part_size={part_size}: {size} bytes would be more than {limits.PARTS_MAX} parts; it takes "
                f"part_size={needed}"
            )
        return part_size
    if size is None:
        return limits.PART_BYTES
    needed = -(-size // limits.PARTS_MAX)
    chosen = max(limits.PART_BYTES, -(-needed // limits.PART_STEP_BYTES) * limits.PART_STEP_BYTES)
    if chosen > limits.PART_MAX_BYTES:
        raise UsageError(
            f"{size} bytes: S3 takes no object above {limits.PARTS_MAX * limits.PART_MAX_BYTES} (48.8 TiB)"
        )
    return chosen


def stream_part_size(number: int, part_size: int | None = None) -> int:
    """Bytes of part `number` of a stream whose end is not known: doubled after every thousand parts, unless the caller chose.

    Raises UsageError behind the last part that S3 takes.
    """
    if number > limits.PARTS_MAX:
        sent = f"{limits.PARTS_MAX} parts of {part_size} bytes" if part_size else f"{limits.PARTS_MAX} parts"
        raise UsageError(f"the stream does not end within {sent}; give size= or a larger part_size=", stage="body")
    if part_size is not None:
        return part_size
    return min(limits.PART_MAX_BYTES, limits.PART_BYTES << ((number - 1) // STREAM_DOUBLES_AFTER))


# --- how many travel at once --------------------------------------------------------------------------------------------

WIDTH_AT_FIRST: Final = 4  # before anything is known of the path
GAIN: Final = 1.1  # of throughput, by which half as many parts more have to pay
HOLD_ROUNDS: Final = 8  # before more parts are tried again


class Pace:
    """How many parts are under way: `width`. Time comes in as an argument.

    Hill climbing by rounds. A round is over when `width` parts have been stored; its throughput is compared with that of the
    round before the width was last changed. While each widening by half pays (by a tenth at least), it is widened again. When
    one does not, it is taken back, and tried again after eight rounds: the path may have become better. A server that asks for
    fewer requests halves the width, once a round, and starts the eight rounds. With a `fixed` width nothing of this happens.
    """

    def __init__(self, now: float, *, limit: int, fixed: bool = False) -> None:
        assert limit >= 1
        self.width = limit if fixed else min(limit, WIDTH_AT_FIRST)
        self._limit = limit
        self._fixed = fixed
        self._narrower = self.width  # what to go back to when the present width does not pay
        self._rate = 0.0  # bytes/s, of the width before
        self._hold = 0
        self._slowed = False
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._since, self._bytes, self._parts, self._slowed = now, 0, 0, False

    def part_stored(self, now: float, size: int) -> None:
        """`size` bytes of the source have been stored."""
        self._bytes += size
        self._parts += 1
        if self._fixed or self._parts < self.width:
            return
        rate = self._bytes / max(now - self._since, 1e-9)
        if self._hold:
            self._hold -= 1
            self._rate = rate
            if not self._hold:
                self._widen()
        elif rate >= GAIN * self._rate:
            self._rate = rate
            self._widen()
        else:
            self.width, self._hold = self._narrower, HOLD_ROUNDS
        self._begin(now)

    def _widen(self) -> None:
        self._narrower = self.width
        self.width = min(self._limit, self.width + max(1, self.width // 2))

    def slow_down(self, now: float) -> None:
        """The server answered SlowDown, 429 or 503."""
        if self._fixed or self._slowed:
            return
        self.width = self._narrower = max(1, self.width // 2)
        self._hold = HOLD_ROUNDS
        self._begin(now)
        self._slowed = True


# --- which field goes on which call ---------------------------------------------------------------------------------------

CREATE: Final = "CreateMultipartUpload"
PART: Final = "UploadPart"
LIST: Final = "ListParts"
COMPLETE: Final = "CompleteMultipartUpload"
ABORT: Final = "AbortMultipartUpload"

_CUSTOMER_KEY: Final = "x-amz-server-side-encryption-customer-"
# Checked in this order; what none of them names (x-amz-request-payer, x-amz-expected-bucket-owner, the caller's own fields)
# goes on every call.
_CALLS_OF: Final[tuple[tuple[tuple[str, ...], frozenset[str]], ...]] = (
    ((_CUSTOMER_KEY,), frozenset({CREATE, PART, LIST, COMPLETE})),
    (("if-match", "if-none-match", "x-amz-mp-object-size"), frozenset({COMPLETE})),
    (("x-amz-checksum-algorithm",), frozenset({CREATE})),
    (("x-amz-checksum-type",), frozenset({CREATE, COMPLETE})),
    (("x-amz-checksum-",), frozenset({COMPLETE})),
    (("x-amz-if-match-",), frozenset({ABORT})),
    (
        (
            *("cache-control", "content-disposition", "content-encoding", "content-language", "content-type", "expires"),
            *("x-amz-acl", "x-amz-grant-", "x-amz-meta-", "x-amz-object-lock-", "x-amz-server-side-encryption"),
            *("x-amz-storage-class", "x-amz-tagging", "x-amz-website-redirect-location"),
        ),
        frozenset({CREATE}),
    ),
)  # fmt: skip


def fields_for(call: str, fields: Iterable[Field]) -> list[Field]:
    """Those of the caller's fields (lower-case names) that belong on one of the calls, as the API reference has them.

    Raises UsageError for a field that says something of the body of one PUT.
    """
    kept = []
    for name, value in fields:
        if name in ("content-md5", "x-amz-sdk-checksum-algorithm", "x-amz-write-offset-bytes"):
            raise UsageError(
                f"headers: {name} is about the body of one request, and this object goes in parts; leave it out"
            )
        calls = next((calls for starts, calls in _CALLS_OF if name.startswith(starts)), None)
        if calls is None or call in calls:
            kept.append((name, value))
    return kept


def checksum_type(algorithm: str | None) -> str:
    """What a named checksum of the object is made of: CRCs can be combined, digests only hashed again."""
    return "COMPOSITE" if algorithm == "sha256" else "FULL_OBJECT"


def create_fields(fields: Iterable[Field], algorithm: str | None) -> list[Field]:
    """Of CreateMultipartUpload. `algorithm`: None, "auto" (nothing is asked for) or a name."""
    kept = fields_for(CREATE, fields)
    if algorithm is None or algorithm == "auto":
        return kept
    checksums.header_name(algorithm)
    return [*kept, ("x-amz-checksum-algorithm", algorithm.upper()), ("x-amz-checksum-type", checksum_type(algorithm))]


def complete_fields(fields: Iterable[Field], parts: Sequence[Part], algorithm: str | None) -> list[Field]:
    """Of CompleteMultipartUpload: the size, so that a part that is missing is an error, and a named checksum of the whole.

    The value of a composite checksum stays out: MinIO takes it only without the "-N" that S3 wants. The answer's is compared.
    """
    kept = fields_for(COMPLETE, fields)
    kept.append(("x-amz-mp-object-size", str(sum(part.size for part in parts))))
    if algorithm is None or algorithm == "auto":
        return kept
    kept.append(("x-amz-checksum-type", checksum_type(algorithm)))
    whole = whole_checksum(parts, algorithm)
    if whole is not None and algorithm != "sha256":
        kept.append((checksums.header_name(algorithm), whole.value))
    return kept


# --- checksums and ETags of the whole ---------------------------------------------------------------------------------------


def whole_checksum(parts: Sequence[Part], algorithm: str | None) -> Checksum | None:
    """The object's checksum from its parts' (in order), None when one of them has none of this algorithm."""
    wanted = checksums.AUTO if algorithm == "auto" else algorithm
    values = [part.checksum.value for part in parts if part.checksum is not None and part.checksum.algorithm == wanted]
    if wanted is None or len(values) != len(parts) or not parts:
        return None
    if wanted == "sha256":
        return Checksum(wanted, checksums.composite(wanted, values))
    value = values[0]
    for part, each in zip(parts[1:], values[1:], strict=True):
        value = checksums.combine(wanted, value, each, part.size)
    return Checksum(wanted, value)


def whole_etag(parts: Sequence[Part]) -> str:
    """The ETag that S3, MinIO and Ceph give an object of these parts, "" when it cannot be foretold (parts encrypted by KMS or
    a customer's key have ETags that are no MD5s)."""
    digests = []
    for part in parts:
        if not is_md5(part.etag):
            return ""
        digests.append(bytes.fromhex(part.etag.strip('"')))
    return f'"{md5(b"".join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"'


def is_md5(etag: str) -> bool:
    """Whether an ETag looks like the MD5 of what it is for."""
    bare = etag.strip('"')
    return len(bare) == 32 and all(c in "0123456789abcdefABCDEF" for c in bare)


# --- documents --------------------------------------------------------------------------------------------------------------


def query_of(upload_id: str, number: int | None = None) -> str:
    """The query of a request about an upload, or one of its parts."""
    own = f"uploadId={quote(upload_id, safe='')}"
    return own if number is None else f"partNumber={number}&{own}"


def complete_document(parts: Sequence[Part]) -> bytes:
    """The body of CompleteMultipartUpload. Part checksums are in it where there are some: S3 wants each of a composite one."""
    pieces = ['<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">']
    for part in parts:
        pieces.append(f"<Part><PartNumber>{part.number}</PartNumber><ETag>{escape(part.etag)}</ETag>")
        if part.checksum is not None:
            name = f"Checksum{part.checksum.algorithm.upper()}"
            pieces.append(f"<{name}>{escape(part.checksum.value)}</{name}>")
        pieces.append("</Part>")
    pieces.append("</CompleteMultipartUpload>")
    return "".join(pieces).encode()


class Completed(NamedTuple):
    """What the answer to CompleteMultipartUpload says; every part is "" or empty when it is missing."""

    etag: str
    checksums: dict[str, str]
    checksum_type: str


def parse_created(body: bytes, what: str) -> str:
    """The upload id. Raises ProtocolError when there is none."""
    upload_id = _facts(_leaves(body)).get("UploadId", "")
    if not upload_id:
        raise ProtocolError(f"{what}: the answer names no upload", kind="no-upload-id", excerpt=_excerpt(body))
    return upload_id


def parse_completed(body: bytes) -> Completed | None:
    """None when the document is not that of a success: empty, cut, or an error (see `check_completed`)."""
    facts = _facts(_leaves(body))
    if not facts.get("ETag"):
        return None
    found = {name: value for name in checksums.ALGORITHMS if (value := facts.get(f"Checksum{name.upper()}"))}
    return Completed(facts["ETag"], found, facts.get("ChecksumType", "").upper())


# S3 has sent its 200 before it knows; what an error in its place would have had as a status.
_STATUS_OF: Final = {
    "SlowDown": 503,
    "ServiceUnavailable": 503,
    "PreconditionFailed": 412,
    "ConditionalRequestConflict": 409,
    "NoSuchUpload": 404,
    "NoSuchBucket": 404,
    "AccessDenied": 403,
    "InvalidPart": 400,
    "InvalidPartOrder": 400,
    "EntityTooSmall": 400,
    "BadDigest": 400,
    "InvalidRequest": 400,
}


def check_completed(what: str, body: bytes, *, conditional: bool, request_id: str) -> None:
    """Raises the ResponseError that stands in the body of a 200, as S3 answers when it fails after minutes of work."""
    document = s3.parse_error(body)
    if not document.code:
        return
    raise s3.error_for(
        what,
        _STATUS_OF.get(document.code, 500),
        document,
        conditional=conditional,
        request_id=request_id,
    )


def is_upload_gone(error: ResponseError) -> bool:
    """Whether the store knows no such upload: completed, aborted, expired."""
    return error.code == "NoSuchUpload" or (error.status == 404 and error.code in ("", "NoSuchKey"))


class Page(NamedTuple):
    parts: list[Part]
    marker: str  # where the next page begins, "" when this is the last


def parse_parts(body: bytes, what: str) -> Page:
    """A page of ListParts. Raises ProtocolError for what is none."""
    parts: list[Part] = []
    top: dict[str, str] = {}
    facts: dict[str, str] = {}
    for path, text in _leaves(body, limits.PARTS_PAGE_MAX_BYTES):
        name = path.partition("/")[2]
        if not name.startswith("Part/"):
            top[name] = text
            continue
        name = name.removeprefix("Part/")
        if name in facts:  # elements come in any order, each once
            parts.append(_part(facts, what))
            facts = {}
        facts[name] = text
    if facts:
        parts.append(_part(facts, what))
    if "UploadId" not in top and not parts:
        raise ProtocolError(f"{what}: the answer is no list of parts", kind="no-parts", excerpt=_excerpt(body))
    marker = top.get("NextPartNumberMarker", "") if top.get("IsTruncated", "").lower() == "true" else ""
    if marker and (not parts or not marker.isdecimal()):
        raise ProtocolError(f"{what}: the list of parts does not end", kind="no-parts", excerpt=_excerpt(body))
    return Page(parts, marker)


def _part(facts: dict[str, str], what: str) -> Part:
    number, size = facts.get("PartNumber", ""), facts.get("Size", "")
    if not (number.isdecimal() and size.isdecimal()) or len(number) > 5 or len(size) > 19:
        raise ProtocolError(
            f"{what}: a part without number or size", kind="no-parts", excerpt=printable(str(facts), 200)
        )
    checksum = next(
        (Checksum(name, value) for name in checksums.ALGORITHMS if (value := facts.get(f"Checksum{name.upper()}"))),
        None,
    )
    return Part(int(number), int(size), facts.get("ETag", ""), checksum)


def _leaves(body: bytes, max_bytes: int = limits.XML_MAX_BYTES) -> list[tuple[str, str]]:
    try:
        return s3.xml_leaves(body, max_bytes=max_bytes)
    except s3.XmlError:
        return []


def _facts(leaves: list[tuple[str, str]]) -> dict[str, str]:
    """What stands directly below the root, whose own name differs between stores (and is "Error" for an error)."""
    return {path.partition("/")[2]: text for path, text in leaves if not path.startswith("Error/")}


def _excerpt(body: bytes) -> str:
    return printable(body[:200].decode("utf-8", "replace"), 200)


# --- what is asked of a list of parts -----------------------------------------------------------------------------------------


def in_order(parts: Iterable[Part]) -> list[Part]:
    """By number, for CompleteMultipartUpload. Raises UsageError: none at all, a number twice, something else than parts."""
    given = list(parts)
    if not all(isinstance(part, Part) for part in given):
        raise UsageError("parts: the Part values that upload_part or list_parts returned")
    ordered = sorted(given, key=lambda part: part.number)
    if not ordered:
        raise UsageError("parts: an upload needs at least one part")
    twice = {a.number for a, b in pairwise(ordered) if a.number == b.number}
    if twice:
        raise UsageError(f"parts: number {', '.join(map(str, sorted(twice)))} is there twice")
    return ordered


@dataclass(frozen=True, slots=True)
class Range:
    """A part that is to be: `start` and `size` in bytes of the source."""

    number: int
    start: int
    size: int


def ranges(size: int, part_size: int) -> list[Range]:
    """The parts of a source of known size, at least one."""
    starts = range(0, max(size, 1), part_size)
    return [Range(n, start, min(part_size, size - start)) for n, start in enumerate(starts, 1)]
