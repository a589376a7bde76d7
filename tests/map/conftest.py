# SPDX-License-Identifier: Apache-2.0
"""Engines of both generations in memory, in virtual time, with programs that do as their input says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from tests.bounded import bound

from pie_anyio import PieClient
from pie_anyio.testing import InferletSession, SimulatedEngine
from pie_anyio.testing.clock import virtual_backend


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let no test here take longer than 1000 virtual seconds."""
    bound(item, 1000)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both loops, in virtual time."""
    return virtual_backend(request.param)


@pytest.fixture(params=["v04", "v05"])
def profile(request: pytest.FixtureRequest) -> Any:
    """Both generations."""
    return request.param


@pytest.fixture
async def engine(anyio_backend: Any, profile: Any) -> AsyncIterator[SimulatedEngine]:
    """Give an engine that lives as long as the test."""
    async with SimulatedEngine(profile, port=None) as engine:
        add_programs(engine)
        yield engine


@pytest.fixture
async def client(engine: SimulatedEngine) -> AsyncIterator[PieClient]:
    """Give a client, without a keepalive, whose pings would only move the clock."""
    async with PieClient(engine.connectable, keepalive=None) as client:
        await client.ping()
        yield client


def add_programs(engine: SimulatedEngine) -> None:
    """Install ``echo``, ``hang``, ``fail``, and ``do``, which does what its input says."""

    @engine.inferlet("echo@0.1.0")
    async def echo(session: InferletSession, input: Any) -> Any:
        return input

    @engine.inferlet("hang@0.1.0")
    async def hang(session: InferletSession, input: Any) -> Any:
        return await session.receive()

    @engine.inferlet("fail@0.1.0")
    async def fail(session: InferletSession, input: Any) -> Any:
        await session.stderr("about to fail\n")
        raise ValueError(f"no good: {input}")

    @engine.inferlet("do@0.1.0")
    async def do(session: InferletSession, input: Any) -> Any:
        await anyio.sleep(input.get("nap", 0))
        if input.get("hang"):
            await session.receive()
        if input.get("fail"):
            raise ValueError(input["fail"])
        return input.get("give")
