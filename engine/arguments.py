"""The command line as text: what may be written there, what it means in Python, and the help.

Fast to import: nothing of the engine but its errors is needed to show the help or to find a mistake. `client_options` and its
like turn parsed arguments into those of `engine.Client` and its calls; an option that was not given is left out, so the
defaults are the engine's.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from engine.errors import UsageError

if TYPE_CHECKING:
    from engine.client import Client

PROGRAM: Final = "putengine"
COMMANDS: Final = ("put", "upload", "head", "delete", "get", "doctor", "sandbox", "demo", "config", "bench")

DESCRIPTION: Final = """\
Puts multi-GB files into S3 and anything that speaks like it: asks first, follows
redirects with a fresh signature, and lets the body leave once.

commands:
  put FILE|- URL      one PUT of one object; "-" is standard input
  upload FILE|- URL   an object of any size, in parallel parts
  get URL [FILE|-]    fetch an object
  head URL            what the server says of an object
  delete URL          delete an object
  doctor URL          what an endpoint can do, and which options fit it
  demo [FILE]         a file is refused, redirected, sent once: with the proof
  sandbox             two S3 endpoints on loopback to try things on
  config --explain    every setting, its value and where it came from
  bench [--quick]     this engine beside other clients, on loopback

URL is s3://bucket/key, which is signed, or http://… for presigned URLs, WebDAV,
WebHDFS and the like. "putengine COMMAND --help" has the options of a command.

examples:
  putengine put big.bin s3://bucket/big.bin --endpoint-url http://s3.example:9000
  tar c folder | putengine put - http://dav.example/folder.tar
  putengine upload huge.bin s3://bucket/huge.bin --resume huge.resume
  putengine get s3://bucket/big.bin --no-sign-request | sha256sum"""

EPILOG: Final = """\
exit codes:
  0  ok                        4  network, timeout, or an answer that is not HTTP
  1  the server said no        5  checksum mismatch
  2  usage, or a local file    6  a redirect was refused
  3  no usable credentials     130  interrupted (143 by SIGTERM)

--json prints one JSON object on standard output (of "get" to standard output: on
standard error): the result with its hops and timings or, when it did not work,
{"error": NAME, "message": …, "exit_code": N, …facts}. Names are those of the
Python API: PutResult, ObjectInfo, the errors and their attributes. The message
of an error is on standard error in any case.

environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,
AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_CA_BUNDLE,
NO_COLOR. "putengine config --explain" shows what is in effect."""


