# SPDX-License-Identifier: Apache-2.0
"""The short way for the messages that nearly all traffic consists of: what a process says, and plain answers.

Engines of both generations encode these in one form only: a map of four fields in a fixed order, each with the
shortest header. Where the bytes have exactly this form, the values are cut out directly; every other message, also an
equal one in another encoding, takes the way through the codec, with the same result.
"""

from __future__ import annotations

from typing import Final

from .._events import Message
from .codec import Answer, EventFields
from .events import ProcessOutput
from .processes import KnownHead

_EVENT_HEAD: Final = b"\x84\xa4type\xadprocess_event\xaaprocess_id\xd9\x24"
_ID: Final = len(_EVENT_HEAD)
_KIND: Final = _ID + 36
HEAD: Final = _KIND + len(b"\xa5event\xa6stdout\xa5value")
"""All that stands before the value; of the longest one as many bytes as the shorter ones have."""
_KINDS: Final[dict[bytes, str]] = {
    b"\xa5event\xa6stdout\xa5value": "stdout",
    b"\xa5event\xa6stderr\xa5value": "stderr",
    b"\xa5event\xa6return\xa5value": "return",
    b"\xa5event\xa7message\xa5valu": "message",
}
_ANSWER_HEAD: Final = b"\x84\xa4type\xa8response\xa7corr_id"
_CORR_ID: Final = len(_ANSWER_HEAD)
_OUTCOMES: Final[dict[bytes, bool]] = {b"\xa2ok\xc3\xa6result": True, b"\xa2ok\xc2\xa6result": False}
_OUTCOME: Final = len(b"\xa2ok\xc3\xa6result")
_new = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def read_output(payload: bytes, head: KnownHead) -> ProcessOutput | None:
    """Read a payload that begins as output of a process did before; None where the rest has not the usual form.

    This sees nearly every message of a flood, so it calls nothing that it can do itself.
    """
    owner, output, kind = head
    start = HEAD
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


def read_event(payload: bytes) -> EventFields | None:
    """Read an event in the usual form; None for any other message."""
    kind = _KINDS.get(payload[_KIND:HEAD])
    if kind is None or payload[:_ID] != _EVENT_HEAD:
        return None
    start = HEAD
    if kind == "message":
        if payload[start : start + 1] != b"e":
            return None
        start += 1
    try:
        value = _read_text(payload, start)
        return None if value is None else (payload[_ID:_KIND].decode(), kind, value)
    except (IndexError, UnicodeDecodeError):
        return None


def read_answer(payload: bytes) -> Answer | None:
    """Read an answer in the usual form; None for any other message."""
    if payload[:_CORR_ID] != _ANSWER_HEAD:
        return None
    try:
        width = payload[_CORR_ID]
        if width == 0xCD:
            corr_id, start = payload[_CORR_ID + 1] << 8 | payload[_CORR_ID + 2], _CORR_ID + 3
        elif width < 0x80:
            corr_id, start = width, _CORR_ID + 1
        elif width == 0xCC:
            corr_id, start = payload[_CORR_ID + 1], _CORR_ID + 2
        elif width == 0xCE:
            corr_id, start = int.from_bytes(payload[_CORR_ID + 1 : _CORR_ID + 5], "big"), _CORR_ID + 5
        else:
            return None
        ok = _OUTCOMES.get(payload[start : start + _OUTCOME])
        text = None if ok is None else _read_text(payload, start + _OUTCOME)
    except (IndexError, UnicodeDecodeError):
        return None
    return None if ok is None or text is None else (corr_id, ok, text)


def _read_text(payload: bytes, start: int) -> str | None:
    """Read a text that goes to the end of the payload; None where it does not, or its header is a longer one."""
    width = payload[start]
    if width == 0xD9:
        length, start = payload[start + 1], start + 2
    elif 0xA0 <= width <= 0xBF:
        length, start = width - 0xA0, start + 1
    else:
        return None
    return payload[start:].decode() if start + length == len(payload) else None
