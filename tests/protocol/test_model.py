# SPDX-License-Identifier: Apache-2.0
"""Random life against a model: whatever is submitted, abandoned, answered, repeated and dropped, in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.protocol.frames import Bench, accept, counting, frame, pieces

from pie_anyio import ConnectionLost, Generation
from pie_anyio._protocol import events as core
from pie_anyio._protocol import messages as m
from pie_anyio._protocol.connection import ClientProtocol
from pie_anyio._protocol.engine import EngineProtocol, MessageReceived
from pie_anyio._protocol.requests import Abandoned
from pie_anyio._protocol.state import ConnectionState, ProcessState, RequestState
from pie_anyio._protocol.websocket import UpgradeRequested
from pie_anyio._types import CorrelationId

KINDS = {
    "launch": m.LaunchProcess("echo@0.1.0", "{}"),
    "attach": m.AttachProcess("attached-{}"),
    "ping": m.Ping(),
}
WHERE = st.integers(0, 10**6)
LIVE = ("running", "zombie", "detached")
CUTS = st.lists(st.integers(0, 2**16), max_size=4)


class Connection(RuleBasedStateMachine):
    """The model: what each owner was told, what the engine has seen, which processes there are."""

    @initialize(generation=st.sampled_from(Generation))
    def connect(self, generation: Generation) -> None:
        self.bench = Bench(generation)
        self.owners: dict[int, int] = {}
        """The correlation id of each owner, owners being numbers."""
        self.kinds: dict[int, str] = {}
        self.targets: dict[int, str] = {}
        self.told: dict[int, list[str]] = {}
        self.withdrawn: set[int] = set()
        self.abandoned: set[int] = set()
        self.seen: dict[int, Any] = {}
        """What the engine has read, by correlation id."""
        self.answered: set[int] = set()
        self.processes: dict[str, int] = {}
        """The processes that became known, with their owners."""
        self.ended: dict[str, ProcessState] = {}
        self.released: set[str] = set()
        self.detached: set[str] = set()
        self.terminates: list[str] = []
        self.over = False

    # --- what can happen

    @rule(kind=st.sampled_from(sorted(KINDS)), quiet=st.booleans())
    def submit(self, kind: str, quiet: bool) -> None:
        owner = len(self.owners)
        request = KINDS[kind]
        if isinstance(request, m.AttachProcess):
            request = m.AttachProcess(f"attached-{owner}")
            self.targets[owner] = request.process_id
        if self.bench.client.is_open:
            self.owners[owner] = self.bench.client.submit(request, owner, quiet=quiet)
            self.kinds[owner] = kind
            self.told[owner] = []

    @rule(where=WHERE)
    def abandon(self, where: int) -> None:
        if self.owners:
            owner = where % len(self.owners)
            corr_id = self.owners[owner]
            outcome = self.bench.client.abandon(corr_id)  # type: ignore[arg-type]
            if self.told[owner] or owner in self.withdrawn or corr_id in self.answered:
                assert outcome is Abandoned.ALREADY_RESOLVED
            elif corr_id in self.seen:
                assert outcome is Abandoned.AWAITING_REPLY
                self.abandoned.add(owner)
            else:
                assert outcome is Abandoned.WITHDRAWN
                self.withdrawn.add(owner)

    @rule(everything=st.booleans())
    def send(self, everything: bool) -> None:
        for item in self.bench.sent() if everything else self.bench.read(self.bench.client.data_to_send(1)):
            if isinstance(item, dict):
                assert item["corr_id"] not in self.seen
                self.seen[item["corr_id"]] = item
                if item["type"] == "terminate_process":
                    self.terminates.append(item["process_id"])

    @precondition(lambda self: self.seen)
    @rule(where=WHERE, ok=st.booleans(), damaged=st.booleans())
    def answer(self, where: int, ok: bool, damaged: bool) -> None:
        """Answer any request that was ever seen, also once more."""
        corr_id, request = sorted(self.seen.items())[where % len(self.seen)]
        if damaged:
            self.note(self.bench.say(type="response", corr_id=corr_id, ok=ok))
        else:
            result = {"launch_process": f"process-{corr_id}", "terminate_process": "Process not found"}
            self.note(self.bench.answer(corr_id, result.get(request["type"], "x"), ok))
        self.answered.add(corr_id)

    @precondition(lambda self: self.seen)
    @rule(where=WHERE, kind=st.sampled_from(["stdout", "message", "return", "error", "strange"]))
    def emit(self, where: int, kind: str) -> None:
        """Send an event of any process there could be: not yet known, live, ended."""
        ids = [f"process-{corr_id}" for corr_id in sorted(self.seen)] + sorted(self.targets.values())
        self.note(self.bench.event(ids[where % len(ids)], kind, "x"))

    @precondition(lambda self: self.processes)
    @rule(where=WHERE, how=st.sampled_from(["release", "detach", "lose"]))
    def leave(self, where: int, how: str) -> None:
        process_id = sorted(self.processes)[where % len(self.processes)]
        live = process_id in self.bench.client._processes.live
        match how:
            case "release":
                self.bench.client.release(process_id)
                self.released |= {process_id} if live else set()
            case "detach":
                if process_id not in self.released:
                    self.bench.client.detach(process_id)
                    self.detached |= {process_id} if live else set()
            case _:
                self.bench.client.lose(process_id, "lost")
        self.note(self.bench.events())

    @rule()
    @precondition(lambda self: len(self.owners) > 5)
    def close(self) -> None:
        self.bench.client.close()
        self.note(self.bench.events())

    @rule(how=st.sampled_from(["eof", "fail", "garbage"]))
    @precondition(lambda self: len(self.owners) > 7)
    def drop(self, how: str) -> None:
        match how:
            case "eof":
                self.bench.client.receive_data(None)
            case "fail":
                self.bench.client.fail(ConnectionLost("x"))
            case _:
                self.bench.client.receive_data(frame(rsv=1))
        self.note(self.bench.events())

    # --- what must hold

    def note(self, events: list[core.CoreEvent]) -> None:
        """Read the events into the model."""
        for event in events:
            assert not self.over, "nothing comes after the end"
            match event:
                case core.ReplyReceived() | core.ReplyDamaged() | core.RequestLost():
                    if event.owner is not None:
                        assert isinstance(event.owner, int)
                        self.told[event.owner].append(type(event).__name__)
                    if isinstance(event, core.RequestLost) and isinstance(event.owner, int):
                        assert event.issued is (self.owners[event.owner] in self.seen)
                case core.ProcessStarted():
                    self.note_start(event)
                case core.ProcessEnded():
                    assert event.process_id not in self.ended
                    assert self.processes[event.process_id] == event.owner
                    self.ended[event.process_id] = event.state
                case core.ProcessOutput() | core.FirstOutput():
                    (process_id,) = [p for p, owner in self.processes.items() if owner == event.owner]
                    assert process_id not in self.ended
                    assert process_id not in self.released
                case core.ConnectionEnded():
                    self.over = True

    def note_start(self, event: core.ProcessStarted) -> None:
        assert isinstance(event.owner, int)
        self.told[event.owner].append("ProcessStarted")
        assert event.process_id not in self.processes
        assert event.zombie is (event.owner in self.abandoned)
        self.processes[event.process_id] = event.owner
        if event.zombie:
            left = self.released if self.kinds[event.owner] == "launch" else self.detached
            left.add(event.process_id)

    @invariant()
    def counts_are_exact(self) -> None:
        outbox = self.bench.client._outbox
        queued = [entry.payload for lane in outbox._lanes for entry in lane if entry.payload is not None]
        assert outbox.queued_bytes == sum(map(len, queued))
        assert self.bench.client.wants_write or not queued

    @invariant()
    def each_owner_is_told_once(self) -> None:
        pending = self.bench.client._requests._pending
        for owner, corr_id in self.owners.items():
            told = self.told[owner]
            assert len(told) <= 1
            if owner in self.withdrawn:
                assert not told
                assert corr_id not in self.seen
            elif corr_id in pending:
                assert not told
                assert (owner in self.abandoned) is (pending[corr_id].state is RequestState.ABANDONED)
            elif not (owner in self.abandoned and self.kinds[owner] == "ping" and corr_id in self.answered):
                assert len(told) == 1  # only the answer to an abandoned question is for nobody

    @invariant()
    def each_process_is_somewhere(self) -> None:
        """Ended, live in a state that the model knows, or lost with the connection."""
        live = self.bench.client._processes.live
        for process_id in self.processes:
            if process_id in self.ended:
                assert process_id not in live
                continue
            if self.over:
                continue
            expected = (
                ProcessState.ZOMBIE
                if process_id in self.released
                else ProcessState.DETACHED
                if process_id in self.detached
                else ProcessState.RUNNING
            )
            assert live[process_id].state is expected
        assert set(live) <= set(self.processes)

    @invariant()
    def each_released_process_is_terminated_once(self) -> None:
        queued = [
            pending.request.process_id
            for pending in self.bench.client._requests._pending.values()
            if isinstance(pending.request, m.TerminateProcess) and pending.corr_id not in self.seen
        ]
        sent = self.terminates + queued
        assert len(sent) == len(set(sent))
        assert set(sent) <= self.released
        if not self.over and not self.bench.client._close_sent:
            assert set(sent) == self.released

    @invariant()
    def nothing_is_left_after_the_end(self) -> None:
        client = self.bench.client
        assert self.over is (client.state in (ConnectionState.CLOSED, ConnectionState.FAILED))
        if self.over:
            assert not client._requests._pending
            assert not client._processes.live
            assert not client._outbox
        assert client._requests.claiming == sum(p.claims_process for p in client._requests._pending.values())
        if not client._requests.claiming:
            assert not client._processes._orphans


TestConnection = Connection.TestCase
TestConnection.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


# ------------------------------------------------------------------------------- both cores, and connections in a row


class _Twins:
    """Two client cores that are told and asked the same; one reads its bytes whole, the other in pieces."""

    def __init__(self) -> None:
        self.whole, self.cut = (_make_client(), _make_client())

    def shake_hands(self, engine: EngineProtocol) -> None:
        """Open both, the second one by hand: a handshake has a random key in it, so each needs an answer of its own."""
        engine.receive_data(self.whole.data_to_send())
        assert isinstance(engine.events()[0], UpgradeRequested)
        engine.accept(authenticated=engine.generation is Generation.V05)
        self.whole.receive_data(engine.data_to_send())
        self.cut.receive_data(accept(self.cut.data_to_send()))
        assert self.whole.events() == self.cut.events() == [core.HandshakeCompleted()]

    def each(self, call: Callable[[ClientProtocol], Any]) -> Any:
        """Do the same to both, and give what both say."""
        first, second = call(self.whole), call(self.cut)
        assert first == second
        return first

    def feed(self, data: bytes | None, cuts: list[int]) -> list[core.CoreEvent]:
        """Have both read the same."""
        self.whole.receive_data(data)
        for piece in [data] if data is None else pieces(data, cuts):
            self.cut.receive_data(piece)
        events = self.whole.events()
        assert [repr(event) for event in events] == [repr(event) for event in self.cut.events()]
        return events


def _make_client() -> ClientProtocol:
    return ClientProtocol(host="engine.test", target="/v1/ws", headers=[], entropy=counting())


class Lives(RuleBasedStateMachine):
    """A client that launches, leaves, loses its connection and comes back, on an engine that remembers its processes.

    The engine is the other core, with the least of a shell: it starts what it is asked to start, ends what it is asked
    to end, and answers in any order, late, twice or never.
    """

    @initialize(generation=st.sampled_from(Generation))
    def begin(self, generation: Generation) -> None:
        self.generation = generation
        self.number = 0
        self.running: dict[str, bool] = {}
        """The processes that live on the engine, and whether this client is attached to them."""
        self.started: set[str] = set()
        """All that were ever started for a launch."""
        self.fate: dict[str, str] = {}
        """What the client was last told of each process: running, zombie, detached, ended, lost."""
        self.launches: set[object] = set()
        self.connect()

    def connect(self) -> None:
        """Make a new connection of new cores, log in, and attach to what goes on."""
        self.number += 1
        self.twins = _Twins()
        self.engine = EngineProtocol(self.generation)
        self.log: list[core.CoreEvent] = []
        self.replies: list[tuple[int, bool, str]] = []
        """Answers that are yet to come."""
        self.sent: list[tuple[int, bool, str]] = []
        self.open: dict[object, int] = {}
        """Unresolved requests by owner."""
        self.owners: dict[object, str] = {}
        self.twins.shake_hands(self.engine)
        self.twins.each(lambda client: client.submit(m.AuthIdentify("u"), "login"))
        self.to_engine()
        corr_id, _, _ = self.replies.pop()
        v05 = self.generation is Generation.V05
        if not v05:
            self.engine.authenticated()
        self.engine.respond(corr_id, True, m.ALREADY_AUTHENTICATED if v05 else m.NO_AUTH_LITERAL)
        self.to_client([])
        assert self.twins.whole.is_open
        self.open.pop("login", None)
        for process_id in sorted(self.running):
            self.submit(m.AttachProcess(process_id), f"again-{self.number}-{process_id}")

    # --- the wire

    def to_engine(self) -> None:
        """Carry what the client has to say, and have the engine act on it at once."""
        while self.twins.whole.wants_write:
            data = self.twins.each(lambda client: client.data_to_send())
            self.engine.receive_data(data)
            while events := self.engine.events():
                for event in events:
                    assert isinstance(event, MessageReceived)
                    self.act(event.request, event.corr_id)

    def act(self, request: m.Request, corr_id: int | None) -> None:
        assert corr_id is not None
        ok, result = True, ""
        match request:
            case m.LaunchProcess():
                result = f"process-{len(self.started)}"
                self.started.add(result)
                self.running[result] = True
            case m.AttachProcess(process_id=process_id):
                # An engine attaches nobody to what somebody is attached to, this connection included.
                ok, result = self.running.get(process_id) is False, "Process not found"
                if ok:
                    self.running[process_id] = True
            case m.TerminateProcess(process_id=process_id):
                ok, result = process_id in self.running, "Process not found"
                if ok:
                    self.end(process_id, "error")
        self.replies.append((corr_id, ok, result))

    def end(self, process_id: str, kind: str) -> None:
        if self.running.pop(process_id):
            self.engine.send_event(process_id, kind, "Signal" if kind == "error" else "1")

    def to_client(self, cuts: list[int]) -> None:
        while self.engine.wants_write:
            self.note(self.twins.feed(self.engine.data_to_send(), cuts))

    def note(self, events: list[core.CoreEvent]) -> None:
        for event in events:
            match event:
                case core.ReplyReceived() | core.RequestLost() | core.ReplyDamaged():
                    # An owner hears of its request once; nobody hears of one that was abandoned, but when it is lost.
                    self.open.pop(event.owner, None)
                case core.ProcessStarted():
                    self.open.pop(event.owner, None)
                    # What ended before the client heard of its start is told afterwards.
                    left = "zombie" if event.owner in self.launches else "detached"
                    self.fate[event.process_id] = left if event.zombie else "running"
                    self.owners[event.owner] = event.process_id
                case core.ProcessEnded():
                    self.fate[event.process_id] = "ended"
                case core.ConnectionEnded():
                    for process_id, fate in self.fate.items():
                        self.fate[process_id] = "lost" if fate != "ended" else fate
            self.log.append(event)

    def submit(self, request: m.Request, owner: object) -> None:
        self.open[owner] = self.twins.each(lambda client: client.submit(request, owner))
        if isinstance(request, m.LaunchProcess):
            self.launches.add(owner)

    # --- what can happen

    @rule(count=st.integers(1, 3))
    def launch(self, count: int) -> None:
        for _ in range(count):
            self.submit(
                m.LaunchProcess("echo@0.1.0", "{}"), f"{self.number}-{len(self.log)}-{len(self.open)}-{_}"
            )

    @rule(where=WHERE)
    def attach(self, where: int) -> None:
        """Attach to a process that the client does not hold, or that is over."""
        held = {process_id for process_id, fate in self.fate.items() if fate in LIVE}
        free = sorted(self.started - held)
        if free:
            self.submit(
                m.AttachProcess(free[where % len(free)]), f"attach-{self.number}-{len(self.log)}-{where}"
            )

    @rule(where=WHERE)
    def abandon(self, where: int) -> None:
        """In whatever state the request is, also again."""
        if self.open:
            owner, corr_id = sorted(self.open.items(), key=str)[where % len(self.open)]
            outcome = self.twins.each(lambda client: client.abandon(CorrelationId(corr_id)))
            if outcome is not Abandoned.AWAITING_REPLY:
                self.open.pop(owner)

    @rule()
    def send(self) -> None:
        self.to_engine()

    @rule(cuts=CUTS)
    def receive(self, cuts: list[int]) -> None:
        self.to_client(cuts)

    @precondition(lambda self: self.replies)
    @rule(where=WHERE, cuts=CUTS, twice=st.booleans())
    def answer(self, where: int, cuts: list[int], twice: bool) -> None:
        """One of the answers that are due, in any order, perhaps twice."""
        reply = self.replies.pop(where % len(self.replies))
        self.sent.append(reply)
        for _ in range(1 + twice):
            self.engine.respond(*reply)
        self.to_client(cuts)

    @precondition(lambda self: self.sent)
    @rule(where=WHERE)
    def answer_again(self, where: int) -> None:
        """Long after the first time."""
        self.engine.respond(*self.sent[where % len(self.sent)])

    @precondition(lambda self: self.running)
    @rule(where=WHERE, kind=st.sampled_from(["stdout", "message", "return", "error"]))
    def happen(self, where: int, kind: str) -> None:
        process_id = sorted(self.running)[where % len(self.running)]
        if kind in ("return", "error"):
            self.end(process_id, kind)
        elif self.running[process_id]:
            self.engine.send_event(process_id, kind, "x")

    @rule(where=WHERE)
    def release(self, where: int) -> None:
        live = sorted(self.twins.whole._processes.live)
        if live:
            process_id = live[where % len(live)]
            self.twins.each(lambda client: client.release(process_id))
            self.fate[process_id] = "zombie"

    @rule(reset=st.booleans())
    def drop_and_come_back(self, reset: bool) -> None:
        """Lose the connection with all that is under way on it; 0.5 ends what was attached, 0.4 lets it go on."""
        if reset:
            lost = ConnectionLost("reset")
            self.twins.each(lambda client: client.fail(lost))
            self.note(self.twins.whole.events())
            self.twins.cut.events()
        else:
            self.note(self.twins.feed(None, []))
        for client in (self.twins.whole, self.twins.cut):
            assert not client._requests._pending
            assert not client._processes.live
            assert not client._outbox
        # Nobody waits for ever: whoever had a request under way was told of its end.
        told = {event.owner for event in self.log if isinstance(event, core.RequestLost)}
        assert set(self.open) <= told
        for process_id, attached in list(self.running.items()):
            if attached and self.generation is Generation.V05:
                del self.running[process_id]
            else:
                self.running[process_id] = False
        self.connect()

    def teardown(self) -> None:
        """Let everything arrive that is under way: then the client knows of each process, and no zombie lives."""
        while self.twins.whole.wants_write or self.replies or self.engine.wants_write:
            self.to_engine()
            while self.replies:
                self.engine.respond(*self.replies.pop(0))
            self.to_client([])
        assert not self.twins.whole._requests._pending
        live = self.twins.whole._processes.live
        for process_id, attached in self.running.items():
            if attached:
                assert self.fate[process_id] in ("running", "detached")
                assert live[process_id].state is ProcessState[self.fate[process_id].upper()]
        assert set(live) <= set(self.running)

    # --- what must hold

    @invariant()
    def what_was_launched_is_accounted_for(self) -> None:
        """Ended, owned, a zombie, lost, or known to be unknown: its launch is unanswered."""
        client = self.twins.whole
        answered = {reply[2] for reply in self.sent}
        for process_id in self.started:
            fate = self.fate.get(process_id)
            if fate in LIVE:
                assert process_id in client._processes.live
            elif fate is None and process_id in answered:
                assert self.engine.wants_write  # the answer is on its way
        for process_id in client._processes.live:
            assert self.fate[process_id] in LIVE

    @invariant()
    def both_are_in_the_same_state(self) -> None:
        assert self.twins.whole.state is self.twins.cut.state
        assert self.twins.whole.ignored == self.twins.cut.ignored
        assert self.twins.whole.outbound_bytes == self.twins.cut.outbound_bytes

    @invariant()
    def the_outbox_counts_its_entries(self) -> None:
        outbox = self.twins.whole._outbox
        sizes = [len(entry.payload) for lane in outbox._lanes for entry in lane if entry.payload is not None]
        assert outbox.queued_bytes == sum(sizes)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
