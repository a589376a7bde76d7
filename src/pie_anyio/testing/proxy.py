# SPDX-License-Identifier: Apache-2.0
"""``CutProxy``: a network that misbehaves to order, between a client and an engine.

Everything it does is scripted in bytes and connections, so that what happened once happens again. Time comes into it
only where a script asks for a delay, and then through a ``sleep`` that can be replaced.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Self, TypeAlias

import anyio
import attrs
from anyio import (
    AsyncContextManagerMixin,
    BrokenResourceError,
    ClosedResourceError,
    ConnectionFailed,
    EndOfStream,
    Event,
    aclose_forcefully,
    create_task_group,
    create_tcp_listener,
)
from anyio.abc import ByteStream, ByteStreamConnectable, Listener, SocketAttribute, TaskGroup
from anyio.lowlevel import checkpoint

from .._flow.scopes import raise_single
from .._transport.endpoint import EndpointLike, parse_endpoint
from .faulty import WrappedStream
from .streams import MemoryByteStream

__all__ = ["CutProxy", "Link", "LinkScript", "Passage"]

_LOST: Final = (BrokenResourceError, ClosedResourceError, OSError)
_UNDISTURBED_BYTES: Final = 262_144
_LINGER_NOT: Final = struct.pack("ii", 1, 0)
"""Closing a socket with this option set sends a reset, and drops what is under way."""


@attrs.frozen(kw_only=True)
class Passage:
    """What happens to the bytes of one direction of one connection; by default nothing."""

    cut_after: int | None = None
    """The connection ends as soon as so many bytes have passed in this direction; what follows is lost."""
    reset: bool = False
    """That end is a reset, which also drops what is under way; otherwise both sides read to the end of the stream.
    A peer over TCP may meet the end of the stream before the reset: on asyncio, sockets are closed in two steps."""
    piece: int | None = None
    """At most so many bytes pass at a time; with ``delay``, a throttle."""
    delay: float = 0.0
    """Seconds before each piece, on the proxy's ``sleep``."""
    behind: tuple[int, int] | None = None
    """``(connection, bytes)``: nothing passes before that connection has carried so many bytes in this direction, or
    is over. This is how connections are put into another order."""
    before: Callable[[int], Awaitable[None]] | None = None
    """Awaited before each piece, with the number of bytes that have passed: to wait for whatever a test wants."""


@attrs.frozen(kw_only=True)
class LinkScript:
    """What happens to one connection."""

    to_engine: Passage = Passage()
    to_client: Passage = Passage()
    refused: bool = False
    """It is not made at all."""


Script: TypeAlias = Callable[[int], LinkScript] | Sequence[LinkScript]
"""A script for each connection: by its number, from 1, or in order; those behind the last are left alone."""


