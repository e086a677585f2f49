"""One intent carried out: hops, redirects, attempts, and the account of every body byte.

Each hop's request is built anew from the intent (`redirect.Intent`): new Host, fresh date, new signature; nothing is copied
from the head that went before. What is decided here is only the order of questions; the answers come from `exchange` (may the
body leave?), `redirect` (where to?) and `retry` (again?).
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import engine
from engine import events, limits, redirect, retry, s3, signing
from engine._fastparse import Response
from engine._smallput import SmallPut
from engine.body import Body, until_done
from engine.connection import Connection, Reply
from engine.errors import (
    ConnectFailed,
    ConnectionLost,
    ConnectTimedOut,
    EngineError,
    ProtocolError,
    RedirectRefused,
    ResponseError,
    SourceChanged,
    SourceNotReplayable,
    StallTimedOut,
    TimedOut,
    TotalTimedOut,
    TransportError,
    UsageError,
)
from engine.exchange import Exchange, Fate, OriginFacts, Plan, State, plan_body
from engine.pool import Acquired, AddressCheck, AddressRefused, Pool
from engine.proxy import Proxy, choose_proxy
from engine.results import ExpectOutcome, Hop, Progress, SendPath, Timings
from engine.tls import Tls
from engine.turns import Turns
from engine.wire import (
    Field,
    Origin,
    Url,
    is_address,
    redact_head,
    request_head,
    secret_values,
    secret_words,
    without_pieces,
    without_secrets,
)

if TYPE_CHECKING:
    from engine.config import Config
    from engine.credentials import Provider

T = TypeVar("T")
log = logging.getLogger("engine")

_ORIGINS_MAX = 1024  # remembered; the oldest is forgotten, and asked as a stranger again
_STALE_CREDENTIALS = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired")


class Shared:
    """What the requests of one client have in common. Belongs to one event loop and one process."""

    def __init__(self, config: Config) -> None:
        self._max_connections = config.max_connections
        self._max_idle_s = config.max_idle_s
        self._tls = Tls(config.tls)
        self._pool: Pool | None = None
        self._turns: Turns | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._closed = False
        self.regions = s3.RegionCache()
        self.budget = retry.Budget()
        self.clock_offset = timedelta(0)
        self._origins: OrderedDict[Origin, OriginFacts] = OrderedDict()
        self._places: OrderedDict[tuple[Origin, str], _Place] = OrderedDict()

    def pool(self) -> Pool:
        """The pool of this loop. After a fork a new one: the inherited connections are the parent's, and stay unread."""
        loop = asyncio.get_running_loop()
        if self._closed:
            raise UsageError("the client is closed")
        self._disinherit()
        if self._pool is None:
            self._pool = Pool(max_connections=self._max_connections, max_idle_s=self._max_idle_s, tls=self._tls)
            self._turns = Turns(limits.SOURCES_PER_CONNECTION_MAX * self._max_connections)
            self._loop, self._pid = loop, os.getpid()
        elif self._loop is not loop:
            raise UsageError("a Client belongs to the event loop it was first used on; make one for each loop")
        return self._pool

    @property
    def turns(self) -> Turns:
        """Taken before a source is opened. Raises as `pool`."""
        self.pool()
        assert self._turns is not None
        return self._turns

    def facts(self, origin: Origin) -> OriginFacts:
        found = self._origins.get(origin)
        if found is None:
            found = self._origins[origin] = OriginFacts()
            if len(self._origins) > _ORIGINS_MAX:
                self._origins.popitem(last=False)
        return found

    def place(self, intent: redirect.Intent) -> _Place | None:
        """Where the endpoint once said that the bucket is for good."""
        return self._places.get((intent.url.origin, intent.bucket)) if self._places else None

    def learn_place(self, intent: redirect.Intent, place: _Place) -> None:
        self._places[intent.url.origin, intent.bucket] = place
        if len(self._places) > s3.REGIONS_MAX:
            self._places.popitem(last=False)

    def forget_place(self, intent: redirect.Intent) -> None:
        self._places.pop((intent.url.origin, intent.bucket), None)

    def _disinherit(self) -> None:
        """In a forked child: leave the parent's connections alone."""
        if self._pool is not None and self._pid != os.getpid():
            _INHERITED.append(self._pool)
            self._pool = None

    async def close(self) -> None:
        self._disinherit()
        pool, loop = self._pool, self._loop
        if pool is not None and loop is not asyncio.get_running_loop():
            assert loop is not None
            if not loop.is_closed():
                raise UsageError("a Client is closed on the event loop that it was used on")
            pool = None  # its connections went with their loop
        self._closed, self._pool = True, None
        if pool is not None:
            await pool.close()


