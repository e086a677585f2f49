"""engine: puts multi-GB objects into S3 and anything that speaks like it.

It asks before it sends (`Expect: 100-continue`), follows redirects with a request rebuilt and signed for the new host, and
lets the body leave once, from the page cache to the socket.
"""

__version__ = "0.1.0"
