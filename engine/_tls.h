/* The OpenSSL that the interpreter's ssl module uses, reached at run time, and a session's way into a batch of records.
 *
 * Nothing is linked against and no header of OpenSSL's is needed: what is used here has had the same C interface from 1.1.1 to
 * today. A session is made, verified, shaken and read by the ssl module; only its *writing* is done here, by SSL_write into a BIO
 * that fills a batch (`_batch.h`), so that a worker thread can do it without the interpreter.
 */
#ifndef ENGINE_TLS_H
#define ENGINE_TLS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <stddef.h>

#include "_batch.h"

typedef struct SSL SSL;
typedef struct SSL_SESSION SSL_SESSION;
typedef struct BIO BIO;
typedef struct BIO_METHOD BIO_METHOD;

enum { TLS_BIO_SOURCE_SINK = 0x0400, TLS_BIO_FLUSH = 11 }; /* BIO_TYPE_SOURCE_SINK, BIO_CTRL_FLUSH of bio.h */

static struct {
    int (*SSL_write)(SSL *, const void *, int);
    void *(*SSL_get_SSL_CTX)(const SSL *);
    void (*SSL_set0_wbio)(SSL *, BIO *);
    SSL_SESSION *(*SSL_get1_session)(SSL *);
    int (*SSL_set_session)(SSL *, SSL_SESSION *);
    int (*SSL_SESSION_is_resumable)(const SSL_SESSION *);
    void (*SSL_SESSION_free)(SSL_SESSION *);
    BIO *(*BIO_new)(const BIO_METHOD *);
    void (*BIO_set_data)(BIO *, void *);
    void *(*BIO_get_data)(BIO *);
    void (*BIO_set_init)(BIO *, int);
    int (*BIO_get_new_index)(void);
    BIO_METHOD *(*BIO_meth_new)(int, const char *);
    int (*BIO_meth_set_write)(BIO_METHOD *, int (*)(BIO *, const char *, int));
    int (*BIO_meth_set_ctrl)(BIO_METHOD *, long (*)(BIO *, int, long, void *));
    int (*BIO_up_ref)(BIO *);
    int (*BIO_free)(BIO *);
    void (*ERR_clear_error)(void);
    const char *(*OpenSSL_version)(int);
    BIO_METHOD *method;
} openssl;

static int tls_bio_write(BIO *bio, const char *data, int size) {
    batch *records = openssl.BIO_get_data(bio);
    return records && batch_add(records, data, (size_t)size) ? size : -1;
}

static long tls_bio_ctrl(BIO *bio, int command, long number, void *pointer) { return command == TLS_BIO_FLUSH; }

static bool tls_encrypt(batch *records, const char *plain, size_t size) {
    openssl.ERR_clear_error(); /* of this thread; an old one would be taken for ours */
    while (size > 0) {
        int n = openssl.SSL_write(records->session, plain, (int)size);
        if (n <= 0) {
            openssl.ERR_clear_error();
            return false; /* the session is broken, or a renegotiation wants to be read first */
        }
        plain += n;
        size -= (size_t)n;
    }
    return true;
}

/* `path`: of the _ssl extension module; NULL when it is built into the interpreter. False: not to be reached. */
static bool tls_reach(const char *path, const void *inside, const char *version) {
    void *library = dlopen(path, RTLD_LAZY | RTLD_LOCAL | RTLD_NOLOAD);
    if (!library) return false;
    /* The handle stays: it is the interpreter's module, which is never unloaded. */
#define TLS_FIND(name) \
    if (!(*(void **)(&openssl.name) = dlsym(library, #name))) return false
    TLS_FIND(SSL_write);
    TLS_FIND(SSL_get_SSL_CTX);
    TLS_FIND(SSL_set0_wbio);
    TLS_FIND(SSL_get1_session);
    TLS_FIND(SSL_set_session);
    TLS_FIND(SSL_SESSION_is_resumable);
    TLS_FIND(SSL_SESSION_free);
    TLS_FIND(BIO_new);
    TLS_FIND(BIO_set_data);
    TLS_FIND(BIO_get_data);
    TLS_FIND(BIO_set_init);
    TLS_FIND(BIO_get_new_index);
    TLS_FIND(BIO_meth_new);
    TLS_FIND(BIO_meth_set_write);
    TLS_FIND(BIO_meth_set_ctrl);
    TLS_FIND(BIO_up_ref);
    TLS_FIND(BIO_free);
    TLS_FIND(ERR_clear_error);
    TLS_FIND(OpenSSL_version);
#undef TLS_FIND
    if (!path) { /* the symbols of the whole program: another libssl may have come in front */
        Dl_info interpreter, found;
        if (!dladdr(inside, &interpreter) || !dladdr(*(void **)(&openssl.SSL_write), &found)) return false;
        if (interpreter.dli_fbase != found.dli_fbase) return false;
    }
    if (strcmp(openssl.OpenSSL_version(0), version) != 0) return false;
    openssl.method = openssl.BIO_meth_new(openssl.BIO_get_new_index() | TLS_BIO_SOURCE_SINK, "engine batch");
    return openssl.method && openssl.BIO_meth_set_write(openssl.method, tls_bio_write) &&
           openssl.BIO_meth_set_ctrl(openssl.method, tls_bio_ctrl);
}

/* From here on everything that the session writes goes into `records`, until tls_close. NULL: no memory. */
static BIO *tls_redirect(SSL *session, batch *records) {
    BIO *bio = openssl.BIO_new(openssl.method);
    if (!bio) return NULL;
    openssl.BIO_set_data(bio, records);
    openssl.BIO_set_init(bio, 1);
    records->session = session;
    records->encrypt = tls_encrypt;
    openssl.BIO_up_ref(bio);             /* one is the session's, one the caller's */
    openssl.SSL_set0_wbio(session, bio); /* drops the one it had */
    return bio;
}

/* A session to take up again, NULL when there is none; the caller's to free. */
static SSL_SESSION *tls_ticket(SSL *session) {
    SSL_SESSION *ticket = openssl.SSL_get1_session(session);
    if (ticket && openssl.SSL_SESSION_is_resumable(ticket)) return ticket;
    if (ticket) openssl.SSL_SESSION_free(ticket);
    return NULL;
}

/* The session may live on; what it wants to write fails. */
static void tls_close(BIO *bio, batch *records) {
    openssl.BIO_set_data(bio, NULL);
    openssl.BIO_free(bio);
    free(records->data);
    free(records->plain);
}

#endif
