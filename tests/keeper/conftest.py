# SPDX-License-Identifier: Apache-2.0
"""A keeper in memory between clients and a simulated engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from anyio.abc import ByteStream

from pie_anyio import PieClient, Reconnect
from pie_anyio.keeper import Keeper, KeeperLimits
from pie_anyio.testing import SimulatedEngine
from pie_anyio.testing.streams import MemoryConnectable


@attrs.define(eq=False)
class Kept:
    """A keeper that serves, and how to reach it."""

    keeper: Keeper
    connectable: MemoryConnectable
    engine: SimulatedEngine

    def client(self, name: str = "alice", **options: Any) -> PieClient:
        """Make a client of the keeper, not entered yet."""
        return PieClient(self.connectable, identity=name, **options)

    async def settle(self) -> None:
        """Wait until nothing is left to be done: what was sent has been received, and that has been stored."""
        await anyio.wait_all_tasks_blocked()

    async def connect(self) -> ByteStream:
        return await self.connectable.connect()


@asynccontextmanager
async def keep(
    engine: SimulatedEngine, store: Path | None = None, *, reconnect: bool = True, **options: Any
) -> AsyncIterator[Kept]:
    """Serve a keeper in memory for the length of a block."""
    connectable = MemoryConnectable()
    policy = Reconnect(attempts=None, initial=0.001) if reconnect else None

    def connect() -> PieClient:
        return PieClient(engine.connectable, reconnect=policy, close_timeout=0.05)

    limits = options.pop("limits", None) or KeeperLimits(patience=2.0)
    keeper = Keeper(connect, listener=connectable.listener, store=store, limits=limits, **options)
    async with anyio.create_task_group() as tasks:
        await tasks.start(keeper.serve)
        try:
            yield Kept(keeper, connectable, engine)
        finally:
            keeper.stop()


@pytest.fixture(params=["v04", "v05"])
def profile(request: pytest.FixtureRequest) -> Any:
    """Give both generations in turn."""
    return request.param


@pytest.fixture
async def engine(anyio_backend: Any, profile: Any) -> AsyncIterator[SimulatedEngine]:
    """Give an engine in memory."""
    async with SimulatedEngine(profile, port=None) as engine:
        add_programs(engine)
        yield engine


@pytest.fixture
async def kept(engine: SimulatedEngine) -> AsyncIterator[Kept]:
    """Give a keeper in memory."""
    async with keep(engine) as kept:
        yield kept


def add_programs(engine: SimulatedEngine) -> None:
    """Install the programs that the tests launch."""

    @engine.inferlet("echo@0.1.0")
    async def echo(session: Any, input: Any) -> Any:
        return input

    @engine.inferlet("talk@0.1.0")
    async def talk(session: Any, input: Any) -> Any:
        await session.stdout("out\n")
        await session.stderr("err\n")
        while (text := await session.receive()) != "quit":
            await session.send(text.upper())
        return input

    @engine.inferlet("count@0.1.0")
    async def count(session: Any, input: Any) -> Any:
        for number in range(input["n"]):
            await session.send(str(number))
        return "done"

    @engine.inferlet("fail@0.1.0")
    async def fail(session: Any, input: Any) -> None:
        raise ValueError("it broke")

    @engine.inferlet("files@0.1.0")
    async def files(session: Any, input: Any) -> Any:
        session.send("ready")
        data = await session.receive_file()
        await session.send_file(data * 2)
        return len(data)

    @engine.inferlet("wait@0.1.0")
    async def wait(session: Any, input: Any) -> None:
        await session.send("waiting")
        await anyio.sleep_forever()
