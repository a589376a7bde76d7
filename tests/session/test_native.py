# SPDX-License-Identifier: Apache-2.0
"""Compiled help: taken where it is there and right, and not missed where it is not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

import pytest

from pie_anyio._protocol.masking import mask
from pie_anyio._session import native

NAME = "websockets.speedups"


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """Look again in each test, and in what comes after."""
    native.best_mask.cache_clear()
    yield
    native.best_mask.cache_clear()


def put(monkeypatch: pytest.MonkeyPatch, routine: Any) -> None:
    """Have a module with this routine loaded already."""
    module = ModuleType(NAME)
    module.apply_mask = routine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, NAME, module)


def found_in(monkeypatch: pytest.MonkeyPatch, package: ModuleSpec | None, module: Any = None) -> list[str]:
    """Say what the search finds; give what it was asked for."""
    asked: list[str] = []

    def find(name: str, *_: Any) -> Any:
        asked.append(name)
        return package if name == "websockets" else module

    monkeypatch.delitem(sys.modules, NAME, raising=False)
    monkeypatch.setattr(native, "find_spec", find)
    monkeypatch.setattr(PathFinder, "find_spec", find)
    return asked


def package() -> ModuleSpec:
    spec = ModuleSpec("websockets", None, is_package=True)
    spec.submodule_search_locations = ["somewhere"]
    return spec


def test_the_routine_is_right_whatever_it_is() -> None:
    """With the package and without; it is looked for once."""
    best = native.best_mask()
    assert native.best_mask() is best
    for size in (0, 1, 1000, 100_000):
        payload = bytes(range(256)) * (size // 256 + 1)
        assert best(payload[:size], b"\x01\xa2\x33\xf4") == mask(payload[:size], b"\x01\xa2\x33\xf4")


def test_a_routine_that_is_loaded_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is loaded twice."""

    def routine(payload: bytes, key: bytes) -> bytes:
        return mask(payload, key)

    put(monkeypatch, routine)
    assert native.best_mask() is routine


@pytest.mark.parametrize("routine", [None, lambda payload, key: bytes(payload)])
def test_a_routine_that_does_something_else_is_not(monkeypatch: pytest.MonkeyPatch, routine: Any) -> None:
    """It would send garbage."""
    put(monkeypatch, routine)
    assert native.best_mask() is mask


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a way without it."""
    asked = found_in(monkeypatch, None)
    assert native.best_mask() is mask
    assert asked == ["websockets"]


def test_something_of_that_name_that_is_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module has no modules in it, and one that somebody made has perhaps not even a specification."""
    found_in(monkeypatch, ModuleSpec("websockets", None))
    assert native.best_mask() is mask

    def find(name: str) -> None:
        raise ValueError

    monkeypatch.setattr(native, "find_spec", find)
    native.best_mask.cache_clear()
    assert native.best_mask() is mask


def test_a_package_without_its_compiled_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is installed where there is no compiler: nothing of it is run."""
    asked = found_in(monkeypatch, package())
    assert native.best_mask() is mask
    assert asked == ["websockets", NAME]
    found_in(monkeypatch, package(), ModuleSpec(NAME, SourceFileLoader(NAME, "speedups.py")))
    native.best_mask.cache_clear()
    assert native.best_mask() is mask


def test_a_compiled_part_is_loaded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package stays where it is."""

    def run(module: Any) -> None:
        module.apply_mask = routine

    def routine(payload: bytes, key: bytes) -> bytes:
        return mask(payload, key)

    loader = ExtensionFileLoader(NAME, "speedups.so")
    monkeypatch.setattr(ExtensionFileLoader, "create_module", lambda self, spec: ModuleType(NAME))
    monkeypatch.setattr(ExtensionFileLoader, "exec_module", lambda self, module: run(module))
    found_in(monkeypatch, package(), ModuleSpec(NAME, loader))
    assert native.best_mask() is routine
    assert NAME not in sys.modules


def test_a_compiled_part_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Built for another interpreter, say."""

    def refuse(self: Any, spec: Any) -> Any:
        raise ImportError

    monkeypatch.setattr(ExtensionFileLoader, "create_module", refuse)
    spec = ModuleSpec(NAME, ExtensionFileLoader(NAME, "speedups.so"))
    found_in(monkeypatch, package(), spec)
    assert native.best_mask() is mask
