# SPDX-License-Identifier: Apache-2.0
"""The inputs of a map: any iterable or async iterable, pulled one at a time and only when a run may start."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import attrs
from anyio import Lock

from ._exceptions import InvalidRequest


@attrs.frozen
class Item:
    """One input with its place."""

    index: int
    key: Any
    value: Any


class Source:
    """Gives inputs to many workers, each exactly once."""

    def __init__(self, inputs: Iterable[Any] | AsyncIterable[Any], key: Callable[[Any], Any] | None) -> None:
        self._key = key
        self._sync: Iterator[Any] | None = None
        self._async: AsyncIterator[Any] | None = None
        given: object = inputs  # callers without a type checker pass a single input
        if isinstance(given, AsyncIterable):
            self._async = aiter(given)
        elif isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
            self._sync = iter(given)
        else:
            msg = f"the inputs must be an iterable of inputs, not {type(given).__name__}"
            raise InvalidRequest(msg)
        self._lock = Lock()
        self._exhausted = False
        self.taken = 0

    async def pull(self) -> Item | None:
        """Take the next input, or None where there is none left.

        Raises whatever the iterable raises; nothing more is taken after that.

        Cancellation: an async iterable may lose the input that it was about to give, as async iterators do.
        """
        if self._sync is not None:
            return self._take_sync(self._sync)
        assert self._async is not None
        async with self._lock:
            if self._exhausted:
                return None
            try:
                value = await anext(self._async)
            except StopAsyncIteration:
                self._exhausted = True
                return None
            except Exception:
                self._exhausted = True
                raise
            return self._number(value)

    def _take_sync(self, iterator: Iterator[Any]) -> Item | None:
        if self._exhausted:
            return None
        try:
            value = next(iterator)
        except StopIteration:
            self._exhausted = True
            return None
        except Exception:
            self._exhausted = True
            raise
        return self._number(value)

    def _number(self, value: Any) -> Item:
        index = self.taken
        self.taken += 1
        return Item(index, index if self._key is None else self._key(value), value)
