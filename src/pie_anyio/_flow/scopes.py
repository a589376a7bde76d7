# SPDX-License-Identifier: Apache-2.0
"""Bounded shields, one error out of a task group, and a guard against concurrent users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal, NoReturn, Self

from anyio import CancelScope, ResourceGuard, current_time, get_cancelled_exc_class

# anyio's own guard does what is needed: entering it a second time raises BusyResourceError with the given action.
ConflictGuard = ResourceGuard

SeveralErrors = Callable[[BaseExceptionGroup[BaseException]], Exception]
"""Make the one error that stands for several internal ones; it is raised from the group it is given."""


def bounded_cleanup(seconds: float) -> CancelScope:
    """Shield the clean-up in a `with` block from cancellation for at most `seconds`.

    The scope's `cancelled_caught` tells after the block whether the bound was hit, which the caller must look at and
    report. The clock starts at the call: enter at once. With 0 or less the block runs up to its first wait.
    """
    return cleanup_until(current_time() + seconds)


def cleanup_until(deadline: float) -> CancelScope:
    """Shield as `bounded_cleanup` does, until a deadline (on the loop's clock) that several steps share."""
    return CancelScope(deadline=deadline, shield=True)


class BodyErrors:
    """Note what a user's block raised, without touching it, to tell it from failures of our own tasks later."""

    __slots__ = ("error",)

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> Literal[False]:
        self.error = exc
        return False


class raise_single:  # used as a statement, `with raise_single(...):`, and read as one
    """Turn the exception group of the task group inside this block into one exception.

    ::

        with raise_single(SessionError.from_group) as single:
            async with create_task_group() as task_group:
                task_group.start_soon(reader)
                with single.body:
                    yield self

    Only one level is opened, and only of a group that passes through this block; which exception leaves it is said
    in `choose`. Put nothing but the task group inside: any other group would be taken for the task group's.

    Args:
        several: makes the error for several internal failures at once, from their group.
    """

    __slots__ = ("_several", "body")

    def __init__(self, several: SeveralErrors) -> None:
        self._several = several
        self.body = BodyErrors()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> Literal[False]:
        # A group that the body raised arrives inside the task group's own; the identity test covers the blocks that
        # have no task group around the body after all.
        if isinstance(exc, BaseExceptionGroup) and exc is not self.body.error:
            chosen = choose(exc, self.body.error, self._several)
            if chosen is not exc:
                _raise_with_own_context(chosen)
        return False


def choose(
    group: BaseExceptionGroup[BaseException], body_error: BaseException | None, several: SeveralErrors
) -> BaseException:
    """Choose the one exception that stands for a task group's.

    In this order:

    1. KeyboardInterrupt, SystemExit and the like, the others as its context;
    2. the error of the user's body, unchanged (a group stays the same group), with internal errors as its context;
    3. the internal error, if it is the only one;
    4. `several(group of the internal errors)`, with that group as its cause;
    5. the group itself, if it holds nothing but cancellations.

    Cancellations beside an error are left out, as both event loops do: the cancelled scope raises again at the next
    wait, so neither hides the other.
    """
    cancelled = get_cancelled_exc_class()
    errors = [exc for exc in group.exceptions if not _consists_of(exc, cancelled)]
    if not errors:
        return group
    chosen = _fatal(errors, body_error) or next((exc for exc in errors if exc is body_error), None)
    if chosen is not None:
        _add_context(chosen, [exc for exc in errors if exc is not chosen])
        return chosen
    if len(errors) == 1:
        return errors[0]
    internal = group.derive(errors)
    combined = several(internal)
    combined.__cause__ = internal
    return combined


def _consists_of(exc: BaseException, kind: type[BaseException]) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(kind)[1] is None
    return isinstance(exc, kind)


def _fatal(errors: Sequence[BaseException], body_error: BaseException | None) -> BaseException | None:
    """Find what must end the program; inside groups of our own tasks too, but not inside the user's group."""
    for exc in errors:
        if not isinstance(exc, BaseExceptionGroup):
            if not isinstance(exc, Exception):
                return exc
        elif exc is not body_error and (found := _fatal(exc.exceptions, None)) is not None:
            return found
    return None


def _add_context(exc: BaseException, others: Sequence[BaseException]) -> None:
    """Hang other errors on the far end of the exception's context, where a traceback shows them."""
    if not others:
        return
    chain = _context_chain(exc)
    linked = {id(link) for link in chain}
    # One may be in the chain of the other already: a task that failed because of the body, or the other way round.
    for other in others:
        if not linked.isdisjoint(id(link) for link in _context_chain(other)):
            return
    chain[-1].__context__ = (
        others[0] if len(others) == 1 else BaseExceptionGroup("failed at the same time", others)
    )


def _context_chain(exc: BaseException) -> list[BaseException]:
    """List the exception and its contexts; a user's code may have tied the chain into a ring."""
    chain: list[BaseException] = []
    seen: set[int] = set()
    link: BaseException | None = exc
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        chain.append(link)
        link = link.__context__
    return chain


def _raise_with_own_context(exc: BaseException) -> NoReturn:
    """Raise with the context that the exception has, not the group that is being handled."""
    context = exc.__context__
    try:
        raise exc
    finally:
        exc.__context__ = context
        # The frame must not refer to the exception that refers to the frame.
        del exc, context
