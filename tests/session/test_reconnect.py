# SPDX-License-Identifier: Apache-2.0
"""Coming back after a lost connection, in virtual time: what goes on, what is lost, what is sent again."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from tests.api.conftest import add_programs
from tests.conftest import _live_tasks

from pie_anyio import (
    AuthenticationError,
    ConnectError,
    ConnectionClosed,
    ConnectionLost,
    Event,
    InvalidRequest,
    Keepalive,
    ParsedPrivateKey,
    PieClient,
    PieError,
    ProcessLost,
    ProcessNotFound,
    ProcessTerminated,
    Reconnect,
    RemoteProtocolError,
    UnsupportedByEngine,
)
from pie_anyio._flow.slots import ReplySlot
from pie_anyio._protocol.events import RequestLost
from pie_anyio._protocol.messages import LaunchProcess, Ping
from pie_anyio._session.pumps import Link
from pie_anyio._session.supervisor import is_transient
from pie_anyio.testing import SimulatedEngine, virtual_backend
from pie_anyio.testing._sim_process import SimulatedProcess

POLICY = Reconnect(initial=1, maximum=8, jitter=0, patience=10)
PROFILES = pytest.mark.parametrize("profile", ["v04", "v04-faithful", "v05"])
CUT = ConnectionLost("the line was cut")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_backend(request.param)


class Bench:
    """An engine, a client that comes back, and a program that waits to be told to go on."""

    def __init__(self, engine: SimulatedEngine, client: PieClient) -> None:
        self.engine = engine
        self.client = client
        self.go = anyio.Event()
        self.heard: list[str] = []

        @engine.inferlet("wait@0.1.0")
        async def wait(session: Any, input: Any) -> Any:
            await session.stdout("one")
            await self.go.wait()
            await session.stdout("two")
            return input

        @engine.inferlet("listen@0.1.0")
        async def listen(session: Any, input: Any) -> None:
            self.heard.append(await session.receive())

    async def cut(self) -> None:
        """Lose the connection, and wait until the client knows."""
        before = self.client.session.link
        self.engine.faults.drop_connections()
        await before.router.ended.wait()

    def launch_elsewhere(self) -> SimulatedProcess:
        """Have a process on the engine that nobody is attached to."""
        program = self.engine.programs.find("wait@0.1.0")
        user = self.client.session.options.identity.rpartition("/")[2]
        process = self.engine.create_process(program, "{}", user, captured=False, token_budget=None)
        self.engine.start(process)
        return process

    async def cut_and_restore(self) -> None:
        await self.cut()
        await self.client.session.ready()


@asynccontextmanager
async def connected(profile: Any = "v04", *, policy: Any = POLICY, **options: Any) -> AsyncGenerator[Bench]:
    with anyio.fail_after(3600):
        async with SimulatedEngine(profile, port=None) as engine:
            add_programs(engine)
            client = PieClient(engine.connectable, reconnect=policy, keepalive=None, **options)
            bench = Bench(engine, client)
            async with client:
                yield bench


# ------------------------------------------------------------------------------------------------ what comes of runs


async def test_a_run_goes_on_where_the_engine_lets_it() -> None:
    """As 0.4 is documented: what is printed meanwhile is replayed, behind a note that something may be missing."""
    async with connected("v04") as bench:
        async with bench.client.launch_process("wait@0.1.0", 7) as process:
            assert await process.recv() == (Event.Stdout, "one")
            await bench.cut_and_restore()
            bench.go.set()
            kinds = [event.kind async for event in process]
            assert kinds == [Event.Gap, Event.Stdout, Event.Return]
            assert process.return_value == 7
        assert bench.client.connections == 2
        receipt = bench.client.receipt
        assert (receipt.started, receipt.returned, receipt.lost, receipt.unconfirmed) == (1, 1, 0, ())


async def test_a_run_without_output_goes_on() -> None:
    """Nobody reads its events, so there is nothing to be missed; its value arrives."""
    async with connected("v04") as bench:
        process = await bench.client.launch_process("wait@0.1.0", 7, capture_outputs=False)
        await bench.cut_and_restore()
        bench.go.set()
        assert await process.result() == 7


async def test_a_run_that_the_engine_ended_with_the_connection_is_lost() -> None:
    """0.5 does so; the reason is in the error, and lost is not failed."""
    async with connected("v05") as bench:
        process = await bench.client.launch_process("wait@0.1.0")
        await bench.cut()
        with pytest.raises(ProcessLost, match="ends processes with it"):
            await process.result()
        assert bench.client.receipt.lost == 1
        assert (await bench.client.run_process("echo@0.1.0", 1)).value == 1


async def test_a_run_that_ended_meanwhile_is_lost() -> None:
    """The engine keeps no results of processes that ended while nobody was attached."""
    async with connected("v04") as bench:
        process = await bench.client.launch_process("wait@0.1.0")
        await bench.cut()
        bench.go.set()
        with pytest.raises(ProcessLost, match="ended while the connection was lost"):
            await process.result()


async def test_a_run_that_cannot_be_attached_to_is_tried_and_then_ended() -> None:
    """0.4 as released binds a process to the connection that is gone: after some patience it is ended, not left."""
    async with connected("v04-faithful") as bench:
        process = await bench.client.launch_process("wait@0.1.0")
        began = anyio.current_time()
        await bench.cut()
        with pytest.raises(ProcessLost, match=r"Process not found.*so it was ended"):
            await process.result()
        assert 5 < anyio.current_time() - began < 1 + POLICY.patience
        assert not bench.engine.live_processes
        assert bench.client.receipt.unconfirmed == ()


async def test_a_run_of_somebody_else_is_left_alone() -> None:
    """What was only attached to, or detached from, is not ended for want of a way back to it."""
    async with connected("v04-faithful") as bench:
        other = bench.launch_elsewhere()
        process = await bench.client.attach_process(other.id)
        mine = await bench.client.launch_process("wait@0.1.0")
        mine.detach()
        await bench.cut()
        for run in (process, mine):
            with pytest.raises(ProcessLost, match="left alone"):
                await run.wait()
                await run.result()
        assert len(bench.engine.live_processes) == 2


async def test_a_run_whose_old_connection_looks_alive_is_attached_in_the_end() -> None:
    """The engine refuses at first, though it lists the process."""
    async with connected("v04") as bench:
        process = await bench.client.launch_process("wait@0.1.0", 7)
        bench.engine.faults.answers["attach_process"] = (False, "Process not found")
        await bench.cut_and_restore()
        assert not process.ended
        bench.engine.faults.answers.clear()
        await bench.client.session.settled()
        bench.go.set()
        assert await process.result() == 7


async def test_an_end_that_is_seen_between_two_looks_settles_a_run() -> None:
    """Somebody else may end it while this client tries to attach."""
    async with connected("v04") as bench:
        process = await bench.client.launch_process("wait@0.1.0", 7)
        bench.engine.faults.answers["attach_process"] = (False, "Process not found")
        await bench.cut_and_restore()
        bench.client.session.runs.lose(
            bench.client.session.registry.by_id[process.process_id], "x"
        )  # it is not known
        assert not process.ended
        bench.go.set()
        with pytest.raises(ProcessLost, match="ended while"):
            await process.result()


async def test_a_list_that_cannot_be_read_says_nothing() -> None:
    """No run is given up because an engine cannot say what it runs."""
    async with connected("v04") as bench:
        process = await bench.client.launch_process("wait@0.1.0", 7)
        for answer in [(False, "admission rejected: no"), (True, "no JSON")]:
            bench.engine.faults.answers["list_processes"] = answer
            await bench.cut_and_restore()
            await bench.client.session.settled()
        bench.go.set()
        assert await process.result() == 7


async def test_a_thousand_runs_are_attached_at_once() -> None:
    """They go in one burst, not one after the other."""
    async with connected("v04") as bench:
        processes = [await bench.client.launch_process("wait@0.1.0", n) for n in range(1000)]
        await bench.cut_and_restore()
        bench.go.set()
        assert [await process.result() for process in processes] == list(range(1000))


# ------------------------------------------------------------------------------------------------------- leaving them


@PROFILES
async def test_a_block_that_is_left_while_there_is_no_connection(profile: Any) -> None:
    """Its process is ended as soon as there is one again; until then it is on record."""
    async with connected(profile) as bench:
        bench.engine.faults.stall_handshakes = True
        async with bench.client.launch_process("wait@0.1.0") as process:
            await bench.cut()
        assert bench.client.receipt.unconfirmed == (process.process_id,)
        bench.engine.faults.stall_handshakes = False
        await bench.client.session.ready()
        await bench.client.session.settled()
        assert not bench.client.receipt.unconfirmed
        assert not bench.engine.live_processes


async def test_a_block_that_is_left_while_its_process_is_being_attached() -> None:
    """The terminate follows the answer to the attach."""
    async with connected("v04") as bench:
        async with bench.client.launch_process("wait@0.1.0"):
            with bench.engine.faults.hold("attach_process") as hold:
                await bench.cut()
                await hold.wait_for(1)
                with anyio.move_on_after(0):
                    await bench.client.session.ready()
                scope_left = True
        assert scope_left
        await bench.client.session.ready()
        await bench.engine.wait_until(lambda: not bench.engine.live_processes)
        await bench.client.ping()
        assert bench.client.receipt.unconfirmed == ()


async def test_an_end_that_the_engine_refuses_is_asked_for_again() -> None:
    """And where it never takes it, the process stays on record."""
    async with connected("v04") as bench:
        bench.engine.faults.stall_handshakes = True
        async with bench.client.launch_process("wait@0.1.0") as process:
            await bench.cut()
        bench.engine.faults.answers["terminate_process"] = (False, "Permission denied")
        bench.engine.faults.stall_handshakes = False
        await bench.client.session.ready()
        await bench.client.session.settled()
        assert bench.engine.received_counts["terminate_process"] > 2
        assert bench.client.receipt.unconfirmed == (process.process_id,)


async def test_an_end_that_came_before_it_was_asked_for() -> None:
    """The engine listed the process, and then it was gone: that is what was wanted."""
    async with connected("v04") as bench:
        bench.engine.faults.stall_handshakes = True
        async with bench.client.launch_process("wait@0.1.0"):
            await bench.cut()
        bench.engine.faults.answers["terminate_process"] = (False, "Process not found")
        bench.engine.faults.stall_handshakes = False
        await bench.client.session.ready()
        assert bench.client.receipt.unconfirmed == ()


async def test_an_end_that_is_taken_at_the_last_try() -> None:
    """The last try counts like the others."""
    policy = Reconnect(initial=1, maximum=8, jitter=0, patience=0)
    async with connected("v04", policy=policy) as bench:
        bench.engine.faults.stall_handshakes = True
        async with bench.client.launch_process("wait@0.1.0", capture_outputs=False):
            await bench.cut()
        refused: list[dict[str, Any]] = []

        def refuse_once(message: dict[str, Any]) -> dict[str, Any]:
            if message.get("result") == "Process terminated" and not refused:
                refused.append(message)
                return {**message, "ok": False, "result": "busy"}
            return message

        bench.engine.faults.rewrite = refuse_once
        bench.engine.faults.stall_handshakes = False
        await bench.client.session.ready()
        await bench.client.session.settled()
        assert refused
        assert bench.client.receipt.unconfirmed == ()


async def test_what_cannot_be_ended_for_want_of_patience_is_on_record() -> None:
    """It could not be attached to, and the engine does not end it either."""
    async with connected("v04-faithful") as bench:
        process = await bench.client.launch_process("wait@0.1.0")
        bench.engine.faults.answers["terminate_process"] = (False, "Permission denied")
        await bench.cut()
        with pytest.raises(ProcessLost, match="ending it failed as well: Permission denied"):
            await process.result()
        assert bench.client.receipt.unconfirmed == (process.process_id,)


async def test_a_client_that_is_left_in_the_ordinary_way() -> None:
    """The wish to come back changes nothing about leaving: 0.4 lets processes run on that nobody scoped."""
    async with connected("v04") as bench:
        await bench.client.launch_process("wait@0.1.0")
    assert bench.client.receipt.detached == 1
    assert bench.client.receipt.lost == 0


async def test_the_client_is_left_while_there_is_no_connection() -> None:
    """Nothing is waited for that cannot come."""
    async with connected("v04") as bench:
        bench.engine.faults.stall_handshakes = True
        process = await bench.client.launch_process("wait@0.1.0")
        await bench.cut()
        began = anyio.current_time()
    assert anyio.current_time() - began < 3
    with pytest.raises(ConnectionLost, match="block is left"):
        await process.result()
    assert bench.client.receipt.lost + bench.client.receipt.detached == 1


# --------------------------------------------------------------------------------------------------- what is sent again


async def test_a_request_waits_for_the_next_connection() -> None:
    """Whoever asks while there is none is served as soon as there is one."""
    async with connected() as bench:
        await bench.client.ping()
        await bench.cut()
        began = anyio.current_time()
        await bench.client.ping()
        assert anyio.current_time() - began == pytest.approx(1)
        assert bench.client.connections == 2


async def test_a_request_that_never_left_is_sent_again() -> None:
    """It was queued when the connection ended."""
    async with connected() as bench:
        await bench.client.ping()
        stalled = bench.client.session.link
        stalled.writing = (
            True  # so that requests are left to the writer, who does not get a turn before the cut
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.client.check_program, "echo@0.1.0")
            tasks.start_soon(fail, stalled)
        assert bench.engine.received_counts["check_program"] == 1
        assert bench.client.connections == 2


async def fail(link: Link) -> None:
    link.fail(CUT)


async def test_a_request_that_may_have_left_is_reported() -> None:
    """It is not repeated: the caller knows whether that may be done."""
    async with connected() as bench:
        await bench.client.ping()
        async with anyio.create_task_group() as tasks:
            with bench.engine.faults.hold("check_program") as hold:

                async def ask() -> None:
                    with pytest.raises(ConnectionLost) as caught:
                        await bench.client.check_program("echo@0.1.0")
                    assert caught.value.issued is True

                tasks.start_soon(ask)
                await hold.wait_for(1)
                await bench.cut()
        await bench.client.ping()


async def test_a_launch_that_never_left_is_sent_again() -> None:
    """The caller does not notice."""
    async with connected() as bench:
        await bench.client.ping()
        session = bench.client.session
        run = session.runs.start(LaunchProcess("echo@0.1.0", "5", True, None))
        session.link.fail(CUT)
        assert not run.started.done
        ending = await run.ended.wait()
        assert ending.text == "5"
        assert bench.engine.started_total == 1
        assert bench.client.receipt.started == 1


async def test_an_attach_that_continues_a_run_is_not_sent_again() -> None:
    """The next connection begins with a look at what is there, and not with what was to be done on the last."""
    async with connected("v04") as bench:
        process = await bench.client.launch_process("wait@0.1.0", 7)
        session = bench.client.session
        await bench.cut_and_restore()
        answer = session.runs.reattach(session.registry.by_id[process.process_id])
        session.link.fail(CUT)
        assert (await answer.wait())[0] is False
        await session.ready()
        bench.go.set()
        assert await process.result() == 7


async def test_a_run_that_its_user_terminates_while_it_is_out_of_reach() -> None:
    """It has ended as it was told to, and is not lost."""
    async with connected("v04-faithful") as bench:
        process = await bench.client.launch_process("wait@0.1.0", 7)
        await bench.cut_and_restore()
        await process.terminate()
        with pytest.raises(ProcessTerminated) as caught:
            await process.result()
        assert caught.value.by_us
        assert bench.client.receipt.terminated == 1


async def test_a_launch_that_never_left_and_never_will() -> None:
    """Its owner left, and so does the client, before there is another connection."""
    async with connected() as bench:
        await bench.client.ping()
        bench.engine.faults.stall_handshakes = True
        session = bench.client.session
        run = session.runs.start(LaunchProcess("echo@0.1.0", "5", True, None))
        session.runs.start(LaunchProcess("echo@0.1.0", "6", True, None), quiet=True)
        session.link.fail(CUT)
        session.runs.release(run)
    assert bench.client.receipt.not_started == 2


async def test_a_launch_that_never_left_is_withdrawn_for_want_of_its_owner() -> None:
    """Nothing of it is sent on the next connection."""
    async with connected() as bench:
        await bench.client.ping()
        session = bench.client.session
        run = session.runs.start(LaunchProcess("echo@0.1.0", "5", True, None))
        session.link.fail(CUT)
        session.runs.release(run)
        assert run.ended.done
        await session.ready()
        await bench.client.ping()
        assert bench.engine.started_total == 0
        assert bench.client.receipt.not_started == 1


async def test_an_attach_that_never_left_is_given_up() -> None:
    """The process belongs to somebody else, and nothing of the attach is sent."""
    async with connected() as bench, anyio.create_task_group() as tasks:
        other = bench.launch_elsewhere()
        await bench.client.ping()
        bench.engine.faults.stall_handshakes = True

        async def attach() -> None:
            await bench.client.attach_process(other.id)

        async def cut() -> None:
            bench.client.session.link.fail(CUT)
            tasks.cancel_scope.cancel()

        tasks.start_soon(attach)
        tasks.start_soon(cut)
        await wait_all_tasks_blocked()
    assert bench.engine.received_counts["attach_process"] <= 1


async def test_a_launch_that_the_next_engine_does_not_take_is_refused() -> None:
    """Another generation may have taken its place, with other limits."""
    async with connected() as bench:
        await bench.client.ping()
        session = bench.client.session
        run = session.runs.start(LaunchProcess("echo@0.1.0", "x" * (8 << 20), True, None))
        session.link.fail(CUT)
        assert session._supervisor is not None
        await session.drop_link()
        bench.engine.profile = SimulatedEngine("v05").profile
        ending = await run.ended.wait()
        assert isinstance(ending.error, InvalidRequest)
        with pytest.raises(InvalidRequest):
            await run.started.wait()


async def test_a_launch_that_may_have_left_is_lost() -> None:
    """Whether the engine has started it is unknown."""
    async with connected("v04") as bench:
        await bench.client.ping()
        async with anyio.create_task_group() as tasks:
            with bench.engine.faults.hold("launch_process") as hold:

                async def launch() -> None:
                    with pytest.raises(ConnectionLost) as caught:
                        await bench.client.launch_process("wait@0.1.0")
                    assert caught.value.issued is True

                tasks.start_soon(launch)
                await hold.wait_for(1)
                await bench.cut()
        assert bench.client.receipt.lost == 1


async def test_a_signal_waits_until_its_process_is_attached() -> None:
    """An engine drops it otherwise, without a word."""
    async with connected("v04") as bench:
        process = await bench.client.launch_process("listen@0.1.0")
        bench.engine.faults.answers["attach_process"] = (False, "Process not found")
        await bench.cut_and_restore()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.signal, "hello")
            await wait_all_tasks_blocked()
            assert not bench.engine.received_counts["signal_process"]
            bench.engine.faults.answers.clear()
        await process.result()
        assert bench.heard == ["hello"]


async def test_a_signal_that_finds_no_room_goes_on_the_next_connection() -> None:
    """The outbox was full, and then there was none any more."""
    async with connected("v04") as bench:
        process = await bench.client.launch_process("listen@0.1.0")
        link = bench.client.session.link
        link.requests.set_level(1 << 40)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.signal, "hello")
            await wait_all_tasks_blocked()
            await bench.cut()
        await process.result()
        assert bench.heard == ["hello"]


async def test_a_signal_without_another_connection() -> None:
    """It is told that there was no room for it until there was no connection."""
    async with connected("v04", policy=None) as bench:
        process = await bench.client.launch_process("listen@0.1.0")
        bench.client.session.link.requests.set_level(1 << 40)
        async with anyio.create_task_group() as tasks:

            async def signal() -> None:
                with pytest.raises(ConnectionLost) as caught:
                    await process.signal("hello")
                assert caught.value.issued is False

            tasks.start_soon(signal)
            await wait_all_tasks_blocked()
            await bench.cut()


async def test_a_file_waits_until_its_process_is_attached() -> None:
    """As a signal does."""
    async with connected("v04") as bench:
        process = await bench.client.launch_process("take@0.1.0")
        bench.engine.faults.answers["attach_process"] = (False, "Process not found")
        await bench.cut_and_restore()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.transfer_file, b"content")
            await anyio.sleep(0.5)
            assert not bench.engine.received_counts["transfer_file"]
            bench.engine.faults.answers.clear()
        assert await process.result() == len(b"content")


async def test_a_signal_that_found_room_too_late() -> None:
    """There was room again, and in the next moment no connection."""
    async with connected("v04") as bench:
        process = await bench.client.launch_process("listen@0.1.0")
        link = bench.client.session.link
        link.requests.set_level(1 << 40)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.signal, "hello")
            await wait_all_tasks_blocked()
            link.requests.set_level(0)
            link.fail(CUT)
        await process.result()
        assert bench.heard == ["hello"]


# ------------------------------------------------------------------------------------------------------------ giving up


async def test_attempts_are_spaced_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """1, 2, 4, 8, 8 seconds; then everything ends, with the reason of the last attempt."""
    caplog.set_level(logging.INFO, "pie_anyio")
    policy = Reconnect(attempts=5, initial=1, maximum=8, jitter=0)
    async with connected(policy=policy) as bench:
        process = await bench.client.launch_process("wait@0.1.0")
        bench.engine.faults.refuse_handshakes = (503, b"soon")
        began = anyio.current_time()
        await bench.cut()
        with pytest.raises(ConnectionLost, match=r"could not be restored in 5 attempts.*503"):
            await process.result()
        assert anyio.current_time() - began == pytest.approx(1 + 2 + 4 + 8 + 8)
        with pytest.raises(ConnectionLost) as caught:
            await bench.client.ping()
        assert caught.value.issued is False
        with pytest.raises(ConnectionLost):
            await bench.client.signal_process(process.process_id, "x")
        await bench.client.session.settled()
        assert bench.client.receipt.lost == 1
    assert sum("failed" in record.message for record in caplog.records) == 4
    assert caplog.records[-1].levelno == logging.ERROR


async def test_one_attempt(caplog: pytest.LogCaptureFixture) -> None:
    """The text counts as people do; launches that wait are told that they were not sent."""
    async with connected(policy=Reconnect(attempts=1, initial=1, jitter=0)) as bench:
        await bench.client.ping()
        bench.engine.faults.refuse_handshakes = (503, b"")
        session = bench.client.session
        run = session.runs.start(LaunchProcess("echo@0.1.0", "5", True, None))
        session.link.fail(CUT)
        with pytest.raises(ConnectionLost, match="in 1 attempt:") as caught:
            await run.started.wait()
        assert caught.value.issued is False
        assert bench.client.receipt.not_started == 1
    assert "in 1 attempt:" in caplog.text


async def test_attempts_without_end() -> None:
    """An engine that comes back after a day is found again."""
    async with connected(policy=Reconnect(attempts=None, initial=1, maximum=60)) as bench:
        await bench.client.ping()
        bench.engine.faults.refuse_handshakes = (503, b"")
        await bench.cut()
        await anyio.sleep(1800)
        bench.engine.faults.refuse_handshakes = None
        await bench.client.ping()


async def test_a_refusal_that_will_not_change_ends_it_at_once() -> None:
    """An engine that does not know this client any more will not know it in ten seconds."""
    async with connected() as bench:
        await bench.client.ping()
        bench.engine.faults.refuse_handshakes = (401, b"identity: who?")
        began = anyio.current_time()
        await bench.cut()
        with pytest.raises(ConnectionLost, match="in 1 attempt"):
            await bench.client.ping()
        assert anyio.current_time() - began == pytest.approx(1)


async def test_an_engine_that_does_not_answer_is_given_up_for_another_try() -> None:
    """It takes connections and is silent: each attempt is bounded."""
    async with connected(connect_timeout=5) as bench:
        await bench.client.ping()
        bench.engine.faults.unanswered.add("auth_identify")
        began = anyio.current_time()
        await bench.cut()
        with anyio.move_on_after(7):
            await bench.client.ping()
        bench.engine.faults.unanswered.clear()
        await bench.client.ping()
        assert anyio.current_time() - began == pytest.approx(1 + 5 + 2)
        await anyio.sleep(60)
        assert bench.client.connections == 3  # letting go of the one that failed is no new loss


async def test_a_connection_that_is_lost_again_while_runs_are_attached() -> None:
    """It begins anew, and no run is forgotten."""
    async with connected("v04") as bench:
        process = await bench.client.launch_process("wait@0.1.0", 7)
        bench.engine.faults.drop_on.add("attach_process")
        await bench.cut()
        with anyio.move_on_after(2):
            await bench.client.session.ready()
        bench.engine.faults.drop_on.clear()
        await bench.client.session.ready()
        assert bench.client.connections > 2
        bench.go.set()
        assert await process.result() == 7


async def test_connections_leave_no_tasks_behind() -> None:
    """Those of the one before end with it."""
    async with connected() as bench:
        await bench.client.ping()
        await wait_all_tasks_blocked()
        before = len(list(_live_tasks()))
        for _ in range(3):
            await bench.cut_and_restore()
            await bench.client.ping()
        await wait_all_tasks_blocked()
        assert len(list(_live_tasks())) == before


async def test_a_connection_that_is_lost_again_later() -> None:
    """Between two tries to attach."""
    async with connected("v04") as bench:
        process = await bench.client.launch_process("wait@0.1.0", 7)
        bench.engine.faults.answers["attach_process"] = (False, "Process not found")
        await bench.cut_and_restore()
        bench.engine.faults.answers.clear()
        bench.engine.faults.drop_on.add("list_processes")
        await anyio.sleep(1.5)
        bench.engine.faults.drop_on.clear()
        await bench.client.session.settled()
        bench.go.set()
        assert await process.result() == 7


async def test_a_damaged_answer_to_an_attach_is_a_refusal() -> None:
    """The run stays as it is, and is tried again."""
    async with connected("v04") as bench:
        process = await bench.client.launch_process("wait@0.1.0", 7)
        damaged: list[dict[str, Any]] = []

        def damage_once(message: dict[str, Any]) -> dict[str, Any]:
            if message.get("result") == "Process attached" and not damaged:
                damaged.append(message)
                return {**message, "result": 5}
            return message

        bench.engine.faults.rewrite = damage_once
        await bench.cut_and_restore()
        assert damaged
        with pytest.raises(ProcessLost):  # the engine holds it to be attached, and to another attach says no
            await process.result()


async def test_another_engine_on_the_same_address() -> None:
    """It knows nothing of the runs of the one before."""
    async with connected("v04") as bench:
        process = await bench.client.launch_process("wait@0.1.0")
        bench.engine.faults.answers["list_processes"] = (True, "[]")
        await bench.cut()
        with pytest.raises(ProcessLost):
            await process.result()


# ----------------------------------------------------------------------------------------------------------- logging in


def new_key() -> tuple[ParsedPrivateKey, str]:
    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return ParsedPrivateKey.parse(text), public


async def test_it_logs_in_again_with_the_key() -> None:
    """As often as it has to."""
    key, public = new_key()
    async with SimulatedEngine("v04", port=None, users={"alice": [public]}) as engine:
        async with PieClient(engine.connectable, username="alice", key=key, reconnect=POLICY) as client:
            for proofs in (2, 3):
                engine.faults.drop_connections()
                await client.session.link.router.ended.wait()
                assert await client.list_processes() == []
                assert engine.received_counts["auth_prove"] == proofs


async def test_it_logs_in_again_with_the_token() -> None:
    """A token that is not accepted any more, since the engine is another one, ends it."""
    async with SimulatedEngine("v04", port=None, users={}, token="t-1") as engine:
        async with PieClient(engine.connectable, token="t-1", reconnect=POLICY) as client:
            for _ in range(2):
                engine.faults.drop_connections()
                await client.session.link.router.ended.wait()
                assert await client.list_processes() == []
            assert "t-1" not in repr(vars(client.session))
            engine.faults.answers["auth_by_token"] = (False, "Invalid token")
            engine.faults.drop_connections()
            await client.session.link.router.ended.wait()
            with pytest.raises(ConnectionLost, match="refused the token") as caught:
                await client.list_processes()
            assert "t-1" not in str(caught.value)


async def test_a_client_that_has_not_logged_in_does_not() -> None:
    """On 0.4 the first name stays, so it is left to whoever uses the connection."""
    async with connected() as bench:
        await bench.cut()
        with anyio.fail_after(10):
            while bench.client.connections < 2:
                await anyio.sleep(1)
        assert not bench.engine.received_counts["auth_identify"]
        await bench.client.authenticate("alice")
        await bench.client.ping()


def test_a_policy_without_an_attempt_is_none() -> None:
    """Whoever wants none of them wants no policy."""
    with pytest.raises(ValueError, match="attempts must be at least 1"):
        Reconnect(attempts=0)
    assert Reconnect(attempts=1).attempts == 1


async def test_a_policy_can_be_true() -> None:
    """Or false, or none."""
    async with SimulatedEngine("v05", port=None) as engine:
        for value, expected in ((True, Reconnect()), (False, None), (None, None), (POLICY, POLICY)):
            client = PieClient(engine.connectable, reconnect=value)
            assert client.session.options.reconnect == expected


async def test_keepalive_finds_a_dead_connection() -> None:
    """A peer that vanished without a word is found by its silence, on each connection anew."""
    async with SimulatedEngine("v05", port=None) as engine:
        keepalive = Keepalive(interval=5, timeout=5)
        async with PieClient(engine.connectable, reconnect=POLICY, keepalive=keepalive) as client:
            for connections in (2, 3):
                await client.ping()
                engine.faults.half_open = True
                await anyio.sleep(10.5)
                engine.faults.half_open = False
                await client.ping()
                assert client.connections == connections


async def test_a_laptop_that_was_closed() -> None:
    """Its timers stood still, its connection is dead, and it finds out soon after it was opened again."""
    slept = [0.0]
    async with SimulatedEngine("v05", port=None) as engine:
        keepalive = Keepalive(interval=1000, timeout=5)
        client = PieClient(engine.connectable, reconnect=POLICY, keepalive=keepalive)
        options = client.session.options
        client.session.options = attrs.evolve(
            options, wall_clock=lambda: 1e9 + anyio.current_time() + slept[0]
        )
        async with client:
            await client.ping()
            engine.faults.half_open = True
            slept[0] = 3600.0
            began = anyio.current_time()
            await client.session.link.router.ended.wait()
            assert anyio.current_time() - began <= 5 + 5
            engine.faults.half_open = False
            await client.ping()


# -------------------------------------------------------------------------------------------------------------- details


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectError("x"), True),
        (ConnectError("x", status=503), True),
        (ConnectError("x", status=429), True),
        (ConnectError("x", status=401), False),
        (ConnectError("x", status=404), False),
        (AuthenticationError("x"), False),
        (UnsupportedByEngine("x", generation="0.5", available_in="0.4"), False),
        (InvalidRequest("x"), False),
        (ConnectionLost("x"), True),
        (RemoteProtocolError("x"), True),
        (ProcessNotFound("x", request="attach_process", detail="x"), True),
    ],
    ids=repr,
)
def test_what_is_worth_another_try(error: PieError, expected: bool) -> None:
    """Refusals of what this client is or asks for will be repeated; trouble may pass."""
    assert is_transient(error) is expected


def test_a_certificate_that_is_not_trusted_stays_so() -> None:
    """However deep it is buried."""
    error = ConnectError("x")
    error.__cause__ = OSError("y")
    error.__cause__.__cause__ = ssl.SSLCertVerificationError("z")
    assert not is_transient(error)


async def test_what_is_not_a_launch_is_not_kept() -> None:
    """And nothing is before the first connection, or after the last."""
    async with connected() as bench:
        supervisor = bench.client.session._supervisor
        assert supervisor is not None
        lost = RequestLost(ReplySlot[Any](), False, CUT, Ping(), False)
        assert not supervisor.resubmits(lost)
    assert not supervisor.takes_over(CUT)
    supervisor.stop(CUT)
    await checkpoint()


async def test_without_a_policy_nothing_changes() -> None:
    """A lost connection ends everything on it."""
    async with connected(policy=None) as bench:
        process = await bench.client.launch_process("wait@0.1.0")
        await bench.cut()
        with pytest.raises(ConnectionLost):
            await process.result()
        with pytest.raises(ConnectionLost) as caught:
            await bench.client.ping()
        assert not isinstance(caught.value, ConnectionClosed)
