# SPDX-License-Identifier: Apache-2.0
"""Where tasks wait to be woken: the one thing that is asked of the event loop itself, and not of anyio.

Every launch waits at least once, and an ``anyio.Event`` makes three objects and ten calls each time, which cost as much
as all that the protocol does for a run. Both loops have something to wait on that costs half of that, and to anyio's
tasks and cancel scopes it is a wait like any other. Neither loop is imported here: what runs is there already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast


def _running_trio() -> Any:
    """Give trio where it runs the calling task, also in its guest mode on top of asyncio; else None."""
    trio: Any = sys.modules.get("trio")
    return trio if trio is not None and trio.lowlevel.in_trio_task() else None


def loop_clock() -> Callable[[], float]:
    """Give the clock of the loop that runs the calling task, in seconds: ``anyio.current_time``, looked up once."""
    trio = _running_trio()
    clock = sys.modules["asyncio"].get_running_loop().time if trio is None else trio.current_time
    return cast("Callable[[], float]", clock)


class ParkingLot:
    """Tasks that wait for something to happen. Who comes after it has happened has to look for itself."""

    __slots__ = ("_parked", "_reschedule")

    def __init__(self) -> None:
        self._parked: dict[Any, None] = {}  # leaving it is cheap for each of thousands that are cancelled
        self._reschedule: Callable[[Any], object] = _end_future

    async def park(self) -> None:
        """Wait for the next :meth:`unpark_all`.

        Cancellation: the task has left the lot.
        """
        trio = _running_trio()
        if trio is not None:
            await self._park_on_trio(trio.lowlevel)
            return
        future = sys.modules["asyncio"].get_running_loop().create_future()
        self._parked[future] = None
        try:
            await future
        except BaseException:
            self._parked.pop(future, None)
            raise

    async def _park_on_trio(self, lowlevel: Any) -> None:
        self._reschedule = lowlevel.reschedule
        task = lowlevel.current_task()
        self._parked[task] = None

        def leave(_: object) -> object:
            del self._parked[task]
            return lowlevel.Abort.SUCCEEDED

        await lowlevel.wait_task_rescheduled(leave)

    def unpark_all(self) -> None:
        """Let all who wait go on, in the order in which they came; they do so in the loop's next turn."""
        if self._parked:
            for parked in self._parked:
                self._reschedule(parked)
            self._parked.clear()


def _end_future(future: Any) -> None:
    if not future.done():  # else its task was cancelled, and has not had its turn since
        future.set_result(None)
