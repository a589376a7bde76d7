# SPDX-License-Identifier: Apache-2.0
"""The README: its programs run, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pie_anyio.cli._app import app
from pie_anyio.cli._engine import simulated_engine

from .conftest import Invoke

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="the tests run outside a checkout")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def url() -> Iterator[str]:
    """What `pie-anyio engine` serves."""
    from anyio.from_thread import start_blocking_portal

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(simulated_engine(0, "v05", None)) as at,
    ):
        yield at[0]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_programs_run(url: str, backend: str) -> None:
    """Each Python block, as it stands but for the URL, on both loops."""
    expected = ["returned: HELLO PIE", "1000 QUESTION 0\nReceipt(started=1000, returned=1000"]
    programs = blocks("python")
    assert len(programs) == len(expected)
    for program, said in zip(programs, expected, strict=True):
        assert "ws://127.0.0.1:8080" in program
        text = program.replace("ws://127.0.0.1:8080", url).replace(
            "anyio.run(main)", f"anyio.run(main, backend={backend!r})", 1
        )
        command = [sys.executable, "-W", "error", "-c", text]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def commands() -> list[list[str]]:
    lines = "".join(blocks("console")).splitlines()
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ ")]


def test_commands_are_there() -> None:
    """What is run by make, pip and pie-anyio exists."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for program, what, *_ in commands():
        assert (program, what) == ("pip", "install") or what in (
            targets if program == "make" else app.commands
        )


def test_map_and_run_work(url: str, invoke: Invoke) -> None:
    """The commands that need an engine, against what `pie-anyio engine` serves; one of them starts a keeper."""
    Path("questions.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    ran = [
        arguments
        for program, *arguments in commands()
        if program == "pie-anyio" and arguments[0] in {"run", "map", "ps"}
    ]
    assert len(ran) == 4
    try:
        for arguments in ran:
            assert invoke(*arguments, "--url", url).code == 0
    finally:
        assert invoke("keep", "--stop", "--url", url).code == 0


def test_links_lead_somewhere() -> None:
    """Links within the project point at files."""
    missing = [
        target
        for target in re.findall(r"\]\(([^)#]+)\)", README.read_text())
        if not target.startswith("https://") and not (ROOT / target).exists()
    ]
    assert not missing
