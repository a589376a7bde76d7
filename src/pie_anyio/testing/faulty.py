# SPDX-License-Identifier: Apache-2.0
"""Wrappers that make a byte stream misbehave: cut, trickle, stall, vanish, block in the middle of a write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream, Event
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint


class Gate:
    """A door that a test opens and closes, and that others wait at."""

    def __init__(self, *, is_open: bool = True) -> None:
        self._opened = Event()
        self._arrived = Event()
        self._waiting = 0
        if is_open:
            self._opened.set()

    @property
    def is_open(self) -> bool:
        """Tell whether `passed` returns at once."""
        return self._opened.is_set()

    def open(self) -> None:
        """Let everybody through who waits or comes later."""
        self._opened.set()

    def close(self) -> None:
        """Hold back whoever comes from now on."""
        if self._opened.is_set():
            self._opened = Event()

    async def passed(self) -> None:
        """Wait until the gate is open.

        Cancellation: nothing happens.
        """
        await checkpoint()
        while not self._opened.is_set():
            self._waiting += 1
            self._arrived.set()
            try:
                await self._opened.wait()
            finally:
                self._waiting -= 1
                if not self._waiting:
                    self._arrived = Event()

    async def somebody_waits(self) -> None:
        """Wait until somebody is held back at the gate.

        Cancellation: nothing happens.
        """
        await self._arrived.wait()


class WrappedStream(ByteStream):
    """Pass everything on to another stream; the base of the wrappers that do not."""

    def __init__(self, inner: ByteStream) -> None:
        self.inner = inner

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The attributes of the inner stream."""
        attributes = self.inner.extra_attributes  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return cast(Mapping[Any, Callable[[], Any]], attributes)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive from the inner stream."""
        return await self.inner.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        """Send to the inner stream."""
        await self.inner.send(item)

    async def send_eof(self) -> None:
        """End the inner stream's direction."""
        await self.inner.send_eof()

    async def aclose(self) -> None:
        """Close the inner stream."""
        await self.inner.aclose()


class CutStream(WrappedStream):
    """Lose the connection after so many bytes; the peer sees the end of the stream.

    Args:
        inner: the stream to cut.
        after_received: bytes to receive before the cut; None for no limit.
        after_sent: bytes to send before the cut, which may fall inside an item; None for no limit.
        error: what this side's `receive` meets then: "eof" or "broken". A `send` always breaks.
    """

    def __init__(
        self,
        inner: ByteStream,
        *,
        after_received: int | None = None,
        after_sent: int | None = None,
        error: Literal["eof", "broken"] = "eof",
    ) -> None:
        super().__init__(inner)
        self._to_receive = after_received
        self._to_send = after_sent
        self._error = error
        self.is_cut: bool = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive up to the cut."""
        if self._to_receive is not None:
            max_bytes = min(max_bytes, self._to_receive)
        if self.is_cut or max_bytes == 0:
            await self._cut()
            raise EndOfStream if self._error == "eof" else BrokenResourceError
        try:
            data = await self.inner.receive(max_bytes)
        except ClosedResourceError:
            # A receive that was under way when the other direction reached the cut.
            if self.is_cut:
                raise (EndOfStream if self._error == "eof" else BrokenResourceError) from None
            raise
        if self._to_receive is not None:
            self._to_receive -= len(data)
        return data

    async def send(self, item: bytes) -> None:
        """Send up to the cut."""
        if self.is_cut:
            await checkpoint()
            raise BrokenResourceError
        if self._to_send is None or len(item) <= self._to_send:
            await self.inner.send(item)
            if self._to_send is not None:
                self._to_send -= len(item)
            return
        part, self._to_send = item[: self._to_send], 0
        await self.inner.send(part)
        await self._cut()
        raise BrokenResourceError

    async def _cut(self) -> None:
        self.is_cut = True
        await self.inner.aclose()


class TrickleStream(WrappedStream):
    """Move few bytes at a time, to split every message at every place.

    Args:
        inner: the stream to slow down.
        size: bytes per receive and per inner send.
    """

    def __init__(self, inner: ByteStream, size: int = 1) -> None:
        super().__init__(inner)
        self._size = size

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive at most `size` bytes."""
        return await self.inner.receive(min(max_bytes, self._size))

    async def send(self, item: bytes) -> None:
        """Send `size` bytes at a time; a cancelled send has sent a part."""
        for start in range(0, len(item), self._size):
            await self.inner.send(item[start : start + self._size])


class StallStream(WrappedStream):
    """Stop either direction by closing its gate; nothing is lost, it only comes later."""

    def __init__(self, inner: ByteStream) -> None:
        super().__init__(inner)
        self.receiving: Gate = Gate()
        self.sending: Gate = Gate()
        self._held = b""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive, but only while the `receiving` gate is open."""
        await self.receiving.passed()
        if not self._held:
            # Kept on the object: a cancellation at the gate below must not lose what has been read.
            self._held = await self.inner.receive(max_bytes)
            await self.receiving.passed()
        else:
            await checkpoint()
        data, self._held = self._held[:max_bytes], self._held[max_bytes:]
        return data

    async def send(self, item: bytes) -> None:
        """Send, but only while the `sending` gate is open."""
        await self.sending.passed()
        await self.inner.send(item)


class HalfOpenStream(WrappedStream):
    """After `vanish`, the peer is gone without a word: sends disappear, and nothing ever arrives."""

    def __init__(self, inner: ByteStream, *, vanished: bool = False) -> None:
        super().__init__(inner)
        self.vanished: bool = vanished
        self.swallowed: int = 0
        self._closed = Event()

    def vanish(self) -> None:
        """Let the peer disappear now, also for a receive that is under way."""
        self.vanished = True

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive, or wait for ever."""
        try:
            if not self.vanished:
                data = await self.inner.receive(max_bytes)
                if not self.vanished:
                    return data
        except (EndOfStream, BrokenResourceError):
            # The end of the connection does not get through either.
            if not self.vanished:
                raise
        await self._closed.wait()
        raise ClosedResourceError

    async def send(self, item: bytes) -> None:
        """Send, or count and drop."""
        if not self.vanished:
            await self.inner.send(item)
            return
        await checkpoint()
        if self._closed.is_set():
            raise ClosedResourceError
        self.swallowed += len(item)

    async def send_eof(self) -> None:
        """End the direction, which the peer does not see once it has vanished."""
        if self.vanished:
            await checkpoint()
        else:
            await self.inner.send_eof()

    async def aclose(self) -> None:
        """Close the stream and wake the one who waits in `receive`."""
        self._closed.set()
        await self.inner.aclose()


class SlowWriteStream(WrappedStream):
    """Block in the middle of each write until the gate `writing` is open; a cancelled write has sent its head.

    This is what a trio socket does, and what makes an interrupted frame: some bytes are out, the rest never comes.

    Args:
        inner: the stream to slow down.
        head: bytes of each item that are sent before the gate.
    """

    def __init__(self, inner: ByteStream, head: int = 1) -> None:
        super().__init__(inner)
        self.writing: Gate = Gate(is_open=False)
        self._head = head

    async def send(self, item: bytes) -> None:
        """Send the head, wait at the gate, send the rest."""
        await self.inner.send(item[: self._head])
        await self.writing.passed()
        if len(item) > self._head:
            await self.inner.send(item[self._head :])
