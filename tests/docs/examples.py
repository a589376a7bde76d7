# SPDX-License-Identifier: Apache-2.0
"""The examples of the documentation: found in the pages, and run as a reader would run them.

A page is one story. Its Python blocks run in order and share their names, against a simulated engine that stands at
the URLs that the page writes; `client` is connected to it. A block that starts a loop of its own is a whole program
and runs by itself. An `output` block is what the Python block above it prints. What differs is said in a comment
above the block, which readers do not see:

    <!-- example: generation 0.4 -->              only where the engine is of that generation
    <!-- example: login -->                       the engine wants a key or a token
    <!-- example: tests -->                       a test module, for pytest
    <!-- example: not executed: REASON -->
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import CodeType
from typing import Any

import attrs

ROOT = Path(__file__).resolve().parents[2]
PAGE_URL = "ws://127.0.0.1:8080"

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+)(?P<language>[\w-]*)\s*$")
_MARK = re.compile(r"^\s*<!-- example: (?P<mark>.*?) -->\s*$")


@attrs.frozen
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""
    output: str | None = None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def name(self) -> str:
        """A file name for it."""
        return f"{self.page.stem.replace('-', '_').lower()}_line_{self.line}.py"

    @property
    def is_program(self) -> bool:
        """Whether it starts a loop of its own."""
        return re.search(r"^\s*(anyio|trio|asyncio)\.run\(", self.text, re.MULTILINE) is not None

    def runs_on(self, generation: str, loop: str) -> bool:
        """Whether it is for an engine of this generation, and for this event loop."""
        if self.mark.startswith(("not executed", "tests")):
            return False
        if self.mark.startswith("generation ") and self.mark != f"generation {generation}":
            return False
        if self.mark == "login" and generation != "0.4":
            return False
        return loop == "asyncio" or self.is_program or "asyncio." not in self.text


def pages() -> list[Path]:
    """Give every page that is read by users."""
    found = sorted((ROOT / "docs").rglob("*.md"))
    found = [path for path in found if "_build" not in path.parts]
    return [*found, *(path for path in [ROOT / "README.md", ROOT / "examples/README.md"] if path.exists())]


def blocks(page: Path) -> list[Block]:
    """Give the fenced blocks of a page, each with the mark above it and the output below it."""
    found: list[Block] = []
    for block in _fenced(page):
        if block.language == "output":
            assert found, f"{block} is the output of nothing"
            found[-1] = attrs.evolve(found[-1], output=block.text)
        else:
            found.append(block)
    return found


def _fenced(page: Path) -> Iterator[Block]:
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), start=1))
    mark = ""
    for number, line in lines:
        if found := _MARK.match(line):
            mark = found["mark"]
            continue
        fence = _FENCE.match(line)
        if fence is None:
            mark = mark if not line.strip() else ""
            continue
        body: list[str] = []
        for _, inner in lines:
            if inner.strip() == fence["fence"]:
                break
            body.append(inner)
        yield Block(page, number, fence["language"], textwrap.dedent("\n".join(body)) + "\n", mark)
        mark = ""


# ----------------------------------------------------------------------------------------------------------- running


def load(block: Block, folder: Path, url: str, loop: str) -> CodeType:
    """Compile a block out of a file of its own, so that tracebacks and `inspect.getsource` find it."""
    text = block.text.replace(PAGE_URL, url)
    if block.is_program and loop == "trio":
        text = re.sub(r"anyio\.run\((\w+)\)", r'anyio.run(\1, backend="trio")', text)
    path = folder / block.name
    path.write_text(text, encoding="utf-8")
    flags = 0 if block.is_program else ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code: CodeType = compile(text, str(path), "exec", flags=flags, dont_inherit=True)
    return code


async def run_snippet(code: CodeType, names: dict[str, Any]) -> str:
    """Run a block that may await at its top level, and give what it printed."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        result = eval(code, names)  # noqa: S307 - our own pages
        if inspect.iscoroutine(result):
            await result
    return printed.getvalue()


def run_program(code: CodeType, names: dict[str, Any]) -> str:
    """Run a whole program, with its own loop, and give what it printed. Later blocks may use what it imported."""
    printed = io.StringIO()
    own: dict[str, Any] = {"__name__": "__main__"}
    with redirect_stdout(printed):
        exec(code, own)  # noqa: S102 - our own pages
    names |= {**own, **names}
    return printed.getvalue()


def matches(expected: str, printed: str) -> bool:
    """Compare output with what a page shows; `...` stands for anything there."""
    pattern = ".*?".join(re.escape(part) for part in expected.strip().split("..."))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None
