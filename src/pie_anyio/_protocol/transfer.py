# SPDX-License-Identifier: Apache-2.0
"""Chunked content: cutting outbound data, and putting inbound files together under limits.

Inbound files are keyed by process *and* hash: on 0.5 the chunks of two processes interleave, and equal content from
two processes has equal hashes. Sources: "Files" of both generations.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from typing import Final

import attrs
import blake3

from .._events import ReceivedFile
from .._types import Limits
from .messages import CHUNK_BYTES, FileChunk


def count_chunks(size: int) -> int:
    """Give the number of chunks for ``size`` bytes: at least one, since empty content is one empty chunk."""
    return max(1, -(-size // CHUNK_BYTES))


_KEPT: Final = 8 << 20


@cache
def keep_freed_memory() -> None:
    """Have the system's allocator keep what chunks were in, instead of giving it back each time.

    glibc returns large blocks to the system as soon as they are freed, and the system clears every page before it is
    given out again: more work than all else that is done with a chunk. What counts as large follows the largest block
    that was ever freed, so it is enough to ask for one once; it is never written to, so it takes no memory. Elsewhere
    this has no effect.
    """
    bytes(_KEPT)


class ChunkRefused(ValueError):
    """A chunk does not fit: the file that it belongs to is given up."""


@attrs.define(eq=False)
class _Download:
    total: int
    name: str | None
    parts: list[bytes] = attrs.Factory(list[bytes])
    size: int = 0
    hasher: blake3.blake3 = attrs.Factory(blake3.blake3)


class Downloads:
    """The files that are arriving on one connection."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: OrderedDict[tuple[str, str], _Download] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._open)

    def add(self, chunk: FileChunk) -> ReceivedFile | None:
        """Take one chunk; give the file where it was the last one.

        Raises:
            ChunkRefused: out of order, contradictory, over a limit, or the hash does not match.
        """
        key = (chunk.process_id, chunk.file_hash)
        download = self._open.get(key)
        if chunk.chunk_index == 0:
            # A sender that starts over starts afresh.
            self._discard(key)
            download = self._begin(key, chunk)
        if download is None:
            msg = f"chunk {chunk.chunk_index} of a file whose beginning is missing"
            raise ChunkRefused(msg)
        try:
            self._check(download, chunk)
        except ChunkRefused:
            self._discard(key)
            raise
        download.parts.append(chunk.chunk_data)
        download.hasher.update(chunk.chunk_data)
        download.size += len(chunk.chunk_data)
        self._bytes += len(chunk.chunk_data)
        if len(download.parts) < download.total:
            return None
        self._discard(key)
        if download.hasher.hexdigest() != chunk.file_hash.lower():
            msg = f"the content does not match its hash ({download.size} bytes)"
            raise ChunkRefused(msg)
        return ReceivedFile(b"".join(download.parts), download.name)

    def forget(self, process_id: str) -> None:
        """Drop what is unfinished of a process that ended."""
        if self._open:
            for key in [key for key in self._open if key[0] == process_id]:
                self._discard(key)

    def clear(self) -> None:
        """Drop everything that is unfinished."""
        self._open.clear()
        self._bytes = 0

    def _begin(self, key: tuple[str, str], chunk: FileChunk) -> _Download:
        if chunk.total_chunks < 1 or chunk.total_chunks > count_chunks(self._limits.download_bytes):
            msg = f"a file of {chunk.total_chunks} chunks exceeds the limit of {self._limits.download_bytes} bytes"
            raise ChunkRefused(msg)
        if len(self._open) >= self._limits.downloads:
            msg = f"more than {self._limits.downloads} files are arriving at the same time"
            raise ChunkRefused(msg)
        if chunk.total_chunks > 1:
            keep_freed_memory()
        download = self._open[key] = _Download(chunk.total_chunks, chunk.name)
        return download

    def _check(self, download: _Download, chunk: FileChunk) -> None:
        if chunk.total_chunks != download.total:
            msg = f"the number of chunks changed from {download.total} to {chunk.total_chunks}"
            raise ChunkRefused(msg)
        if chunk.chunk_index != len(download.parts):
            msg = f"chunk {chunk.chunk_index} arrived where {len(download.parts)} was due"
            raise ChunkRefused(msg)
        if download.size + len(chunk.chunk_data) > self._limits.download_bytes:
            msg = f"a file exceeds the limit of {self._limits.download_bytes} bytes"
            raise ChunkRefused(msg)
        if self._bytes + len(chunk.chunk_data) > self._limits.downloads_bytes:
            msg = f"unfinished files exceed the limit of {self._limits.downloads_bytes} bytes"
            raise ChunkRefused(msg)

    def _discard(self, key: tuple[str, str]) -> None:
        download = self._open.pop(key, None)
        if download is not None:
            self._bytes -= download.size
