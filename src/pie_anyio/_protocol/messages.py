# SPDX-License-Identifier: Apache-2.0
"""The wire vocabulary: one class per message, with its ``type`` tag.

Requests go from client to engine. Fields that are None are left out, which every engine reads as absent. Sources:
protocol of generations 0.4 and 0.5, "client to engine messages" and "engine to client messages".
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal, TypeAlias

import attrs

CHUNK_BYTES: Final = 262_144
"""Payload of one chunk of an upload or file, in both directions and generations."""

MAX_CORR_ID: Final = 2**32 - 1


@attrs.frozen
class Request:
    """Base of what a client may send. Not for subclassing elsewhere."""

    type: ClassVar[str] = ""
    answered: ClassVar[bool] = True
    """Whether the engine ever answers a message of this kind with a ``response``."""
    allowed_unauthenticated: ClassVar[bool] = False
    """0.4 silently drops everything else before authentication."""
    claims_process: ClassVar[bool] = False
    """Whether the answer may make a new process known."""
    field_names: ClassVar[tuple[str, ...]] = ()

    def fields(self, corr_id: int | None = None) -> dict[str, object]:
        """Give the whole message as it goes onto the wire; ``corr_id`` is None for the kinds that carry none."""
        fields: dict[str, object] = {"type": self.type}
        if corr_id is not None:
            fields["corr_id"] = corr_id
        for name in self.field_names:
            if (value := getattr(self, name)) is not None:
                fields[name] = value
        return fields


@attrs.frozen
class AuthIdentify(Request):
    """Say who we are. 0.4 answers with a challenge or the no-auth literal, 0.5 with ``Already authenticated``."""

    type: ClassVar[str] = "auth_identify"
    allowed_unauthenticated: ClassVar[bool] = True
    username: str


@attrs.frozen
class AuthProve(Request):
    """Answer a challenge with a base64 signature of its 48 raw bytes (0.4)."""

    type: ClassVar[str] = "auth_prove"
    allowed_unauthenticated: ClassVar[bool] = True
    signature: str = attrs.field(repr=False)


@attrs.frozen
class AuthByToken(Request):
    """Log in with the engine's token (0.4)."""

    type: ClassVar[str] = "auth_by_token"
    allowed_unauthenticated: ClassVar[bool] = True
    token: str = attrs.field(repr=False)


@attrs.frozen
class Ping(Request):
    """Ask the session actor for ``Pong``."""

    type: ClassVar[str] = "ping"


@attrs.frozen
class Query(Request):
    """Ask for engine figures; ``model_status`` is the only subject known."""

    type: ClassVar[str] = "query"
    subject: str
    record: str


@attrs.frozen
class CheckProgram(Request):
    """Ask whether a program is installed. The hashes are ignored by both generations."""

    type: ClassVar[str] = "check_program"
    name: str
    version: str
    wasm_hash: str | None = None
    manifest_hash: str | None = None


@attrs.frozen
class AddProgram(Request):
    """One chunk of a program upload; every chunk carries the same ``corr_id``."""

    type: ClassVar[str] = "add_program"
    program_hash: str
    manifest: str
    force_overwrite: bool
    chunk_index: int
    total_chunks: int
    chunk_data: bytes = attrs.field(repr=False)


@attrs.frozen
class LaunchProcess(Request):
    """Start a process. The answer is its id; its events may follow in the same read."""

    type: ClassVar[str] = "launch_process"
    claims_process: ClassVar[bool] = True
    inferlet: str
    input: str
    capture_outputs: bool = True
    token_budget: int | None = None

    def fields(self, corr_id: int | None = None) -> dict[str, object]:
        """Give the message, spelt out: a fan-out sends little else."""
        if corr_id is None or self.token_budget is not None:
            return Request.fields(self, corr_id)
        return {
            "type": "launch_process",
            "corr_id": corr_id,
            "inferlet": self.inferlet,
            "input": self.input,
            "capture_outputs": self.capture_outputs,
        }


@attrs.frozen
class LaunchProcesses(Request):
    """Start several processes in one message (0.4). Spoken by official clients; this client launches one by one."""

    type: ClassVar[str] = "launch_processes"
    inferlet: str
    inputs: list[str]
    capture_outputs: bool = True
    token_budgets: list[int | None] | None = None


@attrs.frozen
class RunProcesses(Request):
    """Run several processes inside one request (0.4); it blocks the session and cannot be cancelled."""

    type: ClassVar[str] = "run_processes"
    inferlet: str
    inputs: list[str]
    token_budgets: list[int | None] | None = None


