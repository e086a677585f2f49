"""expect() and feed_buffer() called from C, as a Cython connection would."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from engine._fastparse cimport ResponseParser


def run(ResponseParser parser, list stream, Py_ssize_t loops):
    """Feed the messages of `stream`, one a feed, for each of `loops` requests."""
    cdef bytes data
    for _ in range(loops):
        parser.expect("PUT")
        for data in stream:
            parser.feed_buffer(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
