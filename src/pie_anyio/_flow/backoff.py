# SPDX-License-Identifier: Apache-2.0
"""How long to wait before trying again: exponential, with jitter. Pure; whoever uses it sleeps."""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs


@attrs.frozen(kw_only=True)
class Backoff:
    """Delays in seconds: ``initial`` times ``factor`` per attempt, at most ``maximum``, each drawn at random below.

    ``jitter`` is the share of a delay that is random, so that those who failed together do not come back together:
    with 1.0 (full jitter) anything up to the delay, with 0.0 the delay itself.
    """

    initial: float = attrs.field(default=0.05, validator=attrs.validators.gt(0))
    factor: float = attrs.field(default=2.0, validator=attrs.validators.ge(1))
    maximum: float = attrs.field(default=5.0, validator=attrs.validators.gt(0))
    jitter: float = attrs.field(default=0.5, validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    random: Callable[[], float] = attrs.field(default=random.random, repr=False)

    def delay(self, attempt: int) -> float:
        """Give the delay before attempt ``attempt`` (the first retry is 1)."""
        try:
            ceiling = min(self.maximum, self.initial * self.factor ** (attempt - 1))
        except OverflowError:
            ceiling = self.maximum
        return ceiling * (1 - self.jitter * self.random())
