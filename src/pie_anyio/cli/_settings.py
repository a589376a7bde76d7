# SPDX-License-Identifier: Apache-2.0
"""The options that every command takes, before or after its name, and what they make: a client and an output."""

from __future__ import annotations

import getpass
import os
import shlex
import stat
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import click

from pie_anyio import KeyFileError, PieClient, Reconnect

from ._errors import UserError
from ._output import Output

_F = TypeVar("_F", bound=Callable[..., Any])

DEFAULT_URL: Final = "ws://127.0.0.1:8080"
_META: Final = "pie_anyio.settings"
_BACKENDS: Final = ("asyncio", "trio", "uvloop")


@attrs.frozen(kw_only=True)
class Settings:
    """The shared options of one invocation."""

    url: str = DEFAULT_URL
    identity: str | None = None
    username: str | None = None
    key: str | None = None
    token_file: str | None = None
    require_tls: bool = False
    connect_timeout: float = 10.0
    backend: str = "asyncio"
    json: bool = False
    quiet: bool = False

    @classmethod
    def of(cls, context: click.Context) -> Settings:
        """Give what was said before and after the command's name; the latter wins."""
        return cls(**context.meta.get(_META, {}))

    def output(self) -> Output:
        """Make the streams to print on."""
        return Output(json=self.json, quiet=self.quiet)

    def client(self, *, reconnect: Reconnect | None = None) -> PieClient:
        """Make the client, not entered yet.

        Raises:
            UserError: the key or token cannot be used as it is.
        """
        token = self._token()
        if token is not None and (self.username or self.key):
            msg = "give either a token, or --username with --key, not both"
            raise UserError(msg, hint="unset PIE_TOKEN, PIE_TOKEN_FILE, PIE_USERNAME or PIE_KEY")
        key = self.key
        if key is not None and key != "agent":
            check_private(key, "private key file")
        return PieClient(
            self.url,
            self.identity,
            username=self.username,
            key=key,
            passphrase=ask_passphrase,
            token=token,
            require_tls=self.require_tls,
            connect_timeout=self.connect_timeout,
            reconnect=reconnect,
        )

    def environment(self) -> dict[str, str]:
        """Give the variables that have another command use the same engine and login: arguments, everybody can read."""
        fields = attrs.asdict(self, filter=lambda field, value: value and field.name not in ("json", "quiet"))
        texts = {name: "1" if value is True else str(value) for name, value in fields.items()}
        return {f"PIE_{name.upper()}": text for name, text in texts.items()}

    def _token(self) -> str | None:
        if self.token_file is not None:
            check_private(self.token_file, "token file")
            text = Path(self.token_file).expanduser().read_text(encoding="utf-8").strip()
            if not text:
                msg = f"the token file {self.token_file} is empty"
                raise UserError(msg)
            return text
        return os.environ.get("PIE_TOKEN") or None

    def backend_options(self) -> tuple[str, dict[str, Any]]:
        """Give the arguments of ``anyio.run``.

        Raises:
            UserError: uvloop was asked for and is not installed.
        """
        if self.backend != "uvloop":
            return self.backend, {}
        if find_spec("uvloop") is None:
            msg = "--backend uvloop needs the package uvloop"
            raise UserError(msg, hint='pip install "pie-anyio[fast]"')
        return "asyncio", {"use_uvloop": True}


def check_private(path: str, what: str) -> None:
    """Refuse a secret that other users of this machine can read.

    Raises:
        UserError: they can, or the file is not there.
    """
    file = Path(path).expanduser()
    try:
        mode = file.stat().st_mode
    except OSError as exc:
        msg = f"cannot read the {what} {path}: {exc.strerror}"
        raise UserError(msg) from exc
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        msg = f"the {what} {path} is open to other users (mode {stat.S_IMODE(mode):04o})"
        raise UserError(msg, hint=f"chmod 600 {shlex.quote(path)}")


def ask_passphrase() -> str:
    """Give the passphrase of a key: from the environment, or typed at the terminal.

    Raises:
        KeyFileError: there is nobody to ask.
    """
    given = os.environ.get("PIE_PASSPHRASE")
    if given is not None:
        return given
    if not sys.stdin.isatty():
        msg = "the private key is encrypted, and there is no terminal to ask for its passphrase: set PIE_PASSPHRASE"
        raise KeyFileError(msg)
    return getpass.getpass("Passphrase of the private key: ")


def _store(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is not None:
        assert parameter.name is not None
        context.meta.setdefault(_META, {})[parameter.name] = value


_OPTIONS: Final[tuple[tuple[tuple[str, ...], dict[str, Any]], ...]] = (
    (("--url",), {"metavar": "URL", "help": f"The engine: ws://, wss:// or ws+unix:// [{DEFAULT_URL}]"}),
    (("--identity",), {"metavar": "TENANT/USER", "help": "Whom to announce to engines of generation 0.5"}),
    (("--username",), {"metavar": "NAME", "help": "Log in with this name (0.4)"}),
    (("--key",), {"metavar": "FILE|agent", "help": "... and this private key, or the SSH agent's"}),
    (
        ("--token-file",),
        {"metavar": "FILE", "help": "Log in with the token in this file (0.4); or set PIE_TOKEN"},
    ),
    (
        ("--require-tls",),
        {"is_flag": True, "default": None, "help": "Refuse what is neither wss:// nor ws+unix://"},
    ),
    (
        ("--connect-timeout",),
        {"metavar": "SECONDS", "type": click.FloatRange(min=0, min_open=True), "help": "[10]"},
    ),
    (("--backend",), {"type": click.Choice(_BACKENDS), "help": "The event loop [asyncio]"}),
    (("--json",), {"is_flag": True, "default": None, "help": "One JSON object per line on standard output"}),
    (("--quiet", "-q"), {"is_flag": True, "default": None, "help": "Results and errors only"}),
)
_SHOWN: Final = ("--json", "--quiet", "--url")


def shared_options(*, top: bool) -> Callable[[_F], _F]:
    """Decorate with the shared options; the environment counts for the top command only, so that options win."""

    def decorate(function: _F) -> _F:
        for names, arguments in reversed(_OPTIONS):
            variable = "PIE_" + names[0].strip("-").replace("-", "_").upper() if top else None
            hidden = not top and names[0] not in _SHOWN
            option = click.option(
                *names,
                **arguments,
                callback=_store,
                expose_value=False,
                envvar=variable,
                show_envvar=top,
                hidden=hidden,
            )
            function = option(function)
        return function

    return decorate
