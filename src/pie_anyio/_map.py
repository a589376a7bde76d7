# SPDX-License-Identifier: Apache-2.0
"""``map_processes`` and ``first_completed``: many runs of one program, bounded, accounted for, and stopped together."""

from __future__ import annotations

import warnings
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Sequence,
    Sized,
)
from contextlib import asynccontextmanager
from typing import Any, Final, Self

from anyio import AsyncContextManagerMixin, create_task_group
from anyio.lowlevel import checkpoint

from ._client import ProcessClient
from ._exceptions import InvalidRequest, PieError, ProcessError
from ._fleet import Fleet
from ._flow.backoff import Backoff
from ._flow.limits import AdaptiveLimit
from ._flow.scopes import raise_single
from ._inferlet import Inferlet
from ._map_policy import KEPT_ERRORS, OnError, failure_policy
from ._map_queue import OutcomeQueue
from ._map_runner import MapOptions, MapRunner, several_failures
from ._map_source import Source
from ._outcomes import AnyOutcome, Returned
from ._pool import ClientPool
from ._process import decode_value
from ._receipt import Receipt

__all__ = ["MapCall", "first_completed", "map_processes"]

DEFAULT_LIMIT: Final = 64
ADMISSION_TIMEOUT: Final = 300.0
BACKOFF: Final = Backoff()
_BURST: Final = 64  # outcomes given between two checkpoints


class MapCall(AsyncContextManagerMixin):
    """A map that has not happened yet: await it for all values, or enter it for outcomes as they complete.

    * ``values = await call``: the list of values in input order. With ``on_error="raise"``, the first failure stops
      the other runs, and once they have ended an ``ExceptionGroup`` of ``ProcessError`` is raised. With any other
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
        admission_timeout: float = ADMISSION_TIMEOUT,
        backoff: Backoff = BACKOFF,
        retry_lost: bool | int = False,
        stop_at_first: bool = False,
        decode: Callable[[str], Any] = decode_value,
    ) -> None:
        self._used = True  # until the arguments turn out to be usable: no warning beside their error
        _check_numbers(limit, retry_lost)
        self._plain = on_error == "raise"
        self._ordered = ordered
        self._total = len(inputs) if isinstance(inputs, Sized) else None
        self._fleet = Fleet(client, program)
        self._limit = AdaptiveLimit(limit)
        self._policy = failure_policy(on_error, self._total)
        self._source = Source(inputs, key)
        self._options = MapOptions(
            token_budget=token_budget,
            decode=decode,
            stop_at_first=stop_at_first,
            admission_timeout=admission_timeout,
            backoff=backoff,
            retry_lost=int(retry_lost),
        )
        self._runner: MapRunner | None = None
        self._burst: int = _BURST
        self._outcomes = OutcomeQueue(ordered=ordered, bound=None)
        self._used = False

    def __del__(self) -> None:
        if not getattr(self, "_used", True):
            name = self._fleet.program
            msg = (
                f"map_processes({name!r}) was neither awaited nor entered with 'async with': nothing was run"
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=2, source=self)

    async def _prepare(self, *, bound: int | None) -> MapRunner:
        if self._used:
            msg = "a map was used twice; call map_processes again for another one"
            raise InvalidRequest(msg)
        self._used = True
        if self._options.token_budget is not None:
            await self._fleet.require("token_budget", "token_budget")
        self._outcomes = OutcomeQueue(ordered=self._ordered, bound=bound)
        runner = MapRunner(
            self._fleet, self._source, self._limit, self._policy, self._outcomes, self._options
        )
        self._runner = runner
        return runner

    # --- awaited ---------------------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, Any, list[Any]]:
        return self._run_all().__await__()

    async def _run_all(self) -> list[Any]:
        runner = await self._prepare(bound=None)
        await runner.run()
        self._raise_errors(runner)
        outcomes = sorted(self._outcomes.drain(), key=lambda outcome: outcome.index)
        return [outcome.value for outcome in outcomes] if self._plain else list(outcomes)

    def _raise_errors(self, runner: MapRunner) -> None:
        """Raise what ended the map, now that everything has been stopped."""
        if runner.error is not None:
            raise runner.error
        policy = self._policy
        if policy.exceeded:
            counts = f"{policy.failures} of {policy.finished} finished runs"
            raise ExceptionGroup(f"map_processes: {counts} of {self._fleet.program} failed", policy.errors)

    # --- entered ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        # Besides the outcomes of what is live, as many may be unread: a slow consumer does not idle the engine at once.
        runner = await self._prepare(bound=2 * self._limit.maximum)
        with raise_single(several_failures) as single:
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
            Exception: whatever the inputs raised, or kept every run from being launched.
            InvalidRequest: the map was not entered.

        Cancellation: loses no outcome.
        """
        runner = self._runner
        if runner is None:
            msg = "enter the map first: 'async with client.map_processes(...) as outcomes:'"
            raise InvalidRequest(msg)
        self._burst -= 1
        if self._burst > 0 and (outcome := self._outcomes.take_now()) is not None:
            return outcome
        self._burst = _BURST
        await checkpoint()
        outcome = await self._outcomes.take()
        if outcome is None:
            self._raise_errors(runner)
            raise StopAsyncIteration
        return outcome

    @property
    def receipt(self) -> Receipt:
        """The account of the runs: how many were started, how each ended, what is unconfirmed."""
        return self._fleet.receipt()

    @property
    def total(self) -> int | None:
        """Number of inputs, where it is known."""
        return self._total

    @property
    def live(self) -> int:
        """Runs that are live on the engine now."""
        return self._fleet.live

    @property
    def limit(self) -> int:
        """How many runs may be live now; less than what was asked for while the engine has no room."""
        return self._limit.current


