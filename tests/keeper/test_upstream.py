# SPDX-License-Identifier: Apache-2.0
"""The keeper's own connection: lost, restored, given up; and what a keeper finds that was killed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from pie_anyio import (
    ConnectError,
    ConnectionLost,
    EngineBusy,
    EngineError,
    PieClient,
    PieError,
    ProcessFailed,
)
from pie_anyio._protocol import messages
from pie_anyio._protocol import websocket as wire
from pie_anyio.keeper import Keeper, KeeperLimits, kept_processes
from pie_anyio.keeper.store import Store
from pie_anyio.testing import SimulatedEngine
from pie_anyio.testing.streams import MemoryConnectable

from .conftest import Kept, keep
from .raw import Raw


async def connect(kept: Kept, name: str = "alice") -> Raw:
    return await (await Raw(await kept.connect(), name).__aenter__()).identify(name)


async def status(kept: Kept) -> list[str]:
    async with kept.client() as client:
        return [row.status for row in await kept_processes(client)]


@pytest.mark.parametrize("profile", ["v04"])
async def test_a_lost_connection_leaves_a_gap(kept: Kept) -> None:
    """On an engine that lets it, the keeper attaches again; the client sees a gap, and the process goes on."""
    with anyio.fail_after(5):
        async with kept.client() as client:
            process = await client.launch_process("talk@0.1.0", {})
            assert [(await process.recv()).value for _ in range(2)] == ["out\n", "err\n"]
            kept.engine.faults.drop_connections()
            event = await process.recv()
            assert event.kind == "stderr"
            assert "[pie-anyio keeper: the connection was lost and restored" in str(event.value)
            await process.signal("quit")
            assert await process.result() == {}


@pytest.mark.parametrize("profile", ["v05"])
async def test_a_lost_connection_may_lose_processes(kept: Kept) -> None:
    """On an engine that ends processes with their connection they are lost; the keeper goes on with new ones."""
    with anyio.fail_after(5):
        async with kept.client() as client:
            process = await client.launch_process("talk@0.1.0", {})
            await process.recv()
            kept.engine.faults.drop_connections()
            with pytest.raises(ProcessFailed, match="is lost"):
                await process.result()
            assert (await client.run_process("echo@0.1.0", 1)).value == 1
        assert await status(kept) == ["returned", "lost"]


async def test_a_client_that_cannot_come_back(engine: SimulatedEngine) -> None:
    """Where the client itself does not reconnect, the keeper makes a new one, and what ran is lost."""
    with anyio.fail_after(5):
        async with keep(engine, reconnect=False) as kept, kept.client() as client:
            process = await client.launch_process("wait@0.1.0")
            await process.recv()
            engine.faults.drop_connections()
            with pytest.raises(ProcessFailed, match="is lost"):
                await process.result()
            assert (await client.run_process("echo@0.1.0", 1)).value == 1


REQUESTS = {
    "query": messages.Query("model_status", ""),
    "launch_process": messages.LaunchProcess("echo@0.1.0", "{}"),
    "attach_process": messages.AttachProcess("0b7c9a52-6d0e-4b39-8f0e-2f1f3c1f7a11"),
    "check_program": messages.CheckProgram("echo", "0.1.0"),
}


@pytest.mark.parametrize("kind", REQUESTS)
async def test_a_request_whose_answer_is_lost(engine: SimulatedEngine, kind: str) -> None:
    """What was under way when the connection went is answered: nobody waits for ever."""
    with anyio.fail_after(5):
        async with keep(engine, reconnect=False) as kept:
            raw = await connect(kept)
            engine.faults.drop_on.add(kind)
            ok, text = await raw.ask(REQUESTS[kind])
            assert not ok
            assert "connection to the engine was lost" in text
            engine.faults.drop_on.clear()
            assert (await raw.ask(REQUESTS["query"]))[0]
            await raw.stream.aclose()


async def test_an_upload_whose_answer_is_lost(engine: SimulatedEngine) -> None:
    """An upload too."""
    with anyio.fail_after(5):
        async with keep(engine, reconnect=False) as kept, kept.client() as client:
            engine.faults.drop_on.add("add_program")
            with pytest.raises(EngineError, match="connection"):
                await client.install_program_bytes(b"\0asm", '[package]\nname = "a"\nversion = "1.2.3"\n')


async def test_requests_that_are_refused_here(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """What our own client refuses to send, or finds damaged, is answered with its reason."""

    async def refuse(self: object, request: object) -> None:
        msg = "too large, say"
        raise PieError(msg)

    with anyio.fail_after(5):
        raw = await connect(kept)
        client = await kept.keeper.upstream.ready()
        monkeypatch.setattr(type(client.session), "request", refuse)
        assert await raw.ask(REQUESTS["query"]) == (False, "too large, say")
        await raw.stream.aclose()


async def test_messages_that_cannot_be_sent(kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """A signal that cannot be sent is logged; one on a lost connection has the keeper look for another."""
    errors: list[PieError] = [PieError("too large"), ConnectionLost("gone")]

    async def refuse(self: object, message: str) -> None:
        raise errors.pop(0)

    with anyio.fail_after(5):
        async with kept.client() as client:
            process = await client.launch_process("wait@0.1.0")
            monkeypatch.setattr("pie_anyio.Process.signal", refuse)
            raw = await connect(kept)
            for _ in range(2):
                await raw.send(messages.SignalProcess(process.process_id, "hello"))
            await raw.ask(messages.Ping())
            await raw.stream.aclose()
    assert not errors
    assert "was not sent: too large" in caplog.text


class Door:
    """A way to an engine that can be shut."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self.engine = engine
        self.shut = False

    def client(self) -> PieClient:
        if self.shut:
            nobody = MemoryConnectable()
            nobody.listener._closed = True
            return PieClient(nobody)
        return PieClient(self.engine.connectable, close_timeout=0.05)


