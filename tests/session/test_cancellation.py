# SPDX-License-Identifier: Apache-2.0
"""Cancelled at each wait: launches, requests, uploads and reads lose nothing, and can be repeated.

That nothing is left behind, whatever was cancelled, is tested for all operations alike in tests/proof/test_cancel.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.api.conftest import add_programs
from tests.cancelling import HOWS, CancelPoint, How, at_each_wait

from pie_anyio import Event, PieClient
from pie_anyio.testing import SimulatedEngine

pytestmark = pytest.mark.parametrize(("anyio_backend", "how"), HOWS)

PROFILES = pytest.mark.parametrize("profile", ["v04", "v05"])
MANIFEST = '[package]\nname = "up"\nversion = "0.1.0"\n'


def engine_of(profile: Any) -> SimulatedEngine:
    engine = SimulatedEngine(profile, port=None)
    add_programs(engine)
    return engine


@PROFILES
async def test_a_request(profile: Any, how: How) -> None:
    """The next one works, and gets its own answer."""

    async def scenario(point: CancelPoint) -> None:
        async with engine_of(profile) as engine, PieClient(engine.connectable) as client:
            await point.run(client.list_processes)
            await client.ping()
            assert await client.check_program("echo@0.1.0")
            assert not await client.check_program("none@0.1.0")

    assert await at_each_wait(scenario, how) >= 2


@PROFILES
async def test_a_launch_that_is_entered(profile: Any, how: How) -> None:
    """Whether before, in, or at the end of the block: the process is over when the client's block is."""

    async def scenario(point: CancelPoint) -> None:
        async with engine_of(profile) as engine:
            async with PieClient(engine.connectable) as client:

                async def block() -> None:
                    async with client.launch_process("talk@0.1.0") as process:
                        assert (await process.recv()).kind is Event.Stdout

                await point.run(block)
            await engine.wait_idle()
            assert client.receipt.clean
            assert client.receipt.detached == 0
            assert client.receipt.started == engine.started_total

    assert await at_each_wait(scenario, how) >= 3


@PROFILES
async def test_reading_loses_no_event(profile: Any, how: How) -> None:
    """Cut anywhere, the next reader gets exactly what the first one did not."""

    async def scenario(point: CancelPoint) -> None:
        async with engine_of(profile) as engine, PieClient(engine.connectable) as client:

            @engine.inferlet("count@0.1.0")
            async def count(session: Any, input: Any) -> str:
                for number in range(70):
                    await session.send(str(number))
                return "end"

            process = await client.launch_process("count@0.1.0")
            got: list[object] = []

            async def read() -> None:
                async for event in process:
                    got.append(event.value)  # noqa: PERF401 - one by one, so that none is lost

            await point.run(read)
            await read()
            assert got == [*map(str, range(70)), "end"]

    assert await at_each_wait(scenario, how) >= 2


@PROFILES
async def test_waiting_for_a_result(profile: Any, how: How) -> None:
    """Has no effect on the process; ask again."""

    async def scenario(point: CancelPoint) -> None:
        async with engine_of(profile) as engine, PieClient(engine.connectable) as client:
            process = await client.launch_process("talk@0.1.0", 7)
            await process.signal("quit")
            await point.run(process.result)
            assert await process.result() == 7

    assert await at_each_wait(scenario, how) >= 1


@PROFILES
async def test_an_attach(profile: Any, how: How) -> None:
    """The process is not touched, and can be attached to afterwards."""

    async def scenario(point: CancelPoint) -> None:
        async with engine_of(profile) as engine, PieClient(engine.connectable) as owner:
            process = await owner.launch_process("talk@0.1.0", "alive")
            simulated = engine.find_process(process.process_id)
            assert simulated is not None
            simulated.attachment = None
            for session in engine.sessions:
                session.attached.clear()
            async with PieClient(engine.connectable) as client:

                async def attach() -> Any:
                    return await client.attach_process(process.process_id)

                await point.run(attach)
                await client.ping()
                assert process.process_id in engine.live_processes
                again = await client.attach_process(process.process_id)
                await again.signal("quit")
                assert await again.result() == "alive"
            assert client.receipt.terminated == 0

    assert await at_each_wait(scenario, how) >= 2


@PROFILES
async def test_attaching_to_what_one_has(profile: Any, how: How) -> None:
    """Giving up the second handle does not end the first."""

    async def scenario(point: CancelPoint) -> None:
        async with engine_of(profile) as engine, PieClient(engine.connectable) as client:
            process = await client.launch_process("talk@0.1.0", "mine")
            process.detach()

            async def attach() -> Any:
                return await client.attach_process(process.process_id)

            await point.run(attach)
            await client.ping()
            await process.signal("quit")
            assert await process.result() == "mine"

    assert await at_each_wait(scenario, how) >= 1


@PROFILES
async def test_an_upload(profile: Any, how: How, tmp_path: Path) -> None:
    """It can be repeated at once, and then counts; no file stays open, no lock is held."""
    path, manifest = tmp_path / "p.wasm", tmp_path / "Pie.toml"
    path.write_bytes(b"\0asm" + bytes(2_000_000))  # more than fits into the window for chunks
    manifest.write_text(MANIFEST, encoding="utf-8")

    async def scenario(point: CancelPoint) -> None:
        async with engine_of(profile) as engine, PieClient(engine.connectable) as client:
            await point.run(lambda: client.install_program(path, manifest))
            await client.install_program(path, manifest, force_overwrite=True)
            assert await client.check_program("up@0.1.0")
            assert not client.session.transfers
            await client.ping()
            assert not any(session.assembler._open for session in engine.sessions)

    assert await at_each_wait(scenario, how) >= 5


@PROFILES
async def test_a_file(profile: Any, how: How) -> None:
    """Sent in part, it is made invalid, so that the next one arrives whole."""
    content = bytes(range(256)) * 8000  # more than fits into the window for chunks

    async def scenario(point: CancelPoint) -> None:
        async with engine_of(profile) as engine, PieClient(engine.connectable) as client:
            process = await client.launch_process("take@0.1.0")
            assert await process.recv() == (Event.Message, "ready")
            await point.run(lambda: process.transfer_file(content))
            if point.cancelled:
                await process.transfer_file(content)
            assert await process.result() == len(content)
            assert not client.session.transfers

    assert await at_each_wait(scenario, how) >= 2


@PROFILES
async def test_a_login(profile: Any, how: How) -> None:
    """It can be repeated, and others can log in."""

    async def scenario(point: CancelPoint) -> None:
        async with engine_of(profile) as engine, PieClient(engine.connectable) as client:
            await point.run(lambda: client.authenticate("alice"))
            await client.authenticate("alice")
            await client.ping()

    assert await at_each_wait(scenario, how) >= 1


@PROFILES
async def test_waiting_for_ones_turn(profile: Any, how: How) -> None:
    """A transfer that gives up behind an equal one leaves the other alone."""
    content = b"\0asm" + bytes(600_000)

    async def scenario(point: CancelPoint) -> None:
        async with engine_of(profile) as engine, PieClient(engine.connectable) as client:
            await client.ping()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.install_program_bytes, content, MANIFEST)
                await anyio.wait_all_tasks_blocked()
                await point.run(lambda: client.install_program_bytes(content, MANIFEST, True))
            assert await client.check_program("up@0.1.0")
            assert not client.session.transfers

    assert await at_each_wait(scenario, how) >= 1
