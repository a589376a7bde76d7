# SPDX-License-Identifier: Apache-2.0
"""``EngineProtocol``: the engine's side of one connection, without I/O. The counterpart of ``ClientProtocol``.

It frames, decodes and orders; what a request means is the shell's business. The contract is that of the client:

* after any call, send what ``data_to_send`` gives while ``wants_write`` is true;
* after ``receive_data``, drain ``events``; faults of the peer never raise.

Outbound messages belong to *streams*. Within one stream order holds; between streams the ``choose`` function decides
who is next, message by message. Generation 0.4 has one stream for everything, which gives answers in request order and
contiguous files. Generation 0.5 has one stream per client message, which gives what its clients see: answers out of
order, and chunks of two files interleaved. Sources: "Ordering" (0.4) and 12A (0.5).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Final, TypeAlias, cast

import attrs
import blake3

from .._types import MIB, Generation
from . import codec, messages
from . import websocket as wire
from .state import CONNECTION, ConnectionState, ConnectionTrigger, advance
from .websocket import TextReceived, UpgradeRequested

TURN_DONE: Final = '{"type":"turn_done"}'

_HEADER_BYTES: Final = 65536
_TEXT: Final = b"\x81"  # FIN, opcode 1
_BAD_REQUEST: Final = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_V05_TYPES: Final = (
    *(
        "auth_identify",
        "auth_prove",
        "check_program",
        "query",
        "add_program",
        "launch_process",
        "attach_process",
    ),
    *("terminate_process", "signal_process", "transfer_file", "list_processes", "ping"),
)

Choose: TypeAlias = Callable[[int], int]
"""Given the number of streams that have something to send, the index of the one that goes first."""


@attrs.frozen(kw_only=True)
class InboundLimits:
    """What an engine accepts, in bytes."""

    frame_bytes: int
    """One frame."""
    message_bytes: int
    """One message; above it the reader ends."""
    request_bytes: int
    """One request; above it the message is refused by text, and the connection goes on."""


INBOUND: Final = {
    Generation.V04: InboundLimits(frame_bytes=16 * MIB, message_bytes=64 * MIB, request_bytes=64 * MIB),
    Generation.V05: InboundLimits(frame_bytes=8_126_464, message_bytes=8_126_464, request_bytes=7_340_032),
}


@attrs.frozen
class MessageReceived:
    """A request was decoded; ``corr_id`` is None for the kinds that are never answered."""

    request: messages.Request
    corr_id: int | None
    size: int


@attrs.frozen
class Undecodable:
    """A binary message is no request; ``detail`` says why, in the manner of the engine."""

    detail: str


@attrs.frozen
class TooLarge:
    """A message exceeds what a request may have, but not what a message may have."""

    size: int


@attrs.frozen
class PeerClosed:
    """The client's close frame."""

    code: int | None
    reason: str


@attrs.frozen
class PeerBroke:
    """The client broke the protocol; nothing more is read from it."""

    detail: str


@attrs.frozen
class Ended:
    """The stream has ended; always the last event."""


EngineEvent: TypeAlias = (
    UpgradeRequested
    | MessageReceived
    | Undecodable
    | TooLarge
    | TextReceived
    | PeerClosed
    | PeerBroke
    | Ended
)


