# SPDX-License-Identifier: Apache-2.0
"""What clients may rely on, observed alike on the simulated engine and on the real one (0.5.2)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import anyio
import msgpack
import pytest

from pie_anyio.testing.peer import RawPeer

NewPeer = Callable[[], Awaitable[RawPeer]]
pytestmark = pytest.mark.both_loops

SECONDS = 20  # the real engine compiles each program when it first runs


async def test_login_needs_nothing(new_peer: NewPeer) -> None:
    """Any name is already authenticated, any number of times, and no proof is wanted."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        assert await peer.ask("auth_identify", username="") == (True, "Already authenticated")
        assert await peer.ask("auth_prove", signature="x") == (False, "Already authenticated")


@pytest.mark.parametrize(
    ("kind", "value"),
    [("none", ""), ("str", "plain text"), ("empty", ""), ("int", "7"), ("list", '[1, "two", null]')],
)
async def test_return_values(new_peer: NewPeer, kind: str, value: str) -> None:
    """None is nothing, text is verbatim, the rest is JSON."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        process_id = await peer.launch("returns@0.1.0", json.dumps({"kind": kind}))
        assert str(UUID(process_id)) == process_id
        assert await peer.events(process_id) == [("return", value)]


@pytest.mark.parametrize(
    ("text", "value"), [("", "{}"), ("plain", '{"input": "plain"}'), ("[1, 2]", "[1, 2]"), ("7", "7")]
)
async def test_inputs(new_peer: NewPeer, text: str, value: str) -> None:
    """Input that is no JSON is wrapped; everything else passes through."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        events = await peer.events(await peer.launch("echo@0.1.0", text))
        assert events[-1] == ("return", value)


async def test_errors_carry_the_traceback(new_peer: NewPeer) -> None:
    """An exception ends the process with its text first, then its traceback."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        events = await peer.events(await peer.launch("fail@0.1.0", '{"why": "boom"}'))
        kind, text = events[-1]
        assert kind == "error"
        assert text.startswith("ValueError: boom\nTraceback (most recent call last):\n")
        assert "".join(value for kind, value in events if kind == "stdout") == "failing\n"
        kind, text = (await peer.events(await peer.launch("returns@0.1.0", '{"kind": "exit"}')))[-1]
        assert kind == "error"
        assert text.startswith("SystemExit: 3\n")


async def test_signals_are_kept_in_order(new_peer: NewPeer) -> None:
    """Signals wait for the program, also before it starts; empty ones count."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        process_id = await peer.launch("talk@0.1.0")
        for text in ("one", "", "two", "quit"):
            await peer.say("signal_process", process_id=process_id, message=text)
        events = await peer.events(process_id)
        assert [value for kind, value in events if kind == "message"] == ["ready", "ONE", "", "TWO"]
        assert events[-1][0] == "return"


async def test_signals_to_others_are_dropped(new_peer: NewPeer) -> None:
    """Only the connection that a process belongs to may signal it; nobody is told."""
    with anyio.fail_after(SECONDS):
        owner, stranger = await new_peer(), await new_peer()
        process_id = await owner.launch("talk@0.1.0")
        await owner.event(process_id, "message")
        for target in (process_id, str(uuid4()), "no id"):
            await stranger.say("signal_process", process_id=target, message="quit")
        await stranger.ping()
        await owner.say("signal_process", process_id=process_id, message="mine")
        assert await owner.event(process_id) == ("message", "MINE")


@pytest.mark.parametrize("size", [0, 1, 262_144, 262_145, 600_000])
async def test_files_both_ways(new_peer: NewPeer, size: int) -> None:
    """Files of any size arrive whole; an empty one is received but never sent."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        process_id = await peer.launch("file-echo@0.1.0")
        await peer.event(process_id, "message")
        content = bytes(index % 251 for index in range(size))
        await peer.transfer(process_id, content)
        if size:
            assert await peer.file(process_id) == (content, None)
        kind, value = await peer.event(process_id, "return", "error")
        assert (kind, json.loads(value)) == ("return", {"sizes": [size]})


async def test_a_damaged_file_is_dropped_and_may_be_sent_again(new_peer: NewPeer) -> None:
    """A wrong hash costs nothing but that file."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        process_id = await peer.launch("file-echo@0.1.0")
        await peer.event(process_id, "message")
        await peer.transfer(process_id, b"damaged", file_hash="0" * 64)
        await peer.transfer(process_id, b"sound")
        assert await peer.file(process_id) == (b"sound", None)


