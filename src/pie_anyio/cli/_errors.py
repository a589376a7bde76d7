# SPDX-License-Identifier: Apache-2.0
"""Exit codes, and what an exception means to somebody at a terminal: a line, a hint, a code."""

from __future__ import annotations

from typing import Final

import attrs
import click

from pie_anyio import AuthenticationError, ConnectError, InvalidRequest, KeyFileError, PieError

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NO_CONNECTION: Final = 3
INTERRUPTED: Final = 130


class UserError(Exception):
    """Something that the user can put right: shown as one line and a hint, never as a traceback."""

    def __init__(self, message: str, *, hint: str = "", code: int = USAGE) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


@attrs.frozen
class Diagnosis:
    """What to tell about an exception."""

    kind: str
    message: str
    hint: str
    code: int


def diagnose(exc: BaseException) -> Diagnosis:
    """Say what an exception means to the user."""
    kind = type(exc).__name__
    match exc:
        case UserError():
            return Diagnosis("UsageError" if exc.code == USAGE else "Error", str(exc), exc.hint, exc.code)
        case click.UsageError():
            path = exc.ctx.command_path if exc.ctx else "pie-anyio"
            return Diagnosis("UsageError", exc.format_message(), f"try '{path} --help'", USAGE)
        case click.ClickException():
            return Diagnosis(kind, exc.format_message(), "", USAGE)
        case AuthenticationError():
            hint = "--username and --key, or PIE_TOKEN, say who you are; 'pie-anyio ping' tries them"
            return Diagnosis(kind, str(exc), hint, NO_CONNECTION)
        case ConnectError():
            hint = "--url or PIE_URL says where the engine is; 'pie-anyio engine' serves a simulated one"
            return Diagnosis(kind, str(exc), hint, NO_CONNECTION)
        case InvalidRequest() | KeyFileError():
            return Diagnosis(kind, str(exc), "", USAGE)
        case ExceptionGroup(exceptions=[first, *others]):
            inner = diagnose(first)
            more = f" (and {len(others)} more)" if others else ""
            return attrs.evolve(inner, message=f"{inner.message}{more}")
        case PieError():
            return Diagnosis(kind, str(exc), "", FAILED)
        case OSError():
            name = f"{exc.filename}: " if exc.filename is not None else ""
            return Diagnosis(kind, f"{name}{exc.strerror or exc}", "", FAILED)
        case _:
            hint = "this is a bug in pie-anyio; PIE_DEBUG=1 shows where"
            return Diagnosis(kind, f"{kind}: {exc}", hint, FAILED)
