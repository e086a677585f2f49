/* Fuzzes engine/_scan.h and engine/_framing.h.
 *
 * Invariants: each instruction set finds what the plain scanner finds; a verdict on a prefix is the verdict on all that starts
 * with it; the chunked coding says the same for any split; nothing outside the input is touched (it lies against a page that
 * may not be touched, behind it or ahead of it, and under ASan in memory of its exact size).
 *
 *   scan_fuzz SECONDS SEED [CORPUS]     CORPUS: lines of escaped bytes, see tests/fuzz/corpus.txt
 *
 * Aborts and prints the input, escaped, when one does not hold. With -DLIBFUZZER and -fsanitize=fuzzer there is no main(): that
 * is how the corpus was made.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../../engine/_framing.h"

#define INPUT_MAX 4096

static const uint8_t *current;
static size_t current_n;

static void print_escaped(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (p[i] == '\r')
            fputs("\\r", stderr);
        else if (p[i] == '\n')
            fputs("\\n", stderr);
        else if (p[i] < 32 || p[i] > 126 || p[i] == '\\')
            fprintf(stderr, "\\x%02x", p[i]);
        else
            fputc(p[i], stderr);
    fputc('\n', stderr);
}

#define HOLDS(condition)                                                                                                       \
    do {                                                                                                                       \
        if (!(condition)) {                                                                                                    \
            fprintf(stderr, "line %d: %s does not hold for\n", __LINE__, #condition);                                         \
            print_escaped(current, current_n);                                                                                 \
            abort();                                                                                                           \
        }                                                                                                                      \
    } while (0)

static void same_verdict(Scanned a, const Head *ha, Scanned b, const Head *hb) {
    HOLDS(a == b);
    if (a == SCAN_BAD)
        HOLDS(ha->fault == hb->fault && ha->fault_at == hb->fault_at);
    if (a != SCAN_DONE)
        return;
    HOLDS(ha->length == hb->length && ha->status == hb->status && ha->minor == hb->minor);
    HOLDS(ha->reason_start == hb->reason_start && ha->reason_end == hb->reason_end);
    HOLDS(ha->fields == hb->fields && !memcmp(ha->field, hb->field, 8 * ha->fields));
    HOLDS(ha->specials == hb->specials && !memcmp(ha->special, hb->special, ha->specials));
}

static void in_bounds(const Head *h, size_t n) {
    HOLDS(h->length <= n && h->reason_start <= h->reason_end && h->reason_end <= h->length);
    for (uint32_t i = 0; i < h->fields; i++) {
        uint64_t f = h->field[i];
        HOLDS(field_name(f) < field_name_end(f) && field_name_end(f) < field_value(f));
        HOLDS(field_value(f) <= field_value_end(f) && field_value_end(f) + 4 <= h->length);
    }
}

static const char *const sets[] = {"baseline", "ssse3", "avx2", "avx512", "neon"};

static void check_head(const uint8_t *p, size_t n, unsigned max_fields) {
    static Head plain, other;
    Scanned expected = scan_head_plain(p, n, max_fields, &plain);
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        if (scan_choose(sets[i]))
            same_verdict(expected, &plain, scan_head(p, n, max_fields, &other), &other);
    if (expected != SCAN_DONE)
        return;
    in_bounds(&plain, n);
    for (int request = REQUEST_OTHER; request <= REQUEST_CONNECT; request++) {
        Framing f;
        if (frame_head(p, &plain, request, &f) == SCAN_BAD)
            HOLDS(plain.fault_at < plain.length);
        else
            HOLDS(f.length >= -1 && (f.body != BODY_LENGTH || f.length > 0));
    }
}

/* Of all prefixes: once there is a verdict, it stays. */
static void check_prefixes(const uint8_t *p, size_t n) {
    static Head first, later;
    Scanned verdict = SCAN_MORE;
    for (size_t k = 0; k <= n; k++) {
        Scanned now = scan_head(p, k, SCAN_FIELDS_MAX, &later);
        if (verdict == SCAN_MORE) {
            verdict = now;
            memcpy(&first, &later, sizeof first);
            HOLDS(now != SCAN_DONE || later.length == k);
        } else {
            same_verdict(verdict, &first, now, &later);
        }
    }
}

typedef struct {
    Chunk last;
    Fault fault;
    uint64_t data;
    size_t used;
} Decoded;

