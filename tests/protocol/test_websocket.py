# SPDX-License-Identifier: Apache-2.0
"""Framing: the fast lane against plain wsproto, limits, control frames, the handshake."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.protocol.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    accept,
    accept_line,
    counting,
    frame,
    pieces,
    xor,
)
from wsproto import ConnectionType, WSConnection
from wsproto import events as ws

from pie_anyio import RemoteProtocolError
from pie_anyio._protocol import websocket as wire
from pie_anyio._protocol.masking import Mask, mask
from pie_anyio._session.native import best_mask

CAP = 200_000
KEY = b"\x01\xa2\x33\xf4"


def fresh(cap: int = CAP, header_cap: int = 65536) -> tuple[wire.WebSocket, bytes]:
    """Give a client in the handshake, and its request."""
    client = wire.WebSocket(client=True, message_bytes=cap, header_bytes=header_cap, entropy=counting())
    return client, client.request_upgrade("engine.test", "/v1/ws", [(b"x-pie-identity", b"a/b")])


def open_client(cap: int = CAP) -> wire.WebSocket:
    client, request = fresh(cap)
    assert client.receive_data(accept(request)) == [wire.Upgraded()]
    return client


def open_with(entropy: wire.Entropy, routine: Mask) -> wire.WebSocket:
    """Give a client with keys and a way of masking of our choice."""
    client = wire.WebSocket(client=True, message_bytes=CAP, header_bytes=65536, entropy=entropy, mask=routine)
    assert client.receive_data(accept(client.request_upgrade("h", "/", []))) == [wire.Upgraded()]
    return client


def open_server(cap: int = CAP, frame_cap: int | None = None) -> wire.WebSocket:
    server = wire.WebSocket(client=False, message_bytes=cap, frame_bytes=frame_cap, header_bytes=65536)
    (asked,) = server.receive_data(fresh()[1])
    assert isinstance(asked, wire.UpgradeRequested)
    server.accept_upgrade()
    return server


def plain(client: bool) -> WSConnection:
    """Give wsproto itself, upgraded."""
    if client:
        reference = WSConnection(ConnectionType.CLIENT)
        request = reference.send(ws.Request(host="engine.test", target="/"))
        reference.receive_data(accept(request))
    else:
        reference = WSConnection(ConnectionType.SERVER)
        reference.receive_data(WSConnection(ConnectionType.CLIENT).send(ws.Request(host="h", target="/")))
        assert list(reference.events())
        reference.send(ws.AcceptConnection())
    list(reference.events())
    return reference


def normal(items: list[Any]) -> list[tuple[Any, ...]]:
    """Bring what came out into a form that can be compared."""
    out: list[tuple[Any, ...]] = []
    for item in items:
        match item:
            case bytes() | memoryview():
                out.append(("binary", bytes(item)))
            case wire.TextReceived():
                out.append(("text", item.text))
            case wire.PongReceived():
                out.append(("pong", item.payload))
            case wire.CloseReceived():
                out.append(("closed", item.code, item.reason))
            case wire.Broken():
                out.append(("broken",))
            case _:
                out.append((item,))
    return out


def run_ours(socket: wire.WebSocket, parts: list[bytes]) -> list[tuple[Any, ...]]:
    return normal([item for part in parts for item in socket.receive_data(part)])


def run_plain(reference: WSConnection, data: bytes) -> list[tuple[Any, ...]]:
    """Do what our adapter does, with wsproto alone."""
    out: list[tuple[Any, ...]] = []
    text, binary = "", b""
    reference.receive_data(data)
    for event in reference.events():
        match event:
            case ws.TextMessage():
                text += event.data
                if event.message_finished:
                    out.append(("text", text))
                    text = ""
            case ws.BytesMessage():
                binary += event.data
                if event.message_finished:
                    out.append(("binary", binary))
                    binary = b""
            case ws.Pong():
                out.append(("pong", bytes(event.payload)))
            case ws.CloseConnection():
                real = reference.state.name == "REMOTE_CLOSING"
                out.append(("closed", int(event.code), event.reason or "") if real else ("broken",))
                break
    return out


# ----------------------------------------------------------------------------------------------------- differential

SIZES = st.sampled_from([0, 1, 4, 125, 126, 127, 300, 8191, 8192, 65535, 65536])
PAYLOAD = st.builds(
    lambda size, seed: bytes((seed + i) % 251 for i in range(size)), SIZES, st.integers(0, 250)
)
SHORT = st.binary(max_size=130)
WORDS = st.text(max_size=20).map(str.encode)


@st.composite
def frames(draw: st.DrawFn, client: bool) -> bytes:
    """Build a frame or a fragmented message, mostly right."""
    key = None if client else KEY
    kind = draw(
        st.sampled_from(
            ["plain"] * 6
            + ["text", "fragments", "fragments", "ping", "pong", "loose", "odd", "close", "garbage"]
        )
    )
    match kind:
        case "plain":
            return frame(draw(PAYLOAD), key=key)
        case "text":
            return frame(draw(WORDS | SHORT), opcode=TEXT, key=key)
        case "ping" | "pong":
            return frame(draw(st.binary(max_size=125)), opcode=PING if kind == "ping" else PONG, key=key)
        case "fragments":
            opcode = draw(st.sampled_from([TEXT, BINARY]))
            parts = pieces(
                draw(WORDS if opcode == TEXT else PAYLOAD), draw(st.lists(st.integers(0, 99), max_size=3))
            )
            parts = [b"", *parts, b""]
            middle = frame(b"in between", opcode=draw(st.sampled_from([PING, PONG])), key=key)
            between = draw(st.sampled_from([b"", middle]))
            return between.join(
                frame(part, opcode=CONTINUATION if i else opcode, fin=i == len(parts) - 1, key=key)
                for i, part in enumerate(parts)
            )
        case "loose":
            return frame(draw(SHORT), opcode=CONTINUATION, fin=draw(st.booleans()), key=key)
        case "close":
            return frame(
                draw(
                    st.sampled_from([b"", b"\x03\xe8", b"\x03\xe8bye", b"\x03", b"\x03\xe8\xff", b"\x00\x01"])
                ),
                opcode=CLOSE,
                key=key,
            )
        case "garbage":
            return draw(st.binary(max_size=20))
    return frame(
        draw(SHORT),
        opcode=draw(st.integers(0, 15)),
        fin=draw(st.booleans()),
        rsv=draw(st.sampled_from([0, 0, 1, 4, 7])),
        key=draw(st.sampled_from([key, key, KEY, None])),
        width=draw(st.sampled_from([None, None, 2, 8])),
    )


@pytest.mark.parametrize("client", [True, False], ids=["client", "server"])
@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_the_fast_lane_agrees_with_wsproto(client: bool, data: st.DataObject) -> None:
    """Any frames, right and wrong, cut anywhere: the same messages, and the same end."""
    stream = b"".join(data.draw(st.lists(frames(client), max_size=7)))
    # wsproto judges some headers before they are complete: complete them, so that both have seen enough.
    stream += frame(key=None if client else KEY) * 8
    cuts = data.draw(st.lists(st.integers(0, 2**20), max_size=6))
    expected = run_plain(plain(client), stream)
    ours = run_ours(open_client() if client else open_server(), pieces(stream, cuts))
    if ours and ours[-1] == ("broken",) and expected and expected[-1] != ("broken",):
        # The one difference that is meant: garbage may claim more than our limit, which wsproto does not have.
        assert ours[:-1] == expected[: len(ours) - 1]
        probe = open_client(2**64) if client else open_server(2**64)
        ours = run_ours(probe, [stream])
    assert ours == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(frames(True), max_size=5).map(b"".join).filter(lambda data: len(data) < 3000))
@example(b"\x82\x7e\x00\x7e" + bytes(126) + b"\x01\x00\x80\x01\xff")
def test_chunking_changes_nothing(stream: bytes) -> None:
    """Byte by byte or at once: the same."""
    whole = run_ours(open_client(), [stream])
    assert run_ours(open_client(), [stream[i : i + 1] for i in range(len(stream))]) == whole


OPEN = frame(b"open", fin=False, key=None)
VIOLATIONS = {
    "reserved bit": frame(b"x", rsv=1),
    "two bytes for a short length": frame(b"x", width=2),
    "two bytes for 125": frame(bytes(125), width=2),
    "eight bytes for a short length": frame(b"x", width=8),
    "eight bytes for 65535": frame(bytes(65535), width=8),
    "masked by a server": frame(b"x", key=KEY),
    "large and masked by a server": frame(bytes(9000), key=KEY),
    "unknown opcode": frame(b"x", opcode=3),
    "unknown control opcode": frame(b"x", opcode=11),
    "fragmented ping": frame(b"x", opcode=PING, fin=False),
    "long ping": frame(bytes(126), opcode=PING),
    "continuation of nothing": frame(b"x", opcode=CONTINUATION),
    "end of nothing": frame(b"x", opcode=CONTINUATION, fin=False),
    "message within a message": OPEN + frame(b"x"),
    "large message within a message": OPEN + frame(bytes(9000)),
    "text within a message": OPEN + frame(b"x", opcode=TEXT),
    "text that is not utf-8": frame(b"\xff", opcode=TEXT),
    "text that ends within a character": frame(b"\xe2\x82", opcode=TEXT),
    "close of one byte": frame(b"\x03", opcode=CLOSE),
    "close with a reserved code": frame(b"\x03\xed", opcode=CLOSE),
    "close with bad text": frame(b"\x03\xe8\xff", opcode=CLOSE),
}


@pytest.mark.parametrize("bad", VIOLATIONS.values(), ids=VIOLATIONS)
def test_each_violation_ends_reading(bad: bytes) -> None:
    """Whatever RFC 6455 forbids is refused, as wsproto does, at once or byte by byte; what came before it counts."""
    stream = frame(b"before") + bad + frame(b"behind")
    expected = [("binary", b"before"), ("broken",)]
    assert run_plain(plain(True), stream) == expected
    assert run_ours(open_client(), [stream]) == expected
    assert run_ours(open_client(), [stream[i : i + 1] for i in range(len(stream))]) == expected


def test_large_messages_are_views_and_small_ones_copies() -> None:
    """A view saves copying; a copy lets go of the buffer that it came in."""
    small, large = open_client().receive_data(frame(bytes(8191)) + frame(bytes(8192)))
    assert type(small) is bytes
    assert type(large) is memoryview


# ----------------------------------------------------------------------------------------------------------- limits


def failure(socket: wire.WebSocket, *parts: bytes) -> RemoteProtocolError:
    (item,) = [item for part in parts for item in socket.receive_data(part)]
    assert isinstance(item, wire.Broken)
    return item.error


@pytest.mark.parametrize("cap", [100, 126, 1000, 70_000])
def test_messages_at_the_limit_and_one_byte_more(cap: int) -> None:
    """Unfragmented, fragmented and text: the limit is what a message may have, and 1009 says so."""
    half = cap // 2
    forms: list[Callable[[int], bytes]] = [
        lambda size: frame(bytes(size)),
        lambda size: frame(bytes(size), opcode=TEXT),
        lambda size: frame(bytes(half), fin=False) + frame(bytes(size - half), opcode=CONTINUATION),
        lambda size: (
            frame(bytes(half), fin=False)
            + frame(b"", opcode=PING)
            + frame(bytes(size - half), opcode=CONTINUATION)
        ),
    ]
    for form in forms:
        (item,) = open_client(cap).receive_data(form(cap))
        assert normal([item])[0][1] in (bytes(cap), "\0" * cap)
        socket = open_client(cap)
        error = failure(socket, form(cap + 1))
        assert error.close_code == 1009
        assert "exceeds the limit" in str(error)


def test_the_limit_of_text_is_in_bytes() -> None:
    """Characters of several bytes count as what they take, split or not."""
    text = "\u20ac".encode() * 10
    split = frame(text[:4], opcode=TEXT, fin=False) + frame(text[4:], opcode=CONTINUATION)
    assert open_client(30).receive_data(split) == [wire.TextReceived("\u20ac" * 10)]
    assert failure(open_client(29), split).close_code == 1009


def test_fragments_are_counted_per_message() -> None:
    """A message that was finished leaves no debt to the next one."""
    message = frame(bytes(60), fin=False) + frame(bytes(40), opcode=CONTINUATION)
    assert open_client(100).receive_data(message * 3 + frame(bytes(100))) == [bytes(100)] * 4


@pytest.mark.parametrize("claim", [CAP + 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("opcode", [BINARY, TEXT, CLOSE, PING])
def test_claims_are_judged_by_the_header(claim: int, opcode: int) -> None:
    """A header that promises too much is enough: nothing is waited for or allocated."""
    socket = open_client()
    error = failure(socket, frame(opcode=opcode, claim=claim))
    assert error.close_code == (1002 if opcode in (CLOSE, PING) else 1009)
    assert socket.receive_data(frame(b"later")) == []


def test_frames_have_a_limit_of_their_own() -> None:
    """An engine may take smaller frames than messages."""
    part = frame(bytes(50), fin=False, key=KEY)
    last = frame(bytes(50), opcode=CONTINUATION, key=KEY)
    assert open_server(100, 50).receive_data(part + last) == [bytes(100)]
    assert failure(open_server(100, 50), frame(bytes(51), key=KEY)).close_code == 1009
    assert failure(open_server(100, 50), frame(bytes(51), fin=False, key=KEY)).close_code == 1009


def test_many_small_fragments_take_little_memory() -> None:
    """Fragments of one byte, and empty ones without end, take what the message has."""
    for part in (b"", b"x"):
        client = open_client(10**6)
        client.receive_data(frame(b"", fin=False))
        stream = frame(part, opcode=CONTINUATION, fin=False) * 3000
        tracemalloc.start()
        assert client.receive_data(stream) == []
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 50_000
        assert client.receive_data(frame(opcode=CONTINUATION)) == [part * 3000]


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(
        st.sampled_from([0, 1, 125, 126, 8191, 8192, 65535, 65536, 150_000]), min_size=1, max_size=5
    ),
    step=st.sampled_from([1000, 4096, 65536, 100_000, 262_144]),
    server=st.booleans(),
)
def test_large_messages_in_reads_of_every_size(sizes: list[int], step: int, server: bool) -> None:
    """Reads end anywhere: in a header, in a payload, behind several messages."""
    messages = [bytes((size + i) % 251 for i in range(size)) for size in sizes]
    stream = b"".join(frame(message, key=KEY if server else None) for message in messages)
    socket = open_server() if server else open_client()
    reads = [stream[start : start + step] for start in range(0, len(stream), step)]
    assert run_ours(socket, reads) == [("binary", message) for message in messages]


def test_a_message_takes_what_it_has_and_little_more() -> None:
    """Of a message that comes in large reads nothing is kept twice for long, and nothing of it afterwards."""
    size = 1 << 20
    client = open_client(2 * size)
    stream = frame(bytes(size)) * 3
    step = 65_536
    tracemalloc.start()
    seen = sum(read_sizes(client, stream, start, step) for start in range(0, len(stream), step))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == 3 * size
    assert peak < 2.5 * size
    assert kept < step * 2


def read_sizes(client: wire.WebSocket, stream: bytes, start: int, step: int) -> int:
    items: list[Any] = client.receive_data(stream[start : start + step])
    return sum(map(len, items))


# --------------------------------------------------------------------------------------------------- control frames


def test_a_ping_is_answered_with_its_payload() -> None:
    """Once taken, the answer is gone."""
    client = open_client()
    assert not client.has_replies
    assert client.receive_data(frame(b"are you there", opcode=PING)) == []
    assert client.has_replies
    assert open_server().receive_data(client.take_replies()) == [wire.PongReceived(b"are you there")]
    assert not client.has_replies
    assert client.take_replies() == b""


def test_a_flood_of_pings_gets_one_answer() -> None:
    """Only the newest is answered where nobody takes the answers: a flood takes no memory."""
    client = open_client()
    for number in range(1000):
        client.receive_data(frame(b"%d" % number, opcode=PING))
    assert open_server().receive_data(client.take_replies()) == [wire.PongReceived(b"999")]


def test_pings_in_both_directions() -> None:
    """Ours is answered by the other side, which tells us so."""
    client, server = open_client(), open_server()
    assert server.receive_data(client.ping(b"x")) == []
    assert client.receive_data(server.take_replies()) == [wire.PongReceived(b"x")]


@pytest.mark.parametrize(
    ("payload", "code", "reason"), [(b"", 1005, ""), (b"\x03\xe9", 1001, ""), (b"\x03\xe8bye", 1000, "bye")]
)
def test_a_close_frame_is_answered_and_ends_reading(payload: bytes, code: int, reason: str) -> None:
    """Code and reason are given; what comes behind is not read."""
    client = open_client()
    items = client.receive_data(frame(payload, opcode=CLOSE) + frame(b"behind"))
    assert items == [wire.CloseReceived(code, reason)]
    assert client.receive_data(frame(b"later")) == []
    assert client.receive_eof() == []
    (answer,) = open_server().receive_data(client.take_replies())
    assert answer == wire.CloseReceived(code, reason)
    assert client.close(1000) == b""


def test_the_answer_to_our_close_is_not_answered() -> None:
    """Messages that were on their way still arrive; then the handshake is over."""
    client, server = open_client(), open_server()
    ours = client.close(1000, "done")
    assert client.close(1000) == b""
    late = server.binary(b"late")
    assert server.receive_data(ours) == [wire.CloseReceived(1000, "done")]
    assert client.receive_data(late + server.take_replies()) == [b"late", wire.CloseReceived(1000, "done")]
    assert not client.has_replies


def test_a_ping_behind_our_close_is_ignored() -> None:
    """After a close frame nothing may be sent any more, not even a pong."""
    client = open_client()
    client.close(1000)
    assert client.receive_data(frame(b"still there?", opcode=PING) + frame(b"late")) == [b"late"]
    assert not client.has_replies


def test_a_fault_behind_our_close_is_still_a_fault() -> None:
    """It is not mistaken for the other side's close frame, and nothing is sent."""
    client = open_client()
    client.close(1000)
    assert failure(client, frame(rsv=4)).close_code == 1002
    assert not client.has_replies


