"""Where credentials come from, and when they are fetched again.

Owns the search (argument, environment, botocore's chain) and the one refresh in flight. `resolve` gives a `Provider`; its
`get` is called for every request and costs a clock reading as long as nothing is due. A refresh starts `CREDENTIALS_EARLY_S`
before the expiry, in a thread or as a task, while requests go on with the old credentials; only when those are gone does
anybody wait. Knows nothing of signing or HTTP.

A provider may be shared by event loops in several threads, and survives a fork.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import enum
import inspect
import logging
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple, Protocol, cast

from engine import limits
from engine.errors import CredentialsError, UsageError
from engine.signing import Credentials
from engine.wire import printable

log = logging.getLogger("engine")


class Anonymous(enum.Enum):
    """The type of ANONYMOUS: requests are not signed, as for public buckets."""

    ANONYMOUS = "anonymous"

    def __repr__(self) -> str:
        return "engine.ANONYMOUS"


ANONYMOUS: Final = Anonymous.ANONYMOUS

CredentialsCallable = Callable[[], Credentials | Awaitable[Credentials]]
CredentialsOption = Credentials | Anonymous | CredentialsCallable | None

_ORPHAN_CHECK_S: Final = 1.0  # how often a waiter looks whether the loop that refreshes is closed
_REFRESH_AGAIN_S: Final = 30.0  # after a refresh failed while the old credentials are valid

_WHAT_TO_DO: Final = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, pass credentials=engine.Credentials(access_key, secret_key), "
    "or ask unsigned with credentials=engine.ANONYMOUS (--no-sign-request)."
)


class Provider(Protocol):
    """What `resolve` returns.

    Attributes:
      origin: where the credentials came from, for people; "" as long as `get` has not found any.
    """

    origin: str

    async def get(self) -> Credentials | None:
        """Valid credentials, None for anonymous requests. Raises CredentialsError."""

    def at_hand(self) -> Credentials | None:
        """What `get` would give without looking for it; None when it has to look, has none or would raise."""

    def invalidate(self, credentials: Credentials) -> bool:
        """The server called these expired or revoked: the next `get` fetches others. False when there are no others."""


def resolve(option: CredentialsOption, *, profile: str | None = None) -> Provider:
    """The provider for a `credentials` option. Reads nothing yet: the environment and files are read by the first `get`.

    Args:
      option: credentials; a callable, sync (run in a thread) or async (awaited on the calling loop), that returns some;
        ANONYMOUS; None for the environment, then botocore's chain where botocore is installed (extra `[aws]`).
      profile: a profile's name for the chain; the keys in the environment are then passed over, as botocore does.

    Raises UsageError for anything else.
    """
    if option is None:
        return _Chain(profile)
    if profile is not None:
        raise UsageError("profile: cannot be combined with credentials")
    if isinstance(option, (Credentials, Anonymous)):
        return _Fixed(option)
    if callable(option) and not isinstance(option, type):
        return _Called(option)
    raise UsageError(
        f"credentials: {type(option).__name__} is neither engine.Credentials, engine.ANONYMOUS, None nor a function"
    )


class _Fixed:
    def __init__(self, option: Credentials | Anonymous) -> None:
        self._credentials = option if isinstance(option, Credentials) else None
        self.origin = "argument" if isinstance(option, Credentials) else "anonymous"

    async def get(self) -> Credentials | None:
        credentials = self._credentials
        if credentials is not None and credentials.expires_at is not None:
            _check_expiry(credentials, time.time(), "the credentials argument")
        return credentials

    def at_hand(self) -> Credentials | None:
        credentials = self._credentials
        return credentials if credentials is not None and credentials.expires_at is None else None

    def invalidate(self, credentials: Credentials) -> bool:
        return False


# --- one refresh at a time --------------------------------------------------------------------------------------------


class _Orphaned(Exception):
    """The loop that ran the refresh went away; whoever waits starts another."""


class _Flight:
    """One refresh under way. `outcome` is the error, or None; it is for any thread and loop to wait for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.on_loop = False  # whether `loop` must live for this to end
        self.task: asyncio.Task[Credentials] | None = None  # kept here: a loop holds its tasks weakly
        self.outcome: Future[Exception | None] = Future()

    def is_orphaned(self) -> bool:
        return self.on_loop and self.loop.is_closed()


_refreshing: weakref.WeakSet[_Refreshing] = weakref.WeakSet()


