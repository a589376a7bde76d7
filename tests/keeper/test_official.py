# SPDX-License-Identifier: Apache-2.0
"""The official Python clients, behind a forwarder from TCP: they cannot tell a keeper from an engine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream, SocketAttribute

from pie_anyio import PieClient
from pie_anyio.keeper import Keeper
from pie_anyio.testing import SimulatedEngine
from pie_anyio.testing._sim_demos import DEMOS

pytestmark = [pytest.mark.both_loops, pytest.mark.official, pytest.mark.slow]
HERE = Path(__file__).parent
OFFICIAL = HERE.parent / "official" / "scripts"
GENERATIONS = pytest.mark.parametrize(("version", "profile"), [("0.4.0", "v04-faithful"), ("0.5.3", "v05")])
Python = Callable[[str], Path]


async def run(python: Python, version: str, script: Path, *arguments: str) -> Any:
    """Run a script with an official client, and give what it printed last."""
    interpreter = await anyio.to_thread.run_sync(python, version)
    command = [str(interpreter), "-W", "ignore", str(script), *arguments]
    done = await anyio.run_process(command, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.splitlines()[-1])


@asynccontextmanager
async def serve(profile: Any) -> AsyncIterator[str]:
    """Serve a keeper, and give the URL of a way to its socket."""
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        path = Path(folder) / "keeper" / "socket"
        async with (
            SimulatedEngine(profile, port=None) as engine,
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as tasks,
        ):
            for name, function in DEMOS.items():
                engine.inferlet(name)(function)
            keeper = Keeper(lambda: PieClient(engine.connectable, close_timeout=0.05), socket=path)
            await tasks.start(keeper.serve)
            tasks.start_soon(listener.serve, lambda stream: forward(stream, path))
            yield f"ws://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
            tasks.cancel_scope.cancel()


async def forward(stream: ByteStream, path: Path) -> None:
    async with stream, await anyio.connect_unix(path) as other, anyio.create_task_group() as tasks:
        tasks.start_soon(copy, stream, other, tasks)
        tasks.start_soon(copy, other, stream, tasks)


async def copy(source: ByteStream, target: ByteStream, tasks: Any) -> None:
    try:
        while True:
            await target.send(await source.receive())
    except (EndOfStream, BrokenResourceError, ClosedResourceError):
        tasks.cancel_scope.cancel()


@GENERATIONS
async def test_come_back(official_client_python: Python, version: str, profile: Any) -> None:
    """A program launches and ends; another one finds the process where the first left it. And once more, after its end.

    The engines are as released: neither of them could do that alone.
    """
    script = HERE / "scripts" / "return_later.py"
    with anyio.fail_after(60):
        async with serve(profile) as url:
            process_id = await run(official_client_python, version, script, url)
            seen = await run(official_client_python, version, script, url, process_id)
            again = await run(official_client_python, version, script, url, process_id)
    assert seen == [["message", "BACK"], ["return", '{"count": 1}']]
    assert again == [["return", '{"count": 1}']]


@GENERATIONS
async def test_conversation(official_client_python: Python, version: str, profile: Any) -> None:
    """Everything that a client does with an engine of its generation goes as well with a keeper."""
    with anyio.fail_after(60):
        async with serve(profile) as url:
            seen = await run(official_client_python, version, OFFICIAL / "conversation.py", url)
    assert seen["known"] == [True, False]
    assert seen["events"][1:] == [["message", "ONE"], ["message", "TWO"], ["return", '{"count": 2}']]
    assert seen["file"] == ["file", True]
    assert seen["after"] == ["return"]
    assert seen["listed"] == ["sleeper@0.1.0"]
    assert seen["terminated"] == ["error", "Signal"]
    assert seen["query"] is True
    assert ("not installed" if version == "0.5.3" else "404") in seen["unknown"]


@GENERATIONS
async def test_install(official_client_python: Python, version: str, profile: Any, tmp_path: Path) -> None:
    """A program is uploaded through the keeper."""
    artifact, manifest = tmp_path / "program.wasm", tmp_path / "Pie.toml"
    artifact.write_bytes(b"\0asm" + bytes(600_000))
    manifest.write_text('[package]\nname = "echo"\nversion = "1.2.3"\n')
    arguments = (str(artifact), str(manifest), "echo@1.2.3")
    with anyio.fail_after(60):
        async with serve(profile) as url:
            seen = await run(official_client_python, version, OFFICIAL / "install.py", url, *arguments)
    assert seen[:2] == [False, True]
