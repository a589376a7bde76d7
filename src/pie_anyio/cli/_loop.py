# SPDX-License-Identifier: Apache-2.0
"""Run a command on an event loop, with Ctrl-C: the first one stops what runs, the second one leaves at once."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import anyio
import click

from pie_anyio import PieClient, Receipt, Reconnect

from ._errors import INTERRUPTED, diagnose
from ._output import Output, receipt_line
from ._settings import Settings, shared_options

_SHOW_CURSOR: Final = "\x1b[?25h"


class Cli:
    """What a command works with: its settings, its output, a way to connect, and what an interrupt stops."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.out: Output = settings.output()
        self.interrupted = False
        self._scope: anyio.CancelScope | None = None

    @asynccontextmanager
    async def connect(self, *, reconnect: Reconnect | None = None) -> AsyncGenerator[PieClient]:
        """Connect for the length of a block; what did not simply return or fail in it is accounted for at the end.

        ``reconnect``: come back when the connection is lost; for commands that take long.

        Raises: as entering a client does.

        Cancellation: what the block started is ended.
        """
        client = self.settings.client(reconnect=reconnect)
        try:
            async with client:
                yield client
        finally:
            self.account(client.receipt)

    def account(self, receipt: Receipt) -> None:
        """Print a receipt if it tells of more than what returned or failed."""
        if receipt.terminated or not receipt.clean:
            self.out.urgent(receipt_line(receipt))

    @contextmanager
    def stoppable(self) -> Generator[None]:
        """Have an interrupt end this block and nothing around it, which goes on behind the block."""
        with anyio.CancelScope() as scope:
            outer, self._scope = self._scope, scope
            try:
                yield
            finally:
                self._scope = outer

    def interrupt(self) -> None:
        """Stop what is to be stopped; the second time, leave at once."""
        if self.interrupted or self._scope is None:
            leave_at_once()
            return
        self.interrupted = True
        self._scope.cancel()


def asynchronous(function: Callable[..., Awaitable[int]]) -> Callable[..., int]:
    """Make a click callback of ``async def command(cli, ...) -> int``, which takes the shared options too."""

    @shared_options(top=False)
    @click.pass_context
    @functools.wraps(function)
    def callback(context: click.Context, /, **options: Any) -> int:
        cli = Cli(Settings.of(context))
        backend, backend_options = cli.settings.backend_options()
        main = functools.partial(function, cli, **options)
        return anyio.run(supervise, main, cli, backend=backend, backend_options=backend_options)

    return callback


async def supervise(main: Callable[[], Awaitable[int]], cli: Cli) -> int:
    """Run a command until it is done or a signal comes; give its exit code.

    Cancellation: the command is cancelled.
    """
    code, failure = INTERRUPTED, None
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch, signals, cli)
            with cli.stoppable():
                try:
                    code = await main()
                except Exception as exc:  # noqa: BLE001 - raised again outside the task group, which would wrap it
                    failure = exc
            tasks.cancel_scope.cancel()
    return _conclude(cli, code, failure)


def _conclude(cli: Cli, code: int, failure: Exception | None) -> int:
    """Give the exit code; an interrupt counts for more than what went wrong while stopping, which is told only."""
    if failure is not None and not cli.interrupted:
        raise failure
    if failure is not None:
        cli.out.error(diagnose(failure))
    return INTERRUPTED if cli.interrupted else code


async def _watch(signals: AsyncIterator[signal.Signals], cli: Cli) -> None:
    async for number in signals:
        if not cli.interrupted:
            cli.out.urgent(f"{number.name}: stopping what is running; once more leaves at once")
        cli.interrupt()


def leave_at_once() -> None:
    """End this process without waiting for anything or anybody."""
    if sys.stderr.isatty():
        sys.stderr.write(_SHOW_CURSOR)  # a progress bar had hidden it
        sys.stderr.flush()
    os._exit(INTERRUPTED)