def _check_numbers(limit: object, retry_lost: object) -> None:
    """Refuse what callers without a type checker may pass."""
    if type(limit) is not int or limit < 1:
        msg = f"limit must be a number of runs, at least 1, not {limit!r}"
        raise InvalidRequest(msg)
    if not isinstance(retry_lost, int) or retry_lost < 0:
        msg = f"retry_lost must be True, False, or a number of repeats, not {retry_lost!r}"
        raise InvalidRequest(msg)


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
    admission_timeout: float = ADMISSION_TIMEOUT,
    backoff: Backoff = BACKOFF,
    retry_lost: bool | int = False,
) -> MapCall:
    """Run a program once for each input, at most ``limit`` at a time; await the call, or enter it.

    ``inputs`` may be any iterable or async iterable, also an endless one: an input is taken only when its run may
    start, so memory is proportional to ``limit``. ``key`` makes an outcome's ``key`` of an input. ``on_error`` is
    ``"raise"``, ``"collect"``, or how many failures to tolerate: a number, or a fraction.

    A launch that the engine refuses for lack of capacity is no failure: it is tried again, after a delay that grows
    and varies, while the number of live runs shrinks. Where none of the runs has been under way for
    ``admission_timeout`` seconds, the refusal counts as a failure after all.

    ``retry_lost`` declares that the program may run more than once for the same input. Then an item whose run is lost
    (the connection went, or the engine lost sight of it) is started again: once with ``True``, or so many times at the
    most. Only the last outcome is given, with its ``attempts``, while the receipt counts every run. Where a repeat
    cannot be started the item stays lost.

    Raises (when awaited or iterated):
        ExceptionGroup: of ``ProcessError``, each with ``index`` and ``key``: more failures than tolerated.
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
        retry_lost=retry_lost,
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
    errors: list[PieError] = []
    winner: Returned | None = None
    failures = 0
    async with call:
        async for outcome in call:
            if isinstance(outcome, Returned):
                winner = outcome
                break
            failures += 1
            if outcome.error is not None and len(errors) < KEPT_ERRORS:
                errors.append(outcome.error)
    if winner is not None:
        return winner
    if not errors:
        errors.append(ProcessError("first_completed: there were no inputs"))
    raise ExceptionGroup(
        f"first_completed: none of {failures} runs of {call._fleet.program} succeeded", errors
    )
