# SPDX-License-Identifier: Apache-2.0
"""Docstrings as they are written in this project, for autodoc.

Sections are those of Google's style, which napoleon understands. Three things it does not: attributes and properties
whose text has a colon in it (it takes what stands before for a type), sections with a remark in their title, such as
"Raises (when awaited)", and attributes of classes that are defined in another module than the one that exports them.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, Final

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.pycode import ModuleAnalyzer

import pie_anyio
import pie_anyio.testing

_CONFIG: Final = Config(napoleon_use_rtype=False, napoleon_use_ivar=True)
_REMARKED: Final = re.compile(r"^(?P<title>Raises|Returns) (?P<remark>\(.*\)):$")
_ITEM: Final = re.compile(r"^    (?P<name>[\w., ]+): (?P<text>.*)$")


def list_remarked(lines: list[str]) -> list[str]:
    """Turn a section with a remark in its title into a list."""
    out: list[str] = []
    inside = False
    for line in lines:
        if title := _REMARKED.match(line):
            inside = True
            out += [f"**{title['title']}** {title['remark']}:", ""]
        elif inside and line and not line.startswith("    "):
            inside = False
            out.append(line)
        elif inside and (item := _ITEM.match(line)):
            names = ", ".join(_role(name) for name in item["name"].split(", "))
            out.append(f"* {names}: {item['text']}")
        else:
            out.append(line[6:] and f"  {line.strip()}" if inside else line)
    return out


def _role(name: str) -> str:
    return f":py:exc:`~pie_anyio.{name}`" if name in pie_anyio.__all__ else f"``{name}``"


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Rewrite one docstring in place."""
    kind = "method" if what in {"attribute", "property", "data"} else what
    text = list_remarked(lines)
    lines[:] = GoogleDocstring(text, _CONFIG, app, kind, name, obj, options).lines()


def share_attribute_docs(app: Sphinx) -> None:
    """Let the facade know the comments on attributes in the modules behind it, whose classes say that they are its."""
    _share(pie_anyio, lambda name: ".cli" not in name and ".testing" not in name)
    _share(pie_anyio.testing, lambda name: "plugin" not in name)


def _share(package: ModuleType, wanted: Callable[[str], bool]) -> None:
    facade = ModuleAnalyzer.for_module(package.__name__)
    facade.analyze()
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not wanted(found.name):
            continue
        import_module(found.name)
        module = ModuleAnalyzer.for_module(found.name)
        module.analyze()
        facade.attr_docs.update(module.attr_docs)
        facade.tagorder.update(module.tagorder)
        facade.annotations.update(module.annotations)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the hooks."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("builder-inited", share_attribute_docs)
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
