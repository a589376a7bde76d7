# SPDX-License-Identifier: Apache-2.0
"""`engine`, and signals, with the command line as a program of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import anyio
import pytest

from pie_anyio import testing
from pie_anyio.cli import _engine, _loop
from pie_anyio.cli._settings import Settings
from pie_anyio.testing import RealEngineUnavailable

from .conftest import Invoke, Served


@contextmanager
def program(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start the command line as a program."""
    with subprocess.Popen(
        [sys.executable, "-m", "pie_anyio.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_served_engine(invoke: Invoke) -> None:
    """The URL comes first; the engine answers there until SIGTERM."""
    with program("engine", "--port", "0", "--profile", "v04") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        result = invoke("run", "upper@0.1.0", "text=hello there", "--url", url)
        assert result.stdout == "HELLO THERE \nHELLO THERE\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 130
        assert process.stderr.readline().startswith("token: ")


def interrupted(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """Run a server and interrupt it as soon as it serves."""

    async def sleep_forever() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep_forever()

    monkeypatch.setattr(_engine, "sleep_forever", sleep_forever)
    return invoke("engine", "--port", "0", *arguments)


def test_an_engine_in_this_process(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record says where; capacity makes it refuse."""
    result = interrupted(invoke, monkeypatch, "--json", "--capacity", "3")
    assert result.code == 130
    assert result.record("listening")["url"].startswith("ws://127.0.0.1:")


def test_a_port_that_is_taken(invoke: Invoke) -> None:
    """A line says so."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = invoke("engine", "--port", str(taken.getsockname()[1]))
    assert result.code == 1
    assert "hint: --port 0" in result.stderr


def test_the_real_engine(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given its options; where it does not run, that is one error."""
    seen: dict[str, Any] = {}

    class Fake:
        url = "ws://127.0.0.1:1"

        def __init__(self, **options: Any) -> None:
            seen.update(options)

        async def __aenter__(self) -> Self:
            if seen["max_total_pages"] == 16:
                msg = "no device"
                raise RealEngineUnavailable(msg)
            return self

        async def __aexit__(self, *exc: object) -> None:
            pass

    monkeypatch.setattr(testing, "RealEngine", Fake, raising=False)
    result = interrupted(invoke, monkeypatch, "--real", "--pages", "32")
    assert (result.code, result.stdout) == (130, "ws://127.0.0.1:1\n")
    assert (seen["port"], seen["max_total_pages"]) == (0, 32)
    refused = invoke("engine", "--real", "--pages", "16")
    assert refused.code == 1
    assert refused.stderr.startswith("error: no device\nhint: --simulated")


def test_the_engine_keeps_what_it_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the user's cache folder, or nowhere if that cannot be."""
    home = _engine.engine_home()
    assert home is not None
    assert home.is_relative_to(tmp_path / "cache")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert _engine.engine_home() is None
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert _engine.engine_home() is None


# ---------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_interrupted_map_leaves_nothing(served: Served, tmp_path: Path, backend: str) -> None:
    """SIGINT to a program with live runs: exit code 130, and the engine has none of them any more."""
    Path("in.jsonl").write_text("".join(f"{number}\n" for number in range(40)))
    arguments = ("map", "wait@0.1.0", "in.jsonl", "-o", "out.jsonl", "--limit", "8", "--url", served.url)
    with program(*arguments, "--backend", backend, "--json") as process:
        served.call(served.engine.wait_live, 8)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    assert served.live == []
    assert "8 started: 8 terminated, 0 unconfirmed" in stderr
    records = [json.loads(line) for line in stdout.splitlines()]
    assert records[-1]["receipt"]["terminated"] == 8
    assert Path("out.jsonl").read_text() == ""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_second_interrupt_leaves_at_once(served: Served, backend: str) -> None:
    """An engine that does not confirm holds the program up for a while; a second SIGINT does not wait for that."""
    with program("run", "wait@0.1.0", "--url", served.url, "--backend", backend) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "waiting\n"
        served.engine.faults.half_open = True
        process.send_signal(signal.SIGINT)
        assert "once more leaves at once" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(1.5) == 130  # the grace period alone is longer
        assert process.stderr.read() == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_leaving_at_once_gives_the_cursor_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    """A progress bar had hidden it."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    _loop.leave_at_once()
    assert codes == [130]
    assert ("\x1b[?25h" in capsys.readouterr().err) == terminal


def test_an_error_while_stopping(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """What goes wrong during the stop is told, and the code stays 130; a second signal is asked to leave at once."""
    left: list[str] = []
    monkeypatch.setattr(_loop, "leave_at_once", lambda: left.append("left"))

    async def main() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await anyio.sleep_forever()
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            with anyio.move_on_after(5, shield=True):
                while not left:
                    await anyio.sleep(0.001)
            msg = "not to be stopped"
            raise OSError(msg)
        return 0

    assert anyio.run(_loop.supervise, main, _loop.Cli(Settings())) == 130
    assert left == ["left"]
    assert "error: not to be stopped" in capfd.readouterr().err
