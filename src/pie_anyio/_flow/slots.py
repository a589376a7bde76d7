# SPDX-License-Identifier: Apache-2.0
"""One-shot results that a synchronous router sets and any number of tasks wait for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from anyio import Event
from anyio.lowlevel import checkpoint
from attrs import frozen

T = TypeVar("T")


@frozen
class Resolved(Generic[T]):
    """The outcome of a slot that got a value."""

    value: T


@frozen(eq=False)
class Rejected:
    """The outcome of a slot that got an error."""

    error: BaseException


class ReplySlot(Generic[T]):
    """Hold one outcome: the first one that is set wins, later ones are refused.

    Setting is synchronous and never fails, so that a router may do it between two events. A slot costs two
    references until somebody waits: tens of thousands of them are alive during a large fan-out, and most are waited
    for by one task or by none.
    """

    __slots__ = ("__weakref__", "_event", "_outcome", "_watcher")

    def __init__(self) -> None:
        self._outcome: Resolved[T] | Rejected | None = None
        self._event: Event | None = None
        self._watcher: Callable[[], object] | None = None

    def __repr__(self) -> str:
        # The value is left out: it may be a megabyte of somebody's data, or a secret.
        outcome = self._outcome
        if isinstance(outcome, Rejected):
            return f"<ReplySlot rejected with {type(outcome.error).__name__}>"
        return "<ReplySlot pending>" if outcome is None else "<ReplySlot resolved>"

    @property
    def done(self) -> bool:
        """Tell whether an outcome is there."""
        return self._outcome is not None

    def peek(self) -> Resolved[T] | Rejected | None:
        """Return the outcome, or None while there is none; for synchronous clean-up code."""
        return self._outcome

    def set_result(self, value: T) -> bool:
        """Resolve the slot; return False if it already had an outcome, which then stands."""
        return self._settle(Resolved(value))

    def set_error(self, error: BaseException) -> bool:
        """Reject the slot; return False if it already had an outcome, which then stands."""
        return self._settle(Rejected(error))

    def watch(self, callback: Callable[[], object]) -> None:
        """Have a function called in the very step that sets the outcome, or now if it is there.

        For one owner of many slots, to whom a waiting task for each would cost more than all the rest. The function
        must not raise; a second one takes the place of the first.
        """
        if self._outcome is not None:
            callback()
        else:
            self._watcher = callback

    async def wait(self) -> T:
        """Wait for the outcome; return its value or raise its error.

        Any number of tasks may wait, before or after the outcome is set.

        Raises:
            BaseException: the error that the slot was rejected with, the same object for every waiter.

        Cancellation: loses nothing. The outcome stays in the slot; wait again, or look with `peek`.
        """
        if self._outcome is None:
            if self._event is None:
                self._event = Event()
            await self._event.wait()
        else:
            await checkpoint()
        return self._deliver()

    def _settle(self, outcome: Resolved[T] | Rejected) -> bool:
        if self._outcome is not None:
            return False
        self._outcome = outcome
        if self._event is not None:
            self._event.set()
            self._event = None
        if self._watcher is not None:
            watcher, self._watcher = self._watcher, None
            watcher()
        return True

    def _deliver(self) -> T:
        outcome = self._outcome
        assert outcome is not None, "a waiter of a ReplySlot was woken without an outcome"
        if isinstance(outcome, Resolved):
            return outcome.value
        # One exception object serves all waiters. Raising appends the raiser's frames to its traceback, so without a
        # fresh start every waiter would add to it and keep the frames of all the others alive.
        raise outcome.error.with_traceback(None)
