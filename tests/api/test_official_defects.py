# SPDX-License-Identifier: Apache-2.0
"""Defects of the official Python clients (0.4.0 and 0.5.3) that this client must not have, numbered as in our notes.

Not applicable, and so without a test here: P29 to P31 are about the bridge to local tool servers, which is a module of
its own and is tested with it. P22 is shown for hashing and look-ups, which the client does off the event loop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from pie_anyio import (
    ConnectionLost,
    EngineError,
    Event,
    InvalidRequest,
    KeyFileError,
    Limits,
    OutputOverflow,
    ParsedPrivateKey,
    PieClient,
    PieError,
    ProcessFailed,
    ProcessLost,
    RemoteProtocolError,
)
from pie_anyio.testing import SimulatedEngine

MANIFEST = '[package]\nname = "up"\nversion = "0.1.0"\n'


async def test_p01_the_reader_never_ends_in_silence(client: PieClient, engine: SimulatedEngine) -> None:
    """When it ends, every waiter and every later call knows it."""
    with anyio.fail_after(5):
        process = await client.launch_process("sleep@0.1.0")
        errors: list[BaseException] = []

        async def waits() -> None:
            try:
                await process.recv()
            except ConnectionLost as exc:
                errors.append(exc)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(waits)
            await anyio.wait_all_tasks_blocked()
            engine.faults.send_bytes(b"\xff" * 20)
        assert len(errors) == 1
        with pytest.raises(ConnectionLost):
            await client.ping()


@pytest.mark.parametrize("fault", ["trailing", "text", "nil", "array"])
async def test_p02_odd_frames_do_no_harm(client: PieClient, engine: SimulatedEngine, fault: str) -> None:
    """Trailing bytes, text that is not UTF-8, and payloads that are no map."""
    with anyio.fail_after(5):
        await client.ping()
        match fault:
            case "trailing":
                engine.faults.trailing_bytes = b"\x00\x01"
            case "text":
                engine.faults.invalid_text = True
            case "nil":
                engine.faults.send_payload(b"\xc0")
            case _:
                engine.faults.send_payload(b"\x91\x01")
        process = await client.launch_process("talk@0.1.0", 1)
        await process.signal("quit")
        await process.wait()
        engine.faults.invalid_text = False
        await client.ping()


async def test_p03_an_answer_that_meets_a_cancellation(client: PieClient, engine: SimulatedEngine) -> None:
    """A request that is cancelled in the turn of its answer troubles nobody; nor does an answer given twice."""
    with anyio.fail_after(5):
        with engine.faults.hold("ping") as hold:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client.ping)
                    await hold.wait_for(1)
                    hold.release()
                    scope.cancel()
        engine.faults.duplicated.add("ping")
        for _ in range(3):
            await client.ping()


async def test_p04_what_comes_after_the_end_fails_too(client: PieClient, engine: SimulatedEngine) -> None:
    """Nothing that is called after the connection went waits for it."""
    with anyio.fail_after(5):
        process = await client.launch_process("sleep@0.1.0")
        engine.faults.drop_connections()
        with pytest.raises(ConnectionLost):
            await process.wait()
        for _ in range(2):
            for call in (process.recv, process.result, process.wait, client.ping, client.list_processes):
                with pytest.raises(ConnectionLost):
                    await call()
            with pytest.raises(ConnectionLost):
                await process.signal("x")
            with pytest.raises(ConnectionLost):
                await client.launch_process("echo@0.1.0")


async def test_p05_loss_is_no_error_event(client: PieClient, engine: SimulatedEngine) -> None:
    """What a program says comes as an event, what a connection does as an exception."""
    with anyio.fail_after(5):
        failing = await client.launch_process("fail@0.1.0")
        kinds = [event.kind async for event in failing]
        assert kinds[-1] is Event.Error
        process = await client.launch_process("sleep@0.1.0")
        engine.faults.drop_connections()
        with pytest.raises(ConnectionLost) as caught:
            await process.recv()
        assert caught.value.issued is True


async def test_p06_a_megabyte_is_no_trouble(client: PieClient, engine: SimulatedEngine) -> None:
    """One write of a program is one event, of up to a MiB."""

    @engine.inferlet("big@0.1.0")
    async def big(session: Any, input: Any) -> str:
        session.stdout("x" * 1_048_576)
        return "y" * 2_000_000

    with anyio.fail_after(10):
        result = await client.run_process("big@0.1.0")
    assert len(result.stdout) == 1_048_576
    assert len(result.value) == 2_000_000


async def test_p07_unread_output_is_bounded(engine: SimulatedEngine) -> None:
    """Beyond the limit output is dropped, the reader is told so, and the result is safe."""

    @engine.inferlet("flood@0.1.0")
    async def flood(session: Any, input: Any) -> str:
        for _ in range(1000):
            await session.stdout("x" * 100)
        return "safe"

    with anyio.fail_after(5):
        async with PieClient(engine.connectable, limits=Limits(process_buffer_bytes=10_000)) as client:
            process = await client.launch_process("flood@0.1.0")
            await process.wait()
            assert client.session.buffered.used < 11_000
            with pytest.raises(OutputOverflow) as caught:
                async for _ in process:
                    pass
            assert caught.value.dropped > 900
            assert caught.value.process_id == process.process_id
            assert [event async for event in process] == [(Event.Return, "safe")]
            assert process.return_value == "safe"


async def test_p08_events_of_strangers_are_not_kept(client: PieClient, engine: SimulatedEngine) -> None:
    """Neither late ones nor those of processes that nobody here knows."""
    with anyio.fail_after(5):
        result = await client.run_process("echo@0.1.0", 1)
        for _ in range(100):
            engine.faults.send_event(result.process_id, "stdout", "late")
            engine.faults.send_event("b0b1b2b3-0000-4000-8000-000000000000", "stdout", "whose?")
        await client.ping()
        protocol = client.session.link.protocol
        assert not protocol._processes._orphans
        assert not protocol._processes.live


async def test_p09_a_file_right_after_the_launch(client: PieClient, engine: SimulatedEngine) -> None:
    """Even one that overtakes the answer to the launch arrives."""

    @engine.inferlet("quick@0.1.0")
    async def quick(session: Any, input: Any) -> None:
        session.send_file(b"content" * 100_000)

    with anyio.fail_after(5):
        for engine.faults.early_events in (False, True):
            result = await client.run_process("quick@0.1.0")
            assert result.files == [b"content" * 100_000]


async def test_p10_the_same_file_from_several_processes(client: PieClient, engine: SimulatedEngine) -> None:
    """Files are told apart by process and content, also where their pieces interleave."""

    @engine.inferlet("same@0.1.0")
    async def same(session: Any, input: Any) -> None:
        await session.receive()
        session.send_file(b"s" * 2_000_000)

    with anyio.fail_after(10):
        processes = [await client.launch_process("same@0.1.0") for _ in range(3)]
        for process in processes:
            await process.signal("go")
        for process in processes:
            assert (await process.collect()).files == [b"s" * 2_000_000]


async def test_p11_damaged_files_are_dropped_and_freed(client: PieClient, engine: SimulatedEngine) -> None:
    """Index, total and hash are checked; what is unfinished goes with its process."""
    from pie_anyio.testing import FileDamage

    @engine.inferlet("sends@0.1.0")
    async def sends(session: Any, input: Any) -> str:
        session.send_file(b"f" * 600_000)
        return "done"

    with anyio.fail_after(10):
        for engine.faults.damage_files in FileDamage:
            result = await client.run_process("sends@0.1.0")
            assert result.files == []
            assert result.value == "done"
        assert len(client.session.link.protocol._downloads) == 0
        engine.faults.damage_files = None
        assert (await client.run_process("sends@0.1.0")).files == [b"f" * 600_000]


async def test_p12_request_numbers_stay_in_range(client: PieClient, engine: SimulatedEngine) -> None:
    """They wrap around below 2**32, past those that are in use."""
    with anyio.fail_after(5):
        await client.ping()
        client.session.link.protocol._requests._last = 2**32 - 3
        with engine.faults.hold("list_processes") as hold:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.list_processes)
                await hold.wait_for(1)
                hold.release()
        for _ in range(4):
            await client.ping()
        numbers = [entry.corr_id for entry in engine.received if entry.request.type == "ping"][1:]
        assert numbers == [2**32 - 1, 1, 2, 3]


async def test_p13_every_wait_can_end(client: PieClient, engine: SimulatedEngine) -> None:
    """See the tests of situations without an answer; any call can be given a time limit and leaves nothing behind."""
    with anyio.fail_after(5):
        await client.ping()
        engine.faults.ignored.add("ping")
        with anyio.move_on_after(0.1) as scope:
            await client.ping()
        assert scope.cancelled_caught
        engine.faults.ignored.clear()
        await client.ping()
        assert len(client.session.link.protocol._requests) == 1  # the engine may still answer the first


async def test_p14_a_cancelled_launch_leaves_no_process(client: PieClient, engine: SimulatedEngine) -> None:
    """It is ended as soon as the engine tells its id."""
    with anyio.fail_after(5):
        with engine.faults.hold("launch_process") as hold, anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def launch() -> None:
                    await client.launch_process("sleep@0.1.0")

                tasks.start_soon(launch)
                await hold.wait_for(1)
                scope.cancel()
        await engine.wait_idle()
        await client.ping()
        assert client.receipt.terminated == 1
        assert client.receipt.clean


async def test_p15_uncaptured_processes_have_ids(client: PieClient, engine: SimulatedEngine) -> None:
    """Each is a handle of its own, which can be received from, terminated and signalled."""
    with anyio.fail_after(5):
        first = await client.launch_process("sleep@0.1.0", capture_outputs=False)
        second = await client.launch_process("talk@0.1.0", 2, capture_outputs=False)
        assert first.process_id != second.process_id
        assert {first.process_id, second.process_id} == set(engine.live_processes)
        await second.signal("quit")
        assert await second.recv() == (Event.Return, "2")
        with pytest.raises(anyio.EndOfStream):
            await second.recv()
        assert await second.result() == 2
        await first.terminate()
        assert await first.recv() == (Event.Error, "Signal")


async def test_p16_receiving_after_the_end(client: PieClient) -> None:
    """Ends at once, however often."""
    with anyio.fail_after(5):
        process = await client.launch_process("echo@0.1.0", 1)
        assert await process.recv() == (Event.Return, "1")
        for _ in range(3):
            with pytest.raises(anyio.EndOfStream):
                await process.recv()
        assert [event async for event in process] == []


async def test_p17_unknown_kinds_of_events(client: PieClient, engine: SimulatedEngine) -> None:
    """Are passed over."""
    with anyio.fail_after(5):
        process = await client.launch_process("talk@0.1.0", "v")
        engine.faults.send_event(process.process_id, "progress", "50 %")
        await process.signal("quit")
        kinds = [event.kind async for event in process]
        assert kinds == [Event.Stdout, Event.Stderr, Event.Return]


async def test_p18_an_end_that_comes_before_the_answer(client: PieClient, engine: SimulatedEngine) -> None:
    """The process is not kept, and no error appears at the end of the connection."""
    engine.faults.early_events = True
    with anyio.fail_after(5):
        process = await client.launch_process("echo@0.1.0", 5)
        assert await process.result() == 5
        assert not client.session.registry.by_id
    assert client.receipt.returned == 1


async def test_p19_attaching_to_what_one_has(client: PieClient) -> None:
    """Both handles see the process end; the earlier one is not cut off."""
    with anyio.fail_after(5):
        process = await client.launch_process("talk@0.1.0", "shared")
        again = await client.attach_process(process.process_id.upper())
        await again.signal("quit")
        assert await process.result() == "shared"
        assert await again.result() == "shared"


async def test_p20_uploads_of_equal_bytes(client: PieClient, engine: SimulatedEngine, profile: Any) -> None:
    """Two at once take turns, and an early refusal stops the sending."""
    content = b"\0asm" + bytes(1_000_000)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(client.install_program_bytes, content, MANIFEST, True)
        assert engine.received_counts["add_program"] == 12
        if profile == "v04":
            engine.faults.answers["add_program"] = (False, "no more")
            with pytest.raises(EngineError, match="no more"):
                await client.install_program_bytes(bytes(64 * 262_144), MANIFEST)
            assert engine.received_counts["add_program"] < 12 + 64


async def test_p21_equal_files_to_two_processes(client: PieClient, engine: SimulatedEngine) -> None:
    """They take turns, so both arrive."""
    content = bytes(1_000_000)
    with anyio.fail_after(10):
        processes = [await client.launch_process("take@0.1.0") for _ in range(2)]
        for process in processes:
            assert await process.recv() == (Event.Message, "ready")
        async with anyio.create_task_group() as tasks:
            for process in processes:
                tasks.start_soon(process.transfer_file, content)
        assert [await process.result() for process in processes] == [1_000_000, 1_000_000]


async def test_p22_nothing_blocks_the_loop(
    client: PieClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are read and hashed, and registries asked, on other threads."""
    import threading

    from pie_anyio import _programs
    from pie_anyio._session import uploads

    threads: list[threading.Thread] = []
    real_hash = uploads._hash_file

    def hash_file(path: Path) -> tuple[int, str]:
        threads.append(threading.current_thread())
        return real_hash(path)

    def fetch(url: str) -> bytes:
        threads.append(threading.current_thread())
        return b'{"versions": [{"num": "1.2.3"}]}'

    monkeypatch.setattr(uploads, "_hash_file", hash_file)
    monkeypatch.setattr(_programs, "_fetch", fetch)
    (tmp_path / "p.wasm").write_bytes(b"\0asm")
    (tmp_path / "Pie.toml").write_text(MANIFEST, encoding="utf-8")
    with anyio.fail_after(5):
        await client.install_program(tmp_path / "p.wasm", tmp_path / "Pie.toml")
        assert await client.resolve_version("agent", "https://registry.example") == "agent@1.2.3"
    assert len(threads) == 2
    assert threading.current_thread() not in threads


