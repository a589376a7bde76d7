# SPDX-License-Identifier: Apache-2.0
"""Small values that several layers share: ids, generations, capabilities, limits."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NewType

import attrs

__all__ = ["Capabilities", "Generation", "Keepalive", "Limits", "ProcessInfo"]

ProcessId = NewType("ProcessId", str)
CorrelationId = NewType("CorrelationId", int)

KIB: Final = 1024
MIB: Final = 1024 * 1024


class Generation(StrEnum):
    """The engine generations in the field, told apart by the first answer on the wire."""

    V04 = "0.4"
    V05 = "0.5"


@attrs.frozen(kw_only=True)
class Capabilities:
    """What one engine generation can do, as data.

    Sources: protocol of generations 0.4 and 0.5 (the gateway that ships with ``pie serve``).
    """

    generation: Generation
    public_key_login: bool
    """``authenticate(username, key)`` is a real check."""
    token_login: bool
    """``auth_by_token`` exists."""
    token_budget: bool
    """``token_budget=`` of a launch is honoured."""
    batch_launch: bool
    """``launch_processes`` and ``run_processes`` exist on the wire."""
    daemons: bool
    """``launch_daemon`` exists."""
    mcp: bool
    """``register_mcp_server`` exists: programs may call tools through the client."""
    bare_program_names: bool
    """A program may be launched by name alone, without ``@version``."""
    survives_disconnect: bool
    """Processes go on running when their connection ends."""
    max_request_bytes: int
    """Largest message that the engine takes, in bytes."""


CAPABILITIES: Final[dict[Generation, Capabilities]] = {
    Generation.V04: Capabilities(
        generation=Generation.V04,
        public_key_login=True,
        token_login=True,
        token_budget=True,
        batch_launch=True,
        daemons=True,
        mcp=True,
        bare_program_names=False,
        survives_disconnect=True,
        max_request_bytes=16 * MIB,  # one frame; tungstenite's default
    ),
    Generation.V05: Capabilities(
        generation=Generation.V05,
        public_key_login=False,
        token_login=False,
        token_budget=False,
        batch_launch=False,
        daemons=False,
        mcp=False,
        bare_program_names=True,
        survives_disconnect=False,
        max_request_bytes=7 * MIB,  # above, 0.5.2 answers "request too large" without saying to what
    ),
}


@attrs.frozen(kw_only=True)
class Limits:
    """Bounds on everything that the engine, or a caller, could make grow without end.

    Sizes are bytes, counts are items. Pass a changed copy to ``PieClient(limits=...)``.
    """

    message_bytes: int = 64 * MIB
    """One inbound message, all fragments together; above it the connection is closed with code 1009."""
    header_bytes: int = 64 * KIB
    """The engine's answer to the opening handshake."""
    orphan_events: int = 1024
    """Events kept for processes whose launch has not been answered yet."""
    orphan_bytes: int = 4 * MIB
    """... and their size."""
    downloads: int = 1024
    """Files arriving at the same time on one connection."""
    download_bytes: int = 256 * MIB
    """One file that a process sends."""
    downloads_bytes: int = 1024 * MIB
    """All unfinished files of one connection."""
    process_buffer_bytes: int = 64 * MIB
    """Unread output of one process."""
    client_buffer_bytes: int = 512 * MIB
    """Unread output of all processes of one client."""
    outbox_bytes: int = 16 * MIB
    """Queued outbound bytes above which callers of ``signal`` and the like wait for the socket."""
    upload_window: int = 1 * MIB
    """Chunks of uploads and file transfers that are queued at the same time."""


@attrs.frozen(kw_only=True)
class Keepalive:
    """When to ask a silent engine for a sign of life, and when to give it up, in seconds.

    Any inbound byte counts as life. ``interval`` is the silence after which a WebSocket ping is sent; ``timeout`` the
    further silence after which the connection counts as lost.
    """

    interval: float = 20.0
    timeout: float = 20.0


def _check_attempts(instance: object, attribute: object, value: int | None) -> None:
    if value is not None and value < 1:
        msg = f"attempts must be at least 1, or None for no end of them, not {value!r}"
        raise ValueError(msg)


@attrs.frozen(kw_only=True)
class Reconnect:
    """How a client comes back after its connection was lost. Times are in seconds.

    Attempt n begins ``initial`` times 2 to the power of n - 1 after the one before it, at most ``maximum``; a random
    share of up to ``jitter`` is taken off, so that those who lost an engine together do not come back together. Each
    attempt is bounded by the client's ``connect_timeout``.
    """

    attempts: int | None = attrs.field(default=10, validator=_check_attempts)
    """Attempts in a row without success after which the client gives up; None never does."""
    initial: float = attrs.field(default=0.1, validator=attrs.validators.gt(0))
    maximum: float = attrs.field(default=10.0, validator=attrs.validators.gt(0))
    jitter: float = attrs.field(default=0.5, validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    patience: float = attrs.field(default=10.0, validator=attrs.validators.ge(0))
    """How long a process is tried that the engine still lists but does not let this client attach to."""


@attrs.frozen(kw_only=True)
class ProcessInfo:
    """One row of ``list_processes``, typed."""

    id: str
    username: str
    program: str
    input: str
    elapsed_secs: int
