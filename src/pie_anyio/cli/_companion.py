# SPDX-License-Identifier: Apache-2.0
"""The keeper that belongs to the engine and the login of a command: find it, start it, connect to it."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
from anyio import fail_after, to_thread

from pie_anyio import ConnectError, PieClient

from ._errors import NO_CONNECTION, UserError
from ._loop import Cli

if TYPE_CHECKING:
    from pie_anyio.keeper import KeptProcess
    from pie_anyio.keeper.places import Places

_START_SECONDS: Final = 30.0
_TAIL_BYTES: Final = 2000
_LOG_BYTES: Final = 1_000_000
DEFAULT_IDLE: Final = 900.0


def is_possible() -> bool:
    """Tell whether there are keepers on this system: they need Unix sockets whose peers can be asked who they are."""
    return os.name == "posix"


def find_places(cli: Cli, socket: Path | None = None, store: Path | None = None) -> Places:
    """Say where the keeper for the settings of a command is.

    Raises:
        UserError: there are none on this system.
    """
    if not is_possible():
        msg = "a keeper needs Unix sockets, which this system lacks"
        raise UserError(msg)
    from pie_anyio.keeper.places import Places

    settings = cli.settings
    places = Places.find(PieClient(settings.url).url, settings.identity, settings.username)
    return attrs.evolve(
        places,
        socket=places.socket if socket is None else socket.absolute(),
        store=places.store if store is None else store.absolute(),
    )


@asynccontextmanager
async def connect_keeper(
    cli: Cli, places: Places, *, start: bool, name: str = "cli"
) -> AsyncGenerator[PieClient | None]:
    """Connect to the keeper for the length of a block; gives None where there is none and none is to be started.

    ``name`` is that of the reader whose place in the events of each process is kept.

    Raises:
        UserError: it does not start.
        KeeperError: its directory is not safe.
        ConnectError: it does not answer, or has not reached its engine yet.

    Cancellation: the connection is closed; a keeper that was started goes on.
    """
    from pie_anyio.keeper.secure import make_private_folder

    async with AsyncExitStack() as stack:
        client: PieClient | None = None
        if places.socket.exists():
            make_private_folder(places.socket.parent)
            try:
                client = await stack.enter_async_context(_client(cli, places, name))
            except ConnectError as exc:
                if exc.status is not None:
                    raise
        if client is None and start:
            await start_keeper(cli, places)
            client = await stack.enter_async_context(_client(cli, places, name))
        yield client


def _client(cli: Cli, places: Places, name: str) -> PieClient:
    return PieClient(places.url, f"pie-anyio/{name}", connect_timeout=cli.settings.connect_timeout)


async def kept_rows(cli: Cli) -> list[KeptProcess]:
    """List what the keeper has, also where it has to be started for that; nothing where there never was one.

    Raises: as :func:`connect_keeper`.

    Cancellation: harmless.
    """
    if not is_possible() or not (places := find_places(cli)).exist:
        return []
    from pie_anyio.keeper import kept_processes

    async with connect_keeper(cli, places, start=True) as client:
        assert client is not None
        return await kept_processes(client)


@asynccontextmanager
async def keeper_of(
    cli: Cli, text: str, *, name: str = "cli"
) -> AsyncGenerator[tuple[PieClient, KeptProcess] | None]:
    """Connect to the keeper of the only process whose id begins with ``text``; gives None where it has none such.

    Raises:
        UserError: there is more than one; and as :func:`connect_keeper`.

    Cancellation: as :func:`connect_keeper`.
    """
    wanted = text.strip().lower()
    rows = [row for row in await kept_rows(cli) if wanted and row.id.startswith(wanted)]
    if len(rows) > 1:
        msg = f"{text!r} begins the ids of {len(rows)} processes: {', '.join(row.id for row in rows[:5])}"
        raise UserError(msg)
    if not rows:
        yield None
        return
    async with connect_keeper(cli, find_places(cli), start=True, name=name) as client:
        assert client is not None
        yield client, rows[0]


# --- starting --------------------------------------------------------------------------------------------------------


async def start_keeper(cli: Cli, places: Places, idle: float | None = DEFAULT_IDLE) -> None:
    """Start a keeper in the background, and wait until it can be connected to; nothing where one is running.

    Raises:
        UserError: it ended at once; the message is its own.

    Cancellation: it goes on.
    """
    from pie_anyio.keeper.secure import make_private_file, make_private_folder

    for path in (places.store, places.socket):
        make_private_folder(path.parent)
    make_private_file(places.log)
    if places.log.stat().st_size > _LOG_BYTES:
        os.truncate(places.log, 0)
    before = places.log.stat().st_size
    said = ""
    with fail_after(_START_SECONDS):
        said = await to_thread.run_sync(_spawn, cli, places, idle, abandon_on_cancel=True)
    if said or await _answers(cli, places):
        return
    with places.log.open("rb") as log:
        log.seek(max(before, places.log.stat().st_size - _TAIL_BYTES))
        reason = log.read().decode(errors="replace").strip()
    msg = f"the keeper did not start: {reason or 'it said nothing'}"
    raise UserError(msg, hint=f"its log is {places.log}", code=NO_CONNECTION)


async def _answers(cli: Cli, places: Places) -> bool:
    """Tell whether a keeper is there after all: the one that was before, or that somebody else has just started."""
    try:
        async with _client(cli, places, "cli"):
            return True
    except ConnectError:
        return False


def _spawn(cli: Cli, places: Places, idle: float | None) -> str:
    """Start the keeper as the leader of a session of its own; give its first line, or nothing when it has ended."""
    arguments = [
        *(sys.executable, "-m", "pie_anyio.cli", "keep", "--foreground", "--quiet"),
        *("--socket", str(places.socket), "--store", str(places.store)),
        *("--idle", "never" if idle is None else f"{idle:f}"),
    ]
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as pipe:
        try:
            # Not by subprocess, which would complain that nobody waits for it.
            os.posix_spawn(
                sys.executable,
                arguments,
                {**os.environ, **cli.settings.environment()},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, writing, 1),
                    (os.POSIX_SPAWN_OPEN, 2, os.fspath(places.log), os.O_WRONLY | os.O_APPEND, 0),
                ],
                setsid=True,
            )
        finally:
            os.close(writing)
        return pipe.readline()
