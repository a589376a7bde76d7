# SPDX-License-Identifier: Apache-2.0
"""MessagePack to messages and back: the engine's acceptance rules, damage of every kind, nothing but DecodeError."""

from __future__ import annotations

import tracemalloc
from typing import Any

import attrs
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pie_anyio import InvalidRequest
from pie_anyio._protocol import codec
from pie_anyio._protocol import messages as m

U32 = 2**32 - 1
SAMPLES: list[m.Request] = [
    m.AuthIdentify("alice"),
    m.AuthProve("c2ln"),
    m.AuthByToken("token"),
    m.Ping(),
    m.Query("model_status", ""),
    m.CheckProgram("echo", "0.1.0"),
    m.CheckProgram("echo", "0.1.0", "aa", "bb"),
    m.AddProgram("hash", "[package]", True, 3, 7, b"\x00\xff"),
    m.LaunchProcess("echo@0.1.0", '{"a": "\u20ac"}', False, 0),
    m.LaunchProcess("echo@0.1.0", ""),
    m.LaunchProcesses("echo@0.1.0", ["{}", ""], True, [None, 5]),
    m.RunProcesses("echo@0.1.0", []),
    m.LaunchDaemon(U32, "web@0.1.0", "{}"),
    m.AttachProcess("p"),
    m.TerminateProcess("p"),
    m.SignalProcess("p", ""),
    m.TransferFile("p", "hash", 0, 1, b""),
    m.ListProcesses(),
    m.RegisterMcpServer("tools", "stdio", "python", ["-m", "x"]),
    m.McpResponse(7, False, "{}"),
]
ENGINE_SAMPLES: list[Any] = [
    m.Response(1, True, "Pong"),
    m.ProcessEvent("p", "stdout", "text"),
    m.FileChunk("p", "hash", 0, 1, b"data", "name"),
    m.McpRequest(1, "p", "tools", "tools/call", "{}"),
]


def pack(**fields: Any) -> bytes:
    return msgpack.packb(fields)


CHUNKS: list[m.AddProgram | m.TransferFile] = [
    m.AddProgram("hash", "[package]", True, 3, 7, b""),
    m.AddProgram("h" * 64, "\u20ac" * 40_000, False, 2**40, U32, b""),
    m.TransferFile("p", "hash", 0, 1, b""),
]


@pytest.mark.parametrize("size", [0, 1, 31, 255, 256, 65_535, 65_536, m.CHUNK_BYTES])
@pytest.mark.parametrize("chunk", CHUNKS, ids=lambda chunk: chunk.type)
def test_a_chunk_is_encoded_around_its_data(chunk: m.AddProgram | m.TransferFile, size: int) -> None:
    """The bytes are those of any other way, and the data is not touched."""
    chunk = attrs.evolve(chunk, chunk_data=bytes(range(256)) * 1024)
    chunk = attrs.evolve(chunk, chunk_data=chunk.chunk_data[:size])
    corr_id = U32 if chunk.answered else None
    encoded = codec.encode_chunk(chunk, corr_id)
    assert encoded.data is chunk.chunk_data
    assert encoded.head + encoded.data == codec.encode_request(chunk, corr_id)
    assert len(encoded) == len(encoded.head) + size


def test_a_chunk_that_cannot_be_encoded() -> None:
    """It is refused as any other message."""
    with pytest.raises(InvalidRequest, match="transfer_file"):
        codec.encode_chunk(m.TransferFile("\ud800", "hash", 0, 1, b"data"), None)


def test_the_data_of_a_chunk_stays_out_of_the_repr() -> None:
    """It is long, and nobody's business."""
    assert "secret" not in repr(codec.encode_chunk(m.TransferFile("p", "h", 0, 1, b"secret"), None))


# ------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("request_", SAMPLES, ids=lambda r: r.type)
def test_requests_survive_the_wire(request_: m.Request) -> None:
    """Each request is decoded into its equal, with the id it was sent under."""
    own_id = isinstance(request_, m.McpResponse)
    corr_id = U32 if request_.answered else None
    decoded, decoded_id = codec.decode_request(codec.encode_request(request_, corr_id))
    assert decoded == request_
    assert decoded_id == (7 if own_id else corr_id)


def test_the_sample_covers_the_vocabulary() -> None:
    """No kind of request is left out above."""
    assert {request.type for request in SAMPLES} == set(m.REQUESTS)


def test_the_wire_form_of_a_request() -> None:
    """One map with string keys; text is str, bytes are bin, absent fields are left out."""
    payload = codec.encode_request(m.AddProgram("h", "m", False, 0, 1, b"d"), 9)
    assert msgpack.unpackb(payload) == {
        "type": "add_program",
        "corr_id": 9,
        "program_hash": "h",
        "manifest": "m",
        "force_overwrite": False,
        "chunk_index": 0,
        "total_chunks": 1,
        "chunk_data": b"d",
    }
    assert codec.encode_request(m.Ping(), 1) == b"\x82\xa4type\xa4ping\xa7corr_id\x01"


