# SPDX-License-Identifier: Apache-2.0
"""One connection's lifetime: requests and processes in every window, hostile engines, every way to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import blake3
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protocol.frames import CLOSE, CONTINUATION, PING, TEXT, Bench, accept, counting, frame, message

from pie_anyio import (
    ConnectError,
    ConnectionClosed,
    ConnectionLost,
    Generation,
    InvalidRequest,
    Limits,
    LocalProtocolError,
    PieError,
    RemoteProtocolError,
)
from pie_anyio._events import Event, File, Message, ReceivedFile, Stderr, Stdout
from pie_anyio._protocol import events as core
from pie_anyio._protocol import messages as m
from pie_anyio._protocol import websocket as wire
from pie_anyio._protocol.connection import ClientProtocol, refusal_error
from pie_anyio._protocol.engine import cut_file
from pie_anyio._protocol.outbox import Lane
from pie_anyio._protocol.requests import Abandoned
from pie_anyio._protocol.state import ConnectionState, ProcessState, RequestState
from pie_anyio._types import CorrelationId
from pie_anyio.testing.pair import ConnectionPair, bytewise, pieces, whole

V04, V05 = Generation.V04, Generation.V05
P, Q = "6f1c1c0e-0000-4000-8000-000000000001", "6f1c1c0e-0000-4000-8000-000000000002"
LAUNCH = m.LaunchProcess("echo@0.1.0", "{}")


def out(owner: object, text: str, kind: type[Any] = Stdout) -> tuple[object, Any]:
    event = {Stdout: Event.Stdout, Stderr: Event.Stderr, Message: Event.Message}[kind]
    return owner, kind(event, text)


def outputs(events: list[core.CoreEvent]) -> list[tuple[object, Any]]:
    """Give owner and event of all output; the sizes are of no interest here."""
    return [(event.owner, event.event) for event in events if isinstance(event, core.ProcessOutput)]


def issue(bench: Bench, request: m.Request, owner: object = "owner", *, quiet: bool = False) -> CorrelationId:
    """Submit a request and take it off the outbox."""
    corr_id = bench.client.submit(request, owner, quiet=quiet)
    sent = bench.sent_one()
    assert (sent["type"], sent["corr_id"]) == (request.type, corr_id)
    return corr_id


def launch(bench: Bench, process_id: str = P, owner: object = "owner", *, quiet: bool = False) -> None:
    corr_id = issue(bench, LAUNCH, owner, quiet=quiet)
    assert bench.answer(corr_id, process_id) == [core.ProcessStarted(owner, process_id, False)]


# ------------------------------------------------------------------------------------------------- login and handshake


@pytest.mark.parametrize("generation", [V04, V05])
def test_the_login_opens_the_connection(generation: Generation) -> None:
    """Its answer tells the generation."""
    bench = Bench(generation, login=False)
    assert not bench.client.is_open
    assert bench.client.generation is None
    bench.log_in()
    assert bench.client.state is ConnectionState.OPEN
    assert bench.client.generation is generation


def test_only_logins_are_sent_before_the_login() -> None:
    """An engine would drop the rest in silence."""
    bench = Bench(login=False)
    for call in (
        lambda: bench.client.submit(m.Ping()),
        lambda: bench.client.notify(m.SignalProcess(P, "x")),
        lambda: bench.client.begin_upload("upload"),
    ):
        with pytest.raises(LocalProtocolError, match="log in first"):
            call()
    assert not bench.client.wants_write
    bench.client.submit(m.AuthByToken("t"))
    assert bench.sent()[0]["type"] == "auth_by_token"


def test_nothing_is_sent_during_the_handshake() -> None:
    """Not even a login."""
    bench = Bench(upgrade=False)
    with pytest.raises(LocalProtocolError, match="the connection is connecting"):
        bench.client.submit(m.AuthIdentify("a"))
    bench.client.ping()
    assert bench.client.data_to_send().startswith(b"GET /v1/ws")
    assert not bench.client.wants_write
    assert bench.client.data_to_send() == b""


def test_a_login_with_a_challenge() -> None:
    """A challenge and a refusal leave it closed to requests, the proof opens it, a second login is no news."""
    bench = Bench(V04, login=False)
    asked = issue(bench, m.AuthIdentify("alice"))
    assert bench.answer(asked, "Y2hhbGxlbmdl") == [core.ReplyReceived("owner", True, "Y2hhbGxlbmdl")]
    assert not bench.client.is_open
    assert bench.client.generation is V04
    proved = issue(bench, m.AuthProve("c2ln"))
    bench.answer(proved, "Signature verification failed", ok=False)
    assert not bench.client.is_open
    bench.answer(issue(bench, m.AuthProve("c2ln")), "Authenticated")
    assert bench.client.is_open
    bench.answer(issue(bench, m.AuthIdentify("bob")), "Already authenticated")
    assert (bench.client.is_open, bench.client.generation) == (True, V04)


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "identity"), (403, "proxy"), (404, "/v1/ws"), (503, "later"), (500, "URL")]
)
def test_a_refused_handshake_says_what_to_do(status: int, hint: str) -> None:
    """Status, body and hint; the connection has failed."""
    bench = Bench(upgrade=False)
    body = b"identity: missing"
    head = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
    (ended,) = bench.feed(head + body)
    assert isinstance(ended, core.ConnectionEnded)
    error = ended.reason
    assert isinstance(error, ConnectError)
    assert (error.status, error.body) == (status, "identity: missing")
    assert hint in str(error)
    assert "identity: missing" in str(error)
    assert bench.client.state is ConnectionState.FAILED
    assert bench.client.close_reason is error


def test_a_refusal_without_a_body() -> None:
    """The message has no empty place."""
    assert "404. Hint" in str(refusal_error(wire.UpgradeRefused(404, "")))


def test_a_refusal_that_ends_with_the_stream() -> None:
    """It is reported as a refusal, not as a lost connection."""
    bench = Bench(upgrade=False)
    assert bench.feed(b"HTTP/1.1 401 X\r\n\r\nwho?") == []
    (ended,) = bench.feed(None)
    assert isinstance(ended, core.ConnectionEnded)
    assert isinstance(ended.reason, ConnectError)
    assert ended.reason.status == 401


@pytest.mark.parametrize("junk", [b"SSH-2.0-x\r\n\r\n", b"\0" * 70_000])
def test_garbage_instead_of_a_handshake(junk: bytes) -> None:
    """Something else lives on that port."""
    bench = Bench(upgrade=False)
    (ended,) = bench.feed(junk)
    assert isinstance(ended, core.ConnectionEnded)
    assert isinstance(ended.reason, RemoteProtocolError)
    assert bench.feed(None) == []


# ------------------------------------------------------------------------------------------------------------ requests


def test_a_request_and_its_answer() -> None:
    """The owner gets what the engine said, good or bad; a duplicate or foreign answer is dropped and counted."""
    bench = Bench()
    asked = issue(bench, m.Ping(), "a")
    refused = issue(bench, m.TerminateProcess("x"), "b")
    assert bench.answer(refused, "Process not found", ok=False) == [
        core.ReplyReceived("b", False, "Process not found")
    ]
    assert bench.answer(asked, "Pong") == [core.ReplyReceived("a", True, "Pong")]
    for corr_id in (asked, 999, 0, -5):
        assert bench.answer(corr_id, "Pong") == []
    assert bench.client.ignored == 4


def test_ids_wrap_and_skip_what_is_in_flight() -> None:
    """A long-lived connection never leaves u32, and never gives two requests one id."""
    bench = Bench()
    held = issue(bench, m.Ping(), "held")
    bench.client._requests._last = m.MAX_CORR_ID - 1
    ids = [issue(bench, m.Ping(), number) for number in range(3)]
    assert ids[0] == m.MAX_CORR_ID
    assert held not in ids
    assert all(0 <= corr_id <= m.MAX_CORR_ID for corr_id in ids)
    assert bench.answer(held, "x") == [core.ReplyReceived("held", True, "x")]


def test_a_request_that_is_abandoned_in_the_queue_is_never_sent() -> None:
    """The engine never hears of it, and the account is even."""
    bench = Bench()
    corr_id = bench.client.submit(LAUNCH, "owner")
    assert bench.client.outbound_bytes > 0
    assert bench.client.abandon(corr_id) is Abandoned.WITHDRAWN
    assert bench.client.abandon(corr_id) is Abandoned.ALREADY_RESOLVED
    assert bench.client.outbound_bytes == 0
    assert bench.sent() == []
    assert bench.feed(None) == [core.ConnectionEnded(bench.client.close_reason or PieError())]


def test_a_launch_that_is_abandoned_under_way_is_ended_when_its_answer_comes() -> None:
    """The id in the late answer is terminated by the core itself; output is dropped, the end is told."""
    bench = Bench()
    corr_id = issue(bench, LAUNCH)
    assert bench.client.abandon(corr_id) is Abandoned.AWAITING_REPLY
    assert bench.client.abandon(corr_id) is Abandoned.AWAITING_REPLY
    assert bench.answer(corr_id, P) == [core.ProcessStarted("owner", P, True)]
    (terminate,) = bench.sent()
    assert (terminate["type"], terminate["process_id"]) == ("terminate_process", P)
    assert bench.event(P, "stdout", "late") == []
    bench.client.release(P)
    assert bench.sent() == []
    bench.answer(terminate["corr_id"], "Process terminated")
    assert bench.event(P, "error", "Signal") == [
        core.ProcessEnded("owner", P, ProcessState.TERMINATED, "Signal", "")
    ]


def test_a_zombie_that_returns_before_its_terminate_has_returned() -> None:
    """It won the race: the engine then knows no such process, which is no news."""
    bench = Bench()
    corr_id = issue(bench, LAUNCH)
    bench.client.abandon(corr_id)
    bench.answer(corr_id, P)
    (terminate,) = bench.sent()
    (ended,) = bench.event(P, "return", "42")
    assert ended == core.ProcessEnded("owner", P, ProcessState.RETURNED, "42", "")
    assert bench.answer(terminate["corr_id"], "Process not found", ok=False) == []


def test_a_terminate_of_ours_that_finds_nothing_ends_the_process() -> None:
    """Its terminal event was lost, or will come late: then it is dropped."""
    bench = Bench()
    launch(bench)
    bench.client.release(P)
    (terminate,) = bench.sent()
    assert bench.answer(terminate["corr_id"], "Process not found", ok=False) == [
        core.ProcessEnded("owner", P, ProcessState.TERMINATED, None, "")
    ]
    assert bench.event(P, "return", "late") == []


def test_a_terminate_that_is_refused_for_another_reason_ends_nothing() -> None:
    """The process may run on; that it ended is believed when it is seen."""
    bench = Bench()
    launch(bench)
    bench.client.release(P)
    (terminate,) = bench.sent()
    assert bench.answer(terminate["corr_id"], "Permission denied", ok=False) == []
    assert bench.event(P, "return", "1") == [core.ProcessEnded("owner", P, ProcessState.RETURNED, "1", "")]


def test_a_terminate_of_the_callers_is_answered_to_the_caller() -> None:
    """Its refusal decides nothing about the process."""
    bench = Bench()
    launch(bench)
    corr_id = issue(bench, m.TerminateProcess(P), "caller")
    refused = core.ReplyReceived("caller", False, "Process not found")
    assert bench.answer(corr_id, "Process not found", ok=False) == [refused]
    assert outputs(bench.event(P, "stdout", "x")) == [out("owner", "x")]


def test_an_attach_that_is_abandoned_under_way_is_left_alone() -> None:
    """What was only attached to belongs to somebody else: it is not terminated."""
    bench = Bench()
    corr_id = issue(bench, m.AttachProcess(P))
    bench.client.abandon(corr_id)
    (started,) = bench.answer(corr_id, "Process attached")
    assert isinstance(started, core.ProcessStarted)
    assert started.process_id == P
    assert bench.sent() == []
    assert bench.client._processes.live[P].state is ProcessState.DETACHED
    assert outputs(bench.event(P, "stdout", "x")) == [("owner", (Event.Stdout, "x"))]
    assert bench.event(P, "return", "1")[-1] == core.ProcessEnded("owner", P, ProcessState.RETURNED, "1", "")


@pytest.mark.parametrize("request_", [LAUNCH, m.AttachProcess(P)], ids=["launch", "attach"])
def test_a_refused_launch_is_told_also_to_one_who_left(request_: m.Request) -> None:
    """The books of the shell are settled by it; any other late answer is dropped."""
    bench = Bench()
    for abandoned in (False, True):
        corr_id = issue(bench, request_)
        if abandoned:
            bench.client.abandon(corr_id)
        assert bench.answer(corr_id, "no", ok=False) == [core.ReplyReceived("owner", False, "no")]
    corr_id = issue(bench, m.Ping())
    bench.client.abandon(corr_id)
    assert bench.answer(corr_id, "Pong") == []
    assert bench.client.abandon(corr_id) is Abandoned.ALREADY_RESOLVED


@pytest.mark.parametrize("process_id", ["", P])
def test_a_launch_must_give_a_new_id(process_id: str) -> None:
    """An empty id is none, and that of a live process would mix up two of them."""
    bench = Bench()
    launch(bench, P, "first")
    corr_id = issue(bench, LAUNCH, "second")
    (damaged,) = bench.answer(corr_id, process_id)
    assert isinstance(damaged, core.ReplyDamaged)
    assert damaged.owner == "second"
    assert outputs(bench.event(P, "stdout", "x")) == [out("first", "x")]


def test_an_attach_to_a_process_seen_before_lets_it_live_again() -> None:
    """Its events are not taken for late ones."""
    bench = Bench()
    launch(bench)
    bench.event(P, "return", "1")
    corr_id = issue(bench, m.AttachProcess(P), "again")
    assert bench.answer(corr_id, "Process attached") == [core.ProcessStarted("again", P, False)]
    assert outputs(bench.event(P, "message", "x")) == [out("again", "x", Message)]


@pytest.mark.parametrize("abandoned", [False, True])
def test_a_damaged_answer_fails_its_request(abandoned: bool) -> None:
    """Cut short, without a result, or of the wrong type: nobody waits for ever."""
    good = {"type": "response", "ok": True, "result": "x"}
    damages: list[Callable[[int], bytes]] = [
        lambda corr_id: msgpack.packb({"type": "response", "corr_id": corr_id, "ok": True, "result": "x"})[
            :-1
        ],
        lambda corr_id: msgpack.packb({"type": "response", "corr_id": corr_id, "ok": True}),
        lambda corr_id: msgpack.packb({**good, "corr_id": corr_id, "result": b"x"}),
    ]
    for damage in damages:
        bench = Bench()
        corr_id = issue(bench, LAUNCH)
        if abandoned:
            bench.client.abandon(corr_id)
        (damaged,) = bench.feed(frame(damage(corr_id)))
        assert isinstance(damaged, core.ReplyDamaged)
        assert damaged.owner == "owner"
        assert bench.client.ignored == 1
        assert bench.feed(frame(damage(corr_id))) == []
        assert bench.client.abandon(corr_id) is Abandoned.ALREADY_RESOLVED


@pytest.mark.parametrize("result", ["x", None])
def test_an_answer_resolves_its_request(result: Any) -> None:
    """Also one that cannot be read: whoever still has the request at hand sees that it is over."""
    bench = Bench()
    corr_id = issue(bench, m.Ping())
    pending = bench.client._requests.get(corr_id)
    assert pending is not None
    states = [pending.state]
    assert len(bench.answer(corr_id, result)) == 1
    assert [*states, pending.state] == [RequestState.ISSUED, RequestState.RESOLVED]


@pytest.mark.parametrize(("generation", "allowed"), [(V05, 7 * 2**20), (V04, 16 * 2**20)])
def test_requests_larger_than_the_engine_takes_are_refused_here(generation: Generation, allowed: int) -> None:
    """0.5 would say "too large" without saying what was; 0.4 would go deaf."""
    client = Bench(generation).client
    overhead = len(msgpack.packb(LAUNCH.fields(2))) + 2
    client.submit(m.LaunchProcess("echo@0.1.0", "x" * (allowed - overhead)))
    assert client.outbound_bytes == allowed
    for call in (
        lambda: client.submit(m.LaunchProcess("echo@0.1.0", "x" * (allowed - overhead + 1))),
        lambda: client.notify(m.SignalProcess(P, "x" * allowed)),
    ):
        with pytest.raises(InvalidRequest, match="transfer_file"):
            call()
    assert client.outbound_bytes == allowed
    assert len(client._requests) == 1


def test_what_cannot_be_encoded_leaves_nothing_behind() -> None:
    """No request is registered that was never queued."""
    bench = Bench()
    with pytest.raises(InvalidRequest):
        bench.client.submit(m.LaunchProcess("echo@0.1.0", "\ud800"), "owner")
    assert not bench.client.wants_write
    assert len(bench.client._requests) == 0


# ----------------------------------------------------------------------------------------------------------- processes


def test_a_process_from_launch_to_return() -> None:
    """Output in order, then the end; afterwards nothing."""
    bench = Bench()
    launch(bench)
    got = [
        *bench.event(P, "stdout", "a"),
        *bench.event(P, "stderr", "b"),
        *bench.event(P, "message", ""),
    ]
    assert outputs(got) == [out("owner", "a"), out("owner", "b", Stderr), out("owner", "", Message)]
    assert bench.event(P, "return", "42") == [core.ProcessEnded("owner", P, ProcessState.RETURNED, "42", "")]
    for kind in ("stdout", "return", "error"):
        assert bench.event(P, kind, "late") == []


def test_the_first_terminal_event_is_final() -> None:
    """0.4 may send a second one when a terminate races with the end."""
    bench = Bench()
    launch(bench)
    assert bench.event(P, "error", "boom") == [core.ProcessEnded("owner", P, ProcessState.FAILED, "boom", "")]
    assert bench.event(P, "return", "1") == []


def test_events_that_precede_the_answer_are_kept() -> None:
    """They follow the start, in order, the end included; those of others are not given away."""
    bench = Bench()
    corr_id = issue(bench, LAUNCH)
    content = b"content"
    (chunk,) = cut_file(P, content)
    assert bench.event(P, "stdout", "early") == []
    assert bench.event(Q, "stdout", "other") == []
    assert bench.say(**{"type": "file", **{n: getattr(chunk, n) for n in CHUNK_FIELDS}}) == []
    assert bench.event(P, "return", "1") == []
    assert bench.event(P, "stdout", "after the end") == []
    events = bench.answer(corr_id, P)
    assert events[0] == core.ProcessStarted("owner", P, False)
    assert outputs(events) == [out("owner", "early"), ("owner", File(Event.File, ReceivedFile(content)))]
    assert events[-1] == core.ProcessEnded("owner", P, ProcessState.RETURNED, "1", "")


CHUNK_FIELDS = ("process_id", "file_hash", "chunk_index", "total_chunks", "chunk_data")


def send_chunk(bench: Bench, chunk: m.FileChunk, **changes: Any) -> list[core.CoreEvent]:
    return bench.say(**{"type": "file", **{name: getattr(chunk, name) for name in CHUNK_FIELDS}, **changes})


def test_a_file_behind_the_end_is_not_kept() -> None:
    """Whatever waits behind the terminal event of a process is dropped with it."""
    bench = Bench()
    corr_id = issue(bench, LAUNCH)
    bench.event(P, "return", "1")
    send_chunk(bench, cut_file(P, b"late")[0])
    assert bench.answer(corr_id, P) == [
        core.ProcessStarted("owner", P, False),
        core.ProcessEnded("owner", P, ProcessState.RETURNED, "1", ""),
    ]
    assert bench.client._processes.claim_orphans(P) == []


def test_the_waiting_room_is_open_only_while_something_could_claim_it() -> None:
    """Without a launch under way, events of unknown processes are dropped at once; with the last one it closes."""
    bench = Bench()
    table = bench.client._processes
    bench.event(P, "stdout", "nobody")
    assert table.dropped_orphans == 1
    first, second = issue(bench, LAUNCH, 1), issue(bench, LAUNCH, 2)
    bench.event(P, "stdout", "x")
    bench.event(Q, "stdout", "y")
    bench.answer(first, "no", ok=False)
    assert table.dropped_orphans == 1
    assert outputs(bench.answer(second, P)) == [out(2, "x")]
    assert table.dropped_orphans == 2
    third = bench.client.submit(LAUNCH, 3)
    bench.event(P + "3", "stdout", "z")
    bench.client.abandon(third)
    assert table.dropped_orphans == 3
    assert table._orphan_bytes == 0


def test_the_waiting_room_keeps_to_its_limits() -> None:
    """The oldest makes way."""
    bench = Bench(limits=Limits(orphan_events=2))
    corr_id = issue(bench, LAUNCH)
    for text in "abc":
        bench.event(P, "stdout", text)
    assert outputs(bench.answer(corr_id, P)) == [out("owner", "b"), out("owner", "c")]


def test_quiet_processes_keep_a_tail_and_show_one_sign_of_life() -> None:
    """Nobody reads their output: it is not passed on."""
    for kind in ("stdout", "message", "file"):
        bench = Bench()
        launch(bench, quiet=True)
        first = send_chunk(bench, cut_file(P, b"x")[0]) if kind == "file" else bench.event(P, kind, "x")
        assert first == [core.FirstOutput("owner")]
        assert bench.event(P, "stderr", "y") == []
        assert send_chunk(bench, cut_file(P, b"x")[0]) == []
        tail = "xy" if kind == "stdout" else "y"
        assert bench.event(P, "error", "boom") == [
            core.ProcessEnded("owner", P, ProcessState.FAILED, "boom", tail)
        ]


def test_a_released_process_is_terminated_once() -> None:
    """Ahead of what is queued; its output is dropped, its end is told."""
    bench = Bench()
    launch(bench)
    bench.client.release(P)
    bench.client.release(P)
    (terminate,) = bench.sent()
    assert terminate["type"] == "terminate_process"
    assert bench.event(P, "stdout", "x") == []
    assert send_chunk(bench, cut_file(P, b"x")[0]) == []
    # 0.5 may send the event before the answer.
    assert bench.event(P, "error", "Signal") == [
        core.ProcessEnded("owner", P, ProcessState.TERMINATED, "Signal", "")
    ]
    assert bench.answer(terminate["corr_id"], "Process terminated") == [
        core.ReplyReceived(None, True, "Process terminated")
    ]
    bench.client.release(P)
    bench.client.release("unknown")
    assert bench.sent() == []


def test_a_detached_process_still_tells_its_owner() -> None:
    """It is left to itself, not forgotten; it may still be released."""
    bench = Bench()
    launch(bench)
    bench.client.detach(P)
    bench.client.detach("unknown")
    assert outputs(bench.event(P, "stdout", "x")) == [out("owner", "x")]
    bench.client.release(P)
    assert [sent["type"] for sent in bench.sent()] == ["terminate_process"]


def test_a_lost_process_ends() -> None:
    """For a process that the engine will not report on any more."""
    bench = Bench()
    launch(bench)
    bench.client.lose(P, "aborted")
    bench.client.lose(P, "aborted")
    bench.client.lose("unknown", "aborted")
    assert bench.events() == [core.ProcessEnded("owner", P, ProcessState.LOST, "aborted", "")]
    assert bench.event(P, "return", "late") == []


@pytest.mark.parametrize(
    "changes",
    [
        {"event": "heartbeat"},
        {"value": 5},
        {"process_id": None},
        {"event": ["stdout"]},
        {"type": "news"},
        {"type": []},
    ],
)
def test_odd_messages_are_dropped_and_counted(changes: dict[str, Any]) -> None:
    """Unknown kinds and types, and fields of the wrong type, disturb nothing."""
    bench = Bench()
    launch(bench)
    fields = {"type": "process_event", "process_id": P, "event": "stdout", "value": "x"}
    assert bench.say(**{**fields, **changes}) == []
    assert bench.client.ignored == 1
    assert outputs(bench.say(**fields)) == [out("owner", "x")]


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\xc0", b"\x93\x01\x02\x03", b"\x81\x90\x01", b"\x81" * 5000]
)
def test_garbage_messages_are_dropped_and_counted(payload: bytes) -> None:
    """One odd message does not cost the connection."""
    bench = Bench()
    assert bench.feed(frame(payload)) == []
    assert bench.client.ignored == 1
    assert bench.client.is_open


@pytest.mark.parametrize("kind", ["return", "error"])
def test_a_damaged_end_ends_its_process(kind: str) -> None:
    """How it ended is lost, that it ended is not; other damage ends nothing."""
    fields = {"type": "process_event", "process_id": P, "event": kind, "value": "x" * 40}
    cut = msgpack.packb(fields)[:-1]
    for damaged in (cut, msgpack.packb({**fields, "value": None})):
        bench = Bench()
        launch(bench)
        assert bench.feed(frame(msgpack.packb({**fields, "event": "stdout"})[:-1])) == []
        (ended,) = bench.feed(frame(damaged))
        assert isinstance(ended, core.ProcessEnded)
        assert (ended.owner, ended.state) == ("owner", ProcessState.LOST)
        assert "damaged" in (ended.text or "")
        assert bench.feed(frame(damaged)) == []
    bench = Bench()
    assert bench.say(**{**fields, "process_id": 5}) == []


def test_text_that_is_not_utf_8_costs_no_message() -> None:
    """It is read with replacements; bytes behind a message are ignored."""
    bench = Bench()
    launch(bench)
    payload = msgpack.packb({"type": "process_event", "process_id": P, "event": "stdout", "value": "x#y"})
    assert outputs(bench.feed(frame(payload.replace(b"#", b"\xff") + b"more"))) == [out("owner", "x\ufffdy")]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["stdout", "stderr", "message", "other"]),
            st.text(max_size=3) | st.sampled_from(["x" * 31, "x" * 32, "x" * 255, "x" * 256, "\u20ac" * 90]),
            st.sampled_from([P, Q, "short", ""]),
            st.integers(0, 400),
        ),
        max_size=6,
    )
)
def test_the_form_of_an_event_makes_no_difference(script: list[tuple[str, str, str, int]]) -> None:
    """In the engine's own encoding, with a surplus key, as a damaged copy: the events are the same."""
    benches = [Bench(), Bench()]
    for bench in benches:
        launch(bench, P, "p")
        launch(bench, Q, "q", quiet=True)
    for kind, value, process_id, cut in script:
        fields = {"type": "process_event", "process_id": process_id, "event": kind, "value": value}
        payload = msgpack.packb(fields)
        benches[0].feed(frame(payload))
        benches[1].say(**fields, surplus=None)
        for bench in benches:
            assert bench.feed(frame(payload[: cut % len(payload)])) == []
    assert outputs(benches[0].log) == outputs(benches[1].log)
    assert [e for e in benches[0].log if not isinstance(e, core.ProcessOutput)] == [
        e for e in benches[1].log if not isinstance(e, core.ProcessOutput)
    ]


