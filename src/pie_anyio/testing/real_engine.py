# SPDX-License-Identifier: Apache-2.0
"""Run the real engine, without a GPU and without a model download.

The package ``pie-server`` contains the whole engine. Given a software Vulkan device (Mesa's llvmpipe)
and a synthesised checkpoint (`pie_anyio.testing.checkpoint`) it compiles and runs real programs and
answers on a real socket; only the knowledge in the weights is missing. That is enough to test and to
demonstrate a client, and it is what `RealEngine` boots, in a process of its own, so that neither a
crash nor a wedged engine touches the client.

Needed besides this package: ``pip install "pie-anyio[engine]"``, and on Debian or Ubuntu
``apt-get install mesa-vulkan-drivers libvulkan1``. Linux on x86-64 with glibc 2.35 or newer. Where
something is missing, `RealEngineUnavailable` says what.

Engine 0.5.2 (generation 0.5); a boot takes 0.3 to 3 s, the first installation of a program about 6 s
(the Python runtime is compiled, and cached in the home folder), an idle engine about 1 GB of memory.

On a software device the engine may lose the thread that waits for the device, a race in its graphics
library. It is made rare here by a slower setting (LP_NUM_THREADS=0). Should it happen all the same, the
engine would hang for ever; here it exits with status 70 instead, so that its clients lose their
connections and can act on that.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import anyio
import attrs
from anyio.abc import Process
from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.streams.buffered import BufferedByteReceiveStream

from pie_anyio.testing._engine_home import EngineHome
from pie_anyio.testing.checkpoint import SKU

__all__ = ["RealEngine", "RealEngineProcess", "RealEngineUnavailable"]

_T = TypeVar("_T")

_BOOT_SCRIPT: Final = Path(__file__).with_name("_boot.py")

_STOP_GRACE: Final = 5.0
"""Seconds between SIGTERM and SIGKILL; an engine that is not wedged needs about 0.1."""

_REAP_GRACE: Final = 5.0
"""Seconds to wait for a process that has been sent SIGKILL."""

_CAUSES: Final = {
    "No module named 'pie": (
        "pie-server is not installed for {python}. Install it with: "
        'pip install "pie-anyio[engine]" (or pass python= the interpreter that has it)'
    ),
    "GLIBC_": (
        "pie-server does not load for {python}, since it needs glibc 2.35 or newer. "
        "Use a newer distribution, such as Debian 12 or Ubuntu 22.04"
    ),
    "no wgpu adapter": (
        "there is no Vulkan device. Install a software one with: "
        "apt-get install mesa-vulkan-drivers libvulkan1"
    ),
    "cannot run on these cores": "it may run on none of the CPUs in cores=",
    "ddress already in use": "the port is taken. Choose another, or 0 for any free one",
}
"""What the engine's log says, and what that means to the user."""


class RealEngineUnavailable(Exception):
    """The real engine did not start; the message says what is missing, or ends with the log."""


