# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin: a simulated engine, and a client that is connected to it, as fixtures.

The tests are async ones of anyio's own plugin, so they run on asyncio and trio alike::

    async def test_it(pie_engine, pie_client):
        @pie_engine.inferlet("echo@0.1.0")
        async def echo(session, input):
            return input

        process = await pie_client.launch_process("echo@0.1.0", input={"a": 1})
        assert await process.result() == {"a": 1}

Which engine: the ini option ``pie_engine_profile``, or for one test (or class, or module) the marker
``@pytest.mark.pie_engine("v04", max_processes=4)``, whose arguments are those of `SimulatedEngine`, or a fixture of
your own with the name ``pie_engine_options``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

# Nothing of this package is imported before a test asks for it: with coverage measured by a plugin, what is imported
# at start-up counts as never executed.
if TYPE_CHECKING:
    from pie_anyio import PieClient

    from .engine import SimulatedEngine

__all__ = ["pie_client", "pie_engine", "pie_engine_options"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option."""
    parser.addini(
        "pie_engine_profile", "Profile of the simulated engine: v05, v04 or v04-faithful", default="v05"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Add the marker."""
    config.addinivalue_line(
        "markers", "pie_engine(profile='v05', **options): arguments of the SimulatedEngine of this test"
    )


@pytest.fixture
def pie_engine_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of the simulated engine, by name; override it to set them for a whole module or project."""
    options: dict[str, Any] = {"profile": request.config.getini("pie_engine_profile")}
    marker = request.node.get_closest_marker("pie_engine")
    if marker is not None:
        options.update(marker.kwargs)
        if marker.args:
            (options["profile"],) = marker.args
    return options


@pytest.fixture
async def pie_engine(
    anyio_backend: Any, pie_engine_options: dict[str, Any]
) -> AsyncIterator[SimulatedEngine]:
    """Give a simulated engine that lives as long as the test."""
    from .engine import SimulatedEngine

    async with SimulatedEngine(**pie_engine_options) as engine:
        yield engine


@pytest.fixture
async def pie_client(anyio_backend: Any, pie_engine: SimulatedEngine) -> AsyncIterator[PieClient]:
    """Give a client that is connected to ``pie_engine``, in memory, and logged in."""
    from pie_anyio import PieClient

    async with PieClient(pie_engine.connectable, username="test") as client:
        yield client
