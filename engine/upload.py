"""One object in many parts: created, sent side by side, completed, or aborted. And its pieces, for who spreads them himself.

Memory, beside what one put takes:

    files, mapped files   nothing per byte: every part leaves by sendfile from one descriptor; 0.5 MiB for each hashing thread
                          (six on two cores, asyncio's default), 4 MiB for one alone beside a busy interpreter
    buffers               nothing: the parts are views of the caller's memory
    streams               what is gathered: (parts under way + 1) × part size, and the source's item in hand. At most
                          GATHER_BYTES (48 MiB), or two parts where a part is larger than half of that; with `concurrency=n`
                          (n + 1) × part size
    any                   0.4 KiB for each part stored (4 MiB for 10,000), UPLOAD_HOPS_MAX hops

A part is a put of its own: `request.Run` follows its redirects and tries it again, on a fresh connection, out of one budget
with all others. What is added here is the order: one part asks, and what it learns of the way holds for all; a part that fails
ends the others, and when none is under way any more, the upload is aborted. That is done behind a shield and within a time
limit, whatever else is cancelled meanwhile. With `resume` an interruption keeps what is stored instead.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import Any

from engine import checksums, hashing, limits, multipart
from engine.body import Body, FileBody, IteratorBody, MemoryBody, until_done
from engine.errors import (
    ChecksumMismatch,
    EngineError,
    NotFound,
    PreconditionFailed,
    ResponseError,
    SlowDown,
    SourceChanged,
    TransportError,
    UploadFailed,
    UsageError,
)
from engine.parts import Account, Site, abort, complete, create_run, created, list_parts, result_of, send_part
from engine.request import Job, Outcome, Run, Target, total_timed_out, within
from engine.results import Checksum, Part, Progress, PutResult, UploadId
from engine.resume import ResumeFile, Unfinished
from engine.wire import Field

log = logging.getLogger("engine")

# --- the way of the parts ------------------------------------------------------------------------------------------------


class Way:
    """Where parts go. One asks (`Expect`, redirects, regions), the others wait for what it learns and then go there directly,
    without asking; until one of them is redirected, refused or lost: then the next one asks again.

    Good for the parts of one upload only: where a 307 leads is no fact about the bucket.
    """

    def __init__(self) -> None:
        self._target: Target | None = None
        self._everyone_asks = False
        self._asking: asyncio.Future[None] | None = None

    async def find(self, number: int) -> Target | None:
        """Where part `number` begins. None: it asks, for itself or for all; call `found` when its body begins to leave, and
        `lost` when it is over in any case."""
        while not self._everyone_asks:
            if self._target is not None:
                url = self._target.url
                query = re.sub(r"(?<![^&])partNumber=\d+", f"partNumber={number}", url.query or "")
                return dataclasses.replace(self._target, url=dataclasses.replace(url, query=query))
            if self._asking is None:
                self._asking = asyncio.get_running_loop().create_future()
                return None
            await asyncio.shield(self._asking)
        return None

    def found(self, target: Target | None, *, signed: bool) -> None:
        """The part that asked was told to send."""
        if target is None or (signed and not target.signed):
            self._everyone_asks = True  # a URL with a signature of its own is good for this part alone
        else:
            self._target = dataclasses.replace(target, asks=False)
        self._answered()

    def lost(self) -> None:
        """The way is not what it was."""
        self._target = None
        self._answered()

    def _answered(self) -> None:
        asking, self._asking = self._asking, None
        if asking is not None and not asking.done():
            asking.set_result(None)


# --- where parts come from -------------------------------------------------------------------------------------------------


@dataclass
class Piece:
    """A part to be sent, and what holds its bytes until then."""

    number: int
    body: Body
    release: Callable[[], object]


class _Ranges:
    """Parts of a source that can be read at any place."""

    def __init__(self, body: Body, part_size: int) -> None:
        assert body.size is not None
        self._body = body
        self._ranges = iter(multipart.ranges(body.size, part_size))

    has_room = True

    async def next(self) -> Piece | None:
        found = next(self._ranges, None)
        if found is None:
            return None
        body = self._body.part(found.start, found.size)
        return Piece(found.number, body, body.close)


class Gathered:
    """Parts of a source that can be read once, gathered into memory, from which they can be sent again.

    Args:
      part_size: bytes; None lets it grow with the number of parts.
      concurrency: how many the caller wants under way, None for what GATHER_BYTES allows.
    """

    def __init__(self, body: IteratorBody, part_size: int | None, concurrency: int | None) -> None:
        self._body = body
        self._part_size = part_size
        self._concurrency = concurrency
        self._number = 0
        self._held = 0  # bytes of the buffers that are being sent
        self._free: list[bytearray] = []
        self._read_ahead: Piece | None = None
        self.ended = False

    @property
    def _next_size(self) -> int:
        return multipart.stream_part_size(self._number + 1, self._part_size)

    @property
    def has_room(self) -> bool:
        size = min(self._next_size, limits.PART_MAX_BYTES) if self._number < limits.PARTS_MAX else 0
        if self._concurrency is not None:
            return self._held + size <= (self._concurrency + 1) * size
        return self._held + size <= max(limits.GATHER_BYTES, 2 * size)

    async def first(self) -> Piece:
        """The first part; `ended` then says whether it is also the last. `next` gives it once more."""
        piece = await self._gather()
        self._read_ahead = piece
        return piece

    async def next(self) -> Piece | None:
        """The next part, None behind the last one."""
        if self._read_ahead is not None:
            piece, self._read_ahead = self._read_ahead, None
            return piece
        if self.ended:
            return None
        if (
            self._number >= limits.PARTS_MAX
            and self._body.size is None
            and await self._body.read_into(_one_byte()) == 0
        ):
            return None
        piece = await self._gather()
        if not piece.body.size:
            piece.release()
            return None
        return piece

    async def _gather(self) -> Piece:
        size = self._next_size
        buffer = self._take(size)
        count = 0
        try:
            count = await self._body.read_into(memoryview(buffer)[:size])
        except BaseException:
            self._give(buffer)
            raise
        total = self._body.size
        self.ended = count < size or (total is not None and self._body.bytes_read >= total)
        self._number += 1
        body = MemoryBody(memoryview(buffer)[:count])

        def release() -> None:
            body.close()
            self._give(buffer)

        return Piece(self._number, body, release)

    def _take(self, size: int) -> bytearray:
        self._free = [buffer for buffer in self._free if len(buffer) == size]  # parts have grown
        buffer = self._free.pop() if self._free else bytearray(size)
        self._held += size
        return buffer

    def _give(self, buffer: bytearray) -> None:
        self._held -= len(buffer)
        self._free.append(buffer)


def _one_byte() -> memoryview:
    return memoryview(bytearray(1))


# --- an upload ----------------------------------------------------------------------------------------------------------------

# What makes going on pointless or wrong, also with `resume`: the parts that are there are not of what the source is now, or may
# not become an object.
_FINAL = (SourceChanged, ChecksumMismatch, PreconditionFailed, UsageError)


class Upload:
    """One object in parts, from creating to completing. `run` once; `progress()` at any time.

    Args:
      body: opened, and closed by the caller. gathered: what makes parts of it when it can be read only once.
      part_size: bytes of every part but the last (of a stream: as `gathered` has it).
      concurrency: parts under way; None adapts to the path (`multipart.Pace`).
      resume: where an unfinished upload is remembered.
    """

    def __init__(
        self,
        site: Site,
        destination: str,
        body: Body,
        *,
        checksum: str | None,
        part_size: int,
        concurrency: int | None,
        gathered: Gathered | None = None,
        resume: ResumeFile | None = None,
        total_s: float | None = None,
        began: float,
    ) -> None:
        self._site = site
        self._destination = destination
        self._body = body
        self._checksum = checksum
        self._part_size = part_size
        self._gathered = gathered
        self._resume = resume
        self._total_s = total_s
        self._pace = multipart.Pace(
            began,
            limit=concurrency or min(limits.CONCURRENCY_MAX, site.config.max_connections),
            fixed=concurrency is not None,
        )
        self._way = Way()
        self._upload: UploadId | None = None
        self._unfinished: Unfinished | None = None
        self._there: dict[int, Part] = {}  # found at the store when going on
        self._parts: dict[int, Part] = {}
        self._stored_bytes = 0
        self._runs: dict[int, Run] = {}
        self._account = Account(began)
        self._phase = "creating"
        self._completed = False
        self._save_at = 0.0

    # --- what callers look at --------------------------------------------------------------------------------------------

    def progress(self) -> Progress:
        under_way = sum(run.progress().sent for run in self._runs.values())
        return Progress(self._stored_bytes + under_way, self._body.size, self._phase, 1, 1)

    async def run(self) -> PutResult:
        """Raises what a put raises, once the upload is aborted; UploadFailed when it could not be, or is kept for `resume`."""
        total_s, account = self._total_s, self._account
        deadline = None if total_s is None else account.began + total_s
        try:
            return await within(
                deadline,
                self._carry_out(),
                lambda: total_timed_out(f"upload {self._site.shown}", total_s or 0.0, "body"),
            )
        except BaseException as error:
            await self._end(error)
            raise

    async def _carry_out(self) -> PutResult:
        if self._resume is not None:
            await self._go_on()
        if self._upload is None:
            await self._create()
        self._phase = "sending"
        await self._send_parts()
        self._body.check_unchanged()
        self._phase = "completing"
        assert self._upload is not None
        parts = multipart.in_order(self._parts.values())
        try:
            finished = await complete(self._site, self._upload, parts)
        except EngineError as error:
            self._account.note(error.hops, error.attempts, keep=True)
            self._completed = isinstance(error, ChecksumMismatch)  # the object is there, the upload is not
            raise
        self._completed = True
        if self._resume is not None:
            self._resume.remove()
        self._phase = "done"
        return result_of(self._site, parts, finished, self._account)

    # --- creating --------------------------------------------------------------------------------------------------------

    async def _create(self) -> None:
        if self._resume is not None:
            self._resume.check_writable()
        run = create_run(self._site, self._checksum)
        creating = asyncio.ensure_future(run.run())
        try:
            outcome = await asyncio.shield(creating)
        except asyncio.CancelledError:
            # The store may have made it: its name is what it takes to remove it again.
            await _outlast(creating, limits.ABORT_TIMEOUT_S if run.progress().phase == "awaiting answer" else 0.0)
            if creating.done() and not creating.cancelled() and creating.exception() is None:
                self._upload = created(self._site, creating.result(), self._destination, self._checksum)
            raise
        finally:
            if not creating.done():
                creating.cancel()
                await _outlast(creating)
            self._account.note(run.hops, run.attempts, keep=True)
        self._upload = created(self._site, outcome, self._destination, self._checksum)
        if self._resume is not None:
            self._unfinished = self._remembered()
            self._resume.save(self._unfinished)

    def _remembered(self) -> Unfinished:
        upload, body = self._upload, self._body
        assert upload is not None
        modified_ns = os.fstat(body.fd).st_mtime_ns if isinstance(body, FileBody) else 0
        return Unfinished(
            destination=self._destination,
            store=self._site.origin,
            upload_id=upload.upload_id,
            region=upload.region,
            checksum=self._checksum,
            part_size=self._part_size,
            options=_options_digest(self._site.fields),
            source=_source_of(body),
            modified_ns=modified_ns,
        )

    # --- going on --------------------------------------------------------------------------------------------------------

    async def _go_on(self) -> None:
        """Take up the upload that the resume file tells of, if the store still has it."""
        assert self._resume is not None
        unfinished = self._resume.load()
        if unfinished is None:
            return
        self._check_same(unfinished)
        upload = UploadId(self._destination, unfinished.upload_id, unfinished.checksum, unfinished.region)
        if upload.region and self._site.bucket:
            self._site.shared.regions.learn(self._site.bucket, upload.region)
        try:
            found = await list_parts(self._site, upload)
        except NotFound as error:
            if not multipart.is_upload_gone(error):
                raise
            log.warning("%s: the upload of %s is gone, beginning anew", self._site.shown, self._resume.path)
            return
        self._upload, self._unfinished = upload, unfinished
        self._there = {part.number: part for part in found}

    def _check_same(self, unfinished: Unfinished) -> None:
        """Raises UsageError: whose upload a file tells of must not be guessed at, its parts cost time and money."""
        now = (self._destination, self._site.origin, _source_of(self._body), self._checksum, self._part_size)
        then = (
            unfinished.destination,
            unfinished.store,
            unfinished.source,
            unfinished.checksum,
            unfinished.part_size,
        )
        names = ("destination", "endpoint", "source (path, offset, size)", "checksum", "part_size")
        differing = [f"{name} {b!r} instead of {a!r}" for name, a, b in zip(names, then, now, strict=True) if a != b]
        if _options_digest(self._site.fields) != unfinished.options:
            differing.append("options (metadata, storage class …), which are told when an upload is created")
        if differing:
            assert self._resume is not None
            raise UsageError(
                f"resume={self._resume.path!r} is of another upload: {'; '.join(differing)}. Call as before, or name another "
                f"file; to begin anew, abort upload {unfinished.upload_id} and delete the file"
            )

    async def _check_stored(self, piece: Piece, there: Part) -> Part | None:
        """The part that the store has already, if it has the source's bytes; None when it has to be sent."""
        assert self._unfinished is not None
        body, algorithm = piece.body, self._checksum
        if there.size != body.size:
            return None
        wanted = checksums.AUTO if algorithm == "auto" else algorithm
        if wanted is not None and not (algorithm != "auto" or await self._site.can_compute_auto()):
            wanted = None
        ours = Checksum(wanted, await hashing.hash_body(body, wanted)) if wanted is not None else None
        recorded = self._unfinished.parts.get(piece.number)
        if recorded is not None and recorded.etag == there.etag and recorded.checksum is not None:
            same = recorded.checksum == ours
        elif there.checksum is not None and ours is not None and there.checksum.algorithm == ours.algorithm:
            same = there.checksum == ours
        else:
            same = multipart.is_md5(there.etag) and there.etag.strip('"').lower() == await _md5(body)
        return Part(piece.number, there.size, there.etag, ours) if same else None

    # --- sending ----------------------------------------------------------------------------------------------------------

    async def _send_parts(self) -> None:
        source = self._gathered if self._gathered is not None else _Ranges(self._body, self._part_size)
        running: set[asyncio.Task[None]] = set()
        coming: asyncio.Task[Piece | None] | None = None
        ready: Piece | None = None
        more = True
        try:
            while more or ready is not None or running:
                if ready is not None and len(running) < self._pace.width:
                    running.add(asyncio.ensure_future(self._send_piece(ready)))
                    ready = None
                if more and ready is None and coming is None and source.has_room:
                    coming = asyncio.ensure_future(source.next())
                waiting = [*running, *([coming] if coming is not None else [])]
                done, _pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done & running:
                    running.discard(task)
                    task.result()
                if coming is not None and coming.done():
                    ready, coming = coming.result(), None
                    more = ready is not None
        finally:
            # What is under way ends before anything else is done: an abort that overtakes a part leaves it behind.
            leftover = [*running, *([coming] if coming is not None else [])]
            for each in leftover:
                each.cancel()
            for each in leftover:
                await _outlast(each)
            if coming is not None and not coming.cancelled() and coming.exception() is None:
                ready = coming.result() or ready
            if ready is not None:
                ready.release()

    async def _send_piece(self, piece: Piece) -> None:
        try:
            there = self._there.get(piece.number)
            part = await self._check_stored(piece, there) if there is not None else None
            if part is None:
                part = await self._send_one(piece)
                self._pace.part_stored(monotonic(), part.size)
            self._stored(part)
        finally:
            piece.release()

    async def _send_one(self, piece: Piece) -> Part:
        assert self._upload is not None
        number, account = piece.number, self._account
        start = await self._way.find(number)
        if account.body_began is None:
            account.body_began = monotonic()
        outcome: Outcome | None = None

        def tune(job: Job, run: Run) -> None:
            self._runs[number] = run
            job.start, job.on_retry = start, self._on_retry
            if start is not None:
                return
            hash_it = job.on_body_start

            def told() -> None:
                # What was not asked for may still be redirected: the others wait until this part is stored.
                if run.asks:
                    self._way.found(run.target, signed=self._site.signed)
                if hash_it is not None:
                    hash_it()

            job.on_body_start = told

        try:
            part, outcome = await send_part(self._site, self._upload, number, piece.body, tune=tune)
            return part
        finally:
            run = self._runs.pop(number, None)
            if run is None or outcome is None or (start is not None and outcome.redirects):
                self._way.lost()
            elif start is None and not run.asks:
                self._way.found(run.target, signed=self._site.signed)
            if run is not None:
                self._note_part(run, outcome)

    def _note_part(self, run: Run, outcome: Outcome | None) -> None:
        account = self._account
        account.body_ended = monotonic()
        account.body_bytes_sent += sum(hop.body_bytes_sent for hop in run.hops)
        account.note(run.hops, run.attempts, keep=account.first is None)
        if account.first is None:
            account.first = outcome

    def _on_retry(self, error: EngineError) -> None:
        self._way.lost()
        if isinstance(error, SlowDown) or (isinstance(error, ResponseError) and error.status == 503):
            self._pace.slow_down(monotonic())

    def _stored(self, part: Part) -> None:
        self._parts[part.number] = part
        self._stored_bytes += part.size
        if self._unfinished is None or self._resume is None:
            return
        self._unfinished.parts[part.number] = part
        now = monotonic()
        if now >= self._save_at:
            self._save()
            # The more there is to write, the more seldom: a tenth of the time at most.
            self._save_at = monotonic() + max(limits.RESUME_SAVE_S, 10 * (monotonic() - now))

    def _save(self) -> None:
        assert self._resume is not None
        assert self._unfinished is not None
        self._resume.save(self._unfinished)

    # --- when it did not work ----------------------------------------------------------------------------------------------

    async def _end(self, error: BaseException) -> None:
        """Abort, or keep for later. Raises UploadFailed when the error itself would not tell what became of the parts."""
        account, upload = self._account, self._upload
        if isinstance(error, EngineError):
            error.hops = tuple(account.hops) or error.hops
            error.body_bytes_sent = account.body_bytes_sent
            error.attempts = account.attempts
        if upload is None or self._completed:
            return
        if self._resume is not None and self._unfinished is not None and not isinstance(error, _FINAL):
            self._keep(error)
            return
        self._phase, completing = "aborting", self._phase == "completing"
        site = dataclasses.replace(
            self._site, config=dataclasses.replace(self._site.config, total_timeout_s=limits.ABORT_TIMEOUT_S)
        )
        aborting = asyncio.ensure_future(abort(site, upload))
        await _outlast(aborting, limits.ABORT_TIMEOUT_S)
        if not aborting.done():
            aborting.cancel()
            await _outlast(aborting, limits.CLOSE_GRACE_S)
        failed = aborting.exception() if aborting.done() and not aborting.cancelled() else TimeoutError()
        if failed is None:
            was_there = aborting.result()
            self._phase = "aborted" if was_there or not completing else "done"
            if self._resume is not None:
                self._resume.remove()
            return
        self._phase = "left behind"
        told = (
            f"upload {self._site.shown}: the parts of upload {upload.upload_id} could not be removed "
            f"({str(failed) or type(failed).__name__}) and may cost money: abort it, or let a lifecycle rule do so"
        )
        log.warning("%s", told)
        if isinstance(error, Exception):
            raise self._failed(f"{_told(error)} Also, {told[0].lower()}{told[1:]}", error) from error

    def _keep(self, error: BaseException) -> None:
        assert self._resume is not None
        self._phase = "kept"
        try:
            self._save()
        except OSError as failed:
            log.warning("%s: %s; the last parts stored will be looked at again", self._resume.path, failed)
        total = self._body.size
        told = (
            f"{len(self._parts)} parts ({self._stored_bytes} of {total} bytes) are stored and kept: "
            f"the same call with resume={self._resume.path!r} goes on with the rest"
        )
        log.info("upload %s: %s", self._site.shown, told)
        if isinstance(error, Exception):
            raise self._failed(f"{_told(error)} {told}", error) from error

    def _failed(self, message: str, error: Exception) -> UploadFailed:
        assert self._upload is not None
        failed = UploadFailed(message, upload_id=self._upload.upload_id, aborted=False, cause=error)
        failed.hops = tuple(self._account.hops)
        failed.body_bytes_sent = self._account.body_bytes_sent
        failed.attempts = self._account.attempts
        failed.retryable = isinstance(error, TransportError) or bool(getattr(error, "retryable", False))
        return failed


