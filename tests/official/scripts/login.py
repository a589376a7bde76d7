# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - printing is how a script reports
"""Log in with 0.4. Arguments: URL, then "key" USER FILE or "token" TOKEN."""

import asyncio
import json
import sys

from pie_client import ParsedPrivateKey, PieClient


async def main(url: str, how: str, *credentials: str) -> None:
    """Log in, and print how many processes are listed, or why not."""
    async with PieClient(url) as client:
        try:
            if how == "key":
                await client.authenticate(credentials[0], ParsedPrivateKey.from_file(credentials[1]))
            else:
                await client.auth_by_token(credentials[0])
            print(json.dumps(len(await client.list_processes())))
        except Exception as exc:
            print(json.dumps(str(exc)))


asyncio.run(main(*sys.argv[1:]))
