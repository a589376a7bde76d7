# SPDX-License-Identifier: Apache-2.0
"""Put out one large piece in the way asked for.

A piece must stay under 7 MB unless it is a file: anything larger cuts the engine's inner link, and
with it the event streams of every other client.
"""

import sys

from inferlet import session


async def main(input):
    """Send "size" bytes as "kind": message, stdout, stderr, file, return, error, or a split character."""
    size, kind = input.get("size", 1_000_000), input["kind"]
    if kind == "message":
        session.send("m" * size)
    elif kind in ("stdout", "stderr"):
        getattr(sys, kind).write("o" * size)
    elif kind == "file":
        session.send_file(bytes(size))
    elif kind == "error":
        raise ValueError("e" * size)
    elif kind == "split":  # one character, cut in two by two writes
        for part in (b"\xe2\x82", b"\xac"):
            sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
    return "r" * size if kind == "return" else size
