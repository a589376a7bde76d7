# SPDX-License-Identifier: Apache-2.0
"""The public interface: what is exported, documented, and by which name it goes."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

import pytest

PUBLIC = ["pie_anyio", "pie_anyio.testing"]


def public_names(module: ModuleType) -> set[str]:
    """Tell what a user sees; submodules are found by their own import statements."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }


def classes_and_functions(module: ModuleType) -> dict[str, object]:
    return {
        name: value
        for name in module.__all__
        if inspect.isclass(value := getattr(module, name)) or inspect.isroutine(value)
    }


@pytest.fixture(params=PUBLIC)
def module(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def test_all_is_what_can_be_seen(module: ModuleType) -> None:
    """`__all__` and the names of the module are the same set, each once."""
    listed = list(module.__all__)
    assert len(listed) == len(set(listed))
    assert {name for name in listed if not name.startswith("__")} == public_names(module)


def test_public_objects_are_documented(module: ModuleType) -> None:
    """Each class and function has a docstring of its own."""
    silent = [name for name, value in classes_and_functions(module).items() if not vars_doc(value)]
    assert not silent


def vars_doc(value: object) -> str | None:
    # Not inspect.getdoc, which falls back on the base class.
    doc = value.__doc__
    return doc.strip() if doc else None


def test_public_methods_are_documented(module: ModuleType) -> None:
    """Each public method and property of our classes has a docstring, its own or its base's."""
    silent = [
        f"{name}.{attribute}"
        for name, value in classes_and_functions(module).items()
        if inspect.isclass(value)
        for attribute, member in vars(value).items()
        if not attribute.startswith("_")
        and (inspect.isroutine(member) or isinstance(member, property))
        and not inspect.getdoc(getattr(value, attribute))
    ]
    assert not silent


def test_public_objects_go_by_their_public_name(module: ModuleType) -> None:
    """Tracebacks, reprs and pickles say `pie_anyio.X`, not where X happens to be defined."""
    wrong = {
        name: value.__module__
        for name, value in classes_and_functions(module).items()
        if value.__module__
        not in ({module.__name__} | ({"pie_anyio"} if module.__name__ != "pie_anyio" else set()))
    }
    assert not wrong
