"""The program `putengine`: commands, what they print, how they fail. `arguments` has what may be written.

Standard output is for results, standard error for progress, traces and errors. Everything heavy is imported by the command that
needs it, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO, TypeVar

from engine import arguments
from engine.errors import (
    ChecksumMismatch,
    CredentialsError,
    EngineError,
    ProtocolError,
    RedirectRefused,
    ResponseError,
    TimedOut,
    TransportError,
    UsageError,
)
from engine.interrupt import Interrupted, run, signals_raise

if TYPE_CHECKING:
    from engine import events
    from engine.client import Client
    from engine.display import Paint, ProgressMode, StatusLine, TransferProgress
    from engine.results import Hop, ObjectInfo, PutResult

T = TypeVar("T")

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 1
EXIT_USAGE: Final = 2
EXIT_CREDENTIALS: Final = 3
EXIT_NETWORK: Final = 4
EXIT_CHECKSUM: Final = 5
EXIT_REDIRECT: Final = 6
EXIT_BUG: Final = 70  # EX_SOFTWARE of sysexits.h
EXIT_PIPE: Final = 141  # as a shell shows a program that SIGPIPE ended: `putengine get URL | head`

# The first that fits: a RedirectRefused is a ResponseError too, and credentials that are missing are a UsageError.
_EXIT_CODES: Final[tuple[tuple[type[EngineError], int], ...]] = (
    (CredentialsError, EXIT_CREDENTIALS),
    (ChecksumMismatch, EXIT_CHECKSUM),
    (RedirectRefused, EXIT_REDIRECT),
    (ResponseError, EXIT_REFUSED),
    (TransportError, EXIT_NETWORK),
    (TimedOut, EXIT_NETWORK),
    (ProtocolError, EXIT_NETWORK),
    (EngineError, EXIT_USAGE),  # UsageError, SourceChanged, SourceNotReplayable
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code; errors are printed, not raised. Only from the main thread."""
    words = list(sys.argv[1:] if argv is None else argv)
    wants_json = "--json" in words
    args: argparse.Namespace | None = None
    _fill_streams()
    try:
        with signals_raise():
            args = arguments.parse(words)
            code: int = _COMMANDS[args.command](args)
            sys.stdout.flush()
            return code
    except Interrupted as interrupted:
        message = f"interrupted{f': {interrupted.told}' if interrupted.told else ''}"
        code = interrupted.exit_code
        found = {"error": "Interrupted", "message": message, "exit_code": code}
    except BrokenPipeError:
        return _leave_broken_pipe()
    except (EngineError, OSError) as error:
        message, code, found = error_text(error), exit_code(error), error_json(error)
    except Exception:
        _complain("this is a bug of putengine, please report it with the lines below")
        import traceback

        traceback.print_exc()
        return EXIT_BUG
    _complain(message)
    if wants_json:
        _print_json(found, _data_apart(args))
    return code


def _data_apart(args: argparse.Namespace | None) -> TextIO:
    """Where JSON and summaries go: standard output, unless the object itself does."""
    return sys.stderr if args is not None and args.command == "get" and args.file in ("", "-") else sys.stdout


def _fill_streams() -> None:
    """With a standard stream closed (`>&-`) the next file or socket would get its number, and our words."""
    for fd, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(
                os.devnull, os.O_RDWR
            )  # the lowest free number: `fd`, but when run inside a larger program
            if fd:
                setattr(sys, name, open(opened, "w"))  # noqa: SIM115


# --- errors -----------------------------------------------------------------------------------------------------------


def exit_code(error: EngineError | OSError) -> int:
    if isinstance(error, EngineError):
        return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))
    return EXIT_USAGE


