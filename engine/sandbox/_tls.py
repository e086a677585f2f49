"""A wire with TLS on it: the same control over what is read and when, and over which segments leave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

from engine.sandbox._wire import Disconnected, Wire


def server_context(pem: str) -> ssl.SSLContext:
    """`pem`: a file with the certificate chain and its key. Raises OSError (ssl.SSLError is one)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.set_alpn_protocols(["http/1.1"])
    return context


class TlsWire(Wire):
    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(loop, sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._plain = bytearray()  # decrypted, not yet asked for
        self._ended = False

    async def open(self, timeout_s: float) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._send_raw(self._outgoing.read())
            except ssl.SSLError as error:
                with contextlib.suppress(OSError):
                    self._sock.send(self._outgoing.read())  # the alert
                raise Disconnected("no-tls") from error
            else:
                await self._send_raw(self._outgoing.read())
                return
            await super().wait_readable(timeout_s)
            self._take_in(64 * 1024)
            if self._ended:
                raise Disconnected("peer-closed")

    async def receive_into(self, view: memoryview, timeout_s: float) -> int:
        if not self._plain and not self._ended:
            await self.wait_readable(timeout_s)
        count = min(len(view), len(self._plain))
        view[:count] = self._plain[:count]
        del self._plain[:count]
        return count

    async def wait_readable(self, timeout_s: float) -> None:
        """Until there are decrypted bytes, or the stream has ended: tickets and the like are nothing to read."""
        while not self._pull(256 * 1024) and not self._ended:
            await super().wait_readable(timeout_s)

    def unread_bytes(self) -> int:
        """What was received and nobody has asked for, records taken off."""
        if queued := super().unread_bytes():
            self._pull(queued)
        return len(self._plain)

    def end_sending(self) -> None:
        self._say_goodbye()
        super().end_sending()

    def close(self) -> None:
        self._say_goodbye()
        super().close()

    def _sealed(self, data: bytes | memoryview) -> bytes:
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]
        return self._outgoing.read()

    def _say_goodbye(self) -> None:
        with contextlib.suppress(OSError):  # ssl.SSLError is one: not shaken, or broken
            self._tls.unwrap()
        with contextlib.suppress(OSError):
            self._sock.send(self._outgoing.read())

    def _take_in(self, most: int) -> None:
        """Records off the socket. Raises Disconnected."""
        try:
            data = self._sock.recv(most)
        except BlockingIOError:
            return
        except OSError as error:
            raise Disconnected("peer-reset") from error
        self._incoming.write(data)
        self._ended = self._ended or not data

    def _pull(self, most: int) -> bool:
        """Whether there are decrypted bytes, when at most `most` bytes of records were taken in. Raises Disconnected."""
        if not self._ended:
            self._take_in(most)
        try:
            while data := self._tls.read(256 * 1024):
                self._plain += data
            self._ended = True
        except (ssl.SSLWantReadError, ssl.SSLSyscallError):
            pass
        except ssl.SSLZeroReturnError:
            self._ended = True
        except ssl.SSLError as error:
            raise Disconnected("peer-reset") from error
        return bool(self._plain)
