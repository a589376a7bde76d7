# SPDX-License-Identifier: Apache-2.0
"""How one item of a map ended: one class per way, to be matched or told apart by ``status``."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeAlias

import attrs

from ._exceptions import PieError
from ._process import Timings

__all__ = ["AnyOutcome", "Failed", "Lost", "NotStarted", "Outcome", "Returned", "Terminated"]


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of one input of a map. Exactly one for each input that was taken."""

    status: ClassVar[str]
    index: int
    """Position of the input, from 0."""
    key: Any
    """What ``key=`` made of the input; its index where no ``key=`` was given."""
    process_id: str | None = None
    value: Any = None
    """The decoded value; None unless it returned."""
    error: PieError | None = None
    """Why there is no value; None if it returned."""
    timings: Timings
    refusals: int = 0
    """How often the engine put the launch off for lack of capacity."""
    attempts: int = 1
    """How often it was tried: once, and once more for each lost run that ``retry_lost=`` had repeated."""

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.error is None


@attrs.frozen(kw_only=True)
class Returned(Outcome):
    """The program returned ``value``."""

    status: ClassVar[Literal["returned"]] = "returned"


@attrs.frozen(kw_only=True)
class Failed(Outcome):
    """The program raised, or the engine refused or failed it."""

    status: ClassVar[Literal["failed"]] = "failed"


@attrs.frozen(kw_only=True)
class Terminated(Outcome):
    """The process was terminated, and was seen to end."""

    status: ClassVar[Literal["terminated"]] = "terminated"


@attrs.frozen(kw_only=True)
class Lost(Outcome):
    """Nobody can say how the process ended: the connection went away. It may have completed."""

    status: ClassVar[Literal["lost"]] = "lost"


@attrs.frozen(kw_only=True)
class NotStarted(Outcome):
    """The engine never saw this input: it may be run again safely."""

    status: ClassVar[Literal["not_started"]] = "not_started"


AnyOutcome: TypeAlias = Returned | Failed | Terminated | Lost | NotStarted
"""Any outcome."""
