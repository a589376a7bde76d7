# SPDX-License-Identifier: Apache-2.0
"""Random life against a model: whatever is submitted, abandoned, answered, repeated and dropped, in any order."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.protocol.frames import Bench, frame

from pie_anyio import ConnectionLost, Generation
from pie_anyio._protocol import events as core
from pie_anyio._protocol import messages as m
from pie_anyio._protocol.requests import Abandoned
from pie_anyio._protocol.state import ConnectionState, ProcessState, RequestState

KINDS = {
    "launch": m.LaunchProcess("echo@0.1.0", "{}"),
    "attach": m.AttachProcess("attached-{}"),
    "ping": m.Ping(),
}
WHERE = st.integers(0, 10**6)


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