@attrs.frozen
class LaunchDaemon(Request):
    """Start an HTTP daemon on the engine's loopback interface (0.4)."""

    type: ClassVar[str] = "launch_daemon"
    port: int = attrs.field(metadata={"bits": 32})
    inferlet: str
    input: str


@attrs.frozen
class AttachProcess(Request):
    """Ask for the events of a running process."""

    type: ClassVar[str] = "attach_process"
    claims_process: ClassVar[bool] = True
    process_id: str


@attrs.frozen
class TerminateProcess(Request):
    """Stop a process; its ``error "Signal"`` event follows the answer or (0.5) precedes it."""

    type: ClassVar[str] = "terminate_process"
    process_id: str


@attrs.frozen
class SignalProcess(Request):
    """Send a string to an attached process. Never answered."""

    type: ClassVar[str] = "signal_process"
    answered: ClassVar[bool] = False
    process_id: str
    message: str


@attrs.frozen
class TransferFile(Request):
    """One chunk of a file for an attached process. Never answered."""

    type: ClassVar[str] = "transfer_file"
    answered: ClassVar[bool] = False
    process_id: str
    file_hash: str
    chunk_index: int
    total_chunks: int
    chunk_data: bytes = attrs.field(repr=False)


@attrs.frozen
class ListProcesses(Request):
    """Ask for the running processes of this user (0.4) or of everybody (0.5)."""

    type: ClassVar[str] = "list_processes"


@attrs.frozen
class RegisterMcpServer(Request):
    """Announce a tool server that this client runs (0.4)."""

    type: ClassVar[str] = "register_mcp_server"
    name: str
    transport: str
    command: str | None = None
    args: list[str] | None = None
    url: str | None = None


@attrs.frozen
class McpResponse(Request):
    """Answer an ``mcp_request`` of the engine; ``corr_id`` is the engine's. Never answered (0.4)."""

    type: ClassVar[str] = "mcp_response"
    answered: ClassVar[bool] = False
    corr_id: int
    ok: bool
    result: str


REQUESTS: Final[dict[str, type[Request]]] = {
    cls.type: cls
    for cls in (
        AuthIdentify,
        AuthProve,
        AuthByToken,
        Ping,
        Query,
        CheckProgram,
        AddProgram,
        LaunchProcess,
        LaunchProcesses,
        RunProcesses,
        LaunchDaemon,
        AttachProcess,
        TerminateProcess,
        SignalProcess,
        TransferFile,
        ListProcesses,
        RegisterMcpServer,
        McpResponse,
    )
}
"""Every request by its ``type`` tag."""

for _cls in REQUESTS.values():
    _cls.field_names = tuple(field.name for field in attrs.fields(_cls))

# What 0.5 removed from the vocabulary; there they are undecodable.
REMOVED_IN_05: Final = frozenset(
    [
        "auth_by_token",
        "launch_processes",
        "run_processes",
        "launch_daemon",
        "register_mcp_server",
        "mcp_response",
    ]
)


@attrs.frozen
class Response:
    """The engine's answer to one request."""

    type: ClassVar[Literal["response"]] = "response"
    corr_id: int
    ok: bool
    result: str


@attrs.frozen
class ProcessEvent:
    """One event of one process; ``event`` is ``stdout``, ``stderr``, ``message``, ``return`` or ``error``."""

    type: ClassVar[Literal["process_event"]] = "process_event"
    process_id: str
    event: str
    value: str


@attrs.frozen
class FileChunk:
    """One chunk of a file that a process sends. ``name`` exists on 0.5 only."""

    type: ClassVar[Literal["file"]] = "file"
    process_id: str
    file_hash: str
    chunk_index: int
    total_chunks: int
    chunk_data: bytes = attrs.field(repr=False)
    name: str | None = None


@attrs.frozen
class McpRequest:
    """A tool call of a program, to be answered with :class:`McpResponse` (0.4); ``params`` is JSON text."""

    type: ClassVar[Literal["mcp_request"]] = "mcp_request"
    corr_id: int
    process_id: str
    server_name: str
    method: str
    params: str


EngineMessage: TypeAlias = Response | ProcessEvent | FileChunk | McpRequest

# The engine's literals that decide what an answer to a login means.
NO_AUTH_LITERAL: Final = "Authenticated (Engine disabled authentication)"
ALREADY_AUTHENTICATED: Final = "Already authenticated"
AUTHENTICATED: Final = "Authenticated"
CHALLENGE_BYTES: Final = 48

# 0.5.2 refuses requests with these while it has no room; list_processes and terminate_process are let through.
BUSY: Final = ("admission rejected", "no worker available", "gateway draining")
GONE: Final = "Process not found"