def error_text(error: EngineError | OSError) -> str:
    """One line that says what happened and what to do."""
    if isinstance(error, EngineError):
        text = arguments.in_our_words(error.message)
        if isinstance(error, ResponseError) and error.request_id:
            text += f" [request id {error.request_id}]"
        return " ".join(text.split("\n"))
    from engine.wire import printable

    name = printable(os.fsdecode(error.filename), 300) if isinstance(error.filename, (str, bytes)) else ""
    said = {
        "FileNotFoundError": "there is no such file or directory",
        "IsADirectoryError": "this is a directory; a file is needed",
        "NotADirectoryError": "a part of this path is a file, not a directory",
        "PermissionError": "permission denied",
    }.get(type(error).__name__) or (error.strerror or str(error))
    return f"{name}: {said}" if name else said


def error_json(error: EngineError | OSError) -> dict[str, Any]:
    """What `--json` prints: the error's class, its message, the exit code, and the facts it carries."""
    facts: dict[str, Any] = {}
    if isinstance(error, EngineError):
        facts = {name: _plain(value) for name, value in vars(error).items() if not name.startswith("_")}
        facts["retryable"] = error.retryable
    return {
        "error": type(error).__name__,
        "message": error_text(error),
        "exit_code": exit_code(error),
        **facts,
    }


def _complain(message: str) -> None:
    from engine.display import Paint

    print(f"{Paint.on(sys.stderr).red(arguments.PROGRAM + ':')} {message}", file=sys.stderr)


def _leave_broken_pipe() -> int:
    # Whoever read our output has gone, which is his right. The interpreter would complain when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_PIPE


# --- JSON -------------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Results and errors as what JSON knows; named tuples become objects."""
    import dataclasses

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: _plain(item) for name, item in zip(value._fields, value, strict=True)}
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    return str(value)


def _print_json(value: object, stream: TextIO) -> None:
    print(json.dumps(_plain(value)), file=stream)


# --- one call's surroundings --------------------------------------------------------------------------------------------


class _Screen:
    """Where a command writes: the status line, the trace, the summary."""

    def __init__(self, args: argparse.Namespace) -> None:
        from engine.display import Paint, StatusLine, TransferProgress, is_terminal

        mode = args.progress
        chosen: ProgressMode = "line" if mode == "auto" and is_terminal(sys.stderr) else "plain"
        self.out = _data_apart(args)
        self.paint: Paint = Paint.on(self.out)
        self.line: StatusLine = StatusLine(sys.stderr, "off" if args.quiet or mode == "off" else chosen)
        self.progress: TransferProgress = TransferProgress(self.line)
        self._json: bool = args.json
        self._quiet: bool = args.quiet
        self._trace: bool = args.trace
        self._began: float | None = None
        self.body_size: int | None = None
        self.body_bytes_sent = 0

    def on_event(self, event: events.Event) -> None:
        from engine import events

        self.progress.on_event(event)
        if isinstance(event, events.BodyStarted):
            self.body_size = event.size
        elif isinstance(event, events.Done):
            self.body_bytes_sent = event.body_bytes_sent
        if self._trace:
            from engine.display import trace_lines

            if self._began is None:
                self._began = event.at - getattr(event, "seconds", 0.0)
            for line in trace_lines(event, self._began):
                self.line.say(line)

    def report(self, result: object, lines: Sequence[str]) -> None:
        """What came of it: as JSON, or in words, or not at all."""
        if self._json:
            _print_json(result, self.out)
        elif not self._quiet:
            for line in lines:
                print(line, file=self.out)


def _call(args: argparse.Namespace, screen: _Screen, call: Any) -> Any:
    """Run `call(client)` with a client of these arguments."""

    async def with_client() -> Any:
        async with arguments.make_client(args) as client:
            return await call(client)

    try:
        return run(with_client())
    finally:
        screen.line.clear()


# --- put --------------------------------------------------------------------------------------------------------------


def _put(args: argparse.Namespace) -> int:
    screen = _Screen(args)
    options = arguments.put_options(args)
    source = _standard_input() if args.file == "-" else args.file

    async def put(client: Client) -> PutResult:
        transfer = client.start_put(source, args.url, **options, on_event=screen.on_event)
        return await _watched(transfer, lambda: screen.progress.tick(transfer.progress))

    try:
        result: PutResult = _call(args, screen, put)
    except Interrupted as interrupted:
        raise Interrupted(interrupted.signum, _became_of(screen)) from None
    screen.report(result, put_summary(result, args.url, screen.paint))
    return EXIT_OK


