# SPDX-License-Identifier: Apache-2.0
"""One session of a simulated engine: what it owes its client, and the order in which the client gets it.

All of it is synchronous: the reader hands events in, and the writer takes bytes out whenever ``wake`` says so. Like
the mailbox of a real engine, what waits for a slow client is unbounded.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

import attrs
from anyio import CancelScope, Event

from .._flow.wake import Wake
from .._protocol import engine as core
from .._protocol import websocket as wire
from .._protocol.messages import EngineMessage, FileChunk, McpResponse, ProcessEvent, Request, Response
from ._sim_auth import Login
from ._sim_process import ToolError, canonical_id
from ._sim_profiles import OnDisconnect, Profile
from ._sim_requests import HANDLERS
from ._sim_uploads import Assembler

if TYPE_CHECKING:
    from ._sim_process import SimulatedProcess
    from .engine import SimulatedEngine
    from .faults import Faults

_ABORTED: Final = "stream aborted"
_NEVER_REFUSED: Final = frozenset(["list_processes", "terminate_process"])
"""What a gateway answers by itself, without a worker (0.5)."""


class Reply(NamedTuple):
    """Where an answer goes."""

    request: Request
    corr_id: int
    stream: int


@attrs.define(eq=False)
class Attachment:
    """A process's way to its client; ``cut`` where the client never hears of it again."""

    session: Session
    stream: int
    cut: bool = False

    def deliver(self, process_id: str, kind: str, value: str) -> None:
        """Send one event."""
        if not self.cut:
            self.session.send(ProcessEvent(process_id, kind, value), self.stream)

    def deliver_file(self, process_id: str, content: bytes, name: str | None) -> None:
        """Send a file."""
        if not self.cut:
            for chunk in self.session.damage(core.cut_file(process_id, content, name)):
                self.session.send(chunk, self.stream)

    def process_ended(self, process: SimulatedProcess) -> None:
        """Send what follows a terminal event."""
        if not self.cut:
            self.session.process_ended(process, self.stream)


