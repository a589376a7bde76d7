# SPDX-License-Identifier: Apache-2.0
"""The engines of the demonstration: real ones where they run, else a simulated one, and their second wind."""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, Literal

import anyio
import attrs

from pie_anyio.testing import InferletSession, RealEngine, RealEngineUnavailable, SimulatedEngine

from ._engine import engine_home
from ._errors import FAILED, UserError

_PROGRAM: Final = "choice@0.1.0"

_ENGINES: Final = 2
"""More are of little use to 120 questions, and each takes about 1 GB of memory."""

_PAGES: Final = 64
"""Key-value pages of a real engine: room for about a dozen questions, more than it gets while its sibling lives."""

_CAPACITY: Final = 12
_DEATH_NOTICE: Final = 5.0
"""Seconds for a dead engine's process to be seen to have ended, after its connection has."""

EngineChoice = Literal["auto", "real", "simulated"]


@attrs.frozen
class DemoEngines:
    """Running engines: real ones, or a simulated one."""

    description: str
    urls: Sequence[str]
    reals: Sequence[RealEngine] = ()

    async def revive(self, number: int) -> bool:
        """Boot an engine again if it has died; say whether it had.

        Raises:
            UserError: it does not come back.

        Cancellation: the engine is left stopped.
        """
        if not self.reals:
            return False
        real = self.reals[number]
        with anyio.move_on_after(_DEATH_NOTICE) as scope:
            await real.wait()
        if scope.cancelled_caught:
            return False
        try:
            await real.restart()
        except RealEngineUnavailable as exc:
            raise UserError(str(exc), code=FAILED) from exc
        return True


@asynccontextmanager
async def demo_engines(choice: EngineChoice) -> AsyncGenerator[DemoEngines]:
    """Boot the engines for the demonstration; why they are not real is in their description.

    Raises:
        UserError: real ones were asked for and do not run.
    """
    reason = "as asked for"
    async with AsyncExitStack() as stack:
        if choice != "simulated":
            try:
                reals = await _boot(stack, _cores())
            except RealEngineUnavailable as exc:
                if choice == "real":
                    raise UserError(str(exc), hint="--engine simulated needs nothing", code=FAILED) from exc
                reason = f"the real one is not to be had: {str(exc).splitlines()[0]}"
            else:
                yield DemoEngines(_describe(len(reals)), [real.url for real in reals], reals)
                return
        simulated = SimulatedEngine()
        simulated.faults.capacity = _CAPACITY
        simulated.inferlet(_PROGRAM, installed=False)(choose)
        await stack.enter_async_context(simulated)
        yield DemoEngines(f"a simulated engine ({reason})", [simulated.url])


def _cores() -> list[int]:
    """Choose the CPUs to use, one for each engine."""
    affinity = getattr(os, "sched_getaffinity", None)  # on Linux only, as the real engine
    return [0] if affinity is None else sorted(affinity(0))[:_ENGINES]


async def _boot(stack: AsyncExitStack, cores: Sequence[int]) -> list[RealEngine]:
    """Boot a real engine on each of some CPUs, all at once; the stack will stop them.

    One engine with two threads in its device is no faster than two with one, and its device dies on it now and then.

    Raises:
        RealEngineUnavailable: none of them starts.
    """
    home = engine_home()
    booted: list[RealEngine] = []
    failures: list[RealEngineUnavailable] = []

    async def boot(core: int) -> None:
        real = RealEngine(max_total_pages=_PAGES, home=home, cores=[core])
        try:
            await stack.enter_async_context(real)  # a process, which no task has to own
        except RealEngineUnavailable as exc:
            failures.append(exc)
        else:
            booted.append(real)

    async with anyio.create_task_group() as tasks:
        for core in cores:
            tasks.start_soon(boot, core)
    if not booted:
        raise failures[0]
    return booted


def _describe(count: int) -> str:
    number, each = ("1 engine", "") if count == 1 else (f"{count} engines", " each")
    return f"{number}, the real thing on one CPU core{each}, with random weights"


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
