# SPDX-License-Identifier: Apache-2.0
"""`ps`, `kill`, `signal` and `send-file`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pie_anyio import PieClient, PieError
from pie_anyio.cli import _processes
from pie_anyio.cli._errors import UserError
from pie_anyio.cli._processes import match_id

from .conftest import Invoke, Served


@pytest.fixture
def waiting(served: Served) -> Iterator[list[str]]:
    """Two processes of another client, which stays connected."""
    client = PieClient(served.engine.connectable)

    async def launch() -> list[str]:
        return [(await client.launch_process("wait@0.1.0", {"n": n})).process_id for n in range(2)]

    with served.portal.wrap_async_context_manager(client):
        yield served.portal.call(launch)


def test_ps(served: Served, invoke: Invoke, waiting: list[str]) -> None:
    """Running processes are listed in columns, or as JSON."""
    result = invoke("ps", "--url", served.url)
    assert result.code == 0
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["ID", "PROGRAM", "USER", "SECONDS", "INPUT"]
    assert {row.split()[0] for row in rows} == set(waiting)
    records = invoke("ps", "--url", served.url, "--json").records
    assert {record["id"] for record in records} == set(waiting)
    assert all(record["event"] == "process" for record in records)


def test_ps_of_nothing(served: Served, invoke: Invoke) -> None:
    """Where nothing runs, that is said beside the results."""
    result = invoke("ps", "--url", served.url)
    assert (result.code, result.stdout, result.stderr) == (0, "", "no process is running\n")


def test_long_inputs_are_cut(served: Served, invoke: Invoke) -> None:
    """A row of ps stays readable."""
    assert _processes._shortened("x" * 61) == "x" * 57 + "..."
    assert _processes._shortened("x" * 60) == "x" * 60


@pytest.mark.parametrize("everything", [True, False])
def test_kill(served: Served, invoke: Invoke, waiting: list[str], everything: bool) -> None:
    """Processes of others are ended, by the beginning of their ids or all together, and that is confirmed."""
    arguments = ["--all"] if everything else [process_id[:18] for process_id in waiting]
    result = invoke("kill", *arguments, "--url", served.url)
    assert result.code == 0
    assert sorted(result.stdout.splitlines()) == sorted(f"{process_id} ended" for process_id in waiting)
    assert not served.live


def test_kill_of_nothing(served: Served, invoke: Invoke) -> None:
    """--all where nothing runs is no failure."""
    assert invoke("kill", "--all", "--url", served.url).code == 0


@pytest.mark.parametrize("arguments", [[], ["some", "--all"]])
def test_kill_wants_to_know_what(invoke: Invoke, arguments: list[str]) -> None:
    """Either ids or --all."""
    result = invoke("kill", *arguments)
    assert result.code == 2
    assert "--all" in result.stderr


def test_kill_of_an_unknown_process(served: Served, invoke: Invoke) -> None:
    """An id that nothing has is a failure."""
    result = invoke("kill", "0b7c9a52", "--url", served.url)
    assert result.code == 1
    assert "'pie-anyio ps'" in result.stderr


def test_kill_reports_what_it_cannot_do(
    served: Served, invoke: Invoke, waiting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal is reported with the process; one that ends by itself meanwhile is no failure."""
    refused, gone = waiting
    original = PieClient.terminate_process

    async def terminate(client: PieClient, process_id: str) -> None:
        if process_id == refused:
            msg = "not today"
            raise PieError(msg)
        await original(client, process_id)
        await original(client, process_id)

    monkeypatch.setattr(PieClient, "terminate_process", terminate)
    result = invoke("kill", "--all", "--url", served.url, "--json")
    assert result.code == 1
    killed = {r["process_id"]: r["confirmed"] for r in result.records if r["event"] == "killed"}
    assert killed == {refused: False, gone: True}
    assert "error: not today" in result.stderr


def test_kill_does_not_wait_for_ever(
    served: Served, invoke: Invoke, waiting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is still listed after a while is said not to be confirmed."""

    async def terminate(client: PieClient, process_id: str) -> None:
        pass

    monkeypatch.setattr(PieClient, "terminate_process", terminate)
    monkeypatch.setattr(_processes, "_CONFIRM_LIMIT", 0.05)
    monkeypatch.setattr(_processes, "_CONFIRM_INTERVAL", 0.01)
    result = invoke("kill", "--all", "--url", served.url)
    assert result.code == 1
    assert result.stdout.count("NOT confirmed") == 2


def test_ids_may_be_shortened() -> None:
    """The beginning of an id will do if it is the beginning of one only."""
    rows = [{"id": "abc1"}, {"id": "abd2"}, {}]
    assert match_id(rows, "ABC") == "abc1"
    with pytest.raises(UserError, match="2 processes"):
        match_id(rows, "ab")
    with pytest.raises(UserError, match="processes"):
        match_id([{"id": "abc1"}], "")
    with pytest.raises(UserError, match="no process"):
        match_id(rows, "x")


def test_signal_and_file(served04: Served, invoke: Invoke, tmp_path: Path) -> None:
    """A detached process hears signals and receives files (0.4)."""
    heard: list[Any] = []

    @served04.engine.inferlet("listen@0.1.0")
    async def listen(session: Any, input: Any) -> object:
        heard.append(await session.receive())
        heard.append(await session.receive_file())
        return None

    process_id = invoke(
        "run", "listen@0.1.0", "--detach", "--no-keeper", "--url", served04.url
    ).stdout.strip()
    assert invoke("signal", process_id, "hello", "--url", served04.url).code == 0
    served04.call(served04.engine.wait_until, lambda: heard == ["hello"])
    (tmp_path / "file").write_bytes(b"content")
    result = invoke("send-file", process_id[:8], str(tmp_path / "file"), "--url", served04.url, "--json")
    assert result.record("sent")["process_id"] == process_id
    served04.call(served04.engine.wait_idle)
    assert heard == ["hello", b"content"]


@pytest.mark.parametrize("command", ["signal", "send-file"])
def test_not_with_every_engine(
    served: Served, invoke: Invoke, waiting: list[str], command: str, tmp_path: Path
) -> None:
    """On 0.5 attaching would end the process, so it is not tried."""
    (tmp_path / "file").touch()
    result = invoke(command, waiting[0], str(tmp_path / "file"), "--url", served.url)
    assert result.code == 1
    assert "generation 0.5" in result.stderr
    assert set(waiting) == set(served.live)
