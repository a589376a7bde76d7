# SPDX-License-Identifier: Apache-2.0
"""Logging in: open engines, keys, agents, tokens, and engines that must not get what they ask for."""

from __future__ import annotations

import base64
import warnings
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pie_anyio import (
    AuthenticationError,
    InsecureTransportWarning,
    ParsedPrivateKey,
    PieClient,
    UnsupportedByEngine,
    _client,
)
from pie_anyio._session import login
from pie_anyio.testing import SimulatedEngine


class Signer:
    """Signs with a key, and counts; async where an agent would be."""

    def __init__(self, key: Ed25519PrivateKey, *, later: bool = False) -> None:
        self.key = key
        self.later = later
        self.signed: list[bytes] = []

    def sign(self, data: bytes) -> Any:
        self.signed.append(data)
        signature = self.key.sign(data)
        return self._later(signature) if self.later else signature

    async def _later(self, signature: bytes) -> bytes:
        await anyio.lowlevel.checkpoint()
        return signature


def locked(public_key: str, **options: Any) -> SimulatedEngine:
    return SimulatedEngine("v04", port=None, users={"alice": [public_key], "bob": [public_key]}, **options)


async def test_an_open_engine_looks_at_no_key(profile: Any, alice: Ed25519PrivateKey) -> None:
    """Neither is anything signed."""
    signer = Signer(alice)
    async with SimulatedEngine(profile, port=None) as engine:
        async with PieClient(engine.connectable, username="alice", key=signer) as client:
            await client.ping()
    assert not signer.signed


@pytest.mark.parametrize("later", [False, True])
async def test_a_key_signs_the_raw_challenge(alice: Ed25519PrivateKey, public_key: str, later: bool) -> None:
    """48 bytes, once; also where the signer is asynchronous."""
    signer = Signer(alice, later=later)
    async with (
        locked(public_key) as engine,
        PieClient(engine.connectable, username="alice", key=signer) as client,
    ):
        await client.ping()
    assert [len(data) for data in signer.signed] == [48]


async def test_a_key_file_at_the_door(public_key: str, key_file: Path) -> None:
    """Given as a path to the client."""
    async with (
        locked(public_key) as engine,
        PieClient(engine.connectable, username="alice", key=key_file) as client,
    ):
        await client.ping()


async def test_the_agents_keys_are_tried_in_turn(
    alice: Ed25519PrivateKey, public_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the engine accepts one; each has its own challenge."""
    signers = [Signer(Ed25519PrivateKey.generate(), later=True), Signer(alice, later=True), Signer(alice)]

    async def agent_signers() -> list[Signer]:
        return signers

    monkeypatch.setattr(_client, "agent_signers", agent_signers)
    async with (
        locked(public_key) as engine,
        PieClient(engine.connectable, username="alice", key="agent") as client,
    ):
        await client.ping()
    assert [len(signer.signed) for signer in signers] == [1, 1, 0]
    assert signers[0].signed != signers[1].signed


@pytest.mark.parametrize("size", [0, 47, 49, 1000])
async def test_other_challenges_are_not_signed(alice: Ed25519PrivateKey, public_key: str, size: int) -> None:
    """A hostile engine could log in elsewhere with the signature."""
    signer = Signer(alice)
    async with locked(public_key) as engine, PieClient(engine.connectable) as client:
        engine.faults.answers["auth_identify"] = (True, base64.b64encode(bytes(size)).decode() or "=")
        with pytest.raises(AuthenticationError, match="was not signed"):
            await client.authenticate("alice", signer)
        assert not signer.signed
        engine.faults.answers.clear()
        await client.authenticate("alice", signer)
        await client.ping()


async def test_a_token(anyio_backend: Any, profile: Any) -> None:
    """0.4 takes it; 0.5 has none, and never gets to see it."""
    async with SimulatedEngine(profile, port=None, token="t0ken") as engine:
        if profile == "v04":
            async with PieClient(engine.connectable, token="t0ken") as client:
                await client.ping()
            async with PieClient(engine.connectable) as client:
                with pytest.raises(AuthenticationError, match="made anew at each start") as caught:
                    await client.auth_by_token("wrong-secret")
                assert "wrong-secret" not in str(caught.value)
                await client.auth_by_token("t0ken")
                await client.ping()
        else:
            with pytest.raises(UnsupportedByEngine, match=r"0\.4"):
                async with PieClient(engine.connectable, token="t0ken"):
                    pytest.fail("it logged in")
            assert engine.received_counts["auth_by_token"] == 0


async def test_an_unencrypted_token_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it leaves the machine."""
    monkeypatch.setattr(login, "_warned_of", set())
    async with SimulatedEngine("v04", port=None, token="t") as engine:
        client = PieClient("ws://engine.example:8080", token="t")
        endpoint = client._options.endpoint
        object.__setattr__(endpoint, "connectable", engine.connectable)
        with pytest.warns(InsecureTransportWarning, match="unencrypted connection; use wss://") as caught:
            async with client:
                await client.ping()
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            async with PieClient(engine.connectable, token="t") as local:
                await local.ping()


async def test_the_login_happens_at_the_first_request(profile: Any) -> None:
    """Not before, since on 0.4 the first name stays; then under the name of the identity."""
    async with SimulatedEngine(profile, port=None) as engine:
        async with PieClient(engine.connectable, "acme/carol") as client:
            await anyio.wait_all_tasks_blocked()
            assert not engine.received
            await client.ping()
            assert engine.received[0].request.username == "carol"  # type: ignore[attr-defined]


async def test_a_name_after_the_implicit_login(profile: Any) -> None:
    """0.4 would keep the first name without a word; on 0.5 names mean nothing."""
    async with SimulatedEngine(profile, port=None) as engine, PieClient(engine.connectable) as client:
        await client.ping()
        if profile == "v04":
            with pytest.raises(
                AuthenticationError, match=r"logged in as 'pie-anyio'.*before any other request"
            ):
                await client.authenticate("alice")
            await client.authenticate("pie-anyio")
        else:
            await client.authenticate("alice")
        await client.ping()


async def test_logins_take_turns(alice: Ed25519PrivateKey, public_key: str) -> None:
    """A second one would spoil the challenge that the first is signing."""
    signer = Signer(alice, later=True)
    async with locked(public_key) as engine, PieClient(engine.connectable) as client:
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(client.authenticate, "alice", signer)
        assert len(signer.signed) == 1
        await client.ping()


async def test_nothing_secret_is_shown(alice: Ed25519PrivateKey) -> None:
    """Neither by the client nor by what it is made of."""
    client = PieClient("ws://127.0.0.1:1", token="s3cret")
    assert "s3cret" not in repr(client)
    assert "s3cret" not in repr(client._options)
    assert isinstance(ParsedPrivateKey, type)
