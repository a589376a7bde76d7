# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration. `make docs` builds with warnings as errors and every reference resolved."""

from __future__ import annotations

import sys
from importlib import metadata, util
from pathlib import Path

from pie_anyio import testing

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "pie-anyio"
author = "the pie-anyio authors"
copyright = "the pie-anyio authors; Apache License 2.0"
try:
    release = metadata.version("pie-anyio")
except metadata.PackageNotFoundError:
    release = "0.1.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "pie_diagrams",
    "pie_docstrings",
    "pie_tables",
]
exclude_patterns = ["_build", "_ext"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"pie-anyio {release}"
html_static_path = ["_static"]
html_css_files = ["pie.css"]
pygments_style = "friendly"
pygments_dark_style = "monokai"

autodoc_typehints = "signature"
# The facade of the testing kit gives its objects their public names on first use; references in annotations need them.
for _name in testing.__all__:
    getattr(testing, _name)

# The page about the fixtures needs their module's docstring only, and pytest is nothing that a build of pages needs.
autodoc_mock_imports = [name for name in ("pytest",) if util.find_spec(name) is None]
autodoc_member_order = "bysource"
autodoc_preserve_defaults = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False

# What is documented elsewhere: Python, and the libraries that appear in signatures.
nitpick_ignore_regex = [
    # Private types in signatures of the testing kit's inner parts.
    (r"py:.*", r"pie_anyio\.(testing\.)?(\w+\.)?_.*"),
    (
        r"py:class",
        r"pie_anyio\.testing\.streams\.MemoryByteStream|Rewrite|Request|Session|P|CoreEvent|engine_core\.EngineEvent",
    ),
    # Attributes that exist without a docstring of their own.
    (r"py:attr", r"source|name"),
    (
        r"py:.*",
        r"(anyio|attrs|collections|contextlib|cryptography|datetime|deque|enum|os|pathlib|ssl|types|typing|_pytest|pytest)(\..*)?",
    ),
    (
        r"py:(class|exc|data|obj|attr)",
        r"(bytes|str|int|float|bool|object|dict|list|tuple|set|None|type|bytearray|memoryview)",
    ),
    (
        r"py:(class|exc)",
        r"(BaseException|Exception|ExceptionGroup|ConnectionFailed|RuntimeError|TypeError|ValueError|UserWarning|optional)",
    ),
]
