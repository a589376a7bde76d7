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
import base64
import hashlib
import heapq
import itertools
import json
import re
import resource
import selectors
import socket
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
    frame,
    launched,
    read_int,
    response,
    returned,
    unmask,
)

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#: Frames above this are not unmasked: only their first and last bytes are looked at.
BULK = 8192
READ = 512 * 1024

NO_AUTH = "Authenticated (Engine disabled authentication)"
TURN_DONE = b"\x81\x14" + b'{"type":"turn_done"}'
CLOSE_OPCODE, PING_OPCODE = 8, 9


class LoadEngine:
    """The engine: accepts, parses, answers, floods."""

    def __init__(self, profile: str = "v04", host: str = "127.0.0.1", port: int = 0, sndbuf: int = 0) -> None:
        self.v05 = profile == "v05"
        self.selector = selectors.DefaultSelector()
        self.listener = socket.create_server((host, port), backlog=1024)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, None)
        self.port: int = self.listener.getsockname()[1]
        self.url = f"ws://{host}:{self.port}"
        self.sndbuf = sndbuf
        self.buffer = bytearray(READ)
        self.view = memoryview(self.buffer)
        self.numbers = itertools.count(1)
        self.timers: list[tuple[float, int, Connection, bytes, dict[str, Any]]] = []
        self.paced: set[Connection] = set()
        self.live: dict[bytes, tuple[Connection, dict[str, Any]]] = {}
        self.barriers: dict[tuple[Connection, Any], list[tuple[bytes, dict[str, Any]]]] = {}
        self.uploads: dict[Connection, int] = {}
        self.started = 0
        self.terminated = 0
        self.bytes_in = 0
        self.specs: dict[str, dict[str, Any]] = {}
        self.stop = False
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

    # ---------------------------------------------------------------------------------------------------- the loop

    def serve(self) -> None:
        """Serve until `stop` is set."""
        while not self.stop:
            for key, mask in self.selector.select(self.timeout()):
                conn: Connection | None = key.data
                if conn is None:
                    self.accept()
                    continue
                if mask & selectors.EVENT_READ:
                    self.on_readable(conn)
                if mask & selectors.EVENT_WRITE and conn.sock.fileno() >= 0:
                    self.flush(conn)
            self.on_time()

    def close(self) -> None:
        """Close every socket."""
        for key in list(self.selector.get_map().values()):
            self.selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
        self.selector.close()

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

    def accept(self) -> None:
        """Accept one connection."""
        try:
            sock, _ = self.listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.sndbuf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.sndbuf)
        self.selector.register(sock, selectors.EVENT_READ, Connection(sock))

    def drop(self, conn: Connection) -> None:
        """Forget a connection and, as 0.5 does, the processes that it launched."""
        if conn.sock.fileno() < 0:
            return
        self.selector.unregister(conn.sock)
        conn.sock.close()
        self.paced.discard(conn)
        for pid in conn.procs:
            self.live.pop(pid, None)
        for key in [key for key in self.barriers if key[0] is conn]:
            del self.barriers[key]

    # ------------------------------------------------------------------------------------------------------ reading

    def on_readable(self, conn: Connection) -> None:
        """Read once, handle all the frames that are whole, write the answers once."""
        try:
            size = conn.sock.recv_into(self.buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self.drop(conn)
            return
        if conn.closing:
            return
        self.bytes_in += size
        if not conn.open:
            conn.pending += bytes(self.view[:size])
            if not self.upgrade(conn):
                return
            data = conn.pending
        elif conn.bulk is not None:
            took = conn.bulk.feed(self.view[:size])
            if conn.bulk.left:
                return
            self.on_bulk(conn, conn.bulk)
            conn.bulk = None
            data = bytes(self.view[took:size])
        else:
            data = conn.pending + bytes(self.view[:size])
        conn.pending = b""
        self.parse(conn, data)
        if conn.out or conn.floods:
            self.flush(conn)

    def upgrade(self, conn: Connection) -> bool:
        """Answer the upgrade request once it is whole; return whether frames may follow."""
        request, found, rest = conn.pending.partition(b"\r\n\r\n")
        if not found:
            return False
        head = request.split(b"\r\n", 1)[0].split(b" ")
        if self.v05 and head[1].split(b"?")[0] != b"/v1/ws":
            return self.refuse(conn, b"404 Not Found", b"")
        if self.v05 and not re.search(rb"(?i)\r\nx-pie-identity:\s*\S", request):
            return self.refuse(conn, b"401 Unauthorized", b"identity: missing `x-pie-identity`")
        key = re.search(rb"(?i)\r\nsec-websocket-key:\s*(\S+)", request)
        if key is None:
            return self.refuse(conn, b"400 Bad Request", b"no Sec-WebSocket-Key")
        accept = base64.b64encode(hashlib.sha1(key[1] + GUID).digest())
        conn.out.append(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        conn.open = True
        conn.pending = rest
        return True

    def refuse(self, conn: Connection, status: bytes, body: bytes) -> bool:
        """Answer the upgrade request with an HTTP error."""
        conn.sock.send(
            b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(body), body)
        )
        self.drop(conn)
        return False

    def parse(self, conn: Connection, data: bytes) -> None:
        """Handle every whole frame in `data`; keep the rest."""
        at, end = 0, len(data)
        while end - at >= 6:
            size = data[at + 1] & 0x7F
            start = at + 6
            if size >= 126:
                wide = 2 if size == 126 else 8
                start += wide
                if end < start:
                    break
                size = int.from_bytes(data[at + 2 : at + 2 + wide], "big")
            if size > BULK and data[at] == 0x82:
                conn.bulk = bulk = Bulk(size, data[start - 4 : start])
                at = start + bulk.feed(memoryview(data)[start:])
                if bulk.left:
                    return
                conn.bulk = None
                self.on_bulk(conn, bulk)
                continue
            if end < start + size:
                break
            payload = unmask(data[start : start + size], data[start - 4 : start])
            first = data[at]
            at = start + size
            if first == 0x82:
                self.on_message(conn, payload)
            elif self.on_other_frame(conn, first, payload):
                return
        conn.pending = data[at:]

    def on_other_frame(self, conn: Connection, first: int, payload: bytes) -> bool:
        """Handle a control frame or a fragment; return whether the connection is closing."""
        opcode = first & 0x0F
        if opcode == CLOSE_OPCODE:
            # 0.4 stops reading, never answers, and leaves the TCP connection as it is; 0.5 drops it.
            conn.closing = True
            conn.floods.clear()
            if self.v05:
                self.drop(conn)
            return True
        if opcode == PING_OPCODE:
            conn.out.append(frame(payload, 0x8A))
        elif opcode in {0, 2}:
            parts = conn.fragments = conn.fragments or []
            parts.append(payload)
            if first & 0x80:
                conn.fragments = None
                self.on_message(conn, b"".join(parts))
        return False

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

    # ------------------------------------------------------------------------------------------------------ writing

    def flush(self, conn: Connection) -> None:
        """Write until the socket is full or there is nothing left; responses go before floods."""
        try:
            blocked = self.write(conn)
        except OSError:
            self.drop(conn)
            return
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if blocked else 0)
        if self.selector.get_key(conn.sock).events != mask:
            self.selector.modify(conn.sock, mask, conn)

    def write(self, conn: Connection) -> bool:
        """Write what there is; return whether the socket took less than that."""
        # Whole slabs only between messages: a response may not land inside a frame.
        for flood in conn.floods:
            if len(flood.view) and not self.write_slab(conn.sock, flood):
                return True
        while True:
            if conn.out and not self.write_out(conn):
                return True
            wrote = self.write_floods(conn)
            if wrote is None:
                return True
            if not conn.out and not wrote:
                if not any(flood.rate is not None for flood in conn.floods):
                    self.paced.discard(conn)
                return False
            if wrote and self.input_waits(conn):
                # Back to the selector: a flood must not keep a request waiting for longer than a slab.
                return True

    def write_floods(self, conn: Connection) -> bool | None:
        """Write one slab of each flood; return whether there was one, or None where the socket is full."""
        now = time.monotonic() if conn in self.paced else 0.0
        wrote = False
        for flood in list(conn.floods):
            if flood.refill(now):
                wrote = True
                if not self.write_slab(conn.sock, flood):
                    return None
            elif flood.remaining == 0 or not flood.members:
                conn.floods.remove(flood)
                for pid in flood.members:
                    self.finish(conn, pid)
        return wrote

    def input_waits(self, conn: Connection) -> bool:
        """Say whether something has arrived that should be handled before more is written."""
        try:
            return bool(conn.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False

    @staticmethod
    def write_slab(sock: socket.socket, flood: Flood) -> bool:
        """Write what is left of a slab; return whether all of it went."""
        try:
            sent = sock.send(flood.view)
        except BlockingIOError:
            return False
        flood.view = flood.view[sent:]
        return not len(flood.view)

    @staticmethod
    def write_out(conn: Connection) -> bool:
        """Write the queued messages; return whether all of them went."""
        out = conn.out
        while out:
            batch = list(itertools.islice(out, 512))
            try:
                sent = conn.sock.sendmsg(batch)
            except BlockingIOError:
                return False
            while sent:
                size = len(out[0])
                if size > sent:
                    out[0] = memoryview(out[0])[sent:]
                    return False
                sent -= size
                out.popleft()
        return True


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
