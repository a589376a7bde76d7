# SPDX-License-Identifier: Apache-2.0
"""Processes: awaited or entered, read, waited for, ended, left, and attached to again."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_anyio import (
    ConnectionLost,
    Error,
    Event,
    File,
    InvalidRequest,
    Limits,
    Message,
    OutputOverflow,
    PieClient,
    Process,
    ProcessFailed,
    ProcessLost,
    ProcessNotFound,
    ProcessTerminated,
    Return,
    Stderr,
    Stdout,
    TransferError,
)
from pie_anyio._calls import RequestCall
from pie_anyio._process import decode_value, ending_error
from pie_anyio._protocol import messages
from pie_anyio._session import uploads
from pie_anyio._session.registry import Ending, EndKind, Run
from pie_anyio.testing import SimulatedEngine

NOBODY = "00000000-0000-4000-8000-000000000000"


async def test_events_can_be_matched(client: PieClient, engine: SimulatedEngine) -> None:
    """By their classes, with what belongs to each."""

    @engine.inferlet("all@0.1.0")
    async def everything(session: Any, input: Any) -> Any:
        await session.stdout("o")
        await session.stderr("e")
        await session.send({"m": 1})
        await session.send_file(b"f", "name.txt")
        return {"v": 1}

    seen: list[object] = []
    with anyio.fail_after(5):
        async with client.launch_process("all@0.1.0") as process:
            async for event in process:
                match event:
                    case Stdout(value=text) | Stderr(value=text) | Message(value=text):
                        seen.append(text)
                    case File(value=data):
                        seen.append(bytes(data))
                    case Return(value=text):
                        seen.append(text)
        assert seen == ["o", "e", '{"m": 1}', b"f", '{"v": 1}']
        assert process.return_value == {"v": 1}
        assert process.ended
        assert "ended" in repr(process)


async def test_a_result_with_everything(client: PieClient, engine: SimulatedEngine) -> None:
    """As run_process gives it, with timings in order."""

    @engine.inferlet("all@0.1.0")
    async def everything(session: Any, input: Any) -> Any:
        for text in ("one", "two"):
            await session.stdout(text)
            await session.stderr(text.upper())
            await session.send(text)
        await session.send_file(b"f")
        return "plain"

    with anyio.fail_after(5):
        result = await client.run_process("all@0.1.0", {"x": 1})
    assert (result.value, result.raw) == ("plain", "plain")
    assert (result.stdout, result.stderr) == ("onetwo", "ONETWO")
    assert (result.messages, result.files) == (["one", "two"], [b"f"])
    timings = result.timings
    assert timings.started is not None
    assert timings.first_output is not None
    assert timings.ended is not None
    assert timings.submitted <= timings.started <= timings.first_output <= timings.ended
    assert timings.total is not None
    assert timings.to_first_output is not None


async def test_timings_of_what_has_not_happened(client: PieClient) -> None:
    """Are None."""
    with anyio.fail_after(5):
        async with client.launch_process("sleep@0.1.0") as process:
            assert process.timings.total is None
            assert process.timings.to_first_output is None
            assert "running" in repr(process)
            assert process.program == "sleep@0.1.0"
            with pytest.raises(InvalidRequest, match=r"await process.result\(\)"):
                _ = process.return_value


@pytest.mark.parametrize(
    ("value", "decoded"),
    [
        *((None, None), ("", None), ("text", "text"), ("[1", "[1"), ([1], [1])),
        *(("1 2", "1 2"), (" [1]\n", [1]), ("NaN,", "NaN,"), ("[" * 10**5, "[" * 10**5)),
    ],
)
async def test_returned_values(client: PieClient, value: Any, decoded: Any, engine: SimulatedEngine) -> None:
    """JSON where it is JSON, else text; nothing where there is nothing."""

    @engine.inferlet("give@0.1.0")
    async def give(session: Any, input: Any) -> Any:
        return value

    with anyio.fail_after(5):
        async with client.launch_process("give@0.1.0") as process:
            assert await process.result() == decoded


@given(st.text(' \t\n\r[]{}",:0123nultrefaso\\\ufeff\x0b\xa0eE+-.NI'))
def test_values_are_json_wherever_they_are(text: str) -> None:
    """The quick way takes exactly what the library's takes."""
    try:
        expected = json.loads(text) if text else None
    except ValueError:
        expected = text
    assert repr(decode_value(text)) == repr(expected)


