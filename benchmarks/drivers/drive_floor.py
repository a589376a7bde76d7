# SPDX-License-Identifier: Apache-2.0
"""The floor: a blocking socket, the header of a frame, msgpack, and no client at all.

Nothing is checked, nothing is routed to anybody, no event loop runs, and the mask is four zero bytes, so masking costs
nothing.  A Python client that delivers events to several consumers has to do all of this and more, which makes these
figures the ceiling for one.  The workloads where "no client at all" means nothing (map, connect) are not here.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgpack
from blake3 import blake3
from common import PROGRAM, Report, fail, parse, payload, version_of

CHUNK = 262144
unpack = msgpack.unpackb
pack = msgpack.packb


class Wire:
    """A socket and what has been read from it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.sock = socket.create_connection((parts.hostname or "", parts.port or 0))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.corr = itertools.count(1)
        self.data = b""
        key = base64.b64encode(os.urandom(16)).decode()
        self.sock.sendall(
            (
                f"GET /v1/ws HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nx-pie-identity: default/bench\r\n\r\n"
            ).encode()
        )
        while b"\r\n\r\n" not in self.data:
            self.data += self.sock.recv(65536)
        head, _, self.data = self.data.partition(b"\r\n\r\n")
        if b" 101 " not in head:
            fail(f"no upgrade: {head!r}")
        self.request({"type": "auth_identify", "username": "bench"})

    @staticmethod
    def frame(message: dict[str, Any]) -> bytes:
        """Return a message as a frame with a mask that changes nothing."""
        body = pack(message)
        size = len(body)
        if size < 126:
            return bytes((0x82, 0x80 | size, 0, 0, 0, 0)) + body
        if size < 65536:
            return b"\x82\xfe" + size.to_bytes(2, "big") + b"\0\0\0\0" + body
        return b"\x82\xff" + size.to_bytes(8, "big") + b"\0\0\0\0" + body

    def send(self, *messages: dict[str, Any]) -> None:
        """Write messages with one call."""
        self.sock.sendall(b"".join(map(self.frame, messages)))

    def read(self, handle: Callable[[dict[str, Any]], None]) -> None:
        """Read once; hand every whole message to `handle`."""
        more = self.sock.recv(1 << 20)
        if not more:
            fail("the engine closed the connection")
        data = self.data + more if self.data else more
        at, end = 0, len(data)
        while end - at >= 2:
            size = data[at + 1]
            start = at + 2
            if size == 126:
                start = at + 4
                size = data[at + 2] << 8 | data[at + 3] if end >= start else end
            elif size == 127:
                start = at + 10
                size = int.from_bytes(data[at + 2 : start], "big") if end >= start else end
            stop = start + size
            if stop > end:
                break
            if data[at] == 0x82:
                handle(unpack(data[start:stop]))
            at = stop
        self.data = data[at:]

    def request(self, message: dict[str, Any]) -> str:
        """Send one request and wait for its response."""
        results: list[str] = []

        def handle(answer: dict[str, Any]) -> None:
            if answer["type"] == "response":
                results.append(answer["result"])

        self.send({**message, "corr_id": next(self.corr)})
        while not results:
            self.read(handle)
        return results[0]

    def launch(self, script: dict[str, Any]) -> dict[str, Any]:
        """Return a launch message."""
        return {
            "type": "launch_process",
            "corr_id": next(self.corr),
            "inferlet": PROGRAM,
            "input": json.dumps(script),
            "capture_outputs": True,
        }


def runs(wire: Wire, report: Report, p: dict[str, Any]) -> None:
    """Launches that return at once, with a window of unanswered ones."""

    def go(count: int) -> None:
        done = sent = 0

        def handle(message: dict[str, Any]) -> None:
            nonlocal done
            if message["type"] == "process_event" and message["event"] == "return":
                done += 1

        while done < count:
            room = min(p["limit"] - (sent - done), count - sent)
            if room:
                wire.send(*(wire.launch({}) for _ in range(room)))
                sent += room
            wire.read(handle)

    go(min(500, p["n"]))
    with report.timed():
        go(p["n"])
    report.set("runs_per_s", p["n"] / report.seconds, "/s")


