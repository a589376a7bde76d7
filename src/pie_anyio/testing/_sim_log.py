# SPDX-License-Identifier: Apache-2.0
"""What a simulated engine tells about itself: counters, the log of requests, and waits for either."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import attrs
from anyio import Event
from anyio.lowlevel import checkpoint

from .._protocol.messages import AddProgram, Request, TransferFile
from .._types import ProcessInfo

if TYPE_CHECKING:
    from ._sim_process import SimulatedProcess
    from ._sim_session import Session


class ReceivedRequest(NamedTuple):
    """One entry of ``SimulatedEngine.received``: which connection sent what. Chunks are without their content."""

    connection: int
    corr_id: int | None
    request: Request


class EngineLog:
    """The part of a simulated engine that tests look at."""

    def __init__(self, log_size: int) -> None:
        self.sessions: list[Session] = []
        self.received: deque[ReceivedRequest] = deque(maxlen=log_size)
        """The latest requests, oldest first."""
        self.received_counts: Counter[str] = Counter()
        """How many requests of each type have arrived."""
        self.started_total: int = 0
        """Processes launched so far; those that wait for a free place included."""
        self.returned_total: int = 0
        self.failed_total: int = 0
        self.terminated_total: int = 0
        """Processes that were terminated: on request, or because their connection ended."""
        self.peak_live: int = 0
        """The largest number of processes that were alive at the same time."""
        self.refused_total: int = 0
        """Launches that were refused for want of capacity."""
        self.connections_total: int = 0
        self.files_lost: int = 0
        """Files that arrived while no program waited for them."""
        self._live: dict[str, SimulatedProcess] = {}
        self._changed: Event | None = None

    @property
    def live_processes(self) -> dict[str, ProcessInfo]:
        """The processes that are alive now, by id; those that wait for a free place included."""
        return {process.id: process.info for process in self._live.values()}

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self.sessions)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on this engine holds; it is looked at whenever anything happens here.

        Cancellation: nothing is lost.
        """
        await checkpoint()
        while not condition():
            if self._changed is None:
                self._changed = Event()
            await self._changed.wait()

    async def wait_idle(self) -> None:
        """Wait until no process is alive."""
        await self.wait_until(lambda: not self._live)

    async def wait_live(self, count: int = 1) -> None:
        """Wait until at least ``count`` processes are alive."""
        await self.wait_until(lambda: len(self._live) >= count)

    async def wait_started(self, count: int = 1) -> None:
        """Wait until ``count`` processes have been launched in all."""
        await self.wait_until(lambda: self.started_total >= count)

    async def wait_received(self, request_type: str, count: int = 1) -> None:
        """Wait until ``count`` requests of a type have arrived in all."""
        await self.wait_until(lambda: self.received_counts[request_type] >= count)

    async def wait_connections(self, count: int) -> None:
        """Wait until exactly ``count`` connections are open."""
        await self.wait_until(lambda: len(self.sessions) == count)

    def note_request(self, connection: int, corr_id: int | None, request: Request) -> None:
        """Log a request."""
        if isinstance(request, (AddProgram, TransferFile)):
            request = attrs.evolve(request, chunk_data=b"")
        self.received.append(ReceivedRequest(connection, corr_id, request))
        self.received_counts[request.type] += 1
        self._note()

    # Counted here and not where it happens: an attribute that a subclass writes has two declarations, and a checker
    # of types need not take the one that says what it holds.

    def _count_connection(self) -> int:
        self.connections_total += 1
        return self.connections_total

    def _count_refused(self) -> None:
        self.refused_total += 1

    def _count_started(self, process: SimulatedProcess) -> None:
        self._live[process.id] = process
        self.started_total += 1
        self.peak_live = max(self.peak_live, len(self._live))

    def _count_ended(self, process: SimulatedProcess) -> None:
        assert process.outcome is not None
        del self._live[process.id]
        match process.outcome:
            case ("return", _):
                self.returned_total += 1
            case ("error", "Signal"):
                self.terminated_total += 1
            case _:
                self.failed_total += 1

    def _note(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
