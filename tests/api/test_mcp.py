# SPDX-License-Identifier: Apache-2.0
"""Tool servers beside the client (0.4): what programs get, what servers may do wrong, and how they end."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import BrokenResourceError
from anyio.abc import ByteReceiveStream, ByteSendStream, Process
from anyio.lowlevel import checkpoint

from pie_anyio import (
    ConnectionLost,
    EngineError,
    InvalidRequest,
    Limits,
    PieClient,
    ProcessFailed,
    Reconnect,
    UnsupportedByEngine,
    _mcp,
)
from pie_anyio._mcp import ToolServer
from pie_anyio.testing import SimulatedEngine, ToolError

SCRIPT = Path(__file__).with_name("tool_server.py")


def arguments(behaviour: str = "") -> list[str]:
    return ["-I", "-S", str(SCRIPT), behaviour]


async def register(client: PieClient, behaviour: str = "", name: str = "calc") -> None:
    await client.register_mcp_server(name, "stdio", sys.executable, arguments(behaviour))


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[tuple[SimulatedEngine, PieClient]]:
    """Give an engine whose program calls the tool that its input names, and a client without a server yet."""
    with anyio.fail_after(30):
        async with SimulatedEngine("v04", port=None) as engine:

            @engine.inferlet("call@0.1.0")
            async def call(session: Any, input: Any) -> Any:
                try:
                    return await session.call_mcp(*input)
                except ToolError as exc:
                    return {"code": exc.code, "message": str(exc), "data": exc.data}

            async with PieClient(engine.connectable, **options) as client:
                yield engine, client


async def request(client: PieClient, method: str, params: object = None, name: str = "calc") -> Any:
    """Have a program make one call; give what it got."""
    return (await client.run_process("call@0.1.0", [name, method, params])).value


async def tool(client: PieClient, tool_name: str, value: object = None, server: str = "calc") -> Any:
    return await request(client, "tools/call", {"name": tool_name, "arguments": value}, server)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# ------------------------------------------------------------------------------------------------------------- calls


async def test_programs_call_tools() -> None:
    """Methods, parameters and results pass unchanged; what else a server prints does no harm."""
    async with running() as (_engine, client):
        await register(client)
        assert await request(client, "tools/list") == {"method": "tools/list", "params": {}}
        assert await request(client, "resources/read", {"uri": "a:b"}) == {
            "method": "resources/read",
            "params": {"uri": "a:b"},
        }
        values: list[Any] = [
            "text",
            "ünïcödé \U0001f600\n",
            [1, 2.5, None, True],
            {"a": {}},
            {"isError": True},
        ]
        for value in values:
            assert await tool(client, "echo", value) == value
        assert await tool(client, "echo", None) is None


async def test_the_handshake_is_the_official_one() -> None:
    """The first request, by its number, its protocol version and its name of the client."""
    async with running() as (_engine, client):
        await register(client)
        greeting = await tool(client, "greeting")
        assert greeting["id"] == 1
        assert greeting["method"] == "initialize"
        assert greeting["params"]["protocolVersion"] == "2024-11-05"
        assert greeting["params"]["clientInfo"]["name"] == "pie-anyio"


async def test_errors_of_tools_arrive_as_they_are() -> None:
    """Code, message and data; what is no error object gets the usual code."""
    async with running() as (_engine, client):
        await register(client)
        error = {"code": -7, "message": "no", "data": {"why": [1]}}
        assert await tool(client, "fail", error) == error
        assert await tool(client, "fail", "plain") == {"code": -32000, "message": "plain", "data": None}
        assert (await tool(client, "unknown"))["code"] == -32602


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('{"jsonrpc": "2.0", "id": ID}', "without a result"),
        ('{"id": ID, "result": 1e999}', "no JSON form"),
        ('{"id": ID, "error": {"code": NaN}}', "no JSON form"),
        ('{not JSON}\n"text"\n{"id": "ID", "result": 1}\n{"id": ID, "error": 5}', "5"),
        ('{"id": null, "method": "ping"}\n{"id": ID, "error": [1]}', "[1]"),
    ],
)
async def test_answers_that_make_no_sense(line: str, text: str) -> None:
    """They fail the call that they are about, or nothing at all."""
    async with running() as (_engine, client):
        await register(client)
        answer = await tool(client, "raw", line)
        assert answer["code"] == -32000
        assert text in answer["message"]
        assert await tool(client, "echo", 1) == 1


async def test_parameters_that_cannot_be_passed_on() -> None:
    """An engine checks them; what it lets through that is not JSON is refused here."""
    async with running() as (_engine, client):
        await register(client)
        server = client._tools._servers["calc"]
        for params in ("{", "[" * 100_000, '{"a": 1e999}'):
            ok, text = await server.call("tools/call", params)
            assert not ok
            assert json.loads(text)["code"] == -32602
        assert server._waiting == {}


async def test_calls_are_concurrent_and_answered_in_any_order() -> None:
    """A slow tool holds up neither other calls nor anything else."""
    async with running() as (engine, client):
        await register(client)
        slow: list[Any] = []

        async def park() -> None:
            slow.append(await tool(client, "park"))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(park)
            await engine.wait_until(lambda: len(engine.live_processes) == 3)
            await client.ping()
            assert await tool(client, "echo", "quick") == "quick"
            assert slow == []
            # The number of this call is the last one.
            last = await tool(client, "unpark")
        assert len(slow) == 3
        assert max(slow) < last


async def test_so_many_calls_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One server works on a bounded number; the others wait for their turn and none is lost."""
    monkeypatch.setattr(_mcp, "CALLS_AT_ONCE", 2)
    async with running() as (_engine, client):
        await register(client)
        values: list[Any] = []

        async def echo(value: int) -> None:
            values.append(await tool(client, "echo", value))

        async with anyio.create_task_group() as tasks:
            for value in range(20):
                tasks.start_soon(echo, value)
        assert sorted(values) == list(range(20))
        assert client._tools._servers["calc"]._limiter.total_tokens == 2


