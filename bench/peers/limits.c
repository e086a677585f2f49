/* What the kernel charges for a body: bare blocking loops, one thread per connection, nothing looked at on the way.
 *
 *   limits sendfile|send|splice PORT FILE BYTES CONNECTIONS [CPU]
 *   limits fill - - BYTES 1 [CPU]
 *
 * The first three print one line of JSON: seconds until the sink took the last byte, and CPU seconds of this process. Each
 * connection carries BYTES: of FILE, of anonymous memory, or out of the pipe that is stdin. `fill` is the producer of that
 * pipe: it writes BYTES to stdout by vmsplice, without copying, as cheap as a producer can be.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 64, PIPE_BYTES = 1 << 20 };

static int file_fd;
static size_t bytes;
static char *memory;
static const char *kind;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double seconds(const struct timeval *time) { return (double)time->tv_sec + (double)time->tv_usec / 1e6; }

static int fill(void) {
    fcntl(STDOUT_FILENO, F_SETPIPE_SZ, PIPE_BYTES);
    for (size_t left = bytes; left;) {
        struct iovec piece = {.iov_base = memory, .iov_len = left < PIPE_BYTES ? left : PIPE_BYTES};
        ssize_t n = vmsplice(STDOUT_FILENO, &piece, 1, 0);
        if (n < 0) fail("vmsplice");
        left -= (size_t)n;
    }
    return 0;
}

static void *send_body(void *argument) {
    int fd = (int)(intptr_t)argument;
    char byte;
    off_t offset = 0;
    for (size_t done = 0; done < bytes;) {
        ssize_t n;
        if (!strcmp(kind, "sendfile")) n = sendfile(fd, file_fd, &offset, bytes - done);
        else if (!strcmp(kind, "send")) n = send(fd, memory + done, bytes - done, 0);
        else n = splice(STDIN_FILENO, NULL, fd, NULL, bytes - done, SPLICE_F_MOVE);
        if (n <= 0) fail(kind);
        done += (size_t)n;
    }
    shutdown(fd, SHUT_WR);
    if (recv(fd, &byte, 1, 0)) fail("recv");
    return NULL;
}

int main(int argc, char **argv) {
    int fds[CONNECTIONS_MAX];
    pthread_t threads[CONNECTIONS_MAX];
    struct timespec start, end;
    struct rusage before, after;
    if (argc < 6) return 2;
    kind = argv[1];
    bytes = strtoull(argv[4], NULL, 10);
    int count = atoi(argv[5]);
    if (count < 1 || count > CONNECTIONS_MAX) return 2;
    if (argc > 6) {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(atoi(argv[6]), &cpus);
        if (sched_setaffinity(0, sizeof cpus, &cpus)) fail("sched_setaffinity");
    }
    size_t size = strcmp(kind, "send") ? PIPE_BYTES : bytes;
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("mmap");
    memset(memory, 'x', size);
    if (!strcmp(kind, "fill")) return fill();
    if ((file_fd = open(argv[3], O_RDONLY)) < 0) fail("open");
    for (int i = 0; i < count; i++) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        address.sin_port = htons((uint16_t)atoi(argv[2]));
        fds[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fds[i], (struct sockaddr *)&address, sizeof address)) fail("connect");
    }
    clock_gettime(CLOCK_MONOTONIC, &start);
    getrusage(RUSAGE_SELF, &before);
    for (int i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, send_body, (void *)(intptr_t)fds[i])) fail("pthread_create");
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
    getrusage(RUSAGE_SELF, &after);
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("{\"seconds\": %.6f, \"cpu\": %.6f}\n",
           (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9,
           seconds(&after.ru_utime) + seconds(&after.ru_stime) - seconds(&before.ru_utime) - seconds(&before.ru_stime));
    return 0;
}
