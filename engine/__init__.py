"""engine: puts multi-GB objects into S3 and anything that speaks like it.

It asks before it sends (`Expect: 100-continue`), follows redirects with a request rebuilt and signed for the new host, and
lets the body leave once, from the page cache to the socket.

    import engine
    result = engine.put("big.bin", "s3://bucket/key")
    for hop in result.hops:
        print(hop.url, hop.status, hop.body_bytes_sent)

Start with `Client` (asyncio) or `put` (no event loop needed); `engine.events` has what `on_event` is called with.
"""

__version__ = "0.1.0"

try:
    from engine import _bodysend, _fastparse
except ImportError as missing:  # a missing extension is announced, never silent: nothing works without
    raise ImportError(
        f"engine's compiled extensions are not there or do not fit this Python ({missing}). From a source tree, run "
        "'pip install -e .' (it needs gcc and the Python headers), or 'make test'."
    ) from missing

from engine.client import Client, Transfer, put, put_async
from engine.config import Config
from engine.credentials import ANONYMOUS
from engine.errors import (
    AccessDenied,
    ChecksumMismatch,
    ConnectFailed,
    ConnectionLost,
    ConnectTimedOut,
    CredentialsError,
    EngineError,
    NotFound,
    PreconditionFailed,
    ProtocolError,
    RedirectRefused,
    ResponseError,
    ResponseTimedOut,
    SlowDown,
    SourceChanged,
    SourceNotReplayable,
    StallTimedOut,
    TimedOut,
    TooManyRedirects,
    TotalTimedOut,
    TransportError,
    UploadFailed,
    UsageError,
)
from engine.redirect import RedirectPolicy
from engine.results import Checksum, Hop, ObjectInfo, Progress, PutResult, Response, Timings
from engine.retry import Retry
from engine.signing import Credentials

del _bodysend, _fastparse

__all__ = [
    "ANONYMOUS",
    "AccessDenied",
    "Checksum",
    "ChecksumMismatch",
    "Client",
    "Config",
    "ConnectFailed",
    "ConnectTimedOut",
    "ConnectionLost",
    "Credentials",
    "CredentialsError",
    "EngineError",
    "Hop",
    "NotFound",
    "ObjectInfo",
    "PreconditionFailed",
    "Progress",
    "ProtocolError",
    "PutResult",
    "RedirectPolicy",
    "RedirectRefused",
    "Response",
    "ResponseError",
    "ResponseTimedOut",
    "Retry",
    "SlowDown",
    "SourceChanged",
    "SourceNotReplayable",
    "StallTimedOut",
    "TimedOut",
    "Timings",
    "TooManyRedirects",
    "TotalTimedOut",
    "Transfer",
    "TransportError",
    "UploadFailed",
    "UsageError",
    "put",
    "put_async",
]
