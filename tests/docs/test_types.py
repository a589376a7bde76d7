# SPDX-License-Identifier: Apache-2.0
"""The examples are typed: what readers copy passes their own checks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.docs.examples import ROOT, Block, blocks, pages

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documentation is not here")

IGNORED = {"examples/README.md"}
"""Pages about programs in the engine, which look like their users' programs."""


def write_modules(page: Path, folder: Path) -> None:
    """Make a module of each program and test of a page, and one function of all that is in between."""
    story: list[str] = []
    name = page.relative_to(ROOT).as_posix().replace("/", "_").replace("-", "_").removesuffix(".md")
    for block in blocks(page):
        if block.language != "python":
            continue
        if block.is_program or block.mark == "tests":
            (folder / f"{name}_line_{block.line}.py").write_text(block.text, encoding="utf-8")
            story += imports(block)
        else:
            story += [f"# {block}", *block.text.splitlines()]
    head = "from pie_anyio import PieClient\n\n\nasync def page(client: PieClient) -> None:\n    ...\n"
    (folder / f"{name}.py").write_text(head + textwrap.indent("\n".join(story), "    "), encoding="utf-8")


def imports(block: Block) -> list[str]:
    return [
        line for line in block.text.splitlines() if line.startswith(("import ", "from ")) and block.is_program
    ]


@pytest.mark.slow
def test_examples_pass_mypy(tmp_path: Path) -> None:
    """In strict mode. Names that are used again for the same thing further down a page are allowed."""
    pytest.importorskip("mypy")
    for page in pages():
        if page.relative_to(ROOT).as_posix() not in IGNORED:
            write_modules(page, tmp_path)
    options = ["--strict", "--no-incremental", "--disable-error-code=no-redef", "--python-version=3.11"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *map(str, sorted(tmp_path.glob("*.py")))],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT / "src"), "MYPY_CACHE_DIR": os.devnull},
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
