# SPDX-License-Identifier: Apache-2.0
"""The tasks of a map: one that takes inputs, and one for each run, which hands over the outcome.

A run holds one unit of the limit from before its launch until the engine has confirmed its end, so the engine never
has more live runs of a map than ``limit``. An input is taken when there is a unit for it and room for its outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from anyio import CancelScope, Semaphore, create_task_group, current_time, sleep
from anyio.abc import TaskGroup

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
from ._inferlet import Inferlet
from ._map_policy import FailurePolicy
from ._map_queue import OutcomeQueue
from ._map_source import Item, Source
from ._outcomes import AnyOutcome, Failed, Lost, NotStarted, Returned, Terminated
from ._process import Timings, ending_error, timings_of


@attrs.frozen(kw_only=True)
class MapOptions:
    """What all runs of one map have in common."""

    program: str | Inferlet[..., Any]
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
class _Tries:
    """What has been tried for one item."""

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
        # Runs that wait to be tried again hold no permit; without a bound of their own they would pile up.
        self._places = Semaphore(limit.maximum, fast_acquire=True)
        self.policy = policy
        self._outcomes = outcomes
        self._options = options
        self._scope = CancelScope()
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
            with raise_single(several_failures), self._scope:
                async with create_task_group() as tasks:
                    await self._produce(tasks)
            self.policy.conclude()
        except Exception as exc:  # noqa: BLE001 - whoever takes the outcomes is told, who else may not be waiting
            self.error = exc
        finally:
            self._outcomes.finish()

    def stop(self) -> None:
        """Take no more inputs and end what is running."""
        self._scope.cancel()

    async def _produce(self, tasks: TaskGroup) -> None:
        """Take the inputs, all in this one task: a generator may hold cancel scopes open, which belong to a task."""
        while True:
            await self._outcomes.reserve()
            await self._places.acquire()
            permit = Permit(self._limit)
            item = None
            try:
                await permit.take()
                item = await self._pull(permit)
            finally:
                if item is None:
                    permit.give_back()
            if item is None:
                return
            tasks.start_soon(self._work, item, permit, name="pie-anyio map run")

    async def _pull(self, permit: Permit) -> Item | None:
        try:
            if not self._source.waits:
                return await self._source.pull()
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

    # --- one item --------------------------------------------------------------------------------------------------

    async def _work(self, item: Item, permit: Permit) -> None:
        try:
            outcome = await self._run_item(item, permit)
        finally:
            permit.give_back()
            self._places.release()
        self._hand_over(outcome)

    async def _run_item(self, item: Item, permit: Permit) -> AnyOutcome:
        """Run one item to its end, and again for as long as it is lost and may be repeated."""
        tries = _Tries()
        while True:
            outcome = await self._try_item(item, permit, tries)
            if isinstance(outcome, Lost):
                if tries.attempts > self._options.retry_lost:
                    return outcome
            elif tries.lost is not None and outcome.process_id is None:
                return tries.lost  # the repeat was not started, but the run that was lost may have completed
            else:
                return outcome
            tries.lost = outcome
            tries.attempts += 1

    async def _try_item(self, item: Item, permit: Permit, tries: _Tries) -> AnyOutcome:
        """Run one item once, waiting out refusals for lack of capacity."""
        options = self._options
        budget = options.token_budget
        if budget is not None and not isinstance(budget, int):
            budget = budget[item.index]
        while True:
            try:
                run = await self.fleet.run(options.program, item.value, budget)
            except (ConnectionLost, LocalProtocolError) as exc:
                return self._not_started(item, exc, tries)
            if not self._may_try_again(run):
                return self._outcome(item, run, tries)
            tries.refusals += 1
            self.fleet.refusals += 1
            self._limit.refused()
            permit.give_back()
            await sleep(options.backoff.delay(tries.refusals))
            await permit.take()

    def _may_try_again(self, run: Run) -> bool:
        """Tell whether a run was refused for lack of capacity, and may still hope for some."""
        now = current_time()
        busy = run.ending is not None and isinstance(run.ending.error, EngineBusy)
        if not busy or self.fleet.admitted:
            # The runs under way will make room when they end, however long they take.
            self._progressed_at = now
        return busy and now - self._progressed_at <= self._options.admission_timeout

    # --- outcomes --------------------------------------------------------------------------------------------------

    def _outcome(self, item: Item, run: Run, tries: _Tries) -> AnyOutcome:
        ending = run.ending
        assert ending is not None
        where: dict[str, Any] = {
            "index": item.index,
            "key": item.key,
            "process_id": run.process_id or None,
            "timings": timings_of(run),
            "refusals": tries.refusals,
            "attempts": tries.attempts,
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

    def _not_started(self, item: Item, exc: PieError, tries: _Tries) -> AnyOutcome:
        now = current_time()
        text = f"item {item.index} was not started: {exc}"
        error: ProcessError
        if isinstance(exc, ConnectionLost):
            error = ProcessLost(text, issued=False, index=item.index, key=item.key)
        else:
            error = ProcessError(text, index=item.index, key=item.key)
        error.__cause__ = exc
        self.fleet.unsent += tries.lost is None
        timings = Timings(submitted=now, ended=now)
        return NotStarted(
            index=item.index, key=item.key, error=error, timings=timings, refusals=tries.refusals
        )

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
