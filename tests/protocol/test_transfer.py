# SPDX-License-Identifier: Apache-2.0
"""Files that arrive in chunks: order, limits, hashes, interleaving."""

from __future__ import annotations

import tracemalloc
from typing import Any

import attrs
import blake3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pie_anyio import Limits
from pie_anyio._protocol import transfer
from pie_anyio._protocol.engine import cut_file
from pie_anyio._protocol.messages import CHUNK_BYTES, FileChunk
from pie_anyio._protocol.transfer import ChunkRefused, Downloads, count_chunks


def chunks(content: bytes, process_id: str = "p", size: int = 4, name: str | None = None) -> list[FileChunk]:
    """Cut content finer than an engine does."""
    digest = blake3.blake3(content).hexdigest()
    parts = [content[start : start + size] for start in range(0, len(content), size)] or [b""]
    return [FileChunk(process_id, digest, i, len(parts), part, name) for i, part in enumerate(parts)]


def of(chunk: FileChunk, **changes: Any) -> FileChunk:
    return attrs.evolve(chunk, **changes)


def small(**limits: int) -> Downloads:
    """Take files with limits that a test can reach; chunk counts are judged by the real chunk size."""
    return Downloads(Limits(**{"download_bytes": 64 * CHUNK_BYTES, **limits}))


@pytest.mark.parametrize(
    ("size", "count"),
    [(0, 1), (1, 1), (CHUNK_BYTES, 1), (CHUNK_BYTES + 1, 2), (3 * CHUNK_BYTES, 3)],
)
def test_number_of_chunks(size: int, count: int) -> None:
    """At least one: empty content is one empty chunk."""
    assert count_chunks(size) == count


def test_a_file_is_put_together() -> None:
    """In order, with its name, once; then nothing of it is left."""
    downloads = small()
    content = bytes(range(10))
    *first, last = chunks(content, name="a.txt")
    assert [downloads.add(chunk) for chunk in first] == [None, None]
    assert len(downloads) == 1
    received = downloads.add(last)
    assert received == content
    assert received is not None
    assert received.name == "a.txt"
    assert len(downloads) == 0


def test_an_empty_file_is_one_empty_chunk() -> None:
    """Engines do not send it, but it is well-formed."""
    assert small().add(chunks(b"")[0]) == b""


def test_equal_files_of_two_processes_do_not_mix() -> None:
    """Chunks of equal hash that interleave belong to their own processes (0.5)."""
    downloads = small()
    content = bytes(range(20))
    got = [
        downloads.add(chunk)
        for pair in zip(chunks(content, "p"), chunks(content, "q"), strict=True)
        for chunk in pair
    ]
    assert [item for item in got if item is not None] == [content, content]


def test_a_sender_that_starts_over_starts_afresh() -> None:
    """Chunk 0 in the middle drops what came before."""
    downloads = small()
    content = bytes(range(10))
    first, second, third = chunks(content)
    for chunk in (first, second, first, second):
        assert downloads.add(chunk) is None
    assert downloads.add(third) == content


def test_hashes_are_compared_without_regard_to_case() -> None:
    """Hexadecimal digits have no case."""
    (chunk,) = chunks(b"abc")
    assert small().add(of(chunk, file_hash=chunk.file_hash.upper())) == b"abc"


def refuse(downloads: Downloads, *sent: FileChunk) -> str:
    """Send chunks of which the last is refused, and give the reason."""
    for chunk in sent[:-1]:
        assert downloads.add(chunk) is None
    with pytest.raises(ChunkRefused) as caught:
        downloads.add(sent[-1])
    return str(caught.value)


def test_chunks_that_do_not_fit_are_refused() -> None:
    """Wrong hash, order, count; the file is given up, and a new start is accepted."""
    content = bytes(range(10))
    first, second, third = chunks(content)
    cases = {
        "does not match its hash": (first, second, of(third, chunk_data=b"xx")),
        "beginning is missing": (second,),
        "arrived where 1 was due": (first, third),
        "arrived where 2 was due": (first, second, second),
        "number of chunks changed": (first, of(second, total_chunks=4)),
        "arrived where 1 was due ": (first, of(second, chunk_index=-1)),
    }
    for reason, sent in cases.items():
        downloads = small()
        assert reason.strip() in refuse(downloads, *sent)
        assert len(downloads) == 0
        assert [downloads.add(chunk) for chunk in (first, second, third)] == [None, None, content]


@pytest.mark.parametrize("total", [0, -1, 65, 2**62])
def test_impossible_totals_are_refused_at_the_first_chunk(total: int) -> None:
    """No chunks at all, or more than the largest file would have."""
    assert f"a file of {total} chunks" in refuse(small(), FileChunk("p", "h", 0, total, b""))


