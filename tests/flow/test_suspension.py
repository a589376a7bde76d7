# SPDX-License-Identifier: Apache-2.0
"""A suspended machine is noticed by the clock on the wall, in virtual time."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from pie_anyio._flow.suspension import SuspensionWatch
from pie_anyio.testing import virtual_backend


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_backend(request.param)


class Wall:
    """A clock that goes with the loop's, ahead of it by what the machine has slept."""

    def __init__(self) -> None:
        self.slept = 0.0

    def __call__(self) -> float:
        return 1e9 + anyio.current_time() + self.slept

    async def suspend(self, after: float, seconds: float) -> None:
        await anyio.sleep(after)
        self.slept += seconds


async def test_sleeping_without_a_suspension() -> None:
    """It ends when it should."""
    watch = SuspensionWatch(Wall(), nap=5)
    began = anyio.current_time()
    assert await watch.sleep_until(began + 12) is False
    assert anyio.current_time() - began == pytest.approx(12)


async def test_a_point_in_the_past() -> None:
    """There is nothing to wait for."""
    assert await SuspensionWatch(Wall()).sleep_until(anyio.current_time() - 1) is False


@pytest.mark.parametrize(
    ("seconds", "expected"), [(2.9, False), (3.1, True), (3600.0, True), (-3600.0, False)]
)
async def test_a_suspension(seconds: float, expected: bool) -> None:
    """It is noticed at the end of the nap that it fell into; a clock that is set back is none."""
    wall = Wall()
    watch = SuspensionWatch(wall, nap=5, tolerance=3)
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wall.suspend, 7, seconds)
        assert await watch.sleep_until(began + 100) is expected
    assert anyio.current_time() - began == pytest.approx(10 if expected else 100)


async def test_the_real_clock_agrees_with_the_loop() -> None:
    """Without virtual time there is no suspension in a moment."""
    watch = SuspensionWatch(nap=0.001, tolerance=60)
    assert await watch.sleep_until(anyio.current_time() + 0.002) is False
