# SPDX-License-Identifier: Apache-2.0
"""The engines that the contract is checked on: the simulated one, and the real one where it can be had."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest

from pie_anyio.testing import RealEngine, RealEngineProcess, RealEngineUnavailable, SimulatedEngine
from pie_anyio.testing.peer import RawPeer

INFERLETS = Path(__file__).parent.parent / "real" / "inferlets"
NewPeer = Callable[[], Awaitable[RawPeer]]


@pytest.fixture(scope="session")
def contract_engine() -> Iterator[str]:
    """Boot one real engine for the whole run, by the same settings as the tests of the real engine."""
    home = os.environ.get("PIE_ENGINE_HOME")
    engine = RealEngine(python=os.environ.get("PIE_ENGINE_PYTHON"), home=Path(home) if home else None)
    try:
        running = RealEngineProcess(engine).__enter__()
    except RealEngineUnavailable as error:
        if os.environ.get("PIE_REQUIRE_REAL_ENGINE") == "1":
            raise
        pytest.skip(str(error).splitlines()[0])
    try:
        yield running.url
    finally:
        running.__exit__(None, None, None)


@pytest.fixture(params=["simulated", pytest.param("real", marks=[pytest.mark.engine, pytest.mark.slow])])
async def new_peer(request: pytest.FixtureRequest, anyio_backend: Any) -> AsyncIterator[NewPeer]:
    """Give a function that makes another connection, logged in; the programs are installed."""
    async with AsyncExitStack() as stack:
        if request.param == "real":
            address = urlsplit(request.getfixturevalue("contract_engine"))

            async def connect() -> anyio.abc.ByteStream:
                return await anyio.connect_tcp(address.hostname or "", address.port or 0)

        else:
            engine = await stack.enter_async_context(SimulatedEngine("v05"))
            for name, function in _PROGRAMS.items():
                engine.inferlet(name, installed=False)(function)
            connect = engine.connectable.connect

        async def new() -> RawPeer:
            peer = await stack.enter_async_context(RawPeer(await connect()))
            await peer.login()
            return peer

        await _install(await new())
        yield new


async def _install(peer: RawPeer) -> None:
    with anyio.fail_after(60):  # the real engine compiles its Python runtime once
        for folder in sorted(INFERLETS.iterdir()):
            manifest = (folder / "Pie.toml").read_text(encoding="utf-8")
            ok, result = await peer.upload((folder / "main.py").read_bytes(), manifest)
            assert ok, result


async def _echo(session: Any, input: Any) -> Any:
    return input


async def _fail(session: Any, input: Any) -> Any:
    await session.print("failing")
    raise ValueError(input.get("why", "no reason"))


async def _talk(session: Any, input: Any) -> Any:
    await session.send("ready")
    while (text := await session.receive()) != "quit":
        await session.send(text.upper())
    return "bye"


async def _sleeper(session: Any, input: Any) -> Any:
    await session.send("started")
    await anyio.sleep_forever()


async def _returns(session: Any, input: Any) -> Any:
    values = {"none": None, "str": "plain text", "empty": "", "int": 7, "list": [1, "two", None]}
    values["unicode"] = "h\u00e9llo \u65e5\u672c \U0001f600"
    if input["kind"] == "exit":
        raise SystemExit(3)
    return values[input["kind"]]


async def _file_echo(session: Any, input: Any) -> Any:
    sizes = []
    for number in range(input.get("count", 1)):
        await session.send(f"ready {number}")
        data = await session.receive_file()
        await session.send_file(data)
        sizes.append(len(data))
    return {"sizes": sizes}


async def _file_named(session: Any, input: Any) -> Any:
    data = bytes(i % 256 for i in range(input.get("size", 16)))
    await session.send_file(data, input.get("name", "data.bin"))
    return {"size": len(data)}


async def _bigout(session: Any, input: Any) -> Any:
    size, kind = input.get("size", 1_000_000), input["kind"]
    if kind == "message":
        await session.send("m" * size)
    elif kind == "stdout":
        await session.stdout("o" * size)
    elif kind == "file":
        await session.send_file(bytes(size))
    return "r" * size if kind == "return" else size


_PROGRAMS = {
    "echo": _echo,
    "fail": _fail,
    "talk": _talk,
    "sleeper": _sleeper,
    "returns": _returns,
    "file-echo": _file_echo,
    "file-named": _file_named,
    "bigout": _bigout,
}
