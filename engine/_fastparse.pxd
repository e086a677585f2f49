"""What the C headers offer, and the parser for a second Cython module: `cimport` it, `expect()`, then `feed_buffer()`."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "_framing.h" nogil:
    enum:
        SCAN_HEAD_MAX
        SCAN_FIELDS_MAX
        TRAILERS_MAX

    ctypedef enum Fault:
        FAULT_HEAD_TOO_LARGE
        FAULT_TOO_MANY_1XX
        FAULT_BARE_CR
        FAULT_BAD_TRAILER
        FAULT_UNEXPECTED_EOF
        FAULT_UNSOLICITED_DATA
        FAULT_INTERRUPTED
    const char **fault_kinds

    ctypedef enum Scanned:
        SCAN_MORE
        SCAN_DONE
        SCAN_BAD
    ctypedef struct Head:
        uint32_t length, fields, fault_at
        Fault fault
        uint16_t status, reason_start, reason_end
        uint8_t minor
        uint64_t field[SCAN_FIELDS_MAX]
    const char *scan_choose(const char *wanted)
    bint scan_bare_continue(const uint8_t *p, size_t n, Head *head)
    Scanned scan_head(const uint8_t *p, size_t n, unsigned max_fields, Head *head)
    Scanned scan_trailers(const uint8_t *p, size_t n, unsigned max_fields, Head *head)
    uint32_t field_name(uint64_t field)
    uint32_t field_name_end(uint64_t field)
    uint32_t field_value(uint64_t field)
    uint32_t field_value_end(uint64_t field)
    bint same_name(const uint8_t *name, const char *other, size_t n)

    ctypedef enum RequestKind:
        REQUEST_OTHER
        REQUEST_HEAD
        REQUEST_CONNECT
    ctypedef enum BodyKind:
        BODY_NONE
        BODY_LENGTH
        BODY_CHUNKED
        BODY_TO_EOF
        BODY_TUNNEL
    ctypedef struct Framing:
        BodyKind body
        int64_t length
        bint keep_alive, repeated_length
    Scanned frame_head(const uint8_t *p, Head *head, RequestKind request, Framing *framing)
    Scanned frame_trailers(Head *head)

    ctypedef enum Chunk:
        CHUNK_MORE
        CHUNK_DATA
        CHUNK_LAST
        CHUNK_BAD
    ctypedef struct Chunks:
        Fault fault
        uint64_t left
    Chunk chunk_next(Chunks *chunks, const uint8_t **p, const uint8_t *end)
    void chunk_took(Chunks *chunks, uint64_t n)


cdef enum State:
    IDLE
    IN_HEAD
    IN_LENGTH
    IN_CHUNKS
    IN_TRAILERS
    IN_BODY_TO_EOF
    IN_TUNNEL
    FAILED


cdef enum:
    INLINE_HEAD = 512
    INLINE_FIELDS = 24


cdef struct Buffer:
    uint8_t *p
    size_t n, room


cdef class Response:
    cdef readonly int status
    cdef int minor
    cdef uint32_t count, reason_start, reason_end
    cdef uint8_t *head  # `inline_head`, or inside the allocation that starts at `fields`
    cdef uint64_t *fields
    cdef uint8_t inline_head[INLINE_HEAD]
    cdef uint64_t inline_fields[INLINE_FIELDS]

    cpdef str get(self, str name)
    cpdef list get_all(self, str name)
    cdef uint32_t find(self, const char *name, size_t n, uint32_t i) noexcept
    cdef str text(self, uint32_t start, uint32_t end)


cdef class ResponseParser:
    cdef readonly Response response
    cdef readonly uint64_t body_size
    cdef readonly Py_ssize_t unused
    cdef State state
    cdef RequestKind request
    cdef int events, interim_count
    cdef tuple interims_seen
    cdef object on_body
    cdef object source  # feed()'s argument while a body goes to a callback
    cdef bint feeding  # still set on entry: an exception went through the feed before this one
    cdef bint in_callback
    cdef tuple failure
    cdef size_t max_head, max_fields, body_max

    # Offsets count from the first byte fed after expect().
    cdef uint64_t fed  # bytes of earlier feeds
    cdef const uint8_t *base  # this feed's bytes, kept by feed()'s argument or by feed_buffer()'s caller
    cdef const uint8_t *end
    cdef uint64_t section_at  # start of the head or trailer section being read …
    cdef const uint8_t *section  # … and its bytes, in `base` or in `carry`
    cdef Buffer carry  # what came of it in earlier feeds
    cdef size_t scanned  # bytes of it when it was last scanned

    cdef Buffer collected
    cdef uint64_t length_left
    cdef Framing framing
    cdef Chunks chunks
    cdef Head head

    cpdef object expect(self, str method, object on_body=*)
    cdef int feed_buffer(self, const char *data, Py_ssize_t n) except -1
    cdef int take_body(self, const uint8_t *p, size_t n) except -1
    cdef int enter(self) except -1
    cdef const uint8_t *read_section(self, const uint8_t *p, bint final) except? NULL
    cdef const uint8_t *carry_section(self, const uint8_t *p, size_t limit, bint final) except? NULL
    cdef const uint8_t *scan_section(self, const uint8_t *p, size_t n, size_t limit) except? NULL
    cdef const uint8_t *read_length(self, const uint8_t *p) except NULL
    cdef const uint8_t *read_chunks(self, const uint8_t *p) except NULL
    cdef int finish_head(self) except -1
    cdef int finish_interim(self, tuple response) except -1
    cdef int finish(self) except -1
    cdef int lend(self, const uint8_t *p, size_t n) except -1
    cdef int fail(self, Fault fault, uint64_t at, const uint8_t *start=*, const uint8_t *end=*, size_t i=*) except -1
    cdef int fail_section(self, Fault fault, size_t n, size_t i) except -1
