# SPDX-License-Identifier: Apache-2.0
"""What tells the simulated engines apart, as data. Source: "Checklist for a simulated engine" of both generations."""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal, TypeAlias

import attrs

from .._types import MIB, Generation

ProfileName: TypeAlias = Literal["v05", "v04", "v04-faithful"]
"""The names of the profiles."""


class OnDisconnect(Enum):
    """What becomes of a connection's processes when it ends."""

    TERMINATE = "terminate"
    """They are terminated; only uncaptured ones that nobody is attached to go on (0.5)."""
    DETACH = "detach"
    """They go on, and their output is kept for whoever attaches (0.4 as documented)."""
    LEAK = "leak"
    """They go on, bound to the dead session; nobody can attach to them any more (0.4 as it is)."""


@attrs.frozen(kw_only=True)
class Profile:
    """One way for an engine to behave."""

    name: ProfileName
    generation: Generation
    on_disconnect: OnDisconnect
    answers_close: bool = False
    """Answer a close frame with one."""
    drops_on_close: bool = True
    """End TCP when the client's close frame has arrived."""
    drops_on_fault: bool = False
    """End TCP when the client breaks the protocol; else the session goes on deaf, which 0.4 does."""
    attach_conflict: str = "Process not found"
    verifies_program_hash: bool = False
    max_event_bytes: int | None = None
    """A larger message cuts every live stream of the engine."""

    @property
    def v05(self) -> bool:
        """Whether this is generation 0.5."""
        return self.generation is Generation.V05


PROFILES: Final[dict[str, Profile]] = {
    "v05": Profile(
        name="v05",
        generation=Generation.V05,
        on_disconnect=OnDisconnect.TERMINATE,
        drops_on_fault=True,
        attach_conflict="Cannot attach: already attached",
        verifies_program_hash=True,
        max_event_bytes=8_126_464,
    ),
    "v04": Profile(
        name="v04", generation=Generation.V04, on_disconnect=OnDisconnect.DETACH, answers_close=True
    ),
    "v04-faithful": Profile(
        name="v04-faithful", generation=Generation.V04, on_disconnect=OnDisconnect.LEAK, drops_on_close=False
    ),
}

RING_EVENTS: Final = 4096
"""Events kept for a detached process (0.4 as documented)."""

STDOUT_BYTES: Final = 1 * MIB
"""One write of a program; what exceeds it is lost."""

SATURATED: Final = "admission rejected: cluster saturated: no healthy worker has KV/seq headroom"
"""The answer of 0.5.2 to a launch when there is no room."""


def find_profile(name: str) -> Profile:
    """Give a profile by its name."""
    try:
        return PROFILES[name]
    except KeyError:
        msg = f"there is no engine profile {name!r}; choose one of {', '.join(PROFILES)}"
        raise ValueError(msg) from None
