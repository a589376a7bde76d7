# SPDX-License-Identifier: Apache-2.0
"""Every request of a client, as the keeper understands it: the engine's protocol, and a few questions more."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from pie_anyio import (
    EngineBusy,
    EngineError,
    Event,
    PieClient,
    ProcessFailed,
    ProcessNotFound,
    ProcessTerminated,
    ProgramNotFound,
    RemoteProtocolError,
)
from pie_anyio._protocol import messages
from pie_anyio._protocol import websocket as wire
from pie_anyio._protocol.messages import AttachProcess, LaunchProcess
from pie_anyio.keeper import KeeperLimits, kept_processes, rewind
from pie_anyio.keeper import requests as subject
from pie_anyio.testing import SimulatedEngine

from .conftest import Kept, add_programs, keep
from .raw import Raw


async def connect(kept: Kept, name: str = "alice") -> Raw:
    return await Raw(await kept.connect(), name).__aenter__()


async def test_a_client_notices_no_difference(kept: Kept) -> None:
    """Launch, output, results, failures, signals, files, queries: as with the engine itself."""
    with anyio.fail_after(5):
        async with kept.client() as client:
            await client.ping()
            assert client.generation == kept.engine.profile.generation
            assert await client.check_program("echo@0.1.0")
            assert not await client.check_program("nothing@0.1.0")
            assert (await client.run_process("echo@0.1.0", {"a": [1, None]})).value == {"a": [1, None]}
            assert await client.map_processes("echo@0.1.0", [1, 2, 3], limit=2) == [1, 2, 3]
            with pytest.raises(ProcessFailed, match="it broke"):
                await client.run_process("fail@0.1.0")
            with pytest.raises(ProgramNotFound):
                await client.run_process("nothing@0.1.0")
            ok, text = await client.query("model_status", "")
            assert ok
            assert "default.kv_pages_total" in json.loads(text)
            async with client.launch_process("files@0.1.0") as process:
                assert (await process.recv()).value == "ready"
                await process.transfer_file(b"abc" * 200_000)
                event = await process.recv()
                assert event.kind is Event.File
                assert event.value == b"abc" * 400_000
                assert await process.result() == 600_000


async def test_inputs_go_through_as_they_are(kept: Kept) -> None:
    """An input is the program's: what is no JSON for us, or JSON in another form, arrives byte for byte."""
    with anyio.fail_after(5):
        for text in ('{"b":1,  "a" : 1.0}', "no json", '"\\u00e9"'):
            raw = await connect(kept)
            await raw.identify("alice")
            ok, _ = await raw.ask(LaunchProcess("echo@0.1.0", text))
            assert ok
            await raw.until_ended()
            await raw.stream.aclose()
        inputs = [
            r.request.input for r in kept.engine.received if isinstance(r.request, messages.LaunchProcess)
        ]
        assert inputs == ['{"b":1,  "a" : 1.0}', "no json", '"\\u00e9"']


async def test_terminate(kept: Kept) -> None:
    """A process is ended by anybody who knows its id; what has ended cannot be ended."""
    with anyio.fail_after(5):
        async with kept.client() as client:
            process = await client.launch_process("wait@0.1.0")
            await client.terminate_process(process.process_id)
            with pytest.raises(ProcessTerminated):
                await process.result()
            await kept.settle()
            (row,) = await kept_processes(client)
            assert row.status == "terminated"
            with pytest.raises(ProcessNotFound):
                await client.terminate_process(process.process_id)
            with pytest.raises(ProcessNotFound):
                await client.terminate_process("0b7c9a52-6d0e-4b39-8f0e-2f1f3c1f7a11")


async def test_list_processes(kept: Kept) -> None:
    """What the keeper has running is listed, with the names under which it was launched."""
    with anyio.fail_after(5):
        async with kept.client("alice") as client:
            process = await client.launch_process("wait@0.1.0", {"n": 1})
            await client.run_process("echo@0.1.0")
            (row,) = await client.list_processes()
            assert (row["id"], row["username"], row["program"], row["input"]) == (
                *(process.process_id, "alice", "wait@0.1.0", '{"n": 1}'),
            )
            assert row["elapsed_secs"] == 0


