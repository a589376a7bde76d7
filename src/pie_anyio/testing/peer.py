# SPDX-License-Identifier: Apache-2.0
"""``RawPeer``: a client without opinions, to observe an engine with, be it simulated or real.

It sends whatever it is told to, correct or not, and keeps everything that comes back. It owns no task: bytes are read
while somebody waits for a message.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, Self, TypeAlias

import msgpack
from anyio import BrokenResourceError, EndOfStream, connect_tcp
from anyio.abc import ByteStream
from blake3 import blake3

from .._protocol import websocket as wire
from .._protocol.messages import CHUNK_BYTES
from .._types import MIB

Fields: TypeAlias = dict[str, Any]
Item: TypeAlias = (
    Fields | str | wire.Upgraded | wire.UpgradeRefused | wire.CloseReceived | wire.PongReceived | wire.Broken
)
"""What a peer receives: messages as maps, text frames as text, and the rest as it is."""

_IDENTITY: Final = b"test/peer"


class RawPeer:
    """A client without opinions, over any byte stream; what it asserts, it asserts on behalf of a test."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.unread: list[Item] = []
        """What has arrived and nobody has taken yet, oldest first."""
        self.tolerant = False
        """Read messages with bytes behind them, and text that is not UTF-8."""
        self._socket = wire.WebSocket(
            client=True, message_bytes=256 * MIB, header_bytes=65536, entropy=os.urandom
        )
        self._last_id = 0

    @classmethod
    async def dial(cls, host: str, port: int) -> RawPeer:
        """Connect over TCP; the handshake is yet to come."""
        return cls(await connect_tcp(host, port))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stream.aclose()

    # --- sending ---------------------------------------------------------------------------------------------------

    async def open(self, target: str = "/v1/ws", identity: bytes | None = _IDENTITY) -> Item:
        """Ask for the upgrade, and give what it was answered with."""
        headers = [] if identity is None else [(b"x-pie-identity", identity)]
        await self.stream.send(self._socket.request_upgrade("engine.test", target, headers))
        return await self.take(lambda item: isinstance(item, (wire.Upgraded, wire.UpgradeRefused)))

    async def login(self, username: str = "peer") -> None:
        """Shake hands and log in by name."""
        await self.open()
        ok, result = await self.ask("auth_identify", username=username)
        assert ok, result

    async def send_payload(self, payload: bytes) -> None:
        """Send a binary frame."""
        await self.stream.send(self._socket.binary(payload))

    async def send_text(self, text: str) -> None:
        """Send a text frame."""
        await self.stream.send(self._socket.text(text))

    async def send_close(self, code: int = 1000) -> None:
        """Send a close frame."""
        await self.stream.send(self._socket.close(code))

    async def say(self, kind: str, **fields: Any) -> None:
        """Send a message without waiting for anything."""
        await self.send_payload(msgpack.packb({"type": kind, **fields}))

    async def post(self, kind: str, **fields: Any) -> int:
        """Send a request, and give its ``corr_id``."""
        self._last_id += 1
        await self.say(kind, corr_id=self._last_id, **fields)
        return self._last_id

    async def upload(self, content: bytes, manifest: str, *, force: bool = True) -> tuple[bool, str]:
        """Install a program, and give the answer."""
        starts = range(0, max(len(content), 1), CHUNK_BYTES)
        self._last_id += 1
        for index, start in enumerate(starts):
            await self.say(
                "add_program",
                corr_id=self._last_id,
                program_hash=blake3(content).hexdigest(),
                manifest=manifest,
                force_overwrite=force,
                chunk_index=index,
                total_chunks=len(starts),
                chunk_data=content[start : start + CHUNK_BYTES],
            )
        return await self.answer(self._last_id)

    async def transfer(self, process_id: str, content: bytes, *, file_hash: str | None = None) -> None:
        """Send a file to a process."""
        starts = range(0, max(len(content), 1), CHUNK_BYTES)
        for index, start in enumerate(starts):
            await self.say(
                "transfer_file",
                process_id=process_id,
                file_hash=file_hash or blake3(content).hexdigest(),
                chunk_index=index,
                total_chunks=len(starts),
                chunk_data=content[start : start + CHUNK_BYTES],
            )

    # --- receiving -------------------------------------------------------------------------------------------------

    async def take(self, matches: Callable[[Item], bool]) -> Item:
        """Take the first item that matches, waiting for it as needed; what does not match stays unread.

        Raises:
            EndOfStream: the engine ended the connection first.
        """
        seen = 0
        while True:
            for index in range(seen, len(self.unread)):
                if matches(self.unread[index]):
                    return self.unread.pop(index)
            seen = len(self.unread)
            self._read(await self.stream.receive())

    def _read(self, data: bytes) -> None:
        for item in self._socket.receive_data(data):
            if isinstance(item, (bytes, memoryview)):
                self.unread.append(self._decode(item))
            elif isinstance(item, wire.TextReceived):
                self.unread.append(item.text)
            else:
                assert not isinstance(item, wire.UpgradeRequested)
                self.unread.append(item)

    def _decode(self, payload: bytes | memoryview) -> Any:
        if not self.tolerant:
            return msgpack.unpackb(payload)
        unpacker = msgpack.Unpacker(unicode_errors="replace", max_buffer_size=len(payload))
        unpacker.feed(payload)
        return unpacker.unpack()

    async def answer(self, corr_id: int) -> tuple[bool, str]:
        """Wait for the answer to a request."""

        def matches(item: Item) -> bool:
            return isinstance(item, dict) and item["type"] == "response" and item["corr_id"] == corr_id

        found = await self.take(matches)
        assert isinstance(found, dict)
        return found["ok"], found["result"]

    async def ask(self, kind: str, **fields: Any) -> tuple[bool, str]:
        """Send a request, and give ``ok`` and ``result`` of its answer."""
        return await self.answer(await self.post(kind, **fields))

    async def launch(self, inferlet: str, text: str = "{}", *, capture: bool = True) -> str:
        """Start a process, which must succeed, and give its id."""
        ok, result = await self.ask("launch_process", inferlet=inferlet, input=text, capture_outputs=capture)
        assert ok, result
        return result

    async def event(self, process_id: str, *kinds: str) -> tuple[str, str]:
        """Take the next event of a process, of these kinds or of any."""

        def matches(item: Item) -> bool:
            return (
                isinstance(item, dict)
                and item["type"] == "process_event"
                and item["process_id"] == process_id
                and (not kinds or item["event"] in kinds)
            )

        found = await self.take(matches)
        assert isinstance(found, dict)
        return found["event"], found["value"]

    async def events(self, process_id: str) -> list[tuple[str, str]]:
        """Take the events of a process up to its end."""
        events = [await self.event(process_id)]
        while events[-1][0] not in ("return", "error"):
            events.append(await self.event(process_id))
        return events

    async def file(self, process_id: str) -> tuple[bytes, str | None]:
        """Take the next file of a process: its content and its name."""
        parts: list[bytes] = []
        while True:
            chunk = await self.take(
                lambda item: (
                    isinstance(item, dict) and item["type"] == "file" and item["process_id"] == process_id
                )
            )
            assert isinstance(chunk, dict)
            assert chunk["chunk_index"] == len(parts)
            parts.append(chunk["chunk_data"])
            if len(parts) == chunk["total_chunks"]:
                content = b"".join(parts)
                assert blake3(content).hexdigest() == chunk["file_hash"]
                return content, chunk.get("name")

    async def text(self) -> str:
        """Take the next text frame other than ``turn_done``."""
        found = await self.take(lambda item: isinstance(item, str) and "turn_done" not in item)
        assert isinstance(found, str)
        return found

    async def ping(self) -> None:
        """Have the engine answer a request, so that what it had to say before is here."""
        ok, result = await self.ask("ping")
        assert (ok, result) == (True, "Pong")

    async def end(self) -> list[Item]:
        """Read until the engine ends the connection, and give what came before that."""
        try:
            while True:
                self._read(await self.stream.receive())
        except (EndOfStream, BrokenResourceError):
            pass
        unread, self.unread = self.unread, []
        return unread