def _forget_flights() -> None:
    # The threads that flew them did not come along into this process, and one may have held the lock.
    for provider in _refreshing:
        provider._after_fork()


os.register_at_fork(after_in_child=_forget_flights)


class _Refreshing:
    """Credentials that are kept until shortly before they expire, and fetched by one flight at a time."""

    name = ""  # for messages: what is being asked

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.origin = ""
        self._clock = clock
        self._lock = threading.Lock()  # held for a few statements, never across a wait
        self._current: Credentials | None = None
        self._refresh_at = 0.0  # seconds since the epoch; inf for credentials without expiry
        self._flight: _Flight | None = None
        _refreshing.add(self)

    def _fetch_now(self) -> Credentials | None:
        """What can be had without blocking, None when that is nothing. Raises CredentialsError."""
        return None

    def _fetch(self) -> Credentials | Awaitable[Credentials]:
        """Called in a thread of its own; an awaitable it returns is awaited on the loop."""
        raise NotImplementedError

    def _fetches_on_loop(self) -> bool:
        """Whether `_fetch` is to be called on the loop instead."""
        return False

    async def get(self) -> Credentials | None:
        return self.at_hand() or await self._get_slowly()

    def at_hand(self) -> Credentials | None:
        current = self._current
        return current if current is not None and self._clock() < self._refresh_at else None

    async def _get_slowly(self) -> Credentials:
        loop = asyncio.get_running_loop()
        while True:
            with self._lock:
                current, now = self._current, self._clock()
                if current is not None and now < self._refresh_at:
                    return current
                flight = self._flight
                starts = flight is None or flight.is_orphaned()
                if flight is None or starts:
                    flight = self._flight = _Flight(loop)
            if starts:
                self._start(flight)
            if current is not None and current.expires_at is not None and now < current.expires_at:
                return current  # the refresh goes on in the background
            try:
                await _wait(flight)
            except _Orphaned:
                continue
            if (fetched := self._current) is not None:
                return fetched  # as fetched, even when the clock has moved past refresh_at meanwhile

    def _start(self, flight: _Flight) -> None:
        try:
            fetched = self._fetch_now()
            if fetched is not None:
                self._land(flight, fetched)
            elif self._fetches_on_loop():
                self._await_on_loop(flight, cast("Awaitable[Credentials]", self._fetch()))
            else:
                # Not the loop's executor: it may be busy hashing files, and asyncio.run waits for its threads, whereas a
                # metadata service that does not answer should not delay the exit.
                run = contextvars.copy_context().run
                threading.Thread(target=run, args=(self._fly, flight), name="engine-credentials", daemon=True).start()
        except Exception as error:
            self._crash(flight, error)

    def _fly(self, flight: _Flight) -> None:
        try:
            fetched = self._fetch()
            if not inspect.isawaitable(fetched):
                self._land(flight, fetched)
                return
            flight.on_loop = True
            try:
                flight.loop.call_soon_threadsafe(self._await_on_loop, flight, fetched)
            except RuntimeError:  # the loop was closed meanwhile
                if inspect.iscoroutine(fetched):
                    fetched.close()
                self._crash(flight, _Orphaned())
        except BaseException as error:  # SystemExit in a thread would leave the waiters waiting
            self._crash(flight, error)

    def _await_on_loop(self, flight: _Flight, fetched: Awaitable[Credentials]) -> None:
        async def wait() -> Credentials:
            return await fetched

        def landed(task: asyncio.Task[Credentials]) -> None:
            if task.cancelled():
                self._crash(flight, _Orphaned())  # nobody but the loop's shutdown cancels it
            elif (error := task.exception()) is not None:
                self._crash(flight, error)
            else:
                self._land(flight, task.result())

        flight.on_loop = True
        flight.task = flight.loop.create_task(wait(), name="engine-credentials")
        flight.task.add_done_callback(landed)

    def _land(self, flight: _Flight, fetched: object) -> None:
        now = self._clock()
        try:
            if not isinstance(fetched, Credentials):
                raise CredentialsError(f"{self.name} gave {type(fetched).__name__} instead of engine.Credentials")
            _check_expiry(fetched, now, self.origin or self.name)
        except CredentialsError as error:
            self._crash(flight, error)
            return
        with self._lock:
            self._current, self._refresh_at = fetched, _refresh_at(fetched, now)
            if self._flight is flight:
                self._flight = None
        flight.outcome.set_result(None)

    def _crash(self, flight: _Flight, error: BaseException) -> None:
        with self._lock:
            if self._flight is flight:
                self._flight = None
            current, now = self._current, self._clock()
            left_s = 0.0 if current is None or current.expires_at is None else current.expires_at - now
            if left_s > 0:
                self._refresh_at = now + min(_REFRESH_AGAIN_S, left_s / 2)
        if left_s > 0 and not isinstance(error, _Orphaned):
            log.warning("credentials: refresh failed (%s); the present ones last %d s", type(error).__name__, left_s)
        if isinstance(error, (CredentialsError, _Orphaned)):
            flight.outcome.set_result(error)
        else:
            # The text of a stranger's exception may hold a secret; it is there as the cause.
            wrapped = CredentialsError(f"{self.name} failed with {type(error).__name__}")
            wrapped.__cause__ = error
            flight.outcome.set_result(wrapped)

    def invalidate(self, credentials: Credentials) -> bool:
        with self._lock:
            if self._current == credentials:
                self._current = None
                self._drop_source()
        return True

    def _drop_source(self) -> None:
        """Forget what the next fetch could be answered from."""

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._flight = None
        self._drop_source()