static Decoded decode(const uint8_t *data, size_t n, size_t piece) {
    Chunks c = {0};
    Decoded d = {.last = CHUNK_MORE};
    const uint8_t *p = data;
    for (size_t start = 0; start < n; start += piece) {
        const uint8_t *end = data + (start + piece < n ? start + piece : n);
        do {
            d.last = chunk_next(&c, &p, end);
            if (d.last == CHUNK_DATA) {
                size_t k = (size_t)(end - p) < c.left ? (size_t)(end - p) : c.left;
                chunk_took(&c, k);
                p += k;
            }
        } while (d.last == CHUNK_DATA && p < end);
        HOLDS(p <= end);
        if (d.last == CHUNK_BAD || d.last == CHUNK_LAST)
            break;
        d.last = CHUNK_MORE;
        HOLDS(p == end);
    }
    d.fault = c.fault;
    d.data = c.data;
    d.used = p - data;
    HOLDS(d.data <= n && c.left <= INT64_MAX);
    return d;
}

static void check_chunks(const uint8_t *p, size_t n) {
    Decoded whole = decode(p, n, n ? n : 1);
    for (size_t piece = 1; piece < n; piece = piece * 2 + 1) {
        Decoded pieces = decode(p, n, piece);
        HOLDS(!memcmp(&whole, &pieces, sizeof whole));
    }
}

static void check(const uint8_t *p, size_t n) {
    static Head h;
    check_head(p, n, SCAN_FIELDS_MAX);
    check_head(p, n, 2);
    if (scan_trailers(p, n, SCAN_FIELDS_MAX, &h) == SCAN_DONE)
        frame_trailers(&h);
    check_chunks(p, n);
}

/* The tables, byte by byte: a tchar that they miss would only cost time, and no comparison of verdicts would show it. */
static void check_classes(void (*classify)(const uint8_t *, uint64_t *, uint64_t *)) {
    for (unsigned start = 0; start < 256; start += 64) {
        uint8_t bytes[64];
        uint64_t ctl, other;
        for (unsigned i = 0; i < 64; i++)
            bytes[i] = start + i;
        classify(bytes, &ctl, &other);
        for (unsigned i = 0; i < 64; i++) {
            HOLDS((ctl >> i & 1) == is_ctl(start + i));
            HOLDS((other >> i & 1) == !is_tchar(start + i));
        }
    }
}

#define CLASSES(set, target)                                                                                                   \
    target static void classes_##set(const uint8_t *p, uint64_t *ctl, uint64_t *other) { classify_##set(p, ctl, other); }
#if defined(__x86_64__)
CLASSES(ssse3, __attribute__((target("ssse3"))))
CLASSES(avx2, __attribute__((target("avx2,bmi,bmi2"))))
CLASSES(avx512, __attribute__((target("avx512bw,avx512vl,avx2,bmi,bmi2"))))
static void check_all_classes(void) {
    if (scan_choose("ssse3"))
        check_classes(classes_ssse3);
    if (scan_choose("avx2"))
        check_classes(classes_avx2);
    if (scan_choose("avx512"))
        check_classes(classes_avx512);
}
#elif defined(__aarch64__)
CLASSES(neon, )
static void check_all_classes(void) { check_classes(classes_neon); }
#else
static void check_all_classes(void) {}
#endif

