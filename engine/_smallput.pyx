# cython: binding=False, boundscheck=False, wraparound=False
"""Small puts on an open connection: some KiB of memory that leave with their head in one call and are answered by a plain 2xx.

Such a put needs neither the exchange machine nor `request.Run`, which cost twenty times what the kernel charges for it. It is
begun here, and as long as nothing else happens it ends here too. Whatever else happens (a partial write, an interim answer, an
answer in pieces or of another status, a loss, a timeout, a cancellation, a checksum that differs) is nobody's business here:
the connection *takes it over*. It makes the `Exchange` that would have been there all along, tells it what has happened so
far, and goes on as ever; the caller hands the put to a `Run`, which finds the connection in the middle of its exchange. So
there is one implementation of every rule, and a small put differs from others by nothing but its speed.

Nothing here knows how a head or a URL is made: `smallput` has the ordinary code make both once for a *route* (all that keys below
one URL have in common), and here a key and a length are put into what it made.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.errno cimport EAGAIN, EINTR, errno
from libc.string cimport memcmp

from engine._fastparse cimport Response, ResponseParser

import os
from asyncio import get_running_loop
from dataclasses import fields
from time import time

from engine._fastparse import Event
from engine.errors import ChecksumMismatch
from engine.results import Checksum, Hop, PutResult, Timings


cdef extern from *:
    """
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    static ssize_t send_both(int fd, const char *head, size_t head_n, const char *body, size_t body_n) {
        struct iovec parts[2] = {{(void *)head, head_n}, {(void *)body, body_n}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
        return sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    }

    /* The clock of time.monotonic(). */
    static double monotonic_s(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    }

    /* Of what a frozen dataclass with slots has, written as its own __init__ does, without its cost. */
    static int put_slot(PyObject *descriptor, PyObject *object, PyObject *value) {
        return Py_TYPE(descriptor)->tp_descr_set(descriptor, object, value);
    }

    static PyObject *make_blank(PyObject *type, PyObject *no_arguments) {
        return ((PyTypeObject *)type)->tp_new((PyTypeObject *)type, no_arguments, NULL);
    }
    """
    ssize_t send_both(int fd, const char *head, size_t head_n, const char *body, size_t body_n) noexcept
    double monotonic_s() noexcept
    int put_slot(object descriptor, object instance, object value) except -1
    object make_blank(object type, object no_arguments)
    int getpid() noexcept
    bint PyUnicode_IS_COMPACT_ASCII(object text) noexcept
    const char *PyUnicode_DATA(object text) noexcept
    bint PyUnicode_CheckExact(object thing) noexcept
    bint PyBytes_CheckExact(object thing) noexcept


cdef enum:
    ROUTES_MAX = 256  # remembered; then they are made anew, which costs what a put by the long way does
    EVENT_BODY = 4
    EVENT_HEAD_AND_DONE = 2 | 8

cdef tuple EVENTS = tuple(Event(bits) for bits in range(16))
cdef tuple NOTHING = ()
cdef tuple HOP_SLOTS = tuple(Hop.__dict__[field.name] for field in fields(Hop))
cdef tuple TIMINGS_SLOTS = tuple(Timings.__dict__[field.name] for field in fields(Timings))
cdef tuple RESULT_SLOTS = tuple(PutResult.__dict__[field.name] for field in fields(PutResult))

# What stays as it is on its way from a destination into a request target: RFC 3986's unreserved characters in an S3 key, all
# but what ends a path in a URL.
cdef bytes KEY_CHARACTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/"
cdef bytes PATH_CHARACTERS = KEY_CHARACTERS + b"!$%&'()*+,:;=@[]"
cdef unsigned char[256] STAYS
for _code in range(256):
    STAYS[_code] = (1 if _code in KEY_CHARACTERS else 0) | (2 if _code in PATH_CHARACTERS else 0)


cdef enum Stage:
    SENT  # all of it has left, and nothing has come
    ANSWERED  # by one plain 2xx
    TAKEN_OVER


@cython.final
cdef class Route:
    """What puts to keys below one URL, made by one client with the same options, have in common. Made by `smallput`.

    `config`: the client's. `variables`: of the environment, those it depends on: with others it has to be made anew.

    Attributes:
      usable: False (as at first) when such puts go the long way; the others then have no meaning.
      head_before, head_after, head_end: a head up to the key, from there to the length, and from there on.
      exchange_of(put): makes the Exchange that a put did without.
      algorithm, checksum_field, compute, verify: of the checksum; `compute(source)` gives its text, None for none at all; `verify`
        is hashing's.
      provider, make_signer: of a signed put, else None; `make_signer(credentials)` makes a `signing.Signer`.
      path_before, shown_before: of the URL, up to the key; for the signature, and for people.
      is_key, key_max, size_max: whether it is an S3 key; bytes of the longest key and body.
      origin, region, bucket: as in `redirect.Intent`.
    """

    cdef public object origin, provider, exchange_of, make_signer, compute, verify
    cdef public bytes head_before, head_after, head_end
    cdef public str shown_before, path_before, region, bucket, algorithm, checksum_field
    cdef public Py_ssize_t key_max, size_max
    cdef public double response_timeout_s
    cdef public bint is_key, usable
    cdef object config, signer
    cdef tuple environment
    cdef dict options
    cdef bytes prefix

    def __init__(self, prefix, options, config, variables):
        environ = variables_now() or {}
        self.prefix, self.options, self.config = prefix.encode("ascii"), dict(options), config
        self.environment = tuple((name.encode(), environ.get(name.encode())) for name in variables)

    cdef int holds(self, client) except -1:
        """Whether it would be made the same way now."""
        cdef dict environ = variables_now()
        if self.config is not client.config or environ is None:
            return False
        for name, value in self.environment:
            if environ.get(name) != value:
                return False
        return True


cdef object known_environ = None
cdef dict known_variables = None


cdef dict variables_now():
    """What os.environ reads, without its encoding and decoding, which cost a µs for each name; None where it has no such."""
    global known_environ, known_variables
    environ = os.environ
    if environ is not known_environ:
        known = getattr(environ, "_data", None)
        known_environ, known_variables = environ, known if type(known) is dict else None
    return known_variables


cdef class Receiver:
    """What a connection is to the event loop when bytes come; `connection.Connection` is made on it."""

    cdef public ResponseParser _parser
    cdef public SmallPut _small  # the one in flight, until it is over or taken over
    cdef public object _timer, _exchange
    cdef public bint _closed, _spoilt, _gone
    cdef public double _rings_at, body_s, connect_s
    cdef public int used
    cdef public bint heard
    cdef public str send_path
    cdef object _loop_future
    cdef int _fd
    cdef object _buffer
    cdef const char *_received  # what `_buffer` is a view of; nobody releases the view

    def __cinit__(self, *_arguments, **_named):
        self._fd = -1

    def _receive_into(self, buffer, create_future):
        """Before the transport is there. `buffer`: a view of what it reads into."""
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        self._received = <const char *>view.buf
        PyBuffer_Release(&view)
        self._buffer, self._loop_future = buffer, create_future

    def _send_through(self, int descriptor):
        """The descriptor small puts leave by; -1 for none."""
        self._fd = descriptor

    @property
    def usable(self):
        """Whether an idle connection can take another exchange. (It may still turn out to be dead.)"""
        return not (self._closed or self._spoilt or self._gone) and self._exchange is None and self._small is None

    def get_buffer(self, Py_ssize_t sizehint):
        return self._buffer

    def buffer_updated(self, Py_ssize_t nbytes):
        if self._small is None:
            self._receive(self._buffer[:nbytes])
        else:
            self._small.receive(self._received, nbytes)


@cython.final
@cython.freelist(16)
cdef class SmallPut:
    """One put under way. `Connection` and `Run` read what they need to go on with it."""

    cdef readonly Receiver connection
    cdef readonly object pool, credentials, waiter
    cdef readonly bytes head
    cdef readonly Py_ssize_t size, sent
    cdef readonly int error, status
    cdef readonly double began, sent_at, answered_at
    cdef readonly BaseException interrupted
    cdef public bint resumed  # set by the Run that goes on with it
    cdef Route route
    cdef SmallPuts owner
    cdef Py_buffer view
    cdef str key, value
    cdef Stage stage
    cdef bint has_view

    def __init__(self):
        raise TypeError("only SmallPuts.begin makes them")

    def __dealloc__(self):
        self.let_go()

    cpdef object let_go(self):
        """Of the source. Until somebody else holds it, or its bytes are no longer needed."""
        if self.has_view:
            self.has_view = False
            PyBuffer_Release(&self.view)

    def exchange(self):
        """The machine that has been spared so far, new."""
        return self.route.exchange_of(self)

    def taken_over(self):
        """The connection has made its exchange: wake who waits."""
        self.stage = TAKEN_OVER
        self.wake()

    cdef int wake(self) except -1:
        if not self.waiter.done():
            self.waiter.set_result(None)
        return 0

    cdef int receive(self, const char *p, Py_ssize_t n) except -1:
        cdef Receiver connection = self.connection
        cdef Response response
        cdef int events
        if self.stage == ANSWERED:
            connection._take_over()
            connection._receive(connection._buffer[:n])
            return 0
        try:
            events = connection._parser.feed_buffer(p, n)
        except Exception as error:
            connection._take_over()
            connection.heard = True
            connection._misfed(error)
            return 0
        response = connection._parser.response
        if events & ~EVENT_BODY == EVENT_HEAD_AND_DONE and 200 <= response.status < 300 and response.minor == 1:
            self.stage = ANSWERED
            self.status = response.status
            self.answered_at = monotonic_s()
            return self.wake()
        connection._take_over()
        connection.heard = True
        connection._parsed(EVENTS[events])
        return 0

    def interrupt(self, BaseException error):
        """The wait for it was: the connection and the `Run` deal with that."""
        self.interrupted = error
        if self.stage != TAKEN_OVER:
            self.connection._take_over()

    def abandon(self):
        """Give its connection up if it was taken over and nobody went on with it. Idempotent."""
        if self.stage == TAKEN_OVER and not self.resumed:
            self.resumed = True
            self.connection._exchange = None
            self.connection.close(reset=True)

    def result(self):
        """Its PutResult, None when it was taken over."""
        cdef Route route = self.route
        cdef Response response
        cdef object verified = False, checksum = None
        if self.stage != ANSWERED:
            return None
        response = self.connection._parser.response
        if self.value is not None:
            checksum = tuple.__new__(Checksum, (route.algorithm, self.value))
            if response.get(route.checksum_field) is not None:
                try:
                    verified = route.verify(checksum, response, "")
                except ChecksumMismatch:
                    self.connection._take_over()
                    return None
        self.connection._small = None
        self.let_go()
        self.pool.release(self.connection, self.owner.reuse)
        self.owner.learn(route)
        return self.made(response, checksum, verified)

    cdef object made(self, Response response, object checksum, object verified):
        cdef Route route = self.route
        cdef double now = monotonic_s()
        cdef object size = self.size, zero = 0.0, seconds = now - self.began
        cdef object result = make_blank(PutResult, NOTHING), hop = make_blank(Hop, NOTHING)
        cdef object timings = make_blank(Timings, NOTHING)
        cdef str url = route.shown_before + self.key
        cdef Py_ssize_t i = 0
        for value in (url, response.status, route.region, size, size, zero, "stored", seconds):
            put_slot(HOP_SLOTS[i], hop, value)
            i += 1
        i = 0
        for value in (zero, zero, zero, self.sent_at - self.began, zero, zero, now - self.sent_at, seconds):
            put_slot(TIMINGS_SLOTS[i], timings, value)
            i += 1
        i = 0
        for value in (
            response.status, response.get("etag") or "", response.get("x-amz-version-id") or "", size,
            checksum, verified,
            response.get("x-amz-request-id") or "", response.get("x-amz-id-2") or "", route.region, url, size, (hop,), 1, 0,
            "off", "send", timings,
        ):
            put_slot(RESULT_SLOTS[i], result, value)
            i += 1
        return result


@cython.final
cdef class SmallPuts:
    """The small puts of one client."""

    cdef object client, shared, plan, reuse
    cdef frozenset known_options
    cdef dict routes, origins
    cdef Route last

    def __init__(self, client, shared, plan, known_options, reuse):
        """`plan(prefix, options)` makes a Route, None when it cannot be known yet."""
        self.client, self.shared, self.plan = client, shared, plan
        self.known_options, self.reuse = known_options, reuse
        self.routes = {}

    def begin(self, source, destination, dict options):
        """Send it, if that can be done at once and in the plainest way; else None, and nothing has happened."""
        cdef Route route
        cdef SmallPut put
        if not (PyBytes_CheckExact(source) or type(source) is bytearray):
            return None
        if not PyUnicode_CheckExact(destination) or not PyUnicode_IS_COMPACT_ASCII(destination):
            return None
        if options and not self.known_options.issuperset(options):
            return None
        route = self.route_to(<str>destination, options)
        if route is None:
            return None
        put = SmallPut.__new__(SmallPut)
        PyObject_GetBuffer(source, &put.view, PyBUF_SIMPLE)
        put.has_view = True
        put.size = put.view.len
        if not 0 < put.size <= route.size_max:
            return None
        return self.sent(put, route, <str>destination)

    cdef Route route_to(self, str destination, dict options):
        cdef const char *p = PyUnicode_DATA(destination)
        cdef const char *end = p + len(destination)
        cdef const char *key
        cdef const char *at
        cdef Route route = self.last
        if (
            route is None
            or end - p < PyBytes_GET_SIZE(route.prefix)
            or memcmp(p, PyBytes_AS_STRING(route.prefix), PyBytes_GET_SIZE(route.prefix))
            or (route.options != options if options or route.options else False)
            or not route.holds(self.client)
        ):
            route = self.found(destination, options)
            if route is None:
                return None
            self.last = route
        at = key = p + PyBytes_GET_SIZE(route.prefix)
        if not route.usable or at == end or end - at > route.key_max:
            return None
        while at < end:
            if not STAYS[<unsigned char>at[0]] & (1 if route.is_key else 2):
                return None
            at += 1
        return route

    cdef Route found(self, str destination, dict options):
        """The route, made when there is none that holds; None for what has none."""
        cdef Py_ssize_t scheme = 7 if destination.startswith("http://") else 5 if destination.startswith("s3://") else 0
        cdef Py_ssize_t end = destination.find("/", scheme) + 1 if scheme else 0
        cdef Route route
        if not end:
            return None
        prefix = destination[:end]
        try:
            known = (prefix, *options.items())
            route = self.routes.get(known)
        except TypeError:
            return None  # an option that is no plain value
        if route is None or not route.holds(self.client):
            route = self.plan(prefix, options)
            if route is None:
                return None
            if len(self.routes) >= ROUTES_MAX:
                self.routes.clear()
            self.routes[known] = route
        return route

    cdef SmallPut sent(self, SmallPut put, Route route, str destination):
        cdef Receiver connection
        put.began = monotonic_s()
        put.key = PyUnicode_DecodeASCII(
            PyUnicode_DATA(destination) + PyBytes_GET_SIZE(route.prefix), len(destination) - PyBytes_GET_SIZE(route.prefix), NULL
        )
        put.pool = self.pool()
        if put.pool is None:
            return None
        if route.bucket and self.shared._places and (route.origin, route.bucket) in self.shared._places:
            return None  # it has moved for good, and `Run` knows where to
        put.owner, put.route = self, route
        signature = b"\r\n"
        if route.provider is not None:
            signature = self.signature(put, route)
            if signature is None:
                return None
        taken = put.pool.take_at_once(route.origin)
        if taken is None:
            return None
        connection = put.connection = <Receiver?>taken
        if connection._fd < 0:
            put.pool.release(connection, self.reuse)
            return None
        try:
            self.send(put, route, connection, <bytes>signature)
        except BaseException:
            connection._small = None
            connection.close(reset=True)
            raise
        return put

    cdef int send(self, SmallPut put, Route route, Receiver connection, bytes signature) except -1:
        cdef double deadline
        cdef ssize_t n
        put.head = self.head(put, route, signature)
        put.waiter = connection._loop_future()
        connection.used += 1
        connection.send_path = "send"
        connection.body_s = 0.0
        connection._parser.expect("PUT")
        connection._small = put
        put.sent_at = monotonic_s()
        n = send_both(
            connection._fd, PyBytes_AS_STRING(put.head), PyBytes_GET_SIZE(put.head), <const char *>put.view.buf, put.size
        )
        put.sent = max(n, 0)
        if n < 0 and errno != EAGAIN and errno != EINTR:
            put.error = errno
        if put.sent < PyBytes_GET_SIZE(put.head) + put.size:
            connection._take_over()
            return 0
        deadline = put.sent_at + route.response_timeout_s
        if connection._timer is None or connection._rings_at > deadline:
            connection._arm_at(deadline)
        if route.compute is not None:
            put.value = route.compute(<object>put.view.obj)
        return 0

    cdef object pool(self):
        """As `Shared.pool`; None where that would make one or raise."""
        shared = self.shared
        if shared._closed or shared._pid != getpid() or shared._loop is not get_running_loop():
            return None
        return shared._pool

    cdef bytes head(self, SmallPut put, Route route, bytes signature):
        cdef bytes digits = b"%d" % put.size
        return route.head_before + put.key.encode("ascii") + route.head_after + digits + route.head_end + signature

    cdef object signature(self, SmallPut put, Route route):
        cdef object credentials, offset
        if route.bucket and self.shared.regions.get(route.bucket) not in ("", route.region):
            return None
        credentials = put.credentials = route.provider.at_hand()
        if credentials is None:
            return None
        if route.signer is None or route.signer.credentials is not credentials:
            route.signer = route.make_signer(credentials)
        offset = self.shared.clock_offset
        return route.signer.text(route.path_before + put.key, time() + (offset.total_seconds() if offset else 0.0))

    cdef int learn(self, Route route) except -1:
        """What `Run` learns of a success."""
        facts = self.shared._origins.get(route.origin)
        if facts is not None and facts.speaks_http10:
            facts.speaks_http10 = False
        if not self.shared.budget.is_full:
            self.shared.budget.refund()
        return 0
