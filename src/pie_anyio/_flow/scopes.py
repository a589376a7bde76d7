# SPDX-License-Identifier: Apache-2.0
"""Bounded shields, one error out of a task group, and a guard against concurrent users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal, NoReturn, Self, TypeGuard

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
        if _is_group(exc) and exc is not self.body.error:
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
    errors = [exc for exc in group.exceptions if not _consists_of(exc, get_cancelled_exc_class())]
    if not errors:
        return group
    body = [exc for exc in errors if _is_from_body(exc, body_error)]
    internal = [exc for exc in errors if not any(exc is other for other in body)]
    if foremost := _fatal(errors, body) or body:
        chosen, leaves = foremost[0], _leaves(foremost[0])
        if body_error is not None and leaves == _leaves(body_error):
            chosen = body_error
        _add_context(chosen, [exc for exc in errors if leaves.isdisjoint(_leaves(exc))])
        return chosen
    if len(internal) == 1:
        return internal[0]
    failures = group.derive(internal)
    combined = several(failures)
    combined.__cause__ = failures
    return combined


def _is_group(exc: BaseException | None) -> TypeGuard[BaseExceptionGroup[BaseException]]:
    return isinstance(exc, BaseExceptionGroup)


def _consists_of(exc: BaseException, kind: type[BaseException]) -> bool:
    if _is_group(exc):
        return exc.split(kind)[1] is None
    return isinstance(exc, kind)


def _leaves(exc: BaseException) -> set[int]:
    if _is_group(exc):
        return {leaf for member in exc.exceptions for leaf in _leaves(member)}
    return {id(exc)}


def _is_from_body(exc: BaseException, body_error: BaseException | None) -> bool:
    """Recognise the body's error, also where it is a group that trio has copied.

    A cancelled trio scope splits what passes through it, which makes new objects of all groups inside, with the same
    members less the scope's own cancellations.
    """
    if _is_group(exc) and _is_group(body_error):
        return _leaves(exc) <= _leaves(body_error)
    return exc is body_error


def _fatal(errors: Sequence[BaseException], body: Sequence[BaseException]) -> list[BaseException]:
    """Find what must end the program; inside groups of our own tasks too, but not inside the user's group."""
    for exc in errors:
        if _is_group(exc):
            if not any(exc is other for other in body) and (found := _fatal(exc.exceptions, ())):
                return found
        elif not isinstance(exc, Exception):
            return [exc]
    return []


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