async def test_kept_processes(kept: Kept) -> None:
    """What has ended is told about too, the newest first."""
    with anyio.fail_after(5):
        async with kept.client("alice") as client:
            await client.run_process("count@0.1.0", {"n": 3})
            await client.launch_process("wait@0.1.0", {"n": "x" * 300})
            await kept.settle()
            newest, oldest = await kept_processes(client)
            assert (newest.status, newest.ended, len(newest.input)) == ("running", None, 200)
            assert (oldest.status, oldest.events, oldest.received, oldest.evicted) == ("returned", 3, 4, 0)
            assert oldest.ended is not None
            assert oldest.ended >= oldest.started
            assert oldest.bytes > 0


async def test_uncaptured(kept: Kept) -> None:
    """A launch without output is given its id all the same, and its end can be had."""
    with anyio.fail_after(5):
        raw = await (await connect(kept)).identify("alice")
        ok, process_id = await raw.ask(LaunchProcess("count@0.1.0", '{"n": 3}', capture_outputs=False))
        assert ok
        await raw.settle()
        assert raw.events() == []
        assert (await raw.ask(AttachProcess(process_id)))[0]
        await raw.until_ended()
        assert raw.events() == [("return", "done")]
        await raw.stream.aclose()


async def test_attach_twice(kept: Kept) -> None:
    """A connection attaches to a process once, and is refused in the words of its generation."""
    with anyio.fail_after(5):
        raw = await (await connect(kept)).identify("alice")
        _, process_id = await raw.ask(LaunchProcess("wait@0.1.0", "{}"))
        v04 = kept.engine.profile.generation == "0.4"
        text = "Process not found" if v04 else "Cannot attach: already attached"
        assert await raw.ask(AttachProcess(process_id)) == (False, text)
        ok, _ = await raw.ask(AttachProcess("nonsense"))
        assert not ok
        await raw.stream.aclose()


async def test_logins(kept: Kept) -> None:
    """Every way to log in is taken, as an engine without authentication would, and nothing secret goes on."""
    v04 = kept.engine.profile.generation == "0.4"
    with anyio.fail_after(5):
        raw = await connect(kept)
        if v04:
            await raw.send(messages.Ping(), 99)
            assert await raw.ask(messages.AuthByToken("secret")) == (True, "Authenticated")
            assert len([item for item in raw.received if isinstance(item, dict)]) == 1
            await raw.stream.aclose()
            raw = await connect(kept)
            assert await raw.ask(messages.AuthIdentify("a")) == (True, messages.NO_AUTH_LITERAL)
        else:
            assert await raw.ask(messages.AuthIdentify("a")) == (True, messages.ALREADY_AUTHENTICATED)
            assert await raw.ask(messages.AuthProve("secret")) == (False, messages.ALREADY_AUTHENTICATED)
        assert (await raw.ask(messages.Ping()))[1] == subject.PONG
        await raw.stream.aclose()
    assert "secret" not in str([r.request for r in kept.engine.received])


async def test_programs_are_installed(kept: Kept) -> None:
    """An upload goes on to the engine; a bad one is refused here, or by the engine in its words."""
    manifest = '[package]\nname = "mine"\nversion = "1.2.3"\n'

    @kept.engine.inferlet("mine", installed=False)
    async def mine(session: Any, input: Any) -> str:
        return "mine"

    with anyio.fail_after(5):
        async with kept.client() as client:
            await client.install_program_bytes(b"\0asm" + bytes(600_000), manifest)
            assert (await client.run_process("mine@1.2.3")).value == "mine"
        raw = await (await connect(kept)).identify("alice")
        chunk = messages.AddProgram("wrong", manifest, False, 0, 1, b"data")
        assert await raw.ask(chunk) == (False, "Program hash mismatch")
        data = b"\0asm"
        digest = messages_digest(data)
        ok, text = await raw.ask(messages.AddProgram(digest, "no manifest", False, 0, 1, data))
        assert not ok
        assert "manifest" in text
        await raw.stream.aclose()


