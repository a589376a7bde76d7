# SPDX-License-Identifier: Apache-2.0
"""The router and the session's edges: what nobody owns or waits for is dropped, and what never began ends."""

from __future__ import annotations

import pytest

from pie_anyio import Event, PieClient, Stdout
from pie_anyio._flow.buffers import ByteBudget
from pie_anyio._flow.pausing import Buffers, Intake
from pie_anyio._flow.slots import ReplySlot
from pie_anyio._protocol import events as core
from pie_anyio._protocol.messages import McpRequest
from pie_anyio._session.registry import Ending, EndKind, Registry, Run
from pie_anyio._session.router import Router
from pie_anyio._session.session import Session
from pie_anyio._types import CorrelationId


def new_session() -> Session:
    """Give the session of a client that was never entered."""
    return PieClient("ws://127.0.0.1:1").session


def make_router() -> Router:
    registry = Registry(Buffers(1000, ByteBudget(1000), Intake()))
    return Router(registry, generation=1, handshake=ReplySlot(), on_notice=print, on_tool=print)


async def test_output_without_a_buffer_is_dropped() -> None:
    """A run whose output nobody reads notes that there was some, and that is all."""
    run = Run("p@0.1.0", CorrelationId(1), ReplySlot(), ReplySlot())
    router = make_router()
    router.route_all([core.ProcessOutput(run, tuple.__new__(Stdout, (Event.Stdout, "x")), 1)])
    assert run.first_output_at is not None
    assert run.buffer is None


async def test_a_damaged_answer_that_nobody_waits_for_is_dropped() -> None:
    """The session's own terminates have no owner."""
    router = make_router()
    router.route_all([core.ReplyDamaged(None, "cut short")])
    assert not router.ended.done


async def test_a_pump_that_comes_too_late_does_not_run() -> None:
    """A task that gets its first turn when the block is being left has nothing left to do."""
    session = new_session()
    session._stop_pumps()

    async def pump() -> None:
        pytest.fail("it ran")

    await session._pump(pump)


async def test_a_tool_call_without_tools_is_ignored() -> None:
    """No engine sends one before a tool server was registered; one that does gets no answer."""
    session = new_session()
    session.tool_handler = None
    session._on_tool(McpRequest(1, "p", "server", "tools/call", "{}"))


def test_the_end_of_a_run_is_told_in_the_step_that_reads_it() -> None:
    """Once, with the first end, which stands."""
    run = Run("p@0.1.0", CorrelationId(1), ReplySlot(), ReplySlot())
    told: list[object] = []
    run.at_end = lambda ended: told.append((ended, ended.ending))
    first = Ending(EndKind.RETURNED, "1")
    assert run.finish(first)
    assert told == [(run, first)]
    assert not run.finish(Ending(EndKind.LOST))
    assert told == [(run, first)]
    assert run.ending is first
