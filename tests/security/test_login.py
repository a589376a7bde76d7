# SPDX-License-Identifier: Apache-2.0
"""What is signed, and which key files are used: nothing that a hostile engine or a neighbour could gain by."""

from __future__ import annotations

import base64
import os
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from pie_anyio import (
    AuthenticationError,
    InsecureKeyFileWarning,
    ParsedPrivateKey,
    PieClient,
    _keys,
)
from pie_anyio._protocol.auth import read_challenge
from pie_anyio.cli import _settings
from pie_anyio.cli._app import run
from pie_anyio.testing import SimulatedEngine

posix = pytest.mark.skipif(os.name != "posix", reason="files have no such modes here")


class Signer:
    """Signs with a key, and keeps what it signed."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self.key = key
        self.signed: list[bytes] = []

    def sign(self, data: bytes) -> bytes:
        self.signed.append(data)
        return self.key.sign(data)


# --------------------------------------------------------------------------------------------------------- challenges

CHALLENGES = {
    "": "0 bytes",
    base64.b64encode(bytes(47)).decode(): "47 bytes",
    base64.b64encode(bytes(49)).decode(): "49 bytes",
    base64.b64encode(bytes(96)).decode(): "96 bytes",
    base64.b64encode(bytes(48)).decode()[:-1]: "base64",
    base64.urlsafe_b64encode(b"\xfb\xff" * 24).decode(): "base64",
    " " + base64.b64encode(bytes(48)).decode(): "base64",
    base64.b64encode(bytes(48)).decode() + "\n": "base64",
    "ä" * 64: "base64",
    "\x00" * 64: "base64",
    bytes(48).hex(): "bytes",
}


@pytest.mark.parametrize("challenge", CHALLENGES, ids=ascii)
async def test_only_48_bytes_are_signed(alice: Ed25519PrivateKey, public_key: str, challenge: str) -> None:
    """Of standard base64, exactly; else a hostile engine could choose what the key signs."""
    signer = Signer(alice)
    async with (
        SimulatedEngine("v04", port=None, users={"alice": [public_key]}) as engine,
        PieClient(engine.connectable) as client,
    ):
        engine.faults.answers["auth_identify"] = (True, challenge)
        with pytest.raises(AuthenticationError, match=CHALLENGES[challenge]) as caught:
            await client.authenticate("alice", signer)
        assert "was not signed" in str(caught.value)
        assert not signer.signed
        assert engine.received_counts["auth_prove"] == 0


async def test_48_bytes_are_signed(alice: Ed25519PrivateKey, public_key: str) -> None:
    """As they are."""
    signer = Signer(alice)
    async with (
        SimulatedEngine("v04", port=None, users={"alice": [public_key]}) as engine,
        PieClient(engine.connectable, username="alice", key=signer) as client,
    ):
        await client.ping()
    assert [len(data) for data in signer.signed] == [48]


@given(st.binary(max_size=100) | st.binary(min_size=48, max_size=48))
def test_any_challenge(data: bytes) -> None:
    """48 bytes are given as they came, and everything else is refused."""
    text = base64.b64encode(data).decode()
    if len(data) == 48:
        assert read_challenge(text) == data
    else:
        with pytest.raises(AuthenticationError):
            read_challenge(text)


@given(st.text())
def test_any_text_for_a_challenge(text: str) -> None:
    """Nothing but the error of a refused login comes of it."""
    try:
        challenge = read_challenge(text)
    except AuthenticationError:
        return
    assert len(challenge) == 48


# ---------------------------------------------------------------------------------------------------------- key files

OPEN_MODES = [0o640, 0o604, 0o620, 0o602, 0o610, 0o666, 0o777]


@posix
@pytest.mark.parametrize("mode", OPEN_MODES)
def test_the_command_line_refuses_open_key_files(
    key_file: Path, mode: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """As ssh does, before anybody is connected to; the hint can be pasted."""
    path = key_file.rename(key_file.with_name("my key"))
    path.chmod(mode)
    assert run(["--url", "ws://127.0.0.1:9", "--username", "alice", "--key", str(path), "ping"]) == 2
    said = capfd.readouterr().err
    assert f"mode {mode:04o}" in said
    assert f"hint: chmod 600 {shlex.quote(str(path))}" in said


@posix
def test_the_command_line_refuses_open_token_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By the same rule; what is in them is not shown."""
    path = tmp_path / "token"
    path.write_text("t0ken")
    path.chmod(0o644)
    assert run(["--url", "ws://127.0.0.1:9", "--token-file", str(path), "ping"]) == 2
    said = capfd.readouterr().err
    assert f"hint: chmod 600 {path}" in said
    assert "t0ken" not in said


@posix
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_the_command_line_takes_closed_key_files(
    key_file: Path, mode: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """And gets as far as finding nobody there."""
    key_file.chmod(mode)
    assert run(["--url", "ws://127.0.0.1:9", "--username", "alice", "--key", str(key_file), "ping"]) == 3
    assert "ConnectError" not in capfd.readouterr().err


@posix
def test_the_library_warns_once_for_each_file(key_file: Path) -> None:
    """A program that logs in a thousand times says so once; another file is another matter."""
    other = key_file.with_name("other")
    other.write_bytes(key_file.read_bytes())
    for path in (key_file, other):
        path.chmod(0o644)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            ParsedPrivateKey.from_file(key_file)
            ParsedPrivateKey.from_file(other)
    assert [warning.category for warning in caught] == [InsecureKeyFileWarning] * 2
    assert [str(path) in str(w.message) for path, w in zip((key_file, other), caught, strict=True)] == [
        True
    ] * 2


@posix
def test_a_warning_that_is_an_error_is_always_one(key_file: Path) -> None:
    """Who makes errors of warnings gets one each time."""
    key_file.chmod(0o640)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(InsecureKeyFileWarning):
                ParsedPrivateKey.from_file(key_file)


def test_modes_mean_nothing_on_windows(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There access goes by lists, which are not looked at."""

    class Windows:
        name = "nt"

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

    key_file.chmod(0o666)
    monkeypatch.setattr(_keys, "os", Windows())
    monkeypatch.setattr(_settings, "os", Windows())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ParsedPrivateKey.from_file(key_file)
        _settings.check_private(str(key_file), "private key file")
