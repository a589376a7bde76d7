# SPDX-License-Identifier: Apache-2.0
"""The top command, and the turning of every exception into a line and an exit code."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from io import TextIOWrapper
from typing import Final, TextIO

import click

from ._bench import bench
from ._demo import demo
from ._engine import engine
from ._errors import FAILED, INTERRUPTED, OK, UserError, diagnose
from ._inspect import install, ping, status
from ._keep import keep
from ._map import map_command
from ._output import Output, neutralised
from ._processes import kill, ps, send_file, signal_command
from ._run import attach, run_command
from ._settings import shared_options

_EPILOG: Final = """\
Every command takes these options too, after its name. Exit codes: 0 all runs returned, 1 some failed, 2 usage,
3 no connection or no login, 130 interrupted. PIE_DEBUG=1 shows tracebacks.
"""


def own_version() -> str:
    """Give the version of the installed package; a checkout that was never installed has none."""
    try:
        return version("pie-anyio")
    except PackageNotFoundError:
        return "unknown (not installed)"


@click.group(
    epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@shared_options(top=True)
@click.version_option(own_version(), prog_name="pie-anyio")
def app() -> None:
    """Run programs on a Pie engine: one, or thousands at a time, with nothing left running behind."""


for _command in (
    *(run_command, map_command, ps, attach, signal_command, kill, send_file),
    *(install, ping, status, keep, engine, bench, demo),
):
    app.add_command(_command)


def run(arguments: Sequence[str]) -> int:
    """Run the command line and give its exit code; nothing but ``SystemExit`` of Python itself gets out."""
    for stream in (sys.stdout, sys.stderr):
        # A text that the terminal's encoding lacks must not end the program.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    out = Output(json="--json" in arguments)
    with warnings.catch_warnings(), _logging_to(out):
        warnings.showwarning = _show_warning(out)
        try:
            code = app.main(args=list(arguments), prog_name="pie-anyio", standalone_mode=False)
        except (KeyboardInterrupt, click.Abort):
            return INTERRUPTED
        except BrokenPipeError:
            _silence_stdout()
            return FAILED
        except Exception as exc:  # noqa: BLE001 - no exception leaves the command line
            return _report(exc, out)
    return code if isinstance(code, int) else OK


def _report(exc: Exception, out: Output) -> int:
    if os.environ.get("PIE_DEBUG") and not isinstance(exc, (click.ClickException, UserError)):
        out.urgent("".join(traceback.format_exception(exc)).rstrip("\n"))  # made safe, as all that is printed
    diagnosis = diagnose(exc)
    out.error(diagnosis)
    return diagnosis.code


class _LogHandler(logging.Handler):
    """Prints what the library has to say; it may quote an engine, so it goes the way of all output."""

    def __init__(self, out: Output) -> None:
        super().__init__(logging.WARNING)
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        self._out.urgent(f"{record.levelname.lower()}: {neutralised(self.format(record))}")


@contextmanager
def _logging_to(out: Output) -> Generator[None]:
    handler, root = _LogHandler(out), logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def _silence_stdout() -> None:
    """Have Python's own last flush of standard output go nowhere: whoever read it is gone."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _show_warning(out: Output) -> Callable[..., None]:
    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        out.urgent(f"warning: {neutralised(str(message))}")

    return show