def test_a_fault_is_answered_with_a_close_frame() -> None:
    """The code says which kind: protocol, text encoding, size."""
    for bad, code in [
        (frame(rsv=4), 1002),
        (frame(b"\xff", opcode=TEXT), 1007),
        (frame(claim=CAP + 1), 1009),
    ]:
        client = open_client()
        assert failure(client, bad).close_code == code
        (told,) = open_server().receive_data(client.take_replies())
        assert isinstance(told, wire.CloseReceived)
        assert told.code == code


# ---------------------------------------------------------------------------------------------------------- outbound


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 100_000])
def test_outbound_frames_are_read_by_wsproto(size: int) -> None:
    """All length classes, in both roles."""
    payload = bytes(index % 256 for index in range(size))
    client_frame, server_frame = open_client().binary(payload), open_server().binary(payload)
    assert run_plain(plain(False), client_frame) == [("binary", payload)]
    assert run_plain(plain(True), server_frame) == [("binary", payload)]


def test_masking_keys_come_from_the_given_entropy() -> None:
    """A fresh key for each frame, never one twice, and the payload is masked with it; many come of one draw."""
    draws: list[bytes] = []
    source = counting()

    def entropy(size: int) -> bytes:
        draws.append(source(size))
        return draws[-1]

    client = open_with(entropy, mask)
    assert not draws
    keys: set[bytes] = set()
    for _ in range(100):
        data = client.binary(b"payload")
        assert data[:2] == b"\x82\x87"
        keys.add(data[2:6])
        assert data[6:] == xor(b"payload", data[2:6])
    assert len(keys) == 100
    drawn = b"".join(draws)
    assert keys <= {drawn[start : start + 4] for start in range(0, len(drawn), 4)}
    assert len(drawn) - len(draws[-1]) < 400 <= len(drawn)  # nothing is drawn before all is used


