# SPDX-License-Identifier: Apache-2.0
"""Measure pie-anyio against its peers and write the report.

Every figure comes from one run of one workload in a fresh process against a fresh load engine.  A round runs every case
with every peer once, in an order that changes from round to round; the report takes medians over the rounds, and ratios
inside a round.

    python benchmarks/run.py                      everything: about an hour on two cores
    python benchmarks/run.py --quick              a look: small numbers, two rounds, nothing is written to the docs
    python benchmarks/run.py --only events64,runs some cases
    python benchmarks/run.py --only map --merge   measure one case again, keep the others
    python benchmarks/run.py --report             write the report again from results.json
    python benchmarks/run.py --list               the cases and the peers

Environments for the peers are built once, under $PIE_TEST_CACHE/bench or .cache/bench; the packages come from the
package index.  Close everything else: on a machine that does other work the ratios hold longer than the figures do, but
neither holds for ever.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

import machine  # noqa: E402
import report  # noqa: E402
from catalogue import CASES, PEERS, Case, Peer, scaling_cases  # noqa: E402
from environments import Environments  # noqa: E402

RESULTS = HERE / "results.json"
_FILES = ("path", "manifest")
IMPORT_CODE = (
    "import time; before = time.perf_counter(); import {module}; after = time.perf_counter(); import json, re\n"
    "status = open('/proc/self/status').read()\n"
    "print(json.dumps([(after - before) * 1000, int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) / 1024]))"
)


# ---------------------------------------------------------------------------------------------------------- one run


@contextmanager
def load_engine(python: Path, profile: str, *, cpu: int | None = None) -> Iterator[str]:
    """Run a load engine for the length of the block; give its URL."""
    command = [str(python), str(HERE / "load_engine.py"), "--profile", profile]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        _pin(process, cpu)
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError("the load engine did not start")
        yield url
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _pin(process: subprocess.Popen[str], cpu: int | None) -> None:
    if cpu is not None:
        os.sched_setaffinity(process.pid, {cpu})


class Runner:
    """Runs one case with one peer."""

    def __init__(self, environments: Environments, *, quick: bool, pin: bool, scratch: Path) -> None:
        self.environments = environments
        self.quick = quick
        self.pin = pin
        self.scratch = scratch

    def run(self, case: Case, peer: Peer) -> dict[str, Any]:
        """Return the driver's line, or an object with an `error`."""
        params = {**case.params, **(case.quick if self.quick else {})}
        try:
            if case.workload == "import":
                return self._import(peer)
            if case.workload == "upload":
                params = self._program({"mib": 64, **params})
            engine = self.environments.python("official-0.5.3")
            with load_engine(engine, case.profile, cpu=1 if self.pin else None) as url:
                return self._drive(case, peer, url, params)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return {"error": str(error)[-600:]}

    def _drive(self, case: Case, peer: Peer, url: str, params: dict[str, Any]) -> dict[str, Any]:
        command = [
            *self.environments.command(peer.environment),
            str(HERE / "drivers" / peer.driver),
            *("--url", url, "--workload", case.workload, "--params", json.dumps(params), "--name", peer.name),
            *peer.arguments,
        ]
        if peer.environment == "js":
            command += ["--modules", str(self.environments.js())]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        _pin(process, 0 if self.pin else None)
        try:
            out, err = process.communicate(timeout=case.timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        if process.returncode or not out.strip():
            raise RuntimeError(f"exit status {process.returncode}: {err.strip()}")
        line: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        given = line.get("params", {})
        # Results are shared, and where their files lie on this machine is nobody's business.
        line["params"] = {key: Path(value).name if key in _FILES else value for key, value in given.items()}
        return line

    def _import(self, peer: Peer) -> dict[str, Any]:
        code = IMPORT_CODE.format(module=peer.module)
        command = [*self.environments.command(peer.environment), "-c", code]
        # The first one compiles; users have that behind them, whatever is set here.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        samples = []
        for _ in range(4):
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=60, check=False, env=environment
            )
            if done.returncode:
                raise RuntimeError(done.stderr.strip())
            samples.append(json.loads(done.stdout))
        took, size = min(samples)
        metrics = {"import_ms": {"value": took, "unit": "ms"}, "peak_rss": {"value": size, "unit": "MiB"}}
        return {"metrics": metrics, "seconds": took / 1000, "extra": {}, "versions": {}, "params": {}}

    def _program(self, params: dict[str, Any]) -> dict[str, Any]:
        path = self.scratch / f"program-{params['mib']}.bin"
        if not path.exists():
            self.scratch.mkdir(parents=True, exist_ok=True)
            path.write_bytes(random.Random(1).randbytes(params["mib"] << 20))
        manifest = self.scratch / "Pie.toml"
        manifest.write_text('[package]\nname = "load"\nversion = "1.0.0"\n', encoding="utf-8")
        return {**params, "path": str(path), "manifest": str(manifest)}


