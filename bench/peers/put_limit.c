/* What the kernel charges for small PUTs on one connection: sendmsg, epoll_wait, recv, and nothing between them.
 *
 *   put_limit PORT COUNT SIZE CPU        prints {"cpu": seconds, "seconds": …} of COUNT requests
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

static double cpu_now(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    int count = atoi(argv[2]), size = atoi(argv[3]), one = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(atoi(argv[4]), &cpus);
    if (sched_setaffinity(0, sizeof cpus, &cpus)) return 1;
    int fd = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    if (connect(fd, (struct sockaddr *)&address, sizeof address) || epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event)) return 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    char head[256], answer[4096], *body = calloc(1, (size_t)size);
    int length = snprintf(head, sizeof head, "PUT /bucket/key HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n", size);
    struct iovec parts[2] = {{head, (size_t)length}, {body, (size_t)size}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    double cpu = 0, seconds = 0;
    for (int i = -count / 10; i < count; i++) {
        if (i == 0) {
            cpu = cpu_now();
            seconds = now();
        }
        if (sendmsg(fd, &message, MSG_NOSIGNAL) != length + size) return 1;
        if (epoll_wait(poll, &event, 1, -1) != 1 || recv(fd, answer, sizeof answer, 0) <= 0) return 1;
    }
    printf("{\"cpu\": %.6f, \"seconds\": %.6f}\n", cpu_now() - cpu, now() - seconds);
    return 0;
}
