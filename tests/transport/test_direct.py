# SPDX-License-Identifier: Apache-2.0
"""The socket without a layer in between: whole and partial sends, ends of every kind, and what it is not used for."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream, SocketAttribute

from pie_anyio import ConnectionLost, PieClient
from pie_anyio._transport import direct
from pie_anyio._transport.direct import DirectSocket, take_over
from pie_anyio._transport.endpoint import parse_endpoint
from pie_anyio._transport.stream import Transport, open_transport
from pie_anyio.testing import SimulatedEngine, memory_byte_stream_pair

SMALL = 4096
LARGE = os.urandom(1 << 20)


class Peer:
    """A listening socket, and the engine's end of the connection that it took."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        self.port = self.listener.getsockname()[1]
        self.end: Any = None

    def accept(self) -> None:
        self.end, _ = self.listener.accept()
        self.end.settimeout(5)

    def read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self.end.recv(count - len(data))
            assert piece
            data += piece
        return bytes(data)

    def reset(self) -> None:
        """End the connection without ceremony, as a crashed peer's system does."""
        self.end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.end.close()

    def close(self) -> None:
        self.listener.close()
        if self.end is not None:
            self.end.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
async def sock(anyio_backend: Any, peer: Peer) -> AsyncIterator[DirectSocket]:
    """Give a connection with small buffers."""
    stream = take_over(await anyio.connect_tcp("127.0.0.1", peer.port))
    assert isinstance(stream, DirectSocket)
    stream._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    peer.accept()
    yield stream
    await stream.aclose()


def fill(sock: DirectSocket) -> int:
    """Send until the system takes no more."""
    total = 0
    while sent := sock.send_now(b"f" * 65536):
        total += sent
    return total


# ------------------------------------------------------------------------------------------------------------ sending


async def test_bytes_go_both_ways(sock: DirectSocket, peer: Peer) -> None:
    """At once, or by waiting; what was sent is what arrives."""
    with anyio.fail_after(5):
        assert sock.send_now(b"one") == 3
        await sock.send(b"two")
        await sock.send(b"")
        assert peer.read(6) == b"onetwo"
        peer.end.sendall(b"back")
        assert await sock.receive(2) == b"ba"
        assert await sock.receive() == b"ck"


async def test_what_does_not_fit_is_left_over(sock: DirectSocket, peer: Peer) -> None:
    """A part is sent, its length is told, and then nothing more until the peer reads."""
    sent = sock.send_now(LARGE)
    assert 0 < sent < len(LARGE)
    more = fill(sock)
    assert sock.send_now(b"x") == 0
    assert peer.read(sent + more) == LARGE[:sent] + b"f" * more


async def test_a_long_send_waits_for_the_peer(sock: DirectSocket, peer: Peer) -> None:
    """The rest of what was sent at once goes out in order."""
    with anyio.fail_after(10):
        sent = sock.send_now(LARGE)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sock.send, LARGE[sent:])
            received = await anyio.to_thread.run_sync(peer.read, len(LARGE))
        assert received == LARGE


async def test_receiving_goes_on_while_a_send_waits(sock: DirectSocket, peer: Peer) -> None:
    """The two directions do not hold each other up."""
    with anyio.fail_after(10):
        already = fill(sock)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sock.send, b"rest")
            await anyio.wait_all_tasks_blocked()
            peer.end.sendall(b"hello")
            assert await sock.receive() == b"hello"
            peer.read(already)
        assert peer.read(4) == b"rest"


