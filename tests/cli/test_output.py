# SPDX-License-Identifier: Apache-2.0
"""What is printed: neutralised text, figures, progress."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_anyio import AnyOutcome, Failed, PieError, Receipt, Returned, Timings
from pie_anyio.cli._figures import percentile, percentiles, seconds, spread, wilson
from pie_anyio.cli._output import Output, neutralised, receipt_fields, receipt_line
from pie_anyio.cli._progress import BarProgress, PlainProgress, Progress, Tally, make_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# ------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\rb\x7f\x9b", "a\\rb\\x7f\\x9b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("naïve 文字 🥧", "naïve 文字 🥧"),
    ],
)
def test_control_sequences_are_spelt_out(text: str, shown: str) -> None:
    """What would control the terminal is shown instead; text in any script stays."""
    assert neutralised(text) == shown


@given(st.text())
def test_nothing_unsafe_is_left(text: str) -> None:
    """Whatever comes, no control character but tab and newline gets through."""
    safe = neutralised(text)
    assert all(char in "\t\n" or not (ord(char) < 32 or 127 <= ord(char) < 160) for char in safe)
    assert neutralised(safe) == safe


def test_only_terminals_are_protected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets the bytes of the program as they are."""
    terminal, pipe = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", pipe)
    out = Output()
    out.stream("\x1b[31mred\n")
    out.stream("\x1b[31mred\n", error=True)
    assert terminal.getvalue() == "\\x1b[31mred\n"
    assert pipe.getvalue() == "\x1b[31mred\n"


def test_receipts() -> None:
    """A receipt is told with all that matters, and as JSON with everything."""
    receipt = Receipt(started=4, returned=1, terminated=2, refusals=3, unconfirmed=("abc",))
    line = receipt_line(receipt)
    assert line == "receipt: 4 started: 1 returned, 2 terminated, 1 unconfirmed (abc); 3 refusals waited out"
    fields = receipt_fields(receipt)
    assert fields["unconfirmed"] == ["abc"]
    assert fields["failed"] == 0


# ---------------------------------------------------------------------------------------------------------- figures


def test_percentiles() -> None:
    """Known values, interpolated as the common statistics libraries do."""
    values = [float(number) for number in range(1, 101)]
    assert percentile(values, 50) == pytest.approx(50.5)
    assert percentile(values, 95) == pytest.approx(95.05)
    assert percentile([7.0], 99) == 7.0
    assert percentiles([]) == {}
    assert list(percentiles([1.0])) == ["p50", "p95", "p99"]
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_percentiles_lie_within(values: list[float], percent: float) -> None:
    """A percentile is between the smallest and the largest value."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    assert low <= percentile(ordered, percent) <= high * (1 + 1e-9)


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [(30, 120, 0.1811, 0.3344), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 2, 0.0945, 0.9055)],
)
def test_wilson(hits: int, trials: int, low: float, high: float) -> None:
    """Known values of the 95 % interval."""
    assert wilson(hits, trials) == pytest.approx((low, high), abs=1e-4)


def test_wilson_of_nothing() -> None:
    """No trials, no knowledge."""
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("value", "text"), [(123.4, "123 s"), (12.34, "12.3 s"), (0.01234, "12.3 ms")])
def test_durations(value: float, text: str) -> None:
    """Three digits that mean something."""
    assert seconds(value) == text


def test_spreads() -> None:
    """Percentiles on a line, or the word for nothing."""
    assert spread([1.0]) == "p50 1 s, p95 1 s, p99 1 s"
    assert spread([]) == "none"


# --------------------------------------------------------------------------------------------------------- progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def returned(index: int, **more: Any) -> AnyOutcome:
    return Returned(
        index=index, key=index, timings=Timings(submitted=0.0, first_output=1.0, ended=2.0), **more
    )


def failed(index: int) -> AnyOutcome:
    return Failed(index=index, key=index, error=PieError("no"), timings=Timings(submitted=0.0))


def test_plain_progress(capfd: pytest.CaptureFixture[str]) -> None:
    """A line every five seconds, and one at the end."""
    clock = Clock()
    with PlainProgress(Tally(4), "work", Output(), clock) as progress:
        progress.add(returned(0), 2)
        clock.now = 5.0
        progress.add(returned(1, refusals=3), 2)
        clock.now = 6.0
        progress.add(failed(2), 1)
        clock.now = 8.0
    assert capfd.readouterr().err.splitlines() == [
        "work: 2 of 4 done, 0.4/s, 2 live, median 2 s, 3 refusals",
        "work: 3 of 4 done, 0.375/s, 1 live, 1 failed, median 2 s, 3 refusals",
    ]


def test_plain_progress_of_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Without a total and without any time."""
    with PlainProgress(Tally(None), "work", Output(), Clock()):
        pass
    assert capfd.readouterr().err == "work: 0 done, 0/s, 0 live\n"


def test_time_begins_anew_before_the_first_outcome() -> None:
    """What it takes to prepare does not count; what was counted stays."""
    clock = Clock()
    progress = Progress(Tally(1), "work", clock)
    clock.now = 5.0
    progress.restart()
    clock.now = 6.0
    progress.add(returned(0), 0)
    progress.restart()
    assert progress.elapsed == 1.0


def test_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar shows counts, and gives the cursor back."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    clock = Clock()
    with BarProgress(Tally(2), "work", clock) as progress:
        clock.now = 1.0
        progress.add(returned(0), 1)
        progress.add(returned(1), 0)
    text = terminal.getvalue()
    assert "1/2" in text
    assert "2/2" in text
    assert "\x1b[?25h" in text.rpartition("\x1b[?25l")[2]


@pytest.mark.parametrize(
    ("style", "terminal", "quiet", "expected"),
    [
        (None, True, False, BarProgress),
        (None, False, False, PlainProgress),
        (None, True, True, Progress),
        ("none", True, False, Progress),
        ("plain", True, False, PlainProgress),
        ("bar", False, False, BarProgress),
    ],
)
def test_styles(
    monkeypatch: pytest.MonkeyPatch, style: Any, terminal: bool, quiet: bool, expected: type[Progress]
) -> None:
    """A bar on a terminal, lines elsewhere, nothing if quiet; unless told otherwise."""
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    assert type(make_progress(style, Tally(1), "work", Output(quiet=quiet))) is expected
