# SPDX-License-Identifier: Apache-2.0
"""Where a reader continues: exactly behind what it has received, whatever became of its connection."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from pie_anyio import Event, PieClient
from pie_anyio._protocol.messages import AttachProcess, LaunchProcess
from pie_anyio.keeper import KeeperLimits, kept_processes, rewind
from pie_anyio.testing import SimulatedEngine

from .conftest import Kept, keep
from .raw import Raw

COUNT = LaunchProcess("count@0.1.0", '{"n": 200}')


@pytest.fixture
def profile() -> Any:
    """Replay is the keeper's own affair: one generation will do."""
    return "v05"


async def connect(kept: Kept, name: str = "alice") -> Raw:
    return Raw(await kept.connect(), name)


def numbers(raw: Raw) -> list[int]:
    return [int(value) for kind, value in raw.events() if kind == "message"]


async def launch(kept: Kept, program: str = "count@0.1.0", text: str = '{"n": 200}') -> str:
    """Have a process run under somebody else's name, to its end if it has one, and give its id."""
    async with await connect(kept, "other") as raw:
        ok, process_id = await raw.ask(LaunchProcess(program, text))
        assert ok
    await kept.settle()
    return process_id


async def test_a_clean_leave_continues_exactly(kept: Kept) -> None:
    """What was received before a close does not come again, and nothing is left out."""
    with anyio.fail_after(5):
        process_id = await launch(kept, "talk@0.1.0", "{}")
        seen: list[str] = []
        for number in range(3):
            async with kept.client() as client:
                process = await client.attach_process(process_id)
                for text in (f"a{number}", f"b{number}"):
                    await process.signal(text)
                while not seen or seen[-1] != f"B{number}":
                    seen.append(str((await process.recv()).value))
        assert seen == ["out\n", "err\n", *(f"{x}{n}" for n in range(3) for x in "AB")]


async def test_what_was_not_acknowledged_comes_again(kept: Kept) -> None:
    """A connection that is cut behind the third batch, of which the second was acknowledged, gets the third again."""
    with anyio.fail_after(5):
        process_id = await launch(kept)
        async with await connect(kept) as raw:
            raw.pongs = False
            await raw.send(AttachProcess(process_id), 1)
            while len(numbers(raw)) < 128:
                await raw.read()
                if len(numbers(raw)) <= 128:
                    await raw.send_pong()
            await kept.settle()
            raw.pongs = False
            await raw.until_ended()
            first = numbers(raw)
        await kept.settle()
        (record,) = kept.keeper.store.records.values()
        place = record.readers["alice"]
        assert place in {64, 128}
        async with await connect(kept) as raw:
            await raw.send(AttachProcess(process_id), 1)
            await raw.until_ended()
            assert numbers(raw) == list(range(place, 200))
        assert first == list(range(200))


@pytest.mark.both_loops
@pytest.mark.parametrize("cut", range(0, 60_000, 9999))
async def test_a_cut_at_any_byte_loses_nothing(kept: Kept, cut: int) -> None:
    """However much of the stream was read before the cut, the rest follows on the next connection, without a gap."""
    with anyio.fail_after(10):
        process_id = await launch(kept, "count@0.1.0", '{"n": 400}')
        stream = await kept.connect()
        async with Raw(stream, "alice") as raw:
            await raw.send(AttachProcess(process_id), 1)
            read = 0
            while read < cut and not raw.ended and ("return", "done") not in raw.events():
                data = await stream.receive(min(1000, cut - read))
                read += len(data)
                raw.take(data)
                await stream.send(raw.ws.take_replies())
            await kept.settle()
            stream.abort()  # type: ignore[attr-defined]
            first = numbers(raw)
        await kept.settle()
        async with await connect(kept) as raw:
            await raw.send(AttachProcess(process_id), 1)
            await raw.until_ended()
            second = numbers(raw)
        assert first == list(range(len(first)))
        assert second == list(range(second[0] if second else 400, 400))
        start = second[0] if second else 400
        assert len(first) - 64 <= start <= len(first)


async def test_the_last_event_always_comes(kept: Kept) -> None:
    """Whoever has everything gets the end again, for a handle without an end would wait for ever."""
    with anyio.fail_after(5):
        process_id = await launch(kept, "fail@0.1.0", "{}")
        for _ in range(3):
            async with await connect(kept) as raw:
                assert await raw.ask(AttachProcess(process_id)) == (True, "Process attached")
                await raw.until(lambda item: isinstance(item, dict) and item.get("event") == "error")
                await kept.settle()
        assert kept.keeper.store.records[process_id].status == "failed"


async def test_names_have_places_of_their_own(kept: Kept) -> None:
    """Each name begins at the beginning, and the one given at login counts for more than the header's."""
    with anyio.fail_after(5):
        process_id = await launch(kept)
        for name, new in (("alice", True), ("bob", True), ("alice", False)):
            async with await connect(kept, "header") as raw:
                await raw.identify(name)
                await raw.ask(AttachProcess(process_id))
                await raw.until_ended()
                await raw.settle()
                assert numbers(raw) == (list(range(200)) if new else [])
        readers = kept.keeper.store.records[process_id].readers
        assert (readers["alice"], readers["bob"]) == (201, 201)
        assert "header" not in readers


