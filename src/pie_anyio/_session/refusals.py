# SPDX-License-Identifier: Apache-2.0
"""What an engine's refusals mean: error texts of both generations to exceptions that say what to do."""

from __future__ import annotations

from typing import Final

from .._exceptions import EngineBusy, EngineError, ProcessNotFound, ProgramNotFound
from .._protocol.messages import BUSY, GONE

_HINTS: Final[tuple[tuple[tuple[str, ...], type[EngineError], str], ...]] = (
    (BUSY, EngineBusy, "the engine has no capacity right now: try again later, or with fewer at a time"),
    (
        ("no program named", "program ", "Program not found", "Manifest not found", "Failed to download"),
        ProgramNotFound,
        "upload it first with install_program",
    ),
    (
        (GONE, "Cannot attach"),
        ProcessNotFound,
        "it has ended, never existed, or is attached to another connection",
    ),
    (("Permission denied",), ProcessNotFound, "it belongs to another user"),
    (
        ("First chunk index must be 0",),
        EngineError,
        # 0.5 keeps the refusal of any but the last chunk to itself and answers the last one with this.
        "an earlier part was refused without a word: most likely the upload is larger than the engine's max_upload_mb",
    ),
    (("Invalid process",), ProcessNotFound, "a process id looks like 0b7c9a52-6d0e-4b39-8f0e-2f1f3c1f7a11"),
)


def engine_error(request: str, detail: str, *, about: str = "") -> EngineError:
    """Make the exception for an answer with ``ok=false``."""
    subject = f"{request} {about}".rstrip()
    for prefixes, cls, hint in _HINTS:
        if detail.startswith(prefixes):
            return cls(f"{subject}: {detail} ({hint})", request=request, detail=detail)
    return EngineError(f"{subject}: {detail}", request=request, detail=detail)
