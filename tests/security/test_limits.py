# SPDX-License-Identifier: Apache-2.0
"""Each limit: what is just within it is taken, and one more is not; and what a hostile engine promises takes no memory.

The page about limits names these tests in a table; `test_documented` sees to it that every limit is there.
"""

from __future__ import annotations

import tracemalloc
from typing import Any

import anyio
import attrs
import msgpack
import pytest
from blake3 import blake3

from pie_anyio import ConnectError, Event, Limits, Message, OutputOverflow, PieClient, RemoteProtocolError
from pie_anyio._flow.buffers import OVERHEAD, ByteBudget, EventBuffer
from pie_anyio._protocol import codec
from pie_anyio._protocol import websocket as wire
from pie_anyio._protocol.messages import CHUNK_BYTES, FileChunk
from pie_anyio._protocol.processes import ProcessTable
from pie_anyio._protocol.transfer import ChunkRefused, Downloads
from pie_anyio.testing import SimulatedEngine


def padded(size: int) -> bytes:
    """Make a message of exactly so many bytes that nobody knows."""
    empty = len(msgpack.packb({"type": "unknown", "pad": b"x" * 1000}))
    payload = msgpack.packb({"type": "unknown", "pad": b"x" * (1000 + size - empty)})
    assert len(payload) == size
    return payload


def peak(function: Any, *arguments: Any) -> int:
    """Give how many bytes a call takes at the most."""
    tracemalloc.start()
    try:
        function(*arguments)
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return most


# ------------------------------------------------------------------------------------------------------- the handshake


def upgrade(size: int, limit: int) -> list[wire.Item]:
    """Answer a handshake with so many bytes."""
    client = wire.WebSocket(client=True, message_bytes=100, header_bytes=limit, entropy=bytes)
    server = wire.WebSocket(client=False, message_bytes=100, header_bytes=65536)
    server.receive_data(client.request_upgrade("h", "/", []))
    head = server.accept_upgrade().removesuffix(b"\r\n\r\n") + b"\r\nx-pad: "
    return client.receive_data(head + b"x" * (size - len(head) - 4) + b"\r\n\r\n")


def test_header_bytes() -> None:
    """The whole head counts, its end included."""
    assert upgrade(1000, 1000) == [wire.Upgraded()]
    (broken,) = upgrade(1001, 1000)
    assert isinstance(broken, wire.Broken)
    assert "limit of 1000 bytes" in str(broken.error)


def test_header_bytes_without_an_end() -> None:
    """Neither is more kept of a head that never ends."""
    client = wire.WebSocket(client=True, message_bytes=100, header_bytes=1000, entropy=bytes)
    client.request_upgrade("h", "/", [])
    items: list[wire.Item] = []
    for _ in range(1001):
        assert not items
        items = client.receive_data(b"x")
    assert isinstance(items[0], wire.Broken)


async def test_handshake_time() -> None:
    """A peer that accepts and says nothing is given up after ``connect_timeout``."""
    async with SimulatedEngine("v05", port=None) as engine:
        engine.faults.stall_handshakes = True
        with anyio.fail_after(5):
            with pytest.raises(ConnectError, match=r"did not answer the WebSocket handshake within 0\.05 s"):
                async with PieClient(engine.connectable, connect_timeout=0.05):
                    pytest.fail("it connected")


# ----------------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize("size", [5_000, 20_000])
async def test_message_bytes(size: int) -> None:
    """One byte more ends the connection, with the code for it; on the quick way through the frames and on the other."""
    async with SimulatedEngine("v05", port=None) as engine:
        async with PieClient(engine.connectable, limits=Limits(message_bytes=size), keepalive=None) as client:
            with anyio.fail_after(5):
                await client.ping()
                engine.faults.send_payload(padded(size))
                await client.ping()
                engine.faults.send_payload(padded(size + 1))
                reason = await client.session.link.router.ended.wait()
    assert isinstance(reason, RemoteProtocolError)
    assert reason.close_code == 1009
    assert str(size) in str(reason)


DEEPEST = 1024 - 1
"""Lists within lists that the decoder takes in the map of a message."""


def nested(depth: int) -> bytes:
    return b"\x82\xa4type\xa1x\xa1y" + b"\x91" * depth + b"\xc0"


def test_depth() -> None:
    """Deeper nesting is damage, and not the end of the interpreter's stack."""
    assert codec.decode_engine_fields(nested(DEEPEST))["type"] == "x"
    with pytest.raises(codec.DecodeError) as caught:
        codec.decode_engine_fields(nested(DEEPEST + 1))
    assert caught.value.fields["type"] == "x"


