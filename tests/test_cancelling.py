# SPDX-License-Identifier: Apache-2.0
"""The harness that cancels at the k-th wait: it must hit each wait, once."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from tests.cancelling import HOWS, CancelPoint, How, at_each_wait

pytestmark = pytest.mark.parametrize(("anyio_backend", "how"), HOWS)


async def test_each_wait_is_cancelled(how: How) -> None:
    """An operation of three waits is cut after none, one and two of them, and then runs through."""
    seen: list[int] = []

    async def scenario(point: CancelPoint) -> None:
        steps = 0

        async def operation() -> str:
            nonlocal steps
            for _ in range(3):
                event = anyio.Event()
                event.set()
                await event.wait()
                steps += 1
            return "done"

        await point.run(operation)
        seen.append(steps)
        assert point.cancelled == point.reached
        assert point.value == (None if point.cancelled else "done")

    waits = await at_each_wait(scenario, how)
    assert waits >= 3
    assert seen[-1] == 3
    assert seen[:-1] == sorted(seen[:-1])
    assert seen[0] == 0
    assert set(seen) == {0, 1, 2, 3}


async def test_an_operation_may_refuse_to_be_cancelled(how: How) -> None:
    """One that is through already when the cancellation comes gives its value."""

    async def scenario(point: CancelPoint) -> None:
        async def operation() -> str:
            try:
                await anyio.lowlevel.checkpoint()
            except anyio.get_cancelled_exc_class():
                return "stubborn"
            return "done"

        await point.run(operation)
        assert not point.cancelled
        assert point.value == ("stubborn" if point.reached else "done")

    assert await at_each_wait(scenario, how) == 1


async def test_errors_are_kept(how: How) -> None:
    """What an operation raises is for the scenario to look at."""

    async def scenario(point: CancelPoint) -> None:
        async def operation() -> None:
            raise ValueError("no")

        await point.run(operation)
        assert isinstance(point.error, ValueError)

    assert await at_each_wait(scenario, how) == 0
