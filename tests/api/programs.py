# SPDX-License-Identifier: Apache-2.0
"""Programs as users of the official client write them, with nothing changed but the import.

Each takes a `Place` and asserts what its user would see. They run against any engine: the simulated ones of both
generations, and a real one. What an engine's program must do is `agent` below, and `AGENT_SOURCE` for a real engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from pie_anyio import Event, ParsedPrivateKey, PieClient

AGENT: Final = "research-agent@0.1.0"

AGENT_MANIFEST: Final = """\
[package]
name = "research-agent"
version = "0.1.0"
description = "answers, or listens"

[runtime]
language = "python"
"""

AGENT_SOURCE: Final = """\
import asyncio
import sys
import time

from inferlet import session


async def main(input):
    question = input.get("question", "")
    if question == "fail":
        raise ValueError("no such question")
    print("thinking", flush=True)
    print("careful", file=sys.stderr, flush=True)
    session.send_file(b"notes")
    if question == "listen":
        session.send("listening")
        text = await session.receive()
        arriving = asyncio.ensure_future(session.receive_file())
        await asyncio.sleep(0)
        time.sleep(0.05)
        session.send("file please")
        data = await arriving
        return {"signal": text, "bytes": len(data)}
    session.send("a step")
    return {"answer": f"{question}: done"}
