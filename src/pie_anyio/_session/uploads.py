# SPDX-License-Identifier: Apache-2.0
"""Sending large content in chunks: programs to the engine, files to processes.

Content is read piece by piece, so an upload never has to fit into memory. Transfers of equal content on one connection
would destroy each other in the engine, which keys them by hash, so they take turns (0.4 section 6.2, 0.5 alike).
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Final, Self, TypeAlias, cast

import anyio
import attrs
import blake3
from anyio import to_thread
from anyio.lowlevel import checkpoint

from .._exceptions import ConnectionLost, InvalidRequest, TransferError
from .._flow.slots import ReplySlot
from .._protocol.messages import CHUNK_BYTES, AddProgram, TransferFile
from .._protocol.outbox import Lane
from .._protocol.transfer import count_chunks, keep_freed_memory
from .pumps import Link
from .refusals import engine_error
from .session import Session

ContentLike: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str]
_INLINE_HASH: Final = 1 << 20  # below, hashing takes less than handing it to a thread
_HASH_STEP: Final = 1 << 20
_BLOCK: Final = 4 * CHUNK_BYTES  # what is read of a file at a time


@attrs.frozen
class Content:
    """Bytes in memory, or a file that is read when needed."""

    source: bytes | Path
    size: int
    digest: str

    @property
    def chunks(self) -> int:
        """Number of chunks on the wire."""
        return count_chunks(self.size)


async def open_content(source: ContentLike) -> Content:
    """Measure and hash content without holding it all.

    Raises:
        InvalidRequest: the file cannot be read.

    Cancellation: has no effect beyond a hash that is computed for nothing.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        if len(data) <= _INLINE_HASH:
            return Content(data, len(data), blake3.blake3(data).hexdigest())
        digest = await to_thread.run_sync(lambda: blake3.blake3(data).hexdigest(), abandon_on_cancel=True)
        return Content(data, len(data), digest)
    try:
        path = Path(source).expanduser()  # noqa: ASYNC240 - looks at the environment, not at the disk
        size, digest = await to_thread.run_sync(_hash_file, path, abandon_on_cancel=True)
    except (OSError, RuntimeError, TypeError, ValueError) as exc:
        # Beside what a file system says: no home to expand ~ to, a NUL in the path, or no path at all.
        msg = f"cannot read {source!r}: {getattr(exc, 'strerror', None) or exc}; give bytes, or the path of a file"
        raise InvalidRequest(msg) from exc
    return Content(path, size, digest)


def _hash_file(path: Path) -> tuple[int, str]:
    hasher, size = blake3.blake3(), 0
    buffer = memoryview(bytearray(_HASH_STEP))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            size += count
    return size, hasher.hexdigest()


