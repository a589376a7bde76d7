# SPDX-License-Identifier: Apache-2.0
"""What the messages of an engine do to the requests and processes of one connection, and what the shell hears of it."""

from __future__ import annotations

from typing import Any, Final

from .._events import Event, File, Gap, Message, Stderr, Stdout
from .._types import Generation, Limits
from . import codec, messages
from . import events as core
from .auth import read_login_answer
from .outbox import Lane, Outbox
from .processes import Early, ProcessRecord, ProcessTable
from .requests import Pending, RequestTable
from .state import (
    CONNECTION,
    PROCESS,
    REQUEST,
    ConnectionState,
    ConnectionTrigger,
    ProcessState,
    ProcessTrigger,
    RequestState,
    RequestTrigger,
    advance,
)
from .straight import HEAD
from .transfer import ChunkRefused, Downloads

_OUTPUT: Final[dict[str, tuple[Any, Event]]] = {
    "stdout": (Stdout, Event.Stdout),
    "stderr": (Stderr, Event.Stderr),
    "message": (Message, Event.Message),
}
# Python 3.11 looks a member of an enum up with a call, each time: those that each message needs are at hand.
_ABANDONED: Final = RequestState.ABANDONED
_REPLY: Final = RequestTrigger.REPLY
_RETURN: Final = ProcessTrigger.RETURN
_ZOMBIE: Final = ProcessState.ZOMBIE
_new = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


