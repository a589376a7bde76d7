# SPDX-License-Identifier: Apache-2.0
"""Hold a mixed load for minutes, and see that memory, open files and tasks stay where they are.

``python -m benchmarks.soak --seconds 300`` runs ``soak_load.py`` on asyncio and on trio against a simulated engine in a
process of its own, writes ``soak.json`` and from that ``docs/soak.md``, and fails where something has grown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import linear_regression, mean
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
sys.path.insert(0, str(FOLDER))

import machine  # noqa: E402 - beside this file, which may be run as a module or as a program

LOOPS = ("asyncio", "trio")
WARM_UP = 0.2
"""The share of the time whose samples do not count: caches fill, and the allocator finds its size."""
KEPT = 60
"""Samples of each loop that are written down."""
BOUNDS = {"rss_kib": 4096.0, "fds": 3.0, "tasks": 6.0}
"""By how much the line through the samples may rise from the first to the last."""


def judge(result: dict[str, Any]) -> dict[str, Any]:
    """Fit a line through what was sampled after the warm-up, and say what rose by more than it may."""
    samples = result["samples"]
    samples = [sample for sample in samples if sample["at"] >= samples[-1]["at"] * WARM_UP]
    times = [sample["at"] for sample in samples]
    trends: dict[str, Any] = {}
    faults: list[str] = []
    for name, bound in BOUNDS.items():
        values = [sample[name] for sample in samples]
        slope = linear_regression(times, values).slope if len(samples) > 1 else 0.0
        rise = slope * (times[-1] - times[0])
        trends[name] = {"mean": round(mean(values), 1), "rise": round(rise, 1), "bound": bound}
        if rise > bound:
            faults.append(f"{name} rose by {rise:.1f}, more than {bound:g}")
    faults += [
        f"{name}: {result['before'][name]} before, {result['after'][name]} afterwards"
        for name in ("fds", "tasks")
        if result["after"][name] > result["before"][name]
    ]
    if result["left"]:
        faults.append(f"{result['left']} processes are left on the engine")
    return {"trends": trends, "faults": faults}


@contextmanager
def engine() -> Iterator[str]:
    """Serve a simulated engine in a process of its own, and give its URL."""
    command = (sys.executable, "-m", "pie_anyio.testing.engine", "--port", "0")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def run(loop: str, seconds: float) -> dict[str, Any]:
    """Hold the load on one loop."""
    every = max(0.1, min(1.0, seconds / 300))
    with engine() as url:
        command = (sys.executable, str(FOLDER / "soak_load.py"), loop, url, str(seconds), str(every))
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=seconds + 120)
    result: dict[str, Any] = json.loads(done.stdout)
    result |= {"seconds": seconds, **judge(result)}
    step = max(1, len(result["samples"]) // KEPT)
    result["samples"] = result["samples"][::step]
    return result


# -------------------------------------------------------------------------------------------------------- the report

NAMES = {"rss_kib": "memory (RSS)", "fds": "open files", "tasks": "tasks"}


def show(name: str, value: float) -> str:
    """Write a figure of one kind."""
    return f"{value / 1024:.1f} MiB" if name == "rss_kib" else f"{value:.1f}"


def page(report: dict[str, Any]) -> str:
    """Make the page of the documentation."""
    where = report["machine"]
    lines = [
        "# Soak",
        "",
        "`make soak` writes this page. One process per loop holds a mixed load against a simulated engine: maps,",
        "conversations by signal, files both ways, blocks that are cancelled at some moment, new connections,",
        "connections that are cut at a random byte, and maps that go on over such cuts. Memory, open files and tasks",
        f"are sampled all the while. The first {WARM_UP:.0%} of the time are warm-up; through the rest a line is",
        "drawn, and how far it rises is bounded. Afterwards there must be no more open files and tasks than before,",
        "and no process left on the engine.",
        "",
        f"{report['date']}, commit {report['commit']}; {where['cpu']}, {where['cores']} cores, {where['system']}.",
        "",
        "| loop | seconds | what | mean | rise | bound |",
        "|---|---|---|---|---|---|",
    ]
    for loop, result in report["loops"].items():
        for name, trend in result["trends"].items():
            figures = " | ".join(show(name, trend[key]) for key in ("mean", "rise", "bound"))
            lines.append(f"| {loop} | {result['seconds']:g} | {NAMES[name]} | {figures} |")
    kinds = sorted({kind for result in report["loops"].values() for kind in result["done"]})
    loops = list(report["loops"])
    lines += ["", f"| what was done | {' | '.join(loops)} |", "|---" * (len(loops) + 1) + "|"]
    for kind in kinds:
        counts = " | ".join(str(report["loops"][loop]["done"].get(kind, 0)) for loop in loops)
        lines.append(f"| {kind} | {counts} |")
    for loop, result in report["loops"].items():
        lines += ["", f"{loop}: " + ("; ".join(result["faults"]) or "nothing rose, nothing was left.")]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Run both loops, write the report, and give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="for each loop (default: %(default)g)")
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--out", type=Path, default=FOLDER / "soak.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "soak.md")
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {**machine.describe(ROOT), "loops": {}}
    for loop in options.loops:
        result = report["loops"][loop] = run(loop, options.seconds)
        print(f"{loop}, {options.seconds:g} s: {result['done']}")
        for name, trend in result["trends"].items():
            print(
                f"  {NAMES[name]:14} mean {show(name, trend['mean']):>10}, rise {show(name, trend['rise']):>9}"
            )
        print("  " + ("; ".join(result["faults"]) or "nothing rose, nothing was left"), flush=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    options.page.write_text(page(report), encoding="utf-8")
    return int(any(result["faults"] for result in report["loops"].values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
