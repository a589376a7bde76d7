# SPDX-License-Identifier: Apache-2.0
"""The official Python clients work against the simulated engine, which is how its fidelity is shown."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pie_anyio.testing import InferletSession, SimulatedEngine
from pie_anyio.testing._sim_demos import DEMOS

Run = Callable[..., Awaitable[Any]]
pytestmark = [pytest.mark.both_loops, pytest.mark.official, pytest.mark.slow]
V04, V05 = "0.4.0", "0.5.3"
SECONDS = 60


def add_programs(engine: SimulatedEngine) -> None:
    for name, function in DEMOS.items():
        engine.inferlet(name)(function)


@pytest.mark.parametrize(("version", "profile"), [(V04, "v04"), (V04, "v04-faithful"), (V05, "v05")])
async def test_conversation(run_official: Run, version: str, profile: Any) -> None:
    """Launch, signals, files both ways, list, terminate, query and errors."""
    with anyio.fail_after(SECONDS):
        async with SimulatedEngine(profile) as engine:
            add_programs(engine)
            seen = await run_official(version, "conversation", engine.url)
            await engine.wait_idle()
    assert seen["known"] == [True, False]
    assert seen["events"] == [
        ["message", "ready"],
        ["message", "ONE"],
        ["message", "TWO"],
        ["return", '{"count": 2}'],
    ]
    assert seen["file"] == ["file", True]
    assert seen["after"] == ["return"]
    assert seen["listed"] == ["sleeper@0.1.0"]
    assert seen["terminated"] == ["error", "Signal"]
    assert seen["query"] is True
    assert ("not installed" if version == V05 else "404") in seen["unknown"]


@pytest.mark.parametrize(("version", "profile"), [(V04, "v04"), (V05, "v05")])
async def test_install(run_official: Run, version: str, profile: Any, tmp_path: Path) -> None:
    """An upload of several chunks installs, and a function stands for it by name."""
    artifact, manifest = tmp_path / "program.wasm", tmp_path / "Pie.toml"
    artifact.write_bytes(b"\0asm" + bytes(600_000))
    manifest.write_text('[package]\nname = "mine"\nversion = "1.2.3"\n')
    with anyio.fail_after(SECONDS):
        async with SimulatedEngine(profile) as engine:

            @engine.inferlet("mine", installed=False)
            async def mine(session: InferletSession, input: Any) -> object:
                return input["n"] + 1

            seen = await run_official(
                version, "install", engine.url, str(artifact), str(manifest), "mine@1.2.3"
            )
    assert seen == [False, True, "return", "2"]


@pytest.mark.parametrize(
    ("profile", "seen"),
    [("v04", [["message", "BACK"], ["return", '{"count": 1}']]), ("v04-faithful", "Process not found")],
)
async def test_attach_after_disconnect(run_official: Run, profile: Any, seen: Any) -> None:
    """The documented engine lets a client come back to its process; the actual one does not."""
    with anyio.fail_after(SECONDS):
        async with SimulatedEngine(profile) as engine:
            add_programs(engine)
            answer = await run_official(V04, "attach", engine.url)
    assert answer == seen if isinstance(seen, list) else seen in answer


async def test_keys(run_official: Run, tmp_path: Path) -> None:
    """Every kind of key that engines take is verified; another one is refused."""
    keys: list[Any] = [
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
    ]
    with anyio.fail_after(SECONDS):
        users = {f"user{index}": [key.public_key()] for index, key in enumerate(keys)}
        async with SimulatedEngine("v04", users=users) as engine:
            for index, key in enumerate(keys):
                path = tmp_path / f"key{index}"
                path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
                assert await run_official(V04, "login", engine.url, "key", f"user{index}", str(path)) == 0
            refused = await run_official(V04, "login", engine.url, "key", "user0", str(tmp_path / "key1"))
            assert "Signature verification failed" in refused
            unknown = await run_official(V04, "login", engine.url, "key", "nobody", str(tmp_path / "key1"))
            assert "not authorized" in unknown


async def test_openssh_key(run_official: Run, tmp_path: Path) -> None:
    """A public key in OpenSSH's one-line form does as well."""
    key = ed25519.Ed25519PrivateKey.generate()
    path = tmp_path / "id"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    with anyio.fail_after(SECONDS):
        async with SimulatedEngine("v04", users={"alice": [line]}) as engine:
            assert await run_official(V04, "login", engine.url, "key", "alice", str(path)) == 0


async def test_token(run_official: Run) -> None:
    """The engine's token logs in, another one does not."""
    with anyio.fail_after(SECONDS):
        async with SimulatedEngine("v04", users={}) as engine:
            assert await run_official(V04, "login", engine.url, "token", engine.token) == 0
            assert "Invalid token" in await run_official(V04, "login", engine.url, "token", "wrong")


async def test_what_only_04_has(run_official: Run) -> None:
    """Batches, daemons and tool calls."""
    server = Path(__file__).parent / "scripts" / "tool_server.py"
    with anyio.fail_after(SECONDS):
        async with SimulatedEngine("v04") as engine:
            add_programs(engine)

            @engine.inferlet("tool-user")
            async def tool_user(session: InferletSession, input: Any) -> object:
                return await session.call_mcp("calc", "tools/call", {"name": "add", "arguments": {"a": 1}})

            seen = await run_official(V04, "batch", engine.url, str(server))
    assert seen == {
        "run": ['{"n": 1}', '{"n": 2}'],
        "failed": seen["failed"],
        "launched": ["1", "2"],
        "tool": [
            "return",
            '{"method": "tools/call", "params": {"name": "add", "arguments": {"a": 1}}}',
        ],
    }
    assert "ValueError: because" in seen["failed"]


async def test_decorated_function(run_official: Run) -> None:
    """A decorated function is installed as source, and a function here stands for it."""
    with anyio.fail_after(SECONDS):
        async with SimulatedEngine("v05") as engine:

            @engine.inferlet("adder", installed=False)
            async def adder(session: InferletSession, input: Any) -> object:
                return input["a"] + input.get("b", 2)

            assert await run_official(V05, "decorated", engine.url) == [3, 4]
            assert engine.received_counts["add_program"] == 1
