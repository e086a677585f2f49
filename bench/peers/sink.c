/* An S3-shaped server that throws bodies away as cheaply as the kernel allows, so that the client is what is measured.
 *
 *   sink discard|digest CPU|- PEM|- SCENARIO…
 *
 * Prints one line of JSON with a port for each SCENARIO, on 127.0.0.1, a thread for each connection; ends when its stdin does.
 * Lines on stdin: "reset" forgets all counts; "report" prints them, one object a port, and the CPU seconds since the reset.
 *
 *   store              takes everything; 100 at once
 *   raw                no HTTP: reads until the other side ends its half, then closes
 *   redirect:N         PUT: 307 to the Nth port, before the body          redirect-mid:N   after MID_BYTES of it
 *   region:NAME        301 without Location unless signed for region NAME
 *   denied, exists     PUT: 403, 412 before the body
 *   busy               PUT: 503 at the first try of each name
 *   slow, silent       100 after SLOW_S; never
 *
 * discard: bodies are counted, not looked at: recv(MSG_TRUNC) on plain connections; on TLS 1.3 records that lie wholly inside a
 * body are skipped by their headers, undecrypted, and the rest is opened with the keys of the handshake that OpenSSL made. (On
 * TLS 1.2 all is decrypted.) digest: everything is read, and each object's CRC-32 is kept.
 *
 * An answer before the end of a body says Connection: close; what still comes is read and counted until the client leaves, as
 * servers with a lingering close do.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/ssl.h>
#endif

enum { PORTS_MAX = 16, BUFFER = 256 << 10, RECORD_MAX = 5 + (16 << 10) + 256, OBJECTS = 1 << 14, PATH_SHOWN = 200 };
enum { MID_BYTES = 8 << 20, SLOW_S = 2, LINGER_S = 5, SHORT_RECORD = 64 /* may be an alert */ };
enum Scenario { STORE, RAW, REDIRECT, REDIRECT_MID, REGION, DENIED, EXISTS, BUSY, SLOW, SILENT };

static const char *const NAMES[] = {"store", "raw",    "redirect", "redirect-mid", "region",
                                    "denied", "exists", "busy",     "slow",         "silent"};

/* Over the body, as the fields of a PUT tell. */
static const char *const HASHES[] = {"sha256", "md5", "crc32", "crc32c", "crc64nvme", "sha1"};

typedef struct {
    enum Scenario scenario;
    const char *argument;
    int listener, number;
    atomic_llong wire, stored_bytes, stored, completed, refused, refused_bytes, aborted_bytes, connections, open, lingering, asked, hashes;
} Port;

typedef struct {
    char path[PATH_SHOWN];
    uint64_t hash;
    int64_t size;
    uint32_t crc;
    int tries;
    bool there;
} Object;

typedef struct {
    int fd;
    Port *port;
    char *buffer; /* plain text: [at, have) waits to be read */
    size_t at, have;
#ifdef WITH_TLS
    SSL *tls;
    BIO *in, *out;
    EVP_CIPHER_CTX *opener; /* NULL: OpenSSL decrypts */
    char secret[65];
    unsigned char iv[12];
    uint64_t number; /* of the next record */
    unsigned char *raw; /* as received: [raw_at, raw_have) */
    size_t raw_at, raw_have, raw_skip;
#endif
} Connection;

typedef struct {
    char method[8], target[4096];
    int64_t length;
    bool chunked, aws_chunked, expects, closes, in_region;
    unsigned hashes; /* bits, of HASHES */
} Request;

typedef struct {
    int64_t left; /* of the HTTP body, or of its current chunk */
    bool chunked, aws, started, over;
    int64_t aws_left, bytes;
    uint32_t crc;
} Body;

static Port ports[PORTS_MAX];
static int port_count;
static bool digest;
static Object objects[OBJECTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t crc_table[8][256];
static struct rusage usage_then;
#ifdef WITH_TLS
static SSL_CTX *context;
#endif

/* --- CRC-32 of zlib, eight bytes a step ---------------------------------------------------------------------------- */

static void crc_prepare(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
        crc_table[0][i] = crc;
    }
    for (int t = 1; t < 8; t++)
        for (int i = 0; i < 256; i++) crc_table[t][i] = crc_table[t - 1][i] >> 8 ^ crc_table[0][crc_table[t - 1][i] & 255];
}

