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
def diagrams(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The extension that draws; it needs docutils and Sphinx, which only the environment of the docs has."""
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    yield importlib.import_module("pie_diagrams")
    sys.modules.pop("pie_diagrams")


@pytest.mark.parametrize("name", TABLES)
def test_diagrams_show_every_transition(diagrams: ModuleType, name: str) -> None:
    """Each state is a box, and each trigger that leads to another state a label on some edge."""
    table = getattr(state, name)
    drawing = ElementTree.fromstring(diagrams.state_svg(name))  # noqa: S314 - our own drawing
    texts = [element.text for element in drawing.iter("text")]
    moves = {(a, b, t) for a, row in table.items() for t, b in row.items() if a is not b}
    assert sorted(t for t in texts if t and t.isupper()) == sorted(start.name for start in table)
    assert sorted(t for t in texts if t and t.islower()) == sorted(t.name.lower() for _, _, t in moves)
    assert len(list(drawing.iter("path"))) == 1 + len({(a, b) for a, b, _ in moves})


def test_layers_are_those_of_the_test(diagrams: ModuleType) -> None:
    """The table that is drawn is the table that is enforced."""
    tables = diagrams.read_layers(ROOT / "tests" / "test_layers.py")
    assert tables == {"LAYERS": test_layers.LAYERS, "MAY_IMPORT": test_layers.MAY_IMPORT}
    drawing = ElementTree.fromstring(diagrams.layer_svg(tables))  # noqa: S314 - our own drawing
    dots = len(list(drawing.iter("circle")))
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
