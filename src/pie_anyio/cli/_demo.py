# SPDX-License-Identifier: Apache-2.0
"""``demo``: an evaluation from beginning to end, on an engine of its own."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import IO, TYPE_CHECKING, Any, Final

import attrs
import click

from pie_anyio import AnyOutcome, Failed, PieClient, Receipt, Returned

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
    from ._demo_engine import DemoEngine, EngineChoice

_PROGRAM: Final = "choice@0.1.0"
_LIMIT: Final = 16
_BOOTS: Final = 30
"""How often the engine may die before the demonstration gives up."""


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
    """Boot an engine, upload a program, and have it answer multiple-choice questions, 16 at a time.

    The engine is the real one where it runs (it needs the extra 'engine' and a Vulkan device), with random weights:
    the scores are the model's own, and mean nothing. Otherwise it is a simulated one.
    """
    from ._demo_engine import demo_engine

    folder = examples_folder()
    questions = read_questions(folder / "capitals.jsonl", count)
    with _results(output) as results:
        began = monotonic()
        async with demo_engine(choice) as engine:
            cli.out.note(
                f"engine: {engine.description}; up after {seconds(monotonic() - began)} at {engine.url}"
            )
            cli.out.record(
                "engine", url=engine.url, real=engine.real is not None, description=engine.description
            )
            progress = make_progress(style, Tally(len(questions)), "questions", cli.out)
            evaluation = _Evaluation(cli, questions, results, progress)
            with cli.stoppable():  # the engine is to outlive the runs that are being ended on it
                await _evaluate(evaluation, engine, folder / "choice")
    if cli.interrupted:
        return INTERRUPTED
    report = Report(
        questions=questions,
        answers=evaluation.answers,
        tally=evaluation.progress.tally,
        seconds=evaluation.progress.elapsed,
        receipts=evaluation.receipts,
        deaths=evaluation.deaths,
        left_running=evaluation.left_running,
        random_weights=engine.real is not None,
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


async def _evaluate(evaluation: _Evaluation, engine: DemoEngine, program: Path) -> None:
    """Ask until every question is answered; a real engine that dies on the way is booted again."""
    while True:
        await _ask(evaluation, engine.url, program)
        left = len(evaluation.open)
        if not left:
            return
        if evaluation.deaths == _BOOTS or not await engine.revive():
            evaluation.cli.out.urgent(f"{left} questions could not be asked: the connection was lost")
            return
        evaluation.deaths += 1
        evaluation.cli.out.note(
            f"the engine died (a known race with software Vulkan devices) and was booted again; {left} questions to go"
        )


async def _ask(evaluation: _Evaluation, url: str, program: Path) -> None:
    """Ask the open questions over one connection."""
    out = evaluation.cli.out
    async with PieClient(url) as client:
        if not await client.check_program(_PROGRAM):
            began = monotonic()
            await client.install_program(program / "main.py", program / "Pie.toml")
            out.note(f"uploaded {_PROGRAM} in {seconds(monotonic() - began)}")
        evaluation.progress.restart()
        call = client.map_processes(
            _PROGRAM, evaluation.open, limit=_LIMIT, on_error="collect", key=_identify
        )
        try:
            async with call as outcomes:
                with evaluation.progress:
                    async for outcome in outcomes:
                        evaluation.take(outcome, outcomes.live)
        finally:
            evaluation.receipts.append(call.receipt)
            evaluation.cli.account(call.receipt)
        await _look_around(evaluation, client)


async def _look_around(evaluation: _Evaluation, client: PieClient) -> None:
    """After the last answer, ask the engine what is still running on it."""
    if not evaluation.open:
        evaluation.left_running = len(await client.list_processes())


def _identify(question: dict[str, Any]) -> str:
    return str(question["id"])
