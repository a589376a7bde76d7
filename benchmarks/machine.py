# SPDX-License-Identifier: Apache-2.0
"""Where and from what the figures come."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def describe(root: Path) -> dict[str, Any]:
    """Return the machine, the date and the commit."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(root),
        "machine": {
            "cpu": _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "memory_gib": round(int((_first("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 2**20, 1),
            "system": f"{platform.system()} {platform.release()}",
            "load_average": round(os.getloadavg()[0], 2),
        },
    }


def commit(root: Path) -> str:
    """Return the commit, marked where the sources differ from it."""
    try:
        name = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(
            root, "status", "--porcelain", "--", "src", "benchmarks/drivers", "benchmarks/load_*.py"
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name} with local changes" if changed else name


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(("git", "-C", str(root), *words), capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _first(path: str, key: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == key:
                    return value.strip()
    except OSError:
        pass
    return None
