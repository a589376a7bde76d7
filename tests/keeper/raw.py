# SPDX-License-Identifier: Apache-2.0
"""A client without manners: it says when a pong is sent, and when anything is read."""

from __future__ import annotations

from typing import Any, Self

from anyio import EndOfStream, wait_all_tasks_blocked
from anyio.abc import ByteStream

from pie_anyio._protocol import codec
from pie_anyio._protocol import websocket as wire
from pie_anyio._protocol.messages import AuthIdentify, Request


class Raw:
    """One connection to a keeper.

    ``received`` has everything that was read so far: dicts for messages, other items as the framing gives them.
    """

    def __init__(self, stream: ByteStream, identity: str) -> None:
        self.stream = stream
        self.received: list[Any] = []
        self.pongs = True
        self.ended = False
        self._identity = identity
        self._held = b""
        self._corr_id = 0
        self.ws = wire.WebSocket(client=True, message_bytes=2**24, header_bytes=2**16, entropy=bytes)

    async def __aenter__(self) -> Self:
        headers = [(b"x-pie-identity", self._identity.encode())]
        await self.stream.send(self.ws.request_upgrade("keeper", "/v1/ws", headers))
        await self.until(lambda item: isinstance(item, (wire.Upgraded, wire.UpgradeRefused)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stream.aclose()

    async def read(self) -> bool:
        """Read once; say whether there was anything."""
        try:
            data = await self.stream.receive()
        except EndOfStream:
            self.ended = True
            return False
        self.take(data)
        self._held = self.ws.take_replies() or self._held
        if self.pongs:
            await self.send_pong()
        return True

    def take(self, data: bytes) -> None:
        """Take bytes off the stream."""
        for item in self.ws.receive_data(data):
            message = isinstance(item, (bytes, memoryview))
            self.received.append(codec.decode_fields(item) if message else item)  # type: ignore[arg-type]

    async def send_pong(self) -> None:
        """Send what was held back."""
        held, self._held = self._held, b""
        if held:
            await self.stream.send(held)

    async def until(self, condition: Any) -> Any:
        """Read until something fits, and give that."""
        seen = 0
        while True:
            for item in self.received[seen:]:
                if condition(item):
                    return item
            seen = len(self.received)
            assert await self.read(), "the connection ended"

    async def until_end(self) -> None:
        """Read until the keeper hangs up."""
        while await self.read():
            pass

    async def settle(self) -> None:
        """Read until nothing more comes."""
        await wait_all_tasks_blocked()
        while getattr(self.stream, "buffered", 0):
            await self.read()
            await wait_all_tasks_blocked()

    async def send(self, request: Request, corr_id: int | None = None) -> None:
        """Send a message, with a number or without one."""
        await self.stream.send(self.ws.binary(codec.encode_request(request, corr_id)))

    async def ask(self, request: Request) -> tuple[bool, str]:
        """Send a request, and wait for its answer."""
        self._corr_id += 1
        corr_id = self._corr_id
        await self.send(request, corr_id)
        answer = await self.until(lambda item: isinstance(item, dict) and item.get("corr_id") == corr_id)
        return answer["ok"], answer["result"]

    async def identify(self, name: str) -> Self:
        """Log in."""
        await self.ask(AuthIdentify(name))
        return self

    def events(self) -> list[tuple[str, str]]:
        """Give the events that came, of all processes."""
        return [
            (item["event"], item["value"])
            for item in self.received
            if isinstance(item, dict) and item.get("type") == "process_event"
        ]

    async def until_event(self, value: str) -> None:
        """Read until an event with this value has come."""
        await self.until(lambda item: isinstance(item, dict) and item.get("value") == value)

    async def until_ended(self) -> None:
        """Read until a last event has come."""
        await self.until(lambda item: isinstance(item, dict) and item.get("event") in {"return", "error"})
