# SPDX-License-Identifier: Apache-2.0
"""The inputs of a map: any iterable or async iterable, pulled one at a time and only when a run may start."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any

import attrs

from ._exceptions import InvalidRequest
from ._outcomes import Lost


@attrs.define
class Item:
    """One input with its place, and what has been tried for it."""

    index: int
    key: Any
    value: Any
    refusals: int = 0
    attempts: int = 1
    lost: Lost | None = None
    """The latest run of it that was lost."""


class Source:
    """Numbers the inputs. For one task: a generator's cancel scopes belong to the task that pulls.

    The iterable is the caller's, and is not closed: what was not taken may still be used.

    Raises:
        InvalidRequest: it is not an iterable of inputs.
    """

    def __init__(self, inputs: Iterable[Any] | AsyncIterable[Any], key: Callable[[Any], Any] | None) -> None:
        self._key = key
        self._taken = 0
        given: object = inputs  # callers without a type checker pass a single input
        self.waits = isinstance(given, AsyncIterable)
        """Whether the next input may be long in coming."""
        if isinstance(given, AsyncIterable):
            self._async = aiter(given)
        elif isinstance(given, Iterable) and not isinstance(given, (str, bytes, bytearray, memoryview)):
            self._sync = iter(given)
        else:
            msg = f"the inputs must be an iterable of inputs, not {type(given).__name__}"
            raise InvalidRequest(msg)

    async def pull(self) -> Item | None:
        """Take the next input, or None where there is none left, of an iterable that may wait.

        Checkpoints only as that does. Raises whatever the iterable or the key function raises.

        Cancellation: an async iterable may lose the input that it was about to give, as async iterators do.
        """
        try:
            value = await anext(self._async)
        except StopAsyncIteration:
            return None
        return self._number(value)

    def take(self) -> Item | None:
        """Take the next input, or None where there is none left, of an iterable that does not wait.

        Raises whatever the iterable or the key function raises.
        """
        try:
            value = next(self._sync)
        except StopIteration:
            return None
        return self._number(value)

    def _number(self, value: Any) -> Item:
        index = self._taken
        self._taken += 1
        return Item(index, index if self._key is None else self._key(value), value)