def messages_digest(data: bytes) -> str:
    import blake3

    return blake3.blake3(data).hexdigest()


async def test_files_that_are_wrong_are_dropped(kept: Kept) -> None:
    """As with engines, nobody is told; nor of signals to what is not there."""
    with anyio.fail_after(5):
        raw = await (await connect(kept)).identify("alice")
        _, process_id = await raw.ask(LaunchProcess("files@0.1.0", "{}"))
        await raw.until_event("ready")
        await raw.send(messages.TransferFile(process_id, "wrong", 0, 1, b"abc"))
        good = messages_digest(b"abc")
        await raw.send(messages.TransferFile("nobody", good, 0, 1, b"abc"))
        await raw.send(messages.SignalProcess("nobody", "hello"))
        await raw.send(messages.TransferFile(process_id, good, 0, 1, b"abc"))
        await raw.until_ended()
        assert raw.events()[-1] == ("return", "3")
        await raw.stream.aclose()


@pytest.mark.parametrize(
    "request_",
    [
        messages.LaunchProcesses("echo@0.1.0", ["{}"]),
        messages.RunProcesses("echo@0.1.0", ["{}"]),
        messages.LaunchDaemon(8080, "echo@0.1.0", "{}"),
        messages.RegisterMcpServer("name", "stdio"),
    ],
)
@pytest.mark.parametrize("profile", ["v04"])
async def test_what_is_not_relayed(kept: Kept, request_: messages.Request) -> None:
    """What a keeper cannot stand for is refused, by name."""
    with anyio.fail_after(5):
        raw = await (await connect(kept)).identify("alice")
        ok, text = await raw.ask(request_)
        assert not ok
        assert request_.type in text
        await raw.send(messages.McpResponse(1, True, ""))  # nobody asked; it is never answered
        await raw.ask(messages.Ping())
        assert len([item for item in raw.received if isinstance(item, dict)]) == 3
        await raw.stream.aclose()


async def test_queries(kept: Kept) -> None:
    """The keeper tells about itself; what it does not know it passes on, where the engine answers."""
    with anyio.fail_after(5):
        raw = await (await connect(kept)).identify("alice")
        ok, text = await raw.ask(messages.Query("keeper", ""))
        facts = json.loads(text)
        assert ok
        assert (facts["sessions"], facts["running"], facts["problem"]) == (1, 0, "")
        assert facts["generation"] == kept.engine.profile.generation
        ok, text = await raw.ask(messages.Query("unknown", ""))
        assert not ok
        assert "unknown query subject" in text
        for wish in ("", "[]", "{}", '{"process_id": 1, "place": 1}', '{"process_id": "a", "place": true}'):
            ok, text = await raw.ask(messages.Query("kept_rewind", wish))
            assert not ok
            assert "wants" in text
        wish = '{"process_id": "0b7c9a52-6d0e-4b39-8f0e-2f1f3c1f7a11", "place": 1}'
        assert await raw.ask(messages.Query("kept_rewind", wish)) == (False, "Process not found")
        await raw.stream.aclose()


async def test_an_engine_is_no_keeper(engine: SimulatedEngine) -> None:
    """The questions for a keeper are not put to an engine, which might never answer them."""
    with anyio.fail_after(5):
        async with PieClient(engine.connectable) as client:
            with pytest.raises(EngineError, match="no keeper"):
                await kept_processes(client)
            assert engine.received_counts["query"] == 0


