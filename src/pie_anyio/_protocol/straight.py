# SPDX-License-Identifier: Apache-2.0
"""The short way for the message that nearly all traffic consists of: text output of a process that somebody reads.

Engines of both generations encode a ``process_event`` in one form only: four fields in a fixed order, each with the
shortest header. Where the bytes have exactly this form, the value is cut out directly; every other message, also an
equal one in another encoding, takes the way through the codec, with the same result.
"""

from __future__ import annotations

from typing import Any, Final

from .._events import Event, Message, Stderr, Stdout
from .events import ProcessOutput
from .processes import KnownHead, ProcessRecord

_HEAD: Final = b"\x84\xa4type\xadprocess_event\xaaprocess_id\xd9\x24"
_ID: Final = len(_HEAD)
_EVENT: Final = _ID + 36
# All that stands between the id and the value; of the longest one as many bytes as the shorter ones have.
_TAIL: Final = _EVENT + len(b"\xa5event\xa6stdout\xa5value")
_KINDS: Final[dict[bytes, tuple[Any, Event]]] = {
    b"\xa5event\xa6stdout\xa5value": (Stdout, Event.Stdout),
    b"\xa5event\xa6stderr\xa5value": (Stderr, Event.Stderr),
    b"\xa5event\xa7message\xa5valu": (Message, Event.Message),
}
_new: Final = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def read_output(
    payload: bytes, wanted: dict[bytes, ProcessRecord], known: dict[bytes, KnownHead]
) -> ProcessOutput | None:
    """Read a payload that has the usual form and belongs to a process in ``wanted``; None for any other.

    ``known`` holds the beginnings that were met, from the first byte to the value: what comes again is found by one
    look.
    """
    found = known.get(payload[:_TAIL]) or _learn(payload, wanted, known)
    if found is None:
        return None
    owner, output, kind = found
    start = _TAIL
    try:
        if output is Message:
            if payload[start] != 0x65:  # the "e" of "value"
                return None
            start += 1
        width = payload[start]
        if width == 0xD9:
            length, start = payload[start + 1], start + 2
        elif 0xA0 <= width <= 0xBF:
            length, start = width - 0xA0, start + 1
        else:
            return None
        if start + length != len(payload):
            return None
        event = _new(output, (kind, payload[start:].decode()))
    except (IndexError, UnicodeDecodeError):
        return None
    return _new(ProcessOutput, (owner, event, len(payload)))


def _learn(
    payload: bytes, wanted: dict[bytes, ProcessRecord], known: dict[bytes, KnownHead]
) -> KnownHead | None:
    """Note the beginning of a payload as that of the output of a process, if it is."""
    if not payload.startswith(_HEAD):
        return None
    record = wanted.get(payload[_ID:_EVENT])
    found = _KINDS.get(payload[_EVENT:_TAIL])
    if record is None or found is None:
        return None
    head = payload[:_TAIL]
    known[head] = learnt = (record.owner, *found)
    record.heads += (head,)
    return learnt