class Link:
    """One connection through the proxy, and what it has carried."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.to_engine = 0
        """Bytes that have passed towards the engine."""
        self.to_client = 0
        """Bytes that have passed towards the client."""
        self.over = False
        """Whether it has ended, by the script or otherwise."""
        self.was_cut = False
        """Whether the proxy ended it."""

    def __repr__(self) -> str:
        state = "cut" if self.was_cut else "over" if self.over else "open"
        return f"<Link {self.number} {state}, {self.to_engine} bytes to the engine, {self.to_client} to the client>"


class CutProxy(ByteStreamConnectable, AsyncContextManagerMixin):
    """A network between client and engine that cuts, delays, throttles and reorders, as a script says.

    In memory, give the proxy to a client in place of a URL::

        proxy = CutProxy(engine.connectable, [LinkScript(to_client=Passage(cut_after=500))])
        async with PieClient(proxy) as client: ...

    Over TCP on the loopback interface, for code that takes URLs and for other clients, enter it::

        async with CutProxy(engine.url, script) as proxy, PieClient(proxy.url) as client: ...

    Args:
        target: the engine: a ``ws://`` URL or a connectable.
        script: what happens to which connection; by default nothing to any.
        sleep: what a delay waits with.
    """

    def __init__(
        self,
        target: EndpointLike,
        script: Script = (),
        *,
        sleep: Callable[[float], Awaitable[object]] = anyio.sleep,
    ) -> None:
        self.links: list[Link] = []
        """The connections so far, in order."""
        self._target = parse_endpoint(target)
        self._scheme = target.partition("://")[0] if isinstance(target, str) else "ws"
        self._script = script
        self._sleep = sleep
        self._streams: list[_LinkStream] = []
        self._changed = Event()
        self._url: str | None = None

    def __repr__(self) -> str:
        return f"<CutProxy to {self._target.name}, {len(self.links)} connections so far>"

    # --- for tests -------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where to connect to, while the proxy is entered."""
        if self._url is None:
            msg = "the proxy has no URL: enter it with `async with`, or give it to a client as it is"
            raise RuntimeError(msg)
        return self._url

    @property
    def cuts(self) -> int:
        """How many connections the proxy has ended so far."""
        return sum(link.was_cut for link in self.links)

    async def cut(self, number: int | None = None, *, reset: bool = False) -> None:
        """End a connection now, or all of them.

        Cancellation: they are ended all the same.
        """
        for stream in list(self._streams):
            if number in (None, stream.link.number):
                await stream.cut(reset=reset)
        await checkpoint()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on this proxy holds; it is looked at whenever bytes have passed or a link is over.

        Cancellation: nothing is lost.
        """
        await checkpoint()
        while not condition():
            await self._changed.wait()

    # --- for clients -----------------------------------------------------------------------------------------------

    async def connect(self) -> ByteStream:
        """Make one more connection to the engine, with what the script has for it.

        Raises:
            ConnectionFailed: the script refuses it, or the engine cannot be reached.

        Cancellation: no connection is made.
        """
        return await self._connect()

    async def _connect(self) -> _LinkStream:
        link = Link(len(self.links) + 1)
        self.links.append(link)
        script = self._find(link.number)
        try:
            if script.refused:
                await checkpoint()
                msg = f"connection {link.number} is refused by the script"
                raise ConnectionFailed(msg)
            inner = await self._target.connectable.connect()
        except BaseException:
            self._end(link)
            raise
        stream = _LinkStream(self, inner, link, script)
        self._streams.append(stream)
        return stream

    def _find(self, number: int) -> LinkScript:
        if callable(self._script):
            return self._script(number)
        return self._script[number - 1] if number <= len(self._script) else LinkScript()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        with raise_single(_several_errors) as single:
            async with await create_tcp_listener(local_host="127.0.0.1") as listener:
                port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - not the `extra` that the rule means
                self._url = f"{self._scheme}://127.0.0.1:{port}{self._target.target}"
                async with create_task_group() as tasks:
                    tasks.start_soon(self._listen, listener, tasks)
                    with single.body:
                        yield self
                    tasks.cancel_scope.cancel()

    async def _listen(self, listener: Listener[Any], tasks: TaskGroup) -> None:
        await listener.serve(self._serve, tasks)

    async def _serve(self, client: ByteStream) -> None:
        """Couple one client that came over TCP with its connection to the engine, until either ends."""
        engine: _LinkStream | None = None
        try:
            engine = await self._connect()
            async with create_task_group() as tasks:
                tasks.start_soon(_pump, client, engine, tasks)
                tasks.start_soon(_pump, engine, client, tasks)
        except (ConnectionFailed, OSError):
            _set_reset(client)
        finally:
            try:
                if engine is not None:
                    if engine.was_reset:
                        _set_reset(client)
                    await aclose_forcefully(engine)
            finally:
                await aclose_forcefully(client)

    # --- for links -------------------------------------------------------------------------------------------------

    async def admit(self, stream: _LinkStream, passage: Passage, direction: str) -> None:
        """Hold a piece back for as long as its script says (called by the link)."""
        if passage.behind is not None:
            number, count = passage.behind
            await self.wait_until(lambda: stream.link.over or self._has_passed(number, direction, count))
        if passage.delay:
            await self._sleep(passage.delay)
        if passage.before is not None:
            await passage.before(getattr(stream.link, direction))

    def _has_passed(self, number: int, direction: str, count: int) -> bool:
        if number > len(self.links):
            return False
        link = self.links[number - 1]
        return link.over or getattr(link, direction) >= count

    def note(self) -> None:
        """Wake those who wait for something to happen here (called by the links)."""
        self._changed.set()
        self._changed = Event()

    def _end(self, link: Link) -> None:
        link.over = True
        self.note()

    def forget(self, stream: _LinkStream) -> None:
        """Note that a link is over (called by the link)."""
        if stream in self._streams:
            self._streams.remove(stream)
            self._end(stream.link)


class _LinkStream(WrappedStream):
    """The client's end of one connection; owns no task."""

    def __init__(self, proxy: CutProxy, inner: ByteStream, link: Link, script: LinkScript) -> None:
        super().__init__(inner)
        self.link = link
        self.was_reset: bool = False
        self._proxy = proxy
        self._script = script
        self._held = b""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive what the script lets through.

        Cancellation: nothing is lost.
        """
        passage = self._script.to_client
        if not self._held:
            await self._meet_end(passage, self.link.to_client)
            try:
                self._held = await self.inner.receive(_room(passage, self.link.to_client, max_bytes))
            except ClosedResourceError:
                self._raise_if_cut()  # by the other direction, while this one waited
                raise
        else:
            await checkpoint()
        # Kept on the object: a cancellation here must not lose what has been read.
        await self._proxy.admit(self, passage, "to_client")
        self._raise_if_cut()
        data, self._held = self._held[:max_bytes], self._held[max_bytes:]
        self.link.to_client += len(data)
        self._proxy.note()
        if _at_end(passage, self.link.to_client):
            await self.cut(reset=passage.reset)
        return data

    async def send(self, item: bytes) -> None:
        """Send what the script lets through, piece by piece.

        Cancellation: a part of it may have been sent.
        """
        passage, rest = self._script.to_engine, item
        while rest:
            await self._meet_end(passage, self.link.to_engine, sending=True)
            size = _room(passage, self.link.to_engine, len(rest))
            await self._proxy.admit(self, passage, "to_engine")
            self._raise_if_cut(sending=True)
            await self.inner.send(rest[:size])
            rest = rest[size:]
            self.link.to_engine += size
            self._proxy.note()
            if _at_end(passage, self.link.to_engine):
                await self.cut(reset=passage.reset)

    async def aclose(self) -> None:
        """Close the connection.

        Cancellation: it is closed all the same.
        """
        self._proxy.forget(self)
        await self.inner.aclose()

    async def cut(self, *, reset: bool) -> None:
        """End the connection for both sides. Idempotent."""
        if self.link.over:
            return
        self.link.was_cut = True
        self.was_reset = reset
        self._proxy.forget(self)
        if reset:
            _abort(self.inner)
        await aclose_forcefully(self.inner)

    async def _meet_end(self, passage: Passage, carried: int, *, sending: bool = False) -> None:
        """Cut a link whose last byte has passed, or none was to; and fail where it is cut."""
        if _at_end(passage, carried):
            await self.cut(reset=passage.reset)
        if self.link.was_cut:
            await checkpoint()
            self._raise_if_cut(sending=sending)

    def _raise_if_cut(self, *, sending: bool = False) -> None:
        if self.link.was_cut:
            raise BrokenResourceError if sending or self.was_reset else EndOfStream


def _at_end(passage: Passage, carried: int) -> bool:
    return passage.cut_after is not None and carried >= passage.cut_after


def _room(passage: Passage, carried: int, wanted: int) -> int:
    """Give the size of the next piece."""
    size = wanted if passage.piece is None else min(wanted, passage.piece)
    return size if passage.cut_after is None else min(size, passage.cut_after - carried)


def _abort(stream: ByteStream) -> None:
    """Have a stream break for its other end too when it is closed."""
    while isinstance(stream, WrappedStream):
        stream = stream.inner
    if isinstance(stream, MemoryByteStream):
        stream.abort()
    else:
        _set_reset(stream)


def _set_reset(stream: ByteStream) -> None:
    raw = stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610 - as above
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)


async def _pump(source: ByteStream, sink: ByteStream, tasks: TaskGroup) -> None:
    """Carry bytes until either end is over, and then end both directions."""
    try:
        while True:
            await sink.send(await source.receive(_UNDISTURBED_BYTES))
    except (EndOfStream, *_LOST):
        tasks.cancel_scope.cancel()


def _several_errors(group: BaseExceptionGroup[BaseException]) -> Exception:
    return RuntimeError(f"the proxy failed in {len(group.exceptions)} places; this is a bug")
