# SPDX-License-Identifier: Apache-2.0
"""A real engine that is killed, restarted or stopped under a client that comes back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio import TCPConnectable
from anyio.abc import ByteStream, ByteStreamConnectable

from pie_anyio import ConnectionLost, Keepalive, PieClient, ProcessLost, Reconnect
from pie_anyio.testing.real_engine import RealEngine, RealEngineProcess

pytestmark = [pytest.mark.engine, pytest.mark.both_loops]

Inferlets = dict[str, tuple[bytes, str]]
POLICY = Reconnect(attempts=100, initial=0.05, maximum=0.5)
SLEEPER = "sleeper@0.1.0"
COUNT, LIMIT = 24, 8


@pytest.fixture
async def engine(real_engine: RealEngineProcess, real_inferlets: Inferlets) -> AsyncIterator[RealEngine]:
    """Boot an engine that nobody else uses; it keeps its programs when it is started again."""
    shared = real_engine.engine
    async with RealEngine(python=shared.python, home=shared.home, seed=None) as engine:
        async with PieClient(engine.url) as client:
            for name in ("sleeper", "echo"):
                source, manifest = real_inferlets[name]
                if not await client.check_program(f"{name}@0.1.0"):
                    await client.install_program_bytes(source, manifest)
        yield engine


class Gate(ByteStreamConnectable):
    """Lets connections through while it is open, as a load balancer does that asks an engine for its health.

    An engine of 0.5.2 takes connections before its language components are in their place, and refuses launches of
    programs that need one until then.
    """

    def __init__(self, url: str) -> None:
        self._inner = TCPConnectable("127.0.0.1", int(url.rpartition(":")[2]))
        self.opened = anyio.Event()
        self.opened.set()

    async def connect(self) -> ByteStream:
        await self.opened.wait()
        return await self._inner.connect()


@asynccontextmanager
async def connected(engine: RealEngine, gate: Gate | None = None) -> AsyncGenerator[PieClient]:
    keepalive = Keepalive(interval=1, timeout=1)
    client = PieClient(gate or engine.url, reconnect=POLICY, keepalive=keepalive, connect_timeout=2)
    with anyio.fail_after(90):
        async with client:
            yield client


async def wait_running(client: PieClient, count: int) -> None:
    while len(await client.list_processes()) < count:
        await anyio.lowlevel.checkpoint()


async def test_a_restart_on_the_same_port_under_a_map(engine: RealEngine) -> None:
    """The engine forgets everything; each item is run again, once, and has one outcome."""
    gate = Gate(engine.url)
    async with connected(engine, gate) as client:
        inputs = [{"ticks": 3, "seconds": 0.1}] * COUNT
        call = client.map_processes(SLEEPER, inputs, limit=LIMIT, retry_lost=1, on_error="collect")
        async with call as outcomes:
            await wait_running(client, LIMIT)
            gate.opened = anyio.Event()
            engine.kill()
            await engine.restart()
            gate.opened.set()
            ended = [outcome async for outcome in outcomes]
        assert sorted(outcome.index for outcome in ended) == list(range(COUNT))
        assert {outcome.status for outcome in ended} == {"returned"}
        assert sum(outcome.attempts > 1 for outcome in ended) == LIMIT
        assert call.receipt.lost == LIMIT
        assert call.receipt.unconfirmed == ()
        assert client.connections >= 2
        assert await client.list_processes() == []


async def test_a_stop_for_longer_than_the_keepalive_under_a_map(engine: RealEngine) -> None:
    """A stopped engine takes connections and says nothing; it ends the runs when it goes on and sees them gone."""
    async with connected(engine) as client:
        inputs = [{"ticks": 3, "seconds": 0.1}] * COUNT
        call = client.map_processes(SLEEPER, inputs, limit=LIMIT, retry_lost=2, on_error="collect")
        async with call as outcomes:
            await wait_running(client, LIMIT)
            lost = client.session.link.router.ended
            engine.suspend()
            try:
                await lost.wait()
                with anyio.move_on_after(3):  # long enough for an attempt that ends at connect_timeout
                    await client.session.ready()
                    pytest.fail("a stopped engine does not answer")
            finally:
                engine.resume()
            ended = [outcome async for outcome in outcomes]
        assert sorted(outcome.index for outcome in ended) == list(range(COUNT))
        assert {outcome.status for outcome in ended} == {"returned"}
        assert call.receipt.unconfirmed == ()
        assert await client.list_processes() == []


async def test_what_a_killed_engine_ran_is_lost_and_says_why(engine: RealEngine) -> None:
    """A call that waits is told; one that comes while the engine is away waits for it."""
    gate = Gate(engine.url)
    async with connected(engine, gate) as client:
        process = await client.launch_process(SLEEPER, {"ticks": 1000, "seconds": 0.1})
        assert (await process.recv()).value == "started"
        gate.opened = anyio.Event()
        engine.kill()
        async with anyio.create_task_group() as tasks:

            async def restart() -> None:
                await engine.restart()
                gate.opened.set()

            tasks.start_soon(restart)
            with pytest.raises(ProcessLost, match="the connection was lost"):
                await process.result()
        assert (await client.run_process("echo@0.1.0", 5)).value == 5
        assert client.receipt.lost == 1


async def test_an_engine_that_does_not_come_back(engine: RealEngine) -> None:
    """The attempts end, and so does everything that waits."""
    policy = Reconnect(attempts=3, initial=0.05, jitter=0)
    with anyio.fail_after(30):
        async with PieClient(engine.url, reconnect=policy) as client:
            process = await client.launch_process(SLEEPER, {"ticks": 1000, "seconds": 0.1})
            engine.kill()
            with pytest.raises(ConnectionLost, match="in 3 attempts"):
                await process.result()
            with pytest.raises(ConnectionLost) as caught:
                await client.ping()
            assert caught.value.issued is False
