# SPDX-License-Identifier: Apache-2.0
"""Virtual time: waiting is free, ordered, and the same on both loops."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import anyio
import anyio.to_thread
import pytest

from pie_anyio.testing.clock import VirtualTimeLoop, virtual_backend

DAY = 86_400.0


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return virtual_backend(request.param)


async def test_the_clock_starts_at_zero() -> None:
    """Times in a test are readable numbers."""
    assert anyio.current_time() == 0


async def test_sleeping_a_month_takes_no_real_time() -> None:
    """An idle loop jumps to its next deadline, also over more than the longest single wait of a loop."""
    started = time.monotonic()
    await anyio.sleep(30 * DAY)
    assert anyio.current_time() == pytest.approx(30 * DAY)
    assert time.monotonic() - started < 5


async def test_the_clock_stands_still_while_tasks_run() -> None:
    """Work between waits takes no virtual time at all."""
    for _ in range(100):
        await anyio.lowlevel.checkpoint()
    assert anyio.current_time() == 0


async def test_deadlines_fire_in_order() -> None:
    """Tasks that sleep wake in the order of their deadlines, each at its own time."""
    woken: list[tuple[float, float]] = []

    async def sleeper(seconds: float) -> None:
        await anyio.sleep(seconds)
        woken.append((seconds, anyio.current_time()))

    async with anyio.create_task_group() as task_group:
        for seconds in (3.0, 1.0, 2.0, 0.5):
            task_group.start_soon(sleeper, seconds)
    assert [seconds for seconds, _ in woken] == [0.5, 1.0, 2.0, 3.0]
    for seconds, at in woken:
        assert at == pytest.approx(seconds)


async def test_a_timeout_fires_at_its_time() -> None:
    """`move_on_after` follows the virtual clock."""
    with anyio.move_on_after(7) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert anyio.current_time() == pytest.approx(7)


async def test_the_clock_does_not_jump_while_a_task_is_ready() -> None:
    """A busy task holds the clock: the jump waits until the last one is blocked."""
    turns = 0

    async def busy() -> None:
        nonlocal turns
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(busy)
        await anyio.sleep(0.001)
        assert turns == 50


@pytest.mark.parametrize("name", ["asyncio", "trio"])
def test_io_grace_waits_for_a_thread(name: str) -> None:
    """With a grace, a timeout around a short thread does not fire, however large the jump would have been."""

    async def main() -> None:
        with anyio.fail_after(1):
            await anyio.to_thread.run_sync(time.sleep, 0.01)
        assert anyio.current_time() == 0

    backend, options = virtual_backend(name, io_grace=2.0)
    anyio.run(main, backend=backend, backend_options=options)


@pytest.mark.parametrize("name", ["asyncio", "trio"])
def test_no_grace_means_outside_work_is_not_waited_for(name: str) -> None:
    """Without a grace the clock jumps over a thread that is still running, as documented."""
    release = threading.Event()

    async def main() -> None:
        with anyio.move_on_after(1) as scope:
            await anyio.to_thread.run_sync(release.wait, 10, abandon_on_cancel=True)
        release.set()
        assert scope.cancelled_caught

    backend, options = virtual_backend(name)
    anyio.run(main, backend=backend, backend_options=options)


async def test_ready_sockets_come_before_a_jump() -> None:
    """Data that has already arrived is read before any timer moves the clock."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        theirs.send(b"x")
        with anyio.fail_after(1):
            await anyio.wait_readable(ours)
        assert ours.recv(1) == b"x"
        assert anyio.current_time() == 0


async def test_a_loop_without_timers_waits_for_real_io() -> None:
    """With nothing to jump to, the loop waits for I/O as usual."""

    def knock() -> None:
        time.sleep(0.01)
        theirs.send(b"x")

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(anyio.to_thread.run_sync, knock)
            await anyio.wait_readable(ours)
        assert anyio.current_time() == 0


def test_another_loop_is_refused() -> None:
    """uvloop has no replaceable clock, and the message says what there is."""
    with pytest.raises(ValueError, match=r"'asyncio' and 'trio', not for 'uvloop'"):
        virtual_backend("uvloop")


def test_the_asyncio_loop_can_be_used_alone() -> None:
    """The loop is an ordinary asyncio loop: readers can be added, changed and removed."""
    loop = VirtualTimeLoop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        seen: list[bytes] = []

        def read() -> None:
            seen.append(ours.recv(1))
            loop.stop()

        loop.add_reader(ours, read)
        loop.add_writer(ours, loop.remove_writer, ours)
        theirs.send(b"y")
        loop.run_forever()
        loop.remove_reader(ours)
    loop.close()
    assert seen == [b"y"]


def test_closing_the_loop_waits_for_its_threads() -> None:
    """Also where that takes longer, in virtual time, than the 300 seconds that a runner gives them."""
    release = threading.Event()

    async def use_a_thread() -> None:
        loop = asyncio.get_running_loop()
        waiting.append(loop.run_in_executor(None, release.wait))
        loop.call_later(1000, release.set)

    waiting: list[asyncio.Future[bool]] = []
    try:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(use_a_thread())
        assert waiting[0].done()
    finally:
        release.set()