# --------------------------------------------------------------------------------------------------------------- files


def test_files_arrive_as_one_event_in_their_place() -> None:
    """Chunks of two processes interleave; each file comes with its last chunk."""
    bench = Bench()
    launch(bench, P, "p")
    launch(bench, Q, "q")
    content = bytes(300_000)
    first, second = cut_file(P, content), cut_file(Q, content)
    assert send_chunk(bench, first[0], name="../a.txt") == []
    assert send_chunk(bench, second[0], name=None) == []
    bench.event(P, "stdout", "between")
    (mine,) = send_chunk(bench, first[1])
    (other,) = send_chunk(bench, second[1])
    assert isinstance(mine, core.ProcessOutput)
    assert isinstance(other, core.ProcessOutput)
    assert (mine.owner, mine.event, mine.size) == ("p", (Event.File, content), len(content))
    assert isinstance(mine.event.value, ReceivedFile)
    assert mine.event.value.name == "../a.txt"
    assert other.owner == "q"


def test_files_that_do_not_fit_are_dropped_and_counted() -> None:
    """A missing beginning, a wrong hash, fields of wrong types; one gap tells of each file that was lost."""
    bench = Bench()
    launch(bench)
    first, second, third = cut_file(P, bytes(600_000))
    assert send_chunk(bench, second) == []
    ((_, missing),) = outputs(send_chunk(bench, third))
    assert missing[0] is Event.Gap
    assert "beginning is missing" in missing[1]
    ((_, wrong),) = outputs(send_chunk(bench, cut_file(P, b"x")[0], chunk_data=b"y"))
    assert "does not match its hash" in wrong[1]
    assert send_chunk(bench, first, chunk_index="0") == []
    assert bench.client.ignored == 4


