/* The sender's C without Python, for the thread and address sanitizers (run_tsan.sh).
 *
 * Invariant: every submitted job comes back once, for a reason its event allows, and its peer received exactly the first
 * `sent` bytes of that job's body. SIGPIPE keeps its default: a worker that does not block it ends the program.
 *
 *   bodysend_threads [SEED [JOBS [fork]]]
 *
 * Two homes, each driven by a thread of its own as by an event loop, share the pool; each keeps LIVE jobs going, together
 * more than there are workers. At random a job is cancelled, or its peer speaks, closes or stops reading. With "fork",
 * children are made meanwhile, which send with a pool of their own.
 */
#define _GNU_SOURCE
#include <assert.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "../../engine/_bodysend.h"

enum { LIVE = 60, CONTENT_BYTES = 4 << 20, BODY_MAX = 600000, CHILD_JOBS = 10, JOBS_PER_CHILD = 100 };
enum event { NOTHING, CANCEL, SPEAK, CLOSE, STALL, EVENTS };

typedef struct {
    bs_job job;
    enum event event;
    int peer_fd, feed_fd; /* -1: closed, not a pipe */
    int64_t start, size, fed, received, act_at;
    bool live, acted;
} body;

static const char *content; /* 8-byte words, each its own position */
static int content_fd;

static int64_t below(unsigned *seed, int64_t limit) { return (int64_t)((unsigned)rand_r(seed) % (uint64_t)limit); }

static void begin(bs_home *home, body *it, unsigned *seed) {
    const int small = 16384;
    int pair[2], ends[2];
    memset(it, 0, sizeof *it);
    assert(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair));
    assert(!setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small));
    it->peer_fd = pair[1];
    it->feed_fd = -1;
    it->size = 1 + below(seed, BODY_MAX);
    it->start = below(seed, CONTENT_BYTES - BODY_MAX);
    it->act_at = below(seed, it->size);
    it->event = below(seed, 3) ? NOTHING : (enum event)below(seed, EVENTS);
    it->live = true;
    it->job.owner = it;
    it->job.sock_fd = pair[0];
    it->job.source_fd = content_fd;
    it->job.left = it->size;
    it->job.offset = it->start;
    it->job.stall_ms = it->event == STALL ? 5 : 60000;
    int source = (int)below(seed, 5);
    it->job.path = source == 4 ? BS_SPLICE : (bs_path)source;
    if (it->job.path == BS_SEND) it->job.memory = content;
    if (it->job.path == BS_SPLICE) { /* one half from pipes, one from sockets */
        if (source == 4) assert(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends));
        else assert(!pipe2(ends, O_CLOEXEC | O_NONBLOCK));
        it->job.stream = true;
        it->job.source_fd = ends[0];
        it->feed_fd = ends[1];
    }
    assert(bs_submit(home, &it->job) == 0);
}

static void feed(body *it) {
    if (it->feed_fd < 0) return;
    ssize_t n = write(it->feed_fd, content + it->start + it->fed, (size_t)(it->size - it->fed));
    if (n > 0) it->fed += n;
}

static void act(bs_home *home, body *it) {
    it->acted = true;
    if (it->event == CANCEL) bs_cancel(&it->job);
    if (it->event == SPEAK) assert(send(it->peer_fd, "HTTP/1.1 403", 12, MSG_NOSIGNAL) == 12);
    if (it->event == CLOSE) {
        close(it->peer_fd);
        it->peer_fd = -1;
    }
}

/* False at the end of the peer's stream, or when it is closed. */
static bool receive(body *it) {
    static _Thread_local char buffer[65536];
    if (it->peer_fd < 0) return false;
    ssize_t n = recv(it->peer_fd, buffer, sizeof buffer, 0);
    if (n <= 0) return n < 0 && errno == EAGAIN;
    assert(it->received + n <= it->size);
    assert(!memcmp(buffer, content + it->start + it->received, (size_t)n));
    it->received += n;
    return true;
}

static bool is_allowed(const body *it, bs_stop stop) {
    if (stop == BS_DONE) return true;
    if (it->event == CANCEL) return stop == BS_CANCELLED;
    if (it->event == SPEAK) return stop == BS_READABLE;
    if (it->event == CLOSE) return stop == BS_READABLE || stop == BS_SOCKET_ERROR;
    return it->event == STALL && stop == BS_STALLED;
}

static void end(body *it) {
    assert(it->live && is_allowed(it, it->job.stop));
    assert((it->job.stop == BS_DONE) == (bs_sent(&it->job) == it->size));
    close(it->job.sock_fd); /* at once: the next body gets its number */
    if (it->feed_fd >= 0) {
        close(it->feed_fd);
        close(it->job.source_fd);
    }
    bool reads = it->peer_fd >= 0;
    while (receive(it)) {
    }
    assert(!reads || it->received == bs_sent(&it->job));
    if (reads) close(it->peer_fd);
    it->live = false;
}

static void drive(unsigned seed, int jobs, bool with_fork);

static void fork_child(unsigned seed) {
    pid_t pid = fork();
    int status;
    if (pid == 0) {
        drive(seed, CHILD_JOBS, false);
        _exit(0);
    }
    assert(waitpid(pid, &status, 0) == pid && status == 0);
}

static void drive(unsigned seed, int jobs, bool with_fork) {
    body *bodies = calloc(LIVE, sizeof *bodies);
    int started = 0, ended = 0;
    bs_home home;
    assert(!bs_open_home(&home));
    while (ended < jobs) {
        struct pollfd event = {.fd = home.event_fd, .events = POLLIN};
        for (body *it = bodies; it < bodies + LIVE; it++) {
            if (!it->live && started < jobs) {
                begin(&home, it, &seed);
                if (with_fork && ++started % JOBS_PER_CHILD == 0) fork_child(seed);
                else if (!with_fork) started++;
            }
            if (!it->live) continue;
            feed(it);
            bool deaf = it->acted && (it->event == STALL || it->event == CANCEL); /* only the event can end it then */
            if (!deaf) receive(it);
            if (!it->acted && it->received >= it->act_at) act(&home, it);
        }
        if (poll(&event, 1, 0) <= 0) continue;
        for (bs_job *job = bs_take_done(&home), *next; job; job = next) {
            next = job->next;
            end(job->owner);
            ended++;
        }
    }
    close(home.event_fd);
    free(bodies);
}

typedef struct {
    unsigned seed;
    int jobs;
    bool with_fork;
} order;

static void *drive_one(void *argument) {
    const order *it = argument;
    drive(it->seed, it->jobs, it->with_fork);
    return NULL;
}

int main(int argc, char **argv) {
    unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : 1;
    int jobs = argc > 2 ? atoi(argv[2]) : 1000;
    bool with_fork = argc > 3;
    pthread_t second;
    content_fd = memfd_create("content", MFD_CLOEXEC);
    assert(content_fd >= 0 && !ftruncate(content_fd, CONTENT_BYTES));
    uint64_t *words = mmap(NULL, CONTENT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, content_fd, 0);
    assert(words != MAP_FAILED);
    for (uint64_t i = 0; i < CONTENT_BYTES / 8; i++) words[i] = i;
    content = (const char *)words;
    order orders[2] = {{seed, jobs / 2, with_fork}, {seed + 1000003, jobs / 2, false}};
    assert(!pthread_create(&second, NULL, drive_one, &orders[1]));
    drive_one(&orders[0]);
    pthread_join(second, NULL);
    printf("%d jobs, seed %u: every byte where it belongs\n", jobs, seed);
    return 0;
}
