# SPDX-License-Identifier: Apache-2.0
"""What things cost, in counts that do not depend on the machine: turns of the loop, reads, writes, tasks, objects.

Times vary too much to be tested. These do not, so whoever makes something dearer learns it here. The engine's side of
the connection is played by hand: each feed of bytes is one read of the client.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import pytest
import trio
from anyio.abc import ByteStream, ByteStreamConnectable
from anyio.lowlevel import checkpoint
from tests.cancelling import CancelPoint

import pie_anyio
from pie_anyio import PieClient, Process, Stdout
from pie_anyio._protocol.engine import EngineProtocol, MessageReceived
from pie_anyio._protocol.websocket import UpgradeRequested
from pie_anyio._types import Generation

PROGRAM = "bench@0.1.0"
OPEN_HOUSE = "Authenticated (Engine disabled authentication)"
PACKAGE = str(Path(pie_anyio.__file__).parent)
ENGINE = inspect.getfile(EngineProtocol)
NEVER = 10**9  # the number of a wait that is never reached: nothing is cancelled, the waits are counted


class Line(ByteStream, ByteStreamConnectable):
    """The client's stream, and the engine at its other end, which does what the test says and nothing else."""

    def __init__(self) -> None:
        self.engine = EngineProtocol(Generation.V04)
        self.reads = 0
        self.writes = 0
        self.launched: list[int] = []
        """Correlation ids of launches that were not answered yet."""
        self.live: list[str] = []
        self.terminated = 0
        self._count = 0
        self._inbox: deque[bytes] = deque()
        self._arrived = anyio.Event()

    async def connect(self) -> ByteStream:
        return self

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await checkpoint()
        while not self._inbox:
            self._arrived = anyio.Event()
            await self._arrived.wait()
        self.reads += 1
        return self._inbox.popleft()

    async def send(self, item: bytes) -> None:
        await checkpoint()
        self.writes += 1
        self.engine.receive_data(item)
        for event in self.engine.events():
            if isinstance(event, MessageReceived):
                self._take(event.request.type, event)
            elif isinstance(event, UpgradeRequested):
                self.engine.accept(authenticated=True)
        self.flush()

    async def send_eof(self) -> None:
        await checkpoint()

    async def aclose(self) -> None:
        await checkpoint()

    def _take(self, kind: str, event: MessageReceived) -> None:
        assert event.corr_id is not None
        if kind == "launch_process":
            self.launched.append(event.corr_id)
            return
        self.engine.respond(event.corr_id, True, OPEN_HOUSE)
        if kind == "terminate_process":
            self.terminated += 1
            self.say("error", "Signal", [self.live.pop()])

    # --- what the engine does, all of it in one read of the client ---------------------------------------------------

    def flush(self) -> None:
        """Have the client read everything at once that was said so far."""
        parts: list[bytes] = []
        while self.engine.wants_write:
            parts.append(self.engine.data_to_send())
        if parts:
            self._inbox.append(b"".join(parts))
            self._arrived.set()

    def start(self) -> list[str]:
        """Answer all launches; give the ids."""
        ids: list[str] = []
        for corr_id in self.launched:
            self._count += 1
            ids.append(f"{self._count:08}-0000-4000-8000-000000000000")
            self.engine.respond(corr_id, True, ids[-1])
        self.launched.clear()
        self.live += ids
        return ids

    def say(self, kind: str, value: str, ids: list[str]) -> None:
        """Send an event of each of these processes."""
        for process_id in ids:
            self.engine.send_event(process_id, kind, value)


@asynccontextmanager
async def connected() -> AsyncGenerator[tuple[Line, PieClient]]:
    """Give a client that has logged in, and its line."""
    line = Line()
    with anyio.fail_after(30):
        async with PieClient(line, username="x", keepalive=None, close_timeout=0) as client:
            await settled()
            line.reads = line.writes = 0
            yield line, client
            for process_id in line.live:
                line.say("return", "", [process_id])
            line.flush()


async def settled() -> None:
    """Wait until nothing happens any more."""
    await anyio.wait_all_tasks_blocked()


def tasks() -> int:
    """Count the tasks of the loop."""
    if trio.lowlevel.in_trio_task():
        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


def blocks() -> int:
    """Count the blocks of memory that Python's objects have."""
    gc.collect()
    return sys.getallocatedblocks()


