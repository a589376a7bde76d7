# SPDX-License-Identifier: Apache-2.0
"""Sleep in ticks, with a message for each.

`time.sleep` is the one to use: `asyncio.sleep` with a positive delay does not exist in this runtime.
A terminate interrupts it.
"""

import time

from inferlet import session


async def main(input):
    """Sleep "ticks" times "seconds"; "started" is the first message, then the number of each tick."""
    ticks = input.get("ticks", 1000)
    session.send("started")
    for number in range(ticks):
        time.sleep(input.get("seconds", 0.1))
        session.send(str(number))
    return {"ticks": ticks}
