# SPDX-License-Identifier: Apache-2.0
"""What a session needs to know before it begins; made by the client, which does not know the layer below."""

from __future__ import annotations

import time
from collections.abc import Callable

import attrs

from .._transport.endpoint import Endpoint, EndpointLike, parse_endpoint
from .._types import Keepalive, Limits, Reconnect

__all__ = ["EndpointLike", "SessionOptions", "parse_endpoint"]


@attrs.frozen(kw_only=True)
class SessionOptions:
    """What a session needs to know."""

    endpoint: Endpoint
    identity: str
    user_agent: str
    limits: Limits
    keepalive: Keepalive | None
    connect_timeout: float
    close_timeout: float
    terminate_grace: float
    reconnect: Reconnect | None = None
    wall_clock: Callable[[], float] = time.time