async def test_several_read_at_once(kept: Kept) -> None:
    """Connections of different names, and of the same, get what comes; each name what it has not had."""
    with anyio.fail_after(5):
        process_id = await launch(kept, "talk@0.1.0", "{}")
        async with kept.client("alice") as one, kept.client("bob") as two, kept.client("bob") as three:
            processes = [await client.attach_process(process_id) for client in (one, two)]
            for process in processes:
                assert [(await process.recv()).value for _ in range(2)] == ["out\n", "err\n"]
            await kept.settle()
            processes.append(await three.attach_process(process_id))
            for text in ("hello", "quit"):
                await processes[0].signal(text)
            for process in processes:
                assert [event.value async for event in process] == ["HELLO", "{}"]


async def test_a_file_comes_whole_or_again(kept: Kept) -> None:
    """A reader that was cut off in the middle of a file gets it from its first piece again."""

    @kept.engine.inferlet("sender@0.1.0")
    async def sender(session: Any, input: Any) -> None:
        await session.send("before")
        await session.send_file(bytes(700_000))
        await session.send("after")

    with anyio.fail_after(5):
        process_id = await launch(kept, "sender@0.1.0", "{}")
        async with await connect(kept) as raw:
            await raw.send(AttachProcess(process_id), 1)
            await raw.until(lambda item: isinstance(item, dict) and item.get("chunk_index") == 1)
        await kept.settle()
        assert kept.keeper.store.records[process_id].readers["alice"] == 1
        async with kept.client() as client:
            process = await client.attach_process(process_id)
            kinds = [(event.kind, len(event.value)) async for event in process]
        assert kinds == [(Event.File, 700_000), (Event.Message, 5), (Event.Return, 0)]


async def test_what_is_no_longer_kept_is_said(anyio_backend: Any) -> None:
    """Evicted output shows in its place, to a reader that was there before and to one that was not."""
    async with SimulatedEngine(port=None) as engine:

        @engine.inferlet("many@0.1.0")
        async def many(session: Any, input: Any) -> None:
            for number in range(20):
                await session.send(str(number))

        with anyio.fail_after(5):
            async with keep(engine, limits=KeeperLimits(process_events=8)) as kept:
                process_id = await launch(kept, "many@0.1.0", "{}")
                record = kept.keeper.store.records[process_id]
                left = list(range(record.first - 1, 20))
                async with await connect(kept) as raw:
                    await raw.send(AttachProcess(process_id), 1)
                    await raw.until_ended()
                    kind, text = raw.events()[0]
                    assert kind == "stderr"
                    assert text == f"[pie-anyio keeper: {20 - len(left)} events are no longer kept]\n"
                    assert numbers(raw) == left
                kept.keeper.store.rewind(record, "bob", record.first - 2)
                async with await connect(kept, "bob") as raw:
                    await raw.send(AttachProcess(process_id), 1)
                    await raw.until_ended()
                    assert raw.events()[0][1] == "[pie-anyio keeper: 1 event is no longer kept]\n"


async def test_everything_of_a_process_may_be_gone(anyio_backend: Any) -> None:
    """Where nothing but the result is left, the gap and the result come."""
    async with SimulatedEngine(port=None) as engine:

        @engine.inferlet("large@0.1.0")
        async def large(session: Any, input: Any) -> None:
            await session.send("x" * 1000)

        with anyio.fail_after(5):
            async with keep(engine, limits=KeeperLimits(process_bytes=100)) as kept:
                process_id = await launch(kept, "large@0.1.0", "{}")
                async with await connect(kept) as raw:
                    await raw.send(AttachProcess(process_id), 1)
                    await raw.until_ended()
                    assert [kind for kind, _ in raw.events()] == ["stderr", "return"]


@pytest.mark.both_loops
async def test_a_slow_client_holds_no_memory(kept: Kept) -> None:
    """Without pongs, or without reading, only so much is sent; the rest waits in the store, and comes later."""
    with anyio.fail_after(10):
        process_id = await launch(kept, "count@0.1.0", '{"n": 1500}')
        async with await connect(kept) as raw:
            raw.pongs = False
            await raw.send(AttachProcess(process_id), 1)
            await kept.settle()
            (session,) = kept.keeper.sessions
            assert session.protocol.queued_bytes < 1_000_000
            while len(numbers(raw)) < 16 * 64:
                await raw.read()
            await kept.settle()
            with anyio.move_on_after(0.01) as scope:
                await raw.read()
            assert scope.cancelled_caught
            raw.pongs = True
            await raw.send_pong()
            await raw.until_ended()
            assert numbers(raw) == list(range(1500))


@pytest.mark.both_loops
async def test_processes_take_turns(kept: Kept) -> None:
    """A process with much to say does not keep another one's events from the same client."""
    with anyio.fail_after(10):
        much = await launch(kept, "count@0.1.0", '{"n": 1500}')
        little = await launch(kept, "count@0.1.0", '{"n": 1}')
        async with await connect(kept) as raw:
            raw.pongs = False
            await raw.send(AttachProcess(much), 1)
            await raw.send(AttachProcess(little), 2)
            await raw.until(lambda item: isinstance(item, dict) and item.get("process_id") == little)
            assert len(numbers(raw)) < 1000


async def test_rewind(kept: Kept) -> None:
    """A reader can have everything again, or from any place, and is told how far it is."""
    with anyio.fail_after(5):
        process_id = await launch(kept)

        async def read(client: PieClient) -> list[str]:
            process = await client.attach_process(process_id)
            return [str(event.value) async for event in process]

        for place in (0, 150):
            async with kept.client() as client:
                await read(client)
                await kept.settle()
                (row,) = await kept_processes(client)
                assert (row.received, row.events, row.status) == (201, 200, "returned")
                await rewind(client, process_id.upper(), place)
            async with kept.client() as client:
                assert await read(client) == [*map(str, range(place, 200)), "done"]
