# SPDX-License-Identifier: Apache-2.0
"""``map_processes``: what it gives, what it takes, and how many runs it has at a time."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from pie_anyio import (
    AuthenticationError,
    Failed,
    Generation,
    InvalidRequest,
    NotStarted,
    PieClient,
    ProcessError,
    ProcessFailed,
    Receipt,
    Returned,
    Terminated,
    UnsupportedByEngine,
    inferlet,
    map_processes,
)
from pie_anyio.testing import InferletSession, SimulatedEngine

ECHO, HANG, FAIL, DO = "echo@0.1.0", "hang@0.1.0", "fail@0.1.0", "do@0.1.0"


async def stream_of(*values: Any) -> AsyncGenerator[Any]:
    """Give values asynchronously."""
    for value in values:
        await anyio.lowlevel.checkpoint()
        yield value


def assert_idle(engine: SimulatedEngine, client: PieClient) -> None:
    """Nothing is left on the engine, and the client's books say the same."""
    assert engine.live_processes == {}
    assert client.receipt.unconfirmed == ()
    assert client.receipt.running == 0


# ------------------------------------------------------------------------------------------------------------- values


async def test_values_come_in_input_order(engine: SimulatedEngine, client: PieClient) -> None:
    """Awaited, the last to finish may still be the first of the list."""
    inputs = [{"nap": 5 - n, "give": n} for n in range(5)]
    assert await client.map_processes(DO, inputs, limit=5) == [0, 1, 2, 3, 4]
    assert await map_processes(client, DO, inputs, limit=2) == [0, 1, 2, 3, 4]
    assert_idle(engine, client)


@pytest.mark.parametrize(
    "make",
    [
        lambda: [1, 2, 3],
        lambda: (1, 2, 3),
        lambda: range(1, 4),
        lambda: (n for n in (1, 2, 3)),
        lambda: dict.fromkeys([1, 2, 3]),
        lambda: stream_of(1, 2, 3),
    ],
    ids=["list", "tuple", "range", "generator", "dict", "async generator"],
)
async def test_any_iterable_will_do(client: PieClient, make: Callable[[], Any]) -> None:
    """Sync or async, sized or not."""
    assert await client.map_processes(ECHO, make(), limit=2) == [1, 2, 3]
    async with client.map_processes(ECHO, make(), limit=2, ordered=True) as outcomes:
        assert [outcome.value async for outcome in outcomes] == [1, 2, 3]


@pytest.mark.parametrize("make", [list, lambda: iter(()), stream_of], ids=["list", "iterator", "async"])
@pytest.mark.parametrize("on_error", ["raise", "collect", 1, 0.5])
async def test_no_inputs_give_no_values(
    engine: SimulatedEngine, client: PieClient, make: Callable[[], Any], on_error: Any
) -> None:
    """Nothing is started, and nothing waits."""
    started = anyio.current_time()
    assert await client.map_processes(ECHO, make(), on_error=on_error) == []
    async with client.map_processes(ECHO, make(), on_error=on_error) as outcomes:
        assert [outcome async for outcome in outcomes] == []
    assert outcomes.receipt == Receipt()
    assert engine.started_total == 0
    assert anyio.current_time() == started


@pytest.mark.parametrize(
    "inputs", ["a question", b"bytes", bytearray(b"x"), memoryview(b"x"), 3, None], ids=repr
)
async def test_a_single_input_is_refused(client: PieClient, inputs: Any) -> None:
    """Text would otherwise be taken apart into characters."""
    with pytest.raises(InvalidRequest, match="must be an iterable of inputs"):
        _ = client.map_processes(ECHO, inputs)


@pytest.mark.parametrize(
    "value", [None, "text", "", 0, 1.5, True, [1, [2]], {"a": {"b": None}}, "ü\n"], ids=repr
)
async def test_values_keep_their_types(engine: SimulatedEngine, client: PieClient, value: Any) -> None:
    """What a program returns comes back as JSON has it; an empty text is no value."""
    assert await client.map_processes(DO, [{"give": value}]) == [value or None if value == "" else value]


