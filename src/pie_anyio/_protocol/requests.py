# SPDX-License-Identifier: Apache-2.0
"""The requests of one connection that are not settled yet, and their correlation ids."""

from __future__ import annotations

from enum import IntEnum

import attrs

from .._types import CorrelationId
from .messages import MAX_CORR_ID, AttachProcess, LaunchProcess, Request
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
class Pending:
    """One request between its submission and its answer."""

    request: Request
    corr_id: CorrelationId
    owner: object
    quiet: bool
    entries: list[Entry]
    """The queued messages: one, or the chunks of an upload."""
    claims_process: bool = False
    """Whether an answer may make a new process known."""
    state: RequestState = RequestState.QUEUED

    def withdraw(self, outbox: Outbox) -> None:
        """Take back what has not been sent."""
        for entry in self.entries:
            outbox.withdraw(entry)

    def advance(self, trigger: RequestTrigger) -> None:
        """Move to the state that the table gives."""
        self.state = advance(REQUEST, self.state, trigger)


class RequestTable:
    """Unsettled requests by correlation id."""

    __slots__ = ("_last", "_pending", "claiming")

    def __init__(self, first: int = 1) -> None:
        self._pending: dict[int, Pending] = {}
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
                return CorrelationId(self._last)

    def add(self, pending: Pending) -> None:
        """Register a request."""
        pending.claims_process = isinstance(pending.request, (LaunchProcess, AttachProcess))
        self._pending[pending.corr_id] = pending
        self.claiming += pending.claims_process

    def get(self, corr_id: int) -> Pending | None:
        """Look a request up."""
        return self._pending.get(corr_id)

    def settle(self, pending: Pending, outbox: Outbox) -> None:
        """Forget a request that needs no further attention, with what is still queued of it."""
        pending.withdraw(outbox)
        del self._pending[pending.corr_id]
        self.claiming -= pending.claims_process

    def abandon(self, corr_id: int, outbox: Outbox) -> Abandoned:
        """Give up a request on behalf of its caller."""
        pending = self._pending.get(corr_id)
        if pending is None:
            return Abandoned.ALREADY_RESOLVED
        pending.advance(RequestTrigger.ABANDON)
        if pending.state is RequestState.WITHDRAWN:
            self.settle(pending, outbox)
            return Abandoned.WITHDRAWN
        pending.withdraw(outbox)
        return Abandoned.AWAITING_REPLY

    def drain(self) -> list[Pending]:
        """Take everything, for the end of the connection."""
        left = list(self._pending.values())
        self._pending.clear()
        self.claiming = 0
        return left
