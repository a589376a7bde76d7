# SPDX-License-Identifier: Apache-2.0
"""A keeper between clients and a real engine: coming back, and outages of the engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest

from pie_anyio import Keepalive, PieClient, ProcessFailed
from pie_anyio.keeper import Keeper, kept_processes
from pie_anyio.testing.real_engine import RealEngine, RealEngineProcess
from pie_anyio.testing.streams import MemoryConnectable

from .test_outages import POLICY, Gate, Inferlets

pytestmark = [pytest.mark.engine, pytest.mark.both_loops]

TALK, SLEEPER, ECHO = "talk@0.1.0", "sleeper@0.1.0", "echo@0.1.0"


async def install(client: PieClient, inferlets: Inferlets, *names: str) -> None:
    for name in names:
        source, manifest = inferlets[name]
        if not await client.check_program(f"{name}@0.1.0"):
            await client.install_program_bytes(source, manifest)


@asynccontextmanager
async def keep(gate: Gate | str, store: Path) -> AsyncGenerator[MemoryConnectable]:
    """Serve a keeper in memory; give where its clients connect to."""
    connectable = MemoryConnectable()
    keepalive = Keepalive(interval=1, timeout=1)
    connect = partial(PieClient, gate, reconnect=POLICY, keepalive=keepalive, connect_timeout=2)
    keeper = Keeper(connect, listener=connectable.listener, store=store / "kept.sqlite")
    with anyio.fail_after(90):
        async with anyio.create_task_group() as tasks:
            await tasks.start(keeper.serve)
            yield connectable
            keeper.stop()


async def test_a_client_comes_back_to_its_process(
    real_engine_url: str, real_inferlets: Inferlets, tmp_path: Path
) -> None:
    """What 0.5 itself does not let it do: leave, attach by the id, go on, and read the result after the end."""
    async with keep(real_engine_url, tmp_path) as door:
        async with PieClient(door, identity="alice") as client:
            await install(client, real_inferlets, "talk")
            process = await client.launch_process(TALK)
            assert (await process.recv()).value == "ready"
            process.detach()
        async with PieClient(door, identity="alice") as client:
            process = await client.attach_process(process.process_id)
            await process.signal("hello")
            assert (await process.recv()).value == "HELLO"
            await process.signal("quit")
            await process.wait()
        for name in ("alice", "bob"):  # bob has seen nothing of it
            async with PieClient(door, identity=name) as client:
                process = await client.attach_process(process.process_id)
                assert await process.result() == {"heard": ["hello"]}
                assert process.output == (["ready", "HELLO"] if name == "bob" else [])
                assert await client.list_processes() == []


async def test_an_engine_that_is_killed_and_started_again(
    real_engine: RealEngineProcess, real_inferlets: Inferlets, tmp_path: Path
) -> None:
    """What it ran is lost, and clients are told so when they come back; what comes next waits for the engine."""
    shared = real_engine.engine
    async with RealEngine(python=shared.python, home=shared.home, seed=None) as engine:
        gate = Gate(engine.url)
        async with keep(gate, tmp_path) as door:
            async with PieClient(door, identity="alice") as client:
                await install(client, real_inferlets, "sleeper", "echo")
                running = await client.launch_process(SLEEPER, {"ticks": 1000, "seconds": 0.1})
                assert (await running.recv()).value == "started"
                running.detach()
                done = await client.launch_process(ECHO, 7)
                assert await done.result() == 7
            gate.opened = anyio.Event()
            engine.kill()
            await engine.restart()
            gate.opened.set()
            async with PieClient(door, identity="alice") as client:
                process = await client.attach_process(running.process_id)
                with pytest.raises(ProcessFailed, match="the connection was lost"):
                    await process.result()
                assert (await client.run_process(ECHO, 8)).value == 8
                statuses = {row.id: row.status for row in await kept_processes(client)}
                assert statuses[running.process_id] == "lost"
                assert statuses[done.process_id] == "returned"
                again = await client.attach_process(done.process_id)
                assert await again.result() == 7


async def test_an_engine_that_is_stopped_for_longer_than_the_keepalive(
    real_engine: RealEngineProcess, real_inferlets: Inferlets, tmp_path: Path
) -> None:
    """The keeper gives the connection up, and has another one when the engine goes on; its clients stay connected."""
    shared = real_engine.engine
    async with RealEngine(python=shared.python, home=shared.home, seed=None) as engine:
        async with keep(engine.url, tmp_path) as door, PieClient(door, identity="alice") as client:
            await install(client, real_inferlets, "sleeper", "echo")
            process = await client.launch_process(SLEEPER, {"ticks": 1000, "seconds": 0.1})
            assert (await process.recv()).value == "started"
            engine.suspend()
            try:
                await anyio.sleep(3)  # in which the engine really has to be silent
            finally:
                engine.resume()
            with pytest.raises(ProcessFailed, match="the connection was lost"):
                await process.result()
            assert (await client.run_process(ECHO, 8)).value == 8
            assert client.connections == 1