async def test_p23_errors_have_types(client: PieClient) -> None:
    """And attributes, so that nobody has to read texts."""
    with anyio.fail_after(5):
        with pytest.raises(ProcessFailed) as failed:
            await client.run_process("fail@0.1.0")
        assert failed.value.process_id
        assert failed.value.program == "fail@0.1.0"
        assert "ValueError: it broke" in failed.value.detail
        with pytest.raises(EngineError) as refused:
            await client.launch_process("none@0.1.0")
        assert (refused.value.request, bool(refused.value.detail)) == ("launch_process", True)
        assert isinstance(failed.value, PieError)
        assert isinstance(refused.value, PieError)


async def test_p24_logging_in_twice(client: PieClient) -> None:
    """Already being logged in is no challenge."""
    with anyio.fail_after(5):
        await client.authenticate("alice")
        await client.authenticate("alice")
        await client.ping()


@pytest.mark.parametrize("answer", ["not json", "{}", '[1, "x"]', "[" * 50_000])
async def test_p25_a_list_that_cannot_be_read(
    client: PieClient, engine: SimulatedEngine, answer: str
) -> None:
    """Is an error, not an empty list."""
    engine.faults.answers["list_processes"] = (True, answer)
    with anyio.fail_after(5):
        with pytest.raises(RemoteProtocolError, match="list_processes"):
            await client.list_processes()


