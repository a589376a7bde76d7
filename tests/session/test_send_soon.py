# SPDX-License-Identifier: Apache-2.0
"""What is sent at once and what the writer sends: one write of many messages, and bytes in their order."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from pie_anyio import ConnectionLost, PieClient
from pie_anyio._flow.buffers import ByteBudget
from pie_anyio._flow.pausing import Buffers, Intake
from pie_anyio._flow.slots import ReplySlot
from pie_anyio._flow.wake import HighWater, Wake
from pie_anyio._protocol import messages
from pie_anyio._protocol.engine import MessageReceived
from pie_anyio._protocol.outbox import Lane
from pie_anyio._session.pumps import Link, read, write
from pie_anyio._session.registry import Registry
from pie_anyio._session.router import Router
from pie_anyio._transport.direct import DirectSocket
from pie_anyio._transport.stream import Transport
from pie_anyio._types import Generation
from pie_anyio.testing import ConnectionPair, SimulatedEngine, memory_byte_stream_pair
from pie_anyio.testing.faulty import SlowWriteStream

P = "0b7c9a52-6d0e-4b39-8f0e-2f1f3c1f7a11"


class Spy(DirectSocket):
    """A socket that keeps account of how it is used, and takes no more at once than it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, memory_byte_stream_pair()[0])
        self.takes: int | None = None
        self.at_once: list[int] = []
        """Bytes that were taken at once."""
        self.waited: list[int] = []
        """Bytes that the writer sent."""
        self.gate: anyio.Event | None = None
        """Where the writer is held up in the middle of a send."""

    def send_now(self, data: bytes) -> int:
        self.at_once.append(super().send_now(data if self.takes is None else data[: self.takes]))
        return self.at_once[-1]

    async def send(self, item: bytes) -> None:
        self.waited.append(len(item))
        if self.gate is not None:
            await super().send(item[:5])
            await self.gate.wait()
            item = item[5:]
        await super().send(item)


class Bench:
    """An open connection over a pair of sockets; the engine's side of it is read and fed by hand."""

    def __init__(self) -> None:
        ours, self.end = socket.socketpair()
        ours.setblocking(False)
        self.end.setblocking(False)
        self.spy = Spy(ours)
        self.pair = ConnectionPair(Generation.V04)
        self.pair.open()
        handshake: ReplySlot[None] = ReplySlot()
        router = Router(
            Registry(Buffers(1000, ByteBudget(1000), Intake())),
            generation=1,
            handshake=handshake,
            on_notice=print,
            on_tool=lambda _: None,
        )
        transport = Transport(self.spy, "x")
        high = 1 << 30
        self.link = Link(self.pair.client, transport, router, Wake(), HighWater(high), HighWater(high))

    def signal(self, text: str) -> None:
        """Say something as a caller does."""
        self.pair.client.notify(messages.SignalProcess(P, text))
        self.link.send_soon()

    def heard(self) -> list[str]:
        """What has arrived at the engine so far, in order."""
        try:
            while data := self.end.recv(1 << 20):
                self.pair.feed_engine(data)
        except BlockingIOError:
            pass
        requests = [e.request for e in self.pair.engine_events if isinstance(e, MessageReceived)]
        assert len(requests) == len(self.pair.engine_events)
        return [r.message if isinstance(r, messages.SignalProcess) else r.type for r in requests]

    async def listen(self) -> None:
        """Have the engine say something, and the reader hear it."""
        self.pair.engine.send_event(P, "stdout", "x")
        self.end.sendall(self.pair.engine.data_to_send())
        with anyio.fail_after(5):
            while self.link.unheard:
                await checkpoint()


@pytest.fixture
def bench(anyio_backend: Any) -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.end.close()
    bench.spy._socket.close()


# --------------------------------------------------------------------------------------------------------- the choice


async def test_one_message_on_a_quiet_connection_goes_at_once(bench: Bench) -> None:
    """No task has to run for it, and the writer is not woken."""
    bench.signal("a")
    assert bench.heard() == ["a"]
    assert not bench.link.wake.is_set
    assert bench.link.unheard
    assert bench.link.requests.level == 0


