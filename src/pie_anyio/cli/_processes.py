# SPDX-License-Identifier: Apache-2.0
"""``ps``, ``kill``, ``signal`` and ``send-file``: processes that are already running."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import click
from anyio import create_task_group, move_on_after, sleep

from pie_anyio import ConnectError, PieClient, PieError, Process, ProcessNotFound

from ._companion import keeper_of, kept_rows
from ._errors import FAILED, OK, UserError, diagnose
from ._loop import Cli, asynchronous

_CONFIRM_LIMIT: Final = 5.0
_CONFIRM_INTERVAL: Final = 0.05


@click.command("ps", short_help="List the running processes")
@asynchronous
async def ps(cli: Cli) -> int:
    """List the running processes: on 0.4 your own, on 0.5 everybody's; and what a keeper has, running or ended."""
    kept = {row.id: {"kept": row.status, **attrs.asdict(row)} for row in await kept_rows(cli)}
    rows: list[dict[str, Any]] = []
    code = OK
    try:
        async with cli.connect() as client:
            rows = [row for row in await client.list_processes() if row.get("id") not in kept]
    except ConnectError as exc:
        if not kept:
            raise
        diagnosis = diagnose(exc)  # what the keeper has is there without its engine
        cli.out.error(diagnosis)
        code = diagnosis.code
    rows += kept.values()
    for row in rows:
        cli.out.record("process", **{key: value for key, value in row.items() if key != "event"})
    names = ("id", "program", "username", "elapsed_secs", *(["kept"] if kept else []), "input")
    cells = [[_shortened(str(row.get(name, ""))) for name in names] for row in rows]
    if cells:
        head = ["ID", "PROGRAM", "USER", "SECONDS", *(["KEPT"] if kept else []), "INPUT"]
        cli.out.table(head, cells)
    else:
        cli.out.note("no process is running")
    return code


def _shortened(text: str, width: int = 60) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


async def resolve_id(client: PieClient, text: str) -> str:
    """Give the full id of the only process whose id begins with ``text``.

    Raises:
        UserError: there is none, or more than one.

    Cancellation: harmless.
    """
    return match_id(await client.list_processes(), text)


def match_id(rows: Sequence[dict[str, Any]], text: str) -> str:
    """Give the only id among the rows that begins with ``text``.

    Raises:
        UserError: there is none, or more than one.
    """
    wanted = text.strip().lower()
    found = [str(row.get("id", "")) for row in rows if str(row.get("id", "")).startswith(wanted)]
    if len(found) == 1 and wanted:
        return found[0]
    if not found:
        msg = f"no process {text!r} is running"
        raise UserError(msg, hint="'pie-anyio ps' lists what is running", code=FAILED)
    msg = f"{text!r} begins the ids of {len(found)} processes: {', '.join(found[:5])}"
    raise UserError(msg)


@click.command("kill", short_help="End processes")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All that 'ps' lists: on 0.5, other people's too.")
@asynchronous
async def kill(cli: Cli, *, ids: Sequence[str], everything: bool) -> int:
    """End processes, and wait until the engine no longer lists them. The beginning of an id will do."""
    if bool(ids) == everything:
        msg = "give the ids of processes, or --all"
        raise UserError(msg, hint="'pie-anyio ps' lists them")
    async with cli.connect() as client:
        rows = await client.list_processes()
        wanted = [str(row["id"]) for row in rows] if everything else [match_id(rows, text) for text in ids]
        failures: dict[str, PieError] = {}
        async with create_task_group() as tasks:
            for process_id in wanted:
                tasks.start_soon(_terminate, client, process_id, failures)
        left = await _still_listed(client, set(wanted) - failures.keys())
    for process_id in wanted:
        confirmed = process_id not in left and process_id not in failures
        cli.out.record("killed", process_id=process_id, confirmed=confirmed)
        cli.out.result(f"{process_id} {'ended' if confirmed else 'NOT confirmed'}")
    for error in failures.values():
        cli.out.error(diagnose(error))
    if not wanted:
        cli.out.note("no process is running")
    return FAILED if left or failures else OK


async def _terminate(client: PieClient, process_id: str, failures: dict[str, PieError]) -> None:
    try:
        await client.terminate_process(process_id)
    except ProcessNotFound:
        pass  # it ended by itself in the meantime
    except PieError as exc:
        failures[process_id] = exc


async def _still_listed(client: PieClient, ids: set[str]) -> set[str]:
    """Wait until none of these processes is listed any more; give those that still are when patience ends."""
    left = set(ids)
    with move_on_after(_CONFIRM_LIMIT):
        while left:
            left &= {str(row.get("id")) for row in await client.list_processes()}
            if left:
                await sleep(_CONFIRM_INTERVAL)  # no engine announces the end of somebody else's process
    return left


@asynccontextmanager
async def _borrowed(cli: Cli, text: str) -> AsyncGenerator[tuple[PieClient, Process]]:
    """Attach to a process for one message: through its keeper, or where the connection that launched it has gone (0.4).

    Raises:
        UserError: it has ended, or this engine generation cannot do it.

    Cancellation: the process is not touched.
    """
    async with keeper_of(cli, text, name="send") as kept:
        if kept is not None:
            from pie_anyio.keeper import rewind

            client, row = kept
            if row.status != "running":
                msg = f"process {row.id} has ended: it {'is' if row.status == 'lost' else 'has'} {row.status}"
                raise UserError(msg, hint="'pie-anyio attach' shows what it sent", code=FAILED)
            await rewind(client, row.id, row.events)  # nothing of its output is wanted here
            yield client, await _attach(client, row.id)
            return
    async with cli.connect() as client:
        process_id = await resolve_id(client, text)
        capabilities = client.capabilities
        if capabilities is not None and not capabilities.survives_disconnect:
            msg = (
                f"not possible on this engine (generation {client.generation}): a process hears only the connection "
                "that launched it, and ends with any connection that attaches to it"
            )
            raise UserError(msg, hint="launch it with 'run --detach', so that a keeper has it", code=FAILED)
        yield client, await _attach(client, process_id)


async def _attach(client: PieClient, process_id: str) -> Process:
    process = await client.attach_process(process_id)
    process.detach()
    return process


@click.command("signal", short_help="Send a message to a detached process")
@click.argument("process_id")
@click.argument("message")
@asynchronous
async def signal_command(cli: Cli, *, process_id: str, message: str) -> int:
    """Send MESSAGE to a detached process, which reads it with session.receive().

    It must be a keeper's ('run --detach'), or the engine of generation 0.4. No engine acknowledges signals: that it
    was sent is all that can be said.
    """
    async with _borrowed(cli, process_id) as (client, process):
        await process.signal(message)
        await client.ping()  # requests are taken in order, so the signal has been taken now
    cli.out.record("signalled", process_id=process.process_id)
    cli.out.note(f"sent to {process.process_id}")
    return OK


@click.command("send-file", short_help="Send a file to a detached process")
@click.argument("process_id")
@click.argument("path", type=click.Path(exists=True, dir_okay=False))
@asynchronous
async def send_file(cli: Cli, *, process_id: str, path: str) -> int:
    """Send the file PATH to a detached process, which must be waiting in session.receive_file().

    It must be a keeper's ('run --detach'), or the engine of generation 0.4. No engine acknowledges files: that it was
    sent is all that can be said.
    """
    async with _borrowed(cli, process_id) as (client, process):
        await process.transfer_file(path)
        await client.ping()
    cli.out.record("sent", process_id=process.process_id, path=path)
    cli.out.note(f"sent to {process.process_id}")
    return OK
