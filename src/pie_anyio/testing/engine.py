# SPDX-License-Identifier: Apache-2.0
"""``SimulatedEngine``: a Pie engine in this process, whose programs are Python functions.

It speaks the protocol of either generation in every detail that a client can see, over TCP, TLS, Unix sockets or
memory, and it can be told to misbehave (`Faults`). ``python -m pie_anyio.testing.engine --help`` serves one.
"""

from __future__ import annotations

import ssl
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from anyio import (
    AsyncContextManagerMixin,
    create_task_group,
    create_tcp_listener,
    create_unix_listener,
)
from anyio.abc import ByteStream, ByteStreamConnectable, Listener, SocketAttribute, TaskGroup
from anyio.streams.tls import TLSListener

from .._exceptions import SessionError
from .._flow.scopes import raise_single
from .._types import MIB
from ._sim_auth import Doorkeeper, Users
from ._sim_log import EngineLog, ReceivedRequest
from ._sim_process import InferletSession, SimulatedProcess, ToolError
from ._sim_profiles import Profile, ProfileName, find_profile
from ._sim_programs import InferletFunction, Program, ProgramStore
from ._sim_session import Session
from ._sim_shell import serve_connection
from .faults import Faults, FileDamage, Hold
from .streams import MemoryConnectable

__all__ = [
    "Faults",
    "FileDamage",
    "Hold",
    "InferletSession",
    "ReceivedRequest",
    "SimulatedEngine",
    "ToolError",
]

_F = TypeVar("_F", bound=InferletFunction)
_UPLOAD_BYTES: Final = 256 * MIB


