# SPDX-License-Identifier: Apache-2.0
"""Every exception that pie-anyio raises.

.. code-block:: text

    PieError
     +- LocalProtocolError        misuse of the protocol: a bug of ours or of the caller
     |   +- UnsupportedByEngine   this engine generation cannot do what was asked
     |   +- InvalidRequest        an argument that can never be sent (name, size, encoding)
     |       +- InsecureTransport  ... or that must not be sent, since others could read it
     +- RemoteProtocolError       the engine broke the protocol
     +- ConnectError              no connection: refused, TLS, handshake, timeout
     |   +- AuthenticationError   the engine does not let this user in
     +- KeyFileError              a private key that cannot be read or used
     +- ConnectionLost            the connection went away
     |   +- ConnectionClosed      ... in an orderly way
     +- SessionError              several internal failures at once
     +- EngineError               the engine answered "no"
     |   +- EngineBusy            ... for lack of capacity: worth trying again
     |   +- ProgramNotFound       ... the program is not installed
     |   +- ProcessNotFound       ... no such process, or not attachable
     +- ProcessError              a process ended without a value
     |   +- ProcessFailed         the program raised or the engine failed it
     |   +- ProcessTerminated     somebody terminated it
     |   +- ProcessLost           nobody can say how it ended
     +- OutputOverflow            output came faster than it was read
     +- TransferError             a file or upload could not be transferred

    InsecureTransportWarning, InsecureKeyFileWarning (UserWarning)
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AuthenticationError",
    "ConnectError",
    "ConnectionClosed",
    "ConnectionLost",
    "EngineBusy",
    "EngineError",
    "InsecureTransport",
    "InsecureTransportWarning",
    "InvalidRequest",
    "KeyFileError",
    "LocalProtocolError",
    "OutputOverflow",
    "PieError",
    "ProcessError",
    "ProcessFailed",
    "ProcessLost",
    "ProcessNotFound",
    "ProcessTerminated",
    "ProgramNotFound",
    "RemoteProtocolError",
    "SessionError",
    "TransferError",
    "UnsupportedByEngine",
]


class PieError(Exception):
    """Base of everything that pie-anyio raises on purpose.

    Errors pickle and copy with their attributes and notes, so that they survive process pools and journals. As with
    every Python exception, traceback, cause and context stay behind.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # Python's own way calls the class with ``self.args`` alone, which fails on mandatory keyword arguments.
        return _restore, (type(self), self.args), self.__dict__.copy()


def _restore(cls: type[PieError], args: tuple[object, ...]) -> PieError:
    """Rebuild a pickled error without its constructor; pickle then fills in the attributes."""
    return cls.__new__(cls, *args)


class LocalProtocolError(PieError):
    """This side asked for something that the protocol does not allow now; nothing was sent."""


class UnsupportedByEngine(LocalProtocolError):
    """The connected engine generation cannot do this; nothing was sent."""

    def __init__(self, feature: str, *, generation: str, available_in: str) -> None:
        super().__init__(
            f"{feature} is not possible on this engine (generation {generation}); "
            f"it needs an engine of generation {available_in}"
        )
        self.feature = feature
        self.generation = generation
        self.available_in = available_in


class InvalidRequest(LocalProtocolError, ValueError):
    """An argument that could never be accepted by an engine; nothing was sent."""


class InsecureTransport(InvalidRequest):
    """``require_tls=True`` and an endpoint without checked TLS; nothing was sent, and nobody was connected to."""


class RemoteProtocolError(PieError):
    """The engine sent something that breaks the protocol; the connection is given up.

    ``close_code`` is the WebSocket close code that was sent back (RFC 6455, section 7.4).
    """

    def __init__(self, message: str, *, close_code: int = 1002) -> None:
        super().__init__(message)
        self.close_code = close_code


class ConnectError(PieError):
    """No usable connection could be made.

    ``url`` names the endpoint; ``status`` and ``body`` are set where an HTTP answer refused the handshake.
    """

    def __init__(
        self, message: str, *, url: str | None = None, status: int | None = None, body: str | None = None
    ) -> None:
        super().__init__(message)
        self.url = url
        self.status = status
        self.body = body


