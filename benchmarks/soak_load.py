# SPDX-License-Identifier: Apache-2.0
"""The load of a soak: everything that a client does, all at once, for a while, on one loop.

Run by ``soak.py`` in a process of its own; prints one JSON object. Each kind of work has a worker, which begins anew as
soon as it is done. Those that a cut may hit connect through a proxy in this process, which cuts at random bytes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import anyio
import trio
from anyio import create_task_group, move_on_after

from pie_anyio import ConnectError, ConnectionLost, PieClient, Reconnect
from pie_anyio.testing import CutProxy, LinkScript, Passage

FILE = bytes(range(256)) * 400
AGAIN = Reconnect(attempts=None, initial=0.01, maximum=0.2)
RANDOM = Random(20)
Worker = Callable[["Soak"], Awaitable[None]]


class Soak:
    """What the workers share: where the engine is, what was done, and whether it is time to stop."""

    def __init__(self, url: str, seconds: float) -> None:
        self.url = url
        self.until = time.monotonic() + seconds
        self.done: Counter[str] = Counter()
        self.samples: list[dict[str, float]] = []

    @property
    def over(self) -> bool:
        """Whether no more work is to be begun."""
        return time.monotonic() >= self.until

    def unstable(self) -> CutProxy:
        """Give a way to the engine on which each connection is cut, sooner or later."""

        def script(_number: int) -> LinkScript:
            cut = Passage(cut_after=RANDOM.randrange(300, 40_000), reset=RANDOM.random() < 0.5)
            return LinkScript(to_client=cut) if RANDOM.random() < 0.5 else LinkScript(to_engine=cut)

        return CutProxy(self.url, script)


# ------------------------------------------------------------------------------------------------------- the workers


async def maps(soak: Soak) -> None:
    """Map over one connection that stays."""
    async with PieClient(soak.url) as client:
        while not soak.over:
            values = await client.map_processes("echo@0.1.0", range(100), limit=16)
            assert values == list(range(100))
            soak.done["items of maps"] += len(values)


async def talks(soak: Soak) -> None:
    """Launch, signal, read everything."""
    async with PieClient(soak.url) as client:
        while not soak.over:
            async with client.launch_process("talk@0.1.0") as process:
                await process.recv()
                for word in ("one", "two", "quit"):
                    await process.signal(word)
                assert [event.value async for event in process][:2] == ["ONE", "TWO"]
            soak.done["conversations"] += 1


async def files(soak: Soak) -> None:
    """Send a file there and back."""
    async with PieClient(soak.url) as client:
        while not soak.over:
            async with client.launch_process("file-echo@0.1.0") as process:
                await process.recv()
                await process.transfer_file(FILE)
                assert (await process.recv()).value == FILE
            soak.done["files both ways"] += 1


async def cancels(soak: Soak) -> None:
    """Cancel launches, runs and maps at some moment."""
    async with PieClient(soak.url) as client:
        while not soak.over:
            with move_on_after(RANDOM.random() * 0.02):
                async with client.launch_process("sleeper@0.1.0"):
                    await anyio.sleep_forever()
            with move_on_after(RANDOM.random() * 0.02):
                await client.map_processes("sleeper@0.1.0", range(20), limit=8)
            soak.done["cancelled blocks"] += 2
        assert client.receipt.clean, client.receipt


async def connections(soak: Soak) -> None:
    """Connect, do little, and leave."""
    while not soak.over:
        async with PieClient(soak.url, username="soak") as client:
            await client.run_process("echo@0.1.0", 1)
        soak.done["connections"] += 1


async def cuts(soak: Soak) -> None:
    """Work until the connection is cut, without coming back."""
    proxy = soak.unstable()
    while not soak.over:
        try:
            async with PieClient(proxy) as client:
                while not soak.over:
                    await client.run_process("upper@0.1.0", {"text": "a b c"})
        except (ConnectionLost, ConnectError):
            soak.done["lost connections"] += 1
        del proxy.links[:]  # what happened to each connection is kept for tests, which end


async def comebacks(soak: Soak) -> None:
    """Map over connections that are cut, and come back each time."""
    proxy = soak.unstable()
    async with PieClient(proxy, reconnect=AGAIN) as client:
        while not soak.over:
            before = len(proxy.links)
            call = client.map_processes("echo@0.1.0", range(50), limit=8, on_error="collect", retry_lost=100)
            outcomes = await call
            assert [outcome.value for outcome in outcomes] == list(range(50))
            soak.done["items of maps over cuts"] += len(outcomes)
            soak.done["reconnections"] += len(proxy.links) - before


WORKERS: tuple[Worker, ...] = (maps, talks, files, cancels, connections, cuts, comebacks)


# ------------------------------------------------------------------------------------------------------- the samples


def count_tasks() -> int:
    """Count the tasks of the loop that is running."""
    if trio.lowlevel.in_trio_task():
        return int(trio.lowlevel.current_statistics().tasks_living)
    return len(asyncio.all_tasks())


def measure() -> dict[str, float]:
    """Take one sample: memory in KiB, open files, tasks."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    return {
        "rss_kib": pages * os.sysconf("SC_PAGESIZE") / 1024,
        "fds": len(os.listdir("/proc/self/fd")),
        "tasks": count_tasks(),
    }


async def sample(soak: Soak, every: float) -> None:
    """Take samples until it is over."""
    begin = time.monotonic()
    while not soak.over:
        await anyio.sleep(every)
        soak.samples.append({"at": round(time.monotonic() - begin, 2), **measure()})


async def main(url: str, seconds: float, every: float) -> None:
    """Run all workers for so long, and say what it was like before, meanwhile and afterwards."""
    soak = Soak(url, seconds)
    async with PieClient(url) as client:  # what is made once is made before the first look
        await client.run_process("echo@0.1.0", 1)
    gc.collect()
    before = measure()
    async with create_task_group() as tasks:
        tasks.start_soon(sample, soak, every)
        for worker in WORKERS:
            tasks.start_soon(worker, soak)
    gc.collect()
    after = measure()
    async with PieClient(url) as client:
        with move_on_after(10):  # runs of connections that were cut at the very end
            while left := await client.list_processes():  # noqa: ASYNC110 - another process is looked at
                await anyio.sleep(0.1)
    result: dict[str, Any] = {"before": before, "after": after, "left": len(left), "done": dict(soak.done)}
    json.dump({**result, "samples": soak.samples}, sys.stdout)


if __name__ == "__main__":
    logging.disable(logging.ERROR)  # each cut is worth a warning to anybody else
    _, backend, where, how_long, often = sys.argv
    anyio.run(main, where, float(how_long), float(often), backend=backend)
