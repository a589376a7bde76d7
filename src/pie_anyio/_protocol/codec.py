# SPDX-License-Identifier: Apache-2.0
"""MessagePack to messages and back, strict about shape and lenient about what an engine may add.

Unknown message types, unknown keys and bytes after the first value are ignored, as engines ignore them. Text that is
not UTF-8 is read with replacement characters. A message that is cut short or damaged is read as far as it goes, so
that the request or process that it belonged to can be failed instead of being waited for.
"""

from __future__ import annotations

import struct
from typing import Any, Final, TypeAlias, cast

import attrs
import msgpack

from .._exceptions import InvalidRequest
from .messages import (
    MAX_CORR_ID,
    REQUESTS,
    AddProgram,
    FileChunk,
    McpRequest,
    ProcessEvent,
    Request,
    Response,
    TransferFile,
)

Fields: TypeAlias = dict[str, Any]
Payload: TypeAlias = bytes | bytearray | memoryview

Answer: TypeAlias = tuple[int, bool, str]
"""Number, outcome and text of a ``response``."""
EventFields: TypeAlias = tuple[str, str, str]
"""Process id, kind and value of a ``process_event``."""

_NO_DATA: Final = b"\xc4\x00"

NESTED_BYTES: Final = 64 * 1024
"""Longest message of an engine that may have values within values."""
_MAX_ENTRIES: Final = 64
_NESTED: Final = frozenset([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])
"""First bytes of maps and arrays."""

_packer: Final = msgpack.Packer(use_bin_type=True, autoreset=True)


class DecodeError(ValueError):
    """A payload is not a message; ``fields`` is what could be read of it."""

    def __init__(self, message: str, fields: Fields | None = None) -> None:
        super().__init__(message)
        self.fields: Fields = fields or {}


def encode_request(request: Request, corr_id: int | None) -> bytes:
    """Encode one request; ``corr_id`` is None for the kinds that carry none.

    Raises:
        InvalidRequest: a field cannot be expressed in MessagePack (lone surrogates, integers beyond 64 bits).
    """
    return _encode(request, request.fields(corr_id))


def _encode(request: Request, fields: Fields) -> bytes:
    try:
        return _packer.pack(fields)
    except (UnicodeEncodeError, OverflowError, TypeError, ValueError) as exc:
        _packer.reset()
        msg = f"{request.type}: cannot be sent: {exc}"
        raise InvalidRequest(msg) from exc


@attrs.frozen
class EncodedChunk:
    """The message of one chunk: all of it up to the data, and the data where it lay, since it is large."""

    head: bytes
    data: bytes = attrs.field(repr=False)

    def __len__(self) -> int:
        return len(self.head) + len(self.data)


def encode_chunk(chunk: AddProgram | TransferFile, corr_id: int | None) -> EncodedChunk:
    """Encode one chunk, with the same bytes as :func:`encode_request`.

    Raises:
        InvalidRequest: as there.
    """
    # The data is the last field of both, and binary: what differs is the header that says how long it is.
    size = len(chunk.chunk_data)
    if size < 0x100:
        announced = struct.pack(">BB", 0xC4, size)
    elif size < 0x10000:
        announced = struct.pack(">BH", 0xC5, size)
    else:
        announced = struct.pack(">BI", 0xC6, size)
    head = _encode(chunk, {**chunk.fields(corr_id), "chunk_data": b""})
    return EncodedChunk(head[: -len(_NO_DATA)] + announced, chunk.chunk_data)


def encode_message(
    message: Response | ProcessEvent | FileChunk | McpRequest, *, named_files: bool = False
) -> bytes:
    """Encode one engine message; ``named_files`` adds the ``name`` key of 0.5 to file chunks."""
    fields: Fields = {"type": message.type}
    for field in attrs.fields(type(message)):
        if field.name != "name" or named_files:
            fields[field.name] = getattr(message, field.name)
    return _packer.pack(fields)


