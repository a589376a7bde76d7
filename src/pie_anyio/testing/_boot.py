# SPDX-License-Identifier: Apache-2.0
"""Serve one real engine; the program that runs in the engine's own process.

`pie_anyio.testing.real_engine` starts this file as a script, possibly with the interpreter of another
environment, so it imports nothing but the standard library and ``pie-server``.

It writes one line to standard output, the URL, once the engine answers there. It leaves when standard
input ends or on SIGTERM or SIGINT, and shuts the engine down before. All else, including what native
code writes to standard output, goes to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

SHUTDOWN_LIMIT = 10.0
"""Seconds from the request to leave until the process is gone, whatever the engine is doing."""

WEDGED = 70
"""Exit status of an engine that has lost the thread that waits for its device."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; the defaults are the caller's business."""
    parser = argparse.ArgumentParser(description="serve a real engine until standard input ends")
    parser.add_argument("checkpoint", help="folder with a checkpoint")
    parser.add_argument("--log", required=True, help="file that standard error goes to")
    parser.add_argument("--sku", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pages", type=int, required=True)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--cores", help="numbers of the CPUs to run on, such as 0,2")
    return parser.parse_args(arguments)


def pin(cores: str | None) -> None:
    """Keep this process, and the threads that it will start, on some CPUs, where the platform can do that."""
    set_affinity = getattr(os, "sched_setaffinity", None)
    if cores is None or set_affinity is None:
        return
    try:
        set_affinity(0, [int(core) for core in cores.split(",")])
    except (OSError, ValueError) as error:
        sys.exit(f"cannot run on these cores: {cores!r}: {error}")


def configuration(options: argparse.Namespace) -> Any:
    """Build a configuration that a software Vulkan device can carry."""
    pie = importlib.import_module("pie.config")
    limits = {
        # A budget, not an allocation. Without it the engine asks the device, and llvmpipe's answer
        # leaves nothing for the weights.
        "device_memory": "4GiB",
        # One reservation grows with these two; with the defaults it is 4 GB, twice llvmpipe's limit.
        "max_forward_tokens": 256,
        "max_forward_requests": 4,
        "max_total_pages": options.pages,
        # A live process takes two slots of recurrent state; fewer would lower the admission limit.
        "max_state_slots": 2 * options.processes,
    }
    return pie.Config(
        # A program that computes without awaiting holds a worker thread. The default, a thread per
        # core, lets two of them stop the whole engine on a small machine.
        server=pie.ServerConfig(host="127.0.0.1", port=options.port, verbose=False, worker_threads=8),
        telemetry=pie.TelemetryConfig(enabled=False),
        runtime=pie.RuntimeConfig(max_concurrent_processes=options.processes),
        model=pie.ModelConfig(
            hf_repo=os.path.abspath(options.checkpoint),
            sku=options.sku,
            engine=pie.EngineConfig(type="wgpu", device=["wgpu:0"], options=limits),
        ),
    )


async def serve(options: argparse.Namespace, announce: Callable[[str], None]) -> None:
    """Boot, announce the URL, and serve until told to leave."""
    # Without this package the engine boots all the same, and then refuses every Python program.
    importlib.import_module("pie_language_python")
    server = importlib.import_module("pie.server")
    loop = asyncio.get_running_loop()
    leave = asyncio.Event()

    def request() -> None:
        limit = threading.Timer(SHUTDOWN_LIMIT, os._exit, (1,))
        limit.daemon = True
        limit.start()
        leave.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, request)
    # A thread rather than a reader on the loop: it works for files and terminals too, and from the
    # first moment on, so that a client that dies during the boot leaves nothing behind.
    watcher = threading.Thread(
        target=_until_end_of_input, args=(lambda: loop.call_soon_threadsafe(request),), daemon=True
    )
    watcher.start()
    threading.Thread(target=leave_when_wedged, args=(options.log,), daemon=True).start()
    async with server.Server(configuration(options)) as running:
        announce(running.url)
        await leave.wait()


def leave_when_wedged(log: str, interval: float = 0.5) -> None:
    """Exit with status `WEDGED` once the log tells of the death of the thread that waits for the device.

    On software devices wgpu 30 loses a race now and then ("If the queue is empty, the current submission
    index should be at least the wait submission index"), and that thread panics. The engine goes on
    without it: it accepts launches and answers pings, and no forward pass ever ends again. A crash is
    the kinder failure, since clients notice it.
    """
    with open(log, "rb") as file:
        seen = b""
        while not (b"thread 'wgpu poll'" in seen and b"panicked" in seen):
            time.sleep(interval)
            # The end of what was read before, in case the sentence was cut in two.
            seen = seen[-200:] + file.read()
    os.write(2, b"The engine has lost its device thread and will finish nothing any more; leaving.\n")
    os._exit(WEDGED)


def _until_end_of_input(then: Callable[[], object]) -> None:
    while os.read(0, 4096):
        pass
    then()


def claim_stdout() -> Callable[[str], None]:
    """Redirect standard output to standard error; return what still writes one line to the former."""
    private = os.dup(1)
    os.dup2(2, 1)

    def announce(line: str) -> None:
        os.write(private, f"{line}\n".encode())
        os.close(private)

    return announce


def main() -> None:
    """Run as a script."""
    # A process group of its own keeps the terminal's Ctrl-C away: the client decides when its engine
    # goes. Not a session of its own: should the client die while this process is stopped by SIGSTOP,
    # the kernel wakes and hangs up a group that thereby loses its last tie to the session.
    os.setpgid(0, 0)
    options = parse()
    # Before the engine is imported: threads that exist already would stay where they are.
    pin(options.cores)
    asyncio.run(serve(options, claim_stdout()))


if __name__ == "__main__":
    # The script's folder comes first on the path, and its other files are not for this process.
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
    main()
