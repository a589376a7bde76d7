# SPDX-License-Identifier: Apache-2.0
"""What is kept, what is thrown out, and what survives the death of its keeper."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from pie_anyio.keeper import KeeperLimits
from pie_anyio.keeper.store import LOST, Record, Row, Store

ROW = 64  # what the store counts for a row beside its content


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


_made: list[Store] = []


@pytest.fixture(autouse=True)
def _close_stores() -> Iterator[None]:
    yield
    while _made:
        _made.pop().close()


def make(path: Path | None = None, clock: Clock | None = None, **limits: Any) -> Store:
    _made.append(Store(path, KeeperLimits(**limits), now=clock or Clock()))
    return _made[-1]


def add(store: Store, name: str = "one") -> Record:
    return store.add(name, "echo@0.1.0", "alice", "{}")


def texts(store: Store, record: Record, after: int = 0) -> list[str | bytes]:
    return [row.value for row in store.read(record, after)]


def fill(store: Store, record: Record, count: int, *, size: int = 10, start: int = 0) -> None:
    """Append numbered events of a known size, and commit them."""
    for number in range(start, start + count):
        store.append(record, "message", f"{number:0{size}}")
    store.commit()


def test_events_are_read_in_order_from_a_place() -> None:
    """What was committed is read, from behind any place, and only so much at a time."""
    store = make()
    record = add(store)
    store.append(record, "stdout", "a")
    assert store.dirty
    assert not store.read(record, 0)
    assert store.commit() == [record]
    assert not store.dirty
    assert store.read(record, 0) == [Row(1, "stdout", "a", ROW + 1)]
    fill(store, record, 5, size=100)
    assert [row.place for row in store.read(record, 2)] == [3, 4, 5, 6]
    assert len(store.read(record, 0, max_rows=2)) == 2
    assert len(store.read(record, 1, max_bytes=2 * (ROW + 100))) == 2
    assert len(store.read(record, 1, max_bytes=1)) == 1
    assert not store.read(record, 6)
    assert store.bytes == ROW + 1 + 5 * (ROW + 100)


def test_a_process_is_added_once() -> None:
    """Its id is its name; the beginning of its input is kept."""
    store = make()
    record = store.add("one", "echo@0.1.0", "alice", "x" * 10_000)
    assert store.add("one", "other", "bob", "") is record
    assert len(record.input) == 4096


def test_the_end_is_kept_once_and_counts() -> None:
    """The first end stands; its text is in the file after the commit, and the process is settled then."""
    store = make()
    record = add(store)
    store.finish(record, "returned", '{"a": 1}')
    store.finish(record, "failed", "too late")
    assert (record.status, record.running, record.settled) == ("returned", False, False)
    assert not store.running
    store.commit()
    assert record.settled
    assert store.result(record) == '{"a": 1}'
    store.append(add(store, "two"), "message", "of another")
    store.rewind(record, "alice", 0)
    store.commit()
    assert store.result(record) == '{"a": 1}'  # written again without it


def test_a_large_result_is_not_kept() -> None:
    """A result beyond the limit makes the process a lost one, and its text says so."""
    store = make(result_bytes=10)
    record = add(store)
    store.finish(record, "returned", "x" * 11)
    store.commit()
    assert record.status == LOST
    assert "11 bytes" in store.result(record)


def test_everything_is_there_again(tmp_path: Path) -> None:
    """A store that is opened again has its processes, events, places, results and facts."""
    path = tmp_path / "keeper" / "store"
    store = make(path)
    record, ended = add(store), add(store, "two")
    fill(store, record, 3)
    store.receive(record, "bob", 2)
    store.finish(ended, "failed", "because")
    store.set_fact("generation", "0.5")
    store.close()
    store.close()
    again = make(path)
    found = again.records["one"]
    assert attrs.astuple(found) == attrs.astuple(record)
    assert (found.readers, found.last, found.end) == ({"bob": 2}, 3, 4)
    assert again.running == {"one"}
    assert again.result(again.records["two"]) == "because"
    assert again.bytes == store.bytes
    assert again.fact("generation") == "0.5"
    assert again.fact("nothing") is None
    assert add(again, "three").number == 3
    again.close()


def test_places_move_forwards_only() -> None:
    """A reader's place is the furthest that it confirmed, unless it asks to go back."""
    store = make(readers=2)
    record = add(store)
    fill(store, record, 5)
    store.receive(record, "alice", 3)
    store.receive(record, "alice", 2)
    assert record.readers == {"alice": 3}
    store.rewind(record, "alice", 1)
    store.rewind(record, "bob", 99)
    assert record.readers == {"alice": 1, "bob": 6}
    store.rewind(record, "alice", -1)
    store.receive(record, "carol", 1)
    assert record.readers == {"alice": 0, "carol": 1}  # bob was heard of least recently


