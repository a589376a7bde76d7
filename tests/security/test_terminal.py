# SPDX-License-Identifier: Apache-2.0
"""What programs and engines say cannot control the terminal that the command line prints it on."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import given
from hypothesis import strategies as st

from pie_anyio.cli import _app
from pie_anyio.cli._app import run
from pie_anyio.cli._output import Output, neutralised, on_one_line
from pie_anyio.cli._progress import Tally, make_progress
from pie_anyio.testing import SimulatedEngine

HOSTILE = {
    "clear the screen": "\x1b[2J\x1b[H",
    "set the title": "\x1b]0;owned\x07",
    "copy to the clipboard": "\x1b]52;c;cm0gLXJm\x1b\\",
    "a link elsewhere": "\x1b]8;;http://evil.example\x1b\\bank\x1b]8;;\x1b\\",
    "ask for an answer": "\x1b[c\x1b[6n\x05",
    "device control": "\x1bP+q544e\x1b\\",
    "eight bits": "\x9b2J\x9d0;owned\x9c\x90q\x9c",
    "overwrite the line": "all good\rerror",
    "erase by backspace": "rm\x08\x08ls",
    "delete": "\x7f",
    "null": "\x00",
    "bell, feeds": "\x07\x0b\x0c",
    "shift in and out": "\x0e\x0f",
    "turn the direction": "\u202egpj.exe\u202c \u2067x\u2069 \u200f \u061c",
    "other ends of lines": "a\u2028b\u2029c\x85d",
    "not seen": "\u200b\u2060\ufeff\U000e0041\U000e007f",
}
ALL = "".join(HOSTILE.values())


class Terminal(io.StringIO):
    """A terminal that both streams of a command go to."""

    def isatty(self) -> bool:
        return True

    @contextmanager
    def shown(self) -> Iterator[None]:
        with redirect_stdout(self), redirect_stderr(self):
            yield

    def run(self, *words: str) -> int:
        with self.shown():
            return run(words)


@contextmanager
def serve(**programs: Any) -> Iterator[SimulatedEngine]:
    """Serve programs in a thread."""
    engine = SimulatedEngine("v05")
    for name, function in programs.items():
        engine.inferlet(f"{name}@0.1.0")(function)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(engine):
        yield engine


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def check(terminal: Terminal, *expected: str) -> None:
    """See that nothing got through, and that it was not lost either."""
    text = terminal.getvalue()
    assert text == neutralised(text)
    for part in expected:
        assert neutralised(part) in text or on_one_line(part) in text


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_each_sequence_is_spelt_out(text: str) -> None:
    """So that it can be seen, and does nothing."""
    safe = neutralised(text)
    assert safe != text
    assert safe.isascii()
    assert safe.isprintable()


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    """Nothing that could be printed makes a second one."""
    assert len(on_one_line(text).splitlines()) <= 1


def test_output_and_values(terminal: Terminal) -> None:
    """Of a program: what it prints, sends and returns."""

    async def hostile(session: Any, input: Any) -> object:
        await session.stdout(f"{ALL}out")
        await session.stderr(f"{ALL}err")
        await session.send(f"{ALL}message")
        return f"{ALL}value"

    with serve(hostile=hostile) as engine:
        assert terminal.run("--url", engine.url, "run", "hostile@0.1.0") == 0
    check(terminal, f"{ALL}out", f"{ALL}err", f"{ALL}message", f"{ALL}value")


def test_errors_of_programs(terminal: Terminal) -> None:
    """The text of an exception on the engine."""

    async def hostile(session: Any, input: Any) -> object:
        raise ValueError(ALL)

    with serve(hostile=hostile) as engine:
        assert terminal.run("--url", engine.url, "run", "hostile@0.1.0") == 1
    check(terminal, HOSTILE["set the title"])


def test_names_of_files(terminal: Terminal, tmp_path: Any) -> None:
    """Saved or not."""

    async def hostile(session: Any, input: Any) -> object:
        await session.send_file(b"x", name=f"{ALL}\x1b[2Jname.txt")
        return None

    with serve(hostile=hostile) as engine:
        assert terminal.run("--url", engine.url, "run", "hostile@0.1.0") == 0
        assert terminal.run("--url", engine.url, "run", "hostile@0.1.0", "--files", str(tmp_path)) == 0
    check(terminal, "name.txt")
    assert all(neutralised(path.name) == path.name for path in tmp_path.iterdir())


def test_refusals_of_engines(terminal: Terminal) -> None:
    """The engine's own words, whatever they answer."""
    with serve() as engine:
        engine.faults.answers["ping"] = (False, ALL)
        engine.faults.answers["launch_process"] = (False, ALL)
        engine.faults.answers["query"] = (False, ALL)
        engine.faults.answers["add_program"] = (False, ALL)
        for words in (["run", "x@0.1.0"], ["status"]):
            assert terminal.run("--url", engine.url, *words) == 1
    check(terminal, HOSTILE["set the title"])


