# SPDX-License-Identifier: Apache-2.0
"""Bad input of every kind: a typed error that says what to do, nothing lost, no hang, and a client that goes on."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from anyio.abc import ByteStream
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from tests.api.conftest import add_programs

from pie_anyio import (
    AuthenticationError,
    ConnectError,
    ConnectionLost,
    EngineError,
    Event,
    InvalidRequest,
    KeyFileError,
    Limits,
    ParsedPrivateKey,
    PieClient,
    ProcessNotFound,
    ProgramNotFound,
    TransferError,
)
from pie_anyio.testing import MemoryConnectable, SimulatedEngine
from pie_anyio.testing.faulty import CutStream

# --------------------------------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:8080", "Expected ws://"),
        ("https://example.org", "Expected ws://"),
        ("127.0.0.1:8080", "Expected ws://"),
        ("localhost", "Expected ws://"),
        ("", "Expected ws://"),
        ("ws://", "Expected ws://"),
        ("ws://host:notaport", "ws://127.0.0.1:8080"),
        ("ws://host:99999", "ws://127.0.0.1:8080"),
        ("ws://host:0", "port 0"),
        ("ws://[::1", "ws://127.0.0.1:8080"),
        ("ws://alice:secret@host:1", "username=, key=, token="),
        ("ws://host:1/a path", "percent-encode"),
        ("ws://h\u00f6st:1", "percent-encode"),
        ("ws+unix://host/run/pie.sock", "three slashes"),
        ("ws+unix://", "three slashes"),
        (8080, "must be text"),
        (None, "must be text"),
    ],
)
def test_urls_that_name_no_engine(url: Any, message: str) -> None:
    """Refused before anything is tried, with the form that is expected; no secret of the URL is shown."""
    with pytest.raises(InvalidRequest, match=message) as caught:
        PieClient(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"token": "t", "username": "u"}, "not both"),
        ({"key": "agent"}, "username="),
        ({"identity": " "}, "tenant/user"),
        ({"identity": "tenant/"}, "tenant/user"),
        ({"identity": "a\r\nx: y"}, "printable"),
        ({"identity": "j\u00fcrgen"}, "ASCII"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    """Refused when the client is made."""
    with pytest.raises(InvalidRequest, match=message):
        PieClient("ws://127.0.0.1:1", **arguments)


def test_a_name_that_is_no_header_value_gives_no_identity() -> None:
    """The identity of 0.5 goes into a header; a user's name beyond ASCII is still a name for the login."""
    PieClient("ws://127.0.0.1:1", username="j\u00fcrgen")


# ----------------------------------------------------------------------------------------------------- no connection