static uint32_t crc_update(uint32_t crc, const char *data, size_t size) {
    const unsigned char *p = (const unsigned char *)data;
    crc = ~crc;
    for (; size >= 8; size -= 8, p += 8) {
        uint64_t eight;
        memcpy(&eight, p, 8);
        eight = le64toh(eight) ^ crc;
        crc = 0;
        for (int i = 0; i < 8; i++) crc ^= crc_table[7 - i][eight >> 8 * i & 255];
    }
    for (; size; size--, p++) crc = crc >> 8 ^ crc_table[0][(crc ^ *p) & 255];
    return ~crc;
}

/* --- bytes in and out ---------------------------------------------------------------------------------------------- */

static ssize_t receive(Connection *c, void *buffer, size_t size, int flags) {
    ssize_t n;
    do n = recv(c->fd, buffer, size, flags);
    while (n < 0 && errno == EINTR);
    if (n > 0) atomic_fetch_add(&c->port->wire, n);
    return n;
}

static bool send_all(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
        if (n <= 0) return false;
        data += n;
        size -= (size_t)n;
    }
    return true;
}

#ifdef WITH_TLS
static bool flush_tls(Connection *c) {
    char piece[BUFFER / 8];
    int n;
    while ((n = BIO_read(c->out, piece, sizeof piece)) > 0)
        if (!send_all(c->fd, piece, (size_t)n)) return false;
    return true;
}

/* One whole record at c->raw + c->raw_at; its length without the header, or -1. */
static int whole_record(Connection *c, bool header_only) {
    for (;;) {
        if (c->raw_skip) {
            size_t step = c->raw_have - c->raw_at < c->raw_skip ? c->raw_have - c->raw_at : c->raw_skip;
            c->raw_at += step;
            c->raw_skip -= step;
        }
        size_t have = c->raw_have - c->raw_at;
        const unsigned char *p = c->raw + c->raw_at;
        if (have >= 5 && !c->raw_skip) {
            size_t length = (size_t)p[3] << 8 | p[4];
            if (length + 5 > RECORD_MAX) return -1;
            if (header_only || have >= 5 + length) return (int)length;
        }
        if (c->raw_at) memmove(c->raw, p, have);
        c->raw_at = 0;
        c->raw_have = have;
        ssize_t n = receive(c, c->raw + have, BUFFER - have, 0);
        if (n <= 0) return -1;
        c->raw_have += (size_t)n;
    }
}

/* Content of one record of TLS 1.3 into the buffer: AEAD over the header, the record's number in the nonce (RFC 8446, 5.2 f). */
static bool open_record(Connection *c, int length) {
    unsigned char nonce[12], *record = c->raw + c->raw_at, *out = (unsigned char *)c->buffer + c->have;
    int n, size = length - 16;
    memcpy(nonce, c->iv, sizeof nonce);
    for (int i = 0; i < 8; i++) nonce[11 - i] ^= (unsigned char)(c->number >> 8 * i);
    c->number++;
    c->raw_at += 5 + (size_t)length;
    if (size < 1 || record[0] != 23) return size >= 1 || record[0] == 20;
    if (!EVP_DecryptInit_ex(c->opener, NULL, NULL, NULL, nonce) || !EVP_DecryptUpdate(c->opener, NULL, &n, record, 5) ||
        !EVP_DecryptUpdate(c->opener, out, &n, record + 5, size) ||
        !EVP_CIPHER_CTX_ctrl(c->opener, EVP_CTRL_AEAD_SET_TAG, 16, record + 5 + size) ||
        EVP_DecryptFinal_ex(c->opener, out + n, &n) != 1)
        return false;
    while (size && !out[size - 1]) size--; /* padding */
    if (!size || out[size - 1] != 23) return false; /* an alert: the client leaves */
    c->have += (size_t)(size - 1);
    return true;
}

static bool fill_tls(Connection *c) {
    if (c->opener) {
        int length = whole_record(c, false);
        return length >= 0 && open_record(c, length);
    }
    for (;;) {
        int n = SSL_read(c->tls, c->buffer + c->have, (int)(BUFFER - c->have));
        if (n > 0) return c->have += (size_t)n, true;
        if (SSL_get_error(c->tls, n) != SSL_ERROR_WANT_READ || !flush_tls(c)) return false;
        int length = whole_record(c, false);
        if (length < 0) return false;
        BIO_write(c->in, c->raw + c->raw_at, length + 5);
        c->raw_at += 5 + (size_t)length;
    }
}

