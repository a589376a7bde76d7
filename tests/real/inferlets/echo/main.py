# SPDX-License-Identifier: Apache-2.0
"""Return the input, after a line on each output."""

import json
import sys


async def main(input):
    """Print the input as JSON, warn, and return the input."""
    print(f"out {json.dumps(input)}")
    print("err", file=sys.stderr)
    return input
