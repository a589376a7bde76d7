# SPDX-License-Identifier: Apache-2.0
"""``overflow="pause"`` in virtual time: reading stops, goes on, and holds nothing up that has to end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from pie_anyio import (
    ConnectionLost,
    Event,
    InvalidRequest,
    Keepalive,
    Limits,
    PieClient,
    Process,
    ProcessTerminated,
    Reconnect,
)
from pie_anyio.testing import SimulatedEngine, virtual_backend

LINES = 1000
LIMIT = 50_000
ONE_READ = 65_536 + 2 * 1000
"""What one read of a stream in memory brings at the most, and a line that it completes."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_backend(request.param)


@pytest.fixture(params=["v04", "v05"])
def profile(request: pytest.FixtureRequest) -> Any:
    return request.param


def add_programs(engine: SimulatedEngine) -> None:
    @engine.inferlet("flood@0.1.0")
    async def flood(session: Any, input: Any) -> str:
        for number in range(LINES):
            await session.stdout(f"{number:0500}")
        if input == "stay":
            await anyio.sleep_forever()
        return "done"

    @engine.inferlet("echo@0.1.0")
    async def echo(session: Any, input: Any) -> Any:
        return input


@asynccontextmanager
async def running(profile: Any, **options: Any) -> AsyncGenerator[tuple[SimulatedEngine, PieClient]]:
    limits = Limits(process_buffer_bytes=LIMIT)
    async with SimulatedEngine(profile, port=None) as engine:
        add_programs(engine)
        with anyio.fail_after(10_000):
            async with PieClient(
                engine.connectable, **{"limits": limits, "keepalive": None, **options}
            ) as client:
                yield engine, client


async def flooded(client: PieClient, input: Any = None) -> Process:
    """Launch what prints more than the buffer holds, and wait until reading has stopped."""
    process = await client.launch_process("flood@0.1.0", input, overflow="pause")
    await anyio.wait_all_tasks_blocked()
    assert client.session.intake.is_shut
    return process


async def drop(engine: SimulatedEngine) -> None:
    engine.faults.drop_connections()
    with anyio.fail_after(5):
        await engine.wait_until(lambda: engine.connections == 0)


def buffered(process: Process) -> int:
    buffer = process._run.buffer
    assert buffer is not None
    return buffer.buffered_bytes


# ------------------------------------------------------------------------------------------------------------- output


async def test_nothing_is_lost_and_little_is_held(profile: Any) -> None:
    """A slow consumer gets every line; what it has not read stays with the engine."""
    async with running(profile) as (_engine, client):
        process = await flooded(client)
        lines: list[str] = []
        most = 0
        async for event in process:
            most = max(most, buffered(process))
            await anyio.sleep(0.1)
            if event.kind is Event.Stdout:
                lines.append(event.value)
        assert lines == [f"{number:0500}" for number in range(LINES)]
        assert process.return_value == "done"
        assert LIMIT < most < LIMIT + 2 * ONE_READ
        assert not client.session.intake.is_shut


async def test_the_engine_goes_on(profile: Any) -> None:
    """The program ends, though nobody reads; this side holds a buffer and one read, however long that lasts."""
    async with running(profile) as (engine, client):
        process = await flooded(client)
        with anyio.fail_after(100):
            await engine.wait_until(lambda: engine.returned_total == 1)
        await anyio.sleep(1000)
        assert not process.ended
        assert buffered(process) < LIMIT + 2 * ONE_READ
        assert await process.result() == "done"


async def test_everything_on_the_connection_waits(profile: Any) -> None:
    """Answers and other processes too; that is the price, and reading on pays it."""
    async with running(profile) as (_engine, client):
        process = await flooded(client)
        with anyio.move_on_after(1000) as scope:
            await client.ping()
        assert scope.cancelled_caught
        assert await process.result() == "done"
        await client.ping()
        assert (await client.run_process("echo@0.1.0", 1)).value == 1


async def test_an_end_opens_the_connection(profile: Any) -> None:
    """A full buffer that nothing can be added to holds nobody up, read or not."""
    async with running(profile) as (_engine, client):
        process = await flooded(client)
        while not process.ended:
            await process.recv()
        assert buffered(process)
        await client.ping()


async def test_other_words_are_refused(profile: Any) -> None:
    """Before anything is sent."""
    async with running(profile) as (engine, client):
        with pytest.raises(InvalidRequest, match="overflow must be"):
            await client.launch_process("echo@0.1.0", overflow="block")  # type: ignore[arg-type]
        assert engine.received_counts["launch_process"] == 0


# --------------------------------------------------------------------------------------------------------- ways to end


@pytest.mark.parametrize("way", ["end", "error", "cancel"])
async def test_leaving_the_block(profile: Any, way: str) -> None:
    """Ends the process and hears of it, at once."""
    async with running(profile) as (engine, client):
        began = anyio.current_time()
        with anyio.CancelScope() as scope:
            try:
                async with client.launch_process("flood@0.1.0", "stay", overflow="pause"):
                    await anyio.wait_all_tasks_blocked()
                    assert client.session.intake.is_shut
                    if way == "cancel":
                        scope.cancel()
                        await anyio.sleep_forever()
                    elif way == "error":
                        raise LookupError
            except LookupError:
                pass
        await client.ping()
        assert anyio.current_time() - began < 1
        assert client.receipt.terminated == 1
        assert client.receipt.clean
        assert not engine.live_processes


