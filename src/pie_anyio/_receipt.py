# SPDX-License-Identifier: Apache-2.0
"""The account of what a block started on the engine, and how each of it ended."""

from __future__ import annotations

import attrs

__all__ = ["Receipt"]


@attrs.frozen(kw_only=True)
class Receipt:
    """What a block started, and what became of it.

    ``started`` is the sum of ``returned``, ``failed``, ``terminated``, ``detached``, ``lost``, ``running`` and the
    length of ``unconfirmed``: nothing is left out.
    """

    started: int = 0
    """Processes that the engine is known to have started."""
    returned: int = 0
    failed: int = 0
    terminated: int = 0
    """Ended at somebody's request, and seen to end."""
    detached: int = 0
    """Left to themselves on purpose."""
    lost: int = 0
    """The connection went away, and nobody can say how they ended."""
    running: int = 0
    """Not ended yet: zero once the block is left."""
    not_started: int = 0
    """Launches that were withdrawn before anything was sent, or refused."""
    refusals: int = 0
    """Launches that the engine put off for lack of capacity, and that were tried again."""
    unconfirmed: tuple[str, ...] = ()
    """Ids of processes that were told to end and not seen to; ``"?"`` for a launch whose id never became known."""

    @property
    def clean(self) -> bool:
        """Whether nothing is left that might still run without anybody knowing."""
        return not self.unconfirmed and not self.running and not self.lost
