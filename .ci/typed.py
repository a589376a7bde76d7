# SPDX-License-Identifier: Apache-2.0
"""Judge pyright's report on the public interface: python .ci/typed.py REPORT SHARE.

REPORT is what ``pyright --verifytypes PACKAGE --outputjson`` wrote; SHARE, from 0 to 1, is how much of the interface
must have types that no checker has to infer. What lacks them is listed, and the exit status is 1 if it is too much.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# Everything that mentions a class is "partially unknown" with it; the cause is reported by itself.
CONSEQUENCE = "partially unknown"


def read_report(path: Path) -> dict[str, Any]:
    """Read the report; exits where pyright found nothing to judge, for 100 % of nothing proves nothing."""
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        interface: dict[str, Any] = report["typeCompleteness"]
    except (OSError, ValueError, KeyError) as exc:
        sys.exit(f"pyright gave no report in {path} ({exc!r}); what it printed above says why")
    if not interface.get("pyTypedPath") or not interface["symbols"]:
        problems = [entry["message"] for entry in report["generalDiagnostics"]]
        sys.exit("\n  ".join(["pyright found no public interface; is the package installed?", *problems]))
    return interface


def describe(symbol: dict[str, Any]) -> list[str]:
    """Say where and why the type of one symbol is not known for sure; nothing if it only follows from another's."""
    lines: list[str] = []
    for entry in symbol["diagnostics"]:
        message, *details = [part.strip() for part in entry["message"].splitlines()]
        if entry["severity"] != "error" or CONSEQUENCE in message:
            continue
        start = entry.get("range", {}).get("start", {})
        where = f"{entry['file']}:{start['line'] + 1}: " if start and "file" in entry else ""
        lines.append(f"  {where}{symbol['name']}: {'; '.join([message, *details])}")
    return lines


def main() -> int:
    """Print the share, and what is missing from it."""
    interface, wanted = read_report(Path(sys.argv[1])), float(sys.argv[2])
    score: float = interface["completenessScore"]
    print(f"{score:.1%} of the public interface has types that need no inference ({wanted:.0%} wanted)")
    if score >= wanted:
        return 0
    loose = [s for s in interface["symbols"] if s["isTypeAmbiguous"] or not s["isTypeKnown"]]
    causes = [line for symbol in loose for line in describe(symbol)]
    print("\n".join(causes or [f"  {symbol['name']}" for symbol in loose]))
    print(
        f"  {len(loose)} names are affected; write the types of the {len(causes)} above where they are defined"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
