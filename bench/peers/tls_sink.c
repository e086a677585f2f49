/* A server that takes bodies off the wire and throws them away encrypted, so that the client is what is measured.
 *
 *   tls_sink PEM CPU        prints its port, ends when stdin does
 *
 * A connection that begins with a TLS handshake gets a true one (AES-128-GCM only), its head is decrypted, its body's records are
 * counted by their headers and answered when Content-Length is there; the connection is closed then, since what was not
 * decrypted cannot be followed by anything. GET is answered at once. Any other connection is read until its end.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>
#include <netinet/tcp.h>

enum { BUFFER = 256 * 1024, HEAD = 16 * 1024 };

static SSL_CTX *context;

static void discard_raw(int fd, char *buffer) {
    while (recv(fd, buffer, BUFFER, 0) > 0);
}

/* Records are counted by their headers, wherever the reads cut them. False when the client left. */
static bool discard_records(int fd, char *buffer, int64_t left, int expansion) {
    unsigned char header[5];
    size_t have = 0, skip = 0;
    while (left > 0) {
        ssize_t n = recv(fd, buffer, BUFFER, 0);
        if (n <= 0) return false;
        for (ssize_t at = 0; at < n;) {
            if (skip) {
                size_t step = skip < (size_t)(n - at) ? skip : (size_t)(n - at);
                skip -= step;
                at += (ssize_t)step;
                continue;
            }
            header[have++] = (unsigned char)buffer[at++];
            if (have < sizeof header) continue;
            have = 0;
            skip = (size_t)header[3] << 8 | header[4];
            if (header[0] == 23) left -= (int64_t)skip - expansion;
        }
    }
    while (skip) {
        ssize_t n = recv(fd, buffer, skip < BUFFER ? skip : BUFFER, 0);
        if (n <= 0) return false;
        skip -= (size_t)n;
    }
    return true;
}

static bool serve_one(SSL *tls, int fd, char *buffer) {
    static const char go_ahead[] = "HTTP/1.1 100 Continue\r\n\r\n";
    static const char answer[] = "HTTP/1.1 200 OK\r\nETag: \"0\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    char head[HEAD + 1];
    int size = 0;
    char *end = NULL;
    while (!end) {
        int n = SSL_read(tls, head + size, HEAD - size);
        if (n <= 0) return false;
        size += n;
        head[size] = 0;
        end = strstr(head, "\r\n\r\n");
    }
    int64_t left = 0;
    char *length = strcasestr(head, "content-length:");
    if (length && length < end) left = strtoll(length + 15, NULL, 10) - (head + size - (end + 4));
    if (strcasestr(head, "100-continue")) SSL_write(tls, go_ahead, sizeof go_ahead - 1);
    int expansion = SSL_version(tls) == TLS1_3_VERSION ? 17 : 24;
    if (!discard_records(fd, buffer, left, expansion)) return false;
    SSL_write(tls, answer, sizeof answer - 1);
    SSL_shutdown(tls);
    shutdown(fd, SHUT_WR);
    discard_raw(fd, buffer);
    return true;
}

static void *serve(void *argument) {
    int fd = (int)(intptr_t)argument, one = 1;
    char first = 0, *buffer = malloc(BUFFER);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (recv(fd, &first, 1, MSG_PEEK) == 1 && first != 22) discard_raw(fd, buffer);
    else if (first == 22) {
        SSL *tls = SSL_new(context);
        SSL_set_fd(tls, fd);
        if (SSL_accept(tls) == 1) serve_one(tls, fd, buffer);
        SSL_free(tls);
    }
    free(buffer);
    close(fd);
    return NULL;
}

static void *watch_stdin(void *unused) {
    char byte;
    while (read(STDIN_FILENO, &byte, 1) > 0);
    _exit(0);
    return unused;
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    pthread_t thread;
    cpu_set_t cpus;
    if (argc != 3) return 2;
    CPU_ZERO(&cpus);
    CPU_SET(atoi(argv[2]), &cpus);
    sched_setaffinity(0, sizeof cpus, &cpus);
    context = SSL_CTX_new(TLS_server_method());
    if (SSL_CTX_use_certificate_chain_file(context, argv[1]) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, argv[1], SSL_FILETYPE_PEM) != 1) return 1;
    SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256");
    SSL_CTX_set_cipher_list(context, "ECDHE+AES128+AESGCM");
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 256)) return 1;
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    pthread_create(&thread, NULL, watch_stdin, NULL);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) continue;
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd)) close(fd);
        else pthread_detach(thread);
    }
}
