# SPDX-License-Identifier: Apache-2.0
"""Logging in: identity, public key, token. Sources: 0.4 section 4, 0.5 section 12A.1."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Final

from anyio import move_on_after

from .._exceptions import AuthenticationError, InsecureTransportWarning, UnsupportedByEngine
from .._keys import Signer
from .._protocol.auth import read_challenge, write_signature
from .._protocol.messages import BUSY, AuthByToken, AuthIdentify, AuthProve
from .._transport.endpoint import Endpoint
from .._types import CAPABILITIES, Generation
from .refusals import engine_error
from .session import Session

_PROBE_SECONDS = 2.0
_warned_of: Final[set[str]] = set()


async def login_with_key(session: Session, username: str, signers: Sequence[Signer]) -> None:
    """Log in as ``username``, signing the engine's challenge with each key in turn until one is accepted.

    Raises:
        AuthenticationError: the engine refused.

    Cancellation: the connection may be logged in or not; call again.
    """
    async with session.login_turn:
        await _login_with_key(session, username, signers)


async def _login_with_key(session: Session, username: str, signers: Sequence[Signer]) -> None:
    name = session.options.endpoint.name
    if session.is_logged_in:
        # On 0.4 the first name that is given stays. On 0.5 names mean nothing.
        if session.generation is Generation.V04 and session.username not in (None, username):
            msg = (
                f"this connection to {name} is logged in as {session.username!r} already, and an engine of generation "
                f"0.4 keeps the first name; call authenticate({username!r}) before any other request"
            )
            raise AuthenticationError(msg, url=name)
        await session.ask(AuthIdentify(username))
        return
    tried = ""
    for signer in signers or (None,):
        ok, result = await session.ask(AuthIdentify(username))
        if session.is_logged_in_now():
            session.username = username
            return
        if not ok and result.startswith(BUSY):
            raise engine_error("auth_identify", result)
        if not ok:
            msg = f"{name} refused user {username!r}: {result}"
            raise AuthenticationError(msg, url=name)
        if signer is None:
            msg = f"{name} asks user {username!r} for a signature; pass a private key: authenticate({username!r}, key)"
            raise AuthenticationError(msg, url=name)
        signature = signer.sign(read_challenge(result))
        if inspect.isawaitable(signature):
            signature = await signature
        ok, tried = await session.ask(AuthProve(write_signature(signature)))
        if ok:
            session.username = username
            return
    msg = f"{name} did not accept the key of user {username!r}: {tried}; is its public half registered there?"
    raise AuthenticationError(msg, url=name)


async def login_with_token(session: Session, token: str) -> None:
    """Log in with the engine's token (0.4).

    Raises:
        UnsupportedByEngine: the engine knows no tokens; the token was not sent.
        AuthenticationError: the token was refused, which takes an engine 1 to 3 s.

    Cancellation: the connection may be logged in or not; call again.
    """
    async with session.login_turn:
        await _login_with_token(session, token)


async def _login_with_token(session: Session, token: str) -> None:
    generation = await _find_generation(session)
    if not CAPABILITIES[generation].token_login:
        raise UnsupportedByEngine("auth_by_token", generation=generation, available_in=Generation.V04)
    endpoint = session.options.endpoint
    _warn_of_eavesdroppers(endpoint)
    ok, result = await session.ask(AuthByToken(token))
    if not ok:
        msg = f"{endpoint.name} refused the token: {result}; it is made anew at each start of the engine"
        raise AuthenticationError(msg, url=endpoint.name)


def _warn_of_eavesdroppers(endpoint: Endpoint) -> None:
    """Warn, once for each endpoint, of a token that others on the network can read."""
    if endpoint.tls is not None or endpoint.local or endpoint.name in _warned_of:
        return
    text = f"a token is sent to {endpoint.name} over an unencrypted connection; use wss:// through a proxy"
    warnings.warn(text, InsecureTransportWarning, stacklevel=6)
    # Not before: where the warning is made an error, each login is to fail.
    _warned_of.add(endpoint.name)


async def _find_generation(session: Session) -> Generation:
    """Tell the generation before a token is sent, which must not go to an engine that has no use for it."""
    if session.generation is None:
        # An empty proof changes nothing on either generation, and 0.5 gives itself away by its answer.
        with move_on_after(_PROBE_SECONDS):
            await session.ask(AuthProve(""))
    generation = session.link.protocol.generation
    if generation is None:
        name = session.options.endpoint.name
        msg = f"{name} did not answer within {_PROBE_SECONDS:g} s; the token was not sent to it"
        raise AuthenticationError(msg, url=name)
    return generation
