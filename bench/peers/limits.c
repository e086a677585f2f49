/* What cipher and kernel charge for a body: bare blocking loops, one thread per connection, nothing looked at on the way.
 *
 *   limits KIND PORT FILE BYTES CONNECTIONS TARGET|- SECONDS [CPU]
 *
 * KIND: sendfile of FILE, send of anonymous memory, splice out of the pipe that is stdin; aes-gcm: pread of FILE, AES-128-GCM by
 * EVP in records of 16 KiB, one send for each 256 KiB; tls: send through OpenSSL's own sessions. The last two need -DWITH_TLS.
 * With a TARGET each body is a PUT to it, and its answer is read; with - bare bytes, and the sink's close is the answer.
 * SECONDS > 0: each connection sends one body after another for so long; 0: one body each.
 * Prints one line of JSON: seconds, CPU seconds of this process (user, system), bodies sent, highest resident memory in KiB.
 *
 *   limits fill - - BYTES 1 - 0 [CPU]     the producer of that pipe: BYTES to stdout by vmsplice, as cheap as one can be
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
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
#ifdef WITH_TLS
#include <openssl/evp.h>
#include <openssl/ssl.h>
#endif

enum { CONNECTIONS_MAX = 512, PIPE_BYTES = 1 << 20, RECORD = 16 * 1024, BATCH = 256 * 1024, OVERHEAD = 5 + 1 + 16 };

typedef struct {
    int fd;
    long sent;
#ifdef WITH_TLS
    SSL *tls;
    EVP_CIPHER_CTX *cipher;
    unsigned char *plain, *batch;
    uint64_t number;
#endif
} Connection;

static int file_fd;
static size_t bytes;
static char *memory, head[1024];
static const char *kind;
static double seconds_wanted;
static struct timespec start;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double seconds(const struct timeval *time) { return (double)time->tv_sec + (double)time->tv_usec / 1e6; }

static double since_start(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - start.tv_sec) + (double)(now.tv_nsec - start.tv_nsec) / 1e9;
}

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

static void send_all(int fd, const void *data, size_t size, int flags) {
    for (const char *p = data; size;) {
        ssize_t n = send(fd, p, size, flags);
        if (n <= 0) fail("send");
        p += n;
        size -= (size_t)n;
    }
}

#ifdef WITH_TLS
static SSL_CTX *context;

static size_t seal(Connection *c, const unsigned char *plain, size_t size, unsigned char *out) {
    unsigned char nonce[12] = {0};
    static const unsigned char type = 23;
    int n;
    size_t length = size + 1 + 16;
    out[0] = 23, out[1] = 3, out[2] = 3, out[3] = (unsigned char)(length >> 8), out[4] = (unsigned char)length;
    memcpy(nonce + 4, &c->number, sizeof c->number);
    c->number++;
    if (!EVP_EncryptInit_ex(c->cipher, NULL, NULL, NULL, nonce) || !EVP_EncryptUpdate(c->cipher, NULL, &n, out, 5) ||
        !EVP_EncryptUpdate(c->cipher, out + 5, &n, plain, (int)size) ||
        !EVP_EncryptUpdate(c->cipher, out + 5 + size, &n, &type, 1) ||
        !EVP_EncryptFinal_ex(c->cipher, out + 6 + size, &n) ||
        !EVP_CIPHER_CTX_ctrl(c->cipher, EVP_CTRL_AEAD_GET_TAG, 16, out + 6 + size))
        fail("EVP");
    return 5 + length;
}

static void send_sealed(Connection *c) {
    for (size_t done = 0; done < bytes;) {
        ssize_t got = pread(file_fd, c->plain, bytes - done < BATCH ? bytes - done : BATCH, (off_t)done);
        size_t sealed = 0;
        if (got <= 0) fail("pread");
        for (ssize_t at = 0; at < got; at += RECORD)
            sealed += seal(c, c->plain + at, got - at < RECORD ? (size_t)(got - at) : RECORD, c->batch + sealed);
        send_all(c->fd, c->batch, sealed, 0);
        done += (size_t)got;
    }
}

static void prepare_tls(Connection *c) {
    static const unsigned char key[16] = "0123456789abcdef";
    if (!strcmp(kind, "aes-gcm")) {
        c->cipher = EVP_CIPHER_CTX_new();
        c->plain = malloc(BATCH);
        c->batch = malloc(BATCH + BATCH / RECORD * OVERHEAD);
        if (!EVP_EncryptInit_ex(c->cipher, EVP_aes_128_gcm(), NULL, key, NULL)) fail("EVP");
    } else if (!strcmp(kind, "tls")) {
        if (!context) context = SSL_CTX_new(TLS_client_method());
        c->tls = SSL_new(context);
        SSL_set_fd(c->tls, c->fd);
        if (SSL_connect(c->tls) != 1) fail("SSL_connect");
    }
}
#endif

static void send_head(Connection *c, bool more) {
#ifdef WITH_TLS
    if (c->tls) {
        if (SSL_write(c->tls, head, (int)strlen(head)) <= 0) fail("SSL_write");
        return;
    }
#endif
    send_all(c->fd, head, strlen(head), more ? MSG_MORE : 0);
}

static void send_body(Connection *c) {
    off_t offset = 0;
#ifdef WITH_TLS
    if (!strcmp(kind, "aes-gcm")) {
        send_sealed(c);
        return;
    }
#endif
    for (size_t done = 0; done < bytes;) {
        ssize_t n;
        if (!strcmp(kind, "sendfile")) n = sendfile(c->fd, file_fd, &offset, bytes - done);
        else if (!strcmp(kind, "splice")) n = splice(STDIN_FILENO, NULL, c->fd, NULL, bytes - done, SPLICE_F_MOVE);
#ifdef WITH_TLS
        else if (c->tls) n = SSL_write(c->tls, memory + done, bytes - done < 1 << 30 ? (int)(bytes - done) : 1 << 30);
#endif
        else n = send(c->fd, memory + done, bytes - done, 0);
        if (n <= 0) fail(kind);
        done += (size_t)n;
    }
}

static void read_answer(Connection *c) {
    char answer[2048];
    size_t have = 0;
    while (!memmem(answer, have, "\r\n\r\n", 4)) {
        ssize_t n;
#ifdef WITH_TLS
        if (c->tls) n = SSL_read(c->tls, answer + have, (int)(sizeof answer - have));
        else
#endif
            n = recv(c->fd, answer + have, sizeof answer - have, 0);
        if (n <= 0) fail("answer");
        have += (size_t)n;
    }
    if (strncmp(answer, "HTTP/1.1 200", 12)) exit(3);
}

static void *send_bodies(void *argument) {
    Connection *c = argument;
    do {
        if (*head) send_head(c, true);
        send_body(c);
        if (*head) read_answer(c);
        c->sent++;
    } while (seconds_wanted > 0 && since_start() < seconds_wanted);
    if (!*head) {
        char byte;
        shutdown(c->fd, SHUT_WR);
        if (recv(c->fd, &byte, 1, 0)) fail("recv");
    }
    return NULL;
}

static void connect_to(Connection *c, const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    address.sin_port = htons((uint16_t)atoi(port));
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
    if (*head) setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
#ifdef WITH_TLS
    prepare_tls(c);
#endif
}

/* Of this program: ru_maxrss has the memory of the one before exec in it. */
static long peak_kib(void) {
    char line[128];
    long kib = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status)) sscanf(line, "VmHWM: %ld", &kib);
    if (status) fclose(status);
    return kib;
}