MASKS: list[Mask] = [mask, best_mask(), lambda payload, key: xor(bytes(payload), key)]


@settings(max_examples=150, deadline=None)
@given(
    payload=PAYLOAD,
    cut=st.integers(0, 70_000),
    keys=st.lists(st.binary(min_size=4, max_size=4), min_size=3, max_size=3),
    routine=st.sampled_from(MASKS),
    client=st.booleans(),
)
def test_frames_in_two_parts_are_read_by_wsproto(
    payload: bytes, cut: int, keys: list[bytes], routine: Mask, client: bool
) -> None:
    """Whole or in two parts, with any key and every way of masking: one frame each, with the same payload."""
    drawn = b"".join(reversed(keys))
    socket = open_with(lambda size: drawn.rjust(size, b"-"), routine) if client else open_server()
    sent = b"".join(
        [
            socket.binary(payload),
            socket.binary(payload[:cut], payload[cut:]),
            socket.binary(b"", payload),
        ]
    )
    assert run_plain(plain(not client), sent) == [("binary", payload)] * 3
    if client:
        size = len(sent) // 3
        heads = [sent[number * size : (number + 1) * size - len(payload)] for number in range(3)]
        assert [head[-4:] for head in heads] == keys


def test_text_frames() -> None:
    """The engine's side sends them."""
    assert open_client().receive_data(open_server().text("h\u00e9")) == [wire.TextReceived("h\u00e9")]


