# SPDX-License-Identifier: Apache-2.0
"""``Faults``: everything that a simulated engine can be told to do wrong.

All switches may be thrown at any time, from the task that tests; each says when it takes effect. Types are the wire's
names of requests, such as ``"launch_process"``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import attrs
import msgpack
from anyio import Event
from anyio.lowlevel import checkpoint

from .._protocol.messages import FileChunk
from ._sim_profiles import SATURATED

if TYPE_CHECKING:
    from ._sim_session import Session

Rewrite: TypeAlias = Callable[[dict[str, Any]], "dict[str, Any] | bytes | None"]
"""Given an outbound message as a map: another map, raw payload bytes, or None to lose it."""


class FileDamage(Enum):
    """What may be wrong with the files that programs send."""

    WRONG_HASH = "the hash is that of other content"
    CORRUPT = "a byte is flipped"
    NO_FIRST_CHUNK = "the first chunk is missing"
    NO_LAST_CHUNK = "the last chunk is missing"
    OUT_OF_ORDER = "the chunks come in reverse"


class Hold:
    """Answers that are kept back until :meth:`release`; also a context manager that releases at its end."""

    def __init__(self, types: Collection[str], forget: Callable[[Hold], None]) -> None:
        self.types: frozenset[str] = frozenset(types)
        self._forget = forget
        self._waiting: list[Callable[[], None]] = []
        self._changed: Event | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> Literal[False]:
        self.release()
        return False

    @property
    def count(self) -> int:
        """How many answers are being kept back."""
        return len(self._waiting)

    async def wait_for(self, count: int = 1) -> None:
        """Wait until so many answers are being kept back.

        Cancellation: nothing is lost.
        """
        await checkpoint()
        while len(self._waiting) < count:
            if self._changed is None:
                self._changed = Event()
            await self._changed.wait()

    def release(self) -> None:
        """Send what was kept back, and hold nothing more. Idempotent."""
        self._forget(self)
        waiting, self._waiting = self._waiting, []
        for send in waiting:
            send()

    def add(self, send: Callable[[], None]) -> None:
        """Keep an answer back (called by the engine)."""
        self._waiting.append(send)
        if self._changed is not None:
            self._changed.set()
            self._changed = None


@attrs.define(eq=False)
class Faults:
    """The switches of one engine; all off at first."""

    _sessions: Collection[Session]

    # --- answers
    ignored: set[str] = attrs.Factory(set[str])
    """Request types that are dropped as if they had never arrived."""
    unanswered: set[str] = attrs.Factory(set[str])
    """Request types that are acted on and never answered."""
    duplicated: set[str] = attrs.Factory(set[str])
    """Request types that are answered twice."""
    answers: dict[str, tuple[bool, str]] = attrs.Factory(dict[str, tuple[bool, str]])
    """Request types that are not acted on, and the ``(ok, result)`` that they are answered with."""
    permute: bool = True
    """0.5 only: answers overtake each other, and files interleave. Off: everything in the order of its making."""
    early_events: bool = False
    """The first event of a process comes before the answer to its launch."""

    # --- capacity
    refuse_launches: int = 0
    """So many of the next launches are refused for want of capacity."""
    capacity: int | None = None
    """Launches above so many live processes are refused for want of capacity."""
    refusal: str = SATURATED
    """What a refused launch is answered with."""
    saturated: bool = False
    """0.5 only: everything but ``list_processes`` and ``terminate_process`` is refused for want of capacity.

    What has no answer, a signal or a part of a file, is dropped with a text frame that does not say what it is about.
    A connection whose first request is refused is ended, without a close frame. Observed on engine 0.5.2.
    """

    # --- the connection
    stall_handshakes: bool = False
    """New connections are accepted, and their handshake is never answered."""
    refuse_handshakes: tuple[int, bytes] | None = None
    """HTTP status and body that new connections are refused with."""
    drop_on: set[str] = attrs.Factory(set[str])
    """Request types on whose arrival the connection is dropped, before they are acted on."""
    drop_after_bytes: int | None = None
    """The connection that sends the n-th byte from now is cut behind it; then the switch is off again."""
    half_open: bool = False
    """Nothing is read or sent any more on any connection, not even a pong; what arrives meanwhile is lost."""

    # --- messages
    extra_keys: bool = False
    """Every message has a key that nobody knows."""
    trailing_bytes: bytes = b""
    """What follows the message in each frame."""
    invalid_text: bool = False
    """The text of events is not UTF-8: each value begins with the byte FF."""
    rewrite: Rewrite | None = None
    """Applied to every message before it leaves."""
    late_events: list[tuple[str, str]] = attrs.Factory(list[tuple[str, str]])
    """Kinds and values of events that are sent behind every terminal event."""
    damage_files: FileDamage | None = None
    """What is wrong with the files that programs send."""

    _holds: list[Hold] = attrs.field(factory=list[Hold], init=False)

    # --- things to do now ------------------------------------------------------------------------------------------

    def hold(self, *types: str) -> Hold:
        """Keep the answers to these requests back from now on; ``with faults.hold("ping"):`` ends it.

        The requests are acted on. On 0.5 nothing else waits (but the events of a process wait for the answer to its
        launch); on 0.4 the session is blocked, as by a slow handler: nothing at all moves on that connection.
        """
        hold = Hold(types, self._forget_hold)
        self._holds.append(hold)
        return hold

    def drop_connections(self) -> None:
        """End every connection without a close frame."""
        for session in list(self._sessions):
            session.drop()

    def send_close(self, code: int = 1001, reason: str = "") -> None:
        """Send a close frame on every connection."""
        for session in self._sessions:
            session.protocol.close(code, reason)
            session.wake.set()

    def send_bytes(self, data: bytes) -> None:
        """Send raw bytes, which are no frame, on every connection."""
        for session in self._sessions:
            session.protocol.send_bytes(data)
            session.wake.set()

    def send_payload(self, payload: bytes) -> None:
        """Send one binary frame with any payload on every connection."""
        for session in self._sessions:
            session.protocol.send_payload(payload)
            session.wake.set()

    def send_message(self, message: dict[str, Any]) -> None:
        """Send any map as a message on every connection."""
        self.send_payload(msgpack.packb(message))

    def send_text(self, text: str) -> None:
        """Send a text frame on every connection."""
        for session in self._sessions:
            session.send_text(text)

    def send_event(self, process_id: str, kind: str, value: str) -> None:
        """Send an event of any process, known or not, on every connection."""
        self.send_message({"type": "process_event", "process_id": process_id, "event": kind, "value": value})

    def abort_streams(self) -> None:
        """Lose every live stream, as 0.5 does when it loses a worker.

        Each attached process costs its connection one text frame ``stream aborted``, which names nobody; the process
        runs on unseen.
        """
        for session in self._sessions:
            session.abort_streams()

    # --- for the engine --------------------------------------------------------------------------------------------

    def _forget_hold(self, hold: Hold) -> None:
        if hold in self._holds:
            self._holds.remove(hold)

    def find_hold(self, request_type: str) -> Hold | None:
        """Give the hold that an answer falls under."""
        if not self._holds:
            return None
        return next((hold for hold in self._holds if request_type in hold.types), None)

    def refuses_launch(self, live: int) -> bool:
        """Decide on one launch; counts down ``refuse_launches``."""
        if self.refuse_launches > 0:
            self.refuse_launches -= 1
            return True
        return self.capacity is not None and live >= self.capacity

    def alter(self, payload: bytes) -> bytes | None:
        """Apply the faults of messages to one of them."""
        if not (self.extra_keys or self.invalid_text or self.rewrite is not None):
            return payload + self.trailing_bytes
        fields: dict[str, Any] = msgpack.unpackb(payload)
        if self.extra_keys:
            fields["x_unknown"] = [1, {"nested": None}]
        if self.rewrite is not None:
            rewritten = self.rewrite(fields)
            if rewritten is None or isinstance(rewritten, bytes):
                return rewritten
            fields = rewritten
        if self.invalid_text and isinstance(fields.get("value"), str):
            return _pack_with_invalid_text(fields) + self.trailing_bytes
        return msgpack.packb(fields) + self.trailing_bytes

    def damage(self, chunks: list[FileChunk]) -> Iterable[FileChunk]:
        """Apply the fault of files to one file."""
        match self.damage_files:
            case FileDamage.WRONG_HASH:
                return [attrs.evolve(chunk, file_hash="0" * 64) for chunk in chunks]
            case FileDamage.CORRUPT:
                first = chunks[0].chunk_data
                return [attrs.evolve(chunks[0], chunk_data=bytes([first[0] ^ 1]) + first[1:]), *chunks[1:]]
            case FileDamage.NO_FIRST_CHUNK:
                return chunks[1:]
            case FileDamage.NO_LAST_CHUNK:
                return chunks[:-1]
            case FileDamage.OUT_OF_ORDER:
                return reversed(chunks)
            case _:
                return chunks


def _pack_with_invalid_text(fields: dict[str, Any]) -> bytes:
    # Without the bin type bytes are packed as text, whatever they hold.
    damaged = {**fields, "value": b"\xff" + fields["value"].encode()}
    return msgpack.packb(damaged, use_bin_type=False)
