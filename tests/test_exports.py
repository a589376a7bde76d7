# SPDX-License-Identifier: Apache-2.0
"""The public interface: what is exported, documented, and by which name it goes."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

import pytest

PUBLIC = ["pie_anyio", "pie_anyio.keeper", "pie_anyio.testing"]


def ours(module: ModuleType) -> set[str]:
    """Tell which public names of a module hold something that this project has defined."""
    return {
        name
        for name in dir(module)
        if not name.startswith("_")
        and not inspect.ismodule(value := getattr(module, name))
        and str(getattr(value, "__module__", "")).split(".")[0] == "pie_anyio"
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
    """`__all__` lists all that is ours, each name once, and nothing that cannot be had."""
    listed = list(module.__all__)
    assert len(listed) == len(set(listed))
    assert ours(module) <= set(listed) <= set(dir(module))


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


def test_public_objects_go_by_a_public_name(module: ModuleType) -> None:
    """Tracebacks, reprs and pickles say `pie_anyio.X`, not where X happens to be defined."""
    wrong = {
        name: home
        for name, value in classes_and_functions(module).items()
        if not is_public(home := value.__module__)
    }
    assert not wrong


def is_public(home: str) -> bool:
    # The modules of the testing kit are public themselves, and loaded one by one.
    return home in {"pie_anyio", "pie_anyio.keeper"} or (
        home.startswith("pie_anyio.testing") and "._" not in home
    )
