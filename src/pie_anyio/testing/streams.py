# SPDX-License-Identifier: Apache-2.0
"""Byte streams in memory, with the manners of sockets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from anyio import (
    BrokenResourceError,
    ClosedResourceError,
    ConnectionFailed,
    EndOfStream,
    Event,
    ResourceGuard,
    create_task_group,
)
from anyio.abc import ByteStream, ByteStreamConnectable, Listener, TaskGroup
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled


class _Pipe:
    """One direction: a bounded buffer between one sender and one receiver."""

    def __init__(self, max_buffer: int) -> None:
        self.buffer: bytearray = bytearray()
        self.max_buffer = max_buffer
        self.ended = False  # by the sender: what is buffered can still be read
        self.abandoned = False  # by the receiver: nothing will be read any more
        self.broken = False  # for both, and what is buffered is lost
        self._changed = Event()

    def change(self) -> None:
        """Wake both sides; each looks again for what it waits for."""
        self._changed.set()
        self._changed = Event()

    async def wait(self) -> None:
        """Wait for the next change. Cancellation: nothing is lost."""
        await self._changed.wait()


class MemoryByteStream(ByteStream):
    """One end of a connection in memory; made by `memory_byte_stream_pair`.

    Behaves as a socket does: `send` blocks while the peer's buffer is full, and a send that is cancelled has sent a
    part; `send_eof` closes one direction; after `aclose` the peer reads what is buffered and then the end, and its
    sends fail.
    """

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False
        self._receiving = ResourceGuard("receiving from")
        self._sending = ResourceGuard("sending to")

    @property
    def closed(self) -> bool:
        """Tell whether this end has been closed."""
        return self._closed

    @property
    def buffered(self) -> int:
        """The number of bytes that the peer has sent and this end has not yet received."""
        return len(self._incoming.buffer)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive what is there, at most `max_bytes`, or wait for it.

        Raises:
            EndOfStream: the peer has ended its direction.
            ClosedResourceError: this end is closed.
            BrokenResourceError: the connection was aborted.
            BusyResourceError: another task is receiving.
            ValueError: `max_bytes` is less than 1.

        Cancellation: nothing is lost.
        """
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        pipe = self._incoming
        with self._receiving:
            await checkpoint_if_cancelled()
            while not self._readable():
                await pipe.wait()
            data = bytes(pipe.buffer[:max_bytes])
            del pipe.buffer[:max_bytes]
            pipe.change()
            await cancel_shielded_checkpoint()
            return data

    async def send(self, item: bytes) -> None:
        """Send all of `item`, waiting for room as needed.

        Raises:
            ClosedResourceError: this end is closed, or its direction was ended.
            BrokenResourceError: the peer is closed, or the connection was aborted.
            BusyResourceError: another task is sending.

        Cancellation: any part of `item` may have been sent, from none to all but the last byte.
        """
        pipe, rest = self._outgoing, memoryview(item)
        with self._sending:
            await checkpoint_if_cancelled()
            self._check_writable()
            while rest:
                while len(pipe.buffer) >= pipe.max_buffer:
                    await pipe.wait()
                    self._check_writable()
                room = pipe.max_buffer - len(pipe.buffer)
                pipe.buffer += rest[:room]
                rest = rest[room:]
                pipe.change()
            await cancel_shielded_checkpoint()

    async def send_eof(self) -> None:
        """End this end's direction; the peer reads what is buffered, then the end. May be called again.

        Cancellation: the direction is ended all the same.
        """
        if self._closed:
            raise ClosedResourceError
        self._outgoing.ended = True
        self._outgoing.change()
        await checkpoint()

    async def aclose(self) -> None:
        """Close this end and wake everybody who waits at either; may be called again.

        Cancellation: the end is closed all the same.
        """
        self.close()
        await checkpoint()

    def close(self) -> None:
        """Close this end, synchronously."""
        if not self._closed:
            self._closed = True
            self._outgoing.ended = True
            self._incoming.abandoned = True
            self._incoming.buffer.clear()
            self._wake()

    def abort(self) -> None:
        """Break the connection for both ends, as a reset does: what is buffered is lost."""
        for pipe in (self._incoming, self._outgoing):
            pipe.broken = True
            pipe.buffer.clear()
        self._wake()

    def _wake(self) -> None:
        self._incoming.change()
        self._outgoing.change()

    def _readable(self) -> bool:
        if self._closed:
            raise ClosedResourceError
        if self._incoming.broken:
            raise BrokenResourceError
        if self._incoming.buffer:
            return True
        if self._incoming.ended:
            raise EndOfStream
        return False

    def _check_writable(self) -> None:
        if self._outgoing.broken and not self._closed:
            raise BrokenResourceError
        if self._outgoing.ended:
            raise ClosedResourceError
        if self._outgoing.abandoned:
            raise BrokenResourceError


