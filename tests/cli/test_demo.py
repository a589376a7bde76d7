# SPDX-License-Identifier: Apache-2.0
"""`demo`: the whole of it on a simulated engine, and what happens when an engine dies."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import anyio
import attrs
import pytest

from pie_anyio import PieError, Receipt, Returned, Timings
from pie_anyio.cli import _demo_engine
from pie_anyio.cli._demo_report import Report, total
from pie_anyio.cli._progress import Tally
from pie_anyio.testing import RealEngineUnavailable, SimulatedEngine

from .conftest import Invoke

Program = Callable[[Any, Any], Any]


@attrs.define(eq=False)
class Mortal:
    """Stands for the real engine: boots in this process, and dies when its program wants it to."""

    program: Program = _demo_engine.choose
    boots: int = 1
    url: str = ""
    dies_at: int = 20
    asked: int = 0
    options: dict[str, Any] = attrs.field(factory=dict)
    engine: SimulatedEngine = attrs.field(factory=SimulatedEngine)

    def __call__(self, **options: Any) -> Mortal:
        self.options = options
        return self

    async def __aenter__(self) -> Self:
        assert os.environ["LP_NUM_THREADS"]
        self.engine.inferlet("choice@0.1.0", installed=False)(self._choose)
        await self.engine.__aenter__()
        self.url = self.engine.url
        return self

    async def __aexit__(self, *exc: object) -> None:
        leave: Any = self.engine.__aexit__
        await leave(*exc)

    async def _choose(self, session: Any, input: Any) -> object:
        self.asked += 1
        if self.asked == self.dies_at:
            self.engine.faults.drop_connections()
        return await self.program(session, input)

    async def wait(self) -> int:
        if not self.boots:
            await anyio.sleep_forever()
        return 70

    async def restart(self) -> None:
        self.boots -= 1
        if self.boots < 0:
            msg = "it stays dead"
            raise RealEngineUnavailable(msg)


def results(name: str = "demo-results.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_whole_of_it(invoke: Invoke, backend: str) -> None:
    """120 questions are answered, all is accounted for, refusals were met, and the exit code says so."""
    result = invoke("demo", "--engine", "simulated", "--backend", backend)
    assert result.code == 0
    assert "accuracy" in result.stdout
    assert "chance: 0.25" in result.stdout
    assert "receipt: 120 started: 120 returned, 0 unconfirmed" in result.stdout
    assert "left running  0" in result.stdout
    assert "simulated engine" in result.stderr
    lines = results()
    assert len({line["id"] for line in lines}) == 120
    assert {line["status"] for line in lines} == {"returned"}
    assert all(set(line["value"]) == {"choice", "letter", "scores"} for line in lines)


def test_as_json(invoke: Invoke, tmp_path: Path) -> None:
    """The summary has every figure for programs; fewer questions and another file can be asked for."""
    arguments = ("--questions", "10", "-o", "other.jsonl", "--json", "--progress", "none")
    result = invoke("demo", "--engine", "simulated", *arguments)
    summary = result.record("summary")
    assert (summary["questions"], summary["answered"], summary["exit_code"]) == (10, 10, 0)
    assert summary["accuracy"] == summary["right"] / 10
    assert summary["interval"][0] < summary["accuracy"] < summary["interval"][1]
    assert summary["receipt"]["unconfirmed"] == []
    assert result.record("engine")["real"] is False
    assert len(results("other.jsonl")) == 10


def test_without_the_real_engine(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """It falls back to the simulated one and says so in a line; asked for by name, it is an error."""

    def unavailable(**options: Any) -> Any:
        msg = "there is no Vulkan device\nand a long log"
        raise RealEngineUnavailable(msg)

    monkeypatch.setattr(_demo_engine, "RealEngine", unavailable)
    result = invoke("demo", "--questions", "4")
    assert result.code == 0
    (line,) = [line for line in result.stderr.splitlines() if "Vulkan" in line]
    assert line.startswith(
        "engine: a simulated engine (the real one is not to be had: there is no Vulkan device)"
    )
    refused = invoke("demo", "--questions", "4", "--engine", "real")
    assert refused.code == 1
    assert "hint: --engine simulated" in refused.stderr


def test_an_engine_that_dies_is_booted_again(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its questions are asked again, nothing is counted twice, and the account tells of it."""
    mortal = Mortal()
    monkeypatch.setattr(_demo_engine, "RealEngine", mortal)
    monkeypatch.delenv("LP_NUM_THREADS", raising=False)
    result = invoke("demo", "--questions", "30")
    assert "LP_NUM_THREADS" not in os.environ
    assert result.code == 0
    assert mortal.boots == 0
    assert "died 1 times and was booted again" in result.stdout
    assert "was booted again; " in result.stderr
    assert "30 returned" in result.stdout
    assert "lost" in result.stdout
    assert len(results()) == 30
    assert mortal.options["home"].is_dir()


