# SPDX-License-Identifier: Apache-2.0
"""What the proofs of cancellation share."""

from __future__ import annotations

from pathlib import Path

import pytest

MANIFEST = '[package]\nname = "up"\nversion = "0.1.0"\n'
WASM = b"\0asm" + bytes(300_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a program on disk."""
    (tmp_path / "p.wasm").write_bytes(WASM)
    (tmp_path / "Pie.toml").write_text(MANIFEST, encoding="utf-8")
    return tmp_path
