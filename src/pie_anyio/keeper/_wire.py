# SPDX-License-Identifier: Apache-2.0
"""The one door to the protocol core: the engine's role of it, with pings whose pongs come back."""

from __future__ import annotations

from .._protocol import messages
from .._protocol import websocket as wire
from .._protocol.engine import (
    EngineProtocol,
    MessageReceived,
    PeerBroke,
    PeerClosed,
    TooLarge,
    Undecodable,
    cut_file,
)
from .._protocol.state import ConnectionState
from .._types import Generation

__all__ = [
    "KeeperProtocol",
    "MessageReceived",
    "PeerBroke",
    "PeerClosed",
    "PongReceived",
    "TooLarge",
    "Undecodable",
    "UpgradeRequested",
    "cut_file",
    "messages",
]

PongReceived = wire.PongReceived
UpgradeRequested = wire.UpgradeRequested


class KeeperProtocol(EngineProtocol):
    """The engine's side of one connection, without I/O, as the keeper needs it.

    A pong is the only acknowledgement that the protocol has: whoever answers a ping has read all that came before it.
    """

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation, answer_close=True)
        self._pongs: list[wire.PongReceived] = []

    def ping(self, payload: bytes) -> None:
        """Queue a ping behind everything that is queued."""
        if self.state is ConnectionState.OPEN:
            self._streams.put(0, self._ws.ping(payload))

    def pongs(self) -> list[wire.PongReceived]:
        """Take the pongs that came since the last call."""
        pongs, self._pongs = self._pongs, []
        return pongs

    @property
    def is_open(self) -> bool:
        """Whether requests of every kind count, and events may be sent."""
        return self.state is ConnectionState.OPEN

    def _receive_control(self, item: wire.Item) -> None:
        if isinstance(item, wire.PongReceived):
            self._pongs.append(item)
        else:
            super()._receive_control(item)
