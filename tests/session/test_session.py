# SPDX-License-Identifier: Apache-2.0
"""The life of a session in virtual time: opening, closing, keepalive, loss, and what runs come to."""

from __future__ import annotations

import gc
from typing import Any

import anyio
import pytest
from tests.api.conftest import add_programs

from pie_anyio import (
    ConnectionClosed,
    ConnectionLost,
    EngineError,
    Event,
    Generation,
    Keepalive,
    PieClient,
    Process,
    ProcessLost,
    ProcessTerminated,
    Receipt,
    RemoteProtocolError,
    SessionError,
)
from pie_anyio._flow.wake import Wake
from pie_anyio._session.session import _several_failures
from pie_anyio.testing import SimulatedEngine, virtual_backend


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_backend(request.param)


def engine_of(profile: Any) -> SimulatedEngine:
    engine = SimulatedEngine(profile, port=None)
    add_programs(engine)
    return engine


PROFILES = pytest.mark.parametrize("profile", ["v04", "v04-faithful", "v05"])

# ------------------------------------------------------------------------------------------------------------ closing


@PROFILES
async def test_closing_is_bounded_by_close_timeout(profile: Any) -> None:
    """An engine that vanished answers no close frame."""
    async with engine_of(profile) as engine:
        async with PieClient(engine.connectable, close_timeout=3, keepalive=None) as client:
            await client.ping()
            engine.faults.half_open = True
            began = anyio.current_time()
        assert anyio.current_time() - began == pytest.approx(3)


async def test_closing_does_not_wait_for_an_engine_that_answers() -> None:
    """0.5 drops the connection at once."""
    async with engine_of("v05") as engine:
        async with PieClient(engine.connectable, close_timeout=30) as client:
            await client.ping()
            began = anyio.current_time()
        assert anyio.current_time() - began < 1


@PROFILES
async def test_unscoped_processes_at_the_end(profile: Any) -> None:
    """0.4 lets them run on, 0.5 ends them with the connection; either way the receipt says so and nobody hangs."""
    async with engine_of(profile) as engine:
        async with PieClient(engine.connectable) as client:
            process = await client.launch_process("sleep@0.1.0")
            assert client.receipt.running == 1
        receipt = client.receipt
        assert receipt.started == 1
        assert (receipt.detached, receipt.lost) == ((0, 1) if profile == "v05" else (1, 0))
        assert receipt.running == 0
        assert (len(engine.live_processes) == 0) == (profile == "v05")
        with anyio.fail_after(1):
            for call in (process.recv, process.wait, process.result, process.terminate):
                with pytest.raises(ConnectionLost):
                    await call()
            with pytest.raises(ConnectionLost):
                _ = process.return_value
            await process.aclose()


@PROFILES
async def test_a_detached_process_is_left_alone(profile: Any) -> None:
    """Leaving its block does not end it."""
    async with engine_of(profile) as engine:
        async with PieClient(engine.connectable) as client:
            async with client.launch_process("sleep@0.1.0") as process:
                assert process.detach() == process.process_id
            await client.ping()
            assert process.process_id in engine.live_processes
            assert client.receipt.detached == 1
        assert client.receipt.detached == 1


@PROFILES
async def test_a_cancelled_block_still_ends_its_processes(profile: Any) -> None:
    """A scope around the whole client: reader and writer live until the processes are confirmed."""
    async with engine_of(profile) as engine:
        with anyio.move_on_after(5) as scope:
            async with PieClient(engine.connectable) as client, client.launch_process("sleep@0.1.0"):
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert not engine.live_processes
        assert client.receipt.terminated == 1
        assert client.receipt.clean


async def test_leaving_takes_no_longer_than_it_may() -> None:
    """Grace for what must be confirmed, then the time for closing, also when cancelled."""
    async with engine_of("v05") as engine:
        engine.faults.ignored.add("terminate_process")
        with anyio.move_on_after(5):
            async with PieClient(engine.connectable, terminate_grace=4, close_timeout=1) as client:
                async with client.launch_process("sleep@0.1.0") as process:
                    await anyio.sleep_forever()
        assert anyio.current_time() <= 5 + 4 + 4 + 1
        assert client.receipt.unconfirmed == (process.process_id,)
        assert not client.receipt.clean
        assert client.receipt.started == 1


