# cython: binding=False, boundscheck=False, wraparound=False
"""The response parser: status line, fields, interim responses and body framing of HTTP/1.1 on the client's side.

It is fed bytes and says what they are. It owns strictness (what is refused, and under which name: docs/parser.md) and knows
nothing of sockets, requests or retries. What it cannot see is the caller's duty: a final response before the request body is
out, data or EOF while nothing is awaited, and `unused > 0` all mean that the connection is not used again.

Two C headers do the work: `_scan.h` finds lines, names and values, `_framing.h` reads what they say of the body.
"""

import os
from enum import IntFlag
from sys import intern

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeLatin1
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset


cdef extern from *:
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    void *memmem(const void *haystack, size_t n, const void *needle, size_t m)


cdef const char *BARE_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

cdef enum:
    INTERIM_MAX = 16  # a request; every client measured takes thousands, nobody needs more than 3
    BODY_MAX = 262144
    RESCAN_ALWAYS = 4096  # bytes of an unfinished head below which every feed scans it again
    BUFFER_KEPT = 4096  # bytes of each buffer that outlive the response
    EXCERPT = 24  # bytes shown on either side of a fault
    MEMO_NAMES = 256
    MEMO_NAME_MAX = 40


class Event(IntFlag):
    """What one `feed()` produced."""

    NONE = 0
    INTERIM = 1
    HEAD = 2
    BODY = 4
    DONE = 8


cdef enum:
    EVENT_INTERIM = 1
    EVENT_HEAD = 2
    EVENT_BODY = 4
    EVENT_DONE = 8

cdef tuple EVENTS = tuple(Event(bits) for bits in range(16))


class ParseError(ValueError):
    """The bytes are not a response as we accept it. The parser that raised it raises it again for ever.

    Attributes:
      kind: the fault's name in docs/parser.md.
      offset: bytes from the first byte after `expect()` to the fault.
      excerpt: the bytes around it, escaped, below 200 characters.
    """

    def __init__(self, kind, offset, excerpt=""):
        super().__init__(kind, offset, excerpt)
        self.kind = kind
        self.offset = offset
        self.excerpt = excerpt

    def __str__(self):
        where = f" near '{self.excerpt}'" if self.excerpt else ""
        return f"{self.kind} at byte {self.offset} of the answer{where}"


def _use_instruction_set(str name):
    """Scan with "baseline", "ssse3", "avx2", "avx512" or "neon"; "" takes the best. Returns the name of what is used.

    Raises ValueError: this processor or this build has it not.
    """
    cdef const char *chosen = scan_choose(name.encode())
    if chosen is NULL:
        raise ValueError(f"instruction set {name!r} is not known, or this processor has it not")
    return chosen.decode()


try:
    INSTRUCTION_SET = _use_instruction_set(os.environ.get("ENGINE_CPU", ""))
except ValueError as error:
    raise ImportError(f"ENGINE_CPU: {error}") from None


# Spellings of field names seen lately, each with its lower-case str: decoded once, not once a response. Shared by all
# parsers with the GIL for a lock, which is why this module does not declare itself free-threaded.
cdef struct Spelling:
    uint8_t n
    uint8_t raw[MEMO_NAME_MAX]

cdef Spelling memo_spellings[MEMO_NAMES]
cdef list memo_names = [None] * MEMO_NAMES


cdef str lower_name(const uint8_t *raw, uint32_t n):
    cdef uint64_t first = 0, last = 0
    cdef uint32_t slot
    cdef str name
    if n > MEMO_NAME_MAX:
        return (<const char *>raw)[:n].decode("ascii").lower()
    memcpy(&first, raw, n if n < 8 else 8)
    if n > 8:
        memcpy(&last, raw + n - 8, 8)
    # The top bits of a product depend on all bits of the factors.
    slot = ((first ^ (last << 1) ^ n) * <uint64_t>0x9E3779B97F4A7C15) >> 56
    if memo_spellings[slot].n == n and memcmp(memo_spellings[slot].raw, raw, n) == 0:
        return <str>memo_names[slot]
    name = intern((<const char *>raw)[:n].decode("ascii").lower())
    memo_spellings[slot].n = n
    memcpy(memo_spellings[slot].raw, raw, n)
    memo_names[slot] = name
    return name


