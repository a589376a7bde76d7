# SPDX-License-Identifier: Apache-2.0
"""ParkingLot: who waits is woken once, in order, and who is cancelled has left."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import anyio
import pytest
import trio
from anyio import wait_all_tasks_blocked

from pie_anyio._flow.parking import ParkingLot, loop_clock


def parked(lot: ParkingLot) -> int:
    """Count the tasks that the lot holds."""
    return len(lot._parked)


async def test_all_who_wait_are_woken_in_order() -> None:
    """One call wakes everybody, first come, first served."""
    lot = ParkingLot()
    order: list[int] = []

    async def waiter(number: int) -> None:
        await lot.park()
        order.append(number)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(waiter, number)
                await wait_all_tasks_blocked()
            assert parked(lot) == 5
            lot.unpark_all()
            assert order == []  # they have their turn later, not within the call
            assert parked(lot) == 0
    # trio shuffles the tasks of a turn, on purpose: only who wakes first is up to the lot
    assert sorted(order) == [0, 1, 2, 3, 4]


async def test_who_comes_later_waits_for_the_next_time() -> None:
    """A lot remembers nothing of what has happened."""
    lot = ParkingLot()
    lot.unpark_all()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lot.park)
            await wait_all_tasks_blocked()
            assert parked(lot) == 1
            lot.unpark_all()
            await wait_all_tasks_blocked()
            tasks.start_soon(lot.park)
            await wait_all_tasks_blocked()
            assert parked(lot) == 1
            lot.unpark_all()


async def test_who_is_cancelled_has_left() -> None:
    """Only those who still wait are kept, and they are woken like before."""
    lot = ParkingLot()
    woken: list[str] = []

    async def patient() -> None:
        await lot.park()
        woken.append("patient")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(patient)
            async with anyio.create_task_group() as others:
                for _ in range(3):
                    others.start_soon(lot.park)
                await wait_all_tasks_blocked()
                assert parked(lot) == 4
                others.cancel_scope.cancel()
            assert parked(lot) == 1
            lot.unpark_all()
    assert woken == ["patient"]


@pytest.mark.parametrize("first", ["cancel", "unpark"])
async def test_cancelled_and_woken_in_one_step(first: str) -> None:
    """Whichever comes first, nothing breaks and nobody is left behind."""
    lot = ParkingLot()
    ended: list[str] = []

    async def waiter(scope: anyio.CancelScope) -> None:
        with scope:
            await lot.park()
        ended.append("cancelled" if scope.cancelled_caught else "woken")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()
            tasks.start_soon(waiter, scope)
            await wait_all_tasks_blocked()
            for step in (
                (scope.cancel, lot.unpark_all) if first == "cancel" else (lot.unpark_all, scope.cancel)
            ):
                step()
    assert len(ended) == 1
    assert parked(lot) == 0


async def test_a_native_cancel_leaves_too(anyio_backend_name: str) -> None:
    """A task that asyncio itself cancels is not kept, also when it is woken in the same step."""
    if anyio_backend_name != "asyncio":
        return
    lot = ParkingLot()
    tasks = [asyncio.ensure_future(lot.park()) for _ in range(2)]
    await wait_all_tasks_blocked()
    tasks[0].cancel()
    lot.unpark_all()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in done] == [asyncio.CancelledError, type(None)]
    assert parked(lot) == 0


async def test_the_clock_is_that_of_the_loop() -> None:
    """It tells the same time as anyio, virtual or not."""
    clock = loop_clock()
    before = anyio.current_time()
    now = clock()
    assert before <= now <= anyio.current_time()


def test_trio_as_a_guest_of_asyncio() -> None:
    """Where trio runs on top of asyncio, the task that waits is trio's."""
    lot = ParkingLot()

    async def guest() -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lot.park)
            await trio.testing.wait_all_tasks_blocked()
            assert loop_clock() is trio.current_time
            lot.unpark_all()
        return "done"

    async def host() -> str:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[str] = loop.create_future()
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=lambda outcome: ended.set_result(outcome.unwrap()),
        )
        return await asyncio.wait_for(ended, 5)

    assert asyncio.run(host()) == "done"


def test_trio_is_not_imported_for_asyncio() -> None:
    """A program on asyncio does not pay for the import of the other loop."""
    program = """
import sys, anyio
from pie_anyio._flow.parking import ParkingLot, loop_clock

async def main():
    lot = ParkingLot()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lot.park)
        await anyio.wait_all_tasks_blocked()
        loop_clock()()
        lot.unpark_all()

anyio.run(main)
assert "trio" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