async def test_many_messages_at_once_share_the_writers_send(bench: Bench) -> None:
    """The first goes at once, all others wait for the writer and leave in one piece."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write, bench.link)
        await anyio.wait_all_tasks_blocked()
        for number in range(50):
            bench.signal(str(number))
        assert bench.heard() == ["0"]
        await anyio.wait_all_tasks_blocked()
        assert bench.heard() == [str(number) for number in range(50)]
        assert len(bench.spy.at_once) == 1
        assert len(bench.spy.waited) == 1
        tasks.cancel_scope.cancel()


async def test_so_many_messages_that_the_engine_had_better_begin(bench: Bench) -> None:
    """Each time that 8 KiB are queued they go at once, and only the rest waits for the writer."""
    bench.signal("first")
    text = "x" * 1000
    for _ in range(7):
        bench.signal(text)
    assert bench.heard() == ["first"]
    bench.signal(text)
    assert bench.heard() == ["first", *[text] * 8]
    assert bench.link.requests.level == 0
    for _ in range(20):
        bench.signal(text)
    assert bench.heard() == ["first", *[text] * 24]
    assert len(bench.spy.at_once) == 4
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write, bench.link)
        await anyio.wait_all_tasks_blocked()
        assert bench.heard() == ["first", *[text] * 28]
        assert len(bench.spy.waited) == 1
        tasks.cancel_scope.cancel()


async def test_hearing_from_the_engine_makes_the_connection_quiet(bench: Bench) -> None:
    """After any bytes the next message goes at once again."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write, bench.link)
        tasks.start_soon(read, bench.link)
        for number in range(3):
            bench.signal(str(number))
            assert bench.heard()[-1] == str(number)
            await bench.listen()
        assert len(bench.spy.at_once) == 3
        assert bench.spy.waited == []
        tasks.cancel_scope.cancel()


async def test_nothing_overtakes_the_writer(bench: Bench) -> None:
    """While it is in the middle of a send, nothing goes at once, even if the engine is heard meanwhile."""
    bench.signal("a")
    bench.spy.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write, bench.link)
        tasks.start_soon(read, bench.link)
        bench.signal("b")
        await anyio.wait_all_tasks_blocked()
        assert bench.link.writing
        await bench.listen()
        bench.signal("c")
        assert len(bench.spy.at_once) == 1
        bench.spy.gate.set()
        bench.spy.gate = None
        await anyio.wait_all_tasks_blocked()
        assert bench.heard() == ["a", "b", "c"]
        assert not bench.link.writing
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("takes", [0, 1, 7])
async def test_what_did_not_fit_is_finished_first(bench: Bench, takes: int) -> None:
    """A partial send leaves its rest to the writer, and what comes later stays behind it."""
    bench.spy.takes = takes
    bench.signal("first")
    assert bench.spy.at_once == [takes]
    assert bench.link.unsent
    assert bench.link.wake.is_set
    bench.link.unheard = False  # as if the engine had said something
    bench.signal("second")
    assert len(bench.spy.at_once) == 1
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write, bench.link)
        await anyio.wait_all_tasks_blocked()
        assert bench.heard() == ["first", "second"]
        assert bench.link.unsent == b""
        tasks.cancel_scope.cancel()


async def test_a_message_that_is_larger_than_the_socket_takes(bench: Bench) -> None:
    """For real: the system takes a part, and the writer finishes it as the engine reads."""
    text = "x" * 2_000_000
    with anyio.fail_after(10):
        bench.signal(text)
        assert 0 < bench.spy.at_once[0] < len(text)
        bench.signal("after")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, bench.link)
            while len(heard := bench.heard()) < 2:
                await anyio.wait_readable(bench.end)
            tasks.cancel_scope.cancel()
        assert heard == [text, "after"]


