# SPDX-License-Identifier: Apache-2.0
"""The short way for output gives what the long way gives, or nothing."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pie_anyio._events import Event, Message, Stderr, Stdout
from pie_anyio._protocol.codec import DecodeError, decode_fields, encode_message
from pie_anyio._protocol.messages import ProcessEvent
from pie_anyio._protocol.processes import KnownHead, ProcessRecord, ProcessTable
from pie_anyio._protocol.straight import read_output
from pie_anyio._types import Limits

PROCESS = "0b7c9a52-6d0e-4b39-8f0e-2f1f3c1f7a11"
CLASSES = {"stdout": Stdout, "stderr": Stderr, "message": Message}


def wanted() -> dict[bytes, ProcessRecord]:
    """Give a table with one process."""
    return {PROCESS.encode(): ProcessRecord(PROCESS, "owner", False)}


@pytest.mark.parametrize("kind", list(CLASSES))
@pytest.mark.parametrize("size", [0, 1, 31, 32, 100, 255])
def test_usual_output_goes_the_short_way(kind: str, size: int) -> None:
    """All kinds, with every short header of a text."""
    payload = encode_message(ProcessEvent(PROCESS, kind, "x" * size))
    output = read_output(payload, wanted(), {})
    assert output is not None
    assert output.owner == "owner"
    assert output.event == (Event(kind), "x" * size)
    assert type(output.event) is CLASSES[kind]
    assert output.size == len(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        encode_message(ProcessEvent(PROCESS, "return", "x")),
        encode_message(ProcessEvent(PROCESS, "stdout", "x" * 256)),
        encode_message(ProcessEvent(PROCESS[:-1] + "2", "stdout", "x")),
        encode_message(ProcessEvent(PROCESS, "stdout", "x")) + b"\x00",
        encode_message(ProcessEvent(PROCESS, "stdout", "xy"))[:-1],
        encode_message(ProcessEvent(PROCESS, "stdout", ""))[:-1],
        encode_message(ProcessEvent(PROCESS, "message", ""))[:-1],
        encode_message(ProcessEvent(PROCESS, "message", "x")).replace(b"value", b"valuE"),
        encode_message(ProcessEvent(PROCESS, "stdout", "xy")).replace(b"xy", b"\xff\xfe"),
        msgpack.packb({"process_id": PROCESS, "type": "process_event", "event": "stdout", "value": "x"}),
        msgpack.packb({"type": "process_event", "process_id": PROCESS, "event": "stdout", "value": 7}),
    ],
)
def test_everything_else_goes_the_long_way(payload: bytes) -> None:
    """Other kinds, other processes, other encodings, and whatever is damaged."""
    assert read_output(payload, wanted(), {}) is None


@pytest.mark.parametrize("kind", list(CLASSES))
def test_what_was_met_before_is_found_by_its_beginning(kind: str) -> None:
    """One look for each message after the first of its process and kind, with the same result."""
    table, known = wanted(), dict[bytes, KnownHead]()
    for value in ("first", "second", ""):
        payload = encode_message(ProcessEvent(PROCESS, kind, value))
        output = read_output(payload, table, known)
        assert output is not None
        assert (output.owner, output.event) == ("owner", (Event(kind), value))
        assert type(output.event) is CLASSES[kind]
        table = {}
    assert len(known) == 1


@pytest.mark.parametrize("how", ["ignore", "finish", "lose_all"])
def test_what_nobody_wants_any_more_is_forgotten(how: str) -> None:
    """Output of a process that was released, has ended or was lost goes the long way, which drops it."""
    processes = ProcessTable(Limits())
    record = ProcessRecord(PROCESS, "owner", False)
    processes.begin(record)
    payloads = [encode_message(ProcessEvent(PROCESS, kind, "x")) for kind in CLASSES]
    for payload in payloads:
        assert read_output(payload, processes.wanted, processes.known) is not None
    assert len(processes.known) == 3
    (processes.lose_all if how == "lose_all" else lambda: getattr(processes, how)(record))()
    for payload in payloads:
        assert read_output(payload, processes.wanted, processes.known) is None
    assert processes.known == {}


@given(
    st.sampled_from(["stdout", "stderr", "message", "return", "stdoux"]),
    st.text(max_size=300),
    st.binary(max_size=6),
    st.integers(0, 500),
    st.booleans(),
)
@example("message", "", b"\xff", 90, True)
def test_both_ways_agree(kind: str, value: str, noise: bytes, place: int, damage: bool) -> None:
    """Where the short way gives something, the long way gives the same, also for damaged bytes."""
    payload = encode_message(ProcessEvent(PROCESS, kind, value))
    if damage:
        payload = payload[:place] + noise + payload[place + len(noise) :]
    table, known = wanted(), dict[bytes, KnownHead]()
    if place % 2:
        read_output(encode_message(ProcessEvent(PROCESS, kind, "before")), table, known)
    output = read_output(payload, table, known)
    if output is None:
        return
    try:
        fields = decode_fields(payload)
    except DecodeError:  # pragma: no cover - would be the finding
        pytest.fail("the short way took what the codec refuses")
    assert fields["type"] == "process_event"
    assert (fields["process_id"], fields["event"], fields["value"]) == (PROCESS, *output.event)