class _Parser(argparse.ArgumentParser):
    """Raises UsageError instead of printing and leaving: there is one place which reports errors."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see '{self.prog} --help')")


# --- values -----------------------------------------------------------------------------------------------------------

_SIZE: Final = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(?:i?b)?|b?)\Z", re.IGNORECASE)


def size(text: str) -> int:
    """Bytes: "1000", "64k", "1.5GiB"; units are powers of 1024, as rclone and curl have them."""
    found = _SIZE.match(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write bytes, or a number with K, M, G or T")
    count = float(found[1]) * 1024 ** (" kmgt".index((found[2] or " ").lower()))
    if count != int(count):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of bytes")
    return int(found[1]) if found[2] is None and "." not in found[1] else int(count)


def seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None


def seconds_or_auto(text: str) -> float | str:
    return text if text == "auto" else seconds(text)


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE")
    return name, value


def header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError("write it as 'Name: value'")  # the text may hold a secret
    return name.strip(), value.strip(" \t")


# --- options ----------------------------------------------------------------------------------------------------------


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print the result as one JSON object")
    group.add_argument("--trace", action="store_true", help="show the heads as they go and come, secrets hidden")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress and no summary; errors are still shown")
    group.add_argument(
        "--progress",
        choices=("auto", "plain", "off"),
        default="auto",
        help="auto: a line on a terminal, elsewhere as plain: a line every 10 s",
    )


def _add_server(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the server, and who asks")
    group.add_argument("--endpoint-url", metavar="URL", help="an S3-compatible service; default: AWS")
    group.add_argument("--region", help="to sign for; default: us-east-1, and what redirects tell")
    group.add_argument("--profile", help="of the AWS configuration files (needs botocore)")
    group.add_argument("--no-sign-request", action="store_true", help="ask without credentials, as for public buckets")
    group.add_argument("--sign", choices=("s3",), help="sign a request to a plain http URL too")
    group.add_argument(
        "--header", action="append", type=header, metavar="'NAME: VALUE'", help="send this field; repeatable"
    )
    group.add_argument("--addressing", choices=("auto", "path", "virtual"), help="where the bucket's name goes")
    for kind, told in (
        ("dualstack", "AWS's endpoints that speak IPv6 too"),
        ("fips", "AWS's endpoints with FIPS 140 cryptography"),
        ("accelerate", "S3 Transfer Acceleration"),
    ):
        group.add_argument(f"--use-{kind}-endpoint", action="store_true", default=None, help=told)
    group.add_argument("--request-payer", action="store_true", default=None, help="pay for the request")
    group.add_argument("--ca-bundle", metavar="FILE", help="certificates to trust, instead of the system's")


def _add_redirects(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("redirects and retries")
    group.add_argument(
        "--redirect-host",
        action="append",
        metavar="HOST",
        help="trust redirects to this name, *.name, address or CIDR block; repeatable",
    )
    group.add_argument("--max-redirects", type=int, metavar="N", help="default: 5; 0 follows none")
    group.add_argument("--allow-downgrade", action="store_true", help="let a redirect lead from https to http")
    group.add_argument("--max-attempts", type=int, metavar="N", help="default: 3, the first one included")


def _add_times(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("time limits, in seconds")
    for name, told in (
        ("connect", "until there is a connection (default: 5)"),
        ("stall", "in which no byte moves (default: 60)"),
        ("response", "until the answer begins (default: 60)"),
        ("total", "for everything (default: none)"),
    ):
        group.add_argument(f"--{name}-timeout", type=seconds, metavar="S", help=told)


def _add_asking(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("asking first")
    group.add_argument(
        "--expect",
        choices=("auto", "always", "never", "strict"),
        help="auto: ask before 64 KiB and more; strict: without a go-ahead no body, ever",
    )
    group.add_argument(
        "--continue-timeout",
        type=seconds_or_auto,
        metavar="S|auto",
        help="how long to wait for the go-ahead before the body goes anyway",
    )
    group.add_argument(
        "--payload-signing", choices=("unsigned", "sha256"), help="sha256: hash the body before the request"
    )


def _add_customer_key(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--sse-customer-key-file",
        metavar="FILE",
        help="the 32 raw bytes of an SSE-C key (a file: arguments are visible to others)",
    )


def _add_object(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the object")
    group.add_argument("--size", type=size, metavar="BYTES", help="how much to send; of a pipe: how much will come")
    group.add_argument("--offset", type=size, metavar="BYTES", help="where in the file to begin")
    group.add_argument("--content-type", metavar="TYPE")
    group.add_argument("--metadata", action="append", type=pair, metavar="NAME=VALUE", help="repeatable")
    group.add_argument("--tagging", action="append", type=pair, metavar="NAME=VALUE", help="repeatable")
    group.add_argument(
        "--checksum",
        choices=("auto", "crc64nvme", "crc32c", "crc32", "sha256", "none"),
        help="auto: CRC64NVME of what is sent, compared with the server's; others are sent along for the server to check",
    )
    group.add_argument("--if-none-match", metavar="*|ETAG", help="'*': store only where there is no such object")
    group.add_argument("--if-match", metavar="ETAG", help="store only over the object with this tag")
    group.add_argument("--storage-class", metavar="CLASS")
    group.add_argument("--acl")
    group.add_argument("--sse", metavar="ALGORITHM", help="AES256, aws:kms …")
    group.add_argument("--sse-kms-key-id", metavar="ID")
    _add_customer_key(group)


def _add_parts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("parts")
    group.add_argument(
        "--part-size", type=size, metavar="BYTES", help="default: 8 MiB, or what 10,000 parts of the file need"
    )
    group.add_argument(
        "--concurrency", type=int, metavar="N", help="parts under way at once; default: as many as make it faster"
    )
    group.add_argument(
        "--resume",
        metavar="FILE",
        help="remember the upload here while it is not finished; the same command then goes on with what is missing",
    )


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. `parse_args` raises UsageError; it leaves by SystemExit(0) after --help and --version."""
    from engine import __version__

    style = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog=PROGRAM,
        usage="putengine COMMAND [OPTIONS] …",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=style,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(
        dest="command", prog=PROGRAM, metavar="COMMAND", help=argparse.SUPPRESS, parser_class=_Parser
    )

    def command(
        name: str, words: str, told: str, *adders: Callable[[argparse.ArgumentParser], None]
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            usage=f"{PROGRAM} {name} [OPTIONS] {words}",
            description=told,
            epilog=f"exit codes and --json: '{PROGRAM} --help'",
            allow_abbrev=False,
        )
        for add in adders:
            add(added)
        return added

    calls = (_add_server, _add_redirects, _add_times, _add_output)
    put = command("put", "FILE|- URL", "Put one file as one object, by one PUT.", _add_object, _add_asking, *calls)
    put.add_argument("file", metavar="FILE", help="a file, or - for standard input")
    put.add_argument("url", metavar="URL", help="s3://bucket/key or http://…")
    upload = command(
        "upload",
        "FILE|- URL",
        "Store a file of any size: one PUT up to 16 MiB, parallel parts above. Interrupted, it removes what was sent, or "
        "keeps it with --resume.",
        _add_object,
        _add_parts,
        _add_asking,
        *calls,
    )
    upload.add_argument("file", metavar="FILE", help="a file, or - for standard input")
    upload.add_argument("url", metavar="URL", help="s3://bucket/key; http://… gets one PUT")
    for name, told in (("head", "Show what the server says of an object."), ("delete", "Delete an object.")):
        plain = command(name, "URL", told, *calls)
        plain.add_argument("url", metavar="URL")
        if name == "head":
            _add_customer_key(plain)
    get = command("get", "URL [FILE|-]", "Fetch an object.", _add_customer_key, *calls)
    get.add_argument("url", metavar="URL")
    get.add_argument("file", metavar="FILE", nargs="?", default="", help="where to; - or nothing: standard output")
    _add_doctor(command("doctor", "URL", "Find out what an endpoint can do, and which options fit it.", *calls))
    _add_sandbox(command("sandbox", "", "Run two S3 endpoints on loopback, until Ctrl-C: one redirects, one stores."))
    _add_demo(command("demo", "[FILE]", "Watch a real file being refused, redirected and sent once, on loopback."))
    config = command("config", "", "Show the settings that a call would have.", _add_asking, *calls)
    config.add_argument("--explain", action="store_true", help="and where each came from; looks for credentials")
    return parser


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "url",
        metavar="URL",
        help="s3://bucket/prefix/ or http://…/folder/; a small object of a name of its own is written there, and deleted",
    )
    parser.add_argument(
        "--read-only", action="store_true", help="write nothing; what takes a PUT to find out stays open"
    )
    parser.add_argument(
        "--wait", type=seconds, metavar="S", help="for a go-ahead, before the body goes anyway (default: 8)"
    )


