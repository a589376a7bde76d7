# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - printing is how a script reports
"""Disconnect from a process and come back (0.4). Arguments: URL."""

import asyncio
import json
import sys

from pie_client import Event, PieClient


async def main(url: str) -> None:
    """Launch, leave, attach on a new connection, finish; print the events seen there, or the error."""
    async with PieClient(url) as client:
        await client.authenticate("alice")
        process = await client.launch_process("talk@0.1.0")
        await process.recv()
        process_id = process.process_id
    async with PieClient(url) as client:
        await client.authenticate("alice")
        try:
            process = await client.attach_process(process_id)
        except Exception as exc:
            print(json.dumps(str(exc)))
            return
        await process.signal("back")
        await process.signal("quit")
        events = [await process.recv()]
        while events[-1][0] not in (Event.Return, Event.Error):
            events.append(await process.recv())
    print(json.dumps([[event.value, value] for event, value in events]))


asyncio.run(main(sys.argv[1]))
