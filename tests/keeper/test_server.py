# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ASYNC240 - a keeper's files are few and small
"""The keeper on its socket: who may connect, how many, and how it ends."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from pie_anyio import ConnectError, PieClient
from pie_anyio._protocol import websocket as wire
from pie_anyio._protocol.codec import encode_request
from pie_anyio._protocol.messages import LaunchProcess, Ping
from pie_anyio.keeper import Keeper, KeeperError, KeeperLimits, KeeperRunning, downstream, server
from pie_anyio.keeper.downstream import Session
from pie_anyio.keeper.store import Store
from pie_anyio.testing import SimulatedEngine
from pie_anyio.testing.streams import MemoryConnectable

from .conftest import Kept, keep
from .raw import Raw

MUCH = LaunchProcess("count@0.1.0", '{"n": 3000}')


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder whose path leaves room for that of a socket."""
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        yield Path(folder).resolve() / "keeper"


@pytest.fixture
def profile() -> Any:
    """One generation will do."""
    return "v05"


@asynccontextmanager
async def serve(engine: SimulatedEngine, folder: Path, **options: Any) -> AsyncIterator[Keeper]:
    """Serve a keeper on a socket for the length of a block."""
    keeper = Keeper(
        lambda: PieClient(engine.connectable, close_timeout=0.05),
        socket=folder / "so cket",
        store=folder / "store",
        **options,
    )
    async with anyio.create_task_group() as tasks:
        await tasks.start(keeper.serve)
        try:
            yield keeper
        finally:
            keeper.stop()


async def test_on_a_socket(engine: SimulatedEngine, folder: Path) -> None:
    """Clients connect by a URL; the socket is its user's alone, and is gone when the keeper has gone."""
    with anyio.fail_after(5):
        async with serve(engine, folder) as keeper:
            assert keeper.socket is not None
            mode = keeper.socket.lstat().st_mode
            assert stat.S_ISSOCK(mode)
            assert mode & 0o777 == 0o600
            assert folder.stat().st_mode & 0o777 == 0o700
            async with PieClient(keeper.url) as client:
                assert (await client.run_process("echo@0.1.0", 1)).value == 1
        assert not keeper.socket.exists()
        async with serve(engine, folder) as keeper, PieClient(keeper.url) as client:
            await client.ping()


async def test_one_keeper_for_each_socket_and_store(engine: SimulatedEngine, folder: Path) -> None:
    """A second keeper is refused, and the first one goes on."""
    with anyio.fail_after(5):
        async with serve(engine, folder) as keeper:
            for options in (
                {"socket": keeper.socket},
                {"socket": folder / "other", "store": folder / "store"},
            ):
                with pytest.raises(KeeperRunning):
                    await Keeper(lambda: PieClient(engine.connectable), **options).serve()
            async with PieClient(keeper.url) as client:
                await client.ping()


async def test_what_a_killed_keeper_left_makes_way(engine: SimulatedEngine, folder: Path) -> None:
    """A socket that nobody listens on is replaced; anything else in its place is refused."""
    folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "so cket"))
    with anyio.fail_after(5):
        async with serve(engine, folder) as keeper, PieClient(keeper.url) as client:
            await client.ping()
        (folder / "other").write_text("precious")
        with pytest.raises(KeeperError, match="no socket"):
            await Keeper(lambda: PieClient(engine.connectable), socket=folder / "other").serve()
        assert (folder / "other").read_text() == "precious"


async def test_a_linked_folder_is_refused(engine: SimulatedEngine, folder: Path) -> None:
    """Neither the socket nor the store is put where a symbolic link leads."""
    real = folder.with_name("real")
    real.mkdir(mode=0o700)
    folder.symlink_to(real)
    with pytest.raises(KeeperError, match="symbolic link"):
        await Keeper(lambda: PieClient(engine.connectable), socket=folder / "socket").serve()
    assert not list(real.iterdir())