async def test_terminating(profile: Any) -> None:
    """The answer is heard; from then on the oldest output makes way."""
    async with running(profile) as (_engine, client):
        process = await flooded(client, "stay")
        await process.terminate()
        await process.wait()
        assert buffered(process) < 2 * LIMIT
        kinds = [event.kind async for event in process]
        assert Event.Gap in kinds
        assert kinds[-1] is Event.Error
        with pytest.raises(ProcessTerminated):
            await process.result()


async def test_terminating_by_id(profile: Any) -> None:
    """The same through the client."""
    async with running(profile) as (_engine, client):
        process = await flooded(client, "stay")
        await client.terminate_process(process.process_id)
        await process.wait()


async def test_detaching(profile: Any) -> None:
    """Whoever leaves a process to itself does not want to wait for it."""
    async with running(profile) as (_engine, client):
        process = await flooded(client, "stay")
        process.detach()
        await client.ping()
        assert buffered(process) < 2 * LIMIT


async def test_detaching_before_anything_is_said(profile: Any) -> None:
    """What it prints later holds nobody up either."""
    async with running(profile) as (engine, client):

        @engine.inferlet("later@0.1.0")
        async def later(session: Any, input: Any) -> str:
            await session.receive()
            for number in range(LINES):
                await session.stdout(f"{number:0500}")
            return "done"

        process = await client.launch_process("later@0.1.0", overflow="pause")
        process.detach()
        await process.signal("go")
        await process.wait()
        assert not client.session.intake.is_shut
        kinds = [event.kind async for event in process]
        assert Event.Gap in kinds
        assert kinds[-1] is Event.Return


async def test_closing_while_paused(profile: Any) -> None:
    """The close frame is sent, and what there is to hear is heard, in bounded memory."""
    process = None
    began = anyio.current_time()
    async with running(profile, close_timeout=3, terminate_grace=5) as (_engine, client):
        process = await flooded(client, "stay")
    assert anyio.current_time() - began < 1
    assert buffered(process) < 2 * LIMIT
    assert process.ended
    assert client.receipt.running == 0


async def test_a_cancelled_client_while_paused(profile: Any) -> None:
    """The same, whatever ends it."""
    async with SimulatedEngine(profile, port=None) as engine:
        add_programs(engine)
        limits = Limits(process_buffer_bytes=LIMIT)
        began = anyio.current_time()
        with anyio.CancelScope() as scope:
            async with (
                PieClient(engine.connectable, limits=limits) as client,
                client.launch_process("flood@0.1.0", "stay", overflow="pause"),
            ):
                await anyio.wait_all_tasks_blocked()
                assert client.session.intake.is_shut
                scope.cancel()
                await anyio.sleep_forever()
        assert anyio.current_time() - began < 1
        assert client.receipt.terminated == 1
        assert client.receipt.clean


# ------------------------------------------------------------------------------------------------ keepalive and losses


async def test_keepalive_while_paused(profile: Any) -> None:
    """Nobody listened, so that no answer was heard says nothing."""
    async with running(profile, keepalive=Keepalive(interval=5, timeout=5)) as (_engine, client):
        process = await flooded(client)
        await anyio.sleep(1000)
        assert client.session.is_connected
        assert await process.result() == "done"
        await anyio.sleep(1000)
        await client.ping()


async def test_keepalive_goes_on_after_a_pause() -> None:
    """An engine that has vanished in the meantime is given up, with the time counted from the end of the pause."""
    async with running("v05", keepalive=Keepalive(interval=5, timeout=5)) as (engine, client):
        process = await flooded(client)
        await anyio.sleep(1000)
        engine.faults.half_open = True
        began = anyio.current_time()
        with pytest.raises(ConnectionLost, match="silent"):
            await process.result()
        assert 5 <= anyio.current_time() - began <= 15


async def test_a_pause_that_begins_while_a_pong_is_due() -> None:
    """The judgement waits for the end of it."""
    async with running("v05", keepalive=Keepalive(interval=5, timeout=5)) as (_engine, client):
        await client.ping()
        await anyio.sleep(5)
        process = await flooded(client)
        await anyio.sleep(100)
        assert await process.result() == "done"


async def test_a_connection_that_ends_while_paused() -> None:
    """Is noticed when there is reading again; everything that had come is given first."""
    async with running("v05") as (engine, client):
        process = await flooded(client, "stay")
        await drop(engine)
        assert client.session.intake.is_shut
        with pytest.raises(ConnectionLost):
            async for _ in process:
                pass
        assert not client.session.intake.is_shut


async def test_a_write_that_fails_while_paused() -> None:
    """Ends the connection, and the reader with it."""
    async with running("v05") as (engine, client):
        process = await flooded(client, "stay")
        await drop(engine)
        with pytest.raises(ConnectionLost):
            await client.ping()
        assert not client.session.intake.is_shut
        assert process.ended


async def test_coming_back_while_paused() -> None:
    """A full buffer does not keep a lost connection from being restored; then it is waited for again."""
    async with running("v04", reconnect=Reconnect(initial=0.1)) as (engine, client):
        process = await flooded(client, "stay")
        await drop(engine)
        with pytest.raises(ConnectionLost):
            await client.ping()  # a write finds out
        with anyio.fail_after(100):
            await engine.wait_until(lambda: engine.received_counts["attach_process"] == 1)
        await anyio.wait_all_tasks_blocked()
        assert client.session.intake.is_shut
        await process.recv()
        with anyio.fail_after(100):
            await process.terminate()
        kinds = [event.kind async for event in process]
        assert Event.Gap in kinds
        assert kinds[-1] is Event.Error
        await client.ping()
