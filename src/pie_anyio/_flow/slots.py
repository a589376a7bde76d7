# SPDX-License-Identifier: Apache-2.0
"""One-shot results that a synchronous router sets and any number of tasks wait for."""

from __future__ import annotations

from typing import Generic, TypeVar, cast

from anyio.lowlevel import checkpoint

from .parking import ParkingLot

T = TypeVar("T")


class ReplySlot(Generic[T]):
    """Hold one outcome, a value or an error: the first one that is set wins, later ones are refused.

    Setting is synchronous and never fails, so that a router may do it between two events. A slot costs a few
    references until somebody waits: tens of thousands of them are alive during a large fan-out, and most are waited
    for by one task or by none.
    """

    __slots__ = ("_lot", "done", "error", "value")

    def __init__(self) -> None:
        self.done: bool = False
        """Whether an outcome is there."""
        self.value: T | None = None
        """The value, where that is the outcome; for synchronous code."""
        self.error: BaseException | None = None
        """The error, where that is."""
        self._lot: ParkingLot | None = None

    def __repr__(self) -> str:
        # The value is left out: it may be a megabyte of somebody's data, or a secret.
        if self.error is not None:
            return f"<ReplySlot rejected with {type(self.error).__name__}>"
        return "<ReplySlot resolved>" if self.done else "<ReplySlot pending>"

    def set_result(self, value: T) -> bool:
        """Resolve the slot; return False if it already had an outcome, which then stands."""
        if self.done:
            return False
        self.value = value
        self._settle()
        return True

    def set_error(self, error: BaseException) -> bool:
        """Reject the slot; return False if it already had an outcome, which then stands."""
        if self.done:
            return False
        self.error = error
        self._settle()
        return True

    async def wait(self) -> T:
        """Wait for the outcome; return its value or raise its error.

        Any number of tasks may wait, before or after the outcome is set.

        Raises:
            BaseException: the error that the slot was rejected with, the same object for every waiter.

        Cancellation: loses nothing. The outcome stays in the slot; wait again, or look at it.
        """
        if self.done:
            await checkpoint()
        else:
            if self._lot is None:
                self._lot = ParkingLot()
            await self._lot.park()
        if self.error is not None:
            # One exception object serves all waiters. Raising appends the raiser's frames to its traceback, so without
            # a fresh start every waiter would add to it and keep the frames of all the others alive.
            raise self.error.with_traceback(None)
        return cast("T", self.value)

    def _settle(self) -> None:
        self.done = True
        if self._lot is not None:
            self._lot.unpark_all()
            self._lot = None
