# SPDX-License-Identifier: Apache-2.0
"""Each switch of the simulated engine does what it says, and nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgpack
import pytest

from pie_anyio._protocol import websocket
from pie_anyio.testing import FileDamage, InferletSession, SimulatedEngine
from pie_anyio.testing._sim_demos import DEMOS
from pie_anyio.testing.peer import RawPeer

pytestmark = pytest.mark.both_loops


@asynccontextmanager
async def running(profile: Any = "v05", **options: Any) -> AsyncIterator[tuple[SimulatedEngine, RawPeer]]:
    with anyio.fail_after(5):
        async with SimulatedEngine(profile, port=None, **options) as engine:
            for name, function in DEMOS.items():
                engine.inferlet(name)(function)
            async with RawPeer(await engine.connectable.connect()) as peer:
                await peer.login()
                yield engine, peer


def messages(peer: RawPeer) -> list[Any]:
    return [item for item in peer.unread if isinstance(item, dict)]


# ------------------------------------------------------------------------------------------------------------ answers


async def test_ignored() -> None:
    """The request counts for nothing."""
    async with running() as (engine, peer):
        engine.faults.ignored.add("launch_process")
        await peer.post("launch_process", inferlet="echo", input="", capture_outputs=True)
        await peer.ping()
        assert engine.started_total == 0
        assert messages(peer) == []


async def test_unanswered() -> None:
    """The request is acted on: its process runs, and its events arrive."""
    async with running() as (engine, peer):
        engine.faults.unanswered.add("launch_process")
        await peer.post("launch_process", inferlet="talk", input="", capture_outputs=True)
        await engine.wait_started()
        (process_id,) = engine.live_processes
        assert await peer.event(process_id) == ("message", "ready")
        await peer.ping()
        assert messages(peer) == []


async def test_duplicated() -> None:
    """The answer comes twice."""
    async with running() as (engine, peer):
        engine.faults.duplicated.add("ping")
        corr_id = await peer.post("ping")
        assert await peer.answer(corr_id) == await peer.answer(corr_id)


async def test_scripted_answers() -> None:
    """The request is answered as told, and not acted on."""
    async with running() as (engine, peer):
        engine.faults.answers["launch_process"] = (True, "no such id")
        assert await peer.launch("echo") == "no such id"
        assert engine.started_total == 0


@pytest.mark.parametrize("profile", ["v05", "v04"])
async def test_hold(profile: Any) -> None:
    """An answer waits for its release, and with it the events of the process; on 0.4 everything waits."""
    async with running(profile) as (engine, peer):
        hold = engine.faults.hold("launch_process")
        corr_id = await peer.post("launch_process", inferlet="echo@0.1.0", input="1", capture_outputs=True)
        await hold.wait_for()
        assert hold.count == 1
        await engine.wait_idle()
        ping = await peer.post("ping")
        if profile == "v05":
            assert await peer.answer(ping) == (True, "Pong")
        await anyio.wait_all_tasks_blocked()
        assert messages(peer) == []
        hold.release()
        hold.release()
        _, process_id = await peer.answer(corr_id)
        assert await peer.event(process_id) == ("return", "1")
        if profile == "v04":
            assert await peer.answer(ping) == (True, "Pong")
        assert (await peer.events(await peer.launch("echo@0.1.0", "2"))) == [("return", "2")]


async def test_several_holds() -> None:
    """Each holds its own kinds, and ends with its block."""
    async with running() as (engine, peer):
        with engine.faults.hold("ping") as hold:
            async with anyio.create_task_group() as task_group:
                for _ in range(2):
                    task_group.start_soon(hold.wait_for)
                await anyio.wait_all_tasks_blocked()
                await peer.post("ping")
        with engine.faults.hold("ping") as pings, engine.faults.hold("query", "list_processes") as others:
            await peer.post("list_processes")
            await others.wait_for(1)
            ping = await peer.post("ping")
            await pings.wait_for(1)
            await peer.post("query", subject="model_status", record="")
            await others.wait_for(2)
        assert await peer.answer(ping) == (True, "Pong")


async def test_a_hold_outlives_its_connection() -> None:
    """Releasing what a dropped connection was owed does no harm."""
    async with running() as (engine, peer):
        with engine.faults.hold("ping") as hold:
            await peer.post("ping")
            await hold.wait_for(1)
            engine.faults.drop_connections()
            await engine.wait_connections(0)
        assert await peer.end() == ['{"type":"turn_done"}']


@pytest.mark.parametrize("profile", ["v05", "v04"])
async def test_early_events(profile: Any) -> None:
    """The first event precedes the answer."""
    async with running(profile) as (engine, peer):
        engine.faults.early_events = True
        await peer.post("launch_process", inferlet="echo@0.1.0", input="1", capture_outputs=True)
        first: Any = await peer.take(lambda item: isinstance(item, dict) and item["type"] != "x")
        second: Any = await peer.take(lambda item: isinstance(item, dict))
        assert (first["event"], first["value"]) == ("return", "1")
        assert (second["ok"], second["result"]) == (True, first["process_id"])
        await peer.post("launch_process", inferlet="file-echo@0.1.0", input="1", capture_outputs=True)
        first = await peer.take(lambda item: isinstance(item, dict))
        assert first["value"] == "ready"


async def test_refused_launches() -> None:
    """The next launches are refused, or those above a number of live processes."""
    text = "admission rejected: cluster saturated: no healthy worker has KV/seq headroom"
    async with running() as (engine, peer):

        async def launch() -> tuple[bool, str]:
            return await peer.ask("launch_process", inferlet="talk", input="", capture_outputs=True)

        engine.faults.refuse_launches = 2
        assert [await launch() for _ in range(2)] == [(False, text)] * 2
        assert (await launch())[0]
        engine.faults.capacity = 2
        engine.faults.refusal = "full"
        assert (await launch())[0]
        assert await launch() == (False, "full")
        assert engine.refused_total == 3
        assert engine.started_total == 2


async def test_a_saturated_engine() -> None:
    """Of 0.5 refuses everything but looking and ending; what has no answer is dropped, with a text."""
    text = "admission rejected: cluster saturated: no healthy worker has KV/seq headroom"
    async with running() as (engine, peer):
        process_id = await peer.launch("talk")
        await peer.event(process_id, "message")
        engine.faults.saturated = True
        assert await peer.ask("ping") == (False, text)
        assert await peer.ask("launch_process", inferlet="talk", input="", capture_outputs=True) == (
            False,
            text,
        )
        await peer.say("signal_process", process_id=process_id, message="hello")
        assert json.loads(await peer.text()) == {"type": "error", "message": text}
        await peer.transfer(process_id, b"content")
        assert json.loads(await peer.text())["message"] == text
        ok, listed = await peer.ask("list_processes")
        assert ok
        assert process_id in listed
        assert (await peer.ask("terminate_process", process_id=process_id))[0]
        assert await peer.event(process_id, "error") == ("error", "Signal")
        engine.faults.saturated = False
        assert await peer.ask("ping") == (True, "Pong")
        assert engine.files_lost == 0


async def test_a_saturated_engine_ends_new_connections() -> None:
    """Behind the refusal of their first request, and without a close frame."""
    async with running() as (engine, _peer):
        engine.faults.saturated = True
        async with RawPeer(await engine.connectable.connect()) as other:
            await other.open()
            ok, text = await other.ask("auth_identify", username="x")
            assert not ok
            assert text.startswith("admission rejected")
            assert await other.end() == []
        async with RawPeer(await engine.connectable.connect()) as other:
            await other.open()
            assert (await other.ask("list_processes"))[0]
            assert not (await other.ask("ping"))[0]
            assert not (await other.ask("ping"))[0]


async def test_no_saturation_on_04() -> None:
    """It lets launches wait, and refuses nothing."""
    async with running("v04") as (engine, peer):
        engine.faults.saturated = True
        assert await peer.ask("ping") == (True, "Pong")


# --------------------------------------------------------------------------------------------------------- connection


async def test_stalled_handshakes() -> None:
    """A connection is accepted, and nothing more happens."""
    async with running() as (engine, _peer):
        engine.faults.stall_handshakes = True
        async with RawPeer(await engine.connectable.connect()) as other:
            with anyio.move_on_after(0.01) as scope:
                await other.open()
            assert scope.cancelled_caught
            assert engine.connections == 2


async def test_refused_handshakes() -> None:
    """A new connection gets the HTTP status and body."""
    async with running("v04") as (engine, _peer):
        engine.faults.refuse_handshakes = (503, b"later")
        async with RawPeer(await engine.connectable.connect()) as other:
            assert await other.open() == websocket.UpgradeRefused(503, "later")
            assert await other.end() == []


async def test_drop_on() -> None:
    """The connection ends when such a request arrives, unacted on."""
    async with running() as (engine, peer):
        engine.faults.drop_on.add("launch_process")
        await peer.post("launch_process", inferlet="talk", input="", capture_outputs=True)
        await peer.post("ping")
        assert [item for item in await peer.end() if isinstance(item, dict)] == []
        assert engine.started_total == 0


async def test_drop_after_bytes() -> None:
    """The connection is cut behind the n-th byte, once."""
    async with running() as (engine, peer):
        await peer.take(lambda item: isinstance(item, str))
        engine.faults.drop_after_bytes = 2000
        process_id = await peer.launch("flood")
        await peer.end()
        assert engine.faults.drop_after_bytes is None
        assert process_id not in engine.live_processes
        async with RawPeer(await engine.connectable.connect()) as other:
            await other.login()
            assert len(await other.events(await other.launch("flood"))) == 1001


async def test_half_open() -> None:
    """Nothing is heard and nothing said; the end of the connection is noticed all the same."""
    async with running() as (engine, peer):
        engine.faults.half_open = True
        await peer.stream.send(b"\x89\x80\x00\x00\x00\x00")
        await peer.post("ping")
        engine.faults.send_text("unsent")
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.01) as scope:
            await peer.take(lambda item: not isinstance(item, str) or item == "unsent")
        assert scope.cancelled_caught
        await peer.stream.aclose()
        await engine.wait_connections(0)


async def test_things_sent_on_every_connection() -> None:
    """Messages, payloads, texts, bytes and close frames of any kind."""
    async with running() as (engine, peer):
        faults = engine.faults
        faults.send_event("unknown", "stdout", "x")
        assert await peer.event("unknown") == ("stdout", "x")
        faults.send_message({"type": "news", "from": 7})
        await peer.take(lambda item: item == {"type": "news", "from": 7})
        faults.send_payload(msgpack.packb({"a": 1}))
        await peer.take(lambda item: item == {"a": 1})
        faults.send_text("text")
        assert await peer.text() == "text"
        faults.send_bytes(b"\x81\x03raw")
        assert await peer.text() == "raw"
        faults.send_close(1012, "restart")
        item = await peer.take(lambda item: isinstance(item, websocket.CloseReceived))
        assert item == websocket.CloseReceived(1012, "restart")


async def test_aborted_streams() -> None:
    """A process runs on, and its client never hears of it again."""
    async with running() as (engine, peer):
        process_id = await peer.launch("talk")
        await peer.event(process_id)
        engine.faults.abort_streams()
        assert json.loads(await peer.text())["message"] == "stream aborted"
        assert set(engine.live_processes) == {process_id}
        conflict = (False, "Cannot attach: already attached")
        assert await peer.ask("attach_process", process_id=process_id) == conflict


# ----------------------------------------------------------------------------------------------------------- messages


async def test_extra_keys_and_trailing_bytes() -> None:
    """Messages are what they were, and more."""
    async with running() as (engine, peer):
        peer.tolerant = True
        engine.faults.extra_keys = True
        engine.faults.trailing_bytes = b"\x01\x02"
        corr_id = await peer.post("ping")
        item: Any = await peer.take(lambda item: isinstance(item, dict))
        assert item.pop("x_unknown") == [1, {"nested": None}]
        assert item == {"type": "response", "corr_id": corr_id, "ok": True, "result": "Pong"}
        engine.faults.extra_keys = False
        await peer.ping()


async def test_invalid_text() -> None:
    """The text of events begins with a byte that is never UTF-8; other messages are sound."""
    async with running() as (engine, peer):
        peer.tolerant = True
        engine.faults.invalid_text = True
        process_id = await peer.launch("echo", "1")
        assert await peer.event(process_id) == ("return", "\ufffd1")


async def test_rewrite() -> None:
    """A function may change, replace or lose any message."""
    async with running() as (engine, peer):

        def rewrite(fields: dict[str, Any]) -> dict[str, Any] | bytes | None:
            match fields.get("value"):
                case "1":
                    return fields | {"value": "changed"}
                case "2":
                    return msgpack.packb("replaced")
                case "3":
                    return None
                case _:
                    return fields

        engine.faults.rewrite = rewrite
        events = [await peer.launch("echo", text) for text in "1234"]
        assert await peer.event(events[0]) == ("return", "changed")
        await peer.take(lambda item: item == "replaced")
        assert await peer.event(events[3]) == ("return", "4")
        await peer.ping()
        assert messages(peer) == []


async def test_late_events() -> None:
    """They follow every terminal event."""
    async with running() as (engine, peer):
        engine.faults.late_events = [("stdout", "late"), ("return", "second"), ("unknown", "")]
        process_id = await peer.launch("echo", "1")
        assert [await peer.event(process_id) for _ in range(4)] == [
            ("return", "1"),
            *engine.faults.late_events,
        ]


@pytest.mark.parametrize(
    ("damage", "indices"),
    [
        (FileDamage.WRONG_HASH, [0, 1]),
        (FileDamage.CORRUPT, [0, 1]),
        (FileDamage.NO_FIRST_CHUNK, [1]),
        (FileDamage.NO_LAST_CHUNK, [0]),
        (FileDamage.OUT_OF_ORDER, [1, 0]),
    ],
)
async def test_damaged_files(damage: FileDamage, indices: list[int]) -> None:
    """The chunks that arrive are not what a client can accept; an empty file is never sent."""
    async with running() as (engine, peer):

        @engine.inferlet("filer")
        async def filer(session: InferletSession, input: Any) -> None:
            await session.send_file(b"")
            await session.send_file(bytes(300_000))

        engine.faults.damage_files = damage
        process_id = await peer.launch("filer")
        assert await peer.event(process_id) == ("return", "")
        chunks = messages(peer)
        assert [chunk["chunk_index"] for chunk in chunks] == indices
        if damage is FileDamage.WRONG_HASH:
            assert chunks[0]["file_hash"] == "0" * 64
        if damage is FileDamage.CORRUPT:
            assert chunks[0]["chunk_data"][:2] == b"\x01\x00"
