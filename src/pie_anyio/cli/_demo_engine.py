# SPDX-License-Identifier: Apache-2.0
"""The engine of the demonstration: the real one where it runs, else a simulated one, and its second wind."""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Final, Literal

import anyio
import attrs

from pie_anyio.testing import InferletSession, RealEngine, RealEngineUnavailable, SimulatedEngine

from ._engine import engine_home
from ._errors import FAILED, UserError

_PROGRAM: Final = "choice@0.1.0"

_PAGES: Final = 64
"""Key-value pages of the real engine: room for about a dozen questions, so that 16 at a time meet refusals."""

_CAPACITY: Final = 12
_DEATH_NOTICE: Final = 5.0
"""Seconds for a dead engine's process to be seen to have ended, after its connection has."""

EngineChoice = Literal["auto", "real", "simulated"]


@attrs.frozen
class DemoEngine:
    """A running engine."""

    url: str
    description: str
    real: RealEngine | None = None

    async def revive(self) -> bool:
        """Boot the engine again if it has died; say whether it had.

        Raises:
            UserError: it does not come back.

        Cancellation: the engine is left stopped.
        """
        if self.real is None:
            return False
        with anyio.move_on_after(_DEATH_NOTICE) as scope:
            await self.real.wait()
        if scope.cancelled_caught:
            return False
        try:
            await self.real.restart()
        except RealEngineUnavailable as exc:
            raise UserError(str(exc), code=FAILED) from exc
        return True


@asynccontextmanager
async def demo_engine(choice: EngineChoice) -> AsyncGenerator[DemoEngine]:
    """Boot the engine for the demonstration; why it is not the real one is in its description.

    Raises:
        UserError: the real one was asked for and does not run.
    """
    reason = "as asked for"
    async with AsyncExitStack() as stack:
        if choice != "simulated":
            stack.enter_context(_device_threads())
            try:
                real = await stack.enter_async_context(RealEngine(max_total_pages=_PAGES, home=engine_home()))
            except RealEngineUnavailable as exc:
                if choice == "real":
                    raise UserError(str(exc), hint="--engine simulated needs nothing", code=FAILED) from exc
                reason = f"the real one is not to be had: {str(exc).splitlines()[0]}"
            else:
                yield DemoEngine(real.url, "the real engine, on the CPU, with random weights", real)
                return
        simulated = SimulatedEngine()
        simulated.faults.capacity = _CAPACITY
        simulated.inferlet(_PROGRAM, installed=False)(choose)
        await stack.enter_async_context(simulated)
        yield DemoEngine(simulated.url, f"a simulated engine ({reason})")


@contextmanager
def _device_threads() -> Generator[None]:
    """Let a software device use two cores, which halves the time of a forward pass, unless the user has said else.

    It makes the device's threads a little more likely to die. This engine is booted again then, so speed wins.
    """
    given = os.environ.get("LP_NUM_THREADS")
    os.environ.setdefault("LP_NUM_THREADS", "2")
    try:
        yield
    finally:
        if given is None:
            del os.environ["LP_NUM_THREADS"]


async def choose(session: InferletSession, input: Any) -> object:
    """Stand for the example program ``choice``: its scores come from the question's hash in place of a model."""
    choices = input["choices"]
    digest = hashlib.sha256(input["question"].encode()).digest()
    generator = random.Random(digest)  # noqa: S311 - stands for a model with random weights
    await session.send(f"scoring {len(choices)} choices")
    await anyio.sleep(generator.uniform(0.02, 0.2))
    logits = [generator.gauss(0, 1) for _ in choices]
    total = math.log(sum(map(math.exp, logits)))
    best = logits.index(max(logits))
    return {
        "choice": best,
        "letter": "ABCDEFGHIJ"[best],
        "scores": [round(logit - total, 6) for logit in logits],
    }
