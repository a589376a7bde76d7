# SPDX-License-Identifier: Apache-2.0
"""The runs that a map has on the engine: launched, followed, ended when their owner leaves, and counted."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, Protocol

from anyio.lowlevel import checkpoint_if_cancelled

from ._flow.wake import Wake
from ._inferlet import Inferlet
from ._programs import encode_input, program_name
from ._protocol.messages import LaunchProcess
from ._receipt import Receipt
from ._session.registry import Ending, EndKind, Run
from ._session.session import Session

__all__ = ["EndKind", "Ending", "Fleet", "Launcher", "Run"]


class Launcher(Protocol):
    """Gives the session for the next run: a client, or a pool of them."""

    def pick_now(self) -> Session | None:
        """Give a session that takes requests, or None where that takes some waiting or cannot be had."""
        ...

    async def pick(self) -> Session:
        """Give a session that takes requests."""
        ...

    def put_back(self, session: Session) -> None:
        """Note that a run on a picked session is over."""
        ...


class Fleet:
    """The runs of one map, and the books about them. The end of a run needs no task: it is noted where it is read."""

    def __init__(self, launcher: Launcher, program: str | Inferlet[..., Any]) -> None:
        self._launcher = launcher
        self.program: str = program_name(program, bare=True)
        self._is_bare = "@" not in self.program
        """It has no version, which not every engine allows."""
        self._open: dict[Run, Session | None] = {}
        """Runs that have not been seen to end, with their session while they may count as load there; those that were
        told to end are the unconfirmed ones."""
        self._ended: Counter[EndKind] = Counter()
        self._at_end = self._end  # one for all
        self.ended: deque[Run] = deque()
        """Runs that have ended, for whoever follows them to take away."""
        self.wake: Wake = Wake()
        """Set with each of them."""
        self._deadline: float | None = None
        self.refusals: int = 0
        """Refused launches that were put off, not given up."""
        self.unsent: int = 0
        """Items that were given up before anything of them was submitted."""

    async def require(self, feature: str, capability: str) -> None:
        """Refuse what the engine cannot do, before anything is started."""
        session = await self._launcher.pick()
        try:
            await session.require(feature, capability)
        finally:
            self._launcher.put_back(session)

    def start_now(self, value: Any, token_budget: int | None, purpose: Any) -> bool:
        """Launch the program, if no session has to be waited for; give whether it was launched.

        ``purpose`` is what the run will know it was started for.

        Raises:
            InvalidRequest: the program or the value cannot be sent.
            ConnectionLost: there is no connection any more.
        """
        session = self._launcher.pick_now()
        if session is not None:
            self._start(session, value, token_budget, purpose)
        return session is not None

    async def start(self, value: Any, token_budget: int | None, purpose: Any) -> None:
        """Launch the program as soon as there is a session for it; see :meth:`start_now`.

        Cancellation: nothing was launched.
        """
        await checkpoint_if_cancelled()
        self._start(await self._launcher.pick(), value, token_budget, purpose)

    def _start(self, session: Session, value: Any, token_budget: int | None, purpose: Any) -> None:
        try:
            if self._is_bare:
                program_name(self.program, bare=session.takes_bare_names)
            request = LaunchProcess(self.program, encode_input(value), True, token_budget)
            run = session.runs.start(request, quiet=True)
        except BaseException:
            self._launcher.put_back(session)
            raise
        self._open[run] = session
        run.purpose, run.at_end = purpose, self._at_end

    def _end(self, run: Run) -> None:
        """Note that a run has ended; called by the reader of the connection, so it only does what cannot fail."""
        ending = run.ending
        assert ending is not None
        session = self._open.pop(run)
        if session is not None:
            self._launcher.put_back(session)
        if ending.kind is EndKind.LOST and run.released:
            self._open[run] = None  # it was told to end, and not seen to
        else:
            self._ended[ending.kind] += 1
        self.ended.append(run)
        self.wake.set()

    async def end_all(self) -> None:
        """End every run that is under way, in whatever state it is, and wait until they are seen to have ended.

        They are waited for until a deadline that the first call sets: a thousand of them together wait one grace
        period, not a thousand.

        Cancellation: is held up until that deadline.
        """
        sessions: dict[Session, list[Run]] = {}
        for run, session in self._open.items():
            if session is not None:
                sessions.setdefault(session, []).append(run)
        try:
            for session, runs in sessions.items():
                if self._deadline is None:
                    self._deadline = session.runs.grace_deadline()
                session.runs.release_all(runs)
            for session, runs in sessions.items():
                assert self._deadline is not None
                await session.runs.confirm_all(runs, self._deadline)
        finally:
            for session, runs in sessions.items():
                for run in runs:
                    if self._open.get(run) is not None:
                        self._open[run] = None
                        self._launcher.put_back(session)

    @property
    def live(self) -> int:
        """Runs that were submitted and have not been seen to end."""
        return len(self._open)

    @property
    def admitted(self) -> bool:
        """Whether some run is under way on the engine."""
        return any(run.started_at is not None for run in self._open)

    def receipt(self) -> Receipt:
        """Give the account as it stands; runs that confirm their end late are in it too."""
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
