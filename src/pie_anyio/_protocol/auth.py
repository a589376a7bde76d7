# SPDX-License-Identifier: Apache-2.0
"""What the answers to a login mean, and what a challenge has to look like before it is signed (0.4, section 4)."""

from __future__ import annotations

import base64
import binascii

import attrs

from .._exceptions import AuthenticationError
from .._types import Generation
from .messages import ALREADY_AUTHENTICATED, AUTHENTICATED, BUSY, CHALLENGE_BYTES, NO_AUTH_LITERAL


@attrs.frozen
class LoginAnswer:
    """How a login stands after an answer.

    ``challenge`` is the engine's base64 text where a signature is wanted; ``generation`` is set where the answer tells
    it for certain.
    """

    authenticated: bool
    generation: Generation | None
    challenge: str | None = None


def read_login_answer(request_type: str, ok: bool, result: str, known: Generation | None) -> LoginAnswer:
    """Interpret the answer to ``auth_identify``, ``auth_prove`` or ``auth_by_token``.

    The first ``auth_identify`` tells the generations apart: 0.5 answers ``Already authenticated`` at once, 0.4 with
    its no-auth literal, a challenge or a refusal. The same text later on a 0.4 connection means just what it says.
    """
    if result == ALREADY_AUTHENTICATED:
        # auth_prove is refused with this text by an engine that needs no login, and accepted by nobody.
        return LoginAnswer(True, known or Generation.V05)
    if not ok:
        # A refusal for lack of capacity says nothing about logins.
        return LoginAnswer(False, known if result.startswith(BUSY) else known or Generation.V04)
    if request_type != "auth_identify" or result in (NO_AUTH_LITERAL, AUTHENTICATED):
        return LoginAnswer(True, known or Generation.V04)
    return LoginAnswer(False, known or Generation.V04, challenge=result)


def read_challenge(text: str) -> bytes:
    """Decode a challenge into the bytes to sign.

    Raises:
        AuthenticationError: it is not exactly 48 bytes of base64. It is then not signed: a hostile engine could
            otherwise have the user's SSH key sign a login to somewhere else.
    """
    try:
        challenge = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        msg = "the engine's login challenge is not valid base64; it was not signed"
        raise AuthenticationError(msg) from exc
    if len(challenge) != CHALLENGE_BYTES:
        msg = (
            f"the engine's login challenge has {len(challenge)} bytes instead of {CHALLENGE_BYTES}; it was not signed, "
            "since a hostile engine could use the signature to log in elsewhere"
        )
        raise AuthenticationError(msg)
    return challenge


def write_signature(signature: bytes) -> str:
    """Give a signature in the form of the wire: standard base64 with padding."""
    return base64.b64encode(signature).decode("ascii")
