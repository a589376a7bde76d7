# SPDX-License-Identifier: Apache-2.0
"""The simulated engine: where it listens, what it counts, and how each generation behaves."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import anyio
import pytest
import trustme
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from pie_anyio._exceptions import SessionError
from pie_anyio._protocol import websocket
from pie_anyio._protocol.messages import LaunchProcess
from pie_anyio.testing import InferletSession, SimulatedEngine, ToolError
from pie_anyio.testing._sim_demos import DEMOS
from pie_anyio.testing._sim_session import Session
from pie_anyio.testing._sim_shell import serve_connection
from pie_anyio.testing.faulty import WrappedStream
from pie_anyio.testing.peer import RawPeer

pytestmark = pytest.mark.both_loops
V05 = '{"type":"turn_done"}'
WASM = b"\0asm" + bytes(10)
MANIFEST = '[package]\nname = "mine"\nversion = "1.2.3"\n'


@asynccontextmanager
async def running(profile: Any = "v05", **options: Any) -> AsyncIterator[SimulatedEngine]:
    """Serve the demo programs, in memory only, within five seconds."""
    with anyio.fail_after(5):
        async with SimulatedEngine(profile, **{"port": None, **options}) as engine:
            for name, function in DEMOS.items():
                engine.inferlet(name)(function)
            yield engine


@asynccontextmanager
async def connected(engine: SimulatedEngine, username: str = "alice") -> AsyncIterator[RawPeer]:
    async with RawPeer(await engine.connectable.connect()) as peer:
        await peer.login(username)
        yield peer


# ---------------------------------------------------------------------------------------------------------- endpoints


async def check(stream: ByteStream) -> None:
    async with RawPeer(stream) as peer:
        await peer.login()
        assert await peer.events(await peer.launch("echo@0.1.0", "7")) == [("return", "7")]


async def test_tcp() -> None:
    """The URL names a real port on the loopback interface."""
    async with running(port=0) as engine:
        address = urlsplit(engine.url)
        assert address.scheme == "ws"
        assert address.hostname == "127.0.0.1"
        assert address.port
        await check((await RawPeer.dial("127.0.0.1", address.port)).stream)
        assert engine.connections_total == 1
    with pytest.raises(OSError, match=r"."):
        await anyio.connect_tcp("127.0.0.1", address.port)


async def test_ipv6() -> None:
    """An IPv6 address is put into brackets."""
    async with running(port=0, host="::1") as engine:
        assert engine.url.startswith("ws://[::1]:")


async def test_tls(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """With a context the engine serves TLS; a client that hangs up in between does no harm."""
    server, client = tls
    async with running(port=0, ssl_context=server) as engine:
        address = urlsplit(engine.url)
        assert address.scheme == "wss"
        for _ in range(2):
            stream = await anyio.connect_tcp("127.0.0.1", address.port or 0)
            wrapped = await TLSStream.wrap(
                stream, hostname="127.0.0.1", ssl_context=client, standard_compatible=False
            )
            await check(wrapped)


async def test_unix_socket(tmp_path: Path) -> None:
    """With a path the engine listens on a Unix socket, and the URL says so."""
    path = tmp_path / "engine.sock"
    async with running(unix_path=path) as engine:
        assert engine.url == f"ws+unix://{path}"
        await check(await anyio.connect_unix(path))
        # anyio 4.16 on asyncio trips over a receive that is cancelled in the turn in which the peer hangs up.
        await engine.wait_connections(0)


async def test_memory_only() -> None:
    """Without a port there is no URL, and everything goes on in memory."""
    async with running() as engine:
        with pytest.raises(RuntimeError, match="no URL"):
            _ = engine.url
        await check(await engine.connectable.connect())


@pytest.fixture(scope="module")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


# ------------------------------------------------------------------------------------------------------------- errors


async def test_the_bodys_error_comes_out_as_it_is() -> None:
    """An assertion that fails in the block is not wrapped in a group."""
    with pytest.raises(ZeroDivisionError):
        async with running() as engine, connected(engine) as peer:
            await peer.launch("sleeper@0.1.0")
            raise ZeroDivisionError


async def test_several_internal_errors_are_one() -> None:
    """Failures of the engine itself are reported as what they are."""

    async def crash() -> None:
        raise KeyError

    with pytest.raises(SessionError, match="2 places"):
        async with running() as engine:
            engine.spawn(crash)
            engine.spawn(crash)
            await anyio.sleep_forever()


def test_misuse() -> None:
    """Unknown profiles and impossible names are refused at once."""
    profile: Any = "v03"
    with pytest.raises(ValueError, match=r"no engine profile 'v03'; choose one of v05, v04"):
        SimulatedEngine(profile)
    with pytest.raises(ValueError, match=r"'bad name' is no program name"):
        SimulatedEngine().inferlet("bad name")(DEMOS["echo"])


# ----------------------------------------------------------------------------------------------------- state and waits


async def test_counters_and_waits() -> None:
    """The engine says what lives, what has been, and waits for either."""
    async with running() as engine, connected(engine) as peer:
        assert engine.connections == 1
        first = await peer.launch("talk@0.1.0", "[1]")
        await peer.launch("fail@0.1.0")
        second = await peer.launch("sleeper@0.1.0")
        await engine.wait_started(3)
        await engine.wait_until(lambda: engine.failed_total == 1)
        assert set(engine.live_processes) == {first, second}
        row = engine.live_processes[first]
        assert (row.program, row.input, row.username, row.elapsed_secs) == (
            "talk@0.1.0",
            "[1]",
            "internal",
            0,
        )
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(engine.wait_idle)
            await peer.say("signal_process", process_id=first, message="quit")
            await peer.ask("terminate_process", process_id=second)
        assert (engine.returned_total, engine.failed_total, engine.terminated_total) == (1, 1, 1)
        assert engine.peak_live in {2, 3}
        assert engine.refused_total == 0
        await engine.wait_received("launch_process", 3)
        assert engine.received_counts["launch_process"] == 3
        connection, corr_id, request = engine.received[1]
        assert (connection, corr_id, request) == (1, 2, LaunchProcess("talk@0.1.0", "[1]", True))
        async with connected(engine):
            await engine.wait_connections(2)
        await engine.wait_connections(1)
        await engine.wait_live(0)


async def test_the_log_is_bounded_and_keeps_no_content() -> None:
    """The latest requests are kept, chunks without their bytes."""
    async with running(log_size=2) as engine, connected(engine) as peer:
        await peer.upload(WASM, MANIFEST)
        await peer.ping()
        assert len(engine.received) == 2
        request: Any = engine.received[0].request
        assert request.type == "add_program"
        assert request.chunk_data == b""


async def test_places() -> None:
    """Launches beyond the number of places are accepted and wait; one that is terminated meanwhile never runs."""
    async with running(max_processes=1) as engine, connected(engine) as peer:
        first, second, third = [await peer.launch("talk@0.1.0") for _ in range(3)]
        assert await peer.event(first) == ("message", "ready")
        await peer.say("signal_process", process_id=third, message="kept")
        await peer.ask("terminate_process", process_id=second)
        assert await peer.event(second) == ("error", "Signal")
        assert len(engine.live_processes) == 2
        assert not [item for item in peer.unread if isinstance(item, dict)]
        await peer.ask("terminate_process", process_id=first)
        assert await peer.event(third) == ("message", "ready")
        assert await peer.event(third) == ("message", "KEPT")


# ----------------------------------------------------------------------------------------------------------- programs


async def test_what_programs_can_do() -> None:
    """Output, input and errors of a program, and what it knows about itself."""
    async with running() as engine, connected(engine) as peer:

        @engine.inferlet("all")
        async def program(session: InferletSession, input: Any) -> object:
            await session.print("a", 1, sep="-")
            await session.stderr("e" * 2_000_000)
            await session.send({"x": None})
            await session.send_file(b"content", "name.txt")
            await session.send_file(b"")
            return [session.program, session.username, session.token_budget, session.process_id]

        process_id = await peer.launch("all")
        assert [await peer.event(process_id) for _ in range(4)] == [
            *(("stdout", "a"), ("stdout", "-"), ("stdout", "1"), ("stdout", "\n"))
        ]
        assert await peer.event(process_id) == ("stderr", "e" * 1_048_576)
        assert await peer.event(process_id) == ("message", '{"x": null}')
        assert await peer.file(process_id) == (b"content", "name.txt")
        kind, value = await peer.event(process_id)
        assert (kind, json.loads(value)) == ("return", ["all@0.1.0", "internal", None, process_id])


async def test_results_that_are_no_json() -> None:
    """Bytes become their repr; what cannot be written at all is the program's error."""
    async with running() as engine, connected(engine) as peer:

        @engine.inferlet("odd")
        async def odd(session: InferletSession, input: Any) -> object:
            ring: list[Any] = []
            ring.append(ring)
            return {"bytes": b"\x00", "ring": ring}[input["input"]]

        assert (await peer.events(await peer.launch("odd", "bytes"))) == [("return", "\"b'\\\\x00'\"")]
        kind, text = (await peer.events(await peer.launch("odd", "ring")))[-1]
        assert (kind, text[:27]) == ("error", "ValueError: Circular refere")


