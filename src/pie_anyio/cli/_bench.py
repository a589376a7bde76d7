# SPDX-License-Identifier: Apache-2.0
"""``bench``: how many runs of a program an engine gets through, and how long one takes."""

from __future__ import annotations

import click

from pie_anyio import PieClient

from ._errors import FAILED, OK
from ._examples import examples_folder
from ._figures import percentiles, seconds, spread
from ._loop import Cli, asynchronous
from ._output import receipt_fields, receipt_line
from ._progress import STYLES, Progress, Style, Tally, make_progress

_ECHO = "echo@0.1.0"


@click.command("bench", short_help="Measure throughput and latency")
@click.argument("program", default=_ECHO)
@click.option("--count", "-n", type=click.IntRange(min=1), default=200, show_default=True, help="Runs.")
@click.option("--limit", type=click.IntRange(min=1), default=16, show_default=True, help="Runs at a time.")
@click.option("--progress", "style", type=click.Choice(STYLES), help="[bar on a terminal, plain elsewhere]")
@asynchronous
async def bench(cli: Cli, *, program: str, count: int, limit: int, style: Style | None) -> int:
    """Run PROGRAM (default: echo@0.1.0, uploaded if missing) many times, and print throughput and latencies."""
    async with cli.connect() as client:
        if program == _ECHO and not await client.check_program(_ECHO):
            folder = examples_folder() / "echo"
            await client.install_program(folder / "main.py", folder / "Pie.toml")
        progress = make_progress(style, Tally(count), program, cli.out)
        await _run(client, program, count, limit, progress)
    tally, receipt = progress.tally, client.receipt
    cli.out.record(
        "bench",
        program=program,
        count=count,
        limit=limit,
        returned=tally.counts["returned"],
        seconds=progress.elapsed,
        per_second=tally.done / progress.elapsed,
        latency=percentiles(tally.durations),
        first_output=percentiles(tally.first_outputs),
        receipt=receipt_fields(receipt),
    )
    cli.out.table(
        ["FIGURE", "VALUE"],
        [
            ["runs", f"{tally.done}, {tally.counts['returned']} returned, {limit} at a time"],
            ["throughput", f"{tally.done / progress.elapsed:.4g} runs/s ({seconds(progress.elapsed)})"],
            ["latency", spread(tally.durations)],
            ["first output", spread(tally.first_outputs)],
        ],
    )
    cli.out.note(receipt_line(receipt))
    return OK if tally.counts["returned"] == count else FAILED


async def _run(client: PieClient, program: str, count: int, limit: int, progress: Progress) -> None:
    inputs = ({"number": number} for number in range(count))
    async with client.map_processes(program, inputs, limit=limit, on_error="collect") as outcomes:
        with progress:
            async for outcome in outcomes:
                progress.add(outcome, outcomes.live)
