# SPDX-License-Identifier: Apache-2.0
"""Launches and attaches that have not happened yet: awaited, or entered."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Generator
from types import TracebackType
from typing import Any

from ._arguments import check_number
from ._exceptions import InvalidRequest
from ._flow.buffers import OverflowPolicy
from ._inferlet import Inferlet
from ._process import Process
from ._programs import encode_input, program_name
from ._protocol.messages import AttachProcess, LaunchProcess
from ._session.registry import Run
from ._session.session import Session

__all__ = ["AttachCall", "LaunchCall", "ProcessCall", "RequestCall"]


class ProcessCall:
    """A launch or attach that has not happened yet: await it for the process, or enter it to have the process end.

    * ``process = await call``: the process lives until it ends, is terminated, or the engine drops it.
    * ``async with call as process``: leaving the block terminates the process if it is still running, and waits for
      the engine to confirm it.

    A call that is neither awaited nor entered does nothing, and warns about it.

    Cancellation: a launch that was cancelled before the engine answered is withdrawn where it has not left, and
    otherwise terminated as soon as the answer tells its id; ``client.receipt`` names it until that is confirmed.
    """

    __slots__ = ("_process", "_session", "_used")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._process: Process | None = None
        self._used = False

    def __await__(self) -> Generator[Any, Any, Process]:
        return self._launch().__await__()

    async def __aenter__(self) -> Process:
        self._process = await self._launch()
        return self._process

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._process is not None
        await self._process.aclose()

    def __del__(self) -> None:
        if not self._used:
            msg = f"{self._describe()} was neither awaited nor entered with 'async with': nothing was sent"
            warnings.warn(msg, RuntimeWarning, stacklevel=2, source=self)

    async def _launch(self) -> Process:
        if self._used:
            msg = f"{self._describe()} was used twice; make a new call for each process"
            raise InvalidRequest(msg)
        self._used = True
        run = self._begin_now() or await self._begin()
        started = run.started
        ours = not started.done  # else it is a run that other handles have
        try:
            await started.wait()
        except BaseException:
            # Cancelled, or refused; for the latter there is nothing left to release. The core ends the process as
            # soon as it learns its id, so nothing needs to be waited for here.
            if ours:
                self._session.runs.forsake(run)
            raise
        run.detached = False
        return Process(self._session, run)

    def _begin_now(self) -> Run | None:
        """Do what :meth:`_begin` does, where nothing has to be waited for."""
        return None

    @abstractmethod
    async def _begin(self) -> Run:
        """Submit the request, or find the run that there is already."""

    @abstractmethod
    def _describe(self) -> str:
        """Name the call as its user wrote it."""


class LaunchCall(ProcessCall):
    """A launch that has not happened yet."""

    __slots__ = ("_inferlet", "_input", "_overflow", "_quiet", "_token_budget")

    def __init__(
        self,
        session: Session,
        inferlet: str | Inferlet[..., Any],
        input: Any,
        token_budget: int | None,
        overflow: OverflowPolicy,
        *,
        quiet: bool,
    ) -> None:
        self._session = session  # and not by way of the base class, which takes as long as all of these
        self._process = None
        self._used = False
        self._inferlet = inferlet
        self._input = input
        self._token_budget = token_budget
        self._overflow: OverflowPolicy = overflow
        self._quiet = quiet

    def _begin_now(self) -> Run | None:
        if self._token_budget is None and self._session.is_ready:
            return self._start(encode_input(self._input))
        return None

    async def _begin(self) -> Run:
        session, budget = self._session, self._token_budget
        text = encode_input(self._input)
        if budget is not None:
            check_number("token_budget", budget, 0, 2**64 - 1)
            await session.require("token_budget", "token_budget")
        else:
            await session.ready()
        return self._start(text)

    def _start(self, text: str) -> Run:
        session = self._session
        program = program_name(self._inferlet, bare=session.takes_bare_names)
        request = LaunchProcess(program, text, True, self._token_budget)
        return session.runs.start(request, quiet=self._quiet, overflow=self._overflow)

    def _describe(self) -> str:
        return f"launch_process({self._inferlet!r})"


class AttachCall(ProcessCall):
    """An attach that has not happened yet."""

    __slots__ = ("_given", "_wanted")

    def __init__(self, session: Session, given: str, wanted: str) -> None:
        super().__init__(session)
        self._given = given
        self._wanted = wanted

    async def _begin(self) -> Run:
        session = self._session
        await session.ready()
        known = session.registry.by_id.get(self._wanted)
        if known is not None and not known.released:
            return known
        return session.runs.start(AttachProcess(self._wanted))

    def _describe(self) -> str:
        return f"attach_process({self._given!r})"


class RequestCall(ProcessCall):
    """A launch or attach with a request as it is, whatever the engine makes of it."""

    __slots__ = ("_overflow", "_quiet", "_request")

    def __init__(
        self,
        session: Session,
        request: LaunchProcess | AttachProcess,
        overflow: OverflowPolicy,
        *,
        quiet: bool,
    ) -> None:
        super().__init__(session)
        self._request = request
        self._overflow: OverflowPolicy = overflow
        self._quiet = quiet

    async def _begin(self) -> Run:
        await self._session.ready()
        return self._session.runs.start(self._request, quiet=self._quiet, overflow=self._overflow)

    def _describe(self) -> str:
        return self._request.type
