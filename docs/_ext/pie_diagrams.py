# SPDX-License-Identifier: Apache-2.0
"""Diagrams and tables that are drawn from the source, so that they cannot disagree with it.

``{state-diagram} CONNECTION`` draws a transition table of ``pie_anyio._protocol.state``, and ``{layer-diagram}`` the
import table that ``tests/test_layers.py`` enforces.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from drawing import layer_svg, read_layers, read_table, state_svg
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pie_anyio._protocol import state


def table_node(head: list[str], rows: Iterable[list[str]]) -> nodes.table:
    """Make a table of literal texts and plain first column."""
    group = nodes.tgroup(cols=len(head))
    for _ in head:
        group += nodes.colspec(colwidth=1)
    header, body = nodes.thead(), nodes.tbody()
    header += _row(head)
    for row in rows:
        body += _row(row)
    group += [header, body]
    return nodes.table("", group)


def _row(cells: list[str]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        row += nodes.entry("", nodes.paragraph("", cell))
    return row


class StateDiagram(SphinxDirective):
    """A transition table, drawn and listed."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Draw the diagram for HTML, and the table for every format."""
        name = self.arguments[0]
        self.env.note_dependency(str(Path(state.__file__)))
        table = read_table(name)
        triggers = list(dict.fromkeys(trigger for moves in table.values() for trigger in moves))
        rows = [
            [start, *(_arrow(start, moves.get(trigger)) for trigger in triggers)]
            for start, moves in table.items()
        ]
        return [
            nodes.raw("", state_svg(name), format="html"),
            table_node(["", *(trigger.lower() for trigger in triggers)], rows),
        ]


def _arrow(start: str, end: str | None) -> str:
    return "" if end is None else "(stays)" if end == start else end


class LayerDiagram(SphinxDirective):
    """The layers of the source and who may import whom."""

    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """Draw the diagram for HTML, and the table for every format."""
        path = Path(self.env.srcdir).parent / "tests" / "test_layers.py"
        self.env.note_dependency(str(path))
        tables = read_layers(path)
        rows = [
            [
                layer,
                ", ".join(sorted(modules)),
                ", ".join(sorted(tables["MAY_IMPORT"][layer])) or "nothing of ours",
            ]
            for layer, modules in reversed(tables["LAYERS"].items())
        ]
        svg = nodes.raw("", layer_svg(tables), format="html")
        return [svg, table_node(["layer", "modules", "may import, besides itself"], rows)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives."""
    app.add_directive("state-diagram", StateDiagram)
    app.add_directive("layer-diagram", LayerDiagram)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
