# SPDX-License-Identifier: Apache-2.0
"""Program names and manifests (``Pie.toml``), checked before anything is sent.

An engine stores an upload under whatever name and version its manifest gives, but launches only names of one form
(0.4 and 0.5). A program outside of it would be installed and unusable, so it is refused here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, TypeGuard

import attrs

from ._exceptions import InvalidRequest

__all__ = ["Manifest", "check_program_name", "parse_manifest"]

# ASCII on purpose: the engine also takes other digits, but no other tool does.
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]*")
_VERSION: Final = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")
_NAME_RULE: Final = "ASCII letters, digits, '_' and '-', the first a letter or digit"
_VERSION_RULE: Final = "three numbers, as in '0.1.0'"
_RUNTIME_STRINGS: Final = ("language", "entry", "call", "python-runtime")


@attrs.frozen(kw_only=True)
class Manifest:
    """What a ``Pie.toml`` says about a program, as far as a client needs it; other keys are the engine's business.

    ``runtime_language`` is ``"python"`` or ``"javascript"`` where the program is a script (0.5), and None where it is
    a WebAssembly component. ``text`` is the manifest as it is sent.
    """

    name: str
    version: str
    description: str | None = None
    runtime_language: str | None = None
    entry: str | None = None
    dependencies: Mapping[str, str] = attrs.field(factory=dict[str, str], hash=False)
    text: str = attrs.field(default="", repr=False, eq=False)

    @property
    def program(self) -> str:
        """``name@version``, by which the engine launches the program."""
        return f"{self.name}@{self.version}"


def parse_manifest(text: str) -> Manifest:
    """Read the text of a ``Pie.toml``; unknown keys are passed over, as the engine does.

    Raises:
        InvalidRequest: the text is no TOML, a key that matters is missing or of the wrong type, or an engine would
            install the program but could never launch it.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        msg = f"the manifest is not valid TOML: {exc}"
        raise InvalidRequest(msg) from exc
    package = _table(document, "package", required=True)
    runtime = _table(document, "runtime")
    for key in _RUNTIME_STRINGS:
        _text(runtime, "runtime", key)
    dependencies = _table(document, "dependencies")
    for key in dependencies:
        _text(dependencies, "dependencies", key)
    name, version = _required(package, "name"), _required(package, "version")
    if not _NAME.fullmatch(name):
        raise InvalidRequest(_unlaunchable("name", name, _NAME_RULE))
    if not _VERSION.fullmatch(version):
        raise InvalidRequest(_unlaunchable("version", version, _VERSION_RULE))
    return Manifest(
        name=name,
        version=version,
        description=_text(package, "package", "description"),
        runtime_language=_text(runtime, "runtime", "language"),
        entry=_text(runtime, "runtime", "entry"),
        dependencies=MappingProxyType(dependencies),
        text=text,
    )


def check_program_name(program: str, *, bare: bool) -> tuple[str, str | None]:
    """Split ``name@version`` into its parts; a bare name gives None for the version.

    ``bare`` says whether the engine takes names without a version (0.5 does, 0.4 does not).

    Raises:
        InvalidRequest: the name could not be launched by any engine, or needs a version.
    """
    given: object = program  # callers without a type checker pass paths and None
    if not isinstance(given, str):
        msg = f"the program must be a string such as 'name@0.1.0', not {type(given).__name__}"
        raise InvalidRequest(msg)
    name, at, version = program.partition("@")
    if not _NAME.fullmatch(name):
        msg = f"invalid program name {name!r} in {program!r}: it must be {_NAME_RULE}"
        raise InvalidRequest(msg)
    if not at:
        if bare:
            return name, None
        msg = f"Version required: use 'name@version', such as '{name}@0.1.0', instead of {program!r}"
        raise InvalidRequest(msg)
    if not _VERSION.fullmatch(version):
        msg = (
            f"invalid version {version!r} in {program!r}: it must be {_VERSION_RULE}; "
            "ranges and 'latest' are not understood by engines"
        )
        raise InvalidRequest(msg)
    return name, version


def _unlaunchable(key: str, value: str, rule: str) -> str:
    return (
        f"the manifest's package.{key} is {value!r}, but must be {rule}: "
        "an engine would install the program but could never launch it"
    )


def _is_table(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _table(document: dict[str, Any], key: str, *, required: bool = False) -> dict[str, Any]:
    value: object = document.get(key, {})
    if not _is_table(value):
        msg = f"the manifest's {key} must be a table ([{key}]), not {_toml_type(value)}"
        raise InvalidRequest(msg)
    if required and key not in document:
        msg = f"the manifest has no [{key}] table; it needs one with name and version"
        raise InvalidRequest(msg)
    return value


def _text(table: dict[str, Any], where: str, key: str) -> str | None:
    value: object = table.get(key)
    if value is None or isinstance(value, str):
        return value
    msg = f"the manifest's {where}.{key} must be a string, not {_toml_type(value)}"
    raise InvalidRequest(msg)


def _required(package: dict[str, Any], key: str) -> str:
    value = _text(package, "package", key)
    if value is None:
        msg = f"the manifest has no package.{key}"
        raise InvalidRequest(msg)
    return value


def _toml_type(value: object) -> str:
    """Name the type of a value as TOML calls it."""
    names = {
        "bool": "a boolean",
        "int": "an integer",
        "float": "a float",
        "list": "an array",
        "dict": "a table",
    }
    return names.get(type(value).__name__, f"a {type(value).__name__}")