static void keep_secret(const SSL *tls, const char *line) {
    Connection *c = SSL_get_app_data(tls);
    if (!strncmp(line, "CLIENT_TRAFFIC_SECRET_0 ", 24) && strrchr(line, ' '))
        snprintf(c->secret, sizeof c->secret, "%s", strrchr(line, ' ') + 1);
}

/* HKDF-Expand-Label of RFC 8446, 7.1, for outputs of one block and no context. */
static void expand(const unsigned char *secret, const char *label, unsigned char *out, size_t size) {
    unsigned char info[32] = {0, (unsigned char)size, (unsigned char)(6 + strlen(label))}, block[32];
    size_t n = 3 + (size_t)sprintf((char *)info + 3, "tls13 %s", label);
    info[n++] = 0;
    info[n++] = 1;
    HMAC(EVP_sha256(), secret, 32, info, n, block, NULL);
    memcpy(out, block, size);
}

static bool shake_hands(Connection *c) {
    c->raw = malloc(BUFFER);
    c->tls = SSL_new(context);
    c->in = BIO_new(BIO_s_mem());
    c->out = BIO_new(BIO_s_mem());
    SSL_set_bio(c->tls, c->in, c->out);
    SSL_set_app_data(c->tls, c);
    for (int done; (done = SSL_accept(c->tls)) != 1;) {
        if (SSL_get_error(c->tls, done) != SSL_ERROR_WANT_READ) return flush_tls(c), false;
        int length = flush_tls(c) ? whole_record(c, false) : -1;
        if (length < 0) return false;
        BIO_write(c->in, c->raw + c->raw_at, length + 5); /* a record at a time: what follows is not OpenSSL's to read */
        c->raw_at += 5 + (size_t)length;
    }
    if (!flush_tls(c)) return false;
    if (SSL_version(c->tls) == TLS1_3_VERSION && strlen(c->secret) == 64) {
        unsigned char secret[32], key[16];
        for (int i = 0; i < 32; i++) sscanf(c->secret + 2 * i, "%2hhx", &secret[i]);
        expand(secret, "key", key, sizeof key);
        expand(secret, "iv", c->iv, sizeof c->iv);
        c->opener = EVP_CIPHER_CTX_new();
        EVP_DecryptInit_ex(c->opener, EVP_aes_128_gcm(), NULL, key, NULL);
    }
    return true;
}
#endif

/* More plain text into the buffer; false at the end. */
static bool fill(Connection *c) {
    if (c->at) memmove(c->buffer, c->buffer + c->at, c->have - c->at);
    c->have -= c->at;
    c->at = 0;
#ifdef WITH_TLS
    if (c->tls) {
        if (BUFFER - c->have < RECORD_MAX) return false;
        size_t had = c->have;
        while (c->have == had)
            if (!fill_tls(c)) return false;
        return true;
    }
#endif
    ssize_t n = receive(c, c->buffer + c->have, BUFFER - c->have, 0);
    if (n <= 0) return false;
    c->have += (size_t)n;
    return true;
}

/* Drops up to `size` bytes without looking at them; how many, 0 at the end. */
static int64_t drop(Connection *c, int64_t size) {
    int64_t waiting = (int64_t)(c->have - c->at);
    if (waiting) {
        int64_t n = waiting < size ? waiting : size;
        c->at += (size_t)n;
        return n;
    }
#ifdef WITH_TLS
    if (c->tls) {
        int length = c->opener ? whole_record(c, true) : -1;
        if (c->opener && length < 0) return 0;
        if (length > SHORT_RECORD && length - 17 <= size) {
            c->number++;
            c->raw_skip = 5 + (size_t)length;
            return length - 17;
        }
        return fill(c) ? drop(c, size) : 0;
    }
#endif
    ssize_t n = receive(c, NULL, size < 4 << 20 ? (size_t)size : 4 << 20, MSG_TRUNC);
    return n < 0 ? 0 : n;
}

static bool answer(Connection *c, const char *data, size_t size) {
#ifdef WITH_TLS
    if (c->tls) return SSL_write(c->tls, data, (int)size) == (int)size && flush_tls(c);
#endif
    return send_all(c->fd, data, size);
}

/* --- requests ------------------------------------------------------------------------------------------------------ */

static bool is(const char *line, const char *name, const char **value) {
    size_t n = strlen(name);
    if (strncasecmp(line, name, n) || line[n] != ':') return false;
    *value = line + n + 1 + strspn(line + n + 1, " \t");
    return true;
}