# --------------------------------------------------------------------------------------------------------- handshake


def test_the_request_asks_for_no_subprotocol_or_extension() -> None:
    """What the engine would not select is not offered; given headers are sent."""
    _, request = fresh()
    assert request.startswith(b"GET /v1/ws HTTP/1.1\r\n")
    lines = request.lower()
    assert b"host: engine.test\r\n" in lines
    assert b"x-pie-identity: a/b\r\n" in lines
    assert b"protocol:" not in lines
    assert b"extensions:" not in lines


@pytest.mark.parametrize("cut", [0, 10, 50])
def test_bytes_behind_the_header_are_frames(cut: int) -> None:
    """The first messages may come in the same read as the 101."""
    client, request = fresh()
    stream = accept(request) + frame(b"first") + frame(b"", opcode=PING)
    items = [item for part in pieces(stream, [cut, -cut]) for item in client.receive_data(part)]
    assert items == [wire.Upgraded(), b"first"]
    assert client.has_replies


def test_the_header_at_its_limit_and_one_byte_more() -> None:
    """The limit holds for the whole header, however it is cut."""
    for extra, good in ((0, True), (1, False)):
        for bytewise in (False, True):
            client, request = fresh(header_cap=1000)
            base = accept(request, b"X: ")
            answer = accept(request, b"X: " + b"a" * (1000 - len(base) + extra))
            assert len(answer) == 1000 + extra
            parts = [answer[i : i + 1] for i in range(len(answer))] if bytewise else [answer]
            items = [item for part in parts for item in client.receive_data(part)]
            if good:
                assert items == [wire.Upgraded()]
            else:
                (item,) = items
                assert isinstance(item, wire.Broken)
                assert "exceed the limit of 1000" in str(item.error)


