# SPDX-License-Identifier: Apache-2.0
"""Launches that the engine refuses for lack of capacity: waited out, counted, and given up in the end."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from random import Random
from typing import Any

import anyio
import pytest

from pie_anyio import Backoff, Failed, PieClient, ProcessFailed, Receipt
from pie_anyio.testing import InferletSession, SimulatedEngine

ECHO, HANG, DO = "echo@0.1.0", "hang@0.1.0", "do@0.1.0"
REFUSALS = [
    "admission rejected: cluster saturated: no healthy worker has KV/seq headroom",
    "no worker available",
    "gateway draining",
]


async def one_by_one(values: list[Any]) -> AsyncIterator[Any]:
    """Give values asynchronously."""
    for value in values:
        await anyio.lowlevel.checkpoint()
        yield value


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_refusals_are_no_failures(engine: SimulatedEngine, client: PieClient, refusal: str) -> None:
    """Not even one with ``on_error="raise"``; the receipt and the outcomes count them."""
    engine.faults.refusal = refusal
    engine.faults.refuse_launches = 5
    call = client.map_processes(ECHO, range(4), limit=4)
    assert await call == [0, 1, 2, 3]
    assert call.receipt == Receipt(started=4, returned=4, refusals=5)

    engine.faults.refuse_launches = 3
    outcomes = await client.map_processes(ECHO, [0], on_error="collect")
    assert [outcome.refusals for outcome in outcomes] == [3]
    assert engine.refused_total == 8


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_small_engine_is_filled_and_not_flooded(
    engine: SimulatedEngine, client: PieClient, *, ordered: bool
) -> None:
    """The number of live runs comes down to what there is room for, and never exceeds the limit of the moment."""
    engine.faults.capacity = 3
    lowest = 16
    inputs = ({"nap": 1, "give": n} for n in range(60))
    backoff = Backoff(random=Random(1).random)  # noqa: S311 - no secret
    async with client.map_processes(DO, inputs, limit=16, ordered=ordered, backoff=backoff) as outcomes:
        seen = []
        async for outcome in outcomes:
            seen.append(outcome.value)
            lowest = min(lowest, outcomes.limit)
            assert outcomes.live <= 16
    assert sorted(seen) == list(range(60))
    assert engine.peak_live == 3
    assert lowest <= 6
    assert outcomes.receipt.returned == 60
    assert outcomes.receipt.refusals == engine.refused_total
    assert engine.refused_total < 60 * 5


async def test_the_limit_grows_again(engine: SimulatedEngine, client: PieClient) -> None:
    """When there is room once more, all of it is used."""
    engine.faults.capacity = 1
    async with client.map_processes(DO, ({"nap": 1} for _ in range(200)), limit=8) as outcomes:
        limits = []
        async for _ in outcomes:
            limits.append(outcomes.limit)
            if len(limits) == 30:
                assert outcomes.limit < 8
                engine.faults.capacity = None
    assert min(limits) < 8
    assert limits[-1] == 8
    assert engine.peak_live == 8


async def test_runs_that_fail_show_that_there_is_room(engine: SimulatedEngine, client: PieClient) -> None:
    """The engine took them, whatever the program made of it."""
    engine.faults.refuse_launches = 1
    inputs = [{"nap": 1 + n, "fail": "x"} for n in range(12)]
    call = client.map_processes(DO, inputs, limit=4, on_error="collect")
    async with call as outcomes:
        limits = [outcomes.limit async for _ in outcomes]
    assert min(limits) == 3
    assert limits[-1] == 4


@pytest.mark.parametrize("make", [iter, one_by_one], ids=["sync", "async"])
async def test_places_that_runs_leave_are_not_taken_by_too_many(
    engine: SimulatedEngine, client: PieClient, make: Callable[[list[Any]], Any]
) -> None:
    """As many inputs as the limit says are taken and have no outcome, though most of those hold no permit."""
    engine.faults.capacity = 1
    pending: list[int] = []

    def watched(number: int) -> int:
        receipt = call.receipt
        pending.append(number + 1 - receipt.returned)
        return number

    inputs = [{"nap": 1} for _ in range(30)]
    numbers = itertools.count()
    call = client.map_processes(DO, make(inputs), key=lambda _: watched(next(numbers)), limit=4)
    await call
    assert max(pending) == 4


async def test_the_end_of_the_inputs_takes_no_room(engine: SimulatedEngine, client: PieClient) -> None:
    """What was refused is tried again when there is nothing more to take, with the only permit that there is."""
    for make in (iter, one_by_one):
        engine.faults.refuse_launches = 1
        assert await client.map_processes(ECHO, make([7]), limit=2) == [7]


async def test_live_runs_never_exceed_the_shrunk_limit(engine: SimulatedEngine, client: PieClient) -> None:
    """A launch waits for a permit of the limit as it is then."""
    over: list[int] = []

    @engine.inferlet("watch@0.1.0")
    async def watch(session: InferletSession, input: int) -> None:
        # Runs that were live before a cut may be above it; a run that starts after it may not.
        if len(engine.live_processes) > max(call.limit, previous[0]):
            over.append(input)
        previous[0] = len(engine.live_processes)
        await anyio.sleep(1)

    previous = [0]
    engine.faults.refuse_launches = 6
    call = client.map_processes("watch@0.1.0", range(40), limit=8)
    await call
    assert over == []


async def test_delays_grow_and_vary(engine: SimulatedEngine, client: PieClient) -> None:
    """By the rule that is given."""
    engine.faults.refuse_launches = 4
    backoff = Backoff(initial=1, factor=3, maximum=20, jitter=0)
    (outcome,) = await client.map_processes(ECHO, [1], on_error="collect", backoff=backoff)
    assert outcome.refusals == 4
    assert anyio.current_time() == pytest.approx(1 + 3 + 9 + 20, abs=0.5)


async def test_patience_begins_anew_when_a_run_returns(engine: SimulatedEngine, client: PieClient) -> None:
    """However long it took."""
    inputs = iter([{"nap": 30}, {}])

    def refuse_later(item: Any) -> None:
        if not item:
            engine.faults.refuse_launches = 2

    values = await client.map_processes(DO, inputs, key=refuse_later, limit=1, admission_timeout=20)
    assert values == [None, None]
    assert engine.refused_total == 2


async def test_patience_ends(engine: SimulatedEngine, client: PieClient) -> None:
    """Where no run has been under way for ``admission_timeout``, the refusal is the item's failure."""
    engine.faults.capacity = 0
    call = client.map_processes(ECHO, [1, 2], admission_timeout=60, on_error="collect")
    outcomes = await call
    assert 60 < anyio.current_time() < 75
    for outcome in outcomes:
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, ProcessFailed)
        assert outcome.error.detail.startswith("admission rejected")
        assert outcome.refusals > 10
    receipt = call.receipt
    assert (receipt.started, receipt.not_started) == (0, 2)
    assert receipt.refusals == engine.refused_total - 2
    with pytest.raises(ExceptionGroup, match="1 of 1 finished"):
        await client.map_processes(ECHO, [1], admission_timeout=1)


