# SPDX-License-Identifier: Apache-2.0
"""How long to wait before trying again: exponential, with full jitter. Pure; whoever uses it sleeps."""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs


@attrs.frozen(kw_only=True)
class Backoff:
    """Delays in seconds: ``initial`` times ``factor`` per attempt, at most ``maximum``, each drawn at random below.

    ``jitter`` is the share of a delay that is random: with 1.0 (full jitter) clients that failed together do not come
    back together.
    """

    initial: float = 0.05
    factor: float = 2.0
    maximum: float = 5.0
    jitter: float = 0.5
    random: Callable[[], float] = attrs.field(default=random.random, repr=False)

    def delay(self, attempt: int) -> float:
        """Give the delay before attempt ``attempt`` (the first retry is 1)."""
        ceiling = min(self.maximum, self.initial * self.factor ** min(attempt - 1, 64))
        return ceiling * (1 - self.jitter * self.random())
