# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - printing is how a script reports
"""Use the calls that only 0.4 has. Arguments: URL, and a program that is a tool server on its standard streams."""

import asyncio
import json
import sys

from pie_client import PieClient


async def main(url: str, server: str) -> None:
    """Launch and run batches, start a daemon, serve a tool; print what came of it."""
    seen: dict[str, object] = {}
    async with PieClient(url) as client:
        await client.authenticate("alice")
        seen["run"] = await client.run_processes("echo@0.1.0", [{"n": 1}, {"n": 2}])
        try:
            await client.run_processes("fail@0.1.0", [{}, {}])
        except Exception as exc:
            seen["failed"] = str(exc).splitlines()[0]
        processes = await client.launch_processes("echo@0.1.0", [1, 2], token_budgets=[5, None])
        seen["launched"] = [(await process.recv())[1] for process in processes]
        await client.launch_daemon("echo@0.1.0", 8123)
        await client.register_mcp_server("calc", "stdio", sys.executable, [server])
        process = await client.launch_process("tool-user@0.1.0")
        event, value = await process.recv()
        seen["tool"] = [event.value, value]
    print(json.dumps(seen))


asyncio.run(main(*sys.argv[1:]))
