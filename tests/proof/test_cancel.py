# SPDX-License-Identifier: Apache-2.0
"""Everything that a user can await, cancelled at each of its waits: the books agree with the engine, nothing is left.

One table of operations. What is particular to an operation (no event is lost, an upload can be repeated) is tested
beside its subject; what must hold for all of them is tested here, for all of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.lowlevel
import attrs
import pytest
from anyio import to_thread
from tests.api.conftest import add_programs
from tests.cancelling import HOWS, CancelPoint, How, at_each_wait
from tests.conftest import _live_tasks, _task_name
from tests.proof.conftest import MANIFEST, WASM

from pie_anyio import PieClient, Process
from pie_anyio.testing import CutProxy, SimulatedEngine


@attrs.frozen
class Stage:
    """What an operation acts on."""

    engine: SimulatedEngine
    client: PieClient
    process: Process
    """A process that is detached, so that only the operation could end it."""
    folder: Path


Operation = Callable[[Stage], Awaitable[Any]]


async def entered(context: Any) -> Any:
    async with context as value:
        return value


async def drained(call: Any) -> list[Any]:
    async with call:
        return [outcome async for outcome in call]


async def read_all(process: Process) -> list[Any]:
    await process.signal("quit")
    return [event async for event in process]


async def result_of(process: Process) -> Any:
    await process.signal("quit")
    return await process.result()


async def waited(process: Process) -> None:
    await process.signal("quit")
    await process.wait()


async def collected(process: Process) -> Any:
    await process.signal("quit")
    return await process.collect()


async def closed(process: Process) -> None:
    process._run.detached = False
    await process.aclose()


CLIENT: Final[dict[str, Operation]] = {
    "authenticate": lambda s: s.client.authenticate("alice"),
    "ping": lambda s: s.client.ping(),
    "query": lambda s: s.client.query("model_status", "default"),
    "list_processes": lambda s: s.client.list_processes(),
    "check_program": lambda s: s.client.check_program("echo@0.1.0"),
    "install_program": lambda s: s.client.install_program(s.folder / "p.wasm", s.folder / "Pie.toml"),
    "install_program_bytes": lambda s: s.client.install_program_bytes(WASM, MANIFEST, True),
    "launch_process, awaited": lambda s: _awaited(s.client.launch_process("sleep@0.1.0")),
    "launch_process, entered": lambda s: entered(s.client.launch_process("sleep@0.1.0")),
    "launch_process, unread": lambda s: _awaited(s.client.launch_process("sleep@0.1.0", None, False)),
    "launch_processes": lambda s: s.client.launch_processes("sleep@0.1.0", [1, 2, 3]),
    "attach_process, awaited": lambda s: _awaited(s.client.attach_process(s.process.process_id)),
    "attach_process, entered": lambda s: entered(s.client.attach_process(s.process.process_id)),
    "run": lambda s: s.client.run("sleep@0.1.0", a=1),
    "run_process": lambda s: s.client.run_process("echo@0.1.0", 1),
    "run_processes": lambda s: s.client.run_processes("echo@0.1.0", [1, 2, 3]),
    "signal_process": lambda s: s.client.signal_process(s.process.process_id, "x"),
    "terminate_process": lambda s: s.client.terminate_process(s.process.process_id),
    "first_completed": lambda s: s.client.first_completed("echo@0.1.0", range(4), limit=3),
    "map_processes, awaited": lambda s: _awaited(s.client.map_processes("echo@0.1.0", range(12), limit=4)),
    "map_processes, entered": lambda s: drained(s.client.map_processes("echo@0.1.0", range(12), limit=4)),
    "map_processes, ordered": lambda s: drained(
        s.client.map_processes("echo@0.1.0", range(12), limit=4, ordered=True)
    ),
    "map_processes, failing": lambda s: drained(
        s.client.map_processes("fail@0.1.0", range(12), limit=4, on_error="collect")
    ),
}
PROCESS: Final[dict[str, Operation]] = {
    "recv": lambda s: s.process.recv(),
    "iteration": lambda s: read_all(s.process),
    "wait": lambda s: waited(s.process),
    "result": lambda s: result_of(s.process),
    "collect": lambda s: collected(s.process),
    "signal": lambda s: s.process.signal("x"),
    "transfer_file": lambda s: s.process.transfer_file(WASM),
    "transfer_file, from a path": lambda s: s.process.transfer_file(s.folder / "p.wasm"),
    "terminate": lambda s: s.process.terminate(),
    "aclose": lambda s: closed(s.process),
}
OPERATIONS: Final = {**CLIENT, **{f"Process.{name}": operation for name, operation in PROCESS.items()}}

AT_ONCE: Final = ("signal_process", "Process.signal", "Process.recv")
"""What may have nothing to wait for."""

ELSEWHERE: Final = {
    "auth_by_token": "0.4 only: test_a_login_with_a_token",
    "launch_daemon": "0.4 only, and leaves a daemon on purpose: test_a_daemon",
    "register_mcp_server": "starts a program: tests/api/test_mcp.py",
    "resolve_version": "asks a registry over HTTP, not the engine",
    "pick": "internal",
}
"""Coroutines of the client that the table does not hold."""


async def _awaited(call: Awaitable[Any]) -> Any:
    return await call


def test_the_table_is_complete() -> None:
    """Each public coroutine and call of client and process is in it, or somewhere else on purpose."""

    def waiting(owner: type) -> set[str]:
        names = {
            name for cls in owner.__mro__ if cls.__module__.startswith("pie_anyio") for name in vars(cls)
        }
        return {
            name
            for name in names
            if not name.startswith("_")
            and callable(member := getattr(owner, name))
            and ("Cancellation:" in (member.__doc__ or ""))
        }

    listed = {name.split(",")[0] for name in CLIENT}
    assert waiting(PieClient) == listed | set(ELSEWHERE) & waiting(PieClient)
    assert waiting(Process) == {name.split(",")[0] for name in PROCESS} - {"iteration"}


def live_tasks() -> list[Any]:
    """Give the tasks that there are, but for the programs that run on the engine."""
    return [task for task in _live_tasks() if "SimulatedProcess" not in _task_name(task)]


def borrowed_threads() -> float:
    """Tell how many tokens of the loop's own limiter are lent."""
    return to_thread.current_default_thread_limiter().borrowed_tokens


