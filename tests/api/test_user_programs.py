# SPDX-License-Identifier: Apache-2.0
"""A user's programs for the official client run unchanged, on both loops and both generations."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.api import programs
from tests.api.programs import ASYNCIO_ONLY, PROGRAMS, Place, Program

from pie_anyio import PieClient, Process
from pie_anyio.testing import SimulatedEngine


def _folder(tmp_path: Path, profile: str) -> Path:
    (tmp_path / "research-agent.wasm").write_bytes(
        b"\0asm" if profile == "v04" else programs.AGENT_SOURCE.encode()
    )
    (tmp_path / "Pie.toml").write_text(programs.AGENT_MANIFEST, encoding="utf-8")
    return tmp_path


async def _play(program: Program, profile: Any, key_file: Path, public_key: str) -> None:
    users = {"alice": [public_key]} if profile == "v04" else None
    with anyio.fail_after(10):
        async with SimulatedEngine(profile, port=None, users=users) as engine:
            engine.inferlet(programs.AGENT, installed=False)(programs.agent)
            place = Place(
                url=engine.connectable,
                key_file=str(key_file),
                folder=_folder(key_file.parent, profile),
                survives_disconnect=profile == "v04",
            )
            await program(place)


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
async def test_a_users_program_runs_unchanged(
    program: Program, profile: Any, key_file: Path, public_key: str
) -> None:
    """On asyncio and trio, with a key that the 0.4 engine checks."""
    await _play(program, profile, key_file, public_key)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("program", ASYNCIO_ONLY.values(), ids=ASYNCIO_ONLY)
async def test_programs_with_asyncios_own_means(
    program: Program, profile: Any, key_file: Path, public_key: str
) -> None:
    """Gathering is asyncio's; the rest is the same."""
    await _play(program, profile, key_file, public_key)


async def test_home_is_expanded(
    key_file: Path, public_key: str, monkeypatch: pytest.MonkeyPatch, profile: Any
) -> None:
    """The page reads ~/.ssh/id_ed25519."""
    home = key_file.parent / "home"
    (home / ".ssh").mkdir(parents=True)
    os.rename(key_file, home / ".ssh" / "id_ed25519")
    monkeypatch.setenv("HOME", str(home))
    with anyio.fail_after(5):
        async with SimulatedEngine(profile, port=None, users={"alice": [public_key]}) as engine:
            await PROGRAMS["connect_and_authenticate"](
                Place(
                    url=engine.connectable,
                    key_file="~/.ssh/id_ed25519",
                    folder=home,
                    survives_disconnect=False,
                )
            )


async def test_over_real_tcp(profile: Any, key_file: Path, public_key: str) -> None:
    """The same program by URL, as users write it."""
    with anyio.fail_after(10):
        async with SimulatedEngine(profile) as engine:
            engine.inferlet(programs.AGENT)(programs.agent)
            place = Place(
                url=engine.url, key_file=str(key_file), folder=key_file.parent, survives_disconnect=False
            )
            await PROGRAMS["launch_and_stream"](place)


OFFICIAL: dict[str, list[str]] = {
    "register_mcp_server": ["name", "transport", "command", "args", "url"],
    "authenticate": ["username", "private_key"],
    "auth_by_token": ["token"],
    "ping": [],
    "query": ["subject", "record"],
    "resolve_version": ["name", "registry_url"],
    "check_program": ["inferlet", "wasm_path", "manifest_path"],
    "install_program": ["wasm_path", "manifest_path", "force_overwrite"],
    "install_program_bytes": ["program_bytes", "manifest", "force_overwrite"],
    "launch_process": ["inferlet", "input", "capture_outputs", "token_budget"],
    "launch_processes": ["inferlet", "inputs", "capture_outputs", "token_budgets"],
    "run_processes": ["inferlet", "inputs", "token_budgets"],
    "run": ["program"],
    "attach_process": ["process_id"],
    "list_processes": [],
    "signal_process": ["process_id", "message"],
    "terminate_process": ["process_id"],
    "launch_daemon": ["inferlet", "port", "input"],
}
"""The methods of 0.4.0 and 0.5.3 in their positional order."""


def test_the_official_methods_exist_in_their_positional_order() -> None:
    """Positional calls mean the same; what we add is keyword-only."""
    for name, expected in OFFICIAL.items():
        assert _positional(getattr(PieClient, name)) == expected, name
    for name, expected in {"recv": [], "signal": ["message"], "terminate": [], "result": []}.items():
        assert _positional(getattr(Process, name)) == expected, name
    assert _positional(Process.transfer_file) == ["file_bytes"]
    assert _positional(PieClient.__init__)[:2] == ["url", "identity"]


def _positional(function: Any) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in kinds and p.name != "self"]
