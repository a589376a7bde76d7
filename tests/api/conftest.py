# SPDX-License-Identifier: Apache-2.0
"""What the tests of the public calls share: engines by generation, and a key that nobody uses elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pie_anyio import PieClient
from pie_anyio.testing import SimulatedEngine


@pytest.fixture(scope="session")
def alice() -> Ed25519PrivateKey:
    """Give the key of a user."""
    return Ed25519PrivateKey.generate()


@pytest.fixture
def key_file(alice: Ed25519PrivateKey, tmp_path: Path) -> Path:
    """Write the key where a user has it."""
    path = tmp_path / "id_ed25519"
    path.write_bytes(alice.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    return path


@pytest.fixture(scope="session")
def public_key(alice: Ed25519PrivateKey) -> str:
    """Give the line that an engine holds."""
    return alice.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@pytest.fixture(params=["v04", "v05"])
def profile(request: pytest.FixtureRequest) -> Any:
    """Give both generations in turn."""
    return request.param


@pytest.fixture
async def engine(anyio_backend: Any, profile: Any) -> AsyncIterator[SimulatedEngine]:
    """Give an engine in memory."""
    async with SimulatedEngine(profile, port=None) as engine:
        add_programs(engine)
        yield engine


@pytest.fixture
async def client(engine: SimulatedEngine) -> AsyncIterator[PieClient]:
    """Give a client of it."""
    async with PieClient(engine.connectable) as client:
        yield client


def add_programs(engine: SimulatedEngine) -> None:
    """Install the programs that the tests launch."""
    import anyio

    @engine.inferlet("echo@0.1.0")
    async def echo(session: Any, input: Any) -> Any:
        return input

    @engine.inferlet("sleep@0.1.0")
    async def sleep(session: Any, input: Any) -> None:
        await anyio.sleep_forever()

    @engine.inferlet("talk@0.1.0")
    async def talk(session: Any, input: Any) -> Any:
        await session.stdout("out\n")
        await session.stderr("err\n")
        while (text := await session.receive()) != "quit":
            await session.send(text.upper())
        return input

    @engine.inferlet("fail@0.1.0")
    async def fail(session: Any, input: Any) -> None:
        await session.stdout("before\n")
        await session.stderr("trouble\n")
        raise ValueError("it broke")

    @engine.inferlet("take@0.1.0")
    async def take(session: Any, input: Any) -> int:
        session.send("ready")
        data = await session.receive_file()
        return len(data or b"")
