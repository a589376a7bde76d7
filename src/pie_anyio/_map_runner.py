# SPDX-License-Identifier: Apache-2.0
"""The tasks of a map: one that takes inputs and starts their runs, and one that takes what has ended.

A run has no task of its own: the end of each is noted in the step that reads it, and all that ended in one read of the
socket are handed over together. Only what has to wait gets a task while it waits: for a login, for a pool, or for room
after a refusal.

A run holds one unit of the limit from before its launch until the engine has confirmed its end, so the engine never
has more live runs of a map than ``limit``. An input is taken when there is a unit for it and room for its outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs
from anyio import CancelScope, create_task_group, current_time, sleep
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ._exceptions import (
    ConnectionLost,
    EngineBusy,
    LocalProtocolError,
    PieError,
    ProcessError,
    ProcessLost,
    SessionError,
)
from ._fleet import Ending, EndKind, Fleet, Run
from ._flow.backoff import Backoff
from ._flow.limits import AdaptiveLimit
from ._flow.parking import ParkingLot
from ._flow.scopes import raise_single
from ._map_policy import FailurePolicy
from ._map_queue import OutcomeQueue
from ._map_source import Item, Source
from ._outcomes import AnyOutcome, Failed, Lost, NotStarted, Returned, Terminated
from ._process import Timings, ending_error, timings_of

_RETURNED: Final = EndKind.RETURNED  # looked up once: on Python 3.11 that is a call, and each run ends
_BURST: Final = 64  # inputs taken between two checkpoints
_CLASSES: Final[dict[EndKind, type[Terminated | Lost | NotStarted]]] = {
    EndKind.TERMINATED: Terminated,
    EndKind.LOST: Lost,
    EndKind.WITHDRAWN: NotStarted,
}
"""The class of an outcome without a value; Failed for every other end."""


@attrs.frozen(kw_only=True)
class MapOptions:
    """What all runs of one map have in common."""

    token_budget: int | Sequence[int | None] | None
    """One for all, or one for each input."""
    decode: Callable[[str], Any]
    stop_at_first: bool
    """The first success is all that is wanted."""
    admission_timeout: float
    """Seconds with no run under way after which a refusal for lack of capacity counts as a failure."""
    backoff: Backoff
    retry_lost: int
    """How often a lost run may be repeated."""


class MapRunner:
    """Runs the items of one map."""

    def __init__(
        self,
        fleet: Fleet,
        source: Source,
        limit: AdaptiveLimit,
        policy: FailurePolicy,
        outcomes: OutcomeQueue,
        options: MapOptions,
    ) -> None:
        self.fleet = fleet
        self._source = source
        self._limit = limit
        self.policy = policy
        self._outcomes = outcomes
        self._options = options
        self._scope = CancelScope()
        self._tasks: TaskGroup
        self._pending = 0
        """How many items were taken and have no outcome yet."""
        self._room = ParkingLot()
        """There are fewer items pending than before."""
        self._producing = True
        self._stopping = False
        self._stopped = False
        self._now = 0.0
        self._progressed_at = 0.0
        self.error: Exception | None = None
        """What ended the map, other than failures of runs: the inputs broke, or no run could be had at all."""

    # --- the map as a whole ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run everything; returns when all items have ended, or all that had begun were stopped.

        Cancellation: every live run is ended, within the grace period of the client.
        """
        self._progressed_at = current_time()
        try:
            await self._run_tasks()
            self.policy.conclude()
        except Exception as exc:  # noqa: BLE001 - whoever takes the outcomes is told, who else may not be waiting
            self.error = exc
        finally:
            self._outcomes.finish()

    async def _run_tasks(self) -> None:
        try:
            with raise_single(several_failures), self._scope:
                async with create_task_group() as tasks:
                    self._tasks = tasks
                    tasks.start_soon(self._collect, name="pie-anyio map outcomes")
                    await self._produce()
                    self._producing = False
                    self.fleet.wake.set()
        finally:
            # A launch may have been waiting for its session in the very step in which the others were ended.
            try:
                await self.fleet.end_all()
            finally:
                while self.fleet.ended:
                    self.fleet.ended.popleft()  # only the books need to know of it
                    self._drop()

    def stop(self) -> None:
        """Take no more inputs and end what is running."""
        self._stopping = True
        self._scope.cancel()

    # --- inputs ----------------------------------------------------------------------------------------------------

    async def _produce(self) -> None:
        """Take the inputs, all in this one task: a generator may hold cancel scopes open, which belong to a task."""
        burst = _BURST
        while not self._stopping:
            if not (self._has_room() and self._limit.take_now()):
                await self._wait_for_room()
            item = await self._pull() if self._source.waits else self._take()
            if item is None:
                return
            self._pending += 1
            self._begin(item)
            burst -= 1
            if not burst:
                burst = _BURST
                await checkpoint()

    def _has_room(self) -> bool:
        # Refused runs that wait to be tried again hold no permit; without this bound they would pile up.
        return self._pending < self._limit.maximum and self._outcomes.has_room(self._pending)

    async def _wait_for_room(self) -> None:
        """Wait until an input may be taken, and for a permit."""
        while self._pending >= self._limit.maximum:
            await self._room.park()
        while not self._outcomes.has_room(self._pending):
            await self._outcomes.wait_until_taken()
        await self._take_permit()

    async def _take_permit(self) -> None:
        await self._limit.take()
        try:
            await checkpoint_if_cancelled()  # the end of a run that made room may have ended the map as well
        except BaseException:
            self._limit.give_back()
            raise

    def _take(self) -> Item | None:
        """Take the next input. The permit that there is for it goes back where there is none left."""
        item = None
        try:
            item = self._source.take()
        except Exception as exc:  # noqa: BLE001 - the inputs broke, in their own way: that is for the caller to see
            self._break_off(exc)
        if item is None:
            self._limit.give_back()
        return item

    async def _pull(self) -> Item | None:
        """Do the same where an input may be long in coming: a refused run has the permit then, to be tried again."""
        self._limit.give_back()
        try:
            item = await self._source.pull()
        except Exception as exc:  # noqa: BLE001 - as above
            self._break_off(exc)
            return None
        if item is not None:
            await self._take_permit()
        return item

    def _break_off(self, exc: Exception) -> None:
        self.error = exc
        if self.policy.tolerance == 0:
            self.stop()

    # --- runs ------------------------------------------------------------------------------------------------------

    def _begin(self, item: Item) -> None:
        """Start a run that there is a permit for: in this step, or in a task where it has to wait for a session."""
        try:
            if not self.fleet.start_now(item.value, self._budget_of(item), item):
                self._tasks.start_soon(self._start, item, name="pie-anyio map launch")
        except (ConnectionLost, LocalProtocolError) as exc:
            self._give_up(item, exc)

    async def _start(self, item: Item) -> None:
        """Start a run when there is a session for it."""
        try:
            await self.fleet.start(item.value, self._budget_of(item), item)
        except (ConnectionLost, LocalProtocolError) as exc:
            self._give_up(item, exc)
        except BaseException:
            self._drop()
            raise

    async def _start_again(self, item: Item, delay: float) -> None:
        """Start a run that was refused, after a delay and with a new permit."""
        await sleep(delay)
        await self._limit.take()
        await self._start(item)

    def _budget_of(self, item: Item) -> int | None:
        budget = self._options.token_budget
        return budget if budget is None or isinstance(budget, int) else budget[item.index]

    # --- ends ------------------------------------------------------------------------------------------------------

    async def _collect(self) -> None:
        """Take what has ended, and at the end of the map end what has not."""
        try:
            while self._producing or self._pending:
                await self.fleet.wake.wait()
                self._take_ended()
        finally:
            self._stopped = True
            self._take_ended()  # what ended before the map was stopped has an outcome like any other
            await self.fleet.end_all()

    def _take_ended(self) -> None:
        self._now = current_time()
        ended = self.fleet.ended
        while ended:
            self._finish(ended.popleft())

    def _finish(self, run: Run) -> None:
        """Find out what the end of a run means for its item: an outcome, or another try."""
        item, ending = run.purpose, run.ended.value
        assert ending is not None
        if ending.kind is _RETURNED:
            self._progressed_at = self._now
            self._settle(self._returned(item, run, ending))
            return
        if self._may_try_again(ending):
            self._put_off(item)
            return
        outcome = self._failed(item, run, ending)
        if isinstance(outcome, Lost):
            if item.attempts <= self._options.retry_lost and not self._stopped:
                item.lost = outcome
                item.attempts += 1
                self._begin(item)
                return
        elif item.lost is not None and outcome.process_id is None:
            outcome = item.lost  # the repeat was not started, but the run that was lost may have completed
        self._settle(outcome)

    def _may_try_again(self, ending: Ending) -> bool:
        """Tell whether a run was refused for lack of capacity, and may still hope for some."""
        busy = isinstance(ending.error, EngineBusy)
        if not busy or self.fleet.admitted:
            # The runs under way will make room when they end, however long they take.
            self._progressed_at = self._now
        return busy and self._now - self._progressed_at <= self._options.admission_timeout

    def _put_off(self, item: Item) -> None:
        if self._stopped:
            self._drop()
            return
        item.refusals += 1
        self.fleet.refusals += 1
        self._limit.refused()
        self._limit.give_back()
        delay = self._options.backoff.delay(item.refusals)
        self._tasks.start_soon(self._start_again, item, delay, name="pie-anyio map launch")

    def _give_up(self, item: Item, exc: PieError) -> None:
        """Settle an item that no run could be submitted for."""
        if item.lost is not None:
            self._settle(item.lost)
        else:
            self.fleet.unsent += 1
            self._settle(_not_started(item, exc))

    def _settle(self, outcome: AnyOutcome) -> None:
        """Give the outcome of an item to the consumer, and judge whether the map goes on."""
        self._drop()
        too_many = self.policy.note(outcome.error)
        if not too_many or self.policy.tolerance != 0:
            self._outcomes.put(outcome)
        if too_many or (self._options.stop_at_first and outcome.error is None):
            self.stop()

    def _drop(self) -> None:
        """Be done with an item, which holds a permit."""
        self._limit.give_back()
        self._pending -= 1
        self._room.unpark_all()
        if not self._pending:
            self.fleet.wake.set()  # for the collector to see that nothing is pending

    # --- outcomes --------------------------------------------------------------------------------------------------

    def _returned(self, item: Item, run: Run, ending: Ending) -> Returned:
        self._limit.succeeded()
        return Returned(
            index=item.index,
            key=item.key,
            process_id=run.process_id,
            value=self._options.decode(ending.text),
            timings=timings_of(run),
            refusals=item.refusals,
            attempts=item.attempts,
        )

    def _failed(self, item: Item, run: Run, ending: Ending) -> Failed | Terminated | Lost | NotStarted:
        error = ending_error(run, ending, index=item.index, key=item.key)
        if ending.error is not None:
            error.__cause__ = ending.error
        cls: type[Failed | Terminated | Lost | NotStarted] = _CLASSES.get(ending.kind, Failed)
        if ending.kind is EndKind.FAILED:
            self._limit.succeeded()  # the engine had room, whatever the program made of it
        return cls(
            index=item.index,
            key=item.key,
            process_id=run.process_id or None,
            error=error,
            timings=timings_of(run),
            refusals=item.refusals,
            attempts=item.attempts,
        )


def _not_started(item: Item, exc: PieError) -> NotStarted:
    now = current_time()
    text = f"item {item.index} was not started: {exc}"
    error: ProcessError
    if isinstance(exc, ConnectionLost):
        error = ProcessLost(text, issued=False, index=item.index, key=item.key)
    else:
        error = ProcessError(text, index=item.index, key=item.key)
    error.__cause__ = exc
    timings = Timings(submitted=now, ended=now)
    return NotStarted(index=item.index, key=item.key, error=error, timings=timings, refusals=item.refusals)


def several_failures(group: BaseExceptionGroup[BaseException]) -> Exception:
    """Make the one error that stands for several internal ones."""
    return SessionError(f"{len(group.exceptions)} parts of a map failed at once")
