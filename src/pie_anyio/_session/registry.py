# SPDX-License-Identifier: Apache-2.0
"""The runs that a session has started or attached to, from submission to the end, and the books about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

import attrs

from .._flow.buffers import EventBuffer, OverflowPolicy
from .._flow.pausing import Buffers
from .._flow.slots import ReplySlot
from .._receipt import Receipt
from .._types import CorrelationId


class EndKind(StrEnum):
    """How a run ended."""

    RETURNED = "returned"
    FAILED = "failed"
    TERMINATED = "terminated"
    LOST = "lost"
    REFUSED = "refused"
    """The engine refused the launch: nothing was started."""
    WITHDRAWN = "withdrawn"
    """The launch never left this machine."""
    DETACHED = "detached"
    """It was left to itself, and the connection that told of it has ended."""


# Looked up once: on Python 3.11 that is a call, and each run ends.
_LOST: Final = EndKind.LOST
_NOT_STARTED: Final = frozenset({EndKind.REFUSED, EndKind.WITHDRAWN})


@attrs.define(eq=False)  # there is one for every run, and a frozen one costs twice as much to make
class Ending:
    """How a run ended, and with what; never changed."""

    kind: EndKind
    text: str = ""
    """The returned value or the engine's error text."""
    tail: str = ""
    """The last of what an unread process printed."""
    error: Exception | None = None
    """Set for ``REFUSED``, ``LOST`` and ``DETACHED``."""


@attrs.define(eq=False)
class Run:
    """One process as its client sees it, from before its launch is sent until its ending is known."""

    program: str
    corr_id: CorrelationId
    started: ReplySlot[str]
    """Resolves with the process id, or with the error of the launch."""
    ended: ReplySlot[Ending]
    """Resolves, always with a value, when nothing more can happen."""
    overflow: OverflowPolicy | None = None
    """What becomes of output that is not read in time; None where nobody reads any."""
    buffer: EventBuffer | None = None
    """Unread events, once there was one or somebody waited for one: many a run only returns."""
    process_id: str = ""
    told: bool = False
    """Its end was received, or its owner left; a run without a buffer needs to know."""
    attached: bool = False
    """Somebody else launched it; this client attached."""
    released: bool = False
    """Its owner left, and it is being ended."""
    terminating: bool = False
    """This client asked the engine to terminate it."""
    detached: bool = False
    counted: bool = False
    """The books hold it as started."""
    reattaching: ReplySlot[tuple[bool, str]] | None = None
    """Set while an attach is under way that continues the run on a new connection; resolves with its answer."""
    submitted_at: float = 0.0
    started_at: float | None = None
    first_output_at: float | None = None
    ended_at: float | None = None
    purpose: Any = None
    """What its owner started it for."""
    at_end: Callable[[Run], object] | None = None
    """Called with the run in the step in which its end becomes known, by the reader: it must not raise. For an owner of
    many runs, to whom a waiting task for each would cost more than all the rest."""

    def finish(self, ending: Ending) -> bool:
        """Make the end known; False where one is known already, which then stands."""
        first = self.ended.set_result(ending)
        if first and self.at_end is not None:
            self.at_end(self)
        return first

    def stop_pausing(self) -> None:
        """Do not hold the connection up for the sake of this run from here on. Idempotent."""
        if self.overflow == "pause":
            self.overflow = "drop_oldest"
        if self.buffer is not None:
            self.buffer.stop_pausing()

    @property
    def ending(self) -> Ending | None:
        """How the run ended, once that is known."""
        return self.ended.value


class Registry:
    """Live runs, and the counts of those that ended."""

    __slots__ = ("_buffers", "_ended", "by_id", "started", "unconfirmed")

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self.by_id: dict[str, Run] = {}
        self.unconfirmed: dict[Run, str] = {}
        self.started: int = 0
        self._ended: Counter[EndKind] = Counter()

    def start(self, run: Run, process_id: str) -> None:
        """Note the id that the engine gave."""
        run.process_id = process_id
        self.by_id[process_id] = run
        self._count(run)
        if self.unconfirmed and run in self.unconfirmed:
            self.unconfirmed[run] = process_id
        run.started.set_result(process_id)

    def end(self, run: Run, ending: Ending) -> None:
        """Note the end of a run, once."""
        if not run.finish(ending):
            return
        kind = ending.kind
        self.by_id.pop(run.process_id, None)
        if kind in _NOT_STARTED:
            self._uncount(run)
        if kind is _LOST:
            self._count(run)  # it may have started, even where its id never became known
            if run.released:
                self.note_unconfirmed(run)
                return
        elif self.unconfirmed:
            self.unconfirmed.pop(run, None)
        self._ended[kind] += 1

    def open_buffer(self, run: Run) -> EventBuffer | None:
        """Give the buffer of a run, making it where there may be something to put into it."""
        if run.buffer is None and run.overflow is not None and not (run.released or run.ended.done):
            run.buffer = self._buffers.new(run.overflow)
            run.buffer.process_id = run.process_id
        return run.buffer

    def note_unconfirmed(self, run: Run) -> None:
        """Put a run on record that was told to end and was not seen to."""
        self.unconfirmed[run] = run.process_id or "?"
        self._count(run)

    def _count(self, run: Run) -> None:
        if not run.counted:
            run.counted = True
            self.started += 1

    def _uncount(self, run: Run) -> None:
        """Take back that a launch was counted which, as it turned out, started nothing."""
        if run.counted:
            run.counted = False
            self.started -= 1

    def receipt(self) -> Receipt:
        """Give the account as it stands."""
        ended = self._ended
        live = [run for run in self.by_id.values() if run not in self.unconfirmed]
        detached = sum(run.detached for run in live)
        return Receipt(
            started=self.started,
            returned=ended[EndKind.RETURNED],
            failed=ended[EndKind.FAILED],
            terminated=ended[EndKind.TERMINATED],
            detached=detached + ended[EndKind.DETACHED],
            lost=ended[EndKind.LOST],
            running=len(live) - detached,
            not_started=ended[EndKind.REFUSED] + ended[EndKind.WITHDRAWN],
            unconfirmed=tuple(self.unconfirmed.values()),
        )
