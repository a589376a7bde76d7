# SPDX-License-Identifier: Apache-2.0
"""``map_processes`` and ``first_completed``: many runs of one program, bounded, accounted for, and stopped together."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Sequence, Sized
from contextlib import asynccontextmanager
from typing import Any, Final, Self

from anyio import AsyncContextManagerMixin, create_task_group
from anyio.lowlevel import checkpoint

from ._client import ProcessClient
from ._exceptions import InvalidRequest, ProcessError, SessionError
from ._flow.limits import AdaptiveLimit
from ._flow.scopes import raise_single
from ._inferlet import Inferlet
from ._map_policy import OnError, failure_policy
from ._map_queue import OutcomeQueue
from ._map_runner import MapOptions, MapRunner
from ._map_source import Item, Source
from ._outcomes import AnyOutcome, Returned
from ._pool import ClientPool
from ._process import decode_value
from ._programs import encode_input, program_name
from ._protocol.messages import LaunchProcess
from ._receipt import Receipt
from ._session.session import Session
from ._transport.backoff import Backoff

__all__ = ["MapCall", "first_completed", "map_processes"]

DEFAULT_LIMIT: Final = 64
_BACKOFF: Final = Backoff()


class MapCall(AsyncContextManagerMixin):
    """A map that has not happened yet: await it for all values, or enter it for outcomes as they complete.

    * ``values = await call``: the list of values in input order. With ``on_error="raise"``, the first failure stops
      the other runs, and once they have ended an ``ExceptionGroup`` of ``ProcessError``\\ s is raised. With any other
      ``on_error`` the list holds an ``Outcome`` for every input.
    * ``async with call as outcomes: async for outcome in outcomes``: outcomes as they complete, or in input order
      with ``ordered=True``. Leaving the block, also by ``break`` or an exception, stops every live run.

    :attr:`receipt` accounts for every run, during the map and after it. A call that is neither awaited nor entered
    does nothing, and warns about it.

    Cancellation: the live runs are terminated, whatever state they are in, and waited for up to the client's
    ``terminate_grace`` together; what has not confirmed by then is named in the receipt.
    """

    def __init__(
        self,
        client: ProcessClient | ClientPool,
        program: str | Inferlet[..., Any],
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        limit: int = DEFAULT_LIMIT,
        ordered: bool = False,
        on_error: OnError = "raise",
        key: Callable[[Any], Any] | None = None,
        token_budget: int | Sequence[int | None] | None = None,
        admission_timeout: float = 300.0,
        backoff: Backoff = _BACKOFF,
        stop_at_first: bool = False,
        decode: Callable[[str], Any] = decode_value,
    ) -> None:
        self._used = True  # until the arguments turn out to be usable: no warning beside their error
        if isinstance(limit, bool) or limit < 1:
            msg = f"limit must be a number of runs, at least 1, not {limit!r}"
            raise InvalidRequest(msg)
        self._client = client
        self._program = program
        self._token_budget = token_budget
        self._plain = on_error == "raise"
        total = len(inputs) if isinstance(inputs, Sized) else None
        self._total = total
        self._limit = AdaptiveLimit(limit)
        self._policy = failure_policy(on_error, total)
        self._ordered = ordered
        self._source = Source(inputs, key)
        self._options = MapOptions(
            make_request=self._make_request,
            decode=decode,
            stop_at_first=stop_at_first,
            admission_timeout=admission_timeout,
            backoff=backoff,
        )
        self._queue: OutcomeQueue | None = None
        self._runner: MapRunner | None = None
        self._used = False

    def __del__(self) -> None:
        if not getattr(self, "_used", True):
            msg = f"map_processes({self._program!r}) was neither awaited nor entered with 'async with': nothing was run"
            warnings.warn(msg, RuntimeWarning, stacklevel=2, source=self)

    def _make_request(self, session: Session, item: Item) -> LaunchProcess:
        capabilities = session.capabilities
        bare = capabilities is not None and capabilities.bare_program_names
        budget = self._token_budget
        if budget is not None and not isinstance(budget, int):
            budget = budget[item.index]
        return LaunchProcess(program_name(self._program, bare=bare), encode_input(item.value), True, budget)

    async def _prepare(self, *, bound: int | None) -> tuple[MapRunner, OutcomeQueue]:
        if self._used:
            msg = "a map was used twice; call map_processes again for another one"
            raise InvalidRequest(msg)
        self._used = True
        if self._token_budget is not None:
            session = await self._client.pick()
            try:
                await session.require("token_budget", "token_budget")
            finally:
                self._client.put_back(session)
        self._queue = OutcomeQueue(ordered=self._ordered, bound=bound)
        self._runner = MapRunner(self._client, self._source, self._limit, self._policy, self._queue, self._options)
        return self._runner, self._queue

    # --- awaited ---------------------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, Any, list[Any]]:
        return self._run_all().__await__()

    async def _run_all(self) -> list[Any]:
        outcomes = await self._all_outcomes()
        outcomes.sort(key=lambda outcome: outcome.index)
        return [outcome.value for outcome in outcomes] if self._plain else list(outcomes)

    async def _all_outcomes(self) -> list[AnyOutcome]:
        runner, queue = await self._prepare(bound=None)
        await runner.run()
        self._raise_errors(runner)
        return queue.drain()

    def _raise_errors(self, runner: MapRunner) -> None:
        """Raise what ended the map, now that everything has been stopped."""
        if runner.input_error is not None:
            raise runner.input_error
        policy = runner.policy
        if policy.exceeded:
            text = f"map_processes: {policy.failures} of {policy.finished} finished runs of {self._program} failed"
            raise ExceptionGroup(text, policy.errors)

    # --- entered ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        runner, _ = await self._prepare(bound=self._limit.maximum)
        with raise_single(_several_failures) as single:
            async with create_task_group() as tasks:
                tasks.start_soon(runner.run, name="pie-anyio map")
                try:
                    with single.body:
                        yield self
                finally:
                    runner.stop()

    def __aiter__(self) -> AsyncIterator[AnyOutcome]:
        return self

    async def __anext__(self) -> AnyOutcome:
        """Give the next outcome.

        Raises:
            ExceptionGroup: too many runs have failed; the others were stopped.
            InvalidRequest: the map was not entered.

        Cancellation: loses no outcome.
        """
        runner, queue = self._runner, self._queue
        if runner is None or queue is None:
            msg = "enter the map first: 'async with client.map_processes(...) as outcomes:'"
            raise InvalidRequest(msg)
        await checkpoint()
        outcome = await queue.take()
        if outcome is None:
            self._raise_errors(runner)
            raise StopAsyncIteration
        return outcome

    @property
    def receipt(self) -> Receipt:
        """The account of the runs: how many were started, how each ended, what is unconfirmed."""
        return Receipt() if self._runner is None else self._runner.receipt

    @property
    def total(self) -> int | None:
        """Number of inputs, where it is known."""
        return self._total

    @property
    def live(self) -> int:
        """Runs that are live on the engine now."""
        return self._limit.live

    @property
    def limit(self) -> int:
        """How many runs may be live now; less than what was asked for while the engine has no room."""
        return self._limit.current


def _several_failures(group: BaseExceptionGroup[BaseException]) -> Exception:
    return SessionError(f"{len(group.exceptions)} parts of a map failed at once")


def map_processes(
    client: ProcessClient | ClientPool,
    program: str | Inferlet[..., Any],
    inputs: Iterable[Any] | AsyncIterable[Any],
    *,
    limit: int = DEFAULT_LIMIT,
    ordered: bool = False,
    on_error: OnError = "raise",
    key: Callable[[Any], Any] | None = None,
    token_budget: int | None = None,
    admission_timeout: float = 300.0,
    backoff: Backoff = _BACKOFF,
) -> MapCall:
    """Run a program once for each input, at most ``limit`` at a time; await the call, or enter it.

    ``inputs`` may be any iterable or async iterable, also an endless one: an input is taken only when its run may
    start, so memory is proportional to ``limit``. ``key`` makes an outcome's ``key`` of an input. ``on_error`` is
    ``"raise"``, ``"collect"``, or how many failures to tolerate: a number, or a fraction.

    A launch that the engine refuses for lack of capacity is no failure: it is tried again, after a delay that grows
    and varies, while the number of live runs shrinks. Where no run makes any progress for ``admission_timeout``
    seconds, the refusal counts as a failure after all.

    Raises (when awaited or iterated):
        ExceptionGroup: of ``ProcessError``\\ s, each with ``index`` and ``key``: more failures than tolerated.
        Exception: whatever ``inputs`` or ``key`` raised, once the live runs have ended.

    Cancellation: see :class:`MapCall`.
    """
    return MapCall(
        client,
        program,
        inputs,
        limit=limit,
        ordered=ordered,
        on_error=on_error,
        key=key,
        token_budget=token_budget,
        admission_timeout=admission_timeout,
        backoff=backoff,
    )


async def first_completed(
    client: ProcessClient | ClientPool,
    program: str | Inferlet[..., Any],
    inputs: Iterable[Any] | AsyncIterable[Any],
    *,
    limit: int = DEFAULT_LIMIT,
) -> Returned:
    """Race a program over several inputs: the first success wins, and the others are terminated and confirmed.

    Gives the outcome of the winner, with its ``index`` and ``value``.

    Raises:
        ExceptionGroup: all of them failed, or there were no inputs (then of one ``ProcessError``).

    Cancellation: all runs are terminated, as for :class:`MapCall`.
    """
    call = MapCall(client, program, inputs, limit=limit, on_error="collect", stop_at_first=True)
    outcomes = await call
    winners = [outcome for outcome in outcomes if isinstance(outcome, Returned)]
    if winners:
        return min(winners, key=lambda outcome: outcome.timings.ended or 0.0)
    errors = [outcome.error for outcome in outcomes] or [ProcessError("first_completed: there were no inputs")]
    text = f"first_completed: none of {len(outcomes)} runs of {program} succeeded"
    raise ExceptionGroup(text, errors)
