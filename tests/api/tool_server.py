# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - its standard output is its wire
"""A tool server with bad manners on demand: JSON-RPC, one object per line, on the standard streams.

The first argument says how it behaves at start; the tool that is called says the rest.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

parked: list[int] = []
"""Ids of calls that wait for others."""
answers: list[dict[str, Any]] = []
"""What the client answered to requests of this side."""
greeting: dict[str, Any] = {}
"""What the client said of itself."""


def say(**fields: Any) -> None:
    print(json.dumps({"jsonrpc": "2.0", **fields}), flush=True)


def greet(behaviour: str, request: dict[str, Any]) -> None:
    greeting.update(request)
    match behaviour:
        case "mute":
            pass
        case "refuse":
            say(id=request["id"], error={"code": -1, "message": "not today"})
        case "die":
            print("cannot find my configuration", file=sys.stderr, flush=True)
            sys.exit(3)
        case "long":
            print("x" * 400_000, flush=True)
        case "background":
            # A child of its own holds the pipes open after it has ended, until its input is closed.
            subprocess.Popen([sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"])
            os._exit(0)
        case _:
            print("starting up ...")
            print(json.dumps([1, 2]))
            say(method="notifications/message", params={})
            say(id=10**9, result="nobody asked")
            say(id=request["id"], result={"echo": request["params"]})


def call(number: int, tool: str, value: Any) -> None:
    match tool:
        case "echo":
            say(id=number, result=value)
        case "fail":
            say(id=number, error=value)
        case "raw":
            print(str(value).replace("ID", str(number)), flush=True)
        case "large":
            say(id=number, result="x" * value)
        case "pid":
            say(id=number, result=os.getpid())
        case "greeting":
            say(id=number, result=greeting)
        case _:
            misbehave(number, tool, value)


def misbehave(number: int, tool: str, value: Any) -> None:
    match tool:
        case "park":
            parked.append(number)
        case "unpark":
            for waiting in reversed([*parked, number]):
                say(id=waiting, result=waiting)
            parked.clear()
        case "ask":
            # Requests of its own come before the answer, which tells what it got for them.
            for index, question in enumerate(value):
                say(id=f"q{index}", **question)
            parked.append(number)
        case "flood":
            for index in range(value):
                say(id=index, method="ping")
            say(id=number, result="flooded")
        case "close-input":
            os.close(0)
            say(id=number, result="deaf")
            threading.Event().wait()
        case "exit":
            print("leaving", file=sys.stderr, flush=True)
            os._exit(0)
        case _:
            say(id=number, error={"code": -32602, "message": "no such tool"})


def handle(request: dict[str, Any], behaviour: str) -> None:
    match request.get("method"):
        case "initialize":
            greet(behaviour, request)
        case "tools/call":
            params = request["params"]
            call(request["id"], params["name"], params.get("arguments"))
        case None:
            answers.append(request)
            if len(answers) == 2 and parked:
                say(id=parked.pop(), result=answers)
        case method if "id" in request:
            say(id=request["id"], result={"method": method, "params": request["params"]})
        case _:
            pass


def main(behaviour: str) -> None:
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for line in sys.stdin:
        handle(json.loads(line), behaviour)
    if behaviour == "stubborn":
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