async def test_too_many_calls_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, with an error, and later ones are served again."""
    monkeypatch.setattr(_mcp, "CALLS_IN_ALL", 1)
    async with running() as (engine, client):
        await register(client)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tool, client, "park")
            await engine.wait_until(lambda: len(engine.live_processes) == 1)
            await client.ping()
            refused = await tool(client, "echo", 1)
            assert "more than 1 calls" in refused["message"]
            monkeypatch.setattr(_mcp, "CALLS_IN_ALL", 2)
            await tool(client, "unpark")
        monkeypatch.setattr(_mcp, "CALLS_IN_ALL", 1)
        assert await tool(client, "echo", 1) == 1


async def test_requests_of_the_server_are_answered() -> None:
    """A ping with a result, all else with an error: nobody is left waiting."""
    async with running() as (_engine, client):
        await register(client)
        answers = await tool(
            client, "ask", [{"method": "ping"}, {"method": "sampling/createMessage", "params": {}}]
        )
        assert answers[0] == {"jsonrpc": "2.0", "id": "q0", "result": {}}
        assert answers[1]["id"] == "q1"
        assert answers[1]["error"]["code"] == -32601
        assert "sampling/createMessage" in answers[1]["error"]["message"]


async def test_a_server_that_asks_and_does_not_read() -> None:
    """It gets no answers beyond what fits, and its own answer is read all the same."""
    async with running() as (_engine, client):
        await register(client)
        assert await tool(client, "flood", 20_000) == "flooded"
        assert await tool(client, "echo", 1) == 1


# ------------------------------------------------------------------------------------------------------------- sizes


async def test_long_lines() -> None:
    """Far beyond the 64 KiB at which readers of lines usually stop, in both directions."""
    async with running() as (_engine, client):
        await register(client)
        assert await tool(client, "large", 1_000_000) == "x" * 1_000_000
        assert await tool(client, "echo", "y" * 1_000_000) == "y" * 1_000_000


async def test_a_line_beyond_the_limit_ends_the_server() -> None:
    """The limit is the one for messages of the engine."""
    async with running(limits=Limits(message_bytes=200_000)) as (_engine, client):
        await register(client)
        assert len(await tool(client, "large", 100_000)) == 100_000
        answer = await tool(client, "large", 300_000)
        assert answer["code"] == -32000
        assert "more than 200000 bytes" in answer["message"]


async def test_an_answer_that_the_engine_would_not_take() -> None:
    """It would close the connection; the call fails instead."""
    async with running() as (_engine, client):
        await register(client)
        answer = await tool(client, "large", 17 * 1024 * 1024)
        assert answer["code"] == -32000
        assert "larger than the engine takes" in answer["message"]
        assert await tool(client, "echo", 1) == 1


# ------------------------------------------------------------------------------------------------------------- death


async def test_the_death_of_a_server() -> None:
    """Outstanding and later calls fail, and the name may be used again."""
    async with running() as (engine, client):
        await register(client)
        outstanding: list[Any] = []

        async def park() -> None:
            outstanding.append(await tool(client, "park"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(park)
            await engine.wait_until(lambda: len(engine.live_processes) == 1)
            await client.ping()
            assert (await tool(client, "exit"))["code"] == -32000
        assert outstanding[0]["code"] == -32000
        assert "has ended" in (await tool(client, "echo", 1))["message"]
        await register(client)
        assert await tool(client, "echo", 1) == 1


@pytest.fixture
def broken_pipes(anyio_backend: Any) -> None:
    """Skip where the loop does not tell that nobody reads a child's input."""
    if anyio_backend[1].get("use_uvloop"):
        pytest.skip("uvloop reports no broken pipe while the child lives")


