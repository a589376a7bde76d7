# SPDX-License-Identifier: Apache-2.0
"""A limit that gives way: strict, in order, and never lost by a cancellation."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from pie_anyio._flow.limits import AdaptiveLimit


def refuse(limit: AdaptiveLimit, episodes: int) -> None:
    """Have so many separate refusals."""
    for _ in range(episodes):
        limit.refused()
        limit._episode = False


@pytest.mark.parametrize("maximum", [0, -1])
def test_a_limit_lets_something_through(maximum: int) -> None:
    """None at all would wait for ever."""
    with pytest.raises(ValueError, match="at least 1"):
        AdaptiveLimit(maximum)


async def test_permits_are_bounded_and_served_in_order() -> None:
    """A waiter gets what is given back, before one that comes later."""
    limit = AdaptiveLimit(2)
    order: list[int] = []

    async def take(number: int) -> None:
        await limit.take()
        order.append(number)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(take, number)
                await anyio.wait_all_tasks_blocked()
            assert (limit.held, limit.current, limit.maximum) == (2, 2, 2)
            limit.give_back()
            assert not limit.take_now()
            await anyio.wait_all_tasks_blocked()
            assert order == [0, 1, 2]
            limit.give_back()
            await anyio.wait_all_tasks_blocked()
            assert order == [0, 1, 2, 3]
    limit.give_back()
    limit.give_back()
    assert limit.held == 0


async def test_what_is_there_is_taken_without_a_wait() -> None:
    """Up to the limit, and not past anybody who waits for a rise that has room."""
    limit = AdaptiveLimit(2)
    assert limit.take_now()
    assert limit.take_now()
    assert not limit.take_now()
    assert limit.held == 2
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(limit.take)
            await anyio.wait_all_tasks_blocked()
            limit.maximum = limit.current = 4  # nobody has been served yet
            assert not limit.take_now()
            limit.give_back()
    assert limit.held == 2
    assert limit.take_now()


async def test_cancelling_a_wait_takes_nothing() -> None:
    """Nor what is handed over in the same turn of the loop: it goes to the next."""
    limit = AdaptiveLimit(1)
    await limit.take()
    scope = anyio.CancelScope()
    taken: list[str] = []

    async def wait() -> None:
        with scope:
            await limit.take()
            taken.append("second")

    async def wait_after_it() -> None:
        await limit.take()
        taken.append("third")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(wait_after_it)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            limit.give_back()
            await anyio.wait_all_tasks_blocked()
            if taken == ["second"]:
                limit.give_back()
    assert taken[-1] == "third"
    assert limit.held == 1


async def test_who_gives_up_waiting_is_passed_over() -> None:
    """What is given back later goes to those who still wait."""
    limit = AdaptiveLimit(1)
    await limit.take()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:
                tasks.start_soon(limit.take)
                scope.cancel()
                await limit.take()
            assert scope.cancelled_caught
            limit.give_back()
    assert limit.held == 1
    limit.give_back()
    assert limit.held == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_permit_that_is_handed_over_to_a_cancelled_task_goes_on(anyio_backend: str) -> None:
    """A native cancel of asyncio hits a waiter that has been served already, where a scope would leave it alone."""
    limit = AdaptiveLimit(1)
    await limit.take()
    tasks = [asyncio.ensure_future(limit.take()) for _ in range(2)]
    await anyio.wait_all_tasks_blocked()
    limit.give_back()
    tasks[0].cancel()
    with anyio.fail_after(5):
        await tasks[1]
    assert tasks[0].cancelled()
    assert limit.held == 1
    limit.give_back()
    assert limit.held == 0


async def test_refusals_cut_once_per_episode() -> None:
    """By a fifth, and never below one."""
    limit = AdaptiveLimit(10)
    for _ in range(7):
        limit.refused()
    assert limit.current == 8
    limit.succeeded()
    limit.refused()
    assert limit.current == 6
    refuse(limit, 20)
    assert limit.current == 1


async def test_successes_in_a_row_raise_it() -> None:
    """As many as may run at a time, for each step, up to the maximum."""
    limit = AdaptiveLimit(4)
    refuse(limit, 3)
    assert limit.current == 1
    steps = []
    for _ in range(9):
        limit.succeeded()
        steps.append(limit.current)
    assert steps == [2, 2, 3, 3, 3, 4, 4, 4, 4]
    refuse(limit, 1)
    limit.succeeded()
    limit.succeeded()
    limit.refused()
    limit.succeeded()
    assert limit.current == 2


async def test_a_cut_takes_nothing_back_and_a_rise_wakes() -> None:
    """Whoever holds a permit keeps it; the next one waits until there is room below the cut."""
    limit = AdaptiveLimit(2)
    await limit.take()
    await limit.take()
    limit.refused()
    assert (limit.current, limit.held) == (1, 2)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(limit.take)
            await anyio.wait_all_tasks_blocked()
            limit.give_back()
            await anyio.wait_all_tasks_blocked()
            assert limit.held == 1
            limit.succeeded()
            await anyio.wait_all_tasks_blocked()
            assert limit.held == 2