async def test_outcomes_tell_all_about_a_run(engine: SimulatedEngine, client: PieClient) -> None:
    """Index, key, id, status, value and timings."""
    async with client.map_processes(DO, [{"nap": 2, "give": 7}], key=lambda item: item["give"]) as outcomes:
        (outcome,) = [outcome async for outcome in outcomes]
    assert isinstance(outcome, Returned)
    assert (outcome.index, outcome.key, outcome.status, outcome.value) == (0, 7, "returned", 7)
    assert outcome.ok
    assert outcome.error is None
    assert outcome.process_id is not None
    assert outcome.timings.total == pytest.approx(2)
    assert outcome.refusals == 0


async def test_completion_order_and_input_order(client: PieClient) -> None:
    """Entered, outcomes come as they complete; with ``ordered=True`` as they were put in."""
    inputs = [{"nap": 3}, {"nap": 1}, {"nap": 2}]
    async with client.map_processes(DO, inputs) as outcomes:
        assert [outcome.index async for outcome in outcomes] == [1, 2, 0]
    async with client.map_processes(DO, inputs, ordered=True) as outcomes:
        assert [outcome.index async for outcome in outcomes] == [0, 1, 2]


async def test_bare_names_and_inferlets(engine: SimulatedEngine, client: PieClient, profile: str) -> None:
    """0.5 takes a name without a version; on 0.4 such items are not started."""
    outcomes = await client.map_processes("echo", [1, 2], on_error="collect")
    if profile == "v05":
        assert [outcome.value for outcome in outcomes] == [1, 2]
    else:
        assert all(isinstance(outcome, NotStarted) for outcome in outcomes)
        assert engine.started_total == 0


async def test_malformed_names_are_refused_at_the_call(client: PieClient) -> None:
    """Before anything is sent, and without a warning about a map that was never used."""
    with pytest.raises(InvalidRequest):
        _ = client.map_processes("no good@1", [1])


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "4", None])
async def test_senseless_limits_are_refused(client: PieClient, limit: Any) -> None:
    """It is a number of runs."""
    with pytest.raises(InvalidRequest, match="limit must be"):
        _ = client.map_processes(ECHO, [1], limit=limit)


async def test_token_budgets(engine: SimulatedEngine, client: PieClient, profile: str) -> None:
    """They reach a 0.4 engine; for 0.5 they are refused before anything is started."""
    seen = []

    @engine.inferlet("budget@0.1.0")
    async def budget(session: InferletSession, input: Any) -> None:
        seen.append(session.token_budget)

    if profile == "v04":
        await client.map_processes("budget@0.1.0", [1, 2], token_budget=99)
        assert seen == [99, 99]
        return
    with pytest.raises(UnsupportedByEngine) as caught:
        await client.map_processes("budget@0.1.0", [1, 2], token_budget=99)
    assert str(Generation.V04) in str(caught.value)
    with pytest.raises(UnsupportedByEngine):
        async with client.map_processes("budget@0.1.0", [1, 2], token_budget=99):
            pytest.fail("entered")
    assert engine.started_total == 0


# ------------------------------------------------------------------------------------------------- laziness and limit


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
async def test_limit_is_strict_and_inputs_are_lazy(
    engine: SimulatedEngine, client: PieClient, *, asynchronous: bool, ordered: bool
) -> None:
    """An input is pulled when a run may start, and the engine never has more than ``limit`` live runs."""
    limit = 4
    at_start: list[int] = []
    pulled = 0

    @engine.inferlet("count@0.1.0")
    async def count(session: InferletSession, input: int) -> int:
        at_start.append(len(engine.live_processes))
        await anyio.sleep(1 + (input * 7 % 5))
        return input

    def inputs() -> Iterator[int]:
        nonlocal pulled
        for n in range(30):
            assert call.live < limit
            assert pulled - received - len(engine.live_processes) <= 2 * limit
            pulled += 1
            yield n

    async def later() -> AsyncIterator[int]:
        for n in inputs():
            await anyio.sleep(0.25)
            yield n

    received = 0
    source: Any = later() if asynchronous else inputs()
    call = client.map_processes("count@0.1.0", source, limit=limit, ordered=ordered)
    async with call as outcomes:
        async for _ in outcomes:
            received += 1
            assert call.live <= limit
    assert received == pulled == 30
    assert max(at_start) == engine.peak_live == limit
    assert call.live == 0


