# SPDX-License-Identifier: Apache-2.0
"""The fan-out calls of the official client, as methods of ``PieClient``."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from pie_anyio import InvalidRequest, PieClient, PieError, ProcessFailed, Receipt, UnsupportedByEngine
from pie_anyio.testing import InferletSession, SimulatedEngine

ECHO, HANG, FAIL, DO = "echo@0.1.0", "hang@0.1.0", "fail@0.1.0", "do@0.1.0"


async def test_launching_many(engine: SimulatedEngine, client: PieClient) -> None:
    """Handles come in input order, and nobody scopes them."""
    processes = await client.launch_processes(ECHO, [1, 2, 3])
    assert [await process.result() for process in processes] == [1, 2, 3]
    assert len({process.process_id for process in processes}) == 3
    assert await client.launch_processes(ECHO, []) == []


async def test_one_launch_of_many_fails(engine: SimulatedEngine, client: PieClient) -> None:
    """Those before it are terminated, and its error comes as itself."""
    engine.faults.capacity = 2
    with pytest.raises(PieError, match="admission rejected"):
        await client.launch_processes(HANG, range(5))
    with anyio.fail_after(5):
        await engine.wait_idle()
    await client.ping()
    assert client.receipt == Receipt(started=2, terminated=2, not_started=1)


async def test_an_unsendable_input_of_many(engine: SimulatedEngine, client: PieClient) -> None:
    """Also where those before it have ended meanwhile."""
    with pytest.raises(InvalidRequest):
        await client.launch_processes(ECHO, [1, object()])
    with anyio.fail_after(5):
        await engine.wait_idle()


async def test_launching_many_is_cancelled(engine: SimulatedEngine, client: PieClient) -> None:
    """Those that were launched are terminated."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.launch_processes, HANG, range(10_000))
        await engine.wait_started(3)
        tasks.cancel_scope.cancel()
    with anyio.fail_after(5):
        await engine.wait_idle()
    await client.ping()
    assert client.receipt.clean


async def test_running_many(engine: SimulatedEngine, client: PieClient) -> None:
    """Texts come as they were returned, in input order."""
    assert await client.run_processes(DO, [{"nap": 2, "give": {"a": 1}}, {"give": "text"}, {}]) == [
        '{"a": 1}',
        "text",
        "",
    ]
    assert await client.run_processes(DO, []) == []


async def test_one_run_of_many_fails(engine: SimulatedEngine, client: PieClient) -> None:
    """The others are terminated."""
    with pytest.raises(ExceptionGroup) as caught:
        await client.run_processes(DO, [{"hang": True}, {"nap": 1, "fail": "x"}])
    assert [type(error) for error in caught.value.exceptions] == [ProcessFailed]
    assert engine.live_processes == {}


async def test_budgets(engine: SimulatedEngine, client: PieClient, profile: str) -> None:
    """One for each input, on 0.4 only; None is no budget, which both have."""
    seen: list[Any] = []

    @engine.inferlet("budget@0.1.0")
    async def budget(session: InferletSession, input: Any) -> None:
        seen.append((input, session.token_budget))

    await client.run_processes("budget@0.1.0", [1, 2], [None, None])
    assert sorted(seen) == [(1, None), (2, None)]
    seen.clear()
    if profile == "v05":
        with pytest.raises(UnsupportedByEngine):
            await client.run_processes("budget@0.1.0", [1], [5])
        with pytest.raises(UnsupportedByEngine):
            await client.launch_processes("budget@0.1.0", [1], token_budgets=[5])
        assert seen == []
        return
    await client.run_processes("budget@0.1.0", [1, 2], [10, None])
    for process in await client.launch_processes("budget@0.1.0", [3, 4], token_budgets=[None, 20]):
        await process.result()
    assert sorted(seen, key=str) == [(1, 10), (2, None), (3, None), (4, 20)]


@pytest.mark.parametrize("budgets", [[], [1], [1, 2, 3]])
async def test_budgets_that_do_not_match(
    engine: SimulatedEngine, client: PieClient, budgets: list[int]
) -> None:
    """They are counted before anything is sent."""
    text = rf"token_budgets length {len(budgets)} does not match inputs length 2"
    with pytest.raises(InvalidRequest, match=text):
        await client.run_processes(ECHO, [1, 2], budgets)
    with pytest.raises(InvalidRequest, match=text):
        await client.launch_processes(ECHO, [1, 2], token_budgets=budgets)
    assert engine.started_total == 0
