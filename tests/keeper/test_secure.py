# SPDX-License-Identifier: Apache-2.0
"""Directories, files, locks and peers of this user alone."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from pie_anyio.keeper import KeeperError, KeeperRunning
from pie_anyio.keeper.secure import (
    free_socket_path,
    lock_file,
    make_private_file,
    make_private_folder,
    peer_user,
)


@pytest.fixture
def short() -> Iterator[Path]:
    """Give a folder whose path leaves room for that of a socket."""
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        yield Path(folder).resolve()


def test_folders_are_made_private(tmp_path: Path) -> None:
    """A missing folder is made with mode 0700, whatever the umask; one that is there is accepted if it is like that."""
    folder = tmp_path / "a" / "b"
    before = os.umask(0o022)
    try:
        make_private_folder(folder)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    make_private_folder(folder)


def test_folders_have_absolute_paths() -> None:
    """What is relative means something else elsewhere."""
    with pytest.raises(KeeperError, match="absolute"):
        make_private_folder(Path("a"))


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A symbolic link where the folder or the file should be is refused, whoever made it."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(KeeperError, match="symbolic link"):
        make_private_folder(tmp_path / "link")
    (tmp_path / "real" / "file").symlink_to("elsewhere")
    with pytest.raises(KeeperError, match="cannot have"):
        make_private_file(tmp_path / "real" / "file")
    assert not (tmp_path / "real" / "elsewhere").exists()


def test_what_others_can_enter_is_refused(tmp_path: Path) -> None:
    """A folder or file with a mode that lets others in is refused, with what to do."""
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    with pytest.raises(KeeperError, match="chmod 700"):
        make_private_folder(folder)
    folder.chmod(0o700)
    (folder / "file").touch(mode=0o644)
    with pytest.raises(KeeperError, match="chmod 600"):
        make_private_file(folder / "file")
    (folder / "file").chmod(0o600)
    make_private_file(folder / "file")
    os.link(folder / "file", folder / "other")
    with pytest.raises(KeeperError, match="alone"):
        make_private_file(folder / "file")


def test_a_file_is_a_file(tmp_path: Path) -> None:
    """A FIFO would be one that somebody waits at."""
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    os.mkfifo(folder / "file", 0o600)
    with pytest.raises(KeeperError, match="must be a file"):
        make_private_file(folder / "file")


def test_a_folder_can_be_impossible(tmp_path: Path) -> None:
    """What the system says is passed on."""
    (tmp_path / "file").touch()
    with pytest.raises(KeeperError, match="Not a directory"):
        make_private_folder(tmp_path / "file" / "folder")


def test_parents_that_others_can_change_are_refused(tmp_path: Path) -> None:
    """Whoever can write to a parent could put something else in the folder's place; a sticky parent prevents that."""
    parent = tmp_path / "parent"
    parent.mkdir()
    parent.chmod(0o777)
    with pytest.raises(KeeperError, match="others can replace it"):
        make_private_folder(parent / "folder")
    parent.chmod(0o1777)
    make_private_folder(parent / "folder")


def test_parents_of_others_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in somebody else's folder, or behind somebody else's link, could be replaced by them."""
    folder = tmp_path / "folder"
    make_private_folder(folder)
    original, other = Path.lstat, tmp_path

    def lstat(path: Path) -> os.stat_result:
        status = original(path)
        values = list(status)
        if path == other:
            values[4] = 12345
        return os.stat_result(values)

    monkeypatch.setattr(Path, "lstat", lstat)
    with pytest.raises(KeeperError, match=r"others can replace it, since of .*, the owner is user 12345"):
        make_private_folder(folder)
    other = folder
    with pytest.raises(KeeperError, match=r"alone .* but the owner is user 12345"):
        make_private_folder(folder)


def test_a_link_on_the_way_is_followed(tmp_path: Path) -> None:
    """A parent may be a link, if it is one's own: so it is with /tmp on some systems."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    make_private_folder(tmp_path / "link" / "folder")
    assert (tmp_path / "real" / "folder").is_dir()


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    """A second holder is refused, here and in another process; when the first has gone, the next gets it."""
    path = tmp_path / "folder" / "lock"
    with lock_file(path):
        with pytest.raises(KeeperRunning, match="another keeper"):
            with lock_file(path):
                pass
        program = "import sys, pathlib, pie_anyio.keeper.secure as s\nwith s.lock_file(pathlib.Path(sys.argv[1])): pass"
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)], check=False, capture_output=True, text=True
        )
        assert "KeeperRunning" in done.stderr
    with lock_file(path):
        pass


def test_a_dead_socket_makes_way(short: Path) -> None:
    """What a keeper left that was killed is removed; what is no socket stays, and is refused."""
    path = short / "socket"
    free_socket_path(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    free_socket_path(path)
    assert not path.exists()
    path.touch()
    with pytest.raises(KeeperError, match="no socket"):
        free_socket_path(path)
    assert path.exists()


def test_sockets_have_short_paths() -> None:
    """A path that no system takes is refused with the reason."""
    with pytest.raises(KeeperError, match="too long for a socket"):
        free_socket_path(Path("/" + "x" * 104))


class Raw:
    """A socket that answers questions about its peer as it is told."""

    def __init__(self, *answers: bytes | OSError) -> None:
        self.answers = list(answers)

    def getsockopt(self, *arguments: int) -> bytes:
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer


class Stream:
    def __init__(self, raw: object) -> None:
        self.raw = raw

    def extra(self, attribute: object, default: object) -> object:
        return self.raw


def ask(raw: object) -> int | None:
    return peer_user(cast("Any", Stream(raw)))


def test_the_system_tells_who_the_peer_is() -> None:
    """A peer of our own is ourselves."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert ask(ours) == os.geteuid()


def test_no_answer_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream without a socket, and a system that does not tell, give nobody."""
    assert ask(None) is None
    assert ask(Raw(OSError())) is None


def test_other_systems_are_asked_in_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and FreeBSD give a structure; one that is not as expected is no answer."""
    monkeypatch.delattr(socket, "SO_PEERCRED")
    good = struct.pack("=IIh", 0, 501, 1) + bytes(64)
    assert ask(Raw(good)) == 501
    assert ask(Raw(good[:9])) is None
    assert ask(Raw(struct.pack("=IIh", 1, 501, 1))) is None
    assert ask(Raw(struct.pack("=IIh", 0, 501, 0))) is None
    assert ask(Raw(OSError())) is None
