# SPDX-License-Identifier: Apache-2.0
"""The engine's process is real here, but what it runs is a stand-in for ``pie-server``.

The stand-in is found through PYTHONPATH and behaves as FAKE_PIE says. `tests/real` has the real one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from pie_anyio.testing import real_engine
from pie_anyio.testing.real_engine import RealEngine, RealEngineProcess, RealEngineUnavailable

CONFIG = """
class Config:
    def __init__(self, **fields):
        self.__dict__.update(fields)

ServerConfig = TelemetryConfig = RuntimeConfig = ModelConfig = EngineConfig = Config
"""

SERVER = """
import asyncio, os, sys

MODE = os.environ["FAKE_PIE"]

class Server:
    def __init__(self, config):
        self.config = config

    async def __aenter__(self):
        os.write(1, b"native code writes to stdout\\n")
        if MODE.startswith("raise "):
            raise RuntimeError(MODE[6:])
        if MODE == "hang":
            await asyncio.Event().wait()
        self.server = await asyncio.start_server(self.greet, "127.0.0.1", self.config.server.port)
        port = self.server.sockets[0].getsockname()[1]
        self.url = f"ws://127.0.0.1:{port}"
        if MODE == "wedge":
            asyncio.get_running_loop().call_later(0.1, os.write, 2, b"thread 'wgpu poll' (1) panicked\\n")
        return self

    async def greet(self, reader, writer):
        config = self.config
        limits = config.model.engine.options
        writer.write(f"{limits['max_total_pages']} {config.runtime.max_concurrent_processes}".encode())
        writer.close()

    async def __aexit__(self, *error):
        if MODE == "deaf":
            await asyncio.Event().wait()
        self.server.close()
"""

Mode = Callable[[str], None]


@pytest.fixture
def mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mode:
    """Install the stand-in, and give a function that sets its mode."""
    package = tmp_path / "fake" / "pie"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "config.py").write_text(CONFIG)
    (package / "server.py").write_text(SERVER)
    (package.parent / "pie_language_python.py").touch()
    paths = [str(package.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("FAKE_PIE", "serve")
    return lambda name: monkeypatch.setenv("FAKE_PIE", name)


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], anyio.Event]:
    """Record the processes that the module starts, and set an event at the first."""
    processes: list[Any] = []
    started = anyio.Event()
    original = anyio.open_process

    async def open_process(*args: Any, **kwargs: Any) -> Any:
        process = await original(*args, **kwargs)
        processes.append(process)
        started.set()
        return process

    monkeypatch.setattr(anyio, "open_process", open_process)
    return processes, started


async def greeting(url: str) -> bytes:
    """Return what the stand-in says on its port."""
    host, port = url.removeprefix("ws://").split(":")
    async with await anyio.connect_tcp(host, int(port)) as stream:
        return await stream.receive()


def logs(home: Path) -> list[Path]:
    """Return the logs that a home keeps."""
    return list(home.glob("engine-*.log"))


def alive(pid: int) -> bool:
    """Say whether a process exists, a zombie included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_boots_serves_and_leaves_nothing(mode: Mode) -> None:
    """The URL answers inside the block; afterwards neither process nor temporary folder is left."""
    with anyio.fail_after(20):
        async with RealEngine(max_total_pages=64, max_processes=5) as engine:
            pid, home = engine.pid, engine.home
            assert await greeting(engine.url) == b"64 5"
            assert "native code writes to stdout" in engine.log_tail()
    assert not alive(pid)
    assert not home.exists()


async def test_a_given_home_keeps_checkpoint_and_log(mode: Mode, tmp_path: Path) -> None:
    """A second engine finds the checkpoint; installed programs and other state are gone."""
    home = tmp_path / "home"
    with anyio.fail_after(20):
        async with RealEngine(home=home, seed=None) as engine:
            log = engine.log_path
        written = (home / "checkpoint-zero" / "model.safetensors").stat().st_mtime_ns
        async with RealEngine(home=home, seed=None):
            pass
    assert (home / "checkpoint-zero" / "model.safetensors").stat().st_mtime_ns == written
    assert log.exists()
    assert [path.name for path in home.iterdir() if path.is_dir() and path.name.startswith("engine-")] == []


async def test_old_logs_go(mode: Mode, tmp_path: Path) -> None:
    """A kept home does not collect logs without end."""
    old = [tmp_path / f"engine-old{number}.log" for number in range(30)]
    for log in old:
        await anyio.Path(log).touch()
    with anyio.fail_after(20):
        async with RealEngine(home=tmp_path, seed=None) as engine:
            log = engine.log_path
    assert log in logs(tmp_path)
    assert len(logs(tmp_path)) == 20


