# SPDX-License-Identifier: Apache-2.0
"""Files of programs stay in the directory that they are saved in, whatever they are called and whatever is there."""

from __future__ import annotations

import ntpath
import os
import tempfile
import threading
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pie_anyio import ReceivedFile

PIECES = [
    "..",
    ".",
    "/",
    "\\",
    "a",
    "b.txt",
    "\x00",
    ":",
    "C:",
    "//host/share",
    "\\\\?\\",
    "~",
    "$HOME",
    "%TEMP%",
    " ",
]
NAMES = (
    st.text()
    | st.lists(st.sampled_from(PIECES) | st.characters(), max_size=12).map("".join)
    | st.sampled_from(["con", "NUL", "Com1", "lpt9", "aux", "prn", "conin$"]).flatmap(
        lambda name: st.sampled_from(["", ".txt", ". .", " ", ".tar.gz", ":x"]).map(lambda end: name + end)
    )
    | st.text(min_size=250, max_size=400)
)


def everything_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@settings(deadline=None)
@given(name=NAMES, content=st.binary(max_size=10))
@example(name="../../outside", content=b"x")
@example(name="..\\..\\outside", content=b"x")
@example(name="/etc/passwd", content=b"x")
@example(name="ok\x00../../outside", content=b"x")
def test_one_file_in_the_directory(name: str, content: bytes) -> None:
    """Saving twice makes two files in it, with the content, and nothing anywhere else."""
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top) / "outer" / "inner"
        paths = [ReceivedFile(content, name).save(folder) for _ in range(2)]
        assert len(set(paths)) == 2
        assert everything_below(Path(top)) == {
            "outer",
            "outer/inner",
            *(f"outer/inner/{p.name}" for p in paths),
        }
        for path in paths:
            assert path.parent == folder
            assert path.resolve().parent == folder.resolve()
            assert path.read_bytes() == content


@settings(deadline=None)
@given(name=NAMES)
def test_a_name_is_one_component_on_windows_too(name: str) -> None:
    """Without a drive or a device, and as Windows would keep it."""
    safe = ReceivedFile(b"", name).file_name()
    path = PureWindowsPath(safe)
    assert path.parts == (safe,)
    assert not path.drive
    assert not path.root
    reserved = getattr(ntpath, "isreserved", None)  # from Python 3.13, where the other way warns
    assert not (reserved(safe) if reserved else path.is_reserved())
    assert safe == safe.rstrip(". ")


@pytest.mark.skipif(os.name != "posix", reason="links need rights there")
@pytest.mark.parametrize("target", ["outside.txt", "missing.txt", "folder", "x.txt", "/dev/null"])
def test_links_in_the_directory_are_not_followed(tmp_path: Path, target: str) -> None:
    """Not to files, not to where a file would be made, not to directories, not to themselves."""
    folder = tmp_path / "files"
    folder.mkdir()
    (tmp_path / "outside.txt").write_bytes(b"precious")
    (tmp_path / "folder").mkdir()
    link = folder / "x.txt"
    link.symlink_to(target if target == "x.txt" else tmp_path / target)
    path = ReceivedFile(b"new", "x.txt").save(folder)
    assert path == folder / "x-1.txt"
    assert path.read_bytes() == b"new"
    assert not path.is_symlink()
    assert (tmp_path / "outside.txt").read_bytes() == b"precious"
    assert not (tmp_path / "missing.txt").exists()
    assert not list((tmp_path / "folder").iterdir())
    assert link.is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="no such files there")
def test_pipes_and_directories_are_left_alone(tmp_path: Path) -> None:
    """A pipe under the name would hold up whoever opens it."""
    os.mkfifo(tmp_path / "x")
    (tmp_path / "x-1").mkdir()
    assert ReceivedFile(b"new", "x").save(tmp_path) == tmp_path / "x-2"


def test_nobody_overwrites_anybody(tmp_path: Path) -> None:
    """Of many that save the same name at the same time, each has its own file."""
    paths: list[Path] = []

    def save(number: int) -> None:
        paths.append(ReceivedFile(b"%d" % number, "x.txt").save(tmp_path))

    threads = [threading.Thread(target=save, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert len(set(paths)) == 20
    assert {path.read_bytes() for path in paths} == {b"%d" % number for number in range(20)}
