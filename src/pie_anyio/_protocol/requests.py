# SPDX-License-Identifier: Apache-2.0
"""The requests of one connection that are not settled yet, and their correlation ids."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import attrs

from .._types import CorrelationId
from .messages import MAX_CORR_ID, Request
from .outbox import Entry, Outbox
from .state import REQUEST, RequestState, RequestTrigger, advance


class Abandoned(IntEnum):
    """What became of a request whose caller left."""

    WITHDRAWN = 0
    """Nothing was ever sent."""
    AWAITING_REPLY = 1
    """It may have been sent; the core ends whatever its answer starts."""
    ALREADY_RESOLVED = 2
    """The answer had come before."""


@attrs.define(eq=False)
class Pending(Entry):
    """One request between its submission and its answer, and the place of its message in the outbox.

    That of an upload has no message of its own but a number of ``chunks``.
    """

    request: Request
    owner: object
    quiet: bool = False
    chunks: tuple[Entry, ...] = ()
    state: RequestState = RequestState.QUEUED

    @property
    def claims_process(self) -> bool:
        """Whether an answer may make a new process known."""
        return self.request.claims_process

    def withdraw(self, outbox: Outbox) -> None:
        """Take back what has not been sent."""
        for entry in (self, *self.chunks):
            outbox.withdraw(entry)

    def advance(self, trigger: RequestTrigger) -> None:
        """Move to the state that the table gives."""
        self.state = advance(REQUEST, self.state, trigger)


class RequestTable:
    """Unsettled requests by correlation id."""

    __slots__ = ("_last", "_pending", "claiming", "get")

    def __init__(self, first: int = 1) -> None:
        self._pending: dict[int | None, Pending] = {}
        self.get: Callable[[int | None], Pending | None] = self._pending.get
        """Look a request up; None, the number of messages that are never answered, finds nothing."""
        self._last = first - 1
        self.claiming = 0
        """Launches and attaches that are unanswered; while there are any, unknown processes may become known."""

    def __len__(self) -> int:
        return len(self._pending)

    def next_id(self) -> CorrelationId:
        """Give an unused id; wraps below 2**32 and skips what is still in flight."""
        while True:
            self._last = self._last + 1 if self._last < MAX_CORR_ID else 1
            if self._last not in self._pending:
                return self._last  # type: ignore[return-value] # calling the type costs as much as all the rest

    def add(self, pending: Pending) -> None:
        """Register a request."""
        self._pending[pending.corr_id] = pending
        self.claiming += pending.request.claims_process

    def settle(self, pending: Pending, outbox: Outbox) -> None:
        """Forget a request that needs no further attention, with what is still queued of it."""
        if pending.payload is not None or pending.chunks:
            pending.withdraw(outbox)
        del self._pending[pending.corr_id]
        self.claiming -= pending.request.claims_process

    def abandon(self, corr_id: int, outbox: Outbox) -> Abandoned:
        """Give up a request on behalf of its caller."""
        pending = self._pending.get(corr_id)
        if pending is None:
            return Abandoned.ALREADY_RESOLVED
        pending.advance(RequestTrigger.ABANDON)
        if pending.state is RequestState.WITHDRAWN:
            self.settle(pending, outbox)
            pending.owner = None  # the place in the outbox may stay for a while
            return Abandoned.WITHDRAWN
        pending.withdraw(outbox)
        return Abandoned.AWAITING_REPLY

    def drain(self) -> list[Pending]:
        """Take everything, for the end of the connection."""
        left = list(self._pending.values())
        self._pending.clear()
        self.claiming = 0
        return left