"""


async def agent(session: Any, input: Any) -> Any:
    """Do for a simulated engine what `AGENT_SOURCE` does for a real one."""
    question = input.get("question", "")
    if question == "fail":
        raise ValueError("no such question")
    await session.stdout("thinking\n")
    await session.stderr("careful\n")
    await session.send_file(b"notes")
    if question == "listen":
        await session.send("listening")
        text = await session.receive()
        session.send("file please")
        data = await session.receive_file()
        return {"signal": text, "bytes": len(data)}
    await session.send("a step")
    return {"answer": f"{question}: done"}


@attrs.frozen(kw_only=True)
class Place:
    """Where a program runs, and what it finds there."""

    url: Any
    """Of the engine, or a connectable."""
    key_file: str
    """A private key that the engine accepts from alice, or does not look at."""
    folder: Path
    """Holds ``research-agent.wasm`` (of any content that the engine takes for it) and ``Pie.toml``."""
    survives_disconnect: bool
    """Processes go on without their connection, and can be attached to from another (0.4)."""


Program = Callable[[Place], Awaitable[None]]
PROGRAMS: Final[dict[str, Program]] = {}
ASYNCIO_ONLY: Final[dict[str, Program]] = {}


def _program(function: Program) -> Program:
    PROGRAMS[function.__name__] = function
    return function


def _asyncio_program(function: Program) -> Program:
    ASYNCIO_ONLY[function.__name__] = function
    return function


async def install(client: PieClient, folder: Path) -> None:
    """Upload the agent where the engine lacks it."""
    if not await client.check_program("research-agent@0.1.0"):
        await client.install_program(folder / "research-agent.wasm", folder / "Pie.toml")


@_program
async def connect_and_authenticate(place: Place) -> None:
    """Connect, read a key, log in, and use the client."""
    async with PieClient(place.url) as client:
        key = ParsedPrivateKey.from_file(place.key_file)
        await client.authenticate("alice", key)
        await client.ping()


@_program
async def launch_and_stream(place: Place) -> None:
    """The loop of the page, to the last branch."""
    handle_message: list[object] = []
    save_blob: list[object] = []
    answer = None
    async with PieClient(place.url) as client:
        key = ParsedPrivateKey.from_file(place.key_file)
        await client.authenticate("alice", key)
        await install(client, place.folder)
        process = await client.launch_process(
            "research-agent@0.1.0",
            input={"question": "What is 2+2?"},
        )
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            while True:
                event, value = await process.recv()
                if event == Event.Stdout:
                    print(value, end="", flush=True)  # noqa: T201
                elif event == Event.Stderr:
                    print(value, end="", flush=True, file=sys.stderr)  # noqa: T201
                elif event == Event.Message:
                    handle_message.append(value)
                elif event == Event.File:
                    save_blob.append(value)
                elif event == Event.Return:
                    answer = json.loads(value)
                    print(answer)  # noqa: T201
                    break
                elif event == Event.Error:
                    raise RuntimeError(value)
    assert answer == {"answer": "What is 2+2?: done"}
    assert "thinking\n" in out.getvalue()
    assert "careful\n" in err.getvalue()
    assert handle_message == ["a step"]
    assert save_blob == [b"notes"]


@_program
async def an_error_event(place: Place) -> None:
    """A program that raises ends with an Error event, whose value a user raises again."""
    async with PieClient(place.url) as client:
        await client.authenticate("alice", ParsedPrivateKey.from_file(place.key_file))
        await install(client, place.folder)
        process = await client.launch_process("research-agent@0.1.0", input={"question": "fail"})
        with pytest.raises(RuntimeError, match="no such question"):
            while True:
                event, value = await process.recv()
                if event == Event.Return:
                    break
                if event == Event.Error:
                    raise RuntimeError(value)


async def _until_message(process: Any, text: str) -> None:
    event = value = None
    while (event, value) != (Event.Message, text):
        event, value = await process.recv()
        assert event not in (Event.Return, Event.Error), value


@_program
async def signal_and_transfer(place: Place) -> None:
    """Send a signal and a file; the program says when it is ready for the latter."""
    pdf_bytes = bytes(range(256)) * 2000  # more than one chunk
    async with PieClient(place.url) as client:
        await client.authenticate("alice", ParsedPrivateKey.from_file(place.key_file))
        await install(client, place.folder)
        process = await client.launch_process("research-agent@0.1.0", input={"question": "listen"})
        await _until_message(process, "listening")
        await process.signal("stop")
        await _until_message(process, "file please")
        await process.transfer_file(pdf_bytes)
        event, value = await process.recv()
    assert event == Event.Return, value
    assert json.loads(value) == {"signal": "stop", "bytes": 512_000}


@_program
async def one_after_the_other(place: Place) -> None:
    """Launch several, then drain them."""
    async with PieClient(place.url) as client:
        await client.authenticate("alice", ParsedPrivateKey.from_file(place.key_file))
        await install(client, place.folder)
        processes = [
            await client.launch_process("research-agent@0.1.0", input={"question": q}) for q in "abc"
        ]
        answers = []
        for proc in processes:
            while True:
                event, value = await proc.recv()
                if event == Event.Return:
                    answers.append(json.loads(value)["answer"])
                    break
                if event == Event.Error:
                    raise RuntimeError(value)
    assert answers == ["a: done", "b: done", "c: done"]


@_asyncio_program
async def gather(place: Place) -> None:
    """The same concurrently, with asyncio's own means."""
    questions = ["one", "two", "three", "four"]
    async with PieClient(place.url) as client:
        await client.authenticate("alice", ParsedPrivateKey.from_file(place.key_file))
        await install(client, place.folder)

        async def run_one(q: str) -> Any:
            proc = await client.launch_process(
                "research-agent@0.1.0",
                input={"question": q},
            )
            while True:
                event, value = await proc.recv()
                if event == Event.Return:
                    return json.loads(value)
                if event == Event.Error:
                    raise RuntimeError(value)

        answers = await asyncio.gather(*(run_one(q) for q in questions))
    assert [answer["answer"] for answer in answers] == [f"{q}: done" for q in questions]


@_program
async def upload_a_local_build(place: Place) -> None:
    """Check, install if absent, check again."""
    async with PieClient(place.url) as client:
        await client.authenticate("alice", ParsedPrivateKey.from_file(place.key_file))
        if not await client.check_program("research-agent@0.1.0"):
            await client.install_program(
                str(place.folder / "research-agent.wasm"), str(place.folder / "Pie.toml")
            )
        assert await client.check_program("research-agent@0.1.0")


