# SPDX-License-Identifier: Apache-2.0
"""The tasks of a map: one that takes inputs and starts their runs, and one that takes what has ended.

A run has no task of its own: the end of each is noted in the step that reads it, and all that ended in one read of the
socket are handed over together. Only what has to wait gets a task while it waits: for a login, for a pool, or for room
after a refusal.

A run holds one unit of the limit from before its launch until the engine has confirmed its end, so the engine never
has more live runs of a map than ``limit``. An input is taken when there is a unit for it and room for its outcome.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
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
from ._fleet import EndKind, Fleet, Run
from ._flow.backoff import Backoff
from ._flow.limits import AdaptiveLimit, Permit
from ._flow.scopes import raise_single
from ._flow.wake import Wake
from ._map_policy import FailurePolicy
from ._map_queue import OutcomeQueue
from ._map_source import Item, Source
from ._outcomes import AnyOutcome, Failed, Lost, NotStarted, Returned, Terminated
from ._process import Timings, ending_error, timings_of

_BURST: Final = 64  # inputs taken between two checkpoints


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


@attrs.define(eq=False)
class _Job:
    """One item that was taken and has no outcome yet, and what has been tried for it."""

    item: Item
    permit: Permit
    refusals: int = 0
    attempts: int = 1
    lost: Lost | None = None
    """The latest run of it that was lost."""


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
        self._tasks: TaskGroup | None = None
        self._jobs: set[_Job] = set()
        self._ended: deque[tuple[_Job, Run]] = deque()
        self._wake = Wake()
        """There are ended runs, or no more jobs."""
        self._room = Wake()
        """There are fewer jobs than before."""
        self._producing = True
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
                    self._wake.set()
        finally:
            try:
                # A launch may have been waiting for its session in the very step in which the others were ended.
                await self.fleet.end_all()
            finally:
                for job in self._jobs:
                    job.permit.give_back()
                self._jobs.clear()

    def stop(self) -> None:
        """Take no more inputs and end what is running."""
        self._scope.cancel()

    # --- inputs ----------------------------------------------------------------------------------------------------

    async def _produce(self) -> None:
        """Take the inputs, all in this one task: a generator may hold cancel scopes open, which belong to a task."""
        burst = _BURST
        while True:
            await self._outcomes.reserve()
            # Refused runs that wait to be tried again hold no permit; without this bound they would pile up.
            while len(self._jobs) >= self._limit.maximum:
                await self._room.wait()
            permit = Permit(self._limit)
            item = None
            try:
                await permit.take()
                item = await self._pull(permit)
                burst -= 1
                await (checkpoint_if_cancelled() if burst else checkpoint())
            except BaseException:
                permit.give_back()
                raise
            if item is None:
                permit.give_back()
                return
            burst = burst or _BURST
            job = _Job(item, permit)
            self._jobs.add(job)
            self._begin(job)

    async def _pull(self, permit: Permit) -> Item | None:
        try:
            if not self._source.waits:
                return self._source.take()
            # An input that is long in coming must not hold up a refused run that is to be tried again.
            permit.give_back()
            item = await self._source.pull()
            await permit.take()
        except Exception as exc:  # noqa: BLE001 - the inputs broke, in their own way: that is for the caller to see
            self.error = exc
            if self.policy.tolerance == 0:
                self.stop()
            return None
        return item

    # --- runs ------------------------------------------------------------------------------------------------------

    def _begin(self, job: _Job) -> None:
        """Start a run: in this step, or in a task where a session has to be waited for."""
        try:
            if not self.fleet.start_now(job.item.value, self._budget_of(job), partial(self._note_end, job)):
                self._begin_later(job)
        except (ConnectionLost, LocalProtocolError) as exc:
            self._give_up(job, exc)

    def _begin_later(self, job: _Job, delay: float | None = None) -> None:
        assert self._tasks is not None
        self._tasks.start_soon(self._start, job, delay, name="pie-anyio map launch")

    async def _start(self, job: _Job, delay: float | None) -> None:
        """Start a run when there is a session for it; one that was refused, after a delay and with a new permit."""
        try:
            if delay is not None:
                await sleep(delay)
                await job.permit.take()
            await self.fleet.start(job.item.value, self._budget_of(job), partial(self._note_end, job))
        except (ConnectionLost, LocalProtocolError) as exc:
            self._give_up(job, exc)
        except BaseException:
            self._drop(job)
            raise

    def _budget_of(self, job: _Job) -> int | None:
        budget = self._options.token_budget
        return budget if budget is None or isinstance(budget, int) else budget[job.item.index]

    def _note_end(self, job: _Job, run: Run) -> None:
        """Note that a run has ended; called by the reader of the connection, so it only does what cannot fail."""
        if not self._stopped:  # later, only the books need to know of it
            self._ended.append((job, run))
            self._wake.set()

    # --- ends ------------------------------------------------------------------------------------------------------

    async def _collect(self) -> None:
        """Take what has ended, and at the end of the map end what has not."""
        try:
            while self._producing or self._jobs:
                await self._wake.wait()
                self._take_ended()
        finally:
            self._stopped = True
            self._take_ended()  # what ended before the map was stopped has an outcome like any other
            await self.fleet.end_all()

    def _take_ended(self) -> None:
        self._now = current_time()
        while self._ended:
            self._finish(*self._ended.popleft())

    def _finish(self, job: _Job, run: Run) -> None:
        """Find out what the end of a run means for its item: an outcome, or another try."""
        if self._may_try_again(run):
            self._put_off(job)
            return
        outcome = self._outcome(job, run)
        if isinstance(outcome, Lost):
            if job.attempts <= self._options.retry_lost and not self._stopped:
                job.lost = outcome
                job.attempts += 1
                self._begin(job)
                return
        elif job.lost is not None and outcome.process_id is None:
            outcome = job.lost  # the repeat was not started, but the run that was lost may have completed
        self._settle(job, outcome)

    def _may_try_again(self, run: Run) -> bool:
        """Tell whether a run was refused for lack of capacity, and may still hope for some."""
        busy = run.ending is not None and isinstance(run.ending.error, EngineBusy)
        if not busy or self.fleet.admitted:
            # The runs under way will make room when they end, however long they take.
            self._progressed_at = self._now
        return busy and self._now - self._progressed_at <= self._options.admission_timeout

    def _put_off(self, job: _Job) -> None:
        if self._stopped:
            self._drop(job)
            return
        job.refusals += 1
        self.fleet.refusals += 1
        self._limit.refused()
        job.permit.give_back()
        self._begin_later(job, self._options.backoff.delay(job.refusals))

    def _give_up(self, job: _Job, exc: PieError) -> None:
        """Settle an item that no run could be submitted for."""
        if job.lost is not None:
            self._settle(job, job.lost)
        else:
            self.fleet.unsent += 1
            self._settle(job, self._not_started(job, exc))

    def _settle(self, job: _Job, outcome: AnyOutcome) -> None:
        self._drop(job)
        self._hand_over(outcome)

    def _drop(self, job: _Job) -> None:
        job.permit.give_back()
        self._jobs.discard(job)
        self._room.set()
        if not self._jobs:
            self._wake.set()

    # --- outcomes --------------------------------------------------------------------------------------------------

    def _outcome(self, job: _Job, run: Run) -> AnyOutcome:
        ending = run.ending
        assert ending is not None
        item = job.item
        where: dict[str, Any] = {
            "index": item.index,
            "key": item.key,
            "process_id": run.process_id or None,
            "timings": timings_of(run),
            "refusals": job.refusals,
            "attempts": job.attempts,
        }
        if ending.kind in (EndKind.RETURNED, EndKind.FAILED):
            self._limit.succeeded()  # the engine had room, whatever the program made of it
        if ending.kind is EndKind.RETURNED:
            return Returned(value=self._options.decode(ending.text), **where)
        error = ending_error(run, ending, index=item.index, key=item.key)
        if ending.error is not None:
            error.__cause__ = ending.error
        match ending.kind:
            case EndKind.TERMINATED:
                return Terminated(error=error, **where)
            case EndKind.LOST:
                return Lost(error=error, **where)
            case EndKind.WITHDRAWN:
                return NotStarted(error=error, **where)
            case _:
                return Failed(error=error, **where)

    def _not_started(self, job: _Job, exc: PieError) -> AnyOutcome:
        item = job.item
        now = current_time()
        text = f"item {item.index} was not started: {exc}"
        error: ProcessError
        if isinstance(exc, ConnectionLost):
            error = ProcessLost(text, issued=False, index=item.index, key=item.key)
        else:
            error = ProcessError(text, index=item.index, key=item.key)
        error.__cause__ = exc
        timings = Timings(submitted=now, ended=now)
        return NotStarted(index=item.index, key=item.key, error=error, timings=timings, refusals=job.refusals)

    def _hand_over(self, outcome: AnyOutcome) -> None:
        """Give an outcome to the consumer, and judge whether the map goes on."""
        too_many = self.policy.note(outcome.error)
        if not too_many or self.policy.tolerance != 0:
            self._outcomes.put(outcome)
        if too_many or (self._options.stop_at_first and outcome.error is None):
            self.stop()


def several_failures(group: BaseExceptionGroup[BaseException]) -> Exception:
    """Make the one error that stands for several internal ones."""
    return SessionError(f"{len(group.exceptions)} parts of a map failed at once")
