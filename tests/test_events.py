# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pie_anyio import _events
from pie_anyio._events import AnyEvent, Error, Event, File, Gap, Message, ReceivedFile, Return, Stderr, Stdout
from pie_anyio._exceptions import TransferError

EVENTS: list[AnyEvent] = [
    Stdout(Event.Stdout, "out"),
    Stderr(Event.Stderr, "err"),
    Message(Event.Message, "hello"),
    File(Event.File, ReceivedFile(b"abc", "a.txt")),
    Return(Event.Return, "42"),
    Error(Event.Error, "boom"),
    Gap(Event.Gap, "3 events were dropped"),
]
each_event = pytest.mark.parametrize("event", EVENTS, ids=[type(event).__name__ for event in EVENTS])


# ------------------------------------------------------------------------------------------------------------ events


@each_event
def test_an_event_is_a_pair(event: AnyEvent) -> None:
    """Events unpack into kind and value, as those of the official client do."""
    kind, value = event
    assert kind == event.kind == Event(type(event).__name__.lower())
    assert value == event.value
    assert (event[0], event[1]) == (kind, value)


def describe(event: AnyEvent) -> str:
    """Tell events apart as a user would."""
    match event:
        case File(value=data):
            return f"file {data.name}"
        case Stdout(value=text) | Stderr(value=text) | Message(value=text):
            return f"text {text}"
        case Return(value=text):
            return f"return {text}"
        case Error(value=text) | Gap(value=text):
            return f"trouble {text}"


DESCRIPTIONS = [
    *("text out", "text err", "text hello", "file a.txt", "return 42", "trouble boom"),
    "trouble 3 events were dropped",
]


@pytest.mark.parametrize(
    ("event", "description"),
    list(zip(EVENTS, DESCRIPTIONS, strict=True)),
    ids=[type(event).__name__ for event in EVENTS],
)
def test_match_tells_events_apart_by_class(event: AnyEvent, description: str) -> None:
    """``match`` with keyword patterns selects by class, although all events are pairs."""
    assert describe(event) == description


@each_event
def test_events_pickle(event: AnyEvent) -> None:
    """Events survive pickling with class and value, files with their name."""
    again = pickle.loads(pickle.dumps(event))  # noqa: S301 - our own bytes
    assert type(again) is type(event)
    assert again == event
    assert getattr(again.value, "name", None) == ("a.txt" if isinstance(event, File) else None)


def test_kinds_are_the_engine_s_words() -> None:
    """A kind can be made from, and compared with, the word on the wire."""
    assert Event("stdout") is Event.Stdout
    assert {"return": 1}[Event.Return] == 1
    assert [str(kind) for kind in Event] == ["stdout", "stderr", "message", "file", "return", "error", "gap"]


# ------------------------------------------------------------------------------------------------------------- files


def test_a_received_file_is_bytes() -> None:
    """Content, length, equality and hash are those of the bytes; the name is beside."""
    file = ReceivedFile(bytearray(b"abc"), "a.txt")
    assert isinstance(file, bytes)
    assert (file, len(file), hash(file), file.name) == (b"abc", 3, hash(b"abc"), "a.txt")
    assert ReceivedFile() == b""
    assert ReceivedFile(memoryview(b"x")).name is None


def test_the_representation_does_not_show_the_content() -> None:
    """A large file does not flood a log, and a hostile name is escaped."""
    assert repr(ReceivedFile(b"secret", "a\n.txt")) == "<ReceivedFile 'a\\n.txt', 6 bytes>"


SAFE_NAMES = {
    "plain.txt": "plain.txt",
    "two words.tar.gz": "two words.tar.gz",
    ".hidden": ".hidden",
    "größe.txt": "größe.txt",
    "../../etc/passwd": "passwd",
    "/etc/passwd": "passwd",
    "a\\b\\c.txt": "c.txt",
    "..\\..\\boot.ini": "boot.ini",
    "C:evil.txt": "evil.txt",
    "C:\\dir\\evil.txt": "evil.txt",
    "file.txt:stream": "stream",
    "nul\x00byte.txt": "nulbyte.txt",
    "tab\tline\n.txt": "tabline.txt",
    "gpj.\u202eexe.txt": "gpj.exe.txt",
    "zero\u200bwidth": "zerowidth",
    "line\u2028end\u2029s": "lineends",
    "lone\ud800surrogate": "lonesurrogate",
    " spaces ": "spaces",
    "dots...": "dots",
    "mixed. . ": "mixed",
    'a<b>c"d|e?f*g.txt': "a_b_c_d_e_f_g.txt",
    "con": "_con",
    "CON.txt": "_CON.txt",
    "Nul .tar.gz": "_Nul .tar.gz",
    "com1": "_com1",
    "LPT9.log": "_LPT9.log",
    "com\u00b9.txt": "_com\u00b9.txt",
    "conout$": "_conout$",
    "console.txt": "console.txt",
    "common": "common",
    "archive.an-extension-of-more-than-thirty-two-bytes": "archive.an-extension-of-more-than-thirty-two-bytes",
}


@pytest.mark.parametrize(("name", "safe"), SAFE_NAMES.items(), ids=[ascii(name) for name in SAFE_NAMES])
def test_names_are_made_safe(name: str, safe: str) -> None:
    """Whatever a program calls its file, one harmless component is left."""
    assert ReceivedFile(b"", name).file_name() == safe


