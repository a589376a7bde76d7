# SPDX-License-Identifier: Apache-2.0
"""Endpoints, streams and back-off: what URLs mean, what errors become, how long retries wait."""

from __future__ import annotations

import ssl
from typing import Any

import anyio
import pytest
from anyio import BrokenResourceError, ClosedResourceError
from anyio.abc import ByteStream

from pie_anyio import Backoff, ConnectError, ConnectionLost
from pie_anyio._transport.endpoint import _SerializedSend, parse_endpoint
from pie_anyio._transport.stream import Transport, connect_error, open_transport
from pie_anyio.testing import MemoryConnectable, memory_byte_stream_pair
from pie_anyio.testing.faulty import SlowWriteStream, WrappedStream


@pytest.mark.parametrize(
    ("url", "name", "host", "target", "local"),
    [
        ("ws://127.0.0.1:8080", "ws://127.0.0.1:8080", "127.0.0.1:8080", "/v1/ws", True),
        ("ws://localhost", "ws://localhost:80", "localhost:80", "/v1/ws", True),
        ("ws://h:1/", "ws://h:1", "h:1", "/v1/ws", False),
        ("ws://h:1/own/path", "ws://h:1/own/path", "h:1", "/own/path", False),
        ("ws://h:1?a=b", "ws://h:1/", "h:1", "/v1/ws?a=b", False),
        ("ws://[::1]:5", "ws://[::1]:5", "[::1]:5", "/v1/ws", True),
        ("wss://example.org", "wss://example.org:443", "example.org:443", "/v1/ws", False),
        ("ws+unix:///run/a%20b.sock", "ws+unix:///run/a b.sock", "localhost", "/v1/ws", True),
    ],
)
def test_endpoints(url: str, name: str, host: str, target: str, local: bool) -> None:
    """The official path where none is given, a user's own where one is."""
    endpoint = parse_endpoint(url)
    assert (endpoint.host, endpoint.target, endpoint.local) == (host, target, local)
    if "?" not in url:
        assert endpoint.name == name
    assert (endpoint.tls is not None) == url.startswith("wss")


def test_a_query_is_not_shown() -> None:
    """It may hold a secret."""
    assert "secret" not in parse_endpoint("ws://h:1/p?token=secret").name


def test_a_given_context_is_used() -> None:
    """For wss only."""
    context = ssl.create_default_context()
    assert parse_endpoint("wss://h", context).tls is context
    assert parse_endpoint("ws://h", context).tls is None


async def test_sends_of_a_tls_stream_take_turns() -> None:
    """A TLS receive may send, while the writer sends."""
    ours, theirs = memory_byte_stream_pair()
    slow = SlowWriteStream(ours)
    stream = _SerializedSend(slow)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.send, b"first")
            await slow.writing.somebody_waits()
            tasks.start_soon(stream.send, b"second")
            await anyio.wait_all_tasks_blocked()
            slow.writing.open()
        assert await theirs.receive() == b"firstsecond"
        await theirs.send(b"back")
        assert await stream.receive() == b"back"
        await stream.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await theirs.receive()
        await stream.aclose()


class _Failing(WrappedStream):
    def __init__(self, error: Exception) -> None:
        super().__init__(memory_byte_stream_pair()[0])
        self.error = error

    async def receive(self, max_bytes: int = 65536) -> bytes:
        raise self.error

    async def send(self, item: bytes) -> None:
        raise self.error

    async def aclose(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error", [BrokenResourceError(), ClosedResourceError(), ConnectionResetError("reset by peer")]
)
async def test_errors_of_the_loops_become_ours(error: Exception) -> None:
    """Whichever loop and stream they come from; a failed send is the last."""
    transport = Transport(_Failing(error), "ws://h:1")
    with pytest.raises(ConnectionLost, match="connection to ws://h:1 broke") as caught:
        await transport.receive()
    assert caught.value.__cause__ is error
    assert not transport.broken
    with pytest.raises(ConnectionLost):
        await transport.send(b"x")
    assert transport.broken
    await transport.aclose()


async def test_a_send_that_is_cut_short_is_remembered() -> None:
    """Nothing can follow half a frame."""
    ours, _theirs = memory_byte_stream_pair()
    transport = Transport(SlowWriteStream(ours), "x")
    with anyio.move_on_after(0.05):
        await transport.send(b"frame")
    assert transport.broken
    await transport.aclose()


async def test_the_end_of_the_stream_is_none() -> None:
    """An end is no error by itself."""
    ours, theirs = memory_byte_stream_pair()
    await theirs.aclose()
    assert await Transport(ours, "x").receive() is None


def _tls_error() -> ssl.SSLError:
    error = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]")
    error.reason = "WRONG_VERSION_NUMBER"
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectionRefusedError(), "is the engine running"),
        (PermissionError(), "permission denied"),
        (FileNotFoundError(), "no such socket"),
        (_tls_error(), "TLS handshake failed"),
        (OSError("network is down"), "network is down"),
        (OSError(), "closed the connection"),
    ],
)
def test_what_failed_attempts_mean(error: OSError, text: str) -> None:
    """Also where several addresses were tried, or the cause is below."""
    endpoint = parse_endpoint("ws://h:1")
    group = OSError("All connection attempts failed")
    group.__cause__ = ExceptionGroup("multiple", [error, OSError("other")])
    outer = anyio.ConnectionFailed("x")
    outer.__cause__ = group
    for exc in (error, outer):
        assert text in str(connect_error(endpoint, exc))


def test_a_ring_of_causes_is_no_trap() -> None:
    """However they came to be."""
    one, two = OSError("one"), OSError("two")
    one.__cause__, two.__cause__ = two, one
    assert isinstance(connect_error(parse_endpoint("ws://h:1"), one), ConnectError)


async def test_a_cancelled_tls_handshake_closes_the_stream() -> None:
    """The peer sees the end and is not left with an open connection."""
    served: list[ByteStream] = []

    def keep(stream: ByteStream) -> ByteStream:
        served.append(stream)
        return stream

    connectable = MemoryConnectable(wrap_server=keep)
    endpoint: Any = parse_endpoint("wss://h:1")
    import attrs

    endpoint = attrs.evolve(endpoint, connectable=connectable)
    with anyio.fail_after(5):
        with pytest.raises(ConnectError, match=r"within 0\.05 s"):
            await open_transport(endpoint, 0.05)
        assert (await served[0].receive())[:1] == b"\x16"
        with pytest.raises(anyio.EndOfStream):
            await served[0].receive()


def test_backoff_grows_to_its_maximum() -> None:
    """Exponentially, with as much chance in it as asked for."""
    sure = Backoff(initial=1, factor=2, maximum=10, jitter=0)
    assert [sure.delay(n) for n in (1, 2, 3, 4, 5, 1000)] == [1, 2, 4, 8, 10, 10]
    full = Backoff(initial=1, jitter=1, random=lambda: 1.0)
    assert full.delay(1) == 0
    assert 0.5 <= Backoff(initial=1).delay(1) <= 1
