# SPDX-License-Identifier: Apache-2.0
"""The engine's side of the core, coupled to the client's side by plain function calls."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from wsproto.frame_protocol import CloseReason

from pie_anyio._events import File, Message
from pie_anyio._protocol import engine as core
from pie_anyio._protocol import events as client_events
from pie_anyio._protocol import messages, websocket
from pie_anyio._protocol.engine import EngineProtocol
from pie_anyio._protocol.state import ConnectionState
from pie_anyio._types import Generation
from pie_anyio.testing.pair import ConnectionPair, bytewise, pieces, whole

BOTH = [Generation.V04, Generation.V05]
CUTS = {"whole": whole, "bytewise": bytewise, "pieces": pieces(7)}


def open_pair(generation: Generation = Generation.V05, **options: Any) -> ConnectionPair:
    pair = ConnectionPair(generation, **options)
    pair.open()
    return pair


def ask(pair: ConnectionPair, request: messages.Request) -> int:
    """Have the client ask, and give the correlation id that arrived."""
    pair.client.submit(request, request)
    pair.to_engine()
    received = pair.engine_events.pop()
    assert isinstance(received, core.MessageReceived)
    assert received.request == request
    assert received.corr_id is not None
    return received.corr_id


def launch(pair: ConnectionPair, process_id: str, stream: int = 0) -> None:
    corr_id = ask(pair, messages.LaunchProcess("echo@0.1.0", "{}"))
    pair.engine.respond(corr_id, True, process_id, stream=stream)


def frames(pair: ConnectionPair) -> list[Any]:
    """Decode what the engine wants to send, past the client's core."""
    items: list[Any] = pair.client._ws.receive_data(pair.engine.data_to_send(2**30))
    return [msgpack.unpackb(item) if isinstance(item, (bytes, memoryview)) else item for item in items]


@pytest.mark.parametrize("generation", BOTH)
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_process_from_launch_to_return(generation: Generation, cut: Any) -> None:
    """Request, answer, events and file arrive, however the bytes are cut."""
    pair = open_pair(generation, cut=cut)
    launch(pair, "p1")
    content = bytes(range(256)) * 1200
    pair.engine.send_event("p1", "message", "hello")
    pair.engine.send_file("p1", content, "a.bin")
    pair.engine.send_event("p1", "return", "7")
    if cut is bytewise:
        pair.cut = pieces(1000)
    pair.run()
    started, message, file, ended = pair.client_events
    assert isinstance(started, client_events.ProcessStarted)
    assert isinstance(message, client_events.ProcessOutput)
    assert isinstance(message.event, Message)
    assert isinstance(file, client_events.ProcessOutput)
    assert isinstance(file.event, File)
    assert file.event.value == content
    assert file.event.value.name == ("a.bin" if generation is Generation.V05 else None)
    assert isinstance(ended, client_events.ProcessEnded)
    assert ended.text == "7"


def test_streams_are_chosen_from() -> None:
    """Order holds within a stream; the function given decides between streams."""
    pair = open_pair(choose=lambda count: count - 1)
    for stream, process_id in enumerate("abc", start=1):
        pair.engine.send_event(process_id, "message", "1", stream=stream)
        pair.engine.send_event(process_id, "message", "2", stream=stream)
    assert [(f["process_id"], f["value"]) for f in frames(pair)] == [
        *(("c", "1"), ("c", "2"), ("b", "1"), ("b", "2"), ("a", "1"), ("a", "2"))
    ]
    assert pair.engine.queued_bytes == 0


def test_the_first_stream_goes_first_by_default() -> None:
    """Without a choice a stream is sent to its end."""
    pair = open_pair()
    for text in "12":
        for stream in (1, 2):
            pair.engine.send_event("p", "message", f"{stream}{text}", stream=stream)
    assert [frame["value"] for frame in frames(pair)] == ["11", "12", "21", "22"]


def test_a_held_stream_waits() -> None:
    """What is held stays behind, also what was queued before; releasing twice does nothing."""
    pair = open_pair()
    pair.engine.send_event("p", "message", "early", stream=1)
    pair.engine.hold(1)
    pair.engine.hold(2)
    pair.engine.send_event("p", "message", "late", stream=1)
    pair.engine.send_event("q", "message", "free", stream=3)
    assert [frame["value"] for frame in frames(pair)] == ["free"]
    assert not pair.engine.wants_write
    for _ in range(2):
        pair.engine.release(1)
        pair.engine.release(2)
    assert [frame["value"] for frame in frames(pair)] == ["early", "late"]