static unsigned hash_bit(const char *name) {
    for (unsigned i = 0; i < sizeof HASHES / sizeof *HASHES; i++)
        if (!strncasecmp(name, HASHES[i], strlen(HASHES[i])) && strcspn(name, ": ,") == strlen(HASHES[i])) return 1u << i;
    return 0;
}

/* Fields that tell which hashes the client computed over the body. */
static unsigned hashes_told(const char *line) {
    const char *value;
    if (is(line, "x-amz-content-sha256", &value))
        return strncmp(value, "UNSIGNED", 8) && strncmp(value, "STREAMING-UNSIGNED", 18) ? hash_bit("sha256") : 0;
    if (is(line, "content-md5", &value) || is(line, "x-amz-meta-md5chksum", &value)) return hash_bit("md5");
    if (is(line, "x-amz-trailer", &value) && !strncasecmp(value, "x-amz-checksum-", 15)) return hash_bit(value + 15);
    return strncasecmp(line, "x-amz-checksum-", 15) ? 0 : hash_bit(line + 15);
}

/* False when the client left, or sent what is no request. */
static bool read_head(Connection *c, Request *request) {
    char *end, *save = NULL;
    while (!(end = memmem(c->buffer + c->at, c->have - c->at, "\r\n\r\n", 4)))
        if (c->have - c->at > BUFFER / 2 || !fill(c)) return false;
    char *head = c->buffer + c->at;
    *end = 0;
    c->at = (size_t)(end + 4 - c->buffer);
    memset(request, 0, sizeof *request);
    char *line = strtok_r(head, "\r\n", &save);
    if (!line || sscanf(line, "%7s %4095s", request->method, request->target) != 2) return false;
    while ((line = strtok_r(NULL, "\r\n", &save))) {
        const char *value;
        request->hashes |= hashes_told(line);
        if (is(line, "content-length", &value)) request->length = strtoll(value, NULL, 10);
        else if (is(line, "transfer-encoding", &value)) request->chunked = strcasestr(value, "chunked");
        else if (is(line, "content-encoding", &value)) request->aws_chunked |= strcasestr(value, "aws-chunked") != NULL;
        else if (is(line, "x-amz-content-sha256", &value)) request->aws_chunked |= !strncmp(value, "STREAMING-", 10);
        else if (is(line, "expect", &value)) request->expects = strcasestr(value, "100-continue");
        else if (is(line, "connection", &value)) request->closes = strcasestr(value, "close");
        else if (is(line, "authorization", &value) && c->port->scenario == REGION) {
            char scope[128];
            snprintf(scope, sizeof scope, "/%s/s3/aws4_request", c->port->argument);
            request->in_region = strstr(value, scope);
        }
    }
    if (request->length || request->chunked) atomic_fetch_or(&c->port->hashes, request->hashes);
    return true;
}

/* The next byte of the connection, -1 at its end. */
static int wire_byte(Connection *c) {
    if (c->at == c->have && !fill(c)) return -1;
    return (unsigned char)c->buffer[c->at++];
}

/* How much of the HTTP body lies ahead in one piece; 0: it is over; -1: the client left. */
static int64_t span(Connection *c, Body *body) {
    if (body->left || body->over) return body->over ? 0 : body->left;
    if (!body->chunked) return body->over = true, 0;
    int byte, digits = 0;
    if (body->started && (wire_byte(c) != '\r' || wire_byte(c) != '\n')) return -1;
    body->started = true;
    while ((byte = wire_byte(c)) != '\n') {
        if (byte < 0) return -1;
        const char *hex = digits >= 0 ? strchr("0123456789abcdef", byte | 0x20) : NULL;
        if (hex && byte > ' ') body->left = body->left << 4 | (hex - "0123456789abcdef");
        digits = hex && byte > ' ' ? digits + 1 : -1; /* an extension is not read */
    }
    if (body->left) return body->left;
    for (int in_line = 0; (byte = wire_byte(c)) != '\n' || in_line; in_line = byte == '\n' ? 0 : byte == '\r' ? in_line : 1)
        if (byte < 0) return -1;
    return body->over = true, 0;
}

/* The next byte of the HTTP body: -1 when there is none. */
static int body_byte(Connection *c, Body *body) {
    if (span(c, body) <= 0) return -1;
    body->left--;
    return wire_byte(c);
}

