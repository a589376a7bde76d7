# SPDX-License-Identifier: Apache-2.0
"""``Keeper``: the listener, the commits, and the life of the whole."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Coroutine, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from anyio import (
    TASK_STATUS_IGNORED,
    Event,
    aclose_forcefully,
    create_task_group,
    create_unix_listener,
    move_on_after,
)
from anyio.abc import ByteStream, Listener, TaskGroup, TaskStatus
from anyio.lowlevel import checkpoint

from .._exceptions import PieError
from .._flow.scopes import raise_single
from .._flow.wake import Wake
from .._transport.direct import take_over
from .._types import Generation
from .downstream import Session
from .limits import KeeperLimits
from .secure import KeeperError, free_socket_path, lock_file, make_private_folder, peer_user
from .store import Record, Store
from .uploads import Budget
from .upstream import Connect, Upstream

logger: Final = logging.getLogger("pie_anyio.keeper")

_PURGE_SECONDS: Final = 600.0
_GOODBYE_SECONDS: Final = 0.5

PeerUser = Callable[[ByteStream], "int | None"]


class Keeper:
    """Holds the connection to an engine, so that clients may leave and come back.

    ::

        keeper = Keeper(lambda: PieClient(url, reconnect=True), socket=folder / "socket", store=folder / "store")
        await keeper.serve()

    Clients connect to ``keeper.url``. See "Detach and reattach" in the documentation for what they may expect.

    Args:
        connect: makes a client of the engine; called again each time a connection has ended for good.
        socket: where to listen; the directory must be the user's alone, or not there yet.
        store: the file in which to keep what came; None keeps it in memory.
        limits: how much is kept, and of how many.
        idle: seconds without a client and without a running process after which ``serve`` returns; None never.
        listener: where clients come from, in place of a socket; for tests.
        peer_user: tells whose process is at the other end of a connection; None is nobody.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        socket: Path | None = None,
        store: Path | None = None,
        limits: KeeperLimits | None = None,
        idle: float | None = None,
        listener: Listener[Any] | None = None,
        peer_user: PeerUser = peer_user,
    ) -> None:
        if (socket is None) == (listener is None):
            msg = "a keeper listens on a socket or on a given listener"
            raise KeeperError(msg)
        self.limits: KeeperLimits = limits or KeeperLimits()
        self.socket = socket
        self.uploads: Budget = Budget(self.limits.uploads_bytes)
        self.sessions: set[Session] = set()
        self._connect = connect
        self._store_path = store
        self._idle = idle
        self._listener = listener
        self._peer_user = peer_user
        self._store: Store | None = None
        self._upstream: Upstream | None = None
        self._tasks: TaskGroup | None = None
        self._stopping = False
        self._dirty = Wake()
        self._busy = Event()
        self._rested = True

    # --- facts -----------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """What clients connect to.

        Raises:
            KeeperError: it listens on no socket.
        """
        if self.socket is None:
            msg = "this keeper has no socket"
            raise KeeperError(msg)
        return socket_url(self.socket)

    @property
    def store(self) -> Store:
        """What is kept, while the keeper serves."""
        assert self._store is not None
        return self._store

    @property
    def upstream(self) -> Upstream:
        """The connection to the engine, while the keeper serves."""
        assert self._upstream is not None
        return self._upstream

    def describe(self) -> dict[str, object]:
        """Say how things are, for ``query("keeper", "")``."""
        return {
            "pid": os.getpid(),
            "generation": self.upstream.generation,
            "problem": self.upstream.problem,
            "sessions": len(self.sessions),
            "running": len(self.store.running),
            "kept": len(self.store.records),
            "bytes": self.store.bytes,
        }

    # --- life ------------------------------------------------------------------------------------------------------

    async def serve(
        self,
        *,
        started: Callable[[], None] | None = None,
        task_status: TaskStatus[None] = TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until it is idle for long enough, or stopped.

        ``started`` is called when clients can connect, which is also when ``TaskGroup.start`` returns.

        Raises:
            KeeperRunning: another keeper has the socket or the store.
            KeeperError: a directory or file is not safe to use, or nothing more can be stored.
            PieError: the engine cannot be reached, and there is nothing in the store either that could be served.

        Cancellation: clients are told, what came is committed, and the connection to the engine is closed; all that is
        bounded.
        """
        with ExitStack() as stack:
            self._open(stack)
            with raise_single(_several_failures):
                async with create_task_group() as tasks:
                    self._tasks = tasks
                    tasks.start_soon(self._commit)
                    tasks.start_soon(self.upstream.run)
                    problem = await self.upstream.tried.wait()
                    if problem is not None and not self.store.records:
                        raise problem
                    await self._listen(tasks)
                    task_status.started()
                    if started is not None:
                        started()
                    try:
                        await self._wait_until_idle()
                    finally:
                        await self._dismiss()
                    tasks.cancel_scope.cancel()

    def stop(self) -> None:
        """Have ``serve`` return."""
        self._stopping = True
        self._busy.set()

    async def _dismiss(self) -> None:
        """Let go of every client, which is bounded, and cannot be cancelled: they are out of reach otherwise."""
        self._stopping = True
        sessions = list(self.sessions)
        with move_on_after(_GOODBYE_SECONDS, shield=True):
            for session in sessions:
                session.leave()
            for session in sessions:
                await session.gone()
        for session in sessions:
            session.drop()

    def _open(self, stack: ExitStack) -> None:
        """Take the locks and open the store."""
        for path in (self.socket, self._store_path):
            if path is not None:
                stack.enter_context(lock_file(path.with_name(f"{path.name}.lock")))
        with _storing():
            self._store = Store(self._store_path, self.limits)
        stack.enter_context(_storing())
        stack.callback(self._store.close)
        if self._store.set_aside is not None:
            logger.warning("what was stored cannot be read; it was renamed to %s", self._store.set_aside)
        self._upstream = Upstream(self._connect, self._store, self.changed)

    async def _listen(self, tasks: TaskGroup) -> None:
        listener = self._listener
        if listener is None:
            assert self.socket is not None
            make_private_folder(self.socket.parent)
            free_socket_path(self.socket)
            listener = await create_unix_listener(self.socket, mode=0o600)
        tasks.start_soon(self._accept, listener, tasks)

    async def _accept(self, listener: Listener[Any], tasks: TaskGroup) -> None:
        try:
            await listener.serve(self._serve_client, tasks)
        finally:
            if self.socket is not None:
                # Before the listener is closed: afterwards it could be another keeper's.
                self.socket.unlink(missing_ok=True)
            await aclose_forcefully(listener)

    async def _serve_client(self, stream: ByteStream) -> None:
        user = self._peer_user(stream) if self._listener is None else os.geteuid()
        if user != os.geteuid():
            logger.warning("a connection was refused; it came from user %s", user)
        if user != os.geteuid() or self._stopping or len(self.sessions) >= 2 * self.limits.sessions:
            await aclose_forcefully(stream)
            return
        # Besides being quicker: with uvloop, a stream of anyio's complains when it is cancelled while bytes arrive.
        stream = take_over(stream)
        session = self._make_session()
        self.sessions.add(session)
        self._note_rest()
        try:
            await session.serve(stream)
        except Exception:
            logger.exception("a session failed")
        finally:
            self.sessions.discard(session)
            self._note_rest()

    def _make_session(self) -> Session:
        generation = self.upstream.generation
        refusal = ""
        if generation is None:
            refusal = f"the keeper has not reached its engine yet: {self.upstream.problem}"
        elif len(self.sessions) >= self.limits.sessions:
            refusal = f"the keeper has {len(self.sessions)} clients, as many as it takes"
        return Session(self, generation or Generation.V05, refusal=refusal)

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        """Run something that outlives the session that wanted it."""
        assert self._tasks is not None
        self._tasks.start_soon(function, *arguments)

    # --- idling ----------------------------------------------------------------------------------------------------

    @property
    def _resting(self) -> bool:
        return not self.sessions and not self.store.running

    def _note_rest(self) -> None:
        """Have the time of idling begin anew."""
        self._rested = self._resting
        self._busy.set()

    async def _wait_until_idle(self) -> None:
        while not self._stopping:
            self._busy = Event()
            idle = self._idle if self._resting else None
            with move_on_after(idle) as scope:
                await self._busy.wait()
            if scope.cancelled_caught:
                logger.info("idle for %g s: stopping", self._idle)
                return

    # --- the store -------------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Have the store committed in this turn of the event loop."""
        self._dirty.set()

    def received(self, record: Record, reader: str, place: int) -> None:
        """Note what a reader has received for certain."""
        self.store.receive(record, reader, place)
        self.changed()

    async def _commit(self) -> None:
        """Commit whatever came, once per turn of the loop, and tell the sessions; else look for what is too old."""
        while True:
            with move_on_after(_PURGE_SECONDS):
                await self._dirty.wait()
                await checkpoint()  # others have something to store in this turn, too
            with _storing():
                changed = self.store.commit()
            for record in changed:
                for session in self.sessions:
                    session.notify(record)
            if self._resting != self._rested:
                self._note_rest()


@contextmanager
def _storing() -> Generator[None]:
    """Have the file's errors say what they mean: a keeper that can store nothing can keep nothing."""
    try:
        yield
    except sqlite3.Error as exc:
        msg = f"the keeper cannot use its store any more: {exc}"
        raise KeeperError(msg) from exc


def socket_url(path: Path) -> str:
    """Give the URL of a keeper's socket."""
    return f"ws+unix://{quote(str(path))}"


def _several_failures(group: BaseExceptionGroup[BaseException]) -> Exception:
    return PieError(f"the keeper failed in {len(group.exceptions)} places; this is a bug")
