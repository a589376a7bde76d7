# SPDX-License-Identifier: Apache-2.0
"""The transition tables: every pair of state and trigger is in them, or is refused."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pytest

from pie_anyio import LocalProtocolError
from pie_anyio._protocol import state as s

MACHINES: dict[str, tuple[dict[Any, dict[Any, Any]], type[IntEnum], type[IntEnum]]] = {
    "connection": (s.CONNECTION, s.ConnectionState, s.ConnectionTrigger),
    "request": (s.REQUEST, s.RequestState, s.RequestTrigger),
    "process": (s.PROCESS, s.ProcessState, s.ProcessTrigger),
}
FINAL: dict[str, set[IntEnum]] = {
    "connection": {s.ConnectionState.CLOSED, s.ConnectionState.FAILED},
    "request": {s.RequestState.RESOLVED, s.RequestState.WITHDRAWN, s.RequestState.LOST},
    "process": {
        *(s.ProcessState.RETURNED, s.ProcessState.FAILED),
        *(s.ProcessState.TERMINATED, s.ProcessState.LOST),
    },
}
PAIRS = [
    pytest.param(name, state, trigger, id=f"{name}-{state.name}-{trigger.name}")
    for name, (_, states, triggers) in MACHINES.items()
    for state in states
    for trigger in triggers
]


@pytest.mark.parametrize(("name", "state", "trigger"), PAIRS)
def test_each_pair_is_in_its_table_or_refused(name: str, state: IntEnum, trigger: IntEnum) -> None:
    """What the table does not hold raises, and says what was tried."""
    table, states, _ = MACHINES[name]
    if trigger in table[state]:
        assert s.advance(table, state, trigger) in states
    else:
        with pytest.raises(LocalProtocolError, match=f"{state.name} does not allow {trigger.name}"):
            s.advance(table, state, trigger)


@pytest.mark.parametrize("name", MACHINES)
def test_each_state_can_be_reached_and_final_ones_are_not_left(name: str) -> None:
    """From the first state every other can be reached; an end is an end."""
    table, states, _ = MACHINES[name]
    reached, front = {states(0)}, [states(0)]
    while front:
        for follower in table[front.pop()].values():
            if follower not in reached:
                reached.add(follower)
                front.append(follower)
    assert reached == set(states)
    for state in FINAL[name]:
        assert set(table[state].values()) <= {state}


@pytest.mark.parametrize("name", MACHINES)
def test_each_state_that_is_not_final_ends_with_the_connection(name: str) -> None:
    """No request, process or connection outlives the end of its connection undecided."""
    table, states, triggers = MACHINES[name]
    end = triggers["ENDED" if name == "connection" else "CONNECTION_ENDED"]
    for state in set(states) - FINAL[name]:
        assert table[state][end] in FINAL[name] | {s.ProcessState.DETACHED}


def test_a_request_that_left_is_never_called_withdrawn() -> None:
    """Withdrawn promises that the engine never saw the request: only a queued one can become so."""
    assert s.RequestState.WITHDRAWN not in {
        follower
        for state in (s.RequestState.ISSUED, s.RequestState.ABANDONED)
        for follower in s.REQUEST[state].values()
    }