async def test_a_receive_that_is_woken_for_nothing(
    sock: DirectSocket, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits again."""
    woken: list[Any] = []

    async def wake(_socket: Any) -> None:
        woken.append(None)
        if len(woken) > 1:
            peer.end.sendall(b"now")
            await anyio.wait_readable(_socket)

    monkeypatch.setattr(direct, "wait_readable", wake)
    with anyio.fail_after(5):
        assert await sock.receive() == b"now"
    assert len(woken) == 2


async def test_much_data_is_taken_without_asking(
    sock: DirectSocket, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that was filled is followed by the next at once, though not without a turn of the loop."""
    waited: list[Any] = []
    turns = 0

    async def note(_socket: Any) -> None:
        waited.append(None)
        await anyio.wait_readable(_socket)

    async def count() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    monkeypatch.setattr(direct, "wait_readable", note)
    with anyio.fail_after(5):
        peer.end.sendall(b"abcdef")
        async with anyio.create_task_group() as tasks:
            assert await sock.receive(2) == b"ab"
            tasks.start_soon(count)
            await anyio.lowlevel.checkpoint()
            before = turns
            assert await sock.receive(2) == b"cd"
            assert await sock.receive(2) == b"ef"
            assert len(waited) == 1
            assert turns >= before + 1
            peer.end.sendall(b"g")
            assert await sock.receive(2) == b"g"
            tasks.cancel_scope.cancel()


async def test_a_filled_read_that_was_the_last(sock: DirectSocket, peer: Peer) -> None:
    """Where nothing more is there after all, it waits; then comes the end."""
    with anyio.fail_after(5):
        peer.end.sendall(b"ab")
        assert await sock.receive(2) == b"ab"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_expect, EndOfStream, sock.receive, 2)
            await anyio.wait_all_tasks_blocked()
            peer.end.close()


async def test_a_cancelled_receive_loses_nothing(sock: DirectSocket, peer: Peer) -> None:
    """The next one gets it."""
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sock.receive)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        peer.end.sendall(b"kept")
        assert await sock.receive() == b"kept"


async def test_one_receiver_at_a_time(sock: DirectSocket) -> None:
    """A second one is refused."""
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sock.receive)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(BusyResourceError):
                await sock.receive()
            tasks.cancel_scope.cancel()


# --------------------------------------------------------------------------------------------------------------- ends


async def test_the_end_of_the_peer(sock: DirectSocket, peer: Peer) -> None:
    """What it sent before is read first."""
    peer.end.sendall(b"last")
    peer.end.close()
    with anyio.fail_after(5):
        assert await sock.receive() == b"last"
        for _ in range(2):
            with pytest.raises(EndOfStream):
                await sock.receive()


async def test_the_end_of_one_direction(sock: DirectSocket, peer: Peer) -> None:
    """The other one stays; a peer that is gone already is no error."""
    with anyio.fail_after(5):
        await sock.send_eof()
        assert peer.end.recv(1) == b""
        peer.end.sendall(b"still")
        assert await sock.receive() == b"still"
        peer.reset()
        with pytest.raises(BrokenResourceError):
            await sock.receive()
        await sock.send_eof()


async def test_a_reset_of_the_peer(sock: DirectSocket, peer: Peer) -> None:
    """Sends at once keep quiet about it, the others tell."""
    peer.end.sendall(b"lost")
    peer.reset()
    with anyio.fail_after(5):
        with pytest.raises(BrokenResourceError) as caught:
            while True:
                await sock.receive()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        assert sock.send_now(b"x") == 0
        with pytest.raises(BrokenResourceError) as caught:
            await sock.send(b"x")
        assert isinstance(caught.value.__cause__, BrokenPipeError)


async def test_a_reset_while_a_send_waits(sock: DirectSocket, peer: Peer) -> None:
    """It is woken."""
    with anyio.fail_after(5):
        fill(sock)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_expect, BrokenResourceError, sock.send, b"x")
            await anyio.wait_all_tasks_blocked()
            peer.reset()


async def _expect(error: type[Exception], call: Any, *args: Any) -> None:
    with pytest.raises(error):
        await call(*args)


async def test_closing_wakes_who_waits(sock: DirectSocket, peer: Peer) -> None:
    """In both directions; later calls fail the same way, and closing again is fine."""
    with anyio.fail_after(5):
        fill(sock)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_expect, ClosedResourceError, sock.send, b"x")
            tasks.start_soon(_expect, ClosedResourceError, sock.receive)
            await anyio.wait_all_tasks_blocked()
            await sock.aclose()
        await sock.aclose()
        await _expect(ClosedResourceError, sock.send, b"x")
        await _expect(ClosedResourceError, sock.receive)
        assert sock.send_now(b"x") == 0
        await sock.send_eof()


