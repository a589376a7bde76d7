# SPDX-License-Identifier: Apache-2.0
"""Serving a simulated engine from the command line."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest

from pie_anyio.testing._sim_cli import main
from pie_anyio.testing.peer import RawPeer

PROGRAMS = """
from anyio import sleep

async def loud_voice(session, input):
    return input["text"].upper()

async def _hidden(session, input):
    return None

def no_program():
    pass
"""


@contextmanager
def served(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Serve on any free port until the block ends; it gives the process and its URL."""
    command = [sys.executable, "-m", "pie_anyio.testing.engine", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def stop(process: subprocess.Popen[str], number: signal.Signals) -> str:
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    return errors


async def run(url: str, inferlet: str, text: str) -> list[tuple[str, str]]:
    address = urlsplit(url)
    with anyio.fail_after(10):
        async with await RawPeer.dial(address.hostname or "", address.port or 0) as peer:
            await peer.login()
            return await peer.events(await peer.launch(inferlet, text))


@pytest.mark.slow
def test_serving_05(tmp_path: Path) -> None:
    """The URL is printed, the demo programs and those of a file run, and Ctrl-C ends it without a word."""
    path = tmp_path / "programs.py"
    path.write_text(PROGRAMS)
    with served("--inferlets", str(path), "--capacity", "5", "--max-processes", "2") as (process, url):
        assert anyio.run(run, url, "echo", "[1]") == [("return", "[1]")]
        assert anyio.run(run, url, "loud-voice@0.1.0", '{"text": "a"}') == [("return", "A")]
        assert stop(process, signal.SIGINT) == ""


@pytest.mark.slow
def test_serving_04_on_trio() -> None:
    """The token that was made up is told, and SIGTERM ends it too."""
    with served("--profile", "v04", "--trio") as (process, url):
        assert anyio.run(run, url, "echo@0.1.0", "[1]") == [("return", "[1]")]
        errors = stop(process, signal.SIGTERM)
        assert errors.startswith("token: ")
        assert errors.count("\n") == 1


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """The help names every demo program and how to add others."""
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    for word in ("file-echo", "sleeper", "--profile", "async def shout", "Ctrl-C"):
        assert word in text


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file is the user's mistake."""
    with pytest.raises(SystemExit, match="2"):
        main(["--inferlets", "missing.py"])
    assert "there is no file missing.py" in capsys.readouterr().err