def test_the_wire_form_of_an_answer() -> None:
    """The bytes of a real engine's pong."""
    wire = b"\x84\xa4type\xa8response\xa7corr_id\x01\xa2ok\xc3\xa6result\xa4Pong"
    assert codec.encode_message(m.Response(1, True, "Pong")) == wire
    assert codec.read_response(codec.decode_fields(wire)) == (1, True, "Pong")


def test_names_of_files_are_of_0_5() -> None:
    """0.4 sends no name key, 0.5 always, nil or not; both are read."""
    plain = m.FileChunk("p", "h", 0, 1, b"d")
    assert "name" not in msgpack.unpackb(codec.encode_message(plain))
    assert msgpack.unpackb(codec.encode_message(plain, named_files=True))["name"] is None
    named = m.FileChunk("p", "h", 0, 1, b"d", "n")
    assert codec.read_file_chunk(codec.decode_fields(codec.encode_message(named, named_files=True))) == named
    odd = {**msgpack.unpackb(codec.encode_message(plain)), "name": 5}
    assert codec.read_file_chunk(odd) == plain


@pytest.mark.parametrize(
    "request_",
    [
        m.LaunchProcess("echo@0.1.0", "lone \ud800 surrogate"),
        m.LaunchProcess("echo@0.1.0", "{}", True, 2**64),
        m.LaunchProcess("echo@0.1.0", object()),  # type: ignore[arg-type]
        m.SignalProcess("p", {1, 2}),  # type: ignore[arg-type]
    ],
    ids=["surrogate", "integer", "object", "set"],
)
def test_what_has_no_wire_form_is_refused(request_: m.Request) -> None:
    """The caller is told at once; the next message is not affected."""
    with pytest.raises(InvalidRequest, match=f"{request_.type}: cannot be sent"):
        codec.encode_request(request_, 1)
    assert codec.decode_request(codec.encode_request(m.Ping(), 2)) == (m.Ping(), 2)


# -------------------------------------------------------------------------------------------------- acceptance rules

LAUNCH: dict[str, Any] = {
    "type": "launch_process",
    "corr_id": 1,
    "inferlet": "e@0.1.0",
    "input": "{}",
    "capture_outputs": True,
}
CHUNK: dict[str, Any] = {
    "type": "transfer_file",
    "process_id": "p",
    "file_hash": "h",
    "chunk_index": 0,
    "total_chunks": 1,
    "chunk_data": b"ab",
}
DAEMON: dict[str, Any] = {
    "type": "launch_daemon",
    "corr_id": 1,
    "port": 1,
    "inferlet": "e@0.1.0",
    "input": "",
}


@pytest.mark.parametrize(
    ("base", "changes", "field", "value"),
    [
        (LAUNCH, {}, "token_budget", None),
        (LAUNCH, {"token_budget": None}, "token_budget", None),
        (LAUNCH, {"token_budget": 2**64 - 1}, "token_budget", 2**64 - 1),
        (LAUNCH, {"surplus": [1, {"deep": None}]}, "input", "{}"),
        (LAUNCH, {"input": "\u20ac".encode()}, "input", "\u20ac"),
        (LAUNCH, {"corr_id": 0}, "input", "{}"),
        (LAUNCH, {"corr_id": U32}, "input", "{}"),
        (CHUNK, {"chunk_data": "\u20ac"}, "chunk_data", "\u20ac".encode()),
        (CHUNK, {"chunk_data": [0, 255]}, "chunk_data", b"\x00\xff"),
        (DAEMON, {"port": 70000}, "port", 70000),
    ],
)
def test_what_an_engine_accepts(
    base: dict[str, Any], changes: dict[str, Any], field: str, value: Any
) -> None:
    """Lenient where engines are: optional nil, surplus keys, text as bytes, chunks in three forms."""
    request, _ = codec.decode_request(pack(**{**base, **changes}))
    assert getattr(request, field) == value


