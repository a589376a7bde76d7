# SPDX-License-Identifier: Apache-2.0
"""The soak: its load runs on both loops, and its judgement sees what rises and what is left."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
QUIET = {"rss_kib": 50_000.0, "fds": 9, "tasks": 3}


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, which is no package of ours."""
    if not FOLDER.is_dir():
        pytest.skip("the benchmarks are not here")
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("soak")
    yield module
    for name in ("soak", "machine"):
        sys.modules.pop(name, None)


def made(slopes: dict[str, float] | None = None, *, left: int = 0) -> dict[str, Any]:
    """Samples of a hundred seconds, in which something rises by so much each second."""
    samples = [
        {"at": float(at), **{name: value + (slopes or {}).get(name, 0) * at for name, value in QUIET.items()}}
        for at in range(100)
    ]
    return {"before": QUIET, "after": QUIET, "left": left, "samples": samples}


def test_what_stays_is_no_fault(soak: Any) -> None:
    """Neither is what falls."""
    assert soak.judge(made())["faults"] == []
    assert soak.judge(made({"rss_kib": -100, "tasks": -0.02}))["faults"] == []


@pytest.mark.parametrize(("name", "slope"), [("rss_kib", 60), ("fds", 0.05), ("tasks", 0.1)])
def test_what_rises_is_a_fault(soak: Any, name: str, slope: float) -> None:
    """By more than its bound, over the time behind the warm-up."""
    (fault,) = soak.judge(made({name: slope}))["faults"]
    assert name in fault


def test_what_is_left_is_a_fault(soak: Any) -> None:
    """Files and tasks that there were not before, and processes on the engine."""
    result = {**made(left=2), "after": {**QUIET, "fds": 10, "tasks": 5}}
    assert len(soak.judge(result)["faults"]) == 3


def test_memory_that_is_taken_at_the_start_is_none(soak: Any) -> None:
    """The warm-up does not count."""
    result = made()
    for sample in result["samples"][:15]:
        sample["rss_kib"] = 1000.0
    assert soak.judge(result)["faults"] == []


@pytest.mark.slow
def test_a_short_one(soak: Any, tmp_path: Path) -> None:
    """Two seconds on each loop: every worker does its work, and nothing is left afterwards."""
    out, page = tmp_path / "soak.json", tmp_path / "soak.md"
    soak.BOUNDS = dict.fromkeys(soak.BOUNDS, 1e9)  # it is all warm-up
    assert soak.main(["--seconds", "2", "--out", str(out), "--page", str(page)]) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    for loop in ("asyncio", "trio"):
        done = report["loops"][loop]["done"]
        assert len(done) >= 7, done
        assert report["loops"][loop]["faults"] == []
        assert f"| {loop} | 2 | memory (RSS) |" in page.read_text(encoding="utf-8")
