"""The five calls about an object in parts, create, send one, list, complete, abort, and a look at what became of it.

Each is a request of its own (`request.Run`), with its redirects and retries. Knows the order of none: that is `upload`'s, or of
whoever spreads the pieces over machines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Protocol

from engine import checksums, hashing, limits, multipart, signing
from engine._fastparse import Response as Answer
from engine.body import Body, open_body
from engine.config import Config
from engine.connection import Reply
from engine.errors import ChecksumMismatch, EngineError, NotFound, ProtocolError, UploadFailed
from engine.request import Job, Outcome, Run, Shared
from engine.results import Checksum, Hop, Part, PutResult, Timings, UploadId
from engine.sinks import Collector
from engine.wire import Field

_SILENCES: Final = (
    5  # × response_timeout_s: S3 keeps talking while it puts parts together, others are silent for minutes
)


class MakeJob(Protocol):
    """Makes a request to the upload's object; `query` without its "?"."""

    def __call__(
        self, method: str, query: str | None, fields: list[Field], body: Body | None, payload_hash: str
    ) -> Job: ...


@dataclass
class Site:
    """Where the parts go and how requests to it are made: the client's part of it.

    Attributes:
      shown: the destination for people. origin: of the endpoint. fields: the caller's, of all calls together.
    """

    shared: Shared
    config: Config
    shown: str
    origin: str
    signed: bool
    bucket: str
    fields: list[Field]
    make_job: MakeJob
    can_compute_auto: Callable[[], Awaitable[bool]]

    def job(
        self,
        call: str,
        method: str,
        query: str | None,
        fields: list[Field],
        body: Body | None = None,
        payload_hash: str = signing.UNSIGNED_PAYLOAD,
    ) -> Job:
        made = self.make_job(method, query, fields, body, payload_hash)
        # All of them can be done twice: a second CreateMultipartUpload leaves an empty upload behind, which holds no byte.
        return dataclasses.replace(made, config=self.config, what=f"{call} {self.shown}", idempotent=True)

    async def hashes(self, body: Body, algorithm: str | None, fields: list[Field]) -> hashing.Hashes:
        async def unbounded(hashed: Coroutine[Any, Any, str]) -> str:
            return await hashed  # whoever sends the part limits its time

        return await hashing.hash_first(
            body,
            algorithm,
            fields,
            signed=self.signed,
            signs_payload=self.config.payload_signing == "sha256" and self.signed,
            bounded=unbounded,
        )


# --- the calls ----------------------------------------------------------------------------------------------------


def create_run(site: Site, algorithm: str | None) -> Run:
    """CreateMultipartUpload, to be run; `created` makes sense of what comes back."""
    fields = multipart.create_fields(site.fields, algorithm)
    return Run(site.shared, site.job(multipart.CREATE, "POST", "uploads", fields))


def created(site: Site, outcome: Outcome, destination: str, algorithm: str | None) -> UploadId:
    """Raises ProtocolError when the answer names no upload."""
    upload_id = multipart.parse_created(outcome.reply.body, f"{multipart.CREATE} {site.shown}")
    return UploadId(destination, upload_id, algorithm, site.shared.regions.get(site.bucket))


async def send_part(
    site: Site, upload: UploadId, number: int, body: Body, *, tune: Callable[[Job, Run], object] | None = None
) -> tuple[Part, Outcome]:
    """One part. The body stays the caller's. `tune` may change the job before it runs.

    Raises ChecksumMismatch when the store has other bytes, SourceChanged, and what any request does.
    """
    digest: hashing.Digest | None = None
    checksum: Checksum | None = None
    algorithm = upload.checksum
    try:
        if algorithm == "auto" and await site.can_compute_auto():
            digest = hashing.Digest(body)
        named = None if algorithm == "auto" else algorithm
        hashes = await site.hashes(body, named, multipart.fields_for(multipart.PART, site.fields))
        query = multipart.query_of(upload.upload_id, number)
        job = site.job(f"{multipart.PART} {number} of", "PUT", query, hashes.fields, body, hashes.payload_hash)
        if digest is not None:
            job.on_body_start = digest.start

        async def verify(response: Answer) -> None:
            nonlocal checksum
            body.check_unchanged()
            checksum = hashes.seen() if digest is None else await digest.result()
            hashing.verify(checksum, response, job.what)

        job.verify = verify
        run = Run(site.shared, job)
        if tune is not None:
            tune(job, run)
        outcome = await run.run()
    finally:
        try:
            if digest is not None:
                await digest.stop()
        finally:
            await body.settle()
    size = body.size if body.size is not None else body.bytes_read
    etag = outcome.reply.response.get("etag") or ""
    if not etag:
        raise ProtocolError(
            f"{job.what}: the answer has no ETag; without it the upload cannot be completed", kind="no-etag"
        )
    return Part(number, size, etag, checksum, outcome.body_bytes_sent), outcome


