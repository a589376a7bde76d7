# SPDX-License-Identifier: Apache-2.0
"""`map`: outcomes in a file, and going on from it."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from pie_anyio import PieError, ProcessError
from pie_anyio.cli import _map
from pie_anyio.cli._inputs import Feed, Item
from pie_anyio.cli._progress import Progress, Tally

from .conftest import Invoke, Served

IN, OUT = "in.jsonl", "out.jsonl"


def write(*values: Any) -> None:
    Path(IN).write_text("".join(f"{json.dumps(value)}\n" for value in values))


def outcomes(name: str = OUT) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def inputs_seen(served: Served) -> list[Any]:
    """What the engine was asked to run."""
    requests: list[Any] = [entry.request for entry in served.engine.received]
    return [json.loads(request.input) for request in requests if request.type == "launch_process"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_one_line_per_outcome(served: Served, invoke: Invoke, backend: str) -> None:
    """Ids and indexes are those of the input; the account is on standard error."""
    write({"id": "a", "input": {"x": 1}}, [2], {"custom_id": 7, "body": "seven", "method": "POST"})
    result = invoke(
        "map", "echo@0.1.0", IN, "-o", OUT, "--url", served.url, "--ordered", "--backend", backend
    )
    assert result.code == 0
    lines = outcomes()
    assert [(line["id"], line["index"], line["status"], line["value"]) for line in lines] == [
        ("a", 0, "returned", {"x": 1}),
        (2, 1, "returned", [2]),
        (7, 2, "returned", "seven"),
    ]
    assert all(line["seconds"] >= line["first_output_seconds"] >= 0 for line in lines)
    assert all(len(line["process_id"]) == 36 for line in lines)
    assert "3 started: 3 returned, 0 unconfirmed" in result.stderr
    assert "echo@0.1.0: 3 of 3 done" in result.stderr
    assert result.stdout == ""


def test_json(served: Served, invoke: Invoke) -> None:
    """--json tells of beginning and end on standard output."""
    write(1, 2)
    result = invoke("map", "echo@0.1.0", IN, "-o", OUT, "--url", served.url, "--json", "-q")
    assert [record["event"] for record in result.records] == ["start", "summary", "done"]
    assert result.record("summary")["outcomes"] == {"returned": 2}
    assert result.record("done") == {"event": "done", "returned": 2, "total": 2, "exit_code": 0}
    assert result.stderr == ""


def test_outcomes_to_standard_output(served: Served, invoke: Invoke) -> None:
    """-o - writes them there."""
    write(1)
    result = invoke("map", "echo@0.1.0", IN, "-o", "-", "--url", served.url, "--progress", "none")
    assert json.loads(result.stdout)["value"] == 1


def test_inputs_from_standard_input(served: Served, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """IN may be -; blank lines count and are passed over."""
    monkeypatch.setattr(sys, "stdin", io.StringIO('"a"\n\n"b"\n'))
    assert invoke("map", "echo@0.1.0", "-", "-o", OUT, "--url", served.url, "--ordered").code == 0
    assert [(line["id"], line["index"], line["value"]) for line in outcomes()] == [(1, 0, "a"), (3, 1, "b")]


def test_going_on(served: Served, invoke: Invoke) -> None:
    """What returned or failed is not run again; --retry-failed runs the failed again, and keeps the old lines."""
    write(*({"id": f"i{n}", "input": {"n": n}} for n in range(6)))
    first = invoke("map", "odd@0.1.0", IN, "-o", OUT, "--url", served.url)
    assert first.code == 1
    assert sorted(line["status"] for line in outcomes()) == ["failed"] * 3 + ["returned"] * 3
    failed = next(line for line in outcomes() if line["id"] == "i3")
    assert failed["error"]["type"] == "ProcessFailed"
    assert "3 is odd" in failed["error"]["message"]
    assert "value" not in failed
    again = invoke("map", "odd@0.1.0", IN, "-o", OUT, "--url", served.url)
    assert again.code == 1
    assert "--retry-failed" in again.stderr
    assert served.engine.started_total == 6

    @served.engine.inferlet("odd@0.1.0")
    async def repaired(session: Any, input: Any) -> object:
        return input["n"]

    last = invoke("map", "odd@0.1.0", IN, "-o", OUT, "--url", served.url, "--retry-failed")
    assert last.code == 0
    assert [value["n"] for value in inputs_seen(served)[6:]] == [1, 3, 5]
    assert len(outcomes()) == 9
    assert "3 of 6 are done already; 3 to go" in last.stderr


def test_new_inputs_are_added(served: Served, invoke: Invoke) -> None:
    """A longer input file with the same results file runs what is new."""
    write(*({"id": n, "input": n} for n in range(3)))
    invoke("map", "echo@0.1.0", IN, "-o", OUT, "--url", served.url)
    write(*({"id": n, "input": n} for n in range(5)))
    assert invoke("map", "echo@0.1.0", IN, "-o", OUT, "--url", served.url).code == 0
    assert inputs_seen(served)[3:] == [3, 4]


@pytest.mark.parametrize(
    "torn", ['{"id": 2, "index": 1, "sta', '{"id": 2, "index": 1, "status": "returned"}', "\x00"]
)
def test_a_torn_last_line(served: Served, invoke: Invoke, torn: str) -> None:
    """What a crash left of the last line is taken away, and its item runs again."""
    write("a", "b")
    done = {"id": 1, "index": 0, "status": "returned", "value": "a"}
    Path(OUT).write_text(f"{json.dumps(done)}\n{torn}")
    result = invoke("map", "echo@0.1.0", IN, "-o", OUT, "--url", served.url)
    assert result.code == 0
    assert "unfinished last line" in result.stderr
    assert inputs_seen(served) == ["b"]
    assert [line["id"] for line in outcomes()] == [1, 2]


@pytest.mark.parametrize("line", ["no JSON", "[1]", '{"id": 1}', '{"id": [], "status": "returned"}', "1"])
def test_another_file_is_not_written_to(invoke: Invoke, line: str) -> None:
    """A file that holds no outcomes stays as it is."""
    write(1)
    Path(OUT).write_text(f"\n{line}\n")
    result = invoke("map", "echo@0.1.0", IN, "-o", OUT)
    assert result.code == 2
    assert f"{OUT}, line 2" in result.stderr
    assert Path(OUT).read_text() == f"\n{line}\n"


def test_two_at_once_on_one_file(invoke: Invoke) -> None:
    """A results file that is in use is refused."""
    write(1)
    with open(OUT, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = invoke("map", "echo@0.1.0", IN, "-o", OUT)
    assert result.code == 2
    assert "by another run" in result.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{\n", "line 1 is not JSON"),
        ('1\n{"id": 1, "input": 2}\n', "the id 1 comes twice"),
        ('{"id": null, "input": 2}\n', "not null"),
        ('{"id": true, "input": 2}\n', "not true"),
        ('"\xff"\n', "cannot read"),
    ],
)
def test_bad_input_files(invoke: Invoke, content: str, said: str) -> None:
    """Everything is read before anything runs; the line is named."""
    Path(IN).write_bytes(content.encode("latin-1"))
    result = invoke("map", "echo@0.1.0", IN, "-o", OUT)
    assert result.code == 2
    assert said in result.stderr
    assert not Path(OUT).exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["missing.jsonl", "-o", OUT],
        [IN],
        [IN, "-o", OUT, "--limit", "0"],
        [IN, "-o", OUT, "--on-error", "never"],
        [IN, "-o", OUT, "--on-error", "1.5"],
        [IN, "-o", OUT, "--on-error", "-1"],
        [IN, "-o", "."],
        [IN, "-o", OUT, "--progress", "much"],
    ],
)
def test_bad_usage(invoke: Invoke, arguments: list[str]) -> None:
    """Exit code 2 and a line that says why."""
    write(1)
    result = invoke("map", "echo@0.1.0", *arguments)
    assert result.code == 2
    assert result.stderr.startswith("error: ")


def test_nothing_to_do(invoke: Invoke) -> None:
    """An empty input file is done at once, without an engine."""
    Path(IN).write_text("\n")
    assert invoke("map", "echo@0.1.0", IN, "-o", OUT).code == 0


@pytest.mark.parametrize(
    ("tolerated", "code"), [("raise", 1), ("0", 1), ("3", 1), ("0.9", 1), ("collect", 1)]
)
def test_on_error(served: Served, invoke: Invoke, tolerated: str, code: int) -> None:
    """A failure is a failure; only when the rest is stopped differs."""
    write(*({"n": n} for n in range(6)))
    result = invoke(
        *("map", "odd@0.1.0", IN, "-o", OUT, "--url", served.url, "--on-error", tolerated, "--limit", "1")
    )
    assert result.code == code
    expected = {"raise": 2, "0": 2}.get(tolerated, 6)
    assert [line["status"] for line in outcomes()] == ["returned", "failed"] * (expected // 2)
    assert ("error: " in result.stderr) == (expected == 2)


def test_an_unknown_program(served: Served, invoke: Invoke) -> None:
    """Each outcome says that the program is not there."""
    write(1, 2)
    assert invoke("map", "nope@0.1.0", IN, "-o", OUT, "--url", served.url).code == 1
    assert {line["status"] for line in outcomes()} <= {"failed", "not_started"}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_interrupt_ends_all_runs(served: Served, invoke: Invoke, backend: str) -> None:
    """After SIGINT nothing is running; what had returned is in the file, and the rest runs the next time."""
    seen = 0

    @served.engine.inferlet("some@0.1.0")
    async def some(session: Any, input: Any) -> object:
        nonlocal seen
        seen += 1
        if input < 3:
            return input
        if seen == 12:
            os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep_forever()
        return None

    write(*range(50))
    result = invoke(
        "map", "some@0.1.0", IN, "-o", OUT, "--url", served.url, "--limit", "9", "--backend", backend
    )
    assert result.code == 130
    assert "stopping what is running" in result.stderr
    assert "3 returned, 9 terminated, 0 unconfirmed" in result.stderr
    assert not served.live
    assert sorted(line["value"] for line in outcomes()) == [0, 1, 2]


def test_refusals_are_waited_out(served: Served, invoke: Invoke) -> None:
    """A full engine delays runs, and the account counts that."""
    engine = served.engine
    engine.faults.capacity = 2

    @engine.inferlet("held@0.1.0")
    async def held(session: Any, input: Any) -> Any:
        while not engine.refused_total:
            await checkpoint()
        return input

    write(*range(12))
    result = invoke("map", "held@0.1.0", IN, "-o", OUT, "--url", served.url, "--limit", "6")
    assert result.code == 0
    assert "refusals waited out" in result.stderr
    assert sum(line["refusals"] for line in outcomes()) == engine.refused_total > 0


def test_a_lost_engine(served: Served, invoke: Invoke) -> None:
    """When it lets nobody in again, outcomes say so, the exit code is 1, and the runs are tried the next time."""

    @served.engine.inferlet("dropping@0.1.0")
    async def dropping(session: Any, input: Any) -> object:
        if input == 2:
            served.engine.faults.refuse_handshakes = (403, b"")
            served.engine.faults.drop_connections()
        return input

    write(*range(5))
    result = invoke("map", "dropping@0.1.0", IN, "-o", OUT, "--url", served.url, "--limit", "1")
    assert result.code == 1
    assert {line["status"] for line in outcomes()} == {"returned", "lost", "not_started"}


def test_errors_that_belong_to_no_item() -> None:
    """What stops a map and is nobody's failure is not written as an outcome."""
    feed = Feed([Item("a", 0, 1)], set(), 1)
    progress = Progress(Tally(1), "work")
    errors = [PieError("x"), ProcessError("y"), ProcessError("z", index=7)]
    job: Any = None
    _map._take_errors(job, ExceptionGroup("g", errors), feed, progress)
    assert progress.tally.done == 0


SHAKY = "shaky@0.1.0"


def add_shaky(served: Served) -> None:
    """Install a program whose first run costs it its connection."""
    dropped: list[str] = []

    @served.engine.inferlet(SHAKY)
    async def shaky(session: Any, input: Any) -> Any:
        if not dropped:
            dropped.append("once")
            served.engine.faults.drop_connections()
            await anyio.sleep_forever()
        return input


def test_a_lost_connection_is_restored(served: Served, invoke: Invoke) -> None:
    """What the engine ended with it is run again where the user says that it may."""
    add_shaky(served)
    write(*range(5))
    arguments = ("map", SHAKY, IN, "-o", OUT, "--url", served.url, "--limit", "2", "--retry-lost", "3")
    assert invoke(*arguments).code == 0
    assert sorted(line["value"] for line in outcomes()) == list(range(5))


def test_a_lost_run_is_not_repeated_unasked(served: Served, invoke: Invoke) -> None:
    """It may have done what it was to do."""
    add_shaky(served)
    write(*range(5))
    assert invoke("map", SHAKY, IN, "-o", OUT, "--url", served.url, "--limit", "1").code == 1
    assert [line["status"] for line in outcomes()] == ["lost", *["returned"] * 4]
