/* What a head says of its body and of the connection (RFC 9112 sections 6 and 9), and the chunked coding (section 7.1). */
#ifndef ENGINE_FRAMING_H
#define ENGINE_FRAMING_H

#include "_scan.h"

typedef enum { REQUEST_OTHER, REQUEST_HEAD, REQUEST_CONNECT } RequestKind;
typedef enum { BODY_NONE, BODY_LENGTH, BODY_CHUNKED, BODY_TO_EOF, BODY_TUNNEL } BodyKind;

typedef struct {
    BodyKind body;
    int64_t length; /* Content-Length, -1 without one */
    bool keep_alive;
    bool repeated_length; /* the same Content-Length more than once */
    bool transfer_encoding;
    uint32_t length_at, transfer_encoding_at; /* where their first values start */
    uint32_t length_end;                      /* where the digits of the first length end */
} Framing;

/* 1#( 1*DIGIT ), all of the same text. RFC 9110 section 8.6 allows to collapse repetitions; differing ones are an attack. */
static inline Scanned frame_content_length(const uint8_t *p, size_t at, size_t end, Framing *f, Head *h) {
    for (;; at++) {
        while (at < end && is_ows(p[at]))
            at++;
        size_t start = at;
        uint64_t length = 0; /* 19 digits stay below 2^64 */
        while (at < end && p[at] >= '0' && p[at] <= '9' && at - start < 19)
            length = length * 10 + (p[at++] - '0');
        size_t digits_end = at;
        while (at < end && is_ows(p[at]))
            at++;
        if (digits_end == start || length > INT64_MAX || (at < end && p[at] != ','))
            return scan_fault(h, FAULT_BAD_CONTENT_LENGTH, start);
        if (f->length < 0) {
            f->length = (int64_t)length;
            f->length_at = start;
            f->length_end = digits_end;
        } else {
            size_t n = digits_end - start;
            if (n != f->length_end - f->length_at || memcmp(p + start, p + f->length_at, n))
                return scan_fault(h, FAULT_CONFLICTING_CONTENT_LENGTH, start);
            f->repeated_length = true;
        }
        if (at == end)
            return SCAN_DONE;
    }
}

/* Exactly one `chunked`: we never send TE, so no other coding can be an answer to us. */
static inline Scanned frame_transfer_encoding(const uint8_t *p, size_t at, size_t end, Framing *f, Head *h) {
    if (f->transfer_encoding || end - at != 7 || !same_token(p + at, "chunked", 7))
        return scan_fault(h, FAULT_BAD_TRANSFER_ENCODING, at);
    f->transfer_encoding = true;
    f->transfer_encoding_at = at;
    return SCAN_DONE;
}

enum { CONNECTION_CLOSE = 1, CONNECTION_KEEP_ALIVE = 2 };

/* A member that is no token says that somebody is confused: it counts as `close`. Empty members are nothing (RFC 9110 section
 * 5.6.1). */
static inline unsigned frame_connection(const uint8_t *p, size_t at, size_t end) {
    unsigned said = 0;
    for (;; at++) {
        while (at < end && is_ows(p[at]))
            at++;
        size_t start = at;
        while (at < end && is_tchar(p[at]))
            at++;
        size_t n = at - start;
        while (at < end && is_ows(p[at]))
            at++;
        if (at < end && p[at] != ',')
            return CONNECTION_CLOSE;
        if (n == 5 && same_token(p + start, "close", 5))
            said |= CONNECTION_CLOSE;
        else if (n == 10 && same_token(p + start, "keep-alive", 10))
            said |= CONNECTION_KEEP_ALIVE;
        if (at == end)
            return said;
    }
}

