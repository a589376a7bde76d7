# SPDX-License-Identifier: Apache-2.0
"""What the build draws and lists out of the source says what the source says."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from tests import test_layers
from tests.docs.examples import ROOT

from pie_anyio._protocol import state

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documentation is not here")

TABLES = ["CONNECTION", "REQUEST", "PROCESS"]


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the build that draws."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    yield importlib.import_module("drawing")
    sys.modules.pop("drawing")


@pytest.mark.parametrize("name", TABLES)
def test_diagrams_show_every_transition(drawing: ModuleType, name: str) -> None:
    """Each state is a box, and each trigger that leads to another state a label on some edge."""
    table = getattr(state, name)
    image = ElementTree.fromstring(drawing.state_svg(name))  # noqa: S314 - our own drawing
    texts = [element.text for element in image.iter("text")]
    moves = {(a, b, t) for a, row in table.items() for t, b in row.items() if a is not b}
    assert sorted(t for t in texts if t and t.isupper()) == sorted(start.name for start in table)
    assert sorted(t for t in texts if t and t.islower()) == sorted(t.name.lower() for _, _, t in moves)
    assert len(list(image.iter("path"))) == 1 + len({(a, b) for a, b, _ in moves})


def test_layers_are_those_of_the_test(drawing: ModuleType) -> None:
    """The table that is drawn is the table that is enforced."""
    tables = drawing.read_layers(ROOT / "tests" / "test_layers.py")
    assert tables == {"LAYERS": test_layers.LAYERS, "MAY_IMPORT": test_layers.MAY_IMPORT}
    image = ElementTree.fromstring(drawing.layer_svg(tables))  # noqa: S314 - our own drawing
    dots = len(list(image.iter("circle")))
    assert dots == sum(len(below - {layer}) for layer, below in tables["MAY_IMPORT"].items())


@pytest.mark.slow
def test_the_documentation_builds(tmp_path: Path) -> None:
    """Without a warning, and with every reference resolved."""
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-q",
            "-W",
            "-n",
            "--keep-going",
            "-b",
            "html",
            "docs",
            str(tmp_path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