async def test_files_may_have_names(new_peer: NewPeer) -> None:
    """The name of a file comes with it."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        process_id = await peer.launch("file-named@0.1.0", '{"name": "a.bin", "size": 3}')
        assert await peer.file(process_id) == (b"\x00\x01\x02", "a.bin")


async def test_terminate(new_peer: NewPeer) -> None:
    """A terminated process ends with the error "Signal", and then no longer exists."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        process_id = await peer.launch("sleeper@0.1.0")
        await peer.event(process_id, "message")
        assert await peer.ask("terminate_process", process_id=process_id) == (True, "Process terminated")
        assert await peer.event(process_id, "return", "error") == ("error", "Signal")
        assert await peer.ask("terminate_process", process_id=process_id) == (False, "Process not found")
        assert await peer.ask("terminate_process", process_id="no id") == (False, "Invalid process ID")


async def test_anybody_may_terminate(new_peer: NewPeer) -> None:
    """0.5 has one user; the event goes to whoever is attached."""
    with anyio.fail_after(SECONDS):
        owner, stranger = await new_peer(), await new_peer()
        process_id = await owner.launch("sleeper@0.1.0")
        await owner.event(process_id, "message")
        spelling = process_id.upper().replace("-", "")
        assert await stranger.ask("terminate_process", process_id=spelling) == (True, "Process terminated")
        assert await owner.event(process_id) == ("error", "Signal")


async def test_list(new_peer: NewPeer) -> None:
    """Running processes are listed for everybody, with the raw input."""
    with anyio.fail_after(SECONDS):
        owner, stranger = await new_peer(), await new_peer()
        process_id = await owner.launch("sleeper@0.1.0", '{"a": 1}')
        await owner.event(process_id, "message")
        ok, result = await stranger.ask("list_processes")
        assert ok
        (row,) = [row for row in json.loads(result) if row["id"] == process_id]
        assert list(row) == ["id", "username", "program", "input", "elapsed_secs"]
        assert row["username"] == "internal"
        assert row["program"] == "sleeper@0.1.0"
        assert row["input"] == '{"a": 1}'
        assert type(row["elapsed_secs"]) is int


async def test_attach_to_an_uncaptured_process(new_peer: NewPeer) -> None:
    """An uncaptured launch gives no id; whoever finds it may attach, once."""
    with anyio.fail_after(SECONDS):
        owner, other = await new_peer(), await new_peer()
        assert await owner.launch("talk@0.1.0", '{"mark": 17}', capture=False) == ""
        rows = json.loads((await other.ask("list_processes"))[1])
        (process_id,) = [row["id"] for row in rows if row["input"] == '{"mark": 17}']
        assert await other.ask("attach_process", process_id=process_id) == (True, "Process attached")
        for peer in (owner, other):
            answer = await peer.ask("attach_process", process_id=process_id)
            assert answer == (False, "Cannot attach: already attached")
        await other.say("signal_process", process_id=process_id, message="hello")
        # What was sent before the attach is lost, so "ready" may come or not.
        while (event := await other.event(process_id)) == ("message", "ready"):
            pass
        assert event == ("message", "HELLO")
        await other.say("signal_process", process_id=process_id, message="quit")
        assert (await other.event(process_id))[0] == "return"


async def test_attach_errors(new_peer: NewPeer) -> None:
    """Unknown ids and captured processes cannot be attached to."""
    with anyio.fail_after(SECONDS):
        owner, other = await new_peer(), await new_peer()
        process_id = await owner.launch("sleeper@0.1.0")
        conflict = (False, "Cannot attach: already attached")
        assert await other.ask("attach_process", process_id=process_id) == conflict
        assert await other.ask("attach_process", process_id=str(uuid4())) == (False, "Process not found")
        assert await other.ask("attach_process", process_id="no id") == (False, "Invalid process_id")


@pytest.mark.parametrize("orderly", [True, False])
async def test_disconnect_ends_captured_processes(new_peer: NewPeer, orderly: bool) -> None:
    """With its connection a captured process ends; an uncaptured one goes on."""
    with anyio.fail_after(SECONDS):
        owner, other = await new_peer(), await new_peer()
        captured = await owner.launch("sleeper@0.1.0", '{"mark": "captured"}')
        await owner.event(captured, "message")
        await owner.launch(
            "sleeper@0.1.0", f'{{"mark": "uncaptured", "orderly": {json.dumps(orderly)}}}', capture=False
        )
        if orderly:
            await owner.send_close()
            await owner.end()
        else:
            await owner.stream.aclose()
        while captured in (listed := (await other.ask("list_processes"))[1]):
            await anyio.lowlevel.checkpoint()
        (left,) = [
            row["id"]
            for row in json.loads(listed)
            if row["input"].endswith(f'"orderly": {json.dumps(orderly)}}}')
        ]
        assert await other.ask("attach_process", process_id=captured) == (False, "Process not found")
        assert await other.ask("terminate_process", process_id=left) == (True, "Process terminated")


