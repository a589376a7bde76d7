# SPDX-License-Identifier: Apache-2.0
"""How uploads are put together, and what is refused."""

from __future__ import annotations

import blake3
import pytest

from pie_anyio._protocol.messages import AddProgram, TransferFile
from pie_anyio.keeper.uploads import Budget, UploadRefused, Uploads


def digest(data: bytes) -> str:
    return blake3.blake3(data).hexdigest()


def program(data: bytes, index: int = 0, total: int = 1, *, whole: bytes = b"") -> AddProgram:
    return AddProgram(digest(whole or data), "manifest", True, index, total, data)


def make(limit: int = 1000, total: int = 10_000) -> tuple[Uploads, Budget]:
    budget = Budget(total)
    return Uploads(limit, budget), budget


def test_pieces_make_a_whole() -> None:
    """The pieces of one hash are joined, with the manifest of the first, and counted while they wait."""
    uploads, budget = make()
    assert uploads.add(program(b"ab", 0, 2, whole=b"abcd")) is None
    assert budget.used == 2 + 64
    content = uploads.add(program(b"cd", 1, 2, whole=b"abcd"))
    assert content is not None
    assert content.data == b"abcd"
    assert isinstance(content.first, AddProgram)
    assert content.first.manifest == "manifest"
    assert budget.used == 0


def test_a_program_and_a_file_do_not_meet() -> None:
    """The same content may come as both at the same time."""
    uploads, _ = make()
    uploads.add(program(b"ab", 0, 2, whole=b"abcd"))
    assert uploads.add(TransferFile("id", digest(b"abcd"), 0, 2, b"ab")) is None
    content = uploads.add(TransferFile("id", digest(b"abcd"), 1, 2, b"cd"))
    assert content is not None
    assert content.data == b"abcd"


@pytest.mark.parametrize(
    ("chunks", "refusal"),
    [
        ([program(b"a", 1, 2)], "First chunk index must be 0"),
        ([program(b"a", 0, 0)], "at least one chunk"),
        ([program(b"a", 0, 2, whole=b"x"), program(b"a", 1, 3, whole=b"x")], "Chunk count mismatch"),
        ([program(b"a", 0, 3, whole=b"x"), program(b"a", 2, 3, whole=b"x")], "Out-of-order chunk"),
        ([program(b"a" * 900, 0, 2, whole=b"x"), program(b"a" * 40, 1, 2, whole=b"x")], "larger than"),
        ([program(b"a", whole=b"x")], "Program hash mismatch"),
        ([TransferFile("id", "no hash", 0, 1, b"a")], "File hash mismatch"),
    ],
)
def test_what_does_not_fit_is_refused(chunks: list[AddProgram | TransferFile], refusal: str) -> None:
    """In the engine's words where it has some; what there was is forgotten, so that it can be sent again."""
    uploads, budget = make()
    *before, last = chunks
    for chunk in before:
        assert uploads.add(chunk) is None
    with pytest.raises(UploadRefused, match=refusal):
        uploads.add(last)
    assert budget.used == 0


def test_all_clients_share_one_limit() -> None:
    """What one client has not completed counts against the others, until it has gone."""
    one, budget = make(total=1000)
    two = Uploads(1000, budget)
    one.add(program(bytes(600), 0, 2))
    with pytest.raises(UploadRefused, match="of all clients"):
        two.add(program(bytes(600), 0, 2))
    one.clear()
    assert budget.used == 0
    two.add(program(bytes(600), 0, 2))


def test_one_client_sends_so_many_at_a_time() -> None:
    """Many beginnings take memory too."""
    uploads, _ = make(total=100_000)
    for number in range(64):
        uploads.add(program(b"", 0, 2, whole=bytes([number])))
    with pytest.raises(UploadRefused, match="at most 64"):
        uploads.add(program(b"", 0, 2, whole=b"other"))
