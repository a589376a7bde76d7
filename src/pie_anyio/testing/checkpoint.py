# SPDX-License-Identifier: Apache-2.0
"""A model checkpoint made of nothing, for running the real engine without a model download.

The engine insists on a checkpoint, and real ones weigh gigabytes. It also ships the description of a
tiny architecture, ``qwen35-tiny-u4g64-kv-bf16`` (four layers, 256 wide), and any checkpoint of the
right names and shapes satisfies that one. This module writes such a checkpoint with the standard
library alone. It knows nothing: with a seed its logits are reproducible noise, without one they are
all zero. What it exercises is everything around the knowledge: upload, compile, scheduling, every
layer of a forward pass, sampling, streaming.

Everything here was established against engine 0.5.2 (generation 0.5).
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["SKU", "write_checkpoint"]

SKU: Final = "qwen35-tiny-u4g64-kv-bf16"
"""The architecture the files describe; the engine is told it by name."""

_WIDTH: Final = 256
_VOCABULARY: Final = 248_320
_GROUP: Final = 64
"""Weights that share one scale and one bias."""

_CODES_PER_WORD: Final = 8
"""Four-bit codes in a 32-bit word."""

_PRINTABLE: Final = range(0x20, 0x7F)


class _Plane(NamedTuple):
    """One tensor of the file: its name, element type, shape, and what a seed fills it with."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    fill: float | None
    """The constant every element takes; None means random bits."""

    @property
    def size(self) -> int:
        """Bytes the tensor takes in the file."""
        return math.prod(self.shape) * {"BF16": 2, "U32": 4}[self.dtype]


def write_checkpoint(folder: Path, *, seed: int | None = None) -> None:
    """Write a synthetic checkpoint of `SKU` into ``folder``, creating the folder if need be.

    Four files appear: ``config.json``, ``model.safetensors``, ``tokenizer.json`` and
    ``tokenizer_config.json``. With ``seed=None`` every weight is zero and the weights file is sparse
    (39 MB long, some KiB on disk); with a seed the weights are pseudo-random, a function of the seed
    alone, and the model's most likely tokens are printable ASCII.

    Existing files of those names are overwritten. Raises `OSError` if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Two keys are enough: the dimensions come from the SKU, not from this file.
    _write_json(
        folder / "config.json",
        {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5"},
    )
    _write_json(folder / "tokenizer.json", _tokenizer())
    _write_json(folder / "tokenizer_config.json", _TOKENIZER_CONFIG)
    _write_weights(folder / "model.safetensors", seed)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


# --- weights ----------------------------------------------------------------------------------


def _constant(name: str, value: float, *shape: int) -> Iterator[_Plane]:
    yield _Plane(name, "BF16", shape, value)


def _quantised(stem: str, rows: int, columns: int, *, step: float = 0.1) -> Iterator[_Plane]:
    """Yield the three planes of a 4-bit matrix: weight = code * scale + bias, per group of 64.

    The engine would quantise plain bf16 weights only with a tool that its wheel does not contain, so
    the planes must come quantised already, and under the names that the transformers library uses:
    for other spellings of the same layout the engine has no loader on this device.
    """
    yield _Plane(f"{stem}.weight", "U32", (rows, columns // _CODES_PER_WORD), None)
    yield _Plane(f"{stem}.scales", "BF16", (rows, columns // _GROUP), step)
    # Codes run from 0 to 15: half of that, negated, centres the weights on zero.
    yield _Plane(f"{stem}.biases", "BF16", (rows, columns // _GROUP), -7.5 * step)


def _linear_attention(prefix: str) -> Iterator[_Plane]:
    """Yield a gated-delta-net mixer: 8 heads, 128 values each, a convolution over 4 positions."""
    yield from _quantised(f"{prefix}.in_proj_qkv", 2048, _WIDTH)
    yield from _quantised(f"{prefix}.in_proj_z", 1024, _WIDTH)
    yield from _quantised(f"{prefix}.in_proj_b", 8, _WIDTH)
    yield from _quantised(f"{prefix}.in_proj_a", 8, _WIDTH)
    yield from _constant(f"{prefix}.conv1d.weight", 0.25, 2048, 1, 4)
    yield from _constant(f"{prefix}.dt_bias", 0.0, 8)
    # The decay per position is exp(-exp(A_log) * ...): anything near zero here forgets the beginning
    # of a prompt within a few tokens.
    yield from _constant(f"{prefix}.A_log", -4.0, 8)
    # Unlike the other norms this one is not stored as the difference from one.
    yield from _constant(f"{prefix}.norm.weight", 1.0, 128)
    yield from _quantised(f"{prefix}.out_proj", _WIDTH, 1024)


def _full_attention(prefix: str) -> Iterator[_Plane]:
    """Yield a softmax-attention mixer: 4 query heads of 64, 2 key-value heads."""
    # Each query head is followed by its output gate, hence twice 4 * 64 rows.
    yield from _quantised(f"{prefix}.q_proj", 512, _WIDTH)
    yield from _quantised(f"{prefix}.k_proj", 128, _WIDTH)
    yield from _quantised(f"{prefix}.v_proj", 128, _WIDTH)
    yield from _quantised(f"{prefix}.o_proj", _WIDTH, 256)
    # Sharp attention: random queries and keys of unit size would average all positions into nothing.
    yield from _constant(f"{prefix}.q_norm.weight", 3.0, 64)
    yield from _constant(f"{prefix}.k_norm.weight", 3.0, 64)


def _planes() -> Iterator[_Plane]:
    """Yield every tensor the architecture asks for; the output head is the embedding again."""
    root = "model.language_model"
    yield from _quantised(f"{root}.embed_tokens", _VOCABULARY, _WIDTH, step=0.2)
    yield from _constant(f"{root}.norm.weight", 0.0, _WIDTH)
    for layer in range(4):
        prefix = f"{root}.layers.{layer}"
        yield from _constant(f"{prefix}.input_layernorm.weight", 0.0, _WIDTH)
        yield from _constant(f"{prefix}.post_attention_layernorm.weight", 0.0, _WIDTH)
        if layer == 3:
            yield from _full_attention(f"{prefix}.self_attn")
        else:
            yield from _linear_attention(f"{prefix}.linear_attn")
        # Kept small beside the mixers: it sees one token only, and at equal scale the last token of a
        # prompt would drown all that came before it.
        yield from _quantised(f"{prefix}.mlp.gate_proj", 512, _WIDTH, step=0.02)
        yield from _quantised(f"{prefix}.mlp.up_proj", 512, _WIDTH, step=0.02)
        yield from _quantised(f"{prefix}.mlp.down_proj", _WIDTH, 512, step=0.02)


def _write_weights(path: Path, seed: int | None) -> None:
    """Write a safetensors file: header length (8 bytes), JSON header, then the tensors' bytes."""
    planes = tuple(_planes())
    index: dict[str, object] = {}
    end = 0
    for plane in planes:
        start, end = end, end + plane.size
        index[plane.name] = {"dtype": plane.dtype, "shape": plane.shape, "data_offsets": [start, end]}
    header = json.dumps(index).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the data by padding the header
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        if seed is not None:
            source = random.Random(seed)
            for plane in planes:
                file.write(_contents(plane, source))
        file.truncate(8 + len(header) + end)


