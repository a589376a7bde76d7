# SPDX-License-Identifier: Apache-2.0
"""Streams in memory behave as sockets do."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.abc import ByteStream

from pie_anyio.testing.faulty import TrickleStream
from pie_anyio.testing.streams import MemoryConnectable, MemoryListener, memory_byte_stream_pair


async def raises(kind: type[BaseException], function: Any, *args: Any) -> None:
    with pytest.raises(kind):
        await function(*args)


async def cancelled(function: Any, *args: Any) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await function(*args)
    assert scope.cancelled_caught


# ----------------------------------------------------------------------------------------------------------- pair


async def test_bytes_go_both_ways() -> None:
    """What one end sends the other receives, in order."""
    one, other = memory_byte_stream_pair()
    await one.send(b"ab")
    await one.send(b"c")
    assert other.buffered == 3
    assert await other.receive() == b"abc"
    await other.send(b"d")
    assert await one.receive() == b"d"


async def test_receive_takes_no_more_than_asked_for() -> None:
    """The rest stays for the next call, and asking for nothing is an error."""
    one, other = memory_byte_stream_pair()
    await one.send(b"abc")
    assert await other.receive(2) == b"ab"
    assert await other.receive(2) == b"c"
    await raises(ValueError, other.receive, 0)


def test_a_buffer_has_room_for_a_byte_at_least() -> None:
    """A pair that could never carry anything is refused."""
    with pytest.raises(ValueError, match="at least 1"):
        memory_byte_stream_pair(0)


async def test_receive_waits_for_data() -> None:
    """A parked receiver gets what is sent later."""
    one, other = memory_byte_stream_pair()
    got = []

    async def receiver() -> None:
        got.append(await other.receive())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(receiver)
            await wait_all_tasks_blocked()
            await one.send(b"x")
    assert got == [b"x"]


async def test_send_blocks_while_the_buffer_is_full() -> None:
    """A large item passes through a small buffer piece by piece."""
    one, other = memory_byte_stream_pair(max_buffer=4)
    sent = False

    async def sender() -> None:
        nonlocal sent
        await one.send(b"0123456789")
        sent = True

    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(sender)
            await wait_all_tasks_blocked()
            assert other.buffered == 4
            got = b""
            while len(got) < 6:
                got += await other.receive(3)
                assert not sent
                await wait_all_tasks_blocked()
            await wait_all_tasks_blocked()
            assert sent
            got += await other.receive()
    assert got == b"0123456789"


async def test_a_cancelled_send_has_sent_a_part() -> None:
    """As on a trio socket: some bytes are out, the rest never comes."""
    one, other = memory_byte_stream_pair(max_buffer=4)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(one.send, b"0123456789")
            await wait_all_tasks_blocked()
            task_group.cancel_scope.cancel()
    assert await other.receive() == b"0123"
    await one.send(b"!")
    assert await other.receive() == b"!"


async def test_a_cancelled_receive_loses_nothing() -> None:
    """Data that is there stays there."""
    one, other = memory_byte_stream_pair()
    await one.send(b"x")
    await cancelled(other.receive)
    assert await other.receive() == b"x"


async def test_a_cancelled_scope_sends_nothing() -> None:
    """The check comes before the first byte."""
    one, other = memory_byte_stream_pair()
    await cancelled(one.send, b"x")
    assert other.buffered == 0


async def test_send_eof_closes_one_direction() -> None:
    """The peer reads the rest and the end, and can still answer."""
    one, other = memory_byte_stream_pair()
    await one.send(b"x")
    await one.send_eof()
    await one.send_eof()
    assert await other.receive() == b"x"
    await raises(anyio.EndOfStream, other.receive)
    await raises(anyio.ClosedResourceError, one.send, b"y")
    await other.send(b"z")
    assert await one.receive() == b"z"


async def test_closing_ends_the_stream_for_the_peer() -> None:
    """The peer reads what was sent, then the end; its own sends break."""
    one, other = memory_byte_stream_pair()
    await one.send(b"x")
    await one.aclose()
    await one.aclose()
    assert one.closed
    assert not other.closed
    assert await other.receive() == b"x"
    await raises(anyio.EndOfStream, other.receive)
    await raises(anyio.BrokenResourceError, other.send, b"y")


async def test_a_closed_end_refuses_everything() -> None:
    """Each method of a closed end says so."""
    one, _other = memory_byte_stream_pair()
    one.close()
    await raises(anyio.ClosedResourceError, one.receive)
    await raises(anyio.ClosedResourceError, one.send, b"x")
    await raises(anyio.ClosedResourceError, one.send_eof)


@pytest.mark.parametrize(
    ("who", "receive_error", "send_error"),
    [
        ("own", anyio.ClosedResourceError, anyio.ClosedResourceError),
        ("peer", anyio.EndOfStream, anyio.BrokenResourceError),
        ("abort", anyio.BrokenResourceError, anyio.BrokenResourceError),
    ],
)
async def test_closing_wakes_everybody(
    who: str, receive_error: type[Exception], send_error: type[Exception]
) -> None:
    """A parked receiver and a parked sender are told, whichever end is closed."""
    one, other = memory_byte_stream_pair(max_buffer=1)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(raises, receive_error, one.receive)
            task_group.start_soon(raises, send_error, one.send, b"too long")
            await wait_all_tasks_blocked()
            match who:
                case "own":
                    await one.aclose()
                case "peer":
                    await other.aclose()
                case _:
                    other.abort()


async def test_an_abort_loses_what_is_buffered() -> None:
    """Both ends are broken until they are closed."""
    one, other = memory_byte_stream_pair()
    await one.send(b"x")
    one.abort()
    await raises(anyio.BrokenResourceError, other.receive)
    await raises(anyio.BrokenResourceError, one.receive)
    await raises(anyio.BrokenResourceError, one.send, b"x")
    await one.aclose()
    await raises(anyio.ClosedResourceError, one.send, b"x")


async def test_a_second_user_is_refused() -> None:
    """Two receivers, or two senders, are a mistake that is told at once."""
    one, _other = memory_byte_stream_pair(max_buffer=1)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(one.receive)
            task_group.start_soon(one.send, b"too long")
            await wait_all_tasks_blocked()
            await raises(anyio.BusyResourceError, one.receive)
            await raises(anyio.BusyResourceError, one.send, b"x")
            task_group.cancel_scope.cancel()


# ---------------------------------------------------------------------------------------------------- connecting


async def test_a_connection_reaches_accept() -> None:
    """The listener gets the other end, whether it waits or comes later."""
    connectable = MemoryConnectable()
    ends: list[ByteStream] = []

    async def accept() -> None:
        ends.append(await connectable.listener.accept())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(accept)
            await wait_all_tasks_blocked()
            client = await connectable.connect()
        second = await connectable.connect()
        await accept()
        for stream, end in zip((client, second), ends, strict=True):
            await stream.send(b"x")
            assert await end.receive() == b"x"
    assert repr(connectable) == "<MemoryConnectable listening, 2 connections so far>"


async def test_an_accept_that_is_cancelled_loses_no_connection() -> None:
    """The connection waits for the next call."""
    connectable = MemoryConnectable()
    await connectable.connect()
    await cancelled(connectable.listener.accept)
    with anyio.fail_after(5):
        await connectable.listener.accept()


async def test_a_cancelled_connect_makes_no_connection() -> None:
    """The listener sees nothing of it."""
    connectable = MemoryConnectable()
    await cancelled(connectable.connect)
    assert connectable.connections == 0


@pytest.mark.parametrize("own_group", [True, False])
async def test_serve_runs_a_task_for_each_connection(own_group: bool) -> None:
    """Handlers run side by side, until the listener is closed."""
    connectable = MemoryConnectable()

    async def echo(stream: ByteStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send(data)

    async def serve() -> None:
        if own_group:
            await raises(anyio.ClosedResourceError, connectable.listener.serve, echo)
        else:
            await raises(anyio.ClosedResourceError, connectable.listener.serve, echo, task_group)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(serve)
            streams = [await connectable.connect() for _ in range(2)]
            for stream in reversed(streams):
                await stream.send(b"x")
                assert await stream.receive() == b"x"
            for stream in streams:
                await stream.aclose()
            await connectable.listener.aclose()


async def test_a_closed_listener_refuses_connections() -> None:
    """Parked and later accepts are told, unaccepted connections end, new ones fail."""
    connectable = MemoryConnectable()
    client = await connectable.connect()
    await connectable.listener.aclose()
    await raises(anyio.EndOfStream, client.receive)
    await raises(anyio.ConnectionFailed, connectable.connect)
    await raises(anyio.ClosedResourceError, connectable.listener.accept)
    assert repr(connectable) == "<MemoryConnectable refusing, 1 connections so far>"

    listener = MemoryListener()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(raises, anyio.ClosedResourceError, listener.accept)
            await wait_all_tasks_blocked()
            await listener.aclose()


async def test_either_end_can_be_wrapped() -> None:
    """Faults can be built into every connection of a connectable."""
    connectable = MemoryConnectable(
        wrap_client=lambda stream: TrickleStream(stream, 2), wrap_server=TrickleStream
    )
    client = await connectable.connect()
    server = await connectable.listener.accept()
    await client.send(b"abc")
    await server.send(b"abc")
    assert await server.receive() == b"a"
    assert await client.receive() == b"ab"