async def _fails_to_connect(client: PieClient) -> ConnectError:
    with anyio.fail_after(10):
        with pytest.raises(ConnectError) as caught:
            async with client:
                pytest.fail("it connected")
    assert client.receipt.started == 0
    return caught.value


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_a_refused_port() -> None:
    """Says that nobody listens there, and names the address."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
    error = await _fails_to_connect(PieClient(f"ws://127.0.0.1:{port}"))
    assert "refused; is the engine running" in str(error)
    assert f"127.0.0.1:{port}" in str(error)
    assert error.url == f"ws://127.0.0.1:{port}"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 70 + ".invalid"])
async def test_an_unknown_host(host: str) -> None:
    """Says that the name is the trouble, also where it could never be one."""
    error = await _fails_to_connect(PieClient(f"ws://{host}:8080"))
    assert "host name is unknown" in str(error)


async def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    """A path without a socket behind it."""
    error = await _fails_to_connect(PieClient(f"ws+unix://{tmp_path}/none.sock"))
    assert "there is no such socket" in str(error)


async def test_a_unix_socket_works(tmp_path: Path) -> None:
    """And one with an engine behind it is as good as a port."""
    with anyio.fail_after(5):
        async with SimulatedEngine("v05", unix_path=tmp_path / "pie.sock") as engine:
            async with PieClient(engine.url) as client:
                await client.ping()
                assert client.url == engine.url


async def test_tls_works(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    """With the right authority."""
    with anyio.fail_after(10):
        async with SimulatedEngine("v05", ssl_context=server_tls) as engine:
            async with PieClient(engine.url, ssl_context=client_tls) as client:
                await client.ping()


async def test_an_untrusted_certificate(server_tls: ssl.SSLContext) -> None:
    """Says so, and how to trust it."""
    async with SimulatedEngine("v05", ssl_context=server_tls) as engine:
        error = await _fails_to_connect(PieClient(engine.url))
    assert "not trusted" in str(error)
    assert "ssl_context=" in str(error)


@pytest.mark.parametrize("profile", ["v04", "v05"])
async def test_tls_to_a_plain_port(client_tls: ssl.SSLContext, profile: Any) -> None:
    """An engine itself speaks no TLS: an error within the time for connecting, whatever it does with the hello."""
    async with SimulatedEngine(profile) as engine:
        url = engine.url.replace("ws://", "wss://")
        error = await _fails_to_connect(PieClient(url, ssl_context=client_tls, connect_timeout=0.3))
    assert "wss://" in str(error)


async def test_plain_to_a_tls_port(server_tls: ssl.SSLContext) -> None:
    """The other way round."""
    async with SimulatedEngine("v05", ssl_context=server_tls) as engine:
        url = engine.url.replace("wss://", "ws://")
        error = await _fails_to_connect(PieClient(url, connect_timeout=2))
    assert "wss://" in str(error)


@pytest.mark.parametrize(
    ("status", "body", "hint"),
    [
        (401, b"identity: missing", "identity="),
        (403, b"", "does not let this client in"),
        (404, b"", "/v1/ws"),
        (503, b"draining", "try again later"),
        (500, b"oops", "is this the URL"),
        (200, b"<html>hello</html>", "is this the URL"),
    ],
)
async def test_http_refusals(status: int, body: bytes, hint: str) -> None:
    """The status, what the server says, and what to do about it."""
    async with SimulatedEngine("v05", port=None) as engine:
        engine.faults.refuse_handshakes = (status, body)
        error = await _fails_to_connect(PieClient(engine.connectable))
    assert error.status == status
    assert str(status) in str(error)
    assert hint in str(error)
    assert body.decode() in str(error)


async def test_a_wrong_path(profile: Any) -> None:
    """0.5 serves one path only; 0.4 serves any."""
    async with SimulatedEngine(profile) as engine:
        client = PieClient(engine.url + "/elsewhere")
        if profile == "v05":
            assert (await _fails_to_connect(client)).status == 404
        else:
            async with client:
                await client.ping()


async def _answering(answer: bytes, client_arguments: dict[str, Any] | None = None) -> ConnectError:
    """Connect to a peer that answers whatever it hears with these bytes, and hangs up."""
    connectable = MemoryConnectable()

    async def serve(stream: ByteStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(answer)

    async with anyio.create_task_group() as tasks:

        async def listen() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await connectable.listener.serve(serve, tasks)

        tasks.start_soon(listen)
        error = await _fails_to_connect(PieClient(connectable, **client_arguments or {}))
        await connectable.listener.aclose()
    return error


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"220 mail.example.org ESMTP\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Hi\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"x" * 70_000,
        b"",
    ],
)
async def test_a_peer_that_is_no_engine(answer: bytes) -> None:
    """Whatever it says, it is an error of connecting, and the message asks for the URL."""
    error = await _answering(answer)
    assert "is this the URL of a Pie engine" in str(error)


# ------------------------------------------------------------------------------------------------------------- logins


async def test_a_wrong_key(public_key: str) -> None:
    """Says whose key, and where to look; the connection takes the right one afterwards."""
    async with SimulatedEngine("v04", port=None, users={"alice": [public_key]}) as engine:
        async with PieClient(engine.connectable) as client:
            other = _parsed(Ed25519PrivateKey.generate())
            with pytest.raises(
                AuthenticationError, match=r"did not accept the key of user 'alice'.*registered"
            ):
                await client.authenticate("alice", other)
            with pytest.raises(
                AuthenticationError, match=r"pass a private key: authenticate\('alice', key\)"
            ):
                await client.authenticate("alice")
            with pytest.raises(AuthenticationError, match="User 'mallory' is not authorized"):
                await client.authenticate("mallory", other)


def _parsed(key: Any) -> ParsedPrivateKey:
    return ParsedPrivateKey.parse(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    )


async def test_the_right_key_after_a_wrong_one(alice: Ed25519PrivateKey, public_key: str) -> None:
    """A refused login costs nothing but itself."""
    async with SimulatedEngine("v04", port=None, users={"alice": [public_key]}) as engine:
        async with PieClient(engine.connectable) as client:
            with pytest.raises(AuthenticationError):
                await client.authenticate("alice", _parsed(Ed25519PrivateKey.generate()))
            await client.authenticate("alice", _parsed(alice))
            await client.ping()


async def test_entering_with_wrong_credentials(public_key: str) -> None:
    """The block is not entered, and the connection is closed again."""
    async with SimulatedEngine("v04", port=None, users={"alice": [public_key]}) as engine:
        error = await _fails_to_connect(PieClient(engine.connectable, username="bob"))
        assert isinstance(error, AuthenticationError)
        with anyio.fail_after(5):
            await engine.wait_connections(0)


async def test_requests_without_the_credentials_that_are_wanted(public_key: str) -> None:
    """The error of any request names the calls that log in."""
    async with SimulatedEngine("v04", port=None, users={"alice": [public_key]}) as engine:
        async with PieClient(engine.connectable) as client:
            with pytest.raises(AuthenticationError, match=r"authenticate\(username, key\).*auth_by_token"):
                await client.ping()


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def _missing(path: Path) -> Path:
    return path


def _directory(path: Path) -> Path:
    path.mkdir()
    return path


def _nonsense(path: Path) -> Path:
    return _write(path, b"not a key")


def _encrypted(path: Path) -> Path:
    key = Ed25519PrivateKey.generate()
    return _write(
        path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )


def _weak(path: Path) -> Path:
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused
    return _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _public(path: Path) -> Path:
    key = Ed25519PrivateKey.generate().public_key()
    return _write(path, key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_missing, "ssh-keygen"),
        (_directory, "is a directory"),
        (_nonsense, "not a private key"),
        (_encrypted, "passphrase="),
        (_weak, "weak RSA key of 1024 bits"),
        (_public, "public key; give the private one"),
    ],
)
async def test_unusable_key_files(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    """Named, with the remedy, before anything is sent."""
    path = make(tmp_path / "key")
    with anyio.fail_after(5):
        async with SimulatedEngine("v04", port=None) as engine, PieClient(engine.connectable) as client:
            with pytest.raises(KeyFileError, match=message):
                await client.authenticate("alice", path)
            assert not engine.received
            await client.ping()


async def test_credentials_that_are_no_text(client: PieClient, engine: SimulatedEngine) -> None:
    """Engines do not answer such a login at all, so it is not sent."""
    with anyio.fail_after(5):
        with pytest.raises(InvalidRequest, match="username must be a string, not int"):
            await client.authenticate(7)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="token must be a string, not bytes") as caught:
            await client.auth_by_token(b"hush")  # type: ignore[arg-type]
        assert "hush" not in str(caught.value)
        assert not engine.received
        await client.ping()


# ----------------------------------------------------------------------------------------------- programs and inputs


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "invalid program name"),
        ("a b@0.1.0", "invalid program name"),
        ("../etc@0.1.0", "invalid program name"),
        ("echo@latest", "ranges and 'latest'"),
        ("echo@1.0", "three numbers"),
        ("echo@0.1.0\n", "three numbers"),
        (None, "must be a string"),
        (Path("echo"), "must be a string"),
    ],
)
async def test_bad_program_names(client: PieClient, engine: SimulatedEngine, name: Any, message: str) -> None:
    """Refused before they are sent, with the rule."""
    with anyio.fail_after(5):
        with pytest.raises(InvalidRequest, match=message):
            await client.launch_process(name)
        with pytest.raises(InvalidRequest, match=message):
            await client.check_program(name)
        assert engine.received_counts["launch_process"] == 0
        assert (await client.run_process("echo@0.1.0", 1)).value == 1
    assert client.receipt.started == 1


async def test_a_bare_name(client: PieClient, profile: Any) -> None:
    """0.5 finds the version itself; for 0.4 the message shows how to write it."""
    with anyio.fail_after(5):
        if profile == "v05":
            assert (await client.run_process("echo", 5)).value == 5
        else:
            with pytest.raises(InvalidRequest, match=r"echo@0\.1\.0"):
                await client.launch_process("echo")


async def test_an_unknown_program(client: PieClient) -> None:
    """Says what to do; the receipt counts nothing as started."""
    with anyio.fail_after(5):
        with pytest.raises(ProgramNotFound, match=r"nothere@0.1.0.*install_program") as caught:
            await client.launch_process("nothere@0.1.0")
        assert caught.value.request == "launch_process"
        assert caught.value.detail
        await client.ping()
    assert client.receipt.started == 0
    assert client.receipt.not_started == 1


class _Odd:
    pass


_CIRCLE: list[Any] = []
_CIRCLE.append(_CIRCLE)
_DEEP: list[Any] = []
for _ in range(100_000):
    _DEEP = [_DEEP]


@pytest.mark.parametrize(
    "value", [_Odd(), b"bytes", {1, 2}, _CIRCLE, _DEEP, {("a", "b"): 1}], ids=lambda v: type(v).__name__
)
async def test_inputs_without_a_json_form(client: PieClient, engine: SimulatedEngine, value: Any) -> None:
    """The error is raised at the call, and says why."""
    with anyio.fail_after(5):
        with pytest.raises(InvalidRequest, match="the input cannot be sent as JSON"):
            await client.launch_process("echo@0.1.0", value)
        assert engine.received_counts["launch_process"] == 0
        assert (await client.run_process("echo@0.1.0", "next")).value == "next"


async def test_an_oversized_input(client: PieClient, engine: SimulatedEngine, profile: Any) -> None:
    """0.5 would answer with a frame that names no request; the limit is kept here, and the way around it is shown."""
    size = (7 if profile == "v05" else 16) * 1024 * 1024
    with anyio.fail_after(10):
        with pytest.raises(InvalidRequest, match=r"at most \d+.*transfer_file"):
            await client.launch_process("echo@0.1.0", "x" * size)
        assert engine.received_counts["launch_process"] == 0
        await client.ping()


@pytest.mark.parametrize("budget", [-1, 1.5, True, "12", 2**64])
async def test_bad_token_budgets(client: PieClient, engine: SimulatedEngine, budget: Any) -> None:
    """0.4 never answers a launch with one of these, so it is not sent."""
    with anyio.fail_after(5):
        with pytest.raises(InvalidRequest, match="token_budget must be an integer between 0"):
            await client.launch_process("echo@0.1.0", 1, token_budget=budget)
        assert engine.received_counts["launch_process"] == 0


@pytest.mark.parametrize(("subject", "record"), [(None, ""), ("model_status", None), ("model_status", 1)])
async def test_bad_queries(client: PieClient, engine: SimulatedEngine, subject: Any, record: Any) -> None:
    """The same for a question that is not made of texts."""
    with anyio.fail_after(5):
        with pytest.raises(InvalidRequest, match=r"query: (subject|record) must be a string"):
            await client.query(subject, record)
        assert engine.received_counts["query"] == 0


@pytest.mark.parametrize("port", [0, -1, 65_536, 8080.0, "80", True])
async def test_bad_daemon_ports(client: PieClient, engine: SimulatedEngine, port: Any) -> None:
    """0.4 cuts ports to 16 bits without a word."""
    with anyio.fail_after(5):
        with pytest.raises(InvalidRequest, match="port must be an integer between 1 and 65535"):
            await client.launch_daemon("echo@0.1.0", port)
        assert not engine.received


# ------------------------------------------------------------------------------------------------------------ uploads

CODE = b"\0asm, or near enough"
MANIFEST = '[package]\nname = "up"\nversion = "0.1.0"\n'


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("not toml [", "not valid TOML"),
        ("", r"no \[package\] table"),
        ("[package]\nname = 'x'\n", "no package.version"),
        ("[package]\nname = 'x'\nversion = 1\n", "must be a string"),
        ("[package]\nname = 'a b'\nversion = '0.1.0'\n", "could never launch it"),
        ("[package]\nname = 'x'\nversion = 'new'\n", "could never launch it"),
    ],
)
async def test_manifests_that_do_not_parse(
    client: PieClient, engine: SimulatedEngine, manifest: str, message: str
) -> None:
    """Found before the upload, not after it."""
    with anyio.fail_after(5):
        with pytest.raises(InvalidRequest, match=message):
            await client.install_program_bytes(b"code", manifest)
        assert engine.received_counts["add_program"] == 0
        await client.install_program_bytes(CODE, MANIFEST)


async def test_files_that_cannot_be_read(client: PieClient, engine: SimulatedEngine, tmp_path: Path) -> None:
    """Neither the program nor its manifest."""
    good = tmp_path / "Pie.toml"
    good.write_text(MANIFEST, encoding="utf-8")
    latin = tmp_path / "Latin.toml"
    latin.write_bytes(MANIFEST.encode() + b"# \xff")
    with anyio.fail_after(5):
        with pytest.raises(InvalidRequest, match=r"cannot read .*missing.wasm"):
            await client.install_program(tmp_path / "missing.wasm", good)
        with pytest.raises(InvalidRequest, match=r"cannot read the manifest .*missing.toml"):
            await client.install_program(good, tmp_path / "missing.toml")
        with pytest.raises(InvalidRequest, match="not UTF-8"):
            await client.install_program(good, latin)
        with pytest.raises(InvalidRequest, match="Is a directory"):
            await client.install_program(tmp_path, good)
        assert engine.received_counts["add_program"] == 0


@pytest.mark.parametrize("source", ["~no-such-user-here/file", "nul\0byte", 17, None])
async def test_contents_that_are_none(client: PieClient, source: Any) -> None:
    """What is neither bytes nor a path that can be read."""
    with anyio.fail_after(5):
        process = await client.launch_process("take@0.1.0")
        with pytest.raises(InvalidRequest, match="give bytes, or the path of a file"):
            await process.transfer_file(source)
        await process.terminate()


async def test_an_oversized_upload(profile: Any) -> None:
    """The engine's refusal comes through, and where 0.5 gives a misleading text, with what it means."""
    with anyio.fail_after(10):
        async with SimulatedEngine(profile, port=None, max_upload_bytes=1024 * 1024) as engine:
            async with PieClient(engine.connectable) as client:
                with pytest.raises(EngineError, match="max_upload_mb"):
                    await client.install_program_bytes(bytes(3 * 1024 * 1024), MANIFEST)
                await client.install_program_bytes(CODE, MANIFEST)
                await client.ping()


