# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from typing import Any

import pytest

from pie_anyio._exceptions import InvalidRequest
from pie_anyio._manifest import Manifest, check_program_name, parse_manifest

FULL = """
[package]
name = "echo-all"
version = "0.10.2"
description = "Echoes"
authors = ["A"]
colour = "blue"

[runtime]
language = "python"
entry = "main"
workers = 3

[parameters]
prompt = { type = "string" }

[dependencies]
base = "1.0.0"

[extra]
x = 1
"""


def package(**entries: str) -> str:
    """Write a package table; the values are TOML."""
    return "[package]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())


def test_a_full_manifest() -> None:
    """What a client needs is read; what it does not know is passed over."""
    manifest = parse_manifest(FULL)
    assert manifest.program == "echo-all@0.10.2"
    assert (manifest.name, manifest.version, manifest.description) == ("echo-all", "0.10.2", "Echoes")
    assert (manifest.runtime_language, manifest.entry) == ("python", "main")
    assert manifest.dependencies == {"base": "1.0.0"}
    assert manifest.text == FULL


def test_a_minimal_manifest() -> None:
    """Name and version suffice; a component has no language."""
    manifest = parse_manifest(package(name="'a'", version="'0.1.0'"))
    assert manifest == Manifest(name="a", version="0.1.0")
    assert hash(manifest) == hash(Manifest(name="a", version="0.1.0"))
    assert (manifest.description, manifest.runtime_language, manifest.entry) == (None, None, None)


def test_a_manifest_is_a_value() -> None:
    """Neither its attributes nor its dependencies can be changed."""
    manifest: Any = parse_manifest(FULL)
    with pytest.raises(AttributeError):
        manifest.name = "other"
    with pytest.raises(TypeError):
        manifest.dependencies["base"] = "2.0.0"


GOOD: dict[str, str] = {"name": "'a'", "version": "'0.1.0'"}
REFUSED = {
    "[package]\nname = \n": r"not valid TOML: .*line 2, column 8",
    "[package]\nname = 'a'\nname = 'b'\n": r"not valid TOML: .*line 3",
    "x = " + "[" * 5000: "not valid TOML",
    "x = " + "9" * 5000: "not valid TOML",
    "": r"no \[package\] table; it needs one with name and version",
    "package = 3": r"manifest's package must be a table \(\[package\]\), not an integer",
    "package = []": r"must be a table .* not an array",
    package(version="'0.1.0'"): r"no package\.name",
    package(name="'a'"): r"no package\.version",
    package(name="1", version="'0.1.0'"): r"package\.name must be a string, not an integer",
    package(name="true", version="'0.1.0'"): r"package\.name must be a string, not a boolean",
    package(name="'a'", version="0.1"): r"package\.version must be a string, not a float",
    package(name="'a'", version="2020-01-01"): r"package\.version must be a string, not a date",
    package(**GOOD, description="{x = 1}"): r"package\.description must be a string, not a table",
    package(**GOOD) + "[runtime]\nlanguage = 3": r"runtime\.language must be a string, not an integer",
    package(**GOOD)
    + "[runtime]\npython-runtime = 3.14": r"runtime\.python-runtime must be a string, not a float",
    "runtime = 'python'\n" + package(**GOOD): r"runtime must be a table \(\[runtime\]\), not a str",
    package(**GOOD) + "[dependencies]\nbase = {}": r"dependencies\.base must be a string, not a table",
    package(name="'Up 2!'", version="'0.1.0'"): r"package\.name is 'Up 2!', but must be .* never launch it",
    package(name="'-a'", version="'0.1.0'"): r"package\.name is '-a'",
    package(name="''", version="'0.1.0'"): r"package\.name is ''",
    package(
        name="'a'", version="'1'"
    ): r"package\.version is '1', but must be three numbers.* never launch it",
    package(name="'a'", version="'0.1.0+build'"): r"package\.version is '0\.1\.0\+build'",
    package(name="'a'", version='"0.1.0\\n"'): r"package\.version is '0\.1\.0\\n'",
}


@pytest.mark.parametrize(("text", "message"), REFUSED.items(), ids=[repr(text[:60]) for text in REFUSED])
def test_refusals_name_the_key(text: str, message: str) -> None:
    """Every refusal says what is wrong with which key, or where the TOML breaks."""
    with pytest.raises(InvalidRequest, match=message):
        parse_manifest(text)


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize(
    ("program", "parts"),
    [
        ("research-agent@0.1.0", ("research-agent", "0.1.0")),
        ("A_b-9@10.20.30", ("A_b-9", "10.20.30")),
        ("0@0.0.0", ("0", "0.0.0")),
    ],
)
def test_versioned_names(program: str, parts: tuple[str, str], bare: bool) -> None:
    """Names with a version are good on every engine."""
    assert check_program_name(program, bare=bare) == parts


def test_bare_names_depend_on_the_engine() -> None:
    """A bare name is good where the engine resolves it; elsewhere the error shows the spelling."""
    assert check_program_name("echo", bare=True) == ("echo", None)
    with pytest.raises(InvalidRequest, match=r"Version required: use 'name@version', such as 'echo@0\.1\.0'"):
        check_program_name("echo", bare=False)


BAD_NAMES = {
    "": "invalid program name ''",
    "@0.1.0": "invalid program name ''",
    "-a@0.1.0": "invalid program name '-a'",
    "_a@0.1.0": "invalid program name '_a'",
    "a b@0.1.0": "invalid program name 'a b'",
    "grün@0.1.0": "invalid program name 'grün'",
    "a\n@0.1.0": re.escape("invalid program name 'a\\n'"),
    "./a.wasm": "must be ASCII letters, digits",
    "a@": "invalid version ''",
    "a@latest": "ranges and 'latest' are not understood",
    "a@1": "invalid version '1'",
    "a@1.2": "invalid version '1.2'",
    "a@1.2.3.4": "invalid version '1.2.3.4'",
    "a@0.1.0\n": "invalid version",
    "a@0.1.\u0663": "invalid version",
    "a@b@0.1.0": "invalid version 'b@0.1.0'",
    "a@ 0.1.0": "invalid version ' 0.1.0'",
}


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize(("program", "message"), BAD_NAMES.items(), ids=[ascii(name) for name in BAD_NAMES])
def test_bad_names_are_refused(program: str, message: str, bare: bool) -> None:
    """What no engine launches is refused here, with the part that is wrong."""
    with pytest.raises(InvalidRequest, match=message):
        check_program_name(program, bare=bare)


@pytest.mark.parametrize("program", [None, b"a@0.1.0", 3])
def test_other_types_are_refused(program: Any) -> None:
    """A value that is no string is told by its type, also as the ValueError it is."""
    with pytest.raises(ValueError, match=f"must be a string .* not {type(program).__name__}"):
        check_program_name(program, bare=True)
