# SPDX-License-Identifier: Apache-2.0
"""The books of a map: whatever happens, every run that was started is in them, once."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.map.conftest import add_programs

from pie_anyio import (
    AuthenticationError,
    Backoff,
    ConnectionLost,
    EngineBusy,
    NotStarted,
    PieClient,
    ProcessError,
    ProcessLost,
    Receipt,
    SessionError,
    map_processes,
)
from pie_anyio._fleet import Ending, EndKind, Fleet, Run
from pie_anyio._flow.slots import ReplySlot
from pie_anyio._types import CorrelationId
from pie_anyio.testing import SimulatedEngine
from pie_anyio.testing.clock import virtual_backend

DO = "do@0.1.0"


def check(receipt: Receipt, live: set[str]) -> None:
    """The sum is right, nothing is negative, and what is live is in it."""
    parts = [
        receipt.returned,
        receipt.failed,
        receipt.terminated,
        receipt.detached,
        receipt.lost,
        receipt.running,
    ]
    assert receipt.started == sum(parts) + len(receipt.unconfirmed)
    assert min(*parts, receipt.not_started, receipt.refusals) >= 0
    assert len(live) <= receipt.running + len(receipt.unconfirmed) + receipt.lost


ITEMS = st.fixed_dictionaries(
    {"nap": st.integers(0, 4)},
    optional={"fail": st.just("x"), "hang": st.just(True), "give": st.integers()},
)
ACTIONS = st.sampled_from(["refuse", "saturate", "relieve", "deaf", "drop", "nothing"])


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@settings(max_examples=40, deadline=None)
@given(
    profile=st.sampled_from(["v04", "v05"]),
    items=st.lists(ITEMS | st.just(object()), max_size=12),
    limit=st.integers(1, 5),
    on_error=st.sampled_from(["raise", "collect", 2, 0.5]),
    ordered=st.booleans(),
    actions=st.lists(st.tuples(st.integers(0, 6), ACTIONS), max_size=4),
    stop_after=st.integers(0, 12),
)
def test_receipts_add_up(loop: str, **script: Any) -> None:
    """At every moment of any script, and at its end nothing runs that is not named."""
    name, options = virtual_backend(loop)
    anyio.run(play, script, backend=name, backend_options=options)


async def play(script: dict[str, Any]) -> None:
    """Run a map against an engine that does this and that, leave it at some time, and look at the books."""
    with anyio.fail_after(500):
        async with (
            SimulatedEngine(script["profile"], port=None) as engine,
            PieClient(engine.connectable, keepalive=None) as client,
        ):
            add_programs(engine)
            await client.ping()
            call = client.map_processes(
                *(DO, script["items"]),
                **{key: script[key] for key in ("limit", "on_error", "ordered")},
                backoff=Backoff(jitter=0),
            )
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(meddle, engine, script["actions"])
                tasks.start_soon(watch, engine, client, call)
                count = await use(call, script["stop_after"])
                tasks.cancel_scope.cancel()
            receipt = call.receipt
            check(receipt, set(engine.live_processes))
            assert receipt.running == 0
            assert (
                receipt.returned + receipt.failed + receipt.terminated + receipt.lost + receipt.not_started
                >= count
            )
            if client.session.is_connected:
                assert set(engine.live_processes) <= set(receipt.unconfirmed)
            assert engine.started_total <= receipt.started + receipt.not_started


async def use(call: Any, stop_after: int) -> int:
    """Take outcomes for some time; give how many there were."""
    count = 0
    with anyio.move_on_after(stop_after):
        try:
            async with call as outcomes:
                async for _ in outcomes:
                    count += 1
        except ExceptionGroup as group:
            if group.split(ProcessError)[1] is not None:
                raise
    return count


async def meddle(engine: SimulatedEngine, actions: list[tuple[int, str]]) -> None:
    """Do things to the engine, each after a while."""
    for delay, action in actions:
        await anyio.sleep(delay)
        match action:
            case "refuse":
                engine.faults.refuse_launches = 3
            case "saturate":
                engine.faults.capacity = 1
            case "relieve":
                engine.faults.capacity = None
            case "deaf":
                engine.faults.ignored = {"terminate_process"}
            case "drop":
                engine.faults.drop_connections()


async def watch(engine: SimulatedEngine, client: PieClient, call: Any) -> None:
    """Look at the books all the time."""
    while True:
        for receipt in (call.receipt, client.receipt):
            check(receipt, set())
        assert call.live <= len(engine.live_processes) + call.limit + 5
        await anyio.sleep(0.5)


# ----------------------------------------------------------------------------------- what engines can hardly be made do


class Stub:
    """A launcher, its session and what that does with runs, which end as the test says."""

    takes_bare_names = False

    def __init__(self, *, error: Exception | None = None) -> None:
        self.error = error
        self.started: list[Run] = []
        self.picked = 0

    @property
    def runs(self) -> Stub:
        return self

    def pick_now(self) -> None:
        return None

    async def pick(self) -> Stub:
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.picked += 1
        return self

    def put_back(self, session: Stub) -> None:
        self.picked -= 1

    def start(self, request: Any, *, quiet: bool) -> Run:
        run = Run(request.inferlet, CorrelationId(1), ReplySlot(), ReplySlot())
        self.started.append(run)
        return run


async def test_a_run_is_counted_once() -> None:
    """In the step in which its end becomes known, whoever else may be told of it later."""
    stub: Any = Stub()
    fleet = Fleet(stub, DO)
    await fleet.start(1, None, "purpose")
    assert (fleet.receipt(), stub.picked) == (Receipt(started=1, running=1), 1)
    ending = Ending(EndKind.RETURNED)
    stub.started[0].finish(ending)
    assert fleet.receipt() == fleet.receipt() == Receipt(started=1, returned=1)
    assert list(fleet.ended) == [stub.started[0]]
    assert stub.started[0].purpose == "purpose"
    assert fleet.wake.is_set
    assert stub.picked == 0


async def test_a_launch_that_never_left_was_not_started() -> None:
    """The connection went away before it was written: it may be run again."""
    error = ConnectionLost("gone", issued=False)
    stub: Any = Stub()
    async with map_processes(stub, DO, [1], on_error="collect") as call:
        await anyio.wait_all_tasks_blocked()
        stub.started[0].finish(Ending(EndKind.WITHDRAWN, error=error))
        (outcome,) = [outcome async for outcome in call]
    assert isinstance(outcome, NotStarted)
    assert isinstance(outcome.error, ProcessLost)
    assert outcome.error.issued is False
    assert outcome.error.__cause__ is error
    assert call.receipt == Receipt(not_started=1)


@pytest.mark.parametrize("kind", [EndKind.REFUSED, EndKind.LOST, EndKind.RETURNED])
async def test_what_ends_in_the_step_that_stops_the_map(kind: EndKind) -> None:
    """It has its outcome if it is a final one, but nothing is tried again."""
    error = EngineBusy("no room", request="launch_process") if kind is EndKind.REFUSED else None
    stub: Any = Stub()
    call = map_processes(stub, DO, [1], on_error="collect", retry_lost=9)
    async with call:
        await anyio.wait_all_tasks_blocked()
        assert call._runner is not None
        call._runner.stop()
        stub.started[0].finish(Ending(kind, error=error))
    outcomes = [outcome.status async for outcome in call]
    assert outcomes == ([] if kind is EndKind.REFUSED else [kind.value])
    assert len(stub.started) == 1
    receipt = call.receipt
    assert (receipt.not_started, receipt.lost, receipt.returned) == (
        kind is EndKind.REFUSED,
        kind is EndKind.LOST,
        kind is EndKind.RETURNED,
    )
    check(receipt, set())
    assert call._limit.held == stub.picked == 0


@pytest.mark.parametrize("inputs", [1, 2])
async def test_what_no_run_could_get_past(inputs: int) -> None:
    """An error that is no item's fault ends the map, as itself; several at once in one."""
    stub: Any = Stub(error=AuthenticationError("who are you?"))
    with pytest.raises(AuthenticationError if inputs == 1 else SessionError) as caught:
        await map_processes(stub, DO, range(inputs), on_error="collect")
    if inputs == 2:
        assert isinstance(caught.value.__cause__, ExceptionGroup)
