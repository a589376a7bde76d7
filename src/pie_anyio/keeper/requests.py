# SPDX-License-Identifier: Apache-2.0
"""What each request of a client means to the keeper.

What needs no engine is answered at once. What does is a task of the keeper's and not of the session's, since it is to
have its effect also where the client does not wait for it. Signals and files keep their order instead, and hold up
what their client sends behind them.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from .._types import Generation
from ._wire import messages
from .store import Record
from .uploads import UploadRefused
from .upstream import Refused

if TYPE_CHECKING:
    from .downstream import Session

logger: Final = logging.getLogger("pie_anyio.keeper")

Answer: TypeAlias = tuple[bool, str]
_Now: TypeAlias = "Callable[[Session, Any], Answer]"
_Later: TypeAlias = "Callable[[Session, Any], Awaitable[Answer]]"

KEPT_PROCESSES: Final = "kept_processes"
REWIND: Final = "kept_rewind"
KEEPER: Final = "keeper"
STOP: Final = "keeper_stop"
PONG: Final = "Pong from a pie-anyio keeper"
_LISTED: Final = 1000  # rows of one answer
_SHOWN_CHARS: Final = 200  # of an input in a list of what is kept
_NOT_RELAYED: Final = (
    "the keeper does not relay {}: connect to the engine itself, or use one launch_process for each process"
)


async def handle(session: Session, request: messages.Request, corr_id: int | None) -> None:
    """Act on a request.

    Cancellation: of what waits for room, nothing has happened.
    """
    if isinstance(request, (messages.SignalProcess, messages.TransferFile)):
        await _pass_on(session, request)
    elif request.answered:  # else it answers a question that the keeper never asked
        assert corr_id is not None
        try:
            await _handle(session, request, corr_id)
        except Exception:  # noqa: BLE001 - it is logged, and must not end the keeper
            _report(session, request, corr_id)


async def _handle(session: Session, request: messages.Request, corr_id: int) -> None:
    at_once = _AT_ONCE.get(type(request))
    later = _LATER.get(type(request))
    if at_once is not None:
        session.respond(corr_id, *at_once(session, request))
    elif isinstance(request, messages.AddProgram):
        await _take_program(session, request, corr_id)
    elif later is not None:
        await session.room.acquire()
        session.keeper.spawn(_answer, session, corr_id, later, request)
    else:
        session.respond(corr_id, False, _NOT_RELAYED.format(request.type))


async def _answer(session: Session, corr_id: int, later: _Later, request: messages.Request) -> None:
    try:
        session.respond(corr_id, *await later(session, request))
    except Refused as exc:
        session.respond(corr_id, False, str(exc))
    except Exception:  # noqa: BLE001 - as above
        _report(session, request, corr_id)
    finally:
        session.room.release()


def _report(session: Session, request: messages.Request, corr_id: int) -> None:
    """Have one request fail, and nothing else with it."""
    logger.exception("%s failed in the keeper", request.type)
    session.respond(corr_id, False, "the keeper failed; its log says more")


# --- answered at once ------------------------------------------------------------------------------------------------


def _identify(session: Session, request: messages.AuthIdentify) -> Answer:
    """Take any name: who may connect at all was decided before, and the name says which reader this is."""
    session.reader = request.username[:200]
    if session.protocol.generation is Generation.V05:
        return True, messages.ALREADY_AUTHENTICATED
    session.protocol.authenticated()
    return True, messages.NO_AUTH_LITERAL


def _prove(session: Session, request: messages.AuthProve | messages.AuthByToken) -> Answer:
    # The engine's secrets are the keeper's business; of what a client sends of them nothing is looked at.
    if session.protocol.generation is Generation.V05:
        return False, messages.ALREADY_AUTHENTICATED
    session.protocol.authenticated()
    return True, messages.AUTHENTICATED


def _ping(session: Session, request: messages.Ping) -> Answer:
    # Engines say "Pong", and no client looks further; this is how a keeper is told from an engine.
    return True, PONG


def _list_processes(session: Session, request: messages.ListProcesses) -> Answer:
    store = session.keeper.store
    rows = [_row(store.records[process_id], store.now()) for process_id in store.running]
    return True, json.dumps(rows)


def _row(record: Record, now: float) -> dict[str, object]:
    """Describe a process as engines do."""
    return {
        "id": record.id,
        "username": record.owner,
        "program": record.program,
        "input": record.input,
        "elapsed_secs": max(int((record.ended or now) - record.started), 0),
    }


def _kept_processes(session: Session) -> Answer:
    """List what is kept, the newest first."""
    store = session.keeper.store
    records = list(store.records.values())[: -_LISTED - 1 : -1]
    rows = [
        {
            **_row(record, store.now()),
            "input": record.input[:_SHOWN_CHARS],
            "status": record.status,
            "started": record.started,
            "ended": record.ended,
            "events": record.last,
            "evicted": record.first - 1,
            "received": record.readers.get(session.reader, 0),
            "bytes": record.bytes + record.result_bytes,
        }
        for record in records
    ]
    return True, json.dumps(rows)


def _rewind(session: Session, text: str) -> Answer:
    """Have a reader begin elsewhere with its next attach: ``{"process_id": ..., "place": ...}``."""
    try:
        wish: Any = json.loads(text)
        process_id, place = wish["process_id"], wish["place"]
    except (ValueError, KeyError, TypeError, RecursionError):
        process_id, place = None, None
    if not isinstance(process_id, str) or type(place) is not int:
        return False, f'{REWIND} wants {{"process_id": "...", "place": 0}}'
    record = session.keeper.store.records.get(canonical_id(process_id))
    if record is None:
        return False, messages.GONE
    session.keeper.store.rewind(record, session.reader, place)
    session.keeper.changed()
    return True, "rewound"


def _check_attach(session: Session, process_id: str) -> Record | None:
    """Find a kept process to attach to.

    Raises:
        Refused: this connection is attached to it already.
    """
    if process_id in session.attached:
        # Each generation's own words for it.
        v05 = session.protocol.generation is Generation.V05
        raise Refused("Cannot attach: already attached" if v05 else messages.GONE)
    return session.keeper.store.records.get(process_id)


def canonical_id(text: str) -> str:
    """Spell an id as engines do; leave alone what is none."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return text


