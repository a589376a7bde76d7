# SPDX-License-Identifier: Apache-2.0
"""Run a command on an event loop, with Ctrl-C: the first one stops what runs, the second one leaves at once."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import anyio
import click

from pie_anyio import PieClient

from ._errors import FAILED, INTERRUPTED, diagnose
from ._output import Output, receipt_line
from ._settings import Settings, shared_options

_SHOW_CURSOR: Final = "\x1b[?25h"


class Cli:
    """What a command works with: its settings, its output, and a way to connect."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.out: Output = settings.output()

    def connect(self) -> PieClient:
        """Make the client; the command enters it."""
        return self.settings.client()

    def account(self, client: PieClient) -> None:
        """Print the receipt where there is something to account for beyond what returned or failed."""
        receipt = client.receipt
        if receipt.terminated or not receipt.clean:
            self.out.urgent(receipt_line(receipt))


def asynchronous(function: Callable[..., Awaitable[int]]) -> Callable[..., int]:
    """Make a click callback of ``async def command(cli, ...) -> int``, which takes the shared options too."""

    @shared_options(top=False)
    @click.pass_context
    @functools.wraps(function)
    def callback(context: click.Context, /, **options: Any) -> int:
        cli = Cli(Settings.of(context))
        backend, backend_options = cli.settings.backend_options()
        main = functools.partial(function, cli, **options)
        return anyio.run(supervise, main, cli.out, backend=backend, backend_options=backend_options)

    return callback


async def supervise(main: Callable[[], Awaitable[int]], out: Output) -> int:
    """Run a command until it is done or a signal comes; give its exit code.

    Cancellation: the command is cancelled.
    """
    code, failure = FAILED, None
    scope = anyio.CancelScope()
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch, signals, scope, out)
            with scope:
                try:
                    code = await main()
                except Exception as exc:  # noqa: BLE001 - raised again outside the task group, which would wrap it
                    failure = exc
            tasks.cancel_scope.cancel()
    if scope.cancel_called:
        if failure is not None:
            out.error(diagnose(failure))
        return INTERRUPTED
    if failure is not None:
        raise failure
    return code


async def _watch(signals: AsyncIterator[signal.Signals], scope: anyio.CancelScope, out: Output) -> None:
    async for number in signals:
        if scope.cancel_called:
            leave_at_once()
        scope.cancel()
        out.urgent(f"{number.name}: stopping what is running; once more leaves at once")


def leave_at_once() -> None:
    """End this process without waiting for anything or anybody."""
    if sys.stderr.isatty():
        sys.stderr.write(_SHOW_CURSOR)  # a progress bar had hidden it
        sys.stderr.flush()
    os._exit(INTERRUPTED)
