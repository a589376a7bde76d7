# SPDX-License-Identifier: Apache-2.0
"""One real engine for all tests of this folder, or a loud word about why there is none.

Environment:

PIE_ENGINE_PYTHON         interpreter that has pie-server installed (default: the one of the tests)
PIE_ENGINE_HOME           folder kept between runs; saves the 6 s of compiling the Python runtime
PIE_REQUIRE_REAL_ENGINE   set to 1, an engine that cannot be had is an error instead of a skip
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bounded import bound

from pie_anyio.testing.real_engine import RealEngine, RealEngineProcess, RealEngineUnavailable

INFERLETS = Path(__file__).parent / "inferlets"

_missing = pytest.StashKey[str]()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let no test here take longer than two minutes."""
    bound(item, 120)


@pytest.fixture(scope="session")
def real_engine(request: pytest.FixtureRequest) -> Iterator[RealEngineProcess]:
    """Boot one engine for the whole run; its weights are those of seed 7."""
    home = os.environ.get("PIE_ENGINE_HOME")
    engine = RealEngine(
        python=os.environ.get("PIE_ENGINE_PYTHON"),
        home=Path(home) if home else None,
    )
    try:
        running = RealEngineProcess(engine).__enter__()
    except RealEngineUnavailable as error:
        if os.environ.get("PIE_REQUIRE_REAL_ENGINE") == "1":
            raise
        request.config.stash[_missing] = str(error)
        pytest.skip(str(error).splitlines()[0])
    try:
        yield running
    finally:
        running.__exit__(None, None, None)


@pytest.fixture(scope="session")
def real_engine_url(real_engine: RealEngineProcess) -> str:
    """Give the URL of the shared engine."""
    return real_engine.url


@pytest.fixture(scope="session")
def real_inferlets() -> dict[str, tuple[bytes, str]]:
    """Give the source and the manifest of each program, by name."""
    return {
        folder.name: ((folder / "main.py").read_bytes(), (folder / "Pie.toml").read_text(encoding="utf-8"))
        for folder in sorted(INFERLETS.iterdir())
        if (folder / "Pie.toml").exists()
    }


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say in the summary that nothing was tested against the real engine, and why."""
    reason = config.stash.get(_missing, None)
    if reason is not None:
        terminalreporter.section("REAL ENGINE TESTS DID NOT RUN", sep="!", red=True, bold=True)
        terminalreporter.write_line(reason)
        terminalreporter.write_line("PIE_REQUIRE_REAL_ENGINE=1 makes this an error.")
