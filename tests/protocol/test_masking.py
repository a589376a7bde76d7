# SPDX-License-Identifier: Apache-2.0
"""Masking: the quick ways against a loop over the bytes, and the check on routines from elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protocol.frames import xor

from pie_anyio._protocol import masking

KEYS = st.binary(min_size=4, max_size=4)
SIZES = [0, 1, 2, 3, 4, 5, 125, 126, 2047, 2048, 2049, 65535, 65536, 65537]


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=100), KEYS)
def test_masking_is_xor(payload: bytes, key: bytes) -> None:
    """The quick way gives what the slow one gives, for views too."""
    assert masking.mask(payload, key) == masking.mask(memoryview(payload), key) == xor(payload, key)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SIZES), st.binary(min_size=1, max_size=20), KEYS)
def test_masking_is_xor_at_every_size(size: int, pattern: bytes, key: bytes) -> None:
    """On both sides of where the other way begins, whatever is left over at the end."""
    payload = (pattern * (size // len(pattern) + 1))[:size]
    masked = masking.mask(payload, key)
    assert type(masked) is bytes
    assert masked == masking.mask(memoryview(payload), key) == xor(payload, key)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=5000), st.integers(0, 5000), KEYS)
def test_a_turned_key_continues(payload: bytes, cut: int, key: bytes) -> None:
    """Two parts, masked apart, are what the whole would be."""
    first, second = payload[:cut], payload[cut:]
    parts = masking.mask(first, key) + masking.mask(second, masking.turn(key, len(first)))
    assert parts == xor(payload, key)


def _raise(payload: Any, key: bytes) -> bytes:
    raise RuntimeError


@pytest.mark.parametrize(
    "candidate",
    [
        lambda payload, key: bytes(payload),
        lambda payload, key: masking.mask(payload, key[::-1]),
        lambda payload, key: masking.mask(payload, key)[:-1],
        lambda payload, key: None,
        _raise,
        lambda: b"",
    ],
)
def test_what_does_not_mask_is_not_taken(candidate: Any) -> None:
    """A routine that does something else, fails, or wants other arguments."""
    assert not masking.is_mask(candidate)


def test_what_masks_is_taken() -> None:
    """Also the one that is here."""
    assert masking.is_mask(masking.mask)
    assert masking.is_mask(lambda payload, key: xor(bytes(payload), key))
