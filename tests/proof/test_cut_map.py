# SPDX-License-Identifier: Apache-2.0
"""Ten thousand items over a link that is cut hundreds of times: each has one outcome, and it is the right one."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any, Final

import anyio
import pytest

from pie_anyio import PieClient, Receipt, Reconnect, Returned
from pie_anyio.testing import CutProxy, LinkScript, Passage, SimulatedEngine, virtual_backend

ITEMS: Final = 10_000
LIMIT: Final = 16
CUTS: Final = 200
AGAIN: Final = Reconnect(attempts=50, initial=0.01, maximum=0.1)


def random_cuts(seed: int) -> Any:
    """Cut each connection somewhere, in either direction, sometimes before it is usable; refuse some."""
    random = Random(seed)  # noqa: S311 - a test that can be repeated

    def script(_number: int) -> LinkScript:
        if random.random() < 0.1:
            return LinkScript(refused=True)
        cut = Passage(cut_after=random.randrange(100, 15_000), reset=random.random() < 0.5)
        return LinkScript(to_engine=cut) if random.random() < 0.5 else LinkScript(to_client=cut)

    return script


def make_engine(profile: Any, executions: Counter[int]) -> SimulatedEngine:
    engine = SimulatedEngine(profile, port=None, log_size=1)

    @engine.inferlet("work@0.1.0")
    async def work(session: Any, input: int) -> Any:
        executions[input] += 1
        await session.send("begun")
        await anyio.sleep(input % 7 / 100)
        if input % 100 == 99:
            raise ValueError(f"no {input}")
        return {"of": input}

    return engine


def check_books(receipt: Receipt) -> None:
    ended = receipt.returned + receipt.failed + receipt.terminated + receipt.detached + receipt.lost
    assert receipt.started == ended + len(receipt.unconfirmed)
    assert receipt.running == 0


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("profile", ["v04", "v05"])
def test_a_map_over_a_link_that_breaks(profile: Any, loop: str) -> None:
    """Whether the engine ends runs with their connection or not, no item is missing, twice there, or mixed up."""

    async def everything() -> None:
        executions: Counter[int] = Counter()
        seen: dict[int, Any] = {}
        async with make_engine(profile, executions) as engine:
            proxy = CutProxy(engine.connectable, random_cuts(1))
            async with PieClient(proxy, username="u", keepalive=None, reconnect=AGAIN) as client:
                call = client.map_processes(
                    "work@0.1.0", range(ITEMS), limit=LIMIT, on_error="collect", retry_lost=20
                )
                async with call as outcomes:
                    async for outcome in outcomes:
                        assert outcome.index not in seen
                        seen[outcome.index] = outcome
                check_books(call.receipt)
                cuts = proxy.cuts
            check_books(client.receipt)
            assert client.receipt.lost == call.receipt.lost
            # What the client does not know to have ended is on its receipt.
            assert len(engine.live_processes) <= client.receipt.lost + len(client.receipt.unconfirmed)
        assert cuts >= CUTS
        assert sorted(seen) == list(range(ITEMS))
        check_outcomes(seen, executions, call.receipt)

    name, options = virtual_backend(loop)
    anyio.run(everything, backend=name, backend_options=options)


def check_outcomes(seen: dict[int, Any], executions: Counter[int], receipt: Receipt) -> None:
    kinds = Counter(outcome.status for outcome in seen.values())
    for index, outcome in seen.items():
        if isinstance(outcome, Returned):
            assert outcome.value == {"of": index}
        else:
            assert outcome.status == "failed"
            assert index % 100 == 99
            assert f"no {index}" in str(outcome.error)
        # Nothing is run more often than it was tried, and nothing has an outcome that never ran.
        assert 1 <= executions[index] <= outcome.attempts
    assert receipt.returned == kinds["returned"]
    assert receipt.failed == kinds["failed"]
    repeats = sum(outcome.attempts - 1 for outcome in seen.values())
    assert receipt.lost == repeats > 0