async def test_a_launch_that_is_never_answered_is_on_record() -> None:
    """Its id never became known."""
    async with engine_of("v05") as engine:
        async with PieClient(engine.connectable, terminate_grace=1) as client:
            await client.ping()
            engine.faults.unanswered.add("launch_process")
            with anyio.move_on_after(1):
                await client.launch_process("sleep@0.1.0")
        assert client.receipt.unconfirmed == ("?",)
        assert client.receipt.started == 1


@PROFILES
async def test_an_error_of_the_body_passes_as_itself(profile: Any) -> None:
    """The same object; so does a group that the body raised, which is not taken apart."""
    async with engine_of(profile) as engine:
        for error in (ValueError("mine"), ExceptionGroup("mine", [ValueError("a"), KeyError("b")])):
            with pytest.raises(type(error)) as caught:
                async with PieClient(engine.connectable) as client:
                    await client.ping()
                    raise error
            assert caught.value is error


async def test_a_loss_that_nobody_waited_for_raises_nothing() -> None:
    """Leaving the block of a connection that is gone is no error by itself."""
    async with engine_of("v05") as engine:
        async with PieClient(engine.connectable) as client:
            await client.ping()
            engine.faults.drop_connections()
            await anyio.sleep(1)
        with pytest.raises(ConnectionLost):
            await client.ping()


async def test_a_client_outside_of_its_block() -> None:
    """Says where it may be used."""
    async with engine_of("v05") as engine:
        client = PieClient(engine.connectable)
        with pytest.raises(ConnectionClosed, match="inside 'async with"):
            await client.ping()
        assert client.generation is None
        assert client.capabilities is None
        async with client:
            await client.ping()
        with pytest.raises(ConnectionClosed) as caught:
            await client.ping()
        assert caught.value.issued is False


async def test_calls_while_the_block_is_being_left() -> None:
    """A task that outlives the block is told that the connection is being closed."""
    async with engine_of("v04-faithful") as engine:
        async with anyio.create_task_group() as tasks:
            async with PieClient(engine.connectable, close_timeout=10) as client:
                await client.ping()

                async def later() -> None:
                    await anyio.sleep(5)
                    with pytest.raises(ConnectionClosed, match="being closed"):
                        await client.ping()

                tasks.start_soon(later)


def test_several_failures_are_one_error() -> None:
    """Failures of our own tasks, which are bugs, come as one exception."""
    error = _several_failures(ExceptionGroup("x", [ValueError(), KeyError()]))
    assert isinstance(error, SessionError)
    assert "2 parts" in str(error)


# ---------------------------------------------------------------------------------------------------------- keepalive


async def test_an_engine_that_answers_pings_lives() -> None:
    """However long it has nothing to say."""
    async with engine_of("v05") as engine:
        async with PieClient(engine.connectable, keepalive=Keepalive(interval=5, timeout=5)) as client:
            await anyio.sleep(500)
            await client.ping()


async def test_a_silent_engine_is_given_up() -> None:
    """After the interval and the time for the answer."""
    async with engine_of("v05") as engine:
        async with PieClient(engine.connectable, keepalive=Keepalive(interval=20, timeout=7)) as client:
            await client.ping()
            began = anyio.current_time()
            engine.faults.half_open = True
            with pytest.raises(ConnectionLost, match="silent for 27 s"):
                await client.ping()
            assert anyio.current_time() - began == pytest.approx(27)


async def test_any_byte_counts_as_life() -> None:
    """A busy engine may be late with its pong."""
    async with engine_of("v05") as engine:

        @engine.inferlet("tick@0.1.0")
        async def tick(session: Any, input: Any) -> str:
            for _ in range(50):
                await anyio.sleep(4)
                await session.stdout("tick")
            return "done"

        async with PieClient(engine.connectable, keepalive=Keepalive(interval=5, timeout=1)) as client:
            pings = 0

            def count(payload: bytes = b"") -> None:
                nonlocal pings
                pings += 1

            client.session.link.protocol.ping = count  # type: ignore[method-assign]
            assert (await client.run_process("tick@0.1.0")).value == "done"
            assert pings == 0