/* Reads the framing of a scanned head. On SCAN_BAD the fault is in *h. */
static inline Scanned frame_head(const uint8_t *p, Head *h, RequestKind request, Framing *f) {
    unsigned connection = 0;
    *f = (Framing){.length = -1};
    for (uint32_t i = 0; i < h->specials; i++) {
        uint64_t field = h->field[h->special[i]];
        size_t name_length = field_name_end(field) - field_name(field), at = field_value(field), end = field_value_end(field);
        if (name_length == 10)
            connection |= frame_connection(p, at, end);
        else if ((name_length == 14 ? frame_content_length : frame_transfer_encoding)(p, at, end, f, h) == SCAN_BAD)
            return SCAN_BAD;
    }
    if (f->transfer_encoding && h->minor == 0)
        return scan_fault(h, FAULT_TRANSFER_ENCODING_IN_HTTP10, f->transfer_encoding_at);
    if (f->transfer_encoding && f->length >= 0)
        return scan_fault(h, FAULT_CONTENT_LENGTH_AND_TRANSFER_ENCODING, f->transfer_encoding_at);
    bool framed = f->transfer_encoding || f->length > 0;
    if (h->status < 200) {
        if (h->status == 101) /* we never send Upgrade */
            return scan_fault(h, FAULT_UNEXPECTED_101, 9);
        if (framed)
            return scan_fault(h, FAULT_FRAMING_IN_BODILESS_STATUS,
                              f->transfer_encoding ? f->transfer_encoding_at : f->length_at);
        return SCAN_DONE;
    }
    f->keep_alive = !(connection & CONNECTION_CLOSE) && (h->minor == 1 || connection & CONNECTION_KEEP_ALIVE);
    if (request == REQUEST_CONNECT && h->status < 300) { /* RFC 9110 section 9.3.6: lengths mean nothing here */
        f->body = BODY_TUNNEL;
        f->keep_alive = false;
    } else if (request == REQUEST_HEAD || h->status == 304) {
        f->body = BODY_NONE;
    } else if (h->status == 204) {
        f->body = BODY_NONE;
        f->keep_alive = f->keep_alive && !framed; /* who announces a body may also send it */
    } else if (f->transfer_encoding) {
        f->body = BODY_CHUNKED;
    } else if (f->length >= 0) {
        f->body = f->length ? BODY_LENGTH : BODY_NONE;
    } else {
        f->body = BODY_TO_EOF;
        f->keep_alive = false;
    }
    return SCAN_DONE;
}

/* Trailers are dropped, so what frames there can only be meant for another parser (RFC 9110 section 6.5.1). */
static inline Scanned frame_trailers(Head *h) {
    for (uint32_t i = 0; i < h->specials; i++) {
        uint64_t field = h->field[h->special[i]];
        if (field_name_end(field) - field_name(field) != 10)
            return scan_fault(h, FAULT_BAD_TRAILER, field_name(field));
    }
    return SCAN_DONE;
}

/* --- the chunked coding -------------------------------------------------------------------------------------------- */

#define CHUNK_LINE_MAX 4096      /* size, white space and extensions, without CRLF; Node takes 16 KiB, nobody sends any */
#define CHUNK_OVERHEAD_MIN 65536 /* framing bytes below this are never called an attack (Go: 16 KiB, CVE-2023-39326) */
#define CHUNK_OVERHEAD_RATIO 16
#define TRAILERS_MAX 8192

typedef enum { CHUNK_MORE, CHUNK_DATA, CHUNK_LAST, CHUNK_BAD } Chunk;

typedef enum {
    AT_SIZE, IN_SIZE, BEHIND_SIZE,                             /* 1*HEXDIG, then white space */
    EXT_AT_NAME, EXT_IN_NAME, EXT_BEHIND_NAME,                 /* ";" BWS token BWS */
    EXT_AT_VALUE, EXT_IN_VALUE, EXT_BEHIND_VALUE,              /* "=" BWS ( token / quoted-string ) BWS */
    EXT_IN_QUOTES, EXT_ESCAPED,
    LINE_LF, IN_DATA, DATA_CR, DATA_LF
} ChunkState;

typedef struct {
    ChunkState state;
    Fault fault;
    uint32_t line;     /* bytes of this line so far */
    uint32_t digits;
    uint64_t left;     /* of the size being read, then of its data; <= INT64_MAX */
    uint64_t data;     /* bytes of data so far */
    uint64_t overhead; /* bytes of framing so far */
} Chunks;

static inline Chunk chunk_fault(Chunks *c, Fault fault) {
    c->fault = fault;
    return CHUNK_BAD;
}

