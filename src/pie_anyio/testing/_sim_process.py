# SPDX-License-Identifier: Apache-2.0
"""One process of a simulated engine, and the ``session`` object that its program sees."""

from __future__ import annotations

import json
import traceback
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from anyio import CancelScope, Event, current_time
from anyio.lowlevel import checkpoint

from .._types import ProcessInfo
from ._sim_profiles import RING_EVENTS, STDOUT_BYTES, OnDisconnect

if TYPE_CHECKING:
    from ._sim_programs import Program
    from ._sim_session import Attachment
    from .engine import SimulatedEngine

_BUFFERED: Final = frozenset(["stdout", "stderr", "return", "error"])


class ToolError(Exception):
    """A tool call of a program failed; ``code`` as in JSON-RPC."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class SimulatedProcess:
    """A running program: who started it, who listens, and how it ends."""

    def __init__(
        self,
        engine: SimulatedEngine,
        program: Program,
        text: str,
        user: str,
        *,
        captured: bool,
        token_budget: int | None = None,
    ) -> None:
        self.id: str = str(uuid4())
        self.program = program
        self.input = text
        self.user = user
        self.captured = captured
        self.token_budget = token_budget
        self.attachment: Attachment | None = None
        self.outcome: tuple[str, str] | None = None
        """The terminal event, once there is one."""
        self.after_first: Callable[[], None] | None = None
        """Called once, behind the first event that a client is sent."""
        self._engine = engine
        self._started = current_time()
        self._scope = CancelScope()
        self._ring: deque[tuple[str, str]] = deque(maxlen=RING_EVENTS)
        self._signals: deque[str] = deque()
        self._signalled: Event | None = None
        self._receiver: _FileSlot | None = None
        self._ended: Event | None = None

    def __repr__(self) -> str:
        return f"<SimulatedProcess {self.program.identifier} {self.id}>"

    @property
    def info(self) -> ProcessInfo:
        """The row of ``list_processes``."""
        elapsed = int(current_time() - self._started)
        return ProcessInfo(
            id=self.id,
            username=self.user,
            program=self.program.identifier,
            input=self.input,
            elapsed_secs=elapsed,
        )

    # --- running ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the program to its end; the body of one task."""
        with self._scope:
            try:
                value = await self.program.function(InferletSession(self), parse_input(self.input))
                text = write_value(value)
            except (Exception, SystemExit) as exc:  # noqa: BLE001 - whatever a program raises is its result
                self.finish("error", describe_error(exc))
            else:
                self.finish("return", text)

    def finish(self, kind: str, value: str, *, silent: bool = False) -> None:
        """End, once: later calls change nothing. ``silent`` sends no event."""
        if self.outcome is not None:
            return
        if not silent:
            self.emit(kind, value)
        self.outcome = (kind, value)
        attachment = self.attachment
        if attachment is not None:
            attachment.process_ended(self)
        if self._ended is not None:
            self._ended.set()
        self._engine.process_ended(self)

    def terminate(self, *, silent: bool = False) -> None:
        """Stop the program at its next wait; the terminal event does not wait for that."""
        self.finish("error", "Signal", silent=silent)
        self._scope.cancel()

    async def wait(self) -> tuple[str, str]:
        """Wait for the end and give the terminal event."""
        await checkpoint()
        while self.outcome is None:
            self._ended = self._ended or Event()
            await self._ended.wait()
        return self.outcome

    # --- output ----------------------------------------------------------------------------------------------------

    def emit(self, kind: str, value: str) -> None:
        """Send one event to whoever is attached; or keep or lose it, as the profile has it."""
        if self.outcome is not None:
            return
        if not self.captured and kind in ("stdout", "stderr"):
            return
        attachment = self.attachment
        if attachment is not None:
            attachment.deliver(self.id, kind, value)
            self._delivered()
        elif (
            self.captured and kind in _BUFFERED and self._engine.profile.on_disconnect is OnDisconnect.DETACH
        ):
            self._ring.append((kind, value))

    def emit_file(self, content: bytes, name: str | None) -> None:
        """Send a file to whoever is attached; it is never kept."""
        if self.outcome is None and self.attachment is not None:
            self.attachment.deliver_file(self.id, content, name)
            self._delivered()

    def _delivered(self) -> None:
        if self.after_first is not None:
            after, self.after_first = self.after_first, None
            after()

    def replay(self) -> None:
        """Send what was kept while nobody was attached."""
        assert self.attachment is not None
        while self._ring:
            self.attachment.deliver(self.id, *self._ring.popleft())

    # --- input -----------------------------------------------------------------------------------------------------

    def signal(self, text: str) -> None:
        """Take a signal; it waits for a ``receive``."""
        self._signals.append(text)
        if self._signalled is not None:
            self._signalled.set()
            self._signalled = None

    async def receive(self) -> str:
        """Take the next signal."""
        await checkpoint()
        while not self._signals:
            if self._signalled is None:
                self._signalled = Event()
            await self._signalled.wait()
        return self._signals.popleft()

    def take_file(self, content: bytes) -> None:
        """Give a file to the program if it waits for one; else the file is lost, as in real engines."""
        slot, self._receiver = self._receiver, None
        if slot is None:
            self._engine.files_lost += 1
        else:
            slot.fill(content)

    async def receive_file(self) -> bytes | None:
        """Wait for a file; an earlier wait that is still on gives None."""
        previous, slot = self._receiver, _FileSlot()
        self._receiver = slot
        if previous is not None:
            previous.fill(None)
        try:
            await slot.filled.wait()
        finally:
            if self._receiver is slot:
                self._receiver = None
        return slot.content

    async def call_tool(self, server: str, method: str, params: str) -> str:
        """Call a tool through the attached client (0.4) and give its answer as JSON text."""
        attachment = self.attachment
        if attachment is None:
            raise RuntimeError("no client is attached to this process")
        return await attachment.session.call_tool(self.id, server, method, params)