def test_the_oldest_events_of_a_process_go_first() -> None:
    """Beyond the bytes of one process its oldest events go, some more than needed, and others keep theirs."""
    store = make(process_bytes=8 * (ROW + 10))
    one, two = add(store), add(store, "two")
    fill(store, one, 8)
    fill(store, two, 8)
    assert (one.first, two.first) == (1, 1)
    fill(store, one, 1, start=8)
    assert (one.first, one.last, two.first) == (3, 9, 1)
    assert texts(store, one) == [f"{number:010}" for number in range(2, 9)]
    assert one.bytes == 7 * (ROW + 10)
    assert store.bytes == 15 * (ROW + 10)


def test_an_event_may_be_too_large() -> None:
    """One that is larger than all that is kept of a process goes at once."""
    store = make(process_bytes=100)
    record = add(store)
    fill(store, record, 1, size=200)
    assert (record.first, record.last, record.bytes, store.bytes) == (2, 1, 0, 0)


def test_the_number_of_events_is_bounded() -> None:
    """Many small events are as much as few large ones."""
    store = make(process_events=16)
    record = add(store)
    fill(store, record, 20)
    assert (record.first, record.last) == (7, 20)


def put_file(store: Store, record: Record, pieces: int, size: int = 100) -> None:
    for piece in range(pieces):
        store.append_piece(record, bytes(size), "hash", piece, pieces, "name")


def test_files_go_whole() -> None:
    """A file of which one piece is too much goes altogether."""
    store = make(process_bytes=6 * (ROW + 100))
    record = add(store)
    put_file(store, record, 4)
    store.commit()
    put_file(store, record, 3)
    store.commit()
    assert (record.first, record.last) == (5, 7)
    first, *_, last = store.read(record, 0)
    assert (first.place, first.piece, first.pieces, first.name, first.digest) == (5, 0, 3, "name", "hash")
    assert not first.whole
    assert last.whole


def test_the_oldest_output_of_all_goes_first() -> None:
    """Beyond the bytes of all, whatever is oldest goes, of any process; files whole; results stay."""
    store = make(total_bytes=16 * (ROW + 100))
    one, two, three = add(store), add(store, "two"), add(store, "three")
    fill(store, one, 1, size=100)
    put_file(store, two, 4)
    store.commit()
    fill(store, three, 9, size=100)
    store.finish(one, "returned", "x" * 100)
    store.commit()
    assert (one.first, two.first, three.first) == (1, 1, 1)
    fill(store, three, 2, size=100, start=9)
    assert (one.first, two.first, three.first) == (2, 5, 1)
    assert (one.bytes, two.bytes) == (0, 0)
    assert store.result(one) == "x" * 100
    assert store.bytes == 12 * (ROW + 100)


def test_results_go_last() -> None:
    """Where no output is left, the results that ended first go; what runs is never forgotten."""
    store = make(total_bytes=8 * (ROW + 100))
    running = add(store)
    ended = [add(store, f"{number}") for number in range(9)]
    fill(store, running, 1, size=100)
    for record in ended:
        store.finish(record, "returned", "x" * 100)
    store.commit()
    assert set(store.records) == {"one", "2", "3", "4", "5", "6", "7", "8"}
    assert (running.first, running.last) == (2, 1)
    assert store.bytes == 7 * (ROW + 100)
    # Somebody may be reading it at that moment.
    assert ended[0].status == LOST
    assert "no longer kept" in store.result(ended[0])
    store.receive(ended[0], "alice", 1)
    store.commit()
    assert len(store.records) == 8


def test_results_age() -> None:
    """Results that are too old or too many are forgotten with their output."""
    clock = Clock()
    store = make(clock=clock, result_age=60, results=2)
    for number in range(4):
        record = add(store, f"{number}")
        fill(store, record, 1)
        store.finish(record, "returned", "")
        store.commit()
        clock.now += 10
    assert list(store.records) == ["2", "3"]
    clock.now += 45
    store.commit()
    assert list(store.records) == ["3"]
    clock.now += 60
    store.commit()
    assert not store.records
    assert store.bytes == 0


def test_ages_survive(tmp_path: Path) -> None:
    """The order of ends is known again when the store is opened."""
    clock, path = Clock(), tmp_path / "keeper" / "store"
    store = make(path, clock)
    for name, ended in (("late", 1020.0), ("early", 1010.0)):
        record = add(store, name)
        clock.now = ended
        store.finish(record, "returned", "")
    store.close()
    again = make(path, clock, results=1)
    again.commit()
    assert list(again.records) == ["late"]
    again.close()


