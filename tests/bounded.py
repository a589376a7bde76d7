# SPDX-License-Identifier: Apache-2.0
"""A limit around each test of a folder, for its conftest.

It is not for a fixture to set: a cancel scope around a fixture's yield ends the task that anyio runs the test in, and
whoever waits for the rest of the fixture then waits for ever.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import anyio
import pytest


def bound(item: pytest.Item, seconds: float) -> None:
    """Let an asynchronous test take no longer than this, by the clock of its loop."""
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.obj = _bounded(item.obj, seconds)


def _bounded(test: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    @wraps(test)
    async def bounded(*args: Any, **kwargs: Any) -> None:
        with anyio.fail_after(seconds):
            await test(*args, **kwargs)

    return bounded
