"""Refusals as S3 words them. Owns the error document; knows nothing of sockets."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

Fields = Sequence[tuple[str, str]]


class S3Error(Exception):
    """An answer that says no.

    `elements` stand in the document behind Code and Message, `fields` in the answer's head.
    Codes and texts: AWS, "Amazon S3 API Reference", "Error responses".
    """

    def __init__(self, status: int, code: str, message: str, *, elements: Fields = (), fields: Fields = ()) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.elements = elements
        self.fields = fields


class SignatureRefused(S3Error):
    """The request was not signed as it should be; `code` is the verdict that a Record shows."""


def error_document(error: S3Error, resource: str, request_id: str, host_id: str) -> bytes:
    elements = [("Code", error.code), ("Message", error.message), *error.elements]
    elements += [("Resource", resource), ("RequestId", request_id), ("HostId", host_id)]
    return document("Error", elements, namespace=False)


def document(root: str, elements: Fields, *, namespace: bool = True, raw: str = "") -> bytes:
    """A flat XML document; `raw` is inner XML that was escaped already."""
    xmlns = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"' if namespace else ""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root}{xmlns}>{xml(elements)}{raw}</{root}>'.encode()


def xml(elements: Fields) -> str:
    return "".join(f"<{name}>{escape(value)}</{name}>" for name, value in elements)