def memory_byte_stream_pair(max_buffer: int = 65536) -> tuple[MemoryByteStream, MemoryByteStream]:
    """Make the two ends of a connection in memory.

    Args:
        max_buffer: bytes that each direction holds before `send` blocks.
    """
    if max_buffer < 1:
        raise ValueError(f"max_buffer must be at least 1, not {max_buffer}")
    one, other = _Pipe(max_buffer), _Pipe(max_buffer)
    return MemoryByteStream(one, other), MemoryByteStream(other, one)


class MemoryListener(Listener[ByteStream]):
    """The server's side of a `MemoryConnectable`."""

    def __init__(self) -> None:
        self._backlog: deque[ByteStream] = deque()
        self._arrived = Event()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Tell whether new connections are refused."""
        return self._closed

    async def accept(self) -> ByteStream:
        """Wait for the next connection and return its server end.

        Raises:
            ClosedResourceError: the listener is closed.

        Cancellation: no connection is lost, the next call gets it.
        """
        await checkpoint()
        while not self._backlog:
            if self._closed:
                raise ClosedResourceError
            self._arrived = Event()
            await self._arrived.wait()
        return self._backlog.popleft()

    async def serve(self, handler: Callable[[ByteStream], Any], task_group: TaskGroup | None = None) -> None:
        """Run `handler` in a task of its own for each connection, until the listener is closed.

        Raises:
            ClosedResourceError: the listener was closed; the handlers have ended if no task group was given.

        Cancellation: without a task group the handlers are cancelled too.
        """
        if task_group is None:
            async with create_task_group() as own_group:
                await self._serve(handler, own_group)
            # The group wraps what the loop raised, which must come out as with a caller's group.
            raise ClosedResourceError
        await self._serve(handler, task_group)
        raise ClosedResourceError

    async def _serve(self, handler: Callable[[ByteStream], Any], task_group: TaskGroup) -> None:
        while True:
            try:
                stream = await self.accept()
            except ClosedResourceError:
                return
            task_group.start_soon(handler, stream)

    async def aclose(self) -> None:
        """Refuse new connections and close those that nobody has accepted.

        Cancellation: the listener is closed all the same.
        """
        self._closed = True
        self._arrived.set()
        while self._backlog:
            await self._backlog.popleft().aclose()
        await checkpoint()

    def _add(self, stream: ByteStream) -> None:
        self._backlog.append(stream)
        self._arrived.set()


class MemoryConnectable(ByteStreamConnectable):
    """Connect to a listener in the same program, without sockets.

    Args:
        max_buffer: bytes that each direction of a connection holds.
        wrap_client: applied to the client's end of each connection, to have it misbehave.
        wrap_server: the same for the server's end.
    """

    def __init__(
        self,
        max_buffer: int = 65536,
        *,
        wrap_client: Callable[[ByteStream], ByteStream] | None = None,
        wrap_server: Callable[[ByteStream], ByteStream] | None = None,
    ) -> None:
        self.listener: MemoryListener = MemoryListener()
        self.connections: int = 0
        self._max_buffer = max_buffer
        self._wrap_client = wrap_client
        self._wrap_server = wrap_server

    def __repr__(self) -> str:
        state = "refusing" if self.listener.closed else "listening"
        return f"<MemoryConnectable {state}, {self.connections} connections so far>"

    async def connect(self) -> ByteStream:
        """Make a connection, hand its other end to the listener, and return this end.

        Raises:
            ConnectionFailed: the listener is closed.

        Cancellation: no connection is made.
        """
        await checkpoint()
        if self.listener.closed:
            raise ConnectionFailed("connecting in memory: the listener is closed")
        ours, theirs = memory_byte_stream_pair(self._max_buffer)
        self.connections += 1
        self.listener._add(self._wrap_server(theirs) if self._wrap_server else theirs)
        return self._wrap_client(ours) if self._wrap_client else ours
