# SPDX-License-Identifier: Apache-2.0
"""``map``: one program over a file of inputs, with a results file that a later run goes on from."""

from __future__ import annotations

from typing import Any

import attrs
import click

from pie_anyio import Failed, MapCall, ProcessError, Receipt, Reconnect, Timings

from ._errors import FAILED, OK, diagnose
from ._figures import seconds, spread
from ._inputs import Feed, ItemFile, ItemId
from ._journal import Journal
from ._loop import Cli, asynchronous
from ._output import receipt_fields, receipt_line
from ._progress import STYLES, Progress, Style, Tally, make_progress


def read_on_error(context: click.Context, parameter: click.Parameter, value: str) -> str | int | float:
    """Read the option: ``raise``, ``collect``, a number of failures, or a share of all."""
    if value in ("raise", "collect"):
        return value
    try:
        number = float(value) if "." in value else int(value)
    except ValueError:
        number = -1
    if number < 0 or (isinstance(number, float) and not 0 < number < 1):
        msg = f"{value!r} is neither 'raise', 'collect', a number of failures, nor a fraction such as 0.1"
        raise click.BadParameter(msg, context, parameter)
    return number


@attrs.frozen(kw_only=True)
class _Job:
    """One invocation: what to run, and how."""

    cli: Cli
    program: str
    items: ItemFile
    ids: set[ItemId]
    journal: Journal
    retry_failed: bool
    style: Style | None
    options: dict[str, Any]


@click.command("map", short_help="Run a program over a file of inputs")
@click.argument("program")
@click.argument("source", metavar="IN.jsonl", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "--output", "-o", metavar="OUT.jsonl", required=True, help="Where outcomes go; - is standard output."
)
@click.option("--limit", type=click.IntRange(min=1), default=64, show_default=True, help="Runs at a time.")
@click.option(
    "--on-error",
    default="collect",
    show_default=True,
    callback=read_on_error,
    metavar="raise|collect|N|0.N",
    help="Stop at the first failure, never, after more than N, or after more than that share.",
)
@click.option("--ordered", is_flag=True, help="Write outcomes in the order of the inputs.")
@click.option("--retry-failed", is_flag=True, help="Run again what failed in an earlier run, too.")
@click.option(
    "--retry-lost",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Run again, up to N times, what was lost with its connection; for programs that may run twice.",
)
@click.option("--token-budget", type=click.IntRange(min=1), help="Tokens for each process (0.4).")
@click.option("--progress", "style", type=click.Choice(STYLES), help="[bar on a terminal, plain elsewhere]")
@asynchronous
async def map_command(
    cli: Cli,
    *,
    program: str,
    source: str,
    output: str,
    style: Style | None,
    retry_failed: bool,
    **options: Any,
) -> int:
    """Run PROGRAM once for each line of IN.jsonl, and write one line per outcome to OUT.jsonl.

    A line is {"id": ..., "input": ...}, or any JSON value, which then is the input and has its line number for id.
    Started again with the same OUT.jsonl, it skips what has returned or failed, and runs the rest. Ctrl-C ends the
    live runs on the engine. A connection that is lost is restored; what the engine ended with it is lost.
    """
    items = ItemFile(source)
    ids = items.check()
    with Journal(output) as journal:
        if journal.torn:
            cli.out.note(f"{output}: an unfinished last line was taken away")
        job = _Job(
            cli=cli,
            program=program,
            items=items,
            ids=ids,
            journal=journal,
            retry_failed=retry_failed,
            style=style,
            options=options,
        )
        return await _go_on(job)


async def _go_on(job: _Job) -> int:
    """Run what is not settled yet."""
    cli = job.cli
    settled = job.journal.settled(retry_failed=job.retry_failed) & job.ids
    count = len(job.ids) - len(settled)
    cli.out.record("start", program=job.program, total=len(job.ids), skipped=len(settled))
    if settled:
        cli.out.note(f"{len(settled)} of {len(job.ids)} are done already; {count} to go")
    failed = job.journal.count(settled, "failed")
    if failed:
        cli.out.note(f"{failed} of those have failed; --retry-failed runs them again")
    if count:
        await _run(job, settled, count)
    returned = job.journal.count(job.ids, "returned")
    code = OK if returned == len(job.ids) else FAILED
    cli.out.record("done", returned=returned, total=len(job.ids), exit_code=code)
    return code


async def _run(job: _Job, settled: set[ItemId], count: int) -> None:
    feed = Feed(job.items, settled, count)
    progress = make_progress(job.style, Tally(count), job.program, job.cli.out)
    async with job.cli.connect(reconnect=Reconnect()) as client:
        call = client.map_processes(job.program, feed, **job.options)
        try:
            async with call as outcomes:
                with progress:
                    await _take_outcomes(job, outcomes, feed, progress)
        except ExceptionGroup as group:
            _take_errors(job, group, feed, progress)
            job.cli.out.error(diagnose(group))
        finally:
            _summarise(job.cli, progress, call.receipt)


async def _take_outcomes(job: _Job, outcomes: MapCall, feed: Feed, progress: Progress) -> None:
    async for outcome in outcomes:
        job.journal.write(feed.settle(outcome.index), outcome)
        progress.add(outcome, outcomes.live)


def _take_errors(job: _Job, group: ExceptionGroup, feed: Feed, progress: Progress) -> None:
    """Write down the failure that stopped a map, which the map raises in place of giving it as an outcome."""
    for error in group.exceptions:
        if isinstance(error, ProcessError) and error.index is not None and feed.holds(error.index):
            outcome = Failed(
                index=error.index,
                key=None,
                process_id=error.process_id,
                error=error,
                timings=Timings(submitted=0.0),
            )
            job.journal.write(feed.settle(error.index), outcome)
            progress.tally.add(outcome)


def _summarise(cli: Cli, progress: Progress, receipt: Receipt) -> None:
    """Say how it went; an interrupted map ends here too, once its runs have been stopped."""
    tally = progress.tally
    cli.out.record(
        "summary", outcomes=dict(tally.counts), seconds=progress.elapsed, receipt=receipt_fields(receipt)
    )
    rate = tally.done / progress.elapsed if progress.elapsed else 0.0
    cli.out.note(
        f"{tally.done} outcomes in {seconds(progress.elapsed)}, {rate:.3g}/s; {spread(tally.durations)}"
    )
    say = cli.out.note if receipt.clean and not receipt.terminated else cli.out.urgent
    say(receipt_line(receipt))