@attrs.define(kw_only=True, eq=False)
class RealEngine:
    """Boot a real engine in a subprocess, and stop it when the block is left.

    ::

        async with RealEngine() as engine:
            async with PieClient(engine.url) as client:
                ...

    ``seed``: of the model's random weights; None for zeros (every logit is then zero).
    ``max_total_pages``: pages of 16 tokens in the key-value cache. With 64 of them, about a dozen
    concurrent forward passes make the engine refuse launches ("admission rejected"), with 256 none.
    ``max_processes``: programs that run at once; further launches queue in the engine, silently.
    ``home``: folder for checkpoints, compiled code and logs; worth keeping between runs. By default a
    temporary folder that goes with the engine.
    ``python``: the interpreter that has ``pie-server``, by default the running one.
    ``boot_timeout``: seconds until the engine must have announced its URL.
    ``port``: TCP port on 127.0.0.1; 0 for any free one.
    ``cores``: numbers of the CPUs that the engine's process may run on, by default those of this process.
    A forward pass on a software device keeps one core busy, so engines with a core each do not slow each
    other down. Linux only; ignored elsewhere.

    Leaving the block stops the engine within 10 seconds, also when the block is being cancelled. If
    this process dies without leaving the block, the engine notices the end of its standard input and
    exits by itself.
    """

    seed: int | None = 7
    max_total_pages: int = 256
    max_processes: int = 64
    _home: Path | None = attrs.field(default=None, alias="home")
    python: str | Path | None = None
    boot_timeout: float = 60.0
    port: int = 0
    cores: Collection[int] | None = None
    _site: EngineHome | None = attrs.field(default=None, init=False)
    _process: Process | None = attrs.field(default=None, init=False)
    _url: str | None = attrs.field(default=None, init=False)

    @property
    def url(self) -> str:
        """The engine's ``ws://`` URL; it stays the same across `restart`."""
        return _entered(self._url)

    @property
    def pid(self) -> int:
        """The process id of the engine; raises `RuntimeError` while it is not running."""
        if self._process is None:
            message = "The engine is not running: enter it with `async with`, or restart() it."
            raise RuntimeError(message)
        return self._process.pid

    @property
    def home(self) -> Path:
        """The folder with checkpoints, compiled code and logs."""
        return _entered(self._site).home

    @property
    def log_path(self) -> Path:
        """The file with all that the engine wrote to standard output and standard error."""
        return _entered(self._site).log

    async def __aenter__(self) -> Self:
        """Boot the engine and return when it answers at `url`.

        Raises `RealEngineUnavailable` if it does not start, or not in time.

        Cancellation: the half-started engine is killed and reaped before the cancellation proceeds.
        """
        if self._site is not None:
            message = "This engine has been entered already; make another RealEngine."
            raise RuntimeError(message)
        site = self._site = EngineHome.create(self._home)
        try:
            await self._boot(site, self.port)
        except BaseException:
            site.remove()
            self._site = None
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with anyio.move_on_after(_STOP_GRACE + _REAP_GRACE, shield=True):
                await self.stop()
        finally:
            _entered(self._site).remove()
            self._site = self._url = None

    async def stop(self) -> None:
        """Stop the engine: SIGTERM, and SIGKILL if it is not gone after five seconds.

        A suspended engine is resumed first. Does nothing if the engine is not running. Programs and
        their clients see the connection end without a farewell.

        Cancellation: the engine is killed and reaped (at most five seconds) all the same.
        """
        process = self._process
        if process is None:
            return
        try:
            _send(process, signal.SIGTERM)
            _send(process, signal.SIGCONT)
            with anyio.move_on_after(_STOP_GRACE):
                await process.wait()
        finally:
            self._process = None
            await _reap(process)

    async def restart(self) -> None:
        """Stop the engine, however it is, and boot it again at the same URL.

        Installed programs are still there, running ones are not. Raises `RealEngineUnavailable` if
        the engine does not come back; the object can then be restarted again or left.

        Cancellation: the engine is left stopped.
        """
        port = int(self.url.rpartition(":")[2])
        await self.stop()
        await self._boot(_entered(self._site), port)

    async def wait(self) -> int:
        """Wait until the engine's process ends by itself or by `kill`; return its exit status.

        It is 70 if the engine gave up, as told at the top of this module, and negative for a signal.

        Cancellation: changes nothing.
        """
        return 0 if self._process is None else await self._process.wait()

    def kill(self) -> None:
        """Kill the engine at once, as a crash would (SIGKILL)."""
        _send(self._process, signal.SIGKILL)

    def suspend(self) -> None:
        """Stop the engine from running without ending it (SIGSTOP): sockets stay open and silent."""
        _send(self._process, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a suspended engine go on (SIGCONT)."""
        _send(self._process, signal.SIGCONT)

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the engine's log."""
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    @property
    def _interpreter(self) -> str:
        return str(self.python or sys.executable)

    async def _boot(self, site: EngineHome, port: int) -> None:
        checkpoint = await anyio.to_thread.run_sync(site.checkpoint, self.seed)
        command = [self._interpreter, str(_BOOT_SCRIPT), str(checkpoint)]
        command += ["--log", str(site.log), "--sku", SKU, "--port", str(port)]
        command += ["--pages", str(self.max_total_pages), "--processes", str(self.max_processes)]
        if self.cores is not None:
            command += ["--cores", ",".join(map(str, self.cores))]
        with site.log.open("wb") as log:
            try:
                process = await anyio.open_process(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=site.environment(),
                )
            except OSError as error:
                message = f"The real engine did not start: cannot run {self._interpreter}: {error}"
                raise RealEngineUnavailable(message) from error
        try:
            self._url = await self._read_url(process)
        except BaseException:
            await _reap(process)
            raise
        self._process = process

    async def _read_url(self, process: Process) -> str:
        assert process.stdout is not None  # asked for
        stdout = BufferedByteReceiveStream(process.stdout)
        with anyio.move_on_after(self.boot_timeout):
            try:
                return (await stdout.receive_until(b"\n", 1000)).decode()
            except anyio.IncompleteRead:
                status = await process.wait()
            raise self._unavailable(f"its process exited with status {status}")
        raise self._unavailable(f"no URL within {self.boot_timeout:g} s")

    def _unavailable(self, what: str) -> RealEngineUnavailable:
        tail = self.log_tail()
        for sign, cause in _CAUSES.items():
            if sign in tail:
                what = cause.format(python=self._interpreter)
                tail = tail.splitlines()[-1]
                break
        return RealEngineUnavailable(f"The real engine did not start: {what}.\nIts log ends:\n{tail}")


def _entered(value: _T | None) -> _T:
    if value is None:
        message = "The engine has not been entered: use `async with`."
        raise RuntimeError(message)
    return value


def _send(process: Process | None, number: signal.Signals) -> None:
    """Signal a process; one that has ended already is none of anybody's worry."""
    if process is not None and process.returncode is None:
        with suppress(ProcessLookupError):
            process.send_signal(number)


async def _reap(process: Process) -> None:
    """Kill what is left of a process, collect its status, and close its pipes."""
    _send(process, signal.SIGKILL)
    with anyio.move_on_after(_REAP_GRACE, shield=True):
        await process.aclose()


@attrs.define(eq=False)
class RealEngineProcess:
    """Run a `RealEngine` from code without an event loop, such as a session-wide test fixture.

    ::

        with RealEngineProcess(RealEngine(seed=7)) as engine:
            run_the_tests_against(engine.url)

    A thread with a loop of its own looks after the engine. The methods block, and raise what the
    asynchronous ones raise.
    """

    engine: RealEngine
    _stack: ExitStack = attrs.field(factory=ExitStack, init=False)
    _portal: BlockingPortal | None = attrs.field(default=None, init=False)

    @property
    def url(self) -> str:
        """The engine's ``ws://`` URL."""
        return self.engine.url

    def __enter__(self) -> Self:
        """Boot the engine; raises `RealEngineUnavailable`."""
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(self._portal.wrap_async_context_manager(self.engine))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._portal = None
        self._stack.close()

    def stop(self) -> None:
        """Stop the engine; see `RealEngine.stop`."""
        _entered(self._portal).call(self.engine.stop)

    def restart(self) -> None:
        """Boot the engine again at the same URL; see `RealEngine.restart`."""
        _entered(self._portal).call(self.engine.restart)

    def kill(self) -> None:
        """Kill the engine at once; see `RealEngine.kill`."""
        _entered(self._portal).call(self.engine.kill)

    def suspend(self) -> None:
        """Freeze the engine; see `RealEngine.suspend`."""
        _entered(self._portal).call(self.engine.suspend)

    def resume(self) -> None:
        """Let a frozen engine go on; see `RealEngine.resume`."""
        _entered(self._portal).call(self.engine.resume)


# --- command line -----------------------------------------------------------------------------

_EPILOG: Final = """\
The first line of standard output is the URL; Ctrl-C or SIGTERM stops the engine.

examples:
  serve at a known address, keeping compiled code between runs:
    python -m pie_anyio.testing.real_engine --port 8080 --home ~/.cache/pie-engine
  a small key-value cache, so that the engine refuses launches under load:
    python -m pie_anyio.testing.real_engine --pages 64

The engine knows no programs until a client installs some, and forgets them when it stops. It accepts
any client that can reach the port, which is on 127.0.0.1 only. Its answers are meaningless: the
weights are noise, made from the seed.
"""


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pie_anyio.testing.real_engine",
        description="Serve a real Pie engine on the CPU, with synthetic weights. "
        'Needs pip install "pie-anyio[engine]" and a Vulkan device (mesa-vulkan-drivers will do).',
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="TCP port (default: any free one)")
    parser.add_argument(
        "--pages",
        type=int,
        default=256,
        help="key-value cache, in pages of 16 tokens; 64 makes the engine refuse launches when a dozen "
        "prompts are in flight (default: %(default)s)",
    )
    parser.add_argument(
        "--processes", type=int, default=64, help="programs that run at once (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=7, help="of the weights (default: %(default)s)")
    parser.add_argument(
        "--home",
        type=Path,
        help="folder for the checkpoint, compiled code and logs; worth keeping, as it makes the first "
        "installation take 0.1 s instead of 6 (default: a temporary one)",
    )
    parser.add_argument("--python", help="interpreter that has pie-server installed (default: this one)")
    return parser.parse_args(arguments)


async def _serve(engine: RealEngine) -> int:
    """Serve until a signal arrives or the engine dies; return the exit status."""
    died = False
    # Signals stay caught until the engine is gone: an impatient second Ctrl-C must not leave it behind.
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_on_signal, signals, group.cancel_scope)
            async with engine:
                sys.stdout.write(f"{engine.url}\n")
                sys.stdout.flush()
                sys.stderr.write(f"log: {engine.log_path}\n")
                status = await engine.wait()
                sys.stderr.write(f"The engine exited with status {status}:\n{engine.log_tail()}\n")
            died = True
            group.cancel_scope.cancel()
    return int(died)


async def _cancel_on_signal(signals: AsyncIterator[signal.Signals], scope: anyio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _arguments(arguments)
    engine = RealEngine(
        seed=options.seed,
        max_total_pages=options.pages,
        max_processes=options.processes,
        home=options.home,
        python=options.python,
        port=options.port,
    )
    try:
        return anyio.run(_serve, engine)
    except* RealEngineUnavailable as group:
        sys.stderr.write(f"{group.exceptions[0]}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
