# SPDX-License-Identifier: Apache-2.0
"""Signals between synchronous producers and one waiting task: work to do, and room to send."""

from __future__ import annotations

from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint_if_cancelled

from .parking import ParkingLot


class Wake:
    """Tell one consumer, level-triggered, that there is work.

    Any number of `set` calls before a `wait` make that wait return once; the consumer then does all the work there
    is. A set between two waits is never lost.
    """

    __slots__ = ("_is_set", "_lot")

    def __init__(self) -> None:
        self._is_set = False
        self._lot: ParkingLot | None = None

    @property
    def is_set(self) -> bool:
        """Tell whether the next `wait` returns at once."""
        return self._is_set

    def set(self) -> None:
        """Announce work; never blocks."""
        self._is_set = True
        if self._lot is not None:
            self._lot.unpark_all()
            self._lot = None

    async def wait(self) -> None:
        """Wait until there is work, and clear the signal.

        Cancellation: the signal stays set, if it was, and the next wait sees it.
        """
        await checkpoint_if_cancelled()
        if self._is_set:
            await cancel_shielded_checkpoint()
        else:
            if self._lot is None:
                self._lot = ParkingLot()
            await self._lot.park()
        # Cleared only now that the wait is certain to return: a cancelled one must leave the signal for the next.
        self._is_set = False


class HighWater:
    """Hold bulk senders back while too many bytes are queued.

    The gate shuts when the level rises above `high` and opens again only when it has come down to `low`: without the
    distance between the two every small write would wake every sender for the room of a few bytes.

    Args:
        high: level in bytes above which `wait_below` blocks.
        low: level in bytes at which a shut gate opens; half of `high` if not given.
    """

    __slots__ = ("_error", "_high", "_level", "_lot", "_low", "_shut")

    def __init__(self, high: int, low: int | None = None) -> None:
        low = high // 2 if low is None else low
        if not 0 <= low <= high:
            raise ValueError(f"the water marks need 0 <= low <= high, not low={low}, high={high}")
        self._high = high
        self._low = low
        self._level = 0
        self._shut = False
        self._lot: ParkingLot | None = None
        self._error: BaseException | None = None

    @property
    def level(self) -> int:
        """The number of bytes accounted for now."""
        return self._level

    @property
    def is_shut(self) -> bool:
        """Tell whether `wait_below` would block; false once the gate has failed."""
        return self._shut and self._error is None

    def add(self, nbytes: int) -> None:
        """Account for bytes that were queued; never blocks, even above the mark."""
        self._level += nbytes
        if self._level > self._high:
            self._shut = True

    def remove(self, nbytes: int) -> None:
        """Account for bytes that left the queue, and open the gate at the low mark."""
        if nbytes > self._level:
            raise ValueError(f"cannot take {nbytes} bytes from a level of {self._level}")
        self._level -= nbytes
        if self._shut and self._level <= self._low:
            self._shut = False
            self._release()

    def set_level(self, nbytes: int) -> None:
        """Set the level to a total that is counted elsewhere; equal to the one `add` or `remove` that leads there."""
        change = nbytes - self._level
        if change >= 0:
            self.add(change)
        else:
            self.remove(-change)

    def fail(self, error: BaseException) -> None:
        """Let every present and future waiter raise `error`; the first failure stands."""
        if self._error is None:
            self._error = error
            self._release()

    async def wait_below(self) -> None:
        """Wait until the gate is open.

        Raises:
            BaseException: what `fail` was called with.

        Cancellation: nothing is lost, the level is as before.
        """
        await checkpoint_if_cancelled()
        if not self.is_shut:
            await cancel_shielded_checkpoint()
        # A loop, since an earlier waiter may have filled the queue again before this one got its turn.
        while self.is_shut:
            if self._lot is None:
                self._lot = ParkingLot()
            await self._lot.park()
        if self._error is not None:
            # See ReplySlot: a shared exception must not collect the frames of all its raisers.
            raise self._error.with_traceback(None)

    def _release(self) -> None:
        if self._lot is not None:
            self._lot.unpark_all()
            self._lot = None
