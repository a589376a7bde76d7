# SPDX-License-Identifier: Apache-2.0
"""A plain socket without a layer in between: a send that can be done at once is done at once.

anyio's own socket stream goes through the event loop at least once for every send, since it may have to wait. A small
message on a quiet connection never has to wait, and the detour costs more than the sending. So the connected socket is
taken over from anyio's stream, and anyio is only asked to wait for it where it is not ready.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from anyio import (
    BrokenResourceError,
    ClosedResourceError,
    EndOfStream,
    notify_closing,
    wait_readable,
    wait_writable,
)
from anyio.abc import ByteStream, SocketAttribute, SocketStream
from anyio.lowlevel import checkpoint

SUPPORTED: Final = os.name == "posix"
"""Elsewhere the loops do not wait for sockets of their own accord."""


class DirectSocket(ByteStream):
    """A connected, non-blocking stream socket.

    Args:
        sock: a duplicate of the socket of `owner`.
        owner: the stream that it was taken from, which is closed with it and not used otherwise.
    """

    def __init__(self, sock: socket.socket, owner: ByteStream) -> None:
        self._socket = sock
        self._owner = owner
        self._closed = False
        self._empty = True  # nothing to read, as far as is known

    def send_now(self, data: bytes) -> int:
        """Send as much as the system takes at once, without waiting; give the number of bytes.

        Trouble is left for the next ``send`` or ``receive`` to report.
        """
        try:
            return 0 if self._closed else self._socket.send(data)
        except OSError:
            return 0

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Wait for data and take it; always passes through the event loop once, so a flood starves nobody."""
        while True:
            self._check_open()
            # Whoever was woken by the last data goes first: looking for more before that would hold them up, and asking
            # the loop to look takes as long as looking. So it is only asked where there was nothing.
            await (wait_readable(self._socket) if self._empty else checkpoint())
            self._empty = False
            self._check_open()
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                self._empty = True
                continue
            except OSError as exc:
                raise BrokenResourceError from exc
            if not data:
                raise EndOfStream
            return data

    async def send(self, item: bytes) -> None:
        """Send all of it, waiting where the system takes no more."""
        left = memoryview(item)
        await checkpoint()
        while left:
            self._check_open()
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                await wait_writable(self._socket)
            except OSError as exc:
                raise BrokenResourceError from exc

    async def send_eof(self) -> None:
        """Say that nothing more will be sent."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the peer was quicker
        await checkpoint()

    async def aclose(self) -> None:
        """Close the socket, and wake whoever waits for it."""
        if not self._closed:
            self._closed = True
            notify_closing(self._socket)
            self._socket.close()
        await self._owner.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedResourceError


def take_over(stream: ByteStream) -> ByteStream:
    """Take the socket of a stream that has just been connected; a stream without one is given back as it is.

    The stream must not have been read from, and is left alone until the end: on asyncio, closing it now would end the
    connection's outgoing direction with some versions of anyio (before 4.16).

    A stream that lies on top of another, such as TLS, names the socket of the one below as its own. Taking that would
    send in the clear what was to be encrypted, so nothing but a stream of sockets itself is looked into.
    """
    raw = stream.extra(SocketAttribute.raw_socket, None) if isinstance(stream, SocketStream) else None  # noqa: S610 - anyio's
    if raw is None or not SUPPORTED:
        return stream
    own = socket.socket(fileno=os.dup(raw.fileno()))
    own.setblocking(False)
    return DirectSocket(own, stream)
