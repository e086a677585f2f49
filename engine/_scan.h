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
    F(INTERRUPTED, "interrupted")

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

/* `lower` is a lower-case token; s is known to be all tchar, of which only a letter becomes a letter by setting bit 5, and only
 * a hyphen a hyphen. */
static inline bool same_token(const uint8_t *s, const char *lower, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        if ((load64(s + i) | 0x2020202020202020) != load64((const uint8_t *)lower + i))
            return false;
    for (; i < n; i++)
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

/* Connection, Content-Length or Transfer-Encoding, which the framing is read from. */
static inline bool is_special(const uint8_t *name, size_t n) {
    if (n > 17 || !((1u << 10 | 1u << 14 | 1u << 17) >> n & 1) || ((name[0] | 0x20) != 'c' && (name[0] | 0x20) != 't'))
        return false;
    return same_token(name, n == 10 ? "connection" : n == 14 ? "content-length" : "transfer-encoding", n);
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
static inline Scanned scan_fields(const uint8_t *p, size_t n, size_t at, unsigned max_fields, Head *h) {
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
        if (is_special(p + name, at - name))
            h->special[h->specials++] = h->fields;
        h->field[h->fields++] = field_pack(name, at, value, end);
        at = next;
    }
}

/* RFC 9112 section 4. The reason and the SP ahead of it may be missing (old XRootD sends neither). */
static inline Scanned scan_status_line(const uint8_t *p, size_t n, size_t *next, Head *h) {
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
static inline Scanned scan_head_plain(const uint8_t *p, size_t n, unsigned max_fields, Head *h) {
    size_t at = 0;
    h->fields = h->specials = 0;
    Scanned line = scan_status_line(p, n, &at, h);
    return line == SCAN_DONE ? scan_fields(p, n, at, max_fields, h) : line;
}

static inline Scanned scan_trailers(const uint8_t *p, size_t n, unsigned max_fields, Head *h) {
    h->fields = h->specials = 0;
    return scan_fields(p, n, 0, max_fields, h);
}

/* The answer that comes most often, and which the go-ahead waits for. */
static inline bool scan_bare_continue(const uint8_t *p, size_t n, Head *h) {
    const uint8_t *bare = (const uint8_t *)"HTTP/1.1 100 Continue\r\n\r\n";
    if (n < 25 || load64(p) != load64(bare) || load64(p + 8) != load64(bare + 8) || load64(p + 16) != load64(bare + 16) ||
        p[24] != '\n')
        return false;
    h->length = 25;
    h->fields = h->specials = 0;
    h->minor = 1;
    h->status = 100;
    h->reason_start = 13;
    h->reason_end = 21;
    return true;
}

/* --- instruction sets --------------------------------------------------------------------------------------------------
 *
 * Each gives a `classify`: 64 bytes in, two bitmaps out: which are control characters, which are no tchars. A byte's class is
 * low[byte & 15] & high[byte >> 4]: bits 0-4 say tchar (its rows '0', '@', 'P', 'p' and '!'; row '`' is the union of the first
 * two), bits 5-7 control character (all of row 0 and 1 but HTAB; 0x19; DEL), none anything else. The first index may keep its
 * high nibble, since pshufb gives 0 for bytes from 0x80 on, which have no class. The rest of this file, the scanner itself,
 * includes itself once for each.
 */
static const uint8_t scan_low[16] __attribute__((unused)) =
    {45, 63, 47, 63, 63, 63, 63, 63, 47, 79, 62, 50, 42, 50, 62, 166};
static const uint8_t scan_high[16] __attribute__((unused)) = {32, 96, 16, 1, 2, 4, 3, 136};

#define SCAN_INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__)
#include <immintrin.h>

#define SCAN_NAME(name) name##_ssse3
#define SCAN_TARGET __attribute__((target("ssse3")))
SCAN_TARGET SCAN_INLINE void classify_ssse3(const uint8_t *p, uint64_t *ctl, uint64_t *other) {
    const __m128i low = _mm_loadu_si128((const __m128i *)scan_low), high = _mm_loadu_si128((const __m128i *)scan_high);
    uint64_t c = 0, o = 0;
    for (int i = 0; i < 64; i += 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(p + i));
        __m128i nibbles = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
        __m128i class = _mm_and_si128(_mm_shuffle_epi8(low, bytes), _mm_shuffle_epi8(high, nibbles));
        /* 0x20 and above reaches the sign bit, tchars do not */
        c |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_adds_epu8(class, _mm_set1_epi8(0x60))) << i;
        o |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(class, _mm_setzero_si128())) << i;
    }
    *ctl = c;
    *other = c | o;
}
#include "_scan.h"

#define SCAN_NAME(name) name##_avx2
#define SCAN_TARGET __attribute__((target("avx2,bmi,bmi2")))
SCAN_TARGET SCAN_INLINE void classify_avx2(const uint8_t *p, uint64_t *ctl, uint64_t *other) {
    const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)scan_low));
    const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)scan_high));
    uint64_t c = 0, o = 0;
    for (int i = 0; i < 64; i += 32) {
        __m256i bytes = _mm256_loadu_si256((const __m256i *)(p + i));
        __m256i nibbles = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(15));
        __m256i class = _mm256_and_si256(_mm256_shuffle_epi8(low, bytes), _mm256_shuffle_epi8(high, nibbles));
        c |= (uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_adds_epu8(class, _mm256_set1_epi8(0x60))) << i;
        o |= (uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(class, _mm256_setzero_si256())) << i;
    }
    *ctl = c;
    *other = c | o;
}
#include "_scan.h"