async def _wait(flight: _Flight) -> None:
    """Until the flight has landed. Raises what it crashed with."""
    if not flight.outcome.done():
        # Waited for by asyncio.wait, which leaves it alone when this caller is cancelled: others wait for the same outcome.
        waiter = asyncio.wrap_future(flight.outcome)
        while not waiter.done():
            await asyncio.wait((waiter,), timeout=_ORPHAN_CHECK_S)
            if not waiter.done() and flight.is_orphaned():
                raise _Orphaned
    error = flight.outcome.result()
    if isinstance(error, CredentialsError):
        # One each: what is raised gets a traceback and the facts of one call.
        raise copy.copy(error) from error.__cause__
    if error is not None:
        raise error


def _refresh_at(credentials: Credentials, now: float) -> float:
    if credentials.expires_at is None:
        return float("inf")
    # Those that live shorter than the margin are refreshed at half their life, or every request would start a refresh.
    return max(credentials.expires_at - limits.CREDENTIALS_EARLY_S, (now + credentials.expires_at) / 2)


def _check_expiry(credentials: Credentials, now: float, name: str) -> None:
    if credentials.expires_at is not None and credentials.expires_at <= now:
        when = datetime.fromtimestamp(credentials.expires_at, timezone.utc)
        raise CredentialsError(f"credentials from {name} expired at {when:%Y-%m-%d %H:%M:%S} UTC; is the clock right?")


class _Called(_Refreshing):
    def __init__(self, function: CredentialsCallable, clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock)
        self._fetch_with = function
        self.name = f"the credentials function {getattr(function, '__qualname__', type(function).__name__)}"
        self.origin = self.name

    def _fetch(self) -> Credentials | Awaitable[Credentials]:
        return self._fetch_with()

    def _fetches_on_loop(self) -> bool:
        function = self._fetch_with
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


# --- the environment, then botocore's chain ---------------------------------------------------------------------------


def from_environment(environ: Mapping[str, str]) -> Credentials | None:
    """AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_CREDENTIAL_EXPIRATION (ISO 8601, as
    `aws configure export-credentials` prints it). None when there is no key; an empty variable counts as absent.

    Raises CredentialsError for one half of a pair.
    """
    access_key, secret_key = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if not access_key and not secret_key:
        return None
    if not access_key or not secret_key:
        there, missing = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")[:: 1 if access_key else -1]
        raise CredentialsError(f"{there} is set in the environment, but {missing} is not")
    expires_at = None
    if text := environ.get("AWS_CREDENTIAL_EXPIRATION"):
        try:
            when = datetime.fromisoformat(text.replace("Z", "+00:00"))
        except ValueError:
            raise CredentialsError("AWS_CREDENTIAL_EXPIRATION in the environment is not an ISO 8601 time") from None
        expires_at = when.replace(tzinfo=when.tzinfo or timezone.utc).timestamp()
    return Credentials(access_key, secret_key, environ.get("AWS_SESSION_TOKEN"), expires_at)


