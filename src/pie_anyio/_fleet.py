# SPDX-License-Identifier: Apache-2.0
"""The runs that a map has on the engine: launched, followed, ended when their owner leaves, and counted."""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol

from anyio.lowlevel import checkpoint_if_cancelled

from ._inferlet import Inferlet
from ._programs import encode_input, program_name
from ._protocol.messages import LaunchProcess
from ._receipt import Receipt
from ._session.registry import Ending, EndKind, Run
from ._session.session import Session

__all__ = ["EndKind", "Ending", "Fleet", "Launcher", "Run"]


class Launcher(Protocol):
    """Gives the session for the next run: a client, or a pool of them."""

    async def pick(self) -> Session:
        """Give a session that takes requests."""
        ...

    def put_back(self, session: Session) -> None:
        """Note that a run on a picked session is over."""
        ...


class Fleet:
    """The runs of one map, and the books about them."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._open: dict[Run, None] = {}
        """Runs that have not been seen to end; those that were told to are the unconfirmed ones."""
        self._ended: Counter[EndKind] = Counter()
        self._deadline: float | None = None
        self.refusals = 0
        """Refused launches that were put off, not given up."""
        self.unsent = 0
        """Items that were given up before anything of them was submitted."""

    async def require(self, feature: str, capability: str) -> None:
        """Refuse what the engine cannot do, before anything is started."""
        session = await self._launcher.pick()
        try:
            await session.require(feature, capability)
        finally:
            self._launcher.put_back(session)

    async def run(self, program: str | Inferlet[..., Any], value: Any, token_budget: int | None) -> Run:
        """Launch a program and wait until its run has ended, in whatever way.

        Raises:
            InvalidRequest: the program or the value cannot be sent.
            ConnectionLost: there is no connection any more.

        Cancellation: the run is ended, in whatever state it is, and waited for until a deadline that is set by the
        first run that is cancelled: a thousand of them together wait one grace period, not a thousand.
        """
        await checkpoint_if_cancelled()
        session = await self._launcher.pick()
        try:
            capabilities = session.capabilities
            bare = capabilities is not None and capabilities.bare_program_names
            name = program_name(program, bare=bare)
            run = session.start(LaunchProcess(name, encode_input(value), True, token_budget), quiet=True)
            self._open[run] = None
            try:
                await run.ended.wait()
            finally:
                if not run.ended.done:
                    session.release(run)
                    if self._deadline is None:
                        self._deadline = session.grace_deadline()
                    await session.confirm(run, self._deadline)
                self._close_ended(run)
            return run
        finally:
            self._launcher.put_back(session)

    @property
    def live(self) -> int:
        """Runs that were submitted and have not been seen to end."""
        return len(self._open)

    @property
    def admitted(self) -> bool:
        """Whether some run is under way on the engine."""
        return any(run.started_at is not None for run in self._open)

    def _close_ended(self, run: Run) -> None:
        ending = run.ending
        if ending is None or (ending.kind is EndKind.LOST and run.released):
            return  # told to end, and not seen to
        if run in self._open:
            del self._open[run]
            self._ended[ending.kind] += 1

    def receipt(self) -> Receipt:
        """Give the account as it stands; runs that confirm their end late are in it too."""
        for run in list(self._open):
            self._close_ended(run)
        ended = self._ended
        unconfirmed = tuple(run.process_id or "?" for run in self._open if run.released)
        finished = sum(
            ended[kind] for kind in (EndKind.RETURNED, EndKind.FAILED, EndKind.TERMINATED, EndKind.LOST)
        )
        return Receipt(
            started=finished + len(self._open),
            returned=ended[EndKind.RETURNED],
            failed=ended[EndKind.FAILED],
            terminated=ended[EndKind.TERMINATED],
            lost=ended[EndKind.LOST],
            running=len(self._open) - len(unconfirmed),
            not_started=ended[EndKind.REFUSED] + ended[EndKind.WITHDRAWN] + self.unsent - self.refusals,
            refusals=self.refusals,
            unconfirmed=unconfirmed,
        )
