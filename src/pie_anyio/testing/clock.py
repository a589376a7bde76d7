# SPDX-License-Identifier: Apache-2.0
"""Virtual time on both event loops: waiting costs no real time, and its order is exact.

Use it by overriding anyio's backend fixture in a test module::

    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(request):
        return virtual_backend(request.param)

The clock starts at 0, stands still while any task can run, and jumps to the next deadline when every task waits.

What "every task waits" cannot see is work outside the loop: a thread, a child process, a packet under way. With
`io_grace=0` the clock jumps without waiting for them, so a timeout around `to_thread.run_sync` or a real socket may
fire at once. Give such tests an `io_grace`: before each jump the loop then waits so many real seconds for outside
work. Both loops treat it alike on purpose (trio cannot tell whether anything is under way, so asyncio does not try
either): a test means the same on both.

`anyio.wait_all_tasks_blocked` sleeps 0.1 s at a time on asyncio while some task can run, so there it may move the
virtual clock; do not count on the exact time after it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike


def virtual_backend(name: str, *, io_grace: float = 0.0) -> tuple[str, dict[str, Any]]:
    """Make anyio backend options with a virtual clock of their own.

    Args:
        name: "asyncio" or "trio".
        io_grace: real seconds to wait for I/O and threads before each jump of the clock.

    Returns:
        What `anyio.run(..., backend=, backend_options=)` and the `anyio_backend` fixture take. Good for one run: call
        again for the next.

    Raises:
        ValueError: for another loop; uvloop keeps its own time and cannot be given another.
    """
    match name:
        case "asyncio":
            return name, {"loop_factory": partial(VirtualTimeLoop, io_grace=io_grace)}
        case "trio":
            # trio's testing module is slow to import and needed on trio only.
            from trio.testing import MockClock

            return name, {"clock": MockClock(autojump_threshold=io_grace)}
        case _:
            raise ValueError(f"virtual time exists for 'asyncio' and 'trio', not for {name!r}")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop whose clock jumps to the next timer as soon as the loop is idle.

    Args:
        io_grace: real seconds to wait for I/O before each jump.
    """

    def __init__(self, io_grace: float = 0.0) -> None:
        self._clock = _JumpingSelector(io_grace)
        super().__init__(self._clock)

    def time(self) -> float:
        """Return the virtual time in seconds; it starts at 0."""
        return self._clock.now

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for the threads of the executor to end, without a limit.

        The runner of a loop sets one of 300 seconds, which Python 3.13 counts by the loop's clock: here they would be
        over at once, with a warning, while a thread that looked up an address is about to end.
        """
        await super().shutdown_default_executor()


class _JumpingSelector(selectors.BaseSelector):
    """Poll for I/O as the loop asks, but instead of sleeping until a timer, move the clock to it."""

    def __init__(self, io_grace: float) -> None:
        self.now = 0.0
        self._io_grace = io_grace
        self._selector = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # No timeout: only I/O can wake the loop, so there is no time to jump to. Zero: callbacks are ready to run.
        if timeout is None or timeout <= 0:
            return self._selector.select(timeout)
        ready = self._selector.select(min(self._io_grace, timeout) if self._io_grace else 0)
        if not ready:
            self.now += timeout
        return ready

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._selector.register(fileobj, events, data)

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        return self._selector.unregister(fileobj)

    def modify(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._selector.modify(fileobj, events, data)

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        return self._selector.get_map()

    def close(self) -> None:
        self._selector.close()
