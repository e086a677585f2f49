"""TLS: contexts, sessions over memory, the handshake, and in words what went wrong with it.

Whether a peer is who it claims to be is decided by the standard library alone: every session is an `ssl.SSLObject` made from
an `ssl.SSLContext`, with the host as `server_hostname` (names, wildcards, IP addresses, SNI). A session turns bytes into bytes;
it owns no socket and knows no HTTP. Not to be used by two threads at once: who encrypts a body has the session to itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections import OrderedDict
from typing import Any

from engine import _tls, limits
from engine.errors import ConnectFailed, UsageError
from engine.results import SendPath
from engine.wire import Origin

_PROTOCOLS = (None, "http/1.1", "http/1.0")  # agreed on by ALPN (RFC 7301): None is a peer that does not know it
_SESSIONS_MAX = 1024  # kept for resumption, of different origins; a session is about 2 KiB

# RFC 5280 in OpenSSL's numbers (x509_vfy.h), in the words of somebody who has to do something about it.
_CERTIFICATE_FAULTS = {
    9: "its certificate is not valid yet; check this machine's clock",
    10: "its certificate has expired; check this machine's clock, else the server's operator has to renew it",
    18: "its certificate is self-signed; if it is the right one, name it as the CA bundle (tls=PATH)",
    19: "its certificate chain ends in a self-signed one that is not trusted; name that as the CA bundle (tls=PATH)",
    20: "its certificate was issued by an authority that is not trusted; name its CA bundle (tls=PATH, AWS_CA_BUNDLE)",
    21: "its certificate cannot be verified: intermediate certificates are missing, or its authority is not trusted",
    23: "its certificate was revoked",
    62: "its certificate is for another host",
    64: "its certificate is for another address",
}
# The verdicts on our own certificate. TLS 1.3 gives them when our side of the handshake is over already.
_REFUSALS = (
    "ACCESS_DENIED",
    "BAD_CERTIFICATE",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_REQUIRED",
    "CERTIFICATE_REVOKED",
    "CERTIFICATE_UNKNOWN",
    "DECRYPT_ERROR",
    "UNKNOWN_CA",
    "UNSUPPORTED_CERTIFICATE",
)

_default_contexts: OrderedDict[tuple[Any, ...], ssl.SSLContext] = OrderedDict()


# Chosen at import; False also where the interpreter's OpenSSL is linked into it and cannot be reached.
NATIVE = os.environ.get("ENGINE_TLS") != "ssl" and _tls.reachable()


Resumable = ssl.SSLSession | _tls.Ticket


class Session:
    """The client's side of one TLS connection, from memory to memory.

    Attributes:
      records: for the native sender, through which bodies leave encrypted; None where only `encrypt` is there.
      send_path: how bodies leave, for `PutResult.send_path`.
      closed_by_peer: it said close_notify: what it sent is complete (RFC 8446 section 6.1).
      resumed: whether the handshake took up an earlier session.
    """

    send_path: SendPath = "tls-ssl"
    records: object = None

    def __init__(self, context: ssl.SSLContext, host: str, resume: Resumable | None = None) -> None:
        """Raises ssl.SSLError and ValueError for a context that is not for clients."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        if isinstance(resume, _tls.Ticket):
            resume.resume(self._ssl)
        elif resume is not None:
            self._ssl.session = resume
        self._native: _tls.Records | None = None
        self._kept = b""
        self.closed_by_peer = False

    def shake(self) -> bool:
        """Go on with the handshake; False while it needs more from the peer. Afterwards `take` what is to be sent.

        Raises ssl.SSLError; what was to be said about it (an alert) is there to be taken too.
        """
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def feed(self, data: memoryview | bytes) -> None:
        """Hand over what was received; it is copied."""
        self._incoming.write(data)

    def read_into(self, buffer: memoryview) -> int:
        """Decrypted bytes; 0 when there is none now, or none will come any more (`closed_by_peer`). Raises ssl.SSLError."""
        try:
            count: int = self._ssl.read(len(buffer), buffer)  # type: ignore[assignment]
        except ssl.SSLWantReadError:  # tickets, KeyUpdates: dealt with, and nothing for us
            return 0
        except ssl.SSLZeroReturnError:
            count = 0
        if count == 0:
            self.closed_by_peer = True
        return count

    def encrypt(self, data: memoryview | bytes) -> None:
        """Add records with `data` to what is to be sent. Raises ssl.SSLError; SSLWantReadError when the peer renegotiates."""
        done = 0
        while done < len(data):
            done += self._ssl.write(data[done:])

    def go_native(self) -> None:
        """Let native threads encrypt (`records`), from now on. After the handshake, when everything was taken."""
        with contextlib.suppress(TypeError):
            self._native = _tls.Records(self._ssl)
            self.records = self._native.capsule
            self.send_path = "tls"

    def take(self) -> bytes:
        """What is to be sent, and was not taken yet."""
        if self._native is not None:
            return self._native.take()
        taken, self._kept = self._kept + self._outgoing.read(), b""
        return taken

    def put_back(self, data: bytes) -> None:
        """What `take` gave and the socket did not: it leaves first."""
        if self._native is not None:
            self._native.put_back(data)
        else:
            self._kept = data

    def say_goodbye(self) -> None:
        """Add a close_notify to what is to be sent."""
        with contextlib.suppress(ssl.SSLError):
            self._ssl.unwrap()

    @property
    def resumed(self) -> bool:
        return bool(self._ssl.session_reused)

    @property
    def protocol(self) -> str | None:
        """What ALPN agreed on."""
        return self._ssl.selected_alpn_protocol()

    @property
    def resumable(self) -> Resumable | None:
        """What another connection can take up; with TLS 1.3 only once a ticket came."""
        if self._native is not None:
            return _tls.ticket_of(self._ssl)
        session = self._ssl.session
        if session is None:
            return None
        by_id = bool(session.id) and self._ssl.version() != "TLSv1.3"
        return session if session.has_ticket or by_id else None


