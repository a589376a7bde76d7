# SPDX-License-Identifier: Apache-2.0
"""Measure on the real engine: runs per second at 64 in flight, and how much of the wall clock is the client's CPU.

The engine is pie-server 0.5.2 on this machine's CPU (see pie_anyio.testing.real_engine for what it needs).  It is
far slower than any client, so what this shows is not speed: it is that a client takes nothing away from it, and what
it costs the machine that the engine runs on.

    python benchmarks/real_engine.py                   measure, add the figures to benchmarks/results.json
    python benchmarks/real_engine.py --url ws://...    an engine that is already running
    python benchmarks/real_engine.py --server-python PATH   the interpreter that has pie-server
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

from catalogue import PEERS, Peer  # noqa: E402
from environments import Environments  # noqa: E402

NAMES = ("official-0.5.3", "pie-asyncio", "pie-uvloop", "pie-trio")


@contextmanager
def engine(environments: Environments, server_python: str) -> Iterator[str]:
    """Run a real engine for the length of the block; give its URL."""
    home = environments.folder / "engine-home"
    home.mkdir(parents=True, exist_ok=True)
    command = [*environments.command("pie"), "-m", "pie_anyio.testing.real_engine", "--home", str(home)]
    if server_python:
        command += ["--python", server_python]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            sys.exit("the real engine did not start")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def drive(environments: Environments, peer: Peer, url: str, count: int) -> dict[str, Any]:
    """Run the workload once with one peer."""
    command = [
        *environments.command(peer.environment),
        str(HERE / "drivers" / peer.driver),
        *("--url", url, "--workload", "engine", "--params", json.dumps({"n": count}), "--name", peer.name),
        *peer.arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    if done.returncode:
        sys.exit(f"{peer.name}: {done.stderr.strip()}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def summarise(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one row of medians per peer."""
    rows = []
    for name, lines in runs.items():

        def middle(metric: str, lines: list[dict[str, Any]] = lines) -> float:
            return median(float(line["metrics"][metric]["value"]) for line in lines)

        rows.append(
            {
                "peer": name,
                "rounds": len(lines),
                "runs_per_s": middle("runs_per_s"),
                "cpu_share": middle("cpu_share"),
                "p50_ms": middle("run_p50") / 1000,
                "p99_ms": middle("run_p99") / 1000,
                "peak_rss_mib": middle("peak_rss"),
            }
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and add the figures to the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="", help="an engine that is already running (default: boot one)")
    parser.add_argument(
        "--server-python", default="", metavar="PATH", help="the interpreter that has pie-server"
    )
    parser.add_argument("--python", action="append", default=[], metavar="ENV=PATH", help="as in run.py")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument(
        "--runs", type=int, default=300, help="runs per round and peer (default: %(default)s)"
    )
    parser.add_argument("--peers", default=",".join(NAMES), help="peers (default: %(default)s)")
    parser.add_argument(
        "--results", type=Path, default=HERE / "results.json", help="JSON file to add the figures to"
    )
    args = parser.parse_args(argv)
    environments = Environments(ROOT, dict(pair.split("=", 1) for pair in args.python))
    peers = [peer for peer in PEERS if peer.name in args.peers.split(",")]
    runs: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in peers}

    def measure(url: str) -> None:
        for number in range(args.rounds):
            shift = number % len(peers)
            for peer in peers[shift:] + peers[:shift]:
                line = drive(environments, peer, url, args.runs)
                runs[peer.name].append(line)
                rate, share = (line["metrics"][name]["value"] for name in ("runs_per_s", "cpu_share"))
                print(
                    f"[{number + 1}/{args.rounds}] {peer.name:16} {rate:7.1f} runs/s  CPU {share:.1%}",
                    flush=True,
                )

    if args.url:
        measure(args.url)
    else:
        with engine(environments, args.server_python) as url:
            measure(url)
    results = json.loads(args.results.read_text(encoding="utf-8")) if args.results.exists() else {}
    results["real_engine"] = summarise(runs)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"written: {args.results}; `python benchmarks/run.py --report` writes the page")
    return 0


if __name__ == "__main__":
    sys.exit(main())
