# SPDX-License-Identifier: Apache-2.0
"""``Session``: one connection's tasks, its requests, and the runs that it owns."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from anyio import AsyncContextManagerMixin, CancelScope, Lock, create_task_group, current_time
from anyio.abc import TaskGroup

from .._exceptions import (
    AuthenticationError,
    ConnectionClosed,
    ConnectionLost,
    SessionError,
    UnsupportedByEngine,
)
from .._flow.buffers import ByteBudget
from .._flow.parking import loop_clock
from .._flow.pausing import Buffers, Intake
from .._flow.scopes import cleanup_until, raise_single
from .._flow.slots import ReplySlot
from .._flow.suspension import SuspensionWatch
from .._protocol.messages import BUSY, AuthIdentify, McpRequest, Request
from .._protocol.state import ConnectionState
from .._transport.stream import open_transport
from .._types import CAPABILITIES, Capabilities, Generation
from .opening import finish_handshake, make_link
from .options import SessionOptions
from .pumps import Link, keep_alive, read, write
from .reconcile import Reconciler
from .refusals import engine_error
from .registry import Registry
from .router import Router, logger
from .runs import Runs
from .supervisor import Supervisor

ABORTED: Final = "stream aborted"
_OPEN: Final = ConnectionState.OPEN  # looked up once: on Python 3.11 that is a call, and each launch asks


class Session(AsyncContextManagerMixin):
    """A connection that is open while its block is.

    Everything that changes state is synchronous and happens between two awaits, so a cancelled caller never leaves a
    request half made.
    """

    def __init__(self, options: SessionOptions) -> None:
        self.options = options
        self.intake: Intake = Intake()
        """Holds up the reader while a process that was launched to (``pause``) is not read."""
        limits = options.limits
        self.buffered: ByteBudget = ByteBudget(limits.client_buffer_bytes)
        self.registry: Registry = Registry(Buffers(limits.process_buffer_bytes, self.buffered, self.intake))
        self.clock: Callable[[], float] = current_time
        """Tells the loop's time, in seconds."""
        self.tool_handler: Callable[[McpRequest], None] | None = None
        """Takes the engine's calls of tools; called by the reader, so it must not wait (0.4)."""
        self.transfers: dict[str, Lock] = {}
        """Content hashes that are being sent: equal content takes turns."""
        self.username: str | None = None
        """The name of this connection on a 0.4 engine."""
        self.login_turn: Lock = Lock()
        """Logins take turns: a second one would replace the challenge that the first is signing (0.4 section 4.1)."""
        self._link: Link | None = None
        self._tasks: TaskGroup | None = None
        self._pumps: list[CancelScope] = []
        self._stopped = False
        self._helpers: set[CancelScope] = set()
        self._leaving = False
        self._reconciler = Reconciler(self)
        self.connections: int = 0
        """How many connections there were, the present one included: its generation."""
        self.relogin: Callable[[], Awaitable[None]] | None = None
        """Logs in as the caller did last, on another connection."""
        self._had_login = False
        """Requests were sent without credentials, which the engine accepted."""
        self.after_login: list[Callable[[], Awaitable[None]]] = []
        """What else a new connection has to be told (0.4: the tool servers)."""
        self.runs: Runs = Runs(self)
        self._supervisor = Supervisor(self, options.reconnect) if options.reconnect is not None else None

    # --- lifetime --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Session]:
        with raise_single(_several_failures) as single:
            async with create_task_group() as tasks:
                self._tasks = tasks
                try:
                    await self.connect()
                    if self._supervisor is not None:
                        self._supervisor.start()
                        self.spawn(self._supervisor.run, name="pie-anyio supervisor")
                    with single.body:
                        yield self
                finally:
                    self._leave()
                    try:
                        await self._finish()
                    finally:
                        self._stop_pumps()

    async def connect(self) -> None:
        """Open a connection, start its pumps, and wait for the end of the opening handshake.

        Raises:
            ConnectError: there is no engine, or it does not answer in time.

        Cancellation: what was opened is closed by :meth:`drop_link` or at the end of the client's block.
        """
        options, tasks = self.options, self._tasks
        assert tasks is not None
        self.clock = loop_clock()
        deadline = self.clock() + options.connect_timeout
        transport = await open_transport(options.endpoint, options.connect_timeout)
        self.connections += 1
        handshake: ReplySlot[None] = ReplySlot()
        router = Router(
            self.registry,
            generation=self.connections,
            handshake=handshake,
            on_notice=self._on_notice,
            on_tool=self._on_tool,
            recovery=self._supervisor,
        )
        self._link = link = make_link(options, transport, router)
        link.intake = self.intake
        link.wake.set()
        tasks.start_soon(self._pump, write, link, name="pie-anyio writer")
        tasks.start_soon(self._pump, read, link, name="pie-anyio reader")
        await finish_handshake(handshake, transport.name, deadline, options.connect_timeout)
        if options.keepalive is not None:
            watch = SuspensionWatch(options.wall_clock)
            tasks.start_soon(
                self._pump, keep_alive, link, options.keepalive, watch, name="pie-anyio keepalive"
            )

    async def _pump(self, pump: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run one pump, out of reach of a cancellation that comes from around the client's block.

        Blocks inside the client's still have runs to end then, which takes a reader and a writer. The shield is
        bounded: every way out of the client's block goes through ``_stop_pumps``, after ``_finish``, which is bounded.
        """
        with CancelScope(shield=True) as scope:
            if not self._stopped:
                self._pumps.append(scope)
                await pump(*args)

    def _stop_pumps(self) -> None:
        self._stopped = True
        self._cancel_pumps()

    def _cancel_pumps(self) -> None:
        for scope in self._pumps:
            scope.cancel()
        self._pumps.clear()

    async def drop_link(self) -> None:
        """Let go of a connection that is of no use any more, before the next one is opened. Idempotent.

        Cancellation: it is closed all the same.
        """
        self._cancel_pumps()
        link = self._link
        assert link is not None
        link.fail(ConnectionLost("the connection was given up"))
        await link.transport.aclose()

    def spawn(self, work: Callable[..., Awaitable[None]], *args: object, name: str) -> None:
        """Run something in the background until the client's block is left.

        Leaving cancels it before anything else, so that it can end while the connection is being closed. Until then it
        is out of reach of a cancellation from around the block, as the pumps are.
        """
        assert self._tasks is not None
        self._tasks.start_soon(self._help, work, *args, name=name)

    async def _help(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        with CancelScope(shield=True) as scope:
            if self._leaving:
                scope.cancel()  # it is run all the same: others may be waiting for its clean-up
            self._helpers.add(scope)
            try:
                await work(*args)
            finally:
                self._helpers.discard(scope)

    def _leave(self) -> None:
        """Begin to leave the client's block: from here on nothing new is started, and nothing is restored."""
        self._leaving = True
        self.intake.abolish()
        if self._supervisor is not None:
            self._supervisor.stop(ConnectionClosed("the client's block is left"))
        for scope in self._helpers:
            scope.cancel()

    async def _finish(self) -> None:
        """Close within ``terminate_grace`` and ``close_timeout``, in order; what cannot be waited for is cut."""
        link = self._link
        if link is None:
            return
        try:
            await self._say_goodbye(link)
        finally:
            await link.transport.aclose()
            link.fail(ConnectionClosed("the connection was closed by this side"))

    async def _say_goodbye(self, link: Link) -> None:
        protocol = link.protocol
        if protocol.state is ConnectionState.CONNECTING:
            return  # the handshake failed or was given up: there is nobody to say anything to
        survives = protocol.generation is not None and CAPABILITIES[protocol.generation].survives_disconnect
        for run in self.registry.by_id.values():
            # Only runs that nobody scopes are left here, and that generation lets them run on.
            run.detached = run.detached or (survives and not run.released)
        with cleanup_until(self.runs.grace_deadline()):
            for run in list(self.registry.unconfirmed):
                await run.ended.wait()
        protocol.close()
        link.flush()
        with cleanup_until(current_time() + self.options.close_timeout):
            # A write that was cut short leaves nothing to add to; an engine that is gone answers nothing.
            if not transport_dead(link):
                await link.router.ended.wait()

    # --- state -----------------------------------------------------------------------------------------------------

    @property
    def link(self) -> Link:
        """The connection's parts.

        Raises:
            ConnectionLost: there is no connection any more.
        """
        link = self._link
        if link is not None and link.protocol.state is _OPEN:
            return link
        if link is None:
            msg = "the client is not connected; use it inside 'async with PieClient(url) as client:'"
            raise ConnectionClosed(msg, issued=False)
        reason = link.router.ended.value
        if reason is not None:
            msg = f"there is no connection to {link.transport.name} any more: {reason}"
            cls = ConnectionClosed if isinstance(reason, ConnectionClosed) else ConnectionLost
            raise cls(msg, issued=False) from reason
        if link.protocol.state is ConnectionState.CLOSING:
            msg = f"the connection to {link.transport.name} is being closed, since the client's block is left"
            raise ConnectionClosed(msg, issued=False)
        return link

    @property
    def last_link(self) -> Link:
        """The parts of the connection that there is, or was last; a run has had one."""
        assert self._link is not None
        return self._link

    @property
    def is_connected(self) -> bool:
        """Whether the connection is there, and not on its way back only."""
        return self._link is not None and not self._link.router.ended.done and not self.is_coming_back

    @property
    def is_coming_back(self) -> bool:
        """Whether the connection was lost and is being restored; ``ready`` waits for that."""
        supervisor = self._supervisor
        return supervisor is not None and supervisor.is_down and supervisor.error is None

    @property
    def generation(self) -> Generation | None:
        """The engine's generation, once an answer has told it."""
        return self._link.protocol.generation if self._link is not None else None

    @property
    def capabilities(self) -> Capabilities | None:
        """What the engine can do, once its generation is known."""
        generation = self.generation
        return None if generation is None else CAPABILITIES[generation]

    @property
    def takes_bare_names(self) -> bool:
        """Whether the engine launches programs without a version; once that is known."""
        link = self._link
        generation = None if link is None else link.protocol.generation
        return generation is not None and CAPABILITIES[generation].bare_program_names

    async def ready(self) -> None:
        """Make sure that requests are allowed; logs in without credentials where nobody has logged in.

        An engine without authentication, and any engine of 0.5, accepts that. It happens at the first request and not
        at connecting, since on 0.4 the first name that is given stays the name of the connection.

        Raises:
            AuthenticationError: the engine wants credentials.
            EngineBusy: it has no capacity even for that (0.5), and ends the connection.
            ConnectionLost: there is no connection any more.
        """
        await self.connected()
        if not self.is_logged_in:
            await self._log_in_by_default()

    async def connected(self) -> None:
        """Wait for a connection that is being restored; whether anybody has logged in does not matter.

        Raises:
            ConnectionLost: it was given up.
        """
        if self._supervisor is not None:
            await self._supervisor.connected()

    async def _log_in_by_default(self) -> None:
        async with self.login_turn:
            if self.is_logged_in_now():
                return
            username = self.options.identity.rpartition("/")[2]
            ok, result = await self.ask(AuthIdentify(username))
            if self.is_logged_in_now():
                self.username = username
                self._had_login = True
            elif result.startswith(BUSY):
                raise engine_error("auth_identify", result)
            else:
                detail = "it wants a signature" if ok else result
                msg = (
                    f"{self.options.endpoint.name} wants credentials ({detail}); call authenticate(username, key) or "
                    "auth_by_token(token) first, or give them to PieClient"
                )
                raise AuthenticationError(msg, url=self.options.endpoint.name)

    @property
    def is_ready(self) -> bool:
        """Whether :meth:`ready` has nothing to wait for, and nothing to raise."""
        link = self._link
        if link is None or link.protocol.state is not _OPEN:
            return False
        return self._supervisor is None or not self._supervisor.is_down

    @property
    def is_logged_in(self) -> bool:
        """Whether requests of every kind may be sent."""
        return self.link.protocol.is_open

    def is_logged_in_now(self) -> bool:
        """Ask again after a wait; a method, since type checkers narrow properties."""
        return self.link.protocol.is_open

    async def settled(self) -> None:
        """Wait until each run that was live when the connection was lost is attached again, or given up.

        Messages to a process that this connection is not attached to are dropped by engines, without a word.
        """
        if self._supervisor is not None:
            await self._supervisor.settled()

    async def log_in_again(self) -> None:
        """Log in on a new connection as on the one before.

        Raises:
            AuthenticationError: the engine does not accept any more what it accepted before.
            ConnectionLost: the new connection is gone as well.
        """
        if self.relogin is not None:
            await self.relogin()
        elif self._had_login:
            await self._log_in_by_default()
        for tell in self.after_login:
            await tell()

    async def require(self, feature: str, capability: str) -> None:
        """Refuse what this engine generation cannot do, before anything of it is sent.

        Raises:
            UnsupportedByEngine: it cannot.
        """
        await self.ready()
        capabilities = self.capabilities
        assert capabilities is not None
        if not getattr(capabilities, capability):
            able = [g for g, c in CAPABILITIES.items() if getattr(c, capability)]
            raise UnsupportedByEngine(
                feature, generation=capabilities.generation, available_in=" or ".join(able)
            )

    # --- requests --------------------------------------------------------------------------------------------------

    async def ask(self, request: Request, *, urgent: bool = False) -> tuple[bool, str]:
        """Send one request and wait for its answer, whatever the state of the login.

        Cancellation: a request that has not left is withdrawn; otherwise its answer is dropped when it comes.
        """
        link = self.link if urgent else await self._link_with_room()
        slot: ReplySlot[tuple[bool, str]] = ReplySlot()
        corr_id = link.protocol.submit(request, slot, urgent=urgent)
        link.send_soon()
        try:
            return await slot.wait()
        finally:
            if not slot.done:
                link.protocol.abandon(corr_id)
                link.flush()

    async def request(self, request: Request, *, urgent: bool = False) -> tuple[bool, str]:
        """Send one request when allowed to, and wait for its answer; see :meth:`ask`.

        With a policy to reconnect, a request that certainly was not sent is sent on the next connection.
        """
        while True:
            await self.ready()
            try:
                return await self.ask(request, urgent=urgent)
            except ConnectionLost as exc:
                if not self._may_repeat(exc):
                    raise

    def _may_repeat(self, lost: ConnectionLost) -> bool:
        """Tell whether nothing was sent and there may be another connection; ``ready`` waits for that one."""
        return lost.issued is False and self._supervisor is not None and self._supervisor.is_down

    async def notify(self, request: Request) -> None:
        """Queue a message that is never answered; with a policy to reconnect, when its process is attached again.

        Cancellation: either nothing was queued, or all of it.
        """
        while True:
            await self.ready()
            await self.settled()
            try:
                link = await self._link_with_room()
            except ConnectionLost as exc:
                if not self._may_repeat(exc):
                    raise
                continue
            link.protocol.notify(request)
            link.send_soon()
            return

    async def _link_with_room(self) -> Link:
        """Wait until the outbox takes more.

        Raises:
            ConnectionLost: there is no connection any more.
        """
        link = self.link
        if link.requests.is_shut:
            await link.requests.wait_below()
        return link

    # --- what the engine says on its own ---------------------------------------------------------------------------

    def _on_notice(self, text: str) -> None:
        if text.startswith(ABORTED) and self._tasks is not None:
            self._reconciler.suspect(self._tasks, self._pump)
        else:
            # It names no request, so it is about one that is never answered: a signal, a piece of a file.
            logger.warning(
                "the engine refused a message, a signal or part of a file may not have arrived: %s", text
            )

    def _on_tool(self, request: McpRequest) -> None:
        if self.tool_handler is not None:
            self.tool_handler(request)


def transport_dead(link: Link) -> bool:
    """Tell whether nothing can be sent any more."""
    return link.transport.broken or link.router.ended.done


def _several_failures(group: BaseExceptionGroup[BaseException]) -> Exception:
    return SessionError(f"{len(group.exceptions)} parts of a session failed at once")
