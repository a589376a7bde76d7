# SPDX-License-Identifier: Apache-2.0
"""Where an engine is: URLs, and anything that anyio can connect to."""

from __future__ import annotations

import ssl
from ipaddress import ip_address
from typing import Final, TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

import attrs
from anyio import Lock, TCPConnectable, UNIXConnectable, aclose_forcefully
from anyio.abc import ByteStream, ByteStreamConnectable
from anyio.streams.tls import TLSConnectable, TLSStream

from .._exceptions import InsecureTransport, InvalidRequest

EndpointLike: TypeAlias = str | ByteStreamConnectable
DEFAULT_TARGET: Final = "/v1/ws"
"""What is dialled where a URL has no path: 0.5 serves nothing else, 0.4 takes any (0.5 section 12A.1)."""


class _SerializedSend(ByteStream):
    """A stream whose sends queue up: TLS writes from its receiving side too, at a key update."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._lock = Lock()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._stream.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        async with self._lock:
            await self._stream.send(item)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


@attrs.frozen
class Endpoint:
    """A parsed endpoint: how to connect, and what the HTTP request says."""

    name: str
    """The URL as shown in messages, without credentials."""
    host: str
    target: str
    connectable: ByteStreamConnectable = attrs.field(repr=False)
    tls: ssl.SSLContext | None = attrs.field(default=None, repr=False)
    tls_hostname: str = ""
    local: bool = False
    """Whether the bytes stay on this machine, as far as can be told."""
    sealed: bool = False
    """Whether nobody on the way can read or change them: checked TLS, or a Unix socket."""

    async def connect(self) -> ByteStream:
        """Open the stream, with TLS where the URL asks for it.

        Cancellation: closes what was opened.
        """
        stream = await self.connectable.connect()
        if self.tls is None:
            return stream
        try:
            return await TLSStream.wrap(
                _SerializedSend(stream),
                hostname=self.tls_hostname,
                ssl_context=self.tls,
                standard_compatible=False,
            )
        except BaseException:
            # TLSStream.wrap leaves the stream below open when the handshake fails or is cancelled.
            await aclose_forcefully(stream)
            raise


def parse_endpoint(
    url: EndpointLike, ssl_context: ssl.SSLContext | None = None, *, require_tls: bool = False
) -> Endpoint:
    """Read an endpoint, and refuse one that is not sealed where ``require_tls`` is set.

    ``url`` is ``ws://host[:port][/path]``, ``wss://...``, ``ws+unix:///path/to/socket``, or a connectable of anyio's.

    Raises:
        InvalidRequest: it is none of these.
        InsecureTransport: it is neither TLS with a checked certificate nor a Unix socket.
    """
    endpoint = _given_endpoint(url) if isinstance(url, ByteStreamConnectable) else _read_url(url, ssl_context)
    if require_tls:
        _check_sealed(endpoint)
    return endpoint


def _read_url(url: str, ssl_context: ssl.SSLContext | None) -> Endpoint:
    if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"an engine's URL must be text or an anyio connectable, not {type(url).__name__}"  # type: ignore[unreachable]
        raise InvalidRequest(msg)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        msg = f"not a valid engine URL: {exc}. Expected something like ws://127.0.0.1:8080"
        raise InvalidRequest(msg) from exc
    if parts.scheme == "ws+unix":
        path = unquote(parts.path)
        if host or not path:
            msg = "a ws+unix URL has three slashes and the path of the socket: ws+unix:///run/pie.sock"
            raise InvalidRequest(msg)
        return Endpoint(
            f"ws+unix://{path}", "localhost", DEFAULT_TARGET, UNIXConnectable(path), local=True, sealed=True
        )
    _check_tcp(url, parts, port)
    assert host is not None
    tls = None
    if parts.scheme == "wss":
        tls = ssl_context or ssl.create_default_context()
    number = port or (443 if tls else 80)
    shown = f"[{host}]" if ":" in host else host
    target = (parts.path if parts.path.strip("/") else DEFAULT_TARGET) + (
        f"?{parts.query}" if parts.query else ""
    )
    return Endpoint(
        name=f"{parts.scheme}://{shown}:{number}{'' if target == DEFAULT_TARGET else parts.path}",
        host=f"{shown}:{number}",
        target=target,
        connectable=TCPConnectable(host, number),
        tls=tls,
        tls_hostname=host,
        local=_is_loopback(host),
        sealed=tls is not None and _verifies(tls),
    )


def _check_sealed(endpoint: Endpoint) -> None:
    """Refuse an endpoint that somebody on the way could read or change."""
    if endpoint.sealed:
        return
    if endpoint.tls is not None:
        why = (
            "its ssl_context checks no certificate, so that anybody could answer; leave verify_mode as it is"
        )
    else:
        why = (
            "it is not encrypted; use wss:// through a proxy, a ws+unix:// socket, or anyio's TLSConnectable"
        )
    msg = f"require_tls=True refuses {endpoint.name}: {why}"
    raise InsecureTransport(msg)


def _given_endpoint(connectable: ByteStreamConnectable) -> Endpoint:
    """Judge what the caller connects with, as far as anyio's own connectables can be looked into."""
    inner: object = connectable
    encrypted = verified = False
    while isinstance(inner, TLSConnectable):
        encrypted, verified = True, verified or _verifies(inner.ssl_context)
        inner = inner.connectable
    # What is none of anyio's is the caller's own making: a tunnel, a simulated engine. Nothing is known against it.
    name, local = "a given byte stream", True
    if isinstance(inner, TCPConnectable):
        name, local = (
            f"a given stream to {inner.host}:{inner.port}",
            encrypted or _is_loopback(str(inner.host)),
        )
    sealed = verified or isinstance(inner, UNIXConnectable)
    return Endpoint(name, "pie-engine", DEFAULT_TARGET, connectable, local=local, sealed=sealed)


def _is_loopback(host: str) -> bool:
    """Tell whether a host is this machine by its address; of names only the one that cannot be anything else."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _verifies(context: ssl.SSLContext) -> bool:
    return context.verify_mode is ssl.CERT_REQUIRED


def _check_tcp(url: str, parts: SplitResult, port: int | None) -> None:
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        msg = (
            f"not an engine URL: {_without_credentials(url)!r}. Expected ws://host:port, wss://host:port or "
            "ws+unix:///path"
        )
        raise InvalidRequest(msg)
    if parts.username or parts.password:
        msg = "an engine URL cannot carry a user or password; use username=, key=, token= or identity="
        raise InvalidRequest(msg)
    if port == 0:
        msg = f"port 0 cannot be connected to: {url!r}"
        raise InvalidRequest(msg)
    if not (url.isascii() and url.isprintable()) or " " in url:
        msg = f"an engine URL has only printable ASCII characters; percent-encode the others in {url!r}"
        raise InvalidRequest(msg)


def _without_credentials(url: str) -> str:
    """Cut what may be a secret out of a URL that is quoted in an error."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"
