/* How long does it take to find the lines and fields of a head, with nothing around it?
 *
 *   scan_loop SCANNER FILE LOOPS      prints nanoseconds of CPU a head
 *
 * SCANNER: an instruction set of engine/_scan.h, or "pico" when built with picohttpparser's source (see micro_parse.py).
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../../engine/_scan.h"

#ifdef WITH_PICO
#include "picohttpparser.h"
static int scan_pico(const char *p, size_t n) {
    int minor, status;
    const char *reason;
    size_t reason_length, fields = 256;
    static struct phr_header field[256];
    return phr_parse_response(p, n, &minor, &status, &reason, &reason_length, field, &fields, 0);
}
#endif

static double now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(int argc, char **argv) {
    static uint8_t data[1 << 17];
    static Head head;
    if (argc != 4)
        return 2;
    FILE *f = fopen(argv[2], "rb");
    if (!f)
        return 2;
    size_t n = fread(data, 1, sizeof data, f);
    fclose(f);
    long loops = atol(argv[3]), found = 0;
#ifdef WITH_PICO
    if (!strcmp(argv[1], "pico")) {
        double start = now_ns();
        for (long i = 0; i < loops; i++)
            found += scan_pico((const char *)data, n) > 0;
        printf("%.2f\n", (now_ns() - start) / loops);
        return found != loops;
    }
#endif
    if (!scan_choose(argv[1]))
        return 3;
    double start = now_ns();
    for (long i = 0; i < loops; i++) {
        __asm__ volatile("" ::: "memory"); /* or one scan would do for all */
        found += scan_head(data, n > SCAN_HEAD_MAX ? SCAN_HEAD_MAX : n, SCAN_FIELDS_MAX, &head) == SCAN_DONE;
    }
    printf("%.2f\n", (now_ns() - start) / loops);
    return found != loops;
}
