# SPDX-License-Identifier: Apache-2.0
"""What is measured: the peers, the cases, and the targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# ------------------------------------------------------------------------------------------------------------- peers


@dataclass(frozen=True)
class Peer:
    """One way of talking to the engine."""

    name: str
    environment: str
    driver: str
    arguments: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ("v04", "v05")
    workloads: tuple[str, ...] | None = None
    module: str = ""


FLOOR = "floor"
#: What the JavaScript client has an equal of.
JS_WORKLOADS = ("runs", "events", "latency_idle", "upload", "files", "alive", "map", "cancel")
PEERS = (
    Peer(
        "floor",
        "official-0.5.3",
        "drive_floor.py",
        workloads=("runs", "events", "latency_idle", "upload", "files"),
    ),
    # 0.4.0 has no way past the upgrade path and the identity of a 0.5 engine.
    Peer("official-0.4.0", "official-0.4.0", "drive_official.py", profiles=("v04",), module="pie_client"),
    Peer("official-0.5.3", "official-0.5.3", "drive_official.py", module="pie_client"),
    Peer("official-0.5.3-uvloop", "official-0.5.3", "drive_official.py", ("--backend", "uvloop")),
    Peer("pie-asyncio", "pie", "drive_pie.py", ("--backend", "asyncio"), module="pie_anyio"),
    Peer("pie-uvloop", "pie", "drive_pie.py", ("--backend", "uvloop")),
    Peer("pie-trio", "pie", "drive_pie.py", ("--backend", "trio")),
    Peer("official-js-0.5.2", "js", "drive_official.mjs", workloads=JS_WORKLOADS),
)
#: The versions of the official client that the ratios are taken against; the faster one counts.
OFFICIAL = ("official-0.4.0", "official-0.5.3")
#: Packages of each environment that the benchmark builds.
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "official-0.4.0": ("pie-client==0.4.0",),
    "official-0.5.3": ("pie-client==0.5.3", "uvloop"),
    "pie": ("-e", "{root}[fast]"),
    "tools": ("matplotlib",),
}
JS_PACKAGES = ("@pie-project/client@0.5.2", "ws@8")

# ------------------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Metric:
    """One figure of a case: its unit, and whether more of it is better."""

    name: str
    label: str
    unit: str
    higher_is_better: bool


@dataclass(frozen=True)
class Case:
    """One workload with its parameters."""

    key: str
    title: str
    workload: str
    metrics: tuple[Metric, ...]
    params: dict[str, Any] = field(default_factory=dict)
    quick: dict[str, Any] = field(default_factory=dict)
    profile: str = "v04"
    rounds: int | None = None
    timeout: float = 120.0
    scaling: str = ""
    in_suite: bool = True


RUNS = Metric("runs_per_s", "runs", "/s", higher_is_better=True)
EVENTS = Metric("events_per_s", "events", "/s", higher_is_better=True)
EVENT_BYTES = Metric("event_mib_per_s", "event text", "MiB/s", higher_is_better=True)
PING50 = Metric("ping_p50", "ping p50", "us", higher_is_better=False)
PING99 = Metric("ping_p99", "ping p99", "us", higher_is_better=False)
FIRST50 = Metric("first_event_p50", "first event p50", "us", higher_is_better=False)
FIRST99 = Metric("first_event_p99", "first event p99", "us", higher_is_better=False)
LATENCY = (PING50, PING99, FIRST50, FIRST99)
UPLOAD = Metric("upload_mib_per_s", "upload", "MiB/s", higher_is_better=True)
DOWN = Metric("download_mib_per_s", "files down", "MiB/s", higher_is_better=True)
UP = Metric("upload_files_mib_per_s", "files up", "MiB/s", higher_is_better=True)
KIB = Metric("kib_per_process", "memory per process", "KiB", higher_is_better=False)
INPUTS = Metric("inputs_per_s", "inputs", "/s", higher_is_better=True)
GROWTH = Metric("rss_growth", "RSS growth", "MiB", higher_is_better=False)
CANCEL = Metric("cancel_seconds", "until nothing is alive", "s", higher_is_better=False)
CONNECT = Metric("connect_close_ms", "connect + close", "ms", higher_is_better=False)
CLOSE = Metric("close_ms", "close", "ms", higher_is_better=False)
IMPORT = Metric("import_ms", "import", "ms", higher_is_better=False)
CPU = Metric("cpu_seconds", "client CPU", "s", higher_is_better=False)
RSS = Metric("peak_rss", "peak RSS", "MiB", higher_is_better=False)
COMMON = (CPU, RSS)

CASES = (
    Case(
        "runs",
        "10 000 launches that return at once, 256 in flight",
        "runs",
        (RUNS,),
        quick={"n": 2_000},
    ),
    Case(
        "events64",
        "64 processes x 2 000 stdout events of 64 B",
        "events",
        (EVENTS,),
        quick={"events": 500},
    ),
    Case(
        "events1",
        "1 process x 128 000 stdout events of 64 B",
        "events",
        (EVENTS,),
        {"processes": 1, "events": 128_000},
        quick={"events": 32_000},
    ),
    Case(
        "latency_idle",
        "2 000 pings and 500 first events, one at a time, nothing else going on",
        "latency_idle",
        LATENCY,
        quick={"pings": 500, "launches": 100},
    ),
    Case(
        "latency_loaded",
        "a ping or a launch every 10 ms while 64 processes stream as fast as the client reads",
        "latency_loaded",
        LATENCY,
        quick={"seconds": 1.0},
    ),
    Case(
        "latency_paced",
        "the same while 64 processes stream 250 events/s each (no queue builds up)",
        "latency_loaded",
        LATENCY,
        {"rate": 250},
        quick={"seconds": 1.0},
    ),
    Case(
        "upload",
        "install a program of 64 MiB from a file",
        "upload",
        (UPLOAD,),
        quick={"mib": 16},
    ),
    Case(
        "files",
        "64 files of 1 MiB down, all at once; 64 up, 8 at a time",
        "files",
        (DOWN, UP),
        quick={"n": 16},
    ),
    Case(
        "alive",
        "10 000 processes alive at once on one connection",
        "alive",
        (KIB,),
        quick={"n": 2_000},
    ),
    Case(
        "map",
        "1 000 000 inputs from a generator, 256 at a time",
        "map",
        (INPUTS, GROWTH),
        {"n": 1_000_000},
        quick={"n": 30_000},
        rounds=1,
        timeout=400.0,
    ),
    Case(
        "cancel",
        "stop 10 000 live processes, until the engine has none",
        "cancel",
        (CANCEL,),
        quick={"n": 2_000},
    ),
    Case(
        "connect",
        "connect, authenticate, close (0.5)",
        "connect",
        (CONNECT,),
        quick={"n": 10},
        profile="v05",
    ),
    Case(
        "close04",
        "close on an engine that never answers Close (0.4)",
        "connect",
        (CLOSE,),
        {"n": 1},
        timeout=60.0,
    ),
    Case(
        "runs05",
        "10 000 launches that return at once, 256 in flight (0.5: one more frame per request)",
        "runs",
        (RUNS,),
        quick={"n": 2_000},
        profile="v05",
    ),
    Case(
        "events05",
        "64 processes x 2 000 stdout events of 64 B (0.5)",
        "events",
        (EVENTS,),
        quick={"events": 500},
        profile="v05",
    ),
    Case("import", "import the package in a fresh interpreter", "import", (IMPORT,), in_suite=False),
)


def scaling_cases(largest: int) -> tuple[Case, ...]:
    """Return the cases of the scaling plots, from 10^2 to `largest` (runs, processes) and 10^6 (bytes)."""
    steps = [10**power for power in range(2, 7) if 10**power <= largest]
    return (
        *(
            Case(
                f"scale_runs_{n}",
                f"{n} runs",
                "runs",
                (RUNS,),
                {"n": n},
                scaling="scale_runs",
                timeout=300.0,
                in_suite=False,
            )
            for n in steps
        ),
        *(
            Case(
                f"scale_alive_{n}",
                f"{n} processes alive",
                "alive",
                (KIB,),
                {"n": n},
                scaling="scale_alive",
                timeout=300.0,
                in_suite=False,
            )
            for n in steps
        ),
        *(
            Case(
                f"scale_size_{size}",
                f"events of {size} B",
                "events",
                (EVENTS, EVENT_BYTES),
                # The same number of bytes where they matter, the same number of events where those do.
                {"size": size, "events": max(5, min(1_000, 2_000_000 // size))},
                scaling="scale_size",
                in_suite=False,
            )
            for size in (100, 1_000, 10_000, 100_000, 1_000_000)
        ),
    )


# ----------------------------------------------------------------------------------------------------------- targets


@dataclass(frozen=True)
class Target:
    """One line of the table of targets; `against` is "official", "floor" or "value"."""

    label: str
    case: str
    metric: str
    against: str
    at_least: bool
    asyncio: float
    trio: float
    unit: str = "x"


#: Stand for the largest peak RSS over the cases that every one of the compared peers ran, with and without the million
#: inputs: there the official clients keep a queue for every run, which would hide everything else.
SUITE = "suite"
SUITE_WITHOUT_MAP = "suite_without_map"
TARGETS = (
    Target("events/s, 64 processes", "events64", "events_per_s", "official", True, 3.0, 2.2),
    Target("events/s as a share of the floor", "events64", "events_per_s", "floor", True, 0.45, 0.35),
    Target("runs/s, 256 in flight", "runs", "runs_per_s", "official", True, 1.4, 1.1),
    Target("ping p50, idle", "latency_idle", "ping_p50", "official", False, 1.10, 1.3),
    Target(
        "first-event p99 while 64 other processes stream",
        "latency_loaded",
        "first_event_p99",
        "official",
        False,
        0.5,
        0.7,
    ),
    Target("upload MiB/s", "upload", "upload_mib_per_s", "official", True, 1.5, 1.5),
    Target("download MiB/s", "files", "download_mib_per_s", "official", True, 1.5, 1.5),
    Target("peak RSS over the whole suite", SUITE, "peak_rss", "official", False, 0.40, 0.40),
    Target(
        "the same without the million inputs", SUITE_WITHOUT_MAP, "peak_rss", "official", False, 0.40, 0.40
    ),
    Target("RSS growth over 1 000 000 inputs", "map", "rss_growth", "value", False, 16, 16, "MiB"),
    Target(
        "memory per live process, 10 000 of them", "alive", "kib_per_process", "value", False, 3, 3, "KiB"
    ),
    Target(
        "close on an engine that never answers Close", "close04", "close_ms", "official", False, 0.06, 0.06
    ),
)