def _standard_input() -> Any:
    """The unbuffered descriptor: a pipe goes from kernel to kernel, a file from the page cache."""
    if sys.stdin is None or sys.stdin.closed:
        raise OSError("standard input is closed")
    return _raw(sys.stdin)


def _raw(stream: TextIO) -> Any:
    # With PYTHONUNBUFFERED there is no buffer between.
    return getattr(stream.buffer, "raw", stream.buffer)


async def _watched(work: Awaitable[T], tick: Callable[[], None]) -> T:
    """The outcome of `work`; `tick` is called meanwhile, again and again."""
    import asyncio

    from engine.display import TICK_S

    async def keep_ticking() -> None:
        while True:
            tick()
            await asyncio.sleep(TICK_S)

    ticking = asyncio.ensure_future(keep_ticking())
    try:
        return await work
    finally:
        ticking.cancel()


def _became_of(screen: _Screen) -> str:
    """Of an interrupted put."""
    from engine.display import format_bytes

    sent, size = screen.body_bytes_sent, screen.body_size
    if not sent:
        return "no body byte was sent, nothing was stored"
    if size is None or sent < size:
        return f"after {format_bytes(sent)}{f' of {format_bytes(size)}' if size else ''}; nothing was stored"
    return "the whole body was sent but not confirmed, the object may have been stored"


def put_summary(result: PutResult, url: str, paint: Paint) -> list[str]:
    """Lines about a put: what was stored, how fast, whether the server has the same bytes; and the hops, if there were more."""
    from engine.display import format_bytes, format_rate, format_seconds
    from engine.wire import printable, redact_url_text

    shown = printable(url, 300) if url.startswith("s3://") else redact_url_text(url)
    total_s = result.timings.total
    how = f", by {result.send_path}" if result.size else ""
    lines = [
        f"{paint.bold(paint.green('stored'))} {shown}",
        f"  {format_bytes(result.size)} in {format_seconds(total_s)} "
        f"({format_rate(result.size / total_s if total_s > 0 else 0)}){how}",
        f"  {_checksum_text(result)}",
    ]
    if result.etag:
        lines.append(f"  etag {result.etag}")
    if result.version_id:
        lines.append(f"  version {result.version_id}")
    if len(result.hops) > 1:
        lines += ["", *(f"  {line}" for line in hops_table(result.hops))]
    return lines


def _checksum_text(result: PutResult) -> str:
    if result.checksum is None:
        return "no checksum was computed"
    named = f"{result.checksum.algorithm} {result.checksum.value}"
    if result.checksum_verified:
        return f"{named}, which is also what the server computed"
    return f"{named}; the server named none to compare"


def hops_table(hops: Sequence[Hop]) -> list[str]:
    """What each request cost, exact to the byte."""
    from engine.display import authority, format_seconds, table

    rows = [("hop", "to", "status", "body sent", "body read", "time", "")]
    rows += [
        (
            str(number),
            authority(hop.url),
            str(hop.status or "-"),
            f"{hop.body_bytes_sent:,}",
            f"{hop.body_bytes_read:,}",
            format_seconds(hop.seconds),
            hop.outcome,
        )
        for number, hop in enumerate(hops, 1)
    ]
    return table(rows, "><>>>><")


# --- head, delete, get --------------------------------------------------------------------------------------------------


def _head(args: argparse.Namespace) -> int:
    screen = _Screen(args)
    options = arguments.call_options(args)
    info: ObjectInfo = _call(args, screen, lambda client: client.head(args.url, **options, on_event=screen.on_event))
    screen.report(info, head_lines(info))
    return EXIT_OK