/* How much of the object lies ahead in one piece, inside aws-chunked framing if there is one; as span(). */
static int64_t object_span(Connection *c, Body *body) {
    int64_t ahead = span(c, body);
    if (!body->aws || ahead <= 0) return ahead;
    if (!body->aws_left) {
        int byte, framed = 1;
        while ((byte = body_byte(c, body)) != '\n') {
            const char *hex = framed ? strchr("0123456789abcdef", byte | 0x20) : NULL;
            if (byte < 0) return span(c, body) ? -1 : 0;
            if (hex && byte > ' ') body->aws_left = body->aws_left << 4 | (hex - "0123456789abcdef");
            else framed = byte == '\r';
        }
        if (!body->aws_left) {
            while (body_byte(c, body) >= 0);
            return span(c, body) ? -1 : 0;
        }
        ahead = span(c, body);
    }
    return ahead > body->aws_left ? body->aws_left : ahead;
}

/* Reads up to `most` bytes of the object. 1: its end, 0: `most` was reached, -1: the client left. */
static int read_body(Connection *c, Body *body, int64_t most) {
    while (body->bytes < most) {
        int64_t ahead = object_span(c, body), n;
        if (ahead <= 0) return ahead ? -1 : 1;
        if (ahead > most - body->bytes) ahead = most - body->bytes;
        if (digest) {
            if (c->at == c->have && !fill(c)) return -1;
            n = (int64_t)(c->have - c->at) < ahead ? (int64_t)(c->have - c->at) : ahead;
            body->crc = crc_update(body->crc, c->buffer + c->at, (size_t)n);
            c->at += (size_t)n;
        } else if ((n = drop(c, ahead)) <= 0) return -1;
        body->bytes += n;
        body->left -= n;
        if (body->aws && !(body->aws_left -= n))
            if (body_byte(c, body) != '\r' || body_byte(c, body) != '\n') return -1;
    }
    return 0;
}

/* --- what is there ------------------------------------------------------------------------------------------------- */

/* The entry of a name, made when it was not there. Call with the lock held. */
static Object *object_of(const char *target) {
    uint64_t hash = 1469598103934665603u;
    size_t size = strcspn(target, "?");
    for (size_t i = 0; i < size; i++) hash = (hash ^ (unsigned char)target[i]) * 1099511628211u;
    Object *object = &objects[hash % OBJECTS];
    for (int probe = 0; probe < 64 && object->hash && object->hash != hash; probe++)
        object = &objects[(hash + (uint64_t)probe + 1) % OBJECTS];
    if (object->hash != hash) {
        memset(object, 0, sizeof *object);
        object->hash = hash;
        snprintf(object->path, sizeof object->path, "%.*s", (int)size, target);
    }
    return object;
}

static bool reply(Connection *c, const char *status, const char *fields, const char *xml, bool closes, bool bodyless) {
    char text[8192], date[64];
    time_t now = time(NULL);
    struct tm tm;
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&now, &tm));
    int n = snprintf(text, sizeof text,
                     "HTTP/1.1 %s\r\nx-amz-id-2: c2luaw==\r\nx-amz-request-id: 318BC8BC148832E5\r\nDate: %s\r\n%s%s"
                     "%sContent-Length: %zu\r\nServer: sink\r\n\r\n%s",
                     status, date, fields, closes ? "Connection: close\r\n" : "",
                     *xml ? "Content-Type: application/xml\r\n" : "", strlen(xml), bodyless ? "" : xml);
    return n < (int)sizeof text && answer(c, text, (size_t)n);
}

static bool reply_object(Connection *c, const char *status, const char *fields, bool closes) {
    return reply(c, status, fields, "", closes, false);
}

/* What comes after a refusal is read and counted until the client leaves. */
static void linger(Connection *c) {
    struct timeval patience = {.tv_sec = LINGER_S};
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
#ifdef WITH_TLS
    if (c->tls) {
        SSL_shutdown(c->tls);
        flush_tls(c);
    }
#endif
    shutdown(c->fd, SHUT_WR);
    for (int64_t n; (n = drop(c, INT64_MAX)) > 0;) atomic_fetch_add(&c->port->refused_bytes, n);
}