def _add_sandbox(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", metavar="DIR", help="store objects there; default: a temporary one, removed at the end"
    )
    parser.add_argument("--redirector-port", type=int, default=0, metavar="PORT", help="default: a free one")
    parser.add_argument("--store-port", type=int, default=0, metavar="PORT", help="default: a free one")
    parser.add_argument("--session-token", action="store_true", help="the credentials have one, and it is asked for")
    parser.add_argument("--anonymous", action="store_true", help="take unsigned requests too")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", help="a file to send; default: one of random bytes is made")
    parser.add_argument("--size", type=size, metavar="BYTES", help="of the file that is made; default: 2G")
    parser.add_argument("--folder", metavar="DIR", help="for what the demo makes, and removes again")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Raises UsageError."""
    first = next((word for word in argv if not word.startswith("-")), None)
    if first is not None and first not in COMMANDS:
        raise UsageError(f"unknown command {first!r}; there are {', '.join(COMMANDS)} (see '{PROGRAM} --help')")
    if first == "bench":  # a program of its own
        words = list(argv)
        return argparse.Namespace(command=first, words=words[words.index(first) + 1 :])
    args, unknown = build_parser().parse_known_args(argv)
    if args.command is None:
        raise UsageError(f"a command is missing; there are {', '.join(COMMANDS)} (see '{PROGRAM} --help')")
    if unknown:
        raise UsageError(_unknown(args, unknown[0]))
    return args


def _unknown(args: argparse.Namespace, word: str) -> str:
    from difflib import get_close_matches

    help_hint = f"(see '{PROGRAM} {args.command} --help')"
    if not word.startswith("-"):
        return f"{word!r} is one argument too many {help_hint}"
    option = word.partition("=")[0]
    known = [f"--{name.replace('_', '-')}" for name in vars(args) if name not in ("command", "file", "url")]
    close = get_close_matches(option, known, 1)
    return f"unknown option {option}{f'; did you mean {close[0]}?' if close else ''} {help_hint}"


# --- what they mean to the engine -------------------------------------------------------------------------------------

CONFIG_FIELDS: Final = {
    "expect": "expect",
    "continue_timeout": "continue_timeout_s",
    "connect_timeout": "connect_timeout_s",
    "stall_timeout": "stall_timeout_s",
    "response_timeout": "response_timeout_s",
    "total_timeout": "total_timeout_s",
    "payload_signing": "payload_signing",
    "addressing": "addressing",
    "ca_bundle": "tls",
    "use_dualstack_endpoint": "use_dualstack_endpoint",
    "use_fips_endpoint": "use_fips_endpoint",
    "use_accelerate_endpoint": "use_accelerate_endpoint",
}
"""Argument → field of `engine.Config`, where the value is taken as it is."""

_PUT_OPTIONS: Final = (
    "size",
    "offset",
    "content_type",
    "if_none_match",
    "if_match",
    "storage_class",
    "acl",
    "sse",
    "sse_kms_key_id",
)

_PART_OPTIONS: Final = ("part_size", "concurrency", "resume")


def _given(args: argparse.Namespace, name: str) -> Any:
    return getattr(args, name, None)


def config_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `engine.Config`, of what was given. Raises UsageError."""
    from engine.redirect import RedirectPolicy
    from engine.retry import Retry

    options = {field: _given(args, name) for name, field in CONFIG_FIELDS.items() if _given(args, name) is not None}
    policy: dict[str, Any] = {}
    if args.redirect_host:
        policy["hosts"] = tuple(args.redirect_host)
    if args.max_redirects is not None:
        policy["max_hops"] = args.max_redirects
    if args.allow_downgrade:
        policy["allow_downgrade"] = True
    if policy:
        options["redirects"] = RedirectPolicy(**policy)
    if args.max_attempts is not None:
        options["retry"] = Retry(max_attempts=args.max_attempts)
    return options


