"""What users call: `Client`, and `put` / `put_async` for a single object.

Turns arguments into an intent and a body, hands both to `request.Run`, and answers into results. Owns nothing of the protocol.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import os
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from engine import checksums, events, hashing, limits, multipart, s3, signing, smallput
from engine import parts as calls
from engine import upload as uploads
from engine._fastparse import Response as Answer
from engine._smallput import Route, SmallPut
from engine.body import Body, IteratorBody, MemoryBody, Source, open_body
from engine.config import Config
from engine.credentials import CredentialsOption, Provider, resolve
from engine.errors import UsageError
from engine.proxy import ENVIRONMENT
from engine.redirect import Intent
from engine.request import Job, Outcome, Run, Shared, total_timed_out, within
from engine.results import Checksum, ObjectInfo, Part, Progress, PutResult, Response, UploadId
from engine.resume import ResumeFile
from engine.retry import Retry
from engine.sinks import Collector, OpenSink, Sink, open_sink
from engine.turns import Turns
from engine.wire import Field, Url, caller_fields

if TYPE_CHECKING:
    from typing_extensions import Unpack

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
    """A put or an upload under way: awaitable for its PutResult; `progress` may be read at any time and costs nothing."""

    def __init__(self, task: asyncio.Task[PutResult], state: _PutState) -> None:
        self._task = task
        self._state = state

    @property
    def progress(self) -> Progress:
        run = self._state.run
        return run.progress() if run is not None else Progress(0, None, self._state.phase, 1, 1)

    def done(self) -> bool:
        return self._task.done()

    def cancel(self) -> bool:
        """Stop at once; awaiting the transfer then raises CancelledError, when nothing of it is left behind."""
        return self._task.cancel()

    def __await__(self) -> Generator[Any, None, PutResult]:
        return self._task.__await__()


@dataclasses.dataclass
class _PutState:
    """`phase` and `began` are those of a put that has no Run yet."""

    run: Run | uploads.Upload | None = None
    phase: str = "connecting"  # waits in line
    began: float = dataclasses.field(default_factory=lambda: monotonic())


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
        self._small_puts = smallput.small_puts(self, self._shared, self._route)
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
        small = self._small_puts.begin(source, destination, options)
        if small is not None:
            try:
                await small.waiter
            except BaseException as error:
                small.interrupt(error)
            result: PutResult | None = small.result()
            if result is not None:
                return result
        try:
            return await self._put(source, destination, options, _PutState(), small)
        finally:
            if small is not None:
                small.abandon()  # what was right when it began may have become an error: an endpoint, an environment

    def start_put(self, source: Source, destination: str, **options: Unpack[PutOptions]) -> Transfer:
        """As `put`, but returns at once a `Transfer`: awaitable, with `.progress` and `.cancel()`. Needs a running loop."""
        _check_loop("start_put needs a running event loop; engine.put needs none")
        state = _PutState()
        return Transfer(asyncio.ensure_future(self._put(source, destination, options, state)), state)

    async def upload(
        self,
        source: Source,
        destination: str,
        *,
        part_size: int | None = None,
        concurrency: int | None = None,
        resume: str | os.PathLike[str] | None = None,
        **options: Unpack[PutOptions],
    ) -> PutResult:
        """Store an object of any size: by one PUT up to 16 MiB (or up to `part_size`), in parallel parts above.

        Args:
          source: as `put` takes it. What cannot be read twice is gathered part by part, in bounded memory; no size is needed.
          destination: "s3://bucket/key". A plain http(s) URL gets one PUT, whatever the size.
          part_size: bytes of each part but the last; default 8 MiB, or what 10,000 parts need.
          concurrency: parts under way at once; default adapts to what the path gives.
          resume: the path of a file in which the upload is remembered while it is not finished. The same call made again goes
            on with what is missing. Without it, whatever ends the upload early also removes the parts.
          options: see `PutOptions`. `total_timeout_s` is that of the whole upload.

        Raises what `put` raises, when the parts have been removed; UploadFailed when they could not be, or were kept for
        `resume`.
        """
        return await self._upload(source, destination, options, part_size, concurrency, resume, _PutState())

    def start_upload(
        self,
        source: Source,
        destination: str,
        *,
        part_size: int | None = None,
        concurrency: int | None = None,
        resume: str | os.PathLike[str] | None = None,
        **options: Unpack[PutOptions],
    ) -> Transfer:
        """As `upload`, but returns at once a `Transfer`. Needs a running loop. Cancelling it removes the parts, or keeps them
        for `resume`."""
        _check_loop("start_upload needs a running event loop")
        state = _PutState()
        work = self._upload(source, destination, options, part_size, concurrency, resume, state)
        return Transfer(asyncio.ensure_future(work), state)

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
        turns = await self._turn(destination, options, monotonic())
        try:
            target = open_sink(sink)
            try:
                await self._simple("GET", destination, options, sink=target)
                target.commit()
            finally:
                target.discard()
        finally:
            turns.give_back()
        return target.count

    async def request(
        self, method: str, url: str, *, body: Source | None = None, **options: Unpack[CallOptions]
    ) -> Response:
        """One plain HTTP request, redirects followed as the Config says. Any final status is a result, not an error.

        `body` as `put`'s source. The answer's body is held in memory, at most 64 MiB.
        """
        _check_options(options, CallOptions)
        method, began = check_method(method), monotonic()
        collected = Collector()
        source = open_body(body) if body is not None else None
        try:
            if source is not None:
                await source.prepare()
            place = self._place(url, options)
            fields, payload_hash = _request_fields(options, signed=place.signed), signing.UNSIGNED_PAYLOAD
            if source is not None:
                hashes = await self._hashes(source, None, place, options, began, fields)
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
            url=outcome.hops[-1].url,
            hops=outcome.hops,
        )

    def _route(self, prefix: str, options: PutOptions) -> Route | None:
        """How small puts to the keys below `prefix` ("s3://bucket/", "http://host/") go; None as long as that is not known."""
        algorithm = options.get("checksum", "auto")
        if algorithm not in (None, "auto") or (algorithm == "auto" and self._computes_auto is None):
            return None
        variables: list[str] = ["http_proxy", "no_proxy", "NO_PROXY"] if self.config.proxy == ENVIRONMENT else []
        if prefix.startswith("s3:"):
            variables += [] if self._region else ["AWS_REGION", "AWS_DEFAULT_REGION"]
            variables += [] if self._endpoint_url else ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
        try:
            place = self._place(f"{prefix}{smallput.PROBE}", options)
            job = self._job("PUT", place, options, fields=_request_fields(options, signed=place.signed))
            return smallput.route(
                prefix,
                options,
                self._shared,
                self.config,
                job,
                variables,
                checks=algorithm == "auto" and bool(self._computes_auto),
            )
        except UsageError:
            return None  # said by the long way

    # --- pieces of an upload ---------------------------------------------------------------------------------------

    async def create_upload(self, destination: str, **options: Unpack[PutOptions]) -> UploadId:
        """Begin an object in parts, which anybody with the UploadId can add to. It ends with `complete_upload` or
        `abort_upload`, and costs money until then.

        options: those of `put` that describe the object; conditions belong to `complete_upload`, `size` and `offset` to the
          parts. `checksum` holds for all parts and the whole.
        """
        _check_options(options, PutOptions)
        misplaced = [n for n in ("size", "offset", "if_match", "if_none_match") if options.get(n) is not None]
        if misplaced:
            raise UsageError(f"create_upload: {misplaced[0]} belongs to upload_part or complete_upload")
        site, algorithm = self._site(destination, options), options.get("checksum", "auto")
        return calls.created(site, await calls.create_run(site, algorithm).run(), destination, algorithm)

    async def upload_part(
        self,
        upload: UploadId,
        number: int,
        source: Source,
        *,
        offset: int | None = None,
        size: int | None = None,
        **options: Unpack[CallOptions],
    ) -> Part:
        """Store one part: `size` bytes from `offset` of `source` (default: all). `number`: 1 to 10,000, its place in the whole.
        S3 wants at least 5 MiB of every part but the last. A part with a number that is there already replaces it.
        `sse_customer_key` has to be given to every part."""
        _check_options(options, CallOptions)
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= limits.PARTS_MAX:
            raise UsageError(f"number={number!r}: parts have numbers from 1 to {limits.PARTS_MAX}")
        site = self._site_of(upload, options)
        body = open_body(source, offset=offset, size=size)
        try:
            await body.prepare()
            if body.size is None:
                raise UsageError(
                    "upload_part: the length of a part is told first; give size=, or gather it into a buffer"
                )
            part, _outcome = await calls.send_part(site, upload, number, body)
            return part
        finally:
            await _close(body)

    async def list_parts(self, upload: UploadId, **options: Unpack[CallOptions]) -> list[Part]:
        """The parts that are stored, by number."""
        _check_options(options, CallOptions)
        return await calls.list_parts(self._site_of(upload, options), upload)

    async def complete_upload(
        self,
        upload: UploadId,
        parts: Iterable[Part],
        *,
        if_none_match: str | None = None,
        if_match: str | None = None,
        **options: Unpack[CallOptions],
    ) -> PutResult:
        """Make an object of the parts, in any order. Raises PreconditionFailed when a condition does not hold: the parts are
        still there then, for `abort_upload`."""
        _check_options(options, CallOptions)
        began, ordered = monotonic(), multipart.in_order(parts)
        conditions = {**options, "if_none_match": if_none_match, "if_match": if_match}
        site = self._site_of(upload, cast("CallOptions", conditions))
        finished = await calls.complete(site, upload, ordered)
        sent = sum(part.body_bytes_sent for part in ordered)
        return calls.result_of(site, ordered, finished, calls.Account(began, body_bytes_sent=sent))

    async def abort_upload(self, upload: UploadId, **options: Unpack[CallOptions]) -> None:
        """Remove the parts. An upload that is gone already is no error. Call it when no part is under way any more."""
        _check_options(options, CallOptions)
        await calls.abort(self._site_of(upload, options), upload)

    # --- how -------------------------------------------------------------------------------------------------------

    async def _upload(
        self,
        source: Source,
        destination: str,
        options: PutOptions,
        part_size: int | None,
        concurrency: int | None,
        resume: str | os.PathLike[str] | None,
        state: _PutState,
    ) -> PutResult:
        _check_options(options, PutOptions)
        began = monotonic()
        if concurrency is not None and (
            not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1
        ):
            raise UsageError(f"concurrency={concurrency!r}: a number of parts, 1 or more")
        if self._place(destination, options).provider is None:
            if resume is not None:
                raise UsageError("resume: a plain http(s) URL gets its object by one PUT, which cannot be continued")
            return await self._put(source, destination, options, state)
        site = self._site(destination, options)
        body = open_body(source, offset=options.get("offset"), size=options.get("size"))
        gathered: uploads.Gathered | None = None
        try:
            await body.prepare()
            # No part size: the stream's own, growing one.
            chosen = multipart.part_size_for(body.size, part_size)
            threshold = chosen if part_size is not None or body.size is None else limits.UPLOAD_THRESHOLD_BYTES
            small = body.size is not None and body.size <= threshold
            if isinstance(body, IteratorBody):
                if resume is not None:
                    raise UsageError("resume: the source has to be read again, which takes a path, a file or a buffer")
                size = body.size if small else chosen if body.size is not None else part_size
                gathered = uploads.Gathered(body, size, concurrency)
                first = await gathered.first()
                if gathered.ended:
                    assert isinstance(first.body, MemoryBody)
                    alone = {**options, "size": None, "offset": None}
                    return await self._put(first.body.view, destination, cast("PutOptions", alone), state)
            elif small:
                return await self._put(source, destination, options, state)
            total_s = site.config.total_timeout_s
            site.config = dataclasses.replace(site.config, total_timeout_s=None)
            state.run = run = uploads.Upload(
                site,
                destination,
                body,
                checksum=options.get("checksum", "auto"),
                part_size=chosen,
                concurrency=concurrency,
                gathered=gathered,
                resume=None if resume is None else ResumeFile(resume),
                total_s=total_s,
                began=began,
            )
            return await run.run()
        finally:
            await _close(body)

    def _site(self, destination: str, options: PutOptions | CallOptions) -> calls.Site:
        place = self._place(destination, options)
        if place.provider is None or place.url.query is not None:
            raise UsageError(
                f"{place.shown}: parts are S3's; give s3://bucket/key, or a URL without a query and sign='s3'"
            )
        algorithm = options.get("checksum")
        if algorithm is not None and algorithm != "auto":
            checksums.header_name(str(algorithm))

        def make_job(method: str, query: str | None, fields: list[Field], body: Body | None, payload_hash: str) -> Job:
            asked = dataclasses.replace(place, url=dataclasses.replace(place.url, query=query))
            return self._job(method, asked, options, fields=fields, body=body, payload_hash=payload_hash)

        return calls.Site(
            shared=self._shared,
            config=self._config_of(options),
            shown=place.shown,
            origin=str(place.url.origin),
            signed=place.signed,
            bucket=place.bucket,
            fields=_request_fields(options, signed=place.signed),
            make_job=make_job,
            can_compute_auto=self._can_compute_auto,
        )

    def _site_of(self, upload: UploadId, options: CallOptions) -> calls.Site:
        if not isinstance(upload, UploadId):
            raise UsageError("upload: the UploadId that create_upload returned")
        site = self._site(upload.destination, options)
        if upload.region and site.bucket and not self._shared.regions.get(site.bucket):
            self._shared.regions.learn(site.bucket, upload.region)
        return site

    async def _simple(
        self, method: str, destination: str, options: CallOptions, *, sink: OpenSink | None = None
    ) -> Outcome:
        _check_options(options, CallOptions)
        place = self._place(destination, options)
        job = self._job(method, place, options, fields=_request_fields(options, signed=place.signed))
        if sink is not None:
            job = dataclasses.replace(job, sink=sink.write, rewind_sink=sink.rewind)
        return await Run(self._shared, job).run()

    async def _turn(self, destination: str, options: CallOptions, began: float) -> Turns:
        """Wait in line for leave to open a source or a sink: thousands may be started at once. The caller gives it back."""
        turns = self._shared.turns
        if not turns.try_take():
            shown = self._place(destination, options).shown  # what is wrong with it is said at once
            total_s = self._config_of(options).total_timeout_s
            try:
                await turns.take(None if total_s is None else began + total_s - monotonic())
            except TimeoutError:
                raise total_timed_out(shown, total_s or 0.0, "connect") from None
        return turns

    async def _put(
        self,
        source: Source,
        destination: str,
        options: PutOptions,
        state: _PutState,
        begun: SmallPut | None = None,
    ) -> PutResult:
        _check_options(options, PutOptions)
        if begun is not None:  # it has a connection, which those in line may be waiting for
            return await self._put_in_turn(source, destination, options, state, begun)
        turns = await self._turn(destination, options, state.began)
        try:
            return await self._put_in_turn(source, destination, options, state)
        finally:
            turns.give_back()

    async def _put_in_turn(
        self,
        source: Source,
        destination: str,
        options: PutOptions,
        state: _PutState,
        begun: SmallPut | None = None,
    ) -> PutResult:
        state.phase = "hashing"
        place = self._place(destination, options)
        fields = _request_fields(options, signed=place.signed)
        body = open_body(source, offset=options.get("offset"), size=options.get("size"))
        digest: hashing.Digest | None = None
        checksum: Checksum | None = None
        verified, began = False, state.began if begun is None else begun.began
        try:
            algorithm = options.get("checksum", "auto")
            if algorithm is not None and algorithm != "auto":
                checksums.header_name(algorithm)  # an unknown name is an error now, not after gigabytes
            await body.prepare()
            if algorithm == "auto" and await self._can_compute_auto():
                digest = hashing.Digest(body)
            hashes = await self._hashes(body, algorithm, place, options, began, fields)
            job = self._job("PUT", place, options, fields=hashes.fields, body=body, payload_hash=hashes.payload_hash)
            job.began = began
            job.conditional = any(name in ("if-match", "if-none-match") for name, _value in fields)
            if digest is not None:
                job.on_body_start = digest.start

            async def verify(response: Answer) -> None:
                nonlocal checksum, verified
                body.check_unchanged()
                checksum = hashes.seen() if digest is None else await digest.result()
                verified = hashing.verify(checksum, response, job.what)

            job.verify = verify
            state.run = Run(self._shared, job, begun)
            return _put_result(await state.run.run(), body, checksum, verified)
        finally:
            try:
                if digest is not None:
                    await digest.stop()
            finally:
                await _close(body)

    async def _hashes(
        self,
        body: Body,
        algorithm: str | None,
        place: _Place,
        options: CallOptions,
        began: float,
        fields: list[Field],
    ) -> hashing.Hashes:
        config = self._config_of(options)
        total_s = config.total_timeout_s

        async def bounded(hashed: Coroutine[Any, Any, str]) -> str:
            return await within(
                None if total_s is None else began + total_s,
                hashed,
                lambda: total_timed_out(f"PUT {place.shown}", total_s or 0.0, "checksum"),
            )

        return await hashing.hash_first(
            body,
            algorithm,
            fields,
            signed=place.signed,
            signs_payload=config.payload_signing == "sha256" and place.signed,
            bounded=bounded,
        )

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
        endpoint = _endpoint(url, region, self.config)
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


def _endpoint(url: str | None, region: str, config: Config) -> s3.Endpoint:
    """The service that is meant. Raises UsageError, also for a kind of AWS endpoint that the one named is not: somebody counts
    on FIPS, say, and must not be given something else."""
    kinds = {
        "dualstack": _flag(config.use_dualstack_endpoint, "AWS_USE_DUALSTACK_ENDPOINT"),
        "fips": _flag(config.use_fips_endpoint, "AWS_USE_FIPS_ENDPOINT"),
        "accelerate": config.use_accelerate_endpoint,
    }
    if not url:
        return s3.Endpoint.for_aws(region or "us-east-1", **kinds)
    endpoint = s3.Endpoint.from_url(url, region)
    for kind, wanted in kinds.items():
        if wanted and not getattr(endpoint, kind):
            raise UsageError(
                f"use_{kind}_endpoint is about AWS's own endpoints, and endpoint_url names {endpoint.host}"
            )
    return endpoint


def _flag(option: bool | None, variable: str) -> bool:
    return option if option is not None else os.environ.get(variable, "").lower() == "true"


def _check_loop(words: str) -> None:
    """Raises UsageError(words) outside a running event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(words) from None


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


# --- results ---------------------------------------------------------------------------------------------------------


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
        url=outcome.hops[-1].url,
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
        url=outcome.hops[-1].url,
        hops=outcome.hops,
    )


def _prefixed(headers: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name[len(prefix) :]: value for name, value in headers.items() if name.startswith(prefix)}


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