#define SCAN_NAME(name) name##_avx512
#define SCAN_TARGET __attribute__((target("avx512bw,avx512vl,avx2,bmi,bmi2")))
SCAN_TARGET SCAN_INLINE void classify_avx512(const uint8_t *p, uint64_t *ctl, uint64_t *other) {
    const __m512i low = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)scan_low));
    const __m512i high = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)scan_high));
    __m512i bytes = _mm512_loadu_si512(p);
    __m512i nibbles = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), _mm512_set1_epi8(15));
    __m512i class = _mm512_and_si512(_mm512_shuffle_epi8(low, bytes), _mm512_shuffle_epi8(high, nibbles));
    *ctl = _mm512_test_epi8_mask(class, _mm512_set1_epi8((char)0xe0));
    *other = _mm512_testn_epi8_mask(class, _mm512_set1_epi8(0x1f));
}
#include "_scan.h"

#elif defined(__aarch64__) && defined(__ARM_NEON) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#include <arm_neon.h>

/* movemask of four vectors of 0x00 and 0xff */
SCAN_INLINE uint64_t neon_mask(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
    const uint8x16_t bits = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t ab = vpaddq_u8(vandq_u8(a, bits), vandq_u8(b, bits));
    uint8x16_t cd = vpaddq_u8(vandq_u8(c, bits), vandq_u8(d, bits));
    uint8x16_t all = vpaddq_u8(ab, cd);
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(all, all)), 0);
}

#define SCAN_NAME(name) name##_neon
#define SCAN_TARGET
SCAN_INLINE void classify_neon(const uint8_t *p, uint64_t *ctl, uint64_t *other) {
    const uint8x16_t low = vld1q_u8(scan_low), high = vld1q_u8(scan_high);
    uint8x16_t c[4], o[4];
    for (int i = 0; i < 4; i++) {
        uint8x16_t bytes = vld1q_u8(p + 16 * i);
        uint8x16_t class = vandq_u8(vqtbl1q_u8(low, vandq_u8(bytes, vdupq_n_u8(15))), vqtbl1q_u8(high, vshrq_n_u8(bytes, 4)));
        c[i] = vcgtq_u8(class, vdupq_n_u8(31));
        o[i] = vorrq_u8(c[i], vceqzq_u8(class));
    }
    *ctl = neon_mask(c[0], c[1], c[2], c[3]);
    *other = neon_mask(o[0], o[1], o[2], o[3]);
}
#include "_scan.h"
#endif

typedef Scanned (*ScanHead)(const uint8_t *p, size_t n, unsigned max_fields, Head *h);
static ScanHead scan_head __attribute__((unused)) = scan_head_plain;