async def list_parts(site: Site, upload: UploadId) -> list[Part]:
    """All parts that the store has, by number. Raises NotFound (NoSuchUpload) and what any request does."""
    found: list[Part] = []
    marker = ""
    while True:
        query = multipart.query_of(upload.upload_id)
        if marker:
            query += f"&part-number-marker={marker}"
        collected = Collector()
        job = site.job(multipart.LIST, "GET", query, multipart.fields_for(multipart.LIST, site.fields))
        job = dataclasses.replace(job, sink=collected.write, rewind_sink=collected.rewind)
        await Run(site.shared, job).run()
        page = multipart.parse_parts(bytes(collected.data), job.what)
        found += page.parts
        if not page.marker:
            return found
        if page.marker == marker or len(found) > limits.PARTS_MAX:
            raise ProtocolError(f"{job.what}: the list of parts does not end", kind="no-parts")
        marker = page.marker


@dataclass
class Finished:
    """A completed upload. `stored`: what the answer said of the object."""

    outcome: Outcome
    stored: multipart.Completed
    checksum: Checksum | None
    verified: bool


async def complete(site: Site, upload: UploadId, parts: list[Part]) -> Finished:
    """CompleteMultipartUpload. `parts`: in order.

    Raises ChecksumMismatch when the object is there with another checksum than its parts make; PreconditionFailed and what any
    request does. An answer that was lost is made up for: the next attempt finds no such upload, and HEAD tells why.
    """
    fields = multipart.complete_fields(site.fields, parts, upload.checksum)
    body = open_body(multipart.complete_document(parts))
    conditional = any(name in ("if-match", "if-none-match") for name, _value in fields)
    try:
        hashes = await site.hashes(body, None, fields)
        query = multipart.query_of(upload.upload_id)
        job = site.job(multipart.COMPLETE, "POST", query, hashes.fields, body, hashes.payload_hash)
        silence_s = job.config.response_timeout_s * _SILENCES
        job.config = dataclasses.replace(job.config, response_timeout_s=silence_s)
        job.conditional = conditional

        def check(reply: Reply) -> None:
            multipart.check_completed(
                job.what,
                reply.body,
                conditional=conditional,
                request_id=reply.response.get("x-amz-request-id") or "",
            )

        job.check_answer = check
        again: list[EngineError] = []
        job.on_retry = again.append
        try:
            outcome = await Run(site.shared, job).run()
            stored = multipart.parse_completed(outcome.reply.body)
            error: EngineError = ProtocolError(f"{job.what}: the answer names no object", kind="no-object")
        except NotFound as lost:
            if not multipart.is_upload_gone(lost) or not again:
                raise
            stored, error = None, lost
        if stored is None:
            outcome, stored = await _look(site, upload, parts, error)
    finally:
        body.close()
    checksum, verified = _verify_whole(job.what, parts, upload.checksum, stored)
    return Finished(outcome, stored, checksum, verified)


async def _look(
    site: Site, upload: UploadId, parts: list[Part], error: EngineError
) -> tuple[Outcome, multipart.Completed]:
    """Whether the object that is there now is the one of these parts. Raises `error` when that cannot be told."""
    fields = [*multipart.fields_for(multipart.LIST, site.fields), ("x-amz-checksum-mode", "ENABLED")]
    try:
        outcome = await Run(site.shared, site.job("HEAD", "HEAD", None, fields)).run()
    except EngineError:
        raise error from None
    response = outcome.reply.response
    named = {name: value for name in checksums.ALGORITHMS if (value := response.get(checksums.header_name(name)))}
    kind = (response.get("x-amz-checksum-type") or "").upper()
    stored = multipart.Completed(response.get("etag") or "", named, kind)
    whole = multipart.whole_checksum(parts, upload.checksum)
    same = whole is not None and _comparable(whole, stored) == whole.value
    same = same or stored.etag == (multipart.whole_etag(parts) or None)
    if not same or response.get("content-length") != str(sum(part.size for part in parts)):
        raise error
    return outcome, stored