class SimulatedEngine(EngineLog, AsyncContextManagerMixin):
    """A Pie engine in this process.

    ::

        async with SimulatedEngine(profile="v05") as engine:

            @engine.inferlet("echo@0.1.0")
            async def echo(session, input):
                session.send("thinking")
                return input

            async with PieClient(engine.url) as client: ...

    Args:
        profile: "v05", "v04" (as documented) or "v04-faithful" (as it is).
        host, port: where to listen; port 0 means any free one, None no TCP at all.
        ssl_context: serve TLS; the URL becomes ``wss://``.
        unix_path: listen on a Unix socket instead; the URL becomes ``ws+unix://``.
        users: public keys by user name (0.4); without it any name logs in.
        token: the engine's token (0.4); made up if not given.
        token_delay: seconds before a wrong token is refused; 1 to 3 on a real engine.
        max_processes: programs that run at once; further launches are accepted and wait, silently.
        max_upload_bytes: largest upload or file.
        log_size: how many requests ``received`` keeps.
        seed: decides in which order answers overtake each other (0.5).

    Everything is over when the block is left: programs are cancelled, connections dropped.
    """

    def __init__(
        self,
        profile: ProfileName = "v05",
        *,
        host: str = "127.0.0.1",
        port: int | None = 0,
        ssl_context: ssl.SSLContext | None = None,
        unix_path: str | Path | None = None,
        users: Users | None = None,
        token: str | None = None,
        token_delay: float = 0.0,
        max_processes: int | None = None,
        max_upload_bytes: int = _UPLOAD_BYTES,
        log_size: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(log_size)
        self.profile: Profile = find_profile(profile)
        self.doorkeeper: Doorkeeper = Doorkeeper(users, token)
        self.token_delay = token_delay
        self.max_upload_bytes = max_upload_bytes
        self.seed = seed
        self.programs: ProgramStore = ProgramStore(self.profile)
        self.faults: Faults = Faults(self.sessions)
        self._host, self._port = host, port
        self._ssl_context = ssl_context
        self._unix_path = None if unix_path is None else Path(unix_path).absolute()
        self._max_processes = max_processes
        self._queued: deque[SimulatedProcess] = deque()
        self._running: set[str] = set()
        self._connectable = MemoryConnectable()
        self._task_group: TaskGroup | None = None
        self._url: str | None = None

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        with raise_single(_several_errors) as single:
            async with AsyncExitStack() as stack, create_task_group() as task_group:
                self._task_group = task_group
                for listener in await self._listen():
                    await stack.enter_async_context(listener)
                    task_group.start_soon(self._serve, listener)
                with single.body:
                    yield self
                task_group.cancel_scope.cancel()

    async def _listen(self) -> list[Listener[Any]]:
        listeners: list[Listener[Any]] = [self._connectable.listener]
        listener: Listener[Any] | None = None
        if self._unix_path is not None:
            listener = await create_unix_listener(self._unix_path)
            self._url = f"ws+unix://{self._unix_path}"
        elif self._port is not None:
            tcp = await create_tcp_listener(local_host=self._host, local_port=self._port)
            port = tcp.extra(SocketAttribute.local_port)  # noqa: S610 - not the `extra` that the rule means
            host = f"[{self._host}]" if ":" in self._host else self._host
            self._url = f"{'ws' if self._ssl_context is None else 'wss'}://{host}:{port}"
            listener = tcp
        if listener is not None and self._ssl_context is not None:
            listener = TLSListener(listener, self._ssl_context, standard_compatible=False)
        return listeners if listener is None else [*listeners, listener]

    async def _serve(self, listener: Listener[Any]) -> None:
        await listener.serve(self._serve_connection, self._task_group)

    async def _serve_connection(self, stream: ByteStream) -> None:
        session = Session(self, self._count_connection())
        self.sessions.append(session)
        self._note()
        try:
            await serve_connection(session, stream)
        finally:
            self.sessions.remove(session)
            self._note()

    # --- for users -------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where to connect to: ``ws://``, ``wss://`` or ``ws+unix://``."""
        if self._url is None:
            msg = "the engine has no URL: enter it with `async with`, and with a port or a Unix socket"
            raise RuntimeError(msg)
        return self._url

    @property
    def connectable(self) -> ByteStreamConnectable:
        """The same engine in memory, without a socket; pass it to a client in place of a URL."""
        return self._connectable

    @property
    def token(self) -> str:
        """The token that ``auth_by_token`` wants (0.4)."""
        return self.doorkeeper.token

    def inferlet(self, name: str, *, installed: bool = True) -> Callable[[_F], _F]:
        """Decorate ``async def f(session, input)`` to be a program.

        Args:
            name: ``name@major.minor.patch``, or a name alone for version 0.1.0.
            installed: False has the function stand for a program of this name that a client uploads.
        """

        def decorate(function: _F) -> _F:
            self.programs.register(name, function, installed=installed)
            return function

        return decorate

    # --- for sessions ----------------------------------------------------------------------------------------------

    def refuses_launch(self) -> bool:
        """Decide whether the engine has room for another process."""
        refused = self.faults.refuses_launch(len(self._live))
        if refused:
            self._count_refused()
        return refused

    def create_process(
        self, program: Program, text: str, user: str, *, captured: bool, token_budget: int | None
    ) -> SimulatedProcess:
        """Register a process; :meth:`start` has it run."""
        process = SimulatedProcess(self, program, text, user, captured=captured, token_budget=token_budget)
        self._count_started(process)
        return process

    def start(self, process: SimulatedProcess) -> None:
        """Run a process as soon as there is a free place."""
        self._note()
        self._queued.append(process)
        self._admit()

    def _admit(self) -> None:
        places = self._max_processes or sys.maxsize
        while self._queued and len(self._running) < places:
            process = self._queued.popleft()
            if process.outcome is None:  # else it was terminated while it waited
                self._running.add(process.id)
                self.spawn(process.run)

    def process_ended(self, process: SimulatedProcess) -> None:
        """Forget a process, and give its place to the next."""
        self._count_ended(process)
        self._running.discard(process.id)
        self._note()
        self._admit()

    def find_process(self, process_id: str) -> SimulatedProcess | None:
        """Find a live process."""
        return self._live.get(process_id)

    def spawn(self, function: Callable[..., Coroutine[Any, Any, object]], *args: Any) -> None:
        """Run something in the engine's task group."""
        assert self._task_group is not None
        self._task_group.start_soon(function, *args)

    def model_status(self) -> dict[str, object]:
        """Give the figures of ``query("model_status")``, as far as they are stable across engines."""
        return {
            "default.kv_pages_used": len(self._live),
            "default.kv_pages_total": 256,
            "default.total_batches": self.started_total,
            "default.total_tokens_processed": 0,
            "default.total_requests_processed": self.started_total,
            "default.max_forward_requests_observed": self.peak_live,
            "default.batch_size_hist": [self.started_total, 0, 0, 0, 0, 0, 0, 0],
            "default.last_batch_latency_us": 0,
            "default.cumulative_batch_latency_us": 0,
            "default.avg_batch_latency_us": 0,
            "process.completed": self.returned_total + self.failed_total + self.terminated_total,
        }


def _several_errors(group: BaseExceptionGroup[BaseException]) -> Exception:
    return SessionError(f"the simulated engine failed in {len(group.exceptions)} places; this is a bug")


if __name__ == "__main__":
    from ._sim_cli import main

    main()
