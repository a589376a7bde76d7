# SPDX-License-Identifier: Apache-2.0
"""Progress of many runs: a bar on a terminal, lines now and then in a pipe, or nothing."""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias

from pie_anyio import AnyOutcome

from ._figures import percentile, seconds
from ._output import Output, on_one_line

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

Style: TypeAlias = Literal["none", "plain", "bar"]
STYLES: Final = ("none", "plain", "bar")

_LINE_INTERVAL: Final = 5.0
_BAR_INTERVAL: Final = 0.1
_RECENT: Final = 200


class Tally:
    """Counts of outcomes, and how long the runs took."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.counts: Counter[str] = Counter()
        self.refusals = 0
        self.durations = array("d")
        """Seconds from submission to the end, of the runs that returned."""
        self.first_outputs = array("d")
        """Seconds from submission to the first output, where there was any."""

    @property
    def done(self) -> int:
        """Outcomes so far."""
        return self.counts.total()

    def add(self, outcome: AnyOutcome) -> None:
        """Count an outcome."""
        self.counts[outcome.status] += 1
        self.refusals += outcome.refusals
        timings = outcome.timings
        if outcome.status == "returned" and timings.total is not None:
            self.durations.append(timings.total)
        if timings.to_first_output is not None:
            self.first_outputs.append(timings.to_first_output)

    def describe(self) -> str:
        """Give the counts that matter on one line."""
        parts = [
            f"{count} {status.replace('_', ' ')}"
            for status in ("failed", "terminated", "lost", "not_started")
            if (count := self.counts[status])
        ]
        if self.durations:
            parts.append(f"median {seconds(percentile(sorted(self.durations[-_RECENT:]), 50))}")
        if self.refusals:
            parts.append(f"{self.refusals} refusals")
        return ", ".join(parts)


class Progress:
    """Progress that is not shown, and the base of what is."""

    def __init__(self, tally: Tally, what: str, clock: Callable[[], float] = monotonic) -> None:
        self.tally = tally
        self.what = what
        self._clock = clock
        self._began = clock()
        self._shown = self._began
        self._interval = float("inf")
        self.live = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Show the last state."""
        self._show()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._began

    def restart(self) -> None:
        """Begin to count time now, unless something was counted already."""
        if not self.tally.done:
            self._began = self._shown = self._clock()

    def add(self, outcome: AnyOutcome, live: int) -> None:
        """Count an outcome, and show it if it is time to; ``live`` runs are going on."""
        self.tally.add(outcome)
        self.live = live
        now = self._clock()
        if now - self._shown >= self._interval:
            self._shown = now
            self._show()

    def _show(self) -> None:
        """Show the state; the base does not."""


class PlainProgress(Progress):
    """A line every few seconds, and one at the end."""

    def __init__(self, tally: Tally, what: str, out: Output, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(tally, what, clock)
        self._out = out
        self._interval = _LINE_INTERVAL

    def _show(self) -> None:
        tally = self.tally
        of = "" if tally.total is None else f" of {tally.total}"
        rate = tally.done / self.elapsed if self.elapsed else 0.0
        details = [f"{rate:.3g}/s", f"{self.live} live", tally.describe()]
        self._out.note(f"{self.what}: {tally.done}{of} done, {', '.join(filter(None, details))}")


class BarProgress(Progress):
    """A bar that is drawn again as outcomes come."""

    def __init__(self, tally: Tally, what: str, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(tally, what, clock)
        self._interval = _BAR_INTERVAL
        self._bar, self._task = _make_bar(what, tally.total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._show()
        self._bar.stop()

    def _show(self) -> None:
        details = ", ".join(filter(None, [f"{self.live} live", self.tally.describe()]))
        self._bar.update(self._task, completed=self.tally.done, details=details, refresh=True)


def _make_bar(what: str, total: int | None) -> tuple[RichProgress, TaskID]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[details]}", markup=False),
        console=Console(file=sys.stderr),
        auto_refresh=False,
    )
    return bar, bar.add_task(on_one_line(what), total=total, details="")


def make_progress(style: Style | None, tally: Tally, what: str, out: Output) -> Progress:
    """Make the progress that was asked for, or the one that fits where standard error goes to."""
    if style is None:
        style = "none" if out.quiet else "bar" if sys.stderr.isatty() else "plain"
    if style == "none":
        return Progress(tally, what)
    return PlainProgress(tally, what, out) if style == "plain" else BarProgress(tally, what)
