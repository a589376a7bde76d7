# SPDX-License-Identifier: Apache-2.0
"""How many runs may be live at once: a strict limit that gives way when the engine has no room."""

from __future__ import annotations

from collections import deque
from typing import Final

from anyio import Event

_CUT: Final = 0.8


class AdaptiveLimit:
    """How many permits may be out, ``current``, which never exceeds ``maximum``. Who waits is served in order.

    ``refused`` cuts ``current`` by a fifth, once per episode: a burst of refusals is one message from the engine, not
    many. Each ``current`` successes in a row raise it by one again, up to the maximum (additive increase,
    multiplicative decrease). A cut takes no permit back: it is the next ones that have to wait.
    """

    __slots__ = ("_episode", "_successes", "_waiting", "current", "held", "maximum")

    def __init__(self, maximum: int) -> None:
        if maximum < 1:
            msg = f"the limit must be at least 1, not {maximum}"
            raise ValueError(msg)
        self.maximum: int = maximum
        self.current: int = maximum
        """How many permits may be out now."""
        self.held: int = 0
        """How many permits are out."""
        self._waiting: deque[Event] = deque()
        self._successes = 0
        self._episode = False

    def take_now(self) -> bool:
        """Take a permit if there is one and nobody waits; give whether it was taken."""
        if self.held >= self.current or self._waiting:
            return False
        self.held += 1
        return True

    async def take(self) -> None:
        """Wait for a permit. Does not checkpoint where there is one and nobody waits.

        Cancellation: none is taken.
        """
        if self.take_now():
            return
        turn = Event()
        self._waiting.append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self.give_back()  # it had been handed over already: the next one gets it
            else:
                self._waiting.remove(turn)
            raise

    def give_back(self) -> None:
        """Give a permit back."""
        self.held -= 1
        if self._waiting:
            self._serve()

    def refused(self) -> None:
        """Note that the engine refused a run for lack of capacity."""
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
                self._serve()

    def _serve(self) -> None:
        while self._waiting and self.held < self.current:
            self.held += 1
            self._waiting.popleft().set()
