# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from pie_anyio.testing.real_engine import RealEngine, RealEngineProcess

pytestmark = [pytest.mark.engine, pytest.mark.both_loops]


async def models(url: str) -> bytes:
    """Ask an engine for its models over plain HTTP, and return all that it answers."""
    host, port = url.removeprefix("ws://").split(":")
    answer = b""
    async with await anyio.connect_tcp(host, int(port)) as stream:
        await stream.send(b"GET /v1/models HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
        async for part in stream:
            answer += part
    return answer


async def test_the_shared_engine_answers(real_engine_url: str) -> None:
    """What is at the URL is an engine with a model."""
    with anyio.fail_after(10):
        answer = await models(real_engine_url)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"owned_by":"pie"' in answer


async def test_restarts_at_the_same_url(real_engine: RealEngineProcess, tmp_path: Path) -> None:
    """A real engine survives being killed and started again, and leaves no process at the end."""
    with anyio.fail_after(30):
        async with RealEngine(python=real_engine.engine.python, home=tmp_path, seed=None) as engine:
            url = engine.url
            engine.kill()
            await engine.restart()
            pid = engine.pid
            assert engine.url == url
            assert (await models(url)).startswith(b"HTTP/1.1 200")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