async def test_refusals_of_questions(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused question is an error, and so is an answer that is none."""
    with anyio.fail_after(5):
        async with kept.client() as client:
            with pytest.raises(EngineError, match="Process not found"):
                await rewind(client, "0b7c9a52-6d0e-4b39-8f0e-2f1f3c1f7a11")
            monkeypatch.setattr(subject, "_kept_processes", lambda session: (True, '[{"id": 1}]'))
            with pytest.raises(RemoteProtocolError):
                await kept_processes(client)


async def test_a_fault_of_ours_fails_one_request(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """What goes wrong in the keeper itself is logged and answered, and the connection goes on."""

    def broken(*arguments: object) -> Any:
        msg = "a bug"
        raise RuntimeError(msg)

    monkeypatch.setattr(subject, "_kept_processes", broken)
    monkeypatch.setitem(subject._AT_ONCE, messages.ListProcesses, broken)
    with anyio.fail_after(5):
        raw = await (await connect(kept)).identify("alice")
        for request in (messages.ListProcesses(), messages.Query("kept_processes", "")):
            ok, text = await raw.ask(request)
            assert not ok
            assert "its log says more" in text
        assert (await raw.ask(messages.Ping()))[0]
        await raw.stream.aclose()
    assert "a bug" in caplog.text


async def test_running_processes_are_bounded(anyio_backend: Any, profile: Any) -> None:
    """Beyond the bound a launch is refused as by an engine without capacity, so that maps wait."""
    async with SimulatedEngine(profile, port=None) as engine:
        add_programs(engine)
        with anyio.fail_after(5):
            async with keep(engine, limits=KeeperLimits(running=2)) as kept, kept.client() as client:
                async with client.launch_process("wait@0.1.0"), client.launch_process("wait@0.1.0"):
                    with pytest.raises(EngineBusy, match="2 running processes"):
                        await client.launch_process("echo@0.1.0")
                assert await client.map_processes("echo@0.1.0", list(range(8)), limit=4) == list(range(8))


async def test_requests_are_bounded(anyio_backend: Any) -> None:
    """A client with too many requests under way is not read from until there is room."""
    async with SimulatedEngine(port=None) as engine:
        add_programs(engine)
        with anyio.fail_after(5):
            async with keep(engine, limits=KeeperLimits(requests=2)) as kept:
                raw = await connect(kept)
                with engine.faults.hold("query") as hold:
                    for corr_id in range(1, 5):
                        await raw.send(messages.Query("model_status", ""), corr_id)
                    await hold.wait_for(2)
                    await kept.settle()
                    assert engine.received_counts["query"] == 2
                await raw.until(lambda item: isinstance(item, dict) and item.get("corr_id") == 4)
                await raw.stream.aclose()


async def test_what_cannot_be_read_is_passed_over(kept: Kept) -> None:
    """Garbage in frames, texts and requests before the login change nothing; broken frames end the connection."""
    with anyio.fail_after(5):
        raw = await (await connect(kept)).identify("alice")
        await raw.stream.send(raw.ws.binary(b"\xc1"))
        await raw.stream.send(raw.ws.text("cancel"))
        await raw.stream.send(raw.ws.binary(bytes(100)))
        await raw.send(messages.McpResponse(1, True, "x"))
        assert (await raw.ask(messages.Ping()))[0]
        await raw.stream.send(b"\xff" * 100)
        await raw.until_end()
        await kept.settle()
        assert not kept.keeper.sessions


async def test_a_close_is_answered(kept: Kept) -> None:
    """A client that says goodbye is answered, so that nobody waits for a time-out."""
    with anyio.fail_after(5):
        raw = await (await connect(kept)).identify("alice")
        await raw.stream.send(raw.ws.close(1000))
        await raw.until_end()
        assert any(isinstance(item, wire.CloseReceived) and item.code == 1000 for item in raw.received)


async def test_a_launch_that_nobody_waits_for(kept: Kept) -> None:
    """A client that leaves before the answer to its launch has it launched all the same."""
    with anyio.fail_after(5):
        with kept.engine.faults.hold("launch_process") as hold:
            raw = await (await connect(kept)).identify("alice")
            await raw.send(LaunchProcess("talk@0.1.0", "{}"), 7)
            await hold.wait_for(1)
            await raw.stream.aclose()
            await kept.settle()
        await kept.settle()
        async with kept.client() as client:
            (row,) = await kept_processes(client)
            process = await client.attach_process(row.id)
            await process.signal("quit")
            assert await process.result() == {}