async def test_close_is_not_answered(new_peer: NewPeer) -> None:
    """The engine ends TCP at once, without a close frame."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        await peer.send_close()
        assert all(isinstance(item, str) for item in await peer.end())


async def test_check_program(new_peer: NewPeer) -> None:
    """The hashes are ignored; a bad name is refused."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        assert await peer.ask("check_program", name="echo", version="0.1.0") == (True, "true")
        assert await peer.ask("check_program", name="echo", version="0.1.0", wasm_hash="0") == (True, "true")
        assert await peer.ask("check_program", name="echo", version="9.9.9") == (True, "false")
        ok, text = await peer.ask("check_program", name="echo", version="abc")
        assert (ok, text) == (
            False,
            "Invalid program identifier 'echo@abc': expected 'name@major.minor.patch'",
        )


@pytest.mark.parametrize(
    ("inferlet", "text"),
    [
        ("unknown", "no program named 'unknown' is installed"),
        ("unknown@1.0.0", "program unknown@1.0.0 is not installed (looked in "),
        ("echo@1", "Invalid program identifier 'echo@1': expected 'name@major.minor.patch'"),
        ("bad name", "no program named 'bad name' is installed"),
        ("echo@latest", "Invalid program identifier 'echo@latest': expected 'name@major.minor.patch'"),
        ("", "no program named '' is installed"),
        ("@1.0.0", "Invalid program identifier '@1.0.0': expected 'name@major.minor.patch'"),
    ],
)
async def test_launch_errors(new_peer: NewPeer, inferlet: str, text: str) -> None:
    """What cannot be launched is refused by a text that says why."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        ok, result = await peer.ask("launch_process", inferlet=inferlet, input="{}", capture_outputs=True)
        assert not ok
        assert result.startswith(text)


async def test_bare_names(new_peer: NewPeer) -> None:
    """A program may be launched by its name alone."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        assert (await peer.events(await peer.launch("echo", "[]")))[-1] == ("return", "[]")


MANIFEST = '[package]\nname = "temporary"\nversion = "0.1.0"\n[runtime]\nlanguage = "python"\n'
SOURCE = b"async def main(input):\n    return input\n"


@pytest.mark.parametrize(
    ("content", "manifest", "text"),
    [
        (SOURCE, "[broken", "Invalid manifest: Failed to parse manifest TOML: "),
        (SOURCE, "[package]\nname = 'x'\n", "Invalid manifest: Failed to parse manifest TOML: "),
        (SOURCE, MANIFEST.replace("python", "cobol"), "Invalid manifest: Failed to parse manifest TOML: "),
        (b"no wasm", "[package]\nname = 'x'\nversion = '0.1.0'\n", "Failed to compile WASM: "),
    ],
)
async def test_upload_errors(new_peer: NewPeer, content: bytes, manifest: str, text: str) -> None:
    """What cannot be installed is refused by a text that says why."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        ok, result = await peer.upload(content, manifest)
        assert not ok
        assert result.startswith(text)


async def test_upload_protocol(new_peer: NewPeer) -> None:
    """Hash, first index and number of chunks are checked; an existing version is left alone without error."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        good = {"manifest": MANIFEST, "force_overwrite": False, "chunk_index": 0, "total_chunks": 1}
        digest = "0" * 64
        ok, result = await peer.ask("add_program", **good, program_hash=digest, chunk_data=SOURCE)
        assert (ok, result[:67]) == (False, "Program hash mismatch: declared " + digest[:35])
        answer = await peer.ask(
            "add_program", **good | {"total_chunks": 0}, program_hash=digest, chunk_data=b""
        )
        assert answer == (False, "Upload must have at least one chunk")
        answer = await peer.ask(
            "add_program", **good | {"chunk_index": 1, "total_chunks": 2}, program_hash=digest, chunk_data=b""
        )
        assert answer == (False, "First chunk index must be 0")
        assert await peer.upload(SOURCE, MANIFEST, force=True) == (True, "Program installed successfully")
        assert await peer.upload(SOURCE + b"#", MANIFEST, force=False) == (
            True,
            "Program installed successfully",
        )
        events = await peer.events(await peer.launch("temporary@0.1.0", "{}"))
        assert events[-1] == ("return", "{}")


