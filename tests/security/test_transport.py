# SPDX-License-Identifier: Apache-2.0
"""What goes over the network: checked TLS where it is asked for, no way around it, and a word where it is missing."""

from __future__ import annotations

import ssl
import warnings
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from anyio import TCPConnectable, UNIXConnectable
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSConnectable
from tests.security.conftest import serving

from pie_anyio import (
    ClientPool,
    ConnectError,
    ConnectionLost,
    InsecureTransport,
    InsecureTransportWarning,
    InvalidRequest,
    PieClient,
)
from pie_anyio._transport.endpoint import parse_endpoint
from pie_anyio._transport.stream import Transport
from pie_anyio.cli._app import run
from pie_anyio.testing import SimulatedEngine
from pie_anyio.testing.streams import MemoryConnectable

UNCHECKED = ssl._create_unverified_context  # what a user may do, and `require_tls` must notice


async def _fails(client: PieClient) -> ConnectError:
    with anyio.fail_after(10), pytest.raises(ConnectError) as caught:
        async with client:
            pytest.fail("it connected")
    return caught.value


# ------------------------------------------------------------------------------------------------------- certificates


async def test_the_own_authority(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    """Given as a context; nothing else is needed."""
    with anyio.fail_after(10):
        async with (
            SimulatedEngine("v05", ssl_context=server_tls) as engine,
            PieClient(engine.url, ssl_context=client_tls, require_tls=True) as client,
        ):
            await client.ping()


async def test_an_unknown_authority(server_tls: ssl.SSLContext) -> None:
    """What the system does not trust is not trusted, by default."""
    async with SimulatedEngine("v05", ssl_context=server_tls) as engine:
        error = await _fails(PieClient(engine.url))
        assert not engine.received
    assert "not trusted" in str(error)


async def test_the_wrong_host(authority: trustme.CA, client_tls: ssl.SSLContext) -> None:
    """A good certificate of somebody else is no certificate."""
    async with SimulatedEngine("v05", ssl_context=serving(authority, "other.example")) as engine:
        error = await _fails(PieClient(engine.url, ssl_context=client_tls))
        assert not engine.received
    assert "not trusted" in str(error)
    assert "127.0.0.1" in str(error)


async def test_a_client_certificate(
    authority: trustme.CA, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """Without the one that the server asks for there is no connection; with it, in the context, there is."""
    server_tls.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(server_tls)
    async with SimulatedEngine("v05", ssl_context=server_tls) as engine:
        error = await _fails(PieClient(engine.url, ssl_context=client_tls))
        assert "certificate" in str(error).lower()
        authority.issue_cert("alice@pie.example").configure_cert(client_tls)
        with anyio.fail_after(10):
            async with PieClient(engine.url, ssl_context=client_tls) as client:
                await client.ping()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_no_way_back_to_plain_text(client_tls: ssl.SSLContext, answer: bytes) -> None:
    """Where nobody speaks TLS, ``wss://`` fails: nothing but the greeting of TLS is ever sent."""
    heard: list[bytes] = []

    async def serve(stream: ByteStream) -> None:
        async with stream:
            heard.append(await stream.receive())
            if answer:
                await stream.send(answer)

    with anyio.fail_after(10):
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, serve)
            port = listener.extra(SocketAttribute.local_port)
            error = await _fails(PieClient(f"wss://127.0.0.1:{port}", ssl_context=client_tls, token="t0ken"))
            tasks.cancel_scope.cancel()
    assert error.url == f"wss://127.0.0.1:{port}"
    assert "TLS" in str(error)
    assert len(heard) == 1
    assert heard[0][0] == 0x16  # a handshake record
    assert b"GET" not in heard[0]


async def test_given_tls_stays_tls(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    """A connectable that brings its own TLS is spoken to through it, and not past it on the socket below."""
    with anyio.fail_after(10):
        async with SimulatedEngine("v05", ssl_context=server_tls) as engine:
            port = int(engine.url.rpartition(":")[2])
            below = TCPConnectable("127.0.0.1", port)
            given = TLSConnectable(
                below, hostname="127.0.0.1", ssl_context=client_tls, standard_compatible=False
            )
            async with PieClient(given, require_tls=True) as client:
                await client.ping()
            assert engine.received_counts["ping"] == 1


# -------------------------------------------------------------------------------------------------------- require_tls


def _refused(url: Any, **options: Any) -> InsecureTransport:
    with pytest.raises(InsecureTransport) as caught:
        PieClient(url, require_tls=True, **options)
    return caught.value


@pytest.mark.parametrize(
    "url", ["ws://engine.example:8080", "ws://127.0.0.1:8080", "ws://localhost", "ws://[::1]:1"]
)
def test_plain_text_is_refused(url: str) -> None:
    """When the client is made, so before anybody is dialled; this machine is no exception."""
    error = _refused(url, token="t0ken")
    assert "wss://" in str(error)
    assert "t0ken" not in str(error)
    assert isinstance(error, InvalidRequest)


def test_unchecked_tls_is_refused() -> None:
    """Anybody can answer with a certificate that nobody looks at."""
    assert "checks no certificate" in str(_refused("wss://engine.example", ssl_context=UNCHECKED()))
    given = TLSConnectable(TCPConnectable("engine.example", 443), ssl_context=UNCHECKED())
    assert "a given stream to engine.example:443" in str(_refused(given))


@pytest.mark.parametrize("given", [TCPConnectable("127.0.0.1", 1), MemoryConnectable()], ids=["tcp", "own"])
def test_given_streams_are_refused(given: Any) -> None:
    """Where it cannot be told that they are sealed; without ``require_tls`` they are the caller's affair."""
    _refused(given)
    PieClient(given)


def test_what_is_sealed_is_accepted(tmp_path: Path) -> None:
    """TLS and Unix sockets, by URL or given."""
    tls = TLSConnectable(TCPConnectable("engine.example", 443))
    for url in ("wss://engine.example", f"ws+unix://{tmp_path}/s", tls, UNIXConnectable(tmp_path / "s")):
        PieClient(url, require_tls=True)


def test_pools_pass_it_on() -> None:
    """To every endpoint."""
    with pytest.raises(InsecureTransport, match="engine2"):
        ClientPool(["wss://engine1.example", "ws://engine2.example"], require_tls=True)


@pytest.mark.parametrize("how", ["before", "behind", "environment"])
def test_the_option_of_the_command_line(
    how: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A usage error, in each place where it can be said."""
    words = ["--url", "ws://127.0.0.1:9", "ping"]
    if how == "environment":
        monkeypatch.setenv("PIE_REQUIRE_TLS", "1")
    elif how == "before":
        words.insert(0, "--require-tls")
    else:
        words.append("--require-tls")
    assert run(words) == 2
    assert "require_tls" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------- warnings of tokens


LOCAL = {
    "ws://127.0.0.1:1": True,
    "ws://127.9.8.7:1": True,
    "ws://localhost:1": True,
    "ws://LOCALHOST:1": True,
    "ws://[::1]:1": True,
    "ws://127.0.0.1.evil.example:1": False,
    "ws://127.evil:1": False,
    "ws://localhost.evil.example:1": False,
    "ws://0.0.0.0:1": False,
    "ws://10.0.0.1:1": False,
    "ws://engine.example:1": False,
    "ws+unix:///run/pie.sock": True,
}


@pytest.mark.parametrize("url", LOCAL)
def test_what_counts_as_this_machine(url: str) -> None:
    """Loopback addresses and nothing that only looks like one."""
    assert parse_endpoint(url).local is LOCAL[url]


def test_given_connectables_are_looked_into() -> None:
    """As far as they are anyio's own; TLS, of whatever kind, is not plain text."""
    far, near = TCPConnectable("engine.example", 1), TCPConnectable("127.0.0.1", 1)
    assert not parse_endpoint(far).local
    assert parse_endpoint(near).local
    assert parse_endpoint(TLSConnectable(far)).local
    assert parse_endpoint(MemoryConnectable()).local


def _far(engine: SimulatedEngine, url: str = "ws://engine.example:8080", **options: Any) -> PieClient:
    """Make a client that takes the engine for one on another machine."""
    client = PieClient(url, **options)
    object.__setattr__(client._options.endpoint, "connectable", engine.connectable)
    return client


async def test_one_warning_for_each_endpoint() -> None:
    """And not for each login or connection; it says what to do, and not what the token is."""
    async with SimulatedEngine("v04", port=None, token="t0ken") as engine:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", InsecureTransportWarning)
            for url in ("ws://engine.example:8080", "ws://engine.example:8080/", "ws://other.example"):
                for _ in range(2):
                    async with _far(engine, url, token="t0ken") as client:
                        await client.auth_by_token("t0ken")
        assert [str(warning.message).split()[5] for warning in caught] == [
            "ws://engine.example:8080",
            "ws://other.example:80",
        ]
        text = "".join(str(warning.message) for warning in caught)
        assert "use wss://" in text
        assert "t0ken" not in text


async def test_a_warning_that_is_an_error_is_always_one() -> None:
    """The token is not sent, the second time neither."""
    async with SimulatedEngine("v04", port=None, token="t0ken") as engine:
        for _ in range(2):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(InsecureTransportWarning):
                    async with _far(engine, token="t0ken"):
                        pytest.fail("it logged in")
        assert engine.received_counts["auth_by_token"] == 0


async def test_a_peer_that_goes_while_tls_is_sent() -> None:
    """Sending under TLS may be what finds out; that is a lost connection and nothing else."""

    class Gone(ByteStream):
        async def receive(self, max_bytes: int = 65536) -> bytes:
            raise AssertionError("not read")

        async def send(self, item: bytes) -> None:
            raise anyio.EndOfStream

        async def send_eof(self) -> None:
            raise AssertionError("not ended")

        async def aclose(self) -> None:
            await anyio.lowlevel.checkpoint()

    transport = Transport(Gone(), "wss://h:1")
    with pytest.raises(ConnectionLost, match=r"wss://h:1 broke: the peer closed it"):
        await transport.send(b"x")
    assert transport.broken
    await transport.aclose()
