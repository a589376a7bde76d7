# SPDX-License-Identifier: Apache-2.0
"""The workers of a map: each takes an input, runs it to its end, and hands the outcome over.

A worker holds one unit of the limit from before its launch until the engine has confirmed the end of the run, so the
engine never has more live runs of a map than ``limit``. Outcomes that nobody has taken yet are bounded too: workers
wait before they take another input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import attrs
from anyio import CancelScope, create_task_group, current_time, sleep
from anyio.abc import TaskGroup

from ._exceptions import ConnectionLost, EngineBusy, LocalProtocolError, PieError, ProcessError, ProcessLost
from ._flow.limits import AdaptiveLimit, Permit
from ._map_policy import FailurePolicy
from ._map_queue import OutcomeQueue
from ._map_source import Item, Source
from ._outcomes import AnyOutcome, Failed, Lost, NotStarted, Returned, Terminated
from ._process import Timings, ending_error, timings_of
from ._protocol.messages import LaunchProcess
from ._receipt import Receipt
from ._session.registry import Ending, EndKind, Run
from ._session.session import Session
from ._transport.backoff import Backoff


class Launcher(Protocol):
    """Gives the session for the next run: a client, or a pool of them."""

    async def pick(self) -> Session:
        """Give a session that takes requests."""
        ...

    def put_back(self, session: Session) -> None:
        """Note that a run on a picked session is over."""
        ...


@attrs.frozen(kw_only=True)
class MapOptions:
    """What all runs of one map have in common."""

    make_request: Callable[[Session, Item], LaunchProcess]
    decode: Callable[[str], Any]
    stop_at_first: bool = False
    """The first success is all that is wanted."""
    admission_timeout: float
    """Seconds without any progress after which a refusal for lack of capacity counts as a failure."""
    backoff: Backoff


class MapRunner:
    """Runs the items of one map and keeps its books."""

    def __init__(
        self,
        launcher: Launcher,
        source: Source,
        limit: AdaptiveLimit,
        policy: FailurePolicy,
        outcomes: OutcomeQueue,
        options: MapOptions,
    ) -> None:
        self._launcher = launcher
        self._source = source
        self.limit = limit
        self.policy = policy
        self._outcomes = outcomes
        self._options = options
        self._scope = CancelScope()
        self._workers = 0
        self._deadline: float | None = None
        self._progressed_at = 0.0
        self.input_error: Exception | None = None
        self._following = 0
        self._ended: Counter[str] = Counter()
        self._unconfirmed: dict[Run, None] = {}

    # --- the map as a whole ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run everything; returns when all items have ended, or all that had begun were stopped.

        Cancellation: every live run is ended, within the grace period of the client.
        """
        self._progressed_at = current_time()
        try:
            with self._scope:
                async with create_task_group() as tasks:
                    self._spawn(tasks)
            self.policy.conclude()
        finally:
            self._outcomes.finish()

    def stop(self) -> None:
        """Take no more inputs and end what is running."""
        self._scope.cancel()

    def _spawn(self, tasks: TaskGroup) -> None:
        """Start one more worker, if the limit has use for it; each worker starts the next when it finds work."""
        if self._workers < self.limit.maximum:
            self._workers += 1
            tasks.start_soon(self._work, tasks, name="pie-anyio map worker")

    async def _work(self, tasks: TaskGroup) -> None:
        permit = Permit(self.limit)
        spawned = False
        while True:
            await self._outcomes.wait_for_room()
            try:
                await permit.take()
                item = await self._pull()
                if item is None:
                    return
                if not spawned:
                    spawned = True
                    self._spawn(tasks)
                outcome = await self._run_item(item, permit)
            finally:
                permit.give_back()
            self._hand_over(outcome)

    async def _pull(self) -> Item | None:
        try:
            return await self._source.pull()
        except Exception as exc:
            # The inputs broke: that is for the caller to see. Unless outcomes are collected, it stops the runs.
            self.input_error = exc
            if self.policy.tolerance == 0:
                self.stop()
            return None

    # --- one item --------------------------------------------------------------------------------------------------

    async def _run_item(self, item: Item, permit: Permit) -> AnyOutcome:
        """Run one item to its end, waiting out refusals for lack of capacity."""
        refusals = 0
        while True:
            try:
                run, ending = await self._attempt(item)
            except (ConnectionLost, LocalProtocolError) as exc:
                return self._not_started(item, exc, refusals)
            busy = isinstance(ending.error, EngineBusy)
            if not busy or current_time() - self._progressed_at > self._options.admission_timeout:
                return self._outcome(item, run, ending, refusals)
            refusals += 1
            self.limit.refused()
            permit.give_back()
            await sleep(self._options.backoff.delay(refusals))
            await permit.take()

    async def _attempt(self, item: Item) -> tuple[Run, Ending]:
        session = await self._launcher.pick()
        try:
            run = session.start(self._options.make_request(session, item), quiet=True)
            return run, await self._follow(session, run)
        finally:
            self._launcher.put_back(session)

    async def _follow(self, session: Session, run: Run) -> Ending:
        """Wait for the end of a run; a worker that is cancelled ends it, in whatever state it is."""
        self._following += 1
        try:
            return await run.ended.wait()
        finally:
            if not run.ended.done:
                session.release(run)
                self._unconfirmed[run] = None
                if self._deadline is None:
                    # Shared: a thousand cancelled workers together wait one grace period, not a thousand.
                    self._deadline = session.grace_deadline()
                await session.confirm(run, self._deadline)
            self._following -= 1
            if run.ending is not None:
                self._note_ended(run, run.ending)

    def _note_ended(self, run: Run, ending: Ending) -> None:
        """Enter the end of a run into the books."""
        if ending.kind is EndKind.LOST and run.released:
            return  # told to end, and not seen to: it stays unconfirmed
        self._unconfirmed.pop(run, None)
        started = ending.kind not in (EndKind.REFUSED, EndKind.WITHDRAWN)
        if started or not isinstance(ending.error, EngineBusy):
            self._ended[ending.kind if started else "not_started"] += 1

    # --- outcomes --------------------------------------------------------------------------------------------------

    def _outcome(self, item: Item, run: Run, ending: Ending, refusals: int) -> AnyOutcome:
        self._progressed_at = current_time()
        if ending.kind in (EndKind.RETURNED, EndKind.FAILED):
            self.limit.succeeded()  # the engine had room, whatever the program made of it
        where: dict[str, Any] = {
            "index": item.index,
            "key": item.key,
            "process_id": run.process_id or None,
            "timings": timings_of(run),
            "refusals": refusals,
        }
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

    def _not_started(self, item: Item, exc: PieError, refusals: int) -> AnyOutcome:
        now = current_time()
        text = f"item {item.index} was not started: {exc}"
        error: ProcessError
        if isinstance(exc, ConnectionLost):
            error = ProcessLost(text, issued=False, index=item.index, key=item.key)
        else:
            error = ProcessError(text, index=item.index, key=item.key)
        error.__cause__ = exc
        self._ended["not_started"] += 1
        timings = Timings(submitted=now, ended=now)
        return NotStarted(index=item.index, key=item.key, error=error, timings=timings, refusals=refusals)

    def _hand_over(self, outcome: AnyOutcome) -> None:
        """Give an outcome to the consumer, and judge whether the map goes on."""
        too_many = self.policy.note(outcome.error)
        if not too_many or self.policy.tolerance != 0:
            self._outcomes.put(outcome)
        if too_many or (self._options.stop_at_first and outcome.error is None):
            self.stop()

    @property
    def receipt(self) -> Receipt:
        """The account of this map's runs."""
        ended = self._ended
        unconfirmed = tuple(run.process_id or "?" for run in self._unconfirmed)
        finished = sum(ended[kind] for kind in ("returned", "failed", "terminated", "lost"))
        running = max(0, self._following - len(unconfirmed))
        return Receipt(
            started=finished + running + len(unconfirmed),
            returned=ended["returned"],
            failed=ended["failed"],
            terminated=ended["terminated"],
            lost=ended["lost"],
            running=running,
            not_started=ended["not_started"],
            refusals=self.limit.refusals,
            unconfirmed=unconfirmed,
        )