async def test_a_program_that_goes_on_after_its_end() -> None:
    """What a terminated program still says is not heard, and its own end changes nothing."""
    async with running() as engine, connected(engine) as peer:
        last_words = anyio.Event()

        @engine.inferlet("stubborn")
        async def stubborn(session: InferletSession, input: Any) -> object:
            with anyio.CancelScope(shield=True):
                await session.receive()
                await session.send("unheard")
                last_words.set()
            return "unheard"

        process_id = await peer.launch("stubborn")
        process = engine.find_process(process_id)
        assert process is not None
        assert repr(process) == f"<SimulatedProcess stubborn@0.1.0 {process_id}>"
        await anyio.wait_all_tasks_blocked()
        await peer.ask("terminate_process", process_id=process_id)
        process.signal("go on")
        await last_words.wait()
        await peer.ping()
        assert [item["event"] for item in peer.unread if isinstance(item, dict)] == ["error"]
        assert await process.wait() == ("error", "Signal")
        assert engine.returned_total == 0


async def test_several_waits_for_signals() -> None:
    """Each signal goes to one of the waits."""
    async with running() as engine, connected(engine) as peer:

        @engine.inferlet("pair")
        async def pair(session: InferletSession, input: Any) -> object:
            heard: list[str] = []

            async def hear() -> None:
                heard.append(await session.receive())

            async with anyio.create_task_group() as task_group:
                task_group.start_soon(hear)
                task_group.start_soon(hear)
                await anyio.wait_all_tasks_blocked()
                await session.send("both wait")
            return sorted(heard)

        process_id = await peer.launch("pair")
        await peer.event(process_id)
        for text in "ab":
            await peer.say("signal_process", process_id=process_id, message=text)
        assert await peer.event(process_id) == ("return", '["a", "b"]')


