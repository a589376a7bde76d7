# SPDX-License-Identifier: Apache-2.0
"""The top of the command line: options, logins, errors and exit codes."""

from __future__ import annotations

import errno
import os
import runpy
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import click
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from pie_anyio import (
    AuthenticationError,
    ConnectError,
    ConnectionLost,
    InsecureTransportWarning,
    InvalidRequest,
    KeyFileError,
    PieClient,
)
from pie_anyio.cli import _app, _settings
from pie_anyio.cli._errors import Diagnosis, UserError, diagnose

from .conftest import Invoke, serve

# ------------------------------------------------------------------------------------------------------------ usage


def test_help(invoke: Invoke) -> None:
    """Every command is listed, and has help of its own."""
    result = invoke("--help")
    assert result.code == 0
    for command in _app.app.commands:
        assert command in result.stdout
        assert invoke(command, "-h").code == 0


def test_version(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is that of the installed package, or said not to be known."""
    assert invoke("--version").stdout == f"pie-anyio, version {_app.own_version()}\n"
    monkeypatch.setattr(_app, "version", lambda name: f"version of {name}")
    assert _app.own_version() == "version of pie-anyio"

    def nothing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(_app, "version", nothing)
    assert _app.own_version() == "unknown (not installed)"


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["--token", "x", "ping"], ["ping", "--count"], ["ps", "extra"]]
)
def test_bad_usage(invoke: Invoke, arguments: list[str]) -> None:
    """Exit code 2, a line, and a hint."""
    result = invoke(*arguments)
    assert result.code == 2
    assert result.stderr.startswith("error: ")
    assert "--help'" in result.stderr


@pytest.mark.parametrize("url", ["http://x", "ws://", "nonsense"])
def test_bad_urls(invoke: Invoke, url: str) -> None:
    """A URL that cannot be one is a mistake in usage."""
    assert invoke("ping", "--url", url).code == 2


def test_no_engine(invoke: Invoke) -> None:
    """Nobody there is exit code 3, in JSON too."""
    result = invoke("ping", "--url", "ws://127.0.0.1:1", "--json")
    assert result.code == 3
    assert result.record("error")["error"] == "ConnectError"
    assert result.record("error")["exit_code"] == 3
    assert "hint: --url" in result.stderr


def test_later_options_win(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option after the command beats one before it, which beats the environment."""
    monkeypatch.setenv("PIE_URL", "ws://127.0.0.1:1")
    assert "127.0.0.1:1:" in invoke("ping").stderr
    assert "127.0.0.1:2:" in invoke("--url", "ws://127.0.0.1:2", "ping").stderr
    assert "127.0.0.1:3:" in invoke("--url", "ws://127.0.0.1:2", "ping", "--url", "ws://127.0.0.1:3").stderr


def test_json_from_the_environment(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches have environment variables as well."""
    monkeypatch.setenv("PIE_JSON", "1")
    with serve() as served:
        assert invoke("ping", "-c", "1", "--url", served.url).record("done")["min"] > 0


def test_uvloop_that_is_missing(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra, and the message names it."""
    monkeypatch.setattr(_settings, "find_spec", lambda name: None)
    result = invoke("ping", "--backend", "uvloop")
    assert result.code == 2
    assert "pie-anyio[fast]" in result.stderr


# ----------------------------------------------------------------------------------------------------------- logins


@pytest.fixture
def key(tmp_path: Path) -> tuple[Path, str]:
    """A private key in a file, and its public half."""
    private = ed25519.Ed25519PrivateKey.generate()
    path = tmp_path / "id"
    path.touch(mode=0o600)
    path.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return path, public.decode()


def test_login_with_a_key(invoke: Invoke, key: tuple[Path, str]) -> None:
    """--username and --key log in; a stranger is exit code 3."""
    path, public = key
    with serve("v04", users={"alice": [public]}) as served:
        good = invoke("ping", "-c", "1", "--url", served.url, "--username", "alice", "--key", str(path))
        assert good.code == 0
        stranger = invoke("ping", "-c", "1", "--url", served.url, "--username", "bob", "--key", str(path))
        assert stranger.code == 3
        assert "hint: --username" in stranger.stderr


def test_login_with_a_token(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token comes from a private file or the environment; a wrong one is exit code 3, and is shown nowhere."""
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text("the-secret\n")
    with serve("v04", users={}, token="the-secret") as served:
        assert invoke("ping", "-c", "1", "--url", served.url, "--token-file", str(file)).code == 0
        monkeypatch.setenv("PIE_TOKEN", "wrong-secret")
        result = invoke("ping", "-c", "1", "--url", served.url)
        assert result.code == 3
        assert "wrong-secret" not in result.stderr
        both = invoke("ping", "--url", served.url, "--username", "alice")
        assert both.code == 2
        assert "not both" in both.stderr


@pytest.mark.parametrize("option", ["--key", "--token-file"])
def test_secrets_that_others_can_read_are_refused(invoke: Invoke, tmp_path: Path, option: str) -> None:
    """The mode is told, and how to put it right."""
    file = tmp_path / "secret"
    file.write_text("x")
    file.chmod(0o644)
    result = invoke("ping", "--username", "alice", option, str(file))
    assert result.code == 2
    if option == "--key":
        assert "0644" in result.stderr
        assert f"hint: chmod 600 {file}" in result.stderr
    missing = invoke("ping", "--username", "alice", option, str(tmp_path / "missing"))
    assert missing.code == 2
    assert "No such file" in missing.stderr


def test_an_empty_token_file(invoke: Invoke, tmp_path: Path) -> None:
    """It would be no login."""
    (tmp_path / "token").touch(mode=0o600)
    result = invoke("ping", "--token-file", str(tmp_path / "token"))
    assert result.code == 2
    assert "is empty" in result.stderr


def test_the_agent_is_no_file(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """--key agent asks the SSH agent; none is a line that says so."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with serve("v04", users={"alice": []}) as served:
        result = invoke("ping", "--url", served.url, "--username", "alice", "--key", "agent")
    assert result.code in {2, 3}
    assert "agent" in result.stderr


def test_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come from the environment or the terminal, never from arguments."""
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(KeyFileError, match="PIE_PASSPHRASE"):
        _settings.ask_passphrase()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda prompt: f"typed at {prompt}")
    assert _settings.ask_passphrase().startswith("typed at Passphrase")
    monkeypatch.setenv("PIE_PASSPHRASE", "given")
    assert _settings.ask_passphrase() == "given"


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (UserError("m"), "UsageError", 2),
        (UserError("m", code=1), "Error", 1),
        (click.UsageError("m"), "UsageError", 2),
        (click.FileError("f", "m"), "FileError", 2),
        (AuthenticationError("m"), "AuthenticationError", 3),
        (ConnectError("m"), "ConnectError", 3),
        (InvalidRequest("m"), "InvalidRequest", 2),
        (KeyFileError("m"), "KeyFileError", 2),
        (ConnectionLost("m"), "ConnectionLost", 1),
        (OSError(errno.ENOSPC, "No space left", "f"), "OSError", 1),
        (OSError("m"), "OSError", 1),
        (KeyError("m"), "KeyError", 1),
        (ExceptionGroup("g", [ConnectError("m")]), "ConnectError", 3),
    ],
)
def test_what_errors_mean(error: Exception, kind: str, code: int) -> None:
    """Each is a line and a code."""
    diagnosis = diagnose(error)
    assert (diagnosis.kind, diagnosis.code) == (kind, code)
    assert "m" in diagnosis.message or "No space left" in diagnosis.message


def test_groups_tell_their_first_error() -> None:
    """And how many there are besides."""
    group = ExceptionGroup("g", [InvalidRequest("first"), InvalidRequest("second")])
    assert diagnose(group) == Diagnosis("InvalidRequest", "first (and 1 more)", "", 2)


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    async def ping(client: PieClient) -> None:
        raise error

    monkeypatch.setattr(PieClient, "ping", ping)


@pytest.mark.parametrize("debug", [True, False])
def test_a_bug_shows_a_traceback_on_request(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, debug: bool
) -> None:
    """PIE_DEBUG=1 shows where; without it there is a line."""
    failing(monkeypatch, ZeroDivisionError("oh"))
    if debug:
        monkeypatch.setenv("PIE_DEBUG", "1")
    with serve() as served:
        result = invoke("ping", "--url", served.url)
    assert result.code == 1
    assert ("Traceback" in result.stderr) == debug
    assert "error: ZeroDivisionError: oh" in result.stderr
    monkeypatch.setenv("PIE_DEBUG", "1")
    assert "Traceback" not in invoke("fly").stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_outside_the_loop(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Ctrl-C before or after the loop is exit code 130 as well."""

    def main(**arguments: Any) -> int:
        raise error

    monkeypatch.setattr(_app.app, "main", main)
    assert invoke("ping").code == 130


def test_warnings_are_lines(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning has no path of ours in it."""

    def main(**arguments: Any) -> None:
        warnings.simplefilter("always")
        warnings.warn("careful\x1b[2J", InsecureTransportWarning, stacklevel=1)

    monkeypatch.setattr(_app.app, "main", main)
    result = invoke("ping")
    assert (result.code, result.stderr) == (0, "warning: careful\\x1b[2J\n")


def test_streams_that_are_not_text_wrappers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaced streams are left as they are."""
    import io

    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert _app.run(["--help"]) == 0


# ------------------------------------------------------------------------------------------------------ as a program


def pie(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pie_anyio.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **options)


def test_exit_codes_of_the_program() -> None:
    """They arrive at the shell."""
    assert pie("--help").returncode == 0
    assert pie("fly").returncode == 2
    assert pie("ping", "--url", "ws://127.0.0.1:1").returncode == 3


def test_a_reader_that_goes_away() -> None:
    """`pie-anyio ... | head` ends without a traceback."""
    with serve() as served:
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "pie_anyio.cli", "ping", "-c", "1", "--url", served.url]
        done = subprocess.run(
            command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=30, check=False
        )
        os.close(write)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_broken_pipe(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The last flush of standard output goes nowhere."""

    def main(**arguments: Any) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(_app.app, "main", main)
    assert _app.run(["ping"]) == 1
    os.write(1, b"unread")
    assert capfd.readouterr() == ("", "")


def start_main(monkeypatch: pytest.MonkeyPatch) -> Any:
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_module("pie_anyio.cli.__main__", run_name="__main__")
    return exit_info.value.code


def test_main(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The console script's function exits with the code."""
    monkeypatch.setattr(sys, "argv", ["pie-anyio", "fly"])
    assert start_main(monkeypatch) == 2


def test_a_missing_extra(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """One line names what to install."""
    monkeypatch.setitem(sys.modules, "rich", None)
    from pie_anyio.cli.__main__ import main

    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    assert capfd.readouterr().err == 'error: the command line needs rich: pip install "pie-anyio[cli]"\n'


def test_an_interrupt_while_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while Python is loading is exit code 130."""
    from pie_anyio.cli import __main__

    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "import_module", interrupted)
    with pytest.raises(SystemExit) as exit_info:
        __main__.main()
    assert exit_info.value.code == 130
