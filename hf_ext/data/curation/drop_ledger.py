"""The drop ledger: which documents went, by which rule, what it measured, and not a word of their text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_ext.guards.markdown import well_formed

FOLDER = "drops"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("shard", pa.string()),
        ("row", pa.int64()),
        ("step", pa.string()),
        ("rule", pa.string()),
        ("value", pa.float64()),
        ("threshold", pa.float64()),
        ("detail", pa.string()),
    ]
)


class DropRecord(NamedTuple):
    """
    One document that went.

    Args:
        id (`str`):
            Its id; `shard:row` where the dataset has no column of ids.
        shard (`str`):
            The file that it was read from, seen from the folder that was given; `rows` of a dataset.
        row (`int`):
            Its position in there, from 0.
        step, rule (`str`):
            What it went by.
        value, threshold (`float`, *optional*):
            What was measured, and the bound that it is beyond.
        detail (`str`, *optional*):
            What the document was compared with: the one that it repeats, or the benchmark's row.
    """

    id: str
    shard: str
    row: int
    step: str
    rule: str
    value: float | None = None
    threshold: float | None = None
    detail: str | None = None


def drop_table(records: Iterable[DropRecord]) -> pa.Table:
    """The records as a table of [`SCHEMA`]."""
    return pa.Table.from_pylist([record._asdict() for record in records], schema=SCHEMA)


class DropLedger:
    """
    The documents that a curation dropped, read from its Parquet files a piece at a time.

    Several documents may have the same id; `shard` and `row` tell them apart.

    Args:
        files (`Sequence[Path]`):
            The files, in order.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)

    @classmethod
    def read(cls, folder: str | Path) -> DropLedger:
        """
        The ledger of a folder that `curate` wrote.

        Raises:
            FileNotFoundError: if there is none.
        """
        files = sorted(Path(folder, FOLDER).glob("*.parquet"))
        if not files:
            raise FileNotFoundError(f"{folder} holds no drop ledger: it is no folder that curate has finished.")
        return cls(files)

    def __len__(self) -> int:
        return sum(pq.read_metadata(file).num_rows for file in self.files)

    def __iter__(self) -> Iterator[DropRecord]:
        """Every record, in the order of the documents."""
        for table in self.tables():
            yield from _records(table)

    def tables(self) -> Iterator[pa.Table]:
        """The records, a table of some thousands at a time."""
        for file in self.files:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches():
                    yield pa.Table.from_batches([batch])

    def explain(self, document_id: str) -> list[DropRecord]:
        """Why the document of that id went: a record of each that has it, none where none of them went."""
        records: list[DropRecord] = []
        for table in self.tables():
            records += _records(table.filter(pc.equal(table["id"], well_formed(document_id))))
        return records

    def counts(self) -> dict[tuple[str, str], int]:
        """How many documents went by each step and rule."""
        totals: dict[tuple[str, str], int] = {}
        for table in self.tables():
            for group in table.group_by(["step", "rule"]).aggregate([([], "count_all")]).to_pylist():
                key = (group["step"], group["rule"])
                totals[key] = totals.get(key, 0) + group["count_all"]
        return totals


def _records(table: pa.Table) -> list[DropRecord]:
    return [DropRecord(**record) for record in table.to_pylist()]