async def test_files_that_do_not_fit() -> None:
    """A file whose chunks are out of order is dropped without a word; it may be sent again."""
    async with running() as engine, connected(engine) as peer:
        process_id = await peer.launch("file-echo")
        await peer.event(process_id)
        chunk = {"process_id": process_id, "file_hash": "h", "total_chunks": 2, "chunk_data": b""}
        await peer.say("transfer_file", chunk_index=1, **chunk)
        await peer.say("transfer_file", chunk_index=0, **chunk)
        await peer.transfer(str(uuid4()), b"for nobody")
        await peer.transfer(process_id, b"good")
        assert await peer.file(process_id) == (b"good", None)


async def test_only_one_wait_for_a_file() -> None:
    """A second wait takes the place of the first, which gets nothing; a file that nobody awaits is lost."""
    async with running() as engine, connected(engine) as peer:

        @engine.inferlet("two")
        async def two(session: InferletSession, input: Any) -> object:
            async def first() -> None:
                await session.send(repr(await session.receive_file()))

            async with anyio.create_task_group() as task_group:
                task_group.start_soon(first)
                await anyio.wait_all_tasks_blocked()
                with anyio.move_on_after(0):
                    await session.receive_file()
                await session.send("open")
                data = await session.receive_file()
            return (data or b"").decode()

        process_id = await peer.launch("two")
        assert {await peer.event(process_id), await peer.event(process_id)} == {
            ("message", "None"),
            ("message", "open"),
        }
        await peer.transfer(process_id, b"abc")
        assert await peer.event(process_id) == ("return", "abc")
        process_id = await peer.launch("talk")
        await peer.transfer(process_id, b"lost")
        await peer.ping()
        assert engine.files_lost == 1


async def test_the_demo_programs() -> None:
    """What the served engine comes with does what it says."""
    async with running() as engine, connected(engine) as peer:
        events = await peer.events(await peer.launch("upper", '{"text": "a b"}'))
        assert events == [("stdout", "A "), ("stdout", "B "), ("return", "A B")]
        assert (await peer.events(await peer.launch("upper", "[]")))[-1] == ("return", "")
        events = await peer.events(await peer.launch("flood", '{"messages": 2, "lines": 1, "size": 3}'))
        assert events == [("message", "m0"), ("message", "m1"), ("stdout", "l0\n"), ("return", "xxx")]
        events = await peer.events(await peer.launch("sleeper", '{"secs": 0.002, "tick": 0.001}'))
        assert events[0] == ("message", "started")
        process_id = await peer.launch("file-echo", '{"n": 2}')
        for text in ("ready", "next 1"):
            assert await peer.event(process_id) == ("message", text)
            await peer.transfer(process_id, text.encode())
            assert await peer.file(process_id) == (text.encode(), None)
        assert await peer.event(process_id) == ("return", '{"sizes": [5, 6]}')
        events = await peer.events(await peer.launch("sleeper", '{"secs": 0.002, "tick": 0.001}'))
        assert events[-1] == ("return", '{"ticks": 2}')


