# SPDX-License-Identifier: Apache-2.0
"""The inputs of a map, one at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

from pie_anyio import InvalidRequest
from pie_anyio._map_source import Item, Source


async def count_to(number: int) -> AsyncIterator[int]:
    """Count asynchronously."""
    for n in range(number):
        await anyio.lowlevel.checkpoint()
        yield n


async def test_inputs_are_numbered() -> None:
    """From 0, with the index for a key where there is no key function; None at the end, again and again."""
    expected = [Item(0, 0, 0), Item(1, 1, 1), None, None]
    source = Source(range(2), None)
    assert not source.waits
    assert [source.take() for _ in range(4)] == expected
    source = Source(count_to(2), None)
    assert source.waits
    assert [await source.pull() for _ in range(4)] == expected


def test_keys_are_made_of_inputs() -> None:
    """By the caller's function."""
    source = Source(["a", "b"], str.upper)
    assert [source.take(), source.take()] == [Item(0, "A", "a"), Item(1, "B", "b")]


def test_nothing_is_taken_before_it_is_asked_for() -> None:
    """Making a source takes nothing, and each pull takes one."""
    taken = []

    def inputs() -> Iterator[int]:
        for n in range(3):
            taken.append(n)
            yield n

    source = Source(inputs(), None)
    assert taken == []
    source.take()
    assert taken == [0]


async def test_what_was_not_taken_is_left_to_the_caller() -> None:
    """The iterable is not closed."""
    numbers, later = iter(range(3)), count_to(3)
    Source(numbers, None).take()
    await Source(later, None).pull()
    assert next(numbers) == 1
    assert await anext(later) == 1
    assert await anext(later) == 2
    with pytest.raises(StopAsyncIteration):
        await anext(later)


@pytest.mark.parametrize("inputs", ["text", b"", 1, None, object()])
def test_no_iterable_of_inputs(inputs: Any) -> None:
    """What is no collection is refused by its type."""
    with pytest.raises(InvalidRequest, match=type(inputs).__name__):
        Source(inputs, None)
