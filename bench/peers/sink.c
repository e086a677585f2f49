/* A server that throws away what it receives, as cheaply as the kernel allows: recv(MSG_TRUNC) copies nothing.
 *
 *   sink [CPU]     prints its port; serves connections, a thread each, until its stdin ends
 *
 * A connection is closed when the other side ends its half: a client that waits for that has measured until the last byte
 * was taken.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void *discard(void *argument) {
    int fd = (int)(intptr_t)argument;
    while (recv(fd, NULL, 4 << 20, MSG_TRUNC) > 0) {
    }
    close(fd);
    return NULL;
}

static void *serve(void *argument) {
    int listener = (int)(intptr_t)argument;
    for (;;) {
        pthread_t thread;
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) return NULL;
        if (pthread_create(&thread, NULL, discard, (void *)(intptr_t)fd)) exit(1);
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
