# SPDX-License-Identifier: Apache-2.0
"""Everything that a user can await, begun while the connection is lost, cancelled at each wait until it is back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
from tests.api.conftest import add_programs
from tests.cancelling import HOWS, CancelPoint, How, at_each_wait
from tests.proof.test_cancel import OPERATIONS, Operation, Stage, handles, live_tasks

from pie_anyio import PieClient, ProcessLost, ProcessNotFound, Reconnect
from pie_anyio.testing import CutProxy, SimulatedEngine

POLICY: Final = Reconnect(initial=0.001, maximum=0.001, jitter=0)


async def play(point: CancelPoint, profile: Any, operation: Operation, folder: Path) -> None:
    """Lose the connection, begin, cancel, and look at everything once the connection is back."""
    tasks = len(live_tasks())
    async with SimulatedEngine(profile, port=None) as engine:
        add_programs(engine)
        proxy = CutProxy(engine.connectable)
        async with PieClient(proxy, username="alice", keepalive=None, reconnect=POLICY) as client:
            process = await client.launch_process("talk@0.1.0", "value")
            process.detach()
            await client.ping()
            lost = client.session.link.router.ended
            engine.faults.drop_connections()
            await lost.wait()
            await point.run(lambda: operation(Stage(engine, client, process, folder)))
            # On 0.5 the process went with the connection, and what waits for it is told so.
            gone = (ProcessLost, ProcessNotFound) if profile == "v05" else ()
            assert point.error is None or isinstance(point.error, gone)
            await client.ping()
            await client.session.settled()
            held = handles(process, point.value)
            await engine.wait_until(lambda: set(engine.live_processes) <= held)
            await client.ping()
            assert client.receipt.unconfirmed == ()
            assert client.connections == 2
            assert not client.session.link.protocol.outbound_bytes
            assert (await client.run_process("echo@0.1.0", "works")).value == "works"
            receipt = client.receipt
            assert receipt.started == engine.started_total
            assert receipt.lost <= (profile == "v05")
        await engine.wait_connections(0)
        assert [link.over for link in proxy.links] == [True, True]
    assert len(live_tasks()) == tasks


@pytest.mark.parametrize("profile", ["v04", "v05"])
@pytest.mark.parametrize("name", sorted(OPERATIONS))
@pytest.mark.parametrize(("anyio_backend", "how"), HOWS)
async def test_at_each_wait_without_a_connection(profile: Any, how: How, name: str, folder: Path) -> None:
    """Nothing of it is forgotten or done twice, and nothing is left of it."""

    async def scenario(point: CancelPoint) -> None:
        await play(point, profile, OPERATIONS[name], folder)

    await at_each_wait(scenario, how)