async def play(point: CancelPoint, profile: Any, operation: Operation, folder: Path) -> None:
    """Cancel one operation at one wait, and look at everything."""
    tasks = len(live_tasks())
    async with SimulatedEngine(profile, port=None) as engine:
        add_programs(engine)
        proxy = CutProxy(engine.connectable)
        async with PieClient(proxy, username="alice", keepalive=None) as client:
            process = await client.launch_process("talk@0.1.0", "value")
            process.detach()
            inside = len(live_tasks())
            await point.run(lambda: operation(Stage(engine, client, process, folder)))
            assert point.error is None, point.error
            held = handles(process, point.value)
            check_now(engine, client, held)
            await client.ping()
            while borrowed_threads():  # a hash that nobody waits for any more is computed to its end
                await anyio.lowlevel.checkpoint()
            assert not client.session.transfers
            # What was told to end is confirmed to have, sooner or later; then nothing waits to be sent.
            await engine.wait_until(lambda: set(engine.live_processes) <= held)
            await client.ping()
            assert client.receipt.unconfirmed == ()
            assert not client.session.link.protocol.outbound_bytes
            assert len(live_tasks()) == inside
            result = await client.run_process("echo@0.1.0", "works")
            assert result.value == "works"
        check_books(client, engine)
        await engine.wait_connections(0)
        assert [link.over for link in proxy.links] == [True]
    assert len(live_tasks()) == tasks


def handles(process: Process, value: Any) -> set[str]:
    """Give the ids of those processes that somebody has in hand."""
    values = value if isinstance(value, list) else [value]
    return {process.process_id, *(item.process_id for item in values if isinstance(item, Process))}


