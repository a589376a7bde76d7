# SPDX-License-Identifier: Apache-2.0
"""The way back after a lost connection: try again, log in again, continue what was running.

What the client asked for while there was no connection waits here and not in the engine's sight: launches that never
left are sent on the next connection; everything else waits in ``Session.ready``.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

from anyio import Event, fail_after, sleep

from .._exceptions import (
    AuthenticationError,
    ConnectError,
    ConnectionLost,
    InvalidRequest,
    PieError,
    UnsupportedByEngine,
)
from .._flow.backoff import Backoff
from .._protocol.events import RequestLost
from .._protocol.messages import AttachProcess, LaunchProcess
from .._types import CorrelationId, Reconnect
from .reattach import Reattacher
from .registry import Ending, EndKind, Run
from .router import end_runs, logger

if TYPE_CHECKING:
    from .session import Session

_WORTH_ANOTHER_TRY: Final = frozenset({408, 425, 429})
"""HTTP statuses below 500 that do not say that the request was wrong."""
_FATAL: Final = (AuthenticationError, InvalidRequest, UnsupportedByEngine)


def is_transient(error: PieError) -> bool:
    """Tell whether another attempt to connect may go better than the one that ended with ``error``."""
    if isinstance(error, _FATAL):
        return False
    if isinstance(error, ConnectError) and error.status is not None:
        return error.status >= 500 or error.status in _WORTH_ANOTHER_TRY
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return False
        cause = cause.__cause__
    return True


class Supervisor:
    """Keeps one session connected. Its task runs from the first connection to the end of the client's block."""

    def __init__(self, session: Session, policy: Reconnect) -> None:
        self._session = session
        self._policy = policy
        self._backoff = Backoff(initial=policy.initial, maximum=policy.maximum, jitter=policy.jitter)
        self._reattacher = Reattacher(session, policy.patience, self._backoff)
        self._unsent: list[tuple[Run, LaunchProcess | AttachProcess, bool]] = []
        self._lost = Event()
        self._back = Event()
        self._settled = Event()
        self._active = False
        self.is_down = False
        """There is no connection that requests may use."""
        self.error: ConnectionLost | None = None
        """Why it was given up, once it was."""

    # --- what the router asks --------------------------------------------------------------------------------------

    def takes_over(self, reason: PieError) -> bool:
        """Keep the live runs for the next connection, unless there is to be none."""
        if not self._active:
            return False
        if not self.is_down:
            logger.warning("the connection to %s was lost, trying to restore it: %s", self._name, reason)
            self.is_down = True
            self._session.intake.is_suspended = (
                True  # answers have to be read now, whoever is behind with events
            )
            self._back = Event()
            self._settled = Event()
        self._lost.set()
        return True

    def resubmits(self, lost: RequestLost) -> bool:
        """Keep a launch or attach that never left."""
        run, request = lost.owner, lost.request
        if not self._active or lost.issued or not isinstance(request, (LaunchProcess, AttachProcess)):
            return False
        assert isinstance(run, Run)
        if run.reattaching is not None:
            return False
        run.corr_id = CorrelationId(
            0
        )  # of the connection that is gone; it must not be taken for one of the next
        self._unsent.append((run, request, lost.quiet))
        return True

    # --- what the session asks -------------------------------------------------------------------------------------

    async def connected(self) -> None:
        """Wait until requests can be sent.

        Raises:
            ConnectionLost: the connection was given up, and nothing was sent.
        """
        while self.is_down and self.error is None:
            await self._back.wait()
        if self.is_down and self.error is not None:
            raise ConnectionLost(str(self.error), issued=False) from self.error

    async def settled(self) -> None:
        """Wait until every run that was live when the connection was lost has been continued or given up."""
        while self.is_down or self._reattacher.has_work:
            if self.error is not None:
                return
            await self._settled.wait()

    # --- the task --------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self._session.options.endpoint.name

    def start(self) -> None:
        """Begin to take over lost connections; synchronous, and done before the task runs."""
        self._active = True

    def stop(self, reason: PieError) -> None:
        """Take over nothing more, and end what waits for a connection. Idempotent."""
        if not self._active:
            return
        self._active = False
        self.error = ConnectionLost(str(reason), generation=self._session.connections)
        self.error.__cause__ = reason
        unsent, self._unsent = self._unsent, []
        for run, _, _ in unsent:
            self._withdraw(run, ConnectionLost(str(reason), issued=False))
        if self.is_down:
            end_runs(self._session.registry, reason, self._session.connections)
        self._back.set()
        self._settled.set()

    async def run(self) -> None:
        """Restore the connection each time it is lost, until that is given up."""
        while True:
            await self._lost.wait()
            if not await self._recover():
                return
            try:
                await self._reattacher.finish()
            except PieError as exc:
                logger.info("the connection to %s was lost again: %s", self._name, exc)
            else:
                self._settled.set()

    async def _recover(self) -> bool:
        """Try until there is a connection again, or it makes no sense to go on."""
        attempt = 0
        while True:
            attempt += 1
            await self._session.drop_link()
            self._lost = Event()  # letting go of an attempt that failed was no new loss
            await sleep(self._backoff.delay(attempt))
            try:
                await self._attempt()
            except PieError as exc:
                if not is_transient(exc) or attempt == self._policy.attempts:
                    await self._give_up(exc, attempt)
                    return False
                logger.info("attempt %d to restore the connection to %s failed: %s", attempt, self._name, exc)
            else:
                logger.info("the connection to %s was restored by attempt %d", self._name, attempt)
                return True

    async def _attempt(self) -> None:
        session = self._session
        await session.connect()
        timeout = session.options.connect_timeout
        try:
            with fail_after(timeout):
                await session.log_in_again()
                await self._reattacher.begin()
        except TimeoutError as exc:
            msg = f"{self._name} let itself be connected to but did not answer within {timeout:g} s"
            raise ConnectError(msg, url=self._name) from exc
        # No wait from here on: a request that found the connection up finds the launches before it already sent.
        self._resubmit()
        self._session.intake.is_suspended = False
        self.is_down = False
        self._back.set()

    def _resubmit(self) -> None:
        """Send what never left, in its old order."""
        link = self._session.link
        unsent, self._unsent = self._unsent, []
        for run, request, quiet in unsent:
            if run.ended.done:
                continue  # withdrawn in the meantime
            try:
                run.corr_id = link.protocol.submit(request, run, quiet=quiet)
            except PieError as exc:  # the engine that came back is another one, and takes less
                self._withdraw(run, exc)
        link.flush()

    def _withdraw(self, run: Run, error: PieError) -> None:
        if not run.ended.done:
            run.started.set_error(error)
            self._session.registry.end(run, Ending(EndKind.WITHDRAWN, error=error))

    async def _give_up(self, error: PieError, attempts: int) -> None:
        times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        text = f"the connection to {self._name} was lost and could not be restored in {times}: {error}"
        final = ConnectionLost(text, generation=self._session.connections)
        final.__cause__ = error
        logger.error("%s", text)
        await self._session.drop_link()
        self.stop(final)