# ------------------------------------------------------------------------------------------------------ generation 0.5


@pytest.mark.parametrize(
    ("target", "identity", "status", "body"),
    [
        ("/", b"a/b", 404, ""),
        ("/v1/ws/", b"a/b", 404, ""),
        ("/v1/ws", None, 401, "identity: missing `x-pie-identity` (edge must inject verified identity)"),
        ("/v1/ws", b"", 401, "identity: empty `x-pie-identity`"),
        ("/v1/ws", b"tenant/", 401, "identity: `x-pie-identity` has empty user component"),
        ("/v1/ws", b"\xff", 401, "identity: `x-pie-identity` is not valid UTF-8"),
        ("/v1/ws?x=1", b"user", 101, ""),
        ("/v1/ws", b"/user", 101, ""),
    ],
)
async def test_handshake(target: str, identity: bytes | None, status: int, body: str) -> None:
    """Path and identity are checked, with the texts of the real engine."""
    async with running() as engine, RawPeer(await engine.connectable.connect()) as peer:
        item = await peer.open(target, identity)
        expected = websocket.Upgraded() if status == 101 else websocket.UpgradeRefused(status, body)
        assert item == expected


async def test_handshake_of_04() -> None:
    """0.4 takes any path and asks for no identity."""
    async with running("v04") as engine, RawPeer(await engine.connectable.connect()) as peer:
        assert await peer.open("/anything", None) == websocket.Upgraded()


async def test_what_is_no_upgrade_is_dropped() -> None:
    """0.5 answers 400 and hangs up."""
    async with running() as engine, await engine.connectable.connect() as stream:
        await stream.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await stream.receive()).startswith(b"HTTP/1.1 400")
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()


async def test_nothing_is_said_about_a_bad_first_frame() -> None:
    """Before the first request the engine ignores what it cannot read, and ``cancel``."""
    async with running() as engine, RawPeer(await engine.connectable.connect()) as peer:
        await peer.open()
        await peer.send_payload(b"\xc1")
        await peer.send_text("cancel")
        await peer.send_text("garbage")
        await peer.ping()
        assert peer.unread in ([], [V05])
        await peer.send_text("[garbage")
        assert "bad client frame" in await peer.text()


async def test_an_oversized_first_message_is_the_last() -> None:
    """Then the engine says why, and closes with a close frame without a code."""
    async with running() as engine, RawPeer(await engine.connectable.connect()) as peer:
        await peer.open()
        await peer.send_payload(bytes(7_340_033))
        text, close = await peer.end()
        assert "request too large" in str(text)
        assert isinstance(close, websocket.CloseReceived)


async def test_answers_overtake_each_other() -> None:
    """Which is the same every time for the same seed, and can be switched off."""

    async def order(seed: int, permute: bool) -> list[int]:
        async with running(seed=seed) as engine, connected(engine) as peer:
            engine.faults.permute = permute
            with engine.faults.hold("query") as hold:
                for _ in range(5):
                    await peer.post("query", subject="model_status", record="")
                # Where everything shares one stream, the first answer that is kept back blocks the rest.
                await hold.wait_for(5 if permute else 1)
            items: list[Any] = [await peer.take(lambda item: isinstance(item, dict)) for _ in range(5)]
            return [item["corr_id"] for item in items]

    assert await order(1, False) == [2, 3, 4, 5, 6]
    orders = [await order(seed, True) for seed in (1, 1, 2, 3, 4)]
    assert orders[0] == orders[1]
    assert len({tuple(ids) for ids in orders}) > 1


async def test_a_message_that_is_too_large_loses_all_streams() -> None:
    """As on the real engine, all connections lose the sight of their processes, which run on."""
    async with running() as engine, connected(engine) as peer, connected(engine) as bystander:

        @engine.inferlet("huge")
        async def huge(session: InferletSession, input: Any) -> None:
            await session.send("x" * 9_000_000)
            await session.send_file(b"unseen")
            await anyio.sleep_forever()

        other = await bystander.launch("talk")
        await bystander.event(other)
        process_id = await peer.launch("huge")
        for each in (peer, bystander):
            assert json.loads(await each.text()) == {"type": "error", "message": "stream aborted"}
        await bystander.say("signal_process", process_id=other, message="unheard")
        await bystander.ping()
        assert set(engine.live_processes) == {process_id, other}
        await peer.ask("terminate_process", process_id=other)
        await bystander.ping()
        assert not [item for item in bystander.unread if isinstance(item, dict)]