def check_now(engine: SimulatedEngine, client: PieClient, held: set[str]) -> None:
    """At once, without a single turn of the loop: what lives is held by a handle, or named by the receipt."""
    registry, unconfirmed = client.session.registry, client.receipt.unconfirmed
    nameless = set(engine.live_processes) - held - set(unconfirmed)
    assert len(nameless) <= sum(name == "?" for name in unconfirmed)
    assert set(registry.by_id) <= held | set(unconfirmed)


def check_books(client: PieClient, engine: SimulatedEngine) -> None:
    """When the client is left, the receipt adds up, and what lives on is named by it."""
    receipt = client.receipt
    ended = receipt.returned + receipt.failed + receipt.terminated + receipt.detached + receipt.lost
    assert receipt.started == ended + len(receipt.unconfirmed)
    assert receipt.running == 0
    assert receipt.lost == 0 or engine.profile.v05
    assert receipt.started == engine.started_total
    if engine.profile.v05:
        assert not engine.live_processes
    else:
        assert len(engine.live_processes) <= receipt.detached + len(receipt.unconfirmed)


@pytest.mark.parametrize("profile", ["v04", "v05"])
@pytest.mark.parametrize("name", sorted(OPERATIONS))
@pytest.mark.parametrize(("anyio_backend", "how"), HOWS)
async def test_at_each_wait(profile: Any, how: How, name: str, folder: Path) -> None:
    """Whenever it comes: what runs is known, the connection works, and no task, stream or token is left."""

    async def scenario(point: CancelPoint) -> None:
        await play(point, profile, OPERATIONS[name], folder)

    waits = await at_each_wait(scenario, how)
    assert waits >= 1 or name in AT_ONCE


@pytest.mark.parametrize(("anyio_backend", "how"), HOWS)
async def test_a_login_with_a_token(how: How) -> None:
    """It can be repeated."""

    async def scenario(point: CancelPoint) -> None:
        async with SimulatedEngine("v04", port=None) as engine, PieClient(engine.connectable) as client:
            await point.run(lambda: client.auth_by_token(engine.token))
            await client.auth_by_token(engine.token)
            await client.ping()

    assert await at_each_wait(scenario, how) >= 1


@pytest.mark.parametrize(("anyio_backend", "how"), HOWS)
async def test_a_daemon(how: How) -> None:
    """It may have been started or not; the connection works."""

    async def scenario(point: CancelPoint) -> None:
        async with SimulatedEngine("v04", port=None) as engine, PieClient(engine.connectable) as client:
            add_programs(engine)
            await point.run(lambda: client.launch_daemon("echo@0.1.0", 8081))
            await client.ping()

    assert await at_each_wait(scenario, how) >= 1


@pytest.mark.parametrize("profile", ["v04", "v05"])
@pytest.mark.parametrize(("anyio_backend", "how"), HOWS)
async def test_a_whole_client(profile: Any, how: How) -> None:
    """From connecting to closing: no connection, no task, no run."""

    async def scenario(point: CancelPoint) -> None:
        tasks = len(live_tasks())
        async with SimulatedEngine(profile, port=None) as engine:
            add_programs(engine)
            proxy = CutProxy(engine.connectable)
            client = PieClient(proxy, username="alice")

            async def use() -> None:
                async with client, client.launch_process("sleep@0.1.0"):
                    await client.map_processes("echo@0.1.0", range(3), limit=2)

            await point.run(use)
            await engine.wait_connections(0)
            assert all(link.over for link in proxy.links)
            # A native cancellation may cut the closing short: then an engine of 0.4 lets the run go on, on record.
            assert len(engine.live_processes) <= len(client.receipt.unconfirmed) + client.receipt.lost
            assert not engine.live_processes or how == "native"
            assert client.receipt.running == 0
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        assert len(live_tasks()) == tasks

    assert await at_each_wait(scenario, how) >= 5