async def test_patience_lasts_while_runs_are_under_way(engine: SimulatedEngine, client: PieClient) -> None:
    """They make room when they end, however long they take."""
    engine.faults.capacity = 1
    inputs = [{"nap": 200, "give": 1}, {"give": 2}]
    assert await client.map_processes(DO, inputs, admission_timeout=10) == [1, 2]


async def test_a_refused_run_does_not_starve(engine: SimulatedEngine, client: PieClient) -> None:
    """It is served before inputs that have not been taken, though those never end."""
    engine.faults.refuse_launches = 1
    async with client.map_processes(DO, ({"nap": 1} for _ in itertools.count()), limit=2) as outcomes:
        count = 0
        async for outcome in outcomes:
            count += 1
            if outcome.refusals:
                break
            assert count < 10


async def test_an_input_that_is_long_in_coming_holds_up_no_refused_run(
    engine: SimulatedEngine, client: PieClient
) -> None:
    """The inputs may even wait for the outcome of that very run."""
    engine.faults.refuse_launches = 1
    done = anyio.Event()

    async def inputs() -> AsyncIterator[int]:
        yield 1
        await done.wait()
        yield 2

    values: list[Any] = []
    async with client.map_processes(ECHO, inputs(), limit=1) as outcomes:
        async for outcome in outcomes:
            values.append(outcome.value)
            done.set()
    assert values == [1, 2]


async def test_cancelling_a_run_that_waits_to_be_tried_again(
    engine: SimulatedEngine, client: PieClient
) -> None:
    """There is nothing to end, and the exit does not wait."""
    engine.faults.capacity = 0
    call = client.map_processes(ECHO, range(10), limit=3, backoff=Backoff(initial=50, maximum=50, jitter=0))
    with anyio.move_on_after(20) as scope:
        await call
    assert scope.cancelled_caught
    assert anyio.current_time() == pytest.approx(20, abs=0.2)
    assert call.receipt == Receipt(refusals=3)
    assert call._limit.held == 0
    engine.faults.capacity = None
    assert await client.map_processes(ECHO, [1]) == [1]


@pytest.mark.parametrize("entering", [False, True])
async def test_refused_runs_do_not_pile_up(
    engine: SimulatedEngine, client: PieClient, *, entering: bool
) -> None:
    """No more than ``limit`` inputs are taken while none of them can be started."""
    engine.faults.capacity = 0
    taken = 0

    def inputs() -> Iterator[int]:
        nonlocal taken
        for number in itertools.count(1):
            taken = number
            yield number

    call = client.map_processes(ECHO, inputs(), limit=5)
    with anyio.move_on_after(100):
        if entering:
            async with call:
                await anyio.sleep_forever()
        await call
    assert taken == 5
    assert call._limit.held == 0


async def test_two_maps_share_a_small_engine(engine: SimulatedEngine, client: PieClient) -> None:
    """Neither starves the other."""
    engine.faults.capacity = 2
    async with anyio.create_task_group() as tasks:
        results: list[list[Any]] = []

        async def one() -> None:
            results.append(
                await client.map_processes(DO, [{"nap": 1, "give": n} for n in range(20)], limit=8)
            )

        tasks.start_soon(one)
        tasks.start_soon(one)
    assert results == [list(range(20))] * 2
    assert engine.peak_live == 2
