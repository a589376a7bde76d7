# SPDX-License-Identifier: Apache-2.0
"""One conversation with everything in it, cut at every byte of either direction: nothing hangs, lies, or is left."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import attrs
import pytest
from tests.conftest import _live_tasks as live_tasks

from pie_anyio import ConnectError, ConnectionLost, Event, PieClient, PieError, Receipt
from pie_anyio.testing import CutProxy, LinkScript, Passage, SimulatedEngine, virtual_backend

CLOSE, GRACE = 0.5, 2.0
CONTENT: Final = bytes(range(64))
COUNTED: Final = (
    *("launch_process", "attach_process", "list_processes", "ping", "check_program"),
    *("signal_process", "transfer_file"),
)
"""What is sent only where a call of the conversation asks for it."""


@attrs.define
class Call:
    """One call of the conversation, and how it ended."""

    name: str
    request: str
    expected: Any
    value: Any = None
    error: Exception | None = None

    @property
    def may_have_left(self) -> bool:
        """Whether the client does not deny that the engine may have seen the request."""
        return self.error is None or getattr(self.error, "issued", None) is not False


@attrs.define
class Conversation:
    """Everything that a client can ask for, once; each call is made whatever became of those before it."""

    engine: SimulatedEngine
    calls: list[Call] = attrs.Factory(list)
    entered: bool = False
    error: Exception | None = None
    receipt: Receipt = attrs.Factory(Receipt)
    seconds: float = 0.0

    async def call(self, name: str, request: str, expected: Any, make: Callable[[], Awaitable[Any]]) -> Any:
        call = Call(name, request, expected)
        self.calls.append(call)
        try:
            call.value = await make()
        except Exception as exc:
            call.error = exc
        return call.value

    async def run(self, proxy: CutProxy) -> None:
        start = anyio.current_time()
        client = PieClient(proxy, username="u", keepalive=None, close_timeout=CLOSE, terminate_grace=GRACE)
        try:
            async with client:
                self.entered = True
                await self.converse(client)
        except Exception as exc:
            self.error = exc
        self.receipt = client.receipt
        self.seconds = anyio.current_time() - start

    async def converse(self, client: PieClient) -> None:
        call = self.call
        await call("ping", "ping", True, lambda: returning(client.ping(), True))
        await call("check", "check_program", True, lambda: client.check_program("echo@0.1.0"))
        await call("run", "launch_process", [1, "x"], lambda: run(client, "echo@0.1.0", [1, "x"]))
        talk = await call("launch", "launch_process", ANYTHING, lambda: launch(client, "talk@0.1.0", "end"))
        if talk is not None:
            await call(
                "events", "", [(Event.Stdout, "out\n"), (Event.Stderr, "err\n")], lambda: take(talk, 2)
            )
            await call("signal", "signal_process", None, lambda: talk.signal("hi"))
            await call("answer", "", [(Event.Message, "HI")], lambda: take(talk, 1))
        files = await call(
            "launch 2", "launch_process", ANYTHING, lambda: launch(client, "files@0.1.0", None)
        )
        if files is not None:
            await call("ready", "", [(Event.Message, "ready")], lambda: take(files, 1))
            await call("file", "transfer_file", None, lambda: files.transfer_file(CONTENT))
            await call("file back", "", [(Event.File, CONTENT[::-1])], lambda: take(files, 1))
            await call("files end", "", len(CONTENT), files.result)
        stray = await call("attach", "attach_process", ANYTHING, lambda: attach(client, self.stray))
        if stray is not None:
            await call("quit", "signal_process", None, lambda: stray.signal("quit"))
            await call("stray ends", "", "alone", stray.result)
        await call("list", "list_processes", None, lambda: returning(client.list_processes(), None))
        if talk is not None:
            await call("terminate", "", None, talk.terminate)
            await call("ended", "", "ProcessTerminated", lambda: failing(talk.result))
        await call("scoped", "launch_process", "left", lambda: scoped(client))

    @property
    def stray(self) -> str:
        """A process that nobody is attached to."""
        user = "internal" if self.engine.profile.v05 else "u"
        process = self.engine.create_process(
            self.engine.programs.find("talk@0.1.0"), '"alone"', user, captured=True, token_budget=None
        )
        self.engine.start(process)
        return process.id


class _Anything:
    def __eq__(self, other: object) -> bool:
        return other is not None

    def __hash__(self) -> int:
        return 0


ANYTHING: Final = _Anything()


async def returning(call: Awaitable[Any], value: Any) -> Any:
    await call
    return value


async def run(client: PieClient, program: str, input: Any) -> Any:
    return (await client.run_process(program, input)).value


async def launch(client: PieClient, program: str, input: Any) -> Any:
    return await client.launch_process(program, input)


async def take(process: Any, count: int) -> list[Any]:
    return [await process.recv() for _ in range(count)]


async def attach(client: PieClient, process_id: str) -> Any:
    return await client.attach_process(process_id)


async def failing(call: Callable[[], Awaitable[Any]]) -> str:
    try:
        await call()
    except ConnectionLost:
        raise
    except PieError as exc:
        return type(exc).__name__
    return "returned"


async def scoped(client: PieClient) -> str:
    async with client.launch_process("sleep@0.1.0"):
        pass
    return "left"


# ------------------------------------------------------------------------------------------------------- the replays


def make_engine(profile: Any) -> SimulatedEngine:
    engine = SimulatedEngine(profile, port=None)

    @engine.inferlet("echo@0.1.0")
    async def echo(session: Any, input: Any) -> Any:
        return input

    @engine.inferlet("sleep@0.1.0")
    async def sleep(session: Any, input: Any) -> None:
        await anyio.sleep_forever()

    @engine.inferlet("talk@0.1.0")
    async def talk(session: Any, input: Any) -> Any:
        await session.stdout("out\n")
        await session.stderr("err\n")
        while (text := await session.receive()) != "quit":
            await session.send(text.upper())
        return input

    @engine.inferlet("files@0.1.0")
    async def files(session: Any, input: Any) -> int:
        session.send("ready")
        content = await session.receive_file()
        session.send_file(content[::-1])
        return len(content)

    return engine


async def replay(profile: Any, script: LinkScript) -> tuple[Conversation, CutProxy]:
    """Play the conversation once against an engine of its own, and check what must hold however it went."""
    tasks = len(live_tasks())
    async with make_engine(profile) as engine:
        talk = Conversation(engine)
        proxy = CutProxy(engine.connectable, [script])
        await talk.run(proxy)
        await engine.wait_connections(0)
        (link,) = proxy.links
        assert link.over
        check_calls(talk, engine)
        check_receipt(talk, engine)
        assert not talk.engine.sessions
        assert talk.seconds <= CLOSE + GRACE + 1
    assert len(live_tasks()) == tasks
    return talk, proxy


def check_calls(talk: Conversation, engine: SimulatedEngine) -> None:
    """Each call ended with its value, or says that the connection was lost, and whether it may have been heard."""
    if talk.error is not None:
        # Entering fails before anything was asked for; leaving does not fail.
        assert not talk.entered
        assert isinstance(talk.error, (ConnectError, ConnectionLost)), talk.error
    assert talk.entered or talk.error is not None
    lost = False
    possible: Counter[str] = Counter()
    for call in talk.calls:
        if call.error is None:
            assert call.value == call.expected or call.name == "list", call
        else:
            assert isinstance(call.error, ConnectionLost), call
            lost = True
        if call.request:
            possible[call.request] += call.may_have_left
            # Nothing is sent any more once a call has failed.
            assert not lost or call.error is not None or call.request == "", call
    for request in COUNTED:
        assert engine.received_counts[request] <= possible[request], request


def check_receipt(talk: Conversation, engine: SimulatedEngine) -> None:
    """What runs on is on the receipt, as lost, detached or unconfirmed; and the receipt adds up."""
    receipt = talk.receipt
    ended = receipt.returned + receipt.failed + receipt.terminated + receipt.detached + receipt.lost
    assert receipt.started == ended + len(receipt.unconfirmed)
    assert receipt.running == 0
    strays = {process_id for process_id, info in engine.live_processes.items() if info.input == '"alone"'}
    ours = set(engine.live_processes) - strays
    assert len(ours) <= receipt.lost + receipt.detached + len(receipt.unconfirmed)
    launched = engine.started_total - sum(call.name == "attach" for call in talk.calls)
    attached = engine.received_counts["attach_process"]
    assert launched <= receipt.started <= launched + attached + 1
    if receipt.clean and not receipt.detached:
        assert not ours


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["to_engine", "to_client"])
@pytest.mark.parametrize("profile", ["v04", "v05"])
@pytest.mark.parametrize(("loop", "reset"), [("asyncio", False), ("trio", True)])
def test_a_cut_at_every_byte(profile: Any, loop: str, direction: str, *, reset: bool) -> None:
    """Whatever the client was doing, it says what it knows, stops in time and leaves nothing."""

    async def everything() -> None:
        whole, proxy = await replay(profile, LinkScript())
        assert all(call.error is None for call in whole.calls), whole.calls
        assert whole.receipt.clean
        total = getattr(proxy.links[0], direction)
        assert 1000 < total < 6000
        failures = 0
        # The bytes in between are cut on the other generation: each is cut on each loop, and on each generation.
        for count in range((loop == "trio") ^ (profile == "v05"), total, 2):
            cut = Passage(cut_after=count, reset=reset)
            script = LinkScript(to_engine=cut) if direction == "to_engine" else LinkScript(to_client=cut)
            talk, proxy = await replay(profile, script)
            failures += talk.error is not None or any(call.error for call in talk.calls)
            assert proxy.links[0].was_cut or count > total - 200
        # Only what is cut while the connection is being closed may go unnoticed.
        assert failures > (total - 300) // 2

    gc.collect()
    name, options = virtual_backend(loop)
    anyio.run(everything, backend=name, backend_options=options)
