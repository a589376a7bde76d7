# SPDX-License-Identifier: Apache-2.0
"""The short way gives what the long way gives, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.protocol.frames import Bench, frame

from pie_anyio._events import Event, Message, Stderr, Stdout
from pie_anyio._protocol import events as core
from pie_anyio._protocol import messages as m
from pie_anyio._protocol.codec import DecodeError, decode_fields, encode_message
from pie_anyio._protocol.messages import ProcessEvent, Response
from pie_anyio._protocol.straight import HEAD, read_answer, read_event, read_output
from pie_anyio._types import Limits

PROCESS = "0b7c9a52-6d0e-4b39-8f0e-2f1f3c1f7a11"
OUTPUTS = {
    "stdout": (Stdout, Event.Stdout),
    "stderr": (Stderr, Event.Stderr),
    "message": (Message, Event.Message),
}
KINDS = [*OUTPUTS, "return"]
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000, 2**32 - 1]
SIZES = [0, 1, 31, 32, 100, 255]


def launch(bench: Bench, *, quiet: bool = False) -> None:
    """Have one process run."""
    corr_id = bench.client.submit(m.LaunchProcess("echo@0.1.0", "{}"), "owner", quiet=quiet)
    bench.sent()
    assert bench.answer(corr_id, PROCESS) == [core.ProcessStarted("owner", PROCESS, False)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_usual_events_go_the_short_way(kind: str, size: int) -> None:
    """All kinds but errors, with every short header of a text."""
    assert read_event(encode_message(ProcessEvent(PROCESS, kind, "x" * size))) == (PROCESS, kind, "x" * size)


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("size", SIZES)
def test_output_that_begins_as_before_goes_the_shortest_way(kind: str, size: int) -> None:
    """It comes out as the event that the user receives."""
    payload = encode_message(ProcessEvent(PROCESS, kind, "x" * size))
    output = read_output(payload, ("owner", *OUTPUTS[kind]))
    assert output is not None
    assert tuple(output) == ("owner", (Event(kind), "x" * size), len(payload))
    assert (type(output), type(output.event)) == (core.ProcessOutput, OUTPUTS[kind][0])


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("ok", [True, False])
def test_usual_answers_go_the_short_way(number: int, ok: bool) -> None:
    """Both outcomes, with every header of a number and every short one of a text."""
    for size in SIZES:
        payload = encode_message(Response(number, ok, "x" * size))
        assert read_answer(payload) == (number, ok, "x" * size)


EVENT = encode_message(ProcessEvent(PROCESS, "stdout", "xy"))
MESSAGE = encode_message(ProcessEvent(PROCESS, "message", "xy"))
ANSWER = encode_message(Response(300, True, "xy"))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        encode_message(ProcessEvent(PROCESS, "error", "x")),
        encode_message(ProcessEvent(PROCESS, "stdout", "x" * 256)),
        encode_message(ProcessEvent(PROCESS[1:], "stdout", "x")),
        EVENT + b"\x00",
        EVENT[:-1],
        EVENT[:HEAD],
        EVENT.replace(b"xy", b"\xff\xfe"),
        EVENT.replace(b"0b7c", b"\xff\xff\xff\xff"),
        EVENT.replace(b"type", b"tYpe"),
        MESSAGE[:HEAD],
        MESSAGE[: HEAD + 1],
        MESSAGE.replace(b"value", b"valuE"),
        encode_message(Response(2**32, True, "x")),
        encode_message(Response(-1, True, "x")),
        encode_message(Response(1, True, "x" * 256)),
        encode_message(Response(1, 1, "x")),  # type: ignore[arg-type]
        ANSWER + b"\x00",
        ANSWER[:-1],
        ANSWER[:-3],
        ANSWER[:-14],
        ANSWER[:23],
        ANSWER.replace(b"xy", b"\xff\xfe"),
        ANSWER.replace(b"ok", b"oK"),
        msgpack.packb({"process_id": PROCESS, "type": "process_event", "event": "stdout", "value": "x"}),
        msgpack.packb({"type": "process_event", "process_id": PROCESS, "event": "stdout", "value": 7}),
        msgpack.packb({"type": "response", "corr_id": 7, "result": "x", "ok": True}),
        msgpack.packb({"type": "response", "corr_id": {}, "ok": True, "result": "x"}),
    ],
)
def test_everything_else_goes_the_long_way(payload: bytes) -> None:
    """Other kinds, other encodings, and whatever is damaged."""
    assert read_event(payload) is None
    assert read_answer(payload) is None
    for kind, output in OUTPUTS.items():
        if payload.startswith((MESSAGE if kind == "message" else EVENT)[:HEAD]):
            assert read_output(payload, ("owner", *output)) is None


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_beginning_of_output_is_learnt_and_forgotten(kind: str) -> None:
    """One look for each message after the first of its process and kind, until the process has ended or is left."""
    for leave in ("release", "lose", "fail"):
        bench = Bench()
        launch(bench)
        known = bench.client._processes.known
        for value in ("first", "second", ""):
            (output,) = bench.event(PROCESS, kind, value)
            assert isinstance(output, core.ProcessOutput)
            assert (output.owner, output.event) == ("owner", (Event(kind), value))
            assert type(output.event) is OUTPUTS[kind][0]
            assert list(known.values()) == [("owner", *OUTPUTS[kind])]
        getattr(bench.client, leave)(*{"release": [PROCESS], "lose": [PROCESS, "x"]}.get(leave, [EOFError()]))
        assert known == {}
        bench.events()
        assert bench.event(PROCESS, kind, "x") == []
        assert known == {}


def test_nothing_is_learnt_of_what_nobody_reads() -> None:
    """Neither of quiet processes, nor of what arrives before its process is known."""
    bench = Bench()
    launch(bench, quiet=True)
    bench.event(PROCESS, "stdout", "x")
    assert bench.client._processes.known == {}
    corr_id = bench.client.submit(m.LaunchProcess("echo@0.1.0", "{}"), "other")
    bench.sent()
    other = PROCESS[::-1]
    assert bench.event(other, "stdout", "early") == []
    assert bench.client._processes.known == {}
    assert [type(event) for event in bench.answer(corr_id, other)] == [
        core.ProcessStarted,
        core.ProcessOutput,
    ]


# --- both ways agree

VALUES = st.text(max_size=300)
EVENTS = st.builds(ProcessEvent, st.just(PROCESS), st.sampled_from([*KINDS, "error", "stdoux"]), VALUES)
ANSWERS = st.builds(Response, st.sampled_from(NUMBERS) | st.integers(0, 2**32), st.booleans(), VALUES)
DAMAGE = st.none() | st.tuples(st.integers(0, 400), st.binary(max_size=6))


@given(EVENTS | ANSWERS, DAMAGE)
@example(ProcessEvent(PROCESS, "message", ""), (HEAD, b"\xff"))
def test_what_the_short_way_takes_the_long_way_reads_so_too(
    message: ProcessEvent | Response, damage: tuple[int, bytes] | None
) -> None:
    """Also for damaged bytes."""
    payload = encode_message(message)
    if damage is not None:
        place, noise = damage
        payload = payload[:place] + noise + payload[place + len(noise) :]
    event, answer = read_event(payload), read_answer(payload)
    outputs = [
        read_output(payload, ("owner", *output))
        for kind, output in OUTPUTS.items()
        if payload.startswith(encode_message(ProcessEvent(PROCESS, kind, ""))[:HEAD])
    ]
    try:
        fields = decode_fields(payload)
    except DecodeError:
        fields = {}
    if event is not None:
        assert list(fields.items()) == list(
            zip(("type", "process_id", "event", "value"), ("process_event", *event), strict=True)
        )
    if answer is not None:
        assert list(fields.items()) == list(
            zip(("type", "corr_id", "ok", "result"), ("response", *answer), strict=True)
        )
    for output in outputs:
        # For output that begins as it should, the two short ways agree on what they take.
        assert (output is None) is (event is None)
        assert output is None or event == (PROCESS, *output.event)


def _widely(value: object) -> bytes:
    """Encode with headers that are longer than they need to be."""
    if isinstance(value, str):
        data = value.encode()
        return b"\xdb" + len(data).to_bytes(4, "big") + data
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    assert isinstance(value, int)
    return b"\xcf" + value.to_bytes(8, "big")


def _wide(fields: dict[str, object]) -> bytes:
    return (
        b"\xdf" + len(fields).to_bytes(4, "big") + b"".join(_widely(x) for kv in fields.items() for x in kv)
    )


FORMS: list[Callable[[dict[str, object]], bytes]] = [
    _wide,
    lambda fields: msgpack.packb(dict(reversed(fields.items()))),
    lambda fields: msgpack.packb({**fields, "extra": None}),
    lambda fields: msgpack.packb(fields) + b"\x00",
]


def _play(
    said: list[tuple[str, str]], ok: bool, quiet: bool, form: Any, limits: Limits
) -> tuple[list[Any], Any]:
    """Launch, and give all that the core says when the engine answers and sends events, in one read, in this form."""
    bench = Bench(limits=limits)
    corr_id = bench.client.submit(m.LaunchProcess("echo@0.1.0", "{}"), "owner", quiet=quiet)
    bench.sent()
    messages: list[dict[str, object]] = [
        {"type": "process_event", "process_id": PROCESS, "event": kind, "value": value}
        for kind, value in said
    ]
    messages.insert(len(said) // 3, {"type": "response", "corr_id": corr_id, "ok": ok, "result": PROCESS})
    events = bench.feed(b"".join(frame(form(fields)) for fields in messages))
    told = [
        (event.owner, event.event) if isinstance(event, core.ProcessOutput) else event for event in events
    ]
    client = bench.client
    counts = client.ignored, client._processes.dropped_orphans, client._requests.claiming
    return told, (counts, list(client._processes.live), list(client._requests._pending))


@given(
    st.lists(st.tuples(st.sampled_from([*KINDS, "error", "strange"]), VALUES), max_size=9),
    st.booleans(),
    st.booleans(),
    st.sampled_from(FORMS),
)
def test_equal_messages_in_other_encodings_have_equal_effects(
    said: list[tuple[str, str]], ok: bool, quiet: bool, form: Any
) -> None:
    """A whole run, with what comes before its answer and after its end."""
    limits = Limits(orphan_events=2)
    assert _play(said, ok, quiet, msgpack.packb, limits) == _play(said, ok, quiet, form, limits)