async def waits_of(operation: Callable[[], Awaitable[Any]]) -> int:
    """Run something and count how often it gave way to the loop."""
    point = CancelPoint(NEVER)
    await point.run(operation)
    if point.error is not None:
        raise point.error
    return point.waits


# ---------------------------------------------------------------------------------------------------- turns of the loop


async def test_a_request_gives_way_once() -> None:
    """For its answer, and for nothing else."""
    async with connected() as (_, client):
        assert await waits_of(client.ping) == 1


async def test_a_run_that_is_answered_at_once_gives_way_once() -> None:
    """Its launch waits; the result is there by then."""

    async def run() -> None:
        process = await client.launch_process(PROGRAM, {})
        assert await process.result() == 7

    async def answer() -> None:
        await settled()
        line.say("return", "7", line.start())
        line.flush()

    async with connected() as (line, client), anyio.create_task_group() as group:
        group.start_soon(answer)
        assert await waits_of(run) == 1


async def test_a_result_that_is_asked_for_again_gives_way() -> None:
    """Else whoever asks for it in a loop would starve the others."""
    async with connected() as (line, client), anyio.create_task_group() as group:
        (process,) = await launch(line, client, group, 1)
        line.say("return", "7", line.live)
        line.live.clear()
        line.flush()
        await settled()
        assert await waits_of(process.result) == 0
        assert await waits_of(process.result) == 1


async def test_events_that_are_there_are_given_in_bursts() -> None:
    """64 between two turns, so 1000 of them take 15 turns: 15.6 bursts, of which the first needs none."""
    async with connected() as (line, client), anyio.create_task_group() as group:
        (process,) = await launch(line, client, group, 1)
        for _ in range(1000):
            line.say("stdout", "x", [process.process_id])
        line.flush()
        await settled()

        async def read() -> None:
            for _ in range(1000):
                assert type(await process.recv()) is Stdout

        assert await waits_of(read) <= 16


async def test_outcomes_that_are_there_are_given_in_bursts() -> None:
    """As events are: 200 of them take 4 turns (the first, and one for every 64)."""
    async with connected() as (line, client):
        async with client.map_processes(PROGRAM, range(200), limit=200) as outcomes:
            await settled()
            line.say("return", "1", line.start())
            line.flush()
            await settled()

            async def read() -> None:
                assert len([outcome async for outcome in outcomes]) == 200

            assert await waits_of(read) <= 5


async def test_one_read_wakes_each_reader_once() -> None:
    """64 processes, ten events each in one read: every reader gives way once before them and once behind them."""
    async with connected() as (line, client), anyio.create_task_group() as group:
        processes = await launch(line, client, group, 64)
        waits: list[int] = []

        async def read(process: Process) -> None:
            async def ten() -> None:
                for _ in range(10):
                    await process.recv()

            waits.append(await waits_of(ten))

        async with anyio.create_task_group() as readers:
            for process in processes:
                readers.start_soon(read, process)
            await settled()
            for _ in range(10):
                line.say("stdout", "x", [process.process_id for process in processes])
            line.flush()
        assert waits == [1] * 64
        assert line.reads == 2  # the answers to the launches, and the events


# ------------------------------------------------------------------------------------------------- reads, writes, tasks


async def test_requests_of_one_step_leave_together() -> None:
    """1000 launches of 130 bytes are two or three writes of 64 KiB."""
    async with connected() as (line, client), anyio.create_task_group() as group:
        await launch(line, client, group, 1000)
        assert line.writes <= 3, line.writes


