"""What a put tells while it runs, for `on_event` and `--trace`. Values only; secrets in URLs and heads are redacted.

`at` is `time.monotonic()` in seconds; hops and attempts count from 1. A handler runs on the event loop and must not block; what
it raises goes to the loop's exception handler, never into the put.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.results import SendPath


@dataclass(frozen=True, slots=True)
class Resolved:
    """A host name became addresses, in the order in which they will be tried."""

    at: float
    host: str
    addresses: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Connected:
    """There is a connection; `reused` ones took no time."""

    at: float
    origin: str
    address: str
    reused: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class HeadSent:
    """The kernel took the last byte of a request head. `head` is the redacted text."""

    at: float
    hop: int
    attempt: int
    method: str
    url: str
    head: str
    expect: bool


@dataclass(frozen=True, slots=True)
class Continue:
    """An interim answer. Only `status` 100 is a go-ahead."""

    at: float
    status: int
    head: str


@dataclass(frozen=True, slots=True)
class BodyStarted:
    """The body begins to leave; `why` is "continue" (leave was given), "timeout" (the wait ended) or "off" (not asked)."""

    at: float
    size: int | None
    why: str
    waited_s: float


@dataclass(frozen=True, slots=True)
class Receiving:
    """The body of a 2xx begins to come, for a get or `request`; `size` is None when the server does not tell it. Again after a
    retry."""

    at: float
    size: int | None


@dataclass(frozen=True, slots=True)
class Response:
    """A final answer is complete. `body_bytes_sent` is this hop's."""

    at: float
    status: int
    head: str
    body_bytes_sent: int
    send_path: SendPath


@dataclass(frozen=True, slots=True)
class Redirect:
    """The answer is followed. `kind`: "location", "region" or "endpoint"; `region`: to sign for, "" when unsigned."""

    at: float
    status: int
    url: str
    region: str
    kind: str


@dataclass(frozen=True, slots=True)
class Retry:
    """The same request will be made again after `after_s` seconds. `attempt` is the number of the attempt to come."""

    at: float
    attempt: int
    after_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """The call is over; `error` is the name of the error's class, "" on success."""

    at: float
    status: int
    error: str
    body_bytes_sent: int
    seconds: float


Event = Resolved | Connected | HeadSent | Continue | BodyStarted | Receiving | Response | Redirect | Retry | Done
