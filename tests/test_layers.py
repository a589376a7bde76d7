# SPDX-License-Identifier: Apache-2.0
"""The structure of the source: who may import whom, how long things may be, what every file carries."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent

# ------------------------------------------------------------------------------------------------------- the tables

BASE = frozenset({"_events", "_exceptions", "_types", "_receipt"})
"""L0: the vocabulary that every layer shares."""

LAYERS: dict[str, frozenset[str]] = {
    "L0": BASE,
    "L1": frozenset({"_protocol"}),
    "L2": frozenset({"_flow"}),
    "L3": frozenset({"_transport"}),
    "files": frozenset({"_inferlet", "_keys", "_manifest", "_programs", "_ssh_agent"}),
    "L4": frozenset({"_session"}),
    "L5": frozenset({"_arguments", "_calls", "_client", "_fleet", "_mcp", "_pool", "_process"}),
    "L6": frozenset(
        {"_map", "_map_policy", "_map_queue", "_map_runner", "_map_source", "_outcomes", "_pie_client"}
    ),
    "L7": frozenset({"evals", "sync"}),
    "keeper": frozenset({"keeper"}),
    "testing": frozenset({"testing"}),
    "L8": frozenset({"cli"}),
    "L9": frozenset({"__init__"}),
}
"""Which layer each top-level module or package belongs to."""

MAY_IMPORT: dict[str, frozenset[str]] = {
    "L0": frozenset({"L0"}),
    "L1": frozenset({"L0"}),
    "L2": frozenset({"L0"}),
    "L3": frozenset({"L0", "L2"}),
    "files": frozenset({"L0"}),
    "L4": frozenset({"L0", "L1", "L2", "L3", "files"}),
    "L5": frozenset({"L0", "L1", "L2", "L4", "files"}),
    "L6": frozenset({"L0", "L2", "files", "L5"}),
    "L7": frozenset({"L0", "L5", "L6", "L9"}),
    "keeper": frozenset({"L0", "L1", "L2", "L3", "L5", "L6"}),
    "testing": frozenset({"L0", "L1", "L2", "L3", "files", "L4", "L5", "L9"}),
    "L8": frozenset({"L7", "L9", "keeper", "testing"}),
    "L9": frozenset(LAYERS) - {"L8", "keeper", "testing"},
}
"""Which layers a layer may import, besides itself."""

LIBRARIES: dict[str, frozenset[str]] = {
    "L0": frozenset({"attrs"}),
    "L1": frozenset({"attrs", "blake3", "cryptography", "msgpack", "wsproto"}),
    "L2": frozenset({"anyio", "attrs"}),
    "L3": frozenset({"anyio", "attrs"}),
    "files": frozenset({"anyio", "attrs", "blake3", "cryptography"}),
    "L4": frozenset({"anyio", "attrs", "blake3"}),
    "L5": frozenset({"anyio", "attrs"}),
    "L6": frozenset({"anyio", "attrs"}),
    "L7": frozenset({"anyio", "attrs"}),
    "keeper": frozenset({"anyio", "attrs", "blake3", "platformdirs"}),
    "testing": frozenset(
        {"anyio", "attrs", "blake3", "cryptography", "msgpack", "pytest", "trio", "wsproto"}
    ),
    "L8": frozenset({"anyio", "attrs", "click", "platformdirs", "rich"}),
    "L9": frozenset(),
}
"""Third-party packages that a layer may import when it is imported itself."""

LAZY = frozenset({"bcrypt", "orjson", "pie", "pie_client", "pie_server", "uvloop"})
"""Packages of the extras: any layer above the core may import them inside a function, none at its top."""

SANS_IO = frozenset(
    {
        *("asyncio", "concurrent", "sched", "signal", "subprocess"),
        *("_thread", "multiprocessing", "queue", "threading"),
        *("select", "selectors", "socket", "socketserver", "ssl"),
        *("random", "secrets", "time"),
    }
)
"""What the core must not import from the standard library: no loop, no clock, no I/O, no randomness of its own."""

EXTRAS = [
    *("bcrypt", "cattrs", "click", "httpx2", "mcp", "opentelemetry", "orjson", "pie", "pie_client"),
    *("pie_server", "platformdirs", "pyarrow", "rich", "uvloop"),
]

MAX_MODULE, MAX_FUNCTION = 700, 40
LICENCE = "# SPDX-License-Identifier: Apache-2.0"


# ------------------------------------------------------------------------------------------------------- the sources


def package_folder() -> Path:
    spec = importlib.util.find_spec("pie_anyio")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


SOURCE = package_folder()
MODULES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))
CORE = [module for module in MODULES if module.startswith("_protocol/")]
TEST_MODULES = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py"))


def source(module: str) -> str:
    return (SOURCE / module).read_text(encoding="utf-8")


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def top(module: str) -> str:
    return module.split("/", maxsplit=1)[0].removesuffix(".py")


def layer_of(name: str) -> str:
    for layer, members in LAYERS.items():
        if name in members:
            return layer
    pytest.fail(f"pie_anyio.{name} is in no layer: add it to the table in tests/test_layers.py")


def imports(module: str) -> Iterator[tuple[str, int, bool]]:
    """Give each module that is imported, by its absolute name, with the line and whether it is at the top level."""
    tree = parse(SOURCE / module)
    parts = ["pie_anyio", *module.removesuffix(".py").split("/")]
    inside = {id(node) for function in functions(tree) for node in ast.walk(function) if node is not function}
    for node in ast.walk(tree):
        at_top = id(node) not in inside
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, at_top
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            name = ".".join(filter(None, (base, node.module)))
            if name == "pie_anyio":
                # `from . import _types` names modules, `from pie_anyio import PieClient` the facade.
                for alias in node.names:
                    known = any(alias.name in members for members in LAYERS.values())
                    yield f"{name}.{alias.name}" if known else name, node.lineno, at_top
            else:
                yield name, node.lineno, at_top


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


# --------------------------------------------------------------------------------------------------------- imports


@pytest.mark.parametrize("module", MODULES)
def test_layers_import_only_what_is_below_them(module: str) -> None:
    """Our own modules follow the table of layers."""
    layer = layer_of(top(module))
    wrong = []
    for name, line, _ in imports(module):
        if name.split(".")[0] == "pie_anyio":
            target = layer_of([*name.split("."), "__init__"][1])
            if target != layer and target not in MAY_IMPORT[layer]:
                wrong.append(f"{module}:{line} is {layer} and imports {name}, which is {target}")
    assert not wrong


@pytest.mark.parametrize("module", MODULES)
def test_libraries_are_used_where_they_belong(module: str) -> None:
    """Each layer keeps to its third-party packages, and those of extras are imported on use only."""
    layer = layer_of(top(module))
    wrong = []
    for name, line, at_top in imports(module):
        package = name.split(".")[0]
        if package in sys.stdlib_module_names or package in {"pie_anyio", *LIBRARIES[layer]}:
            continue
        if package == "_typeshed" or (package in LAZY and not at_top and layer not in {"L0", "L1"}):
            continue
        wrong.append(f"{module}:{line} is {layer} and imports {name}{' at its top' if at_top else ''}")
    assert not wrong


@pytest.mark.parametrize("module", [module for module in MODULES if top(module) != "testing"])
def test_nothing_is_tied_to_one_event_loop(module: str) -> None:
    """Outside the testing kit neither asyncio nor trio is imported."""
    tied = [
        f"{module}:{line}" for name, line, _ in imports(module) if name.split(".")[0] in {"asyncio", "trio"}
    ]
    assert not tied


def test_one_module_asks_the_loop_itself() -> None:
    """Where tasks park, the running loop is looked up among the imported modules; nothing else may do that."""
    asking = [
        module
        for module in MODULES
        if 'sys.modules["asyncio"]' in source(module) or '"trio"' in source(module)
    ]
    assert [module for module in asking if top(module) not in {"testing", "cli"}] == ["_flow/parking.py"]


@pytest.mark.parametrize("module", CORE)
def test_the_core_does_no_io(module: str) -> None:
    """The protocol core has no loop, clock, socket or randomness."""
    wrong = [f"{module}:{line} {name}" for name, line, _ in imports(module) if name.split(".")[0] in SANS_IO]
    assert not wrong


def test_the_package_needs_no_extra() -> None:
    """`import pie_anyio` works, and imports nothing of ours from an extra, where none is installed."""
    program = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import pie_anyio
for name in pie_anyio.__all__:
    getattr(pie_anyio, name)
wrong = [name for name in sys.modules if name.startswith(("pie_anyio.testing", "pie_anyio.cli", "pytest"))]
assert not wrong, wrong
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("module", MODULES)
def test_modules_have_one_subject(module: str) -> None:
    """A module of more than 700 lines has grown a second subject."""
    lines = len((SOURCE / module).read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_MODULE


@pytest.mark.parametrize("module", MODULES)
def test_functions_fit_on_a_screen(module: str) -> None:
    """Less than 40 lines each, the docstring not counted."""
    long = []
    for node in functions(parse(SOURCE / module)):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            length -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
        if length >= MAX_FUNCTION:
            long.append(f"{module}:{node.lineno} {node.name} has {length} lines")
    assert not long


# ------------------------------------------------------------------------------------------------------- conventions


@pytest.mark.parametrize("module", MODULES)
def test_modules_say_what_they_are_for(module: str) -> None:
    """Each module of the source has a docstring."""
    assert ast.get_docstring(parse(SOURCE / module))


@pytest.mark.parametrize("path", [*SOURCE.rglob("*.py"), *TESTS.rglob("*.py")], ids=lambda path: path.name)
def test_files_name_their_licence(path: Path) -> None:
    """It is the first line of each file."""
    assert path.read_text(encoding="utf-8").startswith(f"{LICENCE}\n")


@pytest.mark.parametrize("module", TEST_MODULES)
def test_tests_say_what_they_show(module: str) -> None:
    """Each test has a docstring."""
    silent = [
        f"{module}:{node.lineno} {node.name}"
        for node in functions(parse(TESTS / module))
        if node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert not silent
