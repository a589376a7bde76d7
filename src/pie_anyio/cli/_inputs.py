# SPDX-License-Identifier: Apache-2.0
"""What goes into programs: one input from the command line, or many from a file of JSON lines."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import attrs

from ._errors import UserError

ItemId: TypeAlias = str | int


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Tell whether a decoded value is a JSON object."""
    return isinstance(value, dict)


def read_input(text: str | None, pairs: Iterable[str]) -> Any:
    """Give a program's input from ``--input`` and ``key=value`` arguments; None where there is neither.

    Raises:
        UserError: a file cannot be read, something is not JSON, or a pair is none.
    """
    value = None if text is None else _decode(_load(text), "--input")
    for pair in pairs:
        key, equals, right = pair.partition("=")
        if not (equals and key):
            msg = f"{pair!r} is no key=value pair"
            raise UserError(msg, hint="""--input '{"key": "value"}' takes any JSON, @file or -""")
        if value is None:
            value = {}
        if not is_object(value):
            msg = "key=value arguments need an --input that is a JSON object, or none"
            raise UserError(msg)
        value[key] = _guess(right)
    return value


def _load(text: str) -> str:
    try:
        if text == "-":
            return sys.stdin.read()
        if text.startswith("@"):
            return Path(text[1:]).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        msg = f"cannot read {text.removeprefix('@')}: {getattr(exc, 'strerror', None) or exc}"
        raise UserError(msg) from exc
    return text


def _decode(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        msg = f"{what} is not JSON: {exc}"
        raise UserError(msg, hint="""text needs quotes within quotes: '"text"'""") from exc


def _guess(text: str) -> Any:
    """Read a value as JSON where it is some, else as text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


@attrs.frozen
class Item:
    """One line of an input file."""

    id: ItemId
    index: int
    input: Any


class ItemFile:
    """A file of inputs, one JSON value per line; it is read anew by each iteration, line by line.

    A line is ``{"id": ..., "input": ...}``, or ``{"custom_id": ..., "body": ...}`` as in files for batch services, or
    any other value, whose id is the number of its line. Blank lines count as lines and are passed over.
    """

    def __init__(self, name: str) -> None:
        self.name = "standard input" if name == "-" else name
        # A pipe can be read once only, and items are read twice: checked first, run after.
        self._text = sys.stdin.read() if name == "-" else None

    def _open(self) -> AbstractContextManager[Iterable[str]]:
        if self._text is not None:
            return nullcontext(io.StringIO(self._text))
        return open(self.name, encoding="utf-8")

    def __iter__(self) -> Iterator[Item]:
        index = 0
        with self._open() as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield self._parse(line, number, index)
                    index += 1

    def _parse(self, line: str, number: int, index: int) -> Item:
        where = f"{self.name}, line {number}"
        value = _decode(line, where)
        for name, body in (("id", "input"), ("custom_id", "body")):
            if is_object(value) and name in value and body in value:
                item_id: object = value[name]
                if isinstance(item_id, bool) or not isinstance(item_id, str | int):
                    msg = f"{where}: an id is a text or a whole number, not {json.dumps(item_id)}"
                    raise UserError(msg)
                return Item(item_id, index, value[body])
        return Item(number, index, value)

    def check(self) -> set[ItemId]:
        """Read everything once and give the ids.

        Raises:
            UserError: the file cannot be read, a line is not JSON, or an id comes twice.
        """
        ids: set[ItemId] = set()
        try:
            for item in self:
                if item.id in ids:
                    msg = f"{self.name}: the id {json.dumps(item.id)} comes twice"
                    raise UserError(msg, hint="ids tell a later run what is done, so each must be unique")
                ids.add(item.id)
        except (OSError, UnicodeDecodeError) as exc:
            msg = f"cannot read {self.name}: {getattr(exc, 'strerror', None) or exc}"
            raise UserError(msg) from exc
        return ids


class Feed:
    """The inputs of a map, and which item each belongs to while it is under way."""

    def __init__(self, items: Iterable[Item], skip: Collection[ItemId], count: int) -> None:
        self._items = items
        self._skip = skip
        self._count = count
        self._open: dict[int, Item] = {}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        taken = 0
        for item in self._items:
            if item.id not in self._skip:
                self._open[taken] = item
                taken += 1
                yield item.input

    def holds(self, index: int) -> bool:
        """Tell whether an item was taken and has no outcome yet."""
        return index in self._open

    def settle(self, index: int) -> Item:
        """Give the item of the outcome with this index, and forget it."""
        return self._open.pop(index)