@cython.final
@cython.freelist(16)
cdef class Response:
    """One response head: `status` (int), `version`, `reason` and the fields, which are decoded when asked for."""

    def __init__(self):
        raise TypeError("only a ResponseParser makes responses")

    def __dealloc__(self):
        if self.fields is not self.inline_fields:
            free(self.fields)

    @property
    def version(self):
        """(1, 0) or (1, 1)"""
        return (1, self.minor)

    @property
    def reason(self):
        """Text behind the status code, "" when there is none. Latin-1: RFC 9112 section 4 allows any byte from 0x80 on."""
        return self.text(self.reason_start, self.reason_end)

    cpdef str get(self, str name):
        """Value of the field, whatever the case of its name: trimmed, duplicates joined by ", "; None when absent."""
        cdef Py_ssize_t n
        cdef const char *wanted = PyUnicode_AsUTF8AndSize(name, &n)
        cdef uint32_t i = self.find(wanted, n, 0)
        if i == self.count:
            return None
        if self.find(wanted, n, i + 1) != self.count:
            return ", ".join(self.get_all(name))
        return self.text(field_value(self.fields[i]), field_value_end(self.fields[i]))

    cpdef list get_all(self, str name):
        """Values of all fields of this name, in order of arrival."""
        cdef Py_ssize_t n
        cdef const char *wanted = PyUnicode_AsUTF8AndSize(name, &n)
        cdef list values = []
        cdef uint32_t i = self.find(wanted, n, 0)
        while i < self.count:
            values.append(self.text(field_value(self.fields[i]), field_value_end(self.fields[i])))
            i = self.find(wanted, n, i + 1)
        return values

    cdef uint32_t find(self, const char *name, size_t n, uint32_t i) noexcept:
        """Index of the first field of this name from the i-th on; `count` without one."""
        while i < self.count:
            if field_name_end(self.fields[i]) - field_name(self.fields[i]) == n:
                if same_name(self.head + field_name(self.fields[i]), name, n):
                    return i
            i += 1
        return self.count

    def headers(self):
        """All fields: lower-case name to value, duplicates joined by ", ". A new dict each time."""
        cdef dict found = {}
        cdef Py_ssize_t size
        cdef uint64_t field
        cdef uint32_t i
        cdef str name, value, kept
        for i in range(self.count):
            field = self.fields[i]
            name = lower_name(self.head + field_name(field), field_name_end(field) - field_name(field))
            value = self.text(field_value(field), field_value_end(field))
            size = len(found)
            kept = <str>found.setdefault(name, value)
            if len(found) == size:  # not `kept is value`: one-character str are shared
                found[name] = kept + ", " + value
        return found

    def raw_headers(self):
        """(name, value) of each field as it was sent, the value trimmed."""
        cdef list fields = []
        cdef const char *head = <const char *>self.head
        cdef uint64_t field
        cdef uint32_t i
        for i in range(self.count):
            field = self.fields[i]
            fields.append((head[field_name(field):field_name_end(field)], head[field_value(field):field_value_end(field)]))
        return fields

    def __repr__(self):
        return f"<Response {self.status} {self.reason!r}, {self.count} fields>"

    cdef str text(self, uint32_t start, uint32_t end):
        return PyUnicode_DecodeLatin1(<const char *>self.head + start, end - start, NULL)


cdef Response make_response(const uint8_t *p, const Head *found):
    cdef Response response = Response.__new__(Response)
    cdef size_t offsets = found.fields * sizeof(uint64_t)
    response.fields = response.inline_fields
    response.head = response.inline_head
    if found.length > INLINE_HEAD or found.fields > INLINE_FIELDS:
        response.fields = <uint64_t *>malloc(offsets + found.length)
        if response.fields is NULL:
            raise MemoryError
        response.head = <uint8_t *>response.fields + offsets
    memcpy(response.fields, found.field, offsets)
    memcpy(response.head, p, found.length)
    response.status = found.status
    response.minor = found.minor
    response.count = found.fields
    response.reason_start = found.reason_start
    response.reason_end = found.reason_end
    return response


# The answer that comes most often is made once.
cdef Head bare
scan_bare_continue(<const uint8_t *>BARE_CONTINUE, 25, &bare)
cdef tuple bare_continue = (make_response(<const uint8_t *>BARE_CONTINUE, &bare),)


cdef int buffer_add(Buffer *buffer, const uint8_t *p, size_t n) except -1:
    """Append. It grows by what comes, never by what was announced."""
    cdef size_t room = max(buffer.room, <size_t>1024)
    cdef uint8_t *grown
    if n == 0:
        return 0
    while room < buffer.n + n:
        room *= 2
    if room > buffer.room:
        grown = <uint8_t *>realloc(buffer.p, room)
        if grown is NULL:
            raise MemoryError
        buffer.p = grown
        buffer.room = room
    memcpy(buffer.p + buffer.n, p, n)
    buffer.n += n
    return 0


