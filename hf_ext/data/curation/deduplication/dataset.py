"""Deduplication of a dataset at hand, by any of the steps over a set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, overload

from hf_ext.data.curation.steps import Batch, Notes, SetStep
from hf_ext.data.splits import with_split

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

_ROW = "__row__"  # of a table of features: the document's position in the dataset
_KEPT_PIECES = "__kept_pieces__"
_TABLE_ROWS = 1_000


def deduplicate(
    dataset: Dataset | DatasetDict,
    step: SetStep,
    *,
    split: str = "train",
    num_proc: int | None = None,
    notes: Notes | None = None,
) -> Any:  # what went in: a union would have to be narrowed at every call
    """
    The rows of a dataset that a step over the whole set keeps, in their order.

    Features of the documents, such as signatures, go to the cache of `datasets`, so that a second call need not take
    them again; only decisions are held in memory. Rows that are no document go as well if the step's `on_bad_row` is
    `"drop"`. [`curate`] writes down why each went; this function only leaves them out.

    | column in | type | column out | type |
    |---|---|---|---|
    | the step's `text_column` | str | the same | str: shorter, where a step cuts documents |
    | every other | any | the same | as it was |
    | | | `cluster_id`, of exact and MinHash deduplication | int64 |

    Args:
        dataset (`Dataset` or `DatasetDict`):
            Rows; their order decides which duplicate stays.
        step ([`ExactDeduplication`], [`MinHashDeduplication`], [`BloomDeduplication`]):
            What takes documents for one.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a `DatasetDict`; the others stay as they are.
        num_proc (`int`, *optional*):
            Processes that take features; the result does not depend on it.
        notes (`dict`, *optional*):
            Gets what the step says of the whole set: the largest cluster, the measured rate of false positives.

    Returns:
        `Dataset` (`DatasetDict`).

    Raises:
        TypeError: if it is a stream, in which a duplicate of a later row cannot be known.
        ValueError: if there is no such split or column.
        RowError: if a row is no document and the step's `on_bad_row` is `"raise"`.
    """
    from datasets import Dataset, DatasetDict

    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise ValueError(f"split={split!r}: the splits are {list(dataset)}. Name the one to deduplicate.")
        rows = deduplicate(dataset[split], step, num_proc=num_proc, notes=notes)
        return with_split(dataset, split, rows)
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"deduplicate needs a Dataset or DatasetDict, got {type(dataset).__name__}: all rows must be at hand. "
            "Materialise a stream with Dataset.from_generator, or run curate with output=."
        )
    tables = _FeatureTables(dataset, step, num_proc)
    positions = chain.from_iterable(table[_ROW].to_pylist() for table in tables)
    decisions = chain.from_iterable(step.decide(tables, {} if notes is None else notes))
    staying: list[int] = []
    cuts: list[tuple[int, ...] | None] = []
    columns: dict[str, list[Any]] = {}
    for position, decision in zip(positions, decisions, strict=True):
        if decision.drop is None:
            staying.append(position)
            cuts.append(decision.kept_pieces)
            for name, value in decision.columns.items():
                columns.setdefault(name, []).append(value)
    rows = dataset.select(staying)
    if any(cut is not None for cut in cuts):
        with_cuts = rows.add_column(_KEPT_PIECES, [None if cut is None else list(cut) for cut in cuts])
        rewriting = _Rewriting(step)
        rows = with_cuts.map(
            rewriting, batched=True, remove_columns=_KEPT_PIECES, features=rows.features, desc="Cutting documents"
        )
    for name, values in columns.items():
        rows = rows.remove_columns(name) if name in rows.column_names else rows
        rows = rows.add_column(name, values)
    return rows


@dataclass(frozen=True)
class _Features:
    """The features of the documents of a batch; rows that are none have none."""

    step: SetStep

    def __call__(self, batch: Batch, indices: Sequence[int]) -> pa.Table:
        import pyarrow as pa

        drops = self.step.unreadable(batch, indices)
        readable = [row for row, drop in enumerate(drops) if drop is None]
        documents = {name: [column[row] for row in readable] for name, column in batch.items()}
        table = self.step.features(documents[self.step.read_column], documents)
        return table.append_column(_ROW, pa.array([indices[row] for row in readable], pa.int64()))


@dataclass(frozen=True)
class _Rewriting:
    """Cut the documents of which only some pieces stay."""

    step: SetStep

    def __call__(self, batch: Batch) -> dict[str, list[str]]:
        name = self.step.text_column
        cuts = zip(batch[name], batch[_KEPT_PIECES], strict=True)
        return {name: [text if cut is None else self.step.rewrite(text, tuple(cut)) for text, cut in cuts]}


class _FeatureTables(Sequence["pa.Table"]):
    """Features in tables of about a thousand documents, mapped from the cache of `datasets`."""

    def __init__(self, dataset: Dataset, step: SetStep, num_proc: int | None) -> None:
        self._features = dataset.with_format(None).map(
            _Features(step),
            with_indices=True,
            batched=True,
            remove_columns=dataset.column_names,
            num_proc=num_proc,
            desc=f"Features for {step.name}",
        )
        self._features.set_format("arrow")
        # `datasets` calls no function on an empty dataset, so that the features have no columns
        self._count = len(self._features) if _ROW in self._features.column_names else 0

    def __len__(self) -> int:
        return -(-self._count // _TABLE_ROWS)

    @overload
    def __getitem__(self, index: int) -> pa.Table: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[pa.Table]: ...

    def __getitem__(self, index: int | slice) -> pa.Table | Sequence[pa.Table]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._features[index * _TABLE_ROWS : min((index + 1) * _TABLE_ROWS, self._count)]
