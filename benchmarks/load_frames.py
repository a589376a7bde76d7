# SPDX-License-Identifier: Apache-2.0
"""Frames of the load engine: encoded beforehand where that is possible, decoded only as far as is needed."""

from __future__ import annotations

import functools
import hashlib
import socket
from collections import deque

import msgpack

try:
    from blake3 import blake3
except ImportError:  # pragma: no cover - only file workloads need it
    blake3 = None

CHUNK = 262144
#: Of a large frame only this much of its beginning and end is kept and unmasked.
HEAD = 4096
TAIL = 256
#: One slab of a flood: large enough that the system call is cheap, small enough that a response never waits long.
SLAB = 64 * 1024

# --------------------------------------------------------------------------------------------------------------------
# Frames
# --------------------------------------------------------------------------------------------------------------------


def frame_header(length: int, first: int = 0x82) -> bytes:
    """Return the header of an unmasked frame of `length` payload bytes."""
    if length < 126:
        return bytes((first, length))
    if length < 65536:
        return bytes((first, 126)) + length.to_bytes(2, "big")
    return bytes((first, 127)) + length.to_bytes(8, "big")


def frame(payload: bytes, first: int = 0x82) -> bytes:
    """Return `payload` as one unmasked frame."""
    return frame_header(len(payload), first) + payload


def unmask(payload: bytes, key: bytes) -> bytes:
    """Return `payload` with `key` taken off."""
    size = len(payload)
    if key == b"\0\0\0\0" or not size:
        return payload
    mask = (key * ((size + 3) >> 2))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")).to_bytes(size, "little")


def response(corr_id: int, result: str, ok: bool = True) -> bytes:
    """Return a `response` message as a frame."""
    return frame(msgpack.packb({"type": "response", "corr_id": corr_id, "ok": ok, "result": result}))


def event(pid: bytes, kind: str, value: bytes) -> bytes:
    """Return a `process_event` message as a frame."""
    body = _event_prefix(pid, kind) + _str_header(len(value)) + value
    return frame_header(len(body)) + body


def _event_prefix(pid: bytes, kind: str) -> bytes:
    return (
        b"\x84\xa4type\xadprocess_event\xaaprocess_id\xd9\x24"
        + pid
        + b"\xa5event"
        + bytes((0xA0 | len(kind),))
        + kind.encode()
        + b"\xa5value"
    )


def _str_header(size: int) -> bytes:
    if size < 32:
        return bytes((0xA0 | size,))
    if size < 256:
        return bytes((0xD9, size))
    if size < 65536:
        return b"\xda" + size.to_bytes(2, "big")
    return b"\xdb" + size.to_bytes(4, "big")


def read_int(data: bytes, key: bytes) -> int | None:
    """Return the msgpack unsigned integer that follows `key`, or None where it cannot be read."""
    at = data.find(key)
    if at < 0:
        return None
    at += len(key)
    kind = data[at] if at < len(data) else 0xC0
    if kind < 0x80:
        return kind
    width = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}.get(kind)
    return None if width is None else int.from_bytes(data[at + 1 : at + 1 + width], "big")


# A launch that returns at once is the hot path of four workloads, so its two frames are cut from these.
_LAUNCHED_HEAD = b"\x84\xa4type\xa8response\xa7corr_id"
_LAUNCHED_TAIL = b"\xa2ok\xc3\xa6result\xd9\x24"
_RETURN_BODY = b"\x84\xa4type\xadprocess_event\xaaprocess_id\xd9\x24"
_RETURN_TAIL = b"\xa5event\xa6return\xa5value\xa4null"
_RETURN_HEADER = frame_header(len(_RETURN_BODY) + 36 + len(_RETURN_TAIL)) + _RETURN_BODY


def launched(corr_id: int, pid: bytes) -> bytes:
    """Return the response to a launch."""
    number = msgpack.packb(corr_id)
    return b"".join(
        (
            b"\x82",
            bytes((len(_LAUNCHED_HEAD) + len(number) + len(_LAUNCHED_TAIL) + 36,)),
            _LAUNCHED_HEAD,
            number,
            _LAUNCHED_TAIL,
            pid,
        )
    )


def returned(pid: bytes) -> bytes:
    """Return the `return` event with the value null."""
    return _RETURN_HEADER + pid + _RETURN_TAIL


# --------------------------------------------------------------------------------------------------------------------
# Files, cached: a download must not be limited by how fast the engine hashes
# --------------------------------------------------------------------------------------------------------------------

_base = hashlib.sha256(b"load engine").digest() * 32