async def test_a_file_that_shrinks_while_it_is_sent(
    client: PieClient, engine: SimulatedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload fails here, and the engine forgets what it has of it."""
    from pie_anyio import _client
    from pie_anyio._session import uploads

    path = tmp_path / "program.wasm"
    path.write_bytes(bytes(600_000))
    measured = uploads.open_content

    async def measure(source: Any) -> Any:
        content = await measured(source)
        path.write_bytes(bytes(300_000))
        return content

    manifest = tmp_path / "Pie.toml"
    manifest.write_text(MANIFEST, encoding="utf-8")
    monkeypatch.setattr(_client, "open_content", measure)
    with anyio.fail_after(5):
        with pytest.raises(TransferError, match="changed while it was being sent"):
            await client.install_program(path, manifest)
        await client.ping()


async def test_a_file_that_goes_away(
    client: PieClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between measuring and sending it."""
    from pie_anyio import _client
    from pie_anyio._session import uploads

    path, manifest = tmp_path / "program.wasm", tmp_path / "Pie.toml"
    path.write_bytes(b"code")
    manifest.write_text(MANIFEST, encoding="utf-8")
    measured = uploads.open_content

    async def measure(source: Any) -> Any:
        content = await measured(source)
        path.unlink()
        return content

    monkeypatch.setattr(_client, "open_content", measure)
    with anyio.fail_after(5):
        with pytest.raises(TransferError, match=r"program\.wasm can no longer be read"):
            await client.install_program(path, manifest)
        await client.ping()


# ---------------------------------------------------------------------------------------------------------- processes

UNKNOWN = "0b7c9a52-6d0e-4b39-8f0e-2f1f3c1f7a11"


@pytest.mark.parametrize("process_id", [UNKNOWN, UNKNOWN.upper(), "not an id", ""])
async def test_unknown_processes(client: PieClient, process_id: str) -> None:
    """To attach to and to terminate."""
    with anyio.fail_after(5):
        with pytest.raises(ProcessNotFound) as caught:
            await client.attach_process(process_id)
        assert caught.value.request == "attach_process"
        with pytest.raises(ProcessNotFound, match="terminate_process"):
            await client.terminate_process(process_id)
        await client.signal_process(process_id, "into the void")
        await client.ping()
    assert client.receipt.started == 0


@pytest.mark.parametrize("process_id", [None, 5, b"x"])
async def test_process_ids_that_are_no_text(
    client: PieClient, engine: SimulatedEngine, process_id: Any
) -> None:
    """Refused at the call."""
    with anyio.fail_after(5):
        for call in (client.attach_process, client.terminate_process):
            with pytest.raises(InvalidRequest, match="a process id is a string"):
                await call(process_id)
        with pytest.raises(InvalidRequest, match="a process id is a string"):
            await client.signal_process(process_id, "x")
        assert not engine.received


async def test_a_terminated_process(client: PieClient) -> None:
    """What can still be asked of it, and what not."""
    with anyio.fail_after(5):
        process = await client.launch_process("sleep@0.1.0")
        await process.terminate()
        assert await process.recv() == (Event.Error, "Signal")
        with pytest.raises(anyio.EndOfStream):
            await process.recv()
        await process.terminate()
        await process.signal("too late")
        await process.transfer_file(b"too late")
        with pytest.raises(ProcessNotFound):
            await client.attach_process(process.process_id)
        await client.ping()


@pytest.mark.parametrize("message", [None, 7, b"bytes", {"a": 1}])
async def test_signals_that_are_no_text(client: PieClient, message: Any) -> None:
    """Refused with a hint; the process is none the wiser."""
    with anyio.fail_after(5):
        process = await client.launch_process("talk@0.1.0", 3)
        with pytest.raises(InvalidRequest, match=r"json\.dumps"):
            await process.signal(message)
        await process.signal("quit")
        assert await process.result() == 3


async def test_a_signal_that_is_no_unicode(client: PieClient) -> None:
    """A lone surrogate has no place in a message; the next signal has."""
    with anyio.fail_after(5):
        process = await client.launch_process("talk@0.1.0", 4)
        with pytest.raises(InvalidRequest, match="signal_process: cannot be sent"):
            await process.signal("\ud800")
        await process.signal("quit")
        assert await process.result() == 4


# ------------------------------------------------------------------------------------------------- what an engine says


@pytest.mark.parametrize(
    "text", ["", "hello", "{", "[]", "null", '{"type": 5}', '{"type":"error"}', "[" * 100_000]
)
async def test_text_frames(client: PieClient, engine: SimulatedEngine, text: str) -> None:
    """Of no meaning to this client, and of no consequence."""
    with anyio.fail_after(5):
        await client.ping()
        engine.faults.send_text(text)
        await client.ping()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\xc0",
        b"\x93\x01\x02\x03",
        b"\x81",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa4type\xa7unknown",
        b"\x81\xa4type\xa8response",
        b"\x81\xa4type\xadprocess_event",
        b"\x81\xa4type\xa4file",
        b"\x81\xa4type\xabmcp_request",
        b"\x82\xa4type\xa8response\xa7corr_id\xff",
        b"\x81\x81\x01\x02\x03",
        b"\x91" * 50_000 + b"\xc0",
    ],
    ids=range(14),
)
async def test_garbage_messages(client: PieClient, engine: SimulatedEngine, payload: bytes) -> None:
    """One odd message costs nobody anything."""
    with anyio.fail_after(5):
        process = await client.launch_process("talk@0.1.0", 6)
        engine.faults.send_payload(payload)
        await client.ping()
        await process.signal("quit")
        assert await process.result() == 6


