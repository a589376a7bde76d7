# SPDX-License-Identifier: Apache-2.0
"""Runs that nobody knows the end of, started again where the caller says that the program may run twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from tests.map.conftest import add_programs

from pie_anyio import (
    Backoff,
    ClientPool,
    Failed,
    InvalidRequest,
    Lost,
    NotStarted,
    PieClient,
    ProcessLost,
    Receipt,
    Returned,
    map_processes,
)
from pie_anyio.testing import InferletSession, SimulatedEngine

DO, HANG, FRAGILE = "do@0.1.0", "hang@0.1.0", "fragile@0.1.0"


@pytest.fixture(params=["v05"])
def profile(request: pytest.FixtureRequest) -> Any:
    """Aborted streams are of 0.5; nothing else here depends on the generation."""
    return request.param


@pytest.fixture
def starts(engine: SimulatedEngine) -> list[Any]:
    """Install a program that lets the engine lose sight of it as often as its input says; give its inputs."""
    starts: list[Any] = []

    @engine.inferlet(FRAGILE)
    async def fragile(session: InferletSession, input: dict[str, int]) -> Any:
        starts.append(input)
        if starts.count(input) <= input["losses"]:
            engine.faults.abort_streams()
            return None
        await anyio.sleep(100)
        return input["losses"]

    return starts


async def test_lost_stays_lost_by_default(client: PieClient, starts: list[Any]) -> None:
    """It may have completed, and nobody has said that it may do so twice."""
    call = client.map_processes(FRAGILE, [{"losses": 1}], on_error="collect")
    (outcome,) = await call
    assert isinstance(outcome, Lost)
    assert outcome.attempts == len(starts) == 1
    assert call.receipt == Receipt(started=1, lost=1)


@pytest.mark.parametrize(("allowed", "losses"), [(True, 1), (1, 1), (3, 0), (3, 2), (3, 3)])
async def test_lost_runs_are_repeated(
    client: PieClient, starts: list[Any], allowed: int, losses: int
) -> None:
    """The last outcome is given, once, with how often it was tried; the receipt counts every run."""
    call = client.map_processes(FRAGILE, [{"losses": losses}], retry_lost=allowed, on_error="collect")
    (outcome,) = await call
    assert isinstance(outcome, Returned)
    assert (outcome.value, outcome.attempts, outcome.index) == (losses, losses + 1, 0)
    assert len(starts) == losses + 1
    assert call.receipt == Receipt(started=losses + 1, returned=1, lost=losses)


@pytest.mark.parametrize(("allowed", "attempts"), [(False, 1), (0, 1), (True, 2), (1, 2), (4, 5)])
async def test_repeats_come_to_an_end(
    client: PieClient, starts: list[Any], allowed: int, attempts: int
) -> None:
    """True is one repeat, a number so many; then the item is lost, and fails a map as any other."""
    call = client.map_processes(FRAGILE, [{"losses": 99}], retry_lost=allowed, key=str)
    with pytest.raises(ExceptionGroup) as caught:
        await call
    (error,) = caught.value.exceptions
    assert isinstance(error, ProcessLost)
    assert error.issued
    assert len(starts) == attempts
    assert call.receipt == Receipt(started=attempts, lost=attempts)
    (outcome,) = await client.map_processes(FRAGILE, [{"losses": 98}], retry_lost=allowed, on_error="collect")
    assert isinstance(outcome, Lost)
    assert outcome.attempts == attempts


async def test_what_ends_otherwise_is_not_repeated(engine: SimulatedEngine, client: PieClient) -> None:
    """A failure is known to be one."""
    inputs: list[Any] = [{"fail": "x"}, object(), {"give": 1}]
    outcomes = await client.map_processes(DO, inputs, retry_lost=5, on_error="collect")
    assert [outcome.status for outcome in outcomes] == ["failed", "not_started", "returned"]
    assert [outcome.attempts for outcome in outcomes] == [1, 1, 1]
    assert engine.started_total == 2


@pytest.mark.parametrize("profile", ["v04", "v05"])
async def test_without_a_connection_nothing_is_repeated(engine: SimulatedEngine, client: PieClient) -> None:
    """What was lost stays lost, and what had not begun was not started."""

    async def inputs() -> AsyncIterator[Any]:
        yield 1
        yield 2
        await anyio.sleep(1)
        engine.faults.drop_connections()
        await anyio.sleep(1)
        yield 3

    call = client.map_processes(HANG, inputs(), retry_lost=True, on_error="collect")
    outcomes = await call
    assert [type(outcome) for outcome in outcomes] == [Lost, Lost, NotStarted]
    assert [outcome.attempts for outcome in outcomes] == [1, 1, 1]
    assert call.receipt == Receipt(started=2, lost=2, not_started=1)


async def test_repeats_go_to_another_connection(anyio_backend: Any, profile: Any) -> None:
    """A pool starts them where there still is an engine."""
    async with (
        SimulatedEngine(profile, port=None) as one,
        SimulatedEngine(profile, port=None) as two,
        ClientPool([one.connectable, two.connectable], keepalive=None) as pool,
    ):
        add_programs(one)
        add_programs(two)
        inputs = [{"nap": 5, "give": number} for number in range(6)]
        call = map_processes(pool, DO, inputs, limit=4, retry_lost=True, on_error="collect")
        async with call as outcomes:
            await anyio.sleep(1)
            assert len(one.live_processes) == 2
            one.faults.drop_connections()
            found = {outcome.index: (outcome.value, outcome.attempts) async for outcome in outcomes}
        assert sorted(value for value, _ in found.values()) == list(range(6))
        assert sorted(attempts for _, attempts in found.values()) == [1, 1, 1, 1, 2, 2]
        assert call.receipt == Receipt(started=8, returned=6, lost=2)


async def test_a_repeat_that_is_refused(
    engine: SimulatedEngine, client: PieClient, starts: list[Any]
) -> None:
    """It waits for room as any run; where it gets none, the item stays lost: its first run may have completed."""

    def refuse(count: int) -> Any:
        @engine.inferlet("last@0.1.0")
        async def last(session: InferletSession, input: Any) -> Any:
            starts.append(input)
            if starts.count(input) == 1:
                engine.faults.refuse_launches = count
                engine.faults.abort_streams()
            return "done"

    refuse(2)
    call = client.map_processes("last@0.1.0", ["a"], retry_lost=True, on_error="collect")
    (outcome,) = await call
    assert (outcome.value, outcome.attempts, outcome.refusals) == ("done", 2, 2)
    assert call.receipt == Receipt(started=2, returned=1, lost=1, refusals=2)

    refuse(10**6)
    backoff = Backoff(initial=5, jitter=0)
    call = client.map_processes(
        "last@0.1.0", ["b"], retry_lost=True, on_error="collect", backoff=backoff, admission_timeout=20
    )
    (outcome,) = await call
    assert isinstance(outcome, Lost)
    assert outcome.attempts == 1
    assert call.receipt.started == call.receipt.lost == 1
    assert call.receipt.not_started == 1  # the launch that was refused for good


async def test_cancelled_while_it_is_repeated(
    engine: SimulatedEngine, client: PieClient, starts: list[Any]
) -> None:
    """The run that is live is terminated, and the lost ones are on record."""
    call = client.map_processes(FRAGILE, [{"losses": 1}], retry_lost=True)
    with anyio.move_on_after(50) as scope:
        await call
    assert scope.cancelled_caught
    assert len(starts) == 2
    assert engine.live_processes == {}
    assert call.receipt == Receipt(started=2, terminated=1, lost=1)


@pytest.mark.parametrize("count", [-1, 1.5, "once", None])
async def test_senseless_numbers_are_refused(client: PieClient, count: Any) -> None:
    """It is a number of repeats."""
    with pytest.raises(InvalidRequest, match="retry_lost must be"):
        _ = client.map_processes(DO, [1], retry_lost=count)


async def test_a_refused_launch_is_no_lost_run(engine: SimulatedEngine, client: PieClient) -> None:
    """Patience that ends is a failure, also where lost runs would be repeated."""
    engine.faults.capacity = 0
    (outcome,) = await client.map_processes(DO, [1], retry_lost=True, on_error="collect", admission_timeout=5)
    assert isinstance(outcome, Failed)
    assert outcome.attempts == 1