def test_an_endless_header_is_given_up() -> None:
    """Also where its end never comes."""
    client, _ = fresh(header_cap=1000)
    assert client.receive_data(b"HTTP/1.1 101 x\r\n" + b"a" * 900) == []
    assert "handshake headers" in str(failure(client, b"a" * 200))
    assert client.receive_data(b"more") == []
    assert not client.has_replies


REFUSALS = {
    "length": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 9\r\n\r\nidentity:",
    "chunked": b"HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nidentity:\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("bytewise", [False, True])
def test_a_refusal_comes_with_its_body(refusal: bytes, bytewise: bool) -> None:
    """Where HTTP says how long the body is, its end is the end; the rest is not read."""
    client, _ = fresh()
    parts = [refusal[i : i + 1] for i in range(len(refusal))] if bytewise else [refusal]
    items = [item for part in parts for item in client.receive_data(part)]
    assert items == [wire.UpgradeRefused(401, "identity:")]
    assert client.receive_data(b"junk") == []
    assert client.receive_eof() == []


def test_a_refusal_without_a_length_ends_with_the_stream() -> None:
    """The body is what came before the end; long ones are cut, bad text is replaced."""
    client, _ = fresh()
    assert client.receive_data(b"HTTP/1.1 503 Busy\r\n\r\nnot ready\xff") == []
    assert client.receive_data(b"") == []
    assert client.receive_data(b"x" * 5000) == []
    (item,) = client.receive_eof()
    assert isinstance(item, wire.UpgradeRefused)
    assert item.status == 503
    assert item.body.startswith("not ready\ufffdx")
    assert len(item.body) <= 1024
    assert client.receive_eof() == []


def test_a_body_that_is_cut_short_is_a_refusal_all_the_same() -> None:
    """The status is what counts."""
    client, _ = fresh()
    assert client.receive_data(b"HTTP/1.1 404 No\r\nContent-Length: 100\r\n\r\nhal") == []
    assert client.receive_eof() == [wire.UpgradeRefused(404, "hal")]


def test_refusals_without_a_body() -> None:
    """An interim status is no upgrade; an empty body is an empty text."""
    client, _ = fresh()
    assert client.receive_data(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") == [
        wire.UpgradeRefused(404, "")
    ]
    client, _ = fresh()
    assert client.receive_data(b"HTTP/1.1 100 Continue\r\n\r\n") == [wire.UpgradeRefused(100, "")]


def test_the_end_of_the_stream_within_the_header_says_nothing() -> None:
    """There is no answer that could be given."""
    client, _ = fresh()
    client.receive_data(b"HTTP/1.1 1")
    assert client.receive_eof() == []


WRONG = {
    "not http": lambda _: b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "binary": lambda _: bytes(range(256)) + b"\r\n\r\n",
    "no accept": lambda _: b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "wrong accept": lambda _: accept(b"sec-websocket-key: other\r\n"),
    "no upgrade": lambda r: b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\n" + accept_line(r) + b"\r\n\r\n",
    "extension": lambda r: accept(r, b"Sec-WebSocket-Extensions: permessage-deflate"),
    "subprotocol": lambda r: accept(r, b"Sec-WebSocket-Protocol: chat"),
    "not ascii": lambda r: accept(r, b"Connection: \xff\xfe"),
    "not ascii extension": lambda r: accept(r, b"Sec-WebSocket-Extensions: \xff"),
    "not ascii protocol": lambda r: accept(r, b"Sec-WebSocket-Protocol: \xff"),
    "bad length": lambda _: b"HTTP/1.1 404 x\r\nContent-Length: -5\r\n\r\n",
    "bad chunks": lambda _: b"HTTP/1.1 404 x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
def test_what_is_no_upgrade_is_broken(answer: Any) -> None:
    """Whatever else lives on that port: an error, not an exception, and nothing is sent."""
    client, request = fresh()
    items = [*client.receive_data(answer(request) + b"\x82\x00"), *client.receive_eof()]
    assert [type(item) for item in items] == [wire.Broken]
    assert "handshake" in str(items[0].error)  # type: ignore[union-attr]
    assert client.take_replies() == b""
    assert client.close(1000) == b""
    assert client.receive_data(b"more") == []


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 200), st.booleans())
def test_garbage_in_the_handshake_never_raises(junk: bytes, place: int, terminate: bool) -> None:
    """Anything put into the answer: items come out."""
    client, request = fresh()
    answer = accept(request)
    place %= len(answer)
    client.receive_data(answer[:place] + junk + (b"\r\n\r\n" if terminate else b"") + answer[place:])
    client.receive_eof()


