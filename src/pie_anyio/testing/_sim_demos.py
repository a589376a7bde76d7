# SPDX-License-Identifier: Apache-2.0
"""The programs that a served simulated engine comes with."""

from __future__ import annotations

from typing import Any, Final, cast

from anyio import sleep

from ._sim_process import InferletSession
from ._sim_programs import InferletFunction


def _option(value: Any, name: str, default: Any) -> Any:
    return cast("dict[str, Any]", value).get(name, default) if isinstance(value, dict) else default


async def echo(session: InferletSession, input: Any) -> object:
    """Return the input."""
    return input


async def upper(session: InferletSession, input: Any) -> object:
    """Return {"text": ...} in capitals, word by word on standard output first."""
    text = str(_option(input, "text", _option(input, "input", "")))
    for word in text.split():
        await session.stdout(word.upper() + " ")
    return text.upper()


async def sleeper(session: InferletSession, input: Any) -> object:
    """Send "started" and a message per {"tick": s}, for {"secs": s} seconds."""
    seconds, tick = float(_option(input, "secs", 60)), float(_option(input, "tick", 1))
    await session.send("started")
    ticks = 0
    while ticks * tick < seconds:
        await sleep(tick)
        ticks += 1
        await session.send({"tick": ticks})
    return {"ticks": ticks}


async def flood(session: InferletSession, input: Any) -> object:
    """Send {"messages": n} messages and {"lines": n} lines, and return {"size": n} characters."""
    for index in range(int(_option(input, "messages", 1000))):
        await session.send(f"m{index}")
    for index in range(int(_option(input, "lines", 0))):
        await session.stdout(f"l{index}\n")
    return "x" * int(_option(input, "size", 0))


async def fail(session: InferletSession, input: Any) -> object:
    """Raise ValueError with the text {"why": ...}."""
    await session.stdout("about to fail\n")
    raise ValueError(_option(input, "why", "because"))


async def talk(session: InferletSession, input: Any) -> object:
    """Send "ready", then each signal back in capitals; "quit" ends it."""
    await session.send("ready")
    count = 0
    while (text := await session.receive()) != "quit":
        count += 1
        await session.send(text.upper())
    return {"count": count}


async def file_echo(session: InferletSession, input: Any) -> object:
    """Send "ready", then {"n": 1} files back."""
    sizes: list[int] = []
    for index in range(int(_option(input, "n", 1))):
        await session.send(f"next {index}" if index else "ready")
        content = await session.receive_file() or b""
        sizes.append(len(content))
        await session.send_file(content)
    return {"sizes": sizes}


DEMOS: Final[dict[str, InferletFunction]] = {
    "echo": echo,
    "upper": upper,
    "sleeper": sleeper,
    "flood": flood,
    "fail": fail,
    "talk": talk,
    "file-echo": file_echo,
}
"""The programs that a served simulated engine comes with, by name; give them to ``engine.inferlet(name)``."""
