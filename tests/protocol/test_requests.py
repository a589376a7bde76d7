# SPDX-License-Identifier: Apache-2.0
"""Unsettled requests and their correlation ids."""

from __future__ import annotations

from typing import Any

import pytest

from pie_anyio import LocalProtocolError
from pie_anyio._protocol import messages as m
from pie_anyio._protocol.outbox import Entry, Lane, Outbox
from pie_anyio._protocol.requests import Abandoned, Pending, RequestTable
from pie_anyio._protocol.state import RequestState, RequestTrigger


def pend(table: RequestTable, outbox: Outbox, request: m.Request | None = None, entries: int = 1) -> Pending:
    """Add a request with one message of its own, or as many as an upload has chunks."""
    chunks = tuple(Entry(Lane.BULK, b"chunk", None) for _ in range(entries - 1))
    pending = Pending(Lane.REQUEST, b"payload", table.next_id(), request or m.Ping(), object(), chunks=chunks)
    for entry in (pending, *chunks):
        outbox.add(entry)
    table.add(pending)
    return pending


def number(pending: Pending) -> int:
    assert pending.corr_id is not None
    return pending.corr_id


def test_ids_count_up_from_one() -> None:
    """Ids of settled requests are not used again soon: a late answer must not hit another request."""
    table, outbox = RequestTable(), Outbox()
    first = pend(table, outbox)
    assert first.corr_id == 1
    table.settle(first, outbox)
    assert pend(table, outbox).corr_id == 2


def test_ids_wrap_below_2_to_the_32_and_skip_those_in_flight() -> None:
    """The engine refuses larger ids in silence; an id in use is not given twice."""
    table, outbox = RequestTable(), Outbox()
    pend(table, outbox)
    pend(table, outbox)
    table._last = 2**32 - 3
    assert [pend(table, outbox).corr_id for _ in range(4)] == [2**32 - 2, 2**32 - 1, 3, 4]
    assert [table.next_id() for _ in range(2)] == [5, 6]


def test_a_table_may_start_elsewhere() -> None:
    """The first id can be chosen."""
    assert RequestTable(first=2**32 - 1).next_id() == 2**32 - 1


def test_what_was_not_sent_is_withdrawn() -> None:
    """Abandoning a queued request leaves no trace, of any of its messages."""
    table, outbox = RequestTable(), Outbox()
    pending = pend(table, outbox, entries=3)
    corr_id = number(pending)
    assert table.abandon(corr_id, outbox) is Abandoned.WITHDRAWN
    assert len(table) == 0
    assert not outbox
    assert pending.owner is None
    assert table.abandon(corr_id, outbox) is Abandoned.ALREADY_RESOLVED


def test_what_was_sent_in_part_waits_for_its_answer() -> None:
    """The rest is withdrawn, and the request stays known until it is answered."""
    table, outbox = RequestTable(), Outbox()
    pending = pend(table, outbox, entries=2)
    assert outbox.take() is not None
    pending.advance(RequestTrigger.TAKEN)
    for _ in range(2):
        assert table.abandon(number(pending), outbox) is Abandoned.AWAITING_REPLY
    assert not outbox
    assert table.get(pending.corr_id) is pending
    assert pending.state is RequestState.ABANDONED


def test_settling_takes_back_what_is_queued() -> None:
    """An answer that comes early makes the rest pointless."""
    table, outbox = RequestTable(), Outbox()
    pending = pend(table, outbox, entries=2)
    table.settle(pending, outbox)
    assert not outbox
    assert table.get(pending.corr_id) is None


@pytest.mark.parametrize(
    ("request_", "claims"),
    [
        (m.LaunchProcess("e@0.1.0", "{}"), True),
        (m.AttachProcess("p"), True),
        (m.TerminateProcess("p"), False),
        (m.Ping(), False),
    ],
)
def test_launches_and_attaches_may_make_processes_known(request_: m.Request, claims: bool) -> None:
    """They are counted while they are unanswered, abandoned or not."""
    table, outbox = RequestTable(), Outbox()
    pending = pend(table, outbox, request_)
    assert table.claiming == claims
    pending.advance(RequestTrigger.TAKEN)
    table.abandon(number(pending), outbox)
    assert table.claiming == claims
    table.settle(pending, outbox)
    assert table.claiming == 0


def test_the_end_takes_everything() -> None:
    """Nothing is left behind."""
    table, outbox = RequestTable(), Outbox()
    all_pending: list[Any] = [pend(table, outbox, m.AttachProcess("p")) for _ in range(3)]
    assert table.drain() == all_pending
    assert (len(table), table.claiming, table.drain()) == (0, 0, [])


def test_what_cannot_happen_raises() -> None:
    """A second answer to one request is a bug of the caller of the table."""
    pending = Pending(Lane.REQUEST, b"payload", 1, m.Ping(), None)
    pending.advance(RequestTrigger.REPLY)
    with pytest.raises(LocalProtocolError, match="RESOLVED does not allow REPLY"):
        pending.advance(RequestTrigger.REPLY)
