"""Multipart uploads on the storing endpoint: create, upload a part, list, complete, abort."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from datetime import datetime, timezone
from itertools import pairwise
from typing import Final

from engine.sandbox._digests import CHECKSUM_PREFIX, CHECKSUM_SIZES, Digests, new_digest
from engine.sandbox._errors import S3Error, document, xml
from engine.sandbox._exchange import Exchange
from engine.sandbox._objects import StoredObject, StoredPart, Upload
from engine.sandbox._receiving import Intake, checksum_fields, described, discard_file
from engine.sandbox._request import Request

_PARTS_MAX: Final = 10_000  # AWS
_LIST_MAX: Final = 1000
# AWS, "Checking object integrity": CRC64NVME is of the whole only, SHA digests of the parts only.
_DEFAULT_TYPES: Final = {
    "crc64nvme": "FULL_OBJECT",
    **dict.fromkeys(("crc32", "crc32c", "sha1", "sha256"), "COMPOSITE"),
}
_TYPES: Final = {
    "crc64nvme": ("FULL_OBJECT",),
    "crc32": ("FULL_OBJECT", "COMPOSITE"),
    "crc32c": ("FULL_OBJECT", "COMPOSITE"),
    "sha1": ("COMPOSITE",),
    "sha256": ("COMPOSITE",),
}


async def handle(intake: Intake, exchange: Exchange, payload_hash: str) -> None:
    request = exchange.request
    if request.parameter("uploads") is not None:
        if request.method != "POST":
            raise S3Error(405, "MethodNotAllowed", "The specified method is not allowed against this resource.")
        await _create(intake, exchange)
        return
    upload = intake.objects.find_upload(request.parameter("uploadId") or "", request.bucket, request.key)
    if upload is None:
        message = "The specified upload does not exist. The upload ID may be invalid, or it was aborted or completed."
        raise S3Error(404, "NoSuchUpload", message)
    if request.method == "PUT":
        await _upload_part(intake, exchange, upload, payload_hash)
    elif request.method == "GET":
        await _list(intake, exchange, upload)
    elif request.method == "POST":
        await _complete(intake, exchange, upload)
    elif request.method == "DELETE":
        intake.objects.remove_upload(upload)
        await exchange.answer(204)
    else:
        raise S3Error(405, "MethodNotAllowed", "The specified method is not allowed against this resource.")


async def _create(intake: Intake, exchange: Exchange) -> None:
    request = exchange.request
    metadata, fields = described(request)
    algorithm = (request.get("x-amz-checksum-algorithm") or "").lower() or None
    if algorithm not in (None, *CHECKSUM_SIZES):
        raise S3Error(400, "InvalidRequest", "Checksum algorithm provided is unsupported.")
    checksum_type = (request.get("x-amz-checksum-type") or "").upper() or _DEFAULT_TYPES.get(algorithm or "crc64nvme")
    if checksum_type not in _TYPES[algorithm or "crc64nvme"]:
        raise S3Error(400, "InvalidRequest", f"The {checksum_type} checksum type cannot be used with this algorithm.")
    await exchange.read_body()
    upload = intake.objects.create_upload(
        Upload("", request.bucket, request.key, metadata, fields, algorithm, checksum_type)
    )
    elements = [("Bucket", upload.bucket), ("Key", upload.key), ("UploadId", upload.upload_id)]
    told = (
        [("x-amz-checksum-algorithm", algorithm.upper()), ("x-amz-checksum-type", checksum_type)] if algorithm else []
    )
    body = document("InitiateMultipartUploadResult", elements)
    await exchange.answer(200, [("Content-Type", "application/xml"), *told], body)


async def _upload_part(intake: Intake, exchange: Exchange, upload: Upload, payload_hash: str) -> None:
    number = exchange.request.parameter("partNumber") or ""
    if not re.match(r"[0-9]{1,5}\Z", number) or not 1 <= int(number) <= _PARTS_MAX:
        message = f"Part number must be an integer between 1 and {_PARTS_MAX}, inclusive"
        raise S3Error(400, "InvalidArgument", message)
    received = await intake.receive(exchange, payload_hash)
    try:
        if upload.checksum_algorithm not in (None, *received.checksums):
            message = (
                f"Checksum Type mismatch occurred, expected checksum Type: {upload.checksum_algorithm}, actual checksum "
                "Type: null"
            )
            raise S3Error(400, "InvalidRequest", message)
        if intake.objects.find_upload(upload.upload_id, upload.bucket, upload.key) is None:
            raise S3Error(404, "NoSuchUpload", "The specified upload was completed or aborted meanwhile.")
        part = StoredPart(int(number), received.size, received.etag, received.checksums, 0.0)
        intake.objects.commit_part(upload, received.path, part)
    finally:
        discard_file(received.path)
    await exchange.answer(200, [("ETag", received.etag), *checksum_fields(received.checksums, "")[:-1]])


async def _list(intake: Intake, exchange: Exchange, upload: Upload) -> None:
    request = exchange.request
    marker = _number(request.parameter("part-number-marker"), 0)
    most = min(_number(request.parameter("max-parts"), _LIST_MAX), _LIST_MAX)
    behind = [part for part in intake.objects.parts(upload) if part.number > marker]
    shown = behind[:most]
    elements = [
        ("Bucket", upload.bucket),
        ("Key", upload.key),
        ("UploadId", upload.upload_id),
        ("PartNumberMarker", str(marker)),
        ("NextPartNumberMarker", str(shown[-1].number if shown else 0)),
        ("MaxParts", str(most)),
        ("IsTruncated", "true" if len(behind) > len(shown) else "false"),
    ]
    parts = "".join(f"<Part>{xml(_part_elements(part))}</Part>" for part in shown)
    body = document("ListPartsResult", elements, raw=parts)
    await exchange.answer(200, [("Content-Type", "application/xml")], body)


def _part_elements(part: StoredPart) -> list[tuple[str, str]]:
    modified = datetime.fromtimestamp(part.modified, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    elements = [
        ("PartNumber", str(part.number)),
        ("LastModified", modified),
        ("ETag", part.etag),
        ("Size", str(part.size)),
    ]
    return elements + [(f"Checksum{name.upper()}", value) for name, value in part.checksums.items()]


def _number(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not re.match(r"[0-9]{1,9}\Z", text):
        raise S3Error(400, "InvalidArgument", "Provided argument is not a number")
    return int(text)


async def _complete(intake: Intake, exchange: Exchange, upload: Upload) -> None:
    request = exchange.request
    intake.check_conditions(request)
    asked = _asked_parts(await exchange.read_body(), upload)
    numbers = _check_parts(intake, upload, asked)
    algorithm = upload.checksum_algorithm or "crc64nvme"
    digests = Digests({"sha256", "crc64nvme", algorithm})
    loop = asyncio.get_running_loop()
    try:
        path = await loop.run_in_executor(None, intake.objects.assemble, upload, numbers, digests)
    except FileNotFoundError:
        raise S3Error(404, "NoSuchUpload", "The specified upload was aborted meanwhile.") from None
    try:
        parts = {part.number: part for part in intake.objects.parts(upload)}
        if not parts:
            raise S3Error(404, "NoSuchUpload", "The specified upload was aborted meanwhile.")
        checksum = digests.base64(algorithm)
        if upload.checksum_type == "COMPOSITE":
            checksum = _composite(algorithm, [parts[number].checksums[algorithm] for number in numbers])
        _check_whole(request, upload, algorithm, checksum, sum(parts[number].size for number in numbers))
        intake.check_conditions(request)
        stored = intake.objects.commit(
            path,
            StoredObject(
                bucket=upload.bucket,
                key=upload.key,
                size=sum(parts[number].size for number in numbers),
                etag=_whole_etag([parts[number].etag for number in numbers]),
                sha256=digests.hex("sha256"),
                checksums={algorithm: checksum} if checksum else {},
                checksum_type=upload.checksum_type or "FULL_OBJECT",
                metadata=upload.metadata,
                fields=upload.fields,
            ),
        )
    finally:
        discard_file(path)
    intake.objects.remove_upload(upload)
    elements = [
        ("Location", f"http://{request.get('host') or ''}{request.path}"),
        ("Bucket", upload.bucket),
        ("Key", upload.key),
        ("ETag", stored.etag),
    ]
    # In the document, not in the head: S3 has its 200 on the way before it knows.
    elements += [(f"Checksum{name.upper()}", value) for name, value in stored.checksums.items()]
    elements += [
        ("ChecksumType", value) for _name, value in checksum_fields(stored.checksums, stored.checksum_type)[-1:]
    ]
    await exchange.answer(
        200, [("Content-Type", "application/xml")], document("CompleteMultipartUploadResult", elements)
    )


def _asked_parts(body: bytes, upload: Upload) -> list[tuple[int, str]]:
    malformed = S3Error(
        400, "MalformedXML", "The XML you provided was not well-formed or did not validate against our schema"
    )
    if b"<!" in body:
        raise malformed
    try:
        root = ElementTree.fromstring(body)
        found = [(part.findtext("{*}PartNumber"), part.findtext("{*}ETag")) for part in root.findall("{*}Part")]
    except ElementTree.ParseError:
        raise malformed from None
    asked = [(int(number), tag) for number, tag in found if number and number.isdecimal() and tag]
    if not asked or len(asked) != len(found):
        raise malformed
    if upload.checksum_algorithm and upload.checksum_type == "COMPOSITE":
        name = f"{{*}}Checksum{upload.checksum_algorithm.upper()}"
        if any(part.findtext(name) is None for part in root.findall("{*}Part")):
            message = (
                f"The upload was created using a {upload.checksum_algorithm} checksum. The complete request must include the "
                "checksum for each part."
            )
            raise S3Error(400, "InvalidRequest", message)
    return asked


def _check_parts(intake: Intake, upload: Upload, asked: list[tuple[int, str]]) -> list[int]:
    parts = {part.number: part for part in intake.objects.parts(upload)}
    numbers = [number for number, _tag in asked]
    if any(later <= earlier for earlier, later in pairwise(numbers)):
        raise S3Error(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
    for number, tag in asked:
        if number not in parts or parts[number].etag.strip('"') != tag.strip('"'):
            message = "One or more of the specified parts could not be found, or the specified ETag does not match."
            elements = [("PartNumber", str(number)), ("ETag", tag)]
            raise S3Error(400, "InvalidPart", message, elements=elements)
    for number in numbers[:-1]:
        if parts[number].size < intake.options.min_part_bytes:
            elements = [("ProposedSize", str(parts[number].size)), ("PartNumber", str(number))]
            message = "Your proposed upload is smaller than the minimum allowed size"
            raise S3Error(400, "EntityTooSmall", message, elements=elements)
    return numbers


def _check_whole(request: Request, upload: Upload, algorithm: str, computed: str | None, size: int) -> None:
    """What the request says of the object that is to be."""
    given = request.get(CHECKSUM_PREFIX + algorithm)
    if given is not None and computed not in (given, None):
        raise S3Error(400, "BadDigest", f"The {algorithm.upper()} you specified did not match the calculated checksum.")
    if request.get("x-amz-checksum-type") not in (None, upload.checksum_type):
        raise S3Error(400, "BadDigest", "The checksum type is not that of the upload.")
    if request.get("x-amz-mp-object-size") not in (None, str(size)):
        message = "The provided 'x-amz-mp-object-size' header value does not match what was computed."
        raise S3Error(400, "InvalidRequest", message)


def _composite(algorithm: str, parts: list[str]) -> str:
    digest = new_digest(algorithm)
    for value in parts:
        digest.update(memoryview(base64.b64decode(value)))
    return f"{base64.b64encode(digest.digest()).decode()}-{len(parts)}"


def _whole_etag(tags: list[str]) -> str:
    """S3's: MD5 over the parts' MD5s, a dash and their number; over the ETags' texts where one is no MD5."""
    bare = [tag.strip('"') for tag in tags]
    joined = "".join(bare).encode() if any("-" in tag for tag in bare) else bytes.fromhex("".join(bare))
    return f'"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(tags)}"'