def test_files_of_processes_that_ended_or_left_take_no_room() -> None:
    """Unfinished ones are dropped with their process, and with the connection."""
    bench = Bench()
    downloads = bench.client._downloads
    for finish in (
        lambda: bench.event(P, "return", "1"),
        lambda: bench.client.release(P),
        lambda: bench.client.fail(ConnectionLost("x")),
    ):
        launch(bench)
        send_chunk(bench, cut_file(P, bytes(300_000))[0])
        assert len(downloads) == 1
        finish()
        assert len(downloads) == 0
        bench.event(P, "error", "Signal")
        bench.sent()


# ------------------------------------------------------------------------------------------------------------- uploads


def chunk(index: int, total: int = 3) -> m.AddProgram:
    return m.AddProgram("hash", "manifest", False, index, total, b"data")


def test_an_upload_shares_one_answer() -> None:
    """All chunks carry one id."""
    bench = Bench()
    corr_id = bench.client.begin_upload("upload")
    for index in range(3):
        assert bench.client.upload_chunk(corr_id, chunk(index))
        assert bench.client.bulk_bytes == bench.client.outbound_bytes > 0
        (sent,) = bench.sent()
        assert (sent["corr_id"], sent["chunk_index"]) == (corr_id, index)
    assert bench.answer(corr_id, "installed") == [core.ReplyReceived("upload", True, "installed")]


