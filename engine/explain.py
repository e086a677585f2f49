"""Every setting, its value, and where it came from: for `putengine config --explain`. Shows no secret."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import Any, Final, NamedTuple

from engine import arguments, s3
from engine.config import Config
from engine.credentials import explain
from engine.redirect import RedirectPolicy
from engine.retry import Retry
from engine.wire import printable, redact_url_text


class Setting(NamedTuple):
    """`source`: an option ("--region"), an environment variable ("AWS_REGION"), "default", or who gave the credentials."""

    name: str
    source: str
    value: str


_ENVIRONMENT: Final = (
    ("endpoint_url", ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), "Amazon S3"),
    ("region", ("AWS_REGION", "AWS_DEFAULT_REGION"), "us-east-1, until a redirect tells better"),
    ("profile", ("AWS_PROFILE",), "none named"),
)
_TLS_VARIABLES: Final = ("AWS_CA_BUNDLE", "SSL_CERT_FILE")
_ENDPOINT_VARIABLES: Final = {
    "use_dualstack_endpoint": "AWS_USE_DUALSTACK_ENDPOINT",
    "use_fips_endpoint": "AWS_USE_FIPS_ENDPOINT",
}
_PROXY_VARIABLES: Final = (
    ("proxy for http", ("http_proxy",)),  # lower case only: HTTP_PROXY is a request's "Proxy:" field to a CGI program
    ("proxy for https", ("HTTPS_PROXY", "https_proxy")),
    ("no proxy for", ("NO_PROXY", "no_proxy")),
)


def settings(args: argparse.Namespace, *, probe: bool) -> list[Setting]:
    """All of them: who and where first, then the fields of `Config`. Raises UsageError for one that is out of its range.

    probe: look for credentials outside of the environment too, which may block for seconds.
    """
    config = Config(**arguments.config_options(args))
    found = []
    for name, variables, default in _ENVIRONMENT:
        found.append(_setting(name, getattr(args, name), variables, default))
    endpoint = found[0]
    if endpoint.source != "default":
        s3.Endpoint.from_url(getattr(args, "endpoint_url", None) or os.environ[endpoint.source])
    found += _credentials(args, probe)
    given = arguments.config_sources(args)
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if field.name == "tls":
            found.append(_setting("tls", value, _TLS_VARIABLES, "the system's trust store", "--ca-bundle"))
        elif field.name in _ENDPOINT_VARIABLES:
            found.append(_setting(field.name, value, (_ENDPOINT_VARIABLES[field.name],), "False"))
        elif field.name == "proxy":
            found += [_setting(name, None, variables, "none") for name, variables in _PROXY_VARIABLES]
        elif isinstance(value, (RedirectPolicy, Retry)):
            found += _parts(field.name, value, given)
        else:
            found.append(Setting(field.name, given.get(field.name, "default"), _shown(value)))
    return found


def _setting(
    name: str, argument: object, variables: tuple[str, ...], default: str, option: str | None = None
) -> Setting:
    """An argument, else the first variable that is set, else the default."""
    if argument is not None:
        return Setting(name, option or f"--{name.replace('_', '-')}", _shown(argument))
    for variable in variables:
        if os.environ.get(variable):
            return Setting(name, variable, _shown(os.environ[variable]))
    return Setting(name, "default", default)


def _parts(name: str, value: Any, given: dict[str, str]) -> list[Setting]:
    return [
        Setting(
            f"{name}.{field.name}", given.get(f"{name}.{field.name}", "default"), _shown(getattr(value, field.name))
        )
        for field in dataclasses.fields(value)
        if not field.name.startswith("_")
    ]


def _credentials(args: argparse.Namespace, probe: bool) -> list[Setting]:
    if args.no_sign_request:
        return [Setting("credentials", "--no-sign-request", "none: requests are not signed")]
    return [
        Setting("credentials", source.name, source.detail if source.used else f"none: {source.detail}")
        for source in explain(profile=args.profile, probe=probe)
        if source.used or source.name != "argument"
    ]


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value)) or "none"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    # A proxy's or an endpoint's URL may have a password in it.
    return redact_url_text(text) if "@" in text or "?" in text else printable(text, 500)
