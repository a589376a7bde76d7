# SPDX-License-Identifier: Apache-2.0
"""Each wrapper misbehaves in its own way, and in no other."""

from __future__ import annotations

from typing import Any, Literal

import anyio
import pytest
from anyio import TypedAttributeSet, typed_attribute, wait_all_tasks_blocked

from pie_anyio.testing.faulty import (
    CutStream,
    Gate,
    HalfOpenStream,
    SlowWriteStream,
    StallStream,
    TrickleStream,
    WrappedStream,
)
from pie_anyio.testing.streams import MemoryByteStream, memory_byte_stream_pair


async def raises(kind: type[BaseException], function: Any, *args: Any) -> None:
    with pytest.raises(kind):
        await function(*args)


class Attribute(TypedAttributeSet):
    name: str = typed_attribute()


class NamedStream(WrappedStream):
    @property
    def extra_attributes(self) -> dict[Any, Any]:
        return {Attribute.name: lambda: "named"}


async def test_a_plain_wrapper_changes_nothing() -> None:
    """Every method and attribute is passed on."""
    one, other = memory_byte_stream_pair()
    stream = WrappedStream(NamedStream(one))
    assert stream.extra(Attribute.name) == "named"
    await stream.send(b"ab")
    assert await other.receive() == b"ab"
    await other.send(b"cd")
    assert await stream.receive(1) == b"c"
    await stream.send_eof()
    await raises(anyio.EndOfStream, other.receive)
    await stream.aclose()
    assert one.closed


# ------------------------------------------------------------------------------------------------------------ gate


async def test_a_gate_holds_back_until_it_is_opened() -> None:
    """It can be closed again, and tells when somebody arrives."""
    gate = Gate()
    passed = 0

    async def walker() -> None:
        nonlocal passed
        await gate.passed()
        passed += 1

    with anyio.fail_after(5):
        await walker()
        gate.close()
        gate.close()
        assert not gate.is_open
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(walker)
            task_group.start_soon(walker)
            await gate.somebody_waits()
            await wait_all_tasks_blocked()
            assert passed == 1
            gate.open()
        assert passed == 3
        assert gate.is_open


async def test_a_gate_that_was_shut_again_still_holds() -> None:
    """A walker that was let go too late looks at the gate again, and one that gave up does not count as waiting."""
    gate = Gate(is_open=False)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(gate.passed)
            await gate.somebody_waits()
            gate.open()
            gate.close()
            await gate.somebody_waits()
            task_group.cancel_scope.cancel()
    with anyio.move_on_after(0) as scope:
        await gate.somebody_waits()
    assert scope.cancelled_caught


# ------------------------------------------------------------------------------------------------------------- cut


@pytest.mark.parametrize(
    ("error", "kind"), [("eof", anyio.EndOfStream), ("broken", anyio.BrokenResourceError)]
)
async def test_the_connection_is_cut_after_receiving(
    error: Literal["eof", "broken"], kind: type[Exception]
) -> None:
    """Exactly so many bytes come in, then the end; the peer sees it too."""
    one, other = memory_byte_stream_pair()
    stream = CutStream(one, after_received=3, error=error)
    await other.send(b"abcdef")
    assert await stream.receive(2) == b"ab"
    assert await stream.receive() == b"c"
    await raises(kind, stream.receive)
    await raises(kind, stream.receive)
    await raises(anyio.BrokenResourceError, stream.send, b"x")
    await raises(anyio.EndOfStream, other.receive)


async def test_the_connection_is_cut_in_the_middle_of_an_item() -> None:
    """The peer gets the bytes before the cut and then the end."""
    one, other = memory_byte_stream_pair()
    stream = CutStream(one, after_sent=5)
    await stream.send(b"abc")
    await raises(anyio.BrokenResourceError, stream.send, b"def")
    assert stream.is_cut
    assert await other.receive() == b"abcde"
    await raises(anyio.EndOfStream, other.receive)


async def test_without_limits_nothing_is_cut() -> None:
    """Each direction has a limit of its own, and a plain close stays a close."""
    one, other = memory_byte_stream_pair()
    stream = CutStream(one)
    await stream.send(b"abc")
    await other.send(b"def")
    assert await stream.receive() == b"def"
    assert await other.receive() == b"abc"
    await stream.aclose()
    await raises(anyio.ClosedResourceError, stream.receive)


@pytest.mark.parametrize(
    ("error", "kind"), [("eof", anyio.EndOfStream), ("broken", anyio.BrokenResourceError)]
)
async def test_a_cut_while_sending_ends_a_parked_receive(
    error: Literal["eof", "broken"], kind: type[Exception]
) -> None:
    """The reader learns of it as of a lost connection, not as of a stream that it closed itself."""
    one, _other = memory_byte_stream_pair()
    stream = CutStream(one, after_sent=0, error=error)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(raises, kind, stream.receive)
            await wait_all_tasks_blocked()
            await raises(anyio.BrokenResourceError, stream.send, b"x")


