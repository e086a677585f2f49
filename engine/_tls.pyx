"""The writing half of a TLS session, for the native sender: what `_tls.h` does, as the ssl module's objects see it.

A session is the ssl module's: it has verified the peer and goes on to decrypt. `Records` finds the OpenSSL session in an
`ssl.SSLObject` and lets it write into a batch that native threads can fill and send. The ssl module has no call for that, so the
pointer is read out of its object; the layout is private, was the same in every CPython from 3.7 to 3.14, and is checked against
what is known about the object before anything is called with it. Where that fails, `reachable()` is False or `Records` raises, and
the caller does without.
"""

from cpython.object cimport PyObject, PyTypeObject
from cpython.pycapsule cimport PyCapsule_GetContext, PyCapsule_New, PyCapsule_SetContext
from cpython.ref cimport Py_DECREF, Py_INCREF


cdef extern from "Python.h":
    const char* Py_GetVersion()


cdef extern from "_tls.h" nogil:
    ctypedef struct SSL:
        pass
    ctypedef struct BIO:
        pass
    ctypedef struct SSL_SESSION:
        pass
    ctypedef struct batch:
        char* data
        size_t taken, filled
    SSL_SESSION* tls_ticket(SSL* session) noexcept
    int tls_set_session "openssl.SSL_set_session"(SSL* session, SSL_SESSION* ticket) noexcept
    void tls_free_ticket "openssl.SSL_SESSION_free"(SSL_SESSION* ticket) noexcept
    void* tls_context_of "openssl.SSL_get_SSL_CTX"(const SSL* session) noexcept
    bint batch_add(batch* records, const char* data, size_t size) noexcept
    void batch_begin(batch* records) noexcept
    bint tls_reach(const char* path, const void* inside, const char* version) noexcept
    BIO* tls_redirect(SSL* session, batch* records) noexcept
    void tls_close(BIO* bio, batch* records) noexcept


cdef bint _reached = False
cdef object _session_type = None


def _reach():
    """Find the ssl module's own OpenSSL. Called once, at import."""
    global _reached, _session_type
    import _ssl
    import ssl
    path = getattr(_ssl, "__file__", None)
    encoded = None if path is None else path.encode()
    cdef const char* name = NULL
    if encoded is not None:
        name = encoded
    version = ssl.OPENSSL_VERSION.encode()
    _session_type = getattr(_ssl, "_SSLSocket", None)
    _reached = _session_type is not None and tls_reach(name, <const void*>&Py_GetVersion, version)


def reachable():
    """Whether the interpreter's OpenSSL was found. (A statically linked one keeps its functions to itself.)"""
    return _reached


cdef SSL* _session_of(ssl_object) except NULL:
    """PySSLSocket is (object head, PyObject* socket, SSL*, PySSLContext*, …), PySSLContext is (object head, SSL_CTX*, …)."""
    inner, context = ssl_object._sslobj, ssl_object.context
    cdef Py_ssize_t head = (<PyTypeObject*>object).tp_basicsize
    cdef Py_ssize_t word = sizeof(void*)
    if type(inner) is not _session_type or (<PyTypeObject*>_session_type).tp_basicsize < head + 3 * word:
        raise TypeError("not a session of the ssl module")
    cdef void** fields = <void**>(<char*><PyObject*>inner + head)
    cdef void** context_fields = <void**>(<char*><PyObject*>context + head)
    # Over memory there is no socket; the context is known; and the session's own SSL_CTX has to be that context's.
    if fields[0] is not NULL or fields[1] is NULL or fields[2] is not <void*>context:
        raise TypeError("the ssl module's objects are laid out in a way that is not known")
    if context_fields[0] is NULL or tls_context_of(<SSL*>fields[1]) is not context_fields[0]:
        raise TypeError("the ssl module's objects are laid out in a way that is not known")
    return <SSL*>fields[1]


cdef class Ticket:
    """What another connection can take up. The ssl module's own `session` copies it by encoding and parsing it, certificates
    and all, twice for each connection: a quarter of a handshake."""

    cdef SSL_SESSION* _ticket

    def __init__(self):
        raise TypeError("tickets are taken by ticket_of")

    def resume(self, session):
        """Have `session`, an ssl.SSLObject before its handshake and of the same context, take this up. Raises TypeError."""
        return bool(tls_set_session(_session_of(session), self._ticket))

    def __dealloc__(self):
        if self._ticket is not NULL:
            tls_free_ticket(self._ticket)


def ticket_of(session):
    """A Ticket of an ssl.SSLObject, None when it has none to give (TLS 1.3: yet). Raises TypeError."""
    cdef SSL_SESSION* found = tls_ticket(_session_of(session))
    if found is NULL:
        return None
    cdef Ticket ticket = Ticket.__new__(Ticket)
    ticket._ticket = found
    return ticket


cdef void _let_go(object capsule) noexcept:
    Py_DECREF(<object>PyCapsule_GetContext(capsule))


cdef class Records:
    """What a session writes from now on, alerts and all. Used by one thread at a time, like the session.

    Attributes: capsule, for the `records` of `_bodysend`; it keeps this object, and so the session.
    """

    cdef batch _batch
    cdef BIO* _bio
    cdef object _session

    def __init__(self, session):
        """`session`: an ssl.SSLObject after its handshake, with nothing left unsent. Raises TypeError, MemoryError."""
        if self._session is not None:
            raise RuntimeError("Records are initialised once")
        if not _reached:
            raise TypeError("the interpreter's OpenSSL cannot be reached")
        self._bio = tls_redirect(_session_of(session), &self._batch)
        if self._bio is NULL:
            raise MemoryError
        self._session = session

    @property
    def capsule(self):
        capsule = PyCapsule_New(&self._batch, "engine.batch", _let_go)
        PyCapsule_SetContext(capsule, <void*>self)
        Py_INCREF(self)
        return capsule

    def take(self):
        """Records that were not sent yet, as bytes; they are the caller's to send."""
        taken = self._batch.data[self._batch.taken:self._batch.filled] if self._batch.filled else b""
        self._batch.taken = self._batch.filled
        batch_begin(&self._batch)
        return taken

    def put_back(self, bytes records):
        """What `take` gave and the socket did not."""
        if records and not batch_add(&self._batch, records, len(records)):
            raise MemoryError

    def __dealloc__(self):
        if self._bio is not NULL:
            tls_close(self._bio, &self._batch)


_reach()
