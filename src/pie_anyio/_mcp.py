# SPDX-License-Identifier: Apache-2.0
"""Tool servers that run beside the client, and the calls that programs make to them through the engine (0.4).

The engine keeps names and relays JSON text; the servers are child processes of this side, which speak JSON-RPC, one
object per line, on their standard streams. Source: 0.4, section 9.
"""

from __future__ import annotations

import itertools
import json
import logging
from typing import Any, Final, TypeAlias, cast

from anyio import (
    BrokenResourceError,
    CancelScope,
    CapacityLimiter,
    ClosedResourceError,
    DelimiterNotFound,
    EndOfStream,
    IncompleteRead,
    WouldBlock,
    create_memory_object_stream,
    create_task_group,
    fail_after,
    move_on_after,
    open_process,
    sleep,
)
from anyio.abc import ByteReceiveStream, ByteSendStream, Process
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.text import TextReceiveStream

from ._exceptions import InvalidRequest, PieError
from ._flow.scopes import bounded_cleanup
from ._flow.slots import ReplySlot
from ._protocol.messages import McpRequest, McpResponse, RegisterMcpServer
from ._protocol.outbox import Lane
from ._session.refusals import engine_error
from ._session.session import Session

logger: Final = logging.getLogger("pie_anyio")

Answer: TypeAlias = tuple[bool, str]
"""What goes back to the engine: whether it is a result, and the JSON text of the result or of the error object."""

PROTOCOL_VERSION: Final = "2024-11-05"
"""What the official clients of 0.4 announce."""
CALLS_AT_ONCE: Final = 64
"""Calls that one server works on at the same time; further ones wait."""
CALLS_IN_ALL: Final = 4096
"""Calls that one client has taken and not answered; further ones are refused."""
LINES_QUEUED: Final = 64
"""Lines that wait for a server to read them."""
LAST_WORDS: Final = 0.5
"""Seconds in which the output of a server that has ended, or that reads no more, is still read."""
REAP_SECONDS: Final = 1.0
"""Seconds that a killed server may take to disappear."""

FAILED: Final = -32000
UNKNOWN_METHOD: Final = -32601
INVALID_PARAMS: Final = -32602

_GONE: Final = (BrokenResourceError, ClosedResourceError, OSError, RuntimeError)
"""What the loops raise for a pipe whose other end is closed; RuntimeError is uvloop's."""


class ToolRelay:
    """The tool servers of one client."""

    def __init__(self, session: Session, version: str) -> None:
        self._session = session
        self._version = version
        self._servers: dict[str, ToolServer] = {}
        self._unanswered = 0
        session.tool_handler = self.handle
        session.after_login.append(self._announce_again)

    async def register(self, name: str, command: str, args: list[str]) -> None:
        """Start a server, shake hands with it, and announce it to the engine.

        Raises:
            InvalidRequest: the name is in use, or the command is no tool server.
            EngineError: the engine refused it.
            ConnectionLost: the connection went away.

        Cancellation: the server is ended, in the background. Where the engine knows the name already, calls to it are
        answered with an error.
        """
        known = self._servers.get(name)
        if known is not None and known.ended is None:
            msg = f"register_mcp_server: {name!r} is registered already, and its server is running"
            raise InvalidRequest(msg)
        options = self._session.options
        server = ToolServer(
            name,
            [command, *args],
            version=self._version,
            line_bytes=options.limits.message_bytes,
            start_timeout=options.connect_timeout,
            stop_timeout=options.close_timeout,
        )
        self._servers[name] = server  # before the first wait: names are given away once
        self._session.spawn(server.run, name=f"pie-anyio tool server {name}")
        announced = False
        try:
            await server.ready.wait()
            ok, result = await self._session.request(server.registration)
            if not ok:
                raise engine_error("register_mcp_server", result, about=name)
            announced = True
        finally:
            if not announced:
                self._forget(server)

    async def _announce_again(self) -> None:
        """Tell a new connection of the servers that the one before knew."""
        for server in list(self._servers.values()):
            if server.ready.done and server.ended is None:
                ok, result = await self._session.ask(server.registration)
                if not ok:
                    logger.warning("the engine does not take tool server %s again: %s", server.name, result)

    def _forget(self, server: ToolServer) -> None:
        server.stop()
        if self._servers.get(server.name) is server:  # it may have died, and another have taken the name
            del self._servers[server.name]

    def handle(self, request: McpRequest) -> None:
        """Take a call of a program. Synchronous, since the reader calls it: a slow tool holds nobody else up."""
        if self._unanswered >= CALLS_IN_ALL:
            text = f"more than {CALLS_IN_ALL} calls are waiting for tools of this client"
            self._send(request.corr_id, *failure(FAILED, text))
            return
        self._unanswered += 1
        self._session.spawn(self._answer, request, self._session.connections, name="pie-anyio tool call")

    async def _answer(self, request: McpRequest, connection: int) -> None:
        try:
            server = self._servers.get(request.server_name)
            if server is None:
                answer = failure(FAILED, f"this client has no tool server named {request.server_name!r}")
            else:
                answer = await server.call(request.method, request.params)
            if connection == self._session.connections:  # else the number means another call by now, or none
                self._send(request.corr_id, *answer)
        finally:
            self._unanswered -= 1

    def _send(self, corr_id: int, ok: bool, result: str) -> None:
        try:
            link = self._session.link
            try:
                link.protocol.notify(McpResponse(corr_id, ok, result), lane=Lane.CONTROL)
            except InvalidRequest:
                # An engine closes the connection over a message that is too large for it.
                text = f"the tool's answer of {len(result)} bytes is larger than the engine takes"
                link.protocol.notify(McpResponse(corr_id, *failure(FAILED, text)), lane=Lane.CONTROL)
            link.send_soon()
        except PieError as exc:
            logger.debug("nobody is left to take the answer of a tool: %s", exc)


