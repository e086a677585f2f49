/* Finds the lines, names and values of a response head or a trailer section (RFC 9112 sections 4 and 5).
 *
 * Pointer and length in; complete, incomplete or malformed out. Nothing is allocated, nothing outside [p, p + n) is read, and
 * nothing is remembered between calls: the caller scans again when more bytes have come.
 *
 * Every fault is found from the bytes up to it (or one run of white space behind it), so it is the same for any split of the
 * stream: a scan of a prefix either finds that fault or asks for more.
 */
#ifndef ENGINE_SCAN_H
#define ENGINE_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SCAN_HEAD_MAX 65534 /* offsets are u16, and the end of a line may lie one line end behind the last byte */
#define SCAN_FIELDS_MAX 256

/* Every way in which a response can be refused: enumerator, and the `kind` that Python shows. */
#define FAULTS(F)                                                                                                              \
    F(VERSION, "version")                                                                                                      \
    F(STATUS_LINE, "status-line")                                                                                              \
    F(STATUS_CODE, "status-code")                                                                                              \
    F(BARE_LF, "bare-lf")                                                                                                      \
    F(BARE_CR, "bare-cr")                                                                                                      \
    F(CONTROL_CHAR, "control-char")                                                                                            \
    F(OBS_FOLD, "obs-fold")                                                                                                    \
    F(EMPTY_NAME, "empty-name")                                                                                                \
    F(BAD_NAME, "bad-name")                                                                                                    \
    F(SPACE_BEFORE_COLON, "space-before-colon")                                                                                \
    F(NO_COLON, "no-colon")                                                                                                    \
    F(HEAD_TOO_LARGE, "head-too-large")                                                                                        \
    F(TOO_MANY_HEADERS, "too-many-headers")                                                                                    \
    F(BAD_CONTENT_LENGTH, "bad-content-length")                                                                                \
    F(CONFLICTING_CONTENT_LENGTH, "conflicting-content-length")                                                                \
    F(BAD_TRANSFER_ENCODING, "bad-transfer-encoding")                                                                          \
    F(TRANSFER_ENCODING_IN_HTTP10, "transfer-encoding-in-http10")                                                              \
    F(CONTENT_LENGTH_AND_TRANSFER_ENCODING, "content-length-and-transfer-encoding")                                            \
    F(FRAMING_IN_BODILESS_STATUS, "framing-in-bodiless-status")                                                                \
    F(UNEXPECTED_101, "unexpected-101")                                                                                        \
    F(TOO_MANY_1XX, "too-many-1xx")                                                                                            \
    F(BAD_CHUNK_SIZE, "bad-chunk-size")                                                                                        \
    F(BAD_CHUNK_EXTENSION, "bad-chunk-extension")                                                                              \
    F(BAD_CHUNK_TERMINATOR, "bad-chunk-terminator")                                                                            \
    F(CHUNK_OVERHEAD, "chunk-overhead")                                                                                        \
    F(BAD_TRAILER, "bad-trailer")                                                                                              \
    F(UNEXPECTED_EOF, "unexpected-eof")                                                                                        \
    F(UNSOLICITED_DATA, "unsolicited-data")                                                                                    \
    F(CALLBACK_FAILED, "callback-failed")

#define FAULT_ENUMERATOR(name, text) FAULT_##name,
#define FAULT_TEXT(name, text) text,
typedef enum { FAULT_NONE, FAULTS(FAULT_ENUMERATOR) FAULT_COUNT } Fault;
static const char *const fault_kinds[] __attribute__((unused)) = {"", FAULTS(FAULT_TEXT)};

typedef enum { SCAN_MORE, SCAN_DONE, SCAN_BAD } Scanned;

/* What a scan found. Offsets count from the first byte of the head. */
typedef struct {
    uint32_t length; /* of the whole head with its empty line */
    uint32_t fields;
    uint32_t specials;
    uint32_t fault_at;
    Fault fault;
    uint16_t status;
    uint16_t reason_start, reason_end;
    uint8_t minor; /* of the version: HTTP/1.minor */
    uint8_t special[SCAN_FIELDS_MAX]; /* fields that frame: Connection, Content-Length, Transfer-Encoding (told by length) */
    uint64_t field[SCAN_FIELDS_MAX];
} Head;