def decode_engine_fields(payload: Payload) -> Fields:
    """Decode what an engine sent; see :func:`decode_fields`.

    Engines send maps of a few plain values, and files are the only long ones. Lists within lists take sixty times
    their bytes in memory, so a long message that has any is not decoded at all.

    Raises:
        DecodeError: as there, or that.
    """
    if len(payload) > NESTED_BYTES and not _is_plain(payload):
        msg = f"a message of {len(payload)} bytes that is not a map of plain values"
        raise DecodeError(msg)
    return decode_fields(payload)


def _is_plain(payload: Payload) -> bool:
    """Tell whether a payload is a map of few values, none of which holds others, without making any of them."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(payload))
    unpacker.feed(payload)
    try:
        entries = unpacker.read_map_header()
    except (ValueError, msgpack.UnpackException):
        return False
    try:
        for _ in range(2 * entries):
            if payload[unpacker.tell()] in _NESTED:
                return False
            unpacker.skip()
    except (ValueError, IndexError, msgpack.UnpackException):
        pass  # it is cut short or damaged: decoding says how, and makes no more of it than was looked at
    return bool(entries <= _MAX_ENTRIES)


def decode_fields(payload: Payload) -> Fields:
    """Decode a payload into its map.

    Raises:
        DecodeError: it is damaged or not a map; its ``fields`` holds what came before the damage.
    """
    try:
        value = msgpack.unpackb(payload, strict_map_key=False)
    except msgpack.ExtraData as exc:
        value = cast("Any", exc).unpacked
    except UnicodeDecodeError:
        value = _decode_lenient(payload)
    except (ValueError, TypeError) as exc:  # every msgpack error is the former, an unhashable key the latter
        msg = f"not a MessagePack message: {type(exc).__name__}"
        raise DecodeError(msg, _salvage(payload)) from exc
    if type(value) is not dict:
        msg = f"expected a map, got {type(value).__name__}"
        raise DecodeError(msg)
    return cast("Fields", value)


def _decode_lenient(payload: Payload) -> object:
    """Decode again with replacement characters for bytes that are not UTF-8."""
    try:
        return msgpack.unpackb(payload, strict_map_key=False, unicode_errors="replace")
    except msgpack.ExtraData as exc:
        return cast("object", cast("Any", exc).unpacked)
    except (ValueError, TypeError) as exc:
        msg = f"not a MessagePack message: {type(exc).__name__}"
        raise DecodeError(msg, _salvage(payload)) from exc


def _salvage(payload: Payload) -> Fields:
    """Read key/value pairs until the damage begins."""
    fields: Fields = {}
    unpacker = msgpack.Unpacker(
        strict_map_key=False, unicode_errors="replace", max_buffer_size=len(payload) or 1
    )
    unpacker.feed(payload)
    try:
        for _ in range(unpacker.read_map_header()):
            key = unpacker.unpack()
            fields[key] = unpacker.unpack()
    except (ValueError, TypeError, msgpack.UnpackException):
        pass
    return fields


def read_response(fields: Fields) -> Answer:
    """Check the fields of a ``response``."""
    corr_id, ok, result = fields.get("corr_id"), fields.get("ok"), fields.get("result")
    if type(corr_id) is not int or type(ok) is not bool or type(result) is not str:
        msg = "a response without a valid corr_id, ok or result"
        raise DecodeError(msg, fields)
    return corr_id, ok, result


def read_process_event(fields: Fields) -> EventFields:
    """Check the fields of a ``process_event``."""
    process_id, kind, value = fields.get("process_id"), fields.get("event"), fields.get("value")
    if type(process_id) is not str or type(kind) is not str or type(value) is not str:
        msg = "a process_event without a valid process_id, event or value"
        raise DecodeError(msg, fields)
    return process_id, kind, value


def read_file_chunk(fields: Fields) -> FileChunk:
    """Check the fields of a ``file`` chunk."""
    name = fields.get("name")
    try:
        chunk = FileChunk(
            _typed(fields, "process_id", str),
            _typed(fields, "file_hash", str),
            _typed(fields, "chunk_index", int),
            _typed(fields, "total_chunks", int),
            _typed(fields, "chunk_data", bytes),
            name if type(name) is str else None,
        )
    except KeyError as exc:
        msg = f"a file chunk without a valid {exc.args[0]}"
        raise DecodeError(msg, fields) from exc
    return chunk


def read_mcp_request(fields: Fields) -> McpRequest:
    """Check the fields of an ``mcp_request``."""
    try:
        return McpRequest(
            _typed(fields, "corr_id", int),
            _typed(fields, "process_id", str),
            _typed(fields, "server_name", str),
            _typed(fields, "method", str),
            _typed(fields, "params", str),
        )
    except KeyError as exc:
        msg = f"an mcp_request without a valid {exc.args[0]}"
        raise DecodeError(msg, fields) from exc


def _typed(fields: Fields, name: str, kind: type) -> Any:
    value = fields.get(name)
    if type(value) is not kind:
        raise KeyError(name)
    return value


def decode_request(payload: Payload) -> tuple[Request, int | None]:
    """Decode a client's message on the engine's side, by the engine's acceptance rules.

    Integers of any width, text given as bytes and chunks given as text or integer arrays are accepted, unknown keys
    ignored; a missing or ill-typed required field, an unknown type or a ``corr_id`` outside ``u32`` is refused.

    Raises:
        DecodeError: as an engine would refuse it.
    """
    return build_request(decode_fields(payload))


def build_request(fields: Fields) -> tuple[Request, int | None]:
    """Make a request of decoded fields; see :func:`decode_request`."""
    tag = fields.get("type")
    if tag is None:
        msg = "missing field `type`"
        raise DecodeError(msg)
    cls = REQUESTS.get(tag) if isinstance(tag, str) else None
    if cls is None:
        msg = f"unknown variant `{tag}`, expected one of {', '.join(f'`{name}`' for name in REQUESTS)}"
        raise DecodeError(msg)
    values = {field.name: _coerce(fields, field) for field in attrs.fields(cls)}
    if not cls.answered and cls.type != "mcp_response":
        return cls(**values), None
    corr_id = fields.get("corr_id")
    if type(corr_id) is not int or not 0 <= corr_id <= MAX_CORR_ID:
        msg = "missing field `corr_id`" if corr_id is None else f"invalid value: `{corr_id!r}`, expected u32"
        raise DecodeError(msg)
    return cls(**values), corr_id


def _coerce(fields: Fields, field: attrs.Attribute[Any]) -> Any:
    """Read one field as serde would, from the annotation of the message class."""
    value, wanted = fields.get(field.name), cast("str", field.type)
    optional = wanted.endswith("| None")
    if value is None:
        if optional:
            return None
        msg = f"missing field `{field.name}`"
        raise DecodeError(msg)
    base = wanted.removesuffix("| None").strip()
    try:
        coerced = _COERCIONS[base](value)
        if base == "int" and coerced >> field.metadata.get("bits", 64):
            raise ValueError
    except (ValueError, TypeError) as exc:
        msg = f"invalid type for `{field.name}`, expected {base}"
        raise DecodeError(msg) from exc
    return coerced


def _as_text(value: Any) -> str:
    if type(value) is bytes:
        return value.decode()
    if type(value) is not str:
        raise TypeError
    return value


def _as_unsigned(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError
    return value


def _as_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise TypeError
    return value


def _as_bytes(value: Any) -> bytes:
    if type(value) is str:
        return value.encode()
    if type(value) is list:
        return bytes(cast("list[int]", value))
    if type(value) is not bytes:
        raise TypeError
    return value


def _as_list(value: Any) -> Any:
    if type(value) is not list:
        raise TypeError
    return cast("Any", value)


def _as_texts(value: Any) -> list[str]:
    return [_as_text(item) for item in _as_list(value)]


def _as_budgets(value: Any) -> list[int | None]:
    return [None if item is None else _as_unsigned(item) for item in _as_list(value)]


_COERCIONS: Final[dict[str, Any]] = {
    "str": _as_text,
    "int": _as_unsigned,
    "bool": _as_bool,
    "bytes": _as_bytes,
    "list[str]": _as_texts,
    "list[int | None]": _as_budgets,
}
