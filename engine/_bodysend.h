/* Bodies leave here: worker threads that move bytes from a file, memory, a pipe or a socket into a socket.
 *
 * A job is one body on one socket. It belongs to a home (one per event loop), and while it runs to a worker. A worker
 * is a pthread that never touches Python; it runs one job while there are at most BS_MAX_WORKERS bodies, and above
 * that several, in turns of one step (BS_STEP bytes), so that none starves. All a worker ever waits in is one poll():
 * for its jobs' sockets (and empty sources), and for its wake_fd, which says that a job came or that one was cancelled.
 *
 * A finished job is put on its home's done list, and the home's event_fd tells the loop. Who may touch what:
 *   pool.lock    pool.*, worker.{inbox,load}, home.done, job.{worker,next}; and every write to a wake_fd or event_fd,
 *                so that neither is closed, and its number reused, between the decision to write and the write
 *   the worker   everything else of a job, from bs_submit until the job is on the done list
 *   anybody      job.sent (read), job.cancelled (set)
 * Memory: a job and its home belong to the caller, who keeps both until the job was taken from the done list.
 *
 * The caller's duty: sock_fd and source_fd stay open until then. A number closed earlier may be reused, and the body
 * would run into somebody else's connection.
 */
#ifndef ENGINE_BODYSEND_H
#define ENGINE_BODYSEND_H

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "_batch.h"

enum {
    BS_STEP = 256 * 1024,        /* bytes between two looks at the peer: what an early answer wastes at most, plus queue */
    BS_MAX_WORKERS = 64,         /* as many as connections by default (limits.MAX_CONNECTIONS) */
    BS_JOBS_PER_WORKER = 256,    /* 16,384 bodies at once: descriptors run out before */
    BS_STACK_BYTES = 256 * 1024, /* deepest frame: 6 KiB, in bs_work */
};

#ifndef BS_IDLE_MS /* the sanitizers' harness ends its workers all the time */
#define BS_IDLE_MS 2000 /* an idle worker ends after this */
#endif

typedef enum {
    BS_DONE,
    BS_READABLE,
    BS_STALLED,
    BS_CANCELLED,
    BS_SOURCE_ENDED,
    BS_SOCKET_ERROR,
    BS_SOURCE_ERROR,
    BS_WOULD_BLOCK,
} bs_stop;

typedef enum { BS_SENDFILE, BS_SEND, BS_SPLICE, BS_READ_SEND, BS_SEALED } bs_path;
typedef enum { BS_RUNNABLE, BS_ON_SOCKET, BS_ON_SOURCE, BS_ENDED } bs_state;

typedef struct bs_home {
    int event_fd;
    unsigned generation; /* of the pool it was made for: a fork makes both stale */
    struct bs_job *done;
} bs_home;

typedef struct bs_job {
    int sock_fd;   /* non-blocking; borrowed */
    int source_fd; /* file, pipe or socket; borrowed */
    const char *memory;
    int64_t offset; /* in the file, or into memory, of the next byte */
    int64_t left;   /* bytes still to send */
    int64_t stall_ms; /* 0: no limit */
    bs_path path;
    bool stream;          /* the source is a pipe or a socket: it may be empty for a while */
    batch *records;       /* BS_SEALED: what the body leaves as; of a file, or of memory when source_fd is -1 */
    bool until_end;       /* a stream of unknown length: its end is DONE, not SOURCE_ENDED */
    bool more;            /* something follows in the same segment: MSG_MORE on the last byte too */
    bool ignore_readable; /* the caller has read the peer's FIN: POLLIN and POLLRDHUP would be true for ever */

    bs_state state;
    bs_stop stop;
    int error;
    bool source_failed;   /* whose errno it is */
    bool corked;
    int64_t deadline_ms;  /* of the stall; 0: not waiting for the socket since the last byte */
    nfds_t source_slot;   /* in the worker's poll set; 0: not in it */
    char *copy;           /* BS_READ_SEND: BS_STEP bytes, of which those of a file in [copied, filled) await the socket */
    size_t copied, filled;

    _Atomic int64_t sent;
    atomic_bool cancelled;
    bs_home *home;
    struct bs_worker *worker; /* NULL: not running */
    struct bs_job *next;
    void *owner; /* the caller's, untouched */
} bs_job;

