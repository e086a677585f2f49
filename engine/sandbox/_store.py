"""The storing endpoint: the part of S3's API that ingest needs, with its rules, order of checks and error documents.

Everything that can be refused from the head alone is refused before the 100 and without reading the body. Deviations from S3,
all for speed or ease: buckets exist as soon as they are named; no versions, no ACLs, no encryption; the ETag of a body above
16 MiB is not its MD5 (32 hex digits of its SHA-256 and "-1", the shape by which clients know that an ETag is no MD5).
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import re
from datetime import datetime, timedelta, timezone
from typing import Final

from engine.sandbox import _multipart
from engine.sandbox._errors import S3Error, SignatureRefused, document
from engine.sandbox._exchange import Exchange
from engine.sandbox._objects import StoredObject
from engine.sandbox._options import KEY_MAX_BYTES, MIB, Options
from engine.sandbox._receiving import META_PREFIX, Intake, checksum_fields, described, discard_file, precondition_failed
from engine.sandbox._request import Request, is_bucket_name
from engine.sandbox._sigv4 import claimed_region, verify

# Known sub-resources which are not implemented; an unknown parameter is ignored, as S3 does.
_UNSUPPORTED: Final = frozenset(
    [
        *(
            "acl",
            "policy",
            "tagging",
            "cors",
            "lifecycle",
            "versioning",
            "versions",
            "website",
            "logging",
            "notification",
        ),
        *(
            "replication",
            "encryption",
            "legal-hold",
            "retention",
            "object-lock",
            "torrent",
            "restore",
            "select",
            "list-type",
        ),
        "delete",
    ]
)


class Store:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.intake = Intake(options)

    async def handle(self, exchange: Exchange, region: str | None = None) -> None:
        """One request, from the check of its signature to the answer. `region` is the one it must be signed for."""
        payload_hash = self.authenticate(exchange, region or self.options.region)
        request = exchange.request
        if not is_bucket_name(request.bucket):
            raise S3Error(400, "InvalidBucketName", "The specified bucket is not valid.")
        unsupported = [name for name, _value in request.query if name in _UNSUPPORTED]
        if unsupported:
            raise S3Error(501, "NotImplemented", f"The sandbox does not implement ?{unsupported[0]}.")
        if len(request.key.encode()) > KEY_MAX_BYTES:
            raise S3Error(400, "KeyTooLongError", "Your key is too long")
        if not request.key:
            await self._bucket(exchange, region or self.options.region)
        elif request.parameter("uploadId") is not None or request.parameter("uploads") is not None:
            await _multipart.handle(self.intake, exchange, payload_hash)
        else:
            await self._object(exchange, payload_hash)

    def authenticate(self, exchange: Exchange, region: str) -> str:
        """Raises SignatureRefused; notes the verdict in the record either way."""
        options, request, record = self.options, exchange.request, exchange.record
        exchange.clock_offset_s = options.clock_offset_s
        now = datetime.now(timezone.utc) + timedelta(seconds=options.clock_offset_s)
        record.signed_region = claimed_region(request)
        try:
            payload_hash = verify(request, options.credentials, region, now, anonymous=options.anonymous)
        except SignatureRefused as refused:
            record.signature = refused.code
            raise
        record.signature = "ok" if record.signed_region else "anonymous"
        return payload_hash

    async def _bucket(self, exchange: Exchange, region: str) -> None:
        fields = [("x-amz-bucket-region", region)]
        if exchange.request.method == "PUT":
            await exchange.read_body()
        elif exchange.request.method == "GET" and exchange.request.parameter("location") is not None:
            name = "" if region == "us-east-1" else region
            await exchange.answer(200, fields, document("LocationConstraint", (), raw=name))
            return
        elif exchange.request.method != "HEAD":
            raise S3Error(501, "NotImplemented", "The sandbox knows only HEAD and PUT of a bucket.")
        await exchange.answer(200, fields)

    async def _object(self, exchange: Exchange, payload_hash: str) -> None:
        methods = {"PUT": self._put, "GET": self._get, "HEAD": self._get, "DELETE": self._delete}
        method = methods.get(exchange.request.method)
        if method is None:
            raise S3Error(405, "MethodNotAllowed", "The specified method is not allowed against this resource.")
        await method(exchange, payload_hash)

    # --- PUT --------------------------------------------------------------------------------------------------------

    async def _put(self, exchange: Exchange, payload_hash: str) -> None:
        request = exchange.request
        if request.get("x-amz-copy-source") is not None:
            raise S3Error(501, "NotImplemented", "The sandbox does not copy.")
        metadata, fields = described(request)
        self.intake.check_conditions(request)
        received = await self.intake.receive(exchange, payload_hash)
        try:
            self.intake.check_conditions(request)  # again: somebody else may have been faster
            stored = self.intake.objects.commit(
                received.path,
                StoredObject(
                    bucket=request.bucket,
                    key=request.key,
                    size=received.size,
                    etag=received.etag,
                    sha256=received.sha256,
                    checksums=received.checksums,
                    metadata=metadata,
                    fields=fields,
                ),
            )
        finally:
            discard_file(received.path)
        await exchange.answer(200, [("ETag", stored.etag), *checksum_fields(stored.checksums, "FULL_OBJECT")])

    # --- GET, HEAD, DELETE ------------------------------------------------------------------------------------------

    async def _get(self, exchange: Exchange, _payload_hash: str) -> None:
        request = exchange.request
        stored = self.intake.objects.find(request.bucket, request.key)
        if stored is None:
            raise S3Error(404, "NoSuchKey", "The specified key does not exist.", elements=[("Key", request.key)])
        _check_read_conditions(request, stored)
        fields = [("ETag", stored.etag), ("Last-Modified", email.utils.formatdate(stored.modified, usegmt=True))]
        fields += [("Accept-Ranges", "bytes"), *stored.fields.items()]
        fields += [(META_PREFIX + name, value) for name, value in stored.metadata.items()]
        span = _range(request.get("range"), stored.size)
        if (request.get("x-amz-checksum-mode") or "").upper() == "ENABLED" and span is None:
            fields += checksum_fields(stored.checksums, stored.checksum_type)
        first, last = span or (0, stored.size - 1)
        if span:
            fields.append(("Content-Range", f"bytes {first}-{last}/{stored.size}"))
        fd = os.open(stored.path, os.O_RDONLY)
        try:
            await exchange.answer_head(206 if span else 200, fields, last - first + 1)
            if request.method == "GET":
                end = last + 1
                if exchange.quirks.cut:
                    end = first + (end - first) // 2
                    exchange.then = "close" if exchange.then == "keep" else exchange.then
                await _send_file(exchange, fd, first, end)
        finally:
            os.close(fd)

    async def _delete(self, exchange: Exchange, _payload_hash: str) -> None:
        self.intake.objects.remove(exchange.request.bucket, exchange.request.key)
        await exchange.answer(204)


def _check_read_conditions(request: Request, stored: StoredObject) -> None:
    tags = {
        name: [t.strip() for t in value.split(",")]
        for name in ("if-match", "if-none-match")
        if (value := request.get(name))
    }
    if "if-match" in tags and stored.etag not in tags["if-match"] and "*" not in tags["if-match"]:
        raise precondition_failed("If-Match")
    if "if-none-match" in tags and (stored.etag in tags["if-none-match"] or "*" in tags["if-none-match"]):
        raise S3Error(304, "NotModified", "Not Modified", fields=[("ETag", stored.etag)])


def _range(text: str | None, size: int) -> tuple[int, int] | None:
    """First and last offset of a single byte range (RFC 9110 section 14.1.2); None for all, also when it is not understood."""
    found = re.match(r"bytes=(\d{0,19})-(\d{0,19})\Z", text or "")
    if not found or found.groups() == ("", ""):
        return None
    if found[1]:
        first, last = int(found[1]), min(int(found[2] or size - 1), size - 1)
    else:
        first, last = max(size - int(found[2]), 0), size - 1
    if found[1] and found[2] and int(found[1]) > int(found[2]):
        return None
    if first > last:
        fields = [("Content-Range", f"bytes */{size}")]
        raise S3Error(416, "InvalidRange", "The requested range is not satisfiable", fields=fields)
    return first, last


async def _send_file(exchange: Exchange, fd: int, start: int, end: int) -> None:
    while start < end:
        piece = os.pread(fd, min(MIB, end - start), start)
        if not piece:
            raise ConnectionAbortedError("the stored file has become shorter")
        await exchange.wire.send(piece)
        start += len(piece)
        await asyncio.sleep(0)