async def test_keepalive_can_be_switched_off() -> None:
    """Then silence means nothing."""
    async with engine_of("v05") as engine:
        async with PieClient(engine.connectable, keepalive=None) as client:
            await client.ping()
            engine.faults.half_open = True
            with anyio.move_on_after(10_000) as scope:
                await client.ping()
            assert scope.cancelled_caught


# --------------------------------------------------------------------------------------------------------------- loss


@PROFILES
async def test_loss_says_whether_the_engine_may_have_acted(profile: Any) -> None:
    """True once it was handed over, False for what never left."""
    async with engine_of(profile) as engine:
        async with PieClient(engine.connectable) as client:
            await client.ping()
            engine.faults.drop_on.add("launch_process")
            with pytest.raises(ConnectionLost) as caught:
                await client.launch_process("echo@0.1.0")
            assert caught.value.issued is True
            with pytest.raises(ConnectionLost) as caught:
                await client.launch_process("echo@0.1.0")
            assert caught.value.issued is False
        assert client.receipt.lost == 1


async def test_a_request_that_is_still_queued_is_safe_to_repeat() -> None:
    """The writer is stuck behind a peer that does not read."""
    async with engine_of("v05") as engine:
        async with PieClient(engine.connectable) as client:
            await client.ping()
            link = client.session.link
            errors: list[ConnectionLost] = []

            async def ask() -> None:
                try:
                    await client.ping()
                except ConnectionLost as exc:
                    errors.append(exc)

            async with anyio.create_task_group() as tasks:
                link.wake = Wake()  # the writer does not listen to this one
                tasks.start_soon(ask)
                await anyio.sleep(1)
                link.fail(ConnectionLost("for a test"))
            assert [error.issued for error in errors] == [False]
            assert "may be repeated" in str(errors[0])


async def test_a_close_frame_of_the_engine() -> None:
    """Its code and reason reach whoever waits."""
    async with engine_of("v05") as engine:
        async with PieClient(engine.connectable) as client:
            process = await client.launch_process("sleep@0.1.0")
            engine.faults.send_close(1012, "restarting")
            with pytest.raises(ConnectionLost, match=r"1012.*restarting") as caught:
                await process.recv()
            assert isinstance(caught.value.__cause__, ConnectionClosed)
            assert caught.value.__cause__.code == 1012


async def test_a_damaged_answer() -> None:
    """Fails the request that it was for, and only that."""
    async with engine_of("v05") as engine:
        async with PieClient(engine.connectable) as client:
            await client.ping()
            engine.faults.rewrite = lambda m: {**m, "result": 5} if m.get("type") == "response" else m
            with pytest.raises(RemoteProtocolError, match="damaged"):
                await client.ping()
            with pytest.raises(RemoteProtocolError, match="damaged"):
                await client.launch_process("echo@0.1.0")
            engine.faults.rewrite = None
            await client.ping()


async def test_a_damaged_end_is_lost_not_failed() -> None:
    """The process ended, and nobody can say how."""
    async with engine_of("v05") as engine:
        async with PieClient(engine.connectable) as client:
            engine.faults.rewrite = lambda m: {**m, "value": 5} if m.get("event") == "return" else m
            for capture in (True, False):
                process = await client.launch_process("echo@0.1.0", 1, capture)
                with pytest.raises(ProcessLost, match="damaged"):
                    await process.recv()
                with pytest.raises(ProcessLost):
                    await process.result()
                await process.wait()


# --------------------------------------------------------------------------------------------------------- generation


@PROFILES
async def test_generation_and_capabilities(profile: Any) -> None:
    """Unknown before the first answer, then as the engine is."""
    async with engine_of(profile) as engine:
        async with PieClient(engine.connectable) as client:
            assert client.generation is None
            assert client.session.is_connected
            await client.ping()
            assert client.generation is (Generation.V05 if profile == "v05" else Generation.V04)
            assert client.capabilities is not None
            assert client.capabilities.survives_disconnect == (profile != "v05")


