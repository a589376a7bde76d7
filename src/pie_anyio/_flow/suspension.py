# SPDX-License-Identifier: Apache-2.0
"""Notice that the machine was suspended: the loop's clock stands still meanwhile, the clock on the wall does not."""

from __future__ import annotations

import time
from collections.abc import Callable

from anyio import current_time, sleep_until


class SuspensionWatch:
    """Sleeps in naps, and compares the two clocks after each.

    A laptop that was closed for an hour has connections that ended long ago and timers that know nothing of it. A
    clock that is set forward looks the same from here; what follows from this must do no harm.

    Args:
        wall: the clock on the wall, in seconds.
        nap: the longest time, in seconds of the loop's clock, until a suspension is noticed.
        tolerance: the smallest suspension, in seconds, that is noticed.
    """

    __slots__ = ("_nap", "_tolerance", "_wall")

    def __init__(
        self, wall: Callable[[], float] = time.time, *, nap: float = 5.0, tolerance: float = 3.0
    ) -> None:
        self._wall = wall
        self._nap = nap
        self._tolerance = tolerance

    async def sleep_until(self, deadline: float) -> bool:
        """Sleep until a point in time on the loop's clock; True, early, as soon as a suspension is noticed.

        Cancellation: loses nothing.
        """
        while (now := current_time()) < deadline:
            seen = self._wall()
            await sleep_until(min(deadline, now + self._nap))
            if (self._wall() - seen) - (current_time() - now) > self._tolerance:
                return True
        return False