/* A field is four u16 in one word. */
static inline uint64_t field_pack(size_t name, size_t name_end, size_t value, size_t value_end) {
    return (uint64_t)name | (uint64_t)name_end << 16 | (uint64_t)value << 32 | (uint64_t)value_end << 48;
}
static inline unsigned field_name(uint64_t f) { return f & 0xffff; }
static inline unsigned field_name_end(uint64_t f) { return f >> 16 & 0xffff; }
static inline unsigned field_value(uint64_t f) { return f >> 32 & 0xffff; }
static inline unsigned field_value_end(uint64_t f) { return f >> 48; }

enum { TCHAR = 1, CTL = 2 }; /* CTL without HTAB: what may not stand in a value (RFC 9110 section 5.5) */

static const uint8_t byte_class[256] = {
    ['0' ... '9'] = TCHAR, ['A' ... 'Z'] = TCHAR, ['a' ... 'z'] = TCHAR,
    ['!'] = TCHAR, ['#' ... '\''] = TCHAR, ['*'] = TCHAR, ['+'] = TCHAR, ['-'] = TCHAR, ['.'] = TCHAR,
    ['^'] = TCHAR, ['_'] = TCHAR, ['`'] = TCHAR, ['|'] = TCHAR, ['~'] = TCHAR,
    [0 ... 8] = CTL, [10 ... 31] = CTL, [127] = CTL,
};
static inline bool is_tchar(uint8_t c) { return byte_class[c] & TCHAR; }
static inline bool is_ctl(uint8_t c) { return byte_class[c] & CTL; }
static inline bool is_ows(uint8_t c) { return c == ' ' || c == '\t'; }

static inline uint64_t load64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

/* `lower` is lower-case; s is known to be all tchar, of which only a letter becomes a letter by setting bit 5. */
static inline bool same_token(const uint8_t *s, const char *lower, size_t n) {
    for (size_t i = 0; i < n; i++)
        if ((s[i] | 0x20) != (uint8_t)lower[i])
            return false;
    return true;
}

/* The same for a name of any bytes and case. */
static inline uint8_t ascii_lower(uint8_t c) { return c + ((uint8_t)(c - 'A') < 26 ? 32 : 0); }
static inline bool same_name(const uint8_t *a, const char *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (ascii_lower(a[i]) != ascii_lower((uint8_t)b[i]))
            return false;
    return true;
}

static inline void head_add(Head *h, const uint8_t *p, size_t name, size_t name_end, size_t value, size_t value_end) {
    size_t n = name_end - name;
    h->field[h->fields] = field_pack(name, name_end, value, value_end);
    if ((n == 10 || n == 14 || n == 17) && ((p[name] | 0x20) == 'c' || (p[name] | 0x20) == 't')) {
        const char *special = n == 10 ? "connection" : n == 14 ? "content-length" : "transfer-encoding";
        if (same_token(p + name, special, n))
            h->special[h->specials++] = h->fields;
    }
    h->fields++;
}

static inline Scanned scan_fault(Head *h, Fault fault, size_t at) {
    h->fault = fault;
    h->fault_at = at;
    return SCAN_BAD;
}

/* The byte at `at` is a control character: DONE when a line ends there. */
static inline Scanned scan_line_end(const uint8_t *p, size_t n, size_t at, Head *h) {
    if (p[at] == '\n')
        return scan_fault(h, FAULT_BARE_LF, at);
    if (p[at] != '\r')
        return scan_fault(h, FAULT_CONTROL_CHAR, at);
    if (at + 1 == n)
        return SCAN_MORE;
    return p[at + 1] == '\n' ? SCAN_DONE : scan_fault(h, FAULT_BARE_CR, at);
}

/* A name that began at `name` has met, at `at`, what is neither a tchar nor the colon behind a name. */
static inline Scanned scan_bad_name(const uint8_t *p, size_t n, size_t name, size_t at, Head *h) {
    if (p[at] == ':')
        return scan_fault(h, FAULT_EMPTY_NAME, at);
    if (p[at] == '\r' || p[at] == '\n') {
        Scanned end = scan_line_end(p, n, at, h);
        return end == SCAN_DONE ? scan_fault(h, FAULT_NO_COLON, at) : end;
    }
    if (at > name && is_ows(p[at])) {
        size_t next = at;
        while (next < n && is_ows(p[next]))
            next++;
        if (next == n)
            return SCAN_MORE;
        if (p[next] == ':')
            return scan_fault(h, FAULT_SPACE_BEFORE_COLON, at);
    }
    return scan_fault(h, FAULT_BAD_NAME, at);
}

