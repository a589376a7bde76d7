# SPDX-License-Identifier: Apache-2.0
"""`demo`: the whole of it on a simulated engine, and what happens when an engine dies."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import anyio
import attrs
import pytest
from anyio.from_thread import start_blocking_portal

from pie_anyio import PieClient, PieError, Receipt, Returned, Timings
from pie_anyio.cli import _demo_engine
from pie_anyio.cli._demo_report import Report, total
from pie_anyio.cli._progress import Tally
from pie_anyio.testing import RealEngineUnavailable, SimulatedEngine

from .conftest import Invoke

Program = Callable[[Any, Any], Any]


@attrs.define(eq=False)
class Mortal:
    """Stands for the real engine: runs in a thread, and dies when its program wants it to."""

    program: Program = _demo_engine.choose
    boots: int = 1
    url: str = ""
    dies_at: int = 20
    failure: str = ""
    asked: int = 0
    options: dict[str, Any] = attrs.field(factory=dict)
    engine: SimulatedEngine = attrs.field(factory=SimulatedEngine)
    stack: ExitStack = attrs.field(factory=ExitStack)

    async def __aenter__(self) -> Self:
        if self.failure:
            raise RealEngineUnavailable(self.failure)
        self.engine.inferlet("choice@0.1.0", installed=False)(self._choose)
        portal = self.stack.enter_context(start_blocking_portal())
        self.stack.enter_context(portal.wrap_async_context_manager(self.engine))
        self.url = self.engine.url
        return self

    async def __aexit__(self, *exc: object) -> None:
        await anyio.to_thread.run_sync(self.stack.close)

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


Stand = Callable[..., None]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Stand:
    """Have engines stand for the real ones, in this order, on a machine with a core for each."""

    def stand_in(*mortals: Mortal) -> None:
        waiting = list(mortals)

        def make(**options: Any) -> Mortal:
            waiting[0].options = options
            return waiting.pop(0)

        monkeypatch.setattr(_demo_engine, "RealEngine", make)
        monkeypatch.setattr(_demo_engine, "_cores", lambda: list(range(len(mortals))))

    return stand_in


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
    assert len(result.record("engine")["urls"]) == 1
    assert len(results("other.jsonl")) == 10


def test_without_the_real_engine(invoke: Invoke, stand_in: Stand) -> None:
    """It falls back to the simulated one and says so in a line; asked for by name, it is an error."""
    broken = Mortal(failure="there is no Vulkan device\nand a long log")
    stand_in(broken, broken)
    result = invoke("demo", "--questions", "4")
    assert result.code == 0
    (line,) = [line for line in result.stderr.splitlines() if "Vulkan" in line]
    assert line.startswith(
        "engine: a simulated engine (the real one is not to be had: there is no Vulkan device)"
    )
    stand_in(broken, broken)
    refused = invoke("demo", "--questions", "4", "--engine", "real")
    assert refused.code == 1
    assert "hint: --engine simulated" in refused.stderr


def test_an_engine_for_each_core(invoke: Invoke, stand_in: Stand) -> None:
    """Each gets a core, the program and its share of the questions; no question is asked twice."""
    pair = [Mortal(dies_at=0), Mortal(dies_at=0)]
    stand_in(*pair)
    result = invoke("demo", "--questions", "40")
    assert result.code == 0
    assert "engine: 2 engines" in result.stderr
    assert all(mortal.url in result.stderr for mortal in pair)
    assert [mortal.options["cores"] for mortal in pair] == [[0], [1]]
    assert min(mortal.asked for mortal in pair) > 5
    assert sum(mortal.asked for mortal in pair) == 40
    assert "receipt: 40 started: 40 returned, 0 unconfirmed" in result.stdout
    assert "left running  0" in result.stdout
    assert pair[0].options["home"].is_dir()


def test_one_of_two_engines_dies(invoke: Invoke, stand_in: Stand) -> None:
    """The other one ends what it has, the dead one is booted again, and both answer the rest."""
    pair = [Mortal(dies_at=0), Mortal(dies_at=5)]
    stand_in(*pair)
    result = invoke("demo", "--questions", "60")
    assert result.code == 0
    assert [mortal.boots for mortal in pair] == [1, 0]
    assert "deaths        1 of engines" in result.stdout
    assert "60 returned" in result.stdout
    assert "an engine died" in result.stderr
    assert pair[1].asked > 5
    assert len({line["id"] for line in results()}) == len(results()) == 60


def test_one_of_two_engines_does_not_start(invoke: Invoke, stand_in: Stand) -> None:
    """The other one answers everything."""
    pair = [Mortal(failure="there is no room"), Mortal(dies_at=0)]
    stand_in(*pair)
    result = invoke("demo", "--questions", "10")
    assert result.code == 0
    assert "engine: 1 engine, the real thing on one CPU core," in result.stderr
    assert pair[1].asked == 10


@pytest.mark.parametrize(("usable", "chosen"), [({5, 3, 9}, [3, 5]), ({4}, [4]), (None, [0])])
def test_two_cores_at_most(
    usable: set[int] | None, chosen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are among those that this process may use, where that can be known."""
    if usable is None:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: usable, raising=False)
    assert _demo_engine._cores() == chosen


