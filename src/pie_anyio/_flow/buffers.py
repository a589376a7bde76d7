# SPDX-License-Identifier: Apache-2.0
"""The unread output of one process: bounded, cancel-safe, and woken at most once per read of the socket."""

from __future__ import annotations

from collections import deque
from typing import Final, Literal, TypeAlias, cast

import attrs
from anyio import BusyResourceError, EndOfStream
from anyio.lowlevel import checkpoint

from .._events import AnyEvent, Gap
from .._events import Event as Kind
from .._exceptions import OutputOverflow
from .parking import ParkingLot

OverflowPolicy: TypeAlias = Literal["error", "drop_oldest", "pause"]

OVERHEAD: Final = 120  # what an event costs in memory beside its text
_BURST: Final = 64  # events handed out between two checkpoints


@attrs.define(eq=False)
class ByteBudget:
    """Bytes that all buffers of one client share."""

    limit: int
    used: int = 0


class EventBuffer:
    """Events of one process between the router, which puts, and one consumer, who takes.

    ``put`` never blocks and never fails. Beyond the limit the policy decides: ``"error"`` drops what comes and has the
    consumer raise ``OutputOverflow`` at that place, once; ``"drop_oldest"`` drops from the front and leaves a ``Gap``.
    (``"pause"`` is another class, ``PausingBuffer``.)
    The terminal event always fits.
    """

    __slots__ = (
        "_budget",
        "_burst",
        "_bytes",
        "_error",
        "_finished",
        "_items",
        "_limit",
        "_lot",
        "_overflowed",
        "_waiting",
        "dropped",
        "policy",
        "process_id",
    )

    def __init__(self, limit: int, budget: ByteBudget, policy: OverflowPolicy = "error") -> None:
        self._limit = limit
        self._budget = budget
        self.policy = policy
        self.process_id: str | None = None
        self.dropped: int = 0
        self._bytes = 0
        self._items: deque[AnyEvent | None] | None = (
            None  # an empty deque takes 0.7 KiB; None marks an overflow
        )
        self._lot: ParkingLot | None = None
        self._error: BaseException | None = None
        self._finished = False
        self._overflowed = False
        self._waiting = False
        self._burst = _BURST

    def __del__(self) -> None:
        # What was left unread must not count against the other processes for ever.
        self._budget.used -= self._bytes

    def __len__(self) -> int:
        return len(self._items) if self._items is not None else 0

    @property
    def buffered_bytes(self) -> int:
        """Memory that the unread events take, by estimate."""
        return self._bytes

    def put(self, event: AnyEvent) -> None:
        """Append one event, under the policy; nothing where the stream has ended."""
        if self._finished:
            return
        size = len(event[1]) + OVERHEAD
        items, budget = self._items, self._budget
        if (
            items is None
            or self._overflowed
            or self._bytes + size > self._limit
            or budget.used + size > budget.limit
        ):
            self._put_slowly(event, size)
            return
        items.append(event)
        self._bytes += size
        budget.used += size
        if self._lot is not None:
            self._lot.unpark_all()
            self._lot = None

    def _put_slowly(self, event: AnyEvent, size: int) -> None:
        """Append the first event, or one that may be too much."""
        if (self._overflowed or self._is_too_much(size)) and not self._make_room(size):
            return
        self._append(event, size)

    def finish(self, event: AnyEvent | None = None) -> None:
        """Append the terminal event, if there is one, and end the stream. Idempotent."""
        if self._finished:
            return
        if event is not None:
            self._append(event, len(event[1]) + OVERHEAD)
        self._finished = True
        self._wake()

    def fail(self, error: BaseException) -> None:
        """End the stream with an error that the consumer gets after what is buffered. The first end stands."""
        if not self._finished:
            self._error = error
            self.finish()

    def stop_pausing(self) -> None:
        """Hold nothing up from here on; this kind of buffer never does."""

    def discard(self) -> None:
        """Drop what is unread, and take nothing more."""
        self._budget.used -= self._bytes
        self._bytes = 0
        self._items = None
        self.finish()

    def take(self) -> AnyEvent | None:
        """Take the next event if it is there and the burst is not over; synchronous, for the hot path of iteration."""
        items = self._items
        if items and self._burst:
            event = items.popleft()
            if event is not None:
                self._burst -= 1
                size = len(event[1]) + OVERHEAD
                self._bytes -= size
                self._budget.used -= size
                return event
            items.appendleft(None)  # an overflow is for the long way to tell
        return None

    async def get(self) -> AnyEvent:
        """Take the next event, waiting for it where there is none.

        Buffered events are handed out in bursts of 64 between two checkpoints: each passes without a turn of the
        event loop, and still no consumer starves it.

        Raises:
            EndOfStream: the terminal event was taken before.
            OutputOverflow: events were dropped at this place.
            ConnectionLost: the connection ended before the process did.
            BusyResourceError: another task is waiting in this method.

        Cancellation: an event leaves the buffer only in the step that returns it, so none is ever lost.
        """
        if self._burst and self._items:
            self._burst -= 1
            return self._pop()
        if self._waiting:
            msg = "reading the events of"
            raise BusyResourceError(msg)
        self._waiting = True
        try:
            if self._items or self._finished:
                await checkpoint()
            while not self._items and not self._finished:
                if self._lot is None:
                    self._lot = ParkingLot()
                await self._lot.park()
        finally:
            self._waiting = False
        self._burst = _BURST
        if self._items:
            return self._pop()
        if self._error is not None:
            raise self._error.with_traceback(None)
        raise EndOfStream

    def _pop(self) -> AnyEvent:
        items = cast("deque[AnyEvent | None]", self._items)
        event = items.popleft()
        if event is None:
            self._overflowed = False
            dropped, self.dropped = self.dropped, 0
            msg = (
                f"process {self.process_id}: {dropped} events were dropped, since too much output was unread; read "
                f"faster, or raise Limits.process_buffer_bytes (now {self._limit}) or client_buffer_bytes (now "
                f"{self._budget.limit})"
            )
            raise OutputOverflow(msg, process_id=self.process_id, dropped=dropped)
        size = len(event[1]) + OVERHEAD
        self._bytes -= size
        self._budget.used -= size
        return event

    def _append(self, event: AnyEvent, size: int) -> None:
        if self._items is None:
            self._items = deque()
        self._items.append(event)
        self._bytes += size
        self._budget.used += size
        self._wake()

    def _wake(self) -> None:
        if self._lot is not None:
            self._lot.unpark_all()
            self._lot = None

    def _is_too_much(self, size: int) -> bool:
        return self._bytes + size > self._limit or self._budget.used + size > self._budget.limit

    def _make_room(self, size: int) -> bool:
        self.dropped += 1
        if self.policy == "error":
            if not self._overflowed:
                self._overflowed = True
                if self._items is None:
                    self._items = deque()
                self._items.append(None)
                self._wake()
            return False
        while self._items and self._is_too_much(size):
            self._forget_oldest(self._items)
        # A gap stands where the dropped events were: at the front.
        gap = Gap(Kind.Gap, "output was dropped: it was not read in time")
        if self._items is None:
            self._items = deque()
        self._items.appendleft(gap)
        self._bytes += len(gap.value) + OVERHEAD
        self._budget.used += len(gap.value) + OVERHEAD
        return True

    def _forget_oldest(self, items: deque[AnyEvent | None]) -> None:
        event = cast("AnyEvent", items.popleft())  # marks of an overflow belong to the other policy
        freed = len(event[1]) + OVERHEAD
        self._bytes -= freed
        self._budget.used -= freed