async def test_the_verdict_of_an_upload_is_that_of_its_last_chunk() -> None:
    """0.5 loses what it says about earlier chunks."""
    async with running(max_upload_bytes=1_000_000) as engine, connected(engine) as peer:
        answer = await peer.upload(b"\0asm" + bytes(2_000_000), MANIFEST)
        assert answer == (False, "First chunk index must be 0")


async def test_files_interleave() -> None:
    """Chunks of two processes mix on 0.5 and never on 0.4."""
    for profile, mixed in (("v05", True), ("v04", False)):
        async with running(profile) as engine, connected(engine) as peer:

            @engine.inferlet("filer")
            async def filer(session: InferletSession, input: Any) -> None:
                await session.receive()
                await session.send_file(bytes([input]) * 2_621_440)

            ids = [await peer.launch("filer@0.1.0", str(number)) for number in (1, 2)]
            for process_id in ids:
                await peer.say("signal_process", process_id=process_id, message="go")
            seen: list[str] = []
            for _ in range(20):
                item: Any = await peer.take(lambda item: isinstance(item, dict) and item["type"] == "file")
                seen.append(item["process_id"])
                assert ("name" in item) is (profile == "v05")
            changes = sum(one != other for one, other in pairwise(seen))
            assert (changes > 1) is mixed


# ------------------------------------------------------------------------------------------------------ generation 0.4


@pytest.fixture(params=["v04", "v04-faithful"])
def v04(request: pytest.FixtureRequest) -> Any:
    return request.param


async def test_nobody_is_heard_before_login(v04: Any) -> None:
    """Before a login everything is dropped; afterwards a second login changes nothing."""
    async with running(v04) as engine, RawPeer(await engine.connectable.connect()) as peer:
        await peer.open()
        await peer.post("ping")
        ok, result = await peer.ask("auth_identify", username="alice")
        assert (ok, result) == (True, "Authenticated (Engine disabled authentication)")
        assert not peer.unread
        assert await peer.ask("auth_identify", username="bob") == (True, "Already authenticated")
        assert await peer.ask("auth_by_token", token="x") == (True, "Already authenticated")
        assert await peer.ask("auth_prove", signature="") == (False, "Already authenticated")
        await peer.launch("sleeper@0.1.0")
        assert [row.username for row in engine.live_processes.values()] == ["alice"]


async def test_login_errors(v04: Any) -> None:
    """A proof needs a challenge and proper encoding, and the challenge is used up by it."""
    async with (
        running(v04, users={"alice": []}) as engine,
        RawPeer(await engine.connectable.connect()) as peer,
    ):
        await peer.open()
        assert await peer.ask("auth_prove", signature="") == (False, "No pending authentication")
        assert await peer.ask("auth_identify", username="bob") == (False, "User 'bob' is not authorized")
        ok, challenge = await peer.ask("auth_identify", username="alice")
        assert ok
        assert len(challenge) == 64
        ok, text = await peer.ask("auth_prove", signature="no base64!")
        assert (ok, text[:28]) == (False, "Invalid signature encoding: ")
        assert await peer.ask("auth_prove", signature="") == (False, "No pending authentication")
        assert (await peer.ask("auth_identify", username="alice"))[1] != challenge
        assert await peer.ask("auth_prove", signature="AAAA") == (False, "Signature verification failed")


async def test_a_wrong_token_takes_its_time(v04: Any) -> None:
    """And holds up everything behind it."""
    async with running(v04, token="right", token_delay=0.01) as engine:
        async with RawPeer(await engine.connectable.connect()) as peer:
            await peer.open()
            wrong = await peer.post("auth_by_token", token="wrong")
            right = await peer.post("auth_by_token", token="right")
            assert await peer.answer(right) == (True, "Authenticated")
            assert await peer.answer(wrong) == (False, "Invalid token")
            assert engine.token == "right"


async def test_users_are_kept_apart(v04: Any) -> None:
    """Processes are listed, attached to and terminated by their own user only."""
    async with running(v04) as engine, connected(engine) as alice, connected(engine, "bob") as bob:
        process_id = await alice.launch("sleeper@0.1.0")
        assert await bob.ask("list_processes") == (True, "[]")
        for kind in ("attach_process", "terminate_process"):
            assert await bob.ask(kind, process_id=process_id) == (False, "Permission denied")
        assert await alice.ask("attach_process", process_id=process_id) == (False, "Process not found")


