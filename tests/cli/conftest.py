# SPDX-License-Identifier: Apache-2.0
"""The command line in this process, and an engine in a thread for it to talk to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from pie_anyio.cli._app import run
from pie_anyio.testing import SimulatedEngine


@attrs.frozen
class Result:
    """What an invocation of the command line left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines()]

    def record(self, event: str) -> dict[str, Any]:
        (found,) = [record for record in self.records if record["event"] == event]
        return found


Invoke = Callable[..., Result]


@attrs.frozen
class Served:
    """An engine in a thread, and a way to call it from this one."""

    engine: SimulatedEngine
    portal: BlockingPortal

    @property
    def url(self) -> str:
        return self.engine.url

    @property
    def live(self) -> list[str]:
        """The ids of the live processes."""
        return list(self.portal.call(lambda: self.engine.live_processes))

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        async def limited() -> Any:
            with anyio.fail_after(5):
                return await function(*arguments)

        return self.portal.call(limited)


@contextmanager
def serve(profile: Any = "v05", **options: Any) -> Iterator[Served]:
    """Serve a simulated engine with some programs, in a thread of its own."""
    engine = SimulatedEngine(profile, **options)

    @engine.inferlet("echo@0.1.0")
    async def echo(session: Any, input: Any) -> object:
        await session.stdout("printed\n")
        await session.stderr("warned\n")
        await session.send("sent")
        return input

    @engine.inferlet("wait@0.1.0")
    async def wait(session: Any, input: Any) -> object:
        await session.send("waiting")
        await anyio.sleep_forever()
        return None

    @engine.inferlet("fail@0.1.0")
    async def fail(session: Any, input: Any) -> object:
        raise ValueError("because")

    @engine.inferlet("odd@0.1.0")
    async def odd(session: Any, input: Any) -> object:
        if input["n"] % 2:
            raise ValueError(f"{input['n']} is odd")
        return input["n"]

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(engine):
        yield Served(engine, portal)


@pytest.fixture
def served() -> Iterator[Served]:
    with serve() as served:
        yield served


@pytest.fixture
def served04() -> Iterator[Served]:
    with serve("v04") as served:
        yield served


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the settings of whoever runs the tests out, and their folder clean."""
    for name in (
        "URL",
        "TOKEN",
        "TOKEN_FILE",
        "USERNAME",
        "KEY",
        "IDENTITY",
        "BACKEND",
        "JSON",
        "QUIET",
        "DEBUG",
    ):
        monkeypatch.delenv(f"PIE_{name}", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def invoke(capfd: pytest.CaptureFixture[str]) -> Invoke:
    """Run the command line in this process."""

    def invoke(*arguments: str) -> Result:
        capfd.readouterr()
        code = run(arguments)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return invoke