def test_data_to_send_is_bounded() -> None:
    """At least one message is given, and no more than asked for beyond it."""
    pair = open_pair()
    for _ in range(3):
        pair.engine.send_payload(bytes(1000))
    assert len(pair.engine.data_to_send(1)) == 1004
    assert len(pair.engine.data_to_send(1500)) == 2008


def test_an_empty_file_is_not_sent() -> None:
    """As with real engines, nothing at all arrives."""
    pair = open_pair()
    pair.engine.send_file("p", b"")
    assert not pair.engine.wants_write


@pytest.mark.parametrize("generation", BOTH)
def test_texts(generation: Generation) -> None:
    """Text frames reach the client, which reads the errors among them."""
    pair = open_pair(generation)
    pair.engine.send_turn_done()
    pair.engine.send_turn_done()
    pair.engine.send_text('{"type":"error","message":"h\u00e9"}')
    pair.run()
    assert pair.client_events == [client_events.NoticeReceived("h\u00e9")]
    assert pair.client.ignored == 0


def test_tool_calls_reach_the_client() -> None:
    """A tool call is a message of its own (0.4)."""
    pair = open_pair(Generation.V04)
    pair.engine.send_mcp_request(1, "p", "calc", "tools/list", "{}")
    pair.run()
    assert pair.client_events == [
        client_events.ToolRequested(messages.McpRequest(1, "p", "calc", "tools/list", "{}"))
    ]


@pytest.mark.parametrize(
    ("generation", "fields", "detail"),
    [
        (
            Generation.V05,
            {"type": "launch_daemon", "corr_id": 1},
            "unknown variant `launch_daemon`, expected one of",
        ),
        (
            Generation.V04,
            {"type": "nope", "corr_id": 1},
            "unknown variant `nope`, expected one of `auth_identify`",
        ),
        (Generation.V05, {"corr_id": 1}, "missing field `type`"),
        (Generation.V05, [1], "expected a map"),
    ],
)
def test_undecodable_messages(generation: Generation, fields: Any, detail: str) -> None:
    """What is no request of this generation is reported, and the connection goes on."""
    pair = open_pair(generation)
    pair.client._raw += pair.client._ws.binary(msgpack.packb(fields))
    pair.to_engine()
    (event,) = pair.engine_events
    assert isinstance(event, core.Undecodable)
    assert detail in event.detail
    pair.engine_events.clear()
    ask(pair, messages.Ping())


def test_requests_as_json() -> None:
    """A text frame may hold a request; anything else in it is undecodable."""
    pair = open_pair()
    pair.client._raw += pair.client._ws.text('{"type": "ping", "corr_id": 5}')
    pair.to_engine()
    (event,) = pair.engine_events
    assert isinstance(event, websocket.TextReceived)
    assert pair.engine.read_text(event.text) == core.MessageReceived(messages.Ping(), 5, len(event.text))
    for text in (
        "[1]",
        "{",
        "",
        "[" * 100_000,
        json.dumps({"type": "ping"}),
        json.dumps({"type": "run_processes"}),
    ):
        assert isinstance(pair.engine.read_text(text), core.Undecodable), text


def test_size_limits_of_05() -> None:
    """Too large a request is reported; too large a message ends the reader, without a word to the client."""
    pair = open_pair()
    pair.client._raw += pair.client._ws.binary(bytes(7_340_033))
    pair.to_engine()
    assert pair.engine_events == [core.TooLarge(7_340_033)]
    pair.client._raw += pair.client._ws.binary(bytes(8_126_465))
    pair.to_engine()
    assert isinstance(pair.engine_events.pop(), core.PeerBroke)
    assert pair.engine.state is ConnectionState.FAILED
    assert not pair.engine.wants_write
    pair.feed_engine(None)
    assert pair.engine_events[-1] == core.Ended()
    assert pair.engine.state is ConnectionState.FAILED


def test_frame_limit_of_04() -> None:
    """One frame may have 16 MiB; the deaf engine goes on sending what processes produce."""
    pair = open_pair(Generation.V04)
    pair.client._raw += pair.client._ws.binary(bytes(16 * 1024 * 1024 + 1))
    pair.to_engine()
    (event,) = pair.engine_events
    assert isinstance(event, core.PeerBroke)
    assert "16777216" in event.detail
    pair.engine.send_event("p", "message", "still here")
    pair.engine.send_text("and this")
    assert len(frames(pair)) == 2


def test_nobody_is_heard_before_login() -> None:
    """0.4 drops everything but logins until somebody has logged in."""
    pair = ConnectionPair(Generation.V04)
    pair.run()
    assert not pair.engine.admits(messages.Ping())
    assert pair.engine.admits(messages.AuthIdentify("alice"))
    pair.engine.authenticated()
    assert pair.engine.admits(messages.Ping())
    assert pair.engine.ignored == 1