@pytest.mark.parametrize(
    "name", [None, "", ".", "..", "...", "/", "a/", "\\", "C:", " ", "\x00", "\u202e", ". ."]
)
def test_the_fallback_stands_in_for_nothing(name: str | None) -> None:
    """Where no usable name is left, the caller's fallback is given unchanged."""
    assert ReceivedFile(b"", name).file_name() == "file.bin"
    assert ReceivedFile(b"", name).file_name("result.pdf") == "result.pdf"


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a" * 255, "a" * 255),
        ("a" * 256, "a" * 255),
        ("a" * 300 + ".txt", "a" * 251 + ".txt"),
        ("ä" * 200 + ".txt", "ä" * 125 + ".txt"),
        ("a" + "." + "b" * 300, "a." + "b" * 253),
        ("a" * 253 + " ." + "b" * 50, "a" * 253),
        ("." * 300 + "a.txt", ".txt"),
        ("." * 300 + "a", "file.bin"),
    ],
)
def test_long_names_are_cut(name: str, safe: str) -> None:
    """Names fit into 255 bytes; a short extension survives, and no trailing dot or space appears by cutting."""
    assert ReceivedFile(b"", name).file_name() == safe


@settings(deadline=None)
@given(st.text() | st.text(alphabet="./\\:. \x00con"))
def test_any_name_is_harmless(name: str) -> None:
    """No text whatsoever gives a separator, a relative component, a control character or an over-long name."""
    safe = ReceivedFile(b"", name).file_name()
    assert safe not in {"", ".", ".."}
    assert not set(safe) & set('/\\:<>"|?*\x00\n\r')
    assert safe == safe.strip().rstrip(". ")
    assert 1 <= len(safe.encode()) <= 255
    assert ReceivedFile(b"", safe).file_name() == safe


def test_save_writes_the_content(tmp_path: Path) -> None:
    """The file lands under its safe name in the directory, which is made where it is missing."""
    path = ReceivedFile(b"abc", "../a.txt").save(tmp_path / "new" / "dir")
    assert path == tmp_path / "new" / "dir" / "a.txt"
    assert path.read_bytes() == b"abc"
    assert ReceivedFile(b"x").save(str(tmp_path), fallback="none.dat") == tmp_path / "none.dat"


def test_save_never_overwrites(tmp_path: Path) -> None:
    """A second file of the same name gets a number before its extension."""
    names = [ReceivedFile(content, "a.txt").save(tmp_path).name for content in (b"1", b"2", b"3")]
    assert names == ["a.txt", "a-1.txt", "a-2.txt"]
    assert (tmp_path / "a.txt").read_bytes() == b"1"


def test_numbered_long_names_still_fit(tmp_path: Path) -> None:
    """The number takes room from a name of full length rather than exceeding the limit."""
    paths = [ReceivedFile(b"", "a" * 300 + ".txt").save(tmp_path) for _ in range(3)]
    assert [len(path.name) for path in paths] == [255, 255, 255]
    assert [path.name[-7:] for path in paths] == ["aaa.txt", "a-1.txt", "a-2.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege on Windows")
@pytest.mark.parametrize("dangling", [False, True])
def test_save_does_not_follow_links(tmp_path: Path, dangling: bool) -> None:
    """A link with the file's name keeps what it points to untouched, also where that does not exist."""
    target = tmp_path / "target"
    if not dangling:
        target.write_bytes(b"precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").symlink_to(target)
    assert ReceivedFile(b"new", "a.txt").save(folder).name == "a-1.txt"
    assert target.exists() is not dangling
    if not dangling:
        assert target.read_bytes() == b"precious"


def test_save_gives_up_when_all_names_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for a free name is bounded and says so."""
    monkeypatch.setattr(_events, "_MAX_COPIES", 3)
    for _ in range(3):
        ReceivedFile(b"", "a.txt").save(tmp_path)
    with pytest.raises(TransferError, match=r"a\.txt and 2 numbered names exist already"):
        ReceivedFile(b"", "a.txt").save(tmp_path)
    assert len(os.listdir(tmp_path)) == 3


def test_save_into_a_file_is_a_transfer_error(tmp_path: Path) -> None:
    """An unusable directory is named in the error, and the cause kept."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TransferError, match="could not save a received file of 3 bytes in") as caught:
        ReceivedFile(b"abc", "a.txt").save(tmp_path / "file")
    assert isinstance(caught.value.__cause__, OSError)


def test_a_file_that_cannot_be_written_whole_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk leaves no half of a file behind."""

    class FullDisk:
        def __init__(self, path: Path) -> None:
            self.file = path.open("ab")

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *exc: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            self.file.write(data[:1])
            raise OSError(28, "No space left on device")

    real_open = Path.open

    def opening(path: Path, mode: str) -> object:
        return FullDisk(path) if mode == "xb" else real_open(path, mode)

    monkeypatch.setattr(Path, "open", opening)
    with pytest.raises(TransferError, match="No space left on device"):
        ReceivedFile(b"abc", "a.txt").save(tmp_path)
    assert os.listdir(tmp_path) == []
