# SPDX-License-Identifier: Apache-2.0
"""The README's comparison: each row that says something about pie-anyio has tests that show it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import anyio
import attrs
import msgpack
import pytest
import trio
from tests.requirements import COMPARISON
from tests.test_requirements import names_in

from pie_anyio import Event, Limits, PieClient
from pie_anyio.testing import SimulatedEngine

README = Path(__file__).resolve().parent.parent / "README.md"
MIB = 1024 * 1024


@pytest.mark.skipif(not README.exists(), reason="the tests run outside a checkout")
def test_each_row_has_its_tests() -> None:
    """In the order of the table, and under names that exist."""
    table = README.read_text(encoding="utf-8").partition("## Beside the official client")[2]
    rows = re.findall(r"^\| ([^|]+?) \| [^|]+ \| [^|]+ \|$", table.partition("\n## ")[0], re.MULTILINE)
    assert list(COMPARISON) == rows
    for tests in COMPARISON.values():
        assert tests
        for test in tests:
            path, _, name = test.partition("::")
            assert name in names_in(path), test


async def test_every_event_loop(anyio_backend: Any) -> None:
    """The client runs on the loop that the test says it runs on."""
    name, options = anyio_backend
    with anyio.fail_after(5):
        async with SimulatedEngine("v05") as engine, PieClient(engine.url) as client:
            await client.ping()
    assert trio.lowlevel.in_trio_task() == (name == "trio")
    if name == "asyncio":
        loop = type(asyncio.get_running_loop()).__module__
        assert loop.startswith("uvloop") == bool(options.get("use_uvloop"))


@pytest.mark.parametrize(("profile", "generation"), [("v04", "0.4"), ("v04-faithful", "0.4"), ("v05", "0.5")])
async def test_one_client_for_every_engine(profile: Any, generation: str) -> None:
    """Made in the same way, without being told which it is."""
    with anyio.fail_after(5):
        async with SimulatedEngine(profile, port=None) as engine, PieClient(engine.connectable) as client:
            await client.ping()
            assert client.generation == generation


async def test_messages_up_to_64_mib() -> None:
    """By default; one of more than a megabyte is nothing special."""
    assert attrs.fields_dict(Limits)["message_bytes"].default == 64 * MIB
    text = "x" * (3 * MIB)
    async with SimulatedEngine("v05", port=None) as engine:

        @engine.inferlet("large@0.1.0")
        async def large(session: Any, input: Any) -> str:
            for _ in range(3):
                await session.send(text)
            return text

        with anyio.fail_after(10):
            async with PieClient(engine.connectable) as client:
                process = await client.launch_process("large@0.1.0")
                events = [event async for event in process]
    assert [(event.kind, len(event.value)) for event in events] == [(Event.Message, 3 * MIB)] * 3 + [
        (Event.Return, 3 * MIB)
    ]
    assert len(msgpack.packb({"value": text})) > MIB
