# SPDX-License-Identifier: Apache-2.0
"""``keep``: start a keeper, stop it, or be it."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pie_anyio import Reconnect

from ._companion import connect_keeper, find_places, start_keeper
from ._errors import OK, UserError
from ._loop import Cli, asynchronous
from ._output import neutralised

if TYPE_CHECKING:
    from pie_anyio.keeper.places import Places

_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_RECONNECT: Final = Reconnect(attempts=None, maximum=30.0)


class Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic in newer versions of click only
    """A number of seconds, or of what the letter behind it says; "never" is None."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
        if value == "never":
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value))
        if match is None or not float(match[1]):
            self.fail(f"{value!r} is no duration; write 90s, 15m, 2h or never", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


@click.command("keep", short_help="Keep processes while their clients come and go")
@click.option(
    "--socket", type=click.Path(path_type=Path), metavar="PATH", help="Where clients connect to it."
)
@click.option("--store", type=click.Path(path_type=Path), metavar="PATH", help="The file for what it keeps.")
@click.option(
    "--idle",
    type=Duration(),
    default="15m",
    metavar="TIME",
    help="End after so long with nothing to do [15m].",
)
@click.option("--foreground", is_flag=True, help="Be the keeper, and log to standard error.")
@click.option("--stop", is_flag=True, help="Stop the keeper that is running.")
@asynchronous
async def keep(
    cli: Cli, *, socket: Path | None, store: Path | None, idle: float | None, foreground: bool, stop: bool
) -> int:
    """Start a keeper: a process that holds the engine's connection, so that clients may leave and come back.

    The URL that it prints is one for --url, and for clients of every kind. It serves this user of this machine alone.
    'run --detach' starts one by itself.
    """
    if stop and foreground:
        msg = "give either --foreground or --stop"
        raise UserError(msg)
    places = find_places(cli, socket, store)
    if foreground:
        return await _serve(cli, socket or places.socket, store or places.store, idle)
    if stop:
        return await _stop(cli, places)
    await start_keeper(cli, places, idle)
    cli.out.record("keeper", url=places.url, store=str(places.store), log=str(places.log))
    cli.out.result(places.url)
    return OK


async def _serve(cli: Cli, socket: Path, store: Path, idle: float | None) -> int:
    from pie_anyio.keeper import Keeper

    keeper = Keeper(lambda: cli.settings.client(reconnect=_RECONNECT), socket=socket, store=store, idle=idle)

    def announce() -> None:
        cli.out.record("keeper", url=keeper.url, store=str(store))
        cli.out.result(keeper.url)

    with _logging(), cli.stoppable():
        await keeper.serve(started=announce)
    cli.interrupted = False  # a signal is how a keeper is ended
    return OK


@contextmanager
def _logging() -> Generator[None]:
    """Have what the package logs on standard error, with the time, and nothing of it twice."""
    handler, logger = logging.StreamHandler(sys.stderr), logging.getLogger("pie_anyio")
    handler.setFormatter(_Plain("%(asctime)s %(levelname)s %(message)s"))
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


class _Plain(logging.Formatter):
    """Some of it are an engine's words, which are not to control a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return neutralised(super().format(record))


async def _stop(cli: Cli, places: Places) -> int:
    from pie_anyio.keeper import stop_keeper

    async with connect_keeper(cli, places, start=False) as client:
        facts = None if client is None else await stop_keeper(client)
    if facts is None:
        cli.out.note("no keeper is running")
        return OK
    cli.out.record("stopped", **facts)
    cli.out.note(f"the keeper is stopping; it had {facts['running']} running processes")
    return OK
