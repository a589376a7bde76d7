# SPDX-License-Identifier: Apache-2.0
"""What the core tells its shell. Drained with ``ClientProtocol.events()`` after every ``receive_data``.

``owner`` is whatever object the shell passed to ``submit``; the core only hands it back, so that the shell needs no
lookup of its own. Those that every run causes are tuples, which are quicker to make.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import attrs

from .._events import AnyEvent
from .._exceptions import PieError
from .messages import McpRequest, Request
from .state import ProcessState


class ProcessOutput(NamedTuple):
    """One non-terminal event of a running process. A tuple, since it is by far the most frequent of all."""

    owner: object
    event: AnyEvent
    size: int


class FirstOutput(NamedTuple):
    """A quiet process, whose output nobody reads, has shown its first sign of life."""

    owner: object


@attrs.frozen
class HandshakeCompleted:
    """Frames may flow; nobody has logged in yet."""


class ReplyReceived(NamedTuple):
    """An answer to a request whose caller still waits."""

    owner: object
    ok: bool
    result: str


@attrs.frozen
class ReplyDamaged:
    """The answer to a request arrived but cannot be read."""

    owner: object
    detail: str


@attrs.frozen
class RequestLost:
    """The connection ended before the answer; ``issued`` is False where the engine certainly never saw the request."""

    owner: object
    issued: bool
    reason: PieError
    request: Request
    quiet: bool


class ProcessStarted(NamedTuple):
    """A launch or attach succeeded; ``zombie`` where its caller left before, and a terminate is on its way."""

    owner: object
    process_id: str
    zombie: bool


class ProcessEnded(NamedTuple):
    """A process reached a terminal state.

    ``text`` is the value or the error; None where the engine only says that it knows no such process.
    """

    owner: object
    process_id: str
    state: ProcessState
    text: str | None
    tail: str


@attrs.frozen
class NoticeReceived:
    """An error text of 0.5 that names no request: ``stream aborted``, ``admission rejected``, ``bad client frame``."""

    text: str


@attrs.frozen
class ToolRequested:
    """A program calls a tool through this client (0.4)."""

    request: McpRequest


@attrs.frozen
class PongArrived:
    """The engine answered a keepalive ping."""


@attrs.frozen
class ConnectionEnded:
    """Always the last event. ``reason`` says why, in a form that can be raised."""

    reason: PieError


CoreEvent: TypeAlias = (
    ProcessOutput
    | FirstOutput
    | HandshakeCompleted
    | ReplyReceived
    | ReplyDamaged
    | RequestLost
    | ProcessStarted
    | ProcessEnded
    | NoticeReceived
    | ToolRequested
    | PongArrived
    | ConnectionEnded
)