def test_an_engine_that_dies_is_booted_again(invoke: Invoke, stand_in: Stand) -> None:
    """Its questions are asked again, nothing is counted twice, and the account tells of it."""
    mortal = Mortal()
    stand_in(mortal)
    result = invoke("demo", "--questions", "30")
    assert result.code == 0
    assert mortal.boots == 0
    assert "deaths        1 of engines, which were booted again" in result.stdout
    assert "was booted again; " in result.stderr
    assert "30 returned" in result.stdout
    assert "lost" in result.stdout
    assert len(results()) == 30


def test_an_engine_that_stays_dead(invoke: Invoke, stand_in: Stand) -> None:
    """Then the demonstration has failed, and says why."""
    stand_in(Mortal(boots=-1))
    result = invoke("demo", "--questions", "30")
    assert result.code == 1
    assert "it stays dead" in result.stderr


def test_an_engine_that_dies_too_often(
    invoke: Invoke, stand_in: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At some point it is not booted any more, and the questions stay open."""
    mortal = Mortal()
    stand_in(mortal)
    monkeypatch.setattr("pie_anyio.cli._demo._BOOTS", 0)
    result = invoke("demo", "--questions", "30")
    assert result.code == 1
    assert mortal.boots == 1
    assert "could not be asked" in result.stderr


def test_a_connection_that_is_lost_without_a_death(
    invoke: Invoke, stand_in: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that lives on after the connection was lost is not booted again; the questions stay open."""
    stand_in(Mortal(boots=0))
    monkeypatch.setattr(_demo_engine, "_DEATH_NOTICE", 0.01)
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


def test_a_run_that_is_listed_a_little_longer(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine may list a run for a moment after it has ended: that is not left running."""
    lists: list[list[str]] = [[], ["late"], ["late"]]

    async def list_processes(client: PieClient) -> list[str]:
        return lists.pop()

    monkeypatch.setattr("pie_anyio._client.ProcessClient.list_processes", list_processes)
    monkeypatch.setattr("pie_anyio.cli._demo._LOOK_AGAIN", 0)
    result = invoke("demo", "--questions", "3", "--engine", "simulated")
    assert result.code == 0
    assert "left running  0" in result.stdout
    assert lists == []


def test_a_run_that_goes_on_being_listed(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left running, and makes exit code 1."""

    async def list_processes(client: PieClient) -> list[str]:
        return ["stray"]

    monkeypatch.setattr("pie_anyio._client.ProcessClient.list_processes", list_processes)
    monkeypatch.setattr("pie_anyio.cli._demo._SETTLING", 0)
    result = invoke("demo", "--questions", "3", "--engine", "simulated")
    assert result.code == 1
    assert "left running  1" in result.stdout


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
        "buried": 0,
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
        ({"receipts": [Receipt(started=1, lost=1), Receipt(started=1, returned=1)], "buried": 1}, 0),
        ({"receipts": [Receipt(started=3, lost=2, returned=1)], "buried": 1}, 1),
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