typedef struct bs_worker {
    int wake_fd;
    bs_job *inbox;
    size_t load;
} bs_worker;

static struct {
    pthread_mutex_t lock;
    unsigned generation;
    size_t count;
    bs_worker *workers[BS_MAX_WORKERS];
} bs_pool = {.lock = PTHREAD_MUTEX_INITIALIZER};

static inline int64_t bs_now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static inline void bs_signal(int event_fd) {
    const uint64_t one = 1;
    ssize_t n;
    do n = write(event_fd, &one, sizeof one);
    while (n < 0 && errno == EINTR);
}

static inline void bs_clear(int event_fd) {
    uint64_t count;
    ssize_t n;
    do n = read(event_fd, &count, sizeof count);
    while (n < 0 && errno == EINTR);
}

/* ---- one step of one body ---------------------------------------------------------------------------------------- */

static inline int64_t bs_sent(bs_job *job) { return atomic_load_explicit(&job->sent, memory_order_relaxed); }

/* Each sendfile and splice ends with a push, and 256 KiB are no multiple of the segment size: on loopback the small segment
 * that leaves with each step costs 10 % of the throughput (Linux 6.18). Nobody waits for it: more follows at once. */
static inline void bs_cork(bs_job *job, int on) {
    setsockopt(job->sock_fd, IPPROTO_TCP, TCP_CORK, &on, sizeof on); /* not TCP: nothing to cork */
    job->corked = on;
}

static inline bool bs_end(bs_job *job, bs_stop stop, int error) {
    if (job->corked) bs_cork(job, 0);
    free(job->copy);
    job->copy = NULL;
    job->stop = stop;
    job->error = error;
    job->state = BS_ENDED;
    return true;
}

static inline bool bs_has_copy(bs_job *job) {
    if (!job->copy) job->copy = malloc(BS_STEP);
    job->source_failed = !job->copy;
    return job->copy;
}

/* Bytes leave the source only when the socket took them, so that a job can end, and another go on, at any byte. A splice through
 * a pipe of our own would be cheaper, and what that pipe still held would be lost. */
static inline ssize_t bs_peek_send(bs_job *job, size_t want) {
    if (!bs_has_copy(job)) return -1;
    ssize_t n = recv(job->source_fd, job->copy, want, MSG_PEEK | MSG_DONTWAIT);
    if (n <= 0) {
        job->source_failed = n < 0 && errno != EAGAIN;
        return n;
    }
    n = send(job->sock_fd, job->copy, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL);
    for (ssize_t left = n; left > 0;) { /* TCP drops without copying; others copy what is there already */
        ssize_t taken = recv(job->source_fd, job->copy, (size_t)left, MSG_TRUNC | MSG_DONTWAIT);
        if (taken <= 0) break;
        left -= taken;
    }
    return n;
}

static inline ssize_t bs_read_send(bs_job *job, size_t want) {
    if (job->copied == job->filled) {
        if (!bs_has_copy(job)) return -1;
        ssize_t n;
        do n = pread(job->source_fd, job->copy, want, job->offset);
        while (n < 0 && errno == EINTR);
        if (n <= 0) {
            job->source_failed = n < 0;
            return n;
        }
        job->copied = 0;
        job->filled = (size_t)n;
    }
    ssize_t n = send(job->sock_fd, job->copy + job->copied, job->filled - job->copied, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) job->copied += (size_t)n;
    return n;
}

