# SPDX-License-Identifier: Apache-2.0
"""Logging in at a simulated engine of generation 0.4: open doors, public keys or the engine's token."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_public_key

from .._protocol.messages import ALREADY_AUTHENTICATED, AUTHENTICATED, CHALLENGE_BYTES, NO_AUTH_LITERAL

PublicKey: TypeAlias = rsa.RSAPublicKey | ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
Users: TypeAlias = Mapping[str, Iterable[str | PublicKey]]
"""Public keys by user name: key objects, OpenSSH lines or PEM text."""

TOKEN_USER: Final = "internal"  # noqa: S105 - a name

_CURVES: Final[dict[str, SHA256 | SHA384]] = {"secp256r1": SHA256(), "secp384r1": SHA384()}


class Doorkeeper:
    """Who may enter the engine, for all its sessions. Without ``users`` everybody may."""

    def __init__(self, users: Users | None, token: str | None) -> None:
        self.token: Final = token or secrets.token_urlsafe(48)
        self._users = (
            None if users is None else {name: [load_key(key) for key in keys] for name, keys in users.items()}
        )

    @property
    def open(self) -> bool:
        """Whether any name is enough."""
        return self._users is None

    def knows(self, username: str) -> bool:
        """Whether a user may try to log in."""
        return self._users is not None and username in self._users

    def verify(self, username: str, challenge: bytes, signature: bytes) -> bool:
        """Tell whether any key of the user made this signature."""
        keys = (self._users or {}).get(username, [])
        return any(_verifies(key, challenge, signature) for key in keys)


class Login:
    """The login of one session. Each method gives the answer, and ``user`` is set once somebody is logged in."""

    def __init__(self, doorkeeper: Doorkeeper) -> None:
        self._doorkeeper = doorkeeper
        self._pending: tuple[str, bytes] | None = None
        self.user: str | None = None

    def identify(self, username: str) -> tuple[bool, str]:
        """Answer ``auth_identify``."""
        if self.user is not None:
            return True, ALREADY_AUTHENTICATED
        if self._doorkeeper.open:
            self.user = username
            return True, NO_AUTH_LITERAL
        if not self._doorkeeper.knows(username):
            return False, f"User '{username}' is not authorized"
        self._pending = (username, secrets.token_bytes(CHALLENGE_BYTES))
        return True, base64.b64encode(self._pending[1]).decode()

    def prove(self, signature: str) -> tuple[bool, str]:
        """Answer ``auth_prove``; the challenge is used up either way."""
        if self.user is not None:
            return False, ALREADY_AUTHENTICATED
        pending, self._pending = self._pending, None
        if pending is None:
            return False, "No pending authentication"
        try:
            raw = base64.b64decode(signature, validate=True)
        except (binascii.Error, ValueError) as exc:
            return False, f"Invalid signature encoding: {exc}"
        username, challenge = pending
        if not self._doorkeeper.verify(username, challenge, raw):
            return False, "Signature verification failed"
        self.user = username
        return True, AUTHENTICATED

    def present_token(self, token: str) -> tuple[bool, str]:
        """Answer ``auth_by_token``."""
        if self.user is not None:
            return True, ALREADY_AUTHENTICATED
        if not secrets.compare_digest(token.encode(), self._doorkeeper.token.encode()):
            return False, "Invalid token"
        self.user = TOKEN_USER
        return True, AUTHENTICATED


def load_key(key: str | PublicKey) -> PublicKey:
    """Read a public key and check that an engine would take it."""
    if isinstance(key, str):
        data = key.strip().encode()
        loaded = load_pem_public_key(data) if data.startswith(b"-----BEGIN") else load_ssh_public_key(data)
    else:
        loaded = key
    match loaded:
        case rsa.RSAPublicKey() if 2048 <= loaded.key_size <= 4096:
            return loaded
        case ed25519.Ed25519PublicKey():
            return loaded
        case ec.EllipticCurvePublicKey() if loaded.curve.name in _CURVES:
            return loaded
        case _:
            msg = "engines take RSA keys of 2048 to 4096 bits, Ed25519, and ECDSA on P-256 or P-384"
            raise ValueError(msg)


def _verifies(key: PublicKey, challenge: bytes, signature: bytes) -> bool:
    try:
        match key:
            case rsa.RSAPublicKey():
                key.verify(signature, challenge, padding.PKCS1v15(), SHA256())
            case ed25519.Ed25519PublicKey():
                key.verify(signature, challenge)
            case _:
                key.verify(signature, challenge, ec.ECDSA(_CURVES[key.curve.name]))
    except InvalidSignature:
        return False
    return True
