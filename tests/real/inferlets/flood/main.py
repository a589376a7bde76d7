# SPDX-License-Identifier: Apache-2.0
"""Send many messages and lines, of a given size each."""

from inferlet import session


async def main(input):
    """Send "messages" messages and print "lines" lines, numbered and padded to "size" characters."""
    size = input.get("size", 0)
    for number in range(input.get("messages", 0)):
        session.send(f"m{number} ".ljust(size, "."))
    for number in range(input.get("lines", 0)):
        print(f"l{number} ".ljust(size, "."))
    return {"messages": input.get("messages", 0), "lines": input.get("lines", 0)}