# Keeps the transports of a parent process from being collected, and so closed in the parent's name, in a child.
_INHERITED: list[Pool] = []


@dataclass
class Outcome:
    """A successful answer and what it took."""

    reply: Reply
    url: Url
    region: str
    hops: tuple[Hop, ...]
    attempts: int
    redirects: int
    body_bytes_sent: int
    expect: ExpectOutcome
    send_path: SendPath
    timings: Timings


class _Place(NamedTuple):
    """Of a bucket; `told_by` is the address that said so, against which this origin's are judged ("" where they are not)."""

    origin: Origin
    told_by: str


@dataclass
class Target:
    """Where the next hop goes. `asks`: False when somebody else has asked there already, on behalf of this request too."""

    url: Url
    region: str
    signed: bool
    learned_region: str = ""
    learned_place: _Place | None = None
    redirected_by: str | None = None  # the peer's address, when resolved addresses have to be judged against it
    redirect_status: int = 0
    asks: bool = True


@dataclass
class _Answered:
    """A hop that got a final answer."""

    target: Target
    exchange: Exchange
    reply: Reply
    address: str
    send_path: SendPath
    timings: Timings

    @property
    def response(self) -> Response:
        return self.reply.response


@dataclass
class Job:
    """What is to be done, and with what. `fields` computed late (checksums) are in the intent already.

    Attributes:
      what: the request in words, for errors: "PUT s3://bucket/key".
      payload_hash: for the signature. provider: None when the intent is not signed.
      framing: the fields that tell the body's length, in the order they are sent.
      sink: takes the body of a 2xx answer, piece by piece. any_status: answers of 4xx and 5xx are results, not errors.
      on_body_start: called once, when the first body byte is about to leave.
      start: where the first attempt begins, instead of the intent's own URL.
      check_answer: looks at a 2xx answer, and raises a ResponseError when its body says otherwise.
      on_retry: called with the error that is about to be met by another attempt.
      verify: looks at what was stored, after a success; what it raises is the error of the call.
      began: when the call did, by the monotonic clock; `Config.total_timeout_s` counts from there.
    """

    intent: redirect.Intent
    config: Config
    what: str
    provider: Provider | None = None
    body: Body | None = None
    payload_hash: str = signing.UNSIGNED_PAYLOAD
    framing: tuple[Field, ...] = ()
    sink: Callable[[memoryview], object] | None = None
    rewind_sink: Callable[[], bool] | None = None
    any_status: bool = False
    idempotent: bool = True
    conditional: bool = False
    on_event: Callable[[events.Event], object] | None = None
    on_body_start: Callable[[], object] | None = None
    start: Target | None = None
    check_answer: Callable[[Reply], object] | None = None
    on_retry: Callable[[EngineError], object] | None = None
    verify: Callable[[Response], Awaitable[None]] | None = None
    began: float = dataclasses.field(default_factory=monotonic)

    @property
    def deadline(self) -> float | None:
        return None if self.config.total_timeout_s is None else self.began + self.config.total_timeout_s


# Where a TotalTimedOut happened, by the phase that people are shown.
_STAGES = {
    "hashing": "checksum",
    "resolving": "resolve",
    "connecting": "connect",
    "asking": "continue",
    "sending": "body",
    "awaiting answer": "answer",
}


def total_timed_out(what: str, total_s: float, stage: str) -> TotalTimedOut:
    return TotalTimedOut(f"{what}: not done within {total_s:g} s", limit_s=total_s, stage=stage)


async def within(deadline: float | None, work: Coroutine[Any, Any, T], timed_out: Callable[[], TotalTimedOut]) -> T:
    """Do `work` until `deadline` (monotonic clock; None for ever), then raise `timed_out()`.

    The work has come to its end in any case when this returns or raises, however often the caller is cancelled meanwhile.
    Not asyncio.wait_for: before Python 3.12 it loses a result when a cancellation crosses with it.
    """
    if deadline is None:
        return await work
    running = asyncio.ensure_future(work)
    try:
        await asyncio.wait([running], timeout=max(0.0, deadline - monotonic()))
        if running.done():
            return running.result()
        error = timed_out()  # made now: the clean-up changes what it tells
    finally:
        if not running.done():
            running.cancel()
            await until_done(running)
        failed = None if running.cancelled() else running.exception()
    if failed is None and not running.cancelled():
        return running.result()  # it ended while it was being cancelled
    raise error