class ToolServer:
    """One child process, and the requests that it has not answered.

    Args:
        name: what programs call it.
        command: the program and its arguments.
        version: what this client says its own version is.
        line_bytes: the longest line that it may write.
        start_timeout: seconds for the handshake.
        stop_timeout: seconds to wait after closing its input, and again after SIGTERM.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        *,
        version: str,
        line_bytes: int,
        start_timeout: float,
        stop_timeout: float,
    ) -> None:
        self.name = name
        self.ready: ReplySlot[None] = ReplySlot()
        """Set after the handshake; an InvalidRequest where it comes to none."""
        self.ended: str | None = None
        """Why no calls are taken any more."""
        self.registration = RegisterMcpServer(name, "stdio", command[0], command[1:])
        """How the engine is told of it."""
        self._command = command
        self._version = version
        self._line_bytes = line_bytes
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._reason = "has ended or closed its output"
        self._scope = CancelScope()
        self._limiter = CapacityLimiter(CALLS_AT_ONCE)
        self._ids = itertools.count(1)
        self._waiting: dict[int, ReplySlot[Answer]] = {}
        self._outgoing, self._to_write = create_memory_object_stream[bytes](LINES_QUEUED)

    def stop(self) -> None:
        """Begin to end it."""
        self._scope.cancel()

    async def call(self, method: str, params: str) -> Answer:
        """Pass one call on and wait for its answer, for as long as that takes; ``params`` is JSON text.

        Cancellation: the server goes on, and its answer is dropped.
        """
        try:
            value = json.loads(params)
        except (ValueError, RecursionError):
            return failure(INVALID_PARAMS, "the parameters are not JSON")
        async with self._limiter:
            return await self._ask(method, value)

    async def run(self) -> None:
        """Live: start, shake hands, answer, end. Never raises; how it went is in ``ready`` and ``ended``.

        Cancellation: the child is ended, within twice ``stop_timeout`` and a second.
        """
        try:
            with self._scope:
                await self._live()
        finally:
            self._end("was stopped")

    # --- the child -------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        try:
            process = await open_process(self._command)
        except (OSError, ValueError) as exc:
            why = getattr(exc, "strerror", None) or exc
            self._end(f"could not be started with the command {self._command[0]!r}: {why}")
            return
        reason = "was stopped"
        try:
            await self._talk(process)
            reason = f"{self._reason} (what it said on its standard error is in the debug log of 'pie_anyio')"
            logger.warning("tool server %s %s", self.name, self._reason)
        finally:
            self._end(reason)
            await self._shut_down(process)

    async def _talk(self, process: Process) -> None:
        """Exchange lines until there is nobody to exchange them with."""
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        async with create_task_group() as tasks:
            scope = tasks.cancel_scope
            tasks.start_soon(self._log_errors, process.stderr, name="pie-anyio tool server's errors")
            tasks.start_soon(self._write, process.stdin, scope, name="pie-anyio tool server's input")
            tasks.start_soon(self._watch, process, scope, name="pie-anyio tool server's end")
            tasks.start_soon(self._shake_hands, scope, name="pie-anyio tool server's handshake")
            await self._read(process.stdout)
            scope.cancel()

    async def _read(self, stdout: ByteReceiveStream) -> None:
        lines = BufferedByteReceiveStream(stdout)
        while True:
            try:
                line = await lines.receive_until(b"\n", self._line_bytes)
            except DelimiterNotFound:
                self._reason = f"wrote a line of more than {self._line_bytes} bytes"
                return
            except (IncompleteRead, *_GONE):
                return
            self._take(line)

    async def _write(self, stdin: ByteSendStream, scope: CancelScope) -> None:
        try:
            while True:
                await stdin.send(await self._to_write.receive())
        except _GONE:
            await _cancel_soon(scope)

    async def _watch(self, process: Process, scope: CancelScope) -> None:
        """Notice the end of a child whose output somebody else holds open."""
        await process.wait()
        await _cancel_soon(scope)

    async def _log_errors(self, stderr: ByteReceiveStream) -> None:
        try:
            async for text in TextReceiveStream(stderr, errors="replace"):
                for line in text.splitlines():
                    logger.debug("tool server %s: %s", self.name, line)
        except _GONE:
            pass

    async def _shut_down(self, process: Process) -> None:
        """End the child: close its input, then SIGTERM, then SIGKILL. What it still writes is read, so it can end."""
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with bounded_cleanup(2 * self._stop_timeout + REAP_SECONDS) as scope:
            async with create_task_group() as readers:
                readers.start_soon(self._log_errors, process.stderr, name="pie-anyio tool server's errors")
                readers.start_soon(_drain, process.stdout, name="pie-anyio tool server's output")
                try:
                    await process.stdin.aclose()
                except _GONE:
                    pass
                for force in (process.terminate, process.kill):
                    with move_on_after(self._stop_timeout):
                        await process.wait()
                    if process.returncode is None:
                        force()
                await process.wait()
                readers.cancel_scope.cancel()
            await process.aclose()  # only now: it waits for the child, for ever if need be
        if scope.cancelled_caught:
            logger.warning("tool server %s (process %d) could not be ended", self.name, process.pid)
        else:
            logger.debug("tool server %s ended with exit code %s", self.name, process.returncode)

    # --- requests --------------------------------------------------------------------------------------------------

    async def _shake_hands(self, scope: CancelScope) -> None:
        hello = {
            "protocolVersion": PROTOCOL_VERSION,
            "capabilities": {},
            "clientInfo": {"name": "pie-anyio", "version": self._version},
        }
        try:
            with fail_after(self._start_timeout):
                ok, result = await self._ask("initialize", hello)
                if ok:
                    await self._outgoing.send(_line(method="notifications/initialized", params={}))
        except TimeoutError:
            ok, result = False, f"it did not answer within {self._start_timeout:g} s"
        if ok:
            self.ready.set_result(None)
        else:
            self._reason = f"did not complete the handshake: {result}"
            scope.cancel()

    async def _ask(self, method: str, params: object) -> Answer:
        if self.ended is not None:
            return self._dead()
        number = next(self._ids)
        slot: ReplySlot[Answer] = ReplySlot()
        try:
            line = _line(id=number, method=method, params=params)
        except (ValueError, RecursionError):
            return failure(INVALID_PARAMS, "the parameters have no JSON form: a number in them is too large")
        self._waiting[number] = slot
        try:
            await self._outgoing.send(line)
            return await slot.wait()
        except (BrokenResourceError, ClosedResourceError):
            return self._dead()  # it ended while the line was waiting to be written
        finally:
            del self._waiting[number]

    def _take(self, line: bytes) -> None:
        """Act on one line of the server. What makes no sense is logged: many servers also print."""
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            logger.debug("tool server %s wrote a line that is no message: %.200r", self.name, line)
            return
        fields = cast("dict[str, Any]", message)
        number = fields.get("id")
        if "method" in fields:
            if isinstance(number, (int, str)):
                self._reply(number, fields["method"])
        elif type(number) is int and (slot := self._waiting.get(number)) is not None:
            slot.set_result(_outcome(fields))

    def _reply(self, number: int | str, method: object) -> None:
        """Answer a request of the server's own, which is waiting for that: only pings are served."""
        if method == "ping":
            line = _line(id=number, result={})
        else:
            error = {"code": UNKNOWN_METHOD, "message": f"this client does not serve {method!r:.100}"}
            line = _line(id=number, error=error)
        try:
            self._outgoing.send_nowait(line)
        except WouldBlock:
            # It asks faster than it reads. Waiting here would stop the reading that it may be waiting for.
            logger.debug("tool server %s does not read the answers to its requests", self.name)

    def _end(self, why: str) -> None:
        """Give every call its final answer. The first reason counts."""
        if self.ended is not None:
            return
        self.ended = why
        logger.debug("tool server %s %s", self.name, why)
        for slot in self._waiting.values():
            slot.set_result(self._dead())
        self._outgoing.close()
        self._to_write.close()
        self.ready.set_error(InvalidRequest(f"register_mcp_server: the tool server {self.name!r} {why}"))

    def _dead(self) -> Answer:
        return failure(FAILED, f"the tool server {self.name!r} {self.ended}")


def failure(code: int, message: str) -> Answer:
    """Make the answer to a call that failed on this side."""
    return False, json.dumps({"code": code, "message": message})


def _outcome(fields: dict[str, Any]) -> Answer:
    """Read a response. A tool's own failure (``isError``) is a result as any other."""
    error = fields.get("error")
    if error is None and "result" not in fields:
        return failure(FAILED, "the tool server answered without a result")
    try:
        # Numbers such as 1e999 or NaN can be read but not be written: the engine passes the text on as it is.
        if error is None:
            return True, json.dumps(fields["result"], allow_nan=False)
        if not isinstance(error, dict):
            return failure(FAILED, str(error))
        return False, json.dumps(error, allow_nan=False)
    except (ValueError, RecursionError):
        return failure(FAILED, "the tool server's answer has no JSON form")


def _line(**fields: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **fields}, allow_nan=False).encode() + b"\n"


async def _cancel_soon(scope: CancelScope) -> None:
    await sleep(LAST_WORDS)
    scope.cancel()


async def _drain(stream: ByteReceiveStream) -> None:
    try:
        while True:
            await stream.receive()
    except (EndOfStream, *_GONE):
        pass
