# SPDX-License-Identifier: Apache-2.0
"""Hand-made bytes, right and wrong, and an engine that says exactly what a test tells it to."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from itertools import count, pairwise
from typing import Any

import msgpack

from pie_anyio._protocol import events as core
from pie_anyio._protocol import websocket as wire
from pie_anyio._protocol.connection import ClientProtocol
from pie_anyio._protocol.messages import AuthIdentify
from pie_anyio._types import MIB, Generation, Limits

Item = wire.Item
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def xor(payload: bytes, key: bytes) -> bytes:
    """Mask the slow and obvious way."""
    return bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))


def frame(
    payload: bytes = b"",
    *,
    opcode: int = BINARY,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = None,
    width: int | None = None,
    claim: int | None = None,
) -> bytes:
    """Build one frame, or something like it.

    `width` forces the size of the length field (0, 2 or 8 bytes), `claim` lies about the length, `key` masks.
    """
    length = len(payload) if claim is None else claim
    if width is None:
        width = 0 if length < 126 else 2 if length < 65536 else 8
    short = {0: length, 2: 126, 8: 127}[width]
    head = bytes((fin << 7 | rsv << 4 | opcode, (key is not None) << 7 | short))
    head += length.to_bytes(width, "big") if width else b""
    return head + payload if key is None else head + key + xor(payload, key)


def message(**fields: Any) -> bytes:
    """Frame one engine message as MessagePack."""
    return frame(msgpack.packb(fields))


def accept_line(request: bytes) -> bytes:
    """Give the header line with which a server proves that it read the request."""
    lines = request.split(b"\r\n")
    key = next(line.partition(b": ")[2] for line in lines if line.lower().startswith(b"sec-websocket-key"))
    return b"Sec-WebSocket-Accept: " + base64.b64encode(
        hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
    )


def accept(request: bytes, *more: bytes) -> bytes:
    """Answer an upgrade request with 101, with further header lines."""
    status = b"HTTP/1.1 101 Switching Protocols"
    return b"\r\n".join(
        (status, b"Upgrade: websocket", b"Connection: Upgrade", accept_line(request), *more, b"", b"")
    )


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut data at the given places, which are taken modulo its length."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


def counting() -> Callable[[int], bytes]:
    """Give an entropy source of which every four bytes are other ones, and can be predicted."""
    numbers = count(1)

    def entropy(size: int) -> bytes:
        return b"".join(next(numbers).to_bytes(4, "big") for _ in range(size // 4))

    return entropy


class Bench:
    """A client's core on the bench: its engine is the test."""

    def __init__(
        self,
        generation: Generation = Generation.V05,
        *,
        limits: Limits | None = None,
        upgrade: bool = True,
        login: bool = True,
    ) -> None:
        self.client = ClientProtocol(
            host="engine.test", target="/v1/ws", headers=[], entropy=counting(), limits=limits
        )
        self.server = wire.WebSocket(client=False, message_bytes=64 * MIB, header_bytes=65536)
        self.generation = generation
        self.log: list[core.CoreEvent] = []
        """Everything that the core has said after the login."""
        if upgrade:
            self.server.receive_data(self.client.data_to_send())
            assert self.feed(self.server.accept_upgrade()) == [core.HandshakeCompleted()]
        if upgrade and login:
            self.log_in()
        self.log.clear()

    def log_in(self) -> None:
        self.client.submit(AuthIdentify("alice"), "login")
        (login,) = self.sent()
        literal = {
            Generation.V04: "Authenticated (Engine disabled authentication)",
            Generation.V05: "Already authenticated",
        }[self.generation]
        assert self.answer(login["corr_id"], literal) == [core.ReplyReceived("login", True, literal)]
        assert self.client.is_open

    # --- what the engine says

    def feed(self, data: bytes | None) -> list[core.CoreEvent]:
        self.client.receive_data(data)
        return self.events()

    def events(self) -> list[core.CoreEvent]:
        events = self.client.events()
        self.log += events
        return events

    def say(self, **fields: Any) -> list[core.CoreEvent]:
        return self.feed(message(**fields))

    def answer(self, corr_id: int, result: str, ok: bool = True) -> list[core.CoreEvent]:
        return self.say(type="response", corr_id=corr_id, ok=ok, result=result)

    def event(self, process_id: str, kind: str, value: str) -> list[core.CoreEvent]:
        return self.say(type="process_event", process_id=process_id, event=kind, value=value)

    def text(self, text: str) -> list[core.CoreEvent]:
        return self.feed(frame(text.encode(), opcode=TEXT))

    # --- what the client sends

    def read(self, data: bytes) -> list[Any]:
        """Decode bytes of the client: messages as maps, everything else as it is."""
        items = self.server.receive_data(data)
        return [msgpack.unpackb(item) if isinstance(item, (bytes, memoryview)) else item for item in items]

    def sent(self) -> list[Any]:
        """Take and decode all that the client wants to send."""
        out: list[Any] = []
        while self.client.wants_write:
            out += self.read(self.client.data_to_send())
        return out

    def sent_one(self) -> Any:
        """Take the next message only."""
        (item,) = self.read(self.client.data_to_send(1))
        return item