class ChunkReader:
    """Gives content chunk by chunk; a file is read several chunks at a time, since each visit to a thread costs."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._file: anyio.AsyncFile[bytes] | None = None
        self._block = memoryview(b"" if isinstance(content.source, Path) else content.source)
        self._position = 0

    async def __aenter__(self) -> Self:
        if self._content.chunks > 1:
            keep_freed_memory()
        if isinstance(self._content.source, Path):
            try:
                self._file = await anyio.open_file(self._content.source, "rb")
            except OSError as exc:
                raise self._unreadable(exc) from exc
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._file is not None:
            # Closing a file that was only read cannot block for long; a thread would need a shield.
            self._file.wrapped.close()

    def _unreadable(self, exc: OSError) -> TransferError:
        return TransferError(
            f"{os.fsdecode(self._content.source)} can no longer be read: {exc.strerror or exc}"
        )

    async def read(self) -> bytes:
        """Give the next chunk, as a view where that saves copying it; empty at the end."""
        if self._position % _BLOCK == 0:
            if self._file is None:
                await checkpoint()  # nothing else here waits while there is room for more
            else:
                await self._read_block(self._file)
        piece = self._block[self._position : self._position + CHUNK_BYTES]
        self._position += len(piece)
        return cast("bytes", piece)

    async def _read_block(self, file: anyio.AsyncFile[bytes]) -> None:
        try:
            self._block = memoryview(await to_thread.run_sync(_read, file.wrapped))
        except OSError as exc:
            raise self._unreadable(exc) from exc
        self._position = 0


def _read(file: IO[bytes]) -> bytes:
    return file.read(_BLOCK)


@asynccontextmanager
async def _turn(session: Session, digest: str) -> AsyncGenerator[None]:
    """Wait until no other transfer of equal content is under way on this connection."""
    lock = session.transfers.setdefault(digest, anyio.Lock())
    try:
        async with lock:
            yield
    finally:
        if not lock.statistics().tasks_waiting and not lock.locked():
            session.transfers.pop(digest, None)


async def upload(session: Session, content: Content, manifest: str, *, force: bool) -> None:
    """Upload a program; returns when the engine has installed it.

    Raises:
        EngineError: the engine refused it; sending stops as soon as it says so.
        TransferError: the file changed while it was being sent.

    Cancellation: chunks that have not left are withdrawn, and the engine is told to forget the rest.
    """
    await session.ready()
    async with _turn(session, content.digest):
        ok, result = await _upload(session, content, manifest, force)
    if not ok:
        raise engine_error("install_program", result)


async def _upload(session: Session, content: Content, manifest: str, force: bool) -> tuple[bool, str]:
    ok, result = await _upload_once(session, content, manifest, force)
    if not ok and result.startswith("Out-of-order chunk") and "got 0" in result:
        # An earlier upload of the same bytes was cut off: the engine has now forgotten it (0.4 section 6.2).
        return await _upload_once(session, content, manifest, force)
    return ok, result


async def _upload_once(session: Session, content: Content, manifest: str, force: bool) -> tuple[bool, str]:
    link = session.link
    slot: ReplySlot[tuple[bool, str]] = ReplySlot()
    corr_id = link.protocol.begin_upload(slot)
    try:
        async with ChunkReader(content) as reader:
            for index in range(content.chunks):
                data = await reader.read()
                _check_length(content, index, data)
                with suppress(ConnectionLost):
                    # The slot's own error knows better whether any of it has left this machine.
                    await _wait_for_room(link)
                chunk = AddProgram(content.digest, manifest, force, index, content.chunks, data)
                if not link.protocol.upload_chunk(corr_id, chunk):
                    break
                link.flush()
        return await slot.wait()
    finally:
        if not slot.done:
            link.protocol.abandon(corr_id)
            link.flush()


async def transfer(session: Session, process_id: str, content: Content) -> None:
    """Send a file to an attached process; returns when the last chunk is on its way. No engine ever answers this.

    Raises:
        TransferError: the file changed while it was being sent.
        ConnectionLost: the connection went away; whether the file arrived is unknown.

    Cancellation: a file that was sent in part is made invalid, so the process does not receive it.
    """
    await session.ready()
    await session.settled()  # engines drop what is for a process that this connection is not attached to
    async with _turn(session, content.digest):
        link = session.link
        sent = 0
        try:
            async with ChunkReader(content) as reader:
                for index in range(content.chunks):
                    data = await reader.read()
                    _check_length(content, index, data)
                    await _wait_for_room(link)
                    chunk = TransferFile(process_id, content.digest, index, content.chunks, data)
                    link.protocol.notify(chunk, lane=Lane.BULK)
                    sent += 1
                    link.flush()
                # Who sends many small files waits for room as well.
                await _wait_for_room(link)
        finally:
            if 0 < sent < content.chunks and link.protocol.is_open:
                # A chunk out of order makes the engine forget the file; otherwise it would spoil the next one.
                wrong = TransferFile(process_id, content.digest, content.chunks, content.chunks, b"")
                link.protocol.notify(wrong, lane=Lane.BULK)
                link.flush()


async def _wait_for_room(link: Link) -> None:
    """Wait until another chunk may be queued.

    Raises:
        ConnectionLost: the connection went away, now or before.
    """
    if link.bulk.is_shut or not link.protocol.is_open:
        await link.bulk.wait_below()


def _check_length(content: Content, index: int, data: bytes) -> None:
    expected = min(CHUNK_BYTES, content.size - index * CHUNK_BYTES)
    if len(data) != expected:
        msg = f"{content.source if isinstance(content.source, Path) else 'the content'} changed while it was being sent"
        raise TransferError(msg)
