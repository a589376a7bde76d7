# SPDX-License-Identifier: Apache-2.0
"""How many runs may be live at once: a strict limit that gives way when the engine has no room."""

from __future__ import annotations

from typing import Final

from anyio import CapacityLimiter, WouldBlock

_CUT: Final = 0.8


class AdaptiveLimit:
    """How many permits may be out, ``current``, which never exceeds ``maximum``. Who waits is served in order.

    ``refused`` cuts ``current`` by a fifth, once per episode: a burst of refusals is one message from the engine, not
    many. Each ``current`` successes in a row raise it by one again, up to the maximum (additive increase,
    multiplicative decrease). A cut takes no permit back: it is the next ones that have to wait.
    """

    __slots__ = ("_episode", "_successes", "maximum", "tokens")

    def __init__(self, maximum: int) -> None:
        if maximum < 1:
            msg = f"the limit must be at least 1, not {maximum}"
            raise ValueError(msg)
        self.maximum = maximum
        self.tokens = CapacityLimiter(maximum)
        self._successes = 0
        self._episode = False

    @property
    def current(self) -> int:
        """How many permits may be out now."""
        return int(self.tokens.total_tokens)

    @property
    def held(self) -> int:
        """How many permits are out."""
        return self.tokens.borrowed_tokens

    def refused(self) -> None:
        """Note that the engine refused a run for lack of capacity."""
        self._successes = 0
        if not self._episode:
            self._episode = True
            self.tokens.total_tokens = max(1, int(self.current * _CUT))

    def succeeded(self) -> None:
        """Note that the engine took a run and saw it through."""
        self._episode = False
        if self.current < self.maximum:
            self._successes += 1
            if self._successes >= self.current:
                self._successes = 0
                self.tokens.total_tokens = self.current + 1


class Permit:
    """One unit of a limit, for one run; it may be taken and given back again and again."""

    __slots__ = ("_held", "_tokens")

    def __init__(self, limit: AdaptiveLimit) -> None:
        self._tokens = limit.tokens
        self._held = False

    async def take(self) -> None:
        """Wait for the unit. Does not checkpoint where there is one and nobody waits.

        Cancellation: it is not held.
        """
        try:
            self._tokens.acquire_on_behalf_of_nowait(self)
        except WouldBlock:
            await self._tokens.acquire_on_behalf_of(self)
        self._held = True

    def give_back(self) -> None:
        """Give the unit back, if it is held."""
        if self._held:
            self._held = False
            self._tokens.release_on_behalf_of(self)
