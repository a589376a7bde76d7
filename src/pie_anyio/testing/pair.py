# SPDX-License-Identifier: Apache-2.0
"""``ConnectionPair``: both sides of the protocol, coupled by plain function calls. No event loop, no clock, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from .._protocol import engine as engine_core
from .._protocol import websocket as wire
from .._protocol.connection import ClientProtocol
from .._protocol.engine import EngineProtocol
from .._protocol.events import CoreEvent
from .._protocol.messages import ALREADY_AUTHENTICATED, NO_AUTH_LITERAL, AuthIdentify
from .._types import Generation, Limits

Cut: TypeAlias = Callable[[bytes], Iterable[bytes]]
"""How a run of bytes is cut on its way, as a network might."""


def whole(data: bytes) -> Iterable[bytes]:
    """Deliver everything at once."""
    return (data,)


def bytewise(data: bytes) -> Iterable[bytes]:
    """Deliver byte by byte."""
    return (data[index : index + 1] for index in range(len(data)))


def pieces(size: int) -> Cut:
    """Deliver in pieces of ``size`` bytes."""
    return lambda data: (data[start : start + size] for start in range(0, len(data), size))


def counted_entropy(count: int) -> bytes:
    """Stand for randomness: the masking keys of a test need not be unpredictable."""
    return bytes(range(1, count + 1))


class ConnectionPair:
    """A client's and an engine's protocol, and what each has said so far.

    ::

        pair = ConnectionPair(Generation.V05)
        pair.open("alice")
        pair.client.submit(LaunchProcess("echo@0.1.0", "{}"), owner)
        pair.run()
        assert pair.engine_events == [...]

    Args:
        generation: which engine to be.
        cut: how bytes are cut on their way, in both directions.
        choose: which of the engine's streams goes next (see `EngineProtocol`).
        limits: the client's limits.
        answer_close: whether the engine answers a close frame.
    """

    def __init__(
        self,
        generation: Generation = Generation.V05,
        *,
        cut: Cut = whole,
        choose: engine_core.Choose | None = None,
        limits: Limits | None = None,
        answer_close: bool = False,
    ) -> None:
        self.client: Final = ClientProtocol(
            host="engine.test",
            target="/v1/ws",
            headers=[(b"x-pie-identity", b"test/user")],
            entropy=counted_entropy,
            limits=limits,
        )
        self.engine: Final = EngineProtocol(generation, choose=choose, answer_close=answer_close)
        self.cut = cut
        self.client_events: list[CoreEvent] = []
        """What the client's core has said; clear it as you like."""
        self.engine_events: list[engine_core.EngineEvent] = []
        """What the engine's core has said, the upgrade aside, which is accepted at once."""

    def open(self, username: str = "alice") -> None:
        """Shake hands and log in; leaves both event lists empty.

        0.5 needs no login, and 0.4 says that it is disabled; both answers are given here.
        """
        self.run()
        self.client.submit(AuthIdentify(username))
        self.run()
        login = self.engine_events.pop()
        assert isinstance(login, engine_core.MessageReceived)
        assert login.corr_id is not None
        if self.engine.generation is Generation.V05:
            self.engine.respond(login.corr_id, True, ALREADY_AUTHENTICATED)
        else:
            self.engine.authenticated()
            self.engine.respond(login.corr_id, True, NO_AUTH_LITERAL)
        self.run()
        self.client_events.clear()
        self.engine_events.clear()

    def run(self) -> None:
        """Carry bytes to and fro until neither side has anything to send."""
        while self.to_engine() or self.to_client():
            pass

    def to_engine(self) -> int:
        """Carry what the client wants to send; give the number of bytes."""
        carried = 0
        while self.client.wants_write:
            data = self.client.data_to_send()
            carried += len(data)
            for piece in self.cut(data):
                self.feed_engine(piece)
        return carried

    def to_client(self) -> int:
        """Carry what the engine wants to send; give the number of bytes."""
        carried = 0
        while self.engine.wants_write:
            data = self.engine.data_to_send()
            carried += len(data)
            for piece in self.cut(data):
                self.feed_client(piece)
        return carried

    def feed_engine(self, data: bytes | None) -> None:
        """Give the engine bytes, or None for the end of the stream."""
        self.engine.receive_data(data)
        while events := self.engine.events():
            for event in events:
                if isinstance(event, wire.UpgradeRequested):
                    self.engine.accept(authenticated=self.engine.generation is Generation.V05)
                else:
                    self.engine_events.append(event)

    def feed_client(self, data: bytes | None) -> None:
        """Give the client bytes, or None for the end of the stream."""
        self.client.receive_data(data)
        self.client_events += self.client.events()

    def disconnect(self) -> None:
        """End the stream for both sides."""
        self.feed_client(None)
        self.feed_engine(None)