static inline ssize_t bs_splice(bs_job *job, size_t want) {
    size_t moved = 0;
    while (moved < want) {
        ssize_t n = splice(job->source_fd, NULL, job->sock_fd, NULL, want - moved, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        if (n <= 0) {
            if (moved) break;
            return n;
        }
        moved += (size_t)n;
    }
    return (ssize_t)moved;
}

static inline ssize_t bs_move(bs_job *job, size_t want) {
    switch (job->path) {
    case BS_SENDFILE: {
        off_t at = job->offset;
        return sendfile(job->sock_fd, job->source_fd, &at, want);
    }
    case BS_SEND: {
        /* The tail of a step would leave as a small segment; the next step fills it up. */
        int more = job->more || job->left > (int64_t)want ? MSG_MORE : 0;
        return send(job->sock_fd, job->memory + job->offset, want, MSG_DONTWAIT | MSG_NOSIGNAL | more);
    }
    case BS_SPLICE:
        return bs_splice(job, want);
    case BS_READ_SEND:
        return job->stream ? bs_peek_send(job, want) : bs_read_send(job, want);
    case BS_SEALED:
        break; /* has a step of its own */
    }
    return 0;
}

/* An empty source and a full socket are the same EAGAIN; one look at the source tells them apart. */
static inline bool bs_blocked(bs_job *job) {
    struct pollfd source = {.fd = job->source_fd, .events = POLLIN};
    if (job->stream && poll(&source, 1, 0) == 0) {
        job->state = BS_ON_SOURCE;
        job->deadline_ms = 0; /* a slow source is not a stalled peer */
        if (job->corked) bs_cork(job, 0);
        return false;
    }
    job->state = BS_ON_SOCKET;
    if (!job->stall_ms) return false;
    int64_t now_ms = bs_now_ms();
    if (!job->deadline_ms) job->deadline_ms = now_ms + job->stall_ms;
    return now_ms >= job->deadline_ms ? bs_end(job, BS_STALLED, 0) : false;
}

static inline bool bs_failed(bs_job *job, int error) {
    char byte;
    switch (error) {
    case EINTR:
        return false;
    case EAGAIN:
        if (!job->source_failed) return bs_blocked(job);
        break;
    case EINVAL:    /* a socket as source; files without splice_read: most of /proc, some FUSE and network filesystems */
    case ENOSYS:
    case EOVERFLOW: /* beyond the filesystem's s_maxbytes, which read does not ask */
        if (job->path != BS_SENDFILE && job->path != BS_SPLICE) break;
        job->path = BS_READ_SEND;
        return false;
    case EFAULT: /* memory that is gone: an mmap whose file was truncated */
        job->source_failed = job->path == BS_SEND;
        break;
    }
    /* sendfile does not say which side failed; reading alone does. */
    if (job->path == BS_SENDFILE && pread(job->source_fd, &byte, 1, job->offset) < 0) {
        error = errno;
        job->source_failed = true;
    }
    return bs_end(job, job->source_failed ? BS_SOURCE_ERROR : BS_SOCKET_ERROR, error);
}

/* Encrypts the next BATCH_BODY bytes; false when that ended the job. */
static inline bool bs_seal(bs_job *job) {
    batch *records = job->records;
    size_t want = job->left < BATCH_BODY ? (size_t)job->left : BATCH_BODY, done = 0;
    if (job->source_fd >= 0 && !records->plain && !(records->plain = malloc(BATCH_PLAIN)))
        return !bs_end(job, BS_SOURCE_ERROR, ENOMEM);
    batch_begin(records);
    while (done < want) {
        size_t size = want - done < BATCH_PLAIN ? want - done : BATCH_PLAIN;
        const char *plain = job->memory + job->offset + done;
        if (job->source_fd >= 0) {
            ssize_t n = pread(job->source_fd, records->plain, size, job->offset + (int64_t)done);
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0 && done) break; /* what was read leaves first */
            if (n <= 0) return !bs_end(job, n ? BS_SOURCE_ERROR : BS_SOURCE_ENDED, n ? errno : 0);
            plain = records->plain;
            size = (size_t)n;
        }
        if (!batch_encrypt(records, plain, size)) return !bs_end(job, BS_SOCKET_ERROR, EPROTO);
        done += size;
    }
    return true;
}

static inline bool bs_step_sealed(bs_job *job) {
    batch *records = job->records;
    job->state = BS_RUNNABLE;
    if (batch_needs_payload(records) && !bs_seal(job)) return true;
    int more = job->more || job->left > records->payload - records->counted ? MSG_MORE : 0;
    ssize_t n = send(job->sock_fd, records->data + records->taken, records->filled - records->taken,
                     MSG_DONTWAIT | MSG_NOSIGNAL | more);
    if (n < 0) return bs_failed(job, errno);
    int64_t body = batch_take(records, (size_t)n);
    job->offset += body;
    job->left -= body;
    job->deadline_ms = 0;
    atomic_store_explicit(&job->sent, bs_sent(job) + body, memory_order_relaxed);
    if (job->left == 0) return bs_end(job, BS_DONE, 0);
    return batch_is_sent(records) ? false : bs_blocked(job);
}

