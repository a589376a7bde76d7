# SPDX-License-Identifier: Apache-2.0
"""``Store``: processes, their events and their readers' places, in one SQLite file.

Appending only queues; ``commit`` writes everything that came since the last one in one short transaction, and throws
out what is too much. So the file is at every moment what some commit left, however this process ends, and what is in
memory of a process (its `Record`) always agrees with it.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, cast

import attrs

from .limits import KeeperLimits
from .secure import make_private_file

_VERSION: Final = 1
_OVERHEAD: Final = 64  # what a row costs beside its content, about
_INPUT_CHARS: Final = 4096  # of an input; it is shown in lists, and nobody runs it again from here
_SCHEMA: Final = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE processes (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, program TEXT NOT NULL, owner TEXT NOT NULL,
    input TEXT NOT NULL, started REAL NOT NULL, ended REAL, status TEXT NOT NULL, result TEXT,
    result_bytes INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, bytes INTEGER NOT NULL,
    readers TEXT NOT NULL
);
CREATE TABLE events (
    age INTEGER PRIMARY KEY AUTOINCREMENT, process INTEGER NOT NULL, place INTEGER NOT NULL, kind TEXT NOT NULL,
    value BLOB NOT NULL, size INTEGER NOT NULL, digest TEXT, piece INTEGER NOT NULL, pieces INTEGER NOT NULL,
    name TEXT
);
CREATE UNIQUE INDEX events_of_process ON events (process, place);
"""

_WRITE: Final = """
INSERT INTO processes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (number) DO UPDATE SET
    ended = excluded.ended, status = excluded.status, result = coalesce(excluded.result, result),
    result_bytes = excluded.result_bytes, first = excluded.first, last = excluded.last, bytes = excluded.bytes,
    readers = excluded.readers
"""

RUNNING: Final = "running"
LOST: Final = "lost"


class Row(NamedTuple):
    """One stored event; ``place`` is its number, from 1. A file is as many as it has pieces."""

    place: int
    kind: str
    """stdout, stderr, message, gap or file."""
    value: str | bytes
    size: int
    digest: str | None = None
    piece: int = 0
    pieces: int = 1
    name: str | None = None

    @property
    def whole(self) -> bool:
        """Whether a reader that has this one has no part of a file only."""
        return self.piece + 1 >= self.pieces


@attrs.define(eq=False)
class Record:
    """A process as it is in memory."""

    number: int
    id: str
    program: str
    owner: str
    input: str
    started: float
    ended: float | None = None
    status: str = RUNNING
    result_bytes: int = 0
    first: int = 1
    """The place of the oldest event that is there still."""
    last: int = 0
    """The place of the newest event that was stored."""
    bytes: int = 0
    readers: dict[str, int] = attrs.Factory(dict[str, int])
    """The place of the last event that each reader has received; the least recently heard of first."""
    settled: bool = False
    """The end is in the file, and everything before it."""
    result: str | None = None
    """Set between the end and the commit only: results stay in the file."""

    @property
    def running(self) -> bool:
        """Whether more may come."""
        return self.status == RUNNING

    @property
    def end(self) -> int:
        """The place of the last event of all, the one that says how the process ended."""
        return self.last + 1