cdef void buffer_clear(Buffer *buffer) noexcept:
    buffer.n = 0
    if buffer.room > BUFFER_KEPT:
        free(buffer.p)
        buffer.p = NULL
        buffer.room = 0


@cython.final
cdef class _BodyPiece:
    """Lends bytes of the feed to a body callback and knows whether they were given back."""

    cdef const uint8_t *p
    cdef size_t n
    cdef int lent
    cdef object keeper

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>self.p, self.n, 1, flags)
        self.lent += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.lent -= 1


cdef class ResponseParser:
    """Parses the responses of one connection, one request after the other.

    `expect(method)` arms it for exactly one final response, with any number of interim ones (at most 16) ahead of it; `feed()`
    and `feed_eof()` take what the connection brings. Bytes that nothing asked for are an error, and after an error the
    parser only raises it again. Any split of the same bytes gives the same answer.

    Arguments (each at most its default):
      max_head: bytes of a response head. The default is what 16-bit offsets hold; curl allows 300 KB, Node 16 KiB.
      max_fields: fields of a head or a trailer section.
      body_max: bytes of the body kept for `body`; the rest is counted and dropped.

    Raises ValueError: a limit out of its range.
    """

    def __init__(
        self, *, Py_ssize_t max_head=SCAN_HEAD_MAX, Py_ssize_t max_fields=SCAN_FIELDS_MAX, Py_ssize_t body_max=BODY_MAX
    ):
        if not (0 < max_head <= SCAN_HEAD_MAX and 0 <= max_fields <= SCAN_FIELDS_MAX and 0 <= body_max <= BODY_MAX):
            raise ValueError(f"limits: max_head 1-{SCAN_HEAD_MAX}, max_fields 0-{SCAN_FIELDS_MAX}, body_max 0-{BODY_MAX}")
        self.max_head = max_head
        self.max_fields = max_fields
        self.body_max = body_max

    def __dealloc__(self):
        free(self.carry.p)
        free(self.collected.p)

    @property
    def armed(self):
        """A final response is awaited, or is not complete."""
        return IDLE < self.state < IN_TUNNEL

    @property
    def interims(self):
        """The 1xx responses that the last feed brought, in order."""
        return [] if self.interims_seen is None else list(self.interims_seen)

    @property
    def body(self):
        """The first `body_max` bytes of the body so far; b"" when it goes to a callback."""
        return PyBytes_FromStringAndSize(<const char *>self.collected.p, self.collected.n)

    @property
    def body_dropped(self):
        """Bytes of the body that were not kept because of `body_max`."""
        return 0 if self.on_body is not None else self.body_size - self.collected.n

    @property
    def content_length(self):
        """Content-Length of the final response, None without one."""
        return None if self.framing.length < 0 else self.framing.length

    @property
    def content_length_repeated(self):
        """Whether the final response said the same Content-Length more than once, as some gateways do."""
        return self.framing.repeated_length

    @property
    def keep_alive(self):
        """Whether the final response leaves the connection usable, judged by its framing. False before it has come."""
        return self.framing.keep_alive and (self.in_callback or not self.feeding)

    @property
    def needs_eof(self):
        """Whether the body of the final response ends where the connection ends."""
        return self.framing.body == BODY_TO_EOF

    # --- what happens ---

    cpdef object expect(self, str method, object on_body=None):
        """Await the response to a request of this method. `on_body` is called with a memoryview of each piece of the body,
        valid during the call only (BufferError when it is kept); without it `body` collects.

        Raises RuntimeError: a response is awaited already. ParseError: the connection is not usable.
        """
        if method is None:
            raise TypeError("method: str, not None")
        self.enter()
        if self.state != IDLE:
            raise RuntimeError("the response before this one is not complete")
        if self.unused:
            self.fail(FAULT_UNSOLICITED_DATA, self.fed - self.unused)
        self.request = REQUEST_HEAD if method == "HEAD" else REQUEST_CONNECT if method == "CONNECT" else REQUEST_OTHER
        self.on_body = on_body
        self.response = None
        self.body_size = 0
        buffer_clear(&self.collected)
        self.fed = 0
        self.interim_count = 0
        self.framing.keep_alive = self.framing.repeated_length = False
        self.framing.length = -1
        self.framing.body = BODY_NONE
        self.state = IN_HEAD

    def feed(self, data, /):
        """Take what was received (any contiguous buffer). Returns what it brought.

        Raises ParseError: it is not a response as we accept it; `response` and `body` still hold what came ahead.
        """
        cdef Py_buffer view
        if self.on_body is not None:
            self.source = data
        if PyBytes_CheckExact(data):
            return EVENTS[self.feed_buffer(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))]
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return EVENTS[self.feed_buffer(<const char *>view.buf, view.len)]
        finally:
            PyBuffer_Release(&view)

    def feed_eof(self):
        """The peer will send no more. DONE when that ends the body, NONE when nothing was awaited.

        Raises ParseError("unexpected-eof"): it cut the response.
        """
        self.enter()
        if self.state == IN_BODY_TO_EOF:
            self.finish()
        elif IDLE < self.state < IN_TUNNEL:
            self.base = self.end = self.carry.p
            if self.carry.n:
                self.read_section(self.base, True)  # a fault in what was not scanned yet comes first
            self.fail(FAULT_UNEXPECTED_EOF, self.fed)
        return EVENTS[self.events]

    cdef int feed_buffer(self, const char *data, Py_ssize_t n) except -1:
        """`feed()` for C: returns the bits of Event. The caller keeps `data` alive during the call."""
        cdef const uint8_t *p = <const uint8_t *>data
        self.enter()
        self.base = p
        self.end = p + n
        if n and self.state == IDLE:
            self.fail(FAULT_UNSOLICITED_DATA, self.fed, p, self.end)
        self.feeding = True
        while p < self.end and IDLE < self.state < IN_TUNNEL:
            if self.state == IN_HEAD or self.state == IN_TRAILERS:
                p = self.read_section(p, False)
            elif self.state == IN_CHUNKS:
                p = self.read_chunks(p)
            else:
                p = self.read_length(p)
        self.feeding = False
        self.unused = self.end - p
        self.fed += n
        return self.events

    cdef int enter(self) except -1:
        if self.in_callback:
            raise RuntimeError("the body callback may not call the parser")
        if self.feeding and self.state != FAILED:
            self.fail(FAULT_INTERRUPTED, self.fed)
        if self.state == FAILED:
            raise ParseError(*self.failure)
        self.interims_seen = None
        self.events = 0
        return 0

    # --- heads and trailer sections ---

    cdef const uint8_t *read_section(self, const uint8_t *p, bint final) except? NULL:
        """Read on in the head or trailer section that started at p or earlier. Returns how far it went."""
        cdef size_t limit = TRAILERS_MAX if self.state == IN_TRAILERS else self.max_head
        if self.carry.n == 0:
            # The usual case: all of it is here, and nothing is copied but what the Response keeps.
            self.section = p
            self.section_at = self.fed + (p - self.base)
            return self.scan_section(p, self.end - p, limit)
        return self.carry_section(p, limit, final)

    cdef const uint8_t *carry_section(self, const uint8_t *p, size_t limit, bint final) except? NULL:
        """Read on in `carry`, which grows with what comes, up to one byte above the limit."""
        cdef size_t before = self.carry.n
        cdef size_t more = min(<size_t>(self.end - p), limit + 1 - before)
        cdef size_t seam = before - min(before, <size_t>3)
        buffer_add(&self.carry, p, more)
        self.section = self.carry.p
        # Linear in the bytes fed: a long head is scanned again only when it may be complete or has doubled.
        if not (final or self.carry.n < RESCAN_ALWAYS or self.carry.n >= 2 * self.scanned or self.carry.n > limit):
            if memmem(self.carry.p + seam, self.carry.n - seam, b"\r\n\r\n", 4) is NULL:
                return p + more
        return self.scan_section(p - before, self.carry.n, limit)

    cdef const uint8_t *scan_section(self, const uint8_t *p, size_t n, size_t limit) except? NULL:
        """Scan `section`, n bytes long. p is where its first byte is, or would be, in this feed."""
        cdef bint trailers = self.state == IN_TRAILERS
        cdef Scanned got = (scan_trailers if trailers else scan_head)(self.section, min(n, limit), self.max_fields, &self.head)
        if got == SCAN_DONE and trailers:
            got = frame_trailers(&self.head)
        if got == SCAN_DONE:
            self.carry.n = 0
            if trailers:
                self.finish()
            else:
                self.finish_head()
            return p + self.head.length
        if got == SCAN_BAD:
            self.fail_section(self.head.fault, n, self.head.fault_at)
        if n > limit:
            self.fail_section(FAULT_BAD_TRAILER if trailers else FAULT_HEAD_TOO_LARGE, n, limit)
        if self.carry.n == 0:
            buffer_add(&self.carry, p, n)
        self.scanned = n
        return p + n

    cdef int finish_head(self) except -1:
        cdef Framing framing
        if self.head.status == 100 and scan_bare_continue(self.section, self.head.length, &self.head):
            return self.finish_interim(bare_continue)
        if frame_head(self.section, &self.head, self.request, &framing) == SCAN_BAD:
            self.fail_section(self.head.fault, self.head.length, self.head.fault_at)
        if self.head.status < 200:
            return self.finish_interim((make_response(self.section, &self.head),))
        self.response = make_response(self.section, &self.head)
        self.framing = framing
        self.events |= EVENT_HEAD
        if self.framing.body == BODY_NONE:
            self.finish()
        elif self.framing.body == BODY_LENGTH:
            self.length_left = self.framing.length
            self.state = IN_LENGTH
        elif self.framing.body == BODY_CHUNKED:
            memset(&self.chunks, 0, sizeof(Chunks))
            self.state = IN_CHUNKS
        elif self.framing.body == BODY_TO_EOF:
            self.state = IN_BODY_TO_EOF
        else:
            self.finish()
            self.state = IN_TUNNEL
        return 0

    cdef int finish_interim(self, tuple response) except -1:
        self.interim_count += 1
        if self.interim_count > INTERIM_MAX:
            self.fail_section(FAULT_TOO_MANY_1XX, self.head.length, 0)
        self.interims_seen = response if self.interims_seen is None else self.interims_seen + response
        self.events |= EVENT_INTERIM
        return 0

    cdef int finish(self) except -1:
        self.state = IDLE
        self.events |= EVENT_DONE
        self.source = None
        buffer_clear(&self.carry)
        return 0

    # --- bodies ---

    cdef const uint8_t *read_length(self, const uint8_t *p) except NULL:
        cdef size_t n = self.end - p
        if self.state == IN_LENGTH:
            n = min(n, self.length_left)
            self.length_left -= n
        self.take_body(p, n)
        if self.state == IN_LENGTH and self.length_left == 0:
            self.finish()
        return p + n

    cdef const uint8_t *read_chunks(self, const uint8_t *p) except NULL:
        cdef Chunk step
        cdef size_t n
        while True:
            step = chunk_next(&self.chunks, &p, self.end)
            if step == CHUNK_DATA:
                n = min(<size_t>(self.end - p), self.chunks.left)
                chunk_took(&self.chunks, n)
                if n:
                    self.take_body(p, n)
                p += n
            elif step == CHUNK_LAST:
                self.state = IN_TRAILERS
                return p
            elif step == CHUNK_MORE:
                return p
            else:
                n = p - self.base  # the CR of a bare one may have come in the feed before this one
                self.fail(self.chunks.fault, self.fed + n - (self.chunks.fault == FAULT_BARE_CR), self.base, self.end, n)

    cdef int take_body(self, const uint8_t *p, size_t n) except -1:
        """A piece of the body: counted, then lent to the callback or kept. A C subclass may take it instead."""
        self.body_size += n
        self.events |= EVENT_BODY
        if self.on_body is not None:
            return self.lend(p, n)
        return buffer_add(&self.collected, p, min(n, self.body_max - self.collected.n))

    cdef int lend(self, const uint8_t *p, size_t n) except -1:
        cdef _BodyPiece piece = _BodyPiece.__new__(_BodyPiece)
        piece.p = p
        piece.n = n
        view = memoryview(piece)
        self.in_callback = True
        try:
            self.on_body(view)
        finally:
            self.in_callback = False
        view.release()
        if piece.lent:
            if self.source is not None:
                piece.keeper = memoryview(self.source)
            raise BufferError("the body callback kept a view that is valid during the call only")
        return 0

    # --- faults ---

    cdef int fail(self, Fault fault, uint64_t at, const uint8_t *start=NULL, const uint8_t *end=NULL, size_t i=0) except -1:
        """Refuse for ever. The fault is at start[i]."""
        cdef const char *first = <const char *>start + (i - min(i, <size_t>EXCERPT))
        cdef bytes near = first[: min(<const char *>end - first, 2 * EXCERPT)] if start is not NULL else b""
        cdef str shown = repr(near)
        self.failure = (fault_kinds[<int>fault].decode(), at, shown[2 : len(shown) - 1])
        self.state = FAILED
        self.framing.keep_alive = False
        raise ParseError(*self.failure)

    cdef int fail_section(self, Fault fault, size_t n, size_t i) except -1:
        return self.fail(fault, self.section_at + i, self.section, self.section + n, i)