class Run:
    """Carries out one Job. `progress()` may be called at any time from the loop's thread."""

    def __init__(self, shared: Shared, job: Job, begun: SmallPut | None = None) -> None:
        self._shared = shared
        self._job = job
        self._begun = begun  # the first hop, when it is under way
        self._config = job.config
        self._hops: list[Hop] = []
        self._hop_number = 0
        self._attempt = 0
        self._redirects = 0
        self._phase = "resolving"
        self._status = 0  # of the last final answer
        self._began = job.began
        self.target: Target | None = None  # of the present hop
        self.asks = False  # the present hop does
        self._connection: Connection | None = None
        self._exchange: Exchange | None = None
        self._body_started = False
        self._sink_used = False
        self._error_body = bytearray()
        self._last_address = ""
        self._recalled = False  # the attempt began where the bucket was known to be
        self._went_stale = False  # the last hop ended without any byte of an answer, on a connection used before
        self._left_whole = False  # the whole request of the last hop had left
        self._ambiguous = False
        self._clock_corrected = False
        self._credentials_renewed = False
        self._signed_with: signing.Credentials | None = None
        self._sent: list[tuple[Url, list[Field]]] = []  # what each head was made of

    # --- what callers look at --------------------------------------------------------------------------------------

    def progress(self) -> Progress:
        body = self._job.body
        exchange, connection = self._exchange, self._connection
        sent = 0 if exchange is None else exchange.body_sent + (connection.in_flight if connection is not None else 0)
        if exchange is None and self._hops and self._phase in ("hashing", "done"):
            sent = self._hops[-1].body_bytes_sent
        return Progress(
            sent,
            body.size if body is not None else 0,
            self._current_phase,
            max(1, self._attempt),
            max(1, self._hop_number),
        )

    @property
    def _current_phase(self) -> str:
        exchange = self._exchange
        if exchange is not None and exchange.state >= State.AWAITING_ANSWER:
            return "awaiting answer"
        return self._phase

    @property
    def hops(self) -> tuple[Hop, ...]:
        """Those that are over."""
        return tuple(self._hops)

    @property
    def attempts(self) -> int:
        return self._attempt

    async def run(self) -> Outcome:
        """Raises EngineError with the facts attached, the source's own OSError, or CancelledError."""
        failed = ""
        try:
            return await within(self._job.deadline, self._carry_out(), lambda: self._timed_out())
        except EngineError as error:
            failed = type(error).__name__
            error.hops = tuple(self._hops)
            error.attempts = self._attempt
            error.body_bytes_sent = self._bytes_sent
            self._cut_secrets_out(error)
            raise
        except BaseException as error:
            failed = type(error).__name__
            raise
        finally:
            self._phase = "done"
            self._tell(events.Done, self._status, failed, self._bytes_sent, monotonic() - self._began)

    async def _carry_out(self) -> Outcome:
        outcome = await self._attempts()
        if self._job.verify is not None:
            self._phase = "hashing"
            await self._job.verify(outcome.reply.response)
        return dataclasses.replace(outcome, timings=dataclasses.replace(outcome.timings, total=self._seconds))

    @property
    def _seconds(self) -> float:
        """Of the whole call so far."""
        return monotonic() - self._began

    def _timed_out(self) -> TotalTimedOut:
        return total_timed_out(
            self._job.what, self._config.total_timeout_s or 0.0, _STAGES.get(self._current_phase, "")
        )

    @property
    def _bytes_sent(self) -> int:
        return sum(hop.body_bytes_sent for hop in self._hops)

    def _tell(self, kind: Callable[..., events.Event], *facts: Any) -> None:
        if self._job.on_event is None:
            return
        try:
            self._job.on_event(kind(monotonic(), *facts))
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler({"message": "on_event raised", "exception": error})

    # --- attempts --------------------------------------------------------------------------------------------------

    async def _attempts(self) -> Outcome:
        fresh = False
        while True:
            self._attempt += 1
            try:
                return await self._follow(fresh)
            except (TransportError, TimedOut, ResponseError) as error:
                if self._recalled and isinstance(error, (ConnectFailed, ConnectTimedOut, RedirectRefused)):
                    self._shared.forget_place(self._job.intent)  # not to be reached there any more: the endpoint knows
                decision = self._again(error)
                if isinstance(decision, retry.GiveUp):
                    if decision.reason == "not-replayable":
                        raise self._not_replayable(f"after {type(error).__name__}") from error
                    raise
                reason = without_secrets(error.message, self._secrets())
                if self._job.on_retry is not None:
                    self._job.on_retry(error)
            self._mark_last("retried")
            self._ambiguous = self._ambiguous or (decision.ambiguous and self._left_whole)
            fresh = decision.fresh_connection
            if not decision.counts:
                self._attempt -= 1
            self._phase = "backing off"
            self._tell(events.Retry, self._attempt + 1, decision.after_s, reason)
            await asyncio.sleep(decision.after_s)

    def _again(self, error: TransportError | TimedOut | ResponseError) -> retry.Again | retry.GiveUp:
        if isinstance(error, (RedirectRefused, TotalTimedOut)) or not error.retryable:
            return retry.GiveUp("not-retryable")
        body = self._job.body
        failure = _failure(error, self._went_stale, idempotent=self._job.idempotent)
        if self._sink_used and not (self._job.rewind_sink is not None and self._job.rewind_sink()):
            return retry.GiveUp("not-retryable")
        self._sink_used = False
        decision = retry.decide(
            self._config.retry,
            self._attempt,
            failure,
            replayable=body is None or body.replayable,
            body_bytes_left=body.bytes_read if body is not None else 0,
            random=random.random(),
        )
        if isinstance(decision, retry.Again) and decision.counts and not self._shared.budget.spend(failure.fault):
            return retry.GiveUp("no-budget")
        return decision

    def _check_replayable(self, why: str) -> None:
        """Before every request but the first: what is left of a source is never sent as if it were all of it."""
        body = self._job.body
        if body is not None and body.bytes_read and not body.replayable:
            raise self._not_replayable(why)

    def _not_replayable(self, why: str) -> SourceNotReplayable:
        body = self._job.body
        taken = body.bytes_read if body is not None else 0
        return SourceNotReplayable(
            f"{self._job.what}: the body has to be sent again ({why}), but {taken} bytes were taken from a source that cannot "
            "be read twice; give a path, a buffer or a seekable file, or use expect='strict'"
        )

    # --- one attempt: hop after hop --------------------------------------------------------------------------------

    async def _follow(self, fresh: bool) -> Outcome:
        job = self._job
        if job.provider is not None and self._begun is None:
            await job.provider.get()  # without credentials there is no reason to connect
        target = self._first_target()
        visits: list[redirect.Visit] = []
        while True:
            answered = await self._hop(target, job.intent.method, job.body, fresh=fresh)
            fresh = False
            exchange, response = answered.exchange, answered.response
            if exchange.succeeded:
                if job.check_answer is not None:
                    job.check_answer(answered.reply)
                self._mark_last("stored" if job.intent.method == "PUT" else "answered")
                self._keep_facts(target)
                self._shared.budget.refund()
                return self._outcome(answered)
            if 200 <= response.status < 300:
                raise self._early_success(answered)
            document = s3.parse_error(answered.reply.body)
            if self._same_again(answered, document.code):
                self._check_replayable(f"after {response.status} {document.code}".rstrip())
                self._mark_last("retried")
                continue
            visits.append(redirect.Visit(target.url, target.region if target.signed else "", exchange.plan.asks))
            answer = redirect.Answer(
                response.status,
                tuple(response.get_all("location")),
                response.get("x-amz-bucket-region") or "",
                document,
            )
            following = await self._decide(visits, answer, answered.address)
            if following is None:
                self._mark_last("answered" if job.any_status else "refused")
                self._keep_facts(target)
                if document.code == "NoSuchBucket":  # deleted, and perhaps made again elsewhere
                    self._shared.regions.forget(job.intent.bucket)
                    self._shared.forget_place(job.intent)
                if job.any_status:
                    return self._outcome(answered)
                raise self._refusal(answered, document)
            target = following

    async def _decide(self, visits: Sequence[redirect.Visit], answer: redirect.Answer, address: str) -> Target | None:
        """Where the answer leads; None when it is no redirect. Raises RedirectRefused, SourceNotReplayable."""
        intent, policy = self._job.intent, self._config.redirects
        decision = redirect.decide(intent, visits, answer, policy)
        if isinstance(decision, redirect.Discover):
            region = await self._discover(decision)
            answer = dataclasses.replace(answer, bucket_region=region, discovered=True)
            decision = redirect.decide(intent, visits, answer, policy)
        if decision is None or isinstance(decision, redirect.Discover):
            return None
        if self._recalled and len(visits) == 1:
            self._shared.forget_place(intent)  # contradicted
        unsigned = isinstance(decision, redirect.Follow) and not decision.sign
        if unsigned and self._job.payload_hash == signing.STREAMING_UNSIGNED_PAYLOAD_TRAILER:
            # Whoever is not told of the framing stores it as part of the object.
            decision = redirect.Refuse(
                "trailer-unsigned",
                f"{answer.status} redirects to a URL with a signature of its own, and the checksum of this source follows "
                "it in a trailer, which only a request signed here can have; use checksum='auto'",
                decision.url.redacted(),  # type: ignore[union-attr]
            )
        if isinstance(decision, redirect.Refuse):
            self._mark_last("refused")
            raise self._refused(decision, answer.status, answer.error.code)
        if intent.bucket and decision.kind != "location":
            self._shared.regions.forget(intent.bucket)  # contradicted, or not known
        self._check_replayable("a redirect came after it had begun to leave")
        self._mark_last("redirected" if decision.kind == "location" else "region")
        self._redirects += 1
        self._tell(events.Redirect, answer.status, self._url_shown(decision.url), decision.region, decision.kind)
        return Target(
            decision.url,
            decision.region,
            decision.sign,
            learned_region=decision.learned_region,
            learned_place=_Place(decision.url.origin, address) if decision.lasting else None,
            redirected_by=address if decision.check_address else None,
            redirect_status=answer.status,
        )

    def _refused(self, refuse: redirect.Refuse, status: int, code: str = "") -> RedirectRefused:
        return dataclasses.replace(refuse, message=f"{self._job.what}: {refuse.message}").error(status, code)

    def _keep_facts(self, target: Target) -> None:
        """A region or a place that an answer named is a fact once the host it led to has answered."""
        if target.learned_region and self._job.intent.bucket:
            self._shared.regions.learn(self._job.intent.bucket, target.learned_region)
        if target.learned_place is not None:
            self._shared.learn_place(self._job.intent, target.learned_place)

    async def _discover(self, question: redirect.Discover) -> str:
        """Ask the bucket itself for its region: any answer to a HEAD of it carries one. "" when it does not."""
        answered = await self._hop(Target(question.url, question.region, question.sign), "HEAD", None)
        self._mark_last("answered")
        return answered.response.get("x-amz-bucket-region") or ""

    def _first_target(self) -> Target:
        intent = self._job.intent
        if self._job.start is not None and self._attempt == 1:
            return self._job.start
        region = self._shared.regions.get(intent.bucket) if intent.bucket and intent.signed else ""
        place = self._shared.place(intent)
        known = (
            redirect.recall(intent, place.origin, region or intent.region, self._config.redirects) if place else None
        )
        self._recalled = known is not None
        if known is not None and place is not None:
            told_by = place.told_by if known.check_address else None
            return Target(known.url, known.region, known.sign, redirected_by=told_by, redirect_status=301)
        if region and intent.endpoint is not None and region != intent.region:
            url = s3.address(
                intent.endpoint,
                intent.bucket,
                intent.key,
                region=region,
                addressing=self._config.addressing,
            )
            return Target(dataclasses.replace(url, query=intent.url.query), region, intent.signed)
        return Target(intent.url, intent.region, intent.signed)

    def _same_again(self, answered: _Answered, code: str) -> bool:
        """Whether the same request is to be made at once, with one thing mended. Each is mended once."""
        return (
            self._ask_no_more(answered) or self._correct_clock(code, answered.response) or self._renew_credentials(code)
        )

    def _ask_no_more(self, answered: _Answered) -> bool:
        """417: the same request again without Expect, which is not part of the signature (RFC 9110 section 15.5.18)."""
        plan = answered.exchange.plan
        if answered.response.status != 417 or not plan.asks or self._config.expect == "strict":
            return False
        self._shared.facts(answered.target.url.origin).refuses_expect = True
        return True

    def _correct_clock(self, code: str, response: Response) -> bool:
        """S3 refuses requests that are more than 15 minutes off: trust the server's clock, once."""
        if self._signed_with is None or self._clock_corrected or not retry.is_clock_refusal(response.status, code):
            return False
        skew_s = retry.clock_skew(response.get("date") or "", datetime.now(timezone.utc))
        if skew_s is None:
            return False
        self._clock_corrected = True
        self._shared.clock_offset = timedelta(seconds=skew_s)
        log.warning("this machine's clock is off by %.0f s; requests are signed with the server's time", skew_s)
        return True

    def _renew_credentials(self, code: str) -> bool:
        """The server calls the credentials expired: look for others, once."""
        provider = self._job.provider
        if code not in _STALE_CREDENTIALS or self._credentials_renewed or provider is None:
            return False
        self._credentials_renewed = True
        return self._signed_with is not None and provider.invalidate(self._signed_with)

    def _outcome(self, answered: _Answered) -> Outcome:
        exchange = answered.exchange
        return Outcome(
            reply=answered.reply,
            url=answered.target.url,
            region=answered.target.region if answered.target.signed else "",
            hops=tuple(self._hops),
            attempts=self._attempt,
            redirects=self._redirects,
            body_bytes_sent=self._bytes_sent,
            expect=exchange.expect,
            send_path=answered.send_path,
            timings=answered.timings,
        )

    def _early_success(self, answered: _Answered) -> ProtocolError:
        exchange = answered.exchange
        self._mark_last("early-success")
        return ProtocolError(
            f"{self._job.what}: the server said {exchange.status} after {exchange.body_sent} of "
            f"{exchange.plan.body_size if exchange.plan.body_size is not None else 'an unknown number of'} body bytes, before "
            "the whole request had left; it cannot have carried it out",
            kind="early-success",
        )

    def _refusal(self, answered: _Answered, document: s3.ErrorDocument) -> ResponseError:
        response = answered.response
        return s3.error_for(
            self._job.what,
            response.status,
            document,
            conditional=self._job.conditional,
            maybe_own=self._ambiguous,
            request_id=response.get("x-amz-request-id") or "",
            host_id=response.get("x-amz-id-2") or "",
            retry_after_s=retry.retry_after(response.get("retry-after") or "", datetime.now(timezone.utc)),
            secrets=self._secrets(),
        )

    def _secrets(self) -> set[str]:
        """What a server might echo and an error must not show."""
        found = {value for url, fields in self._sent for value in secret_values(url, fields)}
        for name, value in self._job.intent.fields:
            if not redirect.is_harmless(name):
                found.update(secret_words(value))
        if self._signed_with is not None:
            found.add(self._signed_with.secret_key)  # the token is among the fields
        return found

    def _cut_secrets_out(self, error: BaseException | None) -> None:
        """Of an error and those that led to it: a server may echo what it was sent in anything that it says."""
        secrets = self._secrets()
        while isinstance(error, EngineError):
            if isinstance(error, ProtocolError) and error.excerpt:
                excerpt = without_pieces(error.excerpt, secrets)
                error.args = tuple(str(argument).replace(error.excerpt, excerpt) for argument in error.args)
                error.excerpt = excerpt
            error.args = tuple(without_secrets(str(argument), secrets) for argument in error.args)
            for name, value in vars(error).items():
                if isinstance(value, str):
                    setattr(error, name, without_secrets(value, secrets))
            error = error.__cause__ or error.__context__

    def _mark_last(self, outcome: str) -> None:
        if self._hops:
            self._hops[-1] = dataclasses.replace(self._hops[-1], outcome=outcome)

    # --- one hop ---------------------------------------------------------------------------------------------------

    async def _hop(self, target: Target, method: str, body: Body | None, *, fresh: bool = False) -> _Answered:
        """One request on one connection. Appends its Hop, whatever happens."""
        began = monotonic()
        self._hop_number += 1
        self.target = target
        self._went_stale = self._left_whole = False
        body_read = body.bytes_read if body is not None else 0
        exchange: Exchange | None = None
        outcome = "lost"
        begun, self._begun = self._begun, None
        origin = target.url.origin
        try:
            pool, proxy, acquired, exchange = await self._begin(target, body, fresh, begun)
            connection = acquired.connection
            facts = self._shared.facts(origin)
            self.asks = exchange.plan.asks
            try:
                signing_began = monotonic() if begun is None else begun.began
                if begun is not None:
                    head, sign_s = self._head_of(begun, target.url), begun.sent_at - begun.began
                else:
                    head = await self._head(target, method, exchange.plan, body, proxy)
                    sign_s = monotonic() - signing_began
                reply = await self._perform(connection, exchange, target, method, head, body, begun)
            finally:
                self._connection = self._exchange = None
                pool.release(connection, exchange.fate if exchange.finished else Fate.CLOSE)
                if exchange.expect in ("continue", "final"):
                    facts.answers_expect = True
            outcome = "answered"
            self._status = exchange.status
            facts.speaks_http10 = reply.response.version == (1, 0)
            timings = _timings(acquired, sign_s, exchange, connection, monotonic() - signing_began - sign_s)
            address = connection.address if proxy is None else origin.host if is_address(origin.host) else ""
            return _Answered(target, exchange, reply, address, connection.send_path, timings)
        except BaseException as error:
            outcome = _outcome_of(error)
            raise
        finally:
            if exchange is not None:
                self._went_stale = acquired.reused and not connection.heard
                self._left_whole = exchange.body_complete
            self._hops.append(
                Hop(
                    url=self._url_shown(target.url),
                    status=exchange.status if exchange is not None else 0,
                    region=target.region if target.signed else "",
                    body_bytes_sent=exchange.body_sent if exchange is not None else 0,
                    body_bytes_read=(body.bytes_read if body is not None else 0) - body_read,
                    continue_wait_s=exchange.continue_wait_s if exchange is not None else 0.0,
                    outcome=outcome,
                    seconds=monotonic() - began,
                )
            )

    async def _begin(
        self, target: Target, body: Body | None, fresh: bool, begun: SmallPut | None
    ) -> tuple[Pool, Proxy | None, Acquired, Exchange]:
        """A connection, and what is to happen on it; of a small put both are there."""
        if begun is not None:
            connection = begun.connection
            assert isinstance(connection, Connection)
            assert connection.exchange is not None
            self._signed_with, begun.resumed = begun.credentials, True
            return (
                begun.pool,
                None,
                Acquired(connection, True, (connection.address,), 0.0, 0.0, 0.0),
                connection.exchange,
            )
        config, origin, pool = self._config, target.url.origin, self._shared.pool()
        proxy = choose_proxy(config.proxy, origin, os.environ)
        acquired = await self._acquire(pool, target, proxy, fresh)
        plan = plan_for(
            config,
            self._shared.facts(origin),
            origin,
            size=0 if body is None else body.size,
            replayable=body is None or body.replayable,
            proxy=proxy,
            round_trip_s=acquired.connection.connect_s,
            streams_answer=self._job.sink is not None,
            asks=target.asks,
        )
        return pool, proxy, acquired, Exchange(plan, monotonic())

    def _head_of(self, begun: SmallPut, url: Url) -> bytes:
        lines = begun.head.decode("ascii").split("\r\n")[1:-2]
        self._sent.append((url, [(name, value) for name, _colon, value in (line.partition(": ") for line in lines)]))
        return begun.head

    async def _acquire(self, pool: Pool, target: Target, proxy: Proxy | None, fresh: bool) -> Acquired:
        self._phase = "connecting"
        origin = target.url.origin
        check: AddressCheck | None = None
        came_from, policy = target.redirected_by, self._config.redirects
        if came_from is not None:
            check = lambda address: redirect.address_allowed(policy, address, came_from)  # noqa: E731
        try:
            if proxy is not None and check is not None:
                # The proxy resolves names: only an address that is written out can be judged here.
                if is_address(origin.host) and not check(origin.host):
                    raise AddressRefused(origin.host)
                check = None
            forwarded = proxy is not None and origin.scheme == "http"
            acquired = await pool.acquire(
                proxy.origin if proxy is not None and forwarded else origin,
                connect_timeout_s=self._config.connect_timeout_s,
                check=check,
                fresh=fresh,
                avoid=self._last_address if fresh else "",
                tunnel=None if forwarded else proxy,
            )
        except AddressRefused as refused:
            refuse = redirect.private_address(target.redirect_status, target.url, refused.address)
            raise self._refused(refuse, target.redirect_status) from None
        if not acquired.reused:
            self._tell(events.Resolved, (proxy or target.url).host, acquired.addresses, acquired.resolve_s)
        self._last_address = acquired.connection.address
        self._tell(events.Connected, str(origin), acquired.connection.address, acquired.reused, acquired.connect_s)
        return acquired

    async def _head(self, target: Target, method: str, plan: Plan, body: Body | None, proxy: Proxy | None) -> bytes:
        """The request head for one hop, from the intent."""
        job, url = self._job, target.url
        fields = head_fields(url, job.framing if method == job.intent.method else (), asks=plan.asks)
        carried = list(job.intent.fields) if body is not None or method == job.intent.method else []
        if target.signed and job.provider is not None:
            credentials = self._signed_with = await job.provider.get()
            if credentials is not None:
                url = dataclasses.replace(url, path=signing.canonical_path(url.path))
                carried += signing.sign(
                    credentials,
                    method,
                    url,
                    carried,
                    region=target.region,
                    now=datetime.now(timezone.utc) + self._shared.clock_offset,
                    payload_hash=job.payload_hash if body is not None else signing.UNSIGNED_PAYLOAD,
                    service=s3.signing_service(url),
                )
        forwarded = proxy is not None and url.scheme == "http"
        if proxy is not None and forwarded:
            fields += proxy.fields
        self._sent.append((url, fields + carried))
        # absolute-form: RFC 9112 section 3.2.2
        return request_head(method, str(url) if forwarded else url.target, fields + carried)

    async def _perform(
        self,
        connection: Connection,
        exchange: Exchange,
        target: Target,
        method: str,
        head: bytes,
        body: Body | None,
        begun: SmallPut | None,
    ) -> Reply:
        job = self._job
        self._connection, self._exchange = connection, exchange
        hop, attempt = self._hop_number, self._attempt
        self._phase = "asking" if exchange.plan.asks else "awaiting answer"
        watched = job.on_event is not None

        def head_sent() -> None:
            text = without_secrets(redact_head(head), self._secrets())
            self._tell(events.HeadSent, hop, attempt, method, self._url_shown(target.url), text, exchange.plan.asks)

        def body_started() -> None:
            self._phase = "sending"
            if not self._body_started:
                self._body_started = True
                if job.on_body_start is not None:
                    job.on_body_start()
            if watched:
                self._tell(events.BodyStarted, exchange.plan.body_size, exchange.expect, exchange.continue_wait_s)

        def interim(response: Response) -> None:
            self._tell(events.Continue, response.status, self._shown(response))

        self._error_body.clear()
        on_body = self._sink_body if job.sink is not None and method == job.intent.method else None
        reply = await connection.perform(
            exchange,
            method,
            head,
            body,
            on_body=on_body,
            on_interim=interim if watched else None,
            on_head_sent=head_sent if watched else None,
            on_body_start=body_started,
            begun=begun,
        )
        self._phase = "awaiting answer"
        if watched:
            self._tell(
                events.Response,
                reply.response.status,
                self._shown(reply.response),
                exchange.body_sent,
                connection.send_path,
            )
        if on_body is not None:
            reply.body = bytes(self._error_body)
        return reply

    def _sink_body(self, status: int, view: memoryview) -> None:
        """Only the body of a 2xx is what was asked for; others are kept, bounded, for their error document."""
        sink = self._job.sink
        assert sink is not None
        if status < 300:
            if not self._sink_used and self._connection is not None:
                self._tell(events.Receiving, self._connection.answer_size)
            self._sink_used = True
            sink(view)
        else:
            self._error_body += view[: max(0, limits.ERROR_BODY_MAX_BYTES - len(self._error_body))]

    def _shown(self, response: Response) -> str:
        """Its head, without what the server echoes of ours."""
        return without_secrets(_head_text(response), self._secrets())

    def _url_shown(self, url: Url) -> str:
        """For people. A redirect may have written into it what it was sent."""
        return without_secrets(url.redacted(), self._secrets()) if self._redirects else url.redacted()