class _FileSlot:
    def __init__(self) -> None:
        self.filled = Event()
        self.content: bytes | None = None

    def fill(self, content: bytes | None) -> None:
        self.content = content
        self.filled.set()


class _Sent:
    """What the sending methods return: nothing to do, but ``await`` lets other tasks run."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, None]:
        return checkpoint().__await__()


_SENT: Final = _Sent()


class InferletSession:
    """What a program sees of its process. The sending methods act at once and may be awaited, to let others run."""

    def __init__(self, process: SimulatedProcess) -> None:
        self._process = process

    @property
    def process_id(self) -> str:
        """The process's id."""
        return self._process.id

    @property
    def program(self) -> str:
        """The program, as ``name@version``."""
        return self._process.program.identifier

    @property
    def username(self) -> str:
        """Who started the process; always ``internal`` on 0.5."""
        return self._process.user

    @property
    def token_budget(self) -> int | None:
        """The budget that the process was launched with (0.4)."""
        return self._process.token_budget

    def send(self, value: object) -> _Sent:
        """Send a message: text as it is, anything else as JSON."""
        self._process.emit("message", value if isinstance(value, str) else json.dumps(value))
        return _SENT

    def stdout(self, text: str) -> _Sent:
        """Write to standard output: one event, cut at 1 MiB."""
        self._process.emit("stdout", _cut(text))
        return _SENT

    def stderr(self, text: str) -> _Sent:
        """Write to standard error: one event, cut at 1 MiB."""
        self._process.emit("stderr", _cut(text))
        return _SENT

    def print(self, *values: object, sep: str = " ", end: str = "\n") -> _Sent:
        """Print as the real Python runtime does: one event for each value, separator and line end."""
        for index, value in enumerate(values):
            if index:
                self._process.emit("stdout", sep)
            self._process.emit("stdout", _cut(str(value)))
        return self.stdout(end)

    def send_file(self, content: bytes, name: str | None = None) -> _Sent:
        """Send a file; an empty one never arrives. ``name`` exists on 0.5 only."""
        self._process.emit_file(content, name)
        return _SENT

    async def receive(self) -> str:
        """Wait for the next signal of the client.

        Cancellation: no signal is lost.
        """
        return await self._process.receive()

    async def receive_file(self) -> bytes | None:
        """Wait for a file of the client.

        Only a file that arrives *during* the wait is received, as in real engines; one that comes earlier is lost
        (``SimulatedEngine.files_lost``). So invite it immediately before: ``await session.send("ready")``, then
        ``data = await session.receive_file()``.
        """
        return await self._process.receive_file()

    async def call_mcp(self, server: str, method: str, params: object = None) -> Any:
        """Call a tool through the attached client (0.4 only), and give the decoded answer.

        Raises:
            ToolError: no such server, or the tool failed.
            RuntimeError: no client is attached.
        """
        return json.loads(await self._process.call_tool(server, method, json.dumps(params or {})))


def parse_input(text: str) -> Any:
    """Read the input of a launch as the real Python runtime does."""
    if not text:
        return {}
    try:
        return json.loads(text)
    except ValueError:
        return {"input": text}


def write_value(value: object) -> str:
    """Write what a program returned as the real Python runtime does."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, default=repr)


def describe_error(exc: BaseException) -> str:
    """Write an exception of a program as the real Python runtime does: the error, then the traceback."""
    inner = exc.__traceback__.tb_next if exc.__traceback__ is not None else None
    trace = "".join(traceback.format_exception(type(exc), exc, inner))
    return f"{type(exc).__name__}: {exc}\n{trace}"


def _cut(text: str) -> str:
    if len(text) * 4 <= STDOUT_BYTES:
        return text
    return text.encode("utf-8", "replace")[:STDOUT_BYTES].decode("utf-8", "replace")


def canonical_id(text: str) -> str | None:
    """Give a process id in the form that the engine uses; None where it is no id."""
    try:
        return str(UUID(text))
    except ValueError:
        return None
