# SPDX-License-Identifier: Apache-2.0
"""The script that serves an engine, in this process and with a stand-in for ``pie-server``.

`test_real_engine` runs it as what it is, a process of its own.
"""

from __future__ import annotations

import asyncio
import os
import runpy
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any, Self

import pytest

from pie_anyio.testing import _boot

SCRIPT = Path(_boot.__file__)


class Fields(types.SimpleNamespace):
    """Stands for each of the server's configuration classes."""


class Server:
    """Serves nothing, at a fixed address."""

    url = "ws://127.0.0.1:1"

    def __init__(self, config: Fields) -> None:
        self.config = config

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Give a complete command line."""
    log = tmp_path / "log"
    log.touch()
    options = {"log": log, "sku": "tiny", "port": 8080, "pages": 64, "processes": 5}
    return ["ck", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Install the stand-in; no input, no watcher; record the limits that are set instead of dying by them."""
    config = types.ModuleType("pie.config")
    names = ("Config", "ServerConfig", "TelemetryConfig", "RuntimeConfig", "ModelConfig", "EngineConfig")
    vars(config).update(dict.fromkeys(names, Fields))
    server = types.ModuleType("pie.server")
    vars(server)["Server"] = Server
    modules = {"pie": types.ModuleType("pie"), "pie.config": config, "pie.server": server}
    for name, module in {**modules, "pie_language_python": types.ModuleType("x")}.items():
        monkeypatch.setitem(sys.modules, name, module)
    recorded: list[tuple[Any, ...]] = []

    class Timer(threading.Thread):
        def __init__(self, *parts: Any) -> None:
            super().__init__(target=recorded.append, args=(parts,))

    class Thread(threading.Thread):
        def start(self) -> None:
            if self._target.__name__ != "leave_when_wedged":  # type: ignore[attr-defined]
                super().start()

    monkeypatch.setattr(threading, "Timer", Timer)
    monkeypatch.setattr(threading, "Thread", Thread)
    inputs = [b"", b"input as such means nothing"]
    monkeypatch.setattr(os, "read", lambda *_: inputs.pop())
    monkeypatch.setattr(os, "setpgid", lambda *_: None)
    return recorded


def test_configuration_fits_a_software_device(limits: list[Any], arguments: list[str]) -> None:
    """The numbers of the command line arrive, and each process has two slots of state."""
    config = _boot.configuration(_boot.parse(arguments))
    assert config.server.port == 8080
    assert config.server.host == "127.0.0.1"
    assert config.model.sku == "tiny"
    assert config.model.engine.options["max_total_pages"] == 64
    assert config.model.engine.options["max_state_slots"] == 10
    assert config.runtime.max_concurrent_processes == 5


def test_serves_until_input_ends(limits: list[Any], arguments: list[str]) -> None:
    """The URL is announced, the end of input ends it, and the time to leave is limited."""
    said: list[str] = []
    asyncio.run(_boot.serve(_boot.parse(arguments), said.append))
    assert said == ["ws://127.0.0.1:1"]
    assert limits == [(_boot.SHUTDOWN_LIMIT, os._exit, (1,))]


def test_it_stays_on_its_cores(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """The CPUs of the command line are those of this process; without any, they are left as they are."""
    calls: list[tuple[int, list[int]]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda *call: calls.append(call), raising=False)
    _boot.pin(_boot.parse(arguments).cores)
    assert calls == []
    _boot.pin(_boot.parse([*arguments, "--cores", "1,3"]).cores)
    assert calls == [(0, [1, 3])]


def test_cores_are_ignored_where_processes_cannot_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other platforms than Linux have no such call."""
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    _boot.pin("0")


@pytest.mark.parametrize("cores", ["", "999999"])
def test_cores_that_are_not_there(cores: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They end the process, with a word about the reason."""

    def refuse(_: int, wanted: list[int]) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    with pytest.raises(SystemExit, match="cannot run on these cores"):
        _boot.pin(cores)


def test_standard_output_carries_the_url_only(capfd: pytest.CaptureFixture[str]) -> None:
    """What is written to file descriptor 1 goes to standard error, but for the announcement."""
    announce = _boot.claim_stdout()
    os.write(1, b"noise\n")
    announce("ws://host")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("ws://host\n", "noise\n")


def test_a_lost_device_thread_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sign is found in the log even if it is read in two pieces."""
    log = tmp_path / "log"
    log.write_bytes(b"some noise\nthread 'wgpu po")
    pieces = [b"ll' (7) panicked at x.rs\n", b""]

    def pause(_: float) -> None:
        with log.open("ab") as file:
            file.write(pieces.pop())

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(time, "sleep", pause)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(os, "write", lambda *_: None)
    with pytest.raises(SystemExit) as caught:
        _boot.leave_when_wedged(str(log))
    assert caught.value.code == _boot.WEDGED
    assert pieces == []


def test_runs_as_a_script(
    limits: list[Any],
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As a script it takes its own folder off the path, and writes the URL to standard output."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert str(SCRIPT.parent) not in sys.path
    assert capfd.readouterr().out == "ws://127.0.0.1:1\n"