def _comparable(whole: Checksum, stored: multipart.Completed) -> str | None:
    """What the store says, when it is made as ours is: of the object's bytes, or of its parts' digests."""
    value = stored.checksums.get(whole.algorithm)
    if value is None or ("-" in value) != ("-" in whole.value):
        return None
    full = stored.checksum_type == "FULL_OBJECT" or whole.algorithm == checksums.AUTO or "-" in value
    return value if full and (stored.checksum_type != "COMPOSITE" or "-" in value) else None


def _verify_whole(
    what: str, parts: list[Part], algorithm: str | None, stored: multipart.Completed
) -> tuple[Checksum | None, bool]:
    whole = multipart.whole_checksum(parts, algorithm)
    value = _comparable(whole, stored) if whole is not None else None
    if whole is None or value is None:
        return whole, False
    if value != whole.value:
        raise ChecksumMismatch(
            f"{what}: the store made an object with {whole.algorithm} {value} of parts which make {whole.value}; "
            "the object there is not the source",
            algorithm=whole.algorithm,
            sent=whole.value,
            stored=value,
        )
    return whole, True


async def abort(site: Site, upload: UploadId) -> bool:
    """AbortMultipartUpload, until no part is left: one that was under way may be stored behind the abort.

    Returns whether the upload was still there. Raises what any request does.
    """
    query = multipart.query_of(upload.upload_id)
    for attempt in range(limits.ABORTS_MAX):
        try:
            fields = multipart.fields_for(multipart.ABORT, site.fields)
            await Run(site.shared, site.job(multipart.ABORT, "DELETE", query, fields)).run()
        except NotFound as error:
            if not multipart.is_upload_gone(error):
                raise
            return attempt > 0
        try:
            if not await list_parts(site, upload):
                return True
        except EngineError:
            return True  # NoSuchUpload, as it should be; or it does not list, and its word counts
    raise UploadFailed(
        f"{multipart.ABORT} {site.shown}: parts are still there after {limits.ABORTS_MAX} attempts",
        upload_id=upload.upload_id,
        aborted=False,
    )


def result_of(site: Site, parts: list[Part], finished: Finished, account: Account) -> PutResult:
    """`account`: of everything but the completing."""
    outcome = finished.outcome
    response = outcome.reply.response
    account.note(outcome.hops, outcome.attempts, keep=True)
    first = account.first
    began, ended = account.body_began or 0.0, account.body_ended
    timings = first.timings if first is not None else Timings()
    return PutResult(
        status=response.status,
        etag=finished.stored.etag or response.get("etag") or "",
        version_id=response.get("x-amz-version-id") or "",
        size=sum(part.size for part in parts),
        checksum=finished.checksum,
        checksum_verified=finished.verified,
        request_id=response.get("x-amz-request-id") or "",
        host_id=response.get("x-amz-id-2") or "",
        region=outcome.region,
        url=outcome.url.redacted(),
        body_bytes_sent=account.body_bytes_sent,
        hops=tuple(account.hops),
        attempts=account.attempts,
        redirects=account.redirects,
        expect=first.expect if first is not None else "off",
        send_path=first.send_path if first is not None else "none",
        timings=dataclasses.replace(
            timings,
            body=max(0.0, ended - began),
            response=outcome.timings.total,
            total=monotonic() - account.began,
        ),
    )


@dataclass
class Account:
    """What an upload took: sums over all of its requests, and the hops worth telling."""

    began: float
    hops: list[Hop] = dataclasses.field(default_factory=list)
    attempts: int = 1
    redirects: int = 0
    body_bytes_sent: int = 0
    first: Outcome | None = None  # of the first part that was stored
    body_began: float | None = None
    body_ended: float = 0.0

    def note(self, hops: Iterable[Hop], attempts: int, *, keep: bool) -> None:
        """One request's. `keep`: tell of its hops even when it is as uneventful as the thousands beside it."""
        made = list(hops)
        self.attempts += max(0, attempts - 1)
        self.redirects += sum(hop.outcome in ("redirected", "region") for hop in made)
        if keep or len(made) != 1 or made[0].outcome != "stored":
            room = limits.UPLOAD_HOPS_MAX - len(self.hops)
            # The last ones are those of completing, or of what went wrong: they push others out.
            del self.hops[len(self.hops) - max(0, len(made) - room) :]
            self.hops += made[-limits.UPLOAD_HOPS_MAX :]
