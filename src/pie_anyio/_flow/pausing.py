# SPDX-License-Identifier: Apache-2.0
"""Output that must neither be lost nor pile up: a buffer that has the connection wait for whoever reads it."""

from __future__ import annotations

from typing import Final, get_args

import attrs
from anyio.lowlevel import checkpoint

from .._events import AnyEvent
from .._exceptions import InvalidRequest
from .buffers import OVERHEAD, ByteBudget, EventBuffer, OverflowPolicy
from .parking import ParkingLot

_POLICIES: Final = get_args(OverflowPolicy)


class Intake:
    """Whether a connection may be read from: not while any of its buffers is ahead of its consumer.

    The valve is a set of those buffers, so that each may shut and open it on its own account, any number of times.
    """

    __slots__ = ("_ahead", "_lot", "is_abolished", "is_suspended")

    def __init__(self) -> None:
        self._ahead: set[object] = set()
        self._lot: ParkingLot | None = None
        self.is_abolished: bool = False
        """It stays open from here on, since the connection is being closed."""
        self.is_suspended: bool = False
        """It counts as open for now, since a connection is being restored."""

    @property
    def is_shut(self) -> bool:
        """Whether reading has to wait."""
        return bool(self._ahead) and not self.is_suspended

    def shut(self, buffer: object) -> None:
        """Note that a buffer is ahead of its consumer."""
        if not self.is_abolished:
            self._ahead.add(buffer)

    def open(self, buffer: object) -> None:
        """Note that a buffer is not, or that nobody cares any more. Idempotent."""
        self._ahead.discard(buffer)
        if not self._ahead:
            self._wake()

    def is_shut_by(self, buffer: object) -> bool:
        """Whether this buffer is one of those that reading waits for."""
        return buffer in self._ahead

    def open_all(self) -> None:
        """Let the reader go on, which has to notice that the connection has ended."""
        self._ahead.clear()
        self._wake()

    def abolish(self) -> None:
        """Open it for good: what is said at the end of a connection has to be heard."""
        self.is_abolished = True
        self.open_all()

    async def wait(self) -> None:
        """Wait until it has been opened; it may be shut again by then.

        Cancellation: changes nothing.
        """
        if not self._ahead:
            await checkpoint()
            return
        if self._lot is None:
            self._lot = ParkingLot()
        await self._lot.park()

    def _wake(self) -> None:
        if self._lot is not None:
            self._lot.unpark_all()
            self._lot = None


class PausingBuffer(EventBuffer):
    """Events of a process for which reading stops when its buffer is full, and goes on when half of it was taken.

    What one read brings is taken whole, so the buffer is over its limit by at most one read of the socket. Where
    stopping would do harm, it drops the oldest instead: after :meth:`stop_pausing`, and when the connection is closed.
    """

    __slots__ = ("_intake", "_resume_at")

    def __init__(self, limit: int, budget: ByteBudget, intake: Intake) -> None:
        super().__init__(limit, budget, "pause")
        self._intake = intake
        self._resume_at = limit // 2

    def put(self, event: AnyEvent) -> None:
        """Append one event; nothing where the stream has ended."""
        if self._intake.is_abolished:
            self.policy = "drop_oldest"
        if self.policy != "pause":
            super().put(event)
        elif not self._finished:
            self._append(event, len(event[1]) + OVERHEAD)
            if self._is_too_much(0) and not self._intake.is_shut_by(self):
                # Where it is all buffers together that hold too much, this one has to come down from where it is.
                self._resume_at = min(self._limit, self._bytes) // 2
                self._intake.shut(self)

    def take(self) -> AnyEvent | None:
        """Take the next event, as every buffer does."""
        event = super().take()
        self._check()
        return event

    async def get(self) -> AnyEvent:
        """Take the next event, as every buffer does.

        Cancellation: an event leaves the buffer only in the step that returns it, so none is ever lost.
        """
        event = await super().get()
        self._check()
        return event

    def finish(self, event: AnyEvent | None = None) -> None:
        """Append the terminal event, if there is one, and end the stream: nothing more can pile up. Idempotent."""
        super().finish(event)
        self._intake.open(self)

    def stop_pausing(self) -> None:
        """Drop the oldest events from here on rather than hold the connection up. Idempotent."""
        self.policy = "drop_oldest"
        self._intake.open(self)

    def _check(self) -> None:
        if self._bytes <= self._resume_at and self._intake.is_shut_by(self):
            self._intake.open(self)


@attrs.frozen(eq=False)
class Buffers:
    """Makes the buffers of one client, which share a budget and the intake that they may shut."""

    limit: int
    """Bytes for each."""
    budget: ByteBudget
    """Bytes for all."""
    intake: Intake

    def new(self, policy: OverflowPolicy) -> EventBuffer:
        """Make the buffer for a policy."""
        if policy == "pause":
            return PausingBuffer(self.limit, self.budget, self.intake)
        return EventBuffer(self.limit, self.budget, policy)


def check_overflow(policy: OverflowPolicy) -> OverflowPolicy:
    """Refuse what is no policy.

    Raises:
        InvalidRequest: it is none.
    """
    if policy not in _POLICIES:
        msg = f"overflow must be 'error', 'drop_oldest' or 'pause', not {policy!r}"
        raise InvalidRequest(msg)
    return policy
