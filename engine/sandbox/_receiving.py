"""A body on its way into the folder: what was promised of it, what arrived, whether the two agree."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from engine.sandbox._digests import CHECKSUM_PREFIX, CHECKSUM_SIZES, BufferPool, Digests, pump
from engine.sandbox._errors import S3Error
from engine.sandbox._exchange import Exchange
from engine.sandbox._objects import ObjectFolder
from engine.sandbox._options import ETAG_MD5_MAX_BYTES, METADATA_MAX_BYTES, PUT_MAX_BYTES, Options
from engine.sandbox._request import ChunkDecoder, Request
from engine.sandbox._sigv4 import UNSIGNED, UNSIGNED_TRAILER

META_PREFIX: Final = "x-amz-meta-"
_KEPT_FIELDS: Final = (
    "Content-Type",
    "Cache-Control",
    "Content-Disposition",
    "Content-Encoding",
    "Content-Language",
    "Expires",
    "x-amz-storage-class",
)


@dataclass(slots=True)
class Received:
    """A body that arrived and was checked."""

    path: str
    size: int
    etag: str
    md5: str | None
    sha256: str | None
    checksums: dict[str, str]


class Intake:
    """Where bodies are received: the folder, its options, and the buffers that all bodies share."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.objects = ObjectFolder(options.folder)
        self._pool = BufferPool()

    def check_conditions(self, request: Request) -> None:
        """If-None-Match: * and If-Match of a write. AWS, "Add preconditions to S3 operations with conditional requests"."""
        none_match, match = request.get("if-none-match"), request.get("if-match")
        if none_match is None and match is None:
            return
        if none_match not in (None, "*"):
            raise S3Error(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
        found = self.objects.find(request.bucket, request.key)
        if none_match and found:
            raise precondition_failed("If-None-Match")
        if match and not found:
            raise S3Error(404, "NoSuchKey", "The specified key does not exist.", elements=[("Key", request.key)])
        if match and found and match.strip('"') != found.etag.strip('"'):
            raise precondition_failed("If-Match")

    async def receive(self, exchange: Exchange, payload_hash: str) -> Received:
        """Reads the body into a new file and checks all that was said of it. Its caller commits or removes the file.

        Raises S3Error: 411 without a length, 400 for a checksum or hash that does not fit; then no file is left.
        """
        request = exchange.request
        size = _declared_size(request, payload_hash)
        given = _given_checksums(request)
        trailer = _trailer_algorithm(request) if payload_hash == UNSIGNED_TRAILER else None
        algorithms = {"crc64nvme", *given, *((trailer,) if trailer else ())}
        if size <= ETAG_MD5_MAX_BYTES or request.get("content-md5") is not None:
            algorithms.add("md5")
        if self.options.digest or payload_hash not in (UNSIGNED, UNSIGNED_TRAILER):
            algorithms.add("sha256")
        digests = Digests(algorithms)
        decoder = ChunkDecoder() if payload_hash == UNSIGNED_TRAILER else None
        await exchange.go_ahead()
        with self.objects.new_file() as file:
            path = str(file.name)
            try:
                sink = _sink(file.fileno(), digests, decoder)
                await pump(
                    exchange.receive_into, _tampering(sink) if exchange.quirks.tamper else sink, size, self._pool
                )
                if os.fstat(file.fileno()).st_size != size or (decoder and not decoder.done):
                    raise S3Error(400, "IncompleteBody", "The request body terminated unexpectedly")
                if decoder and trailer:
                    given[trailer] = decoder.trailers.get(CHECKSUM_PREFIX + trailer, "")
                _check_digests(request, payload_hash, given, digests)
            except BaseException:
                discard_file(path)
                raise
        shown = () if exchange.quirks.hide_checksums else ("crc64nvme", *given)
        checksums = {name: value for name in shown if (value := digests.base64(name)) is not None}
        return Received(path, size, _etag(digests, size), digests.hex("md5"), digests.hex("sha256"), checksums)


def described(request: Request) -> tuple[dict[str, str], dict[str, str]]:
    """User metadata, and the fields that a GET gives back. Raises S3Error(400 MetadataTooLarge)."""
    names = {name.lower() for name, _value in request.fields if name.lower().startswith(META_PREFIX)}
    metadata = {name[len(META_PREFIX) :]: request.get(name) or "" for name in sorted(names)}
    size = sum(len(name) + len(value.encode("latin-1")) for name, value in metadata.items())
    if size > METADATA_MAX_BYTES:
        message = "Your metadata headers exceed the maximum allowed metadata size"
        raise S3Error(
            400,
            "MetadataTooLarge",
            message,
            elements=[("Size", str(size)), ("MaxSizeAllowed", str(METADATA_MAX_BYTES))],
        )
    fields = {name: value for name in _KEPT_FIELDS if (value := request.get(name.lower())) is not None}
    encodings = [e.strip() for e in fields.get("Content-Encoding", "").split(",")]
    fields["Content-Encoding"] = ", ".join(e for e in encodings if e and e != "aws-chunked")
    if not fields["Content-Encoding"]:
        del fields["Content-Encoding"]
    fields.setdefault("Content-Type", "binary/octet-stream")
    return metadata, fields


def checksum_fields(checksums: dict[str, str], checksum_type: str) -> list[tuple[str, str]]:
    fields = [(CHECKSUM_PREFIX + name, value) for name, value in checksums.items()]
    return [*fields, ("x-amz-checksum-type", checksum_type)] if fields else []


def discard_file(path: str) -> None:
    """A file that was committed is not there any more."""
    if os.path.exists(path):
        os.unlink(path)


def precondition_failed(condition: str) -> S3Error:
    message = "At least one of the pre-conditions you specified did not hold"
    return S3Error(412, "PreconditionFailed", message, elements=[("Condition", condition)])


def _declared_size(request: Request, payload_hash: str) -> int:
    """Of the object: the decoded length of an aws-chunked body."""
    decoded = request.get("x-amz-decoded-content-length")
    if payload_hash == UNSIGNED_TRAILER:
        if decoded is None or not re.match(r"[0-9]{1,19}\Z", decoded):
            raise S3Error(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
        size = int(decoded)
    elif request.chunked or request.get("content-length") is None:
        raise S3Error(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
    else:
        size = request.length
    if size > PUT_MAX_BYTES:
        message = "Your proposed upload exceeds the maximum allowed size"
        elements = [("ProposedSize", str(size)), ("MaxSizeAllowed", str(PUT_MAX_BYTES))]
        raise S3Error(400, "EntityTooLarge", message, elements=elements)
    return size


def _given_checksums(request: Request) -> dict[str, str]:
    given = {name: value for name in CHECKSUM_SIZES if (value := request.get(CHECKSUM_PREFIX + name)) is not None}
    if len(given) > 1:
        raise S3Error(
            400, "InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
        )
    for name, value in given.items():
        _check_form(name, value)
    return given


def _check_form(algorithm: str, value: str) -> None:
    try:
        fits = len(base64.b64decode(value, validate=True)) == CHECKSUM_SIZES[algorithm]
    except ValueError:
        fits = False
    if not fits:
        raise S3Error(400, "InvalidRequest", f"Value for {CHECKSUM_PREFIX}{algorithm} header is invalid.")


def _trailer_algorithm(request: Request) -> str | None:
    trailer = (request.get("x-amz-trailer") or "").strip().lower()
    if not trailer:
        return None
    algorithm = trailer.removeprefix(CHECKSUM_PREFIX)
    if algorithm not in CHECKSUM_SIZES or algorithm == trailer:
        raise S3Error(400, "InvalidRequest", "The value specified in the x-amz-trailer header is not supported")
    return algorithm


def _sink(fd: int, digests: Digests, decoder: ChunkDecoder | None) -> Callable[[memoryview], None]:
    def write(data: memoryview) -> None:
        digests.update(data)
        while data:
            data = data[os.write(fd, data) :]

    def decode(data: memoryview) -> None:
        pieces, used = decoder.feed(data) if decoder else ([], 0)
        for piece in pieces:
            write(piece)
        if used < len(data):
            raise S3Error(400, "IncompleteBody", "The request body goes on behind its last chunk")

    return decode if decoder else write


def _tampering(sink: Callable[[memoryview], None]) -> Callable[[memoryview], None]:
    def write(data: memoryview) -> None:
        data[0] ^= 1
        sink(data)

    return write


def _check_digests(request: Request, payload_hash: str, given: dict[str, str], digests: Digests) -> None:
    if payload_hash not in (UNSIGNED, UNSIGNED_TRAILER) and payload_hash != digests.hex("sha256"):
        raise S3Error(
            400,
            "XAmzContentSHA256Mismatch",
            "The provided 'x-amz-content-sha256' header does not match what was computed.",
            elements=[
                ("ClientComputedContentSHA256", payload_hash),
                ("S3ComputedContentSHA256", digests.hex("sha256") or ""),
            ],
        )
    for algorithm, value in given.items():
        _check_form(algorithm, value)
        if digests.base64(algorithm) != value:
            message = f"The {algorithm.upper()} you specified did not match the calculated checksum."
            raise S3Error(400, "BadDigest", message)
    md5 = request.get("content-md5")
    if md5 is not None and md5 != digests.base64("md5"):
        raise S3Error(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")


def _etag(digests: Digests, size: int) -> str:
    if size <= ETAG_MD5_MAX_BYTES:
        return f'"{digests.hex("md5")}"'
    return f'"{(digests.hex("sha256") or hashlib.sha256(os.urandom(16)).hexdigest())[:32]}-1"'