/* INPUT_MAX bytes between two pages that may not be touched. */
static uint8_t *guarded(void) {
    static uint8_t *area;
    if (!area) {
        size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (INPUT_MAX + page - 1) / page * page;
        area = mmap(NULL, room + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (area == MAP_FAILED || mprotect(area, page, PROT_NONE) || mprotect(area + page + room, page, PROT_NONE))
            exit(2);
        area += page;
    }
    return area;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (INPUT_MAX + page - 1) / page * page;
    if (n > INPUT_MAX)
        return 0;
    current = data;
    current_n = n;
    if (n == 0)
        check_all_classes();
    uint8_t *copy = guarded() + room - n;
    memcpy(copy, data, n);
    check(copy, n);
    copy = guarded();
    memcpy(copy, data, n);
    check(copy, n);
    copy = malloc(n ? n : 1);
    memcpy(copy, data, n);
    check(copy, n);
    if (n <= 256)
        for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
            if (scan_choose(sets[i]))
                check_prefixes(copy, n);
    free(copy);
    return 0;
}

#ifndef LIBFUZZER

/* --- a mutator for where there is no libFuzzer ----------------------------------------------------------------------- */

static uint64_t state;
static uint64_t pick(uint64_t below) { /* xorshift64*, Vigna 2016 */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (state * 2685821657736338717ull >> 33) % below;
}

static const char *const words[] = {
    "HTTP/1.1 200 OK\r\n", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 ", "HTTP/1.0 307 T\r\n", "204", "304", "101", "099",
    "\r\n",
    "\r\n\r\n", "\n", "\r", " ", "\t", ":", ": ", ",", ";", "=", "\"", "\\", "Content-Length", "content-length: 5\r\n",
    "Transfer-Encoding: chunked\r\n", "Transfer-Encoding", "Connection: ", "close", "keep-alive", "chunked", "0", "00000", "5",
    "9223372036854775807", "9223372036854775808", "7fffffffffffffff", "8000000000000000", "\x7f", "\xff", "X-Y: z\r\n",
    "5\r\nhello\r\n", "0\r\n\r\n", "0\r\nA: b\r\n\r\n", ";a=\"b;\\\"c\"",
    "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijkl",
    "                                                                 ",
};

static uint8_t seeds[4096][INPUT_MAX];
static size_t seed_n[4096], seed_count;

static void load(const char *path) {
    static char line[8 * INPUT_MAX];
    FILE *f = fopen(path, "r");
    if (!f) {
        perror(path);
        exit(2);
    }
    while (seed_count < 4096 && fgets(line, sizeof line, f)) {
        uint8_t *out = seeds[seed_count];
        size_t n = 0;
        for (char *c = line; *c && *c != '\n' && n < INPUT_MAX; c++) {
            unsigned byte;
            if (*c != '\\')
                out[n++] = *c;
            else if (*++c == 'x' && sscanf(c + 1, "%2x", &byte) == 1)
                out[n++] = byte, c += 2;
            else
                out[n++] = *c == 'r' ? '\r' : *c == 'n' ? '\n' : *c == 't' ? '\t' : *c;
        }
        seed_n[seed_count++] = n;
    }
    fclose(f);
}

static size_t replace(uint8_t *p, size_t n, size_t at, size_t gone, const uint8_t *with, size_t with_n) {
    if (n - gone + with_n > INPUT_MAX)
        return n;
    memmove(p + at + with_n, p + at + gone, n - at - gone);
    memcpy(p + at, with, with_n);
    return n - gone + with_n;
}

static size_t mutate(uint8_t *p, size_t n) {
    size_t at = pick(n + 1), gone = pick(4) ? 0 : pick(n - at + 1);
    switch (pick(6)) {
    case 0: /* a byte, often one that means something */
        if (n) {
            uint8_t b = pick(2) ? pick(256) : (uint8_t)"\r\n\t :;,\"\\0\x7f\x80"[pick(12)];
            p[at < n ? at : 0] = b;
        }
        return n;
    case 1: /* a few bytes go */
        return replace(p, n, at, gone > 8 ? pick(8) : gone, p, 0);
    case 2: { /* a piece of another input */
        size_t other = pick(seed_count), from = pick(seed_n[other] + 1), len = pick(seed_n[other] - from + 1);
        return replace(p, n, at, gone, seeds[other] + from, len);
    }
    case 3: { /* a piece of itself, again */
        static uint8_t piece[INPUT_MAX];
        size_t from = pick(n + 1), len = pick(n - from + 1);
        memcpy(piece, p + from, len);
        return replace(p, n, at, 0, piece, len);
    }
    case 4: { /* a run: shifts what follows against the 64-byte words */
        uint8_t run[130];
        size_t len = pick(sizeof run);
        memset(run, "ab \tx"[pick(5)], sizeof run);
        return replace(p, n, at, 0, run, len);
    }
    default: {
        const char *word = words[pick(sizeof words / sizeof *words)];
        return replace(p, n, at, pick(3) ? 0 : gone, (const uint8_t *)word, strlen(word));
    }
    }
}

int main(int argc, char **argv) {
    static uint8_t input[INPUT_MAX];
    if (argc < 3)
        return 2;
    time_t until = time(NULL) + atoi(argv[1]);
    state = strtoull(argv[2], NULL, 10) * 2 + 1;
    seed_count = 1; /* an empty one */
    if (argc > 3)
        load(argv[3]);
    printf("instruction sets:");
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        if (scan_choose(sets[i]))
            printf(" %s", sets[i]);
    for (size_t i = 0; i < seed_count; i++)
        LLVMFuzzerTestOneInput(seeds[i], seed_n[i]);
    unsigned long runs = 0;
    for (; runs % 256 || time(NULL) < until; runs++) {
        size_t from = pick(seed_count), n = seed_n[from];
        memcpy(input, seeds[from], n);
        for (uint64_t k = 1 + pick(5); k; k--)
            n = mutate(input, n);
        LLVMFuzzerTestOneInput(input, n);
    }
    printf("; %lu inputs from %zu seeds, seed %s: all held\n", runs, seed_count, argv[2]);
    return 0;
}
#endif