@pytest.mark.parametrize(
    ("failure", "advice"),
    [
        ("raise device: no wgpu adapter to bind", "apt-get install mesa-vulkan-drivers"),
        ("raise version `GLIBC_2.35' not found", "glibc 2.35"),
        ("raise Address already in use (os error 98)", "port is taken"),
        ("raise something else", "exited with status 1"),
    ],
)
async def test_a_failed_boot_says_why(mode: Mode, failure: str, advice: str) -> None:
    """Known failures come with advice, all of them with the end of the log."""
    mode(failure)
    with anyio.fail_after(20), pytest.raises(RealEngineUnavailable, match=advice) as caught:
        async with RealEngine(seed=None):
            pass
    assert failure.removeprefix("raise ") in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux pins processes")
async def test_stays_on_its_cores(mode: Mode) -> None:
    """The engine's process runs on the given CPUs only, also after a restart; by default on all of this one."""
    allowed = os.sched_getaffinity(0)
    core = max(allowed)
    with anyio.fail_after(20):
        async with RealEngine(seed=None, cores={core}) as engine, RealEngine(seed=None) as other:
            assert os.sched_getaffinity(engine.pid) == {core}
            assert os.sched_getaffinity(other.pid) == allowed
            await engine.restart()
            assert os.sched_getaffinity(engine.pid) == {core}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux pins processes")
async def test_cores_that_are_not_there(mode: Mode) -> None:
    """The message names the argument, and the log the CPUs."""
    with (
        anyio.fail_after(20),
        pytest.raises(RealEngineUnavailable, match=r"none of the CPUs in cores=") as caught,
    ):
        async with RealEngine(seed=None, cores=[100_000]):
            pass
    assert "100000" in str(caught.value)


async def test_missing_pie_server_names_the_extra(mode: Mode, tmp_path: Path) -> None:
    """An environment without the server is told what to install."""
    (tmp_path / "fake" / "pie_language_python.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'pie_language_python'\")"
    )
    with (
        anyio.fail_after(20),
        pytest.raises(RealEngineUnavailable, match=r'pip install "pie-anyio\[engine\]"'),
    ):
        async with RealEngine(seed=None):
            pass


async def test_missing_interpreter_is_unavailable_too(tmp_path: Path) -> None:
    """An interpreter that cannot be run is named."""
    with anyio.fail_after(20), pytest.raises(RealEngineUnavailable, match="no-python"):
        async with RealEngine(seed=None, python=tmp_path / "no-python"):
            pass


async def test_boot_timeout_kills_the_engine(mode: Mode, spawned: tuple[list[Any], anyio.Event]) -> None:
    """An engine that says nothing in time is killed and reported."""
    mode("hang")
    with anyio.fail_after(20), pytest.raises(RealEngineUnavailable, match=r"no URL within 0\.2 s"):
        async with RealEngine(seed=None, boot_timeout=0.2):
            pass
    assert spawned[0][0].returncode == -signal.SIGKILL


async def test_cancelled_boot_leaves_no_process(
    mode: Mode, spawned: tuple[list[Any], anyio.Event], tmp_path: Path
) -> None:
    """Cancellation during the boot kills and reaps the engine, and removes its state."""
    mode("hang")
    engine = RealEngine(seed=None, home=tmp_path / "home")
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(engine.__aenter__)
            await spawned[1].wait()
            group.cancel_scope.cancel()
    assert spawned[0][0].returncode is not None
    assert not [path for path in (tmp_path / "home").glob("engine-*") if path.is_dir()]
    with pytest.raises(RuntimeError, match="not been entered"):
        _ = engine.home


async def test_cancelled_block_stops_the_engine(mode: Mode) -> None:
    """Cancellation inside the block ends it as leaving does."""
    with anyio.fail_after(20):
        with anyio.CancelScope() as scope:
            async with RealEngine(seed=None) as engine:
                pid = engine.pid
                scope.cancel()
                await anyio.sleep_forever()
        assert not alive(pid)


async def test_kill_is_seen_by_wait_and_undone_by_restart(mode: Mode) -> None:
    """A killed engine comes back at the same URL, as another process."""
    with anyio.fail_after(20):
        async with RealEngine(seed=None) as engine:
            url, pid = engine.url, engine.pid
            engine.kill()
            assert await engine.wait() == -signal.SIGKILL
            engine.kill()
            await engine.restart()
            assert engine.url == url
            assert engine.pid != pid
            assert await greeting(url)


