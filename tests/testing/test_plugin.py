# SPDX-License-Identifier: Apache-2.0
"""The pytest fixtures, used as a project would use them."""

from __future__ import annotations

from typing import Any

import pytest

from pie_anyio import PieClient
from pie_anyio.testing import InferletSession, SimulatedEngine

pytestmark = pytest.mark.both_loops


async def test_engine_and_client(pie_engine: SimulatedEngine, pie_client: PieClient) -> None:
    """The client is logged in at the engine, which is a 0.5 by default."""

    @pie_engine.inferlet("echo@0.1.0")
    async def echo(session: InferletSession, input: Any) -> object:
        return input

    process = await pie_client.launch_process("echo@0.1.0", input={"a": 1})
    assert await process.result() == {"a": 1}
    assert pie_engine.profile.name == "v05"
    assert pie_engine.connections == 1


@pytest.mark.pie_engine("v04", max_processes=1)
async def test_the_marker_by_position(pie_engine: SimulatedEngine, pie_client: PieClient) -> None:
    """A marker's arguments are the engine's."""
    assert pie_engine.profile.name == "v04"
    assert pie_client.generation == "0.4"


@pytest.mark.pie_engine(profile="v04-faithful")
async def test_the_marker_by_name(pie_engine: SimulatedEngine) -> None:
    """The profile may be given by name as well."""
    assert pie_engine.profile.name == "v04-faithful"


@pytest.mark.pie_engine(seed=3)
def test_options_without_a_loop(pie_engine_options: dict[str, Any]) -> None:
    """The options are a fixture of their own, which a project may override; the ini option gives the profile."""
    assert pie_engine_options == {"profile": "v05", "seed": 3}