@pytest.mark.usefixtures("broken_pipes")
async def test_a_server_that_closes_its_input() -> None:
    """Its answers are still read; then calls to it fail."""
    async with running(close_timeout=0.05) as (_engine, client):
        await register(client)
        assert await tool(client, "close-input") == "deaf"
        assert (await tool(client, "echo", 1))["code"] == -32000
        assert (await tool(client, "echo", 1))["code"] == -32000


@pytest.mark.usefixtures("broken_pipes")
async def test_calls_that_wait_to_be_written_when_the_server_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """They fail as the others do."""
    monkeypatch.setattr(_mcp, "LINES_QUEUED", 0)
    async with running(close_timeout=0.05) as (_engine, client):
        await register(client)
        answers: list[Any] = []

        async def echo() -> None:
            answers.append(await tool(client, "echo", "z" * 200_000))

        # It reads nothing any more, so the first line stays half written and the others wait.
        await tool(client, "close-input")
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(echo)
        assert [answer["code"] for answer in answers] == [-32000] * 3


async def test_names_that_only_the_engine_knows() -> None:
    """A registration that was cancelled in its last step: calls get an error object, not silence."""
    async with running() as (engine, client):
        await client.ping()
        engine.faults.unanswered.add("register_mcp_server")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(register, client)
            await engine.wait_until(lambda: engine.received_counts["register_mcp_server"] == 1)
            tasks.cancel_scope.cancel()
        answer = await tool(client, "echo", 1)
        assert answer["code"] == -32000
        assert "no tool server named 'calc'" in answer["message"]


# ------------------------------------------------------------------------------------------------------ registration


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1, "stdio", "x"), "name must be a string"),
        (("n", None, "x"), "transport must be a string"),
        (("n", "http", None, None, "http://h"), "the transport must be 'stdio', not 'http'"),
        (("n", "stdio", "x", None, "http://h"), "not a url="),
        (("n", "stdio"), "needs a command="),
        (("n", "stdio", ""), "needs a command="),
        (("n", "stdio", Path("x")), "command and args must be a string, not"),
        (("n", "stdio", "x", "-m y"), "args must be a list of strings, not str"),
        (("n", "stdio", "a\0b"), "null"),
        (("n", "stdio", "x", [1]), "command and args must be a string, not int"),
    ],
)
async def test_wrong_arguments(arguments: tuple[Any, ...], text: str) -> None:
    """They are refused before anything is sent or started."""
    async with running() as (engine, client):
        with pytest.raises(InvalidRequest, match=text):
            await client.register_mcp_server(*arguments)
        assert not engine.received


async def test_an_engine_of_05_serves_no_tools() -> None:
    """Nothing is started: the command does not even exist."""
    with anyio.fail_after(5):
        async with (
            SimulatedEngine("v05", port=None) as engine,
            PieClient(engine.connectable) as client,
        ):
            with pytest.raises(UnsupportedByEngine, match="register_mcp_server"):
                await client.register_mcp_server("calc", "stdio", "/nowhere/at/all")


async def test_commands_that_cannot_be_started(tmp_path: Path) -> None:
    """The error names the command and the reason; the engine is not told."""
    script = tmp_path / "script"
    script.write_text("")
    async with running() as (engine, client):
        for command, reason in (
            (str(tmp_path / "nothing"), os.strerror(errno.ENOENT)),
            (str(script), os.strerror(errno.EACCES)),
            ("\ud800", "surrogates not allowed"),
        ):
            with pytest.raises(InvalidRequest, match="could not be started") as caught:
                await client.register_mcp_server("calc", "stdio", command)
            assert reason in str(caught.value)
        assert not engine.received_counts["register_mcp_server"]
        await register(client)


