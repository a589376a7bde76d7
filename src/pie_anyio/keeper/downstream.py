# SPDX-License-Identifier: Apache-2.0
"""One client of the keeper: what it asks, what it is owed, and how far it has come."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import attrs
from anyio import (
    BrokenResourceError,
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    Event,
    Semaphore,
    aclose_forcefully,
    create_task_group,
    move_on_after,
)
from anyio.abc import ByteStream, TaskGroup

from .._flow.wake import Wake
from .._types import Generation
from . import requests
from ._wire import KeeperProtocol, MessageReceived, PeerBroke, PeerClosed, UpgradeRequested, messages
from .store import Record, Row
from .uploads import Uploads

if TYPE_CHECKING:
    from .server import Keeper

logger: Final = logging.getLogger("pie_anyio.keeper")

_LOST: Final = (BrokenResourceError, ClosedResourceError, OSError)
_READ_BYTES: Final = 65536
_WRITE_BYTES: Final = 262_144
_BACKLOG_BYTES: Final = 1_048_576  # of what waits for a client, above which it is not read from
_WINDOW: Final = 16  # batches that may be under way without a pong


class Mark(NamedTuple):
    """A batch under way: the number of its ping, and what its pong proves to have been received."""

    number: int
    record: Record
    place: int


@attrs.define(eq=False)
class Attachment:
    """A process that this client is attached to, and the place of the last event that was sent."""

    record: Record
    place: int
    waiting: bool = True
    """There may be something to send."""


class Session:
    """One connection of one client."""

    def __init__(self, keeper: Keeper, generation: Generation, *, refusal: str = "") -> None:
        self.keeper = keeper
        self.protocol: KeeperProtocol = KeeperProtocol(generation)
        self.reader: str = ""
        """Whose place in the events of a process this connection moves."""
        self.uploads: Uploads = Uploads(keeper.limits.upload_bytes, keeper.uploads)
        self.room: Semaphore = Semaphore(keeper.limits.requests)
        """For requests that wait for the engine."""
        self.attached: dict[str, Attachment] = {}
        self._refusal = refusal
        self._upgraded = False
        self._finishing = False
        self._wake = Wake()
        self._marks: deque[Mark] = deque()
        self._batches = 0
        self._scope = CancelScope(shield=True)  # the keeper always ends it: see Keeper._dismiss
        self._sent = Event()
        self._gone = Event()

    # --- the tasks -------------------------------------------------------------------------------------------------

    async def serve(self, stream: ByteStream) -> None:
        """Serve the client until either side ends it; then close the stream.

        Cancellation: has no effect; `leave` and `drop` end it.
        """
        try:
            with self._scope:
                async with create_task_group() as tasks:
                    tasks.start_soon(self._write, stream, tasks)
                    await self._read(stream)
                    tasks.cancel_scope.cancel()
        finally:
            self.uploads.clear()
            self._gone.set()
            await aclose_forcefully(stream)

    def leave(self) -> None:
        """Send what is queued, say goodbye, and hang up; a client that does not read can hold this up."""
        if self.protocol.is_open:
            self.protocol.close(1001, "the keeper is stopping")
        self._finishing = True
        self._wake.set()

    async def gone(self) -> None:
        """Wait until the client has been hung up on.

        Cancellation: harmless.
        """
        await self._gone.wait()

    async def _read(self, stream: ByteStream) -> None:
        while True:
            while self.protocol.queued_bytes > _BACKLOG_BYTES:
                # Whoever asks and asks, and reads no answer, is not read from either.
                self._sent = Event()
                await self._sent.wait()
            data: bytes | None = None
            with move_on_after(None if self._upgraded else self.keeper.limits.handshake_seconds):
                try:
                    data = await stream.receive(_READ_BYTES)
                except (EndOfStream, *_LOST):
                    pass
            self.protocol.receive_data(data)
            # First the pongs: what follows them may be the end.
            for pong in self.protocol.pongs():
                self._acknowledge(pong.payload)
            await self._drain()
            self._wake.set()
            if data is None:
                return

    async def _drain(self) -> None:
        """Act on everything that was read, including what was read behind the handshake."""
        while events := self.protocol.events():
            for event in events:
                match event:
                    case MessageReceived(request=request, corr_id=corr_id):
                        if self.protocol.admits(request):
                            await requests.handle(self, request, corr_id)
                    case UpgradeRequested(headers=headers):
                        self._upgrade(headers)
                    case PeerClosed() | PeerBroke():
                        self._finishing = True
                    case _:
                        # What cannot be read is passed over, as 0.4 does; text frames are for engines of 0.5; and
                        # of the end the reader knows.
                        pass

    def _upgrade(self, headers: dict[str, str]) -> None:
        if self._refusal:
            self.protocol.refuse(503, self._refusal.encode())
            self._finishing = True
            return
        self.reader = headers.get("x-pie-identity", "")[:200]
        self._upgraded = True
        self.protocol.accept(authenticated=self.protocol.generation is Generation.V05)

    async def _write(self, stream: ByteStream, tasks: TaskGroup) -> None:
        try:
            while True:
                await self._wake.wait()
                while True:
                    self._fill()
                    if not self.protocol.wants_write:
                        break
                    await stream.send(self.protocol.data_to_send(_WRITE_BYTES))
                    self._sent.set()
                if self._finishing:
                    break
        except _LOST:
            pass
        tasks.cancel_scope.cancel()

    def drop(self) -> None:
        """Hang up."""
        self._scope.cancel()

    # --- answers ---------------------------------------------------------------------------------------------------

    def respond(self, corr_id: int, ok: bool, text: str) -> None:
        """Answer a request; nothing where the client has gone."""
        self.protocol.respond(corr_id, ok, text)
        self._wake.set()

    # --- events ----------------------------------------------------------------------------------------------------

    def attach(self, record: Record) -> None:
        """Send a client the events of a process from where it left off, and all that come."""
        self.attached[record.id] = Attachment(record, record.readers.get(self.reader, 0))
        self._wake.set()

    def notify(self, record: Record) -> None:
        """Note that there may be more of a process in the store."""
        attachment = self.attached.get(record.id)
        if attachment is not None:
            attachment.waiting = True
            self._wake.set()

    def _fill(self) -> None:
        """Queue a batch of events of each process, for as long as the client keeps up."""
        for attachment in [attachment for attachment in self.attached.values() if attachment.waiting]:
            if len(self._marks) >= _WINDOW or self.protocol.queued_bytes >= _WRITE_BYTES:
                return  # there is a pong to come, or something to send, and this is called again then
            self._send_batch(attachment)

    def _send_batch(self, attachment: Attachment) -> None:
        record, store = attachment.record, self.keeper.store
        rows = store.read(record, attachment.place)
        received = before = attachment.place
        first = rows[0].place if rows else record.first
        if first > before + 1:
            count = first - before - 1
            self._send_gap(record, f"{count} event{' is' if count == 1 else 's are'} no longer kept")
            received = attachment.place = first - 1
        for row in rows:
            self._send_row(record, row)
            attachment.place = row.place
            received = row.place if row.whole else received
        # Those that were not served in this turn come first in the next.
        self.attached[record.id] = self.attached.pop(record.id)
        if not rows:
            attachment.waiting = False
            if record.settled:
                received = self._send_end(record)
        if received > before:
            self._batches += 1
            self._marks.append(Mark(self._batches, record, received))
            self.protocol.ping(self._batches.to_bytes(8, "big"))

    def _send_row(self, record: Record, row: Row) -> None:
        if isinstance(row.value, bytes):
            assert row.digest is not None
            chunk = messages.FileChunk(record.id, row.digest, row.piece, row.pieces, row.value, row.name)
            self.protocol.send_message(chunk)
        elif row.kind == "gap":
            self._send_gap(record, row.value)
        else:
            self.protocol.send_event(record.id, row.kind, row.value)

    def _send_gap(self, record: Record, text: str) -> None:
        # There is no event for it, and official clients fail on kinds that they do not know.
        self.protocol.send_event(record.id, "stderr", f"[pie-anyio keeper: {text}]\n")

    def _send_end(self, record: Record) -> int:
        """Send the last event, and be done with the process; give its place."""
        kind = "return" if record.status == "returned" else "error"
        self.protocol.send_event(record.id, kind, self.keeper.store.result(record))
        del self.attached[record.id]
        return record.end

    def _acknowledge(self, payload: bytes) -> None:
        """Take a pong: everything up to its ping was received."""
        number = int.from_bytes(payload[:8], "big")
        while self._marks and self._marks[0].number <= number:
            mark = self._marks.popleft()
            self.keeper.received(mark.record, self.reader, mark.place)
