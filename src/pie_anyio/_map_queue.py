# SPDX-License-Identifier: Apache-2.0
"""Outcomes between the workers of a map and its consumer: bounded, in order where that is wanted."""

from __future__ import annotations

from collections import deque

from anyio import Event, Semaphore

from ._outcomes import AnyOutcome


class OutcomeQueue:
    """Outcomes that are finished and not yet taken.

    ``bound`` is how many there may be, with those that are still to come for inputs that were taken; None sets no
    bound.
    """

    def __init__(self, *, ordered: bool, bound: int | None) -> None:
        self._ordered = ordered
        self._room = None if bound is None else Semaphore(bound, fast_acquire=True)
        self._ready: deque[AnyOutcome] = deque()
        self._held: dict[int, AnyOutcome] = {}
        self._next_index = 0
        self._arrived: Event | None = None
        self._finished = False

    def __len__(self) -> int:
        return len(self._ready) + len(self._held)

    def put(self, outcome: AnyOutcome) -> None:
        """Add an outcome; one that comes too early for its order is held back."""
        if not self._ordered:
            self._ready.append(outcome)
        else:
            self._held[outcome.index] = outcome
            while (following := self._held.pop(self._next_index, None)) is not None:
                self._ready.append(following)
                self._next_index += 1
        if self._ready:
            self._wake_consumer()

    def finish(self) -> None:
        """Note that nothing more will come. What was held back for an order that was cut short is let go, in order."""
        self._finished = True
        for index in sorted(self._held):
            self._ready.append(self._held.pop(index))
        self._wake_consumer()

    async def reserve(self) -> None:
        """Wait for room for one more outcome, and keep it. Does not checkpoint where there is room.

        Cancellation: nothing was kept.
        """
        if self._room is not None:
            await self._room.acquire()

    def take_now(self) -> AnyOutcome | None:
        """Take the next outcome, or None where none is there."""
        if not self._ready:
            return None
        if self._room is not None:
            self._room.release()
        return self._ready.popleft()

    async def take(self) -> AnyOutcome | None:
        """Take the next outcome, or None where nothing more will come.

        Cancellation: an outcome leaves the queue only in the step that returns it.
        """
        while (outcome := self.take_now()) is None and not self._finished:
            if self._arrived is None:
                self._arrived = Event()
            await self._arrived.wait()
        return outcome

    def drain(self) -> list[AnyOutcome]:
        """Take everything that is there."""
        outcomes = list(self._ready)
        self._ready.clear()
        return outcomes

    def _wake_consumer(self) -> None:
        if self._arrived is not None:
            self._arrived.set()
            self._arrived = None
