# SPDX-License-Identifier: Apache-2.0
"""WebSocket framing over wsproto, with a fast lane for the frame that nearly all traffic consists of.

wsproto owns the handshake, control frames, fragmentation and closing. A complete, unfragmented binary frame with no
reserved bit set, met while no fragmented message is open, carries no state with it: it is sliced out here directly,
which is several times faster. Every other byte goes through wsproto unchanged, frame by frame, so both always agree on
where the next frame begins.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, TypeAlias

import attrs
from wsproto import ConnectionType, WSConnection
from wsproto import events as ws
from wsproto.connection import ConnectionState as WsState
from wsproto.utilities import LocalProtocolError as WsLocalError
from wsproto.utilities import RemoteProtocolError as WsRemoteError

from .._exceptions import RemoteProtocolError
from .masking import Mask, mask, turn

_BINARY: Final = 0x82  # FIN, opcode 2
_LARGE: Final = 8192  # from here on a view is cheaper than a copy
_HEADER_END: Final = b"\r\n\r\n"
_HEADS: Final = [bytes((_BINARY, second)) for second in range(256)]
_KEYS: Final = struct.Struct("4s" * 32)
"""Masking keys that are drawn together: each draw is a call of the system."""

Entropy: TypeAlias = Callable[[int], bytes]
Headers: TypeAlias = list[tuple[bytes, bytes]]


@attrs.frozen
class UpgradeRequested:
    """A client asks for the upgrade (engine's side)."""

    target: str
    headers: dict[str, str]


@attrs.frozen
class Upgraded:
    """The handshake is complete (client's side)."""


@attrs.frozen
class UpgradeRefused:
    """The engine answered the handshake with another HTTP status."""

    status: int
    body: str


@attrs.frozen
class TextReceived:
    """A complete text message."""

    text: str


@attrs.frozen
class PongReceived:
    """The answer to a ping, or an unsolicited pong."""

    payload: bytes


@attrs.frozen
class CloseReceived:
    """The peer's close frame; ours has been queued in answer where one was due."""

    code: int | None
    reason: str


@attrs.frozen
class Broken:
    """The peer broke the WebSocket protocol; nothing more is read."""

    error: RemoteProtocolError


Item: TypeAlias = (
    bytes
    | memoryview
    | UpgradeRequested
    | Upgraded
    | UpgradeRefused
    | TextReceived
    | PongReceived
    | CloseReceived
    | Broken
)
"""What comes out: ``bytes`` and ``memoryview`` are complete binary messages."""


def _slice_small(data: bytes, position: int, out: list[Item]) -> int:
    """Slice out small plain frames for as long as they last; give the position of the first that is anything else.

    This loop sees nearly every frame of a busy connection, so it does nothing that is not needed for those.
    """
    size = len(data) - 3  # room for the longer of the two headers
    append = out.append
    while position < size and data[position] == _BINARY:
        length = data[position + 1]
        start = position + 2
        if length > 125:
            if length != 126:
                break
            length = data[start] << 8 | data[start + 1]
            start += 2
            if not 125 < length < _LARGE:
                break
        end = start + length
        if end > size + 3:
            break
        append(data[start:end])
        position = end
    return position


class WebSocket:
    """One side of one WebSocket connection: bytes in, items out; messages in, bytes out."""

    def __init__(
        self,
        *,
        client: bool,
        message_bytes: int,
        header_bytes: int,
        frame_bytes: int | None = None,
        entropy: Entropy | None = None,
        mask: Mask = mask,
    ) -> None:
        self._client = client
        self._cap = message_bytes
        self._frame_cap = message_bytes if frame_bytes is None else frame_bytes
        self._may_slice = client and self._frame_cap >= _LARGE
        self._header_cap = header_bytes
        self._entropy = entropy
        self._keys: list[bytes] = []
        self._mask = mask
        self._ws = WSConnection(ConnectionType.CLIENT if client else ConnectionType.SERVER)
        self._upgraded = False
        self._dead = False
        self._handshake = bytearray()
        self._requested = False  # engine's side: the upgrade was asked for, and is not answered yet
        self._refusal: tuple[int, bytearray] | None = None
        # Bytes of a frame that is not complete yet, and how many are needed before looking again.
        self._chunks: list[bytes | memoryview] = []
        self._have = 0
        self._need = 2
        self._slow_left = 0  # bytes of the current frame that still go to wsproto
        self._message = bytearray()  # what has come of a message that goes through wsproto; text as UTF-8
        self._message_size = 0  # the same as announced by the frame headers
        self._fragmented = False
        self._pong = b""
        self._close_reply = b""

    # --- inbound ---------------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> list[Item]:
        """Take bytes off the stream and give what they complete; never raises for the peer's faults."""
        out: list[Item] = []
        if self._dead:
            return out
        if not self._upgraded:
            rest = self._receive_handshake(data, out)
            if rest is None:
                return out
            data = rest
        position = self._complete(data, out) if self._have else 0
        if position < len(data) and not self._dead:
            self._keep_rest(data, self._parse(data, position, out))
        return out

    def _complete(self, data: bytes, out: list[Item]) -> int:
        """Add to a frame whose beginning is kept what it lacks and no more; give the position behind that."""
        position = 0
        while self._have and not self._dead:
            if self._have < self._need:
                if position >= len(data):
                    break
                piece = self._rest(data, position, self._need - self._have)
                position += len(piece)
                self._chunks.append(piece)
                self._have += len(piece)
                continue
            frame = b"".join(self._chunks)
            self._chunks, self._have = [], 0
            self._keep_rest(frame, self._parse(frame, 0, out))
        return position

    def _keep_rest(self, data: bytes, position: int) -> None:
        if position < len(data) and not self._dead:
            self._chunks = [self._rest(data, position, len(data))]
            self._have = len(data) - position

    @staticmethod
    def _rest(data: bytes, position: int, size: int) -> bytes | memoryview:
        """Cut a piece out; a large one is not copied, since it is joined with others before long."""
        if not position and size >= len(data):
            return data
        end = min(position + size, len(data))
        return (data if end - position < _LARGE else memoryview(data))[position:end]

    def receive_eof(self) -> list[Item]:
        """Take the end of the stream; a refusal whose body ended with it is given now."""
        if self._refusal is None or self._dead:
            return []
        self._dead = True
        return [self._refused()]

    def _parse(self, data: bytes, position: int, out: list[Item]) -> int:
        """Walk over the frames in ``data``; give the position of the first byte that is kept for later."""
        size = len(data)
        masked, key_size = (0, 0) if self._client else (0x80, 4)
        while not self._dead:
            if self._slow_left:
                position = self._feed_slow(data, position, out)
                if self._slow_left:
                    return size
                continue
            if self._may_slice and not self._fragmented:
                position = _slice_small(data, position, out)
                if position == size:
                    break
            header = self._read_header(data, position)
            if header is None:
                break
            length, start, minimal = header
            second = data[position + 1]
            start += key_size
            end = start + length
            if data[position] != _BINARY or self._fragmented or second & 0x80 != masked or not minimal:
                self._slow_left = self._begin_slow(data[position], second, length, end - position, out)
                continue
            if length > self._frame_cap:
                self._fail(f"a message of {length} bytes exceeds the limit of {self._frame_cap}", 1009, out)
                break
            if end > size:
                self._need = end - position
                break
            payload = data[start:end] if length < _LARGE else memoryview(data)[start:end]
            out.append(self._mask(payload, data[start - 4 : start]) if masked else payload)
            position = end
        return position

    def _read_header(self, data: bytes, position: int) -> tuple[int, int, bool] | None:
        """Give a frame's length, where it ends in the header, and whether it has its shortest form; None: too short."""
        available = len(data) - position
        self._need = 2
        if available < 2:
            return None
        length, start = data[position + 1] & 0x7F, position + 2
        if length < 126:
            return length, start, True
        width = 2 if length == 126 else 8
        if available < 2 + width:
            self._need = 2 + width
            return None
        length = int.from_bytes(data[start : start + width], "big")
        return length, start + width, length > (125 if width == 2 else 0xFFFF)

    def _begin_slow(self, first: int, second: int, length: int, total: int, out: list[Item]) -> int:
        """Decide how many bytes of the frame go to wsproto; a frame that it must refuse is given up to its header."""
        control = bool(first & 0x08)
        if not control:
            self._message_size += length
            if self._message_size > self._cap or length > self._frame_cap:
                self._fail(f"a message of more than {self._cap} bytes exceeds the limit", 1009, out)
                return 0
            self._fragmented = self._fragmented or not first & 0x80
        if bool(second & 0x80) == self._client:
            return total + (4 if self._client else -4)  # wrongly masked: wsproto raises at the header
        return total

    def _feed_slow(self, data: bytes, position: int, out: list[Item]) -> int:
        piece = data[position : position + self._slow_left]
        self._slow_left -= len(piece)
        self._ws.receive_data(piece)
        for event in self._ws.events():
            self._take(event, out)
        return position + len(piece)

    def _take(self, event: ws.Event, out: list[Item]) -> None:
        match event:
            case ws.TextMessage() | ws.BytesMessage():
                self._assemble(event, out)
            case ws.Ping() if self._ws.state is WsState.OPEN:
                # Only the newest needs an answer (RFC 6455, section 5.5.3), so a flood of pings takes no memory.
                self._pong = self._ws.send(event.response())
            case ws.Pong():
                out.append(PongReceived(bytes(event.payload)))
            case ws.CloseConnection():
                # wsproto disguises a parse failure as a close event and keeps its state; a real close moves it.
                if self._ws.state in (WsState.OPEN, WsState.LOCAL_CLOSING):
                    self._fail(event.reason or "malformed WebSocket frame", event.code, out)
                    return
                if self._ws.state is WsState.REMOTE_CLOSING:
                    self._close_reply = self._ws.send(event.response())
                self._dead = True
                out.append(CloseReceived(int(event.code), event.reason or ""))
            case _:  # a ping behind our own close frame; wsproto has no other event after the handshake
                pass

    def _assemble(self, event: ws.TextMessage | ws.BytesMessage, out: list[Item]) -> None:
        # One buffer, not a list of parts: a message may come in as many parts as it has bytes.
        self._message += event.data.encode() if isinstance(event, ws.TextMessage) else event.data
        if event.message_finished:
            text = isinstance(event, ws.TextMessage)
            out.append(TextReceived(self._message.decode()) if text else bytes(self._message))
            self._message = bytearray()
            self._message_size = 0
            self._fragmented = False

    def _fail(self, message: str, code: int, out: list[Item]) -> None:
        self._dead = True
        self._slow_left = 0
        try:
            self._close_reply = self._ws.send(ws.CloseConnection(code=code, reason=message[:100]))
        except WsLocalError:
            pass  # our close frame has left already
        out.append(Broken(RemoteProtocolError(message, close_code=code)))

    # --- handshake -------------------------------------------------------------------------------------------------

    def request_upgrade(self, host: str, target: str, headers: Headers) -> bytes:
        """Give the bytes of the client's opening request; the nonce is wsproto's."""
        return self._ws.send(ws.Request(host=host, target=target, extra_headers=headers))

    def accept_upgrade(self) -> bytes:
        """Give the engine's "101"; neither a subprotocol nor an extension is negotiated."""
        self._upgraded = True
        return self._ws.send(ws.AcceptConnection())

    def refuse_upgrade(self, status: int, body: bytes) -> bytes:
        """Give the engine's refusal."""
        self._dead = True
        headers = [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        head = self._ws.send(ws.RejectConnection(status_code=status, headers=headers, has_body=True))
        return head + self._ws.send(ws.RejectData(data=body, body_finished=True))

    def _receive_handshake(self, data: bytes, out: list[Item]) -> bytes | None:
        """Feed the HTTP part to wsproto and give the bytes behind it, or None while there are none."""
        if self._refusal is not None:
            self._feed_handshake(data, out)
            return None
        if self._requested:
            self._keep(data)
            return None
        self._handshake += data
        cut = self._handshake.find(_HEADER_END)
        size = cut + len(_HEADER_END) if cut >= 0 else len(self._handshake)
        if size > self._header_cap:
            self._dead = True
            out.append(
                Broken(RemoteProtocolError(f"handshake headers exceed the limit of {self._header_cap} bytes"))
            )
            return None
        if cut < 0:
            return None
        head, rest = bytes(self._handshake[:size]), bytes(self._handshake[size:])
        self._handshake.clear()
        self._feed_handshake(head, out)
        if self._upgraded:
            return rest
        if self._client:
            self._feed_handshake(rest, out)  # the body of a refusal
        else:
            self._keep(rest)
        return None

    def _keep(self, data: bytes) -> None:
        """Keep what an eager client sends behind its request until the upgrade is answered."""
        if data:
            self._chunks.append(data)
            self._have += len(data)

    def _feed_handshake(self, data: bytes, out: list[Item]) -> None:
        if self._dead or not data:  # to the HTTP parser, no bytes would mean the end of the stream
            return
        try:
            self._ws.receive_data(data)
            for event in self._ws.events():
                self._take_handshake(event, out)
        except (WsRemoteError, ValueError) as exc:  # ValueError: header bytes that are not ASCII
            self._dead = True
            out.append(Broken(RemoteProtocolError(f"the handshake is not a WebSocket upgrade: {exc}")))

    def _take_handshake(self, event: ws.Event, out: list[Item]) -> None:
        match event:
            case ws.Request():
                headers = {
                    name.decode("latin-1"): value.decode("latin-1") for name, value in event.extra_headers
                }
                headers["host"] = event.host
                self._requested = True
                out.append(UpgradeRequested(event.target, headers))
            case ws.AcceptConnection():
                self._upgraded = True
                out.append(Upgraded())
            case ws.RejectConnection():
                self._refusal = (event.status_code, bytearray())
                if not event.has_body:
                    self._dead = True
                    out.append(self._refused())
            case ws.RejectData() if self._refusal is not None:
                self._refusal[1].extend(event.data[: 1024 - len(self._refusal[1])])
                if event.body_finished:
                    self._dead = True
                    out.append(self._refused())
            case _:  # pragma: no cover - wsproto has no other event during the handshake
                pass

    def _refused(self) -> UpgradeRefused:
        assert self._refusal is not None
        status, body = self._refusal
        return UpgradeRefused(status, bytes(body).decode("utf-8", "replace").strip())

    # --- outbound --------------------------------------------------------------------------------------------------

    @property
    def has_replies(self) -> bool:
        """Whether ``take_replies`` would give something."""
        return bool(self._pong or self._close_reply)

    def take_replies(self) -> bytes:
        """Give what the peer's frames called for: the newest pong, the answer to a close, the close after a fault."""
        data = self._pong + self._close_reply
        self._pong = self._close_reply = b""
        return data

    def binary(self, payload: bytes, more: bytes = b"") -> bytes:
        """Frame one binary message; ``more`` is the rest of it, where that lies somewhere else."""
        size = len(payload) + len(more)
        flag = 0x80 if self._client else 0
        if size < 126:
            head = _HEADS[flag | size]
        elif size < 65536:
            head = _HEADS[flag | 126] + size.to_bytes(2, "big")
        else:
            head = _HEADS[flag | 127] + size.to_bytes(8, "big")
        if not self._client:
            return b"".join((head, payload, more))
        # Fresh and unpredictable for each frame: RFC 6455, section 5.3.
        key = self._keys.pop() if self._keys else self._draw_key()
        if not more:
            return b"".join((head, key, self._mask(payload, key)))
        masked = self._mask(payload, key), self._mask(more, turn(key, len(payload)))
        return b"".join((head, key, *masked))

    def _draw_key(self) -> bytes:
        assert self._entropy is not None
        self._keys.extend(_KEYS.unpack(self._entropy(_KEYS.size)))
        return self._keys.pop()

    def text(self, text: str) -> bytes:
        """Frame one text message."""
        return self._ws.send(ws.TextMessage(data=text))

    def ping(self, payload: bytes = b"") -> bytes:
        """Frame a ping."""
        return self._ws.send(ws.Ping(payload=payload))

    def close(self, code: int, reason: str = "") -> bytes:
        """Frame a close; nothing where one has left already or the handshake is not over."""
        if not self._upgraded:
            return b""
        try:
            return self._ws.send(ws.CloseConnection(code=code, reason=reason))
        except WsLocalError:
            return b""