@pytest.mark.parametrize("data", [b"\xff" * 16, b"\x83\x00", b"\x82\x80\0\0\0\0", b"GET / HTTP/1.1\r\n\r\n"])
async def test_garbage_frames(client: PieClient, engine: SimulatedEngine, data: bytes) -> None:
    """What is no WebSocket frame ends the connection for everybody who waits, in words."""
    with anyio.fail_after(5):
        process = await client.launch_process("sleep@0.1.0")
        engine.faults.send_bytes(data)
        with pytest.raises(ConnectionLost):
            await process.recv()
        with pytest.raises(ConnectionLost, match="no connection"):
            await client.ping()
    assert client.receipt.lost == 1


async def test_a_message_beyond_the_limit(engine: SimulatedEngine) -> None:
    """Its connection is closed with the number of the limit, not the program's memory filled."""
    limits = Limits(message_bytes=10_000)
    with anyio.fail_after(5):
        async with PieClient(engine.connectable, limits=limits) as client:
            with pytest.raises(ConnectionLost, match="10000"):
                await client.run_process("echo@0.1.0", "x" * 20_000)


async def _conversation(client: PieClient) -> None:
    async with client:
        async with client.launch_process("talk@0.1.0", "end") as process:
            await process.signal("hello")
            async for event in process:
                if event.kind is Event.Message:
                    await process.signal("quit")
        assert process.return_value == "end"
        await client.list_processes()


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("direction", "error", "step"),
    [("after_received", "eof", 1), ("after_received", "broken", 13), ("after_sent", "broken", 7)],
)
async def test_a_conversation_cut_at_every_byte(profile: Any, direction: str, error: Any, step: int) -> None:
    """Wherever the connection ends, the client ends with an error of ours, and soon."""
    outcomes: list[str] = []
    for position in range(0, 3000, step):
        streams: list[CutStream] = []
        cuts: dict[str, Any] = {direction: position, "error": error}
        with anyio.fail_after(5):
            outcomes.append(await _play_cut(profile, partial(_cut, streams, cuts)))
        if outcomes[-1] == "through" and not streams[0].is_cut:
            break
    assert set(outcomes) == {"ConnectError", "ConnectionLost", "through"}
    assert outcomes.index("ConnectionLost") > 5


def _cut(streams: list[CutStream], cuts: dict[str, Any], stream: ByteStream) -> ByteStream:
    streams.append(CutStream(stream, **cuts))
    return streams[-1]


async def _play_cut(profile: Any, wrap: Callable[[ByteStream], ByteStream]) -> str:
    async with SimulatedEngine(profile, port=None) as engine:
        add_programs(engine)
        connectable = MemoryConnectable(wrap_client=wrap)
        connectable.listener = engine.connectable.listener  # type: ignore[attr-defined]
        client = PieClient(connectable, close_timeout=0.05, terminate_grace=0.05)
        try:
            await _conversation(client)
        except (ConnectError, ConnectionLost) as exc:
            return type(exc).__name__
        finally:
            assert client.receipt.running == 0
        return "through"


@pytest.mark.parametrize("text", ["a\r\nx-other: 1", "\0", "pié"])
def test_a_user_agent_that_is_no_header(text: str) -> None:
    """A line break in it would begin another header."""
    with pytest.raises(InvalidRequest, match="user_agent must be printable ASCII"):
        PieClient("ws://127.0.0.1:1", user_agent=text)
