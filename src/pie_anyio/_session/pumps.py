# SPDX-License-Identifier: Apache-2.0
"""The three long-lived tasks of a connection: reader, writer, keepalive. Nothing else touches the stream."""

from __future__ import annotations

from typing import Final

import attrs
from anyio import current_time, sleep_until

from .._exceptions import ConnectionLost, PieError
from .._flow.pausing import Intake
from .._flow.suspension import SuspensionWatch
from .._flow.wake import HighWater, Wake
from .._protocol.connection import ClientProtocol
from .._transport.stream import Transport
from .._types import Keepalive
from .router import Router

_EARLY: Final = 8192
"""Bytes of queued requests from which on the engine is not kept waiting for the rest of them."""


@attrs.define(eq=False)
class Link:
    """One connection's parts, shared by its pumps."""

    protocol: ClientProtocol
    transport: Transport
    router: Router
    wake: Wake
    requests: HighWater
    """Holds back callers of unanswered requests while the outbox is full."""
    bulk: HighWater
    """Holds back uploads and file transfers."""
    last_heard: float = 0.0
    unheard: bool = False
    """Something was sent since bytes came in last."""
    unsent: bytes = b""
    """The rest of what was framed and did not fit into the socket at once; goes before everything else."""
    writing: bool = False
    """The writer is in the middle of a send."""
    intake: Intake = attrs.Factory(Intake)
    """Shut while the reader has to wait for a consumer of events; the session's, which outlives connections."""

    def send_soon(self) -> None:
        """Get what was queued on its way: at once on a quiet connection, else by the writer, together with the rest.

        A request that finds nothing under way would only lose time by waking the writer; one that does finds its way
        into the same write as its neighbours (as in Nagle's algorithm), unless there are so many of them that the
        engine had better begin.
        """
        if (
            (self.unheard and self.protocol.outbound_bytes < _EARLY)
            or self.writing
            or self.unsent
            or not self.transport.is_direct
            or self.protocol.bulk_bytes
        ):
            self.wake.set()
            return
        self.unheard = True
        data = self.protocol.data_to_send()
        self.unsent = data[self.transport.send_now(data) :]
        self.update_levels()
        if self.unsent or self.protocol.wants_write:
            self.wake.set()

    def flush(self) -> None:
        """Route what the core has to say, and have the writer send what it wants to."""
        self.router.route_all(self.protocol.events())
        self.update_levels()
        if self.protocol.wants_write:
            self.wake.set()

    def update_levels(self) -> None:
        """Tell the gates how much is queued."""
        bulk = self.protocol.bulk_bytes
        self.bulk.set_level(bulk)
        self.requests.set_level(self.protocol.outbound_bytes - bulk)

    def fail(self, reason: PieError) -> None:
        """End the connection for a reason found on this side of the core."""
        self.protocol.fail(reason)
        self.flush()
        # Whoever waits to send a request has sent nothing; whoever waits to send more of a file has sent some of it.
        self.requests.fail(ConnectionLost(str(reason), issued=False))
        self.bulk.fail(ConnectionLost(str(reason), issued=True))
        # The reader has to notice; and what it waited for has nothing to do with the next connection.
        self.intake.open_all()


async def read(link: Link) -> None:
    """Feed the core until the stream ends. Nothing but a process that was launched to (``pause``) can hold it up."""
    while True:
        try:
            data = await link.transport.receive()
        except ConnectionLost as exc:
            link.fail(exc)
            return
        link.last_heard = current_time()
        link.unheard = False
        link.protocol.receive_data(data)
        link.flush()
        if data is None or link.router.ended.done:
            break
        if link.intake.is_shut:
            await link.intake.wait()
            link.last_heard = current_time()  # nobody listened, which is no silence of the engine's
    link.fail(link.protocol.close_reason or ConnectionLost("the connection ended"))


async def write(link: Link) -> None:
    """Send what the core wants sent, several messages in one write, until the connection ends."""
    while True:
        await link.wake.wait()
        while link.unsent or link.protocol.wants_write:
            data = link.unsent or link.protocol.data_to_send()
            link.unsent = b""
            link.update_levels()
            link.unheard = link.writing = True
            try:
                await link.transport.send(data)
            except ConnectionLost as exc:
                link.fail(exc)
                return
            finally:
                link.writing = False


async def keep_alive(link: Link, policy: Keepalive, watch: SuspensionWatch) -> None:
    """Ping a silent engine, and give it up when it stays silent; ping at once when the machine was suspended.

    Any inbound byte counts as life: a burst may hold up the pong itself. While the reader waits for a consumer of
    events nothing is judged.
    """
    link.last_heard = max(link.last_heard, current_time())
    while True:
        suspended = await watch.sleep_until(link.last_heard + policy.interval)
        asked = current_time()
        # The sum, as above, and not the difference: rounded the other way, it would have this go round for ever.
        if not suspended and asked < link.last_heard + policy.interval:
            continue
        link.protocol.ping()
        link.flush()
        await sleep_until(asked + policy.timeout)
        if link.intake.is_shut:
            await link.intake.wait()
            continue
        if link.last_heard < asked:
            silence = current_time() - link.last_heard
            msg = f"the engine at {link.transport.name} was silent for {silence:.0f} s and did not answer a ping"
            link.fail(ConnectionLost(msg))
            return
