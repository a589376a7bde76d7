# SPDX-License-Identifier: Apache-2.0
"""Where the keeper of an engine is, when nobody says otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import attrs
import blake3
import platformdirs

from .server import socket_url


@attrs.frozen
class Places:
    """The socket, the store and the log of one keeper."""

    socket: Path
    store: Path

    @property
    def log(self) -> Path:
        """Where a keeper in the background writes what it has to say."""
        return self.store.with_name("log")

    @property
    def url(self) -> str:
        """What clients connect to."""
        return socket_url(self.socket)

    @property
    def exist(self) -> bool:
        """Whether there is, or was, a keeper."""
        return self.socket.exists() or self.store.exists()

    @classmethod
    def find(cls, *login: str | None) -> Self:
        """Give the places for an engine and whoever logs in there: whose processes they are depends on both."""
        name = blake3.blake3("\0".join(part or "" for part in login).encode()).hexdigest()[:16]
        state = platformdirs.user_state_path("pie-anyio", appauthor=False) / "keeper" / name
        folder = state
        if runtime := os.environ.get("XDG_RUNTIME_DIR"):
            # Not through platformdirs, which falls back to a directory in /tmp that anybody could make before us.
            folder = Path(runtime) / "pie-anyio" / name
        return cls(folder / "socket", state / "store")
