# SPDX-License-Identifier: Apache-2.0
"""Delays before trying again."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_anyio import Backoff


def test_delays_grow_up_to_a_maximum() -> None:
    """By the factor, per attempt."""
    backoff = Backoff(initial=1, factor=3, maximum=20, jitter=0)
    assert [backoff.delay(attempt) for attempt in (1, 2, 3, 4, 5)] == [1, 3, 9, 20, 20]


def test_jitter_is_a_share_of_the_delay() -> None:
    """Half of it by default; with 1.0 all of it."""
    assert Backoff(initial=1, random=lambda: 0.0).delay(1) == 1
    assert Backoff(initial=1, random=lambda: 0.5).delay(1) == 0.75
    assert Backoff(initial=1, jitter=1.0, random=lambda: 0.75).delay(1) == 0.25


@given(attempt=st.integers(1, 10**6), factor=st.floats(1, 1e9), jitter=st.floats(0, 1), seed=st.integers())
def test_delays_are_always_sensible(attempt: int, factor: float, jitter: float, seed: int) -> None:
    """After a million attempts, with any factor: neither negative, nor above the maximum, nor an overflow."""
    number = random.Random(seed).random  # noqa: S311 - no secret
    backoff = Backoff(initial=0.1, factor=factor, maximum=9, jitter=jitter, random=number)
    assert 0 <= backoff.delay(attempt) <= 9


def test_clients_do_not_come_back_together() -> None:
    """Two that failed at the same time wait for different times."""
    assert Backoff().delay(3) != Backoff().delay(3)


@pytest.mark.parametrize(
    "options", [{"initial": 0}, {"factor": 0.5}, {"maximum": -1}, {"jitter": 1.5}, {"jitter": -1}]
)
def test_senseless_delays_are_refused(options: dict[str, Any]) -> None:
    """A delay that shrinks, or is negative, is a mistake."""
    with pytest.raises(ValueError, match=next(iter(options))):
        Backoff(**options)
