# SPDX-License-Identifier: Apache-2.0
"""Where an engine gives no answer: nothing here waits for ever, one test for each situation and generation.

Either the call does not wait, or it is refused before it is sent, or it can be cancelled and the connection goes on.
Time is virtual: "for ever" is a thousand seconds that pass at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from tests.api.conftest import add_programs

from pie_anyio import (
    AuthenticationError,
    ConnectError,
    ConnectionLost,
    EngineError,
    Event,
    InvalidRequest,
    Keepalive,
    PieClient,
    UnsupportedByEngine,
)
from pie_anyio.testing import SimulatedEngine, virtual_backend

FOR_EVER = 1000.0
CODE = b"\0asm, or near enough"
MANIFEST = '[package]\nname = "up"\nversion = "0.1.0"\n'


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_backend(request.param)


Call = Callable[[PieClient], Awaitable[Any]]


async def _launch(client: PieClient) -> None:
    await client.launch_process("echo@0.1.0")


async def _attach(client: PieClient) -> None:
    await client.attach_process("0b7c9a52-6d0e-4b39-8f0e-2f1f3c1f7a11")


ANSWERED: dict[str, Call] = {
    "ping": lambda client: client.ping(),
    "query": lambda client: client.query("model_status", ""),
    "list_processes": lambda client: client.list_processes(),
    "check_program": lambda client: client.check_program("echo@0.1.0"),
    "add_program": lambda client: client.install_program_bytes(CODE, MANIFEST),
    "launch_process": _launch,
    "attach_process": _attach,
    "terminate_process": lambda client: client.terminate_process("0b7c9a52-6d0e-4b39-8f0e-2f1f3c1f7a11"),
    "auth_identify": lambda client: client.authenticate("alice"),
}


@pytest.mark.parametrize("fault", ["ignored", "unanswered"])
@pytest.mark.parametrize("kind", ANSWERED)
async def test_a_request_that_is_never_answered(engine: SimulatedEngine, kind: str, fault: str) -> None:
    """Undecodable, lost in a session that is none, or blocked: the call can be cancelled, and that is all."""
    with anyio.fail_after(FOR_EVER):
        async with PieClient(engine.connectable, terminate_grace=1) as client:
            if kind != "auth_identify":
                await client.ping()
            getattr(engine.faults, fault).add(kind)
            with pytest.raises(TimeoutError):
                with anyio.fail_after(100):
                    await ANSWERED[kind](client)
            getattr(engine.faults, fault).clear()
            if not (kind == "auth_identify" and fault == "unanswered"):
                await client.ping()
            result = await client.run_process("echo@0.1.0", [1])
            assert result.value == [1]


@pytest.mark.parametrize("captured", [True, False])
async def test_reading_what_was_left_and_never_ended(engine: SimulatedEngine, captured: bool) -> None:
    """There is nothing more to read of a process whose owner has left, whether or not it is seen to end."""
    with anyio.fail_after(FOR_EVER):
        async with PieClient(engine.connectable, terminate_grace=1) as client:
            engine.faults.ignored.add("terminate_process")
            async with client.launch_process("sleep@0.1.0", capture_outputs=captured) as process:
                pass
            assert client.receipt.unconfirmed == (process.process_id,)
            with anyio.fail_after(1), pytest.raises(anyio.EndOfStream):
                await process.recv()


async def test_requests_before_authentication_wait_for_it(engine: SimulatedEngine) -> None:
    """0.4 drops them in silence, so the client logs in first, by itself and once, however many come at once."""
    with anyio.fail_after(FOR_EVER):
        async with PieClient(engine.connectable) as client:
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(client.ping)
            assert engine.received_counts["auth_identify"] == 1
            assert engine.received_counts["ping"] == 5
            assert next(iter(engine.received)).request.type == "auth_identify"


async def test_a_login_that_is_never_answered(engine: SimulatedEngine) -> None:
    """The engine's own failure during a login, or a session that it never registered."""
    engine.faults.ignored.add("auth_identify")
    with anyio.fail_after(FOR_EVER):
        with pytest.raises(ConnectError, match="did not answer the login within 10 s"):
            async with PieClient(engine.connectable, username="alice"):
                pytest.fail("it logged in")