def test_an_engine_that_stays_dead(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the demonstration has failed, and says why."""
    monkeypatch.setattr(_demo_engine, "RealEngine", Mortal(boots=-1))
    monkeypatch.setenv("LP_NUM_THREADS", "1")
    result = invoke("demo", "--questions", "30")
    assert result.code == 1
    assert "it stays dead" in result.stderr


def test_a_connection_that_is_lost_without_a_death(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that lives on after the connection was lost is not booted again; the questions stay open."""
    monkeypatch.setattr(_demo_engine, "RealEngine", Mortal(boots=0))
    monkeypatch.setattr(_demo_engine, "_DEATH_NOTICE", 0.01)
    monkeypatch.setenv("LP_NUM_THREADS", "1")
    result = invoke("demo", "--questions", "30")
    assert result.code == 1
    assert "could not be asked" in result.stderr


def test_a_simulated_engine_is_not_booted_again(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not die; a lost connection ends the demonstration."""

    async def dropping(session: Any, input: Any) -> object:
        session._process._engine.faults.drop_connections()
        await anyio.sleep_forever()
        return None

    monkeypatch.setattr(_demo_engine, "choose", dropping)
    result = invoke("demo", "--questions", "3", "--engine", "simulated")
    assert result.code == 1
    assert "0 of 0" in result.stdout


def test_failures_count(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question whose run fails is not asked again, and makes exit code 1."""

    async def failing(session: Any, input: Any) -> object:
        msg = "no answer"
        raise ValueError(msg)

    monkeypatch.setattr(_demo_engine, "choose", failing)
    result = invoke("demo", "--questions", "3", "--engine", "simulated")
    assert result.code == 1
    assert "3 started: 3 failed" in result.stdout
    assert {line["status"] for line in results()} == {"failed"}


def test_an_interrupt(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C stops the runs, says what became of them, and makes exit code 130."""

    async def interrupting(session: Any, input: Any) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep_forever()
        return None

    monkeypatch.setattr(_demo_engine, "choose", interrupting)
    monkeypatch.setattr("pie_anyio.cli._loop.leave_at_once", lambda: None)
    result = invoke("demo", "--questions", "1", "--engine", "simulated")
    assert result.code == 130
    assert "1 terminated, 0 unconfirmed" in result.stderr


def test_results_that_cannot_be_written(invoke: Invoke) -> None:
    """That is found out before anything is booted."""
    result = invoke("demo", "--engine", "simulated", "-o", "missing/folder/file")
    assert result.code == 2
    assert "--output" in result.stderr


# ----------------------------------------------------------------------------------------------------------- report


def report(**more: Any) -> Report:
    outcome = Returned(index=0, key="q", value={"choice": 2}, timings=Timings(submitted=0.0, ended=1.0))
    tally = Tally(1)
    tally.add(outcome)
    fields: dict[str, Any] = {
        "questions": {"q": {"answer": 2}},
        "answers": {"q": outcome},
        "tally": tally,
        "seconds": 1.0,
        "receipts": [Receipt(started=1, returned=1)],
        "deaths": 0,
        "left_running": 0,
        "random_weights": True,
    }
    return Report(**{**fields, **more})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, 0),
        ({"left_running": 1}, 1),
        ({"receipts": [Receipt(started=1, returned=1, unconfirmed=("x",))]}, 1),
        ({"receipts": [Receipt(started=2, returned=1, lost=1)]}, 1),
        ({"receipts": [Receipt(started=1, lost=1), Receipt(started=1, returned=1)], "deaths": 1}, 0),
        ({"tally": Tally(1)}, 1),
        ({"seconds": 0.0}, 0),
    ],
)
def test_what_counts_as_success(change: dict[str, Any], code: int) -> None:
    """All answered, and nothing that can be running: a run that was lost with a dead engine is not running."""
    assert report(**change).exit_code == code


def test_right_answers() -> None:
    """Only a returned answer can be right."""
    wrong = Returned(index=0, key="q", value={"choice": 1}, timings=Timings(submitted=0.0))
    failed = attrs.evolve(wrong, error=PieError("no"), value=None)
    assert report().right == 1
    assert report(answers={"q": wrong}).right == 0
    assert report(answers={"q": failed}).right == 0


def test_receipts_add_up() -> None:
    """Counts are added, ids are put together."""
    receipts = [Receipt(started=2, returned=1, unconfirmed=("a",)), Receipt(started=1, unconfirmed=("b",))]
    assert total(receipts) == Receipt(started=3, returned=1, unconfirmed=("a", "b"))
    assert total([]) == Receipt()