@pytest.mark.parametrize("make", [itertools.count, lambda: stream_of(*range(1000))], ids=["sync", "async"])
async def test_endless_inputs_and_an_early_break(
    engine: SimulatedEngine, client: PieClient, make: Callable[[], Any]
) -> None:
    """What was started is stopped, and little more was started than was taken."""
    taken = 0
    inputs = make()
    async with client.map_processes(ECHO, inputs, limit=3) as outcomes:
        async for _ in outcomes:
            taken += 1
            if taken == 10:
                break
    if isinstance(inputs, AsyncGenerator):
        await inputs.aclose()  # the map leaves them to the caller
    assert_idle(engine, client)
    assert engine.started_total <= 10 + 2 * 3
    receipt = outcomes.receipt
    assert receipt.clean
    assert receipt.started == receipt.returned + receipt.terminated


async def test_breaking_terminates_what_is_running(engine: SimulatedEngine, client: PieClient) -> None:
    """They are seen to end before the block is left."""
    inputs = [{"give": 1}, *({"hang": True} for _ in range(9))]
    async with client.map_processes(DO, inputs, limit=4) as outcomes:
        async for outcome in outcomes:
            assert outcome.value == 1
            await engine.wait_live(4)
            break
    assert engine.live_processes == {}
    assert engine.terminated_total == outcomes.receipt.terminated == 4
    assert outcomes.receipt == Receipt(started=5, returned=1, terminated=4)


async def test_a_slow_consumer_holds_the_map_up(engine: SimulatedEngine, client: PieClient) -> None:
    """Unread outcomes and live runs together are at most twice the limit; nothing is lost meanwhile."""
    async with client.map_processes(ECHO, range(100), limit=4) as outcomes:
        await anyio.sleep(10)
        assert engine.started_total == 8
        first = await anext(outcomes)
        await anyio.sleep(10)
        assert engine.started_total == 9
        rest = [outcome.index async for outcome in outcomes]
    assert sorted([first.index, *rest]) == list(range(100))


async def test_order_does_not_wait_for_ever(engine: SimulatedEngine, client: PieClient) -> None:
    """A slow first item holds the others back within the bound, and then they all come in order."""
    inputs = ({"nap": 100 if n == 0 else 0, "give": n} for n in range(50))
    async with client.map_processes(DO, inputs, limit=3, ordered=True) as outcomes:
        await anyio.sleep(50)
        assert engine.started_total == 6
        assert [outcome.value async for outcome in outcomes] == list(range(50))


async def test_two_maps_and_nested_maps(engine: SimulatedEngine, client: PieClient) -> None:
    """Each has its own limit, books and outcomes."""
    results: dict[str, list[Any]] = {}

    async def one(name: str) -> None:
        results[name] = await client.map_processes(
            DO, [{"nap": 1, "give": f"{name}{n}"} for n in range(4)], limit=2
        )

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one, "a")
        tasks.start_soon(one, "b")
    assert results == {"a": ["a0", "a1", "a2", "a3"], "b": ["b0", "b1", "b2", "b3"]}
    assert engine.peak_live == 4

    async with client.map_processes(ECHO, [1, 2], ordered=True) as outer:
        nested = [await client.map_processes(ECHO, [o.value] * 2) async for o in outer]
    assert nested == [[1, 1], [2, 2]]
    assert outer.receipt == Receipt(started=2, returned=2)
    assert_idle(engine, client)


async def test_generators_may_hold_scopes_open(client: PieClient) -> None:
    """All inputs are pulled in one task, to which the cancel scopes of a generator belong."""

    async def inputs() -> AsyncIterator[int]:
        with anyio.fail_after(50):
            for n in range(6):
                await anyio.sleep(1)
                yield n

    assert await client.map_processes(ECHO, inputs(), limit=3) == list(range(6))


# ------------------------------------------------------------------------------------------------------------- errors


