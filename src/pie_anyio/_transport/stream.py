# SPDX-License-Identifier: Apache-2.0
"""One byte stream to an engine: backend errors become ours, and an interrupted write is remembered."""

from __future__ import annotations

import socket
import ssl
from typing import Final, cast

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream, aclose_forcefully, fail_after
from anyio.abc import ByteStream

from .._exceptions import ConnectError, ConnectionLost
from .direct import DirectSocket, take_over
from .endpoint import Endpoint

READ_BYTES: Final = 262_144

_BACKEND_ERRORS: Final = (BrokenResourceError, ClosedResourceError, OSError)


class Transport:
    """A connected stream. Only the reader task receives, only the writer task sends."""

    __slots__ = ("_stream", "broken", "name")

    def __init__(self, stream: ByteStream, name: str) -> None:
        self._stream = stream
        self.name: str = name
        self.broken: bool = False
        """A write was cut short: what the peer has of the current frame is unknown, so nothing can follow it."""

    async def receive(self) -> bytes | None:
        """Give the next bytes, or None at the end of the stream.

        Raises:
            ConnectionLost: the stream broke.

        Cancellation: no bytes are lost on a plain stream; under TLS the stream may not be used afterwards.
        """
        try:
            return await self._stream.receive(READ_BYTES)
        except EndOfStream:
            return None
        except _BACKEND_ERRORS as exc:
            raise self._lost(exc) from exc

    def send_now(self, data: bytes) -> int:
        """Send what can be sent without waiting; give the number of bytes, 0 where the stream has no such way."""
        return self._stream.send_now(data) if isinstance(self._stream, DirectSocket) else 0

    @property
    def is_direct(self) -> bool:
        """Whether ``send_now`` may send anything."""
        return isinstance(self._stream, DirectSocket)

    async def send(self, data: bytes) -> None:
        """Send all of ``data``.

        Raises:
            ConnectionLost: the stream broke.

        Cancellation: an unknown part of ``data`` was sent; the stream is marked broken.
        """
        complete = False
        try:
            await self._stream.send(data)
            complete = True
        except (*_BACKEND_ERRORS, EndOfStream) as exc:
            # Sending under TLS reads too, and so may be what finds that the peer has gone.
            raise self._lost(exc) from exc
        finally:
            self.broken = self.broken or not complete

    async def aclose(self) -> None:
        """Close at once, without any handshake. Idempotent.

        Cancellation: it is closed all the same.
        """
        self.broken = True
        try:
            await aclose_forcefully(self._stream)
        except _BACKEND_ERRORS:
            pass  # closing a broken stream cannot be helped any further

    def _lost(self, exc: BaseException) -> ConnectionLost:
        text = str(exc.__cause__ or exc) or "the peer closed it"
        return ConnectionLost(f"the connection to {self.name} broke: {text}")


async def open_transport(endpoint: Endpoint, timeout: float) -> Transport:
    """Connect within ``timeout`` seconds.

    Raises:
        ConnectError: refused, unknown host, TLS trouble, or too slow; the message says which and what to try.

    Cancellation: closes what was opened.
    """
    try:
        with fail_after(timeout):
            stream = await endpoint.connect()
            return Transport(stream if endpoint.tls else take_over(stream), endpoint.name)
    except TimeoutError as exc:
        msg = f"could not connect to {endpoint.name} within {timeout:g} s; is the address right, is a firewall between?"
        raise ConnectError(msg, url=endpoint.name) from exc
    except (*_BACKEND_ERRORS, EndOfStream, UnicodeError) as exc:
        # UnicodeError: what the name service says of a host name with an empty or overlong label.
        raise connect_error(endpoint, exc) from exc


def connect_error(endpoint: Endpoint, exc: BaseException) -> ConnectError:
    """Say what a failed attempt to connect means."""
    cause = _root(exc)
    if isinstance(cause, ssl.SSLCertVerificationError):
        text = f"its certificate is not trusted ({cause.verify_message}); pass ssl_context= with the right CA"
    elif isinstance(cause, ssl.SSLError):
        reason = getattr(cause, "reason", None) or cause  # only OpenSSL's own errors have one
        text = f"the TLS handshake failed ({reason}); an engine itself speaks ws://, a proxy wss://"
    elif isinstance(cause, (socket.gaierror, UnicodeError)):
        text = "the host name is unknown"
    elif isinstance(cause, ConnectionRefusedError):
        text = "the connection was refused; is the engine running, and on this port?"
    elif isinstance(cause, FileNotFoundError):
        text = "there is no such socket"
    elif isinstance(cause, PermissionError):
        text = "permission denied"
    else:
        hint = (
            " during the TLS handshake; an engine itself speaks ws://, a proxy wss://" if endpoint.tls else ""
        )
        text = str(cause) or f"the peer closed the connection{hint}"
    return ConnectError(f"could not connect to {endpoint.name}: {text}", url=endpoint.name)


def _root(exc: BaseException) -> BaseException:
    """Find the error that says most: anyio wraps attempts on several addresses into groups."""
    for _ in range(10):
        if isinstance(exc, BaseExceptionGroup):
            exc = cast("BaseExceptionGroup[BaseException]", exc).exceptions[0]
        elif exc.__cause__ is not None and not isinstance(exc, ssl.SSLError):
            exc = exc.__cause__
        else:
            break
    return exc
