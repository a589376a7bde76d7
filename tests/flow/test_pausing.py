# SPDX-License-Identifier: Apache-2.0
"""Buffers that hold the connection up, and the valve that they share."""

from __future__ import annotations

import anyio
import pytest

from pie_anyio import Event, InvalidRequest, Message, Return
from pie_anyio._events import Gap
from pie_anyio._flow.buffers import OVERHEAD, ByteBudget, EventBuffer
from pie_anyio._flow.pausing import Buffers, Intake, PausingBuffer, check_overflow

SIZE = 100 + OVERHEAD


def message(text: str = "x" * 100) -> Message:
    return Message(Event.Message, text)


@pytest.fixture
def intake() -> Intake:
    return Intake()


def make(intake: Intake, events: int = 4, total: int = 1_000_000) -> PausingBuffer:
    return PausingBuffer(events * SIZE, ByteBudget(total), intake)


def test_at_the_limit_and_one_above(intake: Intake) -> None:
    """What fits does not shut; the next event does, and is kept."""
    buffer = make(intake)
    for _ in range(4):
        buffer.put(message())
    assert not intake.is_shut
    buffer.put(message())
    assert intake.is_shut
    assert len(buffer) == 5


def test_it_opens_at_half(intake: Intake) -> None:
    """And not for each single event, which would have the socket read in drops."""
    buffer = make(intake)
    for _ in range(5):
        buffer.put(message())
    for _ in range(2):
        assert buffer.take() is not None
    assert intake.is_shut
    assert buffer.take() is not None
    assert not intake.is_shut
    assert len(buffer) == 2


def test_nothing_is_dropped(intake: Intake) -> None:
    """However much comes with one read."""
    buffer = make(intake)
    for number in range(50):
        buffer.put(message(str(number)))
    assert [buffer.take() for _ in range(50)] == [message(str(number)) for number in range(50)]


async def test_taking_with_a_wait_opens_too(intake: Intake) -> None:
    """As taking at once does."""
    buffer = make(intake, 1)
    buffer.put(message())
    buffer.put(message())
    assert intake.is_shut
    with anyio.fail_after(5):
        await buffer.get()
        assert intake.is_shut
        await buffer.get()
    assert not intake.is_shut


def test_an_event_larger_than_the_limit(intake: Intake) -> None:
    """Is kept, and shuts until it was taken."""
    buffer = make(intake, 1)
    buffer.put(message("x" * 10_000))
    assert intake.is_shut
    assert buffer.take() is not None
    assert not intake.is_shut


def test_all_buffers_together(intake: Intake) -> None:
    """One that is within its own limit shuts too where the client's is exceeded, and opens at half of what it had."""
    budget = ByteBudget(4 * SIZE)
    other = EventBuffer(1_000_000, budget)
    for _ in range(3):
        other.put(message())
    buffer = PausingBuffer(100 * SIZE, budget, intake)
    buffer.put(message())
    assert not intake.is_shut
    buffer.put(message())
    assert intake.is_shut
    buffer.take()
    assert not intake.is_shut
    assert len(buffer) == 1


def test_the_valve_is_open_when_all_have_opened_it(intake: Intake) -> None:
    """One full buffer is enough to keep it shut."""
    first, second = make(intake, 1), make(intake, 1)
    for buffer in (first, second, first, second):
        buffer.put(message())
    first.take()
    first.take()
    assert intake.is_shut
    assert not intake.is_shut_by(first)
    assert intake.is_shut_by(second)
    second.discard()
    assert not intake.is_shut


@pytest.mark.parametrize("way", ["discard", "finish", "fail", "stop_pausing"])
def test_what_opens_it(intake: Intake, way: str) -> None:
    """Whatever leaves nobody who would read on: then or later."""
    buffer = make(intake, 1)
    buffer.put(message())
    buffer.put(message())
    match way:
        case "finish":
            buffer.finish(Return(Event.Return, ""))
        case "fail":
            buffer.fail(ValueError())
        case _:
            getattr(buffer, way)()
    assert not intake.is_shut
    for _ in range(10):
        buffer.put(message())
    assert not intake.is_shut


def test_after_stopping_the_oldest_make_way(intake: Intake) -> None:
    """Memory stays bounded, and the gap is told."""
    buffer = make(intake, 4)
    buffer.stop_pausing()
    for number in range(100):
        buffer.put(message(f"{number:0100}"))
    assert buffer.buffered_bytes <= 5 * SIZE
    first = buffer.take()
    assert isinstance(first, Gap)


def test_an_abolished_valve_stays_open(intake: Intake) -> None:
    """At the end of a connection everything is heard, in bounded memory."""
    buffer = make(intake, 4)
    for _ in range(5):
        buffer.put(message())
    intake.abolish()
    assert not intake.is_shut
    for _ in range(100):
        buffer.put(message())
    assert not intake.is_shut
    assert buffer.buffered_bytes <= 5 * SIZE
    intake.shut(buffer)
    assert not intake.is_shut


async def test_waiting_for_the_valve(intake: Intake) -> None:
    """Any number of tasks; nobody waits for an open one."""
    with anyio.fail_after(5):
        await intake.wait()
        intake.shut("a")
        passed: list[int] = []

        async def wait(number: int) -> None:
            await intake.wait()
            passed.append(number)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, 1)
            tasks.start_soon(wait, 2)
            await anyio.wait_all_tasks_blocked()
            assert not passed
            intake.open("b")
            await anyio.wait_all_tasks_blocked()
            assert not passed
            intake.open("a")
        assert sorted(passed) == [1, 2]


async def test_a_cancelled_wait(intake: Intake) -> None:
    """Changes nothing."""
    intake.shut("a")
    with anyio.move_on_after(0):
        await intake.wait()
    intake.open_all()
    with anyio.fail_after(5):
        await intake.wait()


def test_buffers_by_policy(intake: Intake) -> None:
    """Each word has its buffer, and other words an error."""
    budget = ByteBudget(1)
    assert type(Buffers(1, budget, intake).new("pause")) is PausingBuffer
    plain = Buffers(1, budget, intake).new("drop_oldest")
    assert type(plain) is EventBuffer
    assert plain.policy == "drop_oldest"
    plain.stop_pausing()
    assert plain.policy == "drop_oldest"
    with pytest.raises(InvalidRequest, match="'pause', not 'block'"):
        check_overflow("block")  # type: ignore[arg-type]
