# SPDX-License-Identifier: Apache-2.0
"""The benchmark's own parts: its engine speaks the protocol, its report draws the right conclusions."""

from __future__ import annotations

import base64
import importlib
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from blake3 import blake3

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def _module(name: str) -> Any:
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


class Client:
    """A few lines of WebSocket and msgpack, with real masks."""

    def __init__(self, url: str, path: str = "/v1/ws", identity: str = "x-pie-identity: bench\r\n") -> None:
        host, port = url.removeprefix("ws://").split(":")
        self.sock = socket.create_connection((host, int(port)), timeout=5)
        self.file = self.sock.makefile("rb")
        self.sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{identity}"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.status = self.file.readline()
        self.headers = list(iter(self.file.readline, b"\r\n"))

    def send(self, opcode: int = 2, body: bytes = b"", **message: Any) -> None:
        body = body or msgpack.packb(message)
        size = bytes((0x80 | len(body),)) if len(body) < 126 else b"\xfe" + len(body).to_bytes(2, "big")
        if len(body) > 65535:
            size = b"\xff" + len(body).to_bytes(8, "big")
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at & 3] for at, byte in enumerate(body))
        self.sock.sendall(bytes((0x80 | opcode,)) + size + mask + masked)

    def frame(self) -> tuple[int, bytes]:
        first, size = self.file.read(2)
        if size > 125:
            size = int.from_bytes(self.file.read(2 if size == 126 else 8), "big")
        return first & 15, self.file.read(size)

    def receive(self) -> dict[str, Any]:
        opcode, body = self.frame()
        while opcode != 2:
            opcode, body = self.frame()
        return dict(msgpack.unpackb(body))

    def request(self, **message: Any) -> str:
        self.send(corr_id=7, **message)
        answer = self.receive()
        assert (answer["type"], answer["corr_id"], answer["ok"]) == ("response", 7, True)
        return str(answer["result"])

    def launch(self, **script: Any) -> str:
        return self.request(
            type="launch_process", inferlet="load@1.0.0", input=json.dumps(script), capture_outputs=True
        )

    def close(self) -> None:
        self.file.close()
        self.sock.close()


