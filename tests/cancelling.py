# SPDX-License-Identifier: Apache-2.0
"""Cancel an operation at its k-th wait, for every k, on both loops.

::

    async def scenario(point: CancelPoint) -> None:
        async with SimulatedEngine() as engine, PieClient(engine.connectable) as client:
            await point.run(client.ping)
            ...  # what must hold, whether it was cancelled (point.cancelled) or not

    assert await at_each_wait(scenario) > 1

A wait is a place where the operation really gave way to the event loop. Whatever it awaits is driven by hand here, and
the cancellation is requested immediately before the k-th wait is handed to the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from itertools import count
from typing import Any, Final, Literal, TypeAlias

import anyio
from anyio import CancelScope

How: TypeAlias = Literal["scope", "native"]
"""By a cancel scope, or by ``Task.cancel()`` of asyncio, which is raised once and goes through shields."""

HOWS: Final[tuple[tuple[str, How], ...]] = (("asyncio", "scope"), ("trio", "scope"), ("asyncio", "native"))
"""What there is to try, as pairs of a loop and a way to cancel."""

_TOO_MANY: Final = 400


class CancelPoint:
    """Runs one operation and cancels it at one of its waits.

    Args:
        number: which wait, from 1 on.
        how: by a scope or natively.
    """

    def __init__(self, number: int, how: How = "scope") -> None:
        self.number = number
        self.how = how
        self.waits = 0
        """How often the operation has given way so far."""
        self.used = False
        self.cancelled = False
        """Whether the operation ended by being cancelled."""
        self.value: Any = None
        """What it returned."""
        self.error: Exception | None = None
        """What it raised instead."""

    @property
    def reached(self) -> bool:
        """Whether the operation had so many waits; if not, it ran through."""
        return self.waits >= self.number

    async def run(self, operation: Callable[[], Awaitable[Any]]) -> None:
        """Run the operation. It must end by itself, or soon after it was cancelled."""
        assert not self.used, "one operation for each point"
        self.used = True
        with CancelScope() as scope:
            cancel = scope.cancel if self.how == "scope" else _native_cancel()
            try:
                self.value = await _Driven(self, operation, cancel)
                return
            except anyio.get_cancelled_exc_class():
                self.cancelled = True
                if self.how == "scope":
                    raise
                _uncancel()
            except Exception as exc:
                self.error = exc


class _Driven:
    """An awaitable that hands the waits of an operation on, and cancels before one of them."""

    def __init__(
        self, point: CancelPoint, operation: Callable[[], Awaitable[Any]], cancel: Callable[[], object]
    ) -> None:
        self._point = point
        self._operation = operation
        self._cancel = cancel

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._operation().__await__()
        resume: Callable[[], Any] = steps.__next__
        while True:
            try:
                wait = resume()
            except StopIteration as stop:
                return stop.value
            self._point.waits += 1
            if self._point.waits == self._point.number:
                self._cancel()
            try:
                answer = yield wait
            except BaseException as exc:
                resume = _throwing(steps, exc)
            else:
                resume = _sending(steps, answer)


def _sending(steps: Generator[Any, Any, Any], answer: object) -> Callable[[], Any]:
    return (lambda: steps.send(answer)) if hasattr(steps, "send") else steps.__next__


def _throwing(steps: Generator[Any, Any, Any], exc: BaseException) -> Callable[[], Any]:
    return lambda: steps.throw(exc)


def _native_cancel() -> Callable[[], object]:
    task = asyncio.current_task()
    assert task is not None
    return task.cancel


def _uncancel() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()


async def at_each_wait(scenario: Callable[[CancelPoint], Awaitable[None]], how: How = "scope") -> int:
    """Play a scenario again and again, cancelled one wait later each time, until its operation runs through.

    Gives the number of waits that the operation has.
    """
    for number in count(1):
        point = CancelPoint(number, how)
        with anyio.fail_after(10):
            await scenario(point)
        assert point.used, "the scenario ran no operation"
        if not point.reached:
            return number - 1
        assert number < _TOO_MANY, "the operation never runs through"
    raise AssertionError
