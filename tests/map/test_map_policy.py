# SPDX-License-Identifier: Apache-2.0
"""How many failures a map tolerates."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from pie_anyio import InvalidRequest, PieClient, ProcessError, ProcessFailed
from pie_anyio._map_policy import KEPT_ERRORS, FailurePolicy, failure_policy
from pie_anyio.testing import SimulatedEngine

DO = "do@0.1.0"


def feed(policy: FailurePolicy, pattern: str) -> list[bool]:
    """Note an item for each letter, "x" for one that failed."""
    return [policy.note(ProcessError("bad") if letter == "x" else None) for letter in pattern]


def test_raise_tolerates_nothing() -> None:
    """The first failure is one too many."""
    assert feed(failure_policy("raise", 5), "..x") == [False, False, True]
    assert feed(failure_policy(0, None), ".x") == [False, True]


def test_collect_tolerates_everything_and_keeps_nothing() -> None:
    """Errors are in the outcomes; the policy holds none of them."""
    policy = failure_policy("collect", None)
    assert not any(feed(policy, "x" * 50))
    policy.conclude()
    assert not policy.exceeded
    assert policy.errors == []
    assert (policy.failures, policy.finished) == (50, 50)


def test_a_count_is_tolerated_exactly() -> None:
    """One more is too many, and stays so."""
    policy = failure_policy(2, None)
    assert feed(policy, "x.x.x.") == [False, False, False, False, True, True]
    assert len(policy.errors) == 3


@pytest.mark.parametrize(
    ("share", "total", "pattern", "stops_at"),
    [
        (0.5, 4, "xx..", None),
        (0.5, 4, "xxx.", 3),
        (0.25, 4, "x...", None),
        (0.25, 4, "x..x", 4),
        (0.1, 9, "x........", 1),  # one of nine is more than a tenth
    ],
)
def test_a_share_of_a_known_number(share: float, total: int, pattern: str, stops_at: int | None) -> None:
    """Judged against all items, so a map stops as soon as it cannot be kept any more."""
    answers = feed(failure_policy(share, total), pattern)
    assert (answers.index(True) + 1 if True in answers else None) == stops_at


def test_a_share_of_an_unknown_number() -> None:
    """Judged from the twentieth item on, and at the end."""
    assert feed(failure_policy(0.5, None), "x" * 21) == [False] * 19 + [True] * 2
    assert feed(failure_policy(0.5, None), "x" * 19 + ".") == [False] * 19 + [True]
    policy = failure_policy(0.5, None)
    assert not any(feed(policy, "xx."))
    policy.conclude()
    assert policy.exceeded
    kept = failure_policy(0.5, None)
    assert not any(feed(kept, "x."))
    kept.conclude()
    assert not kept.exceeded


def test_errors_are_kept_up_to_a_number() -> None:
    """A tolerant map of millions does not hold millions of errors."""
    policy = failure_policy(10**6, None)
    feed(policy, "x" * (KEPT_ERRORS + 5))
    assert len(policy.errors) == KEPT_ERRORS
    assert policy.failures == KEPT_ERRORS + 5


@pytest.mark.parametrize("on_error", ["stop", -1, True, False, 0.0, 1.0, 1.5, -0.5, None, []])
def test_senseless_policies_are_refused(on_error: Any) -> None:
    """The message names what there is."""
    with pytest.raises(InvalidRequest, match="'raise', 'collect', a number of failures, or a fraction"):
        failure_policy(on_error, None)


# ----------------------------------------------------------------------------------------------------------- in a map


def items(pattern: str) -> list[dict[str, Any]]:
    """Make an input for each letter, "x" for one that fails; one second apart."""
    return [
        {"nap": n, "fail": f"item {n}"} if letter == "x" else {"nap": n} for n, letter in enumerate(pattern)
    ]


async def test_tolerated_failures_are_outcomes(engine: SimulatedEngine, client: PieClient) -> None:
    """With a number, a list of outcomes is awaited; the group holds all failures when there are too many."""
    outcomes = await client.map_processes(DO, items("x.x."), on_error=2)
    assert [outcome.status for outcome in outcomes] == ["failed", "returned", "failed", "returned"]
    with pytest.raises(ExceptionGroup, match="2 of 3 finished runs") as caught:
        await client.map_processes(DO, items("x.x."), on_error=1)
    errors = caught.value.exceptions
    assert all(isinstance(error, ProcessFailed) for error in errors)
    assert [error.index for error in errors if isinstance(error, ProcessError)] == [0, 2]
    assert engine.live_processes == {}


async def test_outcomes_before_the_limit_is_passed(client: PieClient) -> None:
    """Entered, each failure is given, also the one too many, and then the group is raised."""
    seen: list[str] = []
    with pytest.raises(ExceptionGroup):
        async with client.map_processes(DO, items("x.x..."), on_error=0.2) as outcomes:
            async for outcome in outcomes:
                seen += [outcome.status]
    assert seen == ["failed", "returned", "failed"]


async def test_a_share_of_endless_inputs(client: PieClient) -> None:
    """The map ends by itself when too much has failed."""

    def inputs() -> Iterator[Any]:
        return ({"fail": "x"} if n % 2 else {} for n in itertools.count())

    with pytest.raises(ExceptionGroup, match=r"finished runs of do@0\.1\.0 failed"):
        await client.map_processes(DO, inputs(), on_error=0.3, limit=4)


async def test_a_share_is_judged_at_the_end(client: PieClient) -> None:
    """Of few inputs whose number was not known, too."""
    with pytest.raises(ExceptionGroup, match="2 of 3 finished"):
        await client.map_processes(DO, iter(items("xx.")), on_error=0.5)
