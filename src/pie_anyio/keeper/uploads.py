# SPDX-License-Identifier: Apache-2.0
"""Programs and files from clients, put together before they go on: an engine wants its pieces in one go."""

from __future__ import annotations

import attrs
import blake3

from ._wire import messages

_OPEN: int = 64  # contents that one client sends at the same time


class UploadRefused(Exception):
    """A piece was refused; the text is for the client."""


@attrs.define(eq=False)
class Budget:
    """Bytes that all incomplete uploads share."""

    limit: int
    used: int = 0


@attrs.define(eq=False)
class _Upload:
    total: int
    first: messages.AddProgram | messages.TransferFile
    parts: list[bytes] = attrs.Factory(list[bytes])
    size: int = 0


@attrs.frozen
class Content:
    """What the pieces amounted to."""

    data: bytes
    first: messages.AddProgram | messages.TransferFile
    """The piece that began it; of a program it has the manifest."""


class Uploads:
    """The incomplete uploads of one client, by hash, as engines keep them."""

    def __init__(self, limit: int, budget: Budget) -> None:
        self._limit = limit
        self._budget = budget
        self._open: dict[tuple[str, str], _Upload] = {}

    def add(self, chunk: messages.AddProgram | messages.TransferFile) -> Content | None:
        """Take a piece; give the content where it was the last one.

        Raises:
            UploadRefused: it does not fit; what there was is forgotten.
        """
        program = isinstance(chunk, messages.AddProgram)
        key = (chunk.type, chunk.program_hash if isinstance(chunk, messages.AddProgram) else chunk.file_hash)
        upload = self._open.get(key)
        if upload is None:
            upload = self._begin(key, chunk)
        try:
            self._take(upload, chunk)
            if len(upload.parts) < upload.total:
                return None
            data = b"".join(upload.parts)
            if blake3.blake3(data).hexdigest() != key[1]:
                raise UploadRefused(f"{'Program' if program else 'File'} hash mismatch")
        except UploadRefused:
            self._drop(key)
            raise
        self._drop(key)
        return Content(data, upload.first)

    def _begin(self, key: tuple[str, str], chunk: messages.AddProgram | messages.TransferFile) -> _Upload:
        if chunk.chunk_index != 0:
            raise UploadRefused("First chunk index must be 0")
        if chunk.total_chunks < 1:
            raise UploadRefused("Upload must have at least one chunk")
        if len(self._open) >= _OPEN:
            raise UploadRefused(f"the keeper takes at most {_OPEN} uploads of one client at the same time")
        upload = self._open[key] = _Upload(chunk.total_chunks, chunk)
        return upload

    def _take(self, upload: _Upload, chunk: messages.AddProgram | messages.TransferFile) -> None:
        if chunk.total_chunks != upload.total:
            raise UploadRefused(f"Chunk count mismatch: expected {upload.total}, got {chunk.total_chunks}")
        if chunk.chunk_index != len(upload.parts):
            raise UploadRefused(f"Out-of-order chunk: expected {len(upload.parts)}, got {chunk.chunk_index}")
        # An empty piece counts too: a list of nothing takes memory as well.
        size = len(chunk.chunk_data) + 64
        if upload.size + size > self._limit or self._budget.used + size > self._budget.limit:
            raise UploadRefused(
                f"the upload is larger than the keeper takes ({self._limit} bytes, and "
                f"{self._budget.limit} of all clients together)"
            )
        upload.parts.append(chunk.chunk_data)
        upload.size += size
        self._budget.used += size

    def _drop(self, key: tuple[str, str]) -> None:
        self._budget.used -= self._open.pop(key).size

    def clear(self) -> None:
        """Forget everything that is incomplete."""
        for key in list(self._open):
            self._drop(key)
