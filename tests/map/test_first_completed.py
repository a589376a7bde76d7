# SPDX-License-Identifier: Apache-2.0
"""Races: the first success wins, and the others are terminated."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from pie_anyio import PieClient, ProcessError, ProcessFailed, ProcessLost, Receipt, Returned, first_completed
from pie_anyio.testing import SimulatedEngine

ECHO, HANG, FAIL, DO = "echo@0.1.0", "hang@0.1.0", "fail@0.1.0", "do@0.1.0"


async def test_the_quickest_wins(engine: SimulatedEngine, client: PieClient) -> None:
    """The losers have been seen to end when its outcome is there."""
    inputs = [{"nap": 3, "give": "slow"}, {"nap": 1, "give": "quick"}, {"hang": True}]
    winner = await client.first_completed(DO, inputs)
    assert isinstance(winner, Returned)
    assert (winner.index, winner.value) == (1, "quick")
    assert engine.live_processes == {}
    assert client.receipt == Receipt(started=3, returned=1, terminated=2)


async def test_failures_do_not_win(engine: SimulatedEngine, client: PieClient) -> None:
    """A success that comes later does."""
    inputs = [{"fail": "x"}, {"fail": "y"}, {"nap": 1, "give": 3}, {"hang": True}]
    assert (await first_completed(client, DO, inputs, limit=3)).index == 2
    assert engine.live_processes == {}


async def test_all_fail(engine: SimulatedEngine, client: PieClient) -> None:
    """The group has all their errors."""
    with pytest.raises(ExceptionGroup, match=r"none of 3 runs of fail@0\.1\.0 succeeded") as caught:
        await client.first_completed(FAIL, range(3))
    errors = caught.value.exceptions
    assert all(isinstance(error, ProcessFailed) for error in errors)
    assert sorted(error.index or 0 for error in errors if isinstance(error, ProcessError)) == [0, 1, 2]


@pytest.mark.parametrize("profile", ["v05"])
async def test_a_thousand_errors_are_enough(client: PieClient) -> None:
    """A race that goes on and on does not keep them all."""
    with pytest.raises(ExceptionGroup, match=r"none of 1005 runs") as caught:
        await client.first_completed(FAIL, range(1005))
    assert len(caught.value.exceptions) == 1000


async def test_nobody_runs(client: PieClient) -> None:
    """A race without inputs has no winner."""
    with pytest.raises(ExceptionGroup) as caught:
        await client.first_completed(ECHO, [])
    (error,) = caught.value.exceptions
    assert isinstance(error, ProcessError)
    assert "no inputs" in str(error)


async def test_endless_inputs(engine: SimulatedEngine, client: PieClient) -> None:
    """Only as many as may run at a time are started before there is a winner, and none after it."""
    inputs = ({"nap": 5 + n, "give": n} for n in itertools.count())
    assert (await client.first_completed(DO, inputs, limit=4)).value == 0
    assert engine.started_total == 4
    assert engine.live_processes == {}


async def test_inputs_that_break_before_there_is_a_winner(engine: SimulatedEngine, client: PieClient) -> None:
    """The winner is what counts; without one, the exception of the inputs."""

    def inputs(first: dict[str, Any]) -> Iterator[Any]:
        yield first
        raise OSError("gone")

    assert (await client.first_completed(DO, inputs({"nap": 1, "give": 7}))).value == 7
    with pytest.raises(OSError, match="gone"):
        await client.first_completed(DO, inputs({"fail": "x"}))


async def test_a_race_is_cancelled(engine: SimulatedEngine, client: PieClient) -> None:
    """All are terminated."""
    with anyio.move_on_after(2):
        await client.first_completed(HANG, range(9), limit=3)
    assert client.receipt == Receipt(started=3, terminated=3)
    assert engine.live_processes == {}


async def test_the_connection_goes_away(engine: SimulatedEngine, client: PieClient) -> None:
    """All are lost, and the group says so."""
    with pytest.raises(ExceptionGroup) as caught:
        async with anyio.create_task_group() as tasks:

            async def drop() -> None:
                await engine.wait_live(3)
                await anyio.sleep(1)
                engine.faults.drop_connections()

            tasks.start_soon(drop)
            await client.first_completed(HANG, range(3))
    assert caught.value.subgroup(ProcessLost) is not None