@pytest.mark.parametrize("user", [None, 12345])
async def test_other_users_are_hung_up_on(
    engine: SimulatedEngine, folder: Path, user: int | None, caplog: Any
) -> None:
    """A peer that is somebody else, or nobody knows who, gets nothing, not even a handshake."""
    with anyio.fail_after(5):
        async with serve(engine, folder, peer_user=lambda stream: user) as keeper:
            with pytest.raises(ConnectError):
                async with PieClient(keeper.url):
                    pass
    assert f"from user {user}" in caplog.text


_OTHER_USER = """
import socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.settimeout(5)
peer.connect(sys.argv[1])
try:
    peer.sendall(b"GET /v1/ws HTTP/1.1\\r\\n")
    print(len(peer.recv(100)))
except OSError:
    print(0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_really(engine: SimulatedEngine, folder: Path) -> None:
    """Also where the modes would let another user connect, the system says who it is, and that is the end."""
    with anyio.fail_after(20):
        async with serve(engine, folder) as keeper:
            assert keeper.socket is not None
            arguments = ["/usr/bin/env", "python3", "-I", "-c", _OTHER_USER, str(keeper.socket)]

            def run() -> subprocess.CompletedProcess[str]:
                return subprocess.run(
                    arguments, user=65534, group=65534, check=False, capture_output=True, text=True
                )

            closed = await anyio.to_thread.run_sync(run)
            assert "PermissionError" in closed.stderr
            folder.parent.chmod(0o755)
            folder.chmod(0o711)
            keeper.socket.chmod(0o666)
            opened = await anyio.to_thread.run_sync(run)
            assert (opened.returncode, opened.stdout) == (0, "0\n")
            assert not keeper.sessions
            folder.chmod(0o700)


async def test_so_many_clients(engine: SimulatedEngine) -> None:
    """Beyond the bound a client is told so; far beyond it, it is hung up on without a word."""
    with anyio.fail_after(5):
        async with keep(engine, limits=KeeperLimits(sessions=1)) as kept, kept.client() as client:
            await client.ping()
            with pytest.raises(ConnectError, match="as many as it takes"):
                async with kept.client():
                    pass
            await kept.settle()
            silent = await kept.connect()
            await kept.settle()
            raw = Raw(await kept.connect(), "alice")
            await raw.until_end()
            await raw.stream.aclose()
            await silent.aclose()


async def test_bad_limits() -> None:
    """A bound of nothing would be a keeper that keeps nothing."""
    with pytest.raises(ValueError, match="sessions"):
        KeeperLimits(sessions=0)


async def test_where_to_listen(engine: SimulatedEngine) -> None:
    """A keeper has a socket or a given listener, and only a socket has a URL."""
    with pytest.raises(KeeperError, match="or on a given listener"):
        Keeper(lambda: PieClient(engine.connectable))
    with pytest.raises(KeeperError, match="no socket"):
        _ = Keeper(lambda: PieClient(engine.connectable), listener=MemoryConnectable().listener).url


async def test_a_stop_is_announced(kept: Kept) -> None:
    """Clients that are connected when the keeper stops are told, behind what is still on its way to them."""
    with anyio.fail_after(5):
        raw = await Raw(await kept.connect(), "alice").__aenter__()
        stuck = await kept.connect()
        kept.keeper.stop()
        await raw.until_end()
        closed = raw.received[-1]
        assert isinstance(closed, wire.CloseReceived)
        assert (closed.code, closed.reason) == (1001, "the keeper is stopping")
        await stuck.aclose()


@pytest.mark.both_loops
async def test_a_stuck_client_does_not_hold_it_up(engine: SimulatedEngine) -> None:
    """A client that reads nothing is dropped after a moment."""
    with anyio.fail_after(5):
        async with keep(engine) as kept:
            raw = await Raw(await kept.connect(), "alice").__aenter__()
            await raw.send(MUCH, 1)
            await kept.settle()
        await raw.stream.aclose()


async def test_cancelled(engine: SimulatedEngine, folder: Path) -> None:
    """A cancelled keeper leaves nothing behind but what it has stored."""
    keeper = Keeper(lambda: PieClient(engine.connectable), socket=folder / "socket", store=folder / "store")
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            await tasks.start(keeper.serve)
            async with PieClient(keeper.url) as client:
                await client.run_process("echo@0.1.0")
                tasks.cancel_scope.cancel()
        assert sorted(path.name for path in folder.iterdir()) == ["socket.lock", "store", "store.lock"]


async def test_a_damaged_store_is_no_obstacle(engine: SimulatedEngine, folder: Path, caplog: Any) -> None:
    """It is set aside, which the log says."""
    folder.mkdir(mode=0o700)
    (folder / "store").write_bytes(b"garbage" * 1000)
    (folder / "store").chmod(0o600)
    with anyio.fail_after(5):
        async with serve(engine, folder) as keeper, PieClient(keeper.url) as client:
            await client.ping()
    assert "renamed to" in caplog.text


async def test_a_full_disk_ends_it(
    engine: SimulatedEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keeper that cannot store anything does not pretend to."""

    def full() -> Any:
        msg = "database or disk is full"
        raise sqlite3.OperationalError(msg)

    with anyio.fail_after(5):
        with pytest.raises(ExceptionGroup) as caught:
            async with serve(engine, folder) as keeper:
                original = keeper.store.commit
                monkeypatch.setattr(keeper.store, "commit", full)
                async with PieClient(keeper.url) as client:
                    try:
                        await client.launch_process("echo@0.1.0")
                        await anyio.sleep_forever()
                    finally:
                        monkeypatch.setattr(keeper.store, "commit", original)
    assert caught.group_contains(KeeperError, match="cannot use its store any more: .* full")