HEADERS = {
    "array32": b"\xdd\xff\xff\xff\xff",
    "map32": b"\xdf\xff\xff\xff\xff",
    "bin32": b"\xc6\xff\xff\xff\xff",
    "str32": b"\xdb\xff\xff\xff\xff",
    "ext32": b"\xc9\xff\xff\xff\xff\x01",
    "array16": b"\xdc\xff\xff",
    "map16": b"\xde\xff\xff",
    "bin16": b"\xc5\xff\xff",
    "str16": b"\xda\xff\xff",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_length_headers(header: bytes) -> None:
    """What a header promises and the message does not hold is damage, and no memory is set aside for it."""

    def decode() -> None:
        for prefix in (b"", b"\x82\xa4type\xa8response\xa1x", b"\x81"):
            with pytest.raises(codec.DecodeError):
                codec.decode_engine_fields(prefix + header)

    assert peak(decode) < 100_000


def test_nested_values_of_long_messages() -> None:
    """Empty lists take sixty times their bytes; a long message that has any is not decoded."""
    whole = codec.NESTED_BYTES
    lists = b"\xdd" + (whole - 13).to_bytes(4, "big") + b"\x90" * (whole - 13)
    payload = b"\x81\xa4type" + lists
    assert len(payload) == whole - 2
    assert len(codec.decode_engine_fields(payload)["type"]) == whole - 13
    longer = b"\x81\xa4type" + b"\xdd" + (10 * whole).to_bytes(4, "big") + b"\x90" * (10 * whole)

    def decode() -> None:
        with pytest.raises(codec.DecodeError, match="not a map of plain values"):
            codec.decode_engine_fields(longer)

    assert peak(decode) < 4 * len(longer)


@pytest.mark.parametrize(
    "payload",
    [
        msgpack.packb([None] * 100_000),
        msgpack.packb(dict.fromkeys(range(64), 1) | {"k": b"x" * 70_000}),
        msgpack.packb({"k": [1], "v": b"x" * 70_000}),
        b"\x81" + b"\x91\x01" + msgpack.packb(b"x" * 70_000),
        msgpack.packb({"k": {"a": b"x" * 70_000}}),
    ],
    ids=["no map", "many entries", "a list within", "a key that is a list", "a map within"],
)
def test_long_messages_that_are_not_plain(payload: bytes) -> None:
    """In whatever way."""
    with pytest.raises(codec.DecodeError, match="not a map of plain values"):
        codec.decode_engine_fields(payload)


def test_long_messages_that_are_plain() -> None:
    """Or are plain as far as they go, are read as ever."""
    fields = {"type": "response", "corr_id": 1, "ok": True, "result": "x" * 100_000, "none": None, "f": 1.5}
    payload = msgpack.packb(fields)
    assert codec.decode_engine_fields(payload) == fields
    assert codec.decode_engine_fields(memoryview(payload)) == fields
    with pytest.raises(codec.DecodeError) as caught:
        codec.decode_engine_fields(payload[:-20])
    assert caught.value.fields["corr_id"] == 1


async def test_long_texts() -> None:
    """A text frame is a notice or nothing, and notices are short."""
    async with SimulatedEngine("v05", port=None) as engine, PieClient(engine.connectable) as client:
        await client.ping()
        ignored = client.session.link.protocol.ignored
        engine.faults.send_text("[" + "[]," * 30_000 + "[]]")
        engine.faults.send_text('{"type":"error","message":"' + "x" * 70_000 + '"}')
        with anyio.fail_after(5):
            await client.ping()
        assert client.session.link.protocol.ignored == ignored + 2
        assert not client.session.link.protocol.last_notice


# ------------------------------------------------------------------------------------------------ processes not known


def orphans(count: int, **limits: int) -> ProcessTable:
    table = ProcessTable(Limits(**limits))
    for number in range(count):
        table.keep_orphan("p", ("stdout", str(number)), 100)
    return table


def test_orphan_events() -> None:
    """The oldest makes way for the one too many."""
    assert len(orphans(5, orphan_events=5).claim_orphans("p")) == 5
    kept = orphans(6, orphan_events=5).claim_orphans("p")
    assert kept == [("stdout", str(number)) for number in range(1, 6)]


def test_orphan_bytes() -> None:
    """By size as by number."""
    assert len(orphans(5, orphan_bytes=500).claim_orphans("p")) == 5
    assert len(orphans(6, orphan_bytes=500).claim_orphans("p")) == 5
    assert len(orphans(5, orphan_bytes=499).claim_orphans("p")) == 4


async def test_events_of_unknown_processes() -> None:
    """Where no launch is open that could claim them, none is kept."""
    async with SimulatedEngine("v05", port=None) as engine, PieClient(engine.connectable) as client:
        await client.ping()
        for number in range(1000):
            engine.faults.send_event(f"{number:08x}-0000-4000-8000-000000000000", "stdout", "x")
        with anyio.fail_after(5):
            await client.ping()
        table = client.session.link.protocol._processes
        assert table.dropped_orphans == 1000
        assert not table._orphans
        assert not table.live


# -------------------------------------------------------------------------------------------------------------- files


def chunk(name: str, index: int, total: int, data: bytes = b"x") -> FileChunk:
    return FileChunk("p", name, index, total, data)


def test_downloads() -> None:
    """So many at the same time; a finished one makes room."""
    downloads = Downloads(Limits(downloads=2))
    content = b"xx"
    name = blake3(content).hexdigest()
    downloads.add(chunk(name, 0, 2))
    downloads.add(chunk("b", 0, 2))
    with pytest.raises(ChunkRefused, match="more than 2 files"):
        downloads.add(chunk("c", 0, 2))
    assert downloads.add(chunk(name, 1, 2)) == content
    downloads.add(chunk("c", 0, 2))


def test_download_bytes() -> None:
    """Of one file, by what has come."""
    content = b"x" * 1000
    downloads = Downloads(Limits(download_bytes=1000))
    assert downloads.add(FileChunk("p", blake3(content).hexdigest(), 0, 1, content)) == content
    with pytest.raises(ChunkRefused, match="limit of 1000 bytes"):
        downloads.add(chunk("a", 0, 1, b"x" * 1001))
    assert len(downloads) == 0


def test_claimed_sizes() -> None:
    """And by what is announced, before anything of it has come; an announcement takes no memory."""
    limit = 4 * CHUNK_BYTES
    downloads = Downloads(Limits(download_bytes=limit))
    downloads.add(chunk("a", 0, 4))
    for total in (5, 2**31, 2**63, 0, -1):
        with pytest.raises(ChunkRefused, match=f"exceeds the limit of {limit} bytes"):
            downloads.add(chunk("b", 0, total))

    def announce() -> None:
        for number in range(1000):
            Downloads(Limits()).add(chunk(f"{number}", 0, 1024))

    assert peak(announce) < 200_000


def test_downloads_bytes() -> None:
    """Of all unfinished files together; what one gives up is free again."""
    downloads = Downloads(Limits(downloads_bytes=1000))
    downloads.add(chunk("a", 0, 2, b"x" * 600))
    downloads.add(chunk("b", 0, 2, b"x" * 400))
    with pytest.raises(ChunkRefused, match="unfinished files exceed the limit of 1000"):
        downloads.add(chunk("b", 1, 2, b"x"))
    downloads.add(chunk("c", 0, 2, b"x" * 400))


# ------------------------------------------------------------------------------------------------------------- output


def message(size: int) -> Message:
    return Message(Event.Message, "x" * (size - OVERHEAD))


async def overflows(buffer: EventBuffer) -> bool:
    try:
        while True:
            with anyio.move_on_after(0.01) as scope:
                await buffer.get()
            if scope.cancelled_caught:
                return False
    except OutputOverflow:
        return True


async def test_process_buffer_bytes() -> None:
    """Filled to the last byte, and one more event."""
    for size, expected in ((500, False), (501, True)):
        buffer = EventBuffer(1000, ByteBudget(10_000))
        buffer.put(message(500))
        buffer.put(message(size))
        assert await overflows(buffer) is expected


async def test_client_buffer_bytes() -> None:
    """The same for all processes together."""
    for size, expected in ((500, False), (501, True)):
        budget = ByteBudget(1000)
        other, buffer = EventBuffer(10_000, budget), EventBuffer(10_000, budget)
        other.put(message(500))
        buffer.put(message(size))
        assert await overflows(buffer) is expected


async def test_buffers_have_the_clients_limits() -> None:
    """They are made with what the client was given."""
    async with SimulatedEngine("v05", port=None) as engine:
        engine.inferlet("echo@0.1.0")(_answer)
        limits = Limits(process_buffer_bytes=1234, client_buffer_bytes=5678)
        async with PieClient(engine.connectable, limits=limits) as client:
            process = await client.launch_process("echo@0.1.0")
            buffer: Any = client.session.registry.open_buffer(process._run)
            assert (buffer._limit, buffer._budget.limit) == (1234, 5678)
            await process.signal("x")
            assert await process.result() == "x"


async def _answer(session: Any, input: Any) -> Any:
    return await session.receive()


async def _echo(session: Any, input: Any) -> Any:
    return input


# ------------------------------------------------------------------------------------------------------------ sending


@pytest.mark.parametrize("gate", ["requests", "bulk"])
async def test_outbox_bytes_and_upload_window(gate: str) -> None:
    """Callers wait above the limit, and not at it."""
    limits = Limits(outbox_bytes=1000, upload_window=1000)
    async with SimulatedEngine("v05", port=None) as engine:
        async with PieClient(engine.connectable, limits=limits) as client:
            await client.ping()
            mark = getattr(client.session.link, gate)
            mark.set_level(1000)
            assert not mark.is_shut
            mark.set_level(1001)
            assert mark.is_shut
            mark.set_level(0)


def test_every_limit_has_a_test() -> None:
    """By its name."""
    names = {name for name in globals() if name.startswith("test_")}
    missing = [field.name for field in attrs.fields(Limits) if not any(field.name in name for name in names)]
    assert not missing