def events(wire: Wire, report: Report, p: dict[str, Any]) -> None:
    """A flood of stdout events."""

    def flood(count: int) -> int:
        got = size = left = 0
        left = p["processes"]

        def handle(message: dict[str, Any]) -> None:
            nonlocal got, size, left
            if message["type"] == "process_event":
                if message["event"] == "stdout":
                    got += 1
                    size += len(message["value"])
                elif message["event"] == "return":
                    left -= 1

        script = {"events": count, "size": p["size"], "barrier": p["processes"]}
        wire.send(*(wire.launch(script) for _ in range(p["processes"])))
        while left:
            wire.read(handle)
        if size != got * p["size"]:
            fail("an event has the wrong size")
        return got

    flood(max(1, min(50, p["events"] // 10)))
    with report.timed():
        got = flood(p["events"])
    if got != p["processes"] * p["events"]:
        fail(f"{got} events instead of {p['processes'] * p['events']}")
    report.set("events_per_s", got / report.seconds, "/s")
    report.set("event_mib_per_s", got * p["size"] / 2**20 / report.seconds, "MiB/s")


def latency_idle(wire: Wire, report: Report, p: dict[str, Any]) -> None:
    """Ping and first event, one at a time."""
    pings: list[float] = []
    firsts: list[float] = []
    clock = time.perf_counter

    def first() -> None:
        seen: list[str] = []

        def handle(message: dict[str, Any]) -> None:
            if message["type"] == "process_event":
                if not seen:
                    firsts.append(clock() - start)
                seen.append(message["event"])

        start = clock()
        wire.send(wire.launch({"events": 1, "size": 64}))
        while not seen or seen[-1] != "return":
            wire.read(handle)

    with report.timed():
        for _ in range(p["pings"]):
            start = clock()
            wire.request({"type": "ping"})
            pings.append(clock() - start)
        for _ in range(p["launches"]):
            first()
    report.latencies("ping", pings)
    report.latencies("first_event", firsts)


def upload(wire: Wire, report: Report, p: dict[str, Any]) -> None:
    """Send a program from a file, after hashing it."""
    with report.timed():
        with open(p["path"], "rb") as file:
            content = file.read()
        with open(p["manifest"], encoding="utf-8") as file:
            manifest = file.read()
        view = memoryview(content)
        total = -(-len(content) // CHUNK)
        message = {
            "type": "add_program",
            "program_hash": blake3(content).hexdigest(),
            "manifest": manifest,
            "force_overwrite": True,
            "corr_id": next(wire.corr),
            "total_chunks": total,
        }
        for index in range(total):
            wire.send(
                {**message, "chunk_index": index, "chunk_data": view[index * CHUNK : (index + 1) * CHUNK]}
            )
        done: list[bool] = []
        while not done:
            wire.read(lambda answer: done.append(answer.get("ok") is True))
    report.set("upload_mib_per_s", p["mib"] / report.seconds, "MiB/s")


def files(wire: Wire, report: Report, p: dict[str, Any]) -> None:
    """Files down with their hash checked, files up."""

    def down() -> int:
        size, left = 0, p["n"]
        parts: dict[str, list[bytes]] = {}

        def handle(message: dict[str, Any]) -> None:
            nonlocal size, left
            if message["type"] == "file":
                chunks = parts.setdefault(message["process_id"], [])
                chunks.append(message["chunk_data"])
                if message["chunk_index"] + 1 == message["total_chunks"]:
                    content = b"".join(parts.pop(message["process_id"]))
                    if blake3(content).hexdigest() == message["file_hash"]:
                        size += len(content)
            elif message["type"] == "process_event":
                left -= 1

        wire.send(*(wire.launch({"file": p["size"], "barrier": p["n"]}) for _ in range(p["n"])))
        while left:
            wire.read(handle)
        return size

    total = p["n"] * p["size"]
    down()
    with report.timed():
        got = down()
    if got != total:
        fail(f"{got} bytes down instead of {total}")
    report.set("download_mib_per_s", total / 2**20 / report.seconds, "MiB/s")
    before = report.seconds
    with report.timed():
        up(wire, p)
    report.set("upload_files_mib_per_s", total / 2**20 / (report.seconds - before), "MiB/s")


def up(wire: Wire, p: dict[str, Any]) -> None:
    """Send files, each to a process that waits for one."""
    ids: list[str] = []
    ended = 0

    def handle(message: dict[str, Any]) -> None:
        nonlocal ended
        if message["type"] == "response":
            ids.append(message["result"])
        elif message["type"] == "process_event":
            ended += 1

    wire.send(*(wire.launch({"expect_file": True}) for _ in range(p["n"])))
    while len(ids) < p["n"]:
        wire.read(handle)
    for number, pid in enumerate(ids):
        content = payload(number, p["size"])
        view = memoryview(content)
        message = {
            "type": "transfer_file",
            "process_id": pid,
            "file_hash": blake3(content).hexdigest(),
            "total_chunks": max(1, -(-p["size"] // CHUNK)),
        }
        for index in range(message["total_chunks"]):
            chunk = view[index * CHUNK : (index + 1) * CHUNK]
            wire.send({**message, "chunk_index": index, "chunk_data": chunk})
    while ended < p["n"]:
        wire.read(handle)


WORKLOADS = {"runs": runs, "events": events, "latency_idle": latency_idle, "upload": upload, "files": files}

if __name__ == "__main__":
    arguments, parameters = parse(__doc__ or "")
    if arguments.workload not in WORKLOADS:
        fail(f"the floor has no workload {arguments.workload}")
    figures = Report(arguments.name or "floor", version_of("msgpack"))
    WORKLOADS[arguments.workload](Wire(arguments.url), figures, parameters)
    figures.emit(arguments.workload, parameters)
