# SPDX-License-Identifier: Apache-2.0
"""When a keeper goes home, in virtual time."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from pie_anyio import PieClient
from pie_anyio.keeper import Keeper, KeeperLimits, server
from pie_anyio.testing import SimulatedEngine, virtual_backend
from pie_anyio.testing.streams import MemoryConnectable

from .conftest import Kept, add_programs
from .raw import Raw

IDLE = 900.0


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_backend(request.param)


@pytest.fixture
def profile() -> Any:
    return "v05"


def make(engine: SimulatedEngine, **options: Any) -> Kept:
    connectable = MemoryConnectable()
    keeper = Keeper(
        lambda: PieClient(engine.connectable, keepalive=None),
        listener=connectable.listener,
        idle=IDLE,
        **options,
    )
    return Kept(keeper, connectable, engine)


async def test_it_ends_when_nothing_is_left_to_do(engine: SimulatedEngine) -> None:
    """The time runs while there is no client and no running process, and begins anew after each."""
    kept = make(engine)
    ended: list[float] = []

    async def serve(*, task_status: Any) -> None:
        await kept.keeper.serve(task_status=task_status)
        ended.append(anyio.current_time())

    async with anyio.create_task_group() as tasks:
        await tasks.start(serve)
        await anyio.sleep(IDLE - 10)
        async with kept.client(keepalive=None) as client:
            process = await client.launch_process("wait@0.1.0")
            await anyio.sleep(3 * IDLE)  # a client is there
        await anyio.sleep(3 * IDLE)  # a process is running
        assert not ended
        async with kept.client(keepalive=None) as client:
            await client.terminate_process(process.process_id)
        left = anyio.current_time()
        await anyio.sleep(IDLE - 1)
        assert not ended
    assert ended[0] - left == pytest.approx(IDLE, abs=1)


async def test_old_results_go_without_anything_happening(engine: SimulatedEngine) -> None:
    """A keeper with nothing to store looks from time to time for what is too old."""
    now = 1000.0
    kept = make(engine, limits=KeeperLimits(result_age=60))
    async with anyio.create_task_group() as tasks:
        await tasks.start(kept.keeper.serve)
        kept.keeper.store.now = lambda: now
        async with kept.client(keepalive=None) as client:
            await client.run_process("echo@0.1.0")
            await anyio.sleep(10)
            assert len(kept.keeper.store.records) == 1
            now += 61
            await anyio.sleep(server._PURGE_SECONDS)
            assert not kept.keeper.store.records
        kept.keeper.stop()


async def test_a_handshake_has_its_time(engine: SimulatedEngine) -> None:
    """Whoever connects and says nothing is hung up on; whoever has said who he is may be silent."""
    kept = make(engine)
    async with anyio.create_task_group() as tasks:
        await tasks.start(kept.keeper.serve)
        silent = Raw(await kept.connect(), "silent")
        start = anyio.current_time()
        async with Raw(await kept.connect(), "alice") as raw:
            await silent.until_end()
            assert anyio.current_time() - start == pytest.approx(10, abs=0.1)
            await anyio.sleep(5 * IDLE)
            await raw.identify("alice")
        await silent.stream.aclose()
        kept.keeper.stop()


async def test_a_client_that_reads_nothing_is_dropped(engine: SimulatedEngine) -> None:
    """A stop waits half a second for those that do not read."""
    kept = make(engine)
    add_programs(engine)
    async with anyio.create_task_group() as tasks:
        await tasks.start(kept.keeper.serve)
        async with Raw(await kept.connect(), "alice") as raw:
            from pie_anyio._protocol.messages import LaunchProcess

            await raw.send(LaunchProcess("count@0.1.0", '{"n": 3000}'), 1)
            await anyio.sleep(10)
            start = anyio.current_time()
            kept.keeper.stop()
            await kept.settle()
            await anyio.sleep(5)
            assert not kept.keeper.sessions
            assert anyio.current_time() - start < 6
