"""What the redirecting endpoint can do, and how a bucket's name says it.

A scenario is a verb and modifiers, joined by "-"; what stands behind a "." is free, so that `redirect-307.a` and
`redirect-307.b` are two buckets with one behaviour. Unless said otherwise the answer comes at once, without reading the body,
and the connection stays open. The words are in VERBS and MODIFIERS, from which the parser and `scenario_table` are made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

VERBS: Final = {
    "redirect-<3xx>": "301, 302, 303, 307, 308: Location is the same path on the storing endpoint",
    "answer-<status>": "200 to 599: S3's error document from 400 on, else empty (417: if Expect is there; closes)",
    "region-<status>": "301, 400: the bucket is in region sandbox-2: refused, and closed, until signed for that; then stored",
    "store": "what the storing endpoint would do",
    "drop": "the connection is closed without an answer",
    "hang": "no answer ever comes, but the body is read if it comes",
    "garbage": "what comes is not HTTP",
}
MODIFIERS: Final = {
    "when": {
        "once": "the first request of a method for a key only; after that stored",
    },
    "before": {
        "hints": "a 103 first",
        "processing": "a 102 first",
        "flood-<n>": "that many 102 first",
        "slow-<time>": "waits before the 100 or the answer: slow-5s, slow-300ms",
        "silent": "no 100, ever",
        "late": "the 100 comes only when body bytes have come",
        "twice": "two 100s",
        "odd": "the 100 is a '100 CONTINUE' with fields, one of them Connection: Close (XRootD, Ceph)",
        "continue": "a 100 and the answer in one write",
        "gap-<time>": "a 100, and the answer this much later: gap-20us (nginx)",
    },
    "body": {
        "read": "the whole body is read before the answer (h2o, Apache); a 100 first, unless silent",
        "after-<size>": "so much of the body is read before the answer: after-64k, after-1m",
        "stall-<size>": "so much of the body is read, then nothing",
    },
    "answer": {
        "bare": "redirect without Location: x-amz-bucket-region and <Endpoint> instead (S3)",
        "mute": "redirect, region: no Location, no region, no document; only HEAD of the bucket tells",
        "relative": "Location is a path on the same host with ?rk=1, which stores",
        "query": "Location has ?rk=1 (AIStore)",
        "ceph": 'Location ends in a bare "?"',
        "loop": "Location is the request's own URL",
        "hops-<n>": "n redirects, the last one to the storing endpoint",
        "elsewhere": "Location is on redirect.example.test",
        "linklocal": "Location is on 169.254.169.254",
        "port-<n>": "Location is on this port of the storing endpoint's host: of what stands in front of it",
        "https": "Location is https://",
        "plain": "Location is http://",
        "userinfo": "Location has user-info",
        "ftp": "Location is ftp://",
        "subresource": "Location adds ?acl",
        "two": "two Location fields which differ",
        "retry-<n>": "Retry-After: n",
        "http10": "the answer is HTTP/1.0, and there is no 100",
        "chunked": "the answer's body is chunked",
        "pad-<size>": "the answer's body is longer by so much",
        "trickle": "the answer comes byte by byte",
        "cut": "the connection closes in the middle of the answer",
    },
    "stored": {
        "corrupt": "one byte is changed before it is stored",
        "nochecksum": "the answer names no checksum",
    },
    "end": {
        "close": "the connection is closed behind the answer",
        "reset": "the connection is reset behind the answer",
        "unsolicited": "a 408 which nobody asked for follows 50 ms behind the answer",
    },
}
_STATUSES: Final = {"redirect": (301, 302, 303, 307, 308), "region": (301, 400), "answer": range(200, 600)}
_WORDS: Final = dict(
    word.partition("-")[::2] for group in MODIFIERS.values() for word in group
)  # word → "<kind>" or ""
_TIME = re.compile(r"([0-9]{1,6})(us|ms|s|)\Z")
_SIZE = re.compile(r"([0-9]{1,12})([kmg]?)\Z")
_NUMBER = re.compile(r"[0-9]{1,5}\Z")


@dataclass(frozen=True, slots=True)
class Scenario:
    """`flags` are the modifiers without a value, `values` the others: seconds, bytes or a number."""

    verb: str
    status: int = 0
    flags: frozenset[str] = frozenset()
    values: dict[str, float] = field(default_factory=dict)

    def size(self, word: str) -> int | None:
        return int(self.values[word]) if word in self.values else None


def parse_scenario(bucket: str) -> Scenario | None:
    """None when the name is no scenario."""
    words = bucket.partition(".")[0].split("-")
    verb = words.pop(0)
    status = 0
    if verb in _STATUSES:
        if not words or not re.match(r"[2-5][0-9]{2}\Z", words[0]):
            return None
        status = int(words.pop(0))
        if status not in _STATUSES[verb]:
            return None
    elif verb not in VERBS:
        return None
    flags: set[str] = set()
    values: dict[str, float] = {}
    while words:
        word = words.pop(0)
        if word not in _WORDS or word in flags or word in values:
            return None
        kind = _WORDS[word]
        value = _value(kind, words.pop(0)) if kind and words else None
        if kind and value is None:
            return None
        if value is None:
            flags.add(word)
        else:
            values[word] = value
    return Scenario(verb, status, frozenset(flags), values)


def _value(kind: str, text: str) -> float | None:
    if kind == "<time>" and (found := _TIME.match(text)):
        return int(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}[found[2]]
    if kind == "<size>" and (found := _SIZE.match(text)):
        return int(found[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[found[2]]
    if kind == "<n>" and _NUMBER.match(text):
        return int(text)
    return None


def scenario_table() -> str:
    """The words, as text for people."""
    lines = [f"  {verb:<17} {meaning}" for verb, meaning in VERBS.items()]
    for group, words in MODIFIERS.items():
        lines.append("")
        for n, (word, meaning) in enumerate(words.items()):
            lines.append(f"  {'' if n else group:<7} -{word:<14} {meaning}")
    return "\n".join(lines)
