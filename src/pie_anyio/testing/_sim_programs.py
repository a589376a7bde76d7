# SPDX-License-Identifier: Apache-2.0
"""The programs of a simulated engine: Python functions by name, and what clients have uploaded."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs

from ._sim_profiles import Profile

if TYPE_CHECKING:
    from ._sim_process import InferletSession

InferletFunction: TypeAlias = Callable[["InferletSession", Any], Awaitable[object]]
"""``async def f(session, input)``: what stands for a program."""

_IDENTIFIER: Final = re.compile(r"([a-zA-Z0-9][a-zA-Z0-9_-]*)@([0-9]+\.[0-9]+\.[0-9]+)")
_WASM: Final = b"\0asm"
_LANGUAGES: Final = ("python", "javascript")


class ProgramRefused(Exception):
    """A program cannot be found or installed; the text is the engine's answer."""


@attrs.frozen
class Program:
    """One installed program."""

    name: str
    version: str
    function: InferletFunction = attrs.field(repr=False)
    artifact: bytes = attrs.field(default=b"", repr=False)
    manifest: str = attrs.field(default="", repr=False)

    @property
    def identifier(self) -> str:
        """The form ``name@version``."""
        return f"{self.name}@{self.version}"


async def return_input(session: InferletSession, input: Any) -> object:
    """Stand for an uploaded program that no function is known for."""
    return input


class ProgramStore:
    """What is installed, and which functions stand for programs that may be uploaded."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._functions: dict[str, InferletFunction] = {}
        self.installed: dict[str, Program] = {}

    def register(self, identifier: str, function: InferletFunction, *, installed: bool) -> None:
        """Have a function stand for a program; a bare name means version 0.1.0."""
        full = identifier if "@" in identifier else f"{identifier}@0.1.0"
        match = _IDENTIFIER.fullmatch(full)
        if match is None:
            msg = f"{identifier!r} is no program name; write 'name' or 'name@major.minor.patch'"
            raise ValueError(msg)
        name, version = match.groups()
        self._functions[full] = self._functions[name] = function
        if installed:
            self.installed[full] = Program(name, version, function)

    def is_installed(self, name: str, version: str) -> bool:
        """Answer ``check_program``."""
        identifier = f"{name}@{version}"
        if _IDENTIFIER.fullmatch(identifier) is None:
            raise ProgramRefused(_invalid(identifier))
        return identifier in self.installed

    def find(self, identifier: str) -> Program:
        """Find the program of a launch.

        Raises:
            ProgramRefused: it is not installed, or no name.
        """
        program = self.installed.get(identifier)
        if program is not None:
            return program
        if self._profile.v05 and "@" not in identifier:
            return self._find_latest(identifier)
        match = _IDENTIFIER.fullmatch(identifier)
        if match is None:
            raise ProgramRefused(_invalid(identifier))
        if self._profile.v05:
            raise ProgramRefused(f"program {identifier} is not installed (looked in pie_home/inferlets)")
        url = "https://registry.invalid/api/v1/inferlets/{}/{}/manifest".format(*match.groups())
        raise ProgramRefused(f"Failed to download manifest: {url} returned 404 Not Found")

    def _find_latest(self, name: str) -> Program:
        versions = [program for program in self.installed.values() if program.name == name]
        if not versions:
            raise ProgramRefused(f"no program named '{name}' is installed")
        return max(versions, key=lambda program: [int(part) for part in program.version.split(".")])

    def install(self, artifact: bytes, manifest: str, *, force: bool) -> None:
        """Store an upload. Without ``force`` an installed version stays as it is, which is no error.

        Raises:
            ProgramRefused: the manifest or the artifact is not acceptable.
        """
        name, version, language = _read_manifest(manifest)
        if self._profile.v05 and language not in (None, *_LANGUAGES):
            known = " or ".join(f"`{name}`" for name in _LANGUAGES)
            raise ProgramRefused(
                f"Invalid manifest: Failed to parse manifest TOML: unknown variant `{language}`, expected {known}"
            )
        scripted = self._profile.v05 and language is not None
        if not scripted and not artifact.startswith(_WASM):
            raise ProgramRefused("Failed to compile WASM: failed to parse WebAssembly module")
        identifier = f"{name}@{version}"
        if identifier not in self.installed or force:
            function = self._functions.get(identifier) or self._functions.get(name, return_input)
            self.installed[identifier] = Program(name, version, function, artifact, manifest)


def _read_manifest(manifest: str) -> tuple[str, str, object]:
    try:
        table = tomllib.loads(manifest)
        package, runtime = table["package"], table.get("runtime", {})
        name, version = package["name"], package["version"]
        language = runtime.get("language")
    except (tomllib.TOMLDecodeError, KeyError, AttributeError, TypeError) as exc:
        detail = f"missing field `{exc.args[0]}`" if isinstance(exc, KeyError) else exc
        raise ProgramRefused(f"Invalid manifest: Failed to parse manifest TOML: {detail}") from exc
    if not isinstance(name, str) or not isinstance(version, str):
        raise ProgramRefused(
            "Invalid manifest: Failed to parse manifest TOML: invalid type, expected a string"
        )
    return name, version, language


def _invalid(identifier: str) -> str:
    return f"Invalid program identifier '{identifier}': expected 'name@major.minor.patch'"
