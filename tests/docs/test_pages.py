# SPDX-License-Identifier: Apache-2.0
"""What the pages say beside their examples: commands, manifests, links, and that nothing public is left out."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator

import pytest
from tests.docs.examples import ROOT, Block, blocks, pages

import pie_anyio
import pie_anyio.keeper
import pie_anyio.testing
from pie_anyio import PieClient, PieError, Process, parse_manifest

DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not here")

SHELLS = {"sh", "bash", "console", "shell"}
LANGUAGES = {"", "python", "output", "text", "toml", "json", "eval-rst", *SHELLS}


def all_blocks(*languages: str) -> list[Block]:
    return [block for page in pages() for block in blocks(page) if block.language in languages]


def commands() -> Iterator[tuple[Block, list[str]]]:
    """Give each command of the shell blocks, without prompts, variables and comments."""
    for block in all_blocks(*SHELLS):
        for line in block.text.replace("\\\n", " ").splitlines():
            if block.language == "console" and not line.startswith("$ "):
                continue  # what the command before it prints
            for part in re.split(r"&&|\|\||[;|]", line):
                words = shlex.split(part.removeprefix("$ "), comments=True)
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words.pop(0)
                if words:
                    yield block, words


def test_languages_are_known() -> None:
    """A block in a language that nothing looks at would be a block that nothing checks."""
    found = [block for page in pages() for block in blocks(page)]
    unknown = [f"{block}: {block.language}" for block in found if block.language not in LANGUAGES]
    assert not unknown


def test_make_targets_exist() -> None:
    """What the pages say about make is in the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {word for _, words in commands() if words[0] == "make" for word in words[1:] if "=" not in word}
    named |= {
        found
        for page in pages()
        for found in re.findall(r"`make ([a-z-]+)`", page.read_text(encoding="utf-8"))
    }
    assert named
    assert named <= targets


def test_extras_exist() -> None:
    """What the pages install is an extra of this package, or one of the packages that they are about."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = ("pie-anyio", ".")  # by name, and from a checkout
    known = {
        *packages,
        *(f"{name}[{extra}]" for name in packages for extra in project["optional-dependencies"]),
    }
    installed = {
        word for _, words in commands() if "install" in words and words[0] == "pip" for word in words[2:]
    }
    mentioned = {
        name
        for page in pages()
        for name in re.findall(r'pip install "?(pie-anyio(?:\[\w+\])?)', page.read_text(encoding="utf-8"))
    }
    assert mentioned >= {"pie-anyio", "pie-anyio[engine]"}
    assert installed | mentioned <= known


def test_modules_that_are_run_exist() -> None:
    """`python -m` names something that can be run."""
    named = {words[2] for _, words in commands() if words[0].startswith("python") and words[1:2] == ["-m"]}
    named -= {"venv", "pip"}
    assert "pie_anyio.testing.engine" in named
    assert [name for name in named if importlib.util.find_spec(name) is None] == []


def test_subcommands_exist() -> None:
    """`pie-anyio` is called with commands and options that it has."""
    pytest.importorskip("click")
    if importlib.util.find_spec("pie_anyio.cli") is None:
        pytest.skip("this installation has no command line")
    from pie_anyio.cli._app import app

    for block, words in commands():
        if words[0] != "pie-anyio" or words[1:] == ["--help"]:
            continue
        command = app.commands.get(words[1])
        assert command is not None, f"{block}: pie-anyio has no command {words[1]}"
        known = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        wrong = [
            word
            for word in words[2:]
            if word.startswith("-") and word.split("=")[0] not in known | {"--help"}
        ]
        assert not wrong, f"{block}: pie-anyio {words[1]} has no {wrong}"


def test_other_commands_are_the_usual_ones() -> None:
    """A misspelt command is none of these."""
    usual = {
        "make",
        "pip",
        "python",
        "python3",
        "pie-anyio",
        "apt-get",
        "sudo",
        "git",
        "cd",
        "export",
        "cat",
        "curl",
    }
    assert {words[0] for _, words in commands()} <= usual


def test_toml_can_be_read() -> None:
    """TOML blocks parse, and those that are manifests are acceptable ones."""
    for block in all_blocks("toml"):
        table = tomllib.loads(block.text)
        if "package" in table:
            assert parse_manifest(block.text).program


def test_json_can_be_read() -> None:
    """JSON blocks parse, as one value or line by line."""
    for block in all_blocks("json"):
        for line in block.text.splitlines() if block.text.count("\n{") else [block.text]:
            json.loads(line)


@pytest.mark.parametrize(
    "module", [pie_anyio, pie_anyio.keeper, pie_anyio.testing], ids=lambda module: module.__name__
)
def test_every_public_name_is_in_the_reference(module: object) -> None:
    """Each name that can be imported has its entry, and no entry is for a name that cannot."""
    name = getattr(module, "__name__", "")
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "reference").glob("*.md")))
    found = re.findall(
        rf"^\.\. auto(?:class|function|exception|data):: {re.escape(name)}\.(\w+)(?:\(\))?$",
        text,
        re.MULTILINE,
    )
    assert len(found) == len(set(found))
    assert set(found) == set(getattr(module, "__all__", ()))


def test_every_error_is_explained() -> None:
    """The page about errors says what to do about each."""
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    table = set(re.findall(r"^\| \{class\}`~pie_anyio\.(\w+)`", text, re.MULTILINE))
    errors = {
        name
        for name in pie_anyio.__all__
        if isinstance(value := getattr(pie_anyio, name), type) and issubclass(value, PieError)
    }
    assert table == errors - {"PieError"}


def test_every_limit_is_explained() -> None:
    """The page about limits says what happens at each."""
    text = (DOCS / "limits.md").read_text(encoding="utf-8").partition("## Limits of engines")[0]
    fields = {field.name for field in pie_anyio.Limits.__attrs_attrs__}
    assert set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (.*?) \|", text, re.MULTILINE)))) == fields


def test_the_methods_of_the_migration_page_exist() -> None:
    """What is said to be there is, and what is said to be absent is not."""
    text = (DOCS / "migration.md").read_text(encoding="utf-8")
    table = text.partition("## Method by method")[2].partition("\n## ")[0]
    rows = [row for row in table.splitlines() if row.startswith("| `")]
    absent = {name for row in rows if "absent" in row for name in re.findall(r"^\| `(\w+)`", row)}
    named = {name for row in rows if "absent" not in row for name in re.findall(r"`(\w+)\(", row)}
    assert absent
    assert not any(hasattr(PieClient, name) for name in absent)
    assert named >= {"launch_process", "run_processes", "connect"}
    assert [name for name in named - {"PieClient"} if not hasattr(PieClient, name)] == []
    process = next(row for row in rows if row.startswith("| `Process."))
    handles = set(re.findall(r"`(?:Process\.)?(\w+)`", process.split("|")[1])) - {"output"}
    assert [name for name in handles if not hasattr(Process, name)] == []


def test_links_between_pages_lead_somewhere() -> None:
    """Relative links in what GitHub shows, which Sphinx does not see, name files that exist."""
    outside = [page for page in pages() if not page.is_relative_to(DOCS)]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in outside
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not broken