def test_an_early_refusal_stops_the_rest() -> None:
    """0.4 answers each chunk of a refused upload: what is queued is withdrawn, the rest is not taken."""
    bench = Bench(V04)
    corr_id = bench.client.begin_upload("upload")
    for index in range(3):
        bench.client.upload_chunk(corr_id, chunk(index, 5))
    assert bench.sent_one()["chunk_index"] == 0
    assert bench.answer(corr_id, "refused", ok=False) == [core.ReplyReceived("upload", False, "refused")]
    assert not bench.client.wants_write
    assert bench.client.bulk_bytes == 0
    assert not bench.client.upload_chunk(corr_id, chunk(3, 5))
    assert bench.answer(corr_id, "First chunk index must be 0", ok=False) == []


def test_a_damaged_refusal_stops_the_rest() -> None:
    """Chunks that are queued are withdrawn with their request."""
    bench = Bench(V04)
    corr_id = bench.client.begin_upload("upload")
    for index in range(3):
        bench.client.upload_chunk(corr_id, chunk(index, 5))
    bench.sent_one()
    (damaged,) = bench.say(type="response", corr_id=corr_id, ok=False)
    assert isinstance(damaged, core.ReplyDamaged)
    assert not bench.client.wants_write


def test_a_half_sent_upload_is_reset_when_it_is_abandoned() -> None:
    """Otherwise its beginning would spoil the next upload of the same bytes. Once, and ahead of that."""
    bench = Bench(V04)
    corr_id = bench.client.begin_upload("upload")
    for index in range(2):
        bench.client.upload_chunk(corr_id, chunk(index))
    bench.sent_one()
    for _ in range(2):
        assert bench.client.abandon(corr_id) is Abandoned.AWAITING_REPLY
    assert not bench.client.upload_chunk(corr_id, chunk(2))
    again = bench.client.begin_upload("again")
    bench.client.upload_chunk(again, chunk(0))
    reset, first = bench.sent()
    assert (reset["type"], reset["corr_id"], reset["program_hash"]) == ("add_program", corr_id, "hash")
    assert reset["chunk_index"] not in range(3)
    assert reset["chunk_data"] == b""
    assert (first["corr_id"], first["chunk_index"]) == (again, 0)
    assert bench.answer(corr_id, "Out-of-order chunk", ok=False) == []
    assert bench.answer(again, "ok") == [core.ReplyReceived("again", True, "ok")]


