# SPDX-License-Identifier: Apache-2.0
"""Every Python example of the documentation runs, on both loops and against both generations of the engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from anyio import to_thread
from tests.docs import programs
from tests.docs.examples import ROOT, Block, blocks, load, matches, pages, run_program, run_snippet

from pie_anyio import PieClient
from pie_anyio.testing import SimulatedEngine

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documentation is not here")

PROFILES = {"0.4": "v04", "0.5": "v05"}
TOKEN = "token-of-the-documentation"


ONLY = {"examples/README.md": "0.5"}
"""Pages about programs that are scripts, which 0.4 does not know."""


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def pages_with(*, tests: bool) -> list[Path]:
    return [
        page
        for page in pages()
        if any(block.language == "python" and (block.mark == "tests") == tests for block in blocks(page))
    ]


@attrs.frozen
class Place:
    """Where the examples of a page run: two engines, one of which wants a login, and a client."""

    url: str
    login_url: str
    client: PieClient
    folder: Path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIE_TOKEN", TOKEN)
    monkeypatch.setenv("PIE_PASSPHRASE", programs.PASSPHRASE.decode())
    return tmp_path


@asynccontextmanager
async def engines(profile: Any, folder: Path) -> AsyncIterator[Place]:
    public_key = programs.write_files(folder)
    async with (
        SimulatedEngine(profile) as engine,
        SimulatedEngine(profile, users={"alice": [public_key]}, token=TOKEN) as guarded,
        PieClient(engine.url) as client,
    ):
        programs.add_programs(engine)
        programs.add_programs(guarded)
        yield Place(engine.url, guarded.url, client, folder)
        await client.ping()
        assert client.receipt.clean, f"the examples left something behind: {client.receipt}"


@pytest.mark.both_loops
@pytest.mark.parametrize(
    ("page", "generation"),
    [
        pytest.param(page, generation, id=f"{page_id(page)}-{generation}")
        for page in pages_with(tests=False)
        for generation in PROFILES
        if ONLY.get(page_id(page), generation) == generation
    ],
)
async def test_examples_run(page: Path, generation: str, folder: Path, anyio_backend: Any) -> None:
    """The blocks of a page run in order, and print what the page says they print."""
    loop = anyio_backend[0]
    with anyio.fail_after(60):
        async with engines(PROFILES[generation], folder) as place:
            names: dict[str, Any] = {"__name__": "__main__", "client": place.client}
            for block in blocks(page):
                names["client"] = place.client  # some examples use the name for one of their own
                if block.language == "python" and block.runs_on(generation, loop):
                    await run_block(block, place, names, loop)


async def run_block(block: Block, place: Place, names: dict[str, Any], loop: str) -> None:
    url = place.login_url if block.mark == "login" else place.url
    try:
        code = load(block, place.folder, url, loop)
        if block.is_program:
            printed = await to_thread.run_sync(run_program, code, names)
        else:
            printed = await run_snippet(code, names)
    except Exception as exc:
        exc.add_note(f"in the example at {block}")
        raise
    if block.output is not None:
        assert matches(block.output, printed), f"{block} prints:\n{printed}"


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with(tests=True), ids=page_id)
def test_examples_of_tests_pass(page: Path, tmp_path: Path) -> None:
    """Blocks that are tests pass under pytest, with the plugins that the page names and no others."""
    modules = [block for block in blocks(page) if block.mark == "tests"]
    for block in modules:
        (tmp_path / f"test_{block.name}").write_text(block.text, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nanyio_mode = auto\nfilterwarnings = error\n")
    plugins = ["-p", "anyio", "-p", "pie_anyio.testing.plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_not_executed_says_why() -> None:
    """The marks of blocks are among those that mean something, and an exception has a reason."""
    known = ("", "login", "tests", "generation 0.4", "generation 0.5")
    wrong = [
        f"{block}: {block.mark!r}"
        for page in pages()
        for block in blocks(page)
        if block.mark not in known and not (block.mark.startswith("not executed: ") and len(block.mark) > 20)
    ]
    assert not wrong