async def test_silence(v04: Any) -> None:
    """Unknown queries, text frames and what cannot be read get no answer, and answers come in order."""
    async with running(v04) as engine, connected(engine) as peer:
        await peer.post("query", subject="nope", record="")
        await peer.send_text('{"type":"ping","corr_id":1}')
        await peer.send_payload(b"\xc1")
        ids = [await peer.post("ping") for _ in range(20)]
        await peer.answer(ids[-1])
        assert [item["corr_id"] for item in peer.unread if isinstance(item, dict)] == ids[:-1]
        assert len(peer.unread) == 19


async def test_launch_errors_of_04(v04: Any) -> None:
    """Bare names are refused, and unknown programs are looked for in the registry."""
    async with running(v04) as engine, connected(engine) as peer:
        for kind in ("launch_process", "launch_processes", "run_processes", "launch_daemon"):
            fields = {"input": "", "inputs": [], "capture_outputs": True, "port": 1}
            ok, text = await peer.ask(kind, inferlet="echo", **fields)
            assert (ok, text) == (
                False,
                "Invalid program identifier 'echo': expected 'name@major.minor.patch'",
            )
            ok, text = await peer.ask(kind, inferlet="none@1.0.0", **fields)
            assert not ok
            assert text.startswith("Failed to download manifest: ")
            assert text.endswith("/none/1.0.0/manifest returned 404 Not Found")


async def test_upload_errors_of_04(v04: Any) -> None:
    """Each chunk of a failed upload is answered; no chunks at all are never answered; the hash is not looked at."""
    async with running(v04) as engine, connected(engine) as peer:
        chunk = {
            "corr_id": 50,
            "program_hash": "h",
            "manifest": MANIFEST,
            "force_overwrite": True,
            "chunk_data": WASM,
        }

        async def send(index: int, total: int) -> None:
            await peer.say("add_program", chunk_index=index, total_chunks=total, **chunk)

        await send(1, 3)
        assert await peer.answer(50) == (False, "First chunk index must be 0")
        await send(0, 3)
        await send(2, 3)
        assert await peer.answer(50) == (False, "Out-of-order chunk: expected 1, got 2")
        await send(0, 3)
        await send(1, 2)
        assert await peer.answer(50) == (False, "Chunk count mismatch: expected 3, got 2")
        await send(0, 0)
        await peer.ping()
        assert not peer.unread
        await send(0, 1)
        assert await peer.answer(50) == (False, "Chunk count mismatch: expected 0, got 1")
        await send(0, 1)
        assert await peer.answer(50) == (True, "Program installed successfully")
        assert engine.programs.installed["mine@1.2.3"].artifact == WASM
        assert (await peer.events(await peer.launch("mine@1.2.3", "[1]"))) == [("return", "[1]")]


@pytest.mark.parametrize("manifest", ["[package]\nname = 1\nversion = '1'\n", "package = 1", "x = 1"])
async def test_bad_manifests(v04: Any, manifest: str) -> None:
    """What is no manifest is refused."""
    async with running(v04) as engine, connected(engine) as peer:
        ok, text = await peer.upload(WASM, manifest)
        assert not ok
        assert text.startswith("Invalid manifest: Failed to parse manifest TOML: ")


async def test_run_processes_blocks_the_session(v04: Any) -> None:
    """Until all have ended nothing moves on this connection: no answers, no events."""
    async with running(v04) as engine, connected(engine) as peer, connected(engine) as other:
        talk = await peer.launch("talk@0.1.0")
        assert await peer.event(talk) == ("message", "ready")
        batch = await peer.post("run_processes", inferlet="sleeper@0.1.0", inputs=["{}", "{}"])
        await peer.say("signal_process", process_id=talk, message="quit")
        ping = await peer.post("ping")
        await engine.wait_live(3)
        rows = json.loads((await other.ask("list_processes"))[1])
        assert not peer.unread
        for row in rows:
            if row["program"] == "sleeper@0.1.0":
                await other.ask("terminate_process", process_id=row["id"])
        assert await peer.answer(batch) == (False, "Signal")
        assert await peer.answer(ping) == (True, "Pong")
        assert await peer.event(talk) == ("return", '{"count": 0}')


