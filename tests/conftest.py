# SPDX-License-Identifier: Apache-2.0
"""Event loops for every async test, the check for leftover tasks, and the official clients' environments."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

ROOT = Path(__file__).resolve().parent.parent

if importlib.util.find_spec("pie_anyio.testing.plugin") is not None:
    pytest_plugins = ["pie_anyio.testing.plugin"]


# ------------------------------------------------------------------------------------------------------------ loops


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    return loop


def _backends() -> dict[str, tuple[str, dict[str, Any]]]:
    backends: dict[str, tuple[str, dict[str, Any]]] = {"asyncio": ("asyncio", {"debug": True})}
    if importlib.util.find_spec("uvloop") is not None:
        backends["uvloop"] = ("asyncio", {"use_uvloop": True})
    if sys.version_info >= (3, 12):
        backends["eager"] = ("asyncio", {"loop_factory": _eager_loop})
    backends["trio"] = ("trio", {})
    return backends


BACKENDS = _backends()
LOOPS = ("asyncio", "trio")


def pytest_report_header() -> str:
    return f"loops: {', '.join(BACKENDS)}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each async test on every loop, or on one per library where it is marked `both_loops`.

    A module that overrides `anyio_backend` (virtual time, one loop only) has its own parameters; those stand.
    """
    definitions = metafunc.definition._fixtureinfo.name2fixturedefs.get("anyio_backend")
    if not definitions or definitions[-1].func is not _DEFAULT_BACKEND:
        return
    names = LOOPS if metafunc.definition.get_closest_marker("both_loops") else tuple(BACKENDS)
    metafunc.parametrize("anyio_backend", names, indirect=True, ids=names)


def _backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return BACKENDS[request.param]


_DEFAULT_BACKEND = _backend
anyio_backend = pytest.fixture(name="anyio_backend")(_backend)


# ---------------------------------------------------------------------------------------------------- leftover tasks


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the check for leftover tasks around each async test, outside its function-scoped fixtures."""
    for item in items:
        if isinstance(item, pytest.Function) and "anyio_backend" in item.fixturenames:
            definitions = item._fixtureinfo.name2fixturedefs
            names = item.fixturenames
            wider = [n for n in names if n in definitions and definitions[n][-1].scope != "function"]
            names.insert(max((names.index(n) + 1 for n in wider), default=0), "no_leftover_tasks")


@pytest.fixture
async def no_leftover_tasks() -> AsyncIterator[None]:
    """Fail a test that leaves a task behind, whatever loop it ran on."""
    before = set(_live_tasks())
    yield
    leftover = [_task_name(task) for task in _live_tasks() if task not in before]
    assert not leftover, f"the test left tasks behind: {leftover}"


def _live_tasks() -> list[Any]:
    if trio.lowlevel.in_trio_task():
        return list(_trio_tasks(trio.lowlevel.current_root_task()))
    return [task for task in asyncio.all_tasks() if not _drives_the_runner(task)]


def _drives_the_runner(task: asyncio.Task[Any]) -> bool:
    """Leave out anyio's own task that waits for the fixture or test: there is a new one for each."""
    return getattr(task.get_coro(), "__name__", "") == "_call_in_runner_task"


def _trio_tasks(task: trio.lowlevel.Task | None) -> Iterator[trio.lowlevel.Task]:
    if task is not None:
        yield task
        for nursery in task.child_nurseries:
            for child in nursery.child_tasks:
                yield from _trio_tasks(child)


def _task_name(task: Any) -> str:
    return task.get_name() if isinstance(task, asyncio.Task) else str(task.name)


# -------------------------------------------------------------------------------------------------- official clients


@pytest.fixture(scope="session")
def official_client_python() -> Callable[[str], Path]:
    """Give the interpreter of an environment that holds the official client in the version asked for.

    Environments are built once and kept under $PIE_TEST_CACHE, or `.cache/` in the checkout.
    """
    return _official_client_python


def _official_client_python(version: str) -> Path:
    cache = Path(os.environ.get("PIE_TEST_CACHE") or ROOT / ".cache") / "official-clients"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{version}-py{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / "bin" / "python"
    ready = folder / ".complete"
    with _locked(cache / f"{folder.name}.lock"):
        # An interrupted build leaves no marker; `--clear` starts it over. An environment whose interpreter has been
        # removed from the machine is built again too.
        if not (ready.exists() and python.exists()):
            _run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder))
            _run(
                *(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"),
                *("--disable-pip-version-check", f"pie-client=={version}"),
            )
            ready.touch()
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        pytest.fail(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}", pytrace=False)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep two test runs from building one environment at the same time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