# --------------------------------------------------------------------------------------------------------- all runs


def pairs(cases: tuple[Case, ...], peers: list[Peer], number: int) -> Iterator[tuple[Case, Peer]]:
    """Give every case with every peer that can run it, the peers in another order each round."""
    for case in cases:
        able = [
            peer
            for peer in peers
            if case.profile in peer.profiles
            and (peer.module if case.workload == "import" else _can(peer, case.workload))
        ]
        shift = number % len(able) if able else 0
        for peer in able[shift:] + able[:shift]:
            yield case, peer


def _can(peer: Peer, workload: str) -> bool:
    return peer.workloads is None or workload in peer.workloads


def progress(number: int, rounds: int, case: Case, peer: Peer, line: dict[str, Any]) -> None:
    """Print one line about one run."""
    if "error" in line:
        text = "FAILED: " + line["error"].splitlines()[-1][:120]
    else:
        shown = [m for m in case.metrics if m.name in line["metrics"]]
        text = "  ".join(
            f"{m.label} {report.quantity(line['metrics'][m.name]['value'], m.unit)}" for m in shown
        )
    print(f"[{number + 1}/{rounds}] {case.key:18} {peer.name:22} {text}", flush=True)


def measure(args: argparse.Namespace, cases: tuple[Case, ...], peers: list[Peer]) -> list[dict[str, Any]]:
    """Run everything; return one object per run."""
    environments = Environments(ROOT, dict(pair.split("=", 1) for pair in args.python))
    runner = Runner(environments, quick=args.quick, pin=args.pin, scratch=environments.folder)
    peers = [peer for peer in peers if environments.available(peer.environment)]
    for peer in peers:
        environments.command(peer.environment)
    deadline = time.monotonic() + args.max_minutes * 60
    rows: list[dict[str, Any]] = []
    most = max(case.rounds or args.rounds for case in cases)
    for number in range(most):
        current = tuple(case for case in cases if number < (case.rounds or args.rounds))
        for case, peer in pairs(current, peers, number):
            if time.monotonic() > deadline:
                print(f"--max-minutes {args.max_minutes} are over: the report has what was measured so far")
                return rows
            line = runner.run(case, peer)
            rows.append({"case": case.key, "peer": peer.name, "round": number, **line})
            progress(number, most, case, peer, line)
    return rows


