# SPDX-License-Identifier: Apache-2.0
"""Python functions as programs: ``@inferlet`` readies a function, ``PieClient.run`` installs and launches it (0.5).

What travels is the function's source text, without decorators; the engine runs it with its own Python and calls it
with the launch input as keyword arguments. So a function must stand by itself: what it uses is imported inside it or
passed in. This is checked here, where the name that is missing can be told.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import symtable
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any, Final, Generic, ParamSpec, TypeVar, overload

import attrs
import blake3

from ._exceptions import InvalidRequest
from ._manifest import check_program_name

__all__ = ["Inferlet", "inferlet"]

P = ParamSpec("P")
R = TypeVar("R")

# Annotation, as an object or as its text (``from __future__ import annotations``) -> name in the manifest.
_TYPE_NAMES: Final[dict[object, str]] = {
    str: "string",
    int: "int",
    float: "float",
    bool: "bool",
    "str": "string",
    "int": "int",
    "float": "float",
    "bool": "bool",
}


@attrs.frozen
class Inferlet(Generic[P, R]):
    """A function that is ready to run on an engine, and still callable here.

    ``entry`` is the function's own name, ``source`` the text that is uploaded, ``parameters`` what the manifest says
    about each parameter: ``{"type": ..., "optional": True, "description": ...}``.
    """

    fn: Callable[P, R]
    name: str
    version: str
    entry: str
    source: str
    description: str | None
    parameters: Mapping[str, Mapping[str, Any]] = attrs.field(
        factory=dict[str, Mapping[str, Any]], hash=False
    )

    @property
    def program(self) -> str:
        """``name@version``, by which the engine launches the function."""
        return f"{self.name}@{self.version}"

    def manifest_toml(self) -> str:
        """Write the manifest that is uploaded together with :attr:`source`."""
        package = {"name": self.name, "version": self.version}
        if self.description:
            package["description"] = self.description
        runtime = {"language": "python", "entry": self.entry, "call": "kwargs"}
        blocks = [
            _toml_block("package", {key: _toml_scalar(value) for key, value in package.items()}),
            _toml_block("runtime", {key: _toml_scalar(value) for key, value in runtime.items()}),
        ]
        if self.parameters:
            inline = {name: _toml_inline(spec) for name, spec in self.parameters.items()}
            blocks.append(_toml_block("parameters", inline))
        return "\n".join(blocks)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function here, as if it were not decorated."""
        return self.fn(*args, **kwargs)


@overload
def inferlet(fn: Callable[P, R], /) -> Inferlet[P, R]: ...
@overload
def inferlet(
    fn: None = None, /, *, name: str | None = None, version: str | None = None, description: str | None = None
) -> Callable[[Callable[P, R]], Inferlet[P, R]]: ...
def inferlet(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    version: str | None = None,
    description: str | None = None,
) -> Any:
    """Make a program of a function, as ``@inferlet`` or ``@inferlet(name=..., version=..., description=...)``.

    By default the name is the function's with ``-`` for ``_``, the version is computed from the source (so that a
    changed function is a new program), and the description is the first line of the docstring. The engine passes the
    launch input as keyword arguments.

    Raises:
        InvalidRequest: the function cannot run elsewhere: it is a lambda, a closure or uses a name that only exists
            here, its source cannot be found, or its name or version is not one that engines launch.
    """

    def ready(function: Callable[..., Any]) -> Inferlet[..., Any]:
        if not isinstance(function, FunctionType):
            msg = f"@inferlet goes on a function, not on {function!r}; write it above the def of a function"
            raise InvalidRequest(msg)
        source, tree = _definition(function)
        _check_self_contained(function, tree)
        doc = inspect.getdoc(function) or ""
        readied = Inferlet(
            fn=function,
            name=tree.name.replace("_", "-") if name is None else name,
            version=_source_version(source) if version is None else version,
            entry=tree.name,
            source=source,
            description=(doc.strip().split("\n", 1)[0].rstrip() or None)
            if description is None
            else description,
            parameters=_parameters(function),
        )
        check_program_name(readied.program, bare=False)
        return readied

    return ready if fn is None else ready(fn)


_Definition = ast.FunctionDef | ast.AsyncFunctionDef


