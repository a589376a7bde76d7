# SPDX-License-Identifier: Apache-2.0
"""The results file of a map: append-only, a line per outcome, and good for going on after anything."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from pie_anyio import AnyOutcome

from ._errors import UserError
from ._inputs import Item, ItemId
from ._output import as_json

_SETTLED: Final = frozenset({"returned", "failed"})


class Journal:
    """Outcomes in a file, of this run and of earlier ones; of several lines with one id, the last counts.

    A crash can leave an unfinished last line, which is taken away. ``-`` writes to standard output and knows of
    nothing earlier. While one process has the file open, no other can.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.torn = False
        """Whether an unfinished line was taken away."""
        self._status: dict[ItemId, str] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Read what is there.

        Raises:
            UserError: the file cannot be written, is in use, or holds something else.
        """
        if self.name == "-":
            return self
        try:
            Path(self.name).parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.name, "a+b")
        except OSError as exc:
            msg = f"cannot write {self.name}: {exc.strerror}"
            raise UserError(msg) from exc
        try:
            _lock(self._file, self.name)
            self._read(self._file)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self, file: IO[bytes]) -> None:
        file.seek(0)
        good = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                self.torn = True
                file.truncate(good)
                break
            good += len(line)
            if line.strip():
                self._note(line, number)

    def _note(self, line: bytes, number: int) -> None:
        try:
            record = json.loads(line)
            self._status[record["id"]] = record["status"]
        except (ValueError, TypeError, KeyError, RecursionError) as exc:
            msg = f"{self.name}, line {number} is not the outcome of a run; nothing was written"
            raise UserError(msg, hint="give -o a new file, or the results file of an earlier run") from exc

    def settled(self, *, retry_failed: bool) -> set[ItemId]:
        """Give the ids that need not run again: returned, and failed too unless those are wanted again."""
        wanted = {"returned"} if retry_failed else _SETTLED
        return {item_id for item_id, status in self._status.items() if status in wanted}

    def count(self, ids: set[ItemId], status: str) -> int:
        """Count how many of these ids have a status."""
        return sum(self._status.get(item_id) == status for item_id in ids)

    def write(self, item: Item, outcome: AnyOutcome) -> None:
        """Add an outcome, so that it is there whatever happens next."""
        line = as_json(outcome_record(item, outcome)) + "\n"
        if self._file is None:
            sys.stdout.write(line)
            sys.stdout.flush()
        else:
            self._file.write(line.encode())
            self._file.flush()
        self._status[item.id] = outcome.status


def outcome_record(item: Item, outcome: AnyOutcome) -> dict[str, Any]:
    """Give the line of an outcome: ``value`` where it returned, else ``error``."""
    record: dict[str, Any] = {"id": item.id, "index": item.index, "status": outcome.status}
    if outcome.error is None:
        record["value"] = outcome.value
    else:
        record["error"] = {"type": type(outcome.error).__name__, "message": str(outcome.error)}
    record["seconds"] = _rounded(outcome.timings.total)
    record["first_output_seconds"] = _rounded(outcome.timings.to_first_output)
    record["process_id"] = outcome.process_id
    record["refusals"] = outcome.refusals
    return record


def _rounded(duration: float | None) -> float | None:
    return None if duration is None else round(duration, 6)


def _lock(file: IO[bytes], name: str) -> None:
    """Keep other processes out, where the system can."""
    if os.name != "posix":  # pragma: no cover - runs on other systems only
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        msg = f"{name} is being written by another run"
        raise UserError(msg) from exc