async def test_closing_ends_the_connection(sock: DirectSocket, peer: Peer) -> None:
    """Also when it is cancelled: no descriptor is left that would keep it open."""
    with anyio.fail_after(5):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await sock.aclose()
        assert await anyio.to_thread.run_sync(peer.end.recv, 1) == b""


async def test_a_cancelled_send_marks_the_transport(sock: DirectSocket, peer: Peer) -> None:
    """Nobody knows how much of it has left."""
    transport = Transport(sock, "x")
    assert transport.is_direct
    with anyio.fail_after(5):
        fill(sock)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(transport.send, b"x")
            await anyio.wait_all_tasks_blocked()
            assert not transport.broken
            tasks.cancel_scope.cancel()
        assert transport.broken


async def test_a_reset_is_a_lost_connection(sock: DirectSocket, peer: Peer) -> None:
    """By the name of the endpoint, and with the reason."""
    transport = Transport(sock, "ws://h:1")
    assert transport.send_now(b"x") == 1
    peer.reset()
    with anyio.fail_after(5), pytest.raises(ConnectionLost, match=r"ws://h:1 broke: .*reset"):
        await transport.receive()
    await transport.aclose()


# ------------------------------------------------------------------------------------------------------- taking over


async def test_streams_without_a_socket_stay_as_they_are() -> None:
    """Nothing can be sent at once on them."""
    ours, theirs = memory_byte_stream_pair()
    assert take_over(ours) is ours
    transport = Transport(ours, "x")
    assert not transport.is_direct
    assert transport.send_now(b"x") == 0
    await transport.send(b"y")
    assert await theirs.receive() == b"y"


async def test_systems_without_the_means(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the stream stays as it is."""
    monkeypatch.setattr(direct, "SUPPORTED", False)
    stream = await anyio.connect_tcp("127.0.0.1", peer.port)
    assert take_over(stream) is stream
    await stream.aclose()


async def test_the_connection_survives_the_taking_over(peer: Peer) -> None:
    """Neither direction is ended by it, and the stream that it was taken from goes with it."""
    with anyio.fail_after(5):
        stream = await anyio.connect_tcp("127.0.0.1", peer.port)
        sock = take_over(stream)
        peer.accept()
        await anyio.wait_all_tasks_blocked()
        peer.end.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.end.recv(1)
        raw = stream.extra(SocketAttribute.raw_socket)
        await sock.aclose()
        await anyio.wait_all_tasks_blocked()
        assert raw.fileno() == -1


async def test_a_unix_socket_is_direct(tmp_path: Path) -> None:
    """As any other socket."""
    path = tmp_path / "s"
    listener = await anyio.create_unix_listener(path)
    served: list[bytes] = []

    async def serve(stream: ByteStream) -> None:
        async with stream:
            served.append(await stream.receive())
            await stream.send(b"back")

    with anyio.fail_after(5):
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve)
            transport = await open_transport(parse_endpoint(f"ws+unix://{path}"), 5)
            assert transport.is_direct
            assert transport.send_now(b"there") == 5
            assert await transport.receive() == b"back"
            assert await transport.receive() is None
            await transport.aclose()
            tasks.cancel_scope.cancel()
    assert served == [b"there"]


@pytest.mark.parametrize("profile", ["v04", "v05"])
async def test_a_client_over_tcp_is_direct(profile: Any) -> None:
    """From the first request on."""
    with anyio.fail_after(10):
        async with SimulatedEngine(profile) as engine, PieClient(engine.url) as client:

            @engine.inferlet("echo@0.1.0")
            async def echo(session: Any, input: Any) -> Any:
                return input

            assert client.session.link.transport.is_direct
            text = "x" * 1_000_000
            assert (await client.run_process("echo@0.1.0", text)).value == text