class Tls:
    """What the connections of one client have in common: the context, and sessions to take up again.

    option: `Config.tls`. The trust store is read at the first handshake, the environment too.
    """

    def __init__(self, option: ssl.SSLContext | str | os.PathLike[str] | None) -> None:
        self._path = None if isinstance(option, ssl.SSLContext) else option
        self._context = option if isinstance(option, ssl.SSLContext) else None
        self._sessions: OrderedDict[Origin, Resumable] = OrderedDict()

    async def context(self) -> ssl.SSLContext:
        """What servers are verified by. Raises UsageError for a bundle that cannot be used."""
        if self._context is None:  # reading the system's store takes 50 ms
            loop = asyncio.get_running_loop()
            self._context = await loop.run_in_executor(None, _default_context, self._path)
        return self._context

    async def connect(self, origin: Origin, sock: socket.socket) -> Session:
        """Shake hands on a connected non-blocking socket, which stays the caller's.

        Raises ConnectFailed, retryable only when the network failed; UsageError for a context or bundle that cannot be used.
        """
        loop, context = asyncio.get_running_loop(), await self.context()
        resume = self._sessions.get(origin)
        try:
            session = Session(context, origin.host, resume)
        except (ssl.SSLError, ValueError) as error:  # a server's context, a name that IDNA does not know
            raise UsageError(f"{origin}: TLS cannot be used with this context and host: {error}") from error
        try:
            await _shake(loop, sock, session)
        except (ssl.SSLError, OSError) as error:
            self._sessions.pop(origin, None)
            raise handshake_failed(origin, error) from None
        if session.protocol not in _PROTOCOLS:
            raise ConnectFailed(
                f"{origin}: TLS agreed on {session.protocol!r}, but only HTTP/1.1 is spoken here; the SSLContext offers it",
                stage="tls",
                retryable=False,
            )
        if NATIVE:
            session.go_native()
        return session

    def remember(self, origin: Origin, session: Session) -> None:
        """Keep what `session` gives for the next connection to `origin`."""
        found = session.resumable
        if found is not None:
            self._sessions[origin] = found
            self._sessions.move_to_end(origin)
            if len(self._sessions) > _SESSIONS_MAX:
                self._sessions.popitem(last=False)


