# SPDX-License-Identifier: Apache-2.0
"""Keep a running total: a process that its client talks to while it runs.

The client sends numbers with `process.signal("12")`; each is answered with a message, the total so
far. "done" ends the process, which returns the total and the count. What is no number is answered
with a message that says so, and changes nothing.
"""

from inferlet import session


async def main(input: dict) -> dict:
    """Add up what arrives until told to stop."""
    total, count = float(input.get("start", 0)), 0
    session.send("ready")
    while (text := await session.receive()) != "done":
        try:
            total += float(text)
        except ValueError:
            session.send({"not a number": text})
            continue
        count += 1
        session.send({"total": total})
    return {"total": total, "count": count}
