# SPDX-License-Identifier: Apache-2.0
"""An engine of 0.5 that has no capacity for anything: what that does to a client, and what still works."""

from __future__ import annotations

import logging

import anyio
import pytest
from tests.api.conftest import add_programs

from pie_anyio import ConnectionClosed, ConnectionLost, EngineBusy, PieClient
from pie_anyio.testing import SimulatedEngine


async def test_the_first_request(anyio_backend: object) -> None:
    """Is refused for what it is and not for want of credentials; then the connection is gone."""
    async with SimulatedEngine("v05", port=None) as engine:
        engine.faults.saturated = True
        async with PieClient(engine.connectable) as client:
            with anyio.fail_after(5):
                with pytest.raises(EngineBusy, match="try again later"):
                    await client.ping()
                with pytest.raises(ConnectionLost) as caught:
                    while True:
                        await client.ping()
        assert not isinstance(caught.value, ConnectionClosed)
        with pytest.raises(EngineBusy):
            async with PieClient(engine.connectable, username="alice"):
                pytest.fail("it logged in")


async def test_later_requests(caplog: pytest.LogCaptureFixture) -> None:
    """Each is refused as itself, a signal by a word in the log; processes can be listed and ended."""
    async with SimulatedEngine("v05", port=None) as engine:
        add_programs(engine)
        async with PieClient(engine.connectable) as client:
            with anyio.fail_after(5):
                async with client.launch_process("talk@0.1.0") as process:
                    engine.faults.saturated = True
                    await client.ping()  # a refusal is a sign of life
                    with pytest.raises(EngineBusy):
                        await client.launch_process("talk@0.1.0")
                    with pytest.raises(EngineBusy):
                        await client.check_program("talk@0.1.0")
                    with caplog.at_level(logging.WARNING, "pie_anyio"):
                        await process.signal("hello")
                        rows = await client.list_processes()
                        while "admission rejected" not in caplog.text:
                            rows = await client.list_processes()
                    assert [row["id"] for row in rows] == [process.process_id]
                assert client.receipt.terminated == 1
                assert client.receipt.clean
                assert not engine.live_processes


async def test_a_map_waits_it_out() -> None:
    """As it does a refused launch."""
    async with SimulatedEngine("v05", port=None) as engine:
        add_programs(engine)
        async with PieClient(engine.connectable) as client, anyio.create_task_group() as tasks:
            await client.ping()
            engine.faults.saturated = True

            async def relieve() -> None:
                await engine.wait_until(lambda: engine.received_counts["launch_process"] >= 2)
                engine.faults.saturated = False

            tasks.start_soon(relieve)
            with anyio.fail_after(10):
                assert await client.map_processes("echo@0.1.0", [1, 2, 3], limit=2) == [1, 2, 3]
