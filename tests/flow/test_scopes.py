# SPDX-License-Identifier: Apache-2.0
"""Bounded shields, the one error out of a task group, and the conflict guard."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from pie_anyio._flow.scopes import ConflictGuard, bounded_cleanup, choose, cleanup_until, raise_single


class Several(Exception):
    """Stands for SessionError."""


class Falsy(Exception):
    """An error that compares equal to others and is false, as users' classes may be."""

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Falsy)

    __hash__ = Exception.__hash__


def several(group: BaseExceptionGroup[BaseException]) -> Exception:
    return Several(f"{len(group.exceptions)} failures")


async def run(
    body: Callable[[], object] = lambda: None,
    *,
    children: tuple[BaseException, ...] = (),
    body_waits: bool = False,
) -> None:
    """Run a task group as the session does: children that fail, and a user's body that may fail as well."""

    async def child(exc: BaseException) -> None:
        try:
            await started.wait()
        finally:
            raise exc

    started = anyio.Event()
    with raise_single(several) as single:
        async with anyio.create_task_group() as task_group:
            for exc in children:
                task_group.start_soon(child, exc)
            await wait_all_tasks_blocked()
            with single.body:
                started.set()
                body()
                if body_waits:
                    await anyio.sleep_forever()


def throw(exc: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise exc

    return body


async def cancellation() -> BaseException:
    """Get a cancellation from the event loop, which is the only one to make them."""
    caught: list[BaseException] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class() as exc:
            caught.append(exc)
            raise
    return caught[0]


# ------------------------------------------------------------------------------------------------- one error


async def test_no_error_no_exception() -> None:
    """A group without failures passes."""
    await run()


async def test_a_single_internal_error_is_raised_itself() -> None:
    """The child's own exception object comes out, without the group as its context, traceback intact."""
    error = ValueError("internal")
    with pytest.raises(ValueError, match="internal") as caught:
        await run(children=(error,), body_waits=True)
    assert caught.value is error
    assert error.__context__ is None
    assert "child" in [entry.name for entry in caught.traceback]


async def test_the_cause_of_an_internal_error_survives() -> None:
    """Unwrapping keeps what `raise ... from` has said."""
    error, cause = ValueError("internal"), OSError("cause")
    error.__cause__ = cause
    with pytest.raises(ValueError, match="internal"):
        await run(children=(error,), body_waits=True)
    assert error.__cause__ is cause


async def test_the_bodys_error_is_raised_itself() -> None:
    """A user's exception passes unchanged."""
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        await run(throw(error))
    assert caught.value is error
    assert error.__context__ is None


async def test_the_bodys_error_wins_and_keeps_the_internal_one_as_context() -> None:
    """Both errors are shown, the user's first."""
    mine, internal = KeyError("mine"), ValueError("internal")
    with pytest.raises(KeyError) as caught:
        await run(throw(mine), children=(internal,))
    assert caught.value is mine
    assert mine.__context__ is internal


async def test_several_internal_errors_hang_on_the_bodys_as_a_group() -> None:
    """The context is the far end of the chain, so that the body's own context stays."""
    mine, own = KeyError("mine"), OSError("own context")
    mine.__context__ = own
    a, b = ValueError("a"), ValueError("b")
    with pytest.raises(KeyError):
        await run(throw(mine), children=(a, b))
    assert mine.__context__ is own
    assert isinstance(own.__context__, ExceptionGroup)
    assert set(own.__context__.exceptions) == {a, b}


async def test_several_internal_errors_become_one() -> None:
    """The error that the caller's factory makes is raised from the group."""
    a, b = ValueError("a"), OSError("b")
    with pytest.raises(Several, match="2 failures") as caught:
        await run(children=(a, b), body_waits=True)
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert set(caught.value.__cause__.exceptions) == {a, b}


async def test_a_group_raised_by_the_body_is_the_same_object() -> None:
    """A user's ExceptionGroup is never opened, rebuilt or reduced."""
    group = ExceptionGroup("mine", [ValueError("only one")])
    with pytest.RaisesGroup(ValueError) as caught:
        await run(throw(group))
    assert caught.value is group


async def test_a_group_raised_by_the_body_is_the_same_object_beside_an_internal_error() -> None:
    """The internal error is added as context, outside the group."""
    group, internal = BaseExceptionGroup("mine", [KeyboardInterrupt()]), ValueError("internal")
    with pytest.RaisesGroup(KeyboardInterrupt) as caught:
        await run(throw(group), children=(internal,))
    assert caught.value is group
    assert group.__context__ is internal


def test_a_group_that_no_task_group_wrapped_passes() -> None:
    """Without a task group in between, the body's group is the one that arrives; it is left alone."""
    group = ExceptionGroup("mine", [ValueError()])
    with pytest.RaisesGroup(ValueError) as caught, raise_single(several) as single, single.body:
        raise group
    assert caught.value is group


async def test_a_group_of_an_inner_task_group_is_opened_by_one_level_only() -> None:
    """What an internal task raised as a group is its error."""
    error = ValueError()
    with pytest.RaisesGroup(ValueError) as caught:
        await run(children=(ExceptionGroup("inner", [error]),), body_waits=True)
    assert caught.value.message == "inner"
    assert caught.value.exceptions == (error,)


async def test_a_group_of_the_body_loses_only_our_own_cancellations() -> None:
    """What is left of a body's group, after our scope took its cancellations out, is the body's error."""
    mine, internal = ValueError("mine"), OSError("internal")
    original = BaseExceptionGroup("body", [mine, await cancellation()])
    rest = ExceptionGroup("body", [mine])
    assert choose(BaseExceptionGroup("group", [internal, rest]), original, several) is rest
    assert rest.__context__ is internal


@pytest.mark.parametrize("fatal", [KeyboardInterrupt(), SystemExit(3)])
def test_what_ends_the_program_comes_first(fatal: BaseException) -> None:
    """KeyboardInterrupt beats the body's error, which becomes its context."""
    mine = ValueError("mine")

    async def main() -> None:
        group = BaseExceptionGroup("group", [mine, fatal])
        assert choose(group, mine, several) is fatal
        assert fatal.__context__ is mine

    anyio.run(main)


async def test_an_interrupt_inside_an_inner_group_comes_first_too() -> None:
    """It must not end up inside the combined error, where an `except Exception` would swallow it."""
    fatal = KeyboardInterrupt()
    inner, other = BaseExceptionGroup("inner", [ValueError(), fatal]), OSError()
    assert choose(BaseExceptionGroup("group", [inner, other]), None, several) is fatal
    assert fatal.__context__ is other


async def test_an_exception_that_is_false_is_still_an_exception() -> None:
    """Identity counts, neither truth nor equality: users' classes define both as they like."""
    mine, other = Falsy("mine"), Falsy("other")
    assert choose(ExceptionGroup("group", [other, mine]), mine, several) is mine
    assert mine.__context__ is other


async def test_no_context_is_tied_into_a_ring() -> None:
    """Errors that are linked already stay as they are."""
    mine, internal = ValueError("mine"), ValueError("internal")
    internal.__context__ = mine
    assert choose(ExceptionGroup("group", [mine, internal]), mine, several) is mine
    assert mine.__context__ is None


async def test_a_ring_of_contexts_does_not_hang() -> None:
    """A user's code may have tied one."""
    mine, other = ValueError("mine"), ValueError("other")
    mine.__context__ = other
    other.__context__ = mine
    assert choose(ExceptionGroup("group", [mine, OSError()]), mine, several) is mine


# ------------------------------------------------------------------------------------------------ cancellation


async def test_a_cancellation_passes_as_such() -> None:
    """A cancelled scope outside catches its own cancellation."""
    with anyio.CancelScope() as scope:
        await run(scope.cancel, body_waits=True)
    assert scope.cancelled_caught


async def test_a_timeout_outside_stays_a_timeout() -> None:
    """`fail_after` around the block raises TimeoutError."""
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.01):
            await run(body_waits=True)