def test_keys_come_in_any_order_and_integers_in_any_width() -> None:
    """The tag need not be first, and 1 may take nine bytes."""
    payload = b"\x82\xa7corr_id\xcf" + (1).to_bytes(8, "big") + b"\xa4type\xa4ping"
    assert codec.decode_request(payload) == (m.Ping(), 1)
    signed = b"\x82\xa7corr_id\xd3" + (1).to_bytes(8, "big") + b"\xa4type\xa4ping"
    assert codec.decode_request(signed) == (m.Ping(), 1)


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (LAUNCH, {"corr_id": -1}),
        (LAUNCH, {"corr_id": 2**32}),
        (LAUNCH, {"corr_id": 1.0}),
        (LAUNCH, {"corr_id": True}),
        (LAUNCH, {"corr_id": "1"}),
        (LAUNCH, {"corr_id": None}),
        (LAUNCH, {"input": None}),
        (LAUNCH, {"input": 5}),
        (LAUNCH, {"input": b"\xff"}),
        (LAUNCH, {"capture_outputs": None}),
        (LAUNCH, {"capture_outputs": 1}),
        (LAUNCH, {"token_budget": -1}),
        (LAUNCH, {"token_budget": 1.0}),
        (LAUNCH, {"type": "launch"}),
        (LAUNCH, {"type": None}),
        (LAUNCH, {"type": 5}),
        (LAUNCH, {"type": []}),
        (CHUNK, {"chunk_data": msgpack.ExtType(18, b"ab")}),
        (CHUNK, {"chunk_data": 5}),
        (CHUNK, {"chunk_data": [256]}),
        (CHUNK, {"chunk_data": [-1]}),
        (CHUNK, {"chunk_data": ["a"]}),
        (CHUNK, {"chunk_index": -1}),
        (CHUNK, {"total_chunks": True}),
        (DAEMON, {"port": 2**32}),
        ({"type": "query", "corr_id": 1, "subject": "model_status"}, {}),
        ({"type": "run_processes", "corr_id": 1, "inferlet": "e@0.1.0"}, {"inputs": "{}"}),
        ({"type": "run_processes", "corr_id": 1, "inferlet": "e@0.1.0"}, {"inputs": [1]}),
        ({"type": "run_processes", "corr_id": 1, "inferlet": "e", "inputs": []}, {"token_budgets": 1}),
        ({"type": "run_processes", "corr_id": 1, "inferlet": "e", "inputs": []}, {"token_budgets": [-1]}),
        ({"type": "mcp_response", "ok": True, "result": ""}, {}),
        ({"type": "mcp_response", "ok": True, "result": "", "corr_id": 2**32}, {}),
    ],
)
def test_what_an_engine_refuses(base: dict[str, Any], changes: dict[str, Any]) -> None:
    """Strict where engines are: ranges, floats, required fields, unknown tags, extension types."""
    with pytest.raises(codec.DecodeError):
        codec.decode_request(pack(**{**base, **changes}))


@pytest.mark.parametrize("name", ["corr_id", "inferlet", "input", "capture_outputs"])
def test_required_fields_are_required(name: str) -> None:
    """A missing field is named in the refusal."""
    fields = {key: value for key, value in LAUNCH.items() if key != name}
    with pytest.raises(codec.DecodeError, match=f"missing field `{name}`"):
        codec.decode_request(pack(**fields))


# ------------------------------------------------------------------------------------------------------------ damage


def test_bytes_behind_the_message_are_ignored() -> None:
    """As engines ignore them; also behind text that is not UTF-8."""
    assert codec.decode_fields(pack(a=1) + b"\xc1junk") == {"a": 1}
    assert codec.decode_fields(b"\x81\xa1a\xa2\xff\xfe" + b"more") == {"a": "\ufffd\ufffd"}


def test_text_that_is_not_utf_8_is_read_with_replacements() -> None:
    """One bad byte does not cost the message."""
    assert codec.decode_fields(b"\x81\xa1a\xa3x\xffy") == {"a": "x\ufffdy"}


@pytest.mark.parametrize("value", [None, 1, "text", b"bytes", [1, 2], True, 1.5, msgpack.ExtType(5, b"")])
def test_what_is_not_a_map_is_refused(value: Any) -> None:
    """The engine speaks in maps."""
    with pytest.raises(codec.DecodeError, match="expected a map"):
        codec.decode_fields(msgpack.packb(value))


@pytest.mark.parametrize("message", ENGINE_SAMPLES, ids=lambda message: message.type)
def test_truncation_at_every_byte_salvages_what_came_before(message: Any) -> None:
    """A message that is cut short yields its first fields, so what it belonged to can be failed."""
    payload = codec.encode_message(message, named_files=True)
    whole = msgpack.unpackb(payload)
    best = 0
    for size in range(len(payload)):
        with pytest.raises(codec.DecodeError) as caught:
            codec.decode_fields(memoryview(payload)[:size])
        fields = caught.value.fields
        assert list(fields.items()) == list(whole.items())[: len(fields)]
        assert len(fields) >= best
        best = len(fields)
    assert best == len(whole) - 1


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x81" * 2000,
        b"\x91" * 100_000,
        b"\x81\xa1a" * 1100 + b"\xc0",
        b"\x81\x90\x01",
        b"\x81\x80\x01",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\x81\xa1a\xdd\xff\xff\xff\xff",
        b"\x81\xa1a\xdb\xff\xff\xff\xffabc",
        b"\x81\xa1a\xc6\xff\xff\xff\xffabc",
        b"\x81\xa1a\xc9\xff\xff\xff\xff\x01abc",
        b"\x81\xa1a\xc7\x05\xff12345",
        b"\x81\xa1a\xc7\x0c\xff" + b"\xff" * 12,
        b"\x81\xa1\xff\xc1",
        b"\xde\x00\x02\xa1\xff\xc0",
    ],
)
def test_damage_of_all_kinds_is_a_decode_error(payload: bytes) -> None:
    """Deep nesting, unhashable keys, headers that promise what is not there, bad timestamps."""
    with pytest.raises(codec.DecodeError):
        codec.decode_fields(payload)


