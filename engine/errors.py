"""Every error this package raises on purpose, sorted by who must act.

    EngineError
      UsageError (ValueError)           you: a bad argument, or calls in a wrong order
      ProtocolError                     the peer: what it sent is not HTTP/1.1 as we accept it
      TransportError (ConnectionError)  the network
        ConnectFailed                     no connection came about
        ConnectionLost                    one was there and went away
      TimedOut (TimeoutError)           the network or the peer: too slow
        ConnectTimedOut, StallTimedOut, ResponseTimedOut, TotalTimedOut
      ResponseError                     the server: it understood, and said no
        AccessDenied (PermissionError), NotFound (FileNotFoundError), PreconditionFailed (FileExistsError), SlowDown
        RedirectRefused                   we: the redirect leads where the policy does not go
        TooManyRedirects
      SourceChanged                     you: the file shrank or was replaced while it was being sent
      SourceNotReplayable               you: body bytes had left, and the source cannot be sent again
      ChecksumMismatch                  nobody knows: the stored bytes are not the sent ones
      UploadFailed                      a multipart upload did not complete

Facts are attributes; no decision is ever taken from a message. An exception that escapes the package and is
neither one of these, nor an OSError of the source, nor `asyncio.CancelledError`, is a bug of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.results import Hop


class EngineError(Exception):
    """Base of all.

    Attributes (set by the client before the error reaches the caller):
      stage: where it happened: "usage", "resolve", "connect", "tls", "head", "continue", "body", "answer", "redirect",
        "checksum" or "" when not known.
      hops: the `Hop`s up to and including the one that failed.
      body_bytes_sent: body bytes handed to the kernel over all hops and attempts.
      attempts: how many attempts were made, the failing one included.
      retryable: whether the same call may succeed when made again unchanged.
    """

    retryable: bool = False

    def __init__(self, message: str, *, stage: str = "", retryable: bool | None = None) -> None:
        super().__init__(message)
        self.stage = stage
        self.hops: tuple[Hop, ...] = ()
        self.body_bytes_sent = 0
        self.attempts = 0
        if retryable is not None:
            self.retryable = retryable

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        # The OSError half of some subclasses would print "[Errno …]".
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers send errors home by pickle; keyword-only arguments need this.
        state = self.__dict__.copy()
        if isinstance(self, OSError) and self.errno is not None:
            state["errno"] = self.errno  # OSError keeps it elsewhere
        return (_rebuild, (type(self), self.args, state))


def _rebuild(cls: type[EngineError], args: tuple[Any, ...], state: dict[str, Any]) -> EngineError:
    error = cls.__new__(cls)
    error.args = args
    for name, value in state.items():
        setattr(error, name, value)
    return error


class UsageError(EngineError, ValueError):
    """A bad argument, or calls in a wrong order. Nothing was sent."""

    def __init__(self, message: str, *, stage: str = "usage") -> None:
        super().__init__(message, stage=stage)


class CredentialsError(UsageError):
    """No usable credentials were found; the message says where was looked. Nothing was sent."""


class ProtocolError(EngineError):
    """What the peer sent is not HTTP/1.1 as we accept it.

    Attributes:
      kind: short name of the fault, e.g. "bare-lf" (the table is in docs/parser.md).
      offset: bytes from the start of the answer to the fault.
      excerpt: a few escaped bytes around it.
    """

    def __init__(self, message: str, *, kind: str, offset: int = 0, excerpt: str = "", stage: str = "answer") -> None:
        super().__init__(message, stage=stage)
        self.kind = kind
        self.offset = offset
        self.excerpt = excerpt


class TransportError(EngineError, ConnectionError):
    """The network failed. `errno` is the kernel's number where there is one."""

    retryable = True

    def __init__(
        self, message: str, *, errno: int | None = None, stage: str = "", retryable: bool | None = None
    ) -> None:
        super().__init__(message, stage=stage, retryable=retryable)
        self.errno = errno


class ConnectFailed(TransportError):
    """No connection came about: name not found, refused, unreachable, or TLS could not be agreed on."""


