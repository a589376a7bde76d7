# SPDX-License-Identifier: Apache-2.0
"""Whole servers, simulated engine and keeper, and a client that says anything: others are served all the same."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import ByteStreamConnectable
from hypothesis import strategies as st
from tests.fuzz.conversations import FROM_CLIENT, conversations
from tests.fuzz.test_fuzz import CUTS, HANDSHAKE, tried
from tests.keeper.conftest import keep
from tests.protocol.frames import pieces

from pie_anyio import PieClient
from pie_anyio.testing import SimulatedEngine


class Complaints(logging.Handler):
    """Keeps what a server logs as its own failure."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@asynccontextmanager
async def serving(profile: str, kept: bool) -> AsyncGenerator[ByteStreamConnectable]:
    """Serve in memory, with a keeper in front or without."""
    async with SimulatedEngine(profile, port=None) as engine:  # type: ignore[arg-type]
        if not kept:
            yield engine.connectable
            return
        async with keep(engine) as keeper:
            yield keeper.connectable


async def talk(profile: str, kept: bool, data: bytes, cuts: list[int]) -> None:
    """Say anything and leave; then somebody else comes."""
    with anyio.fail_after(20):
        async with serving(profile, kept) as door:
            stream = await door.connect()
            try:
                for piece in pieces(data, cuts):
                    await stream.send(piece)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # the server has had enough
            await anyio.wait_all_tasks_blocked()
            await stream.aclose()
            async with PieClient(door, close_timeout=0.05) as client:
                await client.ping()
                assert await client.list_processes() == []


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True], ids=["engine", "keeper"])
@pytest.mark.parametrize("profile", ["v04", "v05"])
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_client_that_says_anything(loop: str, profile: str, kept: bool) -> None:
    """It costs nobody but itself anything, and nothing in the server fails over it."""
    complaints = Complaints()
    logger = logging.getLogger("pie_anyio")
    logger.addHandler(complaints)

    def check(data: bytes, cuts: list[int]) -> None:
        anyio.run(talk, profile, kept, data, cuts, backend=loop)
        assert not complaints.records, complaints.records[0].getMessage()

    try:
        data: st.SearchStrategy[bytes] = conversations(FROM_CLIENT).map(lambda data: HANDSHAKE + data)
        tried(check, data=data, cuts=CUTS)
    finally:
        logger.removeHandler(complaints)