def test_nesting_has_a_limit() -> None:
    """One level too many is damage, whose beginning can still be read; one less is not."""
    deep = {depth: b"\x81\xa1a" + b"\x91" * depth + b"\xc0" for depth in range(500, 1100)}
    refused = [depth for depth, payload in deep.items() if not decodes(payload)]
    assert refused == list(range(refused[0], 1100))
    with pytest.raises(codec.DecodeError) as caught:
        codec.decode_fields(deep[refused[0]])
    assert list(caught.value.fields) == ["a"]


def decodes(payload: bytes) -> bool:
    try:
        codec.decode_fields(payload)
    except codec.DecodeError:
        return False
    return True


def test_promises_cost_no_memory() -> None:
    """Headers that claim gigabytes allocate nothing of the kind, however they are nested."""
    filler = b"\xc0" * 100_000
    promise = b"\xdd" + len(filler).to_bytes(4, "big")
    payloads = [
        b"\x81\xa1a\xdd\x7f\xff\xff\xff" + filler,
        b"\x81\xa1a\xdf\x7f\xff\xff\xff" + filler,
        b"\x81\xa1a\xc6\x7f\xff\xff\xff" + filler,
        b"\x81\xa1a" + promise * 8 + filler,
    ]
    for payload in payloads:
        tracemalloc.start()
        with pytest.raises(codec.DecodeError):
            codec.decode_fields(payload)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 200 * len(payload)


VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.sampled_from([*m.REQUESTS, "response", "process_event", "file"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted({name for cls in m.REQUESTS.values() for name in cls.field_names} | {"type", "corr_id"})
ALMOST = st.dictionaries(
    st.sampled_from(NAMES) | VALUE.filter(lambda v: v.__hash__ is not None), VALUE, max_size=8
)


def read_all(fields: codec.Fields) -> None:
    for read in (
        codec.read_response,
        codec.read_process_event,
        codec.read_file_chunk,
        codec.read_mcp_request,
        codec.build_request,
    ):
        try:
            read(fields)
        except codec.DecodeError as exc:
            read_damaged = exc.fields
            assert isinstance(read_damaged, dict)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | ALMOST.map(msgpack.packb), st.binary(max_size=3), st.integers(0, 200))
def test_nothing_but_decode_error_leaves(payload: bytes, junk: bytes, cut: int) -> None:
    """Random bytes and near misses, cut and with junk put in: decoded, or refused in one way."""
    place = cut % (len(payload) + 1)
    for data in (payload, payload[:place], payload[:place] + junk + payload[place:]):
        try:
            fields = codec.decode_fields(data)
        except codec.DecodeError as exc:
            fields = exc.fields
        read_all(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"corr_id": 1, "ok": True},
        {"corr_id": True, "ok": True, "result": ""},
        {"corr_id": 1, "ok": 1, "result": ""},
        {"corr_id": 1, "ok": True, "result": b""},
        {},
    ],
)
def test_answers_are_checked(fields: codec.Fields) -> None:
    """An answer that lacks something is damaged, and says what could be read."""
    with pytest.raises(codec.DecodeError) as caught:
        codec.read_response(fields)
    assert caught.value.fields == fields


@pytest.mark.parametrize("name", ["process_id", "file_hash", "chunk_index", "total_chunks", "chunk_data"])
@pytest.mark.parametrize("value", [None, 1.5, True])
def test_file_chunks_are_checked(name: str, value: Any) -> None:
    """Each field has one type."""
    fields = msgpack.unpackb(codec.encode_message(m.FileChunk("p", "h", 0, 1, b"")))
    with pytest.raises(codec.DecodeError, match=name):
        codec.read_file_chunk({**fields, name: value})


@pytest.mark.parametrize("name", ["corr_id", "process_id", "server_name", "method", "params"])
def test_tool_calls_are_checked(name: str) -> None:
    """Each field must be there."""
    fields = msgpack.unpackb(codec.encode_message(m.McpRequest(1, "p", "s", "tools/list", "{}")))
    assert codec.read_mcp_request(fields) == m.McpRequest(1, "p", "s", "tools/list", "{}")
    del fields[name]
    with pytest.raises(codec.DecodeError, match=name):
        codec.read_mcp_request(fields)
