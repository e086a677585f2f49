"""Events: what a put tells while it runs, in which order, and that a listener can do no harm."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pickle
import socket
import time
from typing import Any, get_args

import pytest
import uvloop

import engine
from engine import events
from tests.conftest import Server
from tests.peers import raw_server, read_head

SIZE = 2 << 20


def listen(server: Server, bucket: str, **options: Any) -> list[events.Event]:
    """The events of one put to the redirecting endpoint."""
    heard: list[events.Event] = []
    with contextlib.suppress(engine.EngineError):
        engine.put(bytes(SIZE), f"s3://{bucket}/key", on_event=heard.append, **server.options, **options)
    return heard


def names(heard: list[events.Event]) -> list[str]:
    return [type(event).__name__ for event in heard]


def test_a_redirected_put_is_told_from_resolving_to_done(server: Server) -> None:
    heard = listen(server, "redirect-307.events")
    assert names(heard) == [
        *("Resolved", "Connected", "HeadSent", "Response", "Redirect"),
        *("Resolved", "Connected", "HeadSent", "Continue", "BodyStarted", "Response"),
        "Done",
    ]
    first, second = (event for event in heard if isinstance(event, events.HeadSent))
    assert (first.hop, second.hop, first.attempt) == (1, 2, 1)
    assert first.expect
    assert first.method == "PUT"
    redirect = next(event for event in heard if isinstance(event, events.Redirect))
    assert (redirect.status, redirect.kind, redirect.region) == (307, "location", server.region)
    assert redirect.url == second.url
    refused, stored = (event for event in heard if isinstance(event, events.Response))
    assert (refused.status, refused.body_bytes_sent) == (307, 0)
    assert (stored.status, stored.body_bytes_sent) == (200, SIZE)
    started = next(event for event in heard if isinstance(event, events.BodyStarted))
    assert (started.size, started.why) == (SIZE, "continue")
    done = heard[-1]
    assert isinstance(done, events.Done)
    assert (done.status, done.error, done.body_bytes_sent) == (200, "", SIZE)


def test_events_come_in_the_order_of_time(server: Server) -> None:
    before = time.monotonic()
    at = [event.at for event in listen(server, "redirect-307.order")]
    assert at == sorted(at)
    assert before <= at[0]
    assert at[-1] <= time.monotonic()


def test_a_retry_is_told_with_the_attempt_to_come(server: Server) -> None:
    heard = listen(server, "answer-503-once.events", retry=engine.Retry(base_s=0.001))
    [again] = [event for event in heard if isinstance(event, events.Retry)]
    assert again.attempt == 2
    assert again.after_s >= 0
    assert again.reason
    assert [event.attempt for event in heard if isinstance(event, events.HeadSent)] == [1, 2]


def test_an_error_is_told_by_name(server: Server) -> None:
    done = listen(server, "answer-403.events")[-1]
    assert isinstance(done, events.Done)
    assert (done.error, done.body_bytes_sent) == ("AccessDenied", 0)


def test_heads_are_told_without_secrets(server: Server) -> None:
    heard = listen(server, "redirect-307.secrets", headers={"cookie": "session=hunter2"})
    told = repr(heard)
    assert "authorization" in told.lower()
    assert "hunter2" not in told
    assert server.credentials.secret_key not in told
    for head in (event.head for event in heard if isinstance(event, events.HeadSent)):
        signature = head.lower().partition("authorization:")[2].partition("\r\n")[0]
        assert "signature=" not in signature or "redacted" in signature.lower() or "…" in signature, signature


def test_a_listener_that_raises_goes_to_the_loop_and_not_into_the_put(server: Server) -> None:
    complaints: list[dict[str, Any]] = []

    def fail(event: events.Event) -> None:
        raise RuntimeError(f"cannot take {type(event).__name__}")

    async def main() -> engine.PutResult:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        return await engine.put_async(bytes(SIZE), "s3://store.events/listener", on_event=fail, **server.options)

    assert uvloop.run(main()).status == 200
    assert complaints
    assert all("on_event" in context["message"] for context in complaints)


@pytest.mark.parametrize("kind", get_args(events.Event), ids=lambda kind: kind.__name__)
def test_events_are_frozen_values_which_can_be_pickled(kind: type) -> None:
    event = kind(*range(len(dataclasses.fields(kind))))
    assert pickle.loads(pickle.dumps(event)) == event
    with pytest.raises(AttributeError):
        event.at = 1.0


def test_every_kind_of_event_is_in_the_union() -> None:
    kinds = {kind for kind in vars(events).values() if dataclasses.is_dataclass(kind)}
    assert kinds == set(get_args(events.Event))


def test_a_get_tells_the_size_of_what_comes_when_it_begins_to_come(server: Server) -> None:
    bucket = "redirect-307.events"
    heard: list[events.Event] = []

    async def main() -> None:
        async with engine.Client(**server.options) as client:
            await client.put(bytes(SIZE), f"s3://{bucket}/got")
            count = await client.get(f"s3://{bucket}/got", lambda piece: None, on_event=heard.append)
            assert count == SIZE

    uvloop.run(main())
    [size] = [event.size for event in heard if isinstance(event, events.Receiving)]
    told = names(heard)
    assert told.index("Receiving") > max(n for n, name in enumerate(told) if name == "HeadSent")
    assert told.index("Receiving") < len(told) - 2
    assert size == SIZE


def test_an_answer_of_unknown_length_is_told_as_such() -> None:
    heard: list[events.Event] = []

    def answer(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    async def main(url: str) -> int:
        async with engine.Client() as client:
            return await client.get(f"{url}/k", lambda piece: None, on_event=heard.append)

    with raw_server(answer) as url:
        assert uvloop.run(main(url)) == 3
    assert [event.size for event in heard if isinstance(event, events.Receiving)] == [None]