@pytest.mark.parametrize("answer_close", [True, False])
def test_the_clients_close(answer_close: bool) -> None:
    """What is queued is dropped; the close is answered only where asked for."""
    pair = open_pair(answer_close=answer_close)
    pair.engine.send_event("p", "message", "never sent")
    pair.client.close(1000, "bye")
    pair.to_engine()
    assert pair.engine_events == [core.PeerClosed(CloseReason.NORMAL_CLOSURE, "bye")]
    assert pair.engine.wants_write is answer_close
    for send in (
        lambda: pair.engine.send_text("x"),
        pair.engine.send_turn_done,
        lambda: pair.engine.send_payload(b""),
    ):
        send()
    pair.run()
    assert pair.client.state is (ConnectionState.CLOSED if answer_close else ConnectionState.CLOSING)
    pair.disconnect()
    assert pair.engine.state is ConnectionState.CLOSED


def test_the_engines_close() -> None:
    """A close frame leaves behind what is queued, once."""
    pair = open_pair()
    pair.engine.send_event("p", "message", "first")
    pair.engine.close(1001, "going")
    pair.engine.close()
    assert pair.engine.wants_write
    first, second = frames(pair)
    assert first["value"] == "first"
    assert second == websocket.CloseReceived(1001, "going")


def test_a_close_waits_for_held_streams_only_if_ready() -> None:
    """The close frame does not wait for what is held."""
    pair = open_pair()
    pair.engine.hold(1)
    pair.engine.send_event("p", "message", "held", stream=1)
    pair.engine.close(1000)
    assert [type(item) for item in frames(pair)] == [websocket.CloseReceived]


def test_refusal() -> None:
    """A refused handshake tells the client why."""
    pair = ConnectionPair()
    pair.engine.receive_data(pair.client.data_to_send())
    (event,) = pair.engine.events()
    assert isinstance(event, websocket.UpgradeRequested)
    assert event.target == "/v1/ws"
    assert event.headers["x-pie-identity"] == "test/user"
    pair.engine.refuse(401, b"identity: missing")
    pair.run()
    (ended,) = pair.client_events
    assert isinstance(ended, client_events.ConnectionEnded)
    assert "identity: missing" in str(ended.reason)
    pair.feed_engine(b"more")
    pair.feed_engine(None)
    assert pair.engine_events == [core.Ended()]


@pytest.mark.parametrize(("generation", "answer"), [(Generation.V04, b""), (Generation.V05, b"HTTP/1.1 400")])
def test_no_upgrade(generation: Generation, answer: bytes) -> None:
    """Something that is no upgrade is answered by 0.5 only."""
    engine = EngineProtocol(generation)
    engine.receive_data(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    (event,) = engine.events()
    assert isinstance(event, core.PeerBroke)
    assert engine.data_to_send().startswith(answer)
    assert bool(answer) or not engine.wants_write


def test_bytes_behind_the_upgrade_are_read() -> None:
    """A client may send before it has seen the answer to its handshake."""
    pair = ConnectionPair()
    ws = pair.client._ws
    data = pair.client.data_to_send() + ws.binary(msgpack.packb({"type": "ping", "corr_id": 1}))
    pair.feed_engine(data)
    assert [type(event) for event in pair.engine_events] == [core.MessageReceived]


def test_pings_are_answered() -> None:
    """A WebSocket ping is answered by the framing; an unsolicited pong is nothing."""
    pair = open_pair()
    pair.client.ping()
    pair.client._raw += b"\x8a\x80\x00\x00\x00\x00"
    pair.run()
    assert pair.client_events == [client_events.PongArrived()]
    assert pair.engine_events == []


def test_raw_bytes_go_first() -> None:
    """Bytes that are no frame leave ahead of everything, for tests of the peer."""
    pair = open_pair()
    pair.engine.send_event("p", "message", "x")
    pair.engine.send_bytes(b"garbage")
    assert pair.engine.data_to_send().startswith(b"garbage\x82")


@pytest.mark.parametrize("ending", [None, b"\xff" * 20], ids=["eof", "garbage"])
def test_a_login_on_a_connection_that_has_ended(ending: bytes | None) -> None:
    """What ended it may have come in one read with the login, which is answered after that."""
    engine = open_pair(Generation.V04).engine
    engine.receive_data(ending)
    state = engine.state
    assert state in (ConnectionState.CLOSED, ConnectionState.FAILED)
    engine.authenticated()
    assert engine.state is state