def _contents(plane: _Plane, source: random.Random) -> bytes:
    if "embed_tokens" not in plane.name:
        return _fill(plane, plane.size, source)
    # Only the printable tokens get a row. The head is the embedding too, so all others keep a logit
    # of exactly zero, and text drawn from the model can be read in a terminal.
    row = plane.size // plane.shape[0]
    rows = bytearray(plane.size)
    for token in _PRINTABLE:
        rows[token * row : (token + 1) * row] = _fill(plane, row, source)
    return bytes(rows)


def _fill(plane: _Plane, size: int, source: random.Random) -> bytes:
    if plane.fill is None:
        return source.randbytes(size)
    # bf16 is the upper half of a little-endian float32.
    return struct.pack("<f", plane.fill)[2:] * (size // 2)


# --- tokenizer --------------------------------------------------------------------------------

_MARKERS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)

_TOKENIZER_CONFIG: Final = {
    "eos_token": "<|im_end|>",
    "chat_template": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}

_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pre-tokenisation pattern of the Qwen family; the engine recognises the profile by it."""


def _byte_alphabet() -> dict[str, int]:
    """Return the byte-level alphabet: one visible character per byte, numbered by the byte.

    Bytes that are visible Latin-1 characters stand for themselves, the others borrow characters from
    U+0100 on, in order; that is the convention of all byte-level BPE vocabularies.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(0x100 + hidden.index(b)) if b in hidden else chr(b): b for b in range(256)}


def _byte_level() -> dict[str, object]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def _tokenizer() -> dict[str, object]:
    """Describe a tokenizer without merges: a token per byte, then the chat markers.

    The markers follow the 256 bytes without a gap, since the engine refuses gaps; their real ids,
    from 151643 on, are therefore out of reach. A lone byte-level pre-tokenizer is refused as well:
    it must be preceded by the family's split.
    """
    split = {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": marker, "special": True, **flags}
            for number, marker in enumerate(_MARKERS, start=256)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, _byte_level()]},
        "post_processor": _byte_level(),
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": _byte_alphabet(),
            "merges": [],
        },
    }
