/* What the cipher and the kernel charge for an encrypted body: pread, AES-128-GCM by EVP in records of 16 KiB, one send for each
 * 256 KiB, nothing looked at on the way.
 *
 *   tls_limit PORT FILE BYTES [CPU]     prints one line of JSON: seconds until the sink took the last byte, CPU seconds
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { RECORD = 16 * 1024, BATCH = 256 * 1024, OVERHEAD = 5 + 1 + 16 };

static double seconds(const struct timeval *time) { return (double)time->tv_sec + (double)time->tv_usec / 1e6; }

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static size_t seal(EVP_CIPHER_CTX *cipher, uint64_t number, const unsigned char *plain, size_t size, unsigned char *out) {
    unsigned char nonce[12] = {0};
    static const unsigned char type = 23;
    int n;
    size_t length = size + 1 + 16;
    out[0] = 23, out[1] = 3, out[2] = 3, out[3] = (unsigned char)(length >> 8), out[4] = (unsigned char)length;
    memcpy(nonce + 4, &number, sizeof number);
    if (!EVP_EncryptInit_ex(cipher, NULL, NULL, NULL, nonce) || !EVP_EncryptUpdate(cipher, NULL, &n, out, 5) ||
        !EVP_EncryptUpdate(cipher, out + 5, &n, plain, (int)size) ||
        !EVP_EncryptUpdate(cipher, out + 5 + size, &n, &type, 1) ||
        !EVP_EncryptFinal_ex(cipher, out + 6 + size, &n) ||
        !EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_GET_TAG, 16, out + 6 + size)) fail("EVP");
    return 5 + length;
}

int main(int argc, char **argv) {
    static unsigned char plain[BATCH], batch[BATCH + BATCH / RECORD * OVERHEAD];
    static const unsigned char key[16] = "0123456789abcdef";
    struct timespec start, end;
    struct rusage before, after;
    char byte = 'x';
    if (argc < 4) return 2;
    size_t bytes = strtoull(argv[3], NULL, 10);
    if (argc > 4) {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(atoi(argv[4]), &cpus);
        if (sched_setaffinity(0, sizeof cpus, &cpus)) fail("sched_setaffinity");
    }
    int file = open(argv[2], O_RDONLY), fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    address.sin_port = htons((uint16_t)atoi(argv[1]));
    EVP_CIPHER_CTX *cipher = EVP_CIPHER_CTX_new();
    if (file < 0 || !EVP_EncryptInit_ex(cipher, EVP_aes_128_gcm(), NULL, key, NULL)) fail("open");
    if (connect(fd, (struct sockaddr *)&address, sizeof address) || send(fd, &byte, 1, 0) != 1) fail("connect");
    clock_gettime(CLOCK_MONOTONIC, &start);
    getrusage(RUSAGE_SELF, &before);
    uint64_t number = 0;
    for (size_t done = 0; done < bytes;) {
        ssize_t got = pread(file, plain, bytes - done < BATCH ? bytes - done : BATCH, (off_t)done);
        size_t sealed = 0, sent = 0;
        if (got <= 0) fail("pread");
        for (ssize_t at = 0; at < got; at += RECORD)
            sealed += seal(cipher, number++, plain + at, got - at < RECORD ? (size_t)(got - at) : RECORD, batch + sealed);
        while (sent < sealed) {
            ssize_t n = send(fd, batch + sent, sealed - sent, 0);
            if (n <= 0) fail("send");
            sent += (size_t)n;
        }
        done += (size_t)got;
    }
    shutdown(fd, SHUT_WR);
    if (recv(fd, &byte, 1, 0)) fail("recv");
    getrusage(RUSAGE_SELF, &after);
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("{\"seconds\": %.6f, \"cpu\": %.6f}\n",
           (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9,
           seconds(&after.ru_utime) + seconds(&after.ru_stime) - seconds(&before.ru_utime) - seconds(&before.ru_stime));
    return 0;
}