async def test_stop_works_on_a_suspended_engine_and_twice(mode: Mode) -> None:
    """A suspended process cannot act on SIGTERM until it is resumed, which stop does."""
    with anyio.fail_after(20):
        async with RealEngine(seed=None) as engine:
            pid = engine.pid
            engine.suspend()
            await anyio.to_thread.run_sync(os.waitid, os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
            await engine.stop()
            assert not alive(pid)
            await engine.stop()
            assert await engine.wait() == 0
            with pytest.raises(RuntimeError, match="not running"):
                _ = engine.pid


async def test_suspended_engine_resumes(mode: Mode) -> None:
    """A suspended engine answers again once it is resumed."""
    with anyio.fail_after(20):
        async with RealEngine(seed=None) as engine:
            engine.suspend()
            await anyio.to_thread.run_sync(os.waitid, os.P_PID, engine.pid, os.WSTOPPED | os.WNOWAIT)
            engine.resume()
            assert await greeting(engine.url)


async def test_an_engine_deaf_to_sigterm_is_killed(
    mode: Mode, monkeypatch: pytest.MonkeyPatch, spawned: tuple[list[Any], anyio.Event]
) -> None:
    """Leaving the block has a bound, whatever the engine does."""
    mode("deaf")
    monkeypatch.setattr(real_engine, "_STOP_GRACE", 0.1)
    with anyio.fail_after(20):
        async with RealEngine(seed=None):
            pass
    assert spawned[0][0].returncode == -signal.SIGKILL


async def test_a_wedged_engine_exits(mode: Mode) -> None:
    """An engine without its device thread would hang for ever; it leaves, with a status of its own."""
    mode("wedge")
    with anyio.fail_after(20):
        async with RealEngine(seed=None) as engine:
            assert await engine.wait() == 70
            assert "finish nothing any more" in engine.log_tail()


async def test_an_engine_is_entered_once(mode: Mode) -> None:
    """A second entry is refused and does not disturb the first."""
    with anyio.fail_after(20):
        async with RealEngine(seed=None) as engine:
            with pytest.raises(RuntimeError, match="entered already"):
                await engine.__aenter__()
            assert await greeting(engine.url)


def test_needs_to_be_entered() -> None:
    """Before the block there is no URL, log or process."""
    engine = RealEngine()
    for name in ("url", "home", "log_path", "pid"):
        with pytest.raises(RuntimeError, match="async with"):
            getattr(engine, name)


def test_blocking_twin_does_the_same(mode: Mode) -> None:
    """The blocking form starts, freezes, kills, restarts and stops an engine."""
    with RealEngineProcess(RealEngine(seed=None)) as running:
        url, pid = running.url, running.engine.pid
        running.suspend()
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        running.resume()
        running.kill()
        running.restart()
        assert running.url == url
        assert running.engine.pid != pid
        running.stop()
        with pytest.raises(RuntimeError, match="not running"):
            _ = running.engine.pid
    with pytest.raises(RuntimeError, match="not been entered"):
        running.stop()


def test_blocking_twin_reports_a_failed_boot(mode: Mode) -> None:
    """The failure comes out as it is, and no thread stays."""
    mode("raise nothing works")
    with (
        pytest.raises(RealEngineUnavailable, match="nothing works"),
        RealEngineProcess(RealEngine(seed=None)),
    ):
        pass


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a Python process with pipes."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_line_serves_until_a_signal(mode: Mode, number: signal.Signals) -> None:
    """The first line is the URL; a signal ends it with status 0."""
    with start("-m", "pie_anyio.testing.real_engine") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ws://127.0.0.1:")
        process.send_signal(number)
        assert process.wait(20) == 0


def test_command_line_tells_of_a_dead_engine(mode: Mode, capsys: pytest.CaptureFixture[str]) -> None:
    """If the engine ends by itself, so does the command, with status 1 and the end of the log."""
    mode("wedge")
    assert real_engine.main([]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("ws://127.0.0.1:")
    assert "exited with status 70" in captured.err


def test_command_line_tells_what_is_missing(mode: Mode, capsys: pytest.CaptureFixture[str]) -> None:
    """A failed boot is a message and status 1, no traceback."""
    mode("raise device: no wgpu adapter to bind")
    assert real_engine.main(["--seed", "1"]) == 1
    assert capsys.readouterr().err.startswith("The real engine did not start: there is no Vulkan device")


def test_command_line_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """The help has examples."""
    with pytest.raises(SystemExit):
        real_engine.main(["--help"])
    assert "--home ~/.cache/pie-engine" in capsys.readouterr().out


def test_engine_process_leaves_with_its_client(mode: Mode, tmp_path: Path) -> None:
    """The end of standard input is enough: nothing is left when a client dies."""
    log = tmp_path / "log"
    log.touch()
    arguments = ["--log", str(log), "--sku", "any", "--port", "0", "--pages", "1", "--processes", "1"]
    script = Path(real_engine.__file__).with_name("_boot.py")
    with start(str(script), str(tmp_path), *arguments) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline().startswith("ws://127.0.0.1:")
        process.stdin.write("input as such means nothing\n")
        process.stdin.close()
        assert process.wait(20) == 0