async def test_failures_carry_the_last_output(client: PieClient) -> None:
    """In the attribute and in the message, however the process was read."""
    with anyio.fail_after(5):
        with pytest.raises(ProcessFailed, match="last output") as caught:
            await client.run_process("fail@0.1.0")
        assert caught.value.output_tail == "before\ntrouble\n"
        process = await client.launch_process("fail@0.1.0")
        with pytest.raises(ProcessFailed) as caught:
            await process.result()
        assert caught.value.output_tail == "before\ntrouble\n"
        process = await client.launch_process("fail@0.1.0", capture_outputs=False)
        await process.wait()
        with pytest.raises(ProcessFailed) as caught:
            _ = process.return_value
        assert caught.value.output_tail == "before\ntrouble\n"


@pytest.mark.parametrize("name", ["launch_process('echo@0.1.0')", f"attach_process('{NOBODY}')", "ping"])
async def test_a_call_that_is_not_used_warns(client: PieClient, engine: SimulatedEngine, name: str) -> None:
    """Like a coroutine that nobody awaits."""
    calls: dict[str, Callable[[], object]] = {
        "launch_process": lambda: client.launch_process("echo@0.1.0"),
        "attach_process": lambda: client.attach_process(NOBODY),
        "ping": lambda: RequestCall(client.session, messages.Ping(), "error", quiet=False),  # type: ignore[arg-type] # any request has a name
    }
    pattern = re.escape(name) + " was neither awaited nor entered"
    with pytest.warns(RuntimeWarning, match=pattern):  # noqa: PT031 - other interpreters collect later
        calls[name.partition("(")[0]]()
        gc.collect()
    assert not engine.received


async def test_a_call_is_used_once(client: PieClient) -> None:
    """Awaited or entered, not both."""
    with anyio.fail_after(5):
        call = client.launch_process("echo@0.1.0")
        await call
        with pytest.raises(InvalidRequest, match="used twice"):
            await call
        with pytest.raises(InvalidRequest, match="used twice"):
            async with call:
                pytest.fail("entered")


async def test_terminating_is_idempotent(client: PieClient, engine: SimulatedEngine) -> None:
    """And says who did it."""
    with anyio.fail_after(5):
        async with client.launch_process("sleep@0.1.0") as process:
            await process.terminate()
            await process.terminate()
            await process.wait()
            await process.terminate()
            with pytest.raises(ProcessTerminated, match="by this client") as caught:
                await process.result()
            assert caught.value.by_us
        async with client.launch_process("sleep@0.1.0") as process:
            engine.find_process(process.process_id).terminate()  # type: ignore[union-attr]
            with pytest.raises(ProcessTerminated, match="by somebody else"):
                await process.result()
    assert client.receipt.terminated == 2


async def test_the_policies_for_unread_output(engine: SimulatedEngine) -> None:
    """An error at the place of the loss, or a gap; the result is safe with both."""

    @engine.inferlet("flood@0.1.0")
    async def flood(session: Any, input: Any) -> int:
        for number in range(100):
            await session.stdout(f"{number:0100}")
        return 5

    with anyio.fail_after(5):
        async with PieClient(engine.connectable, limits=Limits(process_buffer_bytes=2000)) as client:
            process = await client.launch_process("flood@0.1.0")
            await process.wait()
            with pytest.raises(OutputOverflow):
                async for _ in process:
                    pass
            assert await process.result() == 5
            process = await client.launch_process("flood@0.1.0")
            await process.wait()
            assert await process.result() == 5
            process = await client.launch_process("flood@0.1.0", overflow="drop_oldest")
            await process.wait()
            kinds = [event.kind async for event in process]
            assert kinds[0] is Event.Gap
            assert kinds[-1] is Event.Return


async def test_one_reader_at_a_time(client: PieClient) -> None:
    """The second is told so."""
    with anyio.fail_after(5):
        async with client.launch_process("sleep@0.1.0") as process, anyio.create_task_group() as tasks:
            tasks.start_soon(process.recv)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await process.recv()
            tasks.cancel_scope.cancel()


async def test_detaching_and_attaching(anyio_backend: Any) -> None:
    """0.4 as documented: the output of the time between is kept."""
    from tests.api.conftest import add_programs

    with anyio.fail_after(5):
        async with SimulatedEngine("v04", port=None) as engine:
            add_programs(engine)
            async with PieClient(engine.connectable, close_timeout=0.05) as client:
                async with client.launch_process("talk@0.1.0", "kept") as process:
                    pid = process.detach()
            await engine.wait_connections(0)
            async with PieClient(engine.connectable) as client:
                async with client.attach_process(pid) as process:
                    await process.signal("hi")
                    await process.signal("quit")
                    assert await process.result() == "kept"
                    assert process.output[-1] == "HI"
                with pytest.raises(ProcessNotFound, match="it has ended"):
                    await client.attach_process(pid)


