"""The native body sender: what `_bodysend.h` does in C threads, as seen from an event loop.

It owns the threads and, while a body leaves, its buffer. It knows nothing of HTTP: it moves bytes into a socket until they
are all gone, or until one of the reasons in `Stop` comes first. Every call is made on the event loop's thread.

The caller's duty: a descriptor given to `start_*` stays open until the job's outcome was delivered. Its number may be
reused the moment it is closed, and the body would run into somebody else's connection.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport INT64_MAX, int64_t
from libc.string cimport memset
from posix.unistd cimport close

import enum
import os
import stat
from typing import NamedTuple


cdef extern from "_bodysend.h" nogil:
    ctypedef enum bs_stop:
        BS_DONE
        BS_READABLE
        BS_STALLED
        BS_CANCELLED
        BS_SOURCE_ENDED
        BS_SOCKET_ERROR
        BS_SOURCE_ERROR
        BS_WOULD_BLOCK
    ctypedef enum bs_path:
        BS_SENDFILE
        BS_SEND
        BS_SPLICE
        BS_READ_SEND
        BS_SEALED
    ctypedef struct batch:
        pass
    ctypedef struct bs_home:
        int event_fd
    ctypedef struct bs_job:
        int sock_fd
        int source_fd
        const char* memory
        int64_t offset
        int64_t left
        int64_t stall_ms
        bs_path path
        batch* records
        bint stream
        bint until_end
        bint more
        bint ignore_readable
        bs_stop stop
        int error
        bs_job* next
        void* owner
    int BS_MAX_WORKERS, BS_STEP
    int64_t bs_sent(bs_job* job) noexcept
    void bs_send_now(bs_job* job, bint probe) noexcept
    int bs_open_home(bs_home* home) noexcept
    bint bs_is_stale(const bs_home* home) noexcept
    int bs_submit(bs_home* home, bs_job* job) noexcept
    void bs_cancel(bs_job* job) noexcept
    bs_job* bs_take_done(bs_home* home) noexcept
    void bs_signal(int event_fd) noexcept
    void bs_wait_done(const bs_home* home) noexcept


MAX_THREADS = BS_MAX_WORKERS
STEP_BYTES = BS_STEP


class Stop(enum.IntEnum):
    """Why a job ended."""

    DONE = BS_DONE  # every byte was handed to the kernel
    READABLE = BS_READABLE  # the peer sent something or half-closed; read and parse it, then perhaps start again
    STALLED = BS_STALLED  # the kernel accepted no byte for stall_ms
    CANCELLED = BS_CANCELLED  # by Job.cancel() or BodySender.close()
    SOURCE_ENDED = BS_SOURCE_ENDED  # the source had fewer bytes than promised
    SOCKET_ERROR = BS_SOCKET_ERROR  # errno; an answer may still be in the receive queue
    SOURCE_ERROR = BS_SOURCE_ERROR  # errno of reading the source
    WOULD_BLOCK = BS_WOULD_BLOCK  # inline only: the socket is full, or the file is not in the page cache


class Outcome(NamedTuple):
    """What came of a call."""

    stop: Stop
    sent: int  # bytes of this call handed to the kernel
    errno: int  # the kernel's number for SOCKET_ERROR and SOURCE_ERROR, else 0
    path: str  # "sendfile", "send" (memory), "splice" (pipe) or "read+send" (a socket, a file that knows no sendfile), "tls"


cdef tuple _STOPS = tuple(Stop)
cdef tuple _PATHS = ("sendfile", "send", "splice", "read+send", "tls")


cdef object _outcome(bs_job* job):
    return Outcome(_STOPS[job.stop], bs_sent(job), job.error, _PATHS[job.path])


cdef int _aim(bs_job* job, int sock_fd, bs_path path, int source_fd, int64_t offset, int64_t count) except -1:
    if offset < 0 or count < 0:
        raise ValueError(f"offset {offset} or count {count} is negative")
    memset(job, 0, sizeof(bs_job))
    job.sock_fd = sock_fd
    job.path = path
    job.source_fd = source_fd
    job.offset = offset
    job.left = count
    return 0


cdef int _seal(bs_job* job, records) except -1:
    if records is not None:
        job.records = <batch*>PyCapsule_GetPointer(records, "engine.batch")
        job.path = BS_SEALED
    return 0


def send_file_inline(int sock_fd, int file_fd, int64_t offset, int64_t count, *, bint probe=True, records=None):
    """Send `count` bytes of a file from `offset` on the calling thread, as far as that goes without waiting.

    `probe` looks for bytes from the peer first, and after every 256 KiB. A file that is not in the page cache is left to
    `BodySender.start_file`: WOULD_BLOCK with 0 sent. The GIL is kept: 1 MiB takes about 0.1 ms, getting the GIL back from
    a busy thread up to 5. `records`: of a TLS session (`_tls.Records.capsule`), through which the bytes leave.
    """
    cdef bs_job job
    _aim(&job, sock_fd, BS_SENDFILE, file_fd, offset, count)
    _seal(&job, records)
    bs_send_now(&job, probe)
    return _outcome(&job)


def send_memory_inline(int sock_fd, buffer, *, bint probe=True, bint more=False, records=None):
    """Send a contiguous buffer on the calling thread, as far as that goes without waiting.

    `probe` and `records` as for a file. `more`: the rest of the segment follows at once (MSG_MORE).
    """
    cdef bs_job job
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        _aim(&job, sock_fd, BS_SEND, -1, 0, view.len)
        job.memory = <const char*>view.buf
        job.more = more
        _seal(&job, records)
        bs_send_now(&job, probe)
    finally:
        PyBuffer_Release(&view)
    return _outcome(&job)


def find_mapped_file(buffer):
    """The file behind a buffer that lies in a shared mapping of it: (descriptor, offset of the buffer's first byte), or None.

    From there it leaves by sendfile, nearly three times as fast as from memory. The descriptor is a new one, the caller's to
    close. A private mapping may differ from its file, so it is None, as is whatever /proc/self/maps cannot tell for sure: a
    file that was removed or replaced or cannot be opened again, a filesystem whose device numbers there are not stat's.
    """
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    cdef size_t start = <size_t>view.buf
    cdef size_t end = start + <size_t>view.len
    PyBuffer_Release(&view)
    if start == end:
        return None
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            fields = line.rstrip(b"\n").split(None, 5)  # proc_pid_maps(5): range, rights, offset, device, inode, path
            first, last = (int(text, 16) for text in fields[0].split(b"-"))
            if first <= start < last:
                break
        else:
            return None
    if end > last or fields[1][3:] != b"s" or len(fields) < 6 or not fields[5].startswith(b"/"):
        return None
    try:
        fd = os.open(fields[5], os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    found = os.fstat(fd)
    device = b"%02x:%02x" % (os.major(found.st_dev), os.minor(found.st_dev))
    if not stat.S_ISREG(found.st_mode) or device != fields[3] or found.st_ino != int(fields[4]):
        os.close(fd)
        return None
    return fd, int(fields[2], 16) + start - first


@cython.final
cdef class Job:
    """One body on one socket, from `BodySender.start_*` until its outcome was delivered on the loop."""

    cdef bs_job _native  # the worker's, until the job was taken from the home's done list
    cdef Py_buffer _view
    cdef bint _holds_view
    cdef object _records  # keeps the session's batch
    cdef BodySender _sender
    cdef list _callbacks
    cdef readonly object outcome

    def __init__(self):
        raise TypeError("jobs are made by BodySender.start_file, start_memory and start_pipe")

    @property
    def sent(self):
        """Bytes handed to the kernel so far; one load, at any time."""
        return bs_sent(&self._native)

    def cancel(self):
        """Ask the worker to stop. The outcome, CANCELLED or what came first, is delivered as ever; later calls do nothing."""
        if self.outcome is None and not bs_is_stale(&self._sender._home):
            with nogil:
                bs_cancel(&self._native)

    def add_done_callback(self, callback):
        """Have `callback(job)` called on the loop once the outcome is there (soon, when it already is)."""
        if self.outcome is None:
            self._callbacks.append(callback)
        else:
            self._sender._loop.call_soon(callback, self)

    def __await__(self):
        """Wait for the outcome. Cancelling the waiting task leaves the job running: cancel() it, and wait again."""
        waiter = self._sender._loop.create_future()
        self.add_done_callback(lambda job: waiter.done() or waiter.set_result(job.outcome))
        return waiter.__await__()

    cdef _release(self):
        if self._holds_view:
            self._holds_view = False
            PyBuffer_Release(&self._view)

    def __dealloc__(self):
        if self._holds_view:
            PyBuffer_Release(&self._view)


@cython.final
cdef class BodySender:
    """The senders of one event loop. Its jobs live until delivered, whether or not Python still refers to them."""

    cdef bs_home _home
    cdef object _loop
    cdef set _jobs  # running; each holds one more reference to itself, for the worker
    cdef list _ready  # finished natively, not yet delivered; earliest last
    cdef bint _closed

    def __cinit__(self):
        self._home.event_fd = -1

    def __init__(self, loop):
        """`loop`: any asyncio loop with add_reader. OSError when no descriptor is left."""
        if self._loop is not None:
            raise RuntimeError("a BodySender is initialised once")
        self._loop = loop
        self._jobs = set()
        self._ready = []
        cdef int error = bs_open_home(&self._home)
        if error:
            raise OSError(error, os.strerror(error))
        loop.add_reader(self._home.event_fd, self._deliver)

    def start_file(self, int sock_fd, int file_fd, int64_t offset, int64_t count, int64_t stall_ms, *,
                   bint ignore_readable=False, records=None):
        """Send `count` bytes of a file from `offset`; the file's own position is neither used nor moved.

        `stall_ms` 0 means no limit. `ignore_readable` is for a caller who has read the peer's FIN, after which the socket
        is readable for ever. `records`: of a TLS session, which nobody else may use until the outcome was delivered.
        OSError when no thread can be had, RuntimeError when closed or after a fork.
        """
        cdef Job job = Job.__new__(Job)
        _aim(&job._native, sock_fd, BS_SENDFILE, file_fd, offset, count)
        _seal(&job._native, records)
        job._records = records
        return self._start(job, stall_ms, ignore_readable)

    def start_memory(self, int sock_fd, buffer, int64_t stall_ms, *, bint ignore_readable=False, records=None):
        """Send a contiguous buffer without copying it; its exporter is held until the outcome was delivered."""
        cdef Job job = Job.__new__(Job)
        PyObject_GetBuffer(buffer, &job._view, PyBUF_SIMPLE)
        job._holds_view = True
        _aim(&job._native, sock_fd, BS_SEND, -1, 0, job._view.len)
        job._native.memory = <const char*>job._view.buf
        _seal(&job._native, records)
        job._records = records
        return self._start(job, stall_ms, ignore_readable)

    def start_pipe(self, int sock_fd, int pipe_fd, int64_t count, int64_t stall_ms, *, bint ignore_readable=False):
        """Send `count` bytes out of a pipe or a stream socket, or all until its end with -1. Waiting for it is not a stall.

        A byte leaves the source only when the socket took it, so that another job can go on where one ended. Out of a socket
        they are copied ("read+send").
        """
        cdef Job job = Job.__new__(Job)
        _aim(&job._native, sock_fd, BS_SPLICE, pipe_fd, 0, INT64_MAX if count == -1 else count)
        job._native.stream = True
        job._native.until_end = count == -1
        return self._start(job, stall_ms, ignore_readable)

    cdef Job _start(self, Job job, int64_t stall_ms, bint ignore_readable):
        if self._closed or bs_is_stale(&self._home):
            raise RuntimeError("this BodySender is closed, or was made before a fork")
        if stall_ms < 0:
            raise ValueError(f"stall_ms {stall_ms} is negative")
        job._sender = self
        job._callbacks = []
        job._native.owner = <void*>job
        job._native.stall_ms = stall_ms
        job._native.ignore_readable = ignore_readable
        cdef int error
        with nogil:
            error = bs_submit(&self._home, &job._native)
        if error:
            raise OSError(error, os.strerror(error))
        self._jobs.add(job)
        Py_INCREF(job)
        return job

    def _deliver(self):
        if self._home.event_fd < 0 or bs_is_stale(&self._home):
            return
        cdef bs_job* native = bs_take_done(&self._home)
        cdef list finished = []
        while native is not NULL:
            finished.append(<object>native.owner)
            native = native.next
        self._ready[:0] = finished
        try:
            while self._ready:
                self._settle(self._ready.pop())
        finally:
            if self._ready:  # a callback raised KeyboardInterrupt: the others get their turn in the next round
                bs_signal(self._home.event_fd)

    cdef _settle(self, Job job):
        job.outcome = _outcome(&job._native)
        job._release()
        self._jobs.discard(job)
        Py_DECREF(job)
        callbacks, job._callbacks = job._callbacks, []
        for callback in callbacks:
            try:
                callback(job)
            except Exception as error:
                self._loop.call_exception_handler(
                    {"message": "a callback of a body job failed", "exception": error, "job": job}
                )

    def close(self):
        """Cancel every job and wait for the workers; the callbacks have run when this returns. Idempotent.

        It waits for a step to end: milliseconds, or as long as a dead disk takes. In a forked child, which has no workers,
        it only lets go of the jobs.
        """
        if self._closed:
            return
        self._closed = True
        if bs_is_stale(&self._home):
            self._forget()
            self._close_home()
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(self._home.event_fd)
        for job in self._jobs:
            (<Job>job).cancel()
        while self._jobs:
            if not self._ready:  # not empty when a callback of _deliver called us
                with nogil:
                    bs_wait_done(&self._home)
            self._deliver()
        self._close_home()

    cdef _forget(self):
        # The loop is the parent's: its epoll set is shared, and remove_reader here would take the reader from the parent.
        cdef Job job
        while self._jobs:
            job = self._jobs.pop()
            job._release()
            Py_DECREF(job)

    cdef _close_home(self):
        if self._home.event_fd >= 0:
            close(self._home.event_fd)
            self._home.event_fd = -1

    def __dealloc__(self):
        if self._home.event_fd >= 0:
            close(self._home.event_fd)
