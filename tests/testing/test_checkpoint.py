# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from pie_anyio.testing.checkpoint import write_checkpoint


def index_of(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file and where the data begin."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)), 8 + length


def plane(path: Path, name: str) -> bytes:
    """Return the bytes of one tensor."""
    index, base = index_of(path)
    start, end = index[name]["data_offsets"]
    with path.open("rb") as file:
        file.seek(base + start)
        return file.read(end - start)


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write one checkpoint with a seed for the whole module."""
    folder = tmp_path_factory.mktemp("seeded")
    write_checkpoint(folder, seed=7)
    return folder


def test_writes_the_four_files_into_a_new_folder(tmp_path: Path) -> None:
    """A missing folder is made, and nothing but the four files appears."""
    write_checkpoint(tmp_path / "a" / "b")
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_tensors_tile_the_file_exactly(seeded: Path) -> None:
    """Offsets follow one another without gap, fit shape and type, and end where the file ends."""
    path = seeded / "model.safetensors"
    index, base = index_of(path)
    at = 0
    for entry in index.values():
        start, end = entry["data_offsets"]
        assert start == at
        assert end - start == math.prod(entry["shape"]) * {"BF16": 2, "U32": 4}[entry["dtype"]]
        at = end
    assert base % 8 == 0
    assert path.stat().st_size == base + at


def test_without_a_seed_all_is_zero_and_the_file_sparse(tmp_path: Path) -> None:
    """Zero weights take almost no room on disk."""
    write_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    assert path.stat().st_blocks * 512 < 1_000_000 < path.stat().st_size
    assert not any(plane(path, "model.language_model.layers.0.mlp.up_proj.weight"))


def test_the_same_seed_gives_the_same_weights(seeded: Path, tmp_path: Path) -> None:
    """Weights are a function of the seed alone."""
    write_checkpoint(tmp_path / "same", seed=7)
    write_checkpoint(tmp_path / "other", seed=8)
    name = "model.safetensors"
    assert (tmp_path / "same" / name).read_bytes() == (seeded / name).read_bytes()
    assert (tmp_path / "other" / name).read_bytes() != (seeded / name).read_bytes()


def test_only_printable_tokens_have_an_embedding(seeded: Path) -> None:
    """Tokens outside printable ASCII keep rows of zeros, in all three planes."""
    for part, row in (("weight", 128), ("scales", 8), ("biases", 8)):
        data = plane(seeded / "model.safetensors", f"model.language_model.embed_tokens.{part}")
        filled = {at // row for at in range(0, len(data), row) if any(data[at : at + row])}
        assert filled == set(range(0x20, 0x7F))


def test_quantised_weights_are_centred_on_zero(seeded: Path) -> None:
    """The bias of a group is the scale times minus the middle code."""
    path = seeded / "model.safetensors"
    stem = "model.language_model.layers.3.self_attn.o_proj"
    scale, bias = (
        struct.unpack("<f", b"\0\0" + plane(path, f"{stem}.{part}")[:2])[0] for part in ("scales", "biases")
    )
    assert bias == pytest.approx(-7.5 * scale, rel=0.01)


def test_each_byte_is_a_token_of_its_own_number(tmp_path: Path) -> None:
    """ASCII characters are their own tokens, and the markers follow the bytes without a gap."""
    write_checkpoint(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(256))
    assert vocabulary["A"] == ord("A")
    assert vocabulary["\u0120"] == ord(" ")  # how byte-level vocabularies write a blank
    assert [token["id"] for token in tokenizer["added_tokens"]] == list(range(256, 265))
