# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - printing is how a script reports
"""A tool server: JSON-RPC, one object per line, on the standard streams."""

import json
import sys

for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        result = {"method": request["method"], "params": request["params"]}
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)
