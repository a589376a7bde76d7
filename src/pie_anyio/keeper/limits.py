# SPDX-License-Identifier: Apache-2.0
"""How much a keeper keeps, and of how many."""

from __future__ import annotations

import attrs

from .._types import MIB


@attrs.frozen(kw_only=True)
class KeeperLimits:
    """Bounds on everything that clients, or an engine, could make grow without end.

    Sizes are bytes, counts are items, times are seconds.
    """

    process_bytes: int = attrs.field(default=16 * MIB, validator=attrs.validators.gt(0))
    """Output kept of one process; beyond it its oldest events go."""
    process_events: int = attrs.field(default=100_000, validator=attrs.validators.gt(0))
    """... and their number."""
    total_bytes: int = attrs.field(default=256 * MIB, validator=attrs.validators.gt(0))
    """Everything kept; beyond it the oldest output goes, then the oldest results."""
    result_bytes: int = attrs.field(default=16 * MIB, validator=attrs.validators.gt(0))
    """What one process returns; of a larger one only its size is kept."""
    results: int = attrs.field(default=10_000, validator=attrs.validators.gt(0))
    """Processes that have ended; beyond it the oldest are forgotten."""
    result_age: float = attrs.field(default=86400.0, validator=attrs.validators.gt(0))
    """How long a process is remembered after its end."""
    readers: int = attrs.field(default=16, validator=attrs.validators.gt(0))
    """Names of readers whose place in one process is remembered."""
    sessions: int = attrs.field(default=256, validator=attrs.validators.gt(0))
    """Connections of clients."""
    running: int = attrs.field(default=4096, validator=attrs.validators.gt(0))
    """Processes that run; beyond it launches are refused as by an engine without capacity."""
    requests: int = attrs.field(default=64, validator=attrs.validators.gt(0))
    """Requests of one client that wait for the engine."""
    upload_bytes: int = attrs.field(default=64 * MIB, validator=attrs.validators.gt(0))
    """One program or file from a client."""
    uploads_bytes: int = attrs.field(default=256 * MIB, validator=attrs.validators.gt(0))
    """Uploads that are not complete yet, of all clients together."""
    handshake_seconds: float = attrs.field(default=10.0, validator=attrs.validators.gt(0))
    """How long a client may take for the opening handshake."""
    patience: float = attrs.field(default=10.0, validator=attrs.validators.gt(0))
    """How long a request waits for a connection to the engine."""
