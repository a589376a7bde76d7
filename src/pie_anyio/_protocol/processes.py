# SPDX-License-Identifier: Apache-2.0
"""The processes that one connection knows, and the events that arrive for processes it does not know yet."""

from __future__ import annotations

from collections import deque
from typing import Any, Final, TypeAlias

import attrs

from .._events import Event
from .._types import Limits
from .messages import FileChunk
from .state import PROCESS, ProcessState, ProcessTrigger, advance

_TAIL_CHARS: Final = 2048
_FINISHED_IDS: Final = 4096


KnownHead: TypeAlias = tuple[object, Any, Event]
"""The owner of a process, and the class and kind of the output that a message with this beginning holds."""
Early: TypeAlias = tuple[str, str] | FileChunk
"""What arrived for a process that is not known yet: the kind and value of an event, or a part of a file."""


@attrs.define(eq=False)
class ProcessRecord:
    """One process that this connection receives events for."""

    process_id: str
    owner: object
    quiet: bool
    """Nobody reads stdout and stderr: keep only the tail that error messages quote."""
    state: ProcessState = ProcessState.RUNNING
    tail: str = ""
    seen_output: bool = False
    heads: tuple[bytes, ...] = ()
    """What ``ProcessTable.known`` has of it."""

    def advance(self, trigger: ProcessTrigger) -> None:
        """Move to the state that the table gives."""
        self.state = advance(PROCESS, self.state, trigger)

    def keep_tail(self, text: str) -> None:
        """Remember the end of what the process printed."""
        self.tail = (self.tail + text[-_TAIL_CHARS:])[-_TAIL_CHARS:]


@attrs.define(eq=False)
class _Orphan:
    process_id: str
    what: Early
    size: int


class ProcessTable:
    """Live processes by id, recently ended ids, and a bounded waiting room for events of unknown ids.

    The waiting room is open only while a launch or attach is unanswered: at any other time nothing could ever claim
    what it holds. So it needs no clock to expire.
    """

    __slots__ = (
        "_finished",
        "_finished_order",
        "_limits",
        "_orphan_bytes",
        "_orphans",
        "dropped_orphans",
        "known",
        "live",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.live: dict[str, ProcessRecord] = {}
        self.known: dict[bytes, KnownHead] = {}
        """How the usual messages with output that somebody reads begin; see ``straight``."""
        self._finished: set[str] = set()
        self._finished_order: deque[str] = deque()
        self._orphans: deque[_Orphan] = deque()
        self._orphan_bytes = 0
        self.dropped_orphans = 0

    def ignore(self, record: ProcessRecord) -> None:
        """Drop the output of a process from here on."""
        record.quiet = True
        for head in record.heads:
            del self.known[head]
        record.heads = ()

    def learn(self, record: ProcessRecord, head: bytes, output: tuple[Any, Event]) -> None:
        """Note how the messages with one kind of a process's output begin."""
        self.known[head] = (record.owner, *output)
        record.heads += (head,)

    def finish(self, record: ProcessRecord) -> None:
        """Forget a process that ended, and remember its id so that late events are told from early ones."""
        del self.live[record.process_id]
        if record.heads:
            self.ignore(record)
        if record.process_id not in self._finished:  # or else it lived again, after an attach
            self._finished.add(record.process_id)
            self._finished_order.append(record.process_id)
        if len(self._finished) > _FINISHED_IDS:
            self._finished.discard(self._finished_order.popleft())

    def lose_all(self) -> None:
        """Forget every live process: the connection ended."""
        for record in self.live.values():
            record.advance(ProcessTrigger.CONNECTION_ENDED)
        self.live.clear()
        self.known.clear()

    def keep_orphan(self, process_id: str, what: Early, size: int) -> None:
        """Put an event of an unknown process into the waiting room; beyond its limits the oldest makes way."""
        if process_id in self._finished:
            self.dropped_orphans += 1
            return
        self._orphans.append(_Orphan(process_id, what, size))
        self._orphan_bytes += size
        while (
            len(self._orphans) > self._limits.orphan_events or self._orphan_bytes > self._limits.orphan_bytes
        ):
            self._orphan_bytes -= self._orphans.popleft().size
            self.dropped_orphans += 1

    def claim_orphans(self, process_id: str) -> list[Early]:
        """Take the waiting events of a process that has just become known, in order."""
        if not self._orphans:
            return []
        mine = [orphan.what for orphan in self._orphans if orphan.process_id == process_id]
        self._orphans = deque(orphan for orphan in self._orphans if orphan.process_id != process_id)
        self._orphan_bytes = sum(orphan.size for orphan in self._orphans)
        return mine

    def close_waiting_room(self) -> None:
        """Drop what waits: no unanswered launch could claim it any more."""
        if self._orphans:
            self.dropped_orphans += len(self._orphans)
            self._orphans.clear()
            self._orphan_bytes = 0
