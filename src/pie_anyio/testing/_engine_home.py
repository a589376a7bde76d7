# SPDX-License-Identifier: Apache-2.0
"""The folders that a real engine works in."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs

from pie_anyio.testing.checkpoint import write_checkpoint

__all__ = ["EngineHome"]

_KEPT_LOGS: Final = 20


@attrs.frozen
class EngineHome:
    """The folders of one engine: a home that may be shared and reused, and a state of its own.

    The home keeps what is expensive to make: checkpoints and compiled code. The state, with the
    installed programs, is new for each engine, so that an engine never knows a program that nobody
    installed on it.
    """

    home: Path
    state: Path
    temporary: bool

    @classmethod
    def create(cls, home: Path | None) -> EngineHome:
        """Make the folders; a home of None is a temporary one."""
        if home is None:
            root = Path(tempfile.mkdtemp(prefix="pie-engine-"))
        else:
            root = home.expanduser().absolute()
            root.mkdir(parents=True, exist_ok=True)
        state = Path(tempfile.mkdtemp(prefix="engine-", dir=root))
        cache = root / "cache"
        cache.mkdir(exist_ok=True)
        (state / "cache").symlink_to(cache)
        return cls(root, state, temporary=home is None)

    @property
    def log(self) -> Path:
        """The file for what this engine writes; it outlives the state if the home is a kept one."""
        return self.home / f"{self.state.name}.log"

    def environment(self) -> dict[str, str]:
        """Return the environment of the engine's process."""
        return {
            # llvmpipe without threads of its own. With them a forward pass takes half the time, and about
            # one in sixty kills the engine's device thread (`_boot.leave_when_wedged`); without them none
            # did in several hundred. Setting the variable outside overrides this.
            "LP_NUM_THREADS": "0",
            **os.environ,
            "PIE_HOME": str(self.state),
            "XDG_CACHE_HOME": str(self.home / "cache"),  # Mesa's compiled shaders
            "XDG_RUNTIME_DIR": str(self.state),  # libvulkan complains where there is none
        }

    def checkpoint(self, seed: int | None) -> Path:
        """Return a checkpoint for ``seed``, written unless the home has it already."""
        target = self.home / f"checkpoint-{'zero' if seed is None else seed}"
        if not target.exists():
            # Complete or absent: an interrupted run must not leave half a checkpoint behind, and two
            # engines may prepare the same home at once.
            draft = Path(tempfile.mkdtemp(prefix="draft-", dir=self.state))
            write_checkpoint(draft, seed=seed)
            with suppress(OSError):  # the other engine was first
                draft.rename(target)
        return target

    def remove(self) -> None:
        """Remove the state, old logs, and a temporary home."""
        shutil.rmtree(self.home if self.temporary else self.state, ignore_errors=True)
        logs = [(path.stat().st_mtime, path) for path in self.home.glob("engine-*.log")]
        for _, path in sorted(logs)[:-_KEPT_LOGS]:
            path.unlink(missing_ok=True)
