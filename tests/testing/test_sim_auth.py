# SPDX-License-Identifier: Apache-2.0
"""Which keys a simulated engine takes, and which signatures."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pie_anyio.testing._sim_auth import Doorkeeper, Login, load_key

RSA = rsa.generate_private_key(65537, 2048)
ED = ed25519.Ed25519PrivateKey.generate()
P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
SIGNERS: list[tuple[Any, Callable[[bytes], bytes]]] = [
    (RSA, lambda data: RSA.sign(data, padding.PKCS1v15(), SHA256())),
    (ED, ED.sign),
    (P256, lambda data: P256.sign(data, ec.ECDSA(SHA256()))),
    (P384, lambda data: P384.sign(data, ec.ECDSA(SHA384()))),
]


def openssh(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode())


def pem(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


@pytest.mark.parametrize(
    "form", [openssh, pem, lambda key: key.public_key()], ids=["openssh", "pem", "object"]
)
@pytest.mark.parametrize(("key", "sign"), SIGNERS, ids=["rsa", "ed25519", "p256", "p384"])
def test_login_by_key(key: Any, sign: Callable[[bytes], bytes], form: Callable[[Any], Any]) -> None:
    """Any of a user's keys will do, in any form."""
    login = Login(Doorkeeper({"alice": [openssh(ed25519.Ed25519PrivateKey.generate()), form(key)]}, None))
    ok, challenge = login.identify("alice")
    assert ok
    signature = base64.b64encode(sign(base64.b64decode(challenge))).decode()
    assert login.prove(signature) == (True, "Authenticated")
    assert login.user == "alice"


@pytest.mark.parametrize(("key", "sign"), SIGNERS, ids=["rsa", "ed25519", "p256", "p384"])
def test_a_wrong_signature(key: Any, sign: Callable[[bytes], bytes]) -> None:
    """A signature of something else is refused."""
    login = Login(Doorkeeper({"alice": [key.public_key()]}, None))
    login.identify("alice")
    signature = base64.b64encode(sign(b"something else")).decode()
    assert login.prove(signature) == (False, "Signature verification failed")
    assert login.user is None


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 1024),  # noqa: S505 - too short on purpose
        ec.generate_private_key(ec.SECP521R1()),
        dsa.generate_private_key(1024),  # noqa: S505
    ],
    ids=["rsa-1024", "p521", "dsa"],
)
def test_keys_that_engines_refuse(key: Any) -> None:
    """Short RSA keys, other curves and other kinds are refused when the engine is made."""
    with pytest.raises(ValueError, match="engines take RSA keys"):
        load_key(key.public_key())


def test_a_token_needs_no_user() -> None:
    """The token logs in as the internal user; without one given it is made up."""
    doorkeeper = Doorkeeper({}, None)
    assert len(doorkeeper.token) == 64
    login = Login(doorkeeper)
    assert login.present_token("x") == (False, "Invalid token")
    assert login.present_token(doorkeeper.token) == (True, "Authenticated")
    assert login.user == "internal"
