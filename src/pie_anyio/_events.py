# SPDX-License-Identifier: Apache-2.0
"""What a process sends: the events that users receive, one ``NamedTuple`` class per kind.

Each event is a pair, so both styles work and are typed::

    event, value = await process.recv()
    if event == Event.Stdout: ...

    match await process.recv():
        case Stdout(value=text): ...
"""

from __future__ import annotations

import os
import unicodedata
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal, NamedTuple, Self, TypeAlias, final

from ._exceptions import TransferError

__all__ = [
    "AnyEvent",
    "Error",
    "Event",
    "File",
    "Gap",
    "Message",
    "ReceivedFile",
    "Return",
    "Stderr",
    "Stdout",
]


class Event(StrEnum):
    """The kinds of event that a process can send; the values are the engine's names (0.4 and 0.5)."""

    Stdout = "stdout"
    Stderr = "stderr"
    Message = "message"
    File = "file"
    Return = "return"
    Error = "error"
    Gap = "gap"


_MAX_NAME_BYTES: Final = 255  # what common file systems accept for one component
_MAX_EXTENSION_BYTES: Final = 32  # a longer "extension" is part of the name when something must be cut
_MAX_COPIES: Final = 1000
# Names that Windows maps to devices whatever their extension; the superscript digits count as digits there.
_DEVICE_NAMES: Final = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789\u00b9\u00b2\u00b3"]
)
_WINDOWS_FORBIDDEN: Final = str.maketrans(dict.fromkeys('<>"|?*', "_"))


def _is_invisible(ch: str) -> bool:
    """Tell whether a character controls, formats, ends a line or means nothing: a name has no use for those."""
    return (category := unicodedata.category(ch))[0] == "C" or category in ("Zl", "Zp")


def _fit(name: str, mark: str = "") -> str:
    """Put ``mark`` before the extension of ``name`` and cut the part before it to what file systems accept."""
    stem, extension = os.path.splitext(name)
    if len(extension.encode()) > _MAX_EXTENSION_BYTES:
        stem, extension = name, ""
    room = _MAX_NAME_BYTES - len((mark + extension).encode())
    short = stem.encode()[:room].decode(errors="ignore")
    return short.rstrip(". ") + mark + extension if len(short) < len(stem) else stem + mark + extension


class ReceivedFile(bytes):
    """The content of one file that a process sent, with the name that it suggested.

    It is ``bytes`` in every respect; :attr:`name` is the suggestion off the wire (None where the program gave none)
    and is not to be trusted: use :meth:`file_name` or :meth:`save`.
    """

    name: str | None

    def __new__(cls, data: bytes | bytearray | memoryview = b"", name: str | None = None) -> Self:
        self = super().__new__(cls, data)
        self.name = name
        return self

    def __repr__(self) -> str:
        return f"<ReceivedFile {self.name!r}, {len(self)} bytes>"

    def __reduce__(self) -> tuple[type[Self], tuple[bytes, str | None]]:
        return type(self), (bytes(self), self.name)

    def file_name(self, fallback: str = "file.bin") -> str:
        """Give a name that is safe to join to a directory.

        Directories, drive letters, control and formatting characters, ``.``/``..``, trailing dots and spaces, and
        what Windows forbids or maps to devices are removed or neutralised, and over-long names are cut with their
        extension kept. ``fallback`` stands in, unchanged, where nothing usable is left.
        """
        tail = (self.name or "").replace("\\", "/").rsplit("/", 1)[-1].rsplit(":", 1)[-1]
        clean = "".join(ch for ch in tail if not _is_invisible(ch)).strip().rstrip(". ")
        if not clean:
            return fallback
        clean = clean.translate(_WINDOWS_FORBIDDEN)
        if clean.split(".", 1)[0].strip().lower() in _DEVICE_NAMES:
            clean = f"_{clean}"
        return _fit(clean) or fallback

    def save(self, directory: str | os.PathLike[str], fallback: str = "file.bin") -> Path:
        """Write the file into ``directory`` under its own safe name and return the path.

        The directory is created where it is missing. An existing file is never overwritten and a symbolic link never
        followed: a number is put before the extension instead. A file that could not be written whole is removed.
        The call blocks; within a task, run it in a worker thread.

        Raises:
            TransferError: no free name was found, or the directory cannot be written.
        """
        folder = Path(directory)
        name = self.file_name(fallback)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(_MAX_COPIES):
                path = folder / (_fit(name, f"-{number}") if number else name)
                if self._write_new(path):
                    return path
        except OSError as exc:
            msg = f"could not save a received file of {len(self)} bytes in {folder}: {exc.strerror or exc}"
            raise TransferError(msg) from exc
        msg = f"could not save a received file in {folder}: {name} and {_MAX_COPIES - 1} numbered names exist already"
        raise TransferError(msg)

    def _write_new(self, path: Path) -> bool:
        """Write a file that did not exist, whole or not at all; say False where the name is taken."""
        try:
            # "x" is O_CREAT|O_EXCL, which fails on an existing name and does not follow a symbolic link.
            file = path.open("xb")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(self)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return True


@final
class Stdout(NamedTuple):
    """Text that the program wrote to its standard output: one guest write, not line by line."""

    kind: Literal[Event.Stdout]
    value: str


@final
class Stderr(NamedTuple):
    """Text that the program wrote to its standard error: one guest write, not line by line."""

    kind: Literal[Event.Stderr]
    value: str


@final
class Message(NamedTuple):
    """A string that the program passed to ``session.send`` (other values arrive as JSON text)."""

    kind: Literal[Event.Message]
    value: str


@final
class File(NamedTuple):
    """A file that the program passed to ``session.send_file``, complete and checked against its BLAKE3 hash."""

    kind: Literal[Event.File]
    value: ReceivedFile


@final
class Return(NamedTuple):
    """The program returned: its return value as text, usually JSON. Always the last event."""

    kind: Literal[Event.Return]
    value: str


@final
class Error(NamedTuple):
    """The process ended without a value: the engine's text says why. Always the last event."""

    kind: Literal[Event.Error]
    value: str


@final
class Gap(NamedTuple):
    """Output was lost at this place: the value says why (an overflowing buffer, a lost connection)."""

    kind: Literal[Event.Gap]
    value: str


AnyEvent: TypeAlias = Stdout | Stderr | Message | File | Return | Error | Gap
"""Any event of a process."""