class Session:
    """One connection, as the engine sees it."""

    def __init__(self, engine: SimulatedEngine, number: int) -> None:
        self.engine = engine
        self.number = number
        self.profile: Profile = engine.profile
        self.faults: Faults = engine.faults
        self.wake: Wake = Wake()
        self.scope: CancelScope = CancelScope()
        """The scope of the connection's tasks: cancelled, the connection is dropped."""
        self._random = Random(engine.seed * 65537 + number)
        self.protocol: core.EngineProtocol = core.EngineProtocol(
            self.profile.generation, choose=self._choose, answer_close=self.profile.answers_close
        )
        self.login: Login = Login(engine.doorkeeper)
        self.assembler: Assembler = Assembler(engine.max_upload_bytes)
        self.attached: dict[str, SimulatedProcess] = {}
        self.tools: dict[str, str] = {}
        self.finishing: bool = False
        """Drop the connection as soon as everything queued has been sent."""
        self.ended: bool = False
        self._spoken = False
        self._served = False
        """A request has been acted on or refused."""
        self._streams = 0
        self._blocked = 0
        self._mailbox: deque[Callable[[], None]] = deque()
        self._tool_calls: dict[int, _ToolCall] = {}
        self._last_tool_call = 0

    @property
    def user(self) -> str:
        """The name that processes are started under."""
        return "internal" if self.profile.v05 else self.login.user or ""

    def _choose(self, count: int) -> int:
        return int(self._random.random() * count)

    # --- what the reader brings ------------------------------------------------------------------------------------

    def handle(self, event: core.EngineEvent) -> None:
        """Act on one event of the protocol."""
        match event:
            case core.MessageReceived(request=request, corr_id=corr_id):
                self._spoken = True
                self._post(partial(self._receive, request, corr_id))
            case wire.UpgradeRequested():
                self._upgrade(event)
            case wire.TextReceived(text=text):
                self._receive_text(text)
            case core.Undecodable(detail=detail):
                self._refuse_frame(f"bad client frame: {detail}")
            case core.TooLarge(size=size):
                self._refuse_size(size)
            case core.PeerClosed():
                self._peer_closed()
            case core.PeerBroke():
                if self.profile.drops_on_fault:
                    self.finishing = True
            case _:  # Ended
                self.drop()

    def _upgrade(self, event: wire.UpgradeRequested) -> None:
        if self.faults.stall_handshakes:
            return
        refusal = self.faults.refuse_handshakes or (self._judge(event) if self.profile.v05 else None)
        if refusal is None:
            self.protocol.accept(authenticated=self.profile.v05)
        else:
            self.protocol.refuse(*refusal)
            self.finishing = True

    def _judge(self, event: wire.UpgradeRequested) -> tuple[int, bytes] | None:
        """Check path and identity as 0.5 does."""
        if urlsplit(event.target).path != "/v1/ws":
            return 404, b""
        identity = event.headers.get("x-pie-identity")
        if identity is None:
            return 401, b"identity: missing `x-pie-identity` (edge must inject verified identity)"
        try:
            identity = identity.encode("latin-1").decode()
        except UnicodeDecodeError:
            return 401, b"identity: `x-pie-identity` is not valid UTF-8"
        if not identity.strip():
            return 401, b"identity: empty `x-pie-identity`"
        tenant, slash, user = identity.partition("/")
        if not (user if slash else tenant).strip():
            return 401, b"identity: `x-pie-identity` has empty user component"
        return None

    def _peer_closed(self) -> None:
        self.deafen()
        if self.profile.drops_on_close:
            self.finishing = True

    def _receive(self, request: Request, corr_id: int | None) -> None:
        self.engine.note_request(self.number, corr_id, request)
        if request.type in self.faults.drop_on:
            self.drop()
            return
        if self.ended or not self.protocol.admits(request) or request.type in self.faults.ignored:
            return
        reply = Reply(request, -1 if corr_id is None else corr_id, self._next_stream())
        first, self._served = not self._served, True
        scripted = self.faults.answers.get(request.type)
        if scripted is not None:
            self.respond(reply, *scripted)
        elif self.profile.v05 and self.faults.saturated and request.type not in _NEVER_REFUSED:
            self._refuse(reply, first)
        else:
            HANDLERS[type(request)](self, request, reply)

    def _refuse(self, reply: Reply, first: bool) -> None:
        """Have no capacity for a request; a gateway that has none for the first sees no use in the connection."""
        if reply.request.answered:
            self.respond(reply, False, self.faults.refusal, ends_turn=False)
        else:
            self._send_error(self.faults.refusal, reply.stream)
        self.finishing = self.finishing or first
        self.wake.set()

    def _receive_text(self, text: str) -> None:
        if not self.profile.v05:
            return
        if text.strip() == "cancel":
            if self._spoken:
                self._cancel()
            return
        event = self.protocol.read_text(text)
        self.handle(event)

    def _cancel(self) -> None:
        """End every live turn, without an event (0.5)."""
        for process in list(self.attached.values()):
            assert process.attachment is not None
            process.attachment.cut = True
            self._send_error(_ABORTED, process.attachment.stream)
            process.terminate(silent=True)
        self.attached.clear()

    def _refuse_frame(self, message: str) -> None:
        # Before the first good message 0.5 says nothing either.
        if self.profile.v05 and self._spoken:
            self._send_error(message, self._next_stream())

    def _refuse_size(self, size: int) -> None:
        limit = self.protocol.limits.request_bytes
        self._send_error(
            f"request too large: {size} bytes, limit {limit} (send large inputs as a blob reference, not inline)",
            self._next_stream(),
        )
        if not self._spoken:
            self.protocol.close()
            self.finishing = True
            self.wake.set()

    # --- answers and messages --------------------------------------------------------------------------------------

    def _next_stream(self) -> int:
        if self.profile.v05 and self.faults.permute:
            self._streams += 1
        return self._streams

    def respond(self, reply: Reply, ok: bool, result: str, *, ends_turn: bool = True) -> None:
        """Answer a request, unless a fault has it otherwise."""
        kind = reply.request.type
        if kind in self.faults.unanswered:
            return
        send = partial(self._respond, reply, ok, result, ends_turn)
        hold = self.faults.find_hold(kind)
        if hold is None:
            send()
        elif self._shares_stream:
            self.block()
            hold.add(partial(self._respond_late, send))
        else:
            self.protocol.hold(reply.stream)
            send()
            hold.add(partial(self._release, reply.stream))

    @property
    def _shares_stream(self) -> bool:
        return not self.profile.v05 or not self.faults.permute

    def _respond(self, reply: Reply, ok: bool, result: str, ends_turn: bool) -> None:
        for _ in range(2 if reply.request.type in self.faults.duplicated else 1):
            self._put(Response(reply.corr_id, ok, result), reply.stream)
        if ends_turn:
            self.end_turn(reply.stream)

    def _respond_late(self, send: Callable[[], None]) -> None:
        send()
        self.unblock()

    def _release(self, stream: int) -> None:
        self.protocol.release(stream)
        self.wake.set()

    def end_turn(self, stream: int) -> None:
        """Say on 0.5 that the turn of a client message is over."""
        if self.profile.v05:
            self.protocol.send_turn_done(stream=stream)
            self.wake.set()

    def send(self, message: EngineMessage, stream: int) -> None:
        """Send a message, behind what a blocked session has to do first."""
        if self._blocked:
            self._mailbox.append(partial(self._put, message, stream))
        else:
            self._put(message, stream)

    def _put(self, message: EngineMessage, stream: int) -> None:
        payload: bytes | None = self.protocol.encode(message)
        assert payload is not None
        limit = self.profile.max_event_bytes
        if limit is not None and len(payload) > limit:
            self.engine.faults.abort_streams()
            return
        payload = self.faults.alter(payload)
        if payload is not None:
            self.protocol.send_payload(payload, stream=stream)
            self.wake.set()

    def damage(self, chunks: list[FileChunk]) -> list[FileChunk]:
        """Apply the fault of files."""
        return list(self.faults.damage(chunks)) if chunks else chunks

    def send_text(self, text: str) -> None:
        """Send a text frame."""
        self.protocol.send_text(text, stream=self._next_stream())
        self.wake.set()

    def _send_error(self, message: str, stream: int) -> None:
        text = json.dumps({"type": "error", "message": message}, separators=(",", ":"), ensure_ascii=False)
        self.protocol.send_text(text, stream=stream)
        self.wake.set()

    # --- head-of-line blocking (0.4) -------------------------------------------------------------------------------

    def block(self) -> None:
        """Let nothing move on this connection, as a slow handler does."""
        self._blocked += 1

    def unblock(self) -> None:
        """Undo one ``block``, and catch up."""
        self._blocked -= 1
        while self._mailbox and not self._blocked:
            self._mailbox.popleft()()

    def _post(self, action: Callable[[], None]) -> None:
        if self._blocked:
            self._mailbox.append(action)
        else:
            action()

    # --- processes -------------------------------------------------------------------------------------------------

    def attach(self, process: SimulatedProcess, stream: int) -> None:
        """Have a process's events go to this client."""
        process.attachment = Attachment(self, stream)
        self.attached[process.id] = process

    def find_attached(self, process_id: str) -> SimulatedProcess | None:
        """Find a process that this client may signal."""
        process = self.attached.get(process_id)
        if process is None and (canonical := canonical_id(process_id)) is not None:
            process = self.attached.get(canonical)
        return process

    def process_ended(self, process: SimulatedProcess, stream: int) -> None:
        """Forget an attached process that has ended, and say that its turn is over."""
        self.attached.pop(process.id, None)
        for kind, value in self.faults.late_events:
            self.send(ProcessEvent(process.id, kind, value), stream)
        self.end_turn(stream)

    def abort_streams(self) -> None:
        """Lose the streams of all attached processes, which run on unseen (0.5)."""
        for process in self.attached.values():
            assert process.attachment is not None
            process.attachment.cut = True
            self._send_error(_ABORTED, process.attachment.stream)
        self.attached.clear()

    # --- tools (0.4) -----------------------------------------------------------------------------------------------

    async def call_tool(self, process_id: str, server: str, method: str, params: str) -> str:
        """Call a tool of the client; against a dead client this waits for ever, as in real engines."""
        if self.profile.v05:
            raise RuntimeError("generation 0.5 has no tool calls")
        if server not in self.tools:
            raise ToolError(-1, f"MCP server '{server}' not registered")
        call = _ToolCall()
        self._last_tool_call = corr_id = self._last_tool_call + 1
        self._tool_calls[corr_id] = call
        self._post(partial(self._send_tool_call, corr_id, process_id, server, method, params))
        try:
            await call.answered.wait()
        finally:
            del self._tool_calls[corr_id]
        return call.read()

    def _send_tool_call(self, corr_id: int, process_id: str, server: str, method: str, params: str) -> None:
        self.protocol.send_mcp_request(corr_id, process_id, server, method, params)
        self.wake.set()

    def answer_tool(self, response: McpResponse) -> None:
        """Take the client's answer to a tool call; unknown ones are ignored."""
        call = self._tool_calls.get(response.corr_id)
        if call is not None and call.response is None:
            call.response = response
            call.answered.set()

    # --- the end ---------------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """End the connection at once, without a close frame."""
        self.scope.cancel()

    def deafen(self) -> None:
        """Settle what the client has left behind; from here on its requests mean nothing. Idempotent."""
        if self.ended:
            return
        self.ended = True
        processes = list(self.attached.values())
        match self.profile.on_disconnect:
            case OnDisconnect.TERMINATE:
                for process in processes:
                    process.terminate(silent=True)
                self.attached.clear()
            case OnDisconnect.DETACH:
                for process in processes:
                    process.attachment = None
                self.attached.clear()
            case _:  # LEAK
                pass  # they stay bound to this session, and nobody can attach to them any more


@attrs.define(eq=False)
class _ToolCall:
    answered: Event = attrs.Factory(Event)
    response: McpResponse | None = None

    def read(self) -> str:
        assert self.response is not None
        if self.response.ok:
            return self.response.result
        payload: Any = None
        try:
            payload = json.loads(self.response.result)
        except ValueError:
            pass
        if not isinstance(payload, dict):
            raise ToolError(-32000, self.response.result)
        error = cast("dict[str, Any]", payload)
        code, message = error.get("code"), error.get("message", self.response.result)
        raise ToolError(code if type(code) is int else -32000, str(message), error.get("data"))
