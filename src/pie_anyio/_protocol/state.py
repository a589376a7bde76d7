# SPDX-License-Identifier: Apache-2.0
"""The three state machines of the protocol, as tables. Nothing else decides a transition.

The tables are role-blind: a client's connection and an engine's go through the same states. A pair of state and
trigger that is not in a table cannot happen in correct use and raises ``LocalProtocolError``. The diagrams in the
documentation are generated from these tables.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, TypeVar

from .._exceptions import LocalProtocolError


class ConnectionState(IntEnum):
    """Where one connection is in its life."""

    CONNECTING = 0
    """The opening handshake is not finished."""
    AUTHENTICATING = 1
    """Frames flow; only login messages may be sent."""
    OPEN = 2
    """Everything may be sent."""
    CLOSING = 3
    """Nothing new may be sent; the close frame leaves after what is queued."""
    CLOSED = 4
    """Ended in an orderly way."""
    FAILED = 5
    """Ended by an error; every later call fails."""


class ConnectionTrigger(IntEnum):
    """What moves a connection."""

    UPGRADED = 0
    AUTHENTICATED = 1
    CLOSE = 2
    ENDED = 3
    ERROR = 4


class RequestState(IntEnum):
    """Where one request is, from its caller's point of view."""

    QUEUED = 0
    """In the outbox: can be withdrawn without a trace."""
    ISSUED = 1
    """Handed to the stream: the engine may act on it."""
    ABANDONED = 2
    """Its caller went away; what the answer starts must be ended."""
    RESOLVED = 3
    """Answered."""
    WITHDRAWN = 4
    """Taken out of the outbox: the engine never saw it."""
    LOST = 5
    """The connection ended first: nobody knows whether the engine acted."""


class RequestTrigger(IntEnum):
    """What moves a request."""

    TAKEN = 0
    REPLY = 1
    ABANDON = 2
    CONNECTION_ENDED = 3


class ProcessState(IntEnum):
    """Where one process is, as far as this connection knows."""

    RUNNING = 0
    ZOMBIE = 1
    """Its owner is gone and a terminate is on its way; output is dropped."""
    DETACHED = 2
    """Left to itself on purpose."""
    RETURNED = 3
    FAILED = 4
    TERMINATED = 5
    LOST = 6
    """The connection ended before the process was seen to end."""


class ProcessTrigger(IntEnum):
    """What moves a process."""

    RETURN = 0
    ERROR = 1
    RELEASE = 2
    """The owner left: end it."""
    DETACH = 3
    GONE = 4
    """The engine says that there is no such process."""
    CONNECTION_ENDED = 5


_C, _CT = ConnectionState, ConnectionTrigger
CONNECTION: Final[dict[ConnectionState, dict[ConnectionTrigger, ConnectionState]]] = {
    _C.CONNECTING: {
        _CT.UPGRADED: _C.AUTHENTICATING,
        _CT.CLOSE: _C.CLOSED,
        _CT.ENDED: _C.FAILED,
        _CT.ERROR: _C.FAILED,
    },
    _C.AUTHENTICATING: {
        _CT.AUTHENTICATED: _C.OPEN,
        _CT.CLOSE: _C.CLOSING,
        _CT.ENDED: _C.CLOSED,
        _CT.ERROR: _C.FAILED,
    },
    # A second login on an open connection is answered, and changes nothing.
    _C.OPEN: {_CT.AUTHENTICATED: _C.OPEN, _CT.CLOSE: _C.CLOSING, _CT.ENDED: _C.CLOSED, _CT.ERROR: _C.FAILED},
    _C.CLOSING: {
        _CT.AUTHENTICATED: _C.CLOSING,
        _CT.CLOSE: _C.CLOSING,
        _CT.ENDED: _C.CLOSED,
        _CT.ERROR: _C.FAILED,
    },
    _C.CLOSED: {_CT.CLOSE: _C.CLOSED, _CT.ENDED: _C.CLOSED},
    _C.FAILED: {_CT.CLOSE: _C.FAILED, _CT.ENDED: _C.FAILED, _CT.ERROR: _C.FAILED},
}

_R, _RT = RequestState, RequestTrigger
REQUEST: Final[dict[RequestState, dict[RequestTrigger, RequestState]]] = {
    _R.QUEUED: {
        _RT.TAKEN: _R.ISSUED,
        # 0.4 answers every chunk of a refused upload, so an answer may come while later chunks are still queued.
        _RT.REPLY: _R.RESOLVED,
        _RT.ABANDON: _R.WITHDRAWN,
        _RT.CONNECTION_ENDED: _R.WITHDRAWN,
    },
    _R.ISSUED: {
        _RT.TAKEN: _R.ISSUED,
        _RT.REPLY: _R.RESOLVED,
        _RT.ABANDON: _R.ABANDONED,
        _RT.CONNECTION_ENDED: _R.LOST,
    },
    _R.ABANDONED: {
        # The message that resets a half-sent upload carries the id of the upload.
        _RT.TAKEN: _R.ABANDONED,
        _RT.REPLY: _R.RESOLVED,
        _RT.ABANDON: _R.ABANDONED,
        _RT.CONNECTION_ENDED: _R.LOST,
    },
    _R.RESOLVED: {_RT.ABANDON: _R.RESOLVED},
    _R.WITHDRAWN: {_RT.ABANDON: _R.WITHDRAWN},
    _R.LOST: {_RT.ABANDON: _R.LOST},
}

_P, _PT = ProcessState, ProcessTrigger
PROCESS: Final[dict[ProcessState, dict[ProcessTrigger, ProcessState]]] = {
    _P.RUNNING: {
        _PT.RETURN: _P.RETURNED,
        _PT.ERROR: _P.FAILED,
        _PT.RELEASE: _P.ZOMBIE,
        _PT.DETACH: _P.DETACHED,
        _PT.GONE: _P.LOST,
        _PT.CONNECTION_ENDED: _P.LOST,
    },
    _P.ZOMBIE: {
        # It may win the race against its terminate.
        _PT.RETURN: _P.RETURNED,
        _PT.ERROR: _P.TERMINATED,
        _PT.RELEASE: _P.ZOMBIE,
        _PT.GONE: _P.TERMINATED,
        _PT.CONNECTION_ENDED: _P.LOST,
    },
    _P.DETACHED: {
        _PT.RETURN: _P.RETURNED,
        _PT.ERROR: _P.FAILED,
        _PT.RELEASE: _P.ZOMBIE,
        _PT.DETACH: _P.DETACHED,
        _PT.GONE: _P.LOST,
        _PT.CONNECTION_ENDED: _P.DETACHED,
    },
    # The first terminal event is final: whatever an engine sends after it is dropped before it gets here.
    _P.RETURNED: {_PT.RELEASE: _P.RETURNED, _PT.DETACH: _P.RETURNED},
    _P.FAILED: {_PT.RELEASE: _P.FAILED, _PT.DETACH: _P.FAILED},
    _P.TERMINATED: {_PT.RELEASE: _P.TERMINATED, _PT.DETACH: _P.TERMINATED},
    _P.LOST: {_PT.RELEASE: _P.LOST, _PT.DETACH: _P.LOST},
}

S = TypeVar("S", bound=IntEnum)
T = TypeVar("T", bound=IntEnum)


def advance(table: dict[S, dict[T, S]], state: S, trigger: T) -> S:
    """Give the state that follows; a pair that the table does not hold is a bug on this side."""
    try:
        return table[state][trigger]
    except KeyError:
        msg = f"{type(state).__name__} {state.name} does not allow {trigger.name}"
        raise LocalProtocolError(msg) from None
