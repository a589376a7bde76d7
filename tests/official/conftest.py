# SPDX-License-Identifier: Apache-2.0
"""Running scripts of the official clients against a simulated engine."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

Run = Callable[..., Awaitable[Any]]
_SCRIPTS = Path(__file__).parent / "scripts"


@pytest.fixture
def run_official(official_client_python: Callable[[str], Path]) -> Run:
    """Give a function that runs ``scripts/NAME.py URL ARGS...`` with an official client and gives what it printed."""

    async def run(version: str, script: str, *arguments: str) -> Any:
        python = await anyio.to_thread.run_sync(official_client_python, version)
        command = [str(python), "-W", "ignore", str(_SCRIPTS / f"{script}.py"), *arguments]
        done = await anyio.run_process(command, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout.splitlines()[-1])

    return run
