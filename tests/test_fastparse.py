"""The response parser against the plain-Python one, and what only the real one has."""

from __future__ import annotations

from engine._fastparse import Event, ResponseParser


def test_a_response_with_an_interim_and_a_body_in_one_feed() -> None:
    parser = ResponseParser()
    parser.expect("PUT")
    events = parser.feed(b"HTTP/1.1 100\r\n\r\nHTTP/1.1 307 Away\r\nContent-Length: 2\r\n\r\nhi")
    assert events == Event.INTERIM | Event.HEAD | Event.BODY | Event.DONE
    assert parser.response is not None
    assert (parser.response.status, parser.body, parser.keep_alive) == (307, b"hi", True)
