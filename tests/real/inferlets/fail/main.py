# SPDX-License-Identifier: Apache-2.0
"""Raise, after a line on standard output."""


async def main(input):
    """Raise ValueError with the text under "why"."""
    print("failing")
    raise ValueError(input.get("why", "no reason"))
