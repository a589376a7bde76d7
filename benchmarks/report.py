# SPDX-License-Identifier: Apache-2.0
"""From the list of runs to medians, ratios, tables and pages.

Ratios are taken inside a round and the median of those is shown, because what the machine does besides moves all
figures of one round together.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from catalogue import (
    CASES,
    COMMON,
    FLOOR,
    OFFICIAL,
    PEERS,
    RSS,
    SUITE,
    SUITE_WITHOUT_MAP,
    TARGETS,
    Case,
    Metric,
    Target,
    scaling_cases,
)

ALL_CASES = {case.key: case for case in (*CASES, *scaling_cases(1_000_000))}
Rows = dict[str, dict[str, dict[int, dict[str, Any]]]]

# --------------------------------------------------------------------------------------------------------- summary


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians per case, peer and metric, ratios, the suite's peak memory, and the targets."""
    rows: Rows = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        if "error" not in run and run["case"] in ALL_CASES:
            rows[run["case"]][run["peer"]][run["round"]] = run
    cases = {key: _summarise_case(ALL_CASES[key], rows[key]) for key in ALL_CASES if key in rows}
    rest = {key: case for key, case in cases.items() if key != "map"}
    summary: dict[str, Any] = {"cases": cases, "failed": _failed(runs)}
    summary |= {SUITE: _suite(cases), SUITE_WITHOUT_MAP: _suite(rest)}
    summary["targets"] = [_judge(target, summary) for target in TARGETS]
    return summary


def _failed(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"case": run["case"], "peer": run["peer"], "round": run["round"], "error": run["error"]}
        for run in runs
        if "error" in run
    ]