@pytest.mark.parametrize("queued", [0, 2])
def test_an_upload_that_never_left_needs_no_reset(queued: int) -> None:
    """Nothing of it is on the wire."""
    bench = Bench()
    corr_id = bench.client.begin_upload("upload")
    for index in range(queued):
        bench.client.upload_chunk(corr_id, chunk(index))
    assert bench.client.abandon(corr_id) is Abandoned.WITHDRAWN
    assert bench.sent() == []
    assert bench.client.upload_chunk(corr_id, chunk(0)) is False


# -------------------------------------------------------------------------------------------------- lanes and ordering


def test_control_overtakes_requests_and_bulk() -> None:
    """A terminate waits for what has been framed already, and for nothing else."""
    bench = Bench()
    launch(bench)
    upload = bench.client.begin_upload("upload")
    for index in range(2):
        bench.client.upload_chunk(upload, chunk(index))
    bench.client.notify(m.TransferFile(P, "h", 0, 1, b"x"), lane=Lane.BULK)
    bench.client.submit(m.Ping())
    bench.client.notify(m.SignalProcess(P, "1"))
    bench.client.submit(m.ListProcesses(), urgent=True)
    bench.client.release(P)
    assert [item["type"] for item in bench.sent()] == [
        *("list_processes", "terminate_process"),
        *("add_program", "ping", "add_program", "signal_process", "transfer_file"),
    ]