def _told(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if text.endswith(".") else f"{text}."


async def _outlast(task: asyncio.Future[Any], timeout_s: float | None = None) -> None:
    """Wait for a task (up to so many seconds), however often this one is cancelled meanwhile. Its outcome is left in it.

    For who is on his way out with an error already: the cancellation is not raised again, as `until_done` does.
    """
    until = None if timeout_s is None else monotonic() + timeout_s
    while not task.done() and (until is None or monotonic() < until):
        try:
            await asyncio.wait([task], timeout=None if until is None else until - monotonic())
        except asyncio.CancelledError:  # noqa: PERF203
            continue
    if task.done() and not task.cancelled():
        task.exception()


def _source_of(body: Body) -> tuple[str, int, int]:
    """What an unfinished upload is of. Memory has no name: its size, and then its bytes, have to do."""
    if isinstance(body, FileBody):
        return os.path.abspath(body.path) if body.path else "", body.offset, body.size
    return "", 0, body.size or 0


def _options_digest(fields: Iterable[Field]) -> str:
    told = multipart.fields_for(multipart.CREATE, fields)
    plain = sorted(field for field in told if not field[0].startswith("x-amz-server-side-encryption-customer-"))
    return hashlib.sha256(repr(plain).encode()).hexdigest()[:32]


async def _md5(body: Body) -> str:
    """Hex. An ETag is one; the checksum of choice where a store lists no other. 1.8 CPU-s/GiB, in a thread."""
    digest = hashlib.md5(usedforsecurity=False)

    def add(start: int, count: int) -> None:
        if isinstance(body, FileBody):
            digest.update(os.pread(body.fd, count, body.offset + start))
        else:
            assert isinstance(body, MemoryBody)
            digest.update(body.view[start : start + count])

    size = body.size or 0
    for start in range(0, size, limits.HASH_PIECE_BYTES):
        adding = asyncio.get_running_loop().run_in_executor(
            None, add, start, min(limits.HASH_PIECE_BYTES, size - start)
        )
        try:
            await asyncio.shield(adding)
        finally:
            await until_done(adding)  # until then the source is read
    return digest.hexdigest()
