# SPDX-License-Identifier: Apache-2.0
"""``ping``, ``status`` and ``install``: the engine itself."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import click
from anyio import sleep, to_thread

from pie_anyio import PieClient, parse_manifest

from ._errors import FAILED, OK, UserError
from ._figures import percentile, seconds
from ._inputs import is_object
from ._loop import Cli, asynchronous

_SUFFIXES: Final = {
    "kv_pages_used": "key-value pages in use",
    "kv_pages_total": "key-value pages",
    "total_batches": "batches",
    "total_tokens_processed": "tokens",
    "total_requests_processed": "requests",
    "max_forward_requests_observed": "largest batch",
    "avg_batch_latency_us": "mean batch latency (us)",
    "last_batch_latency_us": "last batch latency (us)",
}
"""Figures that every engine has, each behind the name of a model, which may contain dots itself."""


@click.command("ping", short_help="Measure how long the engine takes to answer")
@click.option("--count", "-c", type=click.IntRange(min=1), default=4, show_default=True, help="How many.")
@click.option(
    "--interval", type=click.FloatRange(min=0), default=0.2, show_default=True, help="Seconds between two."
)
@asynchronous
async def ping(cli: Cli, *, count: int, interval: float) -> int:
    """Connect, log in if told to, and measure how long the engine takes to answer."""
    times: list[float] = []
    began = perf_counter()
    async with cli.connect() as client:
        for number in range(1, count + 1):
            if number > 1:
                await sleep(interval)
            asked = perf_counter()
            await client.ping()
            times.append(perf_counter() - asked)
            if number == 1:
                cli.out.note(f"connected to {client.url} in {seconds(asked - began)}, {_generation(client)}")
            cli.out.record("ping", number=number, seconds=times[-1])
            cli.out.result(f"{number}: {seconds(times[-1])}")
        generation = client.generation
    ordered = sorted(times)
    middle = percentile(ordered, 50)
    cli.out.record("done", generation=generation, min=ordered[0], median=middle, max=ordered[-1])
    cli.out.note(f"min {seconds(ordered[0])}, median {seconds(middle)}, max {seconds(ordered[-1])}")
    return OK


def _generation(client: PieClient) -> str:
    return f"engine generation {client.generation or 'unknown'}"


@click.command("status", short_help="Show the engine's figures")
@click.option("--full", is_flag=True, help="Every figure that the engine gives, under its own name.")
@asynchronous
async def status(cli: Cli, *, full: bool) -> int:
    """Show the engine's figures: cache pages, batches, tokens, and how many processes are listed."""
    async with cli.connect() as client:
        ok, text = await client.query("model_status", "")
        processes = await client.list_processes()
        generation = client.generation
    figures = _figures(text) if ok else None
    if figures is None:
        msg = f"the engine gave no figures: {text}"
        raise UserError(msg, code=FAILED)
    cli.out.record(
        "status", url=cli.settings.url, generation=generation, processes=len(processes), figures=figures
    )
    rows = [["engine generation", str(generation)], ["processes", str(len(processes))]]
    for name, value in figures.items():
        suffix = name.rpartition(".")[2]
        if full:
            rows.append([name, json.dumps(value)])
        elif suffix in _SUFFIXES:
            rows.append([f"{name.removesuffix(f'.{suffix}')}: {_SUFFIXES[suffix]}", json.dumps(value)])
    cli.out.table(["FIGURE", "VALUE"], rows)
    return OK


def _figures(text: str) -> dict[str, Any] | None:
    try:
        figures = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return figures if is_object(figures) else None


@click.command("install", short_help="Upload a program")
@click.argument("program_file", type=click.Path(exists=True, dir_okay=False))
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace what is installed under the same name and version.")
@asynchronous
async def install(cli: Cli, *, program_file: str, manifest: str, force: bool) -> int:
    """Upload PROGRAM_FILE (a component, or a script where the engine takes scripts) with its MANIFEST (Pie.toml)."""
    program = await to_thread.run_sync(_read_name, manifest)
    async with cli.connect() as client:
        there = await client.check_program(program)
        if not there or force:
            await client.install_program(program_file, manifest, force)
    cli.out.record("installed", program=program, unchanged=there and not force)
    if there and not force:
        cli.out.note(f"{program} was installed before and stays as it is; --force replaces it")
    cli.out.result(program)
    return OK


def _read_name(manifest: str) -> str:
    try:
        return parse_manifest(Path(manifest).read_text(encoding="utf-8")).program
    except (OSError, UnicodeDecodeError) as exc:
        msg = f"cannot read {manifest}: {exc}"
        raise UserError(msg) from exc
