# SPDX-License-Identifier: Apache-2.0
"""Whatever arrives: events, or a connection that has ended; never an exception, never memory without bounds.

How long is tried: FUZZ_EXAMPLES cases each, or FUZZ_SECONDS each with new cases all the time (``make fuzz``).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.fuzz.conversations import FROM_CLIENT, FROM_ENGINE, conversations
from tests.protocol.frames import Bench, counting, pieces

from pie_anyio import Generation, Limits, PieError
from pie_anyio._protocol import codec
from pie_anyio._protocol import messages as m
from pie_anyio._protocol import websocket as wire
from pie_anyio._protocol.connection import ClientProtocol
from pie_anyio._protocol.engine import EngineProtocol
from pie_anyio._protocol.events import ConnectionEnded
from pie_anyio._protocol.state import ConnectionState
from pie_anyio.keeper._wire import KeeperProtocol

EXAMPLES: Final = int(os.environ.get("FUZZ_EXAMPLES", "150"))
SECONDS: Final = float(os.environ.get("FUZZ_SECONDS", "0"))
LIMITS: Final = Limits(
    message_bytes=4096,
    header_bytes=1024,
    orphan_events=4,
    orphan_bytes=400,
    downloads=2,
    download_bytes=4096,
    downloads_bytes=100,
)
GENERATIONS: Final = st.sampled_from(Generation)
CUTS: Final = st.lists(st.integers(0, 2**16), max_size=12)
OVER: Final = (ConnectionState.CLOSED, ConnectionState.FAILED)


def tried(check: Callable[..., None], **strategies: st.SearchStrategy[Any]) -> None:
    """Try a check on many cases; for FUZZ_SECONDS, if that is set, on ever new ones."""
    phases = [Phase.explicit, Phase.generate, Phase.shrink]
    profile = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    until = time.monotonic() + SECONDS
    while True:
        profile(given(**strategies)(check))()
        if time.monotonic() >= until:
            return


def shown(events: list[Any]) -> list[str]:
    """Make events comparable: errors are equal where they say the same.

    Text that is not UTF-8 is refused as soon as it is seen, so where it was seen depends on how it was cut.
    """
    return [re.sub(r"in position \d+", "there", repr(event)) for event in events]


# --------------------------------------------------------------------------------------------------------- the client


def client_of(generation: Generation) -> Bench:
    """Make a client with a request of each kind under way."""
    bench = Bench(generation, limits=LIMITS)
    client = bench.client
    client.submit(m.LaunchProcess("echo@0.1.0", "{}"), "launch")
    client.submit(m.LaunchProcess("echo@0.1.0", "{}"), "quiet", quiet=True)
    client.submit(m.AttachProcess("attached"), "attach")
    client.submit(m.Ping(), "ping")
    upload = client.begin_upload("upload")
    client.upload_chunk(upload, m.AddProgram("0" * 64, "", False, 0, 2, b"x"))
    client.abandon(client.submit(m.LaunchProcess("echo@0.1.0", "{}"), "withdrawn"))
    bench.sent()
    left = client.submit(m.LaunchProcess("echo@0.1.0", "{}"), "abandoned")
    bench.sent()
    client.abandon(left)
    return bench


def check_client(generation: Generation, data: bytes, cuts: list[int]) -> None:
    whole, cut = client_of(generation), client_of(generation)
    whole.feed(data)
    for piece in pieces(data, cuts):
        cut.feed(piece)
        check_bounds(cut.client)
    check_bounds(whole.client)
    assert shown(whole.log) == shown(cut.log)
    assert (whole.client.state, whole.client.ignored) == (cut.client.state, cut.client.ignored)
    while whole.client.wants_write:
        whole.client.data_to_send()
    whole.feed(None)
    assert whole.client.state in OVER
    assert isinstance(whole.log[-1], ConnectionEnded)
    assert sum(isinstance(event, ConnectionEnded) for event in whole.log) == 1
    assert not whole.client._requests._pending
    assert not whole.client._processes.live
    assert isinstance(whole.client.close_reason, PieError)


def check_bounds(client: ClientProtocol) -> None:
    processes, downloads = client._processes, client._downloads
    assert len(processes._orphans) <= LIMITS.orphan_events
    assert processes._orphan_bytes <= LIMITS.orphan_bytes
    assert len(downloads) <= LIMITS.downloads
    assert downloads._bytes <= LIMITS.downloads_bytes
    assert len(client.last_notice) <= LIMITS.message_bytes
    owners = [record.owner for record in processes.live.values()]
    assert all(owner in owners for owner, *_ in processes.known.values())


@pytest.mark.slow
def test_an_engine_that_says_anything() -> None:
    """The client's core ends each stream of bytes in events, however it is cut."""
    tried(check_client, generation=GENERATIONS, data=conversations(FROM_ENGINE), cuts=CUTS)


