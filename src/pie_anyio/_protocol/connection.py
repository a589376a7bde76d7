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
from .inbound import Inbound
from .masking import Mask, mask
from .outbox import Entry, Lane, Payload
from .requests import Abandoned, Pending
from .state import (
    CONNECTION,
    REQUEST,
    ConnectionState,
    ConnectionTrigger,
    ProcessTrigger,
    RequestState,
    RequestTrigger,
    advance,
)
from .straight import HEAD, read_answer, read_event, read_output

_ALWAYS_TAKEN: Final = min(capabilities.max_request_bytes for capabilities in CAPABILITIES.values())
# As in ``inbound``: members of enums that each request needs.
_OPEN: Final = ConnectionState.OPEN
_CONTROL: Final = Lane.CONTROL
_REQUEST: Final = Lane.REQUEST
_TAKEN: Final = RequestTrigger.TAKEN


class ClientProtocol(Inbound):
    """The client's side of one connection, without I/O."""

    state: ConnectionState
    ignored: int

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
        super().__init__(limits or Limits(), generation)
        self.close_reason: PieError | None = None
        self.last_notice: str = ""
        self._ws = wire.WebSocket(
            client=True,
            message_bytes=self.limits.message_bytes,
            header_bytes=self.limits.header_bytes,
            entropy=entropy,
            mask=mask,
        )
        self._raw = bytearray(self._ws.request_upgrade(host, target, headers))
        self._close: tuple[int, str] | None = None
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
        if self._ws.has_replies:
            self._raw += self._ws.take_replies()
        # A single part is not copied by join(), and a chunk mostly goes out alone.
        parts: list[bytes] = []
        size = 0
        if self._raw:
            parts.append(bytes(self._raw))
            size = len(self._raw)
            self._raw.clear()
        binary, take, find = self._ws.binary, self._outbox.take, self._requests.get
        # Nothing is submitted before the handshake is over, so nothing overtakes it here.
        while size < max_bytes and (taken := take()) is not None:
            payload, entry = taken
            pending = find(entry.corr_id)
            if pending is not None:
                pending.state = advance(REQUEST, pending.state, _TAKEN)
            parts.append(
                binary(payload) if isinstance(payload, bytes) else binary(payload.head, payload.data)
            )
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
        self._receive_items(items)
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
        if self.state is not _OPEN:
            self._check_may_send(request)
        requests = self._requests
        corr_id = requests.next_id()
        payload = codec.encode_request(request, corr_id)
        if len(payload) > _ALWAYS_TAKEN:
            self._check_size(request, payload)
        lane = _CONTROL if urgent or request.allowed_unauthenticated else _REQUEST
        pending = Pending(lane, payload, corr_id, request, owner, quiet)
        self._outbox.add(pending)
        requests.add(pending)
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
        self._requests.add(Pending(Lane.BULK, None, corr_id, marker, owner))
        return corr_id

    def upload_chunk(self, corr_id: CorrelationId, chunk: messages.AddProgram) -> bool:
        """Enqueue one chunk; False where the engine has answered already, which means: stop sending."""
        pending = self._requests.get(corr_id)
        if pending is None or pending.state is RequestState.ABANDONED:
            return False
        self._check_may_send(chunk)
        pending.request = chunk
        queued = [entry for entry in pending.chunks if entry.payload is not None]
        pending.chunks = (*queued, self._enqueue(chunk, corr_id, Lane.BULK))
        return True

    def abandon(self, corr_id: CorrelationId) -> Abandoned:
        """Give up a request on behalf of its caller; what a late answer starts is ended by the core itself."""
        pending = self._requests.get(corr_id)
        issued = pending is not None and pending.state is RequestState.ISSUED
        outcome = self._requests.abandon(corr_id, self._outbox)
        if pending is not None and issued and isinstance(pending.request, messages.AddProgram):
            self._reset_upload(corr_id, pending.request)
        self._tidy_waiting_room()
        return outcome

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
        self._check_size(request, payload)
        entry = Entry(lane, payload, corr_id)
        self._outbox.add(entry)
        return entry

    def _check_size(self, request: messages.Request, payload: Payload) -> None:
        generation = self.generation or Generation.V04
        allowed = CAPABILITIES[generation].max_request_bytes
        if len(payload) > allowed:
            msg = (
                f"{request.type}: a message of {len(payload)} bytes; an engine of generation {generation} takes "
                f"at most {allowed}. Send large inputs as a file (transfer_file) instead"
            )
            raise InvalidRequest(msg)

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

    def _receive_items(self, items: list[wire.Item]) -> None:
        known, append = self._processes.known, self._events.append
        for item in items:
            if type(item) is bytes:
                head = known.get(item[:HEAD]) if known else None
                if head is not None and (output := read_output(item, head)) is not None:
                    append(output)
                elif (answer := read_answer(item)) is not None:
                    self._receive_answer(answer)
                elif (event := read_event(item)) is not None:
                    self._receive_event(event, len(item), item)
                else:
                    self._receive_message(item)
            elif isinstance(item, memoryview):
                self._receive_message(item)
            else:
                self._receive_control(item)

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
