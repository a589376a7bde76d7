# SPDX-License-Identifier: Apache-2.0
"""What a map says about runs that did not confirm their end: once, and not once for each."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest

from pie_anyio import PieClient
from pie_anyio.testing import SimulatedEngine, virtual_backend


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_backend(request.param)


@pytest.mark.parametrize(
    ("count", "more"), [(1, ""), (2, ""), (5, ""), (6, " and 1 more"), (50, " and 45 more")]
)
async def test_one_warning_for_a_map(count: int, more: str, caplog: pytest.LogCaptureFixture) -> None:
    """With their number, and the ids of the first few."""
    async with SimulatedEngine("v05", port=None) as engine:

        @engine.inferlet("sleep@0.1.0")
        async def sleep(session: Any, input: Any) -> None:
            await anyio.sleep_forever()

        with caplog.at_level(logging.WARNING, "pie_anyio"):
            async with PieClient(engine.connectable, keepalive=None) as client:
                async with client.map_processes("sleep@0.1.0", range(count), limit=count):
                    with anyio.fail_after(5):
                        await engine.wait_until(lambda: len(engine.live_processes) == count)
                    await client.ping()
                    engine.faults.half_open = True
        said = [record.getMessage() for record in caplog.records if "did not confirm" in record.getMessage()]
        assert len(said) == 1
        ids = client.receipt.unconfirmed
        assert len(ids) == count
        assert sum(process_id in said[0] for process_id in ids) == min(count, 5)
        if count == 1:
            assert said[0].startswith("process ")
        else:
            assert said[0].startswith(f"{count} processes were told to end")
            assert f"{more}; the receipt" in said[0]
