/* A relay that delays what passes through it by a fixed time in each direction, and takes nothing away from the bandwidth: what
 * it holds is bounded by memory only. For kernels without netem.
 *
 *   relay TARGET_PORT DELAY_US…     prints a port for each delay, on 127.0.0.1; ends when its stdin does
 *
 * Each connection has a thread for each half of each direction: one receives and stamps, one waits and sends. A half that ends
 * ends the other side's half after the same delay, a reset resets it. What is not delayed: the handshake of TCP (the kernel
 * answers a SYN by itself) and its acknowledgements, so neither a connect nor slow start takes the time they would take on a
 * path of this length.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 256 << 10, KEPT = 256, DELAYS_MAX = 16 };

typedef struct Piece {
    struct Piece *next;
    int64_t due_ns;
    ssize_t size; /* 0: the half has ended; -1: the connection was reset */
    char bytes[PIECE];
} Piece;

typedef struct {
    int from, to;
    int64_t delay_ns;
    Piece *first, **last;
    pthread_mutex_t lock;
    pthread_cond_t filled;
    struct Connection *connection;
} Direction;

typedef struct Connection {
    int client, server;
    atomic_int threads;
    Direction up, down;
} Connection;

typedef struct {
    int listener;
    int64_t delay_ns;
} Door;

static int target;
static Piece *spare; /* touched memory is worth keeping: a fresh page costs more than sending it */
static int spares;
static pthread_mutex_t spare_lock = PTHREAD_MUTEX_INITIALIZER;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static Piece *take(void) {
    pthread_mutex_lock(&spare_lock);
    Piece *piece = spare;
    if (piece) spare = piece->next, spares--;
    pthread_mutex_unlock(&spare_lock);
    if (!piece && !(piece = malloc(sizeof *piece))) fail("malloc");
    return piece;
}

static void give_back(Piece *piece) {
    pthread_mutex_lock(&spare_lock);
    int keeps = spares < KEPT;
    if (keeps) piece->next = spare, spare = piece, spares++;
    pthread_mutex_unlock(&spare_lock);
    if (!keeps) free(piece);
}

static void start(void *(*run)(void *), void *argument) {
    pthread_t thread;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10); /* four for each connection */
    if (pthread_create(&thread, &small, run, argument)) fail("pthread_create");
    pthread_detach(thread);
    pthread_attr_destroy(&small);
}

/* The last of a connection's four threads closes its sockets: no descriptor is reused under another. */
static void leave(Connection *connection) {
    if (atomic_fetch_sub(&connection->threads, 1) > 1) return;
    close(connection->client);
    close(connection->server);
    free(connection);
}

static void *receive(void *argument) {
    Direction *way = argument;
    ssize_t size;
    do {
        Piece *piece = take();
        while ((size = recv(way->from, piece->bytes, PIECE, 0)) < 0 && errno == EINTR) {
        }
        piece->size = size;
        piece->due_ns = now_ns() + way->delay_ns;
        piece->next = NULL;
        pthread_mutex_lock(&way->lock);
        *way->last = piece;
        way->last = &piece->next;
        pthread_cond_signal(&way->filled);
        pthread_mutex_unlock(&way->lock);
    } while (size > 0);
    leave(way->connection);
    return NULL;
}

static void wait_until(int64_t due_ns) {
    struct timespec due = {.tv_sec = due_ns / 1000000000LL, .tv_nsec = due_ns % 1000000000LL};
    if (due_ns > now_ns())
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL) == EINTR) {
        }
}

/* Sends a RST and wakes who waits: what close would do with linger 0, while other threads still hold the descriptor. */
static void reset_one(int fd) {
    struct sockaddr nobody = {.sa_family = AF_UNSPEC};
    if (connect(fd, &nobody, sizeof nobody)) shutdown(fd, SHUT_RDWR);
}

static void reset(Connection *connection) {
    reset_one(connection->client);
    reset_one(connection->server);
}

static int send_all(int fd, const char *bytes, ssize_t size) {
    while (size > 0) {
        ssize_t sent = send(fd, bytes, (size_t)size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR) return -1;
        if (sent > 0) bytes += sent, size -= sent;
    }
    return 0;
}

static void *deliver(void *argument) {
    Direction *way = argument;
    ssize_t size;
    int broken = 0;
    prctl(PR_SET_TIMERSLACK, 1); /* nanoseconds; 50 000 otherwise */
    do {
        pthread_mutex_lock(&way->lock);
        while (!way->first) pthread_cond_wait(&way->filled, &way->lock);
        Piece *piece = way->first;
        way->first = piece->next;
        if (!way->first) way->last = &way->first;
        pthread_mutex_unlock(&way->lock);
        size = piece->size;
        wait_until(piece->due_ns);
        if (size > 0 && !broken && send_all(way->to, piece->bytes, size)) {
            broken = 1; /* go on taking pieces until the receiver ends, which this makes it do */
            reset(way->connection);
        }
        give_back(piece);
    } while (size > 0);
    if (size < 0) reset(way->connection);
    else if (!broken) shutdown(way->to, SHUT_WR);
    leave(way->connection);
    return NULL;
}

static void direct(Direction *way, Connection *connection, int from, int to, int64_t delay_ns) {
    *way = (Direction){.from = from, .to = to, .delay_ns = delay_ns, .connection = connection};
    way->last = &way->first;
    pthread_mutex_init(&way->lock, NULL);
    pthread_cond_init(&way->filled, NULL);
}

static void *serve(void *argument) {
    const Door *door = argument;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)target)};
    for (;;) {
        int on = 1, client = accept(door->listener, NULL, NULL), server = socket(AF_INET, SOCK_STREAM, 0);
        if (client < 0 || server < 0) fail("accept");
        if (connect(server, (struct sockaddr *)&address, sizeof address)) {
            close(client);
            close(server);
            continue;
        }
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        Connection *connection = calloc(1, sizeof *connection);
        if (!connection) fail("calloc");
        *connection = (Connection){.client = client, .server = server, .threads = 4};
        direct(&connection->up, connection, client, server, door->delay_ns);
        direct(&connection->down, connection, server, client, door->delay_ns);
        start(receive, &connection->up);
        start(deliver, &connection->up);
        start(receive, &connection->down);
        start(deliver, &connection->down);
    }
    return NULL;
}

int main(int argc, char **argv) {
    static Door doors[DELAYS_MAX];
    char byte;
    if (argc < 3 || argc - 2 > DELAYS_MAX) return 2;
    target = atoi(argv[1]);
    signal(SIGPIPE, SIG_IGN);
    for (int i = 2; i < argc; i++) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t size = sizeof address;
        int listener = socket(AF_INET, SOCK_STREAM, 0);
        if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 512)) fail("listen");
        getsockname(listener, (struct sockaddr *)&address, &size);
        doors[i - 2] = (Door){.listener = listener, .delay_ns = atoll(argv[i]) * 1000};
        printf("%d\n", ntohs(address.sin_port));
        start(serve, &doors[i - 2]);
    }
    fflush(stdout);
    while (read(0, &byte, 1) > 0) {
    }
    return 0;
}
