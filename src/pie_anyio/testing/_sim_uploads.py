# SPDX-License-Identifier: Apache-2.0
"""How an engine puts chunks together: uploads and file transfers of one session, keyed by hash."""

from __future__ import annotations

import attrs

from .._protocol.messages import AddProgram, TransferFile
from .._types import MIB


class UploadRefused(Exception):
    """A chunk was refused; the text is the engine's answer."""


@attrs.define(eq=False)
class _Upload:
    total: int
    manifest: str
    force: bool
    parts: list[bytes] = attrs.Factory(list[bytes])
    size: int = 0


@attrs.frozen
class Content:
    """Everything that the chunks of one hash amounted to; manifest and force flag are those of the first one."""

    data: bytes
    manifest: str
    force: bool


class Assembler:
    """The unfinished content of one session."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._open: dict[str, _Upload] = {}

    def add_program(self, chunk: AddProgram) -> Content | None:
        """Take a chunk of an upload; give the content where it was the last one.

        Raises:
            UploadRefused: it does not fit; what there was is forgotten.
        """
        return self._add(chunk.program_hash, chunk, chunk.manifest, chunk.force_overwrite)

    def add_file(self, chunk: TransferFile) -> Content | None:
        """Take a chunk of a file for a process; see :meth:`add_program`."""
        return self._add(chunk.file_hash, chunk, "", False)

    def _add(self, key: str, chunk: AddProgram | TransferFile, manifest: str, force: bool) -> Content | None:
        upload = self._open.get(key)
        if upload is None:
            if chunk.chunk_index != 0:
                raise UploadRefused("First chunk index must be 0")
            upload = self._open[key] = _Upload(chunk.total_chunks, manifest, force)
        try:
            self._check(upload, chunk)
        except UploadRefused:
            del self._open[key]
            raise
        upload.parts.append(chunk.chunk_data)
        upload.size += len(chunk.chunk_data)
        if len(upload.parts) != upload.total:
            return None
        del self._open[key]
        return Content(b"".join(upload.parts), upload.manifest, upload.force)

    def _check(self, upload: _Upload, chunk: AddProgram | TransferFile) -> None:
        if chunk.total_chunks != upload.total:
            raise UploadRefused(f"Chunk count mismatch: expected {upload.total}, got {chunk.total_chunks}")
        if chunk.chunk_index != len(upload.parts):
            raise UploadRefused(f"Out-of-order chunk: expected {len(upload.parts)}, got {chunk.chunk_index}")
        if upload.size + len(chunk.chunk_data) > self._max_bytes:
            raise UploadRefused(f"upload exceeds max_upload_mb cap of {self._max_bytes // MIB} MiB")