def check_handshake(data: bytes, cuts: list[int]) -> None:
    ends: list[list[str]] = []
    for places in ([], cuts):
        client = ClientProtocol(host="h", target="/", headers=[], entropy=counting(), limits=LIMITS)
        client.data_to_send()
        events: list[Any] = []
        for piece in pieces(data, places):
            client.receive_data(piece)
            events += client.events()
        client.receive_data(None)
        events += client.events()
        assert client.state in OVER
        ends.append(shown(events))
    assert ends[0] == ends[1]


RESPONSES: Final = st.lists(
    st.sampled_from(
        [
            *(b"HTTP/1.1 101 Switching Protocols\r\n", b"HTTP/1.1 401 No\r\n", b"HTTP/1.0 200\r\n", b"\r\n"),
            *(b"Upgrade: websocket\r\n", b"Connection: Upgrade\r\n", b"Sec-WebSocket-Accept: x\r\n"),
            *(
                b"content-length: 5\r\n",
                b"content-length: -1\r\n",
                b"transfer-encoding: chunked\r\n",
                b"5\r\nhello\r\n",
            ),
        ]
    )
    | st.binary(max_size=40),
    max_size=12,
).map(b"".join)


def test_a_server_that_answers_anything() -> None:
    """The opening handshake ends in an error that says so, whatever is there."""
    tried(check_handshake, data=RESPONSES | st.binary(max_size=2000), cuts=CUTS)


# --------------------------------------------------------------------------------------------------------- the engine

HANDSHAKE: Final = (
    b"GET /v1/ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
ENGINES: Final[tuple[Callable[[Generation], EngineProtocol], ...]] = (
    EngineProtocol,
    lambda generation: EngineProtocol(generation, answer_close=True),
    KeeperProtocol,
)


def hear(engine: EngineProtocol, data: bytes | None, log: list[Any]) -> None:
    """Feed an engine's core as its shell does."""
    engine.receive_data(data)
    while events := engine.events():
        for event in events:
            log.append(event)
            if isinstance(event, wire.UpgradeRequested):
                engine.accept(authenticated=engine.generation is Generation.V05)
            elif isinstance(event, wire.TextReceived):
                log.append(engine.read_text(event.text))


def check_engine(which: int, generation: Generation, data: bytes, cuts: list[int]) -> None:
    logs: list[list[Any]] = [[], []]
    for log, places in zip(logs, ([], cuts), strict=True):
        engine = ENGINES[which](generation)
        for piece in pieces(data, places):
            hear(engine, piece, log)
            while engine.wants_write:
                engine.data_to_send()
        hear(engine, None, log)
        assert not engine._events
    assert shown(logs[0]) == shown(logs[1])
    assert type(logs[0][-1]).__name__ == "Ended"


WHICH: Final = st.integers(0, len(ENGINES) - 1)


@pytest.mark.slow
def test_a_client_that_says_anything() -> None:
    """The engine's core, and the keeper's, end each stream of bytes in events, however it is cut."""
    data = conversations(FROM_CLIENT).map(lambda data: HANDSHAKE + data)
    tried(check_engine, which=WHICH, generation=GENERATIONS, data=data, cuts=CUTS)


def test_a_request_to_upgrade_with_anything_in_it() -> None:
    """Also where it is no request at all."""
    lines = st.lists(
        st.sampled_from([line + b"\r\n" for line in HANDSHAKE.split(b"\r\n")]) | st.binary(max_size=30),
        max_size=12,
    ).map(b"".join)
    tried(check_engine, which=WHICH, generation=GENERATIONS, data=lines, cuts=CUTS)


# --------------------------------------------------------------------------------------------------------- the codec


def check_decoding(payload: bytes) -> None:
    for decode in (codec.decode_fields, codec.decode_request):
        try:
            decode(payload)
        except codec.DecodeError:
            pass


def test_a_message_of_any_bytes() -> None:
    """It is decoded or refused, with the one error that there is for it."""
    tried(check_decoding, payload=st.binary(max_size=200))