static inline int hex_digit(uint8_t c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One byte of a size line that is neither CR nor LF, both of which end every token but a quoted-string. */
static inline Chunk chunk_line_byte(Chunks *c, uint8_t b) {
    int digit;
    if (++c->line > CHUNK_LINE_MAX)
        return chunk_fault(c, FAULT_BAD_CHUNK_EXTENSION);
    switch (c->state) {
    case AT_SIZE:
    case IN_SIZE:
        if ((digit = hex_digit(b)) >= 0) {
            if (++c->digits > 16 || c->left > INT64_MAX >> 4)
                return chunk_fault(c, FAULT_BAD_CHUNK_SIZE);
            c->left = c->left << 4 | (unsigned)digit;
            c->state = IN_SIZE;
            return CHUNK_MORE;
        }
        if (c->state == AT_SIZE)
            return chunk_fault(c, FAULT_BAD_CHUNK_SIZE);
        /* fall through */
    case BEHIND_SIZE:
        if (!is_ows(b) && b != ';')
            return chunk_fault(c, FAULT_BAD_CHUNK_SIZE);
        c->state = b == ';' ? EXT_AT_NAME : BEHIND_SIZE;
        return CHUNK_MORE;
    case EXT_AT_NAME:
    case EXT_AT_VALUE:
        if (is_ows(b))
            return CHUNK_MORE;
        if (b == '"' && c->state == EXT_AT_VALUE)
            c->state = EXT_IN_QUOTES;
        else if (is_tchar(b))
            c->state = c->state == EXT_AT_NAME ? EXT_IN_NAME : EXT_IN_VALUE;
        else
            break;
        return CHUNK_MORE;
    case EXT_IN_NAME:
    case EXT_IN_VALUE:
        if (is_tchar(b))
            return CHUNK_MORE;
        /* fall through */
    case EXT_BEHIND_NAME:
    case EXT_BEHIND_VALUE: {
        bool name = c->state == EXT_IN_NAME || c->state == EXT_BEHIND_NAME;
        if (is_ows(b))
            c->state = name ? EXT_BEHIND_NAME : EXT_BEHIND_VALUE;
        else if (b == ';')
            c->state = EXT_AT_NAME;
        else if (b == '=' && name)
            c->state = EXT_AT_VALUE;
        else
            break;
        return CHUNK_MORE;
    }
    case EXT_IN_QUOTES:
        if (is_ctl(b))
            break;
        c->state = b == '"' ? EXT_BEHIND_VALUE : b == '\\' ? EXT_ESCAPED : EXT_IN_QUOTES;
        return CHUNK_MORE;
    case EXT_ESCAPED:
        if (is_ctl(b))
            break;
        c->state = EXT_IN_QUOTES;
        return CHUNK_MORE;
    default:
        break;
    }
    return chunk_fault(c, FAULT_BAD_CHUNK_EXTENSION);
}

/* A size line is complete. */
static inline Chunk chunk_line_done(Chunks *c) {
    c->overhead += c->line + 2;
    if (c->overhead > CHUNK_OVERHEAD_MIN && (c->overhead - 1) / CHUNK_OVERHEAD_RATIO >= c->data)
        return chunk_fault(c, FAULT_CHUNK_OVERHEAD);
    c->line = c->digits = 0;
    if (c->left == 0) {
        c->state = AT_SIZE;
        return CHUNK_LAST;
    }
    c->state = IN_DATA;
    return CHUNK_DATA;
}

/* Advances *p over framing. CHUNK_DATA: c->left > 0 bytes of data start at *p (end may come sooner, even at once): take some
 * and call chunk_took(). CHUNK_LAST: the trailer section starts at *p. CHUNK_BAD: *p is at the fault, or behind a bare CR. */
static inline Chunk chunk_next(Chunks *c, const uint8_t **p, const uint8_t *end) {
    for (; *p < end; ++*p) {
        uint8_t b = **p;
        Chunk step = CHUNK_MORE;
        switch (c->state) {
        case IN_DATA:
            return CHUNK_DATA;
        case DATA_CR:
            if (b != '\r')
                return chunk_fault(c, FAULT_BAD_CHUNK_TERMINATOR);
            c->state = DATA_LF;
            break;
        case DATA_LF:
            if (b != '\n')
                return chunk_fault(c, FAULT_BAD_CHUNK_TERMINATOR);
            c->overhead += 2;
            c->state = AT_SIZE;
            break;
        case LINE_LF:
            if (b != '\n')
                return chunk_fault(c, FAULT_BARE_CR);
            if ((step = chunk_line_done(c)) != CHUNK_BAD)
                ++*p;
            return step;
        default:
            if (b == '\n')
                return chunk_fault(c, FAULT_BARE_LF);
            if (b != '\r')
                step = chunk_line_byte(c, b);
            else if (c->state == AT_SIZE)
                return chunk_fault(c, FAULT_BAD_CHUNK_SIZE);
            else if (c->state == EXT_AT_NAME || c->state == EXT_AT_VALUE || c->state == EXT_IN_QUOTES ||
                     c->state == EXT_ESCAPED)
                return chunk_fault(c, FAULT_BAD_CHUNK_EXTENSION);
            else
                c->state = LINE_LF;
        }
        if (step == CHUNK_BAD)
            return CHUNK_BAD;
    }
    return CHUNK_MORE;
}

static inline void chunk_took(Chunks *c, uint64_t n) {
    c->data += n;
    c->left -= n;
    if (c->left == 0)
        c->state = DATA_CR;
}

#endif
