"""What is known of each data set: its columns, its pool of exemplars, the prompt of its queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, IterableDataset

from hf_ext.data.exemplars import ExemplarStore, Target
from hf_ext.data.exemplars.sources import ID_NAMES, require_rows, text_columns
from hf_ext.guards.rows import ROW_INDEX

QUERY_IDS = ("id", "_id", "query_id")
LABELS = ("label", "labels", "score", "scores")  # what the host takes for labels, not for texts


@dataclass(frozen=True)
class RetrievalColumns:
    """
    The columns of a data set.

    Args:
        query, positive (`str`): texts; losses take the first text column for the query, the second for its document.
        negatives (`tuple[str, ...]`): further texts, documents to avoid.
        id, doc_id (`str`, *optional*): ids of the query and of its positive.
        apart (`tuple[str, ...]`): ids, which no model reads.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    id: str | None = None
    doc_id: str | None = None
    apart: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """What the model reads, the query first."""
        return (self.query, self.positive, *self.negatives)

    def targets(self, rows: Sequence[Mapping[str, Any]], own_rows: bool) -> list[Target]:
        """
        What is known of each row of a batch.

        Args:
            rows (`Sequence[Mapping]`): of the data set.
            own_rows (`bool`): whether the pool is made of them without an id column, so that ids are row numbers.
        """
        name = self.id or (ROW_INDEX if own_rows else None)
        return [
            Target(
                id=None if name is None or row.get(name) is None else str(row[name]),
                positive=row[self.positive],
                doc_id=None if self.doc_id is None or row[self.doc_id] is None else str(row[self.doc_id]),
                negatives=tuple(row[column] for column in self.negatives),
            )
            for row in rows
        ]


def find_columns(
    dataset: Dataset | IterableDataset,
    *,
    query: str | None = None,
    positive: str | None = None,
    id: str | None = None,
    doc_id: str | None = None,
    dataset_name: str = "train",
) -> RetrievalColumns:
    """
    The columns of a data set, as the loss will read them.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Its features must be known.
        query, positive, id, doc_id (`str`, *optional*):
            Names where they are given. By default the first and second text column, and `id` or `query_id`, `doc_id`.
        dataset_name (`str`, *optional*):
            Named in messages.

    Raises:
        ValueError: a column is missing, there are no two texts, or the query does not stand first.
        TypeError: a column is not text.
    """
    features = dataset.features
    if features is None:
        raise ValueError(f"The {dataset_name} dataset is a stream that does not tell its columns: use cast(Features).")
    names = list(features)
    for name in filter(None, (query, positive, id, doc_id)):
        if name not in names:
            raise ValueError(f"The {dataset_name} dataset has no column {name!r}; it has {names}.")
    texts = text_columns(dataset)
    for name in filter(None, (query, positive)):
        if name not in texts:
            raise TypeError(
                f"Column {name!r} of the {dataset_name} dataset is not text but {features[name]}. "
                "Exemplars are texts: name another column."
            )
    id = id or next((name for name in QUERY_IDS if name in names and name not in (query, positive)), None)
    doc_id = doc_id or ("doc_id" if "doc_id" in names else None)
    ids = {name for name in ID_NAMES if name in names} | {id, doc_id, ROW_INDEX}
    free = [name for name in texts if name not in ids and name not in (query, positive)]
    query = query or next(iter(free), None)
    positive = positive or next((name for name in free if name != query), None)
    if query is None or positive is None:
        kinds = {name: str(feature) for name, feature in features.items()}
        raise ValueError(f"The {dataset_name} dataset needs two text columns, query and document; it has {kinds}.")
    read = [name for name in names if name not in ids and name not in LABELS]
    other = [name for name in read if name not in texts]
    if other:
        raise TypeError(
            f"Column {other[0]!r} of the {dataset_name} dataset is not text but {features[other[0]]}. The trainer "
            "reads every column as text: remove it with dataset.remove_columns."
        )
    if read[:2] != [query, positive]:
        wanted = [query, positive, *(name for name in read if name not in (query, positive))]
        raise ValueError(
            f"The columns of the {dataset_name} dataset are {read}, and losses take the first for the query and the "
            f"second for its document. Reorder them: dataset.select_columns({wanted})."
        )
    apart = tuple(name for name in names if name in ids and name != ROW_INDEX)
    return RetrievalColumns(query, positive, tuple(read[2:]), id, doc_id, apart)


@dataclass(frozen=True)
class Pool:
    """
    One data set's exemplars and how its rows are read.

    Args:
        store ([`ExemplarStore`]): the exemplars.
        columns ([`RetrievalColumns`]): of the data set.
        prompt (`str`): before a query.
        own_rows (`bool`): whether the ids of the store are the numbers of the data set's own rows.
    """

    store: ExemplarStore
    columns: RetrievalColumns
    prompt: str = ""
    own_rows: bool = False


def own_store(dataset: Dataset | IterableDataset, columns: RetrievalColumns, **options: Any) -> ExemplarStore:
    """
    The pool made of a data set's own rows.

    Raises:
        TypeError: a stream, which has no rows to index.
    """
    require_rows(dataset, "A pool of the training rows themselves (exemplars=None)")
    plain = dataset.with_format(None)
    names = {"query": columns.query, "document": columns.positive, "doc_id": columns.doc_id}
    names["id"] = columns.id or ROW_INDEX
    names["negative"] = columns.negatives[0] if columns.negatives else None
    rows = {column: plain[name][:] for column, name in names.items() if name is not None}
    for column in ("id", "doc_id"):
        if column in rows:
            rows[column] = [None if value is None else str(value) for value in rows[column]]
    return ExemplarStore(rows, **options)