async def test_p26_closing_is_quick() -> None:
    """Also on an engine that never answers a close frame."""
    with anyio.fail_after(5):
        async with SimulatedEngine("v04-faithful", port=None) as engine:
            began = anyio.current_time()
            async with PieClient(engine.connectable, close_timeout=0.2) as client:
                await client.ping()
            assert anyio.current_time() - began < 1.5


async def test_p27_a_client_connects_once(client: PieClient, engine: SimulatedEngine) -> None:
    """A second entry is refused and opens nothing."""
    with anyio.fail_after(5):
        with pytest.raises(RuntimeError, match="already been entered"):
            async with client:
                pytest.fail("entered twice")
        assert engine.connections == 1
        await client.ping()
        async with PieClient(engine.connectable) as used:
            await used.ping()
        with pytest.raises(InvalidRequest, match="entered once"):
            async with used:
                pytest.fail("entered again")
        assert engine.connections_total == 2
    with pytest.raises(TypeError, match="async with PieClient"):
        client.connect()
    with pytest.raises(TypeError, match="end of 'async with"):
        client.close()


async def test_p28_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's proxies are for the web."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY", "ws_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with anyio.fail_after(5):
        async with SimulatedEngine("v05") as engine, PieClient(engine.url) as client:
            await client.ping()