class Store:
    """What a keeper keeps.

    Args:
        path: the file; None keeps everything in memory.
        limits: how much.
        now: seconds since the epoch.
    """

    def __init__(
        self, path: Path | None, limits: KeeperLimits | None = None, *, now: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self.limits: KeeperLimits = limits or KeeperLimits()
        self.now = now
        self.records: dict[str, Record] = {}
        """Every process that is kept, by id."""
        self.running: set[str] = set()
        self.bytes: int = 0
        """Everything kept, by the count that the limits are about."""
        self.set_aside: Path | None = None
        """What the file was renamed to that could not be read."""
        self._numbers: dict[int, Record] = {}
        self._ended: dict[Record, None] = {}  # those that ended first first
        self._appended: list[tuple[Record, Row]] = []
        self._changed: dict[Record, None] = {}
        self._number = 0
        self._closed = False
        self._database = self._open()

    # --- the file --------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        try:
            return self._try_open()
        except sqlite3.OperationalError:
            raise  # it cannot be opened at the moment, which says nothing about what is in it
        except (sqlite3.DatabaseError, ValueError):
            if self.path is None:
                raise
            self._put_aside(self.path)
            return self._try_open()

    def _try_open(self) -> sqlite3.Connection:
        if self.path is not None:
            make_private_file(self.path)
        database = sqlite3.connect(self.path or ":memory:", isolation_level=None, timeout=5.0)
        try:
            self._prepare(database)
            self._load(database)
        except BaseException:
            database.close()
            raise
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA temp_store = MEMORY")
        database.execute("PRAGMA journal_size_limit = 16777216")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            msg = f"the layout is of version {version}, not {_VERSION}"
            raise sqlite3.DatabaseError(msg)

    def _load(self, database: sqlite3.Connection) -> None:
        columns = (
            "number, id, program, owner, input, started, ended, status, result_bytes, first, last, bytes"
        )
        for *values, readers in database.execute(f"SELECT {columns}, readers FROM processes ORDER BY number"):  # noqa: S608 - nothing from outside
            record = Record(*values)
            record.readers = json.loads(readers)
            record.settled = not record.running
            self._note(record)
            self.bytes += record.bytes + record.result_bytes
            self._number = record.number
        ended = [record for record in self.records.values() if not record.running]
        self._ended = dict.fromkeys(sorted(ended, key=lambda record: cast("float", record.ended)))

    def _put_aside(self, path: Path) -> None:
        """Keep what cannot be read, under another name; its companions would be taken for the new file's."""
        self.set_aside = path.with_name(f"{path.name}.unreadable-{int(self.now())}")
        path.rename(self.set_aside)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        self.records, self._numbers, self.running, self.bytes, self._number = {}, {}, set(), 0, 0

    def close(self) -> None:
        """Commit and close. Idempotent.

        Raises:
            sqlite3.Error: as :meth:`commit`; it is closed all the same.
        """
        if not self._closed:
            self._closed = True
            try:
                self.commit()
            finally:
                self._database.close()

    # --- facts about the engine ------------------------------------------------------------------------------------

    def fact(self, name: str) -> str | None:
        """Give what was stored under a name."""
        row = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_fact(self, name: str, value: str) -> None:
        """Store something small under a name, at once."""
        self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    # --- writing ---------------------------------------------------------------------------------------------------

    def _note(self, record: Record) -> None:
        self.records[record.id] = record
        self._numbers[record.number] = record
        if record.running:
            self.running.add(record.id)

    def add(self, process_id: str, program: str, owner: str, text: str) -> Record:
        """Begin to keep a process; one that is kept already is given as it is."""
        known = self.records.get(process_id)
        if known is not None:
            return known
        self._number += 1
        record = Record(self._number, process_id, program, owner, text[:_INPUT_CHARS], self.now())
        self._note(record)
        self._changed[record] = None
        return record

    def append(self, record: Record, kind: str, value: str) -> None:
        """Add an event of a running process."""
        self._append(record, kind, value, len(value.encode()))

    def append_piece(
        self, record: Record, data: bytes, digest: str, piece: int, pieces: int, name: str | None
    ) -> None:
        """Add one piece of a file; all of them follow each other without anything in between."""
        self._append(record, "file", data, len(data), digest, piece, pieces, name)

    def _append(
        self,
        record: Record,
        kind: str,
        value: str | bytes,
        size: int,
        digest: str | None = None,
        piece: int = 0,
        pieces: int = 1,
        name: str | None = None,
    ) -> None:
        record.last += 1
        row = Row(record.last, kind, value, size + _OVERHEAD, digest, piece, pieces, name)
        record.bytes += row.size
        self.bytes += row.size
        self._appended.append((record, row))
        self._changed[record] = None

    def finish(self, record: Record, status: str, text: str) -> None:
        """Note the end of a process. Idempotent; the first end stands."""
        if not record.running:
            return
        size = len(text.encode())
        if size > self.limits.result_bytes:
            status = LOST
            text = f"the result has {size} bytes, and the keeper keeps at most {self.limits.result_bytes}"
            size = len(text)
        record.status, record.ended = status, self.now()
        record.result, record.result_bytes = text, size + _OVERHEAD
        self.bytes += record.result_bytes
        self.running.discard(record.id)
        self._ended[record] = None
        self._changed[record] = None

    def receive(self, record: Record, reader: str, place: int) -> None:
        """Note that a reader has received all events up to a place; never backwards."""
        self._move(record, reader, max(place, record.readers.get(reader, 0)))

    def rewind(self, record: Record, reader: str, place: int) -> None:
        """Have a reader continue behind this place when it attaches the next time."""
        self._move(record, reader, min(max(place, 0), record.end))

    def _move(self, record: Record, reader: str, place: int) -> None:
        record.readers.pop(reader, None)
        record.readers[reader] = place
        while len(record.readers) > self.limits.readers:
            del record.readers[next(iter(record.readers))]
        self._changed[record] = None

    @property
    def dirty(self) -> bool:
        """Whether ``commit`` has something to write."""
        return bool(self._changed)

    def commit(self) -> list[Record]:
        """Write what came since the last call and throw out what is too much; give the processes that changed.

        Raises:
            sqlite3.Error: the file cannot be written; what was not written is lost with the next call too.
        """
        changed, appended = list(self._changed), self._appended
        self._changed, self._appended = {}, []
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.executemany(
                "INSERT INTO events (process, place, kind, value, size, digest, piece, pieces, name) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                ((record.number, *row) for record, row in appended),
            )
            evicted = self._evict(changed)
            self._write([*changed, *evicted])
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")
        for record in changed:
            record.settled = not record.running
        return changed

    def _write(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.id not in self.records:
                continue  # evicted as a whole
            values = (*_columns(record), json.dumps(record.readers))
            self._database.execute(_WRITE, values)
            record.result = None

    # --- throwing out ----------------------------------------------------------------------------------------------

    def _evict(self, changed: Sequence[Record]) -> list[Record]:
        """Throw out what is too much; give the processes that this changed."""
        limits, evicted = self.limits, dict[Record, None]()
        for record in changed:
            if record.bytes > limits.process_bytes or record.last - record.first + 1 > limits.process_events:
                # A little more than is needed, so that a process that goes on and on does not cost this each time.
                bytes_, events = limits.process_bytes * 7 // 8, limits.process_events * 7 // 8
                self._evict_from(record, record.bytes - bytes_, record.last - record.first + 1 - events)
                evicted[record] = None
        self._evict_results()
        if self.bytes > limits.total_bytes:
            self._evict_oldest(self.bytes - limits.total_bytes * 7 // 8, evicted)
        return list(evicted)

    def _evict_from(self, record: Record, excess_bytes: int, excess_events: int) -> None:
        """Throw out the oldest events of one process."""
        rows = self._database.execute(
            "SELECT place, size, piece, pieces FROM events WHERE process = ? ORDER BY place", (record.number,)
        )
        last = record.first - 1
        for place, size, piece, pieces in rows:
            if excess_bytes <= 0 and excess_events <= 0:
                break
            excess_bytes, excess_events = excess_bytes - size, excess_events - 1
            last = place + pieces - piece - 1
        rows.close()
        self._delete(record, last)

    def _evict_oldest(self, excess: int, evicted: dict[Record, None]) -> None:
        """Throw out the oldest output of all, then the oldest results."""
        rows = self._database.execute("SELECT process, place, size, piece, pieces FROM events ORDER BY age")
        last: dict[int, int] = {}
        for number, place, size, piece, pieces in rows:
            if excess <= 0:
                break
            excess -= size
            last[number] = place + pieces - piece - 1
        rows.close()
        for number, place in last.items():
            self._delete(self._numbers[number], place)
            evicted[self._numbers[number]] = None
        while excess > 0 and self._ended:
            excess -= next(iter(self._ended)).result_bytes
            self._forget(next(iter(self._ended)))

    def _delete(self, record: Record, last: int) -> None:
        """Throw out the events of a process up to a place, which is the end of a file or no part of one."""
        where = ("FROM events WHERE process = ? AND place <= ?", (record.number, last))
        (freed,) = self._database.execute(f"SELECT coalesce(sum(size), 0) {where[0]}", where[1]).fetchone()
        self._database.execute(f"DELETE {where[0]}", where[1])
        record.first = last + 1
        record.bytes -= freed
        self.bytes -= freed

    def _evict_results(self) -> None:
        """Forget the processes whose end was too long ago, and those that are too many."""
        oldest = self.now() - self.limits.result_age
        while self._ended:
            record = next(iter(self._ended))
            if len(self._ended) <= self.limits.results and cast("float", record.ended) >= oldest:
                break
            self._forget(record)

    def _forget(self, record: Record) -> None:
        self._database.execute("DELETE FROM events WHERE process = ?", (record.number,))
        self._database.execute("DELETE FROM processes WHERE number = ?", (record.number,))
        self.bytes -= record.bytes + record.result_bytes
        del self.records[record.id], self._numbers[record.number], self._ended[record]
        record.status = LOST  # for those that were reading it

    # --- reading ---------------------------------------------------------------------------------------------------

    def read(self, record: Record, after: int, *, max_rows: int = 64, max_bytes: int = 262_144) -> list[Row]:
        """Give the committed events behind a place, at least one if there is one."""
        cursor = self._database.execute(
            "SELECT place, kind, value, size, digest, piece, pieces, name FROM events "
            "WHERE process = ? AND place > ? ORDER BY place LIMIT ?",
            (record.number, after, max_rows),
        )
        rows: list[Row] = []
        size = 0
        for values in cursor:
            row = Row(*values)
            if rows and size + row.size > max_bytes:
                break
            rows.append(row)
            size += row.size
        cursor.close()
        return rows

    def result(self, record: Record) -> str:
        """Give the text of the last event of a process that has ended."""
        if record.id not in self.records:
            return f"process {record.id} is no longer kept"
        row = self._database.execute(
            "SELECT result FROM processes WHERE number = ?", (record.number,)
        ).fetchone()
        return str(row[0])


def _columns(record: Record) -> tuple[object, ...]:
    return (
        *(record.number, record.id, record.program, record.owner, record.input, record.started, record.ended),
        *(record.status, record.result, record.result_bytes, record.first, record.last, record.bytes),
    )
