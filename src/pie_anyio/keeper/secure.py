# SPDX-License-Identifier: Apache-2.0
"""Directories, files, locks and peers that are this user's and nobody else's."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from anyio.abc import AnyByteStream, SocketAttribute

from .._exceptions import PieError

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
# sizeof(sockaddr_un.sun_path) less the closing zero, of the systems that have the least of it.
_SOCKET_PATH_BYTES: Final = 103
_LOCAL_PEERCRED: Final = 1
_XUCRED: Final = struct.Struct("=IIh")  # version, user, number of groups; the groups follow


class KeeperError(PieError):
    """A keeper cannot be started or reached, or it would not be safe."""


class KeeperRunning(KeeperError):
    """Another keeper has the socket or the store."""


def make_private_folder(path: Path) -> None:
    """Make a directory that only its owner can enter, with its parents, or check the one that is there.

    Raises:
        KeeperError: it is a link, somebody else's, or open to others, or somebody else could replace it.
    """
    if not path.is_absolute():
        msg = f"the keeper needs an absolute path, not {path}"
        raise KeeperError(msg)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check(path, path.lstat())
    except OSError as exc:
        msg = f"the keeper cannot have {path}: {exc.strerror or exc}"
        raise KeeperError(msg) from exc


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode):
        msg = f"the keeper refuses {path}: it is no directory, or a symbolic link to one"
        raise KeeperError(msg)
    if status.st_uid != os.geteuid() or status.st_mode & _OTHERS:
        msg = f"the keeper refuses {path}: it must be yours alone (chmod 700), but {_describe(status)}"
        raise KeeperError(msg)
    # The links on the way count too: whoever owns one can have it lead elsewhere.
    for parent in {*path.parents, *path.resolve().parents}:
        above = parent.lstat()
        open_to_all = above.st_mode & _OTHERS_WRITE and not above.st_mode & stat.S_ISVTX
        if above.st_uid not in (0, os.geteuid()) or (open_to_all and not stat.S_ISLNK(above.st_mode)):
            msg = f"the keeper refuses {path}: others can replace it, since of {parent}, {_describe(above)}"
            raise KeeperError(msg)


def _describe(status: os.stat_result) -> str:
    return f"the owner is user {status.st_uid} and the mode {stat.S_IMODE(status.st_mode):04o}"


def make_private_file(path: Path) -> None:
    """Make a file that only its owner can read, or check the one that is there; its directory is checked too.

    Raises:
        KeeperError: it is a link, somebody else's, or open to others.
    """
    os.close(_open_private(path))


def _open_private(path: Path) -> int:
    make_private_folder(path.parent)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        msg = f"the keeper cannot have {path}: {exc.strerror or exc}"
        raise KeeperError(msg) from exc
    status = os.fstat(handle)
    alone = status.st_uid == os.geteuid() and status.st_nlink == 1
    if not stat.S_ISREG(status.st_mode) or not alone or status.st_mode & _OTHERS:
        os.close(handle)
        msg = f"the keeper refuses {path}: it must be a file of yours alone (chmod 600), but {_describe(status)}"
        raise KeeperError(msg)
    return handle


@contextmanager
def lock_file(path: Path) -> Generator[None]:
    """Hold a lock for the length of a block; the system frees it when this process dies.

    Raises:
        KeeperRunning: somebody else holds it.
    """
    handle = _open_private(path)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            msg = f"another keeper holds {path}"
            raise KeeperRunning(msg) from exc
        # The file stays: whoever removes it races with whoever has just opened it.
        yield
    finally:
        os.close(handle)


def free_socket_path(path: Path) -> None:
    """Make sure that a socket can be bound to a path; a socket that a dead keeper left is removed.

    Call it with the lock held.

    Raises:
        KeeperError: the path is too long, or something else than a socket is there.
    """
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        msg = f"{path} is too long for a socket: at most {_SOCKET_PATH_BYTES} bytes; give a shorter one"
        raise KeeperError(msg)
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            msg = f"the keeper refuses {path}: something that is no socket is there"
            raise KeeperError(msg)
        path.unlink()
    except FileNotFoundError:
        pass


def peer_user(stream: AnyByteStream) -> int | None:
    """Give the user id of the process at the other end of a Unix socket; None where the system does not tell."""
    raw = stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610 - not the `extra` that the rule means
    return None if raw is None else _socket_user(raw)


def _socket_user(raw: socket.socket) -> int | None:
    try:
        return _linux_user(raw) if hasattr(socket, "SO_PEERCRED") else _bsd_user(raw)
    except OSError:
        return None


def _linux_user(raw: socket.socket) -> int:
    _, user, _ = struct.unpack("3i", raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(user)


def _bsd_user(raw: socket.socket) -> int | None:
    """Ask as macOS and FreeBSD want to be asked; other systems refuse or answer something else."""
    answer = raw.getsockopt(0, _LOCAL_PEERCRED, 76)
    if len(answer) < _XUCRED.size:
        return None
    version, user, groups = _XUCRED.unpack_from(answer)
    return int(user) if version == 0 and 0 < groups <= 16 else None
