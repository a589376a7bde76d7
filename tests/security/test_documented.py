# SPDX-License-Identifier: Apache-2.0
"""The pages about limits and security name tests, and the tests are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import attrs
import pytest

from pie_anyio import Limits

TESTS = Path(__file__).resolve().parent.parent
DOCS = TESTS.parent / "docs"
PAGES = ["limits.md", "security.md"]

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not here")


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return frozenset(n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))


def rows(page: str) -> list[list[str]]:
    """Give the rows of the tables of a page."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in found if not set(row[0]) <= {"-"} or row[0] == ""]


def named_on(page: str) -> list[str]:
    return re.findall(r"`([\w/]+\.py::\w+)`", (DOCS / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES)
def test_the_named_tests_exist(page: str) -> None:
    """Each of them, and there are some."""
    found = named_on(page)
    assert found
    for test in found:
        path, _, name = test.partition("::")
        assert name in names_in(path), test


def test_each_limit_names_its_test() -> None:
    """In a row of its own or with its like."""
    tested = {name for row in rows("limits.md") if "::" in row[-1] for name in re.findall(r"`(\w+)`", row[0])}
    assert {field.name for field in attrs.fields(Limits)} <= tested


def test_each_promise_names_its_tests() -> None:
    """None is left with words alone."""
    promises = [row for row in rows("security.md") if re.fullmatch(r"S\d+", row[0])]
    assert [row[0] for row in promises] == [f"S{number}" for number in range(1, len(promises) + 1)]
    assert len(promises) > 20
    for row in promises:
        assert "::test_" in row[-1], row[0]