async def test_the_first_failure_stops_the_rest(engine: SimulatedEngine, client: PieClient) -> None:
    """The group comes when the siblings have been terminated and were seen to end."""
    inputs = [{"hang": True}, {"nap": 1, "fail": "broken"}, {"hang": True}, {"give": 4}]
    call = client.map_processes(DO, inputs, limit=3, key=lambda item: item.get("fail", "fine"))
    try:
        await call
    except* ProcessError as group:
        assert engine.live_processes == {}
        (error,) = group.exceptions
    else:
        pytest.fail("did not raise")
    assert isinstance(error, ProcessFailed)
    assert (error.index, error.key, error.program) == (1, "broken", DO)
    assert error.detail.startswith("ValueError: broken")
    assert call.receipt == Receipt(started=3, failed=1, terminated=2)
    assert_idle(engine, client)


async def test_an_entered_map_raises_from_its_iteration(engine: SimulatedEngine, client: PieClient) -> None:
    """What came before the failure is given first, and the failure as often as it is asked for."""
    inputs = [{"give": 1}, {"nap": 2, "fail": "broken"}, {"hang": True}]
    async with client.map_processes(DO, inputs, limit=3) as outcomes:
        assert (await anext(outcomes)).value == 1
        for _ in range(2):
            with pytest.raises(ExceptionGroup, match=r"1 of 2 finished runs of do@0\.1\.0 failed") as caught:
                await anext(outcomes)
            assert engine.live_processes == {}
            assert [error.index for error in caught.value.exceptions if isinstance(error, ProcessError)] == [
                1
            ]
    assert_idle(engine, client)


async def test_the_group_of_a_map_leaves_its_block_unchanged(
    engine: SimulatedEngine, client: PieClient
) -> None:
    """It is wrapped in no further group."""
    with pytest.raises(ExceptionGroup) as caught:
        async with client.map_processes(FAIL, [1], limit=1) as outcomes:
            async for _ in outcomes:
                pytest.fail("there is no outcome")
    assert [type(error) for error in caught.value.exceptions] == [ProcessFailed]


async def test_an_engine_that_wants_credentials(anyio_backend: Any) -> None:
    """Is asked once, and its answer comes as itself."""
    async with SimulatedEngine("v04", port=None, users={"alice": []}) as engine:
        async with PieClient(engine.connectable, keepalive=None) as client:
            with pytest.raises(AuthenticationError):
                await client.map_processes(ECHO, range(9), on_error="collect")
            with pytest.raises(AuthenticationError):
                async with client.map_processes(ECHO, range(9)) as outcomes:
                    await anext(outcomes)


async def test_collecting_gives_every_item_an_outcome(engine: SimulatedEngine, client: PieClient) -> None:
    """Awaited in input order, with what the program said last."""
    inputs: list[Any] = [{"give": 0}, {"fail": "broken"}, {"give": {1}.pop()}, object()]
    outcomes = await client.map_processes(DO, inputs, on_error="collect", limit=2)
    assert [outcome.status for outcome in outcomes] == ["returned", "failed", "returned", "not_started"]
    assert [outcome.index for outcome in outcomes] == [0, 1, 2, 3]
    assert [outcome.ok for outcome in outcomes] == [True, False, True, False]
    (failed,) = await client.map_processes(FAIL, ["x"], on_error="collect")
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, ProcessFailed)
    assert failed.error.output_tail == "about to fail\n"
    assert_idle(engine, client)


async def test_what_somebody_else_terminates(engine: SimulatedEngine, client: PieClient) -> None:
    """It is an outcome of its own."""
    async with client.map_processes(HANG, [1], on_error="collect") as outcomes:
        await engine.wait_live()
        async with PieClient(engine.connectable, keepalive=None) as other:
            await other.terminate_process(next(iter(engine.live_processes)))
            (outcome,) = [outcome async for outcome in outcomes]
    assert isinstance(outcome, Terminated)
    assert outcome.status == "terminated"
    assert not getattr(outcome.error, "by_us", True)
    assert outcomes.receipt == Receipt(started=1, terminated=1)


