# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - printing is how a script reports
"""Launch a process and leave, or come back to it. Arguments: URL and, to come back, the id."""

import asyncio
import json
import sys

from pie_client import Event, PieClient


async def main(url: str, process_id: str = "") -> None:
    """Print the id, or the events that came after coming back."""
    async with PieClient(url) as client:
        await client.authenticate("alice")
        if not process_id:
            process = await client.launch_process("talk@0.1.0")
            await process.recv()
            print(json.dumps(process.process_id))
            return
        process = await client.attach_process(process_id)
        await process.signal("back")
        await process.signal("quit")
        events = [await process.recv()]
        while events[-1][0] not in (Event.Return, Event.Error):
            events.append(await process.recv())
    print(json.dumps([[event.value, value] for event, value in events]))


asyncio.run(main(*sys.argv[1:]))