async def test_more_than_one_send_takes(bench: Bench) -> None:
    """What was queued beyond the first piece is the writer's."""
    for number in range(3):
        bench.pair.client.notify(messages.SignalProcess(P, str(number) * 50_000))
    bench.link.send_soon()
    assert bench.link.wake.is_set
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write, bench.link)
        await anyio.wait_all_tasks_blocked()
        assert [text[:1] for text in bench.heard()] == ["0", "1", "2"]
        tasks.cancel_scope.cancel()


async def test_bulk_is_left_to_the_writer(bench: Bench) -> None:
    """While pieces of a file are queued nothing goes at once."""
    bench.pair.client.notify(messages.TransferFile(P, "0" * 64, 0, 1, b"x"), lane=Lane.BULK)
    bench.signal("a")
    assert bench.spy.at_once == []
    assert bench.link.wake.is_set


async def test_a_dead_peer_is_found_out_by_the_writer(bench: Bench) -> None:
    """Sending at once keeps quiet about it; the writer gives the connection up."""
    bench.end.close()
    bench.signal("a")
    assert bench.link.unsent
    with anyio.fail_after(5):
        await write(bench.link)
    assert bench.link.router.ended.done
    assert bench.link.transport.broken
    with pytest.raises(ConnectionLost):
        await bench.link.requests.wait_below()


async def test_a_cancelled_writer_leaves_a_broken_transport(bench: Bench) -> None:
    """And is no longer in the middle of a send."""
    bench.spy.gate = anyio.Event()
    bench.link.unheard = True
    bench.signal("a")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write, bench.link)
        await anyio.wait_all_tasks_blocked()
        assert bench.link.writing
        assert not bench.link.transport.broken
        tasks.cancel_scope.cancel()
    assert bench.link.transport.broken
    assert not bench.link.writing


async def test_a_reset_ends_the_reader(bench: Bench) -> None:
    """With the reason, for everybody who waits."""
    await bench.spy.aclose()
    with anyio.fail_after(5):
        await read(bench.link)
    with pytest.raises(ConnectionLost):
        await bench.link.bulk.wait_below()


# ---------------------------------------------------------------------------------------------------------- for real


async def test_streams_in_memory_use_the_writer() -> None:
    """They have no way to send at once, and work all the same."""
    with anyio.fail_after(5):
        async with SimulatedEngine("v05", port=None) as engine, PieClient(engine.connectable) as client:
            assert not client.session.link.transport.is_direct
            await client.ping()
            assert not client.session.link.unsent


async def test_many_callers_over_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their requests leave in far fewer sends than there are callers, and each gets its own answer."""
    sends: list[int] = []
    original = DirectSocket.send

    async def send(self: DirectSocket, item: bytes) -> None:
        sends.append(len(item))
        await original(self, item)

    monkeypatch.setattr(DirectSocket, "send", send)
    with anyio.fail_after(20):
        async with SimulatedEngine("v04") as engine, PieClient(engine.url) as client:

            @engine.inferlet("echo@0.1.0")
            async def echo(session: Any, input: Any) -> Any:
                return input

            await client.ping()
            sends.clear()
            values: list[Any] = []

            async def run(value: int) -> None:
                values.append((value, (await client.run_process("echo@0.1.0", value)).value))

            async with anyio.create_task_group() as tasks:
                for value in range(200):
                    tasks.start_soon(run, value)
            assert sorted(values) == [(value, value) for value in range(200)]
            assert len(sends) < 100


async def test_a_slow_stream_holds_up_nobody_but_the_writer() -> None:
    """Callers queue what they have to say, and leave."""
    bench = Bench()
    slow = SlowWriteStream(memory_byte_stream_pair()[0])
    bench.link.transport = Transport(slow, "x")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write, bench.link)
        bench.signal("a")
        await slow.writing.somebody_waits()
        bench.signal("b")
        assert bench.link.writing
        assert bench.link.requests.level > 0 or bench.link.protocol.wants_write
        tasks.cancel_scope.cancel()
    bench.end.close()
    bench.spy._socket.close()