# ---------------------------------------------------------------------------------------------------------- reconcile


async def _aborted(client: PieClient, engine: SimulatedEngine) -> Process:
    process = await client.launch_process("sleep@0.1.0")
    engine.faults.abort_streams()
    return process


async def test_a_process_that_is_still_listed_is_not_given_up() -> None:
    """It is looked at again and again, and its end is noticed."""
    async with engine_of("v05") as engine, PieClient(engine.connectable) as other:
        async with PieClient(engine.connectable) as client:
            process = await _aborted(client, engine)
            await anyio.sleep(30)
            assert not process.ended
            assert engine.received_counts["list_processes"] >= 25
            engine.faults.abort_streams()  # a second one while the first is looked into
            await other.terminate_process(process.process_id)
            with anyio.fail_after(5):
                with pytest.raises(ProcessLost):
                    await process.recv()
            asked = engine.received_counts["list_processes"]
            await anyio.sleep(10)
            assert engine.received_counts["list_processes"] == asked


@pytest.mark.parametrize("answer", [(False, "no"), (True, "nonsense"), (True, "{}"), (True, "[1, {}]")])
async def test_an_answer_that_says_nothing_decides_nothing(answer: tuple[bool, str]) -> None:
    """Only a list that does not have the process speaks against it."""
    async with engine_of("v05") as engine:
        async with PieClient(engine.connectable) as client:
            await client.ping()
            engine.faults.answers["list_processes"] = answer
            process = await _aborted(client, engine)
            await anyio.sleep(10)
            assert process.ended == (answer[1] == "[1, {}]")
            engine.faults.answers.clear()


async def test_absent_once_is_not_lost() -> None:
    """0.5 gives no order between answers and events: its end may still be under way."""
    async with engine_of("v05") as engine:
        async with PieClient(engine.connectable) as client:
            process = await client.launch_process("talk@0.1.0", "fine")
            engine.faults.answers["list_processes"] = (True, "[]")
            engine.faults.send_text('{"type":"error","message":"stream aborted"}')
            await engine.wait_received("list_processes", 1)
            await process.signal("quit")
            assert await process.result() == "fine"
            await anyio.sleep(5)
        assert client.receipt.lost == 0


async def test_an_aborted_process_that_is_ended_by_its_block() -> None:
    """No event confirms that; the list does."""
    async with engine_of("v05") as engine:
        async with PieClient(engine.connectable, terminate_grace=10) as client:
            async with client.launch_process("sleep@0.1.0"):
                engine.faults.abort_streams()
                await anyio.sleep(1)
            assert client.receipt.terminated == 1
            assert client.receipt.clean


async def test_the_connection_may_go_while_it_is_looked_into() -> None:
    """Which settles the matter."""
    async with engine_of("v05") as engine:
        async with PieClient(engine.connectable) as client:
            process = await _aborted(client, engine)
            engine.faults.drop_on.add("list_processes")
            with pytest.raises(ConnectionLost):
                await process.wait()
            await anyio.sleep(5)


async def test_nothing_to_look_into() -> None:
    """An aborted stream of a connection without processes."""
    async with engine_of("v05") as engine:
        async with PieClient(engine.connectable) as client:
            await client.ping()
            engine.faults.send_text('{"type":"error","message":"stream aborted"}')
            engine.faults.send_text('{"type":"error","message":"admission rejected: full"}')
            await client.ping()
            assert engine.received_counts["list_processes"] == 0


# --------------------------------------------------------------------------------------------------------- confirming


@PROFILES
async def test_a_block_ends_its_process(profile: Any) -> None:
    """On both ways out, and the engine has confirmed it by then."""
    async with engine_of(profile) as engine:
        async with PieClient(engine.connectable) as client:
            async with client.launch_process("sleep@0.1.0") as process:
                pass
            assert not engine.live_processes
            with pytest.raises(ValueError, match="mine"):
                async with client.launch_process("sleep@0.1.0"):
                    raise ValueError("mine")
            assert not engine.live_processes
            assert client.receipt.terminated == 2
            with pytest.raises(ProcessTerminated) as caught:
                await process.result()
            assert caught.value.by_us


