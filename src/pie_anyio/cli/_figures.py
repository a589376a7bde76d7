# SPDX-License-Identifier: Apache-2.0
"""Figures about many runs: percentiles, an interval for a share, and how to write them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

PERCENTS: Final = (50, 95, 99)
_Z95: Final = 1.959964


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Give a percentile of sorted values, interpolated between neighbours.

    Raises:
        ValueError: there are no values.
    """
    if not ordered:
        msg = "there is no percentile of nothing"
        raise ValueError(msg)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Give p50, p95 and p99 by name; nothing where there are no values."""
    ordered = sorted(values)
    return {f"p{percent}": percentile(ordered, percent) for percent in PERCENTS} if ordered else {}


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Give the 95 % interval of a share by Wilson's score method, which holds for few trials too."""
    if not trials:
        return 0.0, 1.0
    share = hits / trials
    square = _Z95**2
    centre = share + square / (2 * trials)
    reach = _Z95 * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    scale = 1 + square / trials
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def seconds(value: float) -> str:
    """Write a duration with three digits that mean something."""
    if value >= 100:
        return f"{value:.0f} s"
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1000:.3g} ms"


def spread(values: Iterable[float]) -> str:
    """Write the percentiles of durations on one line."""
    return ", ".join(f"{name} {seconds(value)}" for name, value in percentiles(values).items()) or "none"
