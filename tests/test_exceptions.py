# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from pie_anyio import _exceptions
from pie_anyio._exceptions import (
    AuthenticationError,
    ConnectError,
    ConnectionClosed,
    ConnectionLost,
    EngineBusy,
    EngineError,
    InsecureTransport,
    InsecureTransportWarning,
    InvalidRequest,
    KeyFileError,
    LocalProtocolError,
    OutputOverflow,
    PieError,
    ProcessError,
    ProcessFailed,
    ProcessLost,
    ProcessNotFound,
    ProcessTerminated,
    ProgramNotFound,
    RemoteProtocolError,
    SessionError,
    TransferError,
    UnsupportedByEngine,
)

WHERE = {"process_id": "p-1", "program": "a@0.1.0", "index": 3, "key": "k", "output_tail": "the end"}

# One example of every class, with every attribute away from its default.
EXAMPLES: list[tuple[PieError, dict[str, object]]] = [
    (PieError("m"), {}),
    (LocalProtocolError("m"), {}),
    (
        UnsupportedByEngine("launch_daemon", generation="0.5", available_in="0.4"),
        {"feature": "launch_daemon", "generation": "0.5", "available_in": "0.4"},
    ),
    (InvalidRequest("m"), {}),
    (InsecureTransport("m"), {}),
    (RemoteProtocolError("m", close_code=1007), {"close_code": 1007}),
    (ConnectError("m", url="ws://h", status=401, body="no"), {"url": "ws://h", "status": 401, "body": "no"}),
    (AuthenticationError("m", url="ws://h"), {"url": "ws://h", "status": None, "body": None}),
    (KeyFileError("m"), {}),
    (ConnectionLost("m", issued=True, generation=2), {"issued": True, "generation": 2}),
    (
        ConnectionClosed("m", code=1001, reason="bye", issued=False, generation=4),
        {"code": 1001, "reason": "bye", "issued": False, "generation": 4},
    ),
    (SessionError("m"), {}),
    (EngineError("m", request="ping", detail="d"), {"request": "ping", "detail": "d"}),
    (EngineBusy("m", request="launch_process"), {"request": "launch_process", "detail": ""}),
    (ProgramNotFound("m", detail="d"), {"request": "", "detail": "d"}),
    (ProcessNotFound("m"), {"request": "", "detail": ""}),
    (ProcessError("m", process_id="p-1", index=3), {"process_id": "p-1", "index": 3, "key": None}),
    (ProcessFailed("m", detail="boom", **WHERE), {"detail": "boom", **WHERE}),
    (ProcessTerminated("m", by_us=True, **WHERE), {"by_us": True, **WHERE}),
    (ProcessLost("m", issued=True, **WHERE), {"issued": True, **WHERE}),
    (OutputOverflow("m", process_id="p-1", dropped=7), {"process_id": "p-1", "dropped": 7}),
    (TransferError("m"), {}),
]
each_example = pytest.mark.parametrize(
    ("error", "attributes"), EXAMPLES, ids=[type(error).__name__ for error, _ in EXAMPLES]
)


def _by_protocol(protocol: int) -> Callable[[PieError], PieError]:
    return lambda error: pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - our own bytes


COPIERS = {f"pickle-{n}": _by_protocol(n) for n in range(pickle.HIGHEST_PROTOCOL + 1)} | {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def test_every_class_has_an_example() -> None:
    """The examples below cover every public error class, so that no new one escapes the tests."""
    classes = {getattr(_exceptions, name) for name in _exceptions.__all__} - {InsecureTransportWarning}
    assert {type(error) for error, _ in EXAMPLES} == classes


def test_the_tree_is_the_one_drawn_in_the_docstring() -> None:
    """The drawing at the top of the module is true: names, nesting, nothing missing."""
    drawing = (_exceptions.__doc__ or "").split(".. code-block:: text\n\n", 1)[1].split("\n\n", 1)[0]
    parents: dict[int, str] = {}
    drawn: dict[str, str] = {}
    for line in drawing.splitlines():
        name = line.split("+-")[-1].split()[0]
        depth = line.find("+-")
        if depth >= 0:
            drawn[name] = next(parents[d] for d in sorted(parents, reverse=True) if d < depth)
        parents = {d: n for d, n in parents.items() if d < depth} | {depth: name}
    assert drawn == {
        type(error).__name__: type(error).__bases__[0].__name__
        for error, _ in EXAMPLES
        if type(error) is not PieError
    }
    assert issubclass(InsecureTransportWarning, UserWarning)


@each_example
def test_attributes_are_kept(error: PieError, attributes: dict[str, object]) -> None:
    """The constructor stores what it is given, and the message alone is the text."""
    assert {name: getattr(error, name) for name in attributes} == attributes
    assert error.args == (str(error),)
    assert repr(error) == f"{type(error).__name__}({str(error)!r})"


@pytest.mark.parametrize("copier", COPIERS.values(), ids=COPIERS)
@each_example
def test_copies_are_whole(
    error: PieError, attributes: dict[str, object], copier: Callable[[PieError], PieError]
) -> None:
    """Pickling in any protocol and copying give an equal error of the same class."""
    again = copier(error)
    assert type(again) is type(error)
    assert again is not error
    assert again.args == error.args
    assert vars(again) == vars(error)
    assert {name: getattr(again, name) for name in attributes} == attributes


def test_notes_travel_with_the_error() -> None:
    """What was added with ``add_note`` survives pickling."""
    error = TransferError("m")
    error.add_note("while sending a.bin")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert again.__notes__ == ["while sending a.bin"]


class MandatoryError(ProcessFailed):
    """A user's subclass with a signature of its own."""

    def __init__(self, *, shard: int) -> None:
        super().__init__(f"shard {shard} failed", detail="d")
        self.shard = shard


def test_subclasses_with_other_signatures_pickle() -> None:
    """A subclass needs no pickling code of its own, whatever its constructor wants."""
    again = pickle.loads(pickle.dumps(MandatoryError(shard=3)))  # noqa: S301 - our own bytes
    assert isinstance(again, MandatoryError)
    assert (str(again), again.shard, again.detail, again.index) == ("shard 3 failed", 3, "d", None)


def test_groups_of_errors_pickle() -> None:
    """Errors inside an exception group survive as well: this is how a map fails."""
    group = ExceptionGroup(
        "two runs failed", [ProcessTerminated("m", by_us=False), ProcessLost("n", index=1)]
    )
    first, second = pickle.loads(pickle.dumps(group)).exceptions  # noqa: S301 - our own bytes
    assert (first.by_us, second.index) == (False, 1)


def test_builtin_bases() -> None:
    """Errors can be caught by the built-in class that a user of the official client would name."""
    assert issubclass(InvalidRequest, ValueError)
    assert issubclass(KeyFileError, ValueError)
    assert issubclass(ProcessFailed, RuntimeError)


def test_unsupported_says_which_engine_can() -> None:
    """The message names the feature, this engine's generation and the one that is needed."""
    text = str(UnsupportedByEngine("launch_daemon", generation="0.5", available_in="0.4"))
    assert "launch_daemon" in text
    assert "generation 0.5" in text
    assert "generation 0.4" in text
