# SPDX-License-Identifier: Apache-2.0
"""The tasks of one connection of a simulated engine: a reader and a writer, like those of the client."""

from __future__ import annotations

from typing import Final

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream, aclose_forcefully, create_task_group
from anyio.abc import ByteStream, TaskGroup

from ._sim_session import Session

_LOST: Final = (BrokenResourceError, ClosedResourceError, OSError)
_READ_BYTES: Final = 262_144
_WRITE_BYTES: Final = 262_144


async def serve_connection(session: Session, stream: ByteStream) -> None:
    """Serve one connection until either side ends it; then close the stream.

    Cancellation: the connection is dropped.
    """
    try:
        with session.scope:
            async with create_task_group() as task_group:
                task_group.start_soon(_write, session, stream, task_group)
                await _read(session, stream)
                task_group.cancel_scope.cancel()
    finally:
        session.deafen()
        await aclose_forcefully(stream)


async def _read(session: Session, stream: ByteStream) -> None:
    protocol, faults = session.protocol, session.faults
    while True:
        data: bytes | None = None
        try:
            data = await stream.receive(_READ_BYTES)
        except (EndOfStream, *_LOST):
            pass
        if faults.half_open and data is not None:
            continue
        protocol.receive_data(data)
        _drain(session)
        if protocol.wants_write or session.finishing:
            session.wake.set()
        if data is None:
            return


def _drain(session: Session) -> None:
    """Act on everything that has been read, including what was read behind the handshake."""
    while events := session.protocol.events():
        for event in events:
            session.handle(event)


async def _write(session: Session, stream: ByteStream, task_group: TaskGroup) -> None:
    protocol, faults = session.protocol, session.faults
    try:
        while True:
            await session.wake.wait()
            while protocol.wants_write and not faults.half_open:
                data = protocol.data_to_send(_WRITE_BYTES)
                if faults.drop_after_bytes is not None and len(data) >= faults.drop_after_bytes:
                    data, faults.drop_after_bytes = data[: faults.drop_after_bytes], None
                    session.finishing = True
                    await stream.send(data)
                    break
                if faults.drop_after_bytes is not None:
                    faults.drop_after_bytes -= len(data)
                await stream.send(data)
            if session.finishing:
                break
    except _LOST:
        pass
    task_group.cancel_scope.cancel()
