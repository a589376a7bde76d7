# SPDX-License-Identifier: Apache-2.0
"""`run` and `attach`."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from pie_anyio import AnyEvent, Event, Gap, Return, Stdout, Timings
from pie_anyio.cli._loop import Cli
from pie_anyio.cli._run import follow
from pie_anyio.cli._settings import Settings

from .conftest import Invoke, Served


@pytest.mark.parametrize("backend", ["asyncio", "trio", "uvloop"])
def test_output_and_value(served: Served, invoke: Invoke, backend: str) -> None:
    """Output is passed on as it comes, the value last, on every loop; nothing is left."""
    if backend == "uvloop":
        pytest.importorskip("uvloop")
    result = invoke("--backend", backend, "run", "echo@0.1.0", "a=1", "b=text", "--url", served.url)
    assert result.code == 0
    assert result.stdout == 'printed\nsent\n{"a": 1, "b": "text"}\n'
    assert result.stderr == "warned\n"
    assert not served.live


def test_quiet_leaves_the_value_alone(served: Served, invoke: Invoke) -> None:
    """With --quiet the standard output can be piped on; None input is an empty object."""
    result = invoke("run", "echo@0.1.0", "-q", "--url", served.url)
    assert (result.code, result.stdout, result.stderr) == (0, "{}\n", "")


def test_text_values_are_printed_as_text(served: Served, invoke: Invoke) -> None:
    """A returned text is not quoted."""
    result = invoke("run", "echo@0.1.0", "-q", "--url", served.url, "--input", '"hello"')
    assert result.stdout == "hello\n"


def test_json_records(served: Served, invoke: Invoke) -> None:
    """Each event is a line of JSON, between `launched` and `done`."""
    result = invoke("run", "echo@0.1.0", "--json", "--url", served.url, "--input", '{"q": [1]}', "r=2")
    assert result.records[0]["event"] == "launched"
    assert {"stdout", "stderr", "message"} <= {record["event"] for record in result.records}
    assert result.record("return")["value"] == {"q": [1], "r": 2}
    assert result.record("done")["receipt"]["returned"] == 1
    assert result.stderr == ""


def test_failure(served: Served, invoke: Invoke) -> None:
    """A program that raises makes exit code 1 and an error line."""
    result = invoke("run", "fail@0.1.0", "--json", "--url", served.url)
    assert result.code == 1
    assert result.record("failed")["error"] == "ProcessFailed"
    assert "because" in result.stderr
    assert "Traceback" not in result.stderr.splitlines()[0]


def test_somebody_else_terminates(served: Served, invoke: Invoke) -> None:
    """A process that is ended from elsewhere makes exit code 1."""

    @served.engine.inferlet("doomed@0.1.0")
    async def doomed(session: Any, input: Any) -> object:
        from pie_anyio import PieClient

        (process_id,) = served.engine.live_processes
        async with PieClient(served.engine.connectable) as client:
            await client.terminate_process(process_id)
        return None

    result = invoke("run", "doomed@0.1.0", "--url", served.url)
    assert result.code == 1
    assert "(terminated)" in result.stderr


def test_unknown_program(served: Served, invoke: Invoke) -> None:
    """An unknown program is one line that says what to do."""
    result = invoke("run", "nope@1.0.0", "--url", served.url)
    assert result.code == 1
    assert result.stderr.startswith("error: ")
    assert "install_program" in result.stderr


def test_input_from_file_and_standard_input(
    served: Served, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """@file and - are read."""
    (tmp_path / "in.json").write_text('{"from": "file"}')
    result = invoke("run", "echo@0.1.0", "-q", "--url", served.url, "-i", f"@{tmp_path}/in.json")
    assert json.loads(result.stdout) == {"from": "file"}
    monkeypatch.setattr(sys, "stdin", io.StringIO("[1, 2]"))
    result = invoke("run", "echo@0.1.0", "-q", "--url", served.url, "-i", "-")
    assert json.loads(result.stdout) == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-i", "{"], "--input is not JSON"),
        (["-i", "@missing"], "cannot read missing"),
        (["novalue"], "no key=value pair"),
        (["=1"], "no key=value pair"),
        (["-i", "[1]", "a=1"], "a JSON object"),
        (["--token-budget", "0"], "token-budget"),
    ],
)
def test_bad_inputs(invoke: Invoke, arguments: list[str], said: str) -> None:
    """A bad input is refused before anything is connected."""
    result = invoke("run", "echo@0.1.0", *arguments)
    assert result.code == 2
    assert said in result.stderr


def test_files(served: Served, invoke: Invoke, tmp_path: Path) -> None:
    """Received files are saved where --files says, else announced; a lost line ending is made up for."""

    @served.engine.inferlet("files@0.1.0")
    async def files(session: Any, input: Any) -> object:
        await session.stdout("no newline")
        await session.send_file(b"content", "../a.txt")
        return None

    result = invoke("run", "files@0.1.0", "--url", served.url, "--files", str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "a.txt").read_bytes() == b"content"
    assert "a.txt (7 bytes)" in result.stderr
    assert result.stdout == "no newline\nnull\n"
    result = invoke("run", "files@0.1.0", "--url", served.url, "--json")
    assert result.record("file") == {"event": "file", "name": "../a.txt", "bytes": 7, "path": None}
    assert "--files DIR" in result.stderr


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_process(
    served: Served, invoke: Invoke, backend: str, number: signal.Signals
) -> None:
    """The first signal ends the process on the engine, says so, and makes exit code 130."""

    @served.engine.inferlet("interrupt@0.1.0")
    async def interrupt(session: Any, input: Any) -> object:
        os.kill(os.getpid(), number)
        await anyio.sleep_forever()
        return None

    result = invoke("run", "interrupt@0.1.0", "--url", served.url, "--backend", backend)
    assert result.code == 130
    assert number.name in result.stderr
    assert "1 terminated, 0 unconfirmed" in result.stderr
    assert not served.live
    assert served.engine.terminated_total == 1


def test_detach(served04: Served, invoke: Invoke) -> None:
    """--detach prints the id of a process that goes on without a keeper too (0.4)."""
    result = invoke("run", "wait@0.1.0", "--detach", "--no-keeper", "--url", served04.url)
    assert result.code == 0
    assert served04.live == [result.stdout.strip()]


def test_detach_is_refused_where_it_cannot_be(served: Served, invoke: Invoke) -> None:
    """An engine of 0.5 ends a process with its connection, so --no-keeper is refused there and nothing is left."""
    result = invoke("run", "wait@0.1.0", "--detach", "--no-keeper", "--url", served.url)
    assert result.code == 1
    assert "--detach is not possible" in result.stderr
    assert not served.live


def test_attach(served04: Served, invoke: Invoke) -> None:
    """A detached process is followed to its end by the beginning of its id."""
    go = anyio.Event()

    @served04.engine.inferlet("later@0.1.0")
    async def later(session: Any, input: Any) -> object:
        await go.wait()
        return "at last"

    process_id = invoke("run", "later@0.1.0", "--detach", "--no-keeper", "--url", served04.url).stdout.strip()

    async def release() -> None:
        await served04.engine.wait_received("attach_process")
        go.set()

    future = served04.portal.start_task_soon(release)
    result = invoke("attach", process_id[:13], "--json", "--url", served04.url)
    future.result(5)
    assert result.code == 0
    assert result.record("attached")["process_id"] == process_id
    assert result.record("return")["value"] == "at last"


def test_an_interrupted_attach_leaves_the_process(served04: Served, invoke: Invoke) -> None:
    """Ctrl-C while attached does not end a process that somebody else started."""
    invoke("run", "wait@0.1.0", "--detach", "--no-keeper", "--url", served04.url)
    (process_id,) = served04.live

    async def interrupt() -> None:
        await served04.engine.wait_received("attach_process")
        os.kill(os.getpid(), signal.SIGINT)

    future = served04.portal.start_task_soon(interrupt)
    result = invoke("attach", process_id, "--url", served04.url)
    future.result(5)
    assert result.code == 130
    assert process_id in served04.live


class Script:
    """Stands for a process with these events."""

    process_id = "abc"
    return_value = None
    timings = Timings(submitted=0.0)

    def __init__(self, *events: AnyEvent) -> None:
        self._events = iter(events)

    def __aiter__(self) -> Script:
        return self

    async def __anext__(self) -> AnyEvent:
        for event in self._events:
            return event
        raise StopAsyncIteration


def test_lost_output_is_marked(capfd: pytest.CaptureFixture[str]) -> None:
    """Where output is missing, that is said in its place."""
    cli = Cli(Settings())
    process: Any = Script(
        Stdout(Event.Stdout, "a"), Gap(Event.Gap, "three events"), Return(Event.Return, "null")
    )
    assert anyio.run(follow, cli, process, None) == 0
    captured = capfd.readouterr()
    assert captured.out == "a\nnull\n"
    assert captured.err == "output was lost here: three events\n"
