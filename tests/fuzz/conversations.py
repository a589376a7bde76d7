# SPDX-License-Identifier: Apache-2.0
"""What is thrown at the protocol: conversations that could be real, damaged on their way, and plain noise."""

from __future__ import annotations

from typing import Any, Final

import msgpack
from hypothesis import strategies as st
from tests.protocol.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame

IDS: Final = ("process-1", "process-2", "attached", "", "é")
NUMBERS: Final = st.sampled_from([0, 1, 2, 3, 4, 5, 2**31, 2**32 - 1, 2**32, 2**64 - 1, -1])
ODD: Final = (
    st.none()
    | st.booleans()
    | NUMBERS
    | st.floats(allow_nan=False)
    | st.text(max_size=6)
    | st.binary(max_size=6)
    | st.lists(st.integers(0, 3), max_size=2)
    | st.dictionaries(st.text(max_size=2), st.none(), max_size=2)
)
HASHES: Final = st.sampled_from(["0" * 64, "af1349b9f5f9a1a6a0404dea36dcc949", "x", ""])
CHUNK: Final = {
    "chunk_index": st.integers(0, 3),
    "total_chunks": st.integers(0, 3),
    "chunk_data": st.binary(max_size=40),
}

FROM_ENGINE: Final[dict[str, dict[str, st.SearchStrategy[Any]]]] = {
    "response": {
        "corr_id": st.integers(0, 8),
        "ok": st.booleans(),
        "result": st.sampled_from([*IDS, "Pong"]),
    },
    "process_event": {
        "process_id": st.sampled_from(IDS),
        "event": st.sampled_from(["stdout", "stderr", "message", "return", "error", "other"]),
        "value": st.text(max_size=40),
    },
    "file": {"process_id": st.sampled_from(IDS), "file_hash": HASHES, **CHUNK, "name": st.none() | st.text()},
    "mcp_request": {
        "corr_id": st.integers(0, 8),
        "process_id": st.sampled_from(IDS),
        **dict.fromkeys(("server_name", "method", "params"), st.text(max_size=5)),
    },
    "unknown": {"corr_id": st.integers(0, 8)},
}
PROGRAM: Final = st.sampled_from(["echo@0.1.0", "echo", "", "@"])
FROM_CLIENT: Final[dict[str, dict[str, st.SearchStrategy[Any]]]] = {
    "auth_identify": {"username": st.text(max_size=5)},
    "auth_prove": {"signature": st.text(max_size=5)},
    "auth_by_token": {"token": st.text(max_size=5)},
    "ping": {},
    "query": {"subject": st.text(max_size=5), "record": st.text(max_size=5)},
    "check_program": {"name": PROGRAM, "version": st.none() | st.text(max_size=5)},
    "add_program": {
        "program_hash": HASHES,
        "manifest": st.text(max_size=9),
        "force_overwrite": st.booleans(),
        **CHUNK,
    },
    "launch_process": {"inferlet": PROGRAM, "input": st.text(max_size=9), "capture_outputs": st.booleans()},
    "launch_processes": {"inferlet": PROGRAM, "inputs": st.lists(st.text(max_size=3), max_size=3)},
    "attach_process": {"process_id": st.sampled_from(IDS)},
    "terminate_process": {"process_id": st.sampled_from(IDS)},
    "signal_process": {"process_id": st.sampled_from(IDS), "message": st.text(max_size=5)},
    "transfer_file": {"process_id": st.sampled_from(IDS), "file_hash": HASHES, **CHUNK},
    "list_processes": {},
    "launch_daemon": {"port": NUMBERS, "inferlet": PROGRAM, "input": st.text(max_size=5)},
    "mcp_response": {"corr_id": st.integers(0, 8), "ok": st.booleans(), "result": st.text(max_size=5)},
}


@st.composite
def messages(draw: st.DrawFn, kinds: dict[str, dict[str, st.SearchStrategy[Any]]]) -> bytes:
    """One message: mostly right, sometimes with a field missing, added, or of another type; sometimes cut short."""
    kind = draw(st.sampled_from(sorted(kinds)))
    fields: dict[str, Any] = {"type": kind}
    if kinds is FROM_CLIENT:
        fields["corr_id"] = draw(NUMBERS)
    for name, values in kinds[kind].items():
        fields[name] = draw(values)
    damage = draw(st.sampled_from(["none", "none", "none", "drop", "odd", "extra", "short", "behind"]))
    name = draw(st.sampled_from(sorted(fields)))
    if damage == "drop":
        del fields[name]
    elif damage == "odd":
        fields[name] = draw(ODD)
    elif damage == "extra":
        fields["x"] = draw(ODD)
    payload: bytes = msgpack.packb(fields)
    if damage == "short":
        payload = payload[: draw(st.integers(0, len(payload)))]
    return payload + b"behind" if damage == "behind" else payload


@st.composite
def frames(draw: st.DrawFn, kinds: dict[str, dict[str, st.SearchStrategy[Any]]]) -> bytes:
    """One frame or several, or something like it; masked where a client sends it."""
    key = b"\x01\x02\x03\x04" if kinds is FROM_CLIENT else None
    payload = draw(messages(kinds) | st.binary(max_size=30))
    match draw(st.sampled_from(["binary"] * 8 + ["fragments", "text", "control", "odd", "noise"])):
        case "binary":
            return frame(payload, key=key)
        case "fragments":
            place = draw(st.integers(0, len(payload)))
            head = frame(payload[:place], fin=False, key=key)
            between = draw(st.sampled_from([b"", frame(b"p", opcode=PING, key=key)]))
            return head + between + frame(payload[place:], opcode=CONTINUATION, key=key)
        case "text":
            texts = [
                '{"type":"turn_done"}',
                '{"type":"error","message":"stream aborted"}',
                "cancel",
                "{",
                "[]",
            ]
            text = draw(st.sampled_from(texts) | st.text(max_size=20))
            return frame(text.encode(), opcode=TEXT, key=key)
        case "control":
            opcode = draw(st.sampled_from([PING, PONG, CLOSE]))
            return frame(
                draw(st.sampled_from([b"", b"\x03\xe8", b"\x03\xe8bye", b"x", b"\xff" * 9])),
                opcode=opcode,
                key=key,
            )
        case "odd":
            return frame(
                payload,
                opcode=draw(st.sampled_from([BINARY, CONTINUATION, TEXT, 3, 11])),
                fin=draw(st.booleans()),
                rsv=draw(st.sampled_from([0, 0, 4])),
                key=draw(st.sampled_from([None, b"abcd"])),
                width=8,
                claim=draw(st.sampled_from([None, 0, 2**40, 2**63])),
            )
        case _:
            return payload


@st.composite
def conversations(draw: st.DrawFn, kinds: dict[str, dict[str, st.SearchStrategy[Any]]]) -> bytes:
    """Some frames, of which some bytes are changed, removed or repeated on the way."""
    data = bytearray(b"".join(draw(st.lists(frames(kinds), max_size=14))))
    for how, place, value in draw(
        st.lists(st.tuples(st.sampled_from("cdr"), st.integers(0, 2**16), st.integers(1, 255)), max_size=2)
    ):
        if not data:
            break
        start = place % len(data)
        if how == "c":
            data[start] ^= value
        elif how == "d":
            del data[start : start + value]
        else:
            data[start:start] = data[start : start + value]
    return bytes(data)