static bool refuse(Connection *c, const Request *request, const char *status, const char *code, const char *fields) {
    char xml[1024];
    snprintf(xml, sizeof xml,
             "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code><Message>%s</Message>%s"
             "<RequestId>318BC8BC148832E5</RequestId></Error>",
             code, status, c->port->scenario == REGION ? "<Endpoint>127.0.0.1</Endpoint>" : "");
    bool has_body = request->length || request->chunked;
    atomic_fetch_add(&c->port->refused, 1);
    atomic_fetch_add(&c->port->lingering, has_body);
    if (reply(c, status, fields, xml, has_body, !strcmp(request->method, "HEAD")) && has_body) linger(c);
    atomic_fetch_sub(&c->port->lingering, has_body);
    return !has_body;
}

/* 1: go on, 0: the connection is over, -1: refused, and the connection can go on. */
static int refusal(Connection *c, const Request *request, Body *body) {
    char fields[5000];
    Port *port = c->port;
    bool is_put = !strcmp(request->method, "PUT");
    if (port->scenario == REGION && !request->in_region) {
        snprintf(fields, sizeof fields, "x-amz-bucket-region: %s\r\n", port->argument);
        return refuse(c, request, "301 Moved Permanently", "PermanentRedirect", fields) ? -1 : 0;
    }
    if (!is_put) return 1;
    if (port->scenario == REDIRECT_MID) {
        if (request->expects && !answer(c, "HTTP/1.1 100 Continue\r\n\r\n", 25)) return 0;
        int got = read_body(c, body, MID_BYTES);
        atomic_fetch_add(&port->refused_bytes, body->bytes);
        if (got < 0) return 0;
    }
    if (port->scenario == REDIRECT || port->scenario == REDIRECT_MID) {
        bool tls = false;
#ifdef WITH_TLS
        tls = c->tls != NULL;
#endif
        snprintf(fields, sizeof fields, "Location: http%s://127.0.0.1:%d%s\r\n", tls ? "s" : "",
                 ports[atoi(port->argument)].number, request->target);
        return refuse(c, request, "307 Temporary Redirect", "TemporaryRedirect", fields) ? -1 : 0;
    }
    if (port->scenario == DENIED) return refuse(c, request, "403 Forbidden", "AccessDenied", "") ? -1 : 0;
    if (port->scenario == EXISTS) return refuse(c, request, "412 Precondition Failed", "PreconditionFailed", "") ? -1 : 0;
    if (port->scenario == BUSY) {
        pthread_mutex_lock(&lock);
        bool first = !object_of(request->target)->tries++;
        pthread_mutex_unlock(&lock);
        if (first) return refuse(c, request, "503 Slow Down", "SlowDown", "") ? -1 : 0;
    }
    return 1;
}

static bool reply_store(Connection *c, const Request *request, const Body *body) {
    const char *query = strchr(request->target, '?') ? strchr(request->target, '?') : "";
    static const char etag[] = "ETag: \"9b2cf535f27731c974343645a3985328-1\"\r\n"; /* no MD5: rclone compares those */
    char text[6000];
    Object *object;
    if (!strcmp(request->method, "PUT")) {
        pthread_mutex_lock(&lock);
        object = object_of(request->target);
        object->size = strstr(query, "partNumber=") ? object->size + body->bytes : body->bytes;
        object->crc = body->crc;
        object->there = true;
        pthread_mutex_unlock(&lock);
        atomic_fetch_add(&c->port->stored_bytes, body->bytes);
        if (!strstr(query, "partNumber=")) atomic_fetch_add(&c->port->stored, 1);
        return reply_object(c, "200 OK", etag, request->closes);
    }
    if (!strcmp(request->method, "POST") && strstr(query, "uploads")) {
        pthread_mutex_lock(&lock);
        object_of(request->target)->size = 0;
        pthread_mutex_unlock(&lock);
        snprintf(text, sizeof text,
                 "<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>%.*s</Key><UploadId>%llx</UploadId>"
                 "</InitiateMultipartUploadResult>",
                 (int)strcspn(request->target + 1, "?"), request->target + 1,
                 (unsigned long long)atomic_fetch_add(&c->port->asked, 1) + 0x1000);
        return reply(c, "200 OK", "", text, request->closes, false);
    }
    if (!strcmp(request->method, "POST") && strstr(query, "uploadId=")) {
        atomic_fetch_add(&c->port->completed, 1);
        return reply(c, "200 OK", "",
                     "<CompleteMultipartUploadResult><Location>http://127.0.0.1/bucket/key</Location><Bucket>bucket</Bucket>"
                     "<Key>key</Key><ETag>&quot;9b2cf535f27731c974343645a3985328-1&quot;</ETag></CompleteMultipartUploadResult>",
                     request->closes, false);
    }
    if (!strcmp(request->method, "DELETE")) return reply_object(c, "204 No Content", "", request->closes);
    if (!strcmp(request->method, "GET") && strstr(query, "location"))
        return reply(c, "200 OK", "", "<LocationConstraint>us-west-2</LocationConstraint>", request->closes, false);
    bool is_bucket = !strchr(request->target + 1, '/') || strchr(request->target + 1, '/')[1] == 0;
    if (is_bucket || strcmp(request->method, "HEAD"))
        return reply_object(c, is_bucket ? "200 OK" : "404 Not Found", "x-amz-bucket-region: us-west-2\r\n", request->closes);
    pthread_mutex_lock(&lock);
    object = object_of(request->target);
    bool there = object->there;
    int64_t size = object->size;
    pthread_mutex_unlock(&lock);
    if (!there) return reply_object(c, "404 Not Found", "", request->closes);
    int n = snprintf(text, sizeof text,
                     "HTTP/1.1 200 OK\r\n%sLast-Modified: Sun, 22 Nov 2026 12:00:00 GMT\r\nContent-Length: %lld\r\n\r\n", etag,
                     (long long)size);
    return answer(c, text, (size_t)n);
}

