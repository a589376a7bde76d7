# SPDX-License-Identifier: Apache-2.0
"""The load engine's connections: the selector's loop, the upgrade, frames in, frames and floods out.

What the messages mean is the business of `load_engine`, which this knows nothing of.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import selectors
import socket
import time

from load_frames import Bulk, Connection, Flood, frame, unmask

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#: Frames above this are not unmasked: only their first and last bytes are looked at.
BULK = 8192
READ = 512 * 1024
CLOSE_OPCODE, PING_OPCODE = 8, 9


class Connections:
    """Accepts, parses, writes; what is said is decided by whoever derives from it."""

    def __init__(self, *, v05: bool, host: str, port: int, sndbuf: int) -> None:
        self.v05 = v05
        self.selector = selectors.DefaultSelector()
        self.listener = socket.create_server((host, port), backlog=1024)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, None)
        self.port: int = self.listener.getsockname()[1]
        self.url = f"ws://{host}:{self.port}"
        self.sndbuf = sndbuf
        self.buffer = bytearray(READ)
        self.view = memoryview(self.buffer)
        self.paced: set[Connection] = set()
        self.bytes_in = 0
        self.stop = False

    # ------------------------------------------------------------------------------------------- what an engine adds

    def timeout(self) -> float | None:
        """Return how long the selector may sleep."""
        raise NotImplementedError

    def on_time(self) -> None:
        """Do what is due."""
        raise NotImplementedError

    def on_drop(self, conn: Connection) -> None:
        """Forget what belongs to a connection that has ended."""
        raise NotImplementedError

    def on_message(self, conn: Connection, payload: bytes) -> None:
        """Handle one message."""
        raise NotImplementedError

    def on_bulk(self, conn: Connection, bulk: Bulk) -> None:
        """Handle a large message, of which only the two ends were kept."""
        raise NotImplementedError

    def finish(self, conn: Connection, pid: bytes) -> None:
        """End a process whose flood is over."""
        raise NotImplementedError

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
        """Forget a connection."""
        if conn.sock.fileno() < 0:
            return
        self.selector.unregister(conn.sock)
        conn.sock.close()
        self.paced.discard(conn)
        self.on_drop(conn)

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