async def test_batches(v04: Any) -> None:
    """Results and ids come in the order of the inputs; budgets must match in number."""
    async with running(v04) as engine, connected(engine) as peer:
        ok, result = await peer.ask("run_processes", inferlet="echo@0.1.0", inputs=["1", "2"])
        assert (ok, json.loads(result)) == (True, ["1", "2"])
        ok, result = await peer.ask("run_processes", inferlet="fail@0.1.0", inputs=["1", "2"])
        assert (ok, result[:19]) == (False, "ValueError: because")
        batch = {"inferlet": "echo@0.1.0", "inputs": ["1", "2"], "capture_outputs": True}
        ok, result = await peer.ask("launch_processes", **batch, token_budgets=[3, None])
        for process_id, value in zip(json.loads(result), "12", strict=True):
            assert await peer.events(process_id) == [("return", value)]
        answer = await peer.ask("launch_processes", **batch, token_budgets=[3])
        assert answer == (False, "token_budgets length 1 does not match inputs length 2")
        ok, result = await peer.ask("launch_processes", **batch | {"capture_outputs": False})
        assert len(json.loads(result)) == 2
        await engine.wait_idle()
        await peer.ping()
        assert not peer.unread


async def test_daemons(v04: Any) -> None:
    """A daemon is said to be launched; there is nothing behind it."""
    async with running(v04) as engine, connected(engine) as peer:
        answer = await peer.ask("launch_daemon", port=1, inferlet="echo@0.1.0", input="")
        assert answer == (True, "server launched")


async def test_token_budgets_reach_the_program(v04: Any) -> None:
    """A program can see its budget."""
    async with running(v04) as engine, connected(engine) as peer:

        @engine.inferlet("budget")
        async def budget(session: InferletSession, input: Any) -> object:
            return session.token_budget

        fields = {"inferlet": "budget@0.1.0", "input": "", "capture_outputs": True, "token_budget": 5}
        _, process_id = await peer.ask("launch_process", **fields)
        assert await peer.events(process_id) == [("return", "5")]


async def test_detach_and_attach() -> None:
    """As documented: output is kept while nobody is attached, messages are not, and comes first after an attach."""
    async with running("v04") as engine:

        @engine.inferlet("chatty")
        async def chatty(session: InferletSession, input: Any) -> object:
            await session.receive()
            await engine.wait_connections(0)
            for number in range(4100):
                session.stdout(str(number))  # type: ignore[unused-awaitable]
            await session.send("lost")
            await session.send_file(b"lost")
            return await session.receive()

        async with connected(engine) as peer:
            process_id = await peer.launch("chatty@0.1.0")
            await peer.say("signal_process", process_id=process_id, message="go")
            await peer.ping()
        await engine.wait_connections(0)
        await anyio.wait_all_tasks_blocked()
        async with connected(engine) as peer:
            assert await peer.ask("attach_process", process_id=process_id) == (True, "Process attached")
            assert await peer.event(process_id) == ("stdout", "4")
            await peer.say("signal_process", process_id=process_id, message="done")
            events = await peer.events(process_id)
            assert len(events) == 4096
            assert events[-2:] == [("stdout", "4099"), ("return", "done")]


async def test_a_process_that_ends_unattended_is_gone() -> None:
    """Its result is lost, as documented."""
    async with running("v04") as engine:
        async with connected(engine) as peer:
            process_id = await peer.launch("sleeper@0.1.0", '{"secs": 0.001, "tick": 0.001}')
        await engine.wait_idle()
        async with connected(engine) as peer:
            assert await peer.ask("attach_process", process_id=process_id) == (False, "Process not found")


async def test_the_dead_session_keeps_its_processes() -> None:
    """As it is: they run on, and nobody can attach."""
    async with running("v04-faithful") as engine:
        async with connected(engine) as peer:
            process_id = await peer.launch("talk@0.1.0")
        await engine.wait_connections(0)
        async with connected(engine) as peer:
            assert await peer.ask("attach_process", process_id=process_id) == (False, "Process not found")
            assert await peer.ask("terminate_process", process_id=process_id) == (True, "Process terminated")


async def test_close_frames() -> None:
    """The documented 0.4 answers a close; the actual one never does, and keeps TCP, deaf."""
    async with running("v04") as engine, connected(engine) as peer:
        await peer.send_close(1000)
        assert await peer.end() == [websocket.CloseReceived(1000, "")]
    async with running("v04-faithful") as engine, connected(engine) as peer:
        process_id = await peer.launch("talk@0.1.0")
        await peer.send_close(1000)
        await peer.stream.send(b"\x82\x80\x00\x00\x00\x00")
        await anyio.wait_all_tasks_blocked()
        assert engine.connections == 1
        assert set(engine.live_processes) == {process_id}


