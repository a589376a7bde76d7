# SPDX-License-Identifier: Apache-2.0
"""The account: everything that was started is in exactly one of its columns."""

from __future__ import annotations

import random

import pytest

from pie_anyio import PieClient, ProgramNotFound, Receipt
from pie_anyio._flow.buffers import ByteBudget
from pie_anyio._flow.pausing import Buffers, Intake
from pie_anyio._flow.slots import ReplySlot
from pie_anyio._session.registry import Ending, EndKind, Registry, Run
from pie_anyio._types import CorrelationId


def total(receipt: Receipt) -> int:
    parts = (
        receipt.returned,
        receipt.failed,
        receipt.terminated,
        receipt.detached,
        receipt.lost,
        receipt.running,
    )
    return sum(parts) + len(receipt.unconfirmed)


def new_run() -> Run:
    return Run("p@0.1.0", CorrelationId(1), ReplySlot(), ReplySlot())


@pytest.mark.parametrize("seed", range(30))
def test_nothing_is_left_out(seed: int) -> None:
    """Whatever happens to runs, in whatever order, the columns add up."""
    chance = random.Random(seed)  # noqa: S311
    registry = Registry(Buffers(1000, ByteBudget(1000), Intake()))
    for number in range(40):
        run = new_run()
        if chance.random() < 0.3:
            run.released = True
            registry.note_unconfirmed(run)
        if chance.random() < 0.7:
            registry.start(run, f"id-{number}")
            run.detached = chance.random() < 0.2
            kinds = [EndKind.RETURNED, EndKind.FAILED, EndKind.TERMINATED, EndKind.LOST, EndKind.DETACHED]
        else:
            kinds = [EndKind.REFUSED, EndKind.WITHDRAWN, EndKind.LOST]
        if chance.random() < 0.8:
            ending = Ending(chance.choice(kinds))
            registry.end(run, ending)
            registry.end(run, Ending(EndKind.RETURNED))
            assert run.ending is ending
        receipt = registry.receipt()
        assert total(receipt) == receipt.started, receipt


async def test_a_clients_receipt(client: PieClient) -> None:
    """As it stands at any time."""
    assert client.receipt == Receipt()
    await client.run_process("echo@0.1.0", 1)
    failing = await client.launch_process("fail@0.1.0")
    await failing.wait()
    with pytest.raises(ProgramNotFound):
        await client.launch_process("none@0.1.0")
    async with client.launch_process("sleep@0.1.0"):
        assert client.receipt.running == 1
        assert not client.receipt.clean
    receipt = client.receipt
    assert (receipt.started, receipt.returned, receipt.failed, receipt.terminated) == (3, 1, 1, 1)
    assert receipt.not_started == 1
    assert receipt.clean
