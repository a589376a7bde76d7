# SPDX-License-Identifier: Apache-2.0
"""When a map gives up: how many failures it tolerates. Pure decisions, no waiting."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import attrs

from ._exceptions import InvalidRequest, PieError

OnError: TypeAlias = Literal["raise", "collect"] | int | float

_UNSIZED_MINIMUM: Final = 20
KEPT_ERRORS: Final = 1000


@attrs.define
class FailurePolicy:
    """Counts failures and says when there are too many.

    ``"raise"`` tolerates none and ``"collect"`` any number; an int tolerates so many; a float between 0 and 1 tolerates
    that share of all items, or, where their number is not known, of the items finished so far, judged from the
    twentieth on and at the end.
    """

    tolerance: float | None
    """None tolerates everything."""
    is_share: bool
    total: int | None
    failures: int = 0
    finished: int = 0
    exceeded: bool = False
    errors: list[PieError] = attrs.field(factory=list[PieError])
    """The first of them, for the exception that the map raises."""

    def note(self, error: PieError | None) -> bool:
        """Note one finished item; give whether the map must stop."""
        self.finished += 1
        if error is not None:
            self.failures += 1
            if self.tolerance is not None and len(self.errors) < KEPT_ERRORS:
                self.errors.append(error)
        elif not self.is_share:
            return self.exceeded  # a success changes no count of failures
        if self.is_share and self.total is None and self.finished < _UNSIZED_MINIMUM:
            return False
        return self._judge(self.total or self.finished)

    def conclude(self) -> None:
        """Judge a share of a number of items that is known only now."""
        self._judge(self.total or self.finished)

    def _judge(self, items: int) -> bool:
        if self.tolerance is not None:
            allowed = self.tolerance * items if self.is_share else self.tolerance
            self.exceeded = self.exceeded or self.failures > allowed
        return self.exceeded


def failure_policy(on_error: OnError, total: int | None) -> FailurePolicy:
    """Read ``on_error=``; ``total`` is the number of items where it is known.

    Raises:
        InvalidRequest: it is neither ``"raise"``, ``"collect"``, a count, nor a fraction.
    """
    if on_error == "raise":
        return FailurePolicy(0, False, total)
    if on_error == "collect":
        return FailurePolicy(None, False, total)
    if isinstance(on_error, int) and not isinstance(on_error, bool) and on_error >= 0:
        return FailurePolicy(on_error, False, total)
    if isinstance(on_error, float) and 0 < on_error < 1:
        return FailurePolicy(on_error, True, total)
    msg = f"on_error must be 'raise', 'collect', a number of failures, or a fraction between 0 and 1; not {on_error!r}"
    raise InvalidRequest(msg)
