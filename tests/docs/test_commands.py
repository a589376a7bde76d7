# SPDX-License-Identifier: Apache-2.0
"""The commands that the pages show for the command line work as shown, against a simulated engine."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from pathlib import Path

import anyio
import pytest
from tests.docs import programs
from tests.docs.examples import ROOT, blocks

from pie_anyio.testing import SimulatedEngine
from pie_anyio.testing._sim_demos import DEMOS

PAGE = ROOT / "docs" / "howto" / "command-line.md"
pytestmark = [
    pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not here"),
    pytest.mark.skipif(importlib.util.find_spec("click") is None, reason="this needs the extra 'cli'"),
    pytest.mark.slow,
]
SERVES = "pie-anyio engine"


@pytest.fixture
def anyio_backend() -> str:
    """Give one loop for the engine; the commands choose their own."""
    return "asyncio"


def commands() -> list[list[str]]:
    lines = [line for block in blocks(PAGE) if block.language == "sh" for line in block.text.splitlines()]
    return [
        shlex.split(line) for line in lines if line.startswith("pie-anyio ") and not line.startswith(SERVES)
    ]


async def test_commands_work(tmp_path: Path) -> None:
    """One after the other, as a reader would; each ends well and prints something."""
    programs.write_files(tmp_path)
    assert commands()
    with anyio.fail_after(120):
        async with SimulatedEngine() as engine:
            for name, function in DEMOS.items():
                engine.inferlet(name)(function)
            environment = {**os.environ, "PIE_URL": engine.url, "HOME": str(tmp_path)}
            for _, *arguments in commands():
                command = [sys.executable, "-W", "error", "-m", "pie_anyio.cli", *arguments]
                done = await anyio.run_process(command, cwd=tmp_path, env=environment, check=False)
                assert done.returncode == 0, f"{arguments}: {done.stdout!r} {done.stderr!r}"
                assert done.stdout + done.stderr, arguments
    assert len((tmp_path / "outcomes.jsonl").read_text().splitlines()) == 10
    assert not engine.live_processes