async def test_a_store_that_cannot_be_opened(
    engine: SimulatedEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file's trouble means is said."""

    def busy(*arguments: Any) -> Any:
        msg = "database is locked"
        raise sqlite3.OperationalError(msg)

    monkeypatch.setattr(Store, "_load", busy)
    with pytest.raises(KeeperError, match="locked"):
        await Keeper(
            lambda: PieClient(engine.connectable), socket=folder / "socket", store=folder / "store"
        ).serve()


@pytest.mark.both_loops
async def test_a_client_that_only_asks(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks without reading the answers is not read from after a while, and is answered when it reads."""
    monkeypatch.setattr(downstream, "_BACKLOG_BYTES", 1000)
    count = 20_000
    sent = anyio.Event()
    with anyio.fail_after(20):
        async with Raw(await kept.connect(), "alice") as raw, anyio.create_task_group() as tasks:
            frames = [raw.ws.binary(encode_request(Ping(), number)) for number in range(count)]

            async def send() -> None:
                await raw.stream.send(b"".join(frames))
                sent.set()

            tasks.start_soon(send)
            await kept.settle()
            (session,) = kept.keeper.sessions
            assert not sent.is_set()
            assert session.protocol.queued_bytes < 500_000
            await raw.until(lambda item: isinstance(item, dict) and item.get("corr_id") == count - 1)
            assert sent.is_set()


async def test_a_session_that_fails_is_alone(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """A bug in one session is logged, and no other client is the worse for it."""
    with anyio.fail_after(5):
        async with kept.client() as client:
            await client.ping()
            raw = await Raw(await kept.connect(), "alice").__aenter__()

            def fail(*arguments: object) -> None:
                msg = "a bug"
                raise RuntimeError(msg)

            monkeypatch.setattr(Session, "_drain", fail)
            await raw.send(MUCH, 1)
            await raw.until_end()
            monkeypatch.undo()
            await client.ping()
            await raw.stream.aclose()
    assert "a session failed" in caplog.text


def test_several_failures() -> None:
    """Several failures at once are one error, with all of them behind it."""
    error = server._several_failures(ExceptionGroup("", [ValueError(), ValueError()]))
    assert "2 places" in str(error)