def head_lines(info: ObjectInfo) -> list[str]:
    """Lines about an object: what its server says of it, sizes in bytes."""
    from engine.display import format_bytes, table
    from engine.wire import printable

    size = "not told" if info.size < 0 else f"{info.size} ({format_bytes(info.size)})"
    facts = [
        ("size", size),
        ("etag", info.etag),
        ("content type", info.content_type),
        ("last modified", info.last_modified),
        ("version", info.version_id),
        ("storage class", info.storage_class),
        *((f"checksum {name}", value) for name, value in sorted(info.checksums.items())),
        *((f"metadata {name}", value) for name, value in sorted(info.metadata.items())),
        ("region", info.region),
        ("url", info.url),
    ]
    return table([(name, printable(value, 2048)) for name, value in facts if value], "<<")


def _delete(args: argparse.Namespace) -> int:
    from engine.wire import printable, redact_url_text

    screen = _Screen(args)
    options = arguments.call_options(args)
    _call(args, screen, lambda client: client.delete(args.url, **options, on_event=screen.on_event))
    shown = printable(args.url, 300) if args.url.startswith("s3://") else redact_url_text(args.url)
    screen.report({"deleted": shown}, [f"deleted {shown}"])
    return EXIT_OK


def _get(args: argparse.Namespace) -> int:
    import time

    from engine.display import format_bytes, format_rate, format_seconds
    from engine.sinks import open_sink

    to_stdout = args.file in ("", "-")
    if not args.file and sys.stdout.isatty():
        raise UsageError("an object is not written to a terminal unasked; give FILE, or - if you mean it")
    screen = _Screen(args)
    options = arguments.call_options(args)
    sys.stdout.flush()
    began = time.monotonic()

    async def get(client: Client) -> int:
        sink = open_sink(_raw(sys.stdout) if to_stdout else args.file)
        getting = client.get(args.url, sink, **options, on_event=screen.on_event)
        return await _watched(getting, lambda: screen.progress.tick_get(sink.count))

    name = "standard output" if to_stdout else args.file
    try:
        count: int = _call(args, screen, get)
    except EngineError:
        raise
    except OSError as error:
        error.filename = error.filename or name  # a write that failed names no file
        raise
    took_s = time.monotonic() - began
    screen.report(
        {"size": count, "file": name, "seconds": took_s},
        [f"fetched {format_bytes(count)} in {format_seconds(took_s)} ({format_rate(count / took_s)}) to {name}"],
    )
    return EXIT_OK


# --- sandbox, demo, config, bench ---------------------------------------------------------------------------------------


def _sandbox(args: argparse.Namespace) -> int:
    from engine.sandbox import run_forever

    def say(text: str) -> None:
        print(text, flush=True)

    try:
        run_forever(
            args.folder,
            redirector_port=args.redirector_port,
            store_port=args.store_port,
            session_token=args.session_token,
            anonymous=args.anonymous,
            say=say,
        )
    except Interrupted:
        say("")  # this is how it ends
    return EXIT_OK


def _demo(args: argparse.Namespace) -> int:
    from engine.demo import demo

    return demo(args.file, size=args.size, folder=args.folder)


def _config(args: argparse.Namespace) -> int:
    from engine.display import table
    from engine.explain import settings

    found = settings(args, probe=args.explain)
    if args.json:
        _print_json({"settings": found}, sys.stdout)
        return EXIT_OK
    rows = [setting if args.explain else (setting.name, setting.value) for setting in found]
    for line in table(rows, "<<<" if args.explain else "<<"):
        print(line)
    return EXIT_OK


def _bench(args: argparse.Namespace) -> int:
    """The harness is a package of its own, `putengine_bench`; in a checkout it is the folder bench/ beside this package."""
    import importlib
    import importlib.util
    from pathlib import Path

    name = "putengine_bench"
    file = Path(__file__).resolve().parents[1] / "bench" / "__init__.py"
    if importlib.util.find_spec(name) is None and file.exists():
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])
        assert spec is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
    code: int = importlib.import_module(f"{name}.__main__").main(args.words, f"{arguments.PROGRAM} bench")
    return code


_COMMANDS: Final = {
    "put": _put,
    "head": _head,
    "delete": _delete,
    "get": _get,
    "sandbox": _sandbox,
    "demo": _demo,
    "config": _config,
    "bench": _bench,
}
