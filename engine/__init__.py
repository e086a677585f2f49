"""engine: puts multi-GB objects into S3 and anything that speaks like it.

It asks before it sends (`Expect: 100-continue`), follows redirects with a request rebuilt and signed for the new host, and
lets the body leave once, from the page cache to the socket.

    import engine
    result = engine.put("big.bin", "s3://bucket/key")
    for hop in result.hops:
        print(hop.url, hop.status, hop.body_bytes_sent)

Start with `Client` (asyncio) or `put` (no event loop needed); `engine.events` has what `on_event` is called with.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

for _extension in ("_bodysend", "_fastparse"):  # a missing one is announced, never silent: nothing works without
    if find_spec(f"engine.{_extension}") is None:
        raise ImportError(
            f"engine's compiled extensions are not there or do not fit this Python ({_extension}). From a source tree, run "
            "'pip install -e .' (it needs gcc and the Python headers), or 'make test'."
        )

if TYPE_CHECKING:
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
    from engine.results import Checksum, Hop, ObjectInfo, Part, Progress, PutResult, Response, Timings, UploadId
    from engine.retry import Retry
    from engine.signing import Credentials

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
    "Part",
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
    "UploadId",
    "UsageError",
    "put",
    "put_async",
]

# Imported when first used: the command line's help should not wait for asyncio.
_HOMES = {
    "client": (
        "Client",
        "Transfer",
        "put",
        "put_async",
    ),
    "config": ("Config",),
    "credentials": ("ANONYMOUS",),
    "errors": (
        "AccessDenied",
        "ChecksumMismatch",
        "ConnectFailed",
        "ConnectionLost",
        "ConnectTimedOut",
        "CredentialsError",
        "EngineError",
        "NotFound",
        "PreconditionFailed",
        "ProtocolError",
        "RedirectRefused",
        "ResponseError",
        "ResponseTimedOut",
        "SlowDown",
        "SourceChanged",
        "SourceNotReplayable",
        "StallTimedOut",
        "TimedOut",
        "TooManyRedirects",
        "TotalTimedOut",
        "TransportError",
        "UploadFailed",
        "UsageError",
    ),
    "redirect": ("RedirectPolicy",),
    "results": (
        "Checksum",
        "Hop",
        "ObjectInfo",
        "Part",
        "Progress",
        "PutResult",
        "Response",
        "Timings",
        "UploadId",
    ),
    "retry": ("Retry",),
    "signing": ("Credentials",),
}


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is not None:
        value = globals()[name] = getattr(import_module(f"engine.{home}"), name)
        return value
    if not name.startswith("_") and find_spec(f"engine.{name}") is not None:  # engine.events, engine.sandbox
        return import_module(f"engine.{name}")
    raise AttributeError(f"module 'engine' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