int main(int argc, char **argv) {
    static Connection connections[CONNECTIONS_MAX];
    pthread_t threads[CONNECTIONS_MAX];
    struct rusage before, after;
    if (argc < 8) return 2;
    kind = argv[1];
    bytes = strtoull(argv[4], NULL, 10);
    int count = atoi(argv[5]);
    if (count < 1 || count > CONNECTIONS_MAX) return 2;
    if (strcmp(argv[6], "-"))
        snprintf(head, sizeof head, "PUT %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nContent-Length: %zu\r\n\r\n", argv[6], argv[2], bytes);
    seconds_wanted = atof(argv[7]);
    if (argc > 8) {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(atoi(argv[8]), &cpus);
        if (sched_setaffinity(0, sizeof cpus, &cpus)) fail("sched_setaffinity");
    }
    size_t size = strcmp(kind, "send") && strcmp(kind, "tls") ? PIPE_BYTES : bytes + 1;
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("mmap");
    memset(memory, 'x', size);
    if (!strcmp(kind, "fill")) return fill();
    if (strcmp(argv[3], "-") && (file_fd = open(argv[3], O_RDONLY)) < 0) fail("open");
    for (int i = 0; i < count; i++) connect_to(&connections[i], argv[2]);
    clock_gettime(CLOCK_MONOTONIC, &start);
    getrusage(RUSAGE_SELF, &before);
    for (int i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, send_bodies, &connections[i])) fail("pthread_create");
    long sent = 0;
    for (int i = 0; i < count; i++) {
        pthread_join(threads[i], NULL);
        sent += connections[i].sent;
    }
    double spent = since_start();
    getrusage(RUSAGE_SELF, &after);
    printf("{\"seconds\": %.6f, \"user\": %.6f, \"system\": %.6f, \"bodies\": %ld, \"rss_kib\": %ld}\n", spent,
           seconds(&after.ru_utime) - seconds(&before.ru_utime), seconds(&after.ru_stime) - seconds(&before.ru_stime), sent,
           peak_kib());
    return 0;
}