class Inbound:
    """The requests, processes and files of one connection, and how messages change them.

    ``ClientProtocol`` adds what goes the other way, and the connection itself.
    """

    def __init__(self, limits: Limits, generation: Generation | None) -> None:
        self.limits: Limits = limits
        self.state: ConnectionState = ConnectionState.CONNECTING
        self.generation = generation
        self.ignored: int = 0
        """Messages that were dropped: damaged, of unknown type, or answers that nobody waits for."""
        self._outbox = Outbox()
        self._requests = RequestTable()
        self._processes = ProcessTable(self.limits)
        self._downloads = Downloads(self.limits)
        self._events: list[core.CoreEvent] = []
        self._close_sent = False

    # --- messages --------------------------------------------------------------------------------------------------

    def _receive_message(self, payload: bytes | memoryview) -> None:
        """Decode a message, one that is damaged as far as it goes."""
        try:
            fields = codec.decode_engine_fields(payload)
            kind = fields.get("type")
            if kind == "process_event":
                self._receive_event(codec.read_process_event(fields), len(payload))
            elif kind == "response":
                self._receive_answer(codec.read_response(fields))
            elif kind == "file":
                self._receive_chunk(codec.read_file_chunk(fields), len(payload))
            elif kind == "mcp_request":
                self._events.append(core.ToolRequested(codec.read_mcp_request(fields)))
            else:
                self.ignored += 1
        except codec.DecodeError as exc:
            self._receive_damaged(exc)

    def _receive_damaged(self, exc: codec.DecodeError) -> None:
        """Fail what a damaged message belonged to, as far as it can be told, and go on."""
        self.ignored += 1
        fields = exc.fields
        corr_id = fields.get("corr_id")
        if fields.get("type") == "response" and type(corr_id) is int:
            pending = self._requests.get(corr_id)
            if pending is not None:
                pending.advance(_REPLY)
                self._events.append(core.ReplyDamaged(pending.owner, str(exc)))
                self._settle(pending)
        elif fields.get("type") == "process_event" and fields.get("event") in ("return", "error"):
            process_id = fields.get("process_id")
            record = self._processes.live.get(process_id) if type(process_id) is str else None
            if record is not None:
                self._end_process(record, ProcessTrigger.GONE, f"its last event was damaged: {exc}")

    # --- answers ---------------------------------------------------------------------------------------------------

    def _receive_answer(self, answer: codec.Answer) -> None:
        corr_id, ok, result = answer
        pending = self._requests.get(corr_id)
        if pending is None:
            self.ignored += 1
            return
        abandoned = pending.state is _ABANDONED
        pending.state = advance(REQUEST, pending.state, _REPLY)
        if ok and pending.request.claims_process:
            self._start_process(pending, result, abandoned)
        else:
            self._report_answer(pending, ok, result, abandoned)
        self._settle(pending)

    def _report_answer(self, pending: Pending, ok: bool, result: str, abandoned: bool) -> None:
        request = pending.request
        if request.allowed_unauthenticated:
            self._read_login(request.type, ok, result)
        if isinstance(request, messages.TerminateProcess) and not ok and pending.owner is None:
            self._note_gone(request.process_id, result)
        elif not abandoned or request.claims_process:
            self._events.append(core.ReplyReceived(pending.owner, ok, result))

    def _settle(self, pending: Pending) -> None:
        self._requests.settle(pending, self._outbox)
        self._tidy_waiting_room()

    def _tidy_waiting_room(self) -> None:
        if not self._requests.claiming:
            self._processes.close_waiting_room()

    def _read_login(self, kind: str, ok: bool, result: str) -> None:
        answer = read_login_answer(kind, ok, result, self.generation)
        self.generation = answer.generation
        if answer.authenticated:
            self.state = advance(CONNECTION, self.state, ConnectionTrigger.AUTHENTICATED)

    def _start_process(self, pending: Pending, result: str, abandoned: bool) -> None:
        request = pending.request
        process_id = request.process_id if isinstance(request, messages.AttachProcess) else result
        if not process_id or process_id in self._processes.live:
            detail = f"the engine gave the process id {process_id!r}, which is not a new one"
            self._events.append(core.ReplyDamaged(pending.owner, detail))
            return
        record = ProcessRecord(process_id, pending.owner, pending.quiet)
        self._processes.live[process_id] = record
        if abandoned:
            # Whoever asked is gone. A launch is ended; what was only attached to belongs to somebody else.
            if isinstance(request, messages.AttachProcess):
                record.advance(ProcessTrigger.DETACH)
            else:
                self.release(process_id)
        self._events.append(_new(core.ProcessStarted, (pending.owner, process_id, abandoned)))
        for early in self._processes.claim_orphans(process_id):
            self._replay(process_id, early)

    def _replay(self, process_id: str, early: Early) -> None:
        if isinstance(early, messages.FileChunk):
            self._receive_chunk(early, 0)
        elif process_id in self._processes.live:
            kind, value = early
            self._receive_event((process_id, kind, value), len(value))

    def _note_gone(self, process_id: str, result: str) -> None:
        """The engine refused one of our own terminates, mostly because the process had ended before."""
        if not result.startswith(messages.GONE):
            return  # it may run on: whoever waits for its end is not told otherwise
        record = self._processes.live.get(process_id)
        if record is not None:
            self._end_process(record, ProcessTrigger.GONE, None)

    # --- processes -------------------------------------------------------------------------------------------------

    def _receive_event(self, event: codec.EventFields, size: int, usual: bytes = b"") -> None:
        """Take one event of a process; ``usual`` is its message where that has the usual form."""
        process_id, kind, value = event
        record = self._processes.live.get(process_id)
        if record is None:
            self._receive_orphan(process_id, (kind, value), size)
        elif kind == "return":
            self._end_process(record, _RETURN, value)
        elif kind == "error":
            self._end_process(record, ProcessTrigger.ERROR, value)
        elif (output := _OUTPUT.get(kind)) is not None:
            self._deliver(record, output, value, size, usual)
        else:
            self.ignored += 1

    def _deliver(
        self, record: ProcessRecord, output: tuple[Any, Event], value: str, size: int, usual: bytes
    ) -> None:
        if record.state is _ZOMBIE:
            return
        if record.quiet:
            self._note_output(record)
            if output[1] is not Event.Message:
                record.keep_tail(value)
            return
        if usual:
            self._processes.learn(record, usual[:HEAD], output)
        event = _new(output[0], (output[1], value))
        self._events.append(_new(core.ProcessOutput, (record.owner, event, size)))

    def _note_output(self, record: ProcessRecord) -> None:
        if not record.seen_output:
            record.seen_output = True
            self._events.append(core.FirstOutput(record.owner))

    def _receive_orphan(self, process_id: str, early: Early, size: int) -> None:
        if self._requests.claiming:
            self._processes.keep_orphan(process_id, early, size)
        else:
            self._processes.dropped_orphans += 1

    def _end_process(self, record: ProcessRecord, trigger: ProcessTrigger, text: str | None) -> None:
        state = record.state = advance(PROCESS, record.state, trigger)
        self._processes.finish(record)
        self._downloads.forget(record.process_id)
        ended = (record.owner, record.process_id, state, text, record.tail)
        self._events.append(_new(core.ProcessEnded, ended))

    def _receive_chunk(self, chunk: messages.FileChunk, size: int) -> None:
        record = self._processes.live.get(chunk.process_id)
        if record is None:
            self._receive_orphan(chunk.process_id, chunk, size)
            return
        if record.state is _ZOMBIE:
            return
        if record.quiet:
            self._note_output(record)
            return
        try:
            content = self._downloads.add(chunk)
        except ChunkRefused as exc:
            self.ignored += 1
            # Once a chunk was refused, so is the rest, for want of a beginning: the last one stands for all.
            if chunk.chunk_index >= chunk.total_chunks - 1:
                gap = Gap(Event.Gap, f"a file was lost: {exc}")
                self._events.append(core.ProcessOutput(record.owner, gap, 0))
            return
        if content is not None:
            event = File(Event.File, content)
            self._events.append(core.ProcessOutput(record.owner, event, len(content)))

    def release(self, process_id: str) -> None:
        """End a process whose owner leaves: one terminate, ahead of everything that is queued. Idempotent."""
        record = self._processes.live.get(process_id)
        if record is None or record.state is _ZOMBIE:
            return
        record.advance(ProcessTrigger.RELEASE)
        self._processes.ignore(record)
        self._downloads.forget(process_id)
        if not self._close_sent:
            self._terminate(process_id)

    def _terminate(self, process_id: str) -> None:
        corr_id = self._requests.next_id()
        request = messages.TerminateProcess(process_id)
        pending = Pending(Lane.CONTROL, codec.encode_request(request, corr_id), corr_id, request, None)
        self._outbox.add(pending)
        self._requests.add(pending)
