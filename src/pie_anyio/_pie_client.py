# SPDX-License-Identifier: Apache-2.0
"""``PieClient``: the client with its fan-out."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from typing import Any

from ._client import ProcessClient
from ._exceptions import InvalidRequest
from ._flow.backoff import Backoff
from ._inferlet import Inferlet
from ._map import ADMISSION_TIMEOUT, BACKOFF, DEFAULT_LIMIT, MapCall, first_completed, map_processes
from ._map_policy import OnError
from ._outcomes import Returned
from ._process import Process

__all__ = ["PieClient"]


class PieClient(ProcessClient):
    """A client of one Pie engine, connected while its ``async with`` block is.

    ::

        async with PieClient("ws://127.0.0.1:8080") as client:
            answers = await client.map_processes("agent@0.1.0", questions, limit=64)

    Args:
        url: ``ws://host:port``, ``wss://...``, ``ws+unix:///path``, or a byte-stream connectable of anyio's. Without
            a path, ``/v1/ws`` is dialled.
        identity: ``tenant/user`` for the header that engines of 0.5 ask for; not a secret and not checked by them.
        username: log in with this name when the block is entered.
        key: ... and this private key: a ``ParsedPrivateKey``, a path, or ``"agent"`` (0.4).
        passphrase: the key's passphrase, or a function that gives it.
        token: log in with this token (0.4).
        ssl_context: for ``wss://``: own certificate authorities, client certificates.
        require_tls: refuse an endpoint that is neither TLS with a checked certificate nor a Unix socket, loopback too.
        reconnect: come back after the connection was lost: a ``Reconnect``, or True for its defaults. Without it, a
            lost connection ends everything on it. See "Come back after a lost connection" in the documentation.
        connect_timeout: seconds for connecting, TLS and the WebSocket handshake together.
        close_timeout: seconds to wait for the engine's side of closing; 0.4 engines never answer it.
        terminate_grace: seconds to wait for processes to confirm that they have ended.
        keepalive: when to ping a silent engine and when to give it up; None never does.
        limits: bounds on everything that could grow.
        user_agent: what to say in the handshake's ``user-agent`` header.

    Raises (when entered):
        InvalidRequest: an argument makes no sense; ``InsecureTransport`` where ``require_tls`` is not met.
        ConnectError: the engine cannot be reached; the message says why and what to try.
        AuthenticationError: it does not let the user in.

    Cancellation: leaving the block takes at most ``terminate_grace`` plus ``close_timeout``, also when cancelled.
    """

    def map_processes(
        self,
        program: str | Inferlet[..., Any],
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        limit: int = DEFAULT_LIMIT,
        ordered: bool = False,
        on_error: OnError = "raise",
        key: Callable[[Any], Any] | None = None,
        token_budget: int | None = None,
        admission_timeout: float = ADMISSION_TIMEOUT,
        backoff: Backoff = BACKOFF,
        retry_lost: bool | int = False,
    ) -> MapCall:
        """Run a program once for each input, at most ``limit`` at a time; await the call, or enter it.

        See :func:`pie_anyio.map_processes`.

        Cancellation: every live run is terminated; see :class:`MapCall`.
        """
        return map_processes(
            self,
            program,
            inputs,
            limit=limit,
            ordered=ordered,
            on_error=on_error,
            key=key,
            token_budget=token_budget,
            admission_timeout=admission_timeout,
            backoff=backoff,
            retry_lost=retry_lost,
        )

    async def first_completed(
        self,
        program: str | Inferlet[..., Any],
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        limit: int = DEFAULT_LIMIT,
    ) -> Returned:
        """Race a program over several inputs: the first success wins, and the others are terminated and confirmed.

        Raises:
            ExceptionGroup: all of them failed.

        Cancellation: all runs are terminated.
        """
        return await first_completed(self, program, inputs, limit=limit)

    async def launch_processes(
        self,
        inferlet: str | Inferlet[..., Any],
        inputs: Sequence[Any],
        capture_outputs: bool = True,
        token_budgets: Sequence[int | None] | None = None,
    ) -> list[Process]:
        """Launch one process for each input, in input order, and give their handles.

        They are launched one by one on both generations: the batch request of 0.4 loses the ids of those that were
        started when a later one fails. If one launch fails, those before it are terminated.

        Raises: as :meth:`launch_process`.

        Cancellation: those that were launched are terminated.
        """
        budgets = _check_budgets(inputs, token_budgets)
        processes: list[Process] = []
        try:
            for value, budget in zip(inputs, budgets, strict=True):
                processes.append(await self.launch_process(inferlet, value, capture_outputs, budget))
        except BaseException:
            for process in processes:
                run = self.session.registry.by_id.get(process.process_id)
                if run is not None:
                    self.session.runs.release(run)
            raise
        return processes

    async def run_processes(
        self,
        inferlet: str | Inferlet[..., Any],
        inputs: Sequence[Any],
        token_budgets: Sequence[int | None] | None = None,
    ) -> list[str]:
        """Run a program for each input and give the returned texts, in input order.

        Other than the request of 0.4 that this is named after, it does not block the connection, can be cancelled,
        and works on 0.5 (without ``token_budgets``). ``map_processes`` gives decoded values and more control.

        Raises:
            ExceptionGroup: a run failed; the others were terminated.

        Cancellation: all runs are terminated.
        """
        budgets = _check_budgets(inputs, token_budgets)
        wanted = budgets if any(budget is not None for budget in budgets) else None
        return await MapCall(self, inferlet, inputs, token_budget=wanted, decode=str)


def _check_budgets(inputs: Sequence[Any], budgets: Sequence[int | None] | None) -> Sequence[int | None]:
    if budgets is None:
        return [None] * len(inputs)
    if len(budgets) != len(inputs):
        msg = f"token_budgets length {len(budgets)} does not match inputs length {len(inputs)}"
        raise InvalidRequest(msg)
    return budgets
