# SPDX-License-Identifier: Apache-2.0
"""EventBuffer: bounded, in order, woken once, and nothing is lost but by its policy."""

from __future__ import annotations

import anyio
import pytest

from pie_anyio import ConnectionLost, Event, Gap, OutputOverflow, Return, Stdout
from pie_anyio._flow.buffers import ByteBudget, EventBuffer

COST = 120


def out(text: str) -> Stdout:
    return Stdout(Event.Stdout, text)


END = Return(Event.Return, "done")


def buffer_of(limit: int = 10_000, total: int = 100_000, policy: str = "error") -> EventBuffer:
    buffer = EventBuffer(limit, ByteBudget(total), policy)  # type: ignore[arg-type]
    buffer.process_id = "p-1"
    return buffer


async def drain(buffer: EventBuffer) -> list[object]:
    events: list[object] = []
    while True:
        try:
            events.append(await buffer.get())
        except anyio.EndOfStream:
            return events
        except OutputOverflow as exc:
            events.append(exc.dropped)


async def test_order_and_end() -> None:
    """First in, first out, then the end, as often as asked."""
    buffer = buffer_of(limit=100_000)
    events = [out(str(number)) for number in range(300)]
    for event in events:
        buffer.put(event)
    assert len(buffer) == 300
    buffer.finish(END)
    buffer.finish(END)
    with anyio.fail_after(5):
        assert await drain(buffer) == [*events, END]
        assert await drain(buffer) == []
    assert buffer.buffered_bytes == 0
    assert buffer._budget.used == 0


async def test_a_waiting_reader_is_woken() -> None:
    """By an event and by the end."""
    buffer = buffer_of()
    got: list[object] = []

    async def read() -> None:
        got.extend(await drain(buffer))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            buffer.put(out("a"))
            await anyio.wait_all_tasks_blocked()
            assert got == []
            buffer.finish()
    assert got == [out("a")]


async def test_a_second_reader_is_refused() -> None:
    """While the first one waits; the first one is not disturbed."""
    buffer = buffer_of()
    got: list[object] = []

    async def read() -> None:
        got.append(await buffer.get())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError, match="reading the events"):
                await buffer.get()
            buffer.put(out("first"))
    assert got == [out("first")]


async def test_a_full_buffer_does_not_starve_the_loop() -> None:
    """Bursts are bounded: others get their turn while a reader has plenty to read."""
    buffer = buffer_of(limit=10_000_000, total=10_000_000)
    for _ in range(1000):
        buffer.put(out("x"))
    buffer.finish()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while len(buffer):
            turns += 1
            await anyio.lowlevel.checkpoint()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            await drain(buffer)
    assert turns >= 5


async def test_the_policy_error_tells_once_and_goes_on() -> None:
    """At the place of the loss, with the number; what comes after the reader has caught up is kept again."""
    buffer = buffer_of(limit=3 * (COST + 10))
    for number in range(6):
        buffer.put(out(f"{number:010}"))
    assert buffer.dropped == 3
    with anyio.fail_after(5):
        assert [await buffer.get() for _ in range(3)] == [out(f"{n:010}") for n in range(3)]
        with pytest.raises(OutputOverflow, match=r"p-1: 3 events.*process_buffer_bytes") as caught:
            await buffer.get()
        assert (caught.value.process_id, caught.value.dropped) == ("p-1", 3)
        buffer.put(out("more"))
        buffer.finish(END)
        assert await drain(buffer) == [out("more"), END]


async def test_an_overflow_before_anything_is_buffered() -> None:
    """One event larger than the limit, for a reader that waits for it."""
    buffer = buffer_of(limit=100)
    got: list[object] = []

    async def read() -> None:
        got.extend(await drain(buffer))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            buffer.put(out("x" * 200))
            buffer.finish(END)
    assert got == [1, END]


async def test_the_policy_drop_oldest_leaves_one_gap() -> None:
    """In front of what is left, which is the newest."""
    buffer = buffer_of(limit=1000, policy="drop_oldest")
    for number in range(50):
        buffer.put(out(f"{number:010}"))
        assert buffer.buffered_bytes <= 1000 + COST + 100
    buffer.finish(END)
    with anyio.fail_after(5):
        events = await drain(buffer)
    assert isinstance(events[0], Gap)
    assert sum(isinstance(event, Gap) for event in events) == 1
    assert events[-2:] == [out(f"{49:010}"), END]
    assert buffer._budget.used == 0


async def test_dropping_the_oldest_heeds_the_clients_budget() -> None:
    """Another process has used it up: this one keeps the newest event, and gaps do not pile up."""
    budget = ByteBudget(2000)
    greedy = EventBuffer(10_000, budget)
    greedy.put(out("x" * 1800))
    buffer = EventBuffer(10_000, budget, "drop_oldest")
    for number in range(100):
        buffer.put(out(str(number)))
    assert len(buffer) <= 3
    buffer.finish(END)
    with anyio.fail_after(5):
        assert (await drain(buffer))[-2:] == [out("99"), END]


async def test_a_huge_event_when_the_oldest_is_dropped() -> None:
    """It is kept alone: there is nothing else to drop."""
    buffer = buffer_of(limit=500, policy="drop_oldest")
    buffer.put(out("y" * 2000))
    buffer.finish(END)
    with anyio.fail_after(5):
        gap, event, end = await drain(buffer)
    assert isinstance(gap, Gap)
    assert (event, end) == (out("y" * 2000), END)


async def test_an_error_comes_after_what_is_buffered() -> None:
    """And again at each further read; a later end changes nothing."""
    buffer = buffer_of()
    buffer.put(out("last words"))
    buffer.fail(ConnectionLost("gone"))
    buffer.finish(END)
    buffer.fail(ConnectionLost("gone again"))
    buffer.put(out("too late"))
    with anyio.fail_after(5):
        assert await buffer.get() == out("last words")
        for _ in range(2):
            with pytest.raises(ConnectionLost, match=r"^gone$"):
                await buffer.get()


async def test_discarding() -> None:
    """Frees everything, ends the stream, and takes nothing more."""
    buffer = buffer_of()
    budget = buffer._budget
    buffer.put(out("x"))
    buffer.discard()
    buffer.put(out("y"))
    assert (len(buffer), budget.used) == (0, 0)
    with anyio.fail_after(5):
        assert await drain(buffer) == []
    del buffer
    assert budget.used == 0