# ------------------------------------------------------------------------------------------------------ command line


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what to run")
    what.add_argument(
        "--only", default="", metavar="CASES", help="cases by name, comma-separated (see --list)"
    )
    what.add_argument(
        "--peers", default="", metavar="PEERS", help="peers by name, comma-separated (see --list)"
    )
    what.add_argument("--rounds", type=int, default=0, help="rounds (default: 5; 2 with --quick)")
    what.add_argument(
        "--map-rounds", type=int, default=1, help="rounds of the million inputs (default: %(default)s)"
    )
    what.add_argument("--quick", action="store_true", help="small numbers, no scaling, no docs")
    what.add_argument(
        "--scale-max",
        type=int,
        default=1_000_000,
        metavar="N",
        help="largest n of the scaling plots; 0: no scaling",
    )
    what.add_argument(
        "--scale-rounds", type=int, default=1, help="rounds of the scaling cases (default: %(default)s)"
    )
    what.add_argument(
        "--js",
        action=argparse.BooleanOptionalAction,
        default=bool(shutil.which("node") and shutil.which("npm")),
        help="measure the official JavaScript client too (default: where node and npm are there)",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="ENV=PATH",
        help="use this interpreter for an environment (official-0.4.0, official-0.5.3, pie, tools) and build none",
    )
    how.add_argument("--pin", action="store_true", help="pin the engine and the client to a core each")
    how.add_argument(
        "--max-minutes", type=float, default=180, help="start no run after this (default: %(default)s)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--results", type=Path, default=None, help="the JSON file (default: benchmarks/results.json)"
    )
    output.add_argument(
        "--merge", action="store_true", help="keep what the file has of other cases and peers"
    )
    output.add_argument(
        "--docs", action=argparse.BooleanOptionalAction, default=None, help="write docs/performance.md"
    )
    output.add_argument(
        "--report", action="store_true", help="measure nothing, write the report from the JSON file"
    )
    output.add_argument("--list", action="store_true", help="list cases and peers")
    args = parser.parse_args(argv)
    partial = bool(args.quick or args.only or args.peers)
    if args.results is None:
        scratch = (partial and not args.merge) and not args.report
        args.results = ROOT / ".cache" / "bench" / "results.json" if scratch else RESULTS
    if args.docs is None:
        args.docs = args.report or args.merge or not partial
    args.rounds = args.rounds or (2 if args.quick else 5)
    return args


def chosen_cases(args: argparse.Namespace) -> tuple[Case, ...]:
    """Return the cases that the command line asks for."""
    cases = tuple(replace(case, rounds=args.map_rounds) if case.key == "map" else case for case in CASES)
    scaling = () if args.quick else scaling_cases(args.scale_max)
    cases += tuple(replace(case, rounds=args.scale_rounds) for case in scaling)
    if not args.only:
        return cases
    names = set(args.only.split(","))
    found = tuple(case for case in cases if case.key in names or case.scaling in names)
    unknown = names - {case.key for case in cases} - {case.scaling for case in cases if case.scaling}
    if unknown:
        sys.exit(f"no case called {', '.join(sorted(unknown))}; --list shows them")
    return found


def chosen_peers(args: argparse.Namespace) -> list[Peer]:
    """Return the peers that the command line asks for."""
    names = (
        set(args.peers.split(","))
        if args.peers
        else {p.name for p in PEERS if args.js or p.environment != "js"}
    )
    unknown = names - {peer.name for peer in PEERS}
    if unknown:
        sys.exit(f"no peer called {', '.join(sorted(unknown))}; --list shows them")
    return [peer for peer in PEERS if peer.name in names]


def load(path: Path) -> dict[str, Any]:
    """Read a results file."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def merged(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Add the rows of the file that were not measured again."""
    if not path.exists():
        return rows
    fresh = {(row["case"], row["peer"]) for row in rows}
    return [row for row in load(path)["runs"] if (row["case"], row["peer"]) not in fresh] + rows


def main(argv: list[str] | None = None) -> int:
    """Measure, write, print; return the exit status."""
    args = arguments(argv)
    if args.list:
        for case in chosen_cases(args):
            print(f"{case.key:20} {case.profile}  {case.title}")
        print("\npeers: " + ", ".join(peer.name for peer in PEERS))
        return 0
    if args.report:
        results = load(args.results)
    else:
        rows = measure(args, chosen_cases(args), chosen_peers(args))
        if args.merge:
            rows = merged(rows, args.results)
        results = {**machine.describe(ROOT), "rounds": args.rounds, "quick": args.quick, "runs": rows}
        if args.merge and args.results.exists() and "real_engine" in (old := load(args.results)):
            results["real_engine"] = old["real_engine"]
    results["summary"] = report.summarise(results["runs"])
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print("\n" + report.targets_table(results["summary"]))
    print(f"\nwritten: {args.results}")
    if args.docs:
        environments = Environments(ROOT, dict(pair.split("=", 1) for pair in args.python))
        for path in report.write_docs(results, args.results, ROOT / "docs", environments):
            print(f"written: {path}")
    return 1 if any("error" in row for row in results["runs"]) else 0


if __name__ == "__main__":
    sys.exit(main())
