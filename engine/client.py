"""What users call: `Client`, and `put` / `put_async` for a single object.

Turns arguments into an intent and a body, hands both to `request.Run`, and answers into results. Owns nothing of the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import inspect
import io
import os
import secrets
import stat
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import CancelledError
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Union

from engine import checksums, events, limits, s3, signing
from engine._fastparse import Response as Answer
from engine.body import Body, FileBody, IteratorBody, MemoryBody, PipeBody, Source, Trailer, open_body, until_done
from engine.config import Config
from engine.credentials import CredentialsOption, Provider, resolve
from engine.errors import ChecksumMismatch, UsageError
from engine.redirect import Intent
from engine.request import Job, Outcome, Run, Shared, total_timed_out, within
from engine.results import Checksum, ObjectInfo, Progress, PutResult, Response
from engine.retry import Retry
from engine.wire import Field, Url, caller_fields

if TYPE_CHECKING:
    from typing_extensions import Unpack

Sink = Union[str, "os.PathLike[str]", Callable[[memoryview], object], Any]

# RFC 9110 section 9.2.2: doing it twice is as good as once.
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"})
_WITH_CONTENT = frozenset({"PUT", "POST", "PATCH"})


class CallOptions(TypedDict, total=False):
    """Options of every call. The `…_s` ones, `expect` and `retry` override the Config's.

    sign: "s3" signs a request to a plain http(s) URL too (SigV4, service s3).
    on_event: called with each `engine.events` event, on the loop; must not block.
    """

    headers: Mapping[str, str] | None
    sign: Literal["s3"] | None
    on_event: Callable[[events.Event], object] | None
    retry: Retry | None
    expect: Literal["auto", "always", "never", "strict"] | None
    continue_timeout_s: float | Literal["auto"] | None
    connect_timeout_s: float | None
    stall_timeout_s: float | None
    response_timeout_s: float | None
    total_timeout_s: float | None
    request_payer: bool | str | None
    sse_customer_key: bytes | None


class PutOptions(CallOptions, total=False):
    """Options of `put`, beside those of every call.

    size: bytes to send from `offset` (default: to the end); of an iterator, what its items add up to.
    offset: bytes from the start of the file or buffer (default: a file object's position, else 0).
    content_type, metadata, storage_class, acl, sse, sse_kms_key_id, sse_customer_key (32 raw bytes), request_payer,
      tagging (a mapping): as S3's PutObject has them.
    if_none_match: "*" stores only when there is no such object; if_match: an ETag, only when it is still this one.
    checksum: "auto" compares the CRC64NVME of the very bytes sent with the server's; "crc64nvme", "crc32c", "crc32", "sha256"
      are sent with the request for the server to check; None is off.
    """

    size: int | None
    offset: int | None
    content_type: str | None
    metadata: Mapping[str, str] | None
    checksum: Literal["auto", "crc64nvme", "crc32c", "crc32", "sha256"] | None
    if_none_match: str | None
    if_match: str | None
    storage_class: str | None
    acl: str | None
    sse: str | None
    sse_kms_key_id: str | None
    tagging: Mapping[str, str] | str | None


_CONFIG_OPTIONS = (
    "expect",
    "continue_timeout_s",
    "connect_timeout_s",
    "stall_timeout_s",
    "response_timeout_s",
    "total_timeout_s",
    "retry",
)
_OBJECT_OPTIONS = (
    "content_type",
    "metadata",
    "storage_class",
    "acl",
    "sse",
    "sse_kms_key_id",
    "sse_customer_key",
    "request_payer",
    "tagging",
    "if_none_match",
    "if_match",
)


class Transfer:
    """A put under way: awaitable for its PutResult; `progress` may be read at any time and costs the transfer nothing."""

    def __init__(self, task: asyncio.Task[PutResult], state: _PutState) -> None:
        self._task = task
        self._state = state

    @property
    def progress(self) -> Progress:
        run = self._state.run
        return run.progress() if run is not None else Progress(0, None, "hashing", 1, 1)

    def done(self) -> bool:
        return self._task.done()

    def cancel(self) -> bool:
        """Stop at once; awaiting the transfer then raises CancelledError, when nothing of it is left behind."""
        return self._task.cancel()

    def __await__(self) -> Generator[Any, None, PutResult]:
        return self._task.__await__()


@dataclasses.dataclass
class _PutState:
    run: Run | None = None


class Client:
    """Keeps connections, learned regions and credentials. Belongs to the event loop it is first used on.

    Args:
      endpoint_url: of an S3-compatible service; default AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, then AWS itself.
      region: to sign for; default AWS_REGION, AWS_DEFAULT_REGION, then us-east-1 (a redirect tells better).
      credentials: `Credentials`, a function that returns some, `ANONYMOUS`, or None for the environment and botocore's chain.
      config: see `Config`. profile: of the AWS configuration files.

    The environment is read when a call is made, never at import.
    """

    def __init__(
        self,
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        credentials: CredentialsOption = None,
        config: Config | None = None,
        profile: str | None = None,
    ) -> None:
        self.config = config if config is not None else Config()
        if not isinstance(self.config, Config):
            raise UsageError("config: an engine.Config is needed")
        self._endpoint_url = endpoint_url
        self._region = region
        self._provider = resolve(credentials, profile=profile)
        self._computes_auto: bool | None = None
        self._shared = Shared(self.config)
        if endpoint_url is not None:
            s3.Endpoint.from_url(endpoint_url, region or "")

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; calls still running end with ConnectionLost."""
        await self._shared.close()

    # --- calls -----------------------------------------------------------------------------------------------------

    async def put(self, source: Source, destination: str, **options: Unpack[PutOptions]) -> PutResult:
        """Put one object by exactly one PUT request (plus what redirects and retries need).

        Args:
          source: a path; a binary file object; any contiguous buffer (never copied); an iterable or async iterable of
            buffers. Paths, seekable files and buffers can be sent again after a redirect or a fault, the others cannot.
          destination: "s3://bucket/key" (signed; the key is literal, nothing is decoded), or an http:// or https:// URL.
          options: see `PutOptions`.

        Raises UsageError for bad arguments and OSError for a file that cannot be read, before anything is sent; any other
        `EngineError` as its docstring says.
        """
        return await self._put(source, destination, options, _PutState())

    def start_put(self, source: Source, destination: str, **options: Unpack[PutOptions]) -> Transfer:
        """As `put`, but returns at once a `Transfer`: awaitable, with `.progress` and `.cancel()`. Needs a running loop."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise UsageError("start_put needs a running event loop; engine.put needs none") from None
        state = _PutState()
        return Transfer(asyncio.ensure_future(self._put(source, destination, options, state)), state)

    async def head(self, destination: str, **options: Unpack[CallOptions]) -> ObjectInfo:
        """What the server says of an object. Raises NotFound, AccessDenied …"""
        outcome = await self._simple("HEAD", destination, options)
        return _object_info(outcome)

    async def delete(self, destination: str, **options: Unpack[CallOptions]) -> None:
        """Delete an object. S3 says yes also when there is none."""
        await self._simple("DELETE", destination, options)

    async def get(self, destination: str, sink: Sink, **options: Unpack[CallOptions]) -> int:
        """Fetch an object. Returns its size in bytes.

        sink: a path (written beside it and renamed when complete), a binary file opened for writing, or a function called
          with a memoryview that is valid during the call.
        """
        target = open_sink(sink)
        try:
            await self._simple("GET", destination, options, sink=target)
            target.commit()
        finally:
            target.discard()
        return target.count

    async def request(
        self, method: str, url: str, *, body: Source | None = None, **options: Unpack[CallOptions]
    ) -> Response:
        """One plain HTTP request, redirects followed as the Config says. Any final status is a result, not an error.

        `body` as `put`'s source. The answer's body is held in memory, at most 64 MiB.
        """
        _check_options(options, CallOptions)
        method, began = check_method(method), monotonic()
        collected = _Collector()
        source = open_body(body) if body is not None else None
        try:
            if source is not None:
                await source.prepare()
            place = self._place(url, options)
            fields, payload_hash = _request_fields(options, signed=place.signed), signing.UNSIGNED_PAYLOAD
            if source is not None:
                hashes = await _hash_first(source, None, place, self._config_of(options), began, fields)
                payload_hash = hashes.payload_hash
            job = self._job(method, place, options, fields=fields, body=source, payload_hash=payload_hash)
            job.began = began
            outcome = await Run(
                self._shared,
                dataclasses.replace(job, sink=collected.write, rewind_sink=collected.rewind, any_status=True),
            ).run()
        finally:
            if source is not None:
                await _close(source)
        response = outcome.reply.response
        return Response(
            status=response.status,
            reason=response.reason,
            headers=response.headers(),
            body=bytes(collected.data) if response.status < 300 else outcome.reply.body,
            url=outcome.url.redacted(),
            hops=outcome.hops,
        )

    # --- how -------------------------------------------------------------------------------------------------------

    async def _simple(
        self, method: str, destination: str, options: CallOptions, *, sink: OpenSink | None = None
    ) -> Outcome:
        _check_options(options, CallOptions)
        place = self._place(destination, options)
        job = self._job(method, place, options, fields=_request_fields(options, signed=place.signed))
        if sink is not None:
            job = dataclasses.replace(job, sink=sink.write, rewind_sink=sink.rewind)
        return await Run(self._shared, job).run()

    async def _put(self, source: Source, destination: str, options: PutOptions, state: _PutState) -> PutResult:
        _check_options(options, PutOptions)
        place = self._place(destination, options)
        fields = _request_fields(options, signed=place.signed)
        body = open_body(source, offset=options.get("offset"), size=options.get("size"))
        digest: _Digest | None = None
        checksum: Checksum | None = None
        verified, began = False, monotonic()
        try:
            algorithm = options.get("checksum", "auto")
            if algorithm is not None and algorithm != "auto":
                checksums.header_name(algorithm)  # an unknown name is an error now, not after gigabytes
            config = self._config_of(options)
            await body.prepare()
            if algorithm == "auto" and await self._can_compute_auto():
                digest = _Digest(body)
            hashes = await _hash_first(body, algorithm, place, config, began, fields)
            job = self._job("PUT", place, options, fields=hashes.fields, body=body, payload_hash=hashes.payload_hash)
            job.began = began
            job.conditional = any(name in ("if-match", "if-none-match") for name, _value in fields)
            if digest is not None:
                job.on_body_start = digest.start

            async def verify(response: Answer) -> None:
                nonlocal checksum, verified
                body.check_unchanged()
                checksum = hashes.seen() if digest is None else await digest.result()
                verified = _verify(checksum, response, job.what)

            job.verify = verify
            state.run = Run(self._shared, job)
            return _put_result(await state.run.run(), body, checksum, verified)
        finally:
            try:
                if digest is not None:
                    await digest.stop()
            finally:
                await _close(body)

    def _config_of(self, options: CallOptions) -> Config:
        return self.config.override(**{name: options.get(name) for name in _CONFIG_OPTIONS})

    async def _can_compute_auto(self) -> bool:
        """Whether the library of checksum="auto" is there. Importing it takes 40 ms, which the loop does not have."""
        if self._computes_auto is None:
            self._computes_auto = await asyncio.to_thread(checksums.is_available, checksums.AUTO)
        return self._computes_auto

    def _place(self, destination: str, options: CallOptions) -> _Place:
        """Where a destination is, and who signs for it. Raises UsageError."""
        if not isinstance(destination, str):
            raise UsageError(f"destination: {type(destination).__name__} is no 's3://bucket/key' or URL")
        parsed = s3.parse_destination(destination)
        region = self._region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
        if isinstance(parsed, Url):
            if options.get("sign") is None:
                return _Place(parsed, shown=parsed.redacted())
            return _Place(parsed, shown=parsed.redacted(), provider=self._provider, region=region or "us-east-1")
        url = self._endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        endpoint = s3.Endpoint.from_url(url, region) if url else s3.Endpoint.for_aws(region or "us-east-1")
        return _Place(
            s3.address(endpoint, parsed.bucket, parsed.key, addressing=self.config.addressing),
            shown=str(parsed),
            provider=self._provider,
            region=endpoint.region,
            bucket=parsed.bucket,
            key=parsed.key,
            endpoint=endpoint,
        )

    def _job(
        self,
        method: str,
        place: _Place,
        options: CallOptions,
        *,
        fields: list[Field],
        body: Body | None = None,
        payload_hash: str = signing.UNSIGNED_PAYLOAD,
    ) -> Job:
        signed = place.signed
        framing: tuple[Field, ...] = ()
        if body is None and method in _WITH_CONTENT:
            framing = (("content-length", "0"),)  # RFC 9110 section 8.6; some servers say 411 without
        elif body is not None:
            length = body.content_length
            framing = (("content-length", str(length)) if length is not None else ("transfer-encoding", "chunked"),)
        return Job(
            intent=Intent(
                method=method,
                url=place.url,
                signed=signed,
                region=place.region if signed else "",
                bucket=place.bucket,
                key=place.key,
                endpoint=place.endpoint,
                addressing=self.config.addressing,
                fields=tuple(fields),
            ),
            config=self._config_of(options),
            what=f"{method} {place.shown}",
            provider=place.provider if signed else None,
            body=body,
            payload_hash=payload_hash,
            framing=framing,
            idempotent=method in _IDEMPOTENT,
            on_event=options.get("on_event"),
        )


@dataclasses.dataclass(frozen=True)
class _Place:
    """A destination, resolved as far as it can be without asking anybody. `shown` is for people."""

    url: Url
    shown: str
    provider: Provider | None = None
    region: str = ""
    bucket: str = ""
    key: str = ""
    endpoint: s3.Endpoint | None = None

    @property
    def signed(self) -> bool:
        return self.provider is not None and self.provider.origin != "anonymous"


def _check_options(options: CallOptions, known: type) -> None:
    unknown = set(options) - set(known.__annotations__) - set(CallOptions.__annotations__)
    if unknown:
        raise TypeError(
            f"unknown option {', '.join(sorted(unknown))}; known: {', '.join(sorted(known.__annotations__))}"
        )
    if inspect.iscoroutinefunction(options.get("on_event")):
        raise UsageError("on_event: a coroutine function would never be awaited; give a plain one")
    if options.get("sign") not in (None, "s3"):
        raise UsageError(f"sign={options.get('sign')!r}: 's3' or None")


def check_method(method: str) -> str:
    """In upper case. Raises UsageError."""
    if not isinstance(method, str) or not method.isascii() or not method.isalpha():
        raise UsageError(f"method {method!r}: letters only, as in 'GET'")
    if method.upper() == "CONNECT":
        raise UsageError("CONNECT makes a tunnel, which is no request for a resource")
    return method.upper()


def _request_fields(options: CallOptions, *, signed: bool) -> list[Field]:
    """The caller's headers and what the options ask for, lower-case. Raises UsageError for a field that both name."""
    given = [(name.lower(), value) for name, value in caller_fields(options.get("headers"), signed=signed)]
    own = _object_fields(options)
    twice = {name for name, _value in given} & {name for name, _value in own}
    if twice:
        raise UsageError(f"{', '.join(sorted(twice))}: given as an option and in headers; leave one out")
    return given + own


def _object_fields(options: CallOptions) -> list[Field]:
    return s3.object_fields(**{name: options[name] for name in _OBJECT_OPTIONS if options.get(name) is not None})  # type: ignore[literal-required]


async def _close(body: Body) -> None:
    try:
        await body.settle()
    finally:
        body.close()


# --- hashes ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Hashes:
    """What a head says of its body. `trailing` is the checksum that follows it, in the making while it leaves."""

    payload_hash: str = signing.UNSIGNED_PAYLOAD
    fields: list[Field] = dataclasses.field(default_factory=list)
    checksum: Checksum | None = None
    trailing: checksums.Running | None = None

    def seen(self) -> Checksum | None:
        """Of what has left."""
        running = self.trailing
        return self.checksum if running is None else Checksum(running.algorithm, running.digest_base64())


async def _hash_first(
    body: Body, algorithm: str | None, place: _Place, config: Config, began: float, fields: list[Field]
) -> _Hashes:
    """What has to be known before the head: a named checksum or how it will follow, and the payload's SHA-256 when it is
    signed. `fields`: those of the request, to which the hashes are added."""
    named = algorithm if algorithm not in (None, "auto") else None
    signs_payload = config.payload_signing == "sha256" and place.signed
    if named and isinstance(body, IteratorBody) and not signs_payload:
        return await _hash_behind(body, named, place, fields)
    if signs_payload and not body.replayable:
        raise UsageError(
            "payload_signing='sha256' is sent ahead of the body, which needs a source that can be read twice (a path, a "
            "buffer, a seekable file); for this one use 'unsigned'"
        )
    hashes = _Hashes(fields=fields)

    async def hashed(with_what: str) -> str:
        total_s = config.total_timeout_s
        return await within(
            None if total_s is None else began + total_s,
            _hash_body(body, with_what),
            lambda: total_timed_out(f"PUT {place.shown}", total_s or 0.0, "checksum"),
        )

    if named:
        hashes.checksum = Checksum(named, await hashed(named))
        hashes.fields = [*fields, (checksums.header_name(named), hashes.checksum.value)]
    if signs_payload:
        value = hashes.checksum.value if hashes.checksum is not None and named == "sha256" else await hashed("sha256")
        hashes.payload_hash = checksums.from_text("sha256", value).hex()
    return hashes


async def _hash_behind(body: IteratorBody, algorithm: str, place: _Place, fields: list[Field]) -> _Hashes:
    """A checksum of what can be read only once follows it, in a trailer."""
    if not place.signed or body.size is None:
        wanted = f"checksum={algorithm!r} of a source that cannot be read twice follows it in a trailer, which "
        if body.size is None:
            raise UsageError(f"{wanted}needs to know its length: give size=")
        raise UsageError(f"{wanted}only a signed S3 request can have; use checksum='auto'")
    await asyncio.to_thread(checksums.is_available, algorithm)  # imports the library, which takes 40 ms
    running = checksums.new(algorithm)
    if body.size == 0:
        checksum = Checksum(algorithm, running.digest_base64())
        return _Hashes(fields=[*fields, (checksums.header_name(algorithm), checksum.value)], checksum=checksum)
    framing = checksums.aws_chunked(algorithm, body.size, chunk_size=checksums.AWS_CHUNK_COMPATIBLE_BYTES)
    body.tap = running.update
    body.trailer = Trailer(framing, running.digest_base64)
    encoding = next((value for name, value in fields if name == "content-encoding"), "")
    own = [field for field in fields if field[0] != "content-encoding"]
    return _Hashes(framing.payload_hash, own + framing.fields(encoding), trailing=running)


async def _hash_body(body: Body, algorithm: str) -> str:
    """Base64 checksum of a replayable body, computed off the loop."""
    stopped = threading.Event()
    hashing = asyncio.get_running_loop().run_in_executor(None, _hash_now, body, algorithm, stopped.is_set)
    try:
        return await asyncio.shield(hashing)
    finally:
        stopped.set()
        await until_done(hashing)


def _hash_now(body: Body, algorithm: str, stopped: Callable[[], bool]) -> str:
    if isinstance(body, FileBody):
        return checksums.checksum_file(algorithm, body.fd, body.offset, body.size, stopped)
    assert isinstance(body, MemoryBody)
    running = checksums.new(algorithm)
    for start in range(0, body.size, limits.HASH_PIECE_BYTES):
        if stopped():
            raise CancelledError
        running.update(body.view[start : start + limits.HASH_PIECE_BYTES])
    return running.digest_base64()


class _Digest:
    """CRC64NVME of the bytes sent, computed beside the sending: in a thread for files and memory, item by item for iterators.

    A pipe's bytes go from kernel to kernel and are never seen: no checksum.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self._stopped = threading.Event()
        self._hashing: asyncio.Future[str] | None = None
        self._running: Any = None
        if isinstance(body, PipeBody) and body.size is not None:
            return
        if not body.replayable:
            self._running = checksums.new(checksums.AUTO)
            body.tap = self._running.update

    def start(self) -> None:
        """The first body byte is about to leave."""
        body = self._body
        if body.replayable and (body.size or 0) > limits.INLINE_BODY_MAX_BYTES:
            self._hashing = asyncio.get_running_loop().run_in_executor(
                None, _hash_now, body, checksums.AUTO, self._stopped.is_set
            )

    async def result(self) -> Checksum | None:
        if self._hashing is not None:
            return Checksum(checksums.AUTO, await asyncio.shield(self._hashing))
        if self._running is not None:
            return Checksum(checksums.AUTO, self._running.digest_base64())
        if self._body.replayable:
            return Checksum(checksums.AUTO, _hash_now(self._body, checksums.AUTO, self._stopped.is_set))
        return None

    async def stop(self) -> None:
        """Until the thread has let go of the source."""
        self._stopped.set()
        if self._hashing is not None:
            await until_done(self._hashing)


# --- results ---------------------------------------------------------------------------------------------------------


def _verify(checksum: Checksum | None, response: Answer, what: str) -> bool:
    """Whether the server returned a checksum to compare, and it was equal. Raises ChecksumMismatch."""
    if checksum is None:
        return False
    stored = response.get(checksums.header_name(checksum.algorithm))
    composite = (response.get("x-amz-checksum-type") or "").upper() == "COMPOSITE"
    if not stored or composite:
        return False
    if stored != checksum.value:
        raise ChecksumMismatch(
            f"{what}: the server stored bytes with {checksum.algorithm} {stored}, sent were bytes with "
            f"{checksum.value}; the object there is not the source",
            algorithm=checksum.algorithm,
            sent=checksum.value,
            stored=stored,
        )
    return True


def _put_result(outcome: Outcome, body: Body, checksum: Checksum | None, verified: bool) -> PutResult:
    response = outcome.reply.response
    return PutResult(
        status=response.status,
        etag=response.get("etag") or "",
        version_id=response.get("x-amz-version-id") or "",
        size=body.size if body.size is not None else body.bytes_read,
        checksum=checksum,
        checksum_verified=verified,
        request_id=response.get("x-amz-request-id") or "",
        host_id=response.get("x-amz-id-2") or "",
        region=outcome.region,
        url=outcome.url.redacted(),
        body_bytes_sent=outcome.body_bytes_sent,
        hops=outcome.hops,
        attempts=outcome.attempts,
        redirects=outcome.redirects,
        expect=outcome.expect,
        send_path=outcome.send_path,
        timings=outcome.timings,
    )


def _object_info(outcome: Outcome) -> ObjectInfo:
    headers = outcome.reply.response.headers()
    size = headers.get("content-length", "")
    return ObjectInfo(
        size=int(size) if size.isdigit() else -1,
        etag=headers.get("etag", ""),
        content_type=headers.get("content-type", ""),
        last_modified=headers.get("last-modified", ""),
        version_id=headers.get("x-amz-version-id", ""),
        storage_class=headers.get("x-amz-storage-class", ""),
        metadata=_prefixed(headers, "x-amz-meta-"),
        checksums={
            name: value for name, value in _prefixed(headers, "x-amz-checksum-").items() if name not in ("type", "mode")
        },
        region=outcome.region,
        url=outcome.url.redacted(),
        hops=outcome.hops,
    )


def _prefixed(headers: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name[len(prefix) :]: value for name, value in headers.items() if name.startswith(prefix)}


# --- sinks -----------------------------------------------------------------------------------------------------------


class OpenSink:
    """Where the body of a GET goes. `rewind` says whether it can start again after some bytes came."""

    count = 0  # bytes taken; may be looked at any time

    def write(self, view: memoryview) -> None:
        raise NotImplementedError

    def rewind(self) -> bool:
        return self.count == 0

    def commit(self) -> None:
        """The body is complete."""

    def discard(self) -> None:
        """Called last, in any case."""


class _CallSink(OpenSink):
    def __init__(self, call: Callable[[memoryview], object]) -> None:
        self._call = call

    def write(self, view: memoryview) -> None:
        self._call(view)
        self.count += view.nbytes


class _PathSink(OpenSink):
    """Written beside its place and renamed when complete: a half-fetched object never has the name of a whole one. A file that
    was there is replaced and gives its mode; a symbolic link stays, and what it leads to is replaced. Raises OSError."""

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path)
        folder, name = os.path.split(self._path)
        start = os.fsdecode(os.fsencode(name)[:100])
        self._temporary = os.path.join(folder, f".{start}.{secrets.token_hex(8)}.part")
        try:
            # Not mkstemp, which makes 0600: the mode is what open() would have given, and the umask is left alone.
            self._fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            error.filename = path  # nobody knows the temporary name
            raise
        with contextlib.suppress(FileNotFoundError):
            os.fchmod(self._fd, stat.S_IMODE(os.stat(self._path).st_mode))

    def write(self, view: memoryview) -> None:
        self.count += view.nbytes
        while view:
            view = view[os.write(self._fd, view) :]

    def rewind(self) -> bool:
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.count = 0
        return True

    def commit(self) -> None:
        os.replace(self._temporary, self._path)
        self._temporary = ""

    def discard(self) -> None:
        os.close(self._fd)
        if self._temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)


class _DeviceSink(OpenSink):
    """A pipe or a device: written as it comes, never replaced. Raises OSError."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def write(self, view: memoryview) -> None:
        self.count += view.nbytes
        while view:
            view = view[os.write(self._fd, view) :]

    def discard(self) -> None:
        os.close(self._fd)


class _Collector(OpenSink):
    """In memory, bounded."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, view: memoryview) -> None:
        if len(self.data) + view.nbytes > limits.RESPONSE_BODY_MAX_BYTES:
            raise UsageError(
                f"the answer is longer than {limits.RESPONSE_BODY_MAX_BYTES} bytes; use get() with a sink",
                stage="answer",
            )
        self.data += view

    def rewind(self) -> bool:
        self.data.clear()
        return True


def open_sink(sink: Sink) -> OpenSink:
    """Whoever opens one hands it to `Client.get`, which commits or discards it. Raises OSError, UsageError."""
    if isinstance(sink, OpenSink):
        return sink
    if isinstance(sink, (str, os.PathLike)):
        path = os.fsdecode(sink)
        regular = not os.path.exists(path) or os.path.isfile(path)
        return _PathSink(path) if regular else _DeviceSink(path)
    write = getattr(sink, "write", None)
    if isinstance(sink, io.TextIOBase):
        raise UsageError("sink: the file takes text; open it in binary mode ('wb')")
    if inspect.iscoroutinefunction(write or sink):
        raise UsageError("sink: a coroutine function cannot be called with each piece; put the pieces into a queue")
    if callable(write):
        return _CallSink(partial(_write_all, write))
    if callable(sink):
        return _CallSink(sink)
    raise UsageError(f"sink: {type(sink).__name__} is neither a path, a binary file nor a function taking a memoryview")


def _write_all(write: Callable[[memoryview], Any], view: memoryview) -> None:
    # A raw (unbuffered) file may take less than it is given, and says None when it would block.
    raw = isinstance(getattr(write, "__self__", None), io.RawIOBase)
    while view:
        taken = write(view)
        if taken is None and raw:
            raise BlockingIOError(errno.EAGAIN, "the sink is non-blocking and full; use a blocking file")
        if taken is None or taken >= view.nbytes:
            return
        view = view[taken:]


# --- one object, one call --------------------------------------------------------------------------------------------


async def put_async(
    source: Source,
    destination: str,
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    credentials: CredentialsOption = None,
    config: Config | None = None,
    profile: str | None = None,
    **options: Unpack[PutOptions],
) -> PutResult:
    """`Client(...).put(...)` for a single object. For more than one keep a Client: it keeps the connections."""
    async with Client(
        endpoint_url=endpoint_url, region=region, credentials=credentials, config=config, profile=profile
    ) as client:
        return await client.put(source, destination, **options)


def put(
    source: Source,
    destination: str,
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    credentials: CredentialsOption = None,
    config: Config | None = None,
    profile: str | None = None,
    **options: Unpack[PutOptions],
) -> PutResult:
    """Put one object; needs no event loop and starts uvloop for the call. Arguments and errors as `Client.put`.

    Raises UsageError inside a running event loop: use `put_async` there.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise UsageError("engine.put cannot be called inside a running event loop; use 'await engine.put_async(...)'")
    import uvloop

    return uvloop.run(
        put_async(
            source,
            destination,
            endpoint_url=endpoint_url,
            region=region,
            credentials=credentials,
            config=config,
            profile=profile,
            **options,
        )
    )