/* --- connections --------------------------------------------------------------------------------------------------- */

static bool go_ahead(Connection *c, const Request *request) {
    if (!request->expects || c->port->scenario == SILENT || c->have > c->at) return true;
#ifdef WITH_TLS
    if (c->raw_have > c->raw_at) return true;
#endif
    if (c->port->scenario == SLOW) {
        struct pollfd wait = {.fd = c->fd, .events = POLLIN};
        if (poll(&wait, 1, SLOW_S * 1000)) return true; /* a body that did not wait needs no go-ahead */
    }
    return answer(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
}

static bool serve_one(Connection *c) {
    Request request;
    if (!read_head(c, &request)) return false;
    Body body = {.left = request.chunked ? 0 : request.length, .chunked = request.chunked, .aws = request.aws_chunked};
    int verdict = refusal(c, &request, &body);
    if (verdict < 1) return verdict < 0;
    if ((request.length || request.chunked) && !go_ahead(c, &request)) return false;
    if (read_body(c, &body, INT64_MAX) < 1) {
        atomic_fetch_add(&c->port->aborted_bytes, body.bytes);
        return false;
    }
    return reply_store(c, &request, &body) && !request.closes;
}

static void *serve(void *argument) {
    Connection *c = argument;
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->buffer = malloc(BUFFER);
    bool alive = true;
    if (c->port->scenario == RAW)
        while (drop(c, 4 << 20) > 0);
    else {
#ifdef WITH_TLS
        if (context) alive = shake_hands(c);
#endif
        while (alive && serve_one(c));
    }
#ifdef WITH_TLS
    if (c->tls) {
        if (alive) SSL_shutdown(c->tls), flush_tls(c);
        EVP_CIPHER_CTX_free(c->opener);
        SSL_free(c->tls);
        free(c->raw);
        ERR_clear_error();
    }
#endif
    close(c->fd);
    free(c->buffer);
    atomic_fetch_sub(&c->port->open, 1);
    free(c);
    return NULL;
}

static void *accept_all(void *argument) {
    Port *port = argument;
    for (;;) {
        int fd = accept4(port->listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) continue;
        Connection *c = calloc(1, sizeof *c);
        pthread_t thread;
        c->fd = fd;
        c->port = port;
        atomic_fetch_add(&port->connections, 1);
        atomic_fetch_add(&port->open, 1);
        if (pthread_create(&thread, NULL, serve, c)) exit(1);
        pthread_detach(thread);
    }
}

static void report(void) {
    struct rusage now;
    getrusage(RUSAGE_SELF, &now);
    double cpu = (double)(now.ru_utime.tv_sec - usage_then.ru_utime.tv_sec + now.ru_stime.tv_sec - usage_then.ru_stime.tv_sec) +
                 (double)(now.ru_utime.tv_usec - usage_then.ru_utime.tv_usec + now.ru_stime.tv_usec -
                          usage_then.ru_stime.tv_usec) / 1e6;
    printf("{\"cpu_s\": %.6f, \"ports\": [", cpu);
    for (Port *p = ports; p < ports + port_count; p++)
        printf("%s{\"wire\": %lld, \"stored_bytes\": %lld, \"stored\": %lld, \"completed\": %lld, \"refused\": %lld, "
               "\"refused_bytes\": %lld, \"aborted_bytes\": %lld, \"connections\": %lld, \"open\": %lld, \"lingering\": %lld}",
               p > ports ? ", " : "", (long long)p->wire, (long long)p->stored_bytes, (long long)p->stored,
               (long long)p->completed, (long long)p->refused, (long long)p->refused_bytes, (long long)p->aborted_bytes,
               (long long)p->connections, (long long)p->open, (long long)p->lingering);
    printf("], \"hashes\": [");
    long long hashes = 0;
    for (Port *p = ports; p < ports + port_count; p++) hashes |= p->hashes;
    for (unsigned i = 0, shown = 0; i < sizeof HASHES / sizeof *HASHES; i++)
        if (hashes >> i & 1) printf("%s\"%s\"", shown++ ? ", " : "", HASHES[i]);
    printf("], \"objects\": [");
    pthread_mutex_lock(&lock);
    for (int i = 0, shown = 0; digest && i < OBJECTS; i++)
        if (objects[i].there)
            printf("%s{\"path\": \"%s\", \"size\": %lld, \"crc32\": %u}", shown++ ? ", " : "", objects[i].path,
                   (long long)objects[i].size, objects[i].crc);
    pthread_mutex_unlock(&lock);
    printf("]}\n");
    fflush(stdout);
}

static void reset(void) {
    for (Port *p = ports; p < ports + port_count; p++)
        p->wire = p->stored_bytes = p->stored = p->completed = p->refused = p->refused_bytes = p->aborted_bytes = p->hashes = 0;
    pthread_mutex_lock(&lock);
    memset(objects, 0, sizeof objects);
    pthread_mutex_unlock(&lock);
    getrusage(RUSAGE_SELF, &usage_then);
    printf("{}\n");
    fflush(stdout);
}

static int listen_on(Port *port, char *wanted) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    char *colon = strchr(wanted, ':');
    size_t scenario = 0, count = sizeof NAMES / sizeof *NAMES;
    port->argument = colon ? colon + 1 : "0";
    if (colon) *colon = 0;
    while (scenario < count && strcmp(NAMES[scenario], wanted)) scenario++;
    if (scenario == count) return fprintf(stderr, "sink: no scenario %s\n", wanted), 1;
    port->scenario = (enum Scenario)scenario;
    port->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(port->listener, (struct sockaddr *)&address, size) || listen(port->listener, 512)) return perror("sink"), 1;
    getsockname(port->listener, (struct sockaddr *)&address, &size);
    port->number = ntohs(address.sin_port);
    return 0;
}