/* Fields from `at` to the empty line. */
static Scanned scan_fields(const uint8_t *p, size_t n, size_t at, unsigned max_fields, Head *h) {
    for (;;) {
        size_t name = at;
        if (at == n)
            return SCAN_MORE;
        if (p[at] == '\r' || p[at] == '\n') {
            h->length = at + 2;
            return scan_line_end(p, n, at, h);
        }
        if (is_ows(p[at]))
            return scan_fault(h, FAULT_OBS_FOLD, at);
        if (h->fields == max_fields)
            return scan_fault(h, FAULT_TOO_MANY_HEADERS, at);
        while (at < n && is_tchar(p[at]))
            at++;
        if (at == n)
            return SCAN_MORE;
        if (p[at] != ':' || at == name)
            return scan_bad_name(p, n, name, at, h);
        size_t value = at + 1;
        while (value < n && is_ows(p[value]))
            value++;
        size_t end = value;
        while (end < n && !is_ctl(p[end]))
            end++;
        if (end == n)
            return SCAN_MORE;
        Scanned line_end = scan_line_end(p, n, end, h);
        if (line_end != SCAN_DONE)
            return line_end;
        size_t next = end + 2;
        while (end > value && is_ows(p[end - 1]))
            end--;
        head_add(h, p, name, at, value, end);
        at = next;
    }
}

/* RFC 9112 section 4. The reason and the SP ahead of it may be missing (old XRootD sends neither). */
static Scanned scan_status_line(const uint8_t *p, size_t n, size_t *next, Head *h) {
    static const char prefix[] = "HTTP/1.";
    for (size_t i = 0; i < 7; i++) {
        if (i == n)
            return SCAN_MORE;
        if (p[i] != (uint8_t)prefix[i])
            return scan_fault(h, FAULT_VERSION, i);
    }
    if (n == 7)
        return SCAN_MORE;
    h->minor = p[7] - '0';
    if (h->minor > 1)
        return scan_fault(h, FAULT_VERSION, 7);
    if (n == 8)
        return SCAN_MORE;
    if (p[8] != ' ')
        return scan_fault(h, p[8] == '.' || (p[8] >= '0' && p[8] <= '9') ? FAULT_VERSION : FAULT_STATUS_LINE, 8);
    h->status = 0;
    for (size_t i = 9; i < 12; i++) {
        if (i == n)
            return SCAN_MORE;
        if (i == 9 && is_ows(p[i]))
            return scan_fault(h, FAULT_STATUS_LINE, i);
        if (p[i] < (i == 9 ? '1' : '0') || p[i] > '9')
            return scan_fault(h, FAULT_STATUS_CODE, i);
        h->status = h->status * 10 + (p[i] - '0');
    }
    if (n == 12)
        return SCAN_MORE;
    size_t at = 12;
    if (p[at] == ' ')
        at++;
    else if (p[at] >= '0' && p[at] <= '9')
        return scan_fault(h, FAULT_STATUS_CODE, at);
    else if (p[at] != '\r' && p[at] != '\n')
        return scan_fault(h, FAULT_STATUS_LINE, at);
    h->reason_start = at;
    while (at < n && !is_ctl(p[at]))
        at++;
    if (at == n)
        return SCAN_MORE;
    h->reason_end = at;
    *next = at + 2;
    return scan_line_end(p, n, at, h);
}

/* n <= SCAN_HEAD_MAX, max_fields <= SCAN_FIELDS_MAX. */
static Scanned scan_head_plain(const uint8_t *p, size_t n, unsigned max_fields, Head *h) {
    size_t at = 0;
    h->fields = h->specials = 0;
    Scanned line = scan_status_line(p, n, &at, h);
    return line == SCAN_DONE ? scan_fields(p, n, at, max_fields, h) : line;
}

static inline Scanned scan_trailers(const uint8_t *p, size_t n, unsigned max_fields, Head *h) {
    h->fields = h->specials = 0;
    return scan_fields(p, n, 0, max_fields, h);
}

typedef Scanned (*ScanHead)(const uint8_t *p, size_t n, unsigned max_fields, Head *h);
static ScanHead scan_head __attribute__((unused)) = scan_head_plain;

/* Takes the named instruction set, or the best one for "". Returns its name, NULL when there is none such here. */
static inline const char *scan_choose(const char *wanted) {
    if (*wanted && strcmp(wanted, "baseline"))
        return NULL;
    scan_head = scan_head_plain;
    return "baseline";
}

#endif