def test_bytes_are_framed_lazily() -> None:
    """What is not asked for stays withdrawable; at least one message is given, and about as much as asked for."""
    bench = Bench()
    ids = [bench.client.submit(m.Ping(), number) for number in range(4)]
    assert len(bench.read(bench.client.data_to_send(1))) == 1
    assert (
        len(bench.read(bench.client.data_to_send(len(msgpack.packb({"type": "ping", "corr_id": 1})) + 1)))
        == 2
    )
    assert bench.client.abandon(ids[3]) is Abandoned.WITHDRAWN
    assert bench.client.abandon(ids[2]) is Abandoned.AWAITING_REPLY
    assert bench.sent() == []


def test_the_close_frame_leaves_behind_everything() -> None:
    """Also behind bulk; new work is refused, a terminate is let through until then."""
    bench = Bench()
    launch(bench)
    upload = bench.client.begin_upload("upload")
    bench.client.upload_chunk(upload, chunk(0))
    bench.client.submit(m.Ping())
    bench.client.close(1000, "done")
    bench.client.close(1001, "again")
    for call in (
        lambda: bench.client.submit(m.Ping()),
        lambda: bench.client.submit(m.AuthIdentify("a")),
        lambda: bench.client.notify(m.SignalProcess(P, "x")),
        lambda: bench.client.upload_chunk(upload, chunk(1)),
        lambda: bench.client.begin_upload("other"),
    ):
        with pytest.raises(LocalProtocolError, match="the connection is closing"):
            call()
    bench.client.release(P)
    bench.client.submit(m.TerminateProcess(Q), "other")
    bench.client.ping()
    *messages, closed = bench.sent()
    assert [item["type"] for item in messages] == [
        *("terminate_process", "add_program", "ping", "terminate_process"),
    ]
    assert closed == wire.CloseReceived(1000, "done")


def test_the_close_frame_waits_for_more_than_one_write() -> None:
    """It is not framed while anything is queued, however little is asked for at a time."""
    bench = Bench()
    for _ in range(3):
        bench.client.submit(m.Ping())
    bench.client.close()
    items = []
    while bench.client.wants_write:
        items += bench.read(bench.client.data_to_send(1))
    assert [type(item) for item in items] == [dict, dict, dict, wire.CloseReceived]


def test_nothing_follows_the_close_frame() -> None:
    """Neither a terminate, nor the reset of an upload, nor a pong: RFC 6455 forbids it."""
    bench = Bench()
    launch(bench)
    launched = issue(bench, LAUNCH, "second")
    bench.client.abandon(launched)
    upload = bench.client.begin_upload("upload")
    bench.client.upload_chunk(upload, chunk(0))
    bench.client.close()
    assert isinstance(bench.sent()[-1], wire.CloseReceived)
    bench.client.release(P)
    bench.client.abandon(upload)
    assert bench.answer(launched, Q) == [core.ProcessStarted("second", Q, True)]
    with pytest.raises(LocalProtocolError, match="closing"):
        bench.client.submit(m.TerminateProcess(P))
    bench.feed(frame(b"", opcode=PING))
    bench.client.ping()
    assert not bench.client.wants_write
    assert bench.client.data_to_send() == b""


def test_answers_still_count_while_closing() -> None:
    """What is on its way is used until the end."""
    bench = Bench()
    asked = issue(bench, m.Ping())
    login = issue(bench, m.AuthIdentify("again"), "login")
    bench.client.close()
    bench.sent()
    assert bench.answer(asked, "Pong") == [core.ReplyReceived("owner", True, "Pong")]
    bench.answer(login, "Already authenticated")
    assert bench.client.state is ConnectionState.CLOSING


# ------------------------------------------------------------------------------------------- text frames, tools, pings


def test_texts_of_0_5() -> None:
    """The end of a turn says nothing, an error is a notice, everything else is dropped and counted."""
    bench = Bench()
    assert bench.text('{"type":"turn_done"}') == []
    assert bench.client.ignored == 0
    assert bench.text('{"type":"error","message":"stream aborted"}') == [
        core.NoticeReceived("stream aborted")
    ]
    assert bench.client.last_notice == "stream aborted"
    (long,) = bench.text('{"type":"error","message":"' + "x" * 10_000 + '"}')
    assert isinstance(long, core.NoticeReceived)
    assert len(long.text) == 500
    garbage = [
        "",
        "cancel",
        "[]",
        "5",
        '{"type":"error"}',
        '{"type":"error","message":5}',
        "[" * 100_000,
        "1" * 5000,
    ]
    for text in garbage:
        assert bench.text(text) == []
    assert bench.client.ignored == len(garbage)


def test_the_last_notice_explains_a_lost_connection() -> None:
    """0.5 says why before it drops a connection."""
    for finish in (None, frame(b"\x03\xe9bye", opcode=CLOSE)):
        bench = Bench()
        bench.text('{"type":"error","message":"gateway draining"}')
        (ended,) = bench.feed(finish)
        assert isinstance(ended, core.ConnectionEnded)
        assert "gateway draining" in str(ended.reason)


def test_tool_calls_are_passed_on() -> None:
    """A damaged one is dropped: it cannot be answered."""
    bench = Bench(V04)
    call: dict[str, Any] = {
        "corr_id": 1,
        "process_id": P,
        "server_name": "s",
        "method": "tools/list",
        "params": "{}",
    }
    assert bench.say(type="mcp_request", **call) == [
        core.ToolRequested(m.McpRequest(1, P, "s", "tools/list", "{}"))
    ]
    assert bench.say(type="mcp_request", **{**call, "corr_id": "1"}) == []
    assert bench.client.ignored == 1
    bench.client.notify(m.McpResponse(1, True, "{}"), lane=Lane.CONTROL)
    assert bench.sent()[0]["corr_id"] == 1