async def test_attaching_where_somebody_is(client: PieClient, engine: SimulatedEngine) -> None:
    """Refused by the engine; the owner is not disturbed."""
    with anyio.fail_after(5):
        process = await client.launch_process("talk@0.1.0", 1)
        async with PieClient(engine.connectable, close_timeout=0.05) as other:
            with pytest.raises(ProcessNotFound, match="attached to another connection"):
                await other.attach_process(process.process_id)
            assert other.receipt.not_started == 1
        await process.signal("quit")
        assert await process.result() == 1


async def test_an_attach_that_is_entered_ends_the_process(client: PieClient, engine: SimulatedEngine) -> None:
    """As a launch does, also where the handle is a second one."""
    with anyio.fail_after(5):
        process = await client.launch_process("sleep@0.1.0")
        process.detach()
        async with client.attach_process(process.process_id):
            pass
        assert not engine.live_processes


async def test_files_from_paths(client: PieClient, tmp_path: Path) -> None:
    """Read piece by piece; also empty ones, and all that is bytes."""
    path = tmp_path / "file.bin"
    path.write_bytes(bytes(700_000))
    contents: list[tuple[Any, int]] = [
        (path, 700_000),
        (str(path), 700_000),
        (bytearray(10), 10),
        (memoryview(b"abc"), 3),
        (b"", 0),
        (bytes(1_500_000), 1_500_000),
    ]
    with anyio.fail_after(10):
        for content, size in contents:
            async with client.launch_process("take@0.1.0") as process:
                await process.recv()
                await process.transfer_file(content)
                assert await process.result() == size


async def test_an_upload_holds_a_window_and_not_the_file(engine: SimulatedEngine, tmp_path: Path) -> None:
    """However large the file is."""
    path = tmp_path / "p.wasm"
    path.write_bytes(b"\0asm" + bytes(8_000_000))
    (tmp_path / "Pie.toml").write_text('[package]\nname = "up"\nversion = "0.1.0"\n', encoding="utf-8")
    levels: list[int] = []
    with anyio.fail_after(10):
        async with PieClient(engine.connectable, limits=Limits(upload_window=600_000)) as client:
            await client.ping()
            protocol = client.session.link.protocol
            chunk = protocol.upload_chunk

            def note(*args: Any) -> bool:
                result = chunk(*args)
                levels.append(protocol.bulk_bytes)
                return result

            protocol.upload_chunk = note  # type: ignore[method-assign,assignment]
            await client.install_program(path, tmp_path / "Pie.toml")
    assert len(levels) == 31
    assert max(levels) < 1_200_000


async def test_an_upload_whose_connection_goes(engine: SimulatedEngine) -> None:
    """The error knows that some of it was sent."""
    with anyio.fail_after(5):
        async with PieClient(engine.connectable, limits=Limits(upload_window=300_000)) as client:
            await client.ping()
            engine.faults.drop_on.add("add_program")
            with pytest.raises(ConnectionLost) as caught:
                await client.install_program_bytes(
                    bytes(6_000_000), '[package]\nname = "up"\nversion = "0.1.0"\n'
                )
            assert caught.value.issued is True


async def test_a_file_whose_connection_goes(engine: SimulatedEngine) -> None:
    """Whether it arrived is unknown."""
    with anyio.fail_after(5):
        async with PieClient(engine.connectable, limits=Limits(upload_window=300_000)) as client:
            process = await client.launch_process("take@0.1.0")
            engine.faults.drop_on.add("transfer_file")
            with pytest.raises(ConnectionLost):
                await process.transfer_file(bytes(6_000_000))


async def test_an_upload_after_one_that_was_cut_off(
    client: PieClient, engine: SimulatedEngine, profile: Any
) -> None:
    """0.4 refuses the first chunk of the same bytes once, and forgets the old ones with that."""
    content = b"\0asm" + bytes(600_000)
    manifest = '[package]\nname = "up"\nversion = "0.1.0"\n'
    if profile == "v05":
        return
    with anyio.fail_after(5):
        await client.ping()
        refusals = [(False, "Out-of-order chunk: expected 2, got 0")]

        def once(message: dict[str, Any]) -> dict[str, Any]:
            if message.get("result", "").startswith("Program installed") and refusals:
                ok, result = refusals.pop()
                return {**message, "ok": ok, "result": result}
            return message

        engine.faults.rewrite = once
        await client.install_program_bytes(content, manifest)
        assert engine.received_counts["add_program"] == 6