@_program
async def detach_and_reattach(place: Place) -> None:
    """Leave a process to itself, and attach to it from a new connection where the engine can."""
    if not place.survives_disconnect:
        return
    async with PieClient(place.url) as client:
        await client.authenticate("alice", ParsedPrivateKey.from_file(place.key_file))
        await install(client, place.folder)
        process = await client.launch_process("research-agent@0.1.0", input={"question": "listen"})
        await _until_message(process, "listening")
        pid = process.process_id
        del process
    async with PieClient(place.url) as client:
        await client.authenticate("alice", ParsedPrivateKey.from_file(place.key_file))
        process = await client.attach_process(pid)
        await process.signal("late")
        await _until_message(process, "file please")
        await process.transfer_file(b"1234")
        event, value = await process.recv()
    assert event == Event.Return, value
    assert json.loads(value) == {"signal": "late", "bytes": 4}


@_program
async def by_process_id(place: Place) -> None:
    """The calls that take an id: list, signal, terminate."""
    async with PieClient(place.url) as client:
        await client.authenticate("alice", ParsedPrivateKey.from_file(place.key_file))
        await install(client, place.folder)
        first = await client.launch_process("research-agent@0.1.0", {"question": "listen"})
        second = await client.launch_process("research-agent@0.1.0", {"question": "listen"})
        rows = {row["id"]: row for row in await client.list_processes()}
        assert json.loads(rows[first.process_id]["input"]) == {"question": "listen"}
        assert rows[second.process_id]["program"] == "research-agent@0.1.0"
        await _until_message(first, "listening")
        await client.signal_process(first.process_id, "by id")
        await _until_message(first, "file please")
        await client.terminate_process(first.process_id)
        await second.terminate()
        for process in (first, second):
            while True:
                event, value = await process.recv()
                assert event != Event.Return
                if event == Event.Error:
                    break
            assert value == "Signal"
        ids = {row["id"] for row in await client.list_processes()}
        assert not ids & {first.process_id, second.process_id}


@_program
async def engine_figures(place: Place) -> None:
    """Query is the pair that the official client gives."""
    async with PieClient(place.url) as client:
        await client.authenticate("alice", ParsedPrivateKey.from_file(place.key_file))
        ok, result = await client.query("model_status", "")
        assert ok
        assert any(key.endswith("kv_pages_total") for key in json.loads(result))


@_program
async def result_of_a_process(place: Place) -> None:
    """Result gives the decoded value and collects the output (0.5.3)."""
    async with PieClient(place.url) as client:
        await client.authenticate("alice", ParsedPrivateKey.from_file(place.key_file))
        await install(client, place.folder)
        process = await client.launch_process("research-agent@0.1.0", {"question": "q"})
        assert await process.result() == {"answer": "q: done"}
        assert "a step" in process.output
        assert "thinking" in "".join(process.output)
        process = await client.launch_process("research-agent@0.1.0", {"question": "fail"})
        with pytest.raises(RuntimeError, match="no such question"):  # the official client's type
            await process.result()


@_program
async def batches(place: Place) -> None:
    """The batch calls of 0.4.0, on either generation."""
    inputs = [{"question": q} for q in "xyz"]
    async with PieClient(place.url) as client:
        await client.authenticate("alice", ParsedPrivateKey.from_file(place.key_file))
        await install(client, place.folder)
        processes = await client.launch_processes("research-agent@0.1.0", inputs)
        assert [(await process.result())["answer"] for process in processes] == [
            "x: done",
            "y: done",
            "z: done",
        ]
        texts = await client.run_processes("research-agent@0.1.0", inputs)
        assert [json.loads(text)["answer"] for text in texts] == ["x: done", "y: done", "z: done"]


@_program
async def upload_from_memory(place: Place) -> None:
    """The bytes variant of 0.5.3, and a forced overwrite in positional order."""
    content = (place.folder / "research-agent.wasm").read_bytes()
    manifest = (place.folder / "Pie.toml").read_text(encoding="utf-8")
    async with PieClient(place.url) as client:
        await client.authenticate("alice", ParsedPrivateKey.from_file(place.key_file))
        await client.install_program_bytes(content, manifest, True)
        assert await client.check_program("research-agent@0.1.0", None, None)
        process = await client.launch_process("research-agent@0.1.0", {"question": "q"}, True)
        assert await process.result() == {"answer": "q: done"}
