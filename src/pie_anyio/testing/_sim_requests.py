# SPDX-License-Identifier: Apache-2.0
"""What a simulated engine does on each request. Texts and order of checks are those of the real engines."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
from anyio import sleep
from blake3 import blake3

from .._protocol import messages
from .._protocol.messages import ALREADY_AUTHENTICATED
from ._sim_process import SimulatedProcess, canonical_id
from ._sim_programs import Program, ProgramRefused
from ._sim_uploads import UploadRefused

if TYPE_CHECKING:
    from ._sim_session import Reply, Session

Handler: TypeAlias = Callable[["Session", Any, "Reply"], None]

_INSTALLED: Final = "Program installed successfully"


# --- login -----------------------------------------------------------------------------------------------------------


def _auth_identify(session: Session, request: messages.AuthIdentify, reply: Reply) -> None:
    if session.profile.v05:
        session.respond(reply, True, ALREADY_AUTHENTICATED)
    else:
        _login(session, reply, session.login.identify(request.username))


def _auth_prove(session: Session, request: messages.AuthProve, reply: Reply) -> None:
    if session.profile.v05:
        session.respond(reply, False, ALREADY_AUTHENTICATED)
    else:
        _login(session, reply, session.login.prove(request.signature))


def _auth_by_token(session: Session, request: messages.AuthByToken, reply: Reply) -> None:
    ok, result = session.login.present_token(request.token)
    if not ok and session.engine.token_delay:
        session.block()
        session.engine.spawn(_refuse_token, session, reply, result)
    else:
        _login(session, reply, (ok, result))


async def _refuse_token(session: Session, reply: Reply, result: str) -> None:
    await sleep(session.engine.token_delay)
    session.respond(reply, False, result)
    session.unblock()


def _login(session: Session, reply: Reply, answer: tuple[bool, str]) -> None:
    if session.login.user is not None:
        session.protocol.authenticated()
    session.respond(reply, *answer)


# --- questions -------------------------------------------------------------------------------------------------------


def _ping(session: Session, request: messages.Ping, reply: Reply) -> None:
    session.respond(reply, True, "Pong")


def _query(session: Session, request: messages.Query, reply: Reply) -> None:
    if request.subject == "model_status":
        session.respond(reply, True, json.dumps(session.engine.model_status()))
    elif session.profile.v05:
        session.respond(reply, False, f'unknown query subject "{request.subject}" (known: model_status)')


def _list_processes(session: Session, request: messages.ListProcesses, reply: Reply) -> None:
    rows = [
        attrs.asdict(info) for info in session.engine.live_processes.values() if info.username == session.user
    ]
    session.respond(reply, True, json.dumps(rows, separators=(",", ":"), ensure_ascii=False))


# --- programs --------------------------------------------------------------------------------------------------------


def _check_program(session: Session, request: messages.CheckProgram, reply: Reply) -> None:
    try:
        found = session.engine.programs.is_installed(request.name, request.version)
    except ProgramRefused as exc:
        session.respond(reply, False, str(exc))
    else:
        session.respond(reply, True, "true" if found else "false")


def _add_program(session: Session, request: messages.AddProgram, reply: Reply) -> None:
    final = request.chunk_index + 1 >= request.total_chunks
    try:
        installed = _take_chunk(session, request)
    except (UploadRefused, ProgramRefused) as exc:
        # 0.5 gives the verdict of the last chunk only; what was said about an earlier one is lost.
        if final or not session.profile.v05:
            session.respond(reply, False, str(exc))
            return
    else:
        if installed:
            session.respond(reply, True, _INSTALLED)
            return
    session.end_turn(reply.stream)


def _take_chunk(session: Session, request: messages.AddProgram) -> bool:
    if session.profile.v05 and request.total_chunks == 0:
        raise UploadRefused("Upload must have at least one chunk")
    content = session.assembler.add_program(request)
    if content is None:
        return False
    if session.profile.verifies_program_hash:
        actual = blake3(content.data).hexdigest()
        if actual != request.program_hash:
            raise UploadRefused(f"Program hash mismatch: declared {request.program_hash}, uploaded {actual}")
    session.engine.programs.install(content.data, content.manifest, force=content.force)
    return True


# --- processes -------------------------------------------------------------------------------------------------------


def _launch_process(session: Session, request: messages.LaunchProcess, reply: Reply) -> None:
    program = _find_program(session, reply, request.inferlet)
    if program is None:
        return
    process = session.engine.create_process(
        program,
        request.input,
        session.user,
        captured=request.capture_outputs,
        token_budget=request.token_budget,
    )
    if not request.capture_outputs:
        session.respond(reply, True, "", ends_turn=False)
    else:
        session.attach(process, reply.stream)
        if session.faults.early_events:
            process.after_first = lambda: session.respond(reply, True, process.id, ends_turn=False)
        else:
            session.respond(reply, True, process.id, ends_turn=False)
    session.engine.start(process)


def _find_program(session: Session, reply: Reply, identifier: str) -> Program | None:
    """Find the program of a launch, or answer why not; a launch that fails ends no turn."""
    try:
        program = session.engine.programs.find(identifier)
    except ProgramRefused as exc:
        session.respond(reply, False, str(exc), ends_turn=False)
        return None
    if session.engine.refuses_launch():
        session.respond(reply, False, session.faults.refusal, ends_turn=False)
        return None
    return program


def _launch_many(
    session: Session,
    reply: Reply,
    request: messages.LaunchProcesses | messages.RunProcesses,
    captured: bool,
) -> list[SimulatedProcess] | None:
    budgets = request.token_budgets or [None] * len(request.inputs)
    if len(budgets) != len(request.inputs):
        text = f"token_budgets length {len(budgets)} does not match inputs length {len(request.inputs)}"
        session.respond(reply, False, text)
        return None
    program = _find_program(session, reply, request.inferlet)
    if program is None:
        return None
    return [
        session.engine.create_process(program, text, session.user, captured=captured, token_budget=budget)
        for text, budget in zip(request.inputs, budgets, strict=True)
    ]


def _launch_processes(session: Session, request: messages.LaunchProcesses, reply: Reply) -> None:
    processes = _launch_many(session, reply, request, request.capture_outputs)
    if processes is None:
        return
    if request.capture_outputs:
        for process in processes:
            session.attach(process, reply.stream)
    session.respond(reply, True, json.dumps([process.id for process in processes]))
    for process in processes:
        session.engine.start(process)


def _run_processes(session: Session, request: messages.RunProcesses, reply: Reply) -> None:
    processes = _launch_many(session, reply, request, captured=False)
    if processes is None:
        return
    session.block()
    for process in processes:
        session.engine.start(process)
    session.engine.spawn(_collect, session, reply, processes)


async def _collect(session: Session, reply: Reply, processes: list[SimulatedProcess]) -> None:
    """Await the results in the order of the inputs; the first error hides the rest, which run on."""
    values: list[str] = []
    answer: tuple[bool, str] | None = None
    for process in processes:
        kind, value = await process.wait()
        if kind == "error":
            answer = (False, value)
            break
        values.append(value)
    session.respond(reply, *(answer or (True, json.dumps(values))))
    session.unblock()


def _find_process(session: Session, reply: Reply, process_id: str, invalid: str) -> SimulatedProcess | None:
    """Find a process that this user may touch, or answer why not; a failed attach ends no turn."""
    ends_turn = reply.request.type != "attach_process"
    canonical = canonical_id(process_id)
    if canonical is None:
        session.respond(reply, False, invalid, ends_turn=ends_turn)
        return None
    process = session.engine.find_process(canonical)
    if process is None:
        session.respond(reply, False, "Process not found", ends_turn=ends_turn)
        return None
    if process.user != session.user:
        session.respond(reply, False, "Permission denied", ends_turn=ends_turn)
        return None
    return process


def _attach_process(session: Session, request: messages.AttachProcess, reply: Reply) -> None:
    process = _find_process(session, reply, request.process_id, "Invalid process_id")
    if process is None:
        return
    if process.attachment is not None:
        session.respond(reply, False, session.profile.attach_conflict, ends_turn=False)
        return
    session.attach(process, reply.stream)
    session.respond(reply, True, "Process attached", ends_turn=False)
    process.replay()


def _terminate_process(session: Session, request: messages.TerminateProcess, reply: Reply) -> None:
    process = _find_process(session, reply, request.process_id, "Invalid process ID")
    if process is not None:
        session.respond(reply, True, "Process terminated")
        process.terminate()


def _signal_process(session: Session, request: messages.SignalProcess, reply: Reply) -> None:
    process = session.find_attached(request.process_id)
    if process is not None:
        process.signal(request.message)
    session.end_turn(reply.stream)


def _transfer_file(session: Session, request: messages.TransferFile, reply: Reply) -> None:
    process = session.find_attached(request.process_id)
    if process is not None:
        try:
            content = session.assembler.add_file(request)
        except UploadRefused:
            content = None
        if content is not None and blake3(content.data).hexdigest() == request.file_hash:
            process.take_file(content.data)
    session.end_turn(reply.stream)


# --- what only 0.4 has -----------------------------------------------------------------------------------------------


def _launch_daemon(session: Session, request: messages.LaunchDaemon, reply: Reply) -> None:
    if _find_program(session, reply, request.inferlet) is not None:
        session.respond(reply, True, "server launched")


def _register_mcp_server(session: Session, request: messages.RegisterMcpServer, reply: Reply) -> None:
    session.tools[request.name] = request.transport
    session.respond(reply, True, "MCP server registered")


def _mcp_response(session: Session, request: messages.McpResponse, reply: Reply) -> None:
    session.answer_tool(request)


HANDLERS: Final[dict[type[messages.Request], Handler]] = {
    messages.AuthIdentify: _auth_identify,
    messages.AuthProve: _auth_prove,
    messages.AuthByToken: _auth_by_token,
    messages.Ping: _ping,
    messages.Query: _query,
    messages.CheckProgram: _check_program,
    messages.AddProgram: _add_program,
    messages.LaunchProcess: _launch_process,
    messages.LaunchProcesses: _launch_processes,
    messages.RunProcesses: _run_processes,
    messages.LaunchDaemon: _launch_daemon,
    messages.AttachProcess: _attach_process,
    messages.TerminateProcess: _terminate_process,
    messages.SignalProcess: _signal_process,
    messages.TransferFile: _transfer_file,
    messages.ListProcesses: _list_processes,
    messages.RegisterMcpServer: _register_mcp_server,
    messages.McpResponse: _mcp_response,
}
