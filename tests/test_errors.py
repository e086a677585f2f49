"""The error tree: what can be caught as what, which facts errors carry, and that they survive a trip between processes."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest

import engine
from engine import errors
from engine.errors import EngineError
from engine.results import Hop

KINDS = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EngineError)),
    key=lambda kind: kind.__name__,
)
# One example of each constructor argument that has no default.
FACTS: dict[str, Any] = {
    "kind": "bare-lf",
    "limit_s": 60.0,
    "status": 503,
    "reason": "host-not-allowed",
    "algorithm": "crc64nvme",
    "sent": "AAAAAAAAAAA=",
    "stored": "AAAAAAAAAAE=",
    "upload_id": "upload-1",
    "aborted": True,
}


def make(kind: type[EngineError]) -> EngineError:
    needed = {
        name: FACTS[name]
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY
    }
    error = kind("PUT s3://bucket/key: it did not work", **needed)
    error.hops = (Hop("http://127.0.0.1/bucket/key", 503, outcome="refused"),)
    error.attempts = 3
    error.body_bytes_sent = 17
    return error


def pickled(error: EngineError) -> Any:
    return pickle.loads(pickle.dumps(error))


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_says_what_the_message_says_and_no_errno(kind: type[EngineError]) -> None:
    error = make(kind)
    assert str(error) == error.message == "PUT s3://bucket/key: it did not work"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_carries_the_facts_from_the_start(kind: type[EngineError]) -> None:
    needed = {name: FACTS[name] for name in inspect.signature(kind).parameters if name in FACTS}
    fresh = kind("message", **needed)
    assert (fresh.hops, fresh.attempts, fresh.body_bytes_sent) == ((), 0, 0)
    assert isinstance(fresh.stage, str)
    assert isinstance(fresh.retryable, bool)
    for name, value in needed.items():
        assert getattr(fresh, name) == value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("travel", [pickled, copy.copy, copy.deepcopy])
def test_errors_arrive_as_they_left(kind: type[EngineError], travel: Any) -> None:
    error = make(kind)
    arrived = travel(error)
    assert type(arrived) is kind
    assert vars(arrived) == vars(error)
    assert str(arrived) == str(error)
    assert arrived.retryable == error.retryable


@pytest.mark.parametrize(
    ("kind", "familiar"),
    [
        (errors.UsageError, ValueError),
        (errors.CredentialsError, errors.UsageError),
        (errors.TransportError, ConnectionError),
        (errors.ConnectFailed, errors.TransportError),
        (errors.ConnectionLost, errors.TransportError),
        (errors.TimedOut, TimeoutError),
        (errors.ConnectTimedOut, errors.TimedOut),
        (errors.StallTimedOut, errors.TimedOut),
        (errors.ResponseTimedOut, errors.TimedOut),
        (errors.TotalTimedOut, errors.TimedOut),
        (errors.AccessDenied, PermissionError),
        (errors.AccessDenied, errors.ResponseError),
        (errors.NotFound, FileNotFoundError),
        (errors.NotFound, errors.ResponseError),
        (errors.PreconditionFailed, FileExistsError),
        (errors.PreconditionFailed, errors.ResponseError),
        (errors.SlowDown, errors.ResponseError),
        (errors.RedirectRefused, errors.ResponseError),
        (errors.TooManyRedirects, errors.RedirectRefused),
    ],
)
def test_errors_are_caught_as_what_programs_catch_already(kind: type[EngineError], familiar: type[Exception]) -> None:
    with pytest.raises(familiar):
        raise make(kind)


def test_every_error_can_be_imported_from_the_package() -> None:
    assert {kind.__name__ for kind in KINDS} <= set(engine.__all__)


def test_the_tree_in_the_docstring_names_every_error() -> None:
    tree = errors.__doc__ or ""
    assert [kind.__name__ for kind in KINDS if kind.__name__ not in tree and kind is not errors.CredentialsError] == []


def test_what_may_work_when_made_again_says_so() -> None:
    retryable = {kind.__name__ for kind in KINDS if make(kind).retryable}
    assert retryable == {
        "ConnectFailed",
        "ConnectionLost",
        "ConnectTimedOut",
        "ResponseTimedOut",
        "SlowDown",
        "StallTimedOut",
        "TimedOut",
        "TransportError",
    }
    assert errors.ResponseError("500", status=500, retryable=True).retryable
    assert not errors.ConnectFailed("no such name", retryable=False).retryable


def test_errors_of_the_os_kind_can_be_told_apart_by_errno() -> None:
    assert errors.ConnectFailed("refused", errno=111).errno == 111
    assert errors.ConnectionLost("gone").errno is None
    assert pickled(errors.ConnectFailed("refused", errno=111)).errno == 111