async def test_items_that_cannot_be_sent(engine: SimulatedEngine, client: PieClient) -> None:
    """Collected they are not started, with the reason; else they fail the map, by index and key."""
    inputs = [1, {"bad": object()}, 3]
    good, bad, also_good = await client.map_processes(ECHO, inputs, on_error="collect", key=str)
    assert (good.value, also_good.value) == (1, 3)
    assert isinstance(bad, NotStarted)
    assert bad.error is not None
    assert isinstance(bad.error.__cause__, InvalidRequest)
    assert bad.process_id is None
    call = client.map_processes(ECHO, inputs, key=lambda item: f"key of {item}", limit=1)
    with pytest.raises(ExceptionGroup) as caught:
        await call
    (error,) = caught.value.exceptions
    assert isinstance(error, ProcessError)
    assert error.index == 1
    assert str(error.key).startswith("key of {'bad'")
    assert call.receipt == Receipt(started=1, returned=1, not_started=1)


async def test_unsendable_items_without_end_do_not_block_the_loop(client: PieClient) -> None:
    """A map that never waits for the engine can be cancelled all the same, within a burst of inputs."""
    taken = 0

    def inputs() -> Iterator[object]:
        nonlocal taken
        while taken < 10_000:
            taken += 1
            if taken == 100:
                scope.cancel()
            yield object()

    with anyio.CancelScope() as scope:
        await client.map_processes(ECHO, inputs(), on_error="collect", limit=4)
    assert scope.cancelled_caught
    assert taken < 100 + 64


@pytest.mark.parametrize("entered", [False, True])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("on_error", ["raise", "collect", 5, 0.9])
async def test_inputs_that_break(
    engine: SimulatedEngine, client: PieClient, *, on_error: Any, asynchronous: bool, entered: bool
) -> None:
    """Their exception comes as itself: at once with ``raise``, else when what had begun has ended."""

    def inputs() -> Iterator[Any]:
        yield {"give": 1}
        yield {"nap": 10, "give": 2}
        raise OSError("the file is gone")

    async def later() -> AsyncIterator[Any]:
        for value in inputs():
            await anyio.sleep(1)
            yield value

    call = client.map_processes(DO, later() if asynchronous else inputs(), limit=4, on_error=on_error)
    values = []
    with pytest.raises(OSError, match="the file is gone"):
        if entered:
            async with call as outcomes:
                async for outcome in outcomes:
                    values += [outcome.value]
        else:
            await call
    assert_idle(engine, client)
    if on_error == "raise":
        assert anyio.current_time() < 10
    else:
        assert call.receipt == Receipt(started=2, returned=2)
        assert values == ([1, 2] if entered else [])


@pytest.mark.parametrize("on_error", ["raise", "collect"])
async def test_a_key_function_that_raises(engine: SimulatedEngine, client: PieClient, on_error: Any) -> None:
    """As inputs that break: it is the caller's exception, and nothing more is taken."""
    asked = []

    def key(item: int) -> int:
        asked.append(item)
        return 1 // (3 - item)

    with pytest.raises(ZeroDivisionError):
        await client.map_processes(ECHO, range(1, 100), key=key, limit=2, on_error=on_error)
    assert asked == [1, 2, 3]
    assert_idle(engine, client)


async def test_a_key_function_may_not_end_the_inputs(client: PieClient) -> None:
    """StopIteration from it is an error like any other, and not taken for the end."""

    def key(item: int) -> int:
        raise StopIteration

    for inputs in (range(3), stream_of(1, 2)):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await client.map_processes(ECHO, inputs, key=key)
        call = client.map_processes(ECHO, range(3), key=key, on_error="collect")
        with pytest.raises(RuntimeError, match="StopIteration"):
            async with call as outcomes:
                async for _ in outcomes:
                    pass


@pytest.mark.parametrize(
    "error",
    [KeyError("mine"), ExceptionGroup("mine", [ValueError(1), TypeError(2)])],
    ids=["single", "group"],
)
async def test_the_users_exception_comes_out_as_itself(
    engine: SimulatedEngine, client: PieClient, error: Exception
) -> None:
    """The runs are terminated before."""
    with pytest.raises(type(error)) as caught:
        async with client.map_processes(HANG, range(10), limit=3) as outcomes:
            await engine.wait_live(3)
            raise error
    assert caught.value is error
    assert outcomes.receipt == Receipt(started=3, terminated=3)
    assert_idle(engine, client)


