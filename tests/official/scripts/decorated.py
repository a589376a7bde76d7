# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - printing is how a script reports
"""Run a decorated function (0.5). Arguments: URL."""

import asyncio
import json
import sys

from pie_client import PieClient, inferlet


@inferlet(name="adder", version="0.1.0")
async def adder(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


async def main(url: str) -> None:
    """Run the function twice; the second time it is installed already."""
    async with PieClient(url) as client:
        await client.authenticate("alice")
        results = [await (await client.run(adder, a=number)).result() for number in (1, 2)]
    print(json.dumps(results))


asyncio.run(main(sys.argv[1]))