def config_sources(args: argparse.Namespace) -> dict[str, str]:
    """Which option gave which field of `engine.Config` ("redirects.hosts" for a field's field), of what was given."""
    fields = CONFIG_FIELDS | {
        "redirect_host": "redirects.hosts",
        "max_redirects": "redirects.max_hops",
        "allow_downgrade": "redirects.allow_downgrade",
        "max_attempts": "retry.max_attempts",
    }
    return {
        field: f"--{name.replace('_', '-')}"
        for name, field in fields.items()
        if _given(args, name) not in (None, False)
    }


def make_client(args: argparse.Namespace) -> Client:
    """Raises UsageError."""
    import engine

    if args.profile is not None and args.no_sign_request:
        raise UsageError("--profile and --no-sign-request exclude each other")
    return engine.Client(
        endpoint_url=args.endpoint_url,
        region=args.region,
        credentials=engine.ANONYMOUS if args.no_sign_request else None,
        profile=args.profile,
        config=engine.Config(**config_options(args)),
    )


def server_words(args: argparse.Namespace) -> list[str]:
    """The options that say which server and who asks, as they were given: for a command line that can be copied. Fields of
    --header are left out, they may be secret."""
    words: list[str] = []
    for name in ("endpoint_url", "region", "profile", "sign", "addressing", "ca_bundle"):
        if (value := _given(args, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    switches = ["no_sign_request", "request_payer", "allow_downgrade"]
    for name in (*switches, *(f"use_{kind}_endpoint" for kind in ("dualstack", "fips", "accelerate"))):
        words += [f"--{name.replace('_', '-')}"] if _given(args, name) else []
    for host in args.redirect_host or ():
        words += ["--redirect-host", host]
    return words


def call_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of any call. Raises UsageError, and OSError for the key's file."""
    options: dict[str, Any] = {}
    if args.header:
        options["headers"] = _unique("--header", args.header, str.lower)
    if args.sign is not None:
        options["sign"] = args.sign
    if args.request_payer:
        options["request_payer"] = True
    if _given(args, "sse_customer_key_file") is not None:
        with open(args.sse_customer_key_file, "rb") as file:
            options["sse_customer_key"] = file.read(64)
    return options


def put_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `put`. Raises as `call_options`."""
    options = call_options(args)
    options |= {name: _given(args, name) for name in _PUT_OPTIONS if _given(args, name) is not None}
    if args.checksum is not None:
        options["checksum"] = None if args.checksum == "none" else args.checksum
    for name in ("metadata", "tagging"):
        if _given(args, name):
            options[name] = _unique(f"--{name}", _given(args, name), str)
    return options


def upload_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `upload`. Raises as `call_options`."""
    parts = {name: _given(args, name) for name in _PART_OPTIONS if _given(args, name) is not None}
    return put_options(args) | parts


def _unique(option: str, pairs: Sequence[tuple[str, str]], fold: Callable[[str], str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in pairs:
        if fold(name) in map(fold, found):
            raise UsageError(f"{option}: {name!r} is given twice")
        found[name] = value
    return found


# --- the engine's words in those of the command line --------------------------------------------------------------------

_NAMES: Final = "|".join(
    sorted(
        (
            *_PUT_OPTIONS,
            *_PART_OPTIONS,
            "expect",
            "region",
            "sign",
            "checksum",
            "payload_signing",
            "addressing",
            "max_attempts",
        ),
        key=len,
    )
)
_WORDS: Final = (
    (r"pass credentials=engine\.Credentials\([^)]*\), ", ""),
    (r"credentials=engine\.ANONYMOUS \(--no-sign-request\)", "--no-sign-request"),
    (r"RedirectPolicy\(hosts=…\)|RedirectPolicy\.hosts", "--redirect-host"),
    (r"RedirectPolicy\(max_hops=…\)", "--max-redirects"),
    (r"RedirectPolicy\(allow_downgrade=True\)", "--allow-downgrade"),
    (r"RedirectPolicy: max_hops", "--max-redirects"),
    (r"RedirectPolicy: ('.*') in hosts", r"--redirect-host \1"),
    (r"Retry: max_attempts", "--max-attempts"),
    (r"\bsse_customer_key\b", "--sse-customer-key-file"),
    (r"\b(continue|connect|stall|response|total)_timeout_s\b", r"--\1-timeout"),
    (rf"(?<![\w/?&])({_NAMES})=(?=[^\w'\"-]|$)", r"--\1"),  # not in a URL
    (rf"(?<![\w/?&])({_NAMES})=", r"--\1 "),
    (r"\b(if_match|if_none_match|sse_kms_key_id|storage_class)\b", r"--\1"),
    (r"(--[a-z-]+-timeout)=", r"\1 "),
)


def in_our_words(message: str) -> str:
    """A message of the engine with the options' names as they are written on a command line: "size=" is "--size" there."""
    for pattern, ours in _WORDS:
        message = re.sub(pattern, ours, message)
    return re.sub(r"--[a-z]+(?:_[a-z]+)+", lambda found: found[0].replace("_", "-"), message)
