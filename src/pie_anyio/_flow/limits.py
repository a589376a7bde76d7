# SPDX-License-Identifier: Apache-2.0
"""How many runs may be live at once: a strict limit that gives way when the engine has no room."""

from __future__ import annotations

from collections import deque
from typing import Final

from anyio import Event

_CUT: Final = 0.8


class AdaptiveLimit:
    """A counter of live runs that never exceeds ``current``, which never exceeds ``maximum``.

    ``refused`` cuts ``current`` by a fifth, once per episode: a burst of refusals is one message from the engine, not
    many. Each ``current`` successes in a row raise it by one again, up to the maximum (additive increase,
    multiplicative decrease).
    """

    __slots__ = ("_episode", "_successes", "_waiters", "current", "live", "maximum", "refusals")

    def __init__(self, maximum: int) -> None:
        if maximum < 1:
            msg = f"the limit must be at least 1, not {maximum}"
            raise ValueError(msg)
        self.maximum = maximum
        self.current = maximum
        self.live = 0
        self.refusals = 0
        self._successes = 0
        self._episode = False
        self._waiters: deque[Event] = deque()

    async def acquire(self) -> None:
        """Wait for room and take it. Does not checkpoint where there is room.

        Cancellation: nothing was taken.
        """
        while self.live >= self.current:
            event = Event()
            self._waiters.append(event)
            try:
                await event.wait()
            except BaseException:
                # Whoever was woken and cannot use the room passes it on.
                if event.is_set():
                    self._wake()
                else:
                    self._waiters.remove(event)
                raise
        self.live += 1

    def release(self) -> None:
        """Give room back."""
        self.live -= 1
        self._wake()

    def refused(self) -> None:
        """Note that the engine refused a run for lack of capacity."""
        self.refusals += 1
        self._successes = 0
        if not self._episode:
            self._episode = True
            self.current = max(1, int(self.current * _CUT))

    def succeeded(self) -> None:
        """Note that the engine took a run and saw it through."""
        self._episode = False
        if self.current < self.maximum:
            self._successes += 1
            if self._successes >= self.current:
                self._successes = 0
                self.current += 1
                self._wake()

    def _wake(self) -> None:
        if self._waiters and self.live < self.current:
            self._waiters.popleft().set()


class Permit:
    """One unit of a limit in the hands of one worker; taking and giving back may alternate, and never run twice."""

    __slots__ = ("_limit", "_held")

    def __init__(self, limit: AdaptiveLimit) -> None:
        self._limit = limit
        self._held = False

    async def take(self) -> None:
        """Wait for the unit.

        Cancellation: it is not held.
        """
        await self._limit.acquire()
        self._held = True

    def give_back(self) -> None:
        """Give the unit back, if it is held."""
        if self._held:
            self._held = False
            self._limit.release()
