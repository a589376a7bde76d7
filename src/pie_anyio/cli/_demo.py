# SPDX-License-Identifier: Apache-2.0
"""``demo``: an evaluation from beginning to end, on engines of its own."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import IO, TYPE_CHECKING, Any, Final

import attrs
import click
from anyio import create_task_group, sleep

from pie_anyio import AnyOutcome, ClientPool, Failed, Receipt, Returned, map_processes

from ._demo_report import Report
from ._errors import INTERRUPTED, UserError
from ._examples import examples_folder
from ._figures import seconds
from ._inputs import Item
from ._journal import outcome_record
from ._loop import Cli, asynchronous
from ._output import as_json
from ._progress import STYLES, Progress, Style, Tally, make_progress

if TYPE_CHECKING:
    from ._demo_engine import DemoEngines, EngineChoice

_PROGRAM: Final = "choice@0.1.0"
_LIMIT: Final = 16
_SETTLING: Final = 5.0
"""Seconds for engines to forget the runs that have ended."""
_LOOK_AGAIN: Final = 0.1
_BOOTS: Final = 30
"""How often engines may die before the demonstration gives up."""


@attrs.define
class _Evaluation:
    """The questions, and what has become of them so far."""

    cli: Cli
    questions: dict[str, dict[str, Any]]
    results: IO[str]
    progress: Progress
    answers: dict[str, AnyOutcome] = attrs.Factory(dict[str, AnyOutcome])
    receipts: list[Receipt] = attrs.Factory(list[Receipt])
    left_running: int = 0
    deaths: int = 0
    buried: int = 0
    """Runs that went down with an engine, and so cannot be running any more."""

    @property
    def open(self) -> list[dict[str, Any]]:
        """Questions without a final answer."""
        return [question for name, question in self.questions.items() if name not in self.answers]

    def take(self, outcome: AnyOutcome, live: int) -> None:
        """Note an outcome; one that went down with the engine leaves its question open."""
        if isinstance(outcome, Returned | Failed):
            question = self.questions[outcome.key]
            self.answers[outcome.key] = outcome
            index = list(self.questions).index(outcome.key)
            record = outcome_record(Item(outcome.key, index, question), outcome)
            self.results.write(
                as_json({**record, "question": question["question"], "answer": question["answer"]})
            )
            self.results.write("\n")
            self.results.flush()
            self.progress.add(outcome, live)


@click.command("demo", short_help="See an evaluation from end to end")
@click.option(
    "--questions", "count", type=click.IntRange(1, 158), default=120, show_default=True, help="How many."
)
@click.option("--output", "-o", default="demo-results.jsonl", show_default=True, help="Where results go.")
@click.option(
    "--engine",
    "choice",
    type=click.Choice(["auto", "real", "simulated"]),
    default="auto",
    show_default=True,
    help="Which engine to boot.",
)
@click.option("--progress", "style", type=click.Choice(STYLES), help="[bar on a terminal, plain elsewhere]")
@asynchronous
async def demo(cli: Cli, *, count: int, output: str, choice: EngineChoice, style: Style | None) -> int:
    """Boot engines, upload a program, and have it answer multiple-choice questions, 16 at a time.

    The engine is the real one where it runs (it needs the extra 'engine' and a Vulkan device), one for each CPU core
    up to two, with random weights: the scores are the model's own, and mean nothing. Otherwise it is a simulated one.
    """
    from ._demo_engine import demo_engines

    folder = examples_folder()
    questions = read_questions(folder / "capitals.jsonl", count)
    with _results(output) as results:
        began = monotonic()
        async with demo_engines(choice) as engines:
            _introduce(cli, engines, monotonic() - began)
            progress = make_progress(style, Tally(len(questions)), "questions", cli.out)
            evaluation = _Evaluation(cli, questions, results, progress)
            with cli.stoppable():  # the engines are to outlive the runs that are being ended on them
                await _evaluate(evaluation, engines, folder / "choice")
    if cli.interrupted:
        return INTERRUPTED
    report = Report(
        questions=questions,
        answers=evaluation.answers,
        tally=evaluation.progress.tally,
        seconds=evaluation.progress.elapsed,
        receipts=evaluation.receipts,
        deaths=evaluation.deaths,
        buried=evaluation.buried,
        left_running=evaluation.left_running,
        random_weights=bool(engines.reals),
    )
    report.print(cli.out)
    cli.out.result(f"results       {output}")
    return report.exit_code


def read_questions(path: Path, count: int) -> dict[str, dict[str, Any]]:
    """Read the first questions of a file, by their ids."""
    lines = path.read_text(encoding="utf-8").splitlines()[:count]
    return {question["id"]: question for question in map(json.loads, lines)}


@contextmanager
def _results(name: str) -> Generator[IO[str]]:
    try:
        file = open(name, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as exc:
        msg = f"cannot write {name}: {exc.strerror}"
        raise UserError(msg, hint="--output names another file") from exc
    with file:
        yield file


def _introduce(cli: Cli, engines: DemoEngines, took: float) -> None:
    cli.out.note(f"engine: {engines.description}; up after {seconds(took)} at {', '.join(engines.urls)}")
    cli.out.record(
        "engine", urls=list(engines.urls), real=bool(engines.reals), description=engines.description
    )


async def _evaluate(evaluation: _Evaluation, engines: DemoEngines, program: Path) -> None:
    """Ask until every question is answered; real engines that die on the way are booted again."""
    while True:
        lost = await _ask(evaluation, engines, program)
        left = len(evaluation.open)
        if not left:
            return
        revived = 0
        if evaluation.deaths < _BOOTS:
            for number, runs in lost.items():
                if await engines.revive(number):
                    revived += 1
                    evaluation.buried += runs
        if not revived:
            evaluation.cli.out.urgent(f"{left} questions could not be asked: the connection was lost")
            return
        evaluation.deaths += revived
        evaluation.cli.out.note(
            f"an engine died (a known race with software Vulkan devices) and was booted again; {left} questions to go"
        )


async def _ask(evaluation: _Evaluation, engines: DemoEngines, program: Path) -> dict[int, int]:
    """Ask the open questions, over one connection to each engine; give how many runs were lost, by lost engine."""
    async with ClientPool(engines.urls) as pool:
        await _install(evaluation, pool, program)
        evaluation.progress.restart()
        questions = _while_complete(pool, evaluation.open)
        call = map_processes(pool, _PROGRAM, questions, limit=_LIMIT, on_error="collect", key=_identify)
        try:
            async with call as outcomes:
                with evaluation.progress:
                    async for outcome in outcomes:
                        evaluation.take(outcome, outcomes.live)
        finally:
            evaluation.receipts.append(call.receipt)
            evaluation.cli.account(call.receipt)
        if not evaluation.open:  # after the last answer, ask what is still running
            evaluation.left_running = await _count_running(pool)
        return {
            number: client.receipt.lost
            for number, client in enumerate(pool.clients)
            if not client.session.is_connected
        }


async def _count_running(pool: ClientPool) -> int:
    """Count what the engines list as running; one lists a run a little longer than until it has told of its end."""
    deadline = monotonic() + _SETTLING
    while True:
        running = sum([len(await client.list_processes()) for client in pool.clients])
        if not running or monotonic() >= deadline:
            return running
        await sleep(_LOOK_AGAIN)


async def _install(evaluation: _Evaluation, pool: ClientPool, program: Path) -> None:
    """Upload the program to the engines that do not have it, all at once."""
    began = monotonic()
    missing = [client for client in pool.clients if not await client.check_program(_PROGRAM)]
    async with create_task_group() as tasks:
        for client in missing:
            tasks.start_soon(client.install_program, program / "main.py", program / "Pie.toml")
    if missing:
        evaluation.cli.out.note(f"uploaded {_PROGRAM} in {seconds(monotonic() - began)}")


def _while_complete(pool: ClientPool, questions: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Give questions as long as no connection is lost: then the rest has to wait for the engine's next boot."""
    for question in questions:
        if not all(client.session.is_connected for client in pool.clients):
            return
        yield question


def _identify(question: dict[str, Any]) -> str:
    return str(question["id"])