async def _shake(loop: asyncio.AbstractEventLoop, sock: socket.socket, session: Session) -> None:
    try:
        while not session.shake():
            await loop.sock_sendall(sock, session.take())
            data = await loop.sock_recv(sock, limits.TLS_RECEIVE_BYTES)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "closed by the peer")
            session.feed(data)
    except ssl.SSLError:
        with contextlib.suppress(OSError):
            sock.send(session.take())  # the alert, if it goes at once
        raise
    if data := session.take():
        await loop.sock_sendall(sock, data)


def _default_context(path: str | os.PathLike[str] | None) -> ssl.SSLContext:
    """For clients, with the CA bundle of `path`, of AWS_CA_BUNDLE, or else the system's store. Raises UsageError."""
    named = "tls"
    if path is None and (path := os.environ.get("AWS_CA_BUNDLE")):
        named = "AWS_CA_BUNDLE"
    where = os.fspath(path) if path else ssl.get_default_verify_paths().cafile
    try:
        seen = os.stat(where).st_mtime_ns if where else 0
        key = (where, seen, path and os.fspath(path), os.environ.get("SSL_CERT_DIR"), os.environ.get("SSLKEYLOGFILE"))
        if key not in _default_contexts:
            _default_contexts[key] = _make_context(path)
            if len(_default_contexts) > 8:
                _default_contexts.popitem(last=False)
        return _default_contexts[key]
    except OSError as error:  # ssl.SSLError is one: a file without a certificate
        raise UsageError(f"{named}={where!r}: no CA bundle that can be read ({error})") from None


def _make_context(path: str | os.PathLike[str] | None) -> ssl.SSLContext:
    if path is None:
        context = ssl.create_default_context()  # SSL_CERT_FILE and SSL_CERT_DIR are its business
    elif os.path.isdir(path):
        context = ssl.create_default_context(capath=path)
    else:
        context = ssl.create_default_context(cafile=path)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION  # TLS 1.2: a body cannot stop for another handshake
    return context


def handshake_failed(origin: Origin, error: OSError) -> ConnectFailed:
    """The error for a failed handshake, or for one that the peer disowned behind it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = _CERTIFICATE_FAULTS.get(error.verify_code, "its certificate was not accepted")
        return ConnectFailed(
            f"{origin}: the server is not trusted: {why} ({error.verify_message})", stage="tls", retryable=False
        )
    if isinstance(error, ssl.SSLError) and not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return ConnectFailed(f"{origin}: no TLS connection: {_in_words(error)}", stage="tls", retryable=False)
    number = error.errno if not isinstance(error, ssl.SSLError) else None
    name = f" ({errno.errorcode.get(number, number)})" if number else ""
    return ConnectFailed(f"{origin}: the peer closed during the TLS handshake{name}", errno=number, stage="tls")


def is_refusal(error: ssl.SSLError) -> bool:
    """Whether the peer rejects our certificate, or that we have none."""
    return any(word in (error.reason or "") for word in _REFUSALS)


def _in_words(error: ssl.SSLError) -> str:
    reason = error.reason or str(error)
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        return f"what came is no TLS; does the port speak plain http? ({reason})"
    words = reason.lower().replace("_", " ")
    if "ALERT" not in reason:
        return words
    alert = words.partition("alert ")[2]
    if is_refusal(error):
        return f"the server does not accept this client's certificate, or wants one (alert: {alert})"
    if "PROTOCOL_VERSION" in reason or "HANDSHAKE_FAILURE" in reason:
        return f"the two sides have no protocol version or cipher in common (alert: {alert})"
    return f"the server refused (alert: {alert})"


def in_words(error: ssl.SSLError) -> str:
    """What ended an established connection."""
    return f"was ended by TLS: {_in_words(error)}"
