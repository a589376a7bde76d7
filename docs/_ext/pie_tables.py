# SPDX-License-Identifier: Apache-2.0
"""Lists that are made from the package: limits with their defaults, the tree of errors, the help of the commands."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, ClassVar

import attrs
from docutils import nodes
from docutils.parsers.rst import Parser
from docutils.utils import new_document
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

import pie_anyio
from pie_anyio._types import KIB, MIB


def show_size(name: str, value: int) -> str:
    """Write a default as a reader would."""
    if name.endswith(("_bytes", "_window")):
        return f"{value // MIB} MiB" if value >= MIB else f"{value // KIB} KiB"
    return f"{value}"


def limits() -> Iterator[tuple[str, str, str]]:
    """Give each limit with its default and its docstring."""
    docs = ModuleAnalyzer.for_module("pie_anyio._types").find_attr_docs()
    for field in attrs.fields(pie_anyio.Limits):
        text = " ".join(line.strip() for line in docs["Limits", field.name])
        yield field.name, show_size(field.name, field.default), text.strip()


def error_tree(cls: type, prefix: str = "") -> Iterator[str]:
    """Give the classes below one, one line each, with the first sentence about it."""
    children = [child for child in cls.__subclasses__() if child.__name__ in pie_anyio.__all__]
    for number, child in enumerate(children):
        last = number == len(children) - 1
        stem = f"{prefix}{'└─ ' if last else '├─ '}{child.__name__}"
        summary = (inspect.getdoc(child) or "").split("\n\n")[0].replace("\n", " ")
        yield f"{stem:36} {summary.split('; ')[0].rstrip('.')}"
        yield from error_tree(child, prefix + ("   " if last else "│  "))


class LimitsTable(SphinxDirective):
    """Every field of ``Limits`` with its default."""

    def run(self) -> list[nodes.Node]:
        """Make a table in reST, so that roles in the docstrings work."""
        lines = [
            ".. list-table::",
            "   :header-rows: 1",
            "",
            "   * - field",
            "     - default",
            "     - bounds",
        ]
        for name, default, text in limits():
            lines += [f"   * - ``{name}``", f"     - {default}", f"     - {text}"]
        return self.parse_text_to_nodes_as_rst(lines)

    def parse_text_to_nodes_as_rst(self, lines: list[str]) -> list[nodes.Node]:
        """Parse reST, whatever the page is written in."""
        document = new_document(self.env.docname, self.state.document.settings)
        Parser().parse("\n".join(lines), document)
        return list(document.children)


class ExceptionTree(SphinxDirective):
    """The tree of exceptions, out of the classes themselves."""

    def run(self) -> list[nodes.Node]:
        """Make a literal block."""
        text = "\n".join(["PieError", *error_tree(pie_anyio.PieError)])
        block = nodes.literal_block(text, text)
        block["language"] = "text"
        return [block]


class CommandHelp(SphinxDirective):
    """The help of every command of the command line, as it prints it."""

    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """Make a section for each command."""
        try:
            from pie_anyio.cli._app import app as group  # noqa: PLC0415 - it may not be there
        except ImportError as exc:
            return [nodes.warning("", nodes.paragraph("", f"The command line could not be loaded: {exc}."))]
        settings: dict[str, Any] = {"resilient_parsing": True, "terminal_width": 96, "max_content_width": 96}
        top = group.make_context("pie-anyio", [], **settings)
        found: list[nodes.Node] = [_help(group, top)]
        for name in group.list_commands(top):
            command = group.get_command(top, name)
            assert command is not None
            context = command.make_context(name, [], parent=top, **settings)
            section = nodes.section(ids=[f"pie-anyio-{name}"], names=[f"pie-anyio {name}"])
            section += [nodes.title("", f"pie-anyio {name}"), _help(command, context)]
            found.append(section)
        return found


def _help(command: Any, context: Any) -> nodes.literal_block:
    text = command.get_help(context)
    block = nodes.literal_block(text, text)
    block["language"] = "text"
    return block


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives."""
    app.add_directive("limits-table", LimitsTable)
    app.add_directive("exception-tree", ExceptionTree)
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
