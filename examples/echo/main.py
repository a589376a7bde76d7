# SPDX-License-Identifier: Apache-2.0
"""Return the input: the smallest program that shows all the ways out of a process."""

import sys

from inferlet import session


async def main(input: dict) -> dict:
    """Print a line, warn on standard error, send a message, and return the input."""
    print("echo: printed")
    print("echo: on standard error", file=sys.stderr)
    session.send({"keys": sorted(input)})
    return input
