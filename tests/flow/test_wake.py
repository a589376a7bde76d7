# SPDX-License-Identifier: Apache-2.0
"""Wake and HighWater: no signal is lost, and the gate opens when it should."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from pie_anyio._flow.wake import HighWater, Wake


async def cancel_while_parked(wait: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with anyio.fail_after(5), anyio.CancelScope() as scope:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(wait)
            await wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught


async def test_a_signal_before_the_wait_is_seen_once() -> None:
    """Many sets make one wait return, and the next one blocks."""
    wake = Wake()
    wake.set()
    wake.set()
    assert wake.is_set
    with anyio.fail_after(5):
        await wake.wait()
    assert not wake.is_set
    await cancel_while_parked(wake.wait)


async def test_a_signal_wakes_a_parked_consumer_each_time() -> None:
    """A consumer loop runs once per burst of work."""
    wake = Wake()
    rounds = 0

    async def consumer() -> None:
        nonlocal rounds
        while rounds < 3:
            await wake.wait()
            rounds += 1

    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(consumer)
            for expected in (1, 2, 3):
                await wait_all_tasks_blocked()
                assert rounds == expected - 1
                wake.set()
                wake.set()
    assert rounds == 3


async def test_a_signal_outlives_a_cancelled_wait() -> None:
    """A consumer that was cancelled finds the work when it comes back."""
    wake = Wake()
    await cancel_while_parked(wake.wait)
    wake.set()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await wake.wait()
    assert scope.cancelled_caught
    assert wake.is_set
    with anyio.fail_after(5):
        await wake.wait()


async def test_two_consumers_are_both_woken() -> None:
    """Nobody sleeps through a signal, even where two wait by mistake."""
    wake = Wake()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(wake.wait)
            task_group.start_soon(wake.wait)
            await wait_all_tasks_blocked()
            wake.set()


async def test_the_gate_is_open_up_to_the_high_mark() -> None:
    """Senders pass while the level is not above the mark."""
    gate = HighWater(10, 4)
    gate.add(10)
    assert gate.level == 10
    assert not gate.is_shut
    with anyio.fail_after(5):
        await gate.wait_below()


async def test_the_gate_opens_at_the_low_mark_only() -> None:
    """Between the marks a shut gate stays shut and an open one open."""
    gate = HighWater(10, 4)
    gate.add(11)
    assert gate.is_shut
    gate.remove(6)
    assert gate.level == 5
    assert gate.is_shut
    await cancel_while_parked(gate.wait_below)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(gate.wait_below)
            task_group.start_soon(gate.wait_below)
            await wait_all_tasks_blocked()
            gate.remove(1)
    assert not gate.is_shut


def test_the_low_mark_is_half_of_the_high_one_unless_given() -> None:
    """One number is enough to set up a gate."""
    gate = HighWater(10)
    gate.add(11)
    gate.remove(5)
    assert gate.is_shut
    gate.remove(1)
    assert not gate.is_shut


@pytest.mark.parametrize(("high", "low"), [(10, 11), (10, -1), (-1, None)])
def test_marks_that_make_no_sense_are_refused(high: int, low: int | None) -> None:
    """The low mark lies between zero and the high mark."""
    with pytest.raises(ValueError, match="water marks"):
        HighWater(high, low)


def test_more_cannot_leave_than_was_there() -> None:
    """A wrong count is an error at once, not a gate that never opens."""
    gate = HighWater(10)
    gate.add(3)
    with pytest.raises(ValueError, match="cannot take 4 bytes from a level of 3"):
        gate.remove(4)
    assert gate.level == 3


def test_a_level_counted_elsewhere_is_followed() -> None:
    """Setting the level shuts and opens the gate as the changes would."""
    gate = HighWater(10, 4)
    gate.set_level(11)
    assert gate.is_shut
    gate.set_level(11)
    gate.set_level(5)
    assert gate.is_shut
    gate.set_level(4)
    assert not gate.is_shut
    assert gate.level == 4


async def test_a_waiter_waits_again_if_the_queue_was_refilled() -> None:
    """Of two senders that are let go together, the second sees what the first has queued."""
    gate = HighWater(10, 4)
    gate.add(11)
    sent: list[str] = []

    async def sender(name: str) -> None:
        await gate.wait_below()
        gate.add(11)
        sent.append(name)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(sender, "a")
            task_group.start_soon(sender, "b")
            await wait_all_tasks_blocked()
            gate.remove(11)
            await wait_all_tasks_blocked()
            assert len(sent) == 1
            gate.remove(11)
    assert sorted(sent) == ["a", "b"]


async def test_a_failed_gate_raises_for_everybody() -> None:
    """Parked and later senders get the first failure, each with a traceback of its own."""
    gate = HighWater(10)
    gate.add(11)
    error = ConnectionError("gone")
    seen: list[BaseException] = []

    async def sender() -> None:
        try:
            await gate.wait_below()
        except ConnectionError as exc:
            seen.append(exc)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(sender)
            task_group.start_soon(sender)
            await wait_all_tasks_blocked()
            gate.fail(error)
            gate.fail(ValueError("too late"))
    assert seen == [error, error]
    assert not gate.is_shut
    lengths = set()
    for _ in range(3):
        with pytest.raises(ConnectionError) as caught:
            await gate.wait_below()
        lengths.add(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(lengths) == 1


async def test_a_cancelled_scope_is_seen_at_an_open_gate() -> None:
    """An open gate is a checkpoint too."""
    gate = HighWater(10)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await gate.wait_below()
    assert scope.cancelled_caught