def _definition(function: FunctionType) -> tuple[str, _Definition]:
    """Find the source of a function, from its ``def`` on, at no indentation."""
    name = function.__name__
    if name == "<lambda>":
        msg = "a lambda cannot be an inferlet, since its source cannot be cut out of its line; write a def"
        raise InvalidRequest(msg)
    try:
        text = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as exc:
        msg = (
            f"the source of {name} cannot be found; an inferlet must be defined in a file or a notebook cell"
        )
        raise InvalidRequest(msg) from exc
    try:
        tree = ast.parse(text).body[0]
    except (SyntaxError, IndexError) as exc:
        msg = f"the source of {name} cannot be read by itself; move it to the top level of a module"
        raise InvalidRequest(msg) from exc
    if not isinstance(tree, _Definition):
        msg = f"the source found for {name} is no def statement; define the inferlet with a plain def or async def"
        raise InvalidRequest(msg)
    return "".join(text.splitlines(keepends=True)[tree.lineno - 1 :]), tree


def _check_self_contained(function: FunctionType, tree: _Definition) -> None:
    """Refuse a function that needs anything from around it."""
    name = function.__name__
    if hasattr(function, "__wrapped__"):
        msg = f"{name} is wrapped by another decorator, which would not travel with it; leave only @inferlet"
        raise InvalidRequest(msg)
    # A nested function that calls itself holds itself; where it travels to, it finds itself by name.
    captured = [free for free in function.__code__.co_freevars if free != tree.name]
    if captured:
        msg = f"{name} closes over {', '.join(captured)}; pass it as an argument, since only the function travels"
        raise InvalidRequest(msg)
    missing = sorted(_unbound_names(tree))
    if missing:
        msg = (
            f"{name} uses {', '.join(missing)} without defining it; import or define it inside the function, "
            "or pass it as an argument, since only the function travels"
        )
        raise InvalidRequest(msg)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            msg = (
                f"{name} takes {parameter.name} by position only, but the engine passes its input by keyword"
            )
            raise InvalidRequest(msg)


def _unbound_names(tree: _Definition) -> set[str]:
    """Find the global names that a definition uses but neither it nor Python itself provides."""
    tree.decorator_list.clear()
    # The engine's Python (3.14) does not evaluate the annotations of the signature.
    tree.returns = None
    for argument in ast.walk(tree.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    used: set[str] = set()
    bound = set(dir(builtins)) | {"__name__", "__file__"}
    for scope in _scopes(symtable.symtable(ast.unparse(tree), "<inferlet>", "exec")):
        for symbol in scope.get_symbols():
            if scope.get_type() == "module" or symbol.is_global():
                names = bound if symbol.is_assigned() or symbol.is_imported() else used
                names.add(symbol.get_name())
    return used - bound


def _scopes(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _scopes(child)


def _source_version(source: str) -> str:
    """Give a version that follows from the source: ``0.x.y``, 16 bits of its BLAKE3 hash in each of x and y."""
    digest = blake3.blake3(source.encode()).digest(4)
    return f"0.{int.from_bytes(digest[:2], 'big')}.{int.from_bytes(digest[2:], 'big')}"


def _parameters(function: FunctionType) -> dict[str, dict[str, Any]]:
    """Describe the parameters for the manifest; engines show this but do not enforce it."""
    described: dict[str, dict[str, Any]] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        entry: dict[str, Any] = {"type": _type_name(parameter.annotation)}
        if parameter.default is not parameter.empty:
            entry |= {"optional": True, "description": f"default: {parameter.default!r}"}
        described[parameter.name] = entry
    return described


def _type_name(annotation: object) -> str:
    try:
        return _TYPE_NAMES.get(annotation, "string")
    except TypeError:  # an annotation that cannot be hashed, such as Annotated[str, []]
        return "string"


def _toml_block(title: str, entries: Mapping[str, str]) -> str:
    """Write a table whose values are TOML already."""
    # A Python name may hold letters that TOML allows only in quotes.
    keys = {key: key if key.isascii() else _toml_scalar(key) for key in entries}
    return "\n".join([f"[{title}]", *(f"{keys[key]} = {value}" for key, value in entries.items())]) + "\n"


def _toml_inline(spec: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key} = {_toml_scalar(value)}" for key, value in spec.items()) + "}"


def _toml_scalar(value: str | bool) -> str:
    # JSON writes booleans and strings as TOML does, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