/* Sends at most BS_STEP bytes; true when the job has ended. */
static inline bool bs_step(bs_job *job) {
    if (job->path == BS_SEALED) return bs_step_sealed(job);
    size_t want = job->left < BS_STEP ? (size_t)job->left : BS_STEP;
    bool pushes = job->path == BS_SENDFILE || job->path == BS_SPLICE;
    if (pushes && !job->corked && job->left > BS_STEP) bs_cork(job, 1);
    ssize_t n = bs_move(job, want);
    job->state = BS_RUNNABLE;
    if (n < 0) return bs_failed(job, errno);
    if (n == 0) return bs_end(job, job->until_end ? BS_DONE : BS_SOURCE_ENDED, 0);
    job->offset += n;
    job->left -= n;
    job->deadline_ms = 0;
    atomic_store_explicit(&job->sent, bs_sent(job) + n, memory_order_relaxed);
    if (job->left == 0) return bs_end(job, BS_DONE, 0);
    /* Fewer than asked: the next call would say EAGAIN; wait in the poll that comes anyhow. */
    return (size_t)n < want ? bs_blocked(job) : false;
}

/* What a worker does with one job after each poll: `seen` are the socket's events; true when the job has ended. */
static inline bool bs_advance(bs_job *job, short seen, short source_seen) {
    const short broken = POLLERR | POLLHUP | POLLNVAL;
    if (job->left == 0) return bs_end(job, BS_DONE, 0);
    if (atomic_load_explicit(&job->cancelled, memory_order_relaxed)) return bs_end(job, BS_CANCELLED, 0);
    if (!job->ignore_readable && seen & (POLLIN | POLLRDHUP)) return bs_end(job, BS_READABLE, 0);
    if (job->state == BS_ON_SOURCE) {
        if (seen & broken) {
            int error = 0;
            socklen_t size = sizeof error;
            getsockopt(job->sock_fd, SOL_SOCKET, SO_ERROR, &error, &size);
            return bs_end(job, BS_SOCKET_ERROR, error ? error : EPIPE);
        }
        if (!source_seen) return false;
    } else if (job->state == BS_ON_SOCKET && !(seen & (POLLOUT | broken))) {
        return job->deadline_ms && bs_now_ms() >= job->deadline_ms ? bs_end(job, BS_STALLED, 0) : false;
    }
    return bs_step(job);
}

/* ---- on the loop's own thread, for small bodies -------------------------------------------------------------------- */

/* Whether reading would wait for a disk. Files that cannot tell (EOPNOTSUPP) count as cached. */
static inline bool bs_is_cold(bs_job *job) {
    char byte;
    struct iovec one = {.iov_base = &byte, .iov_len = 1};
    return (preadv2(job->source_fd, &one, 1, job->offset, RWF_NOWAIT) < 0 && errno == EAGAIN) ||
           (preadv2(job->source_fd, &one, 1, job->offset + job->left - 1, RWF_NOWAIT) < 0 && errno == EAGAIN);
}