@asynccontextmanager
async def keep_behind(door: Door, store: Path | None = None, **limits: Any) -> AsyncIterator[Kept]:
    connectable = MemoryConnectable()
    keeper = Keeper(door.client, listener=connectable.listener, store=store, limits=KeeperLimits(**limits))
    async with anyio.create_task_group() as tasks:
        await tasks.start(keeper.serve)
        try:
            yield Kept(keeper, connectable, door.engine)
        finally:
            keeper.stop()


async def test_without_an_engine_launches_are_refused(engine: SimulatedEngine) -> None:
    """While the engine is away a launch waits a little and is refused as for lack of capacity; results are there."""
    door = Door(engine)
    with anyio.fail_after(5):
        async with keep_behind(door, patience=0.05) as kept, kept.client() as client:
            done = await client.launch_process("echo@0.1.0", 1)
            await done.result()
            door.shut = True
            engine.faults.drop_connections()
            with pytest.raises(EngineBusy):
                while True:
                    await client.launch_process("echo@0.1.0", 2)
            with pytest.raises(EngineBusy, match="no connection to the engine"):
                await client.launch_process("echo@0.1.0", 2)
            _, facts = await client.session.request(messages.Query("keeper", ""))
            assert json.loads(facts)["problem"]
            async with kept.client("bob") as other:
                assert await (await other.attach_process(done.process_id)).result() == 1