async def test_what_the_engine_never_confirms_is_listed() -> None:
    """After the grace; and taken off the list when it is confirmed after all."""
    async with engine_of("v05") as engine, PieClient(engine.connectable) as other:
        async with PieClient(engine.connectable, terminate_grace=3) as client:
            engine.faults.ignored.add("terminate_process")
            began = anyio.current_time()
            async with client.launch_process("sleep@0.1.0") as process:
                pass
            assert anyio.current_time() - began == pytest.approx(3)
            assert client.receipt.unconfirmed == (process.process_id,)
            engine.faults.ignored.clear()
            await other.terminate_process(process.process_id)
            await process.wait()
            assert not client.receipt.unconfirmed
            assert client.receipt.terminated == 1


async def test_a_handle_that_is_dropped_gives_its_buffer_back() -> None:
    """What nobody can read any more does not count against the others."""
    async with engine_of("v05") as engine:

        @engine.inferlet("chatty@0.1.0")
        async def chatty(session: Any, input: Any) -> None:
            await session.stdout("x" * 1000)

        async with PieClient(engine.connectable) as client:
            process = await client.launch_process("chatty@0.1.0")
            await process.wait()
            assert client.session.buffered.used > 1000
            del process
            gc.collect()
            assert client.session.buffered.used == 0


async def test_an_abandoned_attach_touches_nothing() -> None:
    """Cancelled before the answer or after it, the process runs on."""
    async with engine_of("v04") as engine, PieClient(engine.connectable) as owner:
        process = await owner.launch_process("sleep@0.1.0", capture_outputs=True)
        async with PieClient(engine.connectable) as client:
            await client.ping()
            pid = process.process_id
            engine.find_process(pid).attachment = None  # type: ignore[union-attr]
            with engine.faults.hold("attach_process") as hold:
                with anyio.move_on_after(1):
                    await client.attach_process(pid)
                assert hold.count == 1
            await client.ping()
            assert client.receipt.unconfirmed == ()
            began = anyio.current_time()
        assert anyio.current_time() - began < 1
        assert client.receipt.detached == 1
        assert pid in engine.live_processes
        assert Event.Error.value not in engine.received_counts


async def test_an_attach_that_never_left_is_withdrawn() -> None:
    """Cancelled while it waited for the writer: the engine hears nothing of it, and the process runs on."""
    async with engine_of("v04") as engine, PieClient(engine.connectable) as owner:
        process = await owner.launch_process("sleep@0.1.0")
        async with PieClient(engine.connectable) as client:
            await client.ping()
            link = client.session.link
            heard, link.wake = link.wake, Wake()  # the writer does not listen to this one
            with anyio.move_on_after(1) as scope:
                await client.attach_process(process.process_id)
            assert scope.cancelled_caught
            link.wake = heard
            await client.ping()
            assert client.receipt == Receipt(not_started=1)
        assert engine.received_counts["attach_process"] == 0
        assert process.process_id in engine.live_processes


async def test_any_request_may_be_refused() -> None:
    """With the engine's words, under the request's name."""
    async with engine_of("v05") as engine:
        async with PieClient(engine.connectable) as client:
            await client.ping()
            engine.faults.answers["check_program"] = (False, "not now")
            with pytest.raises(EngineError, match=r"check_program echo@0\.1\.0: not now"):
                await client.check_program("echo@0.1.0")
            engine.faults.answers["list_processes"] = (False, "not this")
            with pytest.raises(EngineError, match="list_processes: not this"):
                await client.list_processes()


async def test_calls_of_tools_go_to_their_handler() -> None:
    """Where there is none, they are passed over."""
    call = {
        "type": "mcp_request",
        "corr_id": 1,
        "process_id": "p",
        "server_name": "s",
        "method": "m",
        "params": "{}",
    }
    seen: list[str] = []
    async with engine_of("v04") as engine:
        async with PieClient(engine.connectable) as client:
            await client.ping()
            engine.faults.send_message(call)
            await client.ping()
            client.session.tool_handler = lambda request: seen.append(request.method)
            engine.faults.send_message(call)
            await client.ping()
    assert seen == ["m"]