async def test_a_token_is_not_sent_into_silence(engine: SimulatedEngine) -> None:
    """An engine that does not answer the question for its generation does not get the token."""
    engine.faults.ignored.add("auth_prove")
    with anyio.fail_after(FOR_EVER):
        with pytest.raises(AuthenticationError, match="the token was not sent"):
            async with PieClient(engine.connectable, token="secret"):
                pytest.fail("it logged in")
    assert engine.received_counts["auth_by_token"] == 0


async def test_messages_of_another_generation_are_not_sent(engine: SimulatedEngine, profile: Any) -> None:
    """0.5 answers what it does not know with a text frame that names no request; so nothing of it is sent."""
    with anyio.fail_after(FOR_EVER):
        async with PieClient(engine.connectable) as client:
            if profile == "v05":
                await client.ping()
                with pytest.raises(UnsupportedByEngine, match=r"0\.4"):
                    await client.launch_daemon("echo@0.1.0", 8000)
                with pytest.raises(UnsupportedByEngine, match=r"0\.4"):
                    await client.auth_by_token("t")
                with pytest.raises(UnsupportedByEngine, match=r"0\.4"):
                    await client.launch_process("echo@0.1.0", token_budget=5)
                assert set(engine.received_counts) == {"auth_identify", "ping"}
            else:
                await client.launch_daemon("echo@0.1.0", 8000)
                process = await client.launch_process("echo@0.1.0", 1, token_budget=5)
                assert await process.result() == 1


async def test_an_error_frame_of_the_engine_changes_nothing(engine: SimulatedEngine, caplog: Any) -> None:
    """A text error that names no request is on record in the log."""
    with anyio.fail_after(FOR_EVER):
        async with PieClient(engine.connectable) as client:
            await client.ping()
            engine.faults.send_text('{"type":"error","message":"bad client frame: who knows"}')
            await client.ping()
    assert "bad client frame: who knows" in caplog.text


async def test_text_frames_are_never_sent(engine: SimulatedEngine) -> None:
    """0.4 ignores them without a word; all that a client sends is binary."""
    seen: list[str] = []
    with anyio.fail_after(FOR_EVER):
        async with PieClient(engine.connectable) as client:
            for session in engine.sessions:
                session._receive_text = seen.append  # type: ignore[method-assign,assignment]
            await client.run_process("echo@0.1.0", 1)
            process = await client.launch_process("talk@0.1.0", 2)
            await process.signal("quit")
            await process.transfer_file(b"x")
            await process.wait()
    assert not seen


async def test_query_of_an_unknown_subject(engine: SimulatedEngine, profile: Any) -> None:
    """0.4 never answers it: refused here. 0.5 answers no: passed on, as the official client does."""
    with anyio.fail_after(FOR_EVER):
        async with PieClient(engine.connectable) as client:
            if profile == "v04":
                with pytest.raises(InvalidRequest, match="'model_status' only"):
                    await client.query("weather", "")
                assert engine.received_counts["query"] == 0
            else:
                ok, text = await client.query("weather", "")
                assert not ok
                assert "weather" in text


@pytest.mark.parametrize("process_id", [None, "0b7c9a52-6d0e-4b39-8f0e-2f1f3c1f7a11"])
async def test_signals_and_files_do_not_wait(engine: SimulatedEngine, process_id: str | None) -> None:
    """They are never answered, not even when they are wrong."""
    with anyio.fail_after(FOR_EVER):
        async with PieClient(engine.connectable) as client:
            process = await client.launch_process("sleep@0.1.0")
            await client.signal_process(process_id or process.process_id, "hello")
            await process.signal("hello")
            await process.transfer_file(bytes(600_000))
            await client.ping()
            await engine.wait_received("signal_process", 2)
            await engine.wait_received("transfer_file", 3)


async def test_an_upload_that_is_refused_early(engine: SimulatedEngine) -> None:
    """0.4 refuses the first chunk that it does not want, and each one after it; 0.5 the last one only."""
    engine.max_upload_bytes = 300_000
    with anyio.fail_after(FOR_EVER):
        async with PieClient(engine.connectable) as client:
            with pytest.raises(EngineError, match="max_upload_mb"):
                await client.install_program_bytes(bytes(4 * 262_144), MANIFEST)
            await client.ping()
            await client.install_program_bytes(CODE, MANIFEST)