# --- passed on to the engine -----------------------------------------------------------------------------------------


async def _launch(session: Session, request: messages.LaunchProcess) -> Answer:
    record = await session.keeper.upstream.launch(request, session.reader)
    if request.capture_outputs:
        session.attach(record)
    return True, record.id


async def _attach(session: Session, request: messages.AttachProcess) -> Answer:
    process_id = canonical_id(request.process_id)
    record = _check_attach(session, process_id)
    if record is None:
        record = await session.keeper.upstream.adopt(process_id, session.reader)
        _check_attach(session, process_id)
    session.attach(record)
    return True, "Process attached"


async def _terminate(session: Session, request: messages.TerminateProcess) -> Answer:
    record = session.keeper.store.records.get(canonical_id(request.process_id))
    if record is not None and not record.running:
        return False, messages.GONE
    return await session.keeper.upstream.ask(request)


async def _query(session: Session, request: messages.Query) -> Answer:
    match request.subject:
        case "kept_processes":
            return _kept_processes(session)
        case "kept_rewind":
            return _rewind(session, request.record)
        case "keeper":
            return True, json.dumps(session.keeper.describe())
        case "keeper_stop":
            session.keeper.stop()  # from the next turn of the loop on: this answer is sent still
            return True, json.dumps(session.keeper.describe())
        case subject if subject != "model_status" and session.protocol.generation is Generation.V04:
            # An engine of 0.4 would never answer.
            return (
                False,
                f'unknown query subject "{subject}" (known: model_status, {KEPT_PROCESSES}, {KEEPER})',
            )
        case _:
            return await session.keeper.upstream.ask(request)


async def _check_program(session: Session, request: messages.CheckProgram) -> Answer:
    return await session.keeper.upstream.ask(request)


async def _install(session: Session, request: messages.AddProgram) -> Answer:
    await session.keeper.upstream.install(request.chunk_data, request.manifest, request.force_overwrite)
    return True, "Program installed successfully"


async def _take_program(session: Session, request: messages.AddProgram, corr_id: int) -> None:
    """Take a piece of a program; the last one has it installed."""
    try:
        content = session.uploads.add(request)
    except UploadRefused as exc:
        session.respond(corr_id, False, str(exc))
        return
    if content is not None:
        first = cast("messages.AddProgram", content.first)
        whole = messages.AddProgram(
            first.program_hash, first.manifest, first.force_overwrite, 0, 1, content.data
        )
        await session.room.acquire()
        session.keeper.spawn(_answer, session, corr_id, _install, whole)


async def _pass_on(session: Session, request: messages.SignalProcess | messages.TransferFile) -> None:
    """Send a process what a client has for it, in order; what is wrong with it is never told, as with engines."""
    process_id = canonical_id(request.process_id)
    if isinstance(request, messages.SignalProcess):
        await session.keeper.upstream.signal(process_id, request.message)
        return
    try:
        content = session.uploads.add(request)
    except UploadRefused as exc:
        logger.warning("a file for process %s was dropped: %s", process_id, exc)
        return
    if content is not None:
        await session.keeper.upstream.transfer(process_id, content.data)


_AT_ONCE: Final[dict[type[messages.Request], _Now]] = {
    messages.AuthIdentify: _identify,
    messages.AuthProve: _prove,
    messages.AuthByToken: _prove,
    messages.Ping: _ping,
    messages.ListProcesses: _list_processes,
}
_LATER: Final[dict[type[messages.Request], _Later]] = {
    messages.LaunchProcess: _launch,
    messages.AttachProcess: _attach,
    messages.TerminateProcess: _terminate,
    messages.Query: _query,
    messages.CheckProgram: _check_program,
}