@pytest.fixture(params=["v04", "v05"])
def profile(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(profile: str) -> Iterator[str]:
    engine = _module("load_engine").LoadEngine(profile)
    thread = threading.Thread(target=engine.serve)
    thread.start()
    yield engine.url
    engine.stop = True
    # Any connection wakes the selector.
    socket.create_connection(("127.0.0.1", engine.port)).close()
    thread.join(5)
    engine.close()
    assert not thread.is_alive()


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    client = Client(url)
    yield client
    client.close()


def test_upgrade(client: Client) -> None:
    """The handshake is that of the RFC's own example."""
    assert b"101" in client.status
    accept = [line.split()[1] for line in client.headers if line.lower().startswith(b"sec-websocket-accept")]
    assert accept == [base64.b64encode(bytes.fromhex("b37a4f2cc0624f1690f64606cf385945b2bec4ea"))]


def test_refusals_of_05(url: str, profile: str) -> None:
    """0.5 wants its path and an identity; 0.4 looks at neither."""
    for arguments, status in (({"path": "/"}, b"404"), ({"identity": ""}, b"401")):
        client = Client(url, **arguments)
        assert (status if profile == "v05" else b"101") in client.status
        client.close()


def test_requests(client: Client, profile: str) -> None:
    """Authentication and the simple requests are answered in the words of the generation."""
    words = "Already authenticated" if profile == "v05" else "Authenticated (Engine disabled authentication)"
    assert client.request(type="auth_identify", username="a") == words
    assert client.request(type="ping") == "Pong"
    assert client.request(type="check_program", name="a", version="1.0.0") == "true"
    assert json.loads(client.request(type="list_processes")) == []
    assert json.loads(client.request(type="query", subject="model_status", record=""))["live"] == 0


def test_turn_done(client: Client, profile: str) -> None:
    """0.5 follows each turn with a text frame, 0.4 sends none."""
    client.send(type="ping", corr_id=1)
    client.send(type="ping", corr_id=2)
    opcodes = [client.frame()[0] for _ in range(3 if profile == "v05" else 2)]
    assert opcodes == ([2, 1, 2] if profile == "v05" else [2, 2])


def test_run_that_returns_at_once(client: Client) -> None:
    """The response comes first, then the terminal event of the same process."""
    pid = client.launch()
    assert client.receive() == {
        "type": "process_event",
        "process_id": pid,
        "event": "return",
        "value": "null",
    }


@pytest.mark.parametrize("size", [0, 31, 64, 300, 70_000])
def test_events(client: Client, size: int) -> None:
    """As many events of the right size as the script says, in frames of every header length, then the return."""
    pid = client.launch(events=3, size=size)
    events = [client.receive() for _ in range(4)]
    assert [(e["process_id"], e["event"], len(e["value"])) for e in events] == [
        *[(pid, "stdout", size)] * 3,
        (pid, "return", 4),
    ]


def test_barrier(client: Client) -> None:
    """Processes behind a barrier start together and their events are interleaved one by one."""
    script = {"events": 2, "size": 1, "barrier": 2}
    first = client.launch(**script)
    assert client.request(type="ping") == "Pong"
    second = client.launch(**script)
    events = [client.receive() for _ in range(6)]
    assert [e["process_id"] for e in events[:4]] == [first, second, first, second]
    assert {(e["process_id"], e["event"]) for e in events[4:]} == {(first, "return"), (second, "return")}


def test_terminate(client: Client) -> None:
    """A terminated stream stops: the response, perhaps events already on their way, then the error."""
    pid = client.launch(stream=True)
    client.send(type="terminate_process", corr_id=9, process_id=pid)
    seen = [client.receive()]
    while seen[-1].get("event") != "error":
        seen.append(client.receive())
    assert seen[-1]["value"] == "Signal"
    assert [m["result"] for m in seen if m["type"] == "response"] == ["Process terminated"]
    assert json.loads(client.request(type="query", subject="model_status", record=""))["live"] == 0
    client.send(type="terminate_process", corr_id=9, process_id=pid)
    assert client.receive()["ok"] is False


def test_file_down(client: Client, profile: str) -> None:
    """A file comes in chunks whose content has the hash that they declare."""
    pid = client.launch(file=300_000)
    chunks = [client.receive() for _ in range(2)]
    assert [(c["process_id"], c["chunk_index"], c["total_chunks"]) for c in chunks] == [
        (pid, 0, 2),
        (pid, 1, 2),
    ]
    assert ("name" in chunks[0]) is (profile == "v05")
    content = b"".join(c["chunk_data"] for c in chunks)
    assert (len(content), blake3(content).hexdigest()) == (300_000, chunks[0]["file_hash"])
    assert client.receive()["event"] == "return"


@pytest.mark.parametrize("size", [10, 20_000])
@pytest.mark.parametrize("last_key", ["chunk_data", "chunk_index"])
def test_upload(client: Client, size: int, last_key: str) -> None:
    """The last chunk of a program is answered, wherever the message has its fields."""
    fields: dict[str, Any] = {
        "type": "add_program",
        "corr_id": 300,
        "program_hash": "h",
        "manifest": "",
        "total_chunks": 2,
    }
    for index in (0, 1):
        message = {**fields, "chunk_index": index, "chunk_data": b"\xff" * size}
        message[last_key] = message.pop(last_key)
        client.send(**message)
    answer = client.receive()
    assert (answer["corr_id"], answer["result"]) == (300, "Program installed successfully")


def test_file_up(client: Client) -> None:
    """A process that waits for a file returns when the last chunk is there."""
    pid = client.launch(expect_file=True)
    for index in (0, 1):
        client.send(
            type="transfer_file",
            process_id=pid,
            file_hash="h",
            chunk_index=index,
            total_chunks=2,
            chunk_data=b"\1" * 9_000,
        )
    assert client.receive()["event"] == "return"


def test_ping_frame(client: Client) -> None:
    """A WebSocket ping is answered with its payload."""
    client.send(9, b"hello")
    assert client.frame() == (10, b"hello")


def test_close(client: Client, profile: str) -> None:
    """0.5 drops the connection on Close; 0.4 neither answers nor drops it."""
    client.send(8, b"\x03\xe8")
    client.sock.settimeout(5 if profile == "v05" else 0.05)
    if profile == "v05":
        assert client.file.read(1) == b""
    else:
        with pytest.raises(TimeoutError):
            client.file.read(1)


# --------------------------------------------------------------------------------------------------------- the report


def _run(case: str, peer: str, number: int, **metrics: float) -> dict[str, Any]:
    return {
        "case": case,
        "peer": peer,
        "round": number,
        "seconds": 1.0,
        "params": {},
        "versions": {"python": "3"},
        "metrics": {name: {"value": value, "unit": ""} for name, value in metrics.items()},
    }


def _canned() -> list[dict[str, Any]]:
    figures = {
        # The second round ran on a machine half as fast: ratios inside a round do not notice.
        "floor": (1000.0, 500.0, 1000.0),
        "official-0.4.0": (90.0, 45.0, 90.0),
        "official-0.5.3": (100.0, 50.0, 100.0),
        "pie-asyncio": (400.0, 200.0, 410.0),
        "pie-trio": (210.0, 105.0, 210.0),
    }
    runs = [
        _run("events64", peer, number, events_per_s=value, peak_rss=10.0 if peer.startswith("pie") else 50.0)
        for peer, values in figures.items()
        for number, value in enumerate(values)
    ]
    runs.append({"case": "runs", "peer": "pie-trio", "round": 0, "error": "it\nbroke"})
    return runs


def test_summary() -> None:
    """Ratios are medians inside rounds against the faster official client; targets are judged by loop."""
    summary = _module("report").summarise(_canned())
    metric = summary["cases"]["events64"]["metrics"]["events_per_s"]
    assert metric["official"] == "official-0.5.3"
    assert metric["peers"]["pie-asyncio"]["median"] == 400.0
    assert metric["peers"]["pie-asyncio"]["to_official"] == pytest.approx(4.0)
    assert metric["peers"]["pie-trio"]["to_floor"] == pytest.approx(0.21)
    by_label = {target["label"]: target for target in summary["targets"]}
    speed = by_label["events/s, 64 processes"]
    assert (speed["asyncio"]["met"], speed["trio"]["met"]) == (True, False)
    assert by_label["peak RSS over the whole suite"]["trio"]["value"] == pytest.approx(0.2)
    assert by_label["ping p50, idle"]["asyncio"] == {"goal": 1.1, "value": None, "met": None}
    assert summary["failed"] == [{"case": "runs", "peer": "pie-trio", "round": 0, "error": "it\nbroke"}]


def test_page() -> None:
    """The page has the targets, the cases, where the figures come from, and what failed."""
    report = _module("report")
    machine = {"cpu": "a cpu", "cores": 2, "memory_gib": 4, "system": "x", "load_average": 0.1}
    results = {"date": "today", "commit": "abc", "machine": machine, "rounds": 3, "runs": _canned()}
    page = report.render({**results, "summary": report.summarise(_canned())}, ["bench-size.svg"])
    for text in (
        "4.00 x (met)",
        "2.10 x (**missed**)",
        "a cpu",
        "abc",
        "(_static/bench-size.svg)",
        "| broke",
    ):
        assert text in page


def test_catalogue() -> None:
    """Every target names a case and a figure that exist, and every case has a name of its own."""
    catalogue = _module("catalogue")
    cases = (*catalogue.CASES, *catalogue.scaling_cases(1_000_000))
    by_key = {case.key: case for case in cases}
    assert len(by_key) == len(cases)
    for target in catalogue.TARGETS:
        if target.case not in {catalogue.SUITE, catalogue.SUITE_WITHOUT_MAP}:
            assert target.metric in {metric.name for metric in by_key[target.case].metrics}
