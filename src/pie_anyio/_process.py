# SPDX-License-Identifier: Apache-2.0
"""``Process``: the handle of one running program."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import attrs
from anyio import EndOfStream
from anyio.lowlevel import checkpoint

from ._events import AnyEvent, Event, ReceivedFile
from ._exceptions import (
    ConnectionLost,
    InvalidRequest,
    OutputOverflow,
    PieError,
    ProcessFailed,
    ProcessLost,
    ProcessNotFound,
    ProcessTerminated,
)
from ._protocol.messages import SignalProcess, TerminateProcess
from ._session.refusals import engine_error
from ._session.registry import Ending, EndKind, Run
from ._session.router import terminal_event
from ._session.session import Session
from ._session.uploads import ContentLike, open_content, transfer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Process", "ProcessResult", "Timings"]

_TEXTS: Final = (Event.Stdout, Event.Stderr, Event.Message)
_RETURNED: Final = EndKind.RETURNED  # looked up once: on Python 3.11 that is a call, and each result asks
_TAIL_CHARS: Final = 2048
_decoder: Final = json.JSONDecoder()


@attrs.frozen(kw_only=True)
class Timings:
    """When things happened to a run, in seconds on the event loop's clock; None for what did not happen."""

    submitted: float
    started: float | None = None
    """The engine gave the process id."""
    first_output: float | None = None
    """The first event of any kind but the last one."""
    ended: float | None = None

    @property
    def total(self) -> float | None:
        """Seconds from submission to the end."""
        return None if self.ended is None else self.ended - self.submitted

    @property
    def to_first_output(self) -> float | None:
        """Seconds from submission to the first event."""
        return None if self.first_output is None else self.first_output - self.submitted


@attrs.frozen(kw_only=True)
class ProcessResult:
    """Everything that a process that returned has sent."""

    process_id: str
    value: Any
    """The decoded JSON value, or the text where it is not JSON; None for an empty return."""
    raw: str = attrs.field(repr=False)
    """The returned text as it came."""
    stdout: str = attrs.field(default="", repr=False)
    stderr: str = attrs.field(default="", repr=False)
    messages: list[str] = attrs.field(factory=list[str], repr=False)
    files: list[ReceivedFile] = attrs.field(factory=list[ReceivedFile], repr=False)
    timings: Timings = attrs.field(repr=False)


def decode_value(text: str) -> Any:
    """Decode a returned text: JSON where it is JSON, else the text itself; None for an empty one."""
    if not text:
        return None
    plain = text.strip(" \t\n\r")  # what JSON allows around a value
    try:
        value, end = _decoder.raw_decode(plain)  # loads() takes four times as long
    except (ValueError, RecursionError):
        return text
    return value if end == len(plain) else text


def timings_of(run: Run) -> Timings:
    """Give the timings of a run as they stand."""
    return Timings(
        submitted=run.submitted_at,
        started=run.started_at,
        first_output=run.first_output_at,
        ended=run.ended_at,
    )


def ending_error(run: Run, ending: Ending, **where: Any) -> PieError:
    """Make the exception for a run that ended without a value."""
    name = f"process {run.process_id} ({run.program})" if run.process_id else f"launch of {run.program}"
    about: dict[str, Any] = {
        "process_id": run.process_id or None,
        "program": run.program,
        "output_tail": ending.tail,
    }
    about |= where
    said = str(about["output_tail"])
    tail = f"\nlast output: {said[-500:]}" if said.strip() else ""
    if ending.kind is EndKind.TERMINATED:
        by_us = run.released or run.terminating
        who = "this client" if by_us else "somebody else"
        return ProcessTerminated(f"{name} was terminated by {who}{tail}", by_us=by_us, **about)
    if ending.kind is EndKind.LOST:
        # An error of the run's own names the run already; beside it, only a failed launch may not have been issued.
        why = (isinstance(ending.error, ProcessLost) and ending.text) or ending.error
        issued = getattr(ending.error, "issued", None) is not False
        return ProcessLost(f"{name} is lost: {why}{tail}", issued=issued, **about)
    if ending.kind is EndKind.WITHDRAWN:
        why = ending.error or "it was withdrawn"
        return ProcessLost(f"{name} never left this machine: {why}", issued=False, **about)
    return ProcessFailed(f"{name} failed: {ending.text}{tail}", detail=ending.text, **about)


