# SPDX-License-Identifier: Apache-2.0
"""Answer every signal, until one says quit."""

from inferlet import session


async def main(input):
    """Greet, answer each signal with its upper case, and return what was heard."""
    heard = []
    session.send("ready")
    while (text := await session.receive()) != "quit":
        heard.append(text)
        session.send(text.upper())
    return {"heard": heard}