@functools.lru_cache(maxsize=256)
def file_content(size: int, number: int) -> tuple[bytes, str]:
    """Return the content of the `number`-th file of `size` bytes, and its BLAKE3."""
    head = b"%016d" % number
    content = (head + _base * (size // len(_base) + 1))[:size]
    return content, blake3(content).hexdigest()


def file_frames(pid: bytes, size: int, number: int, named: bool) -> list[bytes | memoryview]:
    """Return the frames of one file as a list of buffers; the content itself is not copied."""
    content, digest = file_content(size, number)
    view = memoryview(content)
    total = -(-size // CHUNK)
    out: list[bytes | memoryview] = []
    for index in range(total):
        chunk = view[index * CHUNK : (index + 1) * CHUNK]
        head = b"".join(
            (
                b"\x87" if named else b"\x86",
                b"\xa4type\xa4file\xaaprocess_id\xd9\x24",
                pid,
                b"\xa9file_hash\xd9\x40",
                digest.encode(),
                b"\xabchunk_index",
                msgpack.packb(index),
                b"\xactotal_chunks",
                msgpack.packb(total),
                b"\xaachunk_data\xc6",
                len(chunk).to_bytes(4, "big"),
            )
        )
        # In 0.5 the name follows the data.
        tail = b"\xa4name\xc0" if named else b""
        out.append(frame_header(len(head) + len(chunk) + len(tail)) + head)
        out.append(chunk)
        if tail:
            out.append(tail)
    return out


# --------------------------------------------------------------------------------------------------------------------
# What is on its way out and in
# --------------------------------------------------------------------------------------------------------------------


class Flood:
    """Events of one or more processes, interleaved one by one and written slab by slab."""

    __slots__ = ("members", "per_slab", "rate", "remaining", "round", "rounds_sent", "slab", "start", "view")

    def __init__(self, members: dict[bytes, bytes], rounds: int | None, rate: float | None) -> None:
        self.members = members  # process id -> its event frame
        self.remaining = rounds
        self.rate = rate
        self.start = 0.0
        self.rounds_sent = 0
        self.view = memoryview(b"")  # what is left of the slab being written
        self.build()

    def build(self) -> None:
        """Encode one round and one slab again, after the members have changed."""
        self.round = b"".join(self.members.values())
        self.per_slab = max(1, SLAB // max(1, len(self.round)))
        self.slab = self.round * self.per_slab

    def refill(self, now: float) -> bool:
        """Take the next slab; return False where there is none (yet)."""
        rounds = self.per_slab
        if self.remaining is not None:
            rounds = min(rounds, self.remaining)
        if self.rate is not None:
            due = int((now - self.start) * self.rate) - self.rounds_sent
            rounds = min(rounds, due)
        if rounds <= 0 or not self.members:
            return False
        if self.remaining is not None:
            self.remaining -= rounds
        self.rounds_sent += rounds
        self.view = memoryview(self.slab)[: rounds * len(self.round)]
        return True


class Connection:
    """One client: what has arrived, what is to be written, and the floods it is being sent."""

    __slots__ = (
        "bulk",
        "closing",
        "events",
        "floods",
        "fragments",
        "open",
        "out",
        "pending",
        "procs",
        "sock",
    )

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.open = False  # the upgrade has been answered
        self.closing = False
        self.pending = b""
        self.bulk: Bulk | None = None
        self.fragments: list[bytes] | None = None
        self.out: deque[bytes | memoryview] = deque()
        self.floods: list[Flood] = []
        self.procs: set[bytes] = set()
        self.events = 0


class Bulk:
    """A large frame on its way in, of which only the two ends are kept."""

    __slots__ = ("head", "key", "left", "size", "tail")

    def __init__(self, size: int, key: bytes) -> None:
        self.size = size
        self.left = size
        self.key = key
        self.head = bytearray()
        self.tail = b""

    def feed(self, data: memoryview) -> int:
        """Take what belongs to this frame; return how much that was."""
        took = min(self.left, len(data))
        self.left -= took
        want = HEAD - len(self.head)
        if want > 0:
            self.head += data[: min(want, took)]
        if took >= TAIL:
            self.tail = bytes(data[took - TAIL : took])
        else:
            self.tail = (self.tail + bytes(data[:took]))[-TAIL:]
        return took

    def ends(self) -> bytes:
        """Return the two ends, unmasked, as one text to search in."""
        shift = (self.size - len(self.tail)) % 4
        key = self.key[shift:] + self.key[:shift]
        return unmask(bytes(self.head), self.key) + unmask(self.tail, key)