@pytest.mark.parametrize("damage", ["garbage", "version", "readers"])
def test_what_cannot_be_read_is_set_aside(tmp_path: Path, damage: str) -> None:
    """A damaged file, or one of another version, is kept under another name, and a new one is begun."""
    path = tmp_path / "keeper" / "store"
    store = make(path)
    add(store, "other")
    add(store)
    store.close()
    if damage == "garbage":
        path.write_bytes(b"no database" * 1000)
    else:
        database = sqlite3.connect(path)
        wrong = "UPDATE processes SET readers = '{' WHERE id = 'one'"
        database.execute("PRAGMA user_version = 99" if damage == "version" else wrong)
        database.commit()
        database.close()
    again = make(path)
    assert again.set_aside == tmp_path / "keeper" / "store.unreadable-1000"
    assert again.set_aside.exists()
    assert not again.records
    assert again.bytes == 0
    assert add(again).number == 1
    again.close()


def test_a_busy_file_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be opened at the moment is not taken for a damaged one."""
    path = tmp_path / "keeper" / "store"
    make(path).close()

    def busy(*arguments: Any) -> None:
        msg = "database is locked"
        raise sqlite3.OperationalError(msg)

    monkeypatch.setattr(Store, "_load", busy)
    with pytest.raises(sqlite3.OperationalError):
        make(path)
    assert sorted(os.listdir(path.parent)) == ["store"]


def test_memory_has_no_other_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file there is nothing to set aside."""

    def broken(*arguments: Any) -> None:
        raise ValueError

    monkeypatch.setattr(Store, "_load", broken)
    with pytest.raises(ValueError):
        make()


def test_a_failed_commit_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written whole is not written at all."""
    path = tmp_path / "keeper" / "store"
    store = make(path)
    record = add(store)
    fill(store, record, 1)
    store.append(record, "message", "two")

    def full(*arguments: Any) -> None:
        msg = "database or disk is full"
        raise sqlite3.OperationalError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(store, "_write", full)
        with pytest.raises(sqlite3.OperationalError):
            store.commit()
    store.close()
    again = make(path)
    assert again.records["one"].last == 1
    assert texts(again, again.records["one"]) == ["0000000000"]
    again.close()


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    """The directory has mode 0700 and every file in it 0600, whatever the umask."""
    path = tmp_path / "keeper" / "store"
    before = os.umask(0)
    try:
        store = make(path)
        fill(store, add(store), 3)
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
        store.close()
    finally:
        os.umask(before)
    assert modes == {"store": 0o600, "store-wal": 0o600, "store-shm": 0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_copy_at_any_moment_can_be_opened(tmp_path: Path) -> None:
    """The file is at every moment what some commit left: a copy, between any two, has all events up to there."""
    path = tmp_path / "keeper" / "store"
    store = make(path)
    record = add(store)
    for number in range(6):
        store.append(record, "message", f"{number}")
        store.append(record, "message", f"{number}")
        if number % 2:
            store.commit()
        copy = tmp_path / f"copy{number}"
        shutil.copytree(path.parent, copy)
        copy.chmod(0o700)
        seen = make(copy / "store")
        expected = (number + 1) // 2 * 4
        found = seen.records.get("one")
        assert (found.last if found else 0) == expected
        assert len(texts(seen, found) if found else []) == expected
        seen.close()
    store.close()


_WRITER = """
import sys
from pathlib import Path
from pie_anyio.keeper.store import Store
store = Store(Path(sys.argv[1]))
record = store.add("one", "echo@0.1.0", "alice", "")
number = 0
while True:
    for _ in range(7):
        number += 1
        store.append(record, "message", str(number))
    store.receive(record, "alice", number)
    store.commit()
    if number % 70 == 0:
        print(number, flush=True)
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    """After kill -9 in the middle of it, all that was committed is there, whole, without a hole, and agrees."""
    path = tmp_path / "keeper" / "store"
    for _ in range(3):
        shutil.rmtree(path.parent, ignore_errors=True)
        command = [sys.executable, "-c", _WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            written = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            written = int((process.stdout.read().split() or [str(written)])[-1])
        store = make(path)
        record = store.records["one"]
        assert record.last >= written
        assert record.last % 7 == 0
        assert record.readers == {"alice": record.last}
        assert store.set_aside is None
        found = texts(store, record, record.last - 50)
        assert found == [str(number) for number in range(record.last - 49, record.last + 1)]
        store.close()