class ConnectionLost(TransportError):
    """The connection ended before the answer was complete."""


class TimedOut(EngineError, TimeoutError):
    """Something took longer than its limit. `limit_s` is the limit in seconds."""

    retryable = True

    def __init__(self, message: str, *, limit_s: float, stage: str = "") -> None:
        super().__init__(message, stage=stage)
        self.limit_s = limit_s


class ConnectTimedOut(TimedOut):
    """`connect_timeout_s` passed without a connection."""


class StallTimedOut(TimedOut):
    """`stall_timeout_s` passed in which the kernel accepted no body byte (or, for a get, the server sent none)."""


class ResponseTimedOut(TimedOut):
    """`response_timeout_s` passed without the answer that was due."""


class TotalTimedOut(TimedOut):
    """`total_timeout_s` passed."""

    retryable = False


class ResponseError(EngineError):
    """The server answered, and the answer is no.

    Attributes:
      status: HTTP status code.
      code: S3 error code ("NoSuchBucket"), "" when the answer has none.
      server_message: the server's own words, "" when it has none; cut to a bounded length.
      request_id, host_id: what the server's operator asks for, "" when absent.
      retry_after_s: seconds the server asked to wait, None when it did not.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str = "",
        server_message: str = "",
        request_id: str = "",
        host_id: str = "",
        retry_after_s: float | None = None,
        retryable: bool | None = None,
        stage: str = "answer",
    ) -> None:
        super().__init__(message, stage=stage, retryable=retryable)
        self.status = status
        self.code = code
        self.server_message = server_message
        self.request_id = request_id
        self.host_id = host_id
        self.retry_after_s = retry_after_s


class AccessDenied(ResponseError, PermissionError):
    """401 or 403."""


class NotFound(ResponseError, FileNotFoundError):
    """404 or 410."""


class PreconditionFailed(ResponseError, FileExistsError):
    """412, or 409 on a conditional write: `if_match` or `if_none_match` did not hold."""


class SlowDown(ResponseError):
    """429, or 503 SlowDown: the server asks for fewer requests."""

    retryable = True


class RedirectRefused(ResponseError):
    """The server redirects to where the `RedirectPolicy` does not go.

    Attributes: reason: short name, e.g. "host-not-allowed"; location: the target, redacted.
    """

    def __init__(self, message: str, *, status: int, reason: str, location: str = "", code: str = "") -> None:
        super().__init__(message, status=status, code=code, stage="redirect")
        self.reason = reason
        self.location = location


class TooManyRedirects(RedirectRefused):
    """More than `RedirectPolicy.max_hops` redirects."""


class SourceChanged(EngineError):
    """The file shrank, grew or was replaced while it was being sent. The object was not stored, or should not be trusted."""

    def __init__(self, message: str, *, stage: str = "body") -> None:
        super().__init__(message, stage=stage)


class SourceNotReplayable(EngineError):
    """Body bytes had left, the request would have to be sent again, and the source cannot be read again."""

    def __init__(self, message: str, *, stage: str = "body") -> None:
        super().__init__(message, stage=stage)


class ChecksumMismatch(EngineError):
    """The server's checksum is not that of the bytes sent.

    Attributes: algorithm, sent, stored: base64 text as in the x-amz-checksum-* fields.
    """

    def __init__(self, message: str, *, algorithm: str, sent: str, stored: str) -> None:
        super().__init__(message, stage="checksum")
        self.algorithm = algorithm
        self.sent = sent
        self.stored = stored


class UploadFailed(EngineError):
    """A multipart upload did not complete, and its parts are still at the store: they could not be removed, or were kept for
    `resume`. (When they could be removed, the error that ended the upload is raised itself.)

    Attributes: upload_id; aborted: whether its parts were removed; cause: the error that ended it.
    """

    def __init__(self, message: str, *, upload_id: str, aborted: bool, cause: BaseException | None = None) -> None:
        super().__init__(message, stage="upload")
        self.upload_id = upload_id
        self.aborted = aborted
        self.cause = cause
