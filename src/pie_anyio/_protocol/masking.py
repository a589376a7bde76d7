# SPDX-License-Identifier: Apache-2.0
"""Masking: every byte that a client sends is XORed with a key of four bytes (RFC 6455, section 5.3).

Python has no operation for that, and it is where nearly all the time of an upload goes. There are two ways with what it
has: one big integer, and one table per byte of the key. A compiled routine is far quicker than both; whoever makes a
connection may bring one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final, TypeAlias

Mask: TypeAlias = Callable[[bytes | memoryview, bytes], bytes]
"""XORs a payload with a key of four bytes, repeated."""

_from_bytes: Final = int.from_bytes
_BY_TABLE: Final = 2048  # below, preparing the tables' work costs more than it saves


def mask(payload: bytes | memoryview, key: bytes) -> bytes:
    """XOR a payload with a four-byte key, without a Python-level loop over its bytes."""
    size = len(payload)
    if size >= _BY_TABLE:
        return _mask_by_table(bytes(payload), key)
    pad = (key * ((size >> 2) + 1))[:size]
    return (_from_bytes(payload, "little") ^ _from_bytes(pad, "little")).to_bytes(size, "little")


def turn(key: bytes, offset: int) -> bytes:
    """Give the key that continues a payload of which `offset` bytes have been masked."""
    offset &= 3
    return key[offset:] + key[:offset]


def is_mask(candidate: Mask) -> bool:
    """Tell whether a routine of somebody else's does what :func:`mask` does, for all the forms that it is used in."""
    key, probe = b"\x01\xa2\x33\xf4", bytes(range(251)) * 2
    try:
        return all(
            candidate(payload, key) == mask(payload, key)
            for payload in (b"", probe[:1], probe[:37], probe, memoryview(probe)[3:])
        )
    except Exception:  # noqa: BLE001 - whatever it does, it is not what is wanted
        return False


def _mask_by_table(payload: bytes, key: bytes) -> bytes:
    # Every fourth byte meets the same byte of the key, and translate() goes through a table as fast as C does.
    out = bytearray(len(payload))
    for lane in range(4):
        out[lane::4] = payload[lane::4].translate(_table(key[lane]))
    return bytes(out)


@cache  # at most 256 of 256 bytes each
def _table(value: int) -> bytes:
    return bytes(index ^ value for index in range(256))
