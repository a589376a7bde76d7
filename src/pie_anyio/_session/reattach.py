# SPDX-License-Identifier: Apache-2.0
"""Continue, on a new connection, the runs that an old one left behind.

What an engine keeps of them depends on its generation. 0.5 ends a run with the connection it was launched on. 0.4 lets
it go on; as documented it can be attached to again, as released it stays bound to the connection that is gone, and the
attach is refused with "Process not found" though the process is listed. So the list decides: what it does not hold is
over, and how it ended cannot be known; what it holds and cannot be attached to is tried again for a while, since a
connection that broke in between may look alive to the engine. Sources: 0.4 section 5.3, 0.5 section 12A.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anyio import current_time, sleep

from .._flow.backoff import Backoff
from .._flow.slots import ReplySlot
from .._protocol.messages import GONE, ListProcesses, Request, TerminateProcess
from .reconcile import listed_ids
from .registry import Ending, EndKind, Run
from .router import SIGNAL, lose_run, terminal_event

if TYPE_CHECKING:
    from .session import Session

_ENDED_WITH_IT: Final = "the connection was lost, and this generation of the engine ends processes with it"
_ENDED_MEANWHILE: Final = "it ended while the connection was lost; the engine cannot say how"
_OUT_OF_REACH: Final = (
    "the connection was lost, and the engine does not let it be attached to again ({detail}); {done}"
)


class Reattacher:
    """Settles the runs that were live when the connection was lost. One pass at a time."""

    def __init__(self, session: Session, patience: float, backoff: Backoff) -> None:
        self._session = session
        self._patience = patience
        self._backoff = backoff
        self._open: dict[Run, str] = {}
        """Runs that are neither continued nor given up, and what the engine said of them last."""
        self._deadline = 0.0

    @property
    def has_work(self) -> bool:
        """Whether runs are left to be settled."""
        return bool(self._open)

    async def begin(self) -> None:
        """Look once at every run that an earlier connection left; most are settled by that.

        Raises:
            ConnectionLost: the new connection is gone as well; call again on the next.
        """
        self._open = dict.fromkeys(self._session.registry.by_id.values(), "")
        self._deadline = current_time() + self._patience
        if self._open:
            await self._look()

    async def finish(self) -> None:
        """Go on looking until all are settled, or for as long as the policy says; then give up the rest.

        Raises:
            ConnectionLost: as :meth:`begin`.
        """
        attempt = 0
        while self._open:
            attempt += 1
            delay = self._backoff.delay(attempt)
            if current_time() + delay > self._deadline:
                await self._give_up()
                return
            await sleep(delay)
            await self._look()

    async def _look(self) -> None:
        """List what runs, and do with each open run what that calls for."""
        ok, text = await self._session.ask(ListProcesses())
        listed = listed_ids(text) if ok else None
        attach: list[Run] = []
        terminate: list[Run] = []
        for run in list(self._open):
            if listed is not None and run.process_id not in listed:
                self._note_gone(run)
            else:
                (terminate if run.released else attach).append(run)
        await self._attach(attach)
        await self._terminate(terminate)

    def _note_gone(self, run: Run) -> None:
        """Settle a run that the engine does not list."""
        del self._open[run]
        if run.released or run.terminating:
            # It was to be ended, and it has: more is not asked of it.
            self._end(run)
            return
        capabilities = self._session.capabilities
        survives = capabilities is not None and capabilities.survives_disconnect
        lose_run(self._session.registry, run, _ENDED_MEANWHILE if survives else _ENDED_WITH_IT)

    def _end(self, run: Run) -> None:
        if run.buffer is not None:
            run.buffer.finish(terminal_event(EndKind.TERMINATED, SIGNAL))
        self._session.registry.end(run, Ending(EndKind.TERMINATED, SIGNAL))

    async def _attach(self, runs: list[Run]) -> None:
        """Attach to all at once; what is refused stays open."""
        session = self._session
        answers = [(run, session.runs.reattach(run)) for run in runs]
        for run, answer in answers:
            ok, detail = await answer.wait()
            if not ok:
                self._open[run] = detail
                continue
            del self._open[run]
            if run.released:  # meanwhile; the terminate could not be sent before the engine had answered
                session.runs.end_remotely(run)

    async def _terminate(self, runs: list[Run]) -> None:
        """End all at once; what the engine does not confirm stays open."""
        for run, answer in [(run, self._submit(TerminateProcess(run.process_id))) for run in runs]:
            ok, detail = await answer.wait()
            if ok or detail.startswith(GONE):
                self._open.pop(run, None)
                self._end(run)
            else:
                self._open[run] = detail

    def _submit(self, request: Request) -> ReplySlot[tuple[bool, str]]:
        link = self._session.link
        slot: ReplySlot[tuple[bool, str]] = ReplySlot()
        link.protocol.submit(request, slot, urgent=True)
        link.flush()
        return slot

    async def _give_up(self) -> None:
        """End what this client has launched; leave alone what it had only attached to or detached from."""
        runs = list(self._open)
        ours = [run for run in runs if not (run.attached or run.detached)]
        answers = {run: self._submit(TerminateProcess(run.process_id)) for run in ours}
        for run in runs:
            done = "it was left alone, since somebody else may want it"
            if run in answers:
                ok, said = await answers[run].wait()
                ended = ok or said.startswith(GONE)
                done = "so it was ended" if ended else f"and ending it failed as well: {said}"
                if run.released and ended:
                    self._end(run)
                    continue
                run.released = run.released or not ended  # it goes on record as one that may still run
            lose_run(self._session.registry, run, _OUT_OF_REACH.format(detail=self._open[run], done=done))
        self._open.clear()