#ifdef WITH_TLS
static int prepare_tls(const char *pem) {
    context = SSL_CTX_new(TLS_server_method());
    SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256");
    SSL_CTX_set_cipher_list(context, "ECDHE+AES128+AESGCM");
    SSL_CTX_set_keylog_callback(context, keep_secret);
    return SSL_CTX_use_certificate_chain_file(context, pem) != 1 ||
           SSL_CTX_use_PrivateKey_file(context, pem, SSL_FILETYPE_PEM) != 1;
}
#endif

int main(int argc, char **argv) {
    char line[64];
    if (argc < 5 || argc - 4 > PORTS_MAX) return 2;
    digest = !strcmp(argv[1], "digest");
    signal(SIGPIPE, SIG_IGN);
    crc_prepare();
    if (strcmp(argv[2], "-")) {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(atoi(argv[2]), &cpus);
        if (sched_setaffinity(0, sizeof cpus, &cpus)) perror("sink: affinity");
    }
    if (strcmp(argv[3], "-")) {
#ifdef WITH_TLS
        if (prepare_tls(argv[3])) return fprintf(stderr, "sink: %s is no certificate with its key\n", argv[3]), 1;
#else
        return fprintf(stderr, "sink: built without TLS\n"), 1;
#endif
    }
    for (; port_count < argc - 4; port_count++)
        if (listen_on(&ports[port_count], argv[4 + port_count])) return 1;
    printf("{\"ports\": [");
    for (int i = 0; i < port_count; i++) printf("%s%d", i ? ", " : "", ports[i].number);
    printf("]}\n");
    fflush(stdout);
    for (int i = 0; i < port_count; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, accept_all, &ports[i])) return 1;
    }
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "report\n")) report();
        else if (!strcmp(line, "reset\n")) reset();
    }
    _exit(0); /* not exit(): OpenSSL would clean up under the threads */
}