class Process:
    """A process on the engine: its events, and what can be done to it.

    Handles come from ``launch_process`` and ``attach_process``; they are not made directly. A process may be used by
    several tasks, but its events go to one reader at a time.
    """

    __slots__ = ("__weakref__", "_asked", "_collected", "_output", "_run", "_session", "_tail")

    def __init__(self, session: Session, run: Run) -> None:
        self._session = session
        self._run = run
        self._asked = False
        self._collected = 0
        self._tail = ""
        self._output: list[str] | None = None

    def __repr__(self) -> str:
        ended = self._run.ended.done
        return f"<Process {self.process_id} {self._run.program} {'ended' if ended else 'running'}>"

    # --- facts -----------------------------------------------------------------------------------------------------

    @property
    def process_id(self) -> str:
        """The engine's id, a lower-case hyphenated UUID; ``attach_process`` takes it."""
        return self._run.process_id

    @property
    def program(self) -> str:
        """What was launched: ``name@version``."""
        return self._run.program

    @property
    def output(self) -> list[str]:
        """What ``result`` has collected of stdout and messages, as the official client does; of too much, the end."""
        if self._output is None:
            self._output = []
        return self._output

    @property
    def ended(self) -> bool:
        """Whether the end of the process, or of the connection to it, is known."""
        return self._run.ended.done

    @property
    def timings(self) -> Timings:
        """When things happened, as far as they did."""
        return timings_of(self._run)

    @property
    def return_value(self) -> Any:
        """The decoded value of a process that has returned.

        Raises:
            ProcessError: it ended without a value.
            InvalidRequest: it has not ended yet; await ``result()`` instead.
        """
        ending = self._run.ending
        if ending is None:
            msg = f"process {self.process_id} has not ended yet; await process.result() instead"
            raise InvalidRequest(msg)
        return self._value(ending)

    def _value(self, ending: Ending) -> Any:
        if ending.kind is _RETURNED:
            return decode_value(ending.text)
        self._raise_if_lost(ending)
        raise ending_error(self._run, ending, output_tail=self._tail or ending.tail)

    def _raise_if_lost(self, ending: Ending) -> None:
        if isinstance(ending.error, ConnectionLost):
            raise ending.error.with_traceback(None)

    # --- events ----------------------------------------------------------------------------------------------------

    async def recv(self) -> AnyEvent:
        """Receive the next event.

        The event is a pair of kind and value, and an instance of ``Stdout``, ``Stderr``, ``Message``, ``File``,
        ``Return``, ``Error`` or ``Gap``. ``Return`` or ``Error`` is the last one.

        Raises:
            anyio.EndOfStream: the last event was received before.
            ConnectionLost: the connection went away before the process ended.
            ProcessLost: the engine lost sight of the process; how it ended is unknown.
            OutputOverflow: output was dropped here, since too much was unread; the events after it still come.
            anyio.BusyResourceError: another task is receiving.

        Cancellation: loses no event; receive again.
        """
        buffer = self._run.buffer
        if buffer is None:
            buffer = self._session.registry.open_buffer(self._run)
            if buffer is None:
                return await self._recv_end()
        return buffer.take() or await buffer.get()

    async def _recv_end(self) -> AnyEvent:
        """Give the terminal event, which is all that there is of a process that has printed nothing, or unheard."""
        run = self._run
        if run.told:
            await checkpoint()
            raise EndOfStream
        ending = await run.ended.wait()
        if run.told:
            raise EndOfStream
        if ending.error is not None:
            raise ending.error.with_traceback(None)
        run.told = True
        return terminal_event(ending.kind, ending.text)

    def __aiter__(self) -> AsyncIterator[AnyEvent]:
        return self

    async def __anext__(self) -> AnyEvent:
        """Give the next event; the iteration ends after the terminal one."""
        try:
            return await self.recv()
        except EndOfStream:
            raise StopAsyncIteration from None

    async def wait(self) -> None:
        """Wait until the process has ended, in whatever way. Needs nobody to read its events.

        Raises:
            ConnectionLost: the connection went away before the process ended.

        Cancellation: has no effect on the process.
        """
        self._raise_if_lost(await self._run.ended.wait())

    async def result(self) -> Any:
        """Read the process to its end and give what it returned.

        The value is decoded JSON, or the text where it is not JSON, or None where the program returned nothing.
        Stdout and messages on the way are collected in :attr:`output`; output that was dropped, since nobody read it
        before, does not matter to the result.

        Raises:
            ProcessFailed: the program raised, or the engine failed it; ``output_tail`` has the last output.
            ProcessTerminated: it was terminated.
            ProcessLost: the engine lost sight of it.
            ConnectionLost: the connection went away before the process ended.

        Cancellation: has no effect on the process; call again.
        """
        run = self._run
        buffer = run.buffer
        if buffer is None:
            buffer = self._session.registry.open_buffer(run)
        while buffer is not None:
            try:
                kind, value = buffer.take() or await buffer.get()
            except EndOfStream:
                break
            except OutputOverflow:
                continue
            if kind in _TEXTS:
                self._keep(kind, str(value))
            elif kind is Event.Return or kind is Event.Error:
                break
        # An end that is known costs no turn of the loop the first time, since launching took one; asked for again and
        # again, it must not starve the others.
        ending = None if self._asked else run.ended.value
        self._asked = True
        ending = ending or await run.ended.wait()
        run.told = run.told or ending.error is None  # an error is raised as often as one asks
        return self._value(ending)

    def _keep(self, kind: Event, text: str) -> None:
        """Collect one text; beyond what an unread process may hold, the oldest half makes way."""
        if kind is not Event.Message:
            self._tail = (self._tail + text[-_TAIL_CHARS:])[-_TAIL_CHARS:]
        if kind is Event.Stderr:
            return
        self.output.append(text)
        self._collected += len(text)
        if self._collected > self._session.options.limits.process_buffer_bytes and len(self.output) > 1:
            del self.output[: len(self.output) // 2]
            self._collected = sum(map(len, self.output))

    async def collect(self) -> ProcessResult:
        """Read the process to its end and give everything that it sent.

        Raises:
            ProcessFailed, ProcessTerminated, ConnectionLost: as :meth:`result`; ``output_tail`` has the last output.

        Cancellation: has no effect on the process; what was read is lost.
        """
        texts: dict[str, list[str]] = {"stdout": [], "stderr": [], "message": []}
        files: list[ReceivedFile] = []
        async for event in self:
            if event.kind is Event.File:
                files.append(event.value)
            elif event.kind in texts:
                texts[event.kind].append(str(event.value))
        ending = await self._run.ended.wait()
        stdout, stderr = "".join(texts["stdout"]), "".join(texts["stderr"])
        if ending.kind is not EndKind.RETURNED and not isinstance(ending.error, ConnectionLost):
            raise ending_error(self._run, ending, output_tail=(stdout + stderr)[-_TAIL_CHARS:])
        return ProcessResult(
            process_id=self.process_id,
            value=self._value(ending),
            raw=ending.text,
            stdout=stdout,
            stderr=stderr,
            messages=texts["message"],
            files=files,
            timings=self.timings,
        )

    # --- actions ---------------------------------------------------------------------------------------------------

    async def signal(self, message: str) -> None:
        """Send a string to the process, which reads it with ``session.receive()``; sent before that, it is kept.

        No engine acknowledges a signal. Sending to a process that has ended does nothing.

        Raises:
            ConnectionLost: there is no connection any more.
            InvalidRequest: the message is not a string that can be sent.

        Cancellation: either nothing was sent, or all of it will be.
        """
        await send_signal(self._session, self.process_id, message, ended=self.ended)

    async def transfer_file(self, file_bytes: ContentLike) -> None:
        """Send a file to the process: bytes, or the path of a file, which is read piece by piece.

        No engine acknowledges a file, and it is dropped unless the program is waiting in ``session.receive_file()``
        when the last piece arrives: have the program announce that it is ready.

        Raises:
            InvalidRequest: the file cannot be read.
            TransferError: the file changed while it was being sent.
            ConnectionLost: there is no connection any more.

        Cancellation: a file that was sent in part is made invalid; the process does not receive it.
        """
        content = await open_content(file_bytes)
        await (
            self._session.ready()
        )  # a process that is over because there is no connection must not look served
        if not self.ended:
            await transfer(self._session, self.process_id, content)

    async def terminate(self) -> None:
        """Ask the engine to end the process. Its ``Error`` event follows, with the text ``Signal``. Idempotent.

        Raises:
            ConnectionLost: there is no connection any more.

        Cancellation: the request may have been sent; repeat it.
        """
        try:
            await terminate_by_id(self._session, self.process_id)
        except ProcessNotFound:
            pass  # it has ended already: that is what was asked for

    def detach(self) -> str:
        """Leave the process to itself: leaving its block will not end it. Give its id.

        On 0.4 it goes on when the connection ends. An engine of 0.5 ends it with the connection.
        """
        self._run.detached = True
        self._run.stop_pausing()
        return self.process_id

    async def aclose(self) -> None:
        """End the process if it is still running, and wait for the engine to confirm it. Idempotent.

        What does not confirm in time (``terminate_grace``) is on record in ``client.receipt.unconfirmed``.

        Cancellation: is held up for ``terminate_grace`` at the most.
        """
        await end_run(self._session, self._run)


async def end_run(session: Session, run: Run) -> None:
    """End a run whose owner leaves, unless it was detached or has ended."""
    if not run.ended.done and not run.detached:
        session.runs.release(run)
        await session.runs.confirm(run, session.runs.grace_deadline())


async def send_signal(session: Session, process_id: str, message: str, *, ended: bool = False) -> None:
    """Queue a signal."""
    if not isinstance(message, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"signal: the message must be a string, not {type(message).__name__}; json.dumps() may help"  # type: ignore[unreachable]
        raise InvalidRequest(msg)
    await session.ready()
    if not ended:
        await session.notify(SignalProcess(process_id, message))


async def terminate_by_id(session: Session, process_id: str) -> None:
    """Have the engine end a process, ours or not."""
    await session.ready()
    run = session.registry.by_id.get(process_id)
    if run is not None:
        run.terminating = True
        run.stop_pausing()  # the answer could not be read otherwise
    ok, result = await session.request(TerminateProcess(process_id), urgent=True)
    if not ok:
        raise engine_error("terminate_process", result, about=process_id)
