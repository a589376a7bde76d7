# SPDX-License-Identifier: Apache-2.0
"""Outcomes between the workers of a map and its consumer: bounded, in order where that is wanted."""

from __future__ import annotations

import math
from collections import deque

from ._flow.parking import ParkingLot
from ._outcomes import AnyOutcome


class OutcomeQueue:
    """Outcomes that are finished and not yet taken.

    ``bound`` is how many there may be, with those that are still to come for inputs that were taken; None sets no
    bound.
    """

    def __init__(self, *, ordered: bool, bound: int | None) -> None:
        self._ordered = ordered
        self._bound: float = math.inf if bound is None else bound
        self._freed = ParkingLot()
        self._ready: deque[AnyOutcome] = deque()
        self._held: dict[int, AnyOutcome] = {}
        self._next_index = 0
        self._arrived = ParkingLot()
        self._finished = False

    def __len__(self) -> int:
        return len(self._ready) + len(self._held)

    def put(self, outcome: AnyOutcome) -> None:
        """Add an outcome; one that comes too early for its order is held back."""
        if self._ordered:
            if outcome.index != self._next_index:
                self._held[outcome.index] = outcome
                return
            self._next_index += 1
        self._ready.append(outcome)
        while self._held and (following := self._held.pop(self._next_index, None)) is not None:
            self._ready.append(following)
            self._next_index += 1
        self._arrived.unpark_all()

    def finish(self) -> None:
        """Note that nothing more will come. What was held back for an order that was cut short is let go, in order."""
        self._finished = True
        for index in sorted(self._held):
            self._ready.append(self._held.pop(index))
        self._arrived.unpark_all()

    def has_room(self, pending: int) -> bool:
        """Whether there may be one more outcome, besides those that are still to come for so many inputs."""
        return pending + len(self._ready) + len(self._held) < self._bound

    async def wait_until_taken(self) -> None:
        """Wait until the consumer takes an outcome."""
        await self._freed.park()

    def take_now(self) -> AnyOutcome | None:
        """Take the next outcome, or None where none is there."""
        if not self._ready:
            return None
        self._freed.unpark_all()
        return self._ready.popleft()

    async def take(self) -> AnyOutcome | None:
        """Take the next outcome, or None where nothing more will come.

        Cancellation: an outcome leaves the queue only in the step that returns it.
        """
        while (outcome := self.take_now()) is None and not self._finished:
            await self._arrived.park()
        return outcome

    def drain(self) -> list[AnyOutcome]:
        """Take everything that is there."""
        outcomes = list(self._ready)
        self._ready.clear()
        return outcomes
