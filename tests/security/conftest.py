# SPDX-License-Identifier: Apache-2.0
"""What the tests of promises about security share: an authority of their own, keys, and engines behind TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pie_anyio import _keys
from pie_anyio._session import login


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Give a certificate authority."""
    return trustme.CA()


@pytest.fixture
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    """Trust the authority, and check everything else as usual."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    """Serve as this machine."""
    return serving(authority, "localhost", "127.0.0.1")


def serving(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """Serve under these names."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture(scope="session")
def alice() -> Ed25519PrivateKey:
    """Give the key of a user."""
    return Ed25519PrivateKey.generate()


@pytest.fixture(scope="session")
def public_key(alice: Ed25519PrivateKey) -> str:
    """Give the line that an engine holds."""
    return alice.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@pytest.fixture
def key_file(alice: Ed25519PrivateKey, tmp_path: Path) -> Path:
    """Write the key where a user has it."""
    path = tmp_path / "id_ed25519"
    path.write_bytes(alice.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    return path


@pytest.fixture(autouse=True)
def nobody_was_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each warning that is given once given once in each test."""
    monkeypatch.setattr(login, "_warned_of", set())
    monkeypatch.setattr(_keys, "_warned_of", set())
