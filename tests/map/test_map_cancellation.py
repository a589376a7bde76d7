# SPDX-License-Identifier: Apache-2.0
"""Cancelling a map: from every side, at every moment, with engines that answer late or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from tests.cancelling import HOWS, CancelPoint, How, at_each_wait
from tests.map.conftest import add_programs

from pie_anyio import MapCall, PieClient, ProcessLost, Receipt
from pie_anyio.testing import SimulatedEngine
from pie_anyio.testing.clock import virtual_backend

ECHO, HANG, FAIL, DO = "echo@0.1.0", "hang@0.1.0", "fail@0.1.0", "do@0.1.0"
Way = Callable[[MapCall], Coroutine[Any, Any, None]]


def check_books(receipt: Receipt) -> None:
    """Every run that was started is accounted for."""
    ended = receipt.returned + receipt.failed + receipt.terminated + receipt.detached + receipt.lost
    assert receipt.started == ended + receipt.running + len(receipt.unconfirmed)
    assert receipt.running >= 0
    assert receipt.not_started >= 0


async def awaited(call: MapCall) -> None:
    """Use a map by awaiting it."""
    await call


async def entered(call: MapCall) -> None:
    """Use a map by reading all its outcomes."""
    async with call:
        async for _ in call:
            pass


@pytest.fixture(params=[awaited, entered], ids=["awaited", "entered"])
def use(request: pytest.FixtureRequest) -> Any:
    """Both ways to use a map."""
    return request.param


# ------------------------------------------------------------------------------------------------- from every side


async def test_from_around_the_map(engine: SimulatedEngine, client: PieClient, use: Way) -> None:
    """All runs are terminated, and were seen to end, when the cancelled scope is left."""
    call = client.map_processes(HANG, range(10), limit=4)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use, call)
        await engine.wait_live(4)
        tasks.cancel_scope.cancel()
    assert engine.live_processes == {}
    assert call.receipt == Receipt(started=4, terminated=4)
    await client.ping()


async def test_by_a_deadline(engine: SimulatedEngine, client: PieClient, use: Way) -> None:
    """``fail_after`` raises its own error, on time."""
    call = client.map_processes(HANG, range(10), limit=4)
    with pytest.raises(TimeoutError):
        with anyio.fail_after(3):
            await use(call)
    assert anyio.current_time() == pytest.approx(3, abs=0.2)
    assert call.receipt == Receipt(started=4, terminated=4)
    assert engine.live_processes == {}


async def test_from_around_the_client(engine: SimulatedEngine, use: Way) -> None:
    """The connection stays up until the runs have been seen to end."""
    with anyio.move_on_after(3):
        async with PieClient(engine.connectable, keepalive=None) as client:
            call = client.map_processes(HANG, range(10), limit=4)
            await use(call)
    assert call.receipt == client.receipt == Receipt(started=4, terminated=4)
    assert engine.live_processes == {}
    assert engine.terminated_total == 4


async def test_by_the_failure_of_a_sibling(engine: SimulatedEngine, client: PieClient, use: Way) -> None:
    """A task beside the map that fails takes the map with it."""
    call = client.map_processes(HANG, range(10), limit=4)
    with pytest.raises(ExceptionGroup) as caught:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use, call)
            await engine.wait_live(4)
            raise KeyError("sibling")
    assert [type(error) for error in caught.value.exceptions] == [KeyError]
    assert call.receipt == Receipt(started=4, terminated=4)
    assert engine.live_processes == {}


@pytest.mark.parametrize("anyio_backend", [virtual_backend("asyncio")], ids=["asyncio"])
@pytest.mark.parametrize("way", ["cancel", "wait_for", "timeout"])
async def test_by_asyncio_itself(engine: SimulatedEngine, client: PieClient, use: Way, way: str) -> None:
    """``Task.cancel``, ``wait_for`` and ``timeout`` know nothing of scopes and shields, and do it as well."""
    call = client.map_processes(HANG, range(10), limit=4)
    if way == "cancel":
        task = asyncio.ensure_future(use(call))
        await engine.wait_live(4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    elif way == "wait_for":
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(use(call), 3)
    else:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await use(call)
    assert call.receipt == Receipt(started=4, terminated=4)
    assert engine.live_processes == {}
    await client.ping()


# ---------------------------------------------------------------------------------------------- the four windows


async def test_queued_launches_are_withdrawn(engine: SimulatedEngine, client: PieClient) -> None:
    """What the writer has not taken never leaves."""

    def inputs() -> Any:
        yield 1
        yield 2
        scope.cancel()
        yield 3

    call = client.map_processes(HANG, inputs(), limit=5)
    with anyio.CancelScope() as scope:
        await call
    await client.ping()
    assert engine.received_counts["launch_process"] == engine.started_total
    assert engine.live_processes == {}
    check_books(call.receipt)
    assert call.receipt.clean
    assert call.receipt.started == engine.started_total


async def test_launches_that_are_answered_late(engine: SimulatedEngine, client: PieClient) -> None:
    """Sent and unanswered when cancelled: terminated as soon as the answer tells the id."""
    call = client.map_processes(HANG, range(10), limit=3)
    async with anyio.create_task_group() as tasks:
        with engine.faults.hold("launch_process") as hold:
            tasks.start_soon(awaited, call)
            await engine.wait_started(1 if engine.profile.name == "v04" else 3)
            await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)  # less than the grace period
                hold.release()
    assert engine.live_processes == {}
    assert call.receipt == Receipt(started=3, terminated=3)
    assert client.receipt == Receipt(started=3, terminated=3)


async def test_launches_that_are_answered_when_the_map_is_over(
    engine: SimulatedEngine, client: PieClient
) -> None:
    """They are on record without an id, then terminated, and then the record says so."""
    call = client.map_processes(HANG, range(10), limit=2)
    with engine.faults.hold("launch_process") as hold:
        with anyio.move_on_after(1):
            await call
        assert anyio.current_time() == pytest.approx(3, abs=0.2)
        assert call.receipt == Receipt(started=2, unconfirmed=("?", "?"))
        check_books(client.receipt)
        assert len(client.receipt.unconfirmed) == 2
        hold.release()
        await anyio.sleep(1)
    assert engine.live_processes == {}
    assert call.receipt == client.receipt == Receipt(started=2, terminated=2)


async def test_refusals_that_come_when_the_map_is_over(engine: SimulatedEngine, client: PieClient) -> None:
    """A launch that turns out to have been refused was never started."""
    engine.faults.refuse_launches = 10
    call = client.map_processes(HANG, range(10), limit=2)
    with engine.faults.hold("launch_process") as hold:
        with anyio.move_on_after(1):
            await call
        hold.release()
        await anyio.sleep(1)
    assert engine.started_total == 0
    assert call.receipt == Receipt(not_started=2)
    check_books(client.receipt)
    assert client.receipt == Receipt(not_started=2)


async def test_an_answer_in_the_same_tick(engine: SimulatedEngine, client: PieClient) -> None:
    """Whether the reply or the cancellation is seen first: it is terminated."""
    for turns in range(6):
        call = client.map_processes(HANG, range(10), limit=3)
        async with anyio.create_task_group() as tasks:
            with engine.faults.hold("launch_process") as hold:
                tasks.start_soon(entered, call)
                await hold.wait_for(1)
                await anyio.sleep(0.01)
                hold.release()
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        assert engine.live_processes == {}
        check_books(call.receipt)
        assert call.receipt == Receipt(started=3, terminated=3)


async def test_runs_that_have_just_ended(engine: SimulatedEngine, client: PieClient) -> None:
    """A terminate that comes too late counts as nothing; the run counts as it ended."""
    for turns in range(8):
        call = client.map_processes(DO, [{"nap": 1}] * 3, limit=3)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(entered, call)
            await engine.wait_live(3)
            await anyio.sleep(1)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        receipt = call.receipt
        check_books(receipt)
        assert receipt.started == 3
        assert receipt.returned + receipt.terminated + receipt.lost == 3
        assert receipt.clean
        assert engine.live_processes == {}


# ----------------------------------------------------------------------------------- engines that do not co-operate


@pytest.mark.parametrize("limit", [1, 50])
async def test_an_engine_that_never_confirms(engine: SimulatedEngine, use: Way, limit: int) -> None:
    """The exit takes one grace period in all, and the receipt names the runs."""
    async with PieClient(engine.connectable, keepalive=None, terminate_grace=7) as client:
        call = client.map_processes(HANG, range(100), limit=limit)
        engine.faults.ignored = {"terminate_process"}
        with anyio.move_on_after(1):
            await use(call)
        assert anyio.current_time() == pytest.approx(8, abs=0.2)
        receipt = call.receipt
        assert set(receipt.unconfirmed) == set(engine.live_processes)
        assert receipt.started == len(receipt.unconfirmed) == limit
        assert not receipt.clean
        assert sorted(client.receipt.unconfirmed) == sorted(receipt.unconfirmed)
        check_books(client.receipt)
        for process_id in engine.live_processes:
            process = engine.find_process(process_id)
            assert process is not None
            process.terminate()
        await anyio.sleep(0.1)
        assert call.receipt == client.receipt == Receipt(started=limit, terminated=limit)


async def test_launches_that_are_never_answered(engine: SimulatedEngine, use: Way) -> None:
    """Nobody can tell their ids."""
    engine.faults.unanswered = {"launch_process"}
    async with PieClient(engine.connectable, keepalive=None) as client:
        call = client.map_processes(HANG, range(100), limit=3)
        with anyio.move_on_after(1):
            await use(call)
        assert anyio.current_time() == pytest.approx(3, abs=0.2)
        assert call.receipt == Receipt(started=3, unconfirmed=("?", "?", "?"))


# -------------------------------------------------------------------------------------- a connection that goes away


async def drop_in_the_middle(engine: SimulatedEngine, taken: list[Any]) -> AsyncIterator[Any]:
    """Give runs that end, runs that hang, and drop the connection before the seventh."""
    for n in range(10):
        if n == 6:
            await anyio.sleep(1)
            engine.faults.drop_connections()
            await anyio.sleep(1)
        taken.append(n)
        yield {"give": n} if n < 3 else {"hang": True}


async def test_a_lost_connection_is_collected(engine: SimulatedEngine, client: PieClient) -> None:
    """Each input has one outcome: what ran is lost, what came later was not started."""
    taken: list[int] = []
    call = client.map_processes(DO, drop_in_the_middle(engine, taken), limit=9, on_error="collect")
    outcomes = await call
    assert [outcome.index for outcome in outcomes] == taken == list(range(10))
    assert [outcome.status for outcome in outcomes] == [
        *["returned"] * 3,
        *["lost"] * 3,
        *["not_started"] * 4,
    ]
    assert [getattr(outcome.error, "issued", None) for outcome in outcomes[3:]] == [True] * 3 + [False] * 4
    assert call.receipt == Receipt(started=6, returned=3, lost=3, not_started=4)
    assert not call.receipt.clean


async def test_a_lost_connection_fails_a_map(engine: SimulatedEngine, client: PieClient, use: Way) -> None:
    """With ``raise`` the group holds what was lost."""
    call = client.map_processes(DO, drop_in_the_middle(engine, []), limit=9)
    with pytest.raises(ExceptionGroup) as caught:
        await use(call)
    lost = caught.value.exceptions
    assert lost
    assert all(isinstance(error, ProcessLost) and error.issued for error in lost)
    assert {error.index for error in lost if isinstance(error, ProcessLost)} <= {3, 4, 5}
    check_books(call.receipt)
    assert call.receipt.returned == 3


async def test_a_connection_that_was_lost_before(engine: SimulatedEngine, client: PieClient) -> None:
    """Nothing is started, and each item says so."""
    engine.faults.drop_connections()
    await anyio.sleep(1)
    call = client.map_processes(ECHO, range(3), on_error="collect")
    assert [outcome.status for outcome in await call] == ["not_started"] * 3
    assert call.receipt == Receipt(not_started=3)
    with pytest.raises(ExceptionGroup):
        await client.map_processes(ECHO, range(3))


async def test_a_connection_that_is_lost_while_the_runs_are_stopped(
    engine: SimulatedEngine, client: PieClient
) -> None:
    """They were told to end and not seen to: unconfirmed, and no wait for what cannot come."""
    call = client.map_processes(HANG, range(9), limit=3)
    engine.faults.ignored = {"terminate_process"}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(awaited, call)
        await engine.wait_live(3)
        await anyio.sleep(1)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1)
            engine.faults.drop_connections()
    assert anyio.current_time() == pytest.approx(2, abs=0.2)
    assert call.receipt.started == len(call.receipt.unconfirmed) == 3
    check_books(client.receipt)


# ---------------------------------------------------------------------------------------------- at every single wait

INPUTS = [{"give": 1}, {"nap": 1, "give": 2}, {"fail": "x"}, {"nap": 2}, {"give": 5}]


@pytest.mark.parametrize("entering", [False, True])
@pytest.mark.parametrize("refusing", [False, True])
@pytest.mark.parametrize(("loop", "how"), HOWS)
@pytest.mark.parametrize("profile", ["v04", "v05"])
def test_at_every_wait(profile: Any, loop: str, how: How, *, refusing: bool, entering: bool) -> None:
    """Nothing runs on that the receipt does not name, and the client goes on working."""

    async def scenario(point: CancelPoint) -> None:
        async with SimulatedEngine(profile, port=None) as engine:
            add_programs(engine)
            async with PieClient(engine.connectable, keepalive=None) as client:
                await client.ping()
                if refusing:
                    engine.faults.capacity = 1
                call = client.map_processes(DO, INPUTS, limit=2, on_error="collect")
                await point.run(lambda: (entered if entering else awaited)(call))
                check_books(call.receipt)
                check_books(client.receipt)
                assert set(engine.live_processes) <= set(call.receipt.unconfirmed)
                assert call._limit.held == 0
                assert call.receipt.running == 0
                if how == "scope":
                    assert call.receipt.unconfirmed == ()
                await client.ping()
                assert await client.map_processes(ECHO, [1, 2]) == [1, 2]
                assert engine.live_processes == {}
                assert client.receipt.unconfirmed == ()

    name, options = virtual_backend(loop)
    waits = anyio.run(at_each_wait, scenario, how, backend=name, backend_options=options)
    assert waits > (10 if entering else 1)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize(
    ("anyio_backend", "loop"), [(virtual_backend(n), n) for n in ("asyncio", "trio")], ids=str
)
@pytest.mark.parametrize("entering", [False, True])
async def test_at_every_turn(
    engine: SimulatedEngine, client: PieClient, loop: str, *, native: bool, entering: bool
) -> None:
    """Cancelled after any number of turns of the loop, so in any state of any run."""
    if native and loop == "trio":
        return
    turns = 0
    finished = False
    while not finished:
        turns += 1
        call = client.map_processes(DO, [{"give": n} for n in range(4)], limit=2, on_error="collect")
        use_it = (entered if entering else awaited)(call)
        if native:
            task = asyncio.ensure_future(use_it)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            finished = not task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_await, use_it)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            finished = call.receipt.returned == 4
        assert engine.live_processes == {}
        check_books(call.receipt)
        assert call.receipt.clean
        assert call._limit.held == 0
        assert client.receipt.clean
        check_books(client.receipt)
    assert 8 < turns < 500


async def _await(awaitable: Awaitable[None]) -> None:
    await awaitable
