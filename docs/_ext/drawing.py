# SPDX-License-Identifier: Apache-2.0
"""Draw tables of the source: states with their transitions, and layers with what they may import.

Nothing in here needs Sphinx, so the tests can look at every drawing.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from pie_anyio._protocol import state

WIDTH, HEIGHT = 132, 32
COLUMN, ROW = 218, 76
MARGIN = 8

Table = dict[str, dict[str, str]]
"""State -> trigger -> state, by name."""
Point = tuple[float, float]


def read_table(name: str) -> Table:
    """Read a transition table by its name."""
    table: dict[Any, dict[Any, Any]] = getattr(state, name)
    return {
        start.name: {trigger.name: end.name for trigger, end in moves.items()}
        for start, moves in table.items()
    }


def edges(table: Table) -> dict[tuple[str, str], list[str]]:
    """Give the triggers of each pair of states; staying in a state is no edge."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for start, moves in table.items():
        for trigger, end in moves.items():
            if start != end:
                found[start, end].append(trigger)
    return found


def columns(table: Table) -> dict[str, int]:
    """Give each state the length of the longest way to it; the tables have no cycles but staying."""
    depth = dict.fromkeys(table, 0)
    for _ in table:
        for start, end in edges(table):
            depth[end] = max(depth[end], depth[start] + 1)
    return depth


def _places(table: Table) -> dict[str, Point]:
    """Give the centre of each state: columns from left to right, each centred on one axis."""
    by_column: dict[int, list[str]] = defaultdict(list)
    for name, column in columns(table).items():
        by_column[column].append(name)
    tallest = max(len(names) for names in by_column.values())
    return {
        name: (column * COLUMN + WIDTH / 2, (row + (tallest - len(names)) / 2) * ROW)
        for column, names in by_column.items()
        for row, name in enumerate(names)
    }


def _path(start: Point, end: Point, step: int) -> tuple[str, Point]:
    """Give the curve of one edge, and where its label stands; edges over several columns bow out."""
    (x1, y1), (x2, y2) = start, end
    if x1 == x2:
        down = 1 if y2 > y1 else -1
        y1, y2 = y1 + down * HEIGHT / 2, y2 - down * HEIGHT / 2
        return f"M{x1},{y1} L{x2},{y2}", (x1, (y1 + y2) / 2)
    x1, x2 = x1 + WIDTH / 2, x2 - WIDTH / 2
    bow = 0.0
    if step > 1:
        bow = (62 * (step - 1)) * (1 if y2 > 0 and y2 >= y1 else -1)
    xm, ym = (x1 + x2) / 2, (y1 + y2) / 2 + bow
    # A quadratic curve passes half-way between its control point and the middle of its ends.
    return f"M{x1},{y1} Q{xm},{(y1 + y2) / 2 + 2 * bow} {x2},{y2}", (xm, ym)


def state_svg(name: str) -> str:
    """Draw one transition table."""
    table = read_table(name)
    places, depth = _places(table), columns(table)
    body: list[str] = []
    labels: list[str] = []
    heights = [y for _, y in places.values()]
    for (start, end), triggers in edges(table).items():
        path, (x, y) = _path(places[start], places[end], depth[end] - depth[start])
        heights.append(y)
        body.append(f'<path d="{path}" fill="none" marker-end="url(#arrow)"/>')
        labels += [
            _text(x, y + 11 * (number - (len(triggers) - 1) / 2), trigger.lower(), "pie-label")
            for number, trigger in enumerate(triggers)
        ]
    for state_name, (x, y) in places.items():
        final = not any(end != state_name for end in table[state_name].values())
        body.append(
            f'<rect x="{x - WIDTH / 2}" y="{y - HEIGHT / 2}" width="{WIDTH}" height="{HEIGHT}" rx="6"'
            f' class="pie-box{" pie-final" if final else ""}"/>'
        )
        labels.append(_text(x, y, state_name, "pie-state"))
    top, bottom = min(heights) - HEIGHT / 2 - 8, max(heights) + HEIGHT / 2 + 8
    width = max(x for x, _ in places.values()) + WIDTH / 2
    return _svg(f"{name.lower()} states", -MARGIN, top, width + 2 * MARGIN, bottom - top, [*body, *labels])


def _text(x: float, y: float, text: str, css: str) -> str:
    return f'<text x="{x}" y="{y}" class="{css}" dominant-baseline="central">{escape(text)}</text>'


def _svg(title: str, x: float, y: float, width: float, height: float, body: Iterable[str]) -> str:
    return (
        f'<svg class="pie-diagram" role="img" viewBox="{x:g} {y:g} {width:g} {height:g}"'
        f' style="max-width: {width:g}px"><title>{escape(title)}</title>'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0,0 L8,4 L0,8 z" class="pie-arrow"/></marker></defs>'
        + "".join(body)
        + "</svg>"
    )


# ------------------------------------------------------------------------------------------------------------ layers


def read_layers(path: Path) -> dict[str, dict[str, frozenset[str]]]:
    """Read the tables of layers out of the test that enforces them, without importing it."""
    names: dict[str, Any] = {"frozenset": frozenset, "__builtins__": {}}
    wanted = ("BASE", "LAYERS", "MAY_IMPORT")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if isinstance(target, ast.Name) and target.id in wanted:
            names[target.id] = eval(ast.unparse(value), names)  # noqa: S307 - our own test
    return {name: names[name] for name in wanted[1:]}


def layer_svg(tables: dict[str, dict[str, frozenset[str]]]) -> str:
    """Draw who may import whom: a row for each importer, a dot below each layer that it may import."""
    layers = list(reversed(tables["LAYERS"]))
    cell, left, head = 30, 310, 62
    body: list[str] = []
    for number, target in enumerate(layers):
        x = left + (number + 0.5) * cell
        turned = f'transform="rotate(-60 {x} {head - 8})"'
        body.append(f'<text x="{x}" y="{head - 8}" class="pie-head" {turned}>{escape(target)}</text>')
    for number, layer in enumerate(layers):
        y = head + (number + 0.5) * cell
        modules = sorted(tables["LAYERS"][layer])
        shown = ", ".join(modules) if len(modules) < 4 else f"{', '.join(modules[:3])}, ..."
        body.append(
            f'<rect x="0" y="{y - cell / 2 + 2}" width="{left - 8}" height="{cell - 4}" rx="5" class="pie-box"/>'
        )
        body.append(
            f'<text x="8" y="{y}" class="pie-row" dominant-baseline="central">'
            f'<tspan class="pie-bold">{escape(layer)}</tspan> {escape(shown)}</text>'
        )
        for column, target in enumerate(layers):
            x = left + (column + 0.5) * cell
            body.append(
                f'<rect x="{x - cell / 2}" y="{y - cell / 2}" width="{cell}" height="{cell}" class="pie-cell"/>'
            )
            if target == layer:
                body.append(f'<rect x="{x - 4}" y="{y - 4}" width="8" height="8" class="pie-self"/>')
            elif target in tables["MAY_IMPORT"][layer]:
                body.append(f'<circle cx="{x}" cy="{y}" r="6" class="pie-dot"/>')
    return _svg("layers", -2, 0, left + len(layers) * cell + 30, head + len(layers) * cell + 4, body)
