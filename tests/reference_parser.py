"""The response parser once more: plain, slow, and meant to be seen right by reading it beside docs/parser.md.

One byte at a time, from the first byte of the exchange, again on every feed: there is no state that a split could disturb.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
CONTROL = (frozenset(range(32)) | {127}) - {9}
DIGITS = b"0123456789"
HEX = b"0123456789abcdefABCDEF"
CR, LF, HTAB, SP, QUOTE, BACKSLASH = 13, 10, 9, 32, 34, 92
OWS = (SP, HTAB)

HEAD_MAX, FIELDS_MAX, BODY_MAX = 65_534, 256, 262_144
INTERIM_MAX = 16
CHUNK_LINE_MAX, TRAILERS_MAX = 4096, 8192
OVERHEAD_MIN, OVERHEAD_RATIO = 65_536, 16


class More(Exception):
    """The bytes end before the thing being read does."""


class Fault(Exception):
    def __init__(self, kind: str, offset: int) -> None:
        super().__init__(kind, offset)
        self.kind = kind
        self.offset = offset


@dataclass
class Head:
    minor: int
    status: int = 0
    reason: bytes = b""
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    name_offsets: list[int] = field(default_factory=list)
    value_offsets: list[int] = field(default_factory=list)

    def named(self, name: bytes) -> list[tuple[int, bytes]]:
        """(offset of the value, value) of each field of that name"""
        return [(at, v) for at, (n, v) in zip(self.value_offsets, self.fields, strict=True) if n.lower() == name]


@dataclass
class Reader:
    data: bytes
    at: int = 0
    limit: int | None = None
    limit_kind: str = ""

    def peek(self, ahead: int = 0) -> int:
        at = self.at + ahead
        if at >= len(self.data):
            raise More
        if self.limit is not None and at >= self.limit:
            raise Fault(self.limit_kind, self.limit)
        return self.data[at]

    def next(self) -> int:
        byte = self.peek()
        self.at += 1
        return byte

    def fault(self, kind: str) -> Fault:
        return Fault(kind, self.at)

    def line_end(self) -> None:
        """CRLF, where the next byte is a control character"""
        if self.peek() == LF:
            raise self.fault("bare-lf")
        if self.peek() != CR:
            raise self.fault("control-char")
        if self.peek(1) != LF:
            raise self.fault("bare-cr")
        self.at += 2

    def skip(self, wanted: object) -> bytes:
        start = self.at
        while self.peek() in wanted:  # type: ignore[operator]
            self.at += 1
        return self.data[start : self.at]


def read_status_line(r: Reader) -> Head:
    for expected in b"HTTP/1.":
        if r.peek() != expected:
            raise r.fault("version")
        r.next()
    if r.peek() not in b"01":
        raise r.fault("version")
    head = Head(minor=r.next() - ord("0"))
    if r.peek() != SP:
        raise r.fault("version" if r.peek() in DIGITS + b"." else "status-line")
    r.next()
    if r.peek() in OWS:
        raise r.fault("status-line")
    for allowed in (b"123456789", DIGITS, DIGITS):
        if r.peek() not in allowed:
            raise r.fault("status-code")
        head.status = head.status * 10 + int(chr(r.next()))
    if r.peek() in DIGITS:
        raise r.fault("status-code")
    if r.peek() not in (SP, CR, LF):
        raise r.fault("status-line")
    if r.peek() == SP:
        r.next()
    start = r.at
    while r.peek() not in CONTROL:
        r.next()
    head.reason = r.data[start : r.at]
    r.line_end()
    return head


def read_name(r: Reader) -> bytes:
    name = r.skip(TOKEN)
    byte = r.peek()
    if byte == ord(":"):
        if not name:
            raise r.fault("empty-name")
        return name
    if byte in (CR, LF):
        at = r.at
        r.line_end()
        raise Fault("no-colon", at)
    if name and byte in OWS:
        ahead = 0
        while r.peek(ahead) in OWS:
            ahead += 1
        if r.peek(ahead) == ord(":"):
            raise r.fault("space-before-colon")
    raise r.fault("bad-name")


def read_fields(r: Reader, head: Head, max_fields: int) -> None:
    while r.peek() not in (CR, LF):
        if r.peek() in OWS:
            raise r.fault("obs-fold")
        if len(head.fields) == max_fields:
            raise r.fault("too-many-headers")
        head.name_offsets.append(r.at)
        name = read_name(r)
        r.next()
        r.skip(OWS)
        start = r.at
        while r.peek() not in CONTROL:
            r.next()
        value = r.data[start : r.at].rstrip(b" \t")
        r.line_end()
        head.fields.append((name, value))
        head.value_offsets.append(start)
    r.line_end()


def split_list(at: int, value: bytes) -> list[tuple[int, bytes]]:
    """(offset, text) of each member of a comma-separated list, trimmed"""
    members = []
    for part in value.split(b","):
        members.append((at + len(part) - len(part.lstrip(b" \t")), part.strip(b" \t")))
        at += len(part) + 1
    return members


@dataclass
class Framing:
    body: str = "none"  # none, length, chunked, eof, tunnel
    length: int | None = None
    length_repeated: bool = False
    keep_alive: bool = False


def read_lengths_and_codings(head: Head) -> tuple[list[tuple[int, bytes]], list[int]]:
    """Content-Lengths and the offsets of Transfer-Encodings, in order of arrival, each checked by itself."""
    lengths: list[tuple[int, bytes]] = []
    codings: list[int] = []
    for at, (name, value) in zip(head.value_offsets, head.fields, strict=True):
        if name.lower() == b"content-length":
            for member_at, text in split_list(at, value):
                if not text or any(c not in DIGITS for c in text) or len(text) > 19 or int(text) > 2**63 - 1:
                    raise Fault("bad-content-length", member_at)
                if lengths and text != lengths[0][1]:
                    raise Fault("conflicting-content-length", member_at)
                lengths.append((member_at, text))
        elif name.lower() == b"transfer-encoding":
            if codings or value.lower() != b"chunked":
                raise Fault("bad-transfer-encoding", at)
            codings.append(at)
    return lengths, codings


def connection_persists(head: Head) -> bool:
    members = [m for at, value in head.named(b"connection") for _, m in split_list(at, value) if m]
    if any(c not in TOKEN for m in members for c in m):
        return False
    lowered = [m.lower() for m in members]
    return b"close" not in lowered and (head.minor == 1 or b"keep-alive" in lowered)


def frame(head: Head, head_at: int, method: str) -> Framing:
    lengths, codings = read_lengths_and_codings(head)
    if codings and head.minor == 0:
        raise Fault("transfer-encoding-in-http10", codings[0])
    if codings and lengths:
        raise Fault("content-length-and-transfer-encoding", codings[0])
    length = int(lengths[0][1]) if lengths else None
    framed = bool(codings or length)
    if head.status < 200:
        if head.status == 101:
            raise Fault("unexpected-101", head_at + len("HTTP/1.1 "))
        if framed:
            raise Fault("framing-in-bodiless-status", codings[0] if codings else lengths[0][0])
        return Framing()
    f = Framing(length=length, length_repeated=len(lengths) > 1, keep_alive=connection_persists(head))
    if method == "CONNECT" and head.status < 300:
        f.body, f.keep_alive = "tunnel", False
    elif method == "HEAD" or head.status == 304:
        pass
    elif head.status == 204:
        f.keep_alive = f.keep_alive and not framed
    elif codings:
        f.body = "chunked"
    elif length is None:
        f.body, f.keep_alive = "eof", False
    elif length > 0:
        f.body = "length"
    return f


@dataclass
class Outcome:
    """All that the bytes of one exchange say so far."""

    interims: list[Head] = field(default_factory=list)
    response: Head | None = None
    framing: Framing = field(default_factory=Framing)
    body: bytearray = field(default_factory=bytearray)
    done: bool = False
    unused: int = 0
    fault: tuple[str, int] | None = None


def read_size_line(r: Reader) -> int:
    """chunk-size BWS [ chunk-ext ] CRLF (RFC 9112 section 7.1), white space behind the size allowed"""
    start = r.at

    def peek() -> int:
        byte = r.peek()
        if byte == LF:
            raise r.fault("bare-lf")
        if byte != CR and r.at - start == CHUNK_LINE_MAX:
            raise r.fault("bad-chunk-extension")
        return byte

    def skip(wanted: object) -> int:
        skipped = 0
        while peek() in wanted:  # type: ignore[operator]
            r.next()
            skipped += 1
        return skipped

    size = digits = 0
    while peek() in HEX:
        size = size * 16 + int(chr(r.peek()), 16)
        digits += 1
        if digits > 16 or size > 2**63 - 1:
            raise r.fault("bad-chunk-size")
        r.next()
    if not digits:
        raise r.fault("bad-chunk-size")
    skip(OWS)
    if peek() not in (CR, ord(";")):
        raise r.fault("bad-chunk-size")
    while peek() == ord(";"):
        r.next()
        skip(OWS)
        if not skip(TOKEN):
            raise r.fault("bad-chunk-extension")
        skip(OWS)
        if peek() == ord("="):
            r.next()
            skip(OWS)
            if peek() == QUOTE:
                r.next()
                while peek() != QUOTE:
                    if peek() == BACKSLASH:
                        r.next()
                    if peek() in CONTROL:
                        raise r.fault("bad-chunk-extension")
                    r.next()
                r.next()
            elif not skip(TOKEN):
                raise r.fault("bad-chunk-extension")
            skip(OWS)
        if peek() not in (CR, ord(";")):
            raise r.fault("bad-chunk-extension")
    if r.peek(1) != LF:
        raise r.fault("bare-cr")
    r.at += 2
    return size


def read_chunked(r: Reader, out: Outcome, max_fields: int) -> None:
    overhead = 0
    while True:
        start = r.at
        size = read_size_line(r)
        overhead += r.at - start
        if overhead > OVERHEAD_MIN and overhead > OVERHEAD_RATIO * len(out.body):
            raise Fault("chunk-overhead", r.at - 1)
        if size == 0:
            break
        data = r.data[r.at : r.at + size]
        out.body += data
        r.at += len(data)
        if len(data) < size:
            raise More
        for expected in (CR, LF):
            if r.peek() != expected:
                raise r.fault("bad-chunk-terminator")
            r.next()
        overhead += 2
    r.limit, r.limit_kind = r.at + TRAILERS_MAX, "bad-trailer"
    trailers = Head(minor=1)
    read_fields(r, trailers, max_fields)
    r.limit = None
    for at, (name, _) in zip(trailers.name_offsets, trailers.fields, strict=True):
        if name.lower() in (b"content-length", b"transfer-encoding"):
            raise Fault("bad-trailer", at)


def read_exchange(r: Reader, out: Outcome, method: str, eof: bool, max_head: int, max_fields: int) -> None:
    while out.response is None:
        start = r.at
        r.limit, r.limit_kind = start + max_head, "head-too-large"
        head = read_status_line(r)
        read_fields(r, head, max_fields)
        r.limit = None
        framing = frame(head, start, method)
        if head.status >= 200:
            out.response, out.framing = head, framing
        elif len(out.interims) == INTERIM_MAX:
            raise Fault("too-many-1xx", start)
        else:
            out.interims.append(head)
    rest = r.data[r.at :]
    if framing.body == "chunked":
        read_chunked(r, out, max_fields)
    elif framing.body == "length":
        assert framing.length is not None
        out.body += rest[: framing.length]
        if len(rest) < framing.length:
            raise More
        r.at += framing.length
    elif framing.body == "eof":
        out.body += rest
        if not eof:
            raise More
        r.at = len(r.data)
    out.done = True
    out.unused = len(r.data) - r.at


def parse_exchange(
    data: bytes, method: str, eof: bool = False, *, max_head: int = HEAD_MAX, max_fields: int = FIELDS_MAX
) -> Outcome:
    """What all the bytes after one request say; `eof` when the connection has ended behind them."""
    out = Outcome()
    try:
        read_exchange(Reader(data), out, method, eof, max_head, max_fields)
    except Fault as fault:
        out.fault = (fault.kind, fault.offset)
    except More:
        if eof:
            out.fault = ("unexpected-eof", len(data))
    if out.fault:
        out.framing.keep_alive = False
    return out
