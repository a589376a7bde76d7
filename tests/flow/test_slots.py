# SPDX-License-Identifier: Apache-2.0
"""ReplySlot: the first outcome wins, is never lost, and costs nothing until somebody waits."""

from __future__ import annotations

import traceback

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import cancel_shielded_checkpoint

from pie_anyio._flow.slots import ReplySlot


async def test_the_value_reaches_a_waiter_that_came_first() -> None:
    """A waiter that is parked gets the value that is set later."""
    slot: ReplySlot[int] = ReplySlot()
    got: list[int] = []

    async def waiter() -> None:
        got.append(await slot.wait())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(waiter)
            task_group.start_soon(waiter)
            await wait_all_tasks_blocked()
            assert slot.set_result(7)
    assert got == [7, 7]


async def test_the_value_reaches_a_waiter_that_came_late() -> None:
    """Waiting after the fact returns the value, as often as asked."""
    slot: ReplySlot[str] = ReplySlot()
    slot.set_result("v")
    assert await slot.wait() == "v"
    assert await slot.wait() == "v"


async def test_waiting_yields_to_other_tasks_although_the_value_is_there() -> None:
    """A wait on a settled slot is a checkpoint all the same."""
    slot: ReplySlot[None] = ReplySlot()
    slot.set_result(None)
    order: list[str] = []

    async def other() -> None:
        order.append("other")

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(other)
        await slot.wait()
        await slot.wait()
        order.append("waiter")
    assert order == ["other", "waiter"]


def test_the_first_outcome_wins() -> None:
    """Later outcomes are refused and change nothing."""
    slot: ReplySlot[int] = ReplySlot()
    assert not slot.done
    assert slot.value is None
    assert slot.set_result(1)
    assert not slot.set_result(2)
    assert not slot.set_error(ValueError())
    assert slot.done
    assert slot.value == 1


def test_a_rejected_slot_stays_rejected() -> None:
    """An error is an outcome like a value."""
    slot: ReplySlot[int] = ReplySlot()
    error = ValueError("no")
    assert slot.set_error(error)
    assert not slot.set_result(2)
    assert slot.done
    assert slot.error is error
    assert slot.value is None


def test_none_is_a_value() -> None:
    """A slot that was resolved with None is not taken for an empty one."""
    slot: ReplySlot[None] = ReplySlot()
    slot.set_result(None)
    assert slot.done
    assert slot.error is None


def test_repr_tells_the_state_and_not_the_value() -> None:
    """Logs of a slot show neither payloads nor secrets."""
    pending, resolved, rejected = ReplySlot[str](), ReplySlot[str](), ReplySlot[str]()
    resolved.set_result("secret")
    rejected.set_error(ValueError("secret"))
    assert [repr(slot) for slot in (pending, resolved, rejected)] == [
        "<ReplySlot pending>",
        "<ReplySlot resolved>",
        "<ReplySlot rejected with ValueError>",
    ]


async def test_each_waiter_sees_a_traceback_of_its_own() -> None:
    """An error that many tasks wait for does not collect their frames."""
    slot: ReplySlot[int] = ReplySlot()
    slot.set_error(ValueError("no"))
    lengths = []
    for _ in range(5):
        with pytest.raises(ValueError, match="no") as caught:
            await slot.wait()
        lengths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(set(lengths)) == 1


async def test_an_error_reaches_parked_waiters() -> None:
    """Waiters that came first get the error too."""
    slot: ReplySlot[int] = ReplySlot()
    error = KeyError("gone")
    seen: list[BaseException] = []

    async def waiter() -> None:
        try:
            await slot.wait()
        except KeyError as exc:
            seen.append(exc)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(waiter)
            task_group.start_soon(waiter)
            await wait_all_tasks_blocked()
            slot.set_error(error)
    assert seen == [error, error]


async def test_a_cancelled_wait_leaves_the_slot_usable() -> None:
    """Cancelling one waiter disturbs neither the slot nor the next waiter."""
    slot: ReplySlot[int] = ReplySlot()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(slot.wait)
            await wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    slot.set_result(3)
    assert await slot.wait() == 3


async def test_a_cancelled_scope_does_not_take_the_value_away() -> None:
    """Entering a wait in a cancelled scope raises, and the value can still be seen."""
    slot: ReplySlot[int] = ReplySlot()
    slot.set_result(4)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await slot.wait()
    assert scope.cancelled_caught
    assert slot.value == 4


async def test_a_cancellation_that_comes_after_the_value_does_not_hide_it() -> None:
    """The value is delivered although the scope was cancelled before the waiter ran again."""
    slot: ReplySlot[int] = ReplySlot()
    got: list[int] = []
    scope = anyio.CancelScope()

    async def waiter() -> None:
        with scope:
            got.append(await slot.wait())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(waiter)
            await wait_all_tasks_blocked()
            slot.set_result(5)
            scope.cancel()
    assert got == [5]


async def test_the_shielded_checkpoint_delivers_a_value_that_is_there() -> None:
    """A scope cancelled while a late waiter yields does not lose the value."""
    slot: ReplySlot[int] = ReplySlot()
    slot.set_result(6)
    got: list[int] = []
    scope = anyio.CancelScope()

    async def waiter() -> None:
        with scope:
            got.append(await slot.wait())

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(waiter)
        # The waiter starts within this turn, and is inside its checkpoint when the scope is cancelled.
        await cancel_shielded_checkpoint()
        if not got:
            scope.cancel()
    assert got in ([6], [])


def test_a_slot_makes_no_event_before_somebody_waits() -> None:
    """Tens of thousands of slots cost two references each."""
    slot: ReplySlot[int] = ReplySlot()
    slot.set_result(1)
    assert slot._lot is None
    assert not hasattr(slot, "__dict__")
