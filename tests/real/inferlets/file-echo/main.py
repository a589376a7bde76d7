# SPDX-License-Identifier: Apache-2.0
"""Send files back.

The engine drops a file that no `receive_file` is waiting for, so each message that invites a file is
sent with the waiter already in place.
"""

import asyncio
import time

from inferlet import session


async def main(input):
    """Receive "count" files, one after the other; send each back and return their sizes."""
    sizes = []
    for number in range(input.get("count", 1)):
        arriving = asyncio.ensure_future(session.receive_file())
        await asyncio.sleep(0)  # the task's first step asks for the waiter,
        time.sleep(0.05)  # and the engine puts it in place in its own time: a quick client could be there before it
        session.send(f"ready {number}")
        data = await arriving
        session.send_file(data)
        sizes.append(len(data))
    return {"sizes": sizes}