@pytest.mark.parametrize(
    ("behaviour", "text"),
    [
        ("mute", r"handshake: it did not answer within 0\.3 s"),
        ("refuse", "handshake: .*not today"),
        ("die", "has ended or closed its output"),
        ("long", "more than 300000 bytes"),
        ("background", "has ended or closed its output"),
    ],
)
async def test_handshakes_that_fail(behaviour: str, text: str) -> None:
    """The error says how, the engine is not told, and the name is free again."""
    options: dict[str, Any] = {"connect_timeout": 0.3} if behaviour == "mute" else {}
    async with running(**options, limits=Limits(message_bytes=300_000)) as (engine, client):
        with pytest.raises(InvalidRequest, match=text) as caught:
            await register(client, behaviour)
        assert "the tool server 'calc'" in str(caught.value)
        assert "debug log" in str(caught.value)
        assert not engine.received_counts["register_mcp_server"]
        assert client._tools._servers == {}


async def test_a_name_is_given_away_once() -> None:
    """Also while its server is still starting."""
    async with running() as (_engine, client):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(register, client)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(InvalidRequest, match="'calc' is registered already"):
                await register(client)
        with pytest.raises(InvalidRequest, match="'calc' is registered already"):
            await register(client)
        await register(client, name="other")
        assert await tool(client, "echo", 1, "other") == 1


async def test_a_refusal_of_the_engine_undoes_the_registration() -> None:
    """The server is ended, and the name is free."""
    async with running() as (engine, client):
        engine.faults.answers["register_mcp_server"] = (False, "no room")
        with pytest.raises(EngineError, match="register_mcp_server calc: no room"):
            await register(client)
        assert client._tools._servers == {}
        engine.faults.answers.clear()
        await register(client)
        assert await tool(client, "echo", 1) == 1


async def test_a_cancelled_registration_ends_the_server() -> None:
    """In the background; the caller need not wait for it."""
    async with running() as (engine, client):
        with anyio.move_on_after(0.3):
            await register(client, "mute")
        assert client._tools._servers == {}
        assert not engine.received_counts["register_mcp_server"]
        await register(client)


async def test_a_late_end_of_a_registration_spares_the_next_one() -> None:
    """The server dies before the engine has answered, and another one takes the name."""
    async with running() as (engine, client):
        await client.ping()
        engine.faults.unanswered.add("register_mcp_server")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(register, client)
            await engine.wait_until(lambda: engine.received_counts["register_mcp_server"] == 1)
            assert (await tool(client, "exit"))["code"] == -32000
            engine.faults.unanswered.clear()
            await register(client)
            tasks.cancel_scope.cancel()
        assert await tool(client, "echo", 1) == 1


async def test_a_registration_while_the_block_is_left() -> None:
    """The server is not started, and whoever waits is told."""
    async with running() as (_engine, client):
        await client.ping()
        client.session._leave()
        with pytest.raises(InvalidRequest, match="was stopped"):
            await register(client)