async def test_an_internal_error_beside_a_cancellation_is_not_hidden() -> None:
    """A failure during cancellation is raised, and the scope still is cancelled."""
    error = ValueError("internal")
    with anyio.CancelScope() as scope:
        with pytest.raises(ValueError, match="internal") as caught:
            await run(scope.cancel, children=(error,), body_waits=True)
        assert caught.value is error
        await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught


async def test_a_group_of_cancellations_is_left_alone() -> None:
    """Only an event loop may make cancellations out of it."""
    cancelled = await cancellation()
    group = BaseExceptionGroup("group", [cancelled, BaseExceptionGroup("inner", [cancelled])])
    assert choose(group, None, several) is group
    with pytest.raises(BaseExceptionGroup) as caught, raise_single(several):
        raise group
    assert caught.value is group


# ---------------------------------------------------------------------------------------------- bounded clean-up


async def test_clean_up_runs_in_a_cancelled_scope() -> None:
    """The shield lets the clean-up wait."""
    done = False
    with anyio.CancelScope() as outer:
        outer.cancel()
        with bounded_cleanup(5) as scope:
            await anyio.lowlevel.checkpoint()
            done = True
        assert not scope.cancelled_caught
    assert done


async def test_clean_up_ends_at_its_bound_and_says_so() -> None:
    """A clean-up that hangs is given up."""
    with anyio.fail_after(5), anyio.CancelScope() as outer:
        outer.cancel()
        with bounded_cleanup(0.01) as scope:
            await anyio.sleep_forever()
    assert scope.cancelled_caught


async def test_steps_can_share_a_deadline() -> None:
    """A second step gets what the first has left: nothing, here."""
    deadline = anyio.current_time() + 0.01
    hit = []
    with anyio.fail_after(5):
        for _ in range(2):
            with cleanup_until(deadline) as scope:
                await anyio.sleep_forever()
            hit.append(scope.cancelled_caught)
    assert hit == [True, True]


# --------------------------------------------------------------------------------------------------------- guard


async def test_a_second_user_is_refused() -> None:
    """The message says what the first one is doing, and the guard opens again."""
    guard = ConflictGuard("receiving from")
    with guard:
        with pytest.raises(anyio.BusyResourceError, match="receiving from"):
            with guard:
                raise AssertionError("the guard let a second user in")
    with guard:
        pass
