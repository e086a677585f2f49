"""`Config`: defaults as documented, values checked when it is made, variants."""

from __future__ import annotations

import dataclasses
from typing import Any
from urllib.parse import urlsplit

import botocore.config
import botocore.session
import pytest

import engine
from engine import limits
from engine.config import Config
from engine.errors import UsageError


def test_the_defaults_are_those_of_limits_py() -> None:
    config = Config()
    assert (config.expect, config.continue_timeout_s) == ("auto", "auto")
    assert config.connect_timeout_s == limits.CONNECT_TIMEOUT_S == 5
    assert config.stall_timeout_s == limits.STALL_TIMEOUT_S == 60
    assert config.response_timeout_s == limits.RESPONSE_TIMEOUT_S == 60
    assert config.total_timeout_s is None
    assert config.max_connections == limits.CONNECTIONS_MAX == 64
    assert config.max_idle_s == limits.MAX_IDLE_S == 4
    assert (config.payload_signing, config.addressing) == ("unsigned", "auto")
    assert config.redirects == engine.RedirectPolicy(max_hops=5, hosts=(), allow_downgrade=False)
    assert config.retry == engine.Retry(max_attempts=3, base_s=0.1, cap_s=20)
    assert config.tls is None


SECONDS = [
    "connect_timeout_s",
    "stall_timeout_s",
    "response_timeout_s",
    "max_idle_s",
    "total_timeout_s",
    "continue_timeout_s",
]
WRONG = [
    *((name, value) for name in SECONDS for value in (-1, float("nan"), float("inf"), 1e9, "soon", True, [5])),
    *((name, 0) for name in SECONDS if name != "continue_timeout_s"),
    *((name, None) for name in SECONDS if name != "total_timeout_s"),
    *(("max_connections", value) for value in (0, -1, 65_536, 1.5, "many", None)),
    *(
        (name, value)
        for name in ("expect", "payload_signing", "addressing")
        for value in ("sometimes", None, 1, "AUTO")
    ),
    ("redirects", 5),
    ("redirects", None),
    ("retry", 3),
    ("retry", None),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}={value!r}" for name, value in WRONG])
def test_a_value_out_of_its_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        Config(**{name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"continue_timeout_s": 0},
        {"continue_timeout_s": 10},
        {"total_timeout_s": 0.5},
        {"expect": "strict"},
        {"expect": "never"},
        {"payload_signing": "sha256"},
        {"addressing": "virtual"},
        {"max_connections": 1},
        {"tls": "bundle.pem"},
        {"proxy": None},
    ],
    ids=str,
)
def test_values_in_range_are_taken(options: dict[str, Any]) -> None:
    config = Config(**options)
    assert {name: getattr(config, name) for name in options} == options


def test_a_config_cannot_be_changed_but_replaced() -> None:
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.expect = "never"  # type: ignore[misc]
    assert dataclasses.replace(config, expect="never").expect == "never"
    with pytest.raises(UsageError):
        dataclasses.replace(config, expect="perhaps")


def test_an_override_takes_what_is_given_and_checks_it() -> None:
    config = Config(expect="always", stall_timeout_s=7)
    assert config.override(expect=None, stall_timeout_s=None) is config
    changed = config.override(stall_timeout_s=3, expect=None)
    assert (changed.stall_timeout_s, changed.expect) == (3, "always")
    with pytest.raises(UsageError, match="stall_timeout_s"):
        config.override(stall_timeout_s=0)


def test_a_proxy_s_password_is_in_no_repr() -> None:
    assert "hunter2" not in repr(Config(proxy="http://user:hunter2@proxy.example:3128"))


ENDPOINTS = [
    ({}, {}, "bucket.s3.eu-west-1.amazonaws.com"),
    ({"use_dualstack_endpoint": True}, {}, "bucket.s3.dualstack.eu-west-1.amazonaws.com"),
    ({"use_accelerate_endpoint": True}, {}, "bucket.s3-accelerate.amazonaws.com"),
    (
        {"use_dualstack_endpoint": True, "use_accelerate_endpoint": True},
        {},
        "bucket.s3-accelerate.dualstack.amazonaws.com",
    ),
    ({}, {"AWS_USE_DUALSTACK_ENDPOINT": "true"}, "bucket.s3.dualstack.eu-west-1.amazonaws.com"),
    ({"use_dualstack_endpoint": False}, {"AWS_USE_DUALSTACK_ENDPOINT": "true"}, "bucket.s3.eu-west-1.amazonaws.com"),
    ({}, {"AWS_USE_FIPS_ENDPOINT": "True"}, "bucket.s3-fips.eu-west-1.amazonaws.com"),
    (
        {"use_fips_endpoint": True, "use_dualstack_endpoint": True},
        {},
        "bucket.s3-fips.dualstack.eu-west-1.amazonaws.com",
    ),
    ({}, {"AWS_USE_FIPS_ENDPOINT": "false"}, "bucket.s3.eu-west-1.amazonaws.com"),
]


@pytest.mark.parametrize(("options", "environment", "host"), ENDPOINTS)
def test_dual_stack_fips_and_accelerate_endpoints_are_botocores(
    options: dict[str, Any], environment: dict[str, str], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    client = engine.Client(region="eu-west-1", config=Config(**options))
    assert client._place("s3://bucket/key", {}).url.host == host
    # What boto3's users write the same settings as; the environment is read by both.
    own = dict(options)
    accelerates = own.pop("use_accelerate_endpoint", False)
    theirs = botocore.config.Config(s3={"use_accelerate_endpoint": accelerates, "addressing_style": "virtual"}, **own)
    session = botocore.session.Session()
    session.set_credentials("access", "secret")
    presigned = session.create_client("s3", "eu-west-1", config=theirs).generate_presigned_url(
        "put_object", Params={"Bucket": "bucket", "Key": "key"}
    )
    assert urlsplit(presigned).hostname == host


@pytest.mark.parametrize("kind", ["dualstack", "fips", "accelerate"])
def test_who_counts_on_a_kind_of_endpoint_is_not_given_another(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {f"use_{kind}_endpoint": True}
    client = engine.Client(endpoint_url="http://store.example:9000", config=Config(**options))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=f"use_{kind}_endpoint is about AWS's own endpoints"):
        client._place("s3://bucket/key", {})
    if kind == "fips":
        monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
        with pytest.raises(UsageError, match="fips"):
            engine.Client(endpoint_url="http://store.example:9000")._place("s3://bucket/key", {})


@pytest.mark.parametrize("name", ["use_dualstack_endpoint", "use_fips_endpoint", "use_accelerate_endpoint"])
def test_a_kind_of_endpoint_is_wanted_or_not(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        Config(**{name: "sometimes"})
