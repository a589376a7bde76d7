# SPDX-License-Identifier: Apache-2.0
"""What a map adds to each run, as counts that no machine changes; a session stands in that does little."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import pytest

from pie_anyio import MapCall, map_processes
from pie_anyio._fleet import Ending, EndKind, Run
from pie_anyio._flow.slots import ReplySlot
from pie_anyio._types import CorrelationId

PROGRAM = "any@0.1.0"
MODULES = (
    "_map.py",
    "_map_policy.py",
    "_map_queue.py",
    "_map_runner.py",
    "_map_source.py",
    "_fleet.py",
    "limits.py",
)
RETURNED = Ending(EndKind.RETURNED, "1")


class Stub:
    """A launcher and its session, whose runs end when the test says so."""

    takes_bare_names = False

    def __init__(self) -> None:
        self.live: list[Run] = []
        self.starts: list[int] = []

    @property
    def runs(self) -> Stub:
        return self

    def pick_now(self) -> Stub:
        return self

    def put_back(self, session: Stub) -> None:
        pass

    def start(self, request: Any, *, quiet: bool) -> Run:
        run = Run(request.inferlet, CorrelationId(1), ReplySlot(), ReplySlot(), process_id="x")
        self.live.append(run)
        return run

    def end_all(self) -> None:
        """End what is live, all in one step."""
        live, self.live = self.live, []
        for run in live:
            run.finish(RETURNED)


async def play(stub: Stub, call: MapCall, limit: int) -> None:
    """Have all runs end, wave after wave, and read every outcome."""
    async with call as outcomes:
        while True:
            await anyio.wait_all_tasks_blocked()
            if not stub.live:
                break
            assert len(stub.live) == limit
            stub.end_all()
            for _ in range(limit):
                await anext(outcomes)


@pytest.mark.parametrize("ordered", [False, True])
async def test_calls_for_each_input(*, ordered: bool) -> None:
    """Measured: 21 for an input in a wave of 100, no coroutine but that of ``__anext__`` among them."""
    count, stub = 2000, Stub()
    launcher: Any = stub
    call = map_processes(launcher, PROGRAM, range(count), limit=100, ordered=ordered)
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.name in MODULES and path.parent.name in ("pie_anyio", "_flow"):
            calls[frame.f_code.co_qualname] += 1

    sys.setprofile(note)
    try:
        await play(stub, call, 100)
    finally:
        sys.setprofile(None)
    assert call.receipt.returned == count
    assert calls.total() / count <= 23, calls.most_common(40)


async def test_objects_for_each_input() -> None:
    """While it is live 1 beside the run's own 3: the input with what is known of it.

    Of an outcome that is unread there are 2 left, itself and its timings. Each object of a run that the garbage
    collector has to look at costs about as much again as making it.
    """
    count, stub = 1000, Stub()
    launcher: Any = stub
    before = objects()
    async with map_processes(launcher, PROGRAM, range(count), limit=count) as outcomes:
        await anyio.wait_all_tasks_blocked()
        assert len(stub.live) == count
        assert (objects() - before) / count < 4.2
        stub.end_all()
        await anyio.wait_all_tasks_blocked()
        assert (objects() - before) / count < 2.2
        assert sum([1 async for _ in outcomes]) == count


def objects() -> int:
    """Count what the garbage collector knows."""
    gc.collect()
    return len(gc.get_objects())