def test_the_servers_side_of_the_handshake() -> None:
    """Target and headers are given; what an eager client sends behind its request is kept, whenever it comes."""
    server = wire.WebSocket(client=False, message_bytes=CAP, header_bytes=65536)
    client, request = fresh()
    (asked,) = server.receive_data(request + frame(b"one", key=KEY)[:4])
    assert isinstance(asked, wire.UpgradeRequested)
    assert asked.target == "/v1/ws"
    assert asked.headers["host"] == "engine.test"
    assert asked.headers["x-pie-identity"] == "a/b"
    assert server.close(1000) == b""
    assert server.receive_data(frame(b"one", key=KEY)[4:] + frame(b"two", key=KEY)) == []
    assert client.receive_data(server.accept_upgrade()) == [wire.Upgraded()]
    assert server.receive_data(b"") == [b"one", b"two"]


def test_the_server_refuses() -> None:
    """With a status and a body; nothing more is read."""
    server = wire.WebSocket(client=False, message_bytes=CAP, header_bytes=65536)
    client, request = fresh()
    server.receive_data(request)
    assert client.receive_data(server.refuse_upgrade(401, b"who?")) == [wire.UpgradeRefused(401, "who?")]
    assert server.receive_data(b"more") == []


def test_what_is_no_request_is_broken() -> None:
    """The server's side takes garbage as calmly."""
    for junk in (
        b"garbage\r\n\r\n",
        fresh()[1].replace(b"engine.test", b"\xff\xff"),
        b"POST / HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        server = wire.WebSocket(client=False, message_bytes=CAP, header_bytes=65536)
        (item,) = server.receive_data(junk)
        assert isinstance(item, wire.Broken)