def test_refusals_of_handshakes(terminal: Terminal) -> None:
    """The body of an HTTP answer."""
    with serve() as engine:
        engine.faults.refuse_handshakes = (403, ALL.encode())
        assert terminal.run("--url", engine.url, "ping") == 3
    check(terminal, HOSTILE["set the title"])


def test_lists_of_processes(terminal: Terminal) -> None:
    """Names and inputs are other people's; and no line of the table can be made up."""
    row = {
        "id": f"{ALL}1",
        "username": f"{ALL}u",
        "program": f"{ALL}p",
        "input": 'x\nfake-id  fake@0.1.0\tadmin  1  "y"',
        "elapsed_secs": 1,
    }
    with serve() as engine:
        engine.faults.answers["list_processes"] = (True, json.dumps([row]))
        assert terminal.run("--url", engine.url, "ps") == 0
    check(terminal, "fake-id")
    assert len(terminal.getvalue().splitlines()) == 2


def test_figures(terminal: Terminal) -> None:
    """Names of figures are the engine's."""
    with serve() as engine:
        engine.faults.answers["query"] = (True, json.dumps({f"{ALL}.kv_pages_used": ALL}))
        assert terminal.run("--url", engine.url, "status", "--full") == 0
    check(terminal, f"{ALL}.kv_pages_used")


def test_log_records(terminal: Terminal) -> None:
    """The library quotes what an engine says on its own."""

    async def hostile(session: Any, input: Any) -> object:
        engine.faults.send_text(json.dumps({"type": "error", "message": f"admission rejected {ALL}"}))
        await anyio.wait_all_tasks_blocked()
        return None

    with serve(hostile=hostile) as engine:
        assert terminal.run("--url", engine.url, "run", "hostile@0.1.0") == 0
    check(terminal, f"admission rejected {HOSTILE['clear the screen']}")
    assert not [h for h in logging.getLogger().handlers if isinstance(h, _app._LogHandler)]


def test_tracebacks(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """They end in the text of the exception."""
    monkeypatch.setenv("PIE_DEBUG", "1")
    with serve() as engine:
        engine.faults.answers["launch_process"] = (False, ALL)
        assert terminal.run("--url", engine.url, "run", "x@0.1.0") == 1
    check(terminal, "Traceback", HOSTILE["set the title"])


def test_warnings(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """As everything else."""
    monkeypatch.setattr(_app.app, "main", lambda **_: warnings.warn(ALL, UserWarning, stacklevel=1))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert terminal.run() == 0
    check(terminal, f"warning: {ALL}")


def test_progress(terminal: Terminal) -> None:
    """The name of the program is somebody's argument."""
    with terminal.shown(), make_progress("bar", Tally(1), "x[bold]\x1b]0;owned\x07\u202ey", Output()):
        pass
    assert "x[bold]" in terminal.getvalue()
    assert "owned\x07" not in terminal.getvalue()
    assert "\u202e" not in terminal.getvalue()


def test_pipes_and_files_get_the_bytes(capfd: pytest.CaptureFixture[str]) -> None:
    """What a program prints is data there, and stays as it is."""

    async def hostile(session: Any, input: Any) -> object:
        await session.stdout("\x1b[31mred\n")
        return None

    with serve(hostile=hostile) as engine:
        assert run(["--url", engine.url, "run", "hostile@0.1.0"]) == 0
    assert capfd.readouterr().out.startswith("\x1b[31mred\n")
