# SPDX-License-Identifier: Apache-2.0
"""What the demonstration found: accuracy, throughput, latencies, and the account of every run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from pie_anyio import AnyOutcome, Receipt

from ._errors import FAILED, OK
from ._figures import percentiles, seconds, spread, wilson
from ._output import Output, receipt_fields, receipt_line
from ._progress import Tally


@attrs.frozen(kw_only=True)
class Report:
    """The result of an evaluation."""

    questions: dict[str, dict[str, Any]]
    answers: dict[str, AnyOutcome]
    tally: Tally
    seconds: float
    receipts: Sequence[Receipt]
    """One for each round of questions; there are several only where an engine died on the way."""
    deaths: int
    buried: int
    """Runs that went down with engines that were seen to be dead."""
    left_running: int
    """Processes that the engine listed after the last answer."""
    random_weights: bool

    @property
    def right(self) -> int:
        """How many answers are right."""
        return sum(
            outcome.ok and outcome.value["choice"] == self.questions[name]["answer"]
            for name, outcome in self.answers.items()
        )

    @property
    def receipt(self) -> Receipt:
        """All receipts in one."""
        return total(self.receipts)

    @property
    def clean(self) -> bool:
        """Whether nothing can be running: all seen to end, or gone with an engine that was seen to be dead."""
        receipt = self.receipt
        return attrs.evolve(receipt, lost=receipt.lost - self.buried).clean and not self.left_running

    @property
    def exit_code(self) -> int:
        """0 if all questions were answered and nothing can be running."""
        return OK if self.clean and self.tally.counts["returned"] == len(self.questions) else FAILED

    def print(self, out: Output) -> None:
        """Print the report."""
        answered = self.tally.counts["returned"]
        low, high = wilson(self.right, answered)
        rate = answered / self.seconds if self.seconds else 0.0
        out.record(
            "summary",
            questions=len(self.questions),
            answered=answered,
            right=self.right,
            accuracy=self.right / answered if answered else None,
            interval=[low, high],
            seconds=self.seconds,
            per_second=rate,
            latency=percentiles(self.tally.durations),
            first_output=percentiles(self.tally.first_outputs),
            receipt=receipt_fields(self.receipt),
            engine_deaths=self.deaths,
            left_running=self.left_running,
            exit_code=self.exit_code,
        )
        for line in self._lines(answered, low, high, rate):
            out.result(line)

    def _lines(self, answered: int, low: float, high: float, rate: float) -> Iterator[str]:
        share = self.right / answered if answered else 0.0
        why = "the model's weights are random" if self.random_weights else "the scores are pseudo-random"
        yield ""
        yield f"accuracy      {share:.3f} ({self.right} of {answered}), 95 % interval {low:.3f} to {high:.3f}"
        yield f"              {why}, so accuracy is chance: 0.25"
        yield f"throughput    {rate:.3g} questions/s ({seconds(self.seconds)})"
        yield f"latency       {spread(self.tally.durations)}"
        yield f"first output  {spread(self.tally.first_outputs)}"
        yield f"refusals      {self.receipt.refusals} waited out"
        if self.deaths:
            yield f"deaths        {self.deaths} of engines, which were booted again; {self.buried} runs went down with"
            yield "              them, and their questions were asked again"
        yield receipt_line(self.receipt)
        yield f"left running  {self.left_running}"


def total(receipts: Sequence[Receipt]) -> Receipt:
    """Add receipts up."""
    counts = [field.name for field in attrs.fields(Receipt) if field.name != "unconfirmed"]
    sums = {name: sum(getattr(receipt, name) for receipt in receipts) for name in counts}
    return Receipt(**sums, unconfirmed=tuple(name for receipt in receipts for name in receipt.unconfirmed))