def test_pings_in_both_directions() -> None:
    """Ours are answered with an event, the engine's with a pong, ahead of what is queued."""
    bench = Bench()
    bench.client.ping()
    bench.sent()
    assert bench.feed(bench.server.take_replies()) == [core.PongArrived()]
    bench.client.submit(m.Ping())
    bench.feed(frame(b"you?", opcode=PING))
    pong, asked = bench.sent()
    assert pong == wire.PongReceived(b"you?")
    assert asked["type"] == "ping"


def test_a_flood_of_pings_takes_no_memory() -> None:
    """An engine that pings and does not read gets one answer."""
    bench = Bench()
    for _ in range(100):
        bench.feed(frame(b"x" * 125, opcode=PING) * 10)
    assert bench.client.wants_write
    assert len(bench.client.data_to_send()) < 200
    assert not bench.client.wants_write


# ------------------------------------------------------------------------------------------------------------- the end

STAGES = ["connecting", "authenticating", "open", "closing", "closed frame sent"]
ENDS: dict[str, Callable[[Bench], object]] = {
    "eof": lambda bench: bench.client.receive_data(None),
    "fail": lambda bench: bench.client.fail(ConnectionLost("broken")),
    "garbage": lambda bench: bench.client.receive_data(frame(rsv=7) + b"\r\n\r\n"),
    "close frame": lambda bench: bench.client.receive_data(frame(b"\x03\xe8", opcode=CLOSE) + b"\r\n\r\n"),
}


def staged(stage: str) -> Bench:
    bench = Bench(upgrade=stage != "connecting", login=stage not in ("connecting", "authenticating"))
    if stage in ("closing", "closed frame sent"):
        launch(bench)
        issue(bench, LAUNCH, "issued")
        bench.client.submit(m.Ping(), "queued")
        bench.client.close()
        if stage == "closed frame sent":
            bench.sent()
    elif stage == "open":
        launch(bench)
        issue(bench, LAUNCH, "issued")
        bench.client.abandon(issue(bench, LAUNCH, "abandoned"))
        bench.client.submit(m.Ping(), "queued")
        bench.client.notify(m.SignalProcess(P, "x"))
    elif stage == "authenticating":
        issue(bench, m.AuthIdentify("a"), "issued")
        bench.client.submit(m.AuthIdentify("a"), "queued")
    bench.log.clear()
    return bench


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_end_settles_everything(stage: str, end: Callable[[Bench], object]) -> None:
    """Queued requests were not issued, others were; the end is told last and once; nothing raises afterwards."""
    bench = staged(stage)
    end(bench)
    *lost, ended = bench.events()
    assert isinstance(ended, core.ConnectionEnded)
    assert bench.client.close_reason is ended.reason
    issued = {"authenticating": {"issued"}, "open": {"issued", "abandoned"}}.get(stage, {"issued"})
    queued = {"queued"}
    if stage == "connecting":
        issued = queued = set()
    if stage == "closed frame sent":
        issued, queued = issued | queued, set()
    assert all(isinstance(event, core.RequestLost) for event in lost)
    assert {(event.owner, event.issued) for event in lost if isinstance(event, core.RequestLost)} == {
        *((owner, True) for owner in issued),
        *((owner, False) for owner in queued),
    }
    assert bench.client.state in (ConnectionState.CLOSED, ConnectionState.FAILED)
    assert (bench.client.outbound_bytes, len(bench.client._requests)) == (0, 0)
    assert bench.client._processes.live == {}
    check_the_dead(bench)


def check_the_dead(bench: Bench) -> None:
    """Whatever is asked of a connection that ended: it raises only for new work, and says nothing any more."""
    reason, state = bench.client.close_reason, bench.client.state
    calls: list[Callable[[], object]] = [
        *(lambda end=end: end(bench) for end in ENDS.values()),
        lambda: bench.client.receive_data(b"data"),
        bench.client.close,
        bench.client.ping,
        lambda: bench.client.release(P),
        lambda: bench.client.detach(P),
        lambda: bench.client.lose(P, "x"),
        lambda: bench.client.abandon(m.MAX_CORR_ID),  # type: ignore[arg-type]
        bench.client.data_to_send,
    ]
    for again in calls:
        again()
    assert bench.client.events() == []
    assert not bench.client.wants_write
    for work in (
        lambda: bench.client.submit(m.Ping()),
        lambda: bench.client.submit(m.TerminateProcess(P)),
        lambda: bench.client.submit(m.AuthIdentify("a")),
        lambda: bench.client.notify(m.SignalProcess(P, "x")),
        lambda: bench.client.begin_upload("x"),
    ):
        with pytest.raises(LocalProtocolError, match="the connection is"):
            work()
    assert (bench.client.close_reason, bench.client.state) == (reason, state)


def test_closing_during_the_handshake_ends_the_connection() -> None:
    """No close frame could be sent yet, and the answer to the handshake is not waited for."""
    bench = Bench(upgrade=False)
    request = bench.client.data_to_send()
    bench.client.close()
    (ended,) = bench.events()
    assert isinstance(ended, core.ConnectionEnded)
    assert isinstance(ended.reason, ConnectionClosed)
    assert bench.feed(accept(request)) == []
    assert bench.feed(b"HTTP/1.1 404 X\r\n\r\n") == []
    check_the_dead(bench)


@pytest.mark.parametrize(
    ("stage", "kind", "text"),
    [
        ("connecting", ConnectError, "during the WebSocket handshake"),
        ("authenticating", ConnectionLost, "dropped"),
        ("open", ConnectionLost, "dropped"),
        ("closing", ConnectionClosed, "by this side"),
        ("closed frame sent", ConnectionClosed, "by this side"),
    ],
)
def test_the_end_of_the_stream_means_what_the_stage_says(stage: str, kind: type[PieError], text: str) -> None:
    """A handshake that failed, a connection that was lost, or an end that was asked for."""
    bench = staged(stage)
    bench.feed(None)
    reason = bench.client.close_reason
    assert type(reason) is kind
    assert text in str(reason)


def test_a_close_frame_of_the_engine() -> None:
    """Code and reason are told, the answer is sent, and that is all."""
    bench = Bench()
    (ended,) = bench.feed(frame(b"\x03\xe9going", opcode=CLOSE))
    assert isinstance(ended, core.ConnectionEnded)
    reason = ended.reason
    assert isinstance(reason, ConnectionClosed)
    assert (reason.code, reason.reason) == (1001, "going")
    assert "1001, going" in str(reason)
    assert bench.client.state is ConnectionState.CLOSED
    assert bench.sent() == [wire.CloseReceived(1001, "going")]


