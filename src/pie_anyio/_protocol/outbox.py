# SPDX-License-Identifier: Apache-2.0
"""What waits to be sent: three lanes of whole messages, as plain data.

The control lane (terminate, login, tool answers) is drained first. The request lane and the bulk lane (chunks of
uploads and files) take turns, message by message, so that a large upload delays a terminate by one chunk at
the most. An entry is a whole message and is framed only when it is taken, so it can be withdrawn until then.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Final, TypeAlias

import attrs

from .codec import EncodedChunk

Payload: TypeAlias = bytes | EncodedChunk
"""A whole message; of both kinds ``len`` is the number of bytes."""

_SWEEP_AFTER: Final = 256


class Lane(IntEnum):
    """The lanes, in the order in which they are drained."""

    CONTROL = 0
    REQUEST = 1
    BULK = 2


_BULK: Final = Lane.BULK  # Python 3.11 looks a member of an enum up with a call, each time


@attrs.define(eq=False)
class Entry:
    """One message in the outbox. ``payload`` is None once it was taken or withdrawn."""

    lane: Lane
    payload: Payload | None = attrs.field(repr=False)
    corr_id: int | None


class Outbox:
    """Queued messages by lane, with exact byte counts."""

    __slots__ = ("_bulk_next", "_lanes", "_withdrawn", "bulk_bytes", "queued_bytes")

    def __init__(self) -> None:
        self._withdrawn = 0
        self._lanes: tuple[deque[Entry], deque[Entry], deque[Entry]] = (deque(), deque(), deque())
        self._bulk_next = False
        self.queued_bytes = 0
        self.bulk_bytes = 0

    def __bool__(self) -> bool:
        return self.queued_bytes > 0

    def add(self, entry: Entry) -> None:
        """Append an entry, which has its payload still, to its lane."""
        assert entry.payload is not None
        self._lanes[entry.lane].append(entry)
        size = len(entry.payload)
        self.queued_bytes += size
        if entry.lane is _BULK:
            self.bulk_bytes += size

    def withdraw(self, entry: Entry) -> bool:
        """Take an entry back; False where it was taken for sending before."""
        if entry.payload is None:
            return False
        size = len(entry.payload)
        self.queued_bytes -= size
        if entry.lane is _BULK:
            self.bulk_bytes -= size
        entry.payload = None  # its place in the lane is skipped later, which is cheaper than searching for it
        self._withdrawn += 1
        if self._withdrawn > _SWEEP_AFTER and self._withdrawn * 2 > sum(map(len, self._lanes)):
            self._sweep()
        return True

    def take(self) -> tuple[Payload, Entry] | None:
        """Take the next message to send, or None where nothing is queued."""
        control, requests, bulk = self._lanes
        # Many small requests and one large upload take turns: neither may starve the other.
        while lane := control or (bulk or requests if self._bulk_next else requests or bulk):
            entry = lane.popleft()
            payload = entry.payload
            if payload is None:
                self._withdrawn -= 1
                continue
            entry.payload = None
            size = len(payload)
            self.queued_bytes -= size
            if lane is bulk:
                self.bulk_bytes -= size
            if lane is not control:
                self._bulk_next = lane is requests
            return payload, entry
        return None

    def clear(self) -> None:
        """Drop everything that is queued."""
        for lane in self._lanes:
            for entry in lane:
                entry.payload = None
            lane.clear()
        self.queued_bytes = self.bulk_bytes = self._withdrawn = 0

    def _sweep(self) -> None:
        """Give up the places of withdrawn entries: nothing may be taken for hours while the socket is stuck."""
        for lane in self._lanes:
            kept = [entry for entry in lane if entry.payload is not None]
            lane.clear()
            lane.extend(kept)
        self._withdrawn = 0
