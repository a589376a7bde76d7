# SPDX-License-Identifier: Apache-2.0
"""Find out what became of runs whose events were cut off (0.5: the text frame ``stream aborted``).

The frame names no process, and the events of an aborted run never come again, though the process itself may go on
unseen. So after each such frame the running processes are listed: what the engine no longer lists is lost, and what it
still lists is looked at again until it ends in one way or the other. Source: 0.5, sections 12A.1 and 12A.2.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, cast

from anyio import sleep
from anyio.abc import TaskGroup

from .._exceptions import PieError
from .._protocol.messages import ListProcesses

if TYPE_CHECKING:
    from .session import Session

INTERVAL: Final = 1.0
"""Seconds between two looks at runs that are still listed."""
_WHY: Final = "the engine aborted its stream of events, and it is gone; how it ended is unknown"


class Reconciler:
    """Compares what this client believes to run with what the engine lists. One look at a time."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._suspects: dict[str, int] = {}
        """Process ids, and how often in a row the engine did not list them."""
        self._active = False

    def suspect(
        self, tasks: TaskGroup, shelter: Callable[[Callable[[], Awaitable[None]]], Coroutine[Any, Any, None]]
    ) -> None:
        """Suspect every process that is running now, and look into it in the background."""
        self._suspects.update(dict.fromkeys(self._session.registry.by_id, 0))
        if not self._active and self._suspects:
            self._active = True
            tasks.start_soon(shelter, self._work, name="pie-anyio reconciler")

    async def _work(self) -> None:
        try:
            while self._suspects:
                await self._look()
                if self._suspects:
                    await sleep(INTERVAL)
        except PieError:
            pass  # the connection is gone, which settles every run in its own way
        finally:
            self._active = False

    async def _look(self) -> None:
        """Settle the suspects that have ended or are no longer listed."""
        ok, result = await self._session.request(ListProcesses())
        if not ok:
            return
        listed = listed_ids(result)
        if listed is None:
            return
        by_id = self._session.registry.by_id
        for process_id, missed in list(self._suspects.items()):
            if process_id not in by_id:
                del self._suspects[process_id]
            elif process_id in listed:
                self._suspects[process_id] = 0
            elif missed == 0:
                # 0.5 gives no order between answers and events: its last event may still be under way.
                self._suspects[process_id] = 1
            else:
                del self._suspects[process_id]
                self._session.runs.lose(by_id[process_id], _WHY)


def listed_ids(result: str) -> set[str] | None:
    """Read the ids out of a ``list_processes`` answer; None where it makes no sense and so says nothing."""
    try:
        rows: Any = json.loads(result)
    except (ValueError, RecursionError):
        return None
    if not isinstance(rows, list):
        return None
    found = [
        cast("dict[str, object]", row).get("id")
        for row in cast("list[object]", rows)
        if isinstance(row, dict)
    ]
    return {process_id for process_id in found if isinstance(process_id, str)}
