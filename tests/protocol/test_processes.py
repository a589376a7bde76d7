# SPDX-License-Identifier: Apache-2.0
"""Known processes, ended ones, and the waiting room for events that come too early."""

from __future__ import annotations

import pytest

from pie_anyio import Limits
from pie_anyio._protocol.processes import Early, ProcessRecord, ProcessTable
from pie_anyio._protocol.state import ProcessState, ProcessTrigger


def table(**limits: int) -> ProcessTable:
    return ProcessTable(Limits(**limits))


def note(value: str) -> Early:
    return "stdout", value


def begin(room: ProcessTable, process_id: str) -> ProcessRecord:
    room.live[process_id] = record = ProcessRecord(process_id, None, False)
    return record


def test_the_tail_is_the_end_of_what_was_printed() -> None:
    """It is bounded however the text comes."""
    record = ProcessRecord("p", None, True)
    record.keep_tail("x" * 5000 + "abc")
    record.keep_tail("def")
    assert record.tail.endswith("xabcdef")
    assert len(record.tail) == 2048
    for _ in range(3000):
        record.keep_tail("y")
    assert record.tail == "y" * 2048


def test_orphans_are_claimed_in_order() -> None:
    """A process that becomes known gets its own events only, once."""
    room = table()
    for process_id, value in [("p", "1"), ("q", "2"), ("p", "3")]:
        room.keep_orphan(process_id, note(value), 10)
    assert room.claim_orphans("p") == [note("1"), note("3")]
    assert room.claim_orphans("p") == []
    assert room.claim_orphans("q") == [note("2")]
    assert room.claim_orphans("q") == []
    assert room.dropped_orphans == 0


@pytest.mark.parametrize(("limits", "kept"), [({"orphan_events": 3}, 3), ({"orphan_bytes": 20}, 2)])
def test_the_waiting_room_is_bounded(limits: dict[str, int], kept: int) -> None:
    """At the limit everything stays; beyond it the oldest makes way and is counted."""
    room = table(**limits)
    for index in range(kept):
        room.keep_orphan("p", note(str(index)), 10)
    assert room.dropped_orphans == 0
    room.keep_orphan("p", note("last"), 10)
    assert room.dropped_orphans == 1
    assert room.claim_orphans("p") == [*(note(str(index)) for index in range(1, kept)), note("last")]


def test_an_event_larger_than_the_waiting_room_empties_it() -> None:
    """Nothing that large is kept."""
    room = table(orphan_bytes=20)
    room.keep_orphan("p", note("small"), 1)
    room.keep_orphan("p", note("large"), 21)
    assert room.claim_orphans("p") == []
    assert room.dropped_orphans == 2


def test_room_that_was_claimed_is_free_again() -> None:
    """Sizes are given back with what was claimed, and when the room closes."""
    room = table(orphan_bytes=20)
    room.keep_orphan("p", note("a"), 15)
    room.keep_orphan("q", note("b"), 5)
    room.claim_orphans("p")
    room.keep_orphan("q", note("c"), 15)
    assert room.dropped_orphans == 0
    room.close_waiting_room()
    assert room.dropped_orphans == 2
    room.keep_orphan("q", note("d"), 20)
    assert room.claim_orphans("q") == [note("d")]


def test_late_events_are_told_from_early_ones() -> None:
    """What comes for a process that ended is dropped, also where the id has lived and ended again since."""
    room = table()
    for late in (1, 2):
        room.finish(begin(room, "p"))
        assert room.live == {}
        room.keep_orphan("p", note("late"), 1)
        assert room.claim_orphans("p") == []
        assert room.dropped_orphans == late
    room.keep_orphan("q", note("early"), 1)
    assert room.claim_orphans("q") == [note("early")]


def test_ended_ids_are_remembered_within_bounds() -> None:
    """The oldest are forgotten first."""
    room = table()
    for index in range(5000):
        for _ in range(2):
            room.finish(begin(room, str(index)))
    assert room._finished == set(room._finished_order) == {str(index) for index in range(904, 5000)}
    assert len(room._finished_order) == 4096


def test_the_end_of_the_connection_loses_what_lives() -> None:
    """Except what was left to itself on purpose."""
    room = table()
    records = {name: begin(room, name) for name in ("mine", "zombie", "detached")}
    records["zombie"].advance(ProcessTrigger.RELEASE)
    records["detached"].advance(ProcessTrigger.DETACH)
    room.lose_all()
    assert room.live == {}
    assert [record.state for record in records.values()] == [
        ProcessState.LOST,
        ProcessState.LOST,
        ProcessState.DETACHED,
    ]
