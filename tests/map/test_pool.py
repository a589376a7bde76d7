# SPDX-License-Identifier: Apache-2.0
"""Several connections, used as one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from tests.map.conftest import add_programs

from pie_anyio import (
    ClientPool,
    ConnectError,
    ConnectionClosed,
    InvalidRequest,
    Receipt,
    Reconnect,
    UnsupportedByEngine,
    first_completed,
    map_processes,
)
from pie_anyio.testing import SimulatedEngine

ECHO, HANG, DO = "echo@0.1.0", "hang@0.1.0", "do@0.1.0"


@pytest.fixture
async def engines(anyio_backend: Any, profile: Any) -> AsyncIterator[tuple[SimulatedEngine, SimulatedEngine]]:
    """Give two engines."""
    async with SimulatedEngine(profile, port=None) as one, SimulatedEngine(profile, port=None) as two:
        add_programs(one)
        add_programs(two)
        yield one, two


def pool_of(*engines: SimulatedEngine, **options: Any) -> ClientPool:
    """Make a pool."""
    return ClientPool([engine.connectable for engine in engines], keepalive=None, **options)


async def test_the_least_busy_connection_is_picked(engines: tuple[SimulatedEngine, SimulatedEngine]) -> None:
    """Runs are spread evenly, whatever they were before."""
    one, two = engines
    async with pool_of(one, two) as pool:
        async with map_processes(pool, HANG, range(20), limit=10):
            await one.wait_live(5)
            await two.wait_live(5)
            assert (len(one.live_processes), len(two.live_processes)) == (5, 5)
        assert one.live_processes == two.live_processes == {}
        assert pool.receipts == [Receipt(started=5, terminated=5)] * 2
        assert set(pool._live.values()) == {0}


async def test_a_quick_engine_gets_more(engines: tuple[SimulatedEngine, SimulatedEngine]) -> None:
    """It has fewer live runs."""
    one, two = engines

    @two.inferlet("work@0.1.0")
    async def quick(session: Any, input: Any) -> Any:
        await anyio.sleep(1)
        return input

    @one.inferlet("work@0.1.0")
    async def slow(session: Any, input: Any) -> Any:
        await anyio.sleep(10)
        return input

    async with pool_of(one, two) as pool:
        assert await map_processes(pool, "work@0.1.0", range(40), limit=4) == list(range(40))
    assert two.started_total > 3 * one.started_total > 0


async def test_several_sockets_to_one_engine(engines: tuple[SimulatedEngine, SimulatedEngine]) -> None:
    """Each is a connection of its own."""
    one, two = engines
    async with pool_of(one, two, sockets_per_endpoint=3) as pool:
        assert (one.connections, two.connections) == (3, 3)
        assert len(pool.clients) == 6
        assert (await first_completed(pool, DO, [{"nap": 2}, {"nap": 1}])).index == 1
    with anyio.fail_after(5):
        await one.wait_connections(0)


async def test_a_lost_connection_gets_no_more_runs(engines: tuple[SimulatedEngine, SimulatedEngine]) -> None:
    """What ran there is lost, and the others take the rest."""
    one, two = engines
    async with pool_of(one, two) as pool:
        outcomes: list[str] = []
        dropped = one
        inputs = [{"hang": True}, {"give": 1}, *({"nap": 1, "give": 2} for _ in range(20))]
        async with map_processes(pool, DO, inputs, limit=2, on_error="collect") as call:
            async for outcome in call:
                outcomes.append(outcome.status)
                for engine in engines:
                    if any("hang" in process.input for process in engine.live_processes.values()):
                        dropped = engine
                        dropped.faults.drop_connections()
        assert outcomes.count("lost") == 1
        assert set(outcomes) == {"lost", "returned"}
        assert dropped.started_total <= 2
        assert one.started_total + two.started_total == 22
        assert call.receipt == Receipt(started=22, lost=1, returned=21)


async def test_all_connections_are_lost(engines: tuple[SimulatedEngine, SimulatedEngine]) -> None:
    """Nothing more is started."""
    one, two = engines
    async with pool_of(one, two) as pool:
        assert await map_processes(pool, ECHO, [1]) == [1]
        one.faults.drop_connections()
        two.faults.drop_connections()
        await anyio.sleep(1)
        outcomes = await map_processes(pool, ECHO, range(3), on_error="collect")
        assert [outcome.status for outcome in outcomes] == ["not_started"] * 3
        with pytest.raises(ConnectionClosed, match="every connection of the pool is gone"):
            await pool.pick()


async def test_a_connection_that_goes_while_it_logs_in(
    engines: tuple[SimulatedEngine, SimulatedEngine],
) -> None:
    """The run goes to another one."""
    one, two = engines
    one.faults.drop_on = {"auth_identify"}
    async with pool_of(one, two) as pool:
        assert await map_processes(pool, ECHO, range(4), limit=2) == [0, 1, 2, 3]
    assert one.started_total == 0


async def test_cancelled_while_it_logs_in(engines: tuple[SimulatedEngine, SimulatedEngine]) -> None:
    """The connection is not counted as busier than it is."""
    one, two = engines
    one.faults.ignored = two.faults.ignored = {"auth_identify"}
    async with pool_of(one, two) as pool:
        with anyio.move_on_after(1):
            await map_processes(pool, ECHO, range(4), limit=4)
        assert set(pool._live.values()) == {0}


async def test_entering_fails_halfway(engines: tuple[SimulatedEngine, SimulatedEngine]) -> None:
    """The connections that had been made are closed again."""
    one, two = engines
    two.faults.refuse_handshakes = (503, b"not now")
    with pytest.raises(ConnectError, match="503"):
        async with pool_of(one, two):
            pytest.fail("entered")
    assert one.connections_total == 1
    with anyio.fail_after(5):
        await one.wait_connections(0)


async def test_what_a_pool_cannot_do(engines: tuple[SimulatedEngine, SimulatedEngine], profile: str) -> None:
    """It is asked of one connection, before anything is started."""
    one, two = engines
    async with pool_of(one, two) as pool:
        if profile == "v04":
            assert await map_processes(pool, ECHO, [1], token_budget=5) == [1]
        else:
            with pytest.raises(UnsupportedByEngine):
                await map_processes(pool, ECHO, [1], token_budget=5)
        assert set(pool._live.values()) == {0}


async def test_outside_its_block() -> None:
    """The error says where it can be used."""
    pool = ClientPool(["ws://127.0.0.1:1"])
    with pytest.raises(ConnectionClosed, match="inside 'async with' only"):
        await pool.pick()


@pytest.mark.parametrize(
    ("urls", "options", "text"),
    [
        ([], {}, "at least one URL"),
        ("ws://127.0.0.1:8080", {}, r"ClientPool\(\['ws://127.0.0.1:8080'\]\)"),
        (["ws://127.0.0.1:8080"], {"sockets_per_endpoint": 0}, "at least 1"),
    ],
)
def test_senseless_pools_are_refused(urls: Any, options: Any, text: str) -> None:
    """The message says what is wanted."""
    with pytest.raises(InvalidRequest, match=text):
        ClientPool(urls, **options)


async def test_a_pool_waits_for_connections_that_are_being_restored(
    engines: tuple[SimulatedEngine, SimulatedEngine],
) -> None:
    """As long as there is none that is up."""
    one, two = engines
    policy = Reconnect(initial=0.01, jitter=0)
    async with pool_of(one, two, reconnect=policy) as pool:
        assert await map_processes(pool, ECHO, range(4)) == list(range(4))
        links = [client.session.link for client in pool.clients]
        for engine in engines:
            engine.faults.drop_connections()
        for link in links:
            await link.router.ended.wait()
        assert not any(client.session.is_connected for client in pool.clients)
        assert await map_processes(pool, ECHO, range(4)) == list(range(4))
        assert {client.connections for client in pool.clients} <= {1, 2}