def _summarise_case(case: Case, peers: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    metrics = {}
    for metric in (*case.metrics, *COMMON):
        values = {peer: _values(rounds, metric) for peer, rounds in peers.items()}
        values = {peer: by_round for peer, by_round in values.items() if by_round}
        if values:
            metrics[metric.name] = _summarise_metric(metric, values)
    return {"title": case.title, "metrics": metrics}


def _values(rounds: dict[int, dict[str, Any]], metric: Metric) -> dict[int, float]:
    return {
        n: run["metrics"][metric.name]["value"] for n, run in rounds.items() if metric.name in run["metrics"]
    }


def _summarise_metric(metric: Metric, values: dict[str, dict[int, float]]) -> dict[str, Any]:
    medians = {peer: median(by_round.values()) for peer, by_round in values.items()}
    official = [peer for peer in OFFICIAL if peer in medians]
    best = (max if metric.higher_is_better else min)(official, key=medians.__getitem__) if official else None
    return {
        "unit": metric.unit,
        "label": metric.label,
        "official": best,
        "peers": {
            peer: {
                "median": medians[peer],
                "least": min(by_round.values()),
                "most": max(by_round.values()),
                "rounds": len(by_round),
                "to_official": _ratio(by_round, values.get(best or "")),
                "to_floor": _ratio(by_round, values.get(FLOOR)),
            }
            for peer, by_round in values.items()
        },
    }


def _ratio(mine: dict[int, float], theirs: dict[int, float] | None) -> float | None:
    shared = [number for number in mine if theirs and theirs.get(number)]
    return median(mine[number] / theirs[number] for number in shared) if theirs and shared else None


def _suite(cases: dict[str, Any]) -> dict[str, float]:
    """Return the largest median peak of each peer, over the cases that all of the compared peers ran."""
    compared = {peer.name for peer in PEERS if peer.name in OFFICIAL or peer.name.startswith("pie-")}
    present = {peer for case in cases.values() for peer in case["metrics"].get(RSS.name, {}).get("peers", {})}
    compared &= present
    peaks: dict[str, float] = {}
    for key, case in cases.items():
        peers = case["metrics"].get(RSS.name, {}).get("peers", {})
        if ALL_CASES[key].in_suite and compared <= peers.keys():
            for peer in compared:
                peaks[peer] = max(peaks.get(peer, 0.0), peers[peer]["median"])
    return peaks


# --------------------------------------------------------------------------------------------------------- targets


def _judge(target: Target, summary: dict[str, Any]) -> dict[str, Any]:
    line: dict[str, Any] = {
        "label": target.label,
        "against": target.against,
        "at_least": target.at_least,
        "unit": target.unit,
    }
    for loop, goal in (("asyncio", target.asyncio), ("trio", target.trio)):
        value = _measured(target, summary, f"pie-{loop}")
        met = None if value is None else (value >= goal if target.at_least else value <= goal)
        line[loop] = {"goal": goal, "value": value, "met": met}
    return line


def _measured(target: Target, summary: dict[str, Any], peer: str) -> float | None:
    if target.case in {SUITE, SUITE_WITHOUT_MAP}:
        peaks = summary[target.case]
        # The leaner of the official versions: the harder one to beat.
        official = [peaks[name] for name in OFFICIAL if name in peaks]
        return peaks[peer] / min(official) if peer in peaks and official else None
    metric = summary["cases"].get(target.case, {}).get("metrics", {}).get(target.metric, {})
    figures = metric.get("peers", {}).get(peer)
    if figures is None:
        return None
    value = figures[{"official": "to_official", "floor": "to_floor", "value": "median"}[target.against]]
    return None if value is None else float(value)


# ---------------------------------------------------------------------------------------------------------- tables


def quantity(value: float | None, unit: str = "") -> str:
    """Return a figure with three significant digits and its unit."""
    if value is None:
        return "-"
    size = abs(value)
    if unit == "us" and size >= 1000:
        return quantity(value / 1000, "ms")
    if size >= 1e6 and unit == "/s":
        text = f"{value / 1e6:.2f} M"
    elif size >= 1e4 and unit == "/s":
        text = f"{value / 1e3:.1f} k"
    elif size >= 100:
        text = f"{value:.0f}"
    elif size >= 10:
        text = f"{value:.1f}"
    else:
        text = f"{value:.2f}"
    return f"{text} {unit}".strip()


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table, padded so that it reads well as text too."""
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def targets_table(summary: dict[str, Any]) -> str:
    """Return the table of targets and what was measured."""
    rows = []
    for line in summary["targets"]:
        cells = [line["label"], {"official": "official", "floor": "floor", "value": ""}[line["against"]]]
        for loop in ("asyncio", "trio"):
            figure = line[loop]
            sign = ">=" if line["at_least"] else "<="
            mark = {None: "not measured", True: "met", False: "**missed**"}[figure["met"]]
            cells += [
                f"{sign} {figure['goal']:g} {line['unit']}",
                f"{quantity(figure['value'], line['unit'])} ({mark})",
            ]
        rows.append(cells)
    return table(
        ["figure", "against", "asyncio: goal", "asyncio: measured", "trio: goal", "trio: measured"], rows
    )


def case_table(case: dict[str, Any]) -> str:
    """Return one case: a row per peer, a column per metric."""
    metrics = case["metrics"]
    names = [peer.name for peer in PEERS if any(peer.name in m["peers"] for m in metrics.values())]
    own = [name for name in metrics if name not in {m.name for m in COMMON}]
    head = [
        "",
        *(metrics[name]["label"] for name in metrics),
        *(f"{metrics[n]['label']}: x official" for n in own[:1]),
    ]
    rows = []
    for peer in names:
        cells = [peer]
        for metric in metrics.values():
            figures = metric["peers"].get(peer)
            cells.append(quantity(figures["median"], metric["unit"]) if figures else "-")
        cells += [quantity((metrics[name]["peers"].get(peer) or {}).get("to_official")) for name in own[:1]]
        rows.append(cells)
    return table(head, rows)


# ------------------------------------------------------------------------------------------------------------ pages


def write_docs(results: dict[str, Any], path: Path, docs: Path, environments: Any) -> list[Path]:
    """Write docs/performance.md and its plots; return what was written."""
    docs.mkdir(exist_ok=True)
    page = docs / "performance.md"
    plots = _plots(path, docs / "_static", environments)
    page.write_text(render(results, [plot.name for plot in plots]), encoding="utf-8")
    return [page, *plots]


def _plots(results: Path, folder: Path, environments: Any) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    here = importlib.util.find_spec("matplotlib") is not None
    python = sys.executable if here else str(environments.python("tools"))
    script = Path(__file__).resolve().parent / "plots.py"
    done = subprocess.run(
        [python, str(script), str(results), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode:
        print(f"no plots: {done.stderr.strip()[-500:]}")
    return [folder / name for name in done.stdout.split()]


INTRODUCTION = """\
# Performance

<!-- Written by `make bench` from benchmarks/results.json. Do not edit: change benchmarks/report.py instead. -->

How fast the client is, and what it costs.  Each figure is a median over {rounds} rounds (the million inputs and the
plots over n: over one); each run is a fresh process that does one workload against a load engine in another process,
which writes frames that it encoded beforehand.  The peers are interleaved within a round.  A ratio is taken inside a
round, and the median of those is shown.  "Official" is pie-client 0.4.0 or 0.5.3, whichever does better on that line.
The *floor* is a blocking socket, the header of a frame and msgpack, with no client and no event loop: what a Python
client could reach if delivering events cost nothing.  The method, and what was done to make the official clients as
fast as they can be, is in `benchmarks/README.md`.
"""


def render(results: dict[str, Any], plots: list[str]) -> str:
    """Return the page as Markdown."""
    summary = results["summary"]
    parts = [
        INTRODUCTION.format(rounds=results["rounds"]),
        _origin(results),
        "## Targets",
        targets_table(summary),
    ]
    parts += _figures(plots)
    parts.append("## Workloads")
    parts.append("CPU is that of the client in the timed part; peak RSS is that of its whole process.")
    for key, case in summary["cases"].items():
        if not ALL_CASES[key].scaling:
            parts += [f"### {case['title'][0].upper()}{case['title'][1:]}", case_table(case)]
    if summary[SUITE]:
        parts += ["### Peak memory over all of the above", _suite_table(summary)]
    if "real_engine" in results:
        parts += ["## On the real engine", _real_engine(results["real_engine"])]
    if summary["failed"]:
        parts += ["## Runs that failed", _failures(summary["failed"])]
    return "\n\n".join(parts) + "\n"


def _origin(results: dict[str, Any]) -> str:
    machine = results["machine"]
    versions: dict[str, dict[str, str]] = {}
    for run in results["runs"]:
        versions.setdefault(run["peer"], {}).update(run.get("versions") or {})
    rows = [
        [
            "machine",
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}",
        ],
        ["date", results["date"]],
        ["commit", results["commit"]],
        ["load average at the end", str(machine["load_average"])],
        *(
            [
                peer.name,
                ", ".join(f"{name} {version}" for name, version in sorted(versions[peer.name].items())),
            ]
            for peer in PEERS
            if versions.get(peer.name)
        ),
    ]
    return table(["", ""], rows)


def _suite_table(summary: dict[str, Any]) -> str:
    both = summary[SUITE], summary[SUITE_WITHOUT_MAP]
    rows = [
        [peer.name, *(quantity(peaks.get(peer.name), "MiB") for peaks in both)]
        for peer in PEERS
        if peer.name in both[0]
    ]
    note = "\n\nOver the million inputs the official clients keep a queue for every run, hence the second column."
    return table(["", "peak RSS", "without the million inputs"], rows) + note


def _figures(plots: list[str]) -> list[str]:
    captions = {
        "bench-ratios.svg": "pie-anyio against the faster official client",
        "bench-runs.svg": "time against the number of runs",
        "bench-alive.svg": "memory against the number of live processes",
        "bench-size.svg": "events against their size",
        "bench-latency.svg": "latency of the first event",
    }
    return [f"![{captions.get(name, name)}](_static/{name})" for name in plots]


def _real_engine(rows: list[dict[str, Any]]) -> str:
    body = [
        [
            row["peer"],
            quantity(row["runs_per_s"], "/s"),
            f"{row['cpu_share'] * 100:.1f} %",
            quantity(row["p50_ms"], "ms"),
            quantity(row["p99_ms"], "ms"),
            str(row["rounds"]),
        ]
        for row in rows
    ]
    head = ["", "runs/s, 64 in flight", "client CPU / wall", "run p50", "run p99", "rounds"]
    return "pie-server 0.5.2 on this machine's CPU; the program returns its input.\n\n" + table(head, body)


def _failures(failed: list[dict[str, Any]]) -> str:
    rows = [
        [f["case"], f["peer"], str(f["round"]), f["error"].splitlines()[-1][:100].replace("|", "/")]
        for f in failed
    ]
    return table(["case", "peer", "round", "why"], rows)
