/* A server that answers small PUTs as S3 does and stores nothing, so that the client is what is measured.
 *
 *   put_sink CPU        prints its port; serves connections, a thread each, until its stdin ends
 *
 * Bodies go by Content-Length. A head with "Expect:" gets a 100 first. HEAD and GET get an empty 200.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEAD_MAX = 64 * 1024, BUFFER = 1 << 20 };

static const char CONTINUE[] = "HTTP/1.1 100 Continue\r\n\r\n";
static const char ANSWER[] =
    "HTTP/1.1 200 OK\r\n"
    "x-amz-id-2: Uuag1LuByRx9e6j5Onimru9pO4ZVKnJ2Qz7/C1NPcfTWAtRPfTaOFg==\r\n"
    "x-amz-request-id: 656c76696e6727732072657175657374\r\n"
    "Date: Tue, 06 May 2025 20:12:30 GMT\r\n"
    "ETag: \"9b2cf535f27731c974343645a3985328\"\r\n"
    "Server: AmazonS3\r\n"
    "Content-Length: 0\r\n\r\n";

static int send_all(int fd, const char *p, size_t n) {
    return send(fd, p, n, MSG_NOSIGNAL) == (ssize_t)n;
}

static void *serve_one(void *argument) {
    int fd = (int)(intptr_t)argument, one = 1;
    char *buffer = malloc(BUFFER + 1);
    size_t have = 0;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (;;) {
        char *end;
        buffer[have] = 0;
        while (!(end = memmem(buffer, have, "\r\n\r\n", 4))) {
            ssize_t n = have < HEAD_MAX ? recv(fd, buffer + have, BUFFER - have, 0) : 0;
            if (n <= 0) goto out;
            have += (size_t)n;
            buffer[have] = 0;
        }
        *end = 0;
        const char *length = strcasestr(buffer, "\r\ncontent-length:");
        uint64_t left = length ? strtoull(length + 17, NULL, 10) : 0;
        if (strcasestr(buffer, "\r\nexpect:") && !send_all(fd, CONTINUE, sizeof CONTINUE - 1)) break;
        size_t behind = have - (size_t)(end + 4 - buffer);
        size_t step = behind < left ? behind : left;
        memmove(buffer, end + 4 + step, behind - step);
        have = behind - step;
        for (left -= step; left;) {
            ssize_t n = recv(fd, NULL, left < BUFFER ? left : BUFFER, MSG_TRUNC);
            if (n <= 0) goto out;
            left -= (uint64_t)n;
        }
        if (!send_all(fd, ANSWER, sizeof ANSWER - 1)) break;
    }
out:
    free(buffer);
    close(fd);
    return NULL;
}

static void *serve(void *argument) {
    int listener = (int)(intptr_t)argument;
    for (;;) {
        pthread_t thread;
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) return NULL;
        if (pthread_create(&thread, NULL, serve_one, (void *)(intptr_t)fd)) exit(1);
        pthread_detach(thread);
    }
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    pthread_t thread;
    char byte;
    if (argc > 1) {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(atoi(argv[1]), &cpus);
        if (sched_setaffinity(0, sizeof cpus, &cpus)) return 1;
    }
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 128)) return 1;
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)listener)) return 1;
    while (read(0, &byte, 1) > 0) {
    }
    return 0;
}
