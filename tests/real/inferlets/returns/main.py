# SPDX-License-Identifier: Apache-2.0
"""Return a value of the kind asked for: strings go out as they are, all else as JSON, None as nothing."""

import sys

VALUES = {
    "none": None,
    "str": "plain text",
    "empty": "",
    "json-text": '{"looks": "like JSON"}',
    "int": 7,
    "float": 0.5,
    "bool": True,
    "list": [1, "two", None],
    "dict": {"nested": {"key": [1, 2]}},
    "unicode": "h\u00e9llo \u65e5\u672c \U0001f600",
}


async def main(input):
    """Return the value of "kind"; "exit" leaves with status 3 instead."""
    if input["kind"] == "exit":
        sys.exit(3)
    return VALUES[input["kind"]]
