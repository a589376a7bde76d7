# SPDX-License-Identifier: Apache-2.0
"""Send a file of a given size under a given name."""

# The library wraps the call without a name only.
from wit_world.imports import session


async def main(input):
    """Send "size" bytes as "name"; byte i is i modulo 256."""
    data = bytes(i % 256 for i in range(input.get("size", 16)))
    session.send_file_as(data, input.get("name", "data.bin"))
    return {"size": len(data)}
