# SPDX-License-Identifier: Apache-2.0
"""`keep`, and the commands that go through a keeper: it is a process of its own here, as it is for users."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from pie_anyio.cli import _companion
from pie_anyio.cli._keep import Duration

from .conftest import Invoke, Result, Served, serve

pytestmark = pytest.mark.skipif(not _companion.is_possible(), reason="keepers need Unix sockets")

Keeping = Callable[..., Result]


@pytest.fixture(autouse=True)
def short_paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave room for the path of a socket."""
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield


@pytest.fixture
def keeping(served: Served, invoke: Invoke) -> Iterator[Keeping]:
    """Run commands for an engine; whatever keeper they start is stopped in the end."""

    def run(*arguments: str, **options: Any) -> Result:
        return invoke(*arguments, "--url", served.url, **options)

    yield run
    stop(run)


def stop(run: Keeping) -> None:
    """Stop the keeper, if there is one, and wait for its end: it is a child of this process."""
    result = run("keep", "--stop", "--json")
    assert result.code == 0, result.stderr
    for record in result.records:
        assert os.waitpid(record["pid"], 0)[1] == 0


def pid_of(run: Keeping) -> int:
    """Give the process id of the keeper."""
    (store,) = [record["store"] for record in run("keep", "--json").records]
    inode = Path(f"{store}.lock").stat().st_ino
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        fields = line.split()
        if fields[5].endswith(f":{inode}"):
            return int(fields[4])
    raise AssertionError(line)


def test_detach_and_come_back(keeping: Keeping, served: Served) -> None:
    """A process outlives the command that launched it, on an engine that would end it, and is followed by another."""

    @served.engine.inferlet("greet@0.1.0")
    async def greet(session: Any, input: Any) -> object:
        await session.stdout("hello\n")
        name = await session.receive()
        data = await session.receive_file()
        return f"{name} sent {len(data)} bytes"

    process_id = keeping("run", "greet@0.1.0", "--detach").stdout.strip()
    assert served.live == [process_id]
    listed = keeping("ps")
    assert listed.stdout.splitlines()[0].split() == ["ID", "PROGRAM", "USER", "SECONDS", "KEPT", "INPUT"]
    assert len(listed.stdout.splitlines()) == 2
    assert keeping("signal", process_id[:8], "somebody").code == 0
    Path("file").write_bytes(b"content")
    assert keeping("send-file", process_id, "file").code == 0
    result = keeping("attach", process_id[:13])
    assert (result.code, result.stdout) == (0, "hello\nsomebody sent 7 bytes\n")
    assert keeping("attach", process_id).stdout == "somebody sent 7 bytes\n"
    assert keeping("attach", process_id, "--again").stdout == "hello\nsomebody sent 7 bytes\n"
    (record,) = keeping("ps", "--json").records
    assert (record["id"], record["kept"], record["status"]) == (process_id, "returned", "returned")
    ended = keeping("signal", process_id, "too late")
    assert ended.code == 1
    assert "has ended" in ended.stderr


def test_kill(keeping: Keeping, served: Served) -> None:
    """A detached process is ended like any other, and then so kept."""
    process_id = keeping("run", "wait@0.1.0", "--detach").stdout.strip()
    assert keeping("kill", process_id).code == 0
    assert not served.live
    assert keeping("attach", process_id).code == 1
    (record,) = keeping("ps", "--json").records
    assert record["kept"] == "terminated"


def test_killed_and_started_again(keeping: Keeping, served: Served) -> None:
    """After kill -9 of the keeper, the next command that needs it starts it, and what had been stored is there."""
    done = keeping("run", "echo@0.1.0", "a=1", "--detach").stdout.strip()
    lost = keeping("run", "wait@0.1.0", "--detach").stdout.strip()
    assert keeping("attach", done, "--quiet").stdout == '{"a": 1}\n'
    pid = pid_of(keeping)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    result = keeping("attach", done, "--again")
    assert result.stdout == 'printed\nsent\n{"a": 1}\n'
    result = keeping("attach", lost)
    assert result.code == 1
    assert "the keeper was restarted" in result.stderr


def test_keep(keeping: Keeping) -> None:
    """It prints the URL for clients, which is one for every command; a second one is the first."""
    first = keeping("keep")
    url = first.stdout.strip()
    assert url.startswith("ws+unix://")
    assert keeping("keep").stdout == first.stdout
    assert keeping("run", "echo@0.1.0", "n=1", "--quiet", "--url", url).stdout == '{"n": 1}\n'
    status = keeping("keep", "--json").record("keeper")
    log = Path(status["log"])
    assert log.stat().st_mode & 0o777 == 0o600
    assert "connected to" in log.read_text(encoding="utf-8")


def test_places_can_be_chosen(served: Served, invoke: Invoke, tmp_path: Path) -> None:
    """--socket and --store put it elsewhere."""
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        path = Path(folder).resolve() / "s" / "socket"
        options = ("--socket", str(path), "--store", str(tmp_path / "t" / "store"), "--url", served.url)

        def run(*arguments: str) -> Result:
            return invoke(*arguments, *options)

        assert run("keep", "--idle", "never").stdout == f"ws+unix://{path}\n"
        assert (tmp_path / "t" / "store").exists()
        stop(run)
        assert not path.exists()


def test_stop_of_nothing(served: Served, invoke: Invoke) -> None:
    """Where none is running, none is stopped, and none started for it."""
    result = invoke("keep", "--stop", "--url", served.url)
    assert (result.code, result.stderr) == (0, "no keeper is running\n")


def test_one_or_the_other(invoke: Invoke) -> None:
    """To be one and to stop one do not go together."""
    assert invoke("keep", "--stop", "--foreground").code == 2