async def test_a_broken_client_is_no_longer_heard(v04: Any) -> None:
    """0.4 keeps the connection and goes on sending, but reads nothing more."""
    async with running(v04) as engine, connected(engine) as peer:
        process_id = await peer.launch("sleeper@0.1.0", '{"secs": 0.002, "tick": 0.001}')
        await peer.stream.send(b"\xf0\x80\x00\x00\x00\x00")
        await peer.post("ping")
        assert (await peer.events(process_id))[-1] == ("return", '{"ticks": 2}')
        assert not peer.unread


async def test_a_broken_client_is_dropped_by_05() -> None:
    """Without a close frame."""
    async with running() as engine, connected(engine) as peer:
        await peer.stream.send(b"\xf0\x80\x00\x00\x00\x00")
        assert await peer.end() in ([], [V05])


# -------------------------------------------------------------------------------------------------------- tool calls


async def test_tools(v04: Any) -> None:
    """A program calls a tool through its client, which may succeed or fail in several ways."""
    async with running(v04) as engine, connected(engine) as peer:

        @engine.inferlet("user")
        async def user(session: InferletSession, input: Any) -> object:
            try:
                return await session.call_mcp("calc", "tools/list")
            except ToolError as exc:
                return [exc.code, str(exc), exc.data]

        async def call(ok: bool, result: str) -> Any:
            process_id = await peer.launch("user@0.1.0")
            request: Any = await peer.take(
                lambda item: isinstance(item, dict) and item["type"] == "mcp_request"
            )
            assert request["process_id"] == process_id
            assert (request["server_name"], request["method"], request["params"]) == (
                "calc",
                "tools/list",
                "{}",
            )
            await peer.say("mcp_response", corr_id=9999, ok=True, result="null")
            await peer.say("mcp_response", corr_id=request["corr_id"], ok=ok, result=result)
            await peer.say("mcp_response", corr_id=request["corr_id"], ok=ok, result="late")
            return json.loads((await peer.events(process_id))[-1][1])

        unregistered = await peer.events(await peer.launch("user@0.1.0"))
        assert json.loads(unregistered[-1][1]) == [-1, "MCP server 'calc' not registered", None]
        answer = await peer.ask("register_mcp_server", name="calc", transport="stdio")
        assert answer == (True, "MCP server registered")
        assert await call(True, '{"tools": []}') == {"tools": []}
        assert await call(False, '{"code": -5, "message": "no", "data": [1]}') == [-5, "no", [1]]
        assert await call(False, '{"code": "x"}') == [-32000, '{"code": "x"}', None]
        assert await call(False, "plain") == [-32000, "plain", None]
        assert await call(False, "[1]") == [-32000, "[1]", None]


async def test_tools_need_a_client_of_04() -> None:
    """0.5 has no tool calls, and without a client there is nobody to call."""
    failures: list[str] = []
    for profile, capture in (("v05", True), ("v04", False)):
        async with running(profile) as engine, connected(engine) as peer:

            @engine.inferlet("user")
            async def user(session: InferletSession, input: Any) -> None:
                try:
                    await session.call_mcp("calc", "tools/list")
                except RuntimeError as exc:
                    failures.append(str(exc))

            await peer.launch("user@0.1.0", capture=capture)
            await engine.wait_started()
            await engine.wait_idle()
    assert failures == ["generation 0.5 has no tool calls", "no client is attached to this process"]


async def test_attach_of_an_uncaptured_process(v04: Any) -> None:
    """Any number of spellings name a process; its output stays lost, its messages flow."""
    async with running(v04) as engine, connected(engine) as peer:
        assert await peer.launch("talk@0.1.0", capture=False) == ""
        (process_id,) = engine.live_processes
        await anyio.wait_all_tasks_blocked()
        assert await peer.ask("attach_process", process_id="{" + process_id.upper() + "}") == (
            True,
            "Process attached",
        )
        await peer.say("signal_process", process_id=f"urn:uuid:{process_id}", message="hi")
        assert await peer.event(process_id) == ("message", "HI")
        assert await peer.ask("attach_process", process_id=str(uuid4())) == (False, "Process not found")


# ------------------------------------------------------------------------------------------------------------- writer


class UnwritableStream(WrappedStream):
    """Nothing ever arrives, and nothing can be sent."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.sleep_forever()
        raise AssertionError

    async def send(self, item: bytes) -> None:
        raise anyio.BrokenResourceError


async def test_a_stream_that_breaks_while_writing() -> None:
    """The writer may be the first to notice that the client is gone."""
    async with running() as engine, await engine.connectable.connect() as stream:
        session = Session(engine, 99)
        session.protocol.send_bytes(b"x")
        session.wake.set()
        await serve_connection(session, UnwritableStream(stream))
        assert session.ended