/* Takes the named instruction set, or the best one for "". Returns its name, NULL when there is none such here. */
static inline const char *scan_choose(const char *wanted) {
    const char *name = "baseline";
    ScanHead chosen = scan_head_plain;
#define SCAN_OFFER(offered, scan, present)                                                                                     \
    if ((*wanted == 0 || strcmp(wanted, offered) == 0) && (present)) {                                                         \
        name = offered;                                                                                                        \
        chosen = scan;                                                                                                         \
    }
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool bmi = __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    SCAN_OFFER("ssse3", scan_head_ssse3, __builtin_cpu_supports("ssse3"))
    SCAN_OFFER("avx2", scan_head_avx2, bmi && __builtin_cpu_supports("avx2"))
    SCAN_OFFER("avx512", scan_head_avx512, bmi && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
#elif defined(__aarch64__) && defined(__ARM_NEON) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    SCAN_OFFER("neon", scan_head_neon, true)
#endif
#undef SCAN_OFFER
    if (*wanted && strcmp(wanted, name))
        return NULL;
    scan_head = chosen;
    return name;
}

#elif defined(SCAN_NAME) /* --- the scanner, once for each instruction set ---------------------------------------------- */

/* Judges well-formed lines only. Whatever it does not know at once (a name over 64 bytes, HTTP/1.0, anything malformed) goes
 * to scan_head_plain, which starts again: so there is one place that names faults, and all instruction sets agree. */

#define SCAN_WORDS (SCAN_HEAD_MAX / 64 + 8)
#define SCAN_AHEAD 5 /* words classified at once; a body behind the head is not looked at beyond them */

typedef struct {
    const uint8_t *p;
    size_t n;
    size_t filled; /* words */
    size_t ready;  /* windows may be taken below this bit */
    uint64_t ctl[SCAN_WORDS], other[SCAN_WORDS]; /* bit i of word w is byte 64 w + i; all ones from byte n on */
} SCAN_NAME(Bitmaps);

/* Classify so that a window may be taken at `at` <= n. */
SCAN_TARGET SCAN_INLINE void SCAN_NAME(fill)(SCAN_NAME(Bitmaps) *b, size_t at) {
    if (at < b->ready)
        return;
    for (size_t w = b->filled, end = (at >> 6) + SCAN_AHEAD; w < end; w++) {
        size_t start = w << 6;
        if (start + 64 <= b->n) {
            SCAN_NAME(classify)(b->p + start, &b->ctl[w], &b->other[w]);
            continue;
        }
        b->ctl[w] = b->other[w] = 0;
        if (start >= b->n) {
        } else if (b->n >= 64) { /* the last 64 bytes once more, shifted */
            SCAN_NAME(classify)(b->p + b->n - 64, &b->ctl[w], &b->other[w]);
            b->ctl[w] >>= start + 64 - b->n;
            b->other[w] >>= start + 64 - b->n;
        } else {
            uint8_t padded[64] = {0};
            memcpy(padded, b->p, b->n);
            SCAN_NAME(classify)(padded, &b->ctl[w], &b->other[w]);
        }
        uint64_t behind = start >= b->n ? ~0ull : ~0ull << (b->n & 63);
        b->ctl[w] |= behind;
        b->other[w] |= behind;
    }
    b->filled = (at >> 6) + SCAN_AHEAD;
    b->ready = (b->filled - 1) << 6;
}

/* 64 bits from bit `at` on. */
SCAN_TARGET SCAN_INLINE uint64_t SCAN_NAME(window)(const uint64_t *bits, size_t at) {
    unsigned shift = at & 63;
    return bits[at >> 6] >> shift | bits[(at >> 6) + 1] << 1 << (63 - shift);
}

/* The first control character from `at` on, n without one. */
SCAN_TARGET SCAN_INLINE size_t SCAN_NAME(find_ctl)(SCAN_NAME(Bitmaps) *b, size_t at) {
    for (;; at += 64) {
        SCAN_NAME(fill)(b, at);
        uint64_t window = SCAN_NAME(window)(b->ctl, at);
        if (window)
            return at + __builtin_ctzll(window);
    }
}

SCAN_TARGET static inline Scanned SCAN_NAME(scan_head)(const uint8_t *p, size_t n, unsigned max_fields, Head *h) {
    SCAN_NAME(Bitmaps) b;
    if (scan_bare_continue(p, n, h))
        return SCAN_DONE;
    if (n < 16 || memcmp(p, "HTTP/1.1 ", 9) || p[9] == '0' || p[12] != ' ')
        return scan_head_plain(p, n, max_fields, h);
    unsigned hundreds = p[9] - '0', tens = p[10] - '0', ones = p[11] - '0';
    b.p = p;
    b.n = n;
    b.filled = b.ready = 0;
    size_t end = SCAN_NAME(find_ctl)(&b, 13);
    if (hundreds > 9 || tens > 9 || ones > 9 || end + 2 > n || memcmp(p + end, "\r\n", 2))
        return scan_head_plain(p, n, max_fields, h);
    h->minor = 1;
    h->status = hundreds * 100 + tens * 10 + ones;
    h->reason_start = 13;
    h->reason_end = end;
    uint32_t fields = 0, specials = 0;
    for (size_t at = end + 2;; at = end + 2) {
        SCAN_NAME(fill)(&b, at);
        uint64_t ctl = SCAN_NAME(window)(b.ctl, at), other = SCAN_NAME(window)(b.other, at);
        end = ctl ? at + __builtin_ctzll(ctl) : SCAN_NAME(find_ctl)(&b, at + 64);
        if (!other)
            return scan_head_plain(p, n, max_fields, h);
        size_t name_end = at + __builtin_ctzll(other);
        if (end + 2 > n || memcmp(p + end, "\r\n", 2)) {
            /* Incomplete, if all is well so far: inside a name, or behind one and inside a value or its line end. */
            bool room = fields < max_fields || at == n;
            bool named = name_end == n || (name_end > at && p[name_end] == ':');
            bool cut = end == n || (end + 1 == n && p[end] == '\r');
            return room && named && cut ? SCAN_MORE : scan_head_plain(p, n, max_fields, h);
        }
        if (end == at) {
            h->length = end + 2;
            h->fields = fields;
            h->specials = specials;
            return SCAN_DONE;
        }
        if (name_end == at || p[name_end] != ':' || fields == max_fields)
            return scan_head_plain(p, n, max_fields, h);
        size_t value = name_end + 1, value_end = end;
        value += p[value] == ' ';
        /* Ahead of the end of the line, all that is not above SP is SP or HTAB. */
        if (p[value] <= ' ')
            while (value < end && p[value] <= ' ')
                value++;
        if (p[end - 1] <= ' ')
            while (value_end > value && p[value_end - 1] <= ' ')
                value_end--;
        if (is_special(p + at, name_end - at))
            h->special[specials++] = fields;
        h->field[fields++] = field_pack(at, name_end, value, value_end);
    }
}

#undef SCAN_NAME
#undef SCAN_TARGET
#undef SCAN_WORDS
#undef SCAN_AHEAD
#endif
