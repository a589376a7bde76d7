# SPDX-License-Identifier: Apache-2.0
"""``ProcessClient``: one connection to an engine, and every single-process operation on it."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Final, NoReturn, Self, cast

from anyio import AsyncContextManagerMixin, fail_after, to_thread

from ._arguments import (
    canonical_id,
    check_credentials,
    check_identity,
    check_number,
    check_text,
    check_tool_server,
    check_user_agent,
    read_text,
)
from ._calls import AttachCall, LaunchCall, ProcessCall
from ._exceptions import ConnectError, InvalidRequest, RemoteProtocolError
from ._flow.buffers import OverflowPolicy
from ._inferlet import Inferlet
from ._keys import ParsedPrivateKey, Passphrase, Signer
from ._manifest import check_program_name, parse_manifest
from ._mcp import ToolRelay
from ._process import Process, ProcessResult, send_signal, terminate_by_id
from ._programs import encode_input, look_up_version, program_name
from ._protocol import messages
from ._receipt import Receipt
from ._session.login import login_with_key, login_with_token
from ._session.options import EndpointLike, SessionOptions, parse_endpoint
from ._session.refusals import engine_error
from ._session.session import Session
from ._session.uploads import ContentLike, open_content, upload
from ._ssh_agent import agent_signers
from ._types import Capabilities, Generation, Keepalive, Limits, Reconnect

__all__ = ["KeyLike", "ProcessClient"]

KeyLike = ParsedPrivateKey | Signer | str | os.PathLike[str]
"""A private key: parsed, or its path, or ``"agent"`` for the SSH agent, or anything that signs."""

_DEFAULT_KEEPALIVE: Final = Keepalive()


@cache
def _own_version() -> str:
    # It costs a tenth of what importing the whole package does, so it waits for the first client.
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return version("pie-anyio")
    except PackageNotFoundError:  # pragma: no cover - running from a checkout that was never installed
        return "0"


class ProcessClient(AsyncContextManagerMixin):
    """A client of one Pie engine, connected while its ``async with`` block is.

    See :class:`PieClient`, which adds the fan-out to it.
    """

    def __init__(
        self,
        url: EndpointLike,
        identity: str | None = None,
        *,
        username: str | None = None,
        key: KeyLike | None = None,
        passphrase: Passphrase | None = None,
        token: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        require_tls: bool = False,
        reconnect: Reconnect | bool | None = None,
        connect_timeout: float = 10.0,
        close_timeout: float = 0.5,
        terminate_grace: float = 2.0,
        keepalive: Keepalive | None = _DEFAULT_KEEPALIVE,
        limits: Limits | None = None,
        user_agent: str | None = None,
    ) -> None:
        check_credentials(username, key, token)
        self._options = SessionOptions(
            endpoint=parse_endpoint(url, ssl_context, require_tls=require_tls),
            identity=check_identity(identity, username),
            user_agent=check_user_agent(user_agent) or f"pie-anyio/{_own_version()}",
            limits=limits or Limits(),
            keepalive=keepalive,
            connect_timeout=connect_timeout,
            close_timeout=close_timeout,
            terminate_grace=terminate_grace,
            reconnect=Reconnect() if reconnect is True else reconnect or None,
        )
        self._username = username
        self._key = key
        self._passphrase = passphrase
        self._token = token
        self._session = Session(self._options)
        self._tools = ToolRelay(self._session, _own_version())
        self._entered = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._options.endpoint.name}>"

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        if self._entered:
            msg = "a client is entered once; make a new PieClient for another connection"
            raise InvalidRequest(msg)
        self._entered = True
        async with self._session:
            await self._log_in()
            yield self

    async def _log_in(self) -> None:
        """Log in with what the constructor was given; the caller of ``async with`` cannot bound this alone."""
        try:
            with fail_after(self._options.connect_timeout):
                if self._token is not None:
                    await self.auth_by_token(self._token)
                elif self._username is not None:
                    await self.authenticate(self._username, self._key)
        except TimeoutError as exc:
            msg = f"{self.url} did not answer the login within {self._options.connect_timeout:g} s"
            raise ConnectError(msg, url=self.url) from exc

    def connect(self) -> NoReturn:
        """Say how to connect: a connection has tasks, and tasks need a block that owns them.

        Raises:
            TypeError: always.
        """
        msg = (
            "PieClient has no connect(): write 'async with PieClient(url) as client:'. In an application that lives "
            "longer than one block, enter it in the lifespan handler or on an AsyncExitStack"
        )
        raise TypeError(msg)

    def close(self) -> NoReturn:
        """Say how to close: by leaving the block.

        Raises:
            TypeError: always.
        """
        msg = "PieClient has no close(): the connection closes at the end of 'async with PieClient(url) as client:'"
        raise TypeError(msg)

    # --- facts -----------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The endpoint, as error messages name it."""
        return self._options.endpoint.name

    @property
    def generation(self) -> Generation | None:
        """The engine's generation, as told by its first answer; None before that."""
        return self._session.generation

    @property
    def capabilities(self) -> Capabilities | None:
        """What the engine can do; None before its generation is known."""
        return self._session.capabilities

    @property
    def receipt(self) -> Receipt:
        """The account of all processes of this client, as it stands."""
        return self._session.registry.receipt()

    @property
    def connections(self) -> int:
        """How many connections there were so far, the present one included: one more with each reconnection."""
        return self._session.connections

    # --- for the fan-out -------------------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """The connection behind this client; internal, and subject to change."""
        return self._session

    async def pick(self) -> Session:
        """Give the session for one run of a map; internal.

        Raises: as any request would.

        Cancellation: harmless.
        """
        await self._session.ready()
        return self._session

    def pick_now(self) -> Session | None:
        """Give the session for one run of a map, where that takes no waiting; internal."""
        return self._session if self._session.is_ready else None

    def put_back(self, session: Session) -> None:
        """Note that a run of a map is over; internal."""

    # --- login -----------------------------------------------------------------------------------------------------

    async def authenticate(self, username: str, private_key: KeyLike | None = None) -> None:
        """Log in with a name and, where the engine asks for a proof, a private key.

        An engine of 0.5, or one whose authentication is switched off, accepts any name and never looks at the key.
        ``private_key`` is a ``ParsedPrivateKey``, the path of one, or ``"agent"``. Only a challenge of exactly 48
        bytes is signed.

        Raises:
            AuthenticationError: unknown user, missing or wrong key, or a challenge that is not one.
            KeyFileError: the key cannot be read.
            ConnectionLost: the connection went away.

        Cancellation: the connection may be logged in or not; call again.
        """
        check_text("authenticate", username=username)
        signers = [] if private_key is None else await self._load_signers(private_key)
        await self._session.connected()
        await login_with_key(self._session, username, signers)

        async def again() -> None:
            await login_with_key(self._session, username, signers)

        self._session.relogin = again

    async def auth_by_token(self, token: str) -> None:
        """Log in with the engine's internal token (0.4).

        Raises:
            AuthenticationError: the engine refused it, after 1 to 3 seconds.
            UnsupportedByEngine: a 0.5 engine knows no tokens; it was not sent.

        Cancellation: the connection may be logged in or not; call again.
        """
        check_text("auth_by_token", token=token)
        await self._session.connected()
        await login_with_token(self._session, token)

        async def again() -> None:  # and not a partial, whose repr shows the token
            await login_with_token(self._session, token)

        self._session.relogin = again

    async def _load_signers(self, key: KeyLike) -> list[Signer]:
        if isinstance(key, (str, os.PathLike)):
            if key == "agent":
                return [*await agent_signers()]
            path, passphrase = key, self._passphrase
            # Reading is quick, but deriving the key of an encrypted file takes up to a second.
            return [await to_thread.run_sync(lambda: ParsedPrivateKey.from_file(path, passphrase))]
        return [key]

    # --- questions -------------------------------------------------------------------------------------------------

    async def _ask(self, request: messages.Request, about: str = "") -> str:
        ok, result = await self._session.request(request)
        if not ok:
            raise engine_error(request.type, result, about=about)
        return result

    async def ping(self) -> None:
        """Ask the engine for a sign of life, through the same queue as all other requests.

        A busy session may take long to answer; that alone does not mean that the engine is dead. Any answer will do: an
        engine of 0.5 without free capacity refuses even this, and shows by that that it is alive.

        Raises:
            ConnectionLost: the connection went away.

        Cancellation: harmless.
        """
        await self._session.request(messages.Ping())

    async def query(self, subject: str, record: str) -> tuple[bool, str]:
        """Ask the engine for figures: ``("model_status", "")`` gives a JSON object.

        Gives whether the engine understood, and its answer. An engine of 0.4 does not answer other subjects at all, so
        those are refused here.

        Raises:
            InvalidRequest: not two texts, or a subject that a 0.4 engine would never answer.
            ConnectionLost: the connection went away.

        Cancellation: harmless.
        """
        check_text("query", subject=subject, record=record)
        await self._session.ready()
        if self.generation is Generation.V04 and subject != "model_status":
            msg = f"an engine of generation 0.4 never answers query({subject!r}, ...); it knows 'model_status' only"
            raise InvalidRequest(msg)
        return await self._session.request(messages.Query(subject, record))

    async def list_processes(self) -> list[dict[str, Any]]:
        """List the running processes: on 0.4 those of this user, on 0.5 everybody's.

        Each is a dict with ``id``, ``username``, ``program``, ``input`` (the text as launched) and ``elapsed_secs``.

        Raises:
            RemoteProtocolError: the answer cannot be read.
            ConnectionLost: the connection went away.

        Cancellation: harmless.
        """
        text = await self._ask(messages.ListProcesses())
        try:
            rows: Any = json.loads(text)
        except (ValueError, RecursionError) as exc:
            msg = "list_processes: the engine's answer is not JSON"
            raise RemoteProtocolError(msg) from exc
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in cast("list[object]", rows)):
            msg = "list_processes: the engine's answer is not a list of objects"
            raise RemoteProtocolError(msg)
        return cast("list[dict[str, Any]]", rows)

    # --- programs --------------------------------------------------------------------------------------------------

    async def resolve_version(self, name: str, registry_url: str) -> str:
        """Look the newest version of a program up in a registry; a name with a version is given back as it is.

        Raises:
            EngineError: the registry does not know it or cannot be reached.

        Cancellation: the look-up is left to itself, in a thread.
        """
        return await look_up_version(name, registry_url)

    async def check_program(
        self,
        inferlet: str | Inferlet[..., Any],
        wasm_path: str | os.PathLike[str] | None = None,
        manifest_path: str | os.PathLike[str] | None = None,
    ) -> bool:
        """Tell whether ``name@version`` is installed on the engine.

        ``wasm_path`` and ``manifest_path`` are accepted for compatibility and not looked at: both engine generations
        ignore the hashes that could be sent for them.

        Raises:
            InvalidRequest: the name has no version or is malformed.
            ConnectionLost: the connection went away.

        Cancellation: harmless.
        """
        name, number = check_program_name(program_name(inferlet, bare=False), bare=False)
        assert number is not None
        return await self._ask(messages.CheckProgram(name, number), f"{name}@{number}") == "true"

    async def install_program(
        self,
        wasm_path: str | os.PathLike[str],
        manifest_path: str | os.PathLike[str],
        force_overwrite: bool = False,
    ) -> None:
        """Upload a program from files: a component or a script, and its ``Pie.toml``.

        The program is read piece by piece. Without ``force_overwrite`` a 0.4 engine keeps what it has under the same
        ``name@version``, silently.

        Raises:
            InvalidRequest: a file cannot be read, or the manifest is invalid.
            EngineError: the engine refused it: too large, does not compile, ...
            ConnectionLost: the connection went away.

        Cancellation: what was sent is forgotten by the engine.
        """
        manifest = await to_thread.run_sync(read_text, manifest_path)
        await self._install(os.fspath(wasm_path), manifest, force_overwrite)

    async def install_program_bytes(
        self, program_bytes: bytes, manifest: str, force_overwrite: bool = False
    ) -> None:
        """Upload a program from memory; see :meth:`install_program`.

        Raises:
            InvalidRequest: the manifest is invalid.
            EngineError: the engine refused it.
            ConnectionLost: the connection went away.

        Cancellation: what was sent is forgotten by the engine.
        """
        await self._install(program_bytes, manifest, force_overwrite)

    async def _install(self, program: ContentLike, manifest: str, force: bool) -> None:
        parse_manifest(manifest)  # the engine's own message comes after the whole upload only
        content = await open_content(program)
        await upload(self._session, content, manifest, force=bool(force))

    # --- processes -------------------------------------------------------------------------------------------------

    def launch_process(
        self,
        inferlet: str | Inferlet[..., Any],
        input: Any = None,
        capture_outputs: bool = True,
        token_budget: int | None = None,
        *,
        overflow: OverflowPolicy = "error",
    ) -> ProcessCall:
        """Launch a process: await it to own it yourself, or enter it to have it ended with the block.

        ``input`` is anything that has a JSON form; None stands for an empty object. With ``capture_outputs=False``
        the output is dropped here, unread (the engine would hide the process id, so it is never told). ``token_budget``
        caps the tokens of the process (0.4). ``overflow`` says what happens to output that is not read in time: it is
        dropped, with an error (``"error"``) or a gap (``"drop_oldest"``), or the whole connection waits (``"pause"``).

        Launching means that the engine has registered the process; it may wait for its turn after that.

        Raises (when awaited or entered):
            InvalidRequest: the name is malformed, or the input has no JSON form or is too large.
            ProgramNotFound: the program is not installed.
            EngineBusy: the engine has no capacity at the moment.
            UnsupportedByEngine: ``token_budget`` on an engine of 0.5.
            ConnectionLost: the connection went away; its ``issued`` says whether the launch may have happened.

        Cancellation: a launch that is cancelled before it is answered is ended as soon as its id is known.
        """
        return LaunchCall(self._session, inferlet, input, token_budget, overflow, quiet=not capture_outputs)

    def attach_process(self, process_id: str) -> ProcessCall:
        """Attach to a running process by its id: await it, or enter it to have it ended with the block.

        A process that this client has already is given as another handle on the same events. What an engine still
        knows of a process depends on its generation: see "Detach and reattach" in the documentation.

        Raises (when awaited or entered):
            ProcessNotFound: unknown, ended, or attached to another connection.
            ConnectionLost: the connection went away.

        Cancellation: the process is not touched.
        """
        return AttachCall(self._session, process_id, canonical_id(process_id))

    async def run_process(
        self, inferlet: str | Inferlet[..., Any], input: Any = None, *, token_budget: int | None = None
    ) -> ProcessResult:
        """Launch a process, wait for it, and give everything that it sent.

        Raises:
            ProcessFailed: the program raised; ``output_tail`` has the last of what it printed.
            ProcessTerminated: somebody terminated it.
            ConnectionLost: the connection went away; and all that :meth:`launch_process` raises.

        Cancellation: the process is ended, which is waited for up to ``terminate_grace``.
        """
        async with self.launch_process(inferlet, input, token_budget=token_budget) as process:
            return await process.collect()

    async def run(self, program: str | Inferlet[..., Any], /, **kwargs: Any) -> Process:
        """Launch a program with keyword arguments as its input.

        A function decorated with ``@inferlet`` is installed first where the engine does not hold its exact source.

        Raises: as :meth:`install_program_bytes` and :meth:`launch_process`.

        Cancellation: as :meth:`launch_process`.
        """
        if isinstance(program, Inferlet) and not await self.check_program(program.program):
            await self.install_program_bytes(program.source.encode(), program.manifest_toml())
        return await self.launch_process(program, kwargs)

    async def terminate_process(self, process_id: str) -> None:
        """End a process by its id, whoever launched it.

        Raises:
            ProcessNotFound: it has ended, never existed, or belongs to another user.
            ConnectionLost: the connection went away.

        Cancellation: the request may have been sent; repeat it.
        """
        await terminate_by_id(self._session, canonical_id(process_id))

    async def signal_process(self, process_id: str, message: str) -> None:
        """Send a string to a process that this connection launched or attached to; see :meth:`Process.signal`.

        An engine ignores signals to other processes, without a word.

        Raises:
            InvalidRequest: the message is not text that can be sent.
            ConnectionLost: the connection went away.

        Cancellation: either nothing was sent, or all of it will be.
        """
        await send_signal(self._session, canonical_id(process_id), message)

    async def launch_daemon(self, inferlet: str, port: int, input: Any = None) -> None:
        """Start an HTTP daemon on the engine's loopback interface (0.4).

        The engine never says whether the port could be bound, and a daemon lives as long as the engine: probe it by
        HTTP.

        Raises:
            UnsupportedByEngine: the engine is of generation 0.5.
            InvalidRequest: the port is not between 1 and 65535, or the name is malformed.
            ProgramNotFound: the program is not installed.

        Cancellation: the daemon may have been started.
        """
        check_number("launch_daemon: the port", port, 1, 65535)
        text = encode_input(input)
        await self._session.require("launch_daemon", "daemons")
        await self._ask(messages.LaunchDaemon(port, program_name(inferlet, bare=False), text), inferlet)

    async def register_mcp_server(
        self,
        name: str,
        transport: str,
        command: str | None = None,
        args: Sequence[str] | None = None,
        url: str | None = None,
    ) -> None:
        """Start a tool server (MCP) beside this client, and let programs on the engine call its tools (0.4).

        ``command`` is started with ``args``, and with the environment and working directory of this program; it speaks
        JSON-RPC on its standard streams, ``transport="stdio"``, the only one there is. It has to complete the handshake
        within ``connect_timeout`` and is ended with the client's block: its input is closed, then SIGTERM and SIGKILL
        follow, each ``close_timeout`` later. A server that ends by itself may be registered again; until then calls to
        it fail in the programs that make them. A call may take as long as it wants.

        Raises:
            UnsupportedByEngine: the engine is of generation 0.5; nothing was started.
            InvalidRequest: an argument is wrong, the name is in use, or the command is not there or no tool server.
            EngineError: the engine refused it; the server is ended.
            ConnectionLost: the connection went away.

        Cancellation: the server is ended. The engine may know the name already; calls to it are answered with an error.
        """
        words = check_tool_server(name, transport, command, args, url)
        await self._session.require("register_mcp_server", "mcp")
        await self._tools.register(name, words[0], words[1:])