async def test_query(new_peer: NewPeer) -> None:
    """``model_status`` is one flat object; other subjects are refused."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        ok, result = await peer.ask("query", subject="model_status", record="")
        assert ok
        status = json.loads(result)
        assert {"default.kv_pages_used", "default.kv_pages_total", "default.total_batches"} <= set(status)
        answer = await peer.ask("query", subject="nope", record="")
        assert answer == (False, 'unknown query subject "nope" (known: model_status)')


async def test_bad_frames_are_reported_by_text(new_peer: NewPeer) -> None:
    """A frame that is no request is never answered, names nobody, and does no harm."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        for fields, detail in [
            (
                {"type": "nope", "corr_id": 1},
                "unknown variant `nope`, expected one of `auth_identify`, `auth_prove`, ",
            ),
            ({"type": "launch_daemon", "corr_id": 1}, "unknown variant `launch_daemon`, expected one of "),
            ({"corr_id": 1}, "missing field `type`"),
            ({"type": "ping"}, "missing field `corr_id`"),
            ({"type": "query", "corr_id": 1, "subject": "model_status"}, "missing field `record`"),
        ]:
            await peer.send_payload(msgpack.packb(fields))
            notice = json.loads(await peer.text())
            assert notice["type"] == "error"
            assert notice["message"].startswith(f"bad client frame: {detail}")
        for payload in (b"\xc1", b"", msgpack.packb([1, 2]), msgpack.packb({"type": "ping", "corr_id": -1})):
            await peer.send_payload(payload)
            assert json.loads(await peer.text())["message"].startswith("bad client frame: ")
        await peer.ping()


async def test_tolerated_frames(new_peer: NewPeer) -> None:
    """Key order, unknown keys, trailing bytes and JSON in text frames are all the same to the engine."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        await peer.send_payload(
            msgpack.packb({"extra": None, "corr_id": 4_294_967_295, "type": "ping"}) + b"\x00"
        )
        assert await peer.answer(4_294_967_295) == (True, "Pong")
        await peer.send_text('{"type": "ping", "corr_id": 77}')
        assert await peer.answer(77) == (True, "Pong")


async def test_size_limits(new_peer: NewPeer) -> None:
    """Above 7 340 032 bytes a message is refused by text; above 8 126 464 the connection is dropped."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        overhead = len(msgpack.packb({"type": "ping", "corr_id": 1, "x": bytes(7_000_000)})) - 7_000_000
        for size in (7_340_032, 7_340_033):
            await peer.send_payload(
                msgpack.packb({"type": "ping", "corr_id": 1, "x": bytes(size - overhead)})
            )
        assert await peer.answer(1) == (True, "Pong")
        assert json.loads(await peer.text())["message"].startswith(
            "request too large: 7340033 bytes, limit 7340032"
        )
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
            await peer.send_payload(bytes(8_126_465))
            await peer.take(lambda item: False)


async def test_large_output(new_peer: NewPeer) -> None:
    """One write to standard output is cut at 1 MiB; messages and return values are not."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        for kind, size, expected in [("stdout", 1_200_000, 1_048_576), ("message", 1_200_000, 1_200_000)]:
            process_id = await peer.launch("bigout@0.1.0", json.dumps({"kind": kind, "size": size}))
            assert len((await peer.event(process_id, kind))[1]) == expected
        process_id = await peer.launch("bigout@0.1.0", json.dumps({"kind": "return", "size": 1_200_000}))
        assert len((await peer.event(process_id, "return"))[1]) == 1_200_000


async def test_turns(new_peer: NewPeer) -> None:
    """``turn_done`` follows each answer, and for a launch the terminal event; ``cancel`` ends turns without one."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        await peer.take(lambda item: item == '{"type":"turn_done"}')  # of the login
        process_id = await peer.launch("sleeper@0.1.0")
        await peer.event(process_id, "message")
        assert not peer.unread
        await peer.send_text("cancel")
        assert json.loads(await peer.text()) == {"type": "error", "message": "stream aborted"}
        while process_id in (await peer.ask("list_processes"))[1]:
            await anyio.lowlevel.checkpoint()
        assert not [item for item in peer.unread if isinstance(item, dict)]


async def test_pipelined_requests_are_all_answered(new_peer: NewPeer) -> None:
    """Each of many requests in flight is answered, in whatever order."""
    with anyio.fail_after(SECONDS):
        peer = await new_peer()
        ids = [await peer.post("ping") for _ in range(100)]
        for corr_id in ids:
            assert await peer.answer(corr_id) == (True, "Pong")