# ---------------------------------------------------------------------------------------------------- use and misuse


async def test_a_map_that_is_not_used_warns(client: PieClient) -> None:
    """At once, since nothing refers to it any more."""
    gc.collect()
    gc.disable()
    try:
        with pytest.warns(
            RuntimeWarning, match="map_processes\\('echo@0.1.0'\\) was neither awaited nor entered"
        ):
            bool(client.map_processes(ECHO, [1]))
    finally:
        gc.enable()


async def test_a_map_is_used_once(client: PieClient) -> None:
    """Awaited or entered, not both, and not twice."""
    call = client.map_processes(ECHO, [1])
    assert await call == [1]
    with pytest.raises(InvalidRequest, match="used twice"):
        await call
    with pytest.raises(InvalidRequest, match="used twice"):
        async with call:
            pytest.fail("entered")


async def test_a_map_is_entered_before_it_is_iterated(client: PieClient) -> None:
    """The error shows how."""
    call = client.map_processes(ECHO, [1])
    with pytest.raises(InvalidRequest, match="enter the map first"):
        await anext(call)
    assert call.receipt == Receipt()
    assert await call == [1]


async def test_figures_of_a_map(engine: SimulatedEngine, client: PieClient) -> None:
    """How many inputs there are, how many runs are live, how many may be."""
    async with client.map_processes(HANG, range(9), limit=3) as outcomes:
        await engine.wait_live(3)
        assert (outcomes.total, outcomes.live, outcomes.limit) == (9, 3, 3)
        assert outcomes.receipt == Receipt(started=3, running=3)
    assert outcomes.live == 0
    async with client.map_processes(ECHO, iter([1])) as outcomes:
        assert outcomes.total is None


async def test_outcomes_are_still_there_after_the_block(engine: SimulatedEngine, client: PieClient) -> None:
    """What had completed and was not read can be read."""
    async with client.map_processes(ECHO, range(3), limit=3) as outcomes:
        await anyio.sleep(1)
    assert sorted([outcome.value async for outcome in outcomes]) == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["v05"])
async def test_memory_does_not_grow_with_the_inputs(engine: SimulatedEngine, client: PieClient) -> None:
    """Of 20 000 inputs and outcomes no more than a few times the limit are alive at any time."""

    class Question(str):
        __slots__ = ("__weakref__",)

    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    peak = 0

    def inputs() -> Iterator[Question]:
        for n in range(20_000):
            question = Question(n)
            alive.add(question)
            yield question
            del question

    gc.collect()
    gc.disable()
    try:
        async with client.map_processes(ECHO, inputs(), limit=16) as outcomes:
            count = 0
            async for outcome in outcomes:
                alive.add(outcome)
                count += 1
                if count % 500 == 0:
                    peak = max(peak, len(alive))
                del outcome
        assert len(alive) == 0
    finally:
        gc.enable()
    assert count == 20_000
    assert peak <= 6 * 16


async def test_nothing_stays_behind(engine: SimulatedEngine, client: PieClient) -> None:
    """No run, no permit, no task: after the map, the client refers to nothing of it."""
    async with client.map_processes(
        DO, [{"give": 1}, {"hang": True}, {"fail": "x"}], on_error="collect"
    ) as outcomes:
        await anyio.sleep(1)
    session = client.session
    assert session.registry.by_id == {}
    assert session.registry.unconfirmed == {}
    assert outcomes._limit.held == 0
    fleet = weakref.ref(outcomes._fleet)
    del outcomes
    gc.collect()
    assert fleet() is None
    runs = [thing for thing in gc.get_objects() if type(thing).__name__ == "Run"]
    assert runs == []


async def test_programs_may_be_inferlets(engine: SimulatedEngine, client: PieClient) -> None:
    """What the decorator made can be mapped by itself."""

    @inferlet(name="echo", version="0.1.0")
    def program(value: int) -> int:
        return value

    assert await client.map_processes(program, [5]) == [5]
