"""A seeded sample of the documents of all shards, and what it says of how many there are."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from hf_ext.data.curation.sources import CHUNK_ROWS, Chunk, FileShard, Shard

ROWS_READ_PER_DRAWN = 50  # of a shard at most so many documents are read for each that is drawn from it
_LEAST_READ = CHUNK_ROWS


class Document(NamedTuple):
    """A document of a sample: the name of its shard, its position there, and its row."""

    shard: str
    row_number: int
    row: dict[str, Any]


class DocumentSample(NamedTuple):
    """
    Documents drawn from shards.

    Args:
        documents (`list[Document]`):
            In random order.
        num_shards (`int`):
            Files that they are from.
        rows_of_set (`int`, *optional*):
            Documents in all shards; reckoned from bytes where a shard was not read to its end, `None` where even that
            cannot be done.
        notes (`list[str]`):
            What a reader of the sample has to know.
    """

    documents: list[Document]
    num_shards: int
    rows_of_set: int | None
    notes: list[str]


def draw_documents(shards: Sequence[Shard], size: int, seed: int) -> DocumentSample:
    """
    Draw documents from all shards, from each about as many.

    Of a shard at most 50 documents are read for each that is drawn, and each of these is drawn with the same chance:
    chunks from all over a Parquet file or a dataset, the beginning of any other file. With more shards than documents
    wanted, the shards are drawn too.

    Args:
        shards (`Sequence[Shard]`):
            Where the documents are.
        size (`int`):
            How many are wanted; all where there are fewer.
        seed (`int`):
            The same sample for the same seed and shards.

    Raises:
        ValueError: if a shard cannot be read.
    """
    generator = np.random.default_rng(seed)
    sizes = np.array([shard.path.stat().st_size if isinstance(shard, FileShard) else 0 for shard in shards], float)
    order = generator.permutation(len(shards))[:size]
    order = order[np.argsort(sizes[order], kind="stable")]  # what small shards cannot give, larger ones do
    documents: list[Document] = []
    totals: list[int | None] = []
    beginnings: list[str] = []
    num_used = num_read = 0
    reasons: Counter[str] = Counter()
    for number, place in enumerate(order):
        shard = shards[int(place)]
        quota = -(-(size - len(documents)) // (len(order) - number))
        limit = max(_LEAST_READ, ROWS_READ_PER_DRAWN * quota)
        num_rows = shard.num_rows()
        reservoir = _Reservoir(quota, generator)
        for chunk in _chunks(shard, num_rows, limit, generator):
            if num_rows is None and reservoir.num_seen >= limit:
                beginnings.append(f"Of {shard.name} only the first {reservoir.num_seen:,} documents were drawn from.")
                num_rows = _reckoned_rows(shard, reservoir.rows)
                break
            reservoir.add(chunk)
            num_read += len(chunk.row_numbers) + len(chunk.unread)
            reasons.update(unread.drop.rule for unread in chunk.unread)
        else:
            num_rows = reservoir.num_seen if num_rows is None else num_rows
        documents += [Document(shard.name, row_number, row) for row_number, row in reservoir.rows]
        num_used += bool(reservoir.rows)
        totals.append(num_rows)
    documents = [documents[int(place)] for place in generator.permutation(len(documents))]
    notes = beginnings[:3] + ([f"So it was with {len(beginnings) - 3:,} more files."] if beginnings[3:] else [])
    if reasons:
        names = ", ".join(f"{rule} {count:,}" for rule, count in sorted(reasons.items()))
        notes.append(f"{reasons.total():,} of {num_read:,} records cannot be read ({names}); none is in the sample.")
    return DocumentSample(documents, num_used, _total(sizes, order, totals), notes)


class _Reservoir:
    """A few of the documents that come by, each with the same chance (Vitter's algorithm R)."""

    def __init__(self, size: int, generator: np.random.Generator) -> None:
        self.size = size
        self.generator = generator
        self.num_seen = 0
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def add(self, chunk: Chunk) -> None:
        """Let the documents of a chunk come by."""
        for position, row_number in enumerate(chunk.row_numbers):
            is_room = self.num_seen < self.size
            place = self.num_seen if is_room else int(self.generator.integers(self.num_seen + 1))
            self.num_seen += 1
            if place < self.size:
                self.rows[place : place + 1] = [(row_number, _row(chunk, position))]


def _chunks(shard: Shard, num_rows: int | None, limit: int, generator: np.random.Generator) -> Iterator[Chunk]:
    """The chunks of a shard, or where it can be read from anywhere, enough of them from all over it."""
    if num_rows is None or num_rows <= limit:
        yield from shard.chunks(0)
        return
    starts = generator.choice(num_rows // CHUNK_ROWS, limit // CHUNK_ROWS, replace=False)
    for start in sorted(starts.tolist()):
        yield next(iter(shard.chunks(start * CHUNK_ROWS)))


def _row(chunk: Chunk, position: int) -> dict[str, Any]:
    if isinstance(chunk.rows, pa.Table):
        return chunk.rows.slice(position, 1).to_pylist()[0]
    return {name: column[position] for name, column in chunk.rows.items()}


def _reckoned_rows(shard: Shard, rows: Sequence[tuple[int, dict[str, Any]]]) -> int | None:
    """Documents of a file by its bytes and those of some of its documents; `None` of a stream."""
    if not isinstance(shard, FileShard):
        return None
    is_packed = shard.path.suffix in (".gz", ".zst")
    contents = [json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace") for _, row in rows]
    num_bytes = sum(len(zlib.compress(content)) if is_packed else len(content) for content in contents)
    return round(shard.path.stat().st_size * len(rows) / num_bytes)


def _total(sizes: np.ndarray, order: np.ndarray, totals: Sequence[int | None]) -> int | None:
    """Documents of all shards; of those that were not drawn, by their bytes."""
    known_totals = [total for total in totals if total is not None]
    if len(known_totals) < len(totals):
        return None
    return round(sum(known_totals) * (sizes.sum() / sizes[order].sum() if sizes[order].sum() else 1.0))