def test_it_does_not_start(invoke: Invoke) -> None:
    """A keeper that reaches no engine says why where it was started from, and in its log."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{nobody.getsockname()[1]}"
        result = invoke("run", "echo@0.1.0", "--detach", "--url", url)
    assert result.code == 3
    assert "the keeper did not start: " in result.stderr
    assert "could not connect" in result.stderr
    assert "its log is" in result.stderr


def test_a_long_log_is_begun_anew(keeping: Keeping, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of a keeper does not grow for ever."""
    monkeypatch.setattr(_companion, "_LOG_BYTES", 10)
    log = Path(keeping("keep", "--json").record("keeper")["log"])
    stop(keeping)
    before = log.read_text(encoding="utf-8")
    keeping("keep")
    assert log.read_text(encoding="utf-8").count("\n") <= before.count("\n")


def test_credentials_are_not_shown(invoke: Invoke, tmp_path: Path) -> None:
    """The keeper gets the login by its environment: what others can see of it has no secret, nor has what it stores."""
    with serve("v04", users={}) as served:
        token = tmp_path / "token"
        token.write_text(served.engine.token)
        token.chmod(0o600)

        def run(*arguments: str) -> Result:
            return invoke(*arguments, "--url", served.url, "--token-file", str(token))

        process_id = run("run", "wait@0.1.0", "--detach").stdout.strip()
        assert served.live == [process_id]
        arguments = Path(f"/proc/{pid_of(run)}/cmdline").read_bytes()
        assert b"token" not in arguments
        store = Path(run("keep", "--json").record("keeper")["store"])
        stop(run)
        for path in store.parent.iterdir():
            assert served.engine.token.encode() not in path.read_bytes()


def test_in_the_foreground(served: Served, invoke: Invoke, tmp_path: Path) -> None:
    """It serves until a signal comes, which is no failure, and logs to standard error."""
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        path = Path(folder).resolve() / "s" / "socket"

        def end() -> None:
            served.call(served.engine.wait_received, "ping")
            with socket.socket(socket.AF_UNIX) as peer:
                while peer.connect_ex(str(path)):
                    pass
                peer.sendall(b"no request\r\n\r\n")
                peer.recv(100)  # whatever it says, it serves
            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=end)
        thread.start()
        options = ("--socket", str(path), "--store", str(tmp_path / "t" / "store"), "--url", served.url)
        result = invoke("keep", "--foreground", *options)
        thread.join()
    assert result.code == 0
    assert result.stdout == f"ws+unix://{path}\n"
    assert "INFO connected to" in result.stderr


def test_ids_may_be_ambiguous(keeping: Keeping, monkeypatch: pytest.MonkeyPatch) -> None:
    """The beginning of an id must be that of one process; nothing begins with nothing."""
    for _ in range(17):  # two of them begin alike
        keeping("run", "echo@0.1.0", "--detach")
    ids = [record["id"] for record in keeping("ps", "--json").records]
    first = next(x for x in "0123456789abcdef" if sum(process_id[0] == x for process_id in ids) > 1)
    result = keeping("attach", first)
    assert result.code == 2
    assert "begins the ids of" in result.stderr
    assert keeping("attach", "").code == 1


def test_what_is_kept_is_listed_without_an_engine(invoke: Invoke) -> None:
    """When the engine has gone, `ps` says so and lists what the keeper has."""
    with serve() as served:
        url = served.url

        def run(*arguments: str) -> Result:
            return invoke(*arguments, "--url", url, "--connect-timeout", "5")

        process_id = run("run", "echo@0.1.0", "--detach").stdout.strip()
        assert run("attach", process_id).code == 0
    result = run("ps")
    assert result.code == 3
    assert process_id in result.stdout
    assert "could not connect" in result.stderr
    assert run("attach", process_id).code == 0
    stop(run)
    shutil.rmtree("state")
    assert run("ps").code == 3


def test_a_keeper_that_has_not_reached_its_engine(keeping: Keeping, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a keeper says when it refuses a client is passed on, and no other one is started."""
    url = keeping("keep").stdout.strip()
    path = Path(url.removeprefix("ws+unix://"))
    stop(keeping)
    refusal = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 8\r\n\r\nnot yet\n"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def refuse() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(10000)
                peer.sendall(refusal)

        thread = threading.Thread(target=refuse)
        thread.start()
        result = keeping("ps")
        thread.join()
    path.unlink()
    assert result.code == 3
    assert "not yet" in result.stderr


def test_not_on_every_system(served: Served, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there can be no keeper, commands do without; those that need one say so."""
    monkeypatch.setattr(_companion, "is_possible", lambda: False)
    assert invoke("ps", "--url", served.url).code == 0
    result = invoke("run", "echo@0.1.0", "--detach", "--url", served.url)
    assert result.code == 2
    assert "Unix sockets" in result.stderr


def test_sockets_have_a_home_without_a_runtime_folder(
    served: Served, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without XDG_RUNTIME_DIR the socket is beside the store, and not where anybody could be first."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        monkeypatch.setenv("XDG_STATE_HOME", folder)

        def run(*arguments: str) -> Result:
            return invoke(*arguments, "--url", served.url)

        record = run("keep", "--json").record("keeper")
        assert Path(record["url"].removeprefix("ws+unix://")).parent == Path(record["store"]).parent
        stop(run)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400), ("never", None)]
)
def test_durations(text: str, seconds: float | None) -> None:
    """Seconds, or what the letter says."""
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "1w", "soon"])
def test_bad_durations(text: str) -> None:
    """What is no time is refused."""
    with pytest.raises(click.BadParameter, match="no duration"):
        Duration().convert(text, None, None)
