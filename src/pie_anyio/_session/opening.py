# SPDX-License-Identifier: Apache-2.0
"""The beginning of a connection: its parts, and the opening handshake."""

from __future__ import annotations

import os

from anyio import current_time, fail_after

from .._exceptions import ConnectError, PieError
from .._flow.slots import ReplySlot
from .._flow.wake import HighWater, Wake
from .._protocol.connection import ClientProtocol
from .._transport.stream import Transport
from .native import best_mask
from .options import SessionOptions
from .pumps import Link
from .router import Router


def make_link(options: SessionOptions, transport: Transport, router: Router) -> Link:
    """Put the parts of a connection together; the opening request is queued in it."""
    headers = [
        (b"x-pie-identity", options.identity.encode()),
        (b"user-agent", options.user_agent.encode()),
    ]
    protocol = ClientProtocol(
        host=options.endpoint.host,
        target=options.endpoint.target,
        headers=headers,
        entropy=os.urandom,
        limits=options.limits,
        mask=best_mask(),
    )
    requests = HighWater(options.limits.outbox_bytes)
    return Link(protocol, transport, router, Wake(), requests, HighWater(options.limits.upload_window))


async def finish_handshake(handshake: ReplySlot[None], name: str, deadline: float, timeout: float) -> None:
    """Wait for the end of the opening handshake, until a deadline on the loop's clock.

    Raises:
        ConnectError: refused, too slow, or no engine at all.

    Cancellation: the connection is to be given up.
    """
    try:
        with fail_after(max(0.0, deadline - current_time())):
            await handshake.wait()
    except TimeoutError as exc:
        msg = (
            f"{name} accepted the connection but did not answer the WebSocket handshake within {timeout:g} s"
        )
        raise ConnectError(msg, url=name) from exc
    except PieError as exc:
        raise _handshake_error(exc, name) from exc


def _handshake_error(exc: PieError, name: str) -> ConnectError:
    """Make the error of a connection that broke before the handshake was over."""
    if isinstance(exc, ConnectError) and exc.status is not None:
        return ConnectError(f"could not connect to {name}: {exc}", url=name, status=exc.status, body=exc.body)
    hint = "is this the URL of a Pie engine, and ws:// or wss:// as it should be?"
    if name.startswith("wss://"):
        # Under TLS 1.3 the client is through with the handshake when the server looks for its certificate.
        hint += " Or does it want a client certificate? That goes into ssl_context="
    return ConnectError(f"could not connect to {name}: {exc}; {hint}", url=name)