def test_p32_weak_keys_are_named() -> None:
    """The reason is not swallowed."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused
    with pytest.raises(KeyFileError, match="weak RSA key"):
        ParsedPrivateKey.parse(weak.private_bytes(*form).decode())
    with pytest.raises(KeyFileError, match="unsupported curve"):
        ParsedPrivateKey.parse(ec.generate_private_key(ec.SECP521R1()).private_bytes(*form).decode())


async def test_p33_aborted_streams_are_noticed(anyio_backend: Any) -> None:
    """What 0.5 says in text frames reaches those whom it concerns."""
    from tests.api.conftest import add_programs

    with anyio.fail_after(10):
        async with SimulatedEngine("v05", port=None) as engine:
            add_programs(engine)
            async with PieClient(engine.connectable) as client, PieClient(engine.connectable) as other:
                process = await client.launch_process("sleep@0.1.0")
                engine.faults.abort_streams()
                await other.terminate_process(process.process_id)
                with pytest.raises(ProcessLost, match="aborted its stream"):
                    await process.recv()
                with pytest.raises(ProcessLost):
                    await process.result()


async def test_p34_identity_and_limits_can_be_chosen(anyio_backend: Any) -> None:
    """Identity, user agent, TLS and limits; the default names this client, not a benchmark."""
    seen: list[dict[str, str]] = []
    with anyio.fail_after(5):
        async with SimulatedEngine("v05", port=None) as engine:
            from pie_anyio.testing._sim_session import Session

            judge = Session._judge

            def note(self: Any, event: Any) -> Any:
                seen.append(dict(event.headers))
                return judge(self, event)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Session, "_judge", note)
                async with PieClient(
                    engine.connectable, "acme/alice", user_agent="agent/1", limits=Limits()
                ) as client:
                    await client.ping()
                async with PieClient(engine.connectable) as client:
                    await client.ping()
    assert seen[0]["x-pie-identity"] == "acme/alice"
    assert seen[0]["user-agent"] == "agent/1"
    assert seen[1]["x-pie-identity"] == "default/pie-anyio"
    assert seen[1]["user-agent"].startswith("pie-anyio/")


async def test_p35_results_hold_what_they_promise(engine: SimulatedEngine) -> None:
    """Result keeps no more than a bounded amount of output, and run_process keeps stderr and files too."""

    @engine.inferlet("chatty@0.1.0")
    async def chatty(session: Any, input: Any) -> str:
        for number in range(300):
            await session.stdout(f"{number:0100}")
        await session.stderr("warning")
        await session.send_file(b"file")
        return "value"

    with anyio.fail_after(10):
        async with PieClient(engine.connectable, limits=Limits(process_buffer_bytes=5_000)) as client:
            process = await client.launch_process("chatty@0.1.0")
            assert await process.result() == "value"
            assert sum(map(len, process.output)) <= 5_000
            assert process.output[-1].endswith("299")
        async with PieClient(engine.connectable) as client:
            result = await client.run_process("chatty@0.1.0")
            assert (result.stderr, result.files) == ("warning", [b"file"])


async def test_p36_processes_have_blocks_and_signals_have_limits(engine: SimulatedEngine) -> None:
    """Both loops run this; a block ends its process; signals wait while the engine does not read."""
    with anyio.fail_after(10):
        async with PieClient(
            engine.connectable, limits=Limits(outbox_bytes=10_000), close_timeout=0.05
        ) as client:
            async with client.launch_process("sleep@0.1.0") as process:
                assert process.process_id in engine.live_processes
            assert not engine.live_processes
            link = client.session.link
            link.requests.add(1_000_000)  # as if the engine had not read for a while
            with anyio.move_on_after(0.05) as scope:
                await client.signal_process(process.process_id, "waits")
            assert scope.cancelled_caught
            link.flush()
            await client.signal_process(process.process_id, "goes")
            await engine.wait_received("signal_process")
            assert engine.received_counts["signal_process"] == 1
