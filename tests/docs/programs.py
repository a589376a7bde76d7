# SPDX-License-Identifier: Apache-2.0
"""The programs that the pages talk about, and the files that lie around when their examples run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from tests.docs.examples import ROOT

from pie_anyio.testing import InferletSession, SimulatedEngine

PASSPHRASE = b"open sesame"


async def research_agent(session: InferletSession, input: Any) -> object:
    """Think aloud and answer."""
    await session.stdout("thinking\n")
    await session.send({"step": 1})
    await anyio.lowlevel.checkpoint()
    return {"answer": {"What is 2+2?": "4", "What is 3+3?": "6"}.get(input["question"], "unknown")}


async def echo(session: InferletSession, input: Any) -> object:
    """Return the input."""
    return input


async def conversation(session: InferletSession, input: Any) -> object:
    """Do what the program of this name under `examples/` does."""
    await session.send("ready")
    total, count = float(input.get("start", 0)), 0
    while (text := await session.receive()) != "done":
        total += float(text)
        count += 1
        await session.send({"total": total})
    return {"total": total, "count": count}


async def summarize(session: InferletSession, input: Any) -> object:
    """Ask for a file, and send a smaller one back."""
    await session.send("ready")
    content = await session.receive_file() or b""
    await session.send_file(b"summary of " + content[:8], name="summary.txt")
    return {"bytes": len(content)}


async def slow(session: InferletSession, input: Any) -> object:
    """Report for ever."""
    await session.send("started")
    await anyio.sleep_forever()
    return None


async def flaky(session: InferletSession, input: Any) -> object:
    """Fail for odd numbers."""
    if input % 2:
        await session.stderr(f"{input} is odd\n")
        raise ValueError(f"cannot do {input}")
    return input


async def race(session: InferletSession, input: Any) -> object:
    """Return for one input only."""
    if input.get("temperature") != 0.2:
        await anyio.sleep_forever()
    return "found"


async def choice(session: InferletSession, input: Any) -> object:
    """Always take the first answer."""
    return {"choice": 0, "letter": "A", "scores": [-0.1, -2.0, -3.0, -4.0], "prompt_tokens": 56}


async def adder(session: InferletSession, input: Any) -> object:
    """Have a tool of the client's add (0.4)."""
    answer = await session.call_mcp("calculator", "tools/call", {"name": "add", "arguments": input})
    return json.loads(answer["content"][0]["text"])


async def upper(session: InferletSession, input: Any) -> object:
    """Do what the program of this name does that `pie-anyio engine` serves."""
    text = input["text"].upper()
    await session.send(text)
    return {"text": text}


async def word_count(session: InferletSession, input: Any) -> object:
    """Do what the decorated function of the pages does."""
    return len(input["text"].split())


PROGRAMS = {
    "research-agent@0.1.0": research_agent,
    "echo@0.1.0": echo,
    "conversation@0.1.0": conversation,
    "summarize@0.1.0": summarize,
    "slow@0.1.0": slow,
    "flaky@0.1.0": flaky,
    "race@0.1.0": race,
    "adder@0.1.0": adder,
    "upper@0.1.0": upper,
}
NOT_INSTALLED = {"my-agent": research_agent, "choice": choice, "word-count": word_count}


def add_programs(engine: SimulatedEngine) -> None:
    """Install the programs, and know what to run for those that examples upload."""
    for name, function in PROGRAMS.items():
        engine.inferlet(name)(function)
    for name, function in NOT_INSTALLED.items():
        engine.inferlet(name, installed=False)(function)


MANIFEST = """\
[package]
name = "my-agent"
version = "0.1.0"
"""
CALCULATOR = re.compile(r"^```python\n(# calculator\.py\n.*?)^```", re.DOTALL | re.MULTILINE)
SCRIPT_MANIFEST = MANIFEST + '\n[runtime]\nlanguage = "python"\nentry = "run"\n'


def write_files(folder: Path) -> str:
    """Write what the pages read, with `folder` as both home and working folder; give the public key of the login."""
    (folder / ".ssh").mkdir(mode=0o700)
    key = Ed25519PrivateKey.generate()
    _write_key(folder / ".ssh/id_ed25519", key, NoEncryption())
    _write_key(folder / ".ssh/id_locked", key, BestAvailableEncryption(PASSPHRASE))
    (folder / "my-agent.wasm").write_bytes(b"\0asm" + bytes(300_000))
    (folder / "Pie.toml").write_text(MANIFEST)
    (folder / "agent.py").write_text("def run(question):\n    return question\n")
    (folder / "agent.toml").write_text(SCRIPT_MANIFEST)
    (folder / "report.pdf").write_bytes(b"%PDF-1.7" + bytes(1000))
    calculator = CALCULATOR.search((ROOT / "docs/howto/tools.md").read_text(encoding="utf-8"))
    assert calculator is not None
    (folder / "calculator.py").write_text(calculator[1])
    rows = [{"question": f"What is {n}+{n}?", "answer": str(2 * n)} for n in range(2, 12)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "examples").symlink_to(ROOT / "examples")
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _write_key(path: Path, key: Ed25519PrivateKey, encryption: KeySerializationEncryption) -> None:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    path.chmod(0o600)