class _Streams:
    """Framed messages by stream, and which streams have any."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._queues: dict[Hashable, deque[bytes]] = {}
        self._ready: list[Hashable] = []
        self._held: set[Hashable] = set()
        self.queued_bytes = 0

    @property
    def ready(self) -> bool:
        return bool(self._ready)

    def put(self, stream: Hashable, frame: bytes) -> None:
        queue = self._queues.get(stream)
        if queue is None:
            queue = self._queues[stream] = deque()
            if stream not in self._held:
                self._ready.append(stream)
        queue.append(frame)
        self.queued_bytes += len(frame)

    def take(self) -> bytes:
        count = len(self._ready)
        index = self._choose(count) if count > 1 else 0
        stream = self._ready[index]
        queue = self._queues[stream]
        frame = queue.popleft()
        self.queued_bytes -= len(frame)
        if not queue:
            del self._queues[stream]
            last = self._ready.pop()
            if last is not stream:
                self._ready[index] = last
        return frame

    def hold(self, stream: Hashable) -> None:
        self._held.add(stream)
        if stream in self._ready:
            self._ready.remove(stream)

    def release(self, stream: Hashable) -> None:
        if stream in self._held:
            self._held.discard(stream)
            if stream in self._queues:
                self._ready.append(stream)

    def clear(self) -> None:
        self._queues.clear()
        self._ready.clear()
        self.queued_bytes = 0


class EngineProtocol:
    """The engine's side of one connection, without I/O.

    Args:
        generation: which vocabulary, limits and file fields apply.
        choose: which stream goes next; the first one by default.
        answer_close: answer a close frame, and tell a peer that breaks the protocol; real engines do neither.
    """

    def __init__(
        self, generation: Generation, *, choose: Choose | None = None, answer_close: bool = False
    ) -> None:
        self.generation = generation
        self.state: ConnectionState = ConnectionState.CONNECTING
        self.limits: InboundLimits = INBOUND[generation]
        self.ignored: int = 0
        """Requests that were dropped because nobody had logged in."""
        self._types: Final = frozenset(_V05_TYPES if generation is Generation.V05 else messages.REQUESTS)
        self._answer_close = answer_close
        self._ws = wire.WebSocket(
            client=False,
            message_bytes=self.limits.message_bytes,
            frame_bytes=self.limits.frame_bytes,
            header_bytes=_HEADER_BYTES,
        )
        self._raw = bytearray()
        self._streams = _Streams(choose or _first)
        self._events: list[EngineEvent] = []
        self._close: tuple[int, str] | None = None
        self._turn_done = b""

    # --- towards the stream ----------------------------------------------------------------------------------------

    @property
    def wants_write(self) -> bool:
        """Whether ``data_to_send`` would give something."""
        return bool(self._raw) or self._streams.ready or self._close is not None

    @property
    def queued_bytes(self) -> int:
        """Bytes of framed messages that wait; unbounded, as the mailbox of a real engine is."""
        return self._streams.queued_bytes

    def data_to_send(self, max_bytes: int = 65536) -> bytes:
        """Take queued frames, at least one and about ``max_bytes``."""
        parts = [bytes(self._raw)]
        size = len(self._raw)
        self._raw.clear()
        while size < max_bytes and self._streams.ready:
            frame = self._streams.take()
            parts.append(frame)
            size += len(frame)
        if self._close is not None and not self._streams.ready:
            parts.append(self._ws.close(*self._close))
            self._close = None
        return b"".join(parts)

    def receive_data(self, data: bytes | None) -> None:
        """Take bytes off the stream, or None for its end."""
        if data is None:
            if self.state is not ConnectionState.FAILED:
                self.state = advance(CONNECTION, self.state, ConnectionTrigger.ENDED)
            self._events.append(Ended())
            return
        for item in self._ws.receive_data(data):
            kind = type(item)
            if kind is bytes or kind is memoryview:
                self._receive_message(item)  # type: ignore[arg-type]
            else:
                self._receive_control(item)
        replies = self._ws.take_replies()
        closing = self.state is ConnectionState.CLOSING and self._answer_close
        if closing or self.state in (ConnectionState.AUTHENTICATING, ConnectionState.OPEN):
            self._raw += replies

    def events(self) -> list[EngineEvent]:
        """Take what has happened since the last call."""
        events, self._events = self._events, []
        return events

    def _receive_message(self, payload: bytes | memoryview) -> None:
        size = len(payload)
        if size > self.limits.request_bytes:
            self._events.append(TooLarge(size))
            return
        try:
            self._events.append(self._build(codec.decode_fields(payload), size))
        except codec.DecodeError as exc:
            self._events.append(Undecodable(str(exc)))

    def _build(self, fields: codec.Fields, size: int) -> MessageReceived:
        tag = fields.get("type")
        if isinstance(tag, str) and tag not in self._types:
            known = _V05_TYPES if self.generation is Generation.V05 else tuple(messages.REQUESTS)
            msg = f"unknown variant `{tag}`, expected one of {', '.join(f'`{name}`' for name in known)}"
            raise codec.DecodeError(msg)
        return MessageReceived(*codec.build_request(fields), size)

    def read_text(self, text: str) -> MessageReceived | Undecodable:
        """Read a text frame as a request in JSON, as 0.5 does."""
        try:
            fields: Any = json.loads(text)
            if type(fields) is not dict:
                return Undecodable(f"invalid type: {type(fields).__name__}, expected a map")
            return self._build(cast("codec.Fields", fields), len(text))
        except (codec.DecodeError, ValueError, RecursionError) as exc:
            return Undecodable(str(exc))

    def _receive_control(self, item: wire.Item) -> None:
        match item:
            case wire.UpgradeRequested() | wire.TextReceived():
                self._events.append(item)
            case wire.CloseReceived():
                self.state = advance(CONNECTION, self.state, ConnectionTrigger.CLOSE)
                self._streams.clear()
                self._events.append(PeerClosed(item.code, item.reason))
            case wire.Broken():
                self._break(str(item.error))
            case _:  # an unsolicited pong says nothing; the rest belongs to the client's side
                pass

    def _break(self, detail: str) -> None:
        if self.state is ConnectionState.CONNECTING and self.generation is Generation.V05:
            self._raw += _BAD_REQUEST
        self.state = advance(CONNECTION, self.state, ConnectionTrigger.ERROR)
        self._events.append(PeerBroke(detail))

    # --- the handshake and the login -------------------------------------------------------------------------------

    def accept(self, *, authenticated: bool) -> None:
        """Answer the upgrade with 101, and read what came behind it."""
        self._raw += self._ws.accept_upgrade()
        self.state = advance(CONNECTION, self.state, ConnectionTrigger.UPGRADED)
        if authenticated:
            self.authenticated()
        self.receive_data(b"")

    def refuse(self, status: int, body: bytes = b"") -> None:
        """Answer the upgrade with another HTTP status; nothing more is read."""
        self._raw += self._ws.refuse_upgrade(status, body)
        self.state = advance(CONNECTION, self.state, ConnectionTrigger.CLOSE)

    def authenticated(self) -> None:
        """Note that the client has logged in: from now on every request counts.

        Nothing where the connection has ended meanwhile: what broke it may have come in one read with the login.
        """
        if self.state not in (ConnectionState.CLOSED, ConnectionState.FAILED):
            self.state = advance(CONNECTION, self.state, ConnectionTrigger.AUTHENTICATED)

    def admits(self, request: messages.Request) -> bool:
        """Tell whether a request counts now; 0.4 drops all but logins until somebody has logged in."""
        if self.state is ConnectionState.OPEN or request.allowed_unauthenticated:
            return True
        self.ignored += 1
        return False

    # --- messages --------------------------------------------------------------------------------------------------

    def respond(self, corr_id: int, ok: bool, result: str, *, stream: Hashable = 0) -> None:
        """Queue the answer to a request."""
        self.send_message(messages.Response(corr_id, ok, result), stream=stream)

    def send_event(self, process_id: str, kind: str, value: str, *, stream: Hashable = 0) -> None:
        """Queue one event of a process."""
        self.send_message(messages.ProcessEvent(process_id, kind, value), stream=stream)

    def send_file(
        self, process_id: str, content: bytes, name: str | None = None, *, stream: Hashable = 0
    ) -> None:
        """Queue a file, chunk by chunk; an empty one sends nothing, as with real engines."""
        for chunk in cut_file(process_id, content, name):
            self.send_message(chunk, stream=stream)

    def send_mcp_request(
        self,
        corr_id: int,
        process_id: str,
        server_name: str,
        method: str,
        params: str,
        *,
        stream: Hashable = 0,
    ) -> None:
        """Queue a tool call (0.4)."""
        self.send_message(
            messages.McpRequest(corr_id, process_id, server_name, method, params), stream=stream
        )

    def send_message(self, message: messages.EngineMessage, *, stream: Hashable = 0) -> int:
        """Queue any message; give the size of its payload."""
        return self.send_payload(self.encode(message), stream=stream)

    def encode(self, message: messages.EngineMessage) -> bytes:
        """Encode a message as this generation does."""
        return codec.encode_message(message, named_files=self.generation is Generation.V05)

    def send_payload(self, payload: bytes, *, stream: Hashable = 0) -> int:
        """Queue any payload as one binary frame, whatever it holds."""
        if self._may_send():
            self._streams.put(stream, self._ws.binary(payload))
        return len(payload)

    def send_text(self, text: str, *, stream: Hashable = 0) -> None:
        """Queue a text frame."""
        if self._may_send():
            self._streams.put(stream, self._text_frame(text))

    def send_turn_done(self, *, stream: Hashable = 0) -> None:
        """Queue the text frame with which 0.5 ends the turn of a client message."""
        if self._may_send():
            # The engine's frames are not masked, so equal messages are equal frames.
            self._turn_done = self._turn_done or self._text_frame(TURN_DONE)
            self._streams.put(stream, self._turn_done)

    def _text_frame(self, text: str) -> bytes:
        # Not through wsproto: it refuses to frame anything once it has seen a fault, and 0.4 goes on sending.
        return _TEXT + self._ws.binary(text.encode())[1:]

    def send_bytes(self, data: bytes) -> None:
        """Queue bytes that are no frame, ahead of everything: for tests of the peer."""
        self._raw += data

    def hold(self, stream: Hashable) -> None:
        """Keep back what this stream has to send, now and later, until it is released."""
        self._streams.hold(stream)

    def release(self, stream: Hashable) -> None:
        """Let a held stream send again."""
        self._streams.release(stream)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame behind what is queued. Idempotent."""
        if self._may_send():
            self._close = (code, reason)
        self.state = advance(CONNECTION, self.state, ConnectionTrigger.CLOSE)

    def _may_send(self) -> bool:
        # After a fault of the client the reader has ended, but 0.4 goes on sending what processes produce.
        return self.state in (ConnectionState.AUTHENTICATING, ConnectionState.OPEN, ConnectionState.FAILED)


def cut_file(process_id: str, content: bytes, name: str | None = None) -> list[messages.FileChunk]:
    """Cut a file into its messages; none for an empty one."""
    digest = blake3.blake3(content).hexdigest()
    starts = range(0, len(content), messages.CHUNK_BYTES)
    return [
        messages.FileChunk(
            process_id, digest, index, len(starts), content[start : start + messages.CHUNK_BYTES], name
        )
        for index, start in enumerate(starts)
    ]


def _first(_count: int) -> int:
    return 0
