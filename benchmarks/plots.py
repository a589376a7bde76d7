# SPDX-License-Identifier: Apache-2.0
"""Draw the plots of docs/performance.md: `python plots.py results.json FOLDER`; prints the names of the files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
# The same figures give the same file, so that a new report shows up as a small difference.
mpl.rcParams.update({"svg.hashsalt": "pie-anyio", "svg.fonttype": "none", "font.size": 9, "axes.grid": True})
mpl.rcParams.update({"grid.alpha": 0.3, "axes.axisbelow": True, "legend.frameon": False})

from matplotlib import pyplot as plt  # noqa: E402

COLOURS = {
    "floor": "#999999",
    "official-0.4.0": "#d9a441",
    "official-0.5.3": "#c8642b",
    "official-0.5.3-uvloop": "#8c3b1f",
    "official-js-0.5.2": "#b8b33a",
    "pie-asyncio": "#2b6cb0",
    "pie-uvloop": "#123f73",
    "pie-trio": "#2f9e77",
}


def save(figure: Any, folder: Path, name: str) -> None:
    """Write one file and say so."""
    figure.tight_layout()
    figure.savefig(folder / name, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    print(name)


def ratios(summary: dict[str, Any], folder: Path) -> None:
    """Bars: how many times better than the official client, on a log axis."""
    wanted = [
        ("events64", "events_per_s", 1),
        ("events1", "events_per_s", 1),
        ("runs", "runs_per_s", 1),
        ("upload", "upload_mib_per_s", 1),
        ("files", "download_mib_per_s", 1),
        ("latency_idle", "ping_p50", -1),
        ("latency_loaded", "first_event_p99", -1),
        ("cancel", "cancel_seconds", -1),
        ("close04", "close_ms", -1),
    ]
    labels: list[str] = []
    bars: dict[str, list[float]] = {"pie-asyncio": [], "pie-uvloop": [], "pie-trio": []}
    for key, name, power in wanted:
        peers = summary["cases"].get(key, {}).get("metrics", {}).get(name, {}).get("peers", {})
        if not any((peers.get(peer) or {}).get("to_official") for peer in bars):
            continue
        labels.append(f"{key}\n{name.removesuffix('_per_s')}")
        for peer, values in bars.items():
            ratio = (peers.get(peer) or {}).get("to_official")
            values.append(ratio**power if ratio else 1.0)
    if not labels:
        return
    figure, axes = plt.subplots(figsize=(9, 3.6))
    for at, (peer, values) in enumerate(bars.items()):
        axes.bar(
            [x + (at - 1) * 0.27 for x in range(len(labels))], values, 0.25, label=peer, color=COLOURS[peer]
        )
    axes.axhline(1, color="#c8642b", linewidth=1)
    axes.set_yscale("log")
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylabel("times better than the official client")
    axes.legend()
    save(figure, folder, "bench-ratios.svg")


def points(
    results: dict[str, Any], prefix: str, metric: str, parameter: str
) -> dict[str, list[tuple[float, float]]]:
    """Return (n, median) per peer of the scaling cases that start with `prefix`."""
    found: dict[str, dict[float, list[float]]] = {}
    for run in results["runs"]:
        if run["case"].startswith(prefix) and "error" not in run:
            value = run["seconds"] if metric == "seconds" else run["metrics"][metric]["value"]
            found.setdefault(run["peer"], {}).setdefault(run["params"][parameter], []).append(value)
    return {
        peer: [(n, sorted(values)[len(values) // 2]) for n, values in sorted(by_n.items())]
        for peer, by_n in found.items()
    }


def lines(axes: Any, series: dict[str, list[tuple[float, float]]], x: str, y: str) -> None:
    """Draw one log-log plot."""
    for peer, colour in COLOURS.items():
        if peer in series:
            axes.plot(*zip(*series[peer], strict=True), "o-", markersize=3, label=peer, color=colour)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def scaling(results: dict[str, Any], folder: Path) -> None:
    """Time and memory against n, and events against their size."""
    time_of = points(results, "scale_runs_", "seconds", "n")
    memory_of = points(results, "scale_runs_", "peak_rss", "n")
    if time_of:
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
        lines(left, time_of, "runs, 256 in flight", "seconds")
        lines(right, memory_of, "runs, 256 in flight", "peak RSS, MiB")
        left.legend(fontsize=7)
        save(figure, folder, "bench-runs.svg")
    memory_of = points(results, "scale_alive_", "peak_rss", "n")
    if memory_of:
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
        lines(
            left,
            points(results, "scale_alive_", "seconds", "n"),
            "processes alive at once",
            "seconds to launch",
        )
        lines(right, memory_of, "processes alive at once", "peak RSS, MiB")
        left.legend(fontsize=7)
        save(figure, folder, "bench-alive.svg")
    rate_of = points(results, "scale_size_", "events_per_s", "size")
    if rate_of:
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
        lines(left, rate_of, "size of an event, B", "events/s")
        lines(
            right, points(results, "scale_size_", "event_mib_per_s", "size"), "size of an event, B", "MiB/s"
        )
        left.legend(fontsize=7)
        save(figure, folder, "bench-size.svg")


def latency(summary: dict[str, Any], folder: Path) -> None:
    """Bars: first event p50 and p99, idle, paced and saturated."""
    cases = [key for key in ("latency_idle", "latency_paced", "latency_loaded") if key in summary["cases"]]
    peers = [
        peer
        for peer in COLOURS
        if any(
            peer in summary["cases"][c]["metrics"].get("first_event_p99", {"peers": {}})["peers"]
            for c in cases
        )
    ]
    if not peers:
        return
    figure, axes = plt.subplots(1, len(cases), figsize=(9, 3.2), squeeze=False)
    for axis, case in zip(axes[0], cases, strict=True):
        metrics = summary["cases"][case]["metrics"]
        for at, (name, alpha) in enumerate((("first_event_p50", 1.0), ("first_event_p99", 0.5))):
            values = [(metrics[name]["peers"].get(peer) or {}).get("median", 0) / 1000 for peer in peers]
            places = [x + (at - 0.5) * 0.4 for x in range(len(peers))]
            axis.bar(places, values, 0.38, color=[COLOURS[peer] for peer in peers], alpha=alpha)
        axis.set_title(case)
        axis.set_yscale("log")
        axis.set_xticks(range(len(peers)), peers, rotation=60, ha="right", fontsize=7)
    axes[0][0].set_ylabel("first event, ms: p50 and p99 (pale)")
    save(figure, folder, "bench-latency.svg")


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as source:
        everything = json.load(source)
    target = Path(sys.argv[2])
    ratios(everything["summary"], target)
    scaling(everything, target)
    latency(everything["summary"], target)
