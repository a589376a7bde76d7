# SPDX-License-Identifier: Apache-2.0
"""The outbox: lanes, withdrawal, exact counts, bounded leftovers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pie_anyio._protocol.codec import EncodedChunk
from pie_anyio._protocol.outbox import Entry, Lane, Outbox, Payload


def add(outbox: Outbox, lane: Lane, payload: Payload, corr_id: int | None = None) -> Entry:
    entry = Entry(lane, payload, corr_id)
    outbox.add(entry)
    return entry


def drain(outbox: Outbox) -> list[Payload]:
    out: list[Payload] = []
    while (taken := outbox.take()) is not None:
        out.append(taken[0])
    return out


def test_lanes_are_drained_in_order() -> None:
    """Control first, then requests and bulk in turn; within a lane in the order of arrival."""
    outbox = Outbox()
    for lane, payload in [
        (Lane.BULK, b"b1"),
        (Lane.REQUEST, b"r1"),
        (Lane.CONTROL, b"c1"),
        (Lane.BULK, b"b2"),
        (Lane.CONTROL, b"c2"),
        (Lane.REQUEST, b"r2"),
    ]:
        add(outbox, lane, payload)
    assert drain(outbox) == [b"c1", b"c2", b"r1", b"b1", b"r2", b"b2"]
    assert outbox.take() is None


def test_a_terminate_waits_for_one_chunk_at_most() -> None:
    """What is added to the control lane in the middle of an upload goes next."""
    outbox = Outbox()
    for index in range(3):
        add(outbox, Lane.BULK, b"chunk%d" % index)
    first = outbox.take()
    assert first is not None
    add(outbox, Lane.CONTROL, b"terminate")
    assert drain(outbox) == [b"terminate", b"chunk1", b"chunk2"]


def test_what_was_taken_cannot_be_withdrawn() -> None:
    """Withdrawing says whether it came in time, once."""
    outbox = Outbox()
    early, late = add(outbox, Lane.REQUEST, b"a", 1), add(outbox, Lane.REQUEST, b"b", 2)
    assert outbox.withdraw(early)
    assert not outbox.withdraw(early)
    taken = outbox.take()
    assert taken is not None
    assert taken == (b"b", late)
    assert taken[1].corr_id == 2
    assert not outbox.withdraw(late)
    assert not outbox


def test_chunks_count_with_their_data() -> None:
    """In both counts, until they are taken or withdrawn."""
    outbox = Outbox()
    chunk = EncodedChunk(b"head", bytes(1000))
    first, second = (add(outbox, Lane.BULK, chunk) for _ in range(2))
    assert (outbox.queued_bytes, outbox.bulk_bytes) == (2008, 2008)
    assert outbox.withdraw(second)
    assert (outbox.queued_bytes, outbox.bulk_bytes) == (1004, 1004)
    assert outbox.take() == (chunk, first)
    assert first.payload is None
    assert (outbox.queued_bytes, outbox.bulk_bytes) == (0, 0)


def test_payloads_stay_out_of_the_repr() -> None:
    """An entry may hold a token: its repr does not show the payload."""
    assert "secret" not in repr(Entry(Lane.CONTROL, b"secret", None))


def test_withdrawn_entries_take_no_room_for_long() -> None:
    """With a stuck socket, submitting and withdrawing for hours leaves nothing behind."""
    outbox = Outbox()
    kept = [add(outbox, Lane.BULK, b"%d" % index) for index in range(10)]
    for _ in range(10_000):
        outbox.withdraw(add(outbox, Lane.REQUEST, b"x"))
    assert sum(map(len, outbox._lanes)) < 1000
    assert drain(outbox) == [b"%d" % index for index in range(len(kept))]


def test_places_that_were_passed_are_not_counted_any_more() -> None:
    """The count of withdrawn entries is of those that are still in a lane: it decides when to sweep."""
    outbox = Outbox()
    first, last = (add(outbox, Lane.REQUEST, payload) for payload in (b"a", b"b"))
    assert outbox.withdraw(first)
    assert outbox._withdrawn == 1
    assert outbox.take() == (b"b", last)
    assert outbox._withdrawn == 0


def test_clearing_forgets_everything() -> None:
    """After the end of the connection nothing is queued, and nothing can be withdrawn."""
    outbox = Outbox()
    entries = [add(outbox, lane, b"x") for lane in Lane]
    outbox.clear()
    assert not outbox
    assert (outbox.queued_bytes, outbox.bulk_bytes) == (0, 0)
    assert outbox.take() is None
    assert not any(outbox.withdraw(entry) for entry in entries)


STEP = st.one_of(
    st.tuples(st.sampled_from(Lane), st.binary(min_size=1, max_size=9)),
    st.just("take"),
    st.integers(0, 30),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_counts_are_exact(steps: list[object]) -> None:
    """Whatever is added, taken and withdrawn: the counts are those of what is queued, and order is kept."""
    outbox = Outbox()
    entries: list[tuple[Entry, bytes]] = []
    last = Lane.BULK
    for step in steps:
        before = [(entry, payload) for entry, payload in entries if entry.payload is not None]
        if step == "take":
            taken = outbox.take()
            turns = (Lane.CONTROL, Lane.BULK, Lane.REQUEST) if last is Lane.REQUEST else tuple(Lane)
            # min keeps the first of equals
            expected = min(before, key=lambda pair: turns.index(pair[0].lane), default=None)
            if expected is not None and expected[0].lane is not Lane.CONTROL:
                last = expected[0].lane
            assert taken == (None if expected is None else (expected[1], expected[0]))
        elif isinstance(step, int):
            if step < len(entries):
                entry = entries[step][0]
                assert outbox.withdraw(entry) is (any(entry is queued for queued, _ in before))
        else:
            assert isinstance(step, tuple)
            lane, payload = step
            entries.append((add(outbox, lane, payload), payload))
        queued = [(entry, payload) for entry, payload in entries if entry.payload is not None]
        assert outbox.queued_bytes == sum(len(payload) for _, payload in queued)
        assert outbox.bulk_bytes == sum(len(payload) for entry, payload in queued if entry.lane is Lane.BULK)
        assert bool(outbox) is bool(queued)
        assert outbox._withdrawn == sum(entry.payload is None for lane in outbox._lanes for entry in lane)
