# SPDX-License-Identifier: Apache-2.0
"""``ClientPool``: several connections, to one engine or to many, used as one for fan-out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

from anyio import AsyncContextManagerMixin

from ._client import ProcessClient
from ._exceptions import ConnectionClosed, ConnectionLost, InvalidRequest
from ._receipt import Receipt
from ._session.options import EndpointLike
from ._session.session import Session

__all__ = ["ClientPool"]


class ClientPool(AsyncContextManagerMixin):
    """Connections to several engines, or several connections to one, for ``map_processes``.

    A run goes to the connection with the fewest live runs; a connection that is lost gets no more. A cluster of 0.5
    places all runs of one connection on one worker, so several connections spread the load there.

    ``options`` are those of ``PieClient`` and apply to each connection.

    Raises (when entered):
        ConnectError: an endpoint cannot be reached; the others are closed again.
    """

    def __init__(
        self, urls: Iterable[EndpointLike], *, sockets_per_endpoint: int = 1, **options: Any
    ) -> None:
        if isinstance(urls, str):
            msg = f"a pool takes a list of URLs: write ClientPool([{urls!r}])"
            raise InvalidRequest(msg)
        if sockets_per_endpoint < 1:
            msg = f"sockets_per_endpoint must be at least 1, not {sockets_per_endpoint}"
            raise InvalidRequest(msg)
        self.clients: list[ProcessClient] = [
            ProcessClient(url, **options) for url in urls for _ in range(sockets_per_endpoint)
        ]
        if not self.clients:
            msg = "a pool needs at least one URL"
            raise InvalidRequest(msg)
        self._live: dict[Session, int] = {}

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with AsyncExitStack() as stack:
            for client in self.clients:
                await stack.enter_async_context(client)
                self._live[client.session] = 0
            yield self

    async def pick(self) -> Session:
        """Give the session with the fewest live runs, ready for requests; wait for one where all are being restored.

        Raises:
            ConnectionLost: every connection of the pool is gone.
        """
        while usable := (
            [session for session in self._live if session.is_connected]
            or [session for session in self._live if session.is_coming_back]
        ):
            session = min(usable, key=self._live.__getitem__)
            self._live[session] += 1
            try:
                await session.ready()
            except ConnectionLost:
                self._live[session] -= 1  # it went away while it logged in: there may be others
            except BaseException:
                self._live[session] -= 1
                raise
            else:
                return session
        msg = (
            "every connection of the pool is gone"
            if self._live
            else "the pool is used inside 'async with' only"
        )
        raise ConnectionClosed(msg, issued=False)

    def pick_now(self) -> Session | None:
        """Give the session that ``pick`` would give, where that takes no waiting; else None."""
        session = min(
            (session for session in self._live if session.is_connected),
            key=self._live.__getitem__,
            default=None,
        )
        if session is None or not session.is_ready:
            return None
        self._live[session] += 1
        return session

    def put_back(self, session: Session) -> None:
        """Note that a run on a session is over."""
        self._live[session] -= 1

    @property
    def receipts(self) -> list[Receipt]:
        """The account of each connection."""
        return [client.receipt for client in self.clients]
