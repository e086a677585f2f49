/* What stands between a TLS session and the sender: plain bytes in, a batch of records out.
 *
 * The session fills the batch: with a body's records when the sender asks for them (`encrypt`), and with what the protocol has
 * to say by itself. Whoever sends takes from its front. A batch survives the job that was sending it: when an answer turns out
 * to be a ticket, the next job goes on in the middle of the record where the last one stopped.
 *
 * Used by one thread at a time: by the loop's, or by the worker of the one job that has it.
 * Another record layer puts its own `encrypt` here; kernel TLS needs none of this, its socket takes the plain paths.
 */
#ifndef ENGINE_BATCH_H
#define ENGINE_BATCH_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    BATCH_PLAIN = 64 * 1024,      /* read at once, whole records' worth: stays in the second-level cache until encrypted */
    BATCH_BODY = 240 * 1024,      /* 15 records: with their framing below TCP_NOTSENT_LOWAT, so that one send takes all */
    BATCH_ROOM = (256 + 16) * 1024, /* that with TLS 1.2's largest expansion, and some alerts */
    BATCH_MAX = 4 * BATCH_ROOM,     /* a peer that makes us talk (KeyUpdates) while it reads nothing is cut off here */
};

typedef struct batch {
    char *data;
    size_t room;
    size_t taken, filled; /* [taken, filled) awaits the socket */
    size_t from, to;      /* the records with body bytes in them; taken may be before, within or behind */
    int64_t payload;      /* body bytes in [from, to) */
    int64_t counted;      /* of these, how many count as sent */
    char *plain;          /* BATCH_PLAIN bytes, made when a file is first sent */
    bool (*encrypt)(struct batch *batch, const char *plain, size_t size);
    void *session;
} batch;

/* Called by the session for each record; false when there is no room. */
static inline bool batch_add(batch *b, const char *data, size_t size) {
    if (b->taken == b->filled && b->counted == b->payload) b->taken = b->filled = b->from = b->to = 0;
    if (b->filled + size > b->room) {
        size_t room = b->room ? 2 * b->room : BATCH_ROOM;
        while (room < b->filled + size) room *= 2;
        char *grown = room <= BATCH_MAX ? realloc(b->data, room) : NULL;
        if (!grown) return false;
        b->data = grown;
        b->room = room;
    }
    memcpy(b->data + b->filled, data, size);
    b->filled += size;
    return true;
}

static inline bool batch_needs_payload(const batch *b) { return b->counted == b->payload; }
static inline bool batch_is_sent(const batch *b) { return b->taken == b->filled; }

/* Before the first of a batch's `encrypt` calls. */
static inline void batch_begin(batch *b) {
    if (batch_is_sent(b)) b->taken = b->filled = 0;
    b->from = b->to = b->filled;
    b->payload = b->counted = 0;
}

static inline bool batch_encrypt(batch *b, const char *plain, size_t size) {
    if (!b->encrypt(b, plain, size)) return false;
    b->to = b->filled;
    b->payload += (int64_t)size;
    return true;
}

/* After `n` bytes were sent: how many more body bytes count as sent. Whole batches are exact, parts in proportion. */
static inline int64_t batch_take(batch *b, size_t n) {
    b->taken += n;
    int64_t now = b->taken >= b->to     ? b->payload
                  : b->taken <= b->from ? 0
                                        : b->payload * (int64_t)(b->taken - b->from) / (int64_t)(b->to - b->from);
    int64_t more = now - b->counted;
    b->counted = now;
    return more;
}

#endif