class AuthenticationError(ConnectError):
    """The engine refused the credentials, or none were given where it wants some."""


class KeyFileError(PieError, ValueError):
    """A private key cannot be read, decrypted or used; the message says which and what to do."""


class ConnectionLost(PieError):
    """The connection to the engine went away before the answer came.

    ``issued`` is False where the request certainly never left this machine (it may be repeated safely), True where
    the engine may have acted on it, and None where the question does not apply. ``generation`` counts the
    connections of the client, from 1.
    """

    def __init__(self, message: str, *, issued: bool | None = None, generation: int = 1) -> None:
        super().__init__(message)
        self.issued = issued
        self.generation = generation


class ConnectionClosed(ConnectionLost):
    """The connection was closed in an orderly way, by this side or by the engine.

    ``code`` and ``reason`` are those of the WebSocket close frame, where there was one.
    """

    def __init__(
        self,
        message: str,
        *,
        code: int | None = None,
        reason: str = "",
        issued: bool | None = None,
        generation: int = 1,
    ) -> None:
        super().__init__(message, issued=issued, generation=generation)
        self.code = code
        self.reason = reason


class SessionError(PieError):
    """Several internal parts of a session failed at once; ``__cause__`` is the exception group."""


class EngineError(PieError):
    """The engine answered a request with a refusal.

    ``request`` is the wire name of the request (``launch_process``, ...); ``detail`` the engine's own text.
    """

    def __init__(self, message: str, *, request: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.request = request
        self.detail = detail


class EngineBusy(EngineError):
    """The engine has no capacity for the launch at this moment; trying later may succeed."""


class ProgramNotFound(EngineError):
    """The program is not installed on the engine; upload it with ``install_program``."""


class ProcessNotFound(EngineError):
    """The engine knows no such process, or it cannot be attached to from here."""


class ProcessError(PieError):
    """A process ended without returning a value.

    ``process_id`` is None where the process never got an id; ``index`` and ``key`` name the item of a map that it
    belonged to; ``output_tail`` is the last of what it printed, as far as it was kept.
    """

    def __init__(
        self,
        message: str,
        *,
        process_id: str | None = None,
        program: str | None = None,
        index: int | None = None,
        key: object = None,
        output_tail: str = "",
    ) -> None:
        super().__init__(message)
        self.process_id = process_id
        self.program = program
        self.index = index
        self.key = key
        self.output_tail = output_tail


class ProcessFailed(ProcessError, RuntimeError):
    """The program raised, trapped, or was refused by the engine; ``detail`` is the engine's text."""

    def __init__(self, message: str, *, detail: str = "", **where: Any) -> None:
        super().__init__(message, **where)
        self.detail = detail


class ProcessTerminated(ProcessError):
    """The process was terminated; ``by_us`` tells whether this client asked for it."""

    def __init__(self, message: str, *, by_us: bool, **where: Any) -> None:
        super().__init__(message, **where)
        self.by_us = by_us


class ProcessLost(ProcessError):
    """How the process ended is unknown: the connection went away and the engine cannot say.

    It may have completed, may have failed, may still be running. Lost is not failed. ``issued`` is as in
    :class:`ConnectionLost`, for runs that were lost while being launched.
    """

    def __init__(self, message: str, *, issued: bool | None = None, **where: Any) -> None:
        super().__init__(message, **where)
        self.issued = issued


class OutputOverflow(PieError):
    """A process printed more than its buffer holds before anybody read it; its result is not affected.

    ``process_id`` names the process, ``dropped`` counts the events that were dropped so far.
    """

    def __init__(self, message: str, *, process_id: str | None = None, dropped: int = 0) -> None:
        super().__init__(message)
        self.process_id = process_id
        self.dropped = dropped


class TransferError(PieError):
    """A file or upload did not arrive: refused, cut short, or damaged."""


class InsecureTransportWarning(UserWarning):
    """A secret was sent over an unencrypted connection to another host."""
