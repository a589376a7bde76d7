# SPDX-License-Identifier: Apache-2.0
"""``ClientProtocol``: one connection's lifetime, from the first byte of the handshake to the last event.

The contract with the shell:

* after any call, send what ``data_to_send`` gives while ``wants_write`` is true;
* after ``receive_data``, drain ``events``;
* ``receive_data(None)`` means end of stream; faults of the peer never raise, they end the connection with
  ``ConnectionEnded`` as the last event; misuse raises ``LocalProtocolError`` at the call.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final, cast

from .._events import Event, File, Gap, Message, Stderr, Stdout
from .._exceptions import (
    ConnectError,
    ConnectionClosed,
    ConnectionLost,
    InvalidRequest,
    LocalProtocolError,
    PieError,
)
from .._types import CAPABILITIES, CorrelationId, Generation, Limits
from . import codec, messages
from . import events as core
from . import websocket as wire
from .auth import read_login_answer
from .masking import Mask, mask
from .outbox import Entry, Lane, Outbox, Payload
from .processes import ProcessRecord, ProcessTable
from .requests import Abandoned, Pending, RequestTable
from .state import (
    CONNECTION,
    ConnectionState,
    ConnectionTrigger,
    ProcessState,
    ProcessTrigger,
    RequestState,
    RequestTrigger,
    advance,
)
from .straight import read_output
from .transfer import ChunkRefused, Downloads

_OUTPUT: Final[dict[str, tuple[Any, Event]]] = {
    "stdout": (Stdout, Event.Stdout),
    "stderr": (Stderr, Event.Stderr),
    "message": (Message, Event.Message),
}
_LOGINS: Final = frozenset(["auth_identify", "auth_prove", "auth_by_token"])
_new = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


class ClientProtocol:
    """The client's side of one connection, without I/O."""

    def __init__(
        self,
        *,
        host: str,
        target: str,
        headers: wire.Headers,
        entropy: wire.Entropy,
        limits: Limits | None = None,
        generation: Generation | None = None,
        mask: Mask = mask,
    ) -> None:
        self.limits: Limits = limits or Limits()
        self.state: ConnectionState = ConnectionState.CONNECTING
        self.generation = generation
        self.close_reason: PieError | None = None
        self.last_notice: str = ""
        self.ignored: int = 0
        """Messages that were dropped: damaged, of unknown type, or answers that nobody waits for."""
        self._ws = wire.WebSocket(
            client=True,
            message_bytes=self.limits.message_bytes,
            header_bytes=self.limits.header_bytes,
            entropy=entropy,
            mask=mask,
        )
        self._raw = bytearray(self._ws.request_upgrade(host, target, headers))
        self._outbox = Outbox()
        self._requests = RequestTable()
        self._processes = ProcessTable(self.limits)
        self._downloads = Downloads(self.limits)
        self._events: list[core.CoreEvent] = []
        self._close: tuple[int, str] | None = None
        self._close_sent = False
        self._ended = False

    # --- towards the stream ----------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether requests of every kind may be sent."""
        return self.state is ConnectionState.OPEN

    @property
    def wants_write(self) -> bool:
        """Whether ``data_to_send`` would give something."""
        return bool(self._raw) or self._ws.has_replies or bool(self._outbox) or self._close is not None

    @property
    def outbound_bytes(self) -> int:
        """Bytes of messages that wait in the outbox."""
        return self._outbox.queued_bytes

    @property
    def bulk_bytes(self) -> int:
        """... of these, chunks of uploads and files."""
        return self._outbox.bulk_bytes

    def data_to_send(self, max_bytes: int = 65536) -> bytes:
        """Frame queued messages, at least one and about ``max_bytes``; from here on they count as issued."""
        # Answers to pings are taken here and not before: a peer that pings without reading gets one, not a queue.
        self._raw += self._ws.take_replies()
        # A single part is not copied by join(), and a chunk mostly goes out alone.
        parts: list[bytes] = [bytes(self._raw)] if self._raw else []
        size = len(self._raw)
        self._raw.clear()
        while size < max_bytes and self.state is not ConnectionState.CONNECTING:
            taken = self._outbox.take()
            if taken is None:
                break
            payload, entry = taken
            if entry.corr_id is not None and (pending := self._requests.get(entry.corr_id)) is not None:
                pending.advance(RequestTrigger.TAKEN)
            if isinstance(payload, codec.EncodedChunk):
                parts.append(self._ws.binary(payload.head, payload.data))
            else:
                parts.append(self._ws.binary(payload))
            size += len(payload)
        if self._close is not None and not self._outbox:
            parts.append(self._ws.close(*self._close))
            self._close = None
            self._close_sent = True
        return b"".join(parts)

    def receive_data(self, data: bytes | None) -> None:
        """Take bytes off the stream, or None for its end."""
        if self._ended:
            return
        items = self._ws.receive_eof() if data is None else self._ws.receive_data(data)
        self._receive_messages(items)
        if data is None:
            self._end(self._eof_reason(), ConnectionTrigger.ENDED)

    def events(self) -> list[core.CoreEvent]:
        """Take what has happened since the last call."""
        events, self._events = self._events, []
        return events

    # --- commands --------------------------------------------------------------------------------------------------

    def submit(
        self, request: messages.Request, owner: object = None, *, quiet: bool = False, urgent: bool = False
    ) -> CorrelationId:
        """Validate, encode, register and enqueue a request that will be answered.

        ``quiet`` drops the output of the process that a launch starts; ``urgent`` uses the control lane.

        Raises:
            LocalProtocolError: the connection does not take it in its present state.
            InvalidRequest: it cannot be encoded, or is larger than the engine takes.
        """
        self._check_may_send(request)
        corr_id = self._requests.next_id()
        lane = Lane.CONTROL if urgent or request.type in _LOGINS else Lane.REQUEST
        entry = self._enqueue(request, corr_id, lane)
        self._requests.add(Pending(request, corr_id, owner, quiet, [entry]))
        return corr_id

    def notify(self, request: messages.Request, *, lane: Lane = Lane.REQUEST) -> None:
        """Enqueue a message that is never answered: signals, file chunks, tool answers."""
        self._check_may_send(request)
        self._enqueue(request, None, lane)

    def begin_upload(self, owner: object) -> CorrelationId:
        """Register an upload; its chunks follow with :meth:`upload_chunk` and share one answer."""
        marker = messages.AddProgram("", "", False, 0, 0, b"")
        self._check_may_send(marker)
        corr_id = self._requests.next_id()
        self._requests.add(Pending(marker, corr_id, owner, False, []))
        return corr_id

    def upload_chunk(self, corr_id: CorrelationId, chunk: messages.AddProgram) -> bool:
        """Enqueue one chunk; False where the engine has answered already, which means: stop sending."""
        pending = self._requests.get(corr_id)
        if pending is None or pending.state is RequestState.ABANDONED:
            return False
        self._check_may_send(chunk)
        pending.request = chunk
        pending.entries = [entry for entry in pending.entries if entry.payload is not None]
        pending.entries.append(self._enqueue(chunk, corr_id, Lane.BULK))
        return True

    def abandon(self, corr_id: CorrelationId) -> Abandoned:
        """Give up a request on behalf of its caller; what a late answer starts is ended by the core itself."""
        pending = self._requests.get(corr_id)
        issued = pending is not None and pending.state is RequestState.ISSUED
        outcome = self._requests.abandon(corr_id, self._outbox)
        if pending is not None and issued and isinstance(pending.request, messages.AddProgram):
            self._reset_upload(pending.corr_id, pending.request)
        self._tidy_waiting_room()
        return outcome

    def release(self, process_id: str) -> None:
        """End a process whose owner leaves: one terminate, ahead of everything that is queued. Idempotent."""
        record = self._processes.live.get(process_id)
        if record is None or record.state is ProcessState.ZOMBIE:
            return
        record.advance(ProcessTrigger.RELEASE)
        self._processes.ignore(record)
        self._downloads.forget(process_id)
        if not self._close_sent:
            self._terminate(process_id)

    def detach(self, process_id: str) -> None:
        """Leave a process to itself; its events still reach its owner object."""
        record = self._processes.live.get(process_id)
        if record is not None:
            record.advance(ProcessTrigger.DETACH)

    def lose(self, process_id: str, why: str) -> None:
        """Give up a process that the engine will not report on any more."""
        record = self._processes.live.get(process_id)
        if record is not None:
            self._end_process(record, ProcessTrigger.GONE, why)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Take nothing new and send a close frame behind what is queued. Idempotent.

        Before the handshake is over there is nothing that a close frame could be sent on: it ends the connection.
        """
        before = self.state
        if before is ConnectionState.CONNECTING:
            self._end(ConnectionClosed("the connection was closed by this side"), ConnectionTrigger.CLOSE)
            return
        self.state = advance(CONNECTION, self.state, ConnectionTrigger.CLOSE)
        if before in (ConnectionState.AUTHENTICATING, ConnectionState.OPEN):
            self._close = (code, reason)

    def ping(self) -> None:
        """Queue a WebSocket ping, which even a busy engine answers at once."""
        if self.state in (ConnectionState.AUTHENTICATING, ConnectionState.OPEN):
            self._raw += self._ws.ping(b"pie-anyio")

    # --- sending ---------------------------------------------------------------------------------------------------

    def _check_may_send(self, request: messages.Request) -> None:
        if self.state is ConnectionState.OPEN:
            return
        if self.state is ConnectionState.AUTHENTICATING and request.allowed_unauthenticated:
            return
        if self.state is ConnectionState.AUTHENTICATING:
            msg = f"{request.type}: log in first; an engine silently drops requests before that"
            raise LocalProtocolError(msg)
        if (
            self.state is ConnectionState.CLOSING
            and request.type == "terminate_process"
            and not self._close_sent
        ):
            return
        msg = f"{request.type}: the connection is {self.state.name.lower()}"
        raise LocalProtocolError(msg)

    def _enqueue(self, request: messages.Request, corr_id: CorrelationId | None, lane: Lane) -> Entry:
        payload: Payload
        if isinstance(request, (messages.AddProgram, messages.TransferFile)):
            payload = codec.encode_chunk(request, corr_id)
        else:
            payload = codec.encode_request(request, corr_id)
        generation = self.generation or Generation.V04
        allowed = CAPABILITIES[generation].max_request_bytes
        if len(payload) > allowed:
            msg = (
                f"{request.type}: a message of {len(payload)} bytes; an engine of generation {generation} takes "
                f"at most {allowed}. Send large inputs as a file (transfer_file) instead"
            )
            raise InvalidRequest(msg)
        return self._outbox.add(lane, payload, corr_id)

    def _terminate(self, process_id: str) -> None:
        corr_id = self._requests.next_id()
        request = messages.TerminateProcess(process_id)
        entry = self._outbox.add(Lane.CONTROL, codec.encode_request(request, corr_id), corr_id)
        self._requests.add(Pending(request, corr_id, None, False, [entry]))

    def _reset_upload(self, corr_id: CorrelationId, chunk: messages.AddProgram) -> None:
        """Have the engine forget a half-sent upload: it is kept under its hash and would spoil the next one."""
        if self._close_sent:
            return
        wrong = messages.AddProgram(
            chunk.program_hash,
            chunk.manifest,
            chunk.force_overwrite,
            chunk.total_chunks,
            chunk.total_chunks,
            b"",
        )
        self._enqueue(wrong, corr_id, Lane.CONTROL)

    # --- receiving -------------------------------------------------------------------------------------------------

    def _receive_messages(self, items: list[wire.Item]) -> None:
        wanted, known, append = self._processes.wanted, self._processes.known, self._events.append
        for item in items:
            if type(item) is bytes:
                if (output := read_output(item, wanted, known)) is not None:
                    append(output)
                else:
                    self._receive_message(item)
            elif isinstance(item, memoryview):
                self._receive_message(item)
            else:
                self._receive_control(item)

    def _receive_message(self, payload: bytes | memoryview) -> None:
        """Decode a message, one that is damaged as far as it goes."""
        try:
            fields = codec.decode_engine_fields(payload)
            kind = fields.get("type")
            if kind == "process_event":
                self._receive_output(fields, len(payload))
            elif kind == "response":
                self._receive_response(codec.read_response(fields))
            elif kind == "file":
                self._receive_file(fields, len(payload))
            elif kind == "mcp_request":
                self._events.append(core.ToolRequested(codec.read_mcp_request(fields)))
            else:
                self.ignored += 1
        except codec.DecodeError as exc:
            self._receive_damaged(exc)

    def _receive_control(self, item: wire.Item) -> None:
        match item:
            case wire.TextReceived():
                self._receive_text(item.text)
            case wire.PongReceived():
                self._events.append(core.PongArrived())
            case wire.Upgraded():
                self.state = advance(CONNECTION, self.state, ConnectionTrigger.UPGRADED)
                self._events.append(core.HandshakeCompleted())
            case wire.UpgradeRefused():
                self._end(refusal_error(item), ConnectionTrigger.ERROR)
            case wire.CloseReceived():
                detail = f"code {item.code}, {item.reason}" if item.reason else f"code {item.code}"
                text = f"the connection was closed{self._because()} ({detail})"
                self._end(ConnectionClosed(text, code=item.code, reason=item.reason), ConnectionTrigger.ENDED)
            case wire.Broken():
                self._end(item.error, ConnectionTrigger.ERROR)
            case _:  # pragma: no cover - the remaining items belong to the engine's side
                pass

    def _receive_output(self, fields: codec.Fields, size: int) -> None:
        process_id, kind, value = fields.get("process_id"), fields.get("event"), fields.get("value")
        if type(process_id) is not str or type(kind) is not str or type(value) is not str:
            msg = "a process_event without a valid process_id, event or value"
            raise codec.DecodeError(msg, fields)
        record = self._processes.live.get(process_id)
        if record is None:
            self._receive_orphan(process_id, fields, size)
            return
        output = _OUTPUT.get(kind)
        if output is not None:
            self._deliver(record, output, value, size)
        elif kind == "return":
            self._end_process(record, ProcessTrigger.RETURN, value)
        elif kind == "error":
            self._end_process(record, ProcessTrigger.ERROR, value)
        else:
            self.ignored += 1

    def _deliver(self, record: ProcessRecord, output: tuple[Any, Event], value: str, size: int) -> None:
        if record.state is ProcessState.ZOMBIE:
            return
        if record.quiet:
            self._note_output(record)
            if output[1] is not Event.Message:
                record.keep_tail(value)
            return
        event = _new(output[0], (output[1], value))
        self._events.append(_new(core.ProcessOutput, (record.owner, event, size)))

    def _note_output(self, record: ProcessRecord) -> None:
        if not record.seen_output:
            record.seen_output = True
            self._events.append(core.FirstOutput(record.owner))

    def _receive_orphan(self, process_id: str, fields: codec.Fields, size: int) -> None:
        if self._requests.claiming:
            self._processes.keep_orphan(process_id, fields, size)
        else:
            self._processes.dropped_orphans += 1

    def _receive_response(self, response: messages.Response) -> None:
        pending = self._requests.get(response.corr_id)
        if pending is None:
            self.ignored += 1
            return
        abandoned = pending.state is RequestState.ABANDONED
        pending.advance(RequestTrigger.REPLY)
        kind = pending.request.type
        if kind in _LOGINS:
            self._read_login(kind, response)
        if pending.claims_process and response.ok:
            self._start_process(pending, response.result, abandoned)
        elif kind == "terminate_process" and not response.ok and pending.owner is None:
            self._note_gone(pending, response.result)
        elif not abandoned or pending.claims_process:
            self._events.append(core.ReplyReceived(pending.owner, response.ok, response.result))
        self._requests.settle(pending, self._outbox)
        self._tidy_waiting_room()

    def _read_login(self, kind: str, response: messages.Response) -> None:
        answer = read_login_answer(kind, response.ok, response.result, self.generation)
        self.generation = answer.generation
        if answer.authenticated:
            self.state = advance(CONNECTION, self.state, ConnectionTrigger.AUTHENTICATED)

    def _start_process(self, pending: Pending, result: str, abandoned: bool) -> None:
        attaching = isinstance(pending.request, messages.AttachProcess)
        process_id = (
            pending.request.process_id if isinstance(pending.request, messages.AttachProcess) else result
        )
        if not process_id or process_id in self._processes.live:
            detail = f"the engine gave the process id {process_id!r}, which is not a new one"
            self._events.append(core.ReplyDamaged(pending.owner, detail))
            return
        record = ProcessRecord(process_id, pending.owner, pending.quiet)
        self._processes.begin(record)
        if abandoned:
            # Whoever asked is gone. A launch is ended; what was only attached to belongs to somebody else.
            if attaching:
                record.advance(ProcessTrigger.DETACH)
            else:
                self.release(process_id)
        self._events.append(core.ProcessStarted(pending.owner, process_id, abandoned))
        for fields in self._processes.claim_orphans(process_id):
            self._replay(fields)

    def _replay(self, fields: codec.Fields) -> None:
        if fields.get("type") == "file":
            self._receive_file(fields, 0)
        elif fields.get("process_id") in self._processes.live:
            self._receive_output(fields, len(fields["value"]))

    def _note_gone(self, pending: Pending, result: str) -> None:
        """The engine refused one of our own terminates, mostly because the process had ended before."""
        if not result.startswith(messages.GONE):
            return  # it may run on: whoever waits for its end is not told otherwise
        request = pending.request
        assert isinstance(request, messages.TerminateProcess)
        record = self._processes.live.get(request.process_id)
        if record is not None:
            self._end_process(record, ProcessTrigger.GONE, None)

    def _end_process(self, record: ProcessRecord, trigger: ProcessTrigger, text: str | None) -> None:
        record.advance(trigger)
        self._processes.finish(record)
        self._downloads.forget(record.process_id)
        self._events.append(
            core.ProcessEnded(record.owner, record.process_id, record.state, text, record.tail)
        )

    def _receive_file(self, fields: codec.Fields, size: int) -> None:
        chunk = codec.read_file_chunk(fields)
        record = self._processes.live.get(chunk.process_id)
        if record is None:
            self._receive_orphan(chunk.process_id, fields, size)
            return
        if record.state is ProcessState.ZOMBIE:
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

    def _receive_text(self, text: str) -> None:
        """Read a text frame: 0.5 reports turns and errors that way; 0.4 never sends any."""
        try:
            # A long text is no notice, and may take sixty times its size when it is read.
            value = json.loads(text) if len(text) <= codec.NESTED_BYTES else None
        except (ValueError, RecursionError):
            value = None
        notice = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        if notice.get("type") == "error" and isinstance(notice.get("message"), str):
            self.last_notice = notice["message"][:500]
            self._events.append(core.NoticeReceived(self.last_notice))
        elif notice.get("type") != "turn_done":
            self.ignored += 1

    def _receive_damaged(self, exc: codec.DecodeError) -> None:
        """Fail what a damaged message belonged to, as far as it can be told, and go on."""
        self.ignored += 1
        fields = exc.fields
        corr_id = fields.get("corr_id")
        if fields.get("type") == "response" and type(corr_id) is int:
            pending = self._requests.get(corr_id)
            if pending is not None:
                pending.advance(RequestTrigger.REPLY)
                self._requests.settle(pending, self._outbox)
                self._events.append(core.ReplyDamaged(pending.owner, str(exc)))
        elif fields.get("type") == "process_event" and fields.get("event") in ("return", "error"):
            process_id = fields.get("process_id")
            record = self._processes.live.get(process_id) if type(process_id) is str else None
            if record is not None:
                self._end_process(record, ProcessTrigger.GONE, f"its last event was damaged: {exc}")
        self._tidy_waiting_room()

    def _tidy_waiting_room(self) -> None:
        if not self._requests.claiming:
            self._processes.close_waiting_room()

    # --- the end ---------------------------------------------------------------------------------------------------

    def fail(self, reason: PieError) -> None:
        """End the connection for a reason that the shell found: a broken stream, a missed keepalive."""
        self._end(reason, ConnectionTrigger.ERROR)

    def _because(self) -> str:
        return f": {self.last_notice}" if self.last_notice else ""

    def _eof_reason(self) -> PieError:
        if self.state is ConnectionState.CONNECTING:
            return ConnectError("the peer closed the connection during the WebSocket handshake")
        if self.state is ConnectionState.CLOSING:
            return ConnectionClosed("the connection was closed by this side")
        return ConnectionLost(f"the engine dropped the connection{self._because()}")

    def _end(self, reason: PieError, trigger: ConnectionTrigger) -> None:
        """Settle everything, once; the first reason wins."""
        if self._ended:
            return
        self._ended = True
        self.close_reason = reason
        self.state = advance(CONNECTION, self.state, trigger)
        self._outbox.clear()
        self._close = None
        self._settle_all(self._requests.drain(), reason)
        self._processes.lose_all()
        self._processes.close_waiting_room()
        self._downloads.clear()
        self._events.append(core.ConnectionEnded(reason))

    def _settle_all(self, left: Iterable[Pending], reason: PieError) -> None:
        for pending in left:
            issued = pending.state is not RequestState.QUEUED
            pending.advance(RequestTrigger.CONNECTION_ENDED)
            self._events.append(
                core.RequestLost(pending.owner, issued, reason, pending.request, pending.quiet)
            )


def refusal_error(refused: wire.UpgradeRefused) -> ConnectError:
    """Say what an HTTP refusal of the handshake means and what to do about it."""
    hints = {
        401: "the engine wants an identity; pass identity='tenant/user'",
        403: "the engine, or a proxy before it, does not let this client in",
        404: "no engine is served under this path; without a path in the URL, /v1/ws is used",
        503: "the engine is not ready; try again later",
    }
    hint = hints.get(refused.status, "is this the URL of a Pie engine?")
    body = f": {refused.body[:300]}" if refused.body else ""
    msg = f"the WebSocket handshake was refused with HTTP status {refused.status}{body}. Hint: {hint}"
    return ConnectError(msg, status=refused.status, body=refused.body)
