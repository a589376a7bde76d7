# SPDX-License-Identifier: Apache-2.0
"""What a session does with runs: start them, end those whose owner leaves, and see that they have ended."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final

from anyio import current_time

from .._flow.buffers import OverflowPolicy
from .._flow.pausing import check_overflow
from .._flow.scopes import cleanup_until
from .._flow.slots import ReplySlot
from .._protocol.messages import AttachProcess, LaunchProcess
from .._types import CorrelationId
from .pumps import Link
from .registry import Ending, EndKind, Run
from .router import logger

if TYPE_CHECKING:
    from .session import Session

_NO_ID: Final = CorrelationId(0)
_NAMED: Final = 5
"""Processes that a warning names; the receipt names them all."""


class Runs:
    """Starts and ends the runs of one session.

    Whatever changes a run is synchronous, so a cancelled caller never leaves one half started or half ended.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def start(
        self,
        request: LaunchProcess | AttachProcess,
        *,
        quiet: bool = False,
        overflow: OverflowPolicy = "error",
    ) -> Run:
        """Submit a launch or attach, synchronously; the caller owns the run from here on and must release it.

        Call :meth:`ready` before.
        """
        session = self._session
        link = session.link
        policy = None if quiet else check_overflow(overflow)
        if isinstance(request, LaunchProcess):
            run = Run(request.inferlet, _NO_ID, ReplySlot(), ReplySlot(), policy)
        else:
            run = Run(
                f"process {request.process_id}", _NO_ID, ReplySlot(), ReplySlot(), policy, attached=True
            )
        run.corr_id = link.protocol.submit(request, run, quiet=quiet)
        run.submitted_at = session.clock()
        link.send_soon()
        return run

    def release(self, run: Run) -> None:
        """Begin to end a run whose owner leaves, in whatever state it is. Synchronous and idempotent."""
        self.release_all((run,))

    def release_all(self, runs: Iterable[Run]) -> None:
        """Begin to end runs, as :meth:`release` does one; what has to be sent goes on its way together."""
        link = self._session.last_link
        for run in runs:
            if not run.ended.done and not run.released:
                self._release(run, link)
        link.flush()

    def _release(self, run: Run, link: Link) -> None:
        run.released = run.told = True
        if run.buffer is not None:
            run.buffer.discard()
        if run.process_id:
            link.protocol.release(run.process_id)
        elif self._withdraws(run, link):
            self._session.registry.end(run, Ending(EndKind.WITHDRAWN))
        if not run.ended.done:
            self._session.registry.note_unconfirmed(run)  # taken back by its end

    @staticmethod
    def _withdraws(run: Run, link: Link) -> bool:
        """Give up a launch or attach that has no answer; tell whether nothing of it was sent."""
        # Without a number it waits for the next connection, which has not seen it.
        return not run.corr_id or link.protocol.abandon(run.corr_id) == 0

    def reattach(self, run: Run) -> ReplySlot[tuple[bool, str]]:
        """Ask to continue a run that another connection left; give where the answer will be."""
        link = self._session.link
        run.reattaching = answer = ReplySlot[tuple[bool, str]]()
        run.corr_id = link.protocol.submit(AttachProcess(run.process_id), run, quiet=run.overflow is None)
        link.flush()
        return answer

    def end_remotely(self, run: Run) -> None:
        """Have the engine end a run that was released while no connection could carry that."""
        link = self._session.link
        link.protocol.release(run.process_id)
        link.flush()

    def forsake(self, run: Run) -> None:
        """Give up a launch or attach whose caller leaves before it has the answer. Synchronous and idempotent.

        What was launched is ended. What was only to be attached to belongs to somebody else and goes on.
        """
        if not run.attached:
            self.release(run)
        elif not run.ended.done:
            link = self._session.last_link
            run.detached = True
            if not run.process_id and self._withdraws(run, link):
                self._session.registry.end(run, Ending(EndKind.WITHDRAWN))
            link.flush()

    async def confirm(self, run: Run, deadline: float) -> bool:
        """Wait for a released run to be seen to end, until a deadline on the loop's clock; else put it on record.

        Cancellation: it is shielded until the deadline. A native cancel of asyncio goes through; the run is then on
        record as unconfirmed until it is seen to end.
        """
        await self.confirm_all((run,), deadline)
        return run not in self._session.registry.unconfirmed

    async def confirm_all(self, runs: Collection[Run], deadline: float) -> None:
        """Wait for released runs as :meth:`confirm` does for one, all until the same deadline.

        Cancellation: as for one.
        """
        if all(run.ended.done for run in runs):
            return
        with cleanup_until(deadline):
            for run in runs:
                if not run.ended.done:
                    await run.ended.wait()
        _warn_of_unconfirmed([run.process_id or "?" for run in runs if not run.ended.done])

    def grace_deadline(self) -> float:
        """Give the point in time up to which released runs are waited for."""
        return current_time() + self._session.options.terminate_grace

    def lose(self, run: Run, why: str) -> None:
        """Give up a run that the engine will not report on any more."""
        link = self._session.last_link
        link.protocol.lose(run.process_id, why)
        link.flush()


def _warn_of_unconfirmed(ids: list[str]) -> None:
    """Put processes that did not confirm their end on record, once for all that were ended together."""
    if len(ids) == 1:
        logger.warning("process %s was told to end and did not confirm it in time", ids[0])
    elif ids:
        more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
        shown = ", ".join(ids[:_NAMED])
        text = (
            "%d processes were told to end and did not confirm it in time: %s%s; the receipt names them all"
        )
        logger.warning(text, len(ids), shown, more)
