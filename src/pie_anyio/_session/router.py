# SPDX-License-Identifier: Apache-2.0
"""From core events to slots and buffers: synchronous, total, never waiting, never raising for what an engine does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol, cast

from anyio import current_time

from .._events import AnyEvent, Error, Event, Gap, Return
from .._exceptions import ConnectionLost, PieError, ProcessLost, RemoteProtocolError
from .._flow.slots import ReplySlot
from .._protocol import events as core
from .._protocol.messages import McpRequest
from .._protocol.state import ProcessState
from .refusals import engine_error
from .registry import Ending, EndKind, Registry, Run

logger: Final = logging.getLogger("pie_anyio")

_KINDS: Final = {
    ProcessState.RETURNED: EndKind.RETURNED,
    ProcessState.FAILED: EndKind.FAILED,
    ProcessState.TERMINATED: EndKind.TERMINATED,
    ProcessState.LOST: EndKind.LOST,
}
# Looked up once: on Python 3.11 that is a call, and each run ends.
_FAILED: Final = EndKind.FAILED
_LOST: Final = EndKind.LOST
SIGNAL: Final = "Signal"
"""The error text of a process that was terminated, in both generations."""


class Recovery(Protocol):
    """Decides what a lost connection leaves open, because it can be continued on the next one."""

    def takes_over(self, reason: PieError) -> bool:
        """Tell whether live runs are kept."""
        ...

    def resubmits(self, lost: core.RequestLost) -> bool:
        """Tell whether a launch or attach that never left is kept, to be sent on the next connection."""
        ...


class Router:
    """Delivers what the core reports. One per connection."""

    def __init__(
        self,
        registry: Registry,
        *,
        generation: int,
        handshake: ReplySlot[None],
        on_notice: Callable[[str], None],
        on_tool: Callable[[McpRequest], None],
        recovery: Recovery | None = None,
    ) -> None:
        self._registry = registry
        self._generation = generation
        self._handshake = handshake
        self._on_notice = on_notice
        self._on_tool = on_tool
        self._recovery = recovery
        self.ended: ReplySlot[PieError] = ReplySlot()
        self._now = 0.0

    def route_all(self, events: list[core.CoreEvent]) -> None:
        """Route the events of one read. Consumers are woken at most once each, when this read is done."""
        if events:
            self._now = current_time()  # one time for one read: asking costs more than routing does
        for event in events:
            # The owners that these three name are the runs that were submitted; a cast would be a call for each.
            if type(event) is core.ProcessOutput:
                run: Run = event.owner  # type: ignore[assignment]
                if run.first_output_at is None:
                    run.first_output_at = self._now
                buffer = run.buffer
                if buffer is None:
                    buffer = self._registry.open_buffer(run)
                if buffer is not None:
                    buffer.put(event.event)
            elif type(event) is core.ProcessStarted:
                self._start_process(event.owner, event)  # type: ignore[arg-type]
            elif type(event) is core.ProcessEnded:
                self._end_process(event.owner, event)  # type: ignore[arg-type]
            else:
                self._route(event)

    def _route(self, event: core.CoreEvent) -> None:
        match event:
            case core.FirstOutput():
                cast("Run", event.owner).first_output_at = self._now
            case core.ReplyReceived() | core.ReplyDamaged() | core.RequestLost():
                self._answer(event)
            case core.NoticeReceived():
                self._on_notice(event.text)
            case core.ToolRequested():
                self._on_tool(event.request)
            case core.HandshakeCompleted():
                self._handshake.set_result(None)
            case core.ConnectionEnded():
                self._end_connection(event.reason)
            case _:
                pass  # a pong: that bytes arrived is all there is to know

    def _start_process(self, run: Run, event: core.ProcessStarted) -> None:
        if run.reattaching is not None:
            self._continue_process(run, run.reattaching)
            return
        run.started_at = self._now
        self._registry.start(run, event.process_id)

    def _continue_process(self, run: Run, answer: ReplySlot[tuple[bool, str]]) -> None:
        """Note, ahead of what comes on this connection, that some of what came before may be missing."""
        run.reattaching = None
        buffer = self._registry.open_buffer(run)
        if buffer is not None:
            buffer.put(Gap(Event.Gap, "the connection was lost and restored: output may be missing here"))
        answer.set_result((True, ""))

    def _end_process(self, run: Run, event: core.ProcessEnded) -> None:
        kind = _KINDS[event.state]
        text = event.text or ""
        if kind is _FAILED and (text == SIGNAL or (run.terminating and text in ("cancelled", ""))):
            kind = EndKind.TERMINATED
        if kind is _LOST:
            lose_run(self._registry, run, text or "the engine no longer knows the process", event.tail)
            return
        run.ended_at = self._now
        if run.buffer is not None:
            run.buffer.finish(terminal_event(kind, text))
        self._registry.end(run, Ending(kind, text, event.tail))

    def _answer(self, event: core.ReplyReceived | core.ReplyDamaged | core.RequestLost) -> None:
        match event:
            case core.ReplyReceived():
                self._reply(event)
            case core.ReplyDamaged():
                self._fail_owner(
                    event.owner, RemoteProtocolError(f"the engine's answer is damaged: {event.detail}")
                )
            case _:
                self._lose(event)

    def _reply(self, event: core.ReplyReceived) -> None:
        owner = event.owner
        if isinstance(owner, Run):
            # Only refusals come this way: a launch that succeeds is reported as ProcessStarted.
            request = "attach_process" if owner.attached else "launch_process"
            if owner.reattaching is not None:
                owner.reattaching.set_result((False, event.result))
                owner.reattaching = None
                return
            error = engine_error(request, event.result, about=owner.program)
            self._fail_owner(owner, error)
        elif isinstance(owner, ReplySlot):
            cast("ReplySlot[tuple[bool, str]]", owner).set_result((event.ok, event.result))

    def _lose(self, event: core.RequestLost) -> None:
        if self._recovery is not None and isinstance(event.owner, Run) and self._recovery.resubmits(event):
            return
        if event.owner is not None:
            hint = (
                "the engine may have acted on it"
                if event.issued
                else "nothing was sent, so it may be repeated"
            )
            text = f"the connection was lost before the answer came: {event.reason}; {hint}"
            error = ConnectionLost(text, issued=event.issued, generation=self._generation)
            error.__cause__ = event.reason
            self._fail_owner(event.owner, error)

    def _fail_owner(self, owner: object, error: PieError) -> None:
        """Give an error to whoever waits for an answer."""
        if isinstance(owner, Run) and owner.reattaching is not None:
            # The run itself is as it was: whoever tries to continue it decides what becomes of it.
            owner.reattaching.set_result((False, str(error)))
            owner.reattaching = None
        elif isinstance(owner, Run):
            owner.ended_at = self._now  # it never started, so it has no buffer either
            lost = isinstance(error, (ConnectionLost, RemoteProtocolError))
            issued = getattr(error, "issued", True)
            kind = EndKind.REFUSED if not lost else EndKind.LOST if issued else EndKind.WITHDRAWN
            owner.started.set_error(error)
            self._registry.end(owner, Ending(kind, getattr(error, "detail", ""), error=error))
        elif isinstance(owner, ReplySlot):
            owner.set_error(error)

    def _end_connection(self, reason: PieError) -> None:
        """Give everything its final outcome, synchronously, unless it is to go on; the first reason wins."""
        self._handshake.set_error(reason)
        if self._recovery is None or not self._recovery.takes_over(reason):
            end_runs(self._registry, reason, self._generation)
        self.ended.set_result(reason)


def end_runs(registry: Registry, reason: PieError, generation: int) -> None:
    """Give every live run its final outcome: there is no connection any more, and none will come."""
    now = current_time()
    for run in list(registry.by_id.values()):
        error = lost_error(reason, f"process {run.process_id}", generation)
        run.ended_at = now
        if run.buffer is not None:
            run.buffer.fail(error)
        kind = EndKind.DETACHED if run.detached else EndKind.LOST
        registry.end(run, Ending(kind, str(reason), error=error))


def lose_run(registry: Registry, run: Run, why: str, tail: str = "") -> None:
    """Give up one run that nobody can say more about."""
    # Lost is not failed: whoever reads the events gets an exception and not an event of the program's.
    text = f"process {run.process_id} ({run.program}) is lost: {why}"
    error = ProcessLost(text, process_id=run.process_id, program=run.program)
    run.ended_at = current_time()
    if run.buffer is not None:
        run.buffer.fail(error)
    registry.end(run, Ending(EndKind.LOST, why, tail, error))


def terminal_event(kind: EndKind, text: str) -> AnyEvent:
    """Give the last event of a process."""
    return Return(Event.Return, text) if kind is EndKind.RETURNED else Error(Event.Error, text)


def lost_error(reason: PieError, what: str, generation: int) -> ConnectionLost:
    """Make one error instance for one waiter: a shared one would collect the tracebacks of all."""
    error = ConnectionLost(f"{what}: {reason}", issued=True, generation=generation)
    error.__cause__ = reason
    return error
