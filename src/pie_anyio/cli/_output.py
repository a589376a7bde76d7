# SPDX-License-Identifier: Apache-2.0
"""What is printed, and where: results on standard output, all else on standard error, JSON on request."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TextIO

from pie_anyio import Receipt

from ._errors import Diagnosis

# What would move the cursor, change the terminal's state, or make text look like other text: the control characters
# but for tab and newline, DEL, the second set of controls, other ends of lines, the marks that turn the direction of
# writing, and characters that are not seen at all.
_UNSAFE: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def neutralised(text: str) -> str:
    """Spell out whatever could control a terminal; tabs and newlines stay."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def on_one_line(text: str) -> str:
    """Spell out tabs and newlines too, where a line of its own would pass for somebody else's."""
    return neutralised(text).replace("\n", "\\n").replace("\t", "\\t")


def as_json(value: Any) -> str:
    """Encode as JSON on one line, in ASCII, which no terminal or file can get wrong."""
    return json.dumps(value)


class Output:
    """The two streams of the command line."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet

    def result(self, text: str) -> None:
        """Print a result for people; nothing in JSON mode."""
        if not self.json:
            _write(sys.stdout, text + "\n")

    def value(self, value: Any) -> None:
        """Print what a program returned: text as it is, anything else as JSON."""
        self.result(value if isinstance(value, str) else as_json(value))

    def record(self, event: str, **fields: Any) -> None:
        """Print a line for programs; nothing unless in JSON mode."""
        if self.json:
            _write(sys.stdout, as_json({"event": event, **fields}) + "\n")

    def stream(self, text: str, *, error: bool = False) -> None:
        """Pass on a piece of a program's own output; nothing in JSON or quiet mode."""
        if not (self.json or self.quiet):
            _write(sys.stderr if error else sys.stdout, text)

    def note(self, text: str) -> None:
        """Say something beside the results, on standard error; nothing in quiet mode."""
        if not self.quiet:
            _write(sys.stderr, text + "\n")

    def urgent(self, text: str) -> None:
        """Say something on standard error that must be seen in quiet mode too."""
        _write(sys.stderr, text + "\n")

    def error(self, diagnosis: Diagnosis) -> None:
        """Report what went wrong: a line, and a hint."""
        self.record("error", error=diagnosis.kind, message=diagnosis.message, exit_code=diagnosis.code)
        self.urgent(f"error: {neutralised(diagnosis.message)}".replace("\n", "\n  "))
        if diagnosis.hint:
            self.urgent(f"hint: {diagnosis.hint}")

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print columns that line up; the last one is cut to nothing."""
        lines = [list(head), *([on_one_line(cell) for cell in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            self.result("  ".join(cells).rstrip())


def _write(stream: TextIO, text: str) -> None:
    stream.write(neutralised(text) if stream.isatty() else text)
    stream.flush()


def receipt_fields(receipt: Receipt) -> Mapping[str, Any]:
    """Give a receipt as a JSON object."""
    names = (
        "started",
        "returned",
        "failed",
        "terminated",
        "detached",
        "lost",
        "running",
        "not_started",
        "refusals",
    )
    return {**{name: getattr(receipt, name) for name in names}, "unconfirmed": list(receipt.unconfirmed)}


def receipt_line(receipt: Receipt) -> str:
    """Give a receipt as a line for people: what was started, how it ended, and what is not confirmed."""
    names = ("returned", "failed", "terminated", "detached", "lost", "running")
    parts = [f"{getattr(receipt, name)} {name}" for name in names if getattr(receipt, name)]
    refusals = f"; {receipt.refusals} refusals waited out" if receipt.refusals else ""
    ids = f" ({', '.join(receipt.unconfirmed)})" if receipt.unconfirmed else ""
    ends = ", ".join([*parts, f"{len(receipt.unconfirmed)} unconfirmed{ids}"])
    return f"receipt: {receipt.started} started: {ends}{refusals}"
