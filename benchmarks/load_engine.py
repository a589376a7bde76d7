# SPDX-License-Identifier: Apache-2.0
"""A load engine: the cheapest thing that speaks the Pie client protocol.

It exists so that a benchmark measures the client and not the engine.  One process, one thread, one selector;
frames that can be encoded before the clock starts are, and a flood of events is a single `bytes` object that is
written again and again.  It takes short cuts that no real engine may take: nothing is verified (upload hashes
included), nothing is stored, and every program name exists.

What a process does is written in the JSON `input` of its launch:

    {}                         return at once
    {"return": false}          never end by itself (end it with terminate_process)
    {"events": n, "size": s}   n stdout events of s bytes, then return
    {"stream": true, "size": s}  stdout events without end, as fast as the client reads
    {"stream": true, "rate": r}  the same, r events per second
    {"file": n}                one file of n bytes, then return
    {"expect_file": true}      return when a whole file has arrived
    {"delay": ms}              wait before doing any of that
    {"barrier": n}             wait until n launches with this same barrier are there, then all start together and
                               their events are interleaved one by one

`query("model_status", "")` answers with the engine's own counters as JSON; it is how a driver
learns that nothing is alive.

Run `python benchmarks/load_engine.py --profile v04`; the first line on stdout is the URL.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import re
import resource
import sys
import time
from typing import Any

import msgpack
from load_frames import (
    Bulk,
    Connection,
    Flood,
    event,
    file_frames,
    launched,
    read_int,
    response,
    returned,
)
from load_wire import Connections

NO_AUTH = "Authenticated (Engine disabled authentication)"
TURN_DONE = b"\x81\x14" + b'{"type":"turn_done"}'


class LoadEngine(Connections):
    """The engine: what it answers, and what its processes do."""

    def __init__(self, profile: str = "v04", host: str = "127.0.0.1", port: int = 0, sndbuf: int = 0) -> None:
        super().__init__(v05=profile == "v05", host=host, port=port, sndbuf=sndbuf)
        self.numbers = itertools.count(1)
        self.timers: list[tuple[float, int, Connection, bytes, dict[str, Any]]] = []
        self.live: dict[bytes, tuple[Connection, dict[str, Any]]] = {}
        self.barriers: dict[tuple[Connection, Any], list[tuple[bytes, dict[str, Any]]]] = {}
        self.started = 0
        self.terminated = 0
        self.specs: dict[str, dict[str, Any]] = {}
        self.handlers = {
            "ping": self.on_ping,
            "launch_process": self.on_launch,
            "terminate_process": self.on_terminate,
            "auth_identify": self.on_auth,
            "auth_prove": self.on_auth,
            "auth_by_token": self.on_auth,
            "check_program": self.on_check,
            "query": self.on_query,
            "list_processes": self.on_list,
            "attach_process": self.on_attach,
            "signal_process": self.on_signal,
            "add_program": self.on_small_chunk,
            "transfer_file": self.on_small_chunk,
        }

    def timeout(self) -> float | None:
        """Return how long the selector may sleep."""
        if self.paced:
            return 0.001
        if self.timers:
            return max(0.0, self.timers[0][0] - time.monotonic())
        return None

    def on_time(self) -> None:
        """Start what is due, and let the paced floods go on."""
        if self.timers:
            now = time.monotonic()
            while self.timers and self.timers[0][0] <= now:
                _, _, conn, pid, spec = heapq.heappop(self.timers)
                if pid in self.live:
                    self.begin(conn, [(pid, spec)])
                    self.flush(conn)
        for conn in list(self.paced):
            self.flush(conn)

    def on_drop(self, conn: Connection) -> None:
        """Forget the processes that a connection launched, as 0.5 does."""
        for pid in conn.procs:
            self.live.pop(pid, None)
        for key in [key for key in self.barriers if key[0] is conn]:
            del self.barriers[key]

    def on_message(self, conn: Connection, payload: bytes) -> None:
        """Decode and dispatch one message; what cannot be read is skipped, as 0.4 does."""
        try:
            message = msgpack.unpackb(payload)
            handler = self.handlers[message["type"]]
        except (ValueError, KeyError, TypeError):
            return
        handler(conn, message)

    # ----------------------------------------------------------------------------------------------------- requests

    def reply(self, conn: Connection, message: dict[str, Any], result: str, ok: bool = True) -> None:
        """Queue a response and, in 0.5, the end of the turn."""
        conn.out.append(response(message["corr_id"], result, ok))
        if self.v05:
            conn.out.append(TURN_DONE)

    def on_ping(self, conn: Connection, message: dict[str, Any]) -> None:
        """Answer a ping."""
        self.reply(conn, message, "Pong")

    def on_auth(self, conn: Connection, message: dict[str, Any]) -> None:
        """Let everybody in."""
        self.reply(conn, message, "Already authenticated" if self.v05 else NO_AUTH)

    def on_check(self, conn: Connection, message: dict[str, Any]) -> None:
        """Say that every program is there."""
        self.reply(conn, message, "true")

    def on_list(self, conn: Connection, message: dict[str, Any]) -> None:
        """List what is alive."""
        rows = [
            {
                "id": pid.decode(),
                "username": "internal",
                "program": "load@1.0.0",
                "input": "{}",
                "elapsed_secs": 0,
            }
            for pid in self.live
        ]
        self.reply(conn, message, json.dumps(rows))

    def on_query(self, conn: Connection, message: dict[str, Any]) -> None:
        """Answer `model_status` with the engine's own counters; 0.4 answers nothing else."""
        if message.get("subject") == "model_status":
            self.reply(conn, message, json.dumps(self.counters()))
        elif self.v05:
            self.reply(conn, message, "unknown query subject", ok=False)

    def counters(self) -> dict[str, Any]:
        """Return what the engine knows about itself."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "live": len(self.live),
            "started": self.started,
            "terminated": self.terminated,
            "bytes_in": self.bytes_in,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
        }

    def on_launch(self, conn: Connection, message: dict[str, Any]) -> None:
        """Start a process; what it does is in its input."""
        text = message["input"]
        pid = b"%08x-0be1-4c4d-8a5e-c0ffee5eed00" % next(self.numbers)
        self.started += 1
        spec = self.specs.get(text)
        if spec is None:
            spec = json.loads(text)
            if len(self.specs) < 4096:
                self.specs[text] = spec
        conn.out.append(launched(message["corr_id"], pid))
        if not (spec.keys() & _ACTIVE):
            conn.out.append(returned(pid) if not self.v05 else returned(pid) + TURN_DONE)
            return
        self.live[pid] = (conn, spec)
        conn.procs.add(pid)
        barrier = spec.get("barrier")
        if barrier is not None:
            waiting = self.barriers.setdefault((conn, text), [])
            waiting.append((pid, spec))
            if len(waiting) == barrier:
                del self.barriers[conn, text]
                self.begin(conn, waiting)
        elif "delay" in spec:
            due = time.monotonic() + spec["delay"] / 1000
            heapq.heappush(self.timers, (due, next(self.numbers), conn, pid, spec))
        else:
            self.begin(conn, [(pid, spec)])

    def begin(self, conn: Connection, group: list[tuple[bytes, dict[str, Any]]]) -> None:
        """Let processes with the same script do what their script says."""
        spec = group[0][1]
        size = spec.get("size", 64)
        if spec.get("stream") or spec.get("events"):
            text = b"x" * size
            members = {pid: event(pid, spec.get("kind", "stdout"), text) for pid, _ in group}
            flood = Flood(members, None if spec.get("stream") else spec["events"], spec.get("rate"))
            flood.start = time.monotonic()
            conn.floods.append(flood)
            if flood.rate is not None:
                self.paced.add(conn)
            return
        ends = not spec.get("expect_file") and spec.get("return") is not False
        for number, (pid, _) in enumerate(group):
            if "file" in spec:
                conn.out.extend(file_frames(pid, spec["file"], number, self.v05))
            if ends:
                self.finish(conn, pid)

    def finish(self, conn: Connection, pid: bytes, kind: str = "return", value: bytes = b"null") -> None:
        """End a process with its terminal event."""
        if self.live.pop(pid, None) is None:
            return
        conn.procs.discard(pid)
        conn.out.append(event(pid, kind, value))
        if self.v05:
            conn.out.append(TURN_DONE)

    def on_terminate(self, conn: Connection, message: dict[str, Any]) -> None:
        """End a process: the response first, then its terminal event."""
        pid = message["process_id"].encode()
        found = self.live.get(pid)
        if found is None:
            self.reply(conn, message, "Process not found", ok=False)
            return
        self.terminated += 1
        self.reply(conn, message, "Process terminated")
        owner = found[0]
        for flood in owner.floods:
            if flood.members.pop(pid, None) is not None:
                flood.build()
        self.finish(owner, pid, "error", b"Signal")
        if owner is not conn:
            self.flush(owner)

    def on_attach(self, conn: Connection, message: dict[str, Any]) -> None:
        """Refuse: here every process has its client."""
        self.reply(conn, message, "Process not found", ok=False)

    def on_signal(self, conn: Connection, message: dict[str, Any]) -> None:
        """Take a signal; a process that holds until it is signalled returns."""
        if self.v05:
            conn.out.append(TURN_DONE)
        pid = message["process_id"].encode()
        found = self.live.get(pid)
        if found is not None and found[1].get("on_signal") == "return":
            self.finish(found[0], pid)

    # ------------------------------------------------------------------------------------------------------ uploads

    def on_small_chunk(self, conn: Connection, message: dict[str, Any]) -> None:
        """Handle a chunk that came in a small frame."""
        self.on_chunk(
            conn,
            message["type"],
            message.get("corr_id"),
            message.get("process_id", ""),
            message["chunk_index"] + 1 == message["total_chunks"],
        )

    def on_bulk(self, conn: Connection, bulk: Bulk) -> None:
        """Handle a chunk of which only the two ends were kept."""
        text = bulk.ends()
        index, total = read_int(text, b"\xabchunk_index"), read_int(text, b"\xactotal_chunks")
        kind = "transfer_file" if b"transfer_file" in text else "add_program"
        pid = re.search(rb"\xaaprocess_id\xd9\x24(.{36})", text, re.DOTALL)
        if index is None or total is None:
            return
        corr_id = read_int(text, b"\xa7corr_id")
        self.on_chunk(conn, kind, corr_id, pid[1].decode() if pid else "", index + 1 == total)

    def on_chunk(self, conn: Connection, kind: str, corr_id: int | None, pid: str, last: bool) -> None:
        """Answer after the last chunk; a process that waits for a file returns."""
        if not last or kind == "transfer_file":
            if self.v05:
                conn.out.append(TURN_DONE)
            if last:
                found = self.live.get(pid.encode())
                if found is not None and found[1].get("expect_file"):
                    self.finish(found[0], pid.encode())
        elif corr_id is not None:
            self.reply(conn, {"corr_id": corr_id}, "Program installed successfully")


_ACTIVE = frozenset({"return", "events", "stream", "file", "expect_file", "delay", "barrier", "on_signal"})


def main(argv: list[str] | None = None) -> None:
    """Serve until killed; print the URL first."""
    parser = argparse.ArgumentParser(description="The load engine of the benchmarks.")
    parser.add_argument(
        "--profile", choices=("v04", "v05"), default="v04", help="generation to speak (default: v04)"
    )
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: any free one)")
    parser.add_argument(
        "--sndbuf", type=int, default=0, help="SO_SNDBUF of accepted sockets (default: the kernel's)"
    )
    args = parser.parse_args(argv)
    engine = LoadEngine(args.profile, port=args.port, sndbuf=args.sndbuf)
    print(engine.url, flush=True)
    try:
        engine.serve()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
