# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - printing is how a script reports
"""Launch, converse, send and receive files, list and terminate. Arguments: URL."""

import asyncio
import json
import sys

from pie_client import Event, PieClient


async def main(url: str) -> None:
    """Do everything that both generations can do, and print what came of it."""
    seen: dict[str, object] = {}
    async with PieClient(url) as client:
        await client.authenticate("alice")
        await client.ping()
        seen["known"] = [await client.check_program("talk@0.1.0"), await client.check_program("none@0.1.0")]
        process = await client.launch_process("talk@0.1.0", input={"a": 1})
        events = [await process.recv()]
        for text in ("one", "two", "quit"):
            await process.signal(text)
        while events[-1][0] not in (Event.Return, Event.Error):
            events.append(await process.recv())
        seen["events"] = [[event.value, value] for event, value in events]

        process = await client.launch_process("file-echo@0.1.0")
        await process.recv()
        content = bytes(range(256)) * 1200
        await process.transfer_file(content)
        event, value = await process.recv()
        seen["file"] = [event.value, bytes(value) == content]
        seen["after"] = [(await process.recv())[0].value]

        process = await client.launch_process("sleeper@0.1.0")
        await process.recv()
        seen["listed"] = [row["program"] for row in await client.list_processes()]
        await process.terminate()
        event, value = await process.recv()
        seen["terminated"] = [event.value, value]
        seen["query"] = (await client.query("model_status", ""))[0]
        try:
            await client.launch_process("none@0.1.0")
        except Exception as exc:
            seen["unknown"] = str(exc)
    print(json.dumps(seen))


asyncio.run(main(sys.argv[1]))
