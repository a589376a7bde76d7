# SPDX-License-Identifier: Apache-2.0
"""Outcomes between the runs and the consumer."""

from __future__ import annotations

import anyio
import pytest

from pie_anyio import Returned, Timings
from pie_anyio._map_queue import OutcomeQueue


def outcome(index: int) -> Returned:
    """Make an outcome."""
    return Returned(index=index, key=index, value=index, timings=Timings(submitted=0))


async def indexes(queue: OutcomeQueue) -> list[int]:
    """Take all there are."""
    taken = []
    while (item := await queue.take()) is not None:
        taken.append(item.index)
    return taken


@pytest.mark.parametrize(("ordered", "expected"), [(False, [2, 0, 1]), (True, [0, 1, 2])])
async def test_order(expected: list[int], *, ordered: bool) -> None:
    """As they come, or held back until it is their turn."""
    queue = OutcomeQueue(ordered=ordered, bound=None)
    for index in (2, 0, 1):
        queue.put(outcome(index))
    assert len(queue) == 3
    queue.finish()
    assert await indexes(queue) == expected
    assert await queue.take() is None


async def test_what_was_held_back_is_let_go_at_the_end() -> None:
    """In order, with gaps where items never ended."""
    queue = OutcomeQueue(ordered=True, bound=None)
    for index in (5, 0, 3):
        queue.put(outcome(index))
    assert [item.index for item in queue.drain()] == [0]
    queue.finish()
    assert [item.index for item in queue.drain()] == [3, 5]
    assert queue.drain() == []


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_consumer_is_woken(*, ordered: bool) -> None:
    """By an outcome that it may have, and by the end."""
    queue = OutcomeQueue(ordered=ordered, bound=None)
    taken: list[int] = []

    async def consume() -> None:
        taken.extend(await indexes(queue))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        tasks.start_soon(consume)
        await anyio.wait_all_tasks_blocked()
        queue.put(outcome(1))
        await anyio.wait_all_tasks_blocked()
        queue.put(outcome(0))
        await anyio.wait_all_tasks_blocked()
        queue.finish()
    assert sorted(taken) == [0, 1]


@pytest.mark.parametrize("ordered", [False, True])
async def test_room_is_what_is_neither_to_come_nor_unread(*, ordered: bool) -> None:
    """Outcomes that are held back for their order are unread as well; the producer is told when one is taken."""
    queue = OutcomeQueue(ordered=ordered, bound=3)
    assert queue.has_room(2)
    assert not queue.has_room(3)
    queue.put(outcome(1))
    queue.put(outcome(0))
    assert queue.has_room(0)
    assert not queue.has_room(1)
    waited: list[str] = []

    async def produce() -> None:
        await queue.wait_until_taken()
        waited.append("until taken")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(produce)
        await anyio.wait_all_tasks_blocked()
        assert waited == []
        assert queue.take_now() is not None
    assert waited == ["until taken"]
    assert queue.has_room(1)
    assert not queue.has_room(2)


def test_without_a_bound_there_is_always_room() -> None:
    """An awaited map keeps all its outcomes anyway."""
    queue = OutcomeQueue(ordered=False, bound=None)
    for number in range(1000):
        queue.put(outcome(number))
    assert queue.has_room(10**9)
    assert len(queue) == 1000


async def test_cancelling_a_wait_loses_nothing() -> None:
    """The outcome that came in the step of the cancellation is there for the next."""
    queue = OutcomeQueue(ordered=False, bound=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queue.take)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
        queue.put(outcome(0))
    with anyio.fail_after(5):
        assert (await queue.take()) == outcome(0)
