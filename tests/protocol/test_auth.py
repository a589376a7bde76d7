# SPDX-License-Identifier: Apache-2.0
"""What the answers to logins mean, and which challenges are signed."""

from __future__ import annotations

import base64

import pytest

from pie_anyio import AuthenticationError, Generation
from pie_anyio._protocol.auth import LoginAnswer, read_challenge, read_login_answer, write_signature

V04, V05 = Generation.V04, Generation.V05
CHALLENGE = base64.b64encode(bytes(range(48))).decode()


@pytest.mark.parametrize(
    ("request_type", "ok", "result", "known", "expected"),
    [
        (
            "auth_identify",
            True,
            "Authenticated (Engine disabled authentication)",
            None,
            LoginAnswer(True, V04),
        ),
        ("auth_identify", True, CHALLENGE, None, LoginAnswer(False, V04, CHALLENGE)),
        ("auth_identify", False, "User 'x' is not authorized", None, LoginAnswer(False, V04)),
        ("auth_identify", True, "Already authenticated", None, LoginAnswer(True, V05)),
        ("auth_identify", True, "Already authenticated", V04, LoginAnswer(True, V04)),
        ("auth_prove", True, "Authenticated", V04, LoginAnswer(True, V04)),
        ("auth_prove", False, "Signature verification failed", V04, LoginAnswer(False, V04)),
        ("auth_prove", False, "Already authenticated", None, LoginAnswer(True, V05)),
        ("auth_by_token", True, "Authenticated", None, LoginAnswer(True, V04)),
        ("auth_by_token", False, "Invalid token", None, LoginAnswer(False, V04)),
        ("auth_by_token", True, "Already authenticated", V04, LoginAnswer(True, V04)),
    ],
)
def test_answers_to_logins(
    request_type: str, ok: bool, result: str, known: Generation | None, expected: LoginAnswer
) -> None:
    """The literals of both generations, and the generation that the first answer tells."""
    assert read_login_answer(request_type, ok, result, known) == expected


def test_a_challenge_is_48_bytes_of_base64() -> None:
    """The raw bytes are what is signed."""
    assert read_challenge(CHALLENGE) == bytes(range(48))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not base64!",
        CHALLENGE[:-1],
        CHALLENGE + "AAAA",
        CHALLENGE.replace("A", "\u00e4", 1),
        base64.b64encode(b"x" * 47).decode(),
        base64.b64encode(b"x" * 32).decode(),
        f" {CHALLENGE}",
    ],
)
def test_other_challenges_are_not_signed(text: str) -> None:
    """What is not exactly a challenge might be a login to somewhere else."""
    with pytest.raises(AuthenticationError, match="not signed"):
        read_challenge(text)


def test_signatures_are_padded_base64() -> None:
    """Standard alphabet, with padding."""
    assert write_signature(b"\xfb\xff") == "+/8="