def test_a_file_at_the_limit_and_one_byte_more() -> None:
    """``download_bytes`` is what one file may have."""
    content = bytes(8)
    assert [small(download_bytes=8).add(c) for c in chunks(content, size=8)] == [content]
    assert "a file exceeds the limit of 8 bytes" in refuse(small(download_bytes=8), *chunks(bytes(9), size=9))
    limit = CHUNK_BYTES + 8
    at = chunks(bytes(limit), size=CHUNK_BYTES)
    assert small(download_bytes=limit).add(at[0]) is None
    over = chunks(bytes(limit + 1), size=CHUNK_BYTES)
    downloads = small(download_bytes=limit)
    assert "exceeds the limit" in refuse(downloads, *over)
    assert len(downloads) == 0


def test_all_files_together_at_the_limit_and_one_byte_more() -> None:
    """``downloads_bytes`` is what all unfinished files may hold; finished ones free their share."""
    downloads = small(downloads_bytes=8)
    one, other = chunks(bytes(8), "p"), chunks(bytes(8), "q")
    assert downloads.add(one[0]) is None
    assert downloads.add(other[0]) is None
    assert "unfinished files exceed" in refuse(downloads, one[1])
    # The refused file freed its share.
    assert downloads.add(other[1]) == bytes(8)
    assert [downloads.add(chunk) for chunk in one] == [None, bytes(8)]


def test_as_many_files_at_the_same_time_as_allowed() -> None:
    """``downloads`` is how many may be unfinished; those that are, go on."""
    downloads = small(downloads=2)
    files = [chunks(bytes(8), f"p{index}") for index in range(3)]
    assert downloads.add(files[0][0]) is None
    assert downloads.add(files[1][0]) is None
    assert "more than 2 files" in refuse(downloads, files[2][0])
    assert downloads.add(files[0][0]) is None  # starting over takes no second place
    assert downloads.add(files[0][1]) == bytes(8)
    assert downloads.add(files[2][0]) is None


def test_a_process_that_ended_leaves_nothing() -> None:
    """Its unfinished files are dropped, those of others stay."""
    downloads = small(downloads_bytes=8)
    downloads.add(chunks(bytes(8), "p")[0])
    downloads.add(chunks(b"x" * 8, "p")[0])
    downloads.forget("p")
    assert len(downloads) == 0
    mine = chunks(bytes(8), "q")
    downloads.add(mine[0])
    downloads.forget("p")
    assert downloads.add(mine[1]) == bytes(8)


def test_the_end_of_the_connection_drops_everything() -> None:
    """Whatever is unfinished then can never be finished."""
    downloads = small(downloads_bytes=4)
    downloads.add(chunks(bytes(8))[0])
    downloads.clear()
    assert len(downloads) == 0
    assert downloads.add(chunks(bytes(8))[0]) is None


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=9)), min_size=1, max_size=5), st.data())
def test_any_interleaving_gives_every_file(files: list[tuple[int, bytes]], data: st.DataObject) -> None:
    """Files of several processes arrive whole, however their chunks interleave; the account returns to nothing."""
    queues: dict[int, list[FileChunk]] = {}
    for process, content in files:
        queues.setdefault(process, []).extend(chunks(content, str(process)))
    downloads, got = small(), []
    while queues:
        process = data.draw(st.sampled_from(sorted(queues)))
        received = downloads.add(queues[process].pop(0))
        if received is not None:
            got.append((process, bytes(received)))
        if not queues[process]:
            del queues[process]
    assert sorted(got) == sorted(files)
    assert len(downloads) == 0
    assert downloads._bytes == 0


def test_what_the_engines_side_cuts_fits() -> None:
    """The other role's chunks are accepted."""
    content = bytes(range(256)) * 3000
    downloads = Downloads(Limits())
    got = [downloads.add(chunk) for chunk in cut_file("p", content, "n")]
    assert got == [None, None, content]


def test_memory_is_kept_once() -> None:
    """Large files ask for it; it is asked for once, and takes nothing."""
    transfer.keep_freed_memory.cache_clear()
    content = bytes(10)
    tracemalloc.start()
    transfer.keep_freed_memory()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 100_000
    downloads = small()
    for chunk in chunks(content) + chunks(content, "q"):
        downloads.add(chunk)
    assert transfer.keep_freed_memory.cache_info().misses == 1
    assert transfer.keep_freed_memory.cache_info().hits == 2
    downloads.add(chunks(b"x", "r")[0])
    assert transfer.keep_freed_memory.cache_info().hits == 2
