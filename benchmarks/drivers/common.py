# SPDX-License-Identifier: Apache-2.0
"""What every driver shares: parameters, the clock around the timed part, memory figures, and the one line of output.

Standard library only: a driver runs inside the environment of the client that it measures.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE")
PROGRAM = "load@1.0.0"

#: The parameters of each workload; `--params` changes them.
DEFAULTS: dict[str, dict[str, Any]] = {
    "runs": {"n": 10_000, "limit": 256},
    "events": {"processes": 64, "events": 2_000, "size": 64},
    "latency_idle": {"pings": 2_000, "launches": 500},
    "latency_loaded": {"processes": 64, "size": 64, "seconds": 3.0, "every_ms": 10.0, "rate": None},
    "upload": {"mib": 64, "path": "", "manifest": ""},
    "files": {"n": 64, "size": 1 << 20, "at_once": 8},
    "alive": {"n": 10_000, "limit": 256},
    "map": {"n": 1_000_000, "limit": 256, "settle": 10_000},
    "cancel": {"n": 10_000, "limit": 256},
    "connect": {"n": 50},
    "engine": {"n": 300, "limit": 64},
}

#: The program of the `engine` workload, which runs on a real engine.
ECHO_SOURCE = b"async def main(input):\n    return input\n"
ECHO_MANIFEST = '[package]\nname = "bench-echo"\nversion = "0.1.0"\n\n[runtime]\nlanguage = "python"\n'
ECHO = "bench-echo@0.1.0"


def rss() -> int:
    """Return the resident set of this process, in bytes."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * PAGE


def peak_rss() -> int:
    """Return the largest resident set so far, in bytes."""
    # VmHWM, not ru_maxrss: the latter starts at the size of the parent at the time of the fork.
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def cpu() -> float:
    """Return the CPU seconds of this process (all threads), user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def percentile(samples: list[float], share: float) -> float:
    """Return the `share`-quantile of the samples by the nearest rank."""
    ranked = sorted(samples)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


class Report:
    """The figures of one run of one workload."""

    def __init__(self, peer: str, versions: dict[str, str]) -> None:
        self.peer = peer
        self.versions = versions
        self.metrics: dict[str, tuple[float, str]] = {}
        self.seconds = 0.0
        self.cpu = 0.0
        self.extra: dict[str, Any] = {}
        self.base_rss = 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measure wall clock and CPU of the block; garbage from the warm-up is collected first."""
        gc.collect()
        self.base_rss = rss()
        cpu_before = cpu()
        before = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - before
            self.cpu += cpu() - cpu_before

    def set(self, name: str, value: float, unit: str) -> None:
        """Record one figure."""
        self.metrics[name] = (value, unit)

    def latencies(self, name: str, samples: list[float]) -> None:
        """Record p50 and p99 of samples in seconds, as microseconds."""
        if samples:
            self.set(f"{name}_p50", percentile(samples, 0.50) * 1e6, "us")
            self.set(f"{name}_p99", percentile(samples, 0.99) * 1e6, "us")
        self.extra[f"{name}_samples"] = len(samples)

    def emit(self, workload: str, params: dict[str, Any]) -> None:
        """Print everything as one line of JSON."""
        self.set("cpu_seconds", self.cpu, "s")
        self.set("peak_rss", peak_rss() / 2**20, "MiB")
        line = {
            "peer": self.peer,
            "workload": workload,
            "params": params,
            "seconds": self.seconds,
            "metrics": {name: {"value": value, "unit": unit} for name, (value, unit) in self.metrics.items()},
            "extra": self.extra,
            "versions": {"python": platform.python_version(), **self.versions},
        }
        print(json.dumps(line), flush=True)


def parse(doc: str, backends: tuple[str, ...] = ()) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Return the arguments and the workload's parameters."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--url", required=True, help="ws:// address of the load engine")
    parser.add_argument("--workload", required=True, choices=sorted(DEFAULTS))
    parser.add_argument("--params", default="{}", help="JSON object: changes to the workload's parameters")
    parser.add_argument("--name", default="", help="name of this peer in the output")
    if backends:
        parser.add_argument("--backend", choices=backends, default=backends[0], help="event loop")
    args = parser.parse_args()
    params = {**DEFAULTS[args.workload], **json.loads(args.params)}
    return args, params


def version_of(*names: str) -> dict[str, str]:
    """Return the versions of installed distributions."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def payload(index: int, size: int) -> bytes:
    """Return `size` bytes that differ from those of every other index."""
    return (b"%016d" % index + b"\xa5" * size)[:size]


def fail(message: str) -> None:
    """Stop with a message: a run that did not do its work has no figures."""
    sys.exit(f"driver: {message}")