/* Sends what can be sent without waiting. */
static inline void bs_send_now(bs_job *job, bool probe) {
    sigset_t pipe_only, before;
    const struct timespec at_once = {0};
    struct pollfd sock = {.fd = job->sock_fd, .events = POLLIN | POLLRDHUP};
    if (job->left == 0) {
        bs_end(job, BS_DONE, 0);
        return;
    }
    bool guarded = job->path == BS_SENDFILE;
    if ((guarded || (job->path == BS_SEALED && job->source_fd >= 0)) && bs_is_cold(job)) {
        bs_end(job, BS_WOULD_BLOCK, 0);
        return;
    }
    if (guarded) { /* sendfile has no MSG_NOSIGNAL, and an embedding program may have SIGPIPE at its default: death */
        sigemptyset(&pipe_only);
        sigaddset(&pipe_only, SIGPIPE);
        pthread_sigmask(SIG_BLOCK, &pipe_only, &before);
    }
    job->state = BS_RUNNABLE;
    while (job->state == BS_RUNNABLE) {
        if (probe && poll(&sock, 1, 0) > 0 && sock.revents & (POLLIN | POLLRDHUP)) bs_end(job, BS_READABLE, 0);
        else bs_step(job);
    }
    if (job->state != BS_ENDED) bs_end(job, BS_WOULD_BLOCK, 0);
    if (guarded && !sigismember(&before, SIGPIPE)) {
        if (job->stop != BS_DONE) /* a partial sendfile can leave one too */
            while (sigtimedwait(&pipe_only, NULL, &at_once) < 0 && errno == EINTR);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
}

/* ---- workers --------------------------------------------------------------------------------------------------------- */

static inline nfds_t bs_watch(bs_worker *worker, bs_job **jobs, size_t count, struct pollfd *set, int *timeout_ms) {
    nfds_t slots = 1 + count;
    int64_t first = INT64_MAX;
    bool runnable = false;
    set[0] = (struct pollfd){.fd = worker->wake_fd, .events = POLLIN};
    for (size_t i = 0; i < count; i++) {
        bs_job *job = jobs[i];
        short events = job->ignore_readable ? 0 : POLLIN | POLLRDHUP;
        job->source_slot = 0;
        if (job->state == BS_RUNNABLE) runnable = true;
        if (job->state == BS_ON_SOCKET) {
            events |= POLLOUT;
            if (job->deadline_ms && job->deadline_ms < first) first = job->deadline_ms;
        }
        if (job->state == BS_ON_SOURCE) {
            job->source_slot = slots;
            set[slots++] = (struct pollfd){.fd = job->source_fd, .events = POLLIN};
        }
        set[1 + i] = (struct pollfd){.fd = job->sock_fd, .events = events};
    }
    if (runnable) *timeout_ms = 0;
    else if (count == 0) *timeout_ms = BS_IDLE_MS;
    else if (first == INT64_MAX) *timeout_ms = -1;
    else {
        int64_t wait = first - bs_now_ms();
        *timeout_ms = wait < 0 ? 0 : wait > INT32_MAX ? INT32_MAX : (int)wait;
    }
    return slots;
}

static inline size_t bs_take_inbox(bs_worker *worker, bs_job **jobs, size_t count) {
    bs_clear(worker->wake_fd);
    pthread_mutex_lock(&bs_pool.lock);
    for (bs_job *job = worker->inbox; job; job = job->next) jobs[count++] = job;
    worker->inbox = NULL;
    pthread_mutex_unlock(&bs_pool.lock);
    return count;
}

/* After this the job belongs to the loop again; the worker must not look at it. */
static inline void bs_deliver(bs_worker *worker, bs_job *job) {
    pthread_mutex_lock(&bs_pool.lock);
    worker->load--;
    job->worker = NULL;
    if (!job->home->done) bs_signal(job->home->event_fd);
    job->next = job->home->done;
    job->home->done = job;
    pthread_mutex_unlock(&bs_pool.lock);
}

static inline bool bs_retire(bs_worker *worker) {
    pthread_mutex_lock(&bs_pool.lock);
    bool idle = worker->load == 0;
    if (idle) {
        size_t i = 0;
        while (bs_pool.workers[i] != worker) i++;
        bs_pool.workers[i] = bs_pool.workers[--bs_pool.count];
        close(worker->wake_fd);
        free(worker);
    }
    pthread_mutex_unlock(&bs_pool.lock);
    return idle;
}

static void *bs_work(void *argument) {
    bs_worker *worker = argument;
    bs_job *jobs[BS_JOBS_PER_WORKER];
    struct pollfd set[1 + 2 * BS_JOBS_PER_WORKER];
    size_t count = 0;
    for (;;) {
        int timeout_ms;
        nfds_t slots = bs_watch(worker, jobs, count, set, &timeout_ms);
        int ready = poll(set, slots, timeout_ms);
        if (ready < 0) continue; /* ENOMEM; no signal reaches this thread */
        if (ready == 0 && count == 0 && bs_retire(worker)) return NULL;
        size_t polled = count;
        if (set[0].revents) count = bs_take_inbox(worker, jobs, count); /* its lock makes `cancelled` visible too */
        for (size_t i = polled; i-- > 0;) {
            short source_seen = jobs[i]->source_slot ? set[jobs[i]->source_slot].revents : 0;
            if (!bs_advance(jobs[i], set[1 + i].revents, source_seen)) continue;
            bs_deliver(worker, jobs[i]);
            jobs[i] = jobs[--count];
        }
    }
}

static inline bs_worker *bs_start_worker(void) {
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_t thread;
    char name[16];
    bs_worker *worker = calloc(1, sizeof *worker);
    if (!worker) return NULL;
    worker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (worker->wake_fd < 0) {
        free(worker);
        return NULL;
    }
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
#ifndef BS_DEFAULT_STACK /* sanitizers need more */
    pthread_attr_setstacksize(&attributes, BS_STACK_BYTES);
#endif
    sigfillset(&all); /* SIGPIPE above all, and no handler of the program's may run here */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, &attributes, bs_work, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (error) {
        close(worker->wake_fd);
        free(worker);
        errno = error;
        return NULL;
    }
    snprintf(name, sizeof name, "bodysend-%zu", bs_pool.count);
    pthread_setname_np(thread, name);
    bs_pool.workers[bs_pool.count++] = worker;
    return worker;
}

/* An idle worker, else a new one, else the one with the fewest jobs. */
static inline bs_worker *bs_pick_worker(void) {
    bs_worker *best = NULL;
    for (size_t i = 0; i < bs_pool.count; i++)
        if (!best || bs_pool.workers[i]->load < best->load) best = bs_pool.workers[i];
    if (best && best->load == 0) return best;
    if (bs_pool.count < BS_MAX_WORKERS) {
        bs_worker *started = bs_start_worker();
        if (started) return started;
    }
    if (best && best->load >= BS_JOBS_PER_WORKER) {
        errno = EAGAIN;
        return NULL;
    }
    return best;
}

/* ---- what the loop's thread calls ---------------------------------------------------------------------------------- */

static void bs_before_fork(void) { pthread_mutex_lock(&bs_pool.lock); }
static void bs_after_fork_in_parent(void) { pthread_mutex_unlock(&bs_pool.lock); }

/* The child has none of the threads: it forgets them, and every home made before is stale. */
static void bs_after_fork_in_child(void) {
    for (size_t i = 0; i < bs_pool.count; i++) {
        close(bs_pool.workers[i]->wake_fd);
        free(bs_pool.workers[i]);
    }
    bs_pool.count = 0;
    bs_pool.generation++;
    pthread_mutex_unlock(&bs_pool.lock);
}

static void bs_watch_forks(void) { pthread_atfork(bs_before_fork, bs_after_fork_in_parent, bs_after_fork_in_child); }

/* 0, or an errno. */
static inline int bs_open_home(bs_home *home) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, bs_watch_forks);
    home->done = NULL;
    home->generation = bs_pool.generation;
    home->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return home->event_fd < 0 ? errno : 0;
}