@pytest.mark.parametrize("limit", [100, 500])
async def test_a_map_reads_and_writes_in_batches_and_has_two_tasks(limit: int) -> None:
    """What ends in one read is started again in one write, and no run has a task: two, however many are live."""
    async with connected() as (line, client):
        before = tasks()
        rounds = 0
        async with client.map_processes(PROGRAM, range(10 * limit), limit=limit) as outcomes:
            while True:
                await settled()
                if not line.launched:
                    break
                rounds += 1
                assert len(line.launched) == outcomes.live == limit
                assert tasks() - before <= 3  # one that takes inputs, one that takes ends, and the map's own
                line.say("return", "1", line.start())
                line.live.clear()
                line.flush()
                await settled()
                for _ in range(limit):
                    await anext(outcomes)
        assert rounds == 10
        assert line.reads == 10
        # Inputs are taken in bursts of 64, and the writer may have its turn in between. Measured: 25 and 88.
        assert line.writes <= rounds * (limit // 64 + 2)


async def test_cancelling_a_map_sends_all_terminates_together() -> None:
    """1000 live runs: one terminate for each, in two or three writes of 64 KiB."""
    async with connected() as (line, client):
        async with client.map_processes(PROGRAM, range(1000), limit=1000) as outcomes:
            await settled()
            line.start()
            line.flush()
            await settled()
            before = line.writes
        assert outcomes.receipt.terminated == line.terminated == 1000
        assert line.writes - before <= 3


# ---------------------------------------------------------------------------------------------------------------- calls


@contextmanager
def counted_calls() -> Generator[Counter[str]]:
    """Count the calls of the client's functions; a coroutine that goes on counts as one more."""
    calls: Counter[str] = Counter()
    engine: list[FrameType] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_code.co_filename
        if engine:
            if event == "return" and frame is engine[0]:
                engine.clear()
        elif event == "call" and name == ENGINE:
            engine.append(frame)
        elif event == "call" and name.startswith(PACKAGE):
            calls[frame.f_code.co_qualname] += 1

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)


async def test_calls_of_a_run() -> None:
    """What a launch, its answer, its end and its result take (measured: 69 on asyncio, 70 on trio)."""
    count = 200

    async def run() -> None:
        process = await client.launch_process(PROGRAM, {})
        assert await process.result() == 7

    async with connected() as (line, client), anyio.create_task_group() as group:
        with counted_calls() as calls:
            for _ in range(count):
                group.start_soon(run)
            await settled()
            line.say("return", "7", line.start())
            line.flush()
            await settled()
        assert not line.launched
        assert sum(calls.values()) <= count * 74, calls.most_common(80)


async def test_calls_of_an_event() -> None:
    """Reading it off the connection, routing it, handing it over (measured: 5.2)."""
    count = 1000

    async def read(process: Process) -> None:
        assert len([event async for event in process]) == count + 1

    async with connected() as (line, client), anyio.create_task_group() as group:
        (process,) = await launch(line, client, group, 1)
        for _ in range(count):
            line.say("stdout", "some text", line.live)
        line.say("return", "7", line.live)
        line.live.clear()
        with counted_calls() as calls:
            group.start_soon(read, process)
            line.flush()
            await settled()
        assert sum(calls.values()) <= count * 5.5, calls.most_common(80)


# -------------------------------------------------------------------------------------------------------------- objects


async def test_objects_of_live_runs_of_a_map() -> None:
    """Measured: 22 blocks for each, its item and its place in the map included (CPython 3.11)."""
    count = 1000
    async with connected() as (line, client):
        before = blocks()
        async with client.map_processes(PROGRAM, range(count), limit=count) as outcomes:
            await settled()
            line.start()
            line.flush()
            await settled()
            assert outcomes.live == count
            assert (blocks() - before) / count <= 28


async def test_objects_of_processes_and_their_events() -> None:
    """Measured: 14 blocks for each process with its handle, 2.3 for each unread event (CPython 3.11)."""
    count = 1000
    async with connected() as (line, client), anyio.create_task_group() as group:
        before = blocks()
        processes = await launch(line, client, group, count)
        assert (blocks() - before) / count <= 19
        ids = [process.process_id for process in processes]
        before = blocks()
        for _ in range(20):
            line.say("stdout", "some text", ids)
        line.flush()
        await settled()
        assert (blocks() - before) / (20 * count) <= 3


async def test_objects_of_runs_that_have_ended() -> None:
    """Nothing but the ids of the last 4096 is kept, so there is no growth from then on (measured: 0 to 3 blocks)."""
    count = 5000
    async with connected() as (line, client):
        before = 0
        for _ in range(2):
            before = blocks()
            async with client.map_processes(PROGRAM, range(count), limit=count) as outcomes:
                await settled()
                line.say("return", "1", line.start())
                line.live.clear()
                line.flush()
                assert sum([1 async for _outcome in outcomes]) == count
            del outcomes
        assert blocks() - before < 100


async def launch(line: Line, client: PieClient, group: Any, count: int) -> list[Process]:
    """Launch processes from as many tasks at once, all answered in one read."""
    processes: list[Process] = []

    async def one() -> None:
        processes.append(await client.launch_process(PROGRAM, {}))

    for _ in range(count):
        group.start_soon(one)
    await settled()
    line.start()
    line.flush()
    await settled()
    assert len(processes) == count
    return processes
