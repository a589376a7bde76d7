# SPDX-License-Identifier: Apache-2.0
"""The keeper's own connection to the engine, and the tasks that move events from it into the store."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import attrs
from anyio import Event, create_task_group, fail_after, sleep
from anyio.abc import TaskGroup

from .._calls import ProcessCall, RequestCall
from .._events import AnyEvent
from .._events import Event as Kind
from .._exceptions import ConnectionLost, EngineError, PieError
from .._flow.backoff import Backoff
from .._flow.slots import ReplySlot
from .._pie_client import PieClient
from .._process import Process
from .._types import Generation
from ._wire import cut_file, messages
from .store import LOST, Record, Store

logger: Final = logging.getLogger("pie_anyio.keeper")

_GENERATION: Final = "generation"
_SIGNAL: Final = "Signal"  # the error text of a process that was terminated, in both generations
_BUSY: Final = messages.BUSY[1]
"""What a refusal begins with that clients take for a lack of capacity, and try again."""
_ENDED_WITH_IT: Final = (
    "the keeper was restarted, and a 0.5 engine ends a process with the connection it belongs to"
)
_OUT_OF_REACH: Final = "the keeper was restarted, and the engine does not let it attach again"

Connect = Callable[[], PieClient]
"""Make a client of the engine, not entered yet."""


class Refused(Exception):
    """A request cannot be done; the text is the answer."""


class Upstream:
    """One connection to the engine at a time, for as long as the keeper lives.

    Args:
        connect: makes a client; called again each time a connection has ended for good.
        store: where events go.
        changed: called whenever something was queued for the store.
    """

    def __init__(self, connect: Connect, store: Store, changed: Callable[[], None]) -> None:
        self._connect = connect
        self._store = store
        self._changed = changed
        self._limits = store.limits
        self._client: PieClient | None = None
        self._up = Event()
        self._over = Event()
        self._why = "it has not been reached yet"
        self._tasks: TaskGroup | None = None
        self._processes: dict[str, Process] = {}
        self._launching = 0
        self.tried: ReplySlot[PieError | None] = ReplySlot()
        """Resolves when the engine was reached, or not, for the first time."""
        self._backoff = Backoff(initial=0.1, maximum=10.0, jitter=0.5)

    # --- the connection --------------------------------------------------------------------------------------------

    @property
    def generation(self) -> Generation | None:
        """The engine's generation; what it was when it was last there, where it is not."""
        known = self._store.fact(_GENERATION)
        return None if known is None else Generation(known)

    @property
    def problem(self) -> str:
        """Why there is no connection; empty where there is one."""
        return "" if self._client is not None else self._why

    async def run(self) -> None:
        """Keep connected, and follow processes, until cancelled.

        Cancellation: the connection is closed; what that ends is up to the engine.
        """
        async with create_task_group() as tasks:
            self._tasks = tasks
            attempt = 0
            while True:
                attempt += 1
                try:
                    async with self._connect() as client:
                        await client.ping()
                        attempt = 0
                        await self._serve(client)
                except PieError as exc:
                    self._why = str(exc)
                    self.tried.set_result(exc)
                    logger.warning("no connection to the engine: %s", exc)
                await sleep(self._backoff.delay(max(attempt, 1)))

    async def _serve(self, client: PieClient) -> None:
        """Offer a connection to those who wait for one, until it is over."""
        assert client.generation is not None
        self._store.set_fact(_GENERATION, client.generation)
        logger.info("connected to %s, generation %s", client.url, client.generation)
        self._over = Event()
        await self._resume(client)
        self._client = client
        self._up.set()
        self.tried.set_result(None)
        try:
            await self._over.wait()
        finally:
            self._client = None
            self._up = Event()

    def _lose(self, exc: ConnectionLost) -> None:
        """Note that the connection is over for good; a client that can come back does so before it says this."""
        self._why = str(exc)
        self._over.set()

    async def ready(self) -> PieClient:
        """Give the connection; wait for one for a while.

        Raises:
            Refused: there is none.
        """
        try:
            with fail_after(self._limits.patience):
                while self._client is None:
                    await self._up.wait()
                client = self._client
                await client.session.ready()
                return client
        except TimeoutError:
            raise Refused(f"{_BUSY}: the keeper has no connection to the engine: {self._why}") from None
        except ConnectionLost as exc:
            self._lose(exc)
            raise Refused(f"{_BUSY}: the keeper has lost its connection to the engine: {exc}") from exc

    # --- requests --------------------------------------------------------------------------------------------------

    async def ask(self, request: messages.Request) -> tuple[bool, str]:
        """Pass a request on, as it is, and give the engine's answer, as it is.

        Raises:
            Refused: there is no answer.

        Cancellation: the request may have been sent.
        """
        client = await self.ready()
        try:
            return await client.session.request(request)
        except ConnectionLost as exc:
            self._lose(exc)
            raise Refused(f"the keeper's connection to the engine was lost: {exc}") from exc
        except PieError as exc:
            raise Refused(_text_of(exc)) from exc

    async def install(self, data: bytes, manifest: str, force: bool) -> None:
        """Install a program.

        Raises:
            Refused: the engine refused it.

        Cancellation: what was sent is forgotten by the engine.
        """
        client = await self.ready()
        try:
            await client.install_program_bytes(data, manifest, force)
        except PieError as exc:
            raise Refused(_text_of(exc)) from exc

    async def launch(self, request: messages.LaunchProcess, owner: str) -> Record:
        """Launch a process and begin to keep it.

        Raises:
            Refused: it was not launched.

        Cancellation: as of a launch by a client.
        """
        if len(self._store.running) + self._launching >= self._limits.running:
            raise Refused(f"admission rejected: the keeper has {self._limits.running} running processes")
        self._launching += 1
        try:
            process = await self._call(request)
        finally:
            self._launching -= 1
        record = self._store.add(process.process_id, request.inferlet, owner, request.input)
        self._follow_soon(process, record)
        return record

    async def adopt(self, process_id: str, owner: str) -> Record:
        """Attach to a process that is not kept, and begin to keep it.

        Raises:
            Refused: the engine does not let the keeper attach.

        Cancellation: the process is not touched.
        """
        process = await self._call(messages.AttachProcess(process_id))
        record = self._store.add(process.process_id, process.program, owner, "")
        self._follow_soon(process, record)
        return record

    async def _call(self, request: messages.LaunchProcess | messages.AttachProcess) -> Process:
        """Launch or attach with the text of the request as it came: an input is the program's, and not ours to read."""
        client = await self.ready()
        try:
            return await _relay(client, request)
        except ConnectionLost as exc:
            self._lose(exc)
            raise Refused(f"the keeper's connection to the engine was lost: {exc}") from exc
        except PieError as exc:
            raise Refused(_text_of(exc)) from exc

    async def signal(self, process_id: str, message: str) -> None:
        """Send a string to a running process; nothing where there is none, as engines do.

        Cancellation: either nothing was sent, or all of it will be.
        """
        process = self._processes.get(process_id)
        if process is not None:
            await self._send(process.signal(message))

    async def transfer(self, process_id: str, data: bytes) -> None:
        """Send a file to a running process; see :meth:`signal`.

        Cancellation: a file that was sent in part does not arrive.
        """
        process = self._processes.get(process_id)
        if process is not None:
            await self._send(process.transfer_file(data))

    async def _send(self, sending: Awaitable[None]) -> None:
        try:
            await sending
        except ConnectionLost as exc:
            self._lose(exc)  # the process is lost with it, which its events will say
        except PieError as exc:
            logger.warning("a message for a process was not sent: %s", exc)

    # --- events ----------------------------------------------------------------------------------------------------

    async def _resume(self, client: PieClient) -> None:
        """Continue what an earlier keeper left running, where this engine lets anybody do that."""
        for process_id in list(self._store.running):
            record = self._store.records[process_id]
            if client.generation is not Generation.V04:
                self._store.finish(record, LOST, f"process {process_id} is lost: {_ENDED_WITH_IT}")
                continue
            try:
                process = await _relay(client, messages.AttachProcess(process_id))
            except EngineError as exc:
                self._store.finish(
                    record, LOST, f"process {process_id} is lost: {_OUT_OF_REACH}: {exc.detail}"
                )
                continue
            self._store.append(record, "gap", "the keeper was restarted: output may be missing here")
            self._follow_soon(process, record)
        self._changed()

    def _follow_soon(self, process: Process, record: Record) -> None:
        assert self._tasks is not None
        self._processes[process.process_id] = process
        self._changed()
        self._tasks.start_soon(self._follow, process, record)

    async def _follow(self, process: Process, record: Record) -> None:
        """Move the events of one process into the store until its last one."""
        try:
            async for event in process:
                self._keep(record, event)
        except ConnectionLost as exc:
            self._store.finish(record, LOST, f"process {record.id} is lost: {exc}")
            self._lose(exc)
        except PieError as exc:
            self._store.finish(record, LOST, str(exc))
        finally:
            del self._processes[process.process_id]
            self._changed()

    def _keep(self, record: Record, event: AnyEvent) -> None:
        match event.kind:
            case Kind.File:
                for chunk in cut_file(record.id, event.value, event.value.name):
                    place = (chunk.chunk_index, chunk.total_chunks, chunk.name)
                    self._store.append_piece(record, chunk.chunk_data, chunk.file_hash, *place)
            case Kind.Return:
                self._store.finish(record, "returned", event.value)
            case Kind.Error:
                self._store.finish(record, "terminated" if event.value == _SIGNAL else "failed", event.value)
            case _:
                self._store.append(record, event.kind, event.value)
        self._changed()


def _relay(client: PieClient, request: messages.LaunchProcess | messages.AttachProcess) -> ProcessCall:
    """Make the call for a request as it came from a client."""
    quiet = isinstance(request, messages.LaunchProcess) and not request.capture_outputs
    if isinstance(request, messages.LaunchProcess):
        request = attrs.evolve(request, capture_outputs=True)  # else its id and its end would never be told
    return RequestCall(client.session, request, "drop_oldest", quiet=quiet)


def _text_of(exc: PieError) -> str:
    """Give the engine's own words, where there are any."""
    return str(getattr(exc, "detail", "") or exc)