async def test_an_upload_without_chunks_does_not_exist(engine: SimulatedEngine) -> None:
    """0.4 never answers an upload of no chunks; nothing is one empty chunk, and answered."""
    with anyio.fail_after(FOR_EVER):
        async with PieClient(engine.connectable) as client:
            with pytest.raises(EngineError):
                await client.install_program_bytes(b"", MANIFEST)
            (chunk,) = [entry.request for entry in engine.received if entry.request.type == "add_program"]
            assert (chunk.chunk_index, chunk.total_chunks) == (0, 1)  # type: ignore[attr-defined]
            process = await client.launch_process("take@0.1.0")
            assert (await process.recv())[0] is Event.Message
            await process.transfer_file(b"")
            assert await process.result() == 0


async def test_a_blocked_session_is_late_and_not_lost(engine: SimulatedEngine) -> None:
    """Behind a slow handler everything waits; it all comes when that is through."""
    with anyio.fail_after(FOR_EVER):
        async with PieClient(engine.connectable, keepalive=Keepalive(interval=5, timeout=5)) as client:
            process = await client.launch_process("talk@0.1.0", "late")
            with engine.faults.hold("check_program") as hold:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client.check_program, "echo@0.1.0")
                    await hold.wait_for(1)
                    tasks.start_soon(client.ping)
                    # Pings of the WebSocket are answered all the same, so this is not taken for a dead engine.
                    await anyio.sleep(60)
                    await process.signal("quit")
                    hold.release()
            assert await process.result() == "late"


@pytest.mark.parametrize("waits_for", ["ping", "recv", "result", "wait", "launch", "upload"])
async def test_a_zombie_session_is_found_out(engine: SimulatedEngine, waits_for: str) -> None:
    """A socket behind which nobody reads: only silence tells, and it ends every wait."""
    keepalive = Keepalive(interval=10, timeout=10)
    with anyio.fail_after(FOR_EVER):
        async with PieClient(engine.connectable, keepalive=keepalive) as client:
            process = await client.launch_process("sleep@0.1.0")
            engine.faults.half_open = True
            calls: dict[str, Call] = {
                "ping": lambda client: client.ping(),
                "recv": lambda _client: process.recv(),
                "result": lambda _client: process.result(),
                "wait": lambda _client: process.wait(),
                "launch": _launch,
                "upload": lambda client: client.install_program_bytes(bytes(1_000_000), MANIFEST),
            }
            began = anyio.current_time()
            with pytest.raises(ConnectionLost, match="silent for"):
                await calls[waits_for](client)
            assert anyio.current_time() - began <= 30


async def test_a_handshake_that_is_never_answered(engine: SimulatedEngine) -> None:
    """0.4 lets one silent connection hold up all others: connecting has a limit, and it is kept to the second."""
    engine.faults.stall_handshakes = True
    with anyio.fail_after(FOR_EVER):
        began = anyio.current_time()
        with pytest.raises(ConnectError, match="did not answer the WebSocket handshake within 7 s"):
            async with PieClient(engine.connectable, connect_timeout=7):
                pytest.fail("it connected")
        assert anyio.current_time() - began == pytest.approx(7)


async def test_a_connection_that_is_never_made() -> None:
    """Nor is one waited for that the network does not make."""

    class Nowhere(anyio.abc.ByteStreamConnectable):
        async def connect(self) -> Any:
            await anyio.sleep_forever()

    with anyio.fail_after(FOR_EVER):
        began = anyio.current_time()
        with pytest.raises(ConnectError, match=r"within 3 s.*firewall"):
            async with PieClient(Nowhere(), connect_timeout=3):
                pytest.fail("it connected")
        assert anyio.current_time() - began == pytest.approx(3)


async def test_a_process_whose_stream_was_aborted(anyio_backend: Any) -> None:
    """0.5 sends nothing of it any more, and it ends unseen: the client asks, and says that it is lost."""
    with anyio.fail_after(FOR_EVER):
        async with SimulatedEngine("v05", port=None) as engine:
            add_programs(engine)
            async with PieClient(engine.connectable) as client, PieClient(engine.connectable) as other:
                process = await client.launch_process("sleep@0.1.0")
                engine.faults.abort_streams()
                await other.terminate_process(process.process_id)
                await process.wait()
                assert process.ended
                assert client.receipt.lost == 1