# --------------------------------------------------------------------------------------------------------- trickle


async def test_bytes_trickle_both_ways() -> None:
    """Receives are as small as asked for, sends arrive whole."""
    one, other = memory_byte_stream_pair()
    stream = TrickleStream(one)
    await stream.send(b"abc")
    assert await other.receive() == b"abc"
    await other.send(b"de")
    assert [await stream.receive(), await stream.receive()] == [b"d", b"e"]


# ----------------------------------------------------------------------------------------------------------- stall


async def receive_into(got: list[bytes], stream: Any, max_bytes: int = 65536) -> None:
    got.append(await stream.receive(max_bytes))


async def test_a_stalled_receive_gets_its_data_later() -> None:
    """The gate holds a receive that starts, and one that was already waiting."""
    one, other = memory_byte_stream_pair()
    stream = StallStream(one)
    got: list[bytes] = []
    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(receive_into, got, stream)
            await wait_all_tasks_blocked()
            stream.receiving.close()
            await other.send(b"x")
            await stream.receiving.somebody_waits()
            assert got == []
            stream.receiving.open()
        assert got == [b"x"]
        stream.receiving.close()
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(receive_into, got, stream)
            await other.send(b"y")
            await stream.receiving.somebody_waits()
            stream.receiving.open()
    assert got == [b"x", b"y"]


async def test_a_receive_that_is_cancelled_while_stalled_loses_nothing() -> None:
    """What had been read comes with the next calls, in the sizes that they ask for."""
    one, other = memory_byte_stream_pair()
    stream = StallStream(one)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(stream.receive)
            await wait_all_tasks_blocked()
            stream.receiving.close()
            await other.send(b"abc")
            await stream.receiving.somebody_waits()
            task_group.cancel_scope.cancel()
        stream.receiving.open()
        assert await stream.receive(2) == b"ab"
        assert await stream.receive() == b"c"


async def test_a_stalled_send_sends_nothing() -> None:
    """The peer gets the item when the gate opens."""
    one, other = memory_byte_stream_pair()
    stream = StallStream(one)
    stream.sending.close()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(stream.send, b"x")
            await stream.sending.somebody_waits()
            assert other.buffered == 0
            stream.sending.open()
    assert await other.receive() == b"x"


# ------------------------------------------------------------------------------------------------------- half-open


def half_open() -> tuple[HalfOpenStream, MemoryByteStream]:
    one, other = memory_byte_stream_pair()
    return HalfOpenStream(one), other


async def test_a_peer_that_is_there_is_heard() -> None:
    """Before the peer vanishes the stream is an ordinary one."""
    stream, other = half_open()
    await stream.send(b"ab")
    assert await other.receive() == b"ab"
    await other.send(b"cd")
    assert await stream.receive() == b"cd"
    await stream.send_eof()
    await raises(anyio.EndOfStream, other.receive)
    await other.aclose()
    await raises(anyio.EndOfStream, stream.receive)


@pytest.mark.parametrize("how", ["before", "data", "close"])
async def test_nothing_arrives_from_a_peer_that_vanished(how: str) -> None:
    """Neither data nor the end gets through, until this end is closed."""
    stream, other = half_open()
    if how == "before":
        stream.vanish()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(raises, anyio.ClosedResourceError, stream.receive)
            await wait_all_tasks_blocked()
            stream.vanish()
            if how == "data":
                await other.send(b"x")
            elif how == "close":
                await other.aclose()
            await wait_all_tasks_blocked()
            await stream.aclose()


async def test_sends_to_a_peer_that_vanished_disappear() -> None:
    """They succeed, as they do into a socket's buffer."""
    one, other = memory_byte_stream_pair()
    stream = HalfOpenStream(one, vanished=True)
    await stream.send(b"abc")
    await stream.send_eof()
    assert stream.swallowed == 3
    assert other.buffered == 0
    await stream.aclose()
    await raises(anyio.ClosedResourceError, stream.send, b"x")


# ------------------------------------------------------------------------------------------------------ slow write


async def test_a_write_blocks_in_the_middle() -> None:
    """The head is out before the gate, the rest after it."""
    one, other = memory_byte_stream_pair()
    stream = SlowWriteStream(one, head=2)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(stream.send, b"abcd")
            await stream.writing.somebody_waits()
            assert await other.receive() == b"ab"
            assert other.buffered == 0
            stream.writing.open()
        assert await other.receive() == b"cd"
        await stream.send(b"e")
        assert await other.receive() == b"e"


async def test_a_write_that_is_cancelled_leaves_half_an_item() -> None:
    """The peer has the head only."""
    one, other = memory_byte_stream_pair()
    stream = SlowWriteStream(one)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(stream.send, b"abcd")
            await stream.writing.somebody_waits()
            task_group.cancel_scope.cancel()
    await stream.aclose()
    assert await other.receive() == b"a"
    await raises(anyio.EndOfStream, other.receive)