async def test_a_login_that_is_lost(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that ends while a request makes sure of its login is one that is lost."""
    calls = 0

    async def ready(self: object) -> None:
        nonlocal calls
        calls += 1
        msg = "gone"
        raise ConnectionLost(msg)

    with anyio.fail_after(5):
        raw = await connect(kept)
        client = await kept.keeper.upstream.ready()
        monkeypatch.setattr(type(client.session), "ready", ready)
        ok, text = await raw.ask(REQUESTS["query"])
        assert not ok
        assert "no worker available" in text
        assert calls
        await raw.stream.aclose()


async def test_without_an_engine_and_without_results(engine: SimulatedEngine) -> None:
    """A keeper that reaches no engine, and has nothing to serve, does not start."""
    door = Door(engine)
    door.shut = True
    with anyio.fail_after(5):
        with pytest.raises(ConnectError):
            await Keeper(door.client, listener=MemoryConnectable().listener).serve()


async def leave_running(path: Path) -> None:
    """Make the store of a keeper that was killed: one process running, one ended."""
    store = Store(path)
    store.set_fact("generation", "0.4")
    store.finish(store.add("0b7c9a52-6d0e-4b39-8f0e-2f1f3c1f7a11", "echo@0.1.0", "bob", ""), "returned", "1")
    store.add("0b7c9a52-6d0e-4b39-8f0e-2f1f3c1f7a12", "talk@0.1.0", "bob", "")
    store.close()


async def test_what_a_killed_keeper_left(engine: SimulatedEngine, tmp_path: Path) -> None:
    """What ran and is not there any more is lost, and says why; what had ended is as it was."""
    path = tmp_path / "keeper" / "store"
    await leave_running(path)
    with anyio.fail_after(5):
        async with keep(engine, path) as kept:
            assert await status(kept) == ["lost", "returned"]
            async with kept.client() as client:
                process = await client.attach_process("0b7c9a52-6d0e-4b39-8f0e-2f1f3c1f7a11")
                assert await process.result() == 1
                process = await client.attach_process("0b7c9a52-6d0e-4b39-8f0e-2f1f3c1f7a12")
                with pytest.raises(ProcessFailed, match="the keeper was restarted"):
                    await process.result()


@pytest.mark.parametrize("profile", ["v04"])
async def test_what_still_runs_is_attached_to(engine: SimulatedEngine, tmp_path: Path) -> None:
    """On an engine of 0.4 that keeps its documentation, a process goes on behind a gap after the keeper's death."""
    path = tmp_path / "keeper" / "store"
    with anyio.fail_after(5):
        async with keep(engine, path) as kept, kept.client() as client:
            process = await client.launch_process("talk@0.1.0", {})
            assert [(await process.recv()).value for _ in range(2)] == ["out\n", "err\n"]
            await kept.settle()
        async with keep(engine, path) as kept, kept.client() as client:
            again = await client.attach_process(process.process_id)
            await again.signal("one")
            await again.signal("quit")
            values = [str(event.value) async for event in again]
            assert values == [
                "[pie-anyio keeper: the keeper was restarted: output may be missing here]\n",
                *("ONE", "{}"),
            ]


async def test_results_without_an_engine(engine: SimulatedEngine, tmp_path: Path) -> None:
    """A keeper that has something serves it, though it reaches no engine; what ran is not given up before."""
    path = tmp_path / "keeper" / "store"
    await leave_running(path)
    door = Door(engine)
    door.shut = True
    with anyio.fail_after(5):
        async with keep_behind(door, path) as kept:
            assert await status(kept) == ["running", "returned"]
            door.shut = False
            async with kept.client() as client:
                process = await client.attach_process("0b7c9a52-6d0e-4b39-8f0e-2f1f3c1f7a12")
                with pytest.raises(ProcessFailed, match="the keeper was restarted"):
                    await process.result()


async def test_the_generation_must_be_known(engine: SimulatedEngine, tmp_path: Path) -> None:
    """Before the engine was reached once, nobody can say what its clients speak; they are told to come later."""
    path = tmp_path / "keeper" / "store"
    store = Store(path)
    store.add("one", "echo@0.1.0", "bob", "")
    store.close()
    door = Door(engine)
    door.shut = True
    with anyio.fail_after(5):
        async with keep_behind(door, path) as kept:
            raw = await Raw(await kept.connect(), "alice").__aenter__()
            (refused,) = raw.received
            assert isinstance(refused, wire.UpgradeRefused)
            assert refused.status == 503
            assert "has not reached its engine" in refused.body
            await raw.until_end()


@pytest.mark.parametrize("profile", ["v04"])
async def test_processes_of_others_are_adopted(engine: SimulatedEngine) -> None:
    """A process that the engine lets anybody attach to is kept from then on."""
    with anyio.fail_after(5):
        async with keep(engine) as kept:
            async with PieClient(engine.connectable, username="pie-anyio", close_timeout=0.05) as direct:
                process = await direct.launch_process("talk@0.1.0", {})
                assert [(await process.recv()).value for _ in range(2)] == ["out\n", "err\n"]
                process.detach()
            async with kept.client() as client:
                adopted = await client.attach_process(process.process_id)
                await adopted.signal("hello")
                assert (await adopted.recv()).value == "HELLO"
            async with kept.client("bob") as client:
                again = await client.attach_process(process.process_id)
                await again.signal("quit")
                assert [event.value async for event in again] == ["HELLO", "{}"]