static inline bool bs_is_stale(const bs_home *home) { return home->generation != bs_pool.generation; }

/* 0, or an errno: no thread could be started, or too many bodies at once. */
static inline int bs_submit(bs_home *home, bs_job *job) {
    pthread_mutex_lock(&bs_pool.lock);
    bs_worker *worker = bs_pick_worker();
    int error = worker ? 0 : errno;
    if (worker) {
        job->home = home;
        job->worker = worker;
        job->next = worker->inbox;
        worker->inbox = job;
        worker->load++;
        bs_signal(worker->wake_fd);
    }
    pthread_mutex_unlock(&bs_pool.lock);
    return error;
}

/* The outcome still comes by the done list: CANCELLED, or what came first. */
static inline void bs_cancel(bs_job *job) {
    atomic_store_explicit(&job->cancelled, true, memory_order_relaxed);
    pthread_mutex_lock(&bs_pool.lock);
    if (job->worker) bs_signal(job->worker->wake_fd);
    pthread_mutex_unlock(&bs_pool.lock);
}

/* The finished jobs, latest first. */
static inline bs_job *bs_take_done(bs_home *home) {
    bs_clear(home->event_fd);
    pthread_mutex_lock(&bs_pool.lock);
    bs_job *done = home->done;
    home->done = NULL;
    pthread_mutex_unlock(&bs_pool.lock);
    return done;
}

static inline void bs_wait_done(const bs_home *home) {
    struct pollfd event = {.fd = home->event_fd, .events = POLLIN};
    poll(&event, 1, -1);
}

#endif
