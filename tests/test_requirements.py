# SPDX-License-Identifier: Apache-2.0
"""Each requirement is shown by tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from tests.requirements import DEFECTS, REQUIREMENTS

TESTS = Path(__file__).resolve().parent


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, functions))


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_each_requirement_has_its_tests(requirement: str) -> None:
    """Under the names that are given."""
    assert REQUIREMENTS[requirement]
    for test in REQUIREMENTS[requirement]:
        path, _, name = test.partition("::")
        assert name in names_in(path), test


def test_each_defect_has_its_test() -> None:
    """By number."""
    names = names_in("api/test_official_defects.py")
    numbers = {int(found[1]) for name in names if (found := re.match(r"test_p(\d+)_", name))}
    assert numbers == DEFECTS