def test_a_fault_of_the_engine_is_answered_with_its_code() -> None:
    """What came before it counts."""
    bench = Bench(limits=Limits(message_bytes=1000))
    asked = issue(bench, m.Ping())
    reply = message(type="response", corr_id=asked, ok=True, result="Pong")
    got, ended = bench.feed(reply + frame(claim=1001))
    assert got == core.ReplyReceived("owner", True, "Pong")
    assert isinstance(ended, core.ConnectionEnded)
    assert isinstance(ended.reason, RemoteProtocolError)
    assert bench.client.state is ConnectionState.FAILED
    (told,) = bench.sent()
    assert isinstance(told, wire.CloseReceived)
    assert told.code == 1009


def test_secrets_stay_out_of_reprs() -> None:
    """Neither the pending request nor the queued payload shows a token."""
    bench = Bench(V04, login=False)
    bench.client.submit(m.AuthByToken("s3cret"))
    bench.client.submit(m.AuthProve("s3cret"))
    assert "s3cret" not in repr(list(bench.client._requests._pending.values()))
    assert "s3cret" not in repr(vars(bench.client))


# ------------------------------------------------------------------------------------------------- whole conversations


def conversation(bench: Bench) -> list[bytes]:
    """Give what an engine says in a whole session, with every kind of message, in frames of every kind."""
    content = bytes(range(256)) * 2
    digest = blake3.blake3(content).hexdigest()
    pong = msgpack.packb({"type": "response", "corr_id": 3, "ok": True, "result": "Pong"})
    return [
        message(type="response", corr_id=1, ok=True, result="Already authenticated"),
        frame(b'{"type":"turn_done"}', opcode=TEXT),
        message(type="response", corr_id=2, ok=True, result=P),
        message(type="process_event", process_id=P, event="stdout", value="h\u20ac" * 100),
        frame(pong[:5], fin=False),
        frame(b"?", opcode=PING),
        frame(pong[5:], opcode=CONTINUATION),
        *(
            message(
                type="file",
                process_id=P,
                file_hash=digest,
                chunk_index=i,
                total_chunks=2,
                chunk_data=part,
                name=None,
            )
            for i, part in enumerate((content[:300], content[300:]))
        ),
        frame(b'{"type":"error","message":"stream aborted"}', opcode=TEXT),
        message(type="response", corr_id=4, ok=False, result="no"),
        message(type="process_event", process_id=P, event="return", value="42"),
    ]


def play(bench: Bench, parts: list[bytes]) -> list[core.CoreEvent]:
    """Submit what the conversation answers, and feed it; the login comes with it, so all else goes out by hand."""
    bench.client.submit(m.AuthIdentify("a"), "login")
    bench.sent()
    bench.client.state = ConnectionState.OPEN
    for request in (LAUNCH, m.Ping(), LAUNCH):
        issue(bench, request, request.type)
    for part in parts:
        bench.client.receive_data(part)
    return bench.events()


def comparable(events: list[core.CoreEvent]) -> list[Any]:
    return [str(event.reason) if isinstance(event, core.ConnectionEnded) else event for event in events]


def test_a_conversation_cut_at_every_byte_ends() -> None:
    """Wherever it stops: events, then the end; never an exception, and always a beginning of the whole story."""
    stream = b"".join(conversation(Bench()))
    full = comparable(play(Bench(login=False), [stream]))
    assert len(full) == 8
    for size in range(len(stream)):
        bench = Bench(login=False)
        story = comparable(play(bench, [stream[:size]]))
        assert story == full[: len(story)]
        ended = bench.feed(None)
        assert isinstance(ended[-1], core.ConnectionEnded)
        assert sum(isinstance(event, core.ConnectionEnded) for event in bench.log) == 1


def test_a_conversation_byte_by_byte_is_the_same() -> None:
    """Cutting changes nothing."""
    stream = b"".join(conversation(Bench()))
    full = comparable(play(Bench(login=False), [stream]))
    single = [stream[i : i + 1] for i in range(len(stream))]
    assert comparable(play(Bench(login=False), single)) == full


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=3)), min_size=1, max_size=4))
def test_a_damaged_conversation_never_raises(damage: list[tuple[int, bytes]]) -> None:
    """Bytes replaced anywhere: events, and an end."""
    stream = bytearray(b"".join(conversation(Bench())))
    for place, junk in damage:
        start = place % len(stream)
        stream[start : start + len(junk)] = junk
    bench = Bench(login=False)
    play(bench, [bytes(stream)])
    bench.feed(None)
    assert sum(isinstance(event, core.ConnectionEnded) for event in bench.log) == 1
    assert isinstance(bench.log[-1], core.ConnectionEnded)
    settled = [
        e.owner for e in bench.log if isinstance(e, (core.ReplyReceived, core.ReplyDamaged, core.RequestLost))
    ]
    started = [e.owner for e in bench.log if isinstance(e, core.ProcessStarted)]
    assert sorted(map(str, [*settled, *started])) == sorted(
        map(str, ["login", LAUNCH.type, "ping", LAUNCH.type])
    )


@pytest.mark.parametrize("cut", [whole, bytewise, pieces(3)])
@pytest.mark.parametrize("generation", [V04, V05])
def test_both_roles_understand_each_other(generation: Generation, cut: Any) -> None:
    """A launch against the engine's own core, however the bytes are cut."""
    pair = ConnectionPair(generation, cut=cut)
    pair.open()
    pair.client.submit(LAUNCH, "owner")
    pair.run()
    (received,) = pair.engine_events
    pair.engine.respond(received.corr_id, True, P)  # type: ignore[union-attr,arg-type]
    pair.engine.send_event(P, "stdout", "hello")
    pair.engine.send_file(P, bytes(1000))
    pair.engine.send_event(P, "return", "42")
    pair.run()
    started, *_, ended = pair.client_events
    assert started == core.ProcessStarted("owner", P, False)
    assert outputs(pair.client_events) == [out("owner", "hello"), ("owner", (Event.File, bytes(1000)))]
    assert ended == core.ProcessEnded("owner", P, ProcessState.RETURNED, "42", "")


def test_defaults() -> None:
    """Limits are there without being asked for; a known generation may be given."""
    client = ClientProtocol(host="h", target="/", headers=[], entropy=counting(), generation=V04)
    assert client.limits == Limits()
    assert client.generation is V04
