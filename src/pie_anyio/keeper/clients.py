# SPDX-License-Identifier: Apache-2.0
"""What a client can ask a keeper beyond what it can ask an engine."""

from __future__ import annotations

import json
from typing import Any, cast

import attrs

from .._exceptions import EngineError, RemoteProtocolError
from .._pie_client import PieClient
from ._wire import messages
from .requests import KEPT_PROCESSES, PONG, REWIND, STOP


@attrs.frozen(kw_only=True)
class KeptProcess:
    """A process that a keeper keeps, running or ended."""

    id: str
    program: str
    username: str
    """The name under which it was launched."""
    input: str = attrs.field(repr=False)
    """The beginning of its input."""
    status: str
    """running, returned, failed, terminated or lost."""
    started: float
    """Seconds since the epoch."""
    ended: float | None
    elapsed_secs: int
    events: int
    """How many events it has sent, the last one not counted; a file counts once for each 256 KiB."""
    evicted: int
    """How many of them are no longer kept."""
    received: int
    """The place of the last event that this client's name has received."""
    bytes: int
    """What is kept of it."""


async def kept_processes(client: PieClient) -> list[KeptProcess]:
    """List what a keeper keeps, also what has ended; the newest first, a thousand at the most.

    Args:
        client: one that is connected to a keeper.

    Raises:
        EngineError: it is connected to something else.
        ConnectionLost: the connection went away.

    Cancellation: harmless.
    """
    text = await _ask(client, KEPT_PROCESSES, "")
    names = [field.name for field in attrs.fields(KeptProcess)]
    try:
        rows: Any = json.loads(text)
        return [KeptProcess(**{name: row[name] for name in names}) for row in cast("list[Any]", rows)]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        msg = "kept_processes: the answer cannot be read"
        raise RemoteProtocolError(msg) from exc


async def rewind(client: PieClient, process_id: str, place: int = 0) -> None:
    """Have this client's name continue behind an event of its choice when it attaches to a process the next time.

    Args:
        client: one that is connected to a keeper.
        process_id: a process that is kept.
        place: the number of the last event that is not wanted again; with 0 everything that is kept comes again.

    Raises:
        EngineError: the process is not kept, or this is no keeper.
        ConnectionLost: the connection went away.

    Cancellation: it may have happened.
    """
    await _ask(client, REWIND, json.dumps({"process_id": process_id, "place": place}))


async def stop_keeper(client: PieClient) -> dict[str, Any]:
    """Stop a keeper; what runs is left to the engine, which ends it on 0.5. Gives how things were.

    Args:
        client: one that is connected to a keeper.

    Raises:
        EngineError: it is connected to something else.
        ConnectionLost: the connection went away.

    Cancellation: it may have happened.
    """
    facts: dict[str, Any] = json.loads(await _ask(client, STOP, ""))
    return facts


async def _ask(client: PieClient, subject: str, record: str) -> str:
    _, pong = await client.session.request(messages.Ping())
    if pong != PONG:
        # An engine of 0.4 would not even answer.
        msg = f"{subject}: {client.url} is an engine and no keeper"
        raise EngineError(msg, request="query", detail="no keeper")
    ok, text = await client.session.request(messages.Query(subject, record))
    if not ok:
        raise EngineError(f"{subject}: {text}", request="query", detail=text)
    return text
