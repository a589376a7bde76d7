# SPDX-License-Identifier: Apache-2.0
"""Users' programs for the official client, run unchanged against the real engine."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.api import programs
from tests.api.programs import ASYNCIO_ONLY, PROGRAMS, Place, Program

pytestmark = [pytest.mark.engine, pytest.mark.both_loops]


@pytest.fixture
def place(real_engine_url: str, tmp_path: Path) -> Place:
    """Give the real engine, a key that it will not look at, and the agent's files."""
    key = Ed25519PrivateKey.generate()
    key_file = tmp_path / "id_ed25519"
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    key_file.chmod(0o600)
    (tmp_path / "research-agent.wasm").write_text(programs.AGENT_SOURCE, encoding="utf-8")
    (tmp_path / "Pie.toml").write_text(programs.AGENT_MANIFEST, encoding="utf-8")
    return Place(url=real_engine_url, key_file=str(key_file), folder=tmp_path, survives_disconnect=False)


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
async def test_a_users_program_runs_unchanged(program: Program, place: Place) -> None:
    """On asyncio and trio, as far as an engine of 0.5 can."""
    with anyio.fail_after(60):
        await program(place)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("program", ASYNCIO_ONLY.values(), ids=ASYNCIO_ONLY)
async def test_programs_with_asyncios_own_means(program: Program, place: Place) -> None:
    """Gathering is asyncio's; the rest is the same."""
    with anyio.fail_after(60):
        await program(place)