async def test_a_file_that_cannot_be_read_any_more(
    client: PieClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of it; the connection goes on."""
    path = tmp_path / "file.bin"
    path.write_bytes(bytes(600_000))

    def fail(file: Any) -> bytes:
        raise OSError(5, "Input/output error")

    with anyio.fail_after(5):
        async with client.launch_process("take@0.1.0") as process:
            await process.recv()
            with monkeypatch.context() as patch:
                patch.setattr(uploads, "_read", fail)
                with pytest.raises(
                    TransferError, match=r"file\.bin can no longer be read: Input/output error"
                ):
                    await process.transfer_file(path)
            await client.ping()


@pytest.mark.parametrize("source", ["bytes", "file"])
async def test_a_connection_that_goes_between_two_chunks(
    client: PieClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """While nothing is being sent: the error is the same as in the middle of it."""
    path = tmp_path / "file.bin"
    path.write_bytes(bytes(600_000))
    read = uploads.ChunkReader.read
    seen: list[int] = []

    async def cut(self: uploads.ChunkReader) -> bytes:
        seen.append(0)
        if len(seen) == 2:
            link = client.session.link
            await link.transport.aclose()
            while not link.router.ended.done:
                await anyio.lowlevel.checkpoint()
        return await read(self)

    monkeypatch.setattr(uploads.ChunkReader, "read", cut)
    with anyio.fail_after(5):
        process = await client.launch_process("take@0.1.0")
        await process.recv()
        with pytest.raises(ConnectionLost) as caught:
            await process.transfer_file(path if source == "file" else bytes(600_000))
        assert caught.value.issued
    assert len(seen) == 2


async def test_requests_wait_while_the_engine_does_not_read(engine: SimulatedEngine) -> None:
    """Above the high-water mark of the outbox; when the connection goes they know that nothing was sent."""
    with anyio.fail_after(5):
        async with PieClient(engine.connectable, limits=Limits(outbox_bytes=1000)) as client:
            await client.ping()
            link = client.session.link
            async with anyio.create_task_group() as tasks:
                link.requests.add(5000)
                tasks.start_soon(client.ping)
                await anyio.wait_all_tasks_blocked()
                assert engine.received_counts["ping"] == 1
                link.requests.remove(5000)
            assert engine.received_counts["ping"] == 2
            link.requests.add(5000)
            async with anyio.create_task_group() as tasks:

                async def ask() -> None:
                    with pytest.raises(ConnectionLost) as caught:
                        await client.ping()
                    assert caught.value.issued is False

                tasks.start_soon(ask)
                await anyio.wait_all_tasks_blocked()
                engine.faults.drop_connections()


def test_endings_as_errors() -> None:
    """Each kind has its class; what never left is marked as safe to repeat."""
    run = Run("p@0.1.0", 1, None, None)  # type: ignore[arg-type]
    classes: dict[EndKind, Any] = {
        EndKind.FAILED: ProcessFailed,
        EndKind.TERMINATED: ProcessTerminated,
        EndKind.LOST: ProcessLost,
        EndKind.WITHDRAWN: ProcessLost,
    }
    for kind, cls in classes.items():
        error: Any = ending_error(run, Ending(kind, "text"), index=3, key="k")
        assert type(error) is cls
        assert (error.index, error.key, error.program) == (3, "k", "p@0.1.0")
        assert "launch of p@0.1.0" in str(error)
        if isinstance(error, ProcessLost):
            assert error.issued is (kind is EndKind.LOST)


async def test_a_process_without_output_can_be_detached(client: PieClient) -> None:
    """There is no buffer that would have to let go of the connection."""
    async with client.launch_process("echo@0.1.0", 5, capture_outputs=False) as process:
        assert process.detach() == process.process_id
        assert await process.result() == 5


async def test_the_end_of_a_process_that_nobody_reads_is_told_once(client: PieClient) -> None:
    """Also where two have been waiting for it: one gets it, and for the other the stream is over."""
    got: list[object] = []

    async def read(process: Process) -> None:
        try:
            got.append(type(await process.recv()))
        except anyio.EndOfStream:
            got.append("over")

    with anyio.fail_after(5):
        process = await client.launch_process("sleep@0.1.0", capture_outputs=False)
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(read, process)
            await anyio.wait_all_tasks_blocked()
            await process.terminate()
        assert sorted(got, key=str) == [Error, "over"]
        with pytest.raises(anyio.EndOfStream):
            await process.recv()


async def test_the_result_takes_the_end(client: PieClient) -> None:
    """Of a process that printed nothing, too: after it there is nothing to receive, and nothing else has changed."""
    with anyio.fail_after(5):
        process = await client.launch_process("echo@0.1.0", 5)
        await process.wait()
        assert await process.result() == 5
        with pytest.raises(anyio.EndOfStream):
            await process.recv()
        assert [event async for event in process] == []
        assert await process.result() == process.return_value == 5
