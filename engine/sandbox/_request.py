"""Request heads and chunked framing, read strictly. Pure: bytes in, values out.

Deliberately its own code: the client's parser and signer are what the sandbox is there to check.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from engine.sandbox._errors import S3Error

_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) (/[\x21-\x7e]*) HTTP/(1\.[01])\Z")
_FIELD_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*\Z")
_DIGITS = re.compile(r"[0-9]{1,19}\Z")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]\Z")
_LINE_MAX_BYTES: Final = 8192


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str
    version: str
    fields: list[tuple[str, str]]
    path: str
    query: list[tuple[str, str]]  # decoded, in order
    bucket: str
    key: str
    length: int  # Content-Length; 0 when there is none
    chunked: bool

    def get(self, name: str) -> str | None:
        values = [value for field, value in self.fields if field.lower() == name]
        return ", ".join(values) if values else None

    def parameter(self, name: str) -> str | None:
        return next((value for key, value in self.query if key == name), None)

    @property
    def expects_continue(self) -> bool:
        # RFC 9110 section 10.1.1: an HTTP/1.0 client gets no 100.
        return self.version == "1.1" and (self.get("expect") or "").lower() == "100-continue"

    @property
    def wants_close(self) -> bool:
        options = {option.strip().lower() for option in (self.get("connection") or "").split(",")}
        return "close" in options or (self.version == "1.0" and "keep-alive" not in options)

    @property
    def has_body(self) -> bool:
        return self.chunked or self.length > 0


def parse_head(head: bytes) -> Request:
    """Raises S3Error(400) for what RFC 9112 does not allow. `head` ends with the empty line."""
    lines = head[:-4].split(b"\r\n")
    first = _REQUEST_LINE.match(lines[0])
    if not first:
        raise _bad("the request line is malformed")
    fields: list[tuple[str, str]] = []
    for line in lines[1:]:
        field = _FIELD_LINE.match(line)
        if not field:
            raise _bad("a header line is malformed")
        fields.append((field[1].decode("ascii"), field[2].decode("latin-1")))
    method, target, version = (part.decode("ascii") for part in first.groups())
    length, chunked = _framing(fields)
    hosts = [value for name, value in fields if name.lower() == "host"]
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        raise _bad("exactly one Host is needed")  # RFC 9112 section 3.2
    path, _question, query_text = target.partition("?")
    bucket, key = _address(hosts[0] if hosts else "", path)
    query = [_decode_parameter(p) for p in query_text.split("&") if p]
    return Request(method, target, version, fields, path, query, bucket, key, length, chunked)


def _framing(fields: list[tuple[str, str]]) -> tuple[int, bool]:
    lengths = {value for name, value in fields if name.lower() == "content-length"}
    codings = [value.lower() for name, value in fields if name.lower() == "transfer-encoding"]
    if len(lengths) > 1 or (lengths and codings):
        raise _bad("the length of the body is contradictory")  # RFC 9112 section 6.3: request smuggling
    if codings and codings != ["chunked"]:
        raise S3Error(501, "NotImplemented", "A transfer coding other than chunked is not implemented.")
    if not lengths:
        return 0, bool(codings)
    (length,) = lengths
    if not _DIGITS.match(length):
        raise _bad("Content-Length is not a number")
    return int(length), False


def _address(host: str, path: str) -> tuple[str, str]:
    """Bucket and key; virtual-host style when the name is below localhost, else path style."""
    name = host.rpartition(":")[0] if re.search(r":[0-9]+\Z", host) else host
    try:
        if name.lower().endswith(".localhost"):
            return name[: -len(".localhost")].lower(), unquote_to_bytes(path[1:]).decode("utf-8")
        bucket, _slash, key = path[1:].partition("/")
        return unquote_to_bytes(bucket).decode("utf-8"), unquote_to_bytes(key).decode("utf-8")
    except UnicodeDecodeError:
        raise S3Error(400, "InvalidURI", "Couldn't parse the specified URI.") from None


def _decode_parameter(parameter: str) -> tuple[str, str]:
    name, _equals, value = parameter.partition("=")
    return unquote_to_bytes(name).decode("utf-8", "replace"), unquote_to_bytes(value).decode("utf-8", "replace")


def is_bucket_name(name: str) -> bool:
    return bool(_BUCKET.match(name)) and ".." not in name


def _bad(what: str) -> S3Error:
    return S3Error(400, "BadRequest", f"An error occurred when parsing the HTTP request: {what}.")


class ChunkDecoder:
    """Chunks to content: RFC 9112 section 7.1, and S3's aws-chunked, which has the same shape inside the body.

    `feed` until `done`; trailer fields are then in `trailers`, names in lower case. Extensions are skipped.
    """

    def __init__(self) -> None:
        self.trailers: dict[str, str] = {}
        self.done = False
        self._line = bytearray()
        self._left = 0  # of the current chunk, its CRLF not counted
        self._state = "size"  # → data → crlf → size … → trailer

    def feed(self, view: memoryview) -> tuple[list[memoryview], int]:
        """Slices of `view` which are content, and how many bytes were used (less than all only behind the end)."""
        pieces: list[memoryview] = []
        at = 0
        while at < len(view) and not self.done:
            if self._state == "data":
                piece = view[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = "crlf"
            else:
                at = self._take_line(view, at)
        return pieces, at

    def _take_line(self, view: memoryview, at: int) -> int:
        window = bytes(view[at : at + _LINE_MAX_BYTES])
        end = window.find(b"\n")
        self._line += window if end < 0 else window[: end + 1]
        if len(self._line) > _LINE_MAX_BYTES:
            raise _bad("a chunk line is too long")
        if end < 0:
            return at + len(window)
        if not self._line.endswith(b"\r\n"):
            raise _bad("a chunk line ends in a bare LF")
        line = bytes(self._line[:-2])
        self._line.clear()
        self._end_line(line)
        return at + end + 1

    def _end_line(self, line: bytes) -> None:
        if self._state == "crlf":
            if line:
                raise _bad("a chunk is longer than it says")
            self._state = "size"
        elif self._state == "size":
            size = line.partition(b";")[0].strip(b" \t")
            if not re.match(rb"[0-9A-Fa-f]{1,15}\Z", size):
                raise _bad("a chunk size is malformed")
            self._left = int(size, 16)
            self._state = "data" if self._left else "trailer"
        elif line:
            name, _colon, value = line.decode("latin-1").partition(":")
            self.trailers[name.strip().lower()] = value.strip()
        else:
            self.done = True
