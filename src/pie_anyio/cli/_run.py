# SPDX-License-Identifier: Apache-2.0
"""``run`` and ``attach``: one process, its output as it comes, and its value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from anyio import to_thread

from pie_anyio import Event, PieClient, Process, ProcessFailed, ProcessTerminated, ReceivedFile

from ._companion import connect_keeper, find_places, keeper_of
from ._errors import FAILED, OK, UserError
from ._inputs import read_input
from ._loop import Cli, asynchronous
from ._output import neutralised, receipt_fields
from ._processes import resolve_id


@click.command("run", short_help="Run one program")
@click.argument("program")
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--input", "-i", "text", metavar="JSON|@FILE|-", help="The input; KEY=VALUE arguments add to it."
)
@click.option(
    "--files", "folder", metavar="DIR", type=click.Path(file_okay=False), help="Save received files here."
)
@click.option("--token-budget", type=click.IntRange(min=1), help="Let the process use so many tokens (0.4).")
@click.option(
    "--detach", is_flag=True, help="Print the id and leave the process to a keeper; 'attach' follows it."
)
@click.option("--no-keeper", is_flag=True, help="... or to the engine, whose connection then ends (0.4).")
@asynchronous
async def run_command(
    cli: Cli,
    *,
    program: str,
    pairs: Sequence[str],
    text: str | None,
    folder: str | None,
    token_budget: int | None,
    detach: bool,
    no_keeper: bool,
) -> int:
    """Run PROGRAM (name@version) and print its output as it comes, and what it returns.

    KEY=VALUE arguments make the input, a JSON object; a VALUE that is no JSON is text. With --quiet, standard
    output has the returned value alone. Ctrl-C ends the process on the engine.
    """
    value = read_input(text, pairs)
    if detach and not no_keeper:
        return await _leave_to_keeper(cli, program, value, token_budget)
    async with cli.connect() as client:
        call = client.launch_process(program, value, token_budget=token_budget)
        if detach:
            return await _detached(cli, client, await call)
        async with call as process:
            cli.out.record("launched", process_id=process.process_id, program=program)
            code = await follow(cli, process, folder)
        cli.out.record("done", exit_code=code, receipt=receipt_fields(client.receipt))
        return code


async def _leave_to_keeper(cli: Cli, program: str, value: Any, token_budget: int | None) -> int:
    # Under a name of its own: what this connection may have been sent already is not to be missing for `attach`.
    async with connect_keeper(cli, find_places(cli), start=True, name="launch") as client:
        assert client is not None
        process = await client.launch_process(program, value, token_budget=token_budget)
        process.detach()
    cli.out.record("detached", process_id=process.process_id, program=process.program)
    cli.out.result(process.process_id)
    return OK


async def _detached(cli: Cli, client: PieClient, process: Process) -> int:
    capabilities = client.capabilities
    if capabilities is None or not capabilities.survives_disconnect:
        await process.aclose()
        msg = f"--detach is not possible on this engine (generation {client.generation}): it ends processes "
        raise UserError(msg + "with the connection that launched them", code=FAILED)
    process.detach()
    cli.out.record("detached", process_id=process.process_id, program=process.program)
    cli.out.result(process.process_id)
    return OK


@click.command("attach", short_help="Follow a process that is already running")
@click.argument("process_id")
@click.option(
    "--files", "folder", metavar="DIR", type=click.Path(file_okay=False), help="Save received files here."
)
@click.option("--again", is_flag=True, help="From the beginning, not from where the last 'attach' stopped.")
@asynchronous
async def attach(cli: Cli, *, process_id: str, folder: str | None, again: bool) -> int:
    """Follow the process PROCESS_ID, or the only one whose id begins so, to its end.

    A process of a keeper's is followed from where the last 'attach' stopped, also after its end, and goes on after a
    Ctrl-C. Others: Ctrl-C leaves them to themselves on engines of generation 0.4; those of 0.5 end a process with the
    connection, and give it to nobody while the connection that launched it lasts.
    """
    async with keeper_of(cli, process_id) as kept:
        if kept is not None:
            client, row = kept
            if again:
                from pie_anyio.keeper import rewind

                await rewind(client, row.id)
            return await _attach(cli, client, row.id, folder)
    async with cli.connect() as client:
        return await _attach(cli, client, await resolve_id(client, process_id), folder)


async def _attach(cli: Cli, client: PieClient, process_id: str, folder: str | None) -> int:
    process = await client.attach_process(process_id)
    process.detach()
    cli.out.record("attached", process_id=process.process_id)
    code = await follow(cli, process, folder)
    cli.out.record("done", exit_code=code)
    return code


async def follow(cli: Cli, process: Process, folder: str | None) -> int:
    """Print what a process sends until it ends; give the exit code."""
    ended_line = True
    async for event in process:
        match event.kind:
            case Event.Stdout | Event.Stderr:
                cli.out.stream(event.value, error=event.kind is Event.Stderr)
                ended_line = event.value.endswith("\n")
            case Event.Message:
                cli.out.stream(f"{event.value}\n")
            case Event.File:
                await _take_file(cli, event.value, folder)
                continue
            case Event.Gap:
                cli.out.note(f"output was lost here: {event.value}")
            case _:  # the terminal event, which the iteration ends after
                continue
        cli.out.record(str(event.kind), value=event.value)
    if not ended_line:
        cli.out.stream("\n")
    return _finish(cli, process)


def _finish(cli: Cli, process: Process) -> int:
    """Print the value; a failure is an error line."""
    try:
        value = process.return_value
    except (ProcessFailed, ProcessTerminated) as exc:
        by = "" if isinstance(exc, ProcessFailed) else " (terminated)"
        detail = getattr(exc, "detail", "") or str(exc)
        cli.out.record("failed", process_id=process.process_id, error=type(exc).__name__, message=detail)
        cli.out.urgent(f"error: process {process.process_id} failed{by}: {neutralised(detail)}")
        return FAILED
    cli.out.record("return", process_id=process.process_id, value=value, seconds=process.timings.total)
    cli.out.value(value)
    return OK


async def _take_file(cli: Cli, file: ReceivedFile, folder: str | None) -> None:
    path: Path | None = None
    if folder is not None:
        path = await to_thread.run_sync(file.save, folder)
        cli.out.note(f"file: {neutralised(str(path))} ({len(file)} bytes)")
    else:
        name = neutralised(file.file_name("without a name"))
        cli.out.note(f"file: {name} ({len(file)} bytes), not saved; --files DIR saves files")
    cli.out.record("file", name=file.name, bytes=len(file), path=None if path is None else str(path))