# ----------------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("cancelled", [False, True])
async def test_servers_end_with_the_block(cancelled: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A polite one ends when its input does, and is not killed."""
    caplog.set_level(logging.DEBUG, "pie_anyio")
    with anyio.CancelScope() as scope:
        async with running() as (_engine, client):
            await register(client)
            pid = await tool(client, "pid")
            assert is_alive(pid)
            if cancelled:
                scope.cancel()
                await anyio.sleep_forever()
    assert not is_alive(pid)
    assert "tool server calc ended with exit code 0" in caplog.text


async def test_stubborn_servers_are_killed_side_by_side(caplog: pytest.LogCaptureFixture) -> None:
    """The time that this takes does not add up."""
    caplog.set_level(logging.DEBUG, "pie_anyio")
    async with running(close_timeout=0.4) as (_engine, client):
        pids = []
        for name in ("one", "two", "three", "four"):
            await register(client, "stubborn", name)
            pids.append(await tool(client, "pid", server=name))
        began = anyio.current_time()
    assert anyio.current_time() - began < 4 * 0.8
    assert not any(map(is_alive, pids))
    assert caplog.text.count("ended with exit code -9") == 4


async def test_leaving_with_calls_under_way() -> None:
    """Nobody waits for the tools, and nothing is left."""
    async with running() as (engine, client):
        await register(client)
        process = await client.launch_process("call@0.1.0", ["calc", "tools/call", {"name": "park"}])
        await engine.wait_until(lambda: len(engine.live_processes) == 1)
        await client.ping()
        process.detach()


async def test_answers_that_nobody_takes_any_more(caplog: pytest.LogCaptureFixture) -> None:
    """The connection is lost while a tool works: its answer is dropped, and a further call too."""
    caplog.set_level(logging.DEBUG, "pie_anyio")
    async with running() as (engine, client):
        await register(client)
        server = client._tools._servers["calc"]
        process = await client.launch_process("call@0.1.0", ["calc", "tools/call", {"name": "park"}])
        while not server._waiting:
            await checkpoint()
        engine.sessions[0].drop()
        with pytest.raises(ConnectionLost):
            await process.wait()
        assert (await server.call("tools/call", '{"name": "unpark"}'))[0]
        while client._tools._unanswered:
            await checkpoint()
        assert "nobody is left to take the answer of a tool" in caplog.text
        with pytest.raises(ConnectionLost):
            await register(client, name="other")


async def test_standard_error_is_logged_and_not_printed(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """At level DEBUG: it is the server's own business, until something is wrong."""
    caplog.set_level(logging.DEBUG, "pie_anyio")
    async with running() as (_engine, client):
        with pytest.raises(InvalidRequest):
            await register(client, "die")
        await register(client)
    records = [r for r in caplog.records if "cannot find my configuration" in r.getMessage()]
    assert [(r.name, r.levelno) for r in records] == [("pie_anyio", logging.DEBUG)]
    assert "that is no message: b'starting up ...'" in caplog.text
    assert capfd.readouterr() == ("", "")


class _BrokenPipe(ByteReceiveStream, ByteSendStream):
    async def receive(self, max_bytes: int = 65536) -> bytes:
        raise BrokenResourceError

    async def send(self, item: bytes) -> None:
        raise BrokenResourceError

    async def aclose(self) -> None:
        raise BrokenResourceError


class _Unkillable(Process):
    """A process in the middle of a system call that never returns."""

    def __init__(self) -> None:
        self.signals: list[str] = []
        self.pipe = _BrokenPipe()

    async def wait(self) -> int:
        await anyio.sleep_forever()
        raise AssertionError

    def terminate(self) -> None:
        self.signals.append("terminate")

    def kill(self) -> None:
        self.signals.append("kill")

    def send_signal(self, signal: int) -> None:
        raise AssertionError

    async def aclose(self) -> None:
        raise AssertionError

    pid = 1
    returncode = None
    stdin = property(lambda self: self.pipe)
    stdout = property(lambda self: self.pipe)
    stderr = property(lambda self: self.pipe)


async def test_a_process_that_cannot_be_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is waited for so long and no longer, also when cancelled, and the log names it."""
    monkeypatch.setattr(_mcp, "REAP_SECONDS", 0.05)
    process = _Unkillable()
    server = ToolServer("calc", ["x"], version="0", line_bytes=100, start_timeout=1, stop_timeout=0.05)
    with anyio.fail_after(5):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await server._shut_down(process)
    assert process.signals == ["terminate", "kill"]
    assert "tool server calc (process 1) could not be ended" in caplog.text
    server._end("is over")
    server._end("is over again")
    assert server.ended == "is over"


# ------------------------------------------------------------------------------------------------- another connection


async def lose(engine: SimulatedEngine, client: PieClient) -> None:
    link = client.session.link
    engine.faults.drop_connections()
    await link.router.ended.wait()


async def test_servers_are_announced_to_the_next_connection() -> None:
    """Programs there can call them; one that has ended meanwhile is not announced."""
    async with running(reconnect=Reconnect(initial=0.001)) as (engine, client):
        await register(client)
        await register(client, name="other")
        assert (await tool(client, "exit", server="other"))["code"] == -32000
        await lose(engine, client)
        assert await tool(client, "echo", 1) == 1
        assert engine.received_counts["register_mcp_server"] == 3


async def test_an_announcement_that_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """It costs the tool, not the connection."""
    async with running(reconnect=Reconnect(initial=0.001)) as (engine, client):
        await register(client)
        engine.faults.answers["register_mcp_server"] = (False, "no more tools")
        await lose(engine, client)
        await client.ping()
    assert "does not take tool server calc again: no more tools" in caplog.text


async def test_an_answer_for_a_connection_that_is_gone_is_dropped() -> None:
    """Its number may mean another call by now."""
    async with (
        running(reconnect=Reconnect(initial=0.001)) as (engine, client),
        anyio.create_task_group() as tasks,
    ):
        await register(client)

        async def park() -> None:
            with pytest.raises(
                ProcessFailed
            ):  # the program goes on, and the engine answers its call with an error
                await tool(client, "park")

        tasks.start_soon(park)
        while not client._tools._unanswered:
            await checkpoint()
        await lose(engine, client)
        assert await tool(client, "unpark")
        while client._tools._unanswered:
            await checkpoint()
        assert engine.received_counts["mcp_response"] == 1
        tasks.cancel_scope.cancel()
