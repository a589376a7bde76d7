# SPDX-License-Identifier: Apache-2.0
"""Launch, leave, and come back: with this client, on both generations."""

from __future__ import annotations

import anyio

from pie_anyio import Event
from pie_anyio.keeper import stop_keeper

from .conftest import Kept


async def test_leave_and_come_back(kept: Kept) -> None:
    """A process goes on without its client, and its events go on where that client left off."""
    with anyio.fail_after(5):
        async with kept.client() as client:
            process = await client.launch_process("talk@0.1.0", {"n": 1})
            process_id = process.detach()
            assert (await process.recv()).value == "out\n"
            assert (await process.recv()).value == "err\n"
            await process.signal("one")
            assert (await process.recv()).value == "ONE"
        async with kept.client() as client:
            async with client.attach_process(process_id) as process:
                await process.signal("two")
                assert await process.recv() == (Event.Message, "TWO")
                await process.signal("quit")
                assert await process.result() == {"n": 1}
        async with kept.client() as client:
            assert await (await client.attach_process(process_id)).result() == {"n": 1}


async def test_stop(kept: Kept) -> None:
    """A keeper is stopped by a client, which is told how things were."""
    with anyio.fail_after(5):
        async with kept.client() as client:
            await client.launch_process("wait@0.1.0")
            facts = await stop_keeper(client)
            assert facts["running"] == 1