class _Chain(_Refreshing):
    name = "the environment or botocore's chain"

    def __init__(self, profile: str | None, clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock)
        self._profile = profile
        self._botocore: Any = None  # botocore's Credentials, which refresh themselves when asked for their values

    def _fetch_now(self) -> Credentials | None:
        found = from_environment(os.environ) if self._profile is None else None
        if found is not None:
            self.origin = "environment"
        return found

    def _fetch(self) -> Credentials:
        found = self._botocore
        if found is None:
            found = self._botocore = _ask_botocore(self._profile)
        self.origin = f"botocore: {getattr(found, 'method', None) or 'unknown'}"
        try:
            values = found.get_frozen_credentials()
        except Exception as error:
            raise _botocore_failed(error) from error
        # botocore tells the expiry nowhere in public.
        expiry = getattr(found, "_expiry_time", None)
        expires_at = expiry.timestamp() if isinstance(expiry, datetime) else None
        return Credentials(values.access_key, values.secret_key, values.token, expires_at)

    def _drop_source(self) -> None:
        self._botocore = None


def _ask_botocore(profile: str | None) -> Any:
    """botocore's credentials object. Blocks: reads files, may ask SSO, STS or a metadata service. Raises CredentialsError."""
    try:
        from botocore.session import Session
    except ImportError:
        looked = f"profile {profile}" if profile else "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: not set"
        raise CredentialsError(
            f"No credentials found. Looked at: {looked}. Not looked at, because botocore is not installed: profiles, SSO, "
            f"assume-role, web identity, ECS and EC2 roles (pip install 'putengine[aws]'). {_WHAT_TO_DO}"
        ) from None
    try:
        session = Session(profile=profile)
        found = session.get_credentials()
        looked_at = _looked_at(session, profile)
    except Exception as error:
        raise _botocore_failed(error) from error
    if found is None:
        raise CredentialsError(f"No credentials found. Looked at: {'; '.join(looked_at)}. {_WHAT_TO_DO}")
    return found


def _botocore_failed(error: Exception) -> CredentialsError:
    from botocore.exceptions import BotoCoreError, ClientError

    # botocore's messages name providers, profiles and files, and no secret; another library's are not vouched for.
    told = (
        f": {printable(str(error), limits.SERVER_MESSAGE_MAX_CHARS)}"
        if isinstance(error, (BotoCoreError, ClientError))
        else ""
    )
    return CredentialsError(f"botocore could not get credentials: {type(error).__name__}{told}")


def _looked_at(session: Any, profile: str | None) -> list[str]:
    environ = os.environ
    name = profile or session.get_config_variable("profile") or "default"
    files = f"{session.get_config_variable('credentials_file')} and {session.get_config_variable('config_file')}"
    container = [
        variable
        for variable in ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
        if environ.get(variable)
    ]
    disabled = environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
    return [
        "the environment, passed over for the profile"
        if profile
        else "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: not set",
        f"profile {name} (keys, SSO, assume-role, web identity, process) in {files}",
        f"container role: {container[0]}" if container else "container role: no AWS_CONTAINER_CREDENTIALS_…_URI",
        "EC2 role: AWS_EC2_METADATA_DISABLED" if disabled else "EC2 role: the metadata service gave none",
    ]


# --- config --explain -------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """One place that was looked at.

    Attributes:
      name: "argument", "environment" or "botocore".
      used: whether the credentials come from here; at most one source of a list is.
      detail: what is there, without any secret.
    """

    name: str
    used: bool
    detail: str


def explain(option: CredentialsOption = None, *, profile: str | None = None, probe: bool = True) -> list[Source]:
    """Every source in the order of the search, for `config --explain`. Raises nothing but UsageError.

    Args:
      probe: ask botocore's chain too, which reads files and may ask the network (blocks, for seconds where a metadata service
        does not answer); False leaves that source out.
    """
    provider = resolve(option, profile=profile)
    if option is not None:
        return [
            Source("argument", True, repr(option) if isinstance(option, (Credentials, Anonymous)) else provider.origin)
        ]
    sources = [Source("argument", False, "not given")]
    environment = _explain_environment(profile)
    sources.append(environment)
    if environment.used or not probe:
        return sources
    try:
        credentials = cast("_Chain", provider)._fetch()
    except CredentialsError as error:
        return [*sources, Source("botocore", False, str(error))]
    return [*sources, Source("botocore", True, f"{provider.origin.removeprefix('botocore: ')}: {credentials!r}")]


def _explain_environment(profile: str | None) -> Source:
    try:
        found = from_environment(os.environ)
    except CredentialsError as error:
        return Source("environment", False, str(error))
    if found is None:
        return Source("environment", False, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: not set")
    if profile is not None:
        return Source("environment", False, f"{found!r}, passed over because a profile was named")
    return Source("environment", True, repr(found))
