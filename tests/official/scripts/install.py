# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - printing is how a script reports
"""Upload a program and run it. Arguments: URL, artifact, manifest, program."""

import asyncio
import json
import sys

from pie_client import Event, PieClient


async def main(url: str, artifact: str, manifest: str, program: str) -> None:
    """Install the files, and print whether the program is known before and after, and how it ends."""
    async with PieClient(url) as client:
        await client.authenticate("alice")
        before = await client.check_program(program)
        await client.install_program(artifact, manifest, True)
        after = await client.check_program(program)
        process = await client.launch_process(program, input={"n": 1})
        while (last := await process.recv())[0] not in (Event.Return, Event.Error):
            pass
    print(json.dumps([before, after, last[0].value, last[1]]))


asyncio.run(main(*sys.argv[1:]))