def plan_for(
    config: Config,
    facts: OriginFacts,
    origin: Origin,
    *,
    size: int | None,
    replayable: bool,
    proxy: Proxy | None,
    round_trip_s: float,
    streams_answer: bool,
    asks: bool = True,
) -> Plan:
    """How a request to `origin` is to go about its body of `size` bytes. `asks`: see `Target`."""
    return plan_body(
        body_size=size,
        replayable=replayable,
        expect=config.expect if asks or config.expect != "auto" else "never",
        continue_timeout_s=config.continue_timeout_s,
        facts=facts,
        # What S3 promises, a proxy that forwards its messages does not.
        is_s3=s3.split_s3_host(origin.host) is not None and (proxy is None or origin.scheme == "https"),
        round_trip_s=round_trip_s,
        response_timeout_s=config.response_timeout_s,
        stall_timeout_s=config.stall_timeout_s,
        streams_answer=streams_answer,
    )


def head_fields(url: Url, framing: Sequence[Field], *, asks: bool) -> list[Field]:
    """Those that every request has, in the order in which they are sent."""
    fields: list[Field] = [("host", url.authority), ("user-agent", f"putengine/{engine.__version__}"), *framing]
    if asks:
        fields.append(("expect", "100-continue"))
    return fields


def _failure(error: EngineError, went_stale: bool, *, idempotent: bool) -> retry.Failure:
    """The error as `retry` wants to know it."""
    if isinstance(error, ResponseError):
        return retry.Failure(retry.Fault.ANSWER, error.status, error.code, error.retry_after_s, idempotent)
    if isinstance(error, ConnectTimedOut):
        fault = retry.Fault.CONNECT_TIMED_OUT
    elif isinstance(error, ConnectFailed):
        fault = retry.Fault.NO_CONNECTION
    elif isinstance(error, StallTimedOut):
        fault = retry.Fault.STALLED
    elif isinstance(error, TimedOut):
        fault = retry.Fault.UNANSWERED
    else:
        fault = retry.Fault.STALE if went_stale else retry.Fault.LOST
    return retry.Failure(fault, idempotent=idempotent)


def _timings(acquired: Acquired, sign_s: float, exchange: Exchange, connection: Connection, spent_s: float) -> Timings:
    return Timings(
        dns=acquired.resolve_s,
        connect=acquired.connect_s,
        tls=acquired.tls_s,
        sign=sign_s,
        continue_wait=exchange.continue_wait_s,
        body=connection.body_s,
        response=max(0.0, spent_s - exchange.continue_wait_s - connection.body_s),
    )


def _outcome_of(error: BaseException) -> str:
    if isinstance(error, TimedOut):
        return "timed-out"
    if isinstance(error, SourceChanged):
        return "source-changed"
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    return "lost" if isinstance(error, (ConnectionLost, ProtocolError)) else "failed"


def _head_text(response: Response) -> str:
    lines = [f"HTTP/{response.version[0]}.{response.version[1]} {response.status} {response.reason}".rstrip()]
    lines += [f"{name.decode('latin-1')}: {value.decode('latin-1')}" for name, value in response.raw_headers()]
    return redact_head(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
